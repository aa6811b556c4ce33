"""A client of fastpush's own HTTP and WebSocket sides, for the commands."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import orjson

from fastpush.errors import CloseCode, FastpushError

TIMEOUT_SECONDS = 10
_CLOSE_SECONDS = 2.0
_PING_SECONDS = 30.0  # a server that vanished without a word is noticed
_TEMPORARY = frozenset({502, 503, 504})


class ClientError(FastpushError):
    """The server could not be reached, or refused; the text says why.

    temporary: whether the same request may succeed later.
    """

    def __init__(self, text: str, *, temporary: bool = False) -> None:
        super().__init__(text)
        self.temporary = temporary


class Outcome(NamedTuple):
    """What a push or drop did: connections reached, and workers whose count is missing."""

    sent: int
    unconfirmed: int


class ApiClient:
    """Posts JSON to one server.

    key: sent as X-API-Key; None: not sent.  tls: judges the certificate of an https server.
    """

    def __init__(self, url: str, key: str | None, tls: ssl.SSLContext) -> None:
        self._url = url
        self._tls = tls
        self._headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if key:
            self._headers["X-API-Key"] = key

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, path: str, body: Mapping[str, Any]) -> Outcome:
        """Return what the push or drop did. Raises: ClientError, also for every status but 200."""
        url = self._url + path
        try:
            async with self._session.post(url, data=orjson.dumps(body), allow_redirects=False) as response:
                status, data = response.status, await response.read()
        except TimeoutError:
            raise ClientError(f"{self._url} did not answer within {TIMEOUT_SECONDS} s", temporary=True) from None
        except aiohttp.ClientError as error:
            raise ClientError(f"{self._url} cannot be reached: {_reason(error)}", temporary=True) from None
        return _outcome(url, status, data)


def _outcome(url: str, status: int, data: bytes) -> Outcome:
    try:
        match status, orjson.loads(data):
            case 200, {"sent": int(sent), "unconfirmed": int(unconfirmed)}:
                return Outcome(sent, unconfirmed)
            case 200, {"sent": int(sent)}:
                return Outcome(sent, 0)
            case _, {"error": {"message": str(text)}} if status != 200:  # noqa: PLR2004
                raise ClientError(f"the server refused with {status}: {text}", temporary=status in _TEMPORARY)
    except orjson.JSONDecodeError:
        pass
    raise ClientError(f"{url} answered with status {status}, but not like fastpush", temporary=status in _TEMPORARY)


def _reason(error: Exception) -> str:
    """Return why a connection failed, without what the user knows already."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {getattr(error.certificate_error, 'verify_message', '') or error}"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        # asyncio puts "Connect call failed (address)" where the system's own words would stand.
        number = error.os_error.errno
        return os.strerror(number) if number and number > 0 else str(error.os_error.strerror)
    return str(error) or type(error).__name__


async def listen(
    url: str, token: str, events: Sequence[str], tls: ssl.SSLContext, on_open: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """Register at a WebSocket URL and yield each message.

    tls: judges the certificate of an https server.
    on_open: called once registered: every push that is made from now on arrives.
    Raises: ClientError, when the connection is refused or ends; it names the close code.
    """
    query = [("token", token), *(("event", event) for event in events)]
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session,
        await _open(session, url, query) as connection,
    ):
        on_open()
        while True:
            message = await connection.receive()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    yield message.data
                case aiohttp.WSMsgType.BINARY:
                    yield message.data.decode(errors="replace")
                case aiohttp.WSMsgType.CLOSE:
                    raise ClientError(_closed(message.data, message.extra or ""))
                case _:
                    raise ClientError("the connection was lost")


async def _open(
    session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]]
) -> aiohttp.ClientWebSocketResponse:
    timeout = aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await session.ws_connect(url, params=query, timeout=timeout, heartbeat=_PING_SECONDS, max_msg_size=0)
    except TimeoutError:
        raise ClientError(f"{url} did not answer within {TIMEOUT_SECONDS} s") from None
    except aiohttp.WSServerHandshakeError as error:
        why = error.headers.get("X-Fastpush-Error") if error.headers else None
        raise ClientError(f"the server refused the connection with {error.status}: {why or error.message}") from None
    except aiohttp.ClientError as error:
        raise ClientError(f"{url} cannot be reached: {_reason(error)}") from None


def _closed(code: int, reason: str) -> str:
    try:
        name = f", {CloseCode(code).name.lower().replace('_', ' ')}"
    except ValueError:
        name = ""
    return f"the server closed the connection with {code}{name}" + (f": {reason}" if reason else "")
