"""One timer wheel a worker: pings, heartbeats and deadlines without a timer or task each.

An item stands in exactly one bucket and is asked for its next time when that comes.
Resolution is one tick; a thousand items due in one tick cost a thousand calls and
nothing else, an item that is not due costs nothing.
"""

import logging
import math
from typing import Protocol

log = logging.getLogger("fastpush.timers")

TICK_SECONDS = 0.1
_BUCKETS = 512


class Timed(Protocol):
    """Something with deadlines.

    due: tick at which it is asked next; -1 while it is not on the wheel. Written by the wheel alone.
    """

    due: int

    def on_timer(self, now: int) -> int | None:
        """Do what is due at tick `now` and return the next tick, or None for no more."""
        ...


def ticks(seconds: float) -> int:
    """Return a duration in ticks, rounded up, at least 1."""
    return max(1, math.ceil(seconds / TICK_SECONDS))


class TimerWheel:
    """Buckets of items by the tick at which they are due. `now` counts ticks from 0."""

    def __init__(self) -> None:
        self.now = 0
        self._buckets: list[set[Timed]] = [set() for _ in range(_BUCKETS)]

    def schedule(self, item: Timed, due: int) -> None:
        """Ask `item` at tick `due`, instead of any earlier plan. Far dates are asked for on the way."""
        self.cancel(item)
        item.due = max(self.now + 1, min(due, self.now + _BUCKETS - 1))
        self._buckets[item.due % _BUCKETS].add(item)

    def cancel(self, item: Timed) -> None:
        """Take `item` off the wheel."""
        if item.due >= 0:
            self._buckets[item.due % _BUCKETS].discard(item)
            item.due = -1

    def advance(self) -> None:
        """Move on by one tick and ask every item that is due."""
        self.now = now = self.now + 1
        bucket = self._buckets[now % _BUCKETS]
        while bucket:
            item = bucket.pop()
            item.due = -1
            try:
                due = item.on_timer(now)
            except Exception:
                # The others still have their turn, and this one is asked again.
                log.exception("timer failed")
                due = now + _BUCKETS
            if due is not None and item.due < 0:
                self.schedule(item, due)
