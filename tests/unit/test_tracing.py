"""fastpush.worker.tracing: clients notice nothing of it, what it tells is what they got, and nothing of it stays.

Connections on transports that a test lets take so many bytes; the pump's clock stands still, so a run can be repeated.
"""

import asyncio
import itertools
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import pytest
import uvloop

from fastpush.applications import Application
from fastpush.bus.client import BusUnavailable
from fastpush.config import Admin, Compression, Config, Fanout, Limits
from fastpush.errors import CloseCode, RequestError, TokenRejected
from fastpush.fanout import CLIENT, ENVELOPE, EVENTS, LINES, PLAIN, Hub, batch, pump
from fastpush.fanout.batch import Batch
from fastpush.metrics import Counters
from fastpush.protocol.bus import NO_POSITION, Kind, Position, Publication, Status, encode_publication
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

    by_descriptor: dict[int, "Direct"] = {}

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
        assert not {"deliver", "join"} & vars(self.hub).keys()
        assert "publish" not in vars(self.bus)
        assert not {"opened", "closed", "dropped", "_add"} & vars(self.environment.notebook).keys()
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
    "lost": 0.2, "open": 0.5,
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
    connection = stage.connections[which % len(stage.connections)]
    wire = stage.wires[which % len(stage.connections)]
    match what:
        case "user":
            stage.deliver([USER_EVENT if which % 2 else OTHER_EVENT], size)
        case "everybody":
            stage.deliver([EVERYBODY], size)
        case "several":
            stage.deliver([USER_EVENT, OTHER_EVENT], size)
        case "channel":
            stage.deliver([channel_key(CHANNELS[which % 3])], size, Kind.DATA)
        case "read":
            wire.read(size)
        case "send" if connection.is_open:
            connection.send_frame(text_frame(b"own " + b"y" * size))
        case "turn":
            await turns(which)
        case "close":
            connection.close(1000, "bye")
        case "close slow":
            connection.close(CloseCode.TRY_AGAIN_LATER, "too slow")
        case "client closes" if connection.is_open and not isinstance(connection, EventStream):
            connection._feed(memoryview(build(8, b"\x03\xe8")))
        case "lost" if connection._transport is not None:
            connection.connection_lost(None)
        case "open":
            stage.open("u", PLAIN, [USER_EVENT, channel_key("drops"), EVERYBODY])
        case _ if what.startswith("trace") and is_traced:
            targets = {
                "trace user": [Target(id="t", user="u", seconds=60)],
                "trace channel": [Target(id="c", channel=CHANNELS[which % 3], seconds=60)],
                "trace both": [Target(id="t", user="u", seconds=60), Target(id="d", channel="drops", seconds=60)],
            }.get(what, [])
            stage.tracing.set(targets)


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
            events = [event for event in stage.told if event.connection == connection.id and event.push]
            fates: dict[int, list[str]] = {}
            for event in events:
                fates.setdefault(event.push // 1_000_000, []).append(event.step)
            received = {int(number) for number in re.findall(rb'"(\d+) x*\\?"', wire.sent)}
            assert {number for number, fate in fates.items() if "written" in fate} == received
            assert received
            whole = {("written",), ("queued", "written"), ("queued", "dropped"), ("dropped",)}
            # What the send queue of one that was closed as too slow held is told in one number.
            assert {tuple(fate) for fate in fates.values()} <= whole | ({("queued",)} if not connection.is_open else set())
        assert stage.steps("queued") and stage.steps("slow") and stage.steps("dropped")

    run(scenario())
