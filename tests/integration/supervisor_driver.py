"""A supervisor with fake children, as a program and as a handle on it.

As a program (`python supervisor_driver.py SCENE`) it runs `serve` on SCENE/config.json. Its
children write what happens to them to SCENE/journal, one JSON object a line, and look
at files in SCENE that steer them:

    fail-broker, fail-worker   exit with 3 before ready
    hold-0                     a new process of slot 0 is not ready before this is gone (any slot)
    stubborn                   ignore Drain
    deaf                       ignore SIGABRT
    leave                      announce the end on SIGTERM, and end only when `gone` exists
    stalled                    the broker reports the worker of this number, once
    unwilling-NUMBER           this process answers Prepare with the file's text
    silent-NUMBER              this process does not answer Prepare

As a handle, `Scene` writes the configuration, starts the program and waits for conditions.
"""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fastpush import log
from fastpush.child import Context, beat_seconds
from fastpush.config import Config
from fastpush.control_client import ControlError, ask
from fastpush.errors import ConfigError, StartError
from fastpush.protocol import control
from fastpush.supervisor.main import Entries, serve

DEADLINE_SECONDS = 20 * float(os.environ.get("FASTPUSH_TEST_SCALE", "1"))


# The program


class FakeChild:
    """Does what the contract asks of a child, with plain poll()."""

    def __init__(self, scene: Path, context: Context) -> None:
        self.scene = scene
        self.context = context
        self.poller = select.poll()
        self.accepting: dict[int, tuple[int, socket.socket]] = {}
        self.next_beat = 0.0
        self.beats = 0
        self.leaves = False

    def journal(self, **entry: Any) -> None:
        line = {"role": self.context.role, "number": self.context.number, "slot": self.context.slot} | entry
        with (self.scene / "journal").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def told(self, name: str) -> bool:
        return (self.scene / name).exists()

    def send(self, message: control.FromChild) -> None:
        self.context.channel.send(control.encode(message))

    def run(self) -> int:
        if self.told(f"fail-{self.context.role}"):
            return 3
        while self.told(f"hold-{self.context.slot}"):
            select.poll().poll(5)
        if self.told("deaf"):
            signal.signal(signal.SIGABRT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "leaves", True))
        self.journal(born=os.getpid(), sockets=own_sockets(), workers=self.context.workers)
        for listener in self.context.listeners:
            self.accept_from(self.context.slot, listener.socket)
        self.poller.register(self.context.channel, select.POLLIN)
        self.send(control.Ready())
        if self.context.role == "broker" and self.told("stalled"):
            self.send(control.Stalled(int((self.scene / "stalled").read_text())))
            (self.scene / "stalled").unlink()
        while True:
            if (code := self.turn()) is not None:
                return code

    def turn(self) -> int | None:
        if time.monotonic() >= self.next_beat:
            self.beats += 1
            self.send(control.Beat({"beats": self.beats}))
            self.next_beat = time.monotonic() + beat_seconds(self.context.config)
            self.journal(beat=self.beats)
        if self.leaves and self.context.role == "worker":
            if not self.told("leave"):
                return 0
            if self.accepting:
                self.send(control.Leaving(60))
                self.stop_accepting(None)
            if self.told("gone"):
                return 0
        for descriptor, _ in self.poller.poll(20):
            if descriptor == self.context.channel.fileno():
                if (code := self.on_channel()) is not None:
                    return code
            elif descriptor in self.accepting:  # an Uncover may have come first
                self.on_connection(*self.accepting[descriptor])
        return None

    def on_channel(self) -> int | None:
        datagram, descriptors, _, _ = socket.recv_fds(self.context.channel, control.MESSAGE_BYTES_MAX, 16)
        if not datagram:
            return 9
        message = control.decode_to_child(datagram)
        self.journal(got=type(message).__name__, **json.loads(control.encode(message)))
        match message:
            case control.Cover():
                for descriptor in descriptors:
                    self.accept_from(message.slot, socket.socket(fileno=descriptor))
            case control.Uncover():
                self.stop_accepting(message.slot)
            case control.Prepare() if not self.told(f"silent-{self.context.number}"):
                refusal = self.scene / f"unwilling-{self.context.number}"
                self.send(control.Prepared(message.reload, refusal.read_text() if refusal.exists() else ""))
            case control.Reload():
                self.send(control.Reloaded(message.reload))
            case control.Drain() if not self.told("stubborn"):
                return 0
        return None

    def accept_from(self, slot: int, listener: socket.socket) -> None:
        self.accepting[listener.fileno()] = (slot, listener)
        self.poller.register(listener, select.POLLIN)

    def stop_accepting(self, slot: int | None) -> None:
        for descriptor, (of_slot, listener) in list(self.accepting.items()):
            if slot in {None, of_slot}:
                self.poller.unregister(descriptor)
                del self.accepting[descriptor]
                listener.close()

    def on_connection(self, slot: int, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:  # another process that serves this socket was faster
            return
        with connection:
            connection.sendall(json.dumps({"pid": os.getpid(), "slot": slot}).encode())


def own_sockets() -> int:
    """Count the sockets this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def main(scene: Path) -> int:
    def source() -> Config:
        try:
            return msgspec.json.decode((scene / "config.json").read_bytes(), type=Config)
        except msgspec.DecodeError as error:
            raise ConfigError(str(error)) from error

    def entry(context: Context) -> int:
        log.set_process(f"{context.role}-{context.number}")
        return FakeChild(scene, context).run()

    if limit := int(os.environ.get("FASTPUSH_TEST_DESCRIPTORS", "0")):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    config = source()
    log.setup(config.log)
    try:
        return serve(config, source, entries=Entries(broker=entry, worker=entry))
    except StartError as error:
        sys.stderr.write(f"fastpush: {error}\n")
        return 1


# The handle


class Scene:
    """A folder with a configuration, and the program that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "run"
        self.settings: dict[str, dict[str, Any]] = {
            "server": {
                "listen": "127.0.0.1:0",
                "workers": 2,
                "hang_seconds": 30,
                "drain_seconds": 5,
                "runtime_directory": str(self.runtime),
            },
            "log": {"format": "json", "level": "debug"},
        }
        self.program: subprocess.Popen[bytes] | None = None

    # Steering

    def set(self, section: str, **values: Any) -> None:
        self.settings.setdefault(section, {}).update(values)

    def write(self, text: str | None = None) -> None:
        (self.folder / "config.json").write_text(text if text is not None else json.dumps(self.settings))

    def tell(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def start(self, **environ: str) -> None:
        self.write()
        with (self.folder / "log").open("ab") as output:
            self.program = subprocess.Popen(
                [sys.executable, __file__, str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | environ,
                start_new_session=True,
            )

    def start_ready(self, **environ: str) -> None:
        self.start(**environ)
        self.wait(lambda: self.logged("ready"))

    def signal(self, number: int) -> None:
        assert self.program is not None
        self.program.send_signal(number)

    def wait_exit(self) -> int:
        assert self.program is not None
        return self.program.wait(DEADLINE_SECONDS)

    def close(self) -> None:
        """End whatever is left, for a test that failed midway: the program leads a process group of its own."""
        if self.program is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.program.pid, signal.SIGKILL)
            self.program.wait()

    # Looking

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Return the condition's value once it is true."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s; log:\n{self.log_text()}"
            time.sleep(0.005)
        return value

    def log_text(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the log lines with this event and these fields, oldest first."""
        lines = [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{") and line[-1] == "}"]
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    def journal(self, **fields: Any) -> list[dict[str, Any]]:
        path = self.folder / "journal"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        return [entry for entry in entries if fields.items() <= entry.items()]

    def beats(self, number: int) -> int:
        return len([entry for entry in self.journal(number=number) if "beat" in entry])

    def ask(self, **request: Any) -> dict[str, Any]:
        return ask(str(self.runtime / "control"), request, DEADLINE_SECONDS)

    def processes(self, role: str = "worker", state: str = "ready") -> list[dict[str, Any]]:
        """Return the status of the processes of a role in a state, by slot."""
        try:
            listed = self.ask(command="status")["processes"]
        except ControlError:
            return []
        return [process for process in listed if process["role"] == role and process["state"] == state]

    def of_slot(self, slot: int) -> dict[str, Any] | None:
        return next((process for process in self.processes() if process["slot"] == slot), None)

    def port(self) -> int:
        return int(self.logged("listening")[0]["address"].rpartition(":")[2])

    def connect(self) -> dict[str, Any]:
        """Connect once and return who accepted, from which slot's socket."""
        with socket.create_connection(("127.0.0.1", self.port()), DEADLINE_SECONDS) as connection:
            return json.loads(connection.recv(4096))

    def is_ours(self, pid: int) -> bool:
        """Tell whether a child of this scene still lives."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return str(self.folder).encode() in command

    def is_clean(self) -> bool:
        """Tell whether no process and no file of the server is left."""
        born = {entry["born"] for entry in self.journal() if "born" in entry}
        return not any(map(self.is_ours, born)) and not self.runtime.exists()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
