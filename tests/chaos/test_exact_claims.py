"""One connection a key on the whole host, the newest, however many log in at once and whatever dies meanwhile.

"Newest" is judged twice: by the numbers of the claims (the log tells them), and by the clock: whose login was answered
before another one of its key had begun must not be the one that stays.
"""

import asyncio
import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest

from tests.chaos.load import Accepts, Refused, WebSocket, kill, open_websocket, run, show, until
from tests.server import Server, application

ROUNDS, LOGINS, KEYS = 20, 1000, 50
CLOSE_TIMEOUT_SECONDS = 3  # who does not answer a close is cleaned up that late


class Login:
    """A connection that claims a key, or the attempt.

    began, answered: when it asked and had its 101, in seconds.  number: of its claim.  received: messages.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.began = 0.0
        self.number = 0
        self.answered = 0.0
        self.received: list[str] = []
        self.websocket: WebSocket | None = None

    @property
    def is_open(self) -> bool:
        return self.websocket is not None and not self.websocket.is_ending

    @property
    def code(self) -> int:
        """How it is being closed, or was."""
        assert self.websocket is not None
        return self.websocket.code

    async def begin(self, port: int, *, answers_close: bool) -> None:
        self.began = time.monotonic()
        target = f"/broadcast?specialKey={self.key}&support_gzip=0"
        with suppress(OSError, Refused):  # its worker was killed: `websocket` stays None
            self.websocket = await open_websocket(
                port, "", self.received.append, target=target, answers_close=answers_close
            )
            self.answered = time.monotonic()


class Host:
    """A server with /broadcast, and all logins that its connections of now are of."""

    def __init__(self, server: Server, random_: random.Random) -> None:
        self.server = server
        self.random = random_
        self.present: list[Login] = []
        self._log = server.log_path.open("rb")
        self._partial = b""
        self._connections: dict[str, Login] = {}

    def close(self) -> None:
        self._log.close()

    async def log_in(self, keys: Iterable[str]) -> list[Login]:
        """Log in with all of these keys at once; return the logins once each is answered."""
        logins = [Login(key) for key in keys]
        self.present += logins
        await asyncio.gather(
            *(login.begin(self.server.port, answers_close=self.random.random() < 0.8) for login in logins)
        )
        return logins

    def by_key(self) -> dict[str, list[Login]]:
        found = defaultdict(list)
        for login in self.present:
            found[login.key].append(login)
        return found

    def open_logins(self) -> list[Login]:
        return [login for login in self.present if login.is_open]

    def read_log(self) -> None:
        """Let the logins know their claims."""
        peers = {f"127.0.0.1:{login.websocket.port}": login for login in self.present if login.websocket is not None}
        *lines, self._partial = (self._partial + self._log.read()).split(b"\n")
        for line in lines:
            if b'"event": "connection opened"' in line:
                told = json.loads(line)
                if told["peer"] in peers:  # a port may be used again: whoever had it before has been read already
                    self._connections[told["connection"]] = peers[told["peer"]]
            elif b'"event": "claimed"' in line:
                told = json.loads(line)
                login = self._connections.get(told["connection"])
                if login is not None and told["number"] > login.number:
                    login.number = told["number"]

    async def check_newest(self) -> None:
        """Fail unless exactly the newest of each key is open, and all others were closed as replaced by it."""
        await until(self._knows_claims, what="the claims in the log")
        for key, logins in self.by_key().items():
            survivor, *others = [login for login in logins if login.is_open]
            assert not others, f"{len(others) + 1} connections of {key}"
            assert survivor.number == max(login.number for login in logins) > 0, key
            for login in logins:
                if login is not survivor:
                    assert login.code == 4500, (key, login.code)
                    assert survivor.answered >= login.began, f"{key}: a later login did not stay"

    def _knows_claims(self) -> bool:
        self.read_log()
        return all(login.number for login in self.open_logins())

    def forget_closed(self) -> None:
        self.read_log()
        self.present = self.open_logins()

    async def check_replaced(self, keys: list[str]) -> None:
        """Fail unless one more login of each key replaces who is there; then a text reaches these and nobody else."""
        before = self.open_logins()
        newest = await self.log_in(keys)
        await until(lambda: not any(login.is_open for login in before), what="the earlier ones are replaced")
        assert {login.code for login in before} <= {4500}
        assert all(login.is_open for login in newest)
        await self.check_broadcast("at once")
        assert not any(login.received[-1:] == ["at once"] for login in before)
        assert await self.metric("fastpush_broker_claims") == len(keys)
        self.forget_closed()

    async def check_broadcast(self, text: str) -> None:
        """Fail unless a text reaches the connection of each key, once."""
        logins = self.open_logins()
        assert sorted(login.key for login in logins) == sorted(KEY_NAMES)
        for login in logins:
            login.received.clear()
        logins[0].websocket.send_text(text)
        await until(lambda: all(login.received for login in logins), what="the broadcast")
        assert [login.received for login in logins] == [[text]] * KEYS

    async def check_late(self) -> None:
        """Fail unless the connections of now are there when all others have been cleaned up."""
        await until(self._has_cleaned_up, 20, "no other connection")
        await self.check_broadcast("late")

    async def metric(self, name: str) -> float:
        return (await asyncio.to_thread(self.server.metrics))[name]

    async def _has_cleaned_up(self) -> bool:
        return await self.metric("fastpush_connections") == KEYS


KEY_NAMES = [f"key:{number}" for number in range(KEYS)]


@pytest.fixture
def host(serve: Any) -> Any:
    """Four workers with /broadcast, which answer every login however busy the machine is."""
    sections = {
        "application": [application("Broadcast")],
        "connections": {"close_timeout_seconds": CLOSE_TIMEOUT_SECONDS},
    }
    seed = random.randrange(2**32)
    show(f"seed {seed}")
    host = Host(serve(workers=4, sections=sections), random.Random(seed))
    yield host
    host.close()


def shuffled(host: Host) -> list[str]:
    keys = KEY_NAMES * (LOGINS // KEYS)
    host.random.shuffle(keys)
    return keys


def test_newest_wins(host: Host) -> None:
    """S2-08, S3-23: of 1,000 logins of 50 keys at once over 4 workers exactly 50 connections remain, each the newest,
    all others are closed with 4500; one more login a key replaces these, and what is cleaned up late removes nobody:
    20 times.
    """

    async def scenario() -> None:
        began = time.monotonic()
        for _ in range(ROUNDS):
            logins = await host.log_in(shuffled(host))
            assert all(login.websocket is not None for login in logins)
            await until(lambda: len(host.open_logins()) == KEYS, 20, "50 connections")
            await host.check_newest()
            host.forget_closed()
            await host.check_replaced(KEY_NAMES)
        await host.check_late()
        show(f"{ROUNDS} rounds of {LOGINS} logins of {KEYS} keys: {time.monotonic() - began:.1f} s")

    run(scenario())


async def _kill_in_the_middle(host: Host, role: str) -> int:
    """Log in, and kill a process of a role once a part of the logins is answered; return its number."""
    victim = host.random.choice(await asyncio.to_thread(host.server.processes, role))
    keys = shuffled(host)
    logins = asyncio.ensure_future(host.log_in(keys))
    part = host.random.randrange(100, 800)
    await until(lambda: len([login for login in host.present if login.websocket is not None]) > part, what="a part")
    kill(victim["pid"], signal.SIGKILL)
    await logins
    return victim["number"]


async def _is_whole(server: Server) -> bool:
    processes = (await asyncio.to_thread(server.status))["processes"]
    return [process["state"] for process in processes] == ["ready"] * 5


def test_a_worker_is_killed_meanwhile(host: Host) -> None:
    """A worker is killed in the middle of 1,000 logins: at most one connection a key remains, and one more login of
    each key replaces it; nobody was closed with anything but 4500 who was not with that worker.
    """

    async def scenario() -> None:
        for _ in range(5):
            victim = await _kill_in_the_middle(host, "worker")
            await until(lambda: _is_whole(host.server), 20, "a new worker")
            await until(
                lambda: all(sum(login.is_open for login in logins) <= 1 for logins in host.by_key().values()),
                what="one connection a key",
            )
            with Accepts(host.server.log_path) as accepts:
                for login in host.present:
                    if login.websocket is not None and not login.is_open and login.code != 4500:
                        assert (login.code, accepts.worker_of(login.websocket.port)) == (1006, victim)
            await host.check_replaced(KEY_NAMES)
        await host.check_late()

    run(scenario())


def test_the_broker_is_killed_meanwhile(host: Host) -> None:
    """The broker is killed in the middle of 1,000 logins: none fails, one connection a key remains, the newest."""

    async def scenario() -> None:
        for _ in range(5):
            await _kill_in_the_middle(host, "broker")
            await until(lambda: _is_whole(host.server), 20, "a new broker")
            assert all(login.websocket is not None for login in host.present)
            await until(lambda: len(host.open_logins()) == KEYS, what="50 connections")
            await host.check_newest()
            host.forget_closed()
            await host.check_replaced(KEY_NAMES)
        await host.check_late()

    run(scenario())
