"""How the load tester reads frames: whole, byte by byte, and with more behind them."""

import zlib

import pytest

from fastpush.bench.frame_reader import FrameReader, client_frame, frame_end
from fastpush.bench.messages import find, message, stamp
from fastpush.protocol.frames import frame, text_frame
from tests.raw import BINARY, CLOSE, CONTINUATION, PING, TEXT, build

STAMPS = [stamp(1, number, 10**18) for number in range(4)]
MESSAGES = [message(digits, 128) for digits in STAMPS]


def compressed(payload: bytes, deflate: "zlib._Compress | None" = None) -> bytes:
    deflate = deflate or zlib.compressobj(wbits=-15)
    data = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    return build(TEXT, data, rsv=4, mask=None)


STREAMS = {
    "one": (text_frame(MESSAGES[0]), STAMPS[:1], []),
    "several": (b"".join(map(text_frame, MESSAGES)), STAMPS, []),
    "large": (text_frame(MESSAGES[0] + bytes(70_000)) + text_frame(MESSAGES[1]), STAMPS[:2], []),
    "several in one": (frame(BINARY, b"[" + b",".join(MESSAGES) + b"]"), STAMPS, []),
    "ping between": (
        text_frame(MESSAGES[0]) + frame(PING, b"are you there") + text_frame(MESSAGES[1]), STAMPS[:2],
        [(PING, b"are you there")],
    ),
    "fragments with ping": (
        build(TEXT, MESSAGES[0][:20], fin=False, mask=None) + frame(PING, b"")
        + build(CONTINUATION, MESSAGES[0][20:], mask=None) + text_frame(MESSAGES[1]), STAMPS[:2], [(PING, b"")],
    ),
    "compressed": (compressed(MESSAGES[0]) + text_frame(MESSAGES[1]), STAMPS[:2], []),
    "stamp in a ping": (
        frame(PING, MESSAGES[0][:35]) + text_frame(MESSAGES[1]), STAMPS[1:2], [(PING, MESSAGES[0][:35])],
    ),
    "close at the end": (text_frame(MESSAGES[0]) + frame(CLOSE, b"\x03\xf4bye"), STAMPS[:1], [(CLOSE, b"\x03\xf4bye")]),
    "empty": (text_frame(b""), [], []),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_whole_bytewise_and_trailing(name: str) -> None:
    """The same stamps and control frames are found whole, byte by byte, and with the start of a frame behind."""
    data, expected, controls = STREAMS[name]
    whole = FrameReader().feed(data)
    assert (find(whole.payload), whole.controls, whole.frames) == (expected, controls, data)
    reader = FrameReader()
    reads = [reader.feed(data[at : at + 1]) for at in range(len(data))]
    assert [digits for read in reads for digits in find(read.payload)] == expected
    assert [control for read in reads for control in read.controls] == controls
    reader = FrameReader()
    trailing = reader.feed(data + b"\x81\x05he")
    assert (find(trailing.payload), trailing.frames, reader.held) == (expected, data, b"\x81\x05he")
    assert reader.feed(b"llo").messages == 1


def test_only_plain_whole_messages_may_stand_for_others() -> None:
    """Bytes are plain when equal bytes mean equal messages: no control frame, no fragment, no context."""
    plain = {name: FrameReader().feed(data).is_plain for name, (data, _, _) in STREAMS.items()}
    assert {name for name, is_plain in plain.items() if not is_plain} == {
        "ping between", "fragments with ping", "stamp in a ping", "close at the end",
    }  # fmt: skip
    assert not FrameReader(takeover=True).feed(compressed(MESSAGES[0])).is_plain


def test_context_takeover() -> None:
    """A server that keeps its compression context over messages is understood."""
    deflate = zlib.compressobj(wbits=-15)
    reader = FrameReader(takeover=True)
    data = b"".join(compressed(text, deflate) for text in MESSAGES)
    assert find(reader.feed(data).payload) == STAMPS


def test_frame_end_needs_the_whole_header() -> None:
    """While a header is not whole, the frame ends beyond the data."""
    for data in (text_frame(bytes(200)), text_frame(bytes(70_000)), text_frame(b"abc")):
        for size in range(len(data[:12])):
            assert frame_end(data[:size], 0) > size
        assert frame_end(data + b"more", 0) == len(data)


def test_client_frames_are_masked() -> None:
    """What the load tester sends is masked, with a key of zeros, in every size."""
    for size in (0, 125, 126, 65535, 65536):
        payload = bytes([7]) * size
        assert client_frame(TEXT, payload) == build(TEXT, payload, mask=bytes(4))
