"""A real fastpush server in its own processes, for tests, and conditions to wait for."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from fastpush.control_client import ask

T = TypeVar("T")
# Every deadline of the tests is multiplied by this: FASTPUSH_TEST_SCALE=5 on a very slow machine.
SCALE = float(os.environ.get("FASTPUSH_TEST_SCALE", "1"))


def eventually(condition: Callable[[], T], seconds: float = 10, what: str = "condition") -> T:
    """Return the condition's first true value; fail when it has none in time."""
    deadline = time.monotonic() + seconds * SCALE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} not met within {seconds} s, last value: {value!r}")
        time.sleep(0.005)


Sections = dict[str, Any]
"""Tables by (dotted) name; an array of tables is a list."""


def toml(sections: Sections) -> str:
    """Return sections as TOML."""
    lines: list[str] = []
    for section, content in sections.items():
        for values in content if isinstance(content, list) else [content]:
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            tables = {key: value for key, value in values.items() if isinstance(value, dict)}
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables]
            lines.append(toml({f"{section}.{key}": table for key, table in tables.items()}))
    return "\n".join(lines) + "\n"


def application(name: str, **keys: Any) -> dict[str, Any]:
    """Return the [[application]] of a shipped class, at the path of its name, open to this machine."""
    handler = f"fastpush.applications.{name.lower()}:{name}"
    return {"path": f"/{name.lower()}", "handler": handler, "anonymous": "loopback"} | keys


ECHO: Sections = {"application": [application("Echo", options={"binary": "binary"})]}
"""/echo, which returns every message as it came."""


class Server:
    """`fastpush serve` on a free port of 127.0.0.1, logging JSON at debug level into `log_path`.

    sections: configuration beside what tests need; a value given here wins. Nobody is refused, and no push given
    up, because this machine stood still for a few seconds, unless a test asks for it.
    tls: what the clients of these tests speak TLS with; None: they do not.
    prefix:   command that becomes the server.  pass_fds: descriptors for it.
    """

    def __init__(self, folder: Path, workers: int = 2, sections: Sections | None = None, **kwargs: Any) -> None:
        self.folder = folder
        self.config_path = folder / "config.toml"
        self.log_path = folder / "server.log"
        self.runtime_directory = folder / "run"
        self.port = 0
        self.tls: ssl.SSLContext | None = kwargs.pop("tls", None)
        self._environ = os.environ | {k: str(v) for k, v in kwargs.pop("environ", {}).items()}
        self._prefix, self._pass_fds = kwargs.pop("prefix", []), kwargs.pop("pass_fds", ())
        self.write_config(workers, sections or {})
        if kwargs.pop("start", True):
            self.start()

    def write_config(self, workers: int, sections: Sections) -> None:
        merged: Sections = {
            "server": {
                "listen": f"127.0.0.1:{self.port}",
                "workers": workers,
                "runtime_directory": str(self.runtime_directory),
            },
            "log": {"level": "debug", "format": "json", "file": str(self.log_path)},
            "limits": {"max_lag_ms": 0},
            "bus": {"confirm_ms": 8000},
        }
        for section, values in sections.items():
            merged[section] = merged[section] | values if section in merged else values
        self.config_path.write_text(toml(merged))

    def start(self) -> None:
        self._seen = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.stderr = (self.folder / "stderr.log").open("ab")
        self.process = subprocess.Popen(
            [*self._prefix, sys.executable, "-m", "fastpush", "serve", "--config", str(self.config_path)],
            stderr=self.stderr, stdin=subprocess.DEVNULL, env=self._environ, pass_fds=self._pass_fds,
        )  # fmt: skip
        eventually(lambda: self.process.poll() is not None or self.events("ready"), 20, "server ready")
        if self.process.poll() is not None:
            raise AssertionError(f"server ended: {(self.folder / 'stderr.log').read_text()}{self.log_text()}")
        self.port = int(self.events("listening")[-1]["address"].rpartition(":")[2])

    # -- what it says --------------------------------------------------------------

    def log_text(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Log lines since the last start, as JSON; `name`: only those of that event."""
        if not self.log_path.exists():
            return []
        with self.log_path.open("rb") as file:
            file.seek(self._seen)
            lines = file.read().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
        return [line for line in found if name is None or line["event"] == name]

    def worker_of(self, peer_port: int) -> int:
        """Number of the worker process that accepted the connection from this local port."""
        peer = f"127.0.0.1:{peer_port}"
        return eventually(
            lambda: next((e["worker"] for e in reversed(self.events("accepted")) if e["peer"] == peer), None)
        )

    def dial(self, worker: int | None = None, *, receive_bytes: int = 0, port: int = 0) -> socket.socket:
        """A TCP connection that the worker process of this number has accepted; port: another than the first one."""
        while True:
            # The kernel may lend a client's port again: what was told of it before is not of this connection.
            before = 0 if worker is None else len(self.events())
            dialled = socket.socket()
            dialled.settimeout(20 * SCALE)
            if receive_bytes:
                dialled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            dialled.connect(("127.0.0.1", port or self.port))
            if worker is None or eventually(partial(self._accepted_since, before, dialled.getsockname()[1])) == worker:
                return dialled
            dialled.close()

    def _accepted_since(self, before: int, peer_port: int) -> int | None:
        peer = f"127.0.0.1:{peer_port}"
        told = [line for line in self.events()[before:] if line["event"] == "accepted" and line["peer"] == peer]
        return told[-1]["worker"] if told else None

    def status(self) -> dict[str, Any]:
        return ask(str(self.runtime_directory / "control"), {"command": "status"})

    def processes(self, role: str) -> list[dict[str, Any]]:
        return [process for process in self.status()["processes"] if process["role"] == role]

    def pid_of_worker(self, number: int) -> int:
        return next(p["pid"] for p in self.processes("worker") if p["number"] == number)

    # -- talking to it -------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def ws_url(self, query: str = "", path: str = "/ws") -> str:
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}{path}{'?' + query if query else ''}"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float = 20 * SCALE,
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP request on its own connection: (status, headers with lower-case names, body)."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds, context=self.tls) as response:
                return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def push(self, user: Any, event: str, message: str, **headers: str) -> dict[str, Any]:
        """Push and return the JSON reply with its status added."""
        status, _, body = self.request(
            "POST",
            "/push",
            {"userId": user, "event": event, "message": message},
            {"Accept": "application/json", **headers},
        )
        return {"status": status, **json.loads(body)}

    def raw(self) -> socket.socket:
        """A TCP connection to it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20 * SCALE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.secured(connection)

    def secured(self, connection: socket.socket) -> socket.socket:
        """The same connection, inside TLS if the tests speak it."""
        return connection if self.tls is None else self.tls.wrap_socket(connection, server_hostname="127.0.0.1")

    def metrics(self, timeout_seconds: float = 20 * SCALE) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, and summed over workers by its bare name."""
        text = self.request("GET", "/metrics", timeout_seconds=timeout_seconds)[2].decode()
        samples: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
                bare = name.partition("{")[0]
                samples[bare] = samples.get(bare, 0) + float(value) if "{" in name else float(value)
        return samples

    # -- ending it -----------------------------------------------------------------

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, wait, return the exit code; kill what is left."""
        if self.process.poll() is None:
            family = [psutil.Process(self.process.pid), *self.children()]
            self.process.terminate()
            try:
                self.process.wait(30 * SCALE)
            except subprocess.TimeoutExpired:
                for process in family:
                    if process.is_running():
                        process.kill()
                self.process.wait()
        self.stderr.close()
        return self.process.returncode
