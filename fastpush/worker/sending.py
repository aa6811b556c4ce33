"""What leaves on one WebSocket: straight to the transport, or through a bounded send queue behind a slow client.

All frames are prebuilt bytes written straight to the transport. uvloop holds at most
the rest of one write (high-water mark 0); what comes after `pause_writing` waits in the
send queue, as references to shared frames, where it is bounded and counted. Of the pongs
that a paused connection is owed the last one is kept (RFC 6455, 5.5.3).
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastpush.errors import ConnectionClosed
from fastpush.fanout import DEFLATE, GZIP, LINES
from fastpush.log import fields
from fastpush.protocol.frames import data_frame, join_lines, pong_frame
from fastpush.state.send_queue import ENTRY_BYTES, SendQueue

if TYPE_CHECKING:
    from fastpush.fanout import Group
    from fastpush.worker.environment import Environment
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.connection")

_FRAME_BYTES = ENTRY_BYTES + 10  # of a queued frame, beside its payload


class Sender(asyncio.BufferedProtocol):
    """The sending side of a Connection, which is the only class made of it.

    form: how it wants its messages.
    writable, descriptor: the transport while it is open and takes more, and its socket: what a fan-out looks at;
    None and -1 with TLS.
    """

    __slots__ = (
        "_queue", "_room", "_transport", "descriptor", "environment", "form", "groups", "mount", "peer",
        "writable",
    )  # fmt: skip

    groups: "tuple[Group, ...]"
    environment: "Environment"
    mount: "Mount"
    peer: str
    user: str
    form: int
    writable: Any
    descriptor: int
    _transport: Any  # uvloop's, which is no asyncio.Transport by class
    _queue: SendQueue | None
    _room: asyncio.Future[None] | None

    @property
    def id(self) -> str:
        """Unique among all connections of all workers (S0-17)."""
        raise NotImplementedError

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        """See Receiver."""
        raise NotImplementedError

    def close_slow(self) -> None:
        """See Receiver."""
        raise NotImplementedError

    def on_sign_of_life(self) -> None:
        """The client has taken something."""
        raise NotImplementedError

    def plan(self) -> None:
        """Have a changed deadline noticed."""
        raise NotImplementedError

    @property
    def wants_gzip(self) -> bool:
        """Whether what channels and users are sent reaches it as gzip, in binary messages."""
        return bool(self.form & GZIP)

    @wants_gzip.setter
    def wants_gzip(self, wanted: bool) -> None:
        self.form = self.form | GZIP if wanted else self.form & ~GZIP

    @property
    def joins_lines(self) -> bool:
        """Whether texts that have waited for it leave as one, a line each (S4-13)."""
        return bool(self.form & LINES)

    @joins_lines.setter
    def joins_lines(self, wanted: bool) -> None:
        self.form = self.form | LINES if wanted else self.form & ~LINES

    def send(self, data: str | bytes) -> bool:
        """Send a message; see the interface of applications."""
        if not self.is_open:
            raise ConnectionClosed
        return self.send_frame(data_frame(data))

    async def drain(self) -> None:
        """Wait for room in the send queue; see the interface of applications."""
        while self.is_open and not self.has_room:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)
        if not self.is_open:
            raise ConnectionClosed

    @property
    def has_room(self) -> bool:
        """Whether a message may be sent without being one too many; see the interface of applications."""
        queue, limits = self._queue, self.mount.limits
        if queue is None or not len(queue):
            return True
        # As much as a client may send, for what is returned to it; half of the queue for longer ones.
        room = max(limits.send_queue_bytes // 2, limits.message_bytes + _FRAME_BYTES)
        return len(queue) < limits.send_queue_messages and queue.queued_bytes + room <= limits.send_queue_bytes

    def _tell_of_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def send_frame(self, frame: bytes) -> bool:
        """Write a data frame, or queue it behind what a slow client has not taken; return whether it was taken."""
        return self.send_joined(frame, (frame,)) == 1

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        """Write `joined`, which is `frames` joined, or queue the frames behind what a slow client has not taken.

        Returns how many frames were taken, from the first on. Never raises, never changes a group: a
        connection over its limits marks itself and is closed after the walk.
        """
        transport = self.writable
        if transport is None:
            if not self.is_open:
                return 0
            if self._queue is not None:
                return self._enqueue(self._queue, frames)
            transport = self._transport  # of TLS
        try:
            transport.write(joined)
        except (OSError, RuntimeError):  # uvloop: the transport was closed under us
            transport.abort()
        if transport.is_closing():  # and a write that failed is told in no other way
            self.environment.hub.mark_slow(self)
            return 0
        return len(frames)

    def _write(self, frame: bytes) -> None:
        """Write a control frame, whatever is queued."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def _enqueue(self, queue: SendQueue, frames: Sequence[bytes]) -> int:
        environment = self.environment
        limits = self.mount.limits
        for taken, frame in enumerate(frames):
            # An empty queue takes any frame: pushes that are too large for it are refused with 413.
            while len(queue) and (
                len(queue) >= limits.send_queue_messages
                or queue.queued_bytes + len(frame) + ENTRY_BYTES > limits.send_queue_bytes
            ):
                if limits.slow_policy == "disconnect":
                    environment.hub.mark_slow(self)
                    return taken
                self._drop_oldest(queue)
            environment.send_queues.grow(queue.append(frame))
        return len(frames)

    def _drop_oldest(self, queue: SendQueue) -> None:
        if not queue.dropped:
            log.info("drops oldest messages", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        self.environment.send_queues.shrink(queue.drop_oldest())
        self.environment.counters.drops_oldest += 1

    @property
    def queued_bytes(self) -> int:
        """Bytes in the send queue."""
        return self._queue.queued_bytes if self._queue is not None else 0

    def pause_writing(self) -> None:
        """The transport has something waiting: queue from now on."""
        if self._queue is None:
            log.debug("slow", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        self._queue = SendQueue(self.environment.wheel.now)
        self.writable = None
        self.environment.send_queues.paused[self] = None
        if self.mount.times.write_timeout and self.is_open:
            self.plan()

    def resume_writing(self) -> None:
        """Write what has waited, until the client is behind again."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        self._queue = None
        if self.is_open and self.descriptor >= 0:
            self.writable = transport
        self.on_sign_of_life()
        send_queues = self.environment.send_queues
        pong = send_queues.paused.pop(self, None)
        if pong is not None and self.is_open:
            self._write(pong_frame(pong))
        while self._queue is None and len(queue) and not transport.is_closing():
            before = queue.queued_bytes
            frames = queue.take(self.environment.config.server.write_buffer_bytes)
            send_queues.shrink(before - queue.queued_bytes)
            if self.form & LINES and not self.form & (GZIP | DEFLATE):
                frames = join_lines(frames)
            transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
        if len(queue):
            queue.since = self.environment.wheel.now
            self._queue = queue
            self.writable = None
        else:
            self._tell_dropped(queue)
        if self.has_room:
            self._tell_of_room()

    def _tell_dropped(self, queue: SendQueue) -> None:
        """Say how many messages a slow client has missed, when that is over."""
        if queue.dropped:
            told = fields(connection=self.id, user=self.user, reason="oldest", messages=queue.dropped)
            log.info("messages dropped", extra=told)

    def _give_up_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, None
        environment = self.environment
        environment.send_queues.paused.pop(self, None)
        if queue is None:
            return
        self._tell_dropped(queue)
        if len(queue):
            environment.send_queues.shrink(queue.queued_bytes)
            if reason == "slow":
                environment.counters.drops_slow += len(queue)
            else:
                environment.counters.drops_lost += len(queue)
            log.info(
                "messages dropped",
                extra=fields(connection=self.id, user=self.user, reason=reason, messages=len(queue)),
            )
