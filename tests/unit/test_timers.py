"""The timer wheel, driven by hand: every item is asked when it wanted, and one failure harms nobody."""

import logging
import random

import pytest

from fastpush.worker.timers import TICK_SECONDS, TimerWheel, ticks


class Item:
    """Notes when it was asked; asks for its next plan each time."""

    def __init__(self, *plans: int | None) -> None:
        self.due = -1
        self.asked: list[int] = []
        self.plans = list(plans)

    def on_timer(self, now: int) -> int | None:
        self.asked.append(now)
        return self.plans.pop(0) if self.plans else None


def advance(wheel: TimerWheel, times: int) -> None:
    for _ in range(times):
        wheel.advance()


def test_ticks_round_up() -> None:
    """A duration is never cut short, and takes one tick at least."""
    assert [ticks(seconds) for seconds in (0, 0.001, TICK_SECONDS, 0.11, 1, 25)] == [1, 1, 1, 2, 10, 250]


def test_item_is_asked_once_at_its_time() -> None:
    """An item is asked at its tick, not before and not again; a past or present one at the next tick."""
    wheel = TimerWheel()
    advance(wheel, 1000)
    items = {due: Item() for due in (-1, 0, 999, 1000, 1001, 1005, 1511)}
    for due, item in items.items():
        wheel.schedule(item, due)
    advance(wheel, 2000)
    assert {due: item.asked for due, item in items.items()} == {due: [max(due, 1001)] for due in items}
    assert all(item.due == -1 for item in items.values())


def test_far_dates_are_asked_for_on_the_way() -> None:
    """Beyond the wheel's size an item is asked early, may answer with the same date, and is asked then."""
    wheel = TimerWheel()
    item = Item(*[5000] * 20)
    wheel.schedule(item, 5000)
    advance(wheel, 4999)
    assert item.asked and item.asked[-1] < 5000
    assert item.due == 5000
    item.plans.clear()
    advance(wheel, 2000)
    assert item.asked[-1] == 5000


def test_schedule_replaces_and_cancel_removes() -> None:
    """An item has one plan: a later call replaces it, cancel takes it away, cancelling nothing is allowed."""
    wheel = TimerWheel()
    moved, cancelled = Item(), Item()
    wheel.schedule(moved, 5)
    wheel.schedule(moved, 9)
    wheel.schedule(cancelled, 5)
    wheel.cancel(cancelled)
    wheel.cancel(cancelled)
    advance(wheel, 600)
    assert (moved.asked, cancelled.asked) == ([9], [])


def test_a_plan_made_while_asked_is_kept() -> None:
    """An item that schedules itself while it is asked keeps that plan, whatever it returns."""
    wheel = TimerWheel()

    class Replanning(Item):
        def on_timer(self, now: int) -> int | None:
            if not self.asked:
                wheel.schedule(self, now + 7)
            return super().on_timer(now)

    item = Replanning(100)
    wheel.schedule(item, 1)
    advance(wheel, 300)
    assert item.asked == [1, 8]


def test_items_of_one_tick_may_cancel_each_other() -> None:
    """An item that another one cancels in their common tick is not asked."""
    wheel = TimerWheel()
    items: list[Item] = []

    class Jealous(Item):
        def on_timer(self, now: int) -> int | None:
            for other in items:
                if other is not self:
                    wheel.cancel(other)
            return super().on_timer(now)

    items += [Jealous() for _ in range(5)]
    for item in items:
        wheel.schedule(item, 3)
    advance(wheel, 600)
    assert sorted(item.asked for item in items) == [[], [], [], [], [3]]


def test_a_failing_item_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An exception is logged; the others of that tick are asked in time, and the failing one again later."""
    wheel = TimerWheel()

    class Failing(Item):
        def on_timer(self, now: int) -> int | None:
            super().on_timer(now)
            raise ZeroDivisionError

    others = [Item() for _ in range(20)]
    failing = Failing()
    for item in (*others[:10], failing, *others[10:]):
        wheel.schedule(item, 4)
    with caplog.at_level(logging.ERROR):
        advance(wheel, 4)
    assert all(item.asked == [4] for item in others)
    assert [record.message for record in caplog.records] == ["timer failed"]
    advance(wheel, 600)
    assert len(failing.asked) == 2


def test_many_random_plans() -> None:
    """Ten thousand items with plans of their own are each asked exactly then; the wheel is empty afterwards."""
    chance = random.Random(1)
    wheel = TimerWheel()
    items = []
    for _ in range(10_000):
        plans = sorted(chance.sample(range(1, 500), 3))
        item = Item(*plans[1:])
        wheel.schedule(item, plans[0])
        items.append((item, plans))
    advance(wheel, 600)
    assert all(item.asked == plans for item, plans in items)
    assert not any(wheel._buckets)
