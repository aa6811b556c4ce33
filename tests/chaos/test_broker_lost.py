"""A broker that dies or stands still costs nobody a connection, and no push the truth about it."""

import asyncio
import signal
import socket

import pytest

from fastpush.protocol import bus
from tests.chaos.load import Load, Publisher, Push, kill, open_websocket, run, show, until
from tests.server import SCALE, Server
from tests.standstill import Standstill

CONFIRM_SECONDS = 3.0  # longer than a machine stands still, or pushes of that moment are unconfirmed
PUSH_SLACK_SECONDS = 0.2 * SCALE
WELL_SECONDS = 1.0 * SCALE
STALLED_SECONDS = 1.0  # a new broker waits so long for a worker's key table


async def pid_of_broker(server: Server) -> int:
    return (await asyncio.to_thread(server.processes, "broker"))[0]["pid"]


async def well_again(load: Load, since: float, seconds: float) -> float:
    """Return how long after `since` the last push that did not succeed was answered, once ten after it have."""

    def last() -> float | None:
        answered = [push for push in load.pushes if push.ended > since]
        failed = max((push.ended for push in answered if push.status != 200), default=since)
        return failed if len([push for push in answered if push.began > failed]) >= 10 else None

    return await until(last, seconds + 5, "ten pushes that succeed") - since


def check_nobody_noticed(load: Load) -> None:
    assert load.closes() == {}
    assert set(load.statuses()) <= {200, 503, 504}
    assert load.refused() == []
    assert all(len(client.connects) == 1 for client in load.clients)


def slowest(pushes: list[Push]) -> float:
    return max(push.seconds for push in pushes)


@pytest.mark.parametrize(
    ("number", "times", "hang_seconds"),
    [(signal.SIGKILL, 10, 10), (signal.SIGSTOP, 2, 1)],
    ids=["killed", "stopped"],
)
def test_broker_lost(serve, standstill: Standstill, number: signal.Signals, times: int, hang_seconds: int) -> None:
    """The broker is killed (stopped) again and again under load: nobody is disconnected, a push is delivered
    to all, or 503 and to none, or 504; each time all is well within a second (of the time a hang takes).
    """
    sections = {"server": {"hang_seconds": hang_seconds}, "bus": {"confirm_ms": int(CONFIRM_SECONDS * 1000)}}
    server = serve(workers=4, sections=sections)
    allowed = WELL_SECONDS + (hang_seconds + 0.5 if number == signal.SIGSTOP else 0)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with Load(server, users=40, each=3, publishers=4, pushes_per_second=300) as load:
            gaps = []
            for _ in range(times):
                count = len(load.pushes)
                await until(lambda: len(load.pushes) > count + 30, what="load")  # noqa: B023 - awaited here
                pid = await pid_of_broker(server)
                killed = loop.time()
                kill(pid, number)
                await until(lambda: is_replaced(server, pid), what="a new broker")  # noqa: B023 - awaited here
                gaps.append(await well_again(load, killed, allowed))
            await load.stop_publishing()
            check_nobody_noticed(load)
            await load.check_delivered()
            routes = await load.check_exact()
            assert max(gaps) <= allowed + standstill.seconds
            assert slowest(load.pushes) <= CONFIRM_SECONDS + PUSH_SLACK_SECONDS + standstill.seconds
            show(
                f"broker {number.name} x {times}: 0 of {len(load.clients)} clients disconnected, "
                f"pushes by status {load.statuses()}, each 200 received by 3, each 503 by nobody; "
                f"well again after {' '.join(f'{gap * 1000:.0f}' for gap in gaps)} ms, "
                f"slowest push {slowest(load.pushes) * 1000:.0f} ms, {routes} routes as expected"
            )

    run(scenario())


async def is_replaced(server: Server, pid: int) -> bool:
    brokers = await asyncio.to_thread(server.processes, "broker")
    return any(broker["pid"] != pid and broker["state"] == "ready" for broker in brokers)


def test_broker_killed_while_a_worker_stands_still(serve, standstill: Standstill) -> None:
    """A new broker waits a second for a stopped worker's key table, has it killed, and takes pushes again."""
    server = serve(workers=3)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with Load(server, users=20, each=3) as load:
            stopped = (await asyncio.to_thread(server.processes, "worker"))[0]
            publisher = await publisher_elsewhere(server, stopped["number"])
            kill(stopped["pid"], signal.SIGSTOP)
            broker = await pid_of_broker(server)
            killed = loop.time()
            kill(broker, signal.SIGKILL)
            answers: list[Push] = []
            while not answers or answers[-1].status != 200:
                answers.append(await publisher.push("user0", f"9:{len(answers)}"))
                await asyncio.sleep(0.01)
            seconds = answers[-1].ended - killed
            assert {push.status for push in answers[:-1]} <= {503, 504}
            assert STALLED_SECONDS * 0.9 <= seconds <= STALLED_SECONDS + 0.5 * SCALE + standstill.seconds
            ended = await until(lambda: [e for e in server.events("process ended") if e["number"] == stopped["number"]])
            assert "key table" in ended[0]["reason"]
            publisher.close()
            await load.check_exact()
            received = load.received()
            assert not [push for push in answers if push.status == 503 and push.message in received]
            show(f"broker killed beside a stopped worker: {len(answers) - 1} pushes refused, 200 after {seconds:.2f} s")

    run(scenario())


async def publisher_elsewhere(server: Server, worker: int) -> Publisher:
    """Return a publisher whose connection another worker serves."""
    while True:
        publisher = Publisher(server.port)
        await publisher.connect()
        if await asyncio.to_thread(server.worker_of, publisher.port) != worker:
            return publisher
        publisher.close()


def test_registration_waits_for_a_broker(serve, standstill: Standstill) -> None:
    """A connect while the broker stands still gets its 101 from the next one, and is counted at once."""
    server = serve(workers=2, sections={"server": {"hang_seconds": 1}})

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        kill(await pid_of_broker(server), signal.SIGSTOP)
        began = loop.time()
        websockets = await asyncio.gather(*(open_websocket(server.port, "jack") for _ in range(20)))
        seconds = loop.time() - began
        publisher = Publisher(server.port)
        await publisher.connect()
        push = await publisher.push("jack", "hello")
        assert (push.status, push.sent) == (200, 20)
        publisher.close()
        for websocket in websockets:
            websocket.transport.close()
        assert seconds <= 1 + WELL_SECONDS + standstill.seconds
        show(f"20 connects during a hang of the broker: all 101 after {seconds:.2f} s, N = 20")

    run(scenario())


def test_cut_link_is_made_again_and_hides_nobody(serve) -> None:
    """While a worker's link is cut, a push reaches all connections or answers 503; its keys come back with the link.

    Whoever says HELLO with a worker's number makes the broker close that worker's link.
    """
    server = serve(workers=3)

    def cut(number: int) -> None:
        path = next(server.runtime_directory.glob("bus-*"))
        with socket.socket(socket.AF_UNIX) as intruder:
            intruder.settimeout(10 * SCALE)
            intruder.connect(str(path))
            intruder.sendall(bus.encode(bus.HELLO, number))
            while intruder.recv(4096):  # until the worker itself is back
                pass

    async def scenario() -> None:
        async with Load(server, users=20, each=3, publishers=4, pushes_per_second=400) as load:
            workers = [worker["number"] for worker in await asyncio.to_thread(server.processes, "worker")]
            for number in workers * 5:
                count = len(load.pushes)
                await asyncio.to_thread(cut, number)
                await until(lambda: len(load.pushes) > count + 20, what="load")  # noqa: B023 - awaited here
            await load.stop_publishing()
            assert load.closes() == {}
            assert set(load.statuses()) <= {200, 503, 504}
            certain = [push for push in load.pushes if not push.unconfirmed]
            assert len(load.pushes) - len(certain) <= 15 * len(load.publishers)  # under way at the cut
            await load.check_delivered(certain)
            routes = await load.check_exact()
            show(
                f"15 cut links: 0 of {len(load.clients)} clients disconnected, pushes by status {load.statuses()}, "
                f"{len(load.pushes) - len(certain)} unconfirmed, {routes} routes as expected"
            )

    run(scenario())
