"""The opening handshake of RFC 6455: who gets a WebSocket, and what the others are told."""

import threading
from collections.abc import Iterator

import pytest

from tests.server import Server, eventually
from tests.wire import KEY, Wire, ask, masked_text, push, request, upgrade

# RFC 6455, section 1.3, for the key there.
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tokens, push keys and one allowed origin."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens.toml").write_text('"aaa" = "jack"\n')
    sections = {
        "auth": {"mode": "static", "tokens_file": str(folder / "tokens.toml")},
        "push": {"auth": "keys", "keys": ["0123456789abcdef-good"]},
        "server": {"origins": ["https://app.example", "http://other.example:3000", "null"]},
    }
    running = Server(folder, workers=1, sections=sections)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def welcoming(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that allows every origin."""
    folder = tmp_path_factory.mktemp("welcoming")
    (folder / "tokens.toml").write_text('"aaa" = "jack"\n')
    sections = {
        "auth": {"mode": "static", "tokens_file": str(folder / "tokens.toml")},
        "push": {"auth": "keys", "keys": ["0123456789abcdef-good"]},
        "server": {"origins": ["*"]},
    }
    running = Server(folder, workers=1, sections=sections)
    yield running
    running.stop()


def is_upgraded(server: Server, data: bytes) -> bool:
    with Wire(server) as wire:
        return wire.send(data).reply().status == 101


def test_handshake_is_answered(server: Server) -> None:
    """S0-01: GET /ws with Upgrade is answered 101 with the accept key of RFC 6455."""
    with Wire(server) as wire:
        reply = wire.send(upgrade("/ws?token=jack&event=e")).reply()
        assert reply.status == 101 and reply.header("sec-websocket-accept") == ACCEPT
        assert (reply.header("upgrade") or "").lower() == "websocket"
        assert (reply.header("connection") or "").lower() == "upgrade"
        assert reply.header("sec-websocket-extensions") is None and reply.header("sec-websocket-protocol") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"connection": "keep-alive, Upgrade"},  # Firefox
        {"connection": "UPGRADE", "upgrade": "WebSocket"},
        {"connection": "upgrade", "upgrade": "websocket, h2c"},
        {"key": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"version": "13 "},
    ],
    ids=str,
)
def test_spellings_of_clients(server: Server, headers: dict[str, str]) -> None:
    """S0-01: Firefox's `Connection: keep-alive, Upgrade` and any case are understood."""
    assert is_upgraded(server, upgrade("/ws?token=jack&event=e", **headers))


@pytest.mark.parametrize(
    "key", [None, "", "short", "AAAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAAAA", "!" * 22 + "==", KEY + ", " + KEY]
)
def test_bad_key_is_400(server: Server, key: str | None) -> None:
    """A Sec-WebSocket-Key that is missing or not 16 bytes in base64 is 400."""
    with Wire(server) as wire:
        reply = wire.send(upgrade("/ws?token=jack&event=e", key=key)).reply()
        assert reply.status == 400 and "Sec-WebSocket-Key" in (reply.header("x-fastpush-error") or "")
        assert reply.closes and wire.is_ended()


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "130", "13, 8", "013"])
def test_other_version_is_426_with_the_right_one(server: Server, version: str | None) -> None:
    """Any version but 13 is 426 with Sec-WebSocket-Version: 13."""
    reply = ask(server, upgrade("/ws?token=jack&event=e", version=version))
    assert (reply.status, reply.header("sec-websocket-version")) == (426, "13")


@pytest.mark.parametrize(
    "headers", [{"upgrade": None}, {"upgrade": "h2c"}, {"connection": None}, {"connection": "keep-alive"}], ids=str
)
def test_no_upgrade_is_426(server: Server, headers: dict[str, str | None]) -> None:
    """A plain GET of a WebSocket path is 426 with Upgrade: websocket."""
    reply = ask(server, upgrade("/ws?token=jack&event=e", **headers))
    assert (reply.status, reply.header("upgrade")) == (426, "websocket")


def test_http_1_0_is_426(server: Server) -> None:
    """HTTP/1.0 knows no upgrade."""
    assert ask(server, upgrade("/ws").replace(b"HTTP/1.1", b"HTTP/1.0")).status == 426


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "OPTIONS"])
def test_other_method_is_405(server: Server, method: str) -> None:
    """Any method but GET is 405 with Allow: GET and an empty body, on every WebSocket path."""
    for path in ("/ws", "/echo"):
        reply = ask(server, request(method, path, body=b"{}" if method == "POST" else None))
        assert (reply.status, reply.header("allow"), reply.body) == (405, "GET", b"")


def test_body_is_refused(server: Server) -> None:
    """A WebSocket request has no body."""
    assert ask(server, upgrade("/ws", "Content-Length: 2") + b"{}").status == 400
    assert ask(server, upgrade("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n").status == 400


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("token=jack", "event"),
        ("event=e", "token"),
        ("token=&event=e", "token is empty"),
        ("token=jack&event=", "event is empty"),
        ("token=a&token=b&event=e", "token"),
        ("token=jack&event=%ff", "not UTF-8"),
        ("token=jack&event=" + "e" * 513, "longer than 512 bytes"),
        ("&".join(["token=jack", *(f"event={number}" for number in range(101))]), "more than 100 events"),
        ("envelope=yes", "envelope must be 0 or 1"),
        ("confirm=2", "confirm must be 0 or 1"),
        ("heartbeat=-1", "heartbeat must be"),
        ("heartbeat=3601", "heartbeat must be"),
        ("heartbeat=x", "heartbeat must be"),
    ],
)
def test_bad_query_is_400(server: Server, query: str, reason: str) -> None:
    """What the URL asks for is checked before the 101; the reason is named."""
    reply = ask(server, upgrade(f"/ws?{query}"))
    assert (reply.status, reply.body) == (400, b"request data illegal")
    assert reason in (reply.header("x-fastpush-error") or "")


@pytest.mark.parametrize(
    "query",
    ["", "?", "?x=1", "?token=j%C3%A9&event=a%20b", "?event=e&token=t", "?token=t&event=e&event=e", "?confirm=1"],
)
def test_good_queries(server: Server, query: str) -> None:
    """S0-01: no query, unknown parameters, escapes and any order are fine."""
    assert is_upgraded(server, upgrade(f"/ws{query}"))


ORIGINS = {
    "https://app.example": True,
    "HTTPS://App.Example": True,
    "http://other.example:3000": True,
    "null": True,
    "http://push.example": True,  # the same host
    "https://push.example": True,
    "http://push.example:80": True,
    "http://app.example": False,
    "https://app.example:8443": False,
    "https://app.example.evil": False,
    "https://evil.example": False,
    "https://push.example:8443": False,
    "ftp://push.example": False,
    "http://": False,
    "": False,
    "https://app.example, https://evil.example": False,
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_origin_decides(guarded: Server, origin: str) -> None:
    """S0-05: pages of the same host and of [server] origins may connect; another gets 403 naming the key to set."""
    with Wire(guarded) as wire:
        reply = wire.send(upgrade("/ws?token=aaa&event=e", f"Origin: {origin}", host="push.example")).reply()
        assert (reply.status == 101) == ORIGINS[origin]
        if reply.status != 101:
            assert reply.status == 403 and b"[server] origins" in reply.body and wire.is_ended()


def test_app_without_origin_may_connect(guarded: Server) -> None:
    """S0-05: a client that is no web page sends no Origin and is let in."""
    assert is_upgraded(guarded, upgrade("/ws?token=aaa&event=e", host="anything.example"))


@pytest.mark.parametrize("origin", ["https://anywhere.example", "null", "chrome-extension://abc"])
def test_star_allows_every_origin(welcoming: Server, origin: str) -> None:
    """S0-05: with origins = ["*"] every page may connect."""
    assert is_upgraded(welcoming, upgrade("/ws?token=aaa&event=e", f"Origin: {origin}", host="push.example"))


def test_origin_is_checked_before_the_token(guarded: Server) -> None:
    """A forbidden page learns nothing about tokens."""
    for token in ("aaa", "wrong"):
        assert ask(guarded, upgrade(f"/ws?token={token}&event=e", "Origin: https://evil.example")).status == 403


def test_bad_token_is_401_for_an_app(guarded: Server) -> None:
    """A token that names nobody is 401 where the client can read it."""
    reply = ask(guarded, upgrade("/ws?token=wrong&event=e"))
    assert (reply.status, reply.body) == (401, b"unauthorized")
    assert "wrong" not in guarded.log_text().rpartition("handshake refused")[2]


def test_bad_token_is_4501_for_a_page(guarded: Server) -> None:
    """A page, which cannot read a status, gets 101 and then close code 4501 at once."""
    with Wire(guarded) as wire:
        wire.send(upgrade("/ws?token=wrong&event=e", "Origin: https://app.example"))
        assert wire.reply().status == 101
        assert wire.websocket_close() == 4501


@pytest.mark.parametrize("query", ["?token=early&event=a&confirm=1", "?confirm=1"], ids=["by URL", "by message"])
def test_message_right_behind_the_handshake_is_not_lost(server: Server, query: str) -> None:
    """S0-06: a registration in the same segment as the handshake counts, also while the URL's is being confirmed."""
    with Wire(server) as wire:
        registration = masked_text('{"token":"early","event":"b"}') + masked_text('{"token":"early","event":"c"}')
        assert wire.send(upgrade(f"/ws{query}") + registration).reply().status == 101
        names = {"a", "b", "c"} if "event=a" in query else {"b", "c"}
        assert {wire.websocket_text() for _ in names} == {f'{{"registered":"{name}"}}' for name in names}
        assert server.push("early", "c", "hello")["sent"] == 1
        assert wire.websocket_text() == "hello"


def test_megabyte_right_behind_the_handshake(server: Server) -> None:
    """Messages of a client that does not wait for the 101 are taken all and in order, however many there are."""
    texts = [f"{number:05}".encode() * 2000 for number in range(100)]
    frames = b"".join(b"\x81\xfe" + len(text).to_bytes(2, "big") + b"\0\0\0\0" + text for text in texts)
    with Wire(server) as wire:
        sending = threading.Thread(target=wire.socket.sendall, args=(upgrade("/echo") + frames,))
        sending.start()
        assert wire.reply().status == 101
        for text in texts:
            assert wire.exactly(4) == b"\x81\x7e" + len(text).to_bytes(2, "big") and wire.exactly(len(text)) == text
        sending.join()


def test_handshake_byte_by_byte_with_ten_kilobytes_of_headers(server: Server) -> None:
    """S0-01: 10 KB of headers (cookies) are no obstacle, whole or in single bytes."""
    cookies = [f"Cookie: c{number}={'x' * 1000}" for number in range(10)]
    data = upgrade("/ws?token=big&event=e&confirm=1", *cookies) + masked_text('{"token":"big","event":"f"}')
    for send in (Wire.send, Wire.send_bytewise):
        with Wire(server) as wire:
            assert send(wire, data).reply().status == 101
            assert sorted(wire.websocket_text() for _ in range(2)) == ['{"registered":"e"}', '{"registered":"f"}']


def test_refused_handshakes_are_counted(guarded: Server) -> None:
    """Every refusal is counted under its reason."""

    def counts() -> dict[str, float]:
        samples = guarded.metrics()
        names = ("bad_request", "forbidden", "unauthorized", "upgraded")
        return {name: samples.get(f'fastpush_handshakes_total{{outcome="{name}",worker="2"}}', 0) for name in names}

    before = counts()
    assert ask(guarded, upgrade("/ws?event=e")).status == 400
    assert ask(guarded, upgrade("/ws", "Origin: https://evil.example")).status == 403
    assert ask(guarded, upgrade("/ws?token=wrong&event=e")).status == 401
    assert is_upgraded(guarded, upgrade("/ws?token=aaa&event=e"))
    after = counts()
    assert {name: after[name] - before[name] for name in after} == dict.fromkeys(after, 1)


def test_nothing_is_left(server: Server) -> None:
    """Refused and ended connections of all kinds are gone from every table."""
    assert ask(server, push("nobody", "e", "m")).status == 200
    gauges = ("fastpush_http_connections", "fastpush_connections", "fastpush_registrations")
    eventually(lambda: [server.metrics()[name] for name in gauges][:2] == [1, 0], what="all connections gone")
    eventually(lambda: server.metrics()["fastpush_broker_routes"] == 0, what="all routes withdrawn")
