"""What a slow connection has not taken yet: a bounded queue of shared frames."""

from collections import deque

# A queued frame costs a deque entry and a share of its block beside its bytes.
ENTRY_BYTES = 64


class SendQueue:
    """Frames waiting for one connection, oldest first.

    Frames are shared with other connections' queues, never copied in. `queued_bytes`
    is the real cost: bytes plus ENTRY_BYTES for each frame.  dropped: frames that made room.
    since: tick since which the client has taken nothing.
    """

    __slots__ = ("_frames", "dropped", "queued_bytes", "since")

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
