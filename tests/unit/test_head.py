"""fastpush.http.head: what a head means, and which heads have no meaning. The conformance tests hold the long list."""

import pytest

from fastpush.errors import RequestError
from fastpush.http.head import parse_head


def lines(*more: str, start: str = "POST /push HTTP/1.1") -> bytes:
    return "\r\n".join((start, "Host: localhost", *more, "", "")).encode("latin-1")


def test_parts() -> None:
    """Method, path, query and version are taken as sent; header names become lower case."""
    head = parse_head(lines("X-Some: Value", "content-LENGTH: 12", start="POST /a%20b?x=1&y=%ff?z HTTP/1.1"))
    assert (head.method, head.path, head.query, head.version) == ("POST", "/a%20b", "x=1&y=%ff?z", "1.1")
    assert dict(head.headers) == {"host": "localhost", "x-some": "Value", "content-length": "12"}
    assert head.content_length == 12 and head.has_body and not head.is_chunked and head.keep_alive


def test_short_heads_are_remembered_but_no_handshakes() -> None:
    """The same short head of a POST is parsed once; a GET, whose URL may hold a token, is not kept."""
    post, get = lines("X: remembered"), lines(start="GET /ws?token=secret HTTP/1.1")
    assert parse_head(post) is parse_head(post)
    assert parse_head(get) is not parse_head(get)
    long = lines("X: " + "x" * 600)
    assert parse_head(long) is not parse_head(long)


def test_repeated_headers_are_joined() -> None:
    """A header given twice is one list (RFC 9110, section 5.3)."""
    assert parse_head(lines("X: a", "x: b", "X: c")).headers["x"] == "a, b, c"


@pytest.mark.parametrize("value", ["abc", "abc ", "abc\t", " \tabc \t "])
def test_white_space_around_a_value(value: str) -> None:
    """White space before and behind a value is no part of it (RFC 9110, section 5.5)."""
    assert parse_head(lines(f"X:{value}", "Y: z")).headers["x"] == "abc"


@pytest.mark.parametrize(
    ("start", "connection", "keeps"),
    [
        ("GET / HTTP/1.1", None, True),
        ("GET / HTTP/1.1", "keep-alive", True),
        ("GET / HTTP/1.1", "close", False),
        ("GET / HTTP/1.1", "Close", False),
        ("GET / HTTP/1.1", "keep-alive, close", False),
        ("GET / HTTP/1.1", "x-close", True),
        ("GET / HTTP/1.0", None, False),
        ("GET / HTTP/1.0", "keep-alive", False),
        ("POST /push HTTP/1.1", "close", False),
    ],
)
@pytest.mark.parametrize("body", [(), ("Content-Length: 3",)], ids=["no body", "body"])
def test_keep_alive(start: str, connection: str | None, body: tuple[str, ...], *, keeps: bool) -> None:
    """HTTP/1.1 goes on unless it says close, with a body and without; HTTP/1.0 never does."""
    fields = () if connection is None else (f"Connection: {connection}",)
    assert parse_head(lines(*fields, *body, start=start)).keep_alive == keeps


def test_body_kinds() -> None:
    """A body has a length or chunks or is none; a length of 0 is none."""
    none, zero = parse_head(lines()), parse_head(lines("Content-Length: 0"))
    chunked = parse_head(lines("Transfer-Encoding: Chunked"))
    assert (none.content_length, none.is_chunked, none.has_body) == (None, False, False)
    assert (zero.content_length, zero.is_chunked, zero.has_body) == (0, False, False)
    assert (chunked.content_length, chunked.is_chunked, chunked.has_body) == (None, True, True)


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
def test_wants_websocket(upgrade: str) -> None:
    """The Upgrade header says what a client wants; what stands behind the head is not looked at."""
    assert parse_head(lines("Connection: upgrade", f"Upgrade: {upgrade}", start="GET /ws HTTP/1.1")).wants_websocket
    assert not parse_head(lines()).wants_websocket


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lines("Host: other"), "more than one Host header"),
        (b"GET / HTTP/1.1\r\nX: y\r\n\r\n", "the Host header is missing"),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "the Host header is missing"),
        (lines("Content-Length: " + "0" * 5000), "Content-Length is too long"),
        (lines("Transfer-Encoding: gzip, chunked"), "Transfer-Encoding must be chunked"),
        (lines("Transfer-Encoding: chunked", start="POST / HTTP/1.0"), "Transfer-Encoding must be chunked"),
        (lines(start="GET http://localhost/ HTTP/1.1"), "the request line must be"),
        (lines(start="GET / HTTP/2.0"), "the request line must be"),
        (lines(start="GET /\r\nX: / HTTP/1.1"), "the request line must be"),
    ],
)
def test_refused_with_the_reason(head: bytes, reason: str) -> None:
    """A head that others may read differently is 400; the reason says what is wrong with it."""
    with pytest.raises(RequestError) as caught:
        parse_head(head)
    assert caught.value.status == 400 and caught.value.reason.startswith(reason)


def test_http_1_0_needs_no_host() -> None:
    """HTTP/1.0 has no Host header."""
    assert parse_head(b"GET /health HTTP/1.0\r\n\r\n").version == "1.0"


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_any_prefix_is_refused_or_whole(cut: int) -> None:
    """A head that ends early is never taken for a whole one with a body of another length."""
    whole = lines("Content-Length: 12")
    data = whole[:cut] + b"\r\n\r\n"
    try:
        head = parse_head(data)
    except RequestError as error:
        assert error.status == 400
    else:
        assert head.headers.get("content-length") in {None, "1", "12"}
