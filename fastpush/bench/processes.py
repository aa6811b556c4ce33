"""Starts the client processes, tells them when to do what, and puts together what they found."""

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any

from fastpush import __version__
from fastpush.bench.client import Client, Opening, ProcessResult
from fastpush.bench.plan import Plan
from fastpush.bench.progress import Progress
from fastpush.bench.recording import SECOND_NS, Board
from fastpush.bench.results import (
    ClientResult,
    OpeningResult,
    Result,
    ServerProcess,
    ServerResult,
    StormResult,
    latency_of,
    load_result,
)
from fastpush.bench.server_stats import Cost, ServerProcesses, find_server
from fastpush.bench.verdict import notes
from fastpush.errors import StartError

_GO_NS = SECOND_NS // 20
_SETTLE_SECONDS = 0.5  # until memory after connecting is what it stays
_JOIN_SECONDS = 5.0
_BESIDE_BACKGROUND_NICE = 10

Show = Callable[[str, dict[str, Any]], None]


class Bench:
    """One run. show: told the phase and the figures of all processes, about twice a second."""

    def __init__(self, plan: Plan, show: Show) -> None:
        plan.check()
        self._plan = plan
        self._show = show
        self._phase = "connecting"
        self._pipes: list[Connection] = []
        self._processes: list[ForkProcess] = []
        self._figures: dict[int, dict[str, int]] = {}
        self._reports: dict[str, dict[int, Any]] = {"opened": {}, "posted": {}, "result": {}}
        self._is_stopping = False
        self._interrupted = False
        pid = plan.pid or find_server(plan.url)
        self._server = ServerProcesses(pid) if pid else None

    def stop(self) -> None:
        """End early; the result is of what was measured until then."""
        self._is_stopping = True

    def run(self) -> Result:
        """Run to the end. Raises: StartError: nobody could connect, or a client process failed."""
        started = datetime.now(UTC).isoformat(timespec="seconds")
        costs = [self._cost(memory=True)]
        try:
            self._spawn()
            self._gather("opened")
            costs.append(self._cost(memory=False))
            self._check_opened()
            self._wait_until(time.monotonic_ns() + int(_SETTLE_SECONDS * SECOND_NS))
            costs.append(self._cost(memory=True))
            from_ns, until_ns, measured = self._load()
            self._phase = "waiting for the last messages"
            self._gather("posted")
            costs += measured
            self._order("finish")
            self._gather("result")
            costs.append(self._cost(memory=True))
        finally:
            self._end()
        return self._result(started, (until_ns - from_ns) / SECOND_NS, costs)

    # -- processes -----------------------------------------------------------------

    def _spawn(self) -> None:
        plan = self._plan
        count = plan.process_count + (plan.background_process is not None)
        boards = [Board(load.publishers, load.first_publisher, load.groups, count) for load in plan.loads]
        pairs = {index: socket.socketpair() for index in range(1, count)}
        context = multiprocessing.get_context("fork")
        children = []
        for index in range(count):
            parent_end, child_end = context.Pipe()
            peers = {i: pair[0] for i, pair in pairs.items()} if index == 0 else {0: pairs[index][1]}
            process = context.Process(
                target=_work, args=(plan, index, boards, child_end, [*self._pipes, parent_end], peers), daemon=True
            )
            self._pipes.append(parent_end)
            self._processes.append(process)
            process.start()
            children.append(child_end)
        for child_end in children:
            child_end.close()
        for pair in pairs.values():
            pair[0].close()
            pair[1].close()

    def _order(self, *order: Any) -> None:
        for pipe in self._pipes:
            try:
                pipe.send(order)
            except OSError:
                continue  # its end is noticed where reports are read

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()

    # -- what they report ----------------------------------------------------------

    def _gather(self, kind: str) -> None:
        """Wait until every process has reported it."""
        stopped = False
        while len(self._reports[kind]) < len(self._pipes):
            self._listen(0.2)
            if self._is_stopping and not stopped:
                stopped = True
                if kind == "opened":
                    raise StartError("interrupted while connecting")

    def _wait_until(self, at_ns: int) -> None:
        while (left := at_ns - time.monotonic_ns()) > 0 and not self._is_stopping:
            self._listen(min(left / SECOND_NS, 0.2))

    def _listen(self, seconds: float) -> None:
        waiting = [pipe for index, pipe in enumerate(self._pipes) if index not in self._reports["result"]]
        for pipe in wait(waiting, seconds):
            assert isinstance(pipe, Connection)
            index = self._pipes.index(pipe)
            try:
                kind, value = pipe.recv()
            except (EOFError, OSError):
                raise StartError(f"client process {index} ended unexpectedly") from None
            if kind == "failed":
                raise StartError(f"client process {index} failed:\n{value}")
            if kind == "count":
                self._figures[index] = value
                self._show(self._phase, self._sum_of_figures())
            else:
                self._reports[kind][index] = value

    def _sum_of_figures(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for figures in self._figures.values():
            total.update(figures)
        return dict(total)

    def _check_opened(self) -> None:
        openings: list[Opening] = list(self._reports["opened"].values())
        failures = sum((opening.failures for opening in openings), Counter[str]())
        broken = [text for text in failures if text.startswith("publishers: ")]
        if broken:
            raise StartError(f"cannot push: {broken[0].removeprefix('publishers: ')}")
        if not sum(opening.opened for opening in openings):
            reasons = ", ".join(f"{reason} ({count})" for reason, count in failures.most_common(3))
            raise StartError(f"nobody could connect to {self._plan.url}: {reasons}")

    # -- the measured interval -----------------------------------------------------

    def _load(self) -> tuple[int, int, list[Cost | None]]:
        plan = self._plan
        from_ns = time.monotonic_ns() + _GO_NS + int(plan.warm_up_seconds * SECOND_NS)
        until_ns = from_ns + int(plan.duration_seconds * SECOND_NS)
        self._order("go", from_ns, until_ns)
        self._phase = "warming up"
        self._wait_until(from_ns)
        before = self._cost(memory=False)
        self._phase = "idle" if plan.idle else "pushing"
        self._wait_until(until_ns)
        after = self._cost(memory=False)
        if self._is_stopping:
            self._interrupted = True
            until_ns = max(from_ns, min(until_ns, time.monotonic_ns()))
            self._order("stop", until_ns)
        return from_ns, until_ns, [before, after]

    def _cost(self, *, memory: bool) -> Cost | None:
        return self._server.measure(memory=memory) if self._server is not None else None

    # -- results -------------------------------------------------------------------

    def _result(self, started: str, seconds: float, costs: list[Cost | None]) -> Result:
        reports: list[ProcessResult] = [self._reports["result"][index] for index in range(len(self._pipes))]
        loads = [
            load_result(load.name, [report.counts[number] for report in reports], seconds)
            for number, load in enumerate(() if self._plan.idle else self._plan.loads)
        ]
        opening = _opening([report.opening for report in reports], costs[0], costs[1])
        server = self._server_result(costs, opening.opened, seconds, loads)
        client = ClientResult(
            [round(report.busy, 4) for report in reports], [round(report.cpu_share, 4) for report in reports]
        )
        settings = asdict(self._plan)
        settings["key"] = "set" if self._plan.key is not None else None
        return Result(
            version=__version__,
            started=started,
            settings=settings,
            seconds=round(seconds, 3),
            interrupted=self._interrupted,
            opening=opening,
            loads=loads,
            closed=dict(sum((report.closed for report in reports), Counter[str]())),
            slow=dict(sum((report.slow for report in reports), Counter[str]())),
            churned=sum(report.churned for report in reports),
            churn_failures=dict(sum((report.churn_failures for report in reports), Counter[str]())),
            storm=_storm(reports),
            server=server,
            client=client,
            notes=notes(self._plan, loads, opening, server, client),
        )

    def _server_result(
        self, costs: list[Cost | None], opened: int, seconds: float, loads: list[Any]
    ) -> ServerResult | None:
        if self._server is None:
            return None
        before, _, idle, began, ended, at_end = costs
        assert before is not None
        assert idle is not None
        assert began is not None
        assert ended is not None
        assert at_end is not None
        names = self._server.names()
        spent = {pid: cpu_ns - began.cpu_ns.get(pid, 0) for pid, cpu_ns in ended.cpu_ns.items()}
        span_ns = max(seconds, 1e-9) * SECOND_NS
        total = sum(spent.values()) / SECOND_NS
        pushes, deliveries = (loads[0].pushes, loads[0].deliveries) if loads else (0, 0)
        grown = None
        if before.memory_bytes is not None and idle.memory_bytes is not None and opened:
            grown = round((idle.memory_bytes - before.memory_bytes) / opened, 1)
        return ServerResult(
            pid=self._server.pid,
            processes=[
                ServerProcess(pid, names.get(pid, "ended"), ns / SECOND_NS, round(ns / span_ns, 4))
                for pid, ns in spent.items()
            ],
            cpu_seconds=round(total, 6),
            cpu_us_per_push=round(total / pushes * 1e6, 3) if pushes else None,
            cpu_us_per_delivery=round(total / deliveries * 1e6, 3) if deliveries else None,
            memory_before_bytes=before.memory_bytes,
            memory_idle_bytes=idle.memory_bytes,
            memory_end_bytes=at_end.memory_bytes,
            memory_per_connection_bytes=grown,
        )


def _work(
    plan: Plan,
    index: int,
    boards: list[Board],
    pipe: Connection,
    others: list[Connection],
    peers: dict[int, socket.socket],
) -> None:
    """Run a client process. others: ends that were inherited and are not ours.

    Beside a background the others give way to its process: what it measures is the server, not how long the client
    takes for thousands of receivers on the same core.
    """
    if plan.background_process not in {None, index}:
        os.nice(_BESIDE_BACKGROUND_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    for other in others:
        other.close()
    try:
        Client(plan, index, boards, pipe, Progress(index, peers)).run()
    except Exception:  # noqa: BLE001 - whatever it is, the parent shows it
        pipe.send(("failed", traceback.format_exc()))
    pipe.close()
    os._exit(0)  # the sockets are closed by the kernel, without a farewell that would take seconds


def _opening(openings: list[Opening], before: Cost | None, after: Cost | None) -> OpeningResult:
    opened = sum(opening.opened for opening in openings)
    failures = sum((opening.failures for opening in openings), Counter[str]())
    began = min(opening.began_ns for opening in openings)
    seconds = max(1, max(opening.ended_ns for opening in openings) - began) / SECOND_NS
    cpu_us = None
    if before is not None and after is not None and opened:
        spent = sum(cpu_ns - before.cpu_ns.get(pid, 0) for pid, cpu_ns in after.cpu_ns.items())
        cpu_us = round(spent / opened / 1000, 2)
    return OpeningResult(
        opened=opened,
        failed=failures.total(),
        failures=dict(failures),
        seconds=round(seconds, 4),
        connects_per_second=round(opened / seconds, 1),
        latency=latency_of(sum((opening.latencies for opening in openings), Counter[int]())),
        cpu_us_per_connect=cpu_us,
    )


def _storm(reports: list[ProcessResult]) -> StormResult | None:
    storms = [report.storm for report in reports if report.storm is not None]
    if not storms:
        return None
    return StormResult(
        sum(storm.offered for storm in storms),
        dict(sum((storm.answers for storm in storms), Counter[str]())),
        latency_of(sum((storm.latencies for storm in storms), Counter[int]())),
    )
