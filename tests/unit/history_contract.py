"""What every store of histories keeps (fastpush/state/history.py): tests for any of them.

A test module of a store imports all of this and has a fixture of its own:

    from tests.unit.history_contract import *

    @pytest.fixture
    def open_store() -> Callable[..., HistoryStore]:
        return lambda limit_bytes=PLENTY, is_wanted=nobody: TheStore(…)

`open_store` returns a new, empty store at each call. `limit_bytes` holds for all that is kept, `is_wanted(key)` says of
a channel that somebody is in it. Time is told, in seconds, and never goes back.
"""

import random
from collections.abc import Callable

import pytest

from fastpush.protocol import bus
from fastpush.protocol.bus import Entry, History, Kept, Kind, Position
from fastpush.state.history import ENTRY_BYTES, HistoryStore, Retention

__all__ = [
    "HOUR",
    "PLENTY",
    "Channel",
    "OpenStore",
    "Story",
    "kept",
    "nobody",
    "test_a_channel_is_bounded_in_messages_bytes_and_seconds",
    "test_a_page_from_the_beginning_the_end_or_a_position",
    "test_a_publication_is_there_when_its_position_is",
    "test_against_a_model",
    "test_all_channels_are_bounded_in_bytes",
    "test_channels_without_number_leave_no_trace",
    "test_epochs_are_never_used_again",
    "test_kept_entries_come_out_as_they_went_in",
    "test_notices_alone_are_forgotten",
    "test_offsets_count_from_one_without_gap",
    "test_since_answers_with_all_or_with_nothing",
    "test_the_channel_without_news_goes_first",
    "test_the_newest_within_bounds",
    "test_what_is_cleared_is_gone_and_the_channel_stands_where_it_stood",
    "test_what_is_forgotten_begins_anew",
    "test_what_is_remembered_of_an_idle_channel",
]

OpenStore = Callable[..., HistoryStore]

PLENTY = 10**9
HOUR = Retention(1000, 3600.0)
KEY, OTHER = b"cchat:42", b"cchat:43"
EVERYTHING = (10**6, 10**9)  # messages and bytes


def nobody(_: bytes) -> bool:
    """Nobody is in any channel."""
    return False


def kept(answer: bytes) -> Kept:
    """Return what a store has answered."""
    return bus.unpack_kept(answer)


def texts(answer: bytes) -> list[str]:
    return [entry.data.decode() for entry in kept(answer).entries]


def append(store: HistoryStore, text: str, key: bytes = KEY, retention: Retention = HOUR, now: float = 0.0) -> Position:
    return store.append(key, Kind.DATA, text.encode(), b"", retention, now)


def fill(store: HistoryStore, count: int, key: bytes = KEY, retention: Retention = HOUR, now: float = 0.0) -> Position:
    """Publish "1", "2" …; return the last one's position."""
    return [append(store, str(number), key, retention, now) for number in range(1, count + 1)][-1]


def whole(store: HistoryStore, key: bytes = KEY, now: float = 0.0) -> list[str]:
    return texts(store.newest(key, *EVERYTHING, now))


def test_offsets_count_from_one_without_gap(open_store: OpenStore) -> None:
    """Each channel has its own; of one epoch; whoever asks where it stands is told of its newest."""
    store = open_store()
    positions = [append(store, "x") for _ in range(5)]
    assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
    assert len({position.epoch for position in positions}) == 1 and positions[0].epoch
    assert append(store, "x", OTHER).offset == 1
    assert store.open(KEY, HOUR, 0) == positions[-1]
    assert kept(store.newest(KEY, 0, 0, 0)).offset == 5
    assert len(store) == 2


def test_kept_entries_come_out_as_they_went_in(open_store: OpenStore) -> None:
    """Of any kind and any bytes, with offsets; what was never published to is answered without a position."""
    store = open_store()
    entries = [
        Entry(1, Kind.MESSAGE, bytes(range(256)), b""),
        Entry(2, Kind.DATA, b"\x81\x02{}", b',"tags":{}'),
        Entry(3, Kind.NOTICE, b"", b""),
        Entry(4, Kind.DATA, b"x" * 100_000, b"y" * 100_000),
    ]
    for entry in entries:
        position = store.append(KEY, entry.kind, entry.data, entry.extras, HOUR, 0)
    answers = [
        store.newest(KEY, *EVERYTHING, 0),
        store.since(KEY, Position(0, position.epoch), *EVERYTHING, 0),
        store.page(History(KEY), 0),
    ]
    for answer in answers:
        assert kept(answer).entries == entries
        assert (kept(answer).offset, kept(answer).epoch) == position
    for answer in (store.newest(OTHER, *EVERYTHING, 0), store.page(History(OTHER), 0)):
        assert kept(answer) == Kept(0, 0, recovered=False, entries=[])
    assert kept(store.since(OTHER, Position(0, 7), *EVERYTHING, 0)) == Kept(0, 0, recovered=False, entries=[])


def test_a_publication_is_there_when_its_position_is(open_store: OpenStore) -> None:
    """One step: whoever asks next finds it, behind the one before, whatever was asked in between."""
    store = open_store()
    before = store.open(KEY, HOUR, 0)
    for number in range(1, 20):
        position = append(store, str(number))
        assert texts(store.since(KEY, before, *EVERYTHING, 0)) == [str(number)]
        assert whole(store)[-1] == texts(store.page(History(KEY, 1, reverse=True), 0))[0] == str(number)
        before = position


def test_since_answers_with_all_or_with_nothing(open_store: OpenStore) -> None:
    """From each position that is whole: all behind it, oldest first. From one that is too old, of another epoch, ahead
    of the channel, or with more behind it than was asked for: nothing, and it says so, and where the channel stands.
    """
    store = open_store()
    top = fill(store, 10, retention=Retention(5, 3600.0))
    for offset in range(12):
        answer = kept(store.since(KEY, Position(offset, top.epoch), *EVERYTHING, 0))
        assert (answer.offset, answer.epoch) == top
        assert answer.recovered == (5 <= offset <= 10)
        expected = range(offset + 1, 11) if answer.recovered else ()
        assert [entry.offset for entry in answer.entries] == list(expected)
    for epoch in (top.epoch + 1, top.epoch ^ (1 << 63), 1):
        refused = kept(store.since(KEY, Position(9, epoch), *EVERYTHING, 0))
        assert refused == Kept(*top, recovered=False, entries=[])
    assert kept(store.since(KEY, Position(9, 0), *EVERYTHING, 0)).recovered, "an epoch of 0 is of any"
    size = sum(len(bus.pack(entry)) + ENTRY_BYTES for entry in kept(store.newest(KEY, 3, 10**9, 0)).entries)
    seven = Position(7, top.epoch)
    for messages, most, is_whole in ((3, size, True), (2, size, False), (3, size - 1, False), (0, 0, False)):
        answer = kept(store.since(KEY, seven, messages, most, 0))
        assert (answer.recovered, len(answer.entries)) == (is_whole, 3 * is_whole)
    assert kept(store.since(KEY, top, 0, 0, 0)) == Kept(*top, recovered=True, entries=[]), "who has missed nothing"


def test_the_newest_within_bounds(open_store: OpenStore) -> None:
    """The newest that fit both bounds, oldest first, and never one without those behind it."""
    store = open_store()
    for text in ("one", "two", "three"):
        append(store, text)
    size = len(bus.pack(Entry(3, Kind.DATA, b"three"))) + ENTRY_BYTES
    for messages, most, expected in (
        (10, 10**6, ["one", "two", "three"]),
        (2, 10**6, ["two", "three"]),
        (10, 2 * size, ["two", "three"]),
        (10, size, ["three"]),
        (10, size - 1, []),
        (0, 10**6, []),
    ):
        for _ in range(2):  # also when it is asked again
            assert texts(store.newest(KEY, messages, most, 0)) == expected
    append(store, "four")
    assert texts(store.newest(KEY, 2, 10**6, 0)) == ["three", "four"]


def test_a_page_from_the_beginning_the_end_or_a_position(open_store: OpenStore) -> None:
    """Behind a position, in order, or before it, in reverse; at most so many; what is gone is left out, and a position
    of another epoch is not recovered, one of no epoch is.
    """
    store = open_store()
    top = fill(store, 8, retention=Retention(5, 3600.0))  # 4 to 8
    epoch = top.epoch

    def page(messages: int, offset: int | None = None, *, reverse: bool = False, of: int = epoch) -> list[int]:
        since = None if offset is None else Position(offset, of)
        answer = kept(store.page(History(KEY, messages, since, reverse), 0))
        assert (answer.offset, answer.epoch, answer.recovered) == (*top, True)
        return [entry.offset for entry in answer.entries]

    assert page(100) == [4, 5, 6, 7, 8] and page(2) == [4, 5] and page(0) == []
    assert page(100, reverse=True) == [8, 7, 6, 5, 4] and page(2, reverse=True) == [8, 7]
    assert page(100, 6) == [7, 8] and page(1, 6) == [7] and page(100, 8) == page(100, 2**64 - 1) == []
    assert page(100, 1) == page(100, 0) == [4, 5, 6, 7, 8]
    assert page(100, 6, reverse=True) == [5, 4] and page(1, 6, reverse=True) == [5]
    assert page(100, 4, reverse=True) == page(100, 0, reverse=True) == []
    assert page(100, 99, reverse=True) == page(100, 2**64 - 1, reverse=True) == [8, 7, 6, 5, 4]
    assert page(100, 6, of=0) == [7, 8]
    other = kept(store.page(History(KEY, 100, Position(6, epoch + 1)), 0))
    assert other == Kept(*top, recovered=False, entries=[])


def test_a_channel_is_bounded_in_messages_bytes_and_seconds(open_store: OpenStore) -> None:
    """The oldest go first, to the exact number, byte and moment; by what the last publication says."""
    store = open_store()
    fill(store, 10, retention=Retention(4, 3600.0))
    assert whole(store) == ["7", "8", "9", "10"]
    append(store, "11", retention=Retention(2, 3600.0))
    assert whole(store) == ["10", "11"]
    one = len(bus.pack(Entry(1, Kind.DATA, b"x"))) + ENTRY_BYTES
    for size, left in ((3 * one, ["x", "y", "z"]), (3 * one - 1, ["y", "z"]), (one - 1, [])):
        for text in ("x", "y", "z"):
            position = append(store, text, OTHER, Retention(100, 3600.0, size))
        assert whole(store, OTHER) == left
        assert kept(store.newest(OTHER, *EVERYTHING, 0)).offset == position.offset
        store.clear(OTHER)
    for second in range(5):
        append(store, str(second), b"cslow", Retention(100, 10.0), now=second)
    for now, left in ((9.9, 5), (10, 4), (11.5, 3), (13.999, 1), (14, 0)):
        assert len(whole(store, b"cslow", now)) == left
        store.tick(now)
        assert kept(store.page(History(b"cslow"), now)).offset == (5 if left else 0)


def test_what_is_remembered_of_an_idle_channel(open_store: OpenStore) -> None:
    """Where it stands, for as long as its publications would be kept, from the last one or the last question on; then
    nothing, unless somebody is in it; who comes later finds another epoch, and offsets from 1 on.
    """
    inside: set[bytes] = set()
    store = open_store(is_wanted=inside.__contains__)
    ten = Retention(5, 10.0)
    top = append(store, "x", retention=ten, now=0)
    store.tick(9)
    assert store.open(KEY, ten, 9) == top
    store.tick(18.9)
    answer = kept(store.since(KEY, top, 5, 10**6, 18.9))
    assert answer == Kept(*top, recovered=True, entries=[])
    inside.add(KEY)
    for now in range(19, 100):
        store.tick(now)
    assert store.open(KEY, ten, 100) == top, "somebody is in it"
    inside.clear()
    store.tick(110)
    assert (len(store), store.kept_bytes, store.position_bytes) == (0, 0, 0)
    assert not kept(store.since(KEY, top, 5, 10**6, 110)).recovered
    again = append(store, "y", retention=ten, now=111)
    assert again.offset == 1 and again.epoch != top.epoch
    assert not kept(store.since(KEY, top, 5, 10**6, 111)).recovered


def test_what_is_cleared_is_gone_and_the_channel_stands_where_it_stood(open_store: OpenStore) -> None:
    """Nothing is kept, the next publication is the next one, and who has all until then has missed nothing."""
    store = open_store()
    top = fill(store, 3)
    store.clear(KEY)
    store.clear(KEY)
    store.clear(OTHER)
    assert (whole(store), store.kept_bytes) == ([], 0)
    assert kept(store.since(KEY, top, *EVERYTHING, 0)) == Kept(*top, recovered=True, entries=[])
    assert not kept(store.since(KEY, top._replace(offset=2), *EVERYTHING, 0)).recovered
    assert append(store, "4") == top._replace(offset=4)
    assert texts(store.since(KEY, top, *EVERYTHING, 0)) == ["4"]


def test_what_is_forgotten_begins_anew(open_store: OpenStore) -> None:
    """Nothing of it is left, whether it kept something or only stood somewhere, and no position of before is known."""
    store = open_store()
    top = fill(store, 3)
    store.open(OTHER, HOUR, 0)
    for key in (KEY, OTHER, b"cunknown"):
        store.forget(key)
    assert (len(store), store.kept_bytes, store.position_bytes) == (0, 0, 0)
    assert not kept(store.since(KEY, top, *EVERYTHING, 0)).recovered
    again = append(store, "4")
    assert again.offset == 1 and again.epoch != top.epoch


def test_epochs_are_never_used_again(open_store: OpenStore) -> None:
    """Neither by other channels nor by other stores, nor by the same channel after it was forgotten."""
    epochs = []
    for _ in range(3):
        store = open_store()
        for life in range(10):
            now = life * 100.0
            store.tick(now)
            epochs += [append(store, "x", b"c%d" % number, Retention(1, 10.0), now).epoch for number in range(5)]
    assert len(set(epochs)) == len(epochs) and all(0 < epoch < 2**64 for epoch in epochs)


def test_notices_alone_are_forgotten(open_store: OpenStore) -> None:
    """A channel that only ever saw people come and go leaves nothing; one in which somebody spoke stays as it is."""
    store, forever = open_store(), Retention(10)
    for key in (b"silent", b"spoken"):
        store.append(key, Kind.NOTICE, b"jack came", b"", forever, 0)
    append(store, "hello", b"spoken", forever)
    for key in (b"silent", b"spoken", b"unknown"):
        store.forget_notices(key)
    assert whole(store, b"silent") == [] and whole(store, b"spoken") == ["jack came", "hello"]
    assert len(store) == 1
    store.clear(b"spoken")
    assert (len(store), store.kept_bytes, store.position_bytes) == (0, 0, 0), "it was never to be resumed"


def test_the_channel_without_news_goes_first(open_store: OpenStore) -> None:
    """Over the bound the channel published to longest ago loses its oldest publications; to be resumed from there it
    says that it cannot, and it stands where it stood.
    """
    one = costs(open_store, 1)
    store = open_store(limit_bytes=3 * one + 2 * (costs(open_store, 2) - one))
    tops = {key: append(store, "x" * 100, key) for key in (b"a", b"b", b"c")}
    append(store, "y" * 100, b"a")
    append(store, "z" * 100, b"a")
    assert store.dropped == 0
    append(store, "w" * 100, b"c")
    assert (whole(store, b"b"), store.dropped) == ([], 1)
    assert len(whole(store, b"a")) == 3 and len(whole(store, b"c")) == 2
    assert kept(store.since(b"b", tops[b"b"], *EVERYTHING, 0)) == Kept(*tops[b"b"], recovered=True, entries=[])
    assert not kept(store.since(b"b", tops[b"b"]._replace(offset=0), *EVERYTHING, 0)).recovered


def costs(open_store: OpenStore, messages: int) -> int:
    """Return what a channel named by one byte costs that keeps so many messages of 100 bytes."""
    store = open_store()
    for _ in range(messages):
        append(store, "x" * 100, b"k")
    return store.kept_bytes


def test_all_channels_are_bounded_in_bytes(open_store: OpenStore) -> None:
    """Whatever is published, also what is larger than everything; a lower bound holds from the next publication on."""
    store = open_store(limit_bytes=5000)
    append(store, "x", b"a")
    append(store, "x" * 6000, b"b")
    assert (whole(store, b"a"), whole(store, b"b"), store.kept_bytes, store.dropped) == ([], [], 0, 2)
    store.limit_bytes = PLENTY
    for number in range(100):
        append(store, "x" * 100, b"%d" % number)
    store.limit_bytes = 20_000
    append(store, "x", b"new")
    assert 0 < store.kept_bytes <= 20_000 and whole(store, b"new") == ["x"]
    store.limit_bytes = 0
    append(store, "y", b"new")
    assert (store.kept_bytes, whole(store, b"new")) == (0, [])


def test_channels_without_number_leave_no_trace(open_store: OpenStore) -> None:
    """A million of them, published to, asked about and left, over and over: counts come back to nothing, and are no
    more in between than what lives at once allows.
    """
    store, short = open_store(), Retention(3, 10.0)
    channels, step = 1_000_000, 5000
    most = 0
    for first in range(0, channels, step):
        now = first / 1000  # 1000 new ones a second, which live for ten
        for number in range(first, first + step):
            key = b"c%d" % number
            match number % 4:
                case 0:
                    store.append(key, Kind.DATA, b"{}", b"", short, now)
                case 1:
                    store.open(key, short, now)
                    store.newest(key, 10, 1000, now)
                case 2:
                    store.append(key, Kind.DATA, b"{}", b"", short, now)
                    store.clear(key)
                case _:
                    store.append(key, Kind.NOTICE, b"", b"", Retention(3), now)
                    store.forget_notices(key)
        store.tick(now)
        most = max(most, len(store))
    assert most <= 20_000
    store.tick(channels / 1000 + 100)
    assert (len(store), store.kept_bytes, store.position_bytes, store.dropped) == (0, 0, 0, 0)


class Channel:
    """A channel of the model: all that was ever published to it in one life.

    first: the offset of the oldest that may be kept.  bounds: of what was published last.
    """

    def __init__(self, epoch: int, retention: Retention, now: float) -> None:
        self.epoch = epoch
        self.entries: list[tuple[Entry, float]] = []
        self.first = 1
        self.retention = retention
        self.touched = now

    @property
    def offset(self) -> int:
        return len(self.entries)

    @property
    def position(self) -> Position:
        return Position(self.offset, self.epoch)

    def kept(self) -> list[Entry]:
        return [entry for entry, _ in self.entries[self.first - 1 :]]

    def size(self) -> int:
        return sum(len(bus.pack(entry)) + ENTRY_BYTES for entry in self.kept())

    def trim(self) -> None:
        while self.first <= self.offset and (
            self.offset - self.first + 1 > self.retention.messages or self.size() > self.retention.size
        ):
            self.first += 1

    def expire(self, now: float) -> None:
        while self.first <= self.offset and self.entries[self.first - 1][1] + self.retention.seconds <= now:
            self.first += 1


class Story:
    """A store and its model, told the same, with plenty of room; every answer is compared."""

    def __init__(self, store: HistoryStore, inside: set[bytes], chance: random.Random) -> None:
        self.store = store
        self.inside = inside
        self.chance = chance
        self.channels: dict[bytes, Channel] = {}
        self.seen: dict[bytes, list[Position]] = {}  # positions that somebody has been told, of any life
        self.now = 0.0
        self.keys = [b"k" * chance.randrange(1, 20) + b"%d" % number for number in range(chance.randrange(1, 10))]
        self.retentions = [
            Retention(chance.randrange(1, 9), chance.choice((1.0, 5.0, 30.0)), chance.choice((300, 1000, 10**6)))
            for _ in range(chance.choice((1, 3)))
        ]

    def run(self, steps: int) -> None:
        acts = [self.append] * 5 + [self.since] * 3 + [self.newest, self.page, self.open, self.clear, self.wait]
        acts += [self.come_or_go]
        for _ in range(steps):
            self.chance.choice(acts)(self.chance.choice(self.keys))

    def told(self, key: bytes, position: Position) -> None:
        self.seen.setdefault(key, []).append(position)

    def live(self, key: bytes, retention: Retention, epoch: int) -> Channel:
        """Return the model's channel; a new one has an epoch that nobody has seen."""
        channel = self.channels.get(key)
        if channel is None:
            assert all(epoch != position.epoch for positions in self.seen.values() for position in positions)
            channel = self.channels[key] = Channel(epoch, retention, self.now)
        channel.retention, channel.touched = retention, self.now
        return channel

    def append(self, key: bytes) -> None:
        retention = self.chance.choice(self.retentions)
        kind = self.chance.choice((Kind.MESSAGE, Kind.DATA, Kind.NOTICE))
        data, extras = self.chance.randbytes(self.chance.randrange(150)), b"x" * self.chance.randrange(50)
        position = self.store.append(key, kind, data, extras, retention, self.now)
        channel = self.live(key, retention, position.epoch)
        channel.entries.append((Entry(channel.offset + 1, kind, data, extras), self.now))
        channel.trim()
        assert position == channel.position
        self.told(key, position)

    def open(self, key: bytes) -> None:
        retention = self.chance.choice(self.retentions)
        position = self.store.open(key, retention, self.now)
        assert position == self.live(key, retention, position.epoch).position
        self.told(key, position)

    def current(self, key: bytes) -> tuple[Channel | None, Position]:
        channel = self.channels.get(key)
        if channel is None:
            return None, Position(0, 0)
        channel.expire(self.now)
        return channel, channel.position

    def since(self, key: bytes) -> None:
        channel, position = self.current(key)
        asked = self.chance.choice(self.seen.get(key) or [Position(0, 12345)])
        if self.chance.randrange(3) == 0:
            asked = asked._replace(offset=self.chance.randrange(20))
        messages, size = self.chance.choice((0, 1, 3, 100)), self.chance.choice((0, 300, 1000, 10**6))
        answer = kept(self.store.since(key, asked, messages, size, self.now))
        missed = [] if channel is None else [entry for entry, _ in channel.entries[asked.offset :]]
        is_whole = (
            channel is not None
            and asked.epoch == channel.epoch
            and channel.first - 1 <= asked.offset <= channel.offset
            and len(missed) <= messages
            and sum(len(bus.pack(entry)) + ENTRY_BYTES for entry in missed) <= size
        )
        assert answer == Kept(*position, recovered=is_whole, entries=missed if is_whole else [])

    def newest(self, key: bytes) -> None:
        channel, position = self.current(key)
        messages, size = self.chance.choice((0, 2, 100)), self.chance.choice((0, 500, 10**6))
        answer = kept(self.store.newest(key, messages, size, self.now))
        entries = [] if channel is None else channel.kept()
        while entries and (
            len(entries) > messages or sum(len(bus.pack(entry)) + ENTRY_BYTES for entry in entries) > size
        ):
            del entries[0]
        assert answer == Kept(*position, recovered=False, entries=entries)

    def page(self, key: bytes) -> None:
        channel, position = self.current(key)
        asked = self.chance.choice([None, *self.seen.get(key, [])])
        messages, reverse = self.chance.choice((0, 2, 100)), self.chance.random() < 0.5
        answer = kept(self.store.page(History(key, messages, asked, reverse), self.now))
        entries = [] if channel is None else channel.kept()
        is_known = channel is not None and (asked is None or asked.epoch == channel.epoch)
        if reverse:
            entries = [entry for entry in entries[::-1] if asked is None or entry.offset < asked.offset]
        else:
            entries = [entry for entry in entries if asked is None or entry.offset > asked.offset]
        assert answer == Kept(*position, recovered=is_known, entries=entries[:messages] if is_known else [])

    def clear(self, key: bytes) -> None:
        self.store.clear(key)
        channel, _ = self.current(key)
        if channel is not None:
            channel.first = channel.offset + 1

    def come_or_go(self, key: bytes) -> None:
        self.inside ^= {key}

    def wait(self, _: bytes) -> None:
        self.now += self.chance.choice((0.0, 0.5, 1.0, 7.0))
        self.store.tick(self.now)
        for key, channel in list(self.channels.items()):
            channel.expire(self.now)
            is_over = channel.first > channel.offset and channel.touched + channel.retention.seconds <= self.now
            if is_over and key not in self.inside:
                del self.channels[key]
            elif is_over:
                channel.touched = self.now
        assert len(self.store) == len(self.channels)

    def leave_all(self) -> None:
        """Wait until nothing can be kept or remembered any more."""
        self.inside.clear()
        for _ in range(3):  # a channel with somebody in it was looked at not long ago
            self.now += 31
            self.wait(b"")


@pytest.mark.parametrize("seed", range(60))
def test_against_a_model(open_store: OpenStore, seed: int) -> None:
    """Many channels, whatever is published, asked, cleared and waited for, whoever is in them: offsets are contiguous,
    `since` is exact or refused, every answer is what lists would say, and after all retention nothing is left.
    """
    chance = random.Random(seed)
    inside: set[bytes] = set()
    story = Story(open_store(is_wanted=inside.__contains__), inside, chance)
    story.run(600)
    story.leave_all()
    assert (len(story.store), story.store.kept_bytes, story.store.position_bytes) == (0, 0, 0)
    assert story.store.dropped == 0
