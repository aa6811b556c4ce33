"""The EventSource of a headless Chromium, in pages of this server and of another origin, on two workers."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.programs import FASTPUSH, Browser, run
from tests.sdk import KEY, pages, sections, token
from tests.server import Server, eventually
from tests.streams import publish
from tests.wire import wait_until_whole

Serve = Callable[..., Server]
NAMESPACES = {
    "channels.room": {"subscribe": "users", "history_messages": 1000, "recovery": True},
    "channels.plain": {"subscribe": "users"},
}
# What a page does with a stream; `log` is all that it is told.
LISTEN = """(url) => {
  window.log = [];
  window.source?.close();
  window.source = new EventSource(url);
  source.onopen = () => log.push({ open: true });
  source.onmessage = (event) => log.push({ data: event.data });
  source.onerror = () => log.push({ error: source.readyState });
  source.addEventListener("unrecovered", (event) => log.push({ unrecovered: JSON.parse(event.data).channels }));
}"""
CONNECTING, CLOSED = 0, 2  # readyState
_numbers = count(1)


class Page:
    """A page with an EventSource."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._name = browser, f"page{next(_numbers)}"
        browser.do("open", page=self._name)
        browser.do("goto", page=self._name, url=url)

    def evaluate(self, expression: str) -> Any:
        return self._browser.do("evaluate", page=self._name, expression=expression)

    def listen(self, server: Server, path: str = "/sse", **parameters: Any) -> None:
        url = f"{server.url}{path}?{urlencode(parameters, doseq=True)}"
        self.evaluate(f"({LISTEN})({json.dumps(url)})")
        eventually(self.log, what="open, or an error")

    def log(self) -> list[dict[str, Any]]:
        return self.evaluate("log")

    def data(self) -> list[str]:
        return [line["data"] for line in self.log() if "data" in line]

    def has(self, *data: str) -> None:
        """Wait until the page has been told exactly this."""
        eventually(lambda: len(self.data()) >= len(data), 20, f"{len(data)} events")
        assert self.data() == list(data)

    def close(self) -> None:
        self._browser.do("close", page=self._name)


Open = Callable[[str], Page]


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where pages of another origin come from."""
    with pages() as running:
        yield f"{running}/centrifuge_page.html"


@pytest.fixture
def server(serve: Serve, origin: str) -> Server:
    allowed = {"origins": [origin.rpartition("/")[0]]}
    return serve(workers=2, sections=sections(server=allowed, **NAMESPACES))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Open]:
    """Open pages that end with the test."""
    opened: list[Page] = []

    def open_page(url: str) -> Page:
        opened.append(Page(browser, url))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close()


def kill_worker_of(server: Server) -> None:
    """Kill the worker that has the only connection; wait until it has a successor."""
    samples = server.metrics()
    (number,) = [
        found[1]
        for name, value in samples.items()
        if value and (found := re.fullmatch(r'fastpush_connections\{worker="(\d+)"\}', name))
    ]
    os.kill(server.pid_of_worker(int(number)), signal.SIGKILL)
    eventually(lambda: int(number) not in [each["number"] for each in server.processes("worker")], what="it is gone")
    wait_until_whole(server)


def test_pages_of_two_origins(server: Server, page: Open, origin: str) -> None:
    """A page of this server and one of a configured origin get pushes and publications, lines and all."""
    for user, url in (("ann", server.url), ("bob", origin)):
        listening = page(url)
        listening.listen(server, token=token(user), event="e", channel="plain:1")
        assert server.push(user, "e", "two\nlines", **{"X-API-Key": KEY})["sent"] == 1
        publish(server, "plain:1", {"a": [1]})
        listening.has("two\nlines", '{"a": [1]}')
        assert listening.log()[0] == {"open": True}


def test_refusals_are_final(server: Server, page: Open, origin: str, serve: Serve) -> None:
    """A page whose token is wrong, or whose origin is not allowed, is refused, and its EventSource gives up."""
    refused = page(origin)
    refused.listen(server, token="wrong", event="e")
    eventually(lambda: refused.log() == [{"error": CLOSED}], what="closed")
    stranger = serve(workers=1, sections=sections(**NAMESPACES))
    refused.listen(stranger, token=token("ann"), event="e")
    eventually(lambda: refused.log() == [{"error": CLOSED}], what="closed")


@pytest.mark.parametrize("is_own", [True, False], ids=["own page", "other origin"])
def test_a_killed_worker(server: Server, page: Open, origin: str, *, is_own: bool) -> None:
    """A page whose worker is killed comes back by itself, and gets exactly what it missed, however often."""
    listening = page(server.url if is_own else origin)
    listening.listen(server, token=token("ann"), channel=["room:1", "room:2"])
    expected = []
    for turn in range(3):
        before, after = f"{turn} before", f"{turn} missed"
        publish(server, "room:1", before)
        expected.append(json.dumps(before))
        listening.has(*expected)
        kill_worker_of(server)
        publish(server, "room:2", after)
        expected.append(json.dumps(after))
        listening.has(*expected)
    told = listening.log()
    assert [line for line in told if "error" in line] == [{"error": CONNECTING}] * 3
    assert sum("open" in line for line in told) == 4 and not [line for line in told if "unrecovered" in line]


def test_a_killed_broker(server: Server, page: Open, origin: str) -> None:
    """A page is told which channels it may have missed something of, and notices nothing else."""
    listening = page(origin)
    listening.listen(server, token=token("ann"), channel=["room:1", "plain:1"])
    publish(server, "room:1", "before")
    listening.has('"before"')
    os.kill(server.processes("broker")[0]["pid"], signal.SIGKILL)
    eventually(lambda: {"unrecovered": ["room:1"]} in listening.log(), what="told")
    wait_until_whole(server)
    publish(server, "room:1", "after")
    listening.has('"before"', '"after"')
    kill_worker_of(server)
    publish(server, "room:1", "missed")
    listening.has('"before"', '"after"', '"missed"')
    assert [line for line in listening.log() if "unrecovered" in line] == [{"unrecovered": ["room:1"]}]


def test_rolling_restart(server: Server, page: Open, origin: str) -> None:
    """A page comes back through a rolling restart and misses nothing."""
    listening = page(origin)
    listening.listen(server, token=token("ann"), channel="room:1")
    publish(server, "room:1", "before")
    restart = run(*FASTPUSH, "restart", "--rolling", "--seconds", "1", "--config", str(server.config_path))
    assert restart.returncode == 0, restart.stderr
    publish(server, "room:1", "after")
    listening.has('"before"', '"after"')


def test_unidirectional(server: Server, page: Open, origin: str) -> None:
    """A page speaks the client protocol in one direction: its connect push says what it missed."""
    listening = page(origin)
    command = {"token": token("ann", channels=["room:1"])}
    listening.listen(server, "/connection/uni_sse", cf_connect=json.dumps(command))
    publish(server, "room:1", "live")
    eventually(lambda: len(listening.data()) == 2, what="connect push and publication")
    connect, push = map(json.loads, listening.data())
    assert connect["connect"]["subs"].keys() == {"room:1"}
    assert push == {"channel": "room:1", "pub": {"data": "live", "offset": 1}}
    kill_worker_of(server)
    publish(server, "room:1", "missed")

    def missed() -> list[Any]:
        """What it has been told since: it may have come back before this was published, or behind it."""
        told = [json.loads(data) for data in listening.data()[2:]]
        found = [each["connect"]["subs"]["room:1"] for each in told if "connect" in each]
        assert all(each["recovered"] for each in found)
        kept = [each["data"] for sub in found for each in sub.get("publications", [])]
        return kept + [each["pub"]["data"] for each in told if "pub" in each]

    eventually(missed, what="the publication")
    assert missed() == ["missed"]
