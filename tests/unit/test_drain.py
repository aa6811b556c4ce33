"""fastpush.worker.drain: who is sent away when. Time is the test's, connections are names."""

import itertools
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from fastpush.errors import CloseCode
from fastpush.protocol import control
from fastpush.worker import drain as drains
from fastpush.worker.drain import SLOT_CLOSES_MAX, SLOT_SECONDS, Drain


class Clock:
    """The loop's time, moved on by every sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.then: dict[float, Any] = {}
        loop = SimpleNamespace(time=lambda: self.now)
        monkeypatch.setattr(drains.asyncio, "get_running_loop", lambda: loop)
        monkeypatch.setattr(drains.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.then if at <= self.now]:
            self.then.pop(at)()


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end what never really waits."""
    with pytest.raises(StopIteration):
        work.send(None)


class Worker:
    """What a drain sees of a worker: connections that end when they are told to, and a record of all."""

    def __init__(self, clock: Clock, connections: int, *, answers: bool = True) -> None:
        self.clock = clock
        self.closes: list[tuple[float, CloseCode]] = []
        self.events: list[str] = []
        self.connections: dict[int, Any] = {}
        self._numbers = itertools.count()
        self.http: set[Any] = set()
        for _ in range(connections):
            self.add(answers=answers)
        environment = SimpleNamespace(connections=self.connections)
        self.services: Any = SimpleNamespace(
            environment=environment, http_connections=self.http, overload=SimpleNamespace(is_draining=False)
        )

    def add(self, *, answers: bool = True) -> None:
        connection = SimpleNamespace(is_open=True)

        def close(code: CloseCode, reason: str) -> None:
            if connection.is_open:
                connection.is_open = False
                self.closes.append((self.clock.now - 100, code))
                if answers:
                    self.connections.pop(number)

        connection.close = close
        number = next(self._numbers)
        self.connections[number] = connection

    def run(self, order: control.Drain) -> Drain:
        drain = Drain(
            order, self.services, stop_accepting=lambda: self.events.append("closed"), is_settled=lambda: True
        )
        self.drain = drain
        finish(drain.run())
        return drain

    def counts(self, slots: int, seconds: float) -> list[int]:
        """Closes in each of so many equal parts of `seconds`."""
        found = [0] * slots
        for at, _ in self.closes:
            found[min(slots - 1, int(at / seconds * slots))] += 1
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_closes_are_spread_evenly(clock: Clock) -> None:
    """3,000 clients over 10 seconds: 300 in each second, give or take a slot's share, all with 1012, nobody left."""
    worker = Worker(clock, 3000)
    worker.run(control.Drain(15, 10))
    assert all(abs(count - 300) <= 6 for count in worker.counts(10, 10))
    assert {code for _, code in worker.closes} == {CloseCode.SERVICE_RESTART}
    assert not worker.connections


def test_few_clients_are_gone_at_once_where_no_time_is_ordered(clock: Clock) -> None:
    """Without an ordered time the closes come at 1,000 a second: 20 clients need no more than two slots."""
    worker = Worker(clock, 20)
    worker.run(control.Drain(10))
    assert max(at for at, _ in worker.closes) <= 2 * SLOT_SECONDS


def test_an_unordered_spread_takes_half_of_the_time_at_most(clock: Clock) -> None:
    """However many clients there are, half of the time is left to those who answer late."""
    worker = Worker(clock, 8000)
    worker.run(control.Drain(2))
    assert 0.9 <= max(at for at, _ in worker.closes) <= 1.0 + SLOT_SECONDS


def test_a_slot_is_bounded(clock: Clock) -> None:
    """Even all at once is not all in one turn of the loop."""
    worker = Worker(clock, 3 * SLOT_CLOSES_MAX)
    worker.run(control.Drain(5, 0))
    times = sorted({at for at, _ in worker.closes})
    assert len(times) == 3


@pytest.mark.parametrize("listens", [False, True])
def test_the_listeners_close_before_or_after_the_clients(clock: Clock, *, listens: bool) -> None:
    """A replaced worker accepts nothing from the start; a server that drains slowly takes pushes to the end."""
    worker = Worker(clock, 10)
    closed_at: list[float] = []
    drain = Drain(
        control.Drain(5, 2, listens=listens),
        worker.services,
        stop_accepting=lambda: closed_at.append(clock.now - 100),
        is_settled=lambda: True,
    )
    finish(drain.run())
    assert (closed_at[0] > 0) == listens
    assert worker.services.overload.is_draining == listens, (
        "who was accepted before is refused only with the listeners open"
    )
    assert closed_at[-1] >= max(at for at, _ in worker.closes)


def test_a_later_order_replaces_the_first(clock: Clock) -> None:
    """In the middle of a slow drain a hasty one: who is left goes within its time, and the listeners close."""
    worker = Worker(clock, 1000)
    clock.then[130.0] = lambda: worker.drain.obey(control.Drain(1))
    worker.run(control.Drain(70, 60, listens=True))
    before = [at for at, _ in worker.closes if at < 30]
    assert 480 <= len(before) <= 520
    assert max(at for at, _ in worker.closes) <= 30.6 + SLOT_SECONDS
    assert worker.events


def test_who_does_not_answer_is_not_waited_for_longer_than_ordered(clock: Clock) -> None:
    """Clients that never answer their close frame cost the time that was ordered, and no more."""
    worker = Worker(clock, 5, answers=False)
    worker.run(control.Drain(3, 1))
    assert len(worker.closes) == 5
    assert 3 <= clock.now - 100 <= 3.1


def test_who_comes_at_the_last_moment_is_sent_away_too(clock: Clock) -> None:
    """A handshake that was under way when the drain began is closed in the end."""
    worker = Worker(clock, 5)
    clock.then[100.5] = worker.add
    worker.run(control.Drain(5, 1))
    assert len(worker.closes) == 6 and not worker.connections
