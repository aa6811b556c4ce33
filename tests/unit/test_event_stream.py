"""fastpush.worker.event_stream: which id each event has, whatever waits, goes or is replaced before it is written."""

import asyncio
import random
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpush.applications import Application
from fastpush.config import Compression
from fastpush.errors import CloseCode
from fastpush.fanout import EVENTS
from fastpush.fanout.batch import channel_frames
from fastpush.protocol.bus import Kind, Position, Publication
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from fastpush.protocol.server_sent import COMMENT, event, parse_identifier, tag
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import State
from fastpush.worker.environment import Environment
from fastpush.worker.event_stream import EventStream, stream_head
from fastpush.worker.mount import Mount
from tests.unit.test_connection_limits import environment
from tests.unit.test_server_sent import interpret

HEAD = stream_head(b"Date: now", "id", ())
EPOCH = 0xE
CHANNELS = [channel_key(name) for name in ("keeps", "drops", "newest", "plain")]
POLICIES = dict(zip(CHANNELS, ("disconnect", "drop-oldest", "latest", "disconnect"), strict=True))
TRACKED = CHANNELS[:3]


class Wire:
    """A transport that takes `room` bytes at a time; what is written beyond waits, as in uvloop's."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.sent = b""
        self.buffer = b""
        self.room = 10**9
        self.ended = self.aborted = False
        self.protocol: Any = None

    def write(self, data: bytes | memoryview) -> None:
        assert not self.ended
        was_waiting = bool(self.buffer)
        self.buffer += bytes(data)
        self._send()
        if self.buffer and not was_waiting:
            self.protocol.pause_writing()

    def _send(self) -> None:
        taken = self.buffer[: self.room]
        self.sent, self.buffer, self.room = self.sent + taken, self.buffer[self.room :], self.room - len(taken)

    def read(self, size: int) -> None:
        """The client reads so many bytes."""
        self.room += size
        if self.buffer:
            self._send()
            if not self.buffer:
                self.protocol.resume_writing()

    def get_extra_info(self, name: str) -> socket.socket:
        return self.socket

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def is_closing(self) -> bool:
        return self.aborted

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.aborted = True


class Path(Mount):
    form = EVENTS
    streams = True

    def slow_policy(self, key: bytes) -> str:
        return POLICIES.get(key, "drop-oldest")


def mounted(made: Environment) -> Mount:
    server = ApplicationServer("/sse", made, cast(Any, None), cast(Any, None))
    return Path("/sse", Application(server, Application.options_class()), made.config)


def opened(made: Environment, positions: dict[bytes, Position] | None = None) -> tuple[EventStream, Wire]:
    """A stream, and the wire on which nothing but its head is."""
    stream, wire = EventStream(made, mounted(made), "peer", {}), Wire()
    stream.begin(cast(Any, wire), HEAD)
    # No fan-out past this transport, which has no connection.
    stream.writable, stream.descriptor = cast(Any, wire), -1
    if positions is not None:
        stream.send_placed(b"", positions)
    return stream, wire


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Wire]]:
    """Have the sockets of all wires closed."""
    made: list[Wire] = []
    plain = Wire.__init__

    def init(self: Wire) -> None:
        plain(self)
        made.append(self)

    monkeypatch.setattr(Wire, "__init__", init)
    yield made
    for wire in made:
        wire.socket.close()


def published(stream: EventStream, key: bytes, *offsets: int, size: int = 0) -> None:
    """Have the stream get publications whose data begin with their offset, in one go."""
    some = [
        Publication([key], b"", text_frame(b"%d %b" % (offset, b"x" * size)), 0.0, 0, Kind.DATA, offset)
        for offset in offsets
    ]
    joined, frames = channel_frames(some, stream.form, Compression())
    stream.send_joined(joined, frames)


def told(wire: Wire) -> list[tuple[str, str, str]]:
    return interpret(wire.sent[len(HEAD) :])


def run(scenario: Any) -> None:
    async def main() -> None:
        scenario()

    asyncio.run(main())


def test_shared_until_it_can_be_resumed(wires: list[Wire]) -> None:
    """A stream is written to past itself, like a WebSocket, unless it has positions: then each write is its own."""

    def scenario() -> None:
        stream, wire = opened(environment())
        assert stream.writable is not None
        published(stream, CHANNELS[0], 1)
        assert told(wire) == [("", "1 ", "")]
        stream, wire = opened(environment(), {})
        assert stream.writable is not None
        stream, wire = opened(environment(), {CHANNELS[0]: Position(4, EPOCH)})
        assert (stream.writable, stream.descriptor) == (None, -1)
        published(stream, CHANNELS[0], 5, 6)
        place = f"{tag(CHANNELS[0]):08x}.%d.e"
        assert told(wire) == [("", "5 ", place % 5), ("", "6 ", place % 6)]

    run(scenario)


class Model:
    """A stream under whatever happens, and what must be so of all that is on its wire."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        limits = {"send_queue_messages": 12, "send_queue_bytes": 6000}
        self.stream, self.wire = opened(environment(**limits), dict.fromkeys(TRACKED, Position(0, EPOCH)))
        self.offsets = dict.fromkeys(CHANNELS, 0)

    def step(self) -> None:
        match self.random.randrange(6):
            case 0 | 1:
                self.wire.room = min(self.wire.room, self.random.randrange(300))
            case 2:
                self.wire.read(self.random.randrange(2000))
            case 3:
                self.stream.send_joined(event(b"of a user"), (event(b"of a user"),))
            case _:
                key = self.random.choice(CHANNELS)
                first = self.offsets[key] + 1
                self.offsets[key] += self.random.randrange(1, 4)
                offsets = range(first, self.offsets[key] + 1)
                published(self.stream, key, *offsets, size=self.random.randrange(200))

    def check(self) -> None:
        """Each id says, of every channel, its last publication up to there."""
        last = {tag(key): 0 for key in TRACKED}
        for name, data, last_id in told(self.wire):
            places = {each: recover.offset for each, recover in parse_identifier(last_id).items()}
            assert places.keys() == last.keys()
            moved = [each for each in places if places[each] != last[each]]
            if name or not data[0].isdigit():
                assert not moved
                continue
            offset = int(data.split()[0])
            assert len(moved) <= 1
            if moved:
                assert places[moved[0]] == offset > last[moved[0]]
                last[moved[0]] = offset


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_an_id_is_of_what_was_written_before_it(seed: int, steps: int) -> None:
    """However a slow client's queue drops and replaces, an event moves its own channel's place, and no other's."""

    def scenario() -> None:
        model = Model(seed)
        for _ in range(steps):
            model.step()
        model.wire.read(10**9)
        model.check()
        model.wire.socket.close()

    run(scenario)


def test_another_position_stands_where_it_was_told(wires: list[Wire]) -> None:
    """What waits when a channel begins anew keeps its own place; the new one counts from the event that tells it."""

    def scenario() -> None:
        key = CHANNELS[0]
        stream, wire = opened(environment(), {key: Position(7, EPOCH)})
        wire.room = 0
        published(stream, key, 8)
        published(stream, key, 9)
        stream.seal_channel(key)
        stream.send_placed(event(b"{}", "unrecovered"), {key: Position(1, 0xF), b"unknown": Position(1, 1)})
        published(stream, key, 2)
        assert stream.is_behind
        wire.read(10**9)
        place = f"{tag(key):08x}"
        assert told(wire) == [
            ("", "8 ", f"{place}.8.e"),
            ("", "9 ", f"{place}.9.e"),
            ("unrecovered", "{}", f"{place}.1.f"),
            ("", "2 ", f"{place}.2.f"),
        ]

    run(scenario)


@pytest.mark.parametrize(
    ("error", "told"),
    [(None, ("", "client")), (ConnectionResetError(104, "reset by peer"), ("reset by peer", "network"))],
)
def test_a_reader_that_leaves(wires: list[Wire], error: Exception | None, told: tuple[str, str]) -> None:
    """Streams have no close frames: a client that ends one has left, and nothing has cut it off."""

    def scenario() -> None:
        made = environment()
        stream, _ = opened(made)
        made.connections[stream.serial] = stream
        stream.user = "jack"
        stream.connection_lost(error)
        note = made.notebook.notes[-1]
        assert (note.kind, note.code, note.reason, note.by) == ("closed", 1006, *told)

    run(scenario)


def test_the_end_comes_behind_what_was_sent(wires: list[Wire]) -> None:
    """A stream that is closed is given all that it was sent; one that is too slow only what it has been given."""

    def scenario() -> None:
        for code, count in ((CloseCode.SERVICE_RESTART, 3), (CloseCode.TRY_AGAIN_LATER, 1)):
            stream, wire = opened(environment(), {CHANNELS[0]: Position(0, EPOCH)})
            wire.room = 0
            for offset in (1, 2, 3):
                published(stream, CHANNELS[0], offset)
            stream.close(code, "")
            assert wire.ended and stream.state == State.CLOSING
            wire.read(10**9)
            assert [data for _, data, _ in told(wire)] == ["1 ", "2 ", "3 "][:count]

    run(scenario)


def test_comments_need_no_answer(wires: list[Wire]) -> None:
    """A silent stream gets a comment each interval; one that takes nothing of what waits is given up."""

    def scenario() -> None:
        made = environment()
        stream, wire = opened(made)
        stream.plan()
        for _ in range(10 * 25 * 3 + 10):
            made.wheel.advance()
        assert wire.sent.count(COMMENT) == 3 and stream.is_open
        wire.room = 0
        published(stream, CHANNELS[0], 1)
        for _ in range(10 * (25 + 10) + 10):
            made.wheel.advance()
        assert wire.aborted and wire.sent.count(COMMENT) == 3

    run(scenario)


def test_what_is_told_of_dropped_events(wires: list[Wire]) -> None:
    """A gap names the channel, or the event without its user: a push to several has the first one's key."""
    made = environment()
    stream = EventStream(made, mounted(made), "peer", {})
    gaps = [stream.gap_frame(key, 3) for key in (CHANNELS[1], user_key("jack", "orders"), EVERYBODY)]
    assert interpret(b"".join(gaps)) == [
        ("gap", '{"channel":"drops","dropped":3}', ""),
        ("gap", '{"event":"orders","dropped":3}', ""),
        ("gap", '{"dropped":3}', ""),
    ]


def test_limits_are_a_queues(wires: list[Wire]) -> None:
    """Beyond its queue's bound a stream is slow, and ends."""

    async def scenario() -> None:
        made = environment(send_queue_messages=2)
        stream, wire = opened(made)
        wire.room = 0
        for offset in range(1, 5):
            published(stream, CHANNELS[0], offset)
        await asyncio.sleep(0)
        assert stream.state == State.CLOSING and made.counters.drops_slow == 2

    asyncio.run(scenario())
