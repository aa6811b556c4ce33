"""What back-ends see: /push, /push/all, /drop and the plain paths of a running server."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.applications import open_client, workers
from tests.server import Server, eventually
from tests.wire import Reply, Wire, ask, chunked, push, request

JSON = "Accept: application/json"
BODY = {"userId": "jack", "event": "topic1", "message": "hello"}
TAKING_PATHS = ("/push", "/push/all", "/drop")
MOST = 1048576  # [limits] push_body_bytes and send_queue_bytes by default


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key for pushes."""
    sections = {"push": {"auth": "keys", "keys": ["0123456789abcdef-good"]}}
    running = Server(tmp_path_factory.mktemp("keyed"), workers=1, sections=sections)
    yield running
    running.stop()


def post(server: Server, body: Any, *headers: str, path: str = "/push") -> Reply:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ask(server, request("POST", path, *headers, body=data))


def register(server: Server, user: str, *events: str, worker: int | None = None) -> ClientConnection:
    query = "&".join((f"token={user}", *(f"event={event}" for event in events)))
    return open_client(server, "/ws", query, worker=worker, compression=None)


@pytest.mark.parametrize("path", TAKING_PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_anything_but_post_is_405(server: Server, method: str, path: str) -> None:
    """S0-18: any method but POST is answered 405 with Allow: POST and an empty body."""
    reply = ask(server, request(method, path, body=b"{}" if method == "PUT" else None))
    assert (reply.status, reply.header("allow"), reply.body) == (405, "POST", b"")


def test_method_is_checked_before_the_key(keyed: Server) -> None:
    """S0-20: a wrong method is 405 even without a key."""
    assert ask(keyed, request("GET", "/push")).status == 405


@pytest.mark.parametrize("path", TAKING_PATHS)
def test_key_is_checked_before_the_body(keyed: Server, path: str) -> None:
    """S0-19, S0-20: without a key the answer is 401, whatever the body is."""
    for body in (b"not json", b"", json.dumps(BODY).encode(), b"x" * (MOST + 1)):
        reply = post(keyed, body, path=path)
        assert (reply.status, reply.body, reply.header("www-authenticate")) == (401, b"unauthorized", "Bearer")


def test_json_is_checked_before_the_fields(keyed: Server) -> None:
    """S0-20, S0-22: with a key, a body that is no JSON is 400; then fields are looked at."""
    key = "X-API-Key: 0123456789abcdef-good"
    assert "not JSON" in (post(keyed, b"{", key).header("x-fastpush-error") or "")
    assert post(keyed, {"userId": ""}, key).header("x-fastpush-error") == "userId is empty"
    assert post(keyed, BODY, key).body == b"message sent to 0 clients"


@pytest.mark.parametrize("headers", [(), ("Content-Encoding: identity",)], ids=["lean", "aiohttp"])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "body is not JSON"),
        (b"{", "body is not JSON"),
        (b"userId=jack", "body is not JSON"),
        (b'{"userId":"\xff","event":"e","message":"m"}', "body is not JSON"),
        (b'{"userId":"\\ud800","event":"e","message":"m"}', "body is not JSON"),
        (b"[]", "body must be a JSON object, found array"),
        (b'"text"', "body must be a JSON object, found string"),
        (b"null", "body must be a JSON object, found null"),
        ({}, "userId is missing"),
        (BODY | {"userId": ""}, "userId is empty"),
        (BODY | {"userId": 42}, "userId must be a string, found number 42"),
        (BODY | {"userId": None}, "userId must be a string, found null"),
        (BODY | {"userId": []}, "userId is an empty list"),
        (BODY | {"userId": ["a", 1]}, "userId[1] must be a string … found number 1"),
        (BODY | {"userId": ["a", ""]}, "userId[1] … empty"),
        (BODY | {"userId": "u" * 513}, "userId … longer than 512 bytes"),
        (BODY | {"event": ""}, "event is empty"),
        (BODY | {"event": ["e"]}, "event must be a string, found array"),
        (BODY | {"event": "é" * 257}, "event … longer than 512 bytes"),
        (BODY | {"message": ""}, "message is empty"),
        (BODY | {"message": {"a": 1}}, "message must be a string, found object"),
        (BODY | {"message": True}, "message must be a string, found boolean true"),
        ({"userId": "jack", "event": "e"}, "message is missing"),
    ],
)
def test_bad_push_is_400_with_the_reason(server: Server, body: Any, reason: str, headers: tuple[str, ...]) -> None:
    """S0-21, S0-22, S0-23: what is no push is 400 `request data illegal`; header and JSON form name fault and find."""
    reply = post(server, body, *headers)
    assert (reply.status, reply.body) == (400, b"request data illegal")
    assert all(part in (reply.header("x-fastpush-error") or "") for part in reason.split(" … "))
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    error = post(server, body, JSON, *headers).json()["error"]
    assert error["code"] == "illegal_request"
    assert all(part in error["message"] for part in reason.split(" … "))


def test_push_without_a_body_is_400(server: Server) -> None:
    """S0-22: a POST without Content-Length has an empty body."""
    assert ask(server, request("POST", "/push")).body == b"request data illegal"


def test_reply_says_how_many(server: Server) -> None:
    """S0-25, S0-26, S0-27: 200 and N for the connections reached, 0 for a user who is offline."""
    with register(server, "counted", "e"), register(server, "counted", "e"), register(server, "counted", "other"):
        reply = post(server, {"userId": "counted", "event": "e", "message": "m"})
        assert (reply.status, reply.body) == (200, b"message sent to 2 clients")
        assert post(server, {"userId": "counted", "event": "e", "message": "m"}, JSON).json() == {"sent": 2}
    assert server.push("nobody", "e", "m") == {"status": 200, "sent": 0}


def test_only_same_user_and_event_receive(server: Server) -> None:
    """S0-28: another user's and another event's connections get nothing."""
    with register(server, "u", "e") as mine, register(server, "u", "f") as other, register(server, "v", "e") as foreign:
        assert server.push("u", "e", "for u and e")["sent"] == 1
        assert server.push("u", "f", "end")["sent"] == server.push("v", "e", "end")["sent"] == 1
        assert mine.recv(timeout=20) == "for u and e"
        assert other.recv(timeout=20) == foreign.recv(timeout=20) == "end"


def test_list_of_users_counts_each_connection_once(server: Server) -> None:
    """S0-26, S0-28: userId may be a list; users named twice and connections of several keys count once."""
    with register(server, "one", "e") as one, register(server, "two", "e") as two:
        assert server.push(["one", "two", "one", "absent"], "e", "both") == {"status": 200, "sent": 2}
        assert server.push("one", "e", "next")["sent"] == server.push("two", "e", "next")["sent"] == 1
        for connection in (one, two):
            assert [connection.recv(timeout=20) for _ in range(2)] == ["both", "next"]


def test_unknown_fields_are_ignored(server: Server) -> None:
    """S0-21: more fields than the three do no harm."""
    assert post(server, BODY | {"ttl": 5}).status == 200


@pytest.mark.parametrize("path", ["/push", "/push/all"])
def test_too_large_is_refused_by_its_length(server: Server, path: str) -> None:
    """A body larger than push_body_bytes is 413 by its Content-Length: nothing of it has to be sent."""
    with Wire(server) as wire:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MOST + 1}\r\n\r\n"
        reply = wire.send(head.encode()).reply()
        assert reply.status == 413 and b"1048576 bytes ([limits] push_body_bytes)" in reply.body
        assert reply.closes


def test_too_large_is_refused_although_it_is_sent(server: Server) -> None:
    """A client that sends a body of 4 MB at once can read the 413."""
    with Wire(server) as wire, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(wire.socket.sendall, request("POST", "/push", body=b"x" * 4 * MOST))
        assert wire.reply().status == 413
        assert wire.is_ended()
        assert sending.exception() is None or isinstance(sending.exception(), OSError)


def test_chunked_too_large_is_refused(server: Server) -> None:
    """A chunked body is 413 once it is larger than push_body_bytes, and the connection ends."""
    with Wire(server) as wire, ThreadPoolExecutor(1) as pool:
        head = request("POST", "/push", "Transfer-Encoding: chunked")
        sending = pool.submit(wire.socket.sendall, head + chunked(b"x" * 4 * MOST, size=65536))
        reply = wire.reply()
        assert reply.status == 413 and reply.closes
        assert wire.is_ended()
        assert sending.exception() is None or isinstance(sending.exception(), OSError)


def test_largest_body_is_taken(server: Server) -> None:
    """A body of exactly push_body_bytes is read, chunked or not, and judged by its content."""
    body = json.dumps(BODY).encode().ljust(MOST)
    assert post(server, body).body == b"message sent to 0 clients"
    head = request("POST", "/push", "Transfer-Encoding: chunked")
    assert ask(server, head + chunked(body, size=50000)).body == b"message sent to 0 clients"


@pytest.mark.parametrize("path", ["/push", "/push/all"])
def test_message_larger_than_a_send_queue_is_413(serve: Callable[..., Server], path: str) -> None:
    """A message that no send queue could hold is 413 naming the key, for everybody the same."""
    server = serve(workers=1, sections={"limits": {"send_queue_bytes": 10000}})
    reply = post(server, BODY | {"message": "m" * 10000}, JSON, path=path)
    assert reply.status == 413 and reply.json()["error"]["code"] == "too_large"
    assert "send_queue_bytes = 10000" in reply.json()["error"]["message"]
    with register(server, "jack", "topic1") as connection:
        assert server.push("jack", "topic1", "m" * 9900)["sent"] == 1
        assert connection.recv(timeout=20) == "m" * 9900


def test_push_to_everybody(serve: Callable[..., Server]) -> None:
    """POST /push/all reaches every registered connection of every worker once, and none that has not registered."""
    server = serve(workers=2)
    first, second = workers(server)
    with (
        register(server, "a", "e", "f", worker=first) as several,
        register(server, "b", "e", worker=second) as other,
        connect(server.ws_url(), compression=None) as silent,
    ):
        body = {"event": "news", "message": "to all"}
        assert post(server, body, path="/push/all").body == b"message sent to 2 clients"
        assert post(server, body, JSON, path="/push/all").json() == {"sent": 2}
        for connection in (several, other):
            assert [connection.recv(timeout=20) for _ in range(2)] == ["to all", "to all"]
        silent.send('{"token":"c","event":"e"}')
        eventually(lambda: server.push("c", "e", "first")["sent"] == 1)
        assert silent.recv(timeout=20) == "first"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"message": "m"}, "event is missing"),
        ({"event": "e"}, "message is missing"),
        ({"event": "e", "message": 1}, "message must be a string, found number 1"),
        ([], "body must be a JSON object, found array"),
    ],
)
def test_bad_push_to_everybody(server: Server, body: Any, reason: str) -> None:
    """S0-22, S0-23: /push/all wants event and message, with the same errors as /push."""
    reply = post(server, body, path="/push/all")
    assert (reply.status, reply.body, reply.header("x-fastpush-error")) == (400, b"request data illegal", reason)


def closed_with(connection: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed):
        connection.recv(timeout=20)
    return connection.close_code or 0


def test_drop_closes_an_events_connections(server: Server) -> None:
    """S0-37: POST /drop closes the user's connections of the event with 1008 and returns how many."""
    with (
        register(server, "d", "e") as first,
        register(server, "d", "e", "f") as second,
        register(server, "d", "g") as g,
    ):
        assert post(server, {"userId": "d", "event": "e"}, JSON, path="/drop").json() == {"sent": 2}
        assert closed_with(first) == closed_with(second) == 1008
        assert server.push("d", "g", "still here")["sent"] == 1
        assert g.recv(timeout=20) == "still here"


@pytest.mark.parametrize("event", [{}, {"event": ""}, {"event": None}], ids=["missing", "empty", "null"])
def test_drop_without_event_closes_all(server: Server, event: dict[str, Any]) -> None:
    """S0-37: without an event, or with an empty one, all connections of the user are closed, on every worker."""
    one, two = workers(server)
    with (
        register(server, "d", "e", worker=one) as first,
        register(server, "d", "g", worker=two) as second,
        register(server, "x", "e") as other,
    ):
        assert post(server, {"userId": "d"} | event, JSON, path="/drop").json() == {"sent": 2}
        assert closed_with(first) == closed_with(second) == 1008
        assert server.push("x", "e", "unharmed")["sent"] == 1
        assert other.recv(timeout=20) == "unharmed"
    assert post(server, {"userId": "d"}, JSON, path="/drop").json() == {"sent": 0}


def test_bad_drop_is_400(server: Server) -> None:
    """S0-22, S0-23: /drop wants a userId, with the same errors as /push."""
    for body, reason in (({}, "userId is missing"), ({"userId": 1}, "userId must be a string, found number 1")):
        reply = post(server, body, path="/drop")
        assert (reply.status, reply.header("x-fastpush-error")) == (400, reason)


def test_health_answers_get_and_head(server: Server) -> None:
    """GET /health is 200 with JSON; HEAD has the same headers and no body; POST is 405 with Allow."""
    reply = ask(server, request("GET", "/health"))
    assert reply.status == 200 and reply.json()["status"] == "ok"
    head = ask(server, request("HEAD", "/health"))
    assert head.status == 200 and head.header("content-length") == str(len(reply.body))
    refused = ask(server, request("POST", "/health", body=b"{}"))
    assert (refused.status, refused.header("allow"), refused.body) == (405, "GET, HEAD", b"")


@pytest.mark.parametrize(
    "path", ["/nowhere", "/push/", "/push/all/", "//push", "/ws/", "/pushx", "/%0a", "/a%2fb", "/."]
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT"])
def test_unknown_path_is_404_json(server: Server, method: str, path: str) -> None:
    """A path that is not served is 404 with a JSON error, whatever the method and Accept are."""
    reply = ask(server, request(method, path, "Accept: text/html", body=b"{}" if method == "POST" else None))
    assert reply.status == 404 and reply.header("content-type") == "application/json"
    if method != "HEAD":
        assert reply.json()["error"]["code"] == "not_found"


def test_paths_are_configurable(serve: Callable[..., Server]) -> None:
    """S0-02: push, drop and WebSocket paths are what the configuration says; the usual ones are 404 then."""
    paths = {"websocket_path": "/live", "push_path": "/back/send", "drop_path": "/back/kick"}
    server = serve(workers=1, sections={"server": paths})
    with connect(server.ws_url("token=jack&event=topic1", path="/live"), compression=None) as connection:
        assert post(server, BODY, path="/back/send").body == b"message sent to 1 clients"
        assert post(server, BODY, path="/back/send/all").body == b"message sent to 1 clients"
        assert [connection.recv(timeout=20) for _ in range(2)] == ["hello", "hello"]
        assert post(server, {"userId": "jack"}, JSON, path="/back/kick").json() == {"sent": 1}
    for path in (*TAKING_PATHS, "/ws"):
        assert post(server, BODY, path=path).status == 404


def test_replies_carry_each_header_once(server: Server) -> None:
    """Every reply has one Date and one Content-Length, and Connection: close only where the connection ends."""
    requests = [
        (push("a", "e", "m"), 200),
        (push("a", "e", "m", JSON), 200),
        (push("", "e", "m"), 400),
        (request("GET", "/health"), 200),
        (request("GET", "/metrics"), 200),
        (request("GET", "/nowhere"), 404),
        (request("GET", "/push"), 405),
        (push("a", "e", "m", "Content-Encoding: identity"), 200),
    ]
    with Wire(server) as wire:
        for data, status in requests:
            reply = wire.send(data).reply()
            assert reply.status == status and len(reply.all("date")) == len(reply.all("content-length")) == 1
            assert reply.all("connection") == [] and reply.all("transfer-encoding") == []
            assert (reply.header("date") or "").endswith(" GMT")
    for data, status in requests:
        with Wire(server) as wire:
            reply = wire.send(data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)).reply()
            assert reply.status == status and reply.all("connection") == ["close"]
            assert len(reply.all("date")) == len(reply.all("content-length")) == 1
            assert wire.is_ended()


@pytest.mark.parametrize("evil", ["\r\nX-Evil: 1", "\n", "\x1b[31m", "é", "\x00", "\u2028", "\x7f"])
def test_reasons_cannot_inject_headers(server: Server, evil: str) -> None:
    """A client's text in X-Fastpush-Error is one line of printable ASCII."""
    query = f"token=a&event=e&envelope={evil.encode().hex(' ').replace(' ', '%').join(('%', ''))}"
    with Wire(server) as wire:
        upgrade_lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        reply = wire.send(request("GET", f"/ws?{query}", *upgrade_lines, key)).reply()
    assert reply.status == 400 and reply.header("x-evil") is None
    assert all(" " <= character <= "~" for character in reply.header("x-fastpush-error") or "\n")
    reply = post(server, BODY | {"userId": [evil, 1]}, JSON)
    assert reply.status == 400 and reply.header("x-evil") is None
    reply = ask(server, request("GET", "/" + evil.encode().hex(" ").replace(" ", "%").join(("%", ""))))
    assert reply.status == 404 and reply.header("x-evil") is None
    assert all(" " <= character <= "~" for character in reply.header("x-fastpush-error") or "\n")
