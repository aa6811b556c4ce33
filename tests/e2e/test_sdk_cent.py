"""PyPI's cent, as its authors publish it, synchronous and asynchronous: every method that both have."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import cent
import pytest

from tests.sdk import KEY, PythonClient, Way, sections, token
from tests.server import Server, eventually

NAMESPACES = {
    "channels.room": {"subscribe": "users", "history_messages": 100, "recovery": True, "presence": True},
    "channels.plain": {"subscribe": "users"},
}
_numbers = count(1)


def name(namespace: str = "room") -> str:
    """Return a channel that no other test uses."""
    return f"{namespace}:{next(_numbers)}"


def somebody() -> str:
    """Return a user that no other test uses."""
    return f"user-{next(_numbers)}"


class Sync:
    """cent.Client. key: a key of [push]."""

    def __init__(self, way: Way, key: str = KEY) -> None:
        self._client = cent.Client(f"http://127.0.0.1:{way.port}/api", key)

    def call(self, request: Any) -> Any:
        return getattr(self._client, request.api_method)(request)

    def close(self) -> None:
        self._client.close()


class Async:
    """cent.AsyncClient, in a loop of its own."""

    def __init__(self, way: Way, key: str = KEY) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._open(f"http://127.0.0.1:{way.port}/api", key))

    @staticmethod
    async def _open(url: str, key: str) -> cent.AsyncClient:
        return cent.AsyncClient(url, key)

    def call(self, request: Any) -> Any:
        return self._runner.run(getattr(self._client, request.api_method)(request))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


Call = Callable[[Any], Any]
Join = Callable[..., PythonClient]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("cent"), workers=2, sections=sections(**NAMESPACES))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def there(server: Server) -> Iterator[Way]:
    """The way to the worker that back-ends ask; clients are with the other one."""
    with Way(server, 1) as way:
        yield way


@pytest.fixture(params=[Sync, Async])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def call(kind: Any, there: Way) -> Iterator[Call]:
    """Make a request, return its result."""
    client = kind(there)
    yield client.call
    client.close()


@pytest.fixture
def join(server: Server) -> Iterator[Join]:
    """Connect clients that subscribe."""
    with ExitStack() as closing:

        def open_client(user: str, *channels: str) -> PythonClient:
            way = closing.enter_context(Way(server, 0))
            client = closing.enter_context(PythonClient(way, token=token(user)))
            client.connect()
            for channel in channels:
                client.subscribe(channel)
            return client

        yield open_client


def test_publish(call: Call, join: Join) -> None:
    """publish: the result has offset and epoch, the subscriber data and tags; with the same key nothing comes twice."""
    channel, plain = name(), name("plain")
    client = join(somebody(), channel, plain)
    request = cent.PublishRequest(channel=channel, data={"a": [1]}, tags={"b": "c"}, idempotency_key="k")
    first = call(request)
    assert isinstance(first, cent.PublishResult) and first.offset == 1 and first.epoch
    assert call(request) == first
    assert first.sent == 1
    assert call(cent.PublishRequest(channel=plain, data="last")).offset == 0
    assert client.wait("publication", channel=channel)["tags"] == {"b": "c"}
    client.wait("publication", channel=plain)
    assert client.got(channel) == [{"a": [1]}] and client.got(plain) == ["last"]


def test_broadcast(call: Call, join: Join) -> None:
    """broadcast: a response for each channel, with the result or the error of that one."""
    one, two = name(), name()
    client = join(somebody(), one, two)
    responses = call(cent.BroadcastRequest(channels=[one, "nowhere:1", two], data=1)).responses
    assert [each.result and each.result.offset for each in responses] == [1, None, 1]
    assert responses[1].error.code == 102
    for channel in (one, two):
        client.wait("publication", channel=channel, data=1)


def test_presence(call: Call, join: Join) -> None:
    """presence and presence_stats: who is in a channel, and how many."""
    channel, user = name(), somebody()
    join(user, channel)
    join(user, channel)
    found = call(cent.PresenceRequest(channel=channel)).presence
    assert len(found) == 2 and {each.client for each in found.values()} == set(found)
    assert all(isinstance(each, cent.ClientInfo) and each.user == user for each in found.values())
    stats = call(cent.PresenceStatsRequest(channel=channel))
    assert (stats.num_clients, stats.num_users) == (2, 1)


def test_history(call: Call) -> None:
    """history and history_remove: by limit, from a position, backwards; nothing once it is removed."""
    channel = name()
    for number in range(1, 5):
        call(cent.PublishRequest(channel=channel, data=number, tags={"n": str(number)}))
    place = call(cent.HistoryRequest(channel=channel))
    assert (place.offset, place.publications) == (4, [])
    found = call(cent.HistoryRequest(channel=channel, limit=2, reverse=True)).publications
    assert [(each.offset, each.data, each.tags) for each in found] == [(4, 4, {"n": "4"}), (3, 3, {"n": "3"})]
    since = cent.StreamPosition(offset=2, epoch=place.epoch)
    assert [each.data for each in call(cent.HistoryRequest(channel=channel, limit=10, since=since)).publications] == [
        3,
        4,
    ]
    with pytest.raises(cent.CentApiResponseError) as caught:
        call(cent.HistoryRequest(channel=channel, limit=1, since=cent.StreamPosition(offset=1, epoch="other")))
    assert caught.value.code == 112
    assert isinstance(call(cent.HistoryRemoveRequest(channel=channel)), cent.HistoryRemoveResult)
    assert call(cent.HistoryRequest(channel=channel, limit=10)).publications == []


def test_subscribe(call: Call, join: Join) -> None:
    """subscribe and unsubscribe: the client is told and gets what is published, until it does not."""
    channel, user = name(), somebody()
    client = join(user)
    assert call(cent.SubscribeRequest(user=user, channel=channel)).connections == 1
    client.wait("subscribed", channel=channel, server=True)
    call(cent.PublishRequest(channel=channel, data="to it"))
    client.wait("publication", channel=channel, data="to it")
    assert call(cent.UnsubscribeRequest(user=user, channel=channel)).connections == 1
    client.wait("unsubscribed", channel=channel)
    assert call(cent.PublishRequest(channel=channel, data="to nobody")).sent == 0


def test_disconnect(call: Call, join: Join) -> None:
    """disconnect: with the code and reason of the back-end, or the usual ones."""
    user = somebody()
    client = join(user)
    reason = cent.Disconnect(code=4600, reason="as you like")
    assert call(cent.DisconnectRequest(user=user, disconnect=reason)).connections == 1
    client.wait("disconnected", code=4600, reason="as you like")
    again = join(user)
    call(cent.DisconnectRequest(user=user))
    again.wait("disconnected", code=3503)


def test_refresh(call: Call, join: Join) -> None:
    """refresh: a connection that is said to have expired is closed, and comes back."""
    user = somebody()
    client = join(user)
    assert call(cent.RefreshRequest(user=user, expire_at=int(time.time()) + 1000)).connections == 1
    assert call(cent.RefreshRequest(user=user, expired=True)).connections == 1
    client.wait("connecting", code=3005)


def test_channels(call: Call, join: Join) -> None:
    """channels: those that somebody is in, all or by pattern, with their connections."""
    channel = name()
    join(somebody(), channel)
    join(somebody(), channel)

    def listed(**pattern: str) -> Any:
        return call(cent.ChannelsRequest(**pattern)).channels  # of workers that are not busy

    eventually(lambda: channel in (found := listed()) and found[channel].num_clients == 2, what="both connections")
    eventually(lambda: set(listed(pattern=channel)) == {channel}, what="the one of the pattern")


def test_info(call: Call, join: Join) -> None:
    """info: every worker is a node."""
    join(somebody(), name())
    nodes: list[Any] = []

    def has_all() -> bool:
        nodes[:] = call(cent.InfoRequest()).nodes  # of workers that are not busy
        return len({node.uid for node in nodes}) == 2

    eventually(has_all, what="both workers")
    assert all(node.name and node.version for node in nodes)
    eventually(lambda: sum(node.num_clients for node in call(cent.InfoRequest()).nodes) == 1, what="one client left")


def test_connections(call: Call, join: Join) -> None:
    """connections: those of a user, by id, with their channels; an expression is refused."""
    channel, user = name(), somebody()
    join(user, channel)
    request = cent.ConnectionsRequest(user=user, expression="")
    told = eventually(lambda: call(request).connections, what="the connection, of a worker that is not busy")
    ((_, found),) = told.items()
    assert (found.user, found.transport, found.protocol) == (user, "websocket", "json")
    assert set(found.state.channels) == {channel}
    with pytest.raises(cent.CentApiResponseError, match="expression is not available"):
        call(cent.ConnectionsRequest(user=user, expression="client.id"))


@pytest.mark.parametrize("is_parallel", [False, True])
def test_batch(call: Call, *, is_parallel: bool) -> None:
    """batch: the results of several requests, one after the other or at once."""
    channels = [name(), name()]
    requests: list[Any] = [cent.PublishRequest(channel=channel, data=1) for channel in channels]
    requests.append(cent.PresenceStatsRequest(channel=channels[0]))
    requests.append(cent.ChannelsRequest(pattern="nothing"))
    replies = call(cent.BatchRequest(requests=requests, parallel=is_parallel)).replies
    assert [reply.offset for reply in replies[:2]] == [1, 1]
    assert replies[2].num_clients == 0 and replies[3].channels == {}


def test_errors(call: Call, kind: Any, there: Way) -> None:
    """An error has its code and text; another key is an error of its own."""
    with pytest.raises(cent.CentApiResponseError) as caught:
        call(cent.PublishRequest(channel="nowhere:1", data=1))
    assert caught.value.code == 102 and caught.value.message.startswith("unknown channel")
    stranger = kind(there, "another-key")
    with pytest.raises(cent.CentUnauthorizedError):
        stranger.call(cent.InfoRequest())
    stranger.close()
