"""RESULTS.md and the plots, from the records that are kept."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.figures import MEMORY, Column, over, times
from bench.plots import Bar, bars
from bench.records import Folder, Record, Runs
from bench.scenarios import IDLE_MEMORY, SCENARIOS, Case, Scenario
from bench.servers import FASTPUSH, LABELS, LIMIT, SERVERS

QUESTIONS = ("channels", "inside")  # modules of bench that ask some
Answers = dict[str, dict[str, Any]]  # by question, as bench/questions.py keeps them

_MET = {True: "yes", False: "**no**", None: "not measured"}
_MISSING = "-"
_HIDDEN_ARGUMENTS = {"--pid"}
_METHOD = """\
Unless a scenario says otherwise: loopback, 128-byte messages, the whole process tree of the server on one core
(fastpush: one worker, broker and supervisor), `fastpush bench` on another. Servers run in turn, a fresh process for
each run; figures are medians over the rounds, with the range in brackets. Ratios are taken round by round. CPU is the
scheduler's run time of all processes of the server, memory their PSS."""
_REPRODUCE = """\
## How to reproduce

    bench/peers/install.sh                 what the peers need, as root; without it those are left out
    make bench                             everything but churn, about 25 minutes
    make bench BENCH="--only churn"
    make bench BENCH="--quick"             four minutes, to see that it runs; its figures mean nothing
    .venv/bin/python -m bench.channels     the five scenarios about channels, fifteen minutes; --only, --rounds, --quick
    .venv/bin/python -m bench.inside       what it costs that operators look, four minutes; the same options
    .venv/bin/python -m bench.instructions instructions a push and a delivery, against another checkout; needs valgrind
    .venv/bin/python -m bench --report     this page again, from the runs that are kept

The raw result of every run is kept in `fastpush-bench/results` in the user's cache folder."""


def write(folder: Folder, target: Path) -> None:
    """Write RESULTS.md and plots/*.svg into `target`."""
    plots = target / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for old in plots.glob("*.svg"):
        old.unlink()
    measured = {scenario: folder.runs(scenario.name) for scenario in SCENARIOS}
    asked: dict[str, Answers] = {module: folder.note(module) or {} for module in QUESTIONS}
    answers = {name: answer for of_module in asked.values() for name, answer in of_module.items()}
    sections = [_head(folder, measured), _summary(measured, answers)]
    for scenario, runs in measured.items():
        if runs.records:
            sections.append(_section(scenario, runs, _plots(scenario, runs, plots), folder))
    for module, of_module in asked.items():
        sections += [_answer(module, name, answer) for name, answer in of_module.items()]
    sections.append(_REPRODUCE)
    (target / "RESULTS.md").write_text("\n\n".join(sections) + "\n")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _head(folder: Folder, measured: dict[Scenario, Runs]) -> str:
    machine = folder.note("machine") or {}
    versions = {
        record.server: record.version for runs in measured.values() for record in runs.records if record.version
    }
    rows = [(LABELS[name], versions[name]) for name in SERVERS if versions.get(name)]
    left_out = [f"Left out: {LABELS[name]}: {reason}." for name, reason in (folder.note("left_out") or {}).items()]
    return "\n\n".join([
        "# Results of the side-by-side benchmark",
        "Written by `python -m bench` from the runs that it keeps; do not edit.",
        _table(("machine", ""), machine.items()),
        _METHOD,
        _table(("server", "version"), rows),
        *left_out,
    ])  # fmt: skip


def _summary(measured: dict[Scenario, Runs], answers: Answers) -> str:
    verdicts = {scenario: scenario.verdict(runs) for scenario, runs in measured.items()}
    missed = [scenario.name for scenario, verdict in verdicts.items() if verdict.met is False]
    missed += [name for name, answer in answers.items() if not answer["met"]]
    absent = [scenario.name for scenario, verdict in verdicts.items() if verdict.met is None]
    sentences = [f"Missed: {', '.join(missed)}." if missed else "No target is missed."]
    if absent:
        sentences.append(f"Not measured: {', '.join(absent)}.")
    rows = [
        (f"[{scenario.name}](#{scenario.name})", scenario.target, verdict.figure, _MET[verdict.met])
        for scenario, verdict in verdicts.items()
    ]
    rows += [
        (f"[{name}](#{name})", answer["target"], answer["figure"], _MET[answer["met"]])
        for name, answer in answers.items()
    ]
    table = _table(("scenario", "target", "fastpush (range)", "met"), rows)
    return "\n\n".join(["## Targets", " ".join(sentences), table])


def _section(scenario: Scenario, runs: Runs, plots: Sequence[str], folder: Folder) -> str:
    verdict = scenario.verdict(runs)
    parts = [
        f"## {scenario.name}",
        f"{scenario.title}. {scenario.how}",
        f"Target: {scenario.target}. Figure: {verdict.figure}. Met: {_MET[verdict.met]}.",
        _runs_table(scenario, runs),
        *(f"![{name}](plots/{name}.svg)" for name in plots),
        *_remarks(runs),
    ]
    if scenario is IDLE_MEMORY:
        parts += _where_bytes_go(folder, runs)
    parts.append("Load: " + "; ".join(f"`{text}`" for text in _loads(runs)))
    return "\n\n".join(parts)


def _answer(module: str, name: str, answer: dict[str, Any]) -> str:
    """Return the section of a question of a module of bench."""
    return "\n\n".join([
        f"## {name}",
        f"{answer['title']}. {answer['how']}",
        f"Target: {answer['target']}. Figure: {answer['figure']}. Met: {_MET[answer['met']]}.",
        _table(("case", "figure", "rounds"), [(case, text, str(rounds)) for case, text, rounds in answer["rows"]]),
        f"Load: `python -m bench.{module} --only {name}`",
    ])  # fmt: skip


def _runs_table(scenario: Scenario, runs: Runs) -> str:
    first = scenario.columns[0]
    several = len(scenario.cases) > 1
    compared = any(len(case.servers) > 1 for case in scenario.cases)
    head = [*(["case"] if several else []), "server", *(column.title for column in scenario.columns)]
    head += [*(["ratio to fastpush"] if compared else []), "rounds"]
    rows = []
    for case in scenario.cases:
        for name in _by_figure(case, runs, first):
            done = sum(record.result is not None for record in runs.of(case.name, name))
            cells = [_cell(column, runs, case.name, name) for column in scenario.columns]
            ratio = runs.ratio(first.value, (case.name, name), (case.name, FASTPUSH)) if name != FASTPUSH else None
            label = f"**{LABELS[name]}**" if name == FASTPUSH and compared else LABELS[name]
            rows.append([
                *([case.name] if several else []), label, *cells,
                *([over(ratio, times) if ratio is not None else _MISSING] if compared else []), str(done),
            ])  # fmt: skip
    return _table(head, rows)


def _by_figure(case: Case, runs: Runs, column: Column) -> list[str]:
    """Return the servers that have run: the limit, fastpush, then peers from the smallest figure up."""

    def rank(name: str) -> tuple[int, float]:
        spread = runs.spread(column.value, case.name, name)
        own = {LIMIT: 0, FASTPUSH: 1}.get(name, 2)
        return own, spread.median if spread is not None else float("inf")

    return sorted((name for name in case.servers if runs.of(case.name, name)), key=rank)


def _cell(column: Column, runs: Runs, case: str, server: str) -> str:
    spread = runs.spread(column.value, case, server)
    return over(spread, column.text) if spread is not None else _MISSING


def _remarks(runs: Runs) -> list[str]:
    """Return what went wrong, and what `fastpush bench` says about its own figures."""
    lines = []
    for record in runs.records:
        where = f"{LABELS[record.server]}{f', {record.case}' if record.case else ''}, round {record.round}"
        if record.result is None:
            lines.append(f"- {where}: failed: {record.failure}")
        lines += [f"- {where}: {note}" for note in record.get("notes") or ()]
    return ["\n".join(lines)] if lines else []


def _loads(runs: Runs) -> list[str]:
    """Return the command of fastpush in each case, without what differs between runs."""
    shown: dict[str, str] = {}
    for record in runs.records:
        if record.server == FASTPUSH and record.arguments:
            shown.setdefault(record.case, _command(record))
    return list(shown.values())


def _command(record: Record) -> str:
    words = []
    arguments = iter(record.arguments[1:])
    for word in arguments:
        if word in _HIDDEN_ARGUMENTS:
            next(arguments, None)
        else:
            words.append(word)
    return " ".join(["fastpush bench", *words])


def _where_bytes_go(folder: Folder, runs: Runs) -> list[str]:
    """Return a table that adds up to what was measured."""
    found, measured = folder.note("bytes"), runs.spread(MEMORY.value, "", FASTPUSH)
    if found is None or measured is None:
        return []
    total = measured.median * 1000
    rows = [*found, ("the rest: allocator, pages, what frees left behind", total - sum(size for _, size in found))]
    cells = [(name, f"{size:,.0f}") for name, size in rows]
    table = _table(("what a connection holds", "bytes"), [*cells, ("**measured**", f"**{total:,.0f}**")])
    return ["Where each byte goes (`python -m bench.bytes`):", table]


def _plots(scenario: Scenario, runs: Runs, folder: Path) -> list[str]:
    """Write a chart for each case with several servers, or one for all cases; return their names."""
    column = scenario.columns[0]
    charts: dict[str, list[tuple[str, str, str]]] = {}  # name: label, case, server
    compared = [case for case in scenario.cases if len(case.servers) > 1]
    for case in compared:
        charts[scenario.name] = [(LABELS[name], case.name, name) for name in _by_figure(case, runs, column)]
    if not compared and len(scenario.cases) > 1:
        charts[scenario.name] = [(case.name, case.name, FASTPUSH) for case in scenario.cases]
    written = []
    for name, rows in charts.items():
        spreads = [(label, runs.spread(column.value, case, server), server) for label, case, server in rows]
        found = [Bar(label, spread, server == FASTPUSH) for label, spread, server in spreads if spread is not None]
        if len(found) > 1 and all(bar.value.median > 0 for bar in found):
            (folder / f"{name}.svg").write_text(bars(f"{scenario.title}: {column.title}", found, column.text))
            written.append(name)
    return written
