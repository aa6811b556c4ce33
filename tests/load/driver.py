"""A test's end of a load: started, asked, stopped."""

import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.server import SCALE, Server

# FASTPUSH_TEST_LOAD=full runs the load tests with the figures that the documentation gives.
IS_FULL = os.environ.get("FASTPUSH_TEST_LOAD") == "full"
CLIENTS = 3000 if IS_FULL else 300
RATE = 500 if IS_FULL else 200

Summary = dict[str, Any]


class Driven:
    """A program of this package against a server, with commands on its standard input: from the with statement on it
    has connected so many clients. options: as on its command line, fan_out=1 for --fan-out 1.
    """

    def __init__(self, module: str, url: str, clients: int, /, *arguments: str, **options: Any) -> None:
        self.clients = clients
        self._command = [sys.executable, "-m", module, url, *arguments]
        for name, value in options.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._held = b""
        try:
            assert self._read(90) == {"connected": self.clients}
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._selector.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def ask(self, command: str, seconds: float = 20) -> Summary:
        """Send a command; return its answer."""
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self._read(seconds)

    def _read(self, seconds: float) -> Summary:
        deadline = time.monotonic() + seconds * SCALE
        while b"\n" not in self._held:
            if not self._selector.select(deadline - time.monotonic()):
                raise AssertionError(f"the load did not answer within {seconds} s")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise AssertionError(f"the load ended with {self._process.wait()}; it says why on standard error")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def status(self) -> Summary:
        """Return what has been seen so far."""
        return self.ask("status")

    def stop(self, seconds: float = 20) -> Summary:
        """Have it stop and let everything arrive; return the summary."""
        return self.ask("stop", seconds)


class Load(Driven):
    """`python -m tests.load` against a server: its clients are connected and pushing from the with statement on.

    tls: the server speaks TLS.  options: see Driven.
    """

    def __init__(self, server: Server, *, tls: bool = False, **options: Any) -> None:
        given = {"clients": CLIENTS, "rate": RATE, "fan_out": 1, "connect_seconds": 60 * SCALE} | options
        url = server.ws_url().replace("ws:", "wss:") if tls else server.ws_url()
        super().__init__("tests.load", url, given["clients"], "--interactive", **given)


class ChannelLoad(Driven):
    """`python -m tests.load.channels`: its subscribers are in their channels, and publishing, from then on."""

    def __init__(self, server: Server, **options: Any) -> None:
        given = {"subscribers": 500 if IS_FULL else 120, "connect_seconds": 60 * SCALE} | options
        url = server.ws_url(path="/connection/websocket")
        super().__init__("tests.load.channels", url, given["subscribers"], **given)


def check_exact(summary: Summary) -> None:
    """Fail unless every message that was counted arrived, once and in order, and every client that was there counts."""
    wrong = {
        name: summary[name]
        for name in ("lost", "missed", "duplicates", "out_of_order", "beyond_count", "received_of_refused")
        if summary[name]
    }
    assert not wrong, (wrong, summary)
    assert summary["pushes"].get("200", 0) > 0 and summary["sent"] > 0, summary


def check_untouched(summary: Summary) -> None:
    """Fail unless, besides, nobody was disconnected or refused and every push was answered with 200."""
    check_exact(summary)
    assert set(summary["pushes"]) <= {"200", "under way"}, summary
    assert not summary["closes"] and not summary["refused"] and not summary["publishers_refused"], summary
    assert summary["connected"] == summary["clients"], summary


def show(name: str, summary: Summary, **figures: Any) -> None:
    """Print the figures of a scenario; `pytest -rP` shows them."""
    print(f"{name}: {json.dumps(figures | summary)}")  # noqa: T201 - what was measured is asked for
