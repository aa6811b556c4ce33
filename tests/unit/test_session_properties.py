"""fastpush.channels.session, whatever clients send and owners do: bounded, no exception, one answer a command."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.channels.session import TABLE, Bounds, Disconnect, Session, State
from fastpush.protocol.client import (
    BadCommand,
    Connect,
    ConnectResult,
    DisconnectCode,
    ErrorCode,
    Pong,
    Request,
    Send,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    read_command,
)

CHANNELS_MAX = 2
REPLY_BYTES_MAX = 2_000  # of anything written at once: a name of 255 bytes, escaped, and what goes around it
MOVES = {
    (State.NEW, State.CONNECTING),
    (State.CONNECTING, State.CONNECTED),
    (State.CONNECTING, State.REFUSED),
    *((state, State.ENDED) for state in (State.NEW, State.CONNECTING, State.REFUSED, State.CONNECTED)),
}
PLACES = {
    (None, State.SUBSCRIBING),
    (State.SUBSCRIBING, State.SUBSCRIBED),
    (State.SUBSCRIBING, None),
    (None, State.SUBSCRIBED),  # by the server
    (State.SUBSCRIBED, None),
}
profile = settings(max_examples=100)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
channels = st.sampled_from(["a", "a:1", "b", "$c", "#7"]) | st.sampled_from(["", "/x", "\x00", "é" * 200, "x" * 300])
ids = st.integers(1, 9) | st.sampled_from([0, -1, 2**32 - 1, 2**32, 1.0, "1", None])
methods = st.sampled_from([*(row.method for row in TABLE if row.method), "ping", "other"])
members = st.fixed_dictionaries(
    {"channel": channels},
    optional={
        "token": st.sampled_from(["", "t"]),
        "data": json_values,
        "recover": st.booleans(),
        "offset": st.integers(-1, 2**65),
        "epoch": st.text(max_size=3),
        "limit": st.integers(-1, 10),
        "flag": st.integers(0, 3),
        "type": st.integers(0, 1),
        "subs": st.dictionaries(channels, st.just({"recover": True}), max_size=2),
    },
)
commands = st.builds(
    lambda number, methods, body: json.dumps({"id": number, **dict.fromkeys(methods, body)}),
    ids,
    st.lists(methods, min_size=1, max_size=2),
    members | json_values,
)
plain = st.builds(
    lambda method, number, body: json.dumps({"id": number, method: body}), methods, st.integers(1, 9), members
)
moving = st.builds(
    lambda method, number, channel: json.dumps({"id": number, method: {"channel": channel}}),
    st.sampled_from(["subscribe", "subscribe", "unsubscribe"]),
    st.integers(1, 9),
    st.sampled_from(["a", "b", "c"]),
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A command with some of its text cut, doubled or replaced."""
    text = draw(commands)
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        text = text[:start] + draw(st.sampled_from(["", text[start:end] * 2]) | st.text(max_size=3)) + text[end:]
    return text


lines = (
    moving | moving | plain | commands | mutated() | st.just("{}") | st.text(max_size=10) | json_values.map(json.dumps)
)
frames = st.lists(lines, min_size=1, max_size=4).map("\n".join)


class Owner:
    """Does with a session what its owner may, in an order that the test draws, and checks it at every step."""

    def __init__(self, session: Session, data: st.DataObject) -> None:
        self.session = session
        self.data = data
        self.asked: Counter[int] = Counter()
        self.replied: Counter[int] = Counter()
        self.answered: list[Request] = []
        self.end: Disconnect | None = None
        self.state = session.state
        self.places: dict[str, State] = {}
        self.steps = 1

    def read(self, frame: str | bytes) -> Iterable[Request]:
        """Feed a frame, and count for each id the commands that may be answered."""
        text = frame.decode(errors="replace") if isinstance(frame, bytes) else frame
        for line in text.split("\n"):
            with suppress(BadCommand):
                command = read_command(line)
                self.asked[command.id] += not isinstance(command, Send | Pong)
            self.steps += 1
        return self.session.feed(frame)

    def feed(self, frame: str | bytes) -> None:
        for request in self.read(frame):
            self.check()
            self.act()
            self.answer(request)
            self.check()
        self.check()

    def answer(self, request: Request) -> None:
        """Answer as the protocol has it, or with an error."""
        session = self.session
        self.answered.append(request)
        if self.data.draw(st.integers(0, 3)) == 0:
            if session.refused(request, self.data.draw(st.sampled_from(ErrorCode))) and isinstance(request, Subscribe):
                assert request.channel not in session.subscriptions
        elif isinstance(request, Connect):
            subs = self.data.draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=CHANNELS_MAX + 1))
            session.connected(request, ConnectResult("c", subs=dict.fromkeys(subs, SubscribeResult())))
        elif isinstance(request, Subscribe):
            if session.subscribed(request, SubscribeResult(offset=1)):
                assert session.subscriptions[request.channel].state is State.SUBSCRIBED
        elif isinstance(request, Unsubscribe):
            if session.unsubscribed(request):
                assert request.channel not in session.subscriptions
        else:
            session.answered(request)

    def act(self) -> None:
        """Do what the server does by itself, or nothing."""
        self.steps += 1
        channel = self.data.draw(st.sampled_from(["a", "b", "c"]))
        action = self.data.draw(
            st.sampled_from(["", "", "subscribe", "unsubscribe", "unsubscribe", "ping", "take", "end"])
        )
        if action == "subscribe":
            if self.session.subscribe(channel, SubscribeResult()):
                assert self.session.state is State.CONNECTED
        elif action == "unsubscribe":
            self.session.unsubscribe(channel, self.data.draw(st.sampled_from([2000, 2500, 2501])), "why")
        elif action == "ping":
            self.session.ping()
        elif action == "take":
            self.take()
        elif action == "end" and self.data.draw(st.integers(0, 4)) == 0:
            self.session.ended(DisconnectCode.SHUTDOWN)
        self.check()

    def take(self) -> None:
        out = self.session.take()
        assert len(out) <= self.steps * REPLY_BYTES_MAX
        self.steps = 1
        for line in out.splitlines():
            reply = json.loads(line)
            if "id" in reply:
                self.replied[reply["id"]] += 1
        assert self.replied <= self.asked, "an answer that nobody asked for"
        assert not self.session.take()

    def check(self) -> None:
        session = self.session
        assert len(session.subscriptions) <= CHANNELS_MAX
        assert session.pongs_due >= 0
        assert self.end is None or session.disconnect is self.end, "it ends once"
        self.end = session.disconnect
        assert self.state is session.state or (self.state, session.state) in MOVES
        self.state = session.state
        assert (session.state is State.ENDED) == (session.disconnect is not None)
        places = {channel: subscription.state for channel, subscription in session.subscriptions.items()}
        for channel in places.keys() | self.places.keys():
            move = self.places.get(channel), places.get(channel)
            assert move[0] is move[1] or move in PLACES
        self.places = places

    def finish(self) -> None:
        """Every command of a session that goes on has its answer; one that has ended says nothing, whatever is done."""
        self.take()
        if self.session.state is State.CONNECTED:
            assert self.replied == self.asked
        self.session.ended(DisconnectCode.SHUTDOWN)
        self.session.take()
        for request in tuple(self.answered):
            self.answer(request)
        for _ in range(3):
            self.act()
        assert not self.session.take()


def fresh() -> Session:
    return Session(Bounds(CHANNELS_MAX))


def unidirectional() -> Session:
    return Session(Bounds(CHANNELS_MAX), unidirectional=True)


def connected() -> Session:
    session = fresh()
    for request in session.feed('{"id":1,"connect":{}}'):
        assert isinstance(request, Connect)
        session.connected(request, ConnectResult("c"))
    session.take()
    return session


openings = st.sampled_from([fresh, connected, connected, connected])
sessions = openings.map(lambda opening: opening())


@profile
@given(sessions, st.lists(frames | frames.map(str.encode), max_size=6), st.data())
def test_whatever_comes(session: Session, received: list[str | bytes], data: st.DataObject) -> None:
    """Whatever commands come, and whatever the server does meanwhile, the session holds what it promises."""
    owner = Owner(session, data)
    for frame in received:
        owner.feed(frame)
    owner.finish()


@profile
@given(sessions | st.builds(unidirectional), st.binary(max_size=60) | st.text(max_size=60), st.data())
def test_noise(session: Session, frame: str | bytes, data: st.DataObject) -> None:
    """Any text and any bytes end the session or are a command."""
    owner = Owner(session, data)
    owner.feed(frame)
    owner.finish()


@profile
@given(sessions, frames, st.lists(st.integers(0, 200), max_size=8), st.data())
def test_cut_anywhere(session: Session, frame: str, cuts: list[int], data: st.DataObject) -> None:
    """Frames that are pieces of commands, down to single bytes, are as harmless as whole ones."""
    content = frame.encode()
    ends = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    owner = Owner(session, data)
    for start, end in pairwise(ends):
        owner.feed(content[start:end])
    for number in range(len(content)):
        owner.feed(content[number : number + 1])
    owner.finish()


def answer_all(session: Session, received: Iterable[str | bytes]) -> tuple[bytes, State, list[str]]:
    """Feed frames to an owner that allows everything; return what comes of it."""
    out = b""
    for frame in received:
        for request in session.feed(frame):
            if isinstance(request, Connect):
                session.connected(request, ConnectResult("c"))
            elif isinstance(request, Subscribe):
                session.subscribed(request, SubscribeResult())
            elif isinstance(request, Unsubscribe):
                session.unsubscribed(request)
            else:
                session.answered(request)
        taken = session.take()
        out += taken + b"\n" if taken else b""
    return out, session.state, list(session.subscriptions)


@profile
@given(openings, st.lists(lines.filter(lambda line: line and "\n" not in line), min_size=1, max_size=8), st.data())
def test_frames_do_not_matter(opening: Callable[[], Session], said: list[str], data: st.DataObject) -> None:
    """The same commands come to the same, one a frame, all in one, in groups, as text or as bytes."""
    alone = answer_all(opening(), said)
    cuts = sorted({0, len(said), *data.draw(st.lists(st.integers(0, len(said)), max_size=4))})
    groups = ["\n".join(said[start:end]) + "\n" for start, end in pairwise(cuts)]
    assert answer_all(opening(), ["\n".join(said)]) == alone
    assert answer_all(opening(), groups) == alone
    assert answer_all(opening(), [group.encode() for group in groups]) == alone


@profile
@given(frames, st.data())
def test_owner_that_does_not_wait(frame: str, data: st.DataObject) -> None:
    """An owner that takes all requests of a frame first, and answers them in any order, breaks nothing either."""
    owner = Owner(connected(), data)
    requests = list(owner.read(frame))
    owner.check()
    for request in data.draw(st.permutations(requests)):
        owner.act()
        owner.answer(request)
        owner.check()
    owner.finish()
