"""How the figures of `fastpush top` read: columns, numbers in little room, and what deserves a colour."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from rich.style import Style
from rich.text import Text

from fastpush.cli.debug import printable
from fastpush.protocol.insight import Busy, Top, WorkerFigures

WIDE_COLUMNS = 112  # of the terminal: narrower ones have the short titles and widths
LAG_WARNING_MS = 50.0
LAG_ALARM_MS = 500.0
PLAIN = Style.null()
WARNING = Style.parse("yellow")
ALARM = Style.parse("bold red")
STALE = Style.parse("dim")

Row = TypeVar("Row")
_SIZES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_AGES = ((86400, "d"), (3600, "h"), (60, "m"))


def number(value: float, width: int) -> str:
    """Return a figure as exactly as `width` characters, four or more, allow: 0.4, 12,345, 12.3k, 12k.

    Only measured ones, floats, have a decimal, below ten.
    """
    if isinstance(value, float) and 0 < value < 9.95:  # noqa: PLR2004 - 9.95 reads 10
        return f"{value:.1f}"
    text = f"{value:,.0f}"
    return text if len(text) <= width else _scaled(value, width)


def decimal(value: float, width: int) -> str:
    """Return a figure whose first decimal matters: 1.0, 99.9, 1,234."""
    return f"{value:.1f}" if value < 99.95 else number(value, width)  # noqa: PLR2004 - 99.95 reads 100


def size(value_bytes: float, width: int) -> str:
    """Return bytes: 0, 512 B, 1.2 MB."""
    if value_bytes < 1000:  # noqa: PLR2004 - the next unit
        return f"{value_bytes:.0f} B" if value_bytes else "0"
    scaled = _scaled(value_bytes, min(width - 2, 4))
    return f"{scaled[:-1]} {scaled[-1]}B"


def _scaled(value: float, width: int) -> str:
    unit_size, unit = next((size, unit) for size, unit in _SIZES if value >= size * 0.9995)
    texts = [f"{value / unit_size:.{digits}f}{unit}" for digits in (2, 1, 0)]
    return next((text for text in texts if len(text) <= width), texts[-1])


def age(seconds: float) -> str:
    """Return a time that has gone by, in its largest unit: 59s, 12m, 5h, 45d."""
    for unit_seconds, unit in _AGES:
        if seconds >= unit_seconds:
            return f"{seconds // unit_seconds:.0f}{unit}"
    return f"{int(seconds)}s"


def milliseconds(value: float | None) -> str:
    """Return a latency; a dash where nothing was measured."""
    return "-" if value is None else f"{decimal(value, 5)} ms"


def lag_style(lag_ms: float) -> Style:
    """Return the colour of an event loop's lag: clients feel the second one."""
    return ALARM if lag_ms > LAG_ALARM_MS else WARNING if lag_ms > LAG_WARNING_MS else PLAIN


def drops_style(drops: float) -> Style:
    """Return the colour of drops: none is as it should be."""
    return ALARM if drops > 0 else PLAIN


def worst_lag(top: Top) -> tuple[int, float] | None:
    """Return the worker whose event loop is the latest, and by how many milliseconds."""
    return max(top.point.lags_ms, key=lambda lag: lag[1], default=None)


def health(top: Top) -> Text:
    """Return in one line how well it goes: latency, drops, queue, lag, and workers that no longer measure theirs."""
    point = top.point
    line = Text(no_wrap=True, overflow="ellipsis")
    figures = [
        ("p50 ", milliseconds(point.p50_ms), PLAIN),
        ("p99 ", milliseconds(point.p99_ms), PLAIN),
        ("drops/s ", number(point.drops, 7), drops_style(point.drops)),
        ("queue ", size(point.queue_bytes, 6), PLAIN),
    ]
    if (worst := worst_lag(top)) is not None:
        worker, lag_ms = worst
        figures.append(("worst lag ", f"{milliseconds(lag_ms)} worker-{worker}", lag_style(lag_ms)))
    stale = [f"worker-{row.worker}" for row in top.workers if row.is_stale]
    if stale:
        figures.insert(0, ("stale ", stale[0] if len(stale) == 1 else f"{len(stale)} workers", ALARM))
    for label, text, style in figures:
        line.append("  " if line else "").append(label).append(text, style or "bold")
    return line


class Column(NamedTuple, Generic[Row]):
    """One column of a table.

    title, short: its heading, and where the terminal is narrow.  width, short_width: of its texts, at most; 0: whatever
    is left.  value: what rows are sorted by.  text: of a row's cell, in so many characters.  style: of a row's cell.
    """

    title: str
    short: str
    width: int
    short_width: int
    value: Callable[[Row], float | str]
    text: Callable[[Row, int], str]
    style: Callable[[Row], Style] = lambda _: PLAIN

    @property
    def is_name(self) -> bool:
        """Whether it holds names, which may be of any length, and is therefore aligned to the left."""
        return not self.width


def _lag(row: WorkerFigures, width: int) -> str:
    return "stale" if row.is_stale else decimal(row.lag_ms, width)


WORKER_COLUMNS: tuple[Column[WorkerFigures], ...] = (
    Column("slot", "slot", 4, 4, lambda row: row.slot, lambda row, _: str(row.slot)),
    Column("in logs", "in logs", 11, 9, lambda row: row.worker, lambda row, _: f"worker-{row.worker}"),
    Column("pid", "pid", 8, 7, lambda row: row.pid, lambda row, _: str(row.pid)),
    Column(
        "connections", "conns", 9, 5, lambda row: row.connections, lambda row, width: number(row.connections, width)
    ),
    Column(
        "slow", "slow", 7, 4, lambda row: row.slow_connections, lambda row, width: number(row.slow_connections, width)
    ),
    Column("pushes/s", "push/s", 9, 5, lambda row: row.pushes, lambda row, width: number(row.pushes, width)),
    Column(
        "deliveries/s", "deliv/s", 9, 5, lambda row: row.deliveries, lambda row, width: number(row.deliveries, width)
    ),
    Column("gathering", "gather", 6, 5, lambda row: row.gathering, lambda row, width: decimal(row.gathering, width)),
    Column("lag ms", "lag", 6, 5, lambda row: row.lag_ms, _lag, lambda row: lag_style(row.lag_ms)),
    Column("queue", "queue", 7, 6, lambda row: row.queue_bytes, lambda row, width: size(row.queue_bytes, width)),
    Column(
        "drops/s", "drops", 7, 5, lambda row: row.drops, lambda row, width: number(row.drops, width),
        lambda row: drops_style(row.drops),
    ),
    Column("up", "up", 5, 3, lambda row: row.uptime_seconds, lambda row, _: age(row.uptime_seconds)),
)  # fmt: skip
"""In `short` form 79 characters wide, a space behind each included."""


def busy_columns(noun: str) -> tuple[Column[Busy], ...]:
    """Return the columns of the busiest users or channels; the first takes the width that is left."""
    title = f"busiest {noun}"
    return (
        Column(title, title, 0, 0, lambda row: row.name, lambda row, _: printable(row.name)),
        Column("pushes/s", "push/s", 9, 5, lambda row: row.pushes, lambda row, width: number(row.pushes, width)),
        Column(
            "deliveries/s",
            "deliv/s",
            9,
            5,
            lambda row: row.deliveries,
            lambda row, width: number(row.deliveries, width),
        ),
    )


def row_style(row: object) -> Style:
    """Return the style of a whole row: figures of a worker that does not measure any more are of the past."""
    return STALE if isinstance(row, WorkerFigures) and row.is_stale else PLAIN
