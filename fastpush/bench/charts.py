"""Charts as inline SVG; colours are the page's CSS classes."""

from collections.abc import Callable, Iterable, Sequence
from html import escape

from fastpush.bench.report import time_text
from fastpush.bench.results import Bucket

_WIDTH, _HEIGHT = 720, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_GRID_LINES = 4

Point = tuple[float, float]


def histogram(buckets: Sequence[Bucket]) -> str:
    """Return bars of how many deliveries had which latency; the time axis is logarithmic, as the buckets are."""
    top = _round_up(max(bucket.count for bucket in buckets))
    width = _PLOT_WIDTH / len(buckets)
    parts = [_grid(top, _count_text)]
    for number, bucket in enumerate(buckets):
        height = bucket.count / top * _PLOT_HEIGHT
        hint = f"{time_text(bucket.from_us)} to {time_text(bucket.to_us)}: {bucket.count:,}"
        parts.append(
            f'<rect class="bar" x="{_LEFT + number * width + 1:.1f}" y="{_TOP + _PLOT_HEIGHT - height:.1f}" '
            f'width="{max(width - 2, 1):.1f}" height="{height:.1f}"><title>{escape(hint)}</title></rect>'
        )
    every = -(-len(buckets) // 8)
    parts += [
        _below(_LEFT + number * width, time_text(bucket.from_us))
        for number, bucket in enumerate(buckets)
        if number % every == 0
    ]
    return _svg(parts, "Deliveries by latency")


def lines(series: dict[str, list[Point]], *, text: Callable[[float], str], label: str) -> str:
    """Return one line for each name over the seconds of the run. text: writes a value."""
    points = [point for line in series.values() for point in line]
    top = _round_up(max(value for _, value in points))
    last = max(1.0, *(second for second, _ in points))
    parts = [_grid(top, text)]
    for number, (name, line) in enumerate(series.items()):
        placed = [
            (_LEFT + second / last * _PLOT_WIDTH, _TOP + _PLOT_HEIGHT * (1 - value / top)) for second, value in line
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line line{number}" points="{path}"/>')
        parts += [
            f'<circle class="dot dot{number}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(f'second {second:.0f}, {name}: {text(value)}')}</title></circle>"
            for (x, y), (second, value) in zip(placed, line, strict=True)
        ]
    step = max(1, round(last / 10))
    parts += [_below(_LEFT + second / last * _PLOT_WIDTH, f"{second} s") for second in range(0, int(last) + 1, step)]
    return _svg(parts, label) + (_legend(series) if len(series) > 1 else "")


def _legend(names: Iterable[str]) -> str:
    keys = (f'<span class="key key{number}">{escape(name)}</span>' for number, name in enumerate(names))
    return f'<p class="legend">{"".join(keys)}</p>'


def _grid(top: float, text: Callable[[float], str]) -> str:
    parts = []
    for number in range(_GRID_LINES + 1):
        y = _TOP + _PLOT_HEIGHT * (1 - number / _GRID_LINES)
        value = escape(text(top * number / _GRID_LINES))
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
        )
    return "".join(parts)


def _below(x: float, text: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(text)}</text>'


def _svg(parts: list[str], label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _round_up(value: float) -> float:
    """Return the next value of which a quarter is easy to read."""
    size = 1.0
    while size * 8 < value:
        size *= 10
    return next(size * step for step in (0.4, 0.8, 1.2, 2, 4, 8) if size * step >= value)


def _count_text(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def rate_text(value: float) -> str:
    """Return a rate, short."""
    return f"{_count_text(value)}/s"
