"""S2: every text reaches everybody, its sender too, compressed once for all who want that.

A client says in its URL which key it has and whether it wants gzip: /broadcast?specialKey=…&support_gzip=1.
Both together are its identity, of which one connection lives on the whole host: the newest.
"""

import json
import logging
from collections.abc import Awaitable
from typing import ClassVar

from fastpush.applications.interface import Application, Connection, Options, Publishing, Request
from fastpush.errors import CloseCode, PublishFailed
from fastpush.log import fields

log = logging.getLogger("fastpush.application")

PARAMETER_ERROR = "Parameter check error"
_KEY_CHARACTERS_MAX = 512
_SHOWN_CHARACTERS = 64


class BroadcastOptions(Options):
    """signed: both parameters must be those that the client's token vouches for (`fastpush token --url`, S2-25)."""

    signed: bool = False


class Broadcast(Application):
    """One connection a key."""

    options_class: ClassVar = BroadcastOptions
    options: BroadcastOptions

    def on_open(self, connection: Connection, request: Request) -> Awaitable[None] | None:
        """Take the client's parameters, and the place of an older connection with the same ones."""
        parameters = request.signed if self.options.signed else request.query
        key, gzip = parameters.get("specialKey", ""), parameters.get("support_gzip", "0")
        if not 0 < len(key) <= _KEY_CHARACTERS_MAX or gzip not in {"0", "1"}:
            # Parameters only: a token stands beside them in the URL.
            named = ((name, request.query.get(name)) for name in ("specialKey", "support_gzip"))
            found = {name: value and value[:_SHOWN_CHARACTERS] for name, value in named}
            log.warning("parameters refused", extra=fields(connection=connection.id, peer=request.peer, **found))
            connection.send(PARAMETER_ERROR)
            connection.close(CloseCode.POLICY_VIOLATION, PARAMETER_ERROR)
            return None
        connection.wants_gzip = gzip == "1"
        # Taken apart by nobody, and different for any two identities: a key may hold whatever it likes.
        return self.server.claim(connection, json.dumps([key, gzip]))

    def on_message(self, connection: Connection, data: str | bytes) -> Awaitable[None] | None:
        """Say a text to everybody; what is binary goes nowhere (S2-12)."""
        if isinstance(data, bytes):
            return None
        publishing = self.server.broadcast(data)
        return self._log(connection, len(data), publishing) if log.isEnabledFor(logging.DEBUG) else None

    async def _log(self, connection: Connection, characters: int, publishing: Publishing) -> None:
        """Log who has said something, and how many it was sent to (S2-21)."""
        log.debug("said", extra=fields(connection=connection.id, user=connection.user, characters=characters))
        try:
            reached = await publishing
        except PublishFailed as failure:
            log.warning("not published", extra=fields(path=self.server.path, reason=str(failure)))
        else:
            log.debug("sent", extra=fields(connection=connection.id, connections=reached))
