"""The names of all figures, the plain numbers that hot paths count in, and their sums.

Rendering for Prometheus is in http/app.py; here are only names and meanings, so that
code, scrape and documentation cannot differ.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fastpush import __version__


class Metric(NamedTuple):
    """One Prometheus time series per value of `label`.

    across: what one figure for the host is made of, of those of its workers.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    label: str = ""
    value: str = ""
    across: Literal["sum", "max", "min"] = "sum"


def _by_label(metric: Metric, prefix: str, values: tuple[str, ...]) -> dict[str, Metric]:
    """Return the series of `metric`, one for each value of its label, by the attribute that counts it."""
    return {f"{prefix}_{value}": metric._replace(value=value) for value in values}


# Figure of a worker's snapshot -> what it is called outside. The counters are attributes of Counters.
WORKER_METRICS: dict[str, Metric] = {
    "connections": Metric("fastpush_connections", "gauge", "connections", "Open WebSocket connections."),
    "connections_limit": Metric(
        "fastpush_connections_limit", "gauge", "connections", "WebSocket connections that may be open."
    ),
    "http_connections": Metric(
        "fastpush_http_connections", "gauge", "connections", "Open TCP connections that are no WebSocket yet."
    ),
    "registrations": Metric(
        "fastpush_registrations", "gauge", "keys", "Routing keys with a subscriber; one in two workers counts twice."
    ),
    "send_queue_bytes": Metric("fastpush_send_queue_bytes", "gauge", "bytes", "Waiting for slow clients."),
    "send_queue_limit_bytes": Metric(
        "fastpush_send_queue_limit_bytes", "gauge", "bytes", "Most that may wait ([limits] worker_send_bytes)."
    ),
    "slow_connections": Metric(
        "fastpush_slow_connections", "gauge", "connections", "Connections with messages waiting for them."
    ),
    "bus_queue_bytes": Metric("fastpush_bus_queue_bytes", "gauge", "bytes", "Waiting on the bus to the broker."),
    "bus_queue_limit_bytes": Metric(
        "fastpush_bus_queue_limit_bytes", "gauge", "bytes", "Where a bus queue is full ([bus] queue_bytes)."
    ),
    "broker_queue_bytes": Metric(
        "fastpush_broker_queue_bytes", "gauge", "bytes", "Waiting on the bus from the broker to the worker."
    ),
    "broker_uncounted_bytes": Metric(
        "fastpush_broker_uncounted_bytes", "gauge", "bytes", "Sent by the broker and not yet confirmed by the worker."
    ),
    "loop_lag_seconds": Metric(
        "fastpush_loop_lag_seconds", "gauge", "seconds", "How late the event loop was, at most within the last second.",
        across="max",
    ),
    "handler_longest_seconds": Metric(
        "fastpush_handler_longest_seconds", "gauge", "seconds",
        "Longest that an application has held the event loop within the last second.", "application", across="max",
    ),
    "gc_longest_pause_seconds": Metric(
        "fastpush_gc_longest_pause_seconds", "gauge", "seconds", "Longest garbage collection of the last second.",
        across="max",
    ),
    "pushes_remembered": Metric(
        "fastpush_pushes_remembered", "gauge", "pushes",
        "Pushes that `fastpush why` can tell of ([admin] remember_pushes: so many delivered, and as many others).",
    ),
    "gathering": Metric(
        "fastpush_messages_per_write", "gauge", "messages", "Gathering factor of the last second; 0: nothing written."
    ),
    "start_time_seconds": Metric(
        "fastpush_worker_start_time_seconds", "gauge", "seconds", "When the worker started, in Unix time.",
        across="min",
    ),
    "tls_expires_at": Metric(
        "fastpush_tls_certificate_expiry_timestamp_seconds", "gauge", "seconds",
        "When the certificate in use expires, in Unix time; absent without TLS.", across="min",
    ),
    "accepted": Metric("fastpush_accepted_total", "counter", "connections", "TCP connections accepted."),
    **_by_label(
        Metric("fastpush_handshakes_total", "counter", "handshakes", "WebSocket handshakes by outcome.", "outcome"),
        "handshakes",
        (
            "upgraded",
            "bad_request",
            "forbidden",
            "unauthorized",
            "unavailable",
            "draining",
            "lag",
            "rate",
            "connections",
            "user_connections",
            "address_connections",
        ),
    ),
    **_by_label(
        Metric("fastpush_pushes_total", "counter", "requests", "Push requests by outcome.", "outcome"),
        "pushes",
        ("delivered", "unconfirmed", "refused", "unavailable", "unknown"),
    ),
    **_by_label(
        Metric(
            "fastpush_channel_publications_total", "counter", "publications",
            "Publications to channels, of clients and of the server API, by outcome.", "outcome",
        ),
        "publications",
        ("delivered", "unconfirmed", "refused", "unavailable", "unknown"),
    ),
    "commands": Metric("fastpush_commands_total", "counter", "commands", "Commands of clients of channels."),
    "commands_refused": Metric(
        "fastpush_commands_refused_total", "counter", "commands", "Commands answered with an error, or not at all."
    ),
    **_by_label(
        Metric(
            "fastpush_recoveries_total", "counter", "subscriptions",
            "Subscriptions of clients that came back to a channel: whether they got all that they had missed.",
            "outcome",
        ),
        "recoveries",
        ("recovered", "unrecovered"),
    ),
    "push_latency": Metric(
        "fastpush_push_latency_seconds", "histogram", "seconds",
        "From a push's hand-over to the broker to its last write in a worker; once a push and worker.",
    ),
    "deliveries": Metric("fastpush_deliveries_total", "counter", "messages", "Messages taken by connections."),
    "writes": Metric(
        "fastpush_writes_total", "counter", "writes", "Writes of messages to connections; each holds one or several."
    ),
    "messages_received": Metric(
        "fastpush_messages_received_total", "counter", "messages", "Messages from clients."
    ),
    "receive_pauses": Metric(
        "fastpush_receive_pauses_total", "counter", "pauses",
        "Times that a client was not read from because its application was behind.",
    ),
    "handler_errors": Metric(
        "fastpush_handler_errors_total", "counter", "errors",
        "Exceptions in applications; one in a call for a connection closes it.",
    ),
    "messages_over_rate": Metric(
        "fastpush_messages_over_rate_total", "counter", "connections",
        "Connections closed for more messages a second than allowed.",
    ),
    "registrations_failed": Metric(
        "fastpush_registrations_failed_total", "counter", "registrations", "Registrations that were not taken."
    ),
    "auth_timeouts": Metric(
        "fastpush_auth_timeouts_total", "counter", "calls", "Calls of your auth functions without an answer in time."
    ),
    "auth_stuck_calls": Metric(
        "fastpush_auth_stuck_calls_total", "counter", "calls", "Those that still hold their thread then."
    ),
    **_by_label(
        Metric(
            "fastpush_drops_total", "counter", "messages", "Messages taken and then not written, by reason.", "reason"
        ),
        "drops",
        ("slow", "oldest", "latest", "lost"),
    ),
    "notes_left_out": Metric(
        "fastpush_notes_left_out_total", "counter", "notes",
        "What `fastpush why` is not told of users' connections because too much happened within a second.",
    ),
    "closes": Metric("fastpush_closed_connections_total", "counter", "connections", "WebSocket connections closed."),
    "protocol_errors": Metric(
        "fastpush_protocol_errors_total", "counter", "violations", "Rules of RFC 6455 broken by clients."
    ),
    "http_errors": Metric(
        "fastpush_http_bad_requests_total", "counter", "requests", "Requests that are not HTTP, or smuggle."
    ),
    "tls_handshake_errors": Metric(
        "fastpush_tls_handshake_errors_total", "counter", "connections",
        "TCP connections that ended in the TLS handshake.",
    ),
    "gc_collections": Metric(
        "fastpush_gc_collections_total", "counter", "collections", "Garbage collections of the interpreter."
    ),
    "gc_pause_seconds": Metric(
        "fastpush_gc_pause_seconds_total", "counter", "seconds", "Time that garbage collections took."
    ),
}  # fmt: skip

BROKER_METRICS: dict[str, Metric] = {
    "build": Metric(
        "fastpush_build_info", "gauge", "1", "Always 1; the label says which version runs.", "version", __version__
    ),
    "start_time_seconds": Metric(
        "fastpush_broker_start_time_seconds", "gauge", "seconds", "When the broker started, in Unix time."
    ),
    "routes": Metric("fastpush_broker_routes", "gauge", "keys", "Routing keys with a subscriber on this host."),
    "workers": Metric("fastpush_broker_workers", "gauge", "workers", "Workers connected to the broker."),
    "stale_workers": Metric(
        "fastpush_stale_workers", "gauge", "workers", "Workers that did not measure in time: shown by older figures."
    ),
    "present": Metric(
        "fastpush_broker_present", "gauge", "connections", "Connections that are online in a channel, once a channel."
    ),
    "claims": Metric("fastpush_broker_claims", "gauge", "keys", "Keys that one connection of this host has claimed."),
    "histories": Metric(
        "fastpush_broker_histories", "gauge", "channels", "Channels that keep something, or whose position is known."
    ),
    "history_bytes": Metric(
        "fastpush_broker_history_bytes", "gauge", "bytes", "What channels have kept ([bus] history_bytes bounds it)."
    ),
    "history_dropped": Metric(
        "fastpush_broker_history_dropped_total", "counter", "messages", "Kept messages that went for want of room."
    ),
    "idempotency_keys": Metric(
        "fastpush_broker_idempotency_keys", "gauge", "keys", "Idempotency keys that are remembered."
    ),
    "idempotency_keys_forgotten": Metric(
        "fastpush_broker_idempotency_keys_forgotten_total", "counter", "keys",
        "Idempotency keys forgotten before their 5 minutes were over, for want of room.",
    ),
    "notes": Metric(
        "fastpush_broker_notes", "gauge", "notes",
        "What is remembered of users' connections for `fastpush why` ([admin] remember_notes bounds it).",
    ),
    "admin_sessions": Metric(
        "fastpush_broker_admin_sessions", "gauge", "sessions", "Operators' sessions at the administration page."
    ),
    "notices": Metric(
        "fastpush_broker_notices_total", "counter", "notices", "Users who came to a channel or left it."
    ),
    "notices_dropped": Metric(
        "fastpush_broker_notices_dropped_total", "counter", "notices",
        "Notices that a worker was not given because it takes no more, or that a channel has too many members for.",
    ),
    "connections_replaced": Metric(
        "fastpush_replaced_connections_total", "counter", "connections",
        "Connections whose key a newer one has claimed: closed with 4500.",
    ),
    "publications": Metric(
        "fastpush_broker_publications_total", "counter", "requests", "Pushes and drops taken by the broker."
    ),
    "refused": Metric(
        "fastpush_broker_refused_total", "counter", "requests", "Pushes that the broker refused: nobody got them."
    ),
    "unconfirmed": Metric(
        "fastpush_broker_unconfirmed_total", "counter", "counts",
        "Times a worker did not count a push before the deadline.",
    ),
    "workers_lost": Metric(
        "fastpush_workers_lost_total", "counter", "workers",
        "Workers that ended without a drain: up to a second of their counts is missing.",
    ),
    **_by_label(
        Metric("fastpush_restarts_total", "counter", "processes", "Processes started in place of ended ones.", "role"),
        "restarts",
        ("worker", "broker"),
    ),
}  # fmt: skip

LATENCY_BOUNDS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How often a duration fell below each of LATENCY_BOUNDS_SECONDS and above the one before; the last: above all.

    Cost: a search among twelve bounds and two additions.
    """

    __slots__ = ("buckets", "sum_seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.buckets[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds

    def figures(self) -> list[float]:
        """Return what a snapshot holds of it: the buckets, then the sum."""
        return [*self.buckets, self.sum_seconds]


class Peak:
    """The largest value of this second and the one before, whichever moment it is asked in."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._now = self._before = 0.0

    def observe(self, value: float) -> None:
        """Take a value."""
        self._now = max(self._now, value)

    def end_second(self) -> None:
        """Begin another second."""
        self._before, self._now = self._now, 0.0

    @property
    def value(self) -> float:
        """The largest one."""
        return max(self._now, self._before)


@dataclass(slots=True)
class Counters:
    """One worker's counts since its start: the counters of WORKER_METRICS, by the same names."""

    accepted: int = 0
    handshakes_upgraded: int = 0
    handshakes_bad_request: int = 0
    handshakes_forbidden: int = 0
    handshakes_unauthorized: int = 0
    handshakes_unavailable: int = 0
    handshakes_draining: int = 0
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
    publications_delivered: int = 0
    publications_unconfirmed: int = 0
    publications_refused: int = 0
    publications_unavailable: int = 0
    publications_unknown: int = 0
    commands: int = 0
    commands_refused: int = 0
    recoveries_recovered: int = 0
    recoveries_unrecovered: int = 0
    deliveries: int = 0
    writes: int = 0
    messages_received: int = 0
    receive_pauses: int = 0
    handler_errors: int = 0
    messages_over_rate: int = 0
    registrations_failed: int = 0
    auth_timeouts: int = 0
    auth_stuck_calls: int = 0
    notes_left_out: int = 0
    drops_slow: int = 0
    drops_oldest: int = 0
    drops_latest: int = 0
    drops_lost: int = 0
    closes: int = 0
    protocol_errors: int = 0
    http_errors: int = 0
    tls_handshake_errors: int = 0
    gc_collections: int = 0
    gc_pause_seconds: float = 0
    push_latency: Histogram = field(default_factory=Histogram)

    def count_handshake(self, outcome: str) -> None:
        """Count a handshake that ended so; hot paths count by themselves."""
        name = f"handshakes_{outcome}"
        setattr(self, name, getattr(self, name) + 1)

    def snapshot(self) -> "dict[str, Figure]":
        """Return all counts by name."""
        counts = {name: getattr(self, name) for name in self.__slots__}
        counts["push_latency"] = self.push_latency.figures()
        return counts


Figure = float | list[float] | dict[str, float]
"""One value, those of a Histogram, or one for each value of a label."""


def add_snapshots(total: dict[str, Figure], counts: Mapping[str, Figure]) -> None:
    """Add `counts` to `total` in place."""
    for name, value in counts.items():
        total[name] = _add(total[name], value) if name in total else value


def host_figures(workers: Iterable[Mapping[str, Figure]]) -> dict[str, Figure]:
    """Return one set of figures for all `workers`: sums, but for what WORKER_METRICS has the extreme of."""
    host: dict[str, Figure] = {}
    for figures in workers:
        for name, value in figures.items():
            metric = WORKER_METRICS.get(name)
            if name not in host:
                host[name] = value
            elif metric is not None and metric.across != "sum":
                host[name] = _extreme(metric.across, host[name], value)
            else:
                host[name] = _add(host[name], value)
    return host


_EXTREMES: dict[str, Any] = {"max": max, "min": min}


def _extreme(across: Literal["sum", "max", "min"], one: Figure, other: Figure) -> Figure:
    choose = _EXTREMES[across]
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: choose(one.get(name, value), value) for name, value in (one | other).items()}
    figure: Figure = choose(one, other)
    return figure


def _add(one: Figure, other: Figure) -> Figure:
    if isinstance(one, list) and isinstance(other, list):
        return [mine + its for mine, its in zip(one, other, strict=True)]
    assert not isinstance(one, list | dict)
    assert not isinstance(other, list | dict)
    return one + other
