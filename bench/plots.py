"""Bar charts as SVG files that can be read on light and dark pages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from bench.records import Spread

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 200, 110, 34, 10
_ROW, _BAR = 26, 16
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_LOGARITHMIC_FROM = 50  # times the smallest: below that small bars can still be seen
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1c2330; }
.title { font-weight: 600; }
.dim { fill: #667085; }
.bar { fill: #98a2b3; }
.own { fill: #2563eb; }
.range { stroke: #1c2330; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ef; }
  .dim { fill: #97a1b3; }
  .bar { fill: #667085; }
  .own { fill: #6ea8fe; }
  .range { stroke: #e6e9ef; }
}
"""


@dataclass(frozen=True)
class Bar:
    """One row. is_own: fastpush."""

    label: str
    value: Spread
    is_own: bool


def bars(title: str, rows: Sequence[Bar], text: Callable[[float], str]) -> str:
    """Return a chart of medians, each with its range; with a logarithmic axis where values differ very much.

    rows: at least one, with values above 0.  text: writes a value.
    """
    smallest = min(row.value.low for row in rows)
    largest = max(row.value.high for row in rows)
    is_logarithmic = smallest > 0 and largest / smallest > _LOGARITHMIC_FROM
    floor = 10 ** math.floor(math.log10(smallest)) / 2 if is_logarithmic else 0.0

    def x(value: float) -> float:
        if is_logarithmic:
            return _LEFT + _PLOT_WIDTH * math.log(value / floor) / math.log(largest / floor)
        return _LEFT + _PLOT_WIDTH * value / (largest or 1)

    parts = [f'<text class="title" x="10" y="20">{escape(title + (", logarithmic" if is_logarithmic else ""))}</text>']
    for number, row in enumerate(rows):
        parts += _row(row, _TOP + number * _ROW, x, text)
    height = _TOP + len(rows) * _ROW + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _row(row: Bar, y: float, x: Callable[[float], float], text: Callable[[float], str]) -> list[str]:
    value, middle = row.value, y + _ROW / 2
    kind, width = "own" if row.is_own else "bar", max(x(value.median) - _LEFT, 1)
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.label)}</text>',
        f'<rect class="{kind}" x="{_LEFT}" y="{middle - _BAR / 2:.1f}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
        f'<line class="range" x1="{x(value.low):.1f}" x2="{x(value.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
        f'<text class="dim" x="{x(value.high) + 8:.1f}" y="{middle + 4:.1f}">{escape(text(value.median))}</text>',
    ]
