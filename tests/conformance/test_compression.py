"""Smaller messages for clients that ask: permessage-deflate (RFC 7692) and support_gzip=1, with others' clients too."""

import contextlib
import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import psutil
import pytest
from websockets.sync.client import connect

from tests.programs import Browser
from tests.raw import BINARY, CONTINUATION, TEXT, Frame, RawClient, build
from tests.server import ECHO, SCALE, Server, eventually
from tests.wire import upgrade

RSV1 = 4
MIN_BYTES, MAX_BYTES = 1024, 262144  # [compression], as shipped
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
CHROMIUM_OFFER = "permessage-deflate; client_max_window_bits"
SIZES = [1, 100, MIN_BYTES - 5, MIN_BYTES - 4, 4096, 65536, MAX_BYTES - 10, MAX_BYTES - 9, 400_000]  # of payloads


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server that compresses, for all tests of this module."""
    sections = {"compression": {"enabled": True}} | ECHO
    running = Server(tmp_path_factory.mktemp("server"), workers=2, sections=sections)
    yield running
    running.stop()


class Offering(RawClient):
    """A client whose handshake offers extensions. answer: what the server makes of them, None for nothing."""

    def __init__(
        self, server: Server, offer: str, path: str = "/ws", *, receive_bytes: int = 0, **parameters: str
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(10 * SCALE)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect(("127.0.0.1", server.port))
        self.port = self.socket.getsockname()[1]
        self._held = bytearray()
        target = path + ("?" + urlencode(parameters) if parameters else "")
        self.socket.sendall(upgrade(target, f"Sec-WebSocket-Extensions: {offer}"))
        status, *lines = self.read_until(b"\r\n\r\n").decode().split("\r\n")
        assert status.split()[1] == "101", status
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.answer = headers.get("sec-websocket-extensions")


def text_of(size: int) -> str:
    """Return text of `size` bytes that is worth compressing, not all of it ASCII."""
    cut = (f"{size}: größe 🎉 " * (size // 10)).encode()[:size].decode(errors="ignore")
    return cut + "x" * (size - len(cut.encode()))


def deflated(payload: bytes) -> bytes:
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(payload: bytes) -> bytes:
    return zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")


def is_deflated(size_bytes: int) -> bool:
    """Whether a text of so many bytes is worth it."""
    return MIN_BYTES <= size_bytes <= MAX_BYTES


# -- permessage-deflate ----------------------------------------------------------------


@pytest.mark.parametrize("compression", ["deflate", None])
def test_the_websockets_package_with_and_without(server: Server, compression: str | None) -> None:
    """A client that others wrote reads messages of every size as they were pushed, compressed or not; what it sends,
    compressed, is its registration; what /echo returns is what it sent.
    """
    user = f"websockets-{compression}"
    with connect(server.ws_url("confirm=1"), compression=compression, max_size=None) as client:
        assert client.response is not None
        assert client.response.headers.get("Sec-WebSocket-Extensions") == (ANSWER if compression else None)
        client.send(json.dumps({"token": user, "event": "news"}))
        assert client.recv(timeout=10) == '{"registered":"news"}'
        for size in SIZES:
            assert server.push(user, "news", text_of(size))["sent"] == 1
            assert client.recv(timeout=10) == text_of(size)
    with connect(server.ws_url(path="/echo"), compression=compression) as client:
        for message in ("", "x" * 60_000, b"\0" * 60_000, ["grüße", " in ", "parts" * 1000]):
            client.send(message)
            assert client.recv(timeout=10) == ("".join(message) if isinstance(message, list) else message)


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", ANSWER),
        (CHROMIUM_OFFER, ANSWER),
        ("permessage-deflate; server_max_window_bits=15", f"{ANSWER}; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=9", None),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", ANSWER),
        ("permessage-deflate; unknown", None),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; server_no_context_takeover=", None),
    ],
)
def test_offers_and_their_answers(server: Server, offer: str, answer: str | None) -> None:
    """RFC 7692, 5 and 7.1: the first acceptable offer is answered, a window smaller than that of the shared frames is
    declined; whatever is agreed holds for what follows.
    """
    with Offering(server, offer, token="offers", event="e") as client:
        assert client.answer == answer
        assert server.push("offers", "e", text_of(4096))["sent"] == 1
        frame = client.read()
        assert (frame.opcode, frame.rsv) == (TEXT, RSV1 if answer else 0)
        payload = inflated(frame.payload) if answer else frame.payload
        assert payload.decode() == text_of(4096)
    eventually(lambda: server.push("offers", "e", "anybody?")["sent"] == 0)


def test_large_messages_are_compressed_once_for_all(server: Server) -> None:
    """A message from min_bytes to max_bytes has RSV1 and is the same bytes for every client; smaller and larger ones
    are plain, as are all of those who offered nothing; gains are real.
    """
    with contextlib.ExitStack() as stack:
        offering = [stack.enter_context(Offering(server, CHROMIUM_OFFER, token="many", event="e")) for _ in range(20)]
        plain = stack.enter_context(RawClient(server, "/ws", token="many", event="e"))
        for size in SIZES:
            text = text_of(size)
            assert server.push("many", "e", text)["sent"] == 21
            frames = {client.read() for client in offering}
            assert len(frames) == 1
            (frame,) = frames
            if is_deflated(size):
                assert (frame.opcode, frame.rsv, inflated(frame.payload).decode()) == (TEXT, RSV1, text)
                assert len(frame.payload) < size // 4
            else:
                assert frame == Frame(TEXT, text.encode())
            assert plain.read_text() == text


def test_a_compressed_registration(server: Server) -> None:
    """A client registers with a compressed message, whole or in fragments, text or binary."""
    registration = deflated(b'{"token":"squeezed","event":"e"}')
    half = len(registration) // 2
    for frames in (
        [build(TEXT, registration, rsv=RSV1)],
        [build(BINARY, registration, rsv=RSV1)],
        [build(TEXT, registration[:half], rsv=RSV1, fin=False), build(CONTINUATION, registration[half:])],
    ):
        with Offering(server, CHROMIUM_OFFER, confirm="1") as client:
            client.send(*frames)
            assert client.read_text() == '{"registered":"e"}'
            assert server.push("squeezed", "e", "hello")["sent"] == 1
            assert client.read_text() == "hello"
        eventually(lambda: server.push("squeezed", "e", "anybody?")["sent"] == 0)


@pytest.mark.parametrize("path", ["/ws", "/echo"])
def test_a_bomb_is_closed_with_1009(server: Server, path: str) -> None:
    """A small message that inflates to more than message_bytes closes with 1009; the worker never holds the rest."""
    bomb = deflated(b"\0" * 60_000_000)
    assert len(bomb) < 65536
    for frames in ([build(BINARY, bomb, rsv=RSV1)], [build(TEXT, bomb[:9], rsv=RSV1, fin=False), build(0, bomb[9:])]):
        with Offering(server, CHROMIUM_OFFER, path) as client:
            pids = [process["pid"] for process in server.processes("worker")]
            before = sum(psutil.Process(pid).memory_info().rss for pid in pids)
            client.send(*frames)
            assert client.read_close() == (1009, "message is larger than 65536 bytes")
            client.read_end()
            assert sum(psutil.Process(pid).memory_info().rss for pid in pids) - before < 4 << 20


@pytest.mark.parametrize(
    "frames",
    [
        [build(TEXT, b"\xff\xff\xff", rsv=RSV1)],
        [build(TEXT, b"", rsv=RSV1)],
        [build(TEXT, deflated(b"x" * 100)[:-3], rsv=RSV1)],
        [build(TEXT, deflated(b"x"), rsv=RSV1, fin=False), build(CONTINUATION, b"", rsv=RSV1)],
        [build(9, deflated(b"x"), rsv=RSV1)],
        [build(TEXT, b"x", rsv=2)],
    ],
    ids=["no deflate data", "nothing", "cut off", "RSV1 in a continuation", "compressed ping", "RSV2"],
)
def test_damage_is_closed_with_1002(server: Server, frames: list[bytes]) -> None:
    """What is agreed does not make damaged data or other reserved bits acceptable."""
    with Offering(server, CHROMIUM_OFFER, "/echo") as client:
        client.send(*frames)
        assert client.read_close()[0] == 1002
        client.read_end()


def test_inflated_text_has_to_be_utf8(server: Server) -> None:
    """RFC 6455, 8.1: the check is of what was inflated: 1007."""
    with Offering(server, CHROMIUM_OFFER, "/echo") as client:
        client.send(build(TEXT, deflated(b"\xff"), rsv=RSV1))
        assert client.read_close()[0] == 1007


@pytest.mark.parametrize("offer", ["", "permessage-deflate; server_max_window_bits=9"])
def test_rsv1_without_an_agreement_is_1002(server: Server, offer: str) -> None:
    """Who offered nothing, or nothing that was taken, may not compress."""
    with Offering(server, offer) if offer else RawClient(server, "/ws") as client:
        client.send(build(TEXT, deflated(b'{"token":"t","event":"e"}'), rsv=RSV1))
        assert client.read_close() == (1002, "reserved bits are set")
        client.read_end()


def test_disabled_answers_no_offer(serve: Callable[..., Server]) -> None:
    """[compression] enabled = false, as shipped: no extension is answered and every message is plain; gzip still is."""
    for sections in ({}, {"compression": {"enabled": False}}):
        server = serve(workers=1, sections=sections)
        with (
            Offering(server, CHROMIUM_OFFER, token="t", event="e") as client,
            Offering(server, CHROMIUM_OFFER, token="t", event="e", support_gzip="1") as zipping,
        ):
            assert (client.answer, zipping.answer) == (None, None)
            assert server.push("t", "e", text_of(4096))["sent"] == 2
            assert client.read_text() == text_of(4096)
            assert gzip.decompress(zipping.read().payload).decode() == text_of(4096)
            client.send(build(TEXT, deflated(b"x"), rsv=RSV1))
            assert client.read_close()[0] == 1002


def test_configured_bounds(serve: Callable[..., Server]) -> None:
    """[compression] min_bytes and max_bytes are kept, to the byte."""
    server = serve(workers=1, sections={"compression": {"enabled": True, "min_bytes": 200, "max_bytes": 300}})
    with Offering(server, CHROMIUM_OFFER, token="t", event="e") as client:
        for size, rsv in ((199, 0), (200, RSV1), (300, RSV1), (301, 0)):
            server.push("t", "e", "x" * size)
            assert client.read().rsv == rsv


def test_a_slow_client_reads_whole_compressed_messages(server: Server) -> None:
    """What waits in the send queue is the compressed frames: none is cut, order is kept."""
    chance = [zlib.crc32(b"%d" % number) for number in range(20_000)]
    texts = [" ".join(f"{value ^ number:x}" for value in chance[: 6000 + number]) for number in range(25)]
    with Offering(server, CHROMIUM_OFFER, receive_bytes=8192, token="slow", event="e") as client:
        for text in texts:
            assert server.push("slow", "e", text)["sent"] == 1
        assert server.metrics()["fastpush_send_queue_bytes"] > 0
        for text in texts:
            frame = client.read()
            assert frame.rsv == RSV1
            assert inflated(frame.payload).decode() == text


def test_chromium_reads_compressed_messages(server: Server) -> None:
    """A browser agrees on permessage-deflate by itself, registers with a compressed message, reads 4 KB as pushed."""
    script = """(() => {
        window.got = [];
        window.socket = new WebSocket(location.origin.replace("http", "ws") + "/ws?confirm=1");
        socket.onopen = () => socket.send(JSON.stringify({ token: "chromium", event: "news", pad: "x".repeat(2000) }));
        socket.onmessage = (message) => window.got.push(message.data);
        socket.onclose = (close) => window.got.push("closed " + close.code);
    })()"""
    with Browser() as browser:
        browser.goto(server.url)
        browser.do("evaluate", expression=script)

        def got(count: int) -> list[str]:
            eventually(lambda: browser.do("evaluate", expression="window.got.length") >= count, 20)
            found: list[str] = browser.do("evaluate", expression="window.got")
            return found

        assert got(1) == ['{"registered":"news"}']
        assert "permessage-deflate" in browser.do("evaluate", expression="socket.extensions")
        texts = [text_of(4096), "small", text_of(200_000)]
        with Offering(server, CHROMIUM_OFFER, token="chromium", event="news") as beside:
            for text in texts:
                assert server.push("chromium", "news", text)["sent"] == 2
            assert got(4)[1:] == texts
            assert [beside.read().rsv for _ in texts] == [RSV1, 0, RSV1]


# -- support_gzip=1 --------------------------------------------------------------------


@pytest.mark.parametrize("envelope", [False, True])
@pytest.mark.parametrize("offers", [False, True], ids=["gzip alone", "permessage-deflate offered"])
def test_gzip_for_every_size(server: Server, *, envelope: bool, offers: bool) -> None:
    """S2-13, S2-14: with support_gzip=1 every push, of whatever size, is one binary frame that holds gzip of what
    others read, the same bytes for all; with permessage-deflate agreed at the same time it is not deflated again.
    """
    user = f"gzip-{envelope}-{offers}"
    parameters = {"token": user, "event": "e", "support_gzip": "1"} | ({"envelope": "1"} if envelope else {})
    with contextlib.ExitStack() as stack:
        clients: list[RawClient] = []
        for _ in range(10):
            client = (
                Offering(server, CHROMIUM_OFFER, **parameters) if offers else RawClient(server, "/ws", **parameters)
            )
            if isinstance(client, Offering):
                assert client.answer == ANSWER
            clients.append(stack.enter_context(client))
        plain = stack.enter_context(RawClient(server, "/ws", token=user, event="e"))
        for size in SIZES:
            text = text_of(size)
            assert server.push(user, "e", text)["sent"] == 11
            (frame,) = {client.read() for client in clients}
            assert (frame.opcode, frame.fin, frame.rsv) == (BINARY, True, 0)
            message = gzip.decompress(frame.payload).decode()
            assert (json.loads(message) if envelope else message) == (
                {"event": "e", "message": text} if envelope else text
            )
            assert plain.read_text() == text


def test_gzip_is_for_pushes_only(server: Server) -> None:
    """S2-14: what the server says by itself, registrations, errors and heartbeats, stays text."""
    with RawClient(server, "/ws", support_gzip="1", confirm="1", heartbeat="1") as client:

        def answer(text: str) -> str:
            client.text(text)
            while (found := client.read_text()) == "heartbeat":
                pass
            return found

        assert "error" in answer("no JSON")
        assert answer('{"token":"own","event":"e"}') == '{"registered":"e"}'
        began = time.monotonic()
        while client.read_text() != "heartbeat":
            assert time.monotonic() - began < 20


def test_gzip_with_the_websockets_package(server: Server) -> None:
    """S2-14: a client that others wrote, with its compression on, reads bytes that gzip reads."""
    with connect(server.ws_url("token=py&event=e&support_gzip=1"), max_size=None) as client:
        for size in SIZES:
            assert server.push("py", "e", text_of(size))["sent"] == 1
            data = client.recv(timeout=10)
            assert isinstance(data, bytes)
            assert gzip.decompress(data).decode() == text_of(size)
