"""Asks a back-end whom a token names.

    POST {"token": "…", "headers": {"cookie": "…"}}     the chosen headers that the client sent, names in lower case
    200  {"userId": "…", "expiresAt": 1767225600,       expiresAt: unix seconds, optional
          "params": {"specialKey": "room:7"},           params: what signed.py is about, optional
          "info": {"name": "Jack"},                     info: JSON that others in a channel see, optional
          "channels": ["news"]}                         channels: to be subscribed to by the server, optional
    4xx  the token names nobody

Anything else (5xx, a redirect, no answer, no JSON), and 408, 425 and 429, which speak of the
moment and not of the token, is "unavailable": clients come back later instead of giving up.

At most `concurrency` questions are under way and ten times as many wait; each ends within
`timeout_seconds` of being asked, waiting included. Equal questions share one.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from fastpush.config import Webhook
from fastpush.errors import AuthUnavailable, ConfigError, TokenRejected
from fastpush.http.auth import outgoing
from fastpush.http.auth.answers import Answers
from fastpush.http.auth.complaints import Complaints
from fastpush.http.auth.contract import Identity, WithoutSubscriptions, check_present, check_size, date, identity
from fastpush.http.auth.signed import Parameters

ANSWER_BYTES = 65536
WAITING_PER_SLOT = 10
TEMPORARY = frozenset({408, 425, 429})


class Answer(msgspec.Struct, rename="camel"):
    """The body of a 200."""

    user_id: str
    expires_at: float | None = None
    params: Parameters | None = None
    info: Any = None
    channels: tuple[str, ...] = ()


class _Unavailable(msgspec.Struct, frozen=True):
    """No answer, and why. A value: one exception raised to many waiters would gather all their stacks."""

    reason: str


class WebhookAuth(WithoutSubscriptions):
    """[auth] mode = "webhook"."""

    def __init__(
        self,
        webhook: Webhook,
        name_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not webhook.url.startswith(("http://", "https://")):
            raise ConfigError("[auth.webhook] url must begin with http:// or https://")
        self._webhook = webhook
        self._names = tuple(sorted({name.lower() for name in webhook.headers}))
        self._name_bytes = name_bytes
        self._wall_clock = wall_clock
        self._answers = Answers(webhook.cache_seconds, webhook.cache_entries, clock, wall_clock)
        self._complaints = Complaints(logging.getLogger(__name__), clock)
        self._slots = asyncio.Semaphore(webhook.concurrency)
        self._most_under_way = webhook.concurrency * (1 + WAITING_PER_SLOT)
        self._under_way: dict[bytes, asyncio.Task[Identity | str | _Unavailable]] = {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    def authenticate(self, token: str, headers: Mapping[str, str]) -> Identity | Awaitable[Identity]:
        check_present(token)
        check_size(token)
        chosen = {name: headers[name] for name in self._names if name in headers}
        try:
            question = msgspec.json.encode({"token": token, "headers": chosen})
        except UnicodeEncodeError:
            question = b""
        if not question:
            raise TokenRejected("token or a header sent with it is not valid UTF-8")
        digest = sha256(question).digest()
        return self._answers.get(digest) or self._shared(digest, question)

    async def close(self) -> None:
        self._closed = True
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()))  # each ends within timeout_seconds
        if self._session is not None:
            await self._session.close()

    async def _shared(self, digest: bytes, question: bytes) -> Identity:
        """Ask, or wait for the same question's answer. Who stops waiting takes the question from nobody."""
        task = self._under_way.get(digest)
        if task is None:
            if self._closed:
                raise AuthUnavailable("the auth webhook is being reloaded")
            if len(self._under_way) >= self._most_under_way:
                self._complaints.add("auth webhook unavailable", "too many questions are waiting")
                raise AuthUnavailable("too many questions wait for the auth webhook")
            task = asyncio.get_running_loop().create_task(self._answer(digest, question))
            self._under_way[digest] = task
            task.add_done_callback(lambda _: self._under_way.pop(digest, None))
        answer = await asyncio.shield(task)
        if isinstance(answer, str):
            raise TokenRejected(answer)
        if isinstance(answer, _Unavailable):
            raise AuthUnavailable(answer.reason)
        return answer

    async def _answer(self, digest: bytes, question: bytes) -> Identity | str | _Unavailable:
        """Return the identity, the reason of a rejection, or why there is neither; remember the first two."""
        try:
            async with asyncio.timeout(self._webhook.timeout_seconds), self._slots:
                status, body = await self._post_again_if_stale(question)
            answer = self._judge(status, body)
        except AuthUnavailable as error:
            self._complaints.add("auth webhook unavailable", str(error))
            return _Unavailable(str(error))
        except TimeoutError:
            self._complaints.add("auth webhook unavailable", "no answer in time")
            return _Unavailable("the auth webhook did not answer in time")
        except Exception as error:  # noqa: BLE001 (whatever the client library meets, the asker gets an answer)
            self._complaints.add("auth webhook unavailable", outgoing.explain(error))
            return _Unavailable("the auth webhook cannot be reached")
        self._answers.put(digest, answer)
        return answer

    async def _post_again_if_stale(self, question: bytes) -> tuple[int, bytes]:
        """Post once more when a kept connection turns out to be closed: servers end idle ones at any moment."""
        try:
            return await self._post(question)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            return await self._post(question)

    async def _post(self, question: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = outgoing.open_session()
        async with self._session.post(
            self._webhook.url, data=question, headers={"Content-Type": "application/json"}, allow_redirects=False
        ) as response:
            body = await outgoing.read_body(response, ANSWER_BYTES) if response.status == HTTPStatus.OK else b""
            return response.status, body

    def _judge(self, status: int, body: bytes) -> Identity | str:
        """Return whom the answer names, or why nobody.

        Raises: AuthUnavailable: it is no answer to the question.
        """
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in TEMPORARY:
            return f"the auth webhook rejected the token ({status})"
        if status != HTTPStatus.OK:
            raise AuthUnavailable(f"the auth webhook answered {status}")
        try:
            answer = msgspec.json.decode(body, type=Answer)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            answer = None
        if answer is None or (answer.expires_at is not None and not math.isfinite(answer.expires_at)):
            optional = '"expiresAt": number, "params": object of texts, "info": JSON, "channels": array of texts'
            raise AuthUnavailable(f'the auth webhook did not answer {{"userId": text}} and, optional, {optional}')
        if answer.expires_at is not None and answer.expires_at <= self._wall_clock():
            return f"token expired at {date(answer.expires_at)}"
        try:
            return identity(
                answer.user_id, answer.expires_at, self._name_bytes, answer.params, answer.info, answer.channels
            )
        except TokenRejected as error:
            return str(error)
