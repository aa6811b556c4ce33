"""Log lines about refused requests and handshakes: one each while they are few, else one a second about the others."""

import logging
from collections import Counter
from typing import Any

from fastpush.log import fields
from fastpush.state.rate import TokenBucket

_LINES_A_SECOND = 10


class RefusalLog:
    """Writes what was refused, of one kind.

    what: "request": the lines are "request refused" and "requests refused".
    """

    def __init__(self, what: str, log: logging.Logger, now: float) -> None:
        self._what = what
        self._log = log
        self._lines = TokenBucket(_LINES_A_SECOND, now)
        self._others: Counter[str] = Counter()

    def add(self, outcome: str, now: float, **described: Any) -> None:
        """Write a line about one of them, or count it."""
        if self._lines.take(now):
            self._log.info("%s refused", self._what, extra=fields(**described))
        else:
            self._others[outcome] += 1

    def count(self, outcome: str) -> None:
        """Count one that is not worth a line of its own."""
        self._others[outcome] += 1

    def end_second(self) -> None:
        """Write the line about what was only counted."""
        if self._others:
            self._log.info("%ss refused", self._what, extra=fields(total=self._others.total(), **self._others))
            self._others.clear()
