"""What a WebSocket path is made of: an application, and the connections it is given."""

from collections.abc import Mapping
from typing import Protocol

from fastpush.errors import CloseCode
from fastpush.fanout import Receiver


class Connection(Receiver, Protocol):
    """An open WebSocket as an application sees it.

    user: "" until it registers.  headers: of the upgrade request, those that authentication wants.
    must_register: whether it is closed when it registers nothing in time.
    failure: why the last registration was not taken.  expires_at: unix seconds, when the token ends.
    """

    peer: str
    headers: Mapping[str, str]
    wants_confirm: bool
    must_register: bool
    failure: Exception | None
    expires_at: float | None

    @property
    def id(self) -> str:
        """Unique among all connections of all workers."""
        ...

    def send(self, frame: bytes) -> bool:
        """Take a frame for writing; False when it cannot. Never raises, never changes groups."""
        ...

    def pause_reading(self) -> None:
        """Hold back later messages until `resume_reading`."""
        ...

    def resume_reading(self) -> None:
        """Hand over what was held back and read on."""
        ...

    def plan(self) -> None:
        """Have a changed deadline noticed."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether messages may still be sent."""
        ...


class Application(Protocol):
    """What a WebSocket path does with its messages. One object serves all its connections."""

    def on_open(self, connection: Connection) -> None:
        """The connection is open; nothing has been read from it yet."""
        ...

    def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Take a message: str for text, bytes for binary."""
        ...

    def close_reason(self, connection: Connection) -> tuple[CloseCode, str]:
        """Say how a connection that had to register and did not is closed."""
        ...
