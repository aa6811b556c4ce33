"""`fastpush why` without a server: what an answer looks like to people and to programs."""

import importlib
import json
import time
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from fastpush.cli import main
from fastpush.control_client import ControlError
from fastpush.protocol.insight import Held, Lost, Note, Push, Why

NOW = 1_800_000_000.0
EVIL = "\x1b[2J\u202e\nevil"
COUNTS = "did not count  worker-2 5"
ESCAPED = '"\\u001b[2J\\u202e\\nevil"'


def clock(ago: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(NOW - ago))


def report(**known: Any) -> Why:
    usual: dict[str, Any] = {
        "user": "42", "asked_seconds": NOW, "since_seconds": NOW - 3000, "workers": 2, "missing": 0,
        "connections": [], "connections_left_out": 0, "notes": [], "strangers": [], "pushes": [], "lost": [],
        "findings": ["It is so."],
    }  # fmt: skip
    return Why(**usual | known)


def held(text: str = "chat") -> Held:
    return Held(
        id="c1", worker=3, path=text, peer=text, transport="websocket", state="slow", since_seconds=NOW - 90,
        heard_seconds_ago=4, events=[text, "news"], channels=[text], keys=5, queued_messages=2, queued_bytes=2048,
        worst_queued_bytes=4096, dropped_messages=7, unhandled_messages=1, expires_seconds=NOW + 60,
    )  # fmt: skip


def told(text: str = "chat") -> Why:
    """A report of everything, with this text wherever a client may have said something."""
    return report(
        user=text, missing=1, connections=[held(text)], connections_left_out=3, findings=["First.", f"Second {text}."],
        notes=[
            Note(NOW - 90, "opened", text, 3, "c1", text, text),
            Note(NOW - 50, "refused", text, 3, "c1", text, text, 0, text, what=text, is_claimed=True),
            Note(NOW - 40, "dropped", text, 3, "c1", text, text, reason="oldest", messages=7),
            Note(NOW - 30, "closed", text, 3, "c0", text, text, 1013, text, "server", text),
        ],
        strangers=[
            Note(NOW - 20, "refused", "", 3, "", text, text, 401, text),
            Note(NOW - 15, "refused", "", 3, "", text, text, 413, text, "back-end", text),
        ],
        pushes=[
            Push(NOW - 20, "push", text, 1234, 1, 2, "delivered", 1, 0, 1.25, text * 41),
            Push(NOW - 15, "push", text, 5, 1, 2, "nobody", 0, 0, 0.25),
            Push(NOW - 10, "push all", text, 5, 0, 2, "unconfirmed", 9, 1, 1000.0, text),
            Push(NOW - 5, "application", "", 5, 12, 2, "delivered", 2, 0, 0.1, None),
        ],
        lost=[Lost(2, NOW - 35)],
    )  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, answer: Why | ControlError, *arguments: str) -> Result:
    def ask(config_path: str | None, question: dict[str, Any]) -> dict[str, Any]:
        assert question == {"ask": "why", "user": "42"}
        if isinstance(answer, ControlError):
            raise answer
        found: dict[str, Any] = json.loads(msgspec.json.encode(answer))
        return found

    monkeypatch.setattr(importlib.import_module("fastpush.cli.why"), "ask_insight", ask)
    return CliRunner().invoke(main, ["why", "42", *arguments])


def lines(result: Result) -> list[str]:
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(character.isprintable() or character == "\n" for character in result.stdout)
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows comes first; parts with nothing in them are left out."""
    assert lines(run(monkeypatch, report())) == [
        f"user 42  at {clock(0)}, known since {clock(3000)} (50.0 min ago)  2 workers",
        "", "1.  It is so.", "", "no connection",
    ]  # fmt: skip


def test_everything_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings, connections, what happened in its order, pushes with their messages, refused pushes of nobody known."""
    assert lines(run(monkeypatch, told())) == [
        f"user chat  at {clock(0)}, known since {clock(3000)} (50.0 min ago)  only 1 of 2 workers answered",
        "",
        "1.  First.",
        "2.  Second chat.",
        "",
        "4 connections",
        "    slow  chat from chat, websocket, worker-3",
        f"    open since {clock(90)} (1.5 min ago), heard 4 s ago, token until {clock(-60)}",
        "    events: chat, news; channels: chat; and 2 more",
        "    send queue: 2 messages, 2,048 bytes, at its worst 4,096 bytes, 7 messages dropped; 1 message of it unread",
        "    id c1",
        "  … and 3 more",
        "",
        "lately",
        f"  {clock(90)}  1.5 min ago  opened  worker-3 chat from chat",
        f"  {clock(50)}     50 s ago  refused chat: chat (so its token says)  worker-3 chat from chat",
        f"  {clock(40)}     40 s ago  dropped 7 messages: oldest  worker-3 chat from chat",
        f"  {clock(35)}     35 s ago  killed with connections of it  worker-2",
        f"  {clock(30)}     30 s ago  closed by server (chat): 1013 chat  worker-3 chat from chat",
        "",
        "last pushes",
        f"  {clock(20)}  20 s ago  delivered chat to 1 connection in 1.2 ms  worker-2 1234 bytes",
        f"                      {'chat' * 10}…",
        f"  {clock(15)}  15 s ago  nobody wanted chat  worker-2 5 bytes",
        f"  {clock(10)}  10 s ago  unconfirmed chat for everybody: 9 connections in 1000.0 ms, and 1 worker {COUNTS}",
        "                      bytes chat",
        f"  {clock(5)}   5 s ago  delivered (application) for 12 users to 2 connections in 0.1 ms  worker-2 5 bytes",
        "",
        "refused on this host, of users that nobody knows",
        f"  {clock(15)}  15 s ago  refused push chat: 413 chat  worker-3 chat from chat",
    ]


def test_strangers_of_who_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user is away clients of nobody known are shown too, the last five."""
    strangers = [Note(NOW - ago, "refused", "", 3, "", "/ws", "a", 401, f"r{ago}") for ago in (9, 8, 7, 6, 5, 4)]
    shown = lines(run(monkeypatch, report(strangers=strangers)))
    assert [line.split()[7] for line in shown[-5:]] == ["r8", "r7", "r6", "r5", "r4"]
    assert shown[-6] == "refused on this host, of users that nobody knows"


def test_texts_of_clients_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that moves a cursor, breaks a line or turns text around leaves the command."""
    result = run(monkeypatch, told(EVIL))
    text = " ".join(" ".join(lines(result)).split())
    for where in (f"user {ESCAPED}", f"events: {ESCAPED}, news", f"closed by server ({ESCAPED}): 1013 {ESCAPED}"):
        assert where in text


def test_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """A time of another day is shown with it."""
    ago = NOW - 80000
    assert time.strftime("%m-%d %H:%M:%S", time.localtime(ago)) in run(monkeypatch, report(since_seconds=ago)).stdout


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs get the whole report as one line of JSON."""
    result = run(monkeypatch, told(EVIL), "--json")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert msgspec.json.decode(result.stdout, type=Why) == told(EVIL)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer the command fails, and says why."""
    result = run(monkeypatch, ControlError("no server of this configuration is running"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no server of this configuration is running" in result.stderr


@pytest.mark.parametrize("user", ["", "\udcff"])
def test_no_user(user: str) -> None:
    """A user that cannot be one is wrong usage."""
    assert CliRunner().invoke(main, ["why", user]).exit_code == 2
