"""Write config.toml from the schema: `python -m tools.config_toml > config.toml`.

Every key stands there at its default, below a comment with its meaning, what is allowed, the default and whether
SIGHUP takes a change over. A test compares the checked-in file with this output.
"""

import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from fastpush.config.schema import Config, Key, Section, default_of, members, overridable, shown

_WIDTH = 100
_HEADER = """\
Configuration of fastpush: every key, at its default. A key that is left out has its default too.

This file is found by --config FILE, else as ./config.toml, else as /etc/fastpush/config.toml. \
`fastpush check` says what is wrong with it, by line.

Any key can be overridden by an environment variable FASTPUSH_<SECTION>_<KEY>: FASTPUSH_SERVER_LISTEN, \
FASTPUSH_AUTH_JWT_JWKS_URL, and FASTPUSH_CHANNELS_CHAT_PRESENCE where there is a table [channels.chat]. \
Its text is read as a TOML value where that is allowed, else as a string. \
Other variables that start with FASTPUSH_ are errors, except FASTPUSH_TEST_…, FASTPUSH_BENCH_… and what \
Kubernetes sets for a service of this name. Options of the command line override both.

The end of a name is its unit: _seconds (0.5 is allowed), _ms, _bytes. Live: `systemctl reload` (SIGHUP) \
takes a change over. Restart: a restart does.

Names of files are relative to the folder of this file, and ${NAME} in them is an environment variable, so that \
"${CREDENTIALS_DIRECTORY}/NAME" is a systemd credential.

As delivered the server asks nobody who they are, so it starts on loopback addresses only. For any other address set \
[auth] mode and [push] auth."""


def render() -> str:
    """Return the text of config.toml."""
    return "\n".join([*_comment(_HEADER), *_tables(Config, "")]) + "\n"


def _tables(section: type[Section], table: str) -> Iterator[str]:
    for name, member in members(section).items():
        if not isinstance(member, Key):
            yield from ("", "", *_comment(_summary(member)), f"[{table}{name}]", *_keys(member, f"{table}{name}"))
            yield from _tables(member, f"{table}{name}.")
        elif member.entries:
            yield from ("", "", *_entry(member, member.entries, f"{table}{name}"))
        elif member.named:
            yield from ("", "", *_named(member, member.named, f"{table}{name}"))


def _keys(section: type[Section], table: str) -> Iterator[str]:
    for key in members(section).values():
        if not isinstance(key, Key) or key.entries:
            continue
        if key.is_table:
            yield from ("", *_comment(f"{key.meaning} Default: none. {_change(key)}"), f"#[{table}.{key.name}]")
            yield from (f"#{name} = {shown(value)}" for name, value in _examples(key).items())
        else:
            comment = _comment(f"{key.meaning}\n{_facts(key)} {_change(key)}")
            yield from ("", *comment, f"{key.name} = {shown(key.default)}")


def _entry(key: Key, entries: type[Section], table: str) -> Iterator[str]:
    """Yield one entry of an array of tables, commented out: its default is that there is none."""
    yield from _comment(
        f"{_summary(entries)} Default: none. {_change(key)}\n"
        "Take the # in front of the lines without a space away, and repeat them for each further one."
    )
    yield f"#[[{table}]]"
    for member in members(entries).values():
        if isinstance(member, Key):
            yield "#"
            if member.is_table:
                yield from (*_comment(f"{member.meaning} Default: none."), f"#[{table}.{member.name}]")
                yield from (f"#{name} = {shown(value)}" for name, value in _examples(member).items())
            else:
                yield from _comment(f"{member.meaning}\n{_facts(member)}")
                yield f"#{member.name} = {shown(member.default if member.example is None else member.example)}"


def _named(key: Key, section: type[Section], table: str) -> Iterator[str]:
    """Yield an example of a table in a table of tables, commented out: its default is that there is none."""
    yield from _comment(
        f"{key.meaning} Default: none. {_change(key)}\n"
        "Take the # in front of the lines without a space away; every key may be left out. Repeat them with another "
        "name for each further one."
    )
    [(name, example)] = key.example.items()
    yield f"#[{table}.{name}]"
    for member in members(section).values():
        if isinstance(member, Key):
            yield from ("#", *_comment(f"{member.meaning}\n{_facts(member)}"))
            yield f"#{member.name} = {shown(getattr(example, member.name))}"


def _examples(key: Key) -> dict[str, Any]:
    """Return what a table of an entry may hold: an example, or the keys that it may override at their defaults."""
    if key.overrides is None:
        return dict(key.example)
    return {name: member.default for name, member in overridable(key.overrides).items()}


def _summary(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _facts(key: Key) -> str:
    return f"Allowed: {key.allowed}. Default: {default_of(key)}."


def _change(key: Key) -> str:
    return ("Live." if key.live else "Restart.") + (
        " An [[application]] may override it." if key.per_application else ""
    )


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n"):
        lines = textwrap.wrap(paragraph, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        yield from (f"# {line}" for line in lines) if lines else ["#"]


if __name__ == "__main__":
    sys.stdout.write(render())
