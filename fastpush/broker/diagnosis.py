"""Why a user did not get it: what follows from a report, in sentences.

    Why ──► Case: what the rules ask for, found once ──► RULES, each with its findings ──► the weightiest first

A rule looks at one thing, and says nothing where that is not so. What a finding says stands in the report; what is
only likely is said to be. Texts of clients stand in quotes, escaped where they hold what does not print, so that a
finding may be shown anywhere. Times are this host's local ones. What codes mean: broker/causes.py; a Case is of
broker/case.py.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, TypeVar

from fastpush.broker.case import ENDING_SECONDS, Case, is_push, reached_nobody
from fastpush.broker.causes import LEFT, SLOW, STOPPED, Cause, drop_cause, end_of, push_advice, refusal_of
from fastpush.broker.words import (
    answer_of,
    capital,
    length,
    names_of,
    on_path,
    place_of,
    quoted,
    reason_of,
    were,
    with_event,
)
from fastpush.errors import CloseCode
from fastpush.http.proxies import host_of
from fastpush.protocol.client import DisconnectCode, reconnects
from fastpush.protocol.insight import Held, Note, Push, Why, counted

Entry = TypeVar("Entry")

_FRESH_TOKEN_CODES = {CloseCode.TOKEN_EXPIRED, DisconnectCode.EXPIRED, DisconnectCode.SUBSCRIPTION_EXPIRED}
_WHO = {"client": "by the client", "server": "by this server", "back-end": "by your back-end"}


class Weight(IntEnum):
    """How much a finding explains of pushes that are missing now: the least number first."""

    UNSURE = 0  # the user seems to be away, and the report is not complete
    ABSENT = 1  # it is not connected, and why
    STRANGERS = 2  # perhaps why
    NOT_TAKEN = 3  # the last pushes were refused
    UNREAD = 4  # perhaps they were
    ELSEWHERE = 5  # it is connected, and registered for something else
    BEHIND = 6  # it does not take what it is sent
    LOST = 7  # messages that it was owed are gone
    AWAY = 8  # pushes came while it was not connected
    PAST = 9  # it is over, or concerns other connections
    WELL = 10
    DISTANT = 11  # it may concern others altogether


class Finding(NamedTuple):
    """seconds: when it happened; of the same weight the latest comes first."""

    weight: Weight
    seconds: float
    text: str


def findings(why: Why) -> list[str]:
    """Say what follows from a report, the most important first; at least one sentence.

    Args: why: a report whose findings are still to come.
    """
    case = Case(why)
    found = [finding for rule in RULES for finding in rule(case)]
    found.sort(key=lambda finding: (finding.weight, -finding.seconds))
    return [finding.text for finding in found]


# -- who is connected ----------------------------------------------------------------


def incomplete(case: Case) -> Iterator[Finding]:
    """Workers that did not answer."""
    why = case.why
    if why.missing:
        here = "" if case.is_here else f", and {case.user} may be connected there"
        text = (
            f"This report is not complete: {why.missing} of {counted(why.workers, 'worker')} did not answer{here}. Ask "
            "again; a worker that stays silent for [server] hang_seconds is replaced, `fastpush status` shows them."
        )
        yield Finding(Weight.PAST if case.is_here else Weight.UNSURE, why.asked_seconds, text)


def unknown(case: Case) -> Iterator[Finding]:
    """Nothing tells of a connection of the user that has ended, or that was tried."""
    why = case.why
    if case.is_here or case.closed or case.refused or why.lost:
        return
    opened = [note for note in why.notes if note.kind == "opened"]
    if opened:
        text = f"{capital(case.user)} connected at {case.at(opened[-1].seconds)}; how that ended is not known."
    else:
        text = (
            f"{capital(case.user)} is not connected, and no connection of it was opened, closed or refused on this "
            f"host since {case.at(why.since_seconds)}; nothing older is known. Does its client run and come to this "
            "host, and does its token name exactly this user?"
        )
    yield Finding(Weight.ABSENT, 0, text)


def well(case: Case) -> Iterator[Finding]:
    """What works: its connections, and the last push that reached it."""
    if not case.is_here:
        return
    held, push = case.held, case.last_delivered
    since = min(connection.since_seconds for connection in held)
    count = len(held) + case.why.connections_left_out
    oldest = ", the oldest one" if count > 1 else ""
    text = f"{capital(case.user)} is connected: {counted(count, 'connection')}{oldest} since {case.at(since)}"
    text += f"{_registrations(case)}."
    if push is None:
        text += " None of the pushes that this host remembers ([admin] remember_pushes) has reached it."
    else:
        text += f" The last delivered push{with_event(push.event)} came at {case.at(push.seconds)}: {_reach(push)}."
        if not any(connection.queued_messages for connection in held):
            text += " Nothing waits for it here: what its client made of it only the client can tell."
    yield Finding(Weight.WELL, since, text)


def _registrations(case: Case) -> str:
    told = [f"registered for {names_of(case.events)}"] if case.events else []
    told += [f"in channel{'s'[: len(case.channels) > 1]} {names_of(case.channels)}"] if case.channels else []
    if not told:
        told = [f"at {names_of(sorted({held.path for held in case.held}))}"]
    return f", {' and '.join(told)}"


def _reach(push: Push) -> str:
    """Say whom a push reached; of one to many nobody counts each user's."""
    took = f"{counted(push.sent, 'connection')} took it in {push.duration_ms:.1f} ms"
    if push.users == 1:
        return took
    return f"it went to {'everybody' if push.users == 0 else f'{push.users} users'}: {took}"


# -- how connections ended ------------------------------------------------------------


def ended(case: Case) -> Iterator[Finding]:
    """Connections that were closed: the last one of each kind."""
    for alike in _grouped(case.closed, lambda note: (end_of(note), note.code, note.by)):
        note = alike[-1]
        end, is_last, waited = end_of(note), case.is_last(note.seconds), _waited(case, note)
        if end is LEFT and not is_last:
            continue  # it left, and is here again: nothing to explain
        who = f" {_WHO[note.by]}" if note.by in _WHO else ""
        reason = f", {quoted(note.reason)}" if note.reason else ""
        text = (
            f"A connection of {case.user}{place_of(note)} was closed{who} at {case.at(note.seconds)}, with "
            f"{note.code}{reason}: {end.why}.{_lost(waited)}{_again(case, alike)}"
            f"{_return(case, note.seconds, note.code, end)}"
        )
        if end.advice and (is_last or end is not STOPPED):
            text += f" {end.advice}"
        weight = Weight.LOST if end is SLOW or waited or _missed(case, note.seconds) else Weight.PAST
        yield Finding(Weight.ABSENT if is_last else weight, note.seconds, text)


def killed(case: Case) -> Iterator[Finding]:
    """Workers that ended without a drain."""
    for lost in case.why.lost:
        text = (
            f"worker-{lost.worker} ended without a drain, killed or crashed, at {case.at(lost.seconds)}, and with it "
            f"the connections of {case.user} there and what was on its way to them. The log says more of that worker."
            f"{_return(case, lost.seconds)}"
        )
        weight = Weight.LOST if _missed(case, lost.seconds) else Weight.PAST
        yield Finding(Weight.ABSENT if case.is_last(lost.seconds) else weight, lost.seconds, text)


def _return(case: Case, seconds: float, code: int = 1006, end: Cause | None = None) -> str:
    """Say whether the user came back after that time, and whether its client should have."""
    if case.was_here_beside(seconds):
        return " Another connection of it stayed open."
    back = case.returned(seconds)
    if back is not None:
        missed = _missed(case, seconds)
        meanwhile = f", and {_counted(case, missed)} meanwhile reached nobody" if missed else ""
        return f" It connected again {length(back - seconds)} later{meanwhile}."
    unseen = next((lost.worker for lost in case.why.lost if lost.seconds > seconds), None)
    if unseen is not None:  # what a worker noted in its last second has gone with it
        return f" It connected again, to worker-{unseen}, before that one ended."
    if any(note.seconds > seconds and not note.connection and not note.is_claimed for note in case.refused):
        return " It has tried to come back since, and was not let in."
    return f" It has not come back since{_expected(code, end)}"


def _missed(case: Case, seconds: float) -> list[Push]:
    """Return the pushes that reached nobody from that time on, until the user came back."""
    back = case.returned(seconds) or case.why.asked_seconds
    pushes = filter(case.has_missed, case.why.pushes)
    return [push for push in pushes if seconds - ENDING_SECONDS <= push.seconds <= back]


def _expected(code: int, end: Cause | None) -> str:
    """Say whether clients come back after such an end."""
    if end is LEFT:
        return "."
    if code in _FRESH_TOKEN_CODES:
        return "; its client should, with a fresh token."
    if not reconnects(code):
        return f": after {code} clients do not by themselves."
    return ", though clients should: does this one connect again, and to this host?"


def _waited(case: Case, note: Note) -> int:
    """Count the messages that waited for a connection when it was closed, and were never written."""
    drops = [drop for drop in case.dropped if drop.connection == note.connection]
    return sum(drop.messages for drop in drops if drop.reason in {"slow", "lost"})


def _again(case: Case, alike: Sequence[Note]) -> str:
    return f" {len(alike)} of its connections ended so since {case.clock(alike[0].seconds)}." if len(alike) > 1 else ""


def _lost(waited: int) -> str:
    return f" {counted(waited, 'message')} that waited for it {were(waited)} not delivered." if waited else ""


# -- who was not let in ----------------------------------------------------------------


def refused(case: Case) -> Iterator[Finding]:
    """Connections and registrations that were refused, of the user or in its name."""
    alike_by = _grouped(
        case.refused, lambda note: (note.is_claimed, bool(note.connection), note.what, refusal_of(note))
    )
    for alike in alike_by:
        note = alike[-1]
        cause = refusal_of(note)
        who = f"A client whose token says {case.user}" if note.is_claimed else capital(case.user)
        wanted = f"did not get {quoted(note.what)}" if note.what else "was not let in"
        text = (
            f"{who} {wanted} at {case.at(note.seconds)}{case.times(alike)}{place_of(note)}, because {cause.why}"
            f"{answer_of(note)}. {cause.advice}"
        )
        if note.is_claimed:
            text += " Nobody vouches for what that token says: it need not have been this user."
        back = case.returned(note.seconds)
        if back is not None:
            text += f" {capital(case.user)} was let in {length(back - note.seconds)} later."
        is_without = note.what != "" and note.what not in case.events and note.what not in case.channels
        weight = Weight.ELSEWHERE if case.is_here and note.connection and is_without else Weight.PAST
        absent = Weight.STRANGERS if note.is_claimed else Weight.ABSENT
        yield Finding(weight if case.is_here or back is not None else absent, note.seconds, text)


def strangers(case: Case) -> Iterator[Finding]:
    """Where no refusal tells why the user is away: clients whose user nobody knows."""
    if case.is_here or case.refused:
        return
    found = [note for note in case.why.strangers if not is_push(note) and note.seconds >= case.last_end]
    clients = [note for note in found if not _is_left_out(note)]
    for alike in _grouped(clients, refusal_of):
        note, cause = alike[-1], refusal_of(alike[-1])
        peers = sorted({host_of(each.peer) for each in alike})
        text = (
            f"A client whose user is not known was refused on this host at {case.at(note.seconds)}{case.times(alike)}"
            f"{on_path(note)}, because {cause.why}{answer_of(note)}; from {names_of(peers, quote=False)}. "
            f"This may have been {case.user}. {cause.advice}"
        )
        yield Finding(Weight.STRANGERS, note.seconds, text)


def unnoted(case: Case) -> Iterator[Finding]:
    """Seconds in which so much happened that not all of it was noted, where what is noted does not tell all."""
    seconds = [note for note in case.why.strangers if _is_left_out(note) and note.seconds >= case.last_end]
    if case.is_here or not seconds:
        return
    note = seconds[-1]
    text = (
        f"So much happened at {case.at(note.seconds)}{case.times(seconds)} that worker-{note.worker} did not note all "
        f"of it ({note.reason}): something about {case.user} may be missing here."
    )
    yield Finding(Weight.STRANGERS, note.seconds, text)


# -- pushes ------------------------------------------------------------------------------


def not_taken(case: Case) -> Iterator[Finding]:
    """Pushes to the user that were refused."""
    for alike in _grouped(case.not_taken, lambda note: note.code):
        note = alike[-1]
        text = (
            f"A push to {case.user}{with_event(note.what)} was refused at {case.at(note.seconds)}{case.times(alike)} "
            f"with {note.code}{reason_of(note)}. {push_advice(note)}"
        )
        yield Finding(Weight.LOST if _is_over(case, note) else Weight.NOT_TAKEN, note.seconds, text)


def unread(case: Case) -> Iterator[Finding]:
    """Pushes that were refused before anybody knew for whom they were."""
    for alike in _grouped(filter(is_push, case.why.strangers), lambda note: note.code):
        note = alike[-1]
        text = (
            f"A push was refused at {case.at(note.seconds)}{case.times(alike)} with {note.code}, before anybody knew "
            f"for whom it was{reason_of(note)}. It may have been for {case.user}. {push_advice(note)}"
        )
        yield Finding(Weight.DISTANT if _is_over(case, note) else Weight.UNREAD, note.seconds, text)


def _is_over(case: Case, note: Note) -> bool:
    """Tell whether a later push than the refused one has reached the user."""
    delivered = case.last_delivered
    return delivered is not None and delivered.seconds > note.seconds


def unconfirmed(case: Case) -> Iterator[Finding]:
    """Pushes that not all workers have counted."""
    pushes = [push for push in case.why.pushes if push.outcome == "unconfirmed"]
    if pushes:
        push = pushes[-1]
        text = (
            f"The push{with_event(push.event)} at {case.at(push.seconds)} was not counted in time by "
            f"{counted(push.unconfirmed, 'worker')} ([bus] confirm_ms): nobody knows whether {case.user} got it there. "
            "`fastpush top` shows workers that are behind."
        )
        yield Finding(Weight.LOST, push.seconds, text)


def elsewhere(case: Case) -> Iterator[Finding]:
    """Pushes to events that the user was not registered for, while it was connected."""
    pushes = [push for push in case.why.pushes if push.source == "push" and _passed_by(case, push)]
    for alike in _grouped(pushes, lambda push: push.event):
        push = alike[-1]
        count = capital(_counted(case, alike)) if len(alike) > 1 else "A push"
        last = ", the last one" if len(alike) > 1 else ""
        text = (
            f"{count} to {case.user} with event {quoted(push.event)}{last} at {case.at(push.seconds)} reached none of "
            f"its connections: none was registered for that event. {_registered_for(case, push.event)}".rstrip()
        )
        yield Finding(Weight.AWAY if push.event in case.events else Weight.ELSEWHERE, push.seconds, text)


def _passed_by(case: Case, push: Push) -> bool:
    """Tell whether a push went past the user's connections."""
    if push.users == 1:
        return reached_nobody(push) and case.was_here(push.seconds) and not case.has_missed(push)
    # Of a push to several nobody knows whom it reached: what the connections are registered for now has to tell.
    is_whole = not (case.why.connections_left_out or case.why.missing or any(map(_is_cut, case.held)))
    is_known = push.event in case.events or any(push.event == held.path for held in case.held)
    return push.users > 1 and is_whole and not is_known and case.is_here and case.was_here(push.seconds)


def _is_told(case: Case, push: Push) -> bool:
    """Tell whether a missed push is counted where the end of a connection is told, and that the user came back."""
    back = case.returned(push.seconds)
    ends = [note.seconds for note in case.closed if end_of(note) is not LEFT] + [lost.seconds for lost in case.why.lost]
    return back is not None and any(case.returned(end) == back and end - ENDING_SECONDS <= push.seconds for end in ends)


def _registered_for(case: Case, event: str) -> str:
    if event in case.events:
        return "It has registered for it since."
    if case.events:
        return f"It is registered for {names_of(case.events)}{_hint(event, case.events)}."
    if not case.is_here:
        before = next((note.what.split(", ") for note in reversed(case.closed) if note.what), [])
        return f"Its last connection was registered for {names_of(before)}{_hint(event, before)}." if before else ""
    channels = " POST /api/publish reaches its channels, not POST /push." if case.channels else ""
    return f"It is registered for no event now.{channels}"


def _hint(event: str, events: Sequence[str]) -> str:
    """Name the event that was probably meant."""
    if event in events:
        return ""
    for meant in events:
        if meant.casefold() == event.casefold():
            return f": {quoted(meant)} differs in upper and lower case only"
        if meant.strip() == event.strip():
            return f": {quoted(meant)} differs in spaces only"
    near = difflib.get_close_matches(event, events, n=1)
    return f"; perhaps {quoted(near[0])} was meant" if near else ""


def away(case: Case) -> Iterator[Finding]:
    """Pushes that came while the user was not connected."""
    pushes = [push for push in case.why.pushes if case.has_missed(push) and not _is_told(case, push)]
    if not pushes:
        return
    last, count = pushes[-1], len(pushes)
    text = (
        f"{capital(_counted(case, pushes))} to {case.user} came while it was not connected, and reached nobody, "
        f"{'the last one ' if count > 1 else ''}at {case.at(last.seconds)}{with_event(last.event)}. Pushes are not "
        "kept for who is away; channels with history_messages keep theirs (docs/channels.md)."
    )
    back = case.returned(last.seconds)
    if back is not None:
        text += f" It connected {length(back - last.seconds)} later."
    yield Finding(Weight.AWAY, last.seconds, text)


def before(case: Case) -> Iterator[Finding]:
    """Pushes that reached nobody, from before it is known whether the user was connected."""
    for alike in _grouped(filter(case.is_from_before, case.why.pushes), lambda push: push.event):
        last, which = alike[-1], "the last one " if len(alike) > 1 else ""
        hint = "" if last.event in case.events else f" {_registered_for(case, last.event)}"
        text = (
            f"{capital(_counted(case, alike))} to {case.user}{with_event(last.event)} reached nobody, {which}at "
            f"{case.at(last.seconds)}. Whether it was connected then is not known any more: what happened to it is "
            f"known since {case.clock(case.why.since_seconds)}.{hint}".rstrip()
        )
        yield Finding(Weight.AWAY, last.seconds, text)


def _counted(case: Case, pushes: Sequence[Push]) -> str:
    """Say how many pushes these are, as far as the report has them."""
    return f"{'at least ' * case.may_be_more(pushes)}{counted(len(pushes), 'push', 'pushes')}"


# -- slow clients --------------------------------------------------------------------------


def dropped(case: Case) -> Iterator[Finding]:
    """Messages that were owed to a connection and not written, but for those that `ended` tells of."""
    told = {note.connection for note in case.closed}
    notes = [note for note in case.dropped if note.reason in {"oldest", "latest"} or note.connection not in told]
    for alike in _grouped(notes, lambda note: note.reason):
        note, messages = alike[-1], sum(each.messages for each in alike)
        text = (
            f"{counted(messages, 'message')} for {case.user} {were(messages)} dropped by {case.at(note.seconds)}"
            f"{case.times(alike)}{place_of(note)}: {drop_cause(note)}. {SLOW.advice.partition(', and slow_policy')[0]}."
        )
        yield Finding(Weight.LOST, note.seconds, text)


def behind(case: Case) -> Iterator[Finding]:
    """Connections that messages wait for."""
    for held in case.held:
        if held.queued_messages:
            waiting = f"{counted(held.queued_messages, 'message')} ({held.queued_bytes:,} bytes)"
            text = (
                f"{waiting} now {'waits' if held.queued_messages == 1 else 'wait'} for the connection of {case.user} "
                f"from {held.peer} (worker-{held.worker}), which takes them too slowly; its last sign "
                f"of life was {length(held.heard_seconds_ago)} ago. Is its network slow, or its page or device asleep?"
            )
            if held.dropped_messages:
                gone = held.dropped_messages
                text += f" {counted(gone, 'message')} {were(gone)} dropped to make room for newer ones."
            yield Finding(Weight.BEHIND, case.why.asked_seconds, text)


RULES: tuple[Callable[[Case], Iterable[Finding]], ...] = (
    incomplete, unknown, ended, killed, refused, strangers, unnoted, not_taken, unread, unconfirmed, elsewhere, away,
    before, dropped, behind, well,
)  # fmt: skip


# -- what notes and pushes say ---------------------------------------------------------------


def _is_left_out(note: Note) -> bool:
    """Tell whether a note stands for others, which were left out."""
    return not (note.code or note.path)


def _is_cut(held: Held) -> bool:
    """Tell whether a connection has keys that are not told in full."""
    names = (*held.events, *held.channels)
    return held.keys > len(names) or any(name.endswith("…") for name in names)


def _grouped(entries: Iterable[Entry], key: Callable[[Entry], object]) -> list[list[Entry]]:
    """Return entries that are alike together, in their order."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return list(groups.values())
