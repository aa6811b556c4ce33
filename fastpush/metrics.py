"""The names of all figures, the plain integers that hot paths count in, and their sums.

Rendering for Prometheus is in http/app.py; here are only names and meanings, so that
code, scrape and documentation cannot differ.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One Prometheus time series per value of `label`."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    label: str = ""
    value: str = ""


# Attribute of Counters -> what it is called outside.
WORKER_METRICS: dict[str, Metric] = {
    "connections": Metric("fastpush_connections", "gauge", "Open WebSocket connections."),
    "http_connections": Metric("fastpush_http_connections", "gauge", "Open TCP connections that are no WebSocket yet."),
    "registrations": Metric("fastpush_registrations", "gauge", "Routing keys with a subscriber, per worker."),
    "send_queue_bytes": Metric("fastpush_send_queue_bytes", "gauge", "Bytes waiting for slow clients."),
    "loop_lag_seconds": Metric(
        "fastpush_loop_lag_seconds", "gauge", "How late the worker's event loop was, at most within the last second."
    ),
    "slow_connections": Metric("fastpush_slow_connections", "gauge", "Connections with messages waiting for them."),
    "bus_queue_bytes": Metric("fastpush_bus_queue_bytes", "gauge", "Bytes waiting on the bus to the broker."),
    "accepted": Metric("fastpush_accepted_total", "counter", "TCP connections accepted."),
    **{
        f"handshakes_{outcome}": Metric(
            "fastpush_handshakes_total", "counter", "WebSocket handshakes by outcome.", "outcome", outcome
        )
        for outcome in (
            "upgraded",
            "bad_request",
            "forbidden",
            "unauthorized",
            "unavailable",
            "lag",
            "rate",
            "connections",
            "user_connections",
            "address_connections",
        )
    },
    **{
        f"pushes_{outcome}": Metric("fastpush_pushes_total", "counter", "Push requests by outcome.", "outcome", outcome)
        for outcome in ("delivered", "unconfirmed", "refused", "unavailable", "unknown")
    },
    "deliveries": Metric("fastpush_deliveries_total", "counter", "Messages taken by connections."),
    "writes": Metric(
        "fastpush_writes_total", "counter", "Writes of messages to connections; each holds one or several."
    ),
    "messages_received": Metric("fastpush_messages_received_total", "counter", "Messages from clients."),
    "messages_over_rate": Metric(
        "fastpush_messages_over_rate_total", "counter", "Connections closed for more messages a second than allowed."
    ),
    "registrations_failed": Metric(
        "fastpush_registrations_failed_total", "counter", "Registrations that were not taken."
    ),
    **{
        f"drops_{reason}": Metric(
            "fastpush_drops_total", "counter", "Messages taken and then not written, by reason.", "reason", reason
        )
        for reason in ("slow", "oldest", "lost")
    },
    "closes": Metric("fastpush_closed_connections_total", "counter", "WebSocket connections closed."),
    "protocol_errors": Metric("fastpush_protocol_errors_total", "counter", "Rules of RFC 6455 broken by clients."),
    "http_errors": Metric("fastpush_http_bad_requests_total", "counter", "Requests that are not HTTP, or smuggle."),
}

BROKER_METRICS: dict[str, Metric] = {
    "routes": Metric("fastpush_broker_routes", "gauge", "Routing keys with a subscriber on this host."),
    "workers": Metric("fastpush_broker_workers", "gauge", "Workers connected to the broker."),
    "publications": Metric("fastpush_broker_publications_total", "counter", "Pushes and drops taken by the broker."),
    "refused": Metric("fastpush_broker_refused_total", "counter", "Pushes that the broker refused: nobody got them."),
    "unconfirmed": Metric(
        "fastpush_broker_unconfirmed_total", "counter", "Times a worker did not count a push before the deadline."
    ),
}


@dataclass(slots=True)
class Counters:
    """One worker's counts since its start: the counters of WORKER_METRICS, by the same names."""

    accepted: int = 0
    handshakes_upgraded: int = 0
    handshakes_bad_request: int = 0
    handshakes_forbidden: int = 0
    handshakes_unauthorized: int = 0
    handshakes_unavailable: int = 0
    handshakes_lag: int = 0
    handshakes_rate: int = 0
    handshakes_connections: int = 0
    handshakes_user_connections: int = 0
    handshakes_address_connections: int = 0
    pushes_delivered: int = 0
    pushes_unconfirmed: int = 0
    pushes_refused: int = 0
    pushes_unavailable: int = 0
    pushes_unknown: int = 0
    deliveries: int = 0
    writes: int = 0
    messages_received: int = 0
    messages_over_rate: int = 0
    registrations_failed: int = 0
    drops_slow: int = 0
    drops_oldest: int = 0
    drops_lost: int = 0
    closes: int = 0
    protocol_errors: int = 0
    http_errors: int = 0

    def count_handshake(self, outcome: str) -> None:
        """Count a handshake that ended so; hot paths count by themselves."""
        name = f"handshakes_{outcome}"
        setattr(self, name, getattr(self, name) + 1)

    def snapshot(self) -> dict[str, int]:
        """Return all counts by name."""
        return asdict(self)


def add_snapshots(total: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add `counts` to `total` in place."""
    for name, value in counts.items():
        total[name] = total.get(name, 0) + value
