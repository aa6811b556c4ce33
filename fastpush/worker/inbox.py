"""A client's messages while its application is still busy with an earlier one: one after the other, in order.

A connection has an Inbox only while a coroutine of its application runs. What it holds is bounded by
receive_queue_messages and receive_queue_bytes; at the bound nothing more is read from that client (S1-11).
What one read of at most 16 KiB held already is kept on top, unless it is compressed beyond measure.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from sys import getsizeof
from time import perf_counter
from types import coroutine
from typing import Any

from fastpush.config import Limits

_ENTRY_BYTES = 64  # of a message and its place in the queue, beside its data
_OVERRUN_BYTES = 1024 * 1024  # what a read of small messages may come to


class Inbox:
    """What waits for one connection's application.

    is_paused: nothing is read from the client.  close: what `on_close` is to be told.
    limit: of the call that is waited for.
    """

    __slots__ = ("_messages", "close", "is_paused", "limit", "queued_bytes")

    def __init__(self) -> None:
        self._messages: deque[str | bytes] = deque()
        self.queued_bytes = 0
        self.is_paused = False
        self.close: tuple[int, str] | None = None
        self.limit: asyncio.Timeout | None = None

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return len(self._messages)

    def add(self, message: str | bytes) -> None:
        """Put a message behind the others."""
        self._messages.append(message)
        self.queued_bytes += getsizeof(message) + _ENTRY_BYTES  # a text takes one, two or four bytes a character

    def take(self) -> str | bytes:
        """Remove and return the oldest message."""
        message = self._messages.popleft()
        self.queued_bytes -= getsizeof(message) + _ENTRY_BYTES
        return message

    def clear(self) -> None:
        """Forget what waits."""
        self._messages.clear()
        self.queued_bytes = 0

    def end(self, code: int, reason: str, seconds: float) -> None:
        """The connection has ended: the call that is under way may take so long from now on."""
        self.close = (code, reason)
        if self.limit is not None:
            self.limit.reschedule(asyncio.get_running_loop().time() + seconds)

    def is_full(self, limits: Limits) -> bool:
        """Whether nothing more should be read."""
        return len(self) >= limits.receive_queue_messages or self.queued_bytes >= limits.receive_queue_bytes

    def is_overfull(self, limits: Limits) -> bool:
        """Whether what one read has held is beyond all measure: it was compressed."""
        return self.queued_bytes > 2 * limits.receive_queue_bytes + max(limits.message_bytes, _OVERRUN_BYTES)

    def has_room(self, limits: Limits) -> bool:
        """Whether to read again: half of it is free."""
        half_messages, half_bytes = limits.receive_queue_messages // 2, limits.receive_queue_bytes // 2
        return len(self) <= half_messages and self.queued_bytes <= half_bytes


@coroutine
def timed(awaited: Awaitable[Any], observe: Callable[[float], None]) -> Generator[Any, Any, Any]:
    """Await, and tell how long each step between two waits has held the loop, in seconds."""
    steps = awaited.__await__()
    advance, value = getattr(steps, "send", lambda _: next(steps)), None
    while True:
        began = perf_counter()
        try:
            waits_for = advance(value)
        except StopIteration as end:
            return end.value
        finally:
            observe(perf_counter() - began)
        try:
            value, advance = (yield waits_for), getattr(steps, "send", lambda _: next(steps))
        except BaseException as error:
            if not hasattr(steps, "throw"):
                raise
            value, advance = error, steps.throw
