"""What every child process is given at its fork, and its end of the supervisor's channel."""

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastpush.config import Config
from fastpush.log import fields
from fastpush.protocol import control

log = logging.getLogger("fastpush.child")

LISTEN_BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn
DESCRIPTORS_RESERVED = 1024  # of a worker: for pushes, for clients being judged, and for what the process needs itself

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


class Channel:
    """A child's end of the supervisor's channel, on its running event loop.

    on_message(message, descriptors): called for each; the receiver owns the descriptors.
    on_orphaned(): called once, when the supervisor is gone.
    """

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[control.ToChild, list[int]], None],
        on_orphaned: Callable[[], None],
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_orphaned = on_orphaned
        self._loop = asyncio.get_running_loop()
        self._beating: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to listen to the supervisor."""
        self._end.setblocking(False)
        self._loop.add_reader(self._end, self._readable)

    def close(self) -> None:
        """Stop listening and beating."""
        self._loop.remove_reader(self._end)
        if self._beating is not None:
            self._beating.cancel()

    def _readable(self) -> None:
        try:
            datagram, descriptors, _, _ = socket.recv_fds(self._end, control.MESSAGE_BYTES_MAX, 16)
        except BlockingIOError:
            return
        except OSError:
            datagram, descriptors = b"", []
        if not datagram:
            self.close()
            self._on_orphaned()
            return
        self._on_message(control.decode_to_child(datagram), list(descriptors))

    def send(self, message: control.FromChild) -> None:
        """Tell the supervisor; a full channel loses a beat, a broken one is noticed by reading."""
        try:
            self._end.send(control.encode(message))
        except OSError as error:
            log.warning("supervisor not told", extra=fields(reason=str(error)))

    def beat(self, every_seconds: Callable[[], float], figures: Callable[[], dict[str, int]]) -> None:
        """Show the supervisor from now on that this loop runs."""
        self.send(control.Beat(figures()))
        self._beating = self._loop.call_later(every_seconds(), self.beat, every_seconds, figures)


def beat_seconds(config: Config) -> float:
    """Return the time between beats: four at least within `hang_seconds`."""
    return min(1.0, config.server.hang_seconds / 4)


def tune_collector() -> None:
    """Keep garbage collections off the data path: what exists now is never scanned again.

    A collection looks at 10,000 new objects at most (below a millisecond), whatever the number of
    connections; older ones come to their turn once a million more objects exist, which descriptors do
    not allow. Connections end without reference cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 100, 100)
