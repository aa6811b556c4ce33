"""Figures: what is taken from the record of a run, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.records import Record, Spread, Value

_SETTLED_SECONDS = 30  # of a long load, after which memory is to stay what it is
_CLIENT_START_SECONDS = 1


@dataclass(frozen=True)
class Column:
    """A figure of every run. text: writes it, with its unit."""

    title: str
    value: Value
    text: Callable[[float], str]


# -- writing ------------------------------------------------------------------------


def _number(value: float) -> str:
    """Return three digits, without an exponent."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}"


def micros(value: float) -> str:
    return f"{_number(value)} µs"


def millis(value: float) -> str:
    return f"{_number(value)} ms"


def count(value: float) -> str:
    return f"{value:,.0f}"


def rate(value: float) -> str:
    return f"{value:,.0f}/s"


def kilobytes(value: float) -> str:
    return f"{_number(value)} KB"


def megabytes(value: float) -> str:
    return f"{_number(value)} MB"


def percent(value: float) -> str:
    return f"{value:.1f} %"


def times(value: float) -> str:
    return f"{_number(value)} x"


def over(spread: Spread, text: Callable[[float], str]) -> str:
    """Return a figure with its range over the rounds."""
    median, low, high = map(text, (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low} to {high})"


# -- taking -------------------------------------------------------------------------


def at(path: str, scale: float = 1) -> Value:
    """Return what takes a figure from the JSON of a run; see Record.get."""

    def value(record: Record) -> float | None:
        found = record.get(path)
        return None if found is None else found * scale

    return value


def lost(record: Record) -> float | None:
    """Return messages that did not arrive, and connections that the server closed; slow ones apart."""
    loads, closed = record.get("loads"), record.get("closed")
    return float(sum(load["lost"] for load in loads) + sum(closed.values())) if loads else None


def cpu_a_second(record: Record) -> float | None:
    """Return microseconds of CPU a second and connection."""
    spent, opened = record.get("server.cpu_seconds"), record.get("opening.opened")
    return spent / record.get("seconds") / opened * 1e6 if spent and opened else None


def closed(record: Record) -> float | None:
    """Return connections that the server closed."""
    found = record.get("closed")
    return None if found is None else float(sum(found.values()))


def answered(record: Record) -> float | None:
    """Return connection attempts of a storm that got an HTTP status."""
    answers = record.get("storm.answers")
    return None if answers is None else float(sum(number for answer, number in answers.items() if answer.isdecimal()))


def answered_a_second(record: Record) -> float | None:
    found = answered(record)
    return found / record.get("seconds") if found else None


def refused_percent(record: Record) -> float | None:
    """Return the share of answered attempts that were not taken."""
    found = answered(record)
    return 100 * (1 - record.get("storm.answers").get("101", 0) / found) if found else None


def skipped_percent(record: Record) -> float | None:
    """Return the share of attempts that the client did not make, since too many were under way."""
    answers, offered = record.get("storm.answers"), record.get("storm.offered")
    return 100 * answers.get("skipped", 0) / offered if offered else None


def cpu_an_answer(record: Record) -> float | None:
    found, spent = answered(record), record.get("server.cpu_seconds")
    return spent / found * 1e6 if found and spent else None


# -- watched runs -------------------------------------------------------------------


def memory_growth(record: Record) -> float | None:
    """Return by how many MB memory grew at most, from when all had connected."""
    samples, start = record.watched.get("samples"), record.get("server.memory_idle_bytes")
    return max(0.0, (max(size for _, size in samples) - start) / 1e6) if samples and start else None


def metric(name: str) -> Value:
    """Return what takes by how much a metric grew."""
    return lambda record: record.watched["metrics"].get(name, 0.0) if "metrics" in record.watched else None


def closes(code: str) -> Value:
    """Return what takes how many connections ended with a close code."""
    return lambda record: float(record.watched["closes"].get(code, 0)) if "closes" in record.watched else None


def memory_settled(record: Record) -> float | None:
    """Return MB after the first 30 s of the load, or half of a shorter one."""
    return _memory_at(record, min(_SETTLED_SECONDS, record.get("seconds") / 2)) if record.result else None


def memory_end(record: Record) -> float | None:
    """Return MB in the last second of the load."""
    return _memory_at(record, record.get("seconds") - 1) if record.result else None


def _memory_at(record: Record, seconds: float) -> float | None:
    samples = record.watched.get("samples")
    if not samples:
        return None
    begin = _CLIENT_START_SECONDS + record.get("opening.seconds") + record.get("settings.warm_up_seconds")
    _, size = min(samples, key=lambda sample: abs(sample[0] - begin - seconds))
    return float(size) / 1e6


def memory_growth_percent(record: Record) -> float | None:
    """Return by how much memory is more at the end than once it had settled."""
    first, last = memory_settled(record), memory_end(record)
    return (last / first - 1) * 100 if first and last else None


# -- columns ------------------------------------------------------------------------

CPU_A_DELIVERY = Column("CPU a delivery", at("server.cpu_us_per_delivery"), micros)
DELIVERIES = Column("deliveries", at("loads.0.deliveries_per_second"), rate)
CPU_A_PUSH = Column("CPU a push", at("server.cpu_us_per_push"), micros)
PUSHES = Column("pushes", at("loads.0.pushes_per_second"), rate)
P50 = Column("p50", at("loads.0.latency.p50_us", 1e-3), millis)
P99 = Column("p99", at("loads.0.latency.p99_us", 1e-3), millis)
P99_9 = Column("p99.9", at("loads.0.latency.p99_9_us", 1e-3), millis)
SMALL_P50 = Column("small pushes p50", at("loads.1.latency.p50_us", 1e-3), millis)
SMALL_P99 = Column("small pushes p99", at("loads.1.latency.p99_us", 1e-3), millis)
SMALL_P99_9 = Column("small pushes p99.9", at("loads.1.latency.p99_9_us", 1e-3), millis)
LOST = Column("lost or closed", lost, count)
CLOSED = Column("closed", closed, count)
CLIENT_BUSY = Column("client busy", at("client.busy.0", 100), lambda value: f"{value:.0f} %")
MEMORY = Column("memory a connection", at("server.memory_per_connection_bytes", 1e-3), kilobytes)
EMPTY_MEMORY = Column("without connections", at("server.memory_before_bytes", 1e-6), megabytes)
CPU_A_SECOND = Column("CPU a second and connection", cpu_a_second, micros)
CPU_A_CONNECT = Column("CPU a connect", at("opening.cpu_us_per_connect"), micros)
CONNECTS = Column("connects", at("opening.connects_per_second"), rate)
CONNECT_FAILURES = Column("failed", at("opening.failed"), count)
MEMORY_GROWTH = Column("memory growth", memory_growth, megabytes)
CLOSED_1013 = Column("closed with 1013", closes("1013"), count)
DROPPED_SLOW = Column("dropped, slow", metric('fastpush_drops_total{reason="slow"}'), count)
DROPPED_OLDEST = Column("dropped, oldest", metric('fastpush_drops_total{reason="oldest"}'), count)
MEMORY_GROWTH_PERCENT = Column("memory growth", memory_growth_percent, percent)
MEMORY_SETTLED = Column("after 30 s", memory_settled, megabytes)
MEMORY_END = Column("at the end", memory_end, megabytes)
RECONNECTS = Column("reconnects", at("churned"), count)
CPU_AN_ANSWER = Column("CPU an answered attempt", cpu_an_answer, micros)
ANSWERED = Column("answered attempts", answered_a_second, rate)
SKIPPED = Column("not made by the client", skipped_percent, percent)
REFUSED = Column("refused", refused_percent, percent)
