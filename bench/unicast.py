"""CPU of a unicast push through HTTP, broker and WebSocket: the whole process tree on one core.

    python -m bench.unicast [--users N] [--seconds S] [--publishers 1,8,32,128] [--size BYTES] [--rounds N]

Each publisher keeps one HTTP connection and one push outstanding. The server runs on core
0, this client on core 1. Cost is the scheduler's run time of all server processes during
the measurement, divided by the pushes answered in it; every push has reached its receiver
(the reply says so).
"""

import asyncio
import itertools
import json
import time

import click
import uvloop

from bench.server import Target, pin_self, pinned_server


class Receiver(asyncio.Protocol):
    """A WebSocket that counts the bytes it is sent."""

    def __init__(self, opened: asyncio.Future[None], user: int) -> None:
        self._opened = opened
        self._user = user

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(  # type: ignore[attr-defined]
            f"GET /ws?token=user{self._user}&event=e HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self._opened.done():
            assert data.startswith(b"HTTP/1.1 101"), data
            self._opened.set_result(None)


class Publisher(asyncio.Protocol):
    """Posts the next push as soon as the last one is answered."""

    def __init__(self, requests: "itertools.cycle[bytes]", counts: list[int]) -> None:
        self._requests = requests
        self._counts = counts
        self.running = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._post()

    def _post(self) -> None:
        self._transport.write(next(self._requests))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"message sent to 1 clients"), data
        self._counts[0] += 1
        if self.running:
            self._post()


def request(port: int, user: int, size: int) -> bytes:
    """Return a push as curl would send it."""
    body = json.dumps({"userId": f"user{user}", "event": "e", "message": "x" * size}).encode()
    return (
        f"POST /push HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def measure(target: Target, publishers: int, users: int, size: int, seconds: float) -> tuple[float, float]:
    """Return (microseconds of CPU a push, pushes a second)."""
    loop = asyncio.get_running_loop()
    requests = itertools.cycle([request(target.port, user, size) for user in range(users)])
    counts = [0]
    pairs = [
        await loop.create_connection(lambda: Publisher(requests, counts), "127.0.0.1", target.port)
        for _ in range(publishers)
    ]
    await asyncio.sleep(0.5)
    began, cpu, count = time.perf_counter(), target.cpu_seconds(), counts[0]
    await asyncio.sleep(seconds)
    took, cpu, count = time.perf_counter() - began, target.cpu_seconds() - cpu, counts[0] - count
    for transport, publisher in pairs:
        publisher.running = False
        transport.close()
    await asyncio.sleep(0.2)
    return cpu / count * 1e6, count / took


async def run(users: int, seconds: float, publishers: list[int], size: int, rounds: int) -> None:
    with pinned_server(core=0) as target:
        loop = asyncio.get_running_loop()
        for user in range(users):
            opened: asyncio.Future[None] = loop.create_future()
            await loop.create_connection(lambda: Receiver(opened, user), "127.0.0.1", target.port)  # noqa: B023
            await opened
        click.echo(f"{users} users with one connection, {size} B, {seconds:g} s each, median of {rounds}")
        click.echo(f"{'publishers':>10} {'CPU a push':>12} {'pushes/s':>10}")
        for count in publishers:
            results = sorted([await measure(target, count, users, size, seconds) for _ in range(rounds)])
            cost, rate = results[len(results) // 2]
            click.echo(f"{count:>10} {cost:>9.1f} µs {rate:>10,.0f}   ({results[0][0]:.1f} to {results[-1][0]:.1f} µs)")


@click.command()
@click.option("--users", default=1000)
@click.option("--seconds", default=3.0)
@click.option("--publishers", default="1,8,32,128")
@click.option("--size", default=128)
@click.option("--rounds", default=5)
def main(users: int, seconds: float, publishers: str, size: int, rounds: int) -> None:
    """Measure the CPU of a unicast push."""
    pin_self(core=1)
    uvloop.run(run(users, seconds, [int(count) for count in publishers.split(",")], size, rounds))


if __name__ == "__main__":
    main()
