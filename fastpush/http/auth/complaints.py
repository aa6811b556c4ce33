"""Log lines about something outside that fails: a few, however often it does."""

import logging
import time
from collections.abc import Callable

from fastpush.log import fields

EVERY_SECONDS = 5


class Complaints:
    """Writes at most one line in EVERY_SECONDS, with the number of those left out since."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next = float("-inf")
        self._left_out = 0

    def add(self, event: str, reason: str, error: BaseException | None = None, **more: object) -> None:
        """Log `event` as a warning, or as an error with the stack of `error` but not its text; more: fields.

        An exception's text may quote what it was about (`KeyError: <the token>`), so only its type is shown.
        """
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return
        named = fields(reason=reason, **more, **({"left_out": self._left_out} if self._left_out else {}))
        self._next, self._left_out = now + EVERY_SECONDS, 0
        if error is None:
            self._log.warning(event, extra=named)
        else:
            shown = _without_text(error)
            self._log.error(event, extra=named, exc_info=(type(shown), shown, shown.__traceback__))


class WithheldError(Exception):
    """Stands in a log for an exception whose text may hold a secret."""


def _without_text(error: BaseException, depth: int = 8) -> WithheldError:
    """Return the same stack, and that of its causes, under the exceptions' types only."""
    kind = type(error)
    shown = WithheldError(f"{kind.__module__}.{kind.__qualname__}").with_traceback(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth:
        shown.__cause__ = _without_text(cause, depth - 1)
    return shown
