"""A client that only listens: an HTTP request whose answer, Server-Sent Events, does not end.

It is a connection like any other: in groups, counted, with a send queue and its bounds. It differs from a WebSocket
in what is written, and in that nothing is read: what the client sends is forgotten, comments keep the stream alive,
and the end of the stream is all that a browser needs to come back.

A browser that comes back tells the last id that it has seen (protocol/server_sent.py). So each event of a channel that
can be resumed carries the positions of all of these, as of the moment at which it is written: in the send queue
frames may still be dropped, or replaced by newer ones. A stream without such channels shares what it is written with
all others; one with them has to be asked for each write.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import orjson

from fastpush.errors import CloseCode
from fastpush.fanout import UNIDIRECTIONAL
from fastpush.http.head import HEAD_END
from fastpush.protocol.bus import Position
from fastpush.protocol.client import bare, gap_push
from fastpush.protocol.frames import ChannelFrame
from fastpush.protocol.push import channel_of, is_channel_key, is_user_key, parse_user_key
from fastpush.protocol.server_sent import COMMENT, POSITIONS_MAX, event, identifier
from fastpush.worker.connection import FORGOTTEN, Connection
from fastpush.worker.timers import TICK_SECONDS

if TYPE_CHECKING:
    from fastpush.worker.environment import Environment
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.connection")

RETRY_MS = (500, 2000)  # clients of a worker that ends come back spread over this time


class Placed(bytes):
    """An event behind which its client stands elsewhere: without its id, which says where.

    positions: by routing key.
    """

    positions: Mapping[bytes, Position]


def placed(text: bytes, positions: Mapping[bytes, Position]) -> Placed:
    """Return such an event. text: b"" for one that sets the id, and of which the page is not told."""
    made = Placed(text or b"\n")
    made.positions = positions
    return made


def stream_head(date: bytes, request_id: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return the head of the answer. date: a header's line.  headers: more of them."""
    lines = [
        b"HTTP/1.1 200 OK",
        date,
        b"Content-Type: text/event-stream",
        b"Cache-Control: no-store",
        b"X-Accel-Buffering: no",  # nginx passes on what comes, when it comes
        b"Connection: close",
        *[f"{name}: {value}".encode("latin-1") for name, value in headers],
        b"X-Request-Id: " + request_id.encode(),
    ]
    return b"\r\n".join(lines) + HEAD_END


class EventStream(Connection):
    """One client's stream.

    _positions: where the client stands in channels that can be resumed, by routing key, as of what is written; None
    until they are known.
    """

    __slots__ = ("_positions",)

    def __init__(self, environment: "Environment", mount: "Mount", peer: str, headers: Mapping[str, str]) -> None:
        super().__init__(environment, mount, peer, headers)
        self._positions: dict[bytes, Position] | None = None

    def begin(self, transport: asyncio.Transport, head: bytes) -> None:
        """Own `transport` from now on, and answer the request. head: as from `stream_head`."""
        retry_ms = random.randint(*RETRY_MS)  # noqa: S311 - nobody gains by guessing it
        times = self.mount.times
        _limit_unacknowledged(transport, (times.ping_interval + times.pong_timeout) * TICK_SECONDS)
        self._own(transport, b"%bretry: %d\n\n" % (head, retry_ms))

    unannounced: ClassVar[tuple[str, str]] = ("", "client")  # who reads a stream has no other way to leave

    @property
    def has_begun(self) -> bool:
        """Whether the client has been answered, and is there."""
        return self._transport is not None

    # -- writing -----------------------------------------------------------------

    @property
    def positions(self) -> Mapping[bytes, Position]:
        """Where the client stands in channels that can be resumed, by routing key, as of what is written."""
        return self._positions or {}

    @property
    def is_behind(self) -> bool:
        """Whether something waits to be written."""
        return self._queue is not None

    def send_placed(self, text: bytes, positions: Mapping[bytes, Position]) -> None:
        """Send an event behind which the client stands at `positions`; see `placed`.

        The first ones say which channels have positions: what is told of others later is not remembered.
        """
        self._follow(positions)
        frame = placed(text, positions)
        self.send_joined(frame, (frame,))

    def _follow(self, positions: Mapping[bytes, Position]) -> None:
        if self._positions is None:
            self._positions = dict(positions) if len(positions) <= POSITIONS_MAX else {}
            if self._positions:  # each write is its own from now on
                self.writable = None
                self.descriptor = -1

    def send_lines(self, lines: bytes, positions: Mapping[bytes, Position] | None = None) -> bool:
        """Send pushes of the client protocol, a line each. positions: where the client stands behind them."""
        frames = [event(line) for line in lines.split(b"\n")]
        if positions is not None:
            self._follow(positions)
            frames[-1] = placed(frames[-1], positions)
        return self.send_joined(b"".join(frames), frames) == len(frames)

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        if self._positions and self._queue is None and self.is_open:
            joined = self._to_write(frames)
        return super().send_joined(joined, frames)

    def _to_write(self, frames: Sequence[bytes]) -> bytes:
        positions = self._positions
        if not positions:
            return b"".join(frames)
        parts = []
        for frame in frames:
            if isinstance(frame, Placed):
                positions.update((key, each) for key, each in frame.positions.items() if key in positions)
                parts.append(identifier(positions))
            elif frame and isinstance(frame, ChannelFrame) and frame.offset and frame.key in positions:
                positions[frame.key] = Position(frame.offset, positions[frame.key].epoch)
                parts.append(identifier(positions))
            parts.append(frame)
        return b"".join(parts)

    def gap_frame(self, key: bytes, dropped: int) -> bytes:
        if self.form & UNIDIRECTIONAL:
            return event(bare(gap_push(channel_of(key), dropped)))
        about = {}
        if is_channel_key(key):
            about = {"channel": channel_of(key)}
        elif is_user_key(key):
            about = {"event": parse_user_key(key)[1]}  # the user of a push to several may be another one
        return event(orjson.dumps({**about, "dropped": dropped}), "gap")

    def send_ping(self) -> None:
        """Keep the stream alive. One that is written to needs nothing, and must take what it is sent in time."""
        if self._queue is None:
            self._write(COMMENT)
            self.on_sign_of_life()  # as much as there will be: see _limit_unacknowledged

    # -- reading -----------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return FORGOTTEN

    def buffer_updated(self, nbytes: int) -> None: ...

    def read(self, unread: bytes) -> None:
        """Forget what came behind the request."""

    # -- closing -----------------------------------------------------------------

    def close(self, code: int = CloseCode.NORMAL, reason: str = "", by: str = "server") -> None:
        """Leave all groups, and end the stream behind what was queued; again does nothing."""
        was_open = self.is_open
        super().close(code, reason, by)
        transport = self._transport
        if was_open and transport is not None and not transport.is_closing():
            transport.write_eof()

    def _farewell(self, code: int, reason: str) -> bytes:
        lines = self.mount.last_words(self, code, reason)
        return b"".join(map(event, lines.split(b"\n"))) if lines else b""


def _limit_unacknowledged(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel give up on a client whose host acknowledges nothing for so long: it says nothing by itself."""
    connection = socket.socket(fileno=transport.get_extra_info("socket").fileno())
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))
    except OSError:  # it is gone already, which the transport will notice
        log.debug("no time-out of acknowledgements", exc_info=True)
    finally:
        connection.detach()
