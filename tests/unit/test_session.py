"""fastpush.channels.session: what a client may say when, and what comes of it."""

import json
import sys
from typing import Any

import pytest

from fastpush.channels.session import TABLE, Bounds, Disconnect, Outcome, Session, State
from fastpush.protocol import client
from fastpush.protocol.client import (
    Connect,
    ConnectResult,
    DisconnectCode,
    ErrorCode,
    Publish,
    Request,
    Rpc,
    Send,
    SubRefresh,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
)

CONNECT = '{"id":1,"connect":{}}'
BAD = Disconnect(3501, "bad request")
COMMANDS = {
    "connect": {},
    "subscribe": {"channel": "a"},
    "unsubscribe": {"channel": "a"},
    "publish": {"channel": "a", "data": 1},
    "presence": {"channel": "a"},
    "presence_stats": {"channel": "a"},
    "history": {"channel": "a"},
    "rpc": {},
    "send": {},
    "refresh": {"token": "t"},
    "sub_refresh": {"channel": "a", "token": "t"},
}


def command(method: str, number: int = 7, **body: Any) -> str:
    return json.dumps({"id": number, method: body})


def perform(session: Session, request: Request) -> bool:
    """Answer a request as an owner does that allows everything."""
    if isinstance(request, Connect):
        return session.connected(request, ConnectResult("c"))
    if isinstance(request, Subscribe):
        return session.subscribed(request, SubscribeResult())
    if isinstance(request, Unsubscribe):
        return session.unsubscribed(request)
    return session.answered(request)


def feed(session: Session, frame: str | bytes) -> list[Request]:
    """Feed a frame, answer each request before the next one is read, and return all of them."""
    requests = []
    for request in session.feed(frame):
        requests.append(request)
        perform(session, request)
    return requests


def taken(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in session.take().splitlines()]


def connected(channels: int = 8, *subscriptions: str) -> Session:
    """A session that is connected and subscribed, with nothing in its out-box."""
    session = Session(Bounds(channels))
    feed(session, CONNECT)
    for channel in subscriptions:
        feed(session, command("subscribe", channel=channel))
    session.take()
    return session


def asked(session: Session, frame: str) -> Request:
    """Feed a frame with one command and return its request, unanswered."""
    (request,) = session.feed(frame)
    return request


def error(number: int, code: ErrorCode, message: str = "") -> dict[str, Any]:
    return json.loads(client.error_reply(number, code, message))


def test_connect() -> None:
    """The first command makes a request; its answer is the reply, and the session is connected."""
    session = Session(Bounds(8))
    assert session.state is State.NEW and session.take() == b""
    request = asked(session, '{"id":3,"connect":{"token":"t"}}')
    assert request == Connect(3, "t") and session.state is State.CONNECTING
    assert isinstance(request, Connect)
    assert session.connected(request, ConnectResult("c", ping=25, pong=True))
    assert session.state is State.CONNECTED
    assert session.take() == b'{"id":3,"connect":{"client":"c","ping":25,"pong":true}}'
    assert not session.connected(request, ConnectResult("c")) and session.take() == b"", "answered once"


@pytest.mark.parametrize("method", [*COMMANDS, "pong"])
def test_before_connect(method: str) -> None:
    """What comes before connect, or while it is not answered, ends the session; after its refusal nothing is read."""
    frame = "{}" if method == "pong" else command(method, **COMMANDS[method])
    session = Session(Bounds(8))
    if method != "connect":
        assert feed(session, frame) == [] and session.disconnect == BAD
    session = Session(Bounds(8))
    asked(session, CONNECT)
    assert feed(session, frame) == [] and session.disconnect == BAD
    session = Session(Bounds(8))
    session.refused(asked(session, CONNECT), ErrorCode.TOKEN_EXPIRED)
    assert session.state is State.REFUSED
    assert feed(session, frame) == [] and session.disconnect is None, "the client is to see the error, and closes"
    assert taken(session) == [error(1, ErrorCode.TOKEN_EXPIRED)]


@pytest.mark.parametrize("method", [*COMMANDS, "pong"])
def test_after_the_end(method: str) -> None:
    """After the end nothing is read and nothing is written."""
    session = connected(8, "a")
    session.ended(DisconnectCode.SLOW)
    assert feed(session, "{}" if method == "pong" else command(method, **COMMANDS[method])) == []
    session.ended(DisconnectCode.SHUTDOWN)
    assert session.disconnect == Disconnect(3008, "slow") and session.take() == b""
    assert list(session.subscriptions) == ["a"], "the owner still has to leave it"


def test_second_connect() -> None:
    """A second connect ends the session."""
    session = connected()
    assert feed(session, CONNECT) == [] and session.disconnect == BAD and session.take() == b""


def test_subscribe_and_unsubscribe() -> None:
    """A subscription is on its way until it is answered, there until the client leaves."""
    session = connected()
    request = asked(session, command("subscribe", channel="chat:42"))
    assert session.subscriptions["chat:42"].state is State.SUBSCRIBING
    assert isinstance(request, Subscribe)
    assert session.subscribed(request, SubscribeResult(offset=3, epoch="e"), expires_at=5.0, flags=2)
    subscription = session.subscriptions["chat:42"]
    assert subscription.state is State.SUBSCRIBED and not subscription.is_server_side
    assert (subscription.expires_at, subscription.flags) == (5.0, 2)
    assert taken(session) == [{"id": 7, "subscribe": {"offset": 3, "epoch": "e"}}]
    assert not session.subscribed(request, SubscribeResult()), "answered once"
    assert feed(session, command("unsubscribe", 8, channel="chat:42")) == [Unsubscribe(8, "chat:42")]
    assert taken(session) == [{"id": 8, "unsubscribe": {}}] and session.subscriptions == {}


def test_refused_subscription() -> None:
    """An error frees the place in the channel; the session goes on."""
    session = connected()
    request = asked(session, command("subscribe", channel="a"))
    assert session.refused(request, ErrorCode.PERMISSION_DENIED, "not yours")
    assert not session.refused(request, ErrorCode.INTERNAL), "answered once"
    assert session.subscriptions == {} and session.disconnect is None
    assert taken(session) == [error(7, ErrorCode.PERMISSION_DENIED, "not yours")]
    assert len(feed(session, command("subscribe", channel="a"))) == 1


def test_double_subscribe() -> None:
    """Who is in a channel, or on the way, by whatever side, gets error 105."""
    session = connected(8, "a")
    session.subscribe("b", SubscribeResult())
    asked(session, command("subscribe", 1, channel="c"))
    session.take()
    for number, channel in enumerate("abc", 1):
        assert feed(session, command("subscribe", number, channel=channel)) == []
    assert taken(session) == [error(number, ErrorCode.ALREADY_SUBSCRIBED) for number in (1, 2, 3)]


def test_unsubscribe_from_nothing() -> None:
    """Leaving what one is not in succeeds, whatever the name."""
    session = connected()
    for channel in ("a", "x" * 1_000_000, "\x00"):
        assert feed(session, command("unsubscribe", channel=channel)) == []
        assert taken(session) == [{"id": 7, "unsubscribe": {}}]


def test_unsubscribe_overtakes() -> None:
    """An unsubscribe that is performed while the subscribe is not answered refuses that one."""
    session = connected()
    late = asked(session, command("subscribe", 5, channel="a"))
    assert isinstance(late, Subscribe)
    assert len(feed(session, command("unsubscribe", 6, channel="a"))) == 1
    assert taken(session) == [error(5, ErrorCode.PERMISSION_DENIED), {"id": 6, "unsubscribe": {}}]
    assert not session.subscribed(late, SubscribeResult()) and session.take() == b""


@pytest.mark.parametrize("method", ["subscribe", "publish", "presence", "presence_stats", "history"])
@pytest.mark.parametrize("channel", ["x" * 1_000_000, "é" * 128, "a\x00b", "a\x1bb", "\x7f", "a\nb", "/chat"])
def test_names_that_cannot_be(method: str, channel: str) -> None:
    """Names too long, or with control characters, are refused with 107 and leave nothing behind."""
    session = connected()
    body = {"channel": channel, "data": 1} if method == "publish" else {"channel": channel}
    assert feed(session, command(method, **body)) == []
    (reply,) = taken(session)
    assert reply["error"]["code"] == 107 and len(reply["error"]["message"]) < 100
    assert session.subscriptions == {} and session.disconnect is None


def test_bounded_subscriptions() -> None:
    """10,000 subscribes leave as many subscriptions as are allowed; each other one is refused with 106."""
    session = connected(128)
    for number in range(1, 10_001):
        feed(session, command("subscribe", number, channel=f"a:{number}"))
    assert len(session.subscriptions) == 128 and session.disconnect is None
    replies = taken(session)
    assert replies[:128] == [{"id": number, "subscribe": {}} for number in range(1, 129)]
    assert replies[128:] == [error(number, ErrorCode.LIMIT_EXCEEDED) for number in range(129, 10_001)]
    feed(session, command("unsubscribe", channel="a:1"))
    assert len(feed(session, command("subscribe", channel="a:200"))) == 1, "a place is free again"


def test_subscribing_counts() -> None:
    """Subscriptions on their way count for the bound."""
    session = connected(1)
    asked(session, command("subscribe", 5, channel="a"))
    assert feed(session, command("subscribe", 6, channel="b")) == []
    assert taken(session) == [error(6, ErrorCode.LIMIT_EXCEEDED)]


def test_several_commands_a_frame() -> None:
    """A command is read when its predecessor is answered: one frame may connect, enter, leave and enter again."""
    session = Session(Bounds(1))
    lines = [
        CONNECT,
        command("subscribe", 2, channel="a"),
        command("subscribe", 3, channel="a"),
        command("unsubscribe", 4, channel="a"),
        command("subscribe", 5, channel="a"),
        command("rpc", 6),
    ]
    requests = feed(session, "\n".join(lines) + "\n")
    assert [(type(request), request.id) for request in requests] == [
        (Connect, 1),
        (Subscribe, 2),
        (Unsubscribe, 4),
        (Subscribe, 5),
        (Rpc, 6),
    ]
    out = session.take()
    assert not out.endswith(b"\n")
    assert [json.loads(line) for line in out.split(b"\n")] == [
        {"id": 1, "connect": {"client": "c"}},
        {"id": 2, "subscribe": {}},
        error(3, ErrorCode.ALREADY_SUBSCRIBED),
        {"id": 4, "unsubscribe": {}},
        {"id": 5, "subscribe": {}},
        {"id": 6, "rpc": {}},
    ]
    assert session.take() == b""


@pytest.mark.parametrize("frame", ["", "\n", "{}", b"", b"\xff", b"\xed\xa0\x80", "[]", '{"id":1}', "\ud800"])
def test_bad_frames(frame: str | bytes) -> None:
    """Empty frames, frames that are no text, no JSON or no command, and pongs that nobody waits for end the session."""
    session = connected()
    assert feed(session, frame) == [] and session.disconnect == BAD and session.take() == b""


@pytest.mark.parametrize("second", ["", " ", "x", "{}", CONNECT])
def test_the_end_within_a_frame(second: str) -> None:
    """What was read before a bad command is answered; what stands behind it is not read."""
    session = connected()
    frame = "\n".join((command("rpc", 2), second, command("rpc", 3), ""))
    assert feed(session, frame) == [Rpc(2, "", b"")]
    assert session.disconnect == BAD and taken(session) == [{"id": 2, "rpc": {}}]


def test_binary_frames() -> None:
    """A frame of UTF-8 bytes is read like text."""
    session = connected()
    assert feed(session, '{"id":2,"publish":{"channel":"é","data":"ü"}}'.encode()) == [Publish(2, "é", '"ü"'.encode())]


def test_a_flood_of_line_feeds() -> None:
    """A frame of a million line feeds ends the session at the first."""
    session = connected()
    assert feed(session, "\n" * 1_000_000) == [] and session.disconnect == BAD


def test_ping_and_pong() -> None:
    """A ping makes one pong due; one more than is due ends the session."""
    session = connected()
    session.ping()
    session.ping()
    assert session.take() == b"{}\n{}" and session.pongs_due == 2
    feed(session, "{}")
    feed(session, "{}\n")
    assert session.pongs_due == 0 and session.disconnect is None
    feed(session, "{}")
    assert session.disconnect == BAD


def test_no_ping_before_connect() -> None:
    """Nothing is pinged that is not connected."""
    session = Session(Bounds(8))
    session.ping()
    session.push(client.message_push(b"1"))
    assert session.take() == b"" and session.pongs_due == 0


def test_sub_refresh() -> None:
    """A token is taken for a subscription that there is; an empty one is refused with 107, none with 103."""
    session = connected(8, "a")
    asked(session, command("subscribe", 5, channel="b"))
    for number, channel, token in ((1, "a", ""), (2, "b", "t"), (3, "c", "t")):
        assert feed(session, command("sub_refresh", number, channel=channel, token=token)) == []
    assert taken(session) == [
        error(1, ErrorCode.BAD_REQUEST),
        error(2, ErrorCode.PERMISSION_DENIED),
        error(3, ErrorCode.PERMISSION_DENIED),
    ]
    assert feed(session, command("sub_refresh", channel="a", token="t")) == [SubRefresh(7, "a", "t")]


def test_unsupported() -> None:
    """What newer SDKs ask for beyond streams is refused with 107, and the session goes on."""
    session = connected()
    assert feed(session, command("subscribe", channel="a", type=4)) == []
    assert taken(session) == [error(7, ErrorCode.BAD_REQUEST)] and session.subscriptions == {}


def test_send_has_no_answer() -> None:
    """A send is handed out, and nothing is ever written for it, id or not."""
    session = connected()
    for frame in ('{"send":{"data":1}}', '{"id":5,"send":{"data":1}}'):
        request = asked(session, frame)
        assert isinstance(request, Send)
        assert not session.answered(request) and not session.refused(request, ErrorCode.INTERNAL)
    assert session.take() == b""


def test_errors_of_other_requests() -> None:
    """Any request may be refused; the same id may be used again, as the protocol's authors allow."""
    session = connected()
    for _ in range(2):
        assert session.refused(asked(session, command("rpc", 5)), ErrorCode.METHOD_NOT_FOUND)
    assert taken(session) == [error(5, ErrorCode.METHOD_NOT_FOUND)] * 2
    assert session.refused(asked(session, command("rpc", 6)), 4001, "no such room")
    assert taken(session) == [{"id": 6, "error": {"code": 4001, "message": "no such room"}}], "a handler's own code"


def test_answers_after_the_end() -> None:
    """Answers that come after the end are ignored and say so."""
    for request in (
        Connect(1),
        Rpc(2, "", b""),
        asked(connected(), command("subscribe", channel="a")),
        asked(connected(8, "a"), command("unsubscribe", channel="a")),
    ):
        session = connected(8, "b")
        session.ended(4000, "gone")
        assert not perform(session, request) and not session.refused(request, ErrorCode.INTERNAL)
        assert not session.subscribe("c", SubscribeResult()) and not session.unsubscribe("b", 2000, "")
        session.push(client.message_push(b"1"))
        session.ping()
        assert session.take() == b"" and session.disconnect == Disconnect(4000, "gone")


def test_refused_connect() -> None:
    """The client gets the error and is left to close; the owner's stale timer ends the session otherwise."""
    session = Session(Bounds(8))
    request = asked(session, CONNECT)
    assert session.refused(request, ErrorCode.EXPIRED) and session.state is State.REFUSED
    assert not perform(session, request) and not session.refused(request, ErrorCode.EXPIRED)
    session.ended(DisconnectCode.STALE)
    assert taken(session) == [error(1, ErrorCode.EXPIRED)] and session.disconnect == Disconnect(3502, "stale")


def test_ended_before_connect_is_answered() -> None:
    """A session that has ended does not connect any more."""
    session = Session(Bounds(8))
    request = asked(session, CONNECT)
    session.ended(DisconnectCode.SHUTDOWN)
    assert not perform(session, request) and session.take() == b"" and session.state is State.ENDED


def test_server_side_subscriptions_of_connect() -> None:
    """The connect result's subscriptions are the session's; more than the bound end it with 3505."""
    session = Session(Bounds(2))
    request = asked(session, CONNECT)
    assert isinstance(request, Connect)
    assert session.connected(request, ConnectResult("c", subs={"a": SubscribeResult(), "b": SubscribeResult()}))
    assert [(name, s.is_server_side) for name, s in session.subscriptions.items()] == [("a", True), ("b", True)]
    assert feed(session, command("unsubscribe", channel="a")) == [Unsubscribe(7, "a")], "a client may leave"
    session = Session(Bounds(1))
    request = asked(session, CONNECT)
    assert isinstance(request, Connect)
    assert not session.connected(request, ConnectResult("c", subs={"a": SubscribeResult(), "b": SubscribeResult()}))
    assert session.disconnect == Disconnect(3505, "channel limit") and session.subscriptions == {}


def test_server_subscribes() -> None:
    """The server tells the client where it is now; over the bound the session ends."""
    session = connected(2, "a")
    assert not session.subscribe("a", SubscribeResult()), "it is in it"
    assert session.subscribe("b", SubscribeResult(offset=1, epoch="e"), expires_at=1.0, flags=3)
    assert taken(session) == [{"push": {"channel": "b", "subscribe": {"offset": 1, "epoch": "e"}}}]
    subscription = session.subscriptions["b"]
    assert subscription.is_server_side and (subscription.expires_at, subscription.flags) == (1.0, 3)
    assert not session.subscribe("c", SubscribeResult())
    assert session.disconnect == Disconnect(3505, "channel limit") and session.take() == b""


def test_server_unsubscribes() -> None:
    """The server ends a subscription with a push; there being none, nothing is said."""
    session = connected(8, "a")
    assert session.unsubscribe("a", 2501, "subscription expired")
    assert taken(session) == [
        {"push": {"channel": "a", "unsubscribe": {"code": 2501, "reason": "subscription expired"}}}
    ]
    assert not session.unsubscribe("a", 2000, "") and session.take() == b""
    assert not Session(Bounds(1)).unsubscribe("a", 2000, "")


@pytest.mark.parametrize(
    ("code", "refusal"), [(2000, ErrorCode.PERMISSION_DENIED), (2500, ErrorCode.INTERNAL), (2501, ErrorCode.INTERNAL)]
)
def test_server_unsubscribes_meanwhile(code: int, refusal: ErrorCode) -> None:
    """A subscription on its way is refused at once; the answer that comes later is ignored."""
    session = connected()
    request = asked(session, command("subscribe", channel="a"))
    assert session.unsubscribe("a", code, "")
    assert taken(session) == [error(7, refusal)]
    assert not perform(session, request) and not session.refused(request, ErrorCode.INTERNAL)
    assert session.take() == b"" and session.subscriptions == {}


def test_unidirectional() -> None:
    """Without commands the connect result, pushes and the end go out bare; whatever comes in ends the session."""
    session = Session(Bounds(8), unidirectional=True)
    assert session.connected(Connect(0), ConnectResult("c", subs={"a": SubscribeResult()}))
    session.push(client.publication_push("a", client.publication(b"1", b"", 1)))
    session.subscribe("b", SubscribeResult())
    session.ping()
    session.unsubscribe("a", 2000, "")
    assert session.pongs_due == 0, "nobody can answer"
    assert feed(session, "{}") == []
    assert session.disconnect == BAD
    assert taken(session) == [
        {"connect": {"client": "c", "subs": {"a": {}}}},
        {"channel": "a", "pub": {"data": 1, "offset": 1}},
        {"channel": "b", "subscribe": {}},
        {},
        {"channel": "a", "unsubscribe": {"code": 2000, "reason": ""}},
        {"disconnect": {"code": 3501, "reason": "bad request"}},
    ]


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        (ErrorCode.TOKEN_EXPIRED, DisconnectCode.EXPIRED),
        (ErrorCode.EXPIRED, DisconnectCode.EXPIRED),
        (ErrorCode.TOO_MANY_REQUESTS, DisconnectCode.TOO_MANY_REQUESTS),
        (ErrorCode.PERMISSION_DENIED, DisconnectCode.PERMISSION_DENIED),
        (ErrorCode.UNAUTHORIZED, DisconnectCode.SERVER_ERROR),
    ],
)
def test_unidirectional_refusal(code: ErrorCode, ends: DisconnectCode) -> None:
    """Where there is no reply the error becomes the end that goes with it."""
    session = Session(Bounds(8), unidirectional=True)
    assert session.refused(Connect(0), code)
    assert session.disconnect == Disconnect(int(ends), ends.reason)
    assert taken(session) == [{"disconnect": {"code": int(ends), "reason": ends.reason}}]


@pytest.mark.parametrize("method", [name for name in COMMANDS if name != "connect"])
@pytest.mark.parametrize("place", [State.CONNECTED, State.SUBSCRIBING, State.SUBSCRIBED])
def test_table(method: str, place: State) -> None:
    """Every command does, in every state of the channel it names, what the table says."""
    session = connected(8, *(["a"] if place is State.SUBSCRIBED else []))
    if place is State.SUBSCRIBING:
        asked(session, command("subscribe", 6, channel="a"))
    frame = command(method, **COMMANDS[method])
    outcome = TABLE[type(client.read_command(frame))][place]
    requests = list(session.feed(frame))
    assert (len(requests) == 1) == (outcome is Outcome.ASK)
    replies = taken(session)
    if outcome is Outcome.DONE:
        assert replies == [{"id": 7, method: {}}]
    else:
        assert replies == ([error(7, outcome)] if isinstance(outcome, ErrorCode) else [])
    assert (session.disconnect is not None) == (outcome is Outcome.BAD)


def test_a_session_is_small() -> None:
    """A session with 3 subscriptions takes at most 600 bytes beside the names of its channels."""
    session = connected(128, "chat:1", "chat:2", "chat:3")
    assert not hasattr(session, "__dict__")
    parts = [session, session.subscriptions, *session.subscriptions.values()]
    assert sum(map(sys.getsizeof, parts)) <= 600
    assert session._out is None
