"""The simple protocol: what clients say on /ws, what back-ends post, how a push looks. No I/O."""

from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl

import orjson

from fastpush.errors import RegistrationError, RequestError, illegal_request

EVERYBODY = b"*"  # routing key of a broadcast; user keys begin with "u"
HEARTBEAT_SECONDS_MAX = 3600
_QUERY_FIELDS_MAX = 1000


class Registration(NamedTuple):
    """A client's wish: its token, and the event it wants."""

    token: str
    event: str


class PushRequest(NamedTuple):
    """A push to users who are not empty, without repetition."""

    users: tuple[str, ...]
    event: str
    message: str


class UrlOptions(NamedTuple):
    """What the URL of a WebSocket request asks for. heartbeat: seconds, 0 for none."""

    token: str | None
    events: tuple[str, ...]
    envelope: bool
    confirm: bool
    heartbeat: int


def user_key(user: str, event: str) -> bytes:
    """Return the routing key of a user's event; different for any two pairs."""
    return f"u{len(user)}:{user}{event}".encode()


def parse_user_key(key: bytes) -> tuple[str, str]:
    """Return the user and event that `user_key` was given."""
    size, _, rest = key[1:].decode().partition(":")
    return rest[: int(size)], rest[int(size) :]


def parse_registration(data: str | bytes, name_bytes: int) -> Registration:
    """Return the registration in a message, text or binary (S0-08). Unknown fields are ignored.

    Raises: RegistrationError with a reason that the client may see.
    """
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise RegistrationError("not JSON") from None
    if not isinstance(fields, dict):
        raise RegistrationError(f"must be a JSON object, found {_kind(fields)}")
    token, event = (_registration_field(fields, name) for name in ("token", "event"))
    if _is_longer(event, name_bytes):
        raise RegistrationError(f"event is longer than {name_bytes} bytes")
    return Registration(token, event)


def _registration_field(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    raise RegistrationError(_field_fault(fields, name, "a string"))


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
    """Return the options in the query of a WebSocket URL. Unknown parameters are ignored.

    Raises: RequestError 400.
    """
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX, encoding="utf-8"
        )
    except (ValueError, UnicodeDecodeError):
        raise illegal_request("the query is not valid: too many fields, or not UTF-8") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    tokens, events = values.get("token", []), tuple(dict.fromkeys(values.get("event", [])))
    if len(tokens) > 1:
        raise illegal_request("token is given more than once")
    if bool(tokens) != bool(events):
        raise illegal_request(f"{'event' if tokens else 'token'} is missing: a registration by URL needs both")
    if tokens and not tokens[0]:
        raise illegal_request("token is empty")
    if len(events) > registrations:
        raise illegal_request(f"more than {registrations} events")
    for event in events:
        if not event or _is_longer(event, name_bytes):
            raise illegal_request("event is empty" if not event else f"event is longer than {name_bytes} bytes")
    return UrlOptions(
        tokens[0] if tokens else None,
        events,
        _switch(values, "envelope"),
        _switch(values, "confirm"),
        _heartbeat(values),
    )


def _switch(values: dict[str, list[str]], name: str) -> bool:
    value = values.get(name, ["0"])[-1]
    if value not in {"0", "1"}:
        raise illegal_request(f"{name} must be 0 or 1, found {value[:20]!r}")
    return value == "1"


def _heartbeat(values: dict[str, list[str]]) -> int:
    value = values.get("heartbeat", ["0"])[-1]
    if not (value.isascii() and value.isdigit() and len(value) <= 4 and int(value) <= HEARTBEAT_SECONDS_MAX):  # noqa: PLR2004
        raise illegal_request(f"heartbeat must be 1 to {HEARTBEAT_SECONDS_MAX} seconds, or 0, found {value[:20]!r}")
    return int(value)


def parse_push(body: bytes, *, name_bytes: int, push_users: int) -> PushRequest:
    """Return the push in a request's body. Called once a push: the fault is only named when there is one.

    Raises: RequestError 400.
    """
    try:
        fields = orjson.loads(body)
        user, event, message = fields["userId"], fields["event"], fields["message"]
        if (
            type(user) is str and type(event) is str and type(message) is str and user and event and message
            and len(user) + len(event) <= name_bytes >> 2
        ):  # fmt: skip
            return PushRequest((user,), event, message)
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        pass
    return _parse_unusual_push(body, name_bytes, push_users)


def _parse_unusual_push(body: bytes, name_bytes: int, push_users: int) -> PushRequest:
    fields = _object(body)
    users = fields.get("userId")
    if isinstance(users, list):
        if not users:
            raise illegal_request("userId is an empty list")
        if len(users) > push_users:
            raise illegal_request(f"userId has {len(users)} entries, at most {push_users} are allowed")
        for position, user in enumerate(users):
            if not isinstance(user, str) or not user or _is_longer(user, name_bytes):
                fault = (
                    "an empty string" if user == "" else _kind(user) if not isinstance(user, str) else "a longer one"
                )
                raise illegal_request(f"userId[{position}] must be a string of 1 to {name_bytes} bytes, found {fault}")
        names = tuple(dict.fromkeys(users))
    else:
        names = (_name(fields, "userId", name_bytes, "a string or a list of strings"),)
    return PushRequest(names, _name(fields, "event", name_bytes), _text(fields, "message"))


def parse_push_all(body: bytes, *, name_bytes: int) -> tuple[str, str]:
    """Return the event and message of a push to everybody. Raises: RequestError 400."""
    fields = _object(body)
    return _name(fields, "event", name_bytes), _text(fields, "message")


def parse_drop(body: bytes, *, name_bytes: int) -> tuple[str, str | None]:
    """Return the user and event of a drop; None, null or "" mean all events. Raises: RequestError 400."""
    fields = _object(body)
    user = _name(fields, "userId", name_bytes)
    return user, (_name(fields, "event", name_bytes) if fields.get("event") else None)


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise illegal_request(f"body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise illegal_request(f"body must be a JSON object, found {_kind(fields)}")
    return fields


def _name(fields: dict[str, Any], name: str, name_bytes: int, wanted: str = "a string") -> str:
    value = _text(fields, name, wanted)
    if _is_longer(value, name_bytes):
        raise illegal_request(f"{name} is longer than {name_bytes} bytes ([limits] name_bytes)")
    return value


def _text(fields: dict[str, Any], name: str, wanted: str = "a string") -> str:
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    _refuse(fields, name, wanted)


def _refuse(fields: dict[str, Any], name: str, wanted: str) -> NoReturn:
    raise illegal_request(_field_fault(fields, name, wanted))


def _field_fault(fields: dict[str, Any], name: str, wanted: str) -> str:
    if name not in fields:
        return f"{name} is missing"
    if fields[name] == "":
        return f"{name} is empty"
    return f"{name} must be {wanted}, found {_kind(fields[name])}"


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
