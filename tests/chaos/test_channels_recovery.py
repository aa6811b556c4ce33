"""A dropped connection is a non-event: subscribers come back, and have each publication once and in order.

FASTPUSH_TEST_LOAD=full runs it with 500 subscribers and 300 publications a second, for as long as the documentation
says.
"""

import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpush.protocol import bus
from tests.chaos.load import kill
from tests.load.driver import IS_FULL, ChannelLoad, Summary, show
from tests.programs import FASTPUSH, run
from tests.server import SCALE, Server, eventually

SECONDS = 60 if IS_FULL else 5
KILL_EVERY_SECONDS = 2
DRAIN_SECONDS = 5 if IS_FULL else 0.5
KILLS = 15 if IS_FULL else 2
CUTS_EACH = 5 if IS_FULL else 2
PERSONAL = 20
WORKERS = 4 if IS_FULL else 3
WRONG = ("lost", "doubled", "out_of_order", "gaps", "contradictions", "behind", "false_recoveries", "unexpected")

SECTIONS: dict[str, Any] = {
    "log": {"level": "info"},
    "client": {"anonymous": "loopback", "personal_namespace": "personal"},
    "channels.news": {"subscribe": "everybody", "history_messages": 2000, "recovery": True},
    "channels.personal": {"history_messages": 2000, "recovery": True},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Workers on a port that stays theirs."""
    server = Server(tmp_path, workers=WORKERS, sections=SECTIONS)
    server.write_config(WORKERS, SECTIONS)
    yield server
    server.stop()


def load_of(server: Server) -> ChannelLoad:
    """500 subscribers of 20 channels, or 120; all the while some leave a channel and come back at once."""
    return ChannelLoad(server, rate=300 if IS_FULL else 200, personal=PERSONAL, moves=100)


def settled(load: ChannelLoad) -> Summary:
    """Stop; nothing is wrong with what the subscribers have, and all of them are back."""
    summary = load.stop(40)
    assert not {name: summary[name] for name in WRONG if summary[name]}, summary
    assert summary["there"] == summary["subscribers"], summary
    assert summary["published"] > 100 and summary["received"] > summary["published"], summary
    return summary


def check_complete(summary: Summary) -> None:
    """Nobody was ever told that it has missed something: so `lost`, `doubled` and `out_of_order` judge everybody."""
    assert not summary["tellings"], summary
    assert summary["recoveries"] and summary["recovered"], summary


def ready(server: Server, role: str) -> list[int]:
    return [process["pid"] for process in server.processes(role) if process["state"] == "ready"]


def kill_one(server: Server, role: str) -> int:
    """Kill a random process of a role, once there is one that is ready."""
    pid = random.choice(eventually(lambda: ready(server, role), what=f"a {role} to kill"))
    kill(pid, signal.SIGKILL)
    return pid


def published(load: ChannelLoad, more: int) -> None:
    """Wait until so many publications more were taken."""
    before = load.status()["published"]
    eventually(lambda: load.status()["published"] > before + more, 60, "publications")


def test_a_worker_killed_every_two_seconds(server: Server) -> None:
    """While a random worker is killed every 2 s, every subscriber gets every publication once and in order: 0 lost,
    0 doubled, 0 out of order.
    """
    kills = 0
    with load_of(server) as load:
        began = time.monotonic()
        while (due := began + (kills + 1) * KILL_EVERY_SECONDS) < began + SECONDS:
            eventually(lambda: time.monotonic() >= due)
            kill_one(server, "worker")
            kills += 1
        summary = settled(load)
    show("worker killed every 2 s", summary, kills=kills)
    check_complete(summary)
    assert summary["closes"]


@pytest.mark.parametrize(
    ("arguments", "replaced"), [(("restart", "--rolling"), WORKERS), (("drain", "1"), 1)], ids=["rolling", "drain"]
)
def test_workers_replaced(server: Server, arguments: tuple[str, ...], replaced: int) -> None:
    """The same while workers are replaced one after the other, and while one is drained."""
    before = set(ready(server, "worker"))
    with load_of(server) as load:
        config = ("--config", str(server.config_path))
        result = run(*FASTPUSH, *arguments, "--seconds", str(DRAIN_SECONDS), *config)
        assert result.returncode == 0, result
        summary = settled(load)
    show(f"fastpush {' '.join(arguments)}", summary)
    check_complete(summary)
    assert len(before - set(ready(server, "worker"))) == replaced
    assert set(summary["closes"]) == {"3001"}, summary
    assert set(summary["refused"]) <= {"3001"}, summary  # open, and not yet connected, when its worker began to drain


def test_the_broker_killed_in_the_middle_of_traffic(server: Server) -> None:
    """No connection is closed, every subscription is told that it has missed something, and what a subscriber has
    between two tellings has no gap, is in order, and is the same as what the others have.
    """
    with load_of(server) as load:
        for _ in range(KILLS):
            published(load, 100)
            pid = kill_one(server, "broker")
            eventually(lambda: set(ready(server, "broker")) - {pid}, what="a broker")  # noqa: B023 - called here
        published(load, 100)
        summary = settled(load)
    show("broker killed", summary, kills=KILLS)
    assert not summary["closes"] and not summary["refused"], summary
    assert not summary["untold"], summary
    assert set(summary["unsubscribes"]) == {"2500"}, summary


def test_broker_and_workers_killed(server: Server) -> None:
    """Whatever is killed together: nobody has a gap, or something twice, that it was not told of."""
    with load_of(server) as load:
        for _ in range(KILLS):
            published(load, 50)
            for role in random.sample(["broker", "worker"], 2):
                kill_one(server, role)
            eventually(lambda: len(ready(server, "worker")) == WORKERS, what="all workers again")
        published(load, 100)
        summary = settled(load)
    show("broker and workers killed", summary, kills=KILLS)
    assert summary["tellings"], summary


def test_cut_links(server: Server) -> None:
    """A worker whose link to the broker is cut has its clients recover what was on its way: nobody is disconnected,
    everybody has every publication once and in order. Only of the channels that it is in by the server's will a client
    is told where they stand now, for it is not asked what it has of them.

    Whoever says HELLO with a worker's number makes the broker close that worker's link.
    """
    workers = [process["number"] for process in server.processes("worker")]
    with load_of(server) as load:
        for number in workers * CUTS_EACH:
            published(load, 20)
            cut(server, number)
        published(load, 20)
        summary = settled(load)
    show("links cut", summary, cuts=len(workers) * CUTS_EACH)
    assert set(summary["tellings"]) == {"personal"} and summary["recovered"], summary
    assert not summary["closes"] and not summary["refused"], summary
    assert set(summary["unsubscribes"]) == {"2500"}, summary


def cut(server: Server, worker: int) -> None:
    """Have the broker close a worker's link; return when the worker is back."""
    with socket.socket(socket.AF_UNIX) as intruder:
        intruder.settimeout(10 * SCALE)
        intruder.connect(str(next(server.runtime_directory.glob("bus-*"))))
        intruder.sendall(bus.encode(bus.HELLO, worker))
        while intruder.recv(4096):
            pass


def test_a_worker_stands_still(tmp_path: Path) -> None:
    """A worker that is stopped is replaced once it is found out; its subscribers then recover what they have missed."""
    sections = SECTIONS | {"server": {"hang_seconds": 2}}
    server = Server(tmp_path, workers=WORKERS, sections=sections)
    try:
        with load_of(server) as load:
            for _ in range(max(1, KILLS // 3)):
                published(load, 50)
                pid = random.choice(eventually(lambda: ready(server, "worker"), what="a worker"))
                kill(pid, signal.SIGSTOP)
                eventually(lambda: pid not in ready(server, "worker"), what="found out")  # noqa: B023 - called here
            published(load, 50)
            summary = settled(load)
    finally:
        server.stop()
    show("worker stopped", summary)
    check_complete(summary)


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest", "latest"])
def test_slow_subscribers(tmp_path: Path, policy: str) -> None:
    """Subscribers stop reading now and then, for longer than the server waits for them: closed, they recover what they
    have missed; else they are told how many they have missed, or have the newest, and what is missing was counted.
    """
    sections = SECTIONS | {
        "channels.news": {**SECTIONS["channels.news"], "slow_policy": policy},
        "connections": {"socket_send_bytes": 4096},
        "limits": {"send_queue_messages": 20},
    }
    subscribers, channels, each = 100, 10, 3
    server = Server(tmp_path, workers=2, sections=sections)
    try:
        with ChannelLoad(
            server, subscribers=subscribers, channels=channels, each=each, rate=200, size=2000, stalls=30,
            receive_bytes=32768,
        ) as load:  # fmt: skip
            published(load, 5000 if IS_FULL else 300)
            summary = load.stop(40)
        drops = server.metrics()["fastpush_drops_total"]
    finally:
        server.stop()
    show(f"slow subscribers, {policy}", summary, drops=drops)
    allowed = {"lost", "gaps"} if policy == "latest" else set()
    assert not {name: summary[name] for name in WRONG if summary[name]}.keys() - allowed, summary
    assert drops, summary
    if policy == "disconnect":
        check_complete(summary)
        assert summary["closes"].keys() >= {"3008"}, summary
    else:
        assert not summary["closes"], summary
        assert summary["received"] + drops == summary["published"] * subscribers * each / channels, summary
        assert bool(summary["tellings"]) == (policy == "drop-oldest"), summary


@pytest.mark.parametrize("bound", ["messages", "bytes"])
def test_histories_that_are_too_short(tmp_path: Path, bound: str) -> None:
    """Where a channel, or all together, keep less than is missed while workers are killed, subscribers are told so."""
    news = {**SECTIONS["channels.news"], "history_messages": 3 if bound == "messages" else 500}
    sections = SECTIONS | {"channels.news": news, "bus": {"history_bytes": 65536 if bound == "bytes" else 2**26}}
    size = 60 if bound == "messages" else 4000
    server = Server(tmp_path, workers=2, sections=sections)
    try:
        with ChannelLoad(server, subscribers=50, channels=3, rate=200, size=size, moves=100) as load:
            for _ in range(KILLS):
                published(load, 100)
                kill_one(server, "worker")
            published(load, 100)
            summary = settled(load)
    finally:
        server.stop()
    show(f"too few {bound} kept", summary)
    assert summary["tellings"] and summary["recoveries"], summary
