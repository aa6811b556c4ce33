"""How often something may happen: so many times a second, and a second's worth at once."""


class TokenBucket:
    """Allows `per_second` (at least 1) in the long run, and as many at once after a second's rest.

    Time is told, in seconds of a clock that never goes back.
    """

    __slots__ = ("_per_second", "_seen", "_tokens")

    def __init__(self, per_second: int, now: float) -> None:
        self._per_second = per_second
        self._tokens = float(per_second)
        self._seen = now

    def take(self, now: float) -> bool:
        """Return whether it may happen once more at `now`; what may not costs nothing."""
        tokens = min(self._per_second, self._tokens + (now - self._seen) * self._per_second)
        self._seen = now
        if tokens < 1:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1
        return True
