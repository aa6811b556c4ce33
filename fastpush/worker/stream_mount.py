"""The paths of event streams in one worker: the simple protocol with channels at /sse, and the client protocol."""

from collections.abc import Callable, Iterable, Sequence

import msgspec
import orjson

from fastpush.applications.interface import Application, Request
from fastpush.applications.push import Push
from fastpush.bus.client import BusUnavailable
from fastpush.channels.client import NO_RECOVERY, Client, Entered, Host, Opening, as_json
from fastpush.channels.endpoint import ClientProtocol
from fastpush.channels.namespaces import check_name
from fastpush.config import Config
from fastpush.errors import CloseCode, RequestError, forbidden, illegal_request
from fastpush.fanout import ENVELOPE, EVENTS, UNIDIRECTIONAL
from fastpush.fanout.batch import channel_frames
from fastpush.http.auth import Identity
from fastpush.http.auth.contract import Subscription as Ticket
from fastpush.http.guard import Guard
from fastpush.protocol.bus import Entry, Join, Position, Publication
from fastpush.protocol.push import EVERYBODY, NO_OPTIONS, channel_key, channel_of, is_channel_key, user_key
from fastpush.protocol.server_sent import (
    ConnectOptions,
    StreamOptions,
    event,
    parse_stream,
    parse_unidirectional,
    tag,
)
from fastpush.worker.connection import Connection
from fastpush.worker.event_stream import EventStream
from fastpush.worker.mount import NO_PARAMETERS, Asked, Mount
from fastpush.worker.stream_request import StreamRequest

EVENTS_PATH = "/sse"
UNIDIRECTIONAL_PATH = "/connection/uni_sse"


class StreamMount(Mount):
    """A path whose clients only listen.

    clients: who knows the rules of channels.  host: by whom streams enter these.
    """

    streams = True
    request_class = StreamRequest

    def __init__(
        self, path: str, application: Application, config: Config, clients: ClientProtocol, host: Host
    ) -> None:
        self._clients = clients
        self._host = host
        super().__init__(path, application, config)

    def configure(self, config: Config) -> None:
        super().configure(config)
        self.anonymous = config.client.anonymous
        self.guard = Guard(('[client] anonymous to "everywhere"',), config.server.origins)

    def keys(self, request: Request, asked: Asked) -> tuple[bytes, ...]:
        return ()

    def slow_policy(self, key: bytes) -> str:
        return self._clients.slow_policy(key)

    def subtokens(self, asked: Asked) -> tuple[str, ...]:
        """Return the subscription tokens in a URL."""
        return ()

    def joins(
        self, stream: EventStream, identity: Identity | None, asked: Asked, tickets: Sequence[Ticket]
    ) -> list[Join]:
        """Return how a stream enters channels before it is answered. tickets: what its subscription tokens allow.

        Raises: RequestError 403, 404: it may not, or there is none of this name.
        """
        return []

    def enter_channels(self, stream: EventStream, joins: list[Join], take: Callable[[Entered], None]) -> None:
        """Let a stream into channels; see Memberships.enter. Raises: BusUnavailable."""
        self._host.enter(stream, joins, take)

    def resume(self, stream: EventStream, entered: Entered) -> None:
        """Send what a stream has missed of channels that it has entered."""


class EventsMount(StreamMount):
    """The simple protocol: what is pushed to a user's events, and what is published to channels.

    A stream's `data` are its Joins by routing key.
    """

    application: Push
    form = EVENTS

    def read(self, query: str) -> Asked:
        limits = self.limits
        options = parse_stream(query, name_bytes=limits.name_bytes, registrations=limits.registrations)
        for channel in options.channels:
            try:
                check_name(channel)
            except ValueError as error:
                raise illegal_request(str(error)) from None
        return Asked(options.token, NO_PARAMETERS, NO_OPTIONS, stream=options)

    def keys(self, request: Request, asked: Asked) -> tuple[bytes, ...]:
        events = _options(asked).events
        return (EVERYBODY, *[user_key(request.user, event) for event in events]) if events else ()

    def slow_policy(self, key: bytes) -> str:
        return super().slow_policy(key) if is_channel_key(key) else self.limits.slow_policy

    def subtokens(self, asked: Asked) -> tuple[str, ...]:
        return _options(asked).subtokens

    def joins(
        self, stream: EventStream, identity: Identity | None, asked: Asked, tickets: Sequence[Ticket]
    ) -> list[Join]:
        options, namespaces = _options(asked), self._clients.namespaces
        shown = {ticket.channel: ticket for ticket in tickets if ticket.user == stream.user and not ticket.client}
        if len(shown) < len(tickets) or not shown.keys() <= set(options.channels):
            raise forbidden("a subtoken is for another user, for one connection, or for none of these channels")
        for channel in options.channels:
            if namespaces.of(channel) is None:
                reason = f"no namespace is configured for the channel {channel}"
                raise RequestError(404, "unknown_channel", reason, text=reason)
            if not namespaces.may_subscribe(channel, stream.user, channel in shown):
                raise forbidden(f"this client may not subscribe to the channel {channel}")
        conn_info = as_json(None if identity is None else identity.info)
        joins = [
            self._clients.join(
                stream,
                channel,
                options.resumed.get(tag(channel_key(channel)), NO_RECOVERY),
                conn_info,
                as_json(shown[channel].info) if channel in shown else b"",
                share=len(options.channels),
            )
            for channel in options.channels
        ]
        stream.data = {join.key: join for join in joins}
        stream.expires_at = _first_end(ticket.expires_at for ticket in tickets)
        return joins

    def enter(self, connection: Connection, identity: Identity | None, keys: Iterable[bytes], asked: Asked) -> None:
        options = _options(asked)
        if options.envelope:
            connection.form |= ENVELOPE
        if identity is not None:
            ends = (connection.expires_at, identity.expires_at)
            if options.events:
                self.application.enter(connection, identity, options.events)
            connection.expires_at = _first_end(ends)

    def resume(self, stream: EventStream, entered: Entered) -> None:
        """Say where a stream stands in its channels, or that it does not get what it has missed; then send that."""
        counters = stream.environment.counters
        positions: dict[bytes, Position] = {}
        missed: list[tuple[bytes, list[Entry]]] = []
        unrecovered = []
        for join, kept in entered:
            if kept.epoch and self._clients.is_recoverable(join.key):
                positions[join.key] = Position(kept.offset, kept.epoch)
            if join.since is not None and kept.recovered:
                counters.recoveries_recovered += 1
                positions[join.key] = Position(join.since.offset, kept.epoch)
                missed.append((join.key, kept.entries))
            elif join.since is not None:
                counters.recoveries_unrecovered += 1
                unrecovered.append(channel_of(join.key))
        if positions or unrecovered:
            told = event(orjson.dumps({"channels": unrecovered}), "unrecovered") if unrecovered else b""
            stream.send_placed(told, positions)
        for key, entries in missed:
            # Of each channel as much as a send queue holds, at once: the client is there and waits for it.
            publications = [
                Publication([key], entry.extras, entry.data, 0.0, 0, entry.kind, entry.offset) for entry in entries
            ]
            if publications:
                joined, frames = channel_frames(publications, stream.form, stream.environment.config.compression)
                stream.send_joined(joined, frames)

    def on_relinked(self, connection: Connection) -> None:
        """Have a stream go on where it stands: some of what was on its way to it may be lost."""
        assert isinstance(connection, EventStream)
        stream, joins = connection, connection.data
        keys = [group.key for group in stream.groups if group.key in stream.positions]
        if not keys:
            return
        for key in keys:
            self._host.leave(stream, key)
            stream.seal_channel(key)
        if stream.is_behind:  # what it will have taken it can tell best, when it comes back
            stream.close(CloseCode.SERVICE_RESTART, "the broker was restarted")
            return
        again = [self._again(joins[key], stream.positions[key]) for key in keys]
        try:
            self._host.enter(stream, again, lambda entered: self.resume(stream, entered))
        except BusUnavailable:
            stream.close(CloseCode.SERVICE_RESTART, "the broker takes no more")

    def _again(self, join: Join, position: Position) -> Join:
        namespace = self._clients.namespaces.of_key(join.key)
        messages = 0 if namespace is None else namespace.history_messages
        return msgspec.structs.replace(join, since=position, replay_messages=messages)


class UnidirectionalMount(StreamMount):
    """The client protocol's pushes: a connect command in the URL, and what the server subscribes the client to."""

    application: ClientProtocol
    form = UNIDIRECTIONAL
    shown_as = 'the token of cf_connect, {"token":"…"}'

    def read(self, query: str) -> Asked:
        options = parse_unidirectional(query)
        return Asked(options.connect.token or None, NO_PARAMETERS, NO_OPTIONS, stream=options)

    def enter(self, connection: Connection, identity: Identity | None, keys: Iterable[bytes], asked: Asked) -> None:
        options = asked.stream
        assert isinstance(options, ConnectOptions)
        connection.data = Opening(options.connect, identity, options.resumed)

    def last_words(self, connection: Connection, code: int, reason: str) -> bytes:
        return self._clients.last_words(connection, code, reason) if isinstance(connection.data, Client) else b""

    def on_relinked(self, connection: Connection) -> None:
        self._clients.on_relinked(connection)


def _options(asked: Asked) -> StreamOptions:
    assert isinstance(asked.stream, StreamOptions)
    return asked.stream


def _first_end(ends: Iterable[float | None]) -> float | None:
    """Return the first of several times at which something ends; None: nothing does."""
    return min((end for end in ends if end is not None), default=None)
