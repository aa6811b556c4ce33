"""Publications that may be asked for twice and are sent once: by their idempotency keys."""

from collections import OrderedDict
from collections.abc import Callable

from fastpush.broker.peer import Delivery

REMEMBERED_SECONDS = 300.0


class Once:
    """What became of publications with a key, for REMEMBERED_SECONDS each.

    limit: most that are remembered; beyond it the oldest go first, counted as `forgotten`.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.forgotten = 0
        self._clock = clock
        self._deliveries: OrderedDict[bytes, tuple[float, Delivery]] = OrderedDict()  # the oldest first

    def __len__(self) -> int:
        """Return the number of keys that are remembered."""
        return len(self._deliveries)

    def find(self, key: bytes) -> Delivery | None:
        """Return what became of the publication that had this key; None: there was none."""
        self._forget_old()
        known = self._deliveries.get(key)
        return None if known is None else known[1]

    def remember(self, key: bytes, delivery: Delivery) -> None:
        """Remember a publication that was taken."""
        self._deliveries[key] = (self._clock() + REMEMBERED_SECONDS, delivery)
        while len(self._deliveries) > self.limit:
            self._deliveries.popitem(last=False)
            self.forgotten += 1

    def _forget_old(self) -> None:
        now = self._clock()
        while self._deliveries and next(iter(self._deliveries.values()))[0] <= now:
            self._deliveries.popitem(last=False)
