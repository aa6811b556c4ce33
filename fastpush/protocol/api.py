"""The server API: bodies in, replies out, in the JSON form of Centrifugo's HTTP API v6. No I/O.

    POST /api/publish   {"channel": "chat:42", "data": {…}}
        done            {"result": {"offset": 7, "epoch": "1c5f…", "sent": 3}}
        refused         {"error": {"code": 102, "message": "…"}}
    POST /api/batch     {"commands": [{"publish": {…}}, {"presence": {…}}], "parallel": true}
                        {"replies": [{"publish": {…}}, {"error": {…}}]}
    POST /api           {"method": "publish", "params": {…}}          one a line, and as many replies

A request is a Struct with the fields of centrifugo/internal/apiproto/api.proto that have a meaning here, and some more.
Fields that nobody knows are ignored, null is like left out. What Centrifugo has and this server cannot do is in
`unavailable`, with the reason: it is refused where somebody asks for it, never ignored.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec
import orjson

from fastpush.protocol.client import OFFSET_MAX, ErrorCode

ONCE_BYTES_MAX = 255  # of an idempotency key
REASON_BYTES_MAX = 123  # of a close frame
EXPIRE_AT_MAX = 2**53 - 1  # what every JSON parser reads as it is
DISCONNECT_CODES = range(3000, 5000)
_NONE = msgspec.Raw()
_NOTHING = frozenset((b"", b"null", b"false", b"0", b'""', b"{}", b"[]"))
_NO_BINARY = "publications are JSON"
_NO_SESSIONS = "name a connection by client"


class Refusal(Exception):
    """A command is answered with an error. code: an ErrorCode, or a number of the handler's own."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message or (code.reason if isinstance(code, ErrorCode) else "")


def bad_request(message: str) -> Refusal:
    """107: a field is wrong; the message names it, what was found and what is allowed."""
    return Refusal(ErrorCode.BAD_REQUEST, message)


class Request(msgspec.Struct):
    """What all have in common. unavailable: why fields are refused that Centrifugo has."""

    unavailable: ClassVar[Mapping[str, str]] = MappingProxyType({})


class _Publication(Request):
    unavailable: ClassVar = {
        "b64data": _NO_BINARY,
        "version": "publications have no versions",
        "version_epoch": "publications have no versions",
    }

    data: msgspec.Raw = _NONE
    tags: dict[str, str] | None = None
    idempotency_key: str | None = None
    skip_history: bool | None = None
    exclude: str | None = None
    b64data: msgspec.Raw = _NONE
    version: msgspec.Raw = _NONE
    version_epoch: msgspec.Raw = _NONE


class Publish(_Publication, kw_only=True):
    """Publish JSON to a channel. exclude: id of a connection that does not get it."""

    channel: str


class Broadcast(_Publication, kw_only=True):
    """Publish the same to several channels."""

    channels: list[str]


class OfUser(Request, kw_only=True):
    """About the connections of a user, or only that with the id `client`. user: "" for an anonymous connection."""

    user: str
    client: str | None = None
    session: msgspec.Raw = _NONE


class Subscribe(OfUser, kw_only=True):
    """Subscribe connections by the server's will."""

    unavailable: ClassVar = {
        "session": _NO_SESSIONS,
        "info": "it comes with the token",
        "b64info": "it comes with the token",
        "data": "there is none with a subscription",
        "b64data": "there is none with a subscription",
        "expire_at": "these subscriptions do not end by themselves",
        "recover_since": "these subscriptions begin with the newest publication",
        "override": "a channel is as its namespace is configured",
    }

    channel: str
    info: msgspec.Raw = _NONE
    b64info: msgspec.Raw = _NONE
    data: msgspec.Raw = _NONE
    b64data: msgspec.Raw = _NONE
    expire_at: msgspec.Raw = _NONE
    recover_since: msgspec.Raw = _NONE
    override: msgspec.Raw = _NONE


class Unsubscribe(OfUser, kw_only=True):
    """End subscriptions to a channel."""

    unavailable: ClassVar = {"session": _NO_SESSIONS}

    channel: str


class CloseWith(msgspec.Struct):
    """Code and reason of a disconnect; code 0 for the usual ones."""

    code: int | None = None
    reason: str | None = None


class Disconnect(OfUser, kw_only=True):
    """Close connections. whitelist: ids of those that stay."""

    unavailable: ClassVar = {"session": _NO_SESSIONS}

    whitelist: list[str] | None = None
    disconnect: CloseWith | None = None


class Refresh(OfUser, kw_only=True):
    """Say when connections end. expired: now.  expire_at: unix seconds; 0: never."""

    unavailable: ClassVar = {"session": _NO_SESSIONS, "info": "it comes with the token"}

    expired: bool | None = None
    expire_at: int | None = None
    info: msgspec.Raw = _NONE


class Channel(Request):
    """About a channel: presence, presence_stats and history_remove."""

    channel: str


class Position(msgspec.Struct):
    """A place in a channel. epoch: "" for whatever it is now."""

    offset: int | None = None
    epoch: str | None = None


class History(Request):
    """What a channel keeps. limit: most publications, 0 for its position alone, negative for all."""

    channel: str
    limit: int | None = None
    since: Position | None = None
    reverse: bool | None = None


class Channels(Request):
    """The channels that somebody is in. pattern: of their names, `*` is any text."""

    pattern: str | None = None


class Connections(Request):
    """The connections of a user."""

    unavailable: ClassVar = {"expression": "only user selects"}

    user: str
    expression: msgspec.Raw = _NONE


class Info(Request):
    """The figures of every worker."""


class Rpc(Request):
    """Call a method of the handler."""

    method: str
    params: msgspec.Raw = _NONE


class Batch(Request):
    """Several commands, each an object with one method."""

    commands: list[dict[str, msgspec.Raw]]
    parallel: bool | None = None


class Line(msgspec.Struct):
    """A command of the older form."""

    method: str
    id: int | None = None
    params: msgspec.Raw = _NONE


R = TypeVar("R", bound=msgspec.Struct)
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def read(kind: type[R], body: bytes) -> R:
    """Return a request's body as `kind`. Raises: Refusal 107, 108."""
    try:
        if not body.isascii():
            body.decode()  # what is kept raw below would be passed on as it is
        request: R = _decoder(kind)(body)
    except UnicodeDecodeError as error:
        raise bad_request(f"body is not JSON: not UTF-8 at byte {error.start + 1}") from None
    except RecursionError:
        raise bad_request("body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise bad_request(_fault(str(error))) from None
    if isinstance(request, Request):
        for name, reason in request.unavailable.items():
            value = getattr(request, name)
            if value is not _NONE and bytes(value) not in _NOTHING:
                raise Refusal(ErrorCode.NOT_AVAILABLE, f"{name} is not available: {reason}")
    return request


def lines(body: bytes) -> list[Line]:
    """Return the commands of the older form. Raises: Refusal 107, if any line is none."""
    commands = []
    for number, line in enumerate(body.splitlines(), 1):
        if line.strip():
            try:
                commands.append(read(Line, line))
            except Refusal as refusal:
                raise bad_request(f"line {number}: {refusal.message}") from None
    return commands


def _decoder(kind: type) -> Any:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder.decode


_MISSING = re.compile(r"Object missing required field `(\w+)`(?: - at `\$\.?(.*)`)?")
_WRONG = re.compile(r"Expected `([^`|]+)[^`]*`, got `([^`]+)`(?: - at (?:key in )?`\$\.?(.*)`)?")
_BYTE = re.compile(r"\(byte ([0-9]+)\)")
_KINDS = {
    "str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false", "object": "an object",
    "array": "an array", "null": "null",
}  # fmt: skip


def _fault(text: str) -> str:
    """Say what msgspec has found as all of this API does."""
    if missing := _MISSING.fullmatch(text):
        name, place = missing.groups()
        return f"{place}.{name} is missing" if place else f"{name} is missing"
    if wrong := _WRONG.fullmatch(text):
        wanted, found, place = wrong.groups()
        wanted, found = wanted.strip(), _KINDS.get(found, found)
        return f"{place or 'body'} must be {_KINDS.get(wanted, wanted)}, found {found}"
    reason = _BYTE.sub(lambda byte: f"at byte {int(byte[1]) + 1}", text.removeprefix("JSON is malformed: "))
    if text == "Input data was truncated":  # so msgspec calls the first half of a surrogate at the end of a string too
        reason = "it ends too early, or holds half of a surrogate pair"
    return f"body is not JSON: {reason}"


class Options(NamedTuple):
    """How something is published. data, tags: JSON, tags b"" for none."""

    data: bytes
    tags: Mapping[str, str] | None
    once: str
    exclude: str


def options(asked: Publish | Broadcast) -> Options:
    """Return how something is to be published. Raises: Refusal 107, 108."""
    data, once = bytes(asked.data), asked.idempotency_key or ""
    if not data:
        raise bad_request("data is missing")
    if asked.skip_history:
        reason = "a channel keeps all that is published to it, or nothing"
        raise Refusal(ErrorCode.NOT_AVAILABLE, f"skip_history is not available: {reason}")
    size = len(once.encode())
    if size > ONCE_BYTES_MAX:
        raise bad_request(f"idempotency_key has {size} bytes, at most {ONCE_BYTES_MAX} are allowed")
    return Options(data, asked.tags, once, asked.exclude or "")


def close_with(asked: CloseWith | None, default: tuple[int, str]) -> tuple[int, str]:
    """Return code and reason to disconnect with. Raises: Refusal 107."""
    if asked is None or not asked.code:
        return default
    if asked.code not in DISCONNECT_CODES:
        first, last = DISCONNECT_CODES[0], DISCONNECT_CODES[-1]
        raise bad_request(f"disconnect.code must be from {first} to {last}, found {asked.code}")
    reason = asked.reason or ""
    if len(reason.encode()) > REASON_BYTES_MAX:
        raise bad_request(f"disconnect.reason has {len(reason.encode())} bytes, at most {REASON_BYTES_MAX} are allowed")
    return asked.code, reason


def expiry(asked: Refresh) -> int:
    """Return when connections are to end, 0 for never. Raises: Refusal 107."""
    expire_at = asked.expire_at or 0
    if not 0 <= expire_at <= EXPIRE_AT_MAX:
        raise bad_request(f"expire_at must be from 0 to {EXPIRE_AT_MAX}, found {expire_at}")
    return expire_at


def since(asked: Position | None) -> tuple[int, str] | None:
    """Return the position that a history is asked from. Raises: Refusal 107."""
    if asked is None:
        return None
    offset = asked.offset or 0
    if not 0 <= offset <= OFFSET_MAX:
        raise bad_request(f"since.offset must be from 0 to {OFFSET_MAX}, found {offset}")
    return offset, asked.epoch or ""


def result(body: bytes) -> bytes:
    """Return the reply to what was done."""
    return b'{"result":%b}' % body


def error(code: int, message: str) -> bytes:
    """Return an error's object."""
    return b'{"code":%d,"message":%b}' % (code, orjson.dumps(message.encode("utf-8", "replace").decode()))


def error_reply(code: int, message: str) -> bytes:
    """Return the reply to what was refused."""
    return b'{"error":%b}' % error(code, message)


def line_reply(number: int | None, reply: bytes) -> bytes:
    """Return a reply with the id of its command."""
    return b'{"id":%d,%b' % (number, reply[1:]) if number else reply


def publish_result(sent: int, unconfirmed: int, offset: int, epoch: str) -> bytes:
    """Return the result of a publish. offset, epoch: 0 and "" where the channel keeps nothing."""
    place = b'"offset":%d,"epoch":"%b",' % (offset, epoch.encode()) if offset else b""
    return b'{%b"sent":%d%b}' % (place, sent, _unconfirmed(unconfirmed))


def broadcast_result(responses: Iterable[bytes]) -> bytes:
    """Return the result of a broadcast. responses: a reply for each channel."""
    return b'{"responses":[%b]}' % b",".join(responses)


def order_result(connections: int, unconfirmed: int) -> bytes:
    """Return the result of what workers do with connections."""
    return b'{"connections":%d%b}' % (connections, _unconfirmed(unconfirmed))


def batch_reply(replies: Iterable[bytes]) -> bytes:
    """Return the reply to a batch, which has no result around it."""
    return b'{"replies":[%b]}' % b",".join(replies)


def _unconfirmed(workers: int) -> bytes:
    return b',"unconfirmed":%d' % workers if workers else b""


_STATUSES = {
    ErrorCode.UNKNOWN_CHANNEL: 404, ErrorCode.METHOD_NOT_FOUND: 404, ErrorCode.BAD_REQUEST: 400,
    ErrorCode.NOT_AVAILABLE: 400, ErrorCode.TOO_MANY_REQUESTS: 429, ErrorCode.UNRECOVERABLE_POSITION: 416,
}  # fmt: skip


def status_of(code: int) -> int:
    """Return the HTTP status that stands for an error where one is wanted."""
    return _STATUSES.get(code, 500)  # type: ignore[call-overload,no-any-return]
