"""aiohttp serves exactly one request of a connection, then gives the connection back.

aiohttp's handler owns a connection until it closes it. Here it is given a Window for a
transport: what it writes passes through, and when it closes the Window after its
response, the connection goes back to whoever opened the Window. A request whose end
only its own parser can find (chunked) ends the connection instead.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

Buffer = bytes | bytearray | memoryview


class Window(asyncio.Transport):
    """A transport for one request and its response.

    transport:  the real one.
    body_bytes: bytes of the request behind its head; None when the connection ends with it.
    on_done(reusable): called once, when the response is written and the handler is gone.
    """

    def __init__(
        self,
        server: "web.Server[Any]",
        transport: asyncio.Transport,
        body_bytes: int | None,
        on_done: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._missing = body_bytes
        self._on_done = on_done
        self._open = True
        self.keep_alive = body_bytes is not None
        self._handler: "RequestHandler[Any]" = server()
        self._handler.connection_made(self)

    def feed(self, data: bytes) -> bytes:
        """Give the handler its share of `data` (head first); return what belongs to the next request."""
        if self._missing is None:
            self._handler.data_received(data)
            return b""
        share, rest = data[: self._missing], data[self._missing :]
        if share:
            self._missing -= len(share)
            self._handler.data_received(share)
        self._finish_when_complete()
        return rest

    def open(self, head: bytes) -> None:
        """Give the handler the request's head; `feed` follows with its body."""
        self._handler.data_received(head)
        self._finish_when_complete()

    def _finish_when_complete(self) -> None:
        if self._missing == 0 and self._open:
            self._handler.close()  # after this request's response, no other will be waited for

    def lost(self, error: Exception | None) -> None:
        """The connection is gone."""
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
        self._on_done(self.keep_alive and self._missing == 0)

    def abort(self) -> None:
        self.keep_alive = False
        self.close()

    def is_closing(self) -> bool:
        return not self._open or self._transport.is_closing()

    def write(self, data: Buffer) -> None:
        if self._open:
            self._transport.write(data)

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._open:
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
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        if self._open:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._open:
            self._transport.resume_reading()


async def set_connection_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Tell client and Window alike whether the connection goes on; an on_response_prepare signal."""
    response.headers["Server"] = "fastpush"
    window = request.transport
    if isinstance(window, Window):
        if not window.keep_alive:
            response.force_close()
        elif not response.keep_alive:
            window.keep_alive = False
