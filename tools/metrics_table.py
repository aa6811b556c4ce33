"""Print the table of docs/metrics.md from the names in fastpush/metrics.py: `python -m tools.metrics_table`.

A test compares the page with this output.
"""

import sys
from collections.abc import Iterable, Iterator

from fastpush.metrics import BROKER_METRICS, WORKER_METRICS, Metric


def render() -> str:
    """Return the table: first the figures that every worker has, then those of the broker and the host."""
    return "\n".join(
        [
            "| name | type | unit | labels | meaning | of the host |",
            "|---|---|---|---|---|---|",
            *_rows(WORKER_METRICS.values(), "worker"),
            *_rows(BROKER_METRICS.values(), ""),
        ]
    )


def _rows(metrics: Iterable[Metric], source_label: str) -> Iterator[str]:
    """Yield one row a name, with all values of its label."""
    by_name: dict[str, list[Metric]] = {}
    for metric in metrics:
        by_name.setdefault(metric.name, []).append(metric)
    for name, series in by_name.items():
        first = series[0]
        labels = [f"`{source_label}`"] if source_label else []
        if first.label in {"application", "version"}:  # it has any values
            labels.append(f"`{first.label}`")
        elif first.label:
            labels.append(f"`{first.label}`: {', '.join(metric.value for metric in series)}")
        across = _across(first) if source_label else "one"
        yield f"| `{name}` | {first.kind} | {first.unit} | {'; '.join(labels)} | {first.meaning} | {across} |"


def _across(metric: Metric) -> str:
    return "ratio of sums" if metric.unit == "messages" and metric.kind == "gauge" else metric.across


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
