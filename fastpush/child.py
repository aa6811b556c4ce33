"""What every child process is given at its fork, and its end of the supervisor's channel."""

import socket
from dataclasses import dataclass
from typing import Literal

from fastpush.config import Config

ListenerRole = Literal["all", "public", "api"]


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound, listening TCP socket and what is served on it.

    role: "all"; or, when [api] listen is set, "public" (WebSocket paths) and "api" (the rest).
    """

    socket: socket.socket
    role: ListenerRole


@dataclass(frozen=True, slots=True)
class Context:
    """One child's inheritance.

    number:       counts the processes of one supervisor's life, from 1; never reused.
    slot:         a worker's listener slot, from 0; -1 for the broker.
    channel:      child's end of the SOCK_SEQPACKET pair to the supervisor (protocol/control.py).
    listeners:    a worker's own slot's sockets.
    bus_path:     Unix socket on which the broker accepts workers.
    bus_listener: that socket, listening, for the broker; None in workers.
    workers:      numbers of the live workers, for a broker: it takes no push before their key tables.
    """

    role: Literal["broker", "worker"]
    number: int
    slot: int
    config: Config
    channel: socket.socket
    bus_path: str
    listeners: tuple[Listener, ...] = ()
    bus_listener: socket.socket | None = None
    workers: tuple[int, ...] = ()
