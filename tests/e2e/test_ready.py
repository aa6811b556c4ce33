"""GET /ready on a running server: whether this host should get clients, and the same answer from every worker."""

import http.client
import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from fastpush.control_client import ask
from tests.applications import open_client
from tests.server import SCALE, Server, eventually

Serve = Callable[..., Server]
Answer = tuple[int, str, str]


def answer(connection: http.client.HTTPConnection) -> Answer:
    connection.request("GET", "/ready")
    response = connection.getresponse()
    body = json.loads(response.read())
    return response.status, body["status"], body.get("reason", "")


def connect_to_each(server: Server) -> dict[int, http.client.HTTPConnection]:
    """A kept-alive connection to every worker, by the number of its process."""
    found: dict[int, http.client.HTTPConnection] = {}
    numbers = {process["number"] for process in server.processes("worker")}

    def has_all() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20 * SCALE)
        connection.connect()
        number = server.worker_of(connection.sock.getsockname()[1])
        if number in found:
            connection.close()
        else:
            found[number] = connection
        return numbers <= set(found)

    eventually(has_all, what="a connection to each worker")
    return found


def test_every_worker_says_ready(serve: Serve) -> None:
    """From the moment the server says that it is ready each worker answers 200."""
    connections = connect_to_each(serve(workers=3))
    assert {answer(connection) for connection in connections.values()} == {(200, "ready", "")}
    for connection in connections.values():
        connection.close()


def command(server: Server, **request: Any) -> None:
    ask(str(server.runtime_directory / "control"), request)


def test_every_worker_says_that_the_host_drains(serve: Serve) -> None:
    """While the whole server drains each worker answers 503 with the reason; /health goes on saying that it lives."""
    server = serve(workers=3)
    connections = connect_to_each(server)
    with ExitStack() as clients:
        for worker in connections:  # with three clients each, of which it has to keep some: else it ends at once
            for _ in range(3):
                clients.enter_context(open_client(server, "/ws", "token=aaa&event=e", worker=worker, close_timeout=1))
        command(server, command="drain", seconds=600)
        eventually(lambda: server.status()["state"] == "draining", what="draining")
        for connection in connections.values():
            eventually(lambda c=connection: answer(c) == (503, "not ready", "draining"), what="503")
            connection.close()
        assert server.request("GET", "/health")[0] == 200


def test_a_worker_that_drains_says_what_the_host_is(serve: Serve) -> None:
    """While one worker is replaced the host stays ready: its successor says so, and the old process as well."""
    server = serve(workers=2)
    connections = connect_to_each(server)
    old = server.processes("worker")[0]["number"]
    command(server, command="drain", worker=0, seconds=0)
    eventually(lambda: server.status()["operation"]["is_done"], what="replaced")
    assert old not in {process["number"] for process in server.processes("worker")}
    for number, connection in connect_to_each(server).items():
        assert answer(connection) == (200, "ready", ""), number
        connection.close()
    for connection in connections.values():
        connection.close()


def test_a_lost_broker_is_told_by_all(serve: Serve) -> None:
    """With a broker that was stopped and is being replaced, every worker says so, until a new one serves."""
    server = serve(workers=2, sections={"server": {"hang_seconds": 1}})
    connections = connect_to_each(server)
    seen: set[Answer] = set()
    os.kill(server.processes("broker")[0]["pid"], signal.SIGSTOP)

    def is_well_again() -> bool:
        answers = {answer(connection) for connection in connections.values()}
        seen.update(answers)
        return len(server.events("process ready")) > 3 and answers == {(200, "ready", "")}

    eventually(is_well_again, what="ready again")
    assert seen <= {(200, "ready", ""), (503, "not ready", "the broker is being restarted")}
    for connection in connections.values():
        connection.close()
