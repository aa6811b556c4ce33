"""The simple protocol of /ws: register for events, by message or in the URL, then receive.

What cannot be taken is ignored silently (S0-09, S0-12): the connection stays open until
register_timeout_seconds, the failure is counted, logged at debug level, and told by
`confirm=1` and in the reason of the close frame.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fastpush.applications.interface import Application, Request
from fastpush.config import Limits
from fastpush.errors import (
    AuthUnavailable,
    CloseCode,
    FastpushError,
    RegistrationError,
    TokenRejected,
    TooManyConnections,
)
from fastpush.fanout import Group, Hub, Receiver
from fastpush.http.auth import Identity, TokenAuth
from fastpush.log import fields
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import EVERYBODY, error_text, parse_registration, registered_text, user_key

log = logging.getLogger("fastpush.push")

NO_HEADERS: Mapping[str, str] = {}


class Client(Receiver, Protocol):
    """What this application needs of a connection beyond what others are given.

    user: "" until it registers.  headers: of the upgrade request, those that authentication wants.
    unregistered: says how it is closed when it registers nothing in time.
    failure: why the last registration was not taken.  expires_at: unix seconds, when the token ends.
    """

    peer: str
    headers: Mapping[str, str]
    wants_confirm: bool
    unregistered: "Callable[[Any], tuple[int, str]] | None"
    failure: Exception | None
    expires_at: float | None

    @property
    def id(self) -> str: ...

    @property
    def is_open(self) -> bool: ...

    def send_frame(self, frame: bytes) -> bool:
        """Take a frame for writing; False when it cannot. Never raises, never changes groups."""
        ...

    def plan(self) -> None:
        """Have a changed deadline noticed."""
        ...


class UserCounts(Protocol):
    """Counts a user's connections on the whole host; per_user: how many it may have, 0 for any number."""

    per_user: int

    async def register(self, connection: Any, user: str) -> bool:
        """Count `connection` under `user`, once; False when the user has as many as it may."""
        ...


class Push(Application):
    """Registers connections for (user, event).

    Who a client is changes here while it is connected, and its registrations are the hub's and the broker's: so
    this application is given these, not a Server.

    token_auth, limits: who a client is, and what it may; replaced on reload.
    user_counts: where users may have so many connections only.
    on_refused(connection, 0, error, event): told of each registration that is not taken.
    """

    def __init__(
        self,
        hub: Hub,
        limits: Limits,
        counters: Counters,
        token_auth: TokenAuth,
        user_counts: UserCounts,
        on_refused: Callable[[Any, int, Exception, str], object],
    ) -> None:
        self.token_auth = token_auth
        self.limits = limits
        self._hub = hub
        self._counters = counters
        self._user_counts = user_counts
        self._on_refused = on_refused
        self._unregistered = self.close_reason  # one bound method for all connections

    def on_open(self, connection: Client, request: Request) -> None:  # type: ignore[override] # see Client
        """A connection must register in time."""
        connection.unregistered = self._unregistered

    def on_message(self, connection: Client, data: str | bytes) -> Awaitable[None] | None:  # type: ignore[override]
        """Take a registration, text or binary. What has to wait is a coroutine."""
        event = None
        try:
            token, event = parse_registration(data, self.limits.name_bytes)
            found = self.token_auth.authenticate(token, connection.headers)
            if not isinstance(found, Identity) or (self._user_counts.per_user and not connection.user):
                return self._finish(connection, found, event)
            self._register(connection, found, event)
        except FastpushError as error:
            self._fail(connection, error, event)
        return None

    async def _finish(self, connection: Client, found: "Identity | Awaitable[Identity]", event: str) -> None:
        try:
            identity = found if isinstance(found, Identity) else await found
            if not connection.user and connection.is_open:
                await self._count(connection, identity)
            if connection.is_open:
                self._register(connection, identity, event)
        except FastpushError as error:
            self._fail(connection, error, event)

    def _register(self, connection: Client, identity: Identity, event: str) -> None:
        if identity.signed:
            raise TokenRejected("token is for a URL with certain parameters")
        self.enter(connection, identity, (event,))

    async def _count(self, connection: Client, identity: Identity) -> None:
        if not await self._user_counts.register(connection, identity.user):
            raise TooManyConnections("too many connections of this user")

    def enter(self, connection: Client, identity: Identity, events: Sequence[str]) -> None:
        """Let `connection` have the user's `events` from now on.

        Raises: RegistrationError, when the connection is another user's or has too many events.
        """
        if connection.user and connection.user != identity.user:
            raise RegistrationError("the token names another user than this connection's first one")
        keys = {event: user_key(identity.user, event) for event in events}
        held = {group.key for group in connection.groups}  # EVERYBODY among them
        added = sum(key not in held for key in keys.values())
        if added and max(len(held) - 1, 0) + added > self.limits.registrations:
            raise RegistrationError(f"more than {self.limits.registrations} events on one connection")
        connection.user = identity.user
        if identity.expires_at is not None:
            connection.expires_at = identity.expires_at
            connection.plan()
        self._hub.join(connection, EVERYBODY)
        for event, key in keys.items():
            group = self._hub.join(connection, key)
            log.debug("registered", extra=fields(connection=connection.id, user=identity.user, name=event))
            # An event that is repeated while the broker has not answered yet is confirmed once.
            if connection.wants_confirm and (group.confirmed or key not in held):
                self._confirm(connection, group, event)

    def _confirm(self, connection: Client, group: Group, event: str) -> None:
        """Tell the client once the broker knows the key."""
        frame = text_frame(registered_text(event))
        if group.confirmed:
            connection.send_frame(frame)
        else:
            self._hub.when_confirmed(group, lambda: connection.send_frame(frame))

    def _fail(self, connection: Client, error: FastpushError, event: str | None) -> None:
        self._counters.registrations_failed += 1
        connection.failure = error
        self._on_refused(connection, 0, error, event or "")
        log.debug("registration not taken", extra=fields(connection=connection.id, reason=str(error)))
        if connection.wants_confirm:
            connection.send_frame(text_frame(error_text(str(error), event)))
        if isinstance(error, AuthUnavailable):
            connection.close(CloseCode.TRY_AGAIN_LATER, "authentication is not available")
        elif isinstance(error, TooManyConnections):
            connection.close(CloseCode.POLICY_VIOLATION, str(error))

    def close_reason(self, connection: Client) -> tuple[CloseCode, str]:
        """Name the last failure of a client that did not register in time."""
        failure = connection.failure
        if failure is None:
            return CloseCode.POLICY_VIOLATION, "not registered in time: no message"
        reason = "token rejected" if isinstance(failure, TokenRejected) else str(failure)
        return CloseCode.POLICY_VIOLATION, f"not registered in time: {reason}"
