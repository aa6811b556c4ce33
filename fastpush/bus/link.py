"""One end of a bus connection: messages in, gathered writes out.

Everything sent within one turn of the loop leaves in one write. A link never waits:
who sends asks `is_full` first and tells its own caller when it is.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from fastpush.log import fields
from fastpush.protocol import bus

log = logging.getLogger("fastpush.bus")

# A publication holds a push body (at most 64 MiB by configuration) and its keys.
MESSAGE_BYTES_MAX = 256 * 1024 * 1024


class Link(asyncio.Protocol):
    """A connected bus socket.

    on_message(link, kind, number, body): called for each message, in order. A BusError from it
        closes the link, any other exception is logged and costs that message alone.
    on_closed(link): called once; what was sent and not yet taken is lost.
    queue_bytes: the bound behind `is_full`.
    """

    def __init__(
        self,
        on_message: Callable[["Link", int, int, Any], None],
        on_closed: Callable[["Link"], None],
        queue_bytes: int,
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._queue_bytes = queue_bytes
        self._decoder = bus.Decoder(MESSAGE_BYTES_MAX)
        self._gathered: list[bus.Body] = []
        self._large_bytes = 0  # of large messages among them
        self._is_paused = False
        self._transport: asyncio.Transport | None = None
        self._call_soon = asyncio.get_running_loop().call_soon
        self.is_full = False  # the bound is reached: refuse new work, its answers still pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._transport.set_write_buffer_limits(high=self._queue_bytes)

    def pause_writing(self) -> None:
        self.is_full = self._is_paused = True

    def resume_writing(self) -> None:
        self.is_full = self._is_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gathered.clear()
        self._on_closed(self)

    def data_received(self, data: bytes) -> None:
        on_message = self._on_message
        try:
            for kind, number, body in self._decoder.feed(data):
                try:
                    on_message(self, kind, number, body)
                except bus.BusError:
                    raise
                except Exception:
                    # One message must not end the link, and with it everybody's pushes.
                    log.exception("bus message failed", extra=fields(kind=kind))
        except bus.BusError as error:
            log.error("bus link closed", extra=fields(reason=str(error)))
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether there is anybody at the other end, as far as this one knows."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def queued_bytes(self) -> int:
        """Bytes written and not yet taken by the kernel; what this turn gathers comes on top."""
        transport = self._transport
        return transport.get_write_buffer_size() if transport is not None else 0

    def send(self, *parts: bus.Body) -> None:
        """Send a message given in one or several parts, a large one last; nothing happens on a closed link."""
        if self._transport is None:
            return
        gathered = self._gathered
        if not gathered:
            self._call_soon(self._flush)
        gathered += parts
        if len(parts[-1]) >= bus.LARGE_BYTES:
            self._large_bytes += len(parts[-1])
            if self._large_bytes >= self._queue_bytes:  # one read may hold a thousand questions for something large
                self.is_full = True

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        has_large, self._large_bytes = bool(self._large_bytes), 0
        if not gathered or self._transport is None:
            return
        if has_large:
            self._transport.writelines(gathered)  # writev: nothing is copied here
        else:
            self._transport.write(b"".join(gathered))
        self.is_full = self._is_paused

    def close(self) -> None:
        """Close after what was sent has left."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close now; what was sent and not yet taken is lost."""
        if self._transport is not None:
            self._transport.abort()
