"""Returns every message as it came: for conformance tests and first steps."""

from fastpush.applications.interface import Connection
from fastpush.errors import CloseCode
from fastpush.protocol.frames import binary_frame, text_frame


class Echo:
    """Text comes back as text, binary as binary."""

    def on_open(self, connection: Connection) -> None:
        """Nothing to prepare."""

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Send it back; a client that does not take it is a slow client."""
        connection.send(text_frame(data.encode()) if isinstance(data, str) else binary_frame(data))

    def close_reason(self, connection: Connection) -> tuple[CloseCode, str]:
        """Never asked: nobody has to register here."""
        return CloseCode.POLICY_VIOLATION, ""
