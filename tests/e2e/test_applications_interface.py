"""The interface that applications are written on, on two workers: what is called when, and what everything returns.

The applications are written by the tests themselves, into a folder that is the server's working directory.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.programs import FASTPUSH, run
from tests.raw import CLOSE, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import Server, eventually

PROBES = '''
import asyncio
import json
import time
from pathlib import Path

from fastpush.applications import Application, Options


class FileOptions(Options):
    calls: str = ""


class Recorder(Application):
    """Appends each call to a file, one line of JSON each."""

    options_class = FileOptions

    def record(self, connection, method, *arguments):
        line = {"worker": self.server.worker, "id": connection.id, "user": connection.user, "method": method}
        with Path(self.options.calls or "/dev/null").open("a") as file:
            file.write(json.dumps(line | {"arguments": arguments}) + "\\n")

    def on_open(self, connection, request):
        self.record(connection, "on_open")

    async def on_message(self, connection, data):
        """`wait N` takes N seconds, `hang` never ends, `queue N` sends so many large messages at once, `close` ends the
        connection; all is answered.
        """
        word, _, argument = data.partition(" ")
        if word == "wait":
            await asyncio.sleep(float(argument))
        elif word == "hang":
            await asyncio.Event().wait()
        elif word == "queue":
            for _ in range(int(argument)):
                connection.send("x" * 10000)
        elif word == "close":
            connection.close(4321, "said so")
            connection.close(4322, "again")
        self.record(connection, "on_message", data)
        if connection.is_open:
            connection.send(data)

    def on_close(self, connection, code, reason):
        self.record(connection, "on_close", code, reason)


class Failing(Application):
    """Raises in the method that the URL names, as a function, or with `later` in a coroutine."""

    def on_open(self, connection, request):
        connection.data = request.query.get("fails", "")
        connection.send(connection.id)
        return self._do(connection, "on_open")

    def on_message(self, connection, data):
        if connection.data == "cancelled":
            return self._cancelled()
        if connection.data == "timer":
            self.server.call_later(0, self._fail, "timer")
        elif connection.data == "timer later":
            self.server.call_later(0, self._fail_later, "timer later")
        elif connection.data.startswith("on_error"):
            self._fail("on_message")
        else:
            connection.send(data)
        return self._do(connection, "on_message")

    def on_close(self, connection, code, reason):
        return self._do(connection, "on_close")

    def on_error(self, connection, error):
        self.server.publish("errors", f"{connection.id} {error}")
        return self._do(connection, "on_error")

    def channels(self, request):
        if request.query.get("fails") == "channels":
            self._fail("channels")
        return ["errors"] if "errors" in request.query else []

    def _do(self, connection, method):
        if connection.data == method:
            self._fail(method)
        return self._fail_later(method) if connection.data == f"{method} later" else None

    def _fail(self, method):
        raise RuntimeError(f"{method} failed")

    async def _fail_later(self, method):
        await asyncio.sleep(0)
        self._fail(method)

    async def _cancelled(self):
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task


class Unheard(Application):
    """Has no on_close, and a call that never ends but tells of its cancellation."""

    async def on_message(self, connection, data):
        try:
            await asyncio.Event().wait()
        finally:
            self.server.publish("/recorder", f"cancelled {data}")


class Notices(Application):
    def on_open(self, connection, request):
        return self.server.join(connection, "room", presence=True, grace_seconds=0)

    def on_message(self, connection, data):
        connection.send(data)

    def on_presence(self, channel, user, is_online, seconds):
        if user == "bad":
            raise RuntimeError("on_presence failed")
        return f"{user} {is_online}"


class Blocking(Application):
    async def on_message(self, connection, data):
        await asyncio.sleep(0)
        time.sleep(float(data))
        connection.send(data)


class Calls(Application):
    """Does to the Server what a message says, `[method, arguments, keyword arguments]`, and answers with the outcome.

    "me" in an argument stands for the connection.
    """

    def on_open(self, connection, request):
        connection.send(json.dumps([self.server.worker, connection.id]))

    async def on_message(self, connection, data):
        method, arguments, keywords = json.loads(data)
        keywords = {name: connection if value == "me" else value for name, value in keywords.items()}
        arguments = [connection if value == "me" else value for value in arguments]
        target = connection if hasattr(connection, method) else self.server
        if method == "call_later":
            function = {"send": connection.send, "later": self._later}[arguments[1]]
            handle = self.server.call_later(arguments[0], function, *arguments[2:])
            if keywords.get("cancel"):
                handle.cancel()
            return
        try:
            outcome = getattr(target, method)
            if callable(outcome):
                outcome = outcome(*arguments, **keywords)
            if hasattr(outcome, "__await__"):
                outcome = await outcome
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        if connection.is_open:
            connection.send("= " + json.dumps(outcome))

    async def _later(self, connection_id):
        await self.server.broadcast("later " + connection_id)


class Other(Calls):
    """The same, elsewhere."""
'''


class Probes:
    """A server with all of PROBES, and what their calls were."""

    def __init__(self, serve: Callable[..., Server], folder: Path, **sections: Any) -> None:
        self.calls_path = folder / "calls.jsonl"
        self.calls_path.touch()
        (folder / "probes.py").write_text(PROBES)
        recorder = self.entry("Recorder", options={"calls": str(self.calls_path)})
        impatient = {"ping_interval_seconds": 1, "pong_timeout_seconds": 1}
        names = ("Failing", "Unheard", "Notices", "Blocking", "Calls", "Other")
        entries = [recorder, recorder | {"path": "/impatient", "connections": impatient}, *map(self.entry, names)]
        sections = {"application": entries, "connections": {"close_timeout_seconds": 1}} | sections
        self.server = serve(workers=2, sections=sections)
        self.clients: list[RawClient] = []

    @staticmethod
    def entry(name: str, **keys: Any) -> dict[str, Any]:
        return {"path": f"/{name.lower()}", "handler": f"probes:{name}", "anonymous": "loopback"} | keys

    def client(self, path: str, user: str = "", **parameters: Any) -> RawClient:
        client = RawClient(self.server, path, **({"token": user} if user else {}), **parameters)
        self.clients.append(client)
        return client

    def pair(self, path: str, *users: str, **parameters: Any) -> list[RawClient]:
        """Return a client on each of the two workers, of these users."""
        found: dict[int, RawClient] = {}
        while len(found) < 2:
            user = users[len(found)] if users else ""
            client = self.client(path, user, **parameters)
            assert client.status == 101
            if found.setdefault(self.server.worker_of(client.port), client) is not client:
                client.reset()
        return list(found.values())

    def calls(self, user: str) -> list[tuple[Any, ...]]:
        """Return the calls for a user's latest connection."""
        lines = [json.loads(line) for line in self.calls_path.read_text().splitlines()]
        ids = [line["id"] for line in lines if line["user"] == user]
        return [(line["method"], *line["arguments"]) for line in lines if ids[-1:] == [line["id"]]]


@pytest.fixture
def probes(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Probes]]:
    """Start a server whose working directory has the module of PROBES."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as closing:

        def start(**sections: Any) -> Probes:
            started = Probes(serve, tmp_path, **sections)
            closing.callback(lambda: [client.socket.close() for client in started.clients])
            return started

        yield start


# -- exceptions --------------------------------------------------------------------


def test_exceptions(probes: Callable[..., Probes]) -> None:
    """S2-19: whatever an application raises, wherever, is logged with connection and user, counted, told to on_error
    and closes that connection with 1011: nobody else notices.
    """
    running = probes()
    server = running.server
    neighbours = running.pair("/failing")
    for neighbour in neighbours:
        neighbour.read_text()
    watcher = running.client("/failing", errors="1")
    watcher.read_text()
    for method in ("on_open", "on_message", "on_close", "on_error"):
        for fails in (method, f"{method} later"):
            before = server.metrics()["fastpush_handler_errors_total"]
            client = running.client("/failing", f"user of {fails}", fails=fails)
            name = client.read_text()
            if method in {"on_message", "on_error"}:
                client.text("now")
            if method == "on_message":
                assert client.read_text() == "now"
            if method == "on_close":
                client.send(build(CLOSE, close_payload(1000)))
            assert client.read_close()[0] == (1000 if method == "on_close" else 1011), fails
            failed = "on_message" if method == "on_error" else method
            assert watcher.read_text() == f"{name} {failed} failed"
            (line,) = eventually(lambda: [e for e in server.events("handler failed") if e["connection"] == name])  # noqa: B023 - awaited here
            assert (line["user"], line["path"]) == (f"user of {fails}", "/failing")
            assert f"RuntimeError: {failed} failed" in line["exception"]
            expected = before + (2 if method == "on_error" else 1)
            eventually(lambda: server.metrics()["fastpush_handler_errors_total"] == expected, what=fails)  # noqa: B023
    assert len(server.events("on_error failed")) == 2
    assert all(
        line["connection"] and line["user"].startswith("user of on_error") for line in server.events("on_error failed")
    )
    for neighbour in neighbours:
        neighbour.text("still here")
        assert neighbour.read_text() == "still here"


def test_exceptions_that_are_nobodys(probes: Callable[..., Probes]) -> None:
    """What a timer, on_presence or channels raises is logged and counted; it closes nobody, and a client whose channels
    cannot be told is refused with 500.
    """
    running = probes()
    server = running.server
    for fails in ("timer", "timer later"):
        client = running.client("/failing", "jack", fails=fails)
        client.read_text()
        client.text("now")
        eventually(lambda: [e for e in server.events("timer failed") if f"{fails} failed" in e["exception"]])  # noqa: B023
        client.is_alive()
    eventually(lambda: server.metrics()["fastpush_handler_errors_total"] == 2, what="two errors of timers")

    watchers = running.pair("/notices", "jack", "rose")
    for watcher in watchers:
        watcher.text("joined")  # answered behind on_open
        while (text := watcher.read_text()) != "joined":
            assert text in {"rose True", "rose False"}
    bad = running.client("/notices", "bad")
    eventually(lambda: len(server.events("on_presence failed")) == 2, what="a failure in each worker")
    assert {(e["user"], e["path"]) for e in server.events("on_presence failed")} == {("bad", "/notices")}
    eventually(lambda: server.metrics()["fastpush_handler_errors_total"] == 4, what="two errors of on_presence")
    for client in (*watchers, bad):
        client.text("still here")
        while (text := client.read_text()) != "still here":
            assert text in {"rose True", "rose False"}

    assert running.client("/failing", fails="channels").status == 500
    assert "channels failed" in eventually(lambda: server.events("handshake failed"))[0]["exception"]


def test_a_handler_whose_task_was_cancelled(probes: Callable[..., Probes]) -> None:
    """A call that waits for something which is cancelled has failed: its connection is closed, not forgotten."""
    running = probes()
    client = running.client("/failing", "jack", fails="cancelled")
    name = client.read_text()
    client.text("now")
    assert client.read_close()[0] == 1011
    assert eventually(lambda: running.server.events("handler failed"))[0]["connection"] == name


# -- order and waiting ----------------------------------------------------------------


def test_a_slow_coroutine(probes: Callable[..., Probes]) -> None:
    """While a call waits, later messages of that client wait in order, and those of all others are answered at once."""
    running = probes()
    slow, *others = running.client("/recorder", "slow"), *running.pair("/recorder", "jack", "rose")
    sent = ["wait 1", *map(str, range(100))]
    slow.send(*(build(TEXT, text.encode()) for text in sent))
    answered = 0
    while slow.is_silent():
        for other in others:
            other.text(f"{answered}")
            assert other.read_text() == f"{answered}"
        answered += 1
    assert answered > 20  # each in two of fifty milliseconds at most
    assert [slow.read_text() for _ in sent] == sent
    assert running.calls("slow") == [("on_open",), *[("on_message", text) for text in sent]]


def test_a_blocking_handler_is_named(probes: Callable[..., Probes]) -> None:
    """Who holds the loop up, here between two waits, is named by its application's metric and a line in the log."""
    running = probes()
    client = running.client("/blocking")
    client.text("0.3")
    assert client.read_text() == "0.3"
    name = 'fastpush_handler_longest_seconds{application="/blocking"'

    def longest() -> float:
        return max(value for key, value in running.server.metrics().items() if key.startswith(name))

    assert 0.3 <= eventually(longest, what="the metric") < 5
    (line,) = running.server.events("handler blocks")
    assert line["path"] == "/blocking" and 0.3 <= line["seconds"] < 5


# -- the end -----------------------------------------------------------------------


def _closes(client: RawClient) -> None:
    client.send(build(CLOSE, close_payload(4000, b"bye")))
    assert client.read_close() == (4000, "")


def _closes_without_code(client: RawClient) -> None:
    client.send(build(CLOSE))


def _sends_garbage(client: RawClient) -> None:
    client.send(build(TEXT, b"x", rsv=3))


def _says_close(client: RawClient) -> None:
    client.text("close")


def _sends_end_of_stream(client: RawClient) -> None:
    client.socket.shutdown(1)


WAYS: dict[str, tuple[Callable[[RawClient], None], int, str]] = {
    "close": (_closes, 4000, "bye"),
    "no code": (_closes_without_code, 1005, ""),
    "reset": (RawClient.reset, 1006, ""),
    "end of stream": (_sends_end_of_stream, 1006, ""),
    "violation": (_sends_garbage, 1002, "reserved bits are set"),
    "server": (_says_close, 4321, "said so"),
}


def test_on_close_whatever_the_way(probes: Callable[..., Probes]) -> None:
    """on_close comes once, last, and tells code and reason: of the client's close frame, a lost connection, a
    violation, the application's own close, a kick, a client that is too slow, one that answers no ping; messages of
    before are handled first, slow ones too.
    """
    running = probes(connections={"close_timeout_seconds": 5})
    for way, (end, code, reason) in WAYS.items():
        client = running.client("/recorder", way)
        texts = ["wait 0.2", "1", "2"]
        client.send(*(build(TEXT, text.encode()) for text in texts))
        if way in {"server", "violation"}:  # who is sent away is not waited for: what came before has to be answered
            assert [client.read_text() for _ in texts] == texts
        expected = [("on_open",), *[("on_message", text) for text in texts]]
        expected += [("on_message", "close")] if way == "server" else []
        expected.append(("on_close", code, reason))
        end(client)
        eventually(lambda: len(running.calls(way)) >= len(expected), what=way)  # noqa: B023 - awaited here
        assert running.calls(way) == expected, way

    kicked = running.client("/recorder", "kicked")
    slow = running.client("/recorder", "slow", receive_bytes=4096)
    running.client("/impatient", "silent")
    slow.text("queue 200")
    dropped = run(*FASTPUSH, "drop", "kicked", "--url", running.server.url)
    assert dropped.returncode == 0, dropped.stderr
    assert kicked.read_close() == (1008, "dropped by the back-end")
    ends = {"kicked": (1008, "dropped by the back-end"), "slow": (1013, "too slow"), "silent": (1006, "")}
    for user, end_of in ends.items():
        eventually(lambda: running.calls(user)[-1:] == [("on_close", *end_of)], what=user)  # noqa: B023 - awaited here
    for user in (*WAYS, *ends):
        assert [call[0] for call in running.calls(user)].count("on_close") == 1, user


def test_on_close_at_the_end_of_the_server(probes: Callable[..., Probes]) -> None:
    """SIGTERM: on_close tells 1012, once for each connection, on both workers, also where a call never ends."""
    running = probes()
    clients = running.pair("/recorder", "jack", "rose")
    hanging = running.client("/recorder", "hanging")
    hanging.text("hang")
    hanging.is_alive()
    running.server.signal(signal.SIGTERM)
    for client in (*clients, hanging):
        assert client.read_close()[0] == 1012
        client.send(build(CLOSE, close_payload(1012)))
    assert running.server.process.wait(20) == 0
    for user in ("jack", "rose", "hanging"):
        assert running.calls(user) == [("on_open",), ("on_close", 1012, "server is restarting")]


def test_a_call_that_never_ends(probes: Callable[..., Probes]) -> None:
    """A call that still waits when its connection has ended is cancelled after close_timeout_seconds, and told in the
    log; what waits behind it is forgotten, on_close comes; also where an application has no on_close.
    """
    running = probes()
    client = running.client("/recorder", "jack")
    client.send(*(build(TEXT, text) for text in (b"wait 0.1", b"hang", b"forgotten")))
    client.is_alive()
    client.reset()
    eventually(lambda: running.calls("jack")[-1:] == [("on_close", 1006, "")], what="the end")
    assert running.calls("jack") == [("on_open",), ("on_message", "wait 0.1"), ("on_close", 1006, "")]
    assert [e["user"] for e in running.server.events("handler cancelled")] == ["jack"]

    watcher, unheard = running.client("/recorder", "rose"), running.client("/unheard", "jill")
    unheard.text("now")
    unheard.is_alive()
    unheard.reset()
    assert watcher.read_text() == "cancelled now"


# -- the Server ----------------------------------------------------------------------


class Caller:
    """A client of /calls or /other: has its worker's Server do things."""

    def __init__(self, client: RawClient) -> None:
        self.client = client
        self.worker, self.id = json.loads(client.read_text())

    def ask(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Return what a method returns, or its exception as text; whatever comes before must have been heard."""
        self.client.text(json.dumps([method, arguments, keywords]))
        answer = self.client.read_text()
        assert answer.startswith("= "), answer
        return json.loads(answer[2:])

    def hear(self, text: str) -> None:
        """Fail unless this comes next."""
        assert self.client.read_text() == text

    def heard_nothing(self) -> None:
        """Fail if anything came before the answer to a ping."""
        self.client.is_alive()


def callers(running: Probes, *users: str) -> list[Caller]:
    """A client of /calls on each of the two workers, of these users."""
    return [Caller(client) for client in running.pair("/calls", *users)]


def test_channels(probes: Callable[..., Probes]) -> None:
    """join, leave, publish, broadcast and history reach over both workers: the number that is returned is that of those
    who get it, all but the one that is excluded; the channel keeps as many messages as asked, for those who come later.
    """
    running = probes()
    jack, rose = callers(running, "jack", "rose")
    other = Caller(running.client("/other"))
    assert {jack.worker, rose.worker} == {jack.ask("worker"), rose.ask("worker")} and jack.worker != rose.worker
    assert [jack.ask("path"), other.ask("path")] == ["/calls", "/other"]
    for caller in (jack, rose):
        assert caller.ask("join", "me", "tea") is None
        assert caller.ask("channels") == ["/calls", "tea"]
    assert other.ask("publish", "tea", "to both") == 2  # channels are all applications'
    for caller in (jack, rose):
        caller.hear("to both")
    assert jack.ask("publish", "tea", "to rose", exclude="me") == 1
    rose.hear("to rose")
    assert rose.ask("publish", "tea", "to jack", exclude="me", keep=2) == 1
    jack.hear("to jack")
    assert rose.ask("leave", "me", "tea") is None and rose.ask("channels") == ["/calls"]
    jack.client.text(json.dumps(["publish", ["tea", "alone"], {"keep": 2}]))
    assert sorted([jack.client.read_text(), jack.client.read_text()]) == ["= 1", "alone"]
    assert rose.ask("leave", "me", "never joined") is None
    assert rose.ask("publish", "nobody is there", "x") == 0

    assert rose.ask("history", "tea") == ["to jack", "alone"]
    rose.client.text(json.dumps(["join", ["me", "tea"], {"replay": True}]))
    for text in ("to jack", "alone", "= null"):
        rose.hear(text)
    assert jack.ask("publish", "tea", "third", exclude="me", keep=2) == 1
    rose.hear("third")
    assert [jack.ask("history", "tea"), jack.ask("history", "/calls")] == [["alone", "third"], []]

    assert jack.ask("broadcast", "to all others", exclude="me") == 1
    rose.hear("to all others")
    other.heard_nothing()


def test_users_and_keys(probes: Callable[..., Probes]) -> None:
    """push reaches a user's connections of this application on every worker, several users at once, or those of /ws;
    claim, close_user and close_key close on the other worker, and nobody of another application.
    """
    running = probes()
    server = running.server
    jack, rose = callers(running, "jack", "rose")
    other = Caller(running.client("/other", "rose"))
    registered = running.client("/ws", "rose", event="news")
    assert jack.ask("push", "rose", "one") == 1
    rose.hear("one")
    assert jack.ask("push", ["jack", "rose", "nobody", "rose"], "several", exclude="me") == 1
    rose.hear("several")
    assert jack.ask("push", "rose", "by event", event="news") == 1
    assert registered.read_text() == "by event"
    assert jack.ask("push", "nobody", "x") == 0
    assert server.push("rose", "/calls", "from outside") == {"status": 200, "sent": 1}
    rose.hear("from outside")

    for caller in (jack, other):
        assert caller.ask("claim", "me", "seat") is None
    again = [Caller(client) for client in running.pair("/calls", "jack", "jill")]
    (taker,) = [caller for caller in again if caller.worker != jack.worker]
    assert taker.ask("claim", "me", "seat") is None
    assert jack.client.read_close() == (4500, "replaced by a newer connection")
    assert rose.ask("close_key", "seat", 4001, "key") == 1
    assert taker.client.read_close() == (4001, "key")
    assert rose.ask("close_key", "nobody's") == 0
    watcher = next(caller for caller in again if caller is not taker)
    assert watcher.ask("close_user", "rose", 4002, "user") == 1
    assert rose.client.read_close() == (4002, "user")
    assert watcher.ask("close_user", "nobody") == 0
    assert other.ask("is_open") is True


def test_presence(probes: Callable[..., Probes]) -> None:
    """online and online_users tell users and connections of a channel, exactly, from both workers; a notice reaches
    those who are there but the one who came.
    """
    running = probes()
    jack, rose = callers(running, "jack", "rose")
    second = Caller(running.client("/calls", "jack"))
    assert jack.ask("online", "tea") == [0, 0] and jack.ask("online") == [0, 0]
    for caller in (jack, rose, second):
        assert caller.ask("join", "me", "tea", presence=True, grace_seconds=0) is None
    assert [caller.ask("online", "tea") for caller in (jack, rose)] == [[2, 3]] * 2
    assert rose.ask("online_users", "tea") == ["jack", "rose"] and rose.ask("online_users", "tea", 1) == ["jack"]
    second.ask("leave", "me", "tea")
    rose.client.send(build(CLOSE))
    rose.client.read_close()
    eventually(lambda: jack.ask("online", "tea") == [1, 1], what="rose has left")
    eventually(lambda: jack.ask("online_users", "tea") == ["jack"], what="and is named no more")


def test_the_connection(probes: Callable[..., Probes]) -> None:
    """A connection says who it is; drain waits for nobody whose queue has room; a timer calls a function or a coroutine
    function later, unless it is cancelled; a heartbeat begins at once.
    """
    running = probes()
    jack, rose = callers(running, "jack", "rose")
    assert len(jack.id) == 36 or len(jack.id) == 32
    assert jack.id != rose.id and jack.ask("id") == jack.id
    assert [jack.ask(name) for name in ("user", "is_open", "channels")] == ["jack", True, ["/calls"]]
    assert jack.ask("peer") == f"127.0.0.1:{jack.client.port}"
    assert jack.ask("drain") is None
    for seconds, what in ((0.05, "second"), (0.02, "first")):
        jack.client.text(json.dumps(["call_later", [seconds, "send", what], {}]))
    jack.client.text(json.dumps(["call_later", [0.01, "send", "never"], {"cancel": True}]))
    jack.client.text(json.dumps(["call_later", [0.1, "later", jack.id], {}]))
    for caller, texts in ((jack, ["first", "second", f"later {jack.id}"]), (rose, [f"later {jack.id}"])):
        for text in texts:
            caller.hear(text)
    jack.client.text(json.dumps(["start_heartbeat", [0.5], {}]))
    for text in ("heartbeat", "= null", "heartbeat"):
        jack.hear(text)


WRONG: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("join", ["me", ""], {}, "ValueError: a channel's name has 1 to 255 bytes as UTF-8, found 0"),
    ("join", ["me", "x" * 256], {}, "ValueError: a channel's name has 1 to 255 bytes as UTF-8, found 256"),
    ("join", ["me", 5], {}, "TypeError: a channel's name is a str, found int"),
    ("join", ["me", "tea"], {"presence": True}, "ValueError: presence needs a connection with a user"),
    ("join", ["me", "tea"], {"grace_seconds": -1}, "ValueError: grace_seconds must be 0 to 3600, found -1"),
    ("join", ["me", "tea"], {"keep": 65536}, "ValueError: keep must be a whole number from 0 to 65535, found 65536"),
    ("publish", ["tea", "x"], {"keep": "1"}, "ValueError: keep must be a whole number from 0 to 65535, found '1'"),
    ("publish", ["tea", {"a": 1}], {}, "TypeError: a message is str or bytes, found dict"),
    ("publish", ["tea", "half a \ud800"], {}, "UnicodeEncodeError: 'utf-8' codec can't encode character"),
    ("broadcast", [5], {}, "TypeError: a message is str or bytes, found int"),
    ("send", [None], {}, "TypeError: a message is str or bytes, found NoneType"),
    ("push", [[], "x"], {}, "ValueError: push to 1 to 65535 users at once, found 0"),
    ("push", [[5], "x"], {}, "TypeError: a user's name is a str, found int"),
    ("push", ["jack", "x"], {"event": ""}, "ValueError: with event, which is not empty, the message is a text"),
    ("claim", ["me", 5], {}, "TypeError: a key is a str, found int"),
    ("close_user", [5], {}, "TypeError: a user's name is a str, found int"),
    ("close_user", ["jack", 999], {}, "ValueError: close code 999 may not be sent"),
    ("close_key", ["seat", 1005], {}, "ValueError: close code 1005 may not be sent"),
    ("close", [1006], {}, "ValueError: close code 1006 may not be sent"),
    ("start_heartbeat", [0], {}, "ValueError: seconds must be more than 0, found 0"),
    ("online", [""], {}, "ValueError: a channel's name has 1 to 255 bytes as UTF-8, found 0"),
    ("online_users", ["tea", -1], {}, "ValueError: most must be a whole number from 0 on, found -1"),
    ("history", [5], {}, "TypeError: a channel's name is a str, found int"),
]


def test_wrong_arguments(probes: Callable[..., Probes]) -> None:
    """What cannot be is refused where it is asked for, with a text that says why: nothing of it reaches others."""
    running = probes()
    caller = Caller(running.client("/calls"))
    for method, arguments, keywords, expected in WRONG:
        answer = caller.ask(method, *arguments, **keywords)
        assert isinstance(answer, str) and answer.startswith(expected), (method, arguments, answer)
    assert running.server.events("bus message failed") == []
    assert caller.ask("is_open") is True


def test_publish_failed(probes: Callable[..., Probes]) -> None:
    """Without a broker publish, push, close_user and the like raise PublishFailed; where the broker was lost meanwhile
    the message may have arrived. With the next broker all is as before.
    """
    running = probes(bus={"confirm_ms": 1000})
    server = running.server
    jack, rose = callers(running, "jack", "rose")
    broker = psutil.Process(server.processes("broker")[0]["pid"])
    broker.suspend()
    assert jack.ask("publish", "/calls", "x") == "PublishFailed: the broker was lost meanwhile"
    server.process.send_signal(signal.SIGSTOP)  # no new broker for now
    broker.kill()
    for method, *arguments in (["publish", "tea", "x"], ["push", "rose", "x"], ["close_user", "rose"]):
        eventually(
            lambda: jack.ask(method, *arguments) == "PublishFailed: the broker is being restarted",  # noqa: B023
            what=method,
        )
    server.process.send_signal(signal.SIGCONT)
    eventually(lambda: jack.ask("broadcast", "again", exclude="me") == 1, what="a new broker")
    while (text := rose.client.read_text()) != "again":
        assert text == "x"  # may have arrived


# -- what stands in the configuration ----------------------------------------------


def last(client: RawClient) -> str | int | None:
    """Read what comes, large messages apart: the next text, or the code of a close frame."""
    while (frame := client.read()).payload[:9] == b"x" * 9:
        pass
    assert frame.opcode in {TEXT, CLOSE}, frame
    return frame.payload.decode() if frame.opcode == TEXT else int.from_bytes(frame.payload[:2], "big")


def _large(running: Probes, client: RawClient) -> Any:
    client.text("y" * 200)
    return client.read().opcode == TEXT


def _fragments(running: Probes, client: RawClient) -> Any:
    client.send(build(TEXT, b"a", fin=False), build(0, b"b", fin=False), build(0, b"c"))
    return last(client)


def _many(running: Probes, client: RawClient) -> Any:
    client.send(*[build(TEXT, b"m")] * 30)
    found = [last(client)]
    while found[-1] == "m" and len(found) < 30:
        found.append(last(client))
    return found[-1]


def _pauses(running: Probes, client: RawClient) -> Any:
    """Tell whether a client was not read from for a while, two of whose messages wait for the first to be handled."""
    before = running.server.metrics()["fastpush_receive_pauses_total"]
    client.text("wait 0.5")
    client.is_alive()
    client.send(*[build(TEXT, b"y" * 1000)] * 2, build(PING))
    while client.read().opcode != PONG:
        pass
    return running.server.metrics()["fastpush_receive_pauses_total"] > before


def _queue(running: Probes, client: RawClient, messages: int = 90) -> Any:
    """Take nothing before everything is sent, which the general queue just holds; return how that ends."""
    call = ("on_message", f"queue {messages}")
    eventually(lambda: call not in running.calls("slow"), what="the calls of this client, not of one before it")
    client.text(f"queue {messages}")
    eventually(lambda: call in running.calls("slow"), what="all sent")
    return last(client)


def _long_queue(running: Probes, client: RawClient) -> Any:
    return _queue(running, client, 300)


EFFECTS: list[tuple[str, Any, Callable[[Probes, RawClient], Any], Any, Any]] = [
    ("message_bytes", 128, _large, False, True),
    ("message_fragments", 2, _fragments, 1009, "abc"),
    ("messages_per_second", 10, _many, 1008, "m"),
    ("receive_queue_messages", 2, _pauses, True, False),
    ("receive_queue_bytes", 1024, _pauses, True, False),
    ("send_queue_messages", 20, _queue, 1013, "queue 90"),
    ("send_queue_bytes", 100000, _queue, 1013, "queue 90"),
    ("slow_policy", "drop-oldest", _long_queue, "queue 300", 1013),
]


def test_limits_of_one_application(probes: Callable[..., Probes]) -> None:
    """Each key of [application.limits] applies to the connections of that application, and to no other's."""
    options = {"calls": "calls.jsonl"}
    general = Probes.entry("Recorder", path="/general", options=options)
    entries = [
        Probes.entry("Recorder", path=f"/{key}", limits={key: value}, options=options) for key, value, *_ in EFFECTS
    ]
    running = probes(application=[general, *entries])
    for key, _, effect, there, elsewhere in EFFECTS:
        assert effect(running, running.client(f"/{key}", "slow", receive_bytes=4096)) == there, key
        assert effect(running, running.client("/general", "slow", receive_bytes=4096)) == elsewhere, key


def test_connections_of_one_application(probes: Callable[..., Probes]) -> None:
    """Each key of [application.connections], and heartbeat_seconds, applies to that application's clients alone."""
    entries = [
        Probes.entry("Recorder", path="/general"),
        Probes.entry("Recorder", path="/ping", connections={"ping_interval_seconds": 1}),
        Probes.entry("Recorder", path="/pong", connections={"ping_interval_seconds": 1, "pong_timeout_seconds": 1}),
        Probes.entry("Recorder", path="/close", connections={"close_timeout_seconds": 0.2}),
        Probes.entry(
            "Recorder", path="/write", connections={"write_timeout_seconds": 1}, options={"calls": "calls.jsonl"}
        ),
        Probes.entry("Recorder", path="/beat", heartbeat_seconds=1),
    ]
    running = probes(application=entries, connections={"close_timeout_seconds": 60})
    general, pinged, gone, beating = [running.client(path) for path in ("/general", "/ping", "/pong", "/beat")]
    assert [gone.read(), pinged.read()] == [Frame(PING, b""), Frame(PING, b"")]
    gone.read_end()
    assert [beating.read_text(), beating.read_text()] == ["heartbeat", "heartbeat"]
    for client in (general, pinged):
        client.is_alive()

    unanswered = [running.client(path) for path in ("/general", "/close")]
    for client in unanswered:
        client.text("close")
        assert client.read_close() == (4321, "said so")
    unanswered[1].read_end()
    assert unanswered[0].is_silent()

    unread = [running.client(path, "slow", receive_bytes=4096) for path in ("/general", "/write")]
    for client in unread:
        client.text("queue 60")
    eventually(lambda: running.calls("slow")[-1:] == [("on_close", 1013, "too slow")], what="1013")
    assert [last(client) for client in unread] == ["queue 60", 1013]


def _applications(server: Server, *entries: dict[str, Any]) -> None:
    server.write_config(2, {"application": list(entries)})


WRONG_ENTRIES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"calls": 5}}, "options: Expected `str`, got `int` - at `$.calls`"),
    ({"options": {"call": ""}}, "options: Object contains unknown field `call`"),
    ({"handler": "fastpush.applications.push:Push"}, "[server] websocket_path"),
    ({"handler": "no_such_module:Class"}, "no_such_module"),
    ({"handler": "probes:NoSuchClass"}, "NoSuchClass"),
    ({"handler": "probes:FileOptions"}, "no class that derives from fastpush.applications.Application"),
    ({"handler": "broken:Broken"}, "broken:Broken could not be made: RuntimeError: the constructor failed"),
    ({"handler": "unreadable:Class"}, "unreadable"),
    ({"limits": {"message_bytes": 1}}, "message_bytes"),
    ({"path": "/ws"}, "/ws"),
]


@pytest.mark.parametrize(("keys", "expected"), WRONG_ENTRIES, ids=[text[:30] for _, text in WRONG_ENTRIES])
def test_wrong_entries(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], expected: str
) -> None:
    """An application that cannot be made ends `fastpush serve` with exit code 2, and `fastpush check` too where no
    worker is needed to see it: each says which entry, and what is wrong with it.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probes.py").write_text(PROBES)
    (tmp_path / "unreadable.py").write_text("class Class(:\n")
    (tmp_path / "broken.py").write_text(
        "from fastpush.applications import Application\n\nclass Broken(Application):\n"
        "    def __init__(self, *_):\n        raise RuntimeError('the constructor failed')\n"
    )
    server = serve(start=False, sections={"application": [Probes.entry("Recorder") | keys], "log": {"file": ""}})
    for command in ("check", "serve"):
        result = run(*FASTPUSH, command, "--config", str(server.config_path))
        said = result.stdout + result.stderr
        if command == "check" and "broken" in keys.get("handler", ""):
            assert result.returncode == 0, said  # only a worker makes it
        else:
            assert result.returncode == 2, said
            assert ("Traceback" in said) == ("broken" in keys.get("handler", "")), said  # its author's to read
            assert expected in " ".join(said.split()), said


def test_a_rolling_restart_takes_applications_over(probes: Callable[..., Probes]) -> None:
    """After a rolling restart an [[application]] has its new options, and a new one is served; the class is that of the
    module as it is now. One that cannot be made costs nobody anything: all is as it was.
    """
    running = probes()
    server = running.server
    module = server.config_path.parent.parent / "greeting.py"

    def write(greeting: str) -> None:
        module.write_text(
            "from fastpush.applications import Application, Options\n\nclass Words(Options):\n    name: str\n\n"
            "class Greeting(Application):\n    options_class = Words\n    def on_open(self, connection, request):\n"
            f"        connection.send('{greeting} ' + self.options.name)\n"
        )

    write("hi")
    entry = Probes.entry("Greeting", path="/greeting", handler="greeting:Greeting", options={"name": "jack"})
    _applications(server, entry)
    assert running.client("/greeting").status == 404
    assert run(*FASTPUSH, "restart", "--rolling", "--config", str(server.config_path)).returncode == 0
    for client in running.pair("/greeting"):
        assert client.read_text() == "hi jack"
    write("good evening")
    _applications(server, entry | {"options": {"name": "rose"}})
    assert run(*FASTPUSH, "restart", "--rolling", "--config", str(server.config_path)).returncode == 0
    for client in running.pair("/greeting"):
        assert client.read_text() == "good evening rose"

    _applications(server, entry | {"options": {}})
    failed = run(*FASTPUSH, "restart", "--rolling", "--config", str(server.config_path))
    assert failed.returncode == 1 and "worker 0 was not replaced" in failed.stderr, failed
    killed = max(p["number"] for p in server.processes("worker"))
    psutil.Process(server.pid_of_worker(killed)).kill()
    eventually(lambda: [p["state"] for p in server.processes("worker") if p["number"] != killed] == ["ready"] * 2)
    for client in running.pair("/greeting"):
        assert client.read_text() == "good evening rose"
