"""A connect storm: connection attempts on schedule, each closed once it is answered."""

import time
from collections import Counter
from dataclasses import dataclass, field

from fastpush.bench.connections import Endpoint, WebSocketLink
from fastpush.bench.loop import Loop
from fastpush.bench.plan import Plan
from fastpush.bench.recording import SECOND_NS

_UNDER_WAY_MAX = 4000
_TIMEOUT_NS = 5 * SECOND_NS


@dataclass
class StormCounts:
    """Attempts by how they ended, and the microseconds from when they were due to their answer."""

    offered: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)


class Storm:
    """Offers connections at a rate, in an open loop; those that would be too many under way are counted as skipped."""

    def __init__(self, plan: Plan, loop: Loop, endpoint: Endpoint, index: int) -> None:
        self.counts = StormCounts()
        self.until_ns = 0
        self._rate = plan.connect_rate / plan.process_count
        self._plan = plan
        self._loop = loop
        self._endpoint = endpoint
        self._start_ns: int | None = None
        self._under_way: dict[Attempt, None] = {}  # oldest first
        user = plan.connections + plan.background_users + plan.publisher_count + index
        self._request = endpoint.handshake(plan.target(user), compression=plan.compression)

    def start(self, start_ns: int, until_ns: int) -> None:
        """Begin at `start_ns`."""
        self._start_ns, self.until_ns = start_ns, until_ns

    def tick(self, now: int) -> int | None:
        """Offer what is due; return when the next is."""
        for attempt in list(self._under_way)[:_UNDER_WAY_MAX]:
            if now - attempt.due_ns < _TIMEOUT_NS:
                break
            attempt.end("timeout")
        if self._start_ns is None:
            return None
        while True:
            due = self._start_ns + int(self.counts.offered * SECOND_NS / self._rate)
            if due > now:
                return due
            if due >= self.until_ns:
                return None
            self._offer(due)

    def _offer(self, due: int) -> None:
        sources = self._plan.sources
        self.counts.offered += 1
        if len(self._under_way) >= _UNDER_WAY_MAX:
            self.counts.answers["skipped"] += 1
            return
        source = sources[self.counts.offered % len(sources)]
        attempt = Attempt(self, self._loop, self._endpoint, source, self._request, due)
        self._under_way[attempt] = None
        attempt.open()

    def on_answer(self, attempt: "Attempt", answer: str) -> None:
        """An attempt has ended."""
        self._under_way.pop(attempt, None)
        self.counts.answers[answer] += 1
        if answer.isdecimal():
            self.counts.latencies[(time.monotonic_ns() - attempt.due_ns) // 1000] += 1

    @property
    def is_settled(self) -> bool:
        """Whether every attempt has ended."""
        return not self._under_way


class Attempt(WebSocketLink):
    """One attempt."""

    __slots__ = ("_storm", "due_ns")

    def __init__(
        self, storm: Storm, loop: Loop, endpoint: Endpoint, source: str | None, request: bytes, due_ns: int
    ) -> None:
        super().__init__(loop, endpoint, source, request)
        self._storm = storm
        self.due_ns = due_ns

    def on_opened(self, head: bytes, rest: bytes) -> None:
        self.close(reset=True)
        self._storm.on_answer(self, "101")

    def on_refused(self, status: str) -> None:
        self.close(reset=True)
        self._storm.on_answer(self, status)

    def on_readable(self) -> None:
        """Nothing is read once it is open."""

    def on_ended(self, reason: str) -> None:
        self._storm.on_answer(self, reason)
