"""The server API with two workers: back-ends ask one of them, the clients are with the other."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.programs import Closing
from tests.sdk import KEY, Way, sections, token
from tests.server import SCALE, Server, eventually

NAMESPACES = {
    "channels.room": {"subscribe": "users", "history_messages": 100, "recovery": True, "presence": True},
    "channels.plain": {"subscribe": "everybody"},
}
CLIENT = {"handler": "tests.sdk_handler:Handler", "anonymous": "loopback"}
MANY = 20  # [limits] push_users
_numbers = count(1)


def name(namespace: str = "room") -> str:
    """A channel that no other test uses."""
    return f"{namespace}:{next(_numbers)}"


def somebody() -> str:
    """A user that no other test uses."""
    return f"user-{next(_numbers)}"


class Worker(Way):
    """The way to a worker, for back-ends too: each request has a connection of its own, so threads may ask."""

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """The status of a request, and the JSON of its reply."""
        calls = HTTPConnection("127.0.0.1", self.port, timeout=20 * SCALE)
        with closing(calls):
            calls.request("POST", path, json.dumps(body), {"X-API-Key": KEY, **headers})
            reply = calls.getresponse()
            return reply.status, json.loads(reply.read())

    def api(self, method: str, /, **body: Any) -> Any:
        """The result of a call."""
        status, reply = self.post(f"/api/{method}", body)
        assert status == 200 and "result" in reply, reply
        return reply["result"]

    def error(self, method: str, /, **body: Any) -> int:
        """The code that a call is refused with."""
        code: int = self.post(f"/api/{method}", body)[1]["error"]["code"]
        return code


class Subscriber(Closing):
    """A client of the protocol, frame by frame. id: of its connection."""

    def __init__(self, way: Worker, user: str = "", *channels: str) -> None:
        self._closing = ExitStack()
        self._socket = self._closing.enter_context(connect(way.websocket_url, proxy=None))
        self._lines: list[dict[str, Any]] = []
        self._ids = count(1)
        self.id: str = self.ask("connect", **({"token": token(user)} if user else {}))["client"]
        for channel in channels:
            self.ask("subscribe", channel=channel)

    def ask(self, method: str, /, **fields: Any) -> dict[str, Any]:
        """Send a command, return its result; what else comes before it is kept for `push`."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, method: fields}))
        pushes: list[dict[str, Any]] = []
        while (line := self._line()).get("id") != number:
            pushes.append(line)
        self._lines = pushes + self._lines
        return line[method]

    def push(self, kind: str) -> dict[str, Any]:
        """The next push, which is of this kind."""
        line = self._line()
        assert kind in line.get("push", {}), line
        return line["push"] if kind != "message" else line["push"]["message"]

    def data(self) -> Any:
        """The data of the next publication."""
        return self.push("pub")["pub"]["data"]

    def closed(self) -> tuple[int, str]:
        """The code and reason that the server closes with, and nothing comes before that."""
        with pytest.raises(ConnectionClosed) as caught:
            raise AssertionError(self._line())
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    def _line(self) -> dict[str, Any]:
        while not self._lines:
            self._lines = [json.loads(line) for line in self._socket.recv(20 * SCALE).splitlines() if line != "{}"]
        return self._lines.pop(0)

    def close(self) -> None:
        self._closing.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = sections(client=CLIENT, limits={"push_users": MANY, "push_body_bytes": 100_000}, **NAMESPACES)
    root = Path(__file__).parents[2]
    running = Server(tmp_path_factory.mktemp("api"), workers=2, sections=settings, environ={"PYTHONPATH": root})
    yield running
    running.stop()


@pytest.fixture(scope="module")
def here(server: Server) -> Iterator[Worker]:
    """The way to the clients' worker."""
    with Worker(server, 0) as way:
        yield way


@pytest.fixture(scope="module")
def there(server: Server) -> Iterator[Worker]:
    """The way to the other worker, for back-ends."""
    with Worker(server, 1) as way:
        yield way


@pytest.fixture
def join(here: Worker) -> Iterator[Callable[..., Subscriber]]:
    """Connect clients of `here`; arguments as Subscriber's."""
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(Subscriber(here, *arguments))


Join = Callable[..., Subscriber]


def post(server: Server, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """The status of a request and the JSON of its reply."""
    status, got, reply = server.request("POST", path, body, {"X-API-Key": KEY, **headers})
    assert got["content-type"] == "application/json"
    return status, json.loads(reply)


# -- Publications -------------------------------------------------------------------


def test_publish(join: Join, there: Worker) -> None:
    """What is published at one worker reaches the subscriber on the other as it was; the result says where it is."""
    channel, plain = name(), name("plain")
    client = join(somebody(), channel, plain)
    big = 12345678901234567890123
    first = there.api("publish", channel=channel, data={"text": "grüß", "n": big}, tags={"a": "b"})
    second = there.api("publish", channel=channel, data=None)
    assert first["sent"] == second["sent"] == 1 and (first["offset"], second["offset"]) == (1, 2)
    assert first["epoch"] == second["epoch"] != "" and "unconfirmed" not in first
    got = client.push("pub")["pub"]
    assert got == {"data": {"text": "grüß", "n": big}, "tags": {"a": "b"}, "offset": 1}
    assert client.data() is None
    assert there.api("publish", channel=plain, data=[1]) == {"sent": 1}
    assert client.push("pub") == {"channel": plain, "pub": {"data": [1]}}


def test_broadcast(join: Join, there: Worker) -> None:
    """A broadcast is a publication in each channel; a channel that is none has an error and the others do not mind."""
    one, two = name(), name("plain")
    client = join(somebody(), one, two)
    sent = there.api("broadcast", channels=[one, "nowhere:1", two, ""], data="all")["responses"]
    assert [each["result"]["sent"] if "result" in each else each["error"]["code"] for each in sent] == [1, 102, 1, 107]
    assert {client.push("pub")["channel"], client.push("pub")["channel"]} == {one, two}


def test_exclude(join: Join, here: Worker, there: Worker) -> None:
    """A connection that is excluded does not get it, whichever worker is asked; an id that is none excludes nobody."""
    channel = name()
    one, two = join(somebody(), channel), join(somebody(), channel)
    assert there.api("publish", channel=channel, data=1, exclude=one.id)["sent"] == 1
    assert here.api("publish", channel=channel, data=2, exclude=two.id)["sent"] == 1
    (sent,) = there.api("broadcast", channels=[channel], data=3, exclude=one.id)["responses"]
    assert sent["result"]["sent"] == 1
    unknown = one.id[:-12] + "f" * 12  # of its worker, which counts them from 1: no connection's
    for each in ("nobody", unknown, "0x1", one.id + "\n"):
        assert there.api("publish", channel=channel, data=each, exclude=each)["sent"] == 2
    assert [one.data() for _ in range(5)] == [2, "nobody", unknown, "0x1", one.id + "\n"]
    assert [two.data() for _ in range(3)] == [1, 3, "nobody"]


@pytest.mark.parametrize("method", ["publish", "broadcast"])
def test_same_key_twice(method: str, join: Join, here: Worker, there: Worker) -> None:
    """The same idempotency key is one publication and the same reply, at whichever worker; another channel is apart."""
    channel, other = name(), name()
    client = join(somebody(), channel)

    def publish(way: Worker, channel: str, data: Any, **more: Any) -> Any:
        channels = {"channel": channel} if method == "publish" else {"channels": [channel]}
        return way.api(method, data=data, **channels, **more)

    first = publish(there, channel, 1, idempotency_key="k")
    assert publish(there, channel, 2, idempotency_key="k") == publish(here, channel, 3, idempotency_key="k") == first
    assert publish(there, other, 4, idempotency_key="k") != first
    publish(there, channel, 5)
    assert [client.data(), client.data()] == [1, 5]


def test_same_key_at_once(join: Join, here: Worker, there: Worker) -> None:
    """Twenty requests with one key at the same time, half at each worker, are one publication with one reply."""
    channel = name()
    client = join(somebody(), channel)
    replies: list[Any] = []

    def publish(way: Worker) -> None:
        replies.append(way.api("publish", channel=channel, data="once", idempotency_key="at once"))

    threads = [threading.Thread(target=publish, args=(way,)) for way in [here, there] * 10]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == 20 and all(reply == replies[0] for reply in replies)
    assert replies[0]["sent"] == replies[0]["offset"] == 1
    there.publish(channel, "next")
    assert [client.data(), client.data()] == ["once", "next"]


def test_idempotent_push(server: Server, here: Worker, there: Worker) -> None:
    """Idempotency-Key works on /push, large ones and those to everybody too, and apart from keys of channels."""
    user = somebody()
    with connect(server.ws_url(f"token={token(user)}&event=e&confirm=1"), proxy=None) as client:
        assert json.loads(client.recv(20 * SCALE)) == {"registered": "e"}

        def push(way: Worker, message: str, key: str, path: str = "/push") -> Any:
            body = {"userId": user, "event": "e", "message": message}
            return way.post(path, body, **{"Idempotency-Key": key, "Accept": "application/json"})[1]

        large = "x" * 70_000
        assert [push(way, large, "large")["sent"] for way in (here, there)] == [1, 1]
        assert [push(way, "small", "small")["sent"] for way in (there, here, there)] == [1, 1, 1]
        assert [push(way, "all", "all", "/push/all")["sent"] for way in (there, here)] == [1, 1]
        there.api("publish", channel=name(), data=0, idempotency_key="of a channel")
        assert push(there, "apart", "of a channel")["sent"] == 1
        assert [client.recv(20 * SCALE) for _ in range(4)] == [large, "small", "all", "apart"]
    for key in ("k" * 256, "\xe9"):
        assert "must be at most 255 ASCII characters" in push(there, "bad key", key)["error"]["message"]


# -- Channels ------------------------------------------------------------------------


def test_presence(join: Join, there: Worker) -> None:
    """Presence tells who is in a channel by connection, and presence_stats how many; nobody is in another."""
    channel, user = name(), somebody()
    clients = [join(user, channel), join(user, channel)]
    there_are = {each.id: {"client": each.id, "user": user} for each in clients}
    assert there.api("presence", channel=channel) == {"presence": there_are}
    assert there.api("presence_stats", channel=channel) == {"num_clients": 2, "num_users": 1}
    assert there.api("presence", channel=name()) == {"presence": {}}


def test_history(here: Worker, there: Worker) -> None:
    """History is told by limit, from a position and backwards; from a position that is gone it is error 112."""
    channel = name()
    here.publish(channel, *range(1, 6))

    def history(**more: Any) -> list[Any]:
        return [each["data"] for each in there.api("history", channel=channel, **more)["publications"]]

    place = there.api("history", channel=channel)
    epoch = place["epoch"]
    assert place == {"publications": [], "offset": 5, "epoch": epoch}
    assert history(limit=-1) == history(limit=100) == [1, 2, 3, 4, 5]
    assert history(limit=2) == [1, 2] and history(limit=2, reverse=True) == [5, 4]
    assert history(limit=2, since={"offset": 2, "epoch": epoch}) == [3, 4]
    assert history(limit=-1, since={"offset": 3, "epoch": epoch}, reverse=True) == [2, 1]
    assert there.error("history", channel=channel, since={"offset": 2, "epoch": "ff"}) == 112


def test_history_remove(there: Worker) -> None:
    """What is removed is gone, and the offsets go on."""
    channel = name()
    there.publish(channel, 1, 2)
    assert there.api("history_remove", channel=channel) == {}
    assert there.api("history", channel=channel, limit=-1)["publications"] == []
    assert there.api("publish", channel=channel, data=3)["offset"] == 3


def test_channels(join: Join, here: Worker, there: Worker) -> None:
    """Channels that somebody is in are told with their connections on all workers; `*` in a pattern is any text."""
    mark = f"mark{next(_numbers)}"
    one, two = f"room:{mark}-one", f"plain:{mark}-two"
    join(somebody(), one, two)
    with Subscriber(there, somebody(), one):

        def listed(worker: Worker, **pattern: str) -> Any:
            return worker.api("channels", **pattern)["channels"]

        mine = {one: {"num_clients": 2}, two: {"num_clients": 1}}  # a worker that is busy is not waited for
        eventually(lambda: listed(there, pattern=f"*{mark}*") == mine, what="the channels of both workers")
        eventually(lambda: listed(there).items() >= mine.items(), what="they are among all")
        eventually(lambda: set(listed(here, pattern="room:*")) & {one, two} == {one}, what="the one of the pattern")
        eventually(lambda: listed(there, pattern=two) == {two: {"num_clients": 1}}, what="the one of the name")
        assert listed(there, pattern=f"{mark}*") == {}


# -- Connections ---------------------------------------------------------------------


def test_subscribe_and_unsubscribe(join: Join, there: Worker) -> None:
    """All connections of a user are subscribed, or one of them, and unsubscribed; results say how many that were."""
    user, channel = somebody(), name()
    one, two = join(user), join(user)
    join(somebody())
    assert there.api("subscribe", user=user, channel=channel, client=one.id) == {"connections": 1}
    assert one.push("subscribe")["channel"] == channel
    assert there.api("subscribe", user=user, channel=channel) == {"connections": 2}
    assert two.push("subscribe")["channel"] == channel
    there.publish(channel, "both")
    assert one.data() == two.data() == "both"
    assert there.api("unsubscribe", user=user, channel=channel, client=two.id) == {"connections": 1}
    assert two.push("unsubscribe")["unsubscribe"]["code"] == 2000
    assert there.api("publish", channel=channel, data="one")["sent"] == 1
    assert one.data() == "one"
    assert there.api("unsubscribe", user=user, channel=channel) == {"connections": 1}
    assert there.api("subscribe", user=somebody(), channel=channel) == {"connections": 0}


def test_disconnect(join: Join, there: Worker) -> None:
    """A user's connections are closed with 3503 or with code and reason of the back-end; those in whitelist stay."""
    user = somebody()
    one, two, three = join(user), join(user), join(user)
    assert there.api("disconnect", user=user, client=one.id) == {"connections": 1}
    assert one.closed() == (3503, "force disconnect")
    ended = {"code": 4242, "reason": "as you like"}
    assert there.api("disconnect", user=user, whitelist=[three.id], disconnect=ended) == {"connections": 1}
    assert two.closed() == (4242, "as you like")
    assert there.api("disconnect", user=user, disconnect={"code": 0, "reason": ""}) == {"connections": 1}
    assert three.closed()[0] == 3503


def test_anonymous_connection(join: Join, there: Worker) -> None:
    """An anonymous connection is named by its id; without one nobody is meant."""
    one, two = join(), join()
    join(somebody())
    assert there.error("disconnect", user="") == 107
    assert there.api("disconnect", user="", client=one.id) == {"connections": 1}
    assert one.closed()[0] == 3503
    assert two.ask("rpc", method="echo", data=1) == {"data": 1}


def test_refresh(join: Join, there: Worker) -> None:
    """A refreshed connection is told when it ends now, or that it does not; an expired one is closed with 3005."""
    user = somebody()
    client = join(user)
    assert there.api("refresh", user=user, expire_at=int(time.time()) + 1000) == {"connections": 1}
    told = client.push("refresh")["refresh"]
    assert told["expires"] and 900 < told["ttl"] <= 1000
    there.api("refresh", user=user)
    assert not client.push("refresh")["refresh"].get("expires")
    assert there.api("refresh", user=user, expired=True) == {"connections": 1}
    assert client.closed() == (3005, "connection expired")
    late = join(user)
    assert there.api("refresh", user=user, expire_at=1) == {"connections": 1}
    assert late.closed()[0] == 3005


def test_connections(server: Server, join: Join, here: Worker, there: Worker) -> None:
    """The connections of a user are told from all workers, each with what it has subscribed to."""
    user, channel = somebody(), name()
    one = join(user, channel)
    with Subscriber(there, user) as two:

        def both() -> dict[str, Any] | None:
            found: dict[str, Any] = here.api("connections", user=user)["connections"]
            return found if set(found) == {one.id, two.id} else None  # a worker that is busy is not waited for

        found = eventually(both, what="both connections")
        assert found is not None
        assert found[one.id]["state"] == {"channels": {channel: {}}} and found[two.id]["state"] == {"channels": {}}
        assert {each["user"] for each in found.values()} == {user}
        assert {each["worker"] for each in found.values()} == {each["number"] for each in server.processes("worker")}
        assert {each["transport"] for each in found.values()} == {"websocket"}
    eventually(lambda: set(here.api("connections", user=user)["connections"]) == {one.id}, what="one connection")


def test_info(server: Server, join: Join, there: Worker) -> None:
    """Every worker is a node, with figures of its own."""
    client = join(somebody(), name())
    names = {f"worker-{process['number']}" for process in server.processes("worker")}
    nodes: list[dict[str, Any]] = []

    def has_all() -> bool:
        nodes[:] = there.api("info")["nodes"]
        return {node["name"] for node in nodes} == names  # a worker that is busy is not waited for

    eventually(has_all, what="both workers")
    (own,) = [node for node in nodes if client.id.startswith(node["uid"])]
    assert own["num_clients"] >= 1 and own["num_subs"] >= 1
    assert own["num_users"] >= 1 and own["num_channels"] >= 1 and own["uptime"] >= 0 and own["version"]


def test_rpc(there: Worker) -> None:
    """The handler of [client] is called with no connection; what it does not know is 404, its failure error 100."""
    assert there.api("rpc", method="echo", params={"a": [1]}) == {"data": {"a": [1]}}
    assert there.api("rpc", method="echo") == {"data": None}
    assert there.error("rpc", method="fail", params={}) == 100
    assert there.error("rpc", method="nothing") == 404


# -- Several commands ----------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
def test_batch(*, parallel: bool, join: Join, there: Worker) -> None:
    """A batch answers each command in its place; what is wrong with one is no matter for the others."""
    channel = name()
    client = join(somebody(), channel)
    commands = [
        {"publish": {"channel": channel, "data": 1}},
        {"publish": {"channel": "nowhere:1", "data": 2}},
        {"presence_stats": {"channel": channel}},
        {"publish": {"data": 3}},
        {"nothing": {}},
        {"batch": {"commands": []}},
        {},
        {"info": {}, "publish": {}},
        {"rpc": {"method": "fail"}},
        {"broadcast": {"channels": [channel], "data": 4}},
    ]
    replies = there.post("/api/batch", {"commands": commands, "parallel": parallel})[1]["replies"]
    assert replies[0]["publish"]["sent"] == 1
    assert replies[2] == {"presence_stats": {"num_clients": 1, "num_users": 1}}
    refused = [replies[place]["error"]["code"] for place in (1, 3, 4, 5, 6, 7, 8)]
    assert refused == [102, 107, 104, 104, 107, 107, 100]
    assert [client.data(), client.data()] == [1, 4]


def test_older_form(join: Join, there: Worker, server: Server) -> None:
    """POST /api takes commands one a line and answers each with its id; where a line is none nothing is done."""
    channel = name()
    client = join(somebody(), channel)
    one = {"id": 7, "method": "publish", "params": {"channel": channel, "data": 1}}
    lines = [one, {"method": "presence_stats", "params": {"channel": channel}}, {"id": 8, "method": "nothing"}]
    body = "\n".join(map(json.dumps, lines)).encode()
    status, _, reply = server.request("POST", "/api", body, {"X-API-Key": KEY})
    first, second, third = map(json.loads, reply.splitlines())
    assert status == 200 and first["id"] == 7 and first["result"]["sent"] == 1
    assert second == {"result": {"num_clients": 1, "num_users": 1}}
    assert third["id"] == 8 and third["error"]["code"] == 104
    error = post(server, "/api", body + b"\n{")[1]["error"]
    assert error["code"] == 107 and error["message"].startswith("line 4: body is not JSON")
    there.publish(channel, 2)
    assert [client.data(), client.data()] == [1, 2]


# -- Bad input -----------------------------------------------------------------------

BAD: list[tuple[str, Any, int, str]] = [
    ("publish", b"", 107, "it ends too early"),
    ("publish", b"{", 107, "it ends too early"),
    ("publish", b"nonsense", 107, "body is not JSON: invalid character at byte 5"),
    ("publish", b'{"channel":"plain:1","data":"\xff"}', 107, "not UTF-8 at byte 30"),
    ("publish", b'{"channel":"plain:1","data":"\\ud800"}', 107, "half of a surrogate pair"),
    ("publish", b'{"channel":"plain:1","data":01}', 107, "invalid number at byte 30"),
    ("publish", b'{"channel":"plain:1","data":' + b"[" * 5000 + b"]" * 5000 + b"}", 107, "nested too deeply"),
    ("publish", [], 107, "body must be an object, found an array"),
    ("publish", {"data": 1}, 107, "channel is missing"),
    ("publish", {"channel": "plain:1"}, 107, "data is missing"),
    ("publish", {"channel": 7, "data": 1}, 107, "channel must be a string, found a whole number"),
    ("publish", {"channel": None, "data": 1}, 107, "channel must be a string, found null"),
    ("publish", {"channel": "", "data": 1}, 107, "the channel's name is empty"),
    ("publish", {"channel": "room:" + "x" * 251, "data": 1}, 107, "more than 255 bytes"),
    ("publish", {"channel": "room:\n", "data": 1}, 107, "control character"),
    ("publish", {"channel": "/chat", "data": 1}, 107, "starts with a slash"),
    ("publish", {"channel": "nowhere:1", "data": 1}, 102, "unknown channel"),
    ("publish", {"channel": "nowhere", "data": 1}, 102, "unknown channel"),
    ("publish", {"channel": "plain:1", "data": 1, "tags": {"a": 1}}, 107, "must be a string, found a whole number"),
    ("publish", {"channel": "plain:1", "data": 1, "tags": []}, 107, "tags must be an object, found an array"),
    ("publish", {"channel": "plain:1", "data": 1, "exclude": 1}, 107, "exclude must be a string"),
    ("publish", {"channel": "plain:1", "data": 1, "idempotency_key": "é" * 128}, 107, "has 256 bytes, at most 255"),
    ("publish", {"channel": "plain:1", "data": 1, "skip_history": 1}, 107, "skip_history must be true or false"),
    ("publish", {"channel": "plain:1", "data": 1, "skip_history": True}, 108, "skip_history is not available"),
    ("publish", {"channel": "plain:1", "b64data": "MQ==", "data": 1}, 108, "b64data is not available"),
    ("publish", {"channel": "plain:1", "data": 1, "version": 7}, 108, "version is not available"),
    ("broadcast", {"channels": "plain:1", "data": 1}, 107, "channels must be an array, found a string"),
    ("broadcast", {"channels": ["plain:1", 2], "data": 1}, 107, "must be a string, found a whole number"),
    ("broadcast", {"channels": [], "data": 1}, 107, "channels must be 1 to 20 ([limits] push_users), found 0"),
    ("broadcast", {"channels": ["plain:1"] * 21, "data": 1}, 107, "([limits] push_users), found 21"),
    ("broadcast", {"channels": ["plain:1"]}, 107, "data is missing"),
    ("subscribe", {"channel": "plain:1"}, 107, "user is missing"),
    ("subscribe", {"user": "u", "channel": "nowhere:1"}, 102, "unknown channel"),
    ("subscribe", {"user": "u", "channel": "plain:1", "session": "s"}, 108, "session is not available"),
    ("subscribe", {"user": "u", "channel": "plain:1", "info": {"a": 1}}, 108, "info is not available"),
    ("unsubscribe", {"user": "u", "channel": ""}, 107, "the channel's name is empty"),
    ("disconnect", {"user": ""}, 107, "user is empty"),
    ("disconnect", {"user": "u", "disconnect": {"code": 1000}}, 107, "must be from 3000 to 4999, found 1000"),
    ("disconnect", {"user": "u", "disconnect": {"code": 3500, "reason": "x" * 124}}, 107, "124 bytes, at most 123"),
    ("disconnect", {"user": "u", "whitelist": "all"}, 107, "whitelist must be an array, found a string"),
    ("refresh", {"user": "u", "expire_at": "now"}, 107, "expire_at must be a whole number, found a string"),
    ("refresh", {"user": "u", "expire_at": 2**64}, 107, "expire_at must be from 0 to 9007199254740991, found 1844"),
    ("presence", {"channel": "plain:1"}, 108, "the channel's namespace has no presence"),
    ("presence_stats", {"channel": "plain:1"}, 108, "the channel's namespace has no presence"),
    ("history", {"channel": "plain:1"}, 108, "the channel's namespace has no history_messages"),
    ("history", {"channel": "room:1", "limit": 1.5}, 107, "limit must be a whole number, found a number"),
    ("history", {"channel": "room:1", "since": {"offset": -1}}, 107, "since.offset must be from 0 to"),
    ("history", {"channel": "room:1", "since": {"offset": 2**64}}, 107, "since.offset must be from 0 to"),
    ("history", {"channel": "room:1", "since": {"epoch": 1}}, 107, "since.epoch must be a string"),
    ("history_remove", {"channel": "plain:1"}, 108, "the channel's namespace has no history_messages"),
    ("channels", {"pattern": 1}, 107, "pattern must be a string"),
    ("connections", {"user": ""}, 107, "user is empty"),
    ("connections", {"user": "u", "expression": "x"}, 108, "expression is not available"),
    ("rpc", {"params": {}}, 107, "method is missing"),
    ("rpc", {"method": ""}, 107, "method is empty"),
    ("batch", {"commands": {}}, 107, "commands must be an array, found an object"),
    ("batch", {"commands": [1]}, 107, "must be an object, found a whole number"),
    ("batch", {"commands": []}, 107, "commands must be 1 to 20 ([limits] push_users), found 0"),
    ("batch", {"commands": [{"info": {}}] * 21}, 107, "([limits] push_users), found 21"),
    ("nothing", {}, 104, "method not found: there are publish, "),
]


@pytest.mark.parametrize(("method", "body", "code", "reason"), BAD)
def test_bad_input(server: Server, method: str, body: Any, code: int, reason: str) -> None:
    """What is wrong is answered with its code and a text that names the field, what was found and what is allowed."""
    status, reply = post(server, f"/api/{method}", body)
    assert status == 200
    assert reply["error"]["code"] == code and reason in reply["error"]["message"], reply


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}], ids=["lean", "aiohttp"])
def test_refused_requests(server: Server, headers: dict[str, str]) -> None:
    """Keys, methods, bodies and data that are not allowed get an HTTP status, with and without aiohttp, always JSON."""
    good = {"channel": "plain:1", "data": 1}
    for key in ({}, {"X-API-Key": "wrong"}, {"Authorization": "apikey wrong"}, {"Authorization": f"Basic {KEY}"}):
        status, got, reply = server.request("POST", "/api/publish", good, {**key, **headers})
        assert status == 401 and json.loads(reply)["error"]["code"] == "unauthorized"
    for key in ({"Authorization": f"Bearer {KEY}"}, {"Authorization": f"apikey {KEY}"}, {"X-API-Key": KEY}):
        assert server.request("POST", "/api/publish", good, {**key, **headers})[0] == 200
    status, got, _ = server.request("GET", "/api/publish", None, {"X-API-Key": KEY, **headers})
    assert status == 405 and got["allow"] == "POST"
    assert post(server, "/api/publish", b" " * 100_001, **headers)[0] == 413
    assert post(server, "/api/publish", good, **headers)[1] == {"result": {"sent": 0}}


def test_pipelined_requests(server: Server) -> None:
    """Publications pipelined on one connection, mixed with other calls, are answered in their order; then it ends."""
    channel = name()
    bodies = [
        ("publish", {"channel": channel, "data": "x" * number}) if number % 7 else ("history", {"channel": channel})
        for number in range(100)
    ]
    stream = b"".join(
        b"POST /api/%b HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: %b\r\nContent-Length: %d\r\n%b\r\n%b"
        % (method.encode(), KEY.encode(), len(text), b"Connection: close\r\n" if last else b"", text)
        for (method, body), last in zip(bodies, [*[False] * 99, True], strict=True)
        for text in [json.dumps(body).encode()]
    )
    with server.raw() as connection:
        for start in range(0, len(stream), 333):
            connection.sendall(stream[start : start + 333])
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    heads = reply.count(b"HTTP/1.1 200 OK\r\n")
    offsets = [int(match) for match in re.findall(rb'"offset":([0-9]+)', reply)]
    expected, published = [], 0
    for method, _ in bodies:
        published += method == "publish"
        expected.append(published)
    assert heads == 100 and offsets == expected


def test_errors_as_http_statuses(server: Server) -> None:
    """With X-Centrifugo-Error-Mode: transport errors are HTTP statuses, and the body is the error alone."""
    bodies = {
        404: ("publish", {"channel": "nowhere:1", "data": 1}),
        400: ("publish", {"channel": "plain:1"}),
        416: ("history", {"channel": "room:1", "since": {"offset": 0, "epoch": "ff"}}),
    }
    for status, (method, body) in bodies.items():
        got, reply = post(server, f"/api/{method}", body, **{"X-Centrifugo-Error-Mode": "transport"})
        assert got == status and set(reply) == {"code", "message"}
    assert post(server, "/api/rpc", {"method": "fail"}, **{"X-Centrifugo-Error-Mode": "transport"})[0] == 500


def test_data_larger_than_a_send_queue(serve: Callable[..., Server]) -> None:
    """Data that no send queue holds is refused with 413 alone, and with error 107 among others."""
    server = serve(workers=1, sections=sections(limits={"send_queue_bytes": 65536}, **NAMESPACES))
    large = {"channel": "plain:1", "data": "x" * 70_000}
    status, reply = post(server, "/api/publish", large)
    assert status == 413 and "send_queue_bytes" in reply["error"]["message"]
    (reply,) = post(server, "/api/batch", {"commands": [{"publish": large}]})[1]["replies"]
    assert reply["error"]["code"] == 107
    (reply,) = post(server, "/api/broadcast", {"channels": ["plain:1"], "data": large})[1]["result"]["responses"]
    assert reply["error"]["code"] == 107


def test_broadcast_of_more_than_the_bus_holds(serve: Callable[..., Server]) -> None:
    """A broadcast of 12 MB, and the bus queue holds 8 MB: every channel gets it."""
    server = serve(workers=1, sections=sections(**NAMESPACES))
    channels = [f"plain:{number}" for number in range(30)]
    _, reply = post(server, "/api/broadcast", {"channels": channels, "data": "x" * 400_000})
    assert reply["result"]["responses"] == [{"result": {"sent": 0}}] * 30


def test_no_broker(serve: Callable[..., Server]) -> None:
    """While the broker does not answer a publish is 504, while there is none 503; then it works again."""
    server = serve(workers=1, sections=sections(bus={"confirm_ms": 1000}, **NAMESPACES))
    good = {"channel": "plain:1", "data": 1}
    (broker,) = server.processes("broker")
    psutil.Process(broker["pid"]).send_signal(signal.SIGSTOP)
    statuses = [post(server, "/api/publish", good)[0]]
    psutil.Process(broker["pid"]).kill()
    statuses += [post(server, "/api/publish", good)[0] for _ in range(20)]
    assert statuses[0] == 504 and set(statuses[1:]) <= {200, 503, 504}
    eventually(lambda: post(server, "/api/publish", good)[0] == 200, what="a new broker")


# -- Configuration -------------------------------------------------------------------


def test_reload(serve: Callable[..., Server]) -> None:
    """A reload replaces namespaces, limits and keys of the API."""
    server = serve(workers=1, sections=sections(**NAMESPACES))
    good = {"channel": "late:1", "data": 1}
    assert post(server, "/api/publish", good)[1]["error"]["code"] == 102
    changed = sections(limits={"push_users": 1}, **NAMESPACES, **{"channels.late": {}})
    changed["push"] = {"auth": "keys", "keys": [KEY, "another-key-of-16-characters"]}
    server.write_config(1, changed)
    server.signal(signal.SIGHUP)
    eventually(lambda: server.events("reloaded"), what="reloaded")
    assert post(server, "/api/publish", good)[1] == {"result": {"sent": 0}}
    assert post(server, "/api/broadcast", {"channels": ["late:1"] * 2, "data": 1})[1]["error"]["code"] == 107
    status, _, _ = server.request("POST", "/api/info", {}, {"Authorization": "Bearer another-key-of-16-characters"})
    assert status == 200


def test_own_address(serve: Callable[..., Server]) -> None:
    """With [api] listen the API is served there alone."""
    server = serve(workers=1, sections=sections(api={"listen": "127.0.0.1:0"}, **NAMESPACES))
    good = {"channel": "plain:1", "data": 1}
    addresses = [int(event["address"].rpartition(":")[2]) for event in server.events("listening")]
    found = []
    for server.port in addresses:
        found.append([post(server, f"/api{path}", good)[0] for path in ("", "/publish", "/info")])
    assert sorted(found) == [[200, 200, 200], [404, 404, 404]]
