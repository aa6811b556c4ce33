"""What a run found; `--json` writes exactly this tree.

Times end in their unit; a latency is from when a push was due to when a receiver read it.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from fastpush.bench.recording import Counts

_BUCKETS_A_DECADE = 10
_UNAVAILABLE = 503
_SERVER_ERROR = 500


@dataclass(frozen=True)
class Latency:
    """Percentiles in microseconds; exact to 1 µs below 100 ms, to 100 µs above."""

    count: int
    mean_us: float
    p50_us: int
    p75_us: int
    p90_us: int
    p99_us: int
    p99_9_us: int
    max_us: int


@dataclass(frozen=True)
class Bucket:
    """Deliveries with a latency of at least `from_us` and less than `to_us`."""

    from_us: float
    to_us: float
    count: int


@dataclass(frozen=True)
class Second:
    """One second of the run. Latencies by when a push was due; the rest by when it happened."""

    second: int
    pushes: int
    deliveries: int
    p50_us: int | None
    p99_us: int | None


@dataclass(frozen=True)
class LoadResult:
    """One stream of pushes. refused: nobody got them.  errors: nobody knows.  unsent: no publisher was free.

    received, replies: messages read and pushes answered in all, also before and after the measured interval.
    """

    name: str
    pushes: int
    pushes_per_second: float
    deliveries: int
    deliveries_per_second: float
    received: int
    lost: int
    duplicated: int
    reordered: int
    refused: int
    errors: int
    unsent: int
    late: int
    late_ms_max: float
    given_up: int
    replies: dict[str, int]
    latency: Latency | None
    histogram: list[Bucket]
    series: list[Second]


@dataclass(frozen=True)
class OpeningResult:
    """Connecting, before anything was measured. failures: by HTTP status or error."""

    opened: int
    failed: int
    failures: dict[str, int]
    seconds: float
    connects_per_second: float
    latency: Latency | None
    cpu_us_per_connect: float | None


@dataclass(frozen=True)
class StormResult:
    """Extra connection attempts. answers: by HTTP status (101: taken), error, `timeout` or `skipped`."""

    offered: int
    answers: dict[str, int]
    latency: Latency | None


@dataclass(frozen=True)
class ServerProcess:
    """CPU of one of the server's processes during the measured interval."""

    pid: int
    name: str
    cpu_seconds: float
    cpu_share: float


@dataclass(frozen=True)
class ServerResult:
    """The server's process tree; memory is PSS."""

    pid: int
    processes: list[ServerProcess]
    cpu_seconds: float
    cpu_us_per_push: float | None
    cpu_us_per_delivery: float | None
    memory_before_bytes: int | None
    memory_idle_bytes: int | None
    memory_end_bytes: int | None
    memory_per_connection_bytes: float | None


@dataclass(frozen=True)
class ClientResult:
    """The load tester itself. busy: share of time not spent waiting, by process."""

    busy: list[float]
    cpu_share: list[float]


@dataclass(frozen=True)
class Result:
    """A whole run. closed, slow: connections by how the server ended them.  notes: what a reader has to know."""

    version: str
    started: str
    settings: dict[str, Any]
    seconds: float
    interrupted: bool
    opening: OpeningResult
    loads: list[LoadResult]
    closed: dict[str, int]
    slow: dict[str, int]
    churned: int
    churn_failures: dict[str, int]
    storm: StormResult | None
    server: ServerResult | None
    client: ClientResult
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the tree as JSON has it."""
        return asdict(self)


def latency_of(counter: Counter[int]) -> Latency | None:
    """Return the percentiles of microseconds and how often each was seen; None without any."""
    total = counter.total()
    if not total:
        return None
    values = sorted(counter)
    found = percentiles(counter, (0.5, 0.75, 0.9, 0.99, 0.999))
    mean = sum(value * count for value, count in counter.items()) / total
    p50, p75, p90, p99, p99_9 = found
    return Latency(total, round(mean, 3), p50, p75, p90, p99, p99_9, values[-1])


def percentiles(counter: Counter[int], shares: tuple[float, ...]) -> list[int]:
    """Return for each share, in rising order, the smallest value that so many do not exceed."""
    total = counter.total()
    ranks = [math.ceil(share * total) for share in shares]
    found: list[int] = []
    passed = 0
    for value in sorted(counter):
        passed += counter[value]
        while len(found) < len(ranks) and passed >= ranks[len(found)]:
            found.append(value)
    return found


def histogram_of(counter: Counter[int]) -> list[Bucket]:
    """Return ten buckets a decade, from the first to the last that is not empty."""
    counts: Counter[int] = Counter()
    for value, count in counter.items():
        counts[math.floor(math.log10(max(value, 1)) * _BUCKETS_A_DECADE + 1e-9)] += count
    if not counts:
        return []
    return [Bucket(_edge(number), _edge(number + 1), counts[number]) for number in range(min(counts), max(counts) + 1)]


def _edge(number: int) -> float:
    return round(10 ** (number / _BUCKETS_A_DECADE), 2)


def load_result(name: str, parts: list[Counts], seconds: float) -> LoadResult:
    """Return one load from what all processes counted in the measured `seconds`."""
    latencies: dict[int, Counter[int]] = {}
    for part in parts:
        for second, counter in part.latencies.items():
            latencies.setdefault(second, Counter()).update(counter)
    everything: Counter[int] = Counter()
    for merged in latencies.values():
        everything.update(merged)
    pushed: Counter[int] = _sum(part.pushed for part in parts)
    delivered: Counter[int] = _sum(part.delivered for part in parts)
    replies: Counter[str] = _sum(part.replies for part in parts)
    refused = sum(count for outcome, count in replies.items() if _is_refused(outcome))
    accepted = sum(count for outcome, count in replies.items() if outcome.startswith("2"))
    span = max(seconds, 1e-9)
    return LoadResult(
        name=name,
        pushes=pushed.total(),
        pushes_per_second=round(pushed.total() / span, 1),
        deliveries=delivered.total(),
        deliveries_per_second=round(delivered.total() / span, 1),
        received=sum(part.received for part in parts),
        lost=sum(part.faults.lost for part in parts),
        duplicated=sum(part.faults.duplicated for part in parts),
        reordered=sum(part.faults.reordered for part in parts),
        refused=refused,
        errors=replies.total() - accepted - refused,
        unsent=sum(part.unsent for part in parts),
        late=sum(part.late for part in parts),
        late_ms_max=max(part.late_ns_max for part in parts) / 1e6,
        given_up=sum(part.given_up for part in parts),
        replies=dict(replies),
        latency=latency_of(everything),
        histogram=histogram_of(everything),
        series=_series(pushed, delivered, latencies),
    )


def _series(pushed: Counter[int], delivered: Counter[int], latencies: dict[int, Counter[int]]) -> list[Second]:
    last = max((*pushed, *delivered, *latencies), default=-1)
    series = []
    for second in range(last + 1):
        counter = latencies.get(second)
        p50, p99 = percentiles(counter, (0.5, 0.99)) if counter else (None, None)
        series.append(Second(second, pushed[second], delivered[second], p50, p99))
    return series


def _is_refused(outcome: str) -> bool:
    """Whether a reply promises that nobody got the push."""
    if not outcome.isdecimal() or outcome.startswith("2"):
        return False
    return int(outcome) < _SERVER_ERROR or int(outcome) == _UNAVAILABLE


def _sum(counters: Any) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for counter in counters:
        total.update(counter)
    return total
