"""What a worker notes of its users' connections for operators, and remembers of the pushes that it took.

Notes go to the broker, once a second and before each answer, and outlive this process there. Pushes are many: they
stay here as plain tuples, the last ones only, delivered and others apart, so that what went well does not push out
what did not, and those to many users apart from both: their routing keys are most of what is kept. A push costs one
`append`; all else is done when somebody asks.
"""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from heapq import nlargest
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, Literal

from fastpush.config import Admin
from fastpush.errors import RequestError, TokenRejected
from fastpush.http.admin import is_admin
from fastpush.metrics import Counters
from fastpush.protocol.insight import (
    BUSIEST_TOLD,
    BUSY_SECONDS,
    PUSHES_TOLD,
    TEXT_CHARACTERS_MAX,
    Busy,
    Note,
    NoteKind,
    Push,
    cut,
    told_pushes,
)
from fastpush.protocol.push import EVERYBODY, channel_of, is_channel_key, is_user_key, parse_user_key, user_key_start

if TYPE_CHECKING:
    from fastpush.worker.sending import Sender

NOTES_A_SECOND = 2000  # a drain closes half as many; more are left out, and counted
REFUSALS_A_SECOND = 100  # of users, of back-ends, and of strangers each, so that a flood of one hides no other
FEW_USERS = 10  # a push to more of them is one to many
KEYS_REMEMBERED = 100_000  # of all pushes to many users: 7 MB, and 7 ms to look through
_BUSY_PUSHES = 500  # looked at to find the busiest: a millisecond
_BUSY_KEYS = 200  # whose names are made out
_USERS_NOTED = 10  # of a refused push
_SHOWN_BYTES = 4 * TEXT_CHARACTERS_MAX

Record = tuple[str, bytes | list[bytes], str, int, bytes | None, float, float, int, int]
"""A push: source, routing key or several, event where no key has it, size and perhaps beginning of the message, when it
was taken and when answered (CLOCK_MONOTONIC), connections reached, workers not counted. It holds few objects: a
push writes over the oldest one's memory, and the more of that the less a processor's caches hold of all else."""
_KEYS: Final = 1
_ANSWERED: Final = 6
_SENT: Final = 7


class Notebook:
    """One worker's notes and pushes.

    number: of the worker process.
    delivered, undelivered: the last pushes, of those that reached somebody and whose counts are whole, and of others.
    to_many: the last ones to more than FEW_USERS, with KEYS_REMEMBERED routing keys in all.
    notes: not sent to the broker yet.  left_out: notes of this second that there were too many of.
    """

    def __init__(self, number: int, admin: Admin, counters: Counters) -> None:
        self.number = number
        self._counters = counters
        self.delivered: deque[Record] = deque(maxlen=admin.remember_pushes)
        self.undelivered: deque[Record] = deque(maxlen=admin.remember_pushes)
        self.to_many: deque[Record] = deque()
        self._many_keys = 0
        self._many_most = admin.remember_pushes
        self.shows_messages = admin.show_messages
        self.notes: list[Note] = []
        self.left_out = 0
        self._refusals: Counter[str] = Counter()

    def configure(self, admin: Admin) -> None:
        """Remember by these settings from now on."""
        self.delivered = deque(self.delivered, admin.remember_pushes)
        self.undelivered = deque(self.undelivered, admin.remember_pushes)
        self._many_most = admin.remember_pushes
        self._bound_many()
        self.shows_messages = admin.show_messages

    @property
    def remembered(self) -> int:
        """Return the number of pushes that are remembered."""
        return len(self.delivered) + len(self.undelivered) + len(self.to_many)

    # -- what is noted -----------------------------------------------------------------

    def opened(self, connection: "Sender") -> None:
        """The user of a connection has become known."""
        self._note("opened", connection)

    def closed(self, connection: "Sender", code: int, reason: str, by: str) -> None:
        """A connection ends; call it while it still has its routing keys."""
        if connection.user:
            what = cut(", ".join(dict.fromkeys(_names(connection))))
            self._note("closed", connection, code=code, reason=cut(reason), by=by, what=what)

    def dropped(self, connection: "Sender", reason: str, messages: int) -> None:
        """A connection was not given messages that it was owed."""
        if connection.user:
            self._note("dropped", connection, reason=reason, messages=messages)

    def turned_down(self, connection: "Sender", code: int, error: Exception, what: str = "") -> None:
        """An open connection was refused something: a registration, a subscription."""
        user, is_claimed = _whom(connection.user, error)
        if self._may_refuse("user" if user and not is_claimed else "stranger"):
            reason = cut(str(error))
            self._note(
                "refused", connection, user=user, code=code, reason=reason, what=cut(what), is_claimed=is_claimed
            )

    def refused(self, error: Exception, code: int, path: str, peer: str, user: str = "") -> None:
        """A client was not let in; operators, at the administration page, are none. user: where it was known."""
        if is_admin(path):
            return
        user, is_claimed = _whom(user, error)
        if self._may_refuse("user" if user and not is_claimed else "stranger"):
            self.add(
                Note(
                    time.time(), "refused", cut(user), self.number, path=cut(path), peer=peer, code=code,
                    reason=cut(str(error)), is_claimed=is_claimed,
                )
            )  # fmt: skip

    def push_refused(self, error: RequestError, path: str, peer: str) -> None:
        """A push was not taken."""
        for user in error.users[:_USERS_NOTED] or ("",):
            if self._may_refuse("back-end"):
                what, reason = cut(error.event), cut(error.reason)
                self.add(
                    Note(
                        time.time(), "refused", cut(user), self.number, path=cut(path), peer=cut(peer),
                        code=error.status, reason=reason, what=what, by="back-end",
                    )
                )  # fmt: skip

    def _note(self, kind: NoteKind, connection: "Sender", *, user: str | None = None, **told: Any) -> None:
        self.add(
            Note(
                time.time(), kind, cut(connection.user if user is None else user), self.number, connection.id,
                cut(connection.mount.path), connection.peer, **told,
            )
        )  # fmt: skip

    def _may_refuse(self, who: Literal["user", "back-end", "stranger"]) -> bool:
        self._refusals[who] += 1
        if self._refusals[who] <= REFUSALS_A_SECOND:
            return True
        self._leave_out()
        return False

    def add(self, note: Note) -> None:
        """Note something; what is too much for a second is only counted."""
        if len(self.notes) < NOTES_A_SECOND:
            self.notes.append(note)
        else:
            self._leave_out()

    def _leave_out(self) -> None:
        self.left_out += 1
        self._counters.notes_left_out += 1

    def end_second(self) -> None:
        """Begin another second; say how many notes are missing from the last one."""
        if self.left_out and len(self.notes) < NOTES_A_SECOND:
            reason = f"{self.left_out} more notes within a second were left out"
            self.notes.append(Note(time.time(), "refused", "", self.number, reason=reason))
            self.left_out = 0
        self._refusals.clear()

    # -- what is remembered ------------------------------------------------------------

    def remember(
        self, source: str, keys: list[bytes], event: str, message: bytes, taken: float, sent: int, unconfirmed: int
    ) -> None:
        """Remember a push that was taken, and what became of it."""
        kept = self.delivered if sent and not unconfirmed else self.undelivered
        shown = message[:_SHOWN_BYTES] if self.shows_messages else None
        if len(keys) == 1:
            key = keys[0]
            own = event if key is EVERYBODY else ""
            kept.append((source, key, own, len(message), shown, taken, time.monotonic(), sent, unconfirmed))
            return
        is_to_many = len(keys) > FEW_USERS
        if is_to_many:
            kept = self.to_many
        kept.append((source, keys, "", len(message), shown, taken, time.monotonic(), sent, unconfirmed))
        if is_to_many:
            self._many_keys += len(keys)
            self._bound_many()

    def _bound_many(self) -> None:
        while self._many_keys > KEYS_REMEMBERED or len(self.to_many) > self._many_most:
            self._many_keys -= len(_keys(self.to_many.popleft()))

    def pushes(self, user: str) -> list[Push]:
        """Return the last pushes that were addressed to a user, oldest first.

        Cost: a tenth of a microsecond for each that is remembered, and for each routing key of those to several.
        """
        start = user_key_start(user)
        all_kept = (self.delivered, self.undelivered, self.to_many)
        found = [record for kept in all_kept for record in _addressed(kept, start)[:PUSHES_TOLD]]
        offset_seconds = time.time() - time.monotonic()
        return told_pushes(self._told(record, offset_seconds) for record in found)

    def _told(self, record: Record, offset_seconds: float) -> Push:
        source, _, event, size, message, taken, answered, sent, unconfirmed = record
        keys = _keys(record)
        outcome = "unconfirmed" if unconfirmed else "delivered" if sent else "nobody"
        to_all = keys[0] == EVERYBODY
        event = event if to_all else parse_user_key(keys[0])[1]
        return Push(
            answered + offset_seconds, f"{source} all" if to_all else source, cut(event), size,
            0 if to_all else len(keys), self.number, outcome, sent, unconfirmed,
            round((answered - taken) * 1000, 3),
            None if message is None or not self.shows_messages else cut(message.decode(errors="replace")),
        )  # fmt: skip

    def busiest(self) -> tuple[list[Busy], list[Busy]]:
        """Return the users and the channels that most was sent to lately, by the pushes that this worker took.

        A push to many users makes none of them busier than the others: it is left out.
        """
        now = time.monotonic()
        pushes: defaultdict[bytes, float] = defaultdict(float)
        deliveries: defaultdict[bytes, float] = defaultdict(float)
        for kept in (self.delivered, self.undelivered):
            newest = list(
                islice(takewhile(lambda record: record[_ANSWERED] >= now - BUSY_SECONDS, reversed(kept)), _BUSY_PUSHES)
            )
            seconds = now - newest[-1][_ANSWERED] if len(newest) == _BUSY_PUSHES else BUSY_SECONDS
            for record in newest:
                keys = _keys(record)
                for key in keys:
                    pushes[key] += 1 / seconds
                    deliveries[key] += record[_SENT] / len(keys) / seconds
        busiest = nlargest(_BUSY_KEYS, pushes, key=lambda key: (deliveries[key], pushes[key]))
        users: dict[str, tuple[float, float]] = {}
        channels: dict[str, tuple[float, float]] = {}
        for key in busiest:
            name = _name(key)
            if name is not None:
                told = users if name[0] else channels
                before = told.get(name[1], (0.0, 0.0))
                told[name[1]] = before[0] + pushes[key], before[1] + deliveries[key]
        return _busiest(users), _busiest(channels)


def _whom(user: str, error: Exception) -> tuple[str, bool]:
    """Return who was refused, and whether only the token says so. user: where it is known."""
    if user or not isinstance(error, TokenRejected):
        return user, False
    return error.user, error.is_claimed


def _names(connection: "Sender") -> Iterator[str]:
    """Yield the events and channels that a connection is in."""
    for group in connection.groups:
        name = _name(group.key, of_event=True)
        if name is not None:
            yield name[1]


def _name(key: bytes, *, of_event: bool = False) -> tuple[bool, str] | None:
    """Return whether a routing key is of a user, and which user (or which event of it), or channel; None: everybody."""
    if is_user_key(key):
        return True, parse_user_key(key)[of_event]
    return (False, channel_of(key)) if is_channel_key(key) else None


def _keys(record: Record) -> list[bytes]:
    keys = record[_KEYS]
    return [keys] if isinstance(keys, bytes) else keys


def _addressed(kept: deque[Record], start: bytes) -> list[Record]:
    """Return the pushes that have a routing key with this start, or are to everybody, the newest first."""
    starts = (start, EVERYBODY)
    return [
        record
        for record in reversed(kept)
        if (
            keys.startswith(starts)
            if isinstance(keys := record[_KEYS], bytes)
            else any(key.startswith(starts) for key in keys)
        )
    ]


def _busiest(rates: Mapping[str, tuple[float, float]]) -> list[Busy]:
    most = nlargest(2 * BUSIEST_TOLD, rates, key=lambda name: (rates[name][1], rates[name][0]))
    return [Busy(cut(name), round(rates[name][0], 1), round(rates[name][1], 1)) for name in most]
