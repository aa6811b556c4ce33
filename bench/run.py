"""Runs scenarios: rounds in turn, a fresh server for each run, everything kept at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil

from bench.bytes import where_bytes_go
from bench.measure import LoadFailed, Watch, drive
from bench.records import Folder, Record
from bench.scenarios import IDLE_MEMORY, SCENARIOS, Case, Load, Scenario
from bench.servers import FASTPUSH, LABELS, running, unavailable


@dataclass(frozen=True)
class Options:
    """How to run. servers: which of those that a scenario has take part."""

    servers: Sequence[str]
    rounds: int
    quick: bool
    server_core: int
    client_core: int

    def load(self, case: Case) -> Load:
        """Return the load of a case, as short as is asked for."""
        return case.load.quick() if self.quick else case.load

    def cores(self, case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the cores of the server and those of the client."""
        if case.placement == "one core":
            return (self.server_core,), (self.server_core,)
        both = (self.server_core, self.client_core)
        return (both, both) if case.placement == "both cores" else (both[:1], both[1:])


def with_needed(scenarios: Sequence[Scenario], folder: Folder, servers: Sequence[str]) -> list[Scenario]:
    """Return the scenarios with those before them that they follow from and of which nothing is kept."""
    found = []
    for scenario in SCENARIOS:
        is_missing = any(scenario.name in other.needs for other in scenarios) and not any(
            record.result is not None and record.server in servers for record in folder.runs(scenario.name).records
        )
        if scenario in scenarios or is_missing:
            found.append(scenario)
    return found


def run(scenarios: Sequence[Scenario], folder: Folder, options: Options, say: Callable[[str], None]) -> None:
    """Run scenarios one after the other; what cannot run is said, and the others go on."""
    wanted = [name for name in options.servers if any(name in scenario.servers for scenario in scenarios)]
    reasons = {name: unavailable(name) for name in wanted}
    folder.write_note("left_out", {name: reason for name, reason in reasons.items() if reason is not None})
    for name, reason in reasons.items():
        if reason is not None:
            say(f"{LABELS[name]} is left out: {reason}")
    present = [name for name, reason in reasons.items() if reason is None]
    for scenario in scenarios:
        say(f"{scenario.name}: {scenario.title}")
        folder.forget(scenario.name, present)
        for number, case, name in schedule(scenario, present, options.rounds):
            record = _run_once(scenario, case, name, number, folder, options)
            folder.write(record)
            say(f"  round {number}  {_line(scenario, record)}")
        if scenario is IDLE_MEMORY and FASTPUSH in present:
            _keep_bytes(scenario, folder, options, say)


def _keep_bytes(scenario: Scenario, folder: Folder, options: Options, say: Callable[[str], None]) -> None:
    """Keep beside the memory of a connection what it is made of."""
    load = options.load(scenario.cases[0])
    try:
        folder.write_note("bytes", where_bytes_go(load.connections, options.server_core))
    except (RuntimeError, OSError) as error:
        say(f"  where each byte goes: failed: {error}")


def schedule(scenario: Scenario, servers: Sequence[str], rounds: int) -> Iterator[tuple[int, Case, str]]:
    """Yield round, case and server of every run: in each round every server has its turn, close to the others."""
    for number in range(1, rounds + 1):
        for case in scenario.cases:
            if number <= (case.rounds or rounds):
                yield from ((number, case, name) for name in servers if name in case.servers)


def _run_once(scenario: Scenario, case: Case, name: str, number: int, folder: Folder, options: Options) -> Record:
    load = options.load(case)
    server_cores, client_cores = options.cores(case)
    version, shown = "", []
    watch = None
    try:
        arguments = load.arguments(folder.runs)
        with running(name, server_cores, case.sections, case.workers, path=case.path) as server:
            version, shown = server.version, [*server.arguments(load.mode), *arguments]
            watch = Watch(server) if case.watched else None
            result = drive(shown, client_cores, load.warm_up_seconds + load.seconds)
            watched = watch.end() if watch is not None else {}
    except (LoadFailed, LookupError, RuntimeError, OSError, psutil.Error) as error:
        return Record(scenario.name, case.name, name, version, number, shown, failure=str(error))
    finally:
        if watch is not None:
            watch.stop()
    return Record(scenario.name, case.name, name, version, number, shown, result, watched=watched)


def _line(scenario: Scenario, record: Record) -> str:
    head = f"{record.case:<20}{LABELS[record.server]:<26}"
    if record.result is None:
        return f"{head}failed: {record.failure}"
    values = ((column, column.value(record)) for column in scenario.columns)
    return head + ", ".join(f"{column.title} {column.text(value)}" for column, value in values if value is not None)
