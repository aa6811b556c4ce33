"""Load for a running server, cheap enough to share two cores with it: WebSockets, publishers, and what they saw.

Clients come back as soon as they lose their connection, and
the time each connect took is kept, from its beginning to the 101. One that ends before, with
the worker that had accepted it, is kept apart.
"""

import asyncio
import json
import os
import re
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from tests.server import SCALE, Server

T = TypeVar("T")
EVENT = "news"
_NO_CODE = 1006
_MASK = b"\1\2\3\4"
_HEAD_END = b"\r\n\r\n"
_ACCEPTED = re.compile(rb'"event": "accepted", "peer": "127.0.0.1:(\d+)", "worker": (\d+)')
_LENGTH = re.compile(rb"Content-Length: (\d+)", re.IGNORECASE)


_transports: set[asyncio.BaseTransport] = set()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a scenario; what it leaves open when it fails is closed, so that its failure is the one that is shown."""

    async def tidily() -> T:
        try:
            return await work
        finally:
            for transport in list(_transports):
                transport.abort()
            while _transports:
                await asyncio.sleep(0)

    return asyncio.run(tidily())


async def until(condition: Callable[[], Any], seconds: float = 10, what: str = "condition") -> Any:
    """Return the condition's first true value; fail when it has none in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds * SCALE
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"{what} not met within {seconds} s, last value: {value!r}")
        await asyncio.sleep(0.01)


class Refused(Exception):
    """An upgrade was answered, but not with 101."""


class WebSocket(asyncio.Protocol):
    """A client's end of a WebSocket that registers by URL. answers_close: take part in the close handshake.

    target: what it asks for instead.  opened: done at the 101.  code: of the server's close frame, 1006 without one.
    closed: the same, at the end.
    """

    def __init__(
        self, user: str, on_message: Callable[[str], None], *, answers_close: bool = True, target: str = ""
    ) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[int] = loop.create_future()
        self.port = 0
        self._target = target or f"/ws?token={user}&event={EVENT}"
        self._on_message = on_message
        self._answers_close = answers_close
        self._held = b""
        self.code = _NO_CODE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        _transports.add(transport)
        self.port = transport.get_extra_info("sockname")[1]
        transport.write(
            f"GET {self._target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._held += data
        if not self.opened.done():
            head, end, rest = self._held.partition(_HEAD_END)
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.opened.set_exception(Refused(head.decode()))
                self.transport.close()
                return
            self._held = rest
            self.opened.set_result(None)
        while (frame := self._take_frame()) is not None:
            self._on_frame(*frame)

    def _take_frame(self) -> tuple[int, bytes] | None:
        held = self._held
        if len(held) < 2:
            return None
        start, size = 2, held[1]
        if size == 126:
            start, size = 4, int.from_bytes(held[2:4], "big")
        elif size == 127:
            start, size = 10, int.from_bytes(held[2:10], "big")
        if len(held) < start or len(held) < start + size:
            return None
        self._held = held[start + size :]
        return held[0] & 15, held[start : start + size]

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            self._on_message(payload.decode())
        elif opcode == 9:
            self._send(10, payload)
        elif opcode == 8:
            self.code = int.from_bytes(payload[:2], "big") or 1005
            if self._answers_close:
                self._send(8, payload[:2])

    def _send(self, opcode: int, payload: bytes) -> None:
        masked = bytes(byte ^ _MASK[at % 4] for at, byte in enumerate(payload))
        self.transport.write(bytes((0x80 | opcode, 0x80 | len(payload))) + _MASK + masked)

    @property
    def is_ending(self) -> bool:
        """Whether the server has sent its close frame, or the connection has ended."""
        return self.code != _NO_CODE or self.closed.done()

    def send_text(self, text: str) -> None:
        """Send a text of at most 125 bytes."""
        self._send(1, text.encode())

    def reset(self) -> None:
        """End the TCP connection with RST."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def close(self) -> None:
        """Begin the close handshake."""
        self._send(8, b"\x03\xe8")

    def connection_lost(self, exc: Exception | None) -> None:
        _transports.discard(self.transport)
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError("before the 101"))
        if not self.closed.done():
            self.closed.set_result(self.code)


async def dial(server: Server, worker: int) -> socket.socket:
    """Return a TCP connection that the worker of this number has accepted."""
    dialled = await asyncio.to_thread(server.dial, worker)
    dialled.setblocking(False)
    return dialled


async def open_websocket(
    port: int,
    user: str,
    on_message: Callable[[str], None] = lambda _: None,
    *,
    dialled: socket.socket | None = None,
    **kwargs: Any,
) -> WebSocket:
    """Connect and register. dialled: a connection that is there already. Raises: OSError, Refused."""
    loop = asyncio.get_running_loop()
    where: dict[str, Any] = {"sock": dialled} if dialled else {"host": "127.0.0.1", "port": port}
    _, websocket = await loop.create_connection(lambda: WebSocket(user, on_message, **kwargs), **where)
    await websocket.opened
    return websocket


class Reply(NamedTuple):
    """An HTTP response; status 0: the connection broke, body is what had come by then."""

    status: int
    body: bytes


class HttpConnection(asyncio.Protocol):
    """A kept-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._held = b""
        self._reply: asyncio.Future[Reply] | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        _transports.add(transport)
        self.port = transport.get_extra_info("sockname")[1]

    async def ask(self, request: bytes) -> Reply:
        if not self.is_open:
            return Reply(0, b"")
        self._reply = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._reply

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, end, body = self._held.partition(_HEAD_END)
        if not end or self._reply is None or self._reply.done():
            return
        length = _LENGTH.search(head)
        if len(body) < int(length[1]):
            return
        self._held = b""
        if b"connection: close" in head.lower():
            self.is_open = False
            self.transport.close()
        self._reply.set_result(Reply(int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        _transports.discard(self.transport)
        self.is_open = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(0, self._held))


class Push(NamedTuple):
    """A push and what became of it.

    status: 0: its connection broke.  began, ended: loop time.  worker: that it went through, 0 when not asked for.
    """

    user: str
    message: str
    status: int
    sent: int
    unconfirmed: int
    began: float
    ended: float
    port: int
    worker: int
    body: bytes

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Publisher:
    """Pushes one message after the other over a kept-alive connection, made again when it is lost.

    connects: how long each took, to the answer of GET /health.  cut: those that ended with their worker.
    accepts: asked which worker serves it.
    """

    def __init__(self, port: int, accepts: "Accepts | None" = None) -> None:
        self._port = port
        self._accepts = accepts
        self._worker = 0
        self._connection: HttpConnection | None = None
        self.connects: list[float] = []
        self.cut: list[float] = []
        self.refused = 0

    @property
    def port(self) -> int:
        assert self._connection is not None
        return self._connection.port

    async def connect(self) -> None:
        """Have a connection that a worker serves."""
        loop = asyncio.get_running_loop()
        while self._connection is None or not self._connection.is_open:
            began = loop.time()
            try:
                _, connection = await loop.create_connection(HttpConnection, "127.0.0.1", self._port)
            except ConnectionRefusedError:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            reply = await connection.ask(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            (self.connects if reply.status else self.cut).append(loop.time() - began)
            if reply.status:
                self._connection = connection
                self._worker = self._accepts.worker_of(connection.port) if self._accepts else 0

    async def push(self, user: str, message: str) -> Push:
        connection = self._connection
        assert connection is not None
        body = json.dumps({"userId": user, "event": EVENT, "message": message}).encode()
        loop = asyncio.get_running_loop()
        began = loop.time()
        status, answer = await connection.ask(
            b"POST /push HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        counts = json.loads(answer) if status == 200 else {}
        return Push(
            user, message, status, counts.get("sent", 0), counts.get("unconfirmed", 0),
            began, loop.time(), connection.port, self._worker, answer,
        )  # fmt: skip

    def close(self) -> None:
        if self._connection is not None and self._connection.is_open:
            self._connection.transport.close()


class Client:
    """A user's connection that comes back whenever it is lost.

    messages: all received.  connects: how long each took.  closes: code of each end.
    cut: how long those lasted that ended with their worker.
    """

    def __init__(self, port: int, user: str) -> None:
        self._port = port
        self.user = user
        self.messages: list[str] = []
        self.connects: list[float] = []
        self.closes: list[int] = []
        self.refused: list[str] = []
        self.cut: list[float] = []
        self.websocket: WebSocket | None = None

    @property
    def is_connected(self) -> bool:
        return self.websocket is not None and not self.websocket.closed.done()

    async def live(self) -> None:
        while True:
            await self._connect()
            assert self.websocket is not None
            self.closes.append(await self.websocket.closed)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self.websocket = await open_websocket(self._port, self.user, self.messages.append)
            except ConnectionResetError:
                self.cut.append(loop.time() - began)
            except (OSError, Refused) as error:
                self.refused.append(repr(error))
                await asyncio.sleep(0.01)
            else:
                self.connects.append(loop.time() - began)
                return


class Load:
    """`users` with `each` connections, and publishers that push to them in turn at a steady rate."""

    def __init__(
        self,
        server: Server,
        *,
        users: int,
        each: int,
        publishers: int = 0,
        pushes_per_second: float = 0,
        accepts: "Accepts | None" = None,
    ) -> None:
        self.server = server
        self.users = [f"user{number}" for number in range(users)]
        self.each = each
        self.clients = [Client(server.port, user) for user in self.users for _ in range(each)]
        self.publishers = [Publisher(server.port, accepts) for _ in range(publishers)]
        self.pushes: list[Push] = []
        self._interval = publishers / pushes_per_second if pushes_per_second else 0
        self._tasks: list[asyncio.Task[None]] = []
        self._publishing = True

    async def __aenter__(self) -> Self:
        spawn = asyncio.get_running_loop().create_task
        self._tasks = [spawn(client.live()) for client in self.clients]
        await until(lambda: all(client.is_connected for client in self.clients), 20, "all connected")
        self._publications = [spawn(self._publish(n, publisher)) for n, publisher in enumerate(self.publishers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in [*self._tasks, *self._publications]:
            task.cancel()
        for publisher in self.publishers:
            publisher.close()
        for client in self.clients:
            if client.is_connected:
                client.websocket.transport.close()
        await asyncio.gather(*self._tasks, *self._publications, return_exceptions=True)
        await until(lambda: not any(client.is_connected for client in self.clients))

    async def _publish(self, number: int, publisher: Publisher) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._interval * number / len(self.publishers)
        count = 0
        while self._publishing:
            await asyncio.sleep(max(0, due - loop.time()))
            await publisher.connect()
            due = max(due + self._interval, loop.time() - 1)  # what a pause held up comes at once, a second of it
            user = self.users[(number + count * len(self.publishers)) % len(self.users)]
            self.pushes.append(await publisher.push(user, f"{number}:{count}"))
            count += 1

    async def stop_publishing(self) -> None:
        """Let every push under way be answered, then no more."""
        self._publishing = False
        await asyncio.wait_for(asyncio.gather(*self._publications), 20 * SCALE)

    # -- what was seen -------------------------------------------------------------

    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(push.status for push in self.pushes).items()))

    def connects(self) -> list[float]:
        return [seconds for client in [*self.clients, *self.publishers] for seconds in client.connects]

    def cut(self) -> list[float]:
        return [seconds for client in [*self.clients, *self.publishers] for seconds in client.cut]

    def refused(self) -> list[str]:
        return [text for client in self.clients for text in client.refused] + [
            "publisher" for publisher in self.publishers for _ in range(publisher.refused)
        ]

    def closes(self) -> Counter[int]:
        return Counter(code for client in self.clients for code in client.closes)

    def received(self) -> dict[str, int]:
        """How many connections received each message."""
        return Counter(message for client in self.clients for message in client.messages)

    def disorder(self) -> list[tuple[str, str]]:
        """Pairs of messages of one publisher that a connection received twice or in the wrong order."""
        wrong = []
        for client in self.clients:
            last: dict[str, int] = defaultdict(lambda: -1)
            for message in client.messages:
                publisher, _, number = message.partition(":")
                if int(number) <= last[publisher]:
                    wrong.append((client.user, message))
                last[publisher] = int(number)
        return wrong

    async def check_delivered(self, pushes: Iterable[Push] | None = None) -> None:
        """Every push that was answered 200 has reached every connection of its user, and none with 503 anybody."""
        pushes = list(self.pushes if pushes is None else pushes)
        taken = [push for push in pushes if push.status == 200]
        assert [push for push in taken if push.sent != self.each or push.unconfirmed] == []
        await until(
            lambda: all(count == self.each for count in map(self.received().get, (push.message for push in taken))),
            what="every message received",
        )
        received = self.received()
        assert [push for push in pushes if push.status == 503 and push.message in received] == []
        assert self.disorder() == []

    async def check_exact(self) -> int:
        """The routing table is that of the clients, and each user is counted exactly. Returns its routes."""
        await until(lambda: all(client.is_connected for client in self.clients), 20, "all connected")
        expected = len(self.users) + 1
        metrics: dict[str, float] = {}

        async def is_exact() -> bool:
            nonlocal metrics
            metrics = await asyncio.to_thread(self.server.metrics)
            found = metrics["fastpush_broker_routes"], metrics["fastpush_connections"]
            return found == (expected, len(self.clients))

        await until(is_exact, what=f"{expected} routes")
        publisher = Publisher(self.server.port)
        await publisher.connect()
        for user in self.users:
            push = await publisher.push(user, f"{len(self.publishers)}:{self.users.index(user)}")
            assert (push.status, push.sent, push.unconfirmed) == (200, self.each, 0), push
        publisher.close()
        return int(metrics["fastpush_broker_routes"])


class Accepts:
    """Which worker accepted a connection, from the server's log as it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._partial = b""
        self._workers: dict[int, int] = {}

    def worker_of(self, port: int) -> int:
        """Return the worker that accepted from this local port last; it is known when the client has an answer."""
        *lines, self._partial = (self._partial + self._file.read()).split(b"\n")
        for line in lines:
            # Not read as JSON: the stacks of a process that was aborted stand between the lines.
            if found := _ACCEPTED.search(line):
                self._workers[int(found[1])] = int(found[2])
        return self._workers[port]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def kill(pid: int, number: int) -> None:
    """Send a signal to a process that may have gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def show(*figures: str) -> None:
    """Print a line of figures; `pytest -s` or `-rP` shows it."""
    print("\n" + "".join(figures))  # noqa: T201 - what was measured is asked for
