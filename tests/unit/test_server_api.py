"""fastpush.channels.api: what becomes of requests when the broker or a worker does not answer, or answers late."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from fastpush.bus.client import BusUnavailable, OnAnswer, OnResult
from fastpush.channels.api import BROADCAST_BYTES, CHANNELS_MAX, COMMANDS_AT_ONCE, ServerApi
from fastpush.channels.namespaces import Namespaces
from fastpush.channels.service import ChannelService
from fastpush.config import Limits, Namespace
from fastpush.errors import RequestError
from fastpush.http.push import PushService, Reply
from fastpush.metrics import Counters
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Gathered, Position, Status

GOOD = {"channel": "room:1", "data": 1}


class Bus:
    """Keeps what is asked; `failure`: why it takes nothing."""

    def __init__(self) -> None:
        self.failure = ""
        self.published: list[tuple[bytes, OnResult, bytes]] = []
        self.asked: list[tuple[list[Any], OnAnswer]] = []
        self.ordered: list[tuple[list[Any], OnResult]] = []

    def _check(self) -> None:
        if self.failure:
            raise BusUnavailable(self.failure)

    def publish(self, body: bytes, on_result: OnResult, once: bytes = b"") -> None:
        self._check()
        self.published.append((body, on_result, once))

    def ask(self, kind: int, body: bytes, on_answer: OnAnswer) -> None:
        self._check()
        self.asked.append((orjson.loads(body), on_answer))

    def order(self, body: bytes, on_result: OnResult) -> None:
        self._check()
        self.ordered.append((orjson.loads(body), on_result))

    def gathered(self, *found: Any, missing: int = 0) -> None:
        """Answer the only question."""
        ((_, on_answer),) = self.asked
        on_answer(bus.pack(Gathered([orjson.dumps(each) for each in found], missing)))


class Back:
    """The API on a Bus, and what it has replied to requests without aiohttp."""

    def __init__(self, **limits: int) -> None:
        self.bus = Bus()
        self.replies: list[Reply | RequestError] = []
        self.counters = Counters()
        nobody = cast(Any, None)
        pushes = PushService(Limits(**limits), self.counters, publish=nobody, drop=nobody, remember=nobody)
        service = ChannelService(cast(Any, self.bus), Limits(**limits), self.counters, lambda *_: None)
        clients = SimpleNamespace(service=service, namespaces=Namespaces({"room": Namespace()}), call=self._call)
        self.api = ServerApi(cast(Any, clients), pushes.admits)

    async def _call(self, connection: None, method: str, data: bytes) -> bytes:
        raise RuntimeError(method)

    def ask(self, method: str, **body: Any) -> None:
        """Make a request to publish or broadcast; what is raised is a reply."""
        endpoint = getattr(self.api, method)
        try:
            endpoint(orjson.dumps(body), self.replies.append, {})
        except RequestError as error:
            self.replies.append(error)

    def reply(self) -> Any:
        """The JSON of the only reply."""
        (reply,) = self.replies
        assert isinstance(reply, Reply)
        return json.loads(reply.body)

    def respond(self, method: str, answer: Callable[[], object], /, **body: Any) -> Any:
        """The JSON of a reply; `answer` is called once the request waits."""

        async def main() -> Reply:
            task = asyncio.create_task(self.api.respond(method, orjson.dumps(body), {}))
            for _ in range(3):
                await asyncio.sleep(0)
            answer()
            return await asyncio.wait_for(task, 20)

        return json.loads(asyncio.run(main()).body)


def done(on_result: OnResult, *, sent: int = 1, unconfirmed: int = 0, position: Position = NO_POSITION) -> None:
    on_result(Status.DONE, sent, unconfirmed, position)


def test_reply_says_what_is_missing() -> None:
    """A publication that a worker has not counted is told with `unconfirmed`, one that is kept with its place."""
    back = Back()
    back.ask("publish", **GOOD, idempotency_key="k")
    ((body, on_result, once),) = back.bus.published
    assert bus.decode_publication(body).keys == [b"croom:1"] and once == b"croom:1\0k"
    done(on_result, sent=3, unconfirmed=1, position=Position(7, 255))
    assert back.reply() == {"result": {"offset": 7, "epoch": "ff", "sent": 3, "unconfirmed": 1}}


@pytest.mark.parametrize(("status", "http_status"), [(Status.NOT_READY, 503), (Status.UNKNOWN, 504)])
def test_refused_by_the_broker(status: Status, http_status: int) -> None:
    """What the broker refuses or nobody knows is 503 or 504 alone, and error 100 in a broadcast."""
    back = Back()
    back.ask("publish", **GOOD)
    back.bus.published.pop()[1](status, 0, 0, NO_POSITION)
    (error,) = back.replies
    assert isinstance(error, RequestError) and error.status == http_status
    back.replies.clear()
    back.ask("broadcast", channels=["room:1"], data=1)
    back.bus.published.pop()[1](status, 0, 0, NO_POSITION)
    assert back.reply()["result"]["responses"][0]["error"]["code"] == 100


def test_no_broker() -> None:
    """Without a broker a request is 503, a command of a batch error 100, and each of 10,000 channels error 100."""
    back = Back()
    back.bus.failure = "the broker is being restarted"
    for request in (GOOD, {**GOOD, "exclude": "x"}):
        back.ask("publish", **request)
        error = back.replies.pop()
        assert isinstance(error, RequestError) and error.status == 503
    with pytest.raises(RequestError, match="nothing was done"):
        back.respond("disconnect", list, user="u")
    (reply,) = back.respond("batch", list, commands=[{"publish": GOOD}])["replies"]
    assert reply["error"]["code"] == 100 and "nobody received it" in reply["error"]["message"]
    back.ask("broadcast", channels=["room:1"] * 10_000, data=1)
    codes = {each["error"]["code"] for each in back.reply()["result"]["responses"]}
    assert codes == {100}


def test_broadcast_is_paced() -> None:
    """Of a broadcast no more than BROADCAST_BYTES are under way; replies keep the order of channels."""
    back = Back(send_queue_bytes=4 * BROADCAST_BYTES)
    channels = [f"room:{number}" for number in range(9)]
    back.ask("broadcast", channels=channels, data="x" * (BROADCAST_BYTES // 3))
    for left in range(9, 0, -1):
        assert len(back.bus.published) == min(3, left) and not back.replies
        body, on_result, _ = back.bus.published.pop()
        done(on_result, sent=int(bus.decode_publication(body).keys[0].rpartition(b":")[2]))
    assert [each["result"]["sent"] for each in back.reply()["result"]["responses"]] == list(range(9))


def test_exclude_is_asked_for_first() -> None:
    """Nothing is published before every worker has said whether it has the excluded connection."""
    back = Back()
    back.ask("publish", **GOOD, exclude="a")
    assert not back.bus.published and back.bus.asked[0][0] == ["number", "a"]
    back.bus.gathered(0, 77)
    ((body, on_result, _),) = back.bus.published
    assert bus.decode_publication(body).spared == 77
    done(on_result)
    assert back.reply() == {"result": {"sent": 1}}


def test_exclude_that_nobody_can_tell() -> None:
    """If a worker that may have the excluded connection does not answer, nothing is published; known it goes out."""
    back = Back()
    back.ask("publish", **GOOD, exclude="a")
    back.bus.gathered(0, missing=1)
    (error,) = back.replies
    assert isinstance(error, RequestError) and error.status == 503 and not back.bus.published
    other = Back()
    other.ask("publish", **GOOD, exclude="a")
    other.bus.gathered(5, missing=1)
    assert len(other.bus.published) == 1


def test_broker_lost_meanwhile() -> None:
    """A publication whose excluded connection was found, and then the broker is away, is 503."""
    back = Back()
    back.ask("publish", **GOOD, exclude="a")
    back.bus.failure = "the broker is being restarted"
    back.bus.gathered(5)
    (error,) = back.replies
    assert isinstance(error, RequestError) and error.status == 503


@pytest.mark.parametrize(
    ("method", "found", "result"),
    [
        ("channels", [{"room:1": 2}, {"room:1": 1, "a": 1}], {"room:1": {"num_clients": 3}, "a": {"num_clients": 1}}),
        ("connections", [{"x": {}}, {"y": {}}], {"x": {}, "y": {}}),
    ],
)
def test_workers_that_do_not_answer(method: str, found: list[Any], result: Any) -> None:
    """What is gathered without some of the workers says how many these are."""
    back = Back()
    reply = back.respond(method, lambda: back.bus.gathered(*found, missing=1), user="u")
    assert reply == {"result": {method: result, "unconfirmed": 1}}
    back = Back()
    assert "unconfirmed" not in back.respond(method, lambda: back.bus.gathered(*found), user="u")["result"]


def test_too_many_channels() -> None:
    """More channels than an answer holds are error 106, never a part of them."""
    back = Back()
    found = {f"room:{number}": 1 for number in range(CHANNELS_MAX + 1)}
    assert back.respond("channels", lambda: back.bus.gathered(found))["error"]["code"] == 106


def test_order_that_is_not_confirmed() -> None:
    """An order says with how many connections it was done, and how many workers have not said it."""
    back = Back()

    def answer() -> None:
        ((order, on_result),) = back.bus.ordered
        assert order == ["unsubscribe", "u", "", "room:1"]
        done(on_result, sent=2, unconfirmed=1)

    reply = back.respond("unsubscribe", answer, user="u", channel="room:1")
    assert reply == {"result": {"connections": 2, "unconfirmed": 1}}


def test_parallel_commands() -> None:
    """Commands of a parallel batch are all under way before the first is answered; otherwise one is at a time."""
    commands = [{"publish": GOOD}] * 5

    def answer(back: Back, expected: int) -> None:
        assert len(back.bus.published) == expected
        back.bus.failure = "gone"
        for _, on_result, _ in back.bus.published:
            done(on_result)

    one, all_of_them = Back(), Back()
    replies = all_of_them.respond("batch", lambda: answer(all_of_them, 5), commands=commands, parallel=True)
    assert replies == {"replies": [{"publish": {"sent": 1}}] * 5}
    first, *others = one.respond("batch", lambda: answer(one, 1), commands=commands)["replies"]
    assert first == {"publish": {"sent": 1}} and {each["error"]["code"] for each in others} == {100}


def test_parallel_commands_are_bounded() -> None:
    """Of a parallel batch only so many commands are under way at once."""
    back = Back()

    def answer() -> None:
        assert len(back.bus.published) == COMMANDS_AT_ONCE
        back.bus.failure = "gone"
        for _, on_result, _ in back.bus.published:
            done(on_result)

    commands = [{"publish": GOOD}] * (COMMANDS_AT_ONCE + 1)
    *replies, last = back.respond("batch", answer, commands=commands, parallel=True)["replies"]
    assert replies == [{"publish": {"sent": 1}}] * COMMANDS_AT_ONCE
    assert last["error"]["code"] == 100


@pytest.mark.parametrize("parallel", [False, True])
def test_long_results_end_a_batch(monkeypatch: pytest.MonkeyPatch, *, parallel: bool) -> None:
    """Behind more results than a reply may hold no command is performed: it is answered with error 106."""
    back = Back()
    calls: list[str] = []

    async def call(connection: None, method: str, data: bytes) -> bytes:
        calls.append(method)
        return b"1" * 9

    monkeypatch.setattr("fastpush.channels.api.RESULTS_BYTES", 20)
    monkeypatch.setattr("fastpush.channels.api.COMMANDS_AT_ONCE", 1)
    monkeypatch.setattr(cast(Any, back.api)._clients, "call", call)
    replies = back.respond("batch", list, commands=[{"rpc": {"method": "x"}}] * 4, parallel=parallel)["replies"]
    assert [each.get("error", {}).get("code") for each in replies] == [None, None, 106, 106]
    assert len(calls) == 2


def test_pushes_a_second() -> None:
    """Behind [limits] pushes_per_second a publish, and a whole broadcast, is error 111, as a command of a batch too."""
    back = Back(pushes_per_second=1)
    back.ask("publish", **GOOD)
    for method, request in (("publish", GOOD), ("broadcast", {"channels": ["room:1", "room:2"], "data": 1})):
        back.ask(method, **request)
        assert back.reply()["error"]["code"] == 111
        back.replies.clear()
    replies = back.respond("batch", list, commands=[{"publish": GOOD}])["replies"]
    assert replies[0]["error"]["code"] == 111
    assert len(back.bus.published) == 1 and back.counters.publications_refused == 3


def test_handler_that_fails() -> None:
    """A failure of the handler is error 100 without its text."""
    assert Back().respond("rpc", list, method="secret") == {"error": {"code": 100, "message": "internal server error"}}
