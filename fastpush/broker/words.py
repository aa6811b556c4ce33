"""How findings are worded: names in quotes, durations, places; escaped where they hold what does not print."""

import json
from collections.abc import Sequence

from fastpush.protocol.insight import Note

_NAMES_SHOWN = 5
_LENGTHS = ((172800, 86400, "days"), (7200, 3600, "h"), (120, 60, "min"))
_PRECISE_SECONDS = 10


def quoted(text: str) -> str:
    """Return `text` in quotes, escaped where it holds what does not print."""
    return f'"{text}"' if text.isprintable() else json.dumps(text)


def length(seconds: float) -> str:
    """Return a duration in words: 0.4 s, 12 s, 5 min."""
    for least, unit_seconds, unit in _LENGTHS:
        if seconds >= least:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{max(seconds, 0):.1f} s" if seconds < _PRECISE_SECONDS else f"{seconds:.0f} s"


def were(number: int) -> str:
    """Return the verb for so many."""
    return "was" if number == 1 else "were"


def capital(text: str) -> str:
    """Return `text` as a sentence begins."""
    return text[:1].upper() + text[1:]


def names_of(names: Sequence[str], *, quote: bool = True) -> str:
    """Return the first names, and how many more there are."""
    shown = [quoted(name) if quote else name for name in names[:_NAMES_SHOWN]]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def with_event(event: str) -> str:
    """Name an event; "" for none."""
    return f" with event {quoted(event)}" if event else ""


def on_path(note: Note) -> str:
    """Name the path that a note is of; "" for none."""
    return f" on {note.path if note.path.isprintable() else quoted(note.path)}" if note.path else ""


def place_of(note: Note) -> str:
    """Name peer, path and worker of a note."""
    peer = f" from {note.peer}" if note.peer else ""
    return f"{peer}{on_path(note)} (worker-{note.worker})"


def answer_of(note: Note) -> str:
    """Return what was answered, and why."""
    code = str(note.code) if note.code else ""
    return f" ({code}{reason_of(note) if code else reason_of(note)[2:]})" if code or note.reason else ""


def reason_of(note: Note) -> str:
    """Return the reason in a note behind a colon; "" for none."""
    reason = note.reason.removesuffix("; nobody received the push")  # which is said of all that are refused
    return f": {reason if reason.isprintable() else quoted(reason)}" if reason else ""
