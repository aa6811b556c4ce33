"""fastpush.worker.admin_mount: what a page's connection is told, with a broker that answers as a test says."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from fastpush.errors import ConnectionClosed, RequestError
from fastpush.worker import admin_mount
from fastpush.worker.admin_mount import TRACES_MAX, AdminLive, OpenPage

EVENT = [1, 0.0, "broker", "ordered", 7, 0.1, "e", "", ""]


class Page:
    """A page's connection. room: set while it takes more."""

    def __init__(self) -> None:
        self.data = OpenPage("the id of a session")
        self.sent: list[dict[str, Any]] = []
        self.code = 0
        self.room = asyncio.Event()
        self.room.set()
        self.is_waited_for = False

    @property
    def is_open(self) -> bool:
        return not self.code

    def send(self, text: str) -> bool:
        if self.code:
            raise ConnectionClosed
        self.sent.append(json.loads(text))
        return True

    async def drain(self) -> None:
        self.is_waited_for = not self.room.is_set()
        await self.room.wait()
        if self.code:
            raise ConnectionClosed

    def close(self, code: int, reason: str) -> None:
        self.code = code


class Broker:
    """Answers by what is asked. answers: texts are errors. asked: so far."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"hour": {"points": []}, "session": {"csrf": "c"}, "untrace": {}} | answers
        self.asked: list[dict[str, Any]] = []

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        answer: Any = self.answers[question["ask"]]
        if callable(answer):
            answer = await answer(question)
        told: dict[str, Any] = {"error": answer} if isinstance(answer, str) else answer
        return told

    def count(self, name: str) -> int:
        return sum(question["ask"] == name for question in self.asked)


def served(
    broker: Broker, scenario: Callable[[AdminLive, Page], Coroutine[Any, Any, None]], *, opened: bool = True
) -> Page:
    """Run a scenario with a page; return it, closed."""

    async def main() -> Page:
        live, page = AdminLive(cast(Any, None), broker.ask), Page()
        if opened:
            await live.on_open(cast(Any, page), cast(Any, None))
        async with asyncio.timeout(20):
            await scenario(live, page)
        page.code = page.code or 1000
        await live.on_close(cast(Any, page), 1000, "")
        async with asyncio.timeout(20):
            await until(lambda: not page.data.work and not page.data.traces)
        return page

    return asyncio.run(main())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def say(live: AdminLive, page: Page, message: Any) -> Coroutine[Any, Any, None]:
    return live.on_message(cast(Any, page), message if isinstance(message, str) else json.dumps(message))


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be waited for."""
    monkeypatch.setattr(admin_mount, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(admin_mount, "READ_SECONDS", 0.001)


def test_the_hour_comes_first() -> None:
    """A page is told the last hour when it opens, and nothing where the broker cannot tell."""

    async def nothing(live: AdminLive, page: Page) -> None:
        pass

    assert served(Broker(), nothing).sent == [{"hour": []}]
    assert served(Broker(hour="no broker"), nothing).sent == []


def test_session_ends() -> None:
    """A connection is closed with 4501 once its session is refused; while nobody can tell, it stays."""
    broker = Broker(session="no broker")

    async def scenario(live: AdminLive, page: Page) -> None:
        await until(lambda: broker.count("session") > 3)
        assert page.is_open
        broker.answers["session"] = {"refused": "no such session"}
        await until(lambda: not page.is_open)

    assert served(broker, scenario).code == 4501
    assert broker.asked[-1] == {"ask": "session", "session": "the id of a session"}


@pytest.mark.parametrize(
    ("answer", "status"), [({"refused": "no such session"}, 401), ("no broker", 503), ({"csrf": "c"}, 0), ({}, 401)]
)
def test_check(answer: Any, status: int) -> None:
    """A handshake is let in by a session alone: 401 without, 503 where nobody can tell."""

    async def scenario(live: AdminLive, page: Page) -> None:
        try:
            await live.check("the id of a session")
        except RequestError as error:
            assert error.status == status
        else:
            assert not status

    served(Broker(session=answer), scenario, opened=False)


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer in time is as none."""
    monkeypatch.setattr(admin_mount, "ASK_SECONDS", 0.01)

    async def silence(question: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def scenario(live: AdminLive, page: Page) -> None:
        await say(live, page, {"trace": {"user": "jack"}})

    assert served(Broker(trace=silence), scenario).sent[1:] == [{"error": "the broker does not answer"}]


def test_trace() -> None:
    """Events are asked for behind the last one, passed on as they come, and what is left out is told once."""
    answers = iter(
        [
            {"events": [], "left_out": 0, "is_over": False},
            {"events": [EVENT], "left_out": 0, "is_over": False},
            {"events": [], "left_out": 3, "is_over": False},
            {"events": [], "left_out": 3, "is_over": False},
            {"events": [], "left_out": 3, "is_over": True},
        ]
    )

    async def traced(question: dict[str, Any]) -> dict[str, Any]:
        return next(answers)

    broker = Broker(trace={"trace": "t", "ends_seconds": 9}, traced=traced)

    async def scenario(live: AdminLive, page: Page) -> None:
        await say(live, page, {"trace": {"user": "jack"}, "seconds": 5})
        await until(lambda: not page.data.traces)

    started, *told = served(broker, scenario).sent[1:]
    assert started == {"trace": {"id": "t", "ends_seconds": 9}}
    assert [each["traced"] for each in told] == [
        {"id": "t", "events": [EVENT], "left_out": 0, "is_over": False},
        {"id": "t", "events": [], "left_out": 3, "is_over": False},
        {"id": "t", "events": [], "left_out": 3, "is_over": True},
    ]
    assert {"ask": "trace", "user": "jack", "seconds": 5} in broker.asked
    assert [question["after"] for question in broker.asked if question["ask"] == "traced"] == [0, 0, 1, 1, 1]
    assert not broker.count("untrace"), "it was over"


def test_a_page_that_takes_nothing() -> None:
    """While a page does not take what it was told, nothing more is read for it."""
    broker = Broker(
        trace={"trace": "t", "ends_seconds": 9}, traced={"events": [EVENT], "left_out": 0, "is_over": False}
    )

    async def scenario(live: AdminLive, page: Page) -> None:
        await say(live, page, {"trace": {"channel": "room:1"}})
        await until(lambda: len(page.sent) > 5)
        page.room.clear()
        await until(lambda: page.is_waited_for)
        read = broker.count("traced")
        for _ in range(100):
            await asyncio.sleep(0)
        assert broker.count("traced") == read
        page.room.set()
        await until(lambda: broker.count("traced") > read)

    served(broker, scenario)
    assert broker.asked[-1] == {"ask": "untrace", "trace": "t"}, "it ends with its page"


def test_a_trace_is_stopped() -> None:
    """A page stops a trace of its own, and no other; there are so many at once."""
    numbers = iter("abcdef")

    async def trace(question: dict[str, Any]) -> dict[str, Any]:
        return {"trace": next(numbers), "ends_seconds": 9}

    broker = Broker(trace=trace, traced={"events": [], "left_out": 0, "is_over": False})

    async def scenario(live: AdminLive, page: Page) -> None:
        for _ in range(TRACES_MAX + 1):
            await say(live, page, {"trace": {"user": "jack"}})
        assert "stop one first" in page.sent[-1]["error"]
        for number in ("f", "a"):
            await say(live, page, {"untrace": number})
        await until(lambda: list(page.data.traces) == ["b"])
        await say(live, page, {"untrace": "a"})
        await say(live, page, {"trace": {"user": "jack"}})
        assert page.sent[-1]["trace"]["id"] == "c"

    served(broker, scenario)
    assert [question["trace"] for question in broker.asked if question["ask"] == "untrace"] == ["a", "b", "c"]


def test_a_broker_that_is_gone_ends_traces() -> None:
    """A trace that the broker knows nothing of is over."""
    broker = Broker(trace={"trace": "t", "ends_seconds": 9}, traced="no such trace")

    async def scenario(live: AdminLive, page: Page) -> None:
        await say(live, page, {"trace": {"user": "jack"}})
        await until(lambda: not page.data.traces)

    assert served(broker, scenario).sent[-1] == {"traced": {"id": "t", "events": [], "left_out": 0, "is_over": True}}


@pytest.mark.parametrize(
    "message",
    [
        "", "x", "7", "[]", "{}", '{"trace": 1}', '{"trace": {}}', '{"trace": {"user": ""}}', '{"trace": {"user": 1}}',
        '{"trace": {"user": "a", "channel": "b"}}', '{"untrace": 1}', "\udc80",
    ],
)  # fmt: skip
def test_wrong_messages(message: str) -> None:
    """What is no question is told so, and the broker is not asked."""
    broker = Broker()

    async def scenario(live: AdminLive, page: Page) -> None:
        await say(live, page, message)

    assert served(broker, scenario).sent[-1]["error"].startswith("send {")
    assert {question["ask"] for question in broker.asked} <= {"hour", "session"}
