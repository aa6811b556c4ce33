"""WebSocket frames to messages, and messages to prebuilt frames (RFC 6455). No I/O.

The frame codec hands over unmasked single frames; everything between frames is here:
fragments, UTF-8, reserved bits and opcodes, the payload of close frames. What the
server sends is built once as `bytes` and shared by all receivers.
"""

import codecs
import struct
from enum import IntEnum

from fastpush.errors import CloseCode, ProtocolViolation

CONTROL_BYTES_MAX = 125  # RFC 6455, 5.5
_REASON_BYTES_MAX = CONTROL_BYTES_MAX - 2
_FIN = 0x80
_pack_16 = struct.Struct("!BBH").pack
_pack_64 = struct.Struct("!BBQ").pack
_utf8_decoder = codecs.getincrementaldecoder("utf-8")

# RFC 6455, 7.4, and the registry's later 1012 to 1014: what may stand in a close frame.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))


class Opcode(IntEnum):
    """RFC 6455, 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole, unmasked frame with FIN, as a server sends it."""
    size = len(payload)
    if size < 126:  # noqa: PLR2004 - the lengths that RFC 6455, 5.2 defines
        return bytes((_FIN | opcode, size)) + payload
    if size < 65536:  # noqa: PLR2004
        return _pack_16(_FIN | opcode, 126, size) + payload
    return _pack_64(_FIN | opcode, 127, size) + payload


def text_frame(payload: bytes) -> bytes:
    """Return a text frame; the caller vouches for UTF-8."""
    return frame(Opcode.TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return a binary frame."""
    return frame(Opcode.BINARY, payload)


def payload_of(built: bytes) -> memoryview:
    """Return the payload of a frame built here, without copying it."""
    length = built[1]
    start = 2 if length < 126 else 4 if length == 126 else 10  # noqa: PLR2004
    return memoryview(built)[start:]


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame; None: an empty one. The reason is cut to what fits, at a character's border."""
    if code is None:
        return frame(Opcode.CLOSE, b"")
    return frame(Opcode.CLOSE, struct.pack("!H", code) + close_reason(reason))


def close_reason(reason: str) -> bytes:
    """Return a close frame's reason as UTF-8, cut to 123 bytes at a character's border."""
    return reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()


def close_payload(payload: bytes) -> tuple[int | None, str]:
    """Return the code and reason of a client's close frame; None for an empty one.

    Raises: ProtocolViolation 1002: one byte, or a code that may not be sent; 1007: reason not UTF-8.
    """
    if not payload:
        return None, ""
    if len(payload) == 1:
        raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "close frame with one byte")
    code = int.from_bytes(payload[:2], "big")
    if code not in _CLOSE_CODES:
        raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, f"close code {code} may not be sent")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise ProtocolViolation(CloseCode.INVALID_TEXT, "close reason is not UTF-8") from None


class _Fragments:
    """A message under way: decoded text or raw bytes, never more than the reader's limits."""

    __slots__ = ("count", "decoder", "parts", "size")

    def __init__(self, *, is_text: bool) -> None:
        self.decoder = _utf8_decoder() if is_text else None
        self.parts: list[str] | list[bytes] = []
        self.size = 0
        self.count = 0


class MessageReader:
    """Joins the data frames of one connection to messages.

    Control frames may come between fragments; they are the caller's and never fed here.
    After a ProtocolViolation the connection is to be closed; the reader is of no more use.
    """

    __slots__ = ("_fragments", "_message_bytes", "_message_fragments")

    def __init__(self, message_bytes: int, message_fragments: int) -> None:
        self._message_bytes = message_bytes
        self._message_fragments = message_fragments
        self._fragments: _Fragments | None = None

    def feed(self, opcode: int, fin: bool, rsv: bool, payload: bytes) -> str | bytes | None:  # noqa: FBT001 - bits
        """Take a data or continuation frame; return the message it completes: str for text, bytes for binary.

        Raises: ProtocolViolation 1002, 1007 (as soon as text cannot become UTF-8), 1009.
        """
        if rsv:
            raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "reserved bits are set")
        if opcode not in {Opcode.CONTINUATION, Opcode.TEXT, Opcode.BINARY}:
            raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        fragments = self._fragments
        if opcode == Opcode.CONTINUATION:
            if fragments is None:
                raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "continuation of nothing")
        elif fragments is not None:
            raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "new message inside a fragmented one")
        elif fin:
            return self._whole(opcode, payload)
        else:
            fragments = self._fragments = _Fragments(is_text=opcode == Opcode.TEXT)
        return self._add(fragments, payload, fin=fin)

    def _whole(self, opcode: int, payload: bytes) -> str | bytes:
        if len(payload) > self._message_bytes:
            raise self._too_big()
        if opcode == Opcode.BINARY:
            return payload
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise _not_utf8() from None

    def _add(self, fragments: _Fragments, payload: bytes, *, fin: bool) -> str | bytes | None:
        fragments.size += len(payload)
        fragments.count += 1
        if fragments.size > self._message_bytes:
            raise self._too_big()
        if fragments.count > self._message_fragments:
            raise ProtocolViolation(CloseCode.MESSAGE_TOO_BIG, f"more than {self._message_fragments} fragments")
        if fragments.decoder is None:
            fragments.parts.append(payload)  # type: ignore[arg-type]
        else:
            try:
                fragments.parts.append(fragments.decoder.decode(payload, fin))  # type: ignore[arg-type]
            except UnicodeDecodeError:
                raise _not_utf8() from None
        if not fin:
            return None
        self._fragments = None
        return b"".join(fragments.parts) if fragments.decoder is None else "".join(fragments.parts)  # type: ignore[arg-type]

    def _too_big(self) -> ProtocolViolation:
        return ProtocolViolation(CloseCode.MESSAGE_TOO_BIG, f"message is larger than {self._message_bytes} bytes")


def _not_utf8() -> ProtocolViolation:
    return ProtocolViolation(CloseCode.INVALID_TEXT, "text is not UTF-8")
