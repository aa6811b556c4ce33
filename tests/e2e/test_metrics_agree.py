"""/metrics against what a load tester counts by itself, over four workers."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

from tests.programs import FASTPUSH
from tests.server import SCALE, Server, eventually
from tests.standstill import Standstill
from tests.wire import Wire, request

Serve = Callable[..., Server]
CONNECTIONS, WORKERS = 240, 4
QUIET = {"log": {"level": "info"}}
SOON = {"bus": {"confirm_ms": 1000}}  # pushes go on while a worker stands still


@pytest.fixture
def benches() -> Iterator[ExitStack]:
    """Ends what a failed test leaves running."""
    with ExitStack() as running:
        yield running


class Bench:
    """A run of `fastpush bench` beside the test."""

    def __init__(self, server: Server, tmp_path: Path, *arguments: str) -> None:
        self._path = tmp_path / "result.json"
        self._process = subprocess.Popen(
            [*FASTPUSH, "bench", server.ws_url(), "-n", str(CONNECTIONS), "--json", str(self._path), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def result(self) -> dict[str, Any]:
        output, _ = self._process.communicate(timeout=60 * SCALE)
        assert self._process.returncode == 0, output
        return json.loads(self._path.read_text())


def total(samples: dict[str, float], name: str, **labels: str) -> float:
    """The sum over workers of the series with these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value for series, value in samples.items()
        if series.startswith(f"{name}{{") and all(text in series for text in wanted)
    )  # fmt: skip


def wire_beside(server: Server, pid: int) -> Wire:
    """A connection to another worker than this process: one that goes on when this one is stopped."""
    while True:
        wire = Wire(server)
        assert wire.send(request("GET", "/health")).reply().status == 200  # so it is accepted
        peers = {each.raddr.port for each in psutil.Process(pid).net_connections("tcp") if each.raddr}
        if wire.socket.getsockname()[1] not in peers:
            return wire
        wire.socket.close()


def stale_workers(wire: Wire) -> float:
    """How many workers are shown as stale, by the one that has this connection."""
    lines = wire.send(request("GET", "/metrics")).reply().body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("fastpush_stale_workers "))


def settled(server: Server) -> dict[str, float]:
    """What is shown once everybody has left."""

    def found() -> dict[str, float] | None:
        samples = server.metrics()
        unsettled = ("fastpush_connections", "fastpush_broker_routes", "fastpush_stale_workers")
        return samples if not any(samples[name] for name in unsettled) else None

    return eventually(found, what="all connections closed")


@pytest.mark.parametrize("mode", ["unicast", "fan-out", "broadcast"])
def test_figures_are_the_clients_own(serve: Serve, tmp_path: Path, standstill: Standstill, mode: str) -> None:
    """Handshakes, pushes by outcome, deliveries and closes are to the unit what the client has counted."""
    server = serve(workers=WORKERS, sections=QUIET)
    arguments = ("--mode", mode, "--window", "8", "--duration", "2s", "--warm-up", "0.3", "--processes", "2")
    result = Bench(server, tmp_path, *arguments).result()
    (load,) = result["loads"]
    assert {load[name] for name in ("lost", "duplicated", "errors", "refused")} == {0}
    assert not load["given_up"] or standstill.seconds
    samples = settled(server)
    opened = result["opening"]["opened"]
    assert opened == CONNECTIONS
    assert total(samples, "fastpush_handshakes_total", outcome="upgraded") == opened
    assert samples["fastpush_handshakes_total"] == opened
    assert samples["fastpush_closed_connections_total"] == opened
    assert load["replies"] == {"200": total(samples, "fastpush_pushes_total", outcome="delivered")}
    assert samples["fastpush_pushes_total"] == samples["fastpush_broker_publications_total"] == load["replies"]["200"]
    assert samples["fastpush_deliveries_total"] == load["received"] > 0
    assert samples["fastpush_drops_total"] == samples["fastpush_workers_lost_total"] == 0
    of_workers = {series for series in samples if series.startswith("fastpush_deliveries_total{")}
    assert len(of_workers) == WORKERS
    observed = samples["fastpush_push_latency_seconds_count"]
    assert observed == total(samples, "fastpush_push_latency_seconds_bucket", le="+Inf")
    assert load["replies"]["200"] <= observed <= WORKERS * load["replies"]["200"]


def test_the_sum_is_the_sum(serve: Serve, tmp_path: Path) -> None:
    """`GET /metrics?sum=1` gives each count as all workers together have it, whichever worker answers."""
    server = serve(workers=WORKERS, sections=QUIET)
    Bench(server, tmp_path, "--duration", "0.5s", "--warm-up", "0").result()
    each = settled(server)
    counters = {name for name in each if name.endswith("_total") and name != "fastpush_accepted_total"}
    counters -= {name for name in counters if name.startswith("fastpush_gc_")}
    for _ in range(WORKERS):
        status, headers, body = server.request("GET", "/metrics?sum=1")
        assert status == 200 and headers["content-type"].startswith("text/plain") and b"worker=" not in body
        host: dict[str, float] = {}
        for line in body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                bare = name.partition("{")[0]
                host[bare] = host.get(bare, 0) + float(value)
        assert {name: host[name] for name in counters} == {name: each[name] for name in counters}


def test_a_killed_worker_costs_its_last_second_and_is_flagged(
    serve: Serve, benches: ExitStack, tmp_path: Path, standstill: Standstill
) -> None:
    """A worker that stops is shown as stale; killed, it is counted as lost, and only its last second's counts miss."""
    rate, seconds = 200, 6
    server = serve(workers=WORKERS, sections=QUIET | SOON)
    arguments = ("--mode", "fan-out", "--rate", str(rate), "--duration", f"{seconds}s", "--warm-up", "0")
    bench = benches.enter_context(Bench(server, tmp_path, *arguments))

    def delivering() -> dict[str, float] | None:
        found = server.metrics()
        is_so = found["fastpush_deliveries_total"] > 100 * CONNECTIONS and not found["fastpush_stale_workers"]
        return found if is_so else None

    samples = eventually(delivering, what="deliveries, and no stale worker")
    assert samples["fastpush_workers_lost_total"] == 0
    victim = server.processes("worker")[1]
    held = samples[f'fastpush_connections{{worker="{victim["number"]}"}}']
    assert held > 0
    wire = benches.enter_context(wire_beside(server, victim["pid"]))
    os.kill(victim["pid"], signal.SIGSTOP)
    eventually(lambda: stale_workers(wire) == 1, what="a stale worker")
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: server.metrics()["fastpush_workers_lost_total"] == 1, what="a lost worker")
    result = bench.result()
    (load,) = result["loads"]
    samples = settled(server)
    assert (samples["fastpush_stale_workers"], samples["fastpush_workers_lost_total"]) == (0, 1)
    assert result["opening"]["opened"] == CONNECTIONS
    assert total(samples, "fastpush_handshakes_total", outcome="upgraded") == CONNECTIONS
    assert sum(result["closed"].values()) == held
    assert samples["fastpush_closed_connections_total"] == CONNECTIONS - held
    last_second = 1.2 * SCALE + standstill.seconds  # a loaded machine's second is longer
    answered = load["replies"]["200"]
    outcomes = [total(samples, "fastpush_pushes_total", outcome=name) for name in ("delivered", "unconfirmed")]
    assert answered - rate * last_second <= sum(outcomes) <= answered + rate
    missing = load["received"] - samples["fastpush_deliveries_total"]
    assert abs(missing) <= rate * held * last_second


def test_a_drained_worker_loses_nothing(serve: Serve, benches: ExitStack, tmp_path: Path) -> None:
    """A worker that is drained under load leaves every count behind, its clients' closes too, and is not lost."""
    server = serve(workers=WORKERS, sections=QUIET)
    arguments = ("--mode", "fan-out", "--rate", "100", "--duration", "4s", "--warm-up", "0")
    bench = benches.enter_context(Bench(server, tmp_path, *arguments))
    samples = eventually(
        lambda: (found := server.metrics())["fastpush_deliveries_total"] > 50 * CONNECTIONS and found,
        what="deliveries",
    )
    leaving = server.processes("worker")[0]
    held = samples[f'fastpush_connections{{worker="{leaving["number"]}"}}']
    assert held > 0
    os.kill(leaving["pid"], signal.SIGTERM)
    result = bench.result()
    (load,) = result["loads"]
    assert sum(result["closed"].values()) == held
    samples = settled(server)
    gone = {name.partition("{")[0]: value for name, value in samples.items() if 'worker="gone"' in name}
    assert gone["fastpush_closed_connections_total"] == held
    assert samples["fastpush_closed_connections_total"] == CONNECTIONS
    assert total(samples, "fastpush_handshakes_total", outcome="upgraded") == CONNECTIONS
    assert samples["fastpush_deliveries_total"] == load["received"]
    met_the_end = {"closed by the server", "connection reset by peer", "broken pipe", "end of stream"}
    assert {outcome for outcome in load["replies"] if not outcome.startswith("2")} <= met_the_end
    assert samples["fastpush_workers_lost_total"] == 0
