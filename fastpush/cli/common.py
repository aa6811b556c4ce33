"""What several commands share: finding the configuration and the server, failing with a plain message."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from fastpush import config as configuration
from fastpush.config import Config
from fastpush.errors import ConfigError

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_FAILED = 1
EXIT_USAGE = 2


def config_option(command: Command) -> Command:
    """Add --config to a command."""
    return click.option(
        "--config", "-c", "config_path", metavar="FILE",
        help="Configuration file [default: ./config.toml, else /etc/fastpush/config.toml].",
    )(command)  # fmt: skip


def server_options(command: Command) -> Command:
    """Add --url and --key, for commands that talk to a running server over HTTP."""
    command = click.option(
        "--key", envvar="FASTPUSH_KEY", metavar="KEY",
        help="Push key; better in $FASTPUSH_KEY, where others cannot read it [default: the first of [push] keys].",
    )(command)  # fmt: skip
    return click.option("--url", metavar="URL", help="Server, like http://127.0.0.1:8080 [default: from the configuration].")(
        command
    )


def fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print what is wrong and end with `code`."""
    click.echo(click.style("error: ", fg="red", bold=True) + text, err=True)
    raise SystemExit(code)


def load_config(config_path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """Return the validated configuration, or end with exit code 2."""
    try:
        return read_config(config_path, overrides)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)


def read_config(config_path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """Find, read and validate the configuration. Raises: ConfigError."""
    path: Path | None = configuration.find(config_path)
    return configuration.load(path, environ=os.environ, overrides=overrides or {})


def server_url(config: Config, url: str | None, *, api: bool) -> str:
    """Return the base URL of the server: as given, or where the configuration says it listens."""
    if url:
        return url.rstrip("/")
    listen = (config.api.listen if api else "") or config.server.listen
    first = listen if isinstance(listen, str) else listen[0]
    host, port = configuration.parse_listen(first)
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - a client cannot connect to "any"
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
