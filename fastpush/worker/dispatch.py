"""A client's TCP connection before it is a WebSocket: every request goes to whoever serves it.

This is the first code to see a client's bytes. They are held until a request head is
complete (bounded by head_bytes and head_seconds), then

    a WebSocket path   worker/upgrade.py checks it and picows takes the connection over
    POST /push         answered here: the lean path, no task and no framework
    anything else      aiohttp, through a Window that gives the connection back

One request at a time: what comes meanwhile is held, at most HELD_BYTES, then reading
is paused. So replies keep the order of pipelined requests.

    HEAD ──► BODY ──► BUSY ──► HEAD …          lean push
      ├────► WINDOW ─────────► HEAD …          aiohttp
      └────► BUSY ──► (picows owns the transport)
"""

import asyncio
import logging
from enum import IntEnum
from typing import TYPE_CHECKING, cast

from fastpush import errors
from fastpush.child import ListenerRole
from fastpush.errors import RequestError
from fastpush.http.head import HEAD_END, Head, bad_request, parse_head
from fastpush.http.push import Outcome, Reply, render, wants_json
from fastpush.http.window import Window
from fastpush.log import fields
from fastpush.worker.upgrade import upgrade

if TYPE_CHECKING:
    from fastpush.worker.services import Services

log = logging.getLogger("fastpush.http")

HELD_BYTES = 65536
_REASONS = {
    200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 413: b"Content Too Large", 426: b"Upgrade Required",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 503: b"Service Unavailable",
    504: b"Gateway Timeout",
}  # fmt: skip


class Stage(IntEnum):
    """What the connection waits for."""

    HEAD = 0  # a request head
    BODY = 1  # the body of a lean push
    BUSY = 2  # an answer of ours
    WINDOW = 3  # aiohttp
    GONE = 4  # closed, or handed over


HEAD, BODY, BUSY, WINDOW, GONE = Stage  # by short names: they are compared several times a push


class HttpConnection(asyncio.Protocol):
    """A client's connection while it speaks HTTP.

    role: which paths its listener serves.  due: see TimerWheel.
    """

    __slots__ = (
        "_active",
        "_body",
        "_draining",
        "_head",
        "_held",
        "_paused",
        "_services",
        "_stage",
        "_window",
        "due",
        "peer",
        "role",
        "transport",
    )

    def __init__(self, services: "Services", role: ListenerRole) -> None:
        self._services = services
        self.role = role
        self.due = -1
        self.peer = ""
        self.transport: asyncio.Transport | None = None
        self._stage = HEAD
        self._held = b""
        self._head: Head | None = None
        self._window: Window | None = None
        self._paused = False
        self._draining = False

    # -- the transport's side ----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self._services
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else ""
        services.http_connections.add(self)
        services.environment.counters.accepted += 1
        log.debug("accepted", extra=fields(peer=self.peer, worker=services.environment.number))
        wheel = services.environment.wheel
        self._active = wheel.now
        wheel.schedule(self, wheel.now + services.environment.connection_ticks.head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stage == WINDOW and self._window is not None:
            self._window.lost(exc)
        self._forget()

    def _forget(self) -> None:
        self._stage = GONE
        self._held = b""
        self._head = self._window = None
        self._services.environment.wheel.cancel(self)
        self._services.http_connections.discard(self)

    def pause_writing(self) -> None:
        if self._window is not None:
            self._window.pause_writing()

    def resume_writing(self) -> None:
        if self._window is not None:
            self._window.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._stage == WINDOW and self._window is not None and not self._held:
            data = self._window.feed(data)
        self._held = self._held + data if self._held else data
        if self._stage <= BODY:
            self._advance()
        elif len(self._held) > HELD_BYTES and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def on_timer(self, now: int) -> int | None:
        """Close a connection that has not completed a head or body in time."""
        timeout = self._services.environment.connection_ticks.head
        if self._stage > BODY:
            return now + timeout
        if now < self._active + timeout:
            return self._active + timeout
        if self._held or self._stage == BODY:
            self._refuse(RequestError(408, "timeout", "the request did not arrive in time", text="request timeout"))
        elif self.transport is not None:
            self.transport.close()
        return None

    # -- one request after the other ---------------------------------------------

    def _advance(self) -> None:
        """Serve from what is held until something has to be waited for."""
        try:
            while self._stage <= BODY:
                if not (self._take_head() if self._stage == HEAD else self._take_body()):
                    break
        except RequestError as error:
            self._services.environment.counters.http_errors += 1
            log.debug("bad request", extra=fields(peer=self.peer, reason=error.reason))
            self._refuse(error)
            return
        if self._paused and len(self._held) <= HELD_BYTES and self.transport is not None and self._stage < GONE:
            self._paused = False
            self.transport.resume_reading()

    def _take_head(self) -> bool:
        """Dispatch the next request; False when its head is not complete."""
        held = self._held.lstrip(b"\r\n") if self._held[:1] in b"\r\n" else self._held
        end = held.find(HEAD_END) + len(HEAD_END)
        most = self._services.environment.config.server.head_bytes
        if end < len(HEAD_END) or end > most:
            if len(held) > most:
                raise RequestError(431, "head_too_large", f"request head is larger than {most} bytes", text="head too large")
            self._held = held
            return False
        self._active = self._services.environment.wheel.now
        data = held if end == len(held) else held[:end]
        self._held = held[end:]
        self._dispatch(parse_head(data), data)
        return True

    def _dispatch(self, head: Head, data: bytes) -> None:
        services = self._services
        self._head = head
        refusal = services.guard.refusal(head.headers)
        if refusal is not None:
            self._reply(render(refusal, as_json=wants_json(head.headers)), keep_alive=False)
        elif head.path in services.websocket_paths and self.role != "api":
            self._upgrade(head)
        elif self.role == "public":
            self._reply(render(errors.not_found(head.path), as_json=True), keep_alive=False)
        elif (
            head.path == services.push_path
            and head.method == "POST"
            and head.content_length is not None
            and head.content_length <= services.lean_body_bytes
            and "expect" not in head.headers
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
            if not services.push_auth.authorize(head.headers):
                raise errors.unauthorized("send a key of [push] keys as X-API-Key or Authorization: Bearer")
            services.push_service.push(body, self._on_outcome)
        except RequestError as error:
            self._on_outcome(error)
        return True

    def _on_outcome(self, outcome: Outcome | RequestError) -> None:
        head = self._head
        if head is None or self._stage != BUSY:
            return  # the client is gone
        if outcome.__class__ is Outcome and head.keep_alive and not self._draining and not wants_json(head.headers):
            # The usual reply of a back-end's kept-alive connection: one write of bytes made once a second.
            self.transport.write(self._services.sent_reply(outcome))  # type: ignore[union-attr,arg-type]
            self._head = None
            self._stage = HEAD
            if self._held:
                self._services.call_soon(self._advance)
            return
        self._reply(render(outcome, as_json=wants_json(head.headers)), keep_alive=head.keep_alive)
        if self._held and self._stage == HEAD:
            self._services.call_soon(self._advance)

    def _upgrade(self, head: Head) -> None:
        self._stage = BUSY
        self._services.spawn(upgrade(self._services, self, head))

    def _open_window(self, head: Head, data: bytes) -> None:
        assert self.transport is not None
        size = None if head.is_chunked else head.content_length or 0
        self._stage = WINDOW
        self._window = window = self._services.app.open_window(self.transport, size, self._on_window_done)
        if self._draining:
            window.keep_alive = False
        window.open(data)
        if self._held:
            held, self._held = self._held, b""
            self._held = window.feed(held)

    def _on_window_done(self, reusable: bool) -> None:
        self._window = None
        if self._stage != WINDOW:
            return
        self._finish(keep_alive=reusable)
        if self._held and self._stage == HEAD:
            self._services.call_soon(self._advance)

    # -- answering -----------------------------------------------------------------

    def _refuse(self, error: RequestError) -> None:
        """Answer what is not HTTP as we speak it, and close: nobody knows where the next request begins."""
        self._reply(render(error, as_json=False), keep_alive=False)

    def _reply(self, reply: Reply, *, keep_alive: bool) -> None:
        if self.transport is None or self._stage == GONE:
            return
        keep_alive = keep_alive and not self._draining
        lines = [b"HTTP/1.1 %d %b" % (reply.status, _REASONS[reply.status]), self._services.date_header()]
        lines += [f"{name}: {value}".encode("latin-1") for name, value in reply.headers]
        lines.append(b"Content-Length: %d" % len(reply.body))
        if not keep_alive:
            lines.append(b"Connection: close")
        lines += (b"", reply.body)
        self.transport.write(b"\r\n".join(lines))
        self._finish(keep_alive=keep_alive)

    def _finish(self, *, keep_alive: bool) -> None:
        """Wait for the next request, or close."""
        self._head = None
        if keep_alive and not self._draining:
            self._stage = HEAD
            self._active = self._services.environment.wheel.now
        else:
            self._stage = GONE
            self._held = b""
            if self.transport is not None:
                self.transport.close()

    def refuse_upgrade(self, error: RequestError) -> None:
        """Answer a WebSocket request that is not granted, and close."""
        self._reply(render(error, as_json=False), keep_alive=False)

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

    def drain(self) -> None:
        """Close now when idle, else after the answer that is under way."""
        self._draining = True
        if self._window is not None:
            self._window.keep_alive = False
        elif self._stage == HEAD and self.transport is not None:
            self.transport.close()
