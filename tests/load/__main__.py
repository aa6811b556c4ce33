"""The command line: `python -m tests.load ws://127.0.0.1:8080/ws --clients 3000 --rate 500 --duration 20`.

With --interactive each line on standard input is answered by one line of JSON on standard output:

    status      what has been seen so far
    visits N    N short connections a second from now on
    pause       stop pushing, and answer when every push is answered and every message is there
    go          push again
    key KEY     push with this key from now on
    stop        as pause, then the summary, and the end

The first line, {"connected": N}, comes by itself when all clients are there and pushing begins.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastpush.bench.connections import resolve
from tests.load.clients import Crowd
from tests.load.commands import Commanded
from tests.load.ledger import Ledger
from tests.load.publishers import Press

SETTLE_SECONDS = 10.0
STILL_SECONDS = 1.0  # nothing has arrived for so long: nothing will


class Run(Commanded):
    """One run: a crowd, its publishers and the ledger of both, on one loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        url = urlsplit(options.url)
        scheme = "https" if url.scheme == "wss" else "http"
        push_url = urlsplit(options.push_url or f"{scheme}://{url.netloc}/push")
        sources = [f"127.0.0.{n + 1}" if options.sources > 1 else None for n in range(options.sources)]
        super().__init__()
        self.options = options
        self.ledger = Ledger()
        self.crowd = Crowd(self.loop, self.ledger, resolve(options.url, insecure=True), url.path or "/ws", sources)
        self.crowd.invite(_tokens(options), options.each)
        endpoint = resolve(push_url.geturl(), insecure=True)
        self.press = Press(self.loop, self.ledger, self.crowd, endpoint, push_url.path, options.key)
        self.press.size_bytes = options.size

    def connect(self) -> None:
        """Return when everybody is there."""
        deadline = time.monotonic() + self.options.connect_seconds
        while self.crowd.registered < len(self.crowd.clients):
            self.loop.turn()
            if time.monotonic() > deadline:
                sys.exit(f"not all clients could connect: {json.dumps(self.summary())}")

    def start(self) -> None:
        """Begin to push, and to visit."""
        options = self.options
        self.crowd.visit(options.visits)
        self.press.start(options.publishers, options.rate, options.fan_out)

    def settle(self) -> None:
        """Stop pushing; return when every push is answered and no message comes any more."""
        self.press.has_stopped = True
        deadline = time.monotonic() + SETTLE_SECONDS
        received, since = -1, 0.0
        while (now := time.monotonic()) < deadline:
            if self.ledger.received != received:
                received, since = self.ledger.received, now
            is_quiet = self.press.is_quiet and not self.crowd.visits_under_way
            if is_quiet and (not self.ledger.lost or now > since + STILL_SECONDS):
                return
            self.loop.turn()

    def summary(self) -> dict[str, Any]:
        """Return everything that was seen."""
        return self.crowd.summary() | self.press.summary() | self.ledger.summary()

    def answer(self, command: str, argument: str = "") -> dict[str, Any]:
        """See Commanded."""
        match command:
            case "visits":
                self.crowd.visit(float(argument))
            case "pause":
                self.settle()
            case "go":
                self.press.has_stopped = False
            case "key":
                self.press.key = argument
            case "stop":
                self.crowd.visit(0)
                self.settle()
                self.end()
        return self.summary()


def _tokens(options: argparse.Namespace) -> list[str]:
    users = options.clients // options.each
    if not options.tokens:
        return [f"u{n}" for n in range(users)]
    return Path(options.tokens).read_text(encoding="utf-8").split()[:users]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="Load a server and account for it.")
    add = parser.add_argument
    add("url", help="of the WebSocket, such as ws://127.0.0.1:8080/ws; clients register by URL")
    add("--clients", type=int, default=3000, help="of the users u0, u1, … [%(default)s]")
    add("--each", type=int, default=1, help="of a user [%(default)s]")
    add("--rate", type=float, default=500, help="pushes a second, to one user after the other [%(default)s]")
    add("--fan-out", type=float, default=0, help="pushes a second to everybody [%(default)s]")
    add("--visits", type=float, default=0, help="short connections a second beside the clients [%(default)s]")
    add("--publishers", type=int, default=8, help="connections that push [%(default)s]")
    add("--size", type=int, default=100, help="bytes of a message [%(default)s]")
    add("--tokens", help="file with a token a line, of u0, u1, … [the user's name]")
    add("--key", default="-", help="push key")
    add("--push-url", help="[/push on the same address]")
    add("--sources", type=int, default=4, help="addresses to connect from, 127.0.0.1 on [%(default)s]")
    add("--connect-seconds", type=float, default=60, help="time for all clients to come [%(default)s]")
    add("--duration", type=float, default=20, help="seconds of pushing [%(default)s]")
    add("--interactive", action="store_true", help="commands on standard input instead of --duration")
    return parser.parse_args()


def main() -> int:
    """Run; 0 when nothing was lost and everybody is there."""
    run = Run(_options())
    run.connect()
    run.start()
    if run.options.interactive:
        run.obey(run.crowd.registered)
        return 0
    run.run(run.options.duration)
    run.crowd.visit(0)
    run.settle()
    summary = run.summary()
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    is_clean = not any(summary[name] for name in ("lost", "missed", "duplicates", "out_of_order", "refused"))
    return 0 if is_clean and summary["connected"] == summary["clients"] else 1


if __name__ == "__main__":
    sys.exit(main())
