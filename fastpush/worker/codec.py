"""picows as frame codec: a client's bytes in, single unmasked frames out.

A codec matters only while a frame is incomplete: then it holds a part of that frame. Between
frames it holds nothing of its connection. So a connection borrows one for each read,
and keeps it only when the read ends inside a frame; idle connections have none, which saves
each of them half of its memory (picows' buffers and transport: 3.8 KB).

picows is given no socket. Handshake, control frames and everything else that is sent
are written by the connection itself, and nothing that picows does by itself at the end of a
connection comes to pass: a violation it tells its logger first, and that one raises.
"""

import logging
from typing import Any, Protocol

from picows import WSAutoPingStrategy, WSFrame, WSListener, WSTransport
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from fastpush.errors import CloseCode, ProtocolViolation
from fastpush.log import fields

log = logging.getLogger("fastpush.connection")

# Reads that are bounded bound what picows' buffer can grow to by what one frame needs: it doubles
# a buffer that one read has nearly filled.
READ_BYTES = 16384
_REQUEST = (
    b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


class FrameReceiver(Protocol):
    """Whom a codec hands its frames to."""

    def on_frame(self, opcode: int, fin: bool, rsv1: bool, rsv23: bool, payload: bytes) -> None:  # noqa: FBT001 - bits
        """Take a frame. An exception ends the feeding and comes out of it."""
        ...


class Codec(WSListener):
    """Cuts frames out of the bytes of one connection at a time.

    frame_bytes: a larger frame is a violation.  buffer_bytes: first size of the buffer for an incomplete frame.
    """

    __slots__ = ("_is_between", "_protocol", "_receiver")

    def __init__(self, frame_bytes: int, buffer_bytes: int) -> None:
        self._receiver: FrameReceiver | None = None
        self._is_between = True
        self._protocol = WSProtocol(
            None, None, False, lambda _: self, _REPORTS, True, None, False, 0, 0,
            WSAutoPingStrategy.PING_WHEN_IDLE, False, frame_bytes, None, buffer_bytes,
        )  # fmt: skip
        self._protocol.connection_made(_NO_TRANSPORT)
        space = self._protocol.get_buffer(-1)
        space[: len(_REQUEST)] = _REQUEST
        self._protocol.buffer_updated(len(_REQUEST))

    def feed(self, received: memoryview, receiver: FrameReceiver) -> bool:
        """Hand over each frame that `received` completes; return whether the codec may serve another connection.

        It may when `received` ends between two frames, none of which was a close frame.

        Raises: ProtocolViolation, or what the receiver raises. The codec is of no use afterwards.
        Cost: one copy of `received`, one of each payload.
        """
        protocol = self._protocol
        self._receiver = receiver
        while received:
            space = protocol.get_buffer(-1)
            size = min(len(space), len(received))
            space[:size] = received[:size]
            received = received[size:]
            self._is_between = False
            protocol.buffer_updated(size)
        self._receiver = None
        return self._is_between and protocol.transport.close_handshake is None

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """picows has a frame, which is gone after this call."""
        assert self._receiver is not None
        self._is_between = bool(frame.last_in_buffer) and not frame.tail_size
        self._receiver.on_frame(
            frame.msg_type.value,
            bool(frame.fin),
            bool(frame.rsv1),
            bool(frame.rsv2 or frame.rsv3),
            frame.get_payload_as_bytes(),
        )

    @property
    def unread_close_code(self) -> int | None:
        """The code of a close frame that was read and not handed over, 0 for none in it; None: there is no such frame.

        picows reads one frame ahead: after a violation the frame before it may be lost.
        """
        handshake = self._protocol.transport.close_handshake
        return None if handshake is None or handshake.recv is None else int(handshake.recv.code)

    def discard(self) -> None:
        """Free a codec that nobody uses any more: picows and it refer to each other, which only the collector sees."""
        del self._protocol


class Codecs:
    """The codecs of a worker: one that is free, or none; others belong to connections inside a frame."""

    def __init__(self, frame_bytes: int, buffer_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._buffer_bytes = buffer_bytes
        self._free: Codec | None = None
        # What a connection without a codec reads into: it has been fed before another one reads.
        self.space = memoryview(bytearray(READ_BYTES))

    def take(self) -> Codec:
        """Return a codec that is between frames."""
        codec, self._free = self._free, None
        return codec or Codec(self._frame_bytes, self._buffer_bytes)

    def give_back(self, codec: Codec) -> None:
        """Take back a codec that is between frames."""
        self._free = codec


class _NoSocket:
    """What picows sets options of."""

    def setsockopt(self, *_: int) -> None: ...

    def getsockopt(self, *_: int) -> int:
        return 0

    def fileno(self) -> int:
        return -1


class _NoTransport:
    """What picows writes its handshake to, and nothing else."""

    def get_extra_info(self, name: str) -> Any:
        return _NoSocket() if name == "socket" else None

    def get_write_buffer_size(self) -> int:
        return 1  # so that it is told to `write`, not to the socket

    def write(self, data: bytes) -> None: ...


class _Reports:
    """What picows takes for its logger: it raises what picows would act upon.

    A standard Logger would make picows create a child logger a codec.
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
_NO_TRANSPORT = _NoTransport()
