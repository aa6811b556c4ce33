"""What makes a user get its pushes or not: its registered clients, and back-ends' pushes to a worker of choice."""

import json
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

from tests.applications import Client, open_client
from tests.sdk import KEY, token
from tests.server import Server


def listen(server: Server, user: str, *events: str, worker: int | None = None, **parameters: str) -> Client:
    """A client of /ws that is registered for these events."""
    query = urlencode({"token": token(user), "event": events, **parameters}, doseq=True)
    return open_client(server, "/ws", query, worker=worker)


def push(server: Server, user: str | list[str], event: str, message: str) -> dict[str, Any]:
    return server.push(user, event, message, **{"X-API-Key": KEY})


def push_from(server: Server, worker: int, user: str, event: str, message: str) -> None:
    """Push to the worker of this number, whatever the reply is."""
    body = json.dumps({"userId": user, "event": event, "message": message})
    while True:
        with closing(server.raw()) as connection:
            if server.worker_of(connection.getsockname()[1]) == worker:
                connection.sendall(
                    f"POST /push HTTP/1.1\r\nHost: h\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
                )
                while connection.recv(65536):
                    pass
                return
