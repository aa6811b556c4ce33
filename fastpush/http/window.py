"""aiohttp serves exactly one request of a connection, then gives the connection back.

aiohttp's handler owns a connection until it closes it. Here it is given a Window for a
transport: what it writes passes through, and when it closes the Window after its
response, the connection goes back to whoever opened the Window. A request whose end
only its own parser can find (chunked) ends the connection instead.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import httptools
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from fastpush.http.head import bad_request

DISCARDED_BYTES = 65536
Buffer = bytes | bytearray | memoryview


class Chunks:
    """Finds the end of a chunked request, or that it is none.

    aiohttp leaves a handler waiting for the rest of a body that breaks the rules.
    """

    __slots__ = ("_parser", "is_complete")

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.is_complete = False

    def on_message_complete(self) -> None:
        """httptools: the last chunk has come."""
        self.is_complete = True

    def feed(self, data: bytes) -> None:
        """Follow the request, head first. Raises: RequestError 400."""
        try:
            with contextlib.suppress(httptools.HttpParserUpgrade):
                self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self.is_complete:
                raise bad_request(str(error)) from None


class Window(asyncio.Transport):
    """A transport for one request and its response.

    transport:  the real one.
    body_bytes: bytes of the request behind its head; None when the connection ends with it.
    request_id: what its response and log lines are named by.
    on_done(window): called once, when the response is written and the handler is gone; the
                connection may go on when the Window is complete and keeps it alive.
    on_flow():  called when `is_full` may have changed: reading is the owner's to pause.
    keep_alive: may be set to False until the response begins.
    """

    def __init__(
        self,
        server: web.Server,
        transport: asyncio.Transport,
        body_bytes: int | None,
        request_id: str,
        on_done: Callable[["Window"], None],
        on_flow: Callable[[], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._missing = body_bytes
        self._chunks = Chunks() if body_bytes is None else None
        self.request_id = request_id
        self._on_done = on_done
        self._on_flow = on_flow
        self._open = True
        self._wants_pause = False
        self.keep_alive = body_bytes is not None
        self.has_answered = False
        self._handler: RequestHandler = server()
        self._handler.connection_made(self)

    def feed(self, data: bytes) -> bytes:
        """Give the handler its share of `data` (head first); return what belongs to the next request.

        Raises: RequestError 400, when a chunked body is none.
        """
        if self._missing is None:
            self._feed_chunks(data)
            return b""
        share, rest = data[: self._missing], data[self._missing :]
        if share:
            self._missing -= len(share)
            self._handler.data_received(share)
        self._finish_when_complete()
        return rest

    def _feed_chunks(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is not None and not chunks.is_complete:  # what comes behind the last chunk is never answered
            chunks.feed(data)
            self._handler.data_received(data)

    def open(self, head: bytes) -> None:
        """Give the handler the request's head; `feed` follows with its body."""
        if self._chunks is not None:
            self._chunks.feed(head)
        self._handler.data_received(head)
        self._finish_when_complete()

    def _finish_when_complete(self) -> None:
        if self._missing == 0 and self._open:
            self._handler.close()  # after this request's response, no other will be waited for
            self._on_flow()

    @property
    def is_complete(self) -> bool:
        """Whether the whole request was fed."""
        return self._missing == 0 or (self._chunks is not None and self._chunks.is_complete)

    @property
    def has_clear_end(self) -> bool:
        """Whether nothing but another request can follow."""
        return self._missing == 0

    @property
    def is_full(self) -> bool:
        """Whether the handler wants no more of the request for now."""
        return self._wants_pause and not self.is_complete

    def ends_with(self, request: web.BaseRequest) -> bool:
        """Whether the connection cannot be used after an answer to `request` given now."""
        if not self.keep_alive or self._missing is None or self._missing > DISCARDED_BYTES:
            return True
        # Told neither to send its body nor not to, the client may do either.
        return self._missing > 0 and "Expect" in request.headers and not self.has_answered

    def lost(self, error: Exception | None) -> None:
        """Tell the handler that the connection is gone."""
        self._open = False
        self._handler.connection_lost(error)

    def pause_writing(self) -> None:
        """Pass on the transport's backpressure."""
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the transport takes more."""
        self._handler.resume_writing()

    # -- what the handler sees ---------------------------------------------------

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._handler.connection_lost(None)  # ends its timers
        self._on_done(self)

    def abort(self) -> None:
        self.keep_alive = False
        self.close()

    def is_closing(self) -> bool:
        return not self._open or self._transport.is_closing()

    def write(self, data: Buffer) -> None:
        if self._open:
            self.has_answered = True
            self._transport.write(data)

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._open:
            self.has_answered = True
            self._transport.writelines(list_of_data)

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._handler

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise NotImplementedError("the connection is only lent")

    def is_reading(self) -> bool:
        return not self._wants_pause

    def pause_reading(self) -> None:
        self._wants_pause = True
        if self._open:
            self._on_flow()

    def resume_reading(self) -> None:
        self._wants_pause = False
        if self._open:
            self._on_flow()


async def set_connection_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Tell client and Window alike whether the connection goes on; an on_response_prepare signal."""
    response.headers["Server"] = "fastpush"
    window = request.transport
    if isinstance(window, Window) and (window.ends_with(request) or not response.keep_alive):
        window.keep_alive = False
        response.force_close()
        response.headers["Connection"] = "close"
