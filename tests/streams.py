"""Event streams by hand: what is on the wire, event after event, as no browser shows it."""

import json
import socket
import struct
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from tests.applications import workers
from tests.sdk import KEY
from tests.server import SCALE, Server

TIMEOUT_SECONDS = 15


class Event(NamedTuple):
    """One event. id: "" for one that leaves the last one as it was."""

    data: str
    name: str = ""
    id: str = ""

    def json(self) -> Any:
        return json.loads(self.data)


class Stream:
    """A GET for an event stream, its head read. Every read has a time-out.

    parameters: of the URL; a list repeats.  worker: which of the workers has to accept it, the oldest is 0.
    receive_bytes: of the kernel's receive buffer, set before connecting.  last_id: sent, as browsers that come back do.
    status: 200, or what refused it; then `body` is the answer's.
    last_id: of the last event that set one, what a browser would send.  comments: so far.
    """

    def __init__(
        self, server: Server, path: str = "/sse", *, worker: int | None = None, receive_bytes: int = 0,
        headers: dict[str, str] | None = None, method: str = "GET", port: int = 0, last_id: str = "",
        **parameters: Any,
    ) -> None:  # fmt: skip
        self.last_id = last_id
        self.comments = self.retry_ms = 0
        self._unread = b""
        self.socket = self._dial(server, worker, receive_bytes, port)
        target = f"{path}?{urlencode(parameters, doseq=True)}" if parameters else path
        resumed = {"Last-Event-ID": last_id} if last_id else {}
        lines = [f"{name}: {value}" for name, value in {**resumed, **(headers or {})}.items()]
        self.socket.sendall("\r\n".join((f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *lines, "", "")).encode())
        first, *rest = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        self.body = (
            b"" if self.status == 200 or method == "HEAD" else self._exactly(int(self.headers["content-length"]))
        )

    @staticmethod
    def _dial(server: Server, worker: int | None, receive_bytes: int, port: int) -> socket.socket:
        number = None if worker is None else workers(server)[worker]
        dialled = server.dial(number, receive_bytes=receive_bytes, port=port)
        dialled.settimeout(TIMEOUT_SECONDS * SCALE)
        return server.secured(dialled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def __del__(self) -> None:
        self.socket.close()  # a failed test leaves streams behind; their sockets are not to be its second failure

    def reset(self) -> None:
        """End the TCP connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # -- reading -------------------------------------------------------------------

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._unread:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the stream ended; unread: {self._unread[:200]!r}")
            self._unread += data
        found, _, self._unread = self._unread.partition(mark)
        return found

    def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            data = self.socket.recv(65536)
            assert data, f"the connection ended with {len(self._unread)} of {size} bytes"
            self._unread += data
        found, self._unread = self._unread[:size], self._unread[size:]
        return found

    def block(self) -> Event | None:
        """Read up to the next empty line; None for what is no event: a comment, an id, a time to retry."""
        fields: dict[str, list[str]] = {}
        for line in self._until(b"\n\n").decode().split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        assert fields.keys() <= {"", "retry", "id", "event", "data"}, fields
        self.comments += "" in fields
        self.retry_ms = int(fields.get("retry", [str(self.retry_ms)])[0])
        self.last_id = fields.get("id", [self.last_id])[0]
        if "data" not in fields:
            return None
        return Event("\n".join(fields["data"]), fields.get("event", [""])[0], fields.get("id", [""])[0])

    def event(self) -> Event:
        """The next event."""
        while (found := self.block()) is None:
            pass
        return found

    def data(self, count: int) -> list[Any]:
        """The data of the next so many events, each JSON without a name."""
        events = [self.event() for _ in range(count)]
        assert {event.name for event in events} <= {""}, events
        return [event.json() for event in events]

    def placed(self) -> Self:
        """Read what comes before the first event: the time to retry, and an id."""
        assert [self.block(), self.block()] == [None, None] and self.last_id
        return self

    def remaining(self) -> list[Event]:
        """All events up to the end of the stream; the last one may be cut off."""
        events = []
        try:
            while True:
                events.append(self.event())
        except (EOFError, ConnectionResetError):
            return events


def publish(server: Server, channel: str, *data: Any) -> None:
    """Publish one after the other by the server API."""
    for each in data:
        reply = call(server, "publish", channel=channel, data=each)
        assert "result" in reply, reply


def call(server: Server, method: str, **body: Any) -> Any:
    """Call the server API."""
    return json.loads(server.request("POST", f"/api/{method}", body, {"X-API-Key": KEY})[2])
