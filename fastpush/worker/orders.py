"""What back-ends and operators have every worker do with its connections, or tell of them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import orjson

from fastpush import __version__
from fastpush.channels.api import CHANNELS_MAX
from fastpush.channels.client import Client
from fastpush.channels.endpoint import ClientProtocol
from fastpush.fanout import Hub, Receiver
from fastpush.protocol.insight import CONNECTIONS_TOLD, Known
from fastpush.protocol.push import channel_of, claim_name, is_channel_key
from fastpush.worker.connection import Connection
from fastpush.worker.environment import Environment
from fastpush.worker.inspection import held
from fastpush.worker.membership import Memberships
from fastpush.worker.timers import TICK_SECONDS


class Orders:
    """Takes the orders and questions that come over the bus: JSON, [name, argument, …].

    leave_notes(): sends the broker what is noted until now.
    """

    def __init__(
        self,
        environment: Environment,
        memberships: Memberships,
        clients: Callable[[], ClientProtocol],
        leave_notes: Callable[[], None],
    ) -> None:
        self._environment = environment
        self._memberships = memberships
        self._clients = clients
        self._leave_notes = leave_notes
        self._orders: dict[str, Callable[..., int]] = {
            "close_user": self._close_user,
            "close_key": self._close_key,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "disconnect": self._disconnect,
            "refresh": self._refresh,
        }
        self._questions: dict[str, Callable[..., Any]] = {
            "channels": self._channels,
            "connections": self._connections,
            "info": self._info,
            "number": self._number,
            "why": self._why,
            "busiest": self._environment.notebook.busiest,
        }

    def obey(self, body: bytes) -> int:
        """Do what an order says; return how many connections it was about."""
        name, *arguments = orjson.loads(body)
        return self._orders[name](*arguments)

    def answer(self, body: bytes) -> bytes:
        """Answer a question."""
        name, *arguments = orjson.loads(body)
        return msgspec.json.encode(self._questions[name](*arguments))

    @property
    def _hub(self) -> Hub:
        return self._environment.hub

    def _close_user(self, user: str, event: str | None, code: int, reason: str) -> int:
        return _close(self._hub.connections(user, event), code, reason)

    def _close_key(self, key: str, path: str, code: int, reason: str) -> int:
        return _close(self._memberships.holders(claim_name(path, key)), code, reason)

    def _found(self, user: str, connection_id: str) -> list[Client]:
        """Return the clients of a user, "" for the anonymous ones; with an id that one only."""
        clients = self._clients()
        if user:
            return clients.clients(user, connection_id)
        return [client for client in clients.clients(None, connection_id) if not client.connection.user]

    def _subscribe(self, user: str, connection_id: str, channel: str) -> int:
        clients, found = self._clients(), self._found(user, connection_id)
        for client in found:
            subscribed = clients.subscribe(client, channel)
            if subscribed is not None:
                self._environment.spawn(_await(subscribed))
        return len(found)

    def _unsubscribe(self, user: str, connection_id: str, channel: str) -> int:
        clients = self._clients()
        return sum(clients.unsubscribe(client, channel) for client in self._found(user, connection_id))

    def _disconnect(self, user: str, connection_id: str, spared: list[str], code: int, reason: str) -> int:
        clients = self._clients()
        found = [client for client in self._found(user, connection_id) if client.connection.id not in spared]
        for client in found:
            clients.disconnect(client, code, reason)
        return len(found)

    def _refresh(self, user: str, connection_id: str, expires_at: float | None) -> int:
        clients, found = self._clients(), self._found(user, connection_id)
        for client in found:
            clients.refresh(client, expires_at)
        return len(found)

    def _channels(self, pattern: str) -> dict[str, int]:
        """Return the channels of this worker that match, each with its connections; at most one more than fit."""
        found: dict[str, int] = {}
        for group in self._hub.groups():
            if is_channel_key(group.key) and group.members:
                channel = channel_of(group.key)
                if not channel.startswith("/") and (not pattern or matches(pattern, channel)):
                    found[channel] = len(group.members)
                    if len(found) > CHANNELS_MAX:
                        break
        return found

    def _connections(self, user: str) -> dict[str, Any]:
        """Return the clients of a user in this worker, by id."""
        return {client.connection.id: self._described(client) for client in self._clients().clients(user)}

    def _number(self, connection_id: str) -> int:
        """Return the number of a connection of this worker; 0: it has none with this id."""
        try:
            serial = int(connection_id.removeprefix(self._environment.id_prefix), 16)
        except ValueError:
            return 0
        connection = self._environment.connections.get(serial)
        return connection.number if connection is not None and connection.id == connection_id else 0

    def _why(self, user: str) -> Known:
        """Return what this worker knows of a user; what it has noted comes before that."""
        self._leave_notes()
        environment = self._environment
        # Not the hub's, which knows those alone that have joined something. Cost: 50 ns for each of this worker.
        found = [connection for connection in environment.connections.values() if connection.user == user]
        shown = [held(connection) for connection in found[-CONNECTIONS_TOLD:]]
        return Known(
            connections=shown,
            connections_left_out=len(found) - len(shown),
            pushes=environment.notebook.pushes(user),
        )

    def _described(self, client: Client) -> dict[str, Any]:
        connection, subscriptions = client.connection, client.session.subscriptions
        return {
            "user": connection.user,
            "transport": "sse" if client.session.unidirectional else "websocket",
            "protocol": "json",
            "state": {"channels": {channel: {} for channel in subscriptions}},
            "worker": self._environment.number,
            "peer": connection.peer,
            "info": orjson.loads(client.info) if client.info else None,
        }

    def _info(self) -> dict[str, Any]:
        """Return this worker's figures."""
        clients = self._clients().clients()
        channels = [group for group in self._hub.groups() if is_channel_key(group.key) and group.members]
        return {
            "uid": self._environment.id_prefix,
            "name": f"worker-{self._environment.number}",
            "version": __version__,
            "num_clients": len(clients),
            "num_users": len({client.connection.user for client in clients}),
            "num_channels": len(channels),
            "num_subs": sum(len(client.session.subscriptions) for client in clients),
            "uptime": int(self._environment.wheel.now * TICK_SECONDS),
        }


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name matches a pattern in which `*` is any text. Cost: no more than their lengths."""
    first, *others = pattern.split("*")
    if not others:
        return name == pattern
    *middle, last = others
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


async def _await(subscribed: Any) -> None:
    await subscribed


def _close(found: Sequence[Receiver], code: int, reason: str) -> int:
    for connection in found:
        cast(Connection, connection).close(code, reason, "back-end")
    return len(found)
