"""`fastpush reload`: have a running server take over its changed configuration."""

import click

from fastpush.cli.common import config_option, warn
from fastpush.cli.running import command

_TIMEOUT_SECONDS = 620.0  # [server] hang_seconds at most, and a margin


@click.command(short_help="Take a changed configuration over.")
@config_option
def reload(config_path: str | None) -> None:
    """Have the running server read its configuration again, check it, and take over what may change live.

    Nobody is disconnected. With a mistake in it nothing changes at all: it is told here and in the server's log, and
    the exit code is 2.
    """
    _, reply = command(config_path, {"command": "reload"}, _TIMEOUT_SECONDS)
    changed, restart = reply["changed"], reply["restart"]
    click.echo(f"reloaded: {', '.join(changed)}" if changed else "reloaded: no setting differs; files were read again")
    if restart:
        warn(f"a restart is needed for {', '.join(restart)}")
