"""Names of figures: one table for code, scrape and documentation."""

from dataclasses import fields

from fastpush.http.app import HostCollector
from fastpush.metrics import BROKER_METRICS, WORKER_METRICS, Counters, add_snapshots


def test_every_counter_has_a_name_outside() -> None:
    """The counts of a worker are exactly the counters of the table."""
    counters = {name for name, metric in WORKER_METRICS.items() if metric.kind == "counter"}
    assert {field.name for field in fields(Counters)} == counters


def test_names_follow_prometheus() -> None:
    """Counters end in _total, gauges do not, and one name has one kind and one label."""
    seen: dict[str, tuple[str, str]] = {}
    for metric in (*WORKER_METRICS.values(), *BROKER_METRICS.values()):
        assert metric.name.startswith("fastpush_") and metric.meaning.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert seen.setdefault(metric.name, (metric.kind, metric.label)) == (metric.kind, metric.label)


def test_a_dead_workers_counts_stay_in_the_sums() -> None:
    """What a worker counted before it died is shown as worker="gone", its gauges are not."""
    departed: dict[str, int] = {}
    add_snapshots(departed, {"deliveries": 5})
    add_snapshots(departed, {"deliveries": 7, "closes": 1})
    report = {
        "workers": {"4": {"counters": {"deliveries": 3}, "gauges": {"connections": 2}}},
        "departed": departed,
        "broker": {"routes": 9},
    }
    samples = {
        (sample.name, sample.labels.get("worker")): sample.value
        for family in HostCollector(report).collect()
        for sample in family.samples
    }
    assert samples["fastpush_deliveries_total", "gone"] == 12
    assert samples["fastpush_deliveries_total", "4"] == 3
    assert samples["fastpush_connections", "4"] == 2
    assert ("fastpush_connections", "gone") not in samples
    assert samples["fastpush_broker_routes", None] == 9
