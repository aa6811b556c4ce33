"""Programs that others wrote, driven by tests: curl, wscat, a headless Chromium; and this project's own commands."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.server import SCALE

CLIENTS = Path(__file__).parent / "clients"
ANSWER_SECONDS = 20
FASTPUSH = (sys.executable, "-m", "fastpush")


def need(program: str, package: str) -> str:
    """Return the path of a program of a Debian package; skip the test where it is missing."""
    path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")  # not in a user's PATH
    if path is None:
        pytest.skip(f"{program} is missing: apt-get install {package}")
    return path


def need_module(name: str) -> Path:
    """Return the folder of an npm module; skip the test where it is missing."""
    need("node", "nodejs")
    folder = CLIENTS / "node_modules" / name
    if not folder.is_dir():
        pytest.skip(f"npm module {name} is missing: apt-get install npm; npm ci --prefix tests/clients")
    return folder


def run(*command: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, with a deadline."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", timeout=30 * SCALE,
        check=False, env=os.environ | (environ or {}),
    )  # fmt: skip


def curl(*arguments: str) -> str:
    """Return what curl prints; its exit code must be 0."""
    result = run(need("curl", "curl"), "--silent", "--show-error", "--max-time", str(15 * SCALE), *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


class Closing:
    """Closed at the end of a `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Program(Closing):
    """A running program whose output is read line by line, each with a deadline."""

    def __init__(self, *command: str, environ: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", bufsize=1, env=os.environ | (environ or {}), cwd=cwd,
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, seconds: float = ANSWER_SECONDS) -> str:
        """The next line of output."""
        try:
            line = self._lines.get(timeout=seconds * SCALE)
        except queue.Empty:
            raise AssertionError(f"{self.process.args!r} wrote nothing within {seconds} s") from None
        assert line is not None, f"{self.process.args!r} ended with {self.process.wait()}"
        return line

    def line_with(self, text: str, seconds: float = ANSWER_SECONDS) -> str:
        """The next line that contains `text`; those before it are dropped."""
        while True:
            line = self.line(seconds)
            if text in line:
                return line

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, seconds: float = ANSWER_SECONDS) -> int:
        """The exit code, within a deadline."""
        return self.process.wait(seconds * SCALE)

    def close(self) -> None:
        """End it, whatever it does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10 * SCALE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        self.process.stdout.close()


def wscat(url: str, *sent: str) -> Program:
    """Start npm's wscat on a WebSocket URL; it sends each of `sent` and then prints what it is sent."""
    script = need_module("wscat") / "bin" / "wscat"
    commands = [argument for line in sent for argument in ("--execute", line)]
    return Program(need("node", "nodejs"), str(script), *commands, "--wait=-1", "--connect", url)


class Browser(Program):
    """A headless Chromium with one page; every call is a command of clients/browser.mjs."""

    def __init__(self, url: str = "about:blank") -> None:
        chromium = need("chromium", "chromium")
        need_module("playwright-core")
        super().__init__(need("node", "nodejs"), str(CLIENTS / "browser.mjs"), chromium, url)
        self._take(60)

    def do(self, command: str, **arguments: Any) -> Any:
        self.write(json.dumps({"do": command, **arguments}))
        return self._take(ANSWER_SECONDS)

    def _take(self, seconds: float) -> Any:
        while True:
            line = self.line(seconds)
            if line.startswith("{"):  # Chromium's own words go to the same place
                break
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["ok"]

    def goto(self, url: str) -> None:
        self.do("goto", url="about:blank")  # a URL that differs behind # alone loads nothing
        self.do("goto", url=url)

    def text(self, selector: str) -> str:
        texts: Sequence[str] = self.do("texts", selector=selector)
        return texts[0] if texts else ""
