"""One epoll and what is due: the whole event loop of a client process."""

import select
import time
from collections.abc import Callable

_EVENTS_MAX = 4096
_COARSE_SECONDS = 0.02  # epoll counts in milliseconds; shorter waits need select's microseconds
_LONGEST_NS = 50_000_000

Handler = Callable[[int], None]
Ticker = Callable[[int], int | None]


class Loop:
    """Calls handlers with the events of their file descriptors, and tickers once a turn.

    A ticker gets the monotonic time in ns and returns when it wants to be called at the latest, or None.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self.tickers: list[Ticker] = []
        self.waited_ns = 0

    def watch(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Call `handler` from now on; also to replace a handler or its events."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching, before the file descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self) -> None:
        """Call tickers, wait for events, call handlers."""
        now = time.monotonic_ns()
        due = now + _LONGEST_NS
        for ticker in tuple(self.tickers):
            wanted = ticker(now)
            if wanted is not None and wanted < due:
                due = wanted
        handlers = self._handlers
        for fd, events in self._wait(due):
            handler = handlers.get(fd)
            if handler is not None:  # one before it in this turn may have closed it
                handler(events)

    def _wait(self, due: int) -> list[tuple[int, int]]:
        began = time.monotonic_ns()
        seconds = max(0, due - began) / 1e9
        if 0 < seconds < _COARSE_SECONDS:
            select.select((self._epoll.fileno(),), (), (), seconds)
            seconds = 0
        events = self._epoll.poll(seconds, _EVENTS_MAX)
        self.waited_ns += time.monotonic_ns() - began
        return events

    def close(self) -> None:
        """Release the epoll."""
        self._epoll.close()
