"""The opening handshake: every check before picows sees the connection, then the hand-over.

A registration by URL is confirmed by the broker before the 101 is sent, so that a push
made right after it arrives. A browser cannot read the status of a refused handshake:
with an Origin header a bad token is told by 101 and close code 4501 instead.

Each step of a Handshake calls the next one, at once or when somebody has answered:

    begin ──► address ──► token ──► user ──► keys ──► 101
              counted     known     counted  confirmed

Nothing is asked where no limit is set; only authentication that has to wait is a task.
"""

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from fastpush import errors
from fastpush.applications.interface import Request
from fastpush.config import is_loopback
from fastpush.errors import AuthUnavailable, CloseCode, RequestError, TokenRejected
from fastpush.fanout import Group
from fastpush.http.auth import Identity, check_signed
from fastpush.http.head import Head
from fastpush.http.push import internal_error
from fastpush.log import fields
from fastpush.protocol.deflate import negotiate
from fastpush.protocol.push import URL_PARAMETERS_MAX, parse_parameters
from fastpush.worker.admission import address_name, user_name
from fastpush.worker.connection import Connection

if TYPE_CHECKING:
    from fastpush.worker.dispatch import HttpConnection
    from fastpush.worker.mount import Asked, Mount
    from fastpush.worker.services import Services

log = logging.getLogger("fastpush.upgrade")

_KEY_BYTES = 16
_OUTCOMES = {401: "unauthorized", 403: "forbidden", 503: "unavailable"}


class Handshake:
    """One request for a WebSocket, until it is granted or refused.

    address: the client's, for limits.
    due: see TimerWheel; it stands there while it waits for the broker, at most register_timeout_seconds.
    _http: None once it is over.  _admitted: names counted for it.  _groups: keys held for it.
    """

    __slots__ = (
        "_address", "_admitted", "_asked", "_groups", "_head", "_http", "_identity", "_mount", "_request", "_services",
        "_unconfirmed", "due",
    )  # fmt: skip

    def __init__(self, services: "Services", http: "HttpConnection", head: Head, address: str) -> None:
        self._services = services
        self._http: HttpConnection | None = http
        self._head = head
        self._address = address
        self._mount: Mount = services.mounts[head.path]
        self._identity: Identity | None = None
        self._admitted: tuple[bytes, ...] = ()
        self._groups: list[Group] = []
        self._unconfirmed = 0
        self.due = -1
        services.overload.handshakes += 1

    def begin(self) -> None:
        """Grant or refuse the upgrade, now or later."""
        self._take(self._check)

    def _take(self, step: Callable[..., None], *arguments: Any) -> None:
        """Take one step; what it raises is the client's answer, and nobody else's trouble."""
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - it is logged there
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        match error:
            case RequestError():
                self._refuse(error, _OUTCOMES.get(error.status, "bad_request"))
            case TokenRejected() | AuthUnavailable():
                self._reject(error)
            case _:
                http = self._http
                request_id = "" if http is None else http.request_id
                log.error("handshake failed", exc_info=error, extra=fields(path=self._head.path, request_id=request_id))
                if http is not None:
                    http.refuse_upgrade(self._answer(internal_error(error)))
                self._end()

    # -- the steps ---------------------------------------------------------------

    def _check(self) -> None:
        head, services = self._head, self._services
        self._check_head(head)
        assert self._http is not None
        if not services.guard.allows_origin(head.headers, is_tls=self._http.is_tls):
            raise errors.forbidden("this Origin is not in [server] origins")
        self._asked: Asked = self._mount.read(head.query)
        if services.admission.per_address:
            self._ask(address_name(self._address), self._on_address)
        else:
            self._authenticate()

    def _check_head(self, head: Head) -> None:
        check_handshake(head)

    def _ask(self, name: bytes, then: Callable[[bool], None]) -> None:
        """Have the broker count a connection more of `name`."""
        self._wait_for_broker()
        self._services.admission.admit(name, lambda is_admitted: self._on_admitted(name, then, is_admitted))

    def _on_admitted(self, name: bytes, then: Callable[[bool], None], is_admitted: bool) -> None:  # noqa: FBT001
        self._services.environment.wheel.cancel(self)
        if is_admitted:
            self._admitted = (*self._admitted, name)
        if self._http is None:  # it was given up before the answer came
            self._end()
        else:
            self._take(then, is_admitted)

    def _on_address(self, is_admitted: bool) -> None:  # noqa: FBT001
        services = self._services
        services.admission.watch(self._address, services.now())
        if is_admitted:
            self._authenticate()
        else:
            text = "too many connections from one address ([limits] connections_per_address)"
            self._refuse(errors.too_many(text), "address_connections")

    def _authenticate(self) -> None:
        token = self._asked.token
        if token is None:
            self._admit_anonymous()
            return
        found = self._services.token_auth.authenticate(token, self._head.headers)
        if isinstance(found, Identity):
            self._identify(found)
        else:
            self._services.spawn(self._await_identity(found))

    def _admit_anonymous(self) -> None:
        """Let a client in that shows no token, where the application allows that."""
        refusal = self._anonymous_refusal()
        if refusal is None:
            self._asked = self._asked._replace(is_anonymous=True)
        elif not self._mount.admits_first:
            raise refusal
        self._announce()

    def _anonymous_refusal(self) -> RequestError | TokenRejected | None:
        mount = self._mount
        if mount.anonymous == "no":
            return TokenRejected(f"a token is needed: send it as {mount.shown_as}")
        assert self._http is not None
        if mount.anonymous == "loopback":
            refusal = mount.guard.refusal(self._head.headers, is_tls=self._http.is_tls)
            if refusal is None and not is_loopback(self._http.local_host):
                return TokenRejected(f"a token is needed from other machines: send it as {mount.shown_as}")
            return refusal
        return None

    async def _await_identity(self, found: Awaitable[Identity]) -> None:
        try:
            identity = await found
        except Exception as error:  # noqa: BLE001 - it is logged there
            self._fail(error)
        else:
            self._take(self._identify, identity)

    def _identify(self, identity: Identity) -> None:
        if identity.signed:
            self._check_signed(identity)
        self._identity = identity
        if self._services.admission.per_user:
            self._ask(user_name(identity.user), self._on_user)
        else:
            self._announce()

    def _check_signed(self, identity: Identity) -> None:
        parameters = parse_parameters(self._head.query, self._mount.limits.registrations + URL_PARAMETERS_MAX)
        names = [name for name, _ in parameters]
        # One that is repeated could mean either.
        check_signed(identity.signed, {name: value for name, value in parameters if names.count(name) == 1})

    def _on_user(self, is_admitted: bool) -> None:  # noqa: FBT001
        if is_admitted:
            self._announce()
        else:
            text = "too many connections of this user ([limits] connections_per_user)"
            self._refuse(errors.too_many(text), "user_connections")

    def _announce(self) -> None:
        """Hold the keys that the connection will join until the broker knows them."""
        hub, identity, head = self._services.environment.hub, self._identity, self._head
        assert self._http is not None
        user, signed = ("", {}) if identity is None else (identity.user, identity.signed or {})
        self._request = Request(head.path, self._asked.query, head.headers, self._http.peer, user, signed)
        keys = self._mount.keys(self._request, self._asked)
        self._groups = groups = [hub.hold(key) for key in keys]
        for group in groups:
            if not group.confirmed:
                self._unconfirmed += 1
                hub.when_confirmed(group, self._on_confirmed)
        if self._unconfirmed:
            self._wait_for_broker()
        else:
            self._open()

    def _on_confirmed(self) -> None:
        self._unconfirmed -= 1
        if not self._unconfirmed and self._http is not None:
            self._take(self._open)

    def _wait_for_broker(self) -> None:
        environment = self._services.environment
        environment.wheel.schedule(self, environment.wheel.now + environment.register_ticks)

    def on_timer(self, now: int) -> None:
        """The broker has not answered in time; see TimerWheel."""
        self._refuse(errors.unavailable("the broker did not confirm the registration in time"), "unavailable")

    # -- the end -----------------------------------------------------------------

    def _open(self) -> None:
        """Have picows answer 101, and join."""
        # Nothing is waited for between the 101 and the join: no push can come in between.
        mount, environment = self._mount, self._services.environment
        environment.opening_ns = monotonic_ns()
        try:
            taken = self._hand_over(mount)
            if taken is not None and taken[0].is_open:
                mount.enter(taken[0], self._identity, [group.key for group in self._groups], self._asked)
                taken[0].open(self._request)
        finally:
            environment.opening_ns = 0
        if taken is not None:
            connection, unread = taken
            connection.read(unread)
        self._end()

    def _hand_over(self, mount: "Mount") -> tuple[Connection, bytes] | None:
        """Let a Connection own the transport; return it and what came behind the request. None: the client has gone."""
        http, head, services = self._http, self._head, self._services
        assert http is not None
        peer, taken = http.peer, http.hand_over()
        if taken is None:
            return None
        transport, unread = taken
        connection = Connection(services.environment, mount, peer, services.kept_headers(head.headers))
        if self._admitted:
            connection.admitted, self._admitted = self._admitted, ()
        extensions = None
        if services.environment.config.compression.enabled and (
            offered := head.headers.get("sec-websocket-extensions")
        ):
            extensions = negotiate(offered)
        connection.take_over(transport, head.headers["sec-websocket-key"], extensions)
        return connection, unread

    def _reject(self, error: TokenRejected | AuthUnavailable) -> None:
        """Tell of a bad token by status, or to a page by close code."""
        if "origin" not in self._head.headers:
            self._refuse_token(error)
            return
        is_rejected = isinstance(error, TokenRejected)
        outcome = "unauthorized" if is_rejected else "unavailable"
        code = CloseCode.TOKEN_REJECTED if is_rejected else CloseCode.TRY_AGAIN_LATER
        self._services.environment.counters.count_handshake(outcome)
        if self._http is not None:
            self._tell_refusal(self._http, outcome, code, error)
        taken = self._hand_over(self._services.nowhere)
        if taken is not None:
            connection, unread = taken
            connection.close(code, "token rejected" if is_rejected else "authentication is not available")
            connection.read(unread)
        self._end()

    def _refuse_token(self, error: TokenRejected | AuthUnavailable) -> None:
        is_rejected = isinstance(error, TokenRejected)
        refusal = errors.unauthorized(str(error)) if is_rejected else errors.unavailable(str(error))
        self._refuse(refusal, _OUTCOMES[refusal.status], error)

    def _refuse(self, error: RequestError, outcome: str, cause: Exception | None = None) -> None:
        http, services = self._http, self._services
        if http is not None:
            services.environment.counters.count_handshake(outcome)
            self._tell_refusal(http, outcome, error.status, cause or error)
            http.refuse_upgrade(self._answer(error))
        self._end()

    def _answer(self, error: RequestError) -> RequestError:
        """Return a refusal as the client is told it."""
        return error

    def _tell_refusal(self, http: "HttpConnection", outcome: str, code: int, error: Exception) -> None:
        """Tell log and operators."""
        services, path = self._services, self._head.path
        described = {"peer": http.peer, "path": path, "request_id": http.request_id}
        services.refusals.add(outcome, services.now(), **described, code=code, reason=str(error))
        user = "" if self._identity is None else self._identity.user
        services.environment.notebook.refused(error, code, path, http.peer, user)

    def _end(self) -> None:
        """Give back what was taken for the handshake; again does nothing."""
        environment = self._services.environment
        if self._http is not None:
            self._http = None
            self._services.overload.handshakes -= 1
        environment.wheel.cancel(self)
        groups, self._groups = self._groups, []
        for group in groups:
            environment.hub.release(group)
        names, self._admitted = self._admitted, ()
        if names:
            environment.release(names)


def check_handshake(head: Head) -> None:
    """Check what RFC 6455 section 4.2.1 asks of a client. Raises: RequestError 400, 405 or 426."""
    if head.method != "GET":
        raise errors.method_not_allowed("GET")
    tokens = [token.strip() for token in head.headers.get("connection", "").lower().split(",")]
    if not head.wants_websocket or "upgrade" not in tokens or head.version != "1.1":
        raise RequestError(
            426, "upgrade_required", "this path speaks WebSocket: send Connection: Upgrade and Upgrade: websocket",
            text="upgrade required", headers=(("Upgrade", "websocket"),),
        )  # fmt: skip
    if head.headers.get("sec-websocket-version") != "13":
        raise RequestError(
            426, "unsupported_version", "only WebSocket version 13 is supported",
            text="upgrade required", headers=(("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
        )  # fmt: skip
    if head.content_length or head.is_chunked:
        raise errors.illegal_request("a WebSocket request has no body")
    key = head.headers.get("sec-websocket-key", "")
    try:
        valid = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise errors.illegal_request("Sec-WebSocket-Key must be 16 bytes in base64")
