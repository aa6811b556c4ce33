"""How a server ends, and how one worker does: on purpose, and because the supervisor was killed."""

import asyncio
import signal
import socket
import time
from collections.abc import Callable

import psutil

from tests.chaos.load import Accepts, Load, Push, kill, open_websocket, run, show, until
from tests.server import SCALE, Server, eventually
from tests.standstill import Standstill

DRAIN_SECONDS = 3


def family(server: Server) -> list[psutil.Process]:
    return [psutil.Process(server.process.pid), *server.children()]


def gone(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def check_nothing_left(server: Server) -> None:
    assert not server.runtime_directory.exists()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", server.port))


def test_supervisor_killed(serve, standstill: Standstill) -> None:
    """The supervisor is killed: clients get 1012, the children are gone within drain_seconds, the port is free, and a
    new server starts at once in the same place while old workers still wait for a client that does not answer.
    """
    sections = {"server": {"drain_seconds": DRAIN_SECONDS}}
    server = serve(workers=4, sections=sections)
    port = server.port

    async def scenario() -> tuple[float, float]:
        children = server.children()
        clients = [await open_websocket(port, f"user{number}") for number in range(100)]
        mute = await open_websocket(port, "mute", answers_close=False)
        began = time.monotonic()
        server.process.kill()
        server.process.wait()
        codes = await asyncio.wait_for(asyncio.gather(*(client.closed for client in clients)), 10 * SCALE)
        assert set(codes) == {1012}
        server.write_config(4, sections)
        server.stderr.close()
        await asyncio.to_thread(server.start)
        started = time.monotonic() - began
        new = await open_websocket(port, "new")
        assert server.port == port
        assert (await asyncio.to_thread(server.push, "new", "news", "hello"))["sent"] == 1
        await until(gone(children), DRAIN_SECONDS + 10, "the old children's end")
        ended = time.monotonic() - began
        assert await mute.closed == 1012
        assert not new.closed.done()
        new.transport.close()
        return started, ended

    started, ended = run(scenario())
    assert ended <= DRAIN_SECONDS + 0.5 * SCALE + standstill.seconds
    children = server.children()
    server.process.kill()
    began = time.monotonic()
    server.process.wait()
    eventually(gone(children), DRAIN_SECONDS + 10, "the children's end")
    assert time.monotonic() - began <= DRAIN_SECONDS * SCALE + standstill.seconds
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
    show(
        f"supervisor killed: 100 of 100 clients got 1012, a new server on the same port was ready after {started:.2f} s"
        f" (with the interpreter's start), the old children were gone after {ended:.2f} s ({DRAIN_SECONDS} s allowed)"
    )


def partial(pushes: list[Push]) -> list[Push]:
    """Pushes whose connection broke in the middle of their reply."""
    return [push for push in pushes if push.status == 0 and push.body]


def test_server_ends_under_load(serve) -> None:
    """SIGTERM under load: pushes in flight are answered, clients get 1012, nothing is left behind."""
    server = serve(workers=4)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        processes = family(server)
        async with Load(server, users=40, each=3, publishers=8, pushes_per_second=10_000) as load:
            websockets = [client.websocket for client in load.clients]
            await until(lambda: len(load.pushes) > 2000, what="load")
            told = loop.time()
            server.signal(signal.SIGTERM)
            codes = await asyncio.wait_for(asyncio.gather(*(websocket.closed for websocket in websockets)), 10 * SCALE)
            assert set(codes) == {1012}
            await until(gone(processes), 10, "the end of all processes")
            ended = loop.time() - told
            for task in load._publications:
                task.cancel()
            in_flight = [push for push in load.pushes if push.began <= told <= push.ended]
            assert partial(load.pushes) == []
            assert [push for push in in_flight if push.status not in {200, 503, 504}] == []
            await load.check_delivered([push for push in load.pushes if push.ended < told])
            # Other workers may have sent their clients away already. What counts is that the count is true.
            received = load.received()
            counted = [push for push in load.pushes if push.status == 200 and not push.unconfirmed]
            assert [push for push in counted if push.sent != received.get(push.message, 0)] == []
            assert [push for push in load.pushes if push.status == 503 and push.message in received] == []
            assert load.disorder() == []
            show(
                f"SIGTERM under load: {len(in_flight)} pushes in flight answered, no reply cut; "
                f"all by status (0: sent too late, no answer) {load.statuses()}; "
                f"{len(codes)} clients got 1012; all gone after {ended:.2f} s"
            )

    run(scenario())
    assert server.process.wait(20 * SCALE) == 0
    check_nothing_left(server)


def test_one_worker_ends_under_load(serve, standstill: Standstill) -> None:
    """SIGTERM to one worker: its clients get 1012 and come back, it is replaced, nobody else notices."""
    server = serve(workers=3)

    async def scenario() -> None:
        async with Load(server, users=40, each=3, publishers=6, pushes_per_second=300) as load:
            victim = (await asyncio.to_thread(server.processes, "worker"))[0]
            with Accepts(server.log_path) as accepts:
                own = [c for c in load.clients if accepts.worker_of(c.websocket.port) == victim["number"]]
            await until(lambda: len(load.pushes) > 100, what="load")
            kill(victim["pid"], signal.SIGTERM)
            await until(lambda: [e for e in server.events("process ended") if e["number"] == victim["number"]])
            count = len(load.pushes)
            await until(lambda: len(load.pushes) > count + 100, what="load")
            await load.stop_publishing()
            routes = await load.check_exact()
            assert load.closes() == {1012: len(own)}
            assert [client for client in own if client.closes != [1012]] == []
            assert load.refused() == []
            assert partial(load.pushes) == []
            assert set(load.statuses()) <= {0, 200}
            assert load.disorder() == []
            workers = await asyncio.to_thread(server.processes, "worker")
            assert {worker["slot"] for worker in workers} == {0, 1, 2}
            slowest = max(load.connects())
            assert slowest <= 0.5 * SCALE + standstill.seconds
            show(
                f"SIGTERM to a worker: its {len(own)} clients got 1012, {len(load.clients) - len(own)} noticed nothing;"
                f" pushes by status {load.statuses()}; slowest connect {slowest * 1000:.0f} ms; "
                f"{routes} routes as expected"
            )

    run(scenario())
