"""S4, the hub: one room for all, what a slow client costs, and the steps that its author suggests."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from websockets.sync.client import connect

from fastpush.applications.hub import Hub
from tests.applications import Client, at_rest, close_log, connections, ending, figures, open_client, read, workers
from tests.programs import wscat
from tests.raw import BINARY, CLOSE, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import Server, application, eventually

Serve = Callable[..., Server]
SMALL_WINDOW_BYTES = 8192
DROPS, DELIVERIES = 'fastpush_drops_total{reason="slow"', "fastpush_deliveries_total"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    impatient = {"ping_interval_seconds": 1, "pong_timeout_seconds": 4}
    hurried = {"write_timeout_seconds": 0.5, "close_timeout_seconds": 0.5}
    applications = [
        application("Hub"),
        application("Hub", path="/quiet"),
        application("Hub", path="/joined", options={"join_lines": True}, limits={"send_queue_messages": 10000}),
        application("Hub", path="/patient", limits={"send_queue_messages": 10000}),
        application("Hub", path="/pinging", connections=impatient),
        application("Hub", path="/hurried", connections=hurried),
        application("Echo"),
        application("Chat", anonymous="no"),
        application("Broadcast"),
    ]
    sections = {"application": applications}
    running = Server(tmp_path_factory.mktemp("hub"), workers=2, sections=sections)
    yield running
    running.stop()


def slow(server: Server, path: str) -> RawClient:
    """A client that reads nothing until the test does, and whose kernel takes little."""
    return RawClient(server, path, receive_bytes=SMALL_WINDOW_BYTES, seconds=20)


def line(number: int) -> str:
    """A message of 500 bytes."""
    return f"{number} ".ljust(499, "x") + "."


def dropped_as_slow(server: Server) -> float:
    return sum(value for name, value in server.metrics().items() if name.startswith(DROPS))


# -- where it is -------------------------------------------------------------------------------


def test_the_hub_has_an_address_and_a_path(serve: Serve) -> None:
    """S4-01: at /ws on 127.0.0.1 and a port of the configuration's, once the push service is elsewhere."""
    sections = {"server": {"websocket_path": "/register"}, "application": [application("Hub", path="/ws")]}
    server = serve(workers=2, sections=sections)
    assert server.events("listening")[-1]["address"] == f"127.0.0.1:{server.port}"
    with connect(server.ws_url()) as client:
        client.send("hello")
        assert read(client) == "hello"


def test_buffers_are_a_setting(serve: Serve) -> None:
    """S4-08: with the smallest buffers, of 2048 and 1024 bytes, messages around these sizes and those that have waited
    arrive whole and in order.
    """
    sections = {
        "server": {"read_buffer_bytes": 2048, "write_buffer_bytes": 1024},
        "application": [application("Hub", limits={"message_bytes": 65536, "send_queue_messages": 10000})],
    }
    server = serve(workers=2, sections=sections)
    texts = ["x" * size for size in (1023, 1024, 1025, 2047, 2048, 2049)]
    many = [f"{number} ".ljust(900, "y") + "." for number in range(500)]
    with open_client(server, "/hub") as client, slow(server, "/hub") as late:
        for text in [*texts, *many]:
            client.send(text)
        assert [read(client) for _ in [*texts, *many]] == [*texts, *many]
        eventually(lambda: figures(server, late.port).queued_messages, what="it is behind")
        assert [late.read_text() for _ in [*texts, *many]] == [*texts, *many]


# -- who hears what -------------------------------------------------------------------------------


def test_one_hub_owns_all_clients(server: Server) -> None:
    """S4-02: who has come is sent everything, who has left nothing: each message is delivered exactly as often as there
    are clients, whatever worker they are in.
    """
    first, second = workers(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(server, "/quiet", worker=first))]
        for present in range(1, 5):
            before = server.metrics()[DELIVERIES]
            clients[0].send(f"to {present}")
            assert [read(client) for client in clients] == [f"to {present}"] * present
            assert server.metrics()[DELIVERIES] == before + present
            clients.append(stack.enter_context(open_client(server, "/quiet", worker=(first, second)[present % 2])))
        open_now = connections(server)
        for client in clients[2:]:
            client.close()
        eventually(lambda: connections(server) == open_now - len(clients[2:]), what="they have left")
        before = server.metrics()[DELIVERIES]
        clients[1].send("to two")
        assert [read(client) for client in clients[:2]] == ["to two"] * 2
        assert server.metrics()[DELIVERIES] == before + 2


def test_everybody_hears_a_message(server: Server) -> None:
    """S4-03: a message from one client reaches all, over both workers, and its sender; binary stays binary."""
    first, second = workers(server)
    with (
        open_client(server, "/hub", worker=first) as a, open_client(server, "/hub", worker=second) as b,
        open_client(server, "/hub", worker=first) as c,
    ):  # fmt: skip
        messages: list[str | bytes] = ["hello", "grüße 🎉", b"\x00\xff", "x" * 500]
        for speaker in (a, b, c):
            for message in messages:
                speaker.send(message)
            for client in (a, b, c):
                assert [read(client) for _ in messages] == messages


def test_reading_and_writing_do_not_wait_for_each_other(server: Server) -> None:
    """S4-04: a client that takes nothing is still read from, what it says reaches the others; and one that says nothing
    is written to.
    """
    with ExitStack() as stack:
        silent, speaker = (stack.enter_context(open_client(server, "/patient")) for _ in range(2))
        deaf = stack.enter_context(slow(server, "/patient"))
        texts = [line(number) for number in range(1000)]
        for text in texts:
            speaker.send(text)
        assert [read(silent) for _ in texts] == texts
        eventually(lambda: figures(server, deaf.port).queued_messages, what="it is behind")
        deaf.text("I hear nothing")
        assert read(silent) == "I hear nothing"
        assert figures(server, deaf.port).queued_messages
        assert [deaf.read_text() for _ in texts] == texts


def test_a_client_is_its_connection(server: Server) -> None:
    """S4-05: nobody needs an id, a name or a parameter: each connection has an id of its own, and is one client."""
    with ExitStack() as stack:
        clients = [stack.enter_context(open_client(server, "/hub")) for _ in range(4)]
        ids = {figures(server, client.port).id for client in clients}
        users = {figures(server, client.port).user for client in clients}
        assert (len(ids), users) == (4, {""})
        clients[0].send("hello")
        assert [read(client) for client in clients] == ["hello"] * 4


def test_two_terminals_see_each_other(server: Server) -> None:
    """S4-06: two wscat on the hub see what either says; one on the echo sees its own."""
    with wscat(server.ws_url(path="/hub"), "first here") as first:
        assert first.line_with("first here")
        with wscat(server.ws_url(path="/hub"), "second here") as second:
            assert second.line_with("second here")
            assert first.line_with("second here")
            with wscat(server.ws_url(path="/hub"), "to both of you") as third:
                assert all(each.line_with("to both of you") for each in (first, second, third))
    with wscat(server.ws_url(path="/echo"), "to myself") as alone:
        assert alone.line_with("to myself")


def test_who_disconnects_is_freed(server: Server) -> None:
    """S4-07: a close frame, the end of the TCP connection, and a reset each unregister and free the client."""
    at_rest(server)
    closing, ending_, resetting = (RawClient(server, "/quiet") for _ in range(3))
    with open_client(server, "/quiet") as other:
        assert connections(server) == 4
        closing.send(build(CLOSE, close_payload(1000)))
        assert closing.read_close() == (1000, "")
        ending_.socket.close()
        resetting.reset()
        assert [close_log(server, each.port)["code"] for each in (closing, ending_, resetting)] == [1000, 1006, 1006]
        eventually(lambda: connections(server) == 1, what="three are gone")
        delivered = server.metrics()[DELIVERIES]
        other.send("alone")
        assert read(other) == "alone"
        assert server.metrics()[DELIVERIES] == delivered + 1
    eventually(lambda: connections(server) == 0, what="all are gone")


# -- limits -------------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_client(server: Server) -> None:
    """S4-09, S4-14: 256 messages may wait for a client; one more and it is closed: what the kernel had taken arrives,
    then a close frame, 1013. The others get everything.
    """
    before = dropped_as_slow(server)
    texts: list[str] = []
    with slow(server, "/hub") as stalled, open_client(server, "/hub", worker=server.worker_of(stalled.port)) as speaker:
        while (queued := figures(server, stalled.port).queued_messages) < 256:
            for _ in range(min(20, 256 - queued)):
                texts.append(line(len(texts)))
                speaker.send(texts[-1])
                assert read(speaker) == texts[-1]
        assert figures(server, stalled.port).state == "slow"
        speaker.send("one more")
        assert read(speaker) == "one more"
        assert [stalled.read_text() for _ in texts[:-256]] == texts[:-256]
        assert stalled.read_close() == (1013, "too slow")
        stalled.send(build(CLOSE, close_payload(1013)))
        assert close_log(server, stalled.port)["code"] == 1013
        assert dropped_as_slow(server) == before + 256
        speaker.send("and on")
        assert read(speaker) == "and on"


@pytest.mark.parametrize("kind", [TEXT, BINARY])
def test_a_message_has_at_most_512_bytes(server: Server, kind: int) -> None:
    """S4-10: 512 bytes pass, one more closes with 1009, whole or in fragments."""
    with RawClient(server, "/hub") as client:
        client.send(build(kind, b"x" * 512))
        assert client.read() == Frame(kind, b"x" * 512)
        client.send(build(kind, b"x" * 300, fin=False), build(0, b"x" * 213))
        assert client.read_close()[0] == 1009
    with RawClient(server, "/hub") as client:
        client.send(build(kind, b"x" * 513))
        assert client.read_close()[0] == 1009


def test_the_hub_has_its_sources_times() -> None:
    """S4-11: by default a silent client is pinged after 54 s, and gone 60 s after it was heard; a write has 10 s."""
    times = Hub.default_connections
    assert times["ping_interval_seconds"] == 54
    assert times["ping_interval_seconds"] + times["pong_timeout_seconds"] == 60
    assert times["write_timeout_seconds"] == 10


def test_silent_clients_are_pinged(server: Server) -> None:
    """S4-11, S4-17: a client that answers pings stays, one that does not is ended, each after the configured times."""
    opened = time.monotonic()
    with RawClient(server, "/pinging") as answering, RawClient(server, "/pinging") as dead:
        for turn in range(1, 4):
            frame = answering.read()
            assert frame.opcode == PING
            assert time.monotonic() - opened > 0.8 * turn  # to the tick, of a tenth
            answering.send(build(PONG, frame.payload))
        closed = close_log(server, dead.port)
        assert closed["code"] == 1006 and closed["seconds"] > 4.7
        assert dead.read().opcode == PING
        dead.read_end()
        answering.text("still here")
        assert answering.read_text() == "still here"


def test_a_write_has_its_time(server: Server) -> None:
    """S4-11: a client that takes nothing of what waits for it within the time for a write is closed with 1013."""
    with open_client(server, "/hurried") as speaker, slow(server, "/hurried") as stalled:
        while not figures(server, stalled.port).queued_messages:
            for _ in range(20):
                speaker.send("x" * 500)
                assert read(speaker) == "x" * 500
        assert close_log(server, stalled.port)["code"] == 1013
        speaker.send("others stay")
        assert read(speaker) == "others stay"


def test_a_dropped_client_is_told(server: Server) -> None:
    """S4-14: a client that the hub's service drops gets a close frame with the reason, also by `fastpush drop`."""
    with open_client(server, "/hub", "token=unwanted") as client:
        status, _, body = server.request("POST", "/drop", {"userId": "unwanted"}, {"Accept": "application/json"})
        assert (status, json.loads(body)) == (200, {"sent": 1})
        code, reason = ending(client)
        assert code == 1008 and reason


# -- what a message looks like ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "heard"),
    [("two\nlines", "two lines"), ("  ends \n", "ends"), ("\n\na\n\nb\n", "a  b"), ("a b", "a b"), (" \n ", "")],
)
def test_a_message_is_one_line(server: Server, said: str, heard: str) -> None:
    """S4-12: newlines become spaces, and the ends are trimmed."""
    with open_client(server, "/hub") as client:
        client.send(said)
        assert read(client) == heard


@pytest.mark.parametrize("is_joined", [True, False])
def test_waiting_messages_are_joined_where_asked_for(server: Server, is_joined: bool) -> None:  # noqa: FBT001
    """S4-13: with join_lines what has waited for a slow client leaves as fewer messages, a line each; without it every
    message stays one. Either way all lines come, in order.
    """
    texts = [line(number) for number in range(1500)]
    path = "/joined" if is_joined else "/patient"
    with open_client(server, path) as speaker, slow(server, path) as late:
        for text in texts:
            speaker.send(text)
            assert read(speaker) == text
        eventually(lambda: figures(server, late.port).queued_messages, what="it is behind")
        messages: list[str] = []
        lines: list[str] = []
        while len(lines) < len(texts):
            messages.append(late.read_text())
            lines += messages[-1].split("\n")
        assert lines == texts
        assert (len(messages) < len(texts)) is is_joined
        late.is_alive()


# -- the steps that the author suggests ----------------------------------------------------------------------


def test_next_step_ids(server: Server) -> None:
    """S4-17: custom ids: a client may bring one, as a token, and is reached by it from outside."""
    with open_client(server, "/hub", "token=my-own-id") as client:
        assert figures(server, client.port).user == "my-own-id"
        assert server.push("my-own-id", "/hub", "by id") == {"status": 200, "sent": 1}
        assert read(client) == "by id"


def test_next_step_rooms(server: Server) -> None:
    """S4-17: rooms: what is said in one is heard by who has entered it, and by nobody who has left."""
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(open_client(server, "/chat", f"userId={user}&room=tea")) for user in "abc")
        for kind in (6, 7):  # leave; ask who is there
            c.send(json.dumps({"messageType": kind, "to": "tea"}))
        heard_until(c, "you are not in this room")
        for room, text in (("tea", "said in the room"), ("", "said in the hall")):
            b.send(json.dumps({"messageType": 1, "to": room, "content": text}))
        assert "said in the room" in heard_until(a, "said in the hall")
        assert "said in the room" not in heard_until(c, "said in the hall")


def heard_until(client: Client, text: str) -> str:
    """All messages up to the one with this text."""
    messages: list[str] = []
    while not messages or text not in messages[-1]:
        messages.append(str(read(client)))
    return "\n".join(messages)


def test_next_step_queues(server: Server) -> None:
    """S4-17: queued messages: what a client has not taken waits for it, and comes when it reads again."""
    texts = [line(number) for number in range(600)]
    with open_client(server, "/patient") as speaker, slow(server, "/patient") as late:
        for text in texts:
            speaker.send(text)
            assert read(speaker) == text
        eventually(lambda: figures(server, late.port).queued_messages, what="it is behind")
        assert [late.read_text() for _ in texts] == texts


def test_next_step_encodings(server: Server) -> None:
    """S4-17: encodings: text and binary messages each stay what they are, and gzip is there for who asks for it."""
    with (
        open_client(server, "/hub") as client,
        open_client(server, "/broadcast", "specialKey=k&support_gzip=1") as small,
    ):
        client.send("text")
        client.send(b"\x80binary")
        assert [read(client), read(client)] == ["text", b"\x80binary"]
        small.send("gzip")
        message = read(small)
        assert isinstance(message, bytes) and gzip.decompress(message) == b"gzip"
