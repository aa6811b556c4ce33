"""Listening sockets that systemd passes at the start: $LISTEN_FDS of sd_listen_fds(3).

Two kinds come that way, told apart by their names:

    fastpush-slot-N   from the descriptor store: slot N's own sockets, which the server before us put there
    any other         from a socket unit: one socket, from which all workers are to accept
"""

import os
import re
import socket
from dataclasses import dataclass

from fastpush.errors import StartError

FIRST_DESCRIPTOR = 3
_SLOT_NAME = re.compile(r"fastpush-slot-(\d+)")


@dataclass(frozen=True, slots=True)
class Inherited:
    """A listening TCP socket and its name, as in $LISTEN_FDNAMES."""

    name: str
    socket: socket.socket

    @property
    def slot(self) -> int | None:
        """The worker slot it belongs to; None: it comes from a socket unit."""
        match = _SLOT_NAME.fullmatch(self.name)
        return int(match[1]) if match else None


def slot_name(slot: int) -> str:
    """Return the name under which a slot's sockets are stored."""
    return f"fastpush-slot-{slot}"


def take_inherited() -> list[Inherited]:
    """Return the sockets that were passed to this process, and remove every trace of them from the environment.

    Programs that workers start inherit neither variables nor descriptors.

    Raises: StartError for a descriptor that is no listening TCP socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    os.environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []  # meant for a process before us
    names += ["unknown"] * (int(count) - len(names))
    return [_take(FIRST_DESCRIPTOR + index, names[index]) for index in range(int(count))]


def _take(descriptor: int, name: str) -> Inherited:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError:
        taken = None
    if taken is None or not _is_listening_tcp(taken):
        if taken is not None:
            taken.close()
        raise StartError(
            f"descriptor {descriptor}, which systemd passes as {name or 'unnamed'}, is not a listening TCP socket; "
            "the socket unit needs ListenStream= with a port, and Accept=no"
        )
    taken.set_inheritable(False)
    taken.setblocking(False)
    return Inherited(name, taken)


def _is_listening_tcp(taken: socket.socket) -> bool:
    is_tcp = taken.family in {socket.AF_INET, socket.AF_INET6} and taken.type == socket.SOCK_STREAM
    return is_tcp and bool(taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
