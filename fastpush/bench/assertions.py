"""Conditions on a result, like "p99<20ms": parsed before the run, judged after it."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from fastpush.bench.results import LoadResult, Result
from fastpush.errors import ConfigError

_LATENCIES = {
    "p50": "p50_us", "p75": "p75_us", "p90": "p90_us", "p99": "p99_us", "p99.9": "p99_9_us", "max": "max_us",
    "mean": "mean_us",
}  # fmt: skip
_LOAD_COUNTS = (
    "lost", "duplicated", "reordered", "refused", "errors", "unsent", "pushes", "deliveries", "pushes_per_second",
    "deliveries_per_second",
)  # fmt: skip
_COUNTS = (*_LOAD_COUNTS, *(f"background_{name}" for name in _LOAD_COUNTS), "connections", "failed", "closed")
_TIMES = (
    *_LATENCIES, *(f"background_{name}" for name in _LATENCIES), "cpu_per_delivery", "cpu_per_push", "cpu_per_connect",
)  # fmt: skip
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq,
}  # fmt: skip
_UNITS = {
    "time": {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6},
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6},
    "count": {"": 1.0},
}
_KINDS = {
    **dict.fromkeys(_TIMES, "time"),
    **dict.fromkeys(_COUNTS, "count"),
    "connects_per_second": "count",
    "memory_per_connection": "bytes",
}
_SHAPE = re.compile(r"\s*([a-z0-9_.]+)\s*(<=|>=|<|>|=)\s*(\d+(?:\.\d+)?)\s*([A-Za-zµ]*)\s*")


@dataclass(frozen=True)
class Assertion:
    """A condition. limit: in microseconds, bytes, or a count.  text: as it was written."""

    text: str
    metric: str
    operator: str
    limit: float

    def failure(self, figures: dict[str, float | None]) -> str | None:
        """Return what is wrong; None: it holds."""
        value = figures[self.metric]
        if value is None:
            return f"{self.text}: there is no {self.metric} in this run"
        if _OPERATORS[self.operator](value, self.limit):
            return None
        return f"{self.text}: it was {shown(self.metric, value)}"


def parse(text: str) -> list[Assertion]:
    """Return the conditions in a list with commas. Raises: ConfigError, which names what is allowed."""
    return [_parse_one(part.strip()) for part in text.split(",")]


def _parse_one(text: str) -> Assertion:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--assert {text!r} is not of the form METRIC < VALUE; operators are < <= > >= =")
    metric, sign, number, unit = match.groups()
    if metric not in _KINDS:
        raise ConfigError(f"--assert {text!r}: no metric is called {metric!r}; there are: {', '.join(_KINDS)}")
    units = _UNITS[_KINDS[metric]]
    if unit not in units:
        allowed = ", ".join(units) if "" not in units else "no unit"
        raise ConfigError(f"--assert {text!r}: {metric} is written with {allowed}")
    return Assertion(text, metric, sign, float(number) * units[unit])


def figures(result: Result) -> dict[str, float | None]:
    """Return every metric of a run; None: it has none."""
    server = result.server
    found: dict[str, float | None] = dict.fromkeys(_KINDS)
    found |= {
        "connections": result.opening.opened,
        "failed": result.opening.failed,
        "closed": sum(result.closed.values()),
        "connects_per_second": result.opening.connects_per_second,
        "cpu_per_connect": result.opening.cpu_us_per_connect,
        "cpu_per_push": server.cpu_us_per_push if server is not None else None,
        "cpu_per_delivery": server.cpu_us_per_delivery if server is not None else None,
        "memory_per_connection": server.memory_per_connection_bytes if server is not None else None,
    }
    for load in result.loads:
        found |= _load_figures("background_" if load.name == "background" else "", load)
    return found


def _load_figures(prefix: str, load: LoadResult) -> dict[str, float | None]:
    found: dict[str, float | None] = {prefix + name: getattr(load, name) for name in _LOAD_COUNTS}
    if load.latency is not None:
        found |= {prefix + name: getattr(load.latency, attribute) for name, attribute in _LATENCIES.items()}
    return found


def shown(metric: str, value: float) -> str:
    """Return a metric's value with its unit."""
    match _KINDS[metric]:
        case "time":
            return f"{value:,.2f} µs" if value < 1000 else f"{value / 1000:,.2f} ms"  # noqa: PLR2004
        case "bytes":
            return f"{value:,.0f} B"
        case _:
            return f"{value:,.10g}"
