"""The ledger of a load: each kind of fault is found, and nothing else is taken for one."""

from typing import Any

from tests.load.clients import Client, Crowd
from tests.load.ledger import FAN_OUT, UNICAST, Inbox, Ledger, Push
from tests.load.publishers import Audience

FAULTS = ("lost", "missed", "duplicates", "out_of_order", "beyond_count", "received_of_refused", "received_of_unknown")


def taken(ledger: Ledger, kind: bytes, sent: int) -> Push:
    push = ledger.post(kind, 0)
    push.status, push.sent = "200", sent
    return push


def faults(ledger: Ledger) -> dict[str, Any]:
    return {name: value for name, value in ledger.summary().items() if name in FAULTS and value}


def test_everything_received_once_and_in_order() -> None:
    """Counts that agree are no fault; the two kinds of push may overtake each other."""
    ledger, inboxes = Ledger(), [Inbox(), Inbox()]
    alone, everybody, later = taken(ledger, UNICAST, 1), taken(ledger, FAN_OUT, 2), taken(ledger, UNICAST, 1)
    for inbox in inboxes:
        ledger.receive(inbox, FAN_OUT, everybody.number)
    for push in (alone, later):
        ledger.receive(inboxes[0], UNICAST, push.number)
    assert faults(ledger) == {}
    assert (ledger.summary()["sent"], ledger.summary()["received"]) == (4, 4)


def test_lost() -> None:
    """A message that a reply counts and nobody has received is lost, whatever others received too often."""
    ledger, inbox = Ledger(), Inbox()
    taken(ledger, UNICAST, 1)
    ledger.receive(inbox, UNICAST, taken(ledger, UNICAST, 0).number)
    assert faults(ledger) == {"lost": 1, "beyond_count": 1}


def test_twice_and_in_the_wrong_order() -> None:
    """The same number again is a duplicate; a lower one than the newest is out of order."""
    ledger, inbox = Ledger(), Inbox()
    pushes = [taken(ledger, UNICAST, 2), taken(ledger, UNICAST, 1)]
    for push in (pushes[0], pushes[0], pushes[1], pushes[0]):
        ledger.receive(inbox, UNICAST, push.number)
    assert faults(ledger) == {"duplicates": 1, "out_of_order": 1, "beyond_count": 1}


def test_pushes_that_were_not_taken() -> None:
    """What is received of a push that got 503 is a fault; of one whose exchange was cut it is only shown."""
    ledger, inbox = Ledger(), Inbox()
    for status in ("503", "cut", "504"):
        push = ledger.post(UNICAST, 0)
        push.status = status
        ledger.receive(inbox, UNICAST, push.number)
    assert faults(ledger) == {"received_of_refused": 1, "received_of_unknown": 2}
    assert ledger.summary()["pushes"] == {"503": 1, "504": 1, "cut": 1}


class FakeCrowd(Crowd):
    """Numbers alone."""

    def __init__(self) -> None:
        self.registered = 3
        self.ended = 0


class FakeConnection:
    is_open = True


def test_audience() -> None:
    """Who was there before a push and still is has to be counted; who has left meanwhile need not be."""
    crowd, clients = FakeCrowd(), [Client("u0", "u0"), Client("u0", "u0")]
    clients[0].connection, clients[0].is_registered = FakeConnection(), True  # type: ignore[assignment]
    of_user, of_everybody = Audience(crowd, clients), Audience(crowd, None)
    assert (of_user.remaining(), of_everybody.remaining()) == (1, 3)
    clients[0].connection.is_open = False  # type: ignore[misc, union-attr]
    crowd.ended += 1
    crowd.registered += 5  # newcomers do not make up for it
    assert (of_user.remaining(), of_everybody.remaining()) == (0, 2)
