"""What two programs in a row could read differently is refused before anybody acts on it."""

import json

import pytest
from websockets.sync.client import connect

from tests.server import Server
from tests.wire import Wire, push, request

SECOND = push("victim", "e", "smuggled")


def framed(*lines: str, start: str = "POST /push HTTP/1.1", end: str = "\r\n\r\n") -> bytes:
    return "\r\n".join((start, *lines)).encode("latin-1") + end.encode("latin-1")


HOST = "Host: localhost"
HEADS = {
    "Content-Length and Transfer-Encoding": framed(HOST, "Content-Length: 4", "Transfer-Encoding: chunked"),
    "Transfer-Encoding and Content-Length": framed(HOST, "Transfer-Encoding: chunked", "Content-Length: 4"),
    "Transfer-Encoding folded in": framed(HOST, "Content-Length: 4", "X: y", " Transfer-Encoding: chunked"),
    "two lengths": framed(HOST, "Content-Length: 4", "Content-Length: 5"),
    "the same length twice": framed(HOST, "Content-Length: 4", "Content-Length: 4"),
    "a list of lengths": framed(HOST, "Content-Length: 4, 4"),
    "length with plus": framed(HOST, "Content-Length: +4"),
    "length with minus": framed(HOST, "Content-Length: -4"),
    "length in hexadecimal": framed(HOST, "Content-Length: 0x4"),
    "length with underscore": framed(HOST, "Content-Length: 1_0"),
    "length with a space within": framed(HOST, "Content-Length: 4 4"),
    "empty length": framed(HOST, "Content-Length:"),
    "length over 64 bits": framed(HOST, "Content-Length: 18446744073709551620"),
    "length just under 64 bits": framed(HOST, "Content-Length: 18446744073709551615"),
    "length of 5000 digits": framed(HOST, "Content-Length: " + "0" * 5000 + "4"),
    "length with a superscript": framed(HOST, "Content-Length: 4\xb2"),
    "space before the colon": framed(HOST, "Content-Length : 4"),
    "tab before the colon": framed(HOST, "Content-Length\t: 4"),
    "header without a name": framed(HOST, ": 4"),
    "header without a colon": framed(HOST, "Content-Length 4"),
    "folded header": framed(HOST, "X: one", " two"),
    "header folded by a tab": framed(HOST, "X: one", "\ttwo"),
    "first header indented": framed(" X: one", HOST),
    "bare line feeds only": framed(HOST, end="\n\n").replace(b"\r\n", b"\n"),
    "bare line feed behind a header": framed("X: y\n" + HOST),
    "bare line feed at the end": framed(HOST, "X: y\n\r\n"),
    "bare line feed behind the request line": framed(HOST).replace(b"\r\n", b"\n", 1),
    "bare carriage return": framed(HOST, "X: y\rContent-Length: 4"),
    "NUL in a value": framed(HOST, "X: a\0b"),
    "NUL in a name": framed(HOST, "X\0: b"),
    "escape in a value": framed(HOST, "X: a\x1b[31m"),
    "high byte in a name": framed(HOST, "Content-Length\xa0: 4"),
    "identity": framed(HOST, "Transfer-Encoding: identity"),
    "chunked is not last": framed(HOST, "Transfer-Encoding: chunked, gzip"),
    "gzip and chunked": framed(HOST, "Transfer-Encoding: gzip, chunked"),
    "gzip": framed(HOST, "Transfer-Encoding: gzip"),
    "xchunked": framed(HOST, "Transfer-Encoding: xchunked"),
    "quoted chunked": framed(HOST, 'Transfer-Encoding: "chunked"'),
    "chunked with a parameter": framed(HOST, "Transfer-Encoding: chunked;a=b"),
    "chunked twice": framed(HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked and identity": framed(HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "vertical tab before chunked": framed(HOST, "Transfer-Encoding: \x0bchunked"),
    "empty Transfer-Encoding": framed(HOST, "Transfer-Encoding: "),
    "chunked in HTTP/1.0": framed(HOST, "Transfer-Encoding: chunked", start="POST /push HTTP/1.0"),
    "two hosts": framed(HOST, "Host: elsewhere"),
    "the same host twice": framed(HOST, HOST),
    "no host": framed("X: y"),
    "empty host": framed("Host: "),
    "absolute target": framed(HOST, start="POST http://localhost/push HTTP/1.1"),
    "absolute target elsewhere": framed(HOST, start="GET http://elsewhere/health HTTP/1.1"),
    "authority target": framed(HOST, start="CONNECT localhost:80 HTTP/1.1"),
    "asterisk target": framed(HOST, start="OPTIONS * HTTP/1.1"),
    "relative target": framed(HOST, start="GET health HTTP/1.1"),
    "fragment": framed(HOST, start="GET /health#x HTTP/1.1"),
    "space in the target": framed(HOST, start="GET /he alth HTTP/1.1"),
    "two spaces before the target": framed(HOST, start="GET  /health HTTP/1.1"),
    "two spaces behind the target": framed(HOST, start="GET /health  HTTP/1.1"),
    "space behind the version": framed(HOST, start="GET /health HTTP/1.1 "),
    "space before the method": framed(HOST, start=" GET /health HTTP/1.1"),
    "tabs in the request line": framed(HOST, start="GET\t/health\tHTTP/1.1"),
    "NUL in the target": framed(HOST, start="GET /he\0alth HTTP/1.1"),
    "high byte in the target": framed(HOST, start="GET /h\xe9alth HTTP/1.1"),
    "no version": framed(HOST, start="GET /health"),
    "HTTP/0.9": framed(HOST, start="GET /health HTTP/0.9"),
    "HTTP/1.2": framed(HOST, start="GET /health HTTP/1.2"),
    "HTTP/2.0": framed(HOST, start="GET /health HTTP/2.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http in lower case": framed(HOST, start="GET /health http/1.1"),
    "RTSP": framed(HOST, start="GET /health RTSP/1.0"),
    "method in lower case": framed(HOST, start="post /push HTTP/1.1"),
    "unknown method": framed(HOST, start="FETCH /push HTTP/1.1"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_ambiguous_head_is_400(server: Server, head: bytes) -> None:
    """Such a head is 400 before dispatch and ends the connection; what follows it is never taken as a request."""
    with Wire(server) as wire:
        reply = wire.send(head + b"abcd" + SECOND + SECOND).reply()
        assert (reply.status, reply.body) == (400, b"bad request") and reply.closes
        assert reply.header("x-fastpush-error")
        assert wire.is_ended()


def test_smuggled_push_reaches_nobody(server: Server) -> None:
    """Of all these heads none lets the push behind it through to the connection it is meant for."""
    with connect(server.ws_url("token=victim&event=e"), compression=None) as victim:
        for head in HEADS.values():
            with Wire(server) as wire:
                wire.send(head + b"0\r\n\r\n" + SECOND)
                assert wire.reply().status == 400 and wire.is_ended()
        assert server.push("victim", "e", "honest")["sent"] == 1
        assert victim.recv(timeout=20) == "honest"


@pytest.mark.parametrize("path", ["/push", "/push/all", "/nowhere", "/health", "/ws"])
def test_body_is_never_a_request(server: Server, path: str) -> None:
    """A push inside the body of another request is that body, whoever serves the path."""
    with connect(server.ws_url("token=victim&event=e"), compression=None) as victim:
        with Wire(server) as wire:
            wire.send(request("POST", path, body=SECOND) + push("nobody", "e", "m"))
            first = wire.reply()
            assert first.status in {400, 404, 405}
            assert wire.is_ended() if first.closes else wire.reply().body == b"message sent to 0 clients"
        assert server.push("victim", "e", "honest")["sent"] == 1
        assert victim.recv(timeout=20) == "honest"


@pytest.mark.parametrize("path", ["/push", "/nowhere"])
def test_offered_upgrade_hides_no_request(server: Server, path: str) -> None:
    """A request with Upgrade and a body, on a path that upgrades nothing, has that body and no request in it."""
    key = "Sec-WebSocket-Key: " + "A" * 22 + "=="
    lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    with connect(server.ws_url("token=victim&event=e"), compression=None) as victim:
        for method in ("POST", "GET"):
            with Wire(server) as wire:
                wire.send(request(method, path, *lines, body=SECOND) + push("nobody", "e", "m"))
                assert wire.reply().status in {400, 404, 405}
                assert wire.reply().body == b"message sent to 0 clients"
        assert server.push("victim", "e", "honest")["sent"] == 1
        assert victim.recv(timeout=20) == "honest"


def test_white_space_around_values_is_no_part_of_them(server: Server) -> None:
    """Spaces and tabs around a value do not count (RFC 9110, section 5.5), for its length neither."""
    body = json.dumps({"userId": "nobody", "event": "e", "message": "m"}).encode()
    head = "POST /push HTTP/1.1\r\nHost:\t localhost \t\r\nAccept:application/json \r\n"
    head += f"Content-Length: \t{len(body)} \r\n\r\n"
    with Wire(server) as wire:
        for _ in range(2):
            assert wire.send(head.encode() + body).reply().body == b'{"sent":0}'


def test_bad_requests_are_counted_and_harm_nobody(server: Server) -> None:
    """A bad request is counted, logged at most ten times a second, and other connections go on."""
    before = server.metrics()["fastpush_http_bad_requests_total"]
    with Wire(server) as good:
        for _ in range(10):
            with Wire(server) as wire:
                assert wire.send(HEADS["two lengths"]).reply().status == 400
        assert good.send(push("nobody", "e", "m")).reply().status == 200
    assert server.metrics()["fastpush_http_bad_requests_total"] == before + 10
    refused = [event for event in server.events("request refused") if event["code"] == "bad_request"]
    assert refused and {(event["level"], event["status"]) for event in refused} == {("info", 400)}
