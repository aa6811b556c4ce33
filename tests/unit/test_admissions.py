"""fastpush.state.admissions: counts by name and holder, which always add up."""

import random
from collections import Counter

from fastpush.state.admissions import Admissions


def test_limit_counts_all_holders() -> None:
    """A name has its limit over all holders; a release by any makes room again."""
    admissions: Admissions[str] = Admissions()
    assert [admissions.admit(holder, b"jack", 2) for holder in ("one", "two", "one", "two")] == [
        True,
        True,
        False,
        False,
    ]
    assert admissions.admit("one", b"jill", 2)
    admissions.release("two", b"jack")
    assert admissions.admit("one", b"jack", 2) and not admissions.admit("two", b"jack", 2)


def test_holds_count_whatever_the_limit() -> None:
    """What a worker holds already is counted even over the limit, and nothing more is admitted meanwhile."""
    admissions: Admissions[str] = Admissions()
    admissions.hold("one", b"jack", 3)
    assert not admissions.admit("two", b"jack", 2)
    admissions.release("one", b"jack")
    assert not admissions.admit("two", b"jack", 2)
    admissions.release("one", b"jack")
    assert admissions.admit("two", b"jack", 2)


def test_unknown_release_changes_nothing() -> None:
    """A release of what a holder does not hold takes nothing from the others."""
    admissions: Admissions[str] = Admissions()
    admissions.hold("one", b"jack", 1)
    for holder, name in (("two", b"jack"), ("one", b"jill")):
        admissions.release(holder, name)
    assert not admissions.admit("two", b"jack", 1)


def test_forgotten_holder_leaves_nothing() -> None:
    """All that a holder held is free at once; names without connections are gone."""
    admissions: Admissions[str] = Admissions()
    for number in range(100):
        admissions.hold("one", b"%d" % number, 2)
    admissions.hold("two", b"1", 1)
    admissions.forget("one")
    assert len(admissions) == 1 and not admissions.admit("one", b"1", 1)
    admissions.forget("two")
    admissions.forget("two")
    assert len(admissions) == 0


def test_any_sequence_adds_up() -> None:
    """After any sequence of calls, what is admitted is what a list of all connections says."""
    chance = random.Random(7)
    admissions: Admissions[int] = Admissions()
    connections: Counter[tuple[int, bytes]] = Counter()
    for _ in range(5000):
        holder, name = chance.randrange(3), b"%d" % chance.randrange(5)
        total = sum(count for (_, of), count in connections.items() if of == name)
        step = chance.random()
        if step < 0.5:
            assert admissions.admit(holder, name, 4) == (total < 4)
            connections[holder, name] += total < 4
        elif step < 0.98:
            admissions.release(holder, name)
            connections[holder, name] -= connections[holder, name] > 0
        else:
            admissions.forget(holder)
            for key in [key for key in connections if key[0] == holder]:
                del connections[key]
        assert len(admissions) == len({of for (_, of), count in connections.items() if count})
