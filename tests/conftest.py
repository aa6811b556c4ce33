"""Fixtures for tests that need a running server, and for those of its times."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import ECHO, Server
from tests.standstill import Standstill

# A suite that is started in the background ignores Ctrl-C, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, and nothing in the environment that a command would take up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("FASTPUSH_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def standstill() -> Iterator[Standstill]:
    """For how long the machine stood still during the test."""
    with Standstill() as watching:
        yield watching


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test; arguments as Server's."""
    servers: list[Server] = []

    def start(**kwargs: Any) -> Server:
        folder = tmp_path / f"server{len(servers)}"
        folder.mkdir()
        server = Server(folder, **kwargs)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if hasattr(server, "process"):
            server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with two workers and /echo for all tests of a module that leave it as it was."""
    running = Server(tmp_path_factory.mktemp("server"), workers=2, sections=ECHO)
    yield running
    running.stop()
