"""The units, and the real service under everything of systemd that works without it as process 1."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.notify import Systemd
from tests.programs import need
from tests.server import SCALE, Server, eventually

ROOT = Path(__file__).parents[2]
SERVICE, SOCKET = ROOT / "systemd/fastpush.service", ROOT / "systemd/fastpush.socket"
EXPOSURE_MAX = 2.0
CONNECTS_A_SECOND = 50

pytestmark = pytest.mark.usefixtures("_systemd_is_here")


@pytest.fixture(scope="module")
def _systemd_is_here() -> None:
    need("systemd-analyze", "systemd")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path, watchdog_seconds=0.6) as double:
        yield double


def free_ports(count: int) -> list[int]:
    """So many ports, each another one: all are held until the last one is found."""
    with ExitStack() as lenders:
        held = [lenders.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [lender.getsockname()[1] for lender in held]


def analyze(*words: str | Path) -> str:
    ended = subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60 * SCALE, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


# The units


def test_units_are_right(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about the units, once the program that they name exists."""
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace("/opt/fastpush/bin/fastpush", shutil.which("true") or "")
        (tmp_path / unit.name).write_text(text)
    drop_ins = tmp_path / "fastpush.service.d"
    shutil.copytree(ROOT / "systemd/fastpush.service.d", drop_ins)
    assert analyze("verify", tmp_path / "fastpush.service", tmp_path / "fastpush.socket") == ""
    example = (drop_ins / "10-example.conf").read_text()
    (drop_ins / "10-example.conf").write_text(re.sub(r"^#(?=[A-Z]\w+=)", "", example, flags=re.MULTILINE))
    assert analyze("verify", tmp_path / "fastpush.service") == "", "an option of the example is not right"


def test_exposure() -> None:
    """`systemd-analyze security` rates the service's exposure at 2.0 of 10 at most."""
    report = analyze("security", "--offline=true", SERVICE)
    rated = re.search(r"Overall exposure level for fastpush\.service: ([0-9.]+)", report)
    assert rated, report
    assert float(rated[1]) <= EXPOSURE_MAX


def test_every_option_is_explained() -> None:
    """The table in systemd/README.md has every option of both units."""
    options = {key for unit in (SERVICE, SOCKET) for key in re.findall(r"^(\w+)=", unit.read_text(), re.MULTILINE)}
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "systemd/README.md").read_text(), re.MULTILINE)
    assert options - {key for cell in table for key in re.findall(r"`(\w+)=", cell)} == set()


def allowed_calls() -> list[str]:
    """Names of the system calls that SystemCallFilter= of the unit lets through."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", SERVICE.read_text(), re.MULTILINE):
        groups = {name for group in line.lstrip("~").split() for name in calls_of(group)}
        allowed = allowed - groups if line.startswith("~") else allowed | groups
    return sorted(allowed)


def calls_of(group: str) -> set[str]:
    if not group.startswith("@"):
        return {group}
    entries = (line.strip() for line in analyze("syscall-filter", group).splitlines()[1:])
    return {name for entry in entries if entry and not entry.startswith("#") for name in calls_of(entry)}


def sandbox(*writable: Path) -> list[str]:
    keep = dict.fromkeys([sys.base_prefix, sys.prefix, str(ROOT)])
    settings = {"calls": allowed_calls(), "keep": list(keep), "write": list(map(str, writable))}
    return [sys.executable, str(ROOT / "tests/sandbox.py"), json.dumps(settings)]


FORBIDDEN = """
import ctypes, errno, json, mmap, os, socket, sys

def refused(action):
    try:
        action()
    except (OSError, PermissionError) as error:
        return True
    return False

libc = ctypes.CDLL(None, use_errno=True)

def called(*words):
    if libc.syscall(*words) < 0:
        raise OSError(ctypes.get_errno(), "refused")

print(json.dumps({
    "writable and executable memory": refused(lambda: mmap.mmap(-1, 4096, prot=7)),
    "a netlink socket": refused(lambda: socket.socket(16, socket.SOCK_RAW)),
    "a packet socket": refused(lambda: socket.socket(17, socket.SOCK_RAW)),
    "a namespace": refused(lambda: called(272, 0x10000000)),
    "a mount": refused(lambda: called(165, b"none", b"/", b"tmpfs", 0, b"")),
    "a real-time priority": refused(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
    "a set-user-id file": refused(lambda: os.chmod(sys.argv[1], 0o4755)),
    "a change of owner": refused(lambda: os.chown(sys.argv[1], 0, 0)),
    "ptrace": refused(lambda: called(101, 0, 0, 0, 0)),
    "/etc": refused(lambda: open("/etc/fastpush-test", "w")),
    "/sys": refused(lambda: open("/sys/kernel/mm/ksm/run", "w")),
    "/proc/sys": refused(lambda: open("/proc/sys/net/core/somaxconn")),
    "process 1": refused(lambda: os.listdir("/proc/1")),
    "a disk": refused(lambda: os.stat("/dev/vda")),
    "files of /tmp": refused(lambda: os.stat(sys.argv[2])),
}))
"""


def test_sandbox_is_one(tmp_path: Path) -> None:
    """The tests' double of the unit's options refuses what they refuse, so what works in it is allowed by them.

    Without root it has the system-call filters alone.
    """
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").touch()
    own = tmp_path / "inside/own"
    own.touch()
    ended = subprocess.run(
        [*sandbox(tmp_path / "inside"), sys.executable, "-c", FORBIDDEN, own, tmp_path / "outside"],
        capture_output=True, text=True, timeout=30 * SCALE, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    refused = json.loads(ended.stdout)
    if os.geteuid() != 0:
        refused = {name: value for name, value in refused.items() if "/" not in name and " 1" not in name}
    assert all(refused.values()), refused


def test_service_works_under_all_hardening_options(serve, systemd: Systemd) -> None:
    """In the sandbox the server starts, serves, replaces a killed worker, reloads, stores its sockets and stops."""
    folder = systemd.path.parent
    server: Server = serve(
        workers=2,
        sections={"compression": {"enabled": True}, "server": {"runtime_directory": str(folder / "run")}},
        environ=systemd.environ(),
        prefix=sandbox(folder),
    )
    server.runtime_directory = folder / "run"
    status = dict(
        line.split(":\t")
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert status["CapBnd"] == status["CapEff"] == "0" * 16 and not status["Uid"].startswith("0\t")
    with connect(server.ws_url("token=jack&event=e"), compression="deflate") as client:
        assert server.push("jack", "e", "hello" * 1000) == {"status": 200, "sent": 1}
        assert client.recv(timeout=20 * SCALE) == "hello" * 1000
    assert server.request("GET", "/metrics")[0] == server.request("GET", "/")[0] == 200
    killed = server.processes("worker")[0]["pid"]
    os.kill(killed, 9)
    eventually(
        lambda: len([p for p in server.processes("worker") if p["state"] == "ready" and p["pid"] != killed]) == 2
    )
    reload = subprocess.run(
        [*sandbox(folder), sys.executable, "-m", "fastpush", "reload", "--config", server.config_path],
        capture_output=True, text=True, timeout=30 * SCALE, check=False,
    )  # fmt: skip
    assert reload.returncode == 0, reload.stderr
    assert systemd.names() == ["fastpush-slot-0", "fastpush-slot-1"]
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


# Socket activation


def test_socket_activation(serve) -> None:
    """Started by the first connection, all workers serve from sockets that systemd opened, and they see each other."""
    public, api = free_ports(2)
    prefix = ["systemd-socket-activate", "--fdname=fastpush.socket:fastpush.socket"]
    prefix += [word for port in (public, api) for word in ("--listen", f"127.0.0.1:{port}")]
    knocking = threading.Thread(target=lambda: eventually(lambda: can_connect(public), 20))
    knocking.start()
    server: Server = serve(
        workers=2,
        sections={"server": {"listen": f"127.0.0.1:{public}"}, "api": {"listen": f"127.0.0.1:{api}"}},
        prefix=prefix,
    )
    knocking.join()
    assert [event["address"] for event in server.events("listening")] == [f"127.0.0.1:{public}", f"127.0.0.1:{api}"]
    assert server.port == api
    inodes = [listening_inodes(process["pid"]) for process in server.processes("worker")]
    assert len(inodes[0]) == 2 and inodes[0] == inodes[1], "workers listen on sockets of their own"
    url = f"ws://127.0.0.1:{public}/ws?token=jack&event=e"
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(20)]
        assert server.push("jack", "e", "hello") == {"status": 200, "sent": 20}
        assert [client.recv(timeout=20 * SCALE) for client in clients] == ["hello"] * 20
    os.kill(server.processes("worker")[0]["pid"], 9)
    for _ in range(20):
        assert can_connect(public)
        assert server.push("nobody", "e", "x") == {"status": 200, "sent": 0}


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def listening_inodes(pid: int) -> set[str]:
    """The listening TCP sockets of a process."""
    links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[9] for line in lines if line[3] == "0A"} & {link[8:-1] for link in links if link.startswith("socket:")}


def test_socket_unit_with_another_address_is_refused(tmp_path: Path) -> None:
    """A socket that the configuration does not name ends the start with both addresses: exit code 2."""
    (tmp_path / "config.toml").write_text('[server]\nlisten = "127.0.0.1:1"\n')
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        program = [str(ROOT / "tests/pass_descriptors.py"), "fastpush.socket", str(passed.fileno()), sys.executable]
        ended = subprocess.run(
            [sys.executable, *program, "-m", "fastpush", "serve", "--config", tmp_path / "config.toml"],
            capture_output=True, text=True, timeout=20 * SCALE, check=False, pass_fds=[passed.fileno()],
            env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        )  # fmt: skip
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"fastpush.socket listens on 127.0.0.1:{port}, the configuration on 127.0.0.1:1" in ended.stderr


# The notification socket


def test_what_systemd_is_told_and_when(serve, systemd: Systemd) -> None:
    """Sockets are stored before READY=1, then STATUS and WATCHDOG go on, and STOPPING=1 asks for its time."""
    server: Server = serve(workers=2, environ=systemd.environ(), sections={"server": {"drain_seconds": 3}})
    systemd.wait_for("WATCHDOG")
    with connect(server.ws_url("token=jack&event=e")):
        eventually(lambda: any(text.startswith("1 connections, ") for text in systemd.of("STATUS")), 20)
    assert systemd.of("STATUS")[0] == "0 connections, 0 pushes/s, 2 workers ready"
    assert server.stop() == 0
    systemd.wait_for("STOPPING", "1")
    order = [next(iter(message)) for message in systemd.said if not {"WATCHDOG", "STATUS"} & {next(iter(message))}]
    assert order == ["FDSTORE", "FDSTORE", "READY", "STOPPING"]
    assert int(systemd.of("EXTEND_TIMEOUT_USEC")[0]) > 1_000_000
    first_feed = next(index for index, message in enumerate(systemd.said) if "WATCHDOG" in message)
    assert "READY" in [next(iter(message)) for message in systemd.said[:first_feed]]


def test_restart_refuses_no_connection(serve, systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    """The service stops and starts on its stored sockets while 50 connects a second arrive: all are answered."""
    (port,) = free_ports(1)
    settings: dict[str, Any] = {"workers": 2, "sections": {"server": {"listen": f"127.0.0.1:{port}"}}}
    server: Server = serve(**settings, environ=systemd.environ())
    kept = systemd.inodes()
    assert [len(inodes) for inodes in kept.values()] == [1, 1]
    client = subprocess.Popen(
        [sys.executable, ROOT / "tests/connector.py", str(port), str(CONNECTS_A_SECOND)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    eventually(lambda: len(server.events("accepted")) > CONNECTS_A_SECOND / 2)
    began = time.monotonic()
    server.stop()
    stopped = time.monotonic()
    successor: Server = serve(**settings, environ=systemd.environ(), **systemd.passed())
    started = time.monotonic()
    eventually(lambda: len(successor.events("accepted")) > CONNECTS_A_SECOND)
    answer = json.loads(client.communicate(timeout=60 * SCALE)[0])
    with capsys.disabled():
        sys.stdout.write(f"\nstop {stopped - began:.3f} s, start {started - stopped:.3f} s, connects {answer}\n")
    assert answer["refused"] == answer["lost"] == 0, answer["errors"]
    assert systemd.inodes() == kept, "the successor listens on other sockets"
    for slot, process in enumerate(successor.processes("worker")):
        assert listening_inodes(process["pid"]) == {str(inode) for inode in kept[f"fastpush-slot-{slot}"]}


def test_stored_sockets_follow_the_configuration(serve, systemd: Systemd) -> None:
    """A restart with fewer workers and another address closes and forgets what it does not need, and binds the rest."""
    one, two = free_ports(2)
    both = {"server": {"listen": [f"127.0.0.1:{one}", f"127.0.0.1:{two}"]}}
    server: Server = serve(workers=3, sections=both, environ=systemd.environ())
    before = systemd.inodes()
    server.stop()
    successor: Server = serve(
        workers=2, sections={"server": {"listen": f"127.0.0.1:{one}"}}, environ=systemd.environ(), **systemd.passed()
    )
    eventually(lambda: systemd.names() == ["fastpush-slot-0", "fastpush-slot-1"])
    after = systemd.inodes()
    assert all(len(after[name]) == 1 and set(after[name]) < set(before[name]) for name in after)
    assert successor.request("GET", "/health")[0] == 200
    with socket.create_server(("127.0.0.1", two)):
        pass  # free again: nobody holds the old address
    successor.stop()
    third: Server = serve(workers=3, sections=both, environ=systemd.environ(), **systemd.passed())
    assert {name: len(inodes) for name, inodes in systemd.inodes().items()} == dict.fromkeys(before, 2)
    assert {port for port in (one, two) if can_connect(port)} == {one, two}
    third.stop()
