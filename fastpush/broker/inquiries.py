"""Questions that every worker answers for itself, and whoever asked gets all answers of."""

from collections.abc import Callable, Iterable

from fastpush.broker.peer import Peer, WorkerLink
from fastpush.protocol import bus

ANSWER_SECONDS = 0.25  # a worker that has not answered by then is not waited for


class Inquiry:
    """A question under way. on_over(missing): called once, with the workers that have not answered."""

    __slots__ = ("deadline", "found", "missing", "on_over", "origin")

    def __init__(
        self, origin: WorkerLink, missing: set[int], deadline: float, on_over: "Callable[[Inquiry], None]"
    ) -> None:
        self.origin = origin
        self.missing = missing
        self.deadline = deadline
        self.on_over = on_over
        self.found: list[bytes] = []


class Inquiries:
    """Asks, and collects. Bounds: as many as the workers ask at once, each for ANSWER_SECONDS."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_number = 0
        self._open: dict[int, Inquiry] = {}

    def ask(
        self, origin: WorkerLink, peers: Iterable[Peer], kind: int, body: bytes, on_over: Callable[[Inquiry], None]
    ) -> None:
        """Send a question to every worker; one whose link is full is not waited for long."""
        self._last_number = number = self._last_number + 1
        peers = list(peers)
        missing = {peer.number for peer in peers}
        self._open[number] = Inquiry(origin, missing, self._clock() + ANSWER_SECONDS, on_over)
        for peer in peers:
            if not peer.link.is_full:
                peer.link.send(bus.encode(kind, number, body))

    def answer(self, worker: int, number: int, found: bytes = b"") -> None:
        """Take a worker's answer; b"" is none worth keeping."""
        inquiry = self._open.get(number)
        if inquiry is not None and worker in inquiry.missing:
            inquiry.missing.discard(worker)
            if found:
                inquiry.found.append(found)
            if not inquiry.missing:
                self._end(number)

    def forget(self, worker: int) -> None:
        """A worker has gone: nobody waits for it."""
        for number in list(self._open):
            self.answer(worker, number)

    def tick(self) -> None:
        """Apply deadlines."""
        for number, inquiry in list(self._open.items()):
            if inquiry.deadline <= self._clock():
                self._end(number)

    def _end(self, number: int) -> None:
        inquiry = self._open.pop(number)
        inquiry.on_over(inquiry)
