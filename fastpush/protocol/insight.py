"""What operators are told: the forms of notes, reports, figures and traces, from every process to every reader.

Workers note what happens and the broker keeps it, bounded, and answers questions: those of the commands come over the
supervisor's channel, those of the administration page over the bus. A question is a JSON object with the member
`ask`; its answer is a JSON object, {"error": text} for one that cannot be answered:

    {"ask": "why", "user": U}                            Why
    {"ask": "top"}                                       Top
    {"ask": "hour", "bytes": B}                          {"points": [Point, …]}, oldest first: the newest that fit
    {"ask": "trace", "user": U or "channel": C, "seconds": S}   {"trace": id, "ends_seconds": Unix time}
    {"ask": "traced", "trace": id, "after": N}           Trace: the events behind number N, 0 for all, the first that
                                                         fit; asked again and again, for a trace that nobody reads ends
    {"ask": "untrace", "trace": id}                      {}
    {"ask": "login", "key": K, "peer": address}          {"session": id, "csrf": token}, or {"refused": text,
                                                         "retry_seconds": S}
    {"ask": "session", "session": id}                    {"csrf": token}, or {"refused": text}
    {"ask": "logout", "session": id}                     {}

Structs that come in thousands are arrays in JSON, in the order of their members; the others are objects.
All times are Unix seconds, but where a name says otherwise.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec

LIVE_CHANNEL = "/admin/live"
"""What the broker publishes a Top to each second, while anybody is subscribed; clients' channels have no such names."""

POINTS_MAX = 3600  # of the last hour, one a second
NOTES_TOLD = 30  # of a user
STRANGERS_TOLD = 20  # refusals that name no user
PUSHES_TOLD = 20
CONNECTIONS_TOLD = 50  # of a user
KEYS_TOLD = 50  # of a connection, and as many channels
BUSIEST_TOLD = 10
BUSY_SECONDS = 5.0  # over which the busiest are counted
EVENTS_KEPT = 2000  # of a trace, until they are read
TEXT_CHARACTERS_MAX = 200  # of what clients and back-ends say

NoteKind = Literal["opened", "closed", "dropped", "refused"]


class Note(msgspec.Struct, array_like=True, frozen=True):
    """Something that happened to a user's connection, or to a client that was not let in.

    kind:    opened   the user of a connection has become known
             closed   it has ended: `code`, `reason`, and by whom
             dropped  messages that it was owed did not leave: `messages`, and the policy as `reason`
             refused  a handshake (`code` is the HTTP status, or the close code that a page was told), a registration
                      (0), a subscription (the protocol's error code), or a push (HTTP status) was not taken
    user:    "" where nobody knows.  is_claimed: the user is what a token says that was not accepted.
    worker:  number of the process.  connection: its id; "" where there is none.  path: of the application, or of the
             request.  what: the event or channel that it was about; "" for none.
    by:      of a closed one: "client", "server", "back-end", "network" (without a close frame); of a refused push:
             "back-end".
    """

    seconds: float
    kind: NoteKind
    user: str
    worker: int
    connection: str = ""
    path: str = ""
    peer: str = ""
    code: int = 0
    reason: str = ""
    by: str = ""
    what: str = ""
    messages: int = 0
    is_claimed: bool = False


class Push(msgspec.Struct, array_like=True, frozen=True):
    """A push that was addressed to a user, and what became of it.

    seconds: when it was answered.  source: "push" or "application"; " all" stands behind it where it was to everybody.
    event: with which, of an application's own its path.
    size_bytes: of the message.  users: how many it was addressed to; 0: everybody.  worker: that took it.
    outcome: "delivered"; "nobody": no connection wanted it; "unconfirmed": `unconfirmed` workers did not count in time,
    so more may have got it than `sent` says. What was refused is among the notes.
    sent: connections that took it.  duration_ms: from the hand-over to the broker to the answer.
    message: its beginning; None unless [admin] show_messages.
    """

    seconds: float
    source: str
    event: str
    size_bytes: int
    users: int
    worker: int
    outcome: str
    sent: int = 0
    unconfirmed: int = 0
    duration_ms: float = 0
    message: str | None = None


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A user's open connection.

    since_seconds: when it was opened.  heard_seconds_ago: last sign of life.  transport: "websocket" or "sse".
    state: as ConnectionFigures.  events: it is registered for.  channels: it is in.  keys: how many of both there are.
    queued_messages, queued_bytes: wait for it now.  worst_queued_bytes: most that ever did.
    dropped_messages: of drop policies, since it fell behind the last time.  expires_seconds: end of its token.
    """

    id: str
    worker: int
    path: str
    peer: str
    transport: str
    state: str
    since_seconds: float
    heard_seconds_ago: float
    events: list[str]
    channels: list[str]
    keys: int
    queued_messages: int
    queued_bytes: int
    worst_queued_bytes: int
    dropped_messages: int
    unhandled_messages: int
    expires_seconds: float | None = None


class Lost(msgspec.Struct, frozen=True):
    """A worker that ended without a drain while the user had connections there."""

    worker: int
    seconds: float


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker knows of a user: its answer to the broker. connections_left_out: more than are told."""

    connections: list[Held]
    connections_left_out: int
    pushes: list[Push]


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a user.

    asked_seconds: now.  since_seconds: nothing older is known.  workers: that were asked.  missing: of them, those
    that did not answer.
    notes: of the user, and those that a refused token names, oldest first.  strangers: the last refusals on this host
    that name nobody, oldest first; of all users.  pushes: see `told_pushes`, oldest first.
    findings: what follows from all that, in sentences, the most important first; at least one.
    """

    user: str
    asked_seconds: float
    since_seconds: float
    workers: int
    missing: int
    connections: list[Held]
    connections_left_out: int
    notes: list[Note]
    strangers: list[Note]
    pushes: list[Push]
    lost: list[Lost]
    findings: list[str]


class Point(msgspec.Struct, array_like=True, frozen=True):
    """The host's figures of one second; what is plotted.

    pushes, deliveries, drops: a second. A push is one request, or one publication to a channel, that was taken
    (fastpush_pushes_total and fastpush_channel_publications_total, outcomes delivered and unconfirmed).
    p50_ms, p99_ms: of fastpush_push_latency_seconds, None for no push; interpolated in its buckets as Prometheus'
    histogram_quantile does.
    lags_ms: (worker, fastpush_loop_lag_seconds) of each.
    """

    seconds: float
    connections: int
    pushes: float
    deliveries: float
    p50_ms: float | None
    p99_ms: float | None
    drops: float
    queue_bytes: int
    lags_ms: list[tuple[int, float]]


class WorkerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's figures of the last second.

    slot: what `fastpush drain` takes; worker: the process, as in logs.  gathering: messages a write.
    is_stale: it has not measured for more than two seconds.
    """

    slot: int
    worker: int
    pid: int
    connections: int
    slow_connections: int
    pushes: float
    deliveries: float
    gathering: float
    lag_ms: float
    queue_bytes: int
    drops: float
    uptime_seconds: float
    is_stale: bool


class Busy(msgspec.Struct, array_like=True, frozen=True):
    """A user or channel that much was sent to within the last seconds. pushes, deliveries: a second."""

    name: str
    pushes: float
    deliveries: float


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """What the host is doing now.

    workers: by slot.  users, channels: the busiest first.  actions: [admin] actions, whether anything may be changed.
    busy_seconds: over which the busiest were counted.
    """

    version: str
    point: Point
    workers: list[WorkerFigures]
    users: list[Busy]
    channels: list[Busy]
    busy_seconds: float
    actions: bool


class Traced(msgspec.Struct, array_like=True, frozen=True):
    """One step on the way of a push to a traced user or channel, or of one of their connections.

    number: of the event in its trace, from 1 on.  process: "worker-2", "broker".
    step: of a push: accepted, refused, ordered (by the broker), arrived (at a worker with subscribers), written,
    queued, dropped, answered; of a connection: opened, registered, subscribed, unsubscribed, closed, slow, caught up;
    of the trace itself: tracing (a worker has begun), silent (some have not), left out.
    push: names the push in all steps, 0 for none.  after_ms: since it was accepted.
    what: event or channel.  connection: its id.  detail: in words; counts, never contents.
    """

    number: int
    seconds: float
    process: str
    step: str
    push: int = 0
    after_ms: float = 0
    what: str = ""
    connection: str = ""
    detail: str = ""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace has brought. left_out: events that there were too many of.  is_over: no more will come."""

    events: list[Traced]
    left_out: int
    is_over: bool


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a trace is of: a user, or a channel. seconds: that it may still last."""

    id: str
    user: str | None = None
    channel: str | None = None
    seconds: float


class Seen(msgspec.Struct, array_like=True, frozen=True):
    """What a process has seen of traces.

    events: each with its trace's id; not numbered yet, and their `seconds` are CLOCK_MONOTONIC's.
    left_out: how many more there were, by trace.
    """

    events: list[tuple[str, Traced]]
    left_out: dict[str, int]


def told_pushes(pushes: Iterable[Push]) -> list[Push]:
    """Return the pushes that are told of many: the newest, half of them kept free for those that went wrong."""
    newest = sorted(pushes, key=lambda push: push.seconds, reverse=True)
    wrong = [push for push in newest if push.outcome != "delivered"][: PUSHES_TOLD // 2]
    others = [push for push in newest if push not in wrong][: PUSHES_TOLD - len(wrong)]
    return sorted((*wrong, *others), key=lambda push: push.seconds)


def cut(text: str) -> str:
    """Return `text` as UTF-8 can carry it, and its end left out where it is too long."""
    shown = text if len(text) <= TEXT_CHARACTERS_MAX else f"{text[: TEXT_CHARACTERS_MAX - 1]}…"
    return shown.encode("utf-8", "replace").decode()


def counted(number: int, noun: str, nouns: str = "") -> str:
    """Return "1 push", "2 pushes". nouns: of several, where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


pack_notes = msgspec.msgpack.Encoder().encode
unpack_notes = msgspec.msgpack.Decoder(list[Note]).decode
pack_targets = msgspec.json.Encoder().encode
unpack_targets = msgspec.json.Decoder(list[Target]).decode
pack_seen = msgspec.msgpack.Encoder().encode
unpack_seen = msgspec.msgpack.Decoder(Seen).decode
