"""Who is in a channel is exact, and told to those in it, whatever comes, goes and dies; a large one delays nobody."""

import asyncio
import json
import random
import signal
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Any

import psutil
import pytest

from tests.chaos.load import HttpConnection, Refused, WebSocket, dial, kill, open_websocket, run, show, until
from tests.load.clients import quantiles
from tests.load.driver import IS_FULL, Driven
from tests.server import SCALE, Server
from tests.standstill import Standstill

JOINS = 5000 if IS_FULL else 1000
KILLS = 7 if IS_FULL else 3
USERS, LANES, CHANNELS = 100, 40, 4
MEMBERS, MEMBERS_SECONDS, PROCESSES = (10_000, 9.0, 2) if IS_FULL else (1000, 1.5, 2)
# The figures are what counts; a bound for a machine that other tests share can only tell a standstill.
DELAY_MAX_MS = 3000 * SCALE
PUBLISH_EVERY_SECONDS = 0.25 if IS_FULL else 0.1  # one to 10,000 costs the machine a twentieth of a second


class Lost(Exception):
    """The connection has ended with a command under way, or before."""


class Member:
    """A client of the protocol. on_push: told each push.  channels: that it is in, as far as it was told."""

    def __init__(self, user: str, on_push: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.user = user
        self.id = ""
        self.channels: set[str] = set()
        self.websocket: WebSocket | None = None
        self._on_push = on_push
        self._ids = count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def connect(self, port: int, dialled: socket.socket | None = None) -> None:
        try:
            self.websocket = await open_websocket(
                port, "", self._on_message, target="/connection/websocket", dialled=dialled
            )
        except (OSError, Refused):
            raise Lost from None
        self.id = (await self.ask("connect", token=self.user))["client"]

    @property
    def is_open(self) -> bool:
        return self.websocket is not None and not self.websocket.closed.done()

    def begin(self, method: str, **parameters: Any) -> "asyncio.Future[dict[str, Any]]":
        """Send a command; return what will be its reply."""
        number = next(self._ids)
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        self.websocket.send_text(json.dumps({"id": number, method: parameters}))
        return reply

    async def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command; return its result. Raises: Lost."""
        reply = self.begin(method, **parameters)
        await asyncio.wait((reply, self.websocket.closed), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done():
            raise Lost
        assert method in reply.result(), reply.result()
        return reply.result()[method]

    async def subscribe(self, channel: str) -> None:
        await self.ask("subscribe", channel=channel)
        self.channels.add(channel)

    async def unsubscribe(self, channel: str) -> None:
        self.channels.discard(channel)
        await self.ask("unsubscribe", channel=channel)

    async def presence(self, channel: str) -> dict[str, str]:
        """Return the user of each connection in a channel that this one is in."""
        found = (await self.ask("presence", channel=channel)).get("presence", {})
        assert all(info["client"] == name for name, info in found.items())
        return {name: info["user"] for name, info in found.items()}

    def _on_message(self, text: str) -> None:
        for line in text.split("\n"):
            told = json.loads(line)
            if "push" in told:
                self._on_push(told["push"])
            elif told:
                self._replies.pop(told["id"]).set_result(told)
            else:
                self.websocket.send_text("{}")


class Observer:
    """A member of all channels that stays. told: "join" and "leave" in turn, by channel and by who it is about."""

    def __init__(self, number: int) -> None:
        self.member = Member(f"observer{number}", self._on_push)
        self.told: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    async def enter(self, port: int, channels: list[str], dialled: socket.socket | None = None) -> "Observer":
        await self.member.connect(port, dialled)
        for channel in channels:
            await self.member.subscribe(channel)
        return self

    def _on_push(self, push: dict[str, Any]) -> None:
        kind = "join" if "join" in push else "leave"
        info = push[kind]["info"]
        if not info["user"].startswith("observer"):
            self.told[push["channel"]][info["client"] or info["user"]].append(kind)

    def present(self, channel: str) -> set[str]:
        """Return who is there, as this one was told."""
        return {who for who, kinds in self.told[channel].items() if kinds[-1] == "join"}

    def check_turns(self) -> None:
        """Fail unless each was told to come and to leave in turn."""
        for of_channel in self.told.values():
            for who, kinds in of_channel.items():
                assert kinds == ["join", "leave"] * (len(kinds) // 2) + ["join"] * (len(kinds) % 2), (who, kinds)


class Crowd:
    """Users that come and go at random; the truth about who is where."""

    def __init__(self, server: Server, channels: list[str], random_: random.Random) -> None:
        self.server = server
        self.random = random_
        self.joins = 0
        self.done: Counter[str] = Counter()
        self.members: list[Member] = []
        self._channels = channels

    async def live(self, joins: int) -> None:
        """Come and go, LANES at a time, until so many joins were begun; some stay."""
        async with asyncio.TaskGroup() as lanes:
            for _ in range(LANES):
                lanes.create_task(self._lane(joins))

    async def _lane(self, joins: int) -> None:
        while self.joins < joins:
            what = self.random.choice((self._come, self._come, self._move, self._move, self._end, self._break_off))
            self.done[what.__name__] += 1
            try:
                await what()
            except Lost:
                self.done["lost"] += 1

    async def _come(self) -> None:
        member = Member(f"user{self.random.randrange(USERS)}")
        await member.connect(self.server.port)
        for channel in self.random.sample(self._channels, self.random.randrange(1, 3)):
            self.joins += 1
            await member.subscribe(channel)
        self.members.append(member)

    def _take(self) -> Member | None:
        """Return a member that nobody else does something with until it is put back."""
        return self.members.pop(self.random.randrange(len(self.members))) if self.members else None

    async def _move(self) -> None:
        """Leave a channel, or enter one."""
        member = self._take()
        if member is None or not member.is_open:
            return
        try:
            channel = self.random.choice(self._channels)
            if channel in member.channels:
                await member.unsubscribe(channel)
            else:
                self.joins += 1
                await member.subscribe(channel)
        finally:
            self.members.append(member)

    async def _end(self) -> None:
        """Close, or cut."""
        member = self._take()
        if member is not None and member.is_open:
            if self.random.random() < 0.5:
                member.websocket.close()
            else:
                member.websocket.reset()
            await member.websocket.closed

    async def _break_off(self) -> None:
        """Cut while a command is under way, or several are."""
        member = self._take()
        if member is None or not member.is_open:
            return
        channel = self.random.choice(self._channels)
        for _ in range(self.random.randrange(1, 4)):
            self.joins += 1
            member.begin(self.random.choice(("subscribe", "unsubscribe")), channel=channel)
        if self.random.random() < 0.5:
            await asyncio.sleep(self.random.random() / 500)
        if member.is_open:
            member.websocket.reset()
        await member.websocket.closed

    def present(self, channel: str) -> dict[str, str]:
        """Return the truth: the user of each open connection in a channel."""
        return {member.id: member.user for member in self.members if member.is_open and channel in member.channels}


def users_without_observers(found: dict[str, str]) -> dict[str, str]:
    return {name: user for name, user in found.items() if not user.startswith("observer")}


async def kill_now_and_then(crowd: Crowd, slots: set[int]) -> None:
    """Kill a worker of these slots KILLS times while JOINS joins are made; return when the last one has ended."""
    for number in range(KILLS):
        due = JOINS * (number + 1) // (KILLS + 1)
        await until(lambda: crowd.joins >= due, 60, "joins")  # noqa: B023 - awaited here
        slot = crowd.random.choice(sorted(slots))
        victim = await until(lambda: ready_worker(crowd.server, slot), what="a worker to kill")  # noqa: B023
        kill(victim, signal.SIGKILL)
        await until(lambda: not psutil.pid_exists(victim), what="its end")  # noqa: B023


async def ready_worker(server: Server, slot: int) -> int | None:
    workers = await asyncio.to_thread(server.processes, "worker")
    return next((w["pid"] for w in workers if w["slot"] == slot and w["state"] == "ready"), None)


def seeded() -> random.Random:
    seed = random.randrange(2**32)
    show(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize("told", ["connections", "users"])
def test_presence_and_who_comes_and_leaves(serve: Any, told: str) -> None:
    """Connections subscribe, unsubscribe, close and break thousands of times on 4 workers while workers are killed:
    then presence is the truth, and what those who stayed were told of each connection, or user, is that it came and
    left in turn, up to the truth.
    """
    hall = {"subscribe": "everybody", "presence": True, "join_leave": told, "grace_seconds": 0.5}
    server = serve(workers=4, sections={"channels.hall": hall})
    channels = [f"hall:{number}" for number in range(CHANNELS)]

    async def scenario() -> None:
        crowd = Crowd(server, channels, seeded())
        homes = server.processes("worker") * 3
        observers = [
            await Observer(number).enter(server.port, channels, await dial(server, home["number"]))
            for number, home in enumerate(homes)
        ]
        killed = set(crowd.random.sample(sorted(home["slot"] for home in homes[:4]), 2))
        staying = [observer for observer, home in zip(observers, homes, strict=True) if home["slot"] not in killed]
        began = time.monotonic()
        async with asyncio.TaskGroup() as both:
            both.create_task(crowd.live(JOINS))
            both.create_task(kill_now_and_then(crowd, killed))
        assert all(observer.member.is_open for observer in staying)
        for channel in channels:
            await check_channel(channel, crowd, staying, told)
        for observer in staying:
            observer.check_turns()
        show(
            f"{told}: {crowd.joins} joins, {dict(crowd.done)}, {KILLS} workers killed, "
            f"{time.monotonic() - began:.1f} s; at the end {[len(crowd.present(channel)) for channel in channels]}"
        )

    run(scenario())


def call(server: Server, method: str, channel: str) -> Any:
    """Return the result of a method of the server API."""
    status, _, body = server.request("POST", f"/api/{method}", {"channel": channel})
    assert status == 200, body
    return json.loads(body)["result"]


async def check_channel(channel: str, crowd: Crowd, staying: list[Observer], told: str) -> None:
    """Fail unless presence, its figures, and what observers were told, are true within a moment.

    told: of what, as [channels.hall] join_leave has it; "": that is not judged.
    """
    truth = crowd.present(channel)
    told_of = set(truth) if told == "connections" else set(truth.values())
    asked = staying[0].member

    async def is_exact() -> bool:
        return users_without_observers(await asked.presence(channel)) == truth

    await until(is_exact, what=f"presence of {channel}")
    everybody = await asked.presence(channel)
    counts = {"num_clients": len(everybody), "num_users": len(set(everybody.values()))}
    assert await asked.ask("presence_stats", channel=channel) == counts
    assert await asyncio.to_thread(call, crowd.server, "presence_stats", channel) == counts
    found = (await asyncio.to_thread(call, crowd.server, "presence", channel))["presence"]
    assert {name: info["user"] for name, info in found.items()} == everybody
    for observer in staying if told else ():
        await until(lambda: observer.present(channel) == told_of, what="told the truth")  # noqa: B023 - awaited here


def test_the_broker_is_killed_meanwhile(serve: Any) -> None:
    """The broker is killed again and again while connections come and go: no connection ends by that, and presence is
    the truth.
    """
    hall = {"subscribe": "everybody", "presence": True, "join_leave": "connections"}
    server = serve(workers=4, sections={"channels.hall": hall})
    channels = [f"hall:{number}" for number in range(CHANNELS)]

    async def scenario() -> None:
        crowd = Crowd(server, channels, seeded())
        observer = await Observer(0).enter(server.port, channels)
        for turn in range(3):
            joins = crowd.joins
            living = asyncio.create_task(crowd.live(joins + 300))
            await until(lambda: crowd.joins > joins + 100, what="joins")  # noqa: B023 - awaited here
            (broker,) = [b for b in await asyncio.to_thread(server.processes, "broker") if b["state"] == "ready"]
            kill(broker["pid"], signal.SIGKILL)
            await living
            assert not crowd.done["lost"], turn
            for channel in channels:
                await check_channel(channel, crowd, [observer], told="")
        assert observer.member.is_open

    run(scenario())


class Probe:
    """An observer of one channel, who was there before all others, and a publisher to it.

    delays: seconds from each publication to its receipt, since they were read.  answers: statuses of the publications.
    """

    def __init__(self, server: Server, channel: str) -> None:
        self.channel = channel
        self.member = Member("observer", self._on_push)
        self.answers: Counter[int] = Counter()
        self.told = 0
        self._delays: list[float] = []
        self._server = server
        self._is_over = False

    async def enter(self) -> "Probe":
        await self.member.connect(self._server.port)
        await self.member.subscribe(self.channel)
        _, self._http = await asyncio.get_running_loop().create_connection(
            HttpConnection, "127.0.0.1", self._server.port
        )
        return self

    def _on_push(self, push: dict[str, Any]) -> None:
        if "pub" in push:
            self._delays.append(time.monotonic() - push["pub"]["data"])
        else:
            self.told += 1

    async def live(self) -> None:
        """Publish again and again."""
        while True:
            due = time.monotonic() + PUBLISH_EVERY_SECONDS
            body = json.dumps({"channel": self.channel, "data": time.monotonic()}).encode()
            head = f"POST /api/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            reply = await self._http.ask(head.encode() + body)
            self.answers[reply.status] += 1
            await asyncio.sleep(max(0, due - time.monotonic()))

    def read(self) -> dict[str, float]:
        """Return the delays since the last time."""
        delays, self._delays = self._delays, []
        return quantiles(delays)


@pytest.mark.parametrize("told_members", [1000, 1_000_000], ids=["as delivered", "all told"])
def test_a_large_channel_that_fills_up(serve: Any, standstill: Standstill, told_members: int) -> None:
    """While thousands come to a channel, within seconds, what is published in it, and elsewhere, arrives in time; and
    who was there first has been told of all of them, if the channel tells that of so many.
    """
    hall = {"subscribe": "everybody", "presence": True, "join_leave": "connections", "join_leave_members": told_members}
    server = serve(workers=4, sections={"channels.hall": hall, "log": {"level": "info"}})
    url = server.ws_url(path="/connection/websocket")
    members = MEMBERS // PROCESSES

    async def scenario(crowds: list[Driven]) -> None:
        probes = [await Probe(server, channel).enter() for channel in ("hall:big", "hall:small")]
        living = [asyncio.create_task(probe.live()) for probe in probes]
        coming = await asyncio.gather(*(asyncio.to_thread(crowd.ask, "go", 90) for crowd in crowds))
        figures = {probe.channel: {"coming": probe.read()} for probe in probes}
        await asyncio.sleep(MEMBERS_SECONDS / 2)  # as many publications, to compare
        for probe in probes:
            figures[probe.channel]["all there"] = probe.read()
        big = probes[0]
        stats = await big.member.ask("presence_stats", channel="hall:big")
        assert stats["num_clients"] == MEMBERS + 1, stats
        if told_members > MEMBERS:
            await until(lambda: big.told == MEMBERS + 1, what="told of all")
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)
        show(f"{told_members} told: {json.dumps(coming)}, {json.dumps(figures)}, told {big.told}")
        assert all(crowd["ended"] == {} for crowd in coming)
        assert all(set(probe.answers) == {200} for probe in probes), [probe.answers for probe in probes]
        slowest_ms = max(delays["coming"]["max_ms"] for delays in figures.values())
        assert slowest_ms <= DELAY_MAX_MS + 1000 * standstill.seconds

    with ExitStack() as stack:
        crowds = [
            stack.enter_context(
                Driven("tests.load.members", url, 0, members=members, first=n * members, seconds=MEMBERS_SECONDS)
            )
            for n in range(PROCESSES)
        ]
        run(scenario(crowds))
