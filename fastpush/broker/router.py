"""The broker's mind: who wants what, and what is owed to whom. No I/O; time is told.

A push is numbered, sent to every worker that wants one of its keys, and answered
when each of them has counted, has gone, or the time to confirm is over. A new broker
(new epoch) takes no push until the table of every live worker is complete: a key it
does not know yet may have subscribers.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from fastpush.log import fields
from fastpush.metrics import add_snapshots
from fastpush.protocol import bus
from fastpush.protocol.bus import Status
from fastpush.state.routes import Routes

log = logging.getLogger("fastpush.broker")

SCRAPE_SECONDS = 0.25  # a worker that has not measured by then is shown with its last figures


class WorkerLink(Protocol):
    """What the router needs of a connection to a worker."""

    @property
    def is_full(self) -> bool: ...
    def send(self, *parts: bytes) -> None: ...
    def close(self) -> None: ...


class Peer:
    """A worker process as the broker sees it."""

    __slots__ = ("link", "number", "snapshot", "uncounted")

    def __init__(self, link: WorkerLink, number: int) -> None:
        self.link = link
        self.number = number
        # Publications this worker has not counted yet, oldest first.
        self.uncounted: dict[int, Delivery] = {}
        self.snapshot: dict[str, Any] = {}


class Delivery:
    """A push or drop under way."""

    __slots__ = ("deadline", "origin", "request", "sent", "unconfirmed", "waiting")

    def __init__(self, origin: WorkerLink, request: int, waiting: int, deadline: float) -> None:
        self.origin = origin
        self.request = request
        self.waiting = waiting
        self.deadline = deadline
        self.sent = 0
        self.unconfirmed = 0


class Scrape:
    """A report being put together."""

    __slots__ = ("deadline", "missing", "origin", "request")

    def __init__(self, origin: WorkerLink, request: int, missing: set[int], deadline: float) -> None:
        self.origin = origin
        self.request = request
        self.missing = missing
        self.deadline = deadline


class Router:
    """Orders, routes and counts.

    workers:       numbers of the processes whose key tables must come before any push.
    confirm_seconds, resync_seconds: deadlines; `tick` applies them.
    on_stalled:    told the number of a worker that did not send its table in time.
    """

    def __init__(
        self,
        epoch: int,
        workers: tuple[int, ...],
        *,
        confirm_seconds: float,
        resync_seconds: float,
        on_stalled: Callable[[int], None],
    ) -> None:
        self.epoch = epoch
        self.now = 0.0
        self.routes: Routes[Peer] = Routes()
        self._peers: dict[WorkerLink, Peer] = {}
        self._missing = set(workers)
        self._resync_seconds = resync_seconds
        self._resync_deadline: float | None = None
        self._confirm_seconds = confirm_seconds
        self._on_stalled = on_stalled
        self._last_number = 0
        self._scrapes: dict[int, Scrape] = {}
        self._departed: dict[str, int] = {}
        self.counts = {"publications": 0, "refused": 0, "unconfirmed": 0}
        self._handlers: dict[int, Callable[[Peer, int, bytes], None]] = {
            bus.SUBSCRIBE: self._subscribe,
            bus.UNSUBSCRIBE: self._unsubscribe,
            bus.COMPLETE: self._complete,
            bus.PUBLISH: self._publish,
            bus.DROP: self._drop,
            bus.COUNT: self._count,
            bus.SCRAPE: self._scrape,
            bus.SNAPSHOT: self._snapshot,
        }

    @property
    def is_ready(self) -> bool:
        """Whether every key table is here, so that pushes may be taken."""
        return not self._missing

    @property
    def is_idle(self) -> bool:
        """Whether no worker is connected."""
        return not self._peers

    def on_message(self, link: WorkerLink, kind: int, number: int, body: bytes) -> None:
        """Take one message from a worker; unknown kinds are logged and left out."""
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
        """Forget a worker: its keys, its share in pushes under way, its part in reports."""
        peer = self._peers.pop(link, None)
        if peer is None:
            return
        self.routes.remove(peer)
        for delivery in peer.uncounted.values():
            self._counted(delivery, 0, confirmed=False)
        peer.uncounted.clear()
        add_snapshots(self._departed, peer.snapshot.get("counters", {}))
        for number in list(self._scrapes):
            self._measured(number, peer.number)

    def on_gone(self, worker: int) -> None:
        """The supervisor says that this worker process has ended."""
        self._missing.discard(worker)
        for link, peer in list(self._peers.items()):
            if peer.number == worker:
                link.close()

    def tick(self, now: float) -> None:
        """Apply deadlines; called every few tens of milliseconds with the loop's time in seconds."""
        self.now = now
        for peer in self._peers.values():
            late = []
            for number, delivery in peer.uncounted.items():
                if delivery.deadline > now:
                    break
                late.append(number)
            for number in late:
                self._counted(peer.uncounted.pop(number), 0, confirmed=False)
        for number, scrape in list(self._scrapes.items()):
            if scrape.deadline <= now:
                self._report(number)
        self._check_resync(now)

    def _check_resync(self, now: float) -> None:
        if not self._missing:
            return
        if self._resync_deadline is None:
            self._resync_deadline = now + self._resync_seconds
        elif now >= self._resync_deadline:
            for worker in sorted(self._missing):
                self._on_stalled(worker)
            # Asked again if the supervisor's word that they are gone does not come.
            self._resync_deadline = now + self._resync_seconds

    def _hello(self, link: WorkerLink, number: int) -> None:
        for other, peer in list(self._peers.items()):
            if peer.number == number:  # its old connection, not seen to close yet
                self.on_closed(other)
                other.close()
        self._peers[link] = Peer(link, number)
        link.send(bus.encode(bus.WELCOME, 0, bus.encode_epoch(self.epoch)))

    def _subscribe(self, peer: Peer, number: int, key: bytes) -> None:
        self.routes.add(peer, key)
        if number:  # 0: part of a key table, confirmed as a whole
            peer.link.send(bus.encode(bus.SUBSCRIBED, number))

    def _unsubscribe(self, peer: Peer, number: int, key: bytes) -> None:
        self.routes.discard(peer, key)

    def _complete(self, peer: Peer, number: int, body: bytes) -> None:
        peer.link.send(bus.encode(bus.SUBSCRIBED, number))
        if peer.number in self._missing:
            self._missing.remove(peer.number)
            if not self._missing:
                log.info("routes complete", extra=fields(keys=len(self.routes), workers=len(self._peers)))

    def _publish(self, peer: Peer, request: int, body: bytes) -> None:
        keys = bus.decode_keys(body)
        subscribers = self.routes.subscribers
        if len(keys) == 1:
            targets = subscribers(keys[0])
        else:
            targets = tuple(dict.fromkeys(target for key in keys for target in subscribers(key)))
        self._send_out(peer, request, bus.DELIVER, targets, body)

    def _drop(self, peer: Peer, request: int, body: bytes) -> None:
        self._send_out(peer, request, bus.CLOSE, tuple(self._peers.values()), body)

    def _send_out(self, origin: Peer, request: int, kind: int, targets: tuple[Peer, ...], body: bytes) -> None:
        """Send `body` to every target and owe `origin` their counts; to all of them or to none."""
        if self._missing:
            self._refuse(origin, request, Status.NOT_READY)
            return
        for target in targets:
            if target.link.is_full:
                self._refuse(origin, request, Status.OVERLOADED)
                return
        self.counts["publications"] += 1
        if not targets:
            origin.link.send(bus.encode_result(request, Status.DONE, 0, 0))
            return
        self._last_number = number = self._last_number + 1
        delivery = Delivery(origin.link, request, len(targets), self.now + self._confirm_seconds)
        head = bus.encode_head(kind, number, len(body))
        for target in targets:
            target.uncounted[number] = delivery
            target.link.send(head, body)

    def _refuse(self, origin: Peer, request: int, status: Status) -> None:
        self.counts["refused"] += 1
        origin.link.send(bus.encode_result(request, status, 0, 0))

    def _count(self, peer: Peer, number: int, body: bytes) -> None:
        delivery = peer.uncounted.pop(number, None)
        if delivery is not None:  # else it came after the deadline and has been reported as unconfirmed
            self._counted(delivery, bus.decode_count(body), confirmed=True)

    def _counted(self, delivery: Delivery, sent: int, *, confirmed: bool) -> None:
        delivery.sent += sent
        delivery.waiting -= 1
        if not confirmed:
            delivery.unconfirmed += 1
            self.counts["unconfirmed"] += 1
        if delivery.waiting == 0:
            delivery.origin.send(
                bus.encode_result(delivery.request, Status.DONE, delivery.sent, delivery.unconfirmed)
            )

    def _scrape(self, peer: Peer, request: int, body: bytes) -> None:
        self._last_number = number = self._last_number + 1
        missing = {other.number for other in self._peers.values()}
        self._scrapes[number] = Scrape(peer.link, request, missing, self.now + SCRAPE_SECONDS)
        for other in self._peers.values():
            other.link.send(bus.encode(bus.MEASURE, number))

    def _snapshot(self, peer: Peer, number: int, body: bytes) -> None:
        peer.snapshot = orjson.loads(body)
        if number:
            self._measured(number, peer.number)

    def _measured(self, number: int, worker: int) -> None:
        scrape = self._scrapes.get(number)
        if scrape is not None:
            scrape.missing.discard(worker)
            if not scrape.missing:
                self._report(number)

    def _report(self, number: int) -> None:
        scrape = self._scrapes.pop(number)
        report = {
            "broker": {**self.counts, "routes": len(self.routes), "workers": len(self._peers)},
            "departed": self._departed,
            "workers": {str(peer.number): peer.snapshot for peer in self._peers.values()},
            "stale": sorted(scrape.missing),
        }
        scrape.origin.send(bus.encode(bus.REPORT, scrape.request, orjson.dumps(report)))
