"""HTTP requests to the outside: no proxy from the environment, no cookies, no redirects, bounded answers."""

import os

import aiohttp


class BadAnswerError(Exception):
    """What came back is not what was asked for; the text says how and quotes nothing of it."""


def open_session() -> aiohttp.ClientSession:
    """Return a session; how many requests run at once, and for how long, the caller bounds.

    Answers are asked for and taken uncompressed, so that their size is what arrives.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None),
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "fastpush"},
        auto_decompress=False,
        trust_env=False,
    )


async def read_body(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """Return the whole body.

    Raises: BadAnswerError: it goes beyond `limit_bytes`; the rest is not read and the connection is closed.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        body += chunk
        if len(body) > limit_bytes:
            response.close()
            raise BadAnswerError(f"more than {limit_bytes} bytes")
    return bytes(body)


def explain(error: Exception) -> str:
    """Return what went wrong without URL, header or body, any of which may hold a secret."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BadAnswerError):
        return f"bad answer: {error}"
    cause = getattr(error, "os_error", error)
    if isinstance(cause, OSError) and cause.errno:
        # Name look-ups have negative numbers of their own, with a text that names no host.
        return f"{type(error).__name__}: {os.strerror(cause.errno) if cause.errno > 0 else cause.strerror}"
    return type(error).__name__
