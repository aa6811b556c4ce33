"""One request head: bytes in, a description or a refusal out. No I/O.

Parsed by httptools (llhttp, strict): Content-Length with Transfer-Encoding, a second
Content-Length, bare line feeds, folded headers and bytes that no header may hold are
errors there. What is left to this module is the meaning.
"""

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


class Head:
    """A request's head, filled by httptools' callbacks. Treated as immutable once parsed.

    path, query: as sent, not decoded.  headers: lower-case names; repeated ones joined by ", ".
    content_length: None when there is no body or a chunked one.
    """

    __slots__ = (
        "_target",
        "content_length",
        "headers",
        "is_chunked",
        "keep_alive",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(self) -> None:
        self._target = b""
        self.headers: dict[str, str] = {}
        self.method = self.path = self.query = self.version = ""
        self.keep_alive = self.is_chunked = False
        self.content_length: int | None = None

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for an upgrade to the WebSocket protocol."""
        return "websocket" in self.headers.get("upgrade", "").lower()

    def on_url(self, url: bytes) -> None:
        """httptools: the request target, or a part of it."""
        self._target += url

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

    def finish(self, parser: httptools.HttpRequestParser) -> None:
        """Take what only the parser knows, once the head is complete."""
        headers = self.headers
        self.version = parser.get_http_version()
        if self.version == "1.1" and not headers.get("host"):
            raise bad_request("the Host header is missing")
        self.path, _, self.query = self._target.decode("latin-1").partition("?")
        self.method = parser.get_method().decode("ascii")
        self.keep_alive = parser.should_keep_alive()
        self.is_chunked = "transfer-encoding" in headers
        length = headers.get("content-length")
        if length is not None:
            self.content_length = int(length)


def bad_request(reason: str) -> RequestError:
    """400: what came is not a request that everybody in the path would read alike."""
    return RequestError(400, "bad_request", reason, text="bad request")


def parse_head(data: bytes) -> Head:
    """Return the head in `data`, which ends with its empty line.

    Raises: RequestError 400, after which the connection cannot be used: where the next
    request begins is not known.
    Cost:   a back-end sends the same few heads again and again over its kept-alive connections;
            short ones are remembered, at most _REMEMBERED of them, and cost one look-up.
    """
    return _remembered(data) if len(data) <= _SHORT_BYTES else _parse(data)


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
    head.finish(parser)
    return head


_remembered = lru_cache(maxsize=_REMEMBERED)(_parse)
