"""A mistake in the configuration, under load: `fastpush reload` says precisely what is wrong, and nothing changes."""

import re
import shutil
import signal
from typing import Any

import pytest

from tests.certificates import make_certificate
from tests.load.live import KEY, PROBE, Live
from tests.raw import RawClient
from tests.server import application, eventually

NEW_KEY = "a-key-that-comes-with-the-mistake"


def line_of(live: Live, text: str) -> str:
    """The place of the first line that starts so: FILE:LINE."""
    lines = live.server.config_path.read_text().splitlines()
    return f"{live.server.config_path}:{next(n for n, line in enumerate(lines, 1) if line.startswith(text))}"


Mistake = tuple[str, dict[str, dict[str, Any]], str, list[str]]

# Name; sections laid over the settings; text behind them; what the message says besides, with {line of TEXT} for a
# place in the file.
MISTAKES: list[Mistake] = [
    ("not TOML", {}, "[fanout]\nslice_ms = = 7\n", ["{slice_ms}"]),
    ("text without quotes", {}, "[fanout]\nslice_ms = fast\n", ["{slice_ms}", "quotes"]),
    ("same key twice", {}, "[fanout]\nslice_ms = 1\nslice_ms = 2\n", ["{slice_ms = 2}"]),
    ("unknown key", {"limits": {"registration": 7}}, "", ["{registration =}", "no such key", "registrations"]),
    ("unknown section", {"limit": {"registrations": 7}}, "", ["{[limit]}", "no such section", "[limits]"]),
    ("wrong type", {"limits": {"message_bytes": "many"}}, "", ["{message_bytes}", '"many"', "integer from 128"]),
    ("out of range", {"limits": {"message_bytes": 1}}, "", ["{message_bytes}", "found 1", "from 128 to 67108864"]),
    ("not one of", {"limits": {"slow_policy": "wait"}}, "", ["{slow_policy}", '"wait"', '"drop-oldest"']),
    ("no such file", {"auth": {"tokens_file": "gone.toml"}}, "", ["{tokens_file}", "gone.toml: no such file"]),
    ("a directory", {"push": {"keys_file": "."}}, "", ["{keys_file}", "is a directory"]),
    ("unreadable file", {"auth": {"tokens_file": "/proc/self/mem"}}, "", ["{tokens_file}", "cannot be read"]),
    ("mistake in tokens", {"auth": {"tokens_file": "bad.toml"}}, "", ["bad.toml:2", "must be a string"]),
    ("no token", {"auth": {"tokens_file": "none.txt"}}, "", ["{tokens_file}", "none.txt: holds no token"]),
    ("no key", {"push": {"keys": []}}, "", ['"keys" needs at least one key']),
    ("keys file without a key", {"push": {"keys": [], "keys_file": "none.txt"}}, "", ["holds no key"]),
    ("short push key", {"push": {"keys": [KEY, "short"]}}, "", ["{keys}", "has 5 characters", "at least 16"]),
    ("mode without its settings", {"auth": {"mode": "jwt"}}, "", ["{mode}", "jwks_url"]),
    ("short secret", {"auth": {"mode": "jwt"}}, '[[auth.jwt.key]]\nsecret = "short"\n', ["{secret}", "at least 32"]),
    (
        "kid twice", {"auth": {"mode": "jwt"}},
        "".join(f'[[auth.jwt.key]]\nkid = "k"\nsecret = "{letter * 40}"\n' for letter in "ab"),
        ["kid", "earlier key"],
    ),
    (
        "private key where a public one belongs", {"auth": {"mode": "jwt"}},
        '[[auth.jwt.key]]\nalgorithm = "ES256"\npublic_key_file = "a.key"\n', ["{public_key_file}", "private key"],
    ),
    ("function of no module", {"push": {"auth": "python", "callable": "nowhere:f"}}, "", ["callable", "nowhere"]),
    (
        "module without the function", {"auth": {"mode": "python"}},
        '[auth.python]\ncallable = "tests.load.allow:nobody"\n', ["callable", "nobody"],
    ),
    ("open to other machines", {"server": {"listen": "0.0.0.0:0"}, "auth": {"mode": "token-is-user"}}, "",
     ["[server] listen", "can be reached from other machines", "[auth] mode"]),
    ("not an origin", {"server": {"origins": ["shop.example"]}}, "", ["{origins}", "shop.example"]),
    ("not a network", {"server": {"trusted_proxies": ["10.0.0.1/8"]}}, "", ["{trusted_proxies}", "10.0.0.1/8"]),
    ("path twice", {"application": [application("Echo", path="/ws")]}, "", ["{path}", "/ws"]),
    ("more than fits", {"push": {"keys": [f"{n:040}" for n in range(10_000)]}}, "", ["settings take", "restart"]),
    ("no certificate there", {"tls": {"certificate": "gone.pem"}}, "",
     ["{certificate}", "gone.pem", "o such file"]),
    ("no certificate in it", {"tls": {"certificate": "a.key", "key": "a.key"}}, "", ["{certificate}", "a.key"]),
    ("key of another certificate", {"tls": {"certificate": "a.pem", "key": "b.key"}}, "", ["{key =}", "b.key"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "more", "says"), [mistake[1:] for mistake in MISTAKES], ids=[mistake[0] for mistake in MISTAKES]
)
def test_mistake(live: Live, sections: dict[str, dict[str, Any]], more: str, says: list[str]) -> None:
    """Exit code 2; place, key, what was found and what is allowed, on the terminal and in the log; nothing changes."""
    (live.folder / "bad.toml").write_text('"token-u0" = "u0"\n"token-u1" = 1\n')
    (live.folder / "none.txt").write_text("# nothing yet\n")
    for name in ("a", "b"):
        make_certificate(live.folder / f"{name}.pem", key_path=live.folder / f"{name}.key")
    with live.open() as client:
        # Beside the mistake a change that would show if a part of this were taken over.
        changed = {"push": {"keys": [KEY, NEW_KEY]}, "log": {"level": "debug"}, **sections}
        live.write(more, **changed)
        refused = len(live.server.events("not reloaded"))
        result = live.reload()
        assert result.returncode == 2 and not result.stdout, result
        for text in says:
            assert re.sub(r"^\{(.*)\}$", lambda match: line_of(live, match[1]), text) in result.stderr, result.stderr
        assert KEY not in result.stderr and NEW_KEY not in result.stderr
        lines = live.server.events("not reloaded")[refused:]
        assert [line["level"] for line in lines] == ["error"], "one line, of the supervisor"
        assert result.stderr.replace("error: ", "").strip() == lines[0]["reason"].strip()
        is_unchanged(live, client)


def is_unchanged(live: Live, client: RawClient) -> None:
    """The old settings hold in both workers: keys, tokens, limits; and a connection of before is pushed to."""
    assert live.everywhere(lambda: live.push(KEY, message="still here")) == {200}
    assert {client.read_text() for _ in range(6)} == {"still here"} and client.is_silent()
    assert live.everywhere(lambda: live.push(NEW_KEY)) == {401}
    assert live.everywhere(lambda: live.status(token=PROBE)) == {101}
    assert not live.server.events("accepted"), "still at level info"


def test_configuration_that_is_gone(live: Live) -> None:
    """Without its file a reload is refused; when the file is back it is taken."""
    live.write()
    kept = live.server.config_path.with_suffix(".kept")
    shutil.move(live.server.config_path, kept)
    live.server.signal(signal.SIGHUP)
    eventually(lambda: "no such file" in live.server.events("not reloaded")[-1]["reason"], what="refusal")
    shutil.move(kept, live.server.config_path)
    assert live.change().startswith("reloaded")


def test_mistake_by_signal(live: Live) -> None:
    """SIGHUP refuses what `fastpush reload` refuses, with its reason in the log, and the next good one is taken."""
    live.write(limits={"message_bytes": 1})
    refused = len(live.server.events("not reloaded"))
    live.server.signal(signal.SIGHUP)
    eventually(lambda: len(live.server.events("not reloaded")) > refused, what="refusal")
    assert line_of(live, "message_bytes") in live.server.events("not reloaded")[-1]["reason"]
