"""The result as one page: no script, nothing loaded from anywhere, every text escaped."""

from html import escape

from fastpush.bench import charts
from fastpush.bench.report import rows, time_text
from fastpush.bench.results import LoadResult, Result

_STYLE = """
:root { color-scheme: light dark; --text: #1c2330; --dim: #667085; --line: #e4e7ec; --back: #f7f8fa; --card: #fff;
  --one: #2563eb; --two: #d9480f; --good: #087443; --bad: #c01048; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ef; --dim: #97a1b3; --line: #2b3342; --back: #10141c;
  --card: #181e29; --one: #6ea8fe; --two: #ff9f5a; --good: #47cd89; --bad: #fd6f8e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0; }
h2 { font-size: 16px; margin: 0 0 8px; }
.sub, .axis, td:last-child { color: var(--dim); fill: var(--dim); }
.figures, .cards { display: grid; gap: 16px; margin-top: 16px; align-items: start; }
.figures { grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); align-items: stretch; }
.cards { grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
.tables { columns: 480px; column-gap: 16px; margin-top: 16px; }
.tables .card { break-inside: avoid; margin-bottom: 16px; }
.card, .figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px;
  min-width: 0; }
.figure b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.figure span { color: var(--dim); }
.verdict { border-left: 4px solid var(--good); }
.verdict.bad { border-left-color: var(--bad); }
.verdict p { margin: 4px 0 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { padding: 3px 8px 3px 0; vertical-align: top; overflow-wrap: anywhere; }
tr + tr td { border-top: 1px solid var(--line); }
td:nth-child(2) { text-align: right; }
.settings td:nth-child(2) { text-align: left; color: var(--text); }
svg { display: block; width: 100%; height: auto; }
.axis { font-size: 11px; }
.grid { stroke: var(--line); }
.bar { fill: var(--one); }
.line { fill: none; stroke-width: 2; }
.line0 { stroke: var(--one); }
.line1 { stroke: var(--two); }
.dot0 { fill: var(--one); }
.dot1 { fill: var(--two); }
.legend { margin: 4px 0 0; color: var(--dim); }
.key { margin-right: 16px; }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 2px;
  background: var(--one); }
.key1::before { background: var(--two); }
"""


def render(result: Result, failures: list[str]) -> str:
    """Return the page. failures: of assertions."""
    url = escape(str(result.settings["url"]))
    shapes = [card for load in result.loads for card in _load_cards(load)]
    cards = [_card(escape(name), _table(lines)) for name, lines in rows(result)]
    cards.append(_card("settings", _settings(result), "settings"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastpush bench of {url}</title><style>{_STYLE}</style></head><body>"
        f'<h1>fastpush bench</h1><div class="sub">{url}, {escape(result.started)}, {result.seconds:g} s measured'
        f"{', ended early' if result.interrupted else ''}</div>"
        f"{_verdict(result, failures)}{_figures(result)}"
        f'<div class="cards">{"".join(shapes)}</div><div class="tables">{"".join(cards)}</div></body></html>\n'
    )


def _verdict(result: Result, failures: list[str]) -> str:
    faults = sum(load.lost + load.duplicated + load.reordered + load.errors for load in result.loads)
    is_good = not failures and not faults
    if is_good:
        title = "Every message arrived, once and in order." if result.loads else "Nothing was pushed."
    else:
        title = "Not all is well."
    sentences = [
        f"{load.name}: {load.lost:,} lost, {load.duplicated:,} duplicated, {load.reordered:,} reordered, "
        f"{load.errors:,} without a clear answer."
        for load in result.loads
        if load.lost or load.duplicated or load.reordered or load.errors
    ]
    sentences += [f"Asserted and not so: {failure}." for failure in failures]
    sentences += result.notes
    text = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="cards"><div class="card verdict{"" if is_good else " bad"}"><h2>{title}</h2>{text}</div></div>'


def _figures(result: Result) -> str:
    found = [("connections", f"{result.opening.opened:,}")]
    for load in result.loads[:1]:
        found.append(("pushes a second", f"{load.pushes_per_second:,.0f}"))
        found.append(("deliveries a second", f"{load.deliveries_per_second:,.0f}"))
        if load.latency is not None:
            found.append(("latency p50", time_text(load.latency.p50_us)))
            found.append(("latency p99", time_text(load.latency.p99_us)))
    if result.server is not None and result.server.cpu_us_per_delivery is not None:
        found.append(("server CPU a delivery", f"{result.server.cpu_us_per_delivery:,.2f} µs"))
    boxes = "".join(f'<div class="figure"><b>{escape(value)}</b><span>{name}</span></div>' for name, value in found)
    return f'<div class="figures">{boxes}</div>'


def _load_cards(load: LoadResult) -> list[str]:
    name = escape(load.name)
    cards = []
    if load.histogram:
        cards.append(_card(f"{name}: deliveries by latency", charts.histogram(load.histogram)))
    slower: dict[str, list[charts.Point]] = {
        "p50": [(row.second, row.p50_us) for row in load.series if row.p50_us is not None],
        "p99": [(row.second, row.p99_us) for row in load.series if row.p99_us is not None],
    }
    if slower["p50"]:
        chart = charts.lines(slower, text=time_text, label="Latency by second")
        cards.append(_card(f"{name}: latency by the second of the push", chart))
    if load.series:
        rates: dict[str, list[charts.Point]] = {"deliveries": [(row.second, row.deliveries) for row in load.series]}
        chart = charts.lines(rates, text=charts.rate_text, label="Deliveries by second")
        cards.append(_card(f"{name}: deliveries by second", chart))
    if load.latency is not None:
        latency = load.latency
        steps = (
            ("p50", latency.p50_us), ("p75", latency.p75_us), ("p90", latency.p90_us), ("p99", latency.p99_us),
            ("p99.9", latency.p99_9_us), ("max", latency.max_us), ("mean", latency.mean_us),
        )  # fmt: skip
        cards.append(_card(f"{name}: percentiles", _table([(step, time_text(value), "") for step, value in steps])))
    return cards


def _settings(result: Result) -> str:
    given = [
        (name.replace("_", " "), ", ".join(value) if isinstance(value, tuple | list) else str(value), "")
        for name, value in result.settings.items()
        if value not in (None, False, (), [])
    ]
    return _table([("version", result.version, ""), *given])


def _card(title: str, content: str, kind: str = "") -> str:
    return f'<section class="card {kind}"><h2>{title}</h2>{content}</section>'


def _table(lines: list[tuple[str, str, str]]) -> str:
    cells = ("".join(f"<td>{escape(text)}</td>" for text in line) for line in lines)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
