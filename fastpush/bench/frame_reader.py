"""WebSocket frames as a client of many connections reads them: whole messages' payloads and control frames. No I/O."""

import zlib
from typing import NamedTuple

from fastpush.protocol.frames import Opcode

_FIN, _COMPRESSED, _OPCODE = 0x80, 0x40, 0x0F
_CONTROL = 0x8
_PLAIN = (0x81, 0x82)  # a whole text or binary message
_DEFLATE_TAIL = b"\x00\x00\xff\xff"  # RFC 7692, 7.2.2
_SHORT, _LONG = 126, 127  # RFC 6455, 5.2


class Read(NamedTuple):
    """What a read completed.

    frames: the bytes of whole frames, from the first unread one on.  payload: of the messages that ended in them,
    joined.  controls: (opcode, payload).  is_plain: nothing but whole, uncompressed messages, so that equal bytes
    mean equal messages.
    """

    frames: bytes
    payload: bytes
    controls: list[tuple[int, bytes]]
    messages: int
    is_plain: bool


class FrameReader:
    """Cuts one connection's bytes into frames. held: the beginning of a frame that is not whole yet."""

    __slots__ = ("_inflate", "_is_compressed", "_parts", "held", "takeover")

    def __init__(self, *, takeover: bool = False) -> None:
        self.held = b""
        self.takeover = takeover  # the server compresses with the context of earlier messages
        self._parts: list[bytes] | None = None
        self._is_compressed = False
        self._inflate = zlib.decompressobj(-15) if takeover else None

    def feed(self, data: bytes) -> Read:
        """Take what was read. Raises: zlib.error: compressed data is broken."""
        if self.held:
            data = self.held + data
            self.held = b""
        if self._parts is None and data[0] in _PLAIN and frame_end(data, 0) == len(data):  # nearly always, if few
            return Read(data, data, [], 1, is_plain=True)
        return self._walk(data)

    def _walk(self, data: bytes) -> Read:
        controls: list[tuple[int, bytes]] = []
        payloads: list[bytes] = []
        is_plain = self._parts is None
        at = 0
        size = len(data)
        while (end := frame_end(data, at)) <= size:
            first = data[at]
            if first in _PLAIN and self._parts is None:
                payloads.append(data[at:end])  # its header holds nothing that looks like a stamp
            else:
                payload = data[at + _header_bytes(data, at) : end]
                if first & _OPCODE >= _CONTROL:
                    is_plain = False
                    controls.append((first & _OPCODE, payload))
                else:
                    is_plain = is_plain and bool(first & _FIN) and not self.takeover
                    self._add(first, payload, payloads)
            at = end
        self.held = data[at:]
        is_plain = is_plain and self._parts is None
        return Read(data[:at], b"".join(payloads), controls, len(payloads), is_plain)

    def _add(self, first: int, payload: bytes, payloads: list[bytes]) -> None:
        """A fragment or a compressed message."""
        if self._parts is None or first & _OPCODE != Opcode.CONTINUATION:
            self._parts = []
            self._is_compressed = bool(first & _COMPRESSED)
        self._parts.append(payload)
        if not first & _FIN:
            return
        whole = b"".join(self._parts)
        self._parts = None
        if self._is_compressed:
            inflate = self._inflate or zlib.decompressobj(-15)
            whole = inflate.decompress(whole + _DEFLATE_TAIL)
        payloads.append(whole)


def frame_end(data: bytes, at: int) -> int:
    """Return where the frame that starts at `at` ends; beyond the data when its header is not whole."""
    left = len(data) - at
    if left < 2:  # noqa: PLR2004
        return at + 2
    length = data[at + 1] & 0x7F
    if length < _SHORT:
        return at + 2 + length
    if length == _SHORT:
        return at + 4 + (int.from_bytes(data[at + 2 : at + 4], "big") if left >= 4 else 0)  # noqa: PLR2004
    return at + 10 + (int.from_bytes(data[at + 2 : at + 10], "big") if left >= 10 else 0)  # noqa: PLR2004


def _header_bytes(data: bytes, at: int) -> int:
    length = data[at + 1] & 0x7F
    return 2 if length < _SHORT else 4 if length == _SHORT else 10


def client_frame(opcode: int, payload: bytes) -> bytes:
    """Return a frame as clients send it; its mask is zero, which costs nothing and is as valid as any other."""
    size = len(payload)
    if size < _SHORT:
        head = bytes((_FIN | opcode, 0x80 | size))
    elif size < 65536:  # noqa: PLR2004
        head = bytes((_FIN | opcode, 0x80 | _SHORT)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FIN | opcode, 0x80 | _LONG)) + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload
