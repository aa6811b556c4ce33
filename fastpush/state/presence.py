"""Who is in a channel, on the whole host: its connections, and the users whose they are.

A user comes with the first connection and leaves a while after the last one (the channel's grace
period): who reconnects meanwhile has neither left nor come, and is named all the while. The counts know
no grace: they are of the connections of now. A channel without users and without leavers is removed at once.
"""

import heapq
import math
from collections import Counter
from collections.abc import Hashable
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Place(NamedTuple):
    """A user in a channel."""

    channel: bytes
    user: str


class Member(NamedTuple):
    """A connection in a channel. holder: of it.  info: what others are told of it, as JSON."""

    holder: Hashable
    user: str
    info: bytes


class Came(NamedTuple):
    """Whether a connection was not in the channel before, and whether its user has come by it."""

    connection: bool
    user: bool


class Left(NamedTuple):
    """A connection that has left a channel, and how that deals with it."""

    channel: bytes
    connection: int
    member: Member
    habits: "Habits"


class Habits(NamedTuple):
    """How a channel deals with who comes and leaves.

    path: of the application that words the notices; "": its namespace says what is told.
    grace_seconds: see above.  keep: how many entries it keeps.
    """

    path: str
    grace_seconds: float
    keep: int


class _Channel:
    """Connections by number and by user, who is leaving and when that counts, and what the last who came said of it."""

    __slots__ = ("habits", "leaving", "members", "users")

    def __init__(self, habits: Habits) -> None:
        self.members: dict[int, Member] = {}
        self.users: Counter[str] = Counter()
        self.leaving: dict[str, float] = {}  # users who have no connection any more
        self.habits = habits


class Presence(Generic[Holder]):
    """Knows connections by channel and user. Holders are few (worker links); time is told, in seconds."""

    def __init__(self) -> None:
        self._channels: dict[bytes, _Channel] = {}
        self._held: dict[Holder, dict[tuple[bytes, int], None]] = {}
        self._due: list[tuple[float, Place]] = []  # a heap, of which counts what is planned
        self._planned: dict[Place, float] = {}  # when a place is looked at: no later than it is due
        self.connections = 0

    def __len__(self) -> int:
        """Return the number of channels that somebody is in, or is leaving."""
        return len(self._channels)

    def enter(self, holder: Holder, place: Place, habits: Habits, connection: int, info: bytes = b"") -> Came:
        """Let a connection in, or another holder have it; return what is new by that."""
        channel = self._channels.get(place.channel)
        if channel is None:
            channel = self._channels[place.channel] = _Channel(habits)
        channel.habits = habits
        is_known = connection in channel.members
        channel.members[connection] = Member(holder, place.user, info)
        self._held.setdefault(holder, {})[place.channel, connection] = None
        if is_known:
            return Came(connection=False, user=False)
        channel.users[place.user] += 1
        self.connections += 1
        has_stayed = channel.leaving.pop(place.user, None) is not None
        return Came(connection=True, user=channel.users[place.user] == 1 and not has_stayed)

    def leave(self, holder: Holder, channel: bytes, connection: int, now: float) -> Left | None:
        """Take a connection of `holder` out of a channel; one that it does not hold there changes nothing."""
        held = self._held.get(holder)
        if held is None or (channel, connection) not in held:
            return None
        del held[channel, connection]
        return self._release(holder, channel, connection, now)

    def forget(self, holder: Holder, now: float) -> list[Left]:
        """Take out all connections of `holder`, and return them; cost O(their places)."""
        held = self._held.pop(holder, {})
        return [left for place in held if (left := self._release(holder, *place, now)) is not None]

    def _release(self, holder: Holder, key: bytes, connection: int, now: float) -> Left | None:
        channel = self._channels.get(key)
        member = None if channel is None else channel.members.get(connection)
        if channel is None or member is None or member.holder is not holder:
            return None  # its worker has told it again, over another link
        del channel.members[connection]
        self.connections -= 1
        channel.users[member.user] -= 1
        if not channel.users[member.user]:
            del channel.users[member.user]
            place = Place(key, member.user)
            due = channel.leaving[member.user] = now + channel.habits.grace_seconds
            if due < self._planned.get(place, math.inf):
                self._plan(due, place)
        return Left(key, connection, member, channel.habits)

    def _plan(self, due: float, place: Place) -> None:
        self._planned[place] = due
        heapq.heappush(self._due, (due, place))

    def left(self, now: float) -> list[tuple[Place, Habits]]:
        """Return who has left by `now`, each once, in order."""
        gone = []
        while self._due and self._due[0][0] <= now:
            planned, place = heapq.heappop(self._due)
            if self._planned.get(place) != planned:
                continue
            del self._planned[place]
            channel = self._channels.get(place.channel)
            due = None if channel is None else channel.leaving.get(place.user)
            if channel is None or due is None:
                continue
            if due > now:  # it came back meanwhile, and left again
                self._plan(due, place)
            else:
                del channel.leaving[place.user]
                gone.append((place, channel.habits))
                if not channel.users and not channel.leaving:
                    del self._channels[place.channel]
        return gone

    def counts(self, channel: bytes) -> tuple[int, int]:
        """Return how many users a channel has, and how many connections they have."""
        known = self._channels.get(channel)
        return (len(known.users), len(known.members)) if known is not None else (0, 0)

    def users(self, channel: bytes, most: int) -> list[str]:
        """Return who has come to a channel and not left it, sorted: the first `most`."""
        known = self._channels.get(channel)
        return heapq.nsmallest(most, chain(known.users, known.leaving)) if known is not None else []

    def infos(self, channel: bytes) -> list[bytes]:
        """Return what others are told of each connection in a channel."""
        known = self._channels.get(channel)
        return [member.info for member in known.members.values()] if known is not None else []
