"""fastpush.cli.trace: how an event looks, what is asked of the server, and how the command ends."""

import json
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from fastpush.cli import main
from fastpush.cli.trace import _line
from fastpush.control_client import ControlError
from fastpush.protocol.insight import Trace, Traced

COMMAND = sys.modules[_line.__module__]  # by its name the package has the command itself
ID = "0123456789ab8cde8f01-00000000002a"
WRITTEN = Traced(1, 1_800_000_000.25, "worker-2", "written", 77, 1.5, "news", ID, "12 bytes")
CLOSED = Traced(2, 1_800_000_001.9996, "broker", "closed", 0, 0, "", "", "worker-2 was lost")


class Server:
    """Answers in turn what `ask_insight` asks; an exception is raised. asked: the questions."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def __call__(self, config_path: str | None, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


def told(*events: Traced, left_out: int = 0, is_over: bool = False) -> dict[str, Any]:
    """The answer as it comes through JSON."""
    return json.loads(msgspec.json.encode(Trace(events=list(events), left_out=left_out, is_over=is_over)))  # type: ignore[no-any-return]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Server]]:
    """Run the command against a server's answers; nobody waits between two questions."""
    monkeypatch.setattr(COMMAND, "READ_SECONDS", 0)

    def run(arguments: list[str], *answers: Any) -> tuple[Result, Server]:
        server = Server(*answers)
        monkeypatch.setattr(COMMAND, "ask_insight", server)
        return CliRunner().invoke(main, ["trace", *arguments]), server

    return run


Run = Callable[..., tuple[Result, Server]]


def test_a_line_has_all_of_an_event() -> None:
    """Time to the millisecond, since the accept, push, process, step, event, short form of the id, and the detail."""
    line = _line(WRITTEN).plain
    assert line[8:12] == ".250" and line.split()[1:] == [
        "+1.500", "#000077", "worker-2", "written", "news", "0123…002a", "12", "bytes",
    ]  # fmt: skip
    assert _line(CLOSED).plain[8:12] == ".999" and "+" not in _line(CLOSED).plain


def test_nothing_foreign_reaches_the_terminal() -> None:
    """What moves cursors or breaks lines is escaped, wherever it stands."""
    evil = "\x1b[2J\n\u202e"
    shown = _line(Traced(1, 0.0, evil, evil, 1, 0, evil, evil * 4, evil)).plain
    assert shown.isprintable() and "\\u001b[2J" in shown


def test_events_are_printed_as_they_come(traced: Run) -> None:
    """Each answer's events are printed, what was printed is acknowledged, and the end is told with both numbers."""
    result, server = traced(
        ["jack", "--for", "2m"], {"trace": "t", "ends_seconds": 0.0}, told(WRITTEN), told(), told(CLOSED, left_out=3),
        told(left_out=3, is_over=True),
    )  # fmt: skip
    assert result.exit_code == 0
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["bytes", "lost"]
    assert result.stderr.splitlines() == [
        "tracing user jack for 120 s; Ctrl-C ends it", "the time is over: 2 events, 3 left out",
    ]  # fmt: skip
    assert server.asked[0] == {"ask": "trace", "user": "jack", "seconds": 120.0}
    assert [question["after"] for question in server.asked[1:]] == [0, 1, 1, 2]


def test_json(traced: Run) -> None:
    """With --json there is an object a line with every member, and nothing else."""
    result, server = traced(["--channel", "c", "--json"], {"trace": "t"}, told(WRITTEN, is_over=True))
    assert result.exit_code == 0 and result.stderr == "" and server.asked[0]["channel"] == "c"
    (line,) = result.stdout.splitlines()
    assert json.loads(line) == {
        "number": 1, "seconds": 1_800_000_000.25, "process": "worker-2", "step": "written", "push": 77, "after_ms": 1.5,
        "what": "news", "connection": ID, "detail": "12 bytes",
    }  # fmt: skip


def test_interrupted(traced: Run) -> None:
    """Ctrl-C ends the trace in the server, prints what came last, and is no failure; a second one waits for nothing."""
    result, server = traced(
        ["jack"], {"trace": "t"}, told(WRITTEN), KeyboardInterrupt(), {}, told(CLOSED), told(is_over=True)
    )
    assert result.exit_code == 0 and result.stderr.splitlines()[-1] == "interrupted: 2 events, 0 left out"
    assert {"ask": "untrace", "trace": "t"} in server.asked
    result, server = traced(["jack"], {"trace": "t"}, KeyboardInterrupt(), {}, KeyboardInterrupt())
    assert result.exit_code == 0 and result.stderr.splitlines()[-1] == "interrupted: 0 events, 0 left out"


@pytest.mark.parametrize("answers", [[ControlError("no server")], [{"trace": "t"}, told(), ControlError("no server")]])
def test_a_server_that_does_not_answer(traced: Run, answers: list[Any]) -> None:
    """Without a server, from the start or from some time on, the command says so and fails."""
    result, _ = traced(["jack"], *answers)
    assert result.exit_code == 1 and result.stderr.splitlines()[-1] == "error: no server"


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["jack", "--channel", "c"], [""], ["jack", "--for", "soon"], ["jack", "--for", "11m"],
        ["jack", "--for", "500ms"], ["--channel", ""],
    ],
)  # fmt: skip
def test_wrong_usage(traced: Run, arguments: list[str]) -> None:
    """A user or a channel, not both, not empty, and a time that a trace may last: else nothing is asked."""
    result, server = traced(arguments)
    assert result.exit_code == 2 and server.asked == []
