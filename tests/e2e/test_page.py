"""The page at /, in Chromium, against a real server with four workers and every application."""

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.sync.client import connect

from tests.programs import FASTPUSH, Browser, Program, need_module, run
from tests.server import Server, application, eventually

Serve = Callable[..., Server]
APPLICATIONS = [application(name) for name in ("Chat", "Hub", "Broadcast")]
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"


class Tab:
    """One page of the browser, as another reader has it."""

    def __init__(self, browser: Browser, name: str, **options: Any) -> None:
        self._browser = browser
        self._name = name
        browser.do("open", page=name, options={"locale": "en-US", **options})

    def do(self, command: str, **arguments: Any) -> Any:
        return self._browser.do(command, page=self._name, **arguments)

    def close(self) -> None:
        self.do("close")

    def goto(self, server: Server, **values: Any) -> None:
        """Load the page; with values: connected at once, as a link says them."""
        self.do("goto", url="about:blank")  # a URL that differs behind # alone loads nothing
        self.do("goto", url=f"{server.url}/#{urlencode(values, doseq=True)}")
        self.shows("#start-title, #talk-title, [role=alert]")

    def texts(self, selector: str) -> list[str]:
        return self.do("texts", selector=selector)

    def text(self, selector: str) -> str:
        return (self.texts(selector) or [""])[0]

    def evaluate(self, expression: str) -> Any:
        return self.do("evaluate", expression=expression)

    def click(self, selector: str) -> None:
        self.do("click", selector=selector)

    def fill(self, selector: str, value: str) -> None:
        self.do("fill", selector=selector, value=value)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.do("press", key=key)

    def has(self, selector: str, text: str, seconds: float = 20) -> str:
        """Wait until an element's text has this in it."""
        return eventually(lambda: next((t for t in self.texts(selector) if text in t), ""), seconds, f"{text!r} shown")

    def shows(self, selector: str) -> None:
        """Wait until such an element is on the screen."""
        eventually(lambda: self.do("count", selector=f":is({selector}):visible"), what=f"{selector} shown")

    def status(self, text: str, seconds: float = 20) -> str:
        return self.has("#status-text", text, seconds)

    def say(self, text: str) -> None:
        self.fill("#text", text)
        self.press("Enter")

    def lines(self, kind: str = "line") -> list[str]:
        """Texts of the shown lines of a kind: own, other, system."""
        return self.texts(f"#lines .{kind} .text")

    def members(self) -> list[str]:
        return self.texts("#members .pick-name")

    def enter(self, room: str) -> None:
        self.fill("#enter-name", room)
        self.click("#enter-button")
        self.has("#talk-title", room)

    def switch(self, talk: str) -> None:
        self.click(f'#side .pick:has(.pick-name:text-is("{talk}"))')

    def wait_longer(self) -> None:
        """From now on what the page would do by itself in a while comes a hundred times later."""
        longer = "window.setTimeout = (call, ms) => real(call, ms >= 400 ? 100 * ms : ms)"
        self.evaluate(f"{{ const real = window.setTimeout; {longer}; }}")

    def errors(self) -> list[str]:
        """What went wrong in the page; a server that is away, or refuses, is none of it."""
        logged = self.do("logged")
        served = re.compile("ERR_CONNECTION_REFUSED|Failed to load resource|Unexpected response code: 503")
        return [line for line in logged if line.startswith("error: ") and not served.search(line)]


Open = Callable[..., Tab]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of the page."""
    with Browser() as running:
        yield running


@pytest.fixture
def tab(browser: Browser) -> Iterator[Open]:
    """Open pages that end with the test, none of which has reported an error."""
    opened: list[Tab] = []

    def open_tab(server: Server | None = None, options: dict[str, Any] | None = None, **values: Any) -> Tab:
        tab = Tab(browser, f"tab {len(opened)}", **(options or {}))
        opened.append(tab)
        if server is not None:
            tab.goto(server, **values)
        return tab

    yield open_tab
    problems = [tab.errors() for tab in opened]
    for tab in opened:
        tab.close()
    assert problems == [[]] * len(opened)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Four workers and every application, for tests that leave them as they were."""
    applications = [*APPLICATIONS, application("Echo", heartbeat_seconds=1)]
    running = Server(tmp_path_factory.mktemp("server"), workers=4, sections={"application": applications})
    yield running
    running.stop()


def chat(tab: Open, server: Server, name: str, *rooms: str, **options: Any) -> Tab:
    """A page that is in the chat, and in rooms."""
    page = tab(server, options, app="/chat", token=name, room=rooms)
    eventually(lambda: page.evaluate("document.querySelector('#status').dataset.state") == "open", 20, "connected")
    return page


# -- Delivery -----------------------------------------------------------------------


def test_where_the_page_is(server: Server) -> None:
    """S4-15: GET / is the page; another method is 405, another path 404; its files load nothing from elsewhere."""
    status, headers, body = server.request("GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["content-security-policy"]
    for name in set(re.findall(r'"(/assets/[\w.]+)"', body.decode())):
        status, headers, _ = server.request("GET", name)
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
    assert server.request("POST", "/", b"x")[0] == 405
    assert server.request("DELETE", "/assets/fastpush.js")[0] == 405
    assert [server.request("GET", path)[0] for path in ("/index.html", "/assets/", "/assets/none.js")] == [404] * 3
    assert server.request("GET", "/assets/fastpush.js")[2] == (WEB / "fastpush.js").read_bytes()


WEB = Path(__file__).parents[2] / "fastpush" / "web"


def test_both_languages_say_everything() -> None:
    """Every word of the page is there in both languages, with the same values in it, and none is left over."""
    words = (WEB / "words.js").read_text(encoding="utf-8")
    _, english, chinese = re.split(r"^  (?:en|zh): \{$", words.partition("const NAMES")[0], flags=re.MULTILINE)
    said = [dict(re.findall(r'^    (\w+): "(.*)",$', part, re.MULTILINE)) for part in (english, chinese)]
    assert said[0].keys() == said[1].keys() and len(said[0]) > 90
    values = [{key: set(re.findall(r"\{\w+\}", text)) for key, text in part.items()} for part in said]
    assert values[0] == values[1]
    files = "".join((WEB / name).read_text() for name in ("index.html", "page.js", "talks.js", "applications.js"))
    made = re.compile(r"about[A-Z]|code\d|codeOther")  # out of another word
    assert [key for key in said[0] if not made.match(key) and not re.search(rf"\b{key}\b", files)] == []
    used = set(re.findall(r'\bsay\("(\w+)"', files)) | set(re.findall(r'data-say[\w-]*="(\w+)"', files))
    assert sorted(used - said[0].keys()) == []


# -- Chat ---------------------------------------------------------------------------


def test_three_pages_in_two_rooms(tab: Open, server: Server) -> None:
    """S3-21, S4-17: messages reach the room they were said in, each marked own, other or system with its time;
    notices, counts and unread marks agree.
    """
    jack, rose = chat(tab, server, "jack", "tea"), chat(tab, server, "rose", "tea")
    jack.has("#lines .system .text", "rose came in")
    mary = chat(tab, server, "mary")
    for page in (jack, rose, mary):
        eventually(lambda page=page: page.members() == ["jack", "mary", "rose"], what="members of the hall")
        assert page.text("#members-count") == "3" and page.text("#talk-online") == "3 online"
    jack.say("hello, all")
    for page in (rose, mary):
        page.has("#lines .other .text", "hello, all")
        assert page.text("#lines .other .author") == "jack"
    jack.has("#lines .own .text", "hello, all")
    assert jack.lines("own") == ["hello, all"] and jack.text("#lines .own .author") == "You"
    jack.switch("tea")
    jack.has("#talk-online", "2 online")
    jack.say("only here")
    rose.has("#rooms .badge", "1")
    assert rose.evaluate("document.title") == "(1) Group chat"
    rose.switch("tea")
    rose.has("#lines .other .text", "only here")
    assert rose.do("count", selector="#rooms .badge") == 0
    assert mary.texts("#rooms .pick-name") == ["Hall"]
    mary.enter("tea")
    mary.has("#lines .other .text", "only here")  # what was said before
    mary.has("#talk-online", "3 online")
    rose.has("#lines .system .text", "mary came in")
    rose.click("#leave")
    assert rose.texts("#rooms .pick-name") == ["Hall"]
    jack.has("#lines .system .text", "rose left")
    jack.has("#talk-online", "2 online")
    moments = jack.evaluate("[...document.querySelectorAll('#lines time')].map((t) => [t.dateTime, t.textContent])")
    assert len(moments) >= 3 and all(re.fullmatch(r"\d\d:\d\d:\d\d", shown) for _, shown in moments)


def test_private_messages(tab: Open, server: Server) -> None:
    """A click on a member opens a private talk; only the two see it, and the sender is told when nobody is there."""
    ann, bob, eve = (chat(tab, server, name) for name in ("ann", "bob", "eve"))
    eventually(lambda: {"bob", "eve"} <= set(ann.members()), what="members")
    ann.click('#members .pick:has(.pick-name:text-is("bob"))')
    assert ann.text("#talk-title") == "Private with bob"
    ann.say("between us")
    bob.has("#privates .pick", "ann")
    bob.has("#privates .badge", "1")
    bob.switch("ann")
    bob.has("#lines .other .text", "between us")
    bob.say("yes")
    ann.has("#lines .other .text", "yes")
    assert eve.do("count", selector="#privates .pick") == 0
    bob.do("goto", url="about:blank")
    eve.has("#lines .system .text", "bob left")
    ann.say("still there?")
    ann.has("#lines .system .text", "bob is not online")
    ann.click("#leave")
    assert ann.text("#talk-title") == "Hall"


def test_images_and_files(tab: Open, server: Server) -> None:
    """An image by URL is loaded when its reader asks for it, not before; a file is a link that says nothing of here."""
    ann, bob = chat(tab, server, "ann", "pictures"), chat(tab, server, "bob", "pictures")
    for page in (ann, bob):
        page.switch("pictures")
    bob.do("requests")
    image = f"{server.url}/assets/icon.svg?picture"
    for kind, url, name in (("image", image, "a heron"), ("file", "https://files.example.com/a.pdf", "map")):
        ann.click("#attach")
        ann.do("select", selector="#attachment-kind", value=kind)
        ann.fill("#attachment-url", url)
        ann.say(name)
        bob.has("#lines .other a", name)
    assert bob.texts("#lines .other .media-kind") == ["Image", "File"]
    assert bob.do("requests") == []
    assert "127.0.0.1" in bob.text("#lines .media-note")
    bob.click("#lines .media button")
    eventually(lambda: bob.evaluate("document.querySelector('#lines img')?.naturalWidth > 0"), what="image loaded")
    assert bob.do("requests") == [image]
    assert bob.do("attribute", selector="#lines img", name="alt") == "Image a heron"
    links = bob.evaluate("[...document.querySelectorAll('#lines a')].map((a) => [a.href, a.rel, a.target])")
    rel = "noopener noreferrer nofollow"
    assert links == [[image, rel, "_blank"], ["https://files.example.com/a.pdf", rel, "_blank"]]
    ann.click("#attach")
    for bad in ("javascript:alert(1)", "data:text/html,x", "ftp://example.com/x", "nothing"):
        ann.fill("#attachment-url", bad)
        ann.press("Enter")
        ann.has("#outcome", "Only addresses that begin with")
    assert len(bob.texts("#lines .other")) == 2


def test_nothing_of_others_is_html(tab: Open, server: Server) -> None:
    """Names, rooms, texts, notices and URLs with HTML in them are text: nothing becomes an element or runs."""
    room, name = "<i>room</i>", "<b>mallory</b>"
    reader = chat(tab, server, "reader", room)
    writer = chat(tab, server, name, room)
    for page in (reader, writer):
        page.switch(room)
        page.has("#members .pick-name", name)
    writer.say(HOSTILE)
    reader.has("#lines .other .text", HOSTILE)
    assert reader.text("#lines .other .author") == name
    with connect(server.ws_url(urlencode({"token": "raw", "room": room}), "/chat"), max_queue=None) as client:
        message = {"messageType": 1, "mediaType": 1, "to": room, "content": HOSTILE}
        client.send(json.dumps({**message, "url": 'https://example.com/"><script>x</script>'}))
        client.send(json.dumps({"messageType": 0, "to": "reader", "content": "<u>private</u>"}))
        reader.has("#lines .other a", "<b>bold</b>")
        reader.has("#privates .pick-name", "raw")
    reader.switch("raw")
    reader.has("#lines .other .text", "<u>private</u>")
    reader.switch(room)
    elements = "main i, main b, main u, main script, main img, #side i, #side b, #side img"
    assert reader.do("count", selector=elements) == 0
    assert "owned" not in reader.evaluate("document.title")


def test_stays_at_the_end_unless_the_reader_scrolled_up(tab: Open, server: Server) -> None:
    """S3-21: new lines scroll to the end; who has scrolled up stays there and gets a button; 500 lines are kept."""
    reader = chat(tab, server, "reader2", "flood")
    reader.switch("flood")
    distance = "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight)(lines)"
    with connect(server.ws_url("token=writer&room=flood", "/chat"), max_queue=None) as client:

        def say(first: int, last: int) -> None:
            for number in range(first, last):
                client.send(json.dumps({"messageType": 1, "to": "flood", "content": f"number {number}"}))
            eventually(lambda: reader.lines("other")[-1:] == [f"number {last - 1}"], 20, "last line")

        say(0, 60)
        assert reader.evaluate(distance) < 2
        reader.evaluate("lines.scrollTop = 0")
        eventually(lambda: reader.evaluate("new Promise((done) => requestAnimationFrame(() => done(true)))"))
        say(60, 63)
        reader.has("#new-lines", "3 new")
        assert reader.evaluate("lines.scrollTop") < 10
        reader.click("#new-lines")
        assert reader.evaluate(distance) < 2
        assert not reader.do("count", selector="#new-lines:visible")
        say(63, 620)
    assert len(reader.texts("#lines .line")) == 500
    assert reader.evaluate(distance) < 2


def test_random_name(tab: Open, server: Server) -> None:
    """S3-21: a name is offered, another one on request; with it one button connects."""
    page = tab(server)
    offered = "document.querySelector('[name=token]').value"
    first = page.evaluate(offered)
    assert re.fullmatch(r"[A-Z][a-z]+[A-Z][a-z]+\d\d", first)

    def another() -> str:
        page.click("#fields button")
        return (name := page.evaluate(offered)) != first and name

    second = eventually(another, what="another name")  # the same one may come by chance
    page.click("#connect")
    page.status("Connected")
    page.has("#members .pick-name", second)
    assert page.has("#members .pick", "you").startswith(second[0])
    assert page.evaluate("document.activeElement.id") == "text"


# -- States -------------------------------------------------------------------------


def test_kicked(tab: Open, server: Server) -> None:
    """S1-21, S4-16: after `fastpush drop` the page says closed, with code, reason and readyState, waits, is back."""
    page = chat(tab, server, "kicked")
    page.wait_longer()
    dropped = run(*FASTPUSH, "drop", "kicked", "--url", server.url)
    assert "1" in dropped.stdout, dropped.stderr
    told = page.has("#lines .system .text", "Connection closed.")
    assert "1008: policy" in told and "dropped by the back-end" in told and "readyState 3" in told
    page.has("#banner-text", "Reconnecting in")
    assert "1008" in page.text("#banner-text")
    page.click("#banner-now")
    page.status("Connected")
    assert not page.do("count", selector="#banner:visible")


def test_replaced_connection_does_not_come_back(tab: Open, server: Server) -> None:
    """S4-16: 4500 is shown with its meaning, and nobody reconnects: two pages with one key do not fight."""
    values = {"app": "/broadcast", "specialKey": "one:key"}
    older = tab(server, **values)
    older.status("Connected")
    newer = tab(server, **values)
    newer.status("Connected")
    older.status("Connection closed.")
    assert older.text("#banner-text").startswith("Connection closed. 4500: replaced by a newer connection")
    assert "It will not reconnect by itself." in older.text("#banner-text")
    newer.say("still here")
    newer.has("#lines .own .text", "still here")
    assert older.text("#status-text") == "Connection closed."
    older.click("#banner-now")  # because its reader wants it
    older.status("Connected")
    newer.status("Connection closed.")


def test_back_after_its_worker_was_killed(tab: Open, serve: Serve) -> None:
    """S0-33, S0-34: kill -9 of a worker costs its pages one reconnect: same rooms, nothing twice, nobody missing."""
    server = serve(workers=4, sections={"application": APPLICATIONS})
    first, second = chat(tab, server, "ann", "tea"), chat(tab, server, "bob", "tea")
    for page in (first, second):
        page.switch("tea")
        page.has("#talk-online", "2 online")
    first.say("before")
    second.has("#lines .other .text", "before")
    ann, bob = [opened["worker"] for opened in server.events("connection opened")]
    os.kill(server.pid_of_worker(ann), signal.SIGKILL)
    for page in (first, second) if bob == ann else (first,):
        page.has("#lines .system .text", "WebSocket error! connection lost or refused")
        page.status("Connected")
        page.has("#talk-online", "2 online")
    second.say("after")
    first.has("#lines .other .text", "after")
    first.say("back")
    second.has("#lines .other .text", "back")
    first.has("#lines .own .text", "back")
    said = [line for line in first.lines() if line in {"before", "after", "back"}]
    assert said == ["before", "after", "back"]


def test_waits_while_the_server_is_away(tab: Open, serve: Serve) -> None:
    """S1-21: 1012 is named, the countdown runs, waits grow; nothing is sent meanwhile; stopped, it stays so."""
    server = serve(workers=4, sections={"application": APPLICATIONS})
    page = chat(tab, server, "patient")
    server.stop()
    assert "1012: the server restarts or stops" in page.has("#lines .system .text", "Connection closed.")
    page.status("Reconnecting in 1 s")
    page.status("Reconnecting in 3 s", 30)
    page.has("#banner-text", "WebSocket error!")
    page.say("lost?")
    page.has("#outcome", "Not sent")
    assert page.evaluate("text.value") == "lost?" and page.lines("own") == []
    page.click("#banner-stop")
    assert page.text("#status-text") == "Not connected"
    page.shows("#connect")


def test_rejected_token(tab: Open, serve: Serve, tmp_path: Path) -> None:
    """S0-12: 4501 in words and no reconnect; with another token it connects."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    sections = {"auth": {"mode": "static", "tokens_file": str(tokens)}, "application": APPLICATIONS}
    server = serve(workers=2, sections=sections)
    page = tab(server, app="/chat", token="wrong")
    page.status("Connection closed.")
    assert page.text("#banner-text").startswith("Connection closed. 4501: token rejected.")
    page.click("#banner-stop")
    page.fill("[name=token]", "aaa")
    page.click("#connect")
    page.status("Connected")
    page.has("#members .pick-name", "jack")


def test_without_websocket(tab: Open, server: Server) -> None:
    """S4-16: a browser without WebSocket is told so, and offered nothing that cannot work."""
    page = tab()
    page.do("init", script="delete window.WebSocket")
    page.goto(server)
    assert page.has("[role=alert]", "has no WebSocket")
    assert not page.do("count", selector="#connect:visible")


# -- Other applications -------------------------------------------------------------


def test_echo_in_chinese(tab: Open, server: Server) -> None:
    """S1-18, S1-19, S1-20, S1-21: 群聊天室 has a message area, a text area and 发送; 连接了 when open, each message
    with local time and text, heartbeats too; 连接已关闭 with readyState, and WebSocket异常! where it fails.
    """
    page = tab(server, {"locale": "zh-CN", "timezoneId": "Asia/Shanghai"}, app="/echo")
    page.status("连接了")
    assert page.evaluate("document.title") == "群聊天室" == page.text("h1")
    assert page.text("[role=status]") == "连接了"  # what a screen reader says
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.text("#send") == "发送" and page.do("count", selector="textarea:visible, [role=log]:visible") == 2
    page.fill("#text", "你好\n世界")
    page.click("#send")
    page.has("#lines .other .text", "你好\n世界")
    assert page.lines("own") == ["你好\n世界"]
    page.has("#lines .system .text", "heartbeat \N{MULTIPLICATION SIGN}")
    shown, told = page.evaluate("((t) => [t.textContent, t.dateTime])(document.querySelector('#lines .other time'))")
    assert int(shown[:2]) == (int(told[11:13]) + 8) % 24  # the reader's time of day
    for worker in server.processes("worker"):
        os.kill(worker["pid"], signal.SIGKILL)
    closed = page.has("#lines .system .text", "连接已关闭")
    assert "WebSocket异常!" in closed and "readyState 3" in closed
    page.status("连接了", 30)
    eventually(lambda: [each["state"] for each in server.processes("worker")] == ["ready"] * 4, 20, "all workers again")


def test_hub_and_broadcast(tab: Open, server: Server) -> None:
    """What comes back is shown once, as own; packed messages are unpacked, in their order."""
    hub, other = tab(server, app="/hub"), tab(server, app="/hub")
    for page in (hub, other):
        page.status("Connected")
    hub.say("two\nlines ")
    hub.has("#lines .own .text", "two lines")
    other.has("#lines .other .text", "two lines")
    assert len(hub.texts("#lines .own, #lines .other")) == 1
    packed = tab(server, app="/broadcast", specialKey="packed", gzip="on")
    plain = tab(server, app="/broadcast", specialKey="plain")
    for page in (packed, plain):
        page.status("Connected")
    for number in range(20):
        plain.say(f"number {number}")
    packed.has("#lines .other .text", "number 19")
    plain.has("#lines .own .text", "number 19")
    assert packed.lines("other") == plain.lines("own") == [f"number {number}" for number in range(20)]


def test_demo(tab: Open, serve: Serve, tmp_path: Path) -> None:
    """S0-03, S0-10, S0-39: token aaa is user jack, a push to topic1 every second, the page shows each; any port."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    sections = {
        "auth": {"mode": "static", "tokens_file": str(tokens)},
        "server": {"listen": f"127.0.0.1:{port}"},
    }
    server = serve(workers=2, sections=sections)
    assert server.port == port
    page = tab(server, token="aaa", event="topic1")
    assert page.status("Connected: receiving") == "Connected: receiving topic1"
    arguments = ("push", "jack", "topic1", "tick", "--every", "1s", "--config", str(server.config_path))
    with Program(*FASTPUSH, *arguments) as pusher:
        for _ in range(3):
            assert pusher.line() == "sent to 1 connection"
        eventually(lambda: page.lines("other")[:3] == ["tick"] * 3, 20, "three ticks on the page")
    moments = "[...document.querySelectorAll('#lines .other time')].map((time) => Date.parse(time.dateTime))"
    first, second, third, *_ = page.evaluate(moments)
    assert third - first > 1000 and second > first  # one a second, not all at once


def test_pushes(tab: Open, server: Server) -> None:
    """S0-21: each event is a talk; the form pushes to this origin and says how many it reached, or why none."""
    page = tab(server, token="self", event="topic1")
    page.status("Connected: receiving topic1")
    page.enter("topic2")
    page.status("Connected: receiving topic1, topic2")
    page.switch("topic1")
    page.say(HOSTILE)
    page.has("#lines .other .text", HOSTILE)
    page.has("#outcome", "Sent to 1 connection")
    server.push("self", "topic2", "to the other")
    page.has("#rooms .badge", "1")
    page.switch("topic2")
    page.has("#lines .other .text", "to the other")
    for user, outcome in (("nobody", "Sent to nobody"), ("u" * 600, "Failed: 400 userId longer than 512 bytes")):
        page.fill("#push-user", user)
        page.say("x")
        page.has("#outcome", outcome)


def test_refused_registration(tab: Open, serve: Serve, tmp_path: Path) -> None:
    """S0-12: what is wrong with a registration by message is told, and the page does not try it for ever."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    server = serve(workers=2, sections={"auth": {"mode": "static", "tokens_file": str(tokens)}})
    page = tab(server, token="wrong", event="topic1")
    page.status("Connection closed.")
    assert "token is unknown" in page.text("#banner-text")


# -- For everybody ------------------------------------------------------------------


def test_keyboard_alone(tab: Open, server: Server) -> None:
    """Without a mouse: choose an application, connect, say two lines, enter a room, write privately, disconnect."""
    other = chat(tab, server, "zoe")
    page = tab(server)
    focused = "((e) => (e === document.body ? '' : e.id || e.name || e.textContent))(document.activeElement)"

    def tab_to(name: str) -> None:
        for _ in range(40):
            if name in page.evaluate(focused):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none"  # where the keyboard is can be seen
                return
            page.press("Tab")
        raise AssertionError(f"Tab never reached {name}, last {page.evaluate(focused)}")

    tab_to("Echo")
    page.press("Enter")
    assert page.text("#start-title") == "Echo"
    tab_to("/chat")
    page.press("Enter")
    tab_to("token")
    page.press("Control+A")
    page.do("type", text="keys")
    page.press("Enter")
    page.status("Connected")
    assert page.evaluate(focused) == "text"
    page.do("type", text="one")
    page.press("Shift+Enter")
    page.do("type", text="two")
    page.press("Enter")
    other.has("#lines .other .text", "one\ntwo")
    page.evaluate("document.activeElement.blur()")
    tab_to("enter-name")
    page.do("type", text="nook")
    page.press("Enter")
    page.has("#talk-title", "nook")
    page.evaluate("document.activeElement.blur()")
    tab_to("Hall")
    page.press("Enter")
    page.has("#members .pick-name", "zoe")
    page.evaluate("document.activeElement.blur()")
    tab_to("zoe")
    page.press("Enter")
    page.has("#talk-title", "Private with zoe")
    page.evaluate("document.activeElement.blur()")
    tab_to("disconnect")
    page.press("Enter")
    page.shows("#connect")


def test_enter_that_chooses_a_word_sends_nothing(tab: Open, server: Server) -> None:
    """An Enter inside the choice of a Chinese word is not one that sends."""
    page = chat(tab, server, "lin", locale="zh-CN")
    page.fill("#text", "ni hao")
    page.evaluate("""text.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true }))""")
    assert page.evaluate("text.value") == "ni hao" and page.lines("own") == []
    page.press("Enter")
    page.has("#lines .own .text", "ni hao")


def test_language_switch(tab: Open, server: Server) -> None:
    """The page speaks the browser's language, changes it in the midst of a talk, and remembers that."""
    page = chat(tab, server, "bi")
    page.click("#language")
    page.has("#status-text", "连接了")
    assert page.evaluate("document.title") == "群聊天室" and page.text("#talk-title") == "大厅"
    assert "连接了" in page.lines("system")
    page.goto(server)
    assert page.text("#connect") == "连接"
    assert tab(server, {"locale": "fr-FR"}).text("#connect") == "Connect"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_has_no_violations(tab: Open, server: Server, tmp_path: Path, scheme: str) -> None:
    """360 pixels wide nothing sticks out, and axe-core finds nothing, in any state, in light and in dark."""
    need_module("axe-core")
    options = {"colorScheme": scheme, "viewport": {"width": 360, "height": 740}}
    start = tab(server, options)
    assert start.do("violations") == []
    page = chat(
        tab, server, f"phone-{scheme}", "a-room-with-a-name-as-long-as-names-of-rooms-may-be-in-this-chat", **options
    )
    writer = chat(tab, server, "w" * 60, colorScheme=scheme)
    writer.say("x" * 2000)
    writer.click("#attach")
    writer.fill("#attachment-url", f"https://example.com/{'y' * 500}")
    writer.say("")
    page.has("#lines .other a", "https://example.com/")
    page.say("short")
    server_push = tab(server, options, token="t" * 60, event="e" * 60)
    server_push.status("Connected")
    page.click("#attach")
    states = {"start": start, "talk": page, "push": server_push, "desktop": writer}
    for name, each in states.items():
        width = each.evaluate("[document.documentElement.scrollWidth - innerWidth, innerWidth]")
        assert width[0] == 0, name
        each.do("screenshot", path=str(tmp_path / f"{name}-{scheme}.png"))
        assert each.do("violations") == [], name
    page.click("#menu")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.do("violations") == []
    page.press("Escape")
    assert page.evaluate("document.activeElement.id") == "menu"
    server.request("POST", "/drop", {"userId": f"phone-{scheme}"})
    page.shows("#banner")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.do("violations") == []


def test_asks_no_other_host(tab: Open, server: Server) -> None:
    """Whatever happens, the page asks its own server alone, and nothing breaks its content security policy."""
    pages = [chat(tab, server, "home"), tab(server, app="/echo"), tab(server, token="home", event="e")]
    pages[0].say("hello")
    for page in pages:
        page.status("Connected")
        asked = page.do("requests")
        assert asked and {url.split("/")[2] for url in asked if url != "about:blank"} == {f"127.0.0.1:{server.port}"}
        assert [line for line in page.do("logged") if "Content Security Policy" in line] == []
