"""When messages are written: gathering, slices, counts; with receivers that take notes and a clock that tests move."""

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastpush.config import Compression, Fanout
from fastpush.fanout import DEFLATE, ENVELOPE, GZIP, PLAIN, Hub, batch, pump
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import EVERYBODY, user_key
from tests.unit.test_fanout import KEY, OTHER, Taker, make_hub, publication, run, until

CHUNK = pump._CLOCK_EVERY  # receivers between two looks at the clock
LARGE = CHUNK * 5 // 2  # members of a group that is sliced and gathers


class Clock:
    """Stands for perf_counter and monotonic; time passes only when a test or a receiver says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.write_seconds = 0.0  # what one write costs

    def __call__(self) -> float:
        return self.now

    def on_send(self) -> None:
        self.now += self.write_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pump, "perf_counter", made)
    monkeypatch.setattr(pump, "monotonic", made)
    return made


@dataclass
class Stage:
    """A hub, its receivers, and the counts that were told: (number of the push, count)."""

    clock: Clock
    hub: Hub
    counters: Counters
    counts: list[tuple[int, int]] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)
    known: dict[int, Taker] = field(default_factory=dict)  # by what a publication calls them

    def takers(self, count: int, *keys: bytes, **kwargs: Any) -> list[Taker]:
        return [self.taker(*keys, **kwargs) for _ in range(count)]

    def taker(self, *keys: bytes, **kwargs: Any) -> Taker:
        taker = self.known_as(Taker(self.hub, on_send=self.clock.on_send, **kwargs))
        for key in keys:
            self.hub.join(taker, key)
        return taker

    def push(self, *keys: bytes, text: str = "", spared: Taker | None = None) -> int:
        """Deliver a publication whose text is its number, unless one is given."""
        number = next(self.numbers)
        pushed = publication(
            *(keys or (KEY,)), message=text or str(number), taken_seconds=self.clock.now,
            spared=0 if spared is None else id(spared),
        )  # fmt: skip
        self.hub.deliver(pushed, lambda count: self.counts.append((number, count)))
        return number

    def known_as(self, taker: Taker) -> Taker:
        """Have publications spare it."""
        self.known[id(taker)] = taker
        return taker

    def pushes(self, count: int, *keys: bytes) -> None:
        for _ in range(count):
            self.push(*keys)

    async def quiet(self) -> None:
        """Wait until all flushes have ended, and the turn after the last one has found nothing."""
        await until(lambda: not self.hub._pump._flushes and not self.hub._pump._is_scheduled)

    async def counted(self, number: int) -> None:
        """Wait until so many pushes are counted."""
        await until(lambda: len(self.counts) >= number)


def stage(
    clock: Clock, *, max_delay_ms: float = 5, slice_ms: float = 100, write_bytes: int = 65536,
    compression: Compression | None = None,
) -> Stage:  # fmt: skip
    counters = Counters()
    fanout = Fanout(max_delay_ms=max_delay_ms, slice_ms=slice_ms)
    known: dict[int, Taker] = {}
    hub = make_hub(
        fanout=fanout, write_bytes=write_bytes, counters=counters, compression=compression, find=known.get
    )  # fmt: skip
    return Stage(clock, hub, counters, known=known)


def half_written(clock: Clock, members: int = LARGE, **kwargs: Any) -> tuple[Stage, list[Taker], list[Taker]]:
    """Push number 0 to a large group, of which one slice is written: a stage, and who has it and who has not."""
    clock.write_seconds = 0.001
    made = stage(clock, **{"slice_ms": 1, **kwargs})
    takers = made.takers(members, KEY)
    made.push()
    reached = [taker for taker in takers if taker.frames]
    waiting = [taker for taker in takers if not taker.frames]
    assert (len(reached), len(waiting), made.counts) == (CHUNK, members - CHUNK, [])
    return made, reached, waiting


async def resting(clock: Clock, write_seconds: float, **kwargs: Any) -> tuple[Stage, list[Taker]]:
    """Let a large group rest: 0 was written, and meanwhile 1 and 2 gathered, whose writes took `write_seconds` each."""
    made, reached, waiting = half_written(clock, **kwargs)
    made.pushes(2)
    clock.write_seconds = write_seconds
    await made.counted(3)
    await made.quiet()
    assert made.counts == [(number, LARGE) for number in range(3)]
    return made, [*reached, *waiting]


def texts(first: int, end: int) -> list[str]:
    return [str(number) for number in range(first, end)]


# Gathering


@pytest.mark.parametrize("members", [1, 8, 9, 1000])
def test_an_idle_key_is_written_at_once(clock: Clock, members: int) -> None:
    """No turn of the loop and no timer is waited for: when deliver returns, everybody has it and the count is told."""

    async def scenario() -> None:
        shown = stage(clock)
        takers = shown.takers(members, KEY)
        shown.push()
        assert [taker.texts for taker in takers] == [["0"]] * members
        assert shown.counts == [(0, members)]
        shown.push(OTHER)
        assert shown.counts[1:] == [(1, 0)]

    run(scenario())


def test_a_busy_key_gathers_and_leaves_in_one_write(clock: Clock) -> None:
    """What comes while a key is written to leaves as one write a receiver, and so does what comes while it rests: the
    same bytes for all, one frame a message, in order; each push is counted once, in order.
    """

    async def scenario() -> None:
        shown, takers = await resting(clock, 0.0001)
        shown.pushes(3)
        assert all(taker.texts == texts(0, 3) for taker in takers)
        assert len(shown.counts) == 3
        await shown.counted(6)
        assert shown.counts == [(number, LARGE) for number in range(6)]
        assert all(taker.texts == texts(0, 6) for taker in takers)
        for position, numbers in ((1, ("1", "2")), (2, ("3", "4", "5"))):
            joined = {id(taker.writes[position]) for taker in takers}
            assert len(joined) == 1
            assert takers[0].writes[position] == b"".join(text_frame(text.encode()) for text in numbers)
        assert (shown.counters.deliveries, shown.counters.writes) == (6 * LARGE, 3 * LARGE)

    run(scenario())


@pytest.mark.parametrize("write_ms", [0.01, 0.05, 1, 1000])
@pytest.mark.parametrize("max_delay_ms", [0, 1, 5])
def test_after_a_batch_of_several_a_key_rests(clock: Clock, write_ms: float, max_delay_ms: float) -> None:
    """The next flush comes no sooner than that one's duration, at most max_delay_ms; then the key is idle again."""

    async def scenario() -> None:
        shown, takers = await resting(clock, write_ms / 1000, max_delay_ms=max_delay_ms)
        flow = takers[0].groups[0].flow
        assert flow is not None
        rest_ms = min(LARGE * write_ms, max_delay_ms)
        assert flow.ready_at - clock.now == pytest.approx(rest_ms / 1000, abs=1e-6)
        clock.write_seconds = 0
        clock.now = flow.ready_at
        shown.push()
        assert shown.counts[3:] == [(3, LARGE)]

    run(scenario())


@pytest.mark.parametrize(("slice_ms", "turns"), [(10_000, 0), (1, LARGE // CHUNK + 1)])
def test_who_waits_for_each_push_is_never_delayed(clock: Clock, slice_ms: float, turns: int) -> None:
    """After a flush of a single message the next one is written at once, however long that took: in the call itself,
    or, when the group is sliced, in as many turns of the loop as it has slices. No timer is planned.
    """

    async def scenario() -> None:
        clock.write_seconds = 0.001
        shown = stage(clock, slice_ms=slice_ms)
        takers = shown.takers(LARGE, KEY)
        flow = None
        for number in range(20):
            shown.push()
            flow = takers[0].groups[0].flow
            assert flow is not None and flow.wake is None
            for _ in range(turns):
                await asyncio.sleep(0)
            assert shown.counts[number:] == [(number, LARGE)]
            assert flow.ready_at <= clock.now
        assert {len(taker.writes) for taker in takers} == {20}

    run(scenario())


def test_a_single_message_ends_the_resting(clock: Clock) -> None:
    """Once the rest after a batch is over, a flush of one message has no rest behind it, nor the next one."""

    async def scenario() -> None:
        shown, _ = await resting(clock, 0.0001)
        shown.push()
        assert len(shown.counts) == 3, "it waits for the rest of 1 and 2"
        await shown.counted(4)
        await shown.quiet()
        clock.write_seconds = 0
        shown.pushes(2)
        assert shown.counts[3:] == [(3, LARGE), (4, LARGE), (5, LARGE)]

    run(scenario())


def test_less_than_a_millisecond_is_one_turn_of_the_loop(clock: Clock) -> None:
    """The loop's timers are no finer: what is waited for is a turn, in which more may gather; 0 ms are not."""

    async def scenario() -> None:
        shown, takers = await resting(clock, 0.00001)
        shown.pushes(4)
        assert len(shown.counts) == 3
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert shown.counts[3:] == [(number, LARGE) for number in range(3, 7)]
        assert {len(taker.writes) for taker in takers} == {3}
        hasty, _ = await resting(clock, 0.00001, max_delay_ms=0)
        clock.write_seconds = 0
        hasty.pushes(4)
        assert hasty.counts[3:] == [(number, LARGE) for number in range(3, 7)]

    run(scenario())


def test_write_bytes_bounds_a_batch(clock: Clock) -> None:
    """write_bytes that have gathered wait no more; a batch is at most so many bytes, or one message; order is kept."""

    async def scenario() -> None:
        frame_bytes = 102
        shown, takers = await resting(clock, 1, max_delay_ms=1000, write_bytes=3 * frame_bytes)
        clock.write_seconds = 0
        sent = [str(number) * 100 for number in range(1, 9)]
        for text in sent[:2]:
            shown.push(text=text)
        assert len(shown.counts) == 3, "204 bytes wait"
        shown.push(text=sent[2])
        assert [count for _, count in shown.counts] == [LARGE] * 6, "306 do not"
        made, _, waiting = half_written(clock, write_bytes=3 * frame_bytes)
        for text in (*sent[3:], "x" * 1000, "y"):
            made.push(text=text)
        await made.counted(8)
        assert waiting[0].texts == ["0", *sent[3:], "x" * 1000, "y"]
        sizes = [len(write) for write in waiting[0].writes]
        assert sizes == [3, 3 * frame_bytes, 2 * frame_bytes, 1004, 3]
        assert [taker.texts for taker in takers] == [[*texts(0, 3), *sent[:3]]] * LARGE

    run(scenario())


def test_what_a_full_batch_leaves_behind_is_measured_anew(clock: Clock) -> None:
    """After a full batch the rest waits for nothing while it is write_bytes again, else for its key's time."""

    async def scenario() -> None:
        made, _, _ = half_written(clock, max_delay_ms=1000, write_bytes=6)
        clock.write_seconds = 1
        made.pushes(7)  # of 3 bytes each
        for _ in range(100):
            await asyncio.sleep(0)
        assert [number for number, _ in made.counts] == [*range(7)], "the last one waits for a second"
        made.push()  # with this one it is a full batch
        await made.counted(9)

    run(scenario())


def test_a_few_receivers_are_not_worth_a_clock(clock: Clock) -> None:
    """A key of up to eight receivers never gathers, however long its writes take, and keeps nothing between them."""

    async def scenario() -> None:
        shown = stage(clock)
        takers = shown.takers(8, KEY)
        clock.write_seconds = 1
        shown.pushes(3)
        assert shown.counts == [(0, 8), (1, 8), (2, 8)]
        assert [taker.groups[0].flow for taker in takers] == [None] * 8

    run(scenario())


def test_a_group_that_has_shrunk_forgets_its_clock(clock: Clock) -> None:
    """Once few are left and what had gathered is written, their key is written at once again."""

    async def scenario() -> None:
        made, reached, waiting = half_written(clock)
        made.pushes(2)
        for taker in (*reached, *waiting[:-8]):
            made.hub.leave(taker)
        await made.counted(3)
        assert made.counts == [(number, LARGE) for number in range(3)]
        assert waiting[-1].groups[0].flow is None
        made.push()
        assert made.counts[3:] == [(3, 8)]

    run(scenario())


# Joining and leaving meanwhile


def test_a_newcomer_gets_nothing_older(clock: Clock) -> None:
    """Whoever joins while messages are gathered gets none of those, and all later ones, in however many batches."""

    async def scenario() -> None:
        frame_bytes = 3
        for batch_frames in (1, 2, 3, 100):
            made, reached, _ = half_written(clock, write_bytes=batch_frames * frame_bytes)
            at_flush = made.taker(KEY)
            made.pushes(2)
            early = made.taker(KEY)
            made.pushes(4)
            late = made.taker(KEY)
            made.pushes(3)
            last = made.taker(KEY)
            await made.counted(10)
            assert reached[0].texts == texts(0, 10)
            assert at_flush.texts == texts(1, 10)
            assert (early.texts, late.texts, last.texts) == (texts(3, 10), texts(7, 10), [])
            made.push()
            await made.counted(11)
            assert [taker.texts[-1] for taker in (at_flush, early, late, last)] == ["10"] * 4
            members = [LARGE, *[LARGE + 1] * 2, *[LARGE + 2] * 4, *[LARGE + 3] * 3, LARGE + 4]
            assert made.counts == list(enumerate(members))

    run(scenario())


def test_a_leaver_has_all_that_was_counted_for_it(clock: Clock) -> None:
    """Whoever leaves a key that is gathering or half written has everything when leave() returns, and counts for it."""

    async def scenario() -> None:
        made, reached, waiting = half_written(clock)
        made.pushes(2)
        made.hub.leave(reached[0])
        made.hub.leave(waiting[0])
        for leaver in (reached[0], waiting[0]):
            assert leaver.texts == texts(0, 3)
        made.pushes(2)
        newcomer = made.taker(KEY)
        made.push()
        made.hub.leave(newcomer)
        assert newcomer.texts == ["5"]
        await made.counted(6)
        assert made.counts == [(0, LARGE), (1, LARGE), (2, LARGE), (3, LARGE - 2), (4, LARGE - 2), (5, LARGE - 1)]
        assert reached[1].texts == waiting[1].texts == texts(0, 6)
        assert (reached[0].texts, waiting[0].texts, newcomer.texts) == (texts(0, 3), texts(0, 3), ["5"])

    run(scenario())


def test_leave_and_join_again_in_one_window(clock: Clock) -> None:
    """What came before the leave, once, and what came after the second join, once; nothing of what came between."""

    async def scenario() -> None:
        for batch_bytes in (3, 6, 65536):
            made, reached, waiting = half_written(clock, write_bytes=batch_bytes)
            restless = [reached[0], waiting[0]]
            for _ in range(2):
                made.push()
                for taker in restless:
                    made.hub.leave(taker)
                made.push()
                for taker in restless:
                    made.hub.join(taker, KEY)
                made.push()
            await made.counted(7)
            assert [taker.texts for taker in restless] == [["0", "1", "3", "4", "6"]] * 2
            assert [count for _, count in made.counts] == [LARGE, LARGE, LARGE - 2, LARGE, LARGE, LARGE - 2, LARGE]

    run(scenario())


@pytest.mark.parametrize("gathered", [0, 3])
def test_the_last_leaver_settles_the_counts(clock: Clock, gathered: int) -> None:
    """When nobody is left, what had gathered or was half written is counted at once, and the key is gone."""

    async def scenario() -> None:
        made, reached, waiting = half_written(clock)
        made.pushes(gathered)
        for taker in (*waiting, *reached):
            assert made.counts == []
            made.hub.leave(taker)
        assert made.counts == [(number, LARGE) for number in range(gathered + 1)]
        assert len(made.hub) == 0
        assert all(taker.texts == texts(0, gathered + 1) for taker in (*waiting, *reached))
        again = made.takers(LARGE, KEY)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(taker.frames for taker in again)
        assert len(made.counts) == gathered + 1

    run(scenario())


def test_the_last_leaver_of_a_waiting_key_settles_the_counts(clock: Clock) -> None:
    """So it is while the key waits for its timer, which then finds nothing: neither key nor a new one of its name."""

    async def scenario() -> None:
        for write_seconds in (0.00001, 0.0002):  # waited for by a turn, by a timer
            shown, takers = await resting(clock, write_seconds)
            shown.pushes(3)
            assert len(shown.counts) == 3
            for taker in takers:
                shown.hub.leave(taker)
            assert shown.counts == [(number, LARGE) for number in range(6)]
            newcomers = shown.takers(20, KEY)
            fired = asyncio.Event()
            asyncio.get_running_loop().call_later(0.01, fired.set)  # behind whatever the old key planned
            await fired.wait()
            assert not any(taker.frames for taker in newcomers)
            shown.push()
            assert shown.counts[6:] == [(6, 20)]

    run(scenario())


# Slices


def test_slices_take_turns(clock: Clock) -> None:
    """Between the slices of a broadcast everything has its turn: a small push at once, a callback of the loop each
    slice, another large group slice by slice; each key's order is kept and nobody is written twice.
    """

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        large, other = made.takers(10 * CHUNK, KEY), made.takers(10 * CHUNK, OTHER)
        small_key = user_key("v", "e")
        small = made.takers(3, small_key, user="v")
        made.push()
        made.push(OTHER)
        assert (sum(len(taker.frames) for taker in large), sum(len(taker.frames) for taker in other)) == (CHUNK, 0)
        made.push(small_key)
        assert made.counts == [(2, 3)]
        progress: list[tuple[int, int]] = []
        while len(made.counts) < 3:
            progress.append((sum(len(t.frames) for t in large), sum(len(t.frames) for t in other)))
            await asyncio.sleep(0)
            if len(progress) == 5:
                made.push(small_key)
                assert made.counts[-1] == (3, 3)
        await made.counted(4)
        assert {len(taker.frames) for taker in (*large, *other)} == {1}
        assert {len(taker.frames) for taker in small} == {2}
        for before, after in itertools.pairwise(progress):
            assert sum(after) - sum(before) <= CHUNK
            assert abs(after[0] - after[1]) <= 2 * CHUNK
        assert made.counts == [(2, 3), (3, 3), (0, 10 * CHUNK), (1, 10 * CHUNK)]

    run(scenario())


def test_a_slice_is_spent_once_a_turn(clock: Clock) -> None:
    """However many large groups are pushed to within one turn, together they take one slice of it."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        groups = [made.takers(LARGE, user_key("u", str(number))) for number in range(10)]
        for number in range(10):
            made.push(user_key("u", str(number)))
        assert sum(len(taker.frames) for group in groups for taker in group) == CHUNK
        await made.counted(10)
        assert all(len(taker.frames) == 1 for group in groups for taker in group)

    run(scenario())


def test_newcomers_are_sliced_too(clock: Clock) -> None:
    """Those who joined between gathered messages are written to at the end of these' flush, within its slices."""

    async def scenario() -> None:
        made, _, _ = half_written(clock)
        made.push()
        newcomers = made.takers(LARGE, KEY)
        made.push()
        progress = [0]
        while len(made.counts) < 3:
            await asyncio.sleep(0)
            progress.append(sum(len(taker.writes) for taker in newcomers))
        assert max(after - before for before, after in itertools.pairwise(progress)) == 1, "each costs a slice"
        assert {tuple(taker.texts) for taker in newcomers} == {("2",)}
        assert made.counts == [(0, LARGE), (1, LARGE), (2, 2 * LARGE)]

    run(scenario())


def test_order_is_kept_while_a_group_is_sliced(clock: Clock) -> None:
    """Messages that come between the slices of one arrive behind it with everybody, once, in order."""

    async def scenario() -> None:
        made, reached, waiting = half_written(clock, members=100)
        for _ in range(29):
            await asyncio.sleep(0)
            made.push()
        await made.counted(30)
        for taker in (*reached, *waiting):
            assert taker.texts == texts(0, 30)
        assert made.counts == [(number, 100) for number in range(30)]

    run(scenario())


# Several keys


def test_a_push_by_several_keys_comes_behind_what_these_have_gathered(clock: Clock) -> None:
    """Each connection once, behind what its keys had gathered; later messages of each key come after it."""

    async def scenario() -> None:
        made, reached, waiting = half_written(clock)
        others, both = made.takers(LARGE, OTHER), made.takers(LARGE, KEY, OTHER)
        made.pushes(2, KEY)  # 1, 2
        made.pushes(2, OTHER)  # 3, 4
        made.push(KEY, OTHER, b"unknown")  # 5
        assert made.counts == [(0, LARGE), (1, 2 * LARGE), (2, 2 * LARGE), (3, 2 * LARGE), (4, 2 * LARGE)]
        made.push(KEY)  # 6
        made.push(OTHER)  # 7
        assert len(made.counts) == 5, "the one by two keys is being sliced"
        await made.counted(8)
        assert dict(made.counts[5:]) == {5: 3 * LARGE, 6: 2 * LARGE, 7: 2 * LARGE}
        assert made.counts[5][0] == 5
        for taker in (*reached, *waiting):
            assert taker.texts == ["0", "1", "2", "5", "6"]
        for taker in others:
            assert taker.texts == ["3", "4", "5", "7"]
        for taker in both:
            assert sorted(taker.texts) == texts(1, 8)
            for own in (("1", "2", "5", "6"), ("3", "4", "5", "7")):
                assert [text for text in taker.texts if text in own] == list(own)

    run(scenario())


def test_one_push_by_several_keys_behind_another(clock: Clock) -> None:
    """Pushes whose keys overlap are written one behind the other, though each is sliced; each key's order is kept."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        third = user_key("u", "g")
        every = (KEY, OTHER, third)
        takers = {keys: made.takers(CHUNK, *keys) for keys in ((KEY,), (OTHER,), (third,), every)}
        for keys in ((KEY, OTHER), (OTHER, third), (KEY, third), (KEY, KEY, OTHER), (KEY,), (third,)):
            made.push(*keys)
        await made.counted(6)
        members = [3 * CHUNK] * 4 + [2 * CHUNK] * 2
        assert sorted(made.counts) == list(enumerate(members))
        expected = {KEY: ["0", "2", "3", "4"], OTHER: ["0", "1", "3"], third: ["1", "2", "5"]}
        for keys, group in takers.items():
            for taker in group:
                assert sorted(taker.texts) == sorted(set().union(*(expected[key] for key in keys)))
                for key in keys:
                    assert [text for text in taker.texts if text in expected[key]] == expected[key]

    run(scenario())


def test_changes_while_a_push_by_several_keys_is_sliced(clock: Clock) -> None:
    """Who leaves has it, who joins has not, who joins a second of its keys has it once; when the last one of a key has
    left it goes on for the others, in slices.
    """

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        takers, others = made.takers(LARGE, KEY), made.takers(LARGE, OTHER)
        made.push(KEY, OTHER)
        waiting = next(taker for taker in takers if not taker.frames)
        doubled = next(taker for taker in takers if not taker.frames and taker is not waiting)
        made.hub.leave(waiting)
        assert waiting.texts == ["0"]
        made.hub.join(doubled, OTHER)
        newcomer = made.taker(KEY, OTHER)
        made.push(OTHER)
        for taker in (*takers, newcomer):
            made.hub.leave(taker)
        assert made.counts == [] and not all(taker.frames for taker in others)
        await made.counted(2)
        assert made.counts == [(0, 2 * LARGE), (1, LARGE + 2)]
        assert {tuple(taker.texts) for taker in others} == {("0", "1")}
        assert (doubled.texts, newcomer.texts) == (["0", "1"], ["1"])

    run(scenario())


# Those who do not take


def test_who_takes_a_part_counts_for_that(clock: Clock) -> None:
    """Of a batch that its queue cuts off, a receiver counts for the first messages only; newcomers, leavers alike."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        takers = made.takers(LARGE, KEY)
        full, two_more, leaver = made.taker(KEY, room=1), made.taker(KEY, room=3), made.taker(KEY, room=2)
        made.push()
        made.push()
        newcomer = made.taker(KEY, room=1)
        made.pushes(2)
        made.hub.leave(leaver)
        await made.counted(4)
        assert [len(taker.frames) for taker in (full, two_more, leaver, newcomer)] == [1, 3, 2, 1]
        # 0 and 1: all with room; 2: the newcomer's only one, and two_more's last; 3: nobody of them.
        assert made.counts == [(0, LARGE + 3), (1, LARGE + 2), (2, LARGE + 2), (3, LARGE)]
        assert newcomer.texts == ["2"]
        assert {tuple(taker.texts) for taker in takers} == {("0", "1", "2", "3")}
        assert made.counters.deliveries == sum(count for _, count in made.counts)

    run(scenario())


def test_who_fails_costs_the_others_nothing(clock: Clock) -> None:
    """Receivers that take nothing are closed after the walk, in the middle of a sliced flush, too; others have it."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        made = stage(clock, slice_ms=1)
        failing, takers = made.takers(LARGE, KEY, room=0), made.takers(LARGE, KEY)
        made.push()
        assert not any(taker.slow for taker in failing)
        await made.counted(1)
        await until(lambda: all(taker.slow for taker in failing))
        made.push()
        await made.counted(2)
        assert made.counts == [(0, LARGE), (1, LARGE)]
        assert {tuple(taker.texts) for taker in takers} == {("0", "1")}
        assert len(made.hub.connections("u", "e")) == LARGE

    run(scenario())


@pytest.mark.parametrize("form", [ENVELOPE, DEFLATE, GZIP, ENVELOPE | GZIP, ENVELOPE | DEFLATE])
def test_forms_are_joined_like_plain_ones(clock: Clock, form: int) -> None:
    """Gathered messages of another wire form leave as one write too, the same for all of that form."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        shown = stage(clock, slice_ms=1, compression=Compression(min_bytes=0))
        takers, plain = shown.takers(LARGE, KEY, form=form), shown.takers(LARGE, KEY, form=PLAIN)
        shown.pushes(4)
        assert shown.counts == []
        await shown.counted(4)
        for group in (takers, plain):
            assert [len(taker.writes) for taker in group] == [2] * LARGE
            assert len({id(taker.writes[1]) for taker in group}) == 1
            assert len(group[0].frames) == 4
        assert takers[0].writes[1] != plain[0].writes[1]
        assert all(frame[0] & 0x0F == (2 if form & GZIP else 1) for frame in takers[0].frames)

    run(scenario())


# Against a model


class Kernel:
    """Stands for os: takes all of a write, a part of it, or would block."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.takers: list[WritableTaker] = []  # by descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        size = self.chance.choice((len(data), len(data), self.chance.randrange(len(data))))
        if not size:
            raise BlockingIOError
        self.takers[descriptor].take(data[:size])
        return size


class WritableTaker(Taker):
    """A taker whose descriptor is written to, and that is its own transport; `frames` are the same."""

    def __init__(self, hub: Hub, *, kernel: Kernel, **kwargs: Any) -> None:
        super().__init__(hub, **kwargs)
        self.writable = self
        self.descriptor = len(kernel.takers)
        self.unread = b""  # the beginning of a frame
        kernel.takers.append(self)

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | memoryview) -> None:
        self.take(bytes(data))

    def take(self, data: bytes) -> None:
        if self.on_send is not None:
            self.on_send()
        unread = self.unread + data
        while len(unread) > 1 and len(unread) >= 2 + unread[1]:
            self.frames.append(unread[: 2 + unread[1]])
            unread = unread[2 + unread[1] :]
        self.unread = unread

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        assert not self.unread, "a frame within another"
        return super().send_joined(joined, frames)


class Model:
    """What each receiver has to see, kept without any gathering: a push goes to who is a member when it comes.

    Every other receiver's descriptor is written to.
    """

    def __init__(self, clock: Clock, chance: random.Random, kernel: Kernel) -> None:
        self.chance = chance
        clock.write_seconds = chance.choice((0.00001, 0.0001, 0.001))
        self.stage = stage(
            clock, max_delay_ms=chance.choice((0, 0.5, 2)), slice_ms=chance.choice((0.1, 1, 100)),
            write_bytes=chance.choice((3, 20, 65536)),
        )  # fmt: skip
        self.keys = [user_key("u", event) for event in "abcd"]
        crowd = chance.choice((6, 12, 60))
        self.takers = [self.stage.taker() for _ in range(crowd // 2)]
        hub, on_send = self.stage.hub, clock.on_send
        self.takers += [
            self.stage.known_as(WritableTaker(hub, kernel=kernel, on_send=on_send)) for _ in range(crowd // 2)
        ]
        self.members: dict[bytes, set[Taker]] = {key: set() for key in (*self.keys, EVERYBODY)}
        self.owed: dict[Taker, dict[bytes, list[str]]] = {}
        self.expected: dict[int, int] = {}
        self.keys_of: dict[int, set[bytes]] = {}
        self.seen = 0

    def push(self, *keys: bytes) -> None:
        """Every other one spares somebody, member or not."""
        spared = self.chance.choice((None, self.chance.choice(self.takers)))
        receivers = set().union(*(self.members[key] for key in keys)) - {spared}
        number = len(self.expected)
        self.expected[number] = len(receivers)
        self.keys_of[number] = {key for key in keys if self.members[key]}
        for receiver in receivers:
            for key in keys:
                if receiver in self.members[key]:
                    self.owed[receiver].setdefault(key, []).append(str(number))
        assert self.stage.push(*keys, spared=spared) == number

    def leave_one(self) -> None:
        """What was pushed by that key until now is still owed."""
        taker = self.chance.choice(self.takers)
        key = self.chance.choice(self.keys)
        self.stage.hub.leave_one(taker, key)
        self.members[key].discard(taker)

    def join(self) -> None:
        taker = self.chance.choice(self.takers)
        key = self.chance.choice(self.keys)
        self.stage.hub.join(taker, key)
        self.stage.hub.join(taker, EVERYBODY)
        self.owed.setdefault(taker, {})
        self.members[key].add(taker)
        self.members[EVERYBODY].add(taker)

    def leave(self) -> None:
        taker = self.chance.choice(self.takers)
        self.stage.hub.leave(taker)
        for members in self.members.values():
            members.discard(taker)
        self.check(taker)

    def check(self, taker: Taker) -> None:
        """All that was delivered since the first join is there, once, in the order of each key."""
        owed = self.owed.pop(taker, {})
        got = taker.texts
        taker.frames.clear()
        assert not (isinstance(taker, WritableTaker) and taker.unread)
        assert len(got) == len(set(got))
        assert set(got) == set().union(*owed.values())
        for texts in owed.values():
            own = set(texts)
            assert [text for text in got if text in own] == texts
        self.seen += len(got)

    async def play(self, steps: int) -> None:
        push_one = lambda: self.push(self.chance.choice((*self.keys, EVERYBODY)))  # noqa: E731 - one of several
        push_several = lambda: self.push(*self.chance.sample(self.keys, self.chance.randint(2, 4)))  # noqa: E731
        actions: list[Callable[[], None]] = [
            push_one,
            push_one,
            push_one,
            push_several,
            self.join,
            self.join,
            self.leave,
            self.leave_one,
        ]
        for _ in range(self.chance.randrange(3 * len(self.takers))):
            self.join()
        for _ in range(steps):
            action = self.chance.randrange(len(actions) + 2)
            if action < len(actions):
                actions[action]()
            else:
                await asyncio.sleep(0)
        await self.stage.counted(len(self.expected))
        for taker in self.takers:
            self.check(taker)


@pytest.mark.parametrize("seed", range(120))
def test_random_pushes_joins_and_leaves(clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Whatever comes in whatever order, and however much a kernel takes of a write: each receiver sees exactly what was
    pushed between its join and its leave, of one key or all, and did not spare it, in order per key, once; each push is
    counted once, those of one key in order; the counts are what was seen.
    """
    chance = random.Random(seed)
    kernel = Kernel(chance)
    monkeypatch.setattr(batch, "os", kernel)

    async def scenario() -> None:
        model = Model(clock, chance, kernel)
        await model.play(300)
        counts = model.stage.counts
        assert len(counts) == len(dict(counts)) == len(model.expected)
        assert dict(counts) == model.expected
        assert sum(count for _, count in counts) == model.seen == model.stage.counters.deliveries
        for key in (*model.keys, EVERYBODY):
            own = [number for number, _ in counts if model.keys_of[number] == {key}]
            assert own == sorted(own)

    run(scenario())


# Latency


@pytest.mark.parametrize("members", [1, 8, LARGE])
def test_a_push_is_timed_once_to_its_last_write(clock: Clock, members: int) -> None:
    """From when it was taken until its last receiver has it, slices and waits included; never once a receiver."""

    async def scenario() -> None:
        clock.write_seconds = 0.001
        shown = stage(clock, slice_ms=1)
        shown.takers(members, KEY)
        shown.push()
        shown.push()
        await shown.counted(2)
        latency = shown.counters.push_latency
        assert sum(latency.buckets) == 2
        if members <= pump.SMALL_GROUP:
            assert latency.sum_seconds == pytest.approx(2 * members * 0.001)
        else:  # the second one was taken when a slice of the first one had been written
            assert latency.sum_seconds == pytest.approx((members + 2 * members - CHUNK) * 0.001)

    run(scenario())


def test_a_push_that_nobody_here_wants_is_not_timed(clock: Clock) -> None:
    """Nothing is written for it."""

    async def scenario() -> None:
        shown = stage(clock)
        shown.push(OTHER)
        assert (shown.counts, sum(shown.counters.push_latency.buckets)) == ([(0, 0)], 0)

    run(scenario())


# Who is spared


@pytest.mark.parametrize("members", [1, 2, 8, 9, LARGE])
def test_an_idle_key_spares_one(clock: Clock, members: int) -> None:
    """Everybody but the spared one has it at once, and is counted; the next one reaches all."""

    async def scenario() -> None:
        shown = stage(clock)
        takers = shown.takers(members, KEY)
        spared = takers[members // 2]
        shown.push(spared=spared)
        await shown.counted(1)
        shown.push()
        await shown.counted(2)
        assert shown.counts == [(0, members - 1), (1, members)]
        assert all(taker.texts == (["1"] if taker is spared else ["0", "1"]) for taker in takers)
        assert shown.counters.deliveries == 2 * members - 1

    run(scenario())


def test_what_gathers_spares_each_its_own(clock: Clock) -> None:
    """Of a batch in one write everybody gets all but what spares it, in order; the others share the same bytes."""

    async def scenario() -> None:
        shown, _, waiting = half_written(clock)
        first, second = waiting[0], waiting[1]
        for spared in (first, second, first, None):
            shown.push(spared=spared)
        await shown.counted(5)
        assert shown.counts == [(0, LARGE), *((number, LARGE - 1) for number in (1, 2, 3)), (4, LARGE)]
        assert first.texts == ["0", "2", "4"] and second.texts == ["0", "1", "3", "4"]
        others = [taker for taker in waiting if taker not in {first, second}]
        assert all(taker.texts == texts(0, 5) for taker in others)
        assert len({id(taker.writes[-1]) for taker in others}) == 1

    run(scenario())


def test_spared_of_all_that_gathers_is_not_written_to(clock: Clock) -> None:
    """A write of nothing is none."""

    async def scenario() -> None:
        shown, _, waiting = half_written(clock)
        for _ in range(3):
            shown.push(spared=waiting[0])
        await shown.counted(4)
        assert waiting[0].texts == ["0"] and len(waiting[0].writes) == 1

    run(scenario())


@pytest.mark.parametrize("is_newcomer", [False, True])
def test_who_leaves_before_the_flush_is_spared_too(clock: Clock, is_newcomer: bool) -> None:  # noqa: FBT001
    """What is settled for a leaver, or gathered before a newcomer came, holds nothing that spares it."""

    async def scenario() -> None:
        shown, _, waiting = half_written(clock)
        shown.push()
        receiver = waiting[0]
        if is_newcomer:
            receiver = shown.taker(KEY)
        shown.push(spared=receiver)
        shown.push()
        shown.hub.leave(receiver)
        assert receiver.texts == (["3"] if is_newcomer else ["0", "1", "3"])
        await shown.counted(4)
        spared_count = LARGE if is_newcomer else LARGE - 1
        assert shown.counts == [(0, LARGE), (1, LARGE), (2, spared_count), (3, LARGE + is_newcomer)]

    run(scenario())


def test_a_newcomer_is_spared(clock: Clock) -> None:
    """Who joined while something gathered gets what is younger and does not spare it."""

    async def scenario() -> None:
        shown, _, _ = half_written(clock)
        shown.push()
        newcomer = shown.taker(KEY)
        shown.push(spared=newcomer)
        shown.push()
        await shown.counted(4)
        assert newcomer.texts == ["3"]
        assert shown.counts == [(0, LARGE), (1, LARGE), (2, LARGE), (3, LARGE + 1)]

    run(scenario())


def test_several_keys_spare_one(clock: Clock) -> None:
    """Whichever of the keys it has."""

    async def scenario() -> None:
        shown = stage(clock)
        both, one, other = shown.taker(KEY, OTHER), shown.taker(KEY), shown.taker(OTHER)
        shown.push(KEY, OTHER, spared=both)
        await shown.counted(1)
        assert shown.counts == [(0, 2)] and [taker.texts for taker in (both, one, other)] == [[], ["0"], ["0"]]

    run(scenario())


def test_sparing_somebody_unknown_spares_nobody(clock: Clock) -> None:
    """A connection of another worker, or one that has gone."""

    async def scenario() -> None:
        shown = stage(clock)
        taker = shown.taker(KEY)
        shown.push(spared=Taker(shown.hub))
        assert (shown.counts, taker.texts) == ([(0, 1)], ["0"])

    run(scenario())


def test_leaving_one_key_settles_that_one(clock: Clock) -> None:
    """What has gathered for the key is given at once and counted; other keys go on; leaving again changes nothing."""

    async def scenario() -> None:
        shown, _, waiting = half_written(clock)
        leaver = waiting[0]
        shown.hub.join(leaver, OTHER)
        shown.pushes(2)
        shown.hub.leave_one(leaver, KEY)
        shown.hub.leave_one(leaver, KEY)
        shown.hub.leave_one(leaver, b"unknown")
        assert leaver.texts == texts(0, 3)
        shown.push(OTHER)
        shown.push()
        await shown.counted(5)
        assert leaver.texts == texts(0, 4)
        assert sorted(shown.counts) == [(0, LARGE), (1, LARGE), (2, LARGE), (3, 1), (4, LARGE - 1)]

    run(scenario())
