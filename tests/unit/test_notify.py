"""fastpush.supervisor.notify: what systemd is told, and that nobody suffers when it cannot be told."""

import logging
import os
import socket
from pathlib import Path

import pytest

from fastpush.supervisor.notify import Notifier


def test_says_nothing_without_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $NOTIFY_SOCKET both calls do nothing."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready()
    notifier.stopping()


def test_hides_the_socket_from_children(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable is gone from the environment: programs that workers start cannot speak for the service."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


@pytest.mark.parametrize("abstract", [False, True])
def test_sends_one_datagram_a_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, abstract: bool) -> None:
    """READY=1 and STOPPING=1 arrive as they are, at a path and at an abstract name."""
    name = f"@fastpush-unit-{os.getpid()}" if abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as double:
        double.bind(name.replace("@", "\0"))
        notifier = Notifier()
        notifier.ready()
        notifier.stopping()
        assert [double.recv(100), double.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_survives_a_missing_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody at the other end is a warning, not an error."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    Notifier().ready()
    assert caplog.messages == ["systemd not told"]
