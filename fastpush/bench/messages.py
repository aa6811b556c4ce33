"""What the load tester sends, and the check that every receiver got all of it, once and in order. No I/O.

A message is "~", publisher (4 digits), sequence (10), time in ns (19), "~", padding: JSON-safe ASCII of fixed
width, so that it is found in whatever a server wraps around it. Sequences count from 0 for each publisher and
group; a group is the receivers of one key.

A group shares a `Stream`: the stamps in the order in which its first receiver saw them, each checked once. All
others must see the same, so what they read is compared as bytes with a chunk that was parsed before, and their
check is a comparison of positions. Who differs gets a stream of its own until it is in step again.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

MESSAGE_BYTES_MIN = 35
PUBLISHERS_MAX = 1000
_FOUND = re.compile(rb"~(\d{33})~")
_MISSING_MAX = 100_000  # sequences of one stream that are remembered as missing
_KEPT = 256  # stamps behind the slowest receiver that are kept for those who come back into step
_TRIM_EVERY = 1024


def stamp(publisher: int, sequence: int, at_ns: int) -> bytes:
    """Return the 33 digits of a message."""
    return b"%04d%010d%019d" % (publisher, sequence, at_ns)


def message(digits: bytes, size_bytes: int) -> bytes:
    """Return a whole message; `size_bytes` is at least MESSAGE_BYTES_MIN."""
    return b"~%b~" % digits + b"x" * (size_bytes - MESSAGE_BYTES_MIN)


def find(payload: bytes) -> list[bytes]:
    """Return the stamps in a payload, in order."""
    return _FOUND.findall(payload)


@dataclass(slots=True)
class Chunk:
    """Whole frames that were parsed once: what every receiver at `start` of the stream should read next."""

    data: bytes
    size: int
    end: int  # position behind its last message
    messages: int
    sent_ns: list[int]


class Faults(NamedTuple):
    """What a receiver missed, saw twice, or saw in another order."""

    lost: int = 0
    duplicated: int = 0
    reordered: int = 0

    def plus(self, other: "Faults") -> "Faults":
        return Faults(*map(sum, zip(self, other, strict=True)))


class _Event(NamedTuple):
    """A fault that everybody has who passed `position`. sequences: the lost ones."""

    position: int
    publisher: bytes
    sequences: range
    faults: Faults


class Stream:
    """The messages of a group in their order; positions count from 0.

    limits: by publisher, the first sequence that may not be missing (0 where it names none); None: any may be the
    first.  keep: whether several receivers follow it.  on_complete: told the stamps that all followers have.
    """

    __slots__ = (
        "_at", "_base", "_events", "_keep", "_limits", "_missing", "_reference", "chunks", "end",
        "floor", "followers", "next", "on_complete",
    )  # fmt: skip

    def __init__(
        self,
        limits: Mapping[bytes, int] | None,
        *,
        keep: bool = True,
        on_complete: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._limits = limits
        self._keep = keep
        self.on_complete = on_complete
        self._reference: list[bytes] = []  # stamps from position `_base` on
        self._base = 0
        self._at: defaultdict[int, int] = defaultdict(int)  # position: how many followers are there
        self._events: list[_Event] = []
        self._missing: set[tuple[bytes, int]] = set()
        self.chunks: dict[int, Chunk] = {}
        self.next: dict[bytes, int] = {}
        self.end = 0
        self.floor = 0  # every follower has what is before it
        self.followers = 0

    def successor(self, limits: Mapping[bytes, int] | None) -> "Stream":
        """Return the stream of somebody who joins the same group now."""
        return Stream(limits, keep=self._keep)

    # -- who follows ---------------------------------------------------------------

    def join(self, position: int) -> None:
        """Count a follower at `position`."""
        if not self.followers:
            self.floor = position
        self.followers += 1
        self._at[position] += 1

    def leave(self, position: int) -> None:
        """Count a follower out."""
        self.followers -= 1
        self._at[position] -= 1
        if not self._at[position]:
            self._vacate(position)

    def move(self, position: int, to: int) -> None:
        """Move a follower forward."""
        at = self._at
        at[to] += 1
        left = at[position] - 1
        if left:
            at[position] = left
        else:
            self._vacate(position)

    def _vacate(self, position: int) -> None:
        del self._at[position]
        if position == self.floor and self._at:
            self._raise_floor(min(self._at))

    def _raise_floor(self, floor: int) -> None:
        if self.on_complete is not None:
            self.on_complete(self._reference[self.floor - self._base : floor - self._base])
        self.floor = floor
        if not self._keep:
            self._reference.clear()
            self._base = self.end
            return
        for position in [position for position in self.chunks if position < floor]:
            del self.chunks[position]
        if floor - self._base > _TRIM_EVERY:
            del self._reference[: floor - _KEPT - self._base]
            self._base = floor - _KEPT

    # -- what they see -------------------------------------------------------------

    def follow(self, position: int, stamps: list[bytes]) -> bool:
        """Check what a follower at `position` sees next; False: it is not what the others saw."""
        at = position - self._base
        known = self._reference[at : at + len(stamps)]
        if known and known != stamps[: len(known)]:
            return False
        self._extend(stamps[len(known) :] if known else stamps)
        return True

    def chunk(self, position: int, frames: bytes, stamps: list[bytes]) -> Chunk:
        """Return what a follower at `position` read."""
        return Chunk(frames, len(frames), position + len(stamps), len(stamps), [int(found[14:]) for found in stamps])

    def remember(self, position: int, chunk: Chunk) -> None:
        """Compare what others read at `position` with this chunk of whole frames; one at each position is kept."""
        if self._keep:
            other = self.chunks.get(position)
            # The shorter one is the beginning of more reads.
            if other is None or other.size > chunk.size or other.data != chunk.data[: other.size]:
                self.chunks[position] = chunk

    def _extend(self, stamps: list[bytes]) -> None:
        following = self.next
        for digits in stamps:
            publisher = digits[:4]
            sequence = int(digits[4:14])
            if following.get(publisher) == sequence:
                following[publisher] = sequence + 1
            else:
                self._judge(publisher, sequence)
            self.end += 1
        self._reference += stamps

    def _judge(self, publisher: bytes, sequence: int) -> None:
        """A sequence that is not the next one."""
        expected = self.next.get(publisher)
        if expected is None:
            limit = self._limit(publisher)
            if limit is None or sequence <= limit:  # it was under way when the receiver joined
                self.next[publisher] = sequence + 1
                return
            expected = limit
        if sequence >= expected:
            gap = range(expected, sequence)
            self.next[publisher] = sequence + 1
            self._missing.update((publisher, lost) for lost in gap[: _MISSING_MAX - len(self._missing)])
            event = _Event(self.end, publisher, gap, Faults(lost=len(gap)))
        elif (publisher, sequence) in self._missing:
            self._missing.remove((publisher, sequence))
            event = _Event(self.end, publisher, range(0), Faults(lost=-1, reordered=1))
        else:
            event = _Event(self.end, publisher, range(0), Faults(duplicated=1))
        self._events.append(event)

    def _limit(self, publisher: bytes) -> int | None:
        return None if self._limits is None else self._limits.get(publisher, 0)

    # -- out of step ---------------------------------------------------------------

    def state_at(self, position: int) -> dict[bytes, int]:
        """Return by publisher the sequence that a follower at `position` should see next."""
        state = {**(self._limits or {}), **self.next}
        events = self._events_from(position)
        repeated = {event.position for event in events if not event.sequences}
        for at in range(self.end - 1, max(position, self._base) - 1, -1):
            if at not in repeated:
                digits = self._reference[at - self._base]
                state[digits[:4]] = int(digits[4:14])
        for event in events:
            if event.sequences:
                state[event.publisher] = min(state[event.publisher], event.sequences[0])
        return state

    def is_clean_from(self, position: int) -> bool:
        """Whether nothing is wrong from `position` on, so that somebody who differs is wrong."""
        return not self._events_from(position)

    def _events_from(self, position: int) -> list[_Event]:
        return self._events[bisect_left(self._events, position, key=lambda event: event.position) :]

    def in_step(self, other: "Stream", last: bytes) -> int | None:
        """Return the position at which `other`, whose newest stamp is `last`, is where followers of this one are."""
        try:
            position = self._base + self._reference.index(last) + 1
        except ValueError:
            return None
        for publisher, expected in self.state_at(position).items():
            seen = other.next.get(publisher)
            if seen is None:
                limit = other._limit(publisher)  # noqa: SLF001 - its own class
                if limit is not None and limit < expected:
                    return None
            elif seen != expected:
                return None
        return position

    # -- the verdict ---------------------------------------------------------------

    def faults(self, start: int, position: int, unknown: Collection[tuple[int, int]]) -> Faults:
        """Return the faults of a follower that joined at `start` (-1: the first message) and got to `position`.

        unknown: (publisher, sequence) that nobody need have.
        """
        total = Faults()
        for event in self._events_from(start + 1):
            if event.position >= position:
                break
            forgiven = sum((int(event.publisher), lost) in unknown for lost in event.sequences) if unknown else 0
            total = total.plus(event.faults).plus(Faults(lost=-forgiven))
        return total

    def behind(self, position: int, posted: Mapping[bytes, int], unknown: Collection[tuple[int, int]]) -> int:
        """Return how many messages a follower at `position` lacks of all that were posted."""
        lacking = max(0, self.end - position)
        for publisher, count in posted.items():
            following = self.next.get(publisher)
            if following is None:
                following = self._limit(publisher)
            if following is not None:
                lacking += sum((int(publisher), left) not in unknown for left in range(following, count))
        return lacking
