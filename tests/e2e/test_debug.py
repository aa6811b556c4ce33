"""`fastpush debug` and SIGUSR1 against the real server: what its processes are doing, told while they serve on."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.sync.client import connect

from tests.programs import FASTPUSH, run
from tests.server import SCALE, Server, eventually

Serve = Callable[..., Server]
BLOCKING = """
import os, time

async def check(token, headers):
    if token == "blocking":
        wait_for_file()
    return token

def wait_for_file():
    while not os.path.exists("go"):
        time.sleep(0.01)
"""
UPGRADE = (
    "GET /ws?token={token}&event=e HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SLOW_MESSAGES = 8
MESSAGE = "secret " * 8000
LIMITS = {"send_queue_messages": 100, "send_queue_bytes": 4_000_000}
SIGUSR1_BIT = 1 << (signal.SIGUSR1 - 1)


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose commands find it by its configuration."""
    running = Server(tmp_path_factory.mktemp("inspected"), workers=2, sections={"limits": LIMITS})
    yield running
    running.stop()


def debug(server: Server, *arguments: str) -> tuple[int, str, str]:
    """Run the command: exit code, output, errors; no traceback, and nothing that moves a cursor."""
    result = run(*FASTPUSH, "debug", *arguments, "--config", str(server.config_path))
    for text in (result.stdout, result.stderr):
        assert "Traceback" not in text
        assert all(character.isprintable() or character == "\n" for character in text)
    return result.returncode, result.stdout, result.stderr


def told(server: Server, *arguments: str) -> dict[str, Any]:
    """Run the command with --json: what it tells."""
    code, out, error = debug(server, *arguments, "--json")
    assert (code, error, out.count("\n")) == (0, "", 1)
    found: dict[str, Any] = json.loads(out)
    return found


def workers_of(server: Server) -> list[str]:
    return [f"worker-{process['number']}" for process in server.processes("worker")]


def check_serves(server: Server) -> None:
    """A push reaches a client."""
    with connect(server.ws_url("token=check&event=e")) as client:
        assert server.push("check", "e", "still here")["sent"] == 1
        assert client.recv(timeout=10 * SCALE) == "still here"


@contextmanager
def slow_client(server: Server, user: str) -> Iterator[int]:
    """A client that reads nothing, with messages waiting for it: its port."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20 * SCALE)
        client.connect(("127.0.0.1", server.port))
        client.sendall(UPGRADE.format(token=quote(user)).encode())
        assert client.recv(12) == b"HTTP/1.1 101"
        for _ in range(SLOW_MESSAGES):
            assert server.push(user, "e", MESSAGE)["sent"] == 1
        yield client.getsockname()[1]


def worker_with(server: Server, port: int) -> str:
    """The name in logs of the worker that serves the client of this port."""
    return f"worker-{server.worker_of(port)}"


# -- The command --------------------------------------------------------------------


def test_stacks(inspected: Server) -> None:
    """S2-22: every thread of a worker, by slot or name, and of the broker: for people and as JSON."""
    number, pid = (inspected.processes("worker")[1][key] for key in ("number", "pid"))
    code, out, error = debug(inspected, "stacks", "1")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"worker 1  worker-{number} in logs  process {pid}"
    assert "MainThread  answers this" in lines
    assert any(line.endswith(" in Worker._on_control") for line in lines)
    assert "supervisor" not in "".join(lines[1:])  # of which it is a fork
    found = told(inspected, "stacks", f"worker-{number}")
    assert found["process"] == {"role": "worker", "number": number, "slot": 1, "pid": pid}
    assert (found["total"], found["stacks"][0]["thread"]) == (len(found["stacks"]), "MainThread")
    assert debug(inspected, "stacks", "broker")[1].startswith("broker  process ")
    check_serves(inspected)


def test_tasks(inspected: Server) -> None:
    """S2-22: a process's asyncio tasks: what they run, how many of each, and where they wait."""
    code, out, error = debug(inspected, "tasks", "0")
    assert (code, error) == (0, "")
    assert re.search(r"^1 task  Worker\.serve  Task-1$", out, re.MULTILINE)
    assert re.search(r"^  /.+/worker/main\.py:\d+ in Worker\._main_loop$", out, re.MULTILINE)
    (task,) = [task for task in told(inspected, "tasks", "broker")["tasks"] if task["coroutine"] == "Broker.serve"]
    assert (task["count"], task["depth"]) == (1, len(task["frames"]))


def test_connections(inspected: Server) -> None:
    """S2-22: a worker's connections, those whose clients read too slowly first; no token and no message is shown,
    and a user's name cannot move the terminal's cursor.
    """
    check_serves(inspected)
    with slow_client(inspected, "slow\x1b[2Jpoke") as port, connect(inspected.ws_url("token=quick&event=e")) as quick:
        worker = worker_with(inspected, port)
        found = told(inspected, "connections", worker)
        first = found["connections"][0]
        assert (first["user"], first["peer"], first["state"]) == ("slow\x1b[2Jpoke", f"127.0.0.1:{port}", "slow")
        assert 0 < first["queued_messages"] <= SLOW_MESSAGES
        assert len(MESSAGE) < first["queued_bytes"] < SLOW_MESSAGES * (len(MESSAGE) + 100)
        assert (first["unhandled_messages"], found["total"]) == (0, len(found["connections"]))
        assert first["keys"] >= 1 and 0 <= first["heard_seconds"] <= first["open_seconds"] < 60 * SCALE
        code, out, error = debug(inspected, "connections", worker)
        assert (code, error) == (0, "")
        header, line = out.splitlines()[1:3]
        assert header.split() == [
            "connection", "user", "peer", "path", "state", "open", "heard", "keys", "queued", "bytes", "unhandled",
        ]  # fmt: skip
        assert line.startswith(f'{first["id"]}  "slow\\u001b[2Jpoke"  127.0.0.1:{port}  ')
        assert f"{first['queued_bytes']:,}" in line
        assert "secret" not in out
        (own,) = [
            entry
            for name in workers_of(inspected)
            for entry in told(inspected, "connections", name)["connections"]
            if entry["user"] == "quick"
        ]
        assert (own["state"], own["queued_messages"], own["queued_bytes"]) == ("open", 0, 0)
        assert own["peer"] == f"127.0.0.1:{quick.local_address[1]}"
        check_serves(inspected)


def test_no_more_than_asked_for(inspected: Server) -> None:
    """--limit shows so many, and how many more there are."""
    names = workers_of(inspected)
    eventually(lambda: not any(told(inspected, "connections", name)["total"] for name in names), 20)
    with ExitStack() as clients:
        for _ in range(7):
            clients.enter_context(connect(inspected.ws_url("token=many&event=e")))
        shown = left = 0
        for name in names:
            out = debug(inspected, "connections", name, "--limit", "1")[1]
            shown += out.count("many  127.0.0.1")
            found = re.search(r"^… and (\d+) more$", out, re.MULTILINE)
            left += int(found[1]) if found else 0
        assert shown + left == 7
        assert shown <= 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("stacks", "7"), "error: there is no process '7'; there are broker, 0, worker-"),
        (("connections", "worker-1"), "error: there is no process 'worker-1'; there are broker, 0, worker-"),
        (("connections", "broker"), "error: the broker has no WebSocket connections: ask a worker"),
        (("tasks", "wroker-0"), "'wroker-0' is no process; name a worker by its number like 0, or as in logs like"),
    ],
)
def test_a_process_that_is_none(inspected: Server, arguments: tuple[str, ...], text: str) -> None:
    """A WORKER that there is not: exit code 2, and a text that says which there are."""
    code, out, error = debug(inspected, *arguments)
    assert (code, out) == (2, "")
    assert text in error


def test_without_a_server(serve: Serve) -> None:
    """No server to ask: exit code 1 and where it was looked for."""
    server = serve(start=False)
    server.write_config(2, {"server": {"listen": "127.0.0.1:9"}})
    code, out, error = debug(server, "stacks", "0")
    assert (code, out) == (1, "")
    assert error.startswith("error: no server of this configuration is running (looked in ")


# -- A blocked worker ---------------------------------------------------------------


def test_a_blocked_worker(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S2-22: a worker whose loop is blocked cannot answer: the command says so in a few seconds, exit code 1, and what
    helps: SIGUSR1 writes its stacks all the same. The others answer meanwhile, and once it is free it does again.
    """
    (tmp_path / "blocking_auth.py").write_text(BLOCKING)
    monkeypatch.chdir(tmp_path)  # where workers look for functions
    auth = {"auth": {"mode": "python"}, "auth.python": {"callable": "blocking_auth:check"}}
    server = serve(sections={**auth, "server": {"hang_seconds": 60}, "limits": LIMITS})
    with server.raw() as client:
        blocked = worker_with(server, client.getsockname()[1])
        client.sendall(UPGRADE.format(token="blocking").encode())
        (pid,) = [p["pid"] for p in server.processes("worker") if f"worker-{p['number']}" == blocked]
        eventually(lambda: debug(server, "stacks", blocked)[0] == 1, 20, "a blocked worker")
        code, out, error = debug(server, "connections", blocked)
        assert (code, out) == (1, "")
        assert f"({blocked} in logs) has not answered within 3 s: its event loop is blocked, or " in error
        assert f"`kill -USR1 {pid}` has it write its stacks to the log even so" in error
        (other,) = [name for name in workers_of(server) if name != blocked]
        assert told(server, "stacks", other)["process"]["role"] == "worker"
        os.kill(pid, signal.SIGUSR1)
        (stack,) = eventually(lambda: server.events("stack found"), what="the stack of the blocked call")
        assert (stack["process"], stack["thread"]) == (blocked, "MainThread")
        assert f" in wait_for_file < {tmp_path}/blocking_auth.py:6 in check < " in stack["frames"]
        Path("go").touch()
        assert client.recv(12) == b"HTTP/1.1 101"
        assert told(server, "connections", blocked)["connections"][0]["user"] == "blocking"
    assert server.events("process ended") == []


# -- The signal ---------------------------------------------------------------------


def written(server: Server, name: str) -> list[str]:
    """The subjects of which a process has told in the log."""
    return [line["subject"] for line in server.events("inspected") if line["process"] == name]


def test_sigusr1_writes_to_the_log(serve: Serve) -> None:
    """S2-22: at SIGUSR1 a worker writes stacks, tasks and connections, the broker stacks and tasks, each by itself;
    at the supervisor's all processes do, it too; into the new file when the log was moved away, whatever its level;
    and pushes arrive before and after.
    """
    server = serve(sections={"limits": LIMITS})
    check_serves(server)
    names = ["broker", *workers_of(server)]
    subjects = {name: ["stacks", "tasks", *(["connections"] if name != "broker" else [])] for name in names}
    with slow_client(server, "slow") as port:
        for name in names:
            pid = next(process["pid"] for process in server.status()["processes"] if in_logs(process) == name)
            os.kill(pid, signal.SIGUSR1)
            eventually(lambda name=name: written(server, name) == subjects[name], what=f"{name} to write")
        assert [line["process"] for line in server.events("stack found") if line["is_asked"]] == names
        (slow,) = [line for line in server.events("connection found") if line["user"] == "slow"]
        assert (slow["peer"], slow["state"], slow["process"]) == (
            f"127.0.0.1:{port}", "slow", worker_with(server, port),
        )  # fmt: skip
        assert "secret" not in server.log_text()
        assert {line["coroutine"] for line in server.events("tasks found")} >= {"Worker.serve", "Broker.serve"}
    check_serves(server)

    server.log_path.rename(server.folder / "old.log")
    server.write_config(2, {"limits": LIMITS, "log": {"level": "error"}})
    assert run(*FASTPUSH, "reload", "--config", str(server.config_path)).returncode == 0
    server._seen = 0
    server.signal(signal.SIGUSR1)
    eventually(lambda: {name: written(server, name) for name in names} == subjects, what="all to write")
    assert written(server, "supervisor") == ["stacks"]
    check_serves(server)


def in_logs(process: dict[str, Any]) -> str:
    return "broker" if process["role"] == "broker" else f"worker-{process['number']}"


class Bombardment(threading.Thread):
    """SIGUSR1 to all processes of a server again and again, as soon as its supervisor does not die of it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.signals: dict[int, int] = {}
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            process = getattr(self.server, "process", None)
            if process is not None and self.is_safe(process.pid):
                for pid in [process.pid, *children_of(process.pid)]:
                    try:
                        os.kill(pid, signal.SIGUSR1)
                    except ProcessLookupError:
                        continue
                    self.signals[pid] = self.signals.get(pid, 0) + 1
            time.sleep(0.001)

    @staticmethod
    def is_safe(pid: int) -> bool:
        """Whether the process ignores or handles the signal."""
        try:
            lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        except OSError:
            return False
        return any(int(lines.get(mask, "0"), 16) & SIGUSR1_BIT for mask in ("SigIgn", "SigCgt"))


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_sigusr1_ends_no_process(serve: Serve) -> None:
    """S2-22: all processes of a server get SIGUSR1 again and again while they start, serve, are replaced and end:
    none of them ends of it, the server gets ready, pushes arrive, and its exit code is 0.
    """
    server = serve(start=False, sections={"limits": LIMITS})
    bombardment = Bombardment(server)
    bombardment.start()
    try:
        server.start()
        check_serves(server)
        killed = server.processes("worker")[0]
        os.kill(killed["pid"], signal.SIGKILL)
        eventually(lambda: len(server.events("process ready")) == 4, 20, "a successor")
        check_serves(server)
        code = server.stop()
    finally:
        bombardment.is_over = True
        bombardment.join()
    assert code == 0
    reasons = [line["reason"] for line in server.events("process ended")]
    assert not [reason for reason in reasons if reason not in {"exit code 0", "SIGKILL"}]
    assert reasons.count("SIGKILL") <= 1
    assert len(bombardment.signals) == 5
    assert min(bombardment.signals.values()) > 10
