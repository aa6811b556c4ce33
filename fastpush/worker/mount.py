"""An application at its path, in one worker: what a handshake and a connection need to know of it."""

import logging
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import NamedTuple

import msgspec
from multidict import MultiDict, MultiDictProxy

from fastpush.applications.interface import Application, Request
from fastpush.applications.loading import Loaded, load, make
from fastpush.applications.push import Push
from fastpush.child import ListenerRole
from fastpush.config import Config
from fastpush.fanout import ENVELOPE, GZIP, PLAIN
from fastpush.http.auth import Identity
from fastpush.http.guard import Guard
from fastpush.log import fields
from fastpush.metrics import Peak
from fastpush.protocol.bus import Notice
from fastpush.protocol.frames import data_frame
from fastpush.protocol.push import (
    EVERYBODY,
    NO_OPTIONS,
    UrlOptions,
    channel_of,
    parse_parameters,
    parse_query,
    user_key,
)
from fastpush.protocol.server_sent import ConnectOptions, StreamOptions
from fastpush.worker.application_server import ApplicationServer, checked_channel_key
from fastpush.worker.codec import Codecs
from fastpush.worker.connection import Connection
from fastpush.worker.environment import ConnectionTicks
from fastpush.worker.upgrade import Handshake

log = logging.getLogger("fastpush.application")

BLOCKED_SECONDS = 0.1
NO_PARAMETERS: MultiDictProxy[str] = MultiDictProxy(MultiDict())


class Asked(NamedTuple):
    """What the URL of a handshake says. options: of the simple protocol.

    is_anonymous: no token, and none is needed.
    stream: of an event stream: what its URL asks for.
    """

    token: str | None
    query: MultiDictProxy[str]
    options: UrlOptions
    is_anonymous: bool = False
    stream: StreamOptions | ConnectOptions | None = None


class Mount:
    """An application at its path.

    limits, connections, times, codecs: its own, made of the configuration; replaced on reload.
    anonymous: who needs no token: "no", "loopback" or "everywhere".
    guard: decides who counts as of this machine.
    hears_open, hears_close: whether it has such a method.  longest: seconds that a call of it has held the loop.
    form: of what its connections are sent.  admits_first: who needs a token shows it by message, later.
    request_class: what a request for it is.  roles: of the listeners that it is served on.
    streams: whether its connections are event streams, not WebSockets.
    shown_as: as what a client shows its token, in words.
    counts_pings: whether its clients give up a server that has not pinged for a while, however much they say.
    """

    form = PLAIN
    shown_as = "the URL parameter token"
    counts_pings = False
    admits_first = False
    streams = False
    request_class: type[Handshake] = Handshake
    roles: tuple[ListenerRole, ...] = ("all", "public")

    def __init__(self, path: str, application: Application, config: Config, loaded: Loaded | None = None) -> None:
        self.path = path
        self.application = application
        self._loaded = loaded
        self.anonymous = "no" if loaded is None else loaded.entry.anonymous
        self.heartbeat_seconds = 0.0 if loaded is None else loaded.entry.heartbeat_seconds
        self.hears_open = type(application).on_open is not Application.on_open
        self.hears_close = type(application).on_close is not Application.on_close
        self.longest = Peak()
        self.configure(config)

    @property
    def kind(self) -> str:
        """Name the application's class, for pages that know some."""
        return type(self.application).__name__.lower()

    def configure(self, config: Config) -> None:
        """Go by `config` from now on."""
        loaded = self._loaded
        self.limits = config.limits if loaded is None else loaded.limits(config.limits)
        self.connections = config.connections if loaded is None else loaded.connections(config.connections)
        self.times = ConnectionTicks.of(self.limits, self.connections)
        self.codecs = Codecs(self.limits.message_bytes, config.server.read_buffer_bytes)
        self.guard = Guard((f'anonymous of [[application]] {self.path} to "everywhere"',), config.server.origins)
        self._believes_user = config.auth.mode == "token-is-user"

    def read(self, query: str) -> Asked:
        """Return what a URL asks for. Raises: RequestError 400."""
        parameters = MultiDict(parse_parameters(query)) if query else MultiDict[str]()
        name = self.application.user_parameter
        user = parameters.get(name) if name and self._believes_user else None
        return Asked(parameters.popall("token", [user])[0], MultiDictProxy(parameters), NO_OPTIONS)

    def keys(self, request: Request, asked: Asked) -> tuple[bytes, ...]:
        """Return the routing keys that a connection has from the first moment."""
        channels = self.application.channels(request)
        if isinstance(channels, str):
            raise TypeError("`channels` returns several names, not a text")
        keys = [checked_channel_key(channel) for channel in channels]
        if request.user:
            keys.append(user_key(request.user, self.path))
        return tuple(dict.fromkeys(keys))

    def enter(self, connection: Connection, identity: Identity | None, keys: Iterable[bytes], asked: Asked) -> None:
        """Let a new connection have what it has from the first moment."""
        if identity is not None:
            connection.user = identity.user
            connection.expires_at = identity.expires_at
        for key in keys:
            connection.environment.hub.join(connection, key)

    def slow_policy(self, key: bytes) -> str:
        """Return what happens to a routing key's messages that a slow client does not take (state/send_queue.py)."""
        return self.limits.slow_policy

    def ping(self, connection: Connection) -> None:
        """Ask a client that has been silent whether it is there."""
        connection.send_ping()

    def on_relinked(self, connection: Connection) -> None:
        """What the broker sent for a connection may have been lost in part."""

    def last_words(self, connection: Connection, code: int, reason: str) -> bytes:
        """Return what a client without close frames is told at the end, pushes of the client protocol; b"": nothing."""
        return b""

    def observe(self, seconds: float) -> None:
        """Note how long a call has held the loop."""
        self.longest.observe(seconds)
        if seconds > BLOCKED_SECONDS:
            log.warning("handler blocks", extra=fields(path=self.path, seconds=round(seconds, 3)))

    def word(self, key: bytes, notice: Notice) -> bytes | None:
        """Return the frame that tells a channel's members who came or left; None for nothing."""
        began = perf_counter()
        try:
            said = self.application.on_presence(channel_of(key), notice.user, notice.is_online, notice.seconds)
        finally:
            self.observe(perf_counter() - began)
        return None if said is None else data_frame(said)


class PushMount(Mount):
    """The simple protocol of /ws, whose URL has registrations in it."""

    application: Push

    def __init__(self, path: str, application: Push, config: Config) -> None:
        super().__init__(path, application, config)
        self.anonymous = "everywhere"  # at first: a client may register, and show its token, by message

    def configure(self, config: Config) -> None:
        super().configure(config)
        # While a token is looked up its client is not read from: nobody knows yet who it is.
        self.limits = msgspec.structs.replace(self.limits, receive_queue_messages=1)

    def read(self, query: str) -> Asked:
        options = parse_query(query, name_bytes=self.limits.name_bytes, registrations=self.limits.registrations)
        return Asked(options.token, NO_PARAMETERS, options)

    def keys(self, request: Request, asked: Asked) -> tuple[bytes, ...]:
        events = asked.options.events
        return (EVERYBODY, *[user_key(request.user, event) for event in events]) if events else ()

    def enter(self, connection: Connection, identity: Identity | None, keys: Iterable[bytes], asked: Asked) -> None:
        options = asked.options
        connection.form |= (ENVELOPE if options.envelope else PLAIN) | (GZIP if options.gzip else PLAIN)
        connection.wants_confirm = options.confirm
        if options.heartbeat:
            connection.beat_every(options.heartbeat)
        if identity is not None:
            self.application.enter(connection, identity, options.events)


def applications(config: Config, serve: Callable[[str], ApplicationServer]) -> list[Mount]:
    """Return what [[application]] names, ready to serve; call in a worker, inside its running loop.

    Args:   serve(path): returns the Server of an application.
    Raises: ConfigError: a class cannot be imported, refuses its options, or its constructor fails.
    """
    mounts = []
    for number, entry in enumerate(config.application, 1):
        loaded = load(number, entry)
        where = f"[[application]] number {number}"
        application = make(where, entry.handler, (loaded.application_class, loaded.options), serve(entry.path))
        mounts.append(Mount(entry.path, application, config, loaded))
    return mounts
