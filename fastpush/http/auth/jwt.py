"""Tokens that a back-end signed: JSON Web Tokens (RFC 7519) with HS256, RS256 or ES256.

The rule against algorithm confusion: a key is used with one algorithm, the configured one, or
in a key set the one of its type. A token's `alg` only says which keys are tried, never how.
`none` belongs to no key. Signatures are joserfc's work; what the claims mean here is checked
below, because its own check wants whole seconds, a text `sub` and an `iat` in the past.
"""

import math
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.config import Jwt, JwtKey
from fastpush.errors import AuthUnavailable, ConfigError, TokenExpired, TokenRejected
from fastpush.http.auth.contract import (
    MAX_TOKEN_BYTES,
    Identity,
    Subscription,
    check_json,
    check_present,
    check_size,
    date,
    identity,
)
from fastpush.http.auth.jwks import PUBLISHED_ALGORITHMS, JwkKey, JwkSet, VerifyingKey
from fastpush.http.auth.signed import read_signed

MIN_SECRET_BYTES = 32  # RFC 7518 section 3.2: as long as the hash

Claims = dict[str, Any]
Meaning = TypeVar("Meaning", Identity, Subscription)


class _Registry(jws.JWSRegistry):
    """joserfc's limits, opened up to what the token's own limit allows."""

    max_header_length = MAX_TOKEN_BYTES
    max_payload_length = MAX_TOKEN_BYTES
    max_signature_length = MAX_TOKEN_BYTES


def _registry(algorithm: str) -> _Registry:
    registry = _Registry(algorithms=[algorithm], strict_check_header=False)  # RFC 7515 section 4: ignore unknown ones
    del registry.header_registry["b64"]  # RFC 7797 section 7: not for JWTs; as `crit` it is refused then
    return registry


_REGISTRIES = {algorithm: _registry(algorithm) for algorithm in ("HS256", "RS256", "ES256")}


class KeyRing:
    """Verifying keys by id and algorithm."""

    def __init__(self, keys: Iterable[VerifyingKey]) -> None:
        self._all = list(keys)
        self._by_name: dict[tuple[str, str], list[JwkKey]] = {}
        for key in self._all:
            self._by_name.setdefault((key.kid, key.algorithm), []).append(key.key)

    def exact(self, kid: str, algorithm: str) -> list[JwkKey]:
        """Return the keys of that id ("": without one) and algorithm."""
        return self._by_name.get((kid, algorithm), [])

    def matching(self, kid: str, algorithm: str) -> list[JwkKey]:
        """Return the same; for a token without id also the only key of that algorithm, whatever its id."""
        found = self.exact(kid, algorithm)
        if found or kid:
            return found
        same = [key.key for key in self._all if key.algorithm == algorithm]
        return same if len(same) == 1 else []


class _Unverified:
    """A token taken apart. Nothing in it is believed yet."""

    __slots__ = ("algorithm", "kid", "signature")

    def __init__(self, signature: jws.CompactSignature, kid: str, algorithm: str) -> None:
        self.signature = signature
        self.kid = kid
        self.algorithm = algorithm


class JwtAuth:
    """[auth] mode = "jwt". Answers at once while the keys are known.

    The user claim is text, or a whole number, taken as its decimal text. With `leeway_seconds`
    a token ends that much later everywhere, in `expires_at` too. A claim `expire_at` parts the two ends: the token may
    be shown until `exp`, what it was shown for ends at `expire_at`, 0 for never.

    connection    {"sub": "jack", "exp": …, "params": {…}, "info": …, "channels": ["news"], "subs": {"chat:1": {}}}
    subscription  {"sub": "jack", "exp": …, "channel": "chat:42", "client": "…", "info": …}    sub may be "" or absent

    Cost: HS256 22 µs, RS256 50 µs, ES256 105 µs.
    """

    def __init__(
        self,
        jwt: Jwt,
        name_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._jwt = jwt
        self._name_bytes = name_bytes
        self._wall_clock = wall_clock
        self._configured = [read_key(key) for key in jwt.key]
        self._pinned = self._ring = KeyRing(self._configured)
        self._published = JwkSet(jwt.jwks_url, jwt.jwks_seconds, self._adopt, clock) if jwt.jwks_url else None
        if not jwt.key and self._published is None:
            raise ConfigError('[auth] mode = "jwt" needs an [[auth.jwt.key]] or [auth.jwt] jwks_url')

    def authenticate(
        self,
        token: str,
        headers: Mapping[str, str],
    ) -> Identity | Awaitable[Identity]:
        return self._read(token, self._identity)

    def subscription(self, token: str) -> Subscription | Awaitable[Subscription]:
        return self._read(token, self._subscription)

    async def close(self) -> None:
        if self._published is not None:
            await self._published.close()

    def _read(self, token: str, meaning: Callable[[Claims], Meaning]) -> Meaning | Awaitable[Meaning]:
        """Return what a token means, once its signature is verified."""
        check_present(token)
        check_size(token)
        unverified = _take_apart(token)
        kid, algorithm = unverified.kid, unverified.algorithm
        keys = self._ring.matching(kid, algorithm)
        if self._published is None or algorithm not in PUBLISHED_ALGORITHMS or self._pinned.exact(kid, algorithm):
            return self._meaning(unverified, keys, meaning)
        if keys and self._published.is_usable():
            return self._meaning(unverified, keys, meaning)
        return self._read_after_refresh(unverified, self._published, meaning)

    def _adopt(self, published: list[VerifyingKey]) -> None:
        self._ring = KeyRing([*self._configured, *published])

    async def _read_after_refresh(
        self, unverified: _Unverified, published: JwkSet, meaning: Callable[[Claims], Meaning]
    ) -> Meaning:
        await published.refresh()
        keys = self._ring.matching(unverified.kid, unverified.algorithm)
        if not keys and published.failed:
            raise AuthUnavailable("the key set that could know the token's key cannot be fetched")
        return self._meaning(unverified, keys, meaning)

    def _meaning(self, unverified: _Unverified, keys: list[JwkKey], meaning: Callable[[Claims], Meaning]) -> Meaning:
        claims = None
        try:
            claims = _verify(unverified, keys)
            return meaning(claims)
        except TokenRejected as rejected:
            rejected.user, rejected.is_claimed = self._named(unverified), claims is None
            raise

    def _named(self, unverified: _Unverified) -> str:
        """Return whom a token names that is not taken; "" for nobody."""
        try:
            claims = orjson.loads(unverified.signature.payload)
        except orjson.JSONDecodeError:
            return ""
        user = self._user(claims) if isinstance(claims, dict) else None
        return user if user is not None and len(user) <= self._name_bytes else ""

    def _identity(self, claims: Claims) -> Identity:
        """Check what a verified token says of itself; return whom it names."""
        expires_at = self._end(claims)
        user = self._user(claims)
        if user is None:
            raise TokenRejected(f"token has no text in its claim {self._jwt.user_claim}")
        if "channel" in claims:  # what is for one channel must not open everything that its user may
            raise TokenRejected("token has a claim channel, so it is a subscription token")
        return identity(
            user, expires_at, self._name_bytes, read_signed(claims), claims.get("info"), _server_side_channels(claims)
        )

    def _subscription(self, claims: Claims) -> Subscription:
        """Check what a verified token says of itself; return what it allows."""
        expires_at = self._end(claims)
        user = self._user(claims) if self._jwt.user_claim in claims else ""
        channel, client, info = claims.get("channel"), claims.get("client", ""), claims.get("info")
        if user is None:
            raise TokenRejected(f"token has a claim {self._jwt.user_claim} that is no text")
        if not isinstance(channel, str) or not channel:
            raise TokenRejected("token has no text in its claim channel, so it is no subscription token")
        if not isinstance(client, str):
            raise TokenRejected("token has a claim client that is no text")
        check_json((user, channel, client, info))
        return Subscription(user, channel, client, expires_at, info)

    def _user(self, claims: Claims) -> str | None:
        user = claims.get(self._jwt.user_claim)
        if isinstance(user, int) and not isinstance(user, bool):
            user = str(user)
        return user if isinstance(user, str) else None

    def _end(self, claims: Claims) -> float | None:
        """Check that a verified token may be shown, here and now; return when what it allows ends."""
        jwt, now = self._jwt, self._wall_clock()
        expires_at = _time(claims, "exp")
        if expires_at is not None:
            expires_at += jwt.leeway_seconds
            if expires_at <= now:
                raise TokenExpired(f"token expired at {date(expires_at - jwt.leeway_seconds)}")
        not_before = _time(claims, "nbf")
        if not_before is not None and not_before > now + jwt.leeway_seconds:
            raise TokenRejected(f"token is not valid before {date(not_before)}")
        if jwt.audience:
            audience = claims.get("aud")
            if audience != jwt.audience and not (isinstance(audience, list) and jwt.audience in audience):
                raise TokenRejected("token is for another audience (aud)")
        if jwt.issuer and claims.get("iss") != jwt.issuer:
            raise TokenRejected("token is from another issuer (iss)")
        end = _time(claims, "expire_at")
        if end is None:
            return expires_at
        if end and end <= now:
            raise TokenExpired(f"what the token allows ended at {date(end)}")
        return end or None


def read_key(key: JwtKey) -> VerifyingKey:
    """Return one configured key, ready for use.

    Raises: ConfigError: it cannot be read, is too weak, or does not fit its algorithm.
    """
    where = f"[[auth.jwt.key]] kid {key.kid!r}"
    if key.algorithm == "HS256":
        if len(key.secret.encode()) < MIN_SECRET_BYTES:
            raise ConfigError(f"{where}: HS256 needs a secret of at least {MIN_SECRET_BYTES} bytes")
        return VerifyingKey(key.kid, key.algorithm, _import(OctKey, key.secret.encode(), where, key.algorithm))
    if not key.public_key_file:
        raise ConfigError(f"{where}: {key.algorithm} needs public_key_file")
    where = f"{where}: {key.public_key_file}"
    try:
        content = Path(key.public_key_file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from error
    if b"PRIVATE" in content:
        raise ConfigError(f"{where} is a private key; give the public one, this server signs nothing")
    kind: type[RSAKey | ECKey] = RSAKey if key.algorithm == "RS256" else ECKey
    return VerifyingKey(key.kid, key.algorithm, _import(kind, content, where, key.algorithm))


def _import(kind: type[JwkKey], content: bytes, where: str, algorithm: str) -> JwkKey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a weak key, or a secret that looks like another kind, is a warning
            key = kind.import_key(content)
            _REGISTRIES[algorithm].get_alg(algorithm).check_key(key)
            return key
    except (JoseError, ValueError, TypeError, Warning) as error:
        problem = type(error).__name__  # not its text, which may quote the key
    raise ConfigError(f"{where}: not a usable {algorithm} key ({problem})")


def _take_apart(token: str) -> _Unverified:
    """Split and decode; nothing is verified. Raises: TokenRejected: not a signed JWT."""
    try:
        signature = jws.extract_compact(token.encode("ascii"), registry=_REGISTRIES["HS256"])
        header = signature.headers()
        kid, algorithm = header.get("kid") or "", header["alg"]
    except Exception:  # noqa: BLE001 (a stranger's bytes: joserfc lets RecursionError and others through)
        kid = algorithm = None
    if not isinstance(kid, str) or not isinstance(algorithm, str):
        raise TokenRejected("token is not a signed JWT")
    return _Unverified(signature, kid, algorithm)


def _is_signed(unverified: _Unverified, key: JwkKey) -> bool:
    algorithm = unverified.algorithm  # the key was looked up by it, so it is the key's own
    try:
        return jws.validate_compact(unverified.signature, key, [algorithm], _REGISTRIES[algorithm])
    except (JoseError, ValueError):
        return False


def _verify(unverified: _Unverified, keys: list[JwkKey]) -> Claims:
    """Return the claims of a token that one of the keys has signed. Raises: TokenRejected."""
    if not keys:
        raise TokenRejected("token is signed with a key or algorithm that is not configured")
    if not any(_is_signed(unverified, key) for key in keys):
        raise TokenRejected("token has a wrong signature")
    try:
        claims = orjson.loads(unverified.signature.payload)
    except orjson.JSONDecodeError:
        claims = None
    if not isinstance(claims, dict):
        raise TokenRejected("token holds no JSON object")
    return claims


def _server_side_channels(claims: Claims) -> list[str]:
    """Return the channels that a connection token names: in its list `channels`, and as keys of its object `subs`."""
    channels, subscriptions = claims.get("channels", []), claims.get("subs", {})
    if not isinstance(channels, list) or not all(isinstance(channel, str) for channel in channels):
        raise TokenRejected("token's claim channels is no array of texts")
    if not isinstance(subscriptions, dict):
        raise TokenRejected("token's claim subs is no object")
    return [*channels, *subscriptions]


def _time(claims: Claims, name: str) -> float | None:
    """Return a NumericDate, or None when the claim is absent."""
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TokenRejected(f"token has a claim {name} that is not a time")
    return float(value)
