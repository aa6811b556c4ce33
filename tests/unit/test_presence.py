"""fastpush.state.presence: which connections are where, and which users came and left, exactly once. Time is told."""

import random
from typing import NamedTuple

import pytest

from fastpush.state.presence import Came, Habits, Left, Member, Place, Presence

HALL, TEA = b"c/chat", b"c/chat:tea"
HABITS = Habits("/chat", 2.0, 100)
JACK = Place(HALL, "jack")
NEW, NEW_CONNECTION, NOTHING_NEW = Came(True, True), Came(True, False), Came(False, False)


def left(presence: Presence[str], now: float) -> list[Place]:
    return [place for place, _ in presence.left(now)]


def test_a_user_comes_once_with_any_number_of_connections() -> None:
    """The first connection brings the user, others only connections, from whatever worker."""
    presence: Presence[str] = Presence()
    came = [presence.enter(holder, JACK, HABITS, number) for number, holder in enumerate(("one", "one", "two"))]
    assert came == [NEW, NEW_CONNECTION, NEW_CONNECTION]
    assert presence.counts(HALL) == (1, 3) and presence.connections == 3
    assert presence.enter("two", Place(HALL, "jill"), HABITS, 3) == NEW
    assert presence.enter("two", Place(TEA, "jack"), HABITS, 2) == NEW, "channels are apart"
    assert (presence.counts(HALL), presence.counts(TEA), presence.counts(b"c")) == ((2, 4), (1, 1), (0, 0))
    assert presence.users(HALL, 10) == ["jack", "jill"] and presence.users(HALL, 1) == ["jack"]
    assert presence.users(b"c", 10) == []


def test_a_user_leaves_once_after_the_grace_period() -> None:
    """The counts are of now; the leaving is noticed, and who left named no more, grace_seconds after the last
    connection, to the moment, once.
    """
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS, 1)
    presence.enter("two", JACK, HABITS, 2)
    presence.leave("one", HALL, 1, 10)
    assert presence.counts(HALL) == (1, 1) and left(presence, 100) == []
    presence.leave("two", HALL, 2, 100)
    assert presence.counts(HALL) == (0, 0) and presence.users(HALL, 10) == ["jack"]
    assert left(presence, 101.999) == [] and len(presence) == 1 and presence.users(HALL, 10) == ["jack"]
    assert presence.left(102) == [(JACK, HABITS)] and left(presence, 200) == []
    assert len(presence) == 0 and presence.connections == 0 and presence.users(HALL, 10) == []


def test_who_reconnects_in_time_has_neither_left_nor_come() -> None:
    """However often; and the grace period begins anew with each leaving."""
    presence: Presence[str] = Presence()
    assert presence.enter("one", JACK, HABITS, 1).user
    for second in range(10):
        presence.leave("one", HALL, 1, second)
        assert left(presence, second + 0.5) == []
        assert presence.enter("two", JACK, HABITS, 2) == NEW_CONNECTION
        presence.leave("two", HALL, 2, second + 0.6)
        assert presence.enter("one", JACK, HABITS, 1) == NEW_CONNECTION
    presence.leave("one", HALL, 1, 20)
    assert left(presence, 21.9) == [] and left(presence, 22) == [JACK]
    assert presence.enter("one", JACK, HABITS, 1).user, "after that one comes again"


def test_coming_and_going_without_end_leaves_one_deadline() -> None:
    """Who enters and leaves again and again has one place among the deadlines, and leaves once: after the last time."""
    presence: Presence[str] = Presence()
    place = Place(b"c", "jack")
    for second in range(1000):
        presence.enter("w", place, Habits("/chat", 10, 0), second)
        presence.leave("w", b"c", second, second)
    assert len(presence._due) == 1
    assert left(presence, 1008) == [] and left(presence, 1009) == [place]
    assert (presence._due, presence._planned, len(presence)) == ([], {}, 0)


def test_a_shorter_grace_period_holds_at_once() -> None:
    """Who left with a long one, came back and left with a short one, leaves after the short one."""
    presence: Presence[str] = Presence()
    presence.enter("w", JACK, Habits("", 3600, 0), 1)
    presence.leave("w", HALL, 1, 0)
    presence.enter("w", JACK, Habits("", 1, 0), 1)
    presence.leave("w", HALL, 1, 10)
    assert left(presence, 10.9) == [] and left(presence, 11) == [JACK]
    assert left(presence, 3600) == [] and (presence._due, presence._planned) == ([], {})


def test_no_grace_at_all() -> None:
    """With 0 seconds a leaving counts in the moment in which it happens."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, Habits("/chat", 0, 0), 1)
    presence.leave("one", HALL, 1, 5)
    assert left(presence, 5) == [JACK]


def test_a_holder_that_ends_takes_all_its_connections_along() -> None:
    """They are named, each once; their users leave with grace, but for those who have others elsewhere; again changes
    nothing.
    """
    presence: Presence[str] = Presence()
    places = (JACK, JACK, Place(TEA, "jack"), Place(HALL, "jill"))
    for number, place in enumerate(places):
        presence.enter("one", place, HABITS, number, b"%d" % number)
    presence.enter("two", JACK, HABITS, 9)
    assert presence.forget("one", 10) == [
        Left(place.channel, number, Member("one", place.user, b"%d" % number), HABITS)
        for number, place in enumerate(places)
    ]
    assert presence.forget("one", 11) == []
    assert (presence.counts(HALL), presence.connections) == ((1, 1), 1)
    assert sorted(left(presence, 12)) == [Place(HALL, "jill"), Place(TEA, "jack")]
    assert presence.counts(HALL) == (1, 1)


def test_what_is_not_held_cannot_leave() -> None:
    """A leaving that was told twice, or by somebody else, changes nothing; one that counts says who has left."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS, 1, b"info")
    assert presence.leave("two", HALL, 1, 1) is presence.leave("one", TEA, 1, 1) is presence.leave("one", HALL, 2, 1)
    assert presence.counts(HALL) == (1, 1)
    assert presence.leave("one", HALL, 1, 1) == Left(HALL, 1, Member("one", "jack", b"info"), HABITS)
    assert presence.leave("one", HALL, 1, 1.5) is None
    assert left(presence, 3) == [JACK] and left(presence, 10) == []


def test_a_connection_that_is_told_again_by_another_link_is_that_link_s() -> None:
    """A worker tells its table over a new link before the old one is forgotten: nobody comes, nobody leaves with the
    old one, what is told of it is the newest, and the new link lets go of it.
    """
    presence: Presence[str] = Presence()
    presence.enter("old", JACK, HABITS, 1, b"before")
    presence.enter("old", Place(HALL, "jill"), HABITS, 2)
    assert presence.enter("new", JACK, HABITS, 1, b"after") == NOTHING_NEW
    assert presence.leave("old", HALL, 1, 0) is None, "it is not the old one's any more"
    assert [(gone.connection, gone.member.user) for gone in presence.forget("old", 0)] == [(2, "jill")]
    assert (presence.infos(HALL), presence.counts(HALL), presence.connections) == ([b"after"], (1, 1), 1)
    assert left(presence, 2) == [Place(HALL, "jill")]
    assert presence.leave("new", HALL, 1, 3) is not None and left(presence, 5) == [JACK]
    assert (len(presence), presence.connections) == (0, 0)


def test_who_is_in_a_channel_by_connection() -> None:
    """Each connection with what it said of itself, also those of nobody; of an empty channel nothing."""
    presence: Presence[str] = Presence()
    for number, user in enumerate(("jack", "", "jack")):
        presence.enter("one", Place(HALL, user), HABITS, number, b'{"client":"%d"}' % number)
    assert presence.infos(HALL) == [b'{"client":"0"}', b'{"client":"1"}', b'{"client":"2"}']
    assert (presence.counts(HALL), presence.infos(TEA)) == ((2, 3), [])
    presence.leave("one", HALL, 0, 0)
    assert presence.infos(HALL) == [b'{"client":"1"}', b'{"client":"2"}'] and presence.counts(HALL) == (2, 2)


def test_the_last_who_came_says_how_a_channel_is() -> None:
    """Habits are the channel's: those of the latest connection hold for all who leave."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS, 1)
    presence.enter("one", Place(HALL, "jill"), Habits("/chat", 5.0, 3), 2)
    presence.leave("one", HALL, 1, 0)
    assert left(presence, 4.9) == []
    assert presence.left(5) == [(JACK, Habits("/chat", 5.0, 3))]


class Connection(NamedTuple):
    """One of the model's, in one channel."""

    holder: str
    place: Place
    number: int


class Model:
    """Presence as a list of connections, walked anew for every question."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.here: set[Place] = set()  # who has come, and not left
        self.empty_since: dict[Place, float] = {}

    def enter(self, holder: str, place: Place, number: int) -> Came:
        known = [one for one in self.connections if (one.place.channel, one.number) == (place.channel, number)]
        for one in known:
            self.connections[self.connections.index(one)] = Connection(holder, place, number)
        if known:
            return NOTHING_NEW
        self.connections.append(Connection(holder, place, number))
        self.empty_since.pop(place, None)
        has_come = place not in self.here
        self.here.add(place)
        return Came(connection=True, user=has_come)

    def remove(self, gone: list[Connection], now: float) -> None:
        for connection in gone:
            self.connections.remove(connection)
            if all(other.place != connection.place for other in self.connections):
                self.empty_since[connection.place] = now

    def left(self, now: float, grace: float) -> set[Place]:
        gone = {place for place, since in self.empty_since.items() if since + grace <= now}
        for place in gone:
            del self.empty_since[place]
        self.here -= gone
        return gone


@pytest.mark.parametrize("seed", range(60))
def test_against_a_list_of_connections(seed: int) -> None:
    """Whatever enters, enters again over another link, leaves, ends and comes back, whenever: counts and infos are
    those of the connections, each user comes and leaves in turn, once each, and named are those who have come and not
    left; nothing is left of anybody in the end.
    """
    chance = random.Random(seed)
    grace = chance.choice((0.0, 0.25, 1.0, 3.0))
    habits = Habits("/chat", grace, 0)
    presence: Presence[str] = Presence()
    model = Model()
    holders = ["w1", "w2", "w3"]
    users = ["ann", "bob", "eve"]
    now, story = 0.0, {Place(channel, user): 0 for channel in (HALL, TEA) for user in users}  # +1 coming, -1 leaving
    for _ in range(600):
        holder, channel, number = chance.choice(holders), chance.choice((HALL, TEA)), chance.randrange(8)
        place = Place(channel, users[number % 3])  # a connection's user stays the same
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                came = presence.enter(holder, place, habits, number, b"%d" % number)
                assert came == model.enter(holder, place, number)
                story[place] += came.user
            case 4 | 5 | 6 | 7:
                gone = presence.leave(holder, channel, number, now)
                connection = Connection(holder, place, number)
                assert (gone is not None) == (connection in model.connections)
                model.remove([connection] * (gone is not None), now)
            case 8:
                ended = [(one.channel, one.connection) for one in presence.forget(holder, now)]
                held = [one for one in model.connections if one.holder == holder]
                assert sorted(ended) == sorted((one.place.channel, one.number) for one in held)
                model.remove(held, now)
            case _:
                now += chance.choice((0.0, 0.1, 0.25, 1.0))
                left_now = left(presence, now)
                assert len(left_now) == len(set(left_now)) and set(left_now) == model.left(now, grace)
                for place in left_now:
                    story[place] -= 1
        assert set(story.values()) <= {0, 1}
        for channel in (HALL, TEA):
            inside = [one for one in model.connections if one.place.channel == channel]
            of_users = {one.place.user for one in inside}
            assert presence.counts(channel) == (len(of_users), len(inside))
            assert presence.users(channel, 2) == sorted(user for key, user in model.here if key == channel)[:2]
            assert sorted(presence.infos(channel)) == sorted(b"%d" % one.number for one in inside)
        assert presence.connections == len(model.connections)
    for holder in holders:
        presence.forget(holder, now)
    presence.left(now + grace)
    assert (len(presence), presence.connections, presence._due, presence._channels) == (0, 0, [], {})
