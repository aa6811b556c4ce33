"""What an operator has done, in a worker (worker/operators.py) and in the supervisor, which decides."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
import orjson
import pytest

from fastpush.bus.client import BusUnavailable
from fastpush.config import Admin, Config
from fastpush.protocol import bus, control
from fastpush.supervisor.children import Entries
from fastpush.supervisor.control import CommandError
from fastpush.supervisor.main import Supervisor
from fastpush.worker import operators
from fastpush.worker.operators import Operators
from tests.http_parts import turns


class FakeBus:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.answers: list[Callable[[bytes], None]] = []
        self.failure: Exception | None = None

    def ask(self, kind: int, body: bytes, on_answer: Callable[[bytes], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append((kind, body))
        self.answers.append(on_answer)


class Stage:
    """Operators of a worker, and what they have sent."""

    def __init__(self) -> None:
        self.bus = FakeBus()
        self.sent: list[Any] = []
        self.operators = Operators(cast(Any, self.bus), self.sent.append)

    async def begin(self, work: Coroutine[Any, Any, dict[str, Any]]) -> asyncio.Task[dict[str, Any]]:
        task = asyncio.create_task(work)
        await turns()
        return task

    def acted(self, request: int, reply: dict[str, Any]) -> None:
        self.operators.on_acted(control.Acted(request, msgspec.Raw(orjson.dumps(reply))))


# -- In a worker --------------------------------------------------------------------


def test_a_question_goes_to_the_broker() -> None:
    """As it is, and its answer comes back; others may be asked meanwhile."""

    async def scenario() -> None:
        stage = Stage()
        first = await stage.begin(stage.operators.ask({"ask": "why", "user": "jäck"}))
        second = await stage.begin(stage.operators.ask({"ask": "top"}))
        assert stage.bus.asked == [
            (bus.INSIGHT, '{"ask":"why","user":"jäck"}'.encode()), (bus.INSIGHT, b'{"ask":"top"}'),
        ]  # fmt: skip
        stage.bus.answers[1](b'{"users":[]}')
        assert await second == {"users": []}
        assert not first.done()
        stage.bus.answers[0](b'{"user":"j"}')
        assert await first == {"user": "j"}

    asyncio.run(scenario())


def test_a_question_that_the_bus_does_not_take() -> None:
    """Who asked is told at once."""

    async def scenario() -> None:
        stage = Stage()
        stage.bus.failure = BusUnavailable("the bus to the broker is full")
        assert await stage.operators.ask({"ask": "top"}) == {"error": "the bus to the broker is full"}

    asyncio.run(scenario())


def test_who_does_not_wait_for_an_answer() -> None:
    """An operator may have gone when it comes."""

    async def scenario() -> None:
        stage = Stage()
        task = await stage.begin(stage.operators.ask({"ask": "top"}))
        task.cancel()
        await turns()
        stage.bus.answers[0](b"{}")
        assert task.cancelled()

    asyncio.run(scenario())


def test_a_command_goes_to_the_supervisor() -> None:
    """With a number, by which each reply finds who has asked, once."""

    async def scenario() -> None:
        stage = Stage()
        drain = await stage.begin(stage.operators.act({"command": "drain", "worker": 0}))
        restart = await stage.begin(stage.operators.act({"command": "restart"}))
        one, two = stage.sent
        assert (msgspec.json.decode(one.command), msgspec.json.decode(two.command)) == (
            {"command": "drain", "worker": 0}, {"command": "restart"},
        )  # fmt: skip
        stage.acted(two.request, {"seconds": 5})
        stage.acted(two.request, {"seconds": 6})
        assert await restart == {"seconds": 5}
        assert not drain.done()
        stage.acted(one.request, {"error": "busy", "code": 1})
        assert await drain == {"error": "busy", "code": 1}
        stage.acted(one.request, {})
        stage.acted(77, {})
        assert stage.operators._acts == {}

    asyncio.run(scenario())


def test_a_silent_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked is told after ACT_SECONDS; a reply that comes later is nobody's."""
    monkeypatch.setattr(operators, "ACT_SECONDS", 0.01)

    async def scenario() -> None:
        stage = Stage()
        told = await stage.operators.act({"command": "restart"})
        assert told == {"error": "the supervisor has not answered within 0.01 s"}
        stage.acted(stage.sent[0].request, {})
        assert stage.operators._acts == {}

    asyncio.run(scenario())


# -- In the supervisor --------------------------------------------------------------


class Worker:
    """A child that takes what it is sent."""

    def __init__(self) -> None:
        self.sent: list[control.Acted] = []

    def send(self, message: control.Acted) -> bool:
        self.sent.append(message)
        return True


class Acts:
    """A supervisor that has not started, with commands that note what they are asked."""

    def __init__(self, *, actions: bool) -> None:
        self.done: list[dict[str, Any]] = []
        self.replies: list[Callable[[Any], None]] = []
        self.failure: CommandError | None = None
        config = Config(admin=Admin(actions=actions))
        self.supervisor = Supervisor(config, lambda: config, Entries(cast(Any, None), cast(Any, None)))
        self.supervisor._acts = {"drain": self._note, "restart": self._note}
        self.worker = Worker()

    def _note(self, request: dict[str, Any], reply: Callable[[Any], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(request)
        self.replies.append(reply)

    def act(self, command: Any, number: int = 7) -> list[tuple[int, Any]]:
        """The replies so far."""
        raw = command if isinstance(command, bytes) else orjson.dumps(command)
        self.supervisor._on_act(cast(Any, self.worker), control.Act(number, msgspec.Raw(raw)))
        return self.told()

    def told(self) -> list[tuple[int, Any]]:
        return [(message.request, msgspec.json.decode(message.reply)) for message in self.worker.sent]


NOT_ALLOWED = [(7, {"error": "an administration page may not do this"})]


@pytest.mark.parametrize("command", ["drain", "restart"])
def test_nothing_is_done_with_actions_off(command: str) -> None:
    """[admin] actions is the supervisor's to check: a worker that asks all the same is refused."""
    acts = Acts(actions=False)
    assert acts.act({"command": command, "worker": 0}) == NOT_ALLOWED
    assert acts.done == []


@pytest.mark.parametrize("command", ["reload", "debug", "status", "insight", "fly", None, ["drain"]])
def test_pages_may_not_do_more(command: Any) -> None:
    """Of the commands of the control socket, an administration page has two."""
    acts = Acts(actions=True)
    assert acts.act({"command": command}) == NOT_ALLOWED
    assert acts.done == []


@pytest.mark.parametrize("worker", [{}, {"worker": None}])
def test_a_page_does_not_end_the_server(worker: dict[str, None]) -> None:
    """`drain` without a worker would."""
    acts = Acts(actions=True)
    ((number, told),) = acts.act({"command": "drain", **worker})
    assert (number, told) == (7, {"error": "name the worker: an administration page does not end the server"})
    assert acts.done == []


@pytest.mark.parametrize("command", [{"command": "drain", "worker": 0, "seconds": 5}, {"command": "restart"}])
def test_a_command_is_carried_out(command: dict[str, Any]) -> None:
    """By the supervisor's own command; the worker hears its reply, when that comes."""
    acts = Acts(actions=True)
    assert acts.act(command) == []
    assert acts.done == [command]
    acts.replies[0]({"seconds": 5.0})
    assert acts.told() == [(7, {"seconds": 5.0})]


def test_a_command_that_is_refused() -> None:
    """The worker is told why, as a terminal is."""
    acts = Acts(actions=True)
    acts.failure = CommandError("the server is starting")
    assert acts.act({"command": "restart"}) == [(7, {"error": "the server is starting"})]


@pytest.mark.parametrize("command", [b"[]", b'"drain"', b"{"])
def test_what_is_no_command(command: bytes) -> None:
    """It is answered with an error too."""
    ((number, told),) = Acts(actions=True).act(command)
    assert number == 7 and list(told) == ["error"]
