"""The name of one request, in its response's X-Request-Id and in the log lines about it.

A client or proxy may give its own: 1 to 64 letters, digits, dots, underscores and dashes. Anything else is ignored,
so that nobody writes into our log what a reader of it might take for something else.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Mapping

_ID = "[A-Za-z0-9._-]{1,64}"
_is_id = re.compile(_ID).fullmatch
_find = re.compile(rf"\r\nx-request-id:[ \t]*({_ID})[ \t]*\r\n".encode(), re.IGNORECASE).search


class RequestIds:
    """Makes ids for requests that bring none: random a process, and a serial number.

    new(): returns an id that no other request has; without a call of Python code, for every push asks for one.
    """

    __slots__ = ("new",)

    def __init__(self) -> None:
        self.new: Callable[[], str] = map(f"{secrets.token_hex(5)}-%d".__mod__, itertools.count(1)).__next__

    def of(self, headers: Mapping[str, str]) -> str:
        """Return the request's own id, or a new one. headers: by lower-case names."""
        own = headers.get("x-request-id")
        return own if own is not None and _is_id(own) else self.new()

    def of_head(self, data: bytes) -> str:
        """Return the same for a whole head that nobody is going to parse."""
        own = _find(data)
        return own[1].decode() if own is not None else self.new()
