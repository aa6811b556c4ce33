"""Every message once, in order, counted; and registered means registered."""

import asyncio
import itertools
import random
import time

from tests.chaos.load import Accepts, Load, Publisher, open_websocket, run, show, until

USERS, EACH, PUBLISHERS, PUSHES = 200, 3, 8, 2000
CONNECTS, LANES = 10_000, 8


def test_exactly_once(serve) -> None:
    """4 workers, 200 users with 3 connections, 2,000 pushes of 8 publishers at once: each arrives 3 times."""
    server = serve(workers=4)

    async def publish(load: Load, number: int) -> None:
        publisher = Publisher(server.port)
        await publisher.connect()
        for count in range(PUSHES // PUBLISHERS):
            user = random.choice(load.users)
            load.pushes.append(await publisher.push(user, f"{number}:{count}"))
        publisher.close()

    async def scenario() -> None:
        async with Load(server, users=USERS, each=EACH) as load:
            began = time.monotonic()
            await asyncio.gather(*(publish(load, number) for number in range(PUBLISHERS)))
            seconds = time.monotonic() - began
            await load.check_delivered()
            assert [push for push in load.pushes if push.status != 200] == []
            assert sum(load.received().values()) == PUSHES * EACH
            for client in load.clients:
                assert sorted(client.messages) == sorted(p.message for p in load.pushes if p.user == client.user)
            with Accepts(server.log_path) as accepts:
                spread = {accepts.worker_of(client.websocket.port) for client in load.clients}
                publishing = {accepts.worker_of(push.port) for push in load.pushes}
            assert len(spread) == 4
            show(
                f"{len(load.pushes)} pushes through {len(publishing)} workers in {seconds:.2f} s: "
                f"{sum(push.sent for push in load.pushes)} counted, {sum(load.received().values())} received, "
                f"0 lost, 0 twice, 0 out of order"
            )

    run(scenario())


def test_registered_at_101(serve) -> None:
    """10,000 connects by URL, each pushed to through another worker right after its 101: N = 1 every time."""
    server = serve(workers=4)
    numbers = itertools.count()
    counts: list[int] = []
    delays: list[float] = []

    async def one_a_worker(accepts: Accepts) -> dict[int, Publisher]:
        found: dict[int, Publisher] = {}
        while len(found) < 4:
            publisher = Publisher(server.port)
            await publisher.connect()
            if found.setdefault(accepts.worker_of(publisher.port), publisher) is not publisher:
                publisher.close()
        return found

    async def lane(accepts: Accepts) -> None:
        publishers = await one_a_worker(accepts)
        clock = asyncio.get_running_loop().time
        while (number := next(numbers)) < CONNECTS:
            received: list[str] = []
            websocket = await open_websocket(server.port, f"user{number}", received.append)
            opened = clock()
            own = accepts.worker_of(websocket.port)
            other = random.choice([worker for worker in publishers if worker != own])
            push = await publishers[other].push(f"user{number}", "now")
            delays.append(push.began - opened)
            assert (push.status, push.sent, push.unconfirmed) == (200, 1, 0), push
            counts.append(push.sent)
            await until(lambda: received, what="the message")  # noqa: B023 - awaited here
            assert received == ["now"]
            websocket.close()
            assert await websocket.closed in (1000, 1006)
        for publisher in publishers.values():
            publisher.close()

    async def scenario() -> None:
        began = time.monotonic()
        with Accepts(server.log_path) as accepts:
            await asyncio.gather(*(lane(accepts) for _ in range(LANES)))
        await until(lambda: server.metrics()["fastpush_broker_routes"] == 0, what="an empty routing table")
        assert len(counts) == CONNECTS
        show(
            f"{CONNECTS} connects, each pushed to through another worker {sorted(delays)[CONNECTS // 2] * 1e6:.0f} µs"
            f" (median) after its 101: N = 1 in {counts.count(1)}; {time.monotonic() - began:.1f} s"
        )

    run(scenario())
