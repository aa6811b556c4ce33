"""The parent process: owns processes and listening sockets, never sees an event."""
