"""fastpush.http.request_id: which ids are taken from clients, and where responses and log lines carry them."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from fastpush.applications.echo import Echo
from fastpush.http.request_id import RequestIds
from tests.http_parts import Parts, http_parts, turns
from tests.wire import push, request, upgrade

OWN = "A-z_0.9"


def run(scenario: Callable[[Parts], object]) -> None:
    async def main() -> None:
        async with http_parts() as parts:
            parts.serve(Echo)
            await scenario(parts)  # type: ignore[misc]

    asyncio.run(main())


def id_in(written: bytes) -> str:
    """The X-Request-Id of the one response in `written`."""
    head = written.partition(b"\r\n\r\n")[0].decode()
    (found,) = [line[14:] for line in head.split("\r\n") if line.startswith("X-Request-Id: ")]
    return found


@pytest.mark.parametrize("own", ["a", "a" * 64, OWN])
def test_own_id(own: str) -> None:
    """1 to 64 letters, digits, dots, underscores and dashes are kept as they are, parsed or not."""
    ids = RequestIds()
    assert ids.of({"x-request-id": own}) == own
    assert ids.of_head(f"GET / HTTP/1.1\r\nx-REQUEST-Id:\t {own} \r\n\r\n".encode()) == own


@pytest.mark.parametrize("bad", ["", "a" * 65, "a b", 'a"b', "a\nb", "a, b", "ä", "a\x00", "a\n"])
def test_what_is_no_id_is_ignored(bad: str) -> None:
    """Anything else is replaced by an id of ours, and so is none; no two of those are the same."""
    ids = RequestIds()
    head = f"GET / HTTP/1.1\r\nX-Request-Id: {bad}\r\n\r\n".encode()
    made = [ids.of({"x-request-id": bad}), ids.of_head(head), ids.of({}), ids.of_head(b"GET / HTTP/1.1\r\n\r\n")]
    assert bad not in made and len(set(made)) == 4
    assert all(RequestIds().of({"x-request-id": one}) == one for one in made)
    assert len({one.partition("-")[0] for one in made}) == 1
    assert RequestIds().new().partition("-")[0] != made[0].partition("-")[0]


REQUESTS = {
    "lean push": push("jack", "e", "m"),
    "lean push as JSON": push("jack", "e", "m", "Accept: application/json"),
    "push by aiohttp": push("jack", "e", "m", "Content-Encoding: identity"),
    "refused push": request("POST", "/push", body=b"{"),
    "health": request("GET", "/health"),
    "metrics with a query": request("GET", "/metrics?sum=2"),
    "nothing there": request("GET", "/nowhere"),
    "wrong method": request("DELETE", "/push"),
    "expectation": request("POST", "/push", "Expect: a-miracle", body=b"{}"),
    "a long header": request("GET", "/health", f"X-Long: {'a' * 15000}"),
    "many headers": request("GET", "/nowhere", *[f"X-{number}: 1" for number in range(1000)]),
    "no WebSocket": request("GET", "/ws"),
    "a wrong version": upgrade("/ws", version="8"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_response_carries_it(name: str) -> None:
    """Its own id comes back with whatever the answer is; without one every response has a new id."""

    async def scenario(parts: Parts) -> None:
        data = REQUESTS[name]
        with_id = data.replace(b"\r\n", f"\r\nX-Request-Id: {OWN}\r\n".encode(), 1)
        found = []
        for one in (with_id, data, data):
            connection, pipe = parts.connect()
            connection.data_received(one)
            await turns(50)
            found.append(id_in(pipe.written))
            connection.connection_lost(None)
        assert found[0] == OWN and len(set(found)) == 3

    run(scenario)


def test_turned_away_handshakes_carry_it() -> None:
    """Even the cheapest refusal names the request."""

    async def scenario(parts: Parts) -> None:
        parts.services.overload.observe_lag(3600)
        connection, pipe = parts.connect()
        connection.data_received(upgrade("/ws").replace(b"\r\n", f"\r\nx-request-id: {OWN}\r\n".encode(), 1))
        assert pipe.written.startswith(b"HTTP/1.1 503 ") and id_in(pipe.written) == OWN

    run(scenario)


def test_what_cannot_be_parsed_has_an_id_of_its_own() -> None:
    """Behind an answered request with an id, a head that is none is not named by it."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(push("jack", "e", "m", f"X-Request-Id: {OWN}"))
        await turns()
        assert id_in(pipe.taken()) == OWN
        connection.data_received(b"GET /\r\n\r\n")
        assert pipe.written.startswith(b"HTTP/1.1 400 ") and id_in(pipe.written) != OWN

    run(scenario)


# Log lines


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[dict[str, Any]]]:
    """Fields of the log lines with a text."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    caplog.set_level(logging.DEBUG, "fastpush")

    def find(text: str) -> list[dict[str, Any]]:
        return [cast(Any, record).fields for record in caplog.records if record.getMessage() == text]

    return find


def test_a_line_a_push(lines: Callable[[str], list[dict[str, Any]]]) -> None:
    """At debug level each push has a line with its id and outcome, on either path."""

    async def scenario(parts: Parts) -> None:
        for data in (push("jack", "e", "m"), push("jack", "e", "m", "Content-Encoding: identity")):
            connection, pipe = parts.connect()
            connection.data_received(data)
            await turns(50)
            assert lines("push")[-1] == {"request_id": id_in(pipe.written), "outcome": "delivered"}
        connection.data_received(request("POST", "/push", body=b"{"))
        assert lines("push")[-1]["outcome"] == "illegal_request"

    run(scenario)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("refused push", 400, "illegal_request"),
        ("metrics with a query", 400, "illegal_request"),
        ("nothing there", 404, "not_found"),
        ("wrong method", 405, "method_not_allowed"),
        ("expectation", 417, "http"),
    ],
)
def test_a_line_a_refusal(lines: Callable[[str], list[dict[str, Any]]], name: str, status: int, code: str) -> None:
    """What is answered by 4xx has one line with the id of the response, its status, code and reason."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(REQUESTS[name])
        await turns(50)
        (line,) = lines("request refused")
        assert (line["request_id"], line["status"], line["code"]) == (id_in(pipe.written), status, code)
        assert line["reason"] and line["peer"] == "127.0.0.1:4242" and "?" not in line["path"]

    run(scenario)


@pytest.mark.parametrize("header", ["Accept: */*", "Content-Encoding: identity"], ids=["lean", "aiohttp"])
def test_a_failure_is_named(lines: Callable[[str], list[dict[str, Any]]], header: str) -> None:
    """A fault of ours has its stack and the line of the refusal under one id."""

    async def scenario(parts: Parts) -> None:
        parts.broker.failure = RuntimeError("broken")
        connection, pipe = parts.connect()
        connection.data_received(push("jack", "e", "m", header))
        await turns(50)
        assert pipe.written.startswith(b"HTTP/1.1 500 ")
        (stack,) = lines("push failed") + lines("request failed")
        (refusal,) = lines("request refused")
        assert stack["request_id"] == refusal["request_id"] == id_in(pipe.written)

    run(scenario)


def test_a_refused_handshake_is_named(lines: Callable[[str], list[dict[str, Any]]]) -> None:
    """It has its own line, and none as a request."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(upgrade("/ws", version="8"))
        (line,) = lines("handshake refused")
        assert line["request_id"] == id_in(pipe.written) and not lines("request refused")

    run(scenario)


def test_lines_about_refusals_are_few(lines: Callable[[str], list[dict[str, Any]]]) -> None:
    """A flood of bad pushes leaves ten lines and a sum."""

    async def scenario(parts: Parts) -> None:
        connection, _ = parts.connect()
        for _ in range(100):
            connection.data_received(request("POST", "/push", body=b"{"))
        parts.services.refused_requests.end_second()
        assert len(lines("request refused")) == 10
        assert lines("requests refused") == [{"total": 90, "illegal_request": 90}]

    run(scenario)
