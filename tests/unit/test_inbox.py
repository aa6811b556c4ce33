"""fastpush.worker.inbox: what waits for a busy application, and how long its steps hold the loop."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest

from fastpush.config import Limits
from fastpush.worker import inbox as inboxes
from fastpush.worker.inbox import Inbox, timed

ENTRY_BYTES = inboxes._ENTRY_BYTES


def test_first_in_first_out_at_its_real_cost() -> None:
    """Messages come out as they went in; queued_bytes counts each with its overhead, and ends at 0."""
    inbox = Inbox()
    messages: list[str | bytes] = ["a", b"bc", "", "d" * 1000]
    for message in messages:
        inbox.add(message)
    assert (len(inbox), inbox.queued_bytes) == (4, sum(map(sys.getsizeof, messages)) + 4 * ENTRY_BYTES)
    assert [inbox.take() for _ in messages] == messages
    assert (len(inbox), inbox.queued_bytes) == (0, 0)
    inbox.add("x")
    inbox.clear()
    assert (len(inbox), inbox.queued_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        (Limits(receive_queue_messages=10), 10),
        (Limits(receive_queue_bytes=10 * (sys.getsizeof("x" * 100) + ENTRY_BYTES)), 10),
        (Limits(receive_queue_messages=1), 1),
    ],
)
def test_full_at_either_bound_and_room_again_at_half(limits: Limits, most: int) -> None:
    """Reading stops at so many messages, or bytes, and begins again when half of both is free: not at each message."""
    inbox = Inbox()
    for number in range(most):
        assert not inbox.is_full(limits), number
        inbox.add("x" * 100)
    assert inbox.is_full(limits)
    while len(inbox) > most // 2:
        assert not inbox.has_room(limits)
        inbox.take()
    assert inbox.has_room(limits)


def test_a_text_costs_what_it_takes_in_memory() -> None:
    """Not a byte a character: an emoji makes four of each."""
    plain, wide = Inbox(), Inbox()
    plain.add("x" * 1000)
    wide.add("x" * 999 + "\N{GRINNING FACE}")
    assert wide.queued_bytes > plain.queued_bytes + 2900


def test_compressed_beyond_measure() -> None:
    """What one read may hold on top is bounded: twice the bound and a message, or a mebibyte of small ones."""
    inbox, limits = Inbox(), Limits(receive_queue_bytes=1024, message_bytes=65536)
    inbox.add("x" * 1_000_000)
    assert inbox.is_full(limits) and not inbox.is_overfull(limits)
    inbox.add("x" * 100_000)
    assert inbox.is_overfull(limits)


# How long each step takes


class Clock:
    """Moves on only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(inboxes, "perf_counter", lambda: self.now)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_values_go_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is awaited inside comes in, what is returned comes out; each step is told, the waits between are not."""
    clock, told = Clock(monkeypatch), list[float]()

    async def work(answer: "asyncio.Future[int]") -> int:
        clock.now += 0.25
        first = await answer
        clock.now += 0.5
        await asyncio.sleep(0)
        clock.now += 1
        return first + 1

    async def scenario() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(_await(timed(work(answer), told.append)))
        await asyncio.sleep(0)
        clock.now += 1000  # somebody else's
        answer.set_result(41)
        assert await task == 42

    run(scenario())
    assert told == [0.25, 0.5, 1]


async def _await(awaited: Any) -> Any:
    return await awaited


@pytest.mark.parametrize("waits", [False, True])
def test_exceptions_come_out(monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
    """Raised before or behind a wait, with the step that raised it told."""
    clock, told = Clock(monkeypatch), list[float]()

    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        clock.now += 3
        raise ValueError("disk on fire")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="disk on fire"):
            await timed(work(), told.append)

    run(scenario())
    assert told == ([0, 3] if waits else [3])


def test_exceptions_go_in() -> None:
    """What is awaited inside and fails, fails there, and can be caught there."""

    async def work(answer: "asyncio.Future[int]") -> str:
        try:
            await answer
        except OSError as error:
            return str(error)
        return "no error"

    async def scenario() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(answer.set_exception, OSError("gone"))
        assert await timed(work(answer), lambda _: None) == "gone"

    run(scenario())


def test_cancellation_goes_in_and_out() -> None:
    """A cancelled task cancels what it waits for inside, whose cleaning up may wait too."""
    story: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            story.append("cleaned up")

    async def scenario() -> None:
        task = asyncio.ensure_future(_await(timed(work(), lambda _: None)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(scenario())
    assert story == ["cleaned up"]


def test_a_time_limit_reaches_inside() -> None:
    """asyncio.timeout around it, and in it, work as ever."""

    async def work() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "inside"
        return ""

    async def scenario() -> None:
        assert await timed(work(), lambda _: None) == "inside"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await timed(_await(asyncio.Event().wait()), lambda _: None)

    run(scenario())


class Bare:
    """An awaitable whose iterator is no generator: it has neither send nor throw."""

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self.future = future

    def __await__(self) -> Any:
        return Steps(self.future)


class Steps:
    """Waits once."""

    def __init__(self, future: "asyncio.Future[Any]") -> None:
        self.future = future

    def __iter__(self) -> "Steps":
        return self

    def __next__(self) -> Any:
        if self.future.done():
            raise StopIteration(self.future.result())
        self.future._asyncio_future_blocking = True
        return self.future


class Finished:
    """An awaitable of nothing."""

    def __await__(self) -> Generator[Any, None, None]:
        return iter(())  # type: ignore[return-value]


@pytest.mark.parametrize("make", [lambda future: future, Bare, _await])
def test_any_awaitable_will_do(make: Callable[[Any], Any]) -> None:
    """Futures, coroutines and plain iterators, finished ones too; each can be cancelled."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, 7)
        assert await timed(make(future), lambda _: None) == 7
        await timed(Finished(), lambda _: None)
        task = asyncio.ensure_future(_await(timed(make(loop.create_future()), lambda _: None)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
