"""`fastpush serve`: run the server in the foreground."""

import signal
from typing import Any

import click

from fastpush import log as logs
from fastpush.cli.common import config_option, fail, load_config, read_config
from fastpush.config import Config
from fastpush.errors import EXIT_USAGE, ConfigError, StartError
from fastpush.supervisor.main import serve as supervise


@click.command(short_help="Run the server.")
@config_option
@click.option("--listen", metavar="HOST:PORT", help="Address instead of [server] listen.")
@click.option("--workers", type=int, metavar="N", help="Worker processes instead of [server] workers; 0: one per core.")
def serve(config_path: str | None, listen: str | None, workers: int | None) -> None:
    """Serve in the foreground until SIGTERM or Ctrl-C, which let clients and pushes finish; a second one ends at once.

    SIGHUP is `fastpush reload`. SIGUSR1 writes what each process is doing to the log.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # which would end a server that has not come to handle it yet
    overrides = {"server.listen": listen, "server.workers": workers}
    given: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    config = load_config(config_path, given)

    def reread() -> Config:
        return read_config(config_path, given)

    try:
        logs.setup(config.log)
    except OSError as error:
        fail(f"[log] file {config.log.file} cannot be opened: {error.strerror}")
    try:
        code = supervise(config, reread)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except StartError as error:
        fail(str(error))
    raise SystemExit(code)
