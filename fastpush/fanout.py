"""Fan-out: which local connections want a routing key, and one frame to all of them.

A group is the local connections of one key. The broker is told a key by its first
connection here and untold by its last. A frame is built once by the worker that took
the push; here the same `bytes` object goes to every receiver and every send queue.
While a group is walked nothing may change it: receivers only mark themselves, and are
closed after the walk.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from fastpush.errors import CloseCode
from fastpush.protocol.bus import Publication
from fastpush.protocol.frames import payload_of, text_frame
from fastpush.protocol.push import EVERYBODY, envelope, parse_user_key


class Receiver(Protocol):
    """What the hub needs of a connection."""

    user: str
    groups: "tuple[Group, ...]"
    wants_envelope: bool

    def send(self, frame: bytes) -> bool:
        """Take a frame for writing; False when it cannot. Never raises, never changes groups."""
        ...

    def close(self, code: CloseCode, reason: str) -> None:
        """Leave all groups and begin the close handshake; again does nothing."""
        ...

    def close_slow(self) -> None:
        """End this connection; called after the walk in which it marked itself."""
        ...


class Group:
    """The local connections of one routing key.

    holds: handshakes under way that keep the key announced before they have a connection.
    """

    __slots__ = ("confirmed", "holds", "key", "members", "waiters")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.members: set[Receiver] = set()
        self.holds = 0
        self.confirmed = False
        self.waiters: list[Callable[[], object]] | None = None

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
    """

    def __init__(
        self, announce: Callable[[bytes, Callable[[], None]], None], withdraw: Callable[[bytes], None]
    ) -> None:
        self._announce = announce
        self._withdraw = withdraw
        self._groups: dict[bytes, Group] = {}
        self._users: dict[str, list[Receiver]] = {}
        self._slow: list[Receiver] = []

    def __len__(self) -> int:
        """Return the number of keys with a subscriber here."""
        return len(self._groups)

    def keys(self) -> Iterable[bytes]:
        """Return every key that is announced: the key table a new broker needs."""
        return self._groups.keys()

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

    async def confirmed(self, group: Group) -> None:
        """Return once the broker has confirmed the group's key."""
        if not group.confirmed:
            event = asyncio.Event()
            self.when_confirmed(group, event.set)
            await event.wait()

    def join(self, receiver: Receiver, key: bytes) -> Group:
        """Let `receiver` have every later publication of `key`, and of EVERYBODY; again changes nothing."""
        if not receiver.groups:
            self._users.setdefault(receiver.user, []).append(receiver)
            receiver.groups = (self._enter(receiver, EVERYBODY),)
        group = self._enter(receiver, key)
        if group not in receiver.groups:
            receiver.groups = (*receiver.groups, group)
        return group

    def _enter(self, receiver: Receiver, key: bytes) -> Group:
        group = self._group(key)
        group.members.add(receiver)
        return group

    def leave(self, receiver: Receiver) -> None:
        """Take `receiver` out of all its groups; again changes nothing."""
        groups, receiver.groups = receiver.groups, ()
        for group in groups:
            group.members.discard(receiver)
            self._forget_if_empty(group)
        if groups:
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
            del self._groups[group.key]
            self._withdraw(group.key)

    def connections(self, user: str, event: str | None) -> list[Receiver]:
        """Return the local connections of `user`, with `event` only those registered for it."""
        of_user = self._users.get(user, ())
        if event is None:
            return list(of_user)
        return [receiver for receiver in of_user if (user, event) in _registrations(receiver)]

    def deliver(self, publication: Publication) -> int:
        """Hand the publication's frame to every local receiver once; return how many took it.

        Cost: one `send` a receiver; the envelope form, if anybody wants it, is built once.
        """
        keys, _, frame = publication
        if len(keys) == 1:
            group = self._groups.get(keys[0])
            if group is None:
                return 0
            members = group.members
        else:
            members = set().union(*(self._groups[key].members for key in keys if key in self._groups))
        wrapped: bytes | None = None
        count = 0
        for receiver in members:
            if receiver.wants_envelope:
                if wrapped is None:
                    wrapped = _envelope_frame(publication)
                count += receiver.send(wrapped)
            else:
                count += receiver.send(frame)
        if self._slow:
            self._close_slow()
        return count

    def mark_slow(self, receiver: Receiver) -> None:
        """Have `receiver` closed once the walk under way, if any, is over."""
        if not self._slow:
            asyncio.get_running_loop().call_soon(self._close_slow)
        self._slow.append(receiver)

    def _close_slow(self) -> None:
        slow, self._slow = self._slow, []
        for receiver in slow:
            receiver.close_slow()


def _registrations(receiver: Receiver) -> Iterator[tuple[str, str]]:
    return (parse_user_key(group.key) for group in receiver.groups if group.key != EVERYBODY)


def _envelope_frame(publication: Publication) -> bytes:
    message = str(payload_of(publication.frame), "utf-8")
    return text_frame(envelope(publication.event.decode(), message))
