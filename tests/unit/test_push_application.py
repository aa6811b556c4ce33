"""The simple protocol's application, with a connection that records what it is sent."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fastpush.applications.push import Push
from fastpush.config import Limits
from fastpush.errors import RegistrationError, TokenRejected
from fastpush.fanout import PLAIN, Group
from fastpush.http.auth import Identity
from fastpush.http.auth.tables import TokenIsUser
from fastpush.metrics import Counters
from fastpush.protocol.frames import text_frame
from fastpush.protocol.push import registered_text
from tests.unit.test_fanout import make_hub


class Recorder:
    """A connection as an application sees it."""

    def __init__(self) -> None:
        self.user = ""
        self.groups: tuple[Group, ...] = ()
        self.id = "recorder"
        self.wants_confirm = True
        self.headers: dict[str, str] = {}
        self.failure: Exception | None = None
        self.form = PLAIN
        self.expires_at: float | None = None
        self.sent: list[bytes] = []

    def send_frame(self, frame: bytes) -> bool:
        self.sent.append(frame)
        return True


@pytest.mark.parametrize(
    ("message", "error", "event"),
    [
        ("no JSON", RegistrationError, ""),
        (f'{{"token":"{"x" * 513}","event":"news"}}', TokenRejected, "news"),
        ('{"token":"jack","event":7}', RegistrationError, ""),
    ],
)
def test_a_registration_that_is_not_taken_is_told_of(message: str, error: type[Exception], event: str) -> None:
    """To whoever notes it, with the connection, the failure and the event, as far as that was read."""
    told: list[tuple[Any, ...]] = []
    hub = make_hub(lambda _, confirmed: confirmed())
    push = Push(hub, Limits(), Counters(), TokenIsUser(512), SimpleNamespace(per_user=0), lambda *a: told.append(a))
    connection = Recorder()
    push.on_message(connection, message)
    ((to, code, failure, what),) = told
    assert (to, code, type(failure), what) == (connection, 0, error, event)
    push.on_message(connection, '{"token":"jack","event":"news"}')
    assert len(told) == 1


def test_a_repeated_event_waits_for_one_confirmation() -> None:
    """An event that is registered again and again while the broker is away adds nothing that waits for it."""
    announced: list[Callable[[], None]] = []
    hub = make_hub(lambda _, confirmed: announced.append(confirmed))
    push = Push(hub, Limits(), Counters(), token_auth=None, user_counts=None, on_refused=lambda *_: None)
    connection = Recorder()
    for _ in range(1000):
        push.enter(connection, Identity("jack"), ("topic1",))
    group = next(group for group in connection.groups if group.key != b"*")
    assert len(group.waiters) == 1
    for confirmed in announced:
        confirmed()
    assert connection.sent == [text_frame(registered_text("topic1"))]
    push.enter(connection, Identity("jack"), ("topic1",))
    assert len(connection.sent) == 2, "once the broker knows it, every registration is answered"
