"""fastpush.protocol.api: bodies to requests or refusals, whatever comes; and what a pattern of channels means."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpush.protocol import api
from fastpush.protocol.client import ErrorCode
from fastpush.worker.orders import matches

KINDS = [
    api.Publish, api.Broadcast, api.Subscribe, api.Unsubscribe, api.Disconnect, api.Refresh, api.Channel, api.History,
    api.Channels, api.Connections, api.Info, api.Rpc, api.Batch, api.Line,
]  # fmt: skip
FIELDS = sorted({field for kind in KINDS for field in kind.__struct_fields__})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(FIELDS), inner),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(FIELDS), VALUES)


def check(kind: Any, body: bytes) -> None:
    """A body is read, or refused with a text that JSON can carry; what was read can be looked at."""
    try:
        request = api.read(kind, body)
        if isinstance(request, api.Publish | api.Broadcast):
            api.options(request)
        if isinstance(request, api.Disconnect):
            api.close_with(request.disconnect, (3503, ""))
        if isinstance(request, api.Refresh):
            api.expiry(request)
        if isinstance(request, api.History):
            api.since(request.since)
    except api.Refusal as refusal:
        assert refusal.code in {ErrorCode.BAD_REQUEST, ErrorCode.NOT_AVAILABLE}
        assert json.loads(api.error_reply(refusal.code, refusal.message))["error"]["message"]


@given(st.sampled_from(KINDS), BODIES)
def test_any_fields(kind: Any, fields: dict[str, Any]) -> None:
    """Whatever stands in the fields, the body becomes a request or a refusal, never another error."""
    check(kind, json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    check(kind, json.dumps(fields).encode())


@given(st.sampled_from(KINDS), BODIES, st.integers(0), st.binary(max_size=3))
def test_mutated_bodies(kind: Any, fields: dict[str, Any], place: int, wrong: bytes) -> None:
    """The same of a body with some bytes replaced, and of one that is cut."""
    body = json.dumps(fields).encode()
    place %= len(body)
    check(kind, body[:place] + wrong + body[place + len(wrong) :])
    check(kind, body[:place])


@given(VALUES)
def test_data_stays_as_it_is(data: Any) -> None:
    """Data is kept byte by byte, so that no number or order of members changes."""
    text = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
    request = api.read(api.Publish, b'{"channel":"c","data": %b }' % text)
    assert bytes(request.data) == text


@pytest.mark.parametrize("kind", KINDS)
def test_null_is_like_left_out(kind: Any) -> None:
    """An optional field may be null; one that is needed may not, and is named."""
    fields = dict.fromkeys(kind.__struct_fields__)
    needed = {"channel", "channels", "user", "method", "commands"}.intersection(fields)
    good = {"channels": ["c"], "commands": [{}]}
    api.read(kind, json.dumps(fields | {name: good.get(name, "text") for name in needed}).encode())
    if needed:
        with pytest.raises(api.Refusal, match=r"(channel|channels|user|method|commands) must be .*, found null"):
            api.read(kind, json.dumps(fields).encode())


def test_statuses() -> None:
    """Errors that are HTTP statuses are those that Centrifugo has for its codes."""
    assert {code: api.status_of(code) for code in (100, 102, 104, 107, 108, 112, 404)} == {
        100: 500, 102: 404, 104: 404, 107: 400, 108: 400, 112: 416, 404: 500,
    }  # fmt: skip


def test_errors_of_any_text() -> None:
    """A handler's error whose text no UTF-8 can carry is told as far as that goes."""
    assert json.loads(api.error_reply(400, "half \ud800"))["error"]["message"] == "half ?"


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_patterns(pattern: str, name: str) -> None:
    """A pattern matches as the regular expression with any text for each `*`."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, name) == bool(re.fullmatch(expression, name))
