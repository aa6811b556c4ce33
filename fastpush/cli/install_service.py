"""`fastpush install-service`: write the systemd units of the program that runs.

What is written lies in the package, in the folder systemd/; only the program's path is put in.
"""

import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path, PurePath
from typing import NamedTuple

import click

import fastpush
from fastpush.cli.common import fail
from fastpush.errors import EXIT_USAGE

_TEMPLATE_PROGRAM = "/opt/fastpush/bin/fastpush"
_AS_MODULE = " -m fastpush"
_UNITS = Path("/etc/systemd/system")
_CONFIG = Path("/etc/fastpush/config.toml")
_MODE = 0o644
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
_HIDDEN_PLACES = {
    "/home": "ProtectHome=",
    "/root": "ProtectHome=",
    "/run/user": "ProtectHome=",
    "/tmp": "PrivateTmp=",  # noqa: S108 - a name to refuse
    "/var/tmp": "PrivateTmp=",  # noqa: S108
}
_FIRST_PERSON_UID, _LAST_PERSON_UID = 1000, 60000
_ADVICE = (
    "install fastpush where the service can reach it: "
    "`python3 -m venv /opt/fastpush && /opt/fastpush/bin/pip install fastpush`, "
    "with a python3 of the system, then `/opt/fastpush/bin/fastpush install-service`"
)


class Template(NamedTuple):
    """One file. is_ours: a newer one replaces it; else it is the operator's as soon as it exists."""

    name: str
    target: Path
    is_ours: bool


_TEMPLATES = (
    Template("fastpush.service", _UNITS / "fastpush.service", is_ours=True),
    Template("fastpush.socket", _UNITS / "fastpush.socket", is_ours=True),
    Template("fastpush.service.d/10-example.conf", _UNITS / "fastpush.service.d/10-example.conf", is_ours=False),
    Template("50-fastpush.conf", Path("/etc/sysctl.d/50-fastpush.conf"), is_ours=False),
    Template("config.toml", _CONFIG, is_ours=False),
)


@click.command("install-service", short_help="Write the systemd units.")
@click.option("--root", default="/", metavar="DIR", help="Write below this folder, for packages [default: /].")
@click.option("--dry-run", is_flag=True, help="Show what would be written.")
@click.option("--force", is_flag=True, help="Replace units that were changed.")
def install_service(root: str, dry_run: bool, force: bool) -> None:
    """Write fastpush.service, fastpush.socket, an example drop-in, advice for sysctl, and a first configuration.

    The service runs the program that runs this command. Exit code 2 when that lies where the hardened
    service could not reach it; 1 when a unit was changed by hand, or cannot be written.
    """
    if reasons := unreachable(program_places(), people_homes()) or unreadable(program_places()):
        fail("\n".join([*reasons, _ADVICE]), EXIT_USAGE)
    command = program()
    if not _PLAIN_PATH.fullmatch(command.removesuffix(_AS_MODULE)):
        fail(f"{command} holds characters that a unit would have to quote; {_ADVICE}", EXIT_USAGE)
    base = Path(root)
    texts = {base / template.target.relative_to("/"): (template, _text(template, command)) for template in _TEMPLATES}
    pending = {target: text for target, (template, text) in texts.items() if _is_due(target, template, text)}
    changed = [target for target in pending if target.exists()]
    if dry_run:
        _show(pending)
        return
    if changed and not force:
        names = "\n".join(f"{target} was changed, or is of another version" for target in changed)
        fail(
            f"{names}\nnothing is written; put changes into a drop-in (systemctl edit), then --force replaces the unit"
        )
    for target, text in pending.items():
        _write(target, text)
    for target in texts:
        click.echo(f"{'wrote' if target in pending else 'kept '} {target}")
    _tell_next()


# Where the program lies


def program() -> str:
    """Return the absolute command line of the program that runs: the script, or the interpreter with -m."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "fastpush" and os.access(script, os.X_OK):
        return str(script)
    return sys.executable + _AS_MODULE


def program_places() -> dict[str, PurePath]:
    """Return everything that the running program is made of, as named and as links lead to it."""
    named = {
        "the program": Path(program().removesuffix(_AS_MODULE)),
        "its interpreter": Path(sys.executable),
        "its environment": Path(sys.prefix),
        "its standard library": Path(sys.base_prefix),
        "its package fastpush": Path(fastpush.__file__).parent,
        "its packages": Path(click.__file__).parent.parent,
    }
    links = {f"{what} (a link leads there)": path.resolve() for what, path in named.items() if path.resolve() != path}
    return {**named, **links}


def people_homes() -> list[PurePath]:
    """Return the home folders of the people who have an account."""
    return [
        PurePath(entry.pw_dir)
        for entry in pwd.getpwall()
        if _FIRST_PERSON_UID <= entry.pw_uid <= _LAST_PERSON_UID and len(PurePath(entry.pw_dir).parts) > 1
    ]


def unreachable(places: Mapping[str, PurePath], homes: Iterable[PurePath]) -> list[str]:
    """Return a sentence for each place that the service's own options hide from it, or that is somebody's home."""
    found = []
    for what, path in places.items():
        option = next((option for folder, option in _HIDDEN_PLACES.items() if path.is_relative_to(folder)), "")
        home = next((home for home in homes if path.is_relative_to(home)), None)
        if option:
            found.append(f"{what} lies in {path}, which {option} of the service hides")
        elif home:
            found.append(f"{what} lies in {path}, in the home folder {home} of a user who can change it")
    return found


def unreadable(places: Mapping[str, PurePath]) -> list[str]:
    """Return a sentence for each folder that keeps the service's own user, who is nobody's group, from a place."""
    closed = {
        folder
        for path in places.values()
        for folder in [Path(path), *Path(path).parents]
        if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH
    }
    return [f"{folder} is closed to the service's user: chmod o+rx" for folder in sorted(closed)]


# What is written


def _text(template: Template, command: str) -> str:
    text = resources.files(fastpush).joinpath("systemd", template.name).read_text(encoding="utf-8")
    return text.replace(_TEMPLATE_PROGRAM, command) if template.is_ours else text


def _is_due(target: Path, template: Template, text: str) -> bool:
    try:
        before = target.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {target}: {error}")
    return template.is_ours and before != text


def _show(pending: Mapping[Path, str]) -> None:
    for target, text in pending.items():
        click.echo(click.style(f"# would {'replace' if target.exists() else 'write'} {target}", bold=True))
        click.echo(text)
    if not pending:
        click.echo("everything is in place")


def _write(target: Path, text: str) -> None:
    """Write a file in one step: systemd never reads half of it."""
    draft = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.chmod(_MODE)
        draft.replace(target)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        fail(f"cannot write {target}: {error.strerror}; run as root, or with --root DIR")


def _tell_next() -> None:
    click.echo(
        f"\nNext: edit {_CONFIG}, then\n"
        "  systemctl daemon-reload\n"
        "  systemctl enable --now fastpush.service     # and fastpush.socket before it, for ports below 1024\n"
        "  systemctl status fastpush.service\n"
        "Changes of the service: systemctl edit fastpush, or fastpush.service.d/10-example.conf.\n"
        "Kernel limits: /etc/sysctl.d/50-fastpush.conf, then sysctl --system."
    )
