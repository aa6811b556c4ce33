"""The simple protocol of /ws: register for events, by message or in the URL, then receive.

What cannot be taken is ignored silently (S0-09, S0-12): the connection stays open until
register_timeout_seconds, the failure is counted, logged at debug level, and told by
`confirm=1` and in the reason of the close frame.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from fastpush.applications.interface import Connection
from fastpush.config import Limits
from fastpush.errors import (
    AuthUnavailable,
    CloseCode,
    FastpushError,
    RegistrationError,
    TokenRejected,
    TooManyConnections,
)
from fastpush.fanout import Group, Hub
from fastpush.http.auth import Identity, TokenAuth
from fastpush.log import fields
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import error_text, parse_registration, registered_text, user_key

log = logging.getLogger("fastpush.push")

NO_HEADERS: Mapping[str, str] = {}


class UserCounts(Protocol):
    """Counts a user's connections on the whole host; per_user: how many it may have, 0 for any number."""

    per_user: int

    async def register(self, connection: Any, user: str) -> bool:
        """Count `connection` under `user`, once; False when the user has as many as it may."""
        ...


class Push:
    """Registers connections for (user, event).

    token_auth, limits: who a client is, and what it may; replaced on reload.
    spawn: runs a coroutine in the background, for authentication that has to wait.
    user_counts: where users may have so many connections only.
    """

    def __init__(
        self,
        hub: Hub,
        limits: Limits,
        counters: Counters,
        token_auth: TokenAuth,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        user_counts: UserCounts,
    ) -> None:
        self.token_auth = token_auth
        self.limits = limits
        self._hub = hub
        self._counters = counters
        self._spawn = spawn
        self._user_counts = user_counts

    def on_open(self, connection: Connection) -> None:
        """A connection must register in time."""
        connection.must_register = True

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Take a registration, text or binary."""
        event = None
        try:
            token, event = parse_registration(data, self.limits.name_bytes)
            found = self.token_auth.authenticate(token, connection.headers)
            if isinstance(found, Identity) and (connection.user or not self._user_counts.per_user):
                self.enter(connection, found, (event,))
            else:
                # One at a time: later messages of this client wait, and so does the client.
                connection.pause_reading()
                self._spawn(self._finish(connection, found, event))
        except FastpushError as error:
            self._fail(connection, error, event)

    async def _finish(self, connection: Connection, found: Any, event: str) -> None:
        try:
            identity = found if isinstance(found, Identity) else await found
            if not connection.user and connection.is_open:
                await self._count(connection, identity)
            if connection.is_open:
                self.enter(connection, identity, (event,))
        except FastpushError as error:
            self._fail(connection, error, event)
        except Exception:
            log.exception("authentication failed", extra=fields(connection=connection.id, peer=connection.peer))
            connection.close(CloseCode.INTERNAL_ERROR, "")
        finally:
            connection.resume_reading()

    async def _count(self, connection: Connection, identity: Identity) -> None:
        if not await self._user_counts.register(connection, identity.user):
            raise TooManyConnections("too many connections of this user")

    def enter(self, connection: Connection, identity: Identity, events: Sequence[str]) -> None:
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
        for event, key in keys.items():
            group = self._hub.join(connection, key)
            log.debug("registered", extra=fields(connection=connection.id, user=identity.user, event=event))
            # An event that is repeated while the broker has not answered yet is confirmed once.
            if connection.wants_confirm and (group.confirmed or key not in held):
                self._confirm(connection, group, event)

    def _confirm(self, connection: Connection, group: Group, event: str) -> None:
        """Tell the client once the broker knows the key."""
        frame = text_frame(registered_text(event))
        if group.confirmed:
            connection.send(frame)
        else:
            self._hub.when_confirmed(group, lambda: connection.send(frame))

    def _fail(self, connection: Connection, error: FastpushError, event: str | None) -> None:
        self._counters.registrations_failed += 1
        connection.failure = error
        log.debug("registration not taken", extra=fields(connection=connection.id, reason=str(error)))
        if connection.wants_confirm:
            connection.send(text_frame(error_text(str(error), event)))
        if isinstance(error, AuthUnavailable):
            connection.close(CloseCode.TRY_AGAIN_LATER, "authentication is not available")
        elif isinstance(error, TooManyConnections):
            connection.close(CloseCode.POLICY_VIOLATION, str(error))

    def close_reason(self, connection: Connection) -> tuple[CloseCode, str]:
        """Name the last failure of a client that did not register in time."""
        failure = connection.failure
        if failure is None:
            return CloseCode.POLICY_VIOLATION, "not registered in time: no message"
        reason = "token rejected" if isinstance(failure, TokenRejected) else str(failure)
        return CloseCode.POLICY_VIOLATION, f"not registered in time: {reason}"
