"""Names of figures: one table for code, scrape and documentation."""

import gc
from dataclasses import fields
from typing import Any

import pytest

from fastpush.http.exposition import HostCollector
from fastpush.metrics import (
    BROKER_METRICS,
    LATENCY_BOUNDS_SECONDS,
    WORKER_METRICS,
    Counters,
    Figure,
    Histogram,
    add_snapshots,
)
from fastpush.worker.gauges import CollectorPauses

Samples = dict[tuple[str, str | None], float]


def report(departed: dict[str, Figure] | None = None, stale: list[int] | None = None, **workers: Any) -> dict[str, Any]:
    """What the broker reports; a worker's figures are counters where the table says so, else gauges."""
    snapshots = {
        number.removeprefix("w"): {
            "counters": {name: value for name, value in figures.items() if name in Counters.__slots__},
            "gauges": {name: value for name, value in figures.items() if name not in Counters.__slots__},
        }
        for number, figures in workers.items()
    }
    return {"workers": snapshots, "departed": departed or {}, "stale": stale or [], "broker": {"routes": 9}}


def samples(of: dict[str, Any], *, summed: bool = False) -> Samples:
    families = HostCollector(of, summed=summed).collect()
    return {
        (sample.name + sample.labels.get("le", ""), sample.labels.get("worker")): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_counter_has_a_name_outside() -> None:
    """The counts of a worker are exactly the counters and histograms of the table."""
    counters = {name for name, metric in WORKER_METRICS.items() if metric.kind != "gauge"}
    assert {field.name for field in fields(Counters)} == counters == set(Counters().snapshot())


def test_names_follow_prometheus() -> None:
    """Counters end in _total, what is measured in seconds or bytes says so, and one name has one kind and one label."""
    seen: dict[str, tuple[str, str]] = {}
    for metric in (*WORKER_METRICS.values(), *BROKER_METRICS.values()):
        assert metric.name.startswith("fastpush_") and metric.meaning.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        base = metric.name.removesuffix("_total")
        assert all(base.endswith(f"_{unit}") == (metric.unit == unit) for unit in ("seconds", "bytes"))
        assert seen.setdefault(metric.name, (metric.kind, metric.label)) == (metric.kind, metric.label)


def test_a_dead_workers_counts_stay_in_the_sums() -> None:
    """What a worker counted before it died is shown as worker="gone", its gauges are not."""
    departed: dict[str, Figure] = {}
    add_snapshots(departed, {"deliveries": 5})
    add_snapshots(departed, {"deliveries": 7, "closes": 1})
    found = samples(report(departed, w4={"deliveries": 3, "connections": 2}))
    assert found["fastpush_deliveries_total", "gone"] == 12
    assert found["fastpush_deliveries_total", "4"] == 3
    assert found["fastpush_connections", "4"] == 2
    assert ("fastpush_connections", "gone") not in found
    assert found["fastpush_broker_routes", None] == 9


def test_figures_of_the_host() -> None:
    """Summed, counts and queues are sums, lag and pauses the worst, the start the first; nothing names a worker."""
    one = {"deliveries": 3, "connections": 2, "loop_lag_seconds": 0.25, "start_time_seconds": 900.5}
    two = {"deliveries": 4, "connections": 5, "loop_lag_seconds": 0.125, "start_time_seconds": 800.5}
    found = samples(report({"deliveries": 100}, w1=one, w2=two), summed=True)
    assert {worker for _, worker in found} == {None}
    assert found["fastpush_deliveries_total", None] == 107
    assert found["fastpush_connections", None] == 7
    assert found["fastpush_loop_lag_seconds", None] == 0.25
    assert found["fastpush_worker_start_time_seconds", None] == 800.5


def test_gathering_of_the_host_weighs_by_writes() -> None:
    """Messages per write is a ratio of sums, and 0 where nothing is written."""
    one, two = {"second_deliveries": 90, "second_writes": 10}, {"second_deliveries": 0, "second_writes": 0}
    three = {"second_deliveries": 30, "second_writes": 30}
    each = samples(report(w1=one, w2=two, w3=three))
    assert [each["fastpush_messages_per_write", worker] for worker in "123"] == [9, 0, 1]
    assert samples(report(w1=one, w2=two, w3=three), summed=True)["fastpush_messages_per_write", None] == 3


def test_figures_by_application() -> None:
    """Each application is a label's value: of each worker, and of the host the worst; a worker may lack one."""
    one = {"handler_longest_seconds": {"/chat": 0.25, "/echo": 0.5}}
    two = {"handler_longest_seconds": {"/chat": 0.75}}

    def found(*, summed: bool) -> dict[tuple[str | None, str], float]:
        return {
            (sample.labels.get("worker"), sample.labels["application"]): sample.value
            for family in HostCollector(report(w1=one, w2=two), summed=summed).collect()
            for sample in family.samples
            if sample.name == "fastpush_handler_longest_seconds"
        }

    assert found(summed=False) == {("1", "/chat"): 0.25, ("1", "/echo"): 0.5, ("2", "/chat"): 0.75}
    assert found(summed=True) == {(None, "/chat"): 0.75, (None, "/echo"): 0.5}


def test_stale_workers_are_counted() -> None:
    """Who did not measure in time is told of by their number."""
    assert samples(report(stale=[3, 4], w3={"closes": 1}))["fastpush_stale_workers", None] == 2


def test_a_duration_counts_in_the_bucket_whose_bound_it_does_not_exceed() -> None:
    """At a bound, just above it, and above all; each value in one bucket."""
    for position, bound in enumerate(LATENCY_BOUNDS_SECONDS):
        histogram = Histogram()
        histogram.observe(bound)
        histogram.observe(bound * 1.001)
        assert [at for at, count in enumerate(histogram.buckets) if count] == [position, position + 1]
    assert histogram.sum_seconds == pytest.approx(2.5 * 2.001)


def test_the_histogram_is_rendered_cumulative_and_summed_by_bucket() -> None:
    """Buckets rise to the count; those of ended workers stay in the sum."""
    one, gone = Histogram(), Histogram()
    for seconds in (0.0001, 0.0007, 0.0007, 9.0):
        one.observe(seconds)
    gone.observe(0.0002)
    departed: dict[str, Figure] = {"push_latency": gone.figures()}
    add_snapshots(departed, {"push_latency": gone.figures()})
    of = report(departed, w1={"push_latency": one.figures()})
    each, host = samples(of), samples(of, summed=True)
    name = "fastpush_push_latency_seconds"
    assert each[f"{name}_bucket0.0005", "1"] == 1
    assert each[f"{name}_bucket0.001", "1"] == each[f"{name}_bucket2.5", "1"] == 3
    assert each[f"{name}_bucket+Inf", "1"] == each[f"{name}_count", "1"] == 4
    assert each[f"{name}_sum", "1"] == pytest.approx(9.0015)
    assert each[f"{name}_count", "gone"] == 2
    assert host[f"{name}_bucket0.0005", None] == 3 and host[f"{name}_count", None] == 6


def test_collections_are_counted_and_timed() -> None:
    """Each garbage collection counts once with its duration; the longest is forgotten after two seconds."""
    counters = Counters()
    pauses = CollectorPauses(counters)
    pauses.start()
    assert gc.callbacks.pop() == pauses.on_phase
    for _ in range(3):
        pauses.on_phase("start", {})
        pauses.on_phase("stop", {})
    assert counters.gc_collections == 3
    assert 0 < pauses.longest_seconds.value <= counters.gc_pause_seconds
    pauses.longest_seconds.end_second()
    assert pauses.longest_seconds.value > 0
    pauses.longest_seconds.end_second()
    assert pauses.longest_seconds.value == 0
