"""Live traces: what is traced, what one process tells of it, and what the broker has until somebody reads it.

    worker  Outbox ──► Seen ──► broker  Traces ──► whoever has begun the trace
    broker  Outbox ──► Seen ──────────────┘

Times are CLOCK_MONOTONIC's seconds, which all processes of a host share; they are told, never asked for. Events
stand in the order of their times: what is younger than HELD_BACK_SECONDS waits for what other processes send.
"""

import secrets
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence

import msgspec

from fastpush.errors import FastpushError
from fastpush.protocol.insight import EVENTS_KEPT, Seen, Target, Trace, Traced, counted, cut
from fastpush.protocol.push import EVERYBODY, channel_key, channel_of, is_channel_key, parse_user_key, user_key_start
from fastpush.state.rate import TokenBucket

TRACES_MAX = 4
SECONDS_MAX = 600.0
UNREAD_SECONDS = 5.0
HELD_BACK_SECONDS = 0.1
OVER_SECONDS = 0.3  # after its end a trace may still get what was under way


class TraceError(FastpushError):
    """The trace cannot be begun or read; the text says why."""


class Targets:
    """What is traced, looked up by routing keys and by users. Traces are few: TRACES_MAX."""

    def __init__(self, targets: Iterable[Target] = ()) -> None:
        self.targets = tuple(targets)
        self._users: dict[str, list[str]] = {}
        self._channels: dict[bytes, list[str]] = {}
        for target in self.targets:
            if target.user is not None:
                self._users.setdefault(target.user, []).append(target.id)
            elif target.channel is not None:
                self._channels.setdefault(channel_key(target.channel), []).append(target.id)
        self._starts = {user_key_start(user): ids for user, ids in self._users.items()}
        self._any_start = tuple(self._starts)

    def __bool__(self) -> bool:
        """Return whether anything is traced."""
        return bool(self.targets)

    @property
    def ids(self) -> frozenset[str]:
        """Which traces there are."""
        return frozenset(target.id for target in self.targets)

    @property
    def users(self) -> Collection[str]:
        """Traced users."""
        return self._users.keys()

    @property
    def channels(self) -> Iterable[bytes]:
        """The routing keys of traced channels."""
        return self._channels.keys()

    def of_user(self, user: str) -> Sequence[str]:
        """Return the traces of a user."""
        return self._users.get(user, ())

    def of_users(self) -> list[str]:
        """Return the traces of all users."""
        return [trace for ids in self._users.values() for trace in ids]

    def of_channels(self, keys: Sequence[bytes]) -> Sequence[str]:
        """Return the traces of a channel that a publication is for: the only one of its keys."""
        return self._channels.get(keys[0], ())

    def of_keys(self, keys: Sequence[bytes]) -> Sequence[str]:
        """Return the traces that a publication belongs to. Cost: O(keys)."""
        if keys[0] == EVERYBODY:
            return self.of_users()
        if not self._any_start or is_channel_key(keys[0]):
            return self.of_channels(keys)
        starts = {start for key in keys if key.startswith(self._any_start) for start in self._starts}
        found = [start for start in starts if any(key.startswith(start) for key in keys)]
        return [trace for start in found for trace in self._starts[start]]


def name_of(keys: Sequence[bytes], event: bytes) -> str:
    """Return what a publication is called: its channel, or the event that it is pushed with."""
    if is_channel_key(keys[0]):
        return channel_of(keys[0])
    return event.decode("utf-8", "replace") if keys[0] == EVERYBODY else parse_user_key(keys[0])[1]


class Outbox:
    """Events of one process on their way to the broker's Traces.

    per_second: most of them, and a second's worth at once; others are only counted, by trace.
    """

    def __init__(self, process: str, per_second: int, now: float) -> None:
        self._process = process
        self._bucket = TokenBucket(per_second, now)
        self._events: list[tuple[str, Traced]] = []
        self._left_out: Counter[str] = Counter()

    @property
    def has_left_out(self) -> bool:
        """Whether there were events that nobody has been told of."""
        return bool(self._left_out)

    def add(
        self,
        traces: Iterable[str],
        now: float,
        step: str,
        *,
        taken: float = 0.0,
        what: str = "",
        connection: str = "",
        detail: str = "",
    ) -> None:
        """Tell an event to `traces`. taken: when the push that it is of was accepted; 0 for none."""
        for trace in traces:
            if self._bucket.take(now):
                push, after_ms = round(taken * 1e6), round((now - taken) * 1000, 3) if taken else 0.0
                told = Traced(0, now, self._process, step, push, after_ms, cut(what), connection, cut(detail))
                self._events.append((trace, told))
            else:
                self._left_out[trace] += 1

    def take(self) -> Seen:
        """Return the events that came since the last time."""
        events, self._events = self._events, []
        return Seen(events, {})

    def take_left_out(self, now: float) -> Seen:
        """Return how many there were too many of, as numbers and as events; called once a second while there are."""
        left_out, self._left_out = self._left_out, Counter()
        events = [
            (trace, Traced(0, now, self._process, "left out", detail=_left_out(count)))
            for trace, count in left_out.items()
        ]
        return Seen(events, left_out)


class _Kept:
    """One trace in the broker.

    waiting: events in the order in which they came.  told: numbered, until their reader has them.
    over_since: since when it has ended.
    """

    def __init__(self, target: Target, ends: float, now: float) -> None:
        self.target = target
        self.ends = ends
        self.read = now
        self.waiting: list[Traced] = []
        self.told: deque[Traced] = deque()
        self.last_number = 0
        self.left_out = 0
        self.over_since: float | None = None


class Traces:
    """All traces of a host: at most TRACES_MAX, each for SECONDS_MAX at most, and only while somebody reads it."""

    def __init__(self) -> None:
        self._traces: dict[str, _Kept] = {}

    def active(self, now: float) -> list[Target]:
        """Return what is traced now, each with the seconds that it may still last."""
        return [
            msgspec.structs.replace(kept.target, seconds=max(0.0, kept.ends - now))
            for kept in self._traces.values()
            if kept.over_since is None
        ]

    def start(self, seconds: float, now: float, *, user: str | None = None, channel: str | None = None) -> str:
        """Begin to trace a user or a channel; return the trace's id. Raises: TraceError."""
        if (user is None) == (channel is None) or not (user or channel):
            raise TraceError("a trace is of a user or of a channel")
        if not 1 <= seconds <= SECONDS_MAX:
            raise TraceError(f"a trace lasts 1 to {SECONDS_MAX:g} seconds, found {seconds:g}")
        if len(self.active(now)) >= TRACES_MAX:
            raise TraceError(f"there are {TRACES_MAX} traces already, as many as may be: try again when one has ended")
        trace = secrets.token_hex(8)
        self._traces[trace] = _Kept(Target(id=trace, user=user, channel=channel, seconds=seconds), now + seconds, now)
        return trace

    def take(self, seen: Seen) -> bool:
        """Take what a process has seen; False: some of it is of traces that are not."""
        for trace, event in seen.events:
            kept = self._traces.get(trace)
            if kept is not None and len(kept.waiting) + len(kept.told) < EVENTS_KEPT:
                kept.waiting.append(event)
            elif kept is not None:
                kept.left_out += 1
        for trace, count in seen.left_out.items():
            if trace in self._traces:
                self._traces[trace].left_out += count
        return all(trace in self._traces for trace, _ in seen.events)

    def read(self, trace: str, after: int, now: float) -> Trace:
        """Return the events behind number `after`, 0 for all that are kept; those up to it are forgotten.

        Raises: TraceError: there is none of this id, any more.
        """
        kept = self._traces.get(trace)
        if kept is None:
            ends = "it has ended, for nobody has read it, or the broker has been replaced"
            raise TraceError(f"there is no such trace: {ends}")
        kept.read = now
        while kept.told and kept.told[0].number <= after:
            kept.told.popleft()
        is_over = kept.over_since is not None and now >= kept.over_since + OVER_SECONDS
        until = now if is_over else now - HELD_BACK_SECONDS
        kept.waiting.sort(key=lambda event: event.seconds)
        ready = [event for event in kept.waiting if event.seconds <= until]
        del kept.waiting[: len(ready)]
        for event in ready:
            kept.last_number += 1
            kept.told.append(msgspec.structs.replace(event, number=kept.last_number))
        return Trace(events=list(kept.told), left_out=kept.left_out, is_over=is_over)

    def stop(self, trace: str, now: float) -> None:
        """End a trace; its last events can still be read. One that is not changes nothing."""
        kept = self._traces.get(trace)
        if kept is not None and kept.over_since is None:
            kept.over_since = now

    def tick(self, now: float) -> None:
        """End traces whose time is over, and forget those that nobody reads."""
        for trace, kept in list(self._traces.items()):
            if now >= kept.read + UNREAD_SECONDS:
                del self._traces[trace]
            elif now >= kept.ends:
                self.stop(trace, kept.ends)


def _left_out(count: int) -> str:
    return f"{counted(count, 'event')} within a second"
