"""Memory of an idle, registered connection: PSS of every process, before and after N connects.

    python -m bench.idle_memory [--connections N]

Each connection registers its own user by URL, with the headers a browser sends. PSS
counts shared pages once, so the sum over processes is what the host really holds;
kernel socket buffers come on top and are the same for every server.
"""

import asyncio
import time

import click
import uvloop

from bench.server import pin_self, pinned_server

_REQUEST = (
    "GET /ws?token=user{user}&event=e HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nPragma: no-cache\r\n"
    "Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/140.0.0.0 Safari/537.36\r\nUpgrade: websocket\r\nOrigin: http://127.0.0.1:{port}\r\n"
    "Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; "
    "client_max_window_bits\r\n\r\n"
)


class Client(asyncio.Protocol):
    """A connection that says when it is open."""

    def __init__(self, request: bytes, opened: asyncio.Future[None]) -> None:
        self._request = request
        self._opened = opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self._opened.done():
            assert data.startswith(b"HTTP/1.1 101"), data
            self._opened.set_result(None)


async def run(connections: int) -> None:
    loop = asyncio.get_running_loop()
    with pinned_server(core=0) as target:

        async def connect(user: int) -> asyncio.BaseTransport:
            opened: asyncio.Future[None] = loop.create_future()
            request = _REQUEST.format(user=user, port=target.port).encode()
            transport, _ = await loop.create_connection(lambda: Client(request, opened), "127.0.0.1", target.port)
            await opened
            return transport

        transports = [await connect(-1 - number) for number in range(100)]  # everything lazy is loaded now
        await asyncio.sleep(1)
        before = target.pss_bytes()
        began, cpu = time.perf_counter(), target.cpu_seconds()
        for first in range(0, connections, 100):
            transports += await asyncio.gather(*(connect(user) for user in range(first, first + 100)))
        took, cpu = time.perf_counter() - began, target.cpu_seconds() - cpu
        await asyncio.sleep(2)
        after = target.pss_bytes()
        cost = cpu / connections * 1e6
        click.echo(f"{connections} connections, {cost:.0f} µs CPU a handshake, {connections / took:,.0f}/s")
        total = 0
        for name, value in after.items():
            grown = value - before[name]
            total += grown
            click.echo(f"{name:>10} {grown / connections:>8.0f} B of PSS a connection  ({value / 1e6:.1f} MB in all)")
        click.echo(f"{'sum':>10} {total / connections:>8.0f} B of PSS a connection")


@click.command()
@click.option("--connections", default=10_000)
def main(connections: int) -> None:
    """Measure the memory of idle connections."""
    pin_self(core=1)
    uvloop.run(run(connections))


if __name__ == "__main__":
    main()
