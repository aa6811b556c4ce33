"""Live traces in one worker: what happens to pushes, and to the connections that they are for, told as it happens.

Nobody pays for it who does not trace. While there is no trace, every function and class is the original one; for as
long as there is, these stand aside for others that call them and tell the broker of it:

    BusClient.publish          a push is accepted, and answered
    Hub.deliver                it arrives at a worker with subscribers
    Hub.join, leave_one        connections register, subscribe and unsubscribe
    Notebook                   they open and close; clients and pushes are refused
    Connection, queues, Batch  each write, by classes that stand in for those of traced connections (traced.py)

A connection is traced for its user, or for a channel that it is in; CONNECTIONS_MAX of them at most. What fails here
harms no delivery: it ends the traces of this worker.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar, cast

from fastpush.bus.client import BusClient, BusUnavailable, OnResult
from fastpush.fanout import Group, Receiver, pump
from fastpush.protocol import bus
from fastpush.protocol.bus import Kind, Position, Publication, Status
from fastpush.protocol.frames import payload_of
from fastpush.protocol.insight import Note, Target, counted, pack_seen
from fastpush.protocol.push import EVERYBODY, channel_key, channel_of, is_channel_key, parse_user_key
from fastpush.state.send_queue import ChannelQueue, SendQueue
from fastpush.state.swaps import Swaps
from fastpush.state.traces import Outbox, Targets, name_of
from fastpush.worker.connection import Connection
from fastpush.worker.event_stream import EventStream
from fastpush.worker.inspection import held
from fastpush.worker.traced import (
    TracedBatch,
    TracedChannelQueue,
    TracedConnection,
    TracedEventStream,
    TracedSendQueue,
)

if TYPE_CHECKING:
    from fastpush.worker.environment import Environment

log = logging.getLogger("fastpush.trace")

CONNECTIONS_MAX = 100
GRACE_SECONDS = 1.0  # after which a trace ends here that nobody has ended
LEFT_OUT_SECONDS = 1.0  # between two lines about events that there were too many of
_NAMES_SHOWN = 5
_OUTCOMES = {
    Status.NOT_READY: ("refused", "the broker, or a worker with such clients, is being replaced"),
    Status.OVERLOADED: ("refused", "a worker is overloaded"),
    Status.UNKNOWN: ("answered", "unknown: the broker was lost before it had answered"),
}
_P = ParamSpec("_P")
_T = TypeVar("_T")
_TRACED: dict[type, type] = {
    Connection: TracedConnection,
    EventStream: TracedEventStream,
    SendQueue: TracedSendQueue,
    ChannelQueue: TracedChannelQueue,
}


class Waiting(NamedTuple):
    """A message in the send queue of a traced connection. taken: when its push was accepted, 0 for none."""

    frame: bytes  # held, so that no other has its identity
    traces: Sequence[str]
    what: str
    taken: float
    since: float


class Record:
    """A traced connection.

    queue: its send queue, which tells what leaves it.  waiting: what is in it, by the frame's identity.
    is_slow: it has a queue, whatever stands for that in between.
    """

    __slots__ = ("connection", "is_slow", "queue", "waiting")

    def __init__(self, connection: TracedConnection) -> None:
        self.connection = connection
        self.is_slow = connection.queue is not None
        self.queue: SendQueue | ChannelQueue | None = None
        self.waiting: dict[int, Waiting] = {}


def _harmless(
    tell: "Callable[Concatenate[Tracing, _P], _T]",
) -> "Callable[Concatenate[Tracing, _P], _T | None]":
    """Let what fails while something is told end the traces, and nothing else."""

    @wraps(tell)
    def told(tracing: "Tracing", /, *arguments: _P.args, **named: _P.kwargs) -> _T | None:
        try:
            return tell(tracing, *arguments, **named)
        except Exception:
            log.exception("tracing failed")
            asyncio.get_running_loop().call_soon(tracing.set, ())
            return None

    return told


class Tracing:
    """What one worker tells of traces.

    writing: see traced.Watcher.
    """

    def __init__(self, environment: "Environment", client: BusClient) -> None:
        self._environment = environment
        self._bus = client
        self._process = f"worker-{environment.number}"
        self._targets = Targets()
        self._swaps = Swaps()
        self._records: dict[Connection, Record] = {}
        self._queues: dict[SendQueue | ChannelQueue, Record] = {}
        self._outbox = Outbox(self._process, 1, 0)
        self._timers: dict[str, asyncio.Handle] = {}
        self.writing: TracedBatch | Publication | None = None
        # Of this worker's own: they know whom to tell.
        self._stand_ins = {base: type(made.__name__, (made,), _body(self)) for base, made in _TRACED.items()}
        self._batch = type("TracedBatch", (TracedBatch,), _body(self))

    # -- from nothing to something, and back ---------------------------------------------

    def set(self, targets: Iterable[Target]) -> None:
        """Trace these, and nothing else."""
        known, self._targets = self._targets.ids, Targets(targets)
        is_traced = bool(self._targets)
        if is_traced and not self._swaps:
            per_second = self._environment.config.admin.trace_events_per_second
            self._outbox = Outbox(self._process, per_second, monotonic())
            self._swap()
        elif not is_traced:
            self._swaps.undo()
        wanted = dict.fromkeys(islice(self._found(), CONNECTIONS_MAX))
        here = Counter(trace for connection in wanted for trace in self._traces_of(connection))
        for target in self._targets.targets:
            if target.id not in known:
                at_most = f", at most {CONNECTIONS_MAX} are traced" if len(wanted) == CONNECTIONS_MAX else ""
                self._add((target.id,), "tracing", detail=f"{counted(here[target.id], 'connection')} here{at_most}")
        for connection in [connection for connection in self._records if connection not in wanted]:
            self._detach(connection)
        for connection in wanted:
            self._attach(connection)
            fresh = [trace for trace in self._traces_of(connection) if trace not in known]
            if fresh:
                self._add(fresh, "opened", connection=connection.id, detail=self._described(connection))
        longest = max((target.seconds for target in self._targets.targets), default=None)
        self._plan("end", None if longest is None else longest + GRACE_SECONDS, self.set, ())

    def end(self) -> None:
        """Trace nothing any more, for this worker ends, and tell what has not been told yet."""
        self.set(())
        told = self._timers.get("tell")
        if told is not None:
            told.cancel()
            self._tell()

    def _swap(self) -> None:
        environment, swaps = self._environment, self._swaps
        notebook = environment.notebook
        swaps.attribute(self._bus, "publish", self._publishing)
        swaps.attribute(environment.hub, "deliver", self._delivering)
        swaps.attribute(environment.hub, "join", self._joining)
        swaps.attribute(environment.hub, "leave_one", self._leaving)
        swaps.attribute(notebook, "opened", partial(self._noting, self._on_opened))
        swaps.attribute(notebook, "closed", partial(self._noting, self._on_closed))
        swaps.attribute(notebook, "dropped", partial(self._noting, self._on_dropped))
        swaps.attribute(notebook, "add", partial(self._noting, self._on_note))
        swaps.attribute(pump, "Batch", lambda _: self._batch)

    def _found(self) -> Iterable[Connection]:
        """Yield the connections that are traced. Cost: with a user one pass over all, a tenth of a microsecond each."""
        environment, targets = self._environment, self._targets
        users = targets.users
        if users:
            yield from (connection for connection in environment.connections.values() if connection.user in users)
        for key in targets.channels:
            for receiver in environment.hub.members(key):
                yield cast("Connection", receiver)

    def _attach(self, connection: Connection) -> None:
        """Have a connection tell what it does; again does nothing."""
        made = self._stand_ins.get(type(connection))
        if made is None or connection in self._records or len(self._records) >= CONNECTIONS_MAX:
            return
        connection.__class__ = made
        traced = cast("TracedConnection", connection)
        record = self._records[connection] = Record(traced)
        self._follow(record, traced.queue)

    def _detach(self, connection: Connection) -> None:
        record = self._records.pop(connection, None)
        if record is not None:
            self._follow(record, None)
            _give_back(connection)

    def _follow(self, record: Record, queue: SendQueue | ChannelQueue | None) -> None:
        """Have a connection's send queue tell what leaves it, in place of the one before."""
        before, record.queue = record.queue, queue
        if before is queue:
            return
        if before is not None:
            del self._queues[before]
            _give_back(before)
        if queue is None:
            record.waiting.clear()
        else:
            queue.__class__ = self._stand_ins[type(queue)]
            self._queues[queue] = record

    # -- pushes ------------------------------------------------------------------------

    def _publishing(self, publish: Callable[..., None]) -> Callable[..., None]:
        def traced(body: bytes, on_result: OnResult, once: bytes = b"") -> None:
            accepted = self._on_accepted(body)
            if accepted is None:
                publish(body, on_result, once)
                return

            def answered(status: int, sent: int, unconfirmed: int, position: Position) -> None:
                self._on_answered(accepted, status, sent, unconfirmed)
                on_result(status, sent, unconfirmed, position)

            try:
                publish(body, answered, once)
            except BusUnavailable as error:
                self._on_push("refused", accepted, f"not handed over: {error}")
                raise

        return traced

    @_harmless
    def _on_accepted(self, body: bytes) -> Publication | None:
        """Tell of a publication; return it if it is traced."""
        if not self._targets.of_keys(bus.decode_route(body)[0]):
            return None
        publication = bus.decode_publication(body)
        size = counted(len(payload_of(publication.frame)), "byte")
        self._on_push("accepted", publication, f"{size}, to {_receivers(publication)}", publication.taken_seconds)
        return publication

    @_harmless
    def _on_answered(self, publication: Publication, status: int, sent: int, unconfirmed: int) -> None:
        if status == Status.DONE:
            late = f", {counted(unconfirmed, 'worker')} did not confirm in time" if unconfirmed else ""
            self._on_push("answered", publication, f"sent to {counted(sent, 'client')}{late}")
        else:
            step, detail = _OUTCOMES[Status(status)]
            self._on_push(step, publication, detail)

    @_harmless
    def _on_push(self, step: str, publication: Publication, detail: str, now: float | None = None) -> None:
        what = name_of(publication.keys, publication.event)
        traces = self._targets.of_keys(publication.keys)
        self._add(traces, step, now, taken=publication.taken_seconds, what=what, detail=detail)

    def _delivering(self, deliver: Callable[..., None]) -> Callable[..., None]:
        def traced(publication: Publication, counted: Callable[[int], object]) -> None:
            self._on_arrived(publication)
            before, self.writing = self.writing, publication
            try:
                deliver(publication, counted)
            finally:
                self.writing = before

        return traced

    @_harmless
    def _on_arrived(self, publication: Publication) -> None:
        if self._targets.of_keys(publication.keys):
            here = sum(len(self._environment.hub.members(key)) for key in publication.keys)
            not_traced = f", {len(self._records)} of them traced" if here > CONNECTIONS_MAX else ""
            presence = "who comes and leaves, " if publication.kind == Kind.CHANGES else ""
            self._on_push("arrived", publication, f"{presence}{counted(here, 'connection')} here{not_traced}")

    # -- writes ------------------------------------------------------------------------

    @_harmless
    def on_sent(self, connection: TracedConnection, frames: Sequence[bytes], taken: int, *, was_behind: bool) -> None:
        record = self._records.get(connection)
        if record is None:
            return
        users = self._targets.of_user(connection.user)
        for place, (frame, publication) in enumerate(zip(frames, self._publications(connection, frames), strict=True)):
            traces = self._traces_of_frame(users, publication)
            if frame and traces:
                message = _message(frame, traces, publication)
                if place >= taken:
                    why = "the send queue is full" if was_behind else "the connection is ending"
                    self._add_message(connection, "dropped", message, f"{_size(frame)}, not taken: {why}")
                elif was_behind:
                    record.waiting[id(frame)] = message
                    self._add_message(connection, "queued", message, f"{_size(frame)}; {_waits(connection)}")
                else:
                    others = f", in a write of {len(frames)} messages" if len(frames) > 1 else ""
                    self._add_message(connection, "written", message, f"{_size(frame)}{others}")

    def _publications(self, connection: TracedConnection, frames: Sequence[bytes]) -> Sequence[Publication | None]:
        """Return what each of these frames is of, as far as that is known."""
        writing = self.writing
        if isinstance(writing, TracedBatch):
            return writing.publications_of(connection.form, frames)
        if writing is not None and len(frames) == 1 and frames[0] is writing.frame:
            return (writing,)
        return (None,) * len(frames)

    def _traces_of_frame(self, users: Sequence[str], publication: Publication | None) -> Sequence[str]:
        channels = () if publication is None else self._targets.of_channels(publication.keys)
        return (*users, *channels) if channels else users

    @_harmless
    def on_queue(self, connection: TracedConnection) -> None:
        record = self._records.get(connection)
        if record is None:
            return
        queue = connection.queue
        self._follow(record, queue)
        was_slow, record.is_slow = record.is_slow, queue is not None
        if connection.is_open and record.is_slow != was_slow:
            if was_slow:
                self._add_of(connection, "caught up", "nothing waits for it any more")
            else:
                self._add_of(connection, "slow", "the client takes no more now: what comes waits")

    @_harmless
    def on_taken(self, queue: SendQueue | ChannelQueue, frames: Sequence[bytes]) -> None:
        record = self._queues[queue]
        now = monotonic()
        for frame in frames:
            message = record.waiting.pop(id(frame), None)
            if message is not None:
                waited = f"after {now - message.since:.3f} s in the send queue"
                self._add_message(record.connection, "written", message, f"{_size(frame)}, {waited}")

    @_harmless
    def on_gone(self, queue: SendQueue | ChannelQueue, frame: bytes, why: str) -> None:
        record = self._queues[queue]
        message = record.waiting.pop(id(frame), None)
        if message is None:  # it is older than the trace
            message = _message(frame, self._targets.of_user(record.connection.user), None)
        self._add_message(record.connection, "dropped", message, f"{_size(frame)}, {why}")

    @_harmless
    def on_lost(self, connection: TracedConnection) -> None:
        self._detach(connection)

    # -- connections -------------------------------------------------------------------

    def _joining(self, join: Callable[..., Group]) -> Callable[..., Group]:
        def traced(receiver: Receiver, key: bytes) -> Group:
            before = len(receiver.groups)
            group = join(receiver, key)
            if len(receiver.groups) > before:
                self._on_joined(cast("Connection", receiver), key)
            return group

        return traced

    @_harmless
    def _on_joined(self, connection: Connection, key: bytes) -> None:
        traces = (*self._targets.of_user(connection.user), *self._targets.of_channels((key,)))
        if not traces:
            return
        self._attach(connection)
        if key != EVERYBODY:
            step, what = (
                ("subscribed", channel_of(key)) if is_channel_key(key) else ("registered", parse_user_key(key)[1])
            )
            self._add(traces, step, what=what, connection=connection.id, detail=_whence(connection))

    def _leaving(self, leave_one: Callable[..., None]) -> Callable[..., None]:
        def traced(receiver: Receiver, key: bytes) -> None:
            before = len(receiver.groups)
            leave_one(receiver, key)
            if len(receiver.groups) < before:
                self._on_left(cast("Connection", receiver), key)

        return traced

    @_harmless
    def _on_left(self, connection: Connection, key: bytes) -> None:
        traces = (*self._targets.of_user(connection.user), *self._targets.of_channels((key,)))
        self._add(traces, "unsubscribed", what=channel_of(key), connection=connection.id)
        record = self._records.get(connection)
        if record is not None and not record.waiting and not self._traces_of(connection):
            self._detach(connection)

    def _noting(self, tell: Callable[..., None], note: Callable[..., None]) -> Callable[..., None]:
        def traced(*arguments: Any, **named: Any) -> None:
            tell(*arguments, **named)
            note(*arguments, **named)

        return traced

    @_harmless
    def _on_opened(self, connection: Connection) -> None:
        traces = self._targets.of_user(connection.user)
        if traces:
            self._attach(connection)
            self._add(traces, "opened", connection=connection.id, detail=_whence(connection))

    @_harmless
    def _on_closed(self, connection: Connection, code: int, reason: str, by: str) -> None:
        told = f"{code} {reason}".rstrip()
        self._add_of(connection, "closed", f"{told}, by the {by}")

    @_harmless
    def _on_dropped(self, connection: Connection, reason: str, messages: int) -> None:
        self._add_of(connection, "dropped", f"{counted(messages, 'message')} in all: {reason}")

    @_harmless
    def _on_note(self, note: Note) -> None:
        if note.kind != "refused":
            return
        traces = self._targets.of_user(note.user) if note.user else self._targets.of_users()
        if note.what and note.connection and note.code:  # else it is about an event
            traces = (*traces, *self._targets.of_channels((channel_key(note.what),)))
        whom = "; the user is what its token claims" if note.is_claimed else "" if note.user else "; of an unknown user"
        told = f"{note.code or ''} {note.reason}".strip()
        detail = f"{note.path} from {note.peer}: {told}{whom}"
        self._add(traces, "refused", what=note.what, connection=note.connection, detail=detail)

    def _traces_of(self, connection: Connection) -> list[str]:
        """Return the traces that a connection is in: its user's, and those of its channels."""
        targets = self._targets
        channels = [trace for group in connection.groups for trace in targets.of_channels((group.key,))]
        return [*targets.of_user(connection.user), *channels]

    def _described(self, connection: Connection) -> str:
        """Return how a connection stands that was there before the trace."""
        stand = held(connection)
        names = ", ".join(islice(dict.fromkeys([*stand.events, *stand.channels]), _NAMES_SHOWN)) or "nothing yet"
        seconds = self._environment.clock() - stand.since_seconds
        waits = f"; {counted(stand.queued_messages, 'message')} wait" if stand.queued_messages else ""
        return f"{max(0, seconds):,.0f} s ago {_whence(connection)}; for {names}{waits}"

    # -- to the broker -----------------------------------------------------------------

    def _add_of(self, connection: Connection, step: str, detail: str) -> None:
        self._add(self._traces_of(connection), step, connection=connection.id, detail=detail)

    def _add_message(self, connection: Connection, step: str, message: Waiting, detail: str) -> None:
        self._add(message.traces, step, taken=message.taken, what=message.what, connection=connection.id, detail=detail)

    def _add(self, traces: Sequence[str], step: str, now: float | None = None, **told: Any) -> None:
        if not traces:
            return
        self._outbox.add(traces, monotonic() if now is None else now, step, **told)
        if "tell" not in self._timers:
            self._timers["tell"] = asyncio.get_running_loop().call_soon(self._tell)
        if self._outbox.has_left_out and "left out" not in self._timers:
            self._plan("left out", LEFT_OUT_SECONDS, self._tell_left_out)

    def _plan(self, name: str, seconds: float | None, call: Callable[..., None], *arguments: object) -> None:
        """Call something once, in so many seconds; None: do not."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        if seconds is not None:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def _tell(self) -> None:
        """Send the events of a turn of the loop."""
        del self._timers["tell"]
        self._bus.tell_traced(pack_seen(self._outbox.take()))

    def _tell_left_out(self) -> None:
        del self._timers["left out"]
        self._bus.tell_traced(pack_seen(self._outbox.take_left_out(monotonic())))


def _body(watcher: Tracing) -> dict[str, Any]:
    """Return what a class is made of that stands in for another."""
    return {"__slots__": (), "watcher": watcher}


def _give_back(owner: Any) -> None:
    """Make an object again what it was before it was traced."""
    owner.__class__ = next(base for base in type(owner).__mro__ if base in _TRACED)


def _message(frame: bytes, traces: Sequence[str], publication: Publication | None) -> Waiting:
    if publication is None:
        return Waiting(frame, traces, "", 0.0, monotonic())
    what = name_of(publication.keys, publication.event)
    return Waiting(frame, traces, what, publication.taken_seconds, monotonic())


def _receivers(publication: Publication) -> str:
    key = publication.keys[0]
    if key == EVERYBODY:
        return "everybody"
    return "a channel" if is_channel_key(key) else counted(len(publication.keys), "user")


def _whence(connection: Connection) -> str:
    return f"from {connection.peer}, on {connection.mount.path}"


def _waits(connection: TracedConnection) -> str:
    messages = 0 if connection.queue is None else len(connection.queue)
    return f"{counted(messages, 'message')}, {connection.queued_bytes:,} bytes wait"


def _size(frame: bytes) -> str:
    return counted(len(frame), "byte")
