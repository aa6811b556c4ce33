"""S3, the chat room: users, rooms, notices, what newcomers get, and what its author named as missing."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import websockets.asyncio.client
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from tests.applications import SECONDS, Client, close_log, ending, figures, open_client, read, workers
from tests.certificates import make_certificate, trusting
from tests.raw import RawClient
from tests.server import SCALE, Server, application, eventually

Message = dict[str, Any]
SINGLE, GROUP, NOTICE, ONLINE, OFFLINE, ENTER, LEAVE, MEMBERS = range(8)
GRACE_SECONDS = SCALE
KEPT = 100
OWN = '''
import json

from fastpush.applications.chat import Chat


class Fragile(Chat):
    """A chat that fails where it is asked to, and tells the hall of every end."""

    async def on_message(self, connection, data):
        if json.loads(data).get("content") == "boom":
            raise RuntimeError("asked to fail")
        await super().on_message(connection, data)

    def on_close(self, connection, code, reason):
        ended = {"messageType": 2, "mediaType": 0, "from": "", "to": "", "content": f"{connection.user} ended {code}"}
        self.server.broadcast(json.dumps(ended))
'''


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "seed_chat.py").write_text(OWN)
    options = {"grace_seconds": GRACE_SECONDS}
    impatient = {"ping_interval_seconds": 1, "pong_timeout_seconds": 4}
    applications = [
        application("Chat", anonymous="no", options=options),
        application("Chat", anonymous="no", path="/websocket"),
        application("Chat", anonymous="no", path="/counted", options={"grace_seconds": 0}),
        application("Chat", anonymous="no", path="/idle", options=options, connections=impatient),
        {"path": "/fragile", "handler": "seed_chat:Fragile", "options": options},
    ]
    sections = {"application": applications}
    running = Server(folder, workers=2, sections=sections, environ={"PYTHONPATH": folder})
    yield running
    running.stop()


@contextmanager
def enter(server: Server, user: str, *rooms: str, path: str = "/chat", worker: int | None = None) -> Iterator[Client]:
    """A client of `user` that is in the hall and these rooms."""
    query = "&".join((f"userId={user}", *(f"room={room}" for room in rooms)))
    with open_client(server, path, query, worker=worker) as client:
        say(client, MEMBERS, rooms[-1] if rooms else "")
        heard(client, messageType=MEMBERS)
        yield client


def say(client: Client, kind: int, to: str | list[str], content: str = "", **more: Any) -> None:
    client.send(json.dumps({"messageType": kind, "mediaType": 0, "from": "", "to": to, "content": content} | more))


def heard_all(client: Client, **wanted: Any) -> list[Message]:
    """All messages up to the first one with these values, that one too."""
    messages: list[Message] = []
    while True:
        messages.append(json.loads(read(client)))
        if messages[-1].items() >= wanted.items():
            return messages


def heard(client: Client, **wanted: Any) -> Message:
    """The next message with these values; the hall talks in between."""
    return heard_all(client, **wanted)[-1]


def contents(messages: list[Message], room: str) -> list[str]:
    """What was said in a room, and who came and left, in order."""
    names = {ONLINE: "+", OFFLINE: "-"}
    return [
        message.get("content") or names.get(message["messageType"], "?") + message["from"]
        for message in messages
        if message["to"] == room and message["messageType"] in {GROUP, ONLINE, OFFLINE}
    ]


def online(server: Server, path: str) -> tuple[int, int]:
    """Users and connections in the hall, by HTTP."""
    _, _, body = server.request("GET", f"/online?channel={path}")
    counts = json.loads(body)
    return counts["users"], counts["connections"]


# -- who comes in -----------------------------------------------------------------------------


def test_the_chat_has_a_path(server: Server) -> None:
    """S3-01: at /websocket, on the port of the configuration, two users talk."""
    with enter(server, "ann", path="/websocket") as ann, enter(server, "bob", path="/websocket") as bob:
        say(ann, GROUP, "", "hello")
        assert heard(bob, messageType=GROUP)["content"] == "hello"


@pytest.mark.parametrize("query", ["", "userId=", "room=tea", "user=jack"])
def test_a_user_is_needed(server: Server, query: str) -> None:
    """S3-02: userId in the URL says who connects; without one the handshake is refused: 401, to a page by 4501."""
    with pytest.raises(InvalidStatus) as refused:
        open_client(server, "/chat", query)
    assert refused.value.response.status_code == 401
    with open_client(server, "/chat", query, origin=server.url) as page:
        assert ending(page) == (4501, "token rejected")
    with enter(server, "jack") as jack:
        say(jack, MEMBERS, "")
        assert "jack" in heard(jack, messageType=MEMBERS)["members"]


# -- who is there ---------------------------------------------------------------------------------


def test_the_number_online_is_exact_when_many_come_and_go(server: Server) -> None:
    """S3-03: connects and disconnects of many at once, over both workers, leave the exact number; none is forgotten
    and none counted twice.
    """
    many = 60

    async def come_and_go(stack: AsyncExitStack) -> None:
        async def come(number: int) -> websockets.asyncio.client.ClientConnection:
            url = server.ws_url(f"userId=u{number}", "/counted")
            return await stack.enter_async_context(websockets.asyncio.client.connect(url, max_queue=None))

        async def expect(users: int, connections: int) -> None:
            await asyncio.to_thread(eventually, lambda: online(server, "/counted") == (users, connections))

        first = await asyncio.gather(*map(come, range(many)))
        await expect(many, many)
        # Half of them leave while as many come, half of these as second connections of those who stay.
        stay, leave = first[: many // 2], first[many // 2 :]
        *_, second = await asyncio.gather(
            *(each.close() for each in leave), asyncio.gather(*map(come, [*range(15), *range(90, 105)]))
        )
        await expect(many // 2 + 15, many)
        await asyncio.gather(*(each.close() for each in stay))
        await expect(30, 30)
        await asyncio.gather(*(each.close() for each in second))
        await expect(0, 0)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            await come_and_go(stack)

    asyncio.run(run())


def test_connections_are_found_by_user(server: Server) -> None:
    """S3-04: what is sent to a user reaches each of the user's connections, on both workers, and nobody else's."""
    first, second = workers(server)
    with (
        enter(server, "rose", worker=first) as here, enter(server, "rose", worker=second) as there,
        enter(server, "carl", worker=first) as carl, enter(server, "dora", worker=second) as dora,
    ):  # fmt: skip
        say(carl, SINGLE, "rose", "for rose")
        say(carl, GROUP, "", "to all")
        for client in (here, there):
            assert [m["content"] for m in heard_all(client, content="to all") if "content" in m] == [
                "for rose",
                "to all",
            ]
        assert [m["content"] for m in heard_all(dora, content="to all") if "content" in m] == ["to all"]


def test_the_four_operations(server: Server) -> None:
    """S3-05: users are connected, disconnected, got by name, and gone through, over all workers."""
    first, second = workers(server)
    with enter(server, "op1", "ops", worker=first) as one:
        with enter(server, "op2", "ops", worker=second) as two:  # Connected
            assert heard(one, messageType=ONLINE, to="ops")["from"] == "op2"
            say(one, SINGLE, "op2", "got you")  # Get
            assert heard(two, messageType=SINGLE)["content"] == "got you"
            say(one, MEMBERS, "ops")  # Foreach
            assert heard(one, messageType=MEMBERS)["members"] == ["op1", "op2"]
        assert heard(one, messageType=OFFLINE, to="ops")["from"] == "op2"  # DisConnected
        say(one, MEMBERS, "ops")
        answer = heard(one, messageType=MEMBERS)
        assert (answer["members"], answer["online"]) == (["op1"], 1)


def test_who_may_come_back_unnoticed_is_named(serve: Callable[..., Server]) -> None:
    """Who asks for the members between a user's leaving and the return within the grace period is told the user, for
    neither is announced: lists and notices agree for everybody.
    """
    server = serve(workers=2, sections={"application": [application("Chat", options={"grace_seconds": 600})]})
    with open_client(server, "/chat", "token=ann") as ann:
        with enter(server, "bob"):
            assert heard(ann, messageType=ONLINE)["from"] == "bob"
        eventually(lambda: online(server, "/chat") == (1, 1), what="bob has left")
        say(ann, MEMBERS, "")
        answer = heard(ann, messageType=MEMBERS)
        assert (answer["members"], answer["online"]) == (["ann", "bob"], 2)
        with enter(server, "bob") as bob:
            say(bob, GROUP, "", "back")
            assert contents(heard_all(ann, content="back"), "") == ["back"]


def test_the_number_online_is_served_by_http(server: Server) -> None:
    """S3-20: GET /online tells users and connections, of the whole host and of each application."""
    with enter(server, "web1", path="/counted"), enter(server, "web1", path="/counted"):
        with enter(server, "web2", path="/counted"):
            status, _, body = server.request("GET", "/online")
            told = json.loads(body)
            assert (status, told["applications"]["/counted"]) == (200, {"users": 2, "connections": 3})
            assert told["users"] >= 2 and told["connections"] >= 3
        eventually(lambda: online(server, "/counted") == (1, 2), what="one user less")


# -- who is sent what ------------------------------------------------------------------------------


def test_a_message_to_nobody_is_a_log_line(server: Server) -> None:
    """S3-06: a message to one user arrives; to one who is not there it is a notice to the sender and the log line
    `connection not exist`, and everything goes on.
    """
    with enter(server, "eve") as eve, enter(server, "fay") as fay:
        say(eve, SINGLE, "nobody-6", "are you there?")
        assert heard(eve, messageType=NOTICE)["content"] == "nobody-6 is not online"
        say(eve, SINGLE, "fay", "you are")
        message = heard(fay, messageType=SINGLE)
        assert (message["from"], message["to"], message["content"]) == ("eve", "fay", "you are")
    (line,) = [line for line in server.events("connection not exist") if line["user"] == "nobody-6"]
    assert line["level"] == "info"


def test_a_message_to_a_list(server: Server) -> None:
    """S3-07: a message to a list reaches each of its users once; each who is not there is logged."""
    with enter(server, "gil") as gil, enter(server, "hal") as hal, enter(server, "ida") as ida:
        say(gil, SINGLE, ["hal", "nobody-7a", "ida", "nobody-7b", "hal"], "to both")
        assert {heard(gil, messageType=NOTICE)["content"] for _ in range(2)} == {
            "nobody-7a is not online", "nobody-7b is not online",
        }  # fmt: skip
        say(gil, GROUP, "", "end of 7")
        for client, user in ((hal, "hal"), (ida, "ida")):
            single = [m for m in heard_all(client, content="end of 7") if m["messageType"] == SINGLE]
            assert [(m["to"], m["content"]) for m in single] == [(user, "to both")]
    missing = [line["user"] for line in server.events("connection not exist") if line["user"].startswith("nobody-7")]
    assert sorted(missing) == ["nobody-7a", "nobody-7b"]


def test_a_message_to_all_but_one(server: Server) -> None:
    """S3-08: a message to a room reaches every connection in it but the one that sent it: the sender's other too."""
    first, second = workers(server)
    with (
        enter(server, "kim", "eight", worker=first) as kim, enter(server, "kim", "eight", worker=second) as other,
        enter(server, "leo", "eight", worker=second) as leo,
    ):  # fmt: skip
        say(kim, GROUP, "eight", "mine")
        heard(leo, messageType=GROUP, content="mine")
        say(leo, GROUP, "eight", "last")
        for client, expected in ((kim, ["last"]), (other, ["mine", "last"])):
            messages = heard_all(client, content="last")
            assert [m["content"] for m in messages if m["messageType"] == GROUP and m["to"] == "eight"] == expected


def test_a_failed_send_does_not_stop_the_others(server: Server) -> None:
    """S3-09: one member is reset while it is written to; the others of the room get every message."""
    count = 40
    with enter(server, "max", "nine") as speaker, enter(server, "ned", "nine") as hearer:
        broken = RawClient(server, "/chat", receive_bytes=4096, userId="broken", room="nine")
        heard(hearer, messageType=ONLINE, to="nine")
        for number in range(count):
            say(speaker, GROUP, "nine", f"{number} ".ljust(20000, "x"))
            if number == count // 2:
                eventually(lambda: figures(server, broken.port).queued_messages, what="it is behind")
                broken.reset()
        for number in range(count):
            assert heard(hearer, messageType=GROUP, to="nine")["content"].startswith(f"{number} ")
        assert close_log(server, broken.port)["code"] == 1006
        assert heard(hearer, messageType=OFFLINE, to="nine")["from"] == "broken"


def test_single_goes_to_one_and_group_to_all(server: Server) -> None:
    """S3-16, S3-24: what is for one user goes to that one and the sender's other connections; what is for the hall or
    a room goes to everybody else in it.
    """
    with (
        enter(server, "ola", "ten") as ola, enter(server, "ola", "ten") as other, enter(server, "pat", "ten") as pat,
        enter(server, "quin", "ten") as quin,
    ):  # fmt: skip
        say(ola, SINGLE, "pat", "only pat")
        say(ola, GROUP, "ten", "room")
        say(ola, GROUP, "", "hall")
        for client, expected in (
            (pat, ["only pat", "room", "hall"]), (other, ["only pat", "room", "hall"]), (quin, ["room", "hall"]),
        ):  # fmt: skip
            assert [m["content"] for m in heard_all(client, content="hall") if "content" in m] == expected


# -- the messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "hello",
        "",
        "{",
        "[]",
        "1",
        "null",
        "{}",
        '{"messageType":"1"}',
        '{"messageType":99}',
        '{"messageType":1,"to":5}',
    ],
)
def test_what_is_no_message_ends_the_connection(server: Server, message: str) -> None:
    """S3-10: what is no JSON, or no message of this form, closes with 1007 and a reason; others do not notice."""
    with enter(server, "eleven") as other, enter(server, "rude") as rude:
        rude.send(message)
        code, reason = ending(rude)
        assert code == 1007 and reason.startswith("not a chat message: ")
        say(other, MEMBERS, "")
        assert "eleven" in heard(other, messageType=MEMBERS)["members"]


@pytest.mark.parametrize("message", [b'{"messageType":1,"content":"\xff"}', b'{"messageType":1,"x":' + b"[" * 20_000])
def test_what_cannot_be_read_ends_the_connection(server: Server, message: bytes) -> None:
    """S3-10: bytes that are no UTF-8, and nesting beyond measure, close with 1007: the application does not fail."""
    with enter(server, "rough") as rough:
        rough.send(message)
        code, reason = ending(rough)
        assert code == 1007 and reason.startswith("not a chat message")


@pytest.mark.parametrize("room", ["\N{GRINNING FACE}" * 64, "x" * 65, "a\nb"], ids=["bytes", "length", "line"])
def test_a_room_that_cannot_be(server: Server, room: str) -> None:
    """S4-17: entering or leaving a room that cannot be called so is a notice to who asked, who stays connected."""
    with enter(server, "odd") as odd:
        for kind in (ENTER, LEAVE):
            say(odd, kind, room)
            assert "a room's name" in heard(odd, messageType=NOTICE)["content"]


def test_four_fields_stand_in_every_message(server: Server) -> None:
    """S3-11: messageType, mediaType, from and to are in messages, notices and answers, also where 0 or empty."""
    with enter(server, "sam", "fields") as sam, enter(server, "tom", "fields") as tom:
        say(sam, SINGLE, "tom", "x")
        say(sam, GROUP, "fields", "y")
        say(sam, SINGLE, "nobody-11", "z")
        say(sam, MEMBERS, "fields")
        messages = heard_all(tom, content="y") + heard_all(sam, messageType=MEMBERS)
        with enter(server, "ute", "fields"):
            messages += heard_all(sam, messageType=ONLINE, to="fields")
        messages += heard_all(sam, messageType=OFFLINE, to="fields")
    assert {message["messageType"] for message in messages} >= {SINGLE, GROUP, NOTICE, ONLINE, OFFLINE, MEMBERS}
    for message in messages:
        assert list(message)[:4] == ["messageType", "mediaType", "from", "to"], message


def test_empty_fields_are_left_out(server: Server) -> None:
    """S3-12: content, fileId, url and createAt are in a message where they hold something, else not; updateAt, which
    is never empty once the server has taken a message, is left out of the answers that have none.
    """
    optional = {"content": "c", "fileId": "f", "url": "https://files.example/f", "createAt": "2026-11-21T18:20:00Z"}
    with enter(server, "uma", "twelve") as uma, enter(server, "val", "twelve") as val:
        uma.send('{"messageType":1,"to":"twelve"}')
        uma.send(json.dumps({"messageType": 1, "to": "twelve", "updateAt": ""} | dict.fromkeys(optional, "")))
        for _ in range(2):
            assert set(heard(val, messageType=GROUP)) == {"messageType", "mediaType", "from", "to", "updateAt"}
        say(uma, GROUP, "twelve", **optional)
        assert heard(val, messageType=GROUP).items() > optional.items()
        say(uma, MEMBERS, "twelve")
        answer = heard(uma, messageType=MEMBERS)
        assert set(answer) == {"messageType", "mediaType", "from", "to", "members", "online", "you"}


def test_the_kinds_of_messages(server: Server) -> None:
    """S3-13: 0 to one user, 1 to a group, 2 a notice of the system, 3 somebody came, 4 somebody left; the last three
    are the server's, and a client that sends one is told so.
    """
    with enter(server, "wes", "kinds") as wes:
        with enter(server, "xia", "kinds") as xia:
            assert heard(wes, messageType=3, to="kinds")["from"] == "xia"
            say(xia, 0, "wes", "to you")
            assert heard(wes, messageType=0)["content"] == "to you"
            say(xia, 1, "kinds", "to the group")
            assert heard(wes, messageType=1)["content"] == "to the group"
            for kind in (2, 3, 4, 7):
                say(xia, kind, "kinds", "forged")
            told = [heard(xia, messageType=2) for _ in range(3)]
            assert [notice["content"] for notice in told] == [
                f"messageType {kind} is the server's to send" for kind in (2, 3, 4)
            ]
            assert {notice["from"] for notice in told} == {""}
            assert heard(xia, messageType=7)["members"] == ["wes", "xia"]
        assert heard(wes, messageType=4, to="kinds")["from"] == "xia"


def test_the_kinds_of_media(server: Server) -> None:
    """S3-14, S3-24: 0 text, 1 image, 2 file arrive as such; another kind is no message."""
    link = "https://files.example/1.png"
    with enter(server, "yan", "media") as yan, enter(server, "zoe", "media") as zoe:
        for media, url in ((0, ""), (1, link), (2, link)):
            say(yan, GROUP, "media", "name", mediaType=media, url=url)
            message = heard(zoe, messageType=GROUP, to="media")
            assert (message["mediaType"], message.get("url", "")) == (media, url)
        say(yan, GROUP, "media", "name", mediaType=3, url=link)
        assert ending(yan)[0] == 1007


def test_files_travel_as_links(server: Server) -> None:
    """S2-24: an image or a file is a link to where it is stored: without one, or with its body in the link, it is not
    passed on; a field with a body is not either, and a message of the size of one closes with 1009.
    """
    link = "https://storage.example/report.pdf"
    with enter(server, "amy", "links") as amy, enter(server, "ben", "links") as ben:
        for media in (1, 2):
            for url in ("", "data:image/png;base64,AAAA", "file:///etc/passwd", "javascript:alert(1)", "https://"):
                say(amy, GROUP, "links", "report.pdf", mediaType=media, url=url)
                assert "url must begin with https://" in heard(amy, messageType=NOTICE)["content"]
        say(amy, GROUP, "links", "report.pdf", mediaType=2, url=link, fileId="17", body="AAAA", data="AAAA")
        messages = [m for m in heard_all(ben, messageType=GROUP) if m["messageType"] == GROUP]
        (message,) = messages
        assert set(message) == {"messageType", "mediaType", "from", "to", "content", "fileId", "url", "updateAt"}
        assert (message["url"], message["content"], message["fileId"]) == (link, "report.pdf", "17")
        say(amy, GROUP, "links", "x" * 70000, mediaType=2, url=link)
        assert ending(amy)[0] == 1009


def test_the_server_stamps_messages(server: Server) -> None:
    """S3-15: updateAt is the server's time of receipt, UTC to the millisecond, whatever the client has put there; from
    is the user that the server knows. createAt is the client's.
    """
    with enter(server, "cleo", "stamps") as cleo, enter(server, "dan", "stamps") as dan:
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        forged = {"from": "dan", "updateAt": "1999-01-01T00:00:00.000Z", "createAt": "1999-01-01T00:00:00Z"}
        say(cleo, GROUP, "stamps", "now", **forged)
        message = heard(dan, messageType=GROUP)
        after = datetime.now(UTC)
        assert len(message["updateAt"]) == len("2026-11-21T18:20:00.123Z") and message["updateAt"].endswith("Z")
        assert before <= datetime.fromisoformat(message["updateAt"]) <= after
        assert (message["from"], message["createAt"]) == ("cleo", "1999-01-01T00:00:00Z")


# -- notices and history ------------------------------------------------------------------------------------


def test_who_comes_is_announced(server: Server) -> None:
    """S3-17: the others in the hall and in a room are told of a user who comes, once a user and not a connection; the
    one who comes is not.
    """
    first, second = workers(server)
    with ExitStack() as stack:
        elf, fox, _ = (
            stack.enter_context(enter(server, user, "seventeen", worker=worker))
            for user, worker in (("elf", first), ("fox", second), ("fox", first))
        )
        say(fox, GROUP, "seventeen", "end")
        messages = heard_all(elf, content="end")
        for room in ("", "seventeen"):
            came = [m["from"] for m in messages if m["messageType"] == ONLINE and m["to"] == room]
            assert came.count("fox") == 1
        say(elf, GROUP, "seventeen", "end of fox")
        assert "+fox" not in contents(heard_all(fox, content="end of fox"), "seventeen")


def test_who_leaves_is_announced(server: Server) -> None:
    """S3-18: the others are told when a user's last connection is gone, whatever ended it, and when a user leaves a
    room; one who is back at once has not left.
    """
    with enter(server, "gus", "eighteen") as gus:
        with enter(server, "hex", "eighteen"):
            pass
        with enter(server, "hex", "eighteen") as hex_:
            with enter(server, "hex", "eighteen"):
                pass
            say(hex_, GROUP, "eighteen", "never away")
            assert contents(heard_all(gus, content="never away"), "eighteen") == ["+hex", "never away"]
            say(hex_, LEAVE, "eighteen")
            assert heard(gus, messageType=OFFLINE, to="eighteen")["from"] == "hex"
        assert heard(gus, messageType=OFFLINE, to="")["from"] == "hex"
        vanishing = RawClient(server, "/chat", userId="ivo", room="eighteen")
        heard(gus, messageType=ONLINE, to="eighteen")
        vanishing.reset()
        assert heard(gus, messageType=OFFLINE, to="eighteen")["from"] == "ivo"


def test_a_newcomer_gets_the_last_hundred(server: Server) -> None:
    """S3-19: a newcomer to a room first gets its last 100 messages, notices among them, in their order and with their
    times, then what comes; on each worker the same.
    """
    first, second = workers(server)
    said = [f"message {number}" for number in range(KEPT + 20)]
    with enter(server, "jan", "kept", worker=first) as jan:
        for text in said[:50]:
            say(jan, GROUP, "kept", text)
        say(jan, MEMBERS, "kept")
        heard(jan, messageType=MEMBERS)  # the answer to it: all before it has been said
        with enter(server, "kai", "kept", worker=second) as kai:
            for text in said[50:]:
                say(kai, GROUP, "kept", text)
            heard_all(jan, content=said[-1])
            expected = ["+jan", *said[:50], "+kai", *said[50:]]
            with ExitStack() as stack:
                for worker, user in ((first, "lil"), (second, "moe")):
                    client = stack.enter_context(
                        open_client(server, "/chat", f"userId={user}&room=kept", worker=worker)
                    )
                    heard_all(jan, messageType=ONLINE, to="kept")
                    say(jan, GROUP, "kept", f"new {user}")
                    messages = heard_all(client, content=f"new {user}")
                    assert contents(messages, "kept") == [*expected[-KEPT:], f"new {user}"]
                    stamps = [m["updateAt"] for m in messages if m["to"] == "kept"]
                    assert all(older <= newer for older, newer in pairwise(stamps))
                    expected += [f"+{user}", f"new {user}"]


def test_a_newcomer_is_not_drowned(server: Server) -> None:
    """S3-19: of a room that has kept more than half of a send queue a newcomer gets the newest, in order, and stays."""
    text = "x" * 60_000
    with enter(server, "loud", "long") as loud:
        for number in range(40):
            say(loud, GROUP, "long", f"{number} {text}")
        say(loud, MEMBERS, "long")
        heard(loud, messageType=MEMBERS)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            with connect(server.ws_url("userId=new&room=long", "/chat"), sock=raw, open_timeout=SECONDS) as new:
                heard(loud, messageType=ONLINE, to="long")
                say(loud, GROUP, "long", "last")
                messages = [m for m in heard_all(new, content="last") if m["to"] == "long" and "content" in m]
    said = [message["content"].split()[0] for message in messages]
    first = int(said[0])
    assert said == [*map(str, range(first, 40)), "last"] and 0 < first < 40


def test_what_was_said_outlives_those_who_said_it(server: Server) -> None:
    """S3-24, S3-19: persistence: messages of a room are there for who comes when everybody has left it."""
    with enter(server, "nan", "persisted") as nan, enter(server, "oz", "persisted") as oz:
        say(nan, GROUP, "persisted", "remember me")
        heard(oz, content="remember me")
    query = "/online?channel=/chat:persisted"
    eventually(lambda: json.loads(server.request("GET", query)[2])["users"] == 0, what="everybody gone")
    with open_client(server, "/chat", "userId=pip&room=persisted") as pip:
        messages = heard_all(pip, messageType=OFFLINE, to="persisted")
        assert contents(messages, "persisted")[:3] == ["+nan", "+oz", "remember me"]


# -- failures ----------------------------------------------------------------------------------------------


def test_a_failing_handler_ends_its_connection(server: Server) -> None:
    """S3-22: an exception closes that connection with 1011; that it has gone is handled as ever: on_close, the notice,
    the count.
    """
    with enter(server, "watch", path="/fragile") as watch, enter(server, "fails", path="/fragile") as fails:
        assert heard(watch, messageType=ONLINE)["from"] == "fails"
        say(fails, GROUP, "", "boom")
        assert ending(fails)[0] == 1011
        messages = heard_all(watch, messageType=OFFLINE, **{"from": "fails"})
        assert [m["content"] for m in messages if m["messageType"] == NOTICE] == ["fails ended 1011"]
        eventually(lambda: online(server, "/fragile") == (1, 1), what="one online")
        say(watch, MEMBERS, "")
        assert heard(watch, messageType=MEMBERS)["members"] == ["watch"]


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_second_login_hides_nobody(server: Server, leaver: int) -> None:
    """S3-23: two logins of one user both receive; when either logs out the other goes on, and the user is online
    until the last has gone.
    """
    user, room = f"twin{leaver}", f"twins{leaver}"
    with enter(server, f"friend{leaver}", room) as friend, ExitStack() as stack:
        twins = [stack.enter_context(enter(server, user, room, worker=worker)) for worker in workers(server)]
        say(friend, SINGLE, user, "both of you")
        for twin in twins:
            assert heard(twin, messageType=SINGLE)["content"] == "both of you"
        twins[leaver].close()
        say(friend, SINGLE, user, "still you")
        survivor = twins[1 - leaver]
        assert heard(survivor, messageType=SINGLE)["content"] == "still you"
        say(survivor, GROUP, room, "I am here")
        assert "-" + user not in contents(heard_all(friend, content="I am here"), room)
        say(friend, MEMBERS, room)
        assert user in heard(friend, messageType=MEMBERS)["members"]
        survivor.close()
        assert heard(friend, messageType=OFFLINE, to=room)["from"] == user


# -- what the author named as missing -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A chat for users with tokens, by TLS."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "tokens.toml").write_text('"token-of-jack" = "jack"\n"token-of-rose" = "rose"\n')
    certificate = make_certificate(folder / "certificate.pem", key_path=folder / "key.pem")
    sections = {
        "tls": {"certificate": "certificate.pem", "key": "key.pem"},
        "auth": {"mode": "static", "tokens_file": "tokens.toml"},
        "application": [application("Chat", anonymous="no")],
    }
    running = Server(folder, workers=2, tls=trusting(certificate), sections=sections)
    yield running
    running.stop()


def test_users_are_authenticated_and_encrypted(guarded: Server) -> None:
    """S3-24: authentication and encryption: by wss a token says who its client is, userId in the URL nothing; a wrong
    token, or none, is refused, and so is plain text.
    """
    with open_client(guarded, "/chat", "token=token-of-jack&userId=rose") as jack:
        assert jack.socket.version() == "TLSv1.3"  # type: ignore[attr-defined]
        with open_client(guarded, "/chat", "token=token-of-rose") as rose:
            assert heard(jack, messageType=ONLINE)["from"] == "rose"
            say(jack, GROUP, "", "who am I", **{"from": "rose"})
            assert heard(rose, content="who am I")["from"] == "jack"
    for query in ("token=forged", "userId=jack", ""):
        with pytest.raises(InvalidStatus) as refused:
            open_client(guarded, "/chat", query)
        assert refused.value.response.status_code == 401
    with pytest.raises((ConnectionError, EOFError, InvalidHandshake)):
        connect(f"ws://127.0.0.1:{guarded.port}/chat?token=token-of-jack", open_timeout=SECONDS)


def test_idle_clients_are_detected(server: Server) -> None:
    """S3-24: idle detection: a client that answers no ping is ended and has left; one that says nothing, but answers,
    stays.
    """
    with enter(server, "awake", path="/idle") as awake, RawClient(server, "/idle", userId="asleep") as asleep:
        assert heard(awake, messageType=ONLINE)["from"] == "asleep"
        assert heard(awake, messageType=OFFLINE)["from"] == "asleep"
        assert close_log(server, asleep.port)["code"] == 1006
        say(awake, MEMBERS, "")
        assert heard(awake, messageType=MEMBERS)["members"] == ["awake"]


def test_several_workers_are_one_room(server: Server) -> None:
    """S3-24: a cluster: members on different processes see each other's messages in one order, and are one list."""
    first, second = workers(server)
    with (
        enter(server, "north", "both", worker=first) as north, enter(server, "south", "both", worker=second) as south,
        enter(server, "east", "both", worker=first) as east, enter(server, "west", "both", worker=second) as west,
    ):  # fmt: skip
        for number in range(20):
            say(north, GROUP, "both", f"north {number}")
            say(south, GROUP, "both", f"south {number}")
        orders = []
        for client in (east, west):
            texts: list[str] = []
            while len(texts) < 40:
                texts.append(heard(client, messageType=GROUP, to="both")["content"])
            orders.append(texts)
        assert orders[0] == orders[1]
        assert sorted(orders[0]) == sorted(f"{who} {n}" for who in ("north", "south") for n in range(20))
        say(west, MEMBERS, "both")
        assert heard(west, messageType=MEMBERS)["members"] == ["east", "north", "south", "west"]
