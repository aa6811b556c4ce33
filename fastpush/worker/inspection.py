"""What a worker's connections are doing, for `fastpush debug connections` and SIGUSR1: never what they said."""

import heapq
from itertools import islice

from fastpush.inspection import Report
from fastpush.protocol.control import ConnectionFigures
from fastpush.protocol.insight import KEYS_TOLD, Held, cut
from fastpush.protocol.push import EVERYBODY, channel_of, is_channel_key, is_user_key, parse_user_key
from fastpush.worker.connection import Connection, State
from fastpush.worker.environment import Environment
from fastpush.worker.timers import TICK_SECONDS

KEYS_LOOKED_AT = 10 * KEYS_TOLD


def connections(environment: Environment, limit: int) -> Report:
    """Return at most `limit` connections as ConnectionFigures, the longest send queues first, then the oldest.

    Cost: one pass over all connections, about a microsecond for each.
    """
    found = heapq.nlargest(limit, environment.connections.values(), key=_urgency)
    return Report(len(environment.connections), [_figures(connection) for connection in found])


def held(connection: Connection) -> Held:
    """Return what operators are told of one connection."""
    environment, mount = connection.environment, connection.mount
    names = [(is_user_key(group.key), group.key) for group in islice(connection.groups, KEYS_LOOKED_AT)]
    queue, inbox = connection._queue, connection.inbox  # noqa: SLF001
    now, open_seconds = environment.wheel.now, _seconds(environment.wheel.now - connection._opened)  # noqa: SLF001
    return Held(
        id=connection.id,
        worker=environment.number,
        path=mount.path,
        peer=connection.peer,
        transport="sse" if mount.streams else "websocket",
        state=_state(connection),
        since_seconds=round(environment.clock() - open_seconds, 1),
        heard_seconds_ago=_seconds(now - connection._heard),  # noqa: SLF001
        events=[cut(parse_user_key(key)[1]) for is_user, key in names if is_user][:KEYS_TOLD],
        channels=[cut(channel_of(key)) for _, key in names if is_channel_key(key)][:KEYS_TOLD],
        keys=sum(group.key != EVERYBODY for group in connection.groups),
        queued_messages=len(queue) if queue is not None else 0,
        queued_bytes=connection.queued_bytes,
        worst_queued_bytes=connection.worst_queued_bytes,
        dropped_messages=queue.dropped + queue.replaced if queue is not None else 0,
        unhandled_messages=len(inbox) if inbox is not None else 0,
        expires_seconds=connection.expires_at,
    )


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
