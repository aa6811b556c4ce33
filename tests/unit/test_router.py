"""fastpush.broker.router: order, counts, resynchronisation and refusals, with fake links and a fake clock."""

import orjson
import pytest

from fastpush.broker.inquiries import ANSWER_SECONDS
from fastpush.broker.router import Router
from fastpush.config import Bus, Config, Limits, Namespace
from fastpush.protocol import bus, control
from fastpush.protocol.bus import NO_POSITION, Position, Status

CONFIRM_SECONDS, RESYNC_SECONDS = 1.0, 2.0
WALL_SECONDS = 1_800_000_000.0  # what Unix time is ahead of the clock
KEY, OTHER = b"u4:jacknews", b"u4:jillnews"


class FakeLink:
    """Keeps what it is sent, decoded."""

    def __init__(self) -> None:
        self.is_full = False
        self.queued_bytes = 0
        self.is_closed = False
        self._decoder = bus.Decoder(10**6)
        self.sent: list[tuple[int, int, bytes]] = []

    def send(self, *parts: bytes) -> None:
        self.sent += self._decoder.feed(b"".join(parts))

    def close(self) -> None:
        self.is_closed = True

    def take(self, kind: int) -> list[tuple[int, bytes]]:
        """Return number and body of each message of a kind, once."""
        found = self.sent_of(kind)
        self.sent = [message for message in self.sent if message[0] != kind]
        return found

    def sent_of(self, kind: int) -> list[tuple[int, bytes]]:
        """Return number and body of each message of a kind."""
        return [(number, body) for of_kind, number, body in self.sent if of_kind == kind]

    def outcomes(self) -> list[tuple[int, Status, int, int, Position]]:
        """Return what became of pushes, once: request, status, connections, workers that did not count, its place."""
        answers = [(number, *bus.decode_result(body)) for number, body in self.take(bus.RESULT)]
        return [(number, Status(status), *rest) for number, status, *rest in answers]

    def results(self) -> list[tuple[int, Status, int, int]]:
        """Return the same of pushes that no channel has kept."""
        found = self.outcomes()
        assert {outcome[-1] for outcome in found} <= {NO_POSITION}
        return [outcome[:-1] for outcome in found]


class Broker:
    """A router, its clock, and what it has reported."""

    def __init__(
        self, *workers: int, queue_bytes: int = 1_000_000, history_bytes: int = 1_000_000, idempotency_keys: int = 1000,
        namespaces: dict[str, Namespace] | None = None,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.stalled: list[int] = []
        config = Config(
            bus=Bus(queue_bytes=queue_bytes, history_bytes=history_bytes, confirm_ms=round(CONFIRM_SECONDS * 1000)),
            limits=Limits(idempotency_keys=idempotency_keys),
            channels=namespaces or {},
        )
        self.router = Router(
            0xE0, workers, config, clock=lambda: self.now, resync_seconds=RESYNC_SECONDS, started_seconds=7.0,
            wall_clock=lambda: self.now + WALL_SECONDS, on_stalled=self.stalled.append,
        )  # fmt: skip

    def say(self, link: FakeLink, kind: int, number: int = 0, body: bytes = b"") -> None:
        self.router.on_message(link, kind, number, body)

    def join(self, number: int, *keys: bytes, link: FakeLink | None = None) -> FakeLink:
        """Connect a worker, with its key table."""
        link = link or FakeLink()
        self.say(link, bus.HELLO, number)
        for key in keys:
            self.say(link, bus.SUBSCRIBE, 0, key)
        self.say(link, bus.COMPLETE, 1)
        return link

    def push(self, link: FakeLink, request: int, *keys: bytes) -> None:
        self.say(
            link,
            bus.PUBLISH,
            request,
            bus.encode_publication(list(keys) or [KEY], b"news", b"frame", taken_seconds=1.0),
        )

    def count(self, link: FakeLink, connections: int) -> None:
        """Count the oldest publication that the worker has not counted."""
        position = next(at for at, message in enumerate(link.sent) if message[0] in {bus.DELIVER, bus.OBEY})
        number = link.sent.pop(position)[1]
        self.say(link, bus.COUNT, number, bus.encode_count(number, connections)[13:])

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.router.tick()


# Order and counts


def test_a_push_reaches_every_worker_with_its_key_and_counts_their_sum() -> None:
    """The answer comes with the last count, and is the sum."""
    broker = Broker()
    one, two, three = broker.join(1, KEY), broker.join(2, KEY), broker.join(3, OTHER)
    broker.push(three, 7)
    assert [len(link.take(bus.DELIVER)) for link in (one, two, three)] == [1, 1, 0]
    broker.push(three, 8)
    broker.count(one, 3)
    assert three.results() == []
    broker.count(two, 2)
    assert three.results() == [(8, Status.DONE, 5, 0)]


def test_delivered_body_is_the_published_one() -> None:
    """What the worker encoded goes on as it is."""
    broker = Broker()
    asker, link = broker.join(1), broker.join(2, KEY)
    broker.push(asker, 1)
    assert link.take(bus.DELIVER)[0][1] == bus.encode_publication([KEY], b"news", b"frame", taken_seconds=1.0)


def test_one_message_carries_all_keys_of_a_push_to_a_worker() -> None:
    """A worker that wants several of its keys gets the push once."""
    broker = Broker()
    one, two = broker.join(1, KEY, OTHER), broker.join(2, OTHER)
    broker.push(one, 1, KEY, OTHER)
    assert [len(link.take(bus.DELIVER)) for link in (one, two)] == [1, 1]


def test_a_push_that_nobody_wants_counts_nobody_at_once() -> None:
    """No subscriber, no waiting."""
    broker = Broker()
    link = broker.join(1)
    broker.push(link, 1)
    assert link.results() == [(1, Status.DONE, 0, 0)]


def test_all_workers_see_pushes_in_one_order() -> None:
    """Numbers grow in the order in which the broker took the pushes, whoever sent them."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY)
    for request in range(50):
        broker.push((one, two)[request % 2], request)
    numbers = [number for number, _ in one.take(bus.DELIVER)]
    assert numbers == sorted(set(numbers)) == [number for number, _ in two.take(bus.DELIVER)]
    assert len(numbers) == 50


def test_subscribed_then_pushed_then_withdrawn() -> None:
    """A key counts from its confirmation and no longer than to its withdrawal, in the order of the stream."""
    broker = Broker()
    asker, link = broker.join(1), broker.join(2)
    broker.say(link, bus.SUBSCRIBE, 5, KEY)
    assert link.take(bus.SUBSCRIBED)[-1][0] == 5
    broker.push(asker, 1)
    assert len(link.take(bus.DELIVER)) == 1
    broker.say(link, bus.UNSUBSCRIBE, 0, KEY)
    broker.push(asker, 2)
    assert asker.results() == [(2, Status.DONE, 0, 0)]
    assert len(broker.router.routes) == 0


def test_drop_goes_to_every_worker() -> None:
    """Where a user's connections are is not known by user: all are asked."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    broker.say(one, bus.ORDER, 9, b'["jack",null]')
    broker.count(one, 1)
    broker.count(two, 4)
    assert one.results() == [(9, Status.DONE, 5, 0)]


# A push that only its own worker wants


def test_a_push_that_only_the_asking_worker_wants_is_left_to_it() -> None:
    """It gets its request's number and nothing else: no body, no answer later, nothing to count, no debt."""
    broker = Broker(queue_bytes=1)
    link, _ = broker.join(1, KEY), broker.join(2, OTHER)
    link.sent.clear()
    for request in (7, 8):
        broker.push(link, request)
    broker.wait(2 * CONFIRM_SECONDS)
    assert link.sent == [(bus.DELIVER_OWN, 7, b""), (bus.DELIVER_OWN, 8, b"")]
    assert broker.router.counts == {"publications": 2, "refused": 0, "unconfirmed": 0, "workers_lost": 0}
    assert [peer.uncounted_bytes for peer in broker.router._peers.values()] == [0, 0]
    broker.router.on_closed(link)
    assert broker.router.counts["unconfirmed"] == 0


def test_several_keys_of_the_asking_worker_alone_are_one_push() -> None:
    """What counts is who wants it, not how many of its keys."""
    broker = Broker()
    link = broker.join(1, KEY, OTHER)
    broker.push(link, 1, KEY, OTHER, b"nobody's")
    assert link.take(bus.DELIVER_OWN) == [(1, b"")]
    assert link.take(bus.DELIVER) == []


@pytest.mark.parametrize("keys", [(KEY,), (OTHER, KEY)])
def test_with_another_worker_the_asking_one_counts_like_any(keys: tuple[bytes, ...]) -> None:
    """Both get the body under one number, and the answer is the sum of their counts."""
    broker = Broker()
    asker, other = broker.join(1, *keys), broker.join(2, KEY)
    broker.push(asker, 1, *keys)
    assert asker.take(bus.DELIVER_OWN) == []
    assert [message for message in asker.sent if message[0] == bus.DELIVER] == [
        message for message in other.sent if message[0] == bus.DELIVER
    ]
    broker.count(asker, 2)
    assert asker.results() == []
    broker.count(other, 3)
    assert asker.results() == [(1, Status.DONE, 5, 0)]


def test_own_pushes_and_those_of_others_stay_in_the_order_taken() -> None:
    """A worker hears of both on one stream, in the order in which the broker took them."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2)
    askers = (one, two, two, one, two, one)
    for request, asker in enumerate(askers):
        broker.push(asker, request)
    kinds = [kind for kind, _, _ in one.sent if kind in {bus.DELIVER, bus.DELIVER_OWN}]
    assert kinds == [bus.DELIVER_OWN if asker is one else bus.DELIVER for asker in askers]
    assert [request for request, _ in one.take(bus.DELIVER_OWN)] == [0, 3, 5]


def test_an_own_push_is_refused_like_any() -> None:
    """While a table is missing, the worker's link is full, or it owes counts up to the bound."""
    broker = Broker(1, 2, queue_bytes=1)
    link = broker.join(1, KEY)
    broker.push(link, 1)
    other = broker.join(2)
    link.is_full = True
    broker.push(link, 2)
    link.is_full = False
    broker.push(other, 3)
    broker.push(link, 4)
    assert link.results() == [(1, Status.NOT_READY, 0, 0), (2, Status.OVERLOADED, 0, 0), (4, Status.OVERLOADED, 0, 0)]
    assert link.take(bus.DELIVER_OWN) == []
    broker.count(link, 1)
    broker.push(link, 5)
    assert link.take(bus.DELIVER_OWN) == [(5, b"")]
    assert broker.router.counts == {"publications": 2, "refused": 3, "unconfirmed": 0, "workers_lost": 0}


def test_a_worker_whose_table_is_not_whole_again_has_no_own_pushes() -> None:
    """Keys of its earlier table stand until COMPLETE, and what one of them wants is refused."""
    broker = Broker()
    broker.router.on_closed(broker.join(1, KEY))
    link = FakeLink()
    broker.say(link, bus.HELLO, 1)
    broker.say(link, bus.SUBSCRIBE, 0, KEY)
    broker.push(link, 1)
    assert link.results() == [(1, Status.NOT_READY, 0, 0)]
    broker.say(link, bus.COMPLETE, 1)
    broker.push(link, 2)
    assert link.take(bus.DELIVER_OWN) == [(2, b"")]


# Who does not count


def test_unconfirmed_at_the_deadline_and_not_before() -> None:
    """A worker that does not count in time contributes 0; its late count changes nothing."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY)
    broker.push(one, 1)
    broker.count(one, 3)
    broker.wait(CONFIRM_SECONDS - 0.001)
    assert one.results() == []
    broker.wait(0.001)
    assert one.results() == [(1, Status.DONE, 3, 1)]
    broker.count(two, 2)
    assert one.results() == []
    assert broker.router.counts == {"publications": 1, "refused": 0, "unconfirmed": 1, "workers_lost": 0}


def test_each_push_has_its_own_deadline() -> None:
    """A later push is not answered with an earlier one."""
    broker = Broker()
    asker, _ = broker.join(1), broker.join(2, KEY)
    broker.push(asker, 1)
    broker.wait(0.5)
    broker.push(asker, 2)
    broker.wait(0.5)
    assert asker.results() == [(1, Status.DONE, 0, 1)]
    broker.wait(0.5)
    assert asker.results() == [(2, Status.DONE, 0, 1)]


def test_a_worker_that_dies_answers_for_itself_at_once() -> None:
    """Its share of every push under way is 0 and unconfirmed; nobody waits for a deadline."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY)
    for request in (1, 2):
        broker.push(one, request)
    broker.count(one, 1)
    broker.count(one, 1)
    broker.router.on_closed(two)
    assert one.results() == [(1, Status.DONE, 1, 1), (2, Status.DONE, 1, 1)]


def test_the_asking_worker_may_die_first() -> None:
    """An answer that nobody waits for goes nowhere."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    broker.push(one, 1)
    broker.router.on_closed(one)
    broker.router.on_gone(1)
    broker.count(two, 1)
    assert two.results() == []


def test_refused_to_all_when_one_link_is_full() -> None:
    """All or none: a push of which one worker cannot take its copy is sent to nobody."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY)
    two.is_full = True
    broker.push(one, 1)
    assert one.results() == [(1, Status.OVERLOADED, 0, 0)]
    assert one.take(bus.DELIVER) == two.take(bus.DELIVER) == []
    broker.push(one, 2, OTHER)
    assert one.results() == [(2, Status.DONE, 0, 0)]
    assert broker.router.counts["refused"] == 1


# What a worker has not counted


BODY_BYTES = len(bus.encode_publication([KEY], b"news", b"frame", taken_seconds=1.0))


def test_what_a_worker_has_not_counted_is_bounded() -> None:
    """A worker that takes pushes and counts none gets queue_bytes of them and the one that reaches the bound; then its
    pushes are refused, to all their workers or none, and those that it has no part in are not.
    """
    broker = Broker(queue_bytes=3 * BODY_BYTES - 1)
    busy, quick = broker.join(1, KEY), broker.join(2, KEY, OTHER)
    for request in range(3):
        broker.push(quick, request)
        broker.count(quick, 1)
    broker.push(quick, 3)
    assert quick.results() == [(3, Status.OVERLOADED, 0, 0)]
    assert (len(busy.take(bus.DELIVER)), quick.take(bus.DELIVER)) == (3, [])
    broker.push(busy, 4, OTHER)
    broker.count(quick, 1)
    assert busy.results() == [(4, Status.DONE, 1, 0)]
    assert broker.router.counts["refused"] == 1


def test_a_count_makes_room_again() -> None:
    """Each count gives back its own push's bytes, in whatever order they come; counted twice, it gives back nothing."""
    broker = Broker(queue_bytes=2 * BODY_BYTES)
    asker, link = broker.join(1), broker.join(2, KEY)
    for request in range(2):
        broker.push(asker, request)
    first, second = (number for number, _ in link.take(bus.DELIVER))
    broker.push(asker, 2)
    assert asker.results() == [(2, Status.OVERLOADED, 0, 0)]
    for _ in range(2):
        broker.say(link, bus.COUNT, second, bus.encode_count(second, 1)[13:])
    broker.push(asker, 3)
    broker.push(asker, 4)
    assert asker.results() == [(1, Status.DONE, 1, 0), (4, Status.OVERLOADED, 0, 0)]
    broker.say(link, bus.COUNT, first, bus.encode_count(first, 1)[13:])
    broker.count(link, 1)
    assert [answer[:2] for answer in asker.results()] == [(0, Status.DONE), (3, Status.DONE)]
    assert [peer.uncounted_bytes for peer in broker.router._peers.values()] == [0, 0]


def test_what_is_late_is_owed_until_it_is_counted() -> None:
    """What was reported as unconfirmed may still wait in the worker, and weighs until its count comes; closing a user's
    connections weighs like a push.
    """
    broker = Broker(queue_bytes=1)
    link = broker.join(1, KEY)
    broker.say(link, bus.ORDER, 1, b'["jack",null]')
    asker = broker.join(2)
    broker.push(asker, 2)
    assert asker.results() == [(2, Status.OVERLOADED, 0, 0)]
    broker.wait(CONFIRM_SECONDS)
    assert link.results() == [(1, Status.DONE, 0, 1)]
    broker.push(asker, 3)
    assert asker.results() == [(3, Status.OVERLOADED, 0, 0)]
    ((number, _),) = link.take(bus.OBEY)
    broker.say(link, bus.COUNT, number, b"\1\0\0\0")
    assert link.results() == []
    broker.push(asker, 4)
    assert len(link.take(bus.DELIVER)) == 1


def test_a_worker_that_returns_owes_nothing() -> None:
    """A lost link takes its debts with it: the worker's new one has the whole bound again."""
    broker = Broker(queue_bytes=1)
    asker, busy = broker.join(1), broker.join(2, KEY)
    broker.push(asker, 1)
    broker.router.on_closed(busy)
    assert asker.results() == [(1, Status.DONE, 0, 1)]
    broker.push(asker, 2)
    assert asker.results() == [(2, Status.NOT_READY, 0, 0)]
    returned = broker.join(2, KEY)
    broker.push(asker, 3)
    assert len(returned.take(bus.DELIVER)) == 1


# A new broker


def test_new_broker_takes_no_push_before_every_table() -> None:
    """Refused, to everybody, until the last live worker has said all its keys."""
    broker = Broker(1, 2)
    one = broker.join(1, KEY)
    assert one.take(bus.WELCOME) == [(0, bus.encode_epoch(0xE0))]
    assert one.take(bus.SUBSCRIBED) == [(1, b"")]
    broker.push(one, 1)
    broker.say(one, bus.ORDER, 2, b'["jack",null]')
    assert one.results() == [(1, Status.NOT_READY, 0, 0), (2, Status.NOT_READY, 0, 0)]
    assert not broker.router.is_ready
    two = FakeLink()
    broker.say(two, bus.HELLO, 2)
    broker.say(two, bus.SUBSCRIBE, 0, KEY)
    broker.push(one, 3)
    assert one.results() == [(3, Status.NOT_READY, 0, 0)]
    broker.say(two, bus.COMPLETE, 1)
    assert broker.router.is_ready
    broker.push(one, 4)
    assert [len(link.take(bus.DELIVER)) for link in (one, two)] == [1, 1]


def test_a_dead_worker_is_not_waited_for() -> None:
    """The supervisor's word that it has ended stands for its table."""
    broker = Broker(1, 2, 3)
    one, asker = broker.join(1, KEY), broker.join(3)
    broker.router.on_gone(2)
    broker.push(asker, 1)
    assert len(one.take(bus.DELIVER)) == 1


def test_a_missing_table_is_reported_until_it_comes() -> None:
    """After resync_seconds, and again and again: the word to kill may be lost."""
    broker = Broker(1, 2)
    broker.join(1)
    broker.wait(RESYNC_SECONDS - 0.001)
    assert broker.stalled == []
    broker.wait(0.001)
    assert broker.stalled == [2]
    broker.wait(RESYNC_SECONDS)
    assert broker.stalled == [2, 2]
    broker.join(2)
    broker.wait(RESYNC_SECONDS)
    assert broker.stalled == [2, 2]
    assert broker.router.is_ready


def test_an_incomplete_table_is_worth_nothing() -> None:
    """A worker that loses its link in the middle of its table is still missing, and leaves no keys."""
    broker = Broker(1)
    link = FakeLink()
    broker.say(link, bus.HELLO, 1)
    broker.say(link, bus.SUBSCRIBE, 0, KEY)
    broker.router.on_closed(link)
    assert len(broker.router.routes) == 0
    assert not broker.router.is_ready
    broker.join(1, KEY)
    assert broker.router.is_ready


def test_a_worker_that_is_still_starting_is_not_waited_for() -> None:
    """Nobody can have registered with it."""
    broker = Broker(1, 2)
    one, asker = broker.join(1, KEY), broker.join(2)
    starting = FakeLink()
    broker.say(starting, bus.HELLO, 3)
    broker.push(asker, 1)
    assert len(one.take(bus.DELIVER)) == 1


# A link that breaks


def test_a_lost_link_hides_nobody() -> None:
    """Until its worker is back, a push that it would have a share in is refused; all others pass."""
    broker = Broker()
    one, two, asker = broker.join(1, OTHER), broker.join(2, KEY), broker.join(3)
    broker.router.on_closed(two)
    broker.push(one, 1, KEY)
    broker.push(one, 2, KEY, OTHER)
    broker.say(one, bus.ORDER, 3, b'["jack",null]')
    assert one.results() == [(n, Status.NOT_READY, 0, 0) for n in (1, 2, 3)]
    assert one.take(bus.DELIVER) == one.take(bus.OBEY) == []
    broker.push(asker, 4, OTHER)
    assert len(one.take(bus.DELIVER)) == 1


def test_a_returning_worker_s_table_replaces_its_old_one() -> None:
    """What it has withdrawn meanwhile is forgotten; before COMPLETE the old keys stand."""
    broker = Broker()
    one, old = broker.join(1), broker.join(2, KEY)
    broker.router.on_closed(old)
    new = FakeLink()
    broker.say(new, bus.HELLO, 2)
    broker.say(new, bus.SUBSCRIBE, 0, OTHER)
    broker.push(one, 1, KEY)
    assert one.results() == [(1, Status.NOT_READY, 0, 0)]
    broker.say(new, bus.COMPLETE, 1)
    broker.push(one, 2, KEY)
    broker.push(one, 3, OTHER)
    assert one.results() == [(2, Status.DONE, 0, 0)]
    assert len(new.take(bus.DELIVER)) == 1
    broker.wait(10 * RESYNC_SECONDS)
    assert broker.stalled == []


def test_a_second_loss_before_the_table_is_complete_changes_nothing() -> None:
    """The last whole table stands."""
    broker = Broker()
    one, old = broker.join(1), broker.join(2, KEY)
    broker.router.on_closed(old)
    halfway = FakeLink()
    broker.say(halfway, bus.HELLO, 2)
    broker.say(halfway, bus.SUBSCRIBE, 0, OTHER)
    broker.router.on_closed(halfway)
    broker.push(one, 1, KEY)
    broker.push(one, 2, OTHER)
    assert one.results() == [(1, Status.NOT_READY, 0, 0), (2, Status.DONE, 0, 0)]


def test_hello_on_a_second_link_ends_the_first() -> None:
    """A worker has one link: the older one is closed, and counts no more."""
    broker = Broker()
    one, old = broker.join(1), broker.join(2, KEY)
    broker.push(one, 1)
    new = broker.join(2, KEY)
    assert old.is_closed
    assert one.results() == [(1, Status.DONE, 0, 1)]
    broker.router.on_closed(old)
    broker.push(one, 2)
    assert len(new.take(bus.DELIVER)) == 1
    assert broker.router.routes.subscribers(KEY) and len(broker.router.routes) == 1


def test_a_lost_worker_that_does_not_return_is_reported() -> None:
    """It has resync_seconds, like a worker that a new broker waits for."""
    broker = Broker()
    broker.router.on_closed(broker.join(2, KEY))
    broker.wait(RESYNC_SECONDS)
    assert broker.stalled == [2]


def test_a_dead_worker_takes_its_keys_with_it() -> None:
    """Whether its link or the supervisor tells first."""
    for link_first in (True, False):
        broker = Broker()
        one, two = broker.join(1), broker.join(2, KEY, OTHER)
        if link_first:
            broker.router.on_closed(two)
        broker.router.on_gone(2)
        if not link_first:
            broker.router.on_closed(two)
        assert len(broker.router.routes) == 0
        broker.push(one, 1)
        assert one.results() == [(1, Status.DONE, 0, 0)]
        broker.wait(10 * RESYNC_SECONDS)
        assert broker.stalled == []


def test_what_a_worker_said_before_its_end_is_still_heard() -> None:
    """Its last counts may come after the supervisor's word; a link that stays open behind that is closed."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    broker.push(one, 1)
    broker.router.on_gone(2)
    broker.count(two, 3)
    assert one.results() == [(1, Status.DONE, 3, 0)]
    broker.wait(RESYNC_SECONDS + 0.001)
    assert two.is_closed
    assert len(broker.router.routes) == 0


def test_a_late_connection_of_a_dead_worker_is_refused() -> None:
    """It may have waited in the listener's queue: nobody is behind it."""
    broker = Broker()
    broker.router.on_gone(2)
    with pytest.raises(bus.BusError, match="has ended"):
        broker.join(2, KEY)
    assert broker.router.is_idle


def test_goodbye_is_no_loss() -> None:
    """A worker that has drained is not waited for, and its figures stay in the sums."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    broker.say(two, bus.SNAPSHOT, 0, orjson.dumps({"counters": {"deliveries": 5}, "gauges": {}}))
    broker.say(two, bus.GOODBYE)
    broker.router.on_closed(two)
    broker.push(one, 1)
    assert one.results() == [(1, Status.DONE, 0, 0)]
    broker.wait(10 * RESYNC_SECONDS)
    assert broker.stalled == []
    broker.say(one, bus.SCRAPE, 9)
    broker.wait(ANSWER_SECONDS)
    assert orjson.loads(one.take(bus.REPORT)[0][1])["departed"] == {"deliveries": 5}


def test_nonsense_is_a_bus_error() -> None:
    """Before HELLO only HELLO; later only what workers say."""
    broker = Broker()
    with pytest.raises(bus.BusError, match="before HELLO"):
        broker.push(FakeLink(), 1)
    link = broker.join(1)
    with pytest.raises(bus.BusError, match="unknown"):
        broker.say(link, bus.DELIVER, 1)


# Figures


def snapshot(deliveries: int) -> bytes:
    return orjson.dumps({"counters": {"deliveries": deliveries}, "gauges": {}})


def scrape(broker: Broker, link: FakeLink) -> dict:
    (report,) = link.take(bus.REPORT)
    assert report[0] == 77
    return orjson.loads(report[1])


def test_scrape_asks_all_and_answers_with_the_last() -> None:
    """Each worker measures; the report comes when all have."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY, OTHER)
    broker.say(one, bus.SCRAPE, 77)
    for link, deliveries in ((one, 3), (two, 4)):
        assert link.take(bus.REPORT) == []
        ((number, _),) = link.take(bus.MEASURE)
        broker.say(link, bus.SNAPSHOT, number, snapshot(deliveries))
    report = scrape(broker, one)
    assert report["workers"]["1"]["counters"] == {"deliveries": 3}
    assert report["workers"]["2"]["counters"] == {"deliveries": 4}
    assert (report["broker"]["routes"], report["broker"]["workers"], report["stale"]) == (2, 2, [])


def test_scrape_does_not_wait_for_a_worker_that_is_silent() -> None:
    """After a quarter of a second its last figures are shown, and it is named."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    broker.say(two, bus.SNAPSHOT, 0, snapshot(4))
    broker.say(one, bus.SCRAPE, 77)
    broker.say(one, bus.SNAPSHOT, one.take(bus.MEASURE)[0][0], snapshot(3))
    broker.wait(ANSWER_SECONDS)
    report = scrape(broker, one)
    assert report["workers"]["2"]["counters"] == {"deliveries": 4}
    assert report["stale"] == [2]


def test_figures_of_a_lost_worker_are_counted_once() -> None:
    """Lost, back or dead: its counters are in the report exactly once."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    broker.say(two, bus.SNAPSHOT, 0, snapshot(4))

    def total() -> int:
        broker.say(one, bus.SCRAPE, 77)
        broker.wait(ANSWER_SECONDS)
        report = scrape(broker, one)
        counters = [worker.get("counters", {}) for worker in report["workers"].values()]
        return sum(counts.get("deliveries", 0) for counts in [*counters, report["departed"]])

    assert total() == 4
    broker.router.on_closed(two)
    assert total() == 4
    new = broker.join(2)
    assert total() == 4
    broker.say(new, bus.SNAPSHOT, 0, snapshot(6))
    assert total() == 6
    broker.router.on_closed(new)
    broker.router.on_gone(2)
    assert total() == 6


def figures(broker: Broker, link: FakeLink) -> dict:
    """A report in which only `link`'s worker measures."""
    broker.say(link, bus.SCRAPE, 77)
    for number, _ in link.take(bus.MEASURE):
        broker.say(link, bus.SNAPSHOT, number, snapshot(0))
    broker.wait(ANSWER_SECONDS)
    return scrape(broker, link)


@pytest.mark.parametrize("order", ["link", "supervisor"])
def test_a_worker_that_ends_without_goodbye_is_counted_as_lost(order: str) -> None:
    """Once, whether its link or the supervisor tells first; until its end is known it is stale."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    if order == "link":
        broker.router.on_closed(two)
        report = figures(broker, one)
        assert (report["stale"], report["broker"]["workers_lost"]) == ([2], 0)
        broker.router.on_gone(2)
    else:
        broker.router.on_gone(2)
        broker.router.on_closed(two)
    report = figures(broker, one)
    assert (report["stale"], report["broker"]["workers_lost"]) == ([], 1)


@pytest.mark.parametrize("order", ["link", "supervisor"])
def test_a_worker_that_drained_is_not_lost(order: str) -> None:
    """GOODBYE counts, whoever tells of its end first, and also where it came over a second link."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    if order == "supervisor":
        broker.router.on_gone(2)
    else:
        broker.router.on_closed(two)
        two = broker.join(2)
    broker.say(two, bus.GOODBYE)
    broker.router.on_closed(two)
    if order == "link":
        broker.router.on_gone(2)
    assert figures(broker, one)["broker"]["workers_lost"] == 0


def test_a_worker_that_a_new_broker_never_meets_is_lost() -> None:
    """It ends before its table has come: its counts are known to nobody."""
    broker = Broker(1, 2)
    one = broker.join(1)
    broker.router.on_gone(2)
    assert broker.router.counts["workers_lost"] == 1 and broker.router.is_ready
    assert figures(broker, one)["broker"]["workers_lost"] == 1


def test_a_report_tells_what_only_the_broker_knows() -> None:
    """Of each worker what waits for it and what it has not counted; restarts, and the broker's own start."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    broker.push(one, 1)
    two.queued_bytes = 4000
    broker.router.restarts = control.Restarts(workers=3, broker=1)
    report = figures(broker, one)
    assert report["workers"]["1"]["gauges"] == {"broker_queue_bytes": 0, "broker_uncounted_bytes": 0}
    assert report["workers"]["2"]["gauges"] == {"broker_queue_bytes": 4000, "broker_uncounted_bytes": BODY_BYTES}
    told = {name: report["broker"][name] for name in ("restarts_worker", "restarts_broker", "start_time_seconds")}
    assert told == {"restarts_worker": 3, "restarts_broker": 1, "start_time_seconds": 7.0}
