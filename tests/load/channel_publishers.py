"""Publishers of channels: each number again, with the same idempotency key, until it was taken."""

import time
from collections import Counter
from itertools import cycle

import orjson

from fastpush.bench.connections import Endpoint
from fastpush.bench.loop import Loop
from tests.load.channel_ledger import Taken
from tests.load.clients import quantiles
from tests.load.http_link import HttpLink

ANSWER_SECONDS = 5.0
AGAIN_SECONDS = 0.02
CATCH_UP_SECONDS = 1.0  # of the publications that were due meanwhile, so many are made up for


class ChannelPublisher:
    """Publishes to its channels in turn, one publication at a time."""

    def __init__(
        self, press: "ChannelPress", name: str, channels: list[str], interval: float, first_due: float
    ) -> None:
        self._press = press
        self._name = name
        self._channels = cycle(channels)
        self._interval = interval
        self._due = first_due
        self._link: HttpLink | None = None
        self._asked_at = 0.0
        self._open_at = 0.0
        self.under_way: tuple[str, int] | None = None
        self._is_asked = False

    def tick(self, now: float) -> float:
        """Connect or publish when that is due; return when the next is."""
        if self._is_asked:
            if now > self._asked_at + ANSWER_SECONDS and self._link is not None:
                self._link.end("no answer")
            return now + 1
        if self.under_way is None and (self._press.has_stopped or now < self._due):
            return now + 1 if self._press.has_stopped else self._due
        if now < self._open_at:
            return self._open_at
        if self._link is None or not self._link.is_usable:
            if self._link is None or not self._link.is_opening:
                self._link = HttpLink(self._press.loop, self._press.endpoint, self)
                self._press.connections += 1
                self._link.open()
            return now + 1
        if self.under_way is None:
            channel = next(self._channels)
            self.under_way = (channel, self._press.next_number(channel))
            self._due = max(self._due + self._interval, now - CATCH_UP_SECONDS)
        self._ask(now)
        return now + 1

    def _ask(self, now: float) -> None:
        assert self._link is not None
        assert self.under_way is not None
        channel, number = self.under_way
        data = {"n": number, "of": self._name, "pad": "." * self._press.size_bytes}
        body = orjson.dumps({"channel": channel, "data": data, "idempotency_key": f"{channel}-{number}"})
        self._asked_at = now
        self._is_asked = True
        self._link.write(
            f"POST /api/publish HTTP/1.1\r\nHost: {self._press.endpoint.host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def on_reply(self, status: str, body: bytes) -> None:
        """What is under way is answered."""
        assert self.under_way is not None
        self._is_asked = False
        channel, number = self.under_way
        answer = orjson.loads(body) if status == "200" else {}
        self._press.replies.append(time.monotonic() - self._asked_at)
        if "result" in answer:
            self._press.statuses["taken"] += 1
            result = answer["result"]
            self._press.taken.append(Taken(channel, number, result["epoch"], result["offset"]))
            self.under_way = None
        else:
            self._press.statuses[f"error {answer['error']['code']}" if answer else status] += 1
            self._open_at = time.monotonic() + AGAIN_SECONDS

    def on_lost(self, reason: str, *, was_opening: bool) -> None:
        """The connection has ended, with what was under way or without."""
        self._press.statuses[f"lost: {reason}" if self._is_asked else f"no connection: {reason}"] += 1
        self._is_asked = False
        self._open_at = time.monotonic() + AGAIN_SECONDS


class ChannelPress:
    """All publishers of a run; the channels are shared out among them, so each channel has one order.

    taken: in each channel's order.  statuses: of the answers, and why there was none.
    """

    def __init__(self, loop: Loop, endpoint: Endpoint, size_bytes: int) -> None:
        self.loop = loop
        self.endpoint = endpoint
        self.size_bytes = size_bytes
        self.has_stopped = False
        self.taken: list[Taken] = []
        self.statuses: Counter[str] = Counter()
        self.replies: list[float] = []
        self.connections = 0
        self._numbers: Counter[str] = Counter()
        self._publishers: list[ChannelPublisher] = []
        loop.tickers.append(self.tick)

    def start(self, publishers: int, channels: list[str], rate: float) -> None:
        """Publish `rate` times a second, to all channels in turn."""
        publishers = min(publishers, len(channels))
        now, interval = time.monotonic(), publishers / rate
        for n in range(publishers):
            first = now + n * interval / publishers
            self._publishers.append(ChannelPublisher(self, f"p{n}", channels[n::publishers], interval, first))

    def next_number(self, channel: str) -> int:
        """Return the number of a channel's next publication."""
        self._numbers[channel] += 1
        return self._numbers[channel]

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was begun has been taken."""
        return not any(publisher.under_way for publisher in self._publishers)

    def tick(self, now_ns: int) -> int:
        """Let publishers do what is due; return when the next is."""
        now = now_ns / 1e9
        return int(min((publisher.tick(now) for publisher in self._publishers), default=now + 1) * 1e9)

    def summary(self) -> dict[str, object]:
        """Return what the publishers went through."""
        return {
            "published": len(self.taken),
            "answers": dict(self.statuses),
            "replies": quantiles(self.replies),
            "publisher_connections": self.connections,
        }
