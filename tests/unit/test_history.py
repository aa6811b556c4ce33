"""fastpush.state.history: a store in memory keeps the contract of all stores, and its own bounds exactly."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from fastpush.protocol.bus import Kind
from fastpush.state.history import CHANNEL_BYTES, ENTRY_BYTES, POSITION_BYTES, Histories, Retention
from tests.unit.history_contract import *  # noqa: F403 - its tests
from tests.unit.history_contract import HOUR, PLENTY, OpenStore, Story, kept, nobody

KEY = b"cchat:42"


@pytest.fixture
def open_store() -> OpenStore:
    """Stores as brokers make them: each broker's epoch is drawn at random."""
    epochs = itertools.count(1)

    def make(limit_bytes: int = PLENTY, is_wanted: Callable[[bytes], bool] = nobody) -> Histories:
        return Histories(limit_bytes, next(epochs) << 32 | 0xFFFFFFFF, is_wanted)

    return make


def cost(store: Histories) -> int:
    """What all that a store keeps costs, counted anew, packed answers that it has at hand among it."""
    total = 0
    for key, ring in store._rings.items():
        assert ring.entries
        total += CHANNEL_BYTES + len(key) + sum(len(entry.packed) + ENTRY_BYTES for entry in ring.entries)
        total += 0 if ring.packed is None else len(ring.packed[1])
    return total


def check(store: Histories) -> None:
    """What is counted is what is there, and nothing is planned for what is not."""
    assert store.kept_bytes == cost(store)
    assert store.position_bytes == sum(POSITION_BYTES + len(key) for key in store._empty)
    assert all(ring.packed is None and not ring.entries for ring in store._empty.values())
    assert not store._rings.keys() & store._empty.keys()
    planned = {epoch for seconds, epoch, key in store._due if store._planned(seconds, epoch, key) is not None}
    rings = [*store._rings.values(), *store._empty.values()]
    assert planned == {ring.epoch for ring in rings if ring.planned_seconds < math.inf}
    assert all(ring.planned_seconds <= ring.due_seconds for ring in rings)
    assert len(store._due) <= 2 * len(store) + 1024 + 1


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_counted_exactly(seed: int) -> None:
    """After whatever was published, asked, cleared and waited for: kept, remembered, at hand, and planned."""
    chance = random.Random(1000 + seed)
    inside: set[bytes] = set()
    store = Histories(PLENTY, 1 << 32, inside.__contains__)
    story = Story(store, inside, chance)
    for _ in range(60):
        story.run(10)
        check(store)
        sizes = {key: channel.size() for key, channel in story.channels.items()}
        for key in sizes:
            story.newest(key)  # which gives up what is too old
        check(store)
    story.leave_all()
    check(store)
    assert store._due == [] or len(store) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_of_all_channels_holds_always(seed: int) -> None:
    """Whatever is published to many channels: never more is kept than the limit, what is left of a channel are its
    newest publications without gap, and every one is there, or too many for its channel, or counted as dropped.
    """
    chance = random.Random(seed)
    limit = chance.choice((0, 2000, 5000, 20_000, 100_000))
    store = Histories(limit, 1 << 32)
    keys = [b"k" * chance.randrange(1, 20) + b"%d" % number for number in range(chance.randrange(1, 12))]
    pushed_out = 0
    for number in range(500):
        key, keep = chance.choice(keys), chance.randrange(1, 8)
        before = len(kept(store.newest(key, 100, PLENTY, 0)).entries)
        top = store.append(key, Kind.DATA, b"x" * chance.randrange(500), b"", Retention(keep, 3600), 0)
        pushed_out += max(0, before + 1 - keep)
        there = 0
        for each in keys:
            answer = kept(store.newest(each, 100, PLENTY, 0))
            offsets = [entry.offset for entry in answer.entries]
            assert offsets == list(range(answer.offset - len(offsets) + 1, answer.offset + 1))
            there += len(offsets)
        assert top.offset >= 1 and number + 1 == there + pushed_out + store.dropped
        assert store.kept_bytes <= limit or not store._rings
        check(store)


def test_positions_are_bounded_and_those_with_members_stay() -> None:
    """Channels that keep nothing take a quarter of the limit, the oldest go first; one that somebody is in stays,
    whatever comes; what goes is told as lost, never as whole.
    """
    inside = {b"c%d" % number for number in range(0, 1000, 100)}
    store = Histories(400_000, 1 << 32, inside.__contains__)
    first = {key: store.open(key, HOUR, 0) for key in sorted(inside)}
    for number in range(5000):
        store.open(b"c%d" % number, HOUR, 0)
        assert store.position_bytes <= 100_000 + POSITION_BYTES + 10
    check(store)
    assert {key: store.open(key, HOUR, 0) for key in sorted(inside)} == first
    assert b"c4999" in store._empty and b"c1" not in store._empty
    assert kept(store.since(b"c1", first[b"c0"], 10, 1000, 0)).recovered is False


def test_an_answer_is_packed_once_for_all_who_ask() -> None:
    """Whoever asks for as much gets the same object, until something changes; it counts as kept."""
    store = Histories(PLENTY, 1 << 32)
    for text in (b"one", b"two"):
        store.append(KEY, Kind.DATA, text, b"", Retention(10, 5.0), 0)
    before = store.kept_bytes
    first = store.newest(KEY, 10, 10**6, 0)
    assert store.newest(KEY, 10, 10**6, 1) is first
    assert store.kept_bytes == before + len(first)
    store.append(KEY, Kind.DATA, b"three", b"", Retention(10, 5.0), 3)
    second = store.newest(KEY, 10, 10**6, 3)
    assert second is not first and store.newest(KEY, 10, 10**6, 4) is second
    assert len(kept(store.newest(KEY, 10, 10**6, 5)).entries) == 1, "two are too old"
    check(store)


def test_a_full_store_has_no_answers_at_hand() -> None:
    """They would take the place of publications."""
    store = Histories(PLENTY, 1 << 32)
    store.append(KEY, Kind.DATA, b"x" * 1000, b"", HOUR, 0)
    store.limit_bytes = store.kept_bytes + 500
    assert store.newest(KEY, 10, 10**6, 0) is not store.newest(KEY, 10, 10**6, 0)
    assert (store.kept_bytes, store.dropped) == (cost(store), 0)


def test_retentions_that_change_leave_one_plan_a_channel() -> None:
    """A configuration that changes back and forth costs nothing that stays; the shorter one holds at once."""
    store = Histories(PLENTY, 1 << 32)
    long, short, forever = Retention(10, 300.0), Retention(10, 3.0), Retention(10)
    for number in range(10_000):
        store.append(KEY, Kind.DATA, b"x", b"", (long, short, forever)[number % 3], number / 1000)
        store.open(b"another", (short, long)[number % 2], 0)
        if number % 100 == 0:
            check(store)
    store.append(KEY, Kind.DATA, b"last", b"", short, 10)
    assert len(store._due) <= 2 * 2 + 1024 + 1
    store.tick(13)
    assert kept(store.newest(KEY, 10, 10**6, 13)).entries == []
    check(store)


def test_ticks_look_at_what_is_due_only() -> None:
    """A hundred thousand channels that are not due cost a tick nothing: none of them is looked at."""
    looked_at: list[bytes] = []
    store = Histories(PLENTY, 1 << 32, lambda key: bool(looked_at.append(key)))
    for number in range(100_000):
        store.open(b"c%d" % number, Retention(1, 100.0), number / 1000)
    store.tick(99.9)
    assert looked_at == []
    store.tick(100.5)
    assert looked_at == [b"c%d" % number for number in range(501)]
