"""Clients of channels: performs what their sessions ask for (/connection/websocket, /connection/uni_sse).

A client's commands are performed one after the other, as an application's messages are; the session knows what may
come when, this module who may what, and the broker what is true. What it sends it sends where its session stands in
the stream of what the broker says: the reply to a subscribe, then publications.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from inspect import isawaitable
from time import time
from typing import Any, ClassVar

import msgspec
import orjson

from fastpush import __version__
from fastpush.applications.interface import Application, Request, RpcError
from fastpush.applications.push import UserCounts
from fastpush.bus.client import BusUnavailable
from fastpush.channels.client import (
    NO_RECOVERY,
    Client,
    Connection,
    Ended,
    Entered,
    Host,
    Opening,
    Refused,
    Shown,
    as_json,
)
from fastpush.channels.namespaces import Namespaces, check_name, personal_channel
from fastpush.channels.service import ChannelService, epoch_text, parse_position
from fastpush.channels.session import Bounds, Session, State
from fastpush.config import Client as ClientConfig
from fastpush.config import Config, Namespace
from fastpush.errors import AuthUnavailable, CloseCode, ConnectionClosed, RequestError, TokenExpired, TokenRejected
from fastpush.fanout.batch import data_of
from fastpush.http.auth import Identity, TokenAuth
from fastpush.http.auth.contract import Subscription as Ticket
from fastpush.log import fields
from fastpush.metrics import Counters
from fastpush.protocol import client as protocol
from fastpush.protocol.bus import HISTORY_BYTES_MAX, Entry, Join, Kept, Position
from fastpush.protocol.client import (
    Connect,
    ConnectResult,
    DisconnectCode,
    ErrorCode,
    History,
    Presence,
    PresenceStats,
    Publish,
    Recover,
    Refresh,
    Rpc,
    Send,
    SubRefresh,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeCode,
)
from fastpush.protocol.push import EVERYBODY, channel_key, channel_of
from fastpush.protocol.server_sent import Resumed, tag

log = logging.getLogger("fastpush.channels")

_RECOVERABLE = 1  # a subscription's flag: its client is told a position
_ENTRANCES = (Connect, Refresh, Subscribe, SubRefresh)  # what a client that is not let in has asked for
_TURN_COMMANDS = 64  # of a frame, performed before others have their turn
_TTL_MAX = 2**31 - 1  # of an int that every SDK can read


class ClientProtocol(Application):
    """The endpoint of one worker.

    token_auth: who a client is; replaced on reload, as `configure` replaces the rest.
    user_counts: where users may have so many connections only.  handler: of [client]; None: there is none.
    """

    close_codes: ClassVar[Mapping[int, tuple[int, str]]] = {
        CloseCode.SERVICE_RESTART: (DisconnectCode.SHUTDOWN, DisconnectCode.SHUTDOWN.reason),
        CloseCode.TRY_AGAIN_LATER: (DisconnectCode.SLOW, DisconnectCode.SLOW.reason),
        CloseCode.TOKEN_EXPIRED: (DisconnectCode.EXPIRED, DisconnectCode.EXPIRED.reason),
        CloseCode.TOKEN_REJECTED: (DisconnectCode.INVALID_TOKEN, DisconnectCode.INVALID_TOKEN.reason),
        CloseCode.INTERNAL_ERROR: (DisconnectCode.SERVER_ERROR, DisconnectCode.SERVER_ERROR.reason),
        CloseCode.POLICY_VIOLATION: (DisconnectCode.TOO_MANY_REQUESTS, DisconnectCode.TOO_MANY_REQUESTS.reason),
    }

    def __init__(
        self,
        service: ChannelService,
        host: Host,
        counters: Counters,
        config: Config,
        token_auth: TokenAuth,
        user_counts: UserCounts,
        handler: Application | None,
    ) -> None:
        self.service = service
        self.handler = handler
        self.token_auth = token_auth
        self._host = host
        self._counters = counters
        self._user_counts = user_counts
        self._stale = self.close_reason  # one bound method for all connections
        self._performers: dict[type[protocol.Request], Callable[[Client, Any], Awaitable[None] | None]] = {
            Connect: self._connect,
            Subscribe: self._subscribe,
            Unsubscribe: self._unsubscribe,
            Publish: self._publish,
            Presence: self._presence,
            PresenceStats: self._presence_stats,
            History: self._history,
            Rpc: self._rpc,
            Send: self._send,
            Refresh: self._refresh,
            SubRefresh: self._sub_refresh,
        }
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Go by `config` from now on; what clients have been given before they keep."""
        self.namespaces = Namespaces(config.channels)
        self._config: ClientConfig = config.client
        self._bounds = Bounds(config.limits.channels_per_connection)
        self._ping_seconds = max(1, round(config.connections.ping_interval_seconds))
        self._replay_bytes = min(config.limits.send_queue_bytes, HISTORY_BYTES_MAX)

    def slow_policy(self, key: bytes) -> str:
        """Return what happens to a channel's publications that a slow client does not take."""
        namespace = self.namespaces.of_key(key)
        return "disconnect" if namespace is None else namespace.slow_policy

    # -- what connections say ----------------------------------------------------------

    def on_open(self, connection: Any, request: Request) -> Awaitable[None] | None:
        opening = connection.data
        connection.unregistered = self._stale
        if not isinstance(opening, Opening):
            client = self.open(connection, request, Session(self._bounds))
            client.may_be_anonymous = opening
            return None
        client = self.open(connection, request, Session(self._bounds, unidirectional=True))
        connect = opening.connect
        return self._go_on(client, connect, self._enter(client, connect, opening.identity, opening.resumed), iter(()))

    def open(self, connection: Connection, request: Request, session: Session) -> Client:
        """Let a connection have a session."""
        client: Client = Client(self, connection, session, request)
        connection.data = client
        return client

    def close_reason(self, connection: Any) -> tuple[int, str]:
        """Say how a connection is closed that does not connect in time; by our fault, so that its client comes back."""
        is_ours = connection.data.session.state is State.CONNECTING
        code = DisconnectCode.SERVER_ERROR if is_ours else DisconnectCode.STALE
        return code, code.reason

    def on_message(self, connection: Any, data: str | bytes) -> Awaitable[None] | None:
        client: Client = connection.data
        return self.perform_all(client, iter(client.session.feed(data)))

    def perform_all(self, client: Client, requests: Iterator[protocol.Request]) -> Awaitable[None] | None:
        """Perform requests in order; return what there is to wait for."""
        for request in requests:
            awaited = self._begin(client, request)
            if awaited is not None:
                return self._go_on(client, request, awaited, requests)
        client.flush()
        return None

    async def _go_on(
        self, client: Client, request: protocol.Request, awaited: Awaitable[None], requests: Iterator[protocol.Request]
    ) -> None:
        await self._outcome(client, request, awaited)
        for number, following in enumerate(requests, 1):
            if number % _TURN_COMMANDS == 0:
                await asyncio.sleep(0)
            next_awaited = self._begin(client, following)
            if next_awaited is not None:
                await self._outcome(client, following, next_awaited)
        client.flush()

    def _begin(self, client: Client, request: protocol.Request) -> Awaitable[None] | None:
        self._counters.commands += 1
        try:
            return self._performers[type(request)](client, request)
        except Exception as error:  # noqa: BLE001 - it is told, or logged, there
            self._fail(client, request, error)
        return None

    async def _outcome(self, client: Client, request: protocol.Request, awaited: Awaitable[None]) -> None:
        try:
            await awaited
        except Exception as error:  # noqa: BLE001 - it is told, or logged, there
            self._fail(client, request, error)

    def _fail(self, client: Client, request: protocol.Request, error: Exception) -> None:
        """Answer a request with what has gone wrong."""
        session = client.session
        self._counters.commands_refused += 1
        match error:
            case Ended():
                self._note_refusal(client, request, error)
                session.ended(error.code)
            case Refused() | RpcError():
                self._note_refusal(client, request, error)
                session.refused(request, error.code, error.message)
            case ConnectionClosed():
                pass  # the client was faster
            case AuthUnavailable() | BusUnavailable():
                session.refused(request, ErrorCode.INTERNAL)
            case RequestError(status=413):
                session.refused(request, ErrorCode.LIMIT_EXCEEDED, error.reason)
            case RequestError():
                session.refused(request, ErrorCode.INTERNAL)
            case _:
                self._counters.handler_errors += 1
                told = fields(connection=client.connection.id, user=client.connection.user, command=request.method)
                log.error("command failed", exc_info=error, extra=told)
                if not session.refused(request, ErrorCode.INTERNAL):  # it has no answer, or has had it
                    session.ended(DisconnectCode.SERVER_ERROR)

    def _note_refusal(self, client: Client, request: protocol.Request, error: "Ended | Refused | RpcError") -> None:
        """Let operators know of who was not let in."""
        if isinstance(request, _ENTRANCES):
            cause = error.__cause__ if isinstance(error.__cause__, TokenRejected) else error
            self._host.note_refusal(client.connection, error.code, cause, getattr(request, "channel", ""))

    def on_close(self, connection: Any, code: int, reason: str) -> Awaitable[None] | None:
        client: Client = connection.data
        client.session.ended(DisconnectCode.CONNECTION_CLOSED)
        self._host.cancel(client)
        connection.data = None  # they would hold each other until a collection of all garbage
        if self.handler is not None and client.shown is not None:
            return self.handler.on_close(client.shown, code, reason)
        return None

    def last_words(self, connection: Any, code: int, reason: str) -> bytes:
        """Return what a client without close frames is told at the end, if it has not been told."""
        client: Client = connection.data
        client.session.ended(code, reason)
        return client.session.take()

    def on_ping(self, connection: Any) -> None:
        """A connection's client has been silent: ask whether it is there."""
        connection.data.session.ping()
        connection.data.flush()

    # -- connecting --------------------------------------------------------------------

    async def _connect(self, client: Client, request: Connect) -> None:
        identity = await self._identify(client, request.token)
        if identity is not None and not await self._user_counts.register(client.connection, identity.user):
            raise Ended(DisconnectCode.CONNECTION_LIMIT)
        await self._enter(client, request, identity, {})

    async def _enter(self, client: Client, request: Connect, identity: Identity | None, resumed: Resumed) -> None:
        """Connect a client that is known, and counted. resumed: where its transport has kept track of it."""
        connection = client.connection
        if identity is not None:
            connection.user = identity.user
            client.info = as_json(identity.info)
            self._expire_at(client, identity.expires_at)
        channels = self._server_side(connection.user, identity)
        recoveries = {
            channel: resumed.get(tag(channel_key(channel))) or request.subs.get(channel, NO_RECOVERY)
            for channel in channels
        }
        joins = [Join(EVERYBODY, connection.number, "")]
        joins += [
            self.join(connection, channel, recover, client.info, share=len(recoveries))
            for channel, recover in recoveries.items()
        ]

        def take(entered: Entered) -> None:
            told = [(join, kept, recoveries[channel_of(join.key)]) for join, kept in entered[1:]]
            result = ConnectResult(
                client=connection.id,
                version=__version__,
                ping=self._ping_seconds,
                pong=not client.session.unidirectional,
                subs={channel_of(join.key): self._result(join, kept, recover) for join, kept, recover in told},
            )
            ttl = None if identity is None else _ttl(identity.expires_at)
            if ttl is not None:
                result.expires, result.ttl = True, ttl
            positions = None
            if client.session.connected(request, result):
                connection.unregistered = None
                for join, _, _ in told:
                    self._mark(client, channel_of(join.key))
                positions = self._positions(client, entered[1:])
            client.flush(positions)

        await self._host.enter(connection, joins, take)
        if self.handler is not None and connection.is_open:
            client.shown = Shown(connection)
            opening, client.request = client.request, None
            assert opening is not None
            awaited = self.handler.on_open(client.shown, opening._replace(user=connection.user))
            if awaited is not None:
                await awaited
        client.request = None

    async def _identify(self, client: Client, token: str) -> Identity | None:
        """Return whom a token names; None: an anonymous client."""
        if not token:
            if not client.may_be_anonymous:
                self._log_rejected(client, "a token is needed ([client] anonymous)")
                raise Ended(DisconnectCode.INVALID_TOKEN)
            return None
        try:
            found = self.token_auth.authenticate(token, client.connection.headers)
            identity = found if isinstance(found, Identity) else await found
        except TokenExpired as error:
            raise Refused(ErrorCode.TOKEN_EXPIRED) from error
        except TokenRejected as error:
            self._log_rejected(client, str(error))
            raise Ended(DisconnectCode.INVALID_TOKEN) from error
        if identity.signed:
            self._log_rejected(client, "token is for a URL with certain parameters")
            raise Ended(DisconnectCode.INVALID_TOKEN)
        return identity

    @staticmethod
    def _log_rejected(client: Client, reason: str) -> None:
        told = fields(connection=client.connection.id, peer=client.connection.peer, reason=reason)
        log.info("token rejected", extra=told)

    def _server_side(self, user: str, identity: Identity | None) -> list[str]:
        """Return what the server subscribes a client to: its user's channel, and what its token names."""
        named = [] if identity is None else list(identity.channels)
        if self._config.personal_namespace:
            personal = personal_channel(self._config.personal_namespace, user)
            named += [personal] if personal is not None else []
        return [channel for channel in dict.fromkeys(named) if self._is_channel(channel)]

    def _is_channel(self, channel: str) -> bool:
        try:
            check_name(channel)
        except ValueError:
            return False
        return self.namespaces.of(channel) is not None

    def _expire_at(self, client: Client, expires_at: float | None) -> None:
        """Have a connection closed a while after its token has ended; at once where its client cannot refresh it."""
        connection = client.connection
        grace = 0 if client.session.unidirectional else self._config.expired_close_seconds
        connection.expires_at = None if expires_at is None else expires_at + grace
        connection.plan()

    async def _refresh(self, client: Client, request: Refresh) -> None:
        connection = client.connection
        if not connection.user:
            raise Ended(DisconnectCode.BAD_REQUEST)
        try:
            identity = await self._identify(client, request.token)
        except Refused as refused:  # expired: an error would keep the SDKs away, after this they bring another token
            raise Ended(DisconnectCode.EXPIRED) from refused.__cause__
        if identity is None or identity.user != connection.user:
            raise Ended(DisconnectCode.INVALID_TOKEN)
        client.info = as_json(identity.info)
        self._expire_at(client, identity.expires_at)
        result = protocol.refresh_result(connection.id, __version__, _ttl(identity.expires_at))
        client.session.answered(request, result)

    # -- subscriptions -----------------------------------------------------------------

    async def _subscribe(self, client: Client, request: Subscribe) -> None:
        connection, channel = client.connection, request.channel
        if self.namespaces.of(channel) is None:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL)
        ticket = await self._ticket(client, channel, request.token) if request.token else None
        if not self.namespaces.may_subscribe(channel, connection.user, ticket is not None):
            raise Refused(ErrorCode.PERMISSION_DENIED)
        recover = Recover(request.recover, request.offset, request.epoch)
        if request.recover:
            await client.wait_for_room()
        info = as_json(None if ticket is None else ticket.info)
        join = self.join(connection, channel, recover, client.info, info)
        expires_at = None if ticket is None else ticket.expires_at

        def take(entered: Entered) -> None:
            for joined, kept in entered:
                if request.reject_unrecovered and joined.since is not None and not kept.recovered:
                    client.session.refused(request, ErrorCode.UNRECOVERABLE_POSITION)
                    self._host.leave(connection, join.key)
                    continue
                result = self._result(joined, kept, recover)
                result.expires, result.ttl = expires_at is not None, _ttl(expires_at) or 0
                if client.session.subscribed(request, result, expires_at=expires_at):
                    self._mark(client, channel)
                else:
                    self._host.leave(connection, join.key)
            client.flush()

        await self._host.enter(connection, [join], take)
        if expires_at is not None:
            self._plan_expiry(client)

    async def _ticket(self, client: Client, channel: str, token: str) -> Ticket:
        """Return what a subscription token allows this client."""
        try:
            found = self.token_auth.subscription(token)
            ticket = found if isinstance(found, Ticket) else await found
        except TokenExpired as error:
            raise Refused(ErrorCode.TOKEN_EXPIRED) from error
        except TokenRejected as error:
            raise Refused(ErrorCode.PERMISSION_DENIED, str(error)) from error
        connection = client.connection
        is_own = ticket.user == connection.user and ticket.client in {"", connection.id}
        if not is_own or ticket.channel != channel:
            raise Refused(ErrorCode.PERMISSION_DENIED, "the token is for another user, connection or channel")
        return ticket

    def join(
        self,
        connection: Connection,
        channel: str,
        recover: Recover,
        conn_info: bytes = b"",
        chan_info: bytes = b"",
        *,
        share: int = 1,
    ) -> Join:
        """Return how a connection enters a channel, which has a namespace.

        infos: what tokens say of it, JSON.  share: channels that it enters at once, whose publications come at once.
        """
        namespace = self.namespaces.of(channel)
        assert namespace is not None
        is_present, (recovers, offset, epoch) = namespace.presence, recover
        recovers = recovers and namespace.recovery
        return Join(
            channel_key(channel),
            connection.number,
            "",
            replay_messages=namespace.history_messages if recovers else 0,
            replay_bytes=self._replay_bytes // share,
            user=connection.user,
            is_present=is_present,
            info=protocol.client_info(connection.user, connection.id, conn_info, chan_info) if is_present else b"",
            since=parse_position(offset, epoch) if recovers else None,
        )

    def is_recoverable(self, key: bytes) -> bool:
        """Tell whether clients may come back to a place in a channel."""
        namespace = self.namespaces.of_key(key)
        return namespace is not None and namespace.recovery

    def _positions(self, client: Client, entered: Entered) -> dict[bytes, Position] | None:
        """Return where a client stands once it has been told of these channels; None: it keeps track of that itself."""
        if not client.session.unidirectional:
            return None
        return {
            join.key: Position(kept.offset, kept.epoch)
            for join, kept in entered
            if kept.epoch and self.is_recoverable(join.key)
        }

    def _result(self, join: Join, kept: Kept, recover: Recover) -> SubscribeResult:
        """Return what a client is told of a subscription: where the channel stands, and what it has missed."""
        if not self.is_recoverable(join.key) or not kept.epoch:
            return SubscribeResult(was_recovering=recover.recover)
        if recover.recover and kept.recovered:
            self._counters.recoveries_recovered += 1
        elif recover.recover:
            self._counters.recoveries_unrecovered += 1
        publications = [msgspec.Raw(publication) for publication in publications_of(kept.entries)]
        return SubscribeResult(
            recoverable=True,
            positioned=True,
            epoch=epoch_text(kept.epoch),
            offset=recover.offset if kept.recovered else kept.offset,
            publications=publications if kept.recovered else [],
            recovered=kept.recovered,
            was_recovering=recover.recover,
        )

    def _mark(self, client: Client, channel: str) -> None:
        """Remember whether a client has been told a position."""
        subscription = client.session.subscriptions.get(channel)
        if subscription is not None and self.is_recoverable(channel_key(channel)):
            subscription.flags |= _RECOVERABLE

    def _unsubscribe(self, client: Client, request: Unsubscribe) -> None:
        self._leave(client, request.channel)
        client.session.unsubscribed(request)

    def _leave(self, client: Client, channel: str) -> None:
        key = channel_key(channel)
        self._host.leave(client.connection, key)
        client.connection.seal_channel(key)

    async def _sub_refresh(self, client: Client, request: SubRefresh) -> None:
        subscription = client.session.subscriptions.get(request.channel)
        if subscription is None:
            raise Refused(ErrorCode.PERMISSION_DENIED)
        if subscription.expires_at is None:
            raise Ended(DisconnectCode.BAD_REQUEST)
        try:
            ticket = await self._ticket(client, request.channel, request.token)
        except Refused as refused:
            if refused.code == ErrorCode.TOKEN_EXPIRED:  # the error alone would be the end of it, for the SDKs
                self._end_subscription(client, request.channel, UnsubscribeCode.EXPIRED)
            raise
        subscription.expires_at = ticket.expires_at
        client.session.answered(request, protocol.sub_refresh_result(_ttl(ticket.expires_at)))
        self._plan_expiry(client)

    def _plan_expiry(self, client: Client) -> None:
        ends = [each.expires_at for each in client.session.subscriptions.values() if each.expires_at is not None]
        if ends and client.connection.is_open:
            self._host.plan(client, max(0.0, min(ends) + self._config.expired_close_seconds - time()))

    def end_expired(self, client: Client) -> None:
        """End the subscriptions that have come to their end, and plan for the next ones."""
        over = time() - self._config.expired_close_seconds
        subscriptions = client.session.subscriptions
        for channel in [name for name, each in subscriptions.items() if each.expires_at and each.expires_at <= over]:
            self._end_subscription(client, channel, UnsubscribeCode.EXPIRED)
        client.flush()
        self._plan_expiry(client)

    def _end_subscription(self, client: Client, channel: str, code: UnsubscribeCode) -> bool:
        if channel not in client.session.subscriptions:
            return False
        self._leave(client, channel)
        return client.session.unsubscribe(channel, code, code.reason)

    def subscribe(self, client: Client, channel: str) -> Awaitable[None] | None:
        """Subscribe a client by the server's will; None: it is in the channel, or on its way."""
        if channel in client.session.subscriptions or not self._is_channel(channel):
            return None
        join = self.join(client.connection, channel, NO_RECOVERY, client.info)

        def take(entered: Entered) -> None:
            for joined, kept in entered:
                if client.session.subscribe(channel, self._result(joined, kept, NO_RECOVERY)):
                    self._mark(client, channel)
            client.flush(self._positions(client, entered))

        return self._host.enter(client.connection, [join], take)

    def on_relinked(self, connection: Any) -> None:
        """Have a client recover: some of what was on its way to it may be lost."""
        client: Client | None = connection.data
        if client is None or not connection.is_open:
            return
        for channel, subscription in list(client.session.subscriptions.items()):
            if subscription.flags & _RECOVERABLE:
                self._end_subscription(client, channel, UnsubscribeCode.INSUFFICIENT_STATE)
                if subscription.is_server_side:
                    self._subscribe_again(client, channel)
        client.flush()

    def _subscribe_again(self, client: Client, channel: str) -> None:
        try:
            self.subscribe(client, channel)
        except BusUnavailable:  # then by a connection of its own
            client.session.ended(DisconnectCode.INSUFFICIENT_STATE)

    # -- in a channel ------------------------------------------------------------------

    async def _publish(self, client: Client, request: Publish) -> None:
        connection, channel = client.connection, request.channel
        if self.namespaces.of(channel) is None:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL)
        if not self.namespaces.may_publish(channel, connection.user, _is_in(client, channel)):
            raise Refused(ErrorCode.PERMISSION_DENIED)
        info = protocol.client_info(connection.user, connection.id, client.info)
        await self.service.published(channel, request.data, extras=protocol.extras(info))
        client.session.answered(request)

    async def _presence(self, client: Client, request: Presence) -> None:
        self._check(client, request.channel, lambda namespace: namespace.presence)
        await client.wait_for_room()
        client.session.answered(request, protocol.presence_result(await self.service.presence(request.channel)))

    async def _presence_stats(self, client: Client, request: PresenceStats) -> None:
        self._check(client, request.channel, lambda namespace: namespace.presence)
        stats = await self.service.presence_stats(request.channel)
        client.session.answered(request, protocol.presence_stats_result(*stats))

    async def _history(self, client: Client, request: History) -> None:
        self._check(client, request.channel, lambda namespace: bool(namespace.history_messages))
        await client.wait_for_room()
        since = request.since
        position = None if since is None else parse_position(since.offset, since.epoch)
        kept = await self.service.history(request.channel, request.limit, position, reverse=request.reverse)
        if position is not None and not kept.recovered:
            raise Refused(ErrorCode.UNRECOVERABLE_POSITION)
        publications = publications_of(kept.entries)
        client.session.answered(request, protocol.history_result(publications, kept.offset, epoch_text(kept.epoch)))

    def _check(self, client: Client, channel: str, offers: Callable[[Namespace], bool]) -> None:
        """Refuse what only subscribers may ask, or what the channel does not have."""
        namespace = self.namespaces.of(channel)
        if namespace is None:
            raise Refused(ErrorCode.UNKNOWN_CHANNEL)
        if not _is_in(client, channel):
            raise Refused(ErrorCode.PERMISSION_DENIED)
        if not offers(namespace):
            raise Refused(ErrorCode.NOT_AVAILABLE)

    # -- the handler -------------------------------------------------------------------

    async def _rpc(self, client: Client, request: Rpc) -> None:
        await client.wait_for_room()
        result = await self.call(client.shown, request.name, request.data)
        client.session.answered(request, protocol.rpc_result(result))

    async def call(self, shown: Shown | None, method: str, data: bytes) -> bytes:
        """Call the handler and return its result, both JSON. shown: None: a back-end calls.

        Raises: Refused: there is none, or no such method.  RpcError: of the handler.
        """
        if self.handler is None:
            raise Refused(ErrorCode.METHOD_NOT_FOUND)
        try:
            given = orjson.loads(data) if data else None
        except orjson.JSONDecodeError as error:  # JSON, but a number beyond all, or nested deeper than orjson goes
            raise Refused(ErrorCode.BAD_REQUEST, f"the data cannot be read: {error}") from None
        result = self.handler.on_rpc(shown, method, given)
        return orjson.dumps(await result if isawaitable(result) else result)

    def _send(self, client: Client, request: Send) -> Awaitable[None] | None:
        if self.handler is None or client.shown is None:
            raise Ended(DisconnectCode.NOT_AVAILABLE)
        return self.handler.on_message(client.shown, (request.data or b"null").decode())

    # -- what back-ends order ----------------------------------------------------------

    def clients(self, user: str | None = None, connection_id: str = "") -> list[Client]:
        """Return the clients in this worker that have connected, or those of one user; with an id that one only."""
        found = (each.data for each in self._host.connections(user) if connection_id in {"", each.id})
        return [client for client in found if client.session.state == State.CONNECTED and client.connection.is_open]

    def unsubscribe(self, client: Client, channel: str) -> bool:
        """Unsubscribe a client by the server's will; False: it is not in the channel."""
        is_over = self._end_subscription(client, channel, UnsubscribeCode.SERVER)
        client.flush()
        return is_over

    def disconnect(self, client: Client, code: int, reason: str) -> None:
        """Close a client's connection with a code of the protocol, as the back-end wants."""
        client.session.ended(code, reason)
        client.flush(by="back-end")

    def refresh(self, client: Client, expires_at: float | None) -> None:
        """Say when a client's connection ends, and tell it."""
        self._expire_at(client, expires_at)
        client.session.push(protocol.refresh_push(_ttl(expires_at)))
        client.flush()


def publications_of(entries: Iterable[Entry]) -> list[bytes]:
    """Return what a channel has kept as publications, without what the protocol has no form for."""
    found = ((entry, data_of(entry.kind, entry.data)) for entry in entries)
    return [protocol.publication(data, entry.extras, entry.offset) for entry, data in found if data]


def _is_in(client: Client, channel: str) -> bool:
    subscription = client.session.subscriptions.get(channel)
    return subscription is not None and not subscription.request_id


def _ttl(expires_at: float | None) -> int | None:
    """Return whole seconds until a time, from one to _TTL_MAX; None for never."""
    return None if expires_at is None else int(max(1.0, min(expires_at - time(), _TTL_MAX)))
