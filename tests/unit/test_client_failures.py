"""fastpush.channels.endpoint when something goes wrong that is not the client's fault: it is told what brings it back,
and nothing is left half done.
"""

import asyncio
from time import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fastpush.applications import Request
from fastpush.channels.session import Bounds, Session
from fastpush.config import Limits
from fastpush.http.auth import Identity
from fastpush.protocol import bus
from fastpush.protocol.bus import Kept
from fastpush.protocol.client import DisconnectCode, ErrorCode
from fastpush.worker.admission import Admission
from tests.unit.test_client_endpoint import Connection, Stage, error, groups, on_stage
from tests.unit.test_membership import turns


@on_stage
async def test_who_waits_for_the_broker_too_long_is_told_to_come_back(stage: Stage) -> None:
    """A client that says nothing is stale, which keeps SDKs away; one whose connect is under way has done its part."""
    connection: Any = Connection(stage.worker.environment, 7)
    client = stage.endpoint.open(connection, cast(Request, None), Session(Bounds(100)))
    client.may_be_anonymous = True
    assert stage.endpoint.close_reason(connection)[0] == DisconnectCode.STALE
    task = stage.send(client, connect={})
    await turns()
    assert stage.endpoint.close_reason(connection)[0] == DisconnectCode.SERVER_ERROR
    stage.answer()
    await task


@pytest.mark.parametrize("expires_at", [1e12, 1e30, 1e308])
def test_a_token_may_end_in_the_far_future(expires_at: float) -> None:
    """Written in milliseconds by mistake, say: the client is told seconds that its SDK can read."""

    async def scenario() -> None:
        stage = Stage()
        stage.endpoint.token_auth = cast(Any, SimpleNamespace(authenticate=lambda *_: Identity("jack", expires_at)))
        stage.endpoint._user_counts = cast(Any, Admission(Limits(), cast(Any, None), {}))
        connection: Any = Connection(stage.worker.environment, 7)
        client = stage.endpoint.open(connection, cast(Request, None), Session(Bounds(100)))
        task = stage.send(client, connect={"token": "any"})
        await turns()
        stage.answer()
        await task
        (reply,) = connection.taken()
        assert reply["connect"]["expires"] and reply["connect"]["ttl"] == 2**31 - 1

    asyncio.run(scenario())


@on_stage
async def test_data_that_the_handler_cannot_be_given(stage: Stage) -> None:
    """JSON that Python has no value for is the client's fault: error 107, and no failure of the handler."""
    client, connection = await stage.connect()
    stage.endpoint.handler = cast(Any, SimpleNamespace())
    awaited = stage.endpoint.on_message(connection, '{"id":9,"rpc":{"method":"sum","data":1e999}}')
    assert awaited is not None
    await awaited
    (reply,) = connection.taken()
    assert reply["error"]["code"] == ErrorCode.BAD_REQUEST
    assert stage.counters.handler_errors == 0
    assert client.session.disconnect is None


@on_stage
async def test_a_subscribe_whose_answer_cannot_be_made_is_refused(stage: Stage) -> None:
    """The client hears of it, once, is in nothing, and may try again."""
    client, connection = await stage.connect()
    make, stage.endpoint._result = stage.endpoint._result, cast(Any, None)  # type: ignore[method-assign]
    task = stage.send(client, subscribe={"channel": "chat:1"})
    await turns()
    stage.answer()
    await task
    assert connection.taken() == [error(ErrorCode.INTERNAL)]
    assert (groups(connection), client.session.subscriptions, connection.closed) == (set(), {}, [])
    stage.endpoint._result = make  # type: ignore[method-assign]
    await stage.subscribe(client, "chat:1")
    assert list(client.session.subscriptions) == ["chat:1"]


@on_stage
async def test_a_broker_that_goes_by_older_settings_gives_no_place(stage: Stage) -> None:
    """In the middle of a reload that brings recovery: a client must not believe that it could come back to a position
    that has no epoch, as it would be one in any.
    """
    client, connection = await stage.connect()
    task = stage.send(client, subscribe={"channel": "chat:1"})
    await turns()
    _, _, on_answer = stage.bus.questions.pop()
    on_answer(bus.pack([Kept(0, 0, recovered=False, entries=[])]))
    await task
    assert connection.taken() == [{"id": 9, "subscribe": {}}]


@on_stage
async def test_a_frame_full_of_commands_lets_others_have_their_turn(stage: Stage) -> None:
    """However many commands a frame has that nobody has to be waited for."""
    _, connection = await stage.connect()
    frame = "\n".join(f'{{"id":{number},"rpc":{{}}}}' for number in range(1, 3001))
    awaited: Any = stage.endpoint.on_message(connection, frame)
    task = asyncio.ensure_future(awaited)
    await asyncio.sleep(0)
    assert 0 < len(connection.lines) < 300
    await task
    assert [line["id"] for line in connection.taken()] == list(range(1, 3001))


@on_stage
async def test_who_is_on_the_way_out_need_not_recover(stage: Stage) -> None:
    """Another link to a broker is nothing to a connection that waits for its close frame only."""
    _, connection = await stage.connect("chat:1")
    connection.close(1000, "")
    stage.endpoint.on_relinked(connection)
    assert (connection.taken(), stage.bus.questions) == ([], [])


def test_a_client_may_refresh_what_a_back_end_has_made_endless() -> None:
    """Its SDK goes by the time that it was told first, and does not hear of the other one: no fault of its own."""

    async def scenario() -> None:
        stage = Stage()
        stage.endpoint.token_auth = cast(Any, SimpleNamespace(authenticate=lambda *_: Identity("jack", time() + 60)))
        stage.endpoint._user_counts = cast(Any, Admission(Limits(), cast(Any, None), {}))
        connection: Any = Connection(stage.worker.environment, 7)
        client = stage.endpoint.open(connection, cast(Request, None), Session(Bounds(100)))
        task = stage.send(client, connect={"token": "any"})
        await turns()
        stage.answer()
        await task
        stage.endpoint.refresh(client, None)
        connection.taken()
        await stage.send(client, refresh={"token": "any"})
        (reply,) = connection.taken()
        assert reply["refresh"]["expires"] and 0 < reply["refresh"]["ttl"] <= 60
        assert connection.closed == []

    asyncio.run(scenario())


@on_stage
async def test_a_subscription_that_ends_before_its_refresh_is_performed(stage: Stage) -> None:
    """As one that has ended before: denied, and no failure of the server's."""
    client, connection = await stage.connect("chat:1")
    task = stage.send(client, sub_refresh={"channel": "chat:1", "token": "any"})
    begin = stage.endpoint._outcome

    async def outcome(*arguments: Any) -> None:  # between the command and the turn in which it is performed
        stage.endpoint.unsubscribe(client, "chat:1")
        await begin(*arguments)

    stage.endpoint._outcome = cast(Any, outcome)  # type: ignore[method-assign]
    await task
    assert connection.taken()[-1] == error(ErrorCode.PERMISSION_DENIED)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_who_ends_before_it_is_counted_is_not_counted(*, is_cancelled: bool) -> None:
    """However late the broker's yes comes, and whether or not anybody still waits for it: else a user would have a
    connection less for good.
    """

    async def scenario() -> None:
        asked: list[Any] = []
        released: list[bytes] = []
        counts: Any = SimpleNamespace(admit=lambda *question: asked.append(question[-1]), release=released.append)
        connection: Any = SimpleNamespace(is_open=True, admitted=())
        task = asyncio.create_task(Admission(Limits(connections_per_user=1), counts, {}).register(connection, "jack"))
        await turns()
        connection.is_open = False
        if is_cancelled:
            task.cancel()
            await turns()
        asked[0](True)
        await turns()
        assert (released, connection.admitted, task.cancelled()) == ([b"ujack"], (), is_cancelled)

    asyncio.run(scenario())
