"""Every command against a real server: what it prints, its exit codes, and systemd's view of `serve`."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey
from websockets.sync.client import connect

from tests.programs import FASTPUSH, Program, need, run
from tests.server import SCALE, Server, eventually

Serve = Callable[..., Server]
KEYS = ["first-key-0123456789", "second-key-987654321"]
UNIT = Path(__file__).parents[2] / "systemd" / "fastpush.service"


def fastpush(*arguments: str, environ: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; whatever happens, nobody may see a traceback."""
    result = run(*FASTPUSH, *arguments, environ=environ)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    return result


def outcome(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = fastpush(*arguments, environ=environ)
    return result.returncode, result.stdout, result.stderr


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks back-ends for a key."""
    folder = tmp_path_factory.mktemp("keyed")
    running = Server(folder, workers=2, sections={"push": {"auth": "keys", "keys": KEYS}})
    # Commands find the port in the configuration; the running server has it already.
    running.write_config(2, {"push": {"auth": "keys", "keys": KEYS}})
    yield running
    running.stop()


def configured(server: Server) -> tuple[str, str]:
    return ("--config", str(server.config_path))


# -- push, drop, listen -------------------------------------------------------------


def test_push_and_listen(keyed: Server) -> None:
    """S0-19, S0-25, S0-27: push finds server and key in the configuration and says how many connections it reached."""
    assert outcome("push", "jack", "topic1", "nobody", *configured(keyed)) == (0, "sent to 0 connections\n", "")
    events = ("--event", "topic1", "--event", "topic2")
    arguments = ("listen", "--token", "jack", *events, "--count", "3", *configured(keyed))
    with Program(*FASTPUSH, *arguments) as listener:
        assert listener.line() == "registered for topic1, topic2"
        assert outcome("push", "jack", "topic1", "hello ✓", *configured(keyed)) == (0, "sent to 1 connection\n", "")
        assert outcome("push", "jack", "topic2", "two\nlines", *configured(keyed)) == (0, "sent to 1 connection\n", "")
        assert [listener.line() for _ in range(3)] == ["hello ✓", "two", "lines"]
        assert outcome("push", "jack", "topic1", "last", *configured(keyed))[0] == 0
        assert listener.line() == "last"
        assert listener.wait() == 0


def test_push_every(keyed: Server) -> None:
    """S0-39: --every pushes at a steady pace until Ctrl-C, which is exit code 130 and no traceback."""
    with connect(keyed.ws_url("token=steady&event=topic1")) as client:
        arguments = ("push", "steady", "topic1", "tick", "--every", "200ms", *configured(keyed))
        with Program(*FASTPUSH, *arguments) as pusher:
            began = time.monotonic()
            for _ in range(6):
                assert client.recv(timeout=10 * SCALE) == "tick"
            assert time.monotonic() - began > 0.8  # the first came before the clock started
            pusher.process.send_signal(signal.SIGINT)
            assert pusher.wait() == 130


def test_push_every_outlasts_a_server_that_restarts(serve: Serve) -> None:
    """Once a first push succeeded, a server that is away is a warning, and pushing goes on when it is back."""
    server = serve(workers=1)
    port, sections = server.port, {"server": {"listen": f"127.0.0.1:{server.port}"}}
    with Program(*FASTPUSH, "push", "u", "e", "m", "--every", "50ms", "--url", server.url) as pusher:
        assert pusher.line() == "sent to 0 connections"
        server.stop()
        assert f"http://127.0.0.1:{port} cannot be reached" in pusher.line_with("warning: ")
        server.write_config(1, sections)
        server.start()
        assert pusher.line_with("sent to") == "sent to 0 connections"


def test_a_wrong_key_is_refused(keyed: Server) -> None:
    """S0-19: push and drop with a wrong key or none: exit code 1, 401 and what to send; the key is not shown."""
    for command in (("push", "u", "e", "m"), ("drop", "u")):
        code, out, error = outcome(*command, *configured(keyed), environ={"FASTPUSH_KEY": "wrong-key-0123456789"})
        assert (code, out) == (1, "")
        assert error.startswith("error: the server refused with 401: send a key of [push] keys")
        assert "wrong-key" not in error
        assert outcome(*command, "--key", KEYS[1], "--url", keyed.url)[0] == 0
    # The configuration's key is for its own server: another URL does not get it.
    assert outcome("push", "u", "e", "m", "--url", keyed.url, *configured(keyed))[0] == 1


def test_drop_closes_connections(keyed: Server) -> None:
    """S0-37: with an event those registered for it, without one all; it prints how many, and listeners say why."""
    topics = ("topic1", "topic1", "topic2")
    listeners = [Program(*FASTPUSH, "listen", "--token", "dora", "--event", e, *configured(keyed)) for e in topics]
    try:
        for listener in listeners:
            listener.line_with("registered")
        assert outcome("drop", "dora", "topic1", *configured(keyed)) == (0, "closed 2 connections\n", "")
        assert outcome("drop", "dora", *configured(keyed)) == (0, "closed 1 connection\n", "")
        assert outcome("drop", "dora", *configured(keyed)) == (0, "closed 0 connections\n", "")
        for listener in listeners:
            assert listener.line() == (
                "error: the server closed the connection with 1008, policy violation: dropped by the back-end"
            )
            assert listener.wait() == 1
    finally:
        for listener in listeners:
            listener.close()


def test_listen_is_refused_with_a_reason(serve: Serve, tmp_path: Path) -> None:
    """A token that is not known: exit code 1, 401 and the reason, and not the token."""
    (tmp_path / "tokens").write_text('"good" = "jack"\n')
    server = serve(workers=1, sections={"auth": {"mode": "static", "tokens_file": str(tmp_path / "tokens")}})
    code, out, error = outcome("listen", "--event", "e", "--url", server.url, environ={"FASTPUSH_TOKEN": "b4d-token"})
    assert (code, out, error) == (1, "", "error: the server refused the connection with 401: token is unknown\n")


def test_listen_ends_with_the_server(serve: Serve) -> None:
    """1012 at a stop: the listener names code and reason, exit code 1."""
    server = serve(workers=1)
    with Program(*FASTPUSH, "listen", "--token", "t", "--event", "e", "--url", server.url) as listener:
        listener.line_with("registered")
        server.stop()
        expected = "error: the server closed the connection with 1012, service restart: server is restarting"
        assert listener.line() == expected
        assert listener.wait() == 1


def test_a_reader_that_ends_early_is_no_traceback(server: Server) -> None:
    """`fastpush listen | head -1`: when nobody reads any more the command ends quietly."""
    line = " ".join([*FASTPUSH, "listen", "--token", "pipe", "--event", "e", "--url", server.url, "|", "head", "-1"])
    with Program("/bin/sh", "-c", line) as pipe:
        pipe.line_with("registered")
        assert server.push("pipe", "e", "one")["sent"] == 1
        assert pipe.line() == "one"
        eventually(lambda: server.push("pipe", "e", "more")["sent"] == 0, 20, "listener gone")
        assert pipe.wait() == 0


class Stranger(BaseHTTPRequestHandler):
    """A server that is not fastpush."""

    answer: tuple[int, bytes] = (200, b"")

    def do_POST(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...


def test_a_server_that_is_not_fastpush() -> None:
    """Pages, lists, empty objects, a proxy's 502: exit code 1 and one line, whatever comes back."""
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = Thread(target=stranger.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{stranger.server_port}"
            answers = [(200, body) for body in (b"<html>", b"[]", b"{}", b'{"sent":"x"}')]
            for status, body in [*answers, (502, b"bad"), (302, b"")]:
                Stranger.answer = status, body
                text = f"error: {url}/push answered with status {status}, but not like fastpush\n"
                assert outcome("push", "u", "e", "m", "--url", url) == (1, "", text)
            Stranger.answer = (200, b"{}")
            code, _, error = outcome("listen", "--token", "t", "--event", "e", "--url", url)
            assert (code, error.startswith("error: the server refused the connection with 501")) == (1, True)
        finally:
            stranger.shutdown()
            thread.join()


# -- status, check ------------------------------------------------------------------


def test_status(keyed: Server) -> None:
    """For people: one line a process with its figures. With --json: what the supervisor says, for programs."""
    code, out, error = outcome("status", *configured(keyed))
    assert (code, error) == (0, "")
    lines = out.splitlines()
    process = keyed.process.pid
    assert re.fullmatch(rf"fastpush \S+  ready  process {process}  up .+  on 127\.0\.0\.1:{keyed.port}", lines[0])
    assert [line.split("  ")[0] for line in lines[2:]] == ["broker", "worker 0", "worker 1"]
    code, out, error = outcome("status", "--json", *configured(keyed))
    status = json.loads(out)
    assert (code, error, out.count("\n"), status["pid"], status["state"]) == (0, "", 1, keyed.process.pid, "ready")
    assert [process["role"] for process in status["processes"]] == ["broker", "worker", "worker"]


def test_check_beside_a_running_server(keyed: Server) -> None:
    """check on a host where the server runs already names its process and is content: exit code 0."""
    code, out, error = outcome("check", *configured(keyed))
    assert (code, error) == (0, "")
    assert f"server         runs as process {keyed.process.pid} on 127.0.0.1:{keyed.port}\n" in out
    assert "access         clients and back-ends" not in out  # token-is-user is open still
    assert KEYS[0] not in out


def test_check_and_serve_agree_on_a_port_in_use(keyed: Server, tmp_path: Path) -> None:
    """The port of another server: check and serve both say so and end with 1."""
    config = tmp_path / "config.toml"
    config.write_text(f'[server]\nlisten = "127.0.0.1:{keyed.port}"\nruntime_directory = "{tmp_path / "run"}"\n')
    for command in ("check", "serve"):
        result = fastpush(command, "--config", str(config))
        assert result.returncode == 1
        assert f"127.0.0.1:{keyed.port} is already in use" in result.stdout + result.stderr


def test_serve_refuses_to_be_open_to_others() -> None:
    """An open server on every address: check and serve end with 2 and name both settings; nothing listens."""
    result = fastpush("serve", "--listen", "0.0.0.0:0")
    assert result.returncode == 2
    assert "[auth] mode" in result.stderr and "[push] auth" in result.stderr


def test_serve_without_its_log_file(tmp_path: Path) -> None:
    """A log file that cannot be opened: exit code 1, the path and why."""
    config = tmp_path / "config.toml"
    config.write_text(f'[log]\nfile = "{tmp_path / "no" / "folder"}"\n')
    code, _, error = outcome("serve", "--config", str(config))
    assert (code, error) == (
        1,
        f"error: [log] file {tmp_path / 'no' / 'folder'} cannot be opened: No such file or directory\n",
    )


def test_an_unreadable_configuration(tmp_path: Path) -> None:
    """A configuration that this user may not read: exit code 2 and the path, not a traceback and not the defaults."""
    if os.getuid() != 0:
        (tmp_path / "config.toml").touch(mode=0o000)
        assert fastpush("check", "--config", str(tmp_path / "config.toml")).returncode == 2
        return
    # Root may read everything: the same as nobody, with a program that can do nothing else.
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os, sys; from fastpush.cli import main; os.setgid(65534); os.setuid(65534); "
        f"main(['check', '--config', {str(config)!r}], prog_name='fastpush')"
    )
    result = run(FASTPUSH[0], "-c", code)
    assert result.returncode == 2
    assert result.stderr == f"error: {config}: user id 65534 may not read it\n"


# -- token --------------------------------------------------------------------------


def test_tokens_are_taken_by_a_server(serve: Serve, tmp_path: Path) -> None:
    """`fastpush token` signs with HS256, RS256 and ES256 what a server with the same configuration takes, by key id."""
    pairs = {"rsa": RSAKey.generate_key(2048, private=True), "ec": ECKey.generate_key("P-256", private=True)}
    for name, pair in pairs.items():
        (tmp_path / f"{name}.pem").write_bytes(pair.as_pem(private=True))
        (tmp_path / f"{name}.pub").write_bytes(pair.as_pem(private=False))
    keys = f"""
[[auth.jwt.key]]
kid = "hs"
secret = "0123456789abcdef0123456789abcdef"
[[auth.jwt.key]]
kid = "rs"
algorithm = "RS256"
public_key_file = "{tmp_path / "rsa.pub"}"
[[auth.jwt.key]]
kid = "es"
algorithm = "ES256"
public_key_file = "{tmp_path / "ec.pub"}"
"""
    server = serve(start=False, sections={"auth": {"mode": "jwt"}, "auth.jwt": {"audience": "apps", "issuer": "us"}})
    server.config_path.write_text(server.config_path.read_text() + keys)
    server.start()
    files = {"rs": tmp_path / "rsa.pem", "es": tmp_path / "ec.pem"}
    signers = {"hs": (), **{kid: ("--private-key", str(file)) for kid, file in files.items()}}

    def listen(kid: str) -> tuple[int, str]:
        code, token, error = outcome("token", f"user-{kid}", "--kid", kid, *signers[kid], *configured(server))
        assert (code, error) == (0, "")
        arguments = ("listen", "--event", "e", "--count", "1", "--url", server.url)
        with Program(*FASTPUSH, *arguments, environ={"FASTPUSH_TOKEN": token.strip()}) as listener:
            listener.line_with("registered")
            assert server.push(f"user-{kid}", "e", f"for {kid}")["sent"] == 1
            return listener.wait(), listener.line()

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(listen, signers)) == [(0, f"for {kid}") for kid in signers]
    expired = outcome("token", "late", "--expires", "-60", *configured(server))[1].strip()
    code, _, error = outcome("listen", "--event", "e", "--url", server.url, environ={"FASTPUSH_TOKEN": expired})
    assert code == 1
    assert error.startswith("error: the server refused the connection with 401: token expired")


# -- systemd ------------------------------------------------------------------------


def test_the_unit_is_valid(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong with the unit, once ExecStart is a program that exists."""
    program = need("systemd-analyze", "systemd")
    unit = tmp_path / "fastpush.service"
    text = UNIT.read_text()
    assert "ExecStart=/opt/fastpush/bin/fastpush serve --config /etc/fastpush/config.toml\n" in text
    unit.write_text(text.replace("/opt/fastpush/bin/fastpush", "/bin/true"))
    result = run(program, "verify", "--man=no", str(unit), environ={"SYSTEMD_LOG_LEVEL": "warning"})
    mine = [line for line in result.stderr.splitlines() if "fastpush" in line]
    assert (result.returncode, mine) == (0, [])


def test_systemd_is_told(serve: Serve, tmp_path: Path) -> None:
    """READY=1 once every process is ready and not before, STOPPING=1 when the stop begins, on a real notify socket."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(path))
        notified.settimeout(20 * SCALE)
        server = serve(workers=2, environ={"NOTIFY_SOCKET": str(path)})
        assert b"READY=1" in notified.recv(4096).split(b"\n")
        status = server.status()
        assert status["state"] == "ready"
        assert all(process["state"] == "ready" for process in status["processes"])
        server.signal(signal.SIGTERM)
        assert b"STOPPING=1" in notified.recv(4096).split(b"\n")
        assert server.process.wait(20 * SCALE) == 0


def test_drain_of_a_server_that_is_killed_ends(serve: Serve) -> None:
    """Whoever waits for the end of a drain is told when the server is killed in the middle of it."""
    server = serve(workers=1)
    with (
        connect(server.ws_url("token=aaa&event=e")),
        connect(server.ws_url("token=bbb&event=e")),
        Program(*FASTPUSH, "drain", "--seconds", "60", "--config", str(server.config_path)) as drain,
    ):
        eventually(lambda: server.status()["state"] == "draining", what="draining")
        server.process.kill()
        server.process.wait()
        assert drain.wait(20 * SCALE) == 1
