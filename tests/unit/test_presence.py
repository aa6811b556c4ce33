"""fastpush.state.presence: who is where, and who came and left exactly once. Time is told."""

import random

import pytest

from fastpush.state.presence import Habits, Place, Presence

HALL, TEA = b"c/chat", b"c/chat:tea"
HABITS = Habits("/chat", 2.0, 100)
JACK = Place(HALL, "jack")


def left(presence: Presence[str], now: float) -> list[Place]:
    return [place for place, _ in presence.left(now)]


def test_a_user_comes_once_with_any_number_of_connections() -> None:
    """The first connection brings the user, others only connections, from whatever worker."""
    presence: Presence[str] = Presence()
    came = [presence.enter(holder, JACK, HABITS) for holder in ("one", "one", "two")]
    assert came == [True, False, False]
    assert presence.counts(HALL) == (1, 3) and presence.connections == 3
    assert presence.enter("two", Place(HALL, "jill"), HABITS)
    assert presence.enter("two", Place(TEA, "jack"), HABITS), "channels are apart"
    assert (presence.counts(HALL), presence.counts(TEA), presence.counts(b"c")) == ((2, 4), (1, 1), (0, 0))
    assert presence.users(HALL, 10) == ["jack", "jill"] and presence.users(HALL, 1) == ["jack"]
    assert presence.users(b"c", 10) == []


def test_a_user_leaves_once_after_the_grace_period() -> None:
    """The counts are of now, the leaving is noticed grace_seconds after the last connection, to the moment, once."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS)
    presence.enter("two", JACK, HABITS)
    presence.leave("one", JACK, 10)
    assert presence.counts(HALL) == (1, 1) and left(presence, 100) == []
    presence.leave("two", JACK, 100)
    assert presence.counts(HALL) == (0, 0) and presence.users(HALL, 10) == []
    assert left(presence, 101.999) == [] and len(presence) == 1
    assert presence.left(102) == [(JACK, HABITS)] and left(presence, 200) == []
    assert len(presence) == 0 and presence.connections == 0


def test_who_reconnects_in_time_has_neither_left_nor_come() -> None:
    """However often; and the grace period begins anew with each leaving."""
    presence: Presence[str] = Presence()
    assert presence.enter("one", JACK, HABITS)
    for second in range(10):
        presence.leave("one", JACK, second)
        assert left(presence, second + 0.5) == []
        assert not presence.enter("two", JACK, HABITS)
        presence.leave("two", JACK, second + 0.6)
        assert not presence.enter("one", JACK, HABITS)
    presence.leave("one", JACK, 20)
    assert left(presence, 21.9) == [] and left(presence, 22) == [JACK]
    assert presence.enter("one", JACK, HABITS), "after that one comes again"


def test_coming_and_going_without_end_leaves_one_deadline() -> None:
    """Who enters and leaves again and again has one place among the deadlines, and leaves once: after the last time."""
    presence: Presence[str] = Presence()
    place = Place(b"c", "jack")
    for second in range(1000):
        presence.enter("w", place, Habits("/chat", 10, 0))
        presence.leave("w", place, second)
    assert len(presence._due) == 1
    assert left(presence, 1008) == [] and left(presence, 1009) == [place]
    assert (presence._due, presence._planned, len(presence)) == ([], set(), 0)


def test_no_grace_at_all() -> None:
    """With 0 seconds a leaving counts in the moment in which it happens."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, Habits("/chat", 0, 0))
    presence.leave("one", JACK, 5)
    assert left(presence, 5) == [JACK]


def test_a_holder_that_ends_takes_all_its_connections_along() -> None:
    """Its users leave with grace, but for those who have others elsewhere; again changes nothing."""
    presence: Presence[str] = Presence()
    for place in (JACK, JACK, Place(TEA, "jack"), Place(HALL, "jill")):
        presence.enter("one", place, HABITS)
    presence.enter("two", JACK, HABITS)
    presence.forget("one", 10)
    presence.forget("one", 11)
    assert (presence.counts(HALL), presence.connections) == ((1, 1), 1)
    assert sorted(left(presence, 12)) == [Place(HALL, "jill"), Place(TEA, "jack")]
    assert presence.counts(HALL) == (1, 1)


def test_what_is_not_held_cannot_leave() -> None:
    """A leaving that was told twice, or by somebody else, changes nothing."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS)
    presence.leave("two", JACK, 1)
    presence.leave("one", Place(TEA, "jack"), 1)
    presence.leave("one", JACK, 1)
    presence.leave("one", JACK, 1.5)
    assert left(presence, 3) == [JACK] and left(presence, 10) == []


def test_the_last_who_came_says_how_a_channel_is() -> None:
    """Habits are the channel's: those of the latest connection hold for all who leave."""
    presence: Presence[str] = Presence()
    presence.enter("one", JACK, HABITS)
    presence.enter("one", Place(HALL, "jill"), Habits("/chat", 5.0, 3))
    presence.leave("one", JACK, 0)
    assert left(presence, 4.9) == []
    assert presence.left(5) == [(JACK, Habits("/chat", 5.0, 3))]


class Model:
    """Presence as lists of connections, walked anew for every question."""

    def __init__(self) -> None:
        self.connections: list[tuple[str, Place]] = []
        self.here: set[Place] = set()  # who has come, and not left
        self.empty_since: dict[Place, float] = {}

    def enter(self, holder: str, place: Place) -> bool:
        self.connections.append((holder, place))
        self.empty_since.pop(place, None)
        has_come = place not in self.here
        self.here.add(place)
        return has_come

    def remove(self, gone: list[tuple[str, Place]], now: float) -> None:
        for connection in gone:
            self.connections.remove(connection)
            place = connection[1]
            if all(other != place for _, other in self.connections):
                self.empty_since[place] = now

    def left(self, now: float, grace: float) -> set[Place]:
        gone = {place for place, since in self.empty_since.items() if since + grace <= now}
        for place in gone:
            del self.empty_since[place]
        self.here -= gone
        return gone


@pytest.mark.parametrize("seed", range(60))
def test_against_a_list_of_connections(seed: int) -> None:
    """Whatever enters, leaves, ends and comes back, whenever: counts are those of the connections, and each user comes
    and leaves in turn, once each; nothing is left of anybody in the end.
    """
    chance = random.Random(seed)
    grace = chance.choice((0.0, 0.25, 1.0, 3.0))
    habits = Habits("/chat", grace, 0)
    presence: Presence[str] = Presence()
    model = Model()
    holders = ["w1", "w2", "w3"]
    places = [Place(channel, user) for channel in (HALL, TEA) for user in ("ann", "bob", "eve")]
    now, story = 0.0, dict.fromkeys(places, 0)  # +1 for coming, -1 for leaving
    for _ in range(600):
        holder, place = chance.choice(holders), chance.choice(places)
        match chance.randrange(12):
            case 0 | 1 | 2 | 3:
                came = presence.enter(holder, place, habits)
                assert came == model.enter(holder, place)
                story[place] += came
            case 4 | 5 | 6 | 7:
                presence.leave(holder, place, now)
                model.remove([(holder, place)] * ((holder, place) in model.connections), now)
            case 8:
                presence.forget(holder, now)
                model.remove([one for one in model.connections if one[0] == holder], now)
            case _:
                now += chance.choice((0.0, 0.1, 0.25, 1.0))
                gone = left(presence, now)
                assert len(gone) == len(set(gone)) and set(gone) == model.left(now, grace)
                for place in gone:
                    story[place] -= 1
        assert set(story.values()) <= {0, 1}
        for channel in (HALL, TEA):
            users = [place.user for _, place in model.connections if place.channel == channel]
            assert presence.counts(channel) == (len(set(users)), len(users))
            assert presence.users(channel, 2) == sorted(set(users))[:2]
        assert presence.connections == len(model.connections)
    for holder in holders:
        presence.forget(holder, now)
    presence.left(now + grace)
    assert (len(presence), presence.connections, presence._due, presence._leaving) == (0, 0, [], {})
