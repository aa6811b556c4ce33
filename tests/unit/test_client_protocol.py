"""fastpush.protocol.client: how commands are read, how replies and pushes look, what codes mean."""

import json
from typing import Any

import msgspec
import pytest

from fastpush.protocol import client
from fastpush.protocol.client import (
    BadCommand,
    Command,
    Connect,
    ConnectResult,
    DisconnectCode,
    ErrorCode,
    History,
    Pong,
    Position,
    Presence,
    PresenceStats,
    Publish,
    Recover,
    Refresh,
    Rpc,
    Send,
    SubRefresh,
    Subscribe,
    SubscribeResult,
    Unsubscribe,
    UnsubscribeCode,
    Unsupported,
    read_command,
    read_connect,
)

PLAIN = Subscribe(
    2,
    "chat:42",
    token="",
    data=b"",
    recover=False,
    offset=0,
    epoch="",
    positioned=False,
    recoverable=False,
    join_leave=False,
    reject_unrecovered=False,
)
FULL = Subscribe(
    2,
    "chat:42",
    token="t",
    data=b"[1]",
    recover=True,
    offset=2**64 - 1,
    epoch="1f",
    positioned=True,
    recoverable=True,
    join_leave=True,
    reject_unrecovered=True,
)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('{"id":1,"connect":{}}', Connect(1)),
        (
            """{"id":1,"connect":{"token":"t","data":{"a":1},"name":"js","version":"2","headers":{"a":"b"},
                "subs":{"a:1":{"recover":true,"offset":5,"epoch":"1f"},"a:2":{},"a:3":null}}}""",
            Connect(1, "t", b'{"a":1}', "js", "2", {"a:1": Recover(True, 5, "1f"), "a:2": Recover(False, 0, "")}),
        ),
        ('{"id":2,"subscribe":{"channel":"chat:42"}}', PLAIN),
        ('{"subscribe":{"channel":"chat:42","flag":1,"delta":"fossil","type":0,"tf":null},"id":2}', PLAIN),
        (
            """{"id":2,"subscribe":{"channel":"chat:42","token":"t","data":[1],"recover":true,"epoch":"1f","flag":3,
                "offset":18446744073709551615,"positioned":true,"recoverable":true,"join_leave":true}}""",
            FULL,
        ),
        ('{"id":3,"unsubscribe":{"channel":"a"}}', Unsubscribe(3, "a")),
        ('{"id":4294967295,"publish":{"channel":"a","data":"\\u00e9"}}', Publish(4294967295, "a", b'"\\u00e9"')),
        ('{"id":4,"publish":{"channel":"a","data":null}}', Publish(4, "a", b"null")),
        ('{"id":5,"presence":{"channel":"a"}}', Presence(5, "a")),
        ('{"id":6,"presence_stats":{"channel":"a"}}', PresenceStats(6, "a")),
        ('{"id":7,"history":{"channel":"a"}}', History(7, "a", 0, None, reverse=False)),
        (
            '{"id":7,"history":{"channel":"a","limit":-1,"since":{"offset":3,"epoch":"e"},"reverse":true}}',
            History(7, "a", -1, Position(3, "e"), reverse=True),
        ),
        ('{"id":7,"history":{"channel":"a","since":{}}}', History(7, "a", 0, Position(0, ""), reverse=False)),
        ('{"id":8,"rpc":{"method":"now","data":{ "a" : 1e999 }}}', Rpc(8, "now", b'{ "a" : 1e999 }')),
        ('{"id":8,"rpc":{}}', Rpc(8, "", b"")),
        ('{"send":{"data":"é"}}', Send(0, '"é"'.encode())),
        ('{"id":9,"send":{}}', Send(9, b"")),
        ('{"id":10,"refresh":{"token":"t"}}', Refresh(10, "t")),
        ('{"id":11,"sub_refresh":{"channel":"a","token":"t"}}', SubRefresh(11, "a", "t")),
        ('{"id":11,"sub_refresh":{"channel":"a"}}', SubRefresh(11, "a", "")),
        ("{}", Pong(0)),
        (' { "id" : 0 } \r', Pong(0)),
        ('{"new":{}}', Pong(0)),
    ],
)
def test_commands(text: str, command: Command) -> None:
    """A command is read with all of its fields; what is not known is ignored, data is kept byte for byte."""
    assert read_command(text) == command


def test_null_is_like_left_out() -> None:
    """Every field may be null, as for the protocol's authors; null for data is data."""
    text = (
        '{"id":1,"subscribe":{"channel":"chat:42","token":null,"recover":null,"offset":null,"epoch":null,'
        '"positioned":null,"recoverable":null,"join_leave":null,"flag":null,"delta":null,"type":null,"tf":null},'
        '"connect":null}'
    )
    assert read_command(text) == msgspec.structs.replace(PLAIN, id=1)
    text = '{"id":1,"connect":{"token":null,"data":null,"name":null,"version":null,"subs":null}}'
    assert read_command(text) == Connect(1, data=b"null")
    assert read_command('{"id":null,"send":{"data":1},"rpc":null}') == Send(0, b"1")


def test_the_first_method_counts() -> None:
    """Of several methods the first in the order of the protocol's definition counts, wherever it stands."""
    text = '{"id":1,"refresh":{"token":"t"},"rpc":{},"unsubscribe":{"channel":"a"},"subscribe":{"channel":"chat:42"}}'
    assert read_command(text) == msgspec.structs.replace(PLAIN, id=1)


@pytest.mark.parametrize(
    "text",
    [
        '{"id":2,"subscribe":{"channel":"a","type":1}}',
        '{"id":2,"subscribe":{"channel":"a","tf":{"op":"eq"}}}',
        '{"id":2,"publish":{"channel":"a","type":1,"key":"k","data":1}}',
        '{"id":2,"publish":{"channel":"a","type":1,"key":"k","removed":true}}',
    ],
)
def test_unsupported_commands(text: str) -> None:
    """What is not about a stream, or filters one, is not taken for what it is not."""
    assert read_command(text) == Unsupported(2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "null",
        "[]",
        "1",
        '"connect"',
        "{",
        "{}{}",
        "{} x",
        "\ufeff{}",
        "not JSON",
        "[" * 100_000,
        '{"id":1,"rpc":{"data":' + "[" * 100_000 + "]" * 100_000 + "}}",
        '{"id":1}',
        '{"id":1,"ping":{}}',
        '{"id":1,"unknown":{}}',
        '{"id":"1","rpc":{}}',
        '{"id":1.0,"rpc":{}}',
        '{"id":1e2,"rpc":{}}',
        '{"id":true,"rpc":{}}',
        '{"id":-1,"rpc":{}}',
        '{"id":4294967296,"rpc":{}}',
        '{"id":' + "9" * 5000 + ',"rpc":{}}',
        '{"rpc":{}}',
        '{"id":0,"rpc":{}}',
        '{"connect":{}}',
        '{"id":1,"connect":[]}',
        '{"id":1,"connect":{"token":1}}',
        '{"id":1,"connect":{"subs":{"a":{"offset":-1}}}}',
        '{"id":1,"connect":{"subs":["a"]}}',
        '{"id":1,"subscribe":{}}',
        '{"id":1,"subscribe":{"channel":""}}',
        '{"id":1,"subscribe":{"channel":null}}',
        '{"id":1,"subscribe":{"channel":5}}',
        '{"id":1,"subscribe":{"channel":"\ud800"}}',
        '{"id":1,"subscribe":{"channel":"\\ud800"}}',
        '{"id":1,"subscribe":{"channel":"a\x00"}}',
        '{"id":1,"subscribe":{"channel":"a","recover":1}}',
        '{"id":1,"subscribe":{"channel":"a","offset":-1}}',
        '{"id":1,"subscribe":{"channel":"a","offset":1.5}}',
        '{"id":1,"subscribe":{"channel":"a","offset":18446744073709551616}}',
        '{"id":1,"subscribe":{"channel":"a","delta":"xdelta"}}',
        '{"id":1,"unsubscribe":{}}',
        '{"id":1,"publish":{"channel":"a"}}',
        '{"id":1,"publish":{"data":1}}',
        '{"id":1,"publish":{"channel":"a","data":nul}}',
        '{"id":1,"publish":{"channel":"a","data":01}}',
        '{"id":1,"publish":{"channel":"a","data":"\\x"}}',
        '{"id":1,"publish":{"channel":"a","data":"\\ud800"}}',
        '{"id":1,"presence":{}}',
        '{"id":1,"presence_stats":{}}',
        '{"id":1,"history":{}}',
        '{"id":1,"history":{"channel":"a","limit":2147483648}}',
        '{"id":1,"history":{"channel":"a","since":{"offset":-1}}}',
        '{"id":1,"history":{"channel":"a","since":{"offset":99999999999999999999}}}',
        '{"id":1,"refresh":{}}',
        '{"id":1,"refresh":{"token":""}}',
        '{"id":1,"sub_refresh":{"token":"t"}}',
    ],
    ids=lambda text: ascii(text[:60]),
)
def test_bad_commands(text: str) -> None:
    """What is no command, or lacks what its method needs, is told by one exception, whatever is wrong."""
    with pytest.raises(BadCommand):
        read_command(text)


def test_connect_of_unidirectional_transports() -> None:
    """Their request carries the object of the connect command alone."""
    text = '{"token":"t","subs":{"a":{"recover":true,"offset":1,"epoch":"e"}}}'
    assert read_connect(text) == Connect(0, "t", subs={"a": Recover(True, 1, "e")})
    for bad in ("", "[]", '{"token":5}', '{"subs":{"a":{"offset":-1}}}', "\ud800", "[" * 100_000):
        with pytest.raises(BadCommand):
            read_connect(bad)


def test_replies() -> None:
    """A reply repeats the command's id and names its method; an error says when trying again may help."""
    assert client.reply(7, "publish", client.EMPTY) == b'{"id":7,"publish":{}}'
    denied = client.error_reply(7, ErrorCode.PERMISSION_DENIED)
    assert denied == b'{"id":7,"error":{"code":103,"message":"permission denied"}}'
    temporary = client.error_reply(7, ErrorCode.INTERNAL, 'so "sorry"')
    assert temporary == rb'{"id":7,"error":{"code":100,"message":"so \"sorry\"","temporary":true}}'


def test_results_leave_out_what_is_default() -> None:
    """Connect and subscribe results hold only what differs from the protocol's defaults."""
    assert client.encode_result(SubscribeResult()) == b"{}"
    assert client.encode_result(ConnectResult("id")) == b'{"client":"id"}'
    result = ConnectResult(
        "id",
        version="2",
        expires=True,
        ttl=60,
        data=client.raw(b'{"a":\r\n1}'),
        subs={"a": SubscribeResult(positioned=True, offset=3, epoch="e", data=client.raw(b""))},
        ping=25,
        pong=True,
        session="s",
    )
    assert client.encode_result(result) == (
        b'{"client":"id","version":"2","expires":true,"ttl":60,"data":{"a":1},'
        b'"subs":{"a":{"epoch":"e","offset":3,"positioned":true}},"ping":25,"pong":true,"session":"s"}'
    )


def test_results() -> None:
    """The results of all other methods, as the SDKs read them."""
    info = client.client_info("42", "c1", b'{"name":"Jo"}', b"[1]")
    assert info == b'{"client":"c1","user":"42","conn_info":{"name":"Jo"},"chan_info":[1]}'
    assert client.client_info("", "c1") == b'{"client":"c1","user":""}'
    assert client.presence_result({"c1": info}) == b'{"presence":{"c1":' + info + b"}}"
    assert client.presence_result({}) == b'{"presence":{}}'
    assert client.presence_stats_result(3, 2) == b'{"num_clients":3,"num_users":2}'
    publications = [client.publication(b"%d" % number, b"", number) for number in (1, 2)]
    assert json.loads(client.history_result(publications, 2, "e")) == {
        "publications": [{"data": 1, "offset": 1}, {"data": 2, "offset": 2}],
        "offset": 2,
        "epoch": "e",
    }
    assert client.rpc_result(b'{"a":1}') == b'{"data":{"a":1}}'
    assert client.rpc_result(b"") == b'{"data":null}'
    assert client.refresh_result("c1", "2", 60) == b'{"client":"c1","version":"2","expires":true,"ttl":60}'
    assert client.refresh_result("c1", "2", None) == b'{"client":"c1","version":"2","expires":false}'
    assert client.sub_refresh_result(5) == b'{"expires":true,"ttl":5}'


def test_publications() -> None:
    """A publication is made once, its push around it; without history it has no offset."""
    extras = client.extras(client.client_info("42", "c1"), {"kind": "a"})
    assert extras == b',"info":{"client":"c1","user":"42"},"tags":{"kind":"a"}'
    publication = client.publication(b'{"text":"hi"}', extras, 5)
    assert publication == b'{"data":{"text":"hi"}' + extras + b',"offset":5}'
    assert client.publication_push("chat:42", publication) == (
        b'{"push":{"channel":"chat:42","pub":' + publication + b"}}"
    )
    assert client.extras() == b"" == client.extras(tags={})
    assert client.publication(b"1", b"", 0) == b'{"data":1}'


@pytest.mark.parametrize(
    ("push", "body"),
    [
        (client.gap_push("a", 17), {"channel": "a", "pub": {"data": None, "tags": {"gap": "17"}}}),
        (client.join_push('"a"', b'{"client":"c"}'), {"channel": '"a"', "join": {"info": {"client": "c"}}}),
        (client.leave_push("é", b'{"client":"c"}'), {"channel": "é", "leave": {"info": {"client": "c"}}}),
        (
            client.subscribe_push("a", SubscribeResult(positioned=True, offset=2, epoch="e", data=client.raw(b"1"))),
            {"channel": "a", "subscribe": {"positioned": True, "offset": 2, "epoch": "e", "data": 1}},
        ),
        (
            client.subscribe_push("a", SubscribeResult(recovered=True, publications=[msgspec.Raw(b'{"data":1}')])),
            {"channel": "a", "subscribe": {}},
        ),
        (
            client.unsubscribe_push("a", UnsubscribeCode.EXPIRED, "over"),
            {"channel": "a", "unsubscribe": {"code": 2501, "reason": "over"}},
        ),
        (client.message_push(b'{"a":1}'), {"message": {"data": {"a": 1}}}),
        (client.refresh_push(9), {"refresh": {"expires": True, "ttl": 9}}),
        (client.refresh_push(None), {"refresh": {"expires": False}}),
        (client.disconnect_push(3005, "expired"), {"disconnect": {"code": 3005, "reason": "expired"}}),
        (client.connect_push(ConnectResult("c")), {"connect": {"client": "c"}}),
    ],
)
def test_pushes(push: bytes, body: dict[str, Any]) -> None:
    """Every push is one JSON object; unidirectional transports carry what is inside of it."""
    assert json.loads(push) == {"push": body}
    assert json.loads(client.bare(push)) == body


def test_one_object_a_line() -> None:
    """Line breaks in data go, for they would end the object in a frame, or the line in an event stream."""
    data = b'{\r\n  "a": [1,\n 2]\r}'
    for encoded in (
        client.publication(data, b"", 1),
        client.message_push(data),
        client.rpc_result(data),
        client.client_info("u", "c", data, data),
        client.publication_push("a\nb", client.publication(data, client.extras(tags={"a\r": "\n"}), 1)),
    ):
        assert b"\n" not in encoded and b"\r" not in encoded
        assert b'{  "a": [1, 2]}' in encoded
        json.loads(encoded)


def test_codes() -> None:
    """The numbers are the protocol's; ranges tell the SDKs whether to come back, flags whether to try again."""
    assert {code for code in ErrorCode if code.temporary} == {100, 111}
    assert list(ErrorCode) == list(range(100, 113))
    assert {code for code in DisconnectCode if not code.reconnects} == set(range(3500, 3510))
    assert [code for code in range(2999, 5001) if not client.reconnects(code)] == [
        *range(3500, 4000),
        *range(4500, 5000),
    ]
    assert [code for code in UnsubscribeCode if client.resubscribes(code)] == [2500, 2501]
    assert DisconnectCode.BAD_REQUEST.reason == "bad request"
    assert all(code.reason for codes in (ErrorCode, UnsubscribeCode, DisconnectCode) for code in codes)
