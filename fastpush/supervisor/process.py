"""One child process: its fork, its channel, its beats and its end."""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import msgspec

from fastpush.child import Context
from fastpush.errors import EXIT_USAGE, ConfigError
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor import signals

log = logging.getLogger("fastpush.supervisor")

EXIT_FAILED = 70  # EX_SOFTWARE: an exception left the child's entry
STACKS_SECONDS = 0.2  # between SIGABRT, on which a child writes its stacks, and SIGKILL
READ_MAX = 1000  # datagrams taken from one channel in one turn; a beat is four a second

Entry = Callable[[Context], int]


class Closable(Protocol):
    """Anything that holds a descriptor."""

    def close(self) -> None:
        """Give it up."""


@dataclass(slots=True, eq=False)
class Process:
    """A living child, as the supervisor knows it.

    channel:  the supervisor's end, non-blocking.
    beat_at:  when its loop last answered, or when it was started.
    leaving:  it accepts nothing any more and ends by itself.
    kill_at:  when SIGKILL is due; None: it is judged by its beats.
    reason:   why this supervisor wants it gone; empty: it does not.
    """

    role: str
    number: int
    slot: int
    pid: int
    channel: socket.socket
    started: float
    beat_at: float
    ready: bool = False
    leaving: bool = False
    kill_at: float | None = None
    reason: str = ""
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def is_serving(self) -> bool:
        """Whether it accepts connections, as far as anybody can tell."""
        return self.ready and not self.leaving and self.kill_at is None

    @property
    def state(self) -> str:
        """One word for `fastpush status`."""
        if self.leaving:
            return "draining"
        if self.kill_at is not None:
            return "killed"
        return "ready" if self.ready else "starting"

    def send(self, message: control.ToChild, descriptors: Iterable[int] = ()) -> bool:
        """Send one datagram; False when the child does not read (it is hung) or is gone."""
        try:
            socket.send_fds(self.channel, [control.encode(message)], list(descriptors))
        except OSError as error:
            kind = type(message).__name__
            log.warning("process not told", extra=fields(**self.named(), kind=kind, reason=str(error)))
            return False
        return True

    def read(self) -> tuple[list[control.FromChild], bool]:
        """Return the messages that wait, oldest first, and whether the channel is still open."""
        messages: list[control.FromChild] = []
        for _ in range(READ_MAX):
            try:
                datagram = self.channel.recv(control.MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not datagram:
                return messages, False
            try:
                messages.append(control.decode_from_child(datagram))
            except msgspec.DecodeError as error:
                log.error("unreadable message", extra=fields(**self.named(), reason=str(error)))
        return messages, True

    def abort(self, now: float, reason: str) -> None:
        """End a child that hangs, with its stacks in the log: SIGABRT, and SIGKILL if that does not help.

        SIGCONT lets a stopped process take the SIGABRT.
        """
        self.reason = reason
        self.kill_at = now + STACKS_SECONDS
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)

    def kill(self, now: float, reason: str) -> None:
        """End the child at once."""
        self.reason = self.reason or reason
        self.kill_at = now + 1.0  # again, should it still be there; a child in a system call may take its time
        self._signal(signal.SIGKILL)

    def write_stacks(self) -> None:
        """Have the child write what it is doing to the log."""
        self._signal(signal.SIGUSR1)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it is a zombie until reaped, so the id is never another's
            os.kill(self.pid, number)

    def named(self) -> dict[str, object]:
        """Return the log fields that identify it."""
        return {"role": self.role, "number": self.number, "slot": self.slot, "pid": self.pid}


def spawn(entry: Entry, context: Callable[[socket.socket], Context], others: Callable[[], list[Closable]]) -> Process:
    """Fork a child that runs `entry` and ends with its exit code.

    context: makes the child's Context around its end of the channel.
    others:  everything the child inherits at the fork and must not keep; called in the child.
    Raises:  OSError when the host has no process or descriptor left.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    inheritance = context(theirs)
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signals.block()
    try:
        pid = os.fork()
        if pid == 0:
            _live(entry, inheritance, [ours, *others()], mask)
    except OSError:
        ours.close()
        raise
    finally:
        signals.unblock(mask)
        theirs.close()
    now = time.monotonic()
    return Process(inheritance.role, inheritance.number, inheritance.slot, pid, ours, now, now)


def _live(entry: Entry, context: Context, others: list[Closable], mask: Iterable[int]) -> NoReturn:
    """Be the child. Never returns into the supervisor's code, whatever happens.

    The `random` module seeds itself anew after a fork; nothing else is random here.
    """
    code = EXIT_FAILED
    try:
        signals.reset_in_child()
        for other in others:
            other.close()
        signals.unblock(mask)
        code = entry(context)
    except ConfigError as error:  # what only it could find out
        log.error("configuration refused", extra=fields(reason=str(error)))
        code = EXIT_USAGE
    except BaseException:
        log.critical("process failed", exc_info=True, extra=fields(role=context.role, number=context.number))
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def reap() -> list[tuple[int, str]]:
    """Collect every child that has ended: (pid, how it ended). Never waits.

    Unknown pids are possible: in a container the supervisor may be process 1.
    """
    ended: list[tuple[int, str]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, _describe(status)))


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"
