"""What channels cost: publishing with history, recovery, fan-out and memory over the client protocol.

    python -m bench.channels [--only NAME …] [--rounds N] [--quick]

One worker on one core, this client on another. What is compared runs in turn within a round, so that what else the
machine does meets all of it. The figures are kept beside those of `python -m bench`, for RESULTS.md.
"""

import http.client
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import click
import orjson

from bench import report
from bench.figures import kilobytes, micros, millis, over, percent, seconds, times
from bench.measure import drive
from bench.records import Folder, Spread
from bench.servers import CACHE, FASTPUSH, Sections, Server, running
from fastpush.bench.connections import resolve
from fastpush.bench.frame_reader import client_frame, frame_end
from fastpush.bench.server_stats import ServerProcesses
from fastpush.protocol.frames import Opcode, payload_of

_PATH = "/connection/websocket"
_SIZE_BYTES = 128
_CLIENTS = 1000
_MISSED = 100
_OUTSTANDING = 32
_PUBLISHED = {1: 4000, _OUTSTANDING: 20_000}  # publications of one measurement, by how many are outstanding
_HELD = 6000  # connections whose memory is measured
_CHANNELS = 1_000_000
_TOGETHER = 500  # channels of one broadcast
_AT_ONCE = 50  # subscriptions of one frame
_FORGOTTEN_SECONDS = 60  # at most until what is to be forgotten is
_HISTORY_SECONDS = 1
_FAN_OUT_SECONDS = 4
_WAIT_SECONDS = 60
_QUICK_DIVISOR = 20
_SECTIONS: Sections = {
    "connections": {"ping_interval_seconds": 3600},
    "client": {"anonymous": "loopback"},
    "channels.live": {"subscribe": "everybody"},
    "channels.kept": {"subscribe": "everybody", "history_messages": _MISSED, "recovery": True},
    "channels.soon": {
        "subscribe": "everybody", "history_messages": _MISSED, "history_seconds": _HISTORY_SECONDS, "recovery": True,
    },
}  # fmt: skip


class Row(NamedTuple):
    """One figure over the rounds. text: writes it, with its unit."""

    case: str
    values: list[float]
    text: Callable[[float], str]


@dataclass(frozen=True)
class Options:
    """How to measure. divisor: of all that is counted, for a run that shows that it runs."""

    rounds: int
    divisor: int
    cores: tuple[int, int]

    def of(self, number: int) -> int:
        """Return how many of something, here."""
        return max(1, number // self.divisor)

    def server(self) -> Any:
        """Return a fresh server, to be entered."""
        return running(FASTPUSH, self.cores[:1], _SECTIONS, 1)


@dataclass(frozen=True)
class Question:
    """One question. judge: the figure to compare with the target, of the values by case, and whether it meets that."""

    name: str
    title: str
    target: str
    how: str
    measure: Callable[[Options], list[Row]]
    judge: Callable[[dict[str, list[float]]], tuple[str, bool]]


# -- a client, and back-ends ----------------------------------------------------------


class Client:
    """One client of channels, which waits for what it expects."""

    def __init__(self, port: int) -> None:
        endpoint = resolve(f"ws://127.0.0.1:{port}", insecure=False)
        self.socket = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS)
        self.socket.sendall(endpoint.handshake(_PATH, compression=False))
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        self._received = self._received.partition(b"\r\n\r\n")[2]

    def send(self, *commands: dict[str, Any]) -> None:
        """Send commands in one frame."""
        self.socket.sendall(client_frame(Opcode.TEXT, b"\n".join(map(orjson.dumps, commands))))

    def message(self) -> bytes:
        """Return the next message: replies and pushes, a line each."""
        while (end := frame_end(self._received, 0)) > len(self._received):
            self._receive()
        frame, self._received = self._received[:end], self._received[end:]
        return bytes(payload_of(frame))

    def reply(self, number: int) -> dict[str, Any]:
        """Return the reply to a command; what comes before it is not looked at. Raises: RuntimeError: an error."""
        while True:
            for line in self.message().split(b"\n"):
                found: dict[str, Any] = orjson.loads(line)
                if found.get("id") == number:
                    if "error" in found:
                        raise RuntimeError(f"refused: {found['error']}")
                    return found

    def _receive(self) -> None:
        received = self.socket.recv(262_144)
        if not received:
            raise RuntimeError("the server has closed a client")
        self._received += received


def _connected(port: int) -> Client:
    client = Client(port)
    client.send({"id": 1, "connect": {}})
    client.reply(1)
    return client


def _closing(stack: ExitStack, client: Client) -> Client:
    stack.enter_context(client.socket)
    return client


def _publish(port: int, bodies: Iterable[dict[str, Any]], outstanding: int, subscriber: Client | None = None) -> None:
    """Publish each body, so many at a time, each over a connection of its own; the subscriber's socket is emptied."""
    waiting, left = select.poll(), iter(bodies)
    links: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        if subscriber is not None:
            waiting.register(subscriber.socket, select.POLLIN)
        for body in islice(left, outstanding):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS))
            links[link.fileno()] = link
            waiting.register(link, select.POLLIN)
            link.sendall(_request(body))
        while links:
            for descriptor, _ in waiting.poll():
                link = links.get(descriptor)
                if link is None:
                    assert subscriber is not None
                    subscriber.socket.recv(262_144)
                    continue
                reply = link.recv(65_536)  # short enough to come in one piece
                if not reply.startswith(b"HTTP/1.1 200") or b'"error"' in reply:
                    raise RuntimeError(f"a publish was answered with {reply[:200]!r}")
                following = next(left, None)
                if following is None:
                    waiting.unregister(link)
                    del links[descriptor]
                else:
                    link.sendall(_request(following))


def _request(body: dict[str, Any]) -> bytes:
    text = orjson.dumps(body)
    head = b"POST /api/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    return b"%b%d\r\n\r\n%b" % (head, len(text), text)


def _cpu_us(processes: ServerProcesses) -> float:
    return sum(processes.measure(memory=False).cpu_ns.values()) / 1000


def _ratio(above: list[float], below: list[float]) -> Spread:
    spread = Spread.over(top / bottom for top, bottom in zip(above, below, strict=True))
    assert spread is not None
    return spread


# -- publishing with history ----------------------------------------------------------


def _history(options: Options) -> list[Row]:
    rows = [
        Row(f"{_who(subscribers)}, {outstanding} outstanding, {namespace}", [], micros)
        for subscribers in (0, 1)
        for outstanding in _PUBLISHED
        for namespace in ("live", "kept")
    ]
    with options.server() as server:
        processes = ServerProcesses(server.pid)
        for subscribers in (0, 1):
            for outstanding, number in _PUBLISHED.items():
                for measured in range(-1, options.rounds):
                    for namespace in ("live", "kept"):
                        cost = _publish_cost(
                            server, processes, f"{namespace}:room", options.of(number), outstanding, subscribers
                        )
                        if measured >= 0:  # the first one warms up
                            case = f"{_who(subscribers)}, {outstanding} outstanding, {namespace}"
                            next(row for row in rows if row.case == case).values.append(cost)
    return rows
