"""`fastpush trace`: what happens to a user's or a channel's pushes, told while it happens."""

import json
import sys
import time
from collections.abc import Callable

import click
import msgspec
from rich.console import Console
from rich.text import Text

from fastpush.cli.common import INTERVAL, TEXT, config_option, count_of, fail
from fastpush.cli.debug import printable
from fastpush.cli.running import ask_insight
from fastpush.control_client import ControlError
from fastpush.errors import EXIT_USAGE, ConfigError
from fastpush.protocol.insight import Trace, Traced
from fastpush.state.traces import SECONDS_MAX

READ_SECONDS = 0.25
_WIDTH = 250  # where no terminal tells its own
_PUSH_DIGITS = 6  # by which pushes of the same time are told apart
_STYLES = {
    "refused": "bold red", "dropped": "bold red", "closed": "red", "slow": "yellow", "queued": "yellow",
    "left out": "yellow", "written": "green", "caught up": "green", "accepted": "cyan", "answered": "cyan",
    "opened": "magenta", "registered": "magenta", "subscribed": "magenta", "unsubscribed": "magenta",
    "tracing": "dim", "silent": "bold red",
}  # fmt: skip


@click.command(short_help="Watch a user's or a channel's pushes live.")
@click.argument("user", type=TEXT, required=False)
@click.option("--channel", type=TEXT, metavar="CHANNEL", help="Trace a channel, not a user.")
@click.option(
    "--for", "seconds", type=INTERVAL, default="60s", show_default=True, metavar="TIME",
    help="End after this time, like --for 5m; 10m at most.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs, an object a line.")
@config_option
def trace(user: str | None, channel: str | None, seconds: float, as_json: bool, config_path: str | None) -> None:
    """Print a line for each thing that happens to a USER's pushes and connections, or to a channel's, until Ctrl-C.

    \b
    accepted    a worker took the push and handed it to the broker
    ordered     the broker sent it to the workers that want it
    arrived     a worker has it, for so many connections
    written     it was written to a connection
    queued      it waits there: the client is behind
    dropped     that client does not get it
    answered    the back-end was told how many clients took it
    refused     a push, a handshake or a registration was not taken
    opened, registered, subscribed, unsubscribed,
    slow, caught up, closed: of connections
    tracing     a worker has begun to tell
    silent      workers have not: what happens in them is missing
    left out    there was more than [admin] trace_events_per_second

    A line has the time, the milliseconds since the push was accepted and the end of its number, the process, what
    happened, the event or channel, a short form of the connection's id, and more. Contents are never shown.
    """  # noqa: D301 - \b is click's mark for lines that stay as they are
    if (user is None) == (channel is None):
        fail("name either a user, or a channel with --channel", EXIT_USAGE)
    if not 1 <= seconds <= SECONDS_MAX:
        raise click.BadParameter("a trace lasts 1s to 10m", param_hint="'--for'")
    target: dict[str, str | None] = {"user": user} if channel is None else {"channel": channel}
    reader = _Reader(config_path, _printer(as_json=as_json))
    try:
        reader.start(target, seconds)
        if not as_json:
            whom = f"channel {printable(channel)}" if channel is not None else f"user {printable(user or '')}"
            click.echo(f"tracing {whom} for {seconds:g} s; Ctrl-C ends it", err=True)
        reason = reader.follow()
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except ControlError as error:
        fail(str(error), error.code)
    if not as_json:
        click.echo(f"{reason}: {count_of(reader.events, 'event')}, {reader.left_out} left out", err=True)


class _Reader:
    """Reads a trace until its end. events, left_out: how many there were."""

    def __init__(self, config_path: str | None, show: Callable[[Traced], None]) -> None:
        self.events = self.left_out = 0
        self._config_path = config_path
        self._show = show

    def start(self, target: dict[str, str | None], seconds: float) -> None:
        """Begin the trace. Raises: ControlError."""
        answer = ask_insight(self._config_path, {"ask": "trace", **target, "seconds": seconds})
        self._trace = answer["trace"]

    def follow(self) -> str:
        """Show what comes; return why it has ended. Raises: ControlError: it could not be read to its end."""
        reason = "the time is over"
        is_over = is_interrupted = False
        while not is_over:
            try:
                is_over = self._read()
                if not is_over:
                    time.sleep(READ_SECONDS)
            except KeyboardInterrupt:
                if is_interrupted:  # somebody is in a hurry
                    break
                is_interrupted, reason = True, "interrupted"
                ask_insight(self._config_path, {"ask": "untrace", "trace": self._trace})
        return reason

    def _read(self) -> bool:
        """Show what has come; return whether no more will."""
        answer = ask_insight(self._config_path, {"ask": "traced", "trace": self._trace, "after": self.events})
        told = msgspec.convert(answer, Trace)
        self.left_out = told.left_out
        for event in told.events:
            self.events = event.number
            self._show(event)
        return told.is_over


def _printer(*, as_json: bool) -> Callable[[Traced], None]:
    if as_json:
        return _print_json
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    return lambda event: console.print(_line(event), soft_wrap=True)


def _print_json(event: Traced) -> None:
    click.echo(json.dumps(msgspec.structs.asdict(event)))
    sys.stdout.flush()


def _line(event: Traced) -> Text:
    """Return an event as a line."""
    moment = time.strftime("%H:%M:%S", time.localtime(event.seconds)) + f".{int(event.seconds * 1000) % 1000:03d}"
    after = f"+{event.after_ms:.3f} #{event.push % 10**_PUSH_DIGITS:0{_PUSH_DIGITS}}" if event.push else ""
    style = _STYLES.get(event.step, "")
    line = Text.assemble(
        (f"{moment} ", "dim"), f"{after:>17}  ", (f"{printable(event.process):<9} ", "dim"),
        (f"{printable(event.step):<12} ", style),
    )  # fmt: skip
    if event.what:
        line.append(f"{printable(event.what)} ", "bold")
    if event.connection:
        # Its worker is known by the beginning, itself by the end.
        line.append(f"{printable(event.connection[:4])}…{printable(event.connection[-4:])} ", "blue")
    return line.append(printable(event.detail))
