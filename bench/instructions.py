"""How many instructions a push and a delivery take, here or against another checkout: no other program disturbs that.

    python -m bench.instructions [--against FOLDER] [--caches]

Needs valgrind, whose cachegrind counts what the processes of a server execute. One worker and its broker; from a run
under load one without is taken away, of the same length, so that what remains is the load's. Time is not measured: a
machine that is busy otherwise gives the same figures. What they leave out is the kernel's part.
"""

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from bench.figures import count
from bench.measure import drive, metrics
from bench.servers import FASTPUSH, Sections, Started, running

_SECTIONS: Sections = {
    "server": {"hang_seconds": 600},  # a server that is counted is forty times slower
    "limits": {"max_lag_ms": 0},
    "bus": {"confirm_ms": 30000},
}
_SECONDS = 20
_CONNECTIONS = 500
_CONNECTS_A_SECOND = 100
_EVENTS = re.compile(r"^events: (.*)$", re.MULTILINE)
_SUMMARY = re.compile(r"^summary: (.*)$", re.MULTILINE)
_NAMES = {"Ir": "instructions", "I1mr": "instructions missed in L1", "Dr": "reads", "D1mr": "reads missed in L1",
          "Dw": "writes", "D1mw": "writes missed in L1"}  # fmt: skip


class Load(NamedTuple):
    """What is counted, per delivery."""

    title: str
    arguments: tuple[str, ...]


LOADS = (
    Load("push to one connection, 32 under way", ("--mode", "unicast", "--window", "32")),
    Load(f"delivery to one of {_CONNECTIONS}", ("--mode", "fan-out", "--window", "1")),
)


def _counted(tree: Path, load: Sequence[str], *, caches: bool) -> tuple[Counter[str], float]:
    """Return the events of all processes of a server while it lived, and how many deliveries it made."""
    with tempfile.TemporaryDirectory(prefix="fastpush-bench-") as name:
        options = (f"--cache-sim={'yes' if caches else 'no'}", f"--cachegrind-out-file={name}/%p")
        under = ("valgrind", "--tool=cachegrind", "--trace-children=yes", *options)
        with running(FASTPUSH, (0, 1), _SECTIONS, 1, started=Started(under, tree)) as server:
            connections = ("--connections", str(_CONNECTIONS), "--ramp", str(_CONNECTS_A_SECOND))
            drive([*server.driving, *connections, *load, "--duration", str(_SECONDS)], (0, 1), _SECONDS)
            deliveries = metrics(server.port)["fastpush_deliveries_total"]
        events: Counter[str] = Counter()
        for path in Path(name).iterdir():
            text = path.read_text()
            names, values = _EVENTS.search(text), _SUMMARY.search(text)
            if names is None or values is None:
                raise click.ClickException(f"{path.name}: cachegrind did not end as it should")
            events.update(dict(zip(names[1].split(), map(int, values[1].split()), strict=True)))
    return events, deliveries


def _per_one(tree: Path, load: Load, *, caches: bool) -> dict[str, float]:
    idle, before = _counted(tree, ("--idle",), caches=caches)
    busy, after = _counted(tree, load.arguments, caches=caches)
    return {event: (busy[event] - idle[event]) / (after - before) for event in busy if event in _NAMES}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--against", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another checkout.")
@click.option("--caches", is_flag=True, help="Count also what a cache of the first level would not have; slower.")
def main(against: Path | None, *, caches: bool) -> None:
    """Count instructions a push and a delivery."""
    if shutil.which("valgrind") is None:
        raise click.ClickException("valgrind is not installed")
    here = Path(__file__).parents[1]
    for load in LOADS:
        click.echo(f"{load.title:<40}{'here':>12}" + (f"{'there':>12}{'ratio':>12}" if against else ""))
        own = _per_one(here, load, caches=caches)
        other = _per_one(against, load, caches=caches) if against else {}
        for event, value in own.items():
            compared = f"{count(other[event]):>12}{value / other[event]:>12.3f}" if other else ""
            click.echo(f"  {_NAMES[event]:<38}{count(value):>12}{compared}")


if __name__ == "__main__":
    main()
