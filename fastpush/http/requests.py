"""What handlers need of aiohttp's requests: headers as the lean path sees them, bounded bodies, what is refused."""

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, web

from fastpush import errors
from fastpush.errors import RequestError
from fastpush.http.push import NO_HEADERS, OnOutcome, Outcome

Endpoint = Callable[[bytes, OnOutcome, Mapping[str, str]], None]

REFUSAL = web.RequestKey("refusal", RequestError)
"""What a request is answered with, for the log."""


def joined_headers(request: web.BaseRequest) -> dict[str, str]:
    """Return the headers as the lean path sees them: lower-case names, repeated ones joined."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


async def read_body(request: web.Request, most: int, limit: str = "") -> bytes:
    """Return the body. Raises: RequestError 413: it is larger than `most` bytes, by the key `limit`; 400: no body."""
    too_large = errors.too_large(f"body is larger than {most} bytes{f' ({limit})' if limit else ''}")
    if request.content_length is not None and request.content_length > most:
        raise too_large
    await _send_continue(request)
    try:
        return await request.clone(client_max_size=most).read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None
    except web.RequestPayloadError:
        raise errors.illegal_request("body is not encoded as its headers say") from None


async def _send_continue(request: web.Request) -> None:
    """Ask for the body of a client that waits to be asked (RFC 9110, section 10.1.1)."""
    if "Expect" in request.headers and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response proper has not begun


async def outcome_of(
    endpoint: Endpoint, body: bytes, headers: Mapping[str, str] = NO_HEADERS
) -> Outcome | RequestError:
    """Wait for what becomes of a push. Raises: RequestError, as the endpoint does."""
    future: asyncio.Future[Outcome | RequestError] = asyncio.get_running_loop().create_future()
    endpoint(body, lambda outcome: None if future.done() else future.set_result(outcome), headers)
    return await future
