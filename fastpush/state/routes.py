"""Routing: which subscribers want a key, and which keys a subscriber wants.

The two maps are kept in step: a key without subscribers is removed at once, so a
million short-lived keys leave nothing behind, and a subscriber that goes takes
exactly its own keys with it.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

Subscriber = TypeVar("Subscriber", bound=Hashable)
_SHARED_MAX = 2


class Routes(Generic[Subscriber]):
    """The broker's table. Subscribers are few (worker links), keys are many."""

    def __init__(self) -> None:
        self._keys: dict[Subscriber, set[bytes]] = {}
        # Tuples of subscribers, shared between keys: one reference a key, not one container.
        self._subscribers: dict[bytes, tuple[Subscriber, ...]] = {}
        self._shared: dict[tuple[Subscriber, ...], tuple[Subscriber, ...]] = {}

    def __len__(self) -> int:
        """Return the number of keys that somebody wants."""
        return len(self._subscribers)

    def subscribers(self, key: bytes) -> tuple[Subscriber, ...]:
        """Return who wants `key`; cost O(1)."""
        return self._subscribers.get(key, ())

    def keys(self, subscriber: Subscriber) -> frozenset[bytes]:
        """Return what `subscriber` wants."""
        return frozenset(self._keys.get(subscriber, ()))

    def add(self, subscriber: Subscriber, key: bytes) -> None:
        """Route `key` to `subscriber`; again changes nothing."""
        keys = self._keys.setdefault(subscriber, set())
        if key in keys:
            return
        keys.add(key)
        self._subscribers[key] = self._share((*self._subscribers.get(key, ()), subscriber))

    def discard(self, subscriber: Subscriber, key: bytes) -> None:
        """Stop routing `key` to `subscriber`; an unknown one changes nothing."""
        keys = self._keys.get(subscriber)
        if keys is None or key not in keys:
            return
        keys.remove(key)
        self._withdraw(subscriber, key)

    def remove(self, subscriber: Subscriber) -> None:
        """Forget `subscriber` and all its keys; cost O(its keys)."""
        for key in self._keys.pop(subscriber, ()):
            self._withdraw(subscriber, key)
        self._shared = {shared: shared for shared in self._shared if subscriber not in shared}

    def _withdraw(self, subscriber: Subscriber, key: bytes) -> None:
        # By way of a list, as in Hub: what a generator makes changes its size, which Python's free lists do not see.
        rest = tuple([other for other in self._subscribers[key] if other != subscriber])
        if rest:
            self._subscribers[key] = self._share(rest)
        else:
            del self._subscribers[key]

    def _share(self, subscribers: tuple[Subscriber, ...]) -> tuple[Subscriber, ...]:
        # Larger groups are rare, but come in so many orders that the shared ones would pile up.
        if len(subscribers) > _SHARED_MAX:
            return subscribers
        return self._shared.setdefault(subscribers, subscribers)
