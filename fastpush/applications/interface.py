"""What an application is, and what it is given: the interface that the shipped ones are written on too.

    request  ─► channels ─► 101 ─► on_open ─► on_message … ─► on_close
                                        └───────┴──► on_error, close code 1011

One object of an application serves all its connections in a worker, and every worker has its own: what they
share is the server's (channels, what these have kept, who is online, claimed keys). The calls for one
connection come one after the other, also when they are coroutines; those of different connections mix.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec
from multidict import MultiDictProxy

CHANNEL_BYTES_MAX = 255
RPC_CODE_MIN, RPC_CODE_MAX = 400, 1999


class Options(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What stands in [application.options]: the annotated fields of a subclass, checked when a worker starts."""


class Request(NamedTuple):
    """What a client asked with. Hold on to what you need: it is not kept.

    query: URL parameters but the token; `query["room"]` is the first one, `query.getall("room")` all of a name.
    headers: names in lower case.
    peer: its address, as the log shows it.  user: "" for a client without token.
    signed: the URL parameters that its token vouches for.
    """

    path: str
    query: MultiDictProxy[str]
    headers: Mapping[str, str]
    peer: str
    user: str
    signed: Mapping[str, str]


class Online(NamedTuple):
    """How many users are in a channel, and how many connections they have there."""

    users: int
    connections: int


class Connection(Protocol):
    """An open WebSocket.

    id: unique among all connections of all workers.  user: "" for a client without token.
    data: whatever the application wants to remember of it.
    wants_gzip: what channels and users are sent reaches it as gzip, in binary messages, compressed once for all.
    joins_lines: texts that have waited for it leave as one, a line each.
    """

    data: Any
    wants_gzip: bool
    joins_lines: bool

    @property
    def id(self) -> str: ...

    @property
    def user(self) -> str: ...

    @property
    def peer(self) -> str: ...

    @property
    def is_open(self) -> bool:
        """Whether it can be sent to."""
        ...

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it is in."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether `drain` would return at once: the next `send` is taken, be the message as long as a client's may be
        or half of the send queue.
        """
        ...

    def send(self, data: str | bytes) -> bool:
        """Send a text or a binary message; False when it goes because it is too slow.

        Never waits: what the client does not take stands in its send queue, and at its bound slow_policy is applied.

        Raises: ConnectionClosed.
        """
        ...

    async def drain(self) -> None:
        """Wait until the send queue has room for a message: the back-pressure of an application that must not drop.

        Raises: ConnectionClosed.
        """
        ...

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Send what is queued and a close frame (1000, 1001, 1008, 1011 to 1013, 3000 to 4999); again does nothing."""
        ...

    def start_heartbeat(self, seconds: float) -> None:
        """Send the text `heartbeat` now and then every so many seconds: scripts in browsers cannot see pings."""
        ...


class RpcError(Exception):
    """Raised by `on_rpc`: the client's call is answered with this error.

    code: 400 to 1999, of your choice.  message: for the client.
    """

    def __init__(self, code: int, message: str) -> None:
        if not RPC_CODE_MIN <= code <= RPC_CODE_MAX:
            raise ValueError(f"code must be {RPC_CODE_MIN} to {RPC_CODE_MAX}, found {code}")
        super().__init__(message)
        self.code = code
        self.message = message


class Publishing(Protocol):
    """A message on its way. Await it to know how many connections took it, or do not: then a failure is logged.

    Raises, when awaited: PublishFailed.
    """

    def __await__(self) -> Any: ...


class Server(Protocol):
    """The service, as one application sees it. Everything reaches over all workers of the host.

    path: of the application, and the name of its own channel, which every connection of it is in unless `channels`
    says otherwise.  worker: number of this process.
    """

    path: str
    worker: int

    def join(
        self,
        connection: Connection,
        channel: str,
        *,
        replay: bool = False,
        presence: bool = False,
        grace_seconds: float = 2,
        keep: int = 0,
    ) -> Awaitable[None]:
        """Let a connection have what is published to `channel` from now on; again changes nothing.

        Await it to know that every worker's messages come. With `replay` it first gets what the channel has kept, the
        newest that half of its send queue holds, with no gap and no message twice. With `presence` its user is online
        there: who comes by it, and who has left for `grace_seconds`, is told to the channel's members as `on_presence`
        words it, and kept like messages, `keep`.

        Raises: ConnectionClosed.  ValueError: presence without a user, or where it has joined without; a name that is
        no text of 1 to 255 bytes.  PublishFailed, with replay or presence: the broker takes no more.
        """
        ...

    def leave(self, connection: Connection, channel: str) -> None:
        """Let a connection have no more of a channel; one that it is not in changes nothing. A close leaves all."""
        ...

    def publish(
        self, channel: str, data: str | bytes, *, exclude: Connection | None = None, keep: int = 0
    ) -> Publishing:
        """Send to everybody in a channel, but to `exclude`. keep: the channel remembers its last so many (0 to 65535).

        All members of a channel see its messages in one order.
        """
        ...

    def broadcast(self, data: str | bytes, *, exclude: Connection | None = None, keep: int = 0) -> Publishing:
        """Publish to the application's own channel."""
        ...

    def push(
        self,
        users: str | Iterable[str],
        data: str | bytes,
        *,
        event: str | None = None,
        exclude: Connection | None = None,
    ) -> Publishing:
        """Send to every connection of one or several users: those of this application, or with `event` (and a text)
        those that have registered for it at /ws, as POST /push does.
        """
        ...

    def claim(self, connection: Connection, key: str) -> Awaitable[None]:
        """Make this the only connection of `key` in the application: an older one is closed with 4500.

        Claimed in an `on_open` that is a function, and may return this to be awaited, it is as old as the connection;
        else as old as the call. Await it to know that the service knows.
        """
        ...

    def close_user(self, user: str, code: int = 1008, reason: str = "") -> Publishing:
        """Close the connections that a user has with this application."""
        ...

    def close_key(self, key: str, code: int = 1008, reason: str = "") -> Publishing:
        """Close the connection that has claimed `key`."""
        ...

    async def online(self, channel: str | None = None) -> Online:
        """Return how many are online in a channel (joined with presence); None: the application's own."""
        ...

    async def online_users(self, channel: str | None = None, most: int = 1000) -> list[str]:
        """Return who has come to a channel and not left it, sorted: the first `most`.

        `on_presence` tells what changes: who may still come back unnoticed (grace_seconds) is among them.
        """
        ...

    async def history(self, channel: str) -> list[str | bytes]:
        """Return what a channel has kept, oldest first. A new broker starts with nothing."""
        ...

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        """Call a function, or start a coroutine function, in this worker; a failure is logged. Returns a handle with
        `cancel()`. Every worker has its own object of the application: a timer set in `__init__` runs in each.
        """
        ...


class Application:
    """Base class: write the methods you need, as functions or as coroutines.

    An exception in one of them is logged with connection and user, counted, told to `on_error`, and closes that
    connection with 1011; nobody else notices. Do not block: what takes longer than 0.1 s without awaiting is
    named in the log and by fastpush_handler_longest_seconds.
    """

    options_class: ClassVar[type[Options]] = Options
    # Overrides of [limits] and [connections] that suit this application; the configuration's own come on top.
    default_limits: ClassVar[Mapping[str, Any]] = {}
    default_connections: ClassVar[Mapping[str, Any]] = {}
    # What its clients are told when a connection is closed: other codes, with reasons, in place of these.
    close_codes: ClassVar[Mapping[int, tuple[int, str]]] = {}
    # A URL parameter that names the user as `token` does where every token is believed ([auth] "token-is-user").
    user_parameter = ""

    def __init__(self, server: Server, options: Any) -> None:
        """server: see Server.  options: an options_class."""
        self.server = server
        self.options = options

    def channels(self, request: Request) -> Iterable[str]:
        """Name the channels that a connection is in from the first moment: all that is published once the client knows
        that it is connected comes.
        """
        return (self.server.path,)

    def on_open(self, connection: Connection, request: Request) -> Awaitable[None] | None:
        """A client is connected; nothing has been read from it."""

    def on_message(self, connection: Connection, data: str | bytes) -> Awaitable[None] | None:
        """A client has sent a text (str) or a binary message (bytes)."""

    def on_rpc(self, connection: Connection | None, method: str, data: Any) -> Any:
        """A client of channels has called `method`; return the answer, or something to await for it, as JSON can have
        it. Only the class of [client] handler is asked.

        connection: None for a call of a back-end.  data: what the call carries, read from JSON.
        Raise: RpcError to answer with an error; a method that there is not is RpcError(404, "…") or whatever you like.
        """
        raise RpcError(404, f"no method {method}")

    def on_close(self, connection: Connection, code: int, reason: str) -> Awaitable[None] | None:
        """A connection has ended, whatever the way: the last call for it. code: 1005 without, 1006 without a close."""

    def on_error(self, connection: Connection, error: Exception) -> Awaitable[None] | None:
        """A call for this connection has raised; it is being closed with 1011."""

    def on_presence(
        self,
        channel: str,
        user: str,
        is_online: bool,  # noqa: FBT001 - there are only two
        seconds: float,
    ) -> str | bytes | None:
        """A user came to a channel or left it at a Unix time: return what its members are sent, or None.

        A plain function, called in each worker that has members, and for notices among what a channel has kept.
        """
        return None
