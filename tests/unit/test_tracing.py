"""fastpush.worker.tracing: clients notice nothing of it, what it tells is what they got, and nothing of it stays.

Connections on transports that a test lets take so many bytes; the pump's clock stands still, so a run can be repeated.
"""

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import pytest
import uvloop

from fastpush.applications import Application
from fastpush.bus.client import BusUnavailable
from fastpush.config import Admin, Compression, Config, Fanout, Limits
from fastpush.errors import CloseCode, RequestError, TokenRejected
from fastpush.fanout import CLIENT, ENVELOPE, EVENTS, LINES, PLAIN, Hub, batch, pump
from fastpush.fanout.batch import Batch
from fastpush.metrics import Counters
from fastpush.protocol.bus import (
    NO_POSITION,
    Kind,
    Position,
    Publication,
    Status,
    decode_publication,
    encode_publication,
)
from fastpush.protocol.frames import text_frame
from fastpush.protocol.insight import Target, Traced, unpack_seen
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from fastpush.state.send_queue import ChannelQueue, SendQueue
from fastpush.worker import tracing as traces
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import Connection
from fastpush.worker.environment import Environment, SendQueues
from fastpush.worker.event_stream import EventStream, stream_head
from fastpush.worker.mount import Mount
from fastpush.worker.timers import TimerWheel
from fastpush.worker.tracing import Tracing
from tests.raw import TEXT, build
from tests.unit.test_connection_limits import KEY
from tests.unit.test_event_stream import Wire
from tests.unit.test_pump import Clock

HEAD = stream_head(b"Date: now", "id", ())
CHANNELS = ["keeps", "drops", "newest"]
POLICIES = dict(zip(map(channel_key, CHANNELS), ("disconnect", "drop-oldest", "latest"), strict=True))
USER_EVENT, OTHER_EVENT = user_key("u", "e"), user_key("other", "e")
FOREVER = 10**9


class Direct(Wire):
    """A transport whose socket a fan-out may write to."""

    by_descriptor: ClassVar[dict[int, "Direct"]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.by_descriptor[self.socket.fileno()] = self

    def write_direct(self, data: bytes) -> int:
        assert not self.buffer, "a fan-out wrote before what waits"
        if not self.room:
            raise BlockingIOError
        size = min(self.room, len(data))
        self.room -= size
        self.sent += data[:size]
        return size

    def close(self) -> None:
        del self.by_descriptor[self.socket.fileno()]
        self.socket.close()


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pump's time does not pass, a fan-out writes to a Direct, and log lines are seen."""
    clock = Clock()
    monkeypatch.setattr(pump, "perf_counter", clock)
    monkeypatch.setattr(pump, "monotonic", clock)
    monkeypatch.setattr(pump, "Batch", Batch)  # what a test leaves behind ends with it
    monkeypatch.setattr(batch, "os", Kernel())
    monkeypatch.setattr(Mount, "slow_policy", lambda _, key: POLICIES.get(key, "disconnect"))
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)
    yield
    for wire in list(Direct.by_descriptor.values()):
        wire.close()


class Kernel:
    """What batches need of `os`."""

    def write(self, descriptor: int, data: bytes) -> int:
        return Direct.by_descriptor[descriptor].write_direct(data)


class Bus:
    """A BusClient whose broker takes everything, and answers when the test says so."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Traced]] = []
        self.left_out = 0
        self.asked: list[Callable[..., None]] = []
        self.failure = ""

    def publish(self, body: bytes, on_result: Callable[..., None], once: bytes = b"") -> None:
        if self.failure:
            raise BusUnavailable(self.failure)
        self.asked.append(on_result)

    def tell_traced(self, body: bytes) -> None:
        seen = unpack_seen(body)
        self.seen += seen.events
        self.left_out += sum(seen.left_out.values())


class Stage:
    """A worker's connections, and its tracing. counts: what fan-outs have told."""

    def __init__(self, per_second: int = 100_000, **limits: Any) -> None:
        config = Config(limits=Limits(**limits), admin=Admin(trace_events_per_second=per_second))
        counters = Counters()
        hub = Hub(
            lambda _, confirmed: confirmed(), lambda _: None, fanout=Fanout(), compression=Compression(),
            write_bytes=65536, counters=counters,
        )  # fmt: skip
        self.environment = Environment(
            number=1, config=config, hub=hub, wheel=TimerWheel(), counters=counters,
            send_queues=SendQueues(config.limits.worker_send_bytes, hub),
        )  # fmt: skip
        self.environment.spawn = lambda work: asyncio.get_running_loop().create_task(work)
        self.bus = Bus()
        self.tracing = Tracing(self.environment, cast(Any, self.bus))
        self.counts: list[int] = []
        self.connections: list[Connection] = []
        self.wires: list[Direct] = []
        self._taken = itertools.count(1)

    @property
    def hub(self) -> Hub:
        return self.environment.hub

    @property
    def told(self) -> list[Traced]:
        return [event for _, event in self.bus.seen]

    def steps(self, *steps: str) -> list[Traced]:
        return [event for event in self.told if event.step in steps]

    def open(self, user: str, form: int, keys: Sequence[bytes]) -> Connection:
        wire = Direct()
        server = ApplicationServer("/app", self.environment, cast(Any, None), cast(Any, None))
        mount = Mount("/app", Application(server, Application.options_class()), self.environment.config)
        mount.form = form
        if form & EVENTS:
            stream = EventStream(self.environment, mount, "peer", {})
            stream.begin(cast(Any, wire), HEAD)
            connection: Connection = stream
        else:
            connection = Connection(self.environment, mount, "peer", {})
            connection.take_over(cast(Any, wire), KEY)
        wire.sent = b""  # its head, of which a part is random
        connection.user = user
        for key in keys:
            self.hub.join(connection, key)
        self.connections.append(connection)
        self.wires.append(wire)
        return connection

    def deliver(self, keys: list[bytes], size: int = 10, kind: int = Kind.MESSAGE) -> Publication:
        number = next(self._taken)
        message = b'"%d %s"' % (number, b"x" * size)
        offset = number if kind == Kind.DATA else 0
        made = Publication(keys, b"" if offset else b"e", text_frame(message), float(number), 0, kind, offset)
        self.hub.deliver(made, self.counts.append)
        return made

    def trace(self, user: str | None = None, channel: str | None = None) -> None:
        self.tracing.set([Target(id="t", user=user, channel=channel, seconds=60)])

    def check_clean(self) -> None:
        """Everything is what it is where nobody ever traces."""
        assert pump.Batch is Batch
        assert not {"deliver", "join", "leave_one"} & vars(self.hub).keys()
        assert "publish" not in vars(self.bus)
        assert not {"opened", "closed", "dropped", "add"} & vars(self.environment.notebook).keys()
        for connection, wire in zip(self.connections, self.wires, strict=True):
            assert type(connection) in {Connection, EventStream}
            assert type(connection._queue) in {SendQueue, ChannelQueue, type(None)}
            takes = connection.is_open and connection._queue is None and connection.descriptor >= 0
            assert connection.writable is (wire if takes else None)


def run(scenario: Any) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Clients notice nothing


class Step(NamedTuple):
    what: str
    which: int
    size: int


WEIGHTS = {
    "user": 8, "everybody": 2, "several": 3, "channel": 10, "read": 10, "send": 2, "turn": 6, "trace user": 2,
    "trace channel": 1, "trace both": 1, "trace nothing": 1, "close": 0.2, "close slow": 0.2, "client closes": 0.2,
    "lost": 0.2, "open": 0.5, "leave": 0.3,
}  # fmt: skip


def story_of(seed: int, steps: int = 300) -> list[Step]:
    source = random.Random(seed)
    whats = source.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps)
    return [Step(what, source.randrange(40), int(source.expovariate(1 / 800))) for what in whats]


async def play(story: list[Step], *, is_traced: bool) -> Any:
    """Let everything happen; return all that clients have received, and what was counted."""
    stage = Stage(send_queue_messages=6, send_queue_bytes=9000, slow_policy="drop-oldest")
    everything = [USER_EVENT, *POLICIES, EVERYBODY]
    for form in (PLAIN, ENVELOPE, LINES, CLIENT, EVENTS):
        stage.open("u", form, everything)
    for _ in range(10):  # enough for a fan-out in slices
        stage.open("other", PLAIN, [OTHER_EVENT, channel_key("keeps"), EVERYBODY])
    stage.open("u", EVENTS, everything)
    cast(EventStream, stage.connections[-1]).send_placed(b"", {channel_key("keeps"): Position(0, 1)})
    for wire in stage.wires:
        wire.room = 4000
    for step in story:
        await act(stage, step, is_traced=is_traced)
    if is_traced:
        stage.tracing.set(())
    stage.check_clean()
    for _ in range(20):
        await turns()
        for wire in stage.wires:
            wire.read(FOREVER)
    await turns()
    counters = stage.environment.counters
    figures = {name: getattr(counters, name) for name in dir(counters) if isinstance(getattr(counters, name), int)}
    ends = [(connection.state, connection.close_code, connection.queued_bytes) for connection in stage.connections]
    return [wire.sent for wire in stage.wires], stage.counts, figures, ends


async def act(stage: Stage, step: Step, *, is_traced: bool) -> None:
    what, which, size = step
    keys = {
        "user": [USER_EVENT if which % 2 else OTHER_EVENT],
        "everybody": [EVERYBODY],
        "several": [USER_EVENT, OTHER_EVENT],
        "channel": [channel_key(CHANNELS[which % 3])],
    }
    targets = {
        "trace user": [Target(id="t", user="u", seconds=60)],
        "trace channel": [Target(id="c", channel=CHANNELS[which % 3], seconds=60)],
        "trace both": [Target(id="t", user="u", seconds=60), Target(id="d", channel="drops", seconds=60)],
        "trace nothing": [],
    }
    if what in keys:
        stage.deliver(keys[what], size, Kind.DATA if what == "channel" else Kind.MESSAGE)
    elif what == "turn":
        await turns(which)
    elif what == "open":
        stage.open("u", PLAIN, [USER_EVENT, channel_key("drops"), EVERYBODY])
    elif what not in targets:
        of_one(stage, step)
    elif is_traced:
        stage.tracing.set(targets[what])


def of_one(stage: Stage, step: Step) -> None:
    """Let something happen to one connection."""
    what, which, size = step
    connection = stage.connections[which % len(stage.connections)]
    if what == "read":
        stage.wires[which % len(stage.connections)].read(size)
    elif what == "send" and connection.is_open:
        connection.send_frame(text_frame(b"own " + b"y" * size))
    elif what == "close":
        connection.close(1000, "bye")
    elif what == "close slow":
        connection.close(CloseCode.TRY_AGAIN_LATER, "too slow")
    elif what == "client closes" and connection.is_open and not isinstance(connection, EventStream):
        connection._feed(memoryview(build(8, b"\x03\xe8")))
    elif what == "leave":
        stage.hub.leave_one(connection, channel_key(CHANNELS[size % 3]))
    elif what == "lost" and connection._transport is not None:
        connection.connection_lost(None)


@pytest.mark.parametrize("seed", range(25))
def test_clients_notice_nothing(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is traced from when till when, with slow clients of every wire form and policy, clients that leave and
    are closed: each is sent the same bytes, as many are counted, and connections end as they do without a trace.
    """

    async def scenario() -> None:
        story = story_of(seed)
        plain = await play(story, is_traced=False)
        assert await play(story, is_traced=True) == plain

    run(scenario())
    assert "tracing failed" not in caplog.text


# What is told is true


def fates_of(stage: Stage, connection: Connection) -> dict[int, tuple[str, ...]]:
    """Return what a connection has told of each push, by its number."""
    fates: dict[int, tuple[str, ...]] = {}
    for event in stage.told:
        if event.connection == connection.id and event.push:
            number = event.push // 1_000_000
            fates[number] = (*fates.get(number, ()), event.step)
    return fates


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_told_is_what_was_received(seed: int, policy: str) -> None:
    """A push that a connection received has "written" once for it, and one that it did not receive none; each that was
    queued is told again when it is written or dropped.
    """

    async def scenario() -> None:
        stage = Stage(send_queue_messages=6, send_queue_bytes=9000, slow_policy=policy)
        forms = [PLAIN, LINES, CLIENT, EVENTS]
        opened = [stage.open("u", form, [USER_EVENT, *POLICIES, EVERYBODY]) for form in forms]
        for _ in range(10):
            stage.open("other", PLAIN, [EVERYBODY, channel_key("keeps")])
        stage.trace(user="u")
        source = random.Random(seed)
        for wire in stage.wires:
            wire.room = 3000
        for _ in range(200):
            size = int(source.expovariate(1 / 500))
            stage.deliver([source.choice([USER_EVENT, *POLICIES, EVERYBODY])], size, Kind.DATA)
            for wire in source.sample(stage.wires[:4], 2):
                wire.read(2 * size)
            if source.random() < 0.2:
                await turns()
        for _ in range(20):
            await turns()
            for wire in stage.wires:
                wire.read(FOREVER)
        await turns()
        for connection, wire in zip(opened, stage.wires, strict=False):
            fates = fates_of(stage, connection)
            received = {int(number) for number in re.findall(rb'"(\d+) x*\\?"', wire.sent)}
            assert received == {number for number, fate in fates.items() if "written" in fate} != set()
            whole = {("written",), ("queued", "written"), ("queued", "dropped"), ("dropped",)}
            # What the send queue of one that was closed as too slow held is told in one number.
            assert set(fates.values()) <= whole | (set() if connection.is_open else {("queued",)})
        assert stage.steps("queued") and stage.steps("slow") and stage.steps("dropped")

    run(scenario())


def body_of(*keys: bytes, message: bytes = b"secret", taken: float = 5.0) -> bytes:
    return encode_publication(list(keys), b"e", text_frame(message), taken_seconds=taken)


def told_of(stage: Stage, *steps: str) -> list[tuple[str, str, str]]:
    return [(event.step, event.what, event.detail) for event in stage.told if not steps or event.step in steps]


def test_a_push_from_its_accept_to_its_answer() -> None:
    """A push is told when it is accepted, arrives, is written and answered, with its event and size, in that order,
    all steps named alike, and never with its contents; another user's push is not told.
    """

    async def scenario() -> None:
        stage = Stage()
        stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        taken = asyncio.get_running_loop().time()
        body = body_of(USER_EVENT, taken=taken)
        answers: list[tuple[Any, ...]] = []
        stage.bus.publish(body, lambda *answer: answers.append(answer))
        stage.bus.publish(body_of(OTHER_EVENT), lambda *answer: answers.append(answer))
        stage.hub.deliver(decode_publication(body), stage.counts.append)
        stage.bus.asked[0](Status.DONE, 2, 1, NO_POSITION)
        stage.bus.asked[1](Status.DONE, 9, 0, NO_POSITION)
        await turns()
        assert answers == [(Status.DONE, 2, 1, NO_POSITION), (Status.DONE, 9, 0, NO_POSITION)]
        assert told_of(stage, "accepted", "arrived", "written", "answered") == [
            ("accepted", "e", "6 bytes, to 1 user"),
            ("arrived", "e", "1 connection here"),
            ("written", "e", "8 bytes"),
            ("answered", "e", "sent to 2 clients, 1 worker did not confirm in time"),
        ]
        steps = [event for event in stage.told if event.push]
        assert {event.push for event in steps} == {round(taken * 1e6)}
        assert steps[0].seconds == taken and steps[0].after_ms == 0
        assert [event.seconds for event in steps] == sorted(event.seconds for event in steps)
        assert all(event.after_ms == round((event.seconds - taken) * 1000, 3) for event in steps)
        assert "secret" not in repr(stage.told)

    run(scenario())


@pytest.mark.parametrize(
    ("status", "step", "words"),
    [
        (Status.NOT_READY, "refused", "being replaced"),
        (Status.OVERLOADED, "refused", "overloaded"),
        (Status.UNKNOWN, "answered", "unknown"),
    ],
)
def test_a_push_that_is_not_taken(status: Status, step: str, words: str) -> None:
    """What the broker did not take is told as refused, and what nobody knows as unknown; the publisher is answered."""

    async def scenario() -> None:
        stage = Stage()
        stage.trace(user="u")
        answers: list[tuple[Any, ...]] = []
        stage.bus.publish(body_of(USER_EVENT), lambda *answer: answers.append(answer))
        stage.bus.asked[0](status, 0, 0, NO_POSITION)
        await turns()
        assert answers == [(status, 0, 0, NO_POSITION)]
        assert stage.told[-1].step == step and words in stage.told[-1].detail

    run(scenario())


def test_a_push_that_is_not_handed_over() -> None:
    """Without a broker the publisher sees the same error as ever, and the trace tells of it."""

    async def scenario() -> None:
        stage = Stage()
        stage.bus.failure = "the broker is being restarted"
        stage.trace(user="u")
        with pytest.raises(BusUnavailable):
            stage.bus.publish(body_of(USER_EVENT), lambda *_: None)
        await turns()
        assert told_of(stage)[-1] == ("refused", "e", "not handed over: the broker is being restarted")

    run(scenario())


def gathering(stage: Stage) -> bytes:
    """A traced channel of nine whose next publications are written together; its routing key."""
    key = channel_key("keeps")
    for _ in range(9):
        stage.open("x", PLAIN, [key])
    stage.trace(channel="keeps")
    group = stage.hub.join(stage.connections[0], key)
    flow = group.flow = pump.Flow()
    flow.wake = asyncio.get_running_loop().call_soon(stage.hub._pump._wake, group, flow)
    return key


def test_several_messages_in_one_write() -> None:
    """What a busy channel has gathered and writes at once is told message by message, as one write."""

    async def scenario() -> None:
        stage = Stage()
        key = gathering(stage)
        first, second = stage.deliver([key]), stage.deliver([key])
        await turns()
        written = [event for event in stage.steps("written") if event.connection == stage.connections[3].id]
        assert [event.push for event in written] == [round(each.taken_seconds * 1e6) for each in (first, second)]
        assert all("in a write of 2 messages" in event.detail for event in written)

    run(scenario())


def test_who_joins_while_a_channel_gathers_is_told_what_it_gets() -> None:
    """Of what is written together, a newcomer's part is named by the pushes that it is of."""

    async def scenario() -> None:
        stage = Stage()
        key = gathering(stage)
        stage.deliver([key])
        newcomer = stage.open("new", PLAIN, [key])
        stage.deliver([key])
        stage.deliver([key])
        await turns()
        written = [event.push for event in stage.steps("written") if event.connection == newcomer.id]
        assert written == [2_000_000, 3_000_000]

    run(scenario())


def test_the_message_that_a_full_queue_does_not_take() -> None:
    """The push that did not fit is told as dropped, at once; those that waited are told in one number at the end."""

    async def scenario() -> None:
        stage = Stage(send_queue_messages=2)
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        stage.wires[0].room = 5
        for _ in range(4):
            stage.deliver([USER_EVENT])
        await turns()
        assert fates_of(stage, connection) == {1: ("written",), 2: ("queued",), 3: ("queued",), 4: ("dropped",)}
        assert [event.detail for event in stage.steps("dropped", "closed")] == [
            "16 bytes, not taken: the send queue is full", "1013 too slow, by the server", "2 messages in all: slow",
        ]  # fmt: skip

    run(scenario())


def test_what_is_sent_during_a_delivery_is_not_taken_for_it() -> None:
    """A message that an application sends while a push is delivered is not told as the push."""

    async def scenario() -> None:
        stage = Stage()
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        publication = stage.deliver([USER_EVENT])
        stage.hub.deliver(publication, lambda _: connection.send("own"))
        await turns()
        assert [event.push for event in stage.steps("written")] == [1_000_000, 1_000_000, 0]

    run(scenario())


def test_connections_tell_what_happens_to_them() -> None:
    """A connection that was there is told at the start; of one that comes during the trace its opening, each event and
    channel, when it falls behind and catches up, and its end with code, reason and by whom.
    """

    async def scenario() -> None:
        stage = Stage()
        stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        await turns()
        assert [event.step for event in stage.told] == ["tracing", "opened"] and "for e" in stage.told[1].detail
        late = stage.open("u", PLAIN, [EVERYBODY, USER_EVENT, channel_key("keeps")])
        wire = stage.wires[-1]
        wire.room = 5
        stage.deliver([USER_EVENT])
        stage.deliver([USER_EVENT])
        wire.read(FOREVER)
        late.close(1000, "bye")
        late.connection_lost(None)
        await turns()
        of_late = [(event.step, event.what) for event in stage.told if event.connection == late.id]
        assert of_late == [
            ("opened", ""), ("registered", "e"), ("subscribed", "keeps"), ("slow", ""), ("written", "e"),
            ("queued", "e"), ("written", "e"), ("caught up", ""), ("closed", ""),
        ]  # fmt: skip
        assert stage.steps("closed")[0].detail == "1000 bye, by the server"
        assert "in the send queue" in stage.steps("written")[-1].detail
        assert late not in stage.tracing._records

    run(scenario())


def test_a_message_of_no_push_is_told_without_one() -> None:
    """What an application sends to a traced user's connection is told as a write, of no push."""

    async def scenario() -> None:
        stage = Stage()
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        connection.send("hello")
        await turns()
        written = stage.steps("written")
        assert [(event.push, event.after_ms, event.what) for event in written] == [(0, 0, "")]

    run(scenario())


def test_who_leaves_a_channel() -> None:
    """Who unsubscribes is told to the traces of user and channel, and makes room among those that a channel's trace
    follows; one that is in no such channel, or ends, is not told as leaving.
    """

    async def scenario() -> None:
        stage = Stage()
        key = channel_key("keeps")
        first = stage.open("u", PLAIN, [USER_EVENT, key])
        others = [stage.open("x", PLAIN, [key]) for _ in range(traces.CONNECTIONS_MAX)]
        stage.trace(channel="keeps")
        stage.hub.leave_one(first, key)
        stage.hub.leave_one(first, key)
        others[0].connection_lost(None)
        newcomer = stage.open("new", PLAIN, [key])
        stage.trace(user="u")
        stage.hub.join(first, channel_key("drops"))
        stage.hub.leave_one(first, channel_key("drops"))
        await turns()
        left = [(event.what, event.connection) for event in stage.steps("unsubscribed")]
        assert left == [("keeps", first.id), ("drops", first.id)]
        assert [event.connection for event in stage.steps("subscribed")] == [newcomer.id, first.id]

    run(scenario())


def test_refusals() -> None:
    """A refusal is told to its user's trace, also where the user is only what a token claims, and one that names
    nobody to all users' traces; another user's is not told. A channel's trace hears of subscriptions alone.
    """

    async def scenario() -> None:
        stage = Stage()
        notebook = stage.environment.notebook
        stage.tracing.set([Target(id="t", user="u", seconds=60), Target(id="c", channel="keeps", seconds=60)])
        claimed = TokenRejected("token has expired")
        claimed.user, claimed.is_claimed = "u", True
        notebook.refused(claimed, 401, "/ws", "1.2.3.4:5")
        notebook.refused(RequestError(403, "forbidden", "this Origin is not in [server] origins"), 403, "/ws", "peer")
        notebook.refused(TokenRejected("not yours"), 401, "/ws", "peer", "other")
        await turns()
        assert {trace for trace, event in stage.bus.seen if event.step != "tracing"} == {"t"}
        assert [event.detail for event in stage.steps("refused")] == [
            "/ws from 1.2.3.4:5: 401 token has expired; the user is what its token claims",
            "/ws from peer: 403 this Origin is not in [server] origins; of an unknown user",
        ]
        assert len(notebook.notes) == 3
        connection = stage.open("other", CLIENT, [])
        notebook.turned_down(connection, 0, ValueError("token rejected"), "keeps")
        notebook.turned_down(connection, 103, ValueError("permission denied"), "keeps")
        await turns()
        refused = [(trace, event.connection, event.what) for trace, event in stage.bus.seen if event.connection]
        assert refused == [("c", connection.id, "keeps")]

    run(scenario())


def test_a_connection_of_two_traces_tells_each_what_is_its_own() -> None:
    """A user's trace has all writes of its connections, a channel's those of that channel alone, of all its members."""

    async def scenario() -> None:
        stage = Stage()
        key = channel_key("keeps")
        stage.open("u", PLAIN, [USER_EVENT, key])
        stage.open("other", PLAIN, [key])
        stage.tracing.set([Target(id="t", user="u", seconds=60), Target(id="c", channel="keeps", seconds=60)])
        stage.deliver([key])
        stage.deliver([USER_EVENT])
        await turns()
        written = sorted((trace, event.what) for trace, event in stage.bus.seen if event.step == "written")
        assert written == [("c", "keeps"), ("c", "keeps"), ("t", "e"), ("t", "keeps")]

    run(scenario())


def test_a_trace_that_ends_leaves_the_others_messages_that_wait() -> None:
    """When one of two traces of a connection ends, the other still tells when a message that waited is written."""

    async def scenario() -> None:
        stage = Stage()
        stage.open("u", PLAIN, [USER_EVENT, channel_key("keeps")])
        both = [Target(id="t", user="u", seconds=60), Target(id="c", channel="keeps", seconds=60)]
        stage.tracing.set(both)
        stage.wires[0].room = 5
        stage.deliver([USER_EVENT])
        stage.deliver([USER_EVENT])
        stage.tracing.set(both[:1])
        stage.wires[0].read(FOREVER)
        await turns()
        assert [event.push for event in stage.steps("written")] == [1_000_000, 2_000_000]
        assert len(stage.steps("opened")) == 2  # of each trace, once

    run(scenario())


# Bounds


def test_events_are_bounded_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more events than a second may have, the rest is counted, and told once for all of them; deliveries go on."""
    monkeypatch.setattr(traces, "LEFT_OUT_SECONDS", 0.01)

    async def scenario() -> None:
        stage = Stage(per_second=10)
        stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        for _ in range(100):
            stage.deliver([USER_EVENT])
        async with asyncio.timeout(10):
            while not stage.bus.left_out:
                await asyncio.sleep(0.005)
        assert stage.counts == [1] * 100
        assert stage.bus.left_out + len(stage.told) - len(stage.steps("left out")) == 202
        assert 10 <= len(stage.told) < 30
        assert stage.steps("left out")[0].detail.startswith(f"{stage.bus.left_out:,} events")

    run(scenario())


def test_a_large_channel_is_traced_in_part() -> None:
    """Of a channel with many members only so many connections are traced; all get the publication."""

    async def scenario() -> None:
        stage = Stage()
        key = channel_key("keeps")
        for _ in range(traces.CONNECTIONS_MAX + 20):
            stage.open("x", PLAIN, [key])
        stage.trace(channel="keeps")
        stage.open("x", PLAIN, [key])
        stage.deliver([key])
        await turns()
        assert stage.counts == [traces.CONNECTIONS_MAX + 21]
        assert len(stage.steps("written")) == traces.CONNECTIONS_MAX
        assert stage.steps("tracing")[0].detail == "100 connections here, at most 100 are traced"
        assert stage.steps("arrived")[0].detail == "121 connections here, 100 of them traced"
        stage.tracing.set(())
        stage.check_clean()

    run(scenario())


def test_a_trace_that_nobody_ends_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose broker has forgotten a trace gives it up when its time is over."""
    monkeypatch.setattr(traces, "GRACE_SECONDS", 0.01)

    async def scenario() -> None:
        stage = Stage()
        stage.open("u", PLAIN, [USER_EVENT])
        stage.tracing.set([Target(id="t", user="u", seconds=0)])
        assert stage.tracing._records
        async with asyncio.timeout(10):
            while stage.tracing._records:
                await asyncio.sleep(0.005)
        stage.check_clean()

    run(scenario())


# Nothing stays


def test_nobody_traced_nothing_replaced() -> None:
    """Before a trace and after its end every function and class is the original one; during it they are not."""

    async def scenario() -> None:
        stage = Stage()
        for form in (PLAIN, CLIENT, EVENTS):
            stage.open("u", form, [USER_EVENT])
            stage.wires[-1].room = 5
        stage.deliver([USER_EVENT])
        stage.check_clean()
        before = [(type(connection), type(connection._queue)) for connection in stage.connections]
        stage.trace(user="u")
        assert pump.Batch is not Batch and {"deliver", "join", "leave_one"} <= vars(stage.hub).keys()
        assert not {(type(each), type(each._queue)) for each in stage.connections} & set(before)
        stage.tracing.set(())
        assert [(type(connection), type(connection._queue)) for connection in stage.connections] == before
        stage.check_clean()
        stage.tracing.set(())
        stage.check_clean()

    run(scenario())


def test_what_fails_while_it_is_told_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When telling fails, pushes are published, delivered, counted and answered as ever, and the trace ends."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("telling failed")

    async def scenario() -> None:
        stage = Stage()
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        monkeypatch.setattr(traces, "name_of", fail)
        monkeypatch.setattr(stage.tracing, "_traces_of", fail)
        answers: list[Any] = []
        stage.bus.publish(body_of(USER_EVENT), lambda *answer: answers.append(answer))
        stage.bus.asked[0](Status.DONE, 1, 0, NO_POSITION)
        stage.wires[0].room = 25
        for _ in range(3):
            stage.deliver([USER_EVENT])
        stage.wires[0].read(FOREVER)
        late = stage.open("u", PLAIN, [USER_EVENT])
        late.close(1000, "bye")
        assert len(answers) == 1 and stage.counts == [1, 1, 1]
        assert connection.is_open and stage.wires[0].sent.count(b"xxxxxxxxxx") == 3
        await turns()
        stage.check_clean()

    run(scenario())
    assert "tracing failed" in caplog.text


def test_the_last_events_of_a_worker_that_ends() -> None:
    """What has not been told yet is told at the end of a drain."""

    async def scenario() -> None:
        stage = Stage()
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        connection.close(CloseCode.SERVICE_RESTART, "server is restarting")
        stage.tracing.end()
        assert [event.step for event in stage.told] == ["tracing", "opened", "closed"]
        stage.check_clean()
        await turns()
        assert len(stage.told) == 3

    run(scenario())


def test_reading_goes_on() -> None:
    """A traced connection takes its client's messages, pings and close frame."""

    async def scenario() -> None:
        stage = Stage()
        connection = stage.open("u", PLAIN, [USER_EVENT])
        stage.trace(user="u")
        connection._feed(memoryview(build(TEXT, b"hi") + build(9, b"ping") + build(8, b"\x03\xe8")))
        assert stage.wires[0].sent == b"\x8a\x04ping\x88\x02\x03\xe8"
        await turns()
        assert stage.steps("closed")[0].detail == "1000, by the client"

    run(scenario())
