"""What a worker measures of itself: the snapshot that it leaves with the broker, and its figures by the second."""

import gc
import os
import time
from time import perf_counter
from typing import Any

import orjson

from fastpush.bus.client import BusClient
from fastpush.metrics import Counters, Peak
from fastpush.worker.environment import Environment
from fastpush.worker.services import Services


class CollectorPauses:
    """Counts and times the interpreter's garbage collections, from `start` on."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._began = 0.0
        self.longest_seconds = Peak()

    def start(self) -> None:
        """Be told of every collection of this process."""
        gc.callbacks.append(self.on_phase)

    def on_phase(self, phase: str, _info: dict[str, int]) -> None:
        """See gc.callbacks: "start" and "stop" of a collection."""
        if phase == "start":
            self._began = perf_counter()
            return
        seconds = perf_counter() - self._began
        self._counters.gc_collections += 1
        self._counters.gc_pause_seconds += seconds
        self.longest_seconds.observe(seconds)


class Gauges:
    """A worker's snapshot: every figure of metrics.WORKER_METRICS, but for what only the broker knows.

    slot: of the worker's listeners; `measured_seconds` is CLOCK_MONOTONIC: what the broker makes rates of.
    second_deliveries, second_writes: of the last second; the gathering factor is made of them.
    """

    def __init__(self, environment: Environment, services: Services, bus: BusClient, slot: int) -> None:
        self._environment = environment
        self._services = services
        self._bus = bus
        self._named = {"slot": slot, "pid": os.getpid()}
        self._pauses = CollectorPauses(environment.counters)
        self._pauses.start()
        self._started_seconds = round(time.time(), 3)
        self._deliveries = self._writes = 0  # until the last second's end
        self._second_deliveries = self._second_writes = 0

    def end_second(self) -> None:
        """Begin another second."""
        self._pauses.longest_seconds.end_second()
        for mount in self._services.mounts.values():
            mount.longest.end_second()
        counters = self._environment.counters
        self._second_deliveries = counters.deliveries - self._deliveries
        self._second_writes = counters.writes - self._writes
        self._deliveries, self._writes = counters.deliveries, counters.writes

    def snapshot(self) -> bytes:
        """Return all figures as JSON."""
        environment, services = self._environment, self._services
        config, send_queues = environment.config, environment.send_queues
        gauges: dict[str, Any] = {
            "connections": len(environment.connections),
            "connections_limit": services.overload.connections_limit,
            "http_connections": len(services.http_connections),
            "registrations": len(environment.hub),
            "send_queue_bytes": send_queues.queued_bytes,
            "send_queue_limit_bytes": config.limits.worker_send_bytes,
            "slow_connections": len(send_queues.paused),
            "bus_queue_bytes": self._bus.queued_bytes,
            "bus_queue_limit_bytes": config.bus.queue_bytes,
            "loop_lag_seconds": round(services.overload.worst_lag.value, 3),
            "handler_longest_seconds": {
                mount.path: round(mount.longest.value, 6) for mount in services.mounts.values()
            },
            "gc_longest_pause_seconds": round(self._pauses.longest_seconds.value, 6),
            "pushes_remembered": environment.notebook.remembered,
            "start_time_seconds": self._started_seconds,
            "second_deliveries": self._second_deliveries,
            "second_writes": self._second_writes,
            "measured_seconds": round(time.monotonic(), 6),
            **self._named,
        }
        if services.tls is not None:
            gauges["tls_expires_at"] = services.tls.expires_at
        return orjson.dumps({"counters": environment.counters.snapshot(), "gauges": gauges})
