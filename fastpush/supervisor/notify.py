"""Readiness for systemd: one datagram to the socket that $NOTIFY_SOCKET names (sd_notify(3))."""

import logging
import os
import socket

from fastpush.log import fields

log = logging.getLogger("fastpush.supervisor")

SEND_SECONDS = 1.0  # systemd always reads; whoever does not must not stop the supervisor


class Notifier:
    """Tells systemd the state of the service; without $NOTIFY_SOCKET every call does nothing.

    The variable is taken out of the environment: it is not for programs that
    workers may start.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def ready(self) -> None:
        """Say that all processes serve."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the shutdown has begun."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # "@name" is the written form of an abstract socket, whose real name begins with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)
                sender.sendto(state.encode(), address)
        except OSError as error:
            log.warning("systemd not told", extra=fields(state=state, reason=str(error)))
