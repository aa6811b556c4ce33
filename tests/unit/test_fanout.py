"""The hub with receivers that only take notes: who gets what once, what the broker is told, and when."""

import asyncio
import contextlib
import gzip
import itertools
import socket
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import orjson
import pytest
import uvloop

from fastpush.config import Compression, Fanout
from fastpush.errors import CloseCode
from fastpush.fanout import DEFLATE, ENVELOPE, GZIP, PLAIN, Group, Hub, batch
from fastpush.fanout.batch import Batch, Writable
from fastpush.metrics import Counters
from fastpush.protocol.bus import Publication
from fastpush.protocol.frames import binary_frame, payload_of, text_frame
from fastpush.protocol.push import EVERYBODY, user_key

KEY, OTHER = user_key("u", "e"), user_key("u", "f")
Announce = Callable[[bytes, Callable[[], None]], None]


def make_hub(
    announce: Announce = lambda _, confirmed: None, withdraw: Callable[[bytes], None] = lambda _: None, *,
    fanout: Fanout | None = None, compression: Compression | None = None, write_bytes: int = 65536,
    counters: Counters | None = None, find: Callable[[int], Any] = lambda _: None,
) -> Hub:  # fmt: skip
    return Hub(
        announce, withdraw, fanout=fanout or Fanout(), compression=compression or Compression(),
        write_bytes=write_bytes, counters=counters or Counters(), find=find,
    )  # fmt: skip


class Taker:
    """A connection that takes every frame, or `room` frames and no more.

    frames: what it was sent.  writes: the same as it came, each the joined bytes of one write.
    on_send: called for each write, as a slow kernel would be.
    """

    def __init__(
        self,
        hub: Hub,
        user: str = "u",
        *,
        form: int = PLAIN,
        room: int = 10**9,
        on_send: Callable[[], None] | None = None,
    ) -> None:
        self.hub = hub
        self.user = user
        self.groups: tuple[Group, ...] = ()
        self.form = form
        self.room = room
        self.on_send = on_send
        self.frames: list[bytes] = []
        self.writes: list[bytes] = []
        self.slow = 0
        self.writable: Writable | None = None  # so that send_joined is asked each time
        self.descriptor = -1

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        if self.on_send is not None:
            self.on_send()
        assert frames, "a write of nothing"
        taken = frames[: self.room - len(self.frames)]
        if len(taken) < len(frames):
            self.hub.mark_slow(self)
        else:
            assert joined == b"".join(frames)
            self.writes.append(joined)
        self.frames += taken
        return len(taken)

    @property
    def texts(self) -> list[str]:
        return [str(payload_of(frame), "utf-8") for frame in self.frames]

    def close(self, code: CloseCode, reason: str) -> None:
        self.hub.leave(self)

    def close_slow(self) -> None:
        self.slow += 1
        self.hub.leave(self)


class Broker:
    """What a hub has told; confirms when asked to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.waiting: dict[bytes, list[Callable[[], None]]] = {}
        self.hub = make_hub(self.announce, lambda key: self.told.append(("-", key)))

    def announce(self, key: bytes, confirmed: Callable[[], None]) -> None:
        self.told.append(("+", key))
        self.waiting.setdefault(key, []).append(confirmed)

    def confirm(self, key: bytes) -> None:
        for confirmed in self.waiting.pop(key):
            confirmed()


def publication(
    *keys: bytes, event: str = "e", message: str = "hello", taken_seconds: float = 0.0, spared: int = 0
) -> Publication:  # fmt: skip
    return Publication(list(keys), event.encode(), text_frame(message.encode()), taken_seconds, spared)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


def on_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine function."""

    def test() -> None:
        run(scenario())

    test.__name__, test.__doc__, test.__module__ = scenario.__name__, scenario.__doc__, scenario.__module__
    return test


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def delivered(hub: Hub, pushed: Publication) -> int:
    """Return the count of one publication, when it is told."""
    counts: list[int] = []
    hub.deliver(pushed, counts.append)
    await until(lambda: counts)
    (count,) = counts
    return count


@on_loop
async def test_each_receiver_has_one_frame_and_counts_once() -> None:
    """S0-26, S0-28: a push by one key or several reaches each connection once, with the same object for all."""
    hub = Broker().hub
    both, one, other = Taker(hub), Taker(hub), Taker(hub, "v")
    for receiver, key in ((both, KEY), (both, OTHER), (one, KEY), (other, user_key("v", "e"))):
        hub.join(receiver, key)
        hub.join(receiver, EVERYBODY)
    pushed = publication(KEY, OTHER, b"unknown")
    assert await delivered(hub, pushed) == 2
    assert await delivered(hub, publication(KEY)) == 2
    assert await delivered(hub, publication(EVERYBODY)) == 3
    assert await delivered(hub, publication(b"unknown")) == 0
    assert await delivered(hub, publication(b"unknown", b"unknown too")) == 0
    assert [len(receiver.frames) for receiver in (both, one, other)] == [3, 3, 1]
    assert both.writes[0] is one.writes[0] is both.frames[0] is pushed.frame


def test_the_broker_is_told_first_in_and_last_out() -> None:
    """S0-14: one announcement for the first connection of a key, one withdrawal after the last."""
    broker = Broker()
    hub = broker.hub
    receivers = [Taker(hub) for _ in range(30)]
    for receiver in receivers:
        hub.join(receiver, KEY)
        hub.join(receiver, KEY)
    assert broker.told == [("+", KEY)]
    for receiver in receivers:
        hub.leave(receiver)
        hub.leave(receiver)
    assert broker.told[1:] == [("-", KEY)]
    assert (len(hub), list(hub.keys())) == (0, [])
    assert hub.connections("u", None) == []


def test_leaving_one_key_leaves_the_others() -> None:
    """The last of a key to leave it withdraws it; the connection keeps its others, and is still its user's."""
    broker = Broker()
    hub = broker.hub
    one, two = Taker(hub), Taker(hub)
    for receiver, key in ((one, KEY), (one, OTHER), (two, OTHER)):
        hub.join(receiver, key)
    hub.leave_one(one, KEY)
    hub.leave_one(one, OTHER)
    hub.leave_one(one, OTHER)
    assert broker.told[2:] == [("-", KEY)] and one.groups == ()
    hub.leave_one(two, KEY)
    assert hub.connections("u", None)[-1] is two and list(hub.keys()) == [OTHER]
    hub.join(one, KEY)
    hub.leave(one)
    hub.leave(two)
    assert (hub.connections("u", None), list(hub.keys())) == ([], [])


def test_a_hold_keeps_a_key_announced() -> None:
    """A handshake's hold announces a key before its connection is there, and withdraws it when none comes."""
    broker = Broker()
    hub = broker.hub
    group = hub.hold(KEY)
    receiver = Taker(hub)
    hub.join(receiver, KEY)
    hub.release(group)
    assert ("-", KEY) not in broker.told
    hub.leave(receiver)
    assert broker.told.count(("-", KEY)) == broker.told.count(("+", KEY)) == 1
    hub.release(hub.hold(OTHER))
    assert broker.told[-2:] == [("+", OTHER), ("-", OTHER)]


@on_loop
async def test_confirmation_is_waited_for_by_all() -> None:
    """Those that come while a key is being announced wait for the same confirmation, once; later ones need not ask."""
    broker = Broker()
    group = broker.hub.hold(KEY)
    calls: list[int] = []
    for number in range(4):
        broker.hub.when_confirmed(broker.hub.hold(KEY), lambda number=number: calls.append(number))
    await asyncio.sleep(0)
    assert (calls, group.confirmed) == ([], False)
    broker.confirm(KEY)
    assert (calls, group.confirmed) == ([0, 1, 2, 3], True)
    assert broker.hub.hold(KEY).confirmed
    assert broker.told.count(("+", KEY)) == 1


@on_loop
async def test_envelope_is_built_once() -> None:
    """Those who asked for it share one envelope; the others have the bare message."""
    hub = Broker().hub
    wrapped = [Taker(hub, form=ENVELOPE) for _ in range(2)]
    bare = Taker(hub)
    for receiver in (*wrapped, bare):
        hub.join(receiver, KEY)
    assert await delivered(hub, publication(KEY, event="größe", message='"\\\u2028')) == 3
    assert wrapped[0].frames[0] is wrapped[1].frames[0]
    assert orjson.loads(payload_of(wrapped[0].frames[0])) == {"event": "größe", "message": '"\\\u2028'}
    assert bare.texts == ['"\\\u2028']


@on_loop
async def test_a_binary_message_has_no_envelope() -> None:
    """An application may push bytes to a user whose /ws client wants envelopes: it gets them as they are, all do."""
    hub = Broker().hub
    takers = [Taker(hub, form=form) for form in (PLAIN, ENVELOPE, PLAIN)]
    for receiver in takers:
        hub.join(receiver, KEY)
    binary = binary_frame(b"\xff\xfe")
    assert await delivered(hub, publication(KEY)._replace(frame=binary)) == 3
    assert [taker.frames for taker in takers] == [[binary]] * 3


def _inflated(payload: memoryview) -> bytes:
    return zlib.decompressobj(-15).decompress(bytes(payload) + b"\x00\x00\xff\xff")


@pytest.mark.parametrize("count", [2, 20], ids=["small group", "large group"])
@pytest.mark.parametrize(
    ("form", "first", "read"),
    [
        (PLAIN, 0x81, bytes),
        (ENVELOPE, 0x81, bytes),
        (DEFLATE, 0xC1, _inflated),
        (GZIP, 0x82, gzip.decompress),
        (ENVELOPE | GZIP, 0x82, gzip.decompress),
        (ENVELOPE | DEFLATE, 0xC1, _inflated),
        (GZIP | DEFLATE, 0x82, gzip.decompress),
    ],
)
def test_each_form_is_made_once_a_batch(
    monkeypatch: pytest.MonkeyPatch, form: int, first: int, read: Callable[[memoryview], bytes], count: int
) -> None:
    """S2-13, S2-14: a form is made for its first receiver and shared by all; gzip is not deflated again; who wants
    another form has that.
    """
    made: list[int] = []
    original = batch.frame_in_form
    monkeypatch.setattr(batch, "frame_in_form", lambda p, form, c: made.append(form) or original(p, form, c))

    async def scenario() -> None:
        hub = make_hub()
        takers = [Taker(hub, form=form) for _ in range(count)]
        plain = Taker(hub)
        for receiver in (*takers, plain):
            hub.join(receiver, KEY)
        message = "grüße " * 500
        pushed = publication(KEY, event="e", message=message)
        assert await delivered(hub, pushed) == count + 1
        (frame,) = {id(taker.writes[0]): taker.writes[0] for taker in takers}.values()
        assert frame[0] == first
        text = read(payload_of(frame)).decode()
        assert (orjson.loads(text)["message"] if form & ENVELOPE else text) == message
        assert plain.frames[0] is pushed.frame
        assert len(made) == len(set(made))
        assert {PLAIN, *made} == {PLAIN, form}

    run(scenario())


@on_loop
async def test_min_bytes_and_max_bytes_of_deflate() -> None:
    """A message outside of [min_bytes, max_bytes] stays plain, the object that the others have; gzip has no bounds."""
    hub = make_hub(compression=Compression(min_bytes=1000, max_bytes=2000))
    deflating, zipping, plain = Taker(hub, form=DEFLATE), Taker(hub, form=GZIP), Taker(hub)
    for receiver in (deflating, zipping, plain):
        hub.join(receiver, KEY)
    for size in (0, 999, 1000, 2000, 2001, 100_000):
        message = "x" * size
        assert await delivered(hub, publication(KEY, message=message)) == 3
        is_deflated = 1000 <= size <= 2000
        assert (deflating.frames[-1] is plain.frames[-1]) != is_deflated
        assert deflating.frames[-1][0] == (0xC1 if is_deflated else 0x81)
        assert zipping.frames[-1][0] == 0x82
        assert gzip.decompress(payload_of(zipping.frames[-1])).decode() == message


class SocketTaker(Taker):
    """A taker with a socket, and its own transport.  far: the client's end.

    asked: the calls of send_joined.  rests: what the transport was given.
    """

    def __init__(self, hub: Hub, **kwargs: Any) -> None:
        super().__init__(hub, **kwargs)
        self.socket, self.far = socket.socketpair()
        self.socket.setblocking(False)
        self.far.setblocking(False)
        self.descriptor = self.socket.fileno()
        self.writable = self
        self.closing = self.closes_on_write = False
        self.asked: list[tuple[bytes, list[bytes]]] = []
        self.rests: list[bytes] = []

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes | memoryview) -> None:
        self.rests.append(bytes(data))
        self.closing = self.closes_on_write

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        self.asked.append((joined, list(frames)))
        return super().send_joined(joined, frames)

    def fill(self) -> int:
        """Fill the socket, so that a write would block; return with how many bytes."""
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += self.socket.send(bytes(65536))
        return filled

    def received(self) -> bytes:
        chunks = []
        with contextlib.suppress(BlockingIOError):
            while chunk := self.far.recv(1 << 20):
                chunks.append(chunk)
        return b"".join(chunks)


@pytest.fixture
def socket_taker() -> Iterator[Callable[..., SocketTaker]]:
    """Make takers with sockets, which are closed in the end."""
    with contextlib.ExitStack() as stack:

        def make(**kwargs: Any) -> SocketTaker:
            taker = SocketTaker(make_hub(), **kwargs)
            stack.enter_context(taker.socket)
            stack.enter_context(taker.far)
            return taker

        yield make


def two() -> Batch:
    return Batch([publication(KEY, message="first"), publication(KEY, message="second")], Compression())


@pytest.mark.parametrize("form", [PLAIN, ENVELOPE, GZIP])
def test_an_open_socket_is_written_to(socket_taker: Callable[..., SocketTaker], form: int) -> None:
    """A receiver whose transport has nothing waiting gets exactly the joined frames, past transport and send_joined,
    and counts; one that has none is asked, with the same bytes.
    """
    gathered, takers, behind = two(), [socket_taker(form=form) for _ in range(3)], socket_taker(form=form)
    behind.writable = None
    gathered.give_last(dict.fromkeys((*takers, behind)), 4)
    ((joined, frames),) = behind.asked
    assert len(frames) == 2 and b"".join(frames) == joined
    assert [taker.received() for taker in (*takers, behind)] == [joined] * 3 + [b""]
    assert [(taker.asked, taker.rests) for taker in takers] == [([], [])] * 3
    assert (gathered.counts(), gathered.writes) == ([4, 4], 4)


@pytest.mark.parametrize("room", [0, 1, 2])
@pytest.mark.parametrize("state", ["full", "broken", "closing"])
def test_who_cannot_be_written_to_is_asked_once(
    socket_taker: Callable[..., SocketTaker], state: str, room: int
) -> None:
    """A write that would block or fails, and a transport that is closing, are send_joined's business, which is asked
    once and counts for what it took; nothing of that goes to the socket, and the others lack nothing.
    """

    async def scenario() -> None:
        gathered, before, after = two(), socket_taker(), socket_taker()
        taker = socket_taker(room=room)
        filled = taker.fill() if state == "full" else 0
        if state == "broken":
            taker.far.close()
        taker.closing = state == "closing"
        gathered.give_last(dict.fromkeys((before, taker, after)), 3)
        joined = before.received()
        assert joined == after.received() != b""
        assert taker.asked == [(joined, [publication.frame for publication in gathered.publications])]
        assert taker.rests == []
        if state != "broken":
            assert len(taker.received()) == filled
        assert gathered.counts() == [2 + (room > 0), 2 + (room > 1)]
        assert gathered.writes == 3

    run(scenario())


@pytest.mark.parametrize("closes_on_write", [False, True])
def test_what_a_socket_leaves_is_the_transports(
    socket_taker: Callable[..., SocketTaker], *, closes_on_write: bool
) -> None:
    """Of a write that the kernel takes in part the transport gets the rest, once; who closes then does not count."""
    gathered = Batch([publication(KEY, message="x" * (4 << 20))], Compression())
    taker = socket_taker()
    taker.closes_on_write = closes_on_write
    gathered.give(taker)
    (rest,) = taker.rests
    assert 0 < len(rest) < 4 << 20
    assert taker.received() + rest == gathered.publications[0].frame
    assert taker.asked == []
    assert (gathered.counts(), gathered.writes) == ([int(not closes_on_write)], 1)


@on_loop
async def test_who_does_not_take_is_closed_after_the_walk() -> None:
    """S0-26, S0-30: a receiver that fails is not counted, the others are served, it is unbound after the walk."""
    broker = Broker()
    hub = broker.hub
    receivers = [Taker(hub, room=10**9 if number % 3 else 0) for number in range(30)]
    for receiver in receivers:
        hub.join(receiver, KEY)
    assert await delivered(hub, publication(KEY)) == 20
    await until(lambda: all(receiver.slow == (not receiver.room) for receiver in receivers))
    assert await delivered(hub, publication(KEY)) == 20
    assert len(hub.connections("u", "e")) == 20
    # Marked outside of a walk: closed in the next turn of the loop.
    hub.mark_slow(receivers[1])
    assert receivers[1].slow == 0
    await until(lambda: receivers[1].slow == 1)


def test_connections_of_a_user() -> None:
    """S0-37: all of a user's connections, or those with an event; names that look alike are not mixed up."""
    hub = Broker().hub
    receivers = {}
    for user, event in itertools.product(("a", "ab", "1:a"), ("b", "bb", ":")):
        receivers[user, event] = Taker(hub, user)
        hub.join(receivers[user, event], user_key(user, event))
    for (user, event), receiver in receivers.items():
        assert hub.connections(user, event) == [receiver]
        assert len(hub.connections(user, None)) == 3
    assert hub.connections("nobody", None) == hub.connections("a", "nothing") == []
