"""What the push service remembers of its connections, and forgets: registrations, ids, ends."""

import json
import socket
import struct
import uuid
from contextlib import ExitStack

from websockets.sync.client import ClientConnection, connect

from fastpush.config import Limits
from fastpush.errors import RequestError
from fastpush.http.push import OnResult, Outcome, PushService
from fastpush.metrics import Counters
from fastpush.protocol.bus import NO_POSITION, Status, decode_publication
from tests.server import SCALE, Server, eventually
from tests.wire import Wire, upgrade

SECONDS = 10 * SCALE


def register(client: ClientConnection, token: str, event: str) -> None:
    client.send(json.dumps({"token": token, "event": event}))
    assert client.recv(timeout=SECONDS) == json.dumps({"registered": event}, separators=(",", ":"))


def drop(server: Server, **fields: str) -> int:
    status, _, body = server.request("POST", "/drop", fields, {"Accept": "application/json"})
    assert status == 200
    return json.loads(body)["sent"]


def test_a_connection_has_several_events(server: Server) -> None:
    """S0-07, S0-16: a second registration adds its event; the same again changes nothing, and a push comes once."""
    with connect(server.ws_url("confirm=1")) as client:
        for event in ("one", "two", "one"):
            register(client, "multi", event)
        for event in ("two", "one"):
            assert server.push("multi", event, f"for {event}")["sent"] == 1
            assert client.recv(timeout=SECONDS) == f"for {event}"
        assert server.push("multi", "three", "for nobody")["sent"] == 0
        assert server.push("multi", "one", "last")["sent"] == 1
        assert client.recv(timeout=SECONDS) == "last"  # and nothing came twice before it


def test_a_connection_stays_with_its_first_user(server: Server) -> None:
    """S0-14: a connection belongs to one user; a token of another one is refused on it, and its event stays."""
    with connect(server.ws_url("confirm=1")) as client:
        register(client, "owner", "e")
        client.send('{"token": "other", "event": "e"}')
        assert "another user" in json.loads(client.recv(timeout=SECONDS))["error"]
        assert server.push("other", "e", "m")["sent"] == 0
        assert server.push("owner", "e", "m")["sent"] == 1


def test_users_and_events_are_found_both_ways(server: Server) -> None:
    """S0-14, S0-37: by user and event their connections, by user all of them; each is forgotten when it ends."""
    with ExitStack() as stack:
        for events in ("a", "a", "b", "a&event=b"):
            stack.enter_context(connect(server.ws_url(f"token=finder&event={events}")))
        assert [server.push("finder", event, "m")["sent"] for event in ("a", "b", "c")] == [3, 2, 0]
        assert drop(server, userId="finder", event="b") == 2
        assert [server.push("finder", event, "m")["sent"] for event in ("a", "b")] == [2, 0]
        assert drop(server, userId="finder") == 2
        assert drop(server, userId="finder") == 0
    eventually(lambda: server.metrics()["fastpush_registrations"] == 0, what="every key forgotten")


def test_every_connection_has_an_id_of_its_own(server: Server) -> None:
    """S0-17: the log names each connection by a UUID, the same from its opening to its end, never one twice."""
    before = len(server.events("connection opened"))
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server.ws_url("token=named&event=e")))
        opened = eventually(
            lambda: (found := server.events("connection opened")[before:]) and len(found) == 20 and found
        )
    names = {event["connection"] for event in opened}
    assert len(names) == 20
    assert {uuid.UUID(name).version for name in names} == {8}

    def ended() -> set[str]:
        return {event["connection"] for event in server.events("connection closed") if event["user"] == "named"}

    eventually(lambda: ended() == names, what="the same ids at the end")


def test_nothing_is_kept_for_later(server: Server) -> None:
    """S0-27, S0-31: a push before a registration reaches nobody, then or later; only what comes after it does."""
    assert server.push("absent", "e", "too early")["sent"] == 0
    with connect(server.ws_url("token=absent&event=e")) as client:
        assert server.push("absent", "e", "in time")["sent"] == 1
        assert client.recv(timeout=SECONDS) == "in time"
    eventually(lambda: server.push("absent", "e", "too late")["sent"] == 0, what="connection gone")
    with connect(server.ws_url("token=absent&event=e")) as client:
        assert server.push("absent", "e", "again")["sent"] == 1
        assert client.recv(timeout=SECONDS) == "again"


def test_a_client_that_resets_is_forgotten(server: Server) -> None:
    """S0-30, S0-33, S0-34: after a reset without a close frame no push counts that connection; others get theirs."""
    with connect(server.ws_url("token=torn&event=e")) as other:
        with Wire(server) as wire:
            assert wire.send(upgrade("/ws?token=torn&event=e")).reply().status == 101
            assert server.push("torn", "e", "to both")["sent"] == 2
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: server.push("torn", "e", "to one")["sent"] == 1, what="reset noticed")
        assert other.recv(timeout=SECONDS) == "to both"
        assert other.recv(timeout=SECONDS) == "to one"


def test_a_closing_connection_takes_nothing(server: Server) -> None:
    """S0-30, S0-35: from its close frame on a connection is not written to and not counted, though still there."""
    with Wire(server) as wire:
        assert wire.send(upgrade("/ws?token=closing&event=e")).reply().status == 101
        assert drop(server, userId="closing") == 1
        for _ in range(3):
            assert server.push("closing", "e", "too late")["sent"] == 0
        assert wire.websocket_close() == 1008
        wire.send(b"\x88\x82\0\0\0\0\x03\xf0")  # its answer, 1008
        assert wire.is_ended()  # and nothing had been written behind the close frame


def test_pushing_without_http() -> None:
    """S0-36: the program itself pushes to a user and event through PushService; HTTP is only one of its callers."""
    published = []

    def publish(body: bytes, on_result: OnResult, once: bytes = b"") -> None:
        published.append(decode_publication(body))
        on_result(Status.DONE, 2, 0, NO_POSITION)

    outcomes: list[Outcome | RequestError] = []
    service = PushService(Limits(), Counters(), publish=publish, drop=publish, remember=lambda *_: None)
    service.push(b'{"userId": "jack", "event": "topic1", "message": "hello"}', outcomes.append)
    assert outcomes == [Outcome(sent=2, unconfirmed=0)]
    assert [(publication.event, publication.frame) for publication in published] == [(b"topic1", b"\x81\x05hello")]
