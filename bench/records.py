"""What was measured: one file a run, and figures over the rounds of a scenario."""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One run of one server.

    result: what `fastpush bench --json` wrote; None where it failed, and then `failure` says why.
    watched: what was seen from outside meanwhile: `samples` (seconds, and bytes of PSS of the tree), `metrics` (how
    much each grew), `closes` (connections by close code). Empty where the scenario does not ask for it.
    """

    scenario: str
    case: str
    server: str
    version: str
    round: int
    arguments: list[str]
    result: dict[str, Any] | None = None
    failure: str = ""
    watched: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """Return what is in the result under a dotted path; a number picks from a list. None: not there."""
        found: Any = self.result
        for name in path.split("."):
            if isinstance(found, list) and name.isdecimal():
                found = found[int(name)] if int(name) < len(found) else None
            else:
                found = found.get(name) if isinstance(found, dict) else None
        return found


Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Spread:
    """A figure over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Spread | None":
        """Return the spread of some values; None of no values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None


class Runs:
    """The records of one scenario."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = sorted(records, key=lambda record: record.round)

    def of(self, case: str, server: str) -> list[Record]:
        """Return the records of one case and server, by round."""
        return [record for record in self.records if (record.case, record.server) == (case, server)]

    def values(self, value: Value, case: str, server: str) -> dict[int, float]:
        """Return a figure by round, where it was measured."""
        found = {record.round: value(record) for record in self.of(case, server) if record.result is not None}
        return {number: figure for number, figure in found.items() if figure is not None}

    def spread(self, value: Value, case: str, server: str) -> Spread | None:
        """Return a figure over all rounds."""
        return Spread.over(self.values(value, case, server).values())

    def ratio(self, value: Value, top: tuple[str, str], bottom: tuple[str, str]) -> Spread | None:
        """Return the ratio of two (case, server), taken round by round: both ran close to each other."""
        above, below = self.values(value, *top), self.values(value, *bottom)
        return Spread.over(above[number] / below[number] for number in above.keys() & below.keys() if below[number])


class Folder:
    """Where records are kept: SCENARIO/CASE.SERVER.ROUND.json, and notes about the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        """Keep a record, in the place of an earlier one of the same run."""
        case = record.case.replace(" ", "_").replace("/", "_") or "only"
        path = self.path / record.scenario / f"{case}.{record.server}.{record.round}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n")

    def forget(self, scenario: str, servers: Iterable[str]) -> None:
        """Remove what these servers did in a scenario before."""
        for server in servers:
            for path in (self.path / scenario).glob(f"*.{server}.*.json"):
                path.unlink()

    def runs(self, scenario: str) -> Runs:
        """Return what is kept of a scenario."""
        return Runs(Record(**json.loads(path.read_text())) for path in (self.path / scenario).glob("*.*.*.json"))

    def write_note(self, name: str, value: Any) -> None:
        """Keep something that is no run."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def note(self, name: str) -> Any:
        """Return what was kept; None: nothing."""
        path = self.path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None
