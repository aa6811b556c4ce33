"""A client's TCP connection before it is a WebSocket: every request goes to whoever serves it.

This is the first code to see a client's bytes. They are held until a request head is
complete (bounded by head_bytes and head_seconds), then

    a WebSocket path   worker/upgrade.py checks it and picows takes the connection over
    an event stream    worker/stream_request.py, and a connection of another kind
    POST /push         answered here: the lean path, no task and no framework; so are publish and broadcast of /api
    anything else      aiohttp, through a Window that gives the connection back

One request at a time: what comes meanwhile is held, at most HELD_BYTES, then reading
is paused. So replies keep the order of pipelined requests. While a client does not read
its replies, no further request of it is served.

    HEAD ──► BODY ──► BUSY ──► HEAD …          lean push
      ├────► WINDOW ─────────► HEAD …          aiohttp
      ├────► BUSY ──► GONE                     picows owns the transport
      └────► LINGER ──► GONE                   refused

A refused client may still be sending. Closing at once would answer that with a reset,
which can overtake the refusal: so only our side is closed, and what still comes is
thrown away (LINGER) until the client closes too, at most LINGER_SECONDS.
"""

import asyncio
import logging
from enum import IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from fastpush import errors
from fastpush.applications.push import NO_HEADERS
from fastpush.child import ListenerRole
from fastpush.errors import RequestError
from fastpush.http.head import HEAD_END, Head, bad_request, parse_head
from fastpush.http.proxies import host_of, peer_text
from fastpush.http.push import Outcome, Reply, internal_error, outcome_name, push_key_missing, render, wants_json
from fastpush.http.window import Window
from fastpush.log import fields
from fastpush.worker.overload import OVERLOADED
from fastpush.worker.timers import ticks

if TYPE_CHECKING:
    from fastpush.worker.mount import Mount
    from fastpush.worker.services import Services

log = logging.getLogger("fastpush.http")

HELD_BYTES = 65536  # bounds the body of a lean push too: bytes that trickle are joined again and again
LINGER_SECONDS = 2
_REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 413: b"Content Too Large", 426: b"Upgrade Required",
    429: b"Too Many Requests", 431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
    503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class Stage(IntEnum):
    """What the connection waits for."""

    HEAD = 0  # a request head
    BODY = 1  # the body of a lean push
    BUSY = 2  # an answer of ours
    WINDOW = 3  # aiohttp
    LINGER = 4  # the client, to close what we have closed
    GONE = 5  # closed, or handed over


HEAD, BODY, BUSY, WINDOW, LINGER, GONE = Stage  # by short names: they are compared several times a push


class HttpConnection(asyncio.Protocol):
    """A client's connection while it speaks HTTP.

    role: which paths its listener serves.  is_tls: whether that speaks TLS.  due: see TimerWheel.
    _request_id: of the request that _head belongs to.
    _active: tick since which the client is waited for.  _stuck: it does not read its replies.
    _is_partial: a head has begun.  _last: the end is near, for we drain or the client has sent all it had.
    """

    __slots__ = (
        "_active",
        "_draining",
        "_head",
        "_held",
        "_is_partial",
        "_last",
        "_paused",
        "_peer",
        "_request_id",
        "_services",
        "_stage",
        "_stuck",
        "_window",
        "due",
        "is_tls",
        "role",
        "transport",
    )

    def __init__(self, services: "Services", role: ListenerRole, *, is_tls: bool = False) -> None:
        self._services = services
        self.role = role
        self.is_tls = is_tls
        self.due = -1
        self._peer: str | None = None
        self.transport: asyncio.Transport | None = None
        self._stage = HEAD
        self._held = b""
        self._head: Head | None = None
        self._request_id = ""
        self._window: Window | None = None
        self._is_partial = self._paused = self._stuck = self._last = self._draining = False

    # -- the transport's side ----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self._services
        environment = services.environment
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        services.http_connections.add(self)
        if services.overload.is_draining:
            self.retire()
        environment.counters.accepted += 1
        if log.isEnabledFor(logging.DEBUG):
            log.debug("accepted", extra=fields(peer=self.peer, worker=environment.number))
        wheel = environment.wheel
        self._active = wheel.now
        wheel.schedule(self, wheel.now + environment.head_ticks)

    @property
    def peer(self) -> str:
        """The client as logs show it: address:port, or the address that a trusted proxy has named."""
        if self._peer is None:  # asked for by requests, not by each connection that a flood makes
            peer = None if self.transport is None else self.transport.get_extra_info("peername")
            self._peer = peer_text(peer[0], peer[1]) if peer else ""
        return self._peer

    @property
    def local_host(self) -> str:
        """The address of this host that the client has connected to."""
        own = None if self.transport is None else self.transport.get_extra_info("sockname")
        return str(own[0]) if own else ""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._window is not None:
            self._window.lost(exc)
        self._forget()

    def _forget(self) -> None:
        self._stage = GONE
        self._held = b""
        self._head = self._window = None
        self._services.environment.wheel.cancel(self)
        self._services.http_connections.discard(self)

    def pause_writing(self) -> None:
        self._stuck = True
        if self._window is not None:
            self._window.pause_writing()

    def resume_writing(self) -> None:
        self._stuck = False
        if self._window is not None:
            self._window.resume_writing()
        elif self._held:
            self._services.call_soon(self._advance)

    def data_received(self, data: bytes) -> None:
        if self._stage > BODY:
            self._hold(data)
            return
        self._held = self._held + data if self._held else data
        self._advance()

    def _hold(self, data: bytes) -> None:
        """Keep what comes while a request is being answered, or give aiohttp its share."""
        if self._stage >= LINGER:
            return
        if self._window is not None and not self._held:
            data = self._feed(self._window, data)
        self._held += data
        self._switch_reading()

    def _switch_reading(self) -> None:
        """Read no more while enough is held, or while aiohttp has enough of the body."""
        enough = len(self._held) > HELD_BYTES or (self._window is not None and self._window.is_full)
        if enough != self._paused and self.transport is not None and self._stage < GONE:
            self._paused = enough
            if enough:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def eof_received(self) -> bool:
        """Keep the connection, by True, for what a client that only reads now is still to be answered."""
        is_incomplete = self._window is not None and not self._window.is_complete
        wants_websocket = self._head is not None and self._head.wants_websocket
        if self._stage >= LINGER or is_incomplete or wants_websocket:
            return False
        if self._stage <= BODY:
            if not self._held:
                return False
            self._services.call_soon(self._advance)
        self._last = True
        if self._window is not None and not self._held:
            self._window.keep_alive = False
        return True

    def on_timer(self, now: int) -> int | None:
        """Give up on a client that is waited for too long: for a request, or to read an answer."""
        timeout = self._services.environment.head_ticks
        due = self._active + timeout
        if now < due and self._stage != LINGER:
            return due
        if self._stuck or self._stage >= LINGER:
            self.abort()
        elif self._stage == WINDOW and self._window is not None and not self._window.is_complete:
            self._drop_window(self._window, _too_slow())
        elif self._stage > BODY:
            return now + timeout  # our own answer, which has deadlines of its own
        elif self._is_partial or self._stage == BODY:
            self._refuse(_too_slow())
        else:
            self._close(linger=False)
        return now + timeout if self.due < 0 else None

    def _feed(self, window: Window, data: bytes) -> bytes:
        try:
            return window.feed(data)
        except RequestError as error:
            self._services.environment.counters.http_errors += 1
            self._drop_window(window, error)
            return b""

    def _drop_window(self, window: Window, error: RequestError) -> None:
        """Give up on a request whose body does not come, or is none."""
        self._window = None
        window.lost(None)
        if window.has_answered:
            self._close(linger=True)
        else:
            self._refuse(error)

    # -- one request after the other ---------------------------------------------

    def _advance(self) -> None:
        """Serve from what is held until something has to be waited for."""
        try:
            while self._stage <= BODY and not self._stuck:
                if not (self._take_head() if self._stage == HEAD else self._take_body()):
                    break
        except RequestError as error:
            self._services.environment.counters.http_errors += 1
            self._refuse(error)
            return
        if self._paused or len(self._held) > HELD_BYTES:
            self._switch_reading()
        if self._last and self._stage <= BODY and not (self._stuck or self._draining):
            self._close(linger=False)

    def _take_head(self) -> bool:
        """Dispatch the next request; False when its head is not complete."""
        held = self._held.lstrip(b"\r\n") if self._held[:1] in b"\r\n" else self._held
        end = held.find(HEAD_END) + len(HEAD_END)
        most = self._services.environment.config.server.head_bytes
        if end < len(HEAD_END) or end > most:
            self._held = held
            self._wait_for_head(most)
            return False
        self._active = self._services.environment.wheel.now
        self._is_partial = False
        data = held if end == len(held) else held[:end]
        self._held = held[end:]
        services = self._services
        if data.startswith(services.handshake_starts) and self.role != "api":
            overloaded = services.overload.outcome(services.now())
            if overloaded:
                self._turn_away(overloaded, data)
                return False
        self._dispatch(parse_head(data), data)
        return True

    def _turn_away(self, outcome: str, data: bytes) -> None:
        """Refuse a handshake at the least cost: the worker is overloaded."""
        services = self._services
        services.environment.counters.count_handshake(outcome)
        services.refusals.count(outcome)
        services.environment.notebook.refused(OVERLOADED[outcome], OVERLOADED[outcome].status, "", self.peer)
        head, body = _TURNED_AWAY[outcome]
        self.transport.write(head + services.request_ids.of_head(data).encode() + body)  # type: ignore[union-attr]
        self._close(linger=bool(self._held))

    def _wait_for_head(self, most: int) -> None:
        """Check what there is of a head. Raises: RequestError, when it cannot become one."""
        held = self._held
        if len(held) > most:
            reason = f"request head is larger than {most} bytes"
            raise RequestError(431, "head_too_large", reason, text="head too large")
        if held.count(b"\n") != held.count(b"\r\n"):
            raise bad_request("a line ends without carriage return")
        if held and not self._is_partial:
            self._is_partial = True
            self._active = self._services.environment.wheel.now

    def _dispatch(self, head: Head, data: bytes) -> None:
        services = self._services
        self._head = head
        self._request_id = services.request_ids.of(head.headers)
        refusal = services.guard.refusal(head.headers, is_tls=self.is_tls)
        if refusal is not None:
            self._refuse(refusal, as_json=wants_json(head.headers, head.path))
        elif (mount := services.mounts.get(head.path)) is not None and self.role in mount.roles:
            self._upgrade(head, mount)
        elif self.role == "public":
            self._refuse(errors.not_found(head.path), as_json=True)
        elif (
            head.path in services.lean
            and head.method == "POST"
            and head.content_length is not None
            and head.content_length <= services.lean_body_bytes
            and "expect" not in head.headers
            and "content-encoding" not in head.headers
            and services.push_auth_is_sync
        ):
            self._stage = BODY
        else:
            self._open_window(head, data)

    def _take_body(self) -> bool:
        """Push, once the body is complete; False when it is not."""
        head = self._head
        assert head is not None
        size = head.content_length or 0
        held = self._held
        if len(held) < size:
            return False
        body = held if len(held) == size else held[:size]
        self._held = held[size:]
        self._stage = BUSY
        services = self._services
        try:
            if services.push_auth.authorize(head.headers):
                services.lean[head.path](body, self._on_outcome, head.headers)
            else:
                self._on_outcome(push_key_missing())
        except RequestError as error:
            self._on_outcome(error)
        except Exception as error:
            log.exception("push failed", extra=fields(peer=self.peer, request_id=self._request_id))
            self._on_outcome(internal_error(error))
        return True

    def _on_outcome(self, outcome: Outcome | Reply | RequestError) -> None:
        head = self._head
        if head is None or self._stage != BUSY:
            return  # the client is gone
        if isinstance(outcome, Reply):
            if outcome.status == HTTPStatus.OK and head.keep_alive and not self._last:
                self._go_on(self._services.json_reply(outcome.body, self._request_id))
            else:
                self._reply(outcome, keep_alive=head.keep_alive)
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("push", extra=fields(request_id=self._request_id, outcome=outcome_name(outcome)))
        if outcome.__class__ is Outcome and head.keep_alive and not self._last and not wants_json(head.headers):
            # The usual reply of a back-end's kept-alive connection: one write of bytes made once a second.
            self._go_on(self._services.sent_reply(outcome, self._request_id))
            return
        if isinstance(outcome, RequestError):
            self._log_refusal(outcome)
        self._reply(render(outcome, as_json=wants_json(head.headers, head.path)), keep_alive=head.keep_alive)

    def _go_on(self, reply: bytes) -> None:
        """Write a whole reply of a connection that is kept, and take the next request."""
        self.transport.write(reply)  # type: ignore[union-attr]
        self._head = None
        self._stage = HEAD
        if self._held:
            self._services.call_soon(self._advance)

    def _upgrade(self, head: Head, mount: "Mount") -> None:
        self._stage = BUSY
        services = self._services
        address = host_of(self.peer)
        if services.trusted_proxies:
            self._peer = address = services.trusted_proxies.client(address, head.headers)
        mount.request_class(services, self, head, address).begin()

    def _open_window(self, head: Head, data: bytes) -> None:
        assert self.transport is not None
        size = None if head.is_chunked else head.content_length or 0
        self._stage = WINDOW
        self._window = window = self._services.app.open_window(
            self.transport, size, self._request_id, self._on_window_done, self._switch_reading
        )
        if self._is_last(keep_alive=head.keep_alive):
            window.keep_alive = False
        window.open(data)
        if self._held:
            held, self._held = self._held, b""
            self._held = self._feed(window, held)

    def _on_window_done(self, window: Window) -> None:
        self._window = None
        if self._stage == WINDOW:
            self._finish(keep_alive=window.keep_alive and window.has_clear_end, linger=not window.has_clear_end)

    # -- answering -----------------------------------------------------------------

    @property
    def request_id(self) -> str:
        """Names the request under way; what could not be parsed is told by a new one."""
        if self._head is None:
            return self._services.request_ids.new()
        return self._request_id

    def _refuse(self, error: RequestError, *, as_json: bool = False) -> None:
        """Answer, say so in the log, and close: nobody knows where the next request begins, or nobody cares."""
        self._log_refusal(error)
        self._answer_last(error, as_json=as_json)

    def refuse_upgrade(self, error: RequestError) -> None:
        """Answer a WebSocket request that is not granted, and close."""
        self._answer_last(error)

    def _answer_last(self, error: RequestError, *, as_json: bool = False) -> None:
        linger = self._head is None or self._head.has_body or bool(self._held)
        self._reply(render(error, as_json=as_json), keep_alive=False, linger=linger)

    def _log_refusal(self, error: RequestError) -> None:
        head = self._head
        path, headers = ("", NO_HEADERS) if head is None else (head.path, head.headers)
        self._services.log_refusal(error, self.request_id, self.peer, path, headers)

    def _reply(self, reply: Reply, *, keep_alive: bool, linger: bool = False) -> None:
        if self.transport is None or self._stage >= LINGER:
            return
        is_last = self._is_last(keep_alive=keep_alive)
        is_wanted = self._head is None or self._head.method != "HEAD"
        head = _reply_start(reply, keep_alive=not is_last, date=self._services.date_header())
        head += self.request_id.encode() + HEAD_END
        self.transport.write(head + reply.body if is_wanted else head)
        self._finish(keep_alive=not is_last, linger=linger)

    def _is_last(self, *, keep_alive: bool) -> bool:
        """Whether no other request is served after the one under way."""
        return not keep_alive or (self._last and (self._draining or not self._held))

    def _finish(self, *, keep_alive: bool, linger: bool = False) -> None:
        """Go on to the next request, or close."""
        if self._is_last(keep_alive=keep_alive):
            self._close(linger=linger)
            return
        self._head = None
        self._stage = HEAD
        self._active = self._services.environment.wheel.now
        if self._held:
            self._services.call_soon(self._advance)
        elif self._paused:
            self._switch_reading()

    def _close(self, *, linger: bool) -> None:
        """Write what is left and close; `linger`: the client may be sending still."""
        self._head = None
        self._held = b""
        transport, wheel = self.transport, self._services.environment.wheel
        if transport is None:
            return
        self._active = wheel.now
        if linger and not self._last:
            self._stage = LINGER
            self._switch_reading()
            transport.write_eof()
            wheel.schedule(self, wheel.now + ticks(LINGER_SECONDS))
        else:
            self._stage = GONE
            transport.close()

    def abort(self) -> None:
        """Give up on a request that nobody can answer."""
        self._stage = GONE
        if self.transport is not None:
            self.transport.abort()

    def hand_over(self) -> tuple[asyncio.Transport, bytes] | None:
        """Give the transport and what came behind the upgrade request; None when the client is gone."""
        transport, unread = self.transport, self._held
        if transport is None or transport.is_closing() or self._stage != BUSY:
            return None
        self._forget()
        if self._paused:
            transport.resume_reading()
        self.transport = None
        return transport, unread

    def retire(self) -> None:
        """Have the next answer, or the one under way, be the last."""
        self._draining = self._last = True
        if self._window is not None:
            self._window.keep_alive = False

    def drain(self) -> None:
        """Close now when idle, else after the answer that is under way."""
        self.retire()
        if self._stage in {HEAD, LINGER} and self._window is None:
            self._close(linger=False)


def _reply_start(reply: Reply, *, keep_alive: bool, date: bytes = b"") -> bytes:
    """Return what is written before a reply's X-Request-Id; an error of ours need not have a date (RFC 9110, 6.6.1)."""
    lines = [b"HTTP/1.1 %d %b" % (reply.status, _REASONS[reply.status])]
    if date:
        lines.append(date)
    lines += [f"{name}: {value}".encode("latin-1") for name, value in reply.headers]
    lines.append(b"Content-Length: %d" % len(reply.body))
    if not keep_alive:
        lines.append(b"Connection: close")
    return b"\r\n".join((*lines, b"X-Request-Id: "))


def _reply_halves(error: RequestError) -> tuple[bytes, bytes]:
    """Return what is written before and behind the X-Request-Id of an answer."""
    reply = render(error, as_json=False)
    return _reply_start(reply, keep_alive=False), HEAD_END + reply.body


_TURNED_AWAY = {outcome: _reply_halves(error) for outcome, error in OVERLOADED.items()}


def _too_slow() -> RequestError:
    return RequestError(408, "timeout", "the request did not arrive in time", text="request timeout")
