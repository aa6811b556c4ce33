"""What makes a user get its pushes or not: its registered clients, and back-ends' pushes to a worker of choice."""

from typing import Any
from urllib.parse import urlencode

from tests.applications import Client, open_client
from tests.sdk import KEY, token
from tests.server import Server
from tests.wire import Wire
from tests.wire import push as wire_push


def listen(server: Server, user: str, *events: str, worker: int | None = None, **parameters: str) -> Client:
    """A client of /ws that is registered for these events."""
    query = urlencode({"token": token(user), "event": events, **parameters}, doseq=True)
    return open_client(server, "/ws", query, worker=worker)


def forged(user: str) -> str:
    """A token whose signature is another one, all of it: a part of it may be the right one by chance."""
    signed, dot, signature = token(user).rpartition(".")
    return signed + dot + "A" * len(signature)


def push(server: Server, user: str | list[str], event: str, message: str) -> dict[str, Any]:
    return server.push(user, event, message, **{"X-API-Key": KEY})


def push_from(server: Server, worker: int, user: str, event: str, message: str) -> None:
    """Push to the worker of this number, whatever the reply is."""
    with Wire(server, worker=worker) as wire:
        wire.send(wire_push(user, event, message, f"X-API-Key: {KEY}")).reply()
