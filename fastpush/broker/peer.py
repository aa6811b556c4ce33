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
    """A push or an order under way.

    askers: who is told how it ended, each with the number of its request.  waiting: workers that have not counted.
    position: where its channel has kept it.
    """

    __slots__ = ("askers", "deadline", "position", "sent", "size", "unconfirmed", "waiting")

    def __init__(
        self, origin: WorkerLink, request: int, waiting: int, size: int, deadline: float, position: bus.Position
    ) -> None:
        self.askers: list[tuple[WorkerLink, int]] = [(origin, request)]
        self.position = position
        self.waiting = waiting
        self.size = size
        self.deadline = deadline
        self.sent = 0
        self.unconfirmed = 0

    def answer(self) -> None:
        """Tell who has asked, once nobody is waited for."""
        askers, self.askers = self.askers, []
        for link, request in askers:
            link.send(bus.encode_result(request, bus.Status.DONE, self.sent, self.unconfirmed, self.position))
