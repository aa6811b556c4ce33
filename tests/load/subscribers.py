"""Clients of channels that recover: they come back, say where they stand, and note all that they are told."""

import heapq
import random
import socket
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import orjson

from fastpush.bench.connections import Endpoint, WebSocketLink
from fastpush.bench.frame_reader import client_frame, frame_end
from fastpush.bench.loop import Loop
from fastpush.protocol.frames import Opcode
from tests.load.channel_ledger import Place
from tests.load.clients import quantiles

OPENING_MAX = 50  # connects under way at once, while everybody comes for the first time
ANSWER_SECONDS = 20  # a connect without an answer by then is given up
WAIT_SECONDS = 0.1  # doubled with every failure, and cut by chance
WAIT_SECONDS_MAX = 1.0
STALL_SECONDS = (0.2, 1.5)
_TEMPORARY = 100
_UNTIL_RECONNECT = (range(3500, 4000), range(4500, 5000))


class Subscriber:
    """A client over all of its connections. channels: it subscribes to; `places` has those of the server's will too."""

    __slots__ = ("attempts", "channels", "connection", "is_connected", "places", "token")

    def __init__(self, token: str, channels: list[str]) -> None:
        self.token = token
        self.channels = channels
        self.places = {channel: Place(channel) for channel in channels}
        self.connection: Connection | None = None
        self.is_connected = False
        self.attempts = 0

    @property
    def is_there(self) -> bool:
        """Whether it is connected, and in all of its channels."""
        return self.is_connected and all(place.is_subscribed for place in self.places.values())

    def server_side(self) -> dict[str, Any]:
        """Return where it stands in the channels of the server's will."""
        return {
            channel: place.position
            for channel, place in self.places.items()
            if channel not in self.channels and place.segments
        }


class Connection(WebSocketLink):
    """One connection of a subscriber."""

    __slots__ = ("_crowd", "_held", "_ids", "_waiting", "began", "subscriber")

    def __init__(self, crowd: "Subscribers", subscriber: Subscriber, source: str | None) -> None:
        request = crowd.endpoint.handshake(crowd.path, compression=False)
        super().__init__(crowd.loop, crowd.endpoint, source, request)
        self._crowd = crowd
        self._held = b""
        self._ids = count(1)
        self._waiting: dict[int, str] = {}
        self.subscriber = subscriber
        self.began = time.monotonic()

    def on_opened(self, head: bytes, rest: bytes) -> None:
        subscriber = self.subscriber
        connect: dict[str, Any] = {"token": subscriber.token, "name": "load"}
        if subs := subscriber.server_side():
            connect["subs"] = subs
        self._waiting[0] = ""  # no reply has id 0: nothing else is told before the first reply
        self._command(connect=connect)
        if rest:
            self._walk(rest)

    def on_connected(self) -> None:
        if self._crowd.receive_bytes:
            assert self.socket is not None
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._crowd.receive_bytes)
        super().on_connected()

    def on_refused(self, status: str) -> None:
        self.end(status)

    def on_readable(self) -> None:
        while (data := self.read()) is not None:
            self._walk(data)

    def subscribe(self, channel: str) -> None:
        """Subscribe, with what is known of the channel."""
        subscriber = self.subscriber
        if self is subscriber.connection and not subscriber.places[channel].is_subscribed:
            number = self._command(subscribe={"channel": channel, **subscriber.places[channel].position})
            self._waiting[number] = channel

    def move(self, channel: str) -> None:
        """Leave a channel and come back at once, as fast as two commands can."""
        place = self.subscriber.places[channel]
        place.is_subscribed, place.is_leaving = False, True
        self._waiting[self._command(unsubscribe={"channel": channel})] = channel
        self.subscribe(channel)

    def stall(self, seconds: float) -> None:
        """Read nothing for a time."""
        if self.socket is not None:
            self.loop.forget(self.socket.fileno())
            self._crowd.later(seconds, self._read_again)

    def _read_again(self) -> None:
        if self.socket is not None:
            self.react(self.on_event)

    def _command(self, **command: Any) -> int:
        number = next(self._ids)
        self.write(client_frame(Opcode.TEXT, orjson.dumps({"id": number, **command})))
        return number

    def _walk(self, data: bytes) -> None:
        data = self._held + data
        at, size = 0, len(data)
        while (end := frame_end(data, at)) <= size and self.socket is not None:
            length = data[at + 1] & 0x7F
            payload = data[at + (2 if length < 126 else 4 if length == 126 else 10) : end]
            self._on_frame(data[at] & 0x0F, payload)
            at = end
        self._held = data[at:]

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.TEXT:
            for line in payload.split(b"\n"):
                self._on_object(orjson.loads(line))
        elif opcode == Opcode.PING:
            self.write(client_frame(Opcode.PONG, payload))
        elif opcode == Opcode.CLOSE:
            self.write(client_frame(Opcode.CLOSE, payload[:2]))
            self.end(str(int.from_bytes(payload[:2], "big")) if payload else "1005")

    def _on_object(self, told: dict[str, Any]) -> None:
        push = told.get("push")
        if push is not None:
            self._on_push(push)
        elif not told:
            self.write(client_frame(Opcode.TEXT, b"{}"))
        elif "connect" in told:
            self._on_connected(told["connect"])
        elif "subscribe" in told:
            channel = self._waiting.pop(told["id"])
            self.subscriber.places[channel].on_subscribed(told["subscribe"])
            self._crowd.on_there(self.subscriber)
        elif "unsubscribe" in told:
            self.subscriber.places[self._waiting.pop(told["id"])].is_leaving = False
        else:
            self._on_error(told)

    def _on_push(self, push: dict[str, Any]) -> None:
        channel = push.get("channel", "")
        places = self.subscriber.places
        if "pub" in push:
            if places[channel].is_subscribed:
                places[channel].on_publication(push["pub"])
            elif not places[channel].is_leaving:
                self._crowd.unexpected += 1
        elif "unsubscribe" in push:
            self._crowd.unsubscribes[push["unsubscribe"]["code"]] += 1
            if places[channel].is_leaving:
                return  # it is on its way back
            places[channel].is_subscribed = False
            if channel in self.subscriber.channels:
                self._crowd.later(self._crowd.wait(0), lambda: self.subscribe(channel))
        elif "subscribe" in push:
            places.setdefault(channel, Place(channel)).on_subscribed(push["subscribe"])
        elif "disconnect" not in push:
            self._crowd.unexpected += 1

    def _on_connected(self, result: dict[str, Any]) -> None:
        subscriber = self.subscriber
        del self._waiting[0]
        subscriber.is_connected = True
        subscriber.attempts = 0
        for channel, subscribed in result.get("subs", {}).items():
            subscriber.places.setdefault(channel, Place(channel)).on_subscribed(subscribed)
        for channel in subscriber.channels:
            self.subscribe(channel)
        self._crowd.on_connected(self)

    def _on_error(self, told: dict[str, Any]) -> None:
        channel = self._waiting.pop(told["id"], "")
        self._crowd.errors[f"{told['error']['code']} {told['error']['message']}"] += 1
        if not channel:
            self.end(f"error {told['error']['code']}")
        elif told["error"].get("temporary") or told["error"]["code"] <= _TEMPORARY:
            self._crowd.later(self._crowd.wait(0), lambda: self.subscribe(channel))

    def on_ended(self, reason: str) -> None:
        self._crowd.on_ended(self, reason)


class Subscribers:
    """All subscribers of a run, on one loop.

    absences: seconds from the end of a connection to the last of its channels on the next one.
    closes: of connections that were there, by code or what the kernel said.  refused: of those that were not yet.
    moves_per_second: how often somebody leaves a channel and comes back.  stalls_per_second: stops reading for a while.
    receive_bytes: of the kernel for each connection; 0: its own choice.
    errors: replies.  unsubscribes: pushes, by code.  unexpected: what no client of the protocol is to be told.
    """

    def __init__(self, loop: Loop, endpoint: Endpoint, path: str, sources: list[str | None]) -> None:
        self.loop = loop
        self.endpoint = endpoint
        self.path = path
        self.all: list[Subscriber] = []
        self.closes: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.unsubscribes: Counter[int] = Counter()
        self.unexpected = 0
        self.connects = 0
        self.absences: list[float] = []
        self.moves_per_second = 0.0
        self.stalls_per_second = 0.0
        self.receive_bytes = 0
        self.moves = 0
        self.stalls = 0
        self._move_due = self._stall_due = 0.0
        self._sources = sources
        self._gone_since: dict[Subscriber, float] = {}
        self._under_way: dict[Connection, None] = {}
        self._numbers = count()
        self._first = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        loop.tickers.append(self.tick)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` in so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), call))

    def wait(self, attempts: int) -> float:
        """Return how long to wait before another attempt."""
        return random.uniform(0.2, 1) * min(WAIT_SECONDS * 2**attempts, WAIT_SECONDS_MAX)

    def tick(self, now_ns: int) -> int | None:
        """Open what is due, give up what got no answer; return when the next is due."""
        now = now_ns / 1e9
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        while self._first < len(self.all) and len(self._under_way) < OPENING_MAX:
            self._first += 1
            self._open(self.all[self._first - 1])
        while self._under_way and next(iter(self._under_way)).began < now - ANSWER_SECONDS:
            next(iter(self._under_way)).end("no answer")
        due = self._timers[0][0] if self._timers else now + 1
        if self.moves_per_second:
            due = min(due, self._move(now))
        if self.stalls_per_second:
            due = min(due, self._stall(now))
        return int(due * 1e9)

    def _move(self, now: float) -> float:
        """Have somebody leave a channel and come back."""
        self._move_due = max(self._move_due, now - 1)
        while self._move_due <= now:
            self._move_due += 1 / self.moves_per_second
            subscriber = random.choice(self.all)
            channel = random.choice(subscriber.channels)
            if subscriber.connection is not None and subscriber.places[channel].is_subscribed:
                self.moves += 1
                subscriber.connection.move(channel)
        return self._move_due

    def _stall(self, now: float) -> float:
        """Have somebody read nothing for a while."""
        self._stall_due = max(self._stall_due, now - 1)
        while self._stall_due <= now:
            self._stall_due += 1 / self.stalls_per_second
            subscriber = random.choice(self.all)
            if subscriber.connection is not None and subscriber.is_connected:
                self.stalls += 1
                subscriber.connection.stall(random.uniform(*STALL_SECONDS))
        return self._stall_due

    def _open(self, subscriber: Subscriber) -> None:
        source = self._sources[next(self._numbers) % len(self._sources)]
        subscriber.connection = connection = Connection(self, subscriber, source)
        self._under_way[connection] = None
        connection.open()

    def on_connected(self, connection: Connection) -> None:
        """A connection has its session."""
        del self._under_way[connection]
        self.connects += 1
        self.on_there(connection.subscriber)

    def on_there(self, subscriber: Subscriber) -> None:
        """It may have been the last of its channels."""
        if subscriber in self._gone_since and subscriber.is_there:
            self.absences.append(time.monotonic() - self._gone_since.pop(subscriber))

    def on_ended(self, connection: Connection, reason: str) -> None:
        """A connection was refused, closed or lost: its subscriber comes back, unless it is told not to."""
        subscriber = connection.subscriber
        was_there = connection not in self._under_way
        if was_there:
            self.closes[reason] += 1
            self._gone_since.setdefault(subscriber, time.monotonic())
        else:
            del self._under_way[connection]
            self.refused[reason] += 1
        subscriber.connection = None
        subscriber.is_connected = False
        for place in subscriber.places.values():
            place.is_subscribed = place.is_leaving = False
        if not any(reason.isdecimal() and int(reason) in codes for codes in _UNTIL_RECONNECT):
            wait = self.wait(subscriber.attempts)
            subscriber.attempts += 1
            self.later(wait, lambda: self._open(subscriber))

    @property
    def there(self) -> int:
        """How many are connected and in all of their channels."""
        return sum(subscriber.is_there for subscriber in self.all)

    def places(self) -> list[Place]:
        """Return the places of all."""
        return [place for subscriber in self.all for place in subscriber.places.values()]

    def summary(self) -> dict[str, Any]:
        """Return what they went through."""
        return {
            "subscribers": len(self.all),
            "there": self.there,
            "connects": self.connects,
            "moves": self.moves,
            "stalls": self.stalls,
            "closes": dict(self.closes),
            "refused": dict(self.refused),
            "errors": dict(self.errors),
            "unsubscribes": {str(code): times for code, times in self.unsubscribes.items()},
            "unexpected": self.unexpected,
            "absences": quantiles(self.absences),
        }
