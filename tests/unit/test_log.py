"""Log lines for machines and people."""

import io
import json
import logging
import sys

import pytest

from fastpush.log import HumanFormatter, JsonFormatter, fields, set_process


def _record(**values: object) -> logging.LogRecord:
    record = logging.LogRecord("fastpush.test", logging.WARNING, __file__, 1, "connection closed", (), None)
    record.__dict__.update(fields(**values))
    return record


def test_json_line_is_one_object() -> None:
    """A JSON line holds time in UTC, level, process, event and the fields, whatever is in them."""
    set_process("worker-3")
    line = JsonFormatter().format(_record(user="a\nb\x1b[31m", code=1000))
    assert "\n" not in line and "\x1b" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "warning", "process": "worker-3", "event": "connection closed", "user": "a\nb\x1b[31m", "code": 1000
    }  # fmt: skip


def test_human_line_cannot_be_forged() -> None:
    """A value with line breaks or control characters is quoted: it neither begins a line nor moves the cursor."""
    line = HumanFormatter(colour=False).format(
        _record(user='x\n00:00:00.000 error forged="1"', reason="\x1b[2J", empty="")
    )
    assert "\n" not in line and "\x1b" not in line
    assert 'empty=""' in line


def test_exception_is_part_of_the_line() -> None:
    """A logged exception is in the JSON object, not behind it."""
    try:
        int("broken")
    except ValueError:
        record = _record()
        record.exc_info = sys.exc_info()
    assert "ValueError: invalid literal" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.mark.parametrize(("colour", "found"), [(True, True), (False, False)])
def test_colour_only_on_request(*, colour: bool, found: bool) -> None:
    """Colour marks warnings on a terminal and stands in no file."""
    assert ("\033[" in HumanFormatter(colour=colour).format(_record())) is found


def test_a_line_is_written_whole() -> None:
    """Each line reaches its stream in one write, so lines of several processes do not mix."""
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    handler = logging.StreamHandler(Stream())
    handler.setFormatter(JsonFormatter())
    handler.handle(_record(user="x" * 5000))
    assert len(writes) == 1
