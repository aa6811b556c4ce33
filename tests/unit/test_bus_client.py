"""fastpush.bus: a worker's end against a broker made of a socket and a Decoder, and the link's own rules."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fastpush.bus.client import BusClient, BusUnavailable, OnResult
from fastpush.bus.link import Link
from fastpush.bus.server import BusServer
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Position, Status
from tests.standstill import Standstill

SECONDS = 5  # until a condition is given up
KEY = b"u4:jacknews"


class FakeBroker:
    """Accepts one link after the other and says only what a test tells it to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.listener.setblocking(False)
        self.connection: socket.socket | None = None

    async def accept(self) -> None:
        self.connection, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self.listener), SECONDS)
        self._decoder = bus.Decoder(10**6)
        self._heard: list[tuple[int, int, bytes]] = []

    async def hear(self) -> tuple[int, int, bytes]:
        """Return the next message that is no snapshot."""
        loop = asyncio.get_running_loop()
        while not self._heard:
            data = await asyncio.wait_for(loop.sock_recv(self.connection, 65536), SECONDS)
            assert data, "the link is closed"
            self._heard += self._decoder.feed(data)
        return self._heard.pop(0)

    async def hear_table(self, number: int = 7) -> tuple[set[bytes], int]:
        """Return the keys of a table, and the number of its COMPLETE."""
        assert await self.hear() == (bus.HELLO, number, b"")
        keys = set()
        while (message := await self.hear())[0] == bus.SUBSCRIBE:
            assert message[1] == 0
            keys.add(message[2])
        assert message[0] == bus.COMPLETE
        return keys, message[1]

    async def say(self, *messages: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.connection, b"".join(messages))

    async def welcome(self) -> tuple[set[bytes], int]:
        """Accept a worker, hear its table and let it ask."""
        await self.accept()
        table = await self.hear_table()
        await self.say(bus.encode(bus.WELCOME, 0, bus.encode_epoch(3)), bus.encode(bus.SUBSCRIBED, table[1]))
        return table

    def hang_up(self) -> None:
        self.connection.close()


class FakeMembers:
    """What a worker's connections have beside keys, and what it was told of that."""

    def __init__(self) -> None:
        self.joined: list[bytes] = []
        self.claimed: list[tuple[int, int, bytes]] = []
        self.told: list[tuple[Any, ...]] = []
        self.notices: list[tuple[bus.Publication, Callable[[int], None]]] = []

    def joins(self) -> Iterable[bytes]:
        return self.joined

    def claims(self) -> Iterable[tuple[int, int, bytes]]:
        return self.claimed

    def on_claimed(self, connection: int, name: bytes) -> None:
        self.told.append(("claimed", connection, name))

    def on_replaced(self, connection: int, name: bytes) -> None:
        self.told.append(("replaced", connection, name))

    def on_notice(self, notice: bus.Publication, counted: Callable[[int], None]) -> None:
        self.notices.append((notice, counted))
        if notice.frame == b"bad":
            raise RuntimeError("a notice that nobody can word")

    def on_changes(self, changes: bus.Publication, counted: Callable[[int], None]) -> None:
        self.on_notice(changes, counted)

    def on_relinked(self) -> None:
        self.told.append(("relinked",))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def connected(
    tmp_path: Path, *, keys: Iterable[bytes] = (), answer_seconds: float = SECONDS, welcomed: bool = True,
    members: "FakeMembers | None" = None, **kwargs: Any,
) -> AsyncIterator[tuple[BusClient, FakeBroker]]:  # fmt: skip
    """A client, and the broker that it has reached."""
    broker = FakeBroker(tmp_path / "bus")
    handlers = {
        "deliver": lambda _, counted: counted(0), "obey": lambda _: 0, "inquire": lambda body: body,
        "key_table": lambda: keys, "measure": lambda: b"{}",
    } | kwargs  # fmt: skip
    client = BusClient(str(broker.path), 7, queue_bytes=100_000, answer_seconds=answer_seconds, **handlers)
    client.members = members or FakeMembers()
    client.start()
    try:
        if welcomed:
            await broker.welcome()
            await until(lambda: not client.unready)
        yield client, broker
    finally:
        client.close()
        await asyncio.sleep(0)
        broker.listener.close()
        if broker.connection is not None:
            broker.connection.close()
        await until(lambda: client._link is None)


def answers() -> tuple[list[tuple[Status, int, int]], OnResult]:
    found: list[tuple[Status, int, int]] = []
    return found, lambda status, sent, unconfirmed, _: found.append((Status(status), sent, unconfirmed))


def test_table_on_every_connect(tmp_path: Path) -> None:
    """HELLO, every key, COMPLETE; again whenever the link is made again."""

    async def scenario() -> None:
        async with connected(tmp_path, keys=[KEY, b"*"], welcomed=False) as (client, broker):
            for _ in range(3):
                assert (await broker.welcome())[0] == {KEY, b"*"}
                await until(lambda: not client.unready)
                assert client.epoch == 3
                broker.hang_up()
                await until(lambda: client.unready)

    asyncio.run(scenario())


def test_confirmations_in_order(tmp_path: Path) -> None:
    """SUBSCRIBED confirms all announcements up to its number, each once."""

    async def scenario() -> None:
        confirmed: list[int] = []
        async with connected(tmp_path) as (client, broker):
            for number in range(4):
                client.announce(b"%d" % number, lambda number=number: confirmed.append(number))
            numbers = [(await broker.hear())[1] for _ in range(4)]
            await broker.say(bus.encode(bus.SUBSCRIBED, numbers[2]))
            await until(lambda: len(confirmed) == 3)
            await broker.say(bus.encode(bus.SUBSCRIBED, numbers[2]), bus.encode(bus.SUBSCRIBED, numbers[3]))
            await until(lambda: len(confirmed) == 4)
            assert confirmed == [0, 1, 2, 3]

    asyncio.run(scenario())


def test_announced_without_a_broker_is_confirmed_by_the_next_table(tmp_path: Path) -> None:
    """Whoever waits when the link is lost, or announces while there is none, waits for the table to be complete."""

    async def scenario() -> None:
        keys: set[bytes] = set()
        confirmed: list[bytes] = []

        def announce(client: BusClient, key: bytes) -> None:
            keys.add(key)
            client.announce(key, lambda: confirmed.append(key))

        async with connected(tmp_path, key_table=lambda: keys) as (client, broker):
            announce(client, b"before")
            client.publish(b"body", lambda *_: announce(client, b"between"))  # when the link is lost
            await broker.hear()
            broker.hang_up()
            await broker.accept()
            table, complete = await broker.hear_table()
            assert table == {b"before", b"between"}
            assert confirmed == []
            await broker.say(bus.encode(bus.SUBSCRIBED, complete))
            await until(lambda: confirmed == [b"before", b"between"])

    asyncio.run(scenario())


def test_withdrawn_goes_on_the_same_stream(tmp_path: Path) -> None:
    """Announce and withdraw keep their order."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            client.announce(KEY, lambda: None)
            client.withdraw(KEY)
            client.announce(KEY, lambda: None)
            assert [(await broker.hear())[0] for _ in range(3)] == [bus.SUBSCRIBE, bus.UNSUBSCRIBE, bus.SUBSCRIBE]

    asyncio.run(scenario())


def test_push_and_its_answer(tmp_path: Path) -> None:
    """Answers find their questions, in whatever order they come."""

    async def scenario() -> None:
        found, on_result = answers()
        async with connected(tmp_path) as (client, broker):
            for body in (b"first", b"second"):
                client.publish(body, on_result)
            client.order(b'["jack",null]', on_result)
            asked = [await broker.hear() for _ in range(3)]
            assert [(kind, body) for kind, _, body in asked] == [
                (bus.PUBLISH, b"first"), (bus.PUBLISH, b"second"), (bus.ORDER, b'["jack",null]')
            ]  # fmt: skip
            assert client.pending == 3
            for (_, number, _), sent in zip(reversed(asked), (1, 2, 3), strict=True):
                await broker.say(bus.encode_result(number, Status.DONE, sent, 0))
            await until(lambda: client.pending == 0)
            assert found == [(Status.DONE, 1, 0), (Status.DONE, 2, 0), (Status.DONE, 3, 0)]

    asyncio.run(scenario())


def test_nothing_is_asked_before_welcome(tmp_path: Path) -> None:
    """A connection may wait in the listener's queue: until a broker has shown itself, nobody received the push."""

    async def scenario() -> None:
        async with connected(tmp_path, welcomed=False) as (client, broker):
            with pytest.raises(BusUnavailable, match="restarted"):
                client.publish(b"body", lambda *_: None)
            await broker.accept()
            await broker.hear_table()
            for ask in (client.publish, client.order):
                with pytest.raises(BusUnavailable, match="restarted"):
                    ask(b"body", lambda *_: None)
            with pytest.raises(BusUnavailable, match="restarted"):
                client.scrape(lambda _: None)
            await broker.say(bus.encode(bus.WELCOME, 0, bus.encode_epoch(3)))
            await until(lambda: not client.unready)
            client.publish(b"body", lambda *_: None)
            assert (await broker.hear())[0] == bus.PUBLISH

    asyncio.run(scenario())


def test_unknown_when_the_link_is_lost(tmp_path: Path) -> None:
    """What was under way may have been delivered or not; a scrape gets None; an answer that fails costs no other."""

    async def scenario() -> None:
        found, on_result = answers()
        reports: list[bytes | None] = []

        def fail(*_: object) -> None:
            raise RuntimeError("the publisher's transport")

        async with connected(tmp_path) as (client, broker):
            client.publish(b"one", fail)
            client.publish(b"two", on_result)
            client.scrape(reports.append)
            await broker.hear()
            broker.hang_up()
            await until(lambda: reports)
            assert found == [(Status.UNKNOWN, 0, 0)]
            assert reports == [None]
            assert client.pending == 0
            await broker.welcome()
            await until(lambda: not client.unready)

    asyncio.run(scenario())


def test_unknown_at_the_deadline(tmp_path: Path, standstill: Standstill) -> None:
    """A broker that does not answer holds a push for answer_seconds from its own beginning; late answers go nowhere."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        waited: list[float] = []
        async with connected(tmp_path, answer_seconds=0.1) as (client, broker):
            for _ in range(3):
                began = loop.time()
                client.publish(b"body", lambda *_, began=began: waited.append(loop.time() - began))
                await asyncio.sleep(0.03)
            _, number, _ = await broker.hear()
            await until(lambda: len(waited) == 3)
            await broker.say(bus.encode_result(number, Status.DONE, 1, 0))
            client.publish(b"body", lambda *_: waited.append(0))
            await until(lambda: len(waited) == 4)
            assert all(0.09 < seconds < 0.3 + standstill.seconds for seconds in waited[:3])

    asyncio.run(scenario())


def test_delivery_is_counted(tmp_path: Path) -> None:
    """DELIVER and OBEY are answered with what the worker says, a failing one with 0: nothing stays owed."""

    async def scenario() -> None:
        delivered: list[bus.Publication] = []

        def deliver(publication: bus.Publication, counted: Callable[[int], None]) -> None:
            delivered.append(publication)
            if publication.frame == b"bad":
                raise RuntimeError("fan-out")
            counted(3)

        async with connected(tmp_path, deliver=deliver, obey=lambda _: 2) as (_, broker):
            for number, frame in enumerate((b"good", b"bad", b"good")):
                await broker.say(
                    bus.encode(bus.DELIVER, number, bus.encode_publication([KEY], b"news", frame, taken_seconds=1.0))
                )
            await broker.say(bus.encode(bus.OBEY, 9, b'["jack",null]'))
            heard = [await broker.hear() for _ in range(4)]
            counts = [(kind, number, bus.decode_count(body)) for kind, number, body in heard]
            assert counts == [(bus.COUNT, 0, 3), (bus.COUNT, 1, 0), (bus.COUNT, 2, 3), (bus.COUNT, 9, 2)]
            assert delivered[0] == bus.Publication([KEY], b"news", b"good", 1.0)

    asyncio.run(scenario())


def test_counts_may_come_later_and_in_any_order(tmp_path: Path) -> None:
    """What a busy key gathers is counted when it has been written: each count carries its own publication's number."""

    async def scenario() -> None:
        later: list[Callable[[int], None]] = []
        async with connected(tmp_path, deliver=lambda _, counted: later.append(counted)) as (_, broker):
            for number in (5, 6, 7):
                await broker.say(
                    bus.encode(bus.DELIVER, number, bus.encode_publication([KEY], b"news", b"frame", taken_seconds=1.0))
                )
            await until(lambda: len(later) == 3)
            for position in (2, 0, 1):
                later[position](position)
            heard = [await broker.hear() for _ in range(3)]
            counts = [(kind, number, bus.decode_count(body)) for kind, number, body in heard]
            assert counts == [(bus.COUNT, 7, 2), (bus.COUNT, 5, 0), (bus.COUNT, 6, 1)]

    asyncio.run(scenario())


def test_a_count_goes_to_the_link_that_asked_or_to_nobody(tmp_path: Path) -> None:
    """To the next link the same number means another publication: an old one's count is never heard there."""

    async def scenario() -> None:
        later: list[Callable[[int], None]] = []
        async with connected(tmp_path, deliver=lambda _, counted: later.append(counted)) as (client, broker):
            message = bus.encode(bus.DELIVER, 1, bus.encode_publication([KEY], b"news", b"frame", taken_seconds=1.0))
            for _ in range(2):
                await broker.say(message)
            await until(lambda: len(later) == 2)
            broker.hang_up()
            await until(lambda: client.unready)
            later[0](99)  # while there is no link
            await broker.welcome()
            await until(lambda: not client.unready)
            await broker.say(message)
            await until(lambda: len(later) == 3)
            later[1](99)  # while there is another one
            later[2](3)
            kind, number, body = await broker.hear()
            assert (kind, number, bus.decode_count(body)) == (bus.COUNT, 1, 3)
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE  # nothing came between

    asyncio.run(scenario())


# A push that only this worker wants


OWN = bus.encode_publication([KEY], b"news", b"frame", taken_seconds=1.0)


async def ask(client: BusClient, broker: FakeBroker, on_result: OnResult) -> int:
    """Publish OWN; return the request's number, as the broker has heard it."""
    client.publish(OWN, on_result)
    kind, number, body = await broker.hear()
    assert (kind, body) == (bus.PUBLISH, OWN)
    return number


class Deliveries:
    """Keeps what is delivered, and whom to tell its count."""

    def __init__(self) -> None:
        self.publications: list[bus.Publication] = []
        self.counted: list[Callable[[int], None]] = []

    def __call__(self, publication: bus.Publication, counted: Callable[[int], None]) -> None:
        self.publications.append(publication)
        self.counted.append(counted)


@pytest.mark.parametrize("frame", [b"frame", b"f" * 2 * bus.LARGE_BYTES])
def test_an_own_push_is_delivered_from_the_kept_body_and_answered_with_its_count(tmp_path: Path, frame: bytes) -> None:
    """Not before the broker says so; the count answers the publisher and is not sent to the broker."""

    async def scenario() -> None:
        found, on_result = answers()
        delivered: list[bus.Publication] = []

        def deliver(publication: bus.Publication, counted: Callable[[int], None]) -> None:
            delivered.append(publication)
            counted(3)

        async with connected(tmp_path, deliver=deliver) as (client, broker):
            client.publish(bus.encode_publication([KEY], b"news", frame, taken_seconds=1.0), on_result)
            _, number, _ = await broker.hear()
            assert (delivered, client.pending) == ([], 1)
            await broker.say(bus.encode(bus.DELIVER_OWN, number))
            await until(lambda: found)
            assert found == [(Status.DONE, 3, 0)]
            assert delivered == [bus.Publication([KEY], b"news", frame, 1.0)]
            assert client.pending == 0
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE  # nothing came between

    asyncio.run(scenario())


def test_own_pushes_may_be_counted_later_and_in_any_order(tmp_path: Path) -> None:
    """Delivered in the order of the broker's stream, among those of others; each count answers its own publisher."""

    async def scenario() -> None:
        deliveries = Deliveries()
        first, on_first = answers()
        second, on_second = answers()
        async with connected(tmp_path, deliver=deliveries) as (client, broker):
            requests = [await ask(client, broker, on_result) for on_result in (on_first, on_second)]
            await broker.say(
                bus.encode(bus.DELIVER_OWN, requests[1]),
                bus.encode(bus.DELIVER, 5, bus.encode_publication([KEY], b"news", b"other", taken_seconds=1.0)),
                bus.encode(bus.DELIVER_OWN, requests[0]),
            )
            await until(lambda: len(deliveries.counted) == 3)
            assert [publication.frame for publication in deliveries.publications] == [b"frame", b"other", b"frame"]
            assert (first, second, client.pending) == ([], [], 2)
            deliveries.counted[2](1)
            assert (first, second) == ([(Status.DONE, 1, 0)], [])
            deliveries.counted[1](2)
            deliveries.counted[0](3)
            assert (first, second) == ([(Status.DONE, 1, 0)], [(Status.DONE, 3, 0)])
            kind, number, body = await broker.hear()
            assert (kind, number, bus.decode_count(body)) == (bus.COUNT, 5, 2)

    asyncio.run(scenario())


def test_an_own_push_that_is_not_counted_in_time_is_unconfirmed(tmp_path: Path) -> None:
    """At the deadline it is answered; its late count answers nobody, and gives its bytes back."""

    async def scenario() -> None:
        found, on_result = answers()
        deliveries = Deliveries()
        async with connected(tmp_path, deliver=deliveries, answer_seconds=0.5) as (client, broker):
            await broker.say(bus.encode(bus.DELIVER_OWN, await ask(client, broker, on_result)))
            await until(lambda: found)
            assert found == [(Status.DONE, 0, 1)]
            assert (client.pending, client._held_bytes) == (0, len(OWN))
            for _ in range(2):
                deliveries.counted[0](3)
            assert found == [(Status.DONE, 0, 1)]
            assert (client._own, client._held_bytes) == ({}, 0)

    asyncio.run(scenario())


def test_a_lost_link_does_not_answer_what_is_being_delivered_here(tmp_path: Path) -> None:
    """Its own count does, with or without a new link; what still waits for the broker is unknown at once."""

    async def scenario() -> None:
        own, on_own = answers()
        waiting, on_waiting = answers()
        deliveries = Deliveries()
        async with connected(tmp_path, deliver=deliveries) as (client, broker):
            requests = [await ask(client, broker, on_result) for on_result in (on_own, on_own, on_waiting)]
            await broker.say(*(bus.encode(bus.DELIVER_OWN, request) for request in requests[:2]))
            await until(lambda: len(deliveries.counted) == 2)
            broker.hang_up()
            await until(lambda: waiting)
            assert (own, waiting, client.pending) == ([], [(Status.UNKNOWN, 0, 0)], 2)
            deliveries.counted[0](3)
            await broker.welcome()
            await until(lambda: not client.unready)
            deliveries.counted[1](4)
            assert (own, client.pending) == ([(Status.DONE, 3, 0), (Status.DONE, 4, 0)], 0)
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE  # no count went to the new link

    asyncio.run(scenario())


def test_a_lost_link_leaves_the_deadline_of_what_is_being_delivered_here(tmp_path: Path) -> None:
    """Never counted, it is answered as unconfirmed, once, without any broker."""

    async def scenario() -> None:
        found, on_result = answers()
        deliveries = Deliveries()
        async with connected(tmp_path, deliver=deliveries, answer_seconds=0.5) as (client, broker):
            await broker.say(bus.encode(bus.DELIVER_OWN, await ask(client, broker, on_result)))
            await until(lambda: deliveries.counted)
            broker.hang_up()
            await until(lambda: found)
            assert found == [(Status.DONE, 0, 1)]

    asyncio.run(scenario())


def test_an_own_push_that_the_broker_takes_late_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Its publisher has been told unknown at the deadline, but its channel may have kept it: who is subscribed must
    not miss what who comes back recovers. What was never asked is no failure, the link goes on.
    """
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario() -> None:
        found, on_result = answers()
        deliveries = Deliveries()
        async with connected(tmp_path, deliver=deliveries, answer_seconds=0.05) as (client, broker):
            request = await ask(client, broker, on_result)
            await until(lambda: found)
            assert client._held_bytes > 0
            await broker.say(
                bus.encode(bus.DELIVER_OWN, request, bus.encode_position(Position(4, 9))),
                bus.encode(bus.DELIVER_OWN, 10**6),
                bus.encode(bus.DELIVER, 5, bus.encode_publication([KEY], b"news", b"other", taken_seconds=1.0)),
            )
            await until(lambda: len(deliveries.publications) == 2)
            assert [(each.frame, each.offset) for each in deliveries.publications] == [(b"frame", 4), (b"other", 0)]
            deliveries.counted[0](1)
            assert found == [(Status.UNKNOWN, 0, 0)]
            assert (client._late, client._own, client._held_bytes) == ({}, {}, 0)

    asyncio.run(scenario())
    assert "failed" not in caplog.text


@pytest.mark.parametrize("end", ["result", "link"])
def test_what_is_answered_late_is_held_until_the_broker_has_answered_or_is_lost(tmp_path: Path, end: str) -> None:
    """Its bytes count for as long: a broker that does not answer makes nothing grow."""

    async def scenario() -> None:
        found, on_result = answers()
        async with connected(tmp_path, answer_seconds=0.05) as (client, broker):
            request = await ask(client, broker, on_result)
            await until(lambda: found)
            assert (len(client._late), client._held_bytes > 0) == (1, True)
            if end == "result":
                await broker.say(bus.encode_result(request, Status.DONE, 1, 0))
            else:
                broker.hang_up()
            await until(lambda: not client._late)
            assert (found, client._held_bytes) == ([(Status.UNKNOWN, 0, 0)], 0)

    asyncio.run(scenario())


def test_an_own_push_whose_delivery_fails_counts_nobody(tmp_path: Path) -> None:
    """It is answered at once with 0, holds no bytes, and the next one is delivered."""

    async def scenario() -> None:
        found, on_result = answers()

        def deliver(publication: bus.Publication, counted: Callable[[int], None]) -> None:
            if not found:
                raise RuntimeError("fan-out")
            counted(3)

        async with connected(tmp_path, deliver=deliver) as (client, broker):
            requests = [await ask(client, broker, on_result) for _ in range(2)]
            await broker.say(*(bus.encode(bus.DELIVER_OWN, request) for request in requests))
            await until(lambda: len(found) == 2)
            assert found == [(Status.DONE, 0, 0), (Status.DONE, 3, 0)]
            assert (client._own, client._held_bytes) == ({}, 0)

    asyncio.run(scenario())


def test_own_pushes_that_are_not_counted_are_bounded(tmp_path: Path) -> None:
    """With queue_bytes of them uncounted, whoever asks is told that nobody received it, until one is counted."""

    async def scenario() -> None:
        deliveries = Deliveries()
        body = bus.encode_publication([KEY], b"news", b"f" * 50_000, taken_seconds=1.0)
        async with connected(tmp_path, deliver=deliveries) as (client, broker):
            for delivered in (1, 2):
                client.publish(body, lambda *_: None)
                _, request, _ = await broker.hear()
                await broker.say(bus.encode(bus.DELIVER_OWN, request))
                await until(lambda delivered=delivered: len(deliveries.counted) == delivered)
            for ask_for in (client.publish, client.order):
                with pytest.raises(BusUnavailable, match="this worker is overloaded"):
                    ask_for(b"body", lambda *_: None)
            assert client.pending == 2
            deliveries.counted[1](1)
            client.publish(body, lambda *_: None)
            assert (await broker.hear())[::2] == (bus.PUBLISH, body)

    asyncio.run(scenario())


# Figures, bounds and the end


def test_measure_and_report(tmp_path: Path) -> None:
    """A scrape is asked for, each measures when told, the report comes back."""

    async def scenario() -> None:
        reports: list[bytes | None] = []
        async with connected(tmp_path, measure=lambda: b'{"gauges":{}}') as (client, broker):
            client.scrape(reports.append)
            kind, number, _ = await broker.hear()
            await broker.say(bus.encode(bus.MEASURE, 4))
            assert await broker.hear() == (bus.SNAPSHOT, 4, b'{"gauges":{}}')
            await broker.say(bus.encode(bus.REPORT, number, b"report"))
            await until(lambda: reports == [b"report"])
            client.send_snapshot()
            assert (await broker.hear())[:2] == (bus.SNAPSHOT, 0)
            assert kind == bus.SCRAPE

    asyncio.run(scenario())


def test_full_link_refuses_pushes(tmp_path: Path) -> None:
    """A broker that does not read gets no more than the bound; nobody received what is refused."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, _):
            accepted = 0
            with pytest.raises(BusUnavailable, match=r"full|overloaded"):
                for _ in range(1000):
                    client.publish(b"x" * 10_000, lambda *_: None)
                    accepted += 1
                    await asyncio.sleep(0)
            assert client.queued_bytes <= 100_000 + 2 * 10_013
            assert client.pending == accepted

    asyncio.run(scenario())


def test_announcements_are_bounded_too(tmp_path: Path) -> None:
    """When the broker does not read for long, the link is cut and the table, as small as can be, tells all anew."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            for _ in range(100_000):
                client.announce(KEY, lambda: None)
                client.withdraw(KEY)
                if client.unready:
                    break
                assert client.queued_bytes < 300_000
                await asyncio.sleep(0)
            broker.hang_up()
            await broker.welcome()
            await until(lambda: not client.unready)

    asyncio.run(scenario())


def test_goodbye_at_the_end(tmp_path: Path) -> None:
    """The last message says that the link closes on purpose, behind all that was sent."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            client.withdraw(KEY)
            client.close()
            assert await broker.hear() == (bus.UNSUBSCRIBE, 0, KEY)
            assert await broker.hear() == (bus.GOODBYE, 0, b"")
            assert await asyncio.get_running_loop().sock_recv(broker.connection, 1) == b""

    asyncio.run(scenario())


def test_garbage_ends_the_link_and_a_new_one_is_made(tmp_path: Path) -> None:
    """What is no message, and a message that no broker sends."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            for garbage in (b"\xff" * 20, bus.encode(bus.HELLO, 1)):
                await broker.say(garbage)
                await until(lambda: client.unready)
                broker.hang_up()
                await broker.welcome()
                await until(lambda: not client.unready)

    asyncio.run(scenario())


def test_waits_for_a_listener(tmp_path: Path) -> None:
    """A worker that starts before there is anybody to connect to tries until there is."""

    async def scenario() -> None:
        client = BusClient(
            str(tmp_path / "bus"), 7, queue_bytes=1000, answer_seconds=1,
            deliver=lambda _, counted: counted(0), obey=lambda _: 0, inquire=lambda body: body,
            key_table=tuple, measure=lambda: b"{}",
        )  # fmt: skip
        client.members = FakeMembers()
        client.start()
        await asyncio.sleep(0.01)
        broker = FakeBroker(tmp_path / "bus")
        await broker.welcome()
        await until(lambda: not client.unready)
        client.close()
        await until(lambda: client._link is None)
        broker.hang_up()
        broker.listener.close()

    asyncio.run(scenario())


# The broker's end


def test_server_hears_its_own_user_and_gathers_what_it_sends(tmp_path: Path) -> None:
    """Messages arrive with their link; all that is sent in one turn leaves in one write; the end is told once."""

    async def scenario() -> None:
        heard: list[tuple[Link, int, int, bytes]] = []
        closed: list[Link] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        server = BusServer(lambda *message: heard.append(message), closed.append, 1000)
        await server.start(listener)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "bus"))
        writer.write(bus.encode(bus.HELLO, 1) + bus.encode(bus.COMPLETE, 2))
        await until(lambda: len(heard) == 2)
        link = heard[0][0]
        assert [message[1:] for message in heard] == [(bus.HELLO, 1, b""), (bus.COMPLETE, 2, b"")]
        writes: list[bytes] = []
        transport, link._transport = link._transport, None
        link.send(b"lost")  # on a closed link
        link._transport = transport
        write = transport.write
        transport.write = lambda data: (writes.append(data), write(data))
        for number in range(100):
            link.send(bus.encode_head(bus.DELIVER, number, 4), b"body")
        received = await reader.readexactly(100 * 17)
        assert received == b"".join(bus.encode(bus.DELIVER, number, b"body") for number in range(100))
        assert len(writes) == 1
        writer.close()
        await until(lambda: closed == [link])
        link.send(b"nobody hears")
        link.close()
        server._server.close()
        await writer.wait_closed()

    asyncio.run(scenario())


def test_what_one_turn_gathers_counts_too(tmp_path: Path) -> None:
    """A read may hold a thousand questions whose answers are large: the link is full before they have been written."""

    async def scenario() -> None:
        links: list[Link] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        server = BusServer(lambda link, *_: links.append(link), lambda _: None, 5 * bus.LARGE_BYTES)
        await server.start(listener)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "bus"))
        writer.write(bus.encode(bus.HELLO, 1))
        await until(lambda: links)
        answer = bus.encode(bus.ANSWER, 1, b"x" * bus.LARGE_BYTES)
        taken = 0
        while not links[0].is_full:
            links[0].send(answer)
            taken += 1
        assert taken == 5
        await reader.readexactly(taken * len(answer))
        await until(lambda: not links[0].is_full)
        links[0].send(answer)
        assert not links[0].is_full, "what has left counts no more"
        writer.close()
        server._server.close()
        await writer.wait_closed()

    asyncio.run(scenario())


def test_server_refuses_other_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A process of another user is hung up on, unheard."""
    monkeypatch.setattr("fastpush.bus.server.peer_uid", lambda _: 12345)
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario() -> None:
        heard: list[object] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "bus"))
        listener.listen()
        server = BusServer(lambda *message: heard.append(message), heard.append, 1000)
        await server.start(listener)
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "bus"))
        writer.write(bus.encode(bus.HELLO, 1))
        with suppress(ConnectionResetError):  # what it has said was not read
            assert await asyncio.wait_for(reader.read(), SECONDS) == b""
        assert not [message for message in heard if isinstance(message, tuple)]
        writer.close()
        server._server.close()

    asyncio.run(scenario())
    assert "bus connection refused" in caplog.text


# Channels and claims


JOIN = bus.pack(bus.Join(b"c/chat", 7, "/chat", user="jack", grace_ms=2000))


async def hear_all(broker: FakeBroker, count: int) -> list[tuple[int, int, bytes]]:
    return [await broker.hear() for _ in range(count)]


async def hang_up(client: BusClient, broker: FakeBroker) -> None:
    """Break the link, and be back in the very turn in which the client sees it: the next one is soon made."""
    broker.hang_up()
    while not client.unready:
        await asyncio.sleep(0)


def test_each_question_gets_its_own_answer(tmp_path: Path) -> None:
    """JOIN, HISTORY and ONLINE, in whatever order they are answered; one that fails costs no other its answer."""

    async def scenario() -> None:
        found: list[tuple[str, bytes]] = []

        def fail(_: bytes) -> None:
            raise RuntimeError("an application")

        async with connected(tmp_path) as (client, broker):
            client.ask(bus.JOIN, JOIN, lambda body: found.append(("join", body)))
            client.ask(bus.HISTORY, b"c/chat", fail)
            client.ask(bus.ONLINE, b"question", lambda body: found.append(("online", body)))
            asked = await hear_all(broker, 3)
            assert [(kind, body) for kind, _, body in asked] == [
                (bus.JOIN, JOIN), (bus.HISTORY, b"c/chat"), (bus.ONLINE, b"question")
            ]  # fmt: skip
            for _, request, body in reversed(asked):
                await broker.say(bus.encode(bus.ANSWER, request, b"answer to " + body[:4]))
            await until(lambda: len(found) == 2)
            assert found == [("online", b"answer to ques"), ("join", b"answer to " + JOIN[:4])]
            assert not client.unready

    asyncio.run(scenario())


def test_questions_wait_for_the_next_broker(tmp_path: Path) -> None:
    """What a lost broker did not answer, and what is asked while there is none, is asked of the next one behind its
    table; nothing that was answered is.
    """

    async def scenario() -> None:
        found: list[bytes] = []
        async with connected(tmp_path) as (client, broker):
            client.ask(bus.HISTORY, b"answered", found.append)
            await broker.say(bus.encode(bus.ANSWER, (await broker.hear())[1], b"1"))
            await until(lambda: found)
            client.ask(bus.JOIN, JOIN, found.append)
            _, request, _ = await broker.hear()
            await hang_up(client, broker)
            client.ask(bus.ONLINE, b"later", found.append)
            await broker.welcome()
            again, later = await hear_all(broker, 2)
            assert (again, later[0], later[2]) == ((bus.JOIN, request, JOIN), bus.ONLINE, b"later")
            for number, body in ((later[1], b"3"), (request, b"2")):
                await broker.say(bus.encode(bus.ANSWER, number, body))
            await until(lambda: len(found) == 3)
            assert found == [b"1", b"3", b"2"]

    asyncio.run(scenario())


def test_nothing_is_asked_of_a_full_bus(tmp_path: Path) -> None:
    """A question has a caller who can be told; it is not asked later."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, _):
            with pytest.raises(BusUnavailable, match="full"):
                while True:
                    client.ask(bus.HISTORY, b"x" * 20_000, lambda _: None)
                    await asyncio.sleep(0)
            assert len(client._questions) >= 1
            held = len(client._questions)
            with pytest.raises(BusUnavailable, match="full"):
                client.ask(bus.HISTORY, b"x", lambda _: None)
            assert len(client._questions) == held

    asyncio.run(scenario())


def test_a_new_broker_hears_of_members_and_claims(tmp_path: Path) -> None:
    """In the table: who is present, and claims by their numbers, answered or not."""

    async def scenario() -> None:
        members = FakeMembers()
        members.joined = [JOIN, b"another"]
        members.claimed = [(4, 77, b"known"), (5, 78, b"asked")]
        async with connected(tmp_path, members=members, welcomed=False) as (_, broker):
            for _ in range(2):
                await broker.accept()
                heard = await hear_all(broker, 6)
                told = b"".join(bus.encode_claim(*claim) for claim in members.claimed)
                claims = list(bus.Decoder(1000).feed(told))
                assert heard[:3] == [(bus.HELLO, 7, b""), (bus.PRESENT, 0, JOIN), (bus.PRESENT, 0, b"another")]
                assert heard[3:5] == claims and heard[5][0] == bus.COMPLETE
                broker.hang_up()

    asyncio.run(scenario())


def test_claims_and_what_becomes_of_them(tmp_path: Path) -> None:
    """Asked for and given back on one stream; what the broker says of them reaches the connections' keeper."""

    async def scenario() -> None:
        members = FakeMembers()
        async with connected(tmp_path, members=members) as (client, broker):
            client.claim(4, 99, b"name")
            client.unclaim(4, b"name")
            (claim,) = bus.Decoder(1000).feed(bus.encode_claim(4, 99, b"name"))
            assert await hear_all(broker, 2) == [claim, (bus.UNCLAIM, 4, b"name")]
            await broker.say(bus.encode(bus.CLAIMED, 4, b"name"), bus.encode(bus.REPLACED, 4, b"name"))
            await until(lambda: len(members.told) == 2)
            assert members.told == [("claimed", 4, b"name"), ("replaced", 4, b"name")]
            await hang_up(client, broker)
            client.claim(5, 100, b"later")  # nobody to tell: the table of claims will
            await broker.welcome()
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE

    asyncio.run(scenario())


def test_who_leaves_is_told_or_told_of_later(tmp_path: Path) -> None:
    """With a broker at once; without one the next is told that they were there, and behind its table that they have
    left; so many of them at most, and each once.
    """

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            client.depart(JOIN)
            assert await broker.hear() == (bus.LEAVE, 0, JOIN)
            await hang_up(client, broker)
            client.depart(b"jack")
            client.depart(b"jill")
            await broker.accept()
            heard = await hear_all(broker, 6)
            assert [(kind, body) for kind, _, body in heard] == [
                (bus.HELLO, b""), (bus.PRESENT, b"jack"), (bus.PRESENT, b"jill"), (bus.COMPLETE, b""),
                (bus.LEAVE, b"jack"), (bus.LEAVE, b"jill"),
            ]  # fmt: skip
            await hang_up_unwelcome(client, broker)  # nobody may have read that: it is told again
            await broker.accept()
            again = await hear_all(broker, 6)
            assert [(kind, body) for kind, _, body in again] == [(kind, body) for kind, _, body in heard]
            await broker.say(bus.encode(bus.WELCOME, 0, bus.encode_epoch(1)))
            await until(lambda: not client._departed)
            broker.hang_up()
            assert await broker.welcome() == (set(), heard[3][1] + 2)

    asyncio.run(scenario())


async def hang_up_unwelcome(client: BusClient, broker: FakeBroker) -> None:
    broker.hang_up()
    await until(lambda: client._link is None)


def test_departures_without_a_broker_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is left out leaves without a notice."""
    monkeypatch.setattr("fastpush.bus.client.DEPARTED_MAX", 3)

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            await hang_up(client, broker)
            for number in range(10):
                client.depart(b"%d" % number)
            await broker.accept()
            heard = await hear_all(broker, 8)
            assert [body for kind, _, body in heard if kind == bus.LEAVE] == [b"0", b"1", b"2"]

    asyncio.run(scenario())


def test_notices_are_counted(tmp_path: Path) -> None:
    """With their own number, on the link that they came by; one that cannot be worded counts nobody."""

    async def scenario() -> None:
        members = FakeMembers()
        async with connected(tmp_path, members=members) as (_, broker):
            for number, frame in ((5, b"notice"), (6, b"bad")):
                body = bus.encode_publication([b"c/chat"], b"/chat", frame, taken_seconds=1.0, spared=9)
                await broker.say(bus.encode(bus.NOTICE, number, body))
            kind, number, body = await broker.hear()
            assert (kind, number, bus.decode_count(body)) == (bus.COUNT, 6, 0)
            (notice, counted), _ = members.notices
            assert notice == bus.Publication([b"c/chat"], b"/chat", b"notice", 1.0, spared=9)
            counted(3)
            kind, number, body = await broker.hear()
            assert (kind, number, bus.decode_count(body)) == (bus.COUNT, 5, 3)

    asyncio.run(scenario())


def test_who_leaves_before_a_broker_has_shown_itself_is_told_of_again(tmp_path: Path) -> None:
    """A link alone is nobody who hears: until WELCOME the next broker is told too."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            await hang_up(client, broker)
            await broker.accept()
            await broker.hear_table()
            client.depart(b"jack")
            assert await broker.hear() == (bus.LEAVE, 0, b"jack")
            await hang_up_unwelcome(client, broker)
            await broker.accept()
            heard = await hear_all(broker, 4)
            assert [(kind, body) for kind, _, body in heard] == [
                (bus.HELLO, b""), (bus.PRESENT, b"jack"), (bus.COMPLETE, b""), (bus.LEAVE, b"jack")
            ]  # fmt: skip

    asyncio.run(scenario())


def test_who_leaves_and_joins_again_without_a_broker_is_in_the_channel(tmp_path: Path) -> None:
    """The next broker is told that it was there, that it has left, and only then that it wants to join."""

    async def scenario() -> None:
        async with connected(tmp_path) as (client, broker):
            await hang_up(client, broker)
            client.depart(b"jack")
            client.ask(bus.JOIN, JOIN, lambda _: None)
            await broker.accept()
            heard = await hear_all(broker, 5)
            assert [(kind, body) for kind, _, body in heard] == [
                (bus.HELLO, b""), (bus.PRESENT, b"jack"), (bus.COMPLETE, b""), (bus.LEAVE, b"jack"), (bus.JOIN, JOIN)
            ]  # fmt: skip

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [bus.NOTICE, bus.CHANGES])
def test_what_is_told_of_others_reaches_their_keeper(tmp_path: Path, kind: int) -> None:
    """With its kind, and the count goes back under the broker's number."""

    async def scenario() -> None:
        members = FakeMembers()
        async with connected(tmp_path, members=members) as (_, broker):
            frame = bus.pack([(True, b"{}")])
            body = bus.encode_publication([b"cchat:1"], b"", frame, taken_seconds=1.0, kind=bus.Kind.CHANGES)
            await broker.say(bus.encode(kind, 5, body))
            await until(lambda: members.notices)
            ((told, counted),) = members.notices
            assert told == bus.Publication([b"cchat:1"], b"", frame, 1.0, kind=bus.Kind.CHANGES)
            counted(2)
            assert await broker.hear() == (bus.COUNT, 5, b"\2\0\0\0")

    asyncio.run(scenario())


# Places in what channels keep, and keys that make a publication one


PLACE = Position(7, 2**64 - 1)


def places() -> tuple[list[tuple[Status, int, int, Position]], OnResult]:
    found: list[tuple[Status, int, int, Position]] = []
    return found, lambda status, *rest: found.append((Status(status), *rest))


def test_the_publisher_is_told_where_it_was_kept(tmp_path: Path) -> None:
    """By the broker's result, if there is a place."""

    async def scenario() -> None:
        found, on_result = places()
        async with connected(tmp_path) as (client, broker):
            for position in (PLACE, NO_POSITION):
                request = await ask(client, broker, on_result)
                await broker.say(bus.encode_result(request, Status.DONE, 3, 1, position))
            await until(lambda: len(found) == 2)
            assert found == [(Status.DONE, 3, 1, PLACE), (Status.DONE, 3, 1, NO_POSITION)]

    asyncio.run(scenario())


def test_what_is_delivered_here_knows_its_place(tmp_path: Path) -> None:
    """DELIVER_AT with its offset, of any size, counted like any; DELIVER_OWN with it, and its publisher is told; also
    when it is not counted in time.
    """

    async def scenario() -> None:
        found, on_result = places()
        deliveries = Deliveries()
        async with connected(tmp_path, deliver=deliveries, answer_seconds=0.5) as (client, broker):
            for number, size in enumerate((5, 2 * bus.LARGE_BYTES)):
                body = bus.encode_publication([KEY], b"news", b"f" * size, taken_seconds=1.0)
                await broker.say(bus.encode(bus.DELIVER_AT, number, bus.encode_offset(99 + number) + body))
            for _ in range(2):
                request = await ask(client, broker, on_result)
                await broker.say(bus.encode(bus.DELIVER_OWN, request, bus.encode_position(PLACE)))
            await until(lambda: len(deliveries.counted) == 4)
            offsets = [publication.offset for publication in deliveries.publications]
            assert offsets == [99, 100, PLACE.offset, PLACE.offset]
            assert len(deliveries.publications[1].frame) == 2 * bus.LARGE_BYTES
            for number, counted in enumerate(deliveries.counted[:3]):
                counted(number)
            heard = await hear_all(broker, 2)
            assert [(kind, number, bus.decode_count(body)) for kind, number, body in heard] == [
                (bus.COUNT, 0, 0), (bus.COUNT, 1, 1)
            ]  # fmt: skip
            await until(lambda: len(found) == 2)
            assert found == [(Status.DONE, 2, 0, PLACE), (Status.DONE, 0, 1, PLACE)]

    asyncio.run(scenario())


def test_a_publication_with_an_idempotency_key(tmp_path: Path) -> None:
    """The broker has the key and the publication; the publisher is answered by RESULT as any; a lost link leaves it
    unknown, and the worker does not ask again by itself.
    """

    async def scenario() -> None:
        found, on_result = places()
        async with connected(tmp_path) as (client, broker):
            for key in (b"k", b"x" * bus.ONCE_BYTES_MAX):
                client.publish(OWN, on_result, key)
                kind, request, body = await broker.hear()
                assert (kind, *bus.decode_once(body)) == (bus.PUBLISH_ONCE, key, OWN)
                await broker.say(bus.encode_result(request, Status.DONE, 3, 0, PLACE))
            await until(lambda: len(found) == 2)
            assert found == [(Status.DONE, 3, 0, PLACE)] * 2
            client.publish(OWN, on_result, b"k")
            await broker.hear()
            await hang_up(client, broker)
            assert found[2:] == [(Status.UNKNOWN, 0, 0, NO_POSITION)]
            await broker.welcome()
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE  # nothing came between
            assert client._held_bytes == 0

    asyncio.run(scenario())


# Another link, and questions to all workers


def test_another_link_is_told_of_before_what_comes_by_it(tmp_path: Path) -> None:
    """Not the first one; each later one once, at WELCOME: before what was asked again is answered, and before anything
    is delivered; one that fails to say WELCOME is none.
    """

    async def scenario() -> None:
        members = FakeMembers()
        deliveries = Deliveries()
        async with connected(tmp_path, members=members, deliver=deliveries) as (client, broker):
            assert members.told == []
            client.ask(bus.JOIN, JOIN, lambda answer: members.told.append(("answer", answer)))
            _, request, _ = await broker.hear()
            await hang_up(client, broker)
            await broker.accept()
            await broker.hear_table()
            assert members.told == []
            await hang_up_unwelcome(client, broker)
            await broker.accept()
            await broker.hear_table()
            await broker.say(
                bus.encode(bus.WELCOME, 0, bus.encode_epoch(4)),
                bus.encode(bus.DELIVER, 1, OWN),
                bus.encode(bus.ANSWER, request, b"kept"),
            )
            await until(lambda: len(members.told) == 2)
            assert members.told == [("relinked",), ("answer", b"kept")] and len(deliveries.publications) == 1
            await hang_up(client, broker)
            await broker.welcome()
            await until(lambda: len(members.told) == 3)
            assert members.told[2:] == [("relinked",)]

    asyncio.run(scenario())


def test_a_keeper_that_fails_does_not_cost_the_link(tmp_path: Path) -> None:
    """The broker is asked again nevertheless."""

    class Failing(FakeMembers):
        def on_relinked(self) -> None:
            raise RuntimeError("a connection")

    async def scenario() -> None:
        async with connected(tmp_path, members=Failing()) as (client, broker):
            await hang_up(client, broker)
            await broker.welcome()
            await until(lambda: not client.unready)
            client.withdraw(KEY)
            assert (await broker.hear())[0] == bus.UNSUBSCRIBE

    asyncio.run(scenario())


def test_questions_to_all_workers(tmp_path: Path) -> None:
    """GATHER is a question like others; INQUIRE is answered with what this worker says, and not at all if it fails."""

    async def scenario() -> None:
        found: list[bytes] = []

        def inquire(body: bytes) -> bytes:
            if body == b"bad":
                raise ValueError("nothing to say")
            return b"answer to " + body

        async with connected(tmp_path, inquire=inquire) as (client, broker):
            client.ask(bus.GATHER, b"question", found.append)
            kind, request, body = await broker.hear()
            assert (kind, body) == (bus.GATHER, b"question")
            await broker.say(bus.encode(bus.INQUIRE, 8, b"bad"), bus.encode(bus.INQUIRE, 9, b"question"))
            assert await broker.hear() == (bus.FOUND, 9, b"answer to question")
            await broker.say(bus.encode(bus.ANSWER, request, b"gathered"))
            await until(lambda: found == [b"gathered"])

    asyncio.run(scenario())
