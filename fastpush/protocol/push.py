"""The simple protocol: what clients say on /ws, what back-ends post, how a push looks. No I/O.

    client     {"token": "…", "event": "…"}  or  /ws?token=…&event=…&envelope=1&confirm=1&support_gzip=1&heartbeat=25
    back-end   {"userId": "…" or ["…", …], "event": "…", "message": "…"}

Fields and parameters that nobody asked for are ignored. All text that comes out can be
written as UTF-8: JSON with half a surrogate is refused as not JSON.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import orjson

from fastpush.errors import RegistrationError, illegal_request

EVERYBODY = b"*"  # routing key of a push to all; user keys begin with "u", those of channels with "c"
HEARTBEAT_SECONDS_MAX = 3600
URL_PARAMETERS_MAX = 33  # beside events: as many as a token may vouch for, and the token
_SHOWN_CHARACTERS = 20  # of a wrong value
_BAD_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_SECONDS = re.compile("[0-9]{1,4}")
_OPTIONS = frozenset(("token", "envelope", "confirm", "support_gzip", "heartbeat"))
_new_tuple = tuple.__new__  # what a NamedTuple's constructor ends in, at half of the cost


class Registration(NamedTuple):
    """A client's wish: its token, and the event it wants."""

    token: str
    event: str


class PushRequest(NamedTuple):
    """A push to users: one at least, none empty, without repetition, in order."""

    users: tuple[str, ...]
    event: str
    message: str


class UrlOptions(NamedTuple):
    """What the URL of a WebSocket request asks for.

    token: None when the client will register by message.  gzip: pushes as gzip in binary messages.
    heartbeat: seconds, 0 for none.
    """

    token: str | None
    events: tuple[str, ...]
    envelope: bool
    confirm: bool
    gzip: bool
    heartbeat: int


NO_OPTIONS = UrlOptions(None, (), envelope=False, confirm=False, gzip=False, heartbeat=0)


class _FieldError(Exception):
    """A field is wrong; its text becomes a RegistrationError's or a RequestError's."""


def user_key(user: str, event: str) -> bytes:
    """Return the routing key of a user's event; different for any two pairs, half surrogates included."""
    return f"u{len(user)}:{user}{event}".encode("utf-8", "surrogatepass")


def user_key_start(user: str) -> bytes:
    """Return what the routing keys of all events of a user begin with, and no other key."""
    return user_key(user, "")


def parse_user_key(key: bytes) -> tuple[str, str]:
    """Return the user and event that `user_key` was given. Raises: ValueError: another kind of key."""
    size, colon, rest = key.decode("utf-8", "surrogatepass").partition(":")
    if not colon or not size.startswith("u"):
        raise ValueError(f"not a user's routing key: {key!r}")
    length = int(size[1:])
    return rest[:length], rest[length:]


def is_user_key(key: bytes) -> bool:
    """Tell whether a routing key is of a user's event."""
    return key.startswith(b"u")


def channel_key(channel: str) -> bytes:
    """Return the routing key of a channel."""
    return b"c" + channel.encode()


def claim_name(path: str, key: str) -> bytes:
    """Return the name by which an application's connection claims `key`; paths hold no zero byte."""
    return f"{path}\0{key}".encode("utf-8", "surrogatepass")


def is_channel_key(key: bytes) -> bool:
    """Tell whether a routing key is of a channel."""
    return key.startswith(b"c")


def channel_of(key: bytes) -> str:
    """Return the channel that `channel_key` was given."""
    return key[1:].decode()


def parse_registration(data: str | bytes, name_bytes: int) -> Registration:
    """Return the registration in a message, text or binary (S0-08). Unknown fields are ignored.

    Raises: RegistrationError with a reason that the client may see.
    """
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RegistrationError("not JSON") from None
    if not isinstance(fields, dict):
        raise RegistrationError("not an object")
    try:
        return Registration(_text(fields, "token"), _name(fields, "event", name_bytes))
    except _FieldError as error:
        raise RegistrationError(str(error)) from None


def registered_text(event: str) -> bytes:
    """Return the answer to a registration that is confirmed."""
    return orjson.dumps({"registered": event})


def error_text(reason: str, event: str | None) -> bytes:
    """Return the answer to a registration that is not taken."""
    return orjson.dumps({"error": reason} if event is None else {"error": reason, "event": event})


def envelope(event: str, message: str) -> bytes:
    """Return a push as clients with `envelope=1` see it."""
    return orjson.dumps({"event": event, "message": message})


def parse_query(query: str, *, name_bytes: int, registrations: int) -> UrlOptions:
    """Return the options in the query of a WebSocket URL. Unknown parameters are ignored (cache busters).

    query: as it came, decoded as Latin-1: percent-encoded, or bare UTF-8.
    Raises: RequestError 400.
    """
    options: dict[str, str] = {}
    events: dict[str, None] = {}  # a set that keeps the order
    for name, value in parse_parameters(query, registrations + URL_PARAMETERS_MAX):
        if name == "event":
            events[value] = None
        elif name in options:
            raise illegal_request(f"{name} is repeated")
        elif name in _OPTIONS:
            options[name] = value
    token = options.get("token")
    if token is None and events:
        raise illegal_request("event without token")
    if token is not None and not events:
        raise illegal_request("event is missing")
    if token == "":
        raise illegal_request("token is empty")
    check_events(events, name_bytes, registrations)
    return UrlOptions(
        token,
        tuple(events),
        envelope=switch(options, "envelope"),
        confirm=switch(options, "confirm"),
        gzip=switch(options, "support_gzip"),
        heartbeat=_heartbeat(options.get("heartbeat")),
    )


def parse_parameters(query: str, most: int = URL_PARAMETERS_MAX) -> list[tuple[str, str]]:
    """Return the names and values in a query, in order; as for `parse_query`."""
    if not query:
        return []
    bad = _BAD_PERCENT.search(query)
    if bad:
        raise illegal_request(f"the query is not percent-encoded at character {bad.start() + 1}")
    try:
        text = query if query.isascii() else query.encode("latin-1").decode()
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=most)
    except UnicodeError:
        raise illegal_request("the query is not UTF-8") from None
    except ValueError:  # what parse_qsl calls too many; UnicodeError is one as well
        raise illegal_request(f"the query has more than {most} parameters") from None


def check_events(events: Iterable[str], name_bytes: int, registrations: int) -> None:
    """Check the events that a URL asks for. Raises: RequestError 400: too many, empty or too long."""
    for count, event in enumerate(events, 1):
        if count > registrations:
            raise illegal_request(f"more than {registrations} events")
        fault = _name_fault("event", event, name_bytes)
        if fault:
            raise illegal_request(fault)


def switch(options: dict[str, str], name: str) -> bool:
    """Return whether an option is on; it is off where it is missing. Raises: RequestError 400: neither 0 nor 1."""
    value = options.get(name, "0")
    if value not in {"0", "1"}:
        raise illegal_request(f"{name} must be 0 or 1, found {_shown(value)}")
    return value == "1"


def _heartbeat(value: str | None) -> int:
    if value is None:
        return 0
    seconds = int(value) if _SECONDS.fullmatch(value) else 0
    if not 1 <= seconds <= HEARTBEAT_SECONDS_MAX:
        wanted = f"a whole number of seconds from 1 to {HEARTBEAT_SECONDS_MAX}"
        raise illegal_request(f"heartbeat must be {wanted}, found {_shown(value)}")
    return seconds


def _shown(value: str) -> str:
    return ascii(value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "...")


def parse_push(body: bytes, *, name_bytes: int, push_users: int) -> PushRequest:
    """Return the push in a request's body. Called once a push: the fault is only named when there is one.

    Raises: RequestError 400.
    """
    fields = _object(body)
    user, event, message = fields.get("userId"), fields.get("event"), fields.get("message")
    if (
        type(user) is str and type(event) is str and type(message) is str and user and event and message
        and len(user) + len(event) <= name_bytes >> 2
    ):  # fmt: skip
        return _new_tuple(PushRequest, ((user,), event, message))
    # A list, a long name, or something is wrong.
    try:
        users = _users(user, name_bytes, push_users) if type(user) is list else (_name(fields, "userId", name_bytes),)
        return PushRequest(users, _name(fields, "event", name_bytes), _text(fields, "message"))
    except _FieldError as error:
        raise illegal_request(str(error)) from None


def _users(users: list[Any], name_bytes: int, push_users: int) -> tuple[str, ...]:
    if not users:
        raise _FieldError("userId is an empty list")
    if len(users) > push_users:
        raise _FieldError(f"userId has {len(users)} entries, at most {push_users} are allowed")
    for position, user in enumerate(users):
        if type(user) is not str:
            raise _FieldError(f"userId[{position}] must be a string, found {_kind(user)}")
        if not user or _is_longer(user, name_bytes):
            raise _FieldError(_name_fault(f"userId[{position}]", user, name_bytes))
    return tuple(dict.fromkeys(users))


def parse_push_all(body: bytes, *, name_bytes: int) -> tuple[str, str]:
    """Return the event and message of a push to everybody. Raises: RequestError 400."""
    fields = _object(body)
    try:
        return _name(fields, "event", name_bytes), _text(fields, "message")
    except _FieldError as error:
        raise illegal_request(str(error)) from None


def parse_drop(body: bytes, *, name_bytes: int) -> tuple[str, str | None]:
    """Return the user and event of a drop; no event, null or "" mean all (S0-37). Raises: RequestError 400."""
    fields = _object(body)
    try:
        user = _name(fields, "userId", name_bytes)
        # Nothing else that is false may mean all.
        is_all = fields.get("event") is None or fields["event"] == ""
        return user, None if is_all else _name(fields, "event", name_bytes)
    except _FieldError as error:
        raise illegal_request(str(error)) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise illegal_request(f"body is not JSON: {_json_fault(body, error)}") from None
    if type(fields) is not dict:
        raise illegal_request(f"body must be a JSON object, found {_kind(fields)}")
    return fields


def _json_fault(body: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        body.decode()  # orjson does not say where
    except UnicodeDecodeError as bad:
        return f"not UTF-8 at byte {bad.start + 1}"
    return f"{error.msg} at line {error.lineno} column {error.colno}"


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if type(value) is not str:
        raise _FieldError(f"{name} must be a string, found {_kind(value)}" if name in fields else f"{name} is missing")
    if not value:
        raise _FieldError(f"{name} is empty")
    return value


def _name(fields: dict[str, Any], name: str, name_bytes: int) -> str:
    value = _text(fields, name)
    if _is_longer(value, name_bytes):
        raise _FieldError(_name_fault(name, value, name_bytes))
    return value


def _name_fault(name: str, value: str, name_bytes: int) -> str:
    if not value:
        return f"{name} is empty"
    return f"{name} longer than {name_bytes} bytes" if _is_longer(value, name_bytes) else ""


def _is_longer(text: str, most_bytes: int) -> bool:
    return len(text) * 4 > most_bytes and len(text.encode()) > most_bytes


def _kind(value: object) -> str:
    """Return a JSON value's type as people say it, with the value where it is short."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean {str(value).lower()}"
        case int() | float():
            return f"number {str(value)[:20]}"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
