"""Who is online in a channel is exact, and told to all of it in one order, whatever comes, goes and dies."""

import asyncio
import json
import random
import signal
import socket
import time
from collections import defaultdict
from typing import Any

import psutil
import pytest

from tests.chaos.load import Refused, WebSocket, dial, kill, open_websocket, run, show, until
from tests.server import Server, application

CONNECTS, USERS, LANES, KILLS = 5000, 200, 40, 7
CAME, LEFT = 3, 4


class Observer:
    """A user of the hall that stays. notices: (user, CAME or LEFT) as they come, of those who do not stay."""

    def __init__(self) -> None:
        self.notices: list[tuple[str, int]] = []
        self.websocket: WebSocket | None = None

    async def enter(self, port: int, user: str, dialled: socket.socket | None = None) -> "Observer":
        self.websocket = await open_websocket(
            port, user, self._on_message, target=f"/chat?token={user}", dialled=dialled
        )
        return self

    @property
    def has_stayed(self) -> bool:
        assert self.websocket is not None
        return not self.websocket.closed.done()

    def _on_message(self, text: str) -> None:
        message = json.loads(text)
        if message["messageType"] in {CAME, LEFT} and not message["from"].startswith("observer"):
            self.notices.append((message["from"], message["messageType"]))

    def of_users(self) -> dict[str, list[int]]:
        found = defaultdict(list)
        for user, kind in self.notices:
            found[user].append(kind)
        return found


class Crowd:
    """Users that come and go at random; the truth about who is there."""

    def __init__(self, server: Server, random_: random.Random) -> None:
        self.server = server
        self.random = random_
        self.connects = self.failed = 0
        self.websockets: list[tuple[str, WebSocket]] = []

    def present(self) -> list[str]:
        """The user of each open connection."""
        return [user for user, websocket in self.websockets if not websocket.closed.done()]

    async def live(self, connects: int) -> None:
        """Come and go, LANES at a time, until so many connects were made; some stay."""
        last = self.connects + connects
        await asyncio.gather(*(self._lane(last) for _ in range(LANES)))

    async def _lane(self, last: int) -> None:
        while self.connects < last:
            if self.random.random() < 0.5 or not self.websockets:
                self.connects += 1
                user = f"user{self.random.randrange(USERS)}"
                try:
                    websocket = await open_websocket(self.server.port, user, target=f"/chat?token={user}")
                except (OSError, Refused):  # its worker was killed
                    self.failed += 1
                else:
                    self.websockets.append((user, websocket))
            else:
                await self.end_one()

    async def end_one(self) -> None:
        """Let one connection end, in whatever way."""
        _, websocket = self.websockets.pop(self.random.randrange(len(self.websockets)))
        if websocket.closed.done():
            return
        if self.random.random() < 0.5:
            websocket.close()
        else:
            websocket.reset()
        await websocket.closed

    async def check_online(self, observers: list[Observer], *unnoticed: str) -> None:
        """Fail unless the server counts and names who is there, within a moment.

        unnoticed: who is not there, and named all the same, for nobody has been told yet.
        """

        async def told() -> tuple[Any, Any]:
            answer = json.loads((await asyncio.to_thread(self.server.request, "GET", "/online"))[2])
            counts = {"users": len(set(self._all(observers))), "connections": len(self._all(observers))}
            return answer, counts | {"applications": {"/chat": dict(counts)}}

        async def is_true() -> bool:
            answers.append(await told())
            return answers[-1][0] == answers[-1][1]

        answers: list[tuple[Any, Any]] = []
        try:
            await until(is_true, what="the truth")
        except AssertionError:
            assert answers[-1][0] == answers[-1][1]
            raise
        await self._check_members({*self._all(observers), *unnoticed, "observer"})

    def _all(self, observers: list[Observer]) -> list[str]:
        staying = [f"observer{number}" for number, observer in enumerate(observers) if observer.has_stayed]
        return [*self.present(), *staying]

    async def _check_members(self, present: set[str]) -> None:
        """Fail unless a client that asks who is there is told."""
        texts: list[str] = []
        asker = await open_websocket(self.server.port, "observer", texts.append, target="/chat?token=observer")

        async def told() -> tuple[list[str], int]:
            texts.clear()
            asker.send_text('{"messageType":7,"to":""}')
            answers = await until(
                lambda: [m for text in texts if (m := json.loads(text))["messageType"] == 7], what="the members"
            )
            return answers[0]["members"], answers[0]["online"]

        async def is_true() -> bool:
            return await told() == (sorted(present), len(present))

        try:
            await until(is_true, what="the names")  # whoever has left is named until that is noticed
        except AssertionError:
            assert await told() == (sorted(present), len(present))
            raise
        asker.close()
        await asker.closed


def check_notices(observers: list[Observer], present: set[str]) -> None:
    """Fail unless all saw the same, for each user came and left in turn, which ends with what is so."""
    first, *others = [observer for observer in observers if observer.has_stayed]
    for other in others:
        assert other.notices == first.notices
    for user, kinds in first.of_users().items():
        assert kinds == [CAME, LEFT] * (len(kinds) // 2) + [CAME] * (len(kinds) % 2), (user, kinds)
        assert (kinds[-1] == CAME) == (user in present), user
    assert present <= set(first.of_users())


@pytest.fixture
def serve_chat(serve: Any) -> Any:
    """Start four workers with /chat, whose grace period is the argument."""

    def start(grace_seconds: float) -> Server:
        options = {"grace_seconds": grace_seconds, "keep": 10}
        sections = {"application": [application("Chat", options=options)]}
        return serve(workers=4, sections=sections)

    return start


def seeded() -> random.Random:
    seed = random.randrange(2**32)
    show(f"seed {seed}")
    return random.Random(seed)


async def kill_now_and_then(crowd: Crowd, slots: set[int]) -> None:
    """Kill a worker of these slots KILLS times while CONNECTS connects are made; return when the last one has ended."""
    for number in range(KILLS):
        due = CONNECTS * (number + 1) // (KILLS + 1)
        await until(lambda: crowd.connects >= due, 60, "connects")  # noqa: B023 - awaited here
        slot = crowd.random.choice(sorted(slots))
        victim = await until(lambda: _ready_worker(crowd.server, slot), what="a worker to kill")  # noqa: B023
        kill(victim, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(victim), what="its end")  # noqa: B023


async def _ready_worker(server: Server, slot: int) -> int | None:
    workers = await asyncio.to_thread(server.processes, "worker")
    return next((w["pid"] for w in workers if w["slot"] == slot and w["state"] == "ready"), None)


@pytest.mark.parametrize("grace_seconds", [0, 0.5])
def test_online_and_notices(serve_chat: Any, grace_seconds: float) -> None:
    """200 users connect and disconnect 5,000 times on 4 workers, cleanly and by reset, while workers are killed: then
    the counts and names are the truth, and all observers who stayed have seen the same notices, for each user came and
    left in turn, ending with what is so.

    More cannot be demanded of the number of notices: when a connection's end and the next one's beginning pass through
    two workers, their order at the broker is what decides whether the user has left in between. But none of them is
    lost: none was dropped for a worker that took no more, and all observers have as many.
    """
    server = serve_chat(grace_seconds)

    async def scenario() -> None:
        crowd = Crowd(server, seeded())
        homes = server.processes("worker") * 3
        observers = [
            await Observer().enter(server.port, f"observer{number}", await dial(server, home["number"]))
            for number, home in enumerate(homes)
        ]
        killed = set(crowd.random.sample(sorted(home["slot"] for home in homes[:4]), 2))
        staying = [observer for observer, home in zip(observers, homes, strict=True) if home["slot"] not in killed]
        began = time.monotonic()
        await asyncio.gather(crowd.live(CONNECTS), kill_now_and_then(crowd, killed))
        assert all(observer.has_stayed for observer in staying)
        await crowd.check_online(observers)
        # Whoever has no connection any more has left by then.
        await until(
            lambda: (
                {user for user, kinds in staying[0].of_users().items() if kinds[-1] == CAME} == set(crowd.present())
            ),
            what="the last notices",
        )
        await until(lambda: len({len(observer.notices) for observer in staying}) == 1, what="the same everywhere")
        check_notices(observers, set(crowd.present()))
        assert server.metrics()["fastpush_broker_notices_dropped_total"] == 0
        show(
            f"{crowd.connects} connects, {crowd.failed} cut, {KILLS} workers killed, {time.monotonic() - began:.1f} s; "
            f"{len(staying[0].notices)} notices, the same to {len([o for o in observers if o.has_stayed])} observers; "
            f"{len(set(crowd.present()))} users with {len(crowd.present())} connections at the end"
        )

    run(scenario())


def test_the_broker_is_killed_meanwhile(serve_chat: Any) -> None:
    """The broker is killed again and again while users come and go: then the counts and names are the truth."""
    server = serve_chat(0.2)

    async def scenario() -> None:
        crowd = Crowd(server, seeded())
        observers = [await Observer().enter(server.port, f"observer{number}") for number in range(4)]
        for _ in range(5):
            (broker,) = [b for b in await asyncio.to_thread(server.processes, "broker") if b["state"] == "ready"]
            living = asyncio.create_task(crowd.live(300))
            due = crowd.connects + crowd.random.randrange(100, 200)
            await until(lambda: crowd.connects >= due, what="connects")  # noqa: B023 - awaited here
            kill(broker["pid"], signal.SIGKILL)
            await living
            assert not crowd.failed
            await crowd.check_online(observers)
        assert all(observer.has_stayed for observer in observers)

    run(scenario())


def test_a_reconnect_within_the_grace_period(serve_chat: Any) -> None:
    """Who comes back within the grace period, cleanly closed or reset, to whatever worker, has neither left nor come:
    that is announced to nobody, though the counts have told the truth at every moment.
    """
    server = serve_chat(4)

    async def scenario() -> None:
        crowd = Crowd(server, seeded())
        observers = [await Observer().enter(server.port, f"observer{number}") for number in range(4)]
        for turn in range(20):
            websocket = await open_websocket(server.port, "jack", target="/chat?token=jack")
            crowd.websockets = [("jack", websocket)]
            await crowd.check_online(observers)
            await crowd.end_one()
            if turn % 5 == 0:
                await crowd.check_online(observers, "jack")
        await until(lambda: all(len(observer.notices) >= 2 for observer in observers), what="jack has left")
        assert [observer.notices for observer in observers] == [[("jack", CAME), ("jack", LEFT)]] * 4

    run(scenario())
