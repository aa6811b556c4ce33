"""fastpush.state.changes: who came and left is told once, soon to few and seldom to many. Time is told."""

import random

import pytest

from fastpush.state.changes import CONNECTION_SECONDS, REST_SECONDS_MAX, Changes

HALL, TEA = b"cchat:hall", b"cchat:tea"


def told(changes: Changes, now: float, connections: int = 0) -> dict[bytes, list[tuple[bool, bytes]]]:
    """What may be told at a time, in channels of so many connections."""
    return dict(changes.due(now, lambda _: connections))


def test_a_small_channel_is_told_at_the_next_look() -> None:
    """All that has come about since the last one, in order, each channel its own; then nothing waits."""
    changes = Changes()
    changes.add(HALL, 1, b"one", came=True)
    changes.add(HALL, 2, b"two", came=False)
    changes.add(TEA, 1, b"one", came=True)
    assert len(changes) == 2
    assert told(changes, 0) == {HALL: [(True, b"one"), (False, b"two")], TEA: [(True, b"one")]}
    assert (len(changes), told(changes, 0)) == (0, {})
    changes.add(HALL, 1, b"one", came=False)
    assert told(changes, 0) == {HALL: [(False, b"one")]}


def test_who_comes_and_leaves_in_between_is_not_told() -> None:
    """Both or none: after any number of times either the last change is told, or nothing; nothing is left of it."""
    changes = Changes()
    for times in range(1, 8):
        for number in range(times):
            changes.add(HALL, "jack", b"%d" % number, came=number % 2 == 0)
        assert told(changes, 0) == ({HALL: [(True, b"%d" % (times - 1))]} if times % 2 else {})
        if times % 2:  # and it is as before
            changes.add(HALL, "jack", b"", came=False)
            told(changes, 0)
    assert (len(changes), changes._resting) == (0, {})


def test_the_same_told_twice_is_one() -> None:
    """With what was said of it last."""
    changes = Changes()
    for info in (b"first", b"last"):
        changes.add(HALL, 1, info, came=True)
    assert told(changes, 0) == {HALL: [(True, b"last")]}


def test_what_is_discarded_is_not_told() -> None:
    """Of one, not of others; what nobody noted may be discarded too; an empty channel is nothing to be told."""
    changes = Changes()
    changes.add(HALL, 1, b"one", came=True)
    changes.add(HALL, 2, b"two", came=True)
    for who in (1, 3):
        changes.discard(HALL, who)
    changes.discard(TEA, 1)
    assert told(changes, 0) == {HALL: [(True, b"two")]}
    changes.add(TEA, 1, b"one", came=True)
    changes.discard(TEA, 1)
    assert len(changes) == 0


@pytest.mark.parametrize(
    ("connections", "rest"),
    [
        (10, 0.0),
        (1000, 1000 * CONNECTION_SECONDS),
        (1_000_000, REST_SECONDS_MAX),
    ],
)
def test_a_large_channel_rests(connections: int, rest: float) -> None:
    """In proportion to how many have to be told, up to a bound; what comes meanwhile gathers; others do not wait."""
    changes = Changes()
    changes.add(HALL, 1, b"one", came=True)
    assert HALL in told(changes, 100, connections)
    changes.add(HALL, 2, b"two", came=True)
    changes.add(HALL, 3, b"three", came=True)
    changes.add(TEA, 1, b"one", came=True)
    if rest:
        assert list(told(changes, 100 + rest - 0.001, 10)) == [TEA]
    assert told(changes, 100 + rest, connections)[HALL] == [(True, b"two"), (True, b"three")]
    told(changes, 200 + rest, connections)
    assert (len(changes), changes._resting) == (0, {}), "a channel without news is not remembered"


@pytest.mark.parametrize("seed", range(20))
def test_who_listens_to_all_knows_who_is_there(seed: int) -> None:
    """Whatever comes and leaves, whenever it is told: nobody is told twice of the same, and at the end who has applied
    all changes knows exactly who is in each channel.
    """
    chance = random.Random(seed)
    changes, now = Changes(), 0.0
    there: dict[bytes, set[int]] = {HALL: set(), TEA: set()}
    known: dict[bytes, set[int]] = {HALL: set(), TEA: set()}

    def apply(size: int) -> None:
        for channel, news in told(changes, now, size).items():
            for came, info in news:
                assert came == (int(info) not in known[channel])
                known[channel] ^= {int(info)}

    for _ in range(500):
        channel, who = chance.choice((HALL, TEA)), chance.randrange(6)
        there[channel] ^= {who}
        changes.add(channel, who, b"%d" % who, came=who in there[channel])
        if not chance.randrange(4):
            now += chance.random()
            apply(chance.choice((1, 1000, 10_000)))
    now += REST_SECONDS_MAX
    apply(1)
    assert known == there and len(changes) == 0
