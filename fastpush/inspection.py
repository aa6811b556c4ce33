"""What a process is doing: its threads' stacks and its asyncio tasks, told while it goes on.

Whoever asks over the supervisor's channel gets a report (protocol/control.py), whoever sends SIGUSR1 finds the
same in the log. Everything is cut to a size, and nothing of what is sent or received is in it.
"""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from fastpush.log import fields
from fastpush.protocol import control
from fastpush.protocol.insight import TEXT_CHARACTERS_MAX, cut

log = logging.getLogger("fastpush.inspection")

ENTRIES_BYTES_MAX = control.MESSAGE_BYTES_MAX - 1024
FRAMES_MAX = 40
NAMES_MAX = 10
LOGGED_MAX = 50  # entries of a report that go to the log

_EVENTS: dict[control.Subject, str] = {
    "stacks": "stack found",
    "tasks": "tasks found",
    "connections": "connection found",
}


class Report(NamedTuple):
    """What there is to tell of one subject. total: number of entries there are, told or not."""

    total: int
    entries: Sequence[msgspec.Struct]


Tell = Callable[[int], Report]
"""Makes a report of at most so many entries, the most telling first."""


class Inspector:
    """Tells what this process is doing, on its running event loop.

    send: to the supervisor.  more: of what beside stacks and tasks, by subject.
    """

    def __init__(
        self, send: Callable[[control.Inspected], None], more: Mapping[control.Subject, Tell] | None = None
    ) -> None:
        self._send = send
        self._subjects: dict[control.Subject, Tell] = {"tasks": tasks, **(more or {})}
        self._loop = asyncio.get_running_loop()
        self._is_due = False

    def open(self) -> None:
        """From now on write to the log at SIGUSR1: the stacks at once, the rest when the loop comes to it."""
        signal.signal(signal.SIGUSR1, self._on_sigusr1)

    def answer(self, message: control.Inspect) -> None:
        """Answer the supervisor."""
        tell = stacks if message.subject == "stacks" else self._subjects[message.subject]
        report = tell(message.limit)
        self._send(control.Inspected(message.request, report.total, encode_entries(report.entries)))

    def _on_sigusr1(self, number: int, frame: FrameType | None) -> None:
        # Not by add_signal_handler, which hears nothing from a blocked loop, and whose end is the default: death.
        on_sigusr1(number, frame)
        if not self._is_due and not self._loop.is_closed():
            self._is_due = True
            self._loop.call_soon_threadsafe(self._write)

    def _write(self) -> None:
        self._is_due = False
        for subject, tell in self._subjects.items():
            write(subject, tell(LOGGED_MAX))


_is_writing = False


def on_sigusr1(_: int, frame: FrameType | None) -> None:
    """Write the stacks to the log: a signal handler, for a process that has no loop yet or whose loop is blocked.

    The stacks are read between two steps of the interpreter: faulthandler, which need not wait for that, reads frames
    while they change, and with its `register` one signal in some hundred ended a busy process. What it alone could
    tell of, a loop that is inside of C code for hang_seconds, comes with the supervisor's SIGABRT.
    """
    global _is_writing  # noqa: PLW0603 (of this process, as signals are)
    if _is_writing:
        return  # many signals at once: one inside the other they would fill this thread's stack
    _is_writing = True
    try:
        write("stacks", stacks(LOGGED_MAX, frame))
    except Exception:
        log.exception("stacks not written")  # anywhere else it would be raised out of what was interrupted
    finally:
        _is_writing = False


def write(subject: control.Subject, report: Report) -> None:
    """Write a report to the log, whatever the log's level: somebody has asked."""
    level = max(logging.INFO, log.getEffectiveLevel())
    log.log(level, "inspected", extra=fields(subject=subject, total=report.total, shown=len(report.entries)))
    for entry in report.entries:
        values = msgspec.structs.asdict(entry)
        texts = {name: " < ".join(value) if isinstance(value, list) else value for name, value in values.items()}
        log.log(level, _EVENTS[subject], extra=fields(**texts))


def encode_entries(entries: Iterable[msgspec.Struct], size_max: int = ENTRIES_BYTES_MAX) -> msgspec.Raw:
    """Return the JSON list of as many of `entries`, from the first on, as fit into `size_max` bytes."""
    encoded: list[bytes] = []
    size = 1  # of the brackets, and a comma less than entries
    for entry in entries:
        text = msgspec.json.encode(entry)
        size += len(text) + 1
        if size > size_max:
            break
        encoded.append(text)
    return msgspec.Raw(b"[%b]" % b",".join(encoded))


def stacks(limit: int, frame: FrameType | None = None) -> Report:
    """Return where every thread of this process is, as Stack entries, the thread that asks first.

    frame: where that one was when it was interrupted to ask; None: the call of this function is shown.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    asks = threading.get_ident()
    frames = sys._current_frames()  # noqa: SLF001 (documented, and the only way)
    frames[asks] = frame or frames[asks]
    entries = []
    for ident in sorted(frames, key=lambda ident: ident != asks)[:limit]:
        places, depth = _places(_outwards(frames[ident]))
        entries.append(control.Stack(cut(names.get(ident, f"thread {ident}")), places, depth, ident == asks))
    return Report(len(frames), entries)


def tasks(limit: int) -> Report:
    """Return the running loop's tasks as Tasks entries, those of the largest number first; total counts entries."""
    alike: dict[tuple[str, tuple[str, ...], int], list[asyncio.Task[Any]]] = {}
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        places, depth = _places(reversed(list(_inwards(coroutine))))
        alike.setdefault((cut(_name_of(coroutine)), tuple(places), depth), []).append(task)
    largest = sorted(alike.items(), key=lambda item: (-len(item[1]), item[0]))
    entries = [
        control.Tasks(
            len(found), coroutine, sorted(cut(task.get_name()) for task in found[:NAMES_MAX]), [*places], depth
        )
        for (coroutine, places, depth), found in largest[:limit]
    ]
    return Report(len(largest), entries)


def _places(frames: Iterable[Any]) -> tuple[list[str], int]:
    """Return where the innermost of `frames` are, which come innermost first, and how many there are."""
    found: list[str] = []
    depth = 0
    for depth, (code, line) in enumerate(frames, 1):
        if depth <= FRAMES_MAX:
            path = code.co_filename
            kept = path if len(path) <= TEXT_CHARACTERS_MAX else f"…{path[1 - TEXT_CHARACTERS_MAX :]}"
            found.append(f"{cut(kept)}:{line} in {cut(code.co_qualname)}")
    return found, depth


def _outwards(frame: Any) -> Iterator[tuple[Any, int]]:
    """Yield code and line of a frame and its callers, as far as to the fork that this process was born in."""
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("fastpush.supervisor."):
        yield frame.f_code, frame.f_lineno
        frame = frame.f_back


def _inwards(awaited: Any) -> Iterator[tuple[Any, int]]:
    """Yield code and line of a suspended coroutine, of what it awaits, and so on."""
    while awaited is not None:
        for prefix, inner in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
            frame = getattr(awaited, f"{prefix}_frame", None)
            if frame is not None:
                yield frame.f_code, frame.f_lineno
                awaited = getattr(awaited, inner)
                break
        else:
            return


def _name_of(coroutine: Any) -> str:
    return getattr(coroutine, "__qualname__", None) or type(coroutine).__qualname__
