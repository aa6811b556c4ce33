"""What operators see plotted is what /metrics says: queues, drops and lag, which the page's own tests leave at rest."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from fastpush.control_client import ask
from fastpush.protocol.insight import Point, Top
from tests.server import Server, eventually

Serve = Callable[..., Server]
QUEUE_BYTES = 131072
SLOW = {"limits": {"slow_policy": "drop-oldest", "send_queue_bytes": QUEUE_BYTES}}
CLIENTS = 4
MESSAGE = "x" * 60_000
LAG_SECONDS = 0.3


def answer(server: Server, question: str) -> dict[str, Any]:
    control = str(server.runtime_directory / "control")
    told: dict[str, Any] = ask(control, {"command": "insight", "question": {"ask": question}})["answer"]
    return told


def top(server: Server) -> Top:
    return msgspec.convert(answer(server, "top"), Top)


def of_workers(metrics: dict[str, float], name: str) -> dict[int, float]:
    """A figure of /metrics by worker, over all other labels."""
    found: dict[int, float] = {}
    for sample, value in metrics.items():
        bare, _, told = sample.partition("{")
        if bare == name and 'worker="' in told and 'worker="gone"' not in told:
            worker = int(told.partition('worker="')[2].partition('"')[0])
            found[worker] = found.get(worker, 0) + value
    return found


@pytest.fixture
def stalled(serve: Serve) -> Server:
    """Two workers whose clients do not read, and have more pushed to them than their queues take."""
    server = serve(workers=2, sections=SLOW)
    eventually(lambda: len(answer(server, "hour")["points"]) > 2, what="points from before")
    with ExitStack() as closing:
        for _ in range(CLIENTS):
            url = server.ws_url("token=slow&event=e&confirm=1")
            client = closing.enter_context(connect(url, max_queue=1, ping_interval=None, close_timeout=0.1))
            assert json.loads(client.recv()) == {"registered": "e"}
        eventually(
            lambda: (
                server.push("slow", "e", MESSAGE)["status"] == 200
                and server.metrics()["fastpush_drops_total"] > 10 * CLIENTS
            ),
            30,
            "drops",
        )
        yield server


def test_queues_of_each_worker(stalled: Server) -> None:
    """What waits for slow clients, and how many those are, is told of each worker, and of the host, as in /metrics."""

    def agree() -> bool:
        now, metrics = top(stalled), stalled.metrics()
        queued = of_workers(metrics, "fastpush_send_queue_bytes")
        slow = of_workers(metrics, "fastpush_slow_connections")
        return (
            {row.worker: row.queue_bytes for row in now.workers} == queued
            and {row.worker: row.slow_connections for row in now.workers} == slow
            and now.point.queue_bytes == sum(queued.values()) > QUEUE_BYTES
            and sum(slow.values()) == CLIENTS
        )

    assert eventually(agree, what="the same queues")


def test_drops_of_the_hour(stalled: Server) -> None:
    """Drops a second, times the seconds between points, are the messages that /metrics counts as dropped."""

    def dropped() -> float:
        return stalled.metrics()["fastpush_drops_total"]

    def points() -> list[Point]:
        return [msgspec.convert(point, Point) for point in answer(stalled, "hour")["points"]]

    since, counted = 0.0, 0.0

    def agree() -> bool:
        of_these = [point for point in points() if point.seconds >= since]
        plotted = sum(after.drops * (after.seconds - before.seconds) for before, after in pairwise(of_these))
        return plotted == pytest.approx(dropped() - counted, rel=0.15)

    def agree_in_a_while() -> bool:
        """Whether they agree before long; else, as of a machine whose seconds are of unequal length, drop more."""
        nonlocal since, counted
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if agree():
                return True
        since, counted = points()[-1].seconds, dropped()
        for _ in range(20):
            assert stalled.push("slow", "e", MESSAGE)["status"] == 200
        return False

    assert eventually(agree_in_a_while, 40, "as many drops")


def test_lag_of_one_worker(serve: Serve) -> None:
    """A worker that stood still for a while is the one whose lag is plotted, as high as /metrics has it."""
    server = serve(workers=2)
    eventually(lambda: len(top(server).workers) == 2, what="both workers")
    victim = server.processes("worker")[0]

    def agree() -> bool:
        """Whether both tell of one more standstill: for a second or two, and not at the same moment."""
        os.kill(victim["pid"], signal.SIGSTOP)
        began = time.monotonic()
        eventually(lambda: time.monotonic() - began > LAG_SECONDS, what="a while")
        os.kill(victim["pid"], signal.SIGCONT)
        plotted, counted = [0.0], [0.0]
        while time.monotonic() - began < LAG_SECONDS + 4:
            plotted.append(dict(top(server).point.lags_ms).get(victim["number"], 0))
            counted.append(of_workers(server.metrics(), "fastpush_loop_lag_seconds").get(victim["number"], 0) * 1000)
            if max(plotted) >= LAG_SECONDS * 900 and max(plotted) == pytest.approx(max(counted), abs=1):
                return True
        return False

    assert eventually(agree, 60, "the same lag")
