"""What the broker knows of channels: who is in them, what they have kept, and who has claimed which key.

Each method is named after the bus message that it takes. No I/O; time is told by a clock.
"""

from collections.abc import Callable
from time import monotonic

import orjson

from fastpush.broker.peer import Peer
from fastpush.channels.namespaces import Namespaces
from fastpush.config import Namespace
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Kind, Position
from fastpush.state.changes import Changes
from fastpush.state.claims import Claim, Claims
from fastpush.state.history import HistoryStore, Retention
from fastpush.state.presence import Came, Habits, Left, Place, Presence
from fastpush.state.routes import Routes

_DATA = int(Kind.DATA)
_NOTHING_KEPT = bus.pack(bus.Kept(*NO_POSITION, recovered=False, entries=[]))


class Channels:
    """Presence, history and claims.

    namespaces: what a channel with a namespace keeps and tells; replaced on reload. Of others each publication and
    each join says it.
    queue_bytes: a worker that owes counts for more is not told of notices.
    clock: for the time in which users may come back.  wall_clock: Unix time, for notices.
    routes: the workers that have members.  hand_out(kind, workers, body): sends them a NOTICE or CHANGES.
    """

    def __init__(
        self,
        histories: HistoryStore,
        namespaces: Namespaces,
        *,
        queue_bytes: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        routes: Routes[Peer],
        hand_out: Callable[[int, tuple[Peer, ...], bytes], object],
    ) -> None:
        self.histories = histories
        self.namespaces = namespaces
        self._presence: Presence[Peer] = Presence()
        self._changes = Changes()
        self._claims: Claims[Peer] = Claims()
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._wall_clock = wall_clock
        self._routes = routes
        self._hand_out = hand_out
        # Of whoever asks for much while its link takes no more: at most what the workers ask at once.
        self._deferred: list[tuple[Callable[[Peer, int, bytes], None], Peer, int, bytes]] = []
        self._counts = {"notices": 0, "notices_dropped": 0, "connections_replaced": 0}

    def tick(self, now: float) -> None:
        """Tell of users whose time to come back is over, and of all that has gathered; give up what is too old."""
        for place, habits in self._presence.left(now):
            if not habits.path:
                self._change_user(place.channel, place.user, came=False)
                continue
            self._notify(place, habits, is_online=False)
            if not self._presence.counts(place.channel)[0]:
                self.histories.forget_notices(place.channel)
        for channel, changes in self._changes.due(now, lambda key: self._presence.counts(key)[1]):
            self._counts["notices"] += len(changes)
            self._tell(channel, bus.CHANGES, b"", bus.pack(changes))
        self.histories.tick(now)

    def answer_deferred(self) -> None:
        """Answer those whose link was full."""
        deferred, self._deferred = self._deferred, []
        for handler, peer, request, body in deferred:
            handler(peer, request, body)

    def forget(self, peer: Peer) -> None:
        """A worker has ended, or is about to tell everything anew."""
        self._deferred = [question for question in self._deferred if question[1] is not peer]
        self._claims.forget(peer)
        for left in self._presence.forget(peer, self._clock()):
            self._change_connection(left)

    def figures(self) -> dict[str, int]:
        """Return what the report says of channels."""
        return {
            **self._counts,
            "present": self._presence.connections,
            "claims": len(self._claims),
            "histories": len(self.histories),
            "history_bytes": self.histories.kept_bytes + self.histories.position_bytes,
            "history_dropped": self.histories.dropped,
        }

    # -- what is kept ----------------------------------------------------------------

    def keep(self, key: bytes, keep: int, body: bus.Body) -> Position:
        """Add a publication to what its channel has kept, and return its place; NO_POSITION: it keeps nothing.

        keep: how many it keeps, if its namespace does not say it.
        """
        namespace = self.namespaces.of_key(key)
        if namespace is not None and namespace.history_messages:
            retention = _retention(namespace)
        elif namespace is not None:
            self.histories.forget(key)  # kept before a reload: who was there then would seem to have missed nothing
            return NO_POSITION
        elif keep:
            retention = Retention(keep)
        else:
            return NO_POSITION
        publication = bus.decode_publication(body)
        extras = publication.event if publication.kind == _DATA else b""
        return self.histories.append(key, publication.kind, publication.frame, extras, retention, self._clock())

    def history(self, peer: Peer, request: int, body: bytes) -> None:
        """Answer with what a channel has kept."""
        if peer.link.is_full:
            self._deferred.append((self.history, peer, request, body))
            return
        question, now = bus.unpack_history(body), self._clock()
        namespace = self.namespaces.of_key(question.key)
        if namespace is not None and namespace.history_messages:
            self.histories.open(question.key, _retention(namespace), now)
        packed = self.histories.page(question, now)
        peer.link.send(bus.encode_head(bus.ANSWER, request, len(packed)), packed)

    def clear(self, peer: Peer, request: int, key: bytes) -> None:
        """Keep nothing of what was published to a channel."""
        self.histories.clear(key)
        peer.link.send(bus.encode(bus.ANSWER, request))

    # -- joining and leaving -----------------------------------------------------------

    def join(self, peer: Peer, request: int, body: bytes) -> None:
        """Let a connection into channels, and answer with what these have kept."""
        joins = bus.unpack_joins(body)
        if peer.link.is_full and any(join.replay_messages for join in joins):
            self._deferred.append((self.join, peer, request, body))
            return
        listed = bus.pack((None,) * len(joins))
        answers = [listed[: len(listed) - len(joins)]]  # the head of a list of so many
        answers += [self._kept(join) for join in joins]
        peer.link.send(bus.encode_head(bus.ANSWER, request, sum(map(len, answers))), *answers)
        for join in joins:
            if join.is_present:
                self._tell_who_came(join, self._enter(peer, join))

    def _tell_who_came(self, join: bus.Join, came: Came) -> None:
        if came.user and join.path:
            self._notify(Place(join.key, join.user), self._habits(join), is_online=True, spared=join.connection)
        elif came.user:
            self._change_user(join.key, join.user, came=True)
        if came.connection and not join.path:
            self._change(join.key, "connections", join.connection, join.info, came=True)

    def _kept(self, join: bus.Join) -> bytes:
        """Return what a channel has kept for who joins: one object for all who ask for the same."""
        key, now, namespace = join.key, self._clock(), self.namespaces.of_key(join.key)
        if namespace is not None and namespace.recovery:
            self.histories.open(key, _retention(namespace), now)
        elif not join.replay_messages:
            return _NOTHING_KEPT
        if join.since is not None:
            return self.histories.since(key, join.since, join.replay_messages, join.replay_bytes, now)
        return self.histories.newest(key, join.replay_messages, join.replay_bytes, now)

    def leave(self, peer: Peer, number: int, body: bytes) -> None:
        """A connection is not in a channel any more."""
        join = bus.unpack_join(body)
        left = self._presence.leave(peer, join.key, join.connection, self._clock())
        if left is not None:
            self._change_connection(left)

    def present(self, peer: Peer, number: int, body: bytes) -> None:
        """A connection is in a channel: part of a table, so nobody is told."""
        self._enter(peer, bus.unpack_join(body))

    def _enter(self, peer: Peer, join: bus.Join) -> Came:
        place = Place(join.key, join.user)
        return self._presence.enter(peer, place, self._habits(join), join.connection, join.info)

    def _habits(self, join: bus.Join) -> Habits:
        if join.path:
            return Habits(join.path, join.grace_ms / 1000, join.keep)
        namespace = self.namespaces.of_key(join.key)
        told_of_users = namespace is not None and namespace.join_leave == "users"
        return Habits("", namespace.grace_seconds if namespace is not None and told_of_users else 0, 0)

    # -- telling who came and left -----------------------------------------------------

    def _change_connection(self, left: Left) -> None:
        if not left.habits.path:
            self._change(left.channel, "connections", left.connection, left.member.info, came=False)

    def _change_user(self, channel: bytes, user: str, *, came: bool) -> None:
        self._change(channel, "users", user, orjson.dumps({"user": user, "client": ""}), came=came)

    def _change(self, channel: bytes, told: str, who: int | str, info: bytes, *, came: bool) -> None:
        """Have a channel told that a connection or a user came or left, if its namespace tells that."""
        namespace = self.namespaces.of_key(channel)
        if namespace is None or namespace.join_leave != told:
            return
        if self._presence.counts(channel)[1] > namespace.join_leave_members:
            self._counts["notices_dropped"] += 1
            self._changes.discard(channel, who)  # else the other one of both would be told alone
        else:
            self._changes.add(channel, who, info, came=came)

    def _notify(self, place: Place, habits: Habits, *, is_online: bool, spared: int = 0) -> None:
        """Tell a channel, and what it keeps, that a user came or left. A worker that takes no more is not told."""
        notice = bus.pack(bus.Notice(place.user, is_online, self._wall_clock()))
        if habits.keep:
            self.histories.append(place.channel, Kind.NOTICE, notice, b"", Retention(habits.keep), self._clock())
        self._counts["notices"] += 1
        self._tell(place.channel, bus.NOTICE, habits.path.encode(), notice, spared)

    def _tell(self, channel: bytes, kind: int, event: bytes, frame: bytes, spared: int = 0) -> None:
        told = self._routes.subscribers(channel)
        targets = tuple(peer for peer in told if not peer.link.is_full and peer.uncounted_bytes < self._queue_bytes)
        self._counts["notices_dropped"] += len(told) - len(targets)
        if targets:
            held = Kind.CHANGES if kind == bus.CHANGES else Kind.MESSAGE
            body = bus.encode_publication([channel], event, frame, taken_seconds=monotonic(), spared=spared, kind=held)
            self._hand_out(kind, targets, body)

    # -- questions ---------------------------------------------------------------------

    def online(self, peer: Peer, request: int, body: bytes) -> None:
        """Answer who is online."""
        question = bus.unpack_online(body)
        users = self._presence.users(question.keys[0], question.users) if question.users else []
        answer = bus.OnlineAnswer([self._presence.counts(key) for key in question.keys], users)
        peer.link.send(bus.encode(bus.ANSWER, request, bus.pack(answer)))

    def presence(self, peer: Peer, request: int, key: bytes) -> None:
        """Answer with what is told of each connection in a channel."""
        if peer.link.is_full:
            self._deferred.append((self.presence, peer, request, key))
            return
        peer.link.send(bus.encode(bus.ANSWER, request, bus.pack(self._presence.infos(key))))

    # -- claims ------------------------------------------------------------------------

    def claim(self, peer: Peer, connection: int, body: bytes) -> None:
        """Give a name to the newer one of two connections, and tell the other."""
        number, name = bus.decode_claim(body)
        claim = Claim(peer, connection, number)
        loser = self._claims.claim(name, claim)
        if loser is not None:
            self._counts["connections_replaced"] += 1
            loser.holder.link.send(bus.encode(bus.REPLACED, loser.connection, name))
        if loser is not claim:
            peer.link.send(bus.encode(bus.CLAIMED, connection, name))

    def unclaim(self, peer: Peer, connection: int, name: bytes) -> None:
        """A connection gives a name back."""
        self._claims.release(peer, name, connection)


def _retention(namespace: Namespace) -> Retention:
    return Retention(namespace.history_messages, namespace.history_seconds, namespace.history_bytes)
