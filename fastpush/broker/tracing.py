"""Live traces in the broker: who asks for one, who is told what to trace, and what the broker itself does with a push.

As in workers (worker/tracing.py), nothing is paid while there is no trace: the router's handlers are the original
ones then.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
import orjson

from fastpush.broker.peer import Peer
from fastpush.protocol import bus
from fastpush.protocol.bus import Status
from fastpush.protocol.control import TOLD_BYTES_MAX
from fastpush.protocol.insight import Target, Traced, pack_targets, unpack_seen
from fastpush.protocol.push import EVERYBODY
from fastpush.state.swaps import Swaps
from fastpush.state.traces import Outbox, Targets, TraceError, Traces, name_of

DEFAULT_SECONDS = 60.0
BEGIN_SECONDS = 1.0  # in which a worker says that it has begun
_EVENTS_BYTES_MAX = TOLD_BYTES_MAX - 1024
_REFUSALS = {
    Status.NOT_READY: "the table of keys of a worker that this needs is missing: it is being replaced",
    Status.OVERLOADED: "a worker that this needs is overloaded",
}

log = logging.getLogger("fastpush.trace")

OnAnswer = Callable[[bytes], None]
Handler = Callable[[Peer, int, Any], None]


class Beginning(NamedTuple):
    """Workers that have not said yet that they have begun a trace. until: when others are told so."""

    until: float
    workers: set[int]


class Tracing:
    """Answers the questions about traces, and tells the workers.

    handlers: the router's, replaced while anything is traced.  targets, refusal: what it does with a push, see there.
    is_known(key): whether a publication had this idempotency key before.  peers(): the workers that are connected.
    clock: CLOCK_MONOTONIC.  wall_clock: Unix time.  events_per_second: most that the broker itself tells.
    """

    def __init__(
        self,
        handlers: dict[int, Handler],
        *,
        targets: Callable[[list[bytes]], tuple[Peer, ...]],
        refusal: Callable[[tuple[Peer, ...]], Status | None],
        is_known: Callable[[bytes], bool],
        peers: Callable[[], Iterable[Peer]],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        events_per_second: int,
    ) -> None:
        self._handlers = handlers
        self._wanting = targets
        self._refusal = refusal
        self._is_known = is_known
        self._peers = peers
        self._clock = clock
        self._wall_clock = wall_clock
        self._per_second = events_per_second
        self._traces = Traces()
        self._targets = Targets()
        self._beginnings: dict[str, Beginning] = {}
        self._outbox = Outbox("broker", 1, 0)
        self._swaps = Swaps()
        self._second = 0.0
        self.answers: dict[str, Callable[[dict[str, Any], OnAnswer], None]] = {
            "trace": self._start,
            "traced": self._read,
            "untrace": self._stop,
        }

    def configure(self, events_per_second: int) -> None:
        """Tell at most so many events from the next trace on."""
        self._per_second = events_per_second

    # -- questions ---------------------------------------------------------------------

    def _start(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        user, channel = question.get("user"), question.get("channel")
        seconds = question.get("seconds", DEFAULT_SECONDS)
        if not isinstance(seconds, int | float) or any(not isinstance(name, str | None) for name in (user, channel)):
            raise TraceError("user or channel must be a text, and seconds a number")
        now = self._clock()
        trace = self._traces.start(seconds, now, user=user, channel=channel)
        self._beginnings[trace] = Beginning(now + BEGIN_SECONDS, {peer.number for peer in self._peers()})
        self._tell(now)
        on_answer(orjson.dumps({"trace": trace, "ends_seconds": self._wall_clock() + seconds}))

    def _read(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        after = question.get("after", 0)
        if not isinstance(after, int):
            raise TraceError("after must be the number of an event")
        now = self._clock()
        trace = self._traces.read(str(question.get("trace")), after, now)
        offset = self._wall_clock() - now
        told = list(_fitting(msgspec.structs.replace(event, seconds=event.seconds + offset) for event in trace.events))
        is_over = trace.is_over and len(told) == len(trace.events)
        on_answer(msgspec.json.encode({"events": told, "left_out": trace.left_out, "is_over": is_over}))

    def _stop(self, question: dict[str, Any], on_answer: OnAnswer) -> None:
        now = self._clock()
        self._traces.stop(str(question.get("trace")), now)
        self._tell(now)
        on_answer(b"{}")

    # -- workers -----------------------------------------------------------------------

    def on_peer(self, peer: Peer) -> None:
        """A worker has connected: tell it what is traced."""
        if self._targets:
            self._tell_peer(peer, self._traces.active(self._clock()))

    def take(self, peer: Peer, body: bytes) -> None:
        """Take what a worker has seen; one that traces what nobody asks for, as after another broker, is told."""
        seen = unpack_seen(body)
        for trace, event in seen.events:
            if event.step == "tracing" and trace in self._beginnings:
                self._beginnings[trace].workers.discard(peer.number)
        if not self._traces.take(seen):
            self._tell_peer(peer, self._traces.active(self._clock()))

    def on_killed(self, worker: int, keys: Iterable[bytes]) -> None:
        """A worker that had subscribers for these keys has ended without a drain."""
        if not self._targets:
            return
        for trace in {trace for key in keys for trace in self._targets.of_keys((key,)) if key != EVERYBODY}:
            detail = f"worker-{worker} was lost with all its connections; their clients connect again"
            self._outbox.add((trace,), self._clock(), "closed", detail=detail)

    def tick(self) -> None:
        """End what is over; called every few tens of milliseconds."""
        now = self._clock()
        self._traces.tick(now)
        if self._targets.ids != {target.id for target in self._traces.active(now)}:
            self._tell(now)
        self._look_for_silent(now)
        if self._targets:
            self._traces.take(self._outbox.take())
            if now >= self._second + 1:
                self._second = now
                self._traces.take(self._outbox.take_left_out(now))

    def _look_for_silent(self, now: float) -> None:
        """Tell which workers take no part in a trace though they had the time: nobody else would."""
        for trace, (until, workers) in list(self._beginnings.items()):
            silent = [peer.number for peer in self._peers() if peer.number in workers]
            is_over = not silent or trace not in self._targets.ids
            if is_over or now >= until:
                del self._beginnings[trace]
            if not is_over and now >= until:
                detail = f"no answer yet from {_names(silent)}: what happens there is not told"
                self._outbox.add((trace,), now, "silent", detail=detail)

    def _tell(self, now: float) -> None:
        """Have everybody trace what is active, and nothing else."""
        active = self._traces.active(now)
        self._traces.take(self._outbox.take())
        self._targets = Targets(active)
        if active and not self._swaps:
            self._outbox = Outbox("broker", self._per_second, now)
            self._swaps.item(self._handlers, bus.PUBLISH, self._ordering)
            self._swaps.item(self._handlers, bus.PUBLISH_ONCE, self._ordering_once)
        elif not active:
            self._swaps.undo()
        for peer in self._peers():
            self._tell_peer(peer, active)

    def _tell_peer(self, peer: Peer, active: list[Target]) -> None:
        peer.link.send(bus.encode(bus.TRACE, 0, pack_targets(active)))

    # -- the order of pushes -----------------------------------------------------------

    def _ordering(self, order: Handler) -> Handler:
        def traced(peer: Peer, request: int, body: Any) -> None:
            self._look(body)
            order(peer, request, body)

        return traced

    def _ordering_once(self, order: Handler) -> Handler:
        def traced(peer: Peer, request: int, body: Any) -> None:
            key, publication = bus.decode_once(body)
            self._look(publication, is_known=self._is_known(key))
            order(peer, request, body)

        return traced

    def _look(self, body: Any, *, is_known: bool = False) -> None:
        """Tell what becomes of a publication. What fails here harms none: it ends the traces."""
        try:
            self._on_publish(body, is_known=is_known)
        except Exception:
            log.exception("tracing failed")
            for target in self._targets.targets:
                self._traces.stop(target.id, self._clock())
            self._swaps.undo()

    def _on_publish(self, body: Any, *, is_known: bool) -> None:
        keys, _ = bus.decode_route(body)
        traces = self._targets.of_keys(keys)
        if not traces:
            return
        publication = bus.decode_publication(body)
        targets = self._wanting(keys)
        refusal = self._refusal(targets)
        what = name_of(keys, publication.event)
        add = partial(self._outbox.add, traces, self._clock(), taken=publication.taken_seconds, what=what)
        if is_known:
            add("ordered", detail="the same as an earlier one with its Idempotency-Key: sent to nobody again")
        elif refusal is not None:
            add("refused", detail=_REFUSALS[refusal])
        else:
            add("ordered", detail=_wanted(targets))


def _fitting(events: Iterable[Traced]) -> Iterator[msgspec.Raw]:
    """Yield the first events, encoded, that one answer has room for; the others come with the next one."""
    size = 0
    for event in events:
        encoded = msgspec.json.encode(event)
        size += len(encoded) + 1
        if size > _EVENTS_BYTES_MAX:
            break
        yield msgspec.Raw(encoded)


def _wanted(targets: tuple[Peer, ...]) -> str:
    """Return which workers get it, in words."""
    if not targets:
        return "no worker wants it: nobody is registered for that"
    names = _names(peer.number for peer in targets)
    return f"{len(targets)} workers want it: {names}" if len(targets) > 1 else f"1 worker wants it: {names}"


def _names(workers: Iterable[int]) -> str:
    return ", ".join(f"worker-{number}" for number in sorted(workers))
