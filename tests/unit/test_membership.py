"""fastpush.worker.membership and application_server: what applications ask for, with a broker that the test plays."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from fastpush.applications import Application, ConnectionClosed, Online, Options, PublishFailed
from fastpush.bus.client import BusUnavailable, OnResult
from fastpush.config import Admin, Config, Limits
from fastpush.fanout import PLAIN
from fastpush.http.auth.complaints import EVERY_SECONDS, Complaints
from fastpush.metrics import Counters
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Entry, Kept, Kind, Notice, Position, Status
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import channel_key, claim_name, user_key
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.membership import Memberships
from fastpush.worker.mount import Mount
from fastpush.worker.notebook import Notebook
from tests.unit.test_fanout import make_hub, publication

KEY, NAME = channel_key("room"), claim_name("/app", "key")


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see the package's log lines, whatever another test set up."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)


class FakeBus:
    """What a BusClient is asked; the test answers."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.questions: list[tuple[int, bytes, Callable[[bytes], None]]] = []
        self.publications: list[tuple[bytes, OnResult]] = []
        self.failure: Exception | None = None

    def ask(self, kind: int, body: bytes, on_answer: Callable[[bytes], None]) -> None:
        if self.failure is not None:
            raise self.failure
        self.questions.append((kind, body, on_answer))

    def answer(self, *entries: bytes | Notice) -> bus.Join:
        """Answer the oldest question, a JOIN of one channel, with messages and notices; return what was asked."""
        (join,) = self.answer_all(list(entries))
        return join

    def answer_all(self, *kept: list[bytes | Notice], position: int = 0) -> list[bus.Join]:
        """Answer one of the questions, a JOIN, with what each channel has kept; return what was asked."""
        kind, body, on_answer = self.questions.pop(position)
        assert kind == bus.JOIN
        on_answer(bus.pack([Kept(len(entries), 1, recovered=False, entries=_kept(entries)) for entries in kept]))
        return bus.unpack_joins(body)

    def depart(self, join: bytes) -> None:
        self.told.append(("depart", bus.unpack_join(join).key, bus.unpack_join(join).user))

    def claim(self, connection: int, number: int, name: bytes) -> None:
        self.told.append(("claim", connection, number, name))

    def unclaim(self, connection: int, name: bytes) -> None:
        self.told.append(("unclaim", connection, name))

    def publish(self, body: bytes, on_result: OnResult) -> None:
        if self.failure is not None:
            raise self.failure
        self.publications.append((body, on_result))

    order = publish


def _kept(entries: list[bytes | Notice]) -> list[Entry]:
    return [
        Entry(offset, Kind.MESSAGE, entry) if isinstance(entry, bytes) else Entry(offset, Kind.NOTICE, bus.pack(entry))
        for offset, entry in enumerate(entries, 1)
    ]


class Client:
    """A connection that takes all that it is sent."""

    def __init__(self, environment: Any, serial: int, user: str = "jack") -> None:
        self.environment = environment
        self.serial, self.number, self.id, self.user = serial, bus.connection_number(1, serial), str(serial), user
        self.groups: tuple[Any, ...] = ()
        self.form, self.writable, self.descriptor = PLAIN, None, -1
        self.is_open = True
        self.standing: Any = None
        self.mount: Any = SimpleNamespace(limits=Limits())
        self.frames: list[bytes] = []
        self.closed: list[tuple[int, str]] = []
        environment.connections[serial] = self

    def send_frame(self, frame: bytes) -> bool:
        self.frames.append(frame)
        return True

    def send_joined(self, joined: bytes, frames: Any) -> int:
        self.frames += frames
        return len(frames)

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))
        self.is_open = False
        self.environment.hub.leave(self)
        if self.standing is not None:
            self.standing.give_up(self)
        del self.environment.connections[self.serial]


class Wording(Application):
    def on_presence(self, channel: str, user: str, is_online: bool, seconds: float) -> str | None:  # noqa: FBT001
        if user == "bad":
            raise ValueError("no word for it")
        return None if user == "nobody" else f"{user} {is_online} {channel}"


class Worker:
    """The parts of a worker that applications reach."""

    def __init__(self) -> None:
        self.bus = FakeBus()
        self.keys: list[bytes] = []
        self.hub = make_hub(lambda key, confirmed: (self.keys.append(key), confirmed())[0], self.keys.remove)
        self.counters = Counters()
        self.tasks: list[Any] = []
        self.environment: Any = SimpleNamespace(
            number=1,
            hub=self.hub,
            connections={},
            counters=self.counters,
            spawn=self.tasks.append,
            opening_ns=0,
            notebook=Notebook(1, Admin(), self.counters),
        )
        self.memberships = Memberships(self.environment, cast(Any, self.bus), lambda: {"/app": self.mount})
        self.server = ApplicationServer("/app", self.environment, cast(Any, self.bus), self.memberships)
        self.mount = Mount("/app", Wording(self.server, Options()), Config())

    def client(self, serial: int = 7, user: str = "jack") -> Any:
        return Client(self.environment, serial, user)


def on_worker(scenario: Callable[[Worker], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of a coroutine function."""

    async def main() -> None:
        await scenario(Worker())

    def test() -> None:
        asyncio.run(main())

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


def waiting(awaitable: Awaitable[Any]) -> "asyncio.Future[Any]":
    async def wait() -> Any:
        return await awaitable

    return asyncio.ensure_future(wait())


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# -- joining -------------------------------------------------------------------------


@on_worker
async def test_replay_comes_before_everything_else(worker: Worker) -> None:
    """The broker knows the key before it is asked; nothing of the channel comes until its answer does, then what was
    kept, notices worded by the application, then what is published.
    """
    client = worker.client()
    joined = waiting(worker.server.join(client, "room", replay=True, keep=9))
    assert worker.keys == [KEY]
    worker.hub.deliver(publication(KEY, message="early"), lambda _: None)
    await turns()
    assert not joined.done() and client.frames == []
    notices = [Notice(user, is_online=True, seconds=1.0) for user in ("jill", "nobody", "bad")]
    asked = worker.bus.answer(text_frame(b"kept"), *notices)
    await joined
    worker.hub.deliver(publication(KEY, message="late"), lambda _: None)
    assert client.frames == [text_frame(b"kept"), text_frame(b"jill True room"), text_frame(b"late")]
    assert asked == bus.Join(KEY, client.number, "/app", 500, 524_288, "", 2000, 9)
    assert worker.counters.handler_errors == 1, "the notice that could not be worded"
    client.close(1000, "")
    assert worker.keys == [] and worker.bus.told == []


@on_worker
async def test_presence_is_told_and_taken_back(worker: Worker) -> None:
    """Joining with presence tells the broker of the user; leaving the channel, or the end, tells that it has left,
    once; a new broker is told who is present.
    """
    client = worker.client()
    for room in ("room", "other"):
        worker.server.join(client, room, presence=True, grace_seconds=0.25)
        worker.bus.answer()
    assert [bus.unpack_join(join) for join in worker.memberships.joins()] == [
        bus.Join(channel_key(room), client.number, "/app", 0, 524_288, "jack", 250, 0, is_present=True)
        for room in ("room", "other")
    ]
    worker.server.leave(client, "room")
    worker.server.leave(client, "room")
    assert worker.bus.told == [("depart", KEY, "jack")]
    client.close(1000, "")
    assert worker.bus.told[1:] == [("depart", channel_key("other"), "jack")]
    assert list(worker.memberships.joins()) == [] and worker.keys == []


@on_worker
async def test_joining_again_changes_nothing(worker: Worker) -> None:
    """While it is under way, and afterwards: the broker is asked once, so one leaving is enough."""
    client = worker.client()
    first = waiting(worker.server.join(client, "room", replay=True, presence=True))
    second = waiting(worker.server.join(client, "room", replay=True, presence=True))
    await turns()
    assert len(worker.bus.questions) == 1
    worker.bus.answer(text_frame(b"kept"))
    await asyncio.gather(first, second)
    await worker.server.join(client, "room", replay=True, presence=True)
    assert worker.bus.questions == [] and client.frames == [text_frame(b"kept")]
    client.close(1000, "")
    assert worker.bus.told == [("depart", KEY, "jack")]


@on_worker
async def test_leaving_while_joining_is_leaving(worker: Worker) -> None:
    """Who leaves before the broker has answered is not in the channel afterwards; who then joins again is, once, and
    the end of the first joining does not take from it that it is present.
    """
    client = worker.client()
    first = waiting(worker.server.join(client, "room", replay=True, presence=True))
    worker.server.leave(client, "room")
    worker.bus.answer(text_frame(b"kept"))
    await first
    assert (client.frames, client.groups, worker.keys) == ([], (), [])
    assert worker.bus.told == [("depart", KEY, "jack")]
    worker.server.join(client, "room", replay=True, presence=True)
    worker.server.leave(client, "room")
    last = waiting(worker.server.join(client, "room", replay=True, presence=True))
    worker.bus.answer(text_frame(b"too early"))
    worker.bus.answer(text_frame(b"kept"))
    await last
    assert client.frames == [text_frame(b"kept")] and len(client.groups) == 1
    assert len(list(worker.memberships.joins())) == 1 and worker.bus.told == [("depart", KEY, "jack")]
    client.close(1000, "")
    assert worker.bus.told[1:] == [("depart", KEY, "jack")]


@on_worker
async def test_a_connection_that_ends_while_it_joins(worker: Worker) -> None:
    """It has left by the time of the answer: the broker is told so then, not before it knows of it; nothing is held."""
    client = worker.client()
    joined = waiting(worker.server.join(client, "room", replay=True, presence=True))
    client.close(1006, "")
    assert worker.bus.told == [] and worker.keys == [KEY]
    worker.bus.answer(text_frame(b"kept"))
    await joined
    assert (worker.bus.told, client.frames, worker.keys) == ([("depart", KEY, "jack")], [], [])


@on_worker
async def test_a_waiter_that_is_cancelled_costs_nobody_the_channel(worker: Worker) -> None:
    """A handler that stops waiting has joined nevertheless."""
    client = worker.client()
    joined = waiting(worker.server.join(client, "room", presence=True))
    await turns()
    joined.cancel()
    await turns()
    worker.bus.answer()
    assert len(client.groups) == 1
    client.close(1000, "")
    assert worker.bus.told == [("depart", KEY, "jack")]


@on_worker
async def test_joins_that_cannot_be(worker: Worker) -> None:
    """Wrong arguments, a closed connection and a full bus raise at once, and leave nothing behind."""
    client, nobody = worker.client(), worker.client(8, user="")
    for channel in ("", "x" * 256, "ä" * 128):
        with pytest.raises(ValueError, match="255 bytes"):
            worker.server.join(client, channel)
    with pytest.raises(ValueError, match="user"):
        worker.server.join(nobody, "room", presence=True)
    for grace_seconds in (-1, 3601):
        with pytest.raises(ValueError, match="grace_seconds"):
            worker.server.join(client, "room", presence=True, grace_seconds=grace_seconds)
    for keep in (-1, 65536):
        with pytest.raises(ValueError, match="keep"):
            worker.server.join(client, "room", keep=keep)
    worker.bus.failure = BusUnavailable("the bus to the broker is full")
    for _ in range(2):
        with pytest.raises(PublishFailed, match="full"):
            worker.server.join(client, "room", replay=True)
    client.close(1000, "")
    with pytest.raises(ConnectionClosed):
        worker.server.join(client, "room")
    assert (worker.keys, worker.bus.told) == ([], [])


# -- claims --------------------------------------------------------------------------


@on_worker
async def test_claims(worker: Worker) -> None:
    """Asked for once, awaited until the broker answers, told to new brokers by number, given back at the end."""
    client = worker.client()
    first, second = (waiting(worker.server.claim(client, "key")) for _ in range(2))
    await turns()
    ((_, _, number, _),) = worker.bus.told
    assert worker.bus.told == [("claim", client.number, number, NAME)] and not first.done()
    assert list(worker.memberships.claims()) == [(client.number, number, NAME)]
    for _ in range(2):  # each new broker says so
        worker.memberships.on_claimed(client.number, NAME)
    await asyncio.gather(first, second)
    await worker.server.claim(client, "key")
    assert list(worker.memberships.claims()) == [(client.number, number, NAME)]
    assert worker.memberships.holders(NAME) == [client]
    client.close(1000, "")
    assert worker.bus.told[1:] == [("unclaim", client.number, NAME)] and list(worker.memberships.claims()) == []
    with pytest.raises(ConnectionClosed):
        worker.server.claim(client, "key")


@on_worker
async def test_who_is_replaced_is_closed(worker: Worker) -> None:
    """With 4500; who waits for its claim is not left waiting; what comes for one that has ended changes nothing."""
    client = worker.client()
    claimed = waiting(worker.server.claim(client, "key"))
    await turns()
    worker.memberships.on_replaced(client.number, NAME)
    await claimed
    assert client.closed == [(4500, "replaced by a newer connection")]
    worker.memberships.on_replaced(client.number, NAME)
    worker.memberships.on_claimed(client.number, NAME)
    assert len(client.closed) == 1


@on_worker
async def test_a_claim_while_opening_is_as_old_as_the_connection(worker: Worker) -> None:
    """Its number is the time before the client was told that it is connected, so who logs in later is newer."""
    early, late = worker.client(7), worker.client(8)
    before = monotonic_ns() - 1_000_000
    waiting(worker.server.claim(late, "key"))
    worker.environment.opening_ns = before
    waiting(worker.server.claim(early, "key"))
    worker.environment.opening_ns = 0
    await turns()
    numbers = {connection: number for _, connection, number, _ in worker.bus.told}
    assert numbers[early.number] < before + 1000 < numbers[late.number]


# -- notices -------------------------------------------------------------------------


@on_worker
async def test_notices_reach_members_as_the_application_words_them(worker: Worker) -> None:
    """Each is counted once: also one without words, one that cannot be worded, and one of no application here."""
    client = worker.client()
    worker.hub.join(client, KEY)
    counts: list[int] = []
    for path, user in (("/app", "jill"), ("/app", "nobody"), ("/app", "bad"), ("/gone", "jill")):
        frame = bus.pack(Notice(user, is_online=False, seconds=1.0))
        worker.memberships.on_notice(bus.Publication([KEY], path.encode(), frame, 0.0), counts.append)
    assert counts == [1, 0, 0, 0] and client.frames == [text_frame(b"jill False room")]


# -- publishing ------------------------------------------------------------------------


@on_worker
async def test_what_is_published(worker: Worker) -> None:
    """publish, broadcast and push: keys, whom they spare, how many are kept, and the frame."""
    client = worker.client()
    worker.server.publish("room", "text", exclude=client, keep=3)
    worker.server.broadcast(b"bytes", keep=1)
    worker.server.push(["jack", "jill", "jack"], "to users")
    worker.server.push("jack", "as POST /push does", event="news")
    bodies = [body for body, _ in worker.bus.publications]
    assert [(*bus.decode_route(body), bus.decode_publication(body).spared) for body in bodies] == [
        ([KEY], 3, client.number),
        ([channel_key("/app")], 1, 0),
        ([user_key("jack", "/app"), user_key("jill", "/app")], 0, 0),
        ([user_key("jack", "news")], 0, 0),
    ]
    assert [bus.decode_publication(body).frame for body in bodies[:2]] == [text_frame(b"text"), b"\x82\x05bytes"]
    with pytest.raises(ValueError, match="text"):
        worker.server.push("jack", b"bytes", event="news")
    with pytest.raises(ValueError, match="users"):
        worker.server.push([], "to nobody")
    with pytest.raises(ValueError, match="keep"):
        worker.server.broadcast("x", keep=-1)
    assert len(worker.bus.publications) == 4


@pytest.mark.parametrize(
    ("status", "says", "may_have_arrived"),
    [
        (Status.NOT_READY, "replaced", False),
        (Status.OVERLOADED, "overloaded", False),
        (Status.UNKNOWN, "lost", True),
    ],
)
def test_publications_that_fail(status: Status, says: str, *, may_have_arrived: bool) -> None:
    """Whoever awaits one is told why, and whether somebody may have it, before or after the answer has come."""

    async def scenario() -> None:
        worker = Worker()
        for is_early in (True, False):
            outgoing = worker.server.broadcast("x")
            awaited = waiting(outgoing) if is_early else None
            await turns() if is_early else None
            worker.bus.publications.pop()[1](status, 0, 0, NO_POSITION)
            with pytest.raises(PublishFailed, match=says) as caught:
                await (awaited or outgoing)
            assert caught.value.may_have_arrived == may_have_arrived

    asyncio.run(scenario())


@on_worker
async def test_how_many_took_it(worker: Worker) -> None:
    """Awaited before or after the broker has answered, and again."""
    first, second = worker.server.broadcast("x"), worker.server.close_user("jack", 4000, "enough")
    awaited = waiting(first)
    await turns()
    for (_, on_result), count in zip(worker.bus.publications, (3, 2), strict=True):
        on_result(Status.DONE, count, 0, Position(1, 1))
    assert [await awaited, await first, await second] == [3, 3, 2]
    worker.server.close_key("key")
    assert [orjson.loads(body) for body, _ in worker.bus.publications[1:]] == [
        ["close_user", "jack", "/app", 4000, "enough"], ["close_key", "key", "/app", 1008, ""]
    ]  # fmt: skip


def test_failures_that_nobody_awaits_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A line in EVERY_SECONDS, with how many were left out since; one that is awaited is its handler's affair."""
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        worker = Worker()
        worker.server._complaints = Complaints(logging.getLogger("fastpush.application"), lambda: now)
        worker.server.broadcast("x")
        worker.bus.publications.pop()[1](Status.OVERLOADED, 0, 0, NO_POSITION)
        await turns()
        worker.bus.failure = BusUnavailable("the broker is being restarted")
        for _ in range(3):
            worker.server.broadcast("y")
        with pytest.raises(PublishFailed, match="restarted"):
            await worker.server.broadcast("z")
        await turns()
        now += EVERY_SECONDS
        worker.server.broadcast("y")
        await turns()

    asyncio.run(scenario())
    lines = [vars(record)["fields"] for record in caplog.records if record.msg == "not published"]
    assert lines == [
        {"reason": "a worker is overloaded", "path": "/app"},
        {"reason": "the broker is being restarted", "path": "/app", "left_out": 3},
    ]


# -- questions ---------------------------------------------------------------------------


@on_worker
async def test_who_is_online_and_what_was_kept(worker: Worker) -> None:
    """Asked of the broker: of the application's own channel unless told otherwise; notices are no messages."""
    online, users = waiting(worker.server.online()), waiting(worker.server.online_users("room", 5))
    history = waiting(worker.server.history("room"))
    await turns()
    (kind, body, on_answer), (_, users_body, on_users), (history_kind, asked, on_history) = worker.bus.questions
    assert (kind, bus.unpack_online(body)) == (bus.ONLINE, bus.Online([channel_key("/app")], 0))
    assert bus.unpack_online(users_body) == bus.Online([KEY], 5)
    assert (history_kind, bus.unpack_history(asked)) == (bus.HISTORY, bus.History(KEY))
    on_answer(bus.pack(bus.OnlineAnswer([(2, 3)], [])))
    on_users(bus.pack(bus.OnlineAnswer([(2, 3)], ["jack", "jill"])))
    kept = _kept([text_frame(b"text"), Notice("jack", is_online=True, seconds=1.0), b"\x82\x01\xff"])
    on_history(bus.pack(Kept(3, 1, recovered=True, entries=kept)))
    assert await online == Online(2, 3)
    assert await users == ["jack", "jill"] and await history == ["text", b"\xff"]
    worker.bus.failure = BusUnavailable("full")
    for ask in (worker.server.online, worker.server.online_users):
        with pytest.raises(PublishFailed, match="full"):
            await ask()


# -- time --------------------------------------------------------------------------------


def test_timers(caplog: pytest.LogCaptureFixture) -> None:
    """Functions and coroutine functions are called later, unless cancelled; what they raise is counted and logged."""

    async def scenario() -> None:
        worker, called = Worker(), list[str]()
        worker.environment.spawn = lambda work: asyncio.get_running_loop().create_task(work)

        async def later(name: str) -> None:
            called.append(name)
            await asyncio.sleep(0)
            raise OSError("later")

        def fail() -> None:
            raise ValueError("at once")

        worker.server.call_later(0, called.append, "function")
        worker.server.call_later(0, later, "coroutine")
        worker.server.call_later(0, fail)
        worker.server.call_later(0, called.append, "never").cancel()
        async with asyncio.timeout(5):
            while worker.counters.handler_errors < 2:
                await asyncio.sleep(0.001)
        assert called == ["function", "coroutine"]

    asyncio.run(scenario())
    assert [str(cast(Any, record.exc_info)[1]) for record in caplog.records] == ["at once", "later"]
