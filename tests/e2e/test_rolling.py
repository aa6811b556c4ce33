"""Workers are replaced, drained and stopped under load: nobody is refused, everybody is sent away evenly and comes
back, and no push to a connected client is lost. FASTPUSH_TEST_LOAD=full runs it with 3,000 clients and 500 pushes/s.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.load.driver import IS_FULL, Load, Summary, check_exact, show
from tests.notify import Systemd
from tests.programs import FASTPUSH, Program, run
from tests.proxies import free_port
from tests.raw import RawClient
from tests.server import SCALE, Server, eventually
from tests.standstill import Standstill
from tests.wire import Wire, push, upgrade

SECONDS = 10 if IS_FULL else 3
KEY = "key-of-the-load-0123456789"
VISITS = 20  # a second, beside the clients that come back: they show whether anybody is refused in between
# The figure is 500 ms; the short run shares the machine with whatever else is tested.
SLOWEST_MS = (500 if IS_FULL else 2000) * SCALE


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Two workers on a port that stays theirs over a restart."""
    server = Server(tmp_path, workers=2, sections={"log": {"level": "info"}})
    server.write_config(2, {"log": {"level": "info"}})
    yield server
    server.stop()


@contextmanager
def under_load(server: Server, **options: Any) -> Iterator[Load]:
    with Load(server, **({"visits": VISITS} | options)) as load:
        # Publishers and visitors are at their pace.
        eventually(lambda: load.status()["replies"]["count"] > 100, what="pushes")
        yield load


def command(server: Server, *arguments: str) -> str:
    """Run a command of `fastpush` to its end; return what it printed."""
    result = run(*FASTPUSH, *arguments, "--config", str(server.config_path))
    assert result.returncode == 0 and "Traceback" not in result.stderr, result
    return result.stdout


def everybody_back(load: Load) -> Summary:
    """Wait until every client is there again; stop; return the summary."""
    eventually(lambda: load.status()["connected"] == load.clients, 30, "every client back")
    return load.stop()


def check_even(summary: Summary, standstill: Standstill) -> None:
    """Fail if a second has more than twice the mean of closes, or another code than 1012 was given."""
    assert set(summary["closes"]) == {"1012"}, summary
    at_once = 1 + standstill.seconds  # what was held up comes with what is due
    assert summary["closes_per_second_max"] <= 2 * at_once * summary["closes_per_second_mean"], summary


def check_spread(summary: Summary, standstill: Standstill) -> None:
    """Fail unless the closes were spread over the time that was asked for."""
    assert SECONDS - 1 <= len(summary["closes_per_second"]) <= SECONDS + 1 + standstill.seconds, summary


def check_served(summary: Summary, standstill: Standstill) -> None:
    """Fail if a connect was refused or slow, a push not taken, or a message lost."""
    check_exact(summary)
    assert set(summary["pushes"]) == {"200"}, summary
    assert not summary["refused"] and not summary["publishers_refused"], summary
    slowest_ms = SLOWEST_MS + standstill.seconds * 1000
    assert summary["connects"]["count"] > 0 and summary["connects"]["max_ms"] <= slowest_ms, summary


def pids(server: Server) -> dict[int, int]:
    return {process["slot"]: process["pid"] for process in server.processes("worker") if process["state"] == "ready"}


def test_rolling_restart(server: Server, standstill: Standstill) -> None:
    """Both workers are replaced, one after the other: clients are closed evenly and come back, nobody is refused."""
    before = pids(server)
    with under_load(server) as load:
        printed = command(server, "restart", "--rolling", "--seconds", str(SECONDS))
        summary = everybody_back(load)
    show("rolling restart", summary)
    assert "2 of 2 workers" in printed and "not loaded anew" in printed
    assert sorted(pids(server)) == [0, 1] and not set(pids(server).values()) & set(before.values())
    check_served(summary, standstill)
    check_even(summary, standstill)
    assert sum(summary["closes_per_second"]) >= load.clients


def test_drain_of_a_worker(server: Server, standstill: Standstill) -> None:
    """One worker's clients are closed evenly over the time that was asked for; its successor was ready before."""
    before = pids(server)
    with under_load(server) as load:
        command(server, "drain", "1", "--seconds", str(SECONDS))
        summary = everybody_back(load)
    show("drain of a worker", summary)
    assert pids(server)[0] == before[0] and pids(server)[1] != before[1]
    check_served(summary, standstill)
    check_even(summary, standstill)
    assert 0 < sum(summary["closes_per_second"]) < load.clients
    check_spread(summary, standstill)


def test_connections_that_were_accepted_before_a_drain(tmp_path: Path) -> None:
    """Who was accepted just before, and asks only now, is served: a push is answered, a WebSocket is opened and later
    sent away as the others are.
    """
    sections = {"connections": {"close_timeout_seconds": 1}}  # those below do not answer a close
    server = Server(tmp_path, workers=1, sections=sections)
    server.write_config(1, sections)
    drain = (*FASTPUSH, "drain", "0", "--seconds", "3", "--config", str(server.config_path))
    with ExitStack() as stack:
        stack.callback(server.stop)
        pushing, opening = [stack.enter_context(Wire(server)) for _ in range(2)]
        for wire in (pushing, opening):
            server.worker_of(wire.socket.getsockname()[1])  # it is accepted
        for _ in range(10):  # somebody to be sent away meanwhile
            stack.enter_context(RawClient(server, "/ws", token="jack", event="e"))
        running = stack.enter_context(Program(*drain))
        eventually(lambda: any(p["state"] == "draining" for p in server.processes("worker")), what="draining")
        reply = pushing.send(push("nobody", "e", "m")).reply()
        assert reply.status == 200 and reply.closes
        assert opening.send(upgrade("/ws?token=jill&event=e")).reply(to_head=True).status == 101
        assert opening.websocket_close() == 1012
        opening.socket.close()
        assert running.wait() == 0


def test_drain_of_the_server(server: Server, standstill: Standstill) -> None:
    """The whole server sends its clients away evenly while pushes are taken, answers new ones with 503, and ends."""
    arguments = ("drain", "--seconds", str(SECONDS), "--config", str(server.config_path))
    with under_load(server, visits=0) as load:
        assert server.request("GET", "/ready")[0] == 200
        with Program(*FASTPUSH, *arguments) as drain:
            eventually(lambda: server.request("GET", "/ready")[0] == 503, what="not ready")
            assert server.request("GET", "/health")[0] == 200
            assert server.push("nobody", "e", "m")["status"] == 200
            eventually(lambda: load.status()["refused"].get("503"), what="handshakes refused")
            assert drain.wait(SECONDS + 20) == 0
        assert server.process.wait(10 * SCALE) == 0
        server.stderr.close()
        summary = load.status()
        show("drain of the server", summary)
        check_even(summary, standstill)
        assert summary["closes"] == {"1012": load.clients}
        check_spread(summary, standstill)
        server.start()
        after = everybody_back(load)
    check_exact(after)
    # Who stood in the kernel's queue at the very end is reset, and who was accepted but had not asked yet is closed.
    assert set(after["refused"]) <= {"503", "connection refused", "connection reset by peer", "end of stream"}, after


def test_stop_and_start(server: Server) -> None:
    """SIGTERM closes every client with 1012 and loses no push; after the next start all of them come back."""
    with under_load(server, visits=0) as load:
        server.signal(signal.SIGTERM)
        assert server.process.wait(30 * SCALE) == 0
        server.stderr.close()
        summary = load.status()
        show("stop", summary)
        assert summary["closes"] == {"1012": load.clients}, summary
        server.start()
        summary = everybody_back(load)
    show("stop and start", summary)
    check_exact(summary)


def test_restart_on_kept_sockets(tmp_path: Path, standstill: Standstill) -> None:
    """Stop and start over a notification socket that keeps the listening ones: every client comes back, 50 others a
    second connect meanwhile, nobody is refused, and who waits longest waits for stop and start.
    """
    sections = {"server": {"listen": f"127.0.0.1:{free_port()}"}, "log": {"level": "info"}}
    with Systemd(tmp_path) as systemd:
        server = Server(tmp_path, workers=2, sections=sections, environ=systemd.environ())
        try:
            with under_load(server, visits=50) as load:
                began = time.monotonic()
                assert server.stop() == 0
                stopped = time.monotonic()
                server = Server(tmp_path, workers=2, sections=sections, environ=systemd.environ(), **systemd.passed())
                started = time.monotonic()
                summary = everybody_back(load)
        finally:
            server.stop()
    show("restart on kept sockets", summary, stop_seconds=stopped - began, start_seconds=started - stopped)
    check_exact(summary)
    # The time for it is short, as others wait: of thousands, some may get no close frame.
    assert set(summary["closes"]) <= {"1012", "end of stream"} and summary["closes"]["1012"] >= load.clients / 2
    assert not summary["refused"] and not summary["publishers_refused"], summary
    slowest_ms = (started - began + standstill.seconds) * 1000 + SLOWEST_MS
    assert summary["connects"]["max_ms"] <= slowest_ms, summary


def test_worker_stopped_by_signal(server: Server, standstill: Standstill) -> None:
    """A worker that somebody sends SIGTERM is replaced; its clients come back and nobody is refused."""
    before = pids(server)
    with under_load(server) as load:
        child(server, before[0]).terminate()
        eventually(lambda: pids(server).get(0, before[0]) != before[0], what="successor")
        summary = everybody_back(load)
    show("worker stopped by signal", summary)
    check_served(summary, standstill)
    assert set(summary["closes"]) == {"1012"}


def test_reloads_during_a_rolling_restart(server: Server, standstill: Standstill) -> None:
    """Settings that come while workers are replaced are those of every worker in the end, old and new."""

    def write(key: str) -> None:
        server.write_config(2, {"log": {"level": "info"}, "push": {"auth": "keys", "keys": [KEY, key]}})

    def statuses(key: str) -> set[int]:
        return {server.push("nobody", "e", "m", **{"X-API-Key": key})["status"] for _ in range(8)}

    write("key-of-the-beginning")
    command(server, "reload")
    with under_load(server, key=KEY) as load:
        arguments = ("restart", "--rolling", "--seconds", "2", "--config", str(server.config_path))
        with Program(*FASTPUSH, *arguments) as restart:
            for number in count():
                write(f"key-of-reload-{number:04}")
                command(server, "reload")
                if restart.process.poll() is not None:
                    break
            assert restart.wait() == 0 and number > 1
        assert statuses(f"key-of-reload-{number:04}") == {200}
        assert statuses(f"key-of-reload-{number - 1:04}") == {401}
        summary = everybody_back(load)
    show("reloads during a rolling restart", summary, reloads=number + 1)
    check_served(summary, standstill)
    check_even(summary, standstill)


def test_kills_during_a_rolling_restart(server: Server) -> None:
    """An old worker that is killed while it drains, and a broker too, cost their own clients a reconnect at most."""
    with under_load(server) as load:
        arguments = ("restart", "--rolling", "--seconds", "2", "--config", str(server.config_path))
        with Program(*FASTPUSH, *arguments) as restart:
            draining = eventually(lambda: [p for p in server.processes("worker") if p["state"] == "draining"])
            child(server, draining[0]["pid"]).kill()
            child(server, server.processes("broker")[0]["pid"]).kill()
            assert restart.wait() == 0
        summary = everybody_back(load)
    show("kills during a rolling restart", summary)
    check_exact(summary)
    assert not summary["refused"].get("connection refused") and not summary["publishers_refused"], summary
    assert set(summary["closes"]) <= {"1012", "end of stream", "connection reset by peer"}, summary


def test_stop_during_a_rolling_restart(server: Server) -> None:
    """SIGTERM in the middle of it ends the server as ever: clients closed with 1012, no push lost, exit code 0."""
    with under_load(server, visits=0) as load:
        arguments = ("restart", "--rolling", "--seconds", "60", "--config", str(server.config_path))
        with Program(*FASTPUSH, *arguments) as restart:
            eventually(lambda: load.status()["closes"], what="first closes")
            server.signal(signal.SIGTERM)
            assert server.process.wait(20 * SCALE) == 0 and restart.wait() == 1
        server.stderr.close()
        summary = load.stop()
    show("stop during a rolling restart", summary)
    check_exact(summary)
    assert set(summary["closes"]) == {"1012"} and not summary["connected"], summary


def child(server: Server, pid: int) -> psutil.Process:
    return next(process for process in server.children() if process.pid == pid)
