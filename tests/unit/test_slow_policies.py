"""What a client in channels gets when it is slow: each channel's policy, and that nothing else is dropped.

A real transport, one process; the test is the client, and decides when it reads.
"""

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from fastpush.config import Compression
from fastpush.errors import CloseCode
from fastpush.fanout import CLIENT
from fastpush.fanout.batch import channel_frames
from fastpush.protocol.bus import Kind, Publication
from fastpush.protocol.frames import ChannelFrame, text_frame
from fastpush.protocol.push import channel_key, channel_of
from fastpush.state.send_queue import CHANNEL_ENTRY_BYTES, ChannelQueue
from fastpush.worker.connection import Connection
from fastpush.worker.environment import Environment
from fastpush.worker.mount import Mount
from tests.unit.test_connection_limits import environment, opened, read_frames, run, until

Event = tuple[str, Any]


@pytest.fixture(autouse=True)
def policies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every channel's policy is its namespace."""
    monkeypatch.setattr(Mount, "slow_policy", lambda _, key: channel_of(key).partition(":")[0])


@contextlib.asynccontextmanager
async def subscriber(shared: Environment) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection of the client protocol, and its client, which has read nothing."""
    async with opened(shared) as (connection, client):
        connection.form |= CLIENT
        yield connection, client


def publication(channel: str, offset: int, size: int = 200) -> ChannelFrame:
    """What CLIENT makes of a publication."""
    push = {"push": {"channel": channel, "pub": {"data": "x" * size, "offset": offset}}}
    frame = ChannelFrame(text_frame(orjson.dumps(push)))
    frame.key, frame.offset = channel_key(channel), offset
    return frame


def reply(number: int, size: int = 0) -> bytes:
    return text_frame(orjson.dumps({"id": number, "rpc": {"data": "x" * size}}))


async def behind(connection: Connection) -> int:
    """Send replies until one is queued; return how many were sent."""
    sent = 0
    while not connection.queued_bytes:
        sent += 1
        assert connection.send_frame(reply(sent, 1000))
    return sent


def events(frames: list[tuple[int, bytes]]) -> list[Event]:
    """Return what a client was told: (channel, offset), (channel, {"gap": …}) or ("reply", id), in order."""
    told: list[Event] = []
    for opcode, payload in frames:
        if opcode != 1:
            continue
        message = orjson.loads(payload)
        if "id" in message:
            told.append(("reply", message["id"]))
        else:
            publication = message["push"]["pub"]
            told.append((message["push"]["channel"], publication.get("offset") or publication["tags"]))
    return told


async def told(connection: Connection, client: socket.socket, when: asyncio.Event | None = None) -> list[Event]:
    """Read all that waits, and a last reply behind it, sent `when` it is time; return it but for that one."""
    last = reply(0)
    reading = asyncio.create_task(read_frames(client, last=last[2:]))
    if when is not None:
        await asyncio.wait_for(when.wait(), 10)
    await asyncio.wait_for(connection.drain(), 10)
    assert connection.send_frame(last)
    return events(await reading)[:-1]


def waiting(connection: Connection) -> int:
    assert isinstance(connection._queue, ChannelQueue)
    return len(connection._queue)


def check_counts(shared: Environment, connection: Connection) -> None:
    """Check that what waits is within the limits, and counted alike everywhere."""
    limits = connection.mount.limits
    if connection.queued_bytes:
        assert waiting(connection) <= limits.send_queue_messages
        assert connection.queued_bytes <= limits.send_queue_bytes
    assert shared.send_queues.queued_bytes == connection.queued_bytes


def test_latest_keeps_the_newest_of_each_channel() -> None:
    """latest: of each channel exactly the newest publication waits, in the place of its first; every other one counts
    as dropped; replies between them stay.
    """

    async def scenario() -> None:
        shared = environment()
        async with subscriber(shared) as (connection, client):
            sent = await behind(connection)
            frames = [publication(f"latest:{offset % 3}", offset) for offset in range(1, 100)]
            for number, frame in enumerate(frames):
                assert connection.send_frame(frame)
                if number in {1, 50}:
                    assert connection.send_frame(reply(1000 + number))
                check_counts(shared, connection)
            assert waiting(connection) == 1 + 3 + 2
            assert await told(connection, client) == [
                *(("reply", number) for number in range(1, sent + 1)),
                ("latest:1", 97), ("latest:2", 98), ("reply", 1001), ("latest:0", 99), ("reply", 1050),
            ]  # fmt: skip
            counters = shared.counters
            assert (counters.drops_latest, counters.drops_oldest, counters.drops_slow) == (96, 0, 0)
            await until(lambda: connection.queued_bytes == 0)
            assert shared.send_queues.queued_bytes == 0

    run(scenario())


def test_latest_drops_nothing_of_a_client_that_keeps_up() -> None:
    """While nothing waits for a client, every publication of a channel with latest is written."""

    async def scenario() -> None:
        shared = environment()
        async with subscriber(shared) as (connection, client):
            frames = [publication("latest:a", offset, 1) for offset in range(1, 20)]
            assert connection.send_joined(b"".join(frames), frames) == len(frames)
            assert await told(connection, client) == [("latest:a", offset) for offset in range(1, 20)]
            assert shared.counters.drops_latest == 0

    run(scenario())


def test_drop_oldest_says_how_many_where_they_are_missing() -> None:
    """drop-oldest: at the bound the oldest publications go, whatever comes; where the first of a channel was the client
    is told how many of it are missing, and what stays is in order.
    """

    async def scenario() -> None:
        shared = environment(send_queue_messages=8)
        async with subscriber(shared) as (connection, client):
            sent = await behind(connection)
            for offset in range(1, 31):
                channel = "drop-oldest:a" if offset % 2 else "drop-oldest:b"
                assert connection.send_frame(publication(channel, (offset + 1) // 2))
                check_counts(shared, connection)
            assert connection.send_frame(reply(1000)), "a reply makes room too"
            assert await told(connection, client) == [
                *(("reply", number) for number in range(1, sent + 1)),
                ("drop-oldest:a", {"gap": "12"}), ("drop-oldest:b", {"gap": "12"}),
                *((f"drop-oldest:{name}", offset) for offset in range(13, 16) for name in "ab"),
                ("reply", 1000),
            ]  # fmt: skip
            assert (shared.counters.drops_oldest, shared.counters.drops_slow) == (24, 0)
            assert connection.is_open

    run(scenario())


@pytest.mark.parametrize(
    ("limits", "namespace"),
    [
        ({"send_queue_messages": 10}, "disconnect"),
        ({"send_queue_bytes": 10 * (400 + CHANNEL_ENTRY_BYTES)}, "disconnect"),
        ({"send_queue_messages": 10}, "latest"),
        ({"send_queue_messages": 10, "slow_policy": "drop-oldest"}, "reply"),
    ],
)
def test_nothing_that_may_go(limits: dict[str, Any], namespace: str) -> None:
    """Where nothing may go any more the client is closed as too slow, and what waited counts as dropped for that:
    publications of channels with disconnect, the newest of many channels, replies.
    """

    async def scenario() -> None:
        shared = environment(**limits)
        async with subscriber(shared) as (connection, _):
            await behind(connection)
            taken = 0
            for offset in range(1, 100):
                frame = reply(offset) if namespace == "reply" else publication(f"{namespace}:{offset}", offset)
                if not connection.send_frame(frame):
                    break
                taken += 1
                check_counts(shared, connection)
            left = waiting(connection)
            assert 5 <= taken < 20 and left == taken + 1
            await until(lambda: not connection.is_open)
            assert (connection.close_code, shared.counters.drops_slow) == (CloseCode.TRY_AGAIN_LATER, left)
            assert shared.counters.drops_oldest == shared.counters.drops_latest == shared.send_queues.queued_bytes == 0

    run(scenario())


def test_replies_are_never_dropped() -> None:
    """Replies fill the queue as far as publications can make room for them; then the client is closed as too slow, and
    what went before counts as dropped for want of room, once.
    """

    async def scenario() -> None:
        shared = environment(send_queue_messages=10, slow_policy="drop-oldest")
        async with subscriber(shared) as (connection, _):
            await behind(connection)
            for offset in range(1, 10):
                assert connection.send_frame(publication("drop-oldest:a", offset))
            for number in range(9):
                assert connection.send_frame(reply(1000 + number))
                check_counts(shared, connection)
            assert not connection.send_frame(reply(2000))
            assert (waiting(connection), shared.counters.drops_oldest) == (10, 9)
            await until(lambda: not connection.is_open)
            assert (connection.close_code, shared.counters.drops_slow) == (CloseCode.TRY_AGAIN_LATER, 10)
            assert shared.counters.drops_oldest == 9 and shared.send_queues.queued_bytes == 0

    run(scenario())


def test_a_batch_goes_as_far_as_there_is_room() -> None:
    """Of gathered publications those count as taken for which room could be made."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=10)
        async with subscriber(shared) as (connection, _):
            await behind(connection)
            for offset in range(1, 5):
                assert connection.send_frame(publication("drop-oldest:a", offset))
            frames = [publication("disconnect:a", offset) for offset in range(1, 13)]
            assert connection.send_joined(b"".join(frames), frames) == 9
            assert (waiting(connection), shared.counters.drops_oldest) == (10, 4)

    run(scenario())


def test_a_larger_newest_one_has_to_fit() -> None:
    """latest: a publication that is longer than the one it replaces makes room as any other, or the client is closed;
    until then the older one stays.
    """

    async def scenario() -> None:
        shared = environment(send_queue_bytes=6000)
        async with subscriber(shared) as (connection, _):
            await behind(connection)
            connection.send_frame(publication("latest:a", 1))
            connection.send_frame(publication("drop-oldest:a", 1, 2000))
            assert connection.send_frame(publication("latest:a", 2, 3500))
            check_counts(shared, connection)
            assert (waiting(connection), shared.counters.drops_oldest, shared.counters.drops_latest) == (2, 1, 1)
            assert not connection.send_frame(publication("latest:a", 3, 5500))
            assert shared.counters.drops_latest == 1
            check_counts(shared, connection)

    run(scenario())


def test_an_empty_queue_takes_any_publication() -> None:
    """A client that has just fallen behind is not closed for one publication, however large."""

    async def scenario() -> None:
        shared = environment(send_queue_bytes=1024)
        async with subscriber(shared) as (connection, _):
            offset = 0
            while not connection.queued_bytes:
                offset += 1
                assert connection.send_frame(publication("disconnect:a", offset, 100_000))
            assert connection.queued_bytes > 1024 and waiting(connection) == 1
            assert not connection.send_frame(reply(1))

    run(scenario())


@pytest.mark.parametrize("channel", ["latest:a", "drop-oldest:a", "disconnect:a"])
def test_empty_frames_are_not_queued(channel: str) -> None:
    """A publication for which a form has nothing is taken, changes nothing, and makes nobody go, even at the bound."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=3)
        async with subscriber(shared) as (connection, _):
            await behind(connection)
            connection.send_frame(publication(channel, 1))
            connection.send_frame(reply(1000))
            before = connection.queued_bytes, waiting(connection)
            empty = ChannelFrame()
            empty.key, empty.offset = channel_key(channel), 2
            assert connection.send_joined(b"", [empty, empty]) == 2
            assert (connection.queued_bytes, waiting(connection)) == before
            assert shared.counters.drops_latest == shared.counters.drops_oldest == 0

    run(scenario())


def test_empty_frames_are_not_queued_for_any_connection() -> None:
    """Nor does a connection of another form queue what it has nothing for."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=2)
        async with opened(shared) as (connection, _):
            await behind(connection)
            frames = [b"", reply(1000), b""]
            assert connection.send_joined(reply(1000), frames) == 3
            assert connection._queue is not None and len(connection._queue) == 2

    run(scenario())


def test_who_comes_and_leaves_is_never_dropped() -> None:
    """Of a channel's frames publications alone obey its policy: a join takes no place of theirs, nor counts as one."""
    channel = channel_key("latest:a")
    frame = text_frame(b'{"push":{}}')
    published = Publication([channel], b"", frame, 0.0, kind=Kind.DATA, offset=3)
    come = Publication([channel], b"", frame, 0.0, kind=Kind.CHANGES)
    _, (first, second) = channel_frames([published, come], CLIENT, Compression())
    assert isinstance(first, ChannelFrame) and (first.key, first.offset) == (channel, 3)
    assert second and not isinstance(second, ChannelFrame)


@pytest.mark.parametrize(("channel", "after"), [("latest:a", [19]), ("drop-oldest:a", [{"gap": "10"}, 17, 18, 19])])
def test_publications_of_another_subscription_stay_behind_its_reply(channel: str, after: list[Any]) -> None:
    """A client that leaves a channel and comes back while it is behind gets what was published since then, and the mark
    of what is missing of that, behind the reply to its coming back.
    """

    async def scenario() -> None:
        shared = environment(send_queue_messages=6)
        async with subscriber(shared) as (connection, client):
            sent = await behind(connection)
            connection.send_frame(publication(channel, 1))
            connection.seal_channel(channel_key(channel))
            connection.send_frame(reply(1000))
            for offset in range(7, 20):
                assert connection.send_frame(publication(channel, offset))
            expected = [(channel, 1), ("reply", 1000), *((channel, heard) for heard in after)]
            assert (await told(connection, client))[sent:] == expected

    run(scenario())


def test_gaps_are_told_before_the_connection_is_closed() -> None:
    """A connection that is closed with gaps in its queue tells them, all of them, before the close frame."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=5)
        async with subscriber(shared) as (connection, client):
            sent = await behind(connection)
            channels = [f"drop-oldest:{number}{'long' * 50}" for number in range(20)]
            for channel in channels:
                assert connection.send_frame(publication(channel, 1, 1))
            connection.close(1000)
            assert shared.send_queues.queued_bytes == connection.queued_bytes == 0
            frames = await read_frames(client)
            assert frames[-1][0] == 8
            missed: list[Event] = [(channel, {"gap": "1"}) for channel in channels[:16]]
            assert events(frames)[sent:] == [*missed, *((channel, 1) for channel in channels[16:])]

    run(scenario())


def test_a_gap_behind_the_last_message_is_told() -> None:
    """A gap with nothing behind it, which one write has left in the queue, is written by the next one."""

    async def scenario() -> None:
        shared = environment(send_queue_bytes=200_000)
        async with subscriber(shared) as (connection, client):
            await behind(connection)
            connection.send_frame(publication("latest:a", 1))
            connection.send_frame(publication("drop-oldest:a", 1, 110_000))
            assert connection.send_frame(publication("latest:a", 2, 100_000)), "more than one write takes"
            assert (waiting(connection), shared.counters.drops_oldest) == (2, 1)
            gap = connection.gap_frame(channel_key("drop-oldest:a"), 1)
            got = events(await read_frames(client, last=gap[2:]))
            assert got[-2:] == [("latest:a", 2), ("drop-oldest:a", {"gap": "1"})]
            await until(lambda: connection._queue is None)
            assert shared.send_queues.queued_bytes == 0 and not shared.send_queues.paused

    run(scenario())


def test_all_queues_of_a_worker_are_bounded_with_gaps_in_them() -> None:
    """worker_send_bytes counts what channels have waiting: the longest queue goes, and nothing of it stays counted."""

    async def scenario() -> None:
        shared = environment(worker_send_bytes=1 << 20, send_queue_bytes=1 << 20, send_queue_messages=700)
        async with subscriber(shared) as (first, _), subscriber(shared) as (second, _):
            for connection in (first, second):
                await behind(connection)
            offset = 0
            while first.queued_bytes < 600_000:
                offset += 1
                assert first.send_frame(publication("drop-oldest:a", offset, offset))
            assert shared.counters.drops_oldest > 0, "there is a gap"
            while waiting(second) < 700 and shared.send_queues.queued_bytes <= 1 << 20:
                assert second.send_frame(publication("disconnect:a", 1, 1000))
            await until(lambda: not first.is_open)
            assert second.is_open and shared.send_queues.queued_bytes == second.queued_bytes > 0

    run(scenario())


def check_story(channel: str, story: list[Any], newest: int) -> int:
    """Check what a client was told of a channel; return how many publications it has missed."""
    namespace = channel.partition(":")[0]
    if namespace == "latest":
        assert all(before < after for before, after in itertools.pairwise(story))
        assert story[-1] == newest
        return newest - len(story)
    missed = expected = 0
    for heard in story:
        if isinstance(heard, int):
            expected += 1
            assert heard == expected, f"{channel}: {heard} instead of {expected}"
        else:
            expected += int(heard["gap"])
            missed += int(heard["gap"])
    assert expected == newest
    assert not missed or namespace == "drop-oldest"
    return missed


@pytest.mark.parametrize("limits", [{"send_queue_messages": 30}, {"send_queue_bytes": 30_000}])
def test_any_traffic_is_told_in_order_and_accounted_for(limits: dict[str, Any]) -> None:
    """Whatever is published and however the client reads: each channel's publications come in order, gaps stand where
    they are and say how many are missing, latest ends with the newest, replies and channels with disconnect are whole,
    and the counters say how many were missed.
    """
    channels = ["latest:a", "latest:b", "drop-oldest:a", "drop-oldest:b", "drop-oldest:c", "disconnect:a", "reply"]
    chance = random.Random(6)

    async def scenario() -> None:
        shared = environment(**limits)
        async with subscriber(shared) as (connection, client):
            newest = dict.fromkeys(channels, 0)
            over = asyncio.Event()
            reading = asyncio.create_task(told(connection, client, over))
            for _ in range(4000):
                channel = chance.choice(channels[:5])
                if connection.has_room and chance.randrange(4) == 0:
                    channel = chance.choice(channels[5:])
                number = newest[channel] = newest[channel] + 1
                size = chance.randrange(1500)
                frame = reply(number, size) if channel == "reply" else publication(channel, number, size)
                assert connection.send_frame(frame)
                check_counts(shared, connection)
                if chance.randrange(40) == 0:
                    await asyncio.sleep(0)  # the client reads
            over.set()
            got = await reading
            missed = dict.fromkeys(("latest", "drop-oldest", "disconnect", "reply"), 0)
            for channel in channels:
                story = [heard for name, heard in got if name == channel]
                missed[channel.partition(":")[0]] += check_story(channel, story, newest[channel])
            counters = shared.counters
            assert missed["latest"] == counters.drops_latest > 100
            assert missed["drop-oldest"] == counters.drops_oldest > 100
            assert counters.drops_slow == counters.drops_lost == 0

    run(scenario())
