"""How many connections a name (a user, an address) has on the whole host, by who holds them.

The broker counts for all workers, so that a limit is exact whichever worker a client
reaches. A name without connections is removed at once: there are never more names than
open connections.
"""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Admissions(Generic[Holder]):
    """Counts of connections. Holders are few (worker links), names are many."""

    def __init__(self) -> None:
        self._totals: Counter[bytes] = Counter()
        self._held: dict[Holder, Counter[bytes]] = {}

    def __len__(self) -> int:
        """Return the number of names that have a connection."""
        return len(self._totals)

    def admit(self, holder: Holder, name: bytes, limit: int) -> bool:
        """Count one more connection of `name`, unless it has `limit` of them; return whether it was counted."""
        if self._totals[name] >= limit:
            return False
        self.hold(holder, name, 1)
        return True

    def hold(self, holder: Holder, name: bytes, count: int) -> None:
        """Count `count` connections more, which were admitted before, whatever the limit is now."""
        self._totals[name] += count
        self._held.setdefault(holder, Counter())[name] += count

    def release(self, holder: Holder, name: bytes) -> None:
        """Count one connection of `holder` less; one that it does not hold changes nothing."""
        names = self._held.get(holder)
        if names is None or not names[name]:
            return
        _subtract(names, name, 1)
        _subtract(self._totals, name, 1)

    def forget(self, holder: Holder) -> None:
        """Count nothing of `holder` any more; cost O(its names)."""
        for name, count in self._held.pop(holder, Counter()).items():
            _subtract(self._totals, name, count)


def _subtract(counts: Counter[bytes], name: bytes, count: int) -> None:
    counts[name] -= count
    if not counts[name]:
        del counts[name]
