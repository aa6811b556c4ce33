"""What a client process counts: latencies, deliveries, and a board that all processes of a run share."""

import mmap
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from fastpush.bench.messages import Chunk, Faults

_FINE_BELOW_US = 100_000
_COARSE_US = 100
_UNKNOWN_MAX = 10_000
SECOND_NS = 1_000_000_000
NEVER_NS = 1 << 62


@dataclass
class Counts:
    """One load, as one process saw it. Latencies: microseconds by the second in which the push was due."""

    latencies: dict[int, defaultdict[int, int]] = field(default_factory=dict)
    delivered: Counter[int] = field(default_factory=Counter)  # by second of the run
    pushed: Counter[int] = field(default_factory=Counter)  # by second of the run
    replies: Counter[str] = field(default_factory=Counter)  # by HTTP status, or what went wrong
    faults: Faults = field(default_factory=Faults)
    received: int = 0  # messages read in all, before and after the measured interval too
    posted: int = 0
    unsent: int = 0  # due, but no publisher was free before the end
    late: int = 0  # posted more than a millisecond after they were due, though a publisher was free
    late_ns_max: int = 0
    given_up: int = 0  # no longer waited for


class Recorder:
    """Counts deliveries of one load. Only what was due from `from_ns` on and before `until_ns` has a latency."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.deliveries = 0
        self.from_ns = self.until_ns = NEVER_NS
        self._counted = 0
        self._turn = 0
        self._low = self._high = 0
        self._current: defaultdict[int, int] = defaultdict(int)  # faster than a Counter

    def measure(self, from_ns: int, until_ns: int) -> None:
        """Set the measured interval."""
        self.from_ns, self.until_ns = from_ns, until_ns
        self._low = self._high = 0

    def record(self, chunk: Chunk) -> None:
        """Count what a connection read now; one of its messages, in turn, stands for all of them."""
        count = chunk.messages
        sent = chunk.sent_ns[self._turn % count]
        micros = (time.monotonic_ns() - sent) // 1000
        if micros >= _FINE_BELOW_US:
            micros -= micros % _COARSE_US
        if not self._low <= sent < self._high:
            self._switch(sent)
        self._turn += 1
        self.deliveries += count
        self._current[micros] += count

    def _switch(self, sent: int) -> None:
        if self.from_ns <= sent < self.until_ns:
            second = (sent - self.from_ns) // SECOND_NS
            self._low = self.from_ns + second * SECOND_NS
            self._high = min(self._low + SECOND_NS, self.until_ns)
            self._current = self.counts.latencies.setdefault(second, defaultdict(int))
        else:
            self._low, self._high = (0, self.from_ns) if sent < self.from_ns else (self.until_ns, NEVER_NS)
            self._current = defaultdict(int)

    def second(self, now: int) -> int | None:
        """Return the second of the measured interval, or None outside of it."""
        return (now - self.from_ns) // SECOND_NS if self.from_ns <= now < self.until_ns else None

    def close_turn(self, now: int) -> None:
        """Count this turn's deliveries for the second it was in."""
        grown = self.deliveries - self._counted
        if grown:
            self._counted = self.counts.received = self.deliveries
            second = self.second(now)
            if second is not None:
                self.counts.delivered[second] += grown


class Board:
    """Figures of one load in memory that all processes share, made before they are forked.

    posted: by group and publisher, how many pushes were or are about to be sent.  present: by process and group, how
    many connections receive them.  Each cell has one writer.
    """

    def __init__(self, publishers: int, first_publisher: int, groups: int, processes: int) -> None:
        self._publishers = publishers
        self._names = [b"%04d" % (first_publisher + number) for number in range(publishers)]
        self._groups = groups
        self._processes = processes
        self._posted = memoryview(mmap.mmap(-1, 4 * publishers * groups)).cast("I")
        self._present = memoryview(mmap.mmap(-1, 4 * processes * groups)).cast("I")
        self._unknown = memoryview(mmap.mmap(-1, 4 * (1 + 3 * _UNKNOWN_MAX))).cast("I")

    def post(self, group: int, publisher: int) -> int:
        """Count a push; return its sequence."""
        at = group * self._publishers + publisher
        sequence = self._posted[at]
        self._posted[at] = sequence + 1
        return sequence

    def take_back(self, group: int, publisher: int) -> None:
        """The last push was refused: the next one has its sequence."""
        self._posted[group * self._publishers + publisher] -= 1

    def posted(self, group: int) -> dict[bytes, int]:
        """Return by publisher how many pushes a group is to have."""
        counts = self._posted[group * self._publishers : (group + 1) * self._publishers]
        return {name: count for name, count in zip(self._names, counts, strict=True) if count}

    def posted_sum(self, group: int) -> int:
        """Return how many pushes a group is to have."""
        return sum(self._posted[group * self._publishers : (group + 1) * self._publishers])

    def add_present(self, process: int, group: int, change: int) -> None:
        """Count a receiver in or out."""
        self._present[process * self._groups + group] += change

    def present(self, group: int) -> int:
        """Return the processes that have receivers of a group, as bits."""
        return sum(1 << process for process in range(self._processes) if self._present[process * self._groups + group])

    def add_unknown(self, group: int, publisher: int, sequence: int) -> None:
        """Nobody knows whether this push was sent on; it is not missed, at most _UNKNOWN_MAX of them."""
        number = self._unknown[0]
        if number < _UNKNOWN_MAX:
            at = 1 + 3 * number
            self._unknown[at], self._unknown[at + 1], self._unknown[at + 2] = group, publisher, sequence
            self._unknown[0] = number + 1

    def unknown(self) -> dict[int, set[tuple[int, int]]]:
        """Return by group the (publisher, sequence) that nobody need have."""
        found: dict[int, set[tuple[int, int]]] = {}
        cells = self._unknown[1 : 1 + 3 * self._unknown[0]].tolist()
        for at in range(0, len(cells), 3):
            group, publisher, sequence = cells[at : at + 3]
            found.setdefault(group, set()).add((publisher, sequence))
        return found
