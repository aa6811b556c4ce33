"""`fastpush status`: what the supervisor knows of its processes."""

import json
import os
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from fastpush.cli.common import config_option, fail, load_config
from fastpush.control_client import ControlError, ask
from fastpush.supervisor.listeners import first_port
from fastpush.supervisor.runtime import control_paths

_TIMEOUT_SECONDS = 3.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@config_option
def status(as_json: bool, config_path: str | None) -> None:
    """Show a running server's processes."""
    config = load_config(config_path)
    paths = control_paths(config, first_port(config) or 0)
    path = next(filter(os.path.exists, paths), paths[0])
    try:
        reply = ask(path, {"command": "status"}, _TIMEOUT_SECONDS)
    except ControlError as error:
        fail(str(error))
    if as_json:
        click.echo(json.dumps(reply))
    else:
        _print(reply)


def _print(reply: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"[bold]fastpush {reply['version']}[/bold]  pid {reply['pid']}  up {_duration(reply['uptime_seconds'])}  "
        f"{', '.join(reply['address'])}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("process", "pid", "state", "up", "restarts", "connections", "keys", "pushes", "deliveries"):
        table.add_column(column, justify="left" if column in {"process", "state"} else "right")
    for process in reply["processes"]:
        figures = process["figures"]
        name = process["role"] if process["role"] == "broker" else f"worker {process['slot']}"
        table.add_row(
            name, str(process["pid"]), process["state"], _duration(process["uptime_seconds"]), str(process["restarts"]),
            *(str(figures.get(key, "")) for key in ("connections", "keys", "pushes", "deliveries")),
        )  # fmt: skip
    console.print(table)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
