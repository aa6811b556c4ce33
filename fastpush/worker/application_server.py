"""The Server that an application is given: everything reaches over all workers, through the broker."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import orjson

from fastpush.applications.interface import CHANNEL_BYTES_MAX, Connection, Online
from fastpush.bus.client import BusClient, BusUnavailable, OnResult
from fastpush.errors import ConnectionClosed, PublishFailed
from fastpush.fanout import Group
from fastpush.http.auth.complaints import Complaints
from fastpush.http.push import PUBLICATION_KEYS_MAX
from fastpush.log import fields
from fastpush.protocol import bus
from fastpush.protocol.bus import Position, Status, encode_publication
from fastpush.protocol.frames import close_frame, data_frame, message_of
from fastpush.protocol.push import channel_key, claim_name, user_key

if TYPE_CHECKING:
    from fastpush.worker.connection import Connection as OwnConnection
    from fastpush.worker.environment import Environment
    from fastpush.worker.membership import Memberships

log = logging.getLogger("fastpush.application")

KEEP_MAX = 65535
GRACE_SECONDS_MAX = 3600
MESSAGE_BYTES_MAX = 64 * 1024 * 1024  # as of a push; a worker's link takes four times as much
_NOT_TAKEN = {
    Status.NOT_READY: "the broker, or a worker with such connections, is being replaced",
    Status.OVERLOADED: "a worker is overloaded",
}


class Done:
    """An awaitable of what is true already."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]


DONE = Done()


class Outgoing:
    """A publication, or a request to close, under way; see Publishing. A failure that nobody awaits is logged."""

    __slots__ = ("_error", "_is_over", "_on_unseen", "_sent", "_waiter", "_was_awaited")

    def __init__(self, on_unseen: Callable[[str], None]) -> None:
        self._on_unseen = on_unseen  # told why, when nobody awaits a failure
        self._sent = 0
        self._error: PublishFailed | None = None
        self._is_over = self._was_awaited = False
        self._waiter: asyncio.Future[None] | None = None

    def on_result(self, status: int, sent: int, unconfirmed: int, position: Position) -> None:
        """Take what the broker has answered."""
        if status == Status.DONE:
            self._end(sent, None)
        elif status == Status.UNKNOWN:
            self._end(0, PublishFailed("the broker was lost meanwhile", may_have_arrived=True))
        else:
            self._end(0, PublishFailed(_NOT_TAKEN[Status(status)]))

    def fail(self, reason: str) -> None:
        """It was not taken."""
        self._end(0, PublishFailed(reason))

    def _end(self, sent: int, error: PublishFailed | None) -> None:
        self._sent, self._error, self._is_over = sent, error, True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        elif error is not None and not self._was_awaited:
            # Whoever awaits it, does so at once.
            asyncio.get_running_loop().call_soon(self._complain)

    def _complain(self) -> None:
        if not self._was_awaited:
            self._on_unseen(str(self._error))

    def __await__(self) -> Generator[Any, None, int]:
        self._was_awaited = True
        if not self._is_over:
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            yield from asyncio.shield(self._waiter)
        if self._error is not None:
            raise self._error
        return self._sent


class ApplicationServer:
    """See fastpush.applications.Server."""

    def __init__(self, path: str, environment: "Environment", client: BusClient, memberships: "Memberships") -> None:
        self.path = path
        self.worker = environment.number
        self._environment = environment
        self._bus = client
        self._memberships = memberships
        self._event = path.encode()
        self._own_key = channel_key(path)
        self._timers: set[asyncio.Task[None]] = set()
        self._complaints = Complaints(log)

    # -- channels ------------------------------------------------------------------

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
        key = checked_channel_key(channel)
        own = _own(connection)
        if not own.is_open:
            raise ConnectionClosed
        if presence and not own.user:
            raise ValueError("presence needs a connection with a user")
        if not 0 <= grace_seconds <= GRACE_SECONDS_MAX:
            raise ValueError(f"grace_seconds must be 0 to {GRACE_SECONDS_MAX}, found {grace_seconds}")
        _check_keep(keep)
        joined = next((group for group in own.groups if group.key == key), None)
        if joined is not None and presence and not self._memberships.is_present(own, key):
            raise ValueError(f"the connection is in {channel} already, without presence: leave that out of `channels`")
        if joined is not None or not (replay or presence):
            return self._confirmed(joined or self._environment.hub.join(own, key))
        user, limits = own.user if presence else "", own.mount.limits
        # Half of the send queue: the rest is for what comes meanwhile.
        messages = max(1, limits.send_queue_messages // 2) if replay else 0
        size = min(limits.send_queue_bytes // 2, bus.HISTORY_BYTES_MAX)
        grace_ms = round(grace_seconds * 1000)
        join = bus.Join(key, own.number, self.path, messages, size, user, grace_ms, keep, is_present=presence)
        try:
            return self._memberships.join(own, join)
        except BusUnavailable as error:
            raise PublishFailed(str(error)) from None

    def _confirmed(self, group: Group) -> Awaitable[None]:
        if group.confirmed:
            return DONE
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._environment.hub.when_confirmed(group, lambda: None if confirmed.done() else confirmed.set_result(None))
        return confirmed

    def leave(self, connection: Connection, channel: str) -> None:
        self._memberships.leave(_own(connection), checked_channel_key(channel))

    def publish(self, channel: str, data: str | bytes, *, exclude: Connection | None = None, keep: int = 0) -> Outgoing:
        return self._send([checked_channel_key(channel)], data, channel.encode(), exclude, keep)

    def broadcast(self, data: str | bytes, *, exclude: Connection | None = None, keep: int = 0) -> Outgoing:
        return self._send([self._own_key], data, self._event, exclude, keep)

    async def history(self, channel: str) -> list[str | bytes]:
        question = bus.History(checked_channel_key(channel))
        kept = bus.unpack_kept(await self._ask(bus.HISTORY, bus.pack(question)))
        return [message_of(entry.data) for entry in kept.entries if entry.kind != bus.Kind.NOTICE]

    # -- users and keys --------------------------------------------------------------

    def push(
        self,
        users: str | Iterable[str],
        data: str | bytes,
        *,
        event: str | None = None,
        exclude: Connection | None = None,
    ) -> Outgoing:
        if event is not None and not (event and isinstance(data, str)):
            raise ValueError("with event, which is not empty, the message is a text")
        named = event or self.path
        names = (users,) if isinstance(users, str) else tuple(dict.fromkeys(users))
        for name in names:
            _check_text(name, "a user's name")
        keys = [user_key(name, named) for name in names]
        if not 1 <= len(keys) <= PUBLICATION_KEYS_MAX:
            raise ValueError(f"push to 1 to {PUBLICATION_KEYS_MAX} users at once, found {len(keys)}")
        return self._send(keys, data, named.encode(), exclude, 0)

    def claim(self, connection: Connection, key: str) -> Awaitable[None]:
        _check_text(key, "a key")
        if not connection.is_open:
            raise ConnectionClosed
        return self._memberships.claim(_own(connection), claim_name(self.path, key))

    def close_user(self, user: str, code: int = 1008, reason: str = "") -> Outgoing:
        _check_text(user, "a user's name")
        return self._close("user", user, code, reason)

    def close_key(self, key: str, code: int = 1008, reason: str = "") -> Outgoing:
        _check_text(key, "a key")
        return self._close("key", key, code, reason)

    async def online(self, channel: str | None = None) -> Online:
        counts, _ = await self.look_up([self.path if channel is None else channel])
        return counts[0]

    async def online_users(self, channel: str | None = None, most: int = 1000) -> list[str]:
        _, users = await self.look_up([self.path if channel is None else channel], most)
        return users

    async def look_up(self, channels: list[str], most: int = 0) -> tuple[list[Online], list[str]]:
        """Return how many are online in each channel, and the first `most` users of the first one.

        Raises: PublishFailed: the bus takes no more.  TypeError, ValueError: no name of a channel, or no number.
        """
        if not isinstance(most, int) or most < 0:
            raise ValueError(f"most must be a whole number from 0 on, found {most!r}")
        question = bus.Online([checked_channel_key(channel) for channel in channels], most)
        answer = bus.unpack_online_answer(await self._ask(bus.ONLINE, bus.pack(question)))
        return [Online(*counts) for counts in answer.counts], answer.users

    # -- time ------------------------------------------------------------------------

    def call_later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._call, function, arguments)

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever an application raises
            self._fail_timer(error)
            return
        if inspect.isawaitable(result):
            # Not among what a worker waits for before it ends: it may go on for ever.
            task = asyncio.get_running_loop().create_task(self._await_timer(result))
            self._timers.add(task)
            task.add_done_callback(self._timers.discard)

    async def _await_timer(self, result: Awaitable[Any]) -> None:
        try:
            await result
        except Exception as error:  # noqa: BLE001 - whatever an application raises
            self._fail_timer(error)

    def _fail_timer(self, error: Exception) -> None:
        self._environment.counters.handler_errors += 1
        log.error("timer failed", exc_info=error, extra=fields(path=self.path))

    # -- the bus ---------------------------------------------------------------------

    def _on_unseen(self, reason: str) -> None:
        """Log a failure that nobody has awaited; clients may cause as many as they like."""
        self._complaints.add("not published", reason, path=self.path)

    def _send(
        self, keys: list[bytes], data: str | bytes, event: bytes, exclude: Connection | None, keep: int
    ) -> Outgoing:
        _check_keep(keep)
        spared = 0 if exclude is None else _own(exclude).number
        frame = data_frame(data)
        if len(frame) > MESSAGE_BYTES_MAX:
            raise ValueError(f"a message has at most {MESSAGE_BYTES_MAX} bytes, found {len(frame)}")
        taken = monotonic()
        body = encode_publication(keys, event, frame, taken_seconds=taken, spared=spared, keep=keep)
        outgoing = Outgoing(self._on_unseen)
        payload = data.encode() if isinstance(data, str) else data

        def on_result(status: int, sent: int, unconfirmed: int, position: Position) -> None:
            if status == Status.DONE:
                remember = self._environment.notebook.remember
                remember("application", keys, event.decode(), payload, taken, sent, unconfirmed)
            outgoing.on_result(status, sent, unconfirmed, position)

        self._hand_over(self._bus.publish, body, on_result, outgoing)
        return outgoing

    def _close(self, kind: str, name: str, code: int, reason: str) -> Outgoing:
        close_frame(code, reason)  # refuses what the workers could not send
        outgoing = Outgoing(self._on_unseen)
        body = orjson.dumps([f"close_{kind}", name, self.path, code, reason])
        self._hand_over(self._bus.order, body, outgoing.on_result, outgoing)
        return outgoing

    @staticmethod
    def _hand_over(
        ask: Callable[[bytes, OnResult], None], body: bytes, on_result: OnResult, outgoing: Outgoing
    ) -> None:
        try:
            ask(body, on_result)
        except BusUnavailable as error:
            outgoing.fail(str(error))

    async def _ask(self, kind: int, body: bytes) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self._bus.ask(kind, body, lambda data: None if answer.done() else answer.set_result(data))
        except BusUnavailable as error:
            raise PublishFailed(str(error)) from None
        return await answer


def _own(connection: Connection) -> "OwnConnection":
    """Return a connection as what it is: applications see only a part of it."""
    return cast("OwnConnection", connection)


def checked_channel_key(channel: str) -> bytes:
    """Return the routing key of a channel. Raises: TypeError, ValueError: there can be no such name."""
    _check_text(channel, "a channel's name")
    key = channel_key(channel)
    if not 1 < len(key) <= CHANNEL_BYTES_MAX + 1:
        raise ValueError(f"a channel's name has 1 to {CHANNEL_BYTES_MAX} bytes as UTF-8, found {len(key) - 1}")
    return key


def _check_keep(keep: int) -> None:
    if not isinstance(keep, int) or not 0 <= keep <= KEEP_MAX:
        raise ValueError(f"keep must be a whole number from 0 to {KEEP_MAX}, found {keep!r}")


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, found {type(value).__name__}")
