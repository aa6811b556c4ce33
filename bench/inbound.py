"""What a client's message costs: CPU of the server a message, by what the application does with it.

    python -m bench.inbound [--messages N] [--rounds N]

One worker on one core, eight clients on another, which send short texts as fast as they are read. The applications
are this module's classes, so it is imported by the worker.
"""

import os
import socket
import statistics
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice

import click
import psutil

from bench.servers import FASTPUSH, running
from fastpush.applications import Application, Connection
from fastpush.bench.connections import resolve
from fastpush.bench.frame_reader import client_frame
from fastpush.protocol.frames import Opcode

_CLIENTS = 8
_TEXT = b"x" * 64
_BURST = 100
_OPENED = b"HTTP/1.1 101"
_DONE_SECONDS = 60


class Function(Application):
    """Takes a message and does nothing."""

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Nothing."""


class Coroutine(Application):
    """Takes a message in a coroutine and does nothing."""

    async def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Nothing."""


class Answer(Application):
    """Answers each message."""

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """One message out."""
        connection.send("ok")


class Publish(Application):
    """Publishes each message in a channel that nobody is in."""

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Through the broker and back."""
        self.server.publish("nobody", data)


_APPLICATIONS = {
    "a function that does nothing": Function,
    "a coroutine that does nothing": Coroutine,
    "a function that answers": Answer,
    "a function that publishes": Publish,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--messages", default=80_000, show_default=True, type=click.IntRange(min=_CLIENTS * _BURST))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option("--server-core", default=0, show_default=True)
@click.option("--client-core", default=1, show_default=True)
def main(messages: int, rounds: int, server_core: int, client_core: int) -> None:
    """Print microseconds of CPU a message."""
    os.sched_setaffinity(0, {client_core})
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    entries = [
        {"path": f"/{made.__name__.lower()}", "handler": f"bench.inbound:{made.__name__}", "anonymous": "loopback"}
        for made in _APPLICATIONS.values()
    ]
    spent: dict[str, list[float]] = {name: [] for name in _APPLICATIONS}
    with running(FASTPUSH, (server_core,), {"application": entries}, 1) as server:
        for name, made in islice(cycle(_APPLICATIONS.items()), rounds * len(_APPLICATIONS)):
            spent[name].append(_cost(server.pid, server.port, f"/{made.__name__.lower()}", messages))
    for name, costs in spent.items():
        click.echo(f"{name:<32}{statistics.median(costs):6.2f} µs  ({min(costs):.2f} to {max(costs):.2f})")


def _cost(pid: int, port: int, path: str, messages: int) -> float:
    """Return microseconds of CPU that the server spends on each of `messages`."""
    burst = client_frame(Opcode.TEXT, _TEXT) * _BURST
    bursts = messages // (_CLIENTS * _BURST)
    with ExitStack() as stack:
        clients = [stack.enter_context(_connected(port, path)) for _ in range(_CLIENTS)]
        before = _cpu_seconds(pid)
        threads = [threading.Thread(target=_send, args=(client, burst, bursts)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (_cpu_seconds(pid) - before) / (bursts * _BURST * _CLIENTS) * 1e6


def _send(client: socket.socket, burst: bytes, bursts: int) -> None:
    """Send, and read whatever comes until the server has answered our close frame: then it has taken everything."""
    reader = threading.Thread(target=_drain, args=(client,))
    reader.start()
    for _ in range(bursts):
        client.sendall(burst)
    client.sendall(client_frame(Opcode.CLOSE, (1000).to_bytes(2, "big")))
    reader.join(_DONE_SECONDS)


def _drain(client: socket.socket) -> None:
    for _ in _received(client):
        pass


def _received(client: socket.socket) -> Iterator[bytes]:
    while data := client.recv(65536):
        yield data


def _connected(port: int, path: str) -> socket.socket:
    endpoint = resolve(f"ws://127.0.0.1:{port}{path}", insecure=False)
    client = socket.create_connection(("127.0.0.1", port), timeout=_DONE_SECONDS)
    client.sendall(endpoint.handshake(path, compression=False))
    if not client.recv(4096).startswith(_OPENED):
        raise RuntimeError("the handshake was refused")
    return client


def _cpu_seconds(pid: int) -> float:
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
