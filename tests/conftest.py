"""Fixtures for tests that need a running server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server


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
    running = Server(tmp_path_factory.mktemp("server"), workers=2, sections={"echo": {"enabled": True}})
    yield running
    running.stop()
