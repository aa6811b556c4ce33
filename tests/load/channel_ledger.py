"""What was published to channels, and what each subscriber has of it: nothing here knows sockets.

The publications of a channel carry numbers, from 1 on, and a number is published again until it was taken. So whoever
was there from the first one on, and was never told that it has missed some, has each number once and in order; and the
offsets of what one has between two tellings follow each other, whatever died meanwhile.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple


class Segment:
    """What a subscriber has got between two tellings. start: the offset that it was told, behind which it has all."""

    __slots__ = ("epoch", "numbers", "offsets", "start")

    def __init__(self, epoch: str, start: int) -> None:
        self.epoch = epoch
        self.start = start
        self.offsets = array("Q")
        self.numbers = array("Q")

    @property
    def offset(self) -> int:
        """The newest one."""
        return self.offsets[-1] if self.offsets else self.start


class Place:
    """A subscriber's place in a channel, over all of its connections.

    tellings: how often it was told, after the first time, that it has missed something.
    recoveries: how often it was told that it has not; recovered: publications that it got that way.
    is_leaving: it has said so, and what comes until that is answered is not for it.
    """

    __slots__ = (
        "channel", "false_recoveries", "is_leaving", "is_subscribed", "recovered", "recoveries", "segments", "tellings",
    )  # fmt: skip

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.segments: list[Segment] = []
        self.is_subscribed = self.is_leaving = False
        self.tellings = self.recoveries = self.recovered = self.false_recoveries = 0

    @property
    def position(self) -> dict[str, Any]:
        """What it says to get what it misses; nothing at first."""
        if not self.segments:
            return {}
        segment = self.segments[-1]
        return {"recover": True, "offset": segment.offset, "epoch": segment.epoch}

    def on_subscribed(self, result: dict[str, Any]) -> None:
        """Enter the result of a subscribe."""
        self.is_subscribed = True
        publications = result.get("publications", [])
        if result.get("recovered"):
            self.recoveries += 1
            self.recovered += len(publications)
            self.false_recoveries += not self.segments or self.segments[-1].epoch != result["epoch"]
        else:
            self.tellings += bool(self.segments)
            self.segments.append(Segment(result["epoch"], result.get("offset", 0)))
        for publication in publications:
            self.on_publication(publication)

    def on_publication(self, publication: dict[str, Any]) -> None:
        """Enter a publication, or what stands for some that were dropped."""
        segment = self.segments[-1]
        if "offset" not in publication:
            self.tellings += 1
            self.segments.append(Segment(segment.epoch, segment.offset + int(publication["tags"]["gap"])))
            return
        segment.offsets.append(publication["offset"])
        segment.numbers.append(publication["data"]["n"])


class Taken(NamedTuple):
    """A publication that was taken, and where the server says that it is kept."""

    channel: str
    number: int
    epoch: str
    offset: int


def balance(places: Iterable[Place], taken: list[Taken]) -> dict[str, Any]:
    """Return what is wrong, and what it is wrong of.

    lost, doubled, out_of_order: numbers, judged for whoever was never told that it has missed some.
    gaps: where the offsets of a segment do not follow each other.
    contradictions: one offset that stands for two numbers, in two segments or in the publisher's reply.
    behind: places that are not where their channel ends.
    """
    places = list(places)
    tops = _tops(taken)
    found = dict.fromkeys(("received", "lost", "doubled", "out_of_order", "gaps", "contradictions", "behind"), 0)
    known = {(one.channel, one.epoch, one.offset): one.number for one in taken}
    found["contradictions"] = len(taken) - len(known)
    for place in places:
        for segment in place.segments:
            found["received"] += len(segment.numbers)
            offsets = (segment.start, *segment.offsets)
            found["gaps"] += sum(later != earlier + 1 for earlier, later in pairwise(offsets))
            for offset, number in zip(segment.offsets, segment.numbers, strict=True):
                found["contradictions"] += known.setdefault((place.channel, segment.epoch, offset), number) != number
        top = tops.get(place.channel)
        if top is not None:
            last = place.segments[-1] if place.segments else Segment("", 0)
            found["behind"] += (last.epoch, last.offset) != (top.epoch, top.offset)
            if len(place.segments) == 1:
                _count(found, last, top.number)
    return found | {
        "places": len(places),
        "recoveries": sum(place.recoveries for place in places),
        "recovered": sum(place.recovered for place in places),
        "tellings": _by_namespace(places),
        "untold": sum(not place.tellings for place in places),
        "false_recoveries": sum(place.false_recoveries for place in places),
    }


def _by_namespace(places: list[Place]) -> dict[str, int]:
    """Return how often places were told, by the namespaces of their channels."""
    found: Counter[str] = Counter()
    for place in places:
        if place.tellings:
            found[place.channel.partition(":")[0]] += place.tellings
    return dict(found)


def _tops(taken: list[Taken]) -> dict[str, Taken]:
    """Return what was taken last of each channel."""
    return {one.channel: one for one in taken}


def _count(found: dict[str, int], segment: Segment, last: int) -> None:
    """Judge the only segment of a place: in one epoch numbers are offsets, as each was taken once."""
    numbers = segment.numbers
    distinct = set(numbers)
    found["lost"] += len(set(range(segment.start + 1, last + 1)) - distinct)
    found["doubled"] += len(numbers) - len(distinct)
    found["out_of_order"] += sum(later < earlier for earlier, later in pairwise(numbers))
