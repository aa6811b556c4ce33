"""fastpush.state.journal: what is remembered is bounded for each user and for all, and nobody pushes out another."""

from collections import Counter
from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from fastpush.protocol.insight import NOTES_TOLD, STRANGERS_TOLD, Lost, Note, NoteKind
from fastpush.state import journal as module
from fastpush.state.journal import CLAIMED_TOLD, KILLED, LOST_USERS_MAX, LOST_WORKERS_MAX, Journal, LostWorkers

HOUR = 3600.0
KNOWN_TOLD = NOTES_TOLD - CLAIMED_TOLD


def note(seconds: float, user: str = "ann", kind: NoteKind = "refused", **told: object) -> Note:
    return Note(seconds, kind, user, **{"worker": 1, **told})


def times(notes: list[Note]) -> list[float]:
    return [told.seconds for told in notes]


def test_notes_of_a_user_are_told_the_oldest_first() -> None:
    """Workers send their notes when they can: they are told by time, and only the user's own."""
    journal = Journal(100, HOUR)
    for seconds, user in ((3, "ann"), (1, "bob"), (2, "ann"), (4, "ann")):
        journal.add(note(seconds, user))
    assert times(journal.of("ann", 10)) == [2, 3, 4]
    assert times(journal.of("bob", 10)) == [1]
    assert journal.of("cid", 10) == []
    assert len(journal) == 4


def test_a_user_keeps_the_newest_notes() -> None:
    """Of one user who fills notes without end the newest are kept, and all of another's."""
    journal = Journal(1000, HOUR)
    journal.add(note(0, "bob"))
    for seconds in range(1, 501):
        journal.add(note(seconds))
    assert times(journal.of("ann", 500)) == list(range(501 - KNOWN_TOLD, 501))
    assert times(journal.of("bob", 500)) == [0]
    assert len(journal) == KNOWN_TOLD + 1
    assert journal.since("bob", 500, 0) == 0
    assert journal.since("ann", 500, 0) == 501 - KNOWN_TOLD


def test_strangers_keep_their_own_number() -> None:
    """However many clients that nobody knows are refused, STRANGERS_TOLD are kept, whatever their tokens claim."""
    journal = Journal(1000, HOUR)
    for seconds in range(100):
        journal.add(note(seconds, "", is_claimed=seconds % 2 == 0))
    assert times(journal.of("", 100)) == list(range(100 - STRANGERS_TOLD, 100))
    assert len(journal) == STRANGERS_TOLD


def test_claims_do_not_push_out_a_users_own_notes() -> None:
    """Tokens that claim to be of a user fill their own room; both are told together, by time, at most NOTES_TOLD."""
    journal = Journal(1000, HOUR)
    for seconds in range(0, 2 * KNOWN_TOLD, 2):
        journal.add(note(seconds))
    for seconds in range(1, 999, 2):
        journal.add(note(seconds, is_claimed=True))
    told = journal.of("ann", 1000)
    assert times([own for own in told if not own.is_claimed]) == list(range(0, 2 * KNOWN_TOLD, 2))
    assert times([claimed for claimed in told if claimed.is_claimed]) == list(range(999 - 2 * CLAIMED_TOLD, 999, 2))
    assert times(told) == sorted(times(told))
    assert len(told) == NOTES_TOLD


def test_claims_of_all_have_a_tenth_of_the_room() -> None:
    """Claims of a thousand names keep a tenth of all notes and push out no other; what is known stays known."""
    journal = Journal(100, HOUR)
    for seconds in range(90):
        journal.add(note(seconds, f"user {seconds}"))
    for seconds in range(1000):
        journal.add(note(seconds, f"name {seconds}", is_claimed=True))
    assert len(journal) == 100
    assert all(journal.of(f"user {seconds}", 100) for seconds in range(90))
    assert [name for name in range(1000) if journal.of(f"name {name}", 1000)] == list(range(990, 1000))
    assert journal.since("zoe", 1000, 0) == 0


def test_the_oldest_of_all_go_first() -> None:
    """When the room of all is used, the oldest note goes, whoever's it is; since() is its time."""
    journal = Journal(100, HOUR)
    for seconds in range(90):
        journal.add(note(seconds, f"user {seconds}"))
    assert journal.since("zoe", 90, 0) == 0
    for seconds in range(90, 95):
        journal.add(note(seconds, f"user {seconds}"))
    assert [user for user in range(95) if journal.of(f"user {user}", 95)] == list(range(5, 95))
    assert journal.since("zoe", 95, 0) == 4
    assert journal.since("zoe", 95, 50) == 50
    assert journal.since("zoe", HOUR + 50, 0) == 50


def test_old_notes_are_not_told() -> None:
    """A note that is older than keep_seconds is not told, even before it is dropped; one of just that age is."""
    journal = Journal(100, 10)
    journal.add(note(1))
    journal.add(note(2))
    assert times(journal.of("ann", 12)) == [2]
    journal.expire(12)
    assert len(journal) == 1
    journal.expire(13)
    assert len(journal) == 0
    assert journal.of("ann", 13) == []


def test_expiry_is_not_loss_of_room() -> None:
    """What went because it was old is known to be old: since() goes by the age alone."""
    journal = Journal(100, 10)
    journal.add(note(95))
    journal.expire(200)
    assert journal.since("zoe", 100, 0) == 90


def test_expiry_does_a_bounded_part() -> None:
    """One call drops no more than its share of what is too old, later calls the rest; claims go as well."""
    journal = Journal(10 * module._EXPIRED_MAX, HOUR)
    for number in range(2 * module._EXPIRED_MAX):
        journal.add(note(0, f"user {number}"))
    journal.add(note(0, is_claimed=True))
    journal.expire(HOUR + 1)
    assert len(journal) == module._EXPIRED_MAX
    journal.expire(HOUR + 1)
    assert len(journal) == 0


def test_limits_change_at_once() -> None:
    """A reload that lowers the limits drops the oldest notes; one that raises them gives room."""
    journal = Journal(1000, HOUR)
    for seconds in range(900):
        journal.add(note(seconds, f"user {seconds}"))
    journal.limit(100, 50)
    assert len(journal) == 90
    assert journal.since("zoe", 840, 0) == 809
    assert journal.since("zoe", 900, 0) == 850
    journal.limit(1000, HOUR)
    for seconds in range(900, 1000):
        journal.add(note(seconds, f"user {seconds}"))
    assert len(journal) == 190


def test_the_end_of_a_killed_worker_is_noted_of_its_open_connections() -> None:
    """Of each connection on it that was opened and not closed, and no other; its users are returned."""
    journal = Journal(100, HOUR)
    journal.add(note(1, "ann", "opened", connection="a1", path="/ws", peer="192.0.2.1"))
    journal.add(note(2, "bob", "opened", connection="b1"))
    journal.add(note(3, "bob", "closed", connection="b1", code=1000, by="client"))
    journal.add(note(4, "bob", "opened", connection="b2"))
    journal.add(note(5, "cid", "opened", connection="c1", worker=2))
    journal.add(note(6, "dan", "opened", connection="d1"))
    journal.add(note(7, "dan", "closed", connection="d1"))
    assert journal.end_worker(1, 9, KILLED) == {"ann", "bob"}
    assert journal.of("ann", 10)[-1] == Note(
        9, "closed", "ann", 1, "a1", "/ws", "192.0.2.1", 1006, "worker ended", "network"
    )
    assert [(told.kind, told.connection) for told in journal.of("bob", 10)[-2:]] == [("opened", "b2"), ("closed", "b2")]
    assert len(journal.of("cid", 10)) == 1
    assert len(journal.of("dan", 10)) == 2
    assert journal.end_worker(1, 10, KILLED) == set()


def test_a_killed_worker_ends_in_a_full_journal() -> None:
    """The ends of its connections are notes like others: they push out the oldest, never more than the room."""
    journal = Journal(100, HOUR)
    for number in range(90):
        journal.add(note(number, f"user {number}", "opened", connection=str(number)))
    assert len(journal.end_worker(1, 100, KILLED)) == 90
    assert len(journal) == 90
    assert [told.kind for told in journal.of("user 0", 100)] == ["closed"]


users = st.sampled_from(["", "ann", "bob", *map(str, range(40))])
steps = st.lists(
    st.tuples(st.just("add"), users, st.booleans())
    | st.tuples(st.just("wait"), st.integers(0, 20), st.none())
    | st.tuples(st.just("limit"), st.integers(10, 60), st.integers(1, 50)),
    max_size=200,
)


class Plain:
    """The same, as one would say it: a list of all notes, gone through again and again."""

    def __init__(self, notes_max: int, keep_seconds: float) -> None:
        self.notes: list[Note] = []
        self.lost_seconds = 0.0
        self.limit(notes_max, keep_seconds)

    def limit(self, notes_max: int, keep_seconds: float) -> None:
        self.notes_max, self.keep_seconds = notes_max, keep_seconds
        self.trim(is_claimed=False, room=notes_max - notes_max // 10)
        self.trim(is_claimed=True, room=notes_max // 10)

    def trim(self, *, is_claimed: bool, room: int) -> None:
        same = [told for told in self.notes if told.is_claimed == is_claimed]
        for told in same[: max(0, len(same) - room)]:
            self.notes.remove(told)
            if not is_claimed:
                self.lost_seconds = max(self.lost_seconds, told.seconds)

    def add(self, added: Note) -> None:
        self.notes.append(added)
        own = [told for told in self.notes if (told.user, told.is_claimed) == (added.user, added.is_claimed)]
        most = CLAIMED_TOLD if added.is_claimed else KNOWN_TOLD if added.user else STRANGERS_TOLD
        if len(own) > most:
            self.notes.remove(own[0])
        self.limit(self.notes_max, self.keep_seconds)

    def since(self, user: str, now: float) -> float:
        own = [told.seconds for told in self.notes if (told.user, told.is_claimed) == (user, False)]
        oldest = own[0] if len(own) == (KNOWN_TOLD if user else STRANGERS_TOLD) else 0
        return max(oldest, now - self.keep_seconds, self.lost_seconds)

    def expire(self, now: float) -> None:
        self.notes = [told for told in self.notes if told.seconds >= now - self.keep_seconds]


def numbered() -> Iterator[str]:
    return map(str, count())


@settings(max_examples=150)
@given(steps)
def test_journal_is_what_a_plain_list_would_be(story: list[tuple[str, object, object]]) -> None:
    """Whatever is added, expires and is reloaded: the same notes, in the same order, and since() of the same time."""
    journal, plain = Journal(50, 100), Plain(50, 100)
    names = numbered()
    now = 1.0
    for step, one, other in story:
        if step == "add":
            added = note(now, one, connection=next(names), is_claimed=bool(one and other))
            journal.add(added)
            plain.add(added)
        elif step == "wait":
            now += one
            journal.expire(now)
            plain.expire(now)
        else:
            journal.limit(one, other)
            plain.limit(one, other)
            journal.expire(now)
            plain.expire(now)
        assert len(journal) == len(plain.notes)
        for user in ("", "ann", "bob", "zoe"):
            assert journal.since(user, now, 0) == plain.since(user, now)
    for user, number in Counter(told.user for told in plain.notes).items():
        expected = sorted(
            (told for told in plain.notes if told.user == user), key=lambda told: (told.seconds, told.is_claimed)
        )
        assert journal.of(user, now) == expected
        assert number <= NOTES_TOLD
    assert set(journal._known._users) == {told.user for told in plain.notes if not told.is_claimed}
    assert set(journal._claimed._users) == {told.user for told in plain.notes if told.is_claimed}


# -- workers that were killed --------------------------------------------------------------


def test_users_are_told_of_the_workers_that_they_lost() -> None:
    """Each end of a worker on which the user had connections, the oldest first, until it is too old."""
    lost = LostWorkers(HOUR)
    lost.add(1, 10, ["ann", "bob", "ann"])
    lost.add(2, 20, ["ann"])
    assert lost.of("ann", 30) == [Lost(1, 10), Lost(2, 20)]
    assert lost.of("bob", 30) == [Lost(1, 10)]
    assert lost.of("cid", 30) == []
    assert lost.of("ann", HOUR + 15) == [Lost(2, 20)]
    lost.expire(HOUR + 15)
    assert len(lost._workers) == 1
    lost.expire(HOUR + 25)
    assert not lost._workers


def test_the_last_lost_workers_are_remembered() -> None:
    """LOST_WORKERS_MAX of them, however few users they had."""
    lost = LostWorkers(HOUR)
    for worker in range(LOST_WORKERS_MAX + 4):
        lost.add(worker, worker, ["ann"])
    assert [end.worker for end in lost.of("ann", 100)] == list(range(4, LOST_WORKERS_MAX + 4))


def test_the_oldest_lost_worker_makes_room() -> None:
    """When there would be too many users the oldest worker's go as a whole."""
    lost = LostWorkers(HOUR)
    half = LOST_USERS_MAX // 2
    lost.add(1, 1, ["ann"])
    lost.add(2, 2, map(str, range(half)))
    lost.add(3, 3, map(str, range(half)))
    assert lost.of("ann", 4) == []
    assert lost.of("7", 4) == [Lost(2, 2), Lost(3, 3)]


def test_too_many_users_of_one_worker_are_cut() -> None:
    """Of more users of one worker than there is room for the first ones are remembered."""
    lost = LostWorkers(HOUR)
    lost.add(1, 1, map(str, range(LOST_USERS_MAX + 1)))
    assert lost.of(str(LOST_USERS_MAX - 1), 2) and not lost.of(str(LOST_USERS_MAX), 2)


def test_as_many_users_as_there_is_room_for_are_whole() -> None:
    """A worker with just LOST_USERS_MAX users, some of them with several connections, is not cut."""
    lost = LostWorkers(HOUR)
    lost.add(1, 1, ["7", *map(str, range(LOST_USERS_MAX))])
    assert lost.of(str(LOST_USERS_MAX - 1), 2)
