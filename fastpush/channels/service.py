"""What can be done with channels, over all workers: clients' sessions and the server API both call this.

Each question goes to the broker, which has one order for all that happens in a channel.
"""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from time import monotonic
from typing import Any, NamedTuple

import orjson

from fastpush.bus.client import BusClient, BusUnavailable
from fastpush.config import Limits
from fastpush.errors import RequestError, too_large, unavailable, unknown_outcome
from fastpush.http.push import Remember
from fastpush.metrics import Counters
from fastpush.protocol import bus
from fastpush.protocol.bus import Kept, Kind, Position, Status
from fastpush.protocol.client import one_line
from fastpush.protocol.frames import text_header
from fastpush.protocol.push import channel_key
from fastpush.state.send_queue import ENTRY_BYTES

_WORDED = 256  # bytes that a channel's subscribers are told beside its name, the data and the rest


class Published(NamedTuple):
    """What became of a publication.

    sent: connections reached.  unconfirmed: workers whose count is missing from it.
    offset, epoch: its place in what its channel keeps; 0 and "" where that keeps nothing.
    """

    sent: int
    unconfirmed: int
    offset: int
    epoch: str


OnPublished = Callable[[Published | RequestError], None]


def epoch_text(epoch: int) -> str:
    """Return an epoch as clients and back-ends see it; "" for none."""
    return f"{epoch:x}" if epoch else ""


def parse_epoch(text: str) -> int:
    """Return the epoch that `epoch_text` was given; for another text one that no channel has."""
    try:
        epoch = int(text, 16) if len(text) <= 16 and text.isalnum() else -1  # noqa: PLR2004 - digits of 64 bits
    except ValueError:
        epoch = -1
    return epoch if epoch >= 0 else 1


def parse_position(offset: int, epoch: str) -> Position:
    """Return the place that a client or a back-end names. epoch: as from `epoch_text`; "" is of any."""
    return Position(offset, parse_epoch(epoch) if epoch else 0)


class ChannelService:
    """Publishes, asks, and orders.

    limits: replaced on reload.  remember: told of each publication that was taken, with what became of it.
    """

    def __init__(self, client: BusClient, limits: Limits, counters: Counters, remember: Remember) -> None:
        self.limits = limits
        self._bus = client
        self._counters = counters
        self._remember = remember

    def publish(
        self,
        channel: str,
        data: bytes,
        on_published: OnPublished,
        *,
        extras: bytes = b"",
        spared: int = 0,
        once: str = "",
    ) -> None:
        """Publish JSON to a channel, one whose name has been checked; `on_published` is called once, later.

        extras: further members of the publication, as protocol.client.extras makes them.
        spared: number of a connection that does not get it.  once: idempotency key, "" for none.

        Raises: RequestError 413, 503: nobody received it.
        """
        text, key = one_line(data), channel_key(channel)
        size = len(text) + len(extras) + 2 * len(key) + _WORDED + ENTRY_BYTES
        if size > self.limits.send_queue_bytes:
            self.count_refused()
            most = self.limits.send_queue_bytes
            raise too_large(f"data is larger than a send queue ([limits] send_queue_bytes = {most})")
        header = text_header(len(text))
        keys, taken = [key], monotonic()
        body = bus.encode_publication(keys, extras, header, text, taken_seconds=taken, spared=spared, kind=Kind.DATA)
        name = b"%b\0%b" % (key, once.encode("utf-8", "surrogatepass")) if once else b""

        def on_result(*result: Any) -> None:
            published = _published(*result)
            self._count(published)
            if isinstance(published, Published):
                self._remember("publish", keys, "", text, taken, published.sent, published.unconfirmed)
            on_published(published)

        try:
            self._bus.publish(body, on_result, name)
        except BusUnavailable as error:
            self._counters.publications_unavailable += 1
            raise unavailable(f"{error}; nobody received it") from None

    def count_refused(self) -> None:
        """Count a publication that is not taken."""
        self._counters.publications_refused += 1

    def _count(self, published: Published | RequestError) -> None:
        counters = self._counters
        if isinstance(published, RequestError):
            if published.status == HTTPStatus.SERVICE_UNAVAILABLE:
                counters.publications_unavailable += 1
            else:
                counters.publications_unknown += 1
        elif published.unconfirmed:
            counters.publications_unconfirmed += 1
        else:
            counters.publications_delivered += 1

    async def published(self, channel: str, data: bytes, *, extras: bytes = b"", spared: int = 0) -> Published:
        """Publish, and wait for the outcome; see `publish`. Raises: RequestError."""
        outcome: asyncio.Future[Published | RequestError] = asyncio.get_running_loop().create_future()

        def on_published(result: Published | RequestError) -> None:
            if not outcome.done():
                outcome.set_result(result)

        self.publish(channel, data, on_published, extras=extras, spared=spared)
        result = await outcome
        if isinstance(result, RequestError):
            raise result
        return result

    async def history(
        self, channel: str, messages: int, since: Position | None = None, *, reverse: bool = False
    ) -> Kept:
        """Return part of what a channel keeps; `recovered` is False when `since` is of another epoch.

        messages: most of them, 0: only where the channel stands, less: all.  Raises: RequestError 503.
        """
        most = bus.HISTORY_MESSAGES_MAX if messages < 0 else min(messages, bus.HISTORY_MESSAGES_MAX)
        question = bus.History(channel_key(channel), most, since, reverse)
        return bus.unpack_kept(await self._ask(bus.HISTORY, bus.pack(question)))

    async def clear_history(self, channel: str) -> None:
        """Keep nothing of what was published to a channel. Raises: RequestError 503."""
        await self._ask(bus.FORGET, channel_key(channel))

    async def presence(self, channel: str) -> dict[str, bytes]:
        """Return what is told of each connection in a channel, JSON by connection id. Raises: RequestError 503."""
        infos = bus.unpack_infos(await self._ask(bus.PRESENCE, channel_key(channel)))
        return {str(orjson.loads(info)["client"]): info for info in infos}

    async def presence_stats(self, channel: str) -> tuple[int, int]:
        """Return how many connections are in a channel, and how many users. Raises: RequestError 503."""
        question = bus.Online([channel_key(channel)])
        ((users, connections),) = bus.unpack_online_answer(await self._ask(bus.ONLINE, bus.pack(question))).counts
        return connections, users

    async def order(self, name: str, *arguments: Any) -> Published:
        """Have every worker do something with its connections; `sent`: with how many. Raises: RequestError."""
        outcome: asyncio.Future[Published | RequestError] = asyncio.get_running_loop().create_future()
        body = orjson.dumps([name, *arguments])
        try:
            self._bus.order(body, lambda *result: None if outcome.done() else outcome.set_result(_published(*result)))
        except BusUnavailable as error:
            raise unavailable(f"{error}; nothing was done") from None
        result = await outcome
        if isinstance(result, RequestError):
            raise result
        return result

    def find(self, connection_id: str, on_found: Callable[[int | RequestError], None]) -> None:
        """Find the number of a connection, whichever worker has it; `on_found` is called once, later. 0: none has.

        Raises: RequestError 503.
        """

        def on_answer(answer: bytes) -> None:
            gathered = bus.unpack_gathered(answer)
            number = max((orjson.loads(found) for found in gathered.found), default=0)
            if number or not gathered.missing:
                on_found(number)
            else:
                on_found(unavailable("a worker did not say in time whether it has the connection; nobody received it"))

        try:
            self._bus.ask(bus.GATHER, orjson.dumps(["number", connection_id]), on_answer)
        except BusUnavailable as error:
            raise unavailable(f"{error}; nobody received it") from None

    async def gather(self, name: str, *arguments: Any) -> tuple[list[Any], int]:
        """Return what each worker answers to a question, and how many did not in time. Raises: RequestError 503."""
        gathered = bus.unpack_gathered(await self._ask(bus.GATHER, orjson.dumps([name, *arguments])))
        return [orjson.loads(found) for found in gathered.found], gathered.missing

    def _ask(self, kind: int, body: bytes) -> Awaitable[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self._bus.ask(kind, body, lambda data: None if answer.done() else answer.set_result(data))
        except BusUnavailable as error:
            raise unavailable(str(error)) from None
        return answer


def _published(status: int, sent: int, unconfirmed: int, position: Position) -> Published | RequestError:
    if status == Status.DONE:
        return Published(sent, unconfirmed, position.offset, epoch_text(position.epoch))
    if status == Status.NOT_READY:
        return unavailable("the broker, or a worker with such clients, is being replaced; nobody received it")
    if status == Status.OVERLOADED:
        return unavailable("a worker is overloaded; nobody received it")
    return unknown_outcome()
