"""Signals as input of the poll loop: handlers do nothing, the kernel's bytes are read like any other."""

import signal
import socket
from collections.abc import Iterable
from types import FrameType
from typing import Any

from fastpush.inspection import on_sigusr1

READ_BYTES = 4096
FOR_THE_LOOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1)
CHILD_IGNORES = (signal.SIGINT, signal.SIGHUP)  # a terminal sends them to the whole group; the supervisor decides


def _only_wake(number: int, frame: FrameType | None) -> None:
    """Be a Python handler, so that the interpreter writes the number to the wake-up socket."""


class Signals:
    """Collects the supervisor's signals from `install` to `close`."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Take over the signals of FOR_THE_LOOP."""
        # A full socket loses signals, but only after 4096 that nobody has read yet.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _only_wake) for number in FOR_THE_LOOP}
        signal.signal(signal.SIGUSR1, on_sigusr1)

    def read(self) -> list[int]:
        """Return the numbers that have arrived, oldest first."""
        try:
            return list(self.reader.recv(READ_BYTES))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for end in self.sockets():
            end.close()

    def sockets(self) -> list[socket.socket]:
        """Return what a forked child closes, once `reset_in_child` has been called."""
        return [self.reader, self._writer]


def block() -> Iterable[int]:
    """Hold back the loop's signals around a fork; returns what `unblock` needs.

    A signal that reached the child before `reset_in_child` would be written to the
    supervisor's wake-up socket, which both share at that moment.
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_LOOP)


def unblock(mask: Iterable[int]) -> None:
    """Undo `block`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_in_child() -> None:
    """Make a forked child's signals those of a fresh process, but for CHILD_IGNORES; SIGUSR1 writes its stacks."""
    signal.set_wakeup_fd(-1)
    for number in FOR_THE_LOOP:
        signal.signal(number, signal.SIG_IGN if number in CHILD_IGNORES else signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, on_sigusr1)
