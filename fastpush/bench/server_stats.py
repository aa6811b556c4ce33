"""What the server's processes cost, where they run on this host: CPU and memory of the whole tree."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import psutil

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_PORTS = {"ws": 80, "wss": 443}


@dataclass(frozen=True)
class Cost:
    """CPU by process id, in ns since each started, and memory of all processes (PSS; None: not readable)."""

    cpu_ns: dict[int, int]
    memory_bytes: int | None


class ServerProcesses:
    """A server's process tree, from its root down; processes that come later belong to it as well."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.pid = pid

    def measure(self, *, memory: bool) -> Cost:
        """Return the cost until now. memory: takes milliseconds a process, so not while time is measured."""
        cpu_ns: dict[int, int] = {}
        pss: int | None = 0 if memory else None
        for process in self._tree():
            try:
                cpu_ns[process.pid] = _run_ns(process.pid)
                if pss is not None:
                    pss += _pss_bytes(process.pid)
            except PermissionError:
                pss = None
            except OSError:
                continue  # it has ended
        return Cost(cpu_ns, pss)

    def names(self) -> dict[int, str]:
        """Return by process id what it is called."""
        return {process.pid: process.name() for process in self._tree()}

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def find_server(url: str) -> int | None:
    """Return the root process of the server that listens at a loopback URL; None: not here, or not ours to see."""
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    if not _is_local(parts.hostname or ""):
        return None
    inodes = set(_listening_inodes(port))
    kin = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
    holders = {process.pid: process for process in psutil.process_iter() if _holds(process.pid, inodes)}
    found = next((process for pid, process in sorted(holders.items()) if pid not in kin), None)
    if found is None:
        return None
    while (parent := found.parent()) is not None and parent.pid not in kin and parent.pid != 1:
        if parent.pid not in holders and not _is_same_program(parent, found):
            break
        found = parent
    return found.pid


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _listening_inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except FileNotFoundError:  # no IPv6 here
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # TCP_LISTEN
                yield f"socket:[{fields[9]}]"


def _holds(pid: int, inodes: set[str]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_target(entry.path) in inodes for entry in entries)
    except OSError:  # somebody else's, or gone
        return False


def _target(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _is_same_program(parent: psutil.Process, child: psutil.Process) -> bool:
    """Whether a parent that does not listen itself is still of the same server."""
    try:
        return parent.cmdline() == child.cmdline() and parent.uids() == child.uids()
    except psutil.Error:
        return False


def _run_ns(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # this thread has ended
    return total


def _pss_bytes(pid: int) -> int:
    match = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(match[1]) * 1024 if match is not None else 0
