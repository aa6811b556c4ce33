"""fastpush.worker.membership: joins whose answers race with leaves, with other joins and with the end of a connection,
and what the broker says of channels and links.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from fastpush.bus.client import BusUnavailable
from fastpush.errors import CloseCode, ConnectionClosed
from fastpush.protocol import bus
from fastpush.protocol.bus import Join, Kept, Kind
from fastpush.protocol.client import join_push, leave_push
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import channel_key
from fastpush.worker.membership import Entered
from tests.unit.test_fanout import publication
from tests.unit.test_membership import Client, Worker, on_worker

KEYS = [channel_key(f"chat:{number}") for number in range(3)]
ONE, TWO, THREE = KEYS


def joining(client: Client, *keys: bytes, is_present: bool = True) -> list[Join]:
    return [Join(key, client.number, "", user="jack", is_present=is_present) for key in keys]


def groups(client: Client) -> set[bytes]:
    return {group.key for group in client.groups}


def present(worker: Worker) -> list[bytes]:
    """What a new broker would be told."""
    return [bus.unpack_join(join).key for join in worker.memberships.joins()]


class Taken:
    """Keeps what each joining was given, by channel."""

    def __init__(self) -> None:
        self.calls: list[list[bytes]] = []

    def __call__(self, entered: Entered) -> None:
        self.calls.append([join.key for join, _ in entered])


# -- one after the other -------------------------------------------------------------------


@on_worker
async def test_several_channels_at_one_place(worker: Worker) -> None:
    """Announced before they are asked for, asked for in one message, taken at once with what each has kept, and
    entered before anything that comes behind the answer.
    """
    client, entered = worker.client(), list[Any]()

    def take(found: Entered) -> None:
        entered.extend((join.key, [entry.data for entry in kept.entries]) for join, kept in found)
        assert groups(client) == set(), "what it sends is before all that is published"

    joined = worker.memberships.enter(client, joining(client, ONE, TWO), take)
    assert worker.keys == [ONE, TWO] and len(worker.bus.questions) == 1
    worker.hub.deliver(publication(ONE, message="early"), lambda _: None)
    worker.bus.answer_all([b"a", b"b"], [])
    assert entered == [(ONE, [b"a", b"b"]), (TWO, [])] and joined.done()
    worker.hub.deliver(publication(ONE, message="late"), lambda _: None)
    assert client.frames == [text_frame(b"late")] and groups(client) == {ONE, TWO}
    assert present(worker) == [ONE, TWO]


@on_worker
async def test_what_was_left_meanwhile_is_not_entered(worker: Worker) -> None:
    """The others of the same joining are; the broker is told of the left one once it has answered, not before."""
    client, taken = worker.client(), Taken()
    worker.memberships.enter(client, joining(client, ONE, TWO), taken)
    worker.memberships.leave(client, ONE)
    assert worker.bus.told == []
    worker.bus.answer_all([], [])
    assert (taken.calls, groups(client), present(worker)) == ([[TWO]], {TWO}, [TWO])
    assert worker.bus.told == [("depart", ONE, "jack")] and worker.keys == [TWO]


@pytest.mark.parametrize("order", [(0, 0), (1, 0)])
@pytest.mark.parametrize("has_left", [False, True])
def test_a_second_joining_before_the_first_is_answered(order: tuple[int, int], *, has_left: bool) -> None:
    """In whatever order the answers come: the second one counts and is taken, presence is not lost with the end of the
    first, and one leaving is enough.
    """

    async def scenario() -> None:
        worker = Worker()
        client, first, second = worker.client(), Taken(), Taken()
        worker.memberships.enter(client, joining(client, ONE), first)
        if has_left:
            worker.memberships.leave(client, ONE)
        worker.memberships.enter(client, joining(client, ONE), second)
        for position in order:
            worker.bus.answer_all([], position=position)
        assert (first.calls, second.calls) == ([[]], [[ONE]])
        assert worker.bus.told == [] and present(worker) == [ONE] and groups(client) == {ONE}
        worker.memberships.leave(client, ONE)
        assert worker.bus.told == [("depart", ONE, "jack")] and (worker.keys, present(worker)) == ([], [])

    asyncio.run(scenario())


@on_worker
async def test_a_connection_that_ends_meanwhile(worker: Worker) -> None:
    """Nothing is taken, nothing entered; the broker is told of what it was present in, when it knows of it."""
    client, taken = worker.client(), Taken()
    joins = [*joining(client, ONE, TWO), *joining(client, THREE, is_present=False)]
    joined = worker.memberships.enter(client, joins, taken)
    client.close(1006, "")
    worker.bus.answer_all([], [], [])
    assert joined.done() and taken.calls == [[]]
    assert worker.bus.told == [("depart", ONE, "jack"), ("depart", TWO, "jack")] and worker.keys == []


@on_worker
async def test_a_late_answer_to_a_first_joining_of_a_connection_that_has_ended(worker: Worker) -> None:
    """The broker may have put off the first question: when it lets the connection in, that is taken back."""
    client = worker.client()
    worker.memberships.enter(client, joining(client, ONE), Taken())
    worker.memberships.leave(client, ONE)
    worker.memberships.enter(client, joining(client, ONE), Taken())
    worker.bus.answer_all([], position=1)
    client.close(1006, "")
    worker.bus.answer_all([])
    assert worker.bus.told == [("depart", ONE, "jack")] * 2 and worker.keys == []


@pytest.mark.parametrize("ends", ["leaves", "closes"])
def test_what_is_taken_may_end_it(ends: str) -> None:
    """Whoever is told of a channel and leaves it there, or is closed by it, is not in it, and the broker knows."""

    async def scenario() -> None:
        worker = Worker()
        client = worker.client()

        def take(entered: Entered) -> None:
            if ends == "closes":
                client.close(CloseCode.INTERNAL_ERROR, "")
            else:
                worker.memberships.leave(client, ONE)

        worker.memberships.enter(client, joining(client, ONE, TWO), take)
        worker.bus.answer_all([], [])
        left = [ONE, TWO] if ends == "closes" else [ONE]
        assert worker.bus.told == [("depart", key, "jack") for key in left]
        assert groups(client) == set(KEYS[:2]) - set(left) == set(present(worker)) == set(worker.keys)

    asyncio.run(scenario())


@on_worker
async def test_what_fails_to_be_told_is_left(worker: Worker) -> None:
    """Whoever waits has the failure; the connection is in none of the channels, and the broker knows."""
    client = worker.client()

    def take(entered: Entered) -> None:
        raise RuntimeError("a session")

    joined = worker.memberships.enter(client, joining(client, ONE, TWO), take)
    worker.bus.answer_all([], [])
    with pytest.raises(RuntimeError, match="a session"):
        await joined
    assert (groups(client), present(worker), worker.keys) == (set(), [], [])
    assert worker.bus.told == [("depart", ONE, "jack"), ("depart", TWO, "jack")]
    worker.memberships.enter(client, joining(client, ONE), Taken())
    worker.bus.answer_all([])
    assert groups(client) == {ONE}


@on_worker
async def test_who_waited_may_have_been_cancelled(worker: Worker) -> None:
    """The connection joins nevertheless, or, having ended, does not; nothing fails, nothing is held."""
    for ends in (False, True):
        client, taken = worker.client(), Taken()
        joined = worker.memberships.enter(client, joining(client, ONE), taken)
        joined.cancel()
        if ends:
            client.close(1006, "")
        worker.bus.answer_all([])
        assert (taken.calls, groups(client)) == (([[]], set()) if ends else ([[ONE]], {ONE}))
        client.close(1000, "") if not ends else None
        assert worker.keys == []


@on_worker
async def test_joinings_that_cannot_be_leave_nothing(worker: Worker) -> None:
    """A full bus and a closed connection raise at once; what was under way goes on."""
    client, taken = worker.client(), Taken()
    worker.memberships.enter(client, joining(client, ONE), taken)
    worker.bus.failure = BusUnavailable("full")
    with pytest.raises(BusUnavailable):
        worker.memberships.enter(client, joining(client, ONE, TWO), Taken())
    assert worker.keys == [ONE]
    worker.bus.answer_all([])
    assert taken.calls == [[ONE]]
    client.close(1000, "")
    with pytest.raises(ConnectionClosed):
        worker.memberships.enter(client, joining(client, TWO), taken)
    assert worker.keys == [] and present(worker) == []


# -- what the broker says ------------------------------------------------------------------


@on_worker
async def test_who_came_and_left_reaches_members_as_pushes(worker: Worker) -> None:
    """In one frame, a line each; handed on with its kind, which tells other forms that it is nothing for them."""
    seen: list[bus.Publication] = []
    worker.hub.deliver = lambda pushed, counted: (seen.append(pushed), counted(4))  # type: ignore[method-assign]
    counts: list[int] = []
    told = bus.pack([(True, b'{"client":"1"}'), (False, b'{"client":"2"}')])
    worker.memberships.on_changes(bus.Publication([ONE], b"", told, 1.0, kind=Kind.CHANGES), counts.append)
    lines = join_push("chat:0", b'{"client":"1"}'), leave_push("chat:0", b'{"client":"2"}')
    assert seen == [bus.Publication([ONE], b"", text_frame(b"\n".join(lines)), 1.0, kind=Kind.CHANGES)]
    assert counts == [4]


@on_worker
async def test_another_link_is_told_to_every_connection(worker: Worker) -> None:
    """By its mount; one that fails is closed, so that its client is not silently wrong, and the others are told."""
    told: list[str] = []

    def on_relinked(client: Client) -> None:
        told.append(client.id)
        if client.id == "2":
            raise RuntimeError("a session")

    found = [worker.client(serial) for serial in (1, 2, 3)]
    for client in found:
        client.mount.on_relinked = on_relinked
    worker.memberships.on_relinked()
    assert told == ["1", "2", "3"]
    assert [[code for code, _ in client.closed] for client in found] == [[], [CloseCode.INTERNAL_ERROR], []]


# -- all at once ---------------------------------------------------------------------------


class Stream:
    """A bus whose messages are on their way for as long as the test wants, and a broker that may put off a JOIN.

    sent: to the broker.  deferred: JOINs that wait there.  answers: on their way back.  present: as the broker has it.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.open: dict[int, tuple[list[Join], Callable[[bytes], None]]] = {}
        self.sent: deque[tuple[str, Any]] = deque()
        self.deferred: deque[int] = deque()
        self.answers: deque[int] = deque()
        self.present: set[tuple[bytes, int]] = set()
        self.requests = 0
        worker.bus.ask = self.ask  # type: ignore[method-assign]
        worker.bus.depart = self.depart  # type: ignore[method-assign]

    def ask(self, kind: int, body: bytes, on_answer: Callable[[bytes], None]) -> None:
        assert kind == bus.JOIN
        self.requests += 1
        self.open[self.requests] = (bus.unpack_joins(body), on_answer)
        self.sent.append(("join", self.requests))

    def depart(self, join: bytes) -> None:
        self.sent.append(("leave", bus.unpack_join(join)))

    def hear(self, *, may_defer: bool) -> None:
        """Let the broker take the next message, if there is one."""
        if not self.sent:
            return
        kind, what = self.sent.popleft()
        if kind == "leave":
            self.present.discard((what.key, what.connection))
        elif may_defer:
            self.deferred.append(what)
        else:
            self.enter(what)

    def enter(self, request: int) -> None:
        joins, _ = self.open[request]
        self.present |= {(join.key, join.connection) for join in joins if join.is_present}
        self.answers.append(request)

    def enter_deferred(self) -> None:
        if self.deferred:
            self.enter(self.deferred.popleft())

    def answer(self) -> None:
        if self.answers:
            joins, on_answer = self.open.pop(self.answers.popleft())
            on_answer(bus.pack([Kept(0, 1, recovered=False, entries=[]) for _ in joins]))

    def break_off(self) -> None:
        """Lose all that is on its way; the broker has a new table, and is asked again what it has not answered."""
        self.deferred.clear()
        self.answers.clear()
        self.sent = deque(("join", request) for request in self.open)
        table = [bus.unpack_join(join) for join in self.worker.memberships.joins()]
        self.present = {(join.key, join.connection) for join in table}

    def settle(self) -> None:
        while self.sent or self.deferred or self.answers:
            self.hear(may_defer=False)
            self.enter_deferred()
            self.answer()


class Race:
    """Two connections at a time that join, leave and end, and where each was last told to be."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.worker = Worker()
        self.stream = Stream(self.worker)
        self.wanted: dict[Client, set[bytes]] = {}
        self.serial = 0
        stream = self.stream
        self.acts: list[Callable[[Client], None]] = [self.close, lambda _: stream.break_off()]
        self.acts += [self.join] * 3 + [self.leave] * 3 + [lambda _: stream.hear(may_defer=chance.random() < 0.4)] * 4
        self.acts += [lambda _: stream.enter_deferred()] * 2 + [lambda _: stream.answer()] * 2

    def act(self) -> None:
        if len(self.wanted) < 2:
            self.serial += 1
            self.wanted[self.worker.client(self.serial)] = set()
        self.chance.choice(self.acts)(self.chance.choice(list(self.wanted)))

    def close(self, client: Client) -> None:
        client.close(1000, "")
        del self.wanted[client]

    def join(self, client: Client) -> None:
        """Join several channels that it is not in; it may be on its way."""
        keys = [key for key in self.chance.sample(KEYS, self.chance.randrange(1, 4)) if key not in groups(client)]
        if keys:
            self.worker.memberships.enter(client, joining(client, *keys), lambda _: None)
            self.wanted[client] |= set(keys)

    def leave(self, client: Client) -> None:
        key = self.chance.choice(KEYS)
        self.worker.memberships.leave(client, key)
        self.wanted[client].discard(key)


@pytest.mark.parametrize("seed", range(100))
def test_the_broker_and_the_worker_agree_in_the_end(seed: int) -> None:
    """Connections join several channels, leave them, join again and end, while messages are on their way, put off or
    lost with their link: each is in the end where it was last told to be, in its groups, in presence and in the table.
    """

    async def scenario() -> None:
        race = Race(random.Random(seed))
        for _ in range(300):
            race.act()
            assert all(groups(client) <= places for client, places in race.wanted.items())
        race.stream.settle()
        assert {client: groups(client) for client in race.wanted} == race.wanted
        there = {(key, client.number) for client, places in race.wanted.items() for key in places}
        table = [bus.unpack_join(join) for join in race.worker.memberships.joins()]
        assert race.stream.present == there == {(join.key, join.connection) for join in table}
        assert set(race.worker.keys) == {key for key, _ in there}
        assert all(client.standing is None or client.standing.joining == {} for client in race.wanted)

    asyncio.run(scenario())
