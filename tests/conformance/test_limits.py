"""Flow control of what comes in: each limit with what the peer sees, its metric, and that it ends with its cause."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.applications import workers
from tests.raw import TEXT, RawClient, build
from tests.server import ECHO, Server, eventually
from tests.wire import Wire, upgrade

OPENED: list[RawClient] = []


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers with limits; stop them, and close all clients, after the test."""
    servers = []

    def start(workers: int = 1, sections: dict[str, dict[str, Any]] | None = None, **limits: int) -> Server:
        server = Server(tmp_path, workers=workers, sections={"limits": limits, **(sections or {})})
        servers.append(server)
        return server

    yield start
    for client in OPENED:
        client.socket.close()
    OPENED.clear()
    for server in servers:
        server.stop()


def connect(server: Server, user: str = "jack", path: str = "/ws", **parameters: str) -> int:
    """Open a WebSocket that stays open until the end of the test; return its status."""
    if user:
        parameters |= {"token": user, "event": "e"}
    client = RawClient(server, path, **parameters)
    if client.status == 101:
        OPENED.append(client)
    return client.status


def close(client: RawClient) -> None:
    client.socket.close()
    OPENED.remove(client)


def handshakes(server: Server, outcome: str) -> int:
    samples = server.metrics()
    return int(
        sum(n for name, n in samples.items() if name.startswith(f'fastpush_handshakes_total{{outcome="{outcome}"'))
    )


def refusal(server: Server, query: str = "?token=jack&event=e", *headers: str) -> tuple[int, str | None, str]:
    """Ask for a WebSocket; return status, Retry-After and the reason of its refusal."""
    with Wire(server) as wire:
        reply = wire.send(upgrade(f"/ws{query}", *headers)).reply()
        if reply.status != 101:
            assert reply.closes and wire.is_ended()
        return reply.status, reply.header("retry-after"), reply.header("x-fastpush-error") or ""


# Of one connection


def test_messages_per_second(serve: Callable[..., Server]) -> None:
    """A second's worth of messages may come at once; the next one closes with 1008 and is counted."""
    server = serve(sections=ECHO, messages_per_second=5)
    with RawClient(server, "/echo") as client:
        client.send(*(build(TEXT, str(number).encode()) for number in range(6)))
        assert [client.read_text() for _ in range(5)] == list("01234")
        assert client.read_close() == (1008, "message rate")
    assert server.metrics()["fastpush_messages_over_rate_total"] == 1


# Of one worker


def test_handshakes_per_second(serve: Callable[..., Server]) -> None:
    """Over the rate a handshake is 503 with Retry-After: 1, counted, told in one line; a second later it is taken."""
    server = serve(handshakes_per_second=2)
    began = time.monotonic()
    refusals = [refusal(server) for _ in range(40)]
    refused = [one for one in refusals if one[0] != 101]
    assert [one[0] for one in refusals[:2]] == [101] * 2 and len(refused) >= 20
    assert {one[:2] for one in refused} == {(503, "1")} and "handshakes_per_second" in refused[0][2]
    assert handshakes(server, "rate") == len(refused)
    eventually(lambda: sum(line["rate"] for line in server.events("handshakes refused")) == len(refused))
    assert len(server.events("handshakes refused")) < 2 + time.monotonic() - began
    assert not server.events("handshake refused")
    eventually(lambda: refusal(server)[0] == 101, what="rate has recovered")


def test_pushes_do_not_count_as_handshakes(serve: Callable[..., Server]) -> None:
    """While handshakes are turned away, pushes and other requests are served."""
    server = serve(handshakes_per_second=1)
    for _ in range(5):
        refusal(server)
    assert server.push("nobody", "e", "m") == {"status": 200, "sent": 0}
    assert server.request("GET", "/health")[0] == 200


def test_connections_of_a_worker(serve: Callable[..., Server]) -> None:
    """The connection over [limits] connections is 503; pushes are served; one that ends makes room for one."""
    server = serve(connections=3)
    assert [connect(server, f"u{number}") for number in range(3)] == [101] * 3
    status, retry_after, reason = refusal(server)
    assert (status, retry_after) == (503, "1") and "[limits] connections" in reason
    assert handshakes(server, "connections") == 1
    assert server.push("u0", "e", "m")["sent"] == 1
    close(OPENED[0])
    eventually(lambda: connect(server, "later") == 101, what="room for one")
    assert connect(server) == 503


def test_refused_client_that_sends_on_reads_the_refusal(serve: Callable[..., Server]) -> None:
    """A refusal is not overtaken by a reset when the client has sent more behind its handshake."""
    server = serve(connections=1)
    connect(server)
    with Wire(server) as wire:
        wire.send(upgrade("/ws?token=jack&event=e") + b"x" * 5000)
        assert wire.reply().status == 503 and wire.is_ended()


def test_lagging_worker_takes_no_handshakes(serve: Callable[..., Server]) -> None:
    """A worker whose loop is behind answers handshakes with 503 and serves pushes, until it has caught up."""
    server = serve(max_lag_ms=1)
    worker = psutil.Process(server.pid_of_worker(server.processes("worker")[0]["number"]))

    def refused_after_a_stop() -> bool:
        worker.send_signal(signal.SIGSTOP)
        try:
            with Wire(server) as wire:
                time.sleep(0.15)  # the cause itself: a loop that does not turn for more than a tick
                wire.send(upgrade("/ws?token=jack&event=e"))
                worker.send_signal(signal.SIGCONT)
                return wire.reply().status == 503
        finally:
            worker.send_signal(signal.SIGCONT)

    eventually(refused_after_a_stop, what="a handshake refused for lag")
    assert handshakes(server, "lag") >= 1
    assert server.push("nobody", "e", "m")["status"] == 200
    assert server.metrics()["fastpush_loop_lag_seconds"] >= 0
    eventually(lambda: refusal(server)[0] == 101, what="the worker has caught up")


def test_lag_is_exported_by_worker(serve: Callable[..., Server]) -> None:
    """A worker that stood still shows for how long, under its own number; the others do not."""
    server = serve(workers=2)
    number = server.processes("worker")[0]["number"]
    other = server.processes("worker")[1]["number"]
    worker = psutil.Process(server.pid_of_worker(number))

    def lags() -> tuple[float, float]:
        samples = server.metrics()
        shown = [samples.get(f'fastpush_loop_lag_seconds{{worker="{each}"}}', 0) for each in (number, other)]
        return shown[0], shown[1]

    def is_shown() -> bool:
        """Whether a stop shows, before it is over, in the worker alone: the whole machine did not stand still."""
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.7)  # the cause itself
        worker.send_signal(signal.SIGCONT)
        began = time.monotonic()
        while time.monotonic() - began < 3:
            own, others = lags()
            if own > 0.4:
                return others < own
        return False

    eventually(is_shown, 20, "the lag is shown")
    eventually(lambda: lags()[0] < 0.4, what="the lag is over")


def test_flood_of_bad_handshakes_cannot_fill_the_log(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Refusals of all kinds get a line each while they are few, then one line a second with their number."""
    (tmp_path / "tokens.toml").write_text('"aaa" = "jack"\n')
    server = serve(sections={"auth": {"mode": "static", "tokens_file": str(tmp_path / "tokens.toml")}})
    for _ in range(100):
        assert refusal(server, "?token=wrong&event=e")[0] == 401

    def told() -> int:
        singles, others = server.events("handshake refused"), server.events("handshakes refused")
        return len(singles) + sum(line["unauthorized"] for line in others)

    eventually(lambda: told() == 100, what="every refusal is told")
    assert len(server.events("handshake refused")) < 90


# Of the whole host


def test_connections_per_user(serve: Callable[..., Server]) -> None:
    """Over all workers a user has so many connections and no more (429); other users and later ones are let in."""
    server = serve(workers=2, connections_per_user=5)
    with ExitStack() as stack:
        five = [stack.enter_context(Wire(server, worker=worker)) for worker in (workers(server) * 3)[:5]]
        assert [wire.send(upgrade("/ws?token=jack&event=e")).reply().status for wire in five] == [101] * 5
        assert {connect(server) for _ in range(25)} == {429}
        status, retry_after, reason = refusal(server)
        assert (status, retry_after) == (429, "10") and "connections_per_user" in reason
        assert handshakes(server, "user_connections") == 26
        assert connect(server, "jill") == 101
        assert server.push("jack", "e", "m")["sent"] == 5
        for wire in five[:2]:
            wire.socket.close()
        eventually(lambda: connect(server) == 101, what="room")
        eventually(lambda: connect(server) == 101, what="room for two")
        assert connect(server) == 429


def test_connections_per_user_by_message(serve: Callable[..., Server]) -> None:
    """A registration by message over the limit closes with 1008; it counts once however many events it has."""
    server = serve(workers=2, connections_per_user=2)
    assert connect(server) == 101
    assert connect(server, "", confirm="1") == 101
    second = OPENED[-1]
    for event in ("a", "b", "c"):
        second.text(f'{{"token":"jack","event":"{event}"}}')
        assert second.read_text() == f'{{"registered":"{event}"}}'
    third = RawClient(server, "/ws")
    third.text('{"token":"jack","event":"e"}')
    assert third.read_close() == (1008, "too many connections of this user")
    assert server.metrics()["fastpush_registrations_failed_total"] == 1
    close(second)

    def registers() -> bool:
        client = RawClient(server, "/ws", confirm=1)
        client.text('{"token":"jack","event":"e"}')
        frame = client.read()
        OPENED.append(client)
        return frame.payload == b'{"registered":"e"}'

    eventually(registers, what="room")


def test_connections_per_address(serve: Callable[..., Server]) -> None:
    """Over all workers an address has so many connections, whatever users they are; registered or not."""
    server = serve(workers=2, connections_per_address=3, sections=ECHO)
    assert [connect(server, "a"), connect(server, ""), connect(server, "", "/echo")] == [101] * 3
    status, retry_after, reason = refusal(server, "")
    assert (status, retry_after) == (429, "10") and "connections_per_address" in reason
    assert handshakes(server, "address_connections") == 1
    assert server.push("a", "e", "m")["sent"] == 1
    close(OPENED[1])
    eventually(lambda: connect(server, "b") == 101, what="room")
    assert connect(server, "c") == 429


def test_address_behind_a_trusted_proxy(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Behind a trusted proxy the forwarded address counts and is logged; IPv6 counts by /64."""
    (tmp_path / "tokens.toml").write_text('"aaa" = "jack"\n')
    server = serve(
        connections_per_address=1,
        sections={
            "server": {"trusted_proxies": ["127.0.0.0/8"]},
            "auth": {"mode": "static", "tokens_file": str(tmp_path / "tokens.toml")},
            "push": {"auth": "keys", "keys": ["0123456789abcdef-good"]},
        },
    )

    def status(forwarded: str) -> int:
        wire = Wire(server)
        kept.append(wire)
        return wire.send(upgrade("/ws?token=aaa&event=e", f"X-Forwarded-For: {forwarded}")).reply().status

    kept: list[Wire] = []
    try:
        assert [status("198.51.100.1"), status("9.9.9.9, 198.51.100.2")] == [101, 101]
        assert [status("198.51.100.1"), status("8.8.8.8, 198.51.100.2, 127.0.0.9")] == [429, 429]
        assert [status("2001:db8:0:1::1"), status("2001:db8:0:1::2"), status("2001:db8:0:2::1")] == [101, 429, 101]
        known = {"198.51.100.1", "198.51.100.2", "2001:db8:0:1::1", "2001:db8:0:2::1"}
        eventually(lambda: {line["peer"] for line in server.events("connection opened")} == known, what="peers logged")
    finally:
        for wire in kept:
            wire.socket.close()


def test_forwarded_address_of_a_stranger_is_ignored(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Without trusted_proxies nobody gets more connections by writing other addresses into the header."""
    (tmp_path / "tokens.toml").write_text('"aaa" = "jack"\n')
    server = serve(
        connections_per_address=1,
        sections={
            "auth": {"mode": "static", "tokens_file": str(tmp_path / "tokens.toml")},
            "push": {"auth": "keys", "keys": ["0123456789abcdef-good"]},
        },
    )
    with Wire(server) as wire:
        assert wire.send(upgrade("/ws?token=aaa&event=e", "X-Forwarded-For: 198.51.100.1")).reply().status == 101
        assert refusal(server, "?token=aaa&event=e", "X-Forwarded-For: 198.51.100.2")[0] == 429


def test_one_address_with_most_connections_is_told(serve: Callable[..., Server]) -> None:
    """With a limit per address and most of 100 connections from one, a warning names it and trusted_proxies, once."""
    server = serve(connections_per_address=1000)
    assert {connect(server, f"u{number}") for number in range(99)} == {101}
    assert not [line for line in server.events() if line["level"] == "warning"]
    assert {connect(server, f"v{number}") for number in range(20)} == {101}
    (warning,) = [line for line in server.events() if line["level"] == "warning"]
    assert "trusted_proxies" in warning["event"] and warning["peer"] == "127.0.0.1"


@pytest.mark.parametrize("victim", ["worker", "broker"])
def test_counts_survive_a_kill(serve: Callable[..., Server], victim: str) -> None:
    """A killed worker's connections count no more, at once; a killed broker's successor knows the count exactly."""
    server = serve(workers=2, connections_per_user=8)
    assert [connect(server) for _ in range(9)] == [101] * 8 + [429]
    process = server.processes(victim)[0]
    mine = {client for client in OPENED if victim == "worker" and server.worker_of(client.port) == process["number"]}
    os.kill(process["pid"], signal.SIGKILL)
    eventually(lambda: process["pid"] not in [p["pid"] for p in server.processes(victim)], what="its successor")
    for client in mine:
        assert client.socket.recv(1) == b""
        close(client)
    for _ in range(len(mine)):
        assert connect(server) == 101
    assert connect(server) == 429
    close(OPENED[0])
    eventually(lambda: connect(server) == 101, what="room")
    assert connect(server) == 429


def test_without_a_broker_an_admission_waits(serve: Callable[..., Server]) -> None:
    """While the broker does not answer a handshake waits, at most register_timeout_seconds, then it is 503."""
    server = serve(connections_per_user=1, register_timeout_seconds=0.5)
    broker = psutil.Process(server.processes("broker")[0]["pid"])
    broker.suspend()
    try:
        status, retry_after, reason = refusal(server)
        assert (status, retry_after) == (503, "1") and "broker" in reason
    finally:
        broker.resume()
    eventually(lambda: connect(server) == 101, what="what was given up does not count")
    assert connect(server) == 429


def test_client_that_leaves_while_it_waits_does_not_count(serve: Callable[..., Server]) -> None:
    """Who leaves before the broker has answered holds no place."""
    server = serve(connections_per_user=1, connections_per_address=1)
    broker = psutil.Process(server.processes("broker")[0]["pid"])
    for how in (socket.SHUT_RDWR, socket.SHUT_WR):
        broker.suspend()
        with Wire(server) as wire:
            wire.send(upgrade("/ws?token=jack&event=e"))
            eventually(lambda: server.events("accepted"))
            wire.socket.shutdown(how)
        broker.resume()
    eventually(lambda: connect(server) == 101, what="a free place")
    assert connect(server) == 429
