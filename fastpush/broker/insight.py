"""What the broker tells operators: why a user got something or not, what the host is doing, and traces.

Questions and answers are those of protocol/insight.py. What only workers know is asked of all of them at that moment;
one that does not answer in time is counted as missing. No I/O; time is told.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
import orjson

from fastpush import __version__
from fastpush.broker.diagnosis import findings
from fastpush.broker.inquiries import Inquiries, Inquiry
from fastpush.broker.peer import NO_LINK, Peer
from fastpush.config import Config
from fastpush.errors import FastpushError
from fastpush.protocol import bus
from fastpush.protocol.control import TOLD_BYTES_MAX
from fastpush.protocol.insight import (
    BUSIEST_TOLD,
    BUSY_SECONDS,
    CONNECTIONS_TOLD,
    LIVE_CHANNEL,
    Busy,
    Known,
    Note,
    Point,
    Top,
    Why,
    WorkerFigures,
    cut,
    told_pushes,
)
from fastpush.protocol.push import channel_key, is_user_key, parse_user_key
from fastpush.state.journal import DRAINED, KILLED, Journal, LostWorkers
from fastpush.state.series import Series
from fastpush.state.sessions import Login, Sessions

log = logging.getLogger("fastpush.broker")

LIVE_KEY = channel_key(LIVE_CHANNEL)
HOUR_BYTES_MAX = 2 * 1024 * 1024  # an hour of 40 workers; a worker that passes it on takes 20 ms for that

OnAnswer = Callable[[bytes], None]
"""Takes an answer: an object in JSON."""


class Unanswerable(FastpushError):
    """A question is wrong, or cannot be answered now; its text says why."""


class Insight:
    """Remembers, measures and answers.

    peers():       the workers that are connected.  snapshots(): the last figures of each worker, by process.
    departed():    the sums of the counters of ended workers.
    inquiries:     asks the workers.
    clock, wall_clock: return CLOCK_MONOTONIC and Unix time, in seconds.
    publish_live(top): sends a Top to whoever watches.  is_watched(): whether anybody does.
    """

    def __init__(
        self,
        config: Config,
        *,
        peers: Callable[[], Iterable[Peer]],
        snapshots: Callable[[], Mapping[int, Any]],
        departed: Callable[[], Mapping[str, Any]],
        inquiries: Inquiries,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        is_watched: Callable[[], bool],
        publish_live: Callable[[bytes], None],
    ) -> None:
        admin = config.admin
        self._actions = admin.actions
        self._peers = peers
        self._snapshots = snapshots
        self._departed = departed
        self._inquiries = inquiries
        self._clock = clock
        self._wall_clock = wall_clock
        self._is_watched = is_watched
        self._publish_live = publish_live
        self._started_seconds = wall_clock()
        self._series = Series()
        self._point: Point | None = None
        self._workers: list[WorkerFigures] = []
        self._journal = Journal(admin.remember_notes, admin.remember_seconds)
        self._lost = LostWorkers(admin.remember_seconds)
        self._sessions = Sessions(admin.key, admin.session_seconds)
        self._answers: dict[str, Callable[[dict[str, Any], OnAnswer], None]] = {
            "why": self._why,
            "top": self._top,
            "hour": self._hour,
            "login": self._login,
            "session": self._session,
            "logout": self._logout,
        }

    def answer_too(self, answers: Mapping[str, Callable[[dict[str, Any], OnAnswer], None]]) -> None:
        """Answer these questions as well, by what they are asked with."""
        self._answers.update(answers)

    def configure(self, config: Config) -> None:
        """Go by `config` from now on."""
        self._actions = config.admin.actions
        self._journal.limit(config.admin.remember_notes, config.admin.remember_seconds)
        self._lost.keep_seconds = config.admin.remember_seconds
        self._sessions.configure(config.admin.key, config.admin.session_seconds)

    def figures(self) -> dict[str, int]:
        """Return what the broker's report has of it."""
        return {"notes": len(self._journal), "admin_sessions": len(self._sessions)}

    # -- what comes in -----------------------------------------------------------------

    def take_notes(self, notes: Iterable[Note]) -> None:
        """Remember what a worker has noted."""
        for note in notes:
            self._journal.add(note)

    def on_killed(self, worker: int, keys: Iterable[bytes]) -> None:
        """A worker that had subscribers for these keys has ended without a drain."""
        now = self._wall_clock()
        users = {parse_user_key(key)[0] for key in keys if is_user_key(key)}
        self._lost.add(worker, now, users | self._journal.end_worker(worker, now, KILLED))

    def on_drained(self, worker: int) -> None:
        """A worker has ended after a drain. Of too many connections in one second it has not noted every end."""
        self._journal.end_worker(worker, self._wall_clock(), DRAINED)

    def end_second(self) -> None:
        """Measure the host, forget what is too old, and tell who watches."""
        now = self._wall_clock()
        self._point, self._workers = self._series.measure(now, self._snapshots(), self._departed())
        self._series.append(self._point)
        self._journal.expire(now)
        self._lost.expire(now)
        if self._is_watched():
            self._inquire(["busiest"], lambda told: b'{"top":%b}' % self._tell_top(told), self._publish_live)

    # -- what is asked -----------------------------------------------------------------

    def ask(self, body: bytes, on_answer: OnAnswer) -> None:
        """Answer a question; `on_answer` is called once, now or later."""
        try:
            question = orjson.loads(body)
            answer = self._answers.get(str(question.get("ask"))) if isinstance(question, dict) else None
            (answer or self._refuse)(question, on_answer)
        except (FastpushError, orjson.JSONDecodeError) as error:
            on_answer(orjson.dumps({"error": str(error)}))
        except Exception as error:
            log.exception("question failed")
            on_answer(_failed(error))

    def _refuse(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        raise Unanswerable(f"this cannot be asked; there are {', '.join(self._answers)}")

    def _why(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        user = _text(question, "user")
        if not user:
            raise Unanswerable("user must not be empty")
        self._inquire(["why", user], partial(self._tell_why, user), on_answer)

    def _inquire(self, question: list[str], tell: Callable[[Inquiry], bytes], on_answer: OnAnswer) -> None:
        """Ask all workers; `tell` makes the answer of what they say, and may fail without harm."""

        def on_over(inquiry: Inquiry) -> None:
            try:
                answer = tell(inquiry)
            except Exception as error:
                log.exception("question failed")
                answer = _failed(error)
            on_answer(answer)

        self._inquiries.ask(NO_LINK, self._peers(), bus.INQUIRE, orjson.dumps(question), on_over)

    def _tell_why(self, user: str, inquiry: Inquiry) -> bytes:
        now = self._wall_clock()
        known = [msgspec.json.decode(found, type=Known) for found in inquiry.found]
        held = sorted((held for each in known for held in each.connections), key=lambda held: held.since_seconds)
        why = Why(
            user=user,
            asked_seconds=now,
            since_seconds=self._journal.since(cut(user), now, self._started_seconds),
            workers=len(known) + len(inquiry.missing),
            missing=len(inquiry.missing),
            connections=held[-CONNECTIONS_TOLD:],
            connections_left_out=sum(each.connections_left_out for each in known) + len(held[:-CONNECTIONS_TOLD]),
            notes=self._journal.of(cut(user), now),
            strangers=self._journal.of("", now),
            pushes=told_pushes(push for each in known for push in each.pushes),
            lost=self._lost.of(user, now),
            findings=[],
        )
        return _fitting(msgspec.structs.replace(why, findings=findings(why)))

    def _top(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        self._inquire(["busiest"], self._tell_top, on_answer)

    def _tell_top(self, inquiry: Inquiry) -> bytes:
        found = [msgspec.json.decode(each, type=tuple[list[Busy], list[Busy]]) for each in inquiry.found]
        if self._point is None:
            self._point, self._workers = self._series.measure(self._wall_clock(), self._snapshots(), self._departed())
        top = Top(
            version=__version__,
            point=self._point,
            workers=self._workers,
            users=_merged(users for users, _ in found),
            channels=_merged(channels for _, channels in found),
            busy_seconds=BUSY_SECONDS,
            actions=self._actions,
        )
        return msgspec.json.encode(top)

    def _hour(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        bytes_max = question.get("bytes", HOUR_BYTES_MAX)
        if not isinstance(bytes_max, int):
            raise Unanswerable("bytes must be a number")
        on_answer(b'{"points":%b}' % self._series.encoded(min(bytes_max, HOUR_BYTES_MAX)))

    def _login(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        outcome = self._sessions.login(_text(question, "key"), _text(question, "peer"), self._clock())
        if isinstance(outcome, Login):
            on_answer(orjson.dumps({"session": outcome.id, "csrf": outcome.csrf}))
        else:
            on_answer(orjson.dumps({"refused": outcome.reason, "retry_seconds": outcome.retry_seconds}))

    def _session(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        csrf = self._sessions.check(_text(question, "session"), self._clock())
        on_answer(orjson.dumps({"refused": "there is no such session"} if csrf is None else {"csrf": csrf}))

    def _logout(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        self._sessions.logout(_text(question, "session"))
        on_answer(b"{}")


def _fitting(why: Why) -> bytes:
    """Encode a report with as many of the newest connections as the control socket has room for."""
    while len(answer := msgspec.json.encode(why)) > TOLD_BYTES_MAX and why.connections:
        left_out = (len(why.connections) + 1) // 2
        why = msgspec.structs.replace(
            why,
            connections=why.connections[left_out:],
            connections_left_out=why.connections_left_out + left_out,
        )
    return answer


def _failed(error: Exception) -> bytes:
    return orjson.dumps({"error": f"the broker could not answer: {type(error).__name__}"})


def _text(question: Mapping[str, Any], name: str) -> str:
    text = question.get(name)
    if not isinstance(text, str):
        raise Unanswerable(f"{name} must be a text")
    return text


def _merged(told: Iterable[list[Busy]]) -> list[Busy]:
    """Return the busiest of what all workers have told."""
    sums: dict[str, tuple[float, float]] = {}
    for each in told:
        for name, pushes, deliveries in map(msgspec.structs.astuple, each):
            before = sums.get(name, (0, 0))
            sums[name] = before[0] + pushes, before[1] + deliveries
    busiest = sorted(sums, key=lambda name: (sums[name][1], sums[name][0]), reverse=True)[:BUSIEST_TOLD]
    return [Busy(name, round(sums[name][0], 1), round(sums[name][1], 1)) for name in busiest]
