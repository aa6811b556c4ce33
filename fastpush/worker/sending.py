"""What leaves on one WebSocket: straight to the transport, or through a bounded send queue behind a slow client.

All frames are prebuilt bytes written straight to the transport. uvloop holds at most
the rest of one write (high-water mark 0); what comes after `pause_writing` waits in the
send queue, as references to shared frames, where it is bounded and counted. Of the pongs
that a paused connection is owed the last one is kept (RFC 6455, 5.5.3).

What happens at the bound is `[limits] slow_policy`, for a connection's messages all alike; where it writes
ChannelFrames, each channel's own policy (state/send_queue.py).
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastpush.errors import ConnectionClosed
from fastpush.fanout import CHANNEL_FORMS, DEFLATE, GZIP, LINES
from fastpush.log import fields
from fastpush.protocol.client import gap_push
from fastpush.protocol.frames import ChannelFrame, data_frame, join_lines, pong_frame, text_frame
from fastpush.protocol.push import channel_of
from fastpush.state.send_queue import DISCONNECT, ENTRY_BYTES, ChannelQueue, SendQueue

if TYPE_CHECKING:
    from fastpush.fanout import Group
    from fastpush.worker.environment import Environment
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.connection")

_HEADER_BYTES = 10  # of a frame, beside its payload: at most


class Sender(asyncio.BufferedProtocol, ABC):
    """The sending side of a Connection, which is the only class made of it.

    form: how it wants its messages; whether it is one of CHANNEL_FORMS is settled before the transport is taken over.
    writable, descriptor: the transport while it is open and takes more, and its socket: what a fan-out looks at;
    None and -1 with TLS.
    worst_queued_bytes: most that has ever waited in the send queue.
    """

    __slots__ = (
        "_queue", "_room", "_transport", "descriptor", "environment", "form", "groups", "mount", "peer",
        "worst_queued_bytes", "writable",
    )  # fmt: skip

    groups: "tuple[Group, ...]"
    environment: "Environment"
    mount: "Mount"
    peer: str
    user: str
    form: int
    writable: Any
    descriptor: int
    worst_queued_bytes: int
    _transport: Any  # uvloop's, which is no asyncio.Transport by class
    _queue: SendQueue | ChannelQueue | None
    _room: asyncio.Future[None] | None

    @property
    @abstractmethod
    def id(self) -> str:
        """Unique among all connections of all workers (S0-17)."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether messages may still be sent."""

    @abstractmethod
    def close(self, code: int, reason: str) -> None:
        """See Receiver."""

    @abstractmethod
    def close_slow(self) -> None:
        """See Receiver."""

    @abstractmethod
    def on_sign_of_life(self) -> None:
        """The client has taken something."""

    @abstractmethod
    def plan(self) -> None:
        """Have a changed deadline noticed."""

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
        room = max(limits.send_queue_bytes // 2, limits.message_bytes + _HEADER_BYTES + queue.entry_bytes)
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

    def _to_write(self, frames: Sequence[bytes]) -> bytes:
        """Return what is written for frames that have waited."""
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def _enqueue(self, queue: SendQueue | ChannelQueue, frames: Sequence[bytes]) -> int:
        taken = (
            self._enqueue_by_channel(queue, frames)
            if isinstance(queue, ChannelQueue)
            else self._enqueue_whole(queue, frames)
        )
        self.worst_queued_bytes = max(self.worst_queued_bytes, queue.queued_bytes)
        return taken

    def _enqueue_whole(self, queue: SendQueue, frames: Sequence[bytes]) -> int:
        environment = self.environment
        limits = self.mount.limits
        for taken, frame in enumerate(frames):
            if not frame:  # this form has nothing for the publication
                continue
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

    def _enqueue_by_channel(self, queue: ChannelQueue, frames: Sequence[bytes]) -> int:
        environment = self.environment
        limits = self.mount.limits
        for taken, frame in enumerate(frames):
            if not frame:  # this form has nothing for the publication
                continue
            policy = self.mount.slow_policy(frame.key) if isinstance(frame, ChannelFrame) else DISCONNECT
            messages, cost = queue.cost(frame, policy)
            while queue.queued_bytes and (
                len(queue) + messages > limits.send_queue_messages
                or queue.queued_bytes + cost > limits.send_queue_bytes
            ):
                if not self._drop_oldest(queue):
                    environment.hub.mark_slow(self)
                    return taken
            environment.send_queues.grow(queue.append(frame, policy))
            environment.counters.drops_latest += not messages
        return len(frames)

    def _drop_oldest(self, queue: SendQueue | ChannelQueue) -> bool:
        """Make room; return whether there was something that may go."""
        is_first = not queue.dropped
        gained = queue.drop_oldest()
        if not gained:
            return False
        if is_first:
            log.info("drops oldest messages", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        self.environment.send_queues.shrink(gained)
        self.environment.counters.drops_oldest += 1
        return True

    def seal_channel(self, key: bytes) -> None:
        """Have nothing that comes of a channel later stand before what waits now: a subscription has ended."""
        if isinstance(self._queue, ChannelQueue):
            self._queue.seal(key)

    def gap_frame(self, key: bytes, dropped: int) -> bytes:
        """Return the frame that tells the client how many publications of a channel it has missed."""
        return text_frame(gap_push(channel_of(key), dropped))

    @property
    def queued_bytes(self) -> int:
        """Bytes in the send queue."""
        return self._queue.queued_bytes if self._queue is not None else 0

    def pause_writing(self) -> None:
        """The transport has something waiting: queue from now on."""
        if self._queue is None:
            log.debug("slow", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        now = self.environment.wheel.now
        self._queue = ChannelQueue(now, self.gap_frame) if self.form & CHANNEL_FORMS else SendQueue(now)
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
        while self._queue is None and queue.queued_bytes and not transport.is_closing():
            before = queue.queued_bytes
            frames = queue.take(self.environment.config.server.write_buffer_bytes)
            send_queues.shrink(before - queue.queued_bytes)
            if self.form & LINES and not self.form & (GZIP | DEFLATE):
                frames = join_lines(frames)
            transport.write(self._to_write(frames))
        if queue.queued_bytes:
            queue.since = self.environment.wheel.now
            self._queue = queue
            self.writable = None
        else:
            self._tell_dropped(queue)
        if self.has_room:
            self._tell_of_room()

    def _tell_dropped(self, queue: SendQueue | ChannelQueue) -> None:
        """Say how many messages a slow client has missed, when that is over."""
        for reason, messages in (("oldest", queue.dropped), ("latest", queue.replaced)):
            if messages:
                told = fields(connection=self.id, user=self.user, reason=reason, messages=messages)
                log.info("messages dropped", extra=told)
                self.environment.notebook.dropped(self, reason, messages)

    def _give_up_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, None
        environment = self.environment
        environment.send_queues.paused.pop(self, None)
        if queue is None:
            return
        self._tell_dropped(queue)
        environment.send_queues.shrink(queue.queued_bytes)
        if len(queue):
            if reason == "slow":
                environment.counters.drops_slow += len(queue)
            else:
                environment.counters.drops_lost += len(queue)
            log.info(
                "messages dropped",
                extra=fields(connection=self.id, user=self.user, reason=reason, messages=len(queue)),
            )
            environment.notebook.dropped(self, reason, len(queue))
