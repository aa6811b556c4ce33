"""What a worker's connections are doing, for `fastpush debug connections` and SIGUSR1: never what they said."""

import heapq

from fastpush.inspection import Report
from fastpush.protocol.control import ConnectionFigures
from fastpush.protocol.insight import cut
from fastpush.worker.connection import Connection, State
from fastpush.worker.environment import Environment
from fastpush.worker.timers import TICK_SECONDS


def connections(environment: Environment, limit: int) -> Report:
    """Return at most `limit` connections as ConnectionFigures, the longest send queues first, then the oldest.

    Cost: one pass over all connections, about a microsecond for each.
    """
    found = heapq.nlargest(limit, environment.connections.values(), key=_urgency)
    return Report(len(environment.connections), [_figures(connection) for connection in found])


def _urgency(connection: Connection) -> tuple[int, int, int]:
    return connection.queued_bytes, len(connection.inbox or ()), -connection.serial


def _figures(connection: Connection) -> ConnectionFigures:
    environment = connection.environment
    now = environment.wheel.now
    queue = connection._queue  # noqa: SLF001
    inbox = connection.inbox
    return ConnectionFigures(
        id=connection.id,
        user=cut(connection.user),
        peer=cut(connection.peer),
        path=cut(connection.mount.path),
        state=_state(connection),
        open_seconds=_seconds(now - connection._opened),  # noqa: SLF001
        heard_seconds=_seconds(now - connection._heard),  # noqa: SLF001
        keys=len(connection.groups),
        queued_messages=len(queue) if queue is not None else 0,
        queued_bytes=connection.queued_bytes,
        unhandled_messages=len(inbox) if inbox is not None else 0,
    )


def _state(connection: Connection) -> str:
    """Return the state of `connection`; of an open one what it is held up by, if it is."""
    if connection.is_open and connection in connection.environment.send_queues.paused:
        return "slow"
    if connection.is_open and connection.inbox is not None and connection.inbox.is_paused:
        return "paused"
    return State(connection.state).name.lower()


def _seconds(ticks: int) -> float:
    return round(ticks * TICK_SECONDS, 1)
