"""Bindings that others stand in for while something is looked at, so that nobody pays who does not look."""

from collections.abc import Callable, MutableMapping
from typing import Any

_ABSENT = object()


class Swaps:
    """What has been replaced, and how it was before.

    A method that is replaced in one object is found there by whoever calls it through the object; who has taken a
    bound method before goes on with the original one.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        """Return whether anything is replaced."""
        return bool(self._undo)

    def attribute(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Have `make(original)` stand for an attribute of an object or a module."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, make(getattr(owner, name)))
        self._undo.append(lambda: delattr(owner, name) if before is _ABSENT else setattr(owner, name, before))

    def item(self, owner: MutableMapping[Any, Any], key: Any, make: Callable[[Any], Any]) -> None:
        """Have `make(original)` stand for an entry."""
        before = owner[key]
        owner[key] = make(before)
        self._undo.append(lambda: owner.__setitem__(key, before))

    def undo(self) -> None:
        """Put everything back, the last one first; again does nothing."""
        undo, self._undo = self._undo, []
        for put_back in reversed(undo):
            put_back()
