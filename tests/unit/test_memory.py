"""When memory goes back to the system, and that clients of channels leave nothing for the collector."""

import gc
import weakref
from typing import Any

from fastpush.channels.endpoint import ClientProtocol
from fastpush.config import Config
from fastpush.memory import TRIM_GONE, TRIM_SECONDS, Trimmer
from fastpush.metrics import Counters


def trims_of(gone_by_second: list[int]) -> list[int]:
    """Return the seconds, from 1 on, in which memory is given back."""
    trims: list[int] = []
    seconds = 0
    trimmer = Trimmer(lambda: trims.append(seconds))
    for gone in gone_by_second:
        seconds += 1
        trimmer.end_second(gone)
    return trims


def test_few_that_have_gone_are_not_worth_it() -> None:
    """Memory is given back only once TRIM_GONE have gone, however long that takes."""
    assert trims_of([TRIM_GONE - 1] * 3 * TRIM_SECONDS) == []


def test_many_are_waited_for() -> None:
    """However many go, memory is given back at most once in TRIM_SECONDS."""
    assert trims_of([TRIM_GONE * second for second in range(1, 2 * TRIM_SECONDS + 1)]) == [
        TRIM_SECONDS,
        2 * TRIM_SECONDS,
    ]


def test_who_has_gone_counts_once() -> None:
    """After memory was given back as many have to go again."""
    assert trims_of([TRIM_GONE] * 3 * TRIM_SECONDS) == [TRIM_SECONDS]


class Host:
    """A worker that has nothing planned."""

    def cancel(self, client: Any) -> None:
        """Nothing was."""


class Connection:
    """A connection of which only `data` is asked."""

    data: Any = False
    unregistered: Any = None


def test_a_client_that_has_gone_is_freed_without_the_collector() -> None:
    """A connection and its client do not hold each other once it has closed: collections are rare."""
    nothing: Any = None
    host: Any = Host()
    endpoint = ClientProtocol(nothing, host, Counters(), Config(), nothing, nothing, None)
    connection = Connection()
    gone = weakref.ref(connection)
    gc.disable()
    try:
        endpoint.on_open(connection, nothing)
        endpoint.on_close(connection, 1000, "")
        del connection
        assert gone() is None
    finally:
        gc.enable()
