"""A worker process as the broker sees it, and what it is owed."""

from typing import Any, Protocol

from fastpush.protocol import bus


class WorkerLink(Protocol):
    """What the router needs of a connection to a worker."""

    @property
    def is_full(self) -> bool: ...
    @property
    def queued_bytes(self) -> int: ...
    def send(self, *parts: bus.Body) -> None: ...
    def close(self) -> None: ...


class _NoLink:
    """Stands for the link of a worker that is expected back."""

    is_full = True
    queued_bytes = 0

    def send(self, *parts: bus.Body) -> None: ...

    def close(self) -> None: ...


NO_LINK = _NoLink()


class Peer:
    """A worker process as the broker sees it, over one link.

    link:        NO_LINK once it is lost.
    is_complete: its key table has come; until then nothing of it has been confirmed.
    is_leaving:  it has drained; its link closes on purpose.
    uncounted_bytes: of the publications it has not counted yet, late ones too: what may wait in it for busy
    connections.
    """

    __slots__ = ("is_complete", "is_leaving", "late", "link", "number", "snapshot", "uncounted", "uncounted_bytes")

    def __init__(self, link: WorkerLink, number: int) -> None:
        self.link = link
        self.number = number
        self.is_complete = False
        self.is_leaving = False
        # Publications this worker has not counted yet, oldest first.
        self.uncounted: dict[int, Delivery] = {}
        # Sizes of those that were reported as unconfirmed, and that it still has to count.
        self.late: dict[int, int] = {}
        self.uncounted_bytes = 0
        self.snapshot: dict[str, Any] = {}


class Delivery:
    """A push or drop under way."""

    __slots__ = ("deadline", "origin", "request", "sent", "size", "unconfirmed", "waiting")

    def __init__(self, origin: WorkerLink, request: int, waiting: int, size: int, deadline: float) -> None:
        self.origin = origin
        self.request = request
        self.waiting = waiting
        self.size = size
        self.deadline = deadline
        self.sent = 0
        self.unconfirmed = 0
