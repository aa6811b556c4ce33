"""Fan-out between real processes: many connections, many publishers, several workers; order, counts and bounds."""

import gzip
import json
import re
import select
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.raw import BINARY, CLOSE, TEXT, RawClient, build, close_payload
from tests.server import SCALE, Server, eventually
from tests.wire import Wire, push, request

SECONDS = 60 * SCALE  # until a condition is given up


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server with two workers that ends with the test; arguments: of [bus]."""
    servers: list[Server] = []

    def start(**bus: int) -> Server:
        # However far behind the workers are on a busy machine, they are waited for.
        sections = {"bus": {"confirm_ms": 30000, **bus}}
        servers.append(Server(tmp_path, workers=2, sections=sections))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


class Readers:
    """Reads all connections in a thread of its own, until each has `expected` messages or has ended.

    messages: of each connection, text as it came; binary is taken for gzip.
    """

    def __init__(self, clients: list[RawClient]) -> None:
        self.clients = clients
        self.messages: dict[RawClient, list[str]] = {client: [] for client in clients}
        self.ended: set[RawClient] = set()
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._lock = threading.Lock()
        for client in clients:
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def add(self, client: RawClient) -> None:
        with self._lock:
            self.clients.append(client)
            self.messages[client] = []
            self._selector.register(client.socket, selectors.EVENT_READ, client)
        self._waker.send(b"+")

    def _read(self) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for key, _ in self._selector.select(1):
                if key.data is None:
                    if self._woken.recv(100).endswith(b"."):
                        return
                    continue
                with self._lock:
                    self._take(key.data)

    def _take(self, client: RawClient) -> None:
        data = client.socket.recv(1 << 20)
        client._held += data
        if not data:
            self.ended.add(client)
            self._selector.unregister(client.socket)
        while _is_whole(client._held):
            frame = client.read()
            if frame.opcode == CLOSE:
                continue
            assert frame.opcode in {TEXT, BINARY} and not frame.rsv, frame
            payload = frame.payload if frame.opcode == TEXT else gzip.decompress(frame.payload)
            self.messages[client].append(payload.decode())

    def close(self) -> None:
        self._waker.send(b".")
        self._thread.join()
        self._selector.close()
        for end in (self._waker, self._woken, *(client.socket for client in self.clients)):
            end.close()


def _is_whole(held: bytearray) -> bool:
    if len(held) < 2:
        return False
    size, start = held[1], 2
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(held[2:start], "big")
    return len(held) >= start + size


@contextmanager
def reading(clients: list[RawClient]) -> Iterator[Readers]:
    readers = Readers(clients)
    try:
        yield readers
    finally:
        readers.close()


def publish(
    server: Server, publishers: int, each: int, make: Callable[[int, int], bytes]
) -> dict[tuple[int, int], int]:
    """Push concurrently, each publisher on a connection of its own; return the count of every push.

    make: returns the request for (publisher, number).
    """
    counts: dict[tuple[int, int], int] = {}
    failures: list[Exception] = []

    def work(publisher: int) -> None:
        try:
            with Wire(server) as wire:
                for number in range(each):
                    reply = wire.send(make(publisher, number)).reply()
                    match = re.fullmatch(rb"message sent to (\d+) clients", reply.body)
                    assert reply.status == 200 and match, reply
                    counts[publisher, number] = int(match[1])
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(publisher,)) for publisher in range(publishers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return counts


def workers_of(server: Server, clients: list[RawClient]) -> Counter[int]:
    """Return how many of the connections each worker holds."""
    accepted = {line["peer"]: line["worker"] for line in server.events("accepted")}
    return Counter(accepted[f"127.0.0.1:{client.port}"] for client in clients)


def text_of(publisher: int, number: int) -> str:
    return f"{publisher}.{number} " + "x" * (number * 37 % 300)


def is_in_order(texts: list[str]) -> bool:
    """Whether each publisher's own messages, of which it pushes one after the other, are in order."""
    last: dict[str, int] = {}
    for text in texts:
        publisher, _, number = text.split()[0].partition(".")
        if int(number) <= last.get(publisher, -1):
            return False
        last[publisher] = int(number)
    return True


def test_every_connection_sees_every_message_once_in_one_order(serve: Callable[..., Server]) -> None:
    """S0-26, S0-28: 300 connections of one user on two workers, 8 publishers at once: everybody has every message once,
    all connections of both workers in the same order, and every reply counts 300.
    """
    server = serve()
    clients = [RawClient(server, "/ws", token="crowd", event="e") for _ in range(300)]
    assert min(workers_of(server, clients).values()) > 50
    assert len(workers_of(server, clients)) == 2
    with reading(clients) as readers:
        counts = publish(server, 8, 40, lambda p, n: push("crowd", "e", text_of(p, n)))
        assert counts == {(publisher, number): 300 for publisher in range(8) for number in range(40)}
        eventually(lambda: all(len(texts) >= 320 for texts in readers.messages.values()), 60, "all messages")
        assert server.push("crowd", "e", "last")["sent"] == 300
        eventually(lambda: all(texts[-1] == "last" for texts in readers.messages.values()), 60, "the last message")
        orders = {tuple(texts) for texts in readers.messages.values()}
        (order,) = orders
        assert sorted(order[:-1]) == sorted(text_of(publisher, number) for publisher, number in counts)
        assert is_in_order(list(order[:-1]))
    metrics = server.metrics()
    assert metrics["fastpush_deliveries_total"] == 321 * 300
    assert metrics["fastpush_writes_total"] <= metrics["fastpush_deliveries_total"]


def test_all_wire_forms_and_keys_in_one_order(serve: Callable[..., Server]) -> None:
    """Plain, envelope and gzip receivers of one key see the same order; a push to several users, or to everybody, comes
    to each connection once, in the order of each key that it was pushed by.
    """
    server = serve()
    forms: list[dict[str, str]] = [{}, {"envelope": "1"}, {"support_gzip": "1"}, {"envelope": "1", "support_gzip": "1"}]
    clients = {
        (user, form): RawClient(server, "/ws", token=user, event="e", **forms[form % 4])
        for user in ("ann", "bob", "eve")
        for form in range(24)
    }
    targets: list[Any] = ["ann", ["ann", "bob"], ["bob", "eve", "bob"], None]

    def make(publisher: int, number: int) -> bytes:
        target = targets[(publisher + number) % 4]
        if target is None:
            body = json.dumps({"event": "e", "message": text_of(publisher, number)}).encode()
            return request("POST", "/push/all", body=body)
        return push(target, "e", text_of(publisher, number))

    receivers = [{"ann"}, {"ann", "bob"}, {"bob", "eve"}, {"ann", "bob", "eve"}]
    expected = {
        (publisher, number): receivers[(publisher + number) % 4] for publisher in range(8) for number in range(40)
    }
    with reading(list(clients.values())) as readers:
        counts = publish(server, 8, 40, make)
        assert counts == {pushed: 24 * len(users) for pushed, users in expected.items()}
        total = {user: sum(user in users for users in expected.values()) for user in ("ann", "bob", "eve")}

        def whole() -> bool:
            return all(len(readers.messages[client]) >= total[user] for (user, _), client in clients.items())

        eventually(whole, 60, "all messages")
        for user, size in total.items():
            by_key: dict[int, set[tuple[str, ...]]] = {0: set(), 1: set(), 2: set()}
            for (owner, form), client in clients.items():
                if owner != user:
                    continue
                texts = readers.messages[client]
                if form % 2:
                    texts = [json.loads(text)["message"] for text in texts]
                own = {text_of(*pushed) for pushed, users in expected.items() if user in users}
                assert len(texts) == size and set(texts) == own
                everybody = {text_of(*pushed) for pushed, users in expected.items() if len(users) == 3}
                by_key[0].add(tuple(text for text in texts if text in everybody))
                by_key[1].add(tuple(text for text in texts if text not in everybody))
            assert (len(by_key[0]), len(by_key[1])) == (1, 1)


def test_counts_are_exact_while_connections_come_and_go(serve: Callable[..., Server]) -> None:
    """Whoever joins a busy key sees all that is pushed from its 101 on, whoever leaves all that counted it: a
    stretch of the common order without a gap; and the sum of all replies is what all clients have read.
    """
    server = serve()
    steady = [RawClient(server, "/ws", token="crowd", event="e") for _ in range(60)]
    with reading(steady) as readers:
        stop = threading.Event()
        counts: dict[tuple[int, int], int] = {}
        publishing = threading.Thread(
            target=lambda: counts.update(publish(server, 6, 150, lambda p, n: push("crowd", "e", text_of(p, n))))
        )
        restless: list[RawClient] = []

        def come_and_go() -> None:
            while not stop.is_set() and len(restless) < 400:
                client = RawClient(server, "/ws", token="crowd", event="e")
                restless.append(client)
                readers.add(client)
                if len(restless) > 10:
                    restless[-11].send(build(CLOSE, close_payload(1000)))

        going = threading.Thread(target=come_and_go)
        publishing.start()
        going.start()
        publishing.join()
        stop.set()
        going.join()
        for client in restless[-10:]:
            client.send(build(CLOSE, close_payload(1000)))
        eventually(lambda: readers.ended.issuperset(restless), 60, "all closed")
        eventually(lambda: all(len(readers.messages[client]) >= 900 for client in steady[:60]), 60, "all messages")
        (order,) = {tuple(readers.messages[client]) for client in steady[:60]}
        assert len(order) == len(set(order)) == 900
        position = {text: at for at, text in enumerate(order)}
        assert len(restless) > 20
        for client in restless:
            places = [position[text] for text in readers.messages[client]]
            assert places == list(range(places[0], places[0] + len(places))) if places else True
        read = sum(len(texts) for texts in readers.messages.values())
        assert sum(counts.values()) == read == server.metrics()["fastpush_deliveries_total"]
        assert sum(counts.values()) > 900 * 60


def test_what_a_busy_worker_has_not_counted_is_bounded(serve: Callable[..., Server]) -> None:
    """[bus] queue_bytes: pushes to a worker that counts nothing are refused with 503 once so many bytes are with it;
    those that were taken arrive, once, and count, when it goes on.
    """
    server = serve(queue_bytes=65536)
    with RawClient(server, "/ws", token="t", event="e") as client, RawClient(server, "/ws", token="u", event="e"):
        worker = server.worker_of(client.port)
        wires = [wire_to_another(server, worker) for _ in range(20)]
        process = psutil.Process(server.pid_of_worker(worker))
        process.suspend()
        try:
            for number, wire in enumerate(wires):
                wire.send(push("t", "e", f"{number} " + "x" * 16000))
            refused = eventually(lambda: at_least(15, answered(wires)), 30, "15 of 20 answered")
        finally:
            process.resume()
        statuses = [wire.reply() for wire in wires]
        assert [statuses[number].status for number in refused] == [503] * 15
        taken = set(range(20)).difference(refused)
        assert {statuses[number].body for number in taken} == {b"message sent to 1 clients"}
        assert {int(client.read_text().split()[0]) for _ in taken} == taken
        assert server.push("t", "e", "on")["sent"] == 1
        assert client.read_text() == "on"
        for wire in wires:
            wire.socket.close()


def wire_to_another(server: Server, worker: int) -> Wire:
    """Return a connection that another worker than this one has accepted."""
    while True:
        wire = Wire(server)
        if server.worker_of(wire.socket.getsockname()[1]) != worker:
            return wire
        wire.socket.close()


def answered(wires: list[Wire]) -> list[int]:
    """Return the positions of those that have something to read."""
    readable = select.select([wire.socket for wire in wires], [], [], 0)[0]
    return [number for number, wire in enumerate(wires) if wire.socket in readable]


def at_least(count: int, found: list[int]) -> list[int]:
    return found if len(found) >= count else []
