"""A connection inside one process: what cannot be arranged from outside, or not in a deterministic order."""

import asyncio
import base64
import contextlib
import itertools
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from fastpush.applications import Application
from fastpush.config import Config, Connections, Limits
from fastpush.errors import CloseCode
from fastpush.fanout import pump
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import Connection, State
from fastpush.worker.environment import Environment, SendQueues
from fastpush.worker.mount import Mount
from fastpush.worker.timers import TimerWheel
from tests.unit.test_fanout import Taker, make_hub, publication
from tests.unit.test_pump import Clock

KEY = base64.b64encode(b"sixteen bytes ok").decode()


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see the package's log lines, whatever another test set up."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)


class Stage(asyncio.Protocol):
    """What comes before the upgrade: fills the transport, then hands it over."""

    def __init__(self, opened: "asyncio.Future[asyncio.Transport]") -> None:
        self.opened = opened

    def connection_made(self, transport: Any) -> None:
        self.opened.set_result(transport)


def environment(connections: Connections | None = None, **limits: Any) -> Environment:
    config = Config(limits=Limits(**limits), connections=connections or Connections())
    counters = Counters()
    hub = make_hub(lambda _, confirmed: confirmed(), counters=counters)
    made = Environment(
        number=1, config=config, hub=hub, wheel=TimerWheel(), counters=counters,
        send_queues=SendQueues(config.limits.worker_send_bytes, hub),
    )  # fmt: skip
    made.spawn = lambda work: asyncio.get_running_loop().create_task(work)
    return made


def mounted(environment: Environment, application: type[Application] = Application) -> Mount:
    server = ApplicationServer("/app", environment, cast(Any, None), cast(Any, None))
    return Mount("/app", application(server, application.options_class()), environment.config)


@contextlib.asynccontextmanager
async def opened(
    environment: Environment, backlog: bytes = b"", application: type[Application] = Application
) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection on a real transport with small buffers, and the client's socket, from which nothing was read."""
    loop = asyncio.get_running_loop()
    transport_made: asyncio.Future[asyncio.Transport] = loop.create_future()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    server = await loop.create_server(lambda: Stage(transport_made), sock=listener)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(listener.getsockname())
    try:
        transport = await asyncio.wait_for(transport_made, 10)
        if backlog:
            transport.write(backlog)
        connection = Connection(environment, mounted(environment, application), "peer", {})
        connection.take_over(transport, KEY)
        yield connection, client
    finally:
        client.close()
        server.close()
        await until(lambda: connection.state == State.CLOSED)


async def read_frames(client: socket.socket, *, last: bytes = b"") -> list[tuple[int, bytes]]:
    """Return opcode and payload of the server's frames, up to one whose payload is `last`, or a close frame."""
    loop = asyncio.get_running_loop()
    client.setblocking(False)
    received = b""

    async def need(size: int) -> None:
        nonlocal received
        while len(received) < size:
            more = await asyncio.wait_for(loop.sock_recv(client, 65536), 10)
            assert more, "the server closed"
            received += more

    while b"\r\n\r\n" not in received:
        await need(len(received) + 1)
    received = received.partition(b"\r\n\r\n")[2]
    frames: list[tuple[int, bytes]] = []
    while not frames or not (frames[-1][0] == 8 or frames[-1][1] == last):
        await need(2)
        first, size = received[:2]
        assert first in {0x81, 0x88, 0x89, 0x8A}, f"no frame begins with {first:#x}"
        start = {126: 4, 127: 10}.get(size, 2)
        await need(start)
        size = int.from_bytes(received[2:start], "big") if start > 2 else size
        await need(start + size)
        frames.append((first & 15, received[start : start + size]))
        received = received[start + size :]
    return frames


def backlog(connection: Connection, size: int = 1000) -> int:
    """Send numbered frames until one is queued; returns how many were sent."""
    number = 0
    while not connection.queued_bytes:
        assert connection.send_frame(numbered(number, size))
        number += 1
    return number


def numbered(number: int, size: int = 1000) -> bytes:
    return text_frame(b"%d " % number + b"x" * size)


def numbers(frames: list[tuple[int, bytes]]) -> list[int]:
    return [int(payload.split()[0]) for opcode, payload in frames if opcode == 1]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


def test_a_backlog_from_before_the_upgrade_counts() -> None:
    """Memory: answers that the client did not read before its upgrade do not switch the send queue's bound off."""

    async def scenario() -> None:
        shared = environment(send_queue_bytes=20_000)
        async with opened(shared, backlog=b"x" * 1_000_000) as (connection, _):
            frame = text_frame(b"y" * 1000)
            taken = 0
            while connection.send_frame(frame):
                taken += 1
                assert taken < 100
            assert taken == 20_000 // (len(frame) + 64)
            assert shared.send_queues.queued_bytes == connection.queued_bytes <= 20_000
            await until(lambda: not connection.is_open)
            assert (connection.close_code, shared.counters.drops_slow) == (1013, taken)

    run(scenario())


def test_a_write_to_a_dead_socket_is_not_taken() -> None:
    """S0-30, S0-35: a write that fails is reported as not taken at once, unbinds, and is no slow client's end."""

    async def scenario() -> None:
        shared = environment()
        async with opened(shared) as (connection, client):
            connection.user = "u"
            shared.hub.join(connection, b"key")
            assert connection.send_frame(text_frame(b"one"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            # The loop has not turned since: nothing but the write itself can tell.
            taken = [connection.send_frame(text_frame(b"two")) for _ in range(3)]
            assert taken == [False] * 3
            await until(lambda: connection.state == State.CLOSED)
            assert (connection.close_code, connection.groups, len(shared.hub)) == (1006, (), 0)
            assert shared.counters.closes == 1

    run(scenario())


def test_an_empty_queue_takes_any_message() -> None:
    """A paused client is not closed for one message, however large; the next one has to fit."""

    async def scenario() -> None:
        shared = environment(send_queue_bytes=1024)
        async with opened(shared) as (connection, _):
            while connection.queued_bytes == 0:
                assert connection.send_frame(text_frame(b"x" * 100_000))
            assert connection.queued_bytes > 1024
            assert not connection.send_frame(text_frame(b"x"))

    run(scenario())


def test_nothing_is_left_of_a_closed_connection() -> None:
    """After the end of paused, violating and closing connections: no queue, no timer, no entry anywhere."""

    async def scenario() -> None:
        shared = environment()
        for ending in (b"", b"\x8f\x80\0\0\0\0", b"\x88\x80\0\0\0\0"):
            async with opened(shared) as (connection, client):
                for _ in range(50):
                    connection.send_frame(text_frame(b"x" * 8000))
                assert connection.queued_bytes and connection in shared.send_queues.paused
                client.sendall(ending)
                if ending:
                    await until(lambda connection=connection: not connection.is_open)
        assert shared.send_queues.queued_bytes == 0
        assert not shared.send_queues.paused and not shared.connections
        assert not any(shared.wheel._buckets)
        assert shared.counters.closes == 3

    run(scenario())


def test_a_batch_is_taken_as_far_as_it_fits() -> None:
    """Of several frames at once a full queue takes the first ones and says how many; the connection is closed with
    1013 after the walk, and what had waited counts as dropped for slowness.
    """

    async def scenario() -> None:
        shared = environment(send_queue_messages=10)
        async with opened(shared) as (connection, _):
            backlog(connection)
            frames = [numbered(number) for number in range(20)]
            assert connection.send_joined(b"".join(frames), frames) == 9
            assert connection.send_joined(b"".join(frames), frames) == 0
            assert connection.is_open, "nothing is closed in the middle of a walk"
            await until(lambda: not connection.is_open)
            assert (connection.close_code, shared.counters.drops_slow, shared.counters.drops_oldest) == (1013, 10, 0)
            assert shared.send_queues.queued_bytes == 0
            assert connection.send_joined(b"".join(frames), frames) == 0

    run(scenario())


@pytest.mark.parametrize("limits", [{"send_queue_messages": 10}, {"send_queue_bytes": 10 * (1008 + 64)}])
def test_drop_oldest_keeps_the_newest(limits: dict[str, int]) -> None:
    """slow_policy drop-oldest: everything is taken, whole messages that only waited make room, oldest first, and are
    counted; the client reads whole frames in order with one gap, and stays.
    """

    async def scenario() -> None:
        shared = environment(slow_policy="drop-oldest", **limits)
        async with opened(shared) as (connection, client):
            sent = backlog(connection)
            for _ in range(30):
                batch = [numbered(number) for number in range(sent, sent + 7)]
                assert connection.send_joined(b"".join(batch), batch) == 7
                sent += 7
                assert shared.send_queues.queued_bytes == connection.queued_bytes <= 10 * (1008 + 64)
            assert len(connection._queue) == 10
            connection.send_frame(text_frame(b"last"))
            got = numbers((await read_frames(client, last=b"last"))[:-1])
            gone = shared.counters.drops_oldest
            gap = next(number for number, following in itertools.pairwise(got) if following != number + 1)
            assert got == [*range(gap + 1), *range(gap + 1 + gone, sent)]
            assert connection.is_open and shared.counters.drops_slow == 0
            await until(lambda: connection.queued_bytes == 0)
            assert shared.send_queues.queued_bytes == 0

    run(scenario())


def test_drop_oldest_takes_any_single_message() -> None:
    """A message that is larger than all that waits makes room of all of it, and waits alone."""

    async def scenario() -> None:
        shared = environment(slow_policy="drop-oldest", send_queue_bytes=5000)
        async with opened(shared) as (connection, _):
            backlog(connection)
            assert connection.send_frame(numbered(1)) and connection.send_frame(numbered(2, 4800))
            assert (len(connection._queue), shared.counters.drops_oldest) == (1, 2)
            assert connection.send_frame(numbered(3, 20_000))
            assert (len(connection._queue), shared.counters.drops_oldest) == (1, 3)

    run(scenario())


def test_dropped_messages_are_told_once_and_in_sum(caplog: pytest.LogCaptureFixture) -> None:
    """The log says when a client begins to miss messages, and how many it has missed when that ends, not every one."""

    async def scenario() -> None:
        shared = environment(slow_policy="drop-oldest", send_queue_messages=5)
        async with opened(shared) as (connection, client):
            sent = backlog(connection)
            for number in range(sent, sent + 100):
                connection.send_frame(numbered(number))
            await read_frames(client, last=numbered(sent + 99)[4:])
            await until(lambda: connection.queued_bytes == 0)
            dropped = shared.counters.drops_oldest
            assert dropped == 100 + 1 - 5

            def lines() -> list[tuple[str, Any]]:
                records = [record for record in caplog.records if record.msg.endswith(("oldest messages", "dropped"))]
                return [(record.msg, vars(record).get("fields", {}).get("messages")) for record in records]

            await until(lambda: len(lines()) == 2)
            assert lines() == [("drops oldest messages", None), ("messages dropped", dropped)]

    with caplog.at_level(logging.INFO, "fastpush.connection"):
        run(scenario())


def test_the_longest_queues_of_a_worker_go_first(caplog: pytest.LogCaptureFixture) -> None:
    """Over worker_send_bytes the longest queues are closed with 1013, as few as bring it a tenth below, and told of."""

    async def scenario() -> None:
        limits = {"worker_send_bytes": 1 << 20, "send_queue_bytes": 1 << 20, "send_queue_messages": 10_000}
        shared = environment(**limits)
        async with contextlib.AsyncExitStack() as stack:
            connections = []
            for size in (50_000, 350_000, 200_000, 300_000):
                connection, _ = await stack.enter_async_context(opened(shared))
                while connection.queued_bytes < size:
                    assert connection.send_frame(numbered(0))
                connections.append(connection)
            small, largest, middle, second = connections
            while not caplog.records:
                assert small.send_frame(numbered(0))  # the one that reaches the bound is not the one that goes
                assert shared.send_queues.queued_bytes < (1 << 20) + 2000
            await until(lambda: not largest.is_open)
            assert [connection.is_open for connection in connections] == [True, False, True, True]
            assert largest.close_code == 1013
            assert shared.send_queues.queued_bytes == sum(open_.queued_bytes for open_ in (small, middle, second))
            assert shared.send_queues.queued_bytes < (1 << 20) * 9 // 10
            assert [record.msg for record in caplog.records] == ["send queues full"]

    with caplog.at_level(logging.WARNING, "fastpush.connection"):
        run(scenario())


@pytest.mark.parametrize(
    ("code", "count"),
    [(CloseCode.SERVICE_RESTART, 21), (CloseCode.POLICY_VIOLATION, 21), (CloseCode.TRY_AGAIN_LATER, 20)],
)
def test_what_was_on_its_way_comes_before_the_close_frame(
    monkeypatch: pytest.MonkeyPatch, code: CloseCode, count: int
) -> None:
    """A connection that is closed while its key gathers is sent that first and counts; a slow one is neither."""
    clock = Clock()
    monkeypatch.setattr(pump, "perf_counter", clock)

    async def scenario() -> None:
        shared = environment()
        hub = shared.hub
        async with opened(shared) as (connection, client):
            connection.user = "u"
            others = [Taker(hub, on_send=clock.on_send) for _ in range(20)]
            for receiver in (*others, connection):
                hub.join(receiver, b"u1:ue")
            counts: list[int] = []
            clock.write_seconds = 0.0001
            hub.deliver(publication(b"u1:ue", message="first"), counts.append)
            await until(lambda: counts)
            for text in ("second", "third"):
                hub.deliver(publication(b"u1:ue", message=text), counts.append)
            assert counts == [21]
            connection.close(code, "reason")
            close = (8, struct.pack("!H", code) + b"reason")
            texts = [b"first", b"second", b"third"] if count == 21 else [b"first"]
            assert await read_frames(client) == [*((1, text) for text in texts), close]
            await until(lambda: len(counts) == 3)
            assert counts == [21, count, count]
            for other in others:
                assert other.texts == ["first", "second", "third"]

    run(scenario())


def test_a_client_that_has_gone_counts_for_nothing_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathers for a client that sends its close frame meanwhile is not sent behind the answer, and not counted."""
    clock = Clock()
    monkeypatch.setattr(pump, "perf_counter", clock)

    async def scenario() -> None:
        shared = environment()
        hub = shared.hub
        async with opened(shared) as (connection, client):
            connection.user = "u"
            others = [Taker(hub, on_send=clock.on_send) for _ in range(40)]
            for receiver in (*others, connection):
                hub.join(receiver, b"u1:ue")
            counts: list[int] = []
            clock.write_seconds = 0.0001
            hub.deliver(publication(b"u1:ue", message="first"), counts.append)
            hub.deliver(publication(b"u1:ue", message="second"), counts.append)
            assert counts == []  # the first one is in its slices, and has been written to the one that joined last
            connection.on_frame(8, True, False, False, struct.pack("!H", 1000))
            await until(lambda: len(counts) == 2)
            assert counts == [41, 40]
            assert await read_frames(client) == [(1, b"first"), (8, struct.pack("!H", 1000))]

    run(scenario())
