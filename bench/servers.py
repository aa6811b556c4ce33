"""fastpush and its peers as one thing: a server that runs, and how `fastpush bench` drives it."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench import peers
from bench.certificate import write_certificate
from fastpush import __version__

FASTPUSH = "fastpush"
LIMIT = "limit"  # no product: what one `send` a delivery costs at least
PEERS = tuple(peer.name for peer in peers.PEERS if peer.name != LIMIT)
SERVERS = (LIMIT, FASTPUSH, *PEERS)
LABELS = {
    FASTPUSH: "fastpush",
    LIMIT: "limit (C, one send each)",
    "go_push": "go_push (Go, gorilla)",
    "go_hub": "go_hub (Go, gorilla)",
    "centrifuge": "centrifuge 0.15 (2021)",
    "nchan": "nchan (nginx)",
    "websockets": "websockets (Python)",
    "ws": "ws (Node)",
}

CACHE = peers.PEERS[0].build_folder.parent

Sections = Mapping[str, Any]  # tables by name; an array of tables is a list
TLS: Sections = {"tls": {"certificate": "certificate.pem"}}  # made for each run

_PEERS = {peer.name: peer for peer in peers.PEERS}
_START_SECONDS = 120  # counted by valgrind it takes half a minute
_STOP_SECONDS = 30
_ADDRESS = re.compile(r'"address": "127\.0\.0\.1:(\d+)"')
_CLOSE_CODE = re.compile(r'"event": "connection closed".*"code": (\d+)')


@dataclass(frozen=True)
class Server:
    """A server that runs. pid: of its first process.  log: its JSON log; None for peers.

    driving: arguments of `fastpush bench` that say how a client registers and pushes; the first is the URL.
    """

    name: str
    version: str
    port: int
    pid: int
    driving: tuple[str, ...]
    log: Path | None = field(default=None, repr=False)

    def arguments(self, mode: str) -> list[str]:
        """Return the arguments of `fastpush bench` for unicast, fan-out or broadcast."""
        return [*self.driving, "--pid", str(self.pid), "--mode", mode]

    def closes(self) -> dict[str, int]:
        """Return how many connections have ended so far, by close code."""
        return dict(Counter(_CLOSE_CODE.findall(self.log.read_text()))) if self.log is not None else {}


def unavailable(name: str) -> str | None:
    """Build a server where needed; return why it cannot run here, None when it can."""
    if name == FASTPUSH:
        return None
    peer = _PEERS[name]
    if not peer.is_available():
        return "not installed (bench/peers/install.sh)"
    try:
        peers.build(peer)
    except subprocess.CalledProcessError as error:
        return f"its build failed: {error}"
    return None


class Started(NamedTuple):
    """How fastpush is started. under: a command that runs it.  checkout: of its source; None: this one."""

    under: tuple[str, ...] = ()
    checkout: Path | None = None


_PLAINLY = Started()


@contextmanager
def running(
    name: str,
    cores: tuple[int, ...],
    sections: Sections,
    workers: int,
    *,
    path: str = "/ws",
    started: Started = _PLAINLY,
) -> Iterator[Server]:
    """Run a server on `cores`, a peer on the first of them.

    sections, started: fastpush's configuration, and how it is started.  path: what it serves.
    Raises: RuntimeError: it did not start.
    """
    tree: list[psutil.Process] = []
    is_own = name == FASTPUSH
    try:
        with _fastpush(cores, sections, workers, path, started) if is_own else _peer(name, cores[0]) as server:
            try:
                yield server
            finally:
                tree = _children(server.pid)
    finally:
        for process in psutil.wait_procs(tree, timeout=3)[1]:  # what a server that had to be killed leaves behind
            process.kill()


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def _fastpush(
    cores: tuple[int, ...], sections: Sections, workers: int, path: str, started: Started
) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="fastpush-bench-") as name:
        folder = Path(name)
        log = folder / "log"
        listen = {"listen": "127.0.0.1:0", "workers": workers, "runtime_directory": str(folder / "run")}
        own: Sections = {
            "server": {**listen, **sections.get("server", {})},
            "log": {"level": "info", "format": "json", "file": str(log)},
        }
        config = folder / "config.toml"
        config.write_text(_toml({**sections, **own}))
        if "tls" in sections:
            write_certificate(folder / sections["tls"]["certificate"])
        serve = (*started.under, sys.executable, "-m", "fastpush", "serve", "-c", str(config))
        process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *serve],
            cwd=started.checkout,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _wait_until_ready(process, log)
            url = f"127.0.0.1:{port}{path}"
            driving = (f"wss://{url}", "--insecure") if "tls" in sections else (f"ws://{url}",)
            if path != "/ws":
                driving = (*driving, "--push-via", "websocket")
            yield Server(FASTPUSH, __version__, port, process.pid, driving, log)
        finally:
            peers.stop(process, _STOP_SECONDS)


def _toml(sections: Sections) -> str:
    lines = []
    for name, content in sections.items():
        for values in content if isinstance(content, list) else [content]:
            lines.append(f"[[{name}]]" if isinstance(content, list) else f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        address = _ADDRESS.search(text)
        if address is not None and '"event": "ready"' in text:
            return int(address[1])
        time.sleep(0.02)
    raise RuntimeError("fastpush did not start")


@contextmanager
def _peer(name: str, core: int) -> Iterator[Server]:
    peer = _PEERS[name]
    with peers.running(peer, core) as (port, pid):
        yield Server(name, peer.version().replace("\n", " "), port, pid, driving(peer, port))


def driving(peer: peers.Peer, port: int) -> tuple[str, ...]:
    """Return the arguments of `fastpush bench` that say how a peer's clients register and push; URL first."""
    values = {"user": "{user}", "event": "{event}", "message": "{message}"}
    arguments = [peer.websocket_url.format(port=port, **values), "--register", peer.registration]
    if peer.registration == "message":
        arguments += ["--register-message", peer.registration_text, "--register-reply"]
    arguments += ["--push-url", peer.push_url.format(port=port, **values), "--push-via", peer.push_by]
    return (*arguments, "--push-body", peer.push_body.format(**values))
