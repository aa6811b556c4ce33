"""Publishers: one push at a time over a kept-alive connection that is made again when the server gives it up."""

import time
from collections import Counter
from typing import Any

import orjson

from fastpush.bench.connections import Endpoint
from fastpush.bench.loop import Loop
from tests.load.clients import ANSWER_SECONDS, SECOND_NS, Client, Crowd, quantiles
from tests.load.http_link import HttpLink
from tests.load.ledger import CUT, FAN_OUT, UNICAST, Ledger, Push

REOPEN_SECONDS = 0.05  # after a connect that was refused
CATCH_UP_SECONDS = 1.0  # of the pushes that were due while there was no connection, so many are made up for
SETTLED_SECONDS = 0.1  # a close frame that was written before a reply has been read by then


class Publisher:
    """Pushes to its share of the users in turn, or to everybody; always one push at a time, so order is promised."""

    def __init__(self, press: "Press", users: list[list[Client]], interval_seconds: float, first_due: float) -> None:
        self._press = press
        self._users = users  # none: everybody
        self._interval = interval_seconds
        self._due = first_due
        self._next = 0
        self._link: HttpLink | None = None
        self._push: Push | None = None
        self._audience: Audience | None = None
        self._open_at = 0.0

    @property
    def is_busy(self) -> bool:
        return self._push is not None

    def tick(self, now: float) -> float:
        """Connect or push when that is due; return when the next is."""
        if self._push is not None:
            if now > self._push.posted + ANSWER_SECONDS and self._link is not None:
                self._link.end("no answer")
            return now + 1
        if self._press.has_stopped:
            return now + 1
        if self._link is None or not self._link.is_usable:
            return self._reconnect(now)
        if now >= self._due:
            self._due = max(self._due + self._interval, now - CATCH_UP_SECONDS)
            self._post(now)
            return now + 1
        return self._due

    def _reconnect(self, now: float) -> float:
        if self._link is not None and self._link.is_opening:
            return now + 1
        if now < self._open_at:
            return self._open_at
        self._link = HttpLink(self._press.loop, self._press.endpoint, self)
        self._press.connections += 1
        self._link.open()
        return now + 1

    def _post(self, now: float) -> None:
        press = self._press
        clients = None
        if self._users:
            clients = self._users[self._next % len(self._users)]
            self._next += 1
        push = press.ledger.post(UNICAST if clients else FAN_OUT, now)
        self._push = push
        self._audience = Audience(press.crowd, clients)
        assert self._link is not None
        self._link.write(press.request(push, clients[0].user if clients else ""))

    def on_reply(self, status: str, body: bytes) -> None:
        """The push under way is answered."""
        push, self._push = self._push, None
        assert push is not None
        assert self._audience is not None
        push.status = status
        if status == "200":
            reply = orjson.loads(body)
            push.sent, push.unconfirmed = reply["sent"], reply.get("unconfirmed", 0)
            self._press.on_taken(push, self._audience)

    def on_lost(self, reason: str, *, was_opening: bool) -> None:
        """The connection has ended."""
        if was_opening:
            self._press.refused[reason] += 1
            self._open_at = time.monotonic() + REOPEN_SECONDS
        if self._push is not None:
            self._push.status = CUT
            self._push = None


class Audience:
    """Who was there when a push was posted. clients: of its user; None: it goes to everybody."""

    __slots__ = ("_connections", "_crowd", "_ended", "_registered")

    def __init__(self, crowd: Crowd, clients: list[Client] | None) -> None:
        self._crowd = crowd
        self._connections = None if clients is None else [c.connection for c in clients if c.is_registered]
        self._registered = crowd.registered
        self._ended = crowd.ended

    def remaining(self) -> int:
        """Return how many of them are still there, at least."""
        if self._connections is None:
            return self._registered - (self._crowd.ended - self._ended)
        return sum(connection is not None and connection.is_open for connection in self._connections)


class Press:
    """All publishers of a run."""

    def __init__(self, loop: Loop, ledger: Ledger, crowd: Crowd, endpoint: Endpoint, path: str, key: str) -> None:
        self.loop = loop
        self.ledger = ledger
        self.crowd = crowd
        self.endpoint = endpoint
        self.has_stopped = False
        self.refused: Counter[str] = Counter()
        self.connections = 0
        self.key = key
        self.size_bytes = 100
        self._path = path
        self._publishers: list[Publisher] = []
        self._taken: list[tuple[float, int, Push, Audience]] = []
        self._turn = 0
        self.replies: list[float] = []
        loop.tickers.append(self.tick)

    def start(self, publishers: int, rate: float, fan_outs_per_second: float) -> None:
        """Push `rate` times a second to single users in turn, and so often to everybody."""
        now = time.monotonic()
        shares = [self.crowd.users[n::publishers] for n in range(publishers)]
        interval = publishers / rate if rate else 0
        for n, share in enumerate(shares if rate else ()):
            self._publishers.append(Publisher(self, share, interval, now + n * interval / publishers))
        if fan_outs_per_second:
            self._publishers.append(Publisher(self, [], 1 / fan_outs_per_second, now))

    @property
    def is_quiet(self) -> bool:
        """Whether every push is answered and judged."""
        return not self._taken and not any(publisher.is_busy for publisher in self._publishers)

    def request(self, push: Push, user: str) -> bytes:
        """Return the bytes of a push; no user: to everybody."""
        stamp = f"<{push.kind.decode()}{push.number}>"
        body = {"event": "e", "message": stamp.ljust(self.size_bytes, ".")}
        if user:
            body["userId"] = user
        data = orjson.dumps(body)
        return (
            f"POST {self._path}{'' if user else '/all'} HTTP/1.1\r\nHost: {self.endpoint.host}\r\n"
            f"Accept: application/json\r\nX-API-Key: {self.key}\r\nContent-Length: {len(data)}\r\n\r\n"
        ).encode() + data

    def on_taken(self, push: Push, audience: Audience) -> None:
        """Judge a count a little later: who was there all the time must be in it."""
        now = time.monotonic()
        self.replies.append(now - push.posted)
        self._taken.append((now + SETTLED_SECONDS, self._turn + 2, push, audience))

    def tick(self, now_ns: int) -> int:
        """Let publishers do what is due; return when the next is."""
        now = now_ns / SECOND_NS
        self._turn += 1
        while self._taken and self._taken[0][0] <= now and self._taken[0][1] <= self._turn:
            _, _, push, audience = self._taken.pop(0)
            if not push.unconfirmed:
                self.ledger.missed += max(0, audience.remaining() - push.sent)
        due = min((publisher.tick(now) for publisher in self._publishers), default=now + 1)
        if self._taken:
            due = min(due, self._taken[0][0])
        return int(due * SECOND_NS)

    def summary(self) -> dict[str, Any]:
        """Return what the publishers went through."""
        return {
            "replies": quantiles(self.replies),
            "publisher_connections": self.connections,
            "publishers_refused": dict(self.refused),
        }
