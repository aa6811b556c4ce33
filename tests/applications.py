"""Clients of applications: on a worker of the test's choice, and what that worker says of them."""

import socket
from typing import Any, cast

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from fastpush.control_client import ask
from fastpush.protocol.control import ConnectionFigures
from tests.server import SCALE, Server, eventually

SECONDS = 10 * SCALE


class Client(ClientConnection):
    """port: its own, on this machine; known also when it has ended."""

    def __init__(self, raw: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(raw, *arguments, **options)
        self.port: int = raw.getsockname()[1]


def workers(server: Server) -> list[int]:
    """The numbers of the worker processes."""
    return sorted(process["number"] for process in server.processes("worker"))


def open_client(server: Server, path: str, query: str = "", *, worker: int | None = None, **options: Any) -> Client:
    """A WebSocket; worker: the number of the process that has to accept it."""
    raw = server.dial(worker)
    raw.settimeout(None)
    url = server.ws_url(query, path)
    client = connect(
        url, sock=raw, ssl=server.tls, open_timeout=SECONDS, max_queue=None, create_connection=Client, **options
    )
    return cast(Client, client)


def read(client: ClientConnection) -> str | bytes:
    """The next message."""
    return client.recv(timeout=SECONDS)


def ending(client: ClientConnection) -> tuple[int, str]:
    """Read on to the end: close code and reason; 1006: no close frame."""
    try:
        while True:
            read(client)
    except ConnectionClosed as end:
        return (1006, "") if end.rcvd is None else (end.rcvd.code, end.rcvd.reason)


def figures(server: Server, port: int) -> ConnectionFigures:
    """What `fastpush debug connections` tells of the client of this local port."""
    request = {
        "command": "debug",
        "subject": "connections",
        "process": f"worker-{server.worker_of(port)}",
        "limit": 500,
    }
    reply = ask(str(server.runtime_directory / "control"), request, SECONDS)
    found = msgspec.convert(reply["entries"], list[ConnectionFigures])
    return next(each for each in found if each.peer == f"127.0.0.1:{port}")


def close_log(server: Server, port: int) -> dict[str, Any]:
    """The line of the log that tells how the last connection from this local port, which was opened, has ended."""
    peer = f"127.0.0.1:{port}"

    def last() -> dict[str, Any]:
        """The kernel may have lent the port before, to a client that ended long ago."""
        names = {"connection opened", "connection closed"}
        told = [line for line in server.events() if line["event"] in names and line["peer"] == peer]
        return told[-1] if told and told[-1]["event"] == "connection closed" else {}

    return eventually(last, what=f"the end of {peer} in the log")


def at_rest(server: Server) -> dict[str, float]:
    """What /metrics tells once nobody of earlier tests is left: they do not wait until the server has noticed."""

    def found() -> dict[str, float]:
        samples = server.metrics()
        left = ("fastpush_connections", "fastpush_broker_routes", "fastpush_broker_claims")
        return {} if any(samples[name] for name in left) else samples

    return eventually(found, what="nobody connected")


def connections(server: Server) -> int:
    """Open WebSocket connections of all workers."""
    return int(server.metrics()["fastpush_connections"])
