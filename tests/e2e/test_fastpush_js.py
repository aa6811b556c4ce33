"""fastpush.js in Node: against a real server, and against one that does what no server should."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import Server as WebSocketServer
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from tests.conformance.test_registration import jwt, jwt_sections
from tests.programs import CLIENTS, Browser, Program, need, need_module, run
from tests.server import SCALE, Server, application, eventually

Serve = Callable[..., Server]
WEB = Path(__file__).parents[2] / "fastpush" / "web"
FIRST_SECONDS = 0.02  # so that growing waits take no time
LATER = (1002, 1007, 1008, 1009, 1013, 3008, 3013)
OWN_CODES = (3000, 3005, 3008, 3013, 3499, 3500, 3999, 4000, 4400, 4499, 4500, 4501, 4567, 4999)


class Client(Program):
    """fastpush.js in Node: `lines` is all that happened so far."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        need_module("ws")
        options = {"firstWaitSeconds": FIRST_SECONDS, "longestWaitSeconds": 1, **options}
        script = str(CLIENTS / "fastpush.mjs")
        super().__init__(need("node", "nodejs"), script, kind, url, json.dumps(options))
        self.lines: list[dict[str, Any]] = []

    def do(self, name: str, *values: Any) -> None:
        self.write(json.dumps([name, *values]))

    def next(self, key: str, **expected: Any) -> Any:
        """The next thing of this kind that happens: its value. With fields: the next that has them."""
        while True:
            line = json.loads(self.line_with("{"))
            self.lines.append(line)
            assert "uncaught" not in line or key == "uncaught", line
            if key in line and line.items() >= expected.items():
                return line[key]

    def state(self, name: str) -> dict[str, Any]:
        """The next state of this name."""
        while True:
            state: dict[str, Any] = self.next("state")
            if state["name"] == name:
                return state

    def register(self, event: str) -> None:
        self.do("register", event)
        self.next("registered", registered=event)

    def states(self) -> list[str]:
        return [line["state"]["name"] for line in self.lines if "state" in line]


class Script:
    """A WebSocket server: `play` is called with each connection and its number, from 0; it is closed at the end."""

    def __init__(self, play: Callable[[ServerConnection, int], None]) -> None:
        self._play = play
        self.paths: list[str] = []
        self.moments: list[float] = []
        self.over = threading.Event()
        self.failures: list[Exception] = []

    def __call__(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.moments.append(time.monotonic())
        self.paths.append(connection.request.path)
        try:
            self._play(connection, len(self.paths) - 1)
        except (AssertionError, TimeoutError) as error:
            self.failures.append(error)
            raise

    def reaches(self, count: int) -> None:
        """Wait until it has had exactly so many connections; a client may know before the script does."""
        eventually(lambda: len(self.paths) >= count, what=f"{count} connections")
        assert len(self.paths) == count


@contextmanager
def scripted(play: Callable[[ServerConnection, int], None]) -> Iterator[tuple[str, Script]]:
    """Run it; yield its URL and record."""
    script = Script(play)
    running: WebSocketServer
    with serve_websockets(script, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}/app", script
        finally:
            script.over.set()
            running.shutdown()
            thread.join()
            assert not script.failures, script.failures


def cut(connection: ServerConnection) -> None:
    """End it without a close frame."""
    connection.socket.shutdown(socket.SHUT_RDWR)


def stay(connection: ServerConnection) -> None:
    """Leave it open until the client ends it."""
    with suppress(ConnectionClosed):
        for _ in connection:
            pass


# -- The file -----------------------------------------------------------------------


def test_size() -> None:
    """fastpush.js has at most 4 KB minified and compressed, and imports nothing."""
    need_module("esbuild")
    result = run(need("node", "nodejs"), str(CLIENTS / "size.mjs"), str(WEB / "fastpush.js"))
    assert result.returncode == 0, result.stderr
    assert 1000 < int(result.stdout) <= 4096
    assert not re.search(r"^\s*import\b", (WEB / "fastpush.js").read_text(), re.MULTILINE)


def test_types() -> None:
    """The types allow what a program does with fastpush.js, and nothing that it cannot."""
    compiler = need_module("typescript") / "bin" / "tsc"
    options = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom")
    result = run(need("node", "nodejs"), str(compiler), *options, str(CLIENTS / "types.ts"))
    assert result.returncode == 0, result.stdout


def documented(path: Path) -> dict[str, str]:
    """The comment of every class and public method; of methods by Class.name."""
    text = path.read_text(encoding="utf-8")
    found, owner = {}, ""
    pattern = r"/\*\*((?:(?!\*/).)*)\*/\s*(?:export )?(class |get )?(\w+)"
    for match in re.finditer(pattern, text, re.DOTALL):
        words, kind, name = " ".join(match[1].replace("*", " ").split()), match[2], match[3]
        if kind == "class ":
            owner = name
            found[name] = words
        elif owner and not name.startswith("_"):
            found[f"{owner}.{name}"] = words
    return found


def test_documentation() -> None:
    """Every public class and method has the same words in the program and in its types."""
    program, types = documented(WEB / "fastpush.js"), documented(WEB / "fastpush.d.ts")
    assert {"Connection.send", "Connection.state", "PushClient.register", "ChannelClient.subscribe"} <= program.keys()
    assert [name for name in program if types.get(name) not in {program[name], None}] == []
    names = "constructor|connect|send|onMessage|onState|close|register|on|subscribe|state|readyState"
    listed = re.findall(rf"^  (?:get )?({names})\(", (WEB / "fastpush.d.ts").read_text(), re.MULTILINE)
    assert len(listed) == len([name for name in types if "." in name])  # none without a comment


# -- /ws ----------------------------------------------------------------------------


def test_receives_by_name(server: Server) -> None:
    """A confirmed registration gets every push, by its event's name; a handler that throws stops no other."""
    with Client("PushClient", server.ws_url(), token="ann") as client:
        client.do("onBad", "price")
        client.do("on", "price")
        client.do("on", "news")
        client.register("price")
        client.register("news")
        assert server.push("ann", "price", "12 €")["sent"] == 1
        assert client.next("on") == "price" and client.lines[-1]["text"] == "12 €"
        assert client.next("message", event="price") == "12 €"
        assert client.next("uncaught") == "handler failed"
        assert server.push("ann", "news", "heartbeat")["sent"] == 1
        assert client.next("message", event="news") == "heartbeat"
        assert client.states()[:3] == ["connecting", "open", "open"]
        client.do("close")
        closed = {"name": "closed", "code": 1000, "reason": "", "why": "closed by this side"}
        assert client.state("closed") == closed
    eventually(lambda: server.push("ann", "price", "gone")["sent"] == 0, what="nobody there")


def test_registration_is_refused(serve: Serve, tmp_path: Path) -> None:
    """A refused registration rejects its promise with the server's reason and ends the connection; no reconnect."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    server = serve(workers=2, sections={"auth": {"mode": "static", "tokens_file": str(tokens)}})
    with Client("PushClient", server.ws_url(), token="wrong") as client:
        client.do("register", "topic1")
        closed = client.state("closed")
        assert (closed["code"], closed["reason"]) == (1008, "token is unknown")
        assert client.next("refused") == "topic1" and client.lines[-1]["reason"] == "token is unknown"
    with Client("PushClient", server.ws_url(), token="aaa") as client:
        client.register("good")
        client.do("register", "x" * 600)
        assert client.next("refused") == "x" * 600
        assert server.push("jack", "good", "still here")["sent"] == 1
        assert client.next("message") == "still here"


def test_comes_back_after_a_restart(serve: Serve) -> None:
    """After 1012, and while nobody listens, it tries again and registers anew; no handler is called twice."""
    server = serve(workers=2)
    with Client("PushClient", server.ws_url(), token="ann") as client:
        client.do("on", "price")
        client.register("price")
        for _ in range(2):
            server.stop()
            waiting = client.state("waiting")
            assert (waiting["code"], waiting["why"]) == (1012, "the server restarts or stops")
            server.write_config(2, {"server": {"listen": f"127.0.0.1:{server.port}"}})
            server.start()
            while client.state("open")["registered"] != ["price"]:
                pass
        assert server.push("ann", "price", "again")["sent"] == 1
        assert client.next("message") == "again"
        assert server.push("ann", "price", "last")["sent"] == 1
        assert client.next("message") == "last"
        told = [line["text"] for line in client.lines if "on" in line]
        assert told == ["again", "last"]


def test_fresh_token_after_4502(serve: Serve) -> None:
    """A token that expires is replaced by what the token function gives next, and pushes go on."""
    server = serve(workers=2, sections=jwt_sections())
    tokens = [jwt("jack", 4 * SCALE), jwt("jack", 600)]
    with Client("PushClient", server.ws_url(), tokens=tokens) as client:
        client.register("price")
        waiting = client.state("waiting")
        assert (waiting["code"], waiting["reason"]) == (4502, "token expired")
        assert client.next("asked") == 2
        while client.state("open")["registered"] != ["price"]:
            pass
        assert server.push("jack", "price", "fresh")["sent"] == 1
        assert client.next("message") == "fresh"


def test_expired_token_is_final_where_there_is_no_other(serve: Serve) -> None:
    """With a token that is text 4502 is the end."""
    server = serve(workers=1, sections=jwt_sections())
    with Client("PushClient", server.ws_url(), token=jwt("jack", 4 * SCALE)) as client:
        client.register("price")
        assert client.state("closed")["code"] == 4502


def test_token_that_expired_while_away(serve: Serve) -> None:
    """A token that worked before and is refused at a later connection is asked for again, for all events once."""
    server = serve(workers=2, sections=jwt_sections())
    tokens = [jwt("jack", 4 * SCALE), jwt("jack", 600)]
    waits = {"firstWaitSeconds": 4 * SCALE, "longestWaitSeconds": 4 * SCALE, "random": 1}
    with Client("PushClient", server.ws_url(), tokens=tokens, **waits) as client:
        for event in ("one", "two", "three"):
            client.register(event)
        server.stop()
        server.write_config(2, {"server": {"listen": f"127.0.0.1:{server.port}"}, **jwt_sections()})
        server.start()
        while sorted(client.state("open")["registered"]) != ["one", "three", "two"]:
            pass
        assert [line["asked"] for line in client.lines if "asked" in line] == [1, 2]


# -- Close codes --------------------------------------------------------------------


@pytest.mark.parametrize("code", [*range(1000, 1003), *range(1006, 1010), 1011, 1012, 1013, *OWN_CODES])
def test_close_codes(code: int) -> None:
    """The table: 1000, 3500 to 3999 and from 4500 on, but 4502, is final; after all others it comes back."""

    def play(connection: ServerConnection, number: int) -> None:
        if number:
            stay(connection)
        elif code == 1006:
            cut(connection)
        else:
            connection.close(code, "because")

    with scripted(play) as (url, script), Client("Connection", url, token="aaa") as client:
        client.do("connect")
        client.state("open")
        is_final = code == 1000 or 3500 <= code < 4000 or code >= 4500
        state = client.state("closed" if is_final else "waiting")
        assert (state["code"], state["reason"]) == (code, "" if code == 1006 else "because")
        assert state["why"]
        if is_final:
            client.do("online")  # not even then
            client.do("readyState")
            assert client.next("readyState") == 3
            assert client.states() == ["connecting", "open", "closed"]
        else:
            first = FIRST_SECONDS * (4 if code in LATER else 1)
            assert first / 2 <= state["seconds"] <= first
            client.state("open")
            script.reaches(2)


def test_4501_asks_once_for_another_token() -> None:
    """A new token that is rejected is final; one that was good for an earlier connection is asked for again, once."""

    def play(connection: ServerConnection, number: int) -> None:
        connection.close([1012, 4501, 1012, 4501, 4501][number], "")

    with scripted(play) as (url, script), Client("Connection", url, tokens=["a", "b", "c", "d"]) as client:
        client.do("connect")
        assert client.state("closed")["code"] == 4501
        assert script.paths == [f"/app?token={token}" for token in "aabbc"]


def test_token_function_that_fails() -> None:
    """While there is no token it comes back with growing waits, and names the function's error."""
    with scripted(lambda connection, _: stay(connection)) as (url, script):
        with Client("Connection", url, tokens=[None, None, "good"]) as client:
            client.do("connect")
            first, second = client.state("waiting"), client.state("waiting")
            assert [(s["code"], s["reason"]) for s in (first, second)] == [(0, "the back-end is away")] * 2
            client.state("open")
            script.reaches(1)
        assert script.paths == ["/app?token=good"]


# -- Waits --------------------------------------------------------------------------


@pytest.mark.parametrize(("random", "share"), [(0, 0.5), (0.5, 0.75), (1, 1.0)])
def test_waits_grow_and_are_bounded(random: float, share: float) -> None:
    """Waits double up to the longest one, each between half and all of that."""
    with scripted(lambda connection, _: cut(connection)) as (url, script):
        options = {"firstWaitSeconds": 0.01, "longestWaitSeconds": 0.05, "random": random}
        with Client("Connection", url, **options) as client:
            client.do("connect")
            waits = [client.state("waiting")["seconds"] for _ in range(6)]
            assert waits == pytest.approx([share * most for most in (0.01, 0.02, 0.04, 0.05, 0.05, 0.05)])
            attempts = [line["state"]["attempt"] for line in client.lines if "attempt" in line.get("state", {})]
            assert attempts == [1, 2, 3, 4, 5, 6]
        # Each wait was waited for: a timer of Node's may be a millisecond early.
        gaps = [later - earlier for earlier, later in zip(script.moments, script.moments[1:], strict=False)]
        assert all(gap > wait - 0.002 for gap, wait in zip(gaps, waits, strict=False)), (gaps, waits)


def test_waits_start_anew_after_a_steady_connection() -> None:
    """What was open for a while starts with the shortest wait again; what was lost at once does not."""
    opened = threading.Event()

    def play(connection: ServerConnection, number: int) -> None:
        if number == 2:
            assert opened.wait(10 * SCALE)
            script.over.wait(5.2)
        cut(connection)

    with scripted(play) as (url, script), Client("Connection", url, random=1) as client:
        client.do("connect")
        waits = [client.state("waiting")["seconds"] for _ in range(2)]
        client.state("open")
        opened.set()
        waits.append(client.state("waiting")["seconds"])
        assert waits == pytest.approx([FIRST_SECONDS, 2 * FIRST_SECONDS, FIRST_SECONDS])


def test_back_at_once_when_the_network_is() -> None:
    """The event "online" ends a wait, and so does connect(); close() ends it for good."""

    def play(connection: ServerConnection, number: int) -> None:
        connection.close(1012, "")

    waits = {"firstWaitSeconds": 1000, "longestWaitSeconds": 1000}
    with scripted(play) as (url, script), Client("Connection", url, **waits) as client:
        client.do("connect")
        for number, name in enumerate(("online", "connect"), 2):
            assert client.state("waiting")["seconds"] >= 500
            client.do(name)
            client.state("open")
            script.reaches(number)
        client.state("waiting")
        client.do("close")
        assert client.state("closed")["why"] == "closed by this side"
        client.do("online")
        client.do("readyState")
        client.next("readyState")
        assert client.states()[-1] == "closed"


# -- Heartbeat ----------------------------------------------------------------------


def test_silent_connection_is_replaced() -> None:
    """Silence of two and a half heartbeats is death: the connection is replaced. Any message is a sign of life."""

    def play(connection: ServerConnection, number: int) -> None:
        if number == 0:  # opened, and then never a word, not even an answer to a close frame
            script.over.wait()
        else:
            for sign in ("heartbeat", "data") * 5:
                if not script.over.wait(0.45):
                    connection.send(sign)
            stay(connection)

    with scripted(play) as (url, script), Client("Connection", url, heartbeatSeconds=1.6) as client:
        client.do("connect")
        waiting = client.state("waiting")
        assert (waiting["code"], waiting["reason"]) == (1006, "nothing heard for 4 s")
        client.state("open")
        script.reaches(2)
        assert script.moments[1] - script.moments[0] > 3.9
        for _ in range(5):
            assert client.next("message") == "data"  # a heartbeat is none
        assert client.states() == ["connecting", "open", "waiting", "connecting", "open"]
        script.over.set()


def test_heartbeat_is_asked_for(server: Server) -> None:
    """PushClient asks /ws for heartbeats; silence behind a server that answers none of it would be noticed."""
    with Client("PushClient", server.ws_url(), token="quiet", heartbeatSeconds=2) as client:
        client.register("price")
        opened = time.monotonic()
        eventually(lambda: time.monotonic() - opened > 5.5, 10)  # more than two and a half, with nothing but heartbeats
        client.do("readyState")
        assert client.next("readyState") == 1
        assert client.states() == ["connecting", "open", "open"]


# -- Other applications -------------------------------------------------------------


def test_plain_messages() -> None:
    """A Connection hands over text and bytes as they are, sends while it is open, and says so when it is not."""

    def play(connection: ServerConnection, number: int) -> None:
        connection.send("heartbeat")
        for data in connection:
            connection.send(data)

    with scripted(play) as (url, script), Client("Connection", f"{url}?room=tea") as client:
        client.do("send", "too early")
        assert client.next("sent") is False
        client.do("connect")
        assert client.next("message") == "heartbeat"  # nobody said that it was one
        client.do("send", '{"json": true}')
        assert client.next("sent") is True
        assert client.next("message") == '{"json": true}'
        client.do("readyState")
        assert client.next("readyState") == 1
    assert script.paths == ["/app?room=tea"]


# -- docs/javascript.md -------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "javascript.md").read_text(encoding="utf-8")


def examples() -> list[str]:
    """The examples of the page as expressions: what a module may do at its top is done in a function."""
    blocks = re.findall(r"^```js\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    modules = [re.sub(r'import (\{.*\}) from (".*");', r"const \1 = await import(\2);", block) for block in blocks]
    return [f"(async () => {{ {module} }})()" for module in modules]


def test_examples_in_chromium(serve: Serve) -> None:
    """Each example of the page does, in a browser, what the page says; what was closed by 1012 is back."""
    channels = {"channels.chat": {"subscribe": "users", "publish": "users"}}
    server = serve(workers=2, sections={"application": [application("Chat")]} | channels)
    receiving, subscribing, entering, expiring, chatting = examples()
    logged: list[str] = []

    with Browser(server.url) as browser:

        def console(line: str) -> bool:
            logged.extend(browser.do("logged"))
            return any(line in each for each in logged)

        browser.do("evaluate", expression=receiving)
        eventually(lambda: console("log: registered"), what="registration")
        assert server.push("aaa", "topic1", "hello")["sent"] == 1
        eventually(lambda: console("log: pushed: hello"), what="push")
        browser.do("evaluate", expression=subscribing)
        eventually(lambda: console("log: load what was before"), what="subscription")
        with connect(server.ws_url(path="/connection/websocket")) as client:
            client.send('{"id": 1, "connect": {"token": "bbb"}}')
            client.send('{"id": 2, "publish": {"channel": "chat:42", "data": {"text": "hello"}}}')
            eventually(lambda: console("log: published: hello"), what="publication")
        browser.do("evaluate", expression=entering)
        eventually(lambda: console("log: private: subscribing no token: 404"), what="token asked for")
        browser.do("evaluate", expression=expiring)
        eventually(lambda: console("log: no token could be had; trying again in 1 s"), what="wait")
        with connect(server.ws_url("token=bbb&room=tea", "/chat")) as client:
            browser.do("evaluate", expression=chatting)
            eventually(lambda: json.loads(client.recv(timeout=10)).get("content") == "hello", what="greeting")
        server.request("POST", "/drop", {"userId": "aaa"})
        eventually(lambda: console("log: state: waiting"), what="loss")
        eventually(lambda: server.push("aaa", "topic1", "again")["sent"] == 1, 20, "back")
        eventually(lambda: console("log: pushed: again"), what="push")


def test_table_of_the_page() -> None:
    """docs/javascript.md names every code that the program knows, and every option with its default."""
    program = (WEB / "fastpush.js").read_text(encoding="utf-8")
    known = set(re.findall(r"^  (\d{4}): \"", program, re.MULTILINE))
    assert known <= set(re.findall(r"\b\d{4}\b", PAGE.partition("## What it does when")[2].partition("## ")[0]))
    types = (WEB / "fastpush.d.ts").read_text(encoding="utf-8")
    options = set(re.findall(r"^  (\w+)\?: ", types, re.MULTILINE))
    assert len(options) == 6 and all(f"| `{option}` |" in PAGE for option in options)
