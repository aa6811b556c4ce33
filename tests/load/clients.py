"""Clients that stay, come back when they lose their connection, and note how long each connect took."""

import heapq
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

from fastpush.bench.connections import Endpoint, WebSocketLink
from fastpush.bench.frame_reader import FrameReader, client_frame
from fastpush.bench.loop import Loop
from fastpush.protocol.frames import Opcode
from tests.load.ledger import Inbox, Ledger

SECOND_NS = 1_000_000_000
OPENING_MAX = 100  # connects under way at once, while everybody comes for the first time
ANSWER_SECONDS = 20  # a connect without an answer by then is given up
DOUBLINGS_MAX = 2
_STAMP = re.compile(rb"<([ua])(\d+)>")
_GOING_AWAY = b"\x03\xe8"


class Client:
    """A user's place in the crowd. connection: the current one; None while it waits to come back."""

    __slots__ = ("attempts", "connection", "has_opened", "inbox", "is_registered", "token", "user")

    def __init__(self, user: str, token: str) -> None:
        self.user = user
        self.token = token
        self.inbox = Inbox()
        self.connection: Connection | None = None
        self.is_registered = False
        self.has_opened = False
        self.attempts = 0


class Connection(WebSocketLink):
    """One WebSocket, from connect() to its end. is_visit: it closes as soon as it is open."""

    __slots__ = ("_crowd", "_reader", "began", "client", "closed_with", "is_visit")

    def __init__(self, crowd: "Crowd", client: Client, number: int, *, is_visit: bool) -> None:
        request = crowd.endpoint.handshake(f"{crowd.path}?token={client.token}&event=e", compression=False)
        super().__init__(crowd.loop, crowd.endpoint, crowd.sources[number % len(crowd.sources)], request)
        self._crowd = crowd
        self._reader = FrameReader()
        self.client = client
        self.is_visit = is_visit
        self.began = time.monotonic()
        self.closed_with = ""

    @property
    def is_open(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self.socket is not None

    def on_opened(self, head: bytes, rest: bytes) -> None:
        self._crowd.on_opened(self)
        if rest:
            self._walk(rest)
        if self.is_visit:
            self.write(client_frame(Opcode.CLOSE, _GOING_AWAY))

    def on_refused(self, status: str) -> None:
        self.end(status)

    def on_readable(self) -> None:
        while (data := self.read()) is not None:
            self._walk(data)

    def _walk(self, data: bytes) -> None:
        read = self._reader.feed(data)
        receive, inbox = self._crowd.ledger.receive, self.client.inbox if not self.is_visit else Inbox()
        for kind, digits in _STAMP.findall(read.payload):
            receive(inbox, kind, int(digits))
        for opcode, payload in read.controls:
            if opcode == Opcode.PING:
                self.write(client_frame(Opcode.PONG, payload))
            elif opcode == Opcode.CLOSE:
                if not self.is_visit:
                    self.write(client_frame(Opcode.CLOSE, payload[:2]))
                self.end(str(int.from_bytes(payload[:2], "big")) if payload else "1005")

    def on_ended(self, reason: str) -> None:
        self._crowd.on_ended(self, reason)


class Crowd:
    """All clients of a run, on one loop.

    registered: clients that are there now.  ended: connections that have ended after they were there.
    openings, connects: seconds from connect() to the 101 of a client's first connection, and of all later ones and
    visits.  closes: (monotonic time, code, or what the kernel said) of the ends of connections that were there.
    """

    def __init__(self, loop: Loop, ledger: Ledger, endpoint: Endpoint, path: str, sources: list[str | None]) -> None:
        self.loop = loop
        self.ledger = ledger
        self.endpoint = endpoint
        self.path = path
        self.sources = sources
        self.users: list[list[Client]] = []
        self.clients: list[Client] = []
        self.registered = 0
        self.ended = 0
        self.visits = 0
        self.visits_under_way = 0
        self.openings: list[float] = []
        self.connects: list[float] = []
        self.closes: list[tuple[float, str]] = []
        self.refused: Counter[str] = Counter()
        self.visits_per_second = 0.0
        self._visits_due = 0.0
        self._under_way: dict[Connection, None] = {}
        self._first = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        loop.tickers.append(self.tick)

    def invite(self, tokens: list[str], each: int) -> None:
        """Have clients come: of the users u0, u1, … with these tokens, `each` connections a user."""
        self.users = [[Client(f"u{number}", token) for _ in range(each)] for number, token in enumerate(tokens)]
        self.clients = [client for clients in self.users for client in clients]

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` in so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    def tick(self, now_ns: int) -> int | None:
        """Open what is due, give up what got no answer; return when the next is due."""
        now = now_ns / SECOND_NS
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        while self._first < len(self.clients) and len(self._under_way) < OPENING_MAX:
            self._first += 1
            self._connect(self.clients[self._first - 1])
        while self._under_way and next(iter(self._under_way)).began < now - ANSWER_SECONDS:
            next(iter(self._under_way)).end("no answer")
        due = self._timers[0][0] if self._timers else now + 1
        if self.visits_per_second:
            due = min(due, self._visit(now))
        return int(due * SECOND_NS)

    def visit(self, per_second: float) -> None:
        """Have so many short connections a second come from now on, beside the clients; 0: none."""
        self.visits_per_second = per_second
        self._visits_due = time.monotonic()

    def _visit(self, now: float) -> float:
        while self._visits_due <= now:
            self._visits_due += 1 / self.visits_per_second
            client = self.clients[self.visits % len(self.clients)]
            self.visits += 1
            self._open(client, is_visit=True)
        return self._visits_due

    def _connect(self, client: Client) -> None:
        client.connection = self._open(client, is_visit=False)

    def _open(self, client: Client, *, is_visit: bool) -> Connection:
        connection = Connection(self, client, next(self._numbers), is_visit=is_visit)
        self._under_way[connection] = None
        self.visits_under_way += is_visit
        connection.open()
        return connection

    def on_opened(self, connection: Connection) -> None:
        """It is registered: that is what the 101 means."""
        del self._under_way[connection]
        client = connection.client
        is_first = not (connection.is_visit or client.has_opened)
        (self.openings if is_first else self.connects).append(time.monotonic() - connection.began)
        if not connection.is_visit:
            client.has_opened = client.is_registered = True
            client.attempts = 0
            self.registered += 1

    def on_ended(self, connection: Connection, reason: str) -> None:
        """A connection was refused, closed or lost: its client comes back after the wait that the README shows."""
        was_open = connection not in self._under_way
        client = connection.client
        self.visits_under_way -= connection.is_visit
        if was_open:
            if not connection.is_visit:
                self.ended += 1
                self.registered -= 1
                client.is_registered = False
                self.closes.append((time.monotonic(), reason))
        else:
            del self._under_way[connection]
            self.refused[reason] += 1
        if not connection.is_visit:
            client.connection = None
            doublings = min(client.attempts, DOUBLINGS_MAX)
            client.attempts += 1
            self.later(2**doublings * (0.5 + random.random() / 2), lambda: self._connect(client))

    def summary(self) -> dict[str, Any]:
        """Return what the clients went through."""
        per_second = _per_second([at for at, _ in self.closes])
        return {
            "clients": len(self.clients),
            "connected": self.registered,
            "openings": quantiles(self.openings),
            "connects": quantiles(self.connects),
            "visits": self.visits,
            "refused": dict(self.refused),
            "closes": dict(sorted(Counter(reason for _, reason in self.closes).items())),
            "closes_per_second": per_second,
            "closes_per_second_max": max(per_second, default=0),
            "closes_per_second_mean": round(sum(per_second) / len(per_second), 1) if per_second else 0,
        }


def _per_second(times: list[float]) -> list[int]:
    """Return how many of the rising `times` fall into each second, from the first to the last."""
    if not times:
        return []
    counts = [0] * (int(times[-1] - times[0]) + 1)
    for at in times:
        counts[int(at - times[0])] += 1
    return counts


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return count and, in ms, median, 99th percentile and maximum."""
    if not seconds:
        return {"count": 0}
    ordered = sorted(seconds)
    at = {"p50_ms": len(ordered) // 2, "p99_ms": len(ordered) * 99 // 100, "max_ms": len(ordered) - 1}
    return {"count": len(ordered)} | {name: round(ordered[index] * 1000, 1) for name, index in at.items()}
