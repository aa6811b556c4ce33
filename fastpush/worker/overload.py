"""What a worker does with more handshakes than it can serve: turns them away cheaply.

Connections beyond what is accepted wait in the kernel: libuv accepts one connection per
listening socket and turn of the loop, so a flood of connects delays what is established
by one accept a turn. What is accepted and asks for a WebSocket is judged here right
behind its request line; who is turned away costs no parsing, no task and no log line.
"""

import resource

from fastpush import errors
from fastpush.child import DESCRIPTORS_RESERVED
from fastpush.config import Limits
from fastpush.errors import RequestError
from fastpush.metrics import Peak
from fastpush.state.rate import TokenBucket
from fastpush.worker.environment import Environment


class Overload:
    """Decides about every new handshake, and keeps the loop's lag.

    handshakes: under way; counted with the open connections.
    connections_limit: how many both may be.  worst_lag: in seconds.
    is_draining: whoever asks now would soon be sent away.
    """

    def __init__(self, limits: Limits, environment: Environment, now: float) -> None:
        self._environment = environment
        self._lag = 0.0
        self.worst_lag = Peak()
        self.handshakes = 0
        self.is_draining = False
        self.limit(limits, now)

    def limit(self, limits: Limits, now: float) -> None:
        """Decide by these limits from now on."""
        self._rate = TokenBucket(limits.handshakes_per_second, now) if limits.handshakes_per_second else None
        self.connections_limit = limits.connections or _reachable_connections()
        self._max_lag = limits.max_lag_ms / 1000 or float("inf")

    def observe_lag(self, seconds: float) -> None:
        """Take how late a tick came."""
        self._lag = seconds
        self.worst_lag.observe(seconds)

    def outcome(self, now: float) -> str:
        """Return under which outcome a new handshake is turned away, or ""; it costs one of the rate's."""
        if self.is_draining:
            return "draining"
        if self._lag > self._max_lag:
            return "lag"
        if len(self._environment.connections) + self.handshakes >= self.connections_limit:
            return "connections"
        if self._rate is not None and not self._rate.take(now):
            return "rate"
        return ""


def _reachable_connections() -> int:
    """Return how many WebSockets a worker's descriptors allow: with few descriptors, three quarters of them."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return descriptors - min(DESCRIPTORS_RESERVED, descriptors // 4)


OVERLOADED: dict[str, RequestError] = {
    "draining": errors.unavailable("this server is draining"),
    "lag": errors.unavailable("this worker is far behind ([limits] max_lag_ms)"),
    "rate": errors.unavailable("too many handshakes a second ([limits] handshakes_per_second)"),
    "connections": errors.unavailable("this worker has all the connections it may have ([limits] connections)"),
}
