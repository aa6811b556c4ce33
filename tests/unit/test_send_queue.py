"""A slow connection's queue: order, cost, what goes by which policy, and the size of what is written at once."""

import random
from typing import Any

import pytest

from fastpush.protocol.frames import ChannelFrame
from fastpush.state.send_queue import (
    CHANNEL_ENTRY_BYTES,
    DISCONNECT,
    DROP_OLDEST,
    ENTRY_BYTES,
    LATEST,
    ChannelQueue,
    SendQueue,
)


def test_frames_come_out_in_order_and_whole() -> None:
    """Whatever is taken at once, the joined takes are the joined frames."""
    chance = random.Random(2)
    frames = [chance.randbytes(chance.randrange(1, 3000)) for _ in range(500)]
    queue = SendQueue(0)
    written = b""
    for number, frame in enumerate(frames):
        queue.append(frame)
        if number % 7 == 0:
            written += b"".join(queue.take(chance.randrange(1, 10_000)))
    while len(queue):
        written += b"".join(queue.take(chance.randrange(1, 10_000)))
    assert written == b"".join(frames)


def test_cost_is_bytes_and_overhead() -> None:
    """queued_bytes counts each frame with its overhead, is what append returned in sum, and ends at 0."""
    queue = SendQueue(0)
    costs = [queue.append(b"x" * size) for size in (0, 1, 100, 65536)]
    assert costs == [size + ENTRY_BYTES for size in (0, 1, 100, 65536)]
    assert (len(queue), queue.queued_bytes) == (4, sum(costs))
    while len(queue):
        before = queue.queued_bytes, len(queue)
        taken = queue.take(100)
        assert len(taken) == before[1] - len(queue)
        assert queue.queued_bytes == before[0] - sum(map(len, taken)) - ENTRY_BYTES * len(taken)
    assert queue.queued_bytes == 0


def test_take_is_bounded_but_takes_one() -> None:
    """A take is at most so many bytes, to the byte; one frame that is larger comes alone."""
    queue = SendQueue(0)
    for frame in (b"aa", b"bb", b"c", b"dddddd", b"e"):
        queue.append(frame)
    assert [queue.take(5), queue.take(5), queue.take(5)] == [[b"aa", b"bb", b"c"], [b"dddddd"], [b"e"]]


def test_frames_are_not_copied() -> None:
    """What is taken are the very frames that all receivers share."""
    queue = SendQueue(0)
    frames = [b"x" * 1000, b"y" * 1000]
    for frame in frames:
        queue.append(frame)
    taken = queue.take(65536)
    assert taken[0] is frames[0] and taken[1] is frames[1]


def test_the_oldest_is_dropped_whole() -> None:
    """drop_oldest removes the frame that would leave next, gives back its cost, and counts; the rest is as it was."""
    queue = SendQueue(0)
    frames = [bytes([number]) * (number + 1) for number in range(6)]
    for frame in frames:
        queue.append(frame)
    assert queue.take(1) == frames[:1]
    assert [queue.drop_oldest(), queue.drop_oldest()] == [2 + ENTRY_BYTES, 3 + ENTRY_BYTES]
    assert (len(queue), queue.dropped) == (3, 2)
    assert queue.queued_bytes == 4 + 5 + 6 + 3 * ENTRY_BYTES
    assert queue.take(65536) == frames[3:]
    assert (queue.queued_bytes, queue.dropped) == (0, 2)


def test_appends_takes_and_drops_against_a_list() -> None:
    """In any order of calls what is taken is what was appended and not dropped; the cost is that of what is left."""
    chance = random.Random(3)
    queue, model, dropped = SendQueue(0), [], 0
    for number in range(3000):
        action = chance.randrange(4)
        if action < 2:
            model.append(b"%d" % number)
            queue.append(model[-1])
        elif model and action == 2:
            taken = queue.take(chance.randrange(1, 100))
            assert taken == model[: len(taken)]
            del model[: len(taken)]
        elif model:
            queue.drop_oldest()
            del model[0]
            dropped += 1
        assert (len(queue), queue.dropped) == (len(model), dropped)
        assert queue.queued_bytes == sum(map(len, model)) + ENTRY_BYTES * len(model)


# Queues of connections in channels


def gap(key: bytes, dropped: int) -> bytes:
    return b"gap %d of %b" % (dropped, key)


def of_channel(key: bytes, offset: int, size: int = 0) -> ChannelFrame:
    frame = ChannelFrame(b"%b %d" % (key, offset) + b"x" * size)
    frame.key, frame.offset = key, offset
    return frame


def drained(queue: ChannelQueue) -> list[bytes]:
    taken: list[bytes] = []
    while queue.queued_bytes:
        taken += queue.take(20)
    return taken


def test_a_newer_frame_takes_the_place_of_the_older() -> None:
    """LATEST: of a channel its newest frame waits, where the first one stood, and is paid for by the difference."""
    queue = ChannelQueue(0, gap)
    queue.append(b"reply 1")
    for offset, key in enumerate((b"ca", b"cb", b"ca", b"ca", b"cb"), 1):
        queue.append(of_channel(key, offset, 10 * offset), LATEST)
    queue.append(b"reply 2")
    assert queue.cost(of_channel(b"ca", 6), LATEST) == (0, -40)
    assert queue.append(of_channel(b"ca", 6), LATEST) == -40
    assert (len(queue), queue.dropped) == (4, 0)
    waiting = [b"reply 1", of_channel(b"ca", 6), of_channel(b"cb", 5, 50), b"reply 2"]
    assert queue.queued_bytes == sum(map(len, waiting)) + 4 * CHANNEL_ENTRY_BYTES
    assert drained(queue) == waiting
    assert queue.cost(of_channel(b"ca", 7), LATEST)[0] == 1, "what was taken is not replaced"


def test_a_gap_stands_where_the_first_dropped_frame_stood() -> None:
    """DROP_OLDEST: the oldest frame that may go does; one gap a channel says how many went; it is no message, but is
    paid for. What was taken ends a gap: frames that go later have another.
    """
    queue = ChannelQueue(0, gap)
    queue.append(b"reply")
    for key, offset in ((b"ca", 1), (b"cb", 1), (b"ca", 2), (b"cb", 2), (b"ca", 3)):
        queue.append(of_channel(key, offset), DROP_OLDEST)
    queue.append(of_channel(b"cl", 1), LATEST)
    size = len(b"ca 1")
    assert [queue.drop_oldest() for _ in range(3)] == [size, size, size + CHANNEL_ENTRY_BYTES]
    assert (len(queue), queue.dropped) == (4, 3)
    assert queue.queued_bytes == len(b"reply") + 3 * size + 6 * CHANNEL_ENTRY_BYTES
    assert queue.take(22) == [b"reply", b"gap 2 of ca"]
    assert queue.drop_oldest() == size + CHANNEL_ENTRY_BYTES, "of cb, whose gap is still there"
    assert queue.drop_oldest() == size, "of ca, whose gap has left"
    assert queue.drop_oldest() == 0, "what remains may not go"
    assert drained(queue) == [b"gap 2 of cb", b"gap 1 of ca", b"cl 1"]
    assert (len(queue), queue.queued_bytes, queue.dropped) == (0, 0, 5)


def test_gaps_alone_are_taken() -> None:
    """A queue whose messages have all gone still has its gaps to tell, one a take if they are long."""
    queue = ChannelQueue(0, gap)
    for key in (b"ca", b"cb"):
        queue.append(of_channel(key, 1), DROP_OLDEST)
        queue.drop_oldest()
    assert (len(queue), queue.queued_bytes) == (0, 2 * CHANNEL_ENTRY_BYTES)
    assert [queue.take(1), queue.take(1), queue.queued_bytes] == [[b"gap 1 of ca"], [b"gap 1 of cb"], 0]


@pytest.mark.parametrize("policy", [LATEST, DROP_OLDEST])
def test_another_subscription_begins_behind_what_waits(policy: str) -> None:
    """After `seal` nothing of the channel comes in front of what waited then, neither newer frames nor their gaps."""
    queue = ChannelQueue(0, gap)
    queue.append(of_channel(b"ca", 1), policy)
    queue.append(of_channel(b"cb", 1), policy)
    queue.seal(b"ca")
    queue.append(b"subscribed")
    for offset in (7, 8):
        queue.append(of_channel(b"ca", offset), policy)
    while queue.drop_oldest():
        pass
    if policy == LATEST:
        assert drained(queue) == [b"ca 1", b"cb 1", b"subscribed", b"ca 8"]
    else:
        assert drained(queue) == [b"ca 1", b"gap 1 of cb", b"subscribed", b"gap 2 of ca"]


class Model:
    """What a ChannelQueue does, told with a list of [key or None, frame, policy] and [key, dropped, "gap"]."""

    def __init__(self) -> None:
        self.entries: list[list[Any]] = []
        self.sealed: list[list[Any]] = []

    def find(self, key: bytes, policy: str) -> list[Any] | None:
        found = [entry for entry in self.entries if entry[0] == key and entry[2] == policy]
        return found[-1] if found and not any(found[-1] is sealed for sealed in self.sealed) else None

    def append(self, frame: bytes, key: bytes | None, policy: str) -> None:
        entry = self.find(key, LATEST) if key is not None and policy == LATEST else None
        if entry is None:
            self.entries.append([key, frame, policy])
        else:
            entry[1] = frame

    def drop_oldest(self) -> bool:
        for place, entry in enumerate(self.entries):
            if entry[2] == DROP_OLDEST and not any(entry is sealed for sealed in self.sealed):
                opened = self.find(entry[0], "gap")
                if opened is not None:
                    opened[1] += 1
                    del self.entries[place]
                else:
                    self.entries[place] = [entry[0], 1, "gap"]
                return True
        return False

    def seal(self, key: bytes) -> None:
        self.sealed += [entry for entry in self.entries if entry[0] == key]

    def frames(self) -> list[bytes]:
        return [gap(entry[0], entry[1]) if entry[2] == "gap" else entry[1] for entry in self.entries]

    def costs(self) -> tuple[int, int]:
        frames = [entry[1] for entry in self.entries if entry[2] != "gap"]
        return len(frames), sum(map(len, frames)) + CHANNEL_ENTRY_BYTES * len(self.entries)


def test_a_channel_queue_against_a_list() -> None:
    """In any order of calls a ChannelQueue gives what a plain list of entries gives, and costs what is in it."""
    chance = random.Random(4)
    queue, model = ChannelQueue(0, gap), Model()
    policies = {b"ca": LATEST, b"cb": LATEST, b"cc": DROP_OLDEST, b"cd": DROP_OLDEST, b"ce": DISCONNECT}
    for number in range(20_000):
        action = chance.randrange(12)
        before = queue.queued_bytes
        if action < 5:
            key = chance.choice(list(policies))
            frame = of_channel(key, number, chance.randrange(30))
            assert queue.append(frame, policies[key]) == queue.queued_bytes - before
            model.append(frame, key, policies[key])
        elif action == 5:
            queue.append(b"reply %d" % number)
            model.append(b"reply %d" % number, None, DISCONNECT)
        elif action < 10:
            gained = queue.drop_oldest()
            assert (gained > 0, before - gained) == (model.drop_oldest(), queue.queued_bytes)
        elif action == 10 and chance.randrange(3) == 0:
            key = chance.choice(list(policies))
            queue.seal(key)
            model.seal(key)
        elif model.entries:
            taken = queue.take(chance.randrange(1, 100))
            assert taken and taken == model.frames()[: len(taken)]
            del model.entries[: len(taken)]
            model.sealed = [sealed for sealed in model.sealed if any(sealed is entry for entry in model.entries)]
        assert (len(queue), queue.queued_bytes) == model.costs()
    assert drained(queue) == model.frames()
    assert not queue._frames and not queue._droppable and not queue._open, "nothing is left of what was taken"
