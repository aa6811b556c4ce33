"""The administration page over HTTP: the login, the page's files, looking up users, and what operators may do.

While [admin] key is empty nothing under /admin is there. With a key nobody but the login form answers who has no
session, and the order of checks tells such a client nothing about what there is:

    cookie ──► session ──► path ──► method ──► same host, token, JSON ──► [admin] actions ──► answer
               asked of the broker             of what changes something

The session's id is in a cookie that scripts cannot read and that is sent from pages of this host alone. That is not
relied on: what changes something also shows the session's CSRF token, which no other page can know, in a header that
no form can set. A login always makes a new session, whatever cookie came with it (session fixation).
"""

import asyncio
import hmac
import logging
import math
import re
import socket
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from html import escape
from http import HTTPStatus
from importlib import resources
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import orjson
from aiohttp import web

from fastpush import __version__, errors
from fastpush.config import Config
from fastpush.errors import RequestError
from fastpush.http.guard import is_same_host
from fastpush.http.proxies import TrustedProxies, counted_address
from fastpush.http.push import JSON, NO_HEADERS, render
from fastpush.http.requests import REFUSAL, Endpoint, joined_headers, outcome_of, read_body
from fastpush.log import fields
from fastpush.protocol.push import parse_parameters

log = logging.getLogger("fastpush.admin")

ADMIN_PATH = "/admin"
COOKIE = "fastpush_admin"
ASK_SECONDS = 5.0  # for the broker's answer; meanwhile a broker that was lost has a successor
_LOGIN_PATH = "/admin/login"
_PAGE_PATHS = ("/admin", "/admin/", _LOGIN_PATH)  # whoever reloads a refused login asks for the last
_SMALL_BODY_BYTES = 4096
_FORM_FIELDS_MAX = 10
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{43}")  # as state/sessions.py makes them
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{}; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY.format(""),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_ALERT = "<!-- alert -->"  # its place in login.html

# Puts a question of protocol/insight.py to the broker, or a command to the supervisor; both may answer {"error": text}.
Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Act = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class _Asked(NamedTuple):
    """A request with a session. session: its id.  csrf: its token."""

    request: web.Request
    headers: Mapping[str, str]
    session: str
    csrf: str


_Handler = Callable[[_Asked], Awaitable[web.Response]]


class _Route(NamedTuple):
    """What is served at one path. GET answers HEAD too; POST changes something.

    is_action: changes more than the session, which [admin] actions allows.
    """

    method: str
    handler: _Handler
    is_action: bool = False


def is_admin(path: str) -> bool:
    """Whether a path is the administration page's."""
    return path == ADMIN_PATH or path.startswith(ADMIN_PATH + "/")


def session_id(headers: Mapping[str, str]) -> str:
    """Return the id in the session's cookie; "" for none, for what cannot be one, and for several.

    headers: lower-case names.
    """
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    found = [value for name, _, value in pairs if name == COOKIE]
    return found[0] if len(found) == 1 and _SESSION_ID.fullmatch(found[0]) else ""


def check_same_host(headers: Mapping[str, str], *, is_tls: bool) -> None:
    """Raise RequestError 403 unless a page of this host itself has sent the request."""
    origin = headers.get("origin")
    if origin is None or not is_same_host(origin, headers.get("host", ""), is_tls=is_tls):
        raise errors.forbidden("this is for the administration page of the same host alone (Origin)")
    _check_site(headers, ("same-origin",))


def _check_site(headers: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    """Raise RequestError 403 where the browser says that another site is behind a request (Fetch Metadata)."""
    if headers.get("sec-fetch-site", allowed[0]) not in allowed:
        raise errors.forbidden("another site's page has sent this (Sec-Fetch-Site)")


def no_session() -> RequestError:
    """401: nobody is logged in."""
    reason = "log in at /admin"
    return RequestError(401, "unauthorized", reason, text=reason, headers=(("WWW-Authenticate", "Session"),))


class AdminPages:
    """Everything under /admin but its WebSocket (worker/admin_mount.py).

    config(), trusted_proxies(): those of now.  ask, act: see above.  push: hands a test push over.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        trusted_proxies: Callable[[], TrustedProxies],
        *,
        ask: Ask,
        act: Act,
        push: Endpoint,
    ) -> None:
        self._config = config
        self._trusted_proxies = trusted_proxies
        self._ask_broker = ask
        self._act = act
        self._push = push
        folder = resources.files("fastpush") / "web" / "admin"
        self._form = (folder / "login.html").read_text("utf-8")
        style = self._form.partition("<style>")[2].partition("</style>")[0]
        self._form_policy = _POLICY.format(f" 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'")
        self._page = folder / "index.html"
        suffixes = {file.name: "." + file.name.rpartition(".")[2] for file in folder.iterdir()}
        self._files = {
            f"/admin/assets/{name}": (folder / name, _TYPES[suffix])
            for name, suffix in suffixes.items()
            if suffix in _TYPES
        }
        self._routes = {
            **dict.fromkeys(_PAGE_PATHS, _Route("GET", self._index)),
            **dict.fromkeys(self._files, _Route("GET", self._asset)),
            "/admin/session.json": _Route("GET", self._session),
            "/admin/why.json": _Route("GET", self._why),
            "/admin/logout": _Route("POST", self._log_out),
            "/admin/push": _Route("POST", self._test_push, is_action=True),
            "/admin/drain": _Route("POST", self._drain, is_action=True),
            "/admin/restart": _Route("POST", self._restart, is_action=True),
        }

    @staticmethod
    def protect(response: web.StreamResponse) -> None:
        """Add the headers that all answers have, refusals too, where there are no others of the name."""
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)

    async def respond(self, request: web.Request) -> web.Response:
        """Answer a request for a path of the page. Raises: RequestError."""
        path, headers = request.path, joined_headers(request)
        if not self._config().admin.key:
            raise errors.not_found(path)
        if path == _LOGIN_PATH and request.method == "POST":
            return await self._log_in(request, headers)
        session = session_id(headers)
        csrf = await self._csrf(session)
        if csrf is None:
            if path in _PAGE_PATHS and request.method in {"GET", "HEAD"}:
                return self._login_page(request, no_session(), "The session has ended." if session else "")
            raise no_session()
        route = self._routes.get(path)
        if route is None:
            raise errors.not_found(path)
        asked = _Asked(request, headers, session, csrf)
        self._check(route, asked)
        return await route.handler(asked)

    def _check(self, route: _Route, asked: _Asked) -> None:
        request, headers = asked.request, asked.headers
        allowed = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        if request.method not in allowed:
            raise errors.method_not_allowed(", ".join(allowed))
        if route.method == "GET":
            return
        check_same_host(headers, is_tls=request.secure)
        if not hmac.compare_digest(headers.get("x-csrf-token", "").encode("utf-8", "replace"), asked.csrf.encode()):
            raise errors.forbidden("X-CSRF-Token is not the session's: load the page again")
        if request.content_type != "application/json":
            raise RequestError(415, "unsupported_type", "the body must be JSON, with Content-Type: application/json")
        if route.is_action and not self._config().admin.actions:
            raise errors.forbidden("operators may only look: set [admin] actions = true")

    # -- the session ---------------------------------------------------------------

    async def _ask(self, **question: Any) -> dict[str, Any]:
        """Ask the broker. Raises: RequestError 503: it does not answer."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answer = await self._ask_broker(question)
        except TimeoutError:
            raise errors.unavailable("the broker does not answer") from None
        if error := answer.get("error"):
            raise errors.unavailable(str(error))
        return answer

    async def _csrf(self, session: str) -> str | None:
        """Return the CSRF token of a session; None: there is no such session. Raises: RequestError 503."""
        if not session:
            return None
        csrf = (await self._ask(ask="session", session=session)).get("csrf")
        return csrf if isinstance(csrf, str) else None

    async def _log_in(self, request: web.Request, headers: Mapping[str, str]) -> web.Response:
        if "origin" in headers and not is_same_host(headers["origin"], headers.get("host", ""), is_tls=request.secure):
            raise errors.forbidden("the login form is sent by the page of the same host alone (Origin)")
        _check_site(headers, ("same-origin", "none"))
        if request.content_type != "application/x-www-form-urlencoded":
            raise RequestError(415, "unsupported_type", "the body must be a form, application/x-www-form-urlencoded")
        key = _key_of(await read_body(request, _SMALL_BODY_BYTES))
        peer = self._peer(request, headers)
        answer = await self._ask(ask="login", key=key, peer=counted_address(peer))
        if "session" not in answer:
            return self._refuse_login(request, peer, answer)
        if earlier := session_id(headers):
            await self._ask(ask="logout", session=earlier)
        log.info("operator logged in", extra=fields(peer=peer))
        # A page that came by TLS to a proxy in front says so itself.
        is_secure = request.secure or headers.get("origin", "").startswith("https://")
        return web.Response(
            status=HTTPStatus.SEE_OTHER,
            headers={"Location": ADMIN_PATH, "Set-Cookie": _cookie(answer["session"], is_secure=is_secure)},
        )

    def _refuse_login(self, request: web.Request, peer: str, answer: Mapping[str, Any]) -> web.Response:
        wait_seconds = math.ceil(answer.get("retry_seconds", 0))
        log.warning("operator not logged in", extra=fields(peer=peer, reason=answer.get("refused", "")))
        if not wait_seconds:
            return self._login_page(request, no_session(), "This is not the key.")
        wait = f"{wait_seconds} seconds" if wait_seconds < 120 else f"{math.ceil(wait_seconds / 60)} minutes"  # noqa: PLR2004
        reason = f"Too many wrong keys. Try again in {wait}."
        headers = (("Retry-After", str(wait_seconds)),)
        return self._login_page(request, RequestError(429, "too_many_attempts", reason, headers=headers), reason)

    def _login_page(self, request: web.Request, error: RequestError, alert: str) -> web.Response:
        """Return the form, with the status of an error. alert: what is told above it."""
        request[REFUSAL] = error
        told = f'<p role="alert">{escape(alert)}</p>' if alert else ""
        # Of no-referrer the browser would make the form's Origin "null".
        headers = {
            "Content-Security-Policy": self._form_policy,
            "Referrer-Policy": "same-origin",
            **dict(error.headers),
        }
        text = self._form.replace(_ALERT, told)
        return web.Response(status=error.status, text=text, content_type="text/html", headers=headers)

    async def _log_out(self, asked: _Asked) -> web.Response:
        await self._ask(ask="logout", session=asked.session)
        return web.Response(body=b"{}", headers={**dict(JSON), "Set-Cookie": f"{_cookie('')}; Max-Age=0"})

    def _peer(self, request: web.Request, headers: Mapping[str, str]) -> str:
        """Return the client's address, as trusted proxies name it."""
        peer = request.get_extra_info("peername")
        return self._trusted_proxies().client(str(peer[0]), headers) if peer else ""

    # -- the page ------------------------------------------------------------------

    async def _index(self, asked: _Asked) -> web.Response:
        return web.Response(body=self._page.read_bytes(), content_type="text/html", charset="utf-8")

    async def _asset(self, asked: _Asked) -> web.Response:
        file, content_type = self._files[asked.request.path]
        headers = {"Cache-Control": "no-cache"}
        return web.Response(body=file.read_bytes(), content_type=content_type, charset="utf-8", headers=headers)

    async def _session(self, asked: _Asked) -> web.Response:
        admin = self._config().admin
        return _json(
            {
                "csrf": asked.csrf,
                "actions": admin.actions,
                "version": __version__,
                "host": socket.gethostname(),
                "zone_minutes": time.localtime().tm_gmtoff // 60,
            }
        )

    async def _why(self, asked: _Asked) -> web.Response:
        match parse_parameters(asked.request.rel_url.raw_query_string):
            case [("user", user)] if user:
                return _json(await self._ask(ask="why", user=user))
            case _:
                raise errors.illegal_request("the query here is ?user=USER")

    # -- actions -------------------------------------------------------------------

    async def _test_push(self, asked: _Asked) -> web.Response:
        most = self._config().limits.push_body_bytes
        body = await read_body(asked.request, most, "[limits] push_body_bytes")
        self._log_action(asked, "push")
        outcome = await outcome_of(self._push, body, NO_HEADERS)
        if isinstance(outcome, RequestError):
            raise outcome
        reply = render(outcome, as_json=True)
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    async def _drain(self, asked: _Asked) -> web.Response:
        body = await _read_object(asked.request, {"worker", "seconds"})
        if type(body.get("worker")) is not int:  # without one the command is for the whole server
            raise errors.illegal_request("worker must be the number of a slot")
        return await self._command(asked, {"command": "drain", **body})

    async def _restart(self, asked: _Asked) -> web.Response:
        return await self._command(asked, {"command": "restart", **await _read_object(asked.request, {"seconds"})})

    async def _command(self, asked: _Asked, command: dict[str, Any]) -> web.Response:
        self._log_action(asked, **command)
        reply = await self._act(command)
        if error := reply.get("error"):
            raise RequestError(409, "refused", str(error))
        return _json(reply)

    def _log_action(self, asked: _Asked, command: str, **described: Any) -> None:
        log.info("operator", extra=fields(command=command, **described, peer=self._peer(asked.request, asked.headers)))


def _key_of(body: bytes) -> str:
    """Return the key that a login form shows; "" where there is none. Raises: RequestError 400."""
    try:
        form = parse_qs(body.decode(), max_num_fields=_FORM_FIELDS_MAX)
    except ValueError:
        raise errors.illegal_request("the form cannot be read") from None
    keys = form.get("key", [])
    return keys[0] if len(keys) == 1 else ""


async def _read_object(request: web.Request, known: set[str]) -> dict[str, Any]:
    """Return a small JSON object. Raises: RequestError 400: it is none, or has other members than `known`."""
    try:
        body = orjson.loads(await read_body(request, _SMALL_BODY_BYTES))
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not body.keys() <= known:
        raise errors.illegal_request(f"the body must be a JSON object with {' and '.join(sorted(known))}")
    return body


def _cookie(session: str, *, is_secure: bool = False) -> str:
    return f"{COOKIE}={session}; Path={ADMIN_PATH}; HttpOnly; SameSite=Strict{'; Secure' if is_secure else ''}"


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(value), headers=JSON)
