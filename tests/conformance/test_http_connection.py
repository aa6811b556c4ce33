"""One TCP connection, many requests: who answers what, in order, within time, and leaving nothing behind."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from websockets.sync.client import connect

from tests.server import Server, eventually
from tests.wire import Wire, chunked, masked_text, push, request, upgrade

TAKEN = b"message sent to 0 clients"
PUSH = push("nobody", "e", "m")
ODD_PUSH = push("nobody", "e", "m", "Content-Encoding: identity")  # aiohttp answers it


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives clients one second for a request."""
    sections = {"server": {"head_seconds": 1}}
    running = Server(tmp_path_factory.mktemp("hasty"), workers=1, sections=sections)
    yield running
    running.stop()


def open_connections(server: Server) -> float:
    return server.metrics()["fastpush_http_connections"]


def nothing_is_left(server: Server) -> None:
    """Wait until the only connection is the one that asks."""
    eventually(lambda: open_connections(server) == 1, what="all HTTP connections closed")


def whole(wire: Wire, data: bytes) -> None:
    wire.send(data)


def bytewise(wire: Wire, data: bytes) -> None:
    wire.send_bytewise(data)


MIXTURE: list[tuple[bytes, int, bytes]] = [
    (PUSH, 200, TAKEN),
    (request("GET", "/metrics"), 200, b"# HELP"),
    (PUSH, 200, TAKEN),
    (request("GET", "/nowhere"), 404, b'{"error"'),
    (request("POST", "/nowhere", body=b"a body that nobody reads"), 404, b'{"error"'),
    (ODD_PUSH, 200, TAKEN),
    (request("HEAD", "/health"), 200, b""),
    (request("GET", "/push"), 405, b""),
    (request("GET", "/health", body=b"a body that nobody reads"), 200, b'{"status"'),
    (push("", "e", "m"), 400, b"request data illegal"),
    (PUSH, 200, TAKEN),
]


@pytest.mark.parametrize("send", [whole, bytewise])
def test_every_kind_on_one_connection(server: Server, send: Callable[[Wire, bytes], None]) -> None:
    """Push, metrics, unknown path, odd push, HEAD and then a WebSocket share one connection; replies are in order.

    All is sent at once, pipelined, or byte by byte; what follows the handshake belongs to the WebSocket.
    """
    everything = b"".join(data for data, _, _ in MIXTURE)
    everything += upgrade("/ws?token=mixed&event=e&confirm=1") + masked_text('{"token":"mixed","event":"f"}')
    with Wire(server) as wire:
        sending = threading.Thread(target=send, args=(wire, everything))
        sending.start()
        for data, status, start in MIXTURE:
            reply = wire.reply(to_head=data.startswith(b"HEAD"))
            assert reply.status == status and reply.body.startswith(start) and not reply.closes, data
        assert wire.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert sorted(wire.websocket_text() for _ in range(2)) == ['{"registered":"e"}', '{"registered":"f"}']
        assert server.push("mixed", "f", "hello") == {"status": 200, "sent": 1}
        assert wire.websocket_text() == "hello"
        sending.join()
    nothing_is_left(server)


def test_pipelined_pushes(server: Server) -> None:
    """S0-25: 200 pushes sent in one write are all taken, answered and delivered in order."""
    with connect(server.ws_url("token=pipe&event=e"), compression=None) as connection, Wire(server) as wire:
        wire.send(b"".join(push("pipe", "e", str(number)) for number in range(200)))
        assert {wire.reply().body for _ in range(200)} == {b"message sent to 1 clients"}
        assert [connection.recv(timeout=20) for _ in range(200)] == [str(number) for number in range(200)]


def test_pipelining_both_ways_is_bounded_and_complete(server: Server) -> None:
    """A client that pipelines megabytes, faster than they are served, misses no reply."""
    count = 8000
    with Wire(server) as wire:
        body = push("nobody", "e", "m" * 200, "Accept: application/json")
        sending = threading.Thread(target=wire.socket.sendall, args=(body * count,))
        sending.start()
        replies = [wire.reply() for _ in range(count)]
        sending.join()
        assert {(reply.status, reply.body) for reply in replies} == {(200, b'{"sent":0}')}


def test_chunked_push_ends_the_connection_after_its_answer(server: Server) -> None:
    """S0-21, S0-25: a chunked push is taken like any other; the answer says that the connection ends.

    What is pipelined behind it is not answered: where it begins only the chunks say.
    """
    body = json.dumps({"userId": "nobody", "event": "e", "message": "m"}).encode()
    data = request("POST", "/push", "Transfer-Encoding: chunked") + chunked(body)
    for send in (whole, bytewise):
        with Wire(server) as wire:
            send(wire, PUSH + data)
            assert wire.reply().body == TAKEN
            reply = wire.reply()
            assert reply.body == TAKEN and reply.closes and wire.is_ended()
    with Wire(server) as wire:
        reply = wire.send(data + PUSH).reply()
        assert reply.closes and wire.is_ended()
    nothing_is_left(server)


@pytest.mark.parametrize("broken", [b"zz\r\nhello\r\n", b"5\r\nhelloX\r\n", b"-1\r\n\r\n", b"5;\r\nhello\n0\r\n\r\n"])
def test_broken_chunks_are_refused(server: Server, broken: bytes) -> None:
    """A chunked body that is none is 400, and the connection ends."""
    with Wire(server) as wire:
        reply = wire.send(request("POST", "/push", "Transfer-Encoding: chunked") + broken).reply()
        assert reply.status == 400 and reply.closes and wire.is_ended()
    nothing_is_left(server)


def test_expect_continue(server: Server) -> None:
    """A client that asks before it sends its body is told 100 once, then answered; the connection goes on."""
    body = json.dumps({"userId": "nobody", "event": "e", "message": "m"}).encode()
    head = request("POST", "/push", "Expect: 100-continue", body=body)[: -len(body)]
    with Wire(server) as wire:
        for _ in range(2):
            assert wire.send(head).reply().status == 100
            assert wire.send(body).reply().body == TAKEN
        assert wire.send(PUSH).reply().body == TAKEN


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [("POST", "/push", 2000000, 413), ("POST", "/x", 10, 404), ("PUT", "/push", 9, 405)],
)
def test_expect_continue_is_refused_without_the_body(
    server: Server, method: str, path: str, size: int, status: int
) -> None:
    """A client that asks first is refused without a 100; whether its body follows nobody knows: the connection ends."""
    with Wire(server) as wire:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
        reply = wire.send(head.encode()).reply()
        assert reply.status == status and reply.closes


def test_unknown_expectation_is_417(server: Server) -> None:
    """An expectation that nobody knows is 417."""
    with Wire(server) as wire:
        assert wire.send(push("a", "e", "m", "Expect: tea")).reply().status == 417


@pytest.mark.parametrize("data", [PUSH, ODD_PUSH], ids=["lean", "aiohttp"])
def test_request_split_anywhere(server: Server, data: bytes) -> None:
    """S0-21, S0-25: wherever a request is cut in two, head or body, it is answered, and so is the next one."""
    with Wire(server) as wire:
        for at in range(1, len(data)):
            assert wire.send_split(data, at).reply().body == TAKEN
        # The second half of one request together with the first of the next.
        stream = data * 60
        sending = threading.Thread(target=lambda: [wire.send(stream[at : at + 97]) for at in range(0, len(stream), 97)])
        sending.start()
        assert {wire.reply().body for _ in range(60)} == {TAKEN}
        sending.join()


def test_empty_lines_between_requests(server: Server) -> None:
    """Empty lines before a request line are ignored (RFC 9112, section 2.2)."""
    with Wire(server) as wire:
        for _ in range(2):
            assert wire.send(b"\r\n" + PUSH + b"\r\n").reply().body == TAKEN


@pytest.mark.parametrize("header", ["Upgrade: h2c", "Upgrade: websocket", "Upgrade: TLS/1.0, HTTP/1.1"])
@pytest.mark.parametrize("path", ["/push", "/push/all", "/drop"])
def test_upgrade_elsewhere_is_ignored(server: Server, path: str, header: str) -> None:
    """S0-21: a request that offers an upgrade elsewhere is served as it is, body and all (curl --http2 sends such)."""
    body = b'{"userId":"nobody","event":"e","message":"m"}'
    data = request("POST", path, "Connection: Upgrade, HTTP2-Settings", header, "HTTP2-Settings: AAMA", body=body)
    with Wire(server) as wire:
        for send in (whole, bytewise, whole):
            send(wire, data)
            reply = wire.reply()
            assert reply.status == 200, reply
        assert wire.send(PUSH).reply().body == TAKEN


def test_http_1_0_is_answered_and_closed(server: Server) -> None:
    """An HTTP/1.0 request is answered with Connection: close, keep-alive or not, on every path."""
    for data in (PUSH, ODD_PUSH, request("GET", "/health"), request("GET", "/nowhere")):
        for headers in (b"", b"Connection: keep-alive\r\n"):
            with Wire(server) as wire:
                old = data.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n" + headers)
                reply = wire.send(old).reply()
                assert reply.status in {200, 404} and reply.closes and wire.is_ended()


@pytest.mark.parametrize("data", [PUSH, ODD_PUSH, PUSH * 50, ODD_PUSH + PUSH + request("GET", "/metrics")])
def test_half_closed_client_is_answered(server: Server, data: bytes) -> None:
    """A client that closes its side behind its requests gets all the answers, then the end."""
    with Wire(server) as wire:
        wire.send(data).end()
        for _ in range(data.count(b" HTTP/1.1\r\n")):
            assert wire.reply().status == 200
        assert wire.is_ended()
    nothing_is_left(server)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /push HT",
        PUSH[:-5],
        ODD_PUSH[:-5],
        request("POST", "/push", "Transfer-Encoding: chunked") + b"5\r\nhel",
        PUSH + PUSH[:-1],
        upgrade("/ws?token=gone&event=e"),
        upgrade("/ws?token=gone&event=e")[:-10],
    ],
    ids=["nothing", "head", "lean body", "aiohttp body", "chunks", "second", "handshake", "half a handshake"],
)
@pytest.mark.parametrize("how", ["reset", "half", "close"])
def test_client_that_leaves_leaves_nothing(server: Server, data: bytes, how: str) -> None:
    """A client may leave anywhere in a request, by reset, half close or close: nothing stays, no error is logged."""
    before = len([event for event in server.events() if event["level"] in {"error", "warning"}])
    with Wire(server) as wire:
        wire.send(data)
        if how == "half":
            wire.end()
            wire.is_ended()
        elif how == "reset":
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    nothing_is_left(server)
    eventually(lambda: server.metrics()["fastpush_connections"] == 0)
    assert len([event for event in server.events() if event["level"] in {"error", "warning"}]) == before


def test_head_that_never_ends_is_431(server: Server) -> None:
    """A head larger than head_bytes is 431 while it is still being sent, and the connection ends."""
    with Wire(server) as wire:
        head = b"GET /health HTTP/1.1\r\n", b"X-More: and more\r\n"
        sending = threading.Thread(target=send_forever, args=(wire, *head))
        sending.start()
        reply = wire.reply()
        assert reply.status == 431 and reply.closes and wire.is_ended()
        wire.socket.shutdown(socket.SHUT_RDWR)
        sending.join()


def send_forever(wire: Wire, start: bytes, more: bytes) -> None:
    try:
        wire.send(start)
        while True:
            wire.send(more * 1000)
    except OSError:
        pass


def test_largest_head_is_taken(server: Server) -> None:
    """A head of head_bytes is read, byte by byte too; one byte more is 431."""
    fitting = request("GET", "/ws", "X-Fill: ")
    fitting = fitting.replace(b"X-Fill: ", b"X-Fill: " + b"x" * (16384 - len(fitting)))
    assert len(fitting) == 16384
    with Wire(server) as wire:
        assert wire.send(fitting).reply().status == 426
    with Wire(server) as wire:
        assert wire.send_bytewise(fitting.replace(b"x\r\n\r\n", b"xx\r\n\r\n")).reply().status == 431


def test_silent_client_is_closed(hasty: Server) -> None:
    """A client that sends nothing, at first or behind an answer, is closed after head_seconds without a word."""
    with Wire(hasty) as silent, Wire(hasty) as idle:
        assert idle.send(PUSH).reply().body == TAKEN
        assert silent.is_ended() and idle.is_ended()
    nothing_is_left(hasty)


def test_incomplete_request_is_408(hasty: Server) -> None:
    """A request that is not complete head_seconds after it began is 408, and the connection ends."""
    beginnings = [
        b"G",
        b"POST /push HTTP/1.1\r\nHost: localhost\r\n",
        PUSH[:-1],
        ODD_PUSH[:-1],
        request("POST", "/push", "Transfer-Encoding: chunked") + b"5\r\n{",
    ]
    wires = [Wire(hasty).send(data) for data in beginnings]
    for wire in wires:
        with wire:
            reply = wire.reply()
            assert reply.status == 408 and reply.closes and wire.is_ended()
    nothing_is_left(hasty)


def test_trickling_request_is_ended(hasty: Server) -> None:
    """Bytes that trickle in do not prolong head_seconds: not in a head, not in a body, not before them."""
    body = b"POST /push HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n"
    stop = threading.Event()
    wires = [Wire(hasty).send(data) for data in (b"GET / HTTP/1.1\r\nX: ", body, b"\r\n")]
    trickles = [
        threading.Thread(target=send_slowly, args=(wire, more, stop))
        for wire, more in zip(wires, (b"x", b"x", b"\r\n"), strict=True)
    ]
    for trickle in trickles:
        trickle.start()
    for wire in wires[:2]:
        assert wire.reply().status == 408 and wire.is_ended()
    assert wires[2].is_ended()
    stop.set()
    for trickle, wire in zip(trickles, wires, strict=True):
        trickle.join()
        wire.socket.close()
    nothing_is_left(hasty)


def send_slowly(wire: Wire, data: bytes, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        try:
            wire.send(data)
        except OSError:
            return


def test_client_that_never_reads_is_closed(hasty: Server) -> None:
    """A client that pipelines requests and never reads an answer is dropped after head_seconds."""
    with Wire(hasty) as wire:
        sending = threading.Thread(target=send_forever, args=(wire, b"", request("GET", "/metrics")))
        sending.start()
        sending.join(timeout=20)
        assert not sending.is_alive()
    nothing_is_left(hasty)
