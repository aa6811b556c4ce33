"""The last messages of channels that keep some: bounded for each channel, and in bytes over all of them.

The channel whose last message is oldest goes first when all of them together are too large. Nothing
is kept of a channel without messages.
"""

from collections import OrderedDict, deque
from typing import NamedTuple

ENTRY_BYTES = 120  # of an entry and its place in the ring, beside its data
CHANNEL_BYTES = 900  # of a channel: its ring comes in blocks


class Entry(NamedTuple):
    """One kept message. is_notice: `data` says who came or left, else it is a WebSocket frame."""

    is_notice: bool
    data: bytes


class Histories:
    """Rings by routing key.

    kept_bytes: real cost of all of them.  dropped: messages that went because of `limit_bytes`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        self.dropped = 0
        self._rings: OrderedDict[bytes, deque[Entry]] = OrderedDict()  # the one published to longest ago first

    def __len__(self) -> int:
        """Return the number of channels that have messages."""
        return len(self._rings)

    def append(self, key: bytes, entry: Entry, keep: int) -> None:
        """Keep `entry` as the newest of the last `keep` (at least 1) of its channel."""
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = deque()
            self.kept_bytes += CHANNEL_BYTES + len(key)
        self._rings.move_to_end(key)
        ring.append(entry)
        self.kept_bytes += len(entry.data) + ENTRY_BYTES
        while len(ring) > keep:
            self._take_oldest(ring)
        while self.kept_bytes > self.limit_bytes and self._rings:
            self._shrink()

    def read(self, key: bytes) -> tuple[Entry, ...]:
        """Return what is kept of a channel, oldest first."""
        return tuple(self._rings.get(key, ()))

    def _shrink(self) -> None:
        key, ring = next(iter(self._rings.items()))
        self._take_oldest(ring)
        self.dropped += 1
        if not ring:
            del self._rings[key]
            self.kept_bytes -= CHANNEL_BYTES + len(key)

    def _take_oldest(self, ring: deque[Entry]) -> None:
        self.kept_bytes -= len(ring.popleft().data) + ENTRY_BYTES
