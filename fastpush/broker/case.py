"""A report on a user as the rules of broker/diagnosis.py ask it: who is here, since when, what was missed."""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fastpush.broker.words import length, quoted
from fastpush.protocol.insight import PUSHES_TOLD, Note, Push, Why, cut

_SAME_DAY_SECONDS = 43200  # what is older is told with its day
ENDING_SECONDS = 1  # a push that comes as a connection is closed is answered a little earlier
_ENDING_STATES = {"closing", "closed"}


class Stay(NamedTuple):
    """A time for which a connection of the user was open, as far as that is known."""

    start: float
    end: float


class Case:
    """A report, and what several rules ask of it.

    user: in words.  held: its open connections; those that are being closed are none.  is_here: whether it has any.
    refused: what clients were not let in for, or to.
    not_taken: refused pushes.  events, channels: of its connections now.
    """

    def __init__(self, why: Why) -> None:
        self.why = why
        self.user = f"user {quoted(cut(why.user))}"
        self.held = [held for held in why.connections if held.state not in _ENDING_STATES]
        self.is_here = bool(self.held)
        killed = {(lost.worker, lost.seconds) for lost in why.lost}  # those are told of by worker
        closed = [note for note in why.notes if note.kind == "closed"]
        self.closed = [note for note in closed if (note.worker, note.seconds) not in killed]
        self.dropped = [note for note in why.notes if note.kind == "dropped"]
        self.refused = [note for note in why.notes if note.kind == "refused" and not is_push(note)]
        self.not_taken = [note for note in why.notes if is_push(note)]
        self.events = sorted({event for held in self.held for event in held.events})
        self.channels = sorted({channel for held in self.held for channel in held.channels})
        self._stays = list(stays_of(why))

    @property
    def last_end(self) -> float:
        """When the last known connection ended; 0: none is known."""
        return max([note.seconds for note in self.closed] + [lost.seconds for lost in self.why.lost], default=0.0)

    @property
    def last_delivered(self) -> Push | None:
        """The last push that has reached the user, as far as can be told."""
        return next((push for push in reversed(self.why.pushes) if push.sent and self._has_reached(push)), None)

    def _has_reached(self, push: Push) -> bool:
        is_for_it = push.users != 1 and (push.users == 0 or push.event in self.events)
        return push.users == 1 or (is_for_it and self.was_here(push.seconds))

    def was_here(self, seconds: float) -> bool:
        """Tell whether the user had a connection at that time."""
        return any(stay.start <= seconds <= stay.end for stay in self._stays)

    def has_missed(self, push: Push) -> bool:
        """Tell whether a push to the user alone came while it was not connected, or just as it was closed."""
        if not reached_nobody(push):
            return False
        was_away = push.seconds >= self.why.since_seconds and not self.was_here(push.seconds)
        return was_away or any(
            0 <= note.seconds - push.seconds < ENDING_SECONDS and push.event in note.what.split(", ")
            for note in self.closed
        )

    def is_from_before(self, push: Push) -> bool:
        """Tell whether a push to the user alone reached nobody when it is not known whether it was connected."""
        return reached_nobody(push) and push.seconds < self.why.since_seconds and not self.was_here(push.seconds)

    def may_be_more(self, pushes: Sequence[Push]) -> bool:
        """Tell whether older pushes like these may have been left out of the report; see `told_pushes`."""
        wrong = sum(push.outcome != "delivered" for push in self.why.pushes)
        is_full = len(self.why.pushes) >= PUSHES_TOLD and any(push.outcome == "delivered" for push in pushes)
        return is_full or wrong >= PUSHES_TOLD // 2

    def was_here_beside(self, seconds: float) -> bool:
        """Tell whether a connection stayed when another one ended at that time."""
        return any(stay.start <= seconds < stay.end for stay in self._stays)

    def returned(self, seconds: float) -> float | None:
        """Return when it next connected after that time."""
        return min((stay.start for stay in self._stays if stay.start > seconds), default=None)

    def is_last(self, seconds: float) -> bool:
        """Tell whether what ended at that time is why the user is away."""
        return not self.is_here and seconds >= self.last_end

    def at(self, seconds: float) -> str:
        """Return a time in words: 03:11:12 (5 s ago)."""
        return f"{self.clock(seconds)} ({length(self.why.asked_seconds - seconds)} ago)"

    def clock(self, seconds: float) -> str:
        """Return a local time, with its day where that may be another one."""
        is_recent = self.why.asked_seconds - seconds < _SAME_DAY_SECONDS
        return time.strftime("%H:%M:%S" if is_recent else "%Y-%m-%d %H:%M:%S", time.localtime(seconds))

    def times(self, alike: Sequence[Note]) -> str:
        """Return how often something happened, where it was more than once."""
        return f", {len(alike)} times since {self.clock(alike[0].seconds)}" if len(alike) > 1 else ""


def is_push(note: Note) -> bool:
    """Tell whether a note is of a push that was refused."""
    return note.kind == "refused" and note.by == "back-end"


def reached_nobody(push: Push) -> bool:
    """Tell whether a push to one user alone has reached no connection."""
    return push.users == 1 and push.outcome == "nobody"


def stays_of(why: Why) -> Iterator[Stay]:
    """Give the times for which connections were open, as far as they are known."""
    opened = {note.connection: note for note in why.notes if note.kind == "opened"}
    ends = {note.connection: note.seconds for note in why.notes if note.kind == "closed"}
    for held in why.connections:  # by message a client may say late who it is
        if held.id not in ends:
            yield Stay(opened[held.id].seconds if held.id in opened else held.since_seconds, float("inf"))
    for connection, end in ends.items():
        yield Stay(opened[connection].seconds if connection in opened else min(why.since_seconds, end), end)
    known = ends.keys() | {held.id for held in why.connections}
    died = {lost.worker: lost.seconds for lost in why.lost}
    unseen = float("inf") if why.missing or why.connections_left_out else 0.0  # it may be open still
    for connection, note in opened.items():
        if connection not in known:
            yield Stay(note.seconds, died.get(note.worker, max(unseen, note.seconds)))
