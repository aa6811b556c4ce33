"""The broker's end of the bus: accepts worker processes of the same user, and nobody else."""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable

from fastpush.bus.link import Link
from fastpush.log import fields

log = logging.getLogger("fastpush.bus")

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket, as the kernel knows it."""
    uid: int = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    return uid


class BusServer:
    """Accepts links on a listening Unix socket.

    on_message, on_closed, queue_bytes: see Link.
    """

    def __init__(
        self,
        on_message: Callable[[Link, int, int, bytes], None],
        on_closed: Callable[[Link], None],
        queue_bytes: int,
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._queue_bytes = queue_bytes
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept on `listener`, which stays open when this server stops: it is the supervisor's."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _OwnUserLink(self._on_message, self._on_closed, self._queue_bytes), sock=listener
        )


class _OwnUserLink(Link):
    """A link that refuses processes of other users."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid != os.getuid():
            log.warning("bus connection refused", extra=fields(uid=uid))
            transport.close()
            return
        super().connection_made(transport)
