"""The webhook mode against real servers on loopback."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from aiohttp import web

from fastpush.config import Auth, Config, Webhook
from fastpush.errors import AuthUnavailable, ConfigError, TokenRejected
from fastpush.http.auth import Identity, token_auth
from fastpush.http.auth.webhook import ANSWER_BYTES, WAITING_PER_SLOT, WebhookAuth

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
TOKEN = "the-very-secret-token"


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine on either loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else None

    def runner(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(asyncio.wait_for(main, 20))

    return runner


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Let caplog see the package's log lines; none may hold the token."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    yield
    assert TOKEN not in str([vars(record) for record in caplog.records])


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Backend:
    """A server that counts questions and answers them with `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.questions: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.questions.append(await request.json())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return await self.handler(request)
        finally:
            self.under_way -= 1


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Backend]:
    backend = Backend(handler)
    app = web.Application()
    app.router.add_post("/auth", backend.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}/auth"
    try:
        yield backend
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_serving(handle: Callable[..., Awaitable[None]]) -> AsyncIterator[str]:
    """Serve one raw TCP handler; it must close its writer."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/auth"
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def asking(
    url: str, clock: Clock | None = None, wall: Clock | None = None, **settings: Any
) -> AsyncIterator[WebhookAuth]:
    auth = WebhookAuth(Webhook(url=url, **settings), 512, clock or Clock(0), wall or Clock(1000))
    try:
        yield auth
    finally:
        await auth.close()


async def ask(auth: WebhookAuth, token: str = TOKEN, headers: Mapping[str, str] | None = None) -> Identity:
    answer = auth.authenticate(token, headers or {})
    return answer if isinstance(answer, Identity) else await answer


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds; the test's own time limit ends what never does."""
    while not condition():
        await asyncio.sleep(0)


def replying(body: Any = None, status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return web.Response(status=status, body=text, headers=headers)

    return handler


async def alice(request: web.Request) -> web.Response:
    return web.json_response({"userId": "alice"})


def test_the_backend_is_asked(run: Any) -> None:
    """S0-10: the back-end gets token and the chosen headers only, and names the user and until when."""

    async def main() -> None:
        async with (
            serving(replying({"userId": "alice", "expiresAt": 2000, "more": [1]})) as backend,
            asking(backend.url, headers=["Cookie", "X-Tenant"]) as auth,
        ):
            assert await ask(auth, headers={"cookie": "c=1", "host": "h", "origin": "o"}) == Identity("alice", 2000.0)
            assert backend.questions == [{"token": TOKEN, "headers": {"cookie": "c=1"}}]

    run(main())


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_4xx_rejects(run: Any, status: int) -> None:
    """A 4xx answer says that the token names nobody."""

    async def main() -> None:
        async with serving(replying({"userId": "alice"}, status)) as backend, asking(backend.url) as auth:
            with pytest.raises(TokenRejected, match=str(status)):
                await ask(auth)

    run(main())


def test_the_backend_vouches_for_url_parameters(run: Any) -> None:
    """S2-25: an answer may say which URL parameters the token vouches for, and it is remembered with them."""

    async def main() -> None:
        answer = {"userId": "alice", "params": {"specialKey": "room:7"}}
        async with serving(replying(answer)) as backend, asking(backend.url) as auth:
            for _ in range(2):
                assert await ask(auth) == Identity("alice", None, {"specialKey": "room:7"})
            assert len(backend.questions) == 1

    run(main())


def test_the_backend_names_info_and_channels(run: Any) -> None:
    """An answer may hold what others in a channel see of the user, and what the server subscribes the client to."""

    async def main() -> None:
        answer = {"userId": "alice", "info": {"name": "Alice"}, "channels": ["news", "chat:1", "news"]}
        async with serving(replying(answer)) as backend, asking(backend.url) as auth:
            for _ in range(2):
                assert await ask(auth) == Identity("alice", info={"name": "Alice"}, channels=("news", "chat:1"))
            assert len(backend.questions) == 1

    run(main())


@pytest.mark.parametrize("status", [201, 204, 302, 307, 408, 425, 429, 500, 502, 503])
def test_other_statuses_are_unavailable(run: Any, status: int) -> None:
    """5xx, redirects (not followed), other successes and "not now" are no verdict on the token; never remembered."""

    async def main() -> None:
        handler = replying({"userId": "alice"}, status, **({"Location": "/auth"} if status in (302, 307) else {}))
        async with serving(handler) as backend, asking(backend.url) as auth:
            for asked in (1, 2):
                with pytest.raises(AuthUnavailable, match=str(status)):
                    await ask(auth)
                assert len(backend.questions) == asked

    run(main())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"alice",
        b"[]",
        b"{}",
        b'{"userId":7}',
        b'{"userId":null}',
        b'{"userId":"a","expiresAt":"soon"}',
        b'{"userId":"a","expiresAt":true}',
        b'{"userId":"a","expiresAt":1e999}',
        b'{"userId":"a","params":[]}',
        b'{"userId":"a","params":{"room":7}}',
        json.dumps({"userId": "a", "params": {str(number): "" for number in range(33)}}).encode(),
        b'{"userId":"a","channels":"news"}',
        b'{"userId":"a","channels":[7]}',
        b'{"userId":"a","channels":["\\ud800"]}',
        b'{"userId":"a","info":"\\ud800"}',
        b'{"userId":"\xff"}',
        b'{"userId":"a","x":' + b"[" * 20000,
    ],
)
def test_bad_answers_are_unavailable(run: Any, body: bytes) -> None:
    """A 200 that is not the agreed JSON is a fault of the back-end, not of the client."""

    async def main() -> None:
        async with serving(replying(body)) as backend, asking(backend.url) as auth:
            with pytest.raises(AuthUnavailable, match="did not answer"):
                await ask(auth)

    run(main())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"userId": ""}, "empty user"),
        ({"userId": "x" * 513}, "more than 512 bytes"),
        ({"userId": "alice", "expiresAt": 1000}, "expired at 1970-01-01T00:16:40Z"),
    ],
)
def test_answers_that_name_nobody(run: Any, answer: Any, reason: str) -> None:
    """S0-15: an empty or too long user, or one whose time is over, is a rejection."""

    async def main() -> None:
        async with serving(replying(answer)) as backend, asking(backend.url) as auth:
            with pytest.raises(TokenRejected, match=reason):
                await ask(auth)

    run(main())


def test_nobody_listening(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is "unavailable"; reason and log name neither token nor URL."""

    async def main() -> None:
        async with raw_serving(close_at_once) as url:
            pass  # the port is free again
        async with asking(url.replace("http://", "http://user:pass-word@") + "?key=hidden-key") as auth:
            with pytest.raises(AuthUnavailable) as caught:
                await ask(auth)
        assert str(caught.value) == "the auth webhook cannot be reached"
        assert caplog.records[0].fields == {"reason": "ClientConnectorError: Connection refused"}
        for hidden in ("pass-word", "hidden-key", "127.0.0.1"):
            assert hidden not in str([vars(record) for record in caplog.records])

    run(main())


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def test_lost_connections_are_unavailable(run: Any) -> None:
    """A server that hangs up without an answer is "unavailable"."""

    async def main() -> None:
        async with raw_serving(close_at_once) as url, asking(url) as auth:
            with pytest.raises(AuthUnavailable, match="cannot be reached"):
                await ask(auth)

    run(main())


def test_a_stale_kept_connection_is_replaced(run: Any) -> None:
    """A server that ends a kept-alive connection as the next question arrives is asked once more."""
    connections = 0

    async def one_answer_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"}}")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"userId":"alice"}')
        await reader.read(1)  # the next question is there
        writer.close()

    async def main() -> None:
        async with raw_serving(one_answer_each) as url, asking(url) as auth:
            assert await ask(auth, "one") == Identity("alice")
            assert await ask(auth, "two") == Identity("alice")
            assert connections == 2

    run(main())


def test_a_silent_backend_times_out(run: Any) -> None:
    """No answer within timeout_seconds is "unavailable"."""

    async def main() -> None:
        never = asyncio.Event()

        async def silent(request: web.Request) -> web.Response:
            await never.wait()
            return web.Response()

        async with serving(silent) as backend, asking(backend.url, timeout_seconds=0.1) as auth:
            with pytest.raises(AuthUnavailable, match="in time"):
                await ask(auth)
            never.set()

    run(main())


def test_endless_answers_are_cut(run: Any) -> None:
    """An answer beyond 64 KiB is not read on: unavailable, and the connection is closed."""

    async def main() -> None:
        cut = asyncio.Event()

        async def endless(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            try:
                while True:
                    await response.write(b"x" * ANSWER_BYTES)
            except ConnectionError:
                cut.set()
                raise

        async with serving(endless) as backend, asking(backend.url) as auth:
            with pytest.raises(AuthUnavailable, match="cannot be reached"):
                await ask(auth)
            await cut.wait()

    run(main())


def test_compressed_answers_are_not_inflated(run: Any) -> None:
    """A compressed answer, which nobody asked for, is not unpacked."""

    async def main() -> None:
        async def bomb(request: web.Request) -> web.Response:
            response = web.json_response({"userId": "a", "pad": "x" * 10_000})
            response.enable_compression(web.ContentCoding.gzip)
            assert request.headers["Accept-Encoding"] == "identity"
            return response

        async with serving(bomb) as backend, asking(backend.url) as auth:
            with pytest.raises(AuthUnavailable):
                await ask(auth)

    run(main())


def test_equal_questions_share_one_request(run: Any) -> None:
    """Single flight: 50 equal questions are one request; one asker who leaves takes it from nobody."""

    async def main() -> None:
        release = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            await release.wait()
            return await alice(request)

        async with serving(slow) as backend, asking(backend.url) as auth:
            askers = [asyncio.ensure_future(ask(auth)) for _ in range(50)]
            await until(lambda: backend.under_way == 1)
            askers[0].cancel()  # the one that began it
            with pytest.raises(asyncio.CancelledError):
                await askers[0]
            release.set()
            assert set(await asyncio.gather(*askers[1:])) == {Identity("alice")}
            assert len(backend.questions) == 1

    run(main())


def test_an_answer_nobody_waits_for_is_remembered(run: Any) -> None:
    """When all askers have left, the request still ends in order and its answer serves the next."""

    async def main() -> None:
        release = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            await release.wait()
            return await alice(request)

        async with serving(slow) as backend, asking(backend.url) as auth:
            asker = asyncio.ensure_future(ask(auth))
            await until(lambda: backend.under_way == 1)
            asker.cancel()
            release.set()
            await until(lambda: isinstance(known(auth), Identity))
            assert len(backend.questions) == 1

    def known(auth: WebhookAuth) -> Any:
        answer = auth.authenticate(TOKEN, {})
        if not isinstance(answer, Identity):
            answer.close()
        return answer

    run(main())


def test_requests_under_way_and_waiting_are_bounded(run: Any) -> None:
    """At most `concurrency` requests run, ten times as many wait, and one more is unavailable at once."""

    async def main() -> None:
        release = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            await release.wait()
            return web.json_response({"userId": (await request.json())["token"]})

        async with serving(slow) as backend, asking(backend.url, concurrency=2) as auth:
            most = 2 * (1 + WAITING_PER_SLOT)
            askers = [asyncio.ensure_future(ask(auth, f"u{i}")) for i in range(most)]
            await until(lambda: backend.under_way == 2)
            with pytest.raises(AuthUnavailable, match="too many questions"):
                await ask(auth, "one-more")
            same = asyncio.ensure_future(ask(auth, "u0"))  # needs no request of its own
            release.set()
            assert [found.user for found in await asyncio.gather(*askers)] == [f"u{i}" for i in range(most)]
            assert await same == Identity("u0")
            assert backend.most_under_way == 2

    run(main())


def test_waiting_counts_for_the_time_limit(run: Any) -> None:
    """A question that waits for its turn ends within timeout_seconds too."""

    async def main() -> None:
        never = asyncio.Event()

        async def silent(request: web.Request) -> web.Response:
            await never.wait()
            return web.Response()

        async with serving(silent) as backend, asking(backend.url, concurrency=1, timeout_seconds=0.1) as auth:
            results = await asyncio.gather(*(ask(auth, f"u{i}") for i in range(5)), return_exceptions=True)
            assert [str(result) for result in results] == ["the auth webhook did not answer in time"] * 5
            never.set()

    run(main())


def test_answers_are_remembered_for_a_while(run: Any) -> None:
    """Good and bad answers serve at once, without I/O, for cache_seconds; other headers are another question."""

    async def main() -> None:
        clock = Clock(0)

        async def judge(request: web.Request) -> web.Response:
            question = await request.json()
            return web.json_response({"userId": "alice"}, status=200 if question["token"] == TOKEN else 403)

        async with serving(judge) as backend, asking(backend.url, clock, cache_seconds=10, headers=["cookie"]) as auth:
            assert await ask(auth) == Identity("alice")
            with pytest.raises(TokenRejected):
                await ask(auth, "bad")
            clock.now = 9.9
            assert auth.authenticate(TOKEN, {"x-other": "1"}) == Identity("alice")
            with pytest.raises(TokenRejected):
                auth.authenticate("bad", {})
            assert len(backend.questions) == 2
            await ask(auth, headers={"cookie": "c=1"})
            assert len(backend.questions) == 3
            clock.now = 10
            await ask(auth)
            with pytest.raises(TokenRejected):
                await ask(auth, "bad")
            assert len(backend.questions) == 5

    run(main())


def test_nothing_is_remembered_beyond_its_own_end(run: Any) -> None:
    """An answer with expiresAt is not used from that second on."""

    async def main() -> None:
        wall = Clock(1000)
        async with (
            serving(replying({"userId": "alice", "expiresAt": 1005})) as backend,
            asking(backend.url, wall=wall) as auth,
        ):
            await ask(auth)
            wall.now = 1004
            assert auth.authenticate(TOKEN, {}) == Identity("alice", 1005.0)
            wall.now = 1005
            with pytest.raises(TokenRejected, match="expired"):
                await ask(auth)
            assert len(backend.questions) == 2

    run(main())


def test_memory_is_bounded_and_holds_no_token(run: Any) -> None:
    """At most cache_entries answers are kept, under digests: no plain token stays behind."""

    async def main() -> None:
        async with serving(alice) as backend, asking(backend.url, cache_entries=5) as auth:
            for i in range(20):
                await ask(auth, f"{TOKEN}-{i}")
            assert len(auth._answers) == 5
            assert not auth._under_way
            assert TOKEN not in repr(vars(auth._answers))

    run(main())


def test_the_environment_sets_no_proxy(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables of the environment do not send tokens elsewhere."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    async def main() -> None:
        async with serving(alice) as backend, asking(backend.url) as auth:
            assert await ask(auth) == Identity("alice")

    run(main())


def test_close_lets_questions_finish(run: Any) -> None:
    """A reload closes the old one: what it asked is still answered, new questions are refused."""

    async def main() -> None:
        release = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            await release.wait()
            return await alice(request)

        async with serving(slow) as backend, asking(backend.url) as auth:
            asker = asyncio.ensure_future(ask(auth))
            await until(lambda: backend.under_way == 1)
            closing = asyncio.ensure_future(auth.close())
            await asyncio.sleep(0)
            with pytest.raises(AuthUnavailable, match="reloaded"):
                await ask(auth, "late")
            assert not closing.done()
            release.set()
            assert await asker == Identity("alice")
            await closing

    run(main())


def test_unspellable_tokens_are_rejected(run: Any) -> None:
    """A token or chosen header that UTF-8 cannot spell is rejected without asking; so is a huge token."""

    async def main() -> None:
        async with asking("http://127.0.0.1:9/", headers=["cookie"]) as auth:
            for token, headers in (("\ud800", {}), ("t", {"cookie": "\udcff"}), ("x" * 8193, {})):
                with pytest.raises(TokenRejected):
                    auth.authenticate(token, headers)

    run(main())


def test_many_bad_tokens_leave_few_log_lines(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A back-end that is away is logged once in a while, not once a question."""

    async def main() -> None:
        async with serving(replying({}, 500)) as backend, asking(backend.url) as auth:
            results = await asyncio.gather(*(ask(auth, f"u{i}") for i in range(100)), return_exceptions=True)
            assert {type(result) for result in results} == {AuthUnavailable}
            assert len([record for record in caplog.records if record.name.startswith("fastpush")]) == 1

    run(main())


def test_the_config_makes_it() -> None:
    """[auth] mode = "webhook" gives this mode; without a URL it is a ConfigError."""
    assert isinstance(token_auth(Config(auth=Auth(mode="webhook", webhook=Webhook(url="http://h/")))), WebhookAuth)
    with pytest.raises(ConfigError, match="url"):
        token_auth(Config(auth=Auth(mode="webhook")))
