"""`fastpush top` against the real server: told once, and live in a pseudo terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.sync.client import connect

from fastpush.protocol.insight import Top
from tests.programs import FASTPUSH, run
from tests.server import SCALE, Server, eventually

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"  # the alternate screen
SHOW_CURSOR = b"\x1b[?25h"
ESCAPES = re.compile(rb"\x1b(\][^\x07]*\x07|[\[>][0-9;?<>=$]*[a-zA-Z~])")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two workers on which operators may act, with three connections."""
    sections = {"admin": {"actions": True}, "server": {"drain_seconds": 1}}
    running = Server(tmp_path_factory.mktemp("watched"), workers=2, sections=sections)
    with ExitStack() as closing:
        closing.callback(running.stop)
        for user in ("ann", "ann", "bob"):
            client = closing.enter_context(connect(running.ws_url(f"token={user}&event=e&confirm=1"), max_queue=None))
            assert json.loads(client.recv()) == {"registered": "e"}
        yield running


def top(server: Server, *options: str) -> str:
    result = run(*FASTPUSH, "top", "--config", str(server.config_path), *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def figures(server: Server) -> Top:
    return msgspec.json.decode(top(server, "--json").strip(), type=Top)


class Terminal:
    """A pseudo terminal of 100 by 30 with a program in it; what it wrote is `output`."""

    def __init__(self, *command: str) -> None:
        self._own, self._programs = pty.openpty()
        fcntl.ioctl(self._programs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = self.settings()
        self.process = subprocess.Popen(
            command, stdin=self._programs, stdout=self._programs, stderr=self._programs, start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color"},
        )  # fmt: skip
        self.output = b""

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._programs)

    def shows(self, *texts: str, doing: Callable[[], Any] = lambda: None) -> None:
        """Return when the program has written these texts, since the last call. doing: called until then."""

        def has_written() -> bool:
            doing()
            self.read()
            written = ESCAPES.sub(b"", self.output).decode(errors="replace")
            return all(text in written for text in texts)

        eventually(has_written, 20, f"{texts} on the terminal")
        self.output = b""

    def read(self) -> None:
        while select.select([self._own], [], [], 0)[0]:
            self.output += os.read(self._own, 65536)

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def ends(self) -> int:
        """The program's exit code, once it has ended and everything it wrote has been read."""

        def has_ended() -> bool:
            self.read()
            return self.process.poll() is not None

        eventually(has_ended, 20, "the end of the program")
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10 * SCALE)
        os.close(self._own)
        os.close(self._programs)


@contextmanager
def watching(server: Server, *options: str) -> Iterator[Terminal]:
    """`fastpush top` in a terminal, once it shows figures."""
    terminal = Terminal(*FASTPUSH, "top", "--config", str(server.config_path), *options)
    try:
        terminal.shows("fastpush", "2 workers", "busiest user", "q quit")
        yield terminal
    finally:
        terminal.close()


def test_once_and_json_tell_what_the_server_does(watched: Server) -> None:
    """Pushes, connections and users of both workers, as /metrics and `status` know them."""

    def counted() -> Top | None:
        assert all(watched.push("ann", "e", "hello")["sent"] == 2 for _ in range(20))
        now = figures(watched)
        is_whole = now.users and now.users[0].deliveries == pytest.approx(2 * now.users[0].pushes)
        return now if is_whole and now.point.connections == 3 else None

    now = eventually(counted, 20, "figures of the pushes, of both workers")
    assert [row.slot for row in now.workers] == [0, 1]
    assert {row.pid for row in now.workers} == {process["pid"] for process in watched.processes("worker")}
    assert sum(row.connections for row in now.workers) == watched.metrics()["fastpush_connections"] == 3
    assert now.users[0].name == "ann" and now.actions
    text = top(watched, "--once")
    assert text.startswith(f"fastpush {now.version}") and "connections 3" in text and "busiest user" in text
    assert all(f"worker-{row.worker} " in text and str(row.pid) in text for row in now.workers)
    assert top(watched).startswith("fastpush ")  # no terminal: the same


def test_a_terminal_shows_it_live_and_is_left_as_it_was(watched: Server) -> None:
    """Workers and new connections appear; q ends it with 0, the screen, cursor and settings as they were before."""
    with watching(watched) as terminal:
        assert terminal.settings() != terminal.before
        terminal.shows("bob", doing=lambda: watched.push("bob", "e", "hello"))
        terminal.type("?")
        terminal.shows("any other key goes back")
        terminal.type("x")
        terminal.shows("busiest user")
        terminal.type("q")
        assert terminal.ends() == 0
        assert LEAVE in terminal.output and SHOW_CURSOR in terminal.output.rpartition(LEAVE)[2]
        assert terminal.settings() == terminal.before


def test_a_killed_broker_is_waited_for(watched: Server) -> None:
    """While there is no broker it says so and goes on; with the next one figures are back."""
    with watching(watched) as terminal:
        broker = watched.processes("broker")[0]["pid"]
        os.kill(broker, signal.SIGSTOP)
        try:
            terminal.shows("no answer since")
        finally:
            os.kill(broker, signal.SIGKILL)
        eventually(lambda: watched.processes("broker")[0]["pid"] != broker, 20, "another broker")
        terminal.shows("bob", doing=lambda: watched.push("bob", "e", "hello"))
        terminal.type("q")
        assert terminal.ends() == 0


def test_a_key_drains_a_worker(watched: Server) -> None:
    """d and y replace the selected worker by a successor, whose process then stands in its slot."""

    def rows() -> dict[int, int]:
        return {row.slot: row.worker for row in figures(watched).workers}

    before = eventually(lambda: len(found := rows()) == 2 and found, 20, "both workers, with a broker that is new")
    with watching(watched) as terminal:
        terminal.type("d")
        terminal.shows(f"drain worker 0 (worker-{before[0]}, ")
        terminal.type("y")
        terminal.shows("worker 0 drains over 1 second")

        def replaced() -> bool:
            now = rows()
            return len(now) == 2 and now[0] != before[0] and now[1] == before[1]

        eventually(replaced, 20, "a successor in slot 0")
        terminal.type("q")
        assert terminal.ends() == 0


def test_without_a_server_it_ends_with_a_message(tmp_path: Path) -> None:
    """No server: exit code 1 and why, on a terminal too."""
    server = Server(tmp_path, start=False)
    result = run(*FASTPUSH, "top", "--config", str(server.config_path))
    assert result.returncode == 1 and "no server of this configuration is running" in result.stderr
    terminal = Terminal(*FASTPUSH, "top", "--config", str(server.config_path))
    try:
        assert terminal.ends() == 1
        assert b"no server of this configuration is running" in terminal.output and ENTER not in terminal.output
    finally:
        terminal.close()
