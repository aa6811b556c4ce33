"""A worker process: one uvloop loop that owns its clients' sockets.

startup: the bus first, then the listeners, then Ready. shutdown: listeners closed,
pushes in flight answered, clients closed with 1012, at most drain_seconds.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson
import uvloop

from fastpush import log as logs
from fastpush.applications.echo import Echo
from fastpush.applications.interface import Application
from fastpush.applications.push import Push
from fastpush.bus.client import BusClient, BusUnavailable, OnResult
from fastpush.child import LISTEN_BACKLOG, Channel, Context, Listener, beat_seconds, tune_collector
from fastpush.config import Config, open_keys
from fastpush.errors import CloseCode, ConfigError, unavailable
from fastpush.fanout import Hub
from fastpush.http.app import HttpApp
from fastpush.http.auth import push_auth, token_auth
from fastpush.http.guard import Guard
from fastpush.http.proxies import TrustedProxies
from fastpush.http.push import PushService
from fastpush.log import fields
from fastpush.metrics import Counters
from fastpush.protocol import control
from fastpush.worker.admission import Admission
from fastpush.worker.dispatch import HELD_BYTES, HttpConnection
from fastpush.worker.environment import ConnectionTicks, Environment, SendQueues
from fastpush.worker.memory import Trimmer
from fastpush.worker.overload import Overload, RefusalLog
from fastpush.worker.services import Services
from fastpush.worker.timers import TICK_SECONDS, TimerWheel

log = logging.getLogger("fastpush.worker")

SNAPSHOT_TICKS = 10
CATCH_UP_TICKS = 5
_END_SECONDS = 0.5  # to end a process that has drained
_ANSWER_MARGIN_SECONDS = 0.1  # the broker answers at confirm_ms; this is for when it cannot


def run(context: Context) -> int:
    """Serve until drained. Returns the exit code."""
    logs.set_process(f"worker-{context.number}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Worker(context).serve())


class Worker:
    """Wires bus, hub, timers, HTTP and WebSocket together, and ends them in order."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._config = config = context.config
        self._draining = asyncio.Event()
        self._drain_seconds = config.server.drain_seconds
        self._servers: dict[int, list[asyncio.Server]] = {}
        self._trimmer = Trimmer()
        self._bus = BusClient(
            context.bus_path,
            context.number,
            queue_bytes=config.bus.queue_bytes,
            answer_seconds=config.bus.confirm_ms / 1000 + _ANSWER_MARGIN_SECONDS,
            deliver=lambda publication, counted: self._hub.deliver(publication, counted),  # noqa: PLW0108 - no hub yet
            close_user=self._close_user,
            key_table=self._key_table,
            measure=self._measure,
        )
        counters = Counters()
        self._hub = Hub(
            self._bus.announce,
            self._bus.withdraw,
            fanout=config.fanout,
            compression=config.compression,
            write_bytes=config.server.write_buffer_bytes,
            counters=counters,
        )
        self._environment = Environment(
            number=context.number,
            config=config,
            hub=self._hub,
            wheel=TimerWheel(),
            counters=counters,
            send_queues=SendQueues(config.limits.worker_send_bytes, self._hub),
            connection_ticks=ConnectionTicks.of(config),
        )

    async def serve(self) -> int:
        """Startup, main loop, shutdown."""
        await self._startup()
        await self._main_loop()
        await self._shutdown()
        return 0

    # -- startup -----------------------------------------------------------------

    async def _startup(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        sys.path.insert(0, str(Path.cwd()))  # where functions of [auth] and [push] may live
        self._channel = Channel(self._context.channel, self._on_control, self._on_orphaned)
        self._channel.open()
        self._services = services = self._build_services(loop)
        services.app = HttpApp(
            self._config, services.push_service, lambda: services.push_auth, self._scrape, lambda: self._bus.epoch
        )
        await services.app.start()
        self._channel.beat(beat_seconds(self._config), self._figures)
        self._bus.start()
        await _any_of(self._bus.welcomed, self._draining)
        tune_collector()
        if not self._draining.is_set():
            await self._listen(self._context.slot, self._context.listeners)
            self._channel.send(control.Ready())

    def _build_services(self, loop: asyncio.AbstractEventLoop) -> Services:
        config, environment = self._config, self._environment
        push_service = PushService(config.limits, environment.counters, publish=self._publish, drop=self._drop)
        services = Services(
            environment=environment,
            guard=Guard(open_keys(config), config.server.origins),
            trusted_proxies=TrustedProxies(config.server.trusted_proxies),
            push_path=config.server.push_path,
            lean_body_bytes=min(config.limits.push_body_bytes, HELD_BYTES),
            push_auth=push_auth(config),
            push_auth_is_sync=config.push.auth != "python",
            push_service=push_service,
            auth_headers=_auth_headers(config),
            call_soon=loop.call_soon,
            now=loop.time,
            overload=Overload(config.limits, environment, loop.time()),
            refusals=RefusalLog(loop.time()),
            admission=self._admission(),
        )
        self._push = Push(
            self._hub,
            config.limits,
            environment.counters,
            token_auth(config),
            services.spawn,
            services.admission,
        )
        paths: dict[str, Application] = {config.server.websocket_path: self._push}
        if config.echo.enabled:
            paths[config.echo.path] = Echo()
        services.set_websocket_paths(paths)
        return services

    def _admission(self) -> Admission | None:
        limits, environment = self._config.limits, self._environment
        if not (limits.connections_per_user or limits.connections_per_address):
            return None
        admission = Admission(limits, self._bus, environment.connections)
        environment.release = admission.release
        return admission

    async def _listen(self, slot: int, listeners: tuple[Listener, ...]) -> None:
        """Accept from a slot's listeners, unless that was called off meanwhile.

        libuv (since 1.45) takes one connection of a listener in each turn of the loop and leaves the others in
        the kernel's queue: however many connect, what is established is served between any two of them.
        """
        loop = asyncio.get_running_loop()
        self._servers[slot] = servers = []
        for listener in listeners:
            server = await loop.create_server(
                lambda role=listener.role: HttpConnection(self._services, role),  # type: ignore[misc]
                sock=listener.socket,
                backlog=LISTEN_BACKLOG,
            )
            servers.append(server)
        if self._servers.get(slot) is not servers:
            for server in servers:
                server.close()

    def _cover(self, slot: int, descriptors: list[int]) -> None:
        """Accept for another slot; its descriptors come in the order of this worker's own listeners."""
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if self._draining.is_set() or slot in self._servers:
            for sock in sockets:
                sock.close()
            return
        roles = (listener.role for listener in self._context.listeners)
        self._services.spawn(self._listen(slot, tuple(map(Listener, sockets, roles))))

    # -- main loop ---------------------------------------------------------------

    async def _main_loop(self) -> None:
        """Let the clock tick until it is time to drain."""
        self._tick(asyncio.get_running_loop().time())
        await self._draining.wait()

    def _tick(self, due: float) -> None:
        """Advance all deadlines to now; the clock goes on through the drain.

        due: when this call was to come, on the loop's clock. Of the time that a loop was behind, what is longer
        than CATCH_UP_TICKS is left out: who could not be heard meanwhile is not late.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        late = max(0.0, now - due)
        passed = min(int(late / TICK_SECONDS), CATCH_UP_TICKS) + 1
        due = max(due + passed * TICK_SECONDS, now)
        loop.call_at(due, self._tick, due)
        self._services.overload.observe_lag(late)
        for _ in range(passed):
            self._environment.wheel.advance()
            if self._environment.wheel.now % SNAPSHOT_TICKS == 0:
                self._end_second()

    def _end_second(self) -> None:
        self._services.overload.end_second()
        self._services.refusals.end_second()
        self._trimmer.end_second(self._environment.counters.closes)
        self._bus.send_snapshot()

    # -- shutdown ----------------------------------------------------------------

    async def _shutdown(self) -> None:
        """Stop accepting, answer what is under way, tell clients to come back, wait with a deadline."""
        deadline = asyncio.get_running_loop().time() + self._drain_seconds
        for slot in list(self._servers):
            self._stop_accepting(slot)
        http_connections, connections = self._services.http_connections, self._environment.connections
        for http in list(http_connections):
            http.drain()
        await _until(lambda: not self._services.tasks and not self._bus.pending, deadline)
        await _until(self._is_empty, deadline)
        log.info("drained", extra=fields(connections_left=len(connections) + len(http_connections)))
        self._bus.send_snapshot()
        self._bus.close()
        await self._push.token_auth.close()
        await self._services.push_auth.close()
        await self._services.app.close()
        self._channel.close()

    def _is_empty(self) -> bool:
        """Send every client away, those too that were accepted at the last moment; True when nobody is left."""
        http_connections, connections = self._services.http_connections, self._environment.connections
        for http in list(http_connections):
            http.drain()
        for connection in list(connections):
            connection.close(CloseCode.SERVICE_RESTART, "server is restarting")
        return not connections and not http_connections

    def _stop_accepting(self, slot: int) -> None:
        for server in self._servers.pop(slot, ()):
            server.close()

    # -- the supervisor's side -----------------------------------------------------

    def _on_control(self, message: control.ToChild, descriptors: list[int]) -> None:
        match message:
            case control.Drain():
                self._drain_seconds = message.seconds
                self._draining.set()
            case control.Reload():
                self._reload(message.config)
            case control.Cover():
                self._cover(message.slot, descriptors)
            case control.Uncover():
                self._stop_accepting(message.slot)
            case _:
                log.error("unexpected message from the supervisor", extra=fields(kind=type(message).__name__))

    def _on_sigterm(self) -> None:
        """Drain on somebody's wish: the supervisor starts a successor meanwhile."""
        if not self._draining.is_set():
            self._channel.send(control.Leaving(self._drain_seconds))
            self._draining.set()

    def _on_orphaned(self) -> None:
        log.error("supervisor gone")
        self._drain_seconds -= min(_END_SECONDS, self._drain_seconds / 4)  # nobody is left to see to the limit
        self._draining.set()

    def _reload(self, config: Config) -> None:
        """Take over keys, tokens and log level."""
        logs.set_level(config.log.level)
        logs.reopen()
        services = self._services
        try:
            new_token_auth, new_push_auth = token_auth(config), push_auth(config)
        except ConfigError as error:
            log.error("not reloaded", extra=fields(reason=str(error)))
            return
        old_token_auth, self._push.token_auth = self._push.token_auth, new_token_auth
        old_push_auth, services.push_auth = services.push_auth, new_push_auth
        services.push_auth_is_sync = config.push.auth != "python"
        services.auth_headers = _auth_headers(config)
        services.guard = Guard(open_keys(config), config.server.origins)
        services.spawn(old_token_auth.close())
        services.spawn(old_push_auth.close())
        log.info("reloaded")

    def _figures(self) -> dict[str, int]:
        counters = self._environment.counters
        return {
            "connections": len(self._environment.connections),
            "keys": len(self._hub),
            "pushes": counters.pushes_delivered + counters.pushes_unconfirmed,
            "deliveries": counters.deliveries,
        }

    # -- the bus's side ------------------------------------------------------------

    def _publish(self, body: bytes, on_result: OnResult) -> None:
        try:
            self._bus.publish(body, on_result)
        except BusUnavailable as error:
            raise unavailable(f"{error}; nobody received the push") from None

    def _drop(self, body: bytes, on_result: OnResult) -> None:
        try:
            self._bus.drop(body, on_result)
        except BusUnavailable as error:
            raise unavailable(f"{error}; nobody was dropped") from None

    def _scrape(self, on_report: Callable[[bytes | None], None]) -> None:
        try:
            self._bus.scrape(on_report)
        except BusUnavailable as error:
            raise unavailable(str(error)) from None

    def _key_table(self) -> Iterable[bytes]:
        return self._hub.keys()

    def _close_user(self, body: bytes) -> int:
        user, event = orjson.loads(body)
        found = self._hub.connections(user, event)
        for connection in found:
            connection.close(CloseCode.POLICY_VIOLATION, "dropped by the back-end")
        return len(found)

    def _measure(self) -> bytes:
        """Return this worker's snapshot: every figure of metrics.WORKER_METRICS."""
        environment = self._environment
        gauges = {
            "connections": len(environment.connections),
            "http_connections": len(self._services.http_connections),
            "registrations": len(self._hub),
            "send_queue_bytes": environment.send_queues.queued_bytes,
            "slow_connections": len(environment.send_queues.paused),
            "bus_queue_bytes": self._bus.queued_bytes,
            "loop_lag_seconds": round(self._services.overload.worst_lag, 3),
        }
        return orjson.dumps({"counters": environment.counters.snapshot(), "gauges": gauges})


async def _any_of(*events: asyncio.Event) -> None:
    """Return when one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()


async def _until(condition: Callable[[], bool], deadline: float) -> None:
    """Return when `condition` holds, or at `deadline` of the loop's clock."""
    loop = asyncio.get_running_loop()
    while not condition() and loop.time() < deadline:
        await asyncio.sleep(TICK_SECONDS / 4)


def _auth_headers(config: Config) -> tuple[str, ...] | None:
    """Return the request headers that a later registration by message is judged by; None: all of them."""
    match config.auth.mode:
        case "webhook":
            return tuple(name.lower() for name in config.auth.webhook.headers)
        case "python":
            return None
        case _:
            return ()
