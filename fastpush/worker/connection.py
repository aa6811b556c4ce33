"""One open WebSocket: picows' frames in, messages to the application, frames out.

States, and every transition (a connection only ever moves down):

    OPEN      handed over, reading and writing
      │ close(), a rule broken, the client's close frame, a slow client
    CLOSING   out of all groups; close frame sent; waits for the client's, at most
      │       close_timeout_seconds
    CLOSED    the TCP connection is gone, by whatever way

picows delivers single frames. A violation that it finds by itself it tells its logger first;
`_Reports` is that logger and raises, so that picows does nothing more, and every
violation takes one way: out of all groups, what was queued, a close frame with the reason,
our end of the TCP connection closed, and whatever still comes is read and forgotten
(RFC 6455, 7.1.7). Closed at once instead, bytes that are under way would be answered by
a reset, on which some systems throw the close frame away.

Data frames are prebuilt bytes written straight to the transport. uvloop holds at most
the rest of one write (high-water mark 0); what comes after `pause_writing` waits in the
send queue, as references to shared frames, where it is bounded and counted. Of the pongs
that a paused connection is owed the last one is kept (RFC 6455, 5.5.3).
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from picows import WSAutoPingStrategy, WSFrame, WSListener, WSMsgType, WSTransport
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from fastpush.applications.interface import Application
from fastpush.errors import CloseCode, ProtocolViolation
from fastpush.log import fields
from fastpush.protocol.frames import MessageReader, close_payload, close_reason, text_frame
from fastpush.state.send_queue import ENTRY_BYTES, SendQueue
from fastpush.worker.timers import TICK_SECONDS, ticks

if TYPE_CHECKING:
    from fastpush.fanout import Group
    from fastpush.worker.environment import Environment

log = logging.getLogger("fastpush.connection")

HEARTBEAT_FRAME = text_frame(b"heartbeat")
# picows doubles a read buffer that one read has nearly filled. Bounded reads bound it by what one
# frame needs; unbounded, whoever sends faster than we read could grow it to megabytes.
_READ_BYTES = 16384


class State(IntEnum):
    """Where a connection is in its life."""

    OPEN = 0
    CLOSING = 1
    CLOSED = 2


class Connection(WSListener):
    """An open WebSocket.

    user: "" until the first registration.  groups: owned by the hub.
    heartbeat_ticks: 0 for none.  expires_at: unix seconds, when the user's token ends.
    """

    __slots__ = (
        "_close_due",
        "_heard",
        "_heartbeat_due",
        "_opened",
        "_pinged",
        "_queue",
        "_reader",
        "_transport",
        "application",
        "close_code",
        "due",
        "environment",
        "expires_at",
        "failure",
        "groups",
        "headers",
        "heartbeat_ticks",
        "id",
        "inbox",
        "must_register",
        "peer",
        "state",
        "user",
        "wants_confirm",
        "wants_envelope",
    )

    def __init__(
        self, environment: "Environment", application: Application, peer: str, headers: Mapping[str, str]
    ) -> None:
        self.environment = environment
        self.application = application
        self.peer = peer
        self.headers = headers
        self.id = uuid.uuid4().hex
        self.state = State.OPEN
        self.user = ""
        self.groups: tuple[Group, ...] = ()
        self.wants_envelope = False
        self.wants_confirm = False
        self.heartbeat_ticks = 0
        self.must_register = False
        self.expires_at: float | None = None
        self.failure: Exception | None = None
        self.inbox: list[str | bytes] | None = None
        self.close_code = 0
        self.due = -1
        self._transport: WSTransport | None = None
        self._queue: SendQueue | None = None
        self._reader: MessageReader | None = None
        self._opened = self._heard = environment.wheel.now
        self._pinged = -1  # tick of a ping that waits for any sign of life
        self._heartbeat_due = self._close_due = 0

    # -- opening ---------------------------------------------------------------

    def take_over(self, transport: asyncio.Transport, key: str, unread: bytes) -> None:
        """Answer the checked handshake with 101 and own `transport` from now on.

        The request given to picows is a canonical one with the client's key: the real one
        was checked before, may be one that picows does not accept (Firefox sends
        `Connection: keep-alive, Upgrade`), and would stay in memory.
        unread: bytes that came behind the request.
        """
        settings = self.environment.config
        protocol = _Protocol(
            None, None, False, lambda _: self, _REPORTS, True, None, False, 0, 0,
            WSAutoPingStrategy.PING_WHEN_IDLE, False,
            settings.limits.message_bytes, None, settings.server.read_buffer_bytes,
        )  # fmt: skip
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        replay = memoryview(
            b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: " + key.encode("ascii") + b"\r\n\r\n" + unread
        )
        while replay and transport.get_protocol() is protocol:  # which a violation changes
            space = protocol.get_buffer(-1)
            size = min(len(space), len(replay))
            space[:size] = replay[:size]
            protocol.buffer_updated(size)
            replay = replay[size:]

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        underlying = transport.underlying_transport
        underlying.set_write_buffer_limits(0)
        if self._queue is None and underlying.get_write_buffer_size():
            self.pause_writing()  # paused before the upgrade, by answers that the client has not read
        # picows keeps both for as long as the connection lives; nobody reads them again.
        transport.request.headers = None  # type: ignore[assignment]
        transport.response.headers = None  # type: ignore[assignment]
        environment = self.environment
        environment.connections.add(self)
        environment.counters.handshakes_upgraded += 1
        self.application.on_open(self)
        self.plan()
        log.debug("connection opened", extra=fields(connection=self.id, peer=self.peer, worker=environment.number))

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self.state == State.OPEN

    # -- reading ---------------------------------------------------------------

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        self._heard = self.environment.wheel.now
        self._pinged = -1
        opcode = frame.msg_type
        if self.state != State.OPEN:
            if opcode == WSMsgType.CLOSE and self._transport is not None and not self._has_hung_up:
                self._transport.disconnect()  # the answer to our close frame
            return
        try:
            if frame.rsv1 or frame.rsv2 or frame.rsv3:
                raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "reserved bits are set")  # noqa: TRY301
            if opcode == WSMsgType.CLOSE:
                self._on_close_frame(frame.get_payload_as_bytes())
            elif opcode == WSMsgType.PING:
                self._on_ping(frame.get_payload_as_bytes())
            elif opcode != WSMsgType.PONG:
                self._on_data_frame(opcode.value, frame)
        except ProtocolViolation as violation:
            self._fail(violation)

    def _on_data_frame(self, opcode: int, frame: WSFrame) -> None:
        reader = self._reader
        if reader is None:
            limits = self.environment.config.limits
            reader = self._reader = MessageReader(limits.message_bytes, limits.message_fragments)
        message = reader.feed(opcode, bool(frame.fin), False, frame.get_payload_as_bytes())
        if message is not None:
            self.environment.counters.messages_received += 1
            if self.inbox is not None:
                self.inbox.append(message)  # an earlier one is still being handled; reading is paused
            else:
                self._on_message(message)

    def _on_message(self, message: str | bytes) -> None:
        try:
            self.application.on_message(self, message)
        except Exception:
            log.exception("handler failed", extra=fields(connection=self.id, user=self.user, peer=self.peer))
            self.close(CloseCode.INTERNAL_ERROR, "")

    def _on_ping(self, payload: bytes) -> None:
        assert self._transport is not None
        if self._queue is None:
            self._transport.send_pong(payload)
        else:  # not written: who pings and never reads must not fill our memory with pongs
            self.environment.send_queues.paused[self] = payload

    def _on_close_frame(self, payload: bytes) -> None:
        """Answer with the same code and no reason, an empty one with an empty one, and end the connection."""
        transport = self._transport
        assert transport is not None
        code, _ = close_payload(payload)
        self._leave(code or 1005)
        self._give_up_queue("lost")
        if code is None:
            transport.send(WSMsgType.CLOSE, None)
        else:
            transport.send_close(code)  # type: ignore[arg-type]
        transport.disconnect()

    def on_end_of_file(self) -> None:
        """The client has closed its end of the TCP connection: without a close frame it is gone."""
        if self.state == State.OPEN:
            self._leave(1006)
            self._give_up_queue("lost")

    def on_violation(self, violation: ProtocolViolation) -> None:
        """picows has found a violation."""
        handshake = self._transport.close_handshake if self._transport is not None else None
        if self.state == State.OPEN and handshake is not None and handshake.recv is not None:
            # picows reads one frame ahead: this is about what came behind a close frame that it
            # did not deliver, and that one is what has to be answered.
            code = int(handshake.recv.code)  # type: ignore[call-overload]
            try:
                self._on_close_frame(code.to_bytes(2, "big") if code else b"")
            except ProtocolViolation as unsendable:
                self._fail(unsendable)
        else:
            self._fail(violation)

    def _fail(self, violation: ProtocolViolation) -> None:
        """Close for a violation: tell the client why, and take nothing from it any more."""
        if self.state == State.OPEN:
            self.environment.counters.protocol_errors += 1
        self._hang_up(violation.code, violation.reason)

    def _hang_up(self, code: CloseCode, reason: str) -> None:
        self.close(code, reason)
        if self._transport is not None and not self._has_hung_up:
            underlying = self._transport.underlying_transport
            underlying.write_eof()
            underlying.set_protocol(_Forgetful(underlying.get_protocol()))

    @property
    def _has_hung_up(self) -> bool:
        transport = self._transport
        return transport is not None and isinstance(transport.underlying_transport.get_protocol(), _Forgetful)

    def on_failure(self, error: Exception) -> None:
        """picows has failed, or a callback that it called."""
        where = fields(connection=self.id, user=self.user, peer=self.peer)
        log.error("frame codec failed", exc_info=error, extra=where)
        self._hang_up(CloseCode.INTERNAL_ERROR, "")

    def pause_reading(self) -> None:
        """Take no more from the client until `resume_reading`; what was read already waits in `inbox`."""
        self.inbox = []
        if self._transport is not None:
            self._transport.underlying_transport.pause_reading()

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
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.resume_reading()

    # -- writing ---------------------------------------------------------------

    def send(self, frame: bytes) -> bool:
        """Write a data frame, or queue it behind what a slow client has not taken.

        Returns: whether it was taken. Never raises, never changes a group: a connection
        over its limits marks itself and is closed after the walk.
        """
        transport = self._transport
        if self.state or transport is None:  # OPEN is 0
            return False
        if self._queue is not None:
            return self._enqueue(self._queue, frame)
        underlying = transport.underlying_transport
        try:
            underlying.write(frame)
        except (OSError, RuntimeError):  # uvloop: the transport was closed under us
            underlying.abort()
        if underlying.is_closing():  # and a write that failed is told in no other way
            self.environment.hub.mark_slow(self)
            return False
        return True

    def _enqueue(self, queue: SendQueue, frame: bytes) -> bool:
        environment = self.environment
        limits = environment.config.limits
        # An empty queue takes any frame: pushes that are too large for it are refused with 413.
        if len(queue) and (
            len(queue) >= limits.send_queue_messages
            or queue.queued_bytes + len(frame) + ENTRY_BYTES > limits.send_queue_bytes
        ):
            environment.hub.mark_slow(self)
            return False
        environment.send_queues.grow(queue.append(frame))
        return True

    @property
    def queued_bytes(self) -> int:
        """Bytes in the send queue."""
        return self._queue.queued_bytes if self._queue is not None else 0

    def pause_writing(self) -> None:
        self._queue = SendQueue()
        self.environment.send_queues.paused[self] = None

    def resume_writing(self) -> None:
        """Write what has waited, until the client is behind again."""
        queue, transport = self._queue, self._transport
        if queue is None or transport is None:
            return
        self._queue = None
        # It has taken something: as good a sign of life as any, and its pong may be far behind.
        self._heard = self.environment.wheel.now
        self._pinged = -1
        send_queues = self.environment.send_queues
        pong = send_queues.paused.pop(self, None)
        if pong is not None and self.state == State.OPEN:
            transport.send_pong(pong)
        underlying = transport.underlying_transport
        while self._queue is None and len(queue) and not underlying.is_closing():
            before = queue.queued_bytes
            data = queue.take(self.environment.config.server.write_buffer_bytes)
            send_queues.shrink(before - queue.queued_bytes)
            underlying.write(data)
        if len(queue):
            self._queue = queue

    # -- time ------------------------------------------------------------------

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
            assert self._transport is not None
            self._transport.send_ping()
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
        self._leave(code)
        transport = self._transport
        if transport is None:
            return
        if code == CloseCode.TRY_AGAIN_LATER:
            self._give_up_queue("slow")
        elif self._queue is not None and len(self._queue):
            # Taken messages come before the close frame; close_timeout_seconds bounds the wait.
            self.environment.send_queues.shrink(self._queue.queued_bytes)
            transport.underlying_transport.write(self._queue.take(self._queue.queued_bytes))
        transport.send_close(code, close_reason(reason))  # type: ignore[arg-type]
        if self.inbox is not None:
            self.inbox = None
            transport.underlying_transport.resume_reading()

    def close_slow(self) -> None:
        """End a connection whose client does not take its messages, or whose last write has failed."""
        if self._transport is not None and self._transport.underlying_transport.is_closing():
            self._abort("write failed")
        else:
            self.close(CloseCode.TRY_AGAIN_LATER, "too slow")

    def _leave(self, code: int) -> None:
        """Enter CLOSING: nothing is sent to this connection any more but its close frame."""
        environment = self.environment
        self.state = State.CLOSING
        self.close_code = code
        environment.hub.leave(self)
        self._close_due = environment.wheel.now + environment.connection_ticks.close_timeout
        environment.wheel.schedule(self, self._close_due)

    def _give_up_queue(self, reason: str) -> None:
        queue, self._queue = self._queue, None
        environment = self.environment
        environment.send_queues.paused.pop(self, None)
        if queue is not None and len(queue):
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
            self._transport.disconnect(graceful=False)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """The TCP connection is gone: forget everything about it, whatever the way."""
        environment = self.environment
        if self.state == State.OPEN:
            self._leave(1006)
        self.state = State.CLOSED
        environment.wheel.cancel(self)
        environment.connections.discard(self)
        environment.counters.closes += 1
        self._give_up_queue("lost")
        self._transport = None
        self._reader = None
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


class _Protocol(WSProtocol):  # type: ignore[misc]
    """picows' protocol, with bounded reads, and told of what it keeps to itself. Nothing is added to its size."""

    __slots__ = ()

    def get_buffer(self, size_hint: int) -> memoryview:
        return WSProtocol.get_buffer(self, size_hint)[:_READ_BYTES]  # type: ignore[no-any-return]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            WSProtocol.buffer_updated(self, nbytes)
        except ProtocolViolation as violation:
            self.listener.on_violation(violation)
        except Exception as error:  # noqa: BLE001 - it is logged there
            self.listener.on_failure(error)

    def eof_received(self) -> bool:
        self.listener.on_end_of_file()
        return False


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


class _Reports:
    """What picows takes for its logger: it raises what picows would act upon.

    A standard Logger would make picows create a child logger a connection.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        return False

    def error(self, text: str, *args: Any) -> None:
        if args and isinstance(args[0], tuple):
            # error("WS parser error: %s, initiate disconnect", (close code, reason))
            code, reason = args[0]
            raise ProtocolViolation(CloseCode(int(code)), reason)
        raise RuntimeError(text % args)

    def exception(self, text: str, *args: Any) -> None:
        raise RuntimeError(text % args)

    def warning(self, text: str, *args: Any) -> None:
        log.warning("frame codec", extra=fields(reason=text % args))

    def debug(self, text: str, *args: Any) -> None: ...

    def info(self, text: str, *args: Any) -> None: ...


_REPORTS = _Reports()
