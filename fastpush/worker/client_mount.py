"""The endpoint of channels in one worker: its mount, and what the worker does for it."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastpush.applications.interface import Application, Request
from fastpush.applications.loading import load_class, make
from fastpush.channels.client import Client, Entered
from fastpush.channels.endpoint import ClientProtocol
from fastpush.config import Config
from fastpush.fanout import CLIENT
from fastpush.http.auth import Identity
from fastpush.protocol.bus import Join
from fastpush.protocol.push import NO_OPTIONS
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import Connection
from fastpush.worker.environment import Environment
from fastpush.worker.membership import Memberships
from fastpush.worker.mount import NO_PARAMETERS, Asked, Mount
from fastpush.worker.timers import ticks

CLIENT_PATH = "/connection/websocket"


class ClientMount(Mount):
    """Bidirectional clients of channels: they show their tokens by message."""

    application: ClientProtocol
    form = CLIENT
    admits_first = True
    counts_pings = True

    def configure(self, config: Config) -> None:
        super().configure(config)
        self.anonymous = config.client.anonymous

    def read(self, query: str) -> Asked:
        return Asked(None, NO_PARAMETERS, NO_OPTIONS)

    def keys(self, request: Request, asked: Asked) -> tuple[bytes, ...]:
        return ()

    def enter(self, connection: Connection, identity: Identity | None, keys: Iterable[bytes], asked: Asked) -> None:
        connection.data = asked.is_anonymous

    def slow_policy(self, key: bytes) -> str:
        return self.application.slow_policy(key)

    def ping(self, connection: Connection) -> None:
        self.application.on_ping(connection)

    def on_relinked(self, connection: Connection) -> None:
        self.application.on_relinked(connection)


def client_handler(config: Config, server: ApplicationServer) -> Application | None:
    """Return the handler of [client], ready to serve; None: there is none. Raises: ConfigError."""
    if not config.client.handler:
        return None
    handler = config.client.handler
    return make("[client]", handler, load_class("[client]", handler, config.client.options), server)


class ClientHost:
    """See fastpush.channels.endpoint.Host."""

    def __init__(self, environment: Environment, memberships: Memberships) -> None:
        self._environment = environment
        self._memberships = memberships

    def enter(self, connection: Connection, joins: list[Join], take: Callable[[Entered], None]) -> Awaitable[None]:
        return self._memberships.enter(connection, joins, take)

    def leave(self, connection: Connection, key: bytes) -> None:
        self._memberships.leave(connection, key)

    def plan(self, client: Client, seconds: float) -> None:
        wheel = self._environment.wheel
        wheel.schedule(client, wheel.now + ticks(seconds))

    def cancel(self, client: Client) -> None:
        self._environment.wheel.cancel(client)

    def note_refusal(self, connection: Connection, code: int, error: Exception, channel: str) -> None:
        self._environment.notebook.turned_down(connection, code, error, channel)

    def connections(self, user: str | None = None) -> Iterable[Any]:
        environment = self._environment
        found = environment.connections.values() if user is None else environment.hub.connections(user, None)
        return [connection for connection in found if isinstance(getattr(connection, "data", None), Client)]
