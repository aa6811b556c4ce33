"""A worker that dies or stands still costs its clients one reconnect, and nobody else anything."""

import asyncio
import random
import signal
from math import inf

import pytest

from tests.chaos.load import Accepts, Load, kill, run, show
from tests.server import SCALE, Server
from tests.standstill import Standstill

KILLS = 20
CONFIRM_SECONDS = 1.0
HANG_SECONDS = 2
SLACK_SECONDS = 0.5 * SCALE  # of a connect
PUSH_SLACK_SECONDS = 0.2 * SCALE


class Hunt:
    """Sends a signal to a random worker that runs, once a second. hit: number of each, and when."""

    def __init__(self, server: Server, number: signal.Signals) -> None:
        self._server = server
        self._signal = number
        self.hit: dict[int, float] = {}
        self.spared = 0

    async def run(self, times: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for turn in range(times):
            workers = await asyncio.to_thread(self._server.processes, "worker")
            running = [w for w in workers if w["state"] == "ready" and w["number"] not in self.hit]
            if running:
                worker = random.choice(running)
                self.hit[worker["number"]] = loop.time()
                kill(worker["pid"], self._signal)
            else:
                self.spared += 1  # all that serve have been stopped and are still to be found out
            await asyncio.sleep(max(0, began + turn + 1 - loop.time()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_worker_lost_every_second(serve, standstill: Standstill, number: signal.Signals) -> None:
    """For 20 s a random worker is killed, or stopped, every second: no connect is refused or slow, no push hangs,
    and afterwards the routing table and the counts are those of the clients.
    """
    sections = {"server": {"hang_seconds": HANG_SECONDS}, "bus": {"confirm_ms": int(CONFIRM_SECONDS * 1000)}}
    server = serve(workers=4, sections=sections)
    hang_seconds = HANG_SECONDS if number == signal.SIGSTOP else 0

    hunt = Hunt(server, number)

    async def scenario() -> None:
        with Accepts(server.log_path) as accepts:
            load = Load(server, users=40, each=3, publishers=8, pushes_per_second=200, accepts=accepts)
            await hunted(load)

    async def hunted(load: Load) -> None:
        async with load:
            await hunt.run(KILLS)
            await load.stop_publishing()
            routes = await load.check_exact()
            connects = sorted(load.connects())
            assert load.refused() == []
            assert load.disorder() == []
            still = standstill.seconds
            assert connects[-1] <= hang_seconds + SLACK_SECONDS + still
            # Its worker was hit after it had accepted; before, it may have waited for one that was hit.
            cut = load.cut()
            assert max(cut, default=0) <= 2 * hang_seconds + SLACK_SECONDS + still
            assert set(load.statuses()) <= {0, 200, 503, 504}
            received = load.received()
            assert [push for push in load.pushes if push.status == 503 and push.message in received] == []
            # A stopped process cannot answer: its publishers are cut off when it is found out.
            through = [push for push in load.pushes if push.ended < hunt.hit.get(push.worker, inf)]
            slowest = max(push.seconds for push in (through if hang_seconds else load.pushes))
            longest = CONFIRM_SECONDS + PUSH_SLACK_SECONDS + still
            assert slowest <= longest
            assert max(push.seconds for push in load.pushes) <= longest + hang_seconds
            show(
                f"{number.name} of {len(hunt.hit)} workers (none left to hit: {hunt.spared}): "
                f"{sum(load.closes().values())} clients lost their connection, {len(connects)} connects, 0 refused, "
                f"slowest {connects[-1] * 1000:.0f} ms, {len(cut)} cut off in it by a hit; "
                f"pushes by status {load.statuses()}, unconfirmed {sum(push.unconfirmed > 0 for push in load.pushes)}, "
                f"slowest {slowest * 1000:.0f} ms ({len(through)} of {len(load.pushes)} through workers not hit yet); "
                f"{routes} routes as expected"
            )

    run(scenario())
