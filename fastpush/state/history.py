"""The last messages of channels that keep some: bounded for each channel, and in bytes over all of them.

The channel whose last message is oldest goes first when all of them together are too large. Nothing
is kept of a channel without messages.
"""

from collections import OrderedDict, deque
from itertools import islice
from typing import NamedTuple

from fastpush.protocol.bus import pack

ENTRY_BYTES = 120  # of an entry and its place in the ring, beside its data
CHANNEL_BYTES = 900  # of a channel: its ring comes in blocks


class Entry(NamedTuple):
    """One kept message. is_notice: `data` says who came or left, else it is a WebSocket frame."""

    is_notice: bool
    data: bytes


class _Ring:
    """The entries of a channel, and what its newest ones look like on the bus, for whoever asks next."""

    __slots__ = ("entries", "packed")

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.packed: tuple[tuple[int, int], bytes] | None = None


class Histories:
    """Rings by routing key.

    kept_bytes: real cost of all of them.  dropped: messages that went because of `limit_bytes`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self.dropped = 0
        self._rings: OrderedDict[bytes, _Ring] = OrderedDict()  # the one published to longest ago first

    def __len__(self) -> int:
        """Return the number of channels that have messages."""
        return len(self._rings)

    def append(self, key: bytes, entry: Entry, keep: int) -> None:
        """Keep `entry` as the newest of the last `keep` (at least 1) of its channel."""
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = _Ring()
            self.kept_bytes += CHANNEL_BYTES + len(key)
        self._rings.move_to_end(key)
        ring.entries.append(entry)
        ring.packed = None
        self.kept_bytes += len(entry.data) + ENTRY_BYTES
        while len(ring.entries) > keep:
            self._take_oldest(ring)
        while self.kept_bytes > self.limit_bytes and self._rings:
            self._shrink()

    def read(self, key: bytes) -> tuple[Entry, ...]:
        """Return what is kept of a channel, oldest first."""
        ring = self._rings.get(key)
        return () if ring is None else tuple(ring.entries)

    def packed(self, key: bytes, most_messages: int, most_bytes: int) -> bytes:
        """Return the newest of what is kept, packed, oldest first: the same object for all who ask for as much.

        most_bytes: counted with ENTRY_BYTES for each.
        """
        ring = self._rings.get(key)
        if ring is None:
            return pack(())
        bounds = (most_messages, most_bytes)
        if ring.packed is None or ring.packed[0] != bounds:
            ring.packed = (bounds, pack(_newest(ring.entries, *bounds)))
        return ring.packed[1]

    def forget_notices(self, key: bytes) -> None:
        """Keep nothing of a channel in which nobody has said anything: who came and left is of no interest then."""
        ring = self._rings.get(key)
        if ring is not None and all(entry.is_notice for entry in ring.entries):
            while ring.entries:
                self._take_oldest(ring)
            self._remove(key)

    def _shrink(self) -> None:
        key, ring = next(iter(self._rings.items()))
        self._take_oldest(ring)
        self.dropped += 1
        if not ring.entries:
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        del self._rings[key]
        self.kept_bytes -= CHANNEL_BYTES + len(key)

    def _take_oldest(self, ring: _Ring) -> None:
        ring.packed = None
        self.kept_bytes -= len(ring.entries.popleft().data) + ENTRY_BYTES


def _newest(entries: deque[Entry], most_messages: int, most_bytes: int) -> list[Entry]:
    found: list[Entry] = []
    for entry in islice(reversed(entries), most_messages):
        most_bytes -= len(entry.data) + ENTRY_BYTES
        if most_bytes < 0:
            break
        found.append(entry)
    return found[::-1]
