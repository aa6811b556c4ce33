"""fastpush.protocol.bus: what is encoded comes out again, however the stream is cut."""

import random

import pytest

from fastpush.protocol import bus
from fastpush.protocol.bus import Kind, Position, Publication

LIMIT_BYTES = 1000
MESSAGES = [
    (bus.HELLO, 7, b""),
    (bus.SUBSCRIBE, 2**64 - 1, b"u4:jacknews"),
    (bus.PUBLISH, 1, b"x" * 900),
    (bus.COMPLETE, 0, b""),
    (bus.GOODBYE, 0, b""),
]


def feed(decoder: bus.Decoder, *parts: bytes) -> list[tuple[int, int, bytes]]:
    return [message for part in parts for message in decoder.feed(part)]


def stream() -> bytes:
    return b"".join(bus.encode(*message) for message in MESSAGES)


def test_kinds_are_distinct_and_fit_a_byte() -> None:
    """No two messages share a type, in either direction."""
    kinds = [
        bus.HELLO, bus.SUBSCRIBE, bus.UNSUBSCRIBE, bus.COMPLETE, bus.PUBLISH, bus.ORDER, bus.COUNT, bus.SCRAPE,
        bus.SNAPSHOT, bus.GOODBYE, bus.WELCOME, bus.SUBSCRIBED, bus.DELIVER, bus.OBEY, bus.RESULT, bus.MEASURE,
        bus.REPORT, bus.ADMIT, bus.RELEASE, bus.HOLD, bus.ADMITTED, bus.DELIVER_OWN, bus.JOIN, bus.LEAVE, bus.PRESENT,
        bus.CLAIM, bus.UNCLAIM, bus.CLAIMED, bus.REPLACED, bus.HISTORY, bus.ONLINE, bus.ANSWER, bus.NOTICE,
        bus.PUBLISH_ONCE, bus.FORGET, bus.PRESENCE, bus.GATHER, bus.FOUND, bus.DELIVER_AT, bus.CHANGES, bus.INQUIRE,
    ]  # fmt: skip
    assert len(set(kinds)) == len(kinds) == 41
    assert all(0 < kind < 256 for kind in kinds)


@pytest.mark.parametrize("message", MESSAGES)
def test_whole_message(message: tuple[int, int, bytes]) -> None:
    """One message in one read."""
    assert feed(bus.Decoder(LIMIT_BYTES), bus.encode(*message)) == [message]


def test_byte_by_byte() -> None:
    """Each message appears with its last byte, not before and not later."""
    decoder = bus.Decoder(LIMIT_BYTES)
    for message in MESSAGES:
        encoded = bus.encode(*message)
        assert feed(decoder, *(encoded[at : at + 1] for at in range(len(encoded) - 1))) == []
        assert feed(decoder, encoded[-1:]) == [message]


def test_several_messages_in_one_read_and_the_beginning_of_another() -> None:
    """All complete ones come out at once, the rest waits for its own end."""
    decoder = bus.Decoder(LIMIT_BYTES)
    another = bus.encode(bus.DELIVER, 3, b"body")
    assert feed(decoder, stream() + another[:9]) == MESSAGES
    assert feed(decoder, another[9:] + stream()) == [(bus.DELIVER, 3, b"body"), *MESSAGES]


def test_every_way_to_cut_a_stream() -> None:
    """A thousand random cuts give the same messages."""
    chance = random.Random(1)
    whole = stream()
    for _ in range(1000):
        cuts = sorted(chance.sample(range(len(whole)), 5))
        parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert feed(bus.Decoder(LIMIT_BYTES), *parts) == MESSAGES


def test_largest_message_passes_and_one_byte_more_ends_the_stream() -> None:
    """The bound counts type, number and body; an oversize message is refused by its length, before its body."""
    body = b"x" * (LIMIT_BYTES - 9)
    assert feed(bus.Decoder(LIMIT_BYTES), bus.encode(bus.PUBLISH, 1, body)) == [(bus.PUBLISH, 1, body)]
    with pytest.raises(bus.BusError, match="1001 bytes"):
        feed(bus.Decoder(LIMIT_BYTES), bus.encode(bus.PUBLISH, 1, body + b"x")[:4])


def test_oversize_is_noticed_byte_by_byte() -> None:
    """With the fourth byte of the length, whatever came before."""
    decoder = bus.Decoder(LIMIT_BYTES)
    assert feed(decoder, bus.encode(bus.HELLO, 1), b"\xff", b"\xff", b"\xff") == [(bus.HELLO, 1, b"")]
    with pytest.raises(bus.BusError):
        feed(decoder, b"\xff")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 13, b"\x08\0\0\0" + b"x" * 9])
def test_garbage_is_refused(garbage: bytes) -> None:
    """A length that no message has ends the stream."""
    with pytest.raises(bus.BusError):
        feed(bus.Decoder(LIMIT_BYTES), garbage)


def test_head_and_body_apart() -> None:
    """`encode_head` with the body behind it is `encode`."""
    assert bus.encode_head(bus.PUBLISH, 5, 3) + b"abc" == bus.encode(bus.PUBLISH, 5, b"abc")


@pytest.mark.parametrize("keys", [[b"*"], [b""], [b"a" * 600, b"b", b""], [str(n).encode() for n in range(65535)]])
def test_publication(keys: list[bytes]) -> None:
    """Keys, event, frame, time, kind and whom it spares come out as they went in; the keys, and how many to keep,
    alone; where it was kept is told from outside.
    """
    event, frame = "événement".encode(), b"\x81\x05hello"
    body = bus.encode_publication(keys, event, frame, taken_seconds=12345.678901)
    assert bus.decode_publication(body) == Publication(keys, event, frame, 12345.678901)
    assert bus.decode_route(body) == (keys, 0)
    body = bus.encode_publication(
        keys, event, frame, taken_seconds=0.5, spared=2**64 - 1, keep=65535, kind=Kind.CHANGES
    )
    assert bus.decode_publication(body, 2**64 - 1) == Publication(
        keys, event, frame, 0.5, spared=2**64 - 1, kind=Kind.CHANGES, offset=2**64 - 1
    )
    assert bus.decode_route(body) == (keys, 65535)


def test_small_answers() -> None:
    """Count, result and epoch at the ends of their ranges."""
    ((kind, number, body),) = feed(bus.Decoder(LIMIT_BYTES), bus.encode_count(9, 2**32 - 1))
    assert (kind, number, bus.decode_count(body)) == (bus.COUNT, 9, 2**32 - 1)
    ((kind, number, body),) = feed(
        bus.Decoder(LIMIT_BYTES), bus.encode_result(2**64 - 1, bus.Status.UNKNOWN, 2**32 - 1, 65535)
    )
    assert (kind, number) == (bus.RESULT, 2**64 - 1)
    assert bus.decode_result(body) == (bus.Status.UNKNOWN, 2**32 - 1, 65535, bus.NO_POSITION)
    assert bus.decode_epoch(bus.encode_epoch(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("keys", [[b"u1:ae"], [b"u1:ae", b"u2:bbe", b"*"]])
def test_large_publications_are_not_copied(keys: list[bytes]) -> None:
    """A large body is a view into what was read, fed whole or in pieces; what is decoded from it is bytes."""
    frame = bytes(range(256)) * (bus.LARGE_BYTES // 128)
    body = bus.encode_publication(keys, b"e", frame[:100], frame[100:], taken_seconds=2.5, spared=9, keep=3)
    small = bus.encode(bus.SUBSCRIBE, 7, b"key")
    stream = small + bus.encode_head(bus.PUBLISH, 8, len(body)) + body + small
    for step in (len(stream), 1000, len(small) + 5):
        decoder = bus.Decoder(1 << 20)
        pieces = (stream[at : at + step] for at in range(0, len(stream), step))
        found = [message for piece in pieces for message in decoder.feed(piece)]
        assert [(kind, number) for kind, number, _ in found] == [
            (bus.SUBSCRIBE, 7),
            (bus.PUBLISH, 8),
            (bus.SUBSCRIBE, 7),
        ]
        (_, _, key), (_, _, view), _ = found
        assert key == b"key" and type(key) is bytes
        assert type(view) is memoryview and view == body
        assert bus.decode_route(view) == (keys, 3)
        publication = bus.decode_publication(view)
        assert publication == Publication(keys, b"e", frame, 2.5, spared=9)
        assert {type(part) for part in (*publication.keys, publication.event, publication.frame)} == {bytes}


def test_what_is_said_of_channels() -> None:
    """Joins, notices, questions, answers and kept entries come out as they went in; what is left out has a default."""
    join = bus.Join(
        b"c/chat", 2**63, "/chat", replay_messages=500, replay_bytes=2**24, user="jäck", grace_ms=3_600_000, keep=65535,
        is_present=True, info=b'{"client":"1"}', since=Position(2**64 - 1, 2**64 - 1),
    )  # fmt: skip
    assert bus.unpack_join(bus.pack(join)) == join
    assert bus.unpack_joins(bus.pack([join, bus.Join(b"c", 1, "/x")])) == [
        join,
        bus.Join(b"c", 1, "/x", 0, 0, "", 0, 0),
    ]
    assert bus.unpack_join(bus.pack(bus.Join(b"c", 1, "/x"))) == bus.Join(b"c", 1, "/x")
    notice = bus.Notice("jäck", is_online=False, seconds=1_800_000_000.125)
    assert bus.unpack_notice(bus.pack(notice)) == notice
    question = bus.Online([b"c/chat", b"c/chat:tea"], 1000)
    assert bus.unpack_online(bus.pack(question)) == question
    answer = bus.OnlineAnswer([(0, 0), (2, 5)], ["jack", "jill"])
    assert bus.unpack_online_answer(bus.pack(answer)) == answer
    entries = [bus.Entry(1, Kind.DATA, b"\x81\x05hello", b',"tags":{}'), bus.Entry(2, Kind.NOTICE, bus.pack(notice))]
    kept = bus.Kept(2, 2**64 - 1, recovered=True, entries=entries)
    assert bus.unpack_kept(bus.pack(kept)) == kept
    assert bus.unpack_all_kept(bus.pack([kept, kept])) == [kept, kept]
    asked = bus.History(b"cchat:42", 100, Position(7, 2**64 - 1), reverse=True)
    assert bus.unpack_history(bus.pack(asked)) == asked
    assert bus.unpack_history(bus.pack(bus.History(b"c"))) == bus.History(b"c", bus.HISTORY_MESSAGES_MAX, None)
    gathered = bus.Gathered([b"1", b"{}"], 3)
    assert bus.unpack_gathered(bus.pack(gathered)) == gathered
    assert bus.unpack_changes(bus.pack([(True, b"{}"), (False, b"[]")])) == [(True, b"{}"), (False, b"[]")]
    assert bus.unpack_infos(bus.pack([b"{}"])) == [b"{}"]


@pytest.mark.parametrize("position", [Position(1, 2**64 - 1), Position(2**64 - 1, 1)])
def test_positions(position: Position) -> None:
    """A RESULT, a DELIVER_OWN and a DELIVER_AT say where a channel has kept a publication, or nothing."""
    result = bus.encode_result(7, bus.Status.DONE, 3, 1, position)
    ((_, number, body),) = feed(bus.Decoder(LIMIT_BYTES), result)
    assert (number, bus.decode_result(body)) == (7, (bus.Status.DONE, 3, 1, position))
    assert bus.decode_position(bus.encode_position(position)) == position
    assert bus.decode_position(b"") == bus.NO_POSITION
    publication = bus.encode_publication([b"c"], b"e", b"frame", taken_seconds=1.0)
    for body in (publication, memoryview(publication)):
        before = bus.encode_offset(position.offset)
        whole = before + body if type(body) is bytes else memoryview(before + body)
        assert bus.decode_offset(whole) == (position.offset, body)


def test_idempotency_keys() -> None:
    """A PUBLISH_ONCE is a key of up to ONCE_BYTES_MAX bytes, and a publication as any other."""
    publication = bus.encode_publication([b"c"], b"e", b"frame", taken_seconds=1.0)
    for key in (b"k", b"\0" * bus.ONCE_BYTES_MAX):
        assert bus.decode_once(bus.encode_once(key) + publication) == (key, publication)
        found, body = bus.decode_once(memoryview(bus.encode_once(key) + publication))
        assert (found, body, type(found)) == (key, publication, bytes)


@pytest.mark.parametrize(("worker", "serial"), [(0, 1), (1, 0), (2**24 - 1, 2**40 - 1), (65535, 123456789)])
def test_connection_numbers(worker: int, serial: int) -> None:
    """A connection is named by its process and its number there, within the 64 bits that a publication has for it."""
    number = bus.connection_number(worker, serial)
    assert bus.split_connection_number(number) == (worker, serial) and number < 2**64


def test_claims_on_the_wire() -> None:
    """A CLAIM carries the connection, the claim's number and a name of any bytes."""
    name = "/chat\0käy".encode()
    ((kind, connection, body),) = feed(bus.Decoder(LIMIT_BYTES), bus.encode_claim(2**40, 2**64 - 1, name))
    assert (kind, connection, bus.decode_claim(body)) == (bus.CLAIM, 2**40, (2**64 - 1, name))
