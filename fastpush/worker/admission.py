"""How many connections a user or an address has on this host: asked of the broker, where a limit is set.

A limit may be set while connections are open: then they are counted too, all of them, however many
their user or address has.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from fastpush.config import Limits
from fastpush.http.proxies import counted_address, host_of
from fastpush.log import fields

if TYPE_CHECKING:
    from fastpush.worker.connection import Connection

log = logging.getLogger("fastpush.worker")

_WARNING_SECONDS = 60
_FEW_CONNECTIONS = 100  # of so few most may well be of one address
_NO_LIMIT = 0xFFFFFFFF


class Counts(Protocol):
    """What the link to the broker offers."""

    def admit(self, name: bytes, limit: int, on_admitted: Callable[[bool], None]) -> None: ...
    def release(self, name: bytes) -> None: ...
    def admitted(self, name: bytes) -> int: ...


def user_name(user: str) -> bytes:
    """Return the name that a user's connections are counted by."""
    return b"u" + user.encode("utf-8", "surrogatepass")


def address_name(address: str) -> bytes:
    """Return the name that an address's connections are counted by."""
    return b"a" + counted_address(address).encode("ascii", "replace")


class Admission:
    """Counts this worker's connections by user and by address; each carries its names in `admitted`.

    counts: the broker's, over all workers.  connections: the open ones of this worker.
    """

    def __init__(self, limits: Limits, counts: Counts, connections: "Mapping[int, Connection]") -> None:
        self._counts = counts
        self._connections = connections
        self._next_warning = 0.0
        self.per_user = self.per_address = 0
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """Admit by these limits from now on. What is already counted stays so until it ends."""
        counts_users = limits.connections_per_user and not self.per_user
        counts_addresses = limits.connections_per_address and not self.per_address
        self.per_user = limits.connections_per_user
        self.per_address = limits.connections_per_address
        if counts_users or counts_addresses:
            for connection in self._connections.values():
                if counts_users and connection.user:
                    self._hold(connection, user_name(connection.user))
                if counts_addresses:
                    self._hold(connection, address_name(host_of(connection.peer)))

    def _hold(self, connection: "Connection", name: bytes) -> None:
        """Count a connection that is open already."""
        if name in connection.admitted:
            return

        def on_admitted(_: bool) -> None:  # noqa: FBT001 - always True
            if connection.is_open:
                connection.admitted = (*connection.admitted, name)
            else:
                self._counts.release(name)

        self._counts.admit(name, _NO_LIMIT, on_admitted)

    def admit(self, name: bytes, on_admitted: Callable[[bool], None]) -> None:
        """Count one more connection of a user or address; a yes is given back by `release`."""
        limit = self.per_user if name.startswith(b"u") else self.per_address
        self._counts.admit(name, limit, on_admitted)

    async def register(self, connection: "Connection", user: str) -> bool:
        """Count an open connection that registers by message; False when its user has too many, or it is gone."""
        if not self.per_user:
            return True
        name = user_name(user)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_admitted(is_admitted: bool) -> None:  # noqa: FBT001
            if is_admitted and connection.is_open:
                connection.admitted = (*connection.admitted, name)
            elif is_admitted:
                self._counts.release(name)
            if not answer.done():  # it is where the connection has ended and its handler was cancelled
                answer.set_result(is_admitted)

        self.admit(name, on_admitted)
        return await answer

    def release(self, names: tuple[bytes, ...]) -> None:
        """Count one connection with these names less."""
        for name in names:
            self._counts.release(name)

    def watch(self, address: str, now: float) -> None:
        """Warn, once a minute, when one address has most of the connections: then it is probably a proxy's."""
        total = len(self._connections)
        if now < self._next_warning or total < _FEW_CONNECTIONS:
            return
        of_address = self._counts.admitted(address_name(address))
        if of_address * 2 > total:
            self._next_warning = now + _WARNING_SECONDS
            log.warning(
                "most connections come from one address: behind a proxy, name it in [server] trusted_proxies",
                extra=fields(peer=address, connections=of_address, of=total),
            )
