"""`fastpush debug`: what a process of the running server is doing, without stopping it."""

import json
import re
import sys
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpush.cli.common import config_option, count_of
from fastpush.cli.running import TIMEOUT_SECONDS, command
from fastpush.cli.status import duration
from fastpush.protocol.control import ENTRIES_MAX, ConnectionFigures, Stack, Subject, Tasks
from fastpush.supervisor.inspections import ANSWER_SECONDS

_WIDTH = 160  # where no terminal tells its own
_ENTRIES: dict[str, Any] = {"stacks": list[Stack], "tasks": list[Tasks], "connections": list[ConnectionFigures]}
_STATES = {"open": "green", "slow": "red", "paused": "red", "closing": "yellow"}
_NAME = re.compile(r"[0-9]{1,4}|worker-[0-9]{1,9}|broker")


class ProcessName(click.ParamType):  # type: ignore[type-arg]  # generic in click's newest versions only
    """A process of the server by one of the names that `fastpush status` shows."""

    name = "process"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if _NAME.fullmatch(value) is None:
            text = (
                "is no process; name a worker by its number like 0, or as in logs like worker-2, or the broker "
                "(the supervisor writes its stacks to the log at SIGUSR1)"
            )
            self.fail(f"{value!r} {text}", param, ctx)
        return value


@click.command(short_help="Show what a process is doing.")
@click.argument("subject", type=click.Choice(get_args(Subject)))
@click.argument("worker", type=ProcessName())
@click.option(
    "--limit", type=click.IntRange(1, ENTRIES_MAX), default=50, show_default=True, metavar="N",
    help="Show the first N only.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@config_option
def debug(subject: Subject, worker: str, limit: int, as_json: bool, config_path: str | None) -> None:
    """Show what a process of the running server is doing; it goes on meanwhile.

    WORKER is a worker's number in `fastpush status`, its name in logs, like worker-2, or "broker".

    \b
    stacks       where every thread is
    tasks        asyncio tasks, by what they run and where they wait
    connections  WebSocket connections, the longest send queues first

    A process that is blocked cannot answer: `kill -USR1 PID` has it write its stacks to the log even then.
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    request = {"command": "debug", "subject": subject, "process": worker, "limit": limit}
    _, reply = command(config_path, request, ANSWER_SECONDS + TIMEOUT_SECONDS)
    entries = msgspec.convert(reply["entries"], _ENTRIES[subject])
    if as_json:
        told = [msgspec.structs.asdict(entry) for entry in entries]
        click.echo(json.dumps({"process": reply["process"], "total": reply["total"], subject: told}))
        return
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    process = reply["process"]
    name = "broker" if process["role"] == "broker" else f"worker {process['slot']}  worker-{process['number']} in logs"
    console.print(Text(name, "bold"), Text(f"  process {process['pid']}"), sep="", soft_wrap=True)
    _PRINT[subject](console, entries)
    if left := reply["total"] - len(entries):
        console.print(Text(f"… and {left:,} more", "dim"))


def _print_stacks(console: Console, entries: list[Stack]) -> None:
    for entry in entries:
        _print_block(console, printable(entry.thread), "answers this" if entry.is_asked else "", entry)


def _print_tasks(console: Console, entries: list[Tasks]) -> None:
    if not entries:
        console.print("no tasks")
    for entry in entries:
        names = ", ".join(map(printable, entry.names))
        left = f" and {entry.count - len(entry.names):,} more" if entry.count > len(entry.names) else ""
        _print_block(console, f"{count_of(entry.count, 'task')}  {printable(entry.coroutine)}", names + left, entry)


def _print_block(console: Console, title: str, aside: str, entry: Stack | Tasks) -> None:
    console.print()
    console.print(Text(title, "bold"), Text(f"  {aside}" if aside else "", "dim"), sep="", soft_wrap=True)
    for frame in entry.frames:
        console.print(Text(f"  {printable(frame)}"), soft_wrap=True)
    if left := entry.depth - len(entry.frames):
        console.print(Text(f"  … and {left:,} more", "dim"))
    if not entry.depth:
        console.print(Text("  not begun", "dim"))


def _print_connections(console: Console, entries: list[ConnectionFigures]) -> None:
    if not entries:
        console.print("no connections")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("connection", "user", "peer", "path", "state"):
        table.add_column(column, overflow="fold")
    for column in ("open", "heard", "keys", "queued", "bytes", "unhandled"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        table.add_row(
            *(Text(printable(text)) for text in (entry.id, entry.user, entry.peer, entry.path)),
            Text(printable(entry.state), _STATES.get(entry.state, "")),
            duration(entry.open_seconds), f"{duration(entry.heard_seconds)} ago", str(entry.keys),
            f"{entry.queued_messages:,}", f"{entry.queued_bytes:,}", f"{entry.unhandled_messages:,}",
        )  # fmt: skip
    console.print(table)


def printable(text: str) -> str:
    """Return `text` as it may reach a terminal: escaped where it holds what moves cursors or breaks lines."""
    return text if text.isprintable() else json.dumps(text)


_PRINT: dict[str, Any] = {"stacks": _print_stacks, "tasks": _print_tasks, "connections": _print_connections}
