"""Names that one connection of the whole host may have: the newest wins, and its predecessor is told.

What an older connection does at its end never touches the newer one: a name is given back only
by the claim that holds it.
"""

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Holder = TypeVar("Holder", bound=Hashable)


class Claim(NamedTuple, Generic[Holder]):
    """Who has a name. number: later claims have larger ones, of whatever name."""

    holder: Holder
    connection: int
    number: int


class Claims(Generic[Holder]):
    """Claims by name. Holders are few (worker links), names are many."""

    def __init__(self) -> None:
        self._claims: dict[bytes, Claim[Holder]] = {}
        self._names: dict[Holder, set[bytes]] = {}

    def __len__(self) -> int:
        """Return the number of names that somebody has."""
        return len(self._claims)

    def claim(self, name: bytes, claim: Claim[Holder]) -> Claim[Holder] | None:
        """Give `name` to the newer of its claims; return the one that has to go, if there are two connections.

        A claim that is told again, by a holder that has come back, is the same claim.
        """
        held = self._claims.get(name)
        if held is not None and held.number > claim.number:
            return claim
        if held is not None:
            self._names[held.holder].discard(name)
        self._claims[name] = claim
        self._names.setdefault(claim.holder, set()).add(name)
        if held is None or held.number == claim.number:
            return None
        is_same = held.connection == claim.connection and held.holder == claim.holder
        return None if is_same else held

    def release(self, holder: Holder, name: bytes, connection: int) -> None:
        """Give a name back; what is another's by now stays the other's."""
        held = self._claims.get(name)
        if held is not None and held.holder == holder and held.connection == connection:
            del self._claims[name]
            self._names[holder].discard(name)

    def forget(self, holder: Holder) -> None:
        """Give back all of a holder's names; cost O(its names)."""
        for name in self._names.pop(holder, ()):
            del self._claims[name]
