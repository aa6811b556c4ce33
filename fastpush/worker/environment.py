"""What all connections of a worker share, and the one bound over all their send queues."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastpush.config import Config, Connections, Limits
from fastpush.fanout import Hub
from fastpush.log import fields
from fastpush.metrics import Counters
from fastpush.worker.notebook import Notebook
from fastpush.worker.timers import TimerWheel, ticks

if TYPE_CHECKING:
    from fastpush.worker.connection import Connection
    from fastpush.worker.sending import Sender

log = logging.getLogger("fastpush.connection")


class SendQueues:
    """Bytes waiting for all clients of a worker.

    paused: the connections that take no more now, each with the payload of the pong it is owed.
    Over `limit_bytes` the connections with the longest queues are closed, as many as
    bring it a tenth below: one pass over the paused connections, at most once a turn.
    """

    def __init__(self, limit_bytes: int, hub: Hub) -> None:
        self._limit_bytes = limit_bytes
        self._hub = hub
        self._relieving = False
        self.queued_bytes = 0
        self.paused: dict[Sender, bytes | None] = {}

    def limit(self, limit_bytes: int) -> None:
        """Allow so many bytes from now on."""
        self._limit_bytes = limit_bytes

    def grow(self, cost: int) -> None:
        """Count `cost` bytes more; may mark slow connections, never changes a group."""
        self.queued_bytes += cost
        if self.queued_bytes > self._limit_bytes and not self._relieving:
            self._relieve()

    def shrink(self, cost: int) -> None:
        """Count `cost` bytes less."""
        self.queued_bytes -= cost

    def _relieve(self) -> None:
        self._relieving = True
        asyncio.get_running_loop().call_soon(self._relieved)
        excess = self.queued_bytes - self._limit_bytes * 9 // 10
        log.warning("send queues full", extra=fields(bytes=self.queued_bytes, connections=len(self.paused)))
        for connection in sorted(self.paused, key=lambda paused: paused.queued_bytes, reverse=True):
            if excess <= 0:
                break
            excess -= connection.queued_bytes
            self._hub.mark_slow(connection)

    def _relieved(self) -> None:
        self._relieving = False


@dataclass(frozen=True, slots=True)
class ConnectionTicks:
    """Times of a connection in ticks of the timer wheel. write_timeout: 0 for none."""

    register_timeout: int
    ping_interval: int
    pong_timeout: int
    close_timeout: int
    write_timeout: int

    @classmethod
    def of(cls, limits: Limits, connections: Connections) -> "ConnectionTicks":
        """Round the configured seconds up to ticks."""
        return cls(
            register_timeout=ticks(limits.register_timeout_seconds),
            ping_interval=ticks(connections.ping_interval_seconds),
            pong_timeout=ticks(connections.pong_timeout_seconds),
            close_timeout=ticks(connections.close_timeout_seconds),
            write_timeout=ticks(connections.write_timeout_seconds) if connections.write_timeout_seconds else 0,
        )


@dataclass(slots=True)
class Environment:
    """The state of a worker that its connections use.

    number: of this worker process.  clock: unix time in seconds.
    connections: by serial number.
    release: called with the names that an ended connection was admitted by (worker/admission.py).
    opening_ns: while a connection is being opened, the time of CLOCK_MONOTONIC before it was answered; else 0.
    spawn: runs a coroutine in the background.  head_ticks, register_ticks: times for a request, and for a handshake.
    id_prefix, serials: what the ids of its connections are made of.
    notebook: what operators are told of its connections.
    """

    number: int
    config: Config
    hub: Hub
    wheel: TimerWheel
    counters: Counters
    send_queues: SendQueues
    connections: "dict[int, Connection]" = field(default_factory=dict)
    clock: Callable[[], float] = time.time
    release: Callable[[tuple[bytes, ...]], None] = lambda _: None
    spawn: Callable[[Coroutine[Any, Any, None]], None] = field(init=False)
    opening_ns: int = 0
    head_ticks: int = field(init=False)
    register_ticks: int = field(init=False)
    id_prefix: str = field(init=False)
    notebook: Notebook = field(init=False)
    serials: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.configure(self.config)
        # With a serial number it is a UUID of version 8 (RFC 9562): random a process, not a connection.
        self.id_prefix = f"{secrets.token_hex(6)}8{secrets.token_hex(2)[1:]}8{secrets.token_hex(2)[1:]}"
        self.serials = itertools.count(1)
        self.notebook = Notebook(self.number, self.config.admin, self.counters)

    def configure(self, config: Config) -> None:
        """Go by `config` from now on."""
        self.config = config
        self.head_ticks = ticks(config.server.head_seconds)
        self.register_ticks = ticks(config.limits.register_timeout_seconds)
