"""fastpush.supervisor.slots: when a slot is restarted and when restarting ends."""

from fastpush.supervisor.slots import BROKER, CrashLoop, Slot


def waits(slot: Slot, times: list[float]) -> list[float]:
    """Let the slot's process die at these times; return how long each next one is put off."""
    found = []
    for now in times:
        slot.died(now)
        assert slot.due is not None
        found.append(slot.due - now)
        slot.started()
    return found


def test_first_restart_is_immediate_then_doubles_up_to_five_seconds() -> None:
    """Deaths within 10 s of each other: 0, 0.25, 0.5, 1, 2, 4, 5, 5 s."""
    assert waits(Slot(0), [100 + 9 * n for n in range(8)]) == [0, 0.25, 0.5, 1, 2, 4, 5, 5]


def test_ten_quiet_seconds_forget_earlier_deaths() -> None:
    """A death 10 s after the last one is a first death again."""
    assert waits(Slot(0), [100, 101, 111, 112]) == [0, 0.25, 0, 0.25]


def test_a_thousand_deaths_stay_at_the_highest_wait() -> None:
    """The wait has a bound however long it goes on."""
    assert waits(Slot(0), [float(n) for n in range(1000)])[-1] == 5


def test_a_hanging_process_is_replaced_at_once() -> None:
    """It took hang_seconds to find out; such ends neither wait nor make the next death wait."""
    slot = Slot(0)
    for now in (100, 102, 104):
        slot.died(now, found_hanging=True)
        assert (slot.due, slot.opened) == (now, True)
        slot.started()
    assert waits(slot, [105, 106]) == [0, 0.25]


def test_the_broker_never_waits() -> None:
    """Nobody can cover for the broker: every restart is immediate."""
    assert waits(Slot(BROKER), [1, 2, 3, 4]) == [0, 0, 0, 0]


def test_restarts_are_counted_after_the_first_process() -> None:
    """The first process of a slot is no restart."""
    slot = Slot(0)
    slot.started()
    assert (slot.restarts, slot.due) == (0, None)
    slot.died(1)
    slot.started()
    assert (slot.restarts, slot.due) == (1, None)


def test_five_deaths_within_thirty_seconds_are_a_crash_loop() -> None:
    """The fifth death of a role within 30 s is one too many; the roles do not add up."""
    loop = CrashLoop()
    assert not any(loop.died_before_ready("worker", now) for now in (0, 1, 2, 3))
    assert not any(loop.died_before_ready("broker", now) for now in (3, 4))
    assert loop.died_before_ready("worker", 30)


def test_slow_deaths_are_no_crash_loop() -> None:
    """Deaths that come more slowly than five in 30 s go on for ever."""
    loop = CrashLoop()
    assert not any(loop.died_before_ready("worker", 7.6 * n) for n in range(100))
