"""Frames: what is built, what a client's frames add up to, which close codes may be sent.

Independent oracles: the websockets library builds, compresses and checks frames, the standard
library's gzip reads what is written here, bytes.decode on the whole text says what is UTF-8.
"""

import gzip
import itertools
import random
import struct
import sys

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame
from websockets.frames import Opcode as OtherOpcode

from fastpush.errors import ProtocolViolation
from fastpush.protocol import frames
from fastpush.protocol.deflate import compress
from fastpush.protocol.frames import MessageReader, Opcode

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
BORDER_SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 200_000)
MULTI_BYTE = "aé€😀\U0010ffff\u07ff\ud7ff\ue000"
NOT_UTF8 = (
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    b"\xe2\x82x",
    b"\xf0\x9f\x98\xe2\x82\xac",
)
UNFINISHED = (b"\xc3", b"\xe2", b"\xe2\x82", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98", b"\xed\x9f", b"\xf4\x8f\xbf")


def reader(message_bytes: int = 1 << 20, message_fragments: int = 1024, *, deflate: bool = False) -> MessageReader:
    return MessageReader(message_bytes, message_fragments, deflate=deflate)


def feed_all(into: MessageReader, opcode: int, parts: list[bytes], *, rsv1: bool = False) -> str | bytes | None:
    """Feed one message in `parts`, RSV1 in the first; nothing may come out before the last."""
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        message = into.feed(CONTINUATION if position else opcode, last, rsv1 and not position, part)
        assert last or message is None
    return message


def violation(into: MessageReader, opcode: int, payload: bytes, *, fin: bool = True, rsv1: bool = False) -> int:
    with pytest.raises(ProtocolViolation) as raised:
        into.feed(opcode, fin, rsv1, payload)
    assert len(raised.value.reason.encode()) <= 123
    return raised.value.code


def splits(data: bytes, parts: int) -> list[list[bytes]]:
    """Return every way to cut `data` into `parts`, empty ones included."""
    cuts = itertools.combinations_with_replacement(range(len(data) + 1), parts - 1)
    return [[data[a:b] for a, b in itertools.pairwise((0, *cut, len(data)))] for cut in cuts]


def decoded(data: bytes) -> list[tuple[int, bytes]]:
    """Read server frames by hand, one after the other: (first byte, payload)."""
    found = []
    while data:
        first, size = data[0], data[1]
        assert size < 128, "a server does not mask"
        start = 2
        if size == 126:
            (size,), start = struct.unpack_from(">H", data, 2), 4
            assert size > 125
        elif size == 127:
            (size,), start = struct.unpack_from(">Q", data, 2), 10
            assert size > 65535
        assert len(data) >= start + size
        found.append((first, data[start : start + size]))
        data = data[start + size :]
    return found


# Building


@pytest.mark.parametrize("size", BORDER_SIZES)
def test_data_frames(size: int) -> None:
    """S0-29: a payload is one frame, FIN, unmasked, shortest length; it is read back whole, and other frames follow."""
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    text, binary = frames.text_frame(payload), frames.binary_frame(payload)
    assert decoded(text + binary + text) == [(0x81, payload), (0x82, payload), (0x81, payload)]
    assert text == Frame(OtherOpcode.TEXT, payload).serialize(mask=False) == frames.frame(Opcode.TEXT, payload)
    assert binary == Frame(OtherOpcode.BINARY, payload).serialize(mask=False)
    assert type(text) is bytes


@pytest.mark.parametrize("size", BORDER_SIZES)
def test_payload_of(size: int) -> None:
    """The payload of a built frame is found for every form of the length, without a copy."""
    payload = b"x" * size
    built = frames.binary_frame(payload)
    found = frames.payload_of(built)
    assert isinstance(found, memoryview)
    assert found == payload
    assert found.obj is built


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_control_frames_hold_125_bytes(opcode: Opcode) -> None:
    """A control frame of 125 bytes is built; one of 126 is refused, since no client would take it."""
    assert decoded(frames.frame(opcode, b"x" * 125)) == [(0x80 | opcode, b"x" * 125)]
    with pytest.raises(ValueError, match="125"):
        frames.frame(opcode, b"x" * 126)


def test_ping_frame() -> None:
    """A ping may be empty or carry a payload."""
    assert frames.ping_frame() == b"\x89\x00"
    assert frames.ping_frame(b"hi") == b"\x89\x02hi"


@pytest.mark.parametrize("size", BORDER_SIZES)
@pytest.mark.parametrize("level", [1, 9])
def test_deflated_frame(size: int, level: int) -> None:
    """A deflated frame is the plain one with RSV1, and an independent peer reads the same payload, again and again."""
    payload = (b"topic1 " * (size // 7 + 1))[:size]
    peer = PerMessageDeflate(True, True, 15, 15)
    for plain, opcode in ((frames.text_frame(payload), Opcode.TEXT), (frames.binary_frame(payload), Opcode.BINARY)):
        ((first, deflated),) = decoded(frames.deflated_frame(plain, level))
        assert first == 0xC0 | opcode
        assert size < 125 or len(deflated) < size / 10 + 20
        for _ in range(2):
            assert peer.decode(Frame(OtherOpcode(opcode), deflated, rsv1=True)).data == payload


@pytest.mark.parametrize("size", BORDER_SIZES)
def test_gzip_frame(size: int) -> None:
    """S2-13, S2-14: a gzip frame is one binary frame that holds gzip of the payload, of any size, always the same."""
    payload = ("新闻 topic1 " * (size // 7 + 1)).encode()[:size]
    plain = frames.text_frame(payload)
    ((first, compressed),) = decoded(frames.gzip_frame(plain, 1))
    assert first == 0x82
    assert gzip.decompress(compressed) == payload
    assert compressed[:2] == b"\x1f\x8b"
    assert compressed[4:8] == bytes(4), "a time would tell one building from another"
    assert frames.gzip_frame(plain, 1) == frames.gzip_frame(plain, 1)


# Close frames


def may_be_sent(code: int) -> bool:
    """Say what RFC 6455, 7.4 and the registry say, code by code."""
    return code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or 3000 <= code < 5000


def test_every_close_code() -> None:
    """Codes 0 to 5005 and 65535: the allowed ones are taken and can be sent, all others are 1002 and ValueError."""
    for code in (*range(5006), 65535):
        payload = code.to_bytes(2, "big")
        if may_be_sent(code):
            assert frames.close_payload(payload) == (code, "")
            assert frames.close_frame(code) == b"\x88\x02" + payload
            assert Close.parse(payload).code == code
        else:
            with pytest.raises(ProtocolViolation) as raised:
                frames.close_payload(payload)
            assert raised.value.code == 1002
            with pytest.raises(ValueError, match=str(code)):
                frames.close_frame(code)


def test_empty_close_frame() -> None:
    """S0-32: an empty close frame has no code, and None is answered with an empty one, never with 1005."""
    assert frames.close_payload(b"") == (None, "")
    assert frames.close_frame(None) == b"\x88\x00"


@pytest.mark.parametrize("byte", [b"\x00", b"\x03", b"\xff"])
def test_close_frame_of_one_byte(byte: bytes) -> None:
    """Half a close code is a protocol error."""
    with pytest.raises(ProtocolViolation) as raised:
        frames.close_payload(byte)
    assert raised.value.code == 1002


def test_close_reason_round_trip() -> None:
    """A code and reason that fit come back as they were, cut anywhere only when that is still UTF-8."""
    reason = (MULTI_BYTE * 10).encode()[:123].decode(errors="ignore")
    (first, payload) = decoded(frames.close_frame(4501, reason))[0]
    assert first == 0x88
    assert frames.close_payload(payload) == (4501, reason)
    for size in range(2, len(payload) + 1):
        raw = payload[:size]
        try:
            expected = raw[2:].decode()
        except UnicodeDecodeError:
            with pytest.raises(ProtocolViolation) as raised:
                frames.close_payload(raw)
            assert raised.value.code == 1007
        else:
            assert frames.close_payload(raw) == (4501, expected)


@pytest.mark.parametrize("bad", [*NOT_UTF8, *UNFINISHED])
def test_close_reason_not_utf8(bad: bytes) -> None:
    """A reason that is not UTF-8 is 1007."""
    with pytest.raises(ProtocolViolation) as raised:
        frames.close_payload(b"\x03\xe8" + bad)
    assert raised.value.code == 1007


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("shift", range(5))
def test_close_reason_is_cut_at_a_character(character: str, shift: int) -> None:
    """A reason of more than 123 bytes keeps as many whole characters as fit; one of 123 is kept whole."""
    reason = "x" * shift + character * 200
    code, kept = frames.close_payload(decoded(frames.close_frame(1008, reason))[0][1])
    assert code == 1008
    assert reason.startswith(kept)
    assert 123 - len(character.encode()) < len(kept.encode()) <= 123
    assert frames.close_reason("x" * 123) == b"x" * 123


# Unfragmented messages


def test_whole_messages() -> None:
    """S0-08: a text message comes out as str, a binary one as its bytes, one after the other, empty ones too."""
    one = reader()
    for _ in range(3):
        assert one.feed(TEXT, True, False, MULTI_BYTE.encode()) == MULTI_BYTE
        assert one.feed(BINARY, True, False, b"\xff\x00") == b"\xff\x00"
        assert one.feed(TEXT, True, False, b"") == ""
        assert one.feed(BINARY, True, False, b"") == b""


def test_opcodes_as_plain_numbers() -> None:
    """An opcode may be any int."""
    assert reader().feed(1, True, False, b"a") == "a"
    assert reader().feed(2, True, False, b"a") == b"a"


@pytest.mark.parametrize("bad", [*NOT_UTF8, *UNFINISHED])
def test_whole_text_not_utf8(bad: bytes) -> None:
    """Text that is not UTF-8, or ends within a character, is 1007; as binary it is taken."""
    assert violation(reader(), TEXT, b"ok" + bad) == 1007
    assert reader().feed(BINARY, True, False, bad) == bad


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_size_limit_of_a_whole_message(opcode: int) -> None:
    """A message of message_bytes is taken, one byte more is 1009; bytes count, not characters."""
    assert len(reader(10).feed(opcode, True, False, b"x" * 10) or "") == 10
    assert violation(reader(10), opcode, b"x" * 11) == 1009
    assert violation(reader(10), opcode, "€€€€".encode()) == 1009


def test_too_big_comes_before_not_utf8() -> None:
    """What is over the limit is not decoded."""
    assert violation(reader(3), TEXT, b"\xff" * 4) == 1009


# Fragments


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_every_split_of_multi_byte_text(parts: int) -> None:
    """Text cut anywhere, within characters too, into 1 to 4 fragments, comes out as the whole."""
    text = MULTI_BYTE
    one = reader()
    for split in splits(text.encode(), parts):
        assert feed_all(one, TEXT, split) == text


def test_every_composition_of_a_text() -> None:
    """Text in 1 to n fragments, by every set of borders, comes out as the whole; the same as binary."""
    data = "é€😀a".encode()
    one = reader()
    for borders in itertools.product((False, True), repeat=len(data) - 1):
        cuts = [at for at, is_border in enumerate(borders, 1) if is_border]
        split = [data[a:b] for a, b in itertools.pairwise((0, *cuts, len(data)))]
        assert feed_all(one, TEXT, split) == data.decode()
        assert feed_all(one, BINARY, split) == data


def test_empty_fragments() -> None:
    """Empty fragments are fragments: first, between and last."""
    assert feed_all(reader(), TEXT, [b"", b"", b""]) == ""
    assert feed_all(reader(), BINARY, [b"", b"a", b"", b"b", b""]) == b"ab"
    assert feed_all(reader(), TEXT, [b"\xe2", b"", b"\x82", b"", b"\xac", b""]) == "€"


def test_fragmented_binary_is_bytes() -> None:
    """A joined binary message is bytes, as an unfragmented one, and is not looked into."""
    message = feed_all(reader(), BINARY, [b"\xff", b"\xfe"])
    assert type(message) is bytes
    assert message == b"\xff\xfe"


def certain_at(data: bytes) -> int | None:
    """Return after how many bytes no continuation is valid text any more, by trying every continuation."""
    tails = [b"", b"\x80", b"\x90", b"\xa0", b"\x80\x80", b"\x90\x80", b"\xa0\x80"]
    tails += [b"\x80\x80\x80", b"\x90\x80\x80"]
    for size in range(1, len(data) + 1):
        if not any(is_utf8(data[:size] + tail) for tail in tails):
            return size
    return None


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("bad", NOT_UTF8)
@pytest.mark.parametrize("before", [b"", "a€".encode()])
def test_bad_text_fails_where_it_is_certain(bad: bytes, before: bytes) -> None:
    """Fed byte by byte, bad text is 1007 in the fragment after which nothing could make it valid, half a
    surrogate included (ED A0), neither earlier nor later.
    """
    data = before + bad + b"tail"
    certain = certain_at(data)
    assert certain is not None
    one = reader()
    for position in range(certain - 1):
        assert one.feed(CONTINUATION if position else TEXT, False, False, data[position : position + 1]) is None
    assert violation(one, CONTINUATION if certain > 1 else TEXT, data[certain - 1 : certain], fin=False) == 1007


@pytest.mark.parametrize("bad", NOT_UTF8)
def test_bad_text_in_every_split(bad: bytes) -> None:
    """Bad text is 1007 however it is cut, as soon as the fragment that makes it certain has come."""
    data = b"a" + bad
    certain = certain_at(data)
    assert certain is not None
    for parts in (2, 3):
        for split in splits(data, parts):
            one = reader()
            received = 0
            for position, part in enumerate(split):
                received += len(part)
                opcode, fin = CONTINUATION if position else TEXT, position == parts - 1
                if received >= certain:
                    assert violation(one, opcode, part, fin=fin) == 1007
                    break
                assert one.feed(opcode, fin, False, part) is None


@pytest.mark.parametrize("unfinished", UNFINISHED)
def test_unfinished_character_fails_at_fin(unfinished: bytes) -> None:
    """A character that is not finished is no error before FIN, and 1007 at FIN."""
    for split in splits(b"a" + unfinished, 2):
        one = reader()
        assert one.feed(TEXT, False, False, split[0]) is None
        assert one.feed(CONTINUATION, False, False, split[1]) is None
        assert violation(one, CONTINUATION, b"") == 1007


def test_utf8_of_two_messages_is_apart() -> None:
    """A character does not reach from one message into the next, nor from binary into text."""
    one = reader()
    assert feed_all(one, BINARY, [b"\xe2", b"\x82"]) == b"\xe2\x82"
    assert violation(one, TEXT, b"\xac") == 1007


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_size_limit_of_a_fragmented_message(opcode: int) -> None:
    """The limit holds for all fragments together: exactly message_bytes in every split, one more is 1009."""
    for split in splits(b"x" * 6, 3):
        assert len(feed_all(reader(6), opcode, split) or "") == 6
    for split in splits(b"x" * 7, 3):
        one = reader(6)
        received = 0
        for position, part in enumerate(split):
            received += len(part)
            if received > 6:
                assert violation(one, CONTINUATION if position else opcode, part, fin=position == 2) == 1009
                break
            assert one.feed(CONTINUATION if position else opcode, False, False, part) is None


def test_limits_are_a_message_not_a_connection() -> None:
    """The next message has the whole limit again, in bytes and fragments."""
    one = reader(4, 2)
    for _ in range(10):
        assert feed_all(one, BINARY, [b"ab", b"cd"]) == b"abcd"


def test_fragment_limit() -> None:
    """A message of message_fragments frames is taken; one more is 1009, FIN or not, empty or not."""
    assert feed_all(reader(100, 3), TEXT, [b"a", b"b", b"c"]) == "abc"
    for fin in (False, True):
        one = reader(100, 3)
        for position in range(3):
            assert one.feed(CONTINUATION if position else TEXT, False, False, b"") is None
        assert violation(one, CONTINUATION, b"", fin=fin) == 1009


def test_one_fragment_is_a_whole_message() -> None:
    """With message_fragments = 1 whole messages pass, and the second frame of any message is 1009."""
    one = reader(100, 1)
    assert one.feed(TEXT, True, False, b"a") == "a"
    assert one.feed(TEXT, False, False, b"a") is None
    assert violation(one, CONTINUATION, b"b") == 1009


def held_bytes(thing: object, seen: set[int] | None = None) -> int:
    """Return what `thing` and all that its slots refer to take."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (int, type)):
        return 0
    seen.add(id(thing))
    inner = list(thing) if isinstance(thing, list) else []
    inner += [getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)]
    return sys.getsizeof(thing) + sum(held_bytes(part, seen) for part in inner)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_memory_is_bounded(opcode: int) -> None:
    """What is held for an unfinished message is its bytes and little more, for wide text in many fragments too."""
    limit = 60_000
    one = reader(limit, 100_000)
    part = ("a" * 56 + "😀").encode()
    one.feed(opcode, False, False, part)
    for _ in range(limit // len(part) - 1):
        one.feed(CONTINUATION, False, False, part)
    assert held_bytes(one) < limit * 1.25 + 1000


def test_nothing_is_kept_between_messages() -> None:
    """After a message, whole or fragmented, the reader holds what a fresh one holds: under 100 bytes."""
    one = reader()
    one.feed(TEXT, True, False, b"x" * 1000)
    feed_all(one, TEXT, [b"x" * 1000, b"x" * 1000])
    assert held_bytes(one) == held_bytes(reader()) < 100
    assert not hasattr(one, "__dict__")


# Rules about frames


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONTINUATION])
def test_reserved_bits(opcode: int) -> None:
    """RSV1 that was not agreed on is 1002, in a first frame and in a fragment."""
    assert violation(reader(), opcode, b"a", rsv1=True) == 1002
    one = reader()
    one.feed(TEXT, False, False, b"a")
    assert violation(one, opcode, b"a", rsv1=True) == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("fin", [False, True])
def test_reserved_opcodes(opcode: int, *, fin: bool) -> None:
    """Reserved opcodes are 1002, in and out of a fragmented message."""
    assert violation(reader(), opcode, b"a", fin=fin) == 1002
    one = reader()
    one.feed(TEXT, False, False, b"a")
    assert violation(one, opcode, b"a", fin=fin) == 1002


@pytest.mark.parametrize("fin", [False, True])
def test_continuation_of_nothing(*, fin: bool) -> None:
    """A continuation without a start is 1002: first of all, after a whole message, after a fragmented one."""
    assert violation(reader(), CONTINUATION, b"a", fin=fin) == 1002
    one = reader()
    one.feed(TEXT, True, False, b"a")
    assert violation(one, CONTINUATION, b"a", fin=fin) == 1002
    one = reader()
    feed_all(one, TEXT, [b"a", b"b"])
    assert violation(one, CONTINUATION, b"a", fin=fin) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [False, True])
def test_new_message_inside_a_fragmented_one(opcode: int, *, fin: bool) -> None:
    """A data frame while a fragmented message is open is 1002, whatever both are."""
    for first in (TEXT, BINARY):
        one = reader()
        one.feed(first, False, False, b"a")
        assert violation(one, opcode, b"a", fin=fin) == 1002


@pytest.mark.parametrize(
    "bad",
    [
        (TEXT, True, True, b""),
        (3, True, False, b""),
        (CONTINUATION, True, False, b""),
        (TEXT, True, False, b"\xff"),
        (TEXT, False, False, b"\xff"),
        (BINARY, True, False, b"x" * 11),
        (BINARY, False, False, b"x" * 11),
    ],
)
def test_dead_after_a_violation(bad: tuple[int, bool, bool, bytes]) -> None:
    """After any violation the reader takes nothing more: another frame is the caller's mistake."""
    one = reader(10)
    assert violation(one, bad[0], bad[3], fin=bad[1], rsv1=bad[2]) in {1002, 1007, 1009}
    for opcode in (TEXT, CONTINUATION):
        with pytest.raises(RuntimeError):
            one.feed(opcode, True, False, b"a")
    assert held_bytes(one) < 400


# Compressed messages (RFC 7692)

HELLO = bytes.fromhex("f2 48 cd c9 c9 07 00")  # RFC 7692, 7.2.3.1


def test_compressed_whole() -> None:
    """A frame with RSV1 is inflated: text to str, binary to bytes; plain messages come between as before."""
    one = reader(deflate=True)
    for _ in range(3):
        assert one.feed(TEXT, True, True, HELLO) == "Hello"
        assert one.feed(BINARY, True, True, HELLO) == b"Hello"
        assert one.feed(TEXT, True, False, b"plain") == "plain"
        assert feed_all(one, BINARY, [b"pl", b"ain"]) == b"plain"
    assert type(one.feed(BINARY, True, True, HELLO)) is bytes
    assert held_bytes(one) == held_bytes(reader())


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_compressed_in_every_split(parts: int) -> None:
    """A compressed message cut anywhere into 1 to 4 fragments, empty ones too, comes out as the whole."""
    data = compress(MULTI_BYTE[:3].encode(), 9)
    one = reader(deflate=True)
    for split in splits(data, parts):
        assert feed_all(one, TEXT, split, rsv1=True) == MULTI_BYTE[:3]
        assert feed_all(one, BINARY, split, rsv1=True) == MULTI_BYTE[:3].encode()


def test_compressed_byte_by_byte() -> None:
    """A compressed message in fragments of one byte comes out as the whole, and plain ones after it are checked."""
    text = MULTI_BYTE * 20
    data = compress(text.encode(), 1)
    one = reader(deflate=True)
    assert feed_all(one, TEXT, [data[at : at + 1] for at in range(len(data))], rsv1=True) == text
    assert violation(one, TEXT, b"\xff", fin=False) == 1007


def test_compressed_empty_message() -> None:
    """A compressed empty message is one byte (RFC 7692, 7.2.3.6), before or after empty fragments."""
    one = reader(deflate=True)
    assert one.feed(TEXT, True, True, b"\x00") == ""
    assert one.feed(BINARY, True, True, b"\x00") == b""
    assert feed_all(one, TEXT, [b"", b"\x00", b""], rsv1=True) == ""


def test_rsv1_in_a_continuation() -> None:
    """RSV1 belongs to a message's first frame: in a continuation it is 1002, whatever the first frame said."""
    for first in (False, True):
        for fin in (False, True):
            one = reader(deflate=True)
            one.feed(BINARY, False, first, HELLO[:3])
            assert violation(one, CONTINUATION, HELLO[3:], fin=fin, rsv1=True) == 1002
    assert violation(reader(deflate=True), CONTINUATION, HELLO, rsv1=True) == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY, 3, 7, 11])
def test_rules_about_frames_hold_for_compressed_ones(opcode: int) -> None:
    """A new message inside a fragmented one and reserved opcodes are 1002 with RSV1, too."""
    for first in (False, True):
        one = reader(deflate=True)
        one.feed(BINARY, False, first, HELLO[:3])
        assert violation(one, opcode, HELLO, rsv1=True) == 1002
    if opcode > BINARY:
        assert violation(reader(deflate=True), opcode, HELLO, rsv1=True) == 1002


@pytest.mark.parametrize("bad", [*NOT_UTF8, *UNFINISHED])
def test_compressed_text_not_utf8(bad: bytes) -> None:
    """Text that is not UTF-8 once it is inflated is 1007, fragmented or not; as binary it is taken."""
    data = compress(b"ok" + bad, 1)
    assert violation(reader(deflate=True), TEXT, data, rsv1=True) == 1007
    one = reader(deflate=True)
    one.feed(TEXT, False, True, data[:3])
    assert violation(one, CONTINUATION, data[3:]) == 1007
    assert reader(deflate=True).feed(BINARY, True, True, data) == b"ok" + bad


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_size_limit_of_a_compressed_message(opcode: int) -> None:
    """message_bytes bounds what a message inflates to: exactly so many are taken, one more is 1009."""
    data = compress(b"x" * 1000, 9)
    assert len(reader(1000, deflate=True).feed(opcode, True, True, data) or "") == 1000
    assert violation(reader(999, deflate=True), opcode, data, rsv1=True) == 1009
    one = reader(999, deflate=True)
    one.feed(opcode, False, True, data[:5])
    assert violation(one, CONTINUATION, data[5:]) == 1009


def test_size_limit_of_what_is_received() -> None:
    """message_bytes bounds the compressed bytes that are collected, too, and message_fragments their frames."""
    one = reader(10, deflate=True)
    one.feed(TEXT, False, True, bytes(10))
    assert violation(one, CONTINUATION, b"\x00", fin=False) == 1009
    assert violation(reader(10, deflate=True), TEXT, bytes(11), rsv1=True) == 1009
    one = reader(10, 2, deflate=True)
    one.feed(TEXT, False, True, b"")
    one.feed(CONTINUATION, False, False, b"")
    assert violation(one, CONTINUATION, HELLO) == 1009


@pytest.mark.parametrize("bad", [b"", b"\xff", HELLO[:-1], HELLO + b"\xff", b"\xf2\x00\x11\x00\x00"])
def test_damaged_message(bad: bytes) -> None:
    """What is no deflate data, not all of it, or refers to an earlier message is 1002, and ends the reader."""
    one = reader(deflate=True)
    assert one.feed(TEXT, True, True, HELLO) == "Hello"
    assert violation(one, TEXT, bad, rsv1=True) == 1002
    with pytest.raises(RuntimeError):
        one.feed(TEXT, True, True, HELLO)
    assert held_bytes(one) < 400


def test_round_trips_with_an_independent_peer() -> None:
    """Random messages in random fragments of the websockets library come out as they were, and ours there."""
    chance = random.Random(7692)
    peer = PerMessageDeflate(True, True, 15, 15)
    one = reader(deflate=True)
    for _ in range(300):
        alphabet = chance.choice(["a", "ab {}", MULTI_BYTE.replace("\ud7ff", "")])
        text = "".join(chance.choices(alphabet, k=chance.choice([0, 1, 5, 200, 5000])))
        sent = peer.encode(Frame(OtherOpcode.TEXT, text.encode()))
        assert sent.rsv1
        data = bytes(sent.data)
        cuts = sorted(chance.choices(range(len(data) + 1), k=chance.randrange(6)))
        parts = [data[a:b] for a, b in itertools.pairwise((0, *cuts, len(data)))]
        assert feed_all(one, TEXT, parts, rsv1=True) == text
        ((_, deflated),) = decoded(frames.deflated_frame(frames.text_frame(text.encode()), chance.randint(1, 9)))
        assert peer.decode(Frame(OtherOpcode.TEXT, deflated, rsv1=True)).data == text.encode()
        assert one.feed(TEXT, True, True, deflated) == text


def test_fragments_of_an_independent_peer() -> None:
    """Fragments that the peer compressed one by one, each ended by a flush, come out as one message."""
    parts = [MULTI_BYTE.encode()[:5], b"", MULTI_BYTE.encode()[5:]]
    peer = PerMessageDeflate(True, True, 15, 15)
    one = reader(deflate=True)
    for _ in range(2):
        for position, part in enumerate(parts):
            opcode = OtherOpcode.CONT if position else OtherOpcode.TEXT
            sent = peer.encode(Frame(opcode, part, fin=position == 2))
            message = one.feed(int(sent.opcode), sent.fin, sent.rsv1, bytes(sent.data))
        assert message == MULTI_BYTE


def test_readers_are_apart() -> None:
    """A violation of one connection, or its unfinished message, is nothing to another."""
    one, other, third = reader(), reader(), reader()
    assert violation(one, TEXT, b"\xff") == 1007
    other.feed(TEXT, False, False, b"a")
    assert third.feed(TEXT, True, False, b"b") == "b"
    assert other.feed(CONTINUATION, True, False, b"c") == "ac"
