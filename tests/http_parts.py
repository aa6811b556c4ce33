"""The HTTP side of a worker without processes: real dispatch and aiohttp, a broker and a transport that only record."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from fastpush.applications import Application, Online
from fastpush.child import ListenerRole
from fastpush.config import Config, Limits
from fastpush.http.admin import AdminPages
from fastpush.http.app import HttpApp
from fastpush.http.auth import push_auth, token_auth
from fastpush.http.guard import Guard
from fastpush.http.push import OnResult, PushService
from fastpush.http.refusals import RefusalLog
from fastpush.metrics import Counters
from fastpush.protocol.bus import NO_POSITION, Position, Status
from fastpush.worker.admission import Admission
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.dispatch import HttpConnection
from fastpush.worker.environment import Environment
from fastpush.worker.mount import Mount
from fastpush.worker.overload import Overload
from fastpush.worker.services import Services
from fastpush.worker.timers import TICK_SECONDS, TimerWheel

DONE = (int(Status.DONE), 1, 0, NO_POSITION)


class Broker:
    """Takes pushes and drops; answers each with `answer`, or keeps it in `waiting` while that is None."""

    def __init__(self) -> None:
        self.answer: tuple[int, int, int, Position] | None = DONE
        self.failure: Exception | None = None
        self.taken: list[bytes] = []
        self.waiting: list[OnResult] = []

    def ask(self, body: bytes, on_result: OnResult, once: bytes = b"") -> None:
        if self.failure is not None:
            raise self.failure
        self.taken.append(body)
        if self.answer is None:
            self.waiting.append(on_result)
        else:
            asyncio.get_running_loop().call_soon(on_result, *self.answer)

    def answer_next(self) -> None:
        self.waiting.pop(0)(*DONE)


class Pipe(asyncio.Transport):
    """A transport whose peer is the test: what was written, whether it reads, whether it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.closed = self.aborted = self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed and not self.ended, bytes(data)
        self.written += bytes(data)

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4242) if name in {"peername", "sockname"} else default

    def taken(self) -> bytes:
        """What was written since the last call."""
        written, self.written = self.written, b""
        return written


class Parts:
    """Services around a Broker, and connections to them."""

    def __init__(self, config: Config) -> None:
        self.broker = Broker()
        self.wheel = TimerWheel()
        self.counters = Counters()
        environment = Environment(
            number=1,
            config=config,
            hub=cast(Any, None),
            wheel=self.wheel,
            counters=self.counters,
            send_queues=cast(Any, None),
        )
        ask = self.broker.ask
        service = PushService(config.limits, self.counters, publish=ask, drop=ask, remember=lambda *_: None)
        self.services = Services(
            environment=environment,
            push_service=service,
            lean={config.server.push_path: service.push},
            call_soon=asyncio.get_running_loop().call_soon,
            now=lambda: self.wheel.now * TICK_SECONDS,
            overload=Overload(config.limits, environment, 0),
            refusals=RefusalLog("handshake", logging.getLogger("fastpush.upgrade"), 0),
            refused_requests=RefusalLog("request", logging.getLogger("fastpush.http"), 0),
            admission=Admission(config.limits, cast(Any, None), environment.connections),
            tls=None,
        )
        self.services.configure(config, token_auth(config), push_auth(config))
        self.services.guard = Guard([], [])
        self.services.app = HttpApp(
            config,
            service,
            push_auth=lambda: self.services.push_auth,
            scrape=lambda report: report(b"{}"),
            epoch=lambda: 1,
            unready=lambda: "",
            on_refused=self.services.log_refusal,
            served=list,
            look_up=self.look_up,
            api=cast(Any, None),
            admin=AdminPages(
                lambda: config,
                lambda: self.services.trusted_proxies,
                ask=cast(Any, None),
                act=cast(Any, None),
                push=service.push,
            ),
        )

    def connect(self, role: ListenerRole = "all") -> tuple[HttpConnection, Pipe]:
        connection, pipe = HttpConnection(self.services, role), Pipe()
        connection.connection_made(pipe)
        return connection, pipe

    def serve(self, application: type[Application], path: str = "/ws") -> None:
        """Have an application at a path; its clients need no token."""
        environment = self.services.environment
        server = ApplicationServer(path, environment, cast(Any, None), cast(Any, None))
        mount = Mount(path, application(server, application.options_class()), environment.config)
        mount.anonymous = "everywhere"
        self.services.serve([mount], mount)

    async def look_up(self, channels: list[str], most: int) -> tuple[list[Any], list[str]]:
        """Nobody is anywhere."""
        return [Online(0, 0) for _ in channels], []

    def advance(self, seconds: float) -> None:
        """Let the clock tick."""
        for _ in range(round(seconds * 10)):
            self.wheel.advance()


@asynccontextmanager
async def http_parts(config: Config | None = None) -> AsyncIterator[Parts]:
    """Parts in the running loop; `config` defaults to all defaults."""
    parts = Parts(config or Config())
    await parts.services.app.start()
    yield parts
    await parts.services.app.close()


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


def small_limits(**limits: int) -> Config:
    return Config(limits=Limits(**cast(Any, limits)))
