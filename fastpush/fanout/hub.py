"""Which local connections want a routing key, and what the broker is told of it.

A group is the local connections of one key. The broker is told a key by its first
connection here and untold by its last.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from fastpush.config import Compression, Fanout
from fastpush.fanout.batch import Receiver
from fastpush.fanout.pump import SMALL_GROUP, Counted, Pump
from fastpush.metrics import Counters
from fastpush.protocol.bus import Publication
from fastpush.protocol.push import is_user_key, parse_user_key

if TYPE_CHECKING:
    from fastpush.fanout.pump import Flow

_T = TypeVar("_T")


class Group:
    """The local connections of one routing key.

    members: a tuple while they are few, which is what most groups stay, else a dict; in the order of joining.
    flow: what is on its way to them; None for nothing.
    holds: handshakes under way that keep the key announced before they have a connection.
    """

    __slots__ = ("confirmed", "flow", "holds", "key", "members", "waiters")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.members: tuple[Receiver, ...] | dict[Receiver, None] = ()
        self.flow: Flow | None = None
        self.holds = 0
        self.confirmed = False
        self.waiters: list[Callable[[], object]] | None = None

    def add(self, receiver: Receiver) -> bool:
        """Make `receiver` a member; False when it is one."""
        members = self.members
        if receiver in members:
            return False
        if isinstance(members, dict):
            members[receiver] = None
        elif len(members) < SMALL_GROUP:
            self.members = (*members, receiver)
        else:
            self.members = dict.fromkeys((*members, receiver))
        return True

    def discard(self, receiver: Receiver) -> None:
        """Make `receiver` no member."""
        if isinstance(self.members, dict):
            self.members.pop(receiver, None)
        else:
            self.members = _without(self.members, receiver)

    def confirm(self) -> None:
        """The broker knows the key: every push it takes from now on comes here."""
        self.confirmed = True
        waiters, self.waiters = self.waiters, None
        for waiter in waiters or ():
            waiter()


class Hub:
    """All groups of a worker.

    announce(key, confirmed): tell the broker; `confirmed` is called when it knows.
    withdraw(key): tell the broker that nobody here wants it any more.
    write_bytes: most of one write, if it is not one message.
    find(number): the receiver of this `connection_number`, if it is here: a publication may spare one.
    """

    def __init__(
        self,
        announce: Callable[[bytes, Callable[[], None]], None],
        withdraw: Callable[[bytes], None],
        *,
        fanout: Fanout,
        compression: Compression,
        write_bytes: int,
        counters: Counters,
        find: Callable[[int], Receiver | None] = lambda _: None,
    ) -> None:
        self._find = find
        self._announce = announce
        self._withdraw = withdraw
        self._groups: dict[bytes, Group] = {}
        self._users: dict[str, list[Receiver]] = {}
        self._slow: list[Receiver] = []
        self._pump = Pump(fanout, compression, counters, write_bytes=write_bytes)

    def configure(self, fanout: Fanout, compression: Compression) -> None:
        """Write by these settings from the next flush on."""
        self._pump.configure(fanout, compression)

    def __len__(self) -> int:
        """Return the number of keys with a subscriber here."""
        return len(self._groups)

    def keys(self) -> Iterable[bytes]:
        """Return every key that is announced: the key table a new broker needs."""
        return self._groups.keys()

    def groups(self) -> Iterable[Group]:
        """Return every group."""
        return self._groups.values()

    def members(self, key: bytes) -> Collection[Receiver]:
        """Return the local connections of a key."""
        group = self._groups.get(key)
        return () if group is None else group.members

    def hold(self, key: bytes) -> Group:
        """Announce `key` for a connection that will join; pair with `release`."""
        group = self._group(key)
        group.holds += 1
        return group

    def release(self, group: Group) -> None:
        """Give up one hold."""
        group.holds -= 1
        self._forget_if_empty(group)

    def when_confirmed(self, group: Group, call: Callable[[], object]) -> None:
        """Call once the broker has confirmed the group's key, which it has not yet."""
        if group.waiters is None:
            group.waiters = []
        group.waiters.append(call)

    def join(self, receiver: Receiver, key: bytes) -> Group:
        """Let `receiver` have every later publication of `key`; again changes nothing.

        Its user, "" for nobody, must be known by the first one and stays the same.
        """
        group = self._group(key)
        if group.add(receiver):
            if not receiver.groups and receiver.user:
                self._users.setdefault(receiver.user, []).append(receiver)
            receiver.groups = (*receiver.groups, group)
            self._pump.welcome(group, receiver)
        return group

    def leave(self, receiver: Receiver) -> None:
        """Give `receiver` what is on its way to it, and take it out of all its groups; again changes nothing."""
        groups, receiver.groups = receiver.groups, ()
        for group in groups:
            self._take_out(receiver, group)
        if groups:
            self._forget_user(receiver)

    def leave_one(self, receiver: Receiver, key: bytes) -> None:
        """The same for one key; what it is not in changes nothing."""
        group = self._groups.get(key)
        if group is None or group not in receiver.groups:
            return
        receiver.groups = _without(receiver.groups, group)
        self._take_out(receiver, group)
        if not receiver.groups:
            self._forget_user(receiver)

    def _take_out(self, receiver: Receiver, group: Group) -> None:
        if group.flow is not None:
            self._pump.settle(group, receiver)
        group.discard(receiver)
        self._forget_if_empty(group)

    def _forget_user(self, receiver: Receiver) -> None:
        if receiver.user:
            of_user = self._users[receiver.user]
            of_user.remove(receiver)
            if not of_user:
                del self._users[receiver.user]

    def _group(self, key: bytes) -> Group:
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key)
            self._announce(key, group.confirm)
        return group

    def _forget_if_empty(self, group: Group) -> None:
        if not group.members and not group.holds:
            if group.flow is not None:
                self._pump.forget(group)
            del self._groups[group.key]
            self._withdraw(group.key)

    def connections(self, user: str, event: str | None) -> list[Receiver]:
        """Return the local connections of `user`, with `event` only those registered for it."""
        of_user = self._users.get(user, ())
        if event is None:
            return list(of_user)
        return [receiver for receiver in of_user if (user, event) in _registrations(receiver)]

    def deliver(self, publication: Publication, counted: Counted) -> None:
        """Write the publication to every local receiver, once to each.

        `counted` is called with the number of those that took it: at once, or when a busy key has been written to.
        """
        keys = publication.keys
        spared = self._find(publication.spared) if publication.spared else None
        if len(keys) == 1:
            group = self._groups.get(keys[0])
            if group is None:
                counted(0)
            elif group.flow is None and len(group.members) <= SMALL_GROUP:
                members = group.members
                if spared is not None:
                    members = tuple(member for member in members if member is not spared)
                self._pump.write(members, publication, counted)
            else:
                self._pump.add(group, publication, counted, spared)
            return
        groups = [self._groups[key] for key in keys if key in self._groups]
        self._pump.add_to_several(groups, publication, counted, spared)

    def mark_slow(self, receiver: Receiver) -> None:
        """Have `receiver` closed in the next turn of the loop, when no receivers are walked."""
        if not self._slow:
            asyncio.get_running_loop().call_soon(self._close_slow)
        self._slow.append(receiver)

    def _close_slow(self) -> None:
        slow, self._slow = self._slow, []
        for receiver in slow:
            receiver.close_slow()


def _registrations(receiver: Receiver) -> Iterator[tuple[str, str]]:
    return (parse_user_key(group.key) for group in receiver.groups if is_user_key(group.key))


def _without(members: tuple[_T, ...], left: _T) -> tuple[_T, ...]:
    # By way of a list: made by a generator it would take its memory at one size and give it back at another, and
    # Python keeps thousands of each size for tuples to come.
    return tuple([member for member in members if member is not left])
