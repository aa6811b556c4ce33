"""`fastpush serve`: run the server in the foreground."""

from typing import Any

import click

from fastpush import log as logs
from fastpush.cli.common import EXIT_USAGE, config_option, fail, load_config, read_config
from fastpush.config import Config
from fastpush.errors import ConfigError, StartError
from fastpush.supervisor.main import serve as supervise


@click.command()
@config_option
@click.option("--listen", metavar="HOST:PORT", help="Address instead of [server] listen.")
@click.option("--workers", type=int, metavar="N", help="Worker processes instead of [server] workers; 0: one per core.")
def serve(config_path: str | None, listen: str | None, workers: int | None) -> None:
    """Serve until SIGTERM or Ctrl-C; SIGHUP reloads keys, tokens and log level."""
    overrides: dict[str, Any] = {}
    if listen is not None:
        overrides["server.listen"] = listen
    if workers is not None:
        overrides["server.workers"] = workers
    config = load_config(config_path, overrides)

    def reread() -> Config:
        return read_config(config_path, overrides)

    try:
        logs.setup(config.log)
    except OSError as error:
        fail(f"[log] file cannot be opened: {error}")
    try:
        code = supervise(config, reread)
    except StartError as error:
        fail(str(error))
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    raise SystemExit(code)
