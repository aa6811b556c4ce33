"""The broker's mind: who wants what, and what is owed to whom. No I/O; time is told.

A push is numbered, sent to every worker that wants one of its keys, and answered
when each of them has counted, has gone, or the time to confirm is over.

What the broker does not know may have subscribers, so nobody is told less than the truth:

    a new broker (new epoch)   takes no push until the table of every live worker is complete
    a link that breaks         leaves its worker's keys standing; a push that one of them
                               wants is refused until the worker has sent its table again,
                               or the supervisor says that the process has ended
    a worker that drained      says GOODBYE, and is forgotten

Connections of a user or an address, and users in channels, are counted by the same rules: while a table is
missing nobody knows how many there are, and whoever asks for one more waits.

A table that does not come within resync_seconds is reported, so that its worker is killed.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from fastpush.broker.channels import Channels
from fastpush.broker.inquiries import Inquiries, Inquiry
from fastpush.broker.insight import LIVE_KEY, Insight
from fastpush.broker.once import Once
from fastpush.broker.peer import NO_LINK, Delivery, Peer, WorkerLink
from fastpush.broker.tracing import Tracing
from fastpush.channels.namespaces import Namespaces
from fastpush.config import Config
from fastpush.log import fields
from fastpush.metrics import Figure, add_snapshots
from fastpush.protocol import bus, control
from fastpush.protocol.bus import NO_POSITION, Position, Status
from fastpush.protocol.frames import text_header
from fastpush.protocol.insight import LIVE_CHANNEL, unpack_notes
from fastpush.state.admissions import Admissions
from fastpush.state.history import Histories
from fastpush.state.routes import Routes

log = logging.getLogger("fastpush.broker")

Handler = Callable[[Peer, int, Any], None]


class Router:
    """Orders, routes and counts.

    workers:       numbers of the processes whose key tables must come before any push.
    clock:         returns seconds; deadlines are exact, `tick` notices them.
    config:        of it [bus] queue_bytes bounds what a worker may owe counts for: beyond it pushes to it are refused.
    resync_seconds: the deadline of a key table.
    started_seconds: Unix time of the broker's start, for its report.  wall_clock: returns Unix time, for notices.
    on_stalled:    told the number of a worker whose table is overdue, again and again
                   until that has come or `on_gone` is called.
    """

    def __init__(
        self,
        epoch: int,
        workers: tuple[int, ...],
        config: Config,
        *,
        clock: Callable[[], float],
        resync_seconds: float,
        started_seconds: float,
        wall_clock: Callable[[], float],
        on_stalled: Callable[[int], None],
    ) -> None:
        self.epoch = epoch
        self.routes: Routes[Peer] = Routes()
        self.admissions: Admissions[Peer] = Admissions()
        self.channels = Channels(
            Histories(config.bus.history_bytes, epoch, is_wanted=lambda key: bool(self.routes.subscribers(key))),
            Namespaces(config.channels),
            queue_bytes=config.bus.queue_bytes,
            clock=clock,
            wall_clock=wall_clock,
            routes=self.routes,
            hand_out=self._hand_out,
        )
        self.once = Once(config.limits.idempotency_keys, clock)
        # Of whoever asks for what nobody knows while a table is missing: at most what the workers ask at once.
        self._askers: list[tuple[Handler, Peer, int, bytes]] = []
        self._clock = clock
        self._peers: dict[WorkerLink, Peer] = {}
        self._lost: dict[int, Peer] = {}
        self._missing = set(workers)
        # Of missing and lost workers: when their tables are due.
        self._due = dict.fromkeys(workers, clock() + resync_seconds)
        # Of ended ones: when a link is closed that they leave open. One entry a dead process, for ever:
        # a connection of theirs may be accepted long after their end.
        self._gone: dict[int, float] = {}
        self._resync_seconds = resync_seconds
        self._confirm_seconds = config.bus.confirm_ms / 1000
        self._queue_bytes = config.bus.queue_bytes
        self._started_seconds = started_seconds
        self._on_stalled = on_stalled
        self._last_number = 0
        self._inquiries = Inquiries(clock)
        self._departed: dict[str, Figure] = {}
        self.insight = Insight(
            config,
            peers=self._peers.values,
            snapshots=self._snapshots,
            departed=lambda: self._departed,
            inquiries=self._inquiries,
            clock=clock,
            wall_clock=wall_clock,
            is_watched=lambda: bool(self.routes.subscribers(LIVE_KEY)),
            publish_live=self._publish_live,
        )
        self.counts = {"publications": 0, "refused": 0, "unconfirmed": 0, "workers_lost": 0}
        self.restarts = control.Restarts(0, 0)
        self._handlers: dict[int, Handler] = {
            bus.SUBSCRIBE: self._subscribe,
            bus.UNSUBSCRIBE: self._unsubscribe,
            bus.COMPLETE: self._complete,
            bus.PUBLISH: self._publish,
            bus.PUBLISH_ONCE: self._publish_once,
            bus.ORDER: self._order,
            bus.COUNT: self._count,
            bus.SCRAPE: self._scrape,
            bus.SNAPSHOT: self._snapshot,
            bus.ADMIT: self._once_complete(self._admit),
            bus.RELEASE: self._release,
            bus.HOLD: self._hold,
            bus.JOIN: self._once_complete(self.channels.join),
            bus.LEAVE: self.channels.leave,
            bus.PRESENT: self.channels.present,
            bus.CLAIM: self.channels.claim,
            bus.UNCLAIM: self.channels.unclaim,
            bus.HISTORY: self.channels.history,
            bus.FORGET: self.channels.clear,
            bus.ONLINE: self._once_complete(self.channels.online),
            bus.PRESENCE: self._once_complete(self.channels.presence),
            bus.GATHER: self._gather,
            bus.FOUND: self._found,
            bus.NOTES: self._notes,
            bus.INSIGHT: self._insight,
            bus.TRACED: lambda peer, _, body: self.tracing.take(peer, body),
            bus.GOODBYE: self._goodbye,
        }
        self.tracing = Tracing(
            self._handlers,
            targets=self._targets,
            refusal=self._refusal,
            is_known=lambda key: self.once.find(key) is not None,
            peers=self._peers.values,
            clock=clock,
            wall_clock=wall_clock,
            events_per_second=config.admin.trace_events_per_second,
        )
        self.insight.answer_too(self.tracing.answers)

    def configure(self, config: Config) -> None:
        """Go by `config` from now on."""
        self.once.limit = config.limits.idempotency_keys
        self.channels.histories.limit_bytes = config.bus.history_bytes
        self.channels.namespaces = Namespaces(config.channels)
        self.insight.configure(config)
        self.tracing.configure(config.admin.trace_events_per_second)

    @property
    def is_ready(self) -> bool:
        """Whether every key table is here, so that pushes may be taken."""
        return not self._missing

    @property
    def is_idle(self) -> bool:
        """Whether no worker is connected."""
        return not self._peers

    @property
    def held(self) -> int:
        """Return the number of keys that somebody wants, and of channels that keep something."""
        return len(self.routes) + len(self.channels.histories)

    def on_message(self, link: WorkerLink, kind: int, number: int, body: bus.Body) -> None:
        """Take one message from a worker.

        Raises: BusError, when the link is of no use: nobody says HELLO first, or the kind is unknown.
        """
        peer = self._peers.get(link)
        if peer is None:
            if kind != bus.HELLO:
                raise bus.BusError(f"message type {kind} before HELLO")
            self._hello(link, number)
            return
        handler = self._handlers.get(kind)
        if handler is None:
            raise bus.BusError(f"unknown message type {kind}")
        handler(peer, number, body)

    def on_closed(self, link: WorkerLink) -> None:
        """Settle a worker's share in pushes and reports; forget it, or keep its keys for its return."""
        peer = self._peers.pop(link, None)
        if peer is None:
            return
        for delivery in peer.uncounted.values():
            self._counted(delivery, 0, confirmed=False)
        peer.uncounted.clear()
        self._askers = [asker for asker in self._askers if asker[1] is not peer]
        worker = peer.number
        if peer.is_leaving:
            self._forget(peer)
        elif worker in self._gone:
            self.counts["workers_lost"] += 1
            self._forget(peer)
        elif peer.is_complete:
            peer.link = NO_LINK
            self._lost[worker] = peer
            self._due[worker] = self._clock() + self._resync_seconds
            log.warning("worker lost", extra=fields(worker=worker))
        else:  # its earlier table stands, or is still missing; or it never had one
            self._discard_table(peer)
        self._inquiries.forget(worker)

    def _discard_table(self, peer: Peer) -> None:
        self.routes.remove(peer)
        self.admissions.forget(peer)
        self.channels.forget(peer)

    def _forget(self, peer: Peer) -> None:
        if peer.is_leaving:
            self.insight.on_drained(peer.number)
        else:
            keys = self.routes.keys(peer)
            self.insight.on_killed(peer.number, keys)
            self.tracing.on_killed(peer.number, keys)
        self._discard_table(peer)
        add_snapshots(self._departed, peer.snapshot.get("counters", {}))

    def on_gone(self, worker: int) -> None:
        """The supervisor says that this worker process has ended."""
        # What it has sent before its end is still read: its link closes by itself behind that.
        # Only a process that it has forked can hold the link open.
        self._gone[worker] = self._clock() + self._resync_seconds
        lost = self._lost.pop(worker, None)
        if lost is not None:
            self._forget(lost)
        is_connected = any(peer.number == worker for peer in self._peers.values())
        if worker in self._due and not is_connected:
            self.counts["workers_lost"] += 1
        self._settle(worker)

    def _settle(self, worker: int) -> None:
        """Expect no table of this worker any more."""
        self._due.pop(worker, None)
        if worker in self._missing:
            self._missing.remove(worker)
            if not self._missing:
                log.info("routes complete", extra=fields(keys=len(self.routes), workers=len(self._peers)))
        if not self._due:
            askers, self._askers = self._askers, []
            for handler, peer, request, body in askers:
                handler(peer, request, body)

    def _once_complete(self, handler: Handler) -> Handler:
        """Return a handler of questions that nobody can answer while a table is missing: they wait."""

        def handle(peer: Peer, request: int, body: bytes) -> None:
            if self._due:
                self._askers.append((handler, peer, request, body))
            else:
                handler(peer, request, body)

        return handle

    def tick(self) -> None:
        """Apply deadlines; called every few tens of milliseconds."""
        now = self._clock()
        for link, peer in list(self._peers.items()):
            if self._gone.get(peer.number, now) < now:
                self.on_closed(link)
                link.close()
            else:
                self._give_up_counts(peer, now)
        self._inquiries.tick()
        self.tracing.tick()
        if not self._due:  # else a table that is missing may hold who seems to have left
            self.channels.tick(now)
            self.channels.answer_deferred()
        for worker, due in self._due.items():
            if due <= now:
                self._due[worker] = now + self._resync_seconds
                self._on_stalled(worker)

    def _give_up_counts(self, peer: Peer, now: float) -> None:
        late = []
        for number, delivery in peer.uncounted.items():
            if delivery.deadline > now:
                break
            late.append(number)
        for number in late:
            delivery = peer.uncounted.pop(number)
            peer.late[number] = delivery.size
            self._counted(delivery, 0, confirmed=False)

    def _hello(self, link: WorkerLink, number: int) -> None:
        if number in self._gone:
            raise bus.BusError(f"HELLO of worker {number}, which has ended")
        for other, peer in list(self._peers.items()):
            if peer.number == number:  # its old connection, not seen to close yet
                self.on_closed(other)
                other.close()
        self._peers[link] = peer = Peer(link, number)
        link.send(bus.encode(bus.WELCOME, 0, bus.encode_epoch(self.epoch)))
        self.tracing.on_peer(peer)

    def _subscribe(self, peer: Peer, number: int, key: bytes) -> None:
        self.routes.add(peer, key)
        if number:  # 0: part of a key table, confirmed as a whole
            peer.link.send(bus.encode(bus.SUBSCRIBED, number))

    def _unsubscribe(self, peer: Peer, number: int, key: bytes) -> None:
        self.routes.discard(peer, key)

    def _admit(self, peer: Peer, request: int, body: bytes) -> None:
        name, limit = bus.decode_admit(body)
        admitted = self.admissions.admit(peer, name, limit)
        peer.link.send(bus.encode(bus.ADMITTED, request, b"\1" if admitted else b"\0"))

    def _release(self, peer: Peer, number: int, name: bytes) -> None:
        self.admissions.release(peer, name)

    def _hold(self, peer: Peer, count: int, name: bytes) -> None:
        self.admissions.hold(peer, name, count)

    def _complete(self, peer: Peer, number: int, body: bytes) -> None:
        peer.is_complete = True
        self._return(peer)
        peer.link.send(bus.encode(bus.SUBSCRIBED, number))

    def _goodbye(self, peer: Peer, number: int, body: bytes) -> None:
        peer.is_leaving = True
        self._return(peer)

    def _return(self, peer: Peer) -> None:
        """Let what a worker says over this link stand for all that it said over an earlier one."""
        lost = self._lost.pop(peer.number, None)
        if lost is not None:
            self._discard_table(lost)
            peer.snapshot = peer.snapshot or lost.snapshot
        self._settle(peer.number)

    def _publish(self, peer: Peer, request: int, body: bus.Body) -> None:
        keys, keep = bus.decode_route(body)
        targets = self._targets(keys)
        position = self._take(peer, request, keys, keep, targets, body)
        if position is None:
            return
        if not targets:
            peer.link.send(bus.encode_result(request, Status.DONE, 0, 0, position))
        elif targets == (peer,):
            kept_at = b"" if position is NO_POSITION else bus.encode_position(position)
            peer.link.send(bus.encode(bus.DELIVER_OWN, request, kept_at))
        else:
            self._send_out(peer.link, request, targets, body, position)

    def _publish_once(self, peer: Peer, request: int, body: bus.Body) -> None:
        """Publish what has an idempotency key, or answer as for the one that had the same."""
        key, body = bus.decode_once(body)
        delivery = self.once.find(key)
        if delivery is not None:
            delivery.askers.append((peer.link, request))
        else:
            keys, keep = bus.decode_route(body)
            targets = self._targets(keys)
            position = self._take(peer, request, keys, keep, targets, body)
            if position is None:
                return
            delivery = self._send_out(peer.link, request, targets, body, position)
            self.once.remember(key, delivery)
        if not delivery.waiting:
            delivery.answer()

    def _targets(self, keys: list[bytes]) -> tuple[Peer, ...]:
        subscribers = self.routes.subscribers
        if len(keys) == 1:
            return subscribers(keys[0])
        return tuple(dict.fromkeys(target for key in keys for target in subscribers(key)))

    def _take(
        self, peer: Peer, request: int, keys: list[bytes], keep: int, targets: tuple[Peer, ...], body: bus.Body
    ) -> Position | None:
        """Keep a publication, if its channel does, and return its place; None: it was refused."""
        refusal = self._refusal(targets)
        if refusal is not None:
            self._refuse(peer, request, refusal)
            return None
        self.counts["publications"] += 1
        return self.channels.keep(keys[0], keep, body) if len(keys) == 1 else NO_POSITION

    def _order(self, peer: Peer, request: int, body: bytes) -> None:
        """Have every worker do something, and count."""
        targets = (*self._peers.values(), *self._lost.values())
        refusal = self._refusal(targets)
        if refusal is not None:
            self._refuse(peer, request, refusal)
        else:
            self._hand_out(bus.OBEY, targets, body, peer.link, request)

    def _refusal(self, targets: tuple[Peer, ...]) -> Status | None:
        """Return why nothing can be sent to all targets now, if it cannot."""
        if self._missing:
            return Status.NOT_READY
        for target in targets:
            if target.link.is_full or target.uncounted_bytes >= self._queue_bytes:
                return Status.NOT_READY if target.link is NO_LINK else Status.OVERLOADED
        return None

    def _send_out(
        self, origin: WorkerLink, request: int, targets: tuple[Peer, ...], body: bus.Body, position: Position
    ) -> Delivery:
        """Send a publication to every target, with its place in what its channel has kept."""
        if position is NO_POSITION:
            return self._hand_out(bus.DELIVER, targets, body, origin, request)
        offset = bus.encode_offset(position.offset)
        return self._hand_out(bus.DELIVER_AT, targets, body, origin, request, position=position, before=offset)

    def _hand_out(
        self,
        kind: int,
        targets: tuple[Peer, ...],
        body: bus.Body,
        origin: WorkerLink = NO_LINK,
        request: int = 0,
        *,
        position: Position = NO_POSITION,
        before: bytes = b"",
    ) -> Delivery:
        """Send a message to every target, and owe `origin` their counts. before: stands before the body."""
        self._last_number = number = self._last_number + 1
        deadline = self._clock() + self._confirm_seconds
        delivery = Delivery(origin, request, len(targets), len(body), deadline, position)
        head = bus.encode_head(kind, number, len(before) + len(body)) + before
        for target in targets:
            target.uncounted[number] = delivery
            target.uncounted_bytes += delivery.size
            target.link.send(head, body)
        return delivery

    def _refuse(self, origin: Peer, request: int, status: Status) -> None:
        self.counts["refused"] += 1
        origin.link.send(bus.encode_result(request, status, 0, 0))

    def _count(self, peer: Peer, number: int, body: bytes) -> None:
        delivery = peer.uncounted.pop(number, None)
        if delivery is not None:
            peer.uncounted_bytes -= delivery.size
            self._counted(delivery, bus.decode_count(body), confirmed=True)
        else:  # it came after the deadline and has been reported as unconfirmed
            peer.uncounted_bytes -= peer.late.pop(number, 0)

    def _counted(self, delivery: Delivery, sent: int, *, confirmed: bool) -> None:
        delivery.sent += sent
        delivery.waiting -= 1
        if not confirmed:
            delivery.unconfirmed += 1
            self.counts["unconfirmed"] += 1
        if delivery.waiting == 0:
            delivery.answer()

    # -- what operators are told ---------------------------------------------------

    def _notes(self, peer: Peer, number: int, body: bus.Body) -> None:
        self.insight.take_notes(unpack_notes(body))

    def _insight(self, peer: Peer, request: int, body: bus.Body) -> None:
        link = peer.link
        self.insight.ask(bytes(body), lambda answer: link.send(bus.encode(bus.ANSWER, request, answer)))

    def _publish_live(self, text: bytes) -> None:
        """Send a text to the administration pages; one that cannot take it now gets the next one."""
        targets = tuple(target for target in self.routes.subscribers(LIVE_KEY) if not target.link.is_full)
        if targets:
            header = text_header(len(text))
            body = bus.encode_publication([LIVE_KEY], LIVE_CHANNEL.encode(), header, text, taken_seconds=self._clock())
            self._hand_out(bus.DELIVER, targets, body)

    def _snapshots(self) -> dict[int, Any]:
        return {peer.number: peer.snapshot for peer in (*self._peers.values(), *self._lost.values())}

    # -- figures -----------------------------------------------------------------

    def _scrape(self, peer: Peer, request: int, body: bytes) -> None:
        report = partial(self._report, request)
        self._inquiries.ask(peer.link, self._peers.values(), bus.MEASURE, b"", report)

    def _snapshot(self, peer: Peer, number: int, body: bytes) -> None:
        peer.snapshot = orjson.loads(body)
        if number:
            self._inquiries.answer(peer.number, number)

    def _gather(self, peer: Peer, request: int, body: bytes) -> None:
        self._inquiries.ask(peer.link, self._peers.values(), bus.INQUIRE, body, partial(self._gathered, request))

    def _found(self, peer: Peer, number: int, body: bytes) -> None:
        self._inquiries.answer(peer.number, number, body)

    def _gathered(self, request: int, inquiry: Inquiry) -> None:
        unasked = self._due.keys() - {peer.number for peer in self._peers.values()}
        gathered = bus.Gathered(inquiry.found, len(inquiry.missing) + len(unasked))
        inquiry.origin.send(bus.encode(bus.ANSWER, request, bus.pack(gathered)))

    def _report(self, request: int, scrape: Inquiry) -> None:
        """Answer a scrape; a worker that has not measured in time is shown with its last figures."""
        report = {
            "broker": {
                **self.counts,
                "routes": len(self.routes),
                **self.channels.figures(),
                **self.insight.figures(),
                "idempotency_keys": len(self.once),
                "idempotency_keys_forgotten": self.once.forgotten,
                "workers": len(self._peers),
                "start_time_seconds": self._started_seconds,
                "restarts_worker": self.restarts.workers,
                "restarts_broker": self.restarts.broker,
            },
            "departed": self._departed,
            "workers": {str(peer.number): _figures(peer) for peer in (*self._peers.values(), *self._lost.values())},
            "stale": sorted({*scrape.missing, *self._lost}),
        }
        scrape.origin.send(bus.encode(bus.REPORT, request, orjson.dumps(report)))


def _figures(peer: Peer) -> dict[str, Any]:
    """Return a worker's snapshot, with what only the broker knows of it."""
    seen = {"broker_queue_bytes": peer.link.queued_bytes, "broker_uncounted_bytes": peer.uncounted_bytes}
    return {**peer.snapshot, "gauges": {**peer.snapshot.get("gauges", {}), **seen}}
