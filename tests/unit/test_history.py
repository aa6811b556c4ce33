"""fastpush.state.history: what channels keep, in order, and within so many bytes."""

import random

import pytest

from fastpush.state.history import CHANNEL_BYTES, ENTRY_BYTES, Entry, Histories

PLENTY = 10**9


def message(text: str) -> Entry:
    return Entry(is_notice=False, data=text.encode())


def cost(kept: dict[bytes, list[Entry]]) -> int:
    """What channels with these entries cost."""
    channels = sum(CHANNEL_BYTES + len(key) for key, entries in kept.items() if entries)
    return channels + sum(len(entry.data) + ENTRY_BYTES for entries in kept.values() for entry in entries)


def test_the_last_few_oldest_first() -> None:
    """A channel keeps the last so many, notices among messages, in the order in which they came."""
    histories = Histories(PLENTY)
    entries = [Entry(is_notice=number % 3 == 0, data=b"%d" % number) for number in range(10)]
    for entry in entries:
        histories.append(b"a", entry, 4)
    assert histories.read(b"a") == tuple(entries[-4:])
    assert histories.read(b"b") == () and len(histories) == 1
    assert histories.dropped == 0, "what a channel need not keep is not missed"


def test_keep_is_said_with_each_message() -> None:
    """A smaller keep shortens the channel at once, a larger one lets it grow from there."""
    histories = Histories(PLENTY)
    for number in range(10):
        histories.append(b"a", message(str(number)), 10)
    histories.append(b"a", message("10"), 3)
    assert [entry.data for entry in histories.read(b"a")] == [b"8", b"9", b"10"]
    for number in range(11, 20):
        histories.append(b"a", message(str(number)), 5)
    assert [entry.data for entry in histories.read(b"a")] == [b"15", b"16", b"17", b"18", b"19"]


def test_the_channel_without_news_goes_first() -> None:
    """Over the bound the channel published to longest ago loses its oldest messages, and is forgotten with the last."""
    one = CHANNEL_BYTES + 1 + 100 + ENTRY_BYTES
    histories = Histories(3 * one + 2 * (100 + ENTRY_BYTES))
    for key in (b"a", b"b", b"c"):
        histories.append(key, message("x" * 100), 10)
    histories.append(b"a", message("y" * 100), 10)
    histories.append(b"a", message("z" * 100), 10)
    assert histories.dropped == 0
    histories.append(b"c", message("w" * 100), 10)
    assert (histories.read(b"b"), len(histories), histories.dropped) == ((), 2, 1)
    assert len(histories.read(b"a")) == 3 and len(histories.read(b"c")) == 2


def test_a_message_larger_than_everything_is_not_kept() -> None:
    """It would leave room for nothing else, and none for itself."""
    histories = Histories(5000)
    histories.append(b"a", message("x"), 10)
    histories.append(b"b", message("x" * 5000), 10)
    assert (len(histories), histories.kept_bytes, histories.dropped) == (0, 0, 2)


def test_a_lower_bound_holds_from_the_next_message_on() -> None:
    """history_bytes changes while the broker lives."""
    histories = Histories(PLENTY)
    for number in range(100):
        histories.append(b"%d" % number, message("x" * 100), 1)
    histories.limit_bytes = 20_000
    histories.append(b"new", message("x"), 1)
    assert histories.kept_bytes <= 20_000 and histories.read(b"new")


@pytest.mark.parametrize("seed", range(30))
def test_against_lists(seed: int) -> None:
    """Whatever is appended: bytes are counted exactly and bounded, what is left of a channel are its newest messages in
    order, and every message is there, or was too old, or is counted as dropped.
    """
    chance = random.Random(seed)
    limit = chance.choice((0, 1000, 5000, 20_000, PLENTY))
    histories = Histories(limit)
    keys = [b"k" * chance.randrange(1, 20) + b"%d" % number for number in range(chance.randrange(1, 12))]
    all_of: dict[bytes, list[Entry]] = {key: [] for key in keys}
    pushed_out = 0
    for number in range(500):
        key, keep = chance.choice(keys), chance.randrange(1, 8)
        entry = Entry(is_notice=bool(chance.getrandbits(1)), data=b"%d " % number + b"x" * chance.randrange(500))
        before = len(histories.read(key))
        all_of[key].append(entry)
        histories.append(key, entry, keep)
        pushed_out += max(0, before + 1 - keep)
        kept = {key: list(histories.read(key)) for key in keys}
        for key in keys:
            assert not kept[key] or all_of[key][-len(kept[key]) :] == kept[key]
        assert histories.kept_bytes == cost(kept) <= limit
        assert len(histories) == sum(bool(entries) for entries in kept.values())
        assert number + 1 == sum(map(len, kept.values())) + pushed_out + histories.dropped
