"""One request head: bytes in, an immutable description or a refusal out. No I/O.

Parsed by httptools (llhttp, strict): Content-Length with Transfer-Encoding, a second
Content-Length, bare line feeds, folded headers and bytes that no header may hold are
errors there. What is left to this module is the meaning.
"""

from collections.abc import Mapping
from typing import NamedTuple

import httptools

from fastpush.errors import RequestError

HEAD_END = b"\r\n\r\n"


class Head(NamedTuple):
    """A request's head.

    path, query: as sent, not decoded.  headers: lower-case names; repeated ones joined by ", ".
    content_length: None when there is no body or a chunked one.
    """

    method: str
    path: str
    query: str
    version: str
    headers: Mapping[str, str]
    keep_alive: bool
    content_length: int | None
    is_chunked: bool

    @property
    def wants_websocket(self) -> bool:
        """Whether the client asks for an upgrade to the WebSocket protocol."""
        return "websocket" in self.headers.get("upgrade", "").lower()


class _Collector:
    """httptools' callbacks."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower().decode("latin-1")
        text = value.decode("latin-1")
        if key in self.headers:
            if key == "host":
                raise ValueError("more than one Host header")
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text


def bad_request(reason: str) -> RequestError:
    """400: what came is not a request that everybody in the path would read alike."""
    return RequestError(400, "bad_request", reason, text="bad request")


def parse_head(data: bytes) -> Head:
    """Return the head in `data`, which ends with its empty line.

    Raises: RequestError 400, after which the connection cannot be used: where the next
    request begins is not known.
    """
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the head is complete; who serves the path decides about the upgrade
    except (httptools.HttpParserError, ValueError) as error:
        # A callback's error arrives as HttpParserCallbackError with the reason as its context.
        raise bad_request(str(error.__context__ or error)) from None
    headers = collector.headers
    version = parser.get_http_version()
    if version == "1.1" and not headers.get("host"):
        raise bad_request("the Host header is missing")
    path, _, query = collector.target.decode("latin-1").partition("?")
    length = headers.get("content-length")
    return Head(
        method=parser.get_method().decode("ascii"),
        path=path,
        query=query,
        version=version,
        headers=headers,
        keep_alive=parser.should_keep_alive(),
        content_length=int(length) if length is not None else None,
        is_chunked="transfer-encoding" in headers,
    )
