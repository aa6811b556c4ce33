"""Channels of fastpush.js in Node: against a server that says what a test wants, and against the real one."""

import base64
import hashlib
import hmac
import json
import os
import signal
import time
from collections.abc import Iterable
from functools import partial
from threading import Event
from typing import Any

from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from tests.conformance.test_registration import JWT_SECRET, jwt, jwt_sections
from tests.e2e.test_fastpush_js import Client, Serve, cut, scripted, stay
from tests.server import SCALE, Sections, Server, eventually

TOKEN_EXPIRED = {"code": 109, "message": "token expired"}
DENIED = {"code": 103, "message": "permission denied"}
INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}


class Peer:
    """The server's end of one connection: what the client asks for, in order, and what it is told."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._id = 0

    def asked(self, method: str) -> Any:
        """The next command, which has to be this one."""
        command = json.loads(self._connection.recv(timeout=10))
        self._id = command.pop("id")
        assert list(command) == [method]
        return command[method]

    def send(self, *lines: dict[str, Any]) -> None:
        """Send them in one frame."""
        self._connection.send("\n".join(json.dumps(line) for line in lines))

    def reply(self, method: str, **result: Any) -> dict[str, Any]:
        """The reply to the last command, to be sent."""
        return {"id": self._id, method: result}

    def refuse(self, error: dict[str, Any]) -> None:
        """Answer the last command by an error."""
        self.send({"id": self._id, "error": error})

    def connect(self, **result: Any) -> Any:
        """Accept it; what it connected with."""
        asked = self.asked("connect")
        self.send(self.reply("connect", client="c", ping=25, pong=True, **result))
        return asked

    def subscribe(self, **result: Any) -> Any:
        """Accept a subscription; what it asked for."""
        asked = self.asked("subscribe")
        self.send(self.reply("subscribe", **result))
        return asked


def publication(data: Any, offset: int = 0, channel: str = "chat:42", **more: Any) -> dict[str, Any]:
    """A push of one."""
    return {"push": {"channel": channel, "pub": {"data": data, **({"offset": offset} if offset else {}), **more}}}


def unsubscribe(code: int, reason: str, channel: str = "chat:42") -> dict[str, Any]:
    """A push that ends a subscription."""
    return {"push": {"channel": channel, "unsubscribe": {"code": code, "reason": reason}}}


class Channels(Client):
    """A ChannelClient in Node."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__("ChannelClient", url, **options)

    def subscription(self, name: str, **expected: Any) -> dict[str, Any]:
        """The next state of this name of any subscription, or of that with these fields."""
        while True:
            state: dict[str, Any] = self.next("subscription", **expected)
            if state["name"] == name:
                return state

    def publications(self, count: int, **expected: Any) -> list[Any]:
        """The data of the next so many."""
        return [self.next("publication", **expected) for _ in range(count)]

    def has_read_all(self) -> None:
        """Wait until it has done what it was told to do."""
        self.do("readyState")
        self.next("readyState")

    def told(self) -> list[Any]:
        """All that subscribers were told so far: data of publications, and states."""
        told: list[Any] = []
        for line in self.lines:
            state = line.get("subscription", {})
            if "publication" in line:
                told.append(line["publication"])
            elif state:
                told.append({"subscribed": state["recovered"]} if "recovered" in state else state["name"])
        return told


# -- Subscriptions ------------------------------------------------------------------


def test_subscribes_on_one_connection() -> None:
    """The first channel opens the connection, which all share; a ping is answered; unsubscribing tells the server."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        assert peer.connect() == {"token": "aaa", "subs": {}}
        assert peer.subscribe() == {"channel": "chat:42"}
        peer.send({}, publication({"text": "hello"}), publication(1, channel="chat:43"), publication([2]))
        assert json.loads(connection.recv(timeout=10)) == {}
        assert peer.subscribe() == {"channel": "$chat:43", "token": "of $chat:43"}
        peer.send(publication(None, channel="$chat:43", tags={"kind": "x"}), publication(3))
        assert peer.asked("unsubscribe") == {"channel": "chat:42"}
        peer.send(publication("late"), peer.reply("unsubscribe"), publication("last", channel="$chat:43"))
        stay(connection)

    with scripted(play) as (url, script), Channels(url, token="aaa") as client:
        client.do("subscribe", "chat:42")
        assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False}
        assert client.publications(2, channel="chat:42") == [{"text": "hello"}, [2]]
        client.do("subscribe", "$chat:43", "other", {"token": "of $chat:43"})
        assert client.publications(1, **{"as": "other"}) == [None] and client.lines[-1]["tags"] == {"kind": "x"}
        assert client.publications(1, channel="chat:42") == [3]
        client.do("unsubscribe", "chat:42")
        assert client.publications(1) == ["last"]
        assert client.next("message", event="$chat:43") == "last"
        assert client.states() == ["connecting", "open"]
    assert script.paths == ["/app"]


def test_two_share_a_subscription() -> None:
    """A channel's second subscriber asks for nothing and is told that it missed what was; the last one ends it."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        peer.subscribe(recoverable=True, epoch="e", offset=7)
        peer.send(publication("one", 8))
        assert peer.asked("unsubscribe") == {"channel": "chat:42"}
        assert peer.asked("subscribe") == {"channel": "chat:42"}  # anew, with no position
        peer.send(publication("of the subscription before", 9), peer.reply("subscribe"), publication("two"))
        stay(connection)

    with scripted(play) as (url, _), Channels(url) as client:
        client.do("subscribe", "chat:42", "first")
        assert client.publications(1, **{"as": "first"}) == ["one"]
        client.do("subscribe", "chat:42", "second")
        assert client.subscription("subscribed", **{"as": "second"}) == {"name": "subscribed", "recovered": False}
        client.do("glance", "chat:42", "passing")
        for each in ("first", "first", "second"):  # twice is once
            client.do("unsubscribe", each)
        client.do("subscribe", "chat:42", "third")
        client.do("unsubscribe", "second")  # nor does it end another's
        assert client.publications(1) == ["two"] and client.lines[-1]["as"] == "third"
        assert "passing" not in [line.get("as") for line in client.lines]


def test_subscribing_while_it_connects() -> None:
    """Before the server has accepted the connection nothing is asked; then what is wanted still, once."""
    asked, answered = Event(), Event()

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.asked("connect")
        asked.set()
        assert answered.wait(10 * SCALE)
        peer.send(peer.reply("connect", client="c", ping=25, pong=True))
        assert peer.subscribe() == {"channel": "chat:43"}
        assert peer.subscribe() == {"channel": "constructor"}
        stay(connection)

    with scripted(play) as (url, _), Channels(url) as client:
        client.do("connect")
        assert asked.wait(10 * SCALE)
        client.do("subscribe", "chat:42")
        client.do("subscribe", "chat:43")
        client.do("subscribe", "constructor")  # which every object has
        client.do("unsubscribe", "chat:42")
        client.has_read_all()
        answered.set()
        client.subscription("subscribed", channel="chat:43")
        client.subscription("subscribed", channel="constructor")


def test_subscribing_anew_before_the_answer() -> None:
    """What the server says of a subscription that was given up means nothing to the next one of that channel."""
    asked, answered = Event(), Event()
    waits = {"firstWaitSeconds": 3, "longestWaitSeconds": 3}

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        peer.asked("subscribe")
        asked.set()
        assert answered.wait(10 * SCALE)
        peer.refuse(DENIED)
        assert peer.asked("unsubscribe") == {"channel": "chat:42"}
        peer.asked("subscribe")
        peer.refuse(INTERNAL)  # it would ask again after 3 s, but is given up before
        peer.asked("unsubscribe")
        peer.subscribe()
        script.over.wait(3.2)
        peer.send(publication("arrives"))
        stay(connection)

    with scripted(play) as (url, script), Channels(url, random=1, **waits) as client:
        client.do("subscribe", "chat:42", "first")
        assert asked.wait(10 * SCALE)
        client.do("unsubscribe", "first")
        client.do("subscribe", "chat:42", "second")
        client.has_read_all()
        answered.set()
        client.subscription("subscribing")
        client.do("unsubscribe", "second")
        client.do("subscribe", "chat:42", "third")
        client.publications(1)
        assert client.told() == ["subscribing", {"subscribed": False}, "arrives"]


# -- Resume -------------------------------------------------------------------------

KEPT = {"recoverable": True, "positioned": True, "epoch": "abc"}


def test_resumes_where_it_was_cut() -> None:
    """After a cut it asks from where it was; what it missed comes once, in order, between what was and what comes."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        if number == 0:
            assert peer.subscribe(**KEPT, offset=3) == {"channel": "chat:42"}
            peer.send(publication("four", 4), publication("five", 5))
            cut(connection)
        elif number == 1:
            assert peer.asked("subscribe") == {"channel": "chat:42", "recover": True, "epoch": "abc", "offset": 5}
            missed = [{"data": "six", "offset": 6}, {"data": "seven", "offset": 7}]
            again = peer.reply("subscribe", **KEPT, offset=7, recovered=True, publications=missed)
            peer.send(again, publication("eight", 8))
            connection.close(3001, "shutdown")
        else:
            asked = peer.subscribe(**KEPT, offset=8, recovered=True)
            assert asked == {"channel": "chat:42", "recover": True, "epoch": "abc", "offset": 8}
            peer.send(publication("nine", 9))
            stay(connection)

    with scripted(play) as (url, _), Channels(url) as client:
        client.do("subscribe", "chat:42")
        client.publications(6)
        first, again = {"subscribed": False}, {"subscribed": True}
        told = [first, "four", "five", "subscribing", again, "six", "seven", "eight", "subscribing", again, "nine"]
        assert client.told() == told
        assert client.states().count("waiting") == 2


def test_is_told_when_publications_may_be_missing() -> None:
    """Where the server cannot recover it says so, and the position is the new one; so it does of what it dropped."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        if number == 0:
            peer.subscribe(**KEPT, offset=3)
            peer.send(publication(None, tags={"gap": "17"}), publication("after", 21, tags={"gap": "data"}))
            cut(connection)
        elif number == 1:
            assert peer.subscribe(**KEPT | {"epoch": "def"}, offset=1, was_recovering=True)["offset"] == 21
            cut(connection)
        else:
            asked = peer.subscribe(was_recovering=True)
            assert asked == {"channel": "chat:42", "recover": True, "epoch": "def", "offset": 1}
            cut(connection) if number == 2 else stay(connection)

    def play_without_history(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        assert peer.subscribe() == {"channel": "chat:42"}
        cut(connection) if number == 0 else stay(connection)

    with scripted(play) as (url, _), Channels(url) as client:
        client.do("subscribe", "chat:42")
        assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False}
        assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False, "missed": 17}
        assert client.publications(1) == ["after"]
        for _ in range(2):
            assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False}
    with scripted(play_without_history) as (url, _), Channels(url) as client:
        client.do("subscribe", "chat:42")
        for _ in range(2):
            assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False}


def test_channels_that_the_server_gives() -> None:
    """What the server subscribes it to arrives and is resumed with the connection; who asks for it gets it, unasked."""
    name = "personal:#jack"
    position = {"recover": True, "epoch": "abc"}

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        if number == 0:
            peer.connect(subs={name: {**KEPT, "offset": 1}})
            peer.send(publication("two", 2, name), {"push": {"channel": "news", "subscribe": {}}})
            peer.send(publication("paper", 0, "news"))
            assert peer.subscribe() == {"channel": "chat:42"}
            peer.send(publication("three", 3, name))
            assert peer.asked("subscribe") == {"channel": "late"}
            peer.send({"push": {"channel": "late", "subscribe": {}}})
            peer.refuse({"code": 105, "message": "already subscribed"})
            ended = unsubscribe(2500, "insufficient state", "late")
            peer.send(ended, {"push": {"channel": "late", "subscribe": {}}})
            script.over.wait(0.1)  # longer than after which it would have asked for it
            peer.send(publication("here", 0, "late"))
            assert peer.asked("subscribe") == {"channel": "end"}
            cut(connection)
        elif number == 1:
            missed = [{"data": "four", "offset": 4}]
            subs = {name: {**KEPT, "offset": 4, "recovered": True, "publications": missed}}
            asked = peer.connect(subs=subs)
            assert asked == {"subs": {name: {**position, "offset": 3}, "news": {}, "late": {}}}
            assert [peer.subscribe()["channel"] for _ in range(3)] == ["chat:42", "late", "end"]
            cut(connection)
        else:  # given no more: then it asks for what somebody here wants
            assert peer.connect()["subs"] == ({name: {**position, "offset": 4}} if number == 2 else {})
            asked = peer.subscribe(**KEPT, offset=4, recovered=True)
            assert asked == {"channel": name, **position, "offset": 4}
            assert [peer.subscribe()["channel"] for _ in range(3)] == ["chat:42", "late", "end"]
            cut(connection) if number == 2 else stay(connection)

    with scripted(play) as (url, script), Channels(url) as client:
        client.do("connect")
        assert client.next("message", event=name) == "two"
        assert client.next("message", event="news") == "paper"
        client.do("subscribe", name)
        assert client.subscription("subscribed", channel=name) == {"name": "subscribed", "recovered": False}
        client.do("glance", "news", "passing")  # it is the server's: nothing to be said
        client.do("subscribe", "chat:42")
        assert client.publications(1, channel=name) == ["three"]
        client.do("subscribe", "late")
        assert client.publications(1) == ["here"]
        client.do("subscribe", "end")
        assert client.publications(1, channel=name) == ["four"]
        for _ in range(2):
            assert client.subscription("subscribed", channel=name)["recovered"] is True
        client.subscription("subscribed", channel="end")


# -- What the server ends or refuses ------------------------------------------------


def test_the_server_unsubscribes() -> None:
    """Below 2500 it is final; 2500 subscribes again from where it was, 2501 with a fresh token; nothing is cut."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        assert peer.subscribe(**KEPT, offset=3) == {"channel": "chat:42", "token": "one"}
        peer.send(unsubscribe(2501, "subscription expired"), publication("of nothing", 9))
        position = {"channel": "chat:42", "recover": True, "epoch": "abc", "offset": 3}
        assert peer.subscribe(**KEPT, offset=3, recovered=True) == {**position, "token": "two"}
        peer.send(unsubscribe(2500, "insufficient state"))
        assert peer.subscribe(**KEPT, offset=3, recovered=True) == {**position, "token": "two"}
        peer.send(publication("four", 4), unsubscribe(2000, "server unsubscribe"), publication("five", 5))
        assert peer.subscribe() == {"channel": "chat:42"}  # the page wants it anew
        peer.send(publication("six"))
        stay(connection)

    with scripted(play) as (url, script), Channels(url) as client:
        client.do("subscribe", "chat:42", "chat", {"tokens": ["one", "two"]})
        for code, reason in ((2501, "subscription expired"), (2500, "insufficient state")):
            state = client.subscription("subscribing")
            assert state == {"name": "subscribing", "code": code, "reason": reason}
        state = client.subscription("unsubscribed")
        assert state == {"name": "unsubscribed", "code": 2000, "reason": "server unsubscribe"}
        assert [line["publication"] for line in client.lines if "publication" in line] == ["four"]
        client.do("subscribe", "chat:42", "again")
        client.do("unsubscribe", "chat")  # what is over ends nothing
        assert client.publications(1) == ["six"]
        assert client.states() == ["connecting", "open"]
        script.reaches(1)


def test_a_subscription_is_refused() -> None:
    """A temporary error is tried again; a token that was good before is replaced, once; all others are final."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        if number == 0:
            assert peer.asked("subscribe")["token"] == "one"
            peer.refuse(INTERNAL)
            assert peer.asked("subscribe")["token"] == "one"
            cut(connection)
            return
        for token in ("one", "two"):
            assert peer.asked("subscribe")["token"] == token
            peer.refuse(TOKEN_EXPIRED)
        assert peer.asked("subscribe") == {"channel": "private:1"}
        peer.refuse(DENIED)
        assert peer.subscribe() == {"channel": "chat:43"}
        stay(connection)

    with scripted(play) as (url, script), Channels(url) as client:
        client.do("subscribe", "chat:42", "chat", {"tokens": ["one", "two", "three"]})
        assert client.subscription("subscribing") == {"name": "subscribing", "code": 100, "reason": INTERNAL["message"]}
        assert client.subscription("unsubscribed") == {"name": "unsubscribed", "code": 109, "reason": "token expired"}
        client.do("subscribe", "private:1")
        refused = client.subscription("unsubscribed", channel="private:1")
        assert refused == {"name": "unsubscribed", "code": 103, "reason": "permission denied"}
        client.do("subscribe", "chat:43")
        client.subscription("subscribed", channel="chat:43")
        script.reaches(2)


def test_a_channel_whose_token_fails() -> None:
    """While a channel's token function fails that channel is tried again with growing waits; the others go on."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        assert peer.subscribe() == {"channel": "chat:42"}
        assert peer.subscribe() == {"channel": "$chat:43", "token": "good"}
        stay(connection)

    with scripted(play) as (url, script), Channels(url, random=1, firstWaitSeconds=0.1) as client:
        client.do("subscribe", "chat:42")
        client.subscription("subscribed", channel="chat:42")
        began = time.monotonic()
        client.do("subscribe", "$chat:43", "other", {"tokens": [None, None, None, "good"]})
        for _ in range(3):
            failed = client.subscription("subscribing", channel="$chat:43")
            assert failed == {"name": "subscribing", "code": 0, "reason": "the back-end is away"}
        client.subscription("subscribed", channel="$chat:43")
        assert time.monotonic() - began > 0.1 + 0.2 + 0.4 - 0.01
        assert [line["channel"] for line in client.lines if "asked" in line] == ["$chat:43"] * 4
        script.reaches(1)


def test_a_connection_is_refused() -> None:
    """It comes back after a temporary error, and once with a new token for one that was good before; else not."""
    errors = [None, INTERNAL, TOKEN_EXPIRED, TOKEN_EXPIRED]

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        error = errors[number]
        if error is None:
            assert peer.connect()["token"] == "one"
            connection.close(3005, "connection expired")
        else:
            assert peer.asked("connect")["token"] == ("two" if number < 3 else "three")
            peer.refuse(error)
            stay(connection)

    def play_denied(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        assert peer.asked("connect")["token"] == "text"
        peer.refuse(TOKEN_EXPIRED if number else DENIED)
        stay(connection)

    with scripted(play) as (url, script), Channels(url, tokens=["one", "two", "three", "four"]) as client:
        client.do("subscribe", "chat:42")
        codes = [client.state("waiting")["code"] for _ in range(3)]
        assert codes == [3005, 1013, 109]
        closed = {"name": "closed", "code": 109, "reason": "token expired", "why": "token expired"}
        assert client.state("closed") == closed
        script.reaches(4)
    with scripted(play_denied) as (url, _), Channels(url, token="text") as client:
        for code in (103, 109):
            client.do("connect")
            assert client.state("closed")["code"] == code


def test_close_and_back() -> None:
    """close() keeps what is subscribed and where it was, for connect(); final codes do as well."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.connect()
        assert peer.subscribe(**KEPT, offset=number, recovered=number > 0).get("recover", False) is (number > 0)
        connection.close(3503, "force disconnect") if number == 1 else stay(connection)

    with scripted(play) as (url, script), Channels(url) as client:
        client.do("subscribe", "chat:42")
        client.subscription("subscribed")
        client.do("close")
        away = {"name": "subscribing", "code": 1000, "reason": "closed by this side"}
        assert client.subscription("subscribing") == away
        client.do("connect")
        assert client.subscription("subscribed")["recovered"] is True
        closed = client.state("closed")
        assert (closed["code"], closed["reason"]) == (3503, "force disconnect")
        client.do("connect")
        assert client.subscription("subscribed")["recovered"] is True
        script.reaches(3)


# -- Signs of life, and tokens that end ----------------------------------------------


def test_silent_server_is_replaced() -> None:
    """Two and a half of the intervals that the server named, without its ping: the connection is replaced."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        peer.asked("connect")
        peer.send(peer.reply("connect", client="c", ping=1.6, pong=True))
        if number == 0:
            for _ in range(3):
                if not script.over.wait(0.5):
                    peer.send({})
                    assert json.loads(connection.recv(timeout=10)) == {}
        stay(connection)

    with scripted(play) as (url, script), Channels(url) as client:
        client.do("connect")
        waiting = client.state("waiting")
        assert (waiting["code"], waiting["reason"]) == (1006, "nothing heard for 4 s")
        client.state("open")
        script.reaches(2)
        assert script.moments[1] - script.moments[0] > 5.4


def test_tokens_are_refreshed() -> None:
    """At its end a token that a function gave is replaced, the connection's and a channel's, and nothing is cut."""

    def play(connection: ServerConnection, number: int) -> None:
        peer = Peer(connection)
        assert peer.connect(expires=True, ttl=1)["token"] == "one"
        assert peer.asked("refresh") == {"token": "two"}
        peer.send(peer.reply("refresh", expires=True, ttl=1))
        assert peer.asked("refresh") == {"token": "three"}
        peer.send(peer.reply("refresh", expires=True, ttl=10**8))  # more than a timer takes
        assert peer.subscribe(expires=True, ttl=1)["token"] == "four"
        assert peer.asked("sub_refresh") == {"channel": "$chat:43", "token": "five"}
        peer.send(peer.reply("sub_refresh"), publication("last", channel="$chat:43"))
        stay(connection)

    with scripted(play) as (url, script), Channels(url, tokens=["one", "two", "three"]) as client:
        client.do("connect")
        while client.next("asked") != 3:
            pass
        client.do("subscribe", "$chat:43", "other", {"tokens": ["four", "five"]})
        assert client.publications(1) == ["last"]
        assert client.states() == ["connecting", "open"]
        script.reaches(1)


# -- The real server ----------------------------------------------------------------

OPEN = {"subscribe": "everybody", "publish": "users"}
RESUMED = OPEN | {"history_messages": 100, "recovery": True}
# A cut client stays away until the test says "online".
AWAY = {"firstWaitSeconds": 1000, "longestWaitSeconds": 1000}


def serve_channels(serve: Serve, sections: Sections | None = None) -> Server:
    """Two workers; channels chat:… are resumed, news:… are not, own:… take a token, closed:… are for nobody."""
    spaces = {"chat": RESUMED, "news": OPEN, "own": OPEN | {"subscribe": "token"}, "closed": {"subscribe": "nobody"}}
    channels = {f"channels.{name}": space for name, space in spaces.items()}
    return serve(workers=2, sections=channels | (sections or {}))


def channels_url(server: Server) -> str:
    """Where ChannelClients connect."""
    return server.ws_url(path="/connection/websocket")


def publish(server: Server, channel: str, messages: Iterable[Any], token: str = "back-end") -> None:
    """Publish, each once the one before is confirmed, from a connection of its own.

    One that is refused for the moment, because a process is being replaced, nobody gets until it is published again.
    """
    with connect(channels_url(server)) as connection:

        def is_taken(**command: Any) -> bool:
            connection.send(json.dumps({"id": 1, **command}))
            reply = json.loads(connection.recv(timeout=10))
            while "id" not in reply:  # pushes: its user's own channel has it too
                reply = json.loads(connection.recv(timeout=10))
            assert reply.get("error", {}).get("temporary", True), reply
            return "error" not in reply

        assert is_taken(connect={"token": token})
        for message in messages:
            taken = partial(is_taken, publish={"channel": channel, "data": message})
            eventually(taken, what="the publication is taken")


def worker_of(server: Server, client: Channels) -> int:
    """The pid of the worker that a client is connected to."""
    client.do("port")
    return server.pid_of_worker(server.worker_of(client.next("port")))


def subscription_token(user: str, channel: str, seconds: float) -> str:
    """As `fastpush token USER --channel CHANNEL` signs it."""

    def part(fields: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")

    claims = {"sub": user, "channel": channel, "exp": time.time() + seconds}
    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.digest(JWT_SECRET.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def test_gets_exactly_what_it_missed(serve: Serve) -> None:
    """After a cut it gets what was published meanwhile and after, once and in order, channel by channel."""
    server = serve_channels(serve)
    with Channels(channels_url(server), token="ann", **AWAY) as client:
        client.do("subscribe", "chat:42")
        client.do("subscribe", "chat:43")
        client.subscription("subscribed", channel="chat:42")
        client.subscription("subscribed", channel="chat:43")
        publish(server, "chat:42", [1, 2])
        assert client.publications(2) == [1, 2]
        client.do("cut")
        client.state("waiting")
        publish(server, "chat:42", range(3, 30))
        publish(server, "chat:43", ["first"])
        client.do("online")
        client.state("open")
        publish(server, "chat:42", range(30, 40))
        client.publications(38)
        for channel, expected in (("chat:42", [*range(1, 40)]), ("chat:43", ["first"])):
            lines = [line for line in client.lines if line.get("channel") == channel]
            assert [line["publication"] for line in lines if "publication" in line] == expected
            states = [line["subscription"].get("recovered") for line in lines if "subscription" in line]
            assert states == [False, None, True]


def test_resumes_after_a_killed_worker(serve: Serve) -> None:
    """Whose worker was killed gets from the next one what was published meanwhile, once and in order."""
    server = serve_channels(serve)
    with Channels(channels_url(server), token="ann", **AWAY) as client:
        client.do("subscribe", "chat:42")
        client.subscription("subscribed")
        publish(server, "chat:42", [1, 2])
        client.publications(2)
        for killed in range(2):
            os.kill(worker_of(server, client), signal.SIGKILL)
            assert client.state("waiting")["code"] == 1006
            eventually(lambda: server.request("GET", "/ready")[0] == 200, what="the service is whole")
            publish(server, "chat:42", [10 * killed + 3, 10 * killed + 4])
            client.do("online")
            assert client.subscription("subscribed")["recovered"] is True
            publish(server, "chat:42", [10 * killed + 5])
            client.publications(3)
        assert [line["publication"] for line in client.lines if "publication" in line] == [1, 2, 3, 4, 5, 13, 14, 15]


def test_a_killed_broker_is_told(serve: Serve) -> None:
    """The history dies with the broker: subscribers stay connected, are told `recovered: false`, and go on."""
    server = serve_channels(serve)
    with Channels(channels_url(server), token="ann") as client:
        client.do("subscribe", "chat:42")
        client.subscription("subscribed")
        publish(server, "chat:42", [1])
        client.publications(1)
        os.kill(server.processes("broker")[0]["pid"], signal.SIGKILL)
        assert client.subscription("subscribing")["code"] == 2500
        assert client.subscription("subscribed") == {"name": "subscribed", "recovered": False}
        publish(server, "chat:42", [2])
        assert client.publications(1) == [2] and client.lines[-1]["offset"] == 1
        assert client.states() == ["connecting", "open"]


def test_subscribing_twice_and_unsubscribing(serve: Serve) -> None:
    """Two subscribers of a page get each publication once each; after unsubscribing nothing comes, until it is anew."""
    server = serve_channels(serve)
    with Channels(channels_url(server), token="ann") as client:
        for name in ("first", "second"):
            client.do("subscribe", "chat:42", name)
            client.subscription("subscribed", **{"as": name})
        client.do("subscribe", "news:1")
        client.subscription("subscribed", channel="news:1")
        publish(server, "chat:42", ["both"])
        client.publications(2)
        client.do("unsubscribe", "first")
        publish(server, "chat:42", ["one"])
        client.publications(1)
        client.do("unsubscribe", "second")
        client.do("subscribe", "news:2")
        client.subscription("subscribed", channel="news:2")  # so the server has read the unsubscribing
        publish(server, "chat:42", ["nobody"])
        publish(server, "news:1", ["last"])
        assert client.publications(1) == ["last"]
        got = [(line["as"], line["publication"]) for line in client.lines if "publication" in line]
        assert got == [("first", "both"), ("second", "both"), ("second", "one"), ("news:1", "last")]
        client.do("subscribe", "chat:42", "third")
        assert client.subscription("subscribed", **{"as": "third"})["recovered"] is False
        publish(server, "chat:42", ["anew"])
        assert client.publications(1) == ["anew"]


def test_channels_that_are_not_allowed(serve: Serve) -> None:
    """Unknown and forbidden channels are refused for good, each by itself; a refused connection is closed for good."""
    server = serve_channels(serve)
    with Channels(channels_url(server), token="ann") as client:
        for channel in ("closed:1", "$chat:42", "own:1", "chat:#bob", "unknown:1"):
            client.do("subscribe", channel)
            refused = client.subscription("unsubscribed", channel=channel)
            assert refused["code"] == (102 if channel == "unknown:1" else 103)
        client.do("subscribe", "chat:42")
        client.subscription("subscribed", channel="chat:42")
        assert client.states() == ["connecting", "open"]
    with Channels(channels_url(server)) as client:
        client.do("subscribe", "chat:42")
        closed = client.state("closed")
        assert (closed["code"], closed["reason"]) == (3500, "invalid token")


def test_a_personal_channel(serve: Serve) -> None:
    """What the server subscribes a user to arrives unasked, and is resumed for who subscribes to it."""
    name = "chat:#ann"
    server = serve_channels(serve, {"client": {"personal_namespace": "chat"}})
    with Channels(channels_url(server), token="ann", **AWAY) as client:
        client.do("connect")
        client.state("open")
        publish(server, name, ["unasked"], token="ann")
        assert client.next("message", event=name) == "unasked"
        client.do("subscribe", name)
        assert client.subscription("subscribed")["recovered"] is False
        client.do("cut")
        client.state("waiting")
        publish(server, name, ["missed"], token="ann")
        client.do("online")
        assert client.subscription("subscribed")["recovered"] is True
        assert client.publications(1) == ["missed"]


def test_tokens_are_replaced_in_time(serve: Serve) -> None:
    """Tokens that functions give, the connection's and a channel's, are replaced at their end; nothing is cut."""
    server = serve_channels(serve, jwt_sections() | {"client": {"expired_close_seconds": 3}})
    name, lives = "own:42", (4 * SCALE, 600)
    signed = time.monotonic()
    own = [subscription_token("jack", name, seconds) for seconds in lives]
    with Channels(channels_url(server), tokens=[jwt("jack", seconds) for seconds in lives]) as client:
        client.do("subscribe", name, "own", {"tokens": own})
        client.subscription("subscribed")
        end = signed + 4 * SCALE + 3 + 0.5  # whose token was not replaced has been cut by then
        eventually(lambda: time.monotonic() > end, 10, "both tokens at their end")
        publish(server, name, ["still here"], jwt("back-end", 60))
        assert client.publications(1) == ["still here"]
        assert [line["asked"] for line in client.lines if "asked" in line] == [1, 1, 2, 2]
        assert client.states() == ["connecting", "open"]
        assert client.told() == [{"subscribed": False}, "still here"]


def test_tokens_that_nobody_replaces(serve: Serve) -> None:
    """A connection whose token cannot be replaced is closed at its end, for good; so is a channel's subscription."""
    server = serve_channels(serve, jwt_sections() | {"client": {"expired_close_seconds": 0}})
    name = "$chat:42"
    with Channels(channels_url(server), token=jwt("jack", 600)) as client:
        client.do("subscribe", name, "own", {"token": subscription_token("jack", name, 3 * SCALE)})
        client.subscription("subscribed")
        assert client.subscription("subscribing")["code"] == 2501
        assert client.subscription("unsubscribed")["code"] == 109
        assert client.states() == ["connecting", "open"]
    with Channels(channels_url(server), token=jwt("jack", 4 * SCALE)) as client:
        client.do("connect")
        assert client.state("waiting")["code"] == 3005
        assert client.state("closed")["code"] == 109
