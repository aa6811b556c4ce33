"""Subscribers that recover, and publishers: `python -m tests.load.channels ws://127.0.0.1:8080/connection/websocket`.

Each line on standard input is answered by one line of JSON on standard output:

    status      what has been seen so far
    stop        stop publishing, let everything arrive, and return the balance; the end

The first line, {"connected": N}, comes by itself when all subscribers are in all of their channels, and publishing
begins. Subscriber number i has the user u<i>; with --personal its own channel, personal:#u<i>, is published to as well.
"""

import argparse
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from fastpush.bench.connections import resolve
from tests.load.channel_ledger import balance
from tests.load.channel_publishers import ChannelPress
from tests.load.commands import Commanded
from tests.load.subscribers import Subscriber, Subscribers

SETTLE_SECONDS = 20.0
COMPLETE_EVERY_SECONDS = 0.2


class Run(Commanded):
    """One run on one loop."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options
        url = urlsplit(options.url)
        endpoint = resolve(options.url, insecure=True)
        sources = [f"127.0.0.{n + 1}" for n in range(options.sources)]
        self.subscribers = Subscribers(self.loop, endpoint, url.path, list(sources))
        self.channels = [f"{options.namespace}:{n}" for n in range(options.channels)]
        for n in range(options.subscribers):
            own = [self.channels[(n + step * 7) % len(self.channels)] for step in range(options.each)]
            self.subscribers.all.append(Subscriber(f"u{n}", own))
        self.subscribers.receive_bytes = options.receive_bytes
        self.press = ChannelPress(self.loop, resolve(f"http://{url.netloc}", insecure=True), options.size)

    def connect(self) -> None:
        """Return when everybody is there."""
        deadline = time.monotonic() + self.options.connect_seconds
        while self.subscribers.there < len(self.subscribers.all):
            self.loop.turn()
            if time.monotonic() > deadline:
                sys.exit(f"not all subscribers could come: {json.dumps(self.subscribers.summary())}")

    def start(self) -> None:
        """Begin to publish."""
        options = self.options
        personal = [f"personal:#u{n}" for n in range(options.personal)]
        self.subscribers.moves_per_second = options.moves
        self.subscribers.stalls_per_second = options.stalls
        self.press.start(options.publishers, self.channels + personal, options.rate)

    def settle(self) -> None:
        """Stop publishing; return when everybody is back and has everything, or in SETTLE_SECONDS."""
        self.press.has_stopped = True
        self.subscribers.moves_per_second = self.subscribers.stalls_per_second = 0
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            self.run(COMPLETE_EVERY_SECONDS)
            is_over = self.press.is_quiet and self.subscribers.there == len(self.subscribers.all)
            if is_over and not balance(self.subscribers.places(), self.press.taken)["behind"]:
                return

    def summary(self) -> dict[str, Any]:
        """Return what was seen."""
        return self.subscribers.summary() | self.press.summary()

    def answer(self, command: str, argument: str = "") -> dict[str, Any]:
        """See Commanded."""
        if command != "stop":
            return self.summary()
        self.settle()
        self.end()
        return self.summary() | balance(self.subscribers.places(), self.press.taken)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load.channels", description="Load channels; account for it.")
    add = parser.add_argument
    add("url", help="of the WebSocket, such as ws://127.0.0.1:8080/connection/websocket")
    add("--subscribers", type=int, default=500, help="of the users u0, u1, … [%(default)s]")
    add("--channels", type=int, default=20, help="news:0, news:1, … [%(default)s]")
    add("--namespace", default="news", help="[%(default)s]")
    add("--each", type=int, default=3, help="channels of a subscriber [%(default)s]")
    add("--personal", type=int, default=0, help="so many personal channels are published to [%(default)s]")
    add("--rate", type=float, default=300, help="publications a second, to one channel after the other [%(default)s]")
    add("--moves", type=float, default=0, help="times a second somebody leaves a channel and comes back [%(default)s]")
    add("--stalls", type=float, default=0, help="times a second somebody reads nothing for a while [%(default)s]")
    add("--receive-bytes", type=int, default=0, help="kernel's buffer of a connection; 0: its own choice [%(default)s]")
    add("--size", type=int, default=100, help="bytes of a publication's data, about [%(default)s]")
    add("--publishers", type=int, default=10, help="connections that publish [%(default)s]")
    add("--sources", type=int, default=4, help="addresses to connect from, 127.0.0.1 on [%(default)s]")
    add("--connect-seconds", type=float, default=60, help="time for all to come [%(default)s]")
    return parser.parse_args()


def main() -> None:
    """Come, say so, and obey."""
    run = Run(_options())
    run.connect()
    run.start()
    run.obey(run.subscribers.there)


if __name__ == "__main__":
    main()
