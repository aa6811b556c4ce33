"""The table on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastpush.bench.results import Latency, LoadResult, Result, ServerResult


def time_text(micros: float) -> str:
    """Return microseconds as people read them."""
    if micros < 1000:  # noqa: PLR2004
        return f"{micros:.0f} µs"
    if micros < 1_000_000:  # noqa: PLR2004
        return f"{micros / 1000:.2f} ms"
    return f"{micros / 1_000_000:.2f} s"


def bytes_text(count: float) -> str:
    """Return bytes as people read them."""
    if abs(count) < 100_000:  # noqa: PLR2004
        return f"{count / 1000:.1f} KB"
    return f"{count / 1_000_000:.1f} MB"


def counts_text(counts: dict[str, int]) -> str:
    """Return what was counted by a word, most first."""
    return ", ".join(f"{word}: {count:,}" for word, count in sorted(counts.items(), key=lambda item: -item[1]))


def rows(result: Result) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return sections of (what, value, remark)."""
    sections = [("connections", _connection_rows(result))]
    sections += [(load.name, _load_rows(load, result)) for load in result.loads]
    if result.storm is not None:
        sections.append(("connect storm", [
            ("offered", f"{result.storm.offered:,}", f"{result.storm.offered / max(result.seconds, 1e-9):,.0f}/s"),
            ("answers", counts_text(result.storm.answers), ""),
            *_latency_rows(result.storm.latency),
        ]))  # fmt: skip
    if result.server is not None:
        sections.append(("server", _server_rows(result.server)))
    sections.append(("client", [
        ("busiest process", f"{max(result.client.busy, default=0):.0%} busy", f"{len(result.client.busy)} in all"),
    ]))  # fmt: skip
    return sections


def _connection_rows(result: Result) -> list[tuple[str, str, str]]:
    opening = result.opening
    found = [
        ("opened", f"{opening.opened:,}", f"{opening.connects_per_second:,.0f}/s"),
    ]
    if opening.cpu_us_per_connect is not None:
        found.append(("server CPU a connect", f"{opening.cpu_us_per_connect:,.0f} µs", ""))
    if opening.failed:
        found.append(("failed", f"{opening.failed:,}", counts_text(opening.failures)))
    if result.closed:
        found.append(("closed by the server", f"{sum(result.closed.values()):,}", counts_text(result.closed)))
    if result.slow:
        found.append(("stopped reading", f"{sum(result.slow.values()):,}", counts_text(result.slow)))
    if result.churned:
        found.append(("reconnected", f"{result.churned:,}", counts_text(result.churn_failures)))
    return found


def _load_rows(load: LoadResult, result: Result) -> list[tuple[str, str, str]]:
    found = [
        ("pushes", f"{load.pushes:,}", f"{load.pushes_per_second:,.0f}/s"),
        ("deliveries", f"{load.deliveries:,}", f"{load.deliveries_per_second:,.0f}/s"),
        *_latency_rows(load.latency),
        ("lost", f"{load.lost:,}", ""),
        ("duplicated, reordered", f"{load.duplicated:,}, {load.reordered:,}", ""),
    ]
    if load.refused or load.errors or load.unsent:
        found.append(
            (
                "refused, errors, unsent",
                f"{load.refused:,}, {load.errors:,}, {load.unsent:,}",
                counts_text(load.replies),
            )
        )
    if result.server is not None and load is result.loads[0]:
        for name, cost in (
            ("server CPU a push", result.server.cpu_us_per_push),
            ("server CPU a delivery", result.server.cpu_us_per_delivery),
        ):
            if cost is not None:
                found.append((name, f"{cost:,.2f} µs", ""))
    return found


def _latency_rows(latency: Latency | None) -> list[tuple[str, str, str]]:
    if latency is None:
        return []
    return [
        ("latency p50, p90", f"{time_text(latency.p50_us)}, {time_text(latency.p90_us)}", ""),
        ("latency p99, p99.9", f"{time_text(latency.p99_us)}, {time_text(latency.p99_9_us)}", ""),
        ("latency mean, max", f"{time_text(latency.mean_us)}, {time_text(latency.max_us)}", ""),
    ]


def _server_rows(server: ServerResult) -> list[tuple[str, str, str]]:
    found = [
        (f"{process.name} {process.pid}", f"{process.cpu_share:.0%} CPU", f"{process.cpu_seconds:.3f} s")
        for process in server.processes
    ]
    for name, memory in (
        ("memory before", server.memory_before_bytes),
        ("memory connected", server.memory_idle_bytes),
        ("memory at the end", server.memory_end_bytes),
    ):
        if memory is not None:
            found.append((name, bytes_text(memory), ""))
    if server.memory_per_connection_bytes is not None:
        found.append(("memory a connection", bytes_text(server.memory_per_connection_bytes), ""))
    return found


def print_result(console: Console, result: Result) -> None:
    """Print the table and the notes."""
    table = Table(box=None, header_style="bold", pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for section, lines in rows(result):
        for number, (what, value, remark) in enumerate(lines):
            table.add_row("" if number else section, what, Text(value), Text(remark))
    console.print(table)
    for note in result.notes:
        console.print(Text(note, "yellow"), soft_wrap=True)
