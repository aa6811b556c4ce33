"""How a worker ends: its clients are sent away evenly, and everything under way is answered.

    retire        no new clients: nothing is accepted, or (the host drains slowly) handshakes get 503
                  while pushes are served on; every HTTP reply is its connection's last. Who was accepted
                  a moment before, and asks only now, is taken up and sent away last
    send away     clients are closed with 1012 in slots of SLOT_SECONDS, the same share in each
    finish        pushes in flight are answered, idle HTTP connections closed, close frames waited for

A client that is told to come back does so at once: closed together, all would reach the next
worker, or the next host, in the same moment.
"""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastpush.errors import CloseCode
from fastpush.protocol import control
from fastpush.worker.services import Services

if TYPE_CHECKING:
    from fastpush.worker.connection import Connection

SLOT_SECONDS = 0.02
SLOT_CLOSES_MAX = 1000  # some tens of milliseconds of work
CLOSES_A_SECOND = 1000  # where no time is ordered: a tenth of the handshakes that a worker can take up
LOOK_SECONDS = 0.025


class Drain:
    """The end of one worker.

    order: what to do by when; a later one replaces it.  stop_accepting(): closes the listeners.
    is_settled(): nothing is under way but what clients still send.
    """

    def __init__(
        self,
        order: control.Drain,
        services: Services,
        *,
        stop_accepting: Callable[[], None],
        is_settled: Callable[[], bool],
    ) -> None:
        self._services = services
        self._connections = services.environment.connections
        self._stop_accepting = stop_accepting
        self._is_settled = is_settled
        self.obey(order)

    def obey(self, order: control.Drain) -> None:
        """Follow `order` from now on."""
        self._order = order
        self._began = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Return when nobody is left, or the time is over."""
        self._retire()
        await self._send_away()
        self._stop_accepting()
        await self._until(self._is_settled)
        await self._until(self._is_empty)

    def _retire(self) -> None:
        services = self._services
        self._refuse()
        for http in services.http_connections:
            http.retire()

    def _refuse(self) -> None:
        """Take no new clients. Those whose connection was accepted before are served where nobody else can be asked."""
        self._services.overload.is_draining = self._order.listens
        if not self._order.listens:
            self._stop_accepting()

    async def _send_away(self) -> None:
        loop = asyncio.get_running_loop()
        order: control.Drain | None = None
        left: list[Connection] = []
        total = 0
        while left or order is not self._order:
            if order is not self._order:  # the first one, or another one in the middle of it
                order, left = self._order, list(self._connections.values())
                total = len(left)
                self._refuse()
            share = (loop.time() - self._began + SLOT_SECONDS) / max(self._spread_seconds(total), SLOT_SECONDS)
            due = min(math.ceil(total * min(1.0, share)) - (total - len(left)), SLOT_CLOSES_MAX)
            for _ in range(due):
                left.pop().close(CloseCode.SERVICE_RESTART, "server is restarting")
            if left:
                await asyncio.sleep(SLOT_SECONDS)

    def _spread_seconds(self, connections: int) -> float:
        order = self._order
        if order.spread_seconds is not None:
            return order.spread_seconds
        return min(connections / CLOSES_A_SECOND, order.seconds / 2)

    def _is_empty(self) -> bool:
        """Send everybody away who is left or was accepted at the last moment; True when nobody is left."""
        http_connections = self._services.http_connections
        for http in list(http_connections):
            http.drain()
        for connection in list(self._connections.values()):
            connection.close(CloseCode.SERVICE_RESTART, "server is restarting")
        return not self._connections and not http_connections

    async def _until(self, condition: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while not condition() and loop.time() < self._began + self._order.seconds:
            await asyncio.sleep(LOOK_SECONDS)
