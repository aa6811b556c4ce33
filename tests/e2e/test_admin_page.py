"""The administration page, in Chromium, against a real server with two workers."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import pytest
from websockets.sync.client import ClientConnection

from fastpush.control_client import ask
from fastpush.metrics import LATENCY_BOUNDS_SECONDS
from tests.applications import open_client, workers
from tests.programs import Browser, need_module
from tests.server import SCALE, Server, eventually

Serve = Callable[..., Server]
KEY = "the key of these tests"
ADMIN = {"key": KEY, "actions": True, "show_messages": True}
OPEN_CHANNELS = {"subscribe": "everybody", "publish": "everybody"}
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\u202etxet"
HOSTILE_SHOWN = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>\\u202etxet"
POINTS = """(() => {
  const Plain = window.WebSocket;
  window.points = [];
  window.WebSocket = class extends Plain {
    constructor(...given) {
      super(...given);
      this.addEventListener("message", ({ data }) => {
        const { top } = JSON.parse(data);
        if (top) window.points.push(top.point);
      });
    }
  };
})()"""
"""Script that keeps the points the page is told: what it plots."""
TOLD = """(() => {
  const Plain = window.WebSocket;
  const now = performance.now.bind(performance);
  window.skippedMs = 0;
  performance.now = () => now() + window.skippedMs;
  window.sockets = [];
  window.tops = 0;
  window.change = () => {};
  window.WebSocket = class extends Plain {
    constructor(...given) {
      super(...given);
      window.sockets.push(this);
    }
    addEventListener(name, listen) {
      super.addEventListener(name, name !== "message" ? listen : ({ data }) => {
        const message = JSON.parse(data);
        if (message.top) window.change(message.top, ++window.tops);
        listen({ data: JSON.stringify(message) });
      });
    }
  };
})()"""
"""Script that lets a test change the figures that the page is told (change), close its connections (sockets), and have
its clock go on (skippedMs)."""
DRAWN = """(() => {
  const { fillText } = CanvasRenderingContext2D.prototype;
  window.cut = [];
  CanvasRenderingContext2D.prototype.fillText = function (text, x, ...more) {
    const { width } = this.measureText(text);
    const left = this.textAlign === "right" ? x - width : this.textAlign === "center" ? x - width / 2 : x;
    if (left < 0 || left + width > this.canvas.width) window.cut.push(text);
    return fillText.call(this, text, x, ...more);
  };
})()"""
"""Script that keeps the texts of the plots that are not wholly on them (cut)."""
LARGE = """window.change = (top) => {
  top.point = [top.point[0], 12345678, 234567, 98765432, 1234, 8765, 7654321, 987.6e6, [[2, 1234], [3, 8765]]];
  const large = { connections: 1234567, slow_connections: 1234, pushes: 123456, deliveries: 1234567, drops: 12345 };
  top.workers.forEach((worker) => Object.assign(worker, large, { queue_bytes: 987.6e6, uptime_seconds: 5e6 }));
}"""
CUT = """[...document.querySelectorAll("#figures dd, #workers td, #trace-list .after")]
  .filter((node) => node.scrollWidth > node.clientWidth + 1).map((node) => node.textContent)"""
"""Expression: texts that have no room."""
SECONDS, CONNECTIONS, PUSHES, DELIVERIES, P50, P99, DROPS, QUEUE_BYTES, LAGS = range(9)


class Page:
    """The administration page as one operator has it. options: of the browser's context."""

    def __init__(self, browser: Browser, name: str, **options: Any) -> None:
        self._browser = browser
        self._name = name
        browser.do("open", page=name, options={"locale": "en-US", **options})

    def do(self, command: str, **arguments: Any) -> Any:
        return self._browser.do(command, page=self._name, **arguments)

    def open(self, server: Server, view: str = "") -> None:
        self.do("goto", url="about:blank")  # a URL that differs behind # alone loads nothing
        self.do("goto", url=f"{server.url}/admin{view}")

    def log_in(self, server: Server, key: str = KEY) -> None:
        """Show the key; the right one brings the page, with its first figures."""
        self.open(server)
        self.fill("#key", key)
        self.press("Enter")
        if key == KEY:
            self.has("#link-text", "Live")

    def fill(self, selector: str, value: str) -> None:
        self.do("fill", selector=selector, value=value)

    def click(self, selector: str) -> None:
        self.do("click", selector=selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.do("press", key=key)

    def texts(self, selector: str) -> list[str]:
        """Texts of all such elements; none of a page that is just being left."""
        try:
            return self.do("texts", selector=selector)
        except AssertionError as error:
            if "Execution context was destroyed" in str(error):
                return []
            raise

    def text(self, selector: str) -> str:
        return " ".join("".join(self.texts(selector)).split())

    def count(self, selector: str) -> int:
        return len(self.texts(selector))

    def evaluate(self, expression: str) -> Any:
        return self.do("evaluate", expression=expression)

    def has(self, selector: str, text: str, seconds: float = 20) -> str:
        """Wait until an element's text has this in it."""
        return eventually(lambda: next((t for t in self.texts(selector) if text in t), ""), seconds, f"{text!r} shown")

    def has_focus(self, selector: str) -> None:
        """Wait until such an element has the focus."""
        focused = f"document.activeElement.matches({json.dumps(selector)})"
        eventually(lambda: self.evaluate(focused), what=f"the focus on {selector}")

    def tab_to(self, selector: str) -> None:
        """Press Tab until such an element has the focus."""
        for _ in range(80):
            self.press("Tab")
            if self.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def workers(self) -> list[tuple[str, str]]:
        """Slot and process of each row of the table."""
        rows = (
            "[...document.querySelectorAll('#workers tbody tr')].map(r => [r.cells[0].innerText, r.cells[1].innerText])"
        )
        return [(slot, process) for slot, process in self.evaluate(rows)]

    def points(self) -> list[list[Any]]:
        """The points that have come since the page was loaded; it was opened with the script POINTS."""
        return self.evaluate("window.points")


OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of the page."""
    with Browser() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that operators may look at and change."""
    sections = {"admin": ADMIN, "channels.open": OPEN_CHANNELS, "log": {"level": "info"}}
    running = Server(tmp_path_factory.mktemp("server"), workers=2, sections=sections)
    yield running
    running.stop()


@pytest.fixture
def page(browser: Browser) -> Iterator[OpenPage]:
    """Open pages that end with the test, none of which has reported an error."""
    opened: list[Page] = []

    def open_page(server: Server | None = None, script: str = "", **options: Any) -> Page:
        page = Page(browser, f"operator {len(opened)}", **options)
        opened.append(page)
        if script:
            page.do("init", script=script)
        if server is not None:
            page.log_in(server)
        return page

    yield open_page
    # A server that is away, or refuses, is none.
    served = re.compile("Failed to load resource|ERR_CONNECTION_REFUSED|WebSocket connection to")
    problems = [
        [line for line in page.do("logged") if line.startswith("error: ") and not served.search(line)]
        for page in opened
    ]
    for page in opened:
        page.do("close")
    assert problems == [[]] * len(opened)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as opened:
        yield opened


def listen(
    stack: ExitStack, server: Server, user: str, event: str = "e", *, worker: int | None = None
) -> ClientConnection:
    """A connection of a user, registered for an event; worker: the number of the process that has to accept it."""
    query = urlencode({"token": user, "event": event})
    return stack.enter_context(open_client(server, "/ws", query, worker=worker))


def buckets(samples: dict[str, float]) -> list[float]:
    """Pushes that took no longer than each bound of the latency in /metrics, over all workers; the last: all."""
    name = "fastpush_push_latency_seconds_bucket"
    return [
        sum(value for series, value in samples.items() if series.startswith(name) and f'le="{bound}"' in series)
        for bound in [*map(str, LATENCY_BOUNDS_SECONDS), "+Inf"]
    ]


def percentile_ms(up_to: list[float], share: float) -> float:
    """As histogram_quantile of Prometheus: even within a bucket."""
    rank = share * up_to[-1]
    at = next(at for at, count in enumerate(up_to) if count >= rank)
    start, below = (LATENCY_BOUNDS_SECONDS[at - 1], up_to[at - 1]) if at else (0.0, 0.0)
    return 1000 * (start + (LATENCY_BOUNDS_SECONDS[at] - start) * (rank - below) / (up_to[at] - below))


def as_shown(ms: float | None) -> str:
    """A latency as the page shows it."""
    assert ms is not None and 0 < ms < 10_000
    digits = 0 if ms >= 100 else 1 if ms >= 10 else 3 if ms < 0.1 else 2
    return f"{ms:.{digits}f} ms"


def newer(points: list[list[Any]], than: list[Any]) -> list[list[Any]]:
    return [point for point in points if point[SECONDS] > than[SECONDS]]


# -- Who comes in --------------------------------------------------------------------


def test_login_and_logout(server: Server, page: OpenPage) -> None:
    """A wrong key says so and brings nothing; the right one brings the page; after Log out only the form is left."""
    operator = page()
    operator.log_in(server, "a wrong key, long enough")
    operator.has("[role=alert]", "not the key")
    assert operator.count("#key") == 1 and operator.count("#figures") == 0
    operator.fill("#key", KEY)
    operator.press("Enter")
    operator.has("#link-text", "Live")
    assert KEY not in operator.evaluate("document.documentElement.outerHTML + location.href")
    operator.click("#log-out")
    eventually(lambda: operator.count("#key") == 1, what="the login form")
    status = "fetch('/admin/session.json').then((response) => response.status)"
    assert operator.evaluate(status) == 401
    operator.open(server)
    assert operator.count("#key") == 1 and operator.count("#figures") == 0


def test_nothing_comes_from_elsewhere(server: Server, page: OpenPage) -> None:
    """The page asks this host alone, and its policy lets no other script or style in."""
    operator = page(server)
    requests = operator.do("requests")
    here = (f"{server.url}/admin", f"ws://127.0.0.1:{server.port}/admin/live", "data:image/svg+xml", "about:blank")
    assert [url for url in requests if not url.startswith(here)] == []


# -- Figures ---------------------------------------------------------------------------


def test_figures_equal_metrics(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """Connections shown are those of /metrics; rate times time of the plotted points is what its counters rose by."""
    operator = page(server, POINTS)
    start = eventually(operator.points)[-1]
    before = server.metrics()
    clients = [listen(stack, server, "crowd") for _ in range(6)]
    # Over several seconds: what a second lacks by the beat of its measuring, the next one has more.
    while sum(point[PUSHES] > 0 for point in newer(operator.points(), start)) < 8:
        for _ in range(20):
            assert server.push("crowd", "e", "m")["sent"] == len(clients)
    eventually(lambda: (new := newer(operator.points(), start)) and any(p[PUSHES] for p in new) and not new[-1][PUSHES])
    after = server.metrics()
    shown = f"{after['fastpush_connections']:,.0f}"
    assert operator.has("#now-connections", shown) == shown
    assert operator.text("#plot-connections .values") == shown
    points = [start, *newer(operator.points(), start)]
    for column, counter in ((PUSHES, "fastpush_pushes_total"), (DELIVERIES, "fastpush_deliveries_total")):
        told = sum(point[column] * (point[SECONDS] - last[SECONDS]) for last, point in pairwise(points))
        # The live figures are deliveries to the page itself.
        own = len(points) if column == DELIVERIES else 0
        counted = after[counter] - before[counter]
        assert abs(told - counted) <= 0.15 * counted + own, (counter, told, counted)
    assert all(len(point[LAGS]) == 2 for point in points)


def test_percentiles_equal_the_buckets(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """The percentiles of a second are what the buckets of /metrics rose by in it, interpolated.

    Nobody looks meanwhile: what the page itself is sent is measured too.
    """
    listen(stack, server, "timed")

    def points() -> list[list[Any]]:
        question = {"command": "insight", "question": {"ask": "hour"}}
        return ask(str(server.runtime_directory / "control"), question)["answer"]["points"]

    def burst() -> tuple[list[float], list[list[Any]]]:
        """What the buckets rose by with some pushes, and the points of the seconds that had some."""
        quiet = eventually(lambda: (last := points()[-1]) and last[P50] is None and last)
        before = buckets(server.metrics())
        for _ in range(30):
            assert server.push("timed", "e", "m")["sent"] == 1
        told = eventually(
            lambda: (new := newer(points(), quiet)) and any(p[P50] for p in new) and new[-1][P50] is None and new
        )
        rise = [now - then for now, then in zip(buckets(server.metrics()), before, strict=True)]
        return rise, [point for point in told if point[P50] is not None]

    def burst_of_one_second() -> tuple[list[float], list[Any]] | None:
        """Two seconds may share a burst: then nobody knows from outside which push was in which."""
        rise, told = burst()
        return (rise, told[0]) if len(told) == 1 else None

    rise, point = eventually(burst_of_one_second, 60, "a second with a whole burst")
    assert rise[-1] == 30
    for column, share in ((P50, 0.5), (P99, 0.99)):
        assert abs(point[column] - percentile_ms(rise, share)) < 0.006  # told to a hundredth of a millisecond
    operator = page(server)
    operator.click("#ranges label:has-text('5 min')")
    operator.evaluate("document.querySelector('#plot-latency .plot').focus()")
    values = f"p50{as_shown(point[P50])}p99{as_shown(point[P99])}".replace(" ", "")

    def back() -> bool:
        operator.press("ArrowLeft")  # from the newest on: the cursor comes by
        return operator.text("#plot-latency .values").replace(" ", "") == values

    eventually(back, what=f"{values} shown")


def test_ranges_and_text(server: Server, page: OpenPage) -> None:
    """Each plot says in words what it shows, for the range that was picked."""
    operator = page(server)
    for label, said in (("5 min", "; 5 min"), ("1 h", "; 1 h")):
        operator.click(f"#ranges label:has-text('{label}')")
        eventually(lambda said=said: all(said in text for text in operator.texts("#plots figcaption")), what=said)
    assert len(operator.texts("#plots figcaption")) == 6
    assert operator.text("#plot-connections figcaption").startswith("now ")
    assert operator.count("#plots canvas") == 6


def test_silence_is_shown(serve: Serve, page: OpenPage) -> None:
    """Figures that stop coming are said to be old; when they come again nothing is left of that."""
    server = serve(workers=2, sections={"admin": ADMIN})
    operator = page(server)
    broker = server.processes("broker")[0]["pid"]
    processes = {process.pid: process for process in server.children()}
    processes[broker].send_signal(signal.SIGSTOP)
    try:
        operator.has("#stopped", "No live figures for", 20)
        assert operator.text("#link-text") in {"No data", "Reconnecting", "Connecting"}
    finally:
        processes[broker].send_signal(signal.SIGCONT)
    operator.has("#link-text", "Live", 30)
    assert operator.count("#stopped:visible") == 0


def test_a_long_loss_ends(server: Server, page: OpenPage) -> None:
    """A connection that comes after a loss of any length stays: the page is live again with its first figures."""
    operator = page(server, TOLD)
    operator.evaluate("window.skippedMs = 600_000; window.sockets[0].close()")
    eventually(lambda: operator.evaluate("window.sockets.length") > 1, what="another connection")
    operator.has("#link-text", "Live")
    assert operator.evaluate("window.sockets.length") == 2


def test_a_clock_that_is_put_back(server: Server, page: OpenPage) -> None:
    """When the server's clock is put back the plots go on from there, with what comes."""
    operator = page(server, TOLD)
    operator.evaluate("window.change = ({ point }) => { point[0] -= 100; point[1] = 4321; }")
    operator.has("#plot-connections .values", "4,321")


def test_large_figures(server: Server, page: OpenPage) -> None:
    """Figures of a large host are whole in tiles, tables and beside the axes, and nothing is wider than the window."""
    operator = page()
    operator.do("init", script=TOLD)
    operator.do("init", script=DRAWN)
    operator.log_in(server)
    operator.evaluate(LARGE)
    for width in (360, 1000, 1210, 1440):
        operator.do("resize", width=width, height=800)
        told = operator.evaluate("window.cut = [], window.tops")
        eventually(lambda told=told: operator.evaluate("window.tops") > told + 1, what="figures")
        assert operator.text("#now-deliveries") == "98,765,432/s"
        assert operator.evaluate(CUT) == []
        assert operator.evaluate("window.cut") == []
        assert operator.evaluate("document.documentElement.scrollWidth") <= width


def test_busy_rows_stay_under_the_focus(server: Server, page: OpenPage) -> None:
    """While one of them has the focus the busiest change no places; following it leads to the report, no field."""
    operator = page(server, TOLD)
    operator.evaluate(
        "window.change = (top, count) => { top.users = [0, 1, 2].map((at) => [`u${(at + count) % 3}`, 2, 2]); }"
    )
    eventually(lambda: len(operator.texts("#users a")) == 3, what="three users")
    operator.evaluate("document.querySelector('#users tr:nth-child(2) a').focus()")
    names, told = operator.texts("#users a"), operator.evaluate("window.tops")
    eventually(lambda: operator.evaluate("window.tops") > told + 2, what="figures")
    assert operator.texts("#users a") == names
    assert operator.evaluate("document.activeElement.innerText") == names[1]
    operator.press("Enter")
    operator.has("#report", "None is open.")
    operator.has_focus("#main")


def test_a_restarted_server_asks_for_the_key(serve: Serve, page: OpenPage) -> None:
    """Sessions end with the server: the page notices by itself and brings the login form."""
    server = serve(workers=2, sections={"admin": ADMIN})
    operator = page(server)
    port = server.port
    server.stop()
    operator.has("#stopped", "No live figures for", 20)
    server.write_config(2, {"admin": ADMIN, "server": {"listen": f"127.0.0.1:{port}", "workers": 2}})
    server.start()
    eventually(lambda: operator.count("#key") == 1, 40, "the login form")


# -- Looking up and tracing --------------------------------------------------------------


def test_look_up(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """A connected user's connection and last push are shown; of an unknown one it is said that nothing is known."""
    operator = page(server)
    client = listen(stack, server, "alice", "news")
    assert server.push("alice", "news", "hello alice")["sent"] == 1
    assert client.recv(timeout=10 * SCALE) == "hello alice"
    operator.click("nav a:has-text('Look up')")
    operator.fill("#user-name", "alice")
    operator.click("#user-ask")
    operator.has("#report article h4", "on worker-")
    assert operator.count("#report article") == 1
    assert "news" in operator.text("#report article .chips")
    address = "{}:{}".format(*client.local_address[:2])
    assert address in operator.text("#report article")
    assert operator.texts("#report .findings li")[0]
    [row] = operator.texts("#report .pushes tbody tr")
    assert all(text in row for text in ("news", "delivered", "1 connection", "hello alice"))
    assert "opened" in operator.text("#report .timeline")
    operator.fill("#user-name", "nobody has this name")
    operator.press("Enter")
    operator.has("#report", "None is open.")
    assert operator.count("#report article") == 0
    assert operator.texts("#report .findings li")[0]


def test_trace(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """A trace that is started shows the steps of a push, each with its time; one that is stopped shows no more."""
    operator = page(server)
    client = listen(stack, server, "bob", "news")
    operator.click("nav a:has-text('Trace')")
    operator.fill("#trace-name", "bob")
    operator.click("#trace-start")
    operator.has("#trace-outcome", "Tracing the user bob")
    server.push("bob", "news", "a secret message")
    assert client.recv(timeout=10 * SCALE) == "a secret message"
    for step in ("accepted", "ordered", "arrived", "written"):
        operator.has("#trace-list .step", step)
    lines = operator.texts("#trace-list li")
    assert all("secret" not in line for line in lines)
    assert "ms" in operator.text("#trace-list .after")
    operator.click("#trace-stop")
    operator.has("#trace-outcome", "Stopped")
    count = operator.count("#trace-list li")
    server.push("bob", "news", "later")
    assert client.recv(timeout=10 * SCALE) == "later"
    operator.has("#trace-count", f"{count} line")
    assert operator.count("#trace-list li") == count


def test_trace_on_a_phone(serve: Serve, page: OpenPage, stack: ExitStack) -> None:
    """On a narrow phone whose clock is wrong too the time left is right, connections differ, and no time is cut."""
    server = serve(workers=2, sections={"admin": ADMIN})
    operator = page(viewport={"width": 360, "height": 740})
    operator.do("init", script="const now = Date.now; Date.now = () => now() + 3_600_000")
    operator.log_in(server)
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert operator.evaluate(f"{top.format('#link')} < {top.format('nav')} - 10")
    assert abs(operator.evaluate(f"{top.format('#log-out')} - {top.format('nav')}")) < 10
    clients = [listen(stack, server, "twins", worker=worker) for worker in workers(server) * 4]
    operator.click("nav a:has-text('Trace')")
    operator.fill("#trace-name", "twins")
    operator.click("#trace-start")
    operator.has("#trace-outcome", "Tracing the user twins")
    assert server.push("twins", "e", "m")["sent"] == len(clients)
    operator.has("#trace-list .step", "answered")
    [left] = re.findall(r"(\d+) s left", operator.text("#trace-count"))
    assert 0 < int(left) <= 60
    assert len({text for text in operator.texts("#trace-list .connection") if text}) == len(clients)
    assert operator.evaluate(CUT) == []
    assert operator.evaluate("document.documentElement.scrollWidth") <= 360


def test_times_are_the_servers(serve: Serve, page: OpenPage, stack: ExitStack) -> None:
    """The page tells times as the server's own sentences do, in the server's time zone, and names it."""
    server = serve(workers=2, sections={"admin": ADMIN}, environ={"TZ": "<+0545>-5:45"})
    operator = page(timezoneId="America/New_York")
    operator.log_in(server)
    operator.has("#zone", "UTC+05:45")
    ahead = 5 * 3600 + 45 * 60
    first = time.time()
    listen(stack, server, "far")
    operator.open(server, "#user/far")
    operator.has("#report .timeline", "opened")
    moments = range(int(first) - 1, int(time.time()) + 2)
    clocks = [time.strftime("%H:%M:%S", time.gmtime(at + ahead)) for at in moments]
    [shown] = operator.texts("#report .timeline time")
    assert shown in clocks
    assert any(clock in operator.text("#report .findings") for clock in clocks)
    assert "(UTC+05:45)" in operator.text("#report")


# -- Doing -------------------------------------------------------------------------------


def test_push_from_the_page(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """A test push reaches who it is for, and the page says how many; to nobody, and why, it says so too."""
    operator = page(server)
    operator.click("nav a:has-text('Push')")
    client = listen(stack, server, "carol", "news")
    operator.fill("#push-user", "carol")
    operator.fill("#push-event", "news")
    operator.fill("#push-message", "by hand")
    operator.click("#push-send")
    operator.has("#push-outcome", "Sent to 1 connection.")
    assert client.recv(timeout=10 * SCALE) == "by hand"
    operator.fill("#push-user", "nobody has this name")
    operator.click("#push-send")
    operator.has("#push-outcome", "Sent to nobody")
    operator.fill("#push-event", "x" * 5000)
    operator.click("#push-send")
    operator.has("#push-outcome", "Refused (400)")


def test_drain(server: Server, page: OpenPage) -> None:
    """Drain asks first; no changes nothing, yes replaces the process of that slot and no other."""
    operator = page(server)
    eventually(lambda: len(operator.workers()) == 2, what="two workers")
    before = dict(operator.workers())
    operator.click("#workers tbody tr:nth-child(1) button")
    assert operator.count("dialog[open]") == 1
    operator.click("#confirm-cancel")
    assert operator.count("dialog[open]") == 0
    operator.click("#workers tbody tr:nth-child(1) button")
    operator.fill("#confirm-seconds", "0")
    operator.click("#confirm-do")
    operator.has("#acted", "Slot 0 drains")

    def replaced() -> bool:
        now = operator.workers()
        return len(now) == 2 and dict(now)["0"] != before["0"] and dict(now)["1"] == before["1"]

    eventually(replaced, 30, "slot 0 has a new process")
    operator.has("#link-text", "Live", 30)


def test_looking_only(serve: Serve, page: OpenPage) -> None:
    """Without [admin] actions the page has no button that changes anything, and says what to set."""
    server = serve(workers=2, sections={"admin": {"key": KEY}})
    operator = page(server)
    eventually(lambda: len(operator.workers()) == 2, what="two workers")
    assert operator.count("#workers button:visible") == 0 and operator.count("#restart:visible") == 0
    assert "actions = true" in operator.text("#actions-note")
    operator.click("nav a:has-text('Push')")
    assert operator.evaluate("document.querySelector('#push-send').disabled")
    assert "actions = true" in operator.text("#push-note")


# -- What others have written --------------------------------------------------------------


def test_hostile_names_are_text(server: Server, page: OpenPage, stack: ExitStack) -> None:
    """Markup in users, channels, events and messages shows as text wherever it comes up, control characters as such."""
    operator = page(server)
    title = operator.evaluate("document.title")
    user, user_shown = f"{HOSTILE}\n", f"{HOSTILE_SHOWN}\\u000a"
    client = listen(stack, server, user, HOSTILE)

    def busy() -> bool:
        assert server.push(user, HOSTILE, HOSTILE)["sent"] == 1
        assert client.recv(timeout=10 * SCALE) == HOSTILE
        status, _, body = server.request("POST", "/api/publish", {"channel": f"open:{HOSTILE}", "data": HOSTILE})
        assert status == 200 and b"error" not in body
        shown = {*operator.texts("#users .name"), *operator.texts("#channels .name")}
        return {user_shown, f"open:{HOSTILE_SHOWN}"} <= shown

    eventually(busy, 20, "the user and the channel among the busiest")
    operator.click("#channels a:has-text('onerror')")
    eventually(lambda: "onerror" in operator.evaluate("document.querySelector('#trace-name').value"))
    operator.click("nav a:has-text('Overview')")
    operator.click("#users a:has-text('onerror')")
    operator.has("#report .chips .name", HOSTILE_SHOWN)
    assert any(HOSTILE_SHOWN in row for row in operator.texts("#report .pushes tbody tr"))
    operator.click("#user-trace")
    operator.has("#trace-outcome", user_shown)
    server.push(user, HOSTILE, HOSTILE)
    operator.has("#trace-list .what", HOSTILE_SHOWN)
    operator.click("#trace-stop")
    operator.click("nav a:has-text('Push')")
    for field in ("user", "event", "message"):
        operator.fill(f"#push-{field}", HOSTILE)
    operator.click("#push-send")
    operator.has("#push-outcome", "Sent to nobody")  # a field takes line ends out of a user's id
    assert operator.evaluate("document.querySelectorAll('img, main script, bdi *, main b b').length") == 0
    assert operator.evaluate("document.title") == title


# -- Everybody ---------------------------------------------------------------------------


def test_keyboard_alone(server: Server, page: OpenPage) -> None:
    """Without a pointer: log in, move the cursor of the plots, look a user up, open and leave the question, log out."""
    operator = page()
    operator.open(server)
    operator.has_focus("#key")
    operator.do("type", text=KEY)
    operator.press("Enter")
    operator.has("#link-text", "Live")
    operator.tab_to("#ranges input")
    operator.press("ArrowRight")
    assert operator.evaluate("document.querySelector('#ranges :checked').value") == "3600"
    operator.tab_to("#plot-rates .plot")
    eventually(lambda: operator.press("ArrowLeft") or operator.text("#cursor-time"), what="the cursor's time")
    operator.press("Escape")
    assert operator.text("#cursor-time") == ""
    operator.tab_to("#workers button")
    operator.press("Enter")
    assert operator.count("dialog[open]") == 1
    operator.press("Escape")
    assert operator.count("dialog[open]") == 0
    assert operator.evaluate("document.activeElement.closest('#workers') !== null")
    operator.tab_to("nav a[href='#user']")
    operator.press("Enter")
    operator.has_focus("#user-name")
    operator.do("type", text="dora")
    operator.press("Enter")
    operator.has("#report", "None is open.")
    operator.tab_to("#log-out")
    operator.press("Enter")
    eventually(lambda: operator.count("#key") == 1, what="the login form")


def check(operator: Page, width: int) -> None:
    controls: Sequence[Sequence[str]] = operator.do("controls")
    assert controls and [role for role, name in controls if not name] == []
    assert operator.do("violations") == []
    assert operator.evaluate("document.documentElement.scrollWidth") <= width


VIEWS = ("", "#user/erin", "#trace", "#push")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_accessible(server: Server, page: OpenPage, stack: ExitStack, scheme: str, width: int) -> None:
    """Every control has a name, axe finds nothing to object to, and nothing is wider than the window."""
    need_module("axe-core")
    operator = page(server, colorScheme=scheme, viewport={"width": width, "height": 900})
    listen(stack, server, "erin", "news")
    server.push("erin", "news", "m")
    for view in VIEWS:
        operator.open(server, view)
        operator.has("#link-text", "Live")
        operator.has("#now-connections", "")
        if "erin" in view:
            operator.has("#report article h4", "on worker-")
        check(operator, width)
    operator.open(server)
    eventually(operator.workers, what="workers")
    operator.click("#restart")
    check(operator, width)
