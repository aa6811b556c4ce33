"""A publisher's connection: kept alive, one request at a time."""

import re
from typing import Protocol

from fastpush.bench.connections import Endpoint, Link
from fastpush.bench.loop import Loop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Asker(Protocol):
    """Who is told what came of its requests."""

    def on_reply(self, status: str, body: bytes) -> None:
        """What is under way is answered."""
        ...

    def on_lost(self, reason: str, *, was_opening: bool) -> None:
        """The connection has ended, with what was under way or without."""
        ...


class HttpLink(Link):
    """A connection that is not usable any more once the server has given it up."""

    __slots__ = ("_asker", "_held", "is_opening", "is_usable")

    def __init__(self, loop: Loop, endpoint: Endpoint, asker: Asker) -> None:
        super().__init__(loop, endpoint, None)
        self._held = b""
        self._asker = asker
        self.is_opening = True
        self.is_usable = False

    def on_connected(self) -> None:
        self.is_opening = False
        self.is_usable = True

    def on_readable(self) -> None:
        data = self.read()
        if data is None:
            return
        self._held += data
        head, end, body = self._held.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._held = b""
        if _CLOSES.search(head):
            self.is_usable = False
            self.close()
        self._asker.on_reply(head[9:12].decode(), body)

    def on_ended(self, reason: str) -> None:
        was_opening, self.is_opening, self.is_usable = self.is_opening, False, False
        self._asker.on_lost(reason, was_opening=was_opening)
