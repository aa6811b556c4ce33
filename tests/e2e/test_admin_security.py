"""The administration page's security, on real servers with two workers: nobody gets anything without the session."""

import json
import re
import signal
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.applications import workers
from tests.certificates import make_certificate, trusting
from tests.server import SCALE, Sections, Server, eventually
from tests.wire import KEY as WEBSOCKET_KEY
from tests.wire import Reply, Wire, request, wait_until_whole

KEY, OTHER_KEY = "the key of the operators", "another key of operators"
ADMIN: Sections = {"admin": {"key": KEY, "actions": True}}
FORM = "application/x-www-form-urlencoded"
ROUTES = (
    "/admin",
    "/admin/",
    "/admin/login",
    "/admin/session.json",
    "/admin/why.json?user=jack",
    "/admin/assets/admin.js",
    "/admin/assets/admin.css",
    "/admin/assets/uPlot.min.js",
    "/admin/assets/uPlot.min.css",
    "/admin/assets/login.html",
    "/admin/live",
    "/admin/nowhere",
)
ACTIONS = ("/admin/push", "/admin/drain", "/admin/restart", "/admin/logout")
TRICKS = (
    "/admin/../admin/session.json",
    "/admin/assets/../session.json",
    "/admin/assets/../../../../../etc/passwd",
    "/admin/assets/..%2f..%2findex.html",
    "/admin/assets/%2e%2e/session.json",
    "/admin//session.json",
    "/admin/./session.json",
    "/admin/session.json/",
    "/admin/session.json;x",
    "/admin/session.json%00",
    "/admin%2fsession.json",
    "/%61dmin/session.json",
    "/admin/assets/index.html",
    "/admin/assets/",
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Browser:
    """Asks as an operator's browser does, each time by a new connection, so that both workers answer."""

    def __init__(self, server: Server, port: int = 0) -> None:
        self.server = server
        self.port = port or server.port
        self.session = self.csrf = ""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """headers: with _ for -; "" leaves one out that would be there."""
        cookie = {"Cookie": f"theme=dark; fastpush_admin={self.session}"} if self.session else {}
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {name: value for name, value in {**cookie, **given}.items() if value}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20 * SCALE)
        with closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def login(self, key: str = KEY, **headers: str) -> Answer:
        """Send the form; remember the session, if there is one."""
        headers = {"Content_Type": FORM, "Origin": self.origin, **headers}
        answer = self.ask("POST", "/admin/login", urlencode({"key": key}), **headers)
        if answer.status == 303:
            self.session = answer.headers["set-cookie"].partition(";")[0].removeprefix("fastpush_admin=")
            self.csrf = self.ask("GET", "/admin/session.json").json()["csrf"]
        return answer

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Do something, as the page does."""
        shown = {"Content_Type": "application/json", "X_CSRF_Token": self.csrf, "Origin": self.origin}
        return self.ask("POST", path, json.dumps(body), **{**shown, **headers})

    def live(self, **headers: str) -> ClientConnection:
        """The page's WebSocket."""
        sent = {"Cookie": f"fastpush_admin={self.session}", "Origin": self.origin}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"ws://127.0.0.1:{self.port}/admin/live"
        shown = {name: value for name, value in sent.items() if value}
        return connect(url, additional_headers=shown, proxy=None, open_timeout=20 * SCALE)

    def is_logged_in(self) -> bool:
        return self.ask("GET", "/admin/session.json").status == 200


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all tests that leave it as it was. In the end its log holds no secret of theirs."""
    folder = tmp_path_factory.mktemp("admin")
    server = Server(folder, workers=2, sections=ADMIN | protection(folder))
    yield server
    server.stop()
    assert_no_secrets(server)


def protection(folder: Path) -> Sections:
    """Sections of a server that is not open, so that nothing is refused for that."""
    (folder / "tokens.toml").write_text('jack = "jack"\n')
    return {
        "auth": {"mode": "static", "tokens_file": str(folder / "tokens.toml")},
        "push": {"auth": "keys", "keys": ["key-of-the-back-end"]},
    }


SESSIONS: set[str] = set()  # all that tests were given


def assert_no_secrets(server: Server) -> None:
    """What the server has written, at level debug, holds neither key nor session."""
    written = server.log_text() + (server.folder / "stderr.log").read_text()
    assert "operator logged in" in written
    for secret in (KEY, OTHER_KEY, quote(KEY), KEY.replace(" ", "+"), *SESSIONS):
        assert secret not in written


@pytest.fixture
def browser(shared: Server) -> Browser:
    """An operator who is logged in."""
    return logged_in(shared)


def logged_in(server: Server, port: int = 0, key: str = KEY) -> Browser:
    browser = Browser(server, port)
    assert browser.login(key).status == 303
    SESSIONS.update((browser.session, browser.csrf))
    return browser


def reload(server: Server, sections: Sections) -> None:
    """Have all processes go by other sections."""
    count = len(server.events("reloaded"))
    server.write_config(2, sections)
    server.signal(signal.SIGHUP)
    eventually(lambda: len(server.events("reloaded")) >= count + 3, what="reloaded everywhere")


def close_code(live: ClientConnection) -> int:
    """Read until the server closes; return its code."""
    try:
        while True:
            live.recv(timeout=20 * SCALE)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code


def told(live: ClientConnection, name: str) -> Any:
    """The next thing of a kind that the page is told."""
    while True:
        message = json.loads(live.recv(timeout=20 * SCALE))
        if name in message:
            return message[name]


# -- Without a session -----------------------------------------------------------------


def test_off_without_a_key(serve: Callable[..., Server]) -> None:
    """Without [admin] key nothing is there: every path, the login and the WebSocket are 404."""
    server = serve(workers=1)
    browser = Browser(server)
    for path in (*ROUTES, *TRICKS):
        assert browser.ask("GET", path).status == 404, path
    for path in (*ACTIONS, "/admin/login"):
        assert browser.post(path, {}).status == 404, path
    assert browser.login("").status == 404
    with pytest.raises(InvalidStatus) as refused:
        browser.live()
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    "cookie",
    [
        "",
        "fastpush_admin=",
        "fastpush_admin=" + "A" * 43,
        "fastpush_admin=" + "A" * 5000,
        "fastpush_admin=\xe9\xff;;;=",
        "fastpush_admin=../../x",
        "Fastpush_Admin=SESSION",
        "fastpush_admin=SESSION; fastpush_admin=SESSION",
        "fastpush_admin=SESSION, fastpush_admin=SESSION",
        "fastpush_admin=SESSIONx",
        'fastpush_admin="SESSION"',
    ],
)
def test_nothing_without_the_session(shared: Server, browser: Browser, cookie: str) -> None:
    """No route answers without the session's cookie, exact and once: 401, whatever path, method, or token is shown."""
    stranger = Browser(shared)
    cookie = cookie.replace("SESSION", browser.session)
    for path in (*ROUTES, *TRICKS):
        answer = stranger.ask("GET", path, Cookie=cookie)
        assert answer.status == 401, path
        assert answer.headers["cache-control"] == "no-store"
    for path in ACTIONS:
        answer = stranger.post(path, {}, Cookie=cookie, X_CSRF_Token=browser.csrf)
        assert answer.status == 401, path
    for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert stranger.ask(method, "/admin/session.json", Cookie=cookie).status == 401, method
    with pytest.raises(InvalidStatus) as refused:
        stranger.live(Cookie=cookie)
    assert refused.value.response.status_code == 401
    assert browser.is_logged_in()


def test_sessions_of_others_and_those_that_have_ended(serve: Callable[..., Server]) -> None:
    """The session of another server, one that was logged out and one that has expired are none."""
    server, other = serve(workers=2, sections=ADMIN), serve(workers=1, sections=ADMIN)
    browser = logged_in(server)
    assert not Browser(other).is_logged_in()
    foreign = Browser(other)
    foreign.session = browser.session
    assert not foreign.is_logged_in()
    assert browser.post("/admin/logout", {}).status == 200
    assert not any(browser.is_logged_in() for _ in range(4))
    assert browser.ask("GET", "/admin").status == 401
    reload(server, {"admin": {"key": KEY, "session_seconds": 1}})
    assert browser.login().status == 303
    eventually(lambda: not browser.is_logged_in(), what="expiry")


def test_the_login_page_gives_nothing_away(shared: Server) -> None:
    """Without a session GET /admin is 401 with a form that needs no other file and may run no script."""
    answer = Browser(shared).ask("GET", "/admin")
    page, policy = answer.body.decode(), answer.headers["content-security-policy"]
    assert answer.status == 401 and answer.headers["content-type"] == "text/html; charset=utf-8"
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert f"style-src 'self' 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
    assert not re.findall(r'<script|style="|(?:src|href)="(?!data:)', page)
    assert '<form method="post" action="/admin/login">' in page and "[role=" not in page.partition("</style>")[2]
    assert "set-cookie" not in answer.headers
    assert Browser(shared).ask("HEAD", "/admin").status == 401


def test_paths_are_exact(browser: Browser) -> None:
    """With a session too there is nothing at paths that resemble others, and no file but the page's own."""
    for path in TRICKS:
        answer = browser.ask("GET", path)
        is_the_same = path in {"/admin%2fsession.json", "/%61dmin/session.json"}
        assert answer.status == (200 if is_the_same else 404), path
        assert b"root:" not in answer.body
    assert browser.ask("GET", "/admin/assets/login.html").status == 404


def test_every_answer_is_protected(browser: Browser) -> None:
    """Pages, files, data, refusals and errors carry the headers that keep browsers from mixing them with others."""
    answers = [browser.ask("GET", path) for path in (*ROUTES, "/admin/why.json")]
    answers += [browser.ask("PUT", "/admin"), browser.post("/admin/push", {}), Browser(browser.server).login("wrong")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        for rule in ("default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'"):
            assert rule in policy
        assert "unsafe" not in policy and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] in {"no-referrer", "same-origin"}
        assert answer.headers["cache-control"] in {"no-store", "no-cache"}
        assert "access-control-allow-origin" not in answer.headers
    assert {answer.status for answer in answers} == {200, 400, 401, 404, 405, 426}


def test_methods(browser: Browser) -> None:
    """Each path has its method; HEAD is answered without a body."""
    assert browser.ask("HEAD", "/admin").body == b"" and browser.ask("HEAD", "/admin").status == 200
    for method in ("POST", "PUT", "OPTIONS", "TRACE"):
        answer = browser.ask(method, "/admin/session.json")
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    for path in ACTIONS:
        for method in ("GET", "HEAD", "OPTIONS", "PUT"):
            answer = browser.ask(method, path)
            assert (answer.status, answer.headers["allow"]) == (405, "POST"), (method, path)


# -- Logging in ------------------------------------------------------------------------


def test_cookie(shared: Server) -> None:
    """A login leads to /admin with a cookie that scripts do not see and other sites' pages do not send."""
    browser = Browser(shared)
    answer = browser.login()
    SESSIONS.add(browser.session)
    assert (answer.status, answer.headers["location"]) == (303, "/admin")
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"fastpush_admin=[A-Za-z0-9_-]{43}", value)
    assert attributes == ["Path=/admin", "HttpOnly", "SameSite=Strict"]
    ended = browser.post("/admin/logout", {})
    assert ended.headers["set-cookie"] == "fastpush_admin=; Path=/admin; HttpOnly; SameSite=Strict; Max-Age=0"
    secure = browser.login(Origin=f"https://127.0.0.1:{shared.port}")
    assert "Secure" in secure.headers["set-cookie"].split("; "), "it came through a proxy that speaks TLS"


def test_tls(serve: Callable[..., Server], tmp_path: Path) -> None:
    """By TLS the cookie is for TLS alone, and only pages that came by TLS are of the same host."""
    certificate = make_certificate(tmp_path / "certificate.pem", key_path=tmp_path / "key.pem")
    tls = {"certificate": str(certificate), "key": str(tmp_path / "key.pem")}
    server = serve(workers=1, tls=trusting(certificate), sections=ADMIN | protection(tmp_path) | {"tls": tls})
    form = urlencode({"key": KEY}).encode()
    for origin, status in ((f"http://localhost:{server.port}", 403), (f"https://localhost:{server.port}", 303)):
        headers = (f"Content-Type: {FORM}", f"Origin: {origin}")
        asked = request("POST", "/admin/login", *headers, body=form, host=f"localhost:{server.port}")
        with Wire(server) as wire:
            answer = wire.send(asked).reply()
        assert answer.status == status
    cookie, *attributes = str(answer.header("set-cookie")).split("; ")
    assert attributes == ["Path=/admin", "HttpOnly", "SameSite=Strict", "Secure"]
    assert server.tls is not None
    sent = {"Cookie": cookie, "Origin": f"https://127.0.0.1:{server.port}"}
    with connect(server.ws_url(path="/admin/live"), ssl=server.tls, additional_headers=sent, proxy=None) as live:
        assert told(live, "top")


def test_session_fixation(shared: Server) -> None:
    """A login takes no id over that the browser brings, be it made up or real, and ends the real one."""
    victim, attacker = Browser(shared), logged_in(shared)
    for planted in ("A" * 43, attacker.session):
        victim.session = planted
        assert victim.login().status == 303
        SESSIONS.update((victim.session, victim.csrf))
        assert victim.session != planted and victim.is_logged_in()
        made_up = Browser(shared)
        made_up.session = planted
        assert not made_up.is_logged_in()
    assert victim.csrf != attacker.csrf


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"key": KEY}, {"Origin": "http://evil.example"}, 403),
        ({"key": KEY}, {"Origin": "null"}, 403),
        ({"key": KEY}, {"Origin": "http://127.0.0.1"}, 403),
        ({"key": KEY}, {"Sec_Fetch_Site": "cross-site"}, 403),
        ({"key": KEY}, {"Sec_Fetch_Site": "same-site"}, 403),
        ({"key": KEY}, {"Content_Type": "application/json"}, 415),
        ({"key": KEY}, {"Content_Type": "text/plain"}, 415),
        ({"key": KEY}, {"Content_Type": ""}, 415),
        ({"key": KEY, "x": "x" * 5000}, {}, 413),
        ({f"x{number}": "x" for number in range(20)}, {}, 400),
    ],
)
def test_logins_of_other_pages(shared: Server, body: dict[str, str], headers: dict[str, str], status: int) -> None:
    """A login of another site's page, and what is no small form, is refused before the key is looked at."""
    browser = Browser(shared)
    sent = {"Content_Type": FORM, "Origin": browser.origin, **headers}
    answer = browser.ask("POST", "/admin/login", urlencode(body), **sent)
    assert answer.status == status and "set-cookie" not in answer.headers


def test_a_key_in_the_url_is_none(serve: Callable[..., Server]) -> None:
    """The key counts in the form alone: not in the URL, not as header, not twice, and nobody repeats it."""
    server = serve(workers=1, sections=ADMIN)
    browser = Browser(server)
    assert browser.ask("GET", "/admin/login?key=" + quote(KEY)).status == 401
    assert browser.ask("GET", "/admin", Authorization=f"Bearer {KEY}", X_API_Key=KEY).status == 401
    for body in ("", "key", f"key={quote(KEY)}&key={quote(KEY)}"):
        answer = browser.ask("POST", "/admin/login?key=" + quote(KEY), body, Content_Type=FORM)
        assert answer.status == 401 and "set-cookie" not in answer.headers
        assert KEY.encode() not in answer.body and 'role="alert"' in answer.body.decode()
    assert browser.login().status == 303
    assert_no_secrets(server)


# -- Attempts --------------------------------------------------------------------------


def wire_to_each_worker(server: Server, closing: ExitStack) -> list[Wire]:
    """A kept-alive connection to each of two workers."""
    return [closing.enter_context(Wire(server, worker=worker)) for worker in workers(server)]


def test_attempts_of_an_address(serve: Callable[..., Server]) -> None:
    """After five wrong keys at both workers together their address waits, with the right key too; sessions go on."""
    server = serve(workers=2, sections=ADMIN)
    browser = logged_in(server)
    with ExitStack() as closing:
        wires = wire_to_each_worker(server, closing)

        def attempt(number: int, key: str) -> Reply:
            form = urlencode({"key": key}).encode()
            return wires[number % 2].send(request("POST", "/admin/login", f"Content-Type: {FORM}", body=form)).reply()

        assert [attempt(number, f"wrong key {number}").status for number in range(5)] == [401] * 5
        for number, key in enumerate(("wrong", "wrong", KEY, KEY)):
            answer = attempt(number, key)
            assert answer.status == 429 and 1 <= int(str(answer.header("retry-after"))) <= 60
            assert b"Too many wrong keys. Try again in" in answer.body
    assert browser.is_logged_in()
    assert_no_secrets(server)


def test_attempts_behind_a_proxy(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Behind a trusted proxy the client's address counts, of IPv6 the network; all together are bounded too."""
    server = serve(workers=2, sections=ADMIN | protection(tmp_path) | {"server": {"trusted_proxies": ["127.0.0.1"]}})
    browser = Browser(server)

    def attempts(*addresses: str) -> list[int]:
        return [browser.login("wrong", X_Forwarded_For=address).status for address in addresses]

    network = [f"2001:db8::{number}" for number in range(6)]
    assert attempts(*network) == [401] * 5 + [429], "one customer's network"
    assert attempts(*[f"{number}.0.0.1, 192.0.2.1" for number in range(6)]) == [401] * 5 + [429], (
        "made up by the client"
    )
    others = [f"198.51.100.{number}" for number in range(20)]
    assert attempts(*others) == [401] * 20
    assert browser.login(X_Forwarded_For="203.0.113.1").status == 429, "30 in all"


# -- Cross-site requests ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Sec_Fetch_Site": "none"}, 403),
        ({"X_CSRF_Token": ""}, 403),
        ({"X_CSRF_Token": "A" * 43}, 403),
        ({"X_CSRF_Token": "\xe9\xff"}, 403),
        ({"Content_Type": FORM}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Type": ""}, 415),
    ],
)
def test_forged_actions(browser: Browser, headers: dict[str, str], status: int) -> None:
    """An action without the session's token, of another page, or as a form can send it, is refused, and not done."""
    body = {"userId": "jack", "event": "forged", "message": "m"}
    with connect(browser.server.ws_url("token=jack&event=forged&confirm=1"), proxy=None) as jack:
        assert json.loads(jack.recv(timeout=20 * SCALE)) == {"registered": "forged"}
        for path in ACTIONS:
            assert browser.post(path, body, **headers).status == status, path
        assert browser.is_logged_in()
        assert browser.post("/admin/push", body | {"message": "wanted"}).json() == {"sent": 1}
        assert jack.recv(timeout=20 * SCALE) == "wanted"


def test_the_token_of_another_session(browser: Browser) -> None:
    """A token is good for its own session only."""
    other = logged_in(browser.server)
    assert browser.post("/admin/logout", {}, X_CSRF_Token=other.csrf).status == 403


def test_the_websocket_of_other_pages(shared: Server, browser: Browser) -> None:
    """The WebSocket opens for a page of the same host alone: not without an Origin, nor for [server] origins."""
    for headers, status in (
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Cookie": ""}, 401),
    ):
        with pytest.raises(InvalidStatus) as refused:
            browser.live(**headers)
        response = refused.value.response
        assert response.status_code == status, headers
        assert response.headers["x-content-type-options"] == "nosniff"
    with Wire(shared) as wire:
        cookie = f"Cookie: fastpush_admin={browser.session}"
        assert wire.send(request("GET", "/admin/live", cookie)).reply().status == 426
    with browser.live() as live:
        assert told(live, "top")["actions"] is True


def test_allowed_origins_are_not_operators(serve: Callable[..., Server], tmp_path: Path) -> None:
    """[server] origins lets pages connect as clients; at the administration page they are strangers."""
    server = serve(workers=1, sections=ADMIN | protection(tmp_path) | {"server": {"origins": ["*"]}})
    browser = logged_in(server)
    with pytest.raises(InvalidStatus) as refused:
        browser.live(Origin="https://shop.example")
    assert refused.value.response.status_code == 403
    assert browser.post("/admin/logout", {}, Origin="https://shop.example").status == 403


# -- What is asked ---------------------------------------------------------------------

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "jack\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "</script><svg/onload=alert(1)>\x00\u2028",
    "\N{PILE OF POO}" * 100,
    "../../etc/passwd",
]


@pytest.mark.parametrize("user", NASTY)
def test_names_are_data(browser: Browser, user: str) -> None:
    """Whatever a user is called comes back in JSON alone, as it was asked, and never in a header."""
    answer = browser.ask("GET", "/admin/why.json?" + urlencode({"user": user}))
    assert answer.status == 200 and answer.json()["user"] == user
    assert (
        answer.headers["content-type"] == "application/json" and answer.headers["x-content-type-options"] == "nosniff"
    )
    assert not any("a=b" in value or "alert" in value for value in answer.headers.values())


@pytest.mark.parametrize(
    "query", ["", "?user=", "?user=a&user=b", "?user=a&x=1", "?User=a", "?user", "?user=%ff%ed%a0%80"]
)
def test_wrong_questions(browser: Browser, query: str) -> None:
    """A look-up names one user."""
    assert browser.ask("GET", "/admin/why.json" + query).status == 400


def test_wrong_commands(browser: Browser) -> None:
    """What is no command is told so; a drain without a slot, which would end the server, is none."""
    for path, body in (
        ("/admin/drain", {}),
        ("/admin/drain", {"worker": None}),
        ("/admin/drain", {"worker": True}),
        ("/admin/drain", {"worker": "0"}),
        ("/admin/drain", {"worker": 0, "command": "x"}),
        ("/admin/restart", []),
        ("/admin/restart", {"worker": 0}),
        ("/admin/push", {}),
        ("/admin/push", {"userId": 7, "event": "e", "message": "m"}),
    ):
        assert browser.post(path, body).status == 400, (path, body)
    for path, body in (("/admin/drain", {"worker": 7}), ("/admin/restart", {"seconds": -1})):
        answer = browser.post(path, body)
        assert answer.status == 409 and answer.json()["error"]["message"]
    assert browser.post("/admin/drain", {"worker": 0, "x": "x" * 5000}).status == 413


@pytest.mark.parametrize("name", NASTY)
def test_what_pages_send(browser: Browser, name: str) -> None:
    """Traces of any names are data too, and what is no question is told so."""
    with browser.live() as live:
        told(live, "hour")
        for wrong in (
            "",
            "x",
            "[]",
            '{"trace": 1}',
            '{"trace": {"user": 1}}',
            '{"trace": {"user": "a", "channel": "b"}}',
        ):
            live.send(wrong)
            assert told(live, "error").startswith("send {")
        for seconds in (-1, 0, 1e308, "5", None, {}):
            live.send(json.dumps({"trace": {"user": name}, "seconds": seconds}))
            assert told(live, "error")
        live.send(json.dumps({"trace": {"user": name}, "seconds": 5}))
        number = told(live, "trace")["id"]
        live.send(json.dumps({"untrace": number}))
        live.send(json.dumps({"untrace": number}))
        assert told(live, "top")


def test_traces_end_with_their_page(serve: Callable[..., Server]) -> None:
    """A page has two traces, which end with its connection: the next pages have theirs at once."""
    browser = logged_in(serve(workers=2, sections=ADMIN))
    for _ in range(4):
        with browser.live() as live:
            for _ in range(2):
                live.send(json.dumps({"trace": {"channel": "room:1"}}))
                assert told(live, "trace")["id"]
            live.send(json.dumps({"trace": {"channel": "room:1"}}))
            assert "stop one first" in told(live, "error")


# -- Settings and processes ------------------------------------------------------------


def test_only_looking(serve: Callable[..., Server]) -> None:
    """As delivered operators may look, and change nothing; a reload lets them."""
    server = serve(workers=2, sections={"admin": {"key": KEY}})
    browser = logged_in(server)
    assert browser.ask("GET", "/admin/session.json").json()["actions"] is False
    push = {"userId": "jack", "event": "e", "message": "m"}
    for path, body in (("/admin/push", push), ("/admin/drain", {"worker": 0}), ("/admin/restart", {})):
        answer = browser.post(path, body)
        assert answer.status == 403 and "[admin] actions" in answer.json()["error"]["message"]
    assert not server.events("replacing workers")
    reload(server, ADMIN)
    assert browser.post("/admin/push", push).json() == {"sent": 0}
    assert browser.post("/admin/drain", {"worker": 0, "seconds": 0}).status == 200
    eventually(lambda: server.status()["operation"]["is_done"], 30, what="a worker replaced")
    assert browser.is_logged_in()
    commands = {event["command"] for event in server.events("operator")}
    assert commands == {"push", "drain"}


def test_another_key_ends_sessions(serve: Callable[..., Server]) -> None:
    """A reload with another key ends sessions and their WebSockets; without a key the page is gone."""
    server = serve(workers=2, sections=ADMIN)
    browser = logged_in(server)
    with browser.live() as live:
        told(live, "top")
        reload(server, {"admin": {"key": OTHER_KEY}})
        assert not any(browser.is_logged_in() for _ in range(4))
        assert close_code(live) == 4501
    assert browser.login().status == 401
    new = logged_in(server, key=OTHER_KEY)
    reload(server, {})
    assert {new.ask("GET", path).status for path in ROUTES} == {404}
    assert_no_secrets(server)


def test_a_logout_ends_the_websocket(browser: Browser) -> None:
    """A WebSocket does not outlive its session."""
    with browser.live() as live:
        told(live, "top")
        assert browser.post("/admin/logout", {}).status == 200
        assert close_code(live) == 4501


def test_a_killed_broker(serve: Callable[..., Server]) -> None:
    """Sessions are the broker's: with a new one operators log in again, and nobody is let in meanwhile."""
    server = serve(workers=2, sections=ADMIN)
    browser = logged_in(server)
    with browser.live() as live:
        told(live, "top")
        psutil.Process(server.processes("broker")[0]["pid"]).kill()
        statuses = {browser.ask("GET", "/admin/session.json").status for _ in range(5)}
        assert statuses <= {401, 503}
        eventually(lambda: browser.ask("GET", "/admin/session.json").status == 401, what="a new broker")
        assert close_code(live) == 4501
        wait_until_whole(server)
    assert browser.login().status == 303
    with browser.live() as live:
        assert told(live, "top")["workers"]


def test_addresses(serve: Callable[..., Server]) -> None:
    """With [api] listen the page is there alone, its WebSocket too: clients' addresses know nothing of it."""
    server = serve(workers=2, sections=ADMIN | {"api": {"listen": "127.0.0.1:0"}})
    of_clients, of_api = [int(event["address"].rpartition(":")[2]) for event in server.events("listening")]
    browser = logged_in(server, of_api)
    with browser.live() as live:
        assert told(live, "top")
    browser.port = of_clients
    assert {browser.ask("GET", path).status for path in ROUTES} == {404}
    assert browser.login().status == 404
    with pytest.raises(InvalidStatus) as refused:
        browser.live()
    assert refused.value.response.status_code == 404


def test_an_open_server_serves_this_machine(serve: Callable[..., Server]) -> None:
    """While the server asks nobody who they are, the page too is for this machine: no proxy, no other host's name."""
    browser = Browser(serve(workers=1, sections=ADMIN))
    assert browser.login().status == 303
    for headers in ({"X_Forwarded_For": "192.0.2.1"}, {"Host": "evil.example"}):
        assert browser.ask("GET", "/admin", **headers).status == 403
        assert browser.login(**headers).status == 403


def test_operators_are_not_turned_away(serve: Callable[..., Server]) -> None:
    """Where clients are turned away, by a full or overloaded worker, operators are not."""
    limits = {"connections": 1, "handshakes_per_second": 1, "connections_per_address": 1}
    server = serve(workers=1, sections=ADMIN | {"limits": limits})
    browser = logged_in(server)
    with connect(server.ws_url("token=jack&event=e"), proxy=None):
        with pytest.raises(InvalidStatus):
            connect(server.ws_url("token=jack&event=e"), proxy=None)
        with browser.live() as one, browser.live() as other:
            assert any(told(one, "top")["point"][1] == 3 for _ in range(20)), "they are counted"
            told(other, "hour")


def test_malformed_requests_show_nothing(serve: Callable[..., Server]) -> None:
    """Requests that no parser takes, with a session and the key in them, leave neither in the log."""
    server = serve(workers=1, sections=ADMIN)
    browser = logged_in(server)
    cookie = f"Cookie: fastpush_admin={browser.session}"
    form = urlencode({"key": KEY}).encode()
    for data in (
        request("GET", "/admin", cookie, "Bad Header: x"),
        request("GET", "/admin", cookie + "\x01"),
        request("GET", f"/admin/{quote(KEY)}", cookie, "Transfer-Encoding: chunked", "Content-Length: 3"),
        request("POST", "/admin/login", f"Content-Type: {FORM}", "Transfer-Encoding: chunked") + form + b"\r\n",
        request("POST", "/admin/login", f"Content-Type: {FORM}", "Content-Encoding: gzip", body=form),
        request("POST", "/admin/login", f"Content-Type: {FORM}; charset=\xff", "Expect: 100", body=form),
        request("GET", "/admin/live", cookie, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: x"),
        request("GET", "/admin/live", cookie, f"Sec-WebSocket-Key: {WEBSOCKET_KEY}", "X: " + "x" * 20_000),
    ):
        with Wire(server) as wire:
            wire.send(data)
            assert 400 <= wire.reply().status < 500
    assert browser.is_logged_in()
    written = server.log_text()
    assert browser.session not in written and form.decode() not in written
