"""Many members of one channel, who come within a given time and stay: `python -m tests.load.members URL`.

Each line on standard input is answered by one line of JSON on standard output:

    go          come, evenly over --seconds; the answer comes when all are in the channel
    status      how many are there

The first line, {"connected": 0}, comes by itself. The end of standard input is the end.
"""

import argparse
import json
import os
import select
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

import orjson

from fastpush.bench.connections import Endpoint, WebSocketLink, resolve
from fastpush.bench.frame_reader import client_frame
from fastpush.bench.loop import Loop
from fastpush.protocol.frames import Opcode

_MADE = b'"id":2,"subscribe":'
_REFUSED = b'"id":2,"error":'


class Member(WebSocketLink):
    """One connection; once it is in the channel, what it is told is read and dropped."""

    __slots__ = ("_crowd", "_held", "_user", "is_in")

    def __init__(self, crowd: "Members", endpoint: Endpoint, source: str, user: str) -> None:
        super().__init__(crowd.loop, endpoint, source, endpoint.handshake(crowd.path, compression=False))
        self._crowd = crowd
        self._user = user
        self._held = b""
        self.is_in = False

    def on_opened(self, head: bytes, rest: bytes) -> None:
        commands = (
            {"id": 1, "connect": {"token": self._user}},
            {"id": 2, "subscribe": {"channel": self._crowd.channel}},
        )
        self.write(client_frame(Opcode.TEXT, b"\n".join(map(orjson.dumps, commands))))
        self._held = rest

    def on_refused(self, status: str) -> None:
        self.end(status)

    def on_readable(self) -> None:
        while (data := self.read()) is not None:
            if not self.is_in:
                self._held += data
                if _MADE in self._held:
                    self.is_in = True
                    self._held = b""
                    self._crowd.on_in()
                elif _REFUSED in self._held:
                    self.end("subscribe refused")

    def on_ended(self, reason: str) -> None:
        self._crowd.on_ended(self, reason)


class Members:
    """All members of this process. ended: why connections have, in the channel or before."""

    def __init__(self, options: argparse.Namespace) -> None:
        url = urlsplit(options.url)
        self.loop = Loop()
        self.path = url.path
        self.channel = options.channel
        self.there = 0
        self.ended: Counter[str] = Counter()
        self._endpoint = resolve(options.url, insecure=True)
        self._options = options
        self._members: list[Member] = []
        self._began = 0.0
        self._took = 0.0
        self._is_over = False
        self._held = b""

    def run(self) -> None:
        """Obey until standard input ends."""
        self._print({"connected": 0})
        self.loop.watch(0, self._on_input, select.EPOLLIN)
        self.loop.tickers.append(self.tick)
        while not self._is_over:
            self.loop.turn()

    def tick(self, now_ns: int) -> int | None:
        """Let those come who are due; return when the next is."""
        if not self._began or len(self._members) == self._options.members:
            return None
        pace = self._options.seconds / self._options.members
        while len(self._members) < self._options.members and self._began + len(self._members) * pace <= now_ns / 1e9:
            number = self._options.first + len(self._members)
            source = f"127.0.0.{2 + number % self._options.sources}"
            member = Member(self, self._endpoint, source, f"m{number}")
            self._members.append(member)
            member.open()
        return int((self._began + len(self._members) * pace) * 1e9)

    def on_in(self) -> None:
        """One more is in the channel."""
        self.there += 1
        if self.there == self._options.members:
            self._took = time.monotonic() - self._began
            self._print(self._summary())

    def on_ended(self, member: Member, reason: str) -> None:
        """One was not let in, or lost."""
        self.there -= member.is_in
        self.ended[reason] += 1

    def _summary(self) -> dict[str, object]:
        return {"there": self.there, "seconds": round(self._took, 2), "ended": dict(self.ended)}

    def _on_input(self, _events: int) -> None:
        data = os.read(0, 4096)
        if not data:
            self._is_over = True
            return
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            if line == b"go":
                self._began = time.monotonic()
            else:
                self._print(self._summary())

    def _print(self, answer: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.load.members", description="Many members of one channel.")
    add = parser.add_argument
    add("url", help="of the WebSocket, such as ws://127.0.0.1:8080/connection/websocket")
    add("--channel", default="hall:big", help="[%(default)s]")
    add("--members", type=int, default=1000, help="of the users m<first>, … [%(default)s]")
    add("--first", type=int, default=0, help="[%(default)s]")
    add("--seconds", type=float, default=1, help="in which they come [%(default)s]")
    add("--sources", type=int, default=4, help="addresses to connect from, 127.0.0.2 on [%(default)s]")
    return parser.parse_args()


if __name__ == "__main__":
    Members(_options()).run()
