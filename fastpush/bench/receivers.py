"""Connections that receive: registered, read as cheaply as possible, checked against their group."""

import select
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastpush.bench.connections import WebSocketLink
from fastpush.bench.frame_reader import FrameReader, client_frame
from fastpush.bench.messages import Faults, Stream, find
from fastpush.bench.recording import Board, Recorder
from fastpush.protocol.frames import Opcode

if TYPE_CHECKING:
    from fastpush.bench.client import Client

_READABLE = select.EPOLLIN
_BACKGROUND = ord("9")  # first digit of the publishers whose pushes the background's users check


class Group:
    """The receivers of one key in this process. apart: those whose stream is their own."""

    __slots__ = ("_on_complete", "_process", "apart", "board", "index", "is_background", "recorder", "stream")

    def __init__(
        self, index: int, process: int, board: Board, recorder: Recorder, *, keep: bool, is_background: bool,
        on_complete: Callable[[list[bytes]], None] | None,
    ) -> None:  # fmt: skip
        self.index = index
        self.board = board
        self.recorder = recorder
        self.is_background = is_background
        self.apart: set[Receiver] = set()
        self.stream = Stream({}, keep=keep, on_complete=on_complete)
        self._process = process
        self._on_complete = on_complete

    def join(self, receiver: "Receiver", *, late: bool, confirmed: bool) -> None:
        """Take a registered connection in. late: pushes have begun."""
        if late:
            limits = self.board.posted(self.index) if confirmed else None
            receiver.stream = self.stream.successor(limits)
            receiver.stream.join(0)
            self.apart.add(receiver)
            if not self.stream.followers:
                self._promote(receiver)
        else:
            receiver.stream = self.stream
            self.stream.join(0)
        self.board.add_present(self._process, self.index, 1)

    def _promote(self, receiver: "Receiver") -> None:
        """The stream of the only one left becomes the group's."""
        self.apart.discard(receiver)
        self.stream = receiver.stream
        self.stream.on_complete = self._on_complete

    def leave(self, receiver: "Receiver") -> bool:
        """Let a connection go; whether nobody is left."""
        self.board.add_present(self._process, self.index, -1)
        receiver.stream.leave(receiver.position)
        self.apart.discard(receiver)
        if self.stream.followers:
            return False
        if self.apart:
            self._promote(next(iter(self.apart)))
            return False
        return True

    def part(self, receiver: "Receiver", stamps: list[bytes]) -> Faults:
        """The connection differs: give it a stream of its own; return what that alone is worth."""
        shared = receiver.stream
        own = shared.successor(shared.state_at(receiver.position))
        own.join(0)
        own.follow(0, stamps)
        own.move(0, own.end)
        settled = shared.faults(receiver.start, receiver.position, ())
        is_clean = shared.is_clean_from(receiver.position)
        shared.leave(receiver.position)
        receiver.stream, receiver.start, receiver.position = own, -1, own.end
        self.apart.add(receiver)
        if not shared.followers:
            self._promote(receiver)
        if is_clean and own.faults(-1, own.end, ()) == Faults():
            settled = settled.plus(Faults(reordered=1))
        return settled

    def rejoin(self, receiver: "Receiver", last: bytes) -> Faults:
        """Bring a connection back into step, if it is; return what it had until then."""
        position = self.stream.in_step(receiver.stream, last)
        if position is None:
            return Faults()
        faults = receiver.stream.faults(-1, receiver.position, ())
        self.apart.discard(receiver)
        receiver.stream = self.stream
        receiver.start, receiver.position = position - 1, position
        self.stream.join(position)
        return faults

    def verdict(self, receiver: "Receiver", *, is_end: bool) -> Faults:
        """Return what is wrong with what a connection got. is_end: it was to have all pushes."""
        unknown = self.board.unknown().get(self.index, set())
        stream = receiver.stream
        faults = stream.faults(receiver.start, receiver.position, unknown)
        if is_end and not self.has_all(receiver):
            faults = faults.plus(Faults(lost=stream.behind(receiver.position, self.board.posted(self.index), unknown)))
        return faults

    def has_all(self, receiver: "Receiver") -> bool:
        """Whether a connection has everything that was pushed."""
        stream = receiver.stream
        if receiver.position < stream.end:
            return False
        return sum(stream.next.values()) == self.board.posted_sum(self.index) or not stream.behind(
            receiver.position, self.board.posted(self.index), ()
        )


class Receiver(WebSocketLink):
    """One connection. position: of its next message in its stream.  start: of the last one before it joined."""

    __slots__ = (
        "_buffer", "_client", "_is_registered", "_reader", "_receive", "_record", "group", "is_slow", "number",
        "position", "start", "stream", "user",
    )  # fmt: skip

    def __init__(self, client: "Client", number: int, user: int, group: Group, *, is_slow: bool) -> None:
        plan = client.plan
        endpoint = client.endpoint
        request = endpoint.handshake(plan.target(user), compression=plan.compression)
        super().__init__(client.loop, endpoint, plan.sources[number % len(plan.sources)], request)
        self._client = client
        self._buffer = client.buffer
        self._reader = FrameReader()
        self._record = group.recorder.record
        self._is_registered = False
        self.number = number
        self.user = user
        self.group = group
        self.is_slow = is_slow
        self.stream = group.stream
        self.position = 0
        self.start = -1

    # -- registering ---------------------------------------------------------------

    def on_opened(self, head: bytes, rest: bytes) -> None:
        assert self.socket is not None
        self._receive = self.socket.recv_into
        extensions = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"sec-websocket-ext")), b"")
        if b"permessage-deflate" in extensions and b"server_no_context_takeover" not in extensions:
            self._reader = FrameReader(takeover=True)
        plan = self._client.plan
        if plan.register == "message":
            self.write(client_frame(Opcode.TEXT, plan.registration(self.user).encode()))
            if plan.register_reply:
                if rest:
                    self._walk(rest)
                return
        self._register()
        if rest:
            self._walk(rest)

    def _register(self) -> None:
        self._is_registered = True
        assert self.socket is not None
        if self.is_slow:
            self.loop.watch(self.socket.fileno(), self._on_hang_up, select.EPOLLRDHUP)
        else:
            plan = self._client.plan
            confirmed = plan.register == "url" or plan.register_reply
            if self._endpoint.tls is None:  # TLS hands over one record a read
                self._interest = _READABLE | select.EPOLLRDHUP | select.EPOLLET
            self.react(self.on_event)
            self.group.join(self, late=self._client.has_begun, confirmed=confirmed)
        self._client.on_opened(self)

    def _on_hang_up(self, _events: int) -> None:
        assert self.socket is not None
        self.loop.forget(self.socket.fileno())  # what is left is read when it resumes

    def resume(self) -> None:
        """A slow connection reads on: what is left for it, until a close frame or the end."""
        self.react(super().on_event)

    def on_refused(self, status: str) -> None:
        self.end(status)

    # -- reading -------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """Read once, which empties the kernel's buffer nearly always; anything unusual takes the long way."""
        if events != _READABLE:
            super().on_event(events)
            return
        buffer = self._buffer
        try:
            size = self._receive(buffer)
        except OSError:
            self.read()  # says what it is
            return
        stream = self.stream
        chunk = stream.chunks.get(self.position)
        if chunk is not None and size == chunk.size and buffer.startswith(chunk.data) and not self._reader.held:
            self._record(chunk)
            stream.move(self.position, chunk.end)
            self.position = chunk.end
        else:
            self._on_read(size)
            if size == len(buffer):  # nobody will tell that there is more, as events are edge-triggered
                self.on_readable()

    def on_readable(self) -> None:
        """Read until there is no more."""
        while self.socket is not None:
            try:
                size = self._receive(self._buffer)
            except OSError:
                self.read()
                return
            self._on_read(size)

    def _on_read(self, size: int) -> None:
        if not size:
            self.end("end of stream")
            return
        at = 0 if self._reader.held or self.is_slow else self._skip_known(size)
        if at < size:
            self._walk(bytes(memoryview(self._buffer)[at:size]))

    def _skip_known(self, size: int) -> int:
        """Move over what others have read before; return where in the buffer the rest begins."""
        chunks = self.stream.chunks
        position = self.position
        at = 0
        while (chunk := chunks.get(position)) is not None:
            end = at + chunk.size
            if end > size or not self._buffer.startswith(chunk.data, at):
                break
            at = end
            position = chunk.end
            self._record(chunk)
        if at:
            self.stream.move(self.position, position)
            self.position = position
        return at

    def _walk(self, data: bytes) -> None:
        try:
            read = self._reader.feed(data)
        except zlib.error:
            self.end("broken compressed data")
            return
        if read.messages and not self._is_registered:
            self._register()
        stamps = find(read.payload)
        if self.group.is_background:
            stamps = [digits for digits in stamps if digits[0] == _BACKGROUND]
        if stamps and not self.is_slow:
            self._take(stamps, read.frames if read.is_plain else b"")
        for opcode, payload in read.controls:
            self._on_control(opcode, payload)

    def _take(self, stamps: list[bytes], frames: bytes) -> None:
        """Check messages that were not read before by another connection of this group."""
        stream, position, group = self.stream, self.position, self.group
        chunk = stream.chunk(position, frames, stamps)
        self._record(chunk)
        if stream.follow(position, stamps):
            if frames:
                stream.remember(position, chunk)
            self.position = chunk.end
            stream.move(position, chunk.end)
        else:
            self._client.settle(group, group.part(self, stamps))
        if group.apart and self in group.apart:
            self._client.settle(group, group.rejoin(self, stamps[-1]))

    def _on_control(self, opcode: int, payload: bytes) -> None:
        if opcode == Opcode.PING:
            self.write(client_frame(Opcode.PONG, payload))
        elif opcode == Opcode.CLOSE and self.socket is not None:
            self.write(client_frame(Opcode.CLOSE, payload))
            self.end(f"close {int.from_bytes(payload[:2], 'big')}" if payload else "close without code")

    # -- ending --------------------------------------------------------------------

    def quit(self) -> None:
        """Close as a client does that goes away."""
        self.write(client_frame(Opcode.CLOSE, b"\x03\xe9"))
        if self.socket is not None:
            self.close()
            self._leave()

    def on_ended(self, reason: str) -> None:
        was_registered = self._is_registered
        if was_registered:
            self._leave()
        self._client.on_ended(self, reason, was_registered=was_registered)

    def _leave(self) -> None:
        if self._is_registered and not self.is_slow:
            self._is_registered = False
            self._client.settle(self.group, self.group.verdict(self, is_end=False))
            if self.group.leave(self):
                self._client.on_group_empty(self.group)
