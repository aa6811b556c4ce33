"""S1: returns every message, as fast as its client takes it.

Up to 1,000 messages wait to be handled and up to 1,000 to be sent. A client that does not read is not read
from either, once both are full: nothing is dropped, and nobody else waits.
"""

from collections.abc import Awaitable
from typing import ClassVar, Literal

from fastpush.applications.interface import Application, Connection, Options


class EchoOptions(Options):
    """binary: what a binary message comes back as; "text" (S1-05) shows bytes that are no UTF-8 as U+FFFD."""

    binary: Literal["text", "binary"] = "text"


class Echo(Application):
    """Text comes back as text."""

    options_class: ClassVar = EchoOptions
    default_limits: ClassVar = {"receive_queue_messages": 1000, "send_queue_messages": 1000}
    options: EchoOptions

    def on_message(self, connection: Connection, data: str | bytes) -> Awaitable[None] | None:
        """Answer, once there is room for that: nearly always at once, before anything else of the client is looked at,
        be it a close frame.
        """
        if isinstance(data, bytes) and self.options.binary == "text":
            data = data.decode(errors="replace")
        if not connection.has_room:
            return self._answer_later(connection, data)
        connection.send(data)
        return None

    async def _answer_later(self, connection: Connection, data: str | bytes) -> None:
        await connection.drain()
        connection.send(data)
