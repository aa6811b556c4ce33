"""A double of systemd's side of the notification socket: it keeps what a service says and the descriptors it stores.

with Systemd(folder) as systemd:
    server = Server(folder, environ=systemd.environ())
    systemd.wait_for("READY", "1")
    server.stop()
    ... Server(folder, environ=systemd.environ(), **systemd.passed())    the stored sockets as LISTEN_FDS
"""

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Self

from tests.server import eventually

DESCRIPTORS_MAX = 253  # SCM_MAX_FD
PASS = Path(__file__).parent / "pass_descriptors.py"


class Systemd:
    """Reads the notification socket in a thread, as systemd always does.

    said:   one dictionary a datagram, oldest first.
    stored: (name, descriptor) in the order of arrival; FDSTOREREMOVE closes.
    """

    def __init__(self, folder: Path, *, watchdog_seconds: float = 0) -> None:
        self.path = folder / "notify"
        self.watchdog_seconds = watchdog_seconds
        self.said: list[dict[str, str]] = []
        self.stored: list[tuple[str, int]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", str(self.path))
        self._thread.join()
        self._socket.close()
        for _, descriptor in self.stored:
            os.close(descriptor)

    def environ(self) -> dict[str, str]:
        watchdog = {"WATCHDOG_USEC": str(round(self.watchdog_seconds * 1e6))} if self.watchdog_seconds else {}
        return {"NOTIFY_SOCKET": str(self.path), "FDSTORE": "512"} | watchdog

    def passed(self) -> dict[str, Any]:
        """Arguments of Server: start it with the stored descriptors."""
        names = ":".join(name for name, _ in self.stored)
        numbers = [descriptor for _, descriptor in self.stored]
        prefix = [sys.executable, str(PASS), names, ",".join(map(str, numbers))]
        return {"prefix": prefix, "pass_fds": numbers}

    def of(self, key: str) -> list[str]:
        """All values that came under a key, oldest first."""
        return [message[key] for message in self.said if key in message]

    def wait_for(self, key: str, value: str | None = None, seconds: float = 20) -> None:
        eventually(lambda: value in self.of(key) if value else self.of(key), seconds, f"{key}={value} from the service")

    def names(self) -> list[str]:
        return sorted({name for name, _ in self.stored})

    def inodes(self) -> dict[str, list[int]]:
        """The identity of the stored sockets by name."""
        return {
            name: sorted(os.fstat(descriptor).st_ino for stored, descriptor in self.stored if stored == name)
            for name in self.names()
        }

    def _read(self) -> None:
        while True:
            datagram, descriptors, _, _ = socket.recv_fds(self._socket, 4096, DESCRIPTORS_MAX)
            if not datagram:
                return
            message = dict(line.partition("=")[::2] for line in datagram.decode().splitlines())
            if message.get("FDSTORE") == "1":
                self._store(message["FDNAME"], descriptors)
            if message.get("FDSTOREREMOVE") == "1":
                self._remove(message["FDNAME"])
            self.said.append(message)

    def _store(self, name: str, descriptors: list[int]) -> None:
        known = {os.fstat(descriptor).st_ino for _, descriptor in self.stored}
        for descriptor in descriptors:
            if os.fstat(descriptor).st_ino in known:  # systemd keeps a descriptor once
                os.close(descriptor)
            else:
                self.stored.append((name, descriptor))

    def _remove(self, name: str) -> None:
        for stored in [stored for stored in self.stored if stored[0] == name]:
            self.stored.remove(stored)
            os.close(stored[1])
