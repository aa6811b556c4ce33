"""What systemd is told, and given to keep: datagrams to the socket that $NOTIFY_SOCKET names (sd_notify(3)).

`Notifier` knows the words, `Reporter` when to say them. A reload is not announced: ExecReload= runs
`fastpush reload`, which ends when the new settings are in force or refused, so systemd knows already.
(RELOADING=1 belongs to Type=notify-reload of systemd 253.)
"""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from fastpush.log import fields

log = logging.getLogger("fastpush.supervisor")

SEND_SECONDS = 1.0  # systemd always reads; whoever does not must not stop the supervisor
STATUS_SECONDS = 5.0
FEEDS = 3  # in one WatchdogSec: the kernel may delay one
END_SECONDS = 10.0  # to kill and reap what is left after a drain
REPLACE_SECONDS = 5.0  # time that a silent broker's successor has to answer

_NEVER = float("inf")


class Notifier:
    """Tells systemd the state of the service; without $NOTIFY_SOCKET every call does nothing.

    The variables of the protocol are taken out of the environment: they are not for programs that
    workers may start.

    watchdog_seconds: longest silence that systemd takes for life; 0: it does not watch.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        # The size of the store: from systemd 254 on it is set by itself, else by our unit, because nobody tells.
        self._has_store = bool(self._address) and os.environ.pop("FDSTORE", "0") not in {"", "0"}
        watched = _take_watchdog_seconds()
        self.watchdog_seconds = watched if self._address else 0.0

    def __bool__(self) -> bool:
        """Tell whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Say that all processes serve."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, seconds: float) -> None:
        """Say that the shutdown has begun, and ask for `seconds` to drain even where TimeoutStopSec= is shorter."""
        microseconds = round((seconds + END_SECONDS) * 1_000_000)
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={microseconds}\nSTATUS=stopping, within {seconds:g} s")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={text}")

    def feed(self) -> None:
        """Say that the service lives; due within each `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def store(self, name: str, descriptors: Sequence[int]) -> bool:
        """Give systemd copies of descriptors that the service's next start gets back under `name`.

        What the store holds already stays there once. Whether it has room for more is not answered.

        Returns: whether there is a store ($FDSTORE) and it was told.
        """
        return self._has_store and self._send(f"FDSTORE=1\nFDNAME={name}", descriptors)

    def forget(self, name: str) -> None:
        """Have systemd close all that it keeps under `name`."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, state: str, descriptors: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        # "@name" is the written form of an abstract socket, whose real name begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.connect(address)
                socket.send_fds(sender, [state.encode()], list(descriptors))
        except OSError as error:
            log.warning("systemd not told", extra=fields(state=state.partition("\n")[0], reason=str(error)))
            return False
        return True


def _take_watchdog_seconds() -> float:
    microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in {"", str(os.getpid())}:
        return 0.0
    return int(microseconds) / 1_000_000


class Reporter:
    """Keeps systemd up to date from READY to the end: one STATUS line, and WATCHDOG while the service deserves it.

    It does while the supervisor's loop turns and a ready broker has beaten within the last `hang_seconds`
    and REPLACE_SECONDS. So neither a silent worker nor a broker that is being replaced ends the service; one
    that cannot be brought back does. While the service stops, its own deadline stands in for the broker.

    processes(now): what Children.status returns.
    """

    def __init__(self, notifier: Notifier, processes: Callable[[float], list[dict[str, Any]]]) -> None:
        self._notifier = notifier
        self._processes = processes
        self._feed_at = self._status_at = _NEVER
        self._answered_at = 0.0
        self._withheld = False
        self._stopping = False
        self._text = ""
        self._pushes: dict[int, int] = {}
        self._counted_at = 0.0

    @property
    def deadline(self) -> float:
        """When `attend` has something to do."""
        return min(self._feed_at, self._status_at)

    def ready(self, now: float) -> None:
        """Say that all processes serve, and begin to report."""
        if not self._notifier:
            return
        processes = self._processes(now)
        self._answered_at = self._counted_at = now
        self._text = self._describe(processes, now)
        self._notifier.ready(self._text)
        self._status_at = now + STATUS_SECONDS
        self._feed_at = now if self._notifier.watchdog_seconds else _NEVER

    def stopping(self, seconds: float) -> None:
        """Say that the service ends within `seconds`."""
        self._stopping = True
        self._status_at = _NEVER
        self._notifier.stopping(seconds)

    def attend(self, now: float, hang_seconds: float) -> None:
        """Report what is due."""
        if now < self.deadline:
            return
        processes = self._processes(now)
        if now >= self._feed_at:
            self._feed_at = now + self._notifier.watchdog_seconds / FEEDS
            self._feed(processes, now, hang_seconds)
        if now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            text = self._describe(processes, now)
            if text != self._text:
                self._text = text
                self._notifier.status(text)

    def _feed(self, processes: list[dict[str, Any]], now: float, hang_seconds: float) -> None:
        beats = [p["last_beat_ms"] for p in processes if p["role"] == "broker" and p["state"] == "ready"]
        self._answered_at = max([self._answered_at, *(now - milliseconds / 1000 for milliseconds in beats)])
        silent = now - self._answered_at
        withheld = silent > hang_seconds + REPLACE_SECONDS and not self._stopping
        if not withheld:
            self._notifier.feed()
        elif not self._withheld:
            advice = "no broker answers: systemd is going to restart the service"
            log.error("watchdog not fed", extra=fields(seconds=round(silent, 3), advice=advice))
        self._withheld = withheld

    def _describe(self, processes: list[dict[str, Any]], now: float) -> str:
        workers = [process for process in processes if process["role"] == "worker"]
        connections = sum(worker["figures"].get("connections", 0) for worker in workers)
        ready = sum(worker["state"] == "ready" for worker in workers)
        before, self._pushes = self._pushes, {w["number"]: w["figures"].get("pushes", 0) for w in workers}
        pushed = sum(max(0, pushes - before.get(number, 0)) for number, pushes in self._pushes.items())
        passed = now - self._counted_at
        self._counted_at = now
        rate = pushed / passed if passed > 0 else 0.0
        return f"{connections} connections, {rate:.0f} pushes/s, {ready} workers ready"
