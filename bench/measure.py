"""One measurement: a fresh server, `fastpush bench` against it in a process of its own, and what is seen meanwhile."""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.peers import stop
from bench.servers import Server
from fastpush.bench.server_stats import ServerProcesses

_SAMPLE_SECONDS = 1.0
_GRACE_SECONDS = 120  # for connecting and the last messages, beside the load itself
_STOP_SECONDS = 15
_SETTLE_SECONDS = 10
_SAMPLE = re.compile(r"^(fastpush_\w+)(\{.*\})? ([0-9.e+-]+)$", re.MULTILINE)
_WORKER_LABEL = re.compile(r'worker="\d+",?')


class LoadFailed(Exception):
    """`fastpush bench` did not come to a result; says why."""


def drive(arguments: Sequence[str], cores: Sequence[int], seconds: float) -> dict[str, Any]:
    """Run `fastpush bench` on `cores` and return its JSON. seconds: what it is to take, without connecting.

    Raises: LoadFailed.
    """
    with tempfile.TemporaryDirectory(prefix="fastpush-bench-") as folder:
        path = Path(folder) / "result.json"
        command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "fastpush", "bench"]
        with _process([*command, *arguments, "--json", str(path)]) as process:
            try:
                text, _ = process.communicate(timeout=seconds + _GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                raise LoadFailed(f"no result after {seconds + _GRACE_SECONDS:.0f} s") from None
        if not path.exists():
            last = [line.strip() for line in text.splitlines() if line.strip()]
            raise LoadFailed(last[-1] if last else f"exit code {process.returncode}")
        found: dict[str, Any] = json.loads(path.read_text())
    if found["interrupted"]:
        raise LoadFailed("interrupted")
    if found["loads"] and not found["loads"][0]["deliveries"]:
        raise LoadFailed("nothing arrived")
    return found


@contextmanager
def _process(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run a command; it and its children are gone afterwards, whatever happens."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            tree = psutil.Process(process.pid).children(recursive=True)
            stop(process, _STOP_SECONDS)
            for child in psutil.wait_procs(tree, timeout=1)[1]:
                child.kill()
        if process.stdout is not None:
            process.stdout.close()


class Watch:
    """Samples the memory of a fastpush server each second, and asks for its metrics before and after."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._processes = ServerProcesses(server.pid)
        self._samples: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._before = metrics(server.port)
        self._began = time.monotonic()
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            memory = self._processes.measure(memory=True).memory_bytes
            if memory:
                self._samples.append((round(time.monotonic() - self._began, 2), memory))

    def end(self) -> dict[str, Any]:
        """Return what was seen; see Record."""
        self.stop()
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (after := metrics(self._server.port))["fastpush_connections"] and time.monotonic() < deadline:
            time.sleep(0.1)  # the clients have gone, and not all of that has been read
        grown = {name: value - self._before.get(name, 0) for name, value in after.items()}
        return {
            "samples": self._samples,
            "metrics": {name: value for name, value in grown.items() if value},
            "closes": self._server.closes(),
        }

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()


def metrics(port: int) -> dict[str, float]:
    """Return the server's metrics, summed over its workers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    found: Counter[str] = Counter()
    for name, labels, value in _SAMPLE.findall(text):
        rest = _WORKER_LABEL.sub("", labels).replace(",}", "}")
        found[name + ("" if rest == "{}" else rest)] += float(value)  # type: ignore[assignment]
    return dict(found)
