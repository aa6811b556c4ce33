"""A worker's end of the bus: one link to the broker, made again whenever it is lost.

After each connect the worker sends its whole key table, then COMPLETE; a broker takes
no push before that. A push that was under way when the link was lost is answered
UNKNOWN: the broker may or may not have sent it out. A push is handed only to a broker
that has shown itself by WELCOME: a connection alone may wait in the listener's queue
for a broker that is still starting.
"""

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

from fastpush.bus.link import Link
from fastpush.errors import FastpushError
from fastpush.log import fields
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Position, Publication, Status

log = logging.getLogger("fastpush.bus")

RECONNECT_SECONDS = 0.02  # the listener outlives brokers, so a refusal means that the service is ending
# Announcements have no caller that could be told to wait. A broker that lets so many times
# queue_bytes of them pile up is told everything anew, by a table that is as small as can be.
_OVERRUN = 2
QUESTIONS_MAX = 100_000  # one or two a client that connects just now, and whatever applications ask
DEPARTED_MAX = 100_000  # a broker is back within a second or two; who is left out leaves without a notice


class Own(NamedTuple):
    """A publication that is delivered by the worker that took it: bytes of its body, and where it was kept."""

    size: int
    position: Position


class BusUnavailable(FastpushError):
    """The push was not sent to the broker; nobody received it."""


class Members(Protocol):
    """What this worker's connections have on the whole host beside keys: presence in channels, and claimed names."""

    def joins(self) -> Iterable[bytes]:
        """Return a Join, packed, for each channel that a connection is present in."""
        ...

    def claims(self) -> Iterable[tuple[int, int, bytes]]:
        """Return (connection, number, name) of each claim, answered or not."""
        ...

    def on_claimed(self, connection: int, name: bytes) -> None:
        """A claim is known; told again by each new broker."""
        ...

    def on_replaced(self, connection: int, name: bytes) -> None:
        """A newer connection has claimed the name."""
        ...

    def on_notice(self, notice: Publication, counted: Callable[[int], None]) -> None:
        """A user came to a channel or left it; `counted` is told once how many connections took it."""
        ...

    def on_changes(self, changes: Publication, counted: Callable[[int], None]) -> None:
        """Several came to a channel with a namespace, or left it; `counted` as above."""
        ...

    def on_relinked(self) -> None:
        """Another link to a broker: what came over the last one may have been lost in part."""
        ...


OnAdmitted = Callable[[bool], None]
OnAnswer = Callable[[bytes], None]
# Status, connections that took it, workers that did not count, where its channel has kept it.
OnResult = Callable[[int, int, int, Position], None]


class BusClient:
    """The link to the broker, and every question it owes an answer to.

    number:      of this worker process.
    deliver:     called with a publication and whom to tell, once, how many connections took it.
    obey:        called with the body of an ORDER; returns the connections that it was about.
    inquire:     called with the body of a GATHER; returns this worker's answer.
    members:     asked, and told, about channels and claims; set it before `start`.
    key_table:   returns the keys that have subscribers or are about to.
    measure:     returns this worker's snapshot as JSON.
    trace:       called with the body of a TRACE.
    answer_seconds: after that a push is answered UNKNOWN, whatever the broker does; DONE with nobody counted, when it
                    is this worker that has not counted.
    """

    def __init__(
        self,
        path: str,
        number: int,
        *,
        queue_bytes: int,
        answer_seconds: float,
        deliver: Callable[[Publication, Callable[[int], None]], None],
        obey: Callable[[bytes], int],
        inquire: Callable[[bytes], bytes],
        key_table: Callable[[], Iterable[bytes]],
        measure: Callable[[], bytes],
        trace: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._number = number
        self._queue_bytes = queue_bytes
        self._answer_seconds = answer_seconds
        self._deliver = deliver
        self._obey = obey
        self._inquire = inquire
        self.members: Members
        self._key_table = key_table
        self._measure = measure
        self._trace = trace
        self._link: Link | None = None
        self._is_welcome = False
        self._connecting: asyncio.Task[None] | None = None
        self._closing = False
        self._overdue: asyncio.TimerHandle | None = None
        self._requests = itertools.count(1)
        # Questions: deadline, whom to answer, and the body, in case it is ours alone to deliver.
        self._answers: dict[int, tuple[float, OnResult, bytes]] = {}
        # Those that are being delivered here.
        self._own: dict[int, Own] = {}
        # Bodies of those that were answered at their deadline: the broker may still take them, and keep them.
        self._late: dict[int, bytes] = {}
        self._held_bytes = 0  # bodies of questions that the broker has not answered, or that are not counted here
        self._reports: dict[int, Callable[[bytes | None], None]] = {}
        self._announcements = itertools.count(1)
        self._unconfirmed: deque[tuple[int, Callable[[], None]]] = deque()
        self._askers: dict[int, tuple[bytes, int, OnAdmitted]] = {}
        # Asked again of every new broker.
        self._questions: dict[int, tuple[int, bytes, OnAnswer]] = {}
        self._departed: list[bytes] = []  # packed Joins of who left while no broker had shown itself
        self._admitted: Counter[bytes] = Counter()  # what a new broker is told
        self.epoch = 0
        self.welcomed = asyncio.Event()  # a broker has answered, for the first time
        self._handlers: dict[int, Callable[[int, Any], None]] = {
            bus.WELCOME: self._on_welcome,
            bus.SUBSCRIBED: self._on_subscribed,
            bus.DELIVER: self._on_deliver,
            bus.DELIVER_OWN: self._on_deliver_own,
            bus.DELIVER_AT: self._on_deliver_at,
            bus.OBEY: self._on_order,
            bus.INQUIRE: self._on_inquiry,
            bus.RESULT: self._on_result,
            bus.MEASURE: self._on_measure,
            bus.REPORT: self._on_report,
            bus.ADMITTED: self._on_admitted,
            bus.ANSWER: self._on_answer,
            bus.CLAIMED: self._on_claimed,
            bus.REPLACED: self._on_replaced,
            bus.NOTICE: self._on_notice,
            bus.CHANGES: self._on_changes,
            bus.TRACE: lambda _, body: self._trace(body),
        }

    @property
    def unready(self) -> str:
        """Why the broker can be asked nothing now, or ""."""
        return "" if self._is_welcome else "the broker is being restarted"

    @property
    def queued_bytes(self) -> int:
        """Bytes on their way to the broker that the kernel has not taken yet."""
        return self._link.queued_bytes if self._link is not None else 0

    @property
    def pending(self) -> int:
        """Pushes and drops that wait for the broker's answer."""
        return len(self._answers)

    def start(self) -> None:
        """Begin to connect, and keep doing so until `close`."""
        if self._connecting is None and not self._closing:
            self._loop = asyncio.get_running_loop()
            self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        while not self._closing:
            try:
                _, link = await self._loop.create_unix_connection(
                    lambda: Link(self._on_message, self._on_closed, self._queue_bytes), self._path
                )
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            if not link.is_open:  # lost again before this task came to run
                continue
            self._connecting = None
            self._resynchronise(link)
            return

    def _resynchronise(self, link: Link) -> None:
        """Tell a broker, new or not, every key of this worker; whoever waited waits for this table."""
        self._link = link
        self._is_welcome = False
        link.send(bus.encode(bus.HELLO, self._number))
        for key in self._key_table():
            link.send(bus.encode(bus.SUBSCRIBE, 0, key))
        for name, count in self._admitted.items():
            link.send(bus.encode(bus.HOLD, count, name))
        for join in (*self.members.joins(), *self._departed):
            link.send(bus.encode(bus.PRESENT, 0, join))
        for connection, number, name in self.members.claims():
            link.send(bus.encode_claim(connection, number, name))
        announcement = next(self._announcements)
        link.send(bus.encode(bus.COMPLETE, announcement))
        waiting = [confirmed for _, confirmed in self._unconfirmed]
        self._unconfirmed = deque((announcement, confirmed) for confirmed in waiting)
        for join in self._departed:  # before questions: some may join again
            link.send(bus.encode(bus.LEAVE, 0, join))
        self._ask_again(link)

    def _ask_again(self, link: Link) -> None:
        for request, (name, limit, _) in self._askers.items():
            link.send(bus.encode(bus.ADMIT, request, bus.encode_admit(name, limit)))
        for request, (kind, body, _) in self._questions.items():
            link.send(bus.encode(kind, request, body))

    def close(self) -> None:
        """End the link for good: nobody here wants anything any more."""
        self._closing = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._overdue is not None:
            self._overdue.cancel()
        if self._link is not None:
            self._link.send(bus.encode(bus.GOODBYE, 0))
            self._link.close()

    def announce(self, key: bytes, confirmed: Callable[[], None]) -> None:
        """Tell the broker that `key` has its first subscriber here; `confirmed` is called once it knows.

        Without a link the key waits for the next broker's key table.
        """
        announcement = next(self._announcements)
        self._unconfirmed.append((announcement, confirmed))
        self._tell(bus.SUBSCRIBE, announcement, key)

    def withdraw(self, key: bytes) -> None:
        """Tell the broker that `key` has no subscriber here any more."""
        self._tell(bus.UNSUBSCRIBE, 0, key)

    def admit(self, name: bytes, limit: int, on_admitted: OnAdmitted) -> None:
        """Ask for one more connection of `name` on the whole host, which may have `limit`; pair a yes with `release`.

        Without a link the question waits for the next broker.
        """
        request = next(self._requests)
        self._askers[request] = (name, limit, on_admitted)
        self._tell(bus.ADMIT, request, bus.encode_admit(name, limit))

    def release(self, name: bytes) -> None:
        """Tell the broker that an admitted connection of `name` has ended."""
        self._admitted[name] -= 1
        if not self._admitted[name]:
            del self._admitted[name]
        self._tell(bus.RELEASE, 0, name)

    def admitted(self, name: bytes) -> int:
        """Return how many connections of `name` this worker holds."""
        return self._admitted[name]

    def ask(self, kind: int, body: bytes, on_answer: OnAnswer) -> None:
        """Ask what an ANSWER is due for; `on_answer` is called exactly once, by the next broker if this one is lost.

        Raises: BusUnavailable: the bus is full, or too many wait.
        """
        if self._link is not None and self._link.is_full:
            raise BusUnavailable("the bus to the broker is full")
        if len(self._questions) >= QUESTIONS_MAX:
            raise BusUnavailable("too many questions wait for the broker")
        request = next(self._requests)
        self._questions[request] = (kind, body, on_answer)
        self._tell(kind, request, body)

    def depart(self, join: bytes) -> None:
        """Tell the broker that a connection is not in a channel any more; join: packed, as it was told."""
        if not self._is_welcome and len(self._departed) < DEPARTED_MAX:
            self._departed.append(join)
        self._tell(bus.LEAVE, 0, join)

    def claim(self, connection: int, number: int, name: bytes) -> None:
        """Ask for a name for a connection; without a link the next broker is asked, by the table of claims."""
        self._send(bus.encode_claim(connection, number, name))

    def unclaim(self, connection: int, name: bytes) -> None:
        """Give a name back."""
        self._tell(bus.UNCLAIM, connection, name)

    def _tell(self, kind: int, number: int, body: bytes) -> None:
        self._send(bus.encode(kind, number, body))

    def _send(self, message: bytes) -> None:
        link = self._link
        if link is None:
            return
        link.send(message)
        if link.queued_bytes > _OVERRUN * self._queue_bytes:
            log.warning("broker does not read", extra=fields(bytes=link.queued_bytes))
            link.abort()

    def publish(self, body: bytes, on_result: OnResult, once: bytes = b"") -> None:
        """Hand a publication's body to the broker; `on_result` is called exactly once, later.

        once: its idempotency key, at most ONCE_BYTES_MAX; b"" for none.

        Raises: BusUnavailable, when it was not handed over.
        """
        if once:
            self._ask(bus.PUBLISH_ONCE, body, on_result, bus.encode_once(once))
        else:
            self._ask(bus.PUBLISH, body, on_result)

    def order(self, body: bytes, on_result: OnResult) -> None:
        """Have every worker do what `body` says; as `publish`."""
        self._ask(bus.ORDER, body, on_result)

    def _ask(self, kind: int, body: bytes, on_result: OnResult, before: bytes = b"") -> None:
        link = self._link
        if link is None or not self._is_welcome:
            raise BusUnavailable("the broker is being restarted")
        if link.is_full:
            raise BusUnavailable("the bus to the broker is full")
        if self._held_bytes >= self._queue_bytes:
            raise BusUnavailable("this worker is overloaded")
        request = next(self._requests)
        deadline = self._loop.time() + self._answer_seconds
        self._answers[request] = (deadline, on_result, body)
        self._held_bytes += len(body)
        if self._overdue is None:
            self._overdue = self._loop.call_at(deadline, self._expire)
        link.send(bus.encode_head(kind, request, len(before) + len(body)) + before, body)

    def scrape(self, on_report: Callable[[bytes | None], None]) -> None:
        """Ask for the whole host's figures, as JSON; None when the broker is lost meanwhile.

        Raises: BusUnavailable without a broker.
        """
        if self._link is None or not self._is_welcome:
            raise BusUnavailable("the broker is being restarted")
        request = next(self._requests)
        self._reports[request] = on_report
        self._link.send(bus.encode(bus.SCRAPE, request))

    def send_snapshot(self) -> None:
        """Leave this worker's figures with the broker, in case it dies."""
        if self._link is not None:
            self._link.send(bus.encode(bus.SNAPSHOT, 0, self._measure()))

    def note(self, notes: bytes) -> bool:
        """Leave notes with the broker, packed; False: there is none now."""
        if self._link is None or not self._is_welcome:
            return False
        self._tell(bus.NOTES, 0, notes)
        return True

    def tell_traced(self, seen: bytes) -> None:
        """Tell the broker what has been seen of traces, packed; without a link nobody wants it."""
        self._tell(bus.TRACED, 0, seen)

    def _expire(self) -> None:
        """Answer what has waited too long, and look again when the next one will have.

        One timer for all: questions expire in the order in which they were asked.
        """
        self._overdue = None
        now = self._loop.time()
        late = []
        for request, (deadline, _, _) in self._answers.items():
            if deadline > now:
                self._overdue = self._loop.call_at(deadline, self._expire)
                break
            late.append(request)
        for request in late:
            body = self._answers[request][2]
            self._give_up(request)
            if request not in self._own:
                self._late[request] = body
                self._held_bytes += len(body)

    def _give_up(self, request: int) -> None:
        """Answer what has not been answered, or, if the broker took it, not been counted here."""
        if request in self._own:
            self._answer(request, Status.DONE, 0, 1, self._own[request].position)
        else:
            self._answer(request, Status.UNKNOWN, 0, 0)

    def _on_message(self, link: Link, kind: int, number: int, body: bus.Body) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            raise bus.BusError(f"unknown message type {kind}")
        handler(number, body)

    def _on_closed(self, link: Link) -> None:
        if link is not self._link:
            return
        was_welcome, self._is_welcome = self._is_welcome, False
        self._link = None
        if not self._closing:
            if was_welcome:
                log.warning("broker lost", extra=fields(epoch=f"{self.epoch:016x}"))
                self.start()
            else:  # whoever closes it unread would be asked again without a pause
                self._loop.call_later(RECONNECT_SECONDS, self.start)
        for request in list(self._answers):
            # Of those that are counted here, once nobody looks at their deadlines any more.
            if request not in self._own or self._closing:
                self._give_up(request)
        for body in self._late.values():
            self._held_bytes -= len(body)
        self._late.clear()
        for request in list(self._reports):
            _call(self._reports.pop(request), None)

    def _on_welcome(self, number: int, body: bytes) -> None:
        self.epoch = bus.decode_epoch(body)
        self._is_welcome = True
        if self.welcomed.is_set():
            _call(self.members.on_relinked)
        self.welcomed.set()
        self._departed.clear()
        log.debug("broker connected", extra=fields(epoch=f"{self.epoch:016x}"))

    def _on_subscribed(self, number: int, body: bytes) -> None:
        unconfirmed = self._unconfirmed
        while unconfirmed and unconfirmed[0][0] <= number:
            _call(unconfirmed.popleft()[1])

    def _on_deliver_at(self, number: int, body: bus.Body) -> None:
        offset, body = bus.decode_offset(body)
        self._on_deliver(number, body, offset)

    def _on_deliver(self, number: int, body: bus.Body, offset: int = 0) -> None:
        assert self._link is not None
        # The count belongs on this link: to another one the number may mean another publication.
        counted = partial(_send_count, self._link, number)
        try:
            self._deliver(bus.decode_publication(body, offset), counted)
        except Exception:
            counted(0)  # the broker holds against this worker what it has not counted
            raise

    def _on_deliver_own(self, number: int, body: bytes) -> None:
        question = self._answers.get(number)
        own = self._late.pop(number, None) if question is None else question[2]
        if own is None:
            return
        position = bus.decode_position(body)
        self._own[number] = Own(len(own), position)
        try:
            self._deliver(bus.decode_publication(own, position.offset), partial(self._on_own_counted, number))
        except Exception:
            self._on_own_counted(number, 0)
            raise

    def _on_own_counted(self, request: int, count: int) -> None:
        own = self._own.pop(request, None)
        if own is None:
            return
        if request in self._answers:
            self._answer(request, Status.DONE, count, 0, own.position)
        else:  # answered at its deadline
            self._held_bytes -= own.size

    def _on_inquiry(self, number: int, body: bytes) -> None:
        assert self._link is not None
        self._link.send(bus.encode(bus.FOUND, number, self._inquire(body)))

    def _on_order(self, number: int, body: bytes) -> None:
        assert self._link is not None
        count = 0
        try:
            count = self._obey(body)
        finally:
            _send_count(self._link, number, count)

    def _on_result(self, number: int, body: bytes) -> None:
        self._held_bytes -= len(self._late.pop(number, b""))
        self._answer(number, *bus.decode_result(body))

    def _answer(self, request: int, status: int, sent: int, unconfirmed: int, position: Position = NO_POSITION) -> None:
        answer = self._answers.pop(request, None)
        if answer is not None:
            if request not in self._own:
                self._held_bytes -= len(answer[2])
            try:
                answer[1](status, sent, unconfirmed, position)
            except Exception:  # as in _call, without the call
                log.exception("bus answer failed")

    def _on_measure(self, number: int, body: bytes) -> None:
        if self._link is not None:
            self._link.send(bus.encode(bus.SNAPSHOT, number, self._measure()))

    def _on_admitted(self, number: int, body: bytes) -> None:
        name, _, on_admitted = self._askers.pop(number)
        is_admitted = body == b"\1"
        if is_admitted:
            self._admitted[name] += 1
        _call(on_admitted, is_admitted)

    def _on_answer(self, number: int, body: bytes) -> None:
        _, _, on_answer = self._questions.pop(number)
        _call(on_answer, body)

    def _on_claimed(self, connection: int, name: bytes) -> None:
        self.members.on_claimed(connection, name)

    def _on_replaced(self, connection: int, name: bytes) -> None:
        self.members.on_replaced(connection, name)

    def _on_notice(self, number: int, body: bus.Body) -> None:
        self._pass_on(self.members.on_notice, number, body)

    def _on_changes(self, number: int, body: bus.Body) -> None:
        self._pass_on(self.members.on_changes, number, body)

    def _pass_on(self, take: Callable[[Publication, Callable[[int], None]], None], number: int, body: bus.Body) -> None:
        assert self._link is not None
        counted = partial(_send_count, self._link, number)
        try:
            take(bus.decode_publication(body), counted)
        except Exception:
            counted(0)
            raise

    def _on_report(self, number: int, body: bytes) -> None:
        on_report = self._reports.pop(number, None)
        if on_report is not None:
            on_report(body)


def _send_count(link: Link, number: int, count: int) -> None:
    link.send(bus.encode_count(number, count))


def _call(callback: Callable[..., object], *arguments: object) -> None:
    """Answer one asker; its failure must not cost the others their answers."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("bus answer failed")
