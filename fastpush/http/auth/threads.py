"""The threads in which a user's own function runs when it is not async, and the watch over them.

Nothing can end a thread that blocks. Who waits for it is answered in time by somebody else; here it
counts as stuck from `timeout_seconds` on, its stack is told once, and when every thread has
been stuck for `hang_seconds` the worker is told that none is left to ask.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

LOOK_SECONDS = 1.0

Outcome = tuple[Any, BaseException | None]


class Call:
    """A function and what it is called with. wanted: somebody still waits for what it returns."""

    __slots__ = ("_arguments", "_function", "wanted")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self.wanted = True

    def outcome(self) -> Outcome:
        """Return result or exception as a value: a future cannot carry StopIteration, and SystemExit ends the loop."""
        try:
            return self._function(*self._arguments), None
        except BaseException as error:  # noqa: BLE001 (handed to the loop as a value)
            return None, error


class WatchedThreads:
    """A thread pool that knows how long each thread has been at its call. Made and used on a running loop.

    on_stuck(stack): a call has taken `timeout_seconds`; once for each.  on_exhausted(): at most once.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        *,
        timeout_seconds: float,
        hang_seconds: float,
        on_stuck: Callable[[str], None],
        on_exhausted: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._threads = threads
        self._timeout_seconds = timeout_seconds
        self._hang_seconds = hang_seconds
        self._on_stuck = on_stuck
        self._on_exhausted = on_exhausted
        self._clock = clock
        # Thread -> when it took its call. Written by the threads, read by the loop: one dictionary operation each.
        self._since: dict[int, float] = {}
        self._told: dict[int, float] = {}
        self._next_look: asyncio.TimerHandle | None = None

    def submit(self, call: Call) -> asyncio.Future[Outcome]:
        """Have a thread make `call`, which is left out if nobody wants it any more when its turn comes."""
        if self._next_look is None:
            self._look_later()
        return asyncio.wrap_future(self._pool.submit(self._make, call))

    def close(self) -> None:
        """Stop watching. Calls under way end by themselves, and the threads after them."""
        self._pool.shutdown(wait=False)
        self._stop_looking()

    def _make(self, call: Call) -> Outcome:
        if not call.wanted:
            return None, None
        thread = threading.get_ident()
        self._since[thread] = self._clock()
        try:
            return call.outcome()
        finally:
            del self._since[thread]

    def _look_later(self) -> None:
        seconds = min(LOOK_SECONDS, self._timeout_seconds)
        self._next_look = asyncio.get_running_loop().call_later(seconds, self.look)

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def look(self) -> None:
        """Find threads that are stuck; look again later while any is at work."""
        self._stop_looking()
        now = self._clock()
        working = self._since.copy()
        stuck = {thread: since for thread, since in working.items() if now - since >= self._timeout_seconds}
        for thread, since in stuck.items():
            if self._told.get(thread) != since:
                self._on_stuck(stack_of(thread))
        self._told = stuck
        if len(stuck) == self._threads and now - max(stuck.values()) >= self._timeout_seconds + self._hang_seconds:
            self._on_exhausted()
        elif working:
            self._look_later()


class UnawaitedThreads(ThreadPoolExecutor):
    """For `asyncio.to_thread` in the user's async functions: a loop that ends does not wait for those that block."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (inherited)
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def stack_of(thread: int) -> str:
    """Return where a thread is, from the innermost call to the user's function: files, lines and names alone."""
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001 (documented, and the only way)
    places = []
    while frame is not None and frame.f_code is not Call.outcome.__code__:
        places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
