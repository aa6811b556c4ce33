"""What the broker knows of channels: who is online, what they have kept, and who has claimed which key.

Each method is named after the bus message that it takes. No I/O; time is told by a clock.
"""

from collections.abc import Callable
from time import monotonic

from fastpush.broker.peer import Peer
from fastpush.protocol import bus
from fastpush.state.claims import Claim, Claims
from fastpush.state.history import Entry, Histories
from fastpush.state.presence import Habits, Place, Presence

HISTORY_MESSAGES_MAX = 65_535
HISTORY_BYTES_MAX = 16 * 1024 * 1024  # of one answer: far below what a message on the bus may have


class Channels:
    """Presence, history and claims.

    queue_bytes: a worker that owes counts for more is not told of notices.
    clock: for the time in which users may come back.  wall_clock: Unix time, for notices.
    subscribers(key): the workers that have members.  hand_out(workers, body): sends them a NOTICE.
    """

    def __init__(
        self,
        *,
        history_bytes: int,
        queue_bytes: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        subscribers: Callable[[bytes], tuple[Peer, ...]],
        hand_out: Callable[[tuple[Peer, ...], bytes], None],
    ) -> None:
        self.histories = Histories(history_bytes)
        self._presence: Presence[Peer] = Presence()
        self._claims: Claims[Peer] = Claims()
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._wall_clock = wall_clock
        self._subscribers = subscribers
        self._hand_out = hand_out
        # Of whoever asks for what was kept while its link takes no more: at most what the workers ask at once.
        self._deferred: list[tuple[Callable[[Peer, int, bytes], None], Peer, int, bytes]] = []
        self._counts = {"notices": 0, "notices_dropped": 0, "connections_replaced": 0}

    def tick(self, now: float) -> None:
        """Tell of users whose time to come back is over."""
        for place, habits in self._presence.left(now):
            self._notify(place, habits, is_online=False)
            if not self._presence.counts(place.channel)[0]:
                self.histories.forget_notices(place.channel)

    def answer_deferred(self) -> None:
        """Answer those whose link was full."""
        deferred, self._deferred = self._deferred, []
        for handler, peer, request, body in deferred:
            handler(peer, request, body)

    def forget(self, peer: Peer) -> None:
        """A worker has ended, or is about to tell everything anew."""
        self._deferred = [question for question in self._deferred if question[1] is not peer]
        self._claims.forget(peer)
        self._presence.forget(peer, self._clock())

    def keep(self, key: bytes, frame: bytes, keep: int) -> None:
        """Add a message to what a channel has kept."""
        self.histories.append(key, Entry(is_notice=False, data=frame), keep)

    def figures(self) -> dict[str, int]:
        """Return what the report says of channels."""
        return {
            **self._counts,
            "present": self._presence.connections,
            "claims": len(self._claims),
            "history_bytes": self.histories.kept_bytes,
            "history_dropped": self.histories.dropped,
        }

    def join(self, peer: Peer, request: int, body: bytes) -> None:
        """Let a connection into a channel, and answer with what that has kept."""
        join = bus.unpack_join(body)
        if join.replay_messages and peer.link.is_full:
            self._deferred.append((self.join, peer, request, body))
            return
        self._answer_with_history(peer, request, join.key, join.replay_messages, join.replay_bytes)
        if join.user and self._presence.enter(peer, Place(join.key, join.user), _habits(join)):
            self._notify(Place(join.key, join.user), _habits(join), is_online=True, spared=join.connection)

    def leave(self, peer: Peer, number: int, body: bytes) -> None:
        """A connection is not in a channel any more."""
        join = bus.unpack_join(body)
        self._presence.leave(peer, Place(join.key, join.user), self._clock())

    def present(self, peer: Peer, number: int, body: bytes) -> None:
        """A connection is in a channel: part of a table, so nobody is told."""
        join = bus.unpack_join(body)
        self._presence.enter(peer, Place(join.key, join.user), _habits(join))

    def _notify(self, place: Place, habits: Habits, *, is_online: bool, spared: int = 0) -> None:
        """Tell a channel, and what it keeps, that a user came or left. A worker that takes no more is not told."""
        notice = bus.pack(bus.Notice(place.user, is_online, self._wall_clock()))
        if habits.keep:
            self.histories.append(place.channel, Entry(is_notice=True, data=notice), habits.keep)
        self._counts["notices"] += 1
        told = self._subscribers(place.channel)
        targets = tuple(peer for peer in told if not peer.link.is_full and peer.uncounted_bytes < self._queue_bytes)
        self._counts["notices_dropped"] += len(told) - len(targets)
        if targets:
            body = bus.encode_publication(
                [place.channel], habits.path.encode(), notice, taken_seconds=monotonic(), spared=spared
            )
            self._hand_out(targets, body)

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

    def history(self, peer: Peer, request: int, key: bytes) -> None:
        """Answer with what a channel has kept."""
        if peer.link.is_full:
            self._deferred.append((self.history, peer, request, key))
        else:
            self._answer_with_history(peer, request, key, HISTORY_MESSAGES_MAX, HISTORY_BYTES_MAX)

    def _answer_with_history(self, peer: Peer, request: int, key: bytes, messages: int, size: int) -> None:
        packed = self.histories.packed(key, messages, size)  # one object for all who ask: thousands may come at once
        peer.link.send(bus.encode_head(bus.ANSWER, request, len(packed)), packed)

    def online(self, peer: Peer, request: int, body: bytes) -> None:
        """Answer who is online."""
        question = bus.unpack_online(body)
        users = self._presence.users(question.keys[0], question.users) if question.users else []
        answer = bus.OnlineAnswer([self._presence.counts(key) for key in question.keys], users)
        peer.link.send(bus.encode(bus.ANSWER, request, bus.pack(answer)))


def _habits(join: bus.Join) -> Habits:
    return Habits(join.path, join.grace_ms / 1000, join.keep)
