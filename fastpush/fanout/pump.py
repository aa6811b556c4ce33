"""When a key's messages are written: self-clocking gathering, and slices.

An idle key is written at once. What comes while that is under way gathers, and leaves as one
write a receiver. After a write of several messages the key rests for as long as that took (at
most max_delay_ms), for the next ones are on their way: publishers are answered when the write is
over, and come back together. So load makes batches grow by itself, and silence makes them
vanish: who waits for each push before the next never waits for more than the writing.

    add ──► gathered ──► flush, in slices of slice_ms ──► counted
              ▲  waits for the flush before it, and for ready_at

Slices of several keys take turns, in the order in which the keys were first touched, so a
broadcast to tens of thousands holds up neither other keys nor pings and handshakes. Keys of
a few receivers are not worth a clock: they are written at once, by the hub, unless
a flush of theirs is under way.

Bounds: a batch is at most write_bytes, or one message; what has gathered is bounded by
the broker, which counts all that this worker has not confirmed ([bus] queue_bytes).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from fastpush.config import Compression, Fanout
from fastpush.fanout.batch import PLAIN, Batch, Receiver
from fastpush.metrics import Counters
from fastpush.protocol.bus import Kind, Publication

if TYPE_CHECKING:
    from fastpush.fanout.hub import Group

Counted = Callable[[int], object]

SMALL_GROUP = 8
_CLOCK_EVERY = 32  # receivers between two looks at the clock
_TIMER_SECONDS = 0.001  # resolution of the loop's timers; less is waited for by a turn of the loop
_NEVER = float("inf")


class Gathered:
    """A publication that waits for its key's next flush.

    spared: the receiver that does not get it.  settled: receivers that left meanwhile, and were given it before.
    """

    __slots__ = ("counted", "publication", "settled", "spared")

    def __init__(self, publication: Publication, counted: Counted, spared: Receiver | None) -> None:
        self.publication = publication
        self.counted = counted
        self.spared = spared
        self.settled = 0


class Flush:
    """A batch on its way to the receivers that it has not reached yet.

    remaining: in the order in which they joined, backwards. Written to in this order, neighbours in time are
    neighbours in memory, ours and the kernel's: in the order of a set a write costs a third more.
    exceptions: after them, those who get a part of it, each with the positions of its publications: who joined while
    it gathered, and who is spared one.
    """

    __slots__ = ("batch", "exceptions", "gathered", "groups", "remaining", "seconds")

    def __init__(
        self, groups: "Iterable[Group]", batch: Batch, remaining: dict[Receiver, None], gathered: Sequence[Gathered]
    ) -> None:
        self.groups = dict.fromkeys(groups)
        self.exceptions: dict[Receiver, Sequence[int]] = {}
        self.batch = batch
        self.remaining = remaining
        self.gathered = gathered
        self.seconds = 0.0


class Flow:
    """What a key that is, or was, busy has gathered.

    flush: under way.  newcomers: those that joined while something had gathered, each with the number
    of publications that are older.  ready_at: when the next flush may begin.  wake: what waits for that.
    """

    __slots__ = ("flush", "gathered", "gathered_bytes", "newcomers", "ready_at", "wake")

    def __init__(self) -> None:
        self.flush: Flush | None = None
        self.gathered: list[Gathered] = []
        self.gathered_bytes = 0
        self.newcomers: dict[Receiver, int] = {}
        self.ready_at = 0.0
        self.wake: asyncio.Handle | None = None


class Pump:
    """Writes what groups are sent. write_bytes: of a batch."""

    def __init__(self, fanout: Fanout, compression: Compression, counters: Counters, *, write_bytes: int) -> None:
        self._counters = counters
        self._write_bytes = write_bytes
        self._flushes: deque[Flush] = deque()
        self._is_scheduled = False  # a turn of this pump; until then `_deadline` holds
        self._deadline = 0.0
        self.configure(fanout, compression)

    def configure(self, fanout: Fanout, compression: Compression) -> None:
        """Write by these settings from the next flush on."""
        self._max_delay_seconds = fanout.max_delay_ms / 1000
        self._slice_seconds = fanout.slice_ms / 1000
        self._compression = compression

    def write(self, members: Collection[Receiver], publication: Publication, counted: Counted) -> None:
        """Write at once to a few receivers: the path of most pushes, so a batch is made only for other forms."""
        frame = publication.frame
        frames = (frame,)
        batch: Batch | None = None
        count = 0
        plain = PLAIN if publication.kind != Kind.CHANGES else -1
        for receiver in members:
            if receiver.form == plain:
                count += receiver.send_joined(frame, frames)
            else:
                if batch is None:
                    batch = Batch((publication,), self._compression)
                batch.give(receiver)
        if batch is not None:
            count += batch.counts()[0]
        counters = self._counters
        counters.deliveries += count
        counters.writes += len(members)
        counters.push_latency.observe(monotonic() - publication.taken_seconds)
        counted(count)

    def add(self, group: "Group", publication: Publication, counted: Counted, spared: Receiver | None = None) -> None:
        """Write to `group`, now or when it is ready; `counted` is told how many took it."""
        flow = group.flow
        if flow is None:
            flow = group.flow = Flow()
        flow.gathered.append(Gathered(publication, counted, spared))
        flow.gathered_bytes += len(publication.frame)
        if flow.flush is None and (flow.wake is None or flow.gathered_bytes >= self._write_bytes):
            self._begin_when_ready(group, flow)
            self._go()

    def add_to_several(
        self,
        groups: "Sequence[Group]",
        publication: Publication,
        counted: Counted,
        spared: Receiver | None = None,
    ) -> None:
        """Write to the members of all `groups`, once to each, behind what these have gathered.

        That is written in one go: only a second push of several keys, close behind a large one of the same, meets it.
        """
        for group in groups:
            self.finish(group)
        members: dict[Receiver, None] = dict.fromkeys(member for group in groups for member in group.members)
        if spared is not None:
            members.pop(spared, None)
        gathered = (Gathered(publication, counted, spared),)
        flush = Flush(groups, Batch((publication,), self._compression), members, gathered)
        for group in groups:
            if group.flow is None:
                group.flow = Flow()
            group.flow.flush = flush
        self._flushes.append(flush)
        self._go()

    def finish(self, group: "Group") -> None:
        """Write all that `group` has gathered, however long that takes."""
        flow = group.flow
        while flow is not None and (flow.flush is not None or flow.gathered):
            flush = flow.flush or self._begin(group, flow)
            self._write(flush, _NEVER)
            self._flushes.remove(flush)
            self._end(flush)
            flow = group.flow

    def settle(self, group: "Group", receiver: Receiver) -> None:
        """Give a receiver that leaves `group` all that is on its way to it there."""
        flow = group.flow
        if flow is None:
            return
        flush = flow.flush
        if flush is not None and receiver in flush.remaining:
            del flush.remaining[receiver]
            flush.batch.give(receiver)
        elif flush is not None and receiver in flush.exceptions:
            flush.batch.give_some(receiver, flush.exceptions.pop(receiver))
        positions = _positions(flow.gathered, receiver, flow.newcomers.pop(receiver, 0))
        if positions:
            batch = Batch([gathered.publication for gathered in flow.gathered], self._compression)
            batch.give_some(receiver, positions)
            self._counters.writes += batch.writes
            for gathered, count in zip(flow.gathered, batch.counts(), strict=True):
                gathered.settled += count

    def welcome(self, group: "Group", receiver: Receiver) -> None:
        """Let a receiver that joins `group` have nothing that is older."""
        flow = group.flow
        if flow is not None and flow.gathered:
            flow.newcomers[receiver] = len(flow.gathered)

    def forget(self, group: "Group") -> None:
        """Answer for what an empty group has gathered: all who left were given it."""
        flow = group.flow
        if flow is not None and flow.flush is not None and len(flow.flush.groups) > 1:
            del flow.flush.groups[group]  # it goes on for the others
            flow.flush = None
        self.finish(group)

    # -- from gathered to written ------------------------------------------------

    def _begin_when_ready(self, group: "Group", flow: Flow) -> None:
        wait = flow.ready_at - perf_counter()
        if wait <= 0 or flow.gathered_bytes >= self._write_bytes:
            self._begin(group, flow)
        elif wait < _TIMER_SECONDS:
            flow.wake = asyncio.get_running_loop().call_soon(self._wake, group, flow)
        else:
            flow.wake = asyncio.get_running_loop().call_later(wait, self._wake, group, flow)

    def _wake(self, group: "Group", flow: Flow) -> None:
        flow.wake = None
        if flow.flush is None and flow.gathered:
            self._begin(group, flow)
            self._go()

    def _begin(self, group: "Group", flow: Flow) -> Flush:
        """Make a flush of what has gathered, as much as one write takes."""
        if flow.wake is not None:
            flow.wake.cancel()
            flow.wake = None
        gathered = flow.gathered
        count, size = 1, len(gathered[0].publication.frame)
        for later in gathered[1:]:
            if size + len(later.publication.frame) > self._write_bytes:
                break
            count += 1
            size += len(later.publication.frame)
        leaving, flow.gathered = gathered[:count], gathered[count:]
        flow.gathered_bytes -= size
        batch = Batch([gathered.publication for gathered in leaving], self._compression)
        flow.flush = flush = Flush((group,), batch, dict.fromkeys(group.members), leaving)
        newcomers, flow.newcomers = flow.newcomers, {}
        for receiver, first in newcomers.items():
            if first > count:
                flow.newcomers[receiver] = first - count
        spared = (gathered.spared for gathered in leaving if gathered.spared is not None)
        for receiver in {*newcomers, *spared} & flush.remaining.keys():
            del flush.remaining[receiver]
            positions = _positions(leaving, receiver, newcomers.get(receiver, 0))
            if positions:
                flush.exceptions[receiver] = positions
        self._flushes.append(flush)
        return flush

    def _go(self) -> None:
        """Write within what is left of this turn's slice; the rest in turns of its own."""
        if not self._is_scheduled:
            self._schedule()
        self._work()

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._deadline = perf_counter() + self._slice_seconds
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._flushes:
            self._schedule()
            self._work()

    def _work(self) -> None:
        flushes, deadline = self._flushes, self._deadline
        while flushes and perf_counter() < deadline:
            flush = flushes[0]
            self._write(flush, deadline)
            if flush.remaining or flush.exceptions:
                flushes.rotate(-1)  # the others' turn
            else:
                flushes.popleft()
                self._end(flush)

    def _write(self, flush: Flush, deadline: float) -> None:
        """Write to remaining receivers, until `deadline`."""
        remaining, exceptions, batch = flush.remaining, flush.exceptions, flush.batch
        began = now = perf_counter()
        while remaining and now < deadline:
            batch.give_last(remaining, min(_CLOCK_EVERY, len(remaining)))
            now = perf_counter()
        while exceptions and now < deadline:
            batch.give_some(*exceptions.popitem())
            now = perf_counter()
        flush.seconds += now - began

    def _end(self, flush: Flush) -> None:
        """Answer for a flush that has reached everybody, and plan its groups' next ones."""
        rest = min(flush.seconds, self._max_delay_seconds) if len(flush.gathered) > 1 else 0
        ready_at = perf_counter() + rest
        for group in flush.groups:
            flow = group.flow
            assert flow is not None
            flow.flush = None
            flow.ready_at = ready_at
            if flow.gathered:
                self._begin_when_ready(group, flow)
                if not self._is_scheduled:
                    self._schedule()
            elif len(group.members) <= SMALL_GROUP:
                group.flow = None
        counters, batch = self._counters, flush.batch
        counters.writes += batch.writes
        now = monotonic()
        for gathered, taken in zip(flush.gathered, batch.counts(), strict=True):
            count = taken + gathered.settled
            counters.deliveries += count
            counters.push_latency.observe(now - gathered.publication.taken_seconds)
            gathered.counted(count)


def _positions(gathered: Sequence[Gathered], receiver: Receiver, first: int) -> list[int]:
    """Return which publications a receiver gets, of those from position `first` on."""
    return [place for place, one in enumerate(gathered) if place >= first and one.spared is not receiver]
