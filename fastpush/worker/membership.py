"""What connections have on the whole host beside routing keys: presence in channels, and claimed keys.

Each connection that has some carries a Standing; Memberships speaks of them with the broker, and tells a
new broker all of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING

from fastpush.bus.client import BusClient, BusUnavailable
from fastpush.errors import CloseCode, ConnectionClosed
from fastpush.log import fields
from fastpush.protocol import bus
from fastpush.protocol.bus import Kind, Publication
from fastpush.protocol.client import join_push, leave_push
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import channel_of
from fastpush.worker.environment import Environment

if TYPE_CHECKING:
    from fastpush.worker.connection import Connection
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.application")

Entered = list[tuple[bus.Join, bus.Kept]]  # channels, and what these have kept

_WORKERS = 256


class Standing:
    """One connection's presence and claims.

    joining: channels that the broker has been asked about, by routing key.
    joins: what it was told of each channel that the connection is present in, by routing key.
    claims: numbers by name.  waiters: done once the broker has answered.
    """

    __slots__ = ("_memberships", "claims", "joining", "joins", "waiters")

    def __init__(self, memberships: "Memberships") -> None:
        self._memberships = memberships
        self.joining: dict[bytes, asyncio.Future[None]] = {}
        self.joins: dict[bytes, bytes] = {}
        self.claims: dict[bytes, int] = {}
        self.waiters: dict[bytes, asyncio.Future[None]] = {}

    def give_up(self, connection: "Connection") -> None:
        """The connection has ended: leave everything."""
        self._memberships.give_up(connection, self)


class Memberships:
    """Joins and claims for all connections of a worker; what BusClient asks of its `members`.

    mounts(): the applications by path, which word notices.
    """

    def __init__(self, environment: Environment, client: BusClient, mounts: "Callable[[], dict[str, Mount]]") -> None:
        self._environment = environment
        self._bus = client
        self._mounts = mounts

    # -- what applications ask for -------------------------------------------------

    def join(self, connection: "Connection", join: bus.Join) -> Awaitable[None]:
        """Let a connection into a channel with what that has kept, with presence, or both.

        Raises: BusUnavailable: the bus takes no more.
        """
        standing = connection.standing
        joined = None if standing is None else standing.joining.get(join.key)
        if joined is None:
            joined = self.enter(connection, [join], lambda entered: self._replay(connection, entered))
        return asyncio.shield(joined)

    def _replay(self, connection: "Connection", entered: Entered) -> None:
        for join, kept in entered:
            for frame in self._frames(join.path, join.key, kept.entries):
                connection.send_frame(frame)

    def enter(
        self, connection: "Connection", joins: Sequence[bus.Join], take: Callable[[Entered], None]
    ) -> asyncio.Future[None]:
        """Let a connection into channels, all at one place in what the broker sends.

        take: called there, with what was kept of those that it has not left meanwhile; none are left once it has
        ended. What it sends comes before all that is published later; what it leaves is left. When it fails, all of
        them are left, and who waits is told.

        Raises: ConnectionClosed: it has ended.  BusUnavailable: the bus takes no more.
        """
        if not connection.is_open:
            raise ConnectionClosed
        environment, standing = self._environment, self._standing(connection)
        groups = [environment.hub.hold(join.key) for join in joins]
        joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_answer(answer: bytes) -> None:
            answered = zip(joins, bus.unpack_all_kept(answer), strict=True)
            entered = [(join, kept) for join, kept in answered if standing.joining.get(join.key) is joined]
            try:
                take(entered)
            except Exception as error:  # noqa: BLE001 - who waits is told
                for join, _ in entered:
                    standing.joining.pop(join.key, None)
                _end(joined, error)
            for join in joins:
                self._enter(connection, standing, joined, join)
            for group in groups:
                environment.hub.release(group)
            _end(joined)

        try:
            self._bus.ask(bus.JOIN, bus.pack(joins), on_answer)
        except BusUnavailable:
            for group in groups:
                environment.hub.release(group)
            raise
        standing.joining.update(dict.fromkeys((join.key for join in joins), joined))
        return joined

    def _enter(
        self, connection: "Connection", standing: Standing, joined: asyncio.Future[None], join: bus.Join
    ) -> None:
        """Let a connection into a channel that it still wants; the broker is told of what it has left meanwhile."""
        key = join.key
        if standing.joining.get(key) is joined:
            del standing.joining[key]
            self._environment.hub.join(connection, key)
            if join.is_present:
                standing.joins[key] = bus.pack(join)
        elif join.is_present and key not in standing.joining and key not in standing.joins:
            self._bus.depart(bus.pack(join))

    def is_present(self, connection: "Connection", key: bytes) -> bool:
        """Whether a connection has joined a channel with presence."""
        return connection.standing is not None and key in connection.standing.joins

    def leave(self, connection: "Connection", key: bytes) -> None:
        """Take a connection out of a channel."""
        self._environment.hub.leave_one(connection, key)
        if connection.standing is not None:
            connection.standing.joining.pop(key, None)
            join = connection.standing.joins.pop(key, None)
            if join is not None:
                self._bus.depart(join)

    def claim(self, connection: "Connection", name: bytes) -> Awaitable[None]:
        """Make a connection the only one of a name."""
        standing = self._standing(connection)
        waiter = standing.waiters.get(name)
        if waiter is None:
            waiter = standing.waiters[name] = asyncio.get_running_loop().create_future()
            number = standing.claims[name] = self._claim_number()
            self._bus.claim(connection.number, number, name)
        return asyncio.shield(waiter)

    def _claim_number(self) -> int:
        """Return the time in nanoseconds, its last digits such that no other worker has the same.

        While a connection is being opened it is the time before its client was told: who logs in after that is newer.
        """
        return (
            self._environment.opening_ns or monotonic_ns()
        ) // _WORKERS * _WORKERS + self._environment.number % _WORKERS

    def give_up(self, connection: "Connection", standing: Standing) -> None:
        """Leave everything."""
        connection.standing = None
        standing.joining.clear()
        joins, standing.joins = standing.joins, {}  # what is answered later finds none of them
        for join in joins.values():
            self._bus.depart(join)
        for name in standing.claims:
            self._bus.unclaim(connection.number, name)
        for waiter in standing.waiters.values():
            if not waiter.done():
                waiter.set_result(None)

    def holders(self, name: bytes) -> "list[Connection]":
        """Return the connections here that have claimed a name: one, or two while one is being replaced."""
        return [
            connection
            for connection in self._environment.connections.values()
            if connection.standing is not None and name in connection.standing.claims
        ]

    def _standing(self, connection: "Connection") -> Standing:
        if connection.standing is None:
            connection.standing = Standing(self)
        return connection.standing

    # -- what the broker asks, and says ----------------------------------------------

    def joins(self) -> Iterator[bytes]:
        """See Members."""
        for connection in self._environment.connections.values():
            if connection.standing is not None:
                yield from connection.standing.joins.values()

    def claims(self) -> Iterator[tuple[int, int, bytes]]:
        """See Members."""
        for connection in self._environment.connections.values():
            if connection.standing is not None:
                for name, number in connection.standing.claims.items():
                    yield connection.number, number, name

    def on_claimed(self, connection: int, name: bytes) -> None:
        """See Members."""
        claimant = self._find(connection)
        if claimant is None or claimant.standing is None:  # it has ended, and said so
            return
        number, waiter = claimant.standing.claims[name], claimant.standing.waiters[name]
        if not waiter.done():
            waiter.set_result(None)
            log.debug("claimed", extra=fields(connection=claimant.id, user=claimant.user, number=number))

    def on_replaced(self, connection: int, name: bytes) -> None:
        """See Members."""
        loser = self._find(connection)
        if loser is not None:
            loser.close(CloseCode.REPLACED, "replaced by a newer connection")

    def _find(self, connection: int) -> "Connection | None":
        _, serial = bus.split_connection_number(connection)
        return self._environment.connections.get(serial)

    def on_notice(self, notice: Publication, counted: Callable[[int], None]) -> None:
        """See Members."""
        path, key = notice.event.decode(), notice.keys[0]
        frame = self._worded(path, key, notice.frame)
        if frame is None:
            counted(0)
        else:
            self._environment.hub.deliver(notice._replace(frame=frame), counted)

    def on_changes(self, changes: Publication, counted: Callable[[int], None]) -> None:
        """See Members."""
        channel = channel_of(changes.keys[0])
        pushes = [
            join_push(channel, info) if came else leave_push(channel, info)
            for came, info in bus.unpack_changes(changes.frame)
        ]
        self._environment.hub.deliver(changes._replace(frame=text_frame(b"\n".join(pushes))), counted)

    def on_relinked(self) -> None:
        """See Members."""
        for connection in list(self._environment.connections.values()):
            try:
                connection.mount.on_relinked(connection)
            except Exception:  # the others' clients must hear of it
                log.exception("recovery failed", extra=fields(connection=connection.id, user=connection.user))
                connection.close(CloseCode.INTERNAL_ERROR, "internal error")

    def _frames(self, path: str, key: bytes, entries: list[bus.Entry]) -> Iterator[bytes]:
        """Yield what a channel has kept as frames."""
        for entry in entries:
            frame = self._worded(path, key, entry.data) if entry.kind == Kind.NOTICE else entry.data
            if frame is not None:
                yield frame

    def _worded(self, path: str, key: bytes, data: bytes) -> bytes | None:
        mount, notice = self._mounts().get(path), bus.unpack_notice(data)
        try:
            return None if mount is None else mount.word(key, notice)
        except Exception:
            self._environment.counters.handler_errors += 1
            log.exception("on_presence failed", extra=fields(path=path, user=notice.user))
            return None


def _end(waiter: asyncio.Future[None], failure: Exception | None = None) -> None:
    """Tell who waits, once: where a connection has ended, it may have been cancelled."""
    if waiter.done():
        return
    if failure is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(failure)
