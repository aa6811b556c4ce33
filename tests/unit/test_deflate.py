"""permessage-deflate: which offers are taken, what is deflated, and what inflating refuses.

Independent oracles: the examples of RFC 7692, and the websockets library as client and server.
"""

import random
import tracemalloc
import zlib
from itertools import product

import pytest
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension, parse_extension

from fastpush.errors import ProtocolViolation
from fastpush.protocol.deflate import compress, inflate, negotiate

ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
ANSWER_15 = f"{ANSWER}; server_max_window_bits=15"
NONE = None
MIB = 1 << 20

NEGOTIATIONS = {
    # no offer
    1: ("", NONE),
    2: (" ", NONE),
    3: (", ,\t,", NONE),
    4: ("x-webkit-deflate-frame", NONE),
    5: ("permessage-bzip2; permessage-deflate=1", NONE),
    6: ("PerMessage-Deflate", NONE),
    # what clients send
    10: ("permessage-deflate", ANSWER),
    11: ("permessage-deflate; client_max_window_bits", ANSWER),
    12: ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", ANSWER),
    13: ("permessage-deflate; client_max_window_bits=10; server_max_window_bits=15", ANSWER_15),
    14: ("permessage-deflate;client_max_window_bits=8;server_no_context_takeover", ANSWER),
    15: ("x-webkit-deflate-frame, permessage-deflate; client_max_window_bits", ANSWER),
    # spaces, quotes, empty elements
    20: ("  permessage-deflate\t;\tclient_max_window_bits = 15 ", ANSWER),
    21: ('permessage-deflate; server_max_window_bits="15"', ANSWER_15),
    22: (r'permessage-deflate; client_max_window_bits="1\0"', ANSWER),
    23: (",,permessage-deflate,", ANSWER),
    24: ('other; a="b"; c=d; e, permessage-deflate', ANSWER),
    # declined: a parameter that is unknown, repeated, invalid, or asks for another window
    30: ("permessage-deflate; level=9", NONE),
    31: ("permessage-deflate; client_max_window_bits; client_max_window_bits", NONE),
    32: ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", NONE),
    33: ("permessage-deflate; server_no_context_takeover=1", NONE),
    34: ("permessage-deflate; client_no_context_takeover=true", NONE),
    35: ("permessage-deflate; server_max_window_bits", NONE),
    36: ("permessage-deflate; server_max_window_bits=10", NONE),
    37: ("permessage-deflate; server_max_window_bits=16", NONE),
    38: ("permessage-deflate; client_max_window_bits=7", NONE),
    39: ("permessage-deflate; client_max_window_bits=16", NONE),
    40: ("permessage-deflate; client_max_window_bits=08", NONE),
    41: ("permessage-deflate; client_max_window_bits=+9", NONE),
    42: ("permessage-deflate; Client_Max_Window_Bits", NONE),
    # then the next offer is looked at, and the first acceptable one taken
    50: ("permessage-deflate; server_max_window_bits=10, permessage-deflate", ANSWER),
    51: ("permessage-deflate; level=9, permessage-deflate; server_max_window_bits=15", ANSWER_15),
    52: ("permessage-deflate, permessage-deflate; server_max_window_bits=15", ANSWER),
    53: ("permessage-deflate; server_max_window_bits=10, permessage-deflate; level=1", NONE),
    # malformed: nothing is offered, wherever the fault is
    60: ("permessage-deflate;", NONE),
    61: (";", NONE),
    62: ("permessage-deflate; =15", NONE),
    63: ("permessage-deflate; client_max_window_bits=", NONE),
    64: ('permessage-deflate; client_max_window_bits=""', NONE),
    65: ('permessage-deflate; client_max_window_bits="15', NONE),
    66: ('permessage-deflate; client_max_window_bits="1 5"', NONE),
    67: ('permessage-deflate; client_max_window_bits="15"5', NONE),
    68: ("permessage-deflate client_max_window_bits", NONE),
    69: ("permessage-deflate, permessage deflate", NONE),
    70: ("permessage-deflate, b\u00e4d", NONE),
    71: ("permessage-deflate\n", NONE),
    72: ("permessage-deflate, a;b=c=d", NONE),
    73: ('permessage-deflate, "quoted"', NONE),
}


@pytest.mark.parametrize(("header", "answer"), NEGOTIATIONS.values(), ids=map(str, NEGOTIATIONS))
def test_negotiation(header: str, answer: str | None) -> None:
    """Each header gets the one answer of the table."""
    assert negotiate(header) == answer


@pytest.mark.parametrize(
    "header", ["a" * 16000, "a;" * 8000, " " * 16000, 'a;b="' + "\\c" * 8000, "a; b=c" * 3000 + '"']
)
def test_negotiation_of_a_long_header(header: str) -> None:
    """A long header that fails at its end is looked at once: nothing in the grammar tries again."""
    assert negotiate(header) is None
    assert negotiate(f"{header},") is None


def test_negotiation_with_an_independent_client() -> None:
    """Every offer of the websockets library is answered as that library accepts it, or declined for its window."""
    flags, bits = (False, True), (None, 9, 14, 15)
    for server_takeover, client_takeover, server_bits, client_bits in product(flags, flags, bits, (*bits, True)):
        client = ClientPerMessageDeflateFactory(server_takeover, client_takeover, server_bits, client_bits)
        answer = negotiate(build_extension([(client.name, client.get_request_params())]))
        if server_bits in {9, 14}:
            assert answer is None
            continue
        assert answer is not None
        ((name, parameters),) = parse_extension(answer)
        assert name == client.name
        extension = client.process_response_params(parameters, [])
        assert extension.remote_no_context_takeover
        assert extension.local_no_context_takeover
        assert extension.remote_max_window_bits == 15


def test_a_window_that_is_asked_for_is_confirmed() -> None:
    """A client that asks for server_max_window_bits=15 fails the connection when the answer leaves it out."""
    client = ClientPerMessageDeflateFactory(False, False, 15, None)
    with pytest.raises(NegotiationError):
        client.process_response_params(parse_extension(ANSWER)[0][1], [])
    client.process_response_params(parse_extension(ANSWER_15)[0][1], [])


# Deflating


def violation(payload: bytes, most_bytes: int = MIB) -> int:
    with pytest.raises(ProtocolViolation) as raised:
        inflate(payload, most_bytes)
    assert len(raised.value.reason.encode()) <= 123
    return raised.value.code


def test_examples_of_the_rfc() -> None:
    """RFC 7692, 7.2.3: one block, no compression, BFINAL, two blocks, an empty message."""
    examples = {
        "f2 48 cd c9 c9 07 00": b"Hello",
        "00 05 00 fa ff 48 65 6c 6c 6f 00": b"Hello",
        "f3 48 cd c9 c9 07 00 00": b"Hello",
        "f2 48 05 00 00 00 ff ff ca c9 c9 07 00": b"Hello",
        "00": b"",
    }
    for data, message in examples.items():
        assert inflate(bytes.fromhex(data), 5) == message
        assert inflate(bytearray.fromhex(data), 5) == message


def test_context_takeover_is_not_assumed() -> None:
    """RFC 7692, 7.2.3.2: the second Hello refers to the first one; without takeover it refers to nothing."""
    assert violation(bytes.fromhex("f2 00 11 00 00")) == 1002
    first, second = compress(b"Hello Hello", 9), compress(b"Hello Hello", 9)
    assert first == second


def test_compressed_payload() -> None:
    """A payload, as bytes or memoryview, ends without the flush's tail; an empty one is one byte."""
    assert compress(b"", 1) == b"\x00"
    assert compress(memoryview(b"Hello"), 9) == bytes.fromhex("f2 48 cd c9 c9 07 00")
    for level in range(1, 10):
        deflated = compress(b"Hello " * 1000, level)
        assert len(deflated) < 120
        assert zlib.decompressobj(-15).decompress(deflated + b"\x00\x00\xff\xff") == b"Hello " * 1000


def test_random_round_trips() -> None:
    """300 random payloads come back as they were, from here and from the peer, whose window may be smaller."""
    chance = random.Random(6455)
    for _ in range(300):
        size = chance.choice([0, 1, 2, 30, 1000, 40_000])
        payload = chance.randbytes(size) if chance.random() < 0.5 else bytes(chance.choices(b"abc", k=size))
        deflated = compress(payload, chance.randint(1, 9))
        assert inflate(deflated, size) == payload
        peer = PerMessageDeflate(True, True, 15, chance.randint(9, 15))
        assert peer.decode(Frame(Opcode.BINARY, deflated, rsv1=True)).data == payload
        assert inflate(bytes(peer.encode(Frame(Opcode.BINARY, payload)).data), size) == payload


# Inflating what is hostile


def test_size_limit() -> None:
    """As many bytes as allowed are taken, one more is 1009: in one block, in several, in several streams, stored."""
    stored = b"\x00\x05\x00\xfa\xffHello" * 2 + b"\x00"
    one_block = compress(b"HelloHello", 9)
    two_blocks = compress(b"Hello", 9) + b"\x00\x00\xff\xff" + compress(b"Hello", 9)
    two_streams = final(b"Hello") + final(b"Hello") + b"\x00"
    for payload in (one_block, two_blocks, two_streams, stored):
        assert inflate(payload, 10) == inflate(payload, 11) == b"HelloHello"
        for most_bytes in (0, 1, 4, 5, 6, 9):
            assert violation(payload, most_bytes) == 1009
    assert inflate(b"\x00", 0) == b""


def final(data: bytes) -> bytes:
    """Return a deflate stream of its own, ended by BFINAL."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return encoder.compress(data) + encoder.flush()


def test_a_bomb_costs_no_more_than_the_limit() -> None:
    """1 MiB that would inflate to 1 GiB is 1009, in one stream or after another, and memory stays near the limit."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = encoder.compress(bytes(MIB)) + encoder.flush(zlib.Z_FULL_FLUSH)
    bomb = block * 1024
    assert MIB / 2 < len(bomb) < 1.5 * MIB
    for payload in (bomb, final(b"Hello") + bomb):
        tracemalloc.start()
        try:
            assert violation(payload, MIB) == 1009
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 3 * len(payload) + 3 * MIB


def test_final_blocks() -> None:
    """A final block may be followed by more streams and must be followed by a last, unfinished one."""
    assert inflate(final(b"Hello") + compress(b" you", 1), 9) == b"Hello you"
    assert inflate(compress(b"Hello", 1) + b"\x00\x00\xff\xff" + final(b" you") + b"\x00", 9) == b"Hello you"
    assert inflate(final(b"") * 10 + b"\x00", 0) == b""
    assert violation(final(b"Hello")) == 1002
    assert violation(final(b"Hello") + b"junk") == 1002


def test_streams_are_bounded() -> None:
    """A message of nothing but final blocks, two bytes each, is given up early: 64 streams are the most."""
    assert inflate(b"\x03\x00" * 63 + b"\x00", 0) == b""
    assert violation(b"\x03\x00" * 64 + b"\x00") == 1002
    assert violation(b"\x03\x00" * MIB) == 1002


@pytest.mark.parametrize("message", [b"Hello", b"Hello " * 100, bytes(range(256)) * 2])
@pytest.mark.parametrize("level", [1, 9])
def test_cut_anywhere(message: bytes, level: int) -> None:
    """A compressed message of which the end is missing is 1002, wherever it was cut; with the tail left in, too."""
    deflated = compress(message, level)
    for size in range(len(deflated)):
        assert violation(deflated[:size]) == 1002
    assert violation(deflated + b"\x00\x00\xff\xff") == 1002


def test_cut_in_a_stored_block() -> None:
    """A block without compression of which the end is missing is 1002, too, but for one cut: where just the
    appended four bytes complete it, RFC 7692, 7.2.2 makes them data.
    """
    stored = b"\x00\x0a\x00\xf5\xffHelloHello\x00"
    assert inflate(stored, 10) == b"HelloHello"
    for size in {*range(2, len(stored))} - {len(stored) - 5}:
        assert violation(stored[:size]) == 1002
    assert inflate(stored[:-5], 10) == b"HelloH\x00\x00\xff\xff"


def test_random_bytes_raise_nothing_else() -> None:
    """Whatever a client sends is inflated within the bound or is a ProtocolViolation 1002 or 1009."""
    chance = random.Random(1951)
    good = compress(b"Hello " * 20, 9)
    codes = set()
    for _ in range(5000):
        damaged = bytearray(chance.randbytes(chance.randrange(1, 40)) if chance.random() < 0.5 else good)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            assert len(inflate(damaged, 100)) <= 100
        except ProtocolViolation as refused:
            codes.add(refused.code)
    assert codes == {1002, 1009}
