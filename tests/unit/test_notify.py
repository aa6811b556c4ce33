"""fastpush.supervisor.notify: what systemd is told and when, and that nobody suffers when it cannot be told."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastpush.supervisor.notify import FEEDS, REPLACE_SECONDS, STATUS_SECONDS, Notifier, Reporter

HANG_SECONDS = 10.0


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """Return systemd's end; $NOTIFY_SOCKET names it."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        yield end


def said(double: socket.socket) -> list[str]:
    """Return what has come since the last call, one text a datagram."""
    texts = []
    while True:
        try:
            texts.append(double.recv(1000).decode())
        except BlockingIOError:
            return texts


def test_says_nothing_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $NOTIFY_SOCKET every call does nothing, and nothing is watched or stored."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier()
    notifier.ready("fine")
    notifier.stopping(1)
    notifier.feed()
    assert not notifier and notifier.watchdog_seconds == 0
    assert not notifier.store("name", [0])


def test_hides_the_protocol_from_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variables are gone from the environment: programs that workers start cannot speak for the service."""
    names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
    for name in names:
        monkeypatch.setenv(name, "1")
    Notifier()
    assert not {*names} & {*os.environ}


def test_sends_one_datagram_a_state(double: socket.socket) -> None:
    """Each state is one datagram in the words of sd_notify(3); stopping asks for the drain and for what follows it."""
    notifier = Notifier()
    notifier.ready("2 workers ready")
    notifier.status("busy")
    notifier.feed()
    notifier.forget("old")
    notifier.stopping(1.5)
    assert said(double) == [
        "READY=1\nSTATUS=2 workers ready",
        "STATUS=busy",
        "WATCHDOG=1",
        "FDSTOREREMOVE=1\nFDNAME=old",
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=11500000\nSTATUS=stopping, within 1.5 s",
    ]


def test_speaks_to_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that begins with @ is an abstract socket."""
    name = f"@fastpush-unit-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.setblocking(False)
        Notifier().feed()
        assert said(end) == ["WATCHDOG=1"]


def test_stores_descriptors(double: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """FDSTORE=1 carries copies of the descriptors themselves."""
    monkeypatch.setenv("FDSTORE", "512")
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        assert Notifier().store("fastpush-slot-3", [one.fileno(), two.fileno()])
        datagram, descriptors, _, _ = socket.recv_fds(double, 1000, 10)
        assert datagram == b"FDSTORE=1\nFDNAME=fastpush-slot-3"
        copies = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        assert [copy.getsockname() for copy in copies] == [one.getsockname(), two.getsockname()]
        for copy in copies:
            copy.close()


@pytest.mark.parametrize("size", ["0", "", None])
def test_without_a_store_nothing_is_sent(
    double: socket.socket, monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    """A unit without FileDescriptorStoreMax= has no $FDSTORE: nothing is stored, and the caller is told so."""
    monkeypatch.delenv("FDSTORE", raising=False)
    if size is not None:
        monkeypatch.setenv("FDSTORE", size)
    assert not Notifier().store("name", [0])
    assert said(double) == []


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [("30000000", "", 30.0), ("30000000", "own", 30.0), ("30000000", "1", 0.0), ("", "", 0.0), ("x", "", 0)],
)
def test_watchdog_is_for_one_process(
    double: socket.socket, monkeypatch: pytest.MonkeyPatch, microseconds: str, pid: str, seconds: float
) -> None:
    """$WATCHDOG_USEC counts for the process of $WATCHDOG_PID, or for whoever gets it where that is not set."""
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert Notifier().watchdog_seconds == seconds


def test_survives_a_missing_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody at the other end is a warning, not an error, and nothing counts as stored."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("FDSTORE", "512")
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    assert not Notifier().store("name", [0])
    assert caplog.messages == ["systemd not told"]


class Host:
    """Processes as Children.status shows them, on a clock of its own, and the reporter that watches them."""

    def __init__(self, double: socket.socket, *, watchdog: bool = True) -> None:
        self.double = double
        self.now = 100.0
        self.broker: dict[str, Any] = {
            "role": "broker",
            "number": 1,
            "state": "ready",
            "last_beat_ms": 0,
            "figures": {},
        }
        self.workers = [self.worker(2), self.worker(3)]
        os.environ |= {"WATCHDOG_USEC": "30000000"} if watchdog else {}  # Notifier takes it out again
        self.reporter = Reporter(Notifier(), lambda _: [self.broker, *self.workers])

    @staticmethod
    def worker(number: int, connections: int = 0, pushes: int = 0) -> dict[str, Any]:
        figures = {"connections": connections, "pushes": pushes}
        return {"role": "worker", "number": number, "state": "ready", "last_beat_ms": 0, "figures": figures}

    def go(self, seconds: float) -> list[str]:
        """Let time pass as the supervisor's loop does, turn by turn; what was said."""
        end, texts = self.now + seconds, []
        while self.reporter.deadline <= end:
            passed = max(0.0, self.reporter.deadline - self.now)
            self.now += passed
            if self.broker["state"] != "ready" or self.broker["last_beat_ms"]:
                self.broker["last_beat_ms"] += passed * 1000
            self.reporter.attend(self.now, HANG_SECONDS)
            texts += said(self.double)
        self.now = end
        return texts


def test_reports_nothing_before_ready(double: socket.socket) -> None:
    """A service that starts has no watchdog and no status yet."""
    host = Host(double)
    assert host.reporter.deadline == float("inf")
    host.reporter.ready(host.now)
    assert said(double) == ["READY=1\nSTATUS=0 connections, 0 pushes/s, 2 workers ready"]


def test_feeds_several_times_a_period(double: socket.socket) -> None:
    """While all is well WATCHDOG=1 comes three times in each period; the status, which does not change, is not sent."""
    host = Host(double)
    host.reporter.ready(host.now)
    said(double)
    assert host.go(29.9) == ["WATCHDOG=1"] * FEEDS


def test_status_is_sent_when_it_changes(double: socket.socket) -> None:
    """Connections are summed over workers, pushes become a rate; a replaced worker's counts begin anew."""
    host = Host(double, watchdog=False)
    host.reporter.ready(host.now)
    said(double)
    host.workers = [host.worker(2, 10, 50), host.worker(3, 5, 50)]
    assert host.go(STATUS_SECONDS) == ["STATUS=15 connections, 20 pushes/s, 2 workers ready"]
    host.workers = [host.worker(2, 10, 50), host.worker(4, 0, 25) | {"state": "starting"}]
    assert host.go(STATUS_SECONDS) == ["STATUS=10 connections, 5 pushes/s, 1 workers ready"]
    assert host.go(STATUS_SECONDS) == ["STATUS=10 connections, 0 pushes/s, 1 workers ready"]
    assert host.go(10 * STATUS_SECONDS) == []


def test_silent_workers_do_not_stop_the_watchdog(double: socket.socket) -> None:
    """Workers may be as silent as they like: replacing them is the supervisor's business."""
    host = Host(double)
    host.reporter.ready(host.now)
    said(double)
    host.workers = [worker | {"last_beat_ms": 1_000_000, "state": "killed"} for worker in host.workers]
    assert host.go(299.9).count("WATCHDOG=1") == 30


@pytest.mark.parametrize("state", ["ready", "starting", "killed"])
def test_silent_broker_stops_the_watchdog(
    double: socket.socket, state: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that does not answer has hang_seconds and the time of its replacement; its successor starts it again."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    host = Host(double)
    host.reporter.ready(host.now)
    said(double)
    host.broker |= {"state": state, "last_beat_ms": 1}
    assert host.go(HANG_SECONDS + REPLACE_SECONDS).count("WATCHDOG=1") == 2
    assert host.go(100) == []
    assert caplog.messages == ["watchdog not fed"]
    host.broker |= {"state": "ready", "last_beat_ms": 0}
    assert host.go(10) == ["WATCHDOG=1"]


def test_drain_is_fed_without_a_broker(double: socket.socket) -> None:
    """While the service stops, its own deadline counts, and the status is not overwritten."""
    host = Host(double)
    host.reporter.ready(host.now)
    host.reporter.stopping(60)
    said(double)
    host.broker |= {"state": "draining", "last_beat_ms": 1}
    host.workers = []
    assert host.go(59.9) == ["WATCHDOG=1"] * 6


def test_nobody_to_report_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without systemd the reporter is never due and asks for no figures."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    reporter = Reporter(Notifier(), lambda _: pytest.fail("asked"))
    reporter.ready(1.0)
    assert reporter.deadline == float("inf")
