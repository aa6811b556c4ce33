"""fastpush.broker.inquiries, alone and through the router: a question to all workers has one answer, soon."""

import pytest

from fastpush.broker.inquiries import ANSWER_SECONDS, Inquiries, Inquiry
from fastpush.broker.peer import Peer
from fastpush.protocol import bus
from tests.unit.test_router import Broker, FakeLink

QUESTION = b'["info"]'


def ask(broker: Broker, link: FakeLink, request: int = 5) -> None:
    broker.say(link, bus.GATHER, request, QUESTION)


def asked(link: FakeLink) -> list[int]:
    """The numbers of the questions that a worker was asked, once."""
    found = link.take(bus.INQUIRE)
    assert {body for _, body in found} <= {QUESTION}
    return [number for number, _ in found]


def found(link: FakeLink) -> list[tuple[int, list[bytes], int]]:
    """Request, what each worker has said, and how many have not, once."""
    answers = [(request, bus.unpack_gathered(body)) for request, body in link.take(bus.ANSWER)]
    return [(request, sorted(answer.found), answer.missing) for request, answer in answers]


def test_every_worker_is_asked_and_the_last_answer_ends_it() -> None:
    """The one that asked too."""
    broker = Broker()
    links = [broker.join(number) for number in (1, 2, 3)]
    ask(broker, links[0])
    for number, link in enumerate(links):
        assert found(links[0]) == []
        (inquiry,) = asked(link)
        broker.say(link, bus.FOUND, inquiry, b"%d" % number)
    assert found(links[0]) == [(5, [b"0", b"1", b"2"], 0)]


def test_a_silent_worker_is_counted_as_missing() -> None:
    """At the deadline, not before; its late answer is nobody's."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one)
    broker.say(one, bus.FOUND, asked(one)[0], b"one")
    broker.wait(ANSWER_SECONDS - 0.001)
    assert found(one) == []
    broker.wait(0.001)
    assert found(one) == [(5, [b"one"], 1)]
    broker.say(two, bus.FOUND, asked(two)[0], b"late")
    broker.wait(10)
    assert found(one) == [] and broker.router._inquiries._open == {}


def test_a_full_worker_is_not_asked() -> None:
    """And missing in the answer."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    two.is_full = True
    ask(broker, one)
    broker.say(one, bus.FOUND, asked(one)[0], b"one")
    assert asked(two) == []
    broker.wait(ANSWER_SECONDS)
    assert found(one) == [(5, [b"one"], 1)]


@pytest.mark.parametrize("has_ended", [False, True])
def test_nobody_waits_for_a_worker_that_has_gone(has_ended: bool) -> None:  # noqa: FBT001
    """What it would have told of has ended with it; one whose link is broken only is missing, then and later."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one)
    broker.say(one, bus.FOUND, asked(one)[0], b"one")
    if has_ended:
        broker.router.on_gone(2)
    broker.router.on_closed(two)
    assert found(one) == [(5, [b"one"], int(not has_ended))]
    ask(broker, one, 6)
    broker.say(one, bus.FOUND, asked(one)[0], b"one")
    assert found(one) == [(6, [b"one"], int(not has_ended))]


def test_workers_that_a_new_broker_has_not_heard_of_are_missing() -> None:
    """They have connections that nobody could ask; one that has come and not told its table yet is asked."""
    broker = Broker(1, 2, 3)
    one, two = FakeLink(), FakeLink()
    for number, link in ((1, one), (2, two)):
        broker.say(link, bus.HELLO, number)
    ask(broker, one)
    for link in (one, two):
        broker.say(link, bus.FOUND, asked(link)[0], b"1")
    assert found(one) == [(5, [b"1", b"1"], 1)]


def test_who_asked_may_end() -> None:
    """Nobody is told, nothing is left."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    ask(broker, one)
    broker.router.on_closed(one)
    broker.say(two, bus.FOUND, asked(two)[0], b"two")
    assert two.take(bus.ANSWER) == [] and broker.router._inquiries._open == {}


def test_questions_of_several_are_kept_apart() -> None:
    """Each with its own number and its own answers, in whatever order these come."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    for request in (1, 2):
        ask(broker, one, request)
    ask(broker, two, 9)
    numbers = {link: asked(link) for link in (one, two)}
    assert numbers[one] == numbers[two] and len(set(numbers[one])) == 3
    for link, name in ((two, "two"), (one, "one")):
        for number in reversed(numbers[link]):
            broker.say(link, bus.FOUND, number, f"{name} {number}".encode())
    first, second, third = numbers[one]

    def both(number: int) -> list[bytes]:
        return [f"one {number}".encode(), f"two {number}".encode()]

    assert found(one) == [(2, both(second), 0), (1, both(first), 0)] and found(two) == [(9, both(third), 0)]


@pytest.mark.parametrize("says", ["twice", "of another question"])
def test_answers_that_nobody_asked_for(says: str) -> None:
    """A worker counts once, and only for what it was asked."""
    over: list[Inquiry] = []
    inquiries = Inquiries(lambda: 0.0)
    peers = [Peer(FakeLink(), number) for number in (1, 2)]
    inquiries.ask(FakeLink(), peers, bus.INQUIRE, b"", over.append)
    inquiries.answer(1, 1, b"first")
    inquiries.answer(1, 1 if says == "twice" else 7, b"again")
    inquiries.answer(3, 1, b"a stranger's")
    assert over == []
    inquiries.answer(2, 1)
    assert [inquiry.found for inquiry in over] == [[b"first"]], "an empty answer is none worth keeping"
