"""For how long this machine stood still beside a test: what took so much longer is not the server's doing."""

import os
import threading
import time
from types import TracebackType
from typing import Self

EVERY_SECONDS = 0.02
NOTED_SECONDS = 0.2  # a thread may well wake up later than it asked for on a busy machine, but not by that


class Standstill:
    """Watches every processor from the with statement on: a thread on each wakes up again and again, or too late."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._watches = [_Watch(processor, self._over) for processor in sorted(os.sched_getaffinity(0))]

    def __enter__(self) -> Self:
        for watch in self._watches:
            watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        for watch in self._watches:
            watch.join()

    @property
    def seconds(self) -> float:
        """All in all so far, of the processor that stood still for longest."""
        return self.within(0, time.monotonic())

    def within(self, began: float, ended: float) -> float:
        """Return the same for a stretch of time.monotonic()."""
        return max(watch.within(began, ended) for watch in self._watches)


class _Watch(threading.Thread):
    """Of one processor. pauses: when it should have woken up, and did."""

    def __init__(self, processor: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._processor = processor
        self._over = over
        self._due = time.monotonic() + EVERY_SECONDS
        self._pauses: list[tuple[float, float]] = []

    def run(self) -> None:
        os.sched_setaffinity(0, {self._processor})  # of this thread alone
        is_over = False
        while not is_over:
            self._due = time.monotonic() + EVERY_SECONDS
            is_over = self._over.wait(EVERY_SECONDS)
            now = time.monotonic()
            if now - self._due > NOTED_SECONDS:
                self._pauses.append((self._due, now))

    def within(self, began: float, ended: float) -> float:
        pauses = list(self._pauses)
        if not self._over.is_set() and time.monotonic() - self._due > NOTED_SECONDS:  # one that it has not noted yet
            pauses.append((self._due, time.monotonic()))
        return sum(max(0.0, min(until, ended) - max(since, began)) for since, until in pauses)
