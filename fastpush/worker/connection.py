"""One open WebSocket: a client's frames in, messages to the application, frames out.

States, and every transition (a connection only ever moves down):

    OPEN      handed over, reading and writing
      │ close(), a rule broken, the client's close frame, a slow client
    CLOSING   out of all groups; close frame sent; waits for the client's, at most
      │       close_timeout_seconds
    CLOSED    the TCP connection is gone, by whatever way

A connection is the transport's protocol itself, borrows a codec for what it reads (worker/codec.py), and calls its
application, one call after the other (worker/inbox.py). How it sends is in worker/sending.py.
Every violation takes one way: out of all groups, what was queued, a close frame with the
reason, our end of the TCP connection closed, and whatever still comes is read and forgotten
(RFC 6455, 7.1.7). Closed at once instead, bytes that are under way would be answered by
a reset, on which some systems throw the close frame away.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from fastpush.applications.interface import Request
from fastpush.errors import CloseCode, ConnectionClosed, ProtocolViolation
from fastpush.fanout import DEFLATE
from fastpush.log import fields
from fastpush.protocol.bus import Position, connection_number
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
from fastpush.protocol.push import channel_of, is_channel_key
from fastpush.state.rate import TokenBucket
from fastpush.worker.inbox import Inbox, timed
from fastpush.worker.sending import Sender
from fastpush.worker.timers import TICK_SECONDS, ticks
from fastpush.worker.tls import TlsTransport

if TYPE_CHECKING:
    from fastpush.fanout import Group
    from fastpush.worker.codec import Codec
    from fastpush.worker.environment import Environment
    from fastpush.worker.membership import Standing
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.connection")

FORGOTTEN = memoryview(bytearray(65536))  # where bytes go that nobody reads
HEARTBEAT_FRAME = text_frame(b"heartbeat")
_PING = ping_frame()
_TURN_MESSAGES = 64  # handed over before others have their turn
_NO_CLOSE_FRAME = 1006
_CLOSE, _PING_OPCODE, _PONG = int(Opcode.CLOSE), int(Opcode.PING), int(Opcode.PONG)


class State(IntEnum):
    """Where a connection is in its life."""

    OPEN = 0
    CLOSING = 1
    CLOSED = 2


class Connection(Sender):
    """An open WebSocket.

    user: "" until the first registration.  groups: owned by the hub.  data: its application's.
    mount: where its application is.  inbox: while that is busy.
    standing: its presence and claims on this host (worker/membership.py).
    admitted: names that it is counted by on this host (worker/admission.py).
    unregistered: says how a connection is closed that has to register and does not; None: it need not.
    heartbeat_ticks: 0 for none.  expires_at: unix seconds, when the user's token ends.
    """

    __slots__ = (
        "_close_due",
        "_codec",
        "_heard",
        "_heartbeat_due",
        "_opened",
        "_pinged",
        "_rate",
        "_reader",
        "_user",
        "admitted",
        "close_code",
        "data",
        "due",
        "expires_at",
        "failure",
        "headers",
        "heartbeat_ticks",
        "inbox",
        "serial",
        "standing",
        "state",
        "unregistered",
        "wants_confirm",
    )

    unannounced: ClassVar[tuple[str, str]] = ("no close frame", "network")
    """Why its client has ended the TCP connection without a word, and who has: see insight.Note."""

    def __init__(self, environment: "Environment", mount: "Mount", peer: str, headers: Mapping[str, str]) -> None:
        self.environment = environment
        self.mount = mount
        self.peer = peer
        self.headers = headers
        self.serial = next(environment.serials)
        self.state = State.OPEN
        self._user = ""
        self.groups: tuple[Group, ...] = ()
        self.admitted: tuple[bytes, ...] = ()
        self.form = mount.form
        self.wants_confirm = False
        self.heartbeat_ticks = 0
        self.unregistered: Callable[[Any], tuple[int, str]] | None = None
        self.expires_at: float | None = None
        self.failure: Exception | None = None
        self.data: Any = None
        self.inbox: Inbox | None = None
        self.standing: Standing | None = None
        self.close_code = 0
        self.due = -1
        self._transport = self.writable = self._queue = self._room = None
        self.descriptor = -1
        self.worst_queued_bytes = 0
        self._codec: Codec | None = None  # while a frame is incomplete
        self._reader: MessageReader | None = None
        self._rate: TokenBucket | None = None  # of the client's messages, from the first on
        self._opened = self._heard = environment.wheel.now
        self._pinged = -1  # tick of a ping that waits for any sign of life
        self._heartbeat_due = self._close_due = 0

    @property
    def id(self) -> str:
        """Unique among all connections of all workers (S0-17)."""
        return f"{self.environment.id_prefix}{self.serial:012x}"

    @property
    def user(self) -> str:
        """Whose it is; "" until that is known. It stays the same once the connection has joined anything."""
        return self._user

    @user.setter
    def user(self, user: str) -> None:
        if self.groups and user != self._user:
            raise AttributeError("the user of a connection cannot be changed: its token says who it is")
        is_first = user and not self._user and self.is_open  # one that has ended would be noted as open for ever
        self._user = user
        if is_first:
            self.environment.notebook.opened(self)

    # -- opening ---------------------------------------------------------------

    def take_over(self, transport: asyncio.Transport, key: str, extensions: str | None = None) -> None:
        """Answer the checked handshake with 101 and own `transport` from now on.

        key: Sec-WebSocket-Key.  extensions: the answer to those that the client offers.
        """
        if extensions is not None:
            self.form |= DEFLATE
        self._own(transport, handshake_response(key, extensions))

    def _own(self, transport: asyncio.Transport, answer: bytes) -> None:
        """Own `transport` from now on, and answer the request."""
        self._transport = transport
        if not isinstance(transport, TlsTransport):
            self.writable = transport
            self.descriptor = transport.get_extra_info("socket").fileno()
        transport.set_protocol(self)
        transport.set_write_buffer_limits(0)
        if transport.get_write_buffer_size() and self._queue is None:
            self.pause_writing()  # paused before the upgrade, by answers that the client has not read
        environment = self.environment
        environment.connections[self.serial] = self
        environment.counters.handshakes_upgraded += 1
        self._write(answer)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("connection opened", extra=fields(connection=self.id, peer=self.peer, worker=environment.number))

    def open(self, request: Request) -> None:
        """Tell the application; the client has been answered, and has joined what it joins by opening."""
        mount = self.mount
        if mount.heartbeat_seconds:
            self.start_heartbeat(mount.heartbeat_seconds)
        if mount.hears_open:
            self._call(mount.application.on_open, request)
        if self.state == State.OPEN:
            self.plan()

    def read(self, unread: bytes) -> None:
        """Take bytes that came behind the request."""
        if unread:
            self._feed(memoryview(unread))

    @property
    def number(self) -> int:
        """What the broker knows it by."""
        return connection_number(self.environment.number, self.serial)

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it is in."""
        return tuple(channel_of(group.key) for group in self.groups if is_channel_key(group.key))

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        return self.state == State.OPEN

    # -- reading ---------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.mount.codecs.space

    def buffer_updated(self, nbytes: int) -> None:
        self._feed(self.mount.codecs.space[:nbytes])

    def _feed(self, received: memoryview) -> None:
        codecs = self.mount.codecs
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
        if self._pinged >= 0 or not self.mount.counts_pings:  # where they are counted, only an answer puts the next off
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
            limits = self.mount.limits
            reader = self._reader = MessageReader(
                limits.message_bytes, limits.message_fragments, deflate=bool(self.form & DEFLATE)
            )
        message = reader.feed(opcode, fin, rsv1, payload)
        if message is not None:
            self.environment.counters.messages_received += 1
            if not self._is_within_rate():
                self.close(CloseCode.POLICY_VIOLATION, "message rate")
            elif self.inbox is not None:
                self._hold(self.inbox, message)
            else:
                self._call(self.mount.application.on_message, message)

    def _is_within_rate(self) -> bool:
        most = self.mount.limits.messages_per_second
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

    def _on_ping(self, payload: bytes) -> None:
        if self._queue is None:
            self._write(pong_frame(payload))
        else:  # not written: who pings and never reads must not fill our memory with pongs
            self.environment.send_queues.paused[self] = payload

    def _on_close_frame(self, payload: bytes) -> None:
        """Answer with the same code and no reason, an empty one with an empty one, and end the connection."""
        code, reason = close_payload(payload)
        self._leave(code or 1005, reason, "client")
        self._give_up_queue("lost")
        self._write(close_frame(code))
        self._transport.close()

    def eof_received(self) -> bool:
        """The client has closed its end of the TCP connection: without a close frame it is gone."""
        if self.state == State.OPEN:
            self._leave(_NO_CLOSE_FRAME, *self.unannounced)
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

    # -- the application ---------------------------------------------------------

    def _call(self, handler: Callable[..., Any], *arguments: object) -> None:
        """Call the application, which is not busy with this connection; a coroutine goes on in a task."""
        awaited = self._begin(handler, *arguments)
        if awaited is not None:
            inbox = self.inbox = Inbox()
            self.environment.spawn(self._work(inbox, awaited))

    def _begin(self, handler: Callable[..., Any], *arguments: object) -> Awaitable[Any] | None:
        """Call the application; return what there is to wait for."""
        began = perf_counter()
        try:
            result = handler(self, *arguments)
        except Exception as error:  # noqa: BLE001 - whatever an application raises
            return self._fail_call(error)
        finally:
            self.mount.observe(perf_counter() - began)
        return result if result is not None and hasattr(result, "__await__") else None

    async def _work(self, inbox: Inbox, awaited: Awaitable[Any] | None) -> None:
        """Wait for what the application has begun, then hand over what came meanwhile."""
        while awaited is not None:
            error = await self._outcome(inbox, awaited)
            failure = None if error is None else self._fail_call(error)
            awaited = self._next_call(inbox) if failure is None else failure

    async def _outcome(self, inbox: Inbox, awaited: Awaitable[Any]) -> Exception | None:
        """Wait for a call, once the connection has ended at most close_timeout_seconds; return what it has raised."""
        seconds = None if self.state == State.OPEN else self.mount.connections.close_timeout_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                inbox.limit = limit
                await timed(awaited, self.mount.observe)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the worker ends
                if self.state == State.OPEN:
                    raise
                inbox.clear()
                return None
            error = RuntimeError("what the handler waited for was cancelled")
            error.__cause__ = cancelled
            return error
        except Exception as error:  # noqa: BLE001 - whatever an application raises
            if not limit.expired():
                return error
            inbox.clear()  # or each message that waits might take as long
            log.warning("handler cancelled", extra=fields(connection=self.id, user=self.user, path=self.mount.path))
        finally:
            inbox.limit = None
        return None

    def _next_call(self, inbox: Inbox) -> Awaitable[Any] | None:
        for _ in range(_TURN_MESSAGES):
            if not len(inbox):
                break
            awaited = self._begin(self.mount.application.on_message, inbox.take())
            if inbox.is_paused and inbox.has_room(self.mount.limits):
                self._resume_reading(inbox)
            if awaited is not None:
                return awaited
        if len(inbox):
            return asyncio.sleep(0)
        self.inbox = None
        close, inbox.close = inbox.close, None
        return None if close is None else self._begin(self.mount.application.on_close, *close)

    def _hold(self, inbox: Inbox, message: str | bytes) -> None:
        inbox.add(message)
        if not inbox.is_paused and inbox.is_full(self.mount.limits):
            inbox.is_paused = True
            self.environment.counters.receive_pauses += 1
            self._transport.pause_reading()
        elif inbox.is_overfull(self.mount.limits):
            self.close(CloseCode.MESSAGE_TOO_BIG, "more than may wait")

    def _resume_reading(self, inbox: Inbox) -> None:
        inbox.is_paused = False
        self.on_sign_of_life()  # a pong may be among what has not been read yet
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _fail_call(self, error: Exception) -> Awaitable[Any] | None:
        """Close for a failure of the application; return what its `on_error` waits for."""
        if isinstance(error, ConnectionClosed) and self.state != State.OPEN:
            return None  # the client was faster
        self.environment.counters.handler_errors += 1
        told = fields(connection=self.id, user=self.user, peer=self.peer, path=self.mount.path)
        log.error("handler failed", exc_info=error, extra=told)
        if self.inbox is not None:
            self.inbox.clear()
        try:
            awaited = self.mount.application.on_error(self, error)
        except Exception:
            self.environment.counters.handler_errors += 1
            log.exception("on_error failed", extra=told)
            awaited = None
        self.close(CloseCode.INTERNAL_ERROR, "")
        return None if awaited is None else self._guard(awaited)

    async def _guard(self, awaited: Awaitable[Any]) -> None:
        try:
            await awaited
        except Exception:
            self.environment.counters.handler_errors += 1
            log.exception("on_error failed", extra=fields(connection=self.id, user=self.user, path=self.mount.path))

    def _end_calls(self, code: int, reason: str) -> None:
        """Have `on_close` called behind all other calls; each of these has a while to end."""
        if self.inbox is not None:
            self.inbox.end(code, reason, self.mount.connections.close_timeout_seconds)
        elif self.mount.hears_close:
            asyncio.get_running_loop().call_soon(self._end_call, code, reason)

    def _end_call(self, code: int, reason: str) -> None:
        if self.inbox is None:
            self._call(self.mount.application.on_close, code, reason)
        else:  # its `on_error` has begun meanwhile
            self.inbox.close = (code, reason)

    # -- time ------------------------------------------------------------------

    def renew(self) -> None:
        """Go by limits and times that have changed."""
        if self.state == State.OPEN:
            limits = self.mount.limits
            self._rate = None
            if self._reader is not None:
                self._reader.limit(limits.message_bytes, limits.message_fragments)
            self.plan()

    def plan(self) -> None:
        """Ask to be called when the next deadline comes; call it when a deadline was added."""
        self.environment.wheel.schedule(self, self._next_due(self.environment.wheel.now))

    def start_heartbeat(self, seconds: float) -> None:
        """Send a text heartbeat now and every `seconds`, for clients that cannot see pings."""
        if self.state != State.OPEN:
            raise ConnectionClosed
        if seconds <= 0:
            raise ValueError(f"seconds must be more than 0, found {seconds}")
        self.beat_every(seconds)
        self.send_frame(HEARTBEAT_FRAME)
        self.plan()

    def send_ping(self) -> None:
        """Send a WebSocket ping, whatever is queued."""
        self._write(_PING)

    def send_lines(self, lines: bytes, positions: Mapping[bytes, Position] | None = None) -> bool:
        """Send replies and pushes of the client protocol, a line each.

        positions: where its client stands in channels behind them; one that speaks the protocol knows that itself.
        """
        return self.send_frame(text_frame(lines))

    def beat_every(self, seconds: float) -> None:
        """Send a text heartbeat after `seconds`, and so on."""
        self.heartbeat_ticks = ticks(seconds)
        self._heartbeat_due = self.environment.wheel.now + self.heartbeat_ticks

    def on_sign_of_life(self) -> None:
        """The client has taken something: as good a sign of life as any, and its pong may be far behind."""
        self._heard = self.environment.wheel.now
        self._pinged = -1

    def on_timer(self, now: int) -> int | None:
        """Do what is due; see TimerWheel."""
        if self.state != State.OPEN:
            if now < self._close_due:
                return self._close_due
            self._abort("close time-out")
            return None
        times = self.mount.times
        ending = self._ending(now)
        if ending is not None:
            self.close(*ending)
            return self._close_due
        if self._pinged >= 0:
            if now >= self._pinged + times.pong_timeout:
                if self._queue is not None or self.inbox is None or not self.inbox.is_paused:
                    self._abort("pong time-out")
                    return None
                self.on_sign_of_life()  # it takes what it is sent, and its pong has not been read
        elif now >= self._heard + times.ping_interval:
            self._pinged = now
            self.mount.ping(self)
        if self.heartbeat_ticks and now >= self._heartbeat_due:
            self._heartbeat_due = now + self.heartbeat_ticks
            if self.has_room:
                self.send_frame(HEARTBEAT_FRAME)
        return self._next_due(now)

    def _ending(self, now: int) -> tuple[int, str] | None:
        """Return why it has to be closed now, if it has to."""
        times = self.mount.times
        if self.unregistered is not None and not self.groups:
            if now >= self._opened + times.register_timeout:
                return self.unregistered(self)
        elif self.expires_at is not None and self.environment.clock() >= self.expires_at:
            return CloseCode.TOKEN_EXPIRED, "token expired"
        if times.write_timeout and self._queue is not None and now >= self._queue.since + times.write_timeout:
            return CloseCode.TRY_AGAIN_LATER, "too slow"
        return None

    def _next_due(self, now: int) -> int:
        times = self.mount.times
        due = self._pinged + times.pong_timeout if self._pinged >= 0 else self._heard + times.ping_interval
        if self.unregistered is not None and not self.groups:
            due = min(due, self._opened + times.register_timeout)
        if self.heartbeat_ticks:
            due = min(due, self._heartbeat_due)
        if times.write_timeout and self._queue is not None:
            due = min(due, self._queue.since + times.write_timeout)
        if self.expires_at is not None:
            seconds = self.expires_at - self.environment.clock()
            due = min(due, now + ticks(max(seconds, TICK_SECONDS)))
        return due

    # -- closing ---------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "", by: str = "server") -> None:
        """Leave all groups, send a close frame behind what was queued, wait for the client's; again does nothing.

        by: see insight.Note.
        """
        if self.state != State.OPEN:
            return
        told = self.mount.application.close_codes.get(code, (code, reason))
        last = self._farewell(*told)  # first of all: it refuses what an application may not send
        self.environment.notebook.closed(self, *told, by)
        if code != CloseCode.TRY_AGAIN_LATER:
            self.environment.hub.leave(self)  # while it still takes what is on its way to it
        self._leave(code, reason)
        transport = self._transport
        if transport is None:
            return
        if code == CloseCode.TRY_AGAIN_LATER:
            self._give_up_queue("slow")
        elif self._queue is not None and self._queue.queued_bytes:
            # Taken messages come before the close frame; close_timeout_seconds bounds the wait.
            self.environment.send_queues.shrink(self._queue.queued_bytes)
            self._write(self._to_write(self._queue.take(sys.maxsize)))
        self._write(last)
        if self.inbox is not None:
            if code != CloseCode.SERVICE_RESTART:
                self.inbox.clear()
            if self.inbox.is_paused:
                self._resume_reading(self.inbox)  # its close frame is waited for

    def _farewell(self, code: int, reason: str) -> bytes:
        """Return what is written at the end."""
        return close_frame(code, reason)

    def close_slow(self) -> None:
        """End a connection whose client does not take its messages, or whose last write has failed."""
        if self._transport is not None and self._transport.is_closing():
            self._abort("write failed")
        else:
            self.close(CloseCode.TRY_AGAIN_LATER, "too slow")

    def _leave(self, code: int, reason: str = "", by: str = "") -> None:
        """Enter CLOSING: nothing is sent to this connection any more but its close frame.

        by: who has ended it, where that is not noted yet.
        """
        environment = self.environment
        if by:
            environment.notebook.closed(self, code, reason, by)
        self.state = State.CLOSING
        self.writable = None
        self.close_code = code
        environment.hub.leave(self)
        if self.standing is not None:
            self.standing.give_up(self)
        self._tell_of_room()
        self._end_calls(code, "" if code == _NO_CLOSE_FRAME else reason)  # only operators hear why
        self._close_due = environment.wheel.now + self.mount.times.close_timeout
        environment.wheel.schedule(self, self._close_due)

    def _abort(self, reason: str) -> None:
        if self.state == State.OPEN:
            self._leave(_NO_CLOSE_FRAME, reason, "server")
        log.debug("aborted", extra=fields(connection=self.id, reason=reason))
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone: forget everything about it, whatever the way."""
        environment = self.environment
        if self.state == State.OPEN:
            error = getattr(exc, "strerror", None)
            self._leave(_NO_CLOSE_FRAME, *((error, "network") if error else self.unannounced))
        self.state = State.CLOSED
        environment.wheel.cancel(self)
        environment.connections.pop(self.serial, None)
        if self.admitted:
            environment.release(self.admitted)
        environment.counters.closes += 1
        self._give_up_queue("lost")
        if self._codec is not None:
            self._codec.discard()
        self._transport = self.writable = self._reader = self._codec = None
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

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return FORGOTTEN

    def buffer_updated(self, nbytes: int) -> None: ...

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
