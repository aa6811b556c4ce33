"""A client process: its receivers, and the publishers of a load that it has, on one loop."""

import resource
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from fastpush.bench.connections import resolve
from fastpush.bench.loop import Loop
from fastpush.bench.messages import Faults
from fastpush.bench.plan import Plan
from fastpush.bench.progress import Progress
from fastpush.bench.publishers import Publishing
from fastpush.bench.receivers import Group, Receiver
from fastpush.bench.recording import SECOND_NS, Board, Counts, Recorder
from fastpush.bench.storm import Storm, StormCounts

_BUFFER_BYTES = 262_144
_HANDSHAKES_MAX = 200  # under way at once
_OPEN_NS = 20 * SECOND_NS  # a handshake that takes longer has failed
_SETTLE_NS = SECOND_NS // 2  # for registrations that nobody confirms
_CHECK_NS = SECOND_NS // 50
_STILL_NS = 2 * SECOND_NS  # what has not come by then is lost
_DRAIN_NS = 20 * SECOND_NS
_RESUMED_NS = 2 * SECOND_NS  # a slow connection that has read on for so long is open
_REPORT_NS = SECOND_NS // 2


@dataclass
class Opening:
    """How connecting went. failures: by HTTP status or error."""

    opened: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    began_ns: int = 0
    ended_ns: int = 0
    latencies: Counter[int] = field(default_factory=Counter)


@dataclass
class ProcessResult:
    """What one client process found. closed and slow: by how they ended."""

    opening: Opening
    counts: list[Counts]
    closed: Counter[str]
    slow: Counter[str]
    churned: int
    churn_failures: Counter[str]
    storm: StormCounts | None
    busy: float = 0.0  # share of the measured interval that was not spent waiting
    cpu_share: float = 0.0


class Client:
    """Opens its share of the connections, then does what it is told to over `pipe`.

    Process 0 pushes the measured load. The background's users and publishers are the only ones of a last process.
    Orders in: ("go", from_ns, until_ns), ("stop", now), ("finish",). Reports out: ("opened", Opening), ("count",
    figures), ("posted", None), ("result", ProcessResult).
    """

    def __init__(self, plan: Plan, index: int, boards: list[Board], pipe: Connection, progress: Progress) -> None:
        self.plan = plan
        self.index = index
        self.loop = Loop()
        self.buffer = bytearray(_BUFFER_BYTES)
        self.endpoint = resolve(plan.url, insecure=plan.insecure)
        self.has_begun = False
        self.recorders = [Recorder() for _ in boards]
        self._pipe = pipe
        self._progress = progress
        self._boards = boards
        self._opening = Opening()
        self._wanted: deque[tuple[int, int, Group]] = deque()  # number, user, group
        self._under_way: dict[Receiver, int] = {}  # since when; oldest first
        self._open: dict[Receiver, None] = {}
        self._closed: Counter[str] = Counter()
        self._slow: dict[Receiver, None] = {}
        self._slow_ends: Counter[str] = Counter()
        self._churned = 0
        self._churn_failures: Counter[str] = Counter()
        self._publishing: Publishing | None = None
        self._is_background = index == plan.background_process
        has_storm = plan.connect_rate and not self._is_background
        self._storm = Storm(plan, self.loop, self.endpoint, index) if has_storm else None
        self._phase: Callable[[int], None] = self._opening_phase
        self._from_ns = self._until_ns = 0
        self._reported_ns = self._checked_ns = self._still_ns = self._drain_ns = 0
        self._seen = 0
        self._has_left = False
        self._busy = (0, 0, 0.0)
        self._shares: tuple[float, float] | None = None
        self._make_groups()

    def _make_groups(self) -> None:
        plan = self.plan
        groups: dict[int, Group] = {}
        which = int(self._is_background)
        load = plan.loads[which]
        on_complete = self._progress.complete if load.window is not None else None
        if self._is_background:
            numbers = range(plan.connections, plan.connections + plan.background_users)
        else:
            numbers = range(self.index, plan.connections, plan.process_count)
        for number in numbers:
            user = number if self._is_background else number % plan.user_count
            index = (number - load.first_user) % load.groups
            group = groups.get(index)
            if group is None:
                keep = not self._is_background and plan.connections > load.groups
                group = groups[index] = Group(
                    index, self.index, self._boards[which], self.recorders[which], keep=keep,
                    is_background=self._is_background, on_complete=on_complete,
                )  # fmt: skip
            self._wanted.append((number, user, group))

    # -- running -------------------------------------------------------------------

    def run(self) -> None:
        """Work until the result is sent, or the parent has gone."""
        _raise_file_limit()
        self._opening.began_ns = self._opening.ended_ns = time.monotonic_ns()
        self.loop.watch(self._pipe.fileno(), self._on_order)
        self.loop.tickers.append(self._tick)
        if self._storm is not None:
            self.loop.tickers.append(self._storm.tick)
        if (self.index == 0 or self._is_background) and not self.plan.idle:
            self._start_publishing(int(self._is_background))
        self._progress.attach(self.loop, self._publishing)
        while not self._has_left:
            self.loop.turn()

    def _start_publishing(self, which: int) -> None:
        load = self.plan.loads[which]
        self._publishing = Publishing(self.plan, load, self.loop, self._boards[which], self.recorders[which])
        self.loop.tickers.append(self._publishing.tick)
        self._publishing.open()

    def _on_order(self, _events: int) -> None:
        try:
            order, *values = self._pipe.recv()
        except (EOFError, OSError):
            self._has_left = True
            return
        if order == "go":
            self._go(*values)
        elif order == "stop":
            self._set_interval(min(self._from_ns, values[0]), min(self._until_ns, values[0]))
        elif order == "finish":
            self._still_ns = self._drain_ns = time.monotonic_ns()
            self._phase = self._finishing_phase

    def _go(self, from_ns: int, until_ns: int) -> None:
        now = time.monotonic_ns()
        self.has_begun = True
        self._set_interval(from_ns, until_ns)
        if self._publishing is not None:
            self._publishing.start_ns = now
        if self._storm is not None:
            self._storm.start(from_ns, until_ns)
        self._phase = self._load_phase

    def _set_interval(self, from_ns: int, until_ns: int) -> None:
        self._from_ns, self._until_ns = from_ns, until_ns
        for recorder in self.recorders:
            recorder.measure(from_ns, until_ns)
        if self._storm is not None:
            self._storm.until_ns = until_ns

    def _tick(self, now: int) -> int | None:
        self._progress.flush()
        for recorder in self.recorders:
            recorder.close_turn(now)
        self._phase(now)
        self._open_wanted(now)
        if now - self._reported_ns > _REPORT_NS:
            self._reported_ns = now
            self._report()
        churns = self.plan.churn and not self._is_background and self._phase == self._load_phase
        return self._next_churn(now) if churns else None

    def _report(self) -> None:
        figures = {
            "open": len(self._open) + len(self._slow),
            "deliveries": self.recorders[0].deliveries,
            "pushes": sum(self.recorders[0].counts.pushed.values()),
            "closed": sum(self._closed.values()),
        }
        self._send("count", figures)

    def _send(self, kind: str, value: Any) -> None:
        try:
            self._pipe.send((kind, value))
        except OSError:
            self._has_left = True

    # -- phases --------------------------------------------------------------------

    def _opening_phase(self, now: int) -> None:
        if self._wanted or self._under_way:
            return
        settle = _SETTLE_NS if self.plan.register == "message" and not self.plan.register_reply else 0
        failure = self._publishing.failure() if self._publishing is not None else None
        is_ready = self._publishing is None or self._publishing.ready
        if failure is not None:
            self._opening.failures[f"publishers: {failure}"] += 1
        elif not is_ready or now < self._opening.ended_ns + settle:
            return
        self._send("opened", self._opening)
        self._phase = self._waiting_phase

    def _waiting_phase(self, now: int) -> None:
        """The others are not ready yet."""

    def _load_phase(self, now: int) -> None:
        if now >= self._from_ns and self._busy[0] == 0:
            self._busy = (now, self.loop.waited_ns, time.process_time())
        if now < self._until_ns:
            return
        if self._shares is None and self._busy[0]:
            took = max(1, now - self._busy[0])
            waited = self.loop.waited_ns - self._busy[1]
            self._shares = (1 - waited / took, (time.process_time() - self._busy[2]) / took * SECOND_NS)
        if all(one is None or one.is_settled for one in (self._publishing, self._storm)):
            self._send("posted", None)
            self._phase = self._waiting_phase

    def _finishing_phase(self, now: int) -> None:
        if now - self._checked_ns < _CHECK_NS:
            return
        self._checked_ns = now
        deliveries = sum(recorder.deliveries for recorder in self.recorders)
        if deliveries != self._seen:
            self._seen, self._still_ns = deliveries, now
        is_over = now - self._still_ns > _STILL_NS or now - self._drain_ns > _DRAIN_NS
        if not is_over and not all(receiver.group.has_all(receiver) for receiver in self._open):
            return
        for slow in self._slow:
            slow.resume()
        self._drain_ns = now
        self._phase = self._slow_phase

    def _slow_phase(self, now: int) -> None:
        """Those that had stopped reading find out how they ended."""
        if self._slow and now - self._drain_ns < _RESUMED_NS:
            return
        self._send("result", self._result())
        self._has_left = True

    def _result(self) -> ProcessResult:
        for receiver in self._open:
            self.settle(receiver.group, receiver.group.verdict(receiver, is_end=True))
        if self._slow:
            self._slow_ends["open"] = len(self._slow)
        busy, cpu_share = self._shares or (0.0, 0.0)
        return ProcessResult(
            self._opening, [recorder.counts for recorder in self.recorders], self._closed, self._slow_ends,
            self._churned, self._churn_failures, None if self._storm is None else self._storm.counts, busy, cpu_share,
        )  # fmt: skip

    # -- connections ---------------------------------------------------------------

    def _open_wanted(self, now: int) -> None:
        while self._under_way and now - next(iter(self._under_way.values())) > _OPEN_NS:
            next(iter(self._under_way)).end("timeout")
        ramp = self.plan.ramp / self.plan.process_count
        while self._wanted and len(self._under_way) < _HANDSHAKES_MAX:
            if ramp and not self.has_begun:
                begun = self._opening.opened + sum(self._opening.failures.values()) + len(self._under_way)
                if begun > (now - self._opening.began_ns) / SECOND_NS * ramp:
                    return
            number, user, group = self._wanted.popleft()
            receiver = Receiver(self, number, user, group, is_slow=number < self.plan.slow)
            self._under_way[receiver] = now
            receiver.open()

    def on_opened(self, receiver: Receiver) -> None:
        """A connection is registered."""
        since = self._under_way.pop(receiver)
        if receiver.is_slow:
            self._slow[receiver] = None
        else:
            self._open[receiver] = None
        if not self.has_begun:
            now = time.monotonic_ns()
            self._opening.opened += 1
            self._opening.ended_ns = now
            self._opening.latencies[(now - since) // 1000] += 1

    def on_ended(self, receiver: Receiver, reason: str, *, was_registered: bool) -> None:
        """A connection has failed, or ended by itself."""
        if not was_registered:
            self._under_way.pop(receiver, None)
            (self._churn_failures if self.has_begun else self._opening.failures)[reason] += 1
            self._opening.ended_ns = self._opening.ended_ns if self.has_begun else time.monotonic_ns()
        elif receiver.is_slow:
            self._slow.pop(receiver, None)
            self._slow_ends[reason] += 1
        else:
            self._open.pop(receiver, None)
            self._closed[reason] += 1

    def on_group_empty(self, group: Group) -> None:
        """A group has no receivers here any more."""
        if not group.is_background:
            self._progress.group_empty(group.index)

    def settle(self, group: Group, faults: Faults) -> None:
        """Count what is wrong with what a connection got."""
        if faults != _NO_FAULTS:
            counts = group.recorder.counts
            counts.faults = counts.faults.plus(faults)

    def _next_churn(self, now: int) -> int:
        """Reconnect as many as are due; return when the next is."""
        rate = self.plan.churn / self.plan.process_count
        while True:
            due = self._from_ns + int(self._churned * SECOND_NS / rate)
            if due > now or due >= self._until_ns:
                return due
            self._churned += 1
            receiver = next(iter(self._open), None)
            if receiver is None:
                continue
            del self._open[receiver]
            receiver.quit()
            self._wanted.append((receiver.number, receiver.user, receiver.group))


_NO_FAULTS = Faults()


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
