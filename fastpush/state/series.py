"""The host's figures by the second: what workers count, made into rates, and the points of the last hour."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from fastpush.metrics import LATENCY_BOUNDS_SECONDS, WORKER_METRICS
from fastpush.protocol.insight import POINTS_MAX, Point, WorkerFigures

STALE_SECONDS = 2.0
_GAP_SECONDS_MIN = 0.5  # a scrape has them measured between two seconds: rates of milliseconds would be noise

_PUSHES = ("pushes_delivered", "pushes_unconfirmed", "publications_delivered", "publications_unconfirmed")
_DROPS = tuple(name for name in WORKER_METRICS if name.startswith("drops_"))

Counts = list[float]
"""Pushes, deliveries, writes, drops, and then the buckets of their latency."""

_NO_COUNTS: Counts = [0] * (4 + len(LATENCY_BOUNDS_SECONDS) + 1)
_encode = msgspec.json.Encoder().encode


class _Second(NamedTuple):
    """What a worker did between two of its snapshots.

    measured_seconds: of the newer one, CLOCK_MONOTONIC.  seen_seconds: when that came, Unix time.
    total: its counts.  counts: what they are more than the older one's.  seconds: between both.
    """

    measured_seconds: float
    seen_seconds: float
    total: Counts
    counts: Counts
    seconds: float

    def rates(self) -> Counts:
        """Return what it did a second; the buckets stay counts."""
        return [count / self.seconds for count in self.counts[:4]] + self.counts[4:]


class Series:
    """Makes points of workers' snapshots, and keeps the last `points_max`, encoded: about 100 bytes each."""

    def __init__(self, points_max: int = POINTS_MAX) -> None:
        self._points: deque[bytes] = deque(maxlen=points_max)
        self._seconds: dict[int, _Second] = {}
        self._departed = _NO_COUNTS

    def append(self, point: Point) -> None:
        """Keep a point as the newest."""
        self._points.append(_encode(point))

    def encoded(self, bytes_max: int) -> bytes:
        """Return the newest points that fit into so many bytes, the oldest first, as a JSON list."""
        newest = deque[bytes]()
        size = 1  # of the brackets, and a comma less than points
        for point in reversed(self._points):
            size += len(point) + 1
            if size > bytes_max:
                break
            newest.appendleft(point)
        return b"[%b]" % b",".join(newest)

    def measure(
        self, now: float, workers: Mapping[int, Mapping[str, Any]], departed: Mapping[str, Any]
    ) -> tuple[Point, list[WorkerFigures]]:
        """Return the host's and the workers' figures of the last second; called once a second.

        Args: now: Unix time.  workers: the last snapshot of each, by process; {} before its first one.
              departed: the summed counters of ended ones. A worker leaves `workers` when its counters come in here.
        """
        ended = self._ended(workers, departed)
        figures, rates = [], [ended]
        for number, snapshot in workers.items():
            gauges = snapshot.get("gauges", {})
            if "measured_seconds" not in gauges:
                continue
            second = self._second(now, number, snapshot)
            is_stale = now - second.seen_seconds > STALE_SECONDS
            rate = _NO_COUNTS if is_stale else second.rates()
            rates.append(rate)
            figures.append(_figures(now, number, gauges, rate, is_stale=is_stale))
        figures.sort(key=lambda worker: (worker.slot, worker.worker))
        return _point(now, figures, _sum(rates)), figures

    def _ended(self, workers: Mapping[int, Any], departed: Mapping[str, Any]) -> Counts:
        """Return what ended workers did behind their last points, which is of the last second."""
        before, self._departed = self._departed, _counts(departed)
        known = [self._seconds.pop(number).total for number in self._seconds.keys() - workers.keys()]
        # Nobody knows when one that was in no point has counted: all of that in one second would be a lie.
        return _more(self._departed, _sum([before, *known])) if known else _NO_COUNTS

    def _second(self, now: float, number: int, snapshot: Mapping[str, Any]) -> _Second:
        gauges = snapshot["gauges"]
        measured = gauges["measured_seconds"]
        last = self._seconds.get(number)
        if last is not None and measured - last.measured_seconds < _GAP_SECONDS_MIN:
            return last
        total = _counts(snapshot["counters"])
        if last is not None:
            counts, seconds = _more(total, last.total), measured - last.measured_seconds
        else:
            seconds = max(now - gauges["start_time_seconds"], 1.0)
            counts = total if seconds < STALE_SECONDS else _NO_COUNTS  # nobody knows when that was
        second = self._seconds[number] = _Second(measured, now, total, counts, seconds)
        return second


def quantile(buckets: Sequence[float], q: float) -> float | None:
    """Return the duration in seconds that a share `q` (0 < q <= 1) of all falls below; None for none.

    buckets: as Histogram's. Interpolated in a bucket, in the unbounded one the highest bound: Prometheus, "Query
    functions", histogram_quantile.
    """
    rank = q * sum(buckets)
    if not rank:
        return None
    below, start = 0.0, 0.0
    for bound, count in zip(LATENCY_BOUNDS_SECONDS, buckets, strict=False):
        if below + count >= rank:
            return start + (bound - start) * (rank - below) / count
        below += count
        start = bound
    return start


def _counts(counters: Mapping[str, Any]) -> Counts:
    if not counters:
        return _NO_COUNTS
    return [
        sum(counters[name] for name in _PUSHES),
        counters["deliveries"],
        counters["writes"],
        sum(counters[name] for name in _DROPS),
        *counters["push_latency"][:-1],
    ]


def _sum(counts: Iterable[Counts]) -> Counts:
    return [sum(figures) for figures in zip(*counts, strict=True)]


def _more(counts: Counts, earlier: Counts) -> Counts:
    return [max(0, now - before) for now, before in zip(counts, earlier, strict=True)]


def _figures(now: float, number: int, gauges: Mapping[str, Any], rates: Counts, *, is_stale: bool) -> WorkerFigures:
    pushes, deliveries, writes, drops, *_ = rates
    return WorkerFigures(
        slot=gauges["slot"],
        worker=number,
        pid=gauges["pid"],
        connections=gauges["connections"],
        slow_connections=gauges["slow_connections"],
        pushes=round(pushes, 1),
        deliveries=round(deliveries, 1),
        gathering=round(deliveries / writes, 1) if writes else 0,
        lag_ms=round(gauges["loop_lag_seconds"] * 1000, 1),
        queue_bytes=gauges["send_queue_bytes"],
        drops=round(drops, 1),
        uptime_seconds=round(max(0, now - gauges["start_time_seconds"]), 1),
        is_stale=is_stale,
    )


def _point(now: float, workers: list[WorkerFigures], rates: Counts) -> Point:
    pushes, deliveries, _, drops, *buckets = rates
    return Point(
        seconds=round(now, 1),
        connections=sum(worker.connections for worker in workers),
        pushes=round(pushes, 1),
        deliveries=round(deliveries, 1),
        p50_ms=_ms(quantile(buckets, 0.5)),
        p99_ms=_ms(quantile(buckets, 0.99)),
        drops=round(drops, 1),
        queue_bytes=sum(worker.queue_bytes for worker in workers),
        lags_ms=[(worker.worker, worker.lag_ms) for worker in workers],
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
