"""The opening handshake: every check before picows sees the connection, then the hand-over.

A registration by URL is confirmed by the broker before the 101 is sent, so that a push
made right after it arrives. A browser cannot read the status of a refused handshake:
with an Origin header a bad token is told by 101 and close code 4501 instead.
"""

import asyncio
import base64
import binascii
import logging
from typing import TYPE_CHECKING

from fastpush import errors
from fastpush.applications.interface import Application
from fastpush.applications.push import Push
from fastpush.errors import AuthUnavailable, CloseCode, RequestError, TokenRejected
from fastpush.fanout import ENVELOPE, GZIP, PLAIN
from fastpush.http.auth import Identity
from fastpush.http.head import Head
from fastpush.http.push import internal_error
from fastpush.log import fields
from fastpush.protocol.deflate import negotiate
from fastpush.protocol.push import EVERYBODY, UrlOptions, parse_query, user_key
from fastpush.worker.connection import Connection

if TYPE_CHECKING:
    from fastpush.worker.dispatch import HttpConnection
    from fastpush.worker.services import Services

log = logging.getLogger("fastpush.upgrade")

_KEY_BYTES = 16


async def upgrade(services: "Services", http: "HttpConnection", head: Head) -> None:
    """Grant or refuse the upgrade that `head` asks for."""
    counters = services.environment.counters
    try:
        check_handshake(head)
        if not services.guard.allows_origin(head.headers):
            raise errors.forbidden("this Origin is not in [server] origins")  # noqa: TRY301
        application = services.websocket_paths[head.path]
        if isinstance(application, Push):
            await _open_push(services, http, head, application)
        else:
            _open(services, http, head, application)
    except RequestError as error:
        match error.status:
            case 401:
                counters.handshakes_unauthorized += 1
            case 403:
                counters.handshakes_forbidden += 1
            case 503:
                counters.handshakes_unavailable += 1
            case _:
                counters.handshakes_bad_request += 1
        told = fields(peer=http.peer, path=head.path, code=error.status, reason=error.reason)
        log.info("handshake refused", extra=told)
        http.refuse_upgrade(error)
    except Exception as error:
        log.exception("handshake failed", extra=fields(peer=http.peer, path=head.path))
        http.refuse_upgrade(internal_error(error))


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


def _open(
    services: "Services",
    http: "HttpConnection",
    head: Head,
    application: Application,
    options: UrlOptions | None = None,
) -> Connection | None:
    """Hand the connection over to picows, which answers 101; None when the client has gone."""
    taken = http.hand_over()
    if taken is None:
        return None
    transport, unread = taken
    connection = Connection(services.environment, application, http.peer, services.kept_headers(head.headers))
    if options is not None:
        connection.form = (ENVELOPE if options.envelope else PLAIN) | (GZIP if options.gzip else PLAIN)
        connection.wants_confirm = options.confirm
        if options.heartbeat:
            connection.start_heartbeat(options.heartbeat)
    offered = head.headers.get("sec-websocket-extensions") if services.environment.config.compression.enabled else None
    extensions = negotiate(offered) if offered else None
    connection.take_over(transport, head.headers["sec-websocket-key"], unread, extensions)
    return connection


async def _open_push(services: "Services", http: "HttpConnection", head: Head, push: Push) -> None:
    limits = services.environment.config.limits
    options = parse_query(head.query, name_bytes=limits.name_bytes, registrations=limits.registrations)
    if options.token is None:
        _open(services, http, head, push, options)
        return
    asked_by_page = "origin" in head.headers
    try:
        identity = await push.authenticate(options.token, head.headers)
    except TokenRejected as error:
        if not asked_by_page:
            raise errors.unauthorized(str(error)) from None
        services.environment.counters.handshakes_unauthorized += 1
        _close_at_once(_open(services, http, head, push), CloseCode.TOKEN_REJECTED, "token rejected")
    except AuthUnavailable as error:
        if not asked_by_page:
            raise errors.unavailable(str(error)) from None
        services.environment.counters.handshakes_unavailable += 1
        reason = "authentication is not available"
        _close_at_once(_open(services, http, head, push), CloseCode.TRY_AGAIN_LATER, reason)
    else:
        await _open_registered(services, http, head, push, options, identity)


async def _open_registered(
    services: "Services", http: "HttpConnection", head: Head, push: Push, options: UrlOptions, identity: Identity
) -> None:
    hub = services.environment.hub
    groups = [hub.hold(key) for key in (EVERYBODY, *(user_key(identity.user, event) for event in options.events))]
    try:
        async with asyncio.timeout(services.environment.config.limits.register_timeout_seconds):
            for group in groups:
                await hub.confirmed(group)
        # Nothing is awaited between the 101 and the join: no push can come in between.
        connection = _open(services, http, head, push, options)
        if connection is not None and connection.is_open:
            push.enter(connection, identity, options.events)
    except TimeoutError:
        raise errors.unavailable("the broker did not confirm the registration in time") from None
    finally:
        for group in groups:
            hub.release(group)


def _close_at_once(connection: Connection | None, code: CloseCode, reason: str) -> None:
    if connection is not None:
        connection.close(code, reason)
