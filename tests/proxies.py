"""nginx and HAProxy in front of servers, with the configurations of docs/deploy.md."""

import getpass
import grp
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import ClientConnection, connect

from tests import certificates
from tests.programs import Closing, curl, need
from tests.server import SCALE, eventually
from tests.wire import Reply, Wire, push

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
NAME = "push.example.com"
KEY = "a-key-of-16-characters-or-more"
HOSTS = ("10.0.0.11:8080", "10.0.0.12:8080", "10.0.0.13:8080")
SECONDS = 10 * SCALE


def blocks(language: str) -> list[str]:
    """Every fenced block of a language on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def substitute(text: str, replaced: dict[str, str]) -> str:
    """Put in this machine's addresses and paths; each of the page's must be there."""
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def make_certificate(folder: Path) -> None:
    """Write push.example.com.pem, with certificate and key, and push.example.com.key."""
    pem, key = folder / f"{NAME}.pem", folder / f"{NAME}.key"
    certificates.make_certificate(pem, names=(NAME,), key_path=key)
    pem.write_text(pem.read_text() + key.read_text())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def nginx(folder: Path, port: int, upstreams: Sequence[int], *, hashed: bool) -> list[str]:
    """Write the configuration, for one server or three, balanced or hashed; return the command that runs it."""
    text, next_host, hashed_upstream, check = blocks("nginx")
    if hashed:
        text = re.sub(r"^    upstream .*?^    \}\n", lambda _: hashed_upstream, text, flags=re.MULTILINE | re.DOTALL)
        text = substitute(text, {"        server_name": f"{check}        server_name"})
    elif len(upstreams) > 1:
        servers = "".join(f"        server {host};\n" for host in HOSTS)
        location = "        location = /ws {\n"
        text = substitute(text, {"        server 127.0.0.1:8080;\n": servers, location: location + next_host})
    paths = [f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        substitute(
            text,
            {
                "user www-data": f"user {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}",
                "listen 443": f"listen 127.0.0.1:{port}",
                "/run/": f"{folder}/",
                "/var/log/nginx/": f"{folder}/",
                "/etc/ssl/": f"{folder}/",
                "http {": "\n".join(("http {", *paths)),
                **addresses(upstreams),
            },
        )
    )
    program = need("nginx", "nginx")
    return [program, "-e", f"{folder}/error.log", "-p", str(folder), "-c", str(configuration), "-g", "daemon off;"]


def haproxy(folder: Path, port: int, upstreams: Sequence[int], *, hashed: bool) -> list[str]:
    """Write the configuration, for one server or three, balanced or hashed; return the command that runs it."""
    text, several, check = blocks("haproxy")
    if len(upstreams) > 1:
        text = text.partition("\nbackend")[0] + "\n" + several
    if hashed:
        text = substitute(text, {"    default_backend": f"{check}    default_backend"})
    elif len(upstreams) > 1:
        text = substitute(text, {"    balance url_param user\n    hash-type consistent\n": ""})
    configuration = folder / "haproxy.cfg"
    configuration.write_text(
        substitute(
            text,
            {
                "user haproxy": f"user {getpass.getuser()}",
                "group haproxy": f"group {grp.getgrgid(os.getgid()).gr_name}",
                "bind :443": f"bind 127.0.0.1:{port}",
                "/dev/log": f"{folder}/log",
                "/etc/haproxy/": f"{folder}/",
                **addresses(upstreams),
            },
        )
    )
    return [need("haproxy", "haproxy"), "-db", "-f", str(configuration)]


def addresses(upstreams: Sequence[int]) -> dict[str, str]:
    """What stands here for each address of the page."""
    names = HOSTS if len(upstreams) > 1 else ("127.0.0.1:8080",)
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, upstreams, strict=True)}


CONFIGURE = {"nginx": nginx, "haproxy": haproxy}


class Front:
    """What clients outside see: TLS on a port of 127.0.0.1, with the certificate that stands in a folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.certificate = folder / f"{NAME}.pem"
        self._tls = ssl.create_default_context(cafile=self.certificate)
        # The synchronous client reads and writes in two threads. Python 3.11 loses what is written while
        # it reads the tickets that a TLS 1.3 server sends after the handshake.
        self._tls_of_threads = ssl.create_default_context(cafile=self.certificate)
        self._tls_of_threads.maximum_version = ssl.TLSVersion.TLSv1_2

    def wire(self) -> Wire:
        """A TLS connection."""
        wire = Wire(self.port)
        wire.socket = self._tls.wrap_socket(wire.socket, server_hostname=NAME)
        return wire

    def ask(self, data: bytes) -> Reply:
        """The reply to one request on a connection of its own."""
        with self.wire() as wire:
            return wire.send(data).reply()

    def push(self, user: str, event: str, message: str, path: str = "/push") -> Reply:
        headers = (f"X-API-Key: {KEY}", "Accept: application/json")
        return self.ask(push(user, event, message, *headers, path=path))

    def connect(self, query: str = "", source: str = "127.0.0.1", **options: Any) -> ClientConnection:
        """A WebSocket from an address of this machine."""
        return connect(
            f"wss://{NAME}:{self.port}/ws?{query}",
            sock=socket.create_connection(("127.0.0.1", self.port), SECONDS, (source, 0)),
            ssl=self._tls_of_threads, server_hostname=NAME, open_timeout=SECONDS, **options,
        )  # fmt: skip

    def call(self) -> tuple[str, str]:
        """Run the page's curl line against it; return what curl prints, and what the page says it does."""
        (block,) = blocks("sh")
        line, _, printed = block.replace("\\\n", "").rstrip().partition("\n# ")
        there = ("--cacert", str(self.certificate), "--connect-to", f"{NAME}:443:127.0.0.1:{self.port}")
        program, *arguments = shlex.split(line)
        assert program == "curl"
        return curl(*there, *arguments), printed


class Proxy(Closing, Front):
    """A running proxy in front of one server or three, on the ports `upstreams`."""

    def __init__(self, kind: str, folder: Path, *upstreams: int, hashed: bool = False) -> None:
        self.upstreams = upstreams
        make_certificate(folder)
        super().__init__(folder, free_port())
        command = CONFIGURE[kind](folder, self.port, upstreams, hashed=hashed)
        self.output = (folder / "output").open("wb")
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT, cwd=folder
        )
        eventually(lambda: self.process.poll() is not None or self._is_open(), what=f"{kind} listens")
        assert self.process.poll() is None, (folder / "output").read_text()

    def _is_open(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port)):
                return True
        except ConnectionRefusedError:
            return False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10 * SCALE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()

    def upstream_ports(self) -> set[int]:
        """The local ports from which its processes are connected to the servers now."""
        root = psutil.Process(self.process.pid)
        return {
            connection.laddr.port
            for process in (root, *root.children())
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port in self.upstreams
        }
