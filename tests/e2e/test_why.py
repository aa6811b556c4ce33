"""`fastpush why` against the real server: it tells the truth in each situation, whichever worker it happened in."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from click.testing import CliRunner
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fastpush.cli import main
from fastpush.control_client import ask
from fastpush.protocol.insight import Note, Why
from tests.applications import ending, open_client, read, workers
from tests.programs import FASTPUSH, run
from tests.raw import RawClient
from tests.sdk import KEY, PythonClient, Way, sections, token
from tests.server import SCALE, Sections, Server, application, eventually
from tests.situations import forged, listen, push, push_from
from tests.streams import Stream

Serve = Callable[..., Server]
SECONDS = 10 * SCALE
SMALL_QUEUE = {"send_queue_messages": 10, "send_queue_bytes": 100_000}
MESSAGE = "m" * 8000
ADMIN_KEY = "a-key-of-operators-0123456789"


def guarded(**more: Any) -> Sections:
    """A server that asks everybody who they are: tokens of tests.sdk, and its push key."""
    return sections(**more)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers for all tests that leave them as they were; each test has users of its own."""
    more: Sections = {
        "limits": SMALL_QUEUE | {"push_body_bytes": 200_000},
        "application": [application("Broadcast", anonymous="no")],
        "channels.chat": {"subscribe": "users"},
        "channels.closed": {"subscribe": "token"},
        "client": {"expired_close_seconds": 0},
        "admin": {"key": ADMIN_KEY},
    }
    running = Server(tmp_path_factory.mktemp("why"), workers=2, sections=guarded(**more))
    yield running
    running.stop()


# -- asking ------------------------------------------------------------------------------


def asked(server: Server, user: str) -> Why:
    """What the broker tells at once."""
    request = {"command": "insight", "question": {"ask": "why", "user": user}}
    return msgspec.convert(ask(str(server.runtime_directory / "control"), request, SECONDS)["answer"], Why)


def why(server: Server, user: str, until: Callable[[Why], Any] = bool) -> Why:
    """What `fastpush why --json` tells, once it is so, and the same for people, of which nothing moves a cursor."""
    arguments = ["why", user, "--config", str(server.config_path)]

    def told() -> Why | None:
        """None: it is not so, or a worker was too busy to be waited for, or has not found a new broker yet."""
        listed = CliRunner().invoke(main, [*arguments, "--json"])
        assert (listed.exit_code, listed.stderr, listed.stdout.count("\n")) == (0, "", 1)
        report = msgspec.json.decode(listed.stdout, type=Why)
        shown = CliRunner().invoke(main, arguments)
        assert (shown.exit_code, shown.stderr) == (0, "")
        assert all(character.isprintable() or character == "\n" for character in shown.stdout)
        words = " ".join(report.findings[0].split()[:4])  # of a text that is wrapped, and told a moment later
        is_whole = report.workers == 2 and not report.missing
        return report if until(report) and is_whole and words in " ".join(shown.stdout.split()) else None

    eventually(lambda: until(asked(server, user)), what="the report")
    report = eventually(told, what="the same by command")
    assert report is not None and report.user == user
    return report


def told_by(server: Server, worker: int, user: str, cookie: str) -> Why:
    """What the administration page is told by the worker of this number."""
    while True:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
            connection.connect()
            if server.worker_of(connection.sock.getsockname()[1]) == worker:
                connection.request("GET", f"/admin/why.json?{urlencode({'user': user})}", headers={"Cookie": cookie})
                response = connection.getresponse()
                assert response.status == 200
                report = msgspec.json.decode(response.read(), type=Why)
                if not report.missing:  # else a worker was too busy to be waited for
                    return report


def logged_in(server: Server) -> str:
    """The cookie of an operator's session."""
    body = urlencode({"key": ADMIN_KEY})
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)) as connection:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/admin/login", body, headers)
        response = connection.getresponse()
        assert response.status == 303
        return response.headers["Set-Cookie"].partition(";")[0]


def kinds(report: Why) -> list[str]:
    return [note.kind for note in report.notes]


def last(report: Why, kind: str) -> Note:
    return next(note for note in reversed(report.notes) if note.kind == kind)


def is_between(seconds: float, start: float) -> bool:
    """Whether a Unix time lies between `start` and now; the wheel that some come from ticks ten times a second."""
    return start - 0.5 <= seconds <= time.time() + 0.5


def refused_with(url: str, **options: Any) -> int:
    """The status that refuses a handshake."""
    with pytest.raises(InvalidStatus) as refusal:
        connect(url, **options)
    return refusal.value.response.status_code


# -- the situations ------------------------------------------------------------------------


def test_never_connected(server: Server) -> None:
    """Of who was never here nothing is known, and pushes to it reached nobody."""
    assert push(server, "nobody", "chat", "x")["sent"] == 0
    report = why(server, "nobody")
    assert (report.connections, report.notes, report.lost) == ([], [], [])
    assert [(pushed.event, pushed.sent, pushed.outcome) for pushed in report.pushes] == [("chat", 0, "nobody")]
    assert report.findings[0].startswith('User "nobody" is not connected, and no connection of it was opened')
    assert any('1 push to user "nobody" came while it was not connected' in text for text in report.findings)


@pytest.mark.parametrize("worker", [0, 1])
def test_wrong_token(server: Server, worker: int) -> None:
    """A token that is not signed by us only claims to be somebody's: in whichever worker, and it is said so."""
    user, number = f"forged{worker}", workers(server)[worker]
    with pytest.raises(InvalidStatus):
        open_client(server, "/ws", urlencode({"token": forged(user), "event": "chat"}), worker=number)
    report = why(server, user, lambda report: report.notes)
    (note,) = report.notes
    assert (note.kind, note.code, note.is_claimed, note.worker, note.path) == ("refused", 401, True, number, "/ws")
    assert note.reason == "token has a wrong signature" and note.peer.startswith("127.0.0.1:")
    first = report.findings[0]
    assert first.startswith(f'A client whose token says user "{user}" was not let in at ')
    assert "its token was not accepted (401: token has a wrong signature)" in first
    assert "Nobody vouches for what that token says" in first


def test_wrong_token_by_message(server: Server) -> None:
    """A registration by message with a token that cannot be read names nobody; it is told to whoever asks."""
    with open_client(server, "/ws", "confirm=1") as client:
        client.send(json.dumps({"token": "nonsense", "event": "chat"}))
        assert "error" in json.loads(read(client))
        report = why(server, "garbled", lambda report: any(not note.code for note in report.strangers))
        note = report.strangers[-1]
        assert (note.user, note.what, note.reason) == ("", "chat", "token is not a signed JWT")
        text = next(text for text in report.findings if "whose user is not known" in text)
        assert (
            "its token was not accepted (token is not a signed JWT)" in text and 'may have been user "garbled"' in text
        )


def test_wrong_token_of_a_page(server: Server) -> None:
    """A page is told by a close code; the report has that code."""
    origin = f"http://127.0.0.1:{server.port}"
    with open_client(server, "/ws", urlencode({"token": forged("page"), "event": "chat"}), origin=origin) as client:
        assert ending(client)[0] == 4501
    report = why(server, "page", lambda report: report.notes)
    assert [(note.kind, note.code, note.is_claimed) for note in report.notes] == [("refused", 4501, True)]


def test_expired_token(server: Server) -> None:
    """A token that has expired proves whose it was: its refusal is the user's own."""
    assert refused_with(server.ws_url(urlencode({"token": token("late", -60), "event": "chat"}))) == 401
    report = why(server, "late", lambda report: report.notes)
    (note,) = report.notes
    assert (note.code, note.is_claimed) == (401, False) and note.reason.startswith("token expired at 20")
    assert report.findings[0].startswith('User "late" was not let in at ')
    assert "its token had expired (401: token expired at 20" in report.findings[0]


def test_token_that_expires_meanwhile(server: Server) -> None:
    """Who is closed with its token's end is told so, with what a client should do."""
    with open_client(server, "/ws", urlencode({"token": token("brief", 3), "event": "chat"})) as client:
        assert ending(client)[0] == 4502
    report = why(server, "brief", lambda report: "closed" in kinds(report))
    assert (last(report, "closed").code, last(report, "closed").by) == (4502, "server")
    assert (
        "its token had come to its end. It has not come back since; its client should, with a fresh token"
        in (report.findings[0])
    )


@pytest.mark.parametrize(
    ("shown", "code", "is_claimed", "words"),
    [(token("sdk109", -60), 109, False, "its token had expired (109"), ("", 3500, True, "was not accepted (3500")],
    ids=["expired", "wrong"],
)
def test_tokens_of_channels(server: Server, *, shown: str, code: int, is_claimed: bool, words: str) -> None:
    """A client of channels that is not let in is told of with the protocol's code."""
    user = f"sdk{code}"
    shown = shown or forged(user)
    with connect(server.ws_url(path="/connection/websocket")) as client:
        client.send(json.dumps({"id": 1, "connect": {"token": shown}}))
        if code == 109:
            assert json.loads(client.recv(SECONDS))["error"]["code"] == code
        else:
            assert ending(client)[0] == code
    report = why(server, user, lambda report: report.notes)
    note = last(report, "refused")
    assert (note.code, note.is_claimed, note.path) == (code, is_claimed, "/connection/websocket")
    assert words in report.findings[0]


def test_channel_refused(server: Server) -> None:
    """A subscription that was refused is told of with its channel, while the client is connected."""
    with Way(server, 0) as way, closing(PythonClient(way, token=token("curious"))) as client:
        client.connect()
        client.ask_for("closed:1")
        report = why(server, "curious", lambda report: "refused" in kinds(report))
        assert (last(report, "refused").code, last(report, "refused").what) == (103, "closed:1")
        assert report.findings[0].startswith('User "curious" did not get "closed:1"')
        assert "it has no right to that (103" in report.findings[0]
        (held,) = report.connections
        assert (held.path, held.channels, held.events) == ("/connection/websocket", [], [])


def test_wrong_event(server: Server) -> None:
    """A push to an event that nobody registered for is told with the events that are, and the one that is near."""
    one, two = workers(server)
    with listen(server, "picky", "chat", "news", worker=two):
        push_from(server, one, "picky", "Chat", "x")
        push_from(server, two, "picky", "chat", "x")
        report = why(server, "picky", lambda report: len(report.pushes) == 2)
        (held,) = report.connections
        assert (held.worker, held.events, held.keys, held.state) == (two, ["chat", "news"], 2, "open")
        assert [(each.event, each.sent, each.worker) for each in report.pushes] == [("Chat", 0, one), ("chat", 1, two)]
        first = report.findings[0]
        assert 'with event "Chat"' in first and "none was registered for that event" in first
        assert first.endswith('registered for "chat", "news": "chat" differs in upper and lower case only.')


def test_slow_and_disconnected(server: Server) -> None:
    """A client that does not read is told of while it is slow, and when it was closed for that, with what it missed."""
    with RawClient(server, "/ws", receive_bytes=4096, token=token("slow"), event="e") as client:
        slow: list[Why] = []
        taken = 0
        while (sent := push(server, "slow", "e", MESSAGE)["sent"]) or not taken:
            taken += sent
            report = asked(server, "slow")
            slow += [report] if report.connections and report.connections[0].queued_messages else []
        (held,) = slow[-1].connections
        assert (held.state, held.peer) == ("slow", f"127.0.0.1:{client.port}")
        assert 0 < held.queued_bytes <= held.worst_queued_bytes <= 100_000
        assert f"({held.queued_bytes:,} bytes) now wait" in slow[-1].findings[0]
        report = why(server, "slow", lambda report: "closed" in kinds(report))
    closed, dropped = last(report, "closed"), last(report, "dropped")
    assert (closed.code, closed.reason, closed.by) == (1013, "too slow", "server")
    assert dropped.reason == "slow" and 1 <= dropped.messages <= 10
    first = report.findings[0]
    assert "by this server at " in first and 'with 1013, "too slow"' in first
    assert f"{dropped.messages} message" in first and "not delivered" in first and "send_queue_messages" in first


def test_dropped_by_the_back_end(server: Server) -> None:
    """POST /drop is told as what it is, and that the user has come back."""
    with listen(server, "banned", "chat") as client:
        assert server.request("POST", "/drop", {"userId": "banned"}, {"X-API-Key": KEY})[0] == 200
        assert ending(client)[0] == 1008
    report = why(server, "banned", lambda report: "closed" in kinds(report))
    assert (last(report, "closed").code, last(report, "closed").by, last(report, "closed").what) == (
        1008, "back-end", "chat",
    )  # fmt: skip
    assert "by POST /drop" in report.findings[0] and "It has not come back" in report.findings[0]
    push(server, "banned", "chat", "missed")
    with listen(server, "banned", "chat"):
        report = why(server, "banned", lambda report: report.connections)
        assert "by POST /drop" in report.findings[0]
        assert "1 push meanwhile reached nobody" in report.findings[0]
        assert report.findings[-1].startswith('User "banned" is connected')


def test_disconnected_by_the_server_api(server: Server) -> None:
    """A disconnect of the server API is told as the back-end's, and that clients stay away after it."""
    with connect(server.ws_url(path="/connection/websocket")) as client:
        client.send(json.dumps({"id": 1, "connect": {"token": token("kicked")}}))
        client.recv(SECONDS)
        assert server.request("POST", "/api/disconnect", {"user": "kicked"}, {"X-API-Key": KEY})[0] == 200
        assert ending(client)[0] == 3503
    report = why(server, "kicked", lambda report: "closed" in kinds(report))
    assert (last(report, "closed").code, last(report, "closed").by) == (3503, "back-end")
    assert "a disconnect of the server API" in report.findings[0]
    assert "after 3503 clients do not by themselves" in report.findings[0]


def test_dropped_by_policy(serve: Serve) -> None:
    """Messages that made room for newer ones are told, while the client is behind and when it has caught up."""
    server = serve(workers=2, sections=guarded(limits=SMALL_QUEUE | {"slow_policy": "drop-oldest"}))
    with RawClient(server, "/ws", receive_bytes=4096, token=token("behind"), event="e") as client:
        pushed = 0
        while pushed < 1000:
            assert push(server, "behind", "e", f"{pushed} {MESSAGE}")["sent"] == 1
            pushed += 1
            if (found := asked(server, "behind").connections[0]).dropped_messages > 5:
                break
        report = why(server, "behind")
        assert report.findings[0].endswith(
            f"{found.dropped_messages} messages were dropped to make room for newer ones."
        )
        while int(client.read_text().partition(" ")[0]) != pushed - 1:
            pass
        report = why(server, "behind", lambda report: "dropped" in kinds(report))
        note = last(report, "dropped")
        assert (note.reason, note.messages) == ("oldest", found.dropped_messages)
        assert f'{note.messages} messages for user "behind" were dropped' in report.findings[0]
        assert 'slow_policy = "drop-oldest"' in report.findings[0]
        assert report.connections[0].queued_messages == 0


def test_dropped_for_newer_ones(serve: Serve) -> None:
    """Publications that newer ones of their channel have replaced are told too, also of event streams."""
    channels = {"channels.prices": {"subscribe": "users", "slow_policy": "latest"}}
    server = serve(workers=2, sections=guarded(connections={"socket_send_bytes": 4096}, **channels))
    with Stream(server, token=token("trader"), channel="prices:1", receive_bytes=4096) as stream:
        number = 0
        while number < 1000:
            number += 1
            published = {"channel": "prices:1", "data": [number, MESSAGE]}
            assert server.request("POST", "/api/publish", published, {"X-API-Key": KEY})[0] == 200
            (held,) = asked(server, "trader").connections
            if held.dropped_messages > 5:
                break
        assert (held.transport, held.channels, held.state) == ("sse", ["prices:1"], "slow")
        while stream.event().json()[0] != number:
            pass
        report = why(server, "trader", lambda report: "dropped" in kinds(report))
        assert (last(report, "dropped").reason, last(report, "dropped").messages) == ("latest", held.dropped_messages)
        assert 'slow_policy = "latest"' in report.findings[0]


def test_replaced(server: Server) -> None:
    """Who loses its key to a newer connection, of the other worker too, is told so; the newer one is there."""
    one, two = workers(server)
    query = urlencode({"specialKey": "seat", "token": token("twin")})
    with open_client(server, "/broadcast", query, worker=one) as older:
        older.send("here")
        assert read(older) == "here"
        with open_client(server, "/broadcast", query, worker=two) as newer:
            assert ending(older)[0] == 4500
            report = why(server, "twin", lambda report: "closed" in kinds(report))
            note = last(report, "closed")
            assert (note.code, note.by, note.worker) == (4500, "server", one)
            assert [held.peer for held in report.connections] == [f"127.0.0.1:{newer.port}"]
            assert "a newer connection claimed its key" in report.findings[0]
            assert report.findings[-1].startswith('User "twin" is connected: 1 connection')
    report = why(server, "twin", lambda report: not report.connections)
    assert "the client has left" in report.findings[0]


def test_origin_refused(server: Server) -> None:
    """A page of another site is refused before anybody looks at its token: it may have been whoever is asked for."""
    url = server.ws_url(urlencode({"token": token("surfer"), "event": "chat"}))
    assert refused_with(url, origin="http://elsewhere.example") == 403
    report = why(server, "surfer", lambda report: any(note.code == 403 for note in report.strangers))
    assert report.notes == [] and report.findings[0].startswith('User "surfer" is not connected')
    text = next(text for text in report.findings if "403" in text)
    assert "pages of its origin may not connect (403: this Origin is not in [server] origins)" in text
    assert 'This may have been user "surfer". Name that origin in [server] origins' in text


def test_origin_refused_by_an_open_server(serve: Serve) -> None:
    """So it is where no authentication is configured, and the refusal names what to set; a wrong path is told too."""
    server = serve(workers=2)
    assert refused_with(server.ws_url("token=42&event=chat"), origin="http://elsewhere.example") == 403
    assert refused_with(server.ws_url("token=42&event=chat", "/websocket")) == 404
    report = why(server, "42", lambda report: len(report.strangers) == 2)
    assert [note.path for note in report.strangers] == ["/ws", "/websocket"]
    assert any("another site's page (Origin)" in text and "[auth] mode" in text for text in report.findings)
    assert any("(404: nothing is served at /websocket)" in text for text in report.findings)


def test_too_many(serve: Serve) -> None:
    """Whose user has too many connections is told so by name; whom a busy worker turns away nobody knows."""
    limits = {"connections_per_user": 1, "connections": 2}
    server = serve(workers=2, sections=guarded(limits=limits))
    one, _ = workers(server)
    with listen(server, "crowded", "chat", worker=one):
        assert refused_with(server.ws_url(urlencode({"token": token("crowded"), "event": "chat"}))) == 429
        report = why(server, "crowded", lambda report: "refused" in kinds(report))
        text = next(text for text in report.findings if "429" in text)
        assert text.startswith('User "crowded" was not let in') and "[limits] connections_per_user" in text
        with listen(server, "second", "chat", worker=one), pytest.raises(InvalidStatus):
            listen(server, "third", "chat", worker=one)
        report = why(server, "third", lambda report: report.strangers)
        assert (report.strangers[-1].code, report.strangers[-1].worker) == (503, one)
        assert any("[limits] connections)" in text and 'may have been user "third"' in text for text in report.findings)


def test_worker_killed(serve: Serve) -> None:
    """Who was on a worker that was killed is told so: away at first, and when it has come back to the other one."""
    server = serve(workers=2, sections=guarded())
    one, two = workers(server)
    with listen(server, "orphan", "chat", worker=one), listen(server, "other", "chat", worker=two):
        start = time.time()
        eventually(lambda: "opened" in kinds(asked(server, "orphan")))
        os.kill(server.pid_of_worker(one), signal.SIGKILL)
        eventually(lambda: len(server.processes("worker")) == 2 and one not in workers(server), what="its successor")
        report = why(server, "orphan", lambda report: report.lost and report.workers == 2)
        assert [(lost.worker, is_between(lost.seconds, start)) for lost in report.lost] == [(one, True)]
        assert report.findings[0].startswith(f"worker-{one} ended without a drain, killed or crashed, at ")
        assert "It has not come back since, though clients should" in report.findings[0]
        assert asked(server, "other").lost == []
        with listen(server, "orphan", "chat", worker=two):
            assert push(server, "orphan", "chat", "x")["sent"] == 1
            report = why(server, "orphan", lambda report: report.connections and report.pushes)
            assert report.findings[0].startswith(f"worker-{one} ended") and "It connected again" in report.findings[0]
            assert report.findings[-1].startswith('User "orphan" is connected')


def test_drained(serve: Serve) -> None:
    """Who was sent away by a drain is told so, whether or not it has come back; an SDK comes back by itself."""
    server = serve(workers=2, sections=guarded(**{"channels.chat": {"subscribe": "users"}}))
    one, two = workers(server)
    slot = next(process["slot"] for process in server.processes("worker") if process["number"] == one)
    with (
        listen(server, "guest", "chat", worker=one) as client,
        Way(server, 0) as way,
        closing(PythonClient(way, token=token("sdk"))) as sdk,
    ):
        sdk.connect()
        sdk.subscribe("chat:1")
        way.mend(1)
        result = run(*FASTPUSH, "drain", str(slot), "--config", str(server.config_path))
        assert result.returncode == 0, result.stderr
        assert ending(client)[0] == 1012
        report = why(server, "guest", lambda report: "closed" in kinds(report))
        note = last(report, "closed")
        assert (note.code, note.by, note.worker, note.what) == (1012, "server", one, "chat")
        assert "its worker stopped: a drain, a restart" in report.findings[0]
        assert "It has not come back since, though clients should" in report.findings[0]
        with listen(server, "guest", "chat", worker=two):
            report = why(server, "guest", lambda report: report.connections)
            assert "its worker stopped" in report.findings[0] and "It connected again" in report.findings[0]
        report = why(server, "sdk", lambda report: "closed" in kinds(report) and report.connections)
        assert last(report, "closed").code == 3001
        assert any("with 3001" in text and "It connected again" in text for text in report.findings)
        assert report.connections[0].channels == ["chat:1"]


def test_push_refused_as_too_large(server: Server) -> None:
    """A push that is larger than a send queue is told of with its event; one whose body is not read is nobody's."""
    one, two = workers(server)
    with listen(server, "starved", "chat"):
        for number, worker in enumerate((one, two), 1):
            push_from(server, worker, "starved", "chat", "x" * 150_000)
            report = why(server, "starved", lambda report: len(report.notes) == number + 1)  # noqa: B023 - it is called here
        assert [(note.code, note.what, note.worker, note.by) for note in report.notes[1:]] == [
            (413, "chat", one, "back-end"), (413, "chat", two, "back-end"),
        ]  # fmt: skip
        first = report.findings[0]
        assert (
            first.startswith('A push to user "starved" with event "chat" was refused at ')
            and ", 2 times since" in first
        )
        assert "with 413: message is larger than a send queue ([limits] send_queue_bytes = 100000)" in first
        assert push(server, "starved", "chat", "x" * 300_000)["status"] == 413
        report = why(server, "starved", lambda report: any(note.code == 413 for note in report.strangers))
        assert any("push_body_bytes" in text and 'may have been for user "starved"' in text for text in report.findings)
        assert push(server, "starved", "chat", "small")["sent"] == 1
        report = why(server, "starved", lambda report: report.pushes)
        assert [each.sent for each in report.pushes] == [1] and "413" in report.findings[0]


def test_push_refused_as_too_many(serve: Serve) -> None:
    """A push over the rate is told of with the setting."""
    server = serve(workers=2, sections=guarded(limits={"pushes_per_second": 1}))
    with listen(server, "popular", "chat"):
        statuses = [push(server, "popular", "chat", "x")["status"] for _ in range(8)]
        assert 429 in statuses
        report = why(server, "popular", lambda report: "refused" in kinds(report))
        note = last(report, "refused")
        assert (note.code, note.what, note.path) == (429, "chat", "/push")
        assert len([note for note in report.notes if note.code == 429]) == statuses.count(429)
        text = next(text for text in report.findings if "with 429" in text)
        assert "[limits] pushes_per_second" in text and "Nobody received it." in text


def test_all_well(server: Server) -> None:
    """Of who gets its pushes each connection is told, on both workers, and the last pushes with what became of them."""
    start = time.time()
    one, two = workers(server)
    with (
        listen(server, "happy", "chat", worker=one) as first,
        listen(server, "happy", "chat", "b", worker=two) as second,
    ):
        for worker in (one, two):
            push_from(server, worker, "happy", "chat", "hello")
        push(server, ["happy", "sad"], "b", "both")
        assert server.request("POST", "/push/all", {"event": "e", "message": "all"}, {"X-API-Key": KEY})[0] == 200
        report = why(server, "happy", lambda report: len(report.pushes) == 4)
        held = sorted(report.connections, key=lambda held: held.worker)
        assert [(each.worker, each.peer, each.events) for each in held] == [
            (one, f"127.0.0.1:{first.port}", ["chat"]), (two, f"127.0.0.1:{second.port}", ["chat", "b"]),
        ]  # fmt: skip
        for each in held:
            assert (each.path, each.transport, each.state, each.queued_bytes) == ("/ws", "websocket", "open", 0)
            assert is_between(each.since_seconds, start) and each.heard_seconds_ago < SECONDS + 30
            assert each.expires_seconds is not None and each.expires_seconds > start + 500
        found = [(each.source, each.event, each.users, each.sent, each.size_bytes) for each in report.pushes]
        assert found[:3] == [("push", "chat", 1, 2, 5), ("push", "chat", 1, 2, 5), ("push", "b", 2, 1, 4)]
        assert found[3][:3] == ("push all", "e", 0) and found[3][3] >= 2
        for each in report.pushes:
            assert each.outcome == "delivered" and each.message is None and is_between(each.seconds, start)
            assert 0 < each.duration_ms < 1000 * SECONDS
        assert [(note.kind, note.worker) for note in report.notes] == [("opened", one), ("opened", two)]
        text = report.findings[0]
        assert text.startswith('User "happy" is connected: 2 connections, the oldest one since ')
        assert 'registered for "b", "chat"' in text and "only the client can tell" in text


def test_each_worker_tells_the_same(server: Server) -> None:
    """The administration page is told what the command is told, whichever worker it asks."""
    one, two = workers(server)
    with listen(server, "shared", "chat", worker=one), listen(server, "shared", "news", worker=two) as client:
        push_from(server, one, "shared", "Chat", "x")
        push_from(server, two, "shared", "chat", "x")
        client.close()
        report = why(server, "shared", lambda report: "closed" in kinds(report))
        cookie = logged_in(server)
        for worker in (one, two):
            told = told_by(server, worker, "shared", cookie)
            assert (told.notes, told.lost) == (report.notes, report.lost)
            for push_told, push_known in zip(told.pushes, report.pushes, strict=True):
                # Workers count in another clock's time, and tell the wall's anew each time.
                assert abs(push_told.seconds - push_known.seconds) < 0.01
                assert msgspec.structs.replace(push_told, seconds=push_known.seconds) == push_known
            assert [held.id for held in told.connections] == [held.id for held in report.connections]
            assert [text.partition(" ")[0] for text in told.findings] == [
                text.partition(" ")[0] for text in report.findings
            ]


# -- what is kept, and for how long ---------------------------------------------------------


def test_an_end_without_a_word(server: Server) -> None:
    """Who vanishes without a close frame is told so."""
    client = RawClient(server, "/ws", token=token("ghost"), event="chat")
    client.reset()
    report = why(server, "ghost", lambda report: "closed" in kinds(report))
    assert (last(report, "closed").code, last(report, "closed").by) == (1006, "network")
    assert "no close frame came" in report.findings[0]


def test_who_has_gone_is_known_for_a_while(serve: Serve) -> None:
    """What is older than remember_seconds is forgotten, and so is the oldest of more than remember_notes."""
    admin = {"remember_notes": 100}
    server = serve(workers=2, sections=guarded(admin=admin))
    with listen(server, "gone", "chat"):
        pass
    report = why(server, "gone", lambda report: "closed" in kinds(report))
    assert [(note.code, note.by) for note in report.notes if note.kind == "closed"] == [(1000, "client")]
    assert "the client has left" in report.findings[0]
    for number in range(50):
        with listen(server, f"crowd{number}", "chat"):
            pass
    report = why(server, "gone", lambda report: not report.notes)
    assert report.findings[0].startswith('User "gone" is not connected, and no connection of it')
    assert report.since_seconds > asked(server, "crowd49").notes[0].seconds - 60 * SCALE


def test_messages_are_shown_where_that_is_set(serve: Serve) -> None:
    """What a push says is kept only with [admin] show_messages, from the reload on."""
    server = serve(workers=2, sections=guarded())
    assert push(server, "reader", "chat", "secret one")["status"] == 200
    server.write_config(2, guarded(admin={"show_messages": True}))
    assert run(*FASTPUSH, "reload", "--config", str(server.config_path)).returncode == 0
    assert push(server, "reader", "chat", "secret two " + "x" * 500)["status"] == 200
    report = why(server, "reader", lambda report: len(report.pushes) == 2)
    assert report.pushes[0].message is None
    shown = report.pushes[1].message
    assert shown is not None and shown.startswith("secret two xxx") and len(shown) == 200
    server.write_config(2, guarded())
    assert run(*FASTPUSH, "reload", "--config", str(server.config_path)).returncode == 0
    assert all(each.message is None for each in why(server, "reader").pushes)


def test_a_new_broker_says_since_when_it_knows(serve: Serve) -> None:
    """A broker that was replaced knows nothing older; who is connected and what was pushed workers know still."""
    server = serve(workers=2, sections=guarded())
    with listen(server, "patient", "chat"):
        assert push(server, "patient", "chat", "x")["sent"] == 1
        before = why(server, "patient")
        (broker,) = server.processes("broker")
        os.kill(broker["pid"], signal.SIGKILL)
        eventually(lambda: [each["pid"] for each in server.processes("broker")] not in ([], [broker["pid"]]))
        eventually(lambda: push(server, "patient", "chat", "y")["status"] == 200, what="pushes are taken again")
        report = why(server, "patient", lambda report: len(report.pushes) >= 2)
        assert before.since_seconds < before.asked_seconds < report.since_seconds < report.asked_seconds
        assert [held.events for held in report.connections] == [["chat"]] and "opened" not in kinds(report)
        assert report.findings[-1].startswith('User "patient" is connected')


def test_a_worker_that_does_not_answer(serve: Serve) -> None:
    """Its part is missing, and the report says so first of all; once it answers, the report is complete."""
    server = serve(workers=2, sections=guarded(server={"hang_seconds": 60}))
    one, two = workers(server)
    with listen(server, "hidden", "chat", worker=one), listen(server, "seen", "chat", worker=two):
        pid = server.pid_of_worker(one)
        os.kill(pid, signal.SIGSTOP)
        try:
            report = asked(server, "hidden")
            assert (report.workers, report.missing, report.connections) == (2, 1, [])
            assert "1 of 2 workers did not answer" in report.findings[0]
            assert 'user "hidden" may be connected there' in report.findings[0]
            shown = run(*FASTPUSH, "why", "hidden", "--config", str(server.config_path))
            assert shown.returncode == 0 and "only 1 of 2 workers answered" in shown.stdout
            assert len(asked(server, "seen").connections) == 1
        finally:
            os.kill(pid, signal.SIGCONT)
        report = why(server, "hidden", lambda report: report.connections and not report.missing)
        assert report.findings[0].startswith('User "hidden" is connected')


def test_texts_of_clients(server: Server) -> None:
    """Whatever a user, an event and a channel are called, the report has them and the terminal is safe."""
    user, event = "\x1b[2J\u202e<script>", "e\x07\n<img>"
    with listen(server, user, event):
        assert push(server, user, event + "x", "m")["sent"] == 0
        report = why(server, user, lambda report: report.pushes)
        assert report.connections[0].events == [event] and report.pushes[-1].event == event + "x"
        assert all(text.isprintable() for text in report.findings)


def test_nobody_answers(serve: Serve) -> None:
    """Without a server the command fails with a plain message."""
    server = serve(workers=1, start=False)
    result = run(*FASTPUSH, "why", "42", "--config", str(server.config_path))
    assert result.returncode == 1 and "no server of this configuration is running" in result.stderr
    assert "Traceback" not in result.stderr
