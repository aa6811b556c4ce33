"""Answers worth remembering for a moment: bounded in number and in time, and no token among them."""

from collections.abc import Callable

from fastpush.errors import TokenRejected
from fastpush.http.auth.contract import Identity


class Answers:
    """Digest -> Identity or the reason of a rejection; the oldest go first.

    clock: monotonic seconds.  wall_clock: unix seconds, for an identity's own end.
    """

    def __init__(
        self, seconds: float, entries: int, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._seconds = seconds
        self._entries = entries if seconds > 0 else 0
        self._clock = clock
        self._wall_clock = wall_clock
        # Insertion order is order of expiry, for all live equally long.
        self._answers: dict[bytes, tuple[float, Identity | str]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, digest: bytes) -> Identity | None:
        """Return the identity remembered, or None when nothing is.

        Raises: TokenRejected: the rejection remembered.
        """
        found = self._answers.get(digest)
        if found is None:
            return None
        until, answer = found
        if self._clock() >= until or self._ended(answer):
            del self._answers[digest]
            return None
        if isinstance(answer, str):
            raise TokenRejected(answer)
        return answer

    def put(self, digest: bytes, answer: Identity | str) -> None:
        """Remember `answer`, an identity or the reason of a rejection."""
        if not self._entries:
            return
        self._answers.pop(digest, None)
        now = self._clock()
        while self._answers and (len(self._answers) >= self._entries or self._oldest_until() <= now):
            del self._answers[next(iter(self._answers))]
        self._answers[digest] = (now + self._seconds, answer)

    def _oldest_until(self) -> float:
        return next(iter(self._answers.values()))[0]

    def _ended(self, answer: Identity | str) -> bool:
        return (
            isinstance(answer, Identity) and answer.expires_at is not None and answer.expires_at <= self._wall_clock()
        )
