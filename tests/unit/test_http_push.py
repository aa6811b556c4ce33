"""fastpush.http.push: from a body to the broker, and from its answer to a reply; internal failures on the way."""

import asyncio
import json
import logging
from typing import Any

import pytest

from fastpush.config import Limits
from fastpush.errors import RequestError, not_found, unavailable
from fastpush.http.push import Outcome, PushService, header_text, internal_error, render
from fastpush.metrics import Counters
from fastpush.protocol.bus import NO_POSITION, Status, decode_publication
from fastpush.protocol.push import user_key
from tests.http_parts import Broker, http_parts, turns
from tests.wire import push, request

BODY = {"userId": "jack", "event": "e", "message": "hello"}


def service(broker: Broker, counters: Counters | None = None, **limits: int) -> PushService:
    return PushService(
        Limits(**limits), counters or Counters(), publish=broker.ask, drop=broker.ask, remember=lambda *_: None
    )


def waiting_broker() -> Broker:
    broker = Broker()
    broker.answer = None
    return broker


def ask(endpoint: Any, body: Any) -> list[Outcome | RequestError]:
    """Outcomes so far; what is raised is one too."""
    outcomes: list[Outcome | RequestError] = []
    try:
        endpoint(body if isinstance(body, bytes) else json.dumps(body).encode(), outcomes.append)
    except RequestError as error:
        outcomes.append(error)
    return outcomes


def test_push_becomes_one_publication() -> None:
    """S0-21: one user is one routing key; a list is one publication with a key for each user, once."""
    broker = waiting_broker()
    assert ask(service(broker).push, BODY) == []
    ask(service(broker).push, BODY | {"userId": ["jack", "jill", "jack"]})
    one, two = (decode_publication(body) for body in broker.taken)
    assert len(one.keys) == 1 and len(two.keys) == 2 and two.keys[0] == one.keys[0]
    assert one.event == b"e" and one.frame == b"\x81\x05hello"


def test_what_was_taken_is_remembered() -> None:
    """With its keys, its size and what became of it; what was refused or got lost is not."""
    broker = waiting_broker()
    remembered: list[tuple[Any, ...]] = []
    pushes = PushService(
        Limits(), Counters(), publish=broker.ask, drop=broker.ask, remember=lambda *told: remembered.append(told)
    )
    ask(pushes.push, BODY | {"userId": ["jack", "jill"]})
    ask(pushes.push_all, {"event": "e", "message": "hello"})
    ask(pushes.push, BODY | {"event": 7})
    for status in (Status.NOT_READY, Status.OVERLOADED, Status.UNKNOWN):
        ask(pushes.push, BODY)
        broker.waiting.pop()(status, 0, 0, NO_POSITION)
    assert remembered == []
    broker.waiting[1](Status.DONE, 0, 1, NO_POSITION)
    broker.waiting[0](Status.DONE, 3, 0, NO_POSITION)
    taken = [told[4] for told in remembered]
    assert taken[0] > taken[1] > 0
    assert remembered == [
        ("push", [b"*"], "e", b"hello", taken[0], 0, 1),
        ("push", [user_key("jack", "e"), user_key("jill", "e")], "e", b"hello", taken[1], 3, 0),
    ]


def test_a_refused_push_says_whom_it_was_for() -> None:
    """As far as the request was read; one that the broker refused, too."""
    broker = waiting_broker()
    (wrong,) = ask(service(broker, pushes_per_second=1).push, BODY | {"event": 7})
    assert isinstance(wrong, RequestError) and (wrong.users, wrong.event) == ((), "")
    limited = service(broker, pushes_per_second=1)
    ask(limited.push, BODY)
    (refused,) = ask(limited.push, BODY | {"userId": ["jack", "jill"]})
    assert isinstance(refused, RequestError)
    assert (refused.status, refused.users, refused.event) == (429, ("jack", "jill"), "e")
    outcomes = ask(service(broker).push, BODY)
    broker.waiting.pop()(Status.OVERLOADED, 0, 0, NO_POSITION)
    (late,) = outcomes
    assert isinstance(late, RequestError) and (late.users, late.event) == (("jack",), "e")
    outcomes = ask(service(broker).push_all, {"event": "e", "message": "hello"})
    broker.waiting.pop()(Status.OVERLOADED, 0, 0, NO_POSITION)
    assert isinstance(outcomes[0], RequestError) and (outcomes[0].users, outcomes[0].event) == ((), "e")


@pytest.mark.parametrize(
    ("result", "status", "counter"),
    [
        ((Status.DONE, 3, 0), 200, "pushes_delivered"),
        ((Status.DONE, 0, 0), 200, "pushes_delivered"),
        ((Status.DONE, 2, 1), 200, "pushes_unconfirmed"),
        ((Status.NOT_READY, 0, 0), 503, "pushes_unavailable"),
        ((Status.OVERLOADED, 0, 0), 503, "pushes_unavailable"),
        ((Status.UNKNOWN, 0, 0), 504, "pushes_unknown"),
    ],
)
def test_answers_of_the_broker(result: tuple[int, int, int], status: int, counter: str) -> None:
    """S0-25, S0-26: each answer has its status and is counted once, under one name."""
    broker, counters = waiting_broker(), Counters()
    outcomes = ask(service(broker, counters).push, BODY)
    broker.waiting.pop()(*result, NO_POSITION)
    (outcome,) = outcomes
    assert (200 if isinstance(outcome, Outcome) else outcome.status) == status
    counts = {name: count for name, count in counters.snapshot().items() if count}
    assert {name: count for name, count in counts.items() if not isinstance(count, list)} == {counter: 1}
    if isinstance(outcome, Outcome):
        assert outcome == Outcome(*result[1:])


def test_refusals_are_counted() -> None:
    """What is refused before the broker sees it is counted as refused, and 503 as unavailable."""
    broker, counters = waiting_broker(), Counters()
    (error,) = ask(service(broker, counters).push, b"{")
    assert isinstance(error, RequestError) and error.status == 400
    broker.failure = unavailable("no broker")
    ask(service(broker, counters).push_all, {"event": "e", "message": "m"})
    assert (counters.pushes_refused, counters.pushes_unavailable) == (1, 1)


def test_pushes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that are well-formed so many a second are taken, push and push all and the server API together."""
    broker, counters, clock = waiting_broker(), Counters(), iter((100.0, *[200.0] * 4, 201.0))
    monkeypatch.setattr("fastpush.http.push.monotonic", lambda: next(clock))
    pushes = service(broker, counters, pushes_per_second=3)
    ask(pushes.push, b"{")
    ask(pushes.push, BODY)
    ask(pushes.push_all, {"event": "e", "message": "m"})
    assert pushes.admits()
    (error,) = ask(pushes.push, BODY)
    assert isinstance(error, RequestError) and (error.status, error.code) == (429, "too_many_pushes")
    assert error.headers == (("Retry-After", "1"),)
    assert len(broker.taken) == 2 and counters.pushes_refused == 2
    ask(pushes.push, BODY)
    assert len(broker.taken) == 3, "a second later"


@pytest.mark.parametrize("size", [900, 1000, 5000])
def test_message_must_fit_a_send_queue(size: int) -> None:
    """A message that a send queue of send_queue_bytes could not hold is 413; one that just fits is taken."""
    broker = waiting_broker()
    outcomes = ask(service(broker, send_queue_bytes=1024).push, BODY | {"message": "m" * size})
    assert bool(broker.taken) == (size == 900)
    assert [error.status for error in outcomes if isinstance(error, RequestError)] == ([] if size == 900 else [413])


def test_too_many_users() -> None:
    """push_users bounds a list, and no list is longer than one bus message can carry keys."""
    users = [f"u{number}" for number in range(70000)]
    (error,) = ask(service(waiting_broker()).push, BODY | {"userId": users})
    assert isinstance(error, RequestError) and error.status == 400
    (error,) = ask(service(waiting_broker(), push_users=100000).push, BODY | {"userId": users})
    assert isinstance(error, RequestError) and (error.status, "65535" in error.reason) == (400, True)


def test_drop() -> None:
    """S0-37: user and event go to the broker, null for all events, with what clients are told; the count comes back."""
    broker = waiting_broker()
    outcomes = ask(service(broker).drop, {"userId": "jack"})
    broker.waiting.pop()(Status.DONE, 4, 0, NO_POSITION)
    ask(service(broker).drop, {"userId": "jack", "event": "e"})
    assert outcomes == [Outcome(4, 0)]
    told = [1008, "dropped by the back-end"]
    assert [json.loads(body) for body in broker.taken] == [
        ["close_user", "jack", None, *told],
        ["close_user", "jack", "e", *told],
    ]


def test_render_success() -> None:
    """S0-25: the S0 text, or JSON; workers whose count is missing are only told in JSON."""
    assert render(Outcome(7, 0), as_json=False).body == b"message sent to 7 clients"
    assert render(Outcome(7, 0), as_json=True).body == b'{"sent":7}'
    assert render(Outcome(7, 2), as_json=False).body == b"message sent to 7 clients"
    assert json.loads(render(Outcome(7, 2), as_json=True).body) == {"sent": 7, "unconfirmed": 2}


def test_render_error() -> None:
    """S0-22: plain text and reason in a header, or JSON with code and message."""
    error = RequestError(400, "illegal_request", "userId is missing", text="request data illegal")
    plain, as_json = render(error, as_json=False), render(error, as_json=True)
    assert (plain.status, plain.body) == (400, b"request data illegal")
    assert dict(plain.headers)["X-Fastpush-Error"] == dict(as_json.headers)["X-Fastpush-Error"] == "userId is missing"
    assert json.loads(as_json.body) == {"error": {"code": "illegal_request", "message": "userId is missing"}}


@pytest.mark.parametrize("text", ["a\r\nX-Evil: 1", "\x00", "\x1b[31mred", "é\u2028\x7f", "long " * 100])
def test_header_text_is_one_short_printable_line(text: str) -> None:
    """Nothing in a reason can end its header or reach a terminal's controls."""
    shown = header_text(text)
    assert len(shown) <= 200 and all(" " <= character <= "~" for character in shown)
    assert dict(render(not_found(text), as_json=True).headers)["X-Fastpush-Error"].isprintable()


def test_internal_error_always_has_a_text() -> None:
    """S0-24: 500 carries the text of the error, or its name when it has none."""
    assert internal_error(RuntimeError("disk on fire")).text == "disk on fire"
    assert internal_error(KeyError()).text == "KeyError"


@pytest.mark.parametrize("path", ["/push", "/push/all", "/drop"])
@pytest.mark.parametrize("headers", [(), ("Content-Encoding: identity",)], ids=["lean", "aiohttp"])
@pytest.mark.parametrize("as_json", [False, True])
def test_internal_failure_is_500_with_its_text(
    path: str,
    headers: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    as_json: bool,
) -> None:
    """S0-24: a failure nobody expected is 500 with the error text, logged with its stack; the next push is taken."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario() -> None:
        async with http_parts() as parts:
            connection, pipe = parts.connect()
            parts.broker.failure = RuntimeError("disk on fire")
            accept = ("Accept: application/json",) if as_json else ()
            connection.data_received(push("jack", "e", "m", *headers, *accept, path=path))
            await turns()
            head, _, body = pipe.taken().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert b"X-Fastpush-Error: disk on fire" in head and b"Connection: close" not in head
            if as_json:
                assert json.loads(body) == {"error": {"code": "internal", "message": "disk on fire"}}
            else:
                assert body == b"disk on fire"
            parts.broker.failure = None
            connection.data_received(push("jack", "e", "m"))
            await turns()
            assert pipe.taken().endswith(b"message sent to 1 clients")
            connection.connection_lost(None)
            await turns()

    asyncio.run(scenario())
    (record,) = caplog.records
    assert record.exc_info is not None and "disk on fire" in str(record.exc_info[1])


def test_scrape_that_fails_is_500_with_its_text(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S0-24: every path answers an unexpected failure so, and logs it: here a report of figures that is none."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario() -> None:
        async with http_parts() as parts:
            connection, pipe = parts.connect()
            connection.data_received(request("GET", "/metrics"))
            await turns()
            reply = pipe.taken()
            assert reply.startswith(b"HTTP/1.1 500 ") and reply.endswith(b"'workers'")
            connection.connection_lost(None)
            await turns()

    asyncio.run(scenario())
    assert [record.exc_info is not None for record in caplog.records] == [True]
