"""`fastpush bench` against a real server, and against servers that do wrong."""

import json
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.programs import FASTPUSH, Program, run
from tests.raw import CLOSE, TEXT, build
from tests.server import Server, eventually
from tests.standstill import Standstill

Serve = Callable[..., Server]
SHORT = ("--duration", "1s", "--warm-up", "0.2")
STANDSTILL_SECONDS, RUNS_MAX = 0.4, 3


def bench(*arguments: str) -> tuple[int, str]:
    """Run it; return exit code and all it wrote."""
    result = run(*FASTPUSH, "bench", *arguments)
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    return result.returncode, result.stdout + result.stderr


def measured(tmp_path: Path, url: str, *arguments: str) -> dict[str, Any]:
    """Run it with exit code 0; return what it measured."""
    path = tmp_path / "result.json"
    code, text = bench(url, "--json", str(path), *SHORT, *arguments)
    assert code == 0, text
    return json.loads(path.read_text())


def steadily(tmp_path: Path, url: str, *arguments: str) -> dict[str, Any]:
    """The same; a run during which the machine stood still has measured that, and is done again."""
    for _ in range(RUNS_MAX):
        with Standstill() as standstill:
            result = measured(tmp_path, url, *arguments)
        if standstill.seconds < STANDSTILL_SECONDS:
            break
    return result


def assert_clean(load: dict[str, Any]) -> None:
    faults = {name: load[name] for name in ("lost", "duplicated", "reordered", "refused", "errors", "given_up")}
    assert set(faults.values()) == {0}, load
    assert load["pushes"] > 0
    assert load["latency"]["p50_us"] <= load["latency"]["p99_us"] <= load["latency"]["max_us"]
    assert sum(bucket["count"] for bucket in load["histogram"]) == load["latency"]["count"]


# -- a real server ------------------------------------------------------------------


def test_unicast(server: Server, tmp_path: Path) -> None:
    """Pushes to one user after the other arrive, one receiver each; the server's processes are found and measured."""
    result = steadily(tmp_path, server.ws_url(), "-n", "50")
    (load,) = result["loads"]
    assert_clean(load)
    assert abs(load["deliveries"] - load["pushes"]) <= 2
    assert result["opening"]["opened"] == 50
    assert result["server"]["pid"] == server.process.pid
    assert {process["pid"] for process in result["server"]["processes"]} == {
        server.process.pid, *(child.pid for child in server.children()),
    }  # fmt: skip
    assert result["server"]["cpu_us_per_delivery"] > 0
    assert result["server"]["memory_idle_bytes"] > result["server"]["memory_before_bytes"]
    assert result["closed"] == {}


def test_fan_out_with_a_window(server: Server, tmp_path: Path) -> None:
    """With one user every connection gets each push, and at most the window's pushes are under way."""
    (load,) = steadily(tmp_path, server.ws_url(), "-n", "60", "--mode", "fan-out", "--window", "8")["loads"]
    assert_clean(load)
    assert load["deliveries"] >= 60 * (load["pushes"] - 16)


def test_broadcast_from_two_processes(server: Server, tmp_path: Path) -> None:
    """Everybody gets a broadcast, whichever client process holds the connection; the window spans the processes."""
    result = steadily(
        tmp_path, server.ws_url(), "-n", "60", "--mode", "broadcast", "--window", "4", "--processes", "2",
    )  # fmt: skip
    (load,) = result["loads"]
    assert_clean(load)
    assert load["deliveries"] >= 60 * (load["pushes"] - 8)
    assert len(result["client"]["busy"]) == 2


def test_background_is_counted_apart(server: Server, tmp_path: Path) -> None:
    """Small pushes beside broadcasts have their own row, and do not count the broadcasts their users get too."""
    result = steadily(
        tmp_path, server.ws_url(), "-n", "40", "--mode", "broadcast", "--rate", "20", "--background", "50",
    )  # fmt: skip
    main, background = result["loads"]
    assert_clean(main)
    assert_clean(background)
    assert 15 <= main["pushes"] <= 25
    assert abs(main["deliveries"] - 40 * main["pushes"]) <= 80
    assert 40 <= background["deliveries"] <= 60
    assert len(result["client"]["busy"]) == 2


def test_open_loop_keeps_its_rate(server: Server, tmp_path: Path) -> None:
    """With --rate as many pushes go out as asked for."""
    (load,) = steadily(tmp_path, server.ws_url(), "-n", "20", "--rate", "200")["loads"]
    assert_clean(load)
    assert 180 <= load["pushes"] <= 220


def test_churn(server: Server, tmp_path: Path) -> None:
    """Connections that are replaced all the time miss nothing that was posted once they had registered."""
    for mode in ("unicast", "fan-out"):
        result = steadily(
            tmp_path, server.ws_url(), "-n", "40", "--mode", mode, "--window", "4", "--churn", "100",
            "--processes", "2",
        )  # fmt: skip
        assert_clean(result["loads"][0])
        assert 90 <= result["churned"] <= 102
        assert result["churn_failures"] == {}


def test_slow_connections_are_reported_apart(serve: Serve, tmp_path: Path) -> None:
    """Connections that stop reading hold nobody up, and are reported by the close code that ended them."""
    server = serve(sections={"limits": {"send_queue_messages": 20}, "connections": {"socket_send_bytes": 4096}})
    result = steadily(
        tmp_path, server.ws_url(), "-n", "20", "--mode", "fan-out", "--window", "4", "--slow", "3", "--size", "40000",
        "--duration", "4s",  # until they are full, however slow the machine is
    )  # fmt: skip
    assert_clean(result["loads"][0])
    assert result["slow"] == {"close 1013": 3}
    assert result["closed"] == {}


def test_slow_connections_that_stay_open(server: Server, tmp_path: Path) -> None:
    """A connection that stopped reading and was never closed is reported once, as open."""
    result = steadily(tmp_path, server.ws_url(), "-n", "20", "--rate", "50", "--slow", "3")
    assert_clean(result["loads"][0])
    assert result["slow"] == {"open": 3}


def test_registration_by_message(server: Server, tmp_path: Path) -> None:
    """Clients may register by a text message, with or without an answer to wait for."""
    plain = steadily(tmp_path, server.ws_url(), "-n", "20", "--register", "message")
    assert_clean(plain["loads"][0])
    answered = steadily(
        tmp_path, server.ws_url("confirm=1"), "-n", "20", "--register", "message", "--register-reply", "--churn", "50",
    )  # fmt: skip
    assert_clean(answered["loads"][0])


def test_placeholders_of_the_url(server: Server, tmp_path: Path) -> None:
    """A URL with placeholders is filled in and left alone otherwise; templates agree on the user."""
    url = server.ws_url("event=other&token=u-{user}&envelope=1")
    body = '{"userId":"u-{user}","event":"other","message":"{message}"}'
    assert_clean(steadily(tmp_path, url, "-n", "20", "--push-body", body)["loads"][0])


def test_idle_and_connect_storm(server: Server, tmp_path: Path) -> None:
    """--idle pushes nothing; extra attempts are offered on schedule and counted by their answer."""
    result = steadily(tmp_path, server.ws_url(), "-n", "20", "--idle", "--connect-rate", "100")
    assert result["loads"] == []
    assert 95 <= result["storm"]["offered"] <= 101
    assert result["storm"]["answers"] == {"101": result["storm"]["offered"]}
    assert result["server"]["memory_per_connection_bytes"] is not None


def test_pushes_that_are_refused(serve: Serve, tmp_path: Path) -> None:
    """Refused pushes are counted by status and not expected at receivers; with the key they arrive."""
    key = "a-key-of-16-characters-or-more"
    server = serve(sections={"push": {"auth": "keys", "keys": [key]}})
    (load,) = steadily(tmp_path, server.ws_url(), "-n", "10", "--rate", "50")["loads"]
    assert (load["pushes"], load["deliveries"], load["lost"]) == (0, 0, 0)
    assert load["refused"] == load["replies"]["401"] > 0
    path = tmp_path / "result.json"
    (load,) = steadily(tmp_path, server.ws_url(), "-n", "10", "--rate", "50", "--key", key)["loads"]
    assert_clean(load)
    assert key not in path.read_text()


def test_compression(server: Server, tmp_path: Path) -> None:
    """The extension may be offered; whatever the server makes of it, messages are understood."""
    assert_clean(steadily(tmp_path, server.ws_url(), "-n", "20", "--compression")["loads"][0])


# -- exit codes and files -----------------------------------------------------------


def test_assertions_and_files(server: Server, tmp_path: Path) -> None:
    """Assertions that hold exit with 0; each that does not is a line and exit code 1, and the files are written."""
    page = tmp_path / "page.html"
    files = ("--json", str(tmp_path / "result.json"), "--html", str(page))
    code, text = bench(server.ws_url(), "-n", "10", *SHORT, "--assert", "lost=0,p50<10s", "--assert", "pushes > 1")
    assert code == 0, text
    code, text = bench(server.ws_url(), "-n", "10", *SHORT, *files, "--assert", "p99<1us,lost=0,mean<1us")
    assert code == 1
    assert len(re.findall(r"error: (p99|mean)<1us: it was ", text)) == 2
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    assert "p99&lt;1us" in html
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)
    assert len(json.loads((tmp_path / "result.json").read_text())["failed_assertions"]) == 2


def test_interrupt_still_shows_the_table(server: Server, tmp_path: Path) -> None:
    """Ctrl-C ends the run early; what was measured until then is shown and written."""
    path = tmp_path / "result.json"
    before = server.metrics()["fastpush_pushes_total"]
    with Program(*FASTPUSH, "bench", server.ws_url(), "-n", "5", "--warm-up", "0", "--json", str(path)) as program:
        eventually(lambda: server.metrics()["fastpush_pushes_total"] > before + 100, what="pushes")
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(20) == 0
    result = json.loads(path.read_text())
    assert result["interrupted"]
    assert result["seconds"] < 10
    assert_clean(result["loads"][0])


def test_wrong_usage() -> None:
    """Wrong options and unknown metrics exit with 2 and say what is allowed."""
    for arguments, expected in {
        ("--assert", "speed<1"): "p50, p75",
        ("--assert", "p99<20"): "us, µs, ms, s",
        ("--rate", "5", "--window", "2"): "exclude each other",
        ("--size", "10"): "at least 35",
        ("-n", "5", "--users", "9"): "--users is between",
        ("--slow", "1000"): "--slow is less",
        ("http://127.0.0.1/",): "not a WebSocket URL",
        ("--push-body", "hello"): "{message}",
    }.items():
        code, text = bench(*arguments)
        assert (code, expected in " ".join(text.split())) == (2, True), (arguments, text)


def test_nobody_can_connect(server: Server) -> None:
    """When no connection can be opened the exit code is 1 and the reasons are named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        code, text = bench(f"ws://127.0.0.1:{taken.getsockname()[1]}/ws", "-n", "3", "--idle")
    assert code == 1
    assert "connection refused (3)" in text
    code, text = bench(server.ws_url("event=&token=x{user}"), "-n", "3", "--idle")
    assert code == 1
    assert "nobody could connect" in text


# -- servers that do wrong ----------------------------------------------------------


CUT: list[bytes] = [b"cut"]


class Hub:
    """A server that sends each pushed message to everybody, or does with it what `mischief` says.

    mischief: number of the push, number of the receiver and message in, messages to send out; None closes, CUT too,
    but without a close frame.  request_lines: of the pushes.
    """

    def __init__(
        self, mischief: Callable[[int, int, bytes], list[bytes] | None], context: ssl.SSLContext | None
    ) -> None:
        self._mischief = mischief
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = self._listener.getsockname()[1]
        self.request_lines: set[str] = set()
        self._receivers: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._pushes = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(20)
            if self._context is not None:
                try:
                    connection = self._context.wrap_socket(connection, server_side=True)
                except OSError:  # the client does not trust it
                    connection.close()
                    continue
            self._connections.append(connection)
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        data = b""
        try:
            while chunk := connection.recv(65536):
                data += chunk
                head, found, rest = data.partition(b"\r\n\r\n")
                if not found:
                    continue
                if head.startswith(b"GET"):
                    connection.sendall(
                        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
                    )
                    self._receivers.append(connection)
                    while chunk := connection.recv(65536):
                        for message in re.findall(rb"~\d{33}~x*", chunk):  # the mask is zero
                            self._push(message)
                    return
                size = int(re.search(rb"Content-Length: (\d+)", head)[1])
                if len(rest) >= size:
                    self.request_lines.add(head.partition(b"\r\n")[0].decode())
                    self._push(re.search(rb"~[^\"]*", rest[:size])[0])
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    data = rest[size:]
        except OSError:
            return

    def _push(self, message: bytes) -> None:
        with self._lock:
            self._pushes += 1
            for number, receiver in enumerate(list(self._receivers)):
                messages = self._mischief(self._pushes, number, message)
                if messages is None:
                    receiver.sendall(build(CLOSE, b"\x03\xf3", mask=None))
                    self._receivers.remove(receiver)
                elif messages is CUT:
                    receiver.shutdown(socket.SHUT_RDWR)
                    self._receivers.remove(receiver)
                else:
                    receiver.sendall(b"".join(build(TEXT, text, mask=None) for text in messages))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def hub(
    mischief: Callable[[int, int, bytes], list[bytes] | None], context: ssl.SSLContext | None = None
) -> Iterator[Hub]:
    running = Hub(mischief, context)
    try:
        yield running
    finally:
        running.close()


def hub_load(
    tmp_path: Path, mischief: Callable[[int, int, bytes], list[bytes] | None], *arguments: str
) -> dict[str, Any]:
    with hub(mischief) as running:
        return measured(
            tmp_path, f"ws://127.0.0.1:{running.port}/", "-n", "5", "--mode", "fan-out", "--rate", "100",
            "--publishers", "1", *arguments,
        )  # fmt: skip


def test_honest_hub(tmp_path: Path) -> None:
    """A hub of another make, without fault, has none; several messages in one frame and JSON around them count too."""
    assert_clean(hub_load(tmp_path, lambda _push, _receiver, text: [text])["loads"][0])
    held: dict[int, list[bytes]] = {}

    def in_pairs(_push: int, receiver: int, text: bytes) -> list[bytes]:
        waiting = held.setdefault(receiver, [])
        waiting.append(text)
        if len(waiting) < 2:
            return []
        messages = b",".join(b'{"data":"' + one + b'"}' for one in waiting)
        waiting.clear()
        return [b"[" + messages + b"]"]

    (load,) = hub_load(tmp_path, in_pairs)["loads"]
    assert load["lost"] in {0, 5}  # the last one has no second
    assert load["duplicated"] == load["reordered"] == 0


def test_lost_messages_are_found(tmp_path: Path) -> None:
    """A message that nobody gets is lost for each receiver; one that a single receiver misses is lost once."""
    (load,) = hub_load(tmp_path, lambda push, _receiver, text: [] if push == 20 else [text])["loads"]
    assert (load["lost"], load["duplicated"], load["reordered"]) == (5, 0, 0)
    for victim in range(5):
        (load,) = hub_load(
            tmp_path, lambda push, receiver, text, victim=victim: [] if push == 20 and receiver == victim else [text]
        )["loads"]
        assert (load["lost"], load["duplicated"], load["reordered"]) == (1, 0, 0), victim


def test_last_message_lost_is_found(tmp_path: Path) -> None:
    """Messages missing at the very end are found by the number that was posted."""
    (load,) = hub_load(tmp_path, lambda push, receiver, text: [] if push > 60 and receiver < 2 else [text])["loads"]
    assert load["lost"] > 0
    assert load["lost"] % 2 == 0


def test_doubled_messages_are_found(tmp_path: Path) -> None:
    """A message that comes twice is counted for each receiver."""
    (load,) = hub_load(tmp_path, lambda push, _receiver, text: [text, text] if push == 20 else [text])["loads"]
    assert (load["lost"], load["duplicated"], load["reordered"]) == (0, 5, 0)
    (load,) = hub_load(tmp_path, lambda push, receiver, text: [text, text] if push == 20 and receiver == 3 else [text])[
        "loads"
    ]
    assert (load["lost"], load["duplicated"], load["reordered"]) == (0, 1, 0)


def test_reordered_messages_are_found(tmp_path: Path) -> None:
    """Two messages in the wrong order are counted for each receiver, and nothing is lost."""
    held: dict[int, bytes] = {}

    def swap(push: int, receiver: int, text: bytes) -> list[bytes]:
        if push == 20:
            held[receiver] = text
            return []
        return [text, held[receiver]] if push == 21 else [text]

    (load,) = hub_load(tmp_path, swap)["loads"]
    assert (load["lost"], load["duplicated"], load["reordered"]) == (0, 0, 5)


def test_window_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A lost push gives its place in the window back, and the run says so."""
    with hub(lambda push, _receiver, text: [] if push == 20 else [text]) as running:
        result = measured(
            tmp_path, f"ws://127.0.0.1:{running.port}/", "-n", "3", "--mode", "fan-out", "--duration", "3s",
        )  # fmt: skip
    (load,) = result["loads"]
    assert (load["lost"], load["given_up"]) == (3, 1)
    assert load["pushes"] > 30
    assert any("not waited for" in note for note in result["notes"])


def test_connections_that_the_server_closes(tmp_path: Path) -> None:
    """Connections closed by the server are counted by code, and owe nothing afterwards."""
    result = hub_load(tmp_path, lambda push, receiver, text: None if push == 20 and receiver == 0 else [text])
    assert result["closed"] == {"close 1011": 1}
    assert result["loads"][0]["lost"] == 0


def test_slow_connections_that_the_server_cuts(tmp_path: Path) -> None:
    """A connection that stopped reading and is cut without a close frame is reported once, as at its end of stream."""
    result = hub_load(tmp_path, lambda push, _receiver, text: CUT if push == 20 else [text], "--slow", "2")
    assert result["closed"] == {"end of stream": 3}
    assert result["slow"] == {"end of stream": 2}


def test_push_url_is_filled_in_for_each_user(tmp_path: Path) -> None:
    """Pushes to each user go to that user's URL."""
    with hub(lambda _push, _receiver, text: [text]) as running:
        bench(
            f"ws://127.0.0.1:{running.port}/", "-n", "3", *SHORT, "--rate", "50",
            "--push-url", f"http://127.0.0.1:{running.port}/{{event}}/pub?id={{user}}&token={{token}}",
        )  # fmt: skip
    assert running.request_lines == {f"POST /bench/pub?id={n}&token=user{n} HTTP/1.1" for n in range(3)}


def test_pushing_over_a_websocket(tmp_path: Path) -> None:
    """Where a client's message goes to everybody, publishers are connections of their own and no reply is awaited."""
    with hub(lambda _push, _receiver, text: [text]) as running:
        result = measured(
            tmp_path, f"ws://127.0.0.1:{running.port}/", "-n", "5", "--mode", "broadcast", "--push-via", "websocket",
            "--window", "2",
        )  # fmt: skip
    (load,) = result["loads"]
    assert_clean(load)
    assert load["deliveries"] >= 5 * (load["pushes"] - 4)


def test_tls(tmp_path: Path, certificate: ssl.SSLContext) -> None:
    """wss:// works with --insecure, and an unknown certificate is refused without it."""
    with hub(lambda _push, _receiver, text: [text], certificate) as running:
        url = f"wss://127.0.0.1:{running.port}/"
        result = measured(
            tmp_path, url, "-n", "5", "--mode", "fan-out", "--rate", "100", "--publishers", "1", "--insecure"
        )
        code, text = bench(url, "-n", "2", "--idle")
    assert_clean(result["loads"][0])
    assert result["settings"]["push_url"] is None
    assert (code, "self-signed" in text or "self signed" in text) == (1, True)


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody knows."""
    files = (str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem"))
    made = run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
        "-subj", "/CN=127.0.0.1", "-keyout", files[0], "-out", files[1],
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    return context
