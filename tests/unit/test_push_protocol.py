"""The simple protocol: registrations, URL options, pushes, drops, routing keys.

Independent oracles: the standard library's json reads what is written here, urlencode and quote
write what is read here.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from fastpush.errors import RegistrationError, RequestError
from fastpush.protocol import push as protocol
from fastpush.protocol.push import EVERYBODY, Registration, UrlOptions

NAME_BYTES = 512
WRONG_TYPES = [
    (None, "null"),
    (True, "boolean true"),
    (False, "boolean false"),
    (42, "number 42"),
    (0, "number 0"),
    (-1.5, "number -1.5"),
    ([], "array"),
    (["a"], "array"),
    ({}, "object"),
]
NOT_JSON = [
    b"",
    b" ",
    b"{",
    b"nul",
    b"{'a':1}",
    b'{"a":1} x',
    b"\xff",
    b'{"a":"\xff"}',
    b'{"a":"\\ud800"}',
    b"[" * 5000,
]
NOT_OBJECTS = [("[]", "array"), ('"a"', "string"), ("42", "number 42"), ("true", "boolean true"), ("null", "null")]
NAMES = ["jack", "新闻", "a b", '"\\/\n\x00', "😀", "é" * 100, "*", "u4:x"]


def refusal(call: Callable[[], object]) -> str:
    """Return the reason of a 400; its plain body is S0-22's."""
    with pytest.raises(RequestError) as raised:
        call()
    error = raised.value
    assert (error.status, error.code, error.text) == (400, "illegal_request", "request data illegal")
    return error.reason


# Registration by message


def failure(data: str | bytes, name_bytes: int = NAME_BYTES) -> str:
    with pytest.raises(RegistrationError) as raised:
        protocol.parse_registration(data, name_bytes)
    return str(raised.value)


@pytest.mark.parametrize("event", NAMES)
def test_registration(event: str) -> None:
    """S0-06, S0-08: a JSON object with token and event registers, as text and as binary alike."""
    for text in (json.dumps({"token": "aaa", "event": event}), json.dumps({"event": event, "token": "aaa"}, indent=1)):
        assert protocol.parse_registration(text, NAME_BYTES) == Registration("aaa", event)
        assert protocol.parse_registration(text.encode(), NAME_BYTES) == Registration("aaa", event)
    bare = json.dumps({"token": event, "event": event}, ensure_ascii=False)
    assert protocol.parse_registration(bare.encode(), NAME_BYTES) == (event, event)


def test_registration_ignores_other_fields() -> None:
    """S0-06: fields that nobody asked for change nothing."""
    assert protocol.parse_registration('{"token":"a","x":[{}],"event":"e","y":null}', NAME_BYTES) == ("a", "e")


@pytest.mark.parametrize("data", NOT_JSON)
def test_registration_not_json(data: bytes) -> None:
    """S0-09: what is not JSON raises one error, which leaves the connection open."""
    assert failure(data) == "not JSON"


def test_registration_cut_anywhere() -> None:
    """S0-09: a registration of which the end is missing is not JSON, wherever it was cut; with more behind it, too."""
    text = '{"token":"é","event":"新闻"}'
    for data in (text, text.encode()):
        for size in range(len(data)):
            assert failure(data[:size]) == "not JSON"
    assert failure(text + text) == "not JSON"
    assert protocol.parse_registration(f" \n{text}\t ", NAME_BYTES) == ("é", "新闻")


@pytest.mark.parametrize("text", [text for text, _ in NOT_OBJECTS])
def test_registration_not_an_object(text: str) -> None:
    """S0-09: JSON that is no object raises one error as well."""
    assert failure(text) == "not an object"


@pytest.mark.parametrize("name", ["token", "event"])
@pytest.mark.parametrize(("value", "found"), WRONG_TYPES)
def test_registration_wrong_type(name: str, value: object, found: str) -> None:
    """S0-09: a token or event of another type is named with what was found."""
    assert (
        failure(json.dumps({"token": "a", "event": "e"} | {name: value})) == f"{name} must be a string, found {found}"
    )


@pytest.mark.parametrize("name", ["token", "event"])
def test_registration_missing_or_empty(name: str) -> None:
    """S0-15: an empty event cannot be registered, nor one that is not there; a token neither."""
    fields = {"token": "a", "event": "e"}
    assert failure(json.dumps(fields | {name: ""})) == f"{name} is empty"
    del fields[name]
    assert failure(json.dumps(fields)) == f"{name} is missing"


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_registration_event_limit(character: str) -> None:
    """An event of name_bytes is taken, one byte more is not; bytes of UTF-8 count."""
    event = character * 8
    text = json.dumps({"token": "a", "event": event})
    size = len(event.encode())
    assert protocol.parse_registration(text, size).event == event
    assert failure(text, size - 1) == f"event longer than {size - 1} bytes"
    assert failure(json.dumps({"token": "a", "event": "x" * 513})) == "event longer than 512 bytes"


def test_answers_are_json() -> None:
    """Answers and the envelope are UTF-8 JSON for every name and reason."""
    for event in NAMES:
        assert json.loads(protocol.registered_text(event)) == {"registered": event}
        assert json.loads(protocol.error_text("not JSON", event)) == {"error": "not JSON", "event": event}
        assert json.loads(protocol.envelope(event, "hé\n")) == {"event": event, "message": "hé\n"}
        assert event.isascii() or event.encode() in protocol.registered_text(event)
    assert json.loads(protocol.error_text("not JSON", None)) == {"error": "not JSON"}
    assert protocol.registered_text("topic1") == b'{"registered":"topic1"}'
    assert protocol.envelope("e", "m") == b'{"event":"e","message":"m"}'


# Registration by URL


def options(query: str, registrations: int = 100, name_bytes: int = NAME_BYTES) -> UrlOptions:
    return protocol.parse_query(query, name_bytes=name_bytes, registrations=registrations)


def query_refusal(query: str, **limits: int) -> str:
    return refusal(lambda: options(query, **limits))


@pytest.mark.parametrize("query", ["", "&", "&&", "x=1", "_=1700000000", "x", "Token=a&EVENT=b"])
def test_query_of_nothing(query: str) -> None:
    """Without parameters of ours nothing is asked for; unknown ones are ignored, and names have one spelling."""
    nothing = UrlOptions(token=None, events=(), envelope=False, confirm=False, gzip=False, heartbeat=0)
    assert options(query) == nothing


@pytest.mark.parametrize("name", NAMES)
def test_query_registers(name: str) -> None:
    """Token and events come back as they were, percent-encoded by the standard library in either way."""
    events = [name, "other"]
    for quoting in (urlencode, lambda pairs: "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs)):
        query = quoting([("event", events[0]), ("token", name), ("event", events[1]), ("_", "1")])
        assert options(query) == (name, tuple(events), False, False, False, 0)


def test_query_of_bare_utf8() -> None:
    """Bytes that were not percent-encoded, and arrive as Latin-1 from the HTTP parser, are UTF-8 too."""
    wire = "token=a&event=新闻".encode().decode("latin-1")
    assert options(wire).events == ("新闻",)
    assert query_refusal("token=a&event=\xff") == "the query is not UTF-8"
    assert query_refusal("token=a&event=新") == "the query is not UTF-8"


@pytest.mark.parametrize("query", ["event=%zz", "event=%", "event=%4", "event=a%2", "x=%G0", "%=1", "event=%%41"])
def test_query_bad_percent(query: str) -> None:
    """A percent sign without two digits is told with its place."""
    place = query.index("%") + 1
    assert query_refusal(f"{query}&token=a") == f"the query is not percent-encoded at character {place}"


@pytest.mark.parametrize("value", ["%ff", "%e2%82", "%ed%a0%80", "%c0%80"])
def test_query_not_utf8(value: str) -> None:
    """Percent-encoded bytes that are not UTF-8 are refused, in values and names."""
    assert query_refusal(f"token=a&event={value}") == "the query is not UTF-8"
    assert query_refusal(f"token=a&event=e&{value}=1") == "the query is not UTF-8"


def test_query_cut_within_an_escape() -> None:
    """A query cut anywhere is refused or read as the shorter one, never by another kind of error."""
    query = "token=a&event=%e6%96%b0%e9%97%bb"
    read = set()
    for size in range(len(query) + 1):
        try:
            read.add(options(query[:size]).events)
        except RequestError as error:
            assert error.status == 400
    assert read == {(), ("新",), ("新闻",)}


def test_query_repeated_events() -> None:
    """An event given twice is registered once, in the first one's place."""
    assert options("token=a&event=x&event=y&event=x").events == ("x", "y")


@pytest.mark.parametrize("name", ["token", "envelope", "confirm", "support_gzip", "heartbeat"])
def test_query_repeated(name: str) -> None:
    """What may be given once is refused twice, even with the same value."""
    query = "token=a&event=e&envelope=1&confirm=1&support_gzip=1&heartbeat=5"
    assert query_refusal(f"{query}&{name}=1") == f"{name} is repeated"


def test_query_half_a_registration() -> None:
    """An event without token, and a token without event, are refused; so is an empty one (S0-15)."""
    assert query_refusal("event=e") == "event without token"
    assert query_refusal("token=a") == "event is missing"
    assert query_refusal("token=a&confirm=1") == "event is missing"
    assert query_refusal("token=a&event=") == "event is empty"
    assert query_refusal("token=a&event=x&event") == "event is empty"
    assert query_refusal("token=&event=e") == "token is empty"


def test_query_event_limits() -> None:
    """`registrations` events are taken and one more is not; the same for name_bytes, in UTF-8."""
    query = urlencode([("token", "a"), *(("event", f"e{number}") for number in range(5))])
    assert len(options(query, registrations=5).events) == 5
    assert query_refusal(query, registrations=4) == "more than 4 events"
    query = urlencode({"token": "a", "event": "€€"})
    assert options(query, name_bytes=6).events == ("€€",)
    assert query_refusal(query, name_bytes=5) == "event longer than 5 bytes"


def test_query_parameter_limit() -> None:
    """Unknown parameters are bounded, and so is the work that they cause."""
    assert options("&".join(["x=1"] * 32)).token is None
    assert query_refusal("&".join(["x=1"] * 134)) == "the query has more than 133 parameters"
    assert "parameters" in query_refusal("&" * 100_000)
    assert (
        len(options(urlencode([("token", "a"), *(("event", n) for n in range(5000))]), registrations=5000).events)
        == 5000
    )


@pytest.mark.parametrize(
    ("name", "field"), [("envelope", "envelope"), ("confirm", "confirm"), ("support_gzip", "gzip")]
)
def test_query_flags(name: str, field: str) -> None:
    """A flag is 0 or 1, and means one thing alone; anything else is refused with what was found."""
    assert options(f"{name}=1") == options("")._replace(**{field: True})
    assert options(f"{name}=0") == options("")
    for value in ("2", "", "true", "01", "1 ", "\u0661"):
        assert query_refusal(urlencode({name: value})) == f"{name} must be 0 or 1, found {value!a}"
    assert query_refusal(f"{name}={'x' * 5000}").endswith("x...'")


def test_query_heartbeat() -> None:
    """A heartbeat is 1 to 3600 whole seconds; not given is none."""
    for seconds in (1, 25, 3600):
        assert options(f"heartbeat={seconds}").heartbeat == seconds
    for value in ("0", "3601", "-1", "+1", "1.5", "", "abc", "1e1", " 5", "9999", "1_0", "٢٥", "9" * 5000):
        reason = query_refusal(urlencode({"heartbeat": value}))
        assert reason.startswith("heartbeat must be a whole number of seconds from 1 to 3600, found '")
        assert len(reason) < 150


# Push


def push(body: bytes | dict[str, Any], name_bytes: int = NAME_BYTES, push_users: int = 10) -> protocol.PushRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return protocol.parse_push(data, name_bytes=name_bytes, push_users=push_users)


def push_all(body: bytes) -> object:
    return protocol.parse_push_all(body, name_bytes=NAME_BYTES)


def drop(body: bytes) -> object:
    return protocol.parse_drop(body, name_bytes=NAME_BYTES)


def good(**changes: Any) -> dict[str, Any]:
    return {"userId": "jack", "event": "topic1", "message": "hello"} | changes


@pytest.mark.parametrize("name", NAMES)
def test_push(name: str) -> None:
    """S0-21, S0-29: userId, event and message come back as they were, in any order, other fields ignored."""
    expected = ((name,), name, name)
    fields = {"message": name, "x": [1], "event": name, "userId": name}
    assert push(fields) == expected
    assert push(json.dumps(fields, ensure_ascii=False, indent=1).encode()) == expected
    assert type(push(fields)) is protocol.PushRequest
    assert push(fields).users == (name,)


@pytest.mark.parametrize("parse", [push, push_all, drop])
@pytest.mark.parametrize("data", NOT_JSON)
def test_body_not_json(parse: Callable[[bytes], object], data: bytes) -> None:
    """S0-22: a body that is not JSON is 400 with a place, for each of the three requests."""
    reason = refusal(lambda: parse(data))
    assert reason.startswith("body is not JSON: ")
    assert " at " in reason


def test_body_not_json_place() -> None:
    """S0-22: the place is line and column, or the byte that is not UTF-8."""
    assert refusal(lambda: push(b'{"a":1,\n x}')).endswith(" at line 2 column 2")
    assert refusal(lambda: push(b'{"a":"\xff"}')) == "body is not JSON: not UTF-8 at byte 7"


def test_body_cut_anywhere() -> None:
    """S0-22: a body of which the end is missing is refused, wherever it was cut."""
    body = json.dumps(good(message="é新😀"), ensure_ascii=False).encode()
    assert push(body).message == "é新😀"
    for size in range(len(body)):
        assert refusal(lambda size=size: push(body[:size])).startswith("body is not JSON: ")
    refusal(lambda: push(body + b"x"))
    assert push(b" \r\n" + body + b"\n").users == ("jack",)


@pytest.mark.parametrize("parse", [push, push_all, drop])
@pytest.mark.parametrize(("text", "found"), NOT_OBJECTS)
def test_body_not_an_object(parse: Callable[[bytes], object], text: str, found: str) -> None:
    """S0-22: JSON that is no object is 400 with what was found."""
    assert refusal(lambda: parse(text.encode())) == f"body must be a JSON object, found {found}"


@pytest.mark.parametrize("name", ["userId", "event", "message"])
@pytest.mark.parametrize(("value", "found"), WRONG_TYPES)
def test_push_wrong_type(name: str, value: object, found: str) -> None:
    """S0-22: a field of another type is 400, named with what was found. A userId may be a list."""
    if not (name == "userId" and isinstance(value, list)):
        assert refusal(lambda: push(good(**{name: value}))) == f"{name} must be a string, found {found}"


@pytest.mark.parametrize("name", ["userId", "event", "message"])
def test_push_missing_or_empty(name: str) -> None:
    """S0-23, S0-15: any of the three fields empty or missing is 400."""
    assert refusal(lambda: push(good(**{name: ""}))) == f"{name} is empty"
    fields = good()
    del fields[name]
    assert refusal(lambda: push(fields)) == f"{name} is missing"


def test_push_first_fault_is_told() -> None:
    """S0-20: fields are checked in the order userId, event, message."""
    assert refusal(lambda: push(b"{}")) == "userId is missing"
    assert refusal(lambda: push(b'{"userId":"a"}')) == "event is missing"
    assert refusal(lambda: push(b'{"message":1,"event":2,"userId":3}')) == "userId must be a string, found number 3"


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
@pytest.mark.parametrize("name", ["userId", "event"])
def test_push_name_limit(name: str, character: str) -> None:
    """A userId or event of name_bytes is taken, one byte more is not; the message has no such limit."""
    value = character * 50
    size = len(value.encode())
    fields = good(**{name: value}, message="x" * 5000)
    assert value in (push(fields, name_bytes=size).users[0], push(fields, name_bytes=size).event)
    assert refusal(lambda: push(fields, name_bytes=size - 1)) == f"{name} longer than {size - 1} bytes"


def test_push_to_a_list() -> None:
    """A list of users keeps its order and loses repetitions."""
    assert push(good(userId=["b", "a", "b", "é", "a"])) == (("b", "a", "é"), "topic1", "hello")
    assert push(good(userId=["b"])).users == ("b",)


def test_push_list_faults() -> None:
    """S0-23: an empty list, and an empty, wrong or long entry, are 400 and named by position."""
    assert refusal(lambda: push(good(userId=[]))) == "userId is an empty list"
    assert refusal(lambda: push(good(userId=["a", ""]))) == "userId[1] is empty"
    assert refusal(lambda: push(good(userId=["a", 42]))) == "userId[1] must be a string, found number 42"
    assert refusal(lambda: push(good(userId=[["a"]]))) == "userId[0] must be a string, found array"
    assert push(good(userId=["€€"], event="e"), name_bytes=6).users == ("€€",)
    assert refusal(lambda: push(good(userId=["a", "€€"], event="e"), name_bytes=5)) == "userId[1] longer than 5 bytes"


def test_push_list_limit() -> None:
    """push_users entries are taken, one more is not; repetitions count."""
    assert len(push(good(userId=[str(n) for n in range(10)])).users) == 10
    expected = "userId has 11 entries, at most 10 are allowed"
    assert refusal(lambda: push(good(userId=["a"] * 11))) == expected


def test_push_long_number_is_shown_short() -> None:
    """A reason stays short, whatever was sent."""
    for text in ("1" * 300, "-" + "9" * 300, "0." + "1" * 300):
        assert len(refusal(lambda text=text: push(f'{{"userId":{text}}}'.encode()))) < 100


@pytest.mark.parametrize("parse", [push_all, drop])
def test_other_requests_fields(parse: Callable[[bytes], object]) -> None:
    """S0-23: push to everybody wants event and message, drop wants userId; told in the same words."""
    first = "event" if parse is push_all else "userId"
    assert refusal(lambda: parse(b"{}")) == f"{first} is missing"
    for value, found in (
        ('""', "is empty"),
        ("42", "must be a string, found number 42"),
        ("null", "must be a string, found null"),
    ):
        assert refusal(lambda value=value: parse(f'{{"{first}":{value},"message":"m"}}'.encode())) == f"{first} {found}"
    assert (
        refusal(lambda: parse(f'{{"{first}":"{"x" * 513}","message":"m"}}'.encode()))
        == f"{first} longer than 512 bytes"
    )


def test_push_all() -> None:
    """A push to everybody has event and message; a userId is not looked at."""
    assert push_all(b'{"event":"e","message":"m","userId":42}') == ("e", "m")
    assert refusal(lambda: push_all(b'{"event":"e","message":""}')) == "message is empty"
    assert refusal(lambda: push_all(b'{"event":"e"}')) == "message is missing"


def test_drop() -> None:
    """S0-37: a drop names a user, and an event or none; missing, null and empty mean all."""
    assert drop(b'{"userId":"jack","event":"topic1"}') == ("jack", "topic1")
    for event in (b"", b',"event":null', b',"event":""'):
        assert drop(b'{"userId":"jack"' + event + b"}") == ("jack", None)


@pytest.mark.parametrize(("value", "found"), [entry for entry in WRONG_TYPES if entry[0] is not None])
def test_drop_wrong_event(value: object, found: str) -> None:
    """S0-22: an event of another type never means all events, false and 0 included."""
    body = json.dumps({"userId": "jack", "event": value}).encode()
    assert refusal(lambda: drop(body)) == f"event must be a string, found {found}"


def test_drop_wants_one_user() -> None:
    """A drop names one user, not a list."""
    assert refusal(lambda: drop(b'{"userId":["a"]}')) == "userId must be a string, found array"


# Routing keys


def test_user_keys_are_unambiguous() -> None:
    """S0-28: every pair of strings has a key of its own, read back as it was, and none is everybody's."""
    parts = ["", "a", "ab", "b", ":", "1", "1:", "11", "u1:a", "*", "é", "😀", "\x00", "\ud83d", "\ude00", "a:b"]
    keys = {}
    for user, event in itertools.product(parts, repeat=2):
        key = protocol.user_key(user, event)
        assert type(key) is bytes
        assert protocol.parse_user_key(key) == (user, event)
        keys[key] = user, event
    assert len(keys) == len(parts) ** 2
    assert EVERYBODY not in keys


def test_user_key_of_everybody() -> None:
    """Everybody's key is no user's."""
    with pytest.raises(ValueError, match="routing key"):
        protocol.parse_user_key(EVERYBODY)
