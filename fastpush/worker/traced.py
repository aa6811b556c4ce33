"""What stands in for connections, send queues and batches while they are traced: they do the same, and tell of it.

Each class adds no slots to the one that it stands in for, so that an object can be made one of it and back
(`__class__`) while it is in use. What is told to a Watcher harms nobody: it raises nothing.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from fastpush.fanout.batch import Batch, Receiver
from fastpush.protocol.bus import Publication
from fastpush.state.send_queue import ChannelQueue, SendQueue
from fastpush.worker.connection import Connection
from fastpush.worker.event_stream import EventStream
from fastpush.worker.sending import Sender


class Watcher(Protocol):
    """Who is told.

    writing: what is being handed to receivers: a batch, or the only publication; None: nothing that anybody knows.
    """

    writing: "TracedBatch | Publication | None"

    def on_sent(self, connection: "TracedConnection", frames: Sequence[bytes], taken: int, *, was_behind: bool) -> None:
        """Frames were handed over: so many, from the first on, were written, or queued by one that was behind."""
        ...

    def on_queue(self, connection: "TracedConnection") -> None:
        """A connection has a send queue, perhaps another one than before, or none any more."""
        ...

    def on_taken(self, queue: SendQueue | ChannelQueue, frames: Sequence[bytes]) -> None:
        """Frames that have waited are being written."""
        ...

    def on_gone(self, queue: SendQueue | ChannelQueue, frame: bytes, why: str) -> None:
        """A frame that has waited has made room."""
        ...

    def on_lost(self, connection: "TracedConnection") -> None:
        """A connection has ended."""
        ...


class TracedConnection(Connection):
    """A WebSocket. A fan-out never finds it writable, as with TLS, and so asks it to send."""

    __slots__ = ()
    watcher: ClassVar[Watcher]

    @property
    def writable(self) -> Any:
        return None

    @writable.setter
    def writable(self, transport: Any) -> None:
        Sender.writable.__set__(self, transport)  # type: ignore[misc]  # the slot: for afterwards

    @property
    def queue(self) -> SendQueue | ChannelQueue | None:
        """What waits for its client; None: it is not behind."""
        return self._queue

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        was_behind = self._queue is not None
        taken = super().send_joined(joined, frames)
        self.watcher.on_sent(self, frames, taken, was_behind=was_behind)
        return taken

    def pause_writing(self) -> None:
        super().pause_writing()
        self.watcher.on_queue(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.watcher.on_queue(self)

    def _give_up_queue(self, reason: str) -> None:
        super()._give_up_queue(reason)
        self.watcher.on_queue(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.watcher.on_lost(self)


class TracedEventStream(TracedConnection, EventStream):
    """A stream of events."""

    __slots__ = ()


class TracedSendQueue(SendQueue):
    """Tells what leaves it."""

    __slots__ = ()
    watcher: ClassVar[Watcher]

    def drop_oldest(self) -> int:
        frame = self._frames[0]
        gained = super().drop_oldest()
        self.watcher.on_gone(self, frame, "the oldest one makes room")
        return gained

    def take(self, write_bytes: int) -> list[bytes]:
        frames = super().take(write_bytes)
        self.watcher.on_taken(self, frames)
        return frames


class TracedChannelQueue(ChannelQueue):
    """Tells what leaves it."""

    __slots__ = ()
    watcher: ClassVar[Watcher]

    def append(self, frame: bytes, policy: str = "disconnect") -> int:
        is_replacing = not self.cost(frame, policy)[0]
        older = self._replaced(frame) if is_replacing else None
        cost = super().append(frame, policy)
        if older is not None:
            self.watcher.on_gone(self, older, "a newer one takes its place")
        return cost

    def drop_oldest(self) -> int:
        frame = self._frames[self._droppable[0]] if self._droppable else None
        gained = super().drop_oldest()
        if isinstance(frame, bytes):
            self.watcher.on_gone(self, frame, "the oldest one makes room")
        return gained

    def take(self, write_bytes: int) -> list[bytes]:
        frames = super().take(write_bytes)
        self.watcher.on_taken(self, frames)
        return frames


class TracedBatch(Batch):
    """Says what is being written while it is handed over."""

    __slots__ = ()
    watcher: ClassVar[Watcher]

    def give_last(self, remaining: dict[Receiver, None], count: int) -> None:
        before, self.watcher.writing = self.watcher.writing, self
        try:
            super().give_last(remaining, count)
        finally:
            self.watcher.writing = before

    def give_some(self, receiver: Receiver, positions: Sequence[int]) -> None:
        before, self.watcher.writing = self.watcher.writing, self
        try:
            super().give_some(receiver, positions)
        finally:
            self.watcher.writing = before

    def publications_of(self, form: int, frames: Sequence[bytes]) -> list[Publication | None]:
        """Return what each of these frames in a wire form is of."""
        _, whole = self._in_form(form)
        if frames is whole:
            return list(self.publications)
        known = {id(frame): publication for frame, publication in zip(whole, self.publications, strict=True)}
        return [known.get(id(frame)) for frame in frames]
