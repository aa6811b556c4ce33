"""The jwt mode with a published key set, against real servers on loopback."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from fastpush.config import Jwt, JwtKey
from fastpush.errors import AuthUnavailable, TokenRejected
from fastpush.http.auth import Identity, Subscription, jwks
from fastpush.http.auth.jwks import DOCUMENT_BYTES, MAX_KEYS, REFETCH_SECONDS, read_key_set
from fastpush.http.auth.jwt import JwtAuth

LOG = logging.getLogger("test")
SECRET = "correct-horse-battery-staple-0123456789"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on either loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runner(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(main, 20))

    return runner


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds; the test's own time limit ends what never does."""
    while not condition():
        await asyncio.sleep(0)


class Clock:
    def __init__(self, now: float = 0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Provider:
    """An identity provider: counts fetches and answers with `document`, or with `status` and nothing."""

    def __init__(self) -> None:
        self.document: Any = {"keys": []}
        self.status = 200
        self.fetches = 0
        self.release: asyncio.Event | None = None
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.fetches += 1
        if self.release is not None:
            await self.release.wait()
        if self.status != 200:
            return web.Response(status=self.status, headers={"Location": "/jwks"})
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        return web.Response(body=body)


@asynccontextmanager
async def provider(*keys: dict[str, Any]) -> AsyncIterator[Provider]:
    made = Provider()
    made.document = {"keys": list(keys)}
    app = web.Application()
    app.router.add_get("/jwks", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    try:
        yield made
    finally:
        if made.release is not None:
            made.release.set()
        await runner.cleanup()


@asynccontextmanager
async def asking(url: str, clock: Clock | None = None, **settings: Any) -> AsyncIterator[JwtAuth]:
    auth = JwtAuth(Jwt(jwks_url=url, **settings), 512, clock or Clock())
    try:
        yield auth
    finally:
        await auth.close()


@cache
def key(kind: str, number: int = 0) -> RSAKey | ECKey:
    return RSAKey.generate_key(2048) if kind == "RS256" else ECKey.generate_key("P-256")


def public(kind: str, kid: str = "", number: int = 0, **more: Any) -> dict[str, Any]:
    return {**key(kind, number).as_dict(private=False), **({"kid": kid} if kid else {}), **more}


def signed(kind: str, kid: str = "", number: int = 0, user: str = "alice") -> str:
    header = {"alg": kind, **({"kid": kid} if kid else {})}
    return joserfc_jwt.encode(header, {"sub": user}, key(kind, number))


async def ask(auth: JwtAuth, token: str) -> Identity:
    answer: Identity | Awaitable[Identity] = auth.authenticate(token, {})
    return answer if isinstance(answer, Identity) else await answer


async def outcome(auth: JwtAuth, token: str) -> str:
    try:
        return (await ask(auth, token)).user
    except (TokenRejected, AuthUnavailable) as error:
        return type(error).__name__


def at_once(auth: JwtAuth, token: str) -> bool:
    """Return whether `token` is answered without waiting for anybody."""
    answer = auth.authenticate(token, {})
    if not isinstance(answer, Identity):
        answer.close()  # type: ignore[attr-defined]
    return isinstance(answer, Identity)


def test_the_set_is_fetched_once(run: Any) -> None:
    """The first tokens share one fetch; afterwards RS256 and ES256 tokens are judged at once."""

    async def main() -> None:
        async with provider(public("RS256", "r"), public("ES256", "e")) as idp, asking(idp.url) as auth:
            assert idp.fetches == 0
            tokens = [signed("RS256", "r", user=f"u{i}") for i in range(20)] + [signed("ES256", "e")]
            users = [found.user for found in await asyncio.gather(*(ask(auth, token) for token in tokens))]
            assert users == [f"u{i}" for i in range(20)] + ["alice"]
            assert at_once(auth, tokens[0])
            assert idp.fetches == 1

    run(main())


def test_subscription_tokens_are_signed_with_published_keys(run: Any) -> None:
    """The first waits for the key set, as a token that connects does; the next is answered at once."""

    async def main() -> None:
        async with provider(public("ES256", "e")) as idp, asking(idp.url) as auth:
            claims = {"sub": "alice", "channel": "chat:42"}
            token = joserfc_jwt.encode({"alg": "ES256", "kid": "e"}, claims, key("ES256", 0))
            first = auth.subscription(token)
            assert not isinstance(first, Subscription)
            assert await first == auth.subscription(token) == Subscription("alice", "chat:42")

    run(main())


def test_one_asker_who_leaves_stops_no_fetch(run: Any) -> None:
    """Single flight: the fetch goes on for the others when the one that began it is cancelled."""

    async def main() -> None:
        async with provider(public("ES256", "e")) as idp, asking(idp.url) as auth:
            idp.release = asyncio.Event()
            askers = [asyncio.ensure_future(ask(auth, signed("ES256", "e"))) for _ in range(3)]
            await until(lambda: idp.fetches > 0)
            askers[0].cancel()
            idp.release.set()
            assert await asyncio.gather(*askers[1:]) == [Identity("alice")] * 2
            assert idp.fetches == 1

    run(main())


def test_a_new_key_is_found(run: Any) -> None:
    """Rotation: a token with an unknown key id has the set fetched again; a key gone from it is refused."""

    async def main() -> None:
        clock = Clock()
        async with provider(public("ES256", "old")) as idp, asking(idp.url, clock) as auth:
            assert await outcome(auth, signed("ES256", "old")) == "alice"
            idp.document = {"keys": [public("ES256", "new", 1)]}
            clock.now += REFETCH_SECONDS
            assert await outcome(auth, signed("ES256", "new", 1)) == "alice"
            assert await outcome(auth, signed("ES256", "old")) == "TokenRejected"
            assert await outcome(auth, signed("ES256", "new", 2)) == "TokenRejected"
            assert idp.fetches == 2

    run(main())


def test_unknown_key_ids_cause_few_fetches(run: Any) -> None:
    """However many unknown key ids arrive, the set is fetched once in a few seconds."""

    async def main() -> None:
        clock = Clock()
        async with provider(public("ES256", "e")) as idp, asking(idp.url, clock) as auth:
            for fetches in (1, 2, 3):
                outcomes = [await outcome(auth, signed("ES256", f"unknown{i}")) for i in range(50)]
                assert outcomes == ["TokenRejected"] * 50
                assert idp.fetches == fetches
                clock.now += REFETCH_SECONDS

    run(main())


def test_unreachable_is_no_verdict(run: Any) -> None:
    """Without any key set there is no verdict, and no fetch a token: unavailable until it can be had."""

    async def main() -> None:
        clock = Clock()
        async with provider(public("ES256", "e")) as idp, asking(idp.url, clock) as auth:
            idp.status = 503
            for _ in range(10):
                assert await outcome(auth, signed("ES256", "e")) == "AuthUnavailable"
            assert idp.fetches == 1
            idp.status = 200
            clock.now += REFETCH_SECONDS
            assert await outcome(auth, signed("ES256", "e")) == "alice"

        async with asking("http://127.0.0.1:1/jwks") as auth:
            assert await outcome(auth, signed("ES256", "e")) == "AuthUnavailable"

    run(main())


def test_an_old_set_is_fetched_again(run: Any) -> None:
    """After jwks_seconds the next token waits for a fresh set, so that a withdrawn key ends."""

    async def main() -> None:
        clock = Clock()
        async with provider(public("ES256", "e")) as idp, asking(idp.url, clock, jwks_seconds=60) as auth:
            assert await outcome(auth, signed("ES256", "e")) == "alice"
            idp.document = {"keys": []}
            clock.now = 59
            assert await outcome(auth, signed("ES256", "e")) == "alice"
            clock.now = 60
            assert await outcome(auth, signed("ES256", "e")) == "TokenRejected"
            assert idp.fetches == 2

    run(main())


def test_old_keys_serve_while_fetching_fails(run: Any) -> None:
    """A set that cannot be renewed stays in use, and only the first failure makes anybody wait."""

    async def main() -> None:
        clock = Clock()
        async with provider(public("ES256", "e")) as idp, asking(idp.url, clock, jwks_seconds=60) as auth:
            assert await outcome(auth, signed("ES256", "e")) == "alice"
            idp.status = 500
            clock.now = 1000
            assert await outcome(auth, signed("ES256", "e")) == "alice"
            assert await outcome(auth, signed("ES256", "unknown")) == "AuthUnavailable"
            assert idp.fetches == 2
            clock.now += REFETCH_SECONDS
            idp.status, idp.document = 200, {"keys": [public("ES256", "new", 1)]}
            assert at_once(auth, signed("ES256", "e"))  # begins a fetch behind its back
            await until(lambda: at_once(auth, signed("ES256", "new", 1)))
            assert idp.fetches == 3

    run(main())


@pytest.mark.parametrize(
    "document",
    [b"", b"not json", b"[]", b"{}", b'{"keys":{}}', b"[" * 200000, b" " * DOCUMENT_BYTES + b'{"keys":[]}'],
)
def test_bad_documents_are_no_verdict(run: Any, document: bytes) -> None:
    """What is no key set, or larger than 256 KiB, is a failed fetch; redirects are not followed."""

    async def main() -> None:
        clock = Clock()
        async with provider() as idp, asking(idp.url, clock) as auth:
            idp.document = document
            assert await outcome(auth, signed("ES256", "e")) == "AuthUnavailable"
            idp.status = 302
            clock.now += REFETCH_SECONDS
            assert await outcome(auth, signed("ES256", "e")) == "AuthUnavailable"
            assert idp.fetches == 2

    run(main())


def test_a_silent_provider_times_out(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that does not answer holds nobody longer than the time limit of a fetch."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 0.1)

    async def main() -> None:
        async with provider() as idp, asking(idp.url) as auth:
            idp.release = asyncio.Event()
            assert await outcome(auth, signed("ES256", "e")) == "AuthUnavailable"

    run(main())


def test_published_secrets_are_not_used(run: Any) -> None:
    """Algorithm confusion: an `oct` key of the set, or a public key's text as secret, verifies nothing."""

    async def main() -> None:
        oct_key = OctKey.import_key(SECRET)
        published = [public("RS256", "r"), {**oct_key.as_dict(), "kid": "o"}]
        async with provider(*published) as idp, asking(idp.url) as auth:
            assert await outcome(auth, signed("RS256", "r")) == "alice"
            pem = key("RS256", 0).as_bytes(encoding="PEM", private=False)
            for secret in (SECRET.encode(), pem, json.dumps(published[0]).encode()):
                for kid in ("o", "r", ""):
                    forged = joserfc_jwt.encode({"alg": "HS256", "kid": kid}, {"sub": "admin"}, raw_oct(secret))
                    assert await outcome(auth, forged) == "TokenRejected"
            assert idp.fetches == 1

    run(main())


def raw_oct(secret: bytes) -> OctKey:
    """Return a key that joserfc would refuse to make of a public key's text."""
    return OctKey(secret, secret)


def test_only_fit_keys_are_taken() -> None:
    """Keys for encryption, of other types, curves or algorithms, weak or broken ones are ignored, one by one."""
    with pytest.warns(Warning, match="2048"):
        weak = RSAKey.generate_key(1024)
    good = public("RS256", "good", use="sig", alg="RS256", key_ops=["verify"], x5t="abc")
    ignored = [
        public("RS256", "a", use="enc"),
        public("RS256", "b", alg="RS512"),
        public("RS256", "c", alg="PS256"),
        public("RS256", "d", alg="none"),
        public("RS256", "e", key_ops=["encrypt"]),
        public("ES256", "f", alg="RS256"),
        {**ECKey.generate_key("P-384").as_dict(private=False), "kid": "g"},
        {**weak.as_dict(private=False), "kid": "h"},
        {**public("RS256", "i"), "n": "!!"},
        {**public("ES256", "j"), "x": public("ES256", "j")["y"]},
        {"kty": "RSA", "kid": "k"},
        {**public("RS256"), "kid": 7},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "kid": "l"},
        "not a key",
        None,
    ]
    keys = read_key_set(json.dumps({"keys": [*ignored, good]}).encode(), LOG)
    assert [(found.kid, found.algorithm) for found in keys] == [("good", "RS256")]


def test_private_parts_are_not_read() -> None:
    """A provider that publishes a private key by mistake gives us the public half only."""
    members = [key(kind).as_dict(private=True) for kind in ("ES256", "RS256")]
    found = read_key_set(json.dumps({"keys": members}).encode(), LOG)
    assert [entry.key.is_private for entry in found] == [False, False]


def test_the_number_of_keys_is_bounded() -> None:
    """At most MAX_KEYS keys are taken: each is tried for a token without key id."""
    document = json.dumps({"keys": [public("ES256", f"k{i}") for i in range(MAX_KEYS + 50)]}).encode()
    assert len(read_key_set(document, LOG)) == MAX_KEYS


def test_tokens_without_key_id(run: Any) -> None:
    """A token without key id is tried with published keys without one, or with the only one of its algorithm."""

    async def main() -> None:
        async with provider(public("ES256", "e"), public("RS256")) as idp, asking(idp.url) as auth:
            assert await outcome(auth, signed("ES256")) == "alice"
            assert await outcome(auth, signed("RS256")) == "alice"
        async with provider(public("ES256", "e"), public("ES256", "f", 1)) as idp, asking(idp.url) as auth:
            assert await outcome(auth, signed("ES256")) == "TokenRejected"

    run(main())


def test_configured_keys_need_no_provider(run: Any, tmp_path: Path) -> None:
    """A token of a configured key is judged at once, with the provider away; nothing is fetched for it."""
    path = tmp_path / "own.pem"
    path.write_bytes(key("ES256", 0).as_bytes(encoding="PEM", private=False))
    own = [
        JwtKey(kid="own", secret=SECRET),
        JwtKey(kid="file", algorithm="ES256", public_key_file=str(path)),
    ]

    async def main() -> None:
        async with provider() as idp, asking(idp.url, key=own) as auth:
            assert auth.authenticate(signed("ES256", "file"), {}) == Identity("alice")
            for header in ({"alg": "HS256", "kid": "own"}, {"alg": "HS256"}):
                token = joserfc_jwt.encode(header, {"sub": "bob"}, OctKey.import_key(SECRET))
                assert auth.authenticate(token, {}) == Identity("bob")
            assert idp.fetches == 0

    run(main())


def test_close_waits_for_the_fetch(run: Any) -> None:
    """A reload closes the old one: tokens that wait for its fetch are still judged."""

    async def main() -> None:
        async with provider(public("ES256", "e")) as idp, asking(idp.url) as auth:
            idp.release = asyncio.Event()
            asker = asyncio.ensure_future(ask(auth, signed("ES256", "e")))
            await until(lambda: idp.fetches > 0)
            closing = asyncio.ensure_future(auth.close())
            await asyncio.sleep(0)
            assert not closing.done()
            idp.release.set()
            assert await asker == Identity("alice")
            await closing

    run(main())
