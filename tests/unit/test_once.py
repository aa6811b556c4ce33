"""fastpush.broker.once, alone and through the router: a publication with an idempotency key is sent once."""

from fastpush.broker.once import REMEMBERED_SECONDS, Once
from fastpush.broker.peer import NO_LINK, Delivery
from fastpush.config import Namespace
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Position, Status
from fastpush.protocol.push import channel_key
from tests.unit.test_router import CONFIRM_SECONDS, KEY, Broker, FakeLink

CHAT = channel_key("chat:1")
NAMESPACES = {"chat": Namespace(history_messages=10)}


def publish(broker: Broker, link: FakeLink, request: int, once: bytes = b"once", key: bytes = KEY) -> None:
    body = bus.encode_publication([key], b"news", b"frame", taken_seconds=1.0)
    broker.say(link, bus.PUBLISH_ONCE, request, bus.encode_once(once) + body)


def sent(link: FakeLink) -> int:
    return len(link.sent_of(bus.DELIVER)) + len(link.sent_of(bus.DELIVER_AT))


def test_the_same_key_after_it_was_sent() -> None:
    """It gets the same answer, at once, from whatever worker, as often as it is asked; nobody receives it again."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2)
    publish(broker, two, 1)
    broker.count(one, 3)
    assert two.results() == [(1, Status.DONE, 3, 0)]
    for link, request in ((two, 2), (one, 7), (two, 3)):
        publish(broker, link, request)
        assert link.results() == [(request, Status.DONE, 3, 0)]
    assert sent(one) == 0 and broker.router.counts["publications"] == 1


def test_the_same_key_while_it_is_under_way() -> None:
    """All who ask are answered when the first is, each with its own request."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2, KEY)
    for link, request in ((one, 1), (two, 2), (one, 3)):
        publish(broker, link, request)
    broker.count(one, 3)
    assert one.results() == two.results() == []
    broker.count(two, 4)
    assert one.results() == [(1, Status.DONE, 7, 0), (3, Status.DONE, 7, 0)]
    assert two.results() == [(2, Status.DONE, 7, 0)]
    assert sent(one) == sent(two) == 0


def test_who_does_not_count_is_told_of_to_all_who_ask() -> None:
    """The answer at the deadline is the answer; a late count changes nothing."""
    broker = Broker()
    one, two = broker.join(1, KEY), broker.join(2)
    for request in (1, 2):
        publish(broker, two, request)
    broker.wait(CONFIRM_SECONDS)
    assert two.results() == [(1, Status.DONE, 0, 1), (2, Status.DONE, 0, 1)]
    broker.count(one, 3)
    publish(broker, two, 3)
    assert two.results() == [(3, Status.DONE, 0, 1)]


def test_without_receivers_it_is_remembered_too() -> None:
    """Nobody wanted it then: who subscribes later does not get it by the repetition."""
    broker = Broker()
    one = broker.join(1)
    publish(broker, one, 1)
    broker.say(one, bus.SUBSCRIBE, 1, KEY)
    publish(broker, one, 2)
    assert one.results() == [(1, Status.DONE, 0, 0), (2, Status.DONE, 0, 0)] and sent(one) == 0


def test_only_the_publisher_s_worker_wants_it() -> None:
    """It is delivered and counted like any other: the answer is the broker's, who has to know it."""
    broker = Broker()
    one = broker.join(1, KEY)
    publish(broker, one, 1)
    assert one.take(bus.DELIVER_OWN) == [] and sent(one) == 1
    broker.count(one, 2)
    publish(broker, one, 2)
    assert one.results() == [(1, Status.DONE, 2, 0), (2, Status.DONE, 2, 0)]


def test_it_is_kept_once() -> None:
    """The repetition is told the first one's place."""
    broker = Broker(namespaces=NAMESPACES)
    one = broker.join(1, CHAT)
    publish(broker, one, 1, key=CHAT)
    number = one.take(bus.DELIVER_AT)[0][0]
    broker.say(one, bus.COUNT, number, b"\1\0\0\0")
    publish(broker, one, 2, key=CHAT)
    publish(broker, one, 3, b"another", key=CHAT)
    first, second = one.outcomes()
    assert first[4] == second[4] == Position(1, first[4].epoch)
    offset, _ = bus.decode_offset(one.take(bus.DELIVER_AT)[0][1])
    assert offset == 2


def test_what_is_refused_is_not_remembered() -> None:
    """It may be asked again, and is sent then: before every table is here, and while a worker takes no more."""
    broker = Broker(1, 2)
    one = broker.join(1)
    publish(broker, one, 1)
    two = broker.join(2, KEY)
    two.is_full = True
    publish(broker, one, 2)
    assert one.results() == [(1, Status.NOT_READY, 0, 0), (2, Status.OVERLOADED, 0, 0)]
    assert len(broker.router.once) == 0
    two.is_full = False
    publish(broker, one, 3)
    assert sent(two) == 1 and len(broker.router.once) == 1


def test_who_asked_first_may_end() -> None:
    """Others that have asked are answered; nobody hears what the dead one would have."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, KEY)
    publish(broker, one, 1)
    publish(broker, two, 2)
    broker.router.on_closed(one)
    broker.router.on_gone(1)
    broker.count(two, 1)
    assert two.results() == [(2, Status.DONE, 1, 0)]


def test_five_minutes_and_no_longer() -> None:
    """Each key from its own publication on; a repetition does not prolong it."""
    broker = Broker()
    one = broker.join(1)
    publish(broker, one, 1)
    broker.wait(REMEMBERED_SECONDS - 0.1)
    publish(broker, one, 2)
    publish(broker, one, 3, b"later")
    assert broker.router.counts["publications"] == 2
    broker.wait(0.1)
    publish(broker, one, 4)
    assert broker.router.counts["publications"] == 3 and len(broker.router.once) == 2


def test_the_oldest_go_first_over_the_limit() -> None:
    """Counted; a lower limit holds from the next one on; with 0 nothing is remembered."""
    broker = Broker(idempotency_keys=3)
    one = broker.join(1)
    for number in range(5):
        publish(broker, one, number, b"%d" % number)
    publish(broker, one, 5, b"2")
    assert broker.router.counts["publications"] == 5, "it was remembered"
    publish(broker, one, 6, b"1")
    assert broker.router.counts["publications"] == 6
    assert (len(broker.router.once), broker.router.once.forgotten) == (3, 3)
    for limit in (1, 0):
        broker.router.once.limit = limit
        publish(broker, one, 7, b"new%d" % limit)
        assert len(broker.router.once) == limit


def test_keys_without_number_leave_nothing() -> None:
    """A hundred thousand that are never repeated are gone after their time."""
    now = 0.0
    once = Once(10**7, lambda: now)
    for number in range(100_000):
        now = number / 100
        assert once.find(b"%d" % number) is None
        once.remember(b"%d" % number, Delivery(NO_LINK, number, 0, 0, 0.0, NO_POSITION))
    assert len(once) == 100 * REMEMBERED_SECONDS
    now += REMEMBERED_SECONDS
    assert once.find(b"another") is None
    assert (len(once), once.forgotten) == (0, 0)
