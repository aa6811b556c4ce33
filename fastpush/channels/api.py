"""The server API: what back-ends ask for by POST /api/<method>, performed over channels and clients.

Publish and broadcast never wait: whoever calls them is called back. Each other method is a coroutine. What is wrong
with a request is a Refusal, answered with its number; what is wrong with the service is a RequestError, answered
with an HTTP status of its own, and only among the replies of a batch or a broadcast with error 100.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from operator import itemgetter
from time import time
from typing import Any

import msgspec
import orjson

from fastpush.applications.interface import RpcError
from fastpush.channels.client import Refused
from fastpush.channels.endpoint import ClientProtocol, publications_of
from fastpush.channels.namespaces import check_name
from fastpush.channels.service import ChannelService, Published, epoch_text, parse_position
from fastpush.config import Namespace
from fastpush.errors import RequestError
from fastpush.http.push import JSON, Reply
from fastpush.log import fields
from fastpush.protocol import api, bus
from fastpush.protocol import client as protocol
from fastpush.protocol.api import Refusal, bad_request
from fastpush.protocol.client import DisconnectCode, ErrorCode

log = logging.getLogger("fastpush.channels")

CHANNELS_MAX = 10_000  # of one answer
BROADCAST_BYTES = 1024 * 1024  # of one broadcast that are on their way to the broker at once
COMMANDS_AT_ONCE = 16  # of one batch
RESULTS_BYTES = 2 * bus.HISTORY_BYTES_MAX  # of one request with several commands; behind so many it performs no more

OnReply = Callable[[Reply | RequestError], None]
_Done = bytes | Refusal | RequestError  # a result, or why there is none
_OnDone = Callable[[_Done], None]
_Method = Callable[[Any], Awaitable[bytes]]


class ServerApi:
    """The methods of one worker. clients: its endpoint, by whose namespaces and limits everything goes.

    admits(): whether one publish or broadcast more may be taken now.
    methods: what each takes, and what performs it; batch is none of them.
    """

    def __init__(self, clients: ClientProtocol, admits: Callable[[], bool]) -> None:
        self._clients = clients
        self._admits = admits
        self.methods: dict[str, tuple[type[api.Request], _Method]] = {
            "publish": (api.Publish, partial(_awaited, self._publish)),
            "broadcast": (api.Broadcast, partial(_awaited, self._broadcast)),
            "subscribe": (api.Subscribe, self._subscribe),
            "unsubscribe": (api.Unsubscribe, self._unsubscribe),
            "disconnect": (api.Disconnect, self._disconnect),
            "refresh": (api.Refresh, self._refresh),
            "presence": (api.Channel, self._presence),
            "presence_stats": (api.Channel, self._presence_stats),
            "history": (api.History, self._history),
            "history_remove": (api.Channel, self._history_remove),
            "channels": (api.Channels, self._channels),
            "connections": (api.Connections, self._connections),
            "info": (api.Info, self._info),
            "rpc": (api.Rpc, self._rpc),
        }

    @property
    def _service(self) -> ChannelService:
        return self._clients.service

    # -- requests ----------------------------------------------------------------------

    def publish(self, body: bytes, on_reply: OnReply, headers: Mapping[str, str]) -> None:
        """Answer POST /api/publish. Raises: RequestError; else `on_reply` is called once, at once or later."""
        self._begin(api.Publish, self._publish, body, on_reply, headers)

    def broadcast(self, body: bytes, on_reply: OnReply, headers: Mapping[str, str]) -> None:
        """Answer POST /api/broadcast; as `publish`."""
        self._begin(api.Broadcast, self._broadcast, body, on_reply, headers)

    @staticmethod
    def _begin(
        kind: type[Any],
        method: Callable[[Any, _OnDone], None],
        body: bytes,
        on_reply: OnReply,
        headers: Mapping[str, str],
    ) -> None:
        try:
            method(api.read(kind, body), lambda done: on_reply(_reply(done, headers)))
        except Refusal as refusal:
            on_reply(_reply(refusal, headers))

    async def respond(self, method: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Answer POST /api/<method>, or POST /api for "". Raises: RequestError."""
        several = {"batch": self._batch, "": self._lines}.get(method)
        if several is None:
            reply = _reply(await self.outcome(method, self.perform(method, body)), headers)
        else:
            reply = _reply(await self.outcome(method, several(body)), headers, wrap=bytes)
        if isinstance(reply, RequestError):
            raise reply
        return reply

    async def perform(self, method: str, body: bytes) -> bytes:
        """Do what one method asks for and return its result. Raises: Refusal, RequestError."""
        known = self.methods.get(method)
        if known is None:
            names = ", ".join(self.methods)
            raise Refusal(ErrorCode.METHOD_NOT_FOUND, f"method not found: there are {names} and batch")
        kind, perform = known
        return await perform(api.read(kind, body))

    @staticmethod
    async def outcome(method: str, work: Awaitable[bytes]) -> _Done:
        """Wait for a method's result; what goes wrong is returned, and logged where it is no fault of who asks."""
        try:
            return await work
        except (Refusal, RequestError) as error:
            return error
        except (Refused, RpcError) as error:
            return Refusal(error.code, error.message)
        except Exception:
            log.exception("command of the server API failed", extra=fields(command=method))
            return Refusal(ErrorCode.INTERNAL)

    # -- several commands --------------------------------------------------------------

    async def _batch(self, body: bytes) -> bytes:
        batch = api.read(api.Batch, body)
        self._check_number("commands", len(batch.commands))
        commands = _Commands(self)
        replies = (self._command(command, commands) for command in batch.commands)
        return api.batch_reply(await asyncio.gather(*replies) if batch.parallel else [await each for each in replies])

    @staticmethod
    async def _command(command: Mapping[str, msgspec.Raw], commands: "_Commands") -> bytes:
        """Perform one command of a batch, return its reply."""
        asked = [(method, bytes(body)) for method, body in command.items() if bytes(body) != b"null"]
        if len(asked) != 1:
            return _error_reply(bad_request(f"a command must have one method, found {len(asked)}"))
        ((method, body),) = asked
        done = await commands.outcome(method, body)
        return b'{"%b":%b}' % (method.encode(), done) if isinstance(done, bytes) else _error_reply(done)

    async def _lines(self, body: bytes) -> bytes:
        """Perform the commands of the older form, one a line."""
        lines = api.lines(body)
        self._check_number("the body's lines", len(lines))
        commands = _Commands(self)
        return b"\n".join([await self._line(line, commands) for line in lines])

    @staticmethod
    async def _line(command: api.Line, commands: "_Commands") -> bytes:
        params = bytes(command.params)
        done = await commands.outcome(command.method, b"{}" if params in {b"", b"null"} else params)
        return api.line_reply(command.id, api.result(done) if isinstance(done, bytes) else _error_reply(done))

    def _check_number(self, what: str, found: int) -> None:
        most = self._service.limits.push_users
        if not 1 <= found <= most:
            raise bad_request(f"{what} must be 1 to {most} ([limits] push_users), found {found}")

    # -- publishing --------------------------------------------------------------------

    def _publish(self, asked: api.Publish, on_done: _OnDone) -> None:
        options = api.options(asked)
        self._namespace(asked.channel)
        self._check_rate()
        self._sparing(options, lambda spared: self._send(asked.channel, options, spared, on_done), on_done)

    def _broadcast(self, asked: api.Broadcast, on_done: _OnDone) -> None:
        options = api.options(asked)
        self._check_number("channels", len(asked.channels))
        self._check_rate()

        def send_all(spared: int) -> None:
            send = partial(self._send_one, options=options, spared=spared)
            _Broadcast(asked.channels, len(options.data), send, on_done).go_on()

        self._sparing(options, send_all, on_done)

    def _check_rate(self) -> None:
        if not self._admits():
            self._service.count_refused()
            most = self._service.limits.pushes_per_second
            reason = f"too many requests: more than {most} a second to one worker ([limits] pushes_per_second)"
            raise Refusal(ErrorCode.TOO_MANY_REQUESTS, reason)

    def _sparing(self, options: api.Options, send: Callable[[int], None], on_done: _OnDone) -> None:
        """Call `send` with the number of the connection that is to be left out, 0 for none."""
        if not options.exclude:
            send(0)
            return

        def on_found(spared: int | RequestError) -> None:
            try:
                if isinstance(spared, RequestError):
                    on_done(spared)
                else:
                    send(spared)
            except RequestError as error:
                on_done(error)

        self._service.find(options.exclude, on_found)

    def _send_one(self, channel: str, on_done: _OnDone, *, options: api.Options, spared: int) -> None:
        """Publish one of several: whatever is wrong with it is told of it alone."""
        try:
            self._namespace(channel)
            self._send(channel, options, spared, on_done)
        except (Refusal, RequestError) as error:
            on_done(error)

    def _send(self, channel: str, options: api.Options, spared: int, on_done: _OnDone) -> None:
        def on_published(published: Published | RequestError) -> None:
            on_done(published if isinstance(published, RequestError) else api.publish_result(*published))

        extras = protocol.extras(tags=options.tags)
        self._service.publish(channel, options.data, on_published, extras=extras, spared=spared, once=options.once)

    # -- channels ----------------------------------------------------------------------

    def _namespace(self, channel: str) -> Namespace:
        """Return the settings of a channel. Raises: Refusal 102, 107."""
        try:
            check_name(channel)
        except ValueError as error:
            raise bad_request(str(error)) from None
        namespace = self._clients.namespaces.of(channel)
        if namespace is None:
            raise Refusal(ErrorCode.UNKNOWN_CHANNEL, "unknown channel: its namespace is not among [channels]")
        return namespace

    async def _presence(self, asked: api.Channel) -> bytes:
        self._check(self._namespace(asked.channel).presence, "presence")
        return protocol.presence_result(await self._service.presence(asked.channel))

    async def _presence_stats(self, asked: api.Channel) -> bytes:
        self._check(self._namespace(asked.channel).presence, "presence")
        return protocol.presence_stats_result(*await self._service.presence_stats(asked.channel))

    async def _history(self, asked: api.History) -> bytes:
        self._check(self._namespace(asked.channel).history_messages, "history_messages")
        since = api.since(asked.since)
        position = None if since is None else parse_position(*since)
        kept = await self._service.history(asked.channel, asked.limit or 0, position, reverse=bool(asked.reverse))
        if position is not None and not kept.recovered:
            raise Refusal(ErrorCode.UNRECOVERABLE_POSITION)
        return protocol.history_result(publications_of(kept.entries), kept.offset, epoch_text(kept.epoch))

    async def _history_remove(self, asked: api.Channel) -> bytes:
        self._check(self._namespace(asked.channel).history_messages, "history_messages")
        await self._service.clear_history(asked.channel)
        return b"{}"

    @staticmethod
    def _check(is_kept: object, setting: str) -> None:
        if not is_kept:
            raise Refusal(ErrorCode.NOT_AVAILABLE, f"not available: the channel's namespace has no {setting}")

    async def _channels(self, asked: api.Channels) -> bytes:
        found, missing = await self._service.gather("channels", asked.pattern or "")
        clients: Counter[str] = Counter()
        for each in found:
            clients.update(each)
        if len(clients) > CHANNELS_MAX:
            reason = f"more than {CHANNELS_MAX} channels, at most so many are listed: ask with a pattern"
            raise Refusal(ErrorCode.LIMIT_EXCEEDED, reason)
        return _answer({"channels": {channel: {"num_clients": number} for channel, number in clients.items()}}, missing)

    # -- connections -------------------------------------------------------------------

    async def _subscribe(self, asked: api.Subscribe) -> bytes:
        self._namespace(asked.channel)
        return await self._order("subscribe", _user(asked), asked.client or "", asked.channel)

    async def _unsubscribe(self, asked: api.Unsubscribe) -> bytes:
        self._namespace(asked.channel)
        return await self._order("unsubscribe", _user(asked), asked.client or "", asked.channel)

    async def _disconnect(self, asked: api.Disconnect) -> bytes:
        user, spared = _user(asked), asked.whitelist or []
        default = DisconnectCode.FORCE_DISCONNECT
        code, reason = api.close_with(asked.disconnect, (int(default), default.reason))
        return await self._order("disconnect", user, asked.client or "", spared, code, reason)

    async def _refresh(self, asked: api.Refresh) -> bytes:
        user, expires_at = _user(asked), api.expiry(asked) or None
        if asked.expired or (expires_at is not None and expires_at <= time()):
            ended = DisconnectCode.EXPIRED
            return await self._order("disconnect", user, asked.client or "", [], int(ended), ended.reason)
        return await self._order("refresh", user, asked.client or "", expires_at)

    async def _order(self, name: str, *arguments: Any) -> bytes:
        done = await self._service.order(name, *arguments)
        return api.order_result(done.sent, done.unconfirmed)

    async def _connections(self, asked: api.Connections) -> bytes:
        if not asked.user:
            raise bad_request("user is empty")
        found, missing = await self._service.gather("connections", asked.user)
        connections: dict[str, Any] = {}
        for each in found:
            connections |= each
        return _answer({"connections": connections}, missing)

    async def _info(self, asked: api.Info) -> bytes:
        found, missing = await self._service.gather("info")
        return _answer({"nodes": sorted(found, key=itemgetter("name"))}, missing)

    async def _rpc(self, asked: api.Rpc) -> bytes:
        if not asked.method:
            raise bad_request("method is empty")
        return protocol.rpc_result(await self._clients.call(None, asked.method, bytes(asked.params)))


class _Commands:
    """The commands of one request: so many at once, and none behind results that are too long together."""

    def __init__(self, server_api: ServerApi) -> None:
        self._api = server_api
        self._turns = asyncio.Semaphore(COMMANDS_AT_ONCE)
        self._room_bytes = RESULTS_BYTES

    async def outcome(self, method: str, body: bytes) -> _Done:
        """Perform one of them, in its turn; error 106, and nothing is done, behind too long results."""
        async with self._turns:
            if self._room_bytes <= 0:
                reason = f"not done: the results before it have more than {RESULTS_BYTES} bytes"
                return Refusal(ErrorCode.LIMIT_EXCEEDED, reason)
            done = await self._api.outcome(method, self._api.perform(method, body))
            if isinstance(done, bytes):
                self._room_bytes -= len(done)
            return done


class _Broadcast:
    """One publication in several channels, as many at once as the bus takes easily.

    size: bytes of its data.  send: publishes in one channel, and calls back once with what became of it.
    on_done: called once, with the result of the broadcast.
    """

    def __init__(
        self, channels: Sequence[str], size: int, send: Callable[[str, _OnDone], None], on_done: _OnDone
    ) -> None:
        self._waiting = deque(enumerate(channels))
        self._replies = [b""] * len(channels)
        self._size = size
        self._send = send
        self._on_done = on_done
        self._under_way = 0
        self._is_sending = False

    def go_on(self) -> None:
        """Send as many as may be under way."""
        self._is_sending = True
        while self._waiting and self._under_way * self._size < BROADCAST_BYTES:
            position, channel = self._waiting.popleft()
            self._under_way += 1
            self._send(channel, partial(self._take, position))
        self._is_sending = False
        if not self._waiting and not self._under_way:
            self._on_done(api.broadcast_result(self._replies))

    def _take(self, position: int, done: _Done) -> None:
        self._replies[position] = api.result(done) if isinstance(done, bytes) else _error_reply(done)
        self._under_way -= 1
        if not self._is_sending and (self._waiting or not self._under_way):
            self.go_on()


async def _awaited(method: Callable[[Any, _OnDone], None], asked: Any) -> bytes:
    """Call what calls back, and wait. Raises: Refusal, RequestError."""
    future: asyncio.Future[_Done] = asyncio.get_running_loop().create_future()
    method(asked, lambda done: None if future.done() else future.set_result(done))
    done = await future
    if isinstance(done, bytes):
        return done
    raise done


def _user(asked: api.OfUser) -> str:
    """Return the user whose connections are meant. Raises: Refusal 107."""
    if not asked.user and not asked.client:
        raise bad_request("user is empty, which needs client: the id of an anonymous connection")
    return asked.user


def _answer(result: dict[str, Any], missing: int) -> bytes:
    """Return what workers have told. missing: how many have not, in time."""
    return orjson.dumps(result | ({"unconfirmed": missing} if missing else {}))


def _error_reply(error: Refusal | RequestError) -> bytes:
    """Return the reply to one of several commands."""
    if isinstance(error, Refusal):
        return api.error_reply(error.code, error.message)
    code = ErrorCode.BAD_REQUEST if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else ErrorCode.INTERNAL
    return api.error_reply(code, error.reason)


def _reply(
    done: _Done, headers: Mapping[str, str], wrap: Callable[[bytes], bytes] = api.result
) -> Reply | RequestError:
    """Return how a request is answered; errors as the status too for who asks for that."""
    if isinstance(done, bytes):
        return Reply(HTTPStatus.OK, JSON, wrap(done))
    if isinstance(done, RequestError):
        return done
    if headers.get("x-centrifugo-error-mode") == "transport":
        return Reply(api.status_of(done.code), JSON, api.error(done.code, done.message))
    return Reply(HTTPStatus.OK, JSON, api.error_reply(done.code, done.message))
