"""HTTP by hand: exact bytes out, one reply after the other in, and whether the connection ended."""

import json
import socket
from functools import partial
from typing import Any, NamedTuple, Self

from tests.server import SCALE, Server, eventually

TIMEOUT_SECONDS = 15
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Reply(NamedTuple):
    """One response. headers: lower-case names, in the order in which they came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        values = self.all(name)
        assert len(values) <= 1, self.headers
        return values[0] if values else None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def closes(self) -> bool:
        return self.header("connection") == "close"

    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """A TCP connection to a server's port, or to the worker of a number. Every read has a time-out."""

    def __init__(self, address: Server | int, *, worker: int | None = None) -> None:
        if isinstance(address, Server):
            self.socket = address.dial(worker)
        else:
            self.socket = socket.create_connection(("127.0.0.1", address), timeout=TIMEOUT_SECONDS * SCALE)
        self.socket.settimeout(TIMEOUT_SECONDS * SCALE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(address, Server):
            self.socket = address.secured(self.socket)
        self.unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def send_bytewise(self, data: bytes) -> Self:
        for position in range(len(data)):
            self.socket.send(data[position : position + 1])
        return self

    def send_split(self, data: bytes, at: int) -> Self:
        return self.send(data[:at]).send(data[at:])

    def end(self) -> Self:
        """Say that nothing more is sent; replies can still be read."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def receive(self) -> bool:
        data = self.socket.recv(65536)
        self.unread += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.unread:
            assert self.receive(), f"the connection ended before {mark!r}: {self.unread!r}"
        found, _, self.unread = self.unread.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        while len(self.unread) < size:
            assert self.receive(), f"the connection ended with {len(self.unread)} of {size} bytes"
        found, self.unread = self.unread[:size], self.unread[size:]
        return found

    def reply(self, *, to_head: bool = False) -> Reply:
        """The next response; `to_head`: to a HEAD request, which has no body."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version in {"HTTP/1.0", "HTTP/1.1"}
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        reply = Reply(int(status), headers, b"")
        if reply.status < 200 or to_head:
            return reply
        size = reply.header("content-length")
        assert size is not None, headers
        return reply._replace(body=self.exactly(int(size)))

    def is_ended(self) -> bool:
        """Wait for the end of the connection; whether nothing was left to read before it."""
        try:
            while self.receive():
                pass
        except ConnectionResetError:
            pass
        return not self.unread

    def websocket_text(self) -> str:
        """The next frame, a short unmasked text."""
        first, size = self.exactly(2)
        assert first == 0x81 and size < 126, (first, size)
        return self.exactly(size).decode()

    def websocket_close(self) -> int:
        """The code of the next frame, a close frame."""
        first, size = self.exactly(2)
        assert first == 0x88 and size >= 2, (first, size)
        return int.from_bytes(self.exactly(size)[:2], "big")


def request(method: str, path: str, *headers: str, body: bytes | None = None, host: str = "localhost") -> bytes:
    """One HTTP/1.1 request; a body brings its Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (body or b"")


def push(user: Any, event: Any, message: Any, *headers: str, path: str = "/push") -> bytes:
    body = json.dumps({"userId": user, "event": event, "message": message}).encode()
    return request("POST", path, *headers, body=body)


def wait_until_whole(server: Server, workers: int = 2) -> None:
    """Wait until so many workers, successors of killed ones too, take pushes: after a new broker, each for itself."""

    def numbers() -> list[int]:
        return [process["number"] for process in server.processes("worker")]

    for worker in eventually(lambda: len(found := numbers()) == workers and found, what="a process in each slot"):
        with Wire(server, worker=worker) as wire:
            eventually(partial(_is_ready, wire), what=f"worker-{worker} is ready")


def _is_ready(wire: Wire) -> bool:
    return wire.send(request("GET", "/ready")).reply().status == 200


def chunked(body: bytes, size: int = 7) -> bytes:
    """A body in chunks."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def upgrade(path: str = "/ws", *headers: str, host: str = "localhost", **replaced: str | None) -> bytes:
    """A WebSocket request; by keyword a header's value, or None to leave it out."""
    fields: dict[str, str | None] = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    }
    for name, value in replaced.items():
        fields[{"key": "Sec-WebSocket-Key", "version": "Sec-WebSocket-Version"}.get(name, name.capitalize())] = value
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return request("GET", path, *lines, *headers, host=host)


def masked_text(text: str) -> bytes:
    """A client's text frame of up to 125 bytes."""
    data = text.encode()
    assert len(data) < 126
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


def ask(address: Server | int, data: bytes) -> Reply:
    """The reply to one request on a connection of its own."""
    with Wire(address) as wire:
        return wire.send(data).reply(to_head=data.startswith(b"HEAD "))
