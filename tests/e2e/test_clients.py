"""Clients that others wrote, against a real server with two workers: websockets, wscat, curl, Chromium."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.programs import FASTPUSH, Browser, Program, curl, wscat
from tests.server import Server, eventually

Serve = Callable[..., Server]


def push_with_curl(server: Server, user: str, event: str, message: str) -> int:
    body = json.dumps({"userId": user, "event": event, "message": message})
    reply = json.loads(curl("--json", body, f"{server.url}/push"))
    assert list(reply) == ["sent"]
    return reply["sent"]


# -- Programs -----------------------------------------------------------------------


def test_curl_pushes_to_the_websockets_package(server: Server) -> None:
    """S0-06, S0-21, S0-25, S0-29: one `curl --json` reaches a client that registered with its first message."""
    with connect(server.ws_url("confirm=1")) as client:
        client.send(json.dumps({"token": "ann", "event": "news"}))
        assert client.recv(timeout=10) == '{"registered":"news"}'
        assert push_with_curl(server, "ann", "news", "grüße 🎉") == 1
        assert client.recv(timeout=10) == "grüße 🎉"


def test_curl_has_replies_in_two_forms(server: Server) -> None:
    """S0-22, S0-25: `--data` alone gets the plain form, `--json` (it sends Accept: application/json) the JSON form."""
    good, bad = '{"userId": "u", "event": "e", "message": "m"}', '{"userId": 42, "event": "e", "message": "m"}'
    assert curl("--data", good, f"{server.url}/push") == "message sent to 0 clients"
    assert curl("--data", bad, f"{server.url}/push") == "request data illegal"
    assert json.loads(curl("--json", good, f"{server.url}/push")) == {"sent": 0}
    error = {"code": "illegal_request", "message": "userId must be a string, found number 42"}
    assert json.loads(curl("--json", bad, f"{server.url}/push")) == {"error": error}


def test_wscat_registers_by_message_and_shows_pushes(server: Server) -> None:
    """S0-06, S0-07, S0-28: wscat's first message registers, its second one adds an event, other events do not come."""
    registrations = [json.dumps({"token": "wendy", "event": event}) for event in ("topic1", "topic2")]
    with wscat(server.ws_url("confirm=1"), *registrations) as client:
        assert [client.line(), client.line()] == ['{"registered":"topic1"}', '{"registered":"topic2"}']
        assert push_with_curl(server, "wendy", "elsewhere", "not for this one") == 0
        assert push_with_curl(server, "wendy", "topic2", "second") == 1
        assert push_with_curl(server, "wendy", "topic1", "first") == 1
        assert [client.line(), client.line()] == ["second", "first"]


def test_wscat_is_refused_with_a_status(serve: Serve, tmp_path: Path) -> None:
    """A bad token in the URL is told to programs by the status of the handshake: 401."""
    server = serve_static(serve, tmp_path)
    with wscat(server.ws_url("token=unknown&event=topic1")) as client:
        assert "401" in client.line_with("error")


# -- The page -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of the page."""
    with Browser() as running:
        yield running


def serve_static(serve: Serve, folder: Path, **server: object) -> Server:
    """A server with one token: aaa of jack."""
    tokens = folder / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    return serve(workers=2, sections={"auth": {"mode": "static", "tokens_file": str(tokens)}, "server": server})


def status_is(browser: Browser, text: str, seconds: float = 20) -> str:
    def found() -> str:
        status = browser.text("#status")
        return status if text in status else ""

    return eventually(found, seconds, f"status {text!r}")


def messages(browser: Browser) -> list[tuple[str, str]]:
    """Event and text of each message on the page, oldest first."""
    events, texts = browser.do("texts", selector="#messages b"), browser.do("texts", selector="#messages li > span")
    return list(reversed(list(zip(events, texts, strict=False))))


def shows(browser: Browser, event: str, text: str) -> None:
    eventually(lambda: (event, text) in messages(browser), 20, f"message {text!r} on the page")


def register(browser: Browser, server: Server, token: str, event: str, how: str = "message") -> None:
    browser.goto(server.url)
    browser.do("fill", selector="#token", value=token)
    browser.do("fill", selector="#event", value=event)
    browser.do("check", selector=f"input[value={how}]")
    browser.do("click", selector="#connect")


@pytest.mark.parametrize("how", ["message", "url"])
def test_page_shows_a_push_made_by_curl(browser: Browser, server: Server, how: str) -> None:
    """The page registers, by message and by URL, and shows event and text of each push while it happens."""
    register(browser, server, f"page-{how}", "topic1", how)
    assert status_is(browser, "Connected") == "Connected: receiving topic1"
    for text in ("hello", "two\nlines", "ünï 🎉"):
        assert push_with_curl(server, f"page-{how}", "topic1", text) == 1
        shows(browser, "topic1", text)
    assert [text for _, text in messages(browser)] == ["hello", "two\nlines", "ünï 🎉"]
    assert browser.text("#count") == "3"
    assert not [line for line in browser.do("logged") if "Content Security Policy" in line or "Uncaught" in line]


def test_page_shows_html_as_text(browser: Browser, server: Server) -> None:
    """A message, and an event, with HTML in it is text on the page: nothing of it becomes an element or runs."""
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>bold</b>"
    register(browser, server, "mallory", "<i>e</i>")
    status_is(browser, "Connected: receiving <i>e</i>")
    assert push_with_curl(server, "mallory", "<i>e</i>", hostile) == 1
    shows(browser, "<i>e</i>", hostile)
    assert browser.do("count", selector="#messages img, #messages script, #messages i, #messages span b") == 0
    assert "owned" not in browser.do("evaluate", expression="document.title")


def test_page_keeps_the_last_500_messages(browser: Browser, server: Server) -> None:
    """The list is bounded: the last 500 messages stay, and the page says how many there were."""
    register(browser, server, "busy", "flood")
    status_is(browser, "Connected")
    for number in range(520):
        server.push("busy", "flood", f"number {number}")
    eventually(lambda: browser.text("#count") == "520, the last 500 shown", 20, "count")
    shown = messages(browser)
    assert (len(shown), shown[0], shown[-1]) == (500, ("flood", "number 20"), ("flood", "number 519"))
    browser.do("click", selector="#clear")
    assert (messages(browser), browser.text("#count")) == ([], "0")


def test_page_sends_a_test_push(browser: Browser, server: Server) -> None:
    """The form posts to the same origin and says how many connections it reached, or what was wrong."""
    register(browser, server, "self", "topic1")
    status_is(browser, "Connected")
    browser.do("fill", selector="#push-message", value="from the form")
    browser.do("click", selector="#push button")
    shows(browser, "topic1", "from the form")
    eventually(lambda: browser.text("#push-result") == "Sent to 1 connection", 10, "outcome")
    browser.do("fill", selector="#push-user", value="nobody")
    browser.do("click", selector="#push button")
    eventually(lambda: browser.text("#push-result").startswith("Sent to 0 connections"), 10, "outcome")
    browser.do("fill", selector="#push-user", value="u" * 600)
    browser.do("click", selector="#push button")
    eventually(lambda: browser.text("#push-result") == "Failed: 400: userId longer than 512 bytes", 10, "outcome")


def test_page_works_with_the_keyboard_alone(browser: Browser, server: Server) -> None:
    """Token, Tab, event, Enter: connected. Every control has a name for screen readers."""
    browser.goto(server.url)
    browser.do("fill", selector="#token", value="keys")
    browser.do("press", key="Tab")
    browser.do("evaluate", expression="document.activeElement.value = 'topic1'")
    browser.do("press", key="Enter")
    assert status_is(browser, "Connected") == "Connected: receiving topic1"
    unnamed = "[...document.querySelectorAll('input, textarea')].filter((e) => !e.labels.length).map((e) => e.id)"
    assert browser.do("evaluate", expression=unnamed) == []
    assert browser.text("[role=status]") == "Connected: receiving topic1"


def test_page_fits_a_phone(browser: Browser, server: Server) -> None:
    """At the width of a phone nothing sticks out, in light and in dark, with a long message without spaces."""
    browser.do("resize", width=360, height=740)
    try:
        register(browser, server, "phone", "topic1")
        status_is(browser, "Connected")
        push_with_curl(server, "phone", "topic1", "x" * 2000)
        shows(browser, "topic1", "x" * 2000)
        papers = []
        for scheme in ("light", "dark"):
            browser.do("scheme", scheme=scheme)
            assert browser.do("evaluate", expression="document.documentElement.scrollWidth") == 360
            papers.append(browser.do("evaluate", expression="getComputedStyle(document.body).backgroundColor"))
        assert papers[0] != papers[1]
    finally:
        browser.do("resize", width=1200, height=800)
        browser.do("scheme", scheme="light")


def test_page_comes_back_after_a_worker_was_killed(browser: Browser, serve: Serve) -> None:
    """S0-33, S0-34: kill -9 of its worker costs the page one reconnect, which it shows, and it receives again."""
    server = serve(workers=2)
    register(browser, server, "survivor", "topic1")
    status_is(browser, "Connected")
    browser.do(
        "evaluate",
        expression="""(() => {
        window.seen = [];
        new MutationObserver(() => window.seen.push(document.getElementById("status").textContent))
            .observe(document.getElementById("status"), { childList: true, characterData: true, subtree: true });
    })()""",
    )
    worker = server.events("connection opened")[-1]["worker"]
    os.kill(server.pid_of_worker(worker), signal.SIGKILL)
    lost = "Closed with 1006, connection lost or refused"
    eventually(lambda: any(lost in text for text in browser.do("evaluate", expression="window.seen")), 20, "loss shown")
    status_is(browser, "Connected: receiving topic1")
    seen = browser.do("evaluate", expression="window.seen")
    assert any(text.startswith("Reconnecting in 1 s.") for text in seen), seen
    assert push_with_curl(server, "survivor", "topic1", "still here") == 1
    shows(browser, "topic1", "still here")


def test_page_waits_longer_each_time_while_the_server_is_away(browser: Browser, serve: Serve) -> None:
    """After 1012 the page names code and reason, tries again after jittered growing waits, and stops when told to."""
    server = serve(workers=2)
    register(browser, server, "patient", "topic1")
    status_is(browser, "Connected")
    server.stop()
    words = "Closed with 1012, the server restarts or stops (server is restarting)"
    assert words in status_is(browser, "Reconnecting in")
    status_is(browser, "Reconnecting in 4 s.", 30)
    browser.do("click", selector="#disconnect")
    assert status_is(browser, "Disconnected") == "Disconnected"


def test_page_does_not_come_back_after_4501(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    """S0-12: a rejected token in the URL shows 4501 in words and no reconnect; corrected, it connects."""
    server = serve_static(serve, tmp_path)
    register(browser, server, "wrong", "topic1", "url")
    status = status_is(browser, "4501")
    assert status == "Closed with 4501, token rejected. Not reconnecting. Enter another token and connect again."
    assert browser.do("evaluate", expression="[receiver.wish, receiver.socket]") == [None, None]
    browser.do("evaluate", expression="receiver.retryNow()")  # as when the network is back
    assert browser.text("#status") == status
    browser.do("fill", selector="#token", value="aaa")
    browser.do("click", selector="#connect")
    status_is(browser, "Connected: receiving topic1")


def test_page_shows_why_a_registration_is_not_taken(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    """S0-09, S0-12: a rejected registration by message leaves the connection open, and the page says what was wrong."""
    server = serve_static(serve, tmp_path)
    register(browser, server, "wrong", "topic1")
    assert status_is(browser, "Not registered") == "Not registered: token is unknown"


def test_demo(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    """S0-03, S0-10, S0-39: token aaa is user jack, a push to topic1 every second, the page shows each; any port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = serve_static(serve, tmp_path, listen=f"127.0.0.1:{port}")
    assert server.port == port
    browser.goto(f"{server.url}/#token=aaa&event=topic1")
    status_is(browser, "Connected: receiving topic1")
    arguments = ("push", "jack", "topic1", "tick", "--every", "1s", "--config", str(server.config_path))
    with Program(*FASTPUSH, *arguments) as pusher:
        for _ in range(3):
            assert pusher.line() == "sent to 1 connection"
        eventually(lambda: messages(browser)[:3] == [("topic1", "tick")] * 3, 20, "three ticks on the page")
    moments = "[...document.querySelectorAll('#messages time')].map((time) => Date.parse(time.dateTime)).reverse()"
    first, second, third, *_ = browser.do("evaluate", expression=moments)
    assert third - first > 1000 and second > first  # one a second, not all at once
