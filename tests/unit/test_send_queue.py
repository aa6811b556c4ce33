"""A slow connection's queue: order, cost, and the size of what is written at once."""

import random

from fastpush.state.send_queue import ENTRY_BYTES, SendQueue


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
