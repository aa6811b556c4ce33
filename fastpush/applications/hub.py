"""S4: every message reaches everybody, its sender too."""

from typing import ClassVar

from fastpush.applications.interface import Application, Connection, Options, Request


class HubOptions(Options):
    """join_lines: texts that wait for a slow client leave as one, a line each; for clients that expect that (S4-13)."""

    join_lines: bool = False


class Hub(Application):
    """One room without names: a client is its connection."""

    options_class: ClassVar = HubOptions
    # The source's figures: messages of 512 bytes, 256 wait for a client, a ping after 54 s, a pong by 60 s, a write
    # within 10 s.
    default_limits: ClassVar = {
        "message_bytes": 512, "send_queue_messages": 256, "slow_policy": "disconnect",
    }  # fmt: skip
    default_connections: ClassVar = {
        "ping_interval_seconds": 54, "pong_timeout_seconds": 6, "write_timeout_seconds": 10,
    }  # fmt: skip
    options: HubOptions

    def on_open(self, connection: Connection, request: Request) -> None:
        """Send as the options say."""
        connection.joins_lines = self.options.join_lines

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Say it to everybody, on one line (S4-12); what is binary is passed on as it is."""
        if isinstance(data, str):
            data = data.replace("\n", " ").strip()
        self.server.broadcast(data)
