"""A client of channels as this package knows it, and what the worker and the handler see of each other through it."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from fastpush.applications.interface import Request
from fastpush.channels.session import Session
from fastpush.http.auth import Identity
from fastpush.protocol import client as protocol
from fastpush.protocol.bus import Join, Kept, Position
from fastpush.protocol.client import Connect, DisconnectCode, ErrorCode, Recover
from fastpush.protocol.server_sent import Resumed

Entered = list[tuple[Join, Kept]]
"""Channels that a connection has entered, and what these have kept for it."""


NO_RECOVERY = Recover(recover=False, offset=0, epoch="")
"""Of who comes for the first time."""


def as_json(info: object) -> bytes:
    """Return what a token says of a client, or of a subscription; b"" for nothing."""
    return b"" if info is None else orjson.dumps(info)


class Connection(Protocol):
    """What this endpoint needs of a connection, beside what any application does."""

    data: Any
    user: str
    headers: Mapping[str, str]
    expires_at: float | None
    unregistered: Callable[[Any], tuple[int, str]] | None
    due: int

    @property
    def id(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def peer(self) -> str: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def has_room(self) -> bool: ...
    def send_lines(self, lines: bytes, positions: Mapping[bytes, Position] | None = None) -> bool:
        """Send replies and pushes, a line each, as this kind of connection carries them.

        positions: where its client stands in channels behind them, by routing key, where the transport keeps track of
        that for it; the first ones are of all that it can resume.
        """
        ...

    def close(self, code: int = 1000, reason: str = "", by: str = "server") -> None: ...
    def plan(self) -> None: ...
    def seal_channel(self, key: bytes) -> None: ...
    async def drain(self) -> None: ...


class Host(Protocol):
    """What the worker does for this endpoint."""

    def enter(self, connection: Any, joins: list[Join], take: Callable[[Entered], None]) -> Awaitable[None]:
        """Let a connection into channels; see worker/membership.py."""
        ...

    def leave(self, connection: Any, key: bytes) -> None:
        """Take a connection out of a channel."""
        ...

    def plan(self, client: "Client", seconds: float) -> None:
        """Call the client's `on_timer` once so much time has passed, or before, instead of any earlier plan."""
        ...

    def cancel(self, client: "Client") -> None:
        """Call it no more."""
        ...

    def note_refusal(self, connection: Any, code: int, error: Exception, channel: str) -> None:
        """Let operators know that a connection was not let in, or not into a channel."""
        ...

    def connections(self, user: str | None = None) -> "Iterable[Connection]":
        """Return this endpoint's open connections, or those of one user that have connected."""
        ...


class Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, code: ErrorCode, message: str = "") -> None:
        super().__init__(message or code.reason)
        self.code = code
        self.message = message


class Ended(Exception):
    """A request ends the session."""

    def __init__(self, code: DisconnectCode) -> None:
        super().__init__(code.reason)
        self.code = code


class Shown:
    """A client as the handler of [client] sees it: an interface.Connection whose texts arrive as messages."""

    __slots__ = ("_connection", "data")

    joins_lines = wants_gzip = False

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.data: Any = None

    @property
    def id(self) -> str:
        return self._connection.id

    @property
    def user(self) -> str:
        return self._connection.user

    @property
    def peer(self) -> str:
        return self._connection.peer

    @property
    def is_open(self) -> bool:
        return self._connection.is_open

    @property
    def channels(self) -> tuple[str, ...]:
        client = self._connection.data
        return () if client is None else tuple(client.session.subscriptions)

    @property
    def has_room(self) -> bool:
        return self._connection.has_room

    def send(self, data: str | bytes) -> bool:
        """Send a message: JSON, as bytes, or a text, which arrives as a string. Raises: ValueError: bytes, no JSON."""
        text = orjson.dumps(orjson.loads(data) if isinstance(data, bytes) else data)
        return self._connection.send_lines(protocol.message_push(text))

    async def drain(self) -> None:
        await self._connection.drain()

    def start_heartbeat(self, seconds: float) -> None:
        """Raise: the protocol has pings of its own, which scripts can see."""
        raise ValueError("clients of channels have the protocol's own pings")

    def close(self, code: int = 1000, reason: str = "") -> None:
        self._connection.close(code, reason)


class Endpoint(Protocol):
    """What serves a client."""

    def end_expired(self, client: "Client") -> None:
        """End the subscriptions whose tokens were not refreshed in time."""
        ...


class Opening(NamedTuple):
    """How a unidirectional client comes: what it asks for, whom its token names, and where it wants to go on."""

    connect: Connect
    identity: Identity | None
    resumed: Resumed


class Client:
    """One client: its connection, its session, and what its token has said.

    info: what others in a channel are told of it beside user and id, JSON.  shown: as the handler sees it.
    may_be_anonymous: whether it needs no token.
    """

    __slots__ = ("connection", "due", "endpoint", "info", "may_be_anonymous", "request", "session", "shown")

    def __init__(self, endpoint: "Endpoint", connection: Connection, session: Session, request: Request) -> None:
        self.endpoint = endpoint
        self.connection = connection
        self.session = session
        self.request: Request | None = request
        self.info = b""
        self.shown: Shown | None = None
        self.may_be_anonymous = False
        self.due = -1

    def flush(self, positions: Mapping[bytes, Position] | None = None, by: str = "server") -> None:
        """Send what the session has to say, and close when it has ended.

        positions: see Connection.send_lines.  by: who has ended it, see protocol/insight.py.
        """
        text = self.session.take()
        if text and self.connection.is_open:
            self.connection.send_lines(text, positions)
        if self.session.disconnect is not None:
            self.connection.close(*self.session.disconnect, by)

    async def wait_for_room(self) -> None:
        """Send what there is, and wait until there is room for an answer that may be long: one after the other.

        Raises: ConnectionClosed.
        """
        self.flush()
        if not self.connection.has_room:
            await self.connection.drain()

    def on_timer(self, now: int) -> None:
        """End subscriptions whose tokens were not refreshed in time; see TimerWheel."""
        self.endpoint.end_expired(self)
