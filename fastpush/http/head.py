"""One request head: bytes in, a description or a refusal out. No I/O.

Parsed by httptools (llhttp, strict): Content-Length with Transfer-Encoding, a second
Content-Length, bare line feeds, folded headers and bytes that no header may hold are
errors there. What is left to this module is the meaning, and what llhttp takes although
a proxy in front may read it otherwise: other protocols and versions, a request line
without a version, spaces between its parts, targets that are not a path.
"""

import re
from functools import lru_cache

import httptools

from fastpush.errors import RequestError

HEAD_END = b"\r\n\r\n"
_SHORT_BYTES = 512
_REMEMBERED = 256

# Names as they are sent most, so that a usual request makes no string for them.
_USUAL = (
    "Host", "User-Agent", "Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "Content-Length",
    "Connection", "X-API-Key", "Authorization", "Origin", "Upgrade", "Cookie", "Cache-Control", "Pragma",
    "Sec-WebSocket-Version", "Sec-WebSocket-Key", "Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol",
)  # fmt: skip
_NAMES = {spelled.encode(): name.lower() for name in _USUAL for spelled in (name, name.lower())}

# A target begins with "/" and is visible ASCII; llhttp checks what else may not stand in it.
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) (/[!-\"$->@-~]*)(?:\?([!-\"$-~]*))? HTTP/(1\.[01])\r\n")
_LENGTH_DIGITS = 18  # more bytes than that nobody sends, and int() has a limit of its own


class Head:
    """A request's head, filled by httptools' callbacks. Treated as immutable once parsed.

    path, query: as sent, not decoded.  headers: lower-case names; repeated ones joined by ", ".
    content_length: None when there is no body or a chunked one.
    keep_alive: never with HTTP/1.0, where both sides would have to say so.
    """

    __slots__ = ("content_length", "headers", "is_chunked", "keep_alive", "method", "path", "query", "version")

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.method = self.path = self.query = self.version = ""
        self.keep_alive = self.is_chunked = False
        self.content_length: int | None = None

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for an upgrade to the WebSocket protocol."""
        return "websocket" in self.headers.get("upgrade", "").lower()

    @property
    def has_body(self) -> bool:
        """Whether more than the head belongs to the request."""
        return self.is_chunked or bool(self.content_length)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        key = _NAMES.get(name) or name.lower().decode("latin-1")
        text = value.decode("latin-1")
        headers = self.headers
        if key in headers:
            if key == "host":
                raise ValueError("more than one Host header")
            text = f"{headers[key]}, {text}"
        headers[key] = text

    def finish(self, data: bytes) -> None:
        """Give the parts their meaning, once the parser has taken them all from `data`."""
        line = _REQUEST_LINE.match(data)
        if line is None:
            raise bad_request("the request line must be a method, a path and HTTP/1.1, with one space between them")
        method, path, query, version = line.groups()
        self.method, self.path, self.version = method.decode("ascii"), path.decode("ascii"), version.decode("ascii")
        if query:
            self.query = query.decode("ascii")
        if b" \r\n" in data or b"\t\r\n" in data:  # white space behind a value is no part of it
            self.headers = {name: value.rstrip(" \t") for name, value in self.headers.items()}
        headers = self.headers
        if self.version == "1.1":
            if not headers.get("host"):
                raise bad_request("the Host header is missing")
            connection = headers.get("connection")
            self.keep_alive = connection is None or _keeps_alive(connection)
        length = headers.get("content-length")
        if length is not None:
            if len(length) > _LENGTH_DIGITS:
                raise bad_request("Content-Length is too long")
            self.content_length = int(length)
        elif "transfer-encoding" in headers:
            self._finish_chunked()

    def _finish_chunked(self) -> None:
        if self.version == "1.0" or self.headers["transfer-encoding"].lower() != "chunked":
            raise bad_request("Transfer-Encoding must be chunked, and HTTP/1.0 knows none")
        self.is_chunked = True


def _keeps_alive(connection: str) -> bool:
    return "close" not in (option.strip() for option in connection.lower().split(","))


def bad_request(reason: str) -> RequestError:
    """400: what came is not a request that everybody in the path would read alike."""
    return RequestError(400, "bad_request", reason, text="bad request")


def parse_head(data: bytes) -> Head:
    """Return the head in `data`, which ends with its empty line.

    Raises: RequestError 400, after which the connection cannot be used: where the next
    request begins is not known.
    Cost:   a back-end sends the same few heads again and again over its kept-alive connections;
            short ones are remembered, at most _REMEMBERED of them, and cost one look-up. Handshakes
            are not: each has a key of its own, and a token that memory need not keep.
    """
    return _remembered(data) if len(data) <= _SHORT_BYTES and data.startswith(b"POST ") else _parse(data)


def _parse(data: bytes) -> Head:
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the head is complete; who serves the path decides about the upgrade
    except (httptools.HttpParserError, ValueError) as error:
        # A callback's error arrives as HttpParserCallbackError with the reason as its context.
        raise bad_request(str(error.__context__ or error)) from None
    head.finish(data)
    return head


_remembered = lru_cache(maxsize=_REMEMBERED)(_parse)
