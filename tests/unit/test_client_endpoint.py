"""fastpush.channels.endpoint over real memberships, with a broker that the test plays: what becomes of subscriptions
when answers race with what the server does, when the bus takes no more, and when the link to the broker is another one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import orjson
import pytest

from fastpush.applications import Request
from fastpush.bus.client import BusUnavailable
from fastpush.channels.client import Client, Entered
from fastpush.channels.endpoint import ClientProtocol
from fastpush.channels.service import ChannelService
from fastpush.channels.session import Bounds, Session, State
from fastpush.config import Client as ClientConfig
from fastpush.config import Config, Namespace
from fastpush.metrics import Counters
from fastpush.protocol import bus
from fastpush.protocol.bus import Entry, Join, Kept, Kind
from fastpush.protocol.client import DisconnectCode, ErrorCode, UnsubscribeCode
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import EVERYBODY, channel_key
from tests.unit.test_fanout import publication
from tests.unit.test_membership import Client as FakeConnection
from tests.unit.test_membership import Worker, turns

CONFIG = Config(
    channels={
        "chat": Namespace(
            subscribe="everybody", history_messages=10, recovery=True, presence=True, join_leave="connections"
        ),
        "news": Namespace(subscribe="everybody"),
    },
    client=ClientConfig(anonymous="everywhere"),
)
EPOCH = 0xE


class Connection(FakeConnection):
    """One of a client of channels; `lines` are what it was sent, decoded."""

    def __init__(self, environment: Any, serial: int) -> None:
        super().__init__(environment, serial, "")
        self.data: Any = None
        self.headers: dict[str, str] = {}
        self.expires_at: float | None = None
        self.unregistered: Any = None
        self.due, self.peer, self.has_room = -1, "", True
        self.lines: list[Any] = []
        self.sealed: list[bytes] = []

    def send_lines(self, lines: bytes, positions: Any = None) -> bool:
        self.lines += [orjson.loads(line) for line in lines.split(b"\n")]
        return True

    def plan(self) -> None: ...

    def close(self, code: int, reason: str, by: str = "server") -> None:
        if self.is_open:  # again it does nothing
            super().close(code, reason)

    def seal_channel(self, key: bytes) -> None:
        self.sealed.append(key)

    def taken(self) -> list[Any]:
        """Return what was sent since."""
        lines, self.lines = self.lines, []
        return lines


class Stage:
    """A worker with the endpoint, and connected clients."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.bus = self.worker.bus
        self.noted: list[tuple[int, str, str]] = []
        self.counters = Counters()
        service = ChannelService(cast(Any, self.bus), CONFIG.limits, self.counters, lambda *_: None)
        self.endpoint = ClientProtocol(
            service, cast(Any, self), self.counters, CONFIG, cast(Any, None), cast(Any, None), None
        )

    # What the worker does for the endpoint.

    def enter(self, connection: Any, joins: list[Join], take: Callable[[Entered], None]) -> Awaitable[None]:
        return self.worker.memberships.enter(connection, joins, take)

    def leave(self, connection: Any, key: bytes) -> None:
        self.worker.memberships.leave(connection, key)

    def cancel(self, client: Client) -> None: ...

    def note_refusal(self, connection: Any, code: int, error: Exception, what: str) -> None:
        self.noted.append((code, str(error), what))

    # What the test does.

    async def connect(self, *server_side: str) -> tuple[Client, Connection]:
        """Return a client that is connected, subscribed by the server to some channels."""
        connection = Connection(self.worker.environment, 7)
        client = self.endpoint.open(connection, cast(Request, None), Session(Bounds(100)))
        client.may_be_anonymous = True
        task = self.send(client, connect={})
        await turns()
        self.answer()
        await task
        assert client.session.state is State.CONNECTED
        for channel in server_side:
            self.endpoint.subscribe(client, channel)
            self.answer(offset=3)
        connection.taken()
        return client, connection

    def send(self, client: Client, **command: Any) -> "asyncio.Task[None]":
        """Have a client say something; return what performs it."""

        async def perform() -> None:
            awaited = self.endpoint.on_message(client.connection, orjson.dumps({"id": 9, **command}).decode())
            if awaited is not None:
                await awaited

        return asyncio.get_running_loop().create_task(perform())

    def answer(self, *, offset: int = 0, recovered: bool = False, entries: list[Entry] | None = None) -> list[bytes]:
        """Answer the oldest JOIN; return the keys that it was about."""
        _, body, on_answer = self.bus.questions.pop(0)
        joins = bus.unpack_joins(body)
        on_answer(bus.pack([Kept(offset, EPOCH, recovered, entries or []) for _ in joins]))
        return [join.key for join in joins]

    async def subscribe(self, client: Client, channel: str, **kwargs: Any) -> None:
        task = self.send(client, subscribe={"channel": channel})
        await turns()
        self.answer(**kwargs)
        await task


def on_stage(scenario: Callable[[Stage], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of a coroutine function."""

    async def main() -> None:
        await scenario(Stage())

    def test() -> None:
        asyncio.run(main())

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


def groups(connection: Connection) -> set[bytes]:
    return {group.key for group in connection.groups} - {EVERYBODY}


def unsubscribed(channel: str, code: UnsubscribeCode) -> dict[str, Any]:
    return {"push": {"channel": channel, "unsubscribe": {"code": int(code), "reason": code.reason}}}


def error(code: ErrorCode) -> dict[str, Any]:
    told = {"code": int(code), "message": code.reason}
    return {"id": 9, "error": told | ({"temporary": True} if code.temporary else {})}


# -- another link to a broker ----------------------------------------------------------------


@on_stage
async def test_after_another_link_clients_recover(stage: Stage) -> None:
    """Subscriptions with a position are ended so that the client asks for what it has missed; behind all that has come
    for it; others go on as they are, and nobody is disconnected.
    """
    client, connection = await stage.connect()
    await stage.subscribe(client, "chat:1", offset=3)
    await stage.subscribe(client, "news:1")
    connection.taken()
    stage.worker.hub.deliver(publication(channel_key("chat:1")), lambda _: None)
    stage.endpoint.on_relinked(connection)
    assert connection.taken() == [unsubscribed("chat:1", UnsubscribeCode.INSUFFICIENT_STATE)]
    assert len(connection.frames) == 1 and connection.sealed == [channel_key("chat:1")]
    assert groups(connection) == {channel_key("news:1")} and list(client.session.subscriptions) == ["news:1"]
    assert stage.bus.told == [("depart", channel_key("chat:1"), "")]
    task = stage.send(client, subscribe={"channel": "chat:1", "recover": True, "offset": 3, "epoch": "e"})
    await turns()
    stage.answer(offset=4, recovered=True, entries=[Entry(4, Kind.DATA, text_frame(b"{}"))])
    await task
    (reply,) = connection.taken()
    assert reply["subscribe"]["recovered"] and [pub["offset"] for pub in reply["subscribe"]["publications"]] == [4]
    assert connection.closed == []


@on_stage
async def test_what_the_server_subscribed_it_subscribes_again(stage: Stage) -> None:
    """The client is told that it is out, and then the new position."""
    client, connection = await stage.connect("chat:1", "news:1")
    stage.endpoint.on_relinked(connection)
    stage.answer(offset=5)
    first, second = connection.taken()
    assert first == unsubscribed("chat:1", UnsubscribeCode.INSUFFICIENT_STATE)
    assert second["push"]["channel"] == "chat:1" and second["push"]["subscribe"]["offset"] == 5
    assert groups(connection) == {channel_key("chat:1"), channel_key("news:1")}
    assert set(client.session.subscriptions) == {"chat:1", "news:1"} and connection.closed == []


@on_stage
async def test_a_full_bus_sends_those_away_that_cannot_be_subscribed_again(stage: Stage) -> None:
    """With a code after which clients connect again: they must not go on without what they do not know of."""
    _, connection = await stage.connect("chat:1")
    stage.bus.failure = BusUnavailable("full")
    stage.endpoint.on_relinked(connection)
    assert [code for code, _ in connection.closed] == [DisconnectCode.INSUFFICIENT_STATE]
    assert groups(connection) == set()


@on_stage
async def test_a_subscription_on_its_way_is_not_ended(stage: Stage) -> None:
    """Its question is asked again of the new link, so its answer is whole."""
    client, connection = await stage.connect()
    task = stage.send(client, subscribe={"channel": "chat:1"})
    await turns()
    stage.endpoint.on_relinked(connection)
    assert connection.taken() == []
    stage.answer(offset=3)
    await task
    (reply,) = connection.taken()
    assert reply["subscribe"]["offset"] == 3 and groups(connection) == {channel_key("chat:1")}


@on_stage
async def test_who_has_not_connected_yet_is_left_alone(stage: Stage) -> None:
    """There is nothing that it could miss."""
    connection = Connection(stage.worker.environment, 7)
    stage.endpoint.on_relinked(connection)
    stage.endpoint.open(connection, cast(Request, None), Session(Bounds(100)))
    stage.endpoint.on_relinked(connection)
    assert connection.lines == []


# -- answers that come late, or not ------------------------------------------------------------


def test_a_full_bus_refuses_for_now(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporarily, so that clients ask again; it is no failure of a command, and nothing is held."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario() -> None:
        stage = Stage()
        client, connection = await stage.connect()
        stage.bus.failure = BusUnavailable("full")
        await stage.send(client, subscribe={"channel": "chat:1"})
        assert connection.taken() == [error(ErrorCode.INTERNAL)]
        assert (client.session.subscriptions, groups(connection)) == ({}, set())
        assert stage.counters.handler_errors == 0
        stage.bus.failure = None
        await stage.subscribe(client, "chat:1")
        assert groups(connection) == {channel_key("chat:1")}

    asyncio.run(scenario())
    assert "command failed" not in caplog.text


@on_stage
async def test_who_is_not_let_in_is_noted(stage: Stage) -> None:
    """For operators: a refused subscribe with its channel; not what asks for something else, nor what is taken."""
    client, connection = await stage.connect()
    await stage.subscribe(client, "chat:1")
    await stage.send(client, subscribe={"channel": "unknown:1"})
    await stage.send(client, publish={"channel": "chat:1", "data": {}})
    await stage.send(client, rpc={"method": "sum"})
    assert sum("error" in line for line in connection.taken()) == 3
    assert [(code, what) for code, _, what in stage.noted] == [(ErrorCode.UNKNOWN_CHANNEL, "unknown:1")]


@on_stage
async def test_a_position_that_is_gone_may_be_refused(stage: Stage) -> None:
    """If the client asks for that: it is not in the channel then, here and for the broker; it may subscribe anew."""
    client, connection = await stage.connect()
    command = {"channel": "chat:1", "recover": True, "offset": 3, "epoch": "e", "flag": 2}
    task = stage.send(client, subscribe=command)
    await turns()
    stage.answer(offset=9)
    await task
    assert connection.taken() == [error(ErrorCode.UNRECOVERABLE_POSITION)]
    assert (groups(connection), client.session.subscriptions) == (set(), {})
    assert stage.bus.told == [("depart", channel_key("chat:1"), "")]
    await stage.subscribe(client, "chat:1", offset=9)
    assert groups(connection) == {channel_key("chat:1")}


@on_stage
async def test_what_the_server_ends_on_its_way_stays_ended(stage: Stage) -> None:
    """The subscribe is refused at once; its answer, later, lets nobody in; what the server then subscribes stays."""
    client, connection = await stage.connect()
    task = stage.send(client, subscribe={"channel": "chat:1"})
    await turns()
    assert stage.endpoint.unsubscribe(client, "chat:1")
    assert connection.taken() == [error(ErrorCode.PERMISSION_DENIED)]
    stage.endpoint.subscribe(client, "chat:1")
    stage.answer(offset=3)
    stage.answer(offset=4)
    await task
    (told,) = connection.taken()
    assert told["push"]["subscribe"]["offset"] == 4
    assert groups(connection) == {channel_key("chat:1")} and stage.bus.told == []


@on_stage
async def test_a_refused_position_does_not_end_what_the_server_subscribes_next(stage: Stage) -> None:
    """Though both come within one turn of the loop."""
    client, connection = await stage.connect()
    command = {"channel": "chat:1", "recover": True, "offset": 3, "epoch": "e", "flag": 2}
    task = stage.send(client, subscribe=command)
    await turns()
    stage.answer(offset=9)
    stage.endpoint.subscribe(client, "chat:1")
    await task
    stage.answer(offset=9)
    assert groups(connection) == {channel_key("chat:1")} and list(client.session.subscriptions) == ["chat:1"]


@on_stage
async def test_a_client_that_ends_while_it_subscribes(stage: Stage) -> None:
    """Nothing is sent to it, nobody stays in the channel, and whoever waits goes on."""
    client, connection = await stage.connect()
    task = stage.send(client, subscribe={"channel": "chat:1"})
    await turns()
    connection.close(1006, "")
    stage.endpoint.on_close(connection, 1006, "")
    stage.answer(offset=3)
    await task
    assert (connection.lines, groups(connection), stage.worker.keys) == ([], set(), [])
    assert stage.bus.told == [("depart", channel_key("chat:1"), "")]
