"""fastpush.protocol.server_sent: events and ids on the wire, and what the URLs of streams ask for."""

import re
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpush.errors import RequestError
from fastpush.protocol.bus import Position
from fastpush.protocol.client import Recover
from fastpush.protocol.push import channel_key
from fastpush.protocol.server_sent import (
    CHANNELS_MAX,
    COMMENT,
    POSITIONS_MAX,
    event,
    identifier,
    parse_identifier,
    parse_stream,
    parse_unidirectional,
    tag,
)

POSITIONS = st.dictionaries(
    st.binary(max_size=20),
    st.builds(Position, st.integers(0, 10**19 - 1), st.integers(1, 2**64 - 1)),
    min_size=1,
    max_size=POSITIONS_MAX,
)


def interpret(stream: bytes) -> list[tuple[str, str, str]]:
    """Name, data and last id of each event that a browser tells its page of (the HTML standard, 9.2.6)."""
    told = []
    name, data, last_id = "", "", ""
    for line in re.split("\r\n|\n|\r", stream.decode())[:-1]:
        if not line:
            if data:
                told.append((name, data.removesuffix("\n"), last_id))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value + "\n"
        elif field == "id":
            last_id = value
    return told


def read(query: dict[str, Any], **limits: int) -> Any:
    return parse_stream(urlencode(query, doseq=True), **{"name_bytes": 512, "registrations": 8, **limits})


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=50), max_size=5))
def test_any_text_is_one_event(texts: list[str]) -> None:
    """Whatever is in a text, it is one event to a browser, with that text: each of its line ends is one line feed."""
    stream = b"".join(event(text.encode(), "named") for text in texts)
    expected = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert interpret(COMMENT + stream) == [("named", text, "") for text in expected]


@given(POSITIONS)
def test_an_id_says_where_its_channels_stand(positions: dict[bytes, Position]) -> None:
    """An id is read as it was written, by the tags of its channels, and is one line that any header may hold."""
    stream = identifier(positions) + event(b"x")
    ((_, _, last_id),) = interpret(stream)
    assert re.fullmatch("[0-9a-f.,]+", last_id)
    expected = {tag(key): Recover(True, offset, f"{epoch:x}") for key, (offset, epoch) in positions.items()}
    assert parse_identifier(last_id) == expected


@given(st.text() | st.from_regex("[0-9a-f.,]{0,60}"))
def test_any_other_id_is_none(text: str) -> None:
    """What `identifier` has not made gives no positions, or ones that it could have made."""
    for recover in parse_identifier(text).values():
        assert recover.recover and 0 <= recover.offset < 2**64 and 0 < int(recover.epoch, 16) < 2**64


def test_ids_are_bounded() -> None:
    """One place more than an id may have, and it is none."""
    place = "0000000a.1.1"
    assert parse_identifier(",".join([place] * POSITIONS_MAX))
    assert parse_identifier(",".join([place] * (POSITIONS_MAX + 1))) == {}


def test_what_a_url_asks_for() -> None:
    """Events, channels and subscription tokens come without repetition, in order; what is unknown is ignored."""
    options = read(
        {
            "token": "t", "event": ["b", "a", "b"], "channel": ["chat:2", "chat:1", "chat:2"], "subtoken": ["s", "s"],
            "envelope": "1", "last_event_id": "0000000a.7.b", "cache": ["1", "2"],
        }
    )  # fmt: skip
    assert options == ("t", ("b", "a"), ("chat:2", "chat:1"), ("s",), True, {10: Recover(True, 7, "b")})
    assert read({"channel": "news"}) == (None, (), ("news",), (), False, {})


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({}, "event or channel is missing"),
        ({"token": "t"}, "event or channel is missing"),
        ({"event": "e"}, "event without token"),
        ({"token": "", "event": "e"}, "token is empty"),
        ({"token": ["a", "b"], "event": "e"}, "token is repeated"),
        ({"channel": "c", "envelope": ["0", "0"]}, "envelope is repeated"),
        ({"channel": "c", "envelope": "2"}, "envelope must be 0 or 1, found '2'"),
        ({"channel": [f"c{n}" for n in range(CHANNELS_MAX + 1)]}, "more than 16 channels"),
        ({"channel": "c", "subtoken": ["a", "b"]}, "more subtokens than channels"),
        ({"token": "t", "event": [f"e{n}" for n in range(9)]}, "more than 8 events"),
        ({"token": "t", "event": "e" * 513}, "event longer than 512 bytes"),
        ({"channel": "c", "x": ["y"] * 80}, "the query has more than 73 parameters"),
    ],
)
def test_faults_of_a_url(query: dict[str, Any], reason: str) -> None:
    """Each is 400 and named."""
    with pytest.raises(RequestError, match=re.escape(reason)) as caught:
        read(query)
    assert caught.value.status == 400


def test_unidirectional() -> None:
    """cf_connect is a connect command, an anonymous one where it is missing; last_event_id is read beside it."""
    query = urlencode({"cf_connect": '{"token":"t","subs":{"a":{"recover":true,"offset":1,"epoch":"e"}}}', "x": "y"})
    connect, resumed = parse_unidirectional(f"{query}&last_event_id={tag(channel_key('a')):08x}.5.c")
    assert (connect.token, connect.subs) == ("t", {"a": Recover(True, 1, "e")})
    assert resumed == {tag(channel_key("a")): Recover(True, 5, "c")}
    assert parse_unidirectional("")[0].token == ""
    for query in ("cf_connect=", "cf_connect=[]", "cf_connect=%7B%7D&cf_connect=%7B%7D", "cf_connect=%FF"):
        with pytest.raises(RequestError) as caught:
            parse_unidirectional(query)
        assert caught.value.status == 400
