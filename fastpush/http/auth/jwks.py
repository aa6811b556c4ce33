"""Public keys that an identity provider publishes at a URL, kept fresh without anybody noticing.

The set is fetched when the first token needs it, again when it is `max_age_seconds` old, and
for a key id that it lacks (the provider has a new key), but at most once in REFETCH_SECONDS,
however many unknown ids arrive. While a fetch fails, the last good set stays in use, nobody
waits for the next attempt, and it is made in the background.
"""

import asyncio
import logging
import time
import warnings
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.http.auth import outgoing
from fastpush.http.auth.complaints import Complaints
from fastpush.log import fields

REFETCH_SECONDS = 5
FETCH_TIMEOUT_SECONDS = 5
DOCUMENT_BYTES = 262144
PUBLISHED_ALGORITHMS = frozenset({"RS256", "ES256"})  # never a shared secret
MAX_KEYS = 100  # a token without key id is tried with each

JwkKey = OctKey | RSAKey | ECKey


class VerifyingKey:
    """A key, its id ("" for none) and the one algorithm it is used with."""

    __slots__ = ("algorithm", "key", "kid")

    def __init__(self, kid: str, algorithm: str, key: JwkKey) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.key = key


class JwkSet:
    """The keys of one URL. on_keys(keys) is called with each set that arrives."""

    def __init__(
        self,
        url: str,
        max_age_seconds: float,
        on_keys: Callable[[list[VerifyingKey]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._max_age_seconds = max_age_seconds
        self._on_keys = on_keys
        self._clock = clock
        self._log = logging.getLogger(__name__)
        self._complaints = Complaints(self._log, clock)
        self._fetched_at: float | None = None
        self._next_fetch = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self.failed = False  # the last attempt did

    def is_usable(self) -> bool:
        """Return whether the keys at hand may be used without waiting for `refresh`.

        Starts a fetch in the background when the set is old and the last attempt failed.
        """
        if self._fetched_at is not None and self._clock() < self._fetched_at + self._max_age_seconds:
            return True
        if self.failed:
            self._start()
        return self.failed

    async def refresh(self) -> None:
        """Wait for a fetch, one for all who wait; return at once when the last is too recent.

        Never raises for what the fetch met: `failed` says so.
        """
        self._start()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    async def close(self) -> None:
        """Wait for the fetch under way (at most FETCH_TIMEOUT_SECONDS) and free the connection."""
        self._closed = True
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
        if self._session is not None:
            await self._session.close()

    def _start(self) -> None:
        if self._fetching is None and not self._closed and self._clock() >= self._next_fetch:
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                document = await self._get()
            keys = read_key_set(document, self._log)
            self._on_keys(keys)
            self._fetched_at = self._clock()
            self.failed = False
        except Exception as error:  # noqa: BLE001 (whatever the client library meets, the keys at hand stay)
            self._complaints.add("jwks unavailable", outgoing.explain(error))
            self.failed = True
        finally:
            self._next_fetch = self._clock() + REFETCH_SECONDS
            self._fetching = None

    async def _get(self) -> bytes:
        if self._session is None:
            self._session = outgoing.open_session()
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != HTTPStatus.OK:
                raise outgoing.BadAnswerError(f"status {response.status}")
            return await outgoing.read_body(response, DOCUMENT_BYTES)


def read_key_set(document: bytes, log: logging.Logger) -> list[VerifyingKey]:
    """Return the usable keys of a JSON Web Key Set (RFC 7517 section 5: others are ignored).

    Raises: BadAnswerError: it is not one at all. An empty one is: its owner has withdrawn every key.
    """
    try:
        found: Any = orjson.loads(document)
    except orjson.JSONDecodeError:
        found = None
    members = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(members, list):
        raise outgoing.BadAnswerError('not {"keys": […]}')
    keys = list(_usable(members))
    if len(keys) < len(members):
        log.info("jwks keys ignored", extra=fields(used=len(keys), ignored=len(members) - len(keys)))
    return keys


def _usable(members: Iterable[Any]) -> Iterable[VerifyingKey]:
    count = 0
    for member in members:
        key = _public_key(member) if isinstance(member, dict) and count < MAX_KEYS else None
        if key is not None:
            count += 1
            yield key


def _public_key(member: dict[str, Any]) -> VerifyingKey | None:
    """Return the key if it is a public RSA or P-256 key for signatures, else None.

    Only public members are read. The algorithm follows from the key's own type, never from a token.
    """
    kid = member.get("kid", "")
    operations = member.get("key_ops", ["verify"])
    if not isinstance(kid, str) or member.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    kind = member.get("kty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a weak key (RSA below 2048 bits) is a warning in joserfc
            if kind == "RSA" and member.get("alg", "RS256") == "RS256":
                return VerifyingKey(kid, "RS256", RSAKey.import_key(_members(member, "kty", "n", "e")))
            if kind == "EC" and member.get("crv") == "P-256" and member.get("alg", "ES256") == "ES256":
                return VerifyingKey(kid, "ES256", ECKey.import_key(_members(member, "kty", "crv", "x", "y")))
    except (JoseError, ValueError, TypeError, KeyError, Warning):
        pass
    return None


def _members(member: dict[str, Any], *names: str) -> Any:
    return {name: member[name] for name in names}
