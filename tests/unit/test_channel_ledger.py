"""The ledger of subscribers: each kind of fault is found, and nothing else is taken for one."""

from collections.abc import Iterable
from typing import Any

from tests.load.channel_ledger import Place, Taken, balance

NOTHING = dict.fromkeys(("lost", "doubled", "out_of_order", "gaps", "contradictions", "behind", "false_recoveries"), 0)
TAKEN = [Taken("news:1", number, "e", number) for number in (1, 2, 3, 4)]


def subscribed(*offsets: int, recovered: bool = False, epoch: str = "e", offset: int = 0) -> dict[str, Any]:
    publications = [publication(each) for each in offsets]
    return {"epoch": epoch, "offset": offset, "recovered": recovered, "publications": publications}


def publication(offset: int, number: int = 0) -> dict[str, Any]:
    return {"offset": offset, "data": {"n": number or offset}}


def place(offsets: Iterable[int], *results: dict[str, Any]) -> Place:
    """Return the place of one who was told these results, then these publications."""
    made = Place("news:1")
    for result in results or (subscribed(),):
        made.on_subscribed(result)
    for offset in offsets:
        made.on_publication(publication(offset))
    return made


def faults(*places: Place) -> dict[str, int]:
    return {name: value for name, value in balance(places, TAKEN).items() if name in NOTHING and value}


def test_everything_once_and_in_order() -> None:
    """Whoever has all, live and recovered, late or after a telling, is no fault."""
    recovered = place((4,), subscribed(1), subscribed(2, 3, recovered=True))
    late = place((3, 4), subscribed(offset=2))
    told = place((3, 4), subscribed(1, epoch="old"), subscribed(offset=2))
    assert faults(place((1, 2, 3, 4)), recovered, late, told) == {}
    found = balance([recovered, told], TAKEN)
    assert (found["recoveries"], found["recovered"], found["received"]) == (1, 2, 7)
    assert (found["tellings"], found["untold"]) == ({"news": 1}, 1)


def test_lost() -> None:
    """A number that is missing is lost, and its offset a gap; a place without the last one is behind."""
    assert faults(place((1, 3, 4))) == {"lost": 1, "gaps": 1}
    assert faults(place((1, 2, 3))) == {"lost": 1, "behind": 1}


def test_doubled_and_out_of_order() -> None:
    """What comes twice is doubled; what comes too late is out of order."""
    assert faults(place((1, 2, 2, 3, 4))) == {"doubled": 1, "gaps": 1}
    assert faults(place((1, 3, 2, 4))) == {"out_of_order": 1, "gaps": 3}


def test_contradictions() -> None:
    """An offset that stands for another number than elsewhere, or than in the publisher's reply, is a contradiction."""
    other = place((1, 2, 3))
    other.on_publication(publication(4, number=5))
    assert faults(other) == {"lost": 1, "contradictions": 1}
    assert balance([], [*TAKEN, Taken("news:1", 5, "e", 4)])["contradictions"] == 1


def test_false_recovery() -> None:
    """Who is told of recovery into an epoch that it does not know was told a lie."""
    assert faults(place((), subscribed(1, 2), subscribed(3, 4, recovered=True, epoch="f")))["false_recoveries"] == 1
