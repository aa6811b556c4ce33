"""Everything that is not the lean push path, on aiohttp: health, metrics, page, and pushes that are unusual."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any, NamedTuple

from aiohttp import web
from multidict import MultiDict

from fastpush import errors
from fastpush.config import Config, is_loopback
from fastpush.errors import AuthUnavailable, PublishFailed, RequestError
from fastpush.http.admin import AdminPages, is_admin
from fastpush.http.auth import PushAuth
from fastpush.http.exposition import CONTENT_TYPE, exposition
from fastpush.http.proxies import peer_text
from fastpush.http.push import (
    API_PATH,
    Outcome,
    PushService,
    Reply,
    internal_error,
    is_api,
    outcome_name,
    push_key_missing,
    render,
    wants_json,
)
from fastpush.http.requests import REFUSAL, Endpoint, joined_headers, outcome_of, read_body
from fastpush.http.window import Window, set_connection_headers
from fastpush.log import fields
from fastpush.protocol.push import parse_parameters

log = logging.getLogger("fastpush.http")

# What answers a method of the server API, "" for the path without one; raises RequestError.
Api = Callable[[str, bytes, Mapping[str, str]], Awaitable[Reply]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OnRefused = Callable[[RequestError, str, str, str, Mapping[str, str]], None]  # its id, peer, path and headers
Scrape = Callable[[Callable[[bytes | None], None]], None]


class Served(NamedTuple):
    """An application, as pages and back-ends are told of it. kind: its class's name, lower case."""

    path: str
    kind: str
    anonymous: str


# How many users and connections of them are in each channel, and the first so many users of the first one.
LookUp = Callable[[list[str], int], Awaitable[tuple[list[Any], list[str]]]]

ONLINE_USERS_MAX = 10_000
HEAD_BYTES_MAX = 65536  # largest [server] head_bytes
_PAGE_HEADERS = {
    # Images that people name in a chat may come from anywhere; the page loads one when its reader asks for it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https: http:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# No CORS headers: pages of other origins serve a copy of fastpush.js, in the version they were tested with.
_PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/assets/page.css": ("page.css", "text/css"),
    "/assets/icon.svg": ("icon.svg", "image/svg+xml"),
    "/assets/fastpush.js": ("fastpush.js", "text/javascript"),
    "/assets/page.js": ("page.js", "text/javascript"),
    "/assets/applications.js": ("applications.js", "text/javascript"),
    "/assets/talks.js": ("talks.js", "text/javascript"),
    "/assets/words.js": ("words.js", "text/javascript"),
}


class Route(NamedTuple):
    """What is served at one path. A route for GET answers HEAD too."""

    method: str
    handler: Handler


class HttpApp:
    """The routes of one worker.

    config:   replaced on reload.   service: pushes and drops.   push_auth(): who may push, asked anew for each
    request (it is replaced on reload).  scrape: asks the broker for the host's figures.
    on_refused: writes a line about a request that is refused or has failed.
    unready(): why this host should get no clients now, or "".  served(): the applications.
    look_up: who is online; see LookUp.  api: the server API; see Api.  admin: the administration page.
    """

    def __init__(
        self,
        config: Config,
        service: PushService,
        push_auth: Callable[[], PushAuth],
        scrape: Scrape,
        epoch: Callable[[], int],
        unready: Callable[[], str],
        on_refused: OnRefused,
        served: Callable[[], list[Served]],
        look_up: LookUp,
        api: Api,
        admin: AdminPages,
    ) -> None:
        self.config = config
        self._served = served
        self._look_up = look_up
        self._api = api
        self._push_auth = push_auth
        self._scrape = scrape
        self._epoch = epoch
        self._unready = unready
        self._on_refused = on_refused
        server = config.server
        self._routes = {
            server.push_path: Route("POST", self._post(service.push)),
            f"{server.push_path}/all": Route("POST", self._post(service.push_all)),
            server.drop_path: Route("POST", self._post(service.drop)),
            "/health": Route("GET", self._health),
            "/ready": Route("GET", self._ready),
            "/metrics": Route("GET", self._metrics),
            "/online": Route("GET", self._online),
            "/applications.json": Route("GET", self._applications),
        }
        self._routes |= dict.fromkeys(_PAGE_FILES, Route("GET", self._page))
        self._api_route = Route("POST", self._call)
        self._admin = admin

    async def start(self) -> None:
        """Build the application; call in the worker's running loop."""
        app = web.Application(client_max_size=0)  # `read_body` bounds it, by the limit of now
        app.router.add_route("*", r"/{path:[\s\S]*}", self._dispatch, expect_handler=_check_expectation)
        app.on_response_prepare.append(set_connection_headers)
        app.on_response_prepare.append(self._name_response)
        # Connections are the dispatcher's; aiohttp only ever sees one request of each.
        # What the dispatcher has taken for a head aiohttp takes too: refusals are ours, with their id and log line.
        self._runner = web.AppRunner(
            app,
            access_log=None,
            tcp_keepalive=False,
            handle_signals=False,
            logger=log,
            max_line_size=HEAD_BYTES_MAX,
            max_field_size=HEAD_BYTES_MAX,
            max_headers=HEAD_BYTES_MAX,
        )
        await self._runner.setup()

    def open_window(
        self,
        transport: asyncio.Transport,
        body_bytes: int | None,
        request_id: str,
        on_done: Callable[[Window], None],
        on_flow: Callable[[], None],
    ) -> Window:
        """Return a Window on `transport` through which one request is served; see there."""
        assert self._runner.server is not None
        return Window(self._runner.server, transport, body_bytes, request_id, on_done, on_flow)

    async def close(self) -> None:
        """Let requests under way end."""
        await self._runner.cleanup()

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._handler(request)(request)
        except RequestError as error:
            return _refusal(request, error)
        except AuthUnavailable as error:
            return _refusal(request, errors.unavailable(str(error)))
        except web.HTTPException:
            raise  # aiohttp's own answer
        except ConnectionError:
            return web.Response()  # the client is gone; nobody will read it
        except Exception as error:
            log.exception("request failed", extra=fields(path=request.path, request_id=_request_id(request)))
            return _refusal(request, internal_error(error))

    async def _name_response(self, request: web.Request, response: web.StreamResponse) -> None:
        """Tell the client the request's id, and the log what went wrong; an on_response_prepare signal."""
        request_id = response.headers["X-Request-Id"] = _request_id(request)
        if is_admin(request.path):
            self._admin.protect(response)
        if response.status >= HTTPStatus.BAD_REQUEST:
            error = request.get(REFUSAL) or RequestError(response.status, "http", response.reason or "")
            peer = request.get_extra_info("peername")
            address = peer_text(*peer[:2]) if peer else ""
            self._on_refused(error, request_id, address, request.path, joined_headers(request))

    def _handler(self, request: web.Request) -> Handler:
        if is_admin(request.path):
            return self._admin.respond
        route = self._api_route if is_api(request.path) else self._routes.get(request.path)
        if route is None:
            raise errors.not_found(request.path)
        allowed = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        if request.method not in allowed:
            raise errors.method_not_allowed(", ".join(allowed))
        return route.handler

    def _post(self, endpoint: Endpoint) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            await self._authorize(request)
            outcome = await outcome_of(endpoint, await self._body(request), joined_headers(request))
            if log.isEnabledFor(logging.DEBUG):
                log.debug("push", extra=fields(request_id=_request_id(request), outcome=outcome_name(outcome)))
            if isinstance(outcome, RequestError):
                raise outcome
            return _response(request, outcome)

        return handle

    async def _call(self, request: web.Request) -> web.StreamResponse:
        await self._authorize(request)
        method = request.path[len(API_PATH) + 1 :]
        reply = await self._api(method, await self._body(request), joined_headers(request))
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    async def _authorize(self, request: web.Request) -> None:
        allowed = self._push_auth().authorize(joined_headers(request))
        if not (allowed if isinstance(allowed, bool) else await allowed):
            raise push_key_missing()

    async def _body(self, request: web.Request) -> bytes:
        return await read_body(request, self.config.limits.push_body_bytes, "[limits] push_body_bytes")

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok", "epoch": f"{self._epoch():016x}"})

    async def _ready(self, request: web.Request) -> web.StreamResponse:
        reason = self._unready()
        if not reason:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready", "reason": reason}, status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        if request.query_string not in {"", "sum=1"}:
            reason = "the only query here is ?sum=1, for figures of the whole host instead of each worker's"
            raise RequestError(400, "illegal_request", reason, text=reason)
        loop = asyncio.get_running_loop()
        report: asyncio.Future[bytes | None] = loop.create_future()
        self._scrape(lambda data: None if report.done() else report.set_result(data))
        data = await report
        if data is None:
            raise errors.unavailable("the broker is being restarted")
        body = exposition(data, summed=bool(request.query_string))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def _online(self, request: web.Request) -> web.StreamResponse:
        """Tell how many are online, or, to who may push, who is (?channel=…&users=1) (S3-20)."""
        query = MultiDict(parse_parameters(request.rel_url.raw_query_string))
        wrong = [name for name in query if name not in {"channel", "users"} or len(query.getall(name)) > 1]
        if wrong or query.get("users", "1") != "1" or ("users" in query and not query.get("channel")):
            reason = "the queries here are ?channel=NAME and ?channel=NAME&users=1"
            raise RequestError(400, "illegal_request", reason, text=reason)
        names_users = "users" in query
        if names_users:
            await self._authorize(request)
        channel = query.get("channel")
        channels = [mount.path for mount in self._served()] if channel is None else [channel]
        try:
            counts, users = await self._look_up(channels, ONLINE_USERS_MAX if names_users else 0)
        except ValueError as error:
            raise RequestError(400, "illegal_request", str(error), text=str(error)) from None
        except PublishFailed as error:
            raise errors.unavailable(str(error)) from None
        if channel is not None:
            return web.json_response(counts[0]._asdict() | ({"names": users} if names_users else {}))
        present = {path: count._asdict() for path, count in zip(channels, counts, strict=True) if count.connections}
        total = {name: sum(count[name] for count in present.values()) for name in ("users", "connections")}
        return web.json_response(total | {"applications": present})

    async def _applications(self, request: web.Request) -> web.StreamResponse:
        self._check_page(request)
        served = [
            {"path": each.path, "handler": each.kind, "anonymous": each.anonymous != "no"} for each in self._served()
        ]
        return web.json_response({"applications": served}, headers={"Cache-Control": "no-cache"})

    def _check_page(self, request: web.Request) -> None:
        address = request.get_extra_info("sockname")
        page = self.config.api.page
        if page == "off" or (page == "loopback" and not is_loopback(address[0])):
            raise errors.not_found(request.path)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._check_page(request)
        name, content_type = _PAGE_FILES[request.path]
        body = (resources.files("fastpush") / "web" / name).read_bytes()
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_PAGE_HEADERS)


async def _check_expectation(request: web.Request) -> None:
    """Refuse what nobody can fulfil; the 100 itself is sent when the body is wanted."""
    if request.headers.get("Expect", "").lower() != "100-continue":
        raise web.HTTPExpectationFailed(text="only 100-continue can be expected")


def _request_id(request: web.Request) -> str:
    window = request.transport
    return window.request_id if isinstance(window, Window) else ""


def _refusal(request: web.Request, error: RequestError) -> web.Response:
    request[REFUSAL] = error
    return _response(request, error)


def _response(request: web.BaseRequest, outcome: Outcome | RequestError) -> web.Response:
    as_json = wants_json({"accept": request.headers.get("Accept", "")}, request.path) or is_admin(request.path)
    # Nobody asks for unknown paths in a form of ours: programs get JSON, S0 knows no 404.
    is_not_found = isinstance(outcome, RequestError) and outcome.status == HTTPStatus.NOT_FOUND
    reply = render(outcome, as_json=as_json or is_not_found)
    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)
