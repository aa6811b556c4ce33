"""Verdicts: what is compared with a scenario's target, and whether it is met."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from bench import figures
from bench.figures import Column, over, times
from bench.records import Runs, Spread
from bench.servers import FASTPUSH, LABELS, LIMIT, PEERS


@dataclass(frozen=True)
class Verdict:
    """What is compared with the target. met: None where something was not measured."""

    figure: str
    met: bool | None


Judge = Callable[[Runs], Verdict]
NOT_MEASURED = Verdict("not measured", None)


def best_peer(runs: Runs, column: Column, case: str, *, low_is_good: bool) -> tuple[str, Spread] | None:
    """Return the peer that fastpush compares worst with, and fastpush's figure as a multiple of its."""
    found = [(name, runs.ratio(column.value, (case, FASTPUSH), (case, name))) for name in PEERS]
    known = [(name, ratio) for name, ratio in found if ratio is not None]
    pick = max if low_is_good else min
    return pick(known, key=lambda pair: pair[1].median) if known else None


def _multiple(ratio: Spread, server: str) -> str:
    return f"{over(ratio, times)} {LABELS[server]}"


def against_limit_and_peers(column: Column, *, most: float) -> Judge:
    """At most `most` times the limit, and below every peer."""

    def verdict(runs: Runs) -> Verdict:
        limit = runs.ratio(column.value, ("", FASTPUSH), ("", LIMIT))
        peer = best_peer(runs, column, "", low_is_good=True)
        if limit is None or peer is None:
            return NOT_MEASURED
        text = f"{_multiple(limit, LIMIT)}; {_multiple(peer[1], peer[0])}"
        return Verdict(text, limit.median <= most and peer[1].median < 1)

    return verdict


def above_limit_and_peers(column: Column, *, least: float) -> Judge:
    """At least `least` times the limit and the best peer."""

    def verdict(runs: Runs) -> Verdict:
        limit = runs.ratio(column.value, ("", FASTPUSH), ("", LIMIT))
        peer = best_peer(runs, column, "", low_is_good=False)
        if limit is None or peer is None:
            return NOT_MEASURED
        text = f"{_multiple(limit, LIMIT)}; {_multiple(peer[1], peer[0])}"
        return Verdict(text, min(limit.median, peer[1].median) >= least)

    return verdict


def below_peers(column: Column, *, most: float = math.inf) -> Judge:
    """Below every peer, and at most `most`."""

    def verdict(runs: Runs) -> Verdict:
        own = runs.spread(column.value, "", FASTPUSH)
        peer = best_peer(runs, column, "", low_is_good=True)
        if own is None or peer is None:
            return NOT_MEASURED
        text = f"{over(own, column.text)}; {_multiple(peer[1], peer[0])}"
        return Verdict(text, own.median <= most and peer[1].median < 1)

    return verdict


def at_most(column: Column, most: float) -> Judge:
    """At most `most`."""

    def verdict(runs: Runs) -> Verdict:
        own = runs.spread(column.value, "", FASTPUSH)
        return NOT_MEASURED if own is None else Verdict(over(own, column.text), own.median <= most)

    return verdict


def against(column: Column, case: str, server: str, *, below: float) -> Judge:
    """Below `below` times another server's."""

    def verdict(runs: Runs) -> Verdict:
        own = runs.spread(column.value, case, FASTPUSH)
        ratio = runs.ratio(column.value, (case, FASTPUSH), (case, server))
        if own is None or ratio is None:
            return NOT_MEASURED
        return Verdict(f"{over(own, column.text)}; {_multiple(ratio, server)}", ratio.median < below)

    return verdict


def slow(queue_bytes: int) -> Judge:
    """The others do not notice, every stopped client is closed and counted, memory stays bounded."""

    def verdict(runs: Runs) -> Verdict:
        ratio = runs.ratio(figures.P99.value, ("disconnect", FASTPUSH), ("none slow", FASTPUSH))
        growth = runs.spread(figures.memory_growth, "disconnect", FASTPUSH)
        usual = runs.spread(figures.memory_growth, "none slow", FASTPUSH)
        if ratio is None or growth is None or usual is None:
            return NOT_MEASURED
        records = [record for record in runs.of("disconnect", FASTPUSH) if record.result is not None]
        stopped = int(records[0].get("settings.slow"))
        are_closed = all(
            figures.CLOSED_1013.value(record) == stopped and figures.DROPPED_SLOW.value(record) for record in records
        )
        extra, bound = growth.median - usual.median, stopped * queue_bytes / 1e6
        text = (
            f"p99 {over(ratio, times)}; {'all' if are_closed else 'not all'} {stopped} closed with 1013 and counted; "
            f"{figures.megabytes(extra)} more memory, bound {figures.megabytes(bound)}"
        )
        return Verdict(text, ratio.median <= 1.2 and are_closed and extra <= bound)

    return verdict


def churn(runs: Runs) -> Verdict:
    """Memory within 5 %, nothing lost."""
    growth = runs.spread(figures.memory_growth_percent, "", FASTPUSH)
    lost = runs.spread(figures.lost, "", FASTPUSH)
    if growth is None or lost is None:
        return NOT_MEASURED
    return Verdict(f"{over(growth, figures.percent)}; {lost.high:,.0f} lost", growth.high <= 5 and not lost.high)


def storm(runs: Runs) -> Verdict:
    """p99 of the established at most 20 ms, none lost or closed, at most 60 µs a refused handshake."""
    p99 = runs.spread(figures.P99.value, "beside clients", FASTPUSH)
    lost = runs.spread(figures.lost, "beside clients", FASTPUSH)
    cost = runs.spread(figures.cpu_an_answer, "refused", FASTPUSH)
    if p99 is None or lost is None or cost is None:
        return NOT_MEASURED
    text = (
        f"p99 {over(p99, figures.millis)}; {lost.high:,.0f} lost or closed; "
        f"{over(cost, figures.micros)} a refused handshake"
    )
    return Verdict(text, p99.median <= 20 and not lost.high and cost.median <= 60)


def scaling(runs: Runs) -> Verdict:
    """Two workers are not slower than one."""
    factors = {
        mode: runs.ratio(figures.DELIVERIES.value, (f"{mode}, 2 workers", FASTPUSH), (f"{mode}, 1 worker", FASTPUSH))
        for mode in ("fan-out", "unicast")
    }
    known = {mode: factor for mode, factor in factors.items() if factor is not None}
    if len(known) < len(factors):
        return NOT_MEASURED
    text = "; ".join(f"{mode} {over(factor, times)}" for mode, factor in known.items())
    return Verdict(text, all(factor.median >= 1 for factor in known.values()))


def tls(runs: Runs) -> Verdict:
    """At most three times the CPU a delivery, and 20 KB more a connection."""
    cpu = runs.ratio(figures.CPU_A_DELIVERY.value, ("fan-out, TLS", FASTPUSH), ("fan-out, plain", FASTPUSH))
    memory = runs.spread(figures.MEMORY.value, "idle, TLS", FASTPUSH)
    plain = runs.spread(figures.MEMORY.value, "idle, plain", FASTPUSH)
    if cpu is None or memory is None or plain is None:
        return NOT_MEASURED
    more = memory.median - plain.median
    return Verdict(f"CPU {over(cpu, times)}; {figures.kilobytes(more)} more", cpu.median <= 3 and more <= 20)


def hub(runs: Runs) -> Verdict:
    """At most 5 % more CPU a delivery than a push."""
    ratio = runs.ratio(figures.CPU_A_DELIVERY.value, ("hub", FASTPUSH), ("push", FASTPUSH))
    return NOT_MEASURED if ratio is None else Verdict(over(ratio, times), ratio.median <= 1.05)
