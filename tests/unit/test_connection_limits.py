"""A connection inside one process: what cannot be arranged from outside, or not in a deterministic order."""

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import uvloop

from fastpush.applications.echo import Echo
from fastpush.config import Config, Limits
from fastpush.fanout import Hub
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.worker.connection import Connection, State
from fastpush.worker.environment import ConnectionTicks, Environment, SendQueues
from fastpush.worker.timers import TimerWheel

KEY = base64.b64encode(b"sixteen bytes ok").decode()


class Stage(asyncio.Protocol):
    """What comes before the upgrade: fills the transport, then hands it over."""

    def __init__(self, opened: "asyncio.Future[asyncio.Transport]") -> None:
        self.opened = opened

    def connection_made(self, transport: Any) -> None:
        self.opened.set_result(transport)


def environment(**limits: int) -> Environment:
    config = Config(limits=Limits(**limits))
    hub = Hub(lambda key, confirmed: confirmed(), lambda key: None)
    return Environment(
        number=1, config=config, hub=hub, wheel=TimerWheel(), counters=Counters(),
        send_queues=SendQueues(config.limits.worker_send_bytes, hub), connection_ticks=ConnectionTicks.of(config),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def opened(environment: Environment, backlog: bytes = b"") -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection on a real transport with small buffers, and the client's socket, from which nothing was read."""
    loop = asyncio.get_running_loop()
    transport_made: asyncio.Future[asyncio.Transport] = loop.create_future()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = await loop.create_server(lambda: Stage(transport_made), sock=listener)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(listener.getsockname())
    try:
        transport = await asyncio.wait_for(transport_made, 10)
        if backlog:
            transport.write(backlog)
        connection = Connection(environment, Echo(), "peer", {})
        connection.take_over(transport, KEY, b"")
        yield connection, client
    finally:
        client.close()
        server.close()
        await until(lambda: connection.state == State.CLOSED)


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
            while connection.send(frame):
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
            assert connection.send(text_frame(b"one"))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            # The loop has not turned since: nothing but the write itself can tell.
            taken = [connection.send(text_frame(b"two")) for _ in range(3)]
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
                assert connection.send(text_frame(b"x" * 100_000))
            assert connection.queued_bytes > 1024
            assert not connection.send(text_frame(b"x"))

    run(scenario())


def test_nothing_is_left_of_a_closed_connection() -> None:
    """After the end of paused, violating and closing connections: no queue, no timer, no entry anywhere."""

    async def scenario() -> None:
        shared = environment()
        for ending in (b"", b"\x8f\x80\0\0\0\0", b"\x88\x80\0\0\0\0"):
            async with opened(shared) as (connection, client):
                for _ in range(50):
                    connection.send(text_frame(b"x" * 8000))
                assert connection.queued_bytes and connection in shared.send_queues.paused
                client.sendall(ending)
                if ending:
                    await until(lambda connection=connection: not connection.is_open)
        assert shared.send_queues.queued_bytes == 0
        assert not shared.send_queues.paused and not shared.connections
        assert not any(shared.wheel._buckets)
        assert shared.counters.closes == 3

    run(scenario())
