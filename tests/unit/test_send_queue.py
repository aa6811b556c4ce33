"""A slow connection's queue: order, cost, and the size of what is written at once."""

import random

from fastpush.state.send_queue import ENTRY_BYTES, SendQueue


def test_frames_come_out_in_order_and_whole() -> None:
    """Whatever is taken at once, the joined takes are the joined frames."""
    chance = random.Random(2)
    frames = [chance.randbytes(chance.randrange(1, 3000)) for _ in range(500)]
    queue = SendQueue()
    written = b""
    for number, frame in enumerate(frames):
        queue.append(frame)
        if number % 7 == 0:
            written += queue.take(chance.randrange(1, 10_000))
    while len(queue):
        written += queue.take(chance.randrange(1, 10_000))
    assert written == b"".join(frames)


def test_cost_is_bytes_and_overhead() -> None:
    """queued_bytes counts each frame with its overhead, is what append returned in sum, and ends at 0."""
    queue = SendQueue()
    costs = [queue.append(b"x" * size) for size in (0, 1, 100, 65536)]
    assert costs == [size + ENTRY_BYTES for size in (0, 1, 100, 65536)]
    assert (len(queue), queue.queued_bytes) == (4, sum(costs))
    while len(queue):
        before = queue.queued_bytes, len(queue)
        taken = queue.take(100)
        assert queue.queued_bytes == before[0] - len(taken) - ENTRY_BYTES * (before[1] - len(queue))
    assert queue.queued_bytes == 0


def test_take_is_bounded_but_takes_one() -> None:
    """A take is at most so many bytes, to the byte; one frame that is larger comes alone."""
    queue = SendQueue()
    for frame in (b"aa", b"bb", b"c", b"dddddd", b"e"):
        queue.append(frame)
    assert [queue.take(5), queue.take(5), queue.take(5)] == [b"aabbc", b"dddddd", b"e"]


def test_a_single_frame_is_not_copied() -> None:
    """The frame that all receivers share is written itself when it goes alone."""
    queue = SendQueue()
    frame = b"x" * 1000
    queue.append(frame)
    assert queue.take(65536) is frame
