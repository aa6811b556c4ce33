"""A WebSocket client that does exactly what a test says, right or wrong; it shares no code with the server."""

import base64
import hashlib
import os
import select
import socket
import struct
from typing import NamedTuple, Self
from urllib.parse import urlencode

from tests.server import SCALE, Server

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool = True
    rsv: int = 0


def build(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\x01\x80\xfe\x7f",
    length: int | None = None, length_bytes: int | None = None,
) -> bytes:  # fmt: skip
    """Return a client's frame.

    rsv: 0 to 7.  mask: None leaves it out.  length: what the header says instead of the truth.
    length_bytes: 0, 2 or 8 bytes of extended length, instead of the shortest form.
    """
    size = len(payload) if length is None else length
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    masked = 0 if mask is None else 0x80
    if length_bytes == 0:
        head = struct.pack("!BB", first, masked | size)
    elif length_bytes == 2:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    stream = int.from_bytes(mask * (len(payload) // 4 + 1), "big") >> (8 * (4 - len(payload) % 4))
    return head + mask + (int.from_bytes(payload, "big") ^ stream).to_bytes(len(payload), "big")


def close_payload(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


class RawClient:
    """One connection, its handshake done.

    parameters: of the URL; a list repeats.  receive_bytes: of the kernel's receive buffer, set before connecting
    (loopback's own choice swallows megabytes).  seconds: time-out of every single read and write.  behind: bytes to
    send in one packet with the handshake.  status: 101, or what refused it; then the socket is closed.
    """

    def __init__(
        self, server: Server, path: str = "/echo", *, receive_bytes: int = 0, seconds: float = 10,
        behind: bytes = b"", **parameters: str | int | list[str],
    ) -> None:  # fmt: skip
        self.socket = socket.socket()
        self.socket.settimeout(seconds * SCALE)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self.socket.getsockname()[1]
        self.socket = server.secured(self.socket)
        self._held = bytearray()
        key = base64.b64encode(os.urandom(16))
        target = path + ("?" + urlencode(parameters, doseq=True) if parameters else "")
        self.socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key.decode()}\r\n\r\n".encode()
            + behind
        )  # fmt: skip
        head = self.read_until(b"\r\n\r\n").decode()
        self.status = int(head.split()[1])
        if self.status == 101:
            accept = base64.b64encode(hashlib.sha1(key + _ACCEPT_SUFFIX).digest()).decode()
            assert f"sec-websocket-accept: {accept}".lower() in head.lower(), head
        else:
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def __del__(self) -> None:
        self.socket.close()  # a failed test leaves clients behind; their sockets are not to be its second failure

    # -- writing -------------------------------------------------------------------

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def text(self, text: str) -> None:
        self.send(build(TEXT, text.encode()))

    def reset(self) -> None:
        """End the TCP connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- reading -------------------------------------------------------------------

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server closed; unread: {bytes(self._held[:100])!r}")
        self._held += data

    def read_until(self, mark: bytes) -> bytes:
        while (end := self._held.find(mark)) < 0:
            self._more()
        return self._take(end + len(mark))

    def _take(self, size: int) -> bytes:
        while len(self._held) < size:
            self._more()
        data = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return data

    def read(self) -> Frame:
        """Return the next frame; fails on one that a server may not send."""
        first, second = self._take(2)
        assert not second & 0x80, "a server's frame is masked"
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        opcode = first & 0x0F
        assert opcode in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}, f"opcode {opcode}"
        assert opcode < 8 or size < 126, "control frame too long"
        return Frame(opcode, self._take(size), bool(first & 0x80), first >> 4 & 7)

    def read_text(self) -> str:
        """Return the next message, which has to be text in one frame."""
        frame = self.read()
        assert frame.opcode == TEXT and frame.fin and not frame.rsv, frame
        return frame.payload.decode()

    def read_close(self) -> tuple[int | None, str]:
        """Return the code (None: empty) and reason of the next frame, which has to be a close frame."""
        frame = self.read()
        assert frame.opcode == CLOSE and frame.fin and not frame.rsv, frame
        if not frame.payload:
            return None, ""
        return int.from_bytes(frame.payload[:2], "big"), frame.payload[2:].decode()

    def read_end(self) -> None:
        """Read on to the end of the TCP connection: nothing may come before it."""
        assert not self._held, bytes(self._held[:100])
        assert self.socket.recv(65536) == b""

    def is_silent(self) -> bool:
        """Whether nothing has arrived that is not read yet."""
        return not self._held and not select.select([self.socket], [], [], 0)[0]

    def is_alive(self) -> None:
        """Fail unless the server answers a ping with the next frame."""
        self.send(build(PING, b"alive?"))
        assert self.read() == Frame(PONG, b"alive?")
