"""fastpush.state.series: rates are what workers counted, once each; percentiles are Prometheus'; points are small."""

import json
from bisect import bisect_left
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.metrics import LATENCY_BOUNDS_SECONDS, Counters, Figure, add_snapshots
from fastpush.protocol.insight import Point, WorkerFigures
from fastpush.state.series import Series, quantile

NOW = 1_764_000_000.0  # Unix time; a worker's measured_seconds are of another clock
BOUNDS = LATENCY_BOUNDS_SECONDS


class Worker:
    """One worker as the broker sees it. started: how long before NOW."""

    def __init__(self, slot: int = 0, started: float = 100.0) -> None:
        self.counters = Counters()
        self.gauges: dict[str, Any] = {
            "slot": slot,
            "pid": 1000 + slot,
            "connections": 10,
            "slow_connections": 1,
            "send_queue_bytes": 500,
            "loop_lag_seconds": 0.00123,
            "start_time_seconds": NOW - started,
            "measured_seconds": 50.0,
        }

    def measured(self, seconds: float, **more: int) -> dict[str, Any]:
        """Return the snapshot of `seconds` later, with so much more counted."""
        self.gauges["measured_seconds"] += seconds
        for name, count in more.items():
            setattr(self.counters, name, getattr(self.counters, name) + count)
        return {"counters": self.counters.snapshot(), "gauges": dict(self.gauges)}


def measure(
    series: Series, seconds: float, workers: dict[int, Any], departed: dict[str, Figure] | None = None
) -> tuple[Point, list[WorkerFigures]]:
    return series.measure(NOW + seconds, workers, departed or {})


def test_rates_are_what_was_counted_over_the_time_between() -> None:
    """Differences of two snapshots over what the worker's own clock says is between them, whenever they are read."""
    series, worker = Series(), Worker()
    measure(series, 0, {1: worker.measured(0, deliveries=5000, pushes_delivered=70)})
    point, (figures,) = measure(
        series,
        1.5,
        {
            1: worker.measured(
                1.25,
                deliveries=1000,
                writes=400,
                pushes_delivered=1,
                pushes_unconfirmed=2,
                publications_delivered=3,
                publications_unconfirmed=4,
                pushes_refused=100,
                pushes_unknown=100,
                drops_slow=1,
                drops_oldest=2,
                drops_latest=3,
                drops_lost=4,
            )
        },
    )
    assert (point.deliveries, point.pushes, point.drops) == (800.0, 8.0, 8.0)
    assert (figures.deliveries, figures.pushes, figures.drops) == (800.0, 8.0, 8.0)
    assert figures.gathering == 2.5


def test_figures_of_a_worker() -> None:
    """What is not counted comes from the gauges: by slot, in milliseconds, uptime by the wall clock."""
    series = Series()
    workers = {7: Worker(slot=2).measured(0), 9: Worker(slot=1, started=3600.5).measured(0)}
    point, figures = measure(series, 0, workers)
    assert figures[0] == WorkerFigures(
        slot=1, worker=9, pid=1001, connections=10, slow_connections=1, pushes=0, deliveries=0, gathering=0, lag_ms=1.2,
        queue_bytes=500, drops=0, uptime_seconds=3600.5, is_stale=False,
    )  # fmt: skip
    assert [worker.worker for worker in figures] == [9, 7]
    assert point == Point(NOW, 20, 0, 0, None, None, 0, 1000, [(9, 1.2), (7, 1.2)])


def test_the_host_is_the_sum_of_its_workers() -> None:
    """Connections, rates and queues add up; latencies are of all pushes together."""
    series, one, other = Series(), Worker(0), Worker(1)
    measure(series, 0, {1: one.measured(0), 2: other.measured(0)})
    for _ in range(3):
        one.counters.push_latency.observe(0.002)
    other.counters.push_latency.observe(2.0)
    point, _ = measure(series, 1, {1: one.measured(1, deliveries=30), 2: other.measured(2, deliveries=40)})
    assert (point.connections, point.deliveries, point.queue_bytes) == (20, 50.0, 1000)
    assert point.p50_ms == pytest.approx(1 + 1.5 * 2 / 3)
    assert point.p99_ms == pytest.approx(1000 + 1500 * 0.96)


def test_percentiles_are_of_the_last_second() -> None:
    """What pushes took before it is forgotten; without a push there is no percentile."""
    series, worker = Series(), Worker()
    worker.counters.push_latency.observe(1.0)
    measure(series, 0, {1: worker.measured(0)})
    assert measure(series, 1, {1: worker.measured(1)})[0].p50_ms is None
    worker.counters.push_latency.observe(0.0001)
    point, _ = measure(series, 2, {1: worker.measured(1)})
    assert (point.p50_ms, point.p99_ms) == (0.25, 0.49)


def test_without_a_newer_snapshot_the_last_rates_stand() -> None:
    """For two seconds; then the worker is stale and its rates are nothing, but its gauges stay."""
    series, worker = Series(), Worker()
    measure(series, 0, {1: worker.measured(0)})
    last = worker.measured(1, deliveries=60)
    seen = [measure(series, seconds, {1: last}) for seconds in (1, 2, 3, 3.1)]
    assert [point.deliveries for point, _ in seen] == [60, 60, 60, 0]
    assert [figures.is_stale for _, (figures,) in seen] == [False, False, False, True]
    assert seen[-1][0].connections == 10


def test_a_worker_that_measures_again_is_not_stale() -> None:
    """What it did meanwhile is spread over all of the time in which it did not measure."""
    series, worker = Series(), Worker()
    last = worker.measured(0)
    for second in range(5):
        measure(series, second, {1: last})
    point, (figures,) = measure(series, 5, {1: worker.measured(5, deliveries=100)})
    assert (point.deliveries, figures.is_stale) == (20.0, False)


def test_snapshots_that_are_too_close_make_no_rates() -> None:
    """A scrape between two seconds brings one early: what lies just behind it is counted with the next second."""
    series, worker = Series(), Worker()
    measure(series, 0, {1: worker.measured(0)})
    assert measure(series, 1, {1: worker.measured(1, deliveries=10)})[0].deliveries == 10
    assert measure(series, 2, {1: worker.measured(0.01, deliveries=10)})[0].deliveries == 10
    assert measure(series, 3, {1: worker.measured(1.99, deliveries=10)})[0].deliveries == 10


def test_a_worker_that_has_just_started_counts_from_its_start() -> None:
    """All that it has counted is of this second, or of its age when that is more; an old one's is of who knows when."""
    for started, rate in ((0.25, 30), (1.5, 20), (2.0, 0), (100.0, 0)):
        point, _ = measure(Series(), 0, {1: Worker(started=started).measured(0, deliveries=30)})
        assert point.deliveries == rate


@pytest.mark.parametrize("snapshot", [{}, {"gauges": {"broker_queue_bytes": 5}}])
def test_a_worker_without_a_snapshot_is_left_out(snapshot: dict[str, Any]) -> None:
    """One that has not measured yet has no figures, and takes nothing from the others'."""
    series = Series()
    point, figures = measure(series, 0, {1: snapshot, 2: Worker().measured(0)})
    assert [worker.worker for worker in figures] == [2]
    assert point.connections == 10
    assert measure(series, 1, {1: snapshot})[1] == []


def test_what_a_worker_did_at_its_end_is_counted_once() -> None:
    """Its last counters come among those of ended workers: what is new in them is of this second, and nothing else."""
    series, worker, other = Series(), Worker(), Worker(1)
    workers = {1: worker.measured(0, deliveries=5000), 2: other.measured(0)}
    departed: dict[str, Figure] = {}
    add_snapshots(departed, Worker().measured(0, deliveries=700)["counters"])
    measure(series, 0, workers, departed)
    worker.counters.push_latency.observe(0.0001)
    add_snapshots(departed, worker.measured(0.3, deliveries=40, pushes_delivered=3, drops_lost=2)["counters"])
    point, figures = measure(series, 1, {2: other.measured(1, deliveries=5)}, departed)
    assert (point.deliveries, point.pushes, point.drops) == (45, 3, 2)
    assert point.p50_ms == 0.25
    assert [figures.worker for figures in figures] == [2]
    point, _ = measure(series, 2, {2: other.measured(1)}, departed)
    assert (point.deliveries, point.p50_ms) == (0, None)


def test_a_worker_that_vanishes_without_its_counts_takes_nothing_away() -> None:
    """One whose counters are lost makes no rate negative, and when it comes back it does not count twice."""
    series, worker = Series(), Worker()
    measure(series, 0, {1: worker.measured(0, deliveries=5000)})
    assert measure(series, 1, {})[0].deliveries == 0
    assert measure(series, 2, {1: worker.measured(2, deliveries=40)})[0].deliveries == 0
    assert measure(series, 3, {1: worker.measured(1, deliveries=40)})[0].deliveries == 40


def test_counts_of_a_worker_that_was_in_no_point_are_left_out() -> None:
    """Behind a broker's restart an old worker may end before its first point: its life is not one second's work."""
    departed: dict[str, Figure] = {}
    series = Series()
    measure(series, 0, {}, departed)
    add_snapshots(departed, Worker().measured(0, deliveries=1_000_000)["counters"])
    assert measure(series, 1, {}, departed)[0].deliveries == 0


turns = st.dictionaries(st.integers(0, 3), st.tuples(st.integers(0, 50), st.booleans()))  # deliveries, whether it ends


@settings(max_examples=100)
@given(st.lists(turns, max_size=20))
def test_every_delivery_is_in_one_point(story: list[dict[int, tuple[int, bool]]]) -> None:
    """However workers come, count and end: second by second, the points hold all that was counted, and no more."""
    series, departed = Series(), dict[str, Figure]()
    alive: dict[int, tuple[int, Worker]] = {}  # by slot: the process
    snapshots: dict[int, Any] = {}
    counted = told = 0.0
    for second, turn in enumerate(story):
        for slot, (deliveries, ends) in turn.items():
            is_new = slot not in alive
            number, worker = alive.setdefault(slot, (100 * second + slot, Worker(slot, started=-second)))
            counted += deliveries
            snapshots[number] = worker.measured(1, deliveries=deliveries)
            if ends and not is_new:
                add_snapshots(departed, snapshots.pop(number)["counters"])
                del alive[slot]
        for slot, (number, worker) in alive.items():
            if slot not in turn:
                snapshots[number] = worker.measured(1)
        point, figures = measure(series, second, snapshots, departed)
        told += point.deliveries
        assert {figure.worker for figure in figures} == snapshots.keys()
        assert min([point.deliveries, *(figure.deliveries for figure in figures)]) >= 0
    assert told == counted


# -- percentiles ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buckets", "q", "seconds"),
    [
        ([4, *[0] * 12], 0.5, 0.00025),
        ([4, *[0] * 12], 1.0, 0.0005),
        ([1, 1, *[0] * 11], 0.5, 0.0005),
        ([1, 0, 1, *[0] * 10], 0.75, 0.00175),
        ([*[0] * 11, 10, 0], 0.99, 1.0 + 1.5 * 0.99),
        ([*[0] * 12, 3], 0.5, 2.5),
        ([1, *[0] * 11, 99], 0.99, 2.5),
    ],
)
def test_quantiles(buckets: list[float], q: float, seconds: float) -> None:
    """From 0 in the first bucket, linear within each, and the highest bound in the one without an end."""
    assert quantile(buckets, q) == pytest.approx(seconds)


def test_no_quantile_of_nothing() -> None:
    """Empty buckets have none."""
    assert quantile([0] * 13, 0.5) is None


def naive(buckets: list[int], q: float) -> float:
    """Return it by laying every single observation evenly into its bucket, the last one at its upper bound."""
    values = []
    for start, end, count in zip((0.0, *BOUNDS), (*BOUNDS, BOUNDS[-1]), buckets, strict=True):
        values += [(start, start + (end - start) * (place + 1) / count) for place in range(count)]
    place = q * len(values)
    before = int(place)
    if before == place:
        return values[before - 1][1]
    start, end = values[before]
    same = before > 0 and values[before - 1][0] == start
    low = values[before - 1][1] if same else start
    return low + (end - low) * (place - before)


@settings(max_examples=300)
@given(st.lists(st.integers(0, 6), min_size=13, max_size=13).filter(any), st.integers(1, 64))
def test_quantile_is_that_of_evenly_spread_observations(buckets: list[int], part: int) -> None:
    """For any buckets and share it is what one finds by counting off observations, evenly laid into each bucket."""
    assert quantile(buckets, part / 64) == pytest.approx(naive(buckets, part / 64))


@settings(max_examples=100)
@given(st.lists(st.floats(0, 2.5), min_size=1, max_size=50), st.floats(0.01, 1))
def test_quantile_is_in_the_bucket_of_the_true_one(durations: list[float], q: float) -> None:
    """The estimate is never in another bucket than the observation that it stands for."""
    histogram = Counters().push_latency
    for duration in durations:
        histogram.observe(duration)
    rank = next(rank for rank in range(1, len(durations) + 1) if rank >= q * len(durations))
    true = sorted(durations)[rank - 1]
    estimate = quantile(histogram.figures()[:-1], q)
    assert estimate is not None
    bucket = bisect_left(BOUNDS, true)
    assert (0, *BOUNDS)[bucket] <= estimate <= BOUNDS[bucket]


# -- the last hour -------------------------------------------------------------------------


def test_points_are_kept_encoded_the_newest_ones() -> None:
    """encoded() is the JSON list of the last points_max points, the oldest first; of none, an empty list. Of more than
    fit into the bytes that are asked for the newest are told.
    """
    series = Series(points_max=3)
    assert series.encoded(10_000) == b"[]"
    points = [Point(NOW + second, 1, 2.0, 3.0, None, 4.5, 0.0, 0, [(1, 0.1)]) for second in range(5)]
    for point in points:
        series.append(point)
    assert msgspec.json.decode(series.encoded(10_000), type=list[Point]) == points[2:]
    for bytes_max in range(-1, 200):
        told = series.encoded(bytes_max)
        found = msgspec.json.decode(told, type=list[Point])
        assert found == points[5 - len(found) :] and (len(told) <= bytes_max or not found)
        assert len(found) == 3 or len(told) + len(msgspec.json.encode(points[0])) + 1 > bytes_max


def test_a_point_takes_about_100_bytes() -> None:
    """Figures are rounded: a busy host's point with four workers takes less than 120 bytes."""
    series, workers = Series(), [Worker(slot) for slot in range(4)]
    for second in range(2):
        for worker in workers:
            for _ in range(1000):
                worker.counters.push_latency.observe(0.00123)
        snapshots = {
            number: worker.measured(1.003, deliveries=123_456, pushes_delivered=3_333)
            for number, worker in enumerate(workers)
        }
        series.append(measure(series, second * 1.0071, snapshots)[0])
    assert json.loads(series.encoded(10_000))[1][3] == 492347.0
    assert len(series.encoded(10_000)) / 2 < 120
