"""A codec's end: what it holds is given back at once."""

import asyncio
import gc

from fastpush.worker.codec import Codec
from tests.raw import TEXT, build


class Frames:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def on_frame(self, opcode: int, fin: bool, rsv1: bool, rsv23: bool, payload: bytes) -> None:  # noqa: FBT001
        self.payloads.append(payload)


def test_a_discarded_codec_leaves_nothing_to_the_collector() -> None:
    """A codec that was kept for a frame in two parts frees its buffer when it is given up, not at some collection."""

    async def work() -> None:
        frame = memoryview(build(TEXT, b"in two parts"))
        frames = Frames()
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                codec = Codec(1 << 20, 16384)
                assert not codec.feed(frame[:5], frames)
                assert codec.feed(frame[5:], frames)
                codec.discard()
                del codec
            assert gc.collect() == 0
        finally:
            gc.enable()
        assert frames.payloads == [b"in two parts"] * 10

    asyncio.run(work())
