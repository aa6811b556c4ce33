"""The command line: one file a command, arguments in, exit code out.

Exit codes: 0 fine, 1 failed, 2 wrong usage or configuration.
"""

import click

from fastpush import __version__
from fastpush.cli.bench import bench
from fastpush.cli.check import check
from fastpush.cli.debug import debug
from fastpush.cli.drain import drain, restart
from fastpush.cli.install_service import install_service
from fastpush.cli.listen import listen
from fastpush.cli.push import drop, push
from fastpush.cli.reload import reload
from fastpush.cli.serve import serve
from fastpush.cli.status import status
from fastpush.cli.token import token
from fastpush.cli.top import top
from fastpush.cli.trace import trace
from fastpush.cli.why import why


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastpush")
def main() -> None:
    """Push messages to users' WebSocket connections, on all cores of one host."""


for command in (
    serve, check, status, why, trace, top, debug, reload, drain, restart, push, drop, listen, token, bench,
    install_service,
):  # fmt: skip
    main.add_command(command)
