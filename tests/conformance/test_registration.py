"""Registration on /ws: what a client says, what it gets, and what is ignored."""

import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin

from fastpush.worker.timers import TICK_SECONDS
from tests.raw import BINARY, CLOSE, TEXT, RawClient, build, close_payload
from tests.server import SCALE, Server, eventually

JWT_SECRET = "a secret of at least thirty-two bytes"
GARBAGE = (
    build(TEXT, b"not JSON"), build(TEXT, b""), build(BINARY, b"\xff\xfe"), build(TEXT, b"[]"), build(TEXT, b'"text"'),
    build(TEXT, b"null"), build(TEXT, b"{}"), build(TEXT, b'{"token": "t"}'), build(TEXT, b'{"event": "e"}'),
    build(TEXT, b'{"token": 1, "event": "e"}'), build(TEXT, b'{"token": "t", "event": ["e"]}'),
    build(TEXT, b'{"token": "", "event": "e"}'), build(TEXT, b'{"token": "t", "event": ""}'),
    build(TEXT, json.dumps({"token": "t", "event": "e" * 513}).encode()),
)  # fmt: skip


def registration(token: str, event: str) -> str:
    return json.dumps({"token": token, "event": event})


def is_registered(server: Server, user: str, event: str, count: int = 1) -> None:
    """Wait until pushes reach `count` connections."""
    eventually(lambda: server.push(user, event, "are you there?")["sent"] == count, what=f"{count} x {user} {event}")


def read_until(client: RawClient, text: str) -> None:
    """Skip probes of `is_registered` up to `text`."""
    while (found := client.read_text()) != text:
        assert found == "are you there?"


def jwt(user: str, seconds: float) -> str:
    def part(fields: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part({"sub": user, "exp": time.time() + seconds})
    signature = hmac.digest(JWT_SECRET.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def jwt_sections() -> dict[str, dict[str, Any]]:
    return {"auth": {"mode": "jwt"}, "auth.jwt": {}, "[auth.jwt.key]": {"algorithm": "HS256", "secret": JWT_SECRET}}


# -- by message -----------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_first_message_registers(server: Server, opcode: int) -> None:
    """S0-06, S0-08, S0-11, S0-29: a text or a binary registration; pushes come as they are, each in one text frame."""
    user = f"first-{opcode}"
    with RawClient(server, "/ws") as client:
        client.send(build(opcode, registration(user, "e").encode()))
        is_registered(server, user, "e")
        for message in ("plain", '{"json": true}', "zeile\nzwei \U0001f600", " ", "x" * 100_000):
            assert server.push(user, "e", message)["sent"] == 1
            read_until(client, message)


def test_registration_in_fragments(server: Server) -> None:
    """S0-06: a registration may come in fragments, cut anywhere."""
    data = registration("Jürgen", "größe").encode()
    with RawClient(server, "/ws", confirm=1) as client:
        client.send(*(build(0 if at else TEXT, data[at : at + 1], fin=at == len(data) - 1) for at in range(len(data))))
        assert json.loads(client.read_text()) == {"registered": "größe"}


def test_later_messages_add_events(server: Server) -> None:
    """S0-07, S0-16, S0-28: each later message adds an event; one that is there already changes nothing."""
    with RawClient(server, "/ws", confirm=1) as client:
        for event in ("one", "two", "one", "three", "two"):
            client.text(registration("several", event))
            assert json.loads(client.read_text()) == {"registered": event}
        for event in ("one", "two", "three"):
            assert server.push("several", event, f"to {event}")["sent"] == 1
            assert client.read_text() == f"to {event}"
        assert server.push("several", "four", "to nobody")["sent"] == 0
        assert server.push("other", "one", "to nobody")["sent"] == 0
        client.is_alive()


def test_garbage_is_ignored_silently(server: Server) -> None:
    """S0-09, S0-12, S0-15: what is no registration has no answer and no effect, before and after a real one."""
    failed = "fastpush_registrations_failed_total"
    before = server.metrics()[failed]
    with RawClient(server, "/ws") as client:
        client.send(*GARBAGE)
        client.is_alive()
        client.text(registration("patient", "e"))
        is_registered(server, "patient", "e")
        client.send(*GARBAGE)
        assert server.push("patient", "e", "here you are")["sent"] == 1
        read_until(client, "here you are")
        client.is_alive()
        assert server.push("t", "e", "nobody")["sent"] == 0
    eventually(lambda: server.metrics()[failed] == before + 2 * len(GARBAGE))


def test_confirm_answers_each_registration(server: Server) -> None:
    """With confirm=1 each message is answered: what was registered, or why not; S0-09, S0-12 are for those without."""
    with RawClient(server, "/ws", confirm=1) as client:
        answers = []
        for frame in GARBAGE:
            client.send(frame)
            answers.append(json.loads(client.read_text()))
        assert all("error" in answer and "registered" not in answer for answer in answers)
        assert {"error": "not JSON"} in answers and {"error": "event is empty"} in answers
        client.text(registration("sure", "e"))
        assert json.loads(client.read_text()) == {"registered": "e"}
        assert server.push("sure", "e", "at once")["sent"] == 1
        assert client.read_text() == "at once"


def test_envelope_names_the_event(server: Server) -> None:
    """With envelope=1 a push is an object with event and message; a neighbour without has the bare text."""
    with (
        RawClient(server, "/ws", token="both", event=["a", "b"], envelope=1) as wrapped,
        RawClient(server, "/ws", token="both", event="a") as bare,
    ):
        message = 'quote " and \\ and \u2028 and \U0001f600'
        assert server.push("both", "a", message)["sent"] == 2
        assert json.loads(wrapped.read_text()) == {"event": "a", "message": message}
        assert bare.read_text() == message
        assert server.push("both", "b", "x")["sent"] == 1
        assert json.loads(wrapped.read_text()) == {"event": "b", "message": "x"}


def test_heartbeat_is_a_text(server: Server) -> None:
    """With heartbeat=1 a text comes every second, registered or not, and nothing of the kind without it."""
    start = time.monotonic()
    with RawClient(server, "/ws", heartbeat=1) as client, RawClient(server, "/ws") as quiet:
        assert client.read_text() == "heartbeat"
        assert client.read_text() == "heartbeat"
        assert time.monotonic() - start > 1.5
        assert quiet.is_silent()


def test_another_users_token_is_refused(server: Server) -> None:
    """S0-10, S0-12: a connection stays its first user's; another one's token is not taken, and it stays open."""
    with RawClient(server, "/ws", confirm=1) as client:
        client.text(registration("first", "e"))
        assert json.loads(client.read_text()) == {"registered": "e"}
        client.text(registration("second", "e"))
        answer = json.loads(client.read_text())
        assert "another user" in answer["error"] and answer["event"] == "e"
        assert server.push("second", "e", "no")["sent"] == 0
        assert server.push("first", "e", "yes")["sent"] == 1
        assert client.read_text() == "yes"


def test_one_user_on_many_connections(server: Server) -> None:
    """S0-13, S0-14, S0-28: all of a user's connections with the event have it, on whichever worker, no others."""
    clients = [RawClient(server, "/ws", token="many", event="e") for _ in range(8)]
    others = [RawClient(server, "/ws", token="many", event="other"), RawClient(server, "/ws", token="not", event="e")]
    assert server.push("many", "e", "all of you")["sent"] == 8
    assert [client.read_text() for client in clients] == ["all of you"] * 8
    for other in others:
        other.is_alive()
    for client in [*clients, *others]:
        client.socket.close()


def test_connections_have_their_own_ids(server: Server) -> None:
    """S0-17: every connection has an id of its own, named in each of its log lines."""
    before = len(server.events())  # a client of before may have had the same port
    clients = [RawClient(server, "/ws", token="id", event="e") for _ in range(5)]
    ports = {f"127.0.0.1:{client.port}" for client in clients}
    for client in clients:
        client.socket.close()

    def ids(name: str) -> set[str]:
        told = [line for line in server.events()[before:] if line["event"] == name]
        return {line["connection"] for line in told if line["peer"] in ports}

    eventually(lambda: len(ids("connection closed")) == 5)
    assert ids("connection closed") == ids("connection opened")
    assert all(len(connection) == 32 for connection in ids("connection opened"))


# -- in time --------------------------------------------------------------------------


def test_register_time_out_names_the_last_failure(serve: Callable[..., Server], tmp_path: Path) -> None:
    """S0-09, S0-12, S0-15: who registers nothing in time is closed with 1008 and the last reason; others stay."""
    tokens = tmp_path / "tokens"
    tokens.write_text('"secret-of-jack" = "jack"\n')
    server = serve(
        workers=1,
        sections={
            "limits": {"register_timeout_seconds": 3 * SCALE},
            "auth": {"mode": "static", "tokens_file": str(tokens)},
        },
    )
    said = {
        "no message": [],
        "not JSON": [registration("secret-of-jack", ""), "garbage"],
        "token rejected": ["garbage", registration("jack", "e")],
        "event is empty": [registration("nobody", "e"), registration("secret-of-jack", "")],
        "event is missing": ['{"token": "secret-of-jack"}'],
    }
    start = time.monotonic()
    registered = RawClient(server, "/ws")
    registered.text(registration("secret-of-jack", "e"))
    clients = {reason: RawClient(server, "/ws") for reason in said}
    pinging = RawClient(server, "/ws")
    for reason, client in clients.items():
        for text in said[reason]:
            client.text(text)
        client.is_alive()
    pinging.is_alive()
    for reason, client in clients.items():
        code, found = client.read_close()
        assert code == 1008 and found.endswith(reason), found
        assert time.monotonic() - start >= 3 * SCALE - TICK_SECONDS
        client.send(build(CLOSE, close_payload(1008)))
        client.read_end()
    assert pinging.read_close()[0] == 1008  # a sign of life is no registration
    assert server.push("jack", "e", "still here")["sent"] == 1
    assert registered.read_text() == "still here"
    for client in (registered, pinging, *clients.values()):
        client.socket.close()


# -- by URL ---------------------------------------------------------------------------


def test_registration_by_url(server: Server) -> None:
    """S0-06, S0-14: registered when the 101 is here, for each event named, each once; later messages add more."""
    with RawClient(server, "/ws", token="url", event=["a", "b", "a"], confirm=1) as client:
        assert server.push("url", "a", "one")["sent"] == 1
        assert [json.loads(client.read_text()) for _ in "ab"] == [{"registered": "a"}, {"registered": "b"}]
        assert client.read_text() == "one"
        client.text(registration("url", "c"))
        assert json.loads(client.read_text()) == {"registered": "c"}
        for event in "bc":
            assert server.push("url", event, event)["sent"] == 1
            assert client.read_text() == event


def test_too_many_registrations(serve: Callable[..., Server]) -> None:
    """S0-16: over [limits] registrations an event is not taken, those taken stay, and renewing one of them is fine."""
    server = serve(workers=1, sections={"limits": {"registrations": 3}})
    assert RawClient(server, "/ws", token="t", event=["a", "b", "c", "d"]).status == 400
    with RawClient(server, "/ws", token="greedy", event=["a", "b"], confirm=1) as client:
        for event, taken in (("a", True), ("c", True), ("d", False), ("b", True), ("c", True), ("d", False)):
            if event == "a":
                assert [client.read_text() for _ in "ab"]
            client.text(registration("greedy", event))
            assert ("registered" in json.loads(client.read_text())) == taken, event
        assert [server.push("greedy", event, "x")["sent"] for event in "abcd"] == [1, 1, 1, 0]


# -- who decides ----------------------------------------------------------------------


def test_static_tokens(serve: Callable[..., Server], tmp_path: Path) -> None:
    """S0-10, S0-12, S0-13: a file says whose a token is; two tokens of one user are both this user; others nobody."""
    tokens = tmp_path / "tokens"
    tokens.write_text('"aaa" = "jack"\n"bbb" = "jack"\n"ccc" = "jill"\n')
    server = serve(workers=2, sections={"auth": {"mode": "static", "tokens_file": str(tokens)}})
    with (
        RawClient(server, "/ws", token="aaa", event="e") as one,
        RawClient(server, "/ws", confirm=1) as two,
        RawClient(server, "/ws", token="ccc", event="e") as other,
    ):
        two.text(registration("jack", "e"))
        assert "error" in json.loads(two.read_text())
        two.text(registration("bbb", "e"))
        assert json.loads(two.read_text()) == {"registered": "e"}
        two.text(registration("ccc", "e"))
        assert "error" in json.loads(two.read_text())
        assert server.push("jack", "e", "for jack")["sent"] == 2
        assert one.read_text() == two.read_text() == "for jack"
        other.is_alive()
    assert RawClient(server, "/ws", token="jack", event="e").status == 401


def test_expired_token_closes(serve: Callable[..., Server]) -> None:
    """A JWT's exp ends the connection with 4502, by URL and by message; a fresher token of the user prolongs it."""
    server = serve(workers=1, sections=jwt_sections())
    with (
        RawClient(server, "/ws", token=jwt("jack", 3 * SCALE), event="e") as one,
        RawClient(server, "/ws", confirm=1) as two,
        RawClient(server, "/ws", token=jwt("jack", 3 * SCALE), event="e", confirm=1) as renewed,
    ):
        two.text(registration(jwt("jack", 3 * SCALE), "e"))
        renewed.text(registration(jwt("jack", 60), "e"))
        for client in (two, renewed, renewed):
            assert json.loads(client.read_text()) == {"registered": "e"}
        assert server.push("jack", "e", "before")["sent"] == 3
        for client in (one, two):
            assert client.read_text() == "before"
            assert client.read_close() == (4502, "token expired")
        assert server.push("jack", "e", "after")["sent"] == 1
        assert [renewed.read_text(), renewed.read_text()] == ["before", "after"]
        assert RawClient(server, "/ws", token=jwt("jack", -1), event="e").status == 401


def test_unreachable_webhook_means_later(serve: Callable[..., Server]) -> None:
    """A webhook that cannot be reached: 1013 to a registration by message, 503 by URL, 1013 to a page; never 1008."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        webhook = {"url": f"http://127.0.0.1:{port}/", "timeout_seconds": 1}
        sections = {"auth": {"mode": "webhook"}, "auth.webhook": webhook}
        server = serve(workers=1, sections=sections)
        with RawClient(server, "/ws", confirm=1) as client:
            client.text(registration("t", "e"))
            client.text(registration("t", "f"))
            assert "error" in json.loads(client.read_text())
            assert client.read_close() == (1013, "authentication is not available")
            client.send(build(CLOSE, close_payload(1013)))
            client.read_end()
        assert RawClient(server, "/ws", token="t", event="e").status == 503
        origin = Origin(f"http://127.0.0.1:{server.port}")
        with (
            connect(server.ws_url("token=t&event=e"), origin=origin) as page,
            pytest.raises(ConnectionClosed, match="1013"),
        ):
            page.recv(timeout=20)


def test_messages_wait_for_a_slow_answer_in_order(serve: Callable[..., Server], tmp_path: Path) -> None:
    """S0-07: while a token is being looked at, what else the client says waits, keeps its order and is not lost."""
    (tmp_path / "slow_auth.py").write_text(
        "import asyncio\n"
        "async def user_of(token, headers):\n"
        "    if token == 'broken':\n"
        "        raise RuntimeError('no')\n"
        "    await asyncio.sleep(0.02)\n"
        "    return token.removeprefix('t-') if token.startswith('t-') else None\n"
    )
    sections = {"auth": {"mode": "python"}, "auth.python": {"callable": "slow_auth:user_of"}}
    server = serve(workers=1, sections=sections, environ={"PYTHONPATH": tmp_path})
    with RawClient(server, "/ws", confirm=1) as client:
        client.send(
            *(build(TEXT, registration("t-jack" if n % 3 else "x", f"e{n}").encode()) for n in range(12)),
            build(CLOSE, close_payload(1000)),
        )
        assert client.read_close() == (1000, "")  # a close frame does not wait
    with RawClient(server, "/ws", confirm=1) as client:
        for half in (range(6), range(6, 12)):
            client.send(*(build(TEXT, registration("t-jack" if n % 3 else "x", f"e{n}").encode()) for n in half))
        answers = [json.loads(client.read_text()) for _ in range(12)]
        # Failures are told at once, registrations when the broker has confirmed them: each kind in its order.
        assert [answer["registered"] for answer in answers if "registered" in answer] == [
            f"e{n}" for n in range(12) if n % 3
        ]
        assert [answer["event"] for answer in answers if "error" in answer] == ["e0", "e3", "e6", "e9"]
        client.is_alive()
    with RawClient(server, "/ws", confirm=1) as client:
        client.text(registration("broken", "e"))
        assert "error" in json.loads(client.read_text())
        assert client.read_close()[0] == 1013
