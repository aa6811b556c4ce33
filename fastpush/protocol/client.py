"""The client protocol at /connection/websocket: commands in, replies and pushes out, JSON, and all codes. No I/O.

    client -> server   {"id": 1, "connect": {"token": "…"}}        a command: an id that the reply repeats, one method
                       {"send": {"data": …}}                       the only command without id: no reply
                       {}                                          pong
    server -> client   {"id": 1, "connect": {"client": "…", …}}    a reply, or {"id": 1, "error": {"code", "message"}}
                       {"push": {"channel": "…", "pub": {…}}}      nobody asked: publication, join, leave, …
                       {}                                          ping

A frame holds one or several of them, one a line. It is the JSON form of the Centrifugal client protocol, version 2
(centrifugal/protocol, definitions/client.proto), as the SDKs for JavaScript, Python and Go speak it. Of an object with
several methods the first in the order of that file counts; unknown fields are ignored, null is like left out, text in
a field of numbers is not.

Encoders return the bytes of one JSON object without line feeds. Where they take `bytes`, these are JSON already.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import msgspec

ID_MAX = 2**32 - 1
OFFSET_MAX = 2**64 - 1
NAME_BYTES_MAX = 255  # of a channel
EMPTY = b"{}"  # a result without members; a ping, a pong
REJECT_UNRECOVERED = 2  # bit of a subscribe command's `flag`
_LINE_FEED, _CARRIAGE_RETURN = b"\n\r"  # as numbers: to look for them in bytes takes a tenth of the time

_encode = msgspec.json.encode


class _Code(IntEnum):
    """A number of the wire and the text that goes with it."""

    reason: str

    def __new__(cls, number: int, reason: str) -> Self:
        code = int.__new__(cls, number)
        code._value_ = number
        code.reason = reason
        return code


class ErrorCode(_Code):
    """Why a command is refused; the connection stays.

    The SDKs try a subscribe or connect again after `temporary` ones and, with a new token, after TOKEN_EXPIRED;
    after the others they give the subscription, or the connection, up.
    """

    INTERNAL = 100, "internal server error"
    UNAUTHORIZED = 101, "unauthorized"
    UNKNOWN_CHANNEL = 102, "unknown channel"
    PERMISSION_DENIED = 103, "permission denied"
    METHOD_NOT_FOUND = 104, "method not found"
    ALREADY_SUBSCRIBED = 105, "already subscribed"
    LIMIT_EXCEEDED = 106, "limit exceeded"
    BAD_REQUEST = 107, "bad request"
    NOT_AVAILABLE = 108, "not available"
    TOKEN_EXPIRED = 109, "token expired"
    EXPIRED = 110, "expired"
    TOO_MANY_REQUESTS = 111, "too many requests"
    UNRECOVERABLE_POSITION = 112, "unrecoverable position"

    @property
    def temporary(self) -> bool:
        """Whether the same command may succeed later."""
        return self in {ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS}


class UnsubscribeCode(_Code):
    """Why the server ends a subscription. From 2500 on the client subscribes again by itself."""

    SERVER = 2000, "server unsubscribe"
    INSUFFICIENT_STATE = 2500, "insufficient state"
    EXPIRED = 2501, "subscription expired"  # the client asks for a new token first


def resubscribes(code: int) -> bool:
    """Tell whether the SDKs subscribe again by themselves after an unsubscribe push with `code`."""
    return code >= UnsubscribeCode.INSUFFICIENT_STATE


class DisconnectCode(_Code):
    """Why the server ends a connection: code and reason of the WebSocket's close frame, or of a disconnect push."""

    CONNECTION_CLOSED = 3000, "connection closed"
    SHUTDOWN = 3001, "shutdown"
    SERVER_ERROR = 3004, "internal server error"
    EXPIRED = 3005, "connection expired"
    SUBSCRIPTION_EXPIRED = 3006, "subscription expired"
    SLOW = 3008, "slow"
    WRITE_ERROR = 3009, "write error"
    INSUFFICIENT_STATE = 3010, "insufficient state"
    FORCE_RECONNECT = 3011, "force reconnect"
    NO_PONG = 3012, "no pong"
    TOO_MANY_REQUESTS = 3013, "too many requests"
    INVALID_TOKEN = 3500, "invalid token"
    BAD_REQUEST = 3501, "bad request"
    STALE = 3502, "stale"
    FORCE_DISCONNECT = 3503, "force disconnect"
    CONNECTION_LIMIT = 3504, "connection limit"
    CHANNEL_LIMIT = 3505, "channel limit"
    INAPPROPRIATE_PROTOCOL = 3506, "inappropriate protocol"
    PERMISSION_DENIED = 3507, "permission denied"
    NOT_AVAILABLE = 3508, "not available"
    TOO_MANY_ERRORS = 3509, "too many errors"

    @property
    def reconnects(self) -> bool:
        """Whether the SDKs come back by themselves."""
        return reconnects(self)


def reconnects(code: int) -> bool:
    """Tell whether the SDKs come back after a close with `code`: not after 3500 to 3999 and 4500 to 4999."""
    return not (3500 <= code < 4000 or 4500 <= code < 5000)  # noqa: PLR2004 - ranges of the protocol


class BadCommand(Exception):
    """What came is no command, or one that no client sends: the connection is ended with 3501."""


class _Request(msgspec.Struct, frozen=True):
    """What a client asks for. id: 1..ID_MAX.  method: names command and reply on the wire."""

    method: ClassVar[str]
    id: int


class Recover(NamedTuple):
    """The position from which a client wants to go on, offset 0..OFFSET_MAX, epoch as the server once told it."""

    recover: bool
    offset: int
    epoch: str


class Connect(_Request, frozen=True):
    """The first command. token: "" for none.  data: JSON, b"" for none.  subs: by channel, server-side ones only."""

    method: ClassVar = "connect"
    token: str = ""
    data: bytes = b""
    name: str = ""
    version: str = ""
    subs: dict[str, Recover] = {}


class Subscribe(_Request, frozen=True):
    """Enter a channel. recover: send what came after (offset, epoch), when recovery is possible.

    reject_unrecovered: refuse with error 112 when it is not, instead of `"recovered": false`.
    """

    method: ClassVar = "subscribe"
    channel: str
    token: str
    data: bytes
    recover: bool
    offset: int
    epoch: str
    positioned: bool
    recoverable: bool
    join_leave: bool
    reject_unrecovered: bool


class Unsubscribe(_Request, frozen=True):
    """Leave a channel."""

    method: ClassVar = "unsubscribe"
    channel: str


class Publish(_Request, frozen=True):
    """Publish to a channel. data: JSON, not empty."""

    method: ClassVar = "publish"
    channel: str
    data: bytes


class Presence(_Request, frozen=True):
    """Tell who is in a channel."""

    method: ClassVar = "presence"
    channel: str


class PresenceStats(_Request, frozen=True):
    """Tell how many are in a channel."""

    method: ClassVar = "presence_stats"
    channel: str


class Position(NamedTuple):
    """A place in a channel. epoch: "" for whatever it is now."""

    offset: int
    epoch: str


class History(_Request, frozen=True):
    """Tell what a channel keeps. limit: most publications, 0 for its position alone, negative for all."""

    method: ClassVar = "history"
    channel: str
    limit: int
    since: Position | None
    reverse: bool


class Rpc(_Request, frozen=True):
    """Call a method of the handler. data: JSON, b"" for none.  name: of the method, "" for none."""

    method: ClassVar = "rpc"
    name: str
    data: bytes


class Send(_Request, frozen=True):
    """A message for the handler, without reply. data: JSON, b"" for none."""

    method: ClassVar = "send"
    data: bytes


class Refresh(_Request, frozen=True):
    """A new token for the connection, not empty."""

    method: ClassVar = "refresh"
    token: str


class SubRefresh(_Request, frozen=True):
    """A new token for a subscription; empty is refused with error 107."""

    method: ClassVar = "sub_refresh"
    channel: str
    token: str


class Unsupported(_Request, frozen=True):
    """A subscribe or publish of newer SDKs that is about something else than a stream, or a filter by tags."""

    method: ClassVar = ""


class Pong(_Request, frozen=True):
    """The answer to a ping; id 0."""

    method: ClassVar = ""


Request = (
    Connect | Subscribe | Unsubscribe | Publish | Presence | PresenceStats | History | Rpc | Send | Refresh | SubRefresh
)
Command = Request | Unsupported | Pong


# Commands as they come. Every field may be null.

_Id = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Text = str | None
_NONE = msgspec.Raw()


class _Position(msgspec.Struct):
    offset: int | None = None
    epoch: _Text = None


class _Sub(_Position):
    recover: bool | None = None


class _Connect(msgspec.Struct):
    token: _Text = None
    data: msgspec.Raw = _NONE
    name: _Text = None
    version: _Text = None
    subs: dict[str, _Sub | None] | None = None


class _Subscribe(_Sub):
    channel: _Text = None
    token: _Text = None
    data: msgspec.Raw = _NONE
    positioned: bool | None = None
    recoverable: bool | None = None
    join_leave: bool | None = None
    delta: _Text = None
    flag: int | None = None
    type: int | None = None
    tf: msgspec.Raw = _NONE


class _Channel(msgspec.Struct):
    channel: _Text = None


class _Publish(_Channel):
    data: msgspec.Raw = _NONE
    type: int | None = None


class _History(_Channel):
    limit: _Int32 | None = None
    since: _Position | None = None
    reverse: bool | None = None


class _Rpc(msgspec.Struct):
    data: msgspec.Raw = _NONE
    method: _Text = None


class _Send(msgspec.Struct):
    data: msgspec.Raw = _NONE


class _Refresh(msgspec.Struct):
    token: _Text = None


class _SubRefresh(_Channel):
    token: _Text = None


class _Line(msgspec.Struct):
    id: _Id | None = None
    connect: _Connect | None = None
    subscribe: _Subscribe | None = None
    unsubscribe: _Channel | None = None
    publish: _Publish | None = None
    presence: _Channel | None = None
    presence_stats: _Channel | None = None
    history: _History | None = None
    rpc: _Rpc | None = None
    send: _Send | None = None
    refresh: _Refresh | None = None
    sub_refresh: _SubRefresh | None = None


def _offset(offset: int | None) -> int:
    if offset is None:
        return 0
    if not 0 <= offset <= OFFSET_MAX:
        raise BadCommand("offset is no u64")
    return offset


def _needed(text: str | None) -> str:
    if not text:
        raise BadCommand("channel or token is missing")
    return text


def _connect(number: int, body: _Connect) -> Connect:
    subs = {
        channel: Recover(bool(sub.recover), _offset(sub.offset), sub.epoch or "")
        for channel, sub in (body.subs or {}).items()
        if sub is not None
    }
    return Connect(number, body.token or "", bytes(body.data), body.name or "", body.version or "", subs)


def _subscribe(number: int, body: _Subscribe) -> Subscribe | Unsupported:
    if body.delta not in {None, "", "fossil"}:
        raise BadCommand("unknown delta")
    if body.type or bytes(body.tf) not in {b"", b"null"}:
        return Unsupported(number)
    return Subscribe(
        number,
        _needed(body.channel),
        body.token or "",
        bytes(body.data),
        bool(body.recover),
        _offset(body.offset),
        body.epoch or "",
        bool(body.positioned),
        bool(body.recoverable),
        bool(body.join_leave),
        bool((body.flag or 0) & REJECT_UNRECOVERED),
    )


def _publish(number: int, body: _Publish) -> Publish | Unsupported:
    if body.type:
        return Unsupported(number)
    data = bytes(body.data)
    if not data:
        raise BadCommand("data is missing")
    return Publish(number, _needed(body.channel), data)


def _history(number: int, body: _History) -> History:
    since = None if body.since is None else Position(_offset(body.since.offset), body.since.epoch or "")
    return History(number, _needed(body.channel), body.limit or 0, since, bool(body.reverse))


_READERS: tuple[tuple[str, Callable[[int, Any], Command]], ...] = (
    ("connect", _connect),
    ("subscribe", _subscribe),
    ("unsubscribe", lambda number, body: Unsubscribe(number, _needed(body.channel))),
    ("publish", _publish),
    ("presence", lambda number, body: Presence(number, _needed(body.channel))),
    ("presence_stats", lambda number, body: PresenceStats(number, _needed(body.channel))),
    ("history", _history),
    ("rpc", lambda number, body: Rpc(number, body.method or "", bytes(body.data))),
    ("send", lambda number, body: Send(number, bytes(body.data))),
    ("refresh", lambda number, body: Refresh(number, _needed(body.token))),
    ("sub_refresh", lambda number, body: SubRefresh(number, _needed(body.channel), body.token or "")),
)
_decode_line = msgspec.json.Decoder(_Line).decode
_decode_connect = msgspec.json.Decoder(_Connect).decode
_PONG = Pong(0)


def read_command(text: str) -> Command:
    """Return what one line of a frame asks for; an object without id and method is a Pong.

    Raises: BadCommand: no JSON object, wrong types, an id that is none, no known method, a method other than `send`
    without id, or a field without which the method makes no sense. (The library of the protocol's authors, 0.38, takes
    any object without id for a pong, and has no error reply for unknown methods either.)
    """
    try:
        line = _decode_line(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise BadCommand(str(error)) from None
    number = line.id or 0
    for name, reader in _READERS:
        body = getattr(line, name)
        if body is not None:
            if not number and name != "send":
                raise BadCommand("no id")
            return reader(number, body)
    if number:
        raise BadCommand("no known method")
    return _PONG


def read_connect(text: str) -> Connect:
    """Return the connect command that a unidirectional transport carries in its request: the object alone, id 0.

    Raises: BadCommand.
    """
    try:
        return _connect(0, _decode_connect(text))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise BadCommand(str(error)) from None


# Results and pushes.


class SubscribeResult(msgspec.Struct, omit_defaults=True):
    """The answer to a subscribe, and what a connect result says of a server-side subscription.

    ttl: seconds until it expires, with expires=True.  publications: what was missed, oldest first, each from
    `publication`; only with recovered=True, and then `offset` is the client's own, from which they lead on.
    """

    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[msgspec.Raw] = []
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: msgspec.Raw | None = None
    was_recovering: bool = False


class ConnectResult(msgspec.Struct, omit_defaults=True):
    """The answer to a connect. client: the connection's id.  version: of the server.

    ping: seconds between pings.  pong: whether the client is to answer them.  session: of unidirectional transports.
    """

    client: str
    version: str = ""
    expires: bool = False
    ttl: int = 0
    data: msgspec.Raw | None = None
    subs: dict[str, SubscribeResult] = {}
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""
    time: int = 0


def raw(data: bytes) -> msgspec.Raw | None:
    """Return JSON as the member of a result, on one line; None for b""."""
    return msgspec.Raw(one_line(data)) if data else None


def one_line(data: bytes) -> bytes:
    """Return JSON without line breaks: they end a command, a reply and a line of an event stream."""
    return data.translate(None, b"\r\n") if _LINE_FEED in data or _CARRIAGE_RETURN in data else data


def reply(number: int, method: str, result: bytes) -> bytes:
    """Return the reply to a command."""
    return b'{"id":%d,"%b":%b}' % (number, method.encode(), result)


def error_reply(number: int, code: int, message: str = "") -> bytes:
    """Return the reply that refuses a command. message: default that of an ErrorCode; a handler's code has its own."""
    known = code if isinstance(code, ErrorCode) else None
    temporary = b',"temporary":true' if known is not None and known.temporary else b""
    text = _encode(message or (known.reason if known is not None else ""))
    return b'{"id":%d,"error":{"code":%d,"message":%b%b}}' % (number, code, text, temporary)


def client_info(user: str, client: str, conn_info: bytes = b"", chan_info: bytes = b"") -> bytes:
    """Return who somebody is: user ("" for nobody), id of the connection, and what tokens say of it."""
    parts = [b'"client":%b,"user":%b' % (_encode(client), _encode(user))]
    if conn_info:
        parts.append(b'"conn_info":%b' % one_line(conn_info))
    if chan_info:
        parts.append(b'"chan_info":%b' % one_line(chan_info))
    return b"{%b}" % b",".join(parts)


def extras(info: bytes = b"", tags: Mapping[str, str] | None = None) -> bytes:
    """Return the members of a publication beside data and offset. info: who published it, from `client_info`."""
    text = b',"info":%b' % info if info else b""
    return text + b',"tags":%b' % _encode(tags) if tags else text


def publication(data: bytes, extras: bytes, offset: int) -> bytes:
    """Return a publication: {"data": …, <extras>, "offset": 5}. offset: 0 in channels that keep no history."""
    position = b',"offset":%d' % offset if offset else b""
    return b'{"data":%b%b%b}' % (one_line(data), extras, position)


def _push(channel: str, kind: bytes, body: bytes) -> bytes:
    return b'{"push":{"channel":%b,"%b":%b}}' % (_encode(channel), kind, body)


def publication_push(channel: str, publication: bytes) -> bytes:
    """Return the push of a publication."""
    return _push(channel, b"pub", publication)


def gap_push(channel: str, dropped: int) -> bytes:
    """Return the push that stands where `dropped` publications of a slow client went: no data, tag `gap`."""
    return _push(channel, b"pub", b'{"data":null,"tags":{"gap":"%d"}}' % dropped)


def join_push(channel: str, info: bytes) -> bytes:
    """Return the push: somebody came. info: from `client_info`."""
    return _push(channel, b"join", b'{"info":%b}' % info)


def leave_push(channel: str, info: bytes) -> bytes:
    """Return the push: somebody left. info: from `client_info`."""
    return _push(channel, b"leave", b'{"info":%b}' % info)


def subscribe_push(channel: str, result: SubscribeResult) -> bytes:
    """Return the push: the server has subscribed the client. Of `result` count position and data."""
    told = SubscribeResult(
        recoverable=result.recoverable,
        epoch=result.epoch,
        offset=result.offset,
        positioned=result.positioned,
        data=result.data,
    )
    return _push(channel, b"subscribe", _encode(told))


def unsubscribe_push(channel: str, code: int, reason: str) -> bytes:
    """Return the push: the server has ended a subscription."""
    return _push(channel, b"unsubscribe", _coded(code, reason))


def message_push(data: bytes) -> bytes:
    """Return the push: a message to this connection, of no channel."""
    return b'{"push":{"message":{"data":%b}}}' % one_line(data)


def refresh_push(ttl: int | None) -> bytes:
    """Return the push: the server has refreshed the connection. ttl: seconds, None when it does not expire."""
    return b'{"push":{"refresh":%b}}' % _expiry(ttl)


def disconnect_push(code: int, reason: str) -> bytes:
    """Return the push that says, where there is no close frame, why a connection ends."""
    return b'{"push":{"disconnect":%b}}' % _coded(code, reason)


def connect_push(result: ConnectResult) -> bytes:
    """Return the push that stands for the connect reply on unidirectional transports."""
    return b'{"push":{"connect":%b}}' % _encode(result)


def bare(push: bytes) -> bytes:
    """Return a push as unidirectional transports carry it: without {"push": …} around it."""
    return push[8:-1]


def presence_result(infos: Mapping[str, bytes]) -> bytes:
    """Return the result of a presence. infos: by id of the connection, each from `client_info`."""
    return b'{"presence":{%b}}' % b",".join(b"%b:%b" % (_encode(client), info) for client, info in infos.items())


def presence_stats_result(connections: int, users: int) -> bytes:
    """Return the result of a presence_stats."""
    return b'{"num_clients":%d,"num_users":%d}' % (connections, users)


def history_result(publications: Iterable[bytes], offset: int, epoch: str) -> bytes:
    """Return the result of a history. publications: each from `publication`.  offset, epoch: the channel's newest."""
    return b'{"publications":[%b],"offset":%d,"epoch":%b}' % (b",".join(publications), offset, _encode(epoch))


def rpc_result(data: bytes) -> bytes:
    """Return the result of an rpc."""
    return b'{"data":%b}' % (one_line(data) or b"null")


def refresh_result(client: str, version: str, ttl: int | None) -> bytes:
    """Return the result of a refresh. ttl: seconds, None when the connection does not expire any more."""
    return b'{"client":%b,"version":%b,%b' % (_encode(client), _encode(version), _expiry(ttl)[1:])


def sub_refresh_result(ttl: int | None) -> bytes:
    """Return the result of a sub_refresh. ttl: as in `refresh_result`."""
    return _expiry(ttl)


def _expiry(ttl: int | None) -> bytes:
    return b'{"expires":false}' if ttl is None else b'{"expires":true,"ttl":%d}' % ttl


def _coded(code: int, reason: str) -> bytes:
    return b'{"code":%d,"reason":%b}' % (code, _encode(reason))


def encode_result(result: ConnectResult | SubscribeResult) -> bytes:
    """Return a result as bytes for `reply`."""
    return _encode(result)
