"""Who came to channels and left them, gathered: what has not been told yet, and when it may be.

A small channel is told at once, that is at the next look. A large one is told less often, the longer the more
connections have to be told: so the cost stays in proportion. Who comes and leaves in between is not told at all.
"""

from collections.abc import Callable, Iterator

CONNECTION_SECONDS = 0.0002  # of rest, for each connection that was told
REST_SECONDS_MAX = 2.0
_REST_SECONDS_MIN = 0.02  # less is not worth remembering


class Changes:
    """Changes by channel, not told yet. info: what is told of who came or left. Time is told, in seconds.

    Bounds: no more channels, and changes of each, than have come about within its rest.
    """

    def __init__(self) -> None:
        self._pending: dict[bytes, dict[object, tuple[bool, bytes]]] = {}
        self._resting: dict[bytes, float] = {}  # until when

    def __len__(self) -> int:
        """Return the number of channels that have something to be told."""
        return len(self._pending)

    def add(self, channel: bytes, who: object, info: bytes, *, came: bool) -> None:
        """Note that somebody came or left; the other one of both, if nobody knows of it yet, is forgotten with it."""
        pending = self._pending.setdefault(channel, {})
        earlier = pending.pop(who, None)
        if earlier is None or earlier[0] == came:
            pending[who] = (came, info)
        elif not pending:
            del self._pending[channel]

    def discard(self, channel: bytes, who: object) -> None:
        """Forget what was noted of somebody and not told yet."""
        pending = self._pending.get(channel)
        if pending is not None:
            pending.pop(who, None)
            if not pending:
                del self._pending[channel]

    def due(self, now: float, connections: Callable[[bytes], int]) -> Iterator[tuple[bytes, list[tuple[bool, bytes]]]]:
        """Yield the channels that may be told, each with its changes: (came, info)."""
        for channel in [channel for channel, until in self._resting.items() if until <= now]:
            del self._resting[channel]
        for channel in [channel for channel in self._pending if channel not in self._resting]:
            rest = min(connections(channel) * CONNECTION_SECONDS, REST_SECONDS_MAX)
            if rest > _REST_SECONDS_MIN:
                self._resting[channel] = now + rest
            yield channel, list(self._pending.pop(channel).values())
