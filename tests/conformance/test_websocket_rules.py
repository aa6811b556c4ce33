"""RFC 6455 as a client sees it, on /echo of a running server: what Autobahn's sections 1 to 7 and 10 ask.

Every frame is built and read by tests/raw.py; the last test lets the websockets library do it.
"""

import asyncio
import itertools
import random

import pytest
from websockets.asyncio.client import connect

from tests.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import Server

BORDER_SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536)
GREETING = "Hello-µ@ßöäüàá-UTF-8!! κόσμε \U0001f600"
NOT_UTF8 = (
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
    b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80",
    b"\xfe", b"\xff", b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"abc\xc3", b"\xe2\x82",
    b"\xf0\x9f\x98", b"\xc3(", b"\xe2(\xa1", b"\xf0(\x8c(",
)  # fmt: skip
SENDABLE_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
UNSENDABLE_CODES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)


def fails(client: RawClient, code: int) -> str:
    """The next frame closes with `code`, then the server ends the TCP connection; returns the reason."""
    found, reason = client.read_close()
    assert found == code, reason
    client.read_end()
    return reason


# -- messages -------------------------------------------------------------------------


@pytest.mark.parametrize("size", BORDER_SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_every_length_form_comes_back(server: Server, opcode: int, size: int) -> None:
    """Messages at each border of the three length forms come back unchanged, in one frame of the same kind."""
    payload = random.Random(size).randbytes(size) if opcode == BINARY else b"*" * size
    with RawClient(server) as client:
        client.send(build(opcode, payload))
        assert client.read() == Frame(opcode, payload)


def test_masks_are_removed(server: Server) -> None:
    """Any masking key gives the same message, zero and at any alignment included."""
    with RawClient(server) as client:
        for size, mask in itertools.product((1, 2, 3, 4, 5, 31, 300), (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\2\3\4")):
            payload = bytes(range(65, 65 + 26)) * 20
            client.send(build(TEXT, payload[:size], mask=mask))
            assert client.read() == Frame(TEXT, payload[:size])


def test_bytes_may_arrive_one_by_one(server: Server) -> None:
    """A stream cut at every byte means the same: length forms, control frames and fragments."""
    stream = (
        build(TEXT, b"small") + build(BINARY, b"m" * 130) + build(TEXT, b"frag", fin=False) + build(PING, b"between")
        + build(CONTINUATION, b"ment") + build(TEXT, GREETING.encode())
    )  # fmt: skip
    with RawClient(server) as client:
        for position in range(len(stream)):
            client.send(stream[position : position + 1])
        assert client.read() == Frame(TEXT, b"small")
        assert client.read() == Frame(BINARY, b"m" * 130)
        assert client.read() == Frame(PONG, b"between")
        assert client.read() == Frame(TEXT, b"fragment")
        assert client.read_text() == GREETING


def test_messages_behind_the_handshake_in_one_packet(server: Server) -> None:
    """Frames that follow the upgrade request at once are not lost, however many there are."""
    texts = [f"early {number} {'x' * 200}" for number in range(100)]
    with RawClient(server, behind=b"".join(build(TEXT, text.encode()) for text in texts)) as client:
        assert [client.read_text() for _ in texts] == texts


def test_many_messages_keep_their_order(server: Server) -> None:
    """A thousand messages written at once come back one by one and in order."""
    with RawClient(server) as client:
        client.send(*(build(TEXT, str(number).encode()) for number in range(1000)))
        assert [client.read_text() for _ in range(1000)] == [str(number) for number in range(1000)]


# -- fragments ------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_fragments_are_joined(server: Server, opcode: int) -> None:
    """A message in two, three or a thousand fragments, empty ones among them, is one message."""
    with RawClient(server) as client:
        for parts in ([b"ab", b"cd"], [b"", b"abc", b""], [b"", b""], [b"x"] * 1000):
            client.send(
                *(
                    build(CONTINUATION if position else opcode, part, fin=position == len(parts) - 1)
                    for position, part in enumerate(parts)
                )
            )
            assert client.read() == Frame(opcode, b"".join(parts))


def test_control_frames_between_fragments(server: Server) -> None:
    """Pings between fragments are answered at once, unasked pongs ignored, and the message stays whole."""
    with RawClient(server) as client:
        client.send(build(TEXT, b"one ", fin=False), build(PING, b"1"))
        assert client.read() == Frame(PONG, b"1")
        client.send(build(CONTINUATION, b"two ", fin=False), build(PONG, b"unasked"), build(PING, b"2"))
        assert client.read() == Frame(PONG, b"2")
        client.send(build(CONTINUATION, b"three"))
        assert client.read_text() == "one two three"


@pytest.mark.parametrize("fin", [True, False])
def test_continuation_of_nothing_fails(server: Server, *, fin: bool) -> None:
    """A continuation frame without a start closes with 1002, first of all or after a whole message."""
    for before in ((), (build(TEXT, b"whole"),)):
        with RawClient(server) as client:
            for frame in before:
                client.send(frame)
                assert client.read_text() == "whole"
            client.send(build(CONTINUATION, b"tail", fin=fin))
            fails(client, 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_new_message_inside_a_fragmented_one_fails(server: Server, opcode: int) -> None:
    """A text or binary frame before the last fragment closes with 1002."""
    with RawClient(server) as client:
        client.send(build(TEXT, b"begun", fin=False), build(opcode, b"again"))
        fails(client, 1002)


# -- reserved bits and opcodes, masks, lengths ------------------------------------------


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_reserved_bits_fail(server: Server, opcode: int, rsv: int) -> None:
    """No extension is negotiated: any reserved bit in any kind of frame closes with 1002."""
    with RawClient(server) as client:
        client.send(build(opcode, close_payload(1000) if opcode == CLOSE else b"x", rsv=rsv))
        fails(client, 1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_reserved_opcodes_fail(server: Server, opcode: int) -> None:
    """An opcode that RFC 6455 reserves closes with 1002, with and without payload."""
    for payload in (b"", b"payload"):
        with RawClient(server) as client:
            client.send(build(opcode, payload))
            fails(client, 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_unmasked_frames_fail(server: Server, opcode: int) -> None:
    """A client's frame without a mask closes with 1002."""
    with RawClient(server) as client:
        client.send(build(opcode, close_payload(1000), mask=None))
        fails(client, 1002)


@pytest.mark.parametrize(
    "frame",
    [
        build(TEXT, b"short", length_bytes=2),
        build(TEXT, b"short", length_bytes=8),
        build(TEXT, b"x" * 300, length_bytes=8),
        build(TEXT, b"", length=1 << 63, length_bytes=8),
    ],
    ids=["5 in 16 bits", "5 in 64 bits", "300 in 64 bits", "top bit"],
)
def test_lengths_not_in_their_shortest_form_fail(server: Server, frame: bytes) -> None:
    """A length in a longer form than it needs, or with its top bit set, closes with 1002."""
    with RawClient(server) as client:
        client.send(frame)
        fails(client, 1002)


# -- ping and pong ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_ping_is_answered_with_its_payload(server: Server, size: int) -> None:
    """A ping of up to 125 bytes, text or not, comes back as a pong with the same bytes."""
    payload = bytes(range(255, 255 - size, -1))
    with RawClient(server) as client:
        client.send(build(PING, payload))
        assert client.read() == Frame(PONG, payload)


def test_every_ping_is_answered_in_order(server: Server) -> None:
    """While the client reads, each of many pings has its own pong; unasked pongs have no answer."""
    with RawClient(server) as client:
        client.send(*(build(PING, str(number).encode()) + build(PONG, b"unasked") for number in range(200)))
        assert [client.read() for _ in range(200)] == [Frame(PONG, str(number).encode()) for number in range(200)]
        client.is_alive()


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_control_frames_are_short_and_whole(server: Server, opcode: int) -> None:
    """A control frame of more than 125 bytes, or one of several fragments, closes with 1002."""
    for frame in (build(opcode, b"\x03\xe8" + b"x" * 124), build(opcode, b"", fin=False)):
        with RawClient(server) as client:
            client.send(frame)
            fails(client, 1002)


# -- UTF-8 ------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", NOT_UTF8, ids=lambda payload: payload.hex())
def test_text_that_is_not_utf8_fails(server: Server, payload: bytes) -> None:
    """Invalid UTF-8 closes with 1007: in one frame, and in a frame for each byte, behind a valid beginning."""
    fragments = [build(TEXT, b"valid ", fin=False)]
    fragments += [build(CONTINUATION, payload[at : at + 1], fin=at == len(payload) - 1) for at in range(len(payload))]
    for frames in ([build(TEXT, payload)], fragments):
        with RawClient(server) as client:
            client.send(*frames)
            fails(client, 1007)


def test_text_fails_before_it_is_whole(server: Server) -> None:
    """Text that can no longer become UTF-8 closes with 1007 at once, though no last fragment comes."""
    for parts in ([b"\xce\xba", b"\xed\xa0\x80"], [b"ok", b"\xf4\x90"], [b"\xf4", b"\x90"], [b"\xed", b"\xa0"]):
        with RawClient(server) as client:
            client.send(build(TEXT, parts[0], fin=False), build(CONTINUATION, parts[1], fin=False))
            fails(client, 1007)


def test_utf8_may_be_split_everywhere(server: Server) -> None:
    """Valid text is taken wherever it is cut in two, inside a character too, and with a frame for each byte."""
    data = GREETING.encode()
    with RawClient(server) as client:
        for cut in range(len(data) + 1):
            client.send(build(TEXT, data[:cut], fin=False), build(CONTINUATION, data[cut:]))
            assert client.read_text() == GREETING
        client.send(
            build(TEXT, data[:1], fin=False),
            *(build(CONTINUATION, data[at : at + 1], fin=at == len(data) - 1) for at in range(1, len(data))),
        )
        assert client.read_text() == GREETING


def test_borders_of_utf8(server: Server) -> None:
    """The first and last code points of each length, and the non-characters, are text."""
    with RawClient(server) as client:
        for point in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x1FFFE, 0x10FFFF):
            client.text(chr(point))
            assert client.read_text() == chr(point)


def test_binary_is_no_text(server: Server) -> None:
    """Nothing is asked of the bytes of a binary message."""
    with RawClient(server) as client:
        for payload in NOT_UTF8:
            client.send(build(BINARY, payload))
            assert client.read() == Frame(BINARY, payload)


# -- closing ----------------------------------------------------------------------------


@pytest.mark.parametrize("code", SENDABLE_CODES)
def test_close_is_answered_with_its_code(server: Server, code: int) -> None:
    """S0-32: a close frame is answered with the same code and no reason, then the server ends the connection."""
    for reason in (b"", b"bye", b"x" * 123, "Grüße".encode()):
        with RawClient(server) as client:
            client.send(build(CLOSE, close_payload(code, reason)))
            assert client.read_close() == (code, "")
            client.read_end()


def test_empty_close_is_answered_with_an_empty_one(server: Server) -> None:
    """S0-32: a close frame without a code has no code to answer with."""
    with RawClient(server) as client:
        client.send(build(CLOSE))
        assert client.read_close() == (None, "")
        client.read_end()


@pytest.mark.parametrize("code", UNSENDABLE_CODES)
def test_codes_that_may_not_be_sent_fail(server: Server, code: int) -> None:
    """A reserved or unknown code closes with 1002, and at once: the client's close frame has been seen."""
    with RawClient(server) as client:
        client.send(build(CLOSE, close_payload(code)))
        fails(client, 1002)


def test_half_a_code_fails(server: Server) -> None:
    """A close frame of one byte closes with 1002."""
    with RawClient(server) as client:
        client.send(build(CLOSE, b"\x03"))
        fails(client, 1002)


def test_close_reason_must_be_utf8(server: Server) -> None:
    """A close reason that is not UTF-8 closes with 1007."""
    with RawClient(server) as client:
        client.send(build(CLOSE, close_payload(1000, b"\xce\xba\xed\xa0\x80")))
        fails(client, 1007)


def test_nothing_is_answered_behind_a_close(server: Server) -> None:
    """Messages, pings, a second close frame or garbage behind a close frame change nothing about its answer."""
    behind = (build(TEXT, b"late"), build(PING, b"late"), build(CLOSE, close_payload(1001)), build(3, b""), b"\xff" * 9)
    for payload, late in itertools.product((close_payload(1000), close_payload(4321), b""), behind):
        with RawClient(server) as client:
            client.send(build(CLOSE, payload), late)
            assert client.read_close() == (int.from_bytes(payload, "big") or None, "")
            client.read_end()


def test_close_in_the_middle_of_a_message(server: Server) -> None:
    """A close frame between fragments is answered; the unfinished message is forgotten."""
    with RawClient(server) as client:
        client.send(build(TEXT, b"half", fin=False), build(CLOSE, close_payload(1000)))
        assert client.read_close() == (1000, "")
        client.read_end()


def test_messages_before_a_close_are_answered_first(server: Server) -> None:
    """What came before a close frame is echoed before the answer to it."""
    with RawClient(server) as client:
        client.send(*(build(TEXT, str(number).encode()) for number in range(50)), build(CLOSE, close_payload(1000)))
        assert [client.read_text() for _ in range(50)] == [str(number) for number in range(50)]
        assert client.read_close() == (1000, "")
        client.read_end()


def test_the_library_agrees(server: Server) -> None:
    """websockets, a client that nobody here wrote, echoes 200 messages, closes cleanly, and sees codes and reasons."""

    async def talk() -> None:
        async with connect(server.ws_url(path="/echo"), open_timeout=10) as client:
            for number in range(200):
                message = (str(number) * number) if number % 2 else bytes([number]) * number
                await client.send(message)
                assert await asyncio.wait_for(client.recv(), 10) == message
            await client.send(["in ", "three ", "fragments"])
            assert await asyncio.wait_for(client.recv(), 10) == "in three fragments"
            assert await asyncio.wait_for(await client.ping(), 10) >= 0
        assert (client.close_code, client.close_reason) == (1000, "")
        async with connect(server.ws_url(path="/echo"), open_timeout=10) as client:
            await client.send("x" * 65537)
            await asyncio.wait_for(client.wait_closed(), 10)
        assert client.close_code == 1009
        assert "65536" in client.close_reason

    asyncio.run(talk())
