"""What happened to users, as far as it is remembered: the last notes of each, and the workers that were killed.

Nobody's notes push out another's before the room of all is used, and what anybody may claim never pushes out what is
known: notes of a user that only a token names which was not accepted have a room of their own. Time is told, in Unix
seconds.

Memory: 800 bytes a note with texts of usual lengths, 1.8 KB with texts that were cut (measured, user and texts among
it): 16 MB for 20,000. A user of a lost worker takes 100 bytes.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from fastpush.errors import CloseCode
from fastpush.protocol.insight import NOTES_TOLD, STRANGERS_TOLD, Lost, Note

CLAIMED_TOLD = 10  # of a user
LOST_WORKERS_MAX = 16
LOST_USERS_MAX = 200_000  # of all of them
_CLAIMED_SHARE = 10
_EXPIRED_MAX = 2000  # in one call: a few milliseconds


class WorkerEnd(NamedTuple):
    """What is noted of connections that end with their worker; see Note."""

    code: int
    reason: str
    by: str


KILLED = WorkerEnd(1006, "worker ended", "network")
DRAINED = WorkerEnd(CloseCode.SERVICE_RESTART, "server is restarting", "server")


class Journal:
    """The last notes of every user, NOTES_TOLD of each, claimed ones among them; of strangers (""), STRANGERS_TOLD.

    notes_max: of all users; a tenth of that is for claimed ones.  keep_seconds: how old a note gets.
    """

    def __init__(self, notes_max: int, keep_seconds: float) -> None:
        self._known = _Notes(NOTES_TOLD - CLAIMED_TOLD)
        self._claimed = _Notes(CLAIMED_TOLD)
        self.limit(notes_max, keep_seconds)

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self._known) + len(self._claimed)

    def limit(self, notes_max: int, keep_seconds: float) -> None:
        """Keep so many notes, and so long, from now on."""
        self._keep_seconds = keep_seconds
        claimed_max = notes_max // _CLAIMED_SHARE
        self._claimed.limit(claimed_max)
        self._known.limit(notes_max - claimed_max)

    def add(self, note: Note) -> None:
        """Remember `note` as the newest: the oldest of its user goes, or the oldest of all. Cost O(1), 2 µs."""
        notes = self._claimed if note.is_claimed and note.user else self._known
        notes.add(note)

    def of(self, user: str, now: float) -> list[Note]:
        """Return the notes of `user` that are not too old, the oldest first: at most NOTES_TOLD."""
        oldest_seconds = now - self._keep_seconds
        notes = [*self._known.of(user), *self._claimed.of(user)]
        return sorted((note for note in notes if note.seconds >= oldest_seconds), key=lambda note: note.seconds)

    def since(self, user: str, now: float, started_seconds: float) -> float:
        """Return from when on all is known of `user`, but for claims."""
        return max(started_seconds, now - self._keep_seconds, self._known.since(user))

    def expire(self, now: float) -> None:
        """Drop what is too old; called each second, for it does a bounded part of that."""
        oldest_seconds = now - self._keep_seconds
        self._known.expire(oldest_seconds)
        self._claimed.expire(oldest_seconds)

    def end_worker(self, worker: int, seconds: float, end: WorkerEnd) -> set[str]:
        """Note the end of each connection that seems to be open on a worker which has ended; return their users.

        Cost: a look at every note; such ends are rare.
        """
        opened: dict[tuple[str, str], Note] = {}
        for note in self._known:
            if note.worker == worker and note.kind == "opened":
                opened[note.user, note.connection] = note
            elif note.worker == worker and note.kind == "closed":
                opened.pop((note.user, note.connection), None)
        for note in opened.values():
            self.add(
                Note(
                    seconds, "closed", note.user, worker, note.connection, note.path, note.peer, *end,
                )
            )  # fmt: skip
        return {user for user, _ in opened}


class _Notes:
    """Notes by user, each with a serial number, in the order in which they came.

    user_limit: of a user; a few, for a short list's first one leaves at little cost, and such a list is small.
    """

    def __init__(self, user_limit: int) -> None:
        self._lost_seconds = 0.0  # time of the newest note that went for want of room of all; 0: none did
        self._limit = 0
        self._user_limit = user_limit
        self._notes: OrderedDict[int, Note] = OrderedDict()  # a dict would look for its first one ever longer
        self._users: dict[str, list[int]] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._notes)

    def __iter__(self) -> Iterator[Note]:
        return iter(self._notes.values())

    def limit(self, notes_max: int) -> None:
        """Keep so many of all users."""
        self._limit = notes_max
        self._make_room()

    def of(self, user: str) -> list[Note]:
        """Return the notes of `user`."""
        return [self._notes[serial] for serial in self._users.get(user, ())]

    def since(self, user: str) -> float:
        """Return the time from which on no note of `user` has gone for want of room; 0: none has."""
        own = self.of(user)
        return max(self._lost_seconds, own[0].seconds) if len(own) >= self._user_limit else self._lost_seconds

    def add(self, note: Note) -> None:
        """Add a note as the newest."""
        self._serial += 1
        self._notes[self._serial] = note
        serials = self._users.setdefault(note.user, [])
        serials.append(self._serial)
        if len(serials) > (self._user_limit if note.user else STRANGERS_TOLD):
            del self._notes[serials.pop(0)]
        self._make_room()

    def expire(self, oldest_seconds: float) -> None:
        """Remove the oldest ones while they are older than that: _EXPIRED_MAX at most."""
        for _ in range(_EXPIRED_MAX):
            oldest = next(iter(self), None)
            if oldest is None or oldest.seconds >= oldest_seconds:
                break
            self._remove_oldest()

    def _make_room(self) -> None:
        while len(self._notes) > self._limit:
            self._lost_seconds = max(self._lost_seconds, self._remove_oldest().seconds)

    def _remove_oldest(self) -> Note:
        _, note = self._notes.popitem(last=False)
        serials = self._users[note.user]
        serials.pop(0)  # a user's notes come in the order of all
        if not serials:
            del self._users[note.user]
        return note


class _LostWorker(NamedTuple):
    told: Lost
    users: frozenset[str]


class LostWorkers:
    """The users of workers that were killed: of the last LOST_WORKERS_MAX, and LOST_USERS_MAX users of all of them.

    keep_seconds: how long.
    """

    def __init__(self, keep_seconds: float) -> None:
        self.keep_seconds = keep_seconds
        self._workers: deque[_LostWorker] = deque(maxlen=LOST_WORKERS_MAX)

    def add(self, worker: int, seconds: float, users: Iterable[str]) -> None:
        """Remember that a worker has ended, and whose connections it had, of LOST_USERS_MAX users at most.

        Earlier ones go for want of room.
        """
        known = frozenset(islice(dict.fromkeys(users), LOST_USERS_MAX))
        while sum(len(lost.users) for lost in self._workers) + len(known) > LOST_USERS_MAX:
            self._workers.popleft()
        self._workers.append(_LostWorker(Lost(worker, seconds), known))

    def of(self, user: str, now: float) -> list[Lost]:
        """Return the ends of workers on which `user` had connections, the oldest first."""
        oldest_seconds = now - self.keep_seconds
        return [lost.told for lost in self._workers if user in lost.users and lost.told.seconds >= oldest_seconds]

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        while self._workers and self._workers[0].told.seconds < now - self.keep_seconds:
            self._workers.popleft()
