"""fastpush.state.history: what channels keep, in order, and within so many bytes."""

import random

import pytest

from fastpush.protocol.bus import unpack_entries
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


def unpacked(histories: Histories, *bounds: int) -> list[str]:
    return [data.decode() for _, data in unpack_entries(histories.packed(b"c", *bounds))]


def test_an_answer_is_packed_once_for_all_who_ask() -> None:
    """It holds the newest that fit both bounds, oldest first; whoever asks for as much gets the same object."""
    histories = Histories(10**6)
    for text in ("one", "two", "three"):
        histories.append(b"c", message(text), 10)
    size = ENTRY_BYTES + len(message("three").data)
    everything = unpacked(histories, 10, 10**6)
    assert everything == ["one", "two", "three"]
    assert unpacked(histories, 2, 10**6) == everything[1:]
    assert unpacked(histories, 10, 2 * size) == everything[1:]
    assert unpacked(histories, 10, size - 1) == unpacked(histories, 0, 10**6) == []
    first = histories.packed(b"c", 10, 10**6)
    assert histories.packed(b"c", 10, 10**6) is first
    histories.append(b"c", message("four"), 10)
    assert histories.packed(b"c", 10, 10**6) is not first
    assert unpack_entries(histories.packed(b"nobody", 10, 10**6)) == []


def test_notices_alone_are_forgotten() -> None:
    """A channel that only ever saw people come and go leaves nothing; one in which somebody spoke stays as it is."""
    histories = Histories(10**6)
    notice = Entry(is_notice=True, data=b"jack came")
    histories.append(b"silent", notice, 10)
    histories.append(b"spoken", notice, 10)
    histories.append(b"spoken", message("hello"), 10)
    for key in (b"silent", b"spoken", b"unknown"):
        histories.forget_notices(key)
    assert histories.read(b"silent") == () and histories.read(b"spoken") == (notice, message("hello"))
    assert histories.kept_bytes == cost({b"spoken": [notice, message("hello")]})


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
