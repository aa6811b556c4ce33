"""fastpush: a WebSocket push server for one Linux host, on all of its cores."""

__version__ = "0.1.0"
