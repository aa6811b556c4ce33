"""`fastpush why`: all that the running server knows of a user, and why it did not get its pushes."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpush.cli.common import TEXT, config_option, count_of, fail
from fastpush.cli.debug import printable
from fastpush.cli.running import ask_insight
from fastpush.cli.status import duration
from fastpush.control_client import ControlError
from fastpush.errors import EXIT_USAGE, ConfigError
from fastpush.protocol.insight import Held, Note, Push, Why

_WIDTH = 120  # where no terminal tells its own
_NAMES_SHOWN = 10  # of a connection; --json has more
_STRANGERS_SHOWN = 5
_MESSAGE_CHARACTERS = 40
_SAME_DAY_SECONDS = 43200
_STATES = {"open": "green", "slow": "red", "paused": "red", "closing": "yellow"}
_KINDS = {
    **dict.fromkeys(("opened", "delivered"), "green"),
    **dict.fromkeys(("closed", "nobody", "unconfirmed"), "yellow"),
    **dict.fromkeys(("dropped", "refused", "killed"), "red"),
}


@click.command(short_help="Show why a user did not get its pushes.")
@click.argument("user", type=TEXT)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@config_option
def why(user: str, as_json: bool, config_path: str | None) -> None:
    """Show why a user did not get its pushes, or that all is well.

    First what follows, the most important first; then what it follows from: the user's connections on all workers,
    what has happened to them lately, and the last pushes to the user. [admin] remember_seconds and remember_notes say
    how much is kept.
    """
    try:
        answer = ask_insight(config_path, {"ask": "why", "user": user})
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except ControlError as error:
        fail(str(error), error.code)
    if as_json:
        click.echo(json.dumps(answer))
    else:
        console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        print_report(console, msgspec.convert(answer, Why))


def print_report(console: Console, report: Why) -> None:
    """Print what is known of a user, what follows from it first."""
    console.print(
        Text(f"user {printable(report.user)}", "bold"),
        Text(f"  at {_clock(report, report.asked_seconds)}, known since {_at(report, report.since_seconds)}"),
        Text(f"  {_answered(report)}", "bold red" if report.missing else ""),
        sep="",
        soft_wrap=True,
    )
    console.print()
    findings = _grid()
    for number, finding in enumerate(report.findings, 1):
        findings.add_row(Text(f"{number}."), Text(printable(finding), "bold" if number == 1 else ""))
    console.print(findings)
    _print_connections(console, report)
    _print_part(console, report, "lately", _past(report))
    _print_part(console, report, "last pushes", [_pushed(push) for push in report.pushes])
    _print_part(console, report, "refused on this host, of users that nobody knows", _strangers(report))


def _answered(report: Why) -> str:
    answered = count_of(report.workers, "worker")
    return f"only {report.workers - report.missing} of {answered} answered" if report.missing else answered


def _grid() -> Table:
    """Return a table without headings, a little to the right."""
    return Table.grid(padding=(0, 2, 0, 0), pad_edge=False)


def _print_heading(console: Console, heading: str) -> None:
    console.print()
    console.print(Text(heading, "bold"))


# -- connections -----------------------------------------------------------------------


def _print_connections(console: Console, report: Why) -> None:
    left = report.connections_left_out
    count = len(report.connections) + left
    _print_heading(console, count_of(count, "connection") if count else "no connection")
    for held in report.connections:
        grid = _grid()
        grid.add_row(Text("  "), Text.assemble((held.state, _STATES.get(held.state, "")), f"  {_where(held)}"))
        for line in _described(report, held):
            grid.add_row("", Text(line))
        console.print(grid)
    if left:
        console.print(Text(f"  … and {left:,} more", "dim"))


def _where(held: Held) -> str:
    return f"{printable(held.path)} from {printable(held.peer)}, {held.transport}, worker-{held.worker}"


def _described(report: Why, held: Held) -> Iterator[str]:
    expires = held.expires_seconds
    until = f", token until {_clock(report, expires)}" if expires is not None else ""
    heard = f"heard {duration(held.heard_seconds_ago)} ago"
    yield f"open since {_at(report, held.since_seconds)}, {heard}{until}"
    names = [("events", held.events), ("channels", held.channels)]
    told = [f"{title}: {_names(found)}" for title, found in names if found]
    left = held.keys - len(held.events) - len(held.channels)
    if left > 0:
        told.append(f"and {left:,} more")
    yield "; ".join(told) or "registered for nothing"
    waiting = f"{count_of(held.queued_messages, 'message')}, {held.queued_bytes:,} bytes"
    dropped = f", {count_of(held.dropped_messages, 'message')} dropped" if held.dropped_messages else ""
    unread = f"; {count_of(held.unhandled_messages, 'message')} of it unread" if held.unhandled_messages else ""
    yield f"send queue: {waiting}, at its worst {held.worst_queued_bytes:,} bytes{dropped}{unread}"
    yield f"id {printable(held.id)}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_NAMES_SHOWN]))
    return f"{shown} and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else shown


# -- what happened -----------------------------------------------------------------------


class _Event(NamedTuple):
    """A line of the past. where: in which process, at which path, from where."""

    seconds: float
    kind: str
    words: str
    where: str


def _print_part(console: Console, report: Why, heading: str, events: Sequence[_Event]) -> None:
    if not events:
        return
    _print_heading(console, heading)
    grid = _grid()
    for event in events:
        ago = Text(f"{duration(max(report.asked_seconds - event.seconds, 0))} ago", "dim", justify="right")
        words = f" {event.words}" if event.words else ""
        text = Text.assemble((event.kind, _KINDS.get(event.kind, "")), words, (f"  {event.where}", "dim"))
        grid.add_row("", _clock(report, event.seconds), ago, text)
    console.print(grid)


def _past(report: Why) -> list[_Event]:
    """Return what has happened to the user's connections, in its order."""
    killed = {(lost.worker, lost.seconds) for lost in report.lost}
    events = [_noted(note) for note in report.notes if (note.worker, note.seconds) not in killed]
    events += [_Event(seconds, "killed", "with connections of it", f"worker-{worker}") for worker, seconds in killed]
    return sorted(events, key=lambda event: event.seconds)


def _strangers(report: Why) -> list[_Event]:
    """Return refusals that may have been of the user: where it is connected, of pushes alone."""
    found = [note for note in report.strangers if not report.connections or note.by == "back-end"]
    return [_noted(note) for note in found[-_STRANGERS_SHOWN:]]


def _noted(note: Note) -> _Event:
    describe = _DESCRIBE.get(note.kind)
    words = [describe(note) if describe else "", printable(note.reason) if note.reason else ""]
    if note.is_claimed:
        words.append("(so its token says)")
    where = [f"worker-{note.worker}", printable(note.path), f"from {printable(note.peer)}" if note.peer else ""]
    return _Event(note.seconds, note.kind, " ".join(filter(None, words)), " ".join(filter(None, where)))


def _closed(note: Note) -> str:
    by = f"by {note.by}" if note.by else ""
    of = f"({printable(note.what)})" if note.what else ""
    return " ".join(filter(None, (by, of))) + f": {note.code}"


def _dropped(note: Note) -> str:
    return f"{count_of(note.messages, 'message')}:"


def _refused(note: Note) -> str:
    subject = "push" if note.by == "back-end" else "" if note.what else "client"
    return f"{' '.join(filter(None, (subject, printable(note.what))))}:{f' {note.code}' if note.code else ''}"


_DESCRIBE: dict[str, Callable[[Note], str]] = {"closed": _closed, "dropped": _dropped, "refused": _refused}


# -- pushes --------------------------------------------------------------------------------


def _pushed(push: Push) -> _Event:
    event = printable(push.event) if push.event else f"({push.source})"
    whom = "" if push.users == 1 else " for everybody" if push.users == 0 else f" for {push.users:,} users"
    reached = f"{count_of(push.sent, 'connection')} in {push.duration_ms:.1f} ms"
    words = {
        "delivered": f"{event}{whom} to {reached}",
        "nobody": f"wanted {event}{whom}",
        "unconfirmed": f"{event}{whom}: {reached}, and {count_of(push.unconfirmed, 'worker')} did not count",
    }
    where = f"worker-{push.worker} {count_of(push.size_bytes, 'byte')}"
    if push.message is not None:
        is_long = len(push.message) > _MESSAGE_CHARACTERS
        where += f" {printable(push.message[:_MESSAGE_CHARACTERS])}{'…' if is_long else ''}"
    return _Event(push.seconds, push.outcome, words.get(push.outcome, event), where)


# -- times ---------------------------------------------------------------------------------


def _clock(report: Why, seconds: float) -> str:
    """Return a local time, with its day where that may be another one."""
    is_near = abs(report.asked_seconds - seconds) < _SAME_DAY_SECONDS
    return time.strftime("%H:%M:%S" if is_near else "%m-%d %H:%M:%S", time.localtime(seconds))


def _at(report: Why, seconds: float) -> str:
    return f"{_clock(report, seconds)} ({duration(max(report.asked_seconds - seconds, 0))} ago)"
