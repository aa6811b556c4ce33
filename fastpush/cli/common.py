"""What several commands share: finding the configuration and the server, failing with a plain message."""

import asyncio
import os
import re
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import click

from fastpush import config as configuration
from fastpush.config import Config
from fastpush.errors import EXIT_FAILED, EXIT_USAGE, ConfigError, FastpushError

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_INTERVAL = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_LONGEST_SECONDS = 86400.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - a client cannot connect to "any"

# `type-arg`: ParamType is generic in click's newest versions only.


class Text(click.ParamType):  # type: ignore[type-arg]
    """Text that can be written as UTF-8, and is not empty, or may be."""

    name = "text"

    def __init__(self, *, may_be_empty: bool = False) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("is not UTF-8", param, ctx)
        if not (value or self._may_be_empty):
            self.fail("is empty", param, ctx)
        return value


class Interval(click.ParamType):  # type: ignore[type-arg]
    """A time like 500ms, 1s or 2m; a bare number is seconds."""

    name = "interval"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _INTERVAL.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not a time; write it like 500ms, 1s or 2m", param, ctx)
        seconds = float(match[1]) * _SECONDS[match[2]]
        if not 0 < seconds <= _LONGEST_SECONDS:
            self.fail(f"{value!r} is not between 0 and a day", param, ctx)
        return seconds


class ServerUrl(click.ParamType):  # type: ignore[type-arg]
    """Where a server is: http(s)://host[:port], or host:port alone."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        url = value if "://" in value else f"http://{value}"
        try:
            parts = urlsplit(url)
            good = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            good = False
        if not good or not url.isprintable():
            self.fail(f"{value!r} is not a server; write it like http://127.0.0.1:8080", param, ctx)
        return url.rstrip("/")


class PushKey(click.ParamType):  # type: ignore[type-arg]
    """A key that can stand in a header."""

    name = "key"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        key = value.strip()
        if not (key.isascii() and key.isprintable()):
            self.fail("holds characters that no HTTP header can carry", param, ctx)  # the key itself is not shown
        return key


TEXT = Text()
INTERVAL = Interval()


def config_option(command: Command) -> Command:
    """Add --config to a command."""
    return click.option(
        "--config", "-c", "config_path", metavar="FILE",
        help="Configuration file [default: ./config.toml, else /etc/fastpush/config.toml].",
    )(command)  # fmt: skip


def url_option(command: Command) -> Command:
    """Add --url, for commands that talk to a running server."""
    return click.option(
        "--url", type=ServerUrl(), metavar="URL",
        help="Server, like http://127.0.0.1:8080 [default: from the configuration].",
    )(command)  # fmt: skip


def key_option(command: Command) -> Command:
    """Add --key, for commands that push."""
    return click.option(
        "--key", type=PushKey(), envvar="FASTPUSH_KEY", metavar="KEY",
        help="Push key; better in $FASTPUSH_KEY, where others cannot read it [default without --url: the first of "
        "[push] keys].",
    )(command)  # fmt: skip


def fail(text: str, code: int = EXIT_FAILED) -> NoReturn:
    """Print what is wrong, each line for itself, and end with `code`."""
    for line in text.splitlines():
        click.echo(click.style("error: ", fg="red", bold=True) + line, err=True)
    raise SystemExit(code)


def warn(text: str) -> None:
    """Print what the user should know, where it is not taken for output."""
    click.echo(click.style("warning: ", fg="yellow", bold=True) + text, err=True)


def count_of(number: int, noun: str) -> str:
    """Return "1 connection", "2 connections"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work in an event loop; every failure becomes a plain message and an exit code."""
    try:
        asyncio.run(work)
    except FastpushError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(EXIT_INTERRUPTED) from None


def load_config(config_path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """Return the validated configuration, or end with exit code 2."""
    try:
        return read_config(config_path, overrides)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)


def read_config(config_path: str | None, overrides: dict[str, Any] | None = None) -> Config:
    """Find, read and validate the configuration. Raises: ConfigError."""
    path = configuration.find(config_path)
    return configuration.load(path, environ=os.environ, overrides=overrides or {})


def server_url(config: Config, url: str | None, *, api: bool) -> str:
    """Return the base URL of the server: as given, or where the configuration says it listens."""
    if url:
        return url
    is_api = api and bool(config.api.listen)
    host, port = configuration.addresses(config.api.listen if is_api else config.server.listen)[0]
    if port == 0:
        fail("the configuration lets the kernel choose the port: give --url", EXIT_USAGE)
    host = _ANY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    is_tls = config.tls.certificate and (config.tls.api or not is_api)
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def client_tls(config: Config, url: str | None, server: str) -> ssl.SSLContext:
    """Return what judges the certificate of `server`, which `server_url` has made of `url`.

    As everywhere by the system's certificates and the server's name. The configuration's own server may also show
    the very certificate that stands there, or one signed by those behind it; on a loopback address names are of no
    use: certificates have none for it.
    """
    context = ssl.create_default_context()
    if url is None and config.tls.certificate:
        context.load_verify_locations(config.tls.certificate)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # it need not be self-signed
        context.check_hostname = not configuration.is_loopback(urlsplit(server).hostname or "")
    return context
