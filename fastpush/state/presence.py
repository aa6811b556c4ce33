"""Who is in a channel, on the whole host: users by channel, with as many connections as they have there.

A user comes with the first connection and leaves a while after the last one (the channel's grace
period): who reconnects meanwhile has neither left nor come. The counts know no grace: they are of the
connections of now. A channel without users and without leavers is removed at once.
"""

import heapq
from collections import Counter
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Place(NamedTuple):
    """A user in a channel."""

    channel: bytes
    user: str


class Habits(NamedTuple):
    """How a channel deals with who comes and leaves.

    path: of the application that words the notices.  grace_seconds: see above.  keep: how many entries it keeps.
    """

    path: str
    grace_seconds: float
    keep: int


class _Channel:
    """Connections by user, how many users are leaving, and what the last one who came said of the channel."""

    __slots__ = ("habits", "leaving", "users")

    def __init__(self, habits: Habits) -> None:
        self.users: Counter[str] = Counter()
        self.leaving = 0
        self.habits = habits


class Presence(Generic[Holder]):
    """Counts connections by channel and user. Holders are few (worker links); time is told, in seconds."""

    def __init__(self) -> None:
        self._channels: dict[bytes, _Channel] = {}
        self._held: dict[Holder, Counter[Place]] = {}
        self._leaving: dict[Place, float] = {}  # who has no connection any more: when that counts
        self._due: list[tuple[float, Place]] = []  # a heap: each place once, no later than it is due
        self._planned: set[Place] = set()  # those on the heap
        self.connections = 0

    def __len__(self) -> int:
        """Return the number of channels that somebody is in, or is leaving."""
        return len(self._channels)

    def enter(self, holder: Holder, place: Place, habits: Habits) -> bool:
        """Count one connection more; return whether the user has come by it."""
        channel = self._channels.get(place.channel)
        if channel is None:
            channel = self._channels[place.channel] = _Channel(habits)
        channel.habits = habits
        channel.users[place.user] += 1
        self.connections += 1
        self._held.setdefault(holder, Counter())[place] += 1
        has_stayed = self._leaving.pop(place, None) is not None
        channel.leaving -= has_stayed
        return channel.users[place.user] == 1 and not has_stayed

    def leave(self, holder: Holder, place: Place, now: float) -> None:
        """Count one connection of `holder` less; one that it does not hold changes nothing."""
        held = self._held.get(holder)
        if held is not None and held[place]:
            held[place] -= 1
            if not held[place]:
                del held[place]
            self._release(place, 1, now)

    def forget(self, holder: Holder, now: float) -> None:
        """Count nothing of `holder` any more; cost O(its places)."""
        for place, count in self._held.pop(holder, Counter()).items():
            self._release(place, count, now)

    def _release(self, place: Place, count: int, now: float) -> None:
        channel = self._channels[place.channel]
        self.connections -= count
        channel.users[place.user] -= count
        if not channel.users[place.user]:
            del channel.users[place.user]
            channel.leaving += 1
            due = self._leaving[place] = now + channel.habits.grace_seconds
            if place not in self._planned:
                self._plan(due, place)

    def _plan(self, due: float, place: Place) -> None:
        self._planned.add(place)
        heapq.heappush(self._due, (due, place))

    def left(self, now: float) -> list[tuple[Place, Habits]]:
        """Return who has left by `now`, each once, in order."""
        gone = []
        while self._due and self._due[0][0] <= now:
            _, place = heapq.heappop(self._due)
            self._planned.remove(place)
            due = self._leaving.get(place)
            if due is not None and due > now:  # it came back meanwhile, and left again
                self._plan(due, place)
            elif due is not None:
                del self._leaving[place]
                channel = self._channels[place.channel]
                channel.leaving -= 1
                gone.append((place, channel.habits))
                if not channel.users and not channel.leaving:
                    del self._channels[place.channel]
        return gone

    def counts(self, channel: bytes) -> tuple[int, int]:
        """Return how many users a channel has, and how many connections they have."""
        known = self._channels.get(channel)
        return (len(known.users), known.users.total()) if known is not None else (0, 0)

    def users(self, channel: bytes, most: int) -> list[str]:
        """Return who is in a channel, sorted: the first `most`."""
        known = self._channels.get(channel)
        return heapq.nsmallest(most, known.users) if known is not None else []
