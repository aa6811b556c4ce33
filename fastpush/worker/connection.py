"""One open WebSocket: a client's frames in, messages to the application, frames out.

States, and every transition (a connection only ever moves down):

    OPEN      handed over, reading and writing
      │ close(), a rule broken, the client's close frame, a slow client
    CLOSING   out of all groups; close frame sent; waits for the client's, at most
      │       close_timeout_seconds
    CLOSED    the TCP connection is gone, by whatever way

A connection is the transport's protocol itself and borrows a codec for what it reads (worker/codec.py).
Every violation takes one way: out of all groups, what was queued, a close frame with the
reason, our end of the TCP connection closed, and whatever still comes is read and forgotten
(RFC 6455, 7.1.7). Closed at once instead, bytes that are under way would be answered by
a reset, on which some systems throw the close frame away.

All frames are prebuilt bytes written straight to the transport. uvloop holds at most
the rest of one write (high-water mark 0); what comes after `pause_writing` waits in the
send queue, as references to shared frames, where it is bounded and counted. Of the pongs
that a paused connection is owed the last one is kept (RFC 6455, 5.5.3).
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from fastpush.applications.interface import Application
from fastpush.errors import CloseCode, ProtocolViolation
from fastpush.fanout import DEFLATE, PLAIN
from fastpush.log import fields
from fastpush.protocol.frames import (
    MessageReader,
    Opcode,
    close_frame,
    close_payload,
    handshake_response,
    ping_frame,
    pong_frame,
    text_frame,
)
from fastpush.state.rate import TokenBucket
from fastpush.state.send_queue import ENTRY_BYTES, SendQueue
from fastpush.worker.timers import TICK_SECONDS, ticks
from fastpush.worker.tls import TlsTransport

if TYPE_CHECKING:
    from fastpush.fanout import Group
    from fastpush.worker.codec import Codec
    from fastpush.worker.environment import Environment

log = logging.getLogger("fastpush.connection")

HEARTBEAT_FRAME = text_frame(b"heartbeat")
_PING = ping_frame()
_CLOSE, _PING_OPCODE, _PONG = int(Opcode.CLOSE), int(Opcode.PING), int(Opcode.PONG)


class State(IntEnum):
    """Where a connection is in its life."""

    OPEN = 0
    CLOSING = 1
    CLOSED = 2


class Connection(asyncio.BufferedProtocol):
    """An open WebSocket.

    user: "" until the first registration.  groups: owned by the hub.  form: how it wants its messages.
    writable, descriptor: the transport while it is OPEN and takes more, and its socket: what a fan-out looks at;
    None and -1 with TLS.
    admitted: names that it is counted by on this host (worker/admission.py).
    heartbeat_ticks: 0 for none.  expires_at: unix seconds, when the user's token ends.
    """

    __slots__ = (
        "_close_due",
        "_codec",
        "_heard",
        "_heartbeat_due",
        "_opened",
        "_pinged",
        "_queue",
        "_rate",
        "_reader",
        "_transport",
        "admitted",
        "application",
        "close_code",
        "descriptor",
        "due",
        "environment",
        "expires_at",
        "failure",
        "form",
        "groups",
        "headers",
        "heartbeat_ticks",
        "inbox",
        "must_register",
        "peer",
        "serial",
        "state",
        "user",
        "wants_confirm",
        "writable",
    )

    def __init__(
        self, environment: "Environment", application: Application, peer: str, headers: Mapping[str, str]
    ) -> None:
        self.environment = environment
        self.application = application
        self.peer = peer
        self.headers = headers
        self.serial = next(environment.serials)
        self.state = State.OPEN
        self.user = ""
        self.groups: tuple[Group, ...] = ()
        self.admitted: tuple[bytes, ...] = ()
        self.form = PLAIN
        self.wants_confirm = False
        self.heartbeat_ticks = 0
        self.must_register = False
        self.expires_at: float | None = None
        self.failure: Exception | None = None
        self.inbox: list[str | bytes] | None = None
        self.close_code = 0
        self.due = -1
        self._transport: Any = None  # uvloop's, which is no asyncio.Transport by class
        self.writable: Any = None
        self.descriptor = -1
        self._codec: Codec | None = None  # while a frame is incomplete
        self._queue: SendQueue | None = None
        self._reader: MessageReader | None = None
        self._rate: TokenBucket | None = None  # of the client's messages, from the first on
        self._opened = self._heard = environment.wheel.now
        self._pinged = -1  # tick of a ping that waits for any sign of life
        self._heartbeat_due = self._close_due = 0

    @property
    def id(self) -> str:
        """Unique among all connections of all workers (S0-17)."""
        return f"{self.environment.id_prefix}{self.serial:012x}"

    # -- opening ---------------------------------------------------------------

    def take_over(self, transport: asyncio.Transport, key: str, unread: bytes, extensions: str | None = None) -> None:
        """Answer the checked handshake with 101 and own `transport` from now on.

        key: Sec-WebSocket-Key.  unread: bytes that came behind the request.
        extensions: the answer to those that the client offers.
        """
        if extensions is not None:
            self.form |= DEFLATE
        self._transport = transport
        if not isinstance(transport, TlsTransport):
            self.writable = transport
            self.descriptor = transport.get_extra_info("socket").fileno()
        transport.set_protocol(self)
        transport.set_write_buffer_limits(0)
        if transport.get_write_buffer_size() and self._queue is None:
            self.pause_writing()  # paused before the upgrade, by answers that the client has not read
        environment = self.environment
        environment.connections.add(self)
        environment.counters.handshakes_upgraded += 1
        self._write(handshake_response(key, extensions))
        self.application.on_open(self)
        self.plan()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("connection opened", extra=fields(connection=self.id, peer=self.peer, worker=environment.number))
        if unread:
            self._feed(memoryview(unread))

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self.state == State.OPEN

    # -- reading ---------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.environment.codecs.space

    def buffer_updated(self, nbytes: int) -> None:
        self._feed(self.environment.codecs.space[:nbytes])

    def _feed(self, received: memoryview) -> None:
        codecs = self.environment.codecs
        codec = self._codec
        is_borrowed = codec is None
        if codec is None:
            codec = codecs.take()
        try:
            is_between = codec.feed(received, self)
        except ProtocolViolation as violation:
            self._codec = None
            self._on_violation(violation, codec.unread_close_code)
            codec.discard()
        except Exception:
            self._codec = None
            log.exception("reading failed", extra=fields(connection=self.id, user=self.user, peer=self.peer))
            self._hang_up(CloseCode.INTERNAL_ERROR, "")
        else:
            self._codec = None if is_between else codec
            if is_between and is_borrowed:
                codecs.give_back(codec)
            elif is_between:  # kept for a while, it may have grown
                codec.discard()

    def on_frame(self, opcode: int, fin: bool, rsv1: bool, rsv23: bool, payload: bytes) -> None:  # noqa: FBT001 - bits
        """Take a frame from the codec."""
        self._heard = self.environment.wheel.now
        self._pinged = -1
        if self.state != State.OPEN:
            if opcode == _CLOSE and not self._has_hung_up:
                self._transport.close()  # the answer to our close frame
            return
        try:
            if rsv23 or (rsv1 and opcode >= _CLOSE):
                raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "reserved bits are set")  # noqa: TRY301
            if opcode == _CLOSE:
                self._on_close_frame(payload)
            elif opcode == _PING_OPCODE:
                self._on_ping(payload)
            elif opcode != _PONG:
                self._on_data_frame(opcode, fin, rsv1, payload)
        except ProtocolViolation as violation:
            self._fail(violation)

    def _on_data_frame(self, opcode: int, fin: bool, rsv1: bool, payload: bytes) -> None:  # noqa: FBT001 - bits
        reader = self._reader
        if reader is None:
            limits = self.environment.config.limits
            reader = self._reader = MessageReader(
                limits.message_bytes, limits.message_fragments, deflate=bool(self.form & DEFLATE)
            )
        message = reader.feed(opcode, fin, rsv1, payload)
        if message is not None:
            self.environment.counters.messages_received += 1
            if not self._is_within_rate():
                self.close(CloseCode.POLICY_VIOLATION, "message rate")
            elif self.inbox is not None:
                self.inbox.append(message)  # an earlier one is still being handled; reading is paused
            else:
                self._on_message(message)

    def _is_within_rate(self) -> bool:
        most = self.environment.config.limits.messages_per_second
        if not most:
            return True
        now = self.environment.wheel.now * TICK_SECONDS
        if self._rate is None:
            self._rate = TokenBucket(most, now)
        if self._rate.take(now):
            return True
        self.environment.counters.messages_over_rate += 1
        log.info("message rate", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        return False

    def _on_message(self, message: str | bytes) -> None:
        try:
            self.application.on_message(self, message)
        except Exception:
            log.exception("handler failed", extra=fields(connection=self.id, user=self.user, peer=self.peer))
            self.close(CloseCode.INTERNAL_ERROR, "")

    def _on_ping(self, payload: bytes) -> None:
        if self._queue is None:
            self._write(pong_frame(payload))
        else:  # not written: who pings and never reads must not fill our memory with pongs
            self.environment.send_queues.paused[self] = payload

    def _on_close_frame(self, payload: bytes) -> None:
        """Answer with the same code and no reason, an empty one with an empty one, and end the connection."""
        code, _ = close_payload(payload)
        self._leave(code or 1005)
        self._give_up_queue("lost")
        self._write(close_frame(code))
        self._transport.close()

    def eof_received(self) -> bool:
        """The client has closed its end of the TCP connection: without a close frame it is gone."""
        if self.state == State.OPEN:
            self._leave(1006)
            self._give_up_queue("lost")
        return False

    def _on_violation(self, violation: ProtocolViolation, unread_close_code: int | None) -> None:
        """The codec has found a violation, perhaps right behind a close frame: then that is what is answered."""
        if self.state != State.OPEN or unread_close_code is None:
            self._fail(violation)
            return
        try:
            self._on_close_frame(unread_close_code.to_bytes(2, "big") if unread_close_code else b"")
        except ProtocolViolation as unsendable:
            self._fail(unsendable)

    def _fail(self, violation: ProtocolViolation) -> None:
        """Close for a violation: tell the client why, and take nothing from it any more."""
        if self.state == State.OPEN:
            self.environment.counters.protocol_errors += 1
        self._hang_up(violation.code, violation.reason)

    def _hang_up(self, code: CloseCode, reason: str) -> None:
        self.close(code, reason)
        transport = self._transport
        if transport is not None and not self._has_hung_up:
            transport.write_eof()
            transport.set_protocol(_Forgetful(self))

    @property
    def _has_hung_up(self) -> bool:
        return self._transport is not None and isinstance(self._transport.get_protocol(), _Forgetful)

    def pause_reading(self) -> None:
        """Take no more from the client until `resume_reading`; what was read already waits in `inbox`."""
        self.inbox = []
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Hand over what has waited, and read on."""
        waiting, self.inbox = self.inbox or (), None
        for position, message in enumerate(waiting):
            if self.state != State.OPEN:
                break
            self._on_message(message)
            if self.inbox is not None:  # paused again by that message
                self.inbox = [*waiting[position + 1 :], *self.inbox]
                return
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # -- writing ---------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Write a data frame, or queue it behind what a slow client has not taken; return whether it was taken."""
        return self.send_joined(frame, (frame,)) == 1

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        """Write `joined`, which is `frames` joined, or queue the frames behind what a slow client has not taken.

        Returns how many frames were taken, from the first on. Never raises, never changes a group: a
        connection over its limits marks itself and is closed after the walk.
        """
        transport = self.writable
        if transport is None:
            if self.state != State.OPEN:
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
        limits = environment.config.limits
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
        if self._queue is None:
            log.debug("slow", extra=fields(connection=self.id, user=self.user, peer=self.peer))
        self._queue = SendQueue()
        self.writable = None
        self.environment.send_queues.paused[self] = None

    def resume_writing(self) -> None:
        """Write what has waited, until the client is behind again."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        self._queue = None
        if self.state == State.OPEN and self.descriptor >= 0:
            self.writable = transport
        # It has taken something: as good a sign of life as any, and its pong may be far behind.
        self._heard = self.environment.wheel.now
        self._pinged = -1
        send_queues = self.environment.send_queues
        pong = send_queues.paused.pop(self, None)
        if pong is not None and self.state == State.OPEN:
            self._write(pong_frame(pong))
        while self._queue is None and len(queue) and not transport.is_closing():
            before = queue.queued_bytes
            data = queue.take(self.environment.config.server.write_buffer_bytes)
            send_queues.shrink(before - queue.queued_bytes)
            transport.write(data)
        if len(queue):
            self._queue = queue
            self.writable = None
        else:
            self._tell_dropped(queue)

    def _tell_dropped(self, queue: SendQueue) -> None:
        """Say how many messages a slow client has missed, when that is over."""
        if queue.dropped:
            told = fields(connection=self.id, user=self.user, reason="oldest", messages=queue.dropped)
            log.info("messages dropped", extra=told)

    # -- time ------------------------------------------------------------------

    def renew(self) -> None:
        """Go by limits and times that have changed."""
        if self.state == State.OPEN:
            limits = self.environment.config.limits
            self._rate = None
            if self._reader is not None:
                self._reader.limit(limits.message_bytes, limits.message_fragments)
            self.plan()

    def plan(self) -> None:
        """Ask to be called when the next deadline comes; call it when a deadline was added."""
        self.environment.wheel.schedule(self, self._next_due(self.environment.wheel.now))

    def start_heartbeat(self, seconds: int) -> None:
        """Send a text heartbeat every `seconds`, for clients that cannot see pings."""
        self.heartbeat_ticks = ticks(seconds)
        self._heartbeat_due = self.environment.wheel.now + self.heartbeat_ticks

    def on_timer(self, now: int) -> int | None:
        """Do what is due; see TimerWheel."""
        environment = self.environment
        if self.state != State.OPEN:
            if now < self._close_due:
                return self._close_due
            self._abort("close time-out")
            return None
        times = environment.connection_ticks
        if self.must_register and not self.groups:
            if now >= self._opened + times.register_timeout:
                self.close(*self.application.close_reason(self))
                return self._close_due
        elif self.expires_at is not None and environment.clock() >= self.expires_at:
            self.close(CloseCode.TOKEN_EXPIRED, "token expired")
            return self._close_due
        if self._pinged >= 0:
            if now >= self._pinged + times.pong_timeout:
                self._abort("pong time-out")
                return None
        elif now >= self._heard + times.ping_interval:
            self._pinged = now
            self._write(_PING)
        if self.heartbeat_ticks and now >= self._heartbeat_due:
            self._heartbeat_due = now + self.heartbeat_ticks
            self.send(HEARTBEAT_FRAME)
        return self._next_due(now)

    def _next_due(self, now: int) -> int:
        times = self.environment.connection_ticks
        due = self._pinged + times.pong_timeout if self._pinged >= 0 else self._heard + times.ping_interval
        if self.must_register and not self.groups:
            due = min(due, self._opened + times.register_timeout)
        if self.heartbeat_ticks:
            due = min(due, self._heartbeat_due)
        if self.expires_at is not None:
            seconds = self.expires_at - self.environment.clock()
            due = min(due, now + ticks(max(seconds, TICK_SECONDS)))
        return due

    # -- closing ---------------------------------------------------------------

    def close(self, code: CloseCode, reason: str) -> None:
        """Leave all groups, send a close frame behind what was queued, wait for the client's; again does nothing."""
        if self.state != State.OPEN:
            return
        if code != CloseCode.TRY_AGAIN_LATER:
            self.environment.hub.leave(self)  # while it still takes what is on its way to it
        self._leave(code)
        transport = self._transport
        if transport is None:
            return
        if code == CloseCode.TRY_AGAIN_LATER:
            self._give_up_queue("slow")
        elif self._queue is not None and len(self._queue):
            # Taken messages come before the close frame; close_timeout_seconds bounds the wait.
            self.environment.send_queues.shrink(self._queue.queued_bytes)
            self._write(self._queue.take(self._queue.queued_bytes))
        self._write(close_frame(code, reason))
        if self.inbox is not None:
            self.inbox = None
            transport.resume_reading()

    def close_slow(self) -> None:
        """End a connection whose client does not take its messages, or whose last write has failed."""
        if self._transport is not None and self._transport.is_closing():
            self._abort("write failed")
        else:
            self.close(CloseCode.TRY_AGAIN_LATER, "too slow")

    def _leave(self, code: int) -> None:
        """Enter CLOSING: nothing is sent to this connection any more but its close frame."""
        environment = self.environment
        self.state = State.CLOSING
        self.writable = None
        self.close_code = code
        environment.hub.leave(self)
        self._close_due = environment.wheel.now + environment.connection_ticks.close_timeout
        environment.wheel.schedule(self, self._close_due)

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

    def _abort(self, reason: str) -> None:
        if self.state == State.OPEN:
            self._leave(1006)
        log.debug("aborted", extra=fields(connection=self.id, reason=reason))
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone: forget everything about it, whatever the way."""
        environment = self.environment
        if self.state == State.OPEN:
            self._leave(1006)
        self.state = State.CLOSED
        environment.wheel.cancel(self)
        environment.connections.discard(self)
        if self.admitted:
            environment.release(self.admitted)
        environment.counters.closes += 1
        self._give_up_queue("lost")
        if self._codec is not None:
            self._codec.discard()
        self._transport = self.writable = self._reader = self._codec = None
        self.inbox = None
        log.info(
            "connection closed",
            extra=fields(
                connection=self.id,
                user=self.user,
                peer=self.peer,
                worker=environment.number,
                code=self.close_code,
                seconds=round((environment.wheel.now - self._opened) * TICK_SECONDS, 1),
            ),
        )


class _Forgetful(asyncio.BufferedProtocol):
    """Stands before a connection's protocol once nothing more is wanted of its client."""

    __slots__ = ("_protocol",)
    _space = memoryview(bytearray(65536))  # everybody's: nobody reads it

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None: ...

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
