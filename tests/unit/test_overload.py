"""fastpush.worker.overload and the dispatch in front of it: who is turned away, at what cost, and how it is told."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from fastpush.applications.echo import Echo
from fastpush.config import Config, Limits, Server, check
from fastpush.errors import ConfigError
from fastpush.http.refusals import RefusalLog
from fastpush.worker.overload import Overload
from tests.http_parts import Parts, http_parts
from tests.wire import push, request, upgrade


def run(scenario: Callable[[Parts], object], **limits: int) -> None:
    async def main() -> None:
        async with http_parts(Config(limits=Limits(**cast(Any, limits)))) as parts:
            parts.serve(Echo)
            await scenario(parts)  # type: ignore[misc]

    asyncio.run(main())


def answer(parts: Parts, *data: bytes, role: Any = "all") -> bytes:
    connection, pipe = parts.connect(role)
    for part in data:
        connection.data_received(part)
    connection.connection_lost(None)
    return pipe.written


def test_turned_away_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lagging worker answers a handshake without parsing its head; other requests and paths are served."""

    async def scenario(parts: Parts) -> None:
        parts.services.overload.observe_lag(0.6)
        parsed: list[bytes] = []
        monkeypatch.setattr("fastpush.worker.dispatch.parse_head", parsed.append)
        whole = upgrade("/ws?token=a&event=e", "X-Request-Id: 7")
        reply = answer(parts, whole)
        assert reply.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in reply and not parsed
        assert answer(parts, whole[:7], whole[7:30], whole[30:]) == reply
        assert parts.counters.handshakes_lag == 2
        monkeypatch.undo()
        assert b"message sent to" in answer(parts, push("jack", "e", "m")) or parts.broker.taken
        assert answer(parts, request("POST", "/ws", body=b"")).startswith(b"HTTP/1.1 405 ")
        assert answer(parts, upgrade("/wsx"), role="public").startswith(b"HTTP/1.1 404 ")
        parts.services.overload.observe_lag(0.4)
        assert answer(parts, upgrade("/ws", version="8")).startswith(b"HTTP/1.1 426 ")

    run(scenario)


def test_no_lag_is_too_long_without_the_limit() -> None:
    """max_lag_ms = 0 never refuses."""

    async def scenario(parts: Parts) -> None:
        parts.services.overload.observe_lag(3600)
        assert parts.services.overload.outcome(0) == ""

    run(scenario, max_lag_ms=0)


def test_handshakes_under_way_count_as_connections() -> None:
    """A burst of handshakes does not pass the limit while their answers are outstanding."""

    async def scenario(parts: Parts) -> None:
        overload = parts.services.overload
        outcomes = []
        for _ in range(4):
            outcomes.append(overload.outcome(0))
            overload.handshakes += 1
        assert outcomes == ["", "", "", "connections"]

    run(scenario, connections=3)


def test_refusals_do_not_use_up_the_rate() -> None:
    """What another limit refuses leaves the rate to others."""

    async def scenario(parts: Parts) -> None:
        overload: Overload = parts.services.overload
        overload.observe_lag(1)
        assert [overload.outcome(0) for _ in range(5)] == ["lag"] * 5
        overload.observe_lag(0)
        assert [overload.outcome(0) for _ in range(3)] == ["", "", "rate"]

    run(scenario, handshakes_per_second=2)


def test_worst_lag_of_two_seconds() -> None:
    """The gauge is the worst of this second and the one before: no scrape misses it, and it passes."""

    async def scenario(parts: Parts) -> None:
        overload = parts.services.overload
        for lag in (0.1, 0.7, 0.2):
            overload.observe_lag(lag)
        overload.worst_lag.end_second()
        overload.observe_lag(0.3)
        assert overload.worst_lag.value == 0.7
        overload.worst_lag.end_second()
        assert overload.worst_lag.value == 0.3

    run(scenario)


def test_lines_are_few(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten lines a second at most, and one about all the others; a quiet second has none."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    caplog.set_level(logging.INFO, "fastpush")
    refusals = RefusalLog("handshake", logging.getLogger("fastpush.upgrade"), 0)
    for _ in range(1000):
        refusals.add("unauthorized", 0.5, code=401)
        refusals.count("rate")
    refusals.end_second()
    refusals.end_second()
    assert [record.getMessage() for record in caplog.records] == ["handshake refused"] * 10 + ["handshakes refused"]
    assert cast(Any, caplog.records[-1]).fields == {"total": 1990, "unauthorized": 990, "rate": 1000}


@pytest.mark.parametrize("network", ["10.0.0.0/8", "127.0.0.1", "::1", "fd00::/8"])
def test_networks(network: str) -> None:
    """[server] trusted_proxies takes addresses and networks of both kinds."""
    check(Config(server=Server(trusted_proxies=[network])))


@pytest.mark.parametrize(
    ("network", "hint"),
    [("10.0.0.1/8", 'did you mean "10.0.0.0/8"?'), ("proxy.example", "such as 10.0.0.0/8"), ("", "such as 10.0.0.0/8")],
)
def test_what_is_no_network(network: str, hint: str) -> None:
    """Anything else is an error that names the entry and the way out."""
    with pytest.raises(ConfigError) as caught:
        check(Config(server=Server(trusted_proxies=["127.0.0.1", network])))
    assert "[server] trusted_proxies, entry 2" in str(caught.value) and hint in str(caught.value)
