"""A client of fastpush's own HTTP and WebSocket sides, for the commands."""

from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from fastpush.errors import FastpushError

TIMEOUT_SECONDS = 10


class ClientError(FastpushError):
    """The server could not be reached, or refused; the text says why."""


class ApiClient:
    """Posts JSON to one server.

    key: sent as X-API-Key; None: not sent.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._headers = {"Accept": "application/json"} | ({"X-API-Key": key} if key else {})

    async def __aenter__(self) -> "ApiClient":
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON reply. Raises: ClientError, also for every status but 200."""
        try:
            async with self._session.post(self._url + path, data=orjson.dumps(body), allow_redirects=False) as response:
                data = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ClientError(f"{self._url} cannot be reached: {error or 'no answer in time'}") from None
        try:
            reply = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise ClientError(f"{self._url}{path} does not answer like fastpush (status {response.status})") from None
        if response.status != 200:  # noqa: PLR2004
            raise ClientError(f"{response.status}: {reply.get('error', {}).get('message', 'refused')}")
        result: dict[str, Any] = reply
        return result


async def listen(url: str, token: str, events: Sequence[str]) -> AsyncIterator[str]:
    """Register at a WebSocket URL and yield each message.

    Raises: ClientError, when the connection is refused or ends; it names the close code.
    """
    query = [("token", token), *(("event", event) for event in events)]
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, params=query, timeout=aiohttp.ClientWSTimeout(ws_close=2)) as connection,
        ):
            async for message in connection:
                yield message.data if isinstance(message.data, str) else message.data.decode(errors="replace")
            raise ClientError(f"connection closed with code {connection.close_code}")
    except aiohttp.WSServerHandshakeError as error:
        raise ClientError(f"the server refused the connection with status {error.status}") from None
    except aiohttp.ClientError as error:
        raise ClientError(f"the server cannot be reached: {error}") from None
