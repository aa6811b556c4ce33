"""Clients of the Centrifugal protocol, as their authors publish them, on two workers.

npm's centrifuge in Node and in a headless Chromium, and PyPI's centrifuge-python.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.applications import workers
from tests.programs import FASTPUSH, Browser, run
from tests.sdk import Client, NodeClient, PageClient, PythonClient, Refused, Way, pages, sections, token
from tests.server import SCALE, Server, eventually

Open = Callable[..., Client]
CHANNELS_MAX = 12
EXPIRED_CLOSE_SECONDS = 2
KEPT = 3
KINDS = ["node", "browser", "python"]
PING_SECONDS = 2 * SCALE
LATE_SECONDS = 5 * SCALE  # of a ping, and of its answer
SHORT_SECONDS = 2 * SCALE  # a token's life: it is used at once
ROOM = {
    "subscribe": "users",
    "publish": "subscribers",
    "history_messages": 1000,
    "recovery": True,
    "presence": True,
    "join_leave": "connections",
}
NAMESPACES = {
    "channels.room": ROOM,
    "channels.short": {"subscribe": "users", "history_messages": KEPT, "recovery": True},
    "channels.plain": {"subscribe": "users"},
    "channels.open": {"subscribe": "everybody", "publish": "everybody"},
    "channels.secret": {},
    "channels.news": {"subscribe": "nobody", "history_messages": 1000, "recovery": True},
    "channels.own": {"subscribe": "nobody", "history_messages": 1000, "recovery": True},
}
CLIENT = {
    "handler": "tests.sdk_handler:Handler",
    "personal_namespace": "own",
    "expired_close_seconds": EXPIRED_CLOSE_SECONDS,
    "anonymous": "everywhere",
}
_numbers = count(1)


def name(namespace: str) -> str:
    """Return a channel that no other test uses."""
    return f"{namespace}:{next(_numbers)}"


def somebody() -> str:
    """Return a user that no other test uses."""
    return f"user-{next(_numbers)}"


def is_published(way: Way, channel: str, data: Any) -> bool:
    """Publish; False: it cannot be taken at the moment."""
    try:
        way.publish(channel, data)
    except Refused as refused:
        assert refused.code == "unavailable"
        return False
    return True


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where the pages come from."""
    with pages() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[Server]:
    """A server with two workers and the namespaces above, for all tests."""
    settings = sections(
        server={"origins": [origin]}, client=CLIENT, limits={"channels_per_connection": CHANNELS_MAX}, **NAMESPACES
    )
    root = Path(__file__).parents[2]
    running = Server(tmp_path_factory.mktemp("sdk"), workers=2, sections=settings, environ={"PYTHONPATH": root})
    yield running
    running.stop()


@pytest.fixture
def mortal(server: Server) -> Iterator[Server]:
    """The server, for a test that kills parts of it: all of it is back afterwards."""
    yield server
    eventually(lambda: len(workers(server)) == 2, what="two workers")
    for worker in (0, 1):
        with Way(server, worker) as way:
            eventually(partial(is_published, way, "open:1", "back"), what="a publication is taken")


@pytest.fixture
def there(server: Server) -> Iterator[Way]:
    """The way of back-ends, to worker 1: the clients are on worker 0, unless a test says otherwise."""
    with Way(server, 1) as way:
        yield way


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def opener(kind: str, server: Server, request: pytest.FixtureRequest, closing: ExitStack) -> Open:
    """Return what makes clients of a kind; with a token of `user`, unless `options` have one."""

    def open_client(user: str = "", *, worker: int = 0, **options: Any) -> Client:
        way = closing.enter_context(Way(server, worker))
        if user:
            options = {"token": token(user), **options}
        if kind == "node":
            client: Client = NodeClient(way, **options)
        elif kind == "python":
            client = PythonClient(way, **options)
        else:
            browser, origin = request.getfixturevalue("browser"), request.getfixturevalue("origin")
            client = PageClient(browser, origin, way, **options)
        return closing.enter_context(client)

    return open_client


@pytest.fixture(params=KINDS)
def open_client(server: Server, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Make clients, each with a way of its own; they end with the test."""
    with ExitStack() as closing:
        yield opener(request.param, server, request, closing)


@pytest.fixture(params=KINDS[:2])
def open_javascript(server: Server, request: pytest.FixtureRequest) -> Iterator[Open]:
    """The same, of clients that do what the one for Python does not."""
    with ExitStack() as closing:
        yield opener(request.param, server, request, closing)


# -- Publications -------------------------------------------------------------------


def test_publication_of_the_other_worker(open_client: Open, there: Way) -> None:
    """What a back-end publishes at one worker reaches a subscriber on the other, with data and tags as they were."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    data = [{"text": "grüß \U0001f600", "n": [1, 2.5, True]}, "text", 42, [], "x" * 100_000]
    there.publish(channel, *data)
    for offset, each in enumerate(data, 1):
        assert client.wait("publication", channel=channel, data=each)["offset"] == offset
    there.api("publish", channel=channel, data={}, tags={"colour": "red"})
    assert client.wait("publication", channel=channel, data={})["tags"] == {"colour": "red"}
    assert client.got(channel) == [*data, {}]


def test_client_publishes(open_client: Open) -> None:
    """What a client publishes reaches the subscribers on both workers, itself too, and tells who it comes from."""
    channel, ann = name("room"), somebody()
    publisher = open_client(token=token(ann, info={"colour": "red"}))
    subscriber = open_client("bob", worker=1)
    client = publisher.connect()["client"]
    subscriber.connect()
    for each in (publisher, subscriber):
        each.subscribe(channel)
    publisher.do("publish", channel, {"text": "hello"})
    for each in (publisher, subscriber):
        publication = each.wait("publication", channel=channel)
        assert publication["data"] == {"text": "hello"}
        assert publication["info"] == {"client": client, "user": ann, "connInfo": {"colour": "red"}}


def test_unsubscribe(open_client: Open, there: Way) -> None:
    """Who has unsubscribed gets no more of a channel, is no longer in it, and may come back."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    there.publish(channel, 1)
    client.wait("publication", data=1)
    client.do("unsubscribe", channel)
    assert client.wait("unsubscribed", channel=channel)["code"] == 0
    eventually(lambda: there.api("presence_stats", channel=channel)["num_clients"] == 0, what="the client has left")
    there.publish(channel, 2)
    client.subscribe(channel)
    there.publish(channel, 3)
    client.wait("publication", data=3)
    assert client.got(channel) == [1, 3]


# -- Recovery -----------------------------------------------------------------------


@pytest.mark.parametrize("worker", [0, 1])
@pytest.mark.parametrize("missed", [0, 1, 100])
def test_recovery(open_client: Open, there: Way, missed: int, worker: int) -> None:
    """A client whose connection was cut gets exactly what it missed, on the same worker and on the other one."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    assert client.subscribe(channel)["recoverable"]
    there.publish(channel, *range(3))
    client.wait("publication", data=2)
    client.way.cut()
    client.wait("subscribing", channel=channel, code=1)
    there.publish(channel, *range(3, 3 + missed))
    client.way.mend(worker)
    again = client.wait("subscribed", channel=channel)
    assert again["wasRecovering"] and again["recovered"]
    there.publish(channel, "last")
    client.wait("publication", data="last")
    assert client.got(channel) == [*range(3 + missed), "last"]


def test_recovery_while_publications_go_on(open_client: Open, there: Way) -> None:
    """However often the connection is cut among publications, each comes once and in order."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    for number in range(60):
        if number % 10 == 5:
            client.way.cut()
            client.way.mend(number // 10 % 2)
        there.publish(channel, number)
    client.wait("publication", data=59)
    assert client.got(channel) == list(range(60))
    assert client.count("connected") > 1


def test_recovery_of_more_than_is_kept(open_client: Open, there: Way) -> None:
    """A client that has missed more than the channel keeps is told so, and has what follows."""
    channel, client = name("short"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    there.publish(channel, "before")
    client.wait("publication", data="before")
    client.way.cut()
    client.wait("subscribing", channel=channel, code=1)
    there.publish(channel, *range(KEPT + 1))
    client.way.mend()
    again = client.wait("subscribed", channel=channel)
    assert again["wasRecovering"] and not again["recovered"]
    there.publish(channel, "after")
    client.wait("publication", data="after")


def test_recovery_of_subscriptions_by_the_server(open_client: Open, there: Way) -> None:
    """Subscriptions that the token names are recovered as the client's own are."""
    channel, user = name("news"), somebody()
    client = open_client(token=token(user, channels=[channel]))
    client.connect()
    client.wait("subscribed", server=True, channel=channel)
    there.publish(channel, 1)
    client.wait("publication", server=True, channel=channel, data=1)
    client.way.cut()
    client.wait("connecting", code=1)
    there.publish(channel, 2, 3)
    client.way.mend(1)
    again = client.wait("subscribed", server=True, channel=channel)
    assert again["wasRecovering"] and again["recovered"]
    there.publish(channel, 4)
    client.wait("publication", channel=channel, data=4)
    assert client.got(channel) == [1, 2, 3, 4]


def test_recovery_after_a_worker_is_killed(open_client: Open, mortal: Server, there: Way) -> None:
    """The clients of a killed worker come back to the other one and have all that was published, before and after.

    What is refused in that moment, because the worker is being replaced, nobody gets until it is published again.
    """
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    there.publish(channel, *range(10))
    client.wait("publication", data=0)
    client.way.mend(1)
    os.kill(mortal.pid_of_worker(workers(mortal)[0]), signal.SIGKILL)
    for number in range(10, 20):
        eventually(partial(is_published, there, channel, number), what="the publication is taken")
    assert client.wait("subscribed", channel=channel)["recovered"]
    client.wait("publication", data=19)
    assert client.got(channel) == list(range(20))


def test_recovery_while_workers_are_replaced(open_client: Open, mortal: Server) -> None:
    """A worker that is replaced sends its clients away with code 3001; they come back and recover."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    client.do("publish", channel, "before")
    result = run(*FASTPUSH, "restart", "--rolling", "--config", str(mortal.config_path))
    assert result.returncode == 0, result.stderr
    client.wait("connecting", code=3001)
    assert client.wait("subscribed", channel=channel)["recovered"]
    with Way(mortal, 0) as way:
        way.publish(channel, "after")
    client.wait("publication", channel=channel, data="after")
    assert client.got(channel) == ["before", "after"]


def test_the_broker_is_killed(open_client: Open, mortal: Server) -> None:
    """Clients stay connected, are told that what they missed is not recovered, code 2500, and have what follows."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    client.do("publish", channel, "before")
    client.wait("publication", channel=channel, data="before")
    os.kill(mortal.processes("broker")[0]["pid"], signal.SIGKILL)
    client.wait("subscribing", channel=channel, code=2500)
    again = client.wait("subscribed", channel=channel)
    assert again["wasRecovering"] and not again["recovered"]
    client.do("publish", channel, "after")
    client.wait("publication", channel=channel, data="after")
    assert client.got(channel) == ["before", "after"]
    assert client.count("connecting") == 1


# -- Subscriptions that the server makes --------------------------------------------


def test_personal_channel(open_client: Open, there: Way) -> None:
    """Every connection of a user has the user's own channel, without asking."""
    user = somebody()
    clients = [open_client(user, worker=worker) for worker in (0, 1)]
    other = open_client(somebody())
    for client in (*clients, other):
        client.connect()
    for client in clients:
        client.wait("subscribed", server=True, channel=f"own:#{user}")
    there.publish(f"own:#{user}", "for you")
    for client in clients:
        client.wait("publication", server=True, channel=f"own:#{user}", data="for you")
    assert other.do("rpc", "echo", 1) == 1  # whatever was on its way has come
    assert other.count("publication") == 0


def test_api_subscribes(open_client: Open, there: Way) -> None:
    """A back-end subscribes a user's connection on another worker, and ends the subscription."""
    channel, user = name("news"), somebody()
    client = open_client(user)
    client.connect()
    there.api("subscribe", user=user, channel=channel)
    client.wait("subscribed", server=True, channel=channel)
    there.publish(channel, 1)
    client.wait("publication", server=True, channel=channel, data=1)
    there.api("unsubscribe", user=user, channel=channel)
    client.wait("unsubscribed", server=True, channel=channel)


def test_api_unsubscribes(open_client: Open, there: Way) -> None:
    """A back-end ends the subscription that a client has made: code 2000, and it does not come back."""
    channel, user = name("room"), somebody()
    client = open_client(user)
    client.connect()
    client.subscribe(channel)
    there.api("unsubscribe", user=user, channel=channel)
    assert client.wait("unsubscribed", channel=channel)["code"] == 2000
    assert client.do("rpc", "echo", 1) == 1
    assert client.count("subscribing") == 1


def test_api_disconnects(open_client: Open, there: Way) -> None:
    """A back-end disconnects a user on another worker: code 3503, and the client stays away."""
    user = somebody()
    client, other = open_client(user), open_client(somebody())
    client.connect()
    other.connect()
    there.api("disconnect", user=user)
    assert client.wait("disconnected")["code"] == 3503
    assert client.count("connecting") == 1
    assert other.do("rpc", "echo", 1) == 1


# -- What clients ask ---------------------------------------------------------------


def test_presence(open_client: Open) -> None:
    """Presence tells every connection of a channel on all workers, with user and info; its figures count both."""
    channel, ann, bob = name("room"), somebody(), somebody()
    clients = [
        open_client(token=token(ann, info={"colour": "red"})),
        open_client(token=token(ann), worker=1),
        open_client(token=token(bob), worker=1),
    ]
    ids = [client.connect()["client"] for client in clients]
    for client in clients:
        client.subscribe(channel)
    expected = [
        {"client": ids[0], "user": ann, "connInfo": {"colour": "red"}},
        {"client": ids[1], "user": ann},
        {"client": ids[2], "user": bob},
    ]
    for client in clients:
        found = client.do("presence", channel)
        assert sorted(found, key=lambda each: ids.index(each["client"])) == expected
        assert client.do("presenceStats", channel) == {"numClients": 3, "numUsers": 2}


def test_join_and_leave(open_client: Open) -> None:
    """Subscribers are told who comes and leaves: by subscribing and unsubscribing, and with a connection."""
    channel, ann, bob = name("room"), open_client("ann"), open_client("bob", worker=1)
    ann.connect()
    info = {"client": bob.connect()["client"], "user": "bob"}
    ann.subscribe(channel, joinLeave=True)
    bob.subscribe(channel)
    assert ann.wait("join", channel=channel, info=info)
    bob.do("unsubscribe", channel)
    assert ann.wait("leave", channel=channel, info=info)
    bob.subscribe(channel)
    assert ann.wait("join", channel=channel, info=info)
    bob.way.cut()
    assert ann.wait("leave", channel=channel, info=info)
    bob.way.mend()
    info = {"client": bob.wait("connected")["client"], "user": "bob"}
    assert ann.wait("join", channel=channel, info=info)
    bob.do("disconnect")
    assert ann.wait("leave", channel=channel, info=info)


def test_history(open_client: Open, there: Way) -> None:
    """History gives a position without publications, all of them, some since a position, and the newest first."""
    channel, client = name("room"), open_client("ann")
    client.connect()
    client.subscribe(channel)
    there.publish(channel, *range(1, 6))

    def ask(**options: Any) -> tuple[list[int], list[int]]:
        reply = client.do("history", channel, options)
        assert reply["offset"] == 5 and reply["epoch"] == position["epoch"]
        return [each["data"] for each in reply["publications"]], [each["offset"] for each in reply["publications"]]

    position = client.do("history", channel, {})
    since = {"offset": 2, "epoch": position["epoch"]}
    assert ask() == ([], [])
    assert ask(limit=-1) == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert ask(limit=2) == ([1, 2], [1, 2])
    assert ask(limit=-1, since=since) == ([3, 4, 5], [3, 4, 5])
    assert ask(limit=1, since=since) == ([3], [3])
    assert ask(limit=2, reverse=True) == ([5, 4], [5, 4])
    assert ask(limit=-1, since=since, reverse=True) == ([1], [1])
    assert client.refusal("history", channel, {"limit": 1, "since": {"offset": 2, "epoch": "ffff"}}) == 112


def test_rpc(open_client: Open) -> None:
    """Calls are answered by the handler of [client]: with errors of its choice, with 404 for a method that it does not
    have, and with 100 when it fails.
    """
    user = somebody()
    client = open_client(user)
    client.connect()
    for data in ({"deep": [1, {"x": None}]}, "grüß", 0, []):
        assert client.do("rpc", "echo", data) == data
    assert client.do("rpc", "whoami", {}) == {"user": user}
    assert client.refusal("rpc", "refuse", {}) == 1234
    assert client.refusal("rpc", "nothing", {}) == 404
    assert client.refusal("rpc", "fail", {}) == 100
    assert client.do("rpc", "echo", 1) == 1


def test_messages(open_javascript: Open) -> None:
    """What a client sends reaches the handler of [client], and what this sends the client."""
    client = open_javascript("ann")
    client.connect()
    client.do("send", {"text": "hello"})
    assert client.wait("message")["data"] == {"text": "hello"}


def test_several_commands_a_frame(open_javascript: Open) -> None:
    """Commands that come in one frame are all answered, each with its own answer, in their order."""
    channel, client = name("room"), open_javascript("ann")
    client.connect()
    client.subscribe(channel)
    frames = client.do("frames")
    answers = client.do(
        "batch",
        *(["publish", channel, number] for number in range(3)),
        ["rpc", "echo", "called"],
        ["history", channel, {"limit": -1}],
        ["presenceStats", channel],
    )
    assert client.do("frames") == frames + 1
    assert answers[3] == "called"
    assert [each["data"] for each in answers[4]["publications"]] == [0, 1, 2]
    assert answers[5] == {"numClients": 1, "numUsers": 1}
    client.wait("publication", data=2)
    assert client.got(channel) == [0, 1, 2]


def test_many_subscriptions_come_back(open_client: Open, there: Way) -> None:
    """After a cut every subscription is recovered, those with something missed and those without."""
    client = open_client("ann")
    client.connect()
    channels = [name("room") for _ in range(8)]
    for channel in channels:
        client.subscribe(channel)
    client.way.cut()
    client.wait("connecting", code=1)
    for channel in channels[::2]:
        there.publish(channel, channel)
    client.way.mend(1)
    for channel in channels:
        assert client.wait("subscribed", channel=channel)["recovered"]
    for channel in channels:
        there.publish(channel, "last")
        client.wait("publication", channel=channel, data="last")
        assert client.got(channel) == [channel, "last"][channel not in channels[::2] :]


# -- What clients may not -----------------------------------------------------------


def test_subscriptions_refused(open_client: Open) -> None:
    """A subscription that may not be ends with the code of the reason, and with none of the client's others."""
    client = open_client("ann")
    client.connect()
    channel = name("room")
    client.subscribe(channel)
    for other, code in {
        "nowhere:1": 102,
        "without_namespace": 102,
        name("secret"): 103,
        name("news"): 103,
        "$room:1": 103,
        "room:#bob": 103,
        "room:#bob,eve": 103,
    }.items():
        client.ask_for(other)
        assert client.wait("unsubscribed", channel=other)["code"] == code, other
    client.do("publish", channel, "still there")
    client.wait("publication", channel=channel, data="still there")


def test_commands_refused(open_client: Open, there: Way) -> None:
    """What the namespace does not allow is refused: error 103; what it does not have is error 108."""
    client = open_client("ann")
    client.connect()
    plain, elsewhere = name("plain"), name("room")
    client.subscribe(plain)
    assert client.refusal("publish", plain, 1) == 103
    assert client.refusal("presence", plain) == 108
    assert client.refusal("presenceStats", plain) == 108
    assert client.refusal("history", plain, {"limit": 1}) == 108
    assert client.refusal("publish", elsewhere, 1) == 103
    assert client.refusal("presence", elsewhere) == 103
    assert client.refusal("presenceStats", elsewhere) == 103
    assert client.refusal("history", elsewhere, {"limit": 1}) == 103
    for command in (["publish", "nowhere:1", 1], ["presence", "nowhere:1"], ["history", "nowhere:1", {"limit": 1}]):
        assert client.refusal(*command) == 102
    there.publish(plain, "still there")
    client.wait("publication", channel=plain, data="still there")


def test_subscribed_already(open_client: Open) -> None:
    """A channel that the server has subscribed the client to is refused it: error 105."""
    channel = name("room")
    client = open_client(token=token("ann", channels=[channel]))
    client.connect()
    client.wait("subscribed", server=True, channel=channel)
    client.ask_for(channel)
    assert client.wait("unsubscribed", channel=channel)["code"] == 105


def test_most_subscriptions(open_client: Open) -> None:
    """One subscription more than a connection may have is error 106; the personal channel counts."""
    client = open_client("ann")
    client.connect()
    channels = [name("room") for _ in range(CHANNELS_MAX)]
    for channel in channels[:-1]:
        client.subscribe(channel)
    client.ask_for(channels[-1])
    assert client.wait("unsubscribed", channel=channels[-1])["code"] == 106
    client.do("unsubscribe", channels[0])
    client.subscribe(name("room"))


def test_anonymous(open_client: Open, there: Way) -> None:
    """A client without token is nobody: it has what everybody may have, and nothing that users have."""
    channel, other = name("open"), name("room")
    client = open_client()
    client.connect()
    client.subscribe(channel)
    client.do("publish", channel, "hello")
    assert client.wait("publication", channel=channel, data="hello")["info"]["user"] == ""
    client.ask_for(other)
    assert client.wait("unsubscribed", channel=other)["code"] == 103
    assert client.do("rpc", "whoami", {}) == {"user": ""}


# -- Tokens -------------------------------------------------------------------------


def test_token_that_is_none(open_client: Open) -> None:
    """A token that is none, or that another key has signed, ends the connection for good: code 3500."""
    good = token("ann")
    for bad in ("nonsense", good[:-2] + ("AA" if good[-2:] != "AA" else "BB")):
        client = open_client(token=bad)
        client.start()
        assert client.wait("disconnected")["code"] == 3500
        assert client.count("connected") == 0


def test_expired_token(open_client: Open) -> None:
    """With an expired token a client is refused: it asks for a new one, and gives up where there is none."""
    client = open_client(token=token("ann", -60), tokens=[token("ann")])
    client.connect()
    assert client.count("token") == 1
    assert client.do("rpc", "whoami", {}) == {"user": "ann"}
    without = open_client(token=token("ann", -60))
    without.start()
    assert without.wait("disconnected")["code"] == 1


def test_connection_refreshed(open_client: Open, there: Way) -> None:
    """A client whose token ends hands in a new one: its connection lives on, with all subscriptions."""
    channel, user, client = name("room"), somebody(), open_client()
    end = time.time() + SHORT_SECONDS + 1
    client.connect(token=token(user, SHORT_SECONDS), tokens=[token(user)])
    client.subscribe(channel)
    client.wait("token")
    eventually(lambda: time.time() > end + EXPIRED_CLOSE_SECONDS, what="the end of the first token")
    there.publish(channel, "later")
    client.wait("publication", channel=channel, data="later")
    assert client.count("connecting") == client.count("token") == 1


def test_connection_refreshed_too_late(open_client: Open) -> None:
    """A client that gets no new token in time is disconnected, code 3005, and comes back when it has one."""
    user, client = somebody(), open_client()
    client.connect(token=token(user, SHORT_SECONDS), tokens=[None, token(user)])
    client.wait("connecting", code=3005)
    client.wait("connected")
    assert client.count("token") == 2
    assert client.do("rpc", "whoami", {}) == {"user": user}


def test_connection_refreshed_with_an_expired_token(open_client: Open) -> None:
    """A client that is given an expired token is disconnected, code 3005, and comes back with the next one."""
    user, client = somebody(), open_client()
    client.connect(token=token(user, SHORT_SECONDS), tokens=[token(user, -60), token(user)])
    client.wait("connecting", code=3005)
    client.wait("connected")
    assert client.do("rpc", "whoami", {}) == {"user": user}


def test_subscription_token(open_client: Open, there: Way) -> None:
    """A subscription token opens a channel to its user alone, and no other channel; info comes with it."""
    channel, user = name("$room"), somebody()
    client, other = open_client(user), open_client(somebody(), worker=1)
    client_id = client.connect()["client"]
    other.connect()
    allowed = token(user, channel=channel, info={"role": "editor"})
    client.subscribe(channel, token=allowed)
    there.publish(channel, 1)
    client.wait("publication", channel=channel, data=1)
    assert client.do("presence", channel) == [{"client": client_id, "user": user, "chanInfo": {"role": "editor"}}]
    other.ask_for(channel, token=allowed)
    assert other.wait("unsubscribed", channel=channel)["code"] == 103
    elsewhere = name("$room")
    client.ask_for(elsewhere, token=allowed)
    assert client.wait("unsubscribed", channel=elsewhere)["code"] == 103


def test_expired_subscription_token(open_client: Open) -> None:
    """With an expired subscription token a client is refused: it asks for a new one, and gives up without."""
    client = open_client("ann")
    client.connect()
    channel, other = name("secret"), name("secret")
    client.subscribe(channel, token=token("ann", -60, channel=channel), tokens=[token("ann", channel=channel)])
    assert client.count("token") == 1
    client.ask_for(other, token=token("ann", -60, channel=other))
    assert client.wait("unsubscribed", channel=other)["code"] == 1


def test_subscription_refreshed(open_client: Open, there: Way) -> None:
    """A subscription whose token ends lives on with a new one, and nothing that is published is missed."""
    channel, client = name("secret"), open_client("ann")
    client.connect()
    end = time.time() + SHORT_SECONDS + 1
    tokens = [token("ann", seconds, channel=channel) for seconds in (SHORT_SECONDS, 600)]
    client.subscribe(channel, token=tokens[0], tokens=tokens[1:])
    client.wait("token", channel=channel)
    eventually(lambda: time.time() > end + EXPIRED_CLOSE_SECONDS, what="the end of the first token")
    there.publish(channel, "later")
    client.wait("publication", channel=channel, data="later")
    assert client.count("subscribing") == client.count("token") == 1


def test_subscription_refreshed_too_late(open_client: Open, there: Way) -> None:
    """A subscription without a new token in time ends, code 2501, and comes back with one; the connection stays."""
    channel, client = name("secret"), open_client("ann")
    client.connect()
    tokens = [token("ann", seconds, channel=channel) for seconds in (SHORT_SECONDS, 600)]
    client.subscribe(channel, token=tokens[0], tokens=[None, tokens[1]])
    client.wait("subscribing", channel=channel, code=2501)
    client.wait("subscribed", channel=channel)
    assert client.count("token") == 2
    there.publish(channel, "still there")
    client.wait("publication", channel=channel, data="still there")
    assert client.count("connecting") == 1


def test_subscription_refreshed_with_an_expired_token(open_client: Open) -> None:
    """A subscription that is given an expired token ends, code 2501, and comes back with the next one."""
    channel, client = name("secret"), open_client("ann")
    client.connect()
    tokens = [token("ann", seconds, channel=channel) for seconds in (SHORT_SECONDS, -60, 600)]
    client.subscribe(channel, token=tokens[0], tokens=tokens[1:])
    client.wait("subscribing", channel=channel, code=2501)
    client.wait("subscribed", channel=channel)
    assert client.count("connecting") == 1


def test_channels_of_users(open_client: Open, there: Way) -> None:
    """A channel that names users is open to them without token."""
    ann, bob = somebody(), somebody()
    clients = [open_client(ann), open_client(bob, worker=1)]
    channel = f"room:#{ann},{bob}"
    for client in clients:
        client.connect()
        client.subscribe(channel)
    there.publish(channel, "for two")
    for client in clients:
        client.wait("publication", channel=channel, data="for two")


# -- The service's own life -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pings(kind: str, origin: str, serve: Callable[..., Server], request: pytest.FixtureRequest) -> None:
    """A client that has nothing to say stays connected: the server pings it in time, and it answers in time."""
    times = {"ping_interval_seconds": PING_SECONDS, "pong_timeout_seconds": LATE_SECONDS}
    with ExitStack() as closing:
        settings = sections(server={"origins": [origin]}, connections=times)
        open_client = opener(kind, serve(sections=settings), request, closing)
        client = open_client("ann", maxServerPingDelay=1000 * LATE_SECONDS)
        client.connect()
        end = time.time() + PING_SECONDS + LATE_SECONDS + 1  # whoever misses the other one's sign has left by then
        eventually(lambda: time.time() > end, what="several pings")
        assert client.refusal("presenceStats", "nowhere:1") == 102
        assert client.count("connecting") == 1


def test_page_of_another_origin(server: Server, browser: Browser) -> None:
    """A page whose origin is not among [server] origins gets no connection."""
    with pages() as elsewhere, Way(server, 0) as way, PageClient(browser, elsewhere, way, token=token("ann")) as client:
        client.start()
        assert client.wait("error")["type"] == "transport"
        assert client.count("connected") == 0
