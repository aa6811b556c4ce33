"""S1, the echo with a heartbeat: one server with two workers, and one that is open to other machines."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from tests.applications import SECONDS, at_rest, close_log, connections, figures, open_client, read, workers
from tests.raw import BINARY, CLOSE, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import Server, application, eventually
from tests.wire import Wire, upgrade

OWN = '''
import asyncio

from fastpush.applications import Application, ConnectionClosed


class Closing(Application):
    """Does what a client asks for by name, and reports to those who watch."""

    def channels(self, request):
        return ["reports"] if "watch" in request.query else []

    async def on_message(self, connection, data):
        await getattr(self, data)(connection)

    def on_close(self, connection, code, reason):
        self.server.publish("reports", f"closed {code}")

    async def mark(self, connection):
        await self.server.publish("reports", "mark")

    async def leave(self, connection):
        connection.close()

    async def use_after_close(self, connection):
        connection.close()
        for use in (self.send, connection.drain):
            try:
                await use(connection) if use == self.send else await use()
            except ConnectionClosed as error:
                await self.server.publish("reports", str(error))

    async def send(self, connection):
        connection.send("never arrives")

    async def close_often(self, connection):
        async def close(code):
            await asyncio.sleep(0)
            connection.close(code)

        await asyncio.gather(*(close(code) for code in (3000, 3001, 3002)))
        connection.close(3003)


class Failing(Application):
    """Fails before the upgrade, or right after it."""

    def channels(self, request):
        if "early" in request.query:
            raise RuntimeError("no channels")
        return ()

    def on_open(self, connection, request):
        raise RuntimeError("not opened")
'''
MESSAGES = 8000
MESSAGE_BYTES = 100
READ_BYTES = 16384  # a worker's read
PAUSES, RECEIVED = "fastpush_receive_pauses_total", "fastpush_messages_received_total"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("echo")
    (folder / "seed_echo.py").write_text(OWN)
    own = {"anonymous": "loopback"}
    applications = [
        application("Echo"),
        application("Echo", path="/beating", heartbeat_seconds=1),
        application("Echo", path="/hourly", heartbeat_seconds=3600),
        application("Echo", path="/restless", heartbeat_seconds=0.1),
        own | {"path": "/closing", "handler": "seed_echo:Closing", "heartbeat_seconds": 0.1}
        | {"connections": {"close_timeout_seconds": 0.5}},
        own | {"path": "/quiet", "handler": "seed_echo:Closing"},
        own | {"path": "/failing", "handler": "seed_echo:Failing"},
    ]  # fmt: skip
    sections = {"application": applications}
    running = Server(folder, workers=2, sections=sections, environ={"PYTHONPATH": folder})
    yield running
    running.stop()


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for other machines: authenticated, on every address and a port of the test's choice, small buffers."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "tokens.toml").write_text('"token-of-jack" = "jack"\n')
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    sections = {
        "server": {
            "listen": f"0.0.0.0:{port}", "websocket_path": "/register", "origins": ["*"],
            "read_buffer_bytes": 2048, "write_buffer_bytes": 1024,
        },
        "auth": {"mode": "static", "tokens_file": "tokens.toml"},
        "push": {"auth": "keys", "keys": ["a-key-of-the-back-end"]},
        "application": [application("Echo", path="/ws", anonymous="everywhere")],
    }  # fmt: skip
    running = Server(folder, workers=2, sections=sections)
    assert running.port == port
    yield running
    running.stop()


# -- who comes in -----------------------------------------------------------------------


def test_the_echo_has_an_address_a_port_and_a_path(public: Server) -> None:
    """S1-01: GET /ws on 0.0.0.0 and a chosen port becomes a WebSocket that echoes."""
    assert public.events("listening")[-1]["address"] == f"0.0.0.0:{public.port}"
    with connect(f"ws://127.0.0.1:{public.port}/ws") as client:
        client.send("hello")
        assert read(client) == "hello"


def test_pages_of_every_origin_may_connect(public: Server) -> None:
    """S1-02: with origins "*" a page of any site is let in; messages much larger than both buffers come back whole."""
    with open_client(public, "/ws", origin="https://elsewhere.example", compression=None) as client:
        for size in (1023, 1024, 1025, 2047, 2048, 2049, 60000):
            client.send("x" * size)
        for size in (1023, 1024, 1025, 2047, 2048, 2049, 60000):
            assert read(client) == "x" * size


@pytest.mark.parametrize(("broken", "status"), [({"key": "short"}, 400), ({"key": None}, 400), ({"version": "8"}, 426)])
def test_a_failed_upgrade_leaves_nothing(server: Server, broken: dict[str, str | None], status: int) -> None:
    """S1-03: a bad handshake gets its status; no WebSocket is made, nothing is echoed, no connection is left."""
    before = at_rest(server)
    with Wire(server) as wire:
        port = wire.socket.getsockname()[1]
        assert wire.send(upgrade("/echo", host="127.0.0.1", **broken)).reply().status == status
    eventually(lambda: server.metrics()["fastpush_http_connections"] <= 1, what="only the scrape is connected")
    after = server.metrics()
    for name in ("fastpush_connections", RECEIVED, "fastpush_closed_connections_total"):
        assert after[name] == before[name]
    assert not [line for line in server.events("connection opened") if line["peer"] == f"127.0.0.1:{port}"]


def test_both_handlers_answer(server: Server) -> None:
    """S1-22: the WebSocket handler and the push handler of one server both answer, and the echo beside them."""
    with connect(server.ws_url("confirm=1")) as receiver, open_client(server, "/echo") as echo:
        receiver.send(json.dumps({"token": "handlers", "event": "e"}))
        assert read(receiver) == '{"registered":"e"}'
        assert server.push("handlers", "e", "by push") == {"status": 200, "sent": 1}
        assert read(receiver) == "by push"
        echo.send("by echo")
        assert read(echo) == "by echo"


# -- the echo -----------------------------------------------------------------------------


def test_each_message_comes_back(server: Server) -> None:
    """S1-04: text of every kind and size comes back unchanged and in order, from each worker."""
    texts = ["", " ", "hello", "two\nlines\r\n", "grüße 🎉", "\u0000", '{"json":true}', "x" * 65536]
    for worker in workers(server):
        with open_client(server, "/echo", worker=worker, compression=None) as client:
            for text in texts:
                client.send(text)
            assert [read(client) for _ in texts] == texts


def test_the_echo_is_always_text(server: Server) -> None:
    """S1-05: binary input comes back in a text frame with the same bytes; what is no UTF-8 becomes U+FFFD, since no
    text frame may hold it.
    """
    with RawClient(server) as client:
        for payload in (b"", b"abc", "grüße".encode(), b"x" * 60000):
            client.send(build(BINARY, payload))
            assert client.read() == Frame(TEXT, payload)
        client.send(build(BINARY, b"a\xff\xfeb"))
        assert client.read() == Frame(TEXT, "a\ufffd\ufffdb".encode())


def test_no_message_is_lost(server: Server) -> None:
    """S1-16: each of thousands of messages in a burst comes back, once and in order; none is swallowed by another."""
    count = 5000
    with RawClient(server, seconds=20) as client:
        burst = b"".join(build(TEXT, f"number {number}".encode()) for number in range(count))
        sender = threading.Thread(target=client.send, args=(burst,))
        sender.start()
        assert [client.read_text() for _ in range(count)] == [f"number {number}" for number in range(count)]
        sender.join(SECONDS)
        client.is_alive()


# -- the heartbeat --------------------------------------------------------------------------


def test_the_heartbeat_comes_every_second(server: Server) -> None:
    """S1-07: a client that says nothing is sent `heartbeat` each second, not sooner; what it says comes in between."""
    with open_client(server, "/beating") as client:
        assert read(client) == "heartbeat"
        first = time.monotonic()
        assert [read(client), read(client)] == ["heartbeat", "heartbeat"]
        assert time.monotonic() - first > 1.7
        client.send("between")
        assert read(client) == "between"


def test_the_first_heartbeat_comes_at_once(server: Server) -> None:
    """S1-07: the first heartbeat comes with the connection, also where the next one is an hour away."""
    with open_client(server, "/hourly") as client:
        assert read(client) == "heartbeat"
        client.send("next")
        assert read(client) == "next"


def test_the_heartbeat_ends_when_the_client_closes(server: Server) -> None:
    """S1-08: behind the client's close frame comes the answer to it, then the end, and no heartbeat."""
    with RawClient(server, "/restless") as client:
        assert [client.read_text() for _ in range(3)] == ["heartbeat"] * 3
        client.send(build(CLOSE, close_payload(1000)))
        frame = client.read()
        while frame == Frame(TEXT, b"heartbeat"):  # on their way already
            frame = client.read()
        assert frame == Frame(CLOSE, close_payload(1000))
        client.read_end()


def test_the_heartbeat_ends_when_the_server_closes(server: Server) -> None:
    """S1-08: a closed connection whose client does not answer lasts for five heartbeats more, and is sent none."""
    with RawClient(server, "/closing") as client:
        client.text("leave")
        frame = client.read()
        while frame == Frame(TEXT, b"heartbeat"):
            frame = client.read()
        assert frame == Frame(CLOSE, close_payload(1000))
        client.read_end()
        assert close_log(server, client.port)["code"] == 1000


# -- flow -------------------------------------------------------------------------------------


def test_a_client_that_does_not_read_is_not_read_from(server: Server) -> None:
    """S1-09, S1-10, S1-11, S1-12: 1,000 answers wait to be sent and the echo waits for room; 1,000 messages wait to be
    handled; then nothing more is read from that client. Others of its worker are served as ever. Once it reads again
    all comes, in order, and nothing was dropped.
    """
    before = at_rest(server)
    texts = [f"{number:05} ".ljust(MESSAGE_BYTES, "x") for number in range(MESSAGES)]
    with RawClient(server, receive_bytes=65536, seconds=30) as client:
        burst = b"".join(build(TEXT, text.encode()) for text in texts)
        sender = threading.Thread(target=client.send, args=(burst,))
        sender.start()
        held = eventually(
            lambda: found if (found := figures(server, client.port)).unhandled_messages >= 1000 else None,
            what="both queues full",
        )
        assert held is not None and held.queued_messages == 1000
        assert held.queued_bytes < 1000 * (MESSAGE_BYTES + 200)
        assert held.unhandled_messages <= 1000 + READ_BYTES // MESSAGE_BYTES
        paused = server.metrics()
        assert paused[PAUSES] > before[PAUSES]
        with open_client(server, "/echo", worker=server.worker_of(client.port)) as other:
            for number in range(100):
                other.send(f"other {number}")
                assert read(other) == f"other {number}"
        after = server.metrics()
        assert after[RECEIVED] == paused[RECEIVED] + 100, "the paused client was read from"
        assert after[RECEIVED] - before[RECEIVED] < MESSAGES
        still = figures(server, client.port)
        assert (still.queued_messages, still.unhandled_messages) == (1000, held.unhandled_messages)
        assert [client.read_text() for _ in texts] == texts
        sender.join(SECONDS)
        client.is_alive()
    assert server.metrics()["fastpush_drops_total"] == before["fastpush_drops_total"]


def test_frames_of_several_writers_do_not_mix(server: Server) -> None:
    """S1-15: echoes, pushes from elsewhere, heartbeats and pongs to one slow client arrive as whole frames, and each
    kind in its own order: one writer writes them all.
    """
    echoes = [f"echo {number} ".ljust(20000, "e") for number in range(20)]
    pushes = [f"push {number} ".ljust(10000, "p") for number in range(20)]
    with RawClient(server, "/restless", receive_bytes=4096, token="mixed") as client:
        expected = {"echo": echoes.copy(), "push": pushes.copy()}
        frames = [frame for text in echoes for frame in (build(TEXT, text.encode()), build(PING, text[:8].encode()))]
        sender = threading.Thread(target=client.send, args=frames)
        sender.start()
        for text in pushes:
            assert server.push("mixed", "/restless", text) == {"status": 200, "sent": 1}
        heartbeats = pongs = 0
        while expected["echo"] or expected["push"]:
            frame = client.read()
            if frame.opcode == PONG:
                assert frame.payload.startswith(b"echo ")
                pongs += 1
            elif frame == Frame(TEXT, b"heartbeat"):
                heartbeats += 1
            else:
                assert frame.opcode == TEXT and frame.fin
                text = frame.payload.decode()
                assert text == expected[text[:4]].pop(0)
        sender.join(SECONDS)
        assert heartbeats and pongs


# -- ends -----------------------------------------------------------------------------------------


def test_a_failed_read_or_write_ends_the_connection(server: Server) -> None:
    """S1-06: a connection that was reset while nothing was going on, and one that was reset while the server was
    writing to it, are both ended and forgotten.
    """
    at_rest(server)
    idle, busy = RawClient(server), RawClient(server, receive_bytes=4096)
    busy.send(*[build(TEXT, b"x" * 50000) for _ in range(10)])
    eventually(lambda: figures(server, busy.port).queued_messages, what="a write under way")
    assert connections(server) == 2
    for client in (idle, busy):
        client.reset()
        assert close_log(server, client.port)["code"] == 1006
    eventually(lambda: connections(server) == 0, what="both gone")
    assert not server.events("reading failed")


def test_use_after_close_says_so(server: Server) -> None:
    """S1-13: sending on a closed connection, or waiting for room there, fails with `connection is closed`; what its
    client has sent behind is not handed over any more.
    """
    with open_client(server, "/quiet", "watch=1") as watcher, RawClient(server, "/quiet") as client:
        client.send(build(TEXT, b"use_after_close"), build(TEXT, b"mark"))
        assert client.read_close() == (1000, "")
        told = [read(watcher) for _ in range(3)]
        assert told == ["connection is closed", "connection is closed", "closed 1000"]
        with open_client(server, "/quiet") as other:
            other.send("mark")
            assert read(watcher) == "mark"


def test_closing_again_does_nothing(server: Server) -> None:
    """S1-14: closed by three tasks and once more, a connection sends one close frame, the first, and ends once."""
    with open_client(server, "/quiet", "watch=1") as watcher, RawClient(server, "/quiet") as client:
        client.text("close_often")
        assert client.read_close() == (3000, "")
        client.send(build(CLOSE, close_payload(3000)))
        client.read_end()
        assert read(watcher) == "closed 3000"
        with open_client(server, "/quiet") as other:
            other.send("mark")
            assert read(watcher) == "mark"  # and not a second end
    assert not [line for line in server.events() if line["level"] == "error" and line.get("path") == "/quiet"]


def test_an_error_right_after_the_upgrade_closes_the_socket(server: Server) -> None:
    """S1-17: an application that fails as it opens a connection has it closed with 1011 and freed."""
    before = at_rest(server)
    for _ in range(3):
        with RawClient(server, "/failing") as client:
            assert client.read_close() == (1011, "")
            client.send(build(CLOSE, close_payload(1011)))
            client.read_end()
            assert close_log(server, client.port)["code"] == 1011
    eventually(lambda: connections(server) == 0, what="all freed")
    assert server.metrics()["fastpush_handler_errors_total"] == before["fastpush_handler_errors_total"] + 3


def test_an_error_right_before_the_upgrade_closes_the_socket(server: Server) -> None:
    """S1-17: an application that fails before the upgrade has the handshake answered with 500, and nothing is left."""
    at_rest(server)
    with Wire(server) as wire:
        reply = wire.send(upgrade("/failing?early=1", host="127.0.0.1")).reply()
        assert (reply.status, reply.closes) == (500, True)
        assert wire.is_ended()
    assert connections(server) == 0
