"""`fastpush status`: what the supervisor knows of its processes."""

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpush.cli.common import config_option, count_of, fail, load_config
from fastpush.cli.running import ask_server
from fastpush.control_client import ControlError

_WIDTH = 120  # where no terminal tells its own
_COLOURS = dict.fromkeys(("starting", "draining", "stopping"), "yellow") | {"ready": "green"}


@click.command(short_help="Show a running server's processes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@config_option
def status(as_json: bool, config_path: str | None) -> None:
    """Show a running server's processes: who is ready since when, and what each does."""
    config = load_config(config_path)
    try:
        reply = ask_server(config, {"command": "status"})
    except ControlError as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(reply))
    else:
        _print(reply)


def _print(reply: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    state = reply["state"]
    console.print(
        Text(f"fastpush {reply['version']}  ", "bold"),
        Text(state, _COLOURS.get(state, "")),
        Text(f"  process {reply['pid']}  up {duration(reply['uptime_seconds'])}  on {', '.join(reply['address'])}"),
        sep="",
        soft_wrap=True,
    )
    if (operation := reply["operation"]) and (operation["failure"] or not operation["is_done"]):
        progress = f"{operation['done']} of {count_of(operation['of'], 'worker')} replaced"
        console.print(Text(f"{operation['name']}: {operation['failure'] or progress}", "yellow"), soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "process",
        "in logs",
        "pid",
        "state",
        "up",
        "restarts",
        "connections",
        "keys",
        "pushes",
        "deliveries",
    ):
        table.add_column(column, justify="left" if column in {"process", "in logs", "state"} else "right")
    for process in reply["processes"]:
        figures = process["figures"]
        name = process["role"] if process["role"] == "broker" else f"worker {process['slot']}"
        in_logs = "broker" if process["role"] == "broker" else f"worker-{process['number']}"
        table.add_row(
            name, in_logs, str(process["pid"]), Text(process["state"], _COLOURS.get(process["state"], "")),
            duration(process["uptime_seconds"]), str(process["restarts"]),
            *(str(figures.get(key, "")) for key in ("connections", "keys", "pushes", "deliveries")),
        )  # fmt: skip
    console.print(table)


def duration(seconds: float) -> str:
    """Return a time in its largest unit: 5 s, 1.5 min."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
