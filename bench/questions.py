"""What is measured beside the scenarios: single questions, each with a target, answered in rounds.

A module of questions is a command of its own; its answers are kept beside the runs of `python -m bench`, for
RESULTS.md.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from bench import machine, report
from bench.figures import over
from bench.records import Folder, Spread
from bench.servers import CACHE, FASTPUSH, Sections, running

QUICK_DIVISOR = 20


class Figure(NamedTuple):
    """One value of one round. text: writes it, with its unit."""

    case: str
    value: float
    text: Callable[[float], str]


class Options(NamedTuple):
    """How to measure. divisor: of all that is counted, for a run that only shows that it runs."""

    rounds: int
    divisor: int
    server_core: int
    client_core: int

    def of(self, number: int) -> int:
        """Return how many of something, here."""
        return max(1, number // self.divisor)

    def server(self, sections: Sections, workers: int = 1) -> Any:
        """Return a fresh server, to be entered."""
        return running(FASTPUSH, (self.server_core,), sections, workers)


Values = dict[str, list[float]]  # by case, in the order of the rounds


@dataclass(frozen=True)
class Question:
    """One question. measure: yields its figures.  judge: returns what is compared with the target, and if that is met.

    target: "" for a figure that stands for itself.
    """

    name: str
    title: str
    target: str
    how: str
    measure: Callable[[Options], Iterator[Figure]]
    judge: Callable[[Values], tuple[str, bool | None]]


def spread_of(values: Iterable[float]) -> Spread:
    """Return the spread of values. Raises: RuntimeError: there are none."""
    spread = Spread.over(values)
    if spread is None:
        raise RuntimeError("nothing was measured")
    return spread


def ratio_of(above: Iterable[float], below: Iterable[float]) -> Spread:
    """Return a ratio, taken round by round."""
    return spread_of(top / bottom for top, bottom in zip(above, below, strict=True))


def command(module: str, questions: tuple[Question, ...]) -> click.Command:
    """Return the command of a module of questions: measure, and write RESULTS.md anew."""

    @click.command(context_settings={"help_option_names": ["-h", "--help"]})
    @click.option("--only", multiple=True, type=click.Choice([question.name for question in questions]))
    @click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
    @click.option("--quick", is_flag=True, help="Short and small, to see that it runs; no figure of it counts.")
    @click.option("--server-core", default=0, show_default=True)
    @click.option("--client-core", default=1, show_default=True)
    def main(only: tuple[str, ...], rounds: int, server_core: int, client_core: int, *, quick: bool) -> None:
        """Measure, and write RESULTS.md anew."""
        os.sched_setaffinity(0, {client_core})
        folder = Folder(CACHE / ("results-quick" if quick else "results"))
        options = Options(1 if quick else rounds, QUICK_DIVISOR if quick else 1, server_core, client_core)
        kept = folder.note(module) or {}
        for question in questions:
            if only and question.name not in only:
                continue
            click.echo(f"{question.name}: {question.title}")
            kept[question.name] = _answered(question, options)
            folder.write_note(module, {each.name: kept[each.name] for each in questions if each.name in kept})
        target = folder.path if quick else Path(__file__).parent
        folder.write_note("machine", machine.describe())
        report.write(folder, target)
        click.echo(f"{os.path.relpath(target)}/RESULTS.md")

    return main


def _answered(question: Question, options: Options) -> dict[str, Any]:
    """Measure, say it, and return what the report writes."""
    values: Values = {}
    texts: dict[str, Callable[[float], str]] = {}
    for figure in question.measure(options):
        values.setdefault(figure.case, []).append(figure.value)
        texts[figure.case] = figure.text
    rows = [(case, over(spread_of(found), texts[case]), len(found)) for case, found in values.items()]
    for case, text, _ in rows:
        click.echo(f"  {case:<50}{text}")
    compared, met = question.judge(values)
    click.echo(f"  {question.target}: {compared}: {'met' if met else 'missed'}")
    described = {"title": question.title, "how": question.how, "target": question.target}
    return {**described, "rows": rows, "figure": compared, "met": met}
