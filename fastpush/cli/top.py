"""`fastpush top`: what the host is doing now, live on a terminal or told once."""

import os
import sys
import time
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpush.cli.common import INTERVAL, config_option, count_of, fail
from fastpush.cli.figures import (
    WIDE_COLUMNS,
    WORKER_COLUMNS,
    Column,
    Row,
    busy_columns,
    health,
    number,
    row_style,
)
from fastpush.cli.running import TIMEOUT_SECONDS, ask_insight, find_server
from fastpush.control_client import ask
from fastpush.errors import EXIT_USAGE, ConfigError, FastpushError
from fastpush.protocol.insight import Top

_WIDTH = 120  # where no terminal tells its own
_EVERY_SECONDS_MIN = 1.0  # the server measures once a second


class Server:
    """The running server of a configuration, looked for each time: after a restart it is another one."""

    def __init__(self, config_path: str | None) -> None:
        self._config_path = config_path

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question of protocol/insight.py. Blocks for seconds. Raises: FastpushError."""
        return ask_insight(self._config_path, question)

    def drain(self, slot: int) -> float:
        """Have a worker drained; return over how many seconds. Blocks for seconds. Raises: FastpushError."""
        request = {"command": "drain", "worker": slot, "seconds": None}
        return float(ask(find_server(self._config_path), request, TIMEOUT_SECONDS)["seconds"])


@click.command(short_help="Watch what the server is doing.")
@click.option(
    "--every",
    type=INTERVAL,
    default="1s",
    show_default=True,
    metavar="TIME",
    help="Time between two looks; the server measures once a second.",
)
@click.option("--once", is_flag=True, help="Print the figures of now and end, as without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures of now as JSON for programs.")
@config_option
def top(every: float, once: bool, as_json: bool, config_path: str | None) -> None:
    """Watch workers, connections, pushes, latency and drops of the running server, live.

    Keys: s and r sort, d drains the selected worker (with [admin] actions = true), p pauses, w says why the selected
    user gets messages or not, ? explains, q ends.
    """
    if every < _EVERY_SECONDS_MIN:
        raise click.BadParameter("the server measures once a second; give 1s or more", param_hint="'--every'")
    server = Server(config_path)
    try:
        now = msgspec.convert(server.ask({"ask": "top"}), Top)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except FastpushError as error:
        fail(str(error))
    if as_json:
        click.echo(msgspec.json.encode(now))
    elif once or not _is_terminal():
        _print(now)
    else:
        # Here, for nothing else needs what it is made of: a terminal interface takes 0.2 s and 25 MB to load.
        from fastpush.cli.top_app import TopApp  # noqa: PLC0415

        app = TopApp(server, now, every)
        app.run()
        raise SystemExit(app.return_code)


def _is_terminal() -> bool:
    """Whether everything is one that the live view reads and writes."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)) and os.environ.get("TERM") != "dumb"


def _print(now: Top) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    point = now.point
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(point.seconds))
    title = Text(f"fastpush {now.version}", "bold")
    console.print(title.append(f"  {at}  {count_of(len(now.workers), 'worker')}", "not bold"))
    rates = f"pushes/s {number(point.pushes, 12)}  deliveries/s {number(point.deliveries, 12)}"
    console.print(Text(f"connections {point.connections:,}  {rates}"))
    console.print(health(now))
    _print_table(console, WORKER_COLUMNS, now.workers)
    _print_table(console, busy_columns("user"), now.users)
    _print_table(console, busy_columns("channel"), now.channels)


def _print_table(console: Console, columns: tuple[Column[Row], ...], rows: list[Row]) -> None:
    if not rows:
        return
    is_wide = console.width >= WIDE_COLUMNS
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1) if is_wide else (0, 1, 0, 0))
    for column in columns:
        title = column.title if is_wide else column.short
        table.add_column(title, justify="left" if column.is_name else "right", overflow="fold")
    for row in rows:
        texts = [column.text(row, 12 if is_wide else column.short_width) for column in columns]
        table.add_row(*map(Text, texts, [column.style(row) for column in columns]), style=row_style(row))
    console.print()
    console.print(table)
