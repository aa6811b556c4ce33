"""The host's figures as Prometheus reads them: one report of the broker, rendered by prometheus-client."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fastpush import metrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
_BOUNDS = [*(str(bound) for bound in metrics.LATENCY_BOUNDS_SECONDS), "+Inf"]


def exposition(report: bytes, *, summed: bool) -> bytes:
    """Return the body of an answer to /metrics. report: see the broker's router.  summed: see HostCollector."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(HostCollector(orjson.loads(report), summed=summed))
    return generate_latest(registry)


class HostCollector(Collector):
    """Renders one report of the broker: every figure per worker, the counts of those that ended as worker="gone".

    summed: one figure for the host instead, without that label.
    """

    def __init__(self, report: Mapping[str, Any], *, summed: bool = False) -> None:
        self._report = report
        self._summed = summed

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the report."""
        report = self._report
        by_worker: dict[str, dict[str, metrics.Figure]] = {
            number: {**snapshot.get("counters", {}), **snapshot.get("gauges", {})}
            for number, snapshot in report["workers"].items()
        }
        if report["departed"]:
            by_worker["gone"] = report["departed"]
        if self._summed:
            by_worker = {"": metrics.host_figures(by_worker.values())}
        for figures in by_worker.values():
            if "second_writes" in figures:
                figures["gathering"] = _ratio(figures["second_deliveries"], figures["second_writes"])
        yield from _families(metrics.WORKER_METRICS, by_worker, () if self._summed else ("worker",))
        broker = {**report["broker"], "build": 1, "stale_workers": len(report["stale"])}
        yield from _families(metrics.BROKER_METRICS, {"": broker}, ())


def _ratio(messages: Any, writes: Any) -> float:
    return round(messages / writes, 3) if writes else 0


def _families(
    table: Mapping[str, metrics.Metric],
    sources: Mapping[str, Mapping[str, metrics.Figure]],
    source_label: tuple[str, ...],
) -> Iterator[Metric]:
    families: dict[str, Any] = {}
    for attribute, metric in table.items():
        family = families.get(metric.name)
        if family is None:
            labels = (*source_label, metric.label) if metric.label else source_label
            family = families[metric.name] = _FAMILIES[metric.kind](metric.name, metric.meaning, labels=labels)
        for source, figures in sources.items():
            value = figures.get(attribute)
            if value is None:
                continue
            labels = (source,) if source_label else ()
            if isinstance(value, dict):
                for name, number in value.items():
                    family.add_metric((*labels, name), number)
            elif isinstance(value, list):
                counts = accumulate(value[:-1])
                family.add_metric(labels, list(zip(_BOUNDS, counts, strict=True)), value[-1])
            else:
                family.add_metric((*labels, metric.value) if metric.label else labels, value)
    yield from families.values()
