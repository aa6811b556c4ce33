"""Messages between supervisor and children, one JSON object a datagram.

They travel on a SOCK_SEQPACKET socket pair made before the fork, so borders are
kept by the kernel and an end-of-file means that the other side is gone. Control
only: no event data ever passes the supervisor.

    supervisor -> child     Drain, ReopenLog, Prepare, Reload, Readiness, Cover (+ descriptors), Uncover, Gone,
                            Restarts, Inspect, Ask, Acted
    child -> supervisor     Ready, Beat, Prepared, Reloaded, Leaving, Stalled, Inspected, Told, Act

A reload has two phases, so that what only a child can find out (a function that cannot be
imported) changes nothing either: every child prepares, and Reload is sent once all have.
"""

from typing import Literal

import msgspec

from fastpush.config import Config

MESSAGE_BYTES_MAX = 196_608  # below the kernel's default limit for one datagram
ENTRIES_MAX = 1000  # of a report
TOLD_BYTES_MAX = MESSAGE_BYTES_MAX - 1024  # of an answer

Subject = Literal["stacks", "tasks", "connections"]


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Close every client with 1012, answer what is under way, and exit 0 within `seconds`.

    spread_seconds: clients are closed evenly over that time; None: as fast as it is gentle to who takes them.
    listens: pushes are accepted until the end, and handshakes refused; else nothing is accepted any more.
    A second one replaces the first.
    """

    seconds: float
    spread_seconds: float | None = None
    listens: bool = False


class ReopenLog(msgspec.Struct, tag="reopen-log", frozen=True):
    """Open the log file anew under its name: it may have been moved."""


class Prepare(msgspec.Struct, tag="prepare", frozen=True):
    """Make everything that `config` needs, change nothing, and answer Prepared with the number of the reload."""

    reload: int
    config: Config


class Reload(msgspec.Struct, tag="reload", frozen=True):
    """Take over the live settings of `config`, and answer Reloaded with the number of the reload."""

    reload: int
    config: Config


class Readiness(msgspec.Struct, tag="readiness", frozen=True):
    """What every worker answers at /ready. reason: why this host should get no clients now; empty: it should."""

    reason: str


class Cover(msgspec.Struct, tag="cover", frozen=True):
    """Accept from another slot's listeners too; their descriptors come with this datagram.

    They are in the order of the child's own listeners and have the same roles.
    """

    slot: int


class Uncover(msgspec.Struct, tag="uncover", frozen=True):
    """Stop accepting from that slot's listeners: its own process is ready."""

    slot: int


class Gone(msgspec.Struct, tag="gone", frozen=True):
    """To the broker: this worker process has ended, expect nothing from it."""

    worker: int


class Restarts(msgspec.Struct, tag="restarts", frozen=True):
    """To the broker: how many processes were started in place of ended ones, in the supervisor's life."""

    workers: int
    broker: int


class Inspect(msgspec.Struct, tag="inspect", frozen=True):
    """Answer Inspected with the number of the request. limit: most entries wanted, 1..ENTRIES_MAX."""

    request: int
    subject: Subject
    limit: int


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """To the broker: answer Told with the number of the request. question: see protocol/insight.py."""

    request: int
    question: msgspec.Raw


class Acted(msgspec.Struct, tag="acted", frozen=True):
    """What became of an Act with this number: the command's reply, {"error": text, …} where it was not carried out."""

    request: int
    reply: msgspec.Raw


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The child serves."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """The child's loop runs. figures: what `fastpush status` shows of it."""

    figures: dict[str, int] = {}


class Prepared(msgspec.Struct, tag="prepared", frozen=True):
    """The child could take the prepared configuration over; or `problem` says why not."""

    reload: int
    problem: str = ""


class Reloaded(msgspec.Struct, tag="reloaded", frozen=True):
    """The child goes by the configuration of this reload."""

    reload: int


class Leaving(msgspec.Struct, tag="leaving", frozen=True):
    """The child stops accepting on its own account and ends within `seconds`: its slot needs another process."""

    seconds: float


class Stalled(msgspec.Struct, tag="stalled", frozen=True):
    """From the broker: this worker did not send its key table in time and has to go."""

    worker: int


class Stack(msgspec.Struct, array_like=True, frozen=True):
    """Where a thread is.

    frames: "path:line in function", innermost first.  depth: how many there are.  is_asked: this thread answers.
    """

    thread: str
    frames: list[str]
    depth: int
    is_asked: bool


class Tasks(msgspec.Struct, array_like=True, frozen=True):
    """All asyncio tasks of one coroutine that wait in the same place.

    names: of the first of them.  frames, depth: as of Stack; no frames: not begun yet.
    """

    count: int
    coroutine: str
    names: list[str]
    frames: list[str]
    depth: int


class ConnectionFigures(msgspec.Struct, array_like=True, frozen=True):
    """An open WebSocket.

    path: of its application.  open_seconds: its age.
    state: "open", "closing", "closed"; "slow": its client takes no more now; "paused": nothing more is read from its
    client, because the application has not handled what was.
    heard_seconds: since the last sign of life.  keys: routing keys that it is in.
    queued_messages, queued_bytes: in its send queue.  unhandled_messages: waiting for the application.
    """

    id: str
    user: str
    peer: str
    path: str
    state: str
    open_seconds: float
    heard_seconds: float
    keys: int
    queued_messages: int
    queued_bytes: int
    unhandled_messages: int


class Inspected(msgspec.Struct, tag="inspected", frozen=True):
    """What a child was asked by Inspect.

    total:   how many entries there are.
    entries: JSON list of those told, of Stack, Tasks or ConnectionFigures; never more than one datagram takes.
    """

    request: int
    total: int
    entries: msgspec.Raw


class Told(msgspec.Struct, tag="told", frozen=True):
    """From the broker: the answer to a question, an object in JSON; never more than one datagram takes."""

    request: int
    answer: msgspec.Raw


class Act(msgspec.Struct, tag="act", frozen=True):
    """From a worker: an operator wants a command of the control socket carried out; answered by Acted."""

    request: int
    command: msgspec.Raw


ToChild = Drain | ReopenLog | Prepare | Reload | Readiness | Cover | Uncover | Gone | Restarts | Inspect | Ask | Acted
FromChild = Ready | Beat | Prepared | Reloaded | Leaving | Stalled | Inspected | Told | Act

encode = msgspec.json.Encoder().encode
decode_to_child = msgspec.json.Decoder(ToChild).decode
decode_from_child = msgspec.json.Decoder(FromChild).decode
