"""What channels keep: their last publications, and where each channel stands.

`HistoryStore` is what the broker asks of any store; `Histories` keeps all in memory. The contract, which
tests/unit/history_contract.py proves of a store:

    offsets     count a channel's publications from 1 on, without gap, for as long as its epoch lasts
    epoch       changes whenever a channel is forgotten, so what a client has of it can never be taken for something
                else; no two channels of any two stores have had the same
    append      is one step: when it returns the position, whoever reads next finds the publication
    since       answers with every publication behind a position, or says that it cannot: never with a part of them
    bounds      of each channel in messages, bytes and seconds, and of all of them in bytes

Time is told, in seconds of one clock. A store answers at once: one that writes somewhere does that behind its answers.
"""

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple, Protocol

import msgspec

from fastpush.protocol.bus import (
    HISTORY_BYTES_MAX,
    NO_POSITION,
    Entry,
    History,
    Kind,
    Position,
    pack,
)

ENTRY_BYTES = 200  # of an entry and its place in the ring, beside its data
CHANNEL_BYTES = 1200  # of a channel that keeps something: its ring comes in blocks
POSITION_BYTES = 450  # of one that keeps nothing now
_SERIAL_BITS = 32
_NOTICE = int(Kind.NOTICE)  # a member of an enumeration costs more to compare
_LOOKED_AT = 8  # channels that are looked at for one that may be forgotten
_POSITIONS_SHARE = 4
_HEAP_SLACK = 1024


class Retention(NamedTuple):
    """How much a channel keeps: publications, seconds and bytes."""

    messages: int
    seconds: float = math.inf
    size: float = math.inf


class HistoryStore(Protocol):
    """Where channels keep what was published; see above. Answers are packed Kept (fastpush.protocol.bus).

    limit_bytes, kept_bytes: most, and real, cost of all that is kept.  position_bytes: cost of what is only remembered.
    dropped: publications that went for `limit_bytes`.
    """

    limit_bytes: int
    kept_bytes: int
    position_bytes: int
    dropped: int

    def __len__(self) -> int:
        """Return the number of channels that it knows."""
        ...

    def append(self, key: bytes, kind: int, data: bytes, extras: bytes, retention: Retention, now: float) -> Position:
        """Keep a publication as the newest of its channel, by `retention`, and return its place."""
        ...

    def open(self, key: bytes, retention: Retention, now: float) -> Position:
        """Return where a channel stands, and remember that for retention.seconds at least."""
        ...

    def newest(self, key: bytes, messages: int, size: int, now: float) -> bytes:
        """Return the newest of what is kept: at most so many, and so many bytes with ENTRY_BYTES for each."""
        ...

    def since(self, key: bytes, position: Position, messages: int, size: int, now: float) -> bytes:
        """Return all that came behind `position`, if it is kept, of this epoch, and no more; else nothing.

        Epoch 0 is of any.
        """
        ...

    def page(self, question: History, now: float) -> bytes:
        """Return a part of what is kept, from its beginning or, in reverse, its end.

        Its `recovered` says whether the position that was asked for is of this epoch; epoch 0 is of any.
        """
        ...

    def clear(self, key: bytes) -> None:
        """Keep nothing of what was published to a channel; it stands where it stood."""
        ...

    def forget(self, key: bytes) -> None:
        """Keep nothing of a channel, nor where it stands: its next publication is the first of another epoch."""
        ...

    def forget_notices(self, key: bytes) -> None:
        """Forget a channel in which nobody has said anything: who came and left is of no interest then."""
        ...

    def tick(self, now: float) -> None:
        """Give up what is too old."""
        ...


class _Kept(NamedTuple):
    """One entry: as the bus carries it, since when, and whether it is a notice."""

    packed: bytes
    since_seconds: float
    is_notice: bool


_NO_ENTRIES: deque[_Kept] = deque()  # of all channels without: an empty one takes 600 bytes; nobody writes into it


class _Ring:
    """The entries of a channel, oldest first, the offset of its newest, and its newest ones as somebody asked last.

    planned_seconds: when it is looked at for what is too old, not later than `due_seconds`; math.inf: never.
    """

    __slots__ = ("entries", "epoch", "offset", "packed", "planned_seconds", "retention", "size", "touched_seconds")

    def __init__(self, epoch: int, retention: Retention, now: float) -> None:
        self.entries = _NO_ENTRIES
        self.epoch = epoch
        self.offset = 0
        self.retention = retention
        self.size = 0
        self.touched_seconds = now
        self.planned_seconds = math.inf
        self.packed: tuple[tuple[int, int], bytes] | None = None

    @property
    def due_seconds(self) -> float:
        """When something of it is too old."""
        since = self.entries[0].since_seconds if self.entries else self.touched_seconds
        return since + self.retention.seconds


class Histories:
    """A HistoryStore in memory: rings by routing key, and what is remembered of channels that keep nothing now.

    The channel published to longest ago goes first when all of them are too large. Of channels that keep nothing now
    those that nobody is in are forgotten early when positions take a quarter as much: then a client that comes back is
    told that it may have missed something. is_wanted(key): whether anybody is in a channel; there are never more of
    these than subscriptions.
    """

    def __init__(
        self, limit_bytes: int, first_epoch: int, is_wanted: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self.position_bytes = 0
        self.dropped = 0
        self._first_epoch = first_epoch >> _SERIAL_BITS << _SERIAL_BITS
        self._serial = 0
        self._is_wanted = is_wanted
        self._rings: OrderedDict[bytes, _Ring] = OrderedDict()  # with entries: the one published to longest ago first
        self._empty: OrderedDict[bytes, _Ring] = OrderedDict()  # without: the one that was emptied longest ago first
        self._due: list[tuple[float, int, bytes]] = []  # a heap: of each channel counts the entry that is planned

    def __len__(self) -> int:
        return len(self._rings) + len(self._empty)

    # -- keeping -----------------------------------------------------------------

    def append(self, key: bytes, kind: int, data: bytes, extras: bytes, retention: Retention, now: float) -> Position:
        ring = self._ring(key, retention, now)
        if not ring.entries:
            self._forget_position(key)
            self._rings[key] = ring
            self.kept_bytes += CHANNEL_BYTES + len(key)
            ring.entries = deque()
        self._rings.move_to_end(key)
        ring.offset += 1
        ring.touched_seconds = now
        packed = pack(Entry(ring.offset, kind, data, extras))
        self._uncache(ring)
        ring.entries.append(_Kept(packed, now, kind == _NOTICE))
        ring.size += len(packed) + ENTRY_BYTES
        self.kept_bytes += len(packed) + ENTRY_BYTES
        while len(ring.entries) > retention.messages or (ring.size > retention.size and ring.entries):
            self._take_oldest(ring)
        if not ring.entries:
            self._set_aside(key, ring)
        position = Position(ring.offset, ring.epoch)
        if self.kept_bytes > self.limit_bytes:
            self._shrink()
        return position

    def open(self, key: bytes, retention: Retention, now: float) -> Position:
        ring = self._ring(key, retention, now)
        ring.touched_seconds = now
        return Position(ring.offset, ring.epoch)

    def _ring(self, key: bytes, retention: Retention, now: float) -> _Ring:
        ring = self._rings.get(key) or self._empty.get(key)
        if ring is None:
            self._serial += 1
            ring = self._empty[key] = _Ring(self._first_epoch | self._serial, retention, now)
            self.position_bytes += POSITION_BYTES + len(key)
            self._trim_positions()
            self._plan(key, ring)
        is_shorter = retention.seconds < ring.retention.seconds
        ring.retention = retention
        if is_shorter and ring.due_seconds < ring.planned_seconds:
            self._plan(key, ring)
        return ring

    def _plan(self, key: bytes, ring: _Ring) -> None:
        ring.planned_seconds = ring.due_seconds
        if ring.planned_seconds < math.inf:
            heapq.heappush(self._due, (ring.planned_seconds, ring.epoch, key))
            if len(self._due) > 2 * len(self) + _HEAP_SLACK:  # most of it is of channels that were forgotten meanwhile
                self._due = list({due for due in self._due if self._planned(*due) is not None})
                heapq.heapify(self._due)

    def _planned(self, seconds: float, epoch: int, key: bytes) -> _Ring | None:
        """Return the ring that such an entry of the heap is of, unless that is forgotten or planned anew."""
        ring = self._rings.get(key) or self._empty.get(key)
        return ring if ring is not None and (ring.planned_seconds, ring.epoch) == (seconds, epoch) else None

    # -- asking ------------------------------------------------------------------

    def newest(self, key: bytes, messages: int, size: int, now: float) -> bytes:
        ring = self._current(key, now)
        if ring is None:
            return _packed(NO_POSITION, [], recovered=False)
        bounds = (messages, size)
        if ring.packed is not None and ring.packed[0] == bounds:
            return ring.packed[1]  # the same object for all who ask: thousands may come at once
        packed = _packed(Position(ring.offset, ring.epoch), _newest(ring.entries, *bounds), recovered=False)
        self._cache(ring, bounds, packed)
        return packed

    def since(self, key: bytes, position: Position, messages: int, size: int, now: float) -> bytes:
        ring = self._current(key, now)
        if ring is None:
            return _packed(NO_POSITION, [], recovered=False)
        missed = ring.offset - position.offset
        found: list[_Kept] = []
        recovered = position.epoch in {0, ring.epoch} and 0 <= missed <= min(messages, len(ring.entries))
        if recovered:
            found = list(islice(reversed(ring.entries), missed))[::-1]  # however many came before
            if sum(len(entry.packed) + ENTRY_BYTES for entry in found) > size:
                found, recovered = [], False
        return _packed(Position(ring.offset, ring.epoch), found, recovered=recovered)

    def page(self, question: History, now: float) -> bytes:
        ring = self._current(question.key, now)
        if ring is None:
            return _packed(NO_POSITION, [], recovered=False)
        entries, since = ring.entries, question.since
        first = ring.offset - len(entries) + 1
        if since is not None and since.epoch not in {0, ring.epoch}:
            return _packed(Position(ring.offset, ring.epoch), [], recovered=False)
        if question.reverse:
            end = len(entries) if since is None else min(len(entries), max(0, since.offset - first))
            found = list(islice(entries, max(0, end - question.messages), end))[::-1]
        else:
            start = 0 if since is None else min(len(entries), max(0, since.offset - first + 1))
            found = list(islice(entries, start, start + question.messages))
        return _packed(Position(ring.offset, ring.epoch), _first(found, HISTORY_BYTES_MAX), recovered=True)

    def _current(self, key: bytes, now: float) -> _Ring | None:
        """Return a channel's ring without what is too old."""
        ring = self._rings.get(key)
        if ring is None:
            return self._empty.get(key)
        self._expire(key, ring, now)
        return ring

    # -- giving up ---------------------------------------------------------------

    def clear(self, key: bytes) -> None:
        ring = self._rings.get(key)
        if ring is not None:
            while ring.entries:
                self._take_oldest(ring)
            self._set_aside(key, ring)

    def forget(self, key: bytes) -> None:
        self.clear(key)
        if key in self._empty:
            self._forget_position(key)

    def forget_notices(self, key: bytes) -> None:
        ring = self._rings.get(key)
        if ring is not None and all(entry.is_notice for entry in ring.entries):
            self.forget(key)

    def tick(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            _, _, key = due = heapq.heappop(self._due)
            ring = self._planned(*due)
            if ring is None:
                continue
            self._expire(key, ring, now)
            if not ring.entries and ring.due_seconds <= now:
                if not self._is_wanted(key):
                    self._forget_position(key)
                    continue
                ring.touched_seconds = now
            self._plan(key, ring)

    def _expire(self, key: bytes, ring: _Ring, now: float) -> None:
        had_entries = bool(ring.entries)
        while ring.entries and ring.entries[0].since_seconds + ring.retention.seconds <= now:
            self._take_oldest(ring)
        if had_entries and not ring.entries:
            self._set_aside(key, ring)

    def _set_aside(self, key: bytes, ring: _Ring) -> None:
        """Remember of a channel without entries only where it stands; of one that was never to be resumed, nothing."""
        del self._rings[key]
        self.kept_bytes -= CHANNEL_BYTES + len(key)
        ring.entries = _NO_ENTRIES
        self._empty[key] = ring
        self.position_bytes += POSITION_BYTES + len(key)
        if ring.retention.seconds == math.inf:
            self._forget_position(key)

    def _shrink(self) -> None:
        """Give up the publications of the channel without news for longest."""
        while self.kept_bytes > self.limit_bytes and self._rings:
            key, ring = next(iter(self._rings.items()))
            self._take_oldest(ring)
            self.dropped += 1
            if not ring.entries:
                self._set_aside(key, ring)

    def _trim_positions(self) -> None:
        """Forget a few channels that keep nothing, are too many, and that nobody is in."""
        for _ in range(min(_LOOKED_AT, len(self._empty) - 1)):  # not the newest, which somebody asks about now
            if self.position_bytes <= self.limit_bytes // _POSITIONS_SHARE:
                break
            key = next(iter(self._empty))
            if self._is_wanted(key):
                self._empty.move_to_end(key)
            else:
                self._forget_position(key)

    def _forget_position(self, key: bytes) -> None:
        del self._empty[key]
        self.position_bytes -= POSITION_BYTES + len(key)

    def _take_oldest(self, ring: _Ring) -> None:
        self._uncache(ring)
        size = len(ring.entries.popleft().packed) + ENTRY_BYTES
        ring.size -= size
        self.kept_bytes -= size

    def _cache(self, ring: _Ring, bounds: tuple[int, int], packed: bytes) -> None:
        self._uncache(ring)
        if ring.entries and self.kept_bytes + len(packed) <= self.limit_bytes:
            ring.packed = (bounds, packed)
            self.kept_bytes += len(packed)

    def _uncache(self, ring: _Ring) -> None:
        if ring.packed is not None:
            self.kept_bytes -= len(ring.packed[1])
            ring.packed = None


def _newest(entries: deque[_Kept], messages: int, size: int) -> list[_Kept]:
    return _first(list(islice(reversed(entries), messages)), size)[::-1]


def _first(entries: list[_Kept], size: int) -> list[_Kept]:
    """Return as many of the first entries as have so many bytes together."""
    for position, entry in enumerate(entries):
        size -= len(entry.packed) + ENTRY_BYTES
        if size < 0:
            return entries[:position]
    return entries


def _packed(position: Position, entries: list[_Kept], *, recovered: bool) -> bytes:
    """Return a Kept as the bus carries it."""
    return pack((*position, recovered, [msgspec.Raw(entry.packed) for entry in entries]))
