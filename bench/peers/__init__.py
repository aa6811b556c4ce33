"""The servers that fastpush is compared with, all started and driven in the same way.

Each peer has a folder here with `build.sh FOLDER`, which builds or installs it into FOLDER and
writes its versions to FOLDER/version, and `start.sh FOLDER PORT`, which becomes the server on
127.0.0.1. FOLDER is in the user's cache, so that nothing is built into the source tree.
What the servers do is in README.md.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_HERE = Path(__file__).parent
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastpush-bench"
_START_SECONDS = 10
_STOP_SECONDS = 10
_GO_SOURCES = Path("/usr/share/gocode/src/github.com")


@dataclass(frozen=True)
class Peer:
    """A server and how a client drives it.

    Templates have the fields {port}, {user}, {event} and {message}. They are filled in as they
    are: users, events and messages hold nothing that a URL or JSON would escape.
    """

    name: str  # and its folder
    programs: tuple[str, ...]  # that building and running need
    files: tuple[Path, ...] = ()  # the same
    websocket_url: str = "ws://127.0.0.1:{port}/ws?token={user}&event={event}"
    registration: Literal["url", "message"] = "url"
    # The first message of a client, when it registers by one; the server answers it with one.
    registration_text: str = ""
    # Whether a connection is registered once its handshake is answered (and its first message).
    # Else a push that follows at once may miss it.
    confirmed: bool = False
    # Whom a push reaches: connections of its user and event, of its user, or all.
    reach: Literal["event", "user", "everybody"] = "event"
    push_by: Literal["http", "websocket"] = "http"
    push_url: str = "http://127.0.0.1:{port}/push"
    push_body: str = '{{"userId":"{user}","event":"{event}","message":"{message}"}}'
    # Where the pushed text is in what a client receives, which then is one or more lines of JSON.
    # Empty: what it receives is the text itself.
    message_path: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its sources are."""
        return _HERE / self.name

    @property
    def build_folder(self) -> Path:
        """Where it is built and runs."""
        return _CACHE / self.name

    def is_available(self) -> bool:
        """Whether this machine has what building and running it need."""
        return all(map(shutil.which, self.programs)) and all(path.exists() for path in self.files)

    def build_command(self) -> list[str]:
        return [str(self.folder / "build.sh"), str(self.build_folder)]

    def start_command(self, port: int) -> list[str]:
        return [str(self.folder / "start.sh"), str(self.build_folder), str(port)]

    def version(self) -> str:
        """Return the versions of its library and language; it must have been built."""
        return (self.build_folder / "version").read_text().strip()

    def push(self, port: int, user: str, event: str, message: str) -> tuple[str, bytes]:
        """Return the URL and the body (or WebSocket message) of a push."""
        values = {"port": port, "user": user, "event": event, "message": message}
        return self.push_url.format(**values), self.push_body.format(**values).encode()

    def messages(self, received: str) -> list[str]:
        """Return the pushed texts in a message that a client received, none for other replies."""
        if not self.message_path:
            return [received]
        texts = []
        for line in received.splitlines():
            found = json.loads(line)
            for name in self.message_path:
                found = found.get(name) if isinstance(found, dict) else None
            if found is not None:
                texts.append(found)
        return texts


PEERS = (
    Peer("limit", ("cc",), (Path("/usr/include/openssl/sha.h"),), confirmed=True, reach="everybody"),
    Peer("go_push", ("go",)),
    Peer("go_hub", ("go",), reach="everybody"),
    Peer(
        "centrifuge",
        ("go",),
        tuple(
            _GO_SOURCES / name
            for name in (
                "centrifugal/centrifuge",
                "centrifugal/protocol",
                "FZambia/eagle",
                "igm/sockjs-go",
                "mna/redisc",
            )
        ),
        registration="message",
        registration_text='{"id":1,"params":{}}',
        confirmed=True,
        reach="user",
        message_path=("result", "data", "data"),
    ),
    Peer(
        "nchan",
        (),
        (Path("/usr/sbin/nginx"), Path("/usr/lib/nginx/modules/ngx_nchan_module.so")),
        reach="user",
        push_url="http://127.0.0.1:{port}/pub?id={user}",
        push_body="{message}",
    ),
    Peer("websockets", (), push_by="websocket", push_url="ws://127.0.0.1:{port}/publish"),
    Peer("ws", ("node", "npm"), confirmed=True),
)


def build(peer: Peer) -> None:
    """Build a peer, unless it was built from the sources as they are now.

    Raises: subprocess.CalledProcessError: its build.sh failed and has said why.
    """
    stamp = peer.build_folder / "sources"
    digest = hashlib.sha256()
    for path in sorted(path for path in peer.folder.iterdir() if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    peer.build_folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(peer.build_command(), check=True, env={**os.environ, "PYTHON": sys.executable})
    stamp.write_text(digest.hexdigest())


@contextmanager
def running(peer: Peer, core: int) -> Iterator[tuple[int, int]]:
    """Run a peer on one core, built first where needed; yield its port and process id.

    nginx serves in a child of that process, the others in the process itself.
    Raises: RuntimeError: it did not accept connections within 10 s.
    """
    build(peer)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(["taskset", "-c", str(core), *peer.start_command(port)], stdout=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port, process.pid
    finally:
        stop(process, _STOP_SECONDS)


def stop(process: "subprocess.Popen[Any]", seconds: float) -> None:
    """End a process, with SIGKILL when it has not ended `seconds` after SIGTERM."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} did not start")
