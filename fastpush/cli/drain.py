"""`fastpush drain` and `fastpush restart`: send clients away evenly, and replace workers."""

import click

from fastpush.cli.common import config_option, count_of
from fastpush.cli.running import TIMEOUT_SECONDS, command, wait_for_end, watch
from fastpush.supervisor.changes import SPREAD_SECONDS_MAX

_SECONDS = click.option(
    "--seconds", type=click.FloatRange(0, SPREAD_SECONDS_MAX), metavar="S",
    help="Time over which a worker's clients are sent away evenly [default: [server] drain_seconds].",
)  # fmt: skip


@click.command(short_help="Send clients away: of a worker, or of the server.")
@click.argument("worker", type=click.IntRange(min=0), required=False)
@_SECONDS
@config_option
def drain(worker: int | None, seconds: float | None, config_path: str | None) -> None:
    """Close clients with 1012 in evenly spread slots, so that they do not come back all at once.

    With WORKER, its number in `fastpush status`: a successor takes its place first, so this host goes on serving.
    Without: the whole server. /ready says no from now on, new clients get 503, pushes reach who is still there;
    after S seconds the server ends with exit code 0.
    """
    path, reply = command(config_path, {"command": "drain", "worker": worker, "seconds": seconds}, TIMEOUT_SECONDS)
    over = f"over {count_of(round(reply['seconds']), 'second')}"
    if worker is None:
        click.echo(f"the server drains {over}, then it ends")
        wait_for_end(path)
        click.echo("ended")
    else:
        click.echo(f"worker {worker} drains {over}, once its successor is ready")
        watch(path)


@click.command(short_help="Replace the workers one by one.")
@click.option(
    "--rolling",
    is_flag=True,
    required=True,
    expose_value=False,
    help="One worker at a time, its successor ready first.",
)
@_SECONDS
@config_option
def restart(seconds: float | None, config_path: str | None) -> None:
    """Replace every worker by a new process, one at a time, while the server goes on.

    For workers that have grown, for a changed [[application]], or for your own classes and functions to be imported
    anew. The program itself stays the one that was started: after an upgrade use `systemctl restart fastpush`, during
    which connects wait and none is refused.
    """
    path, reply = command(config_path, {"command": "restart", "seconds": seconds}, TIMEOUT_SECONDS)
    click.echo(f"{count_of(reply['workers'], 'worker')}, {reply['seconds']:g} s each; the program is not loaded anew")
    watch(path)
