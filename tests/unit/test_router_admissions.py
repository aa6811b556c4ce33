"""fastpush.broker.router: connections of a name are counted over all workers, and only when all are known."""

from fastpush.protocol import bus
from tests.unit.test_router import RESYNC_SECONDS, Broker, FakeLink

NAME = b"ujack"


def ask(broker: Broker, link: FakeLink, request: int, limit: int = 1, name: bytes = NAME) -> None:
    broker.say(link, bus.ADMIT, request, bus.encode_admit(name, limit))


def answers(link: FakeLink) -> list[tuple[int, bool]]:
    return [(number, body == b"\1") for number, body in link.take(bus.ADMITTED)]


def test_limit_over_all_workers() -> None:
    """The limit holds over all workers; a release makes room."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one, 1)
    ask(broker, two, 2)
    ask(broker, two, 3, name=b"ujill")
    assert answers(one) == [(1, True)] and answers(two) == [(2, False), (3, True)]
    broker.say(one, bus.RELEASE, 0, NAME)
    ask(broker, two, 4)
    assert answers(two) == [(4, True)]


def test_new_broker_answers_when_every_table_is_here() -> None:
    """While a worker's table is missing nobody is admitted and nobody refused; what it holds counts."""
    broker = Broker(1, 2)
    one = broker.join(1)
    ask(broker, one, 1)
    ask(broker, one, 2, limit=2)
    assert answers(one) == []
    two = FakeLink()
    broker.say(two, bus.HELLO, 2)
    broker.say(two, bus.HOLD, 1, NAME)
    broker.say(two, bus.COMPLETE, 1)
    assert answers(one) == [(1, False), (2, True)]


def test_worker_that_ends_leaves_nothing() -> None:
    """Admissions of a worker count while it may come back, and are free once it has ended."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one, 1)
    broker.router.on_closed(one)
    ask(broker, two, 2)
    assert answers(two) == []
    broker.router.on_gone(1)
    assert answers(two) == [(2, True)] and len(broker.router.admissions) == 1


def test_worker_that_ends_first_and_closes_later_leaves_nothing() -> None:
    """The supervisor's word may come before the end of the link."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one, 1)
    broker.router.on_gone(1)
    broker.router.on_closed(one)
    ask(broker, two, 2)
    assert answers(two) == [(2, True)]


def test_table_replaces_what_was_held_before() -> None:
    """A worker that comes back counts with its new table alone: nothing twice, nothing that ended meanwhile."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    for request in range(3):
        ask(broker, one, request, limit=9)
    broker.router.on_closed(one)
    again = FakeLink()
    broker.say(again, bus.HELLO, 1)
    broker.say(again, bus.HOLD, 1, NAME)
    ask(broker, two, 7, limit=2)
    assert answers(two) == []
    broker.say(again, bus.COMPLETE, 1)
    assert answers(two) == [(7, True)]
    ask(broker, two, 8, limit=2)
    assert answers(two) == [(8, False)]


def test_drained_worker_leaves_nothing() -> None:
    """A worker that says GOODBYE takes its admissions with it."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one, 1)
    broker.say(one, bus.GOODBYE)
    broker.router.on_closed(one)
    ask(broker, two, 2)
    assert answers(two) == [(2, True)]


def test_asker_that_is_lost_is_not_answered() -> None:
    """A question dies with its link: the worker asks again on the next one."""
    broker = Broker(1, 2)
    one = broker.join(1)
    ask(broker, one, 1)
    broker.router.on_closed(one)
    again = broker.join(1)
    broker.join(2)
    assert answers(one) == [] and answers(again) == [] and len(broker.router.admissions) == 0


def test_worker_that_does_not_come_is_reported() -> None:
    """Nobody waits for ever: a missing table is reported, and its worker's end answers who waits."""
    broker = Broker(1, 2)
    one = broker.join(1)
    ask(broker, one, 1)
    broker.wait(RESYNC_SECONDS)
    assert broker.stalled == [2]
    broker.router.on_gone(2)
    assert answers(one) == [(1, True)]
