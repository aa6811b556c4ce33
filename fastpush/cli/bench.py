"""`fastpush bench`: a load test of a push server."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from fastpush.bench import assertions, page
from fastpush.bench.plan import Plan
from fastpush.bench.processes import Bench
from fastpush.bench.report import print_result
from fastpush.bench.results import Result
from fastpush.cli.common import INTERVAL, PushKey, fail
from fastpush.errors import EXIT_USAGE, ConfigError, StartError

_WIDTH = 120  # where no terminal tells its own
_POSITIVE = click.FloatRange(min=0, min_open=True)
_NOT_NEGATIVE = click.FloatRange(min=0)
_COUNT = click.IntRange(min=1)


class WebSocketUrl(click.ParamType):  # type: ignore[type-arg]
    """ws:// or wss:// with a host."""

    name = "url"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.startswith(("ws://", "wss://")) or not value.isprintable() or not value.split("/")[2]:
            self.fail(f"{value!r} is not a WebSocket URL; write it like ws://127.0.0.1:8080/ws", param, ctx)
        return value


class _Progress:
    """One line on the terminal that says how it goes; nothing where nobody watches."""

    def __init__(self) -> None:
        self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=4)

    def __enter__(self) -> None:
        if sys.stderr.isatty():
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, phase: str, figures: dict[str, int]) -> None:
        """Show the figures of now."""
        words = [f"{figures.get('open', 0):,} open", f"{figures.get('pushes', 0):,} pushes"]
        words += [f"{figures.get('deliveries', 0):,} deliveries"]
        if figures.get("closed"):
            words.append(f"{figures['closed']:,} closed by the server")
        self._live.update(Text.assemble((phase, "bold"), "  ", "  ".join(words)))


@click.command(short_help="Load-test a push server.")
@click.argument("url", type=WebSocketUrl(), default="ws://127.0.0.1:8080/ws")
@click.option("--connections", "-n", type=_COUNT, default=1000, show_default=True, help="WebSockets to hold open.")
@click.option("--users", type=_COUNT, help="Users they belong to [default: one each; for fan-out: 1].")
@click.option(
    "--mode",
    type=click.Choice(["unicast", "fan-out", "broadcast"]),
    default="unicast",
    show_default=True,
    help="unicast, fan-out: pushes go to the users in turn. broadcast: to everybody.",
)
@click.option(
    "--rate",
    type=_POSITIVE,
    metavar="R",
    help="R pushes a second whatever happens; latency counts from when each was due.",
)
@click.option("--window", type=_COUNT, metavar="W", help="At most W pushes that not all receivers have [default: 1].")
@click.option("--idle", is_flag=True, help="Push nothing: what do connections cost?")
@click.option(
    "--background",
    type=_NOT_NEGATIVE,
    default=0.0,
    metavar="R",
    help="R small pushes a second beside it, to users of their own, measured apart by a client process of its own, "
    "to which the others give way (nice 10).",
)
@click.option(
    "--duration",
    "duration_seconds",
    type=INTERVAL,
    default="10s",
    show_default=True,
    metavar="TIME",
    help="What is measured.",
)
@click.option(
    "--warm-up",
    "warm_up_seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Seconds of load before that.",
)
@click.option(
    "--ramp", type=_NOT_NEGATIVE, default=0.0, metavar="R", help="R connects a second at most; 0: as fast as it goes."
)
@click.option(
    "--size", "size_bytes", type=int, default=128, show_default=True, metavar="BYTES", help="Length of a message."
)
@click.option("--churn", type=_NOT_NEGATIVE, default=0.0, metavar="R", help="R reconnects a second.")
@click.option(
    "--connect-rate",
    type=_NOT_NEGATIVE,
    default=0.0,
    metavar="R",
    help="R extra connection attempts a second, each closed when it is answered.",
)
@click.option("--slow", type=click.IntRange(min=0), default=0, metavar="K", help="K of the connections stop reading.")
@click.option(
    "--processes", type=_COUNT, metavar="P", help="Client processes [default: one for each 15,000 connections]."
)
@click.option(
    "--register",
    type=click.Choice(["url", "message"]),
    default="url",
    show_default=True,
    help="How a connection says whose it is.",
)
@click.option(
    "--token", default="user{user}", show_default=True, metavar="TEMPLATE", help="Token of user number {user}."
)
@click.option("--event", default="bench", show_default=True, metavar="NAME", help="Event to register for.")
@click.option(
    "--register-message",
    default='{"token":"{token}","event":"{event}"}',
    show_default=True,
    metavar="TEMPLATE",
    help="Text that registers, with {user}, {token}, {event}.",
)
@click.option("--register-reply", is_flag=True, help="The server answers it: wait for that.")
@click.option(
    "--push-url", metavar="URL", help="Where to push [default: /push of the same host; for broadcast: /push/all]."
)
@click.option(
    "--push-body",
    metavar="TEMPLATE",
    help="What to push, with {user}, {token}, {event}, {message} [default: as fastpush has it].",
)
@click.option(
    "--push-header", "push_headers", multiple=True, metavar="'NAME: VALUE'", help="Header of pushes; may be repeated."
)
@click.option(
    "--push-via",
    type=click.Choice(["http", "websocket"]),
    default="http",
    show_default=True,
    help="websocket: a message of a client goes to all.",
)
@click.option("--key", type=PushKey(), envvar="FASTPUSH_KEY", metavar="KEY", help="Push key; better in $FASTPUSH_KEY.")
@click.option(
    "--publishers", type=_COUNT, metavar="P", help="Connections that push [default: the window; 32 with --rate]."
)
@click.option("--insecure", is_flag=True, help="Accept any certificate.")
@click.option("--compression", is_flag=True, help="Offer permessage-deflate.")
@click.option(
    "--source-address",
    "source_addresses",
    multiple=True,
    metavar="IP",
    help="Local address to connect from; several are used in turn.",
)
@click.option("--pid", type=_COUNT, help="The server's first process, for CPU and memory [default: found on loopback].")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write everything as JSON.",
)
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page with charts.",
)
@click.option(
    "--assert",
    "conditions",
    multiple=True,
    metavar="'p99<20ms,lost=0'",
    help="Exit with 1 unless this holds; may be repeated.",
)
def bench(json_path: Path | None, html_path: Path | None, conditions: tuple[str, ...], **options: Any) -> None:
    """Hold connections to URL open, push, check that everything arrives once and in order, and say what it took.

    Any server will do whose clients register by URL or by a message; {user}, {token} and {event} in URL are filled in.
    """
    try:
        expected = [condition for text in conditions for condition in assertions.parse(text)]
        progress = _Progress()
        run = Bench(Plan(**options), progress.show)
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    with progress:
        result = _run(run)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    print_result(console, result)
    figures = assertions.figures(result)
    failures = [text for condition in expected if (text := condition.failure(figures))]
    try:
        if json_path is not None:
            json_path.write_text(json.dumps(result.as_json() | {"failed_assertions": failures}, indent=1) + "\n")
        if html_path is not None:
            html_path.write_text(page.render(result, failures))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    if failures:
        fail("\n".join(failures))


def _run(run: Bench) -> Result:
    """Run it; Ctrl-C ends it early."""
    previous = signal.signal(signal.SIGINT, lambda *_: run.stop())
    try:
        return run.run()
    except StartError as error:
        fail(str(error))
    finally:
        signal.signal(signal.SIGINT, previous)
