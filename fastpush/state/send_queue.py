"""What a slow connection has not taken yet: a bounded queue of shared frames.

    SendQueue      whole messages, all alike
    ChannelQueue   of a connection in channels: what a channel publishes obeys the channel's policy when
                   the client is behind, and everything else (replies, notices) is never dropped

Frames are shared with other connections' queues, never copied in. Both have a bound that the
caller checks, with `queued_bytes`, before it adds anything.
"""

from collections import deque
from collections.abc import Callable
from typing import ClassVar

from fastpush.protocol.frames import ChannelFrame

# A queued frame costs a deque entry and a share of its block beside its bytes.
ENTRY_BYTES = 64
# In a ChannelQueue: a serial number, its places in dict and deque, or in two dicts, which have free ones too.
CHANNEL_ENTRY_BYTES = 128

DISCONNECT, DROP_OLDEST, LATEST = "disconnect", "drop-oldest", "latest"


class SendQueue:
    """Frames waiting for one connection, oldest first.

    `queued_bytes` is the real cost: bytes plus `entry_bytes` for each frame.  dropped: frames that made room.
    replaced: of its kind none is.
    since: tick since which the client has taken nothing.
    """

    __slots__ = ("_frames", "dropped", "queued_bytes", "since")

    entry_bytes: ClassVar[int] = ENTRY_BYTES
    replaced: ClassVar[int] = 0

    def __init__(self, since: int) -> None:
        self.since = since
        self._frames: deque[bytes] = deque()
        self.queued_bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        """Return the number of frames waiting."""
        return len(self._frames)

    def append(self, frame: bytes) -> int:
        """Add a frame behind the others and return its cost in bytes. The caller checks limits first."""
        cost = len(frame) + ENTRY_BYTES
        self._frames.append(frame)
        self.queued_bytes += cost
        return cost

    def drop_oldest(self) -> int:
        """Remove the oldest frame and return its cost in bytes."""
        cost = len(self._frames.popleft()) + ENTRY_BYTES
        self.queued_bytes -= cost
        self.dropped += 1
        return cost

    def take(self, write_bytes: int) -> list[bytes]:
        """Remove and return the oldest frames: at most `write_bytes`, but one frame at least."""
        frames = self._frames
        first = frames.popleft()
        size = len(first)
        taken = [first]
        while frames and size + len(frames[0]) <= write_bytes:
            frame = frames.popleft()
            size += len(frame)
            taken.append(frame)
        self.queued_bytes -= size + ENTRY_BYTES * len(taken)
        return taken


class Gap:
    """Stands where the first of a channel's dropped frames stood.  dropped: how many have gone since."""

    __slots__ = ("dropped", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.dropped = 1


class ChannelQueue:
    """Frames waiting for one connection that is in channels, oldest first; policies in the module's docstring.

    DISCONNECT    the frame stays; that of everything that is no ChannelFrame
    DROP_OLDEST   it may go to make room; the client is told how many of the channel went, where the first one was
    LATEST        a newer one takes its place

    Args: gap(key, dropped): returns the frame that says how many frames of a channel are missing.
    queued_bytes: bytes plus `entry_bytes` for each frame and for each gap.  dropped: frames that made room.
    replaced: frames that newer ones have taken the places of.
    since: tick since which the client has taken nothing.

    Frames stand in a dict by serial number: it keeps their order, and one in the middle leaves at no cost.
    _droppable: serial numbers, oldest first.  _open: by routing key, that of the Gap that counts what else goes,
    or of the frame that a newer one replaces.
    """

    __slots__ = (
        "_droppable",
        "_frames",
        "_gap",
        "_messages",
        "_open",
        "_serial",
        "dropped",
        "queued_bytes",
        "replaced",
        "since",
    )

    entry_bytes: ClassVar[int] = CHANNEL_ENTRY_BYTES

    def __init__(self, since: int, gap: Callable[[bytes, int], bytes]) -> None:
        self.since = since
        self._gap = gap
        self._frames: dict[int, bytes | Gap] = {}
        self._droppable: deque[int] = deque()
        self._open: dict[bytes, int] = {}
        self._serial = 0
        self._messages = 0
        self.queued_bytes = 0
        self.dropped = 0
        self.replaced = 0

    def __len__(self) -> int:
        """Return the number of frames waiting; a gap is none."""
        return self._messages

    def cost(self, frame: bytes, policy: str = DISCONNECT) -> tuple[int, int]:
        """Return how many frames and bytes more wait after `append`: no frame more where it takes another's place."""
        older = self._replaced(frame) if policy == LATEST else None
        return (1, len(frame) + CHANNEL_ENTRY_BYTES) if older is None else (0, len(frame) - len(older))

    def append(self, frame: bytes, policy: str = DISCONNECT) -> int:
        """Add a frame behind the others, or in its older one's place; return how many bytes more wait.

        The caller checks limits first.  policy: of a ChannelFrame, which is not empty.
        """
        messages, cost = self.cost(frame, policy)
        if messages:
            self._serial = serial = self._serial + 1
            if policy == DROP_OLDEST:
                self._droppable.append(serial)
            elif policy == LATEST and isinstance(frame, ChannelFrame):
                self._open[frame.key] = serial
        else:
            assert isinstance(frame, ChannelFrame)
            serial = self._open[frame.key]
            self.replaced += 1
        self._frames[serial] = frame
        self._messages += messages
        self.queued_bytes += cost
        return cost

    def _replaced(self, frame: bytes) -> bytes | None:
        assert isinstance(frame, ChannelFrame)
        older = self._frames.get(self._open.get(frame.key, -1))
        return None if isinstance(older, Gap) else older

    def drop_oldest(self) -> int:
        """Remove the oldest frame that may go; return how many bytes that gains: more than 0, but for want of one."""
        if not self._droppable:
            return 0
        serial = self._droppable.popleft()
        frame = self._frames[serial]
        assert isinstance(frame, ChannelFrame)
        gained = len(frame)
        gap = self._frames.get(self._open.get(frame.key, -1))
        if isinstance(gap, Gap):
            gap.dropped += 1
            del self._frames[serial]
            gained += CHANNEL_ENTRY_BYTES
        else:
            self._frames[serial] = Gap(frame.key)
            self._open[frame.key] = serial
        self._messages -= 1
        self.dropped += 1
        self.queued_bytes -= gained
        return gained

    def seal(self, key: bytes) -> None:
        """Keep what waits of a channel apart from what comes of it later, which is of another subscription."""
        self._open.pop(key, None)
        frames = self._frames
        # Nor may it go any more: the gap would be told in the other subscription's place, or its in this one's.
        self._droppable = deque(serial for serial in self._droppable if _key(frames[serial]) != key)

    def take(self, write_bytes: int) -> list[bytes]:
        """Remove and return the oldest frames, gaps among them: at most `write_bytes`, but one frame at least."""
        taken: list[bytes] = []
        places: list[tuple[int, bytes | Gap]] = []
        size = 0
        for place in self._frames.items():
            entry = place[1]
            frame = self._gap(entry.key, entry.dropped) if isinstance(entry, Gap) else entry
            size += len(frame)
            if taken and size > write_bytes:
                break
            taken.append(frame)
            places.append(place)
        for serial, entry in places:
            self._remove(serial, entry)
        droppable = self._droppable
        while droppable and droppable[0] <= places[-1][0]:
            droppable.popleft()
        return taken

    def _remove(self, serial: int, entry: bytes | Gap) -> None:
        del self._frames[serial]
        self.queued_bytes -= CHANNEL_ENTRY_BYTES
        if not isinstance(entry, Gap):
            self.queued_bytes -= len(entry)
            self._messages -= 1
        key = _key(entry)
        if key is not None and self._open.get(key) == serial:
            del self._open[key]


def _key(entry: bytes | Gap) -> bytes | None:
    return entry.key if isinstance(entry, ChannelFrame | Gap) else None
