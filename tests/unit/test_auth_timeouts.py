"""The user's own auth function when it does not come back."""

import asyncio
import inspect
import logging
import re
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastpush.config import Auth, Config, Push, PythonAuth, Server
from fastpush.errors import AuthUnavailable
from fastpush.http.auth import push_auth, token_auth
from fastpush.http.auth.threads import Call, WatchedThreads
from fastpush.metrics import Counters
from tests.server import eventually

TIMEOUT_SECONDS = 0.5  # what is answered within it is never late, unless the machine stands still
IN_TIME = "did not answer in time"


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see the package's log lines, whatever another test set up."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Return an importable, empty module of the user's."""
    made = types.ModuleType("users_slow_auth")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """An event that sync functions wait for; it comes with the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def config(**settings: Any) -> Config:
    name = "users_slow_auth:check"
    python = PythonAuth(callable=name, timeout_seconds=TIMEOUT_SECONDS, **settings)
    return Config(
        server=Server(hang_seconds=1), auth=Auth(mode="python", python=python), push=Push(auth="python", callable=name)
    )


def fields(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.getMessage() == event]


def test_an_async_function_that_takes_too_long_is_cancelled(module: types.ModuleType) -> None:
    """The caller gets "unavailable" after timeout_seconds, the call is cancelled and no longer counted."""
    cancelled = []

    async def check(token: str, headers: dict[str, str]) -> str:
        if token == "fast":
            return token
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(token)
            raise
        return ""

    module.check = check
    counters = Counters()

    async def scenario() -> None:
        auth = token_auth(config(threads=1, queue=1), counters)
        for _ in range(3):
            with pytest.raises(AuthUnavailable, match=IN_TIME):
                await auth.authenticate("slow", {})
        assert (await auth.authenticate("fast", {})).user == "fast"

    asyncio.run(scenario())
    assert cancelled == ["slow"] * 3
    assert (counters.auth_timeouts, counters.auth_stuck_calls) == (3, 0)


def test_a_thread_that_takes_too_long_is_told_once(
    module: types.ModuleType, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets "unavailable" in time; the log says once where the thread is, without the token; the thread
    serves again when it has come back.
    """

    def check(token: str, headers: dict[str, str]) -> str:
        release.wait()
        return token

    module.check = check
    counters = Counters()

    async def scenario() -> None:
        auth = token_auth(config(threads=1, queue=5), counters)
        with pytest.raises(AuthUnavailable, match=IN_TIME):
            await auth.authenticate("a-secret-token", {})
        pool = auth._function._threads
        while not counters.auth_stuck_calls:
            await asyncio.sleep(0.01)
        for _ in range(3):
            pool.look()
        release.set()
        assert (await auth.authenticate("another", {})).user == "another"
        await auth.close()

    asyncio.run(scenario())
    assert (counters.auth_timeouts, counters.auth_stuck_calls) == (1, 1)
    (line,) = fields(caplog, "auth function stuck")
    assert line["reason"] == "a thread does not come back after 0.5 s"
    innermost, outermost = line["stack"].split(" < ")[0], line["stack"].split(" < ")[-1]
    assert re.fullmatch(r".*/threading\.py:\d+ in wait", innermost)
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ in check", outermost)
    assert "a-secret-token" not in caplog.text


def test_a_call_that_nobody_waits_for_is_left_out(module: types.ModuleType, release: threading.Event) -> None:
    """A call whose caller was answered before a thread had time for it is not made, and counts until then."""
    made = []

    def check(token: str, headers: dict[str, str]) -> str:
        made.append(token)
        release.wait()
        return token

    module.check = check

    async def scenario() -> None:
        auth = token_auth(config(threads=1, queue=1))
        first, late = (asyncio.ensure_future(auth.authenticate(name, {})) for name in ("first", "late"))
        for call in (first, late):
            with pytest.raises(AuthUnavailable, match=IN_TIME):
                await call
        with pytest.raises(AuthUnavailable, match="too many calls"):
            await auth.authenticate("one-more", {})
        release.set()
        while auth._function._under_way:
            await asyncio.sleep(0.001)
        assert (await auth.authenticate("next", {})).user == "next"
        await auth.close()

    asyncio.run(scenario())
    assert made == ["first", "next"]


def test_push_functions_have_the_same_time(module: types.ModuleType, release: threading.Event) -> None:
    """[push] callable is bounded by [auth.python] timeout_seconds too, whichever kind of function it is."""

    async def wait(headers: dict[str, str]) -> bool:
        await asyncio.Event().wait()
        return True

    def hand_over(headers: dict[str, str]) -> Awaitable[bool]:
        return wait(headers)

    counters = Counters()

    async def scenario() -> None:
        for function in (wait, lambda headers: release.wait(), hand_over):
            module.check = function
            auth = push_auth(config(), counters)
            with pytest.raises(AuthUnavailable, match="the push auth function did not answer in time"):
                await auth.authorize({})
            await auth.close()

    asyncio.run(scenario())
    assert counters.auth_timeouts == 3


def test_a_coroutine_that_comes_too_late_is_closed(module: types.ModuleType, release: threading.Event) -> None:
    """A function that returns a coroutine when nobody waits for it any more leaves none that was never awaited."""
    made = []

    async def answer() -> bool:
        return True

    def hand_over(headers: dict[str, str]) -> Awaitable[bool]:
        release.wait()
        made.append(answer())
        return made[0]

    async def scenario() -> None:
        module.check = hand_over
        auth = push_auth(config(), Counters())
        with pytest.raises(AuthUnavailable, match=IN_TIME):
            await auth.authorize({})
        release.set()
        await asyncio.to_thread(
            eventually, lambda: made and inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED, what="it is closed"
        )
        await auth.close()

    asyncio.run(scenario())


def test_a_time_out_of_the_function_itself_is_its_failure(module: types.ModuleType) -> None:
    """TimeoutError out of the user's own code is an exception like any other, not our deadline."""

    async def check(token: str, headers: dict[str, str]) -> str:
        raise TimeoutError

    module.check = check
    counters = Counters()

    async def scenario() -> None:
        with pytest.raises(AuthUnavailable, match="the auth function failed"):
            await token_auth(config(), counters).authenticate("t", {})

    asyncio.run(scenario())
    assert counters.auth_timeouts == 0


def test_exhaustion_is_told_to_the_worker(
    module: types.ModuleType, release: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """When every thread has been stuck for [server] hang_seconds the worker hears of it; after a reload it does not."""

    def check(token: str, headers: dict[str, str]) -> str:
        release.wait()
        return token

    module.check = check

    async def scenario() -> None:
        exhausted = asyncio.Event()
        auth = token_auth(config(threads=2), on_exhausted=exhausted.set)
        closed = token_auth(config(threads=1), on_exhausted=lambda: pytest.fail("a closed one"))
        calls = [asyncio.ensure_future(auth.authenticate(name, {})) for name in "ab"]
        calls.append(asyncio.ensure_future(closed.authenticate("c", {})))
        await asyncio.gather(*calls, return_exceptions=True)
        await closed.close()
        async with asyncio.timeout(30):
            await exhausted.wait()

    asyncio.run(scenario())
    (line,) = fields(caplog, "auth function exhausted")
    assert line["reason"] == "each of its 2 threads has been stuck for 1 s"


# --- the threads, by a clock of ours


class Watched:
    """Two threads, stuck after 5 s, and 10 s later exhausted. now: the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stacks: list[str] = []
        self.exhausted = 0
        self.calls: list[threading.Event] = []
        self.threads = WatchedThreads(
            2, "test", timeout_seconds=5, hang_seconds=10,
            on_stuck=self.stacks.append, on_exhausted=self._count, clock=lambda: self.now,
        )  # fmt: skip

    def _count(self) -> None:
        self.exhausted += 1

    def begin(self) -> threading.Event:
        """Occupy one more thread until the event is set."""
        event = threading.Event()
        busy = len(self.threads._since)
        self.threads.submit(Call(event.wait, ()))
        eventually(lambda: len(self.threads._since) == busy + 1)
        self.calls.append(event)
        return event

    def end(self, event: threading.Event) -> None:
        busy = len(self.threads._since)
        event.set()
        eventually(lambda: len(self.threads._since) == busy - 1)

    def look_at(self, now: float) -> tuple[int, int]:
        """Return how many were found stuck, and how often all were for too long."""
        self.now = now
        self.threads.look()
        return len(self.stacks), self.exhausted


def watch(scenario: Callable[[Watched], None]) -> None:
    async def run() -> None:
        watched = Watched()
        try:
            scenario(watched)
        finally:
            for event in watched.calls:
                event.set()
            watched.threads.close()

    asyncio.run(run())


def test_each_stuck_call_is_found_once() -> None:
    """A call counts as stuck after timeout_seconds, once; the same thread's next call counts anew."""

    def scenario(watched: Watched) -> None:
        event = watched.begin()
        assert watched.look_at(4.9) == (0, 0)
        assert watched.look_at(5) == (1, 0)
        assert watched.look_at(6) == (1, 0)
        watched.end(event)
        watched.now = 7
        watched.begin()
        assert watched.look_at(11) == (1, 0)
        assert watched.look_at(12) == (2, 0)

    watch(scenario)


def test_one_free_thread_is_enough() -> None:
    """All threads have to be stuck, the last of them for hang_seconds; one that comes back starts the time anew."""

    def scenario(watched: Watched) -> None:
        watched.begin()
        assert watched.look_at(100) == (1, 0)
        second = watched.begin()
        assert watched.look_at(114.9) == (2, 0)
        watched.end(second)
        assert watched.look_at(115) == (2, 0)
        watched.begin()
        assert watched.look_at(129.9) == (3, 0)
        assert watched.look_at(130) == (3, 1)

    watch(scenario)


def test_exhaustion_ends_the_watch() -> None:
    """It is told once: nothing looks again by itself, as nothing does when no thread is at work."""

    def scenario(watched: Watched) -> None:
        events = [watched.begin(), watched.begin()]
        assert watched.threads._next_look is not None
        assert watched.look_at(15) == (2, 1)
        assert watched.threads._next_look is None
        for event in events:
            watched.end(event)
        watched.begin()
        assert watched.threads._next_look is not None
        watched.end(watched.calls[-1])
        watched.look_at(16)
        assert watched.threads._next_look is None

    watch(scenario)
