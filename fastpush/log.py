"""One line an event, for people on a terminal and for machines elsewhere.

Code logs through the standard library: a short constant text, and everything that
varies in `fields`:

    log.info("closed", extra=fields(connection=c.id, user=c.user, code=1000))

Field names used throughout: worker, connection, user, event, peer, path, code,
reason, seconds. Tokens, keys and query strings are never given to a logger.
"""

import faulthandler
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fastpush.config import Log

_COLOURS = {"debug": "\033[2m", "warning": "\033[33m", "error": "\033[31m", "critical": "\033[31m"}
_root = logging.getLogger("fastpush")
_loop = logging.getLogger("asyncio")  # tells of exceptions that nobody has caught
_process = {"process": "supervisor"}


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """Return the `extra` argument of a logging call that carries `values`."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, process, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **_process,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanFormatter(logging.Formatter):
    """Local time, level, process, event, then the fields as name=value."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        named = "".join(f"  {name}={_readable(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{when}.{int(record.msecs):03d} {level:<7} {_process['process']:<10} {record.getMessage()}{named}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        if self._colour and level in _COLOURS:
            return f"{_COLOURS[level]}{line}\033[0m"
        return line


def _readable(value: Any) -> str:
    """Quote what would break the line, hide where a value ends, or move a terminal's cursor."""
    text = str(value)
    if not text.isprintable():
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=') else text


class _Output(logging.StreamHandler[IO[str]]):
    """Standard error, or a file that `reopen` opens anew (after logrotate moved it)."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__(self._open())

    def _open(self) -> IO[str]:
        # One write a line to an O_APPEND file: lines of several processes never mix.
        return Path(self._path).open("a", encoding="utf-8", buffering=1) if self._path else sys.stderr

    def reopen(self) -> None:
        if self._path:
            old = self.setStream(self._open())
            faulthandler.enable(self.stream)
            if old is not None:
                old.close()


def setup(config: Log) -> None:
    """Send all log lines where `config` says; stacks of fatal signals go there too.

    Raises: OSError when the file cannot be opened.
    """
    handler = _Output(config.file)
    terminal = not config.file and sys.stderr.isatty()
    human = config.format == "human" or (config.format == "auto" and terminal)
    handler.setFormatter(HumanFormatter(colour=terminal and "NO_COLOR" not in os.environ) if human else JsonFormatter())
    for logger in (_root, _loop):
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.propagate = False
    set_level(config.level)
    faulthandler.enable(handler.stream)


def set_level(level: str) -> None:
    """Write lines of this severity and above: debug, info, warning or error."""
    _root.setLevel(level.upper())


def set_process(name: str) -> None:
    """Name this process in every line: supervisor, broker, worker-1."""
    _process["process"] = name


def write_stacks() -> None:
    """Write where every thread of this process is, as a fatal signal does."""
    for handler in _root.handlers:
        if isinstance(handler, _Output):
            faulthandler.dump_traceback(handler.stream)


def reopen() -> None:
    """Open the log file again under its name; where that cannot be, the old one stays in use and is told."""
    for handler in _root.handlers:
        if isinstance(handler, _Output):
            try:
                handler.reopen()
            except OSError as error:
                _root.error("log file not reopened", extra=fields(path=error.filename, reason=error.strerror))
