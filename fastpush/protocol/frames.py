"""WebSocket frames to messages, and messages to prebuilt frames (RFC 6455). No I/O.

The frame codec hands over unmasked single frames; everything between frames is here:
fragments, UTF-8, reserved bits and opcodes, compression, the payload of close frames.
What the server sends is built once as `bytes` and shared by all receivers.

A fragmented message is kept as it came, in one bytearray: decoded, it could take four
times its bytes. Its text is checked as it grows, and decoded once it is whole; what is
compressed is inflated and checked once it is whole.
"""

import struct
import zlib
from base64 import b64encode
from codecs import utf_8_decode
from collections.abc import Sequence
from enum import IntEnum
from hashlib import sha1

from fastpush.errors import CloseCode, ProtocolViolation
from fastpush.protocol.deflate import compress, inflate

CONTROL_BYTES_MAX = 125  # RFC 6455, 5.5
_REASON_BYTES_MAX = CONTROL_BYTES_MAX - 2
_FIN = 0x80
_OPCODE = 0x0F
_RSV1 = 0x40  # RFC 7692, 6: the first frame of a compressed message
_GZIP_WINDOW_BITS = 31  # zlib's way to say: 15, with gzip's header and trailer
_pack_16 = struct.Struct("!BBH").pack
_pack_64 = struct.Struct("!BBQ").pack
# An IntEnum member costs a comparison several times an int's.
_CONTINUATION, _TEXT, _BINARY = 0x0, 0x1, 0x2
_CONTROL = 0x8  # this and above are control frames

# RFC 6455, 7.4, and the registry's later 1012 to 1014: what may stand in a close frame.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))


_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class ChannelFrame(bytes):
    """What a channel's subscribers are written for one publication, in a form that tells them its channel.

    key: the channel's routing key.  offset: the publication's in its channel; 0: it has none.
    Empty: nothing is written for it.
    """

    key: bytes
    offset: int


class Opcode(IntEnum):
    """RFC 6455, 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a whole, unmasked frame with FIN, as a server sends it.

    Raises: ValueError: a control frame of more than 125 bytes.
    """
    if opcode >= _CONTROL and len(payload) > CONTROL_BYTES_MAX:
        raise ValueError(f"a control frame holds at most {CONTROL_BYTES_MAX} bytes, not {len(payload)}")
    return _frame(_FIN | opcode, payload)


def _frame(first: int, payload: bytes) -> bytes:
    return _header(first, len(payload)) + payload


def _header(first: int, size: int) -> bytes:
    if size < 126:  # noqa: PLR2004 - the lengths that RFC 6455, 5.2 defines
        return bytes((first, size))
    if size < 65536:  # noqa: PLR2004
        return _pack_16(first, 126, size)
    return _pack_64(first, 127, size)


def text_header(size: int) -> bytes:
    """Return what comes before a text of `size` bytes, for a frame that is put together elsewhere."""
    return _header(_FIN | _TEXT, size)


def text_frame(payload: bytes) -> bytes:
    """Return a text frame; the caller vouches for UTF-8."""
    return _frame(_FIN | _TEXT, payload)


def binary_frame(payload: bytes) -> bytes:
    """Return a binary frame."""
    return _frame(_FIN | _BINARY, payload)


def data_frame(data: str | bytes) -> bytes:
    """Return a text frame for str, a binary one for bytes.

    Raises: UnicodeEncodeError: half a surrogate.  TypeError: anything else.
    """
    if isinstance(data, str):
        return text_frame(data.encode())
    if not isinstance(data, bytes):
        raise TypeError(f"a message is str or bytes, found {type(data).__name__}")
    return binary_frame(data)


def message_of(built: bytes) -> str | bytes:
    """Return what `data_frame` was given."""
    payload = payload_bytes(built)
    return payload.decode() if is_text(built) else payload


def is_text(built: bytes) -> bool:
    """Tell whether a data frame built here holds a text."""
    return built[0] & _OPCODE == _TEXT


def handshake_response(key: str, extensions: str | None = None) -> bytes:
    """Return the 101 that answers a Sec-WebSocket-Key (RFC 6455, 4.2.2).

    extensions: value of Sec-WebSocket-Extensions, for a client that offers them.
    """
    accept = b64encode(sha1(key.encode("ascii") + _ACCEPT_GUID, usedforsecurity=False).digest())
    extra = b"" if extensions is None else b"Sec-WebSocket-Extensions: %b\r\n" % extensions.encode("ascii")
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, extra)
    )


def pong_frame(payload: bytes) -> bytes:
    """Return a pong. Raises: ValueError: more than 125 bytes."""
    return frame(Opcode.PONG, payload)


def ping_frame(payload: bytes = b"") -> bytes:
    """Return a ping. Raises: ValueError: more than 125 bytes."""
    return frame(Opcode.PING, payload)


def payload_of(built: bytes) -> memoryview:
    """Return the payload of a frame built here, without copying it."""
    return memoryview(built)[_header_bytes(built) :]


def payload_bytes(built: bytes) -> bytes:
    """Return a copy of the payload of a frame built here: of a short one that is cheaper than a view."""
    return built[_header_bytes(built) :]


def _header_bytes(built: bytes) -> int:
    length = built[1]
    return 2 if length < 126 else 4 if length == 126 else 10  # noqa: PLR2004


def join_lines(frames: Sequence[bytes]) -> list[bytes]:
    """Return frames built here with each run of texts made one, a line each; others stay as they are."""
    joined: list[bytes] = []
    lines: list[memoryview] = []
    for built in frames:
        if built[0] == _FIN | _TEXT:
            lines.append(payload_of(built))
            continue
        if lines:
            joined.append(text_frame(b"\n".join(lines)))
            lines = []
        joined.append(built)
    if lines:
        joined.append(text_frame(b"\n".join(lines)))
    return joined


def deflated_frame(built: bytes, level: int) -> bytes:
    """Return a data frame built here as clients with permessage-deflate take it. level: zlib's, 1 to 9."""
    return _frame(built[0] | _RSV1, compress(payload_of(built), level))


def gzip_frame(built: bytes, level: int) -> bytes:
    """Return a binary frame that holds the payload of one built here as gzip, without a time. level: zlib's, 1 to 9."""
    return binary_frame(zlib.compress(payload_of(built), level, _GZIP_WINDOW_BITS))


def close_frame(code: int | None, reason: str = "") -> bytes:
    """Return a close frame; None: an empty one. The reason is cut to what fits, at a character's border.

    Raises: ValueError: a code that may not be sent.
    """
    if code is None:
        return frame(Opcode.CLOSE, b"")
    if code not in _CLOSE_CODES:
        raise ValueError(f"close code {code} may not be sent")
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
    """A message under way. checked: bytes of `received` that are whole UTF-8 characters (text only)."""

    __slots__ = ("checked", "count", "is_deflated", "is_text", "received")

    def __init__(self, *, is_text: bool, is_deflated: bool) -> None:
        self.is_text = is_text
        self.is_deflated = is_deflated
        self.received = bytearray()
        self.checked = 0
        self.count = 0


_DEAD = _Fragments(is_text=False, is_deflated=False)  # stands for: a violation was raised


class MessageReader:
    """Joins the data frames of one connection to messages.

    Control frames may come between fragments; they are the caller's and never fed here.
    After a ProtocolViolation the connection is to be closed; the reader has let go of what it
    held, and feeding it again is the caller's mistake (RuntimeError).

    message_bytes: largest message, all its fragments together, as it came and once it is inflated.
    message_fragments: most frames of one message.
    deflate: whether permessage-deflate was agreed, without context takeover by the client.
    """

    __slots__ = ("_deflate", "_fragments", "_message_bytes", "_message_fragments")

    def __init__(self, message_bytes: int, message_fragments: int, *, deflate: bool = False) -> None:
        self._deflate = deflate
        self._fragments: _Fragments | None = None
        self.limit(message_bytes, message_fragments)

    def limit(self, message_bytes: int, message_fragments: int) -> None:
        """Take messages within these limits, from the next frame on."""
        self._message_bytes = message_bytes
        self._message_fragments = message_fragments

    def feed(self, opcode: int, fin: bool, rsv1: bool, payload: bytes) -> str | bytes | None:  # noqa: FBT001 - bits
        """Take a data or continuation frame; return the message it completes: str for text, bytes for binary.

        RSV2 and RSV3 are the caller's to refuse.
        Raises: ProtocolViolation 1002, 1007 (as soon as uncompressed text cannot become UTF-8), 1009.
        Cost: one decode for unfragmented text; fragmented text is decoded twice.
        """
        fragments = self._fragments
        if fragments is None and fin and not rsv1 and len(payload) <= self._message_bytes:  # nearly always
            if opcode == _TEXT:
                return self._text(payload)
            if opcode == _BINARY:
                return payload
        return self._feed(fragments, opcode, payload, fin=fin, rsv1=rsv1)

    def _feed(
        self, fragments: _Fragments | None, opcode: int, payload: bytes, *, fin: bool, rsv1: bool
    ) -> str | bytes | None:
        if fragments is _DEAD:
            raise RuntimeError("a frame after a protocol violation")
        if rsv1 and not self._deflate:
            raise self._violation(CloseCode.PROTOCOL_ERROR, "reserved bits are set")
        if opcode not in {_CONTINUATION, _TEXT, _BINARY}:
            raise self._violation(CloseCode.PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        if opcode == _CONTINUATION:
            if fragments is None:
                raise self._violation(CloseCode.PROTOCOL_ERROR, "continuation of nothing")
            if rsv1:  # RFC 7692, 6.1
                raise self._violation(CloseCode.PROTOCOL_ERROR, "RSV1 is set in a continuation")
        elif fragments is not None:
            raise self._violation(CloseCode.PROTOCOL_ERROR, "new message inside a fragmented one")
        else:
            fragments = self._fragments = _Fragments(is_text=opcode == _TEXT, is_deflated=rsv1)
        return self._add(fragments, payload, fin=fin)

    def _add(self, fragments: _Fragments, payload: bytes, *, fin: bool) -> str | bytes | None:
        received = fragments.received
        fragments.count += 1
        if fragments.count > self._message_fragments:
            raise self._violation(CloseCode.MESSAGE_TOO_BIG, f"more than {self._message_fragments} fragments")
        if len(received) + len(payload) > self._message_bytes:
            raise self._violation(CloseCode.MESSAGE_TOO_BIG, f"message is larger than {self._message_bytes} bytes")
        received += payload
        if not fin:
            if fragments.is_text and not fragments.is_deflated:
                self._check(fragments)
            return None
        whole = self._inflate(received) if fragments.is_deflated else received
        message = self._text(whole) if fragments.is_text else bytes(whole)
        self._fragments = None
        return message

    def _inflate(self, received: bytearray) -> bytes:
        try:
            return inflate(received, self._message_bytes)
        except ProtocolViolation:
            self._fragments = _DEAD
            raise

    def _check(self, fragments: _Fragments) -> None:
        """Check the text from the last whole character on; one at the end may be unfinished."""
        unchecked = bytes(memoryview(fragments.received)[fragments.checked :])
        try:
            _, whole = utf_8_decode(unchecked, "strict", False)
        except UnicodeDecodeError:
            raise self._not_utf8() from None
        # Python's decoder waits for the third byte of a surrogate, which no byte can make valid.
        if b"\xed\xa0" <= unchecked[whole:] <= b"\xed\xbf":
            raise self._not_utf8()
        fragments.checked += whole

    def _text(self, payload: bytes | bytearray) -> str:
        try:
            return payload.decode()
        except UnicodeDecodeError:
            raise self._not_utf8() from None

    def _not_utf8(self) -> ProtocolViolation:
        return self._violation(CloseCode.INVALID_TEXT, "text is not UTF-8")

    def _violation(self, code: CloseCode, reason: str) -> ProtocolViolation:
        self._fragments = _DEAD
        return ProtocolViolation(code, reason)
