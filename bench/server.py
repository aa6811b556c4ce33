"""A fastpush server pinned to one core, and what its processes cost."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_CONFIG = """
[server]
listen = "127.0.0.1:0"
workers = 1
runtime_directory = "{folder}/run"
[log]
level = "info"
format = "json"
file = "{folder}/log"
[connections]
ping_interval_seconds = 3600
"""


@dataclass
class Target:
    """A running server: its port and processes."""

    port: int
    pid: int

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.pid)
        return [supervisor, *supervisor.children()]

    def cpu_seconds(self) -> float:
        """CPU time of the whole tree, to the nanosecond, as the scheduler counts it."""
        return sum(_run_nanoseconds(process.pid) for process in self.processes()) / 1e9

    def pss_bytes(self) -> dict[str, int]:
        """Proportional set size by process: supervisor, broker, worker."""
        names = ["supervisor", "broker", "worker"]
        return dict(zip(names, (_pss(process.pid) for process in self.processes()), strict=True))


def _run_nanoseconds(pid: int) -> int:
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def _pss(pid: int) -> int:
    match = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


@contextmanager
def pinned_server(core: int) -> Iterator[Target]:
    """Run a server with one worker, all its processes on `core`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(_CONFIG.format(folder=folder))
        log = Path(folder) / "log"
        process = subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, "-m", "fastpush", "serve", "-c", f"{folder}/config.toml"],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not (log.exists() and '"event": "ready"' in log.read_text()):
                if process.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.02)
            match = re.search(r'"address": "127\.0\.0\.1:(\d+)"', log.read_text())
            assert match is not None
            yield Target(int(match[1]), process.pid)
        finally:
            process.terminate()
            process.wait(30)


def pin_self(core: int) -> None:
    """Keep this process, the load, away from the server."""
    os.sched_setaffinity(0, {core})
