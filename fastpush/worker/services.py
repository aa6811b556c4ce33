"""What a worker's HTTP side shares: who serves which path, who may, and the date."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from fastpush.applications.push import NO_HEADERS
from fastpush.config import Config, open_keys
from fastpush.errors import RequestError
from fastpush.http.app import HttpApp
from fastpush.http.auth import PushAuth, TokenAuth
from fastpush.http.guard import Guard
from fastpush.http.head import HEAD_END
from fastpush.http.proxies import TrustedProxies, host_of
from fastpush.http.push import API_PATH, Outcome, PushService, Reply, render
from fastpush.http.refusals import RefusalLog
from fastpush.http.request_id import RequestIds
from fastpush.worker.admission import Admission
from fastpush.worker.dispatch import HELD_BYTES
from fastpush.worker.environment import Environment
from fastpush.worker.overload import Overload
from fastpush.worker.timers import TICK_SECONDS
from fastpush.worker.tls import ServerTls

if TYPE_CHECKING:
    from fastpush.worker.dispatch import HttpConnection
    from fastpush.worker.mount import Mount

log = logging.getLogger("fastpush.worker")

# Takes a body, whom to answer once, and headers; raises RequestError where it does not answer.
Lean = Callable[[bytes, Callable[[Outcome | Reply | RequestError], None], Mapping[str, str]], None]

TICKS_A_SECOND = round(1 / TICK_SECONDS)
_REPLIES_MAX = 1000
_REASON_CHARACTERS = 200  # of a log line
_API_PUSH_PATHS = (API_PATH, *(f"{API_PATH}/{method}" for method in ("publish", "broadcast", "batch")))


@dataclass(slots=True)
class Services:
    """The state of a worker that its HTTP connections use.

    auth_headers:      headers of an upgrade request that authentication looks at later; None: all.
    lean:              the paths whose POST requests are answered without aiohttp.
    lean_body_bytes:   a larger one goes to aiohttp.
    mounts:            the applications by path.  nowhere: for clients that are told only why they may not come in.
    handshake_starts:  how the request lines of clients' handshakes begin, which an overloaded worker turns away.
    trusted_proxies:   whose X-Forwarded-For is believed.
    tls:               None without [tls] certificate.
    now():             seconds of the loop's clock.
    refusals, refused_requests: log lines about handshakes, and about all other requests.
    push_auth_is_sync: whether a push may be authorized without waiting; else it goes to aiohttp.
    """

    environment: Environment
    push_service: PushService
    lean: dict[str, Lean]
    call_soon: Callable[..., object]
    now: Callable[[], float]
    overload: Overload
    refusals: RefusalLog
    refused_requests: RefusalLog
    admission: Admission
    app: HttpApp = field(init=False)
    guard: Guard = field(init=False)
    trusted_proxies: TrustedProxies = field(init=False)
    push_auth: PushAuth = field(init=False)
    token_auth: TokenAuth = field(init=False)
    nowhere: "Mount" = field(init=False)
    push_auth_is_sync: bool = field(init=False)
    lean_body_bytes: int = field(init=False)
    auth_headers: tuple[str, ...] | None = field(init=False)
    mounts: "dict[str, Mount]" = field(default_factory=dict)
    handshake_starts: tuple[bytes, ...] = ()
    http_connections: "set[HttpConnection]" = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    tls: ServerTls | None = None
    request_ids: RequestIds = field(default_factory=RequestIds)
    _replies: dict[Outcome, tuple[bytes, bytes]] = field(default_factory=dict)
    _date: bytes = b""
    _date_second: int = -1

    def configure(self, config: Config, token_auth: TokenAuth, push_auth: PushAuth) -> None:
        """Serve by `config` from now on. token_auth, push_auth: made of it."""
        self.guard = Guard(open_keys(config), config.server.origins)
        self.trusted_proxies = TrustedProxies(config.server.trusted_proxies)
        self.token_auth = token_auth
        self.push_auth = push_auth
        for mount in (*self.mounts.values(), *([self.nowhere] if self.mounts else [])):
            mount.configure(config)
        self.push_auth_is_sync = config.push.auth != "python"
        self.lean_body_bytes = min(config.limits.push_body_bytes, HELD_BYTES)
        self.auth_headers = _auth_headers(config)

    def serve(self, mounts: "Iterable[Mount]", nowhere: "Mount") -> None:
        """Serve these applications."""
        self.mounts = {mount.path: mount for mount in mounts}
        self.nowhere = nowhere
        of_clients = [mount.path for mount in self.mounts.values() if "public" in mount.roles]
        self.handshake_starts = tuple(f"GET {path}{end}".encode() for path in of_clients for end in "? ")

    def date_header(self) -> bytes:
        """Return the Date header's line, made once a second."""
        second = self.environment.wheel.now // TICKS_A_SECOND
        if second != self._date_second:
            self._date_second = second
            self._date = f"Date: {formatdate(self.environment.clock(), usegmt=True)}".encode()
            self._replies.clear()
        return self._date

    def sent_reply(self, outcome: Outcome, request_id: str) -> bytes:
        """Return the whole plain reply of a push that was taken; all but the id is made once a second and outcome."""
        date = self.date_header()
        halves = self._replies.get(outcome)
        if halves is None:
            if len(self._replies) >= _REPLIES_MAX:
                self._replies.clear()
            body = render(outcome, as_json=False).body
            lines = (
                b"HTTP/1.1 200 OK",
                date,
                b"Content-Type: text/plain; charset=utf-8",
                b"Content-Length: %d" % len(body),
                b"X-Request-Id: ",
            )
            halves = self._replies[outcome] = (b"\r\n".join(lines), HEAD_END + body)
        return halves[0] + request_id.encode() + halves[1]

    def json_reply(self, body: bytes, request_id: str) -> bytes:
        """Return the whole reply of the server API to what was done, or refused with a code of its own."""
        what = b"Content-Type: application/json\r\nContent-Length: %d" % len(body)
        return b"HTTP/1.1 200 OK\r\n%b\r\n%b\r\nX-Request-Id: %b\r\n\r\n%b" % (
            self.date_header(), what, request_id.encode(), body
        )  # fmt: skip

    def log_refusal(
        self, error: RequestError, request_id: str, peer: str, path: str, headers: Mapping[str, str]
    ) -> None:
        """Write a line about a request that is refused or has failed, or count it (see RefusalLog); tell operators.

        Its reason names fields and limits, never a token or a key. The peer may be a trusted proxy, whose headers name
        the client.
        """
        if self.trusted_proxies:
            peer = self.trusted_proxies.client(host_of(peer), headers)
        if self._is_push(path):
            self.environment.notebook.push_refused(error, path, peer)
        elif path in self.mounts or "upgrade" in headers:
            self.environment.notebook.refused(error, error.status, path, peer)
        self.refused_requests.add(
            error.code,
            self.now(),
            request_id=request_id,
            peer=peer,
            path=path,
            status=error.status,
            code=error.code,
            reason=error.reason[:_REASON_CHARACTERS],
        )

    def _is_push(self, path: str) -> bool:
        push_path = self.environment.config.server.push_path
        return path in {push_path, f"{push_path}/all", *_API_PUSH_PATHS}

    def kept_headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return what of an upgrade request's headers its connection has to keep."""
        if self.auth_headers is None:
            return headers
        return {name: headers[name] for name in self.auth_headers if name in headers} or NO_HEADERS

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the background; a failure is logged, never lost."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", exc_info=error)


def _auth_headers(config: Config) -> tuple[str, ...] | None:
    """Return the request headers that a later registration by message is judged by; None: all of them."""
    match config.auth.mode:
        case "webhook":
            return tuple(name.lower() for name in config.auth.webhook.headers)
        case "python":
            return None
        case _:
            return ()
