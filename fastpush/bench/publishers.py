"""Publishers: connections that push, over HTTP or as WebSocket messages, on schedule or within a window."""

import re
import time

from fastpush.bench.connections import Endpoint, Link, WebSocketLink, resolve
from fastpush.bench.frame_reader import FrameReader, client_frame
from fastpush.bench.loop import Loop
from fastpush.bench.messages import message, stamp
from fastpush.bench.plan import Load, Plan
from fastpush.bench.recording import SECOND_NS, Board, Recorder
from fastpush.protocol.frames import Opcode

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_LATE_NS = 1_000_000
_REPLY_NS = 10 * SECOND_NS
_REOPEN_NS = SECOND_NS // 10
_LOST_NS = 10 * SECOND_NS  # a push that not all receivers have by then is not waited for
_STILL_NS = 2 * SECOND_NS  # nor when nothing has been received for so long
_CHECK_NS = SECOND_NS // 10
_KNOWN_MAX = 100
_REFUSED_ABOVE = 500  # a status from here on says nothing about what happened to the push, but for 503
_UNAVAILABLE = 503
_REPLY_BIT = 1 << 62  # the processes have the bits from 0 on

_Push = tuple[int, int, bytes]  # group, sequence, digits


class Publishing:
    """Posts the pushes of one load.

    Open loop: push n is due at start + n / rate, and its stamp says so, however late it goes out. Window: a push is
    outstanding until it is answered and every process with receivers says that all of them have it.
    """

    def __init__(self, plan: Plan, load: Load, loop: Loop, board: Board, recorder: Recorder) -> None:
        self.load = load
        self.board = board
        self.recorder = recorder
        self.counts = recorder.counts
        self._plan = plan
        self._loop = loop
        self._padding = message(b"", load.size_bytes)[1:]
        self._endpoint = resolve(load.push_url, insecure=plan.insecure)
        self._requests: dict[int, tuple[bytes, bytes]] = {}
        self._idle: list[Publisher] = []
        self._idle_since = 0
        self._waiting: dict[bytes, tuple[int, int]] = {}  # digits: group, what is awaited as bits
        self._posted = 0
        self._checked_ns = 0
        self._active_ns = 0
        self._active = 0
        self.start_ns: int | None = None
        self.has_ended = False
        kind = HttpPublisher if load.via == "http" else WebSocketPublisher
        self._publishers: list[Publisher] = [
            kind(self, loop, self._endpoint, number) for number in range(load.publishers)
        ]

    def open(self) -> None:
        """Connect all publishers."""
        for publisher in self._publishers:
            publisher.open()

    @property
    def ready(self) -> bool:
        """Whether one can push."""
        return bool(self._idle)

    def failure(self) -> str | None:
        """Return why nobody can push, when nobody can."""
        reasons = [publisher.failure for publisher in self._publishers]
        return reasons[0] if all(reasons) else None

    def handshake(self, number: int) -> bytes:
        """Return the request of a publisher that is a WebSocket."""
        user = self._plan.connections + self._plan.background_users + number
        plan = self._plan
        target = plan.target(user) if plan.push_url is None else plan.push_target(self.load, user)
        return self._endpoint.handshake(target, compression=False)

    # -- pushing -------------------------------------------------------------------

    def tick(self, now: int) -> int | None:
        """Post what is due; return when the next is."""
        for publisher in self._publishers:
            publisher.tick(now)
        if self.start_ns is None or self.has_ended:
            return None
        if now >= self.recorder.until_ns:
            self._end()
            return None
        if self.load.rate is None:
            if now - self._checked_ns > _CHECK_NS:
                self._checked_ns = now
                self._give_up(now)
            self.fill()
            return None
        return self._post_due(now)

    def _post_due(self, now: int) -> int:
        assert self.load.rate is not None
        assert self.start_ns is not None
        while True:
            due = self.start_ns + int(self._posted * SECOND_NS / self.load.rate)
            if due > now or not self._idle or due >= self.recorder.until_ns:
                return due
            late = now - max(due, self._idle_since)
            if late > _LATE_NS and due >= self.recorder.from_ns:
                self.counts.late += 1
            self.counts.late_ns_max = max(self.counts.late_ns_max, late)
            self._post(due)

    def fill(self) -> None:
        """Post as the window and idle publishers allow."""
        if self.load.window is None or self.start_ns is None or self.has_ended:
            return
        while self._idle and len(self._waiting) < self.load.window:
            now = time.monotonic_ns()
            if now >= self.recorder.until_ns:
                return
            self._post(now)

    def _post(self, at_ns: int) -> None:
        group = self._posted % self.load.groups
        self._posted += 1
        publisher = self._idle.pop()
        sequence = self.board.post(group, publisher.number)
        digits = stamp(self.load.first_publisher + publisher.number, sequence, at_ns)
        if self.load.window is not None:
            self._waiting[digits] = (group, self.board.present(group) | _REPLY_BIT)
        publisher.post((group, sequence, digits))

    def request(self, group: int, digits: bytes) -> bytes:
        """Return the bytes of a push: an HTTP request, or a WebSocket message."""
        parts = self._requests.get(group)
        if parts is None:
            parts = self._requests[group] = self._request_around(group)
        return digits.join(parts)

    def _request_around(self, group: int) -> tuple[bytes, bytes]:
        before, after = (text.encode() for text in self._plan.body_around(self.load, group))
        before, after = before + b"~", self._padding + after
        if self.load.via == "websocket":
            frame = client_frame(Opcode.TEXT, before + bytes(33) + after)
            return frame[: -len(after) - 33], after
        lines = [
            f"POST {self._plan.push_target(self.load, self.load.first_user + group)} HTTP/1.1",
            f"Host: {self._endpoint.host}",
            "Content-Type: application/json",
            f"Content-Length: {len(before) + 33 + len(after)}",
            *self._plan.push_headers,
        ]
        if self._plan.key is not None:
            lines.append(f"X-API-Key: {self._plan.key}")
        return "\r\n".join((*lines, "", "")).encode() + before, after

    # -- what became of it ---------------------------------------------------------

    def on_idle(self, publisher: "Publisher") -> None:
        """A publisher can push."""
        if not self._idle:
            self._idle_since = time.monotonic_ns()
        self._idle.append(publisher)

    def on_away(self, publisher: "Publisher") -> None:
        """A publisher has lost its connection."""
        if publisher in self._idle:
            self._idle.remove(publisher)

    def on_reply(self, publisher: "Publisher", push: _Push, outcome: str) -> None:
        """A push is answered: a status, or what went wrong instead."""
        group, sequence, digits = push
        now = time.monotonic_ns()
        self.counts.replies[outcome] += 1
        second = self.recorder.second(now)
        if outcome.startswith("2"):
            if second is not None:
                self.counts.pushed[second] += 1
            self._done(digits, _REPLY_BIT)
            return
        self._waiting.pop(digits, None)
        is_refused = outcome.isdecimal() and (int(outcome) < _REFUSED_ABOVE or int(outcome) == _UNAVAILABLE)
        if is_refused:
            self.board.take_back(group, publisher.number)
        else:
            self.board.add_unknown(group, self.load.first_publisher + publisher.number, sequence)

    def on_complete(self, process: int, stamps: list[bytes]) -> None:
        """All receivers in a process have these."""
        for digits in stamps:
            self._done(digits, 1 << process)
        self._active_ns = time.monotonic_ns()
        self.fill()

    def on_group_empty(self, process: int, group: int) -> None:
        """A process has no receivers of a group any more."""
        for digits, (of_group, _) in list(self._waiting.items()):
            if of_group == group:
                self._done(digits, 1 << process)
        self.fill()

    def _done(self, digits: bytes, bit: int) -> None:
        waiting = self._waiting.get(digits)
        if waiting is None:
            return
        left = waiting[1] & ~bit
        if left:
            self._waiting[digits] = (waiting[0], left)
        else:
            del self._waiting[digits]

    def _give_up(self, now: int) -> None:
        """A lost push would hold its place in the window for ever."""
        if self.recorder.deliveries != self._active:
            self._active, self._active_ns = self.recorder.deliveries, now
        is_still = now - self._active_ns > _STILL_NS
        for digits, (_, awaited) in list(self._waiting.items()):
            age = now - int(digits[14:])
            if age < _STILL_NS or not (is_still or age > _LOST_NS):
                break
            if not awaited & _REPLY_BIT:
                del self._waiting[digits]
                self.counts.given_up += 1

    # -- ending --------------------------------------------------------------------

    def _end(self) -> None:
        self.has_ended = True
        self.counts.posted = self._posted
        if self.load.rate is not None and self.start_ns is not None:
            span = (self.recorder.until_ns - self.start_ns) / SECOND_NS
            self.counts.unsent = max(0, int(span * self.load.rate) - self._posted)

    @property
    def is_settled(self) -> bool:
        """Whether every push is answered."""
        return self.has_ended and not any(publisher.push for publisher in self._publishers)

    def close(self) -> None:
        """Close all connections."""
        for publisher in self._publishers:
            publisher.close()


class Publisher(Link):
    """One that pushes. push: the one that is not answered yet.  failure: why it is not connected."""

    def __init__(self, owner: Publishing, loop: Loop, endpoint: Endpoint, number: int, **rest: bytes) -> None:
        super().__init__(loop, endpoint, None, **rest)
        self._owner = owner
        self._since_ns = 0
        self.number = number
        self.push: _Push | None = None
        self.failure: str | None = None

    def post(self, push: _Push) -> None:
        raise NotImplementedError

    def tick(self, now: int) -> None:
        """Open again, some time after the connection was lost."""
        if self.socket is None and self.failure is not None and now - self._since_ns > _REOPEN_NS:
            self._since_ns = now
            self.open()
        elif self.push is not None and now - self._since_ns > _REPLY_NS:
            self.end("no reply")

    def on_ended(self, reason: str) -> None:
        self.failure = reason
        self._since_ns = time.monotonic_ns()
        push, self.push = self.push, None
        self._owner.on_away(self)
        if push is not None:
            self._owner.on_reply(self, push, reason)


class HttpPublisher(Publisher):
    """Keeps an HTTP connection and has one push on it at a time."""

    def __init__(self, owner: Publishing, loop: Loop, endpoint: Endpoint, number: int) -> None:
        super().__init__(owner, loop, endpoint, number)
        self._received = b""
        self._known: dict[bytes, str] = {}  # replies are nearly all the same

    def on_connected(self) -> None:
        self.failure = None
        self._received = b""
        self._owner.on_idle(self)

    def post(self, push: _Push) -> None:
        self.push = push
        self._since_ns = time.monotonic_ns()
        self.write(self._owner.request(push[0], push[2]))

    def on_readable(self) -> None:
        data = self.read()
        if data is None:
            return
        self._received += data
        status = self._known.get(self._received)
        closes = False
        if status is None:
            if not _is_whole(self._received):
                return
            status = self._received[9:12].decode("latin-1")
            closes = _CLOSES.search(self._received) is not None
            if not closes and len(self._known) < _KNOWN_MAX:
                self._known[self._received] = status
        self._received = b""
        push, self.push = self.push, None
        if push is not None:
            self._owner.on_reply(self, push, status)
        if closes:
            self.end("closed by the server")
            return
        self._owner.on_idle(self)
        self._owner.fill()


class WebSocketPublisher(Publisher, WebSocketLink):
    """Pushes as messages of its own WebSocket; nothing is answered, and what it receives is not looked at."""

    def __init__(self, owner: Publishing, loop: Loop, endpoint: Endpoint, number: int) -> None:
        super().__init__(owner, loop, endpoint, number, request=owner.handshake(number))
        self._reader = FrameReader()

    def on_opened(self, head: bytes, rest: bytes) -> None:
        self.failure = None
        self._owner.on_idle(self)

    def on_refused(self, status: str) -> None:
        self.end(f"refused with {status}")

    def post(self, push: _Push) -> None:
        self.write(self._owner.request(push[0], push[2]))
        if self.socket is None:
            self._owner.on_reply(self, push, "cut")
        else:
            self._owner.on_idle(self)
            self._owner.on_reply(self, push, "2xx")

    def on_readable(self) -> None:
        data = self.read()
        if data is None:
            return
        for opcode, payload in self._reader.feed(data).controls:
            if opcode == Opcode.PING:
                self.write(client_frame(Opcode.PONG, payload))
            elif opcode == Opcode.CLOSE:
                self.end("closed by the server")
                return


def _is_whole(reply: bytes) -> bool:
    head, found, body = reply.partition(b"\r\n\r\n")
    if not found:
        return False
    length = _LENGTH.search(head)
    if length is not None:
        return len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n") if _CHUNKED.search(head) else True
