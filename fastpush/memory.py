"""Gives the memory of what has gone back to the system: closed connections, forgotten channels.

glibc keeps what was freed for later; after many connections have closed that may be most
of a process. Once enough has gone it is told to return whole free pages.
"""

import ctypes
from collections.abc import Callable

TRIM_GONE = 1000
TRIM_SECONDS = 10


def _malloc_trim() -> None:
    """glibc's malloc_trim(3): about 1 ms for each 50 MB of heap."""
    _libc.malloc_trim(0)


_libc = ctypes.CDLL(None)


class Trimmer:
    """Trims at most once in TRIM_SECONDS, when TRIM_GONE connections, or channels, have gone since the last time."""

    def __init__(self, trim: Callable[[], None] = _malloc_trim) -> None:
        self._trim = trim
        self._gone = 0
        self._seconds = 0

    def end_second(self, gone: int) -> None:
        """Look again; called once a second with the number of those that have gone so far."""
        self._seconds += 1
        if self._seconds >= TRIM_SECONDS and gone - self._gone >= TRIM_GONE:
            self._gone = gone
            self._seconds = 0
            self._trim()
