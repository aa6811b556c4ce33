"""Server-Sent Events on two workers, byte by byte: /sse, and the client protocol at /connection/uni_sse."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from tests.applications import workers
from tests.certificates import make_certificate, trusting
from tests.programs import FASTPUSH, run
from tests.sdk import KEY, sections, sign, token
from tests.server import Sections, Server, eventually
from tests.streams import Event, Stream, call, publish
from tests.wire import Wire, request

Serve = Callable[..., Server]
PAGE = "https://app.example.com"
KEPT = 3
NAMESPACES = {
    "channels.room": {"subscribe": "users", "history_messages": 1000, "recovery": True, "presence": True},
    "channels.told": {"subscribe": "users", "presence": True, "join_leave": "connections"},
    "channels.short": {"subscribe": "users", "history_messages": KEPT, "recovery": True},
    "channels.plain": {"subscribe": "users"},
    "channels.open": {"subscribe": "everybody"},
    "channels.secret": {"history_messages": 10, "recovery": True},
    "channels.own": {"subscribe": "nobody", "history_messages": 1000, "recovery": True},
}
GARBAGE = [
    "", "0", "garbage", "1.2.3", "00000000.1.0", "zzzzzzzz.1.1", "00000000.99999999999999999999.1", "\xff\xfe",
    "00000000.1.11111111111111111", "00000000.-1.1", "00000000.1.1,", ",".join(["00000000.1.1"] * 65), "1" * 4000,
    "'; drop table", "0000000a.1.A", "00000000.1.1 ",
]  # fmt: skip
_numbers = count(1)


def settings(**more: Any) -> Sections:
    client = {"anonymous": "loopback", "personal_namespace": "own"}
    return sections(**{"server": {"origins": [PAGE]}, "client": client, **NAMESPACES, **more})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers and the namespaces above, for all tests that leave them as they were."""
    running = Server(tmp_path_factory.mktemp("sse"), workers=2, sections=settings())
    yield running
    running.stop()


def name(namespace: str) -> str:
    """A channel that no other test uses."""
    return f"{namespace}:{next(_numbers)}"


def somebody() -> str:
    """A user that no other test uses."""
    return f"user-{next(_numbers)}"


def push(server: Server, user: str, event: str, message: str) -> int:
    """Push; the number of connections reached."""
    return server.push(user, event, message, **{"X-API-Key": KEY})["sent"]


def again(server: Server, stream: Stream, **parameters: Any) -> Stream:
    """The stream of a client that comes back, as browsers do."""
    return Stream(server, last_id=stream.last_id, **parameters)


def error(stream: Stream) -> tuple[int, str]:
    """How a stream was refused."""
    return stream.status, stream.headers.get("x-fastpush-error", "")


# -- The answer ---------------------------------------------------------------------


def test_the_answer(server: Server) -> None:
    """A GET is answered with an event stream that says how long to wait before coming back, and has no end."""
    with Stream(server, token=token("ann"), event="e") as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert stream.headers["cache-control"] == "no-store" and stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["connection"] == "close" and "content-length" not in stream.headers
        assert stream.headers["x-request-id"] and "access-control-allow-origin" not in stream.headers
        assert stream.block() is None
        assert 500 <= stream.retry_ms <= 2000


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "DELETE"])
@pytest.mark.parametrize("path", ["/sse", "/connection/uni_sse"])
def test_only_get(server: Server, path: str, method: str) -> None:
    """Every other method is 405, with what is allowed."""
    with Stream(server, path, method=method, token=token("ann"), event="e") as stream:
        assert (stream.status, stream.headers["allow"]) == (405, "GET")


def test_no_body(server: Server) -> None:
    """A GET with a body is 400."""
    with Stream(server, headers={"Content-Length": "2"}, token=token("ann"), event="e") as stream:
        assert error(stream) == (400, "a request for an event stream has no body")


# -- Pushes -------------------------------------------------------------------------


def test_a_push_right_after_the_answer(server: Server) -> None:
    """What is pushed at the other worker, to any of the events of a URL, arrives once the client is answered."""
    user = somebody()
    for _ in range(10):
        with Stream(server, worker=1, token=token(user), event=["one", "two"]) as stream:
            assert push(server, user, "two", "first") == 1
            assert push(server, user, "one", "second") == 1
            assert [stream.event(), stream.event()] == [Event("first"), Event("second")]
        eventually(lambda: push(server, user, "one", "gone") == 0, what="stream left")


def test_texts_as_they_were(server: Server) -> None:
    """Line ends in a text, of any kind, are one line feed each; nothing in it is taken for a field."""
    user = somebody()
    with Stream(server, token=token(user), event="e") as stream:
        for text in ("plain", "a\nb\r\nc\rd\n\nid: 7\n", " x", ":", "data: y", "\n", "größe \U0001f600", "z" * 100_000):
            assert push(server, user, "e", text) == 1
            assert stream.event() == Event(text.replace("\r\n", "\n").replace("\r", "\n"))
        assert stream.last_id == ""


def test_envelope(server: Server) -> None:
    """With envelope=1 a push comes with its event, and a publication with its channel."""
    user, channel = somebody(), name("plain")
    with Stream(server, token=token(user), event=["e", "f"], channel=channel, envelope=1) as stream:
        assert push(server, user, "f", 'say "hi"\n') == 1
        publish(server, channel, {"a": [1, None]})
        assert stream.data(2) == [
            {"event": "f", "message": 'say "hi"\n'},
            {"channel": channel, "data": {"a": [1, None]}},
        ]


def test_push_to_everybody(server: Server) -> None:
    """A push to everybody reaches a stream with events, and none that has channels alone."""
    user, channel = somebody(), name("plain")
    with (
        Stream(server, token=token(user), event="e") as stream,
        Stream(server, token=token(user), channel=channel) as other,
    ):
        body = {"event": "news", "message": "to all"}
        assert server.request("POST", "/push/all", body, {"X-API-Key": KEY})[2] == b"message sent to 1 clients"
        publish(server, channel, "only this")
        assert (stream.event(), other.event()) == (Event("to all"), Event('"only this"'))


def test_drop(server: Server) -> None:
    """POST /drop ends the streams of a user, those with this event alone if one is named."""
    user = somebody()
    with Stream(server, token=token(user), event="e") as first, Stream(server, token=token(user), event="f") as second:
        for body, sent in (({"event": "e"}, b"1"), ({}, b"1")):
            reply = server.request("POST", "/drop", {"userId": user, **body}, {"X-API-Key": KEY})
            assert reply[2] == b"message sent to " + sent + b" clients"
        assert (first.remaining(), second.remaining()) == ([], [])


# -- Channels -----------------------------------------------------------------------


def test_a_publication_right_after_the_answer(server: Server) -> None:
    """What is published at the other worker arrives once the client is answered; its data is JSON as it was."""
    for namespace in ("room", "plain"):
        for _ in range(10):
            channel = name(namespace)
            with Stream(server, worker=0, token=token("ann"), channel=channel) as stream:
                publish(server, channel, {"n": 1}, "text", None)
                assert stream.data(3) == [{"n": 1}, "text", None]
                assert bool(stream.last_id) == (namespace == "room")


def test_recovery_at_the_other_worker(server: Server) -> None:
    """A client that comes back, by header or by parameter, gets what it missed in all channels, once and in order."""
    channels = [name("room"), name("plain"), name("room")]
    with Stream(server, worker=0, token=token("ann"), channel=channels) as stream:
        publish(server, channels[0], *range(5))
        publish(server, channels[1], "live")
        publish(server, channels[2], "a")
        assert stream.data(7) == [*range(5), "live", "a"]
        stream.reset()
    publish(server, channels[0], *range(5, 10))
    publish(server, channels[1], "not kept")
    publish(server, channels[2], "b", "c")
    old = stream.last_id
    ways = [{"headers": {"Last-Event-ID": old}}, {"last_event_id": old}]
    ways.append({"headers": {"Last-Event-ID": old}, "last_event_id": "garbage"})
    for way in ways:
        with Stream(server, worker=1, token=token("ann"), channel=channels, **way) as back:
            assert back.data(7) == [*range(5, 10), "b", "c"]
            publish(server, channels[1], "live again")
            assert back.data(1) == ["live again"]
            assert back.last_id.split(",") == _ends(old, 5, 2)


def _ends(identifier: str, *further: int) -> list[str]:
    """The places of an id whose channels have so many publications more."""
    places = [place.split(".") for place in identifier.split(",")]
    return [f"{tag}.{int(offset) + more}.{epoch}" for (tag, offset, epoch), more in zip(places, further, strict=True)]


def test_an_id_in_the_middle(server: Server) -> None:
    """Each event's id is a place of its own: who was cut off behind any of them gets all the others."""
    channels = [name("room"), name("room")]
    ids = []
    with Stream(server, token=token("ann"), channel=channels) as stream:
        ids.append(stream.placed().last_id)
        for number in range(6):
            publish(server, channels[number % 2], number)
            assert stream.data(1) == [number]
            ids.append(stream.last_id)
    assert len(set(ids)) == 7
    for seen, last in enumerate(ids):
        with Stream(server, token=token("ann"), channel=channels, last_id=last) as back:
            assert sorted(back.data(6 - seen)) == list(range(seen, 6))
            assert back.last_id == ids[-1]


def test_cut_off_again_and_again(server: Server) -> None:
    """While publications come without a pause, a client that is cut off all the time gets each once, in order."""
    channels = [name("room") for _ in range(3)]
    total = 300

    def publish_all() -> None:
        for number in range(total):
            publish(server, channels[number % 3], number)

    publisher = threading.Thread(target=publish_all)
    chance = random.Random(1)
    got: list[int] = []
    stream = Stream(server, token=token("ann"), channel=channels).placed()
    publisher.start()
    while len(got) < total:
        got += stream.data(chance.randrange(min(20, total - len(got)) + 1))
        stream.reset()
        stream = again(server, stream, worker=chance.randrange(2), token=token("ann"), channel=channels)
    publisher.join()
    for first in range(3):
        assert [number for number in got if number % 3 == first] == list(range(first, total, 3))


def test_cut_off_before_the_first_event(server: Server) -> None:
    """A stream begins with an id, so that nothing is lost that is published before its first event."""
    channel = name("room")
    publish(server, channel, "before")
    with Stream(server, worker=0, token=token("ann"), channel=channel) as stream:
        stream.placed()
    publish(server, channel, 1, 2)
    with again(server, stream, worker=1, token=token("ann"), channel=channel) as back:
        assert back.data(2) == [1, 2]


def test_channels_in_another_order(server: Server) -> None:
    """An id belongs to channels, not to a URL: those that are there again are resumed, a new one begins."""
    first, second, third = (name("room") for _ in range(3))
    with Stream(server, token=token("ann"), channel=[first, second]) as stream:
        stream.placed()
    for channel in (first, second, third):
        publish(server, channel, channel)
    with again(server, stream, token=token("ann"), channel=[third, second]) as back:
        assert back.data(1) == [second]
        publish(server, third, "live")
        assert back.data(1) == ["live"]


def test_what_is_not_kept_any_more(server: Server) -> None:
    """A client that comes back too late is told so, with the channels that it concerns, and goes on from there."""
    late, good = name("short"), name("room")
    with Stream(server, token=token("ann"), channel=[late, good]) as stream:
        stream.placed()
    publish(server, late, *range(KEPT + 1))
    publish(server, good, "kept")
    with again(server, stream, token=token("ann"), channel=[late, good]) as back:
        told = back.event()
        assert (told.name, told.json(), told.id) == ("unrecovered", {"channels": [late]}, back.last_id)
        assert back.data(1) == ["kept"]
        publish(server, late, "live")
        assert back.data(1) == ["live"]
    publish(server, late, "missed")
    with again(server, back, token=token("ann"), channel=[late, good]) as back:
        assert back.data(1) == ["missed"]


def test_an_id_of_another_life(server: Server) -> None:
    """A place with an epoch or an offset that the channel never had is told as unrecovered, never guessed at."""
    channel = name("room")
    with Stream(server, token=token("ann"), channel=channel) as stream:
        tag, _, epoch = stream.placed().last_id.split(".")
    for place in (f"{tag}.0.{int(epoch, 16) ^ 1:x}", f"{tag}.7.{epoch}", f"{tag}.{2**63}.{epoch}"):
        with Stream(server, token=token("ann"), channel=channel, last_event_id=place) as back:
            assert back.event().name == "unrecovered"


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_as_id_is_ignored(server: Server, garbage: str) -> None:
    """What no event had as its id is as none: the stream begins afresh."""
    channel = name("room")
    publish(server, channel, "before")
    for way in ({"headers": {"Last-Event-ID": garbage}}, {"last_event_id": garbage}):
        if not garbage.isascii() and "headers" in way:
            continue
        with Stream(server, token=token("ann"), channel=channel, **way) as stream:
            publish(server, channel, "after")
            assert stream.event() == Event('"after"', id=stream.last_id)


def test_presence(server: Server) -> None:
    """A stream is present in its channels, as its user, for as long as it lasts."""
    channel, user = name("room"), somebody()
    with Stream(server, worker=0, token=token(user, info={"a": 1}), channel=channel):
        (found,) = call(server, "presence", channel=channel)["result"]["presence"].values()
        assert (found["user"], found["conn_info"]) == (user, {"a": 1})
    eventually(lambda: call(server, "presence", channel=channel)["result"]["presence"] == {}, what="nobody there")


# -- Who may ------------------------------------------------------------------------


def test_tokens(server: Server) -> None:
    """A wrong or expired token is 401, and none too where events are asked for or channels are for users."""
    expired = sign(sub="ann", exp=int(time.time()) - 60)
    assert error(Stream(server, token="wrong", event="e")) == (401, "token is not a signed JWT")
    status, reason = error(Stream(server, token=expired, event="e"))
    assert status == 401 and "expired" in reason
    assert error(Stream(server, event="e")) == (400, "event without token")
    channel = name("room")
    assert error(Stream(server, channel=channel)) == (403, f"this client may not subscribe to the channel {channel}")


def test_anonymous(server: Server) -> None:
    """Where [client] anonymous allows it, who has no token may have the channels for everybody."""
    channel = name("open")
    with Stream(server, channel=channel) as stream:
        publish(server, channel, "hello")
        assert stream.data(1) == ["hello"]
    forwarded = {"X-Forwarded-For": "192.0.2.1"}
    assert Stream(server, headers=forwarded, channel=channel).status == 403


def test_permissions_of_channels(server: Server) -> None:
    """As for any client: 404 for a channel without namespace, 403 for one that is not for this user."""
    for channel, status in (
        ("nothing:1", 404), ("without", 404), ("secret:1", 403), ("own:1", 403), ("room:#bob", 403), ("room:#ann", 200),
        ("$room:1", 403), ("room:#bob,ann", 200),
    ):  # fmt: skip
        assert Stream(server, token=token("ann"), channel=channel).status == status, channel
        assert Stream(server, token=token("ann"), channel=["room:1", channel]).status == status, channel


def test_subscription_tokens(server: Server) -> None:
    """A subscription token opens its channel to its user; in one stream each channel may have one."""
    channels = ["secret:a", "room:b", "$secret:c"]
    subtokens = [token("ann", channel=channel) for channel in channels]
    with Stream(server, token=token("ann"), channel=channels, subtoken=subtokens[::2]) as stream:
        publish(server, "secret:a", 1)
        publish(server, "$secret:c", 2)
        assert stream.data(2) == [1, 2]
    wrong = {
        "of another user": token("bob", channel="secret:a"),
        "for a connection": token("ann", channel="secret:a", client="x"),
        "not asked for": token("ann", channel="secret:other"),
    }  # fmt: skip
    for what, subtoken in wrong.items():
        assert Stream(server, token=token("ann"), channel="secret:a", subtoken=subtoken).status == 403, what
    for subtoken in ("garbage", sign(sub="ann", channel="secret:a", exp=int(time.time()) - 60), token("ann")):
        assert Stream(server, token=token("ann"), channel="secret:a", subtoken=subtoken).status == 401
    anonymous = sign(sub="", channel="secret:a", exp=int(time.time()) + 60)
    with Stream(server, channel="secret:a", subtoken=anonymous) as stream:
        publish(server, "secret:a", 3)
        assert stream.data(1) == [3]


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"channel": [f"room:{n}" for n in range(17)]}, "more than 16 channels"),
        ({"channel": "room:1", "subtoken": ["a", "b"]}, "more subtokens than channels"),
        ({}, "event or channel is missing"),
        ({"channel": ""}, "the channel's name is empty"),
        ({"channel": "room:" + "x" * 251}, "the channel's name has more than 255 bytes"),
        ({"channel": "/chat"}, "the channel's name starts with a slash, as those of applications do"),
        ({"channel": "room:\x00"}, "the channel's name holds a control character"),
        ({"event": ""}, "event is empty"),
        ({"event": "e", "envelope": "yes"}, "envelope must be 0 or 1, found 'yes'"),
        ({"event": "e", "token": ["a", "b"]}, "token is repeated"),
        ({"event": "e", "token": ""}, "token is empty"),
    ],
)
def test_what_is_wrong_with_a_url(server: Server, parameters: dict[str, Any], reason: str) -> None:
    """What no stream can be made of is 400, with a reason."""
    assert error(Stream(server, **{"token": token("ann"), **parameters})) == (400, reason)


def test_sixteen_channels(server: Server) -> None:
    """One stream has up to 16 channels, whose names may be as long as any, and can be resumed."""
    channels = [name("room") + "x" * 200 for _ in range(16)]
    with Stream(server, token=token("ann"), channel=channels) as stream:
        for channel in channels:
            publish(server, channel, channel[:9])
        assert stream.data(16) == [channel[:9] for channel in channels]
    for channel in channels:
        publish(server, channel, 2)
    with again(server, stream, token=token("ann"), channel=channels) as back:
        assert back.data(16) == [2] * 16


def test_pages_of_other_origins(server: Server) -> None:
    """A page of a configured origin may read the stream, and refusals; the same host too; any other is 403."""
    origin, other = {"Origin": PAGE}, {"Origin": "https://evil.example.com"}
    for path, query in (("/sse", {"event": "e"}), ("/connection/uni_sse", {"cf_connect": json.dumps({"token": "x"})})):
        with Stream(server, path, headers=origin, **query, token="wrong") as refused:
            assert refused.status == 401
            assert (refused.headers["access-control-allow-origin"], refused.headers["vary"]) == (PAGE, "Origin")
        with Stream(server, path, headers=other, **query, token=token("ann")) as refused:
            assert error(refused) == (403, "this Origin is not in [server] origins")
            assert "access-control-allow-origin" not in refused.headers
    with Stream(server, headers=origin, event="e", token=token("ann")) as stream:
        assert (stream.status, stream.headers["access-control-allow-origin"]) == (200, PAGE)
        assert stream.headers["vary"] == "Origin"
    with Stream(server, headers={"Origin": "http://127.0.0.1"}, event="e", token=token("ann")) as stream:
        assert stream.status == 200


def test_an_open_server_is_for_this_machine(serve: Serve) -> None:
    """Without authentication, streams are for programs and pages of this machine only."""
    server = serve(workers=1, sections={"server": {"origins": [PAGE]}})
    assert Stream(server, token="ann", event="e").status == 200
    assert Stream(server, token="ann", event="e", headers={"Origin": "http://127.0.0.1"}).status == 200
    for headers in ({"Origin": PAGE}, {"X-Forwarded-For": "192.0.2.1"}, {"Via": "1.1 proxy"}):
        assert Stream(server, token="ann", event="e", headers=headers).status == 403, headers


# -- Limits -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sse", "/connection/uni_sse"])
@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        ({"connections_per_user": 1}, 429, "too many connections of this user ([limits] connections_per_user)"),
        (
            {"connections_per_address": 1},
            429,
            "too many connections from one address ([limits] connections_per_address)",
        ),
        ({"connections": 1}, 503, "this worker has all the connections it may have ([limits] connections)"),
    ],
    ids=["user", "address", "worker"],
)
def test_limits(serve: Serve, path: str, limits: dict[str, int], status: int, reason: str) -> None:
    """Streams count as connections: one too many is refused, and may come when another one has ended."""
    server = serve(workers=1 if "connections" in limits else 2, sections=settings(limits=limits))
    query = {"token": token("ann"), "event": "e"}
    if path != "/sse":
        query = {"cf_connect": json.dumps({"token": token("ann")})}
    with Stream(server, path, **query) as first:
        assert first.status == 200
        assert error(Stream(server, path, **query)) == (status, reason)
    eventually(lambda: Stream(server, path, **query).status == 200, what="room again")


def test_an_expired_token_ends_the_stream(serve: Serve) -> None:
    """A stream ends with its token, or with the first of its subscription tokens; who comes back with it is 401."""
    server = serve(workers=1, sections=settings())
    short, long = token("ann", 1), token("ann")
    ends = [{"token": short}, {"token": long, "subtoken": token("ann", 1, channel="secret:1"), "channel": "secret:1"}]
    with ExitStack() as streams:
        opened = [streams.enter_context(Stream(server, event="e", **end)) for end in ends]
        for stream, end in zip(opened, ends, strict=True):
            assert stream.remaining() == []
            assert Stream(server, event="e", **end).status == 401


def test_heartbeat(serve: Serve) -> None:
    """A silent stream is kept alive by comments, of which a page is not told; no answer is expected."""
    server = serve(workers=1, sections=settings(connections={"ping_interval_seconds": 1, "pong_timeout_seconds": 1}))
    streams = [Stream(server, token=token("ann"), event="e"), Stream(server, token=token("ann"), channel="room:1")]
    streams.append(Stream(server, "/connection/uni_sse", cf_connect=json.dumps({"token": token("ann")})))
    for stream in streams:
        while stream.comments < 4:
            stream.block()
    publish(server, "room:1", "still there")
    assert streams[1].data(1) == ["still there"]


def test_what_a_client_sends_is_forgotten(server: Server) -> None:
    """A request behind the one for a stream is not answered, nor anything else, however much of it comes."""
    user = somebody()
    with Wire(server) as wire:
        query = f"/sse?token={token(user)}&event=e"
        wire.send(request("GET", query) + request("GET", "/health"))
        wire.until(b"\r\n\r\n")
        for _ in range(20):
            wire.send(os.urandom(100_000))
        assert push(server, user, "e", "hello") == 1
        assert wire.until(b"\n\ndata: hello\n\n").startswith(b"retry: ")
        assert wire.unread == b""


def slow_server(serve: Serve, **limits: int) -> Server:
    kept = {"subscribe": "users", "history_messages": 5000, "history_bytes": 67108864, "recovery": True}
    policies = {f"channels.{each}": {**kept, "slow_policy": each} for each in ("disconnect", "drop-oldest", "latest")}
    connections = {"socket_send_bytes": 4096, "ping_interval_seconds": 60, "pong_timeout_seconds": 60}
    return serve(workers=2, sections=settings(limits=limits, connections=connections, **policies))


SLOW = {"worker": 0, "receive_bytes": 4096}
TEXT = "x" * 1000


def test_a_slow_client_is_bounded(serve: Serve) -> None:
    """A client that reads nothing costs a queue at most, then its stream ends; it comes back for all the rest."""
    server = slow_server(serve, send_queue_messages=50, send_queue_bytes=200_000)
    stream = Stream(server, token=token("ann"), channel="disconnect:1", **SLOW)
    sent = 0
    while sent < 3000 and not server.events("messages dropped"):
        publish(server, "disconnect:1", *[[number, TEXT] for number in range(sent, sent + 100)])
        sent += 100
        assert server.metrics()["fastpush_send_queue_bytes"] <= 250_000
    assert sent < 3000
    got = [event.json()[0] for event in stream.remaining()]
    while len(got) < sent:
        with again(server, stream, token=token("ann"), channel="disconnect:1") as stream:
            before = len(got)
            while len(got) < sent:
                got.append(stream.data(1)[0][0])
            assert len(got) > before
    assert got == list(range(sent))


@pytest.mark.parametrize("policy", ["drop-oldest", "latest"])
def test_a_slow_client_is_told_less(serve: Serve, policy: str) -> None:
    """Behind, a stream has less of a channel, as that says: the oldest go, and are counted, or all but the newest."""
    server = slow_server(serve, send_queue_messages=50, send_queue_bytes=200_000)
    channel, other = f"{policy}:1", "disconnect:1"
    with Stream(server, token=token("ann"), channel=[channel, other], envelope=1, **SLOW) as stream:
        for number in range(600):
            publish(server, channel, [number, TEXT])
            if number % 100 == 50:
                publish(server, other, number)
        got, gaps, others = [], 0, []
        while got[-1:] != [599]:
            event = stream.event()
            if event.name == "gap":
                assert event.json().keys() == {"channel", "dropped"} and policy == "drop-oldest"
                gaps += event.json()["dropped"]
            elif event.json()["channel"] == other:
                others.append(event.json()["data"])
            else:
                got.append(event.json()["data"][0])
        while len(others) < 6:
            others.append(stream.data(1)[0]["data"])
    assert others == list(range(50, 600, 100))
    assert got == sorted(set(got)) and len(got) < 600
    assert len(got) + gaps == 600 or policy == "latest"


def test_the_id_is_of_what_is_written(serve: Serve) -> None:
    """A newer publication that takes an older one's place in the queue does not skip those of other channels."""
    server = slow_server(serve, send_queue_messages=500, send_queue_bytes=1_000_000)
    channels = ["latest:1", "disconnect:1"]
    stream = Stream(server, token=token("ann"), channel=channels, envelope=1, **SLOW)
    for number in range(300):
        publish(server, channels[1], [number, TEXT])
        publish(server, channels[0], number)
    seen: list[int] = []
    while len(seen) < 299:  # cut off behind any event, those of the other channel go on without a gap
        while len(seen) < 299:
            event = stream.event().json()
            if event["channel"] == channels[1]:
                seen.append(event["data"][0])
            elif len(seen) % 7 == 3:
                break
        stream.reset()
        stream = again(server, stream, token=token("ann"), channel=channels, envelope=1)
    assert seen == list(range(299))


def test_who_takes_nothing_is_given_up(serve: Serve) -> None:
    """A client that takes nothing of what waits for it is gone after the times of ping and pong."""
    connections = {"socket_send_bytes": 4096, "ping_interval_seconds": 1, "pong_timeout_seconds": 1}
    server = serve(workers=1, sections=settings(connections=connections))
    stream = Stream(server, token=token("ann"), channel="plain:1", receive_bytes=4096)
    while (samples := server.metrics())["fastpush_connections"] and not samples["fastpush_slow_connections"]:
        publish(server, "plain:1", TEXT * 100)
    eventually(lambda: server.metrics()["fastpush_connections"] == 0, what="given up")
    with stream:
        stream.remaining()


# -- Processes ----------------------------------------------------------------------


def test_a_killed_worker(serve: Serve) -> None:
    """A worker's death costs its streams one reconnect, to any worker, and not one publication."""
    server = serve(workers=2, sections=settings())
    with Stream(server, worker=0, token=token("ann"), channel="room:1") as stream:
        publish(server, "room:1", 1)
        assert stream.data(1) == [1]
        with Stream(server, worker=1, token=token("bob"), channel="room:1") as other:
            os.kill(server.pid_of_worker(workers(server)[0]), signal.SIGKILL)
            assert stream.remaining() == []
            eventually(lambda: "result" in call(server, "publish", channel="room:1", data=2), what="published")
            assert other.data(1) == [2]
    with again(server, stream, worker=1, token=token("ann"), channel="room:1") as back:
        assert back.data(1) == [2]


def test_a_killed_broker(serve: Serve) -> None:
    """A new broker has kept nothing: streams that could be resumed are told, and all go on; none is disconnected."""
    server = serve(workers=2, sections=settings())
    streams = [
        Stream(server, worker=number % 2, token=token("ann"), event="e", channel=channels)
        for number, channels in enumerate((["room:1", "plain:1", "room:2"], ["room:1"], ["plain:1"], []))
    ]
    publish(server, "room:1", "before")
    assert [stream.data(1) for stream in streams[:2]] == [["before"]] * 2
    os.kill(server.processes("broker")[0]["pid"], signal.SIGKILL)
    for stream, channels in zip(streams, (["room:1", "room:2"], ["room:1"]), strict=False):
        told = stream.event()
        assert (told.name, sorted(told.json()["channels"])) == ("unrecovered", channels)
    eventually(lambda: "result" in call(server, "publish", channel="plain:1", data="p"), what="a new broker")
    publish(server, "room:1", "after")
    assert [stream.data(1) for stream in (streams[0], streams[2])] == [["p"]] * 2
    assert [stream.data(1) for stream in streams[:2]] == [["after"]] * 2
    assert push(server, "ann", "e", "all") == 4
    assert [stream.event().data for stream in streams] == ["all"] * 4
    streams[0].reset()
    publish(server, "room:2", "missed")
    with again(server, streams[0], token=token("ann"), channel=["room:1", "room:2"]) as back:
        assert back.data(1) == ["missed"]


def test_a_broker_that_does_not_answer(serve: Serve) -> None:
    """A stream whose channels are not confirmed in time is 503; nothing is left of it, nor of who has gone."""
    server = serve(workers=2, sections=settings(limits={"register_timeout_seconds": 1}))
    broker = server.processes("broker")[0]["pid"]
    os.kill(broker, signal.SIGSTOP)
    try:
        with Wire(server) as wire:
            wire.send(request("GET", f"/sse?token={token('ann')}&channel=room:1"))
        reason = "the broker did not confirm the registration in time"
        assert error(Stream(server, token=token("ann"), channel="room:1")) == (503, reason)
    finally:
        os.kill(broker, signal.SIGCONT)
    eventually(lambda: "result" in call(server, "publish", channel="room:1", data=1), what="it answers again")
    eventually(lambda: server.metrics()["fastpush_registrations"] == 0, what="no keys left")
    assert call(server, "presence", channel="room:1")["result"]["presence"] == {}
    assert not [event for event in server.events() if event["level"] == "error"]


def test_a_killed_broker_and_a_slow_stream(serve: Serve) -> None:
    """A stream that is behind when the broker dies ends with what it was given, and is told when it comes back."""
    server = slow_server(serve, send_queue_messages=1000, send_queue_bytes=10_000_000)
    stream = Stream(server, token=token("ann"), channel="disconnect:1", **SLOW)
    publish(server, "disconnect:1", *[[number, TEXT] for number in range(500)])
    assert server.metrics()["fastpush_slow_connections"] == 1
    os.kill(server.processes("broker")[0]["pid"], signal.SIGKILL)
    eventually(lambda: "result" in call(server, "publish", channel="plain:1", data=0), what="a new broker")
    got = [event.json()[0] for event in stream.remaining()]
    assert got == list(range(500))
    with again(server, stream, token=token("ann"), channel="disconnect:1") as back:
        assert back.event().name == "unrecovered"


def test_drain(serve: Serve) -> None:
    """The end of the service is the end of its streams, with all that was sent, and of nothing else: it ends well."""
    server = serve(workers=2, sections=settings())
    with ExitStack() as stack:
        streams = [
            stack.enter_context(Stream(server, worker=number % 2, token=token("ann"), event="e", channel="room:1"))
            for number in range(20)
        ]
        publish(server, "room:1", "last")
        server.process.terminate()
        assert [[event.data for event in stream.remaining()] for stream in streams] == [['"last"']] * 20
    assert server.process.wait() == 0


def test_rolling_restart(serve: Serve) -> None:
    """A rolling restart ends each stream once; coming back at once, none misses anything."""
    server = serve(workers=2, sections=settings(connections={"close_timeout_seconds": 0.2}))
    streams = [Stream(server, worker=number % 2, token=token("ann"), channel="room:1") for number in range(6)]
    got: list[list[Any]] = [[] for _ in streams]
    restart = run(*FASTPUSH, "restart", "--rolling", "--seconds", "1", "--config", str(server.config_path))
    assert restart.returncode == 0, restart.stderr
    for number in range(3):
        publish(server, "room:1", number)
    for position, stream in enumerate(streams):
        got[position] += [event.json() for event in stream.remaining()]
        with again(server, stream, token=token("ann"), channel="room:1") as back:
            got[position] += back.data(3 - len(got[position]))
    assert got == [[0, 1, 2]] * 6


def test_streams_are_connections(serve: Serve) -> None:
    """A stream is counted, and shown by `fastpush debug connections`, like a WebSocket; its end leaves nothing."""
    server = serve(workers=1, sections=settings())
    with Stream(server, token=token("ann"), event="e", channel="room:1"), Stream(server, channel="open:1") as anonymous:
        assert server.metrics()["fastpush_connections"] == 2
        shown = run(*FASTPUSH, "debug", "connections", "0", "--json", "--config", str(server.config_path))
        assert shown.returncode == 0, shown.stderr
        listed = json.loads(shown.stdout)["connections"]
        found = {(each["user"], each["path"], each["state"], each["keys"]) for each in listed}
        assert found == {("ann", "/sse", "open", 3), ("", "/sse", "open", 1)}
        anonymous.reset()
    eventually(lambda: server.metrics()["fastpush_connections"] == 0, what="all gone")
    eventually(lambda: server.metrics()["fastpush_registrations"] == 0, what="no keys left")
    assert not [event for event in server.events() if event["level"] == "error"]


def test_tls(serve: Serve, tmp_path: Any) -> None:
    """By TLS streams are the same: pushes, publications, resuming, the end."""
    certificate = make_certificate(tmp_path / "certificate.pem")
    server = serve(workers=1, tls=trusting(certificate), sections=settings(tls={"certificate": str(certificate)}))
    with Stream(server, token=token("ann"), event="e", channel="room:1") as stream:
        assert push(server, "ann", "e", "by TLS") == 1
        publish(server, "room:1", 1)
        assert [stream.event().data for _ in range(2)] == ["by TLS", "1"]
    publish(server, "room:1", 2)
    with again(server, stream, token=token("ann"), channel="room:1") as back:
        assert back.data(1) == [2]
        server.process.terminate()
        assert back.remaining() == []
    assert server.process.wait() == 0


def test_on_the_public_listener(serve: Serve) -> None:
    """With [api] listen, streams are served where WebSockets are, and not on the other address."""
    server = serve(workers=1, sections=settings(api={"listen": "127.0.0.1:0"}))
    api = int(server.events("listening")[-1]["address"].rpartition(":")[2])
    ports = {int(each["address"].rpartition(":")[2]) for each in server.events("listening")}
    (public,) = ports - {api}
    by_port = {}
    for port in (public, api):
        with Stream(server, port=port, token=token("ann"), event="e") as stream:
            by_port[stream.status] = port
    assert by_port.keys() == {200, 404}


# -- The client protocol ------------------------------------------------------------


def unidirectional(server: Server, user: str, worker: int | None = None, last_id: str = "", **connect: Any) -> Stream:
    """A unidirectional client of channels; claims of its token in `claims`."""
    claims = connect.pop("claims", {})
    command = {"token": token(user, **claims), **connect}
    return Stream(server, "/connection/uni_sse", worker=worker, last_id=last_id, cf_connect=json.dumps(command))


def test_connect_push(server: Server) -> None:
    """The first event is the connect push: who the client is, and what the server has subscribed it to."""
    user, channel = somebody(), name("room")
    with unidirectional(server, user, claims={"channels": [channel, "nothing:1"]}) as stream:
        connect = stream.event().json()["connect"]
        assert connect["client"] and connect["version"] and connect["ping"] == 25 and "pong" not in connect
        assert (connect["expires"], connect["subs"].keys()) == (True, {channel, f"own:#{user}"})
        assert connect["subs"][channel]["recoverable"] and connect["subs"][channel]["epoch"]
        publish(server, channel, {"a": 1})
        assert stream.data(1) == [{"channel": channel, "pub": {"data": {"a": 1}, "offset": 1}}]
        assert call(server, "connections", user=user)["result"]["connections"][connect["client"]]["transport"] == "sse"
    with Stream(server, "/connection/uni_sse") as anonymous:
        assert "subs" not in anonymous.event().json()["connect"]


def test_joins_and_leaves(server: Server) -> None:
    """Who comes and leaves is told by a push in an event of its own, however many came at once."""
    channel = name("told")
    with unidirectional(server, "ann", claims={"channels": [channel]}) as stream:
        stream.event()
        others = [Stream(server, token=token("bob"), channel=channel) for _ in range(20)]
        told: dict[str, list[str]] = {"join": [], "leave": []}
        for kind, clients in told.items():
            while len(clients) < 20:
                (each,) = stream.data(1)
                assert each["channel"] == channel
                if each[kind]["info"]["user"] == "bob":
                    clients.append(each[kind]["info"]["client"])
            for other in others:
                other.socket.close()
    assert len(set(told["join"])) == 20 and sorted(told["join"]) == sorted(told["leave"])


def test_unidirectional_recovery(server: Server) -> None:
    """What was missed is in the connect push, by Last-Event-ID as by the command's own positions; live ones follow."""
    user, channel = somebody(), name("room")
    claims = {"channels": [channel]}
    with unidirectional(server, user, worker=0, claims=claims) as stream:
        first = stream.event().json()["connect"]["subs"][channel]
        publish(server, channel, 1, 2)
        assert [each["pub"]["data"] for each in stream.data(2)] == [1, 2]
        stream.reset()
    publish(server, channel, 3, 4)
    with unidirectional(server, user, worker=1, last_id=stream.last_id, claims=claims) as back:
        event = back.event()
        found = event.json()["connect"]["subs"][channel]
        assert found["recovered"] and [each["data"] for each in found["publications"]] == [3, 4]
        assert event.id
    with unidirectional(server, user, last_id=back.last_id, claims=claims) as back:
        found = back.event().json()["connect"]["subs"][channel]
        assert found["recovered"] and "publications" not in found
        publish(server, channel, 5)
        assert back.data(1)[0]["pub"] == {"data": 5, "offset": 5}
    subs = {channel: {"recover": True, "offset": 3, "epoch": first["epoch"]}}
    with unidirectional(server, user, claims=claims, subs=subs) as back:
        found = back.event().json()["connect"]["subs"][channel]
        assert found["recovered"] and [each["data"] for each in found["publications"]] == [4, 5]


def test_unidirectional_unrecovered(server: Server) -> None:
    """A position that is not kept any more is told in the connect push: was_recovering, not recovered."""
    user, channel = somebody(), name("short")
    claims = {"channels": [channel]}
    with unidirectional(server, user, claims=claims) as stream:
        stream.event()
    publish(server, channel, *range(KEPT + 1))
    with unidirectional(server, user, last_id=stream.last_id, claims=claims) as back:
        found = back.event().json()["connect"]["subs"][channel]
        assert found["was_recovering"] and "recovered" not in found and "publications" not in found
    with unidirectional(server, user, last_id="garbage", claims=claims) as back:
        assert "was_recovering" not in back.event().json()["connect"]["subs"][channel]


def test_back_ends_order_a_stream(server: Server) -> None:
    """The server API subscribes a stream, unsubscribes it, and ends it, each told by a push."""
    user, channel = somebody(), name("plain")
    with unidirectional(server, user) as stream:
        stream.event()
        assert call(server, "subscribe", user=user, channel=channel)["result"] is not None
        assert stream.data(1)[0].keys() == {"channel", "subscribe"}
        publish(server, channel, "hello")
        assert stream.data(1) == [{"channel": channel, "pub": {"data": "hello"}}]
        call(server, "unsubscribe", user=user, channel=channel)
        assert stream.data(1)[0]["unsubscribe"]["code"] == 2000
        publish(server, f"own:#{user}", "personal")
        assert stream.data(1)[0]["pub"]["data"] == "personal"
        call(server, "disconnect", user=user)
        assert stream.data(1) == [{"disconnect": {"code": 3503, "reason": "force disconnect"}}]
        assert stream.remaining() == []


def test_unidirectional_refusals(server: Server) -> None:
    """What is no connect command is 400, a wrong token 401."""
    for command in ("", "[]", "text", '{"token": 1}', '{"subs": []}', "\xff", '{"subs": {"a": {"offset": -1}}}'):
        status, reason = error(Stream(server, "/connection/uni_sse", cf_connect=command))
        assert (status, reason[:33]) == (400, "cf_connect is no connect command:"), command
    assert error(Stream(server, "/connection/uni_sse", cf_connect=["{}", "{}"])) == (400, "cf_connect is repeated")
    assert Stream(server, "/connection/uni_sse", cf_connect='{"token":"wrong"}').status == 401


def test_unidirectional_ends(serve: Serve) -> None:
    """A stream that the server ends is told why: its token has expired, the service stops."""
    server = serve(workers=2, sections=settings())
    with unidirectional(server, "bob") as other:
        other.event()
        with Stream(server, "/connection/uni_sse", cf_connect=json.dumps({"token": token("ann", 3)})) as stream:
            stream.event()
            assert stream.data(1) == [{"disconnect": {"code": 3005, "reason": "connection expired"}}]
            assert stream.remaining() == []
        server.process.terminate()
        assert other.data(1) == [{"disconnect": {"code": 3001, "reason": "shutdown"}}]
        assert other.remaining() == []
    assert server.process.wait() == 0


def test_unidirectional_and_a_killed_broker(serve: Serve) -> None:
    """A stream is told that its subscription has begun anew, at another position, and can be resumed from there."""
    server = serve(workers=2, sections=settings())
    claims = {"channels": ["room:1", "room:2"]}
    with unidirectional(server, "ann", claims=claims) as stream:
        old = stream.event().json()["connect"]["subs"]
        publish(server, "room:1", "before")
        stream.event()
        os.kill(server.processes("broker")[0]["pid"], signal.SIGKILL)
        ends: dict[str, int] = {}
        begun: dict[str, str] = {}
        while len(begun) < 3:
            (told,) = stream.data(1)
            if "unsubscribe" in told:
                ends[told["channel"]] = told["unsubscribe"]["code"]
            else:
                begun[told["channel"]] = told["subscribe"]["epoch"]
        assert ends == dict.fromkeys(old, 2500) and begun.keys() == old.keys()
        assert all(begun[channel] != old[channel]["epoch"] for channel in old)
        eventually(lambda: "result" in call(server, "publish", channel="room:2", data="after"), what="published")
        assert stream.data(1)[0]["pub"] == {"data": "after", "offset": 1}
        stream.reset()
    publish(server, "room:1", "missed")
    with unidirectional(server, "ann", last_id=stream.last_id, claims=claims) as back:
        subs = back.event().json()["connect"]["subs"]
        assert [each["data"] for each in subs["room:1"]["publications"]] == ["missed"]
        assert subs["room:2"]["recovered"]
