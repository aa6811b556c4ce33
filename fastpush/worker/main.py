"""A worker process: one uvloop loop that owns its clients' sockets.

startup: the bus first, then the listeners, then Ready. shutdown: worker/drain.py.
reload: worker/live.py.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import uvloop

from fastpush import log as logs
from fastpush.applications import Application, Options
from fastpush.applications.push import Push
from fastpush.bus.client import BusClient, BusUnavailable, OnResult
from fastpush.channels.api import ServerApi
from fastpush.channels.endpoint import ClientProtocol
from fastpush.channels.service import ChannelService
from fastpush.child import LISTEN_BACKLOG, Channel, Context, Listener, ListenerRole, beat_seconds, tune_collector
from fastpush.config import Config
from fastpush.errors import ConfigError, unavailable
from fastpush.fanout import Hub
from fastpush.http.admin import AdminPages
from fastpush.http.app import HttpApp, Served
from fastpush.http.auth import TokenAuth
from fastpush.http.auth.threads import UnawaitedThreads
from fastpush.http.push import API_PATH, PushService
from fastpush.http.refusals import RefusalLog
from fastpush.inspection import Inspector
from fastpush.log import fields
from fastpush.memory import Trimmer
from fastpush.metrics import Counters
from fastpush.protocol import control
from fastpush.protocol.bus import split_connection_number
from fastpush.protocol.insight import LIVE_CHANNEL, pack_notes, unpack_targets
from fastpush.worker.admin_mount import AdminLive, AdminMount
from fastpush.worker.admission import Admission
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.client_mount import CLIENT_PATH, ClientHost, ClientMount, client_handler
from fastpush.worker.connection import Connection
from fastpush.worker.dispatch import HttpConnection
from fastpush.worker.drain import Drain
from fastpush.worker.environment import Environment, SendQueues
from fastpush.worker.gauges import Gauges
from fastpush.worker.inspection import connections
from fastpush.worker.live import Prepared, prepare, take_over, tell_connections
from fastpush.worker.membership import Memberships
from fastpush.worker.mount import Mount, PushMount, applications
from fastpush.worker.operators import Operators
from fastpush.worker.orders import Orders
from fastpush.worker.overload import Overload
from fastpush.worker.services import Services
from fastpush.worker.stream_mount import EVENTS_PATH, UNIDIRECTIONAL_PATH, EventsMount, UnidirectionalMount
from fastpush.worker.timers import TICK_SECONDS, TimerWheel
from fastpush.worker.tls import ServerTls, TlsTransport
from fastpush.worker.tracing import Tracing

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
        self._order: control.Drain | None = None
        self._drain: Drain | None = None
        self._readiness = "starting"
        self._prepared: Prepared | None = None
        self._servers: dict[int, list[asyncio.Server]] = {}
        self._trimmer = Trimmer()
        self._bus = BusClient(
            context.bus_path,
            context.number,
            queue_bytes=config.bus.queue_bytes,
            answer_seconds=config.bus.confirm_ms / 1000 + _ANSWER_MARGIN_SECONDS,
            deliver=lambda publication, counted: self._hub.deliver(publication, counted),  # noqa: PLW0108 - no hub yet
            obey=lambda body: self._orders.obey(body),  # noqa: PLW0108 - as above
            inquire=lambda body: self._orders.answer(body),  # noqa: PLW0108 - as above
            key_table=self._key_table,
            measure=self._measure,
            trace=lambda body: self._tracing.set(unpack_targets(body)),
        )
        counters = Counters()
        self._hub = Hub(
            self._bus.announce,
            self._bus.withdraw,
            fanout=config.fanout,
            compression=config.compression,
            write_bytes=config.server.write_buffer_bytes,
            counters=counters,
            find=self._find,
        )
        self._environment = Environment(
            number=context.number,
            config=config,
            hub=self._hub,
            wheel=TimerWheel(),
            counters=counters,
            send_queues=SendQueues(config.limits.worker_send_bytes, self._hub),
        )
        self._memberships = self._bus.members = Memberships(self._environment, self._bus, lambda: self._services.mounts)
        self._orders = Orders(self._environment, self._memberships, lambda: self._clients, self._leave_notes)
        self._tracing = Tracing(self._environment, self._bus)

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
        loop.set_default_executor(UnawaitedThreads())
        sys.path.insert(0, str(Path.cwd()))  # where functions of [auth] and [push] may live
        self._channel = Channel(self._context.channel, self._on_control, self._on_orphaned)
        self._inspector = Inspector(self._channel.send, {"connections": partial(connections, self._environment)})
        self._inspector.open()
        self._operators = Operators(self._bus, self._channel.send)
        self._channel.open()
        self._services = services = self._build_services(loop)
        api = ServerApi(self._clients, services.push_service.admits)
        services.lean |= {f"{API_PATH}/publish": api.publish, f"{API_PATH}/broadcast": api.broadcast}
        services.app = HttpApp(
            self._config,
            services.push_service,
            push_auth=lambda: services.push_auth,
            scrape=self._scrape,
            epoch=lambda: self._bus.epoch,
            unready=lambda: self._readiness or self._bus.unready,
            on_refused=services.log_refusal,
            served=lambda: [
                Served(mount.path, mount.kind, mount.anonymous)
                for mount in services.mounts.values()
                if not mount.form and "public" in mount.roles  # else it is of clients of channels, or of operators
            ],
            look_up=self._serve_application(self._config.server.websocket_path).look_up,
            api=api.respond,
            admin=AdminPages(
                lambda: self._environment.config,
                lambda: services.trusted_proxies,
                ask=self._operators.ask,
                act=self._operators.act,
                push=services.push_service.push,
            ),
        )
        await services.app.start()
        self._channel.beat(lambda: beat_seconds(self._environment.config), self._figures)
        self._gauges = Gauges(self._environment, services, self._bus, self._context.slot)
        self._bus.start()
        await _any_of(self._bus.welcomed, self._draining)
        tune_collector()
        if not self._draining.is_set():
            await self._listen(self._context.slot, self._context.listeners)
            self._channel.send(control.Ready())

    def _build_services(self, loop: asyncio.AbstractEventLoop) -> Services:
        config, environment = self._config, self._environment
        self._current = prepared = prepare(config, environment.counters, self._on_auth_exhausted)
        admission = Admission(config.limits, self._bus, environment.connections)
        environment.release = admission.release
        push_service = PushService(
            config.limits,
            environment.counters,
            publish=self._publish,
            drop=self._drop,
            remember=environment.notebook.remember,
        )
        services = Services(
            environment=environment,
            push_service=push_service,
            lean={config.server.push_path: push_service.push},
            call_soon=loop.call_soon,
            now=loop.time,
            overload=Overload(config.limits, environment, loop.time()),
            refusals=RefusalLog("handshake", logging.getLogger("fastpush.upgrade"), loop.time()),
            refused_requests=RefusalLog("request", logging.getLogger("fastpush.http"), loop.time()),
            admission=admission,
            tls=None if prepared.tls is None else ServerTls(*prepared.tls, environment),
        )
        environment.spawn = services.spawn
        services.configure(config, prepared.token_auth, prepared.push_auth)
        refused = environment.notebook.turned_down
        self._push = Push(self._hub, config.limits, environment.counters, prepared.token_auth, admission, refused)
        path = config.server.websocket_path
        self._clients = self._build_clients(config, prepared.token_auth, admission)
        mounts = applications(config, self._serve_application)
        nowhere = Mount(path, Application(self._serve_application(path), Options()), config)
        clients = ClientMount(CLIENT_PATH, self._clients, config)
        host = ClientHost(environment, self._memberships)
        streams = [
            EventsMount(EVENTS_PATH, self._push, config, self._clients, host),
            UnidirectionalMount(UNIDIRECTIONAL_PATH, self._clients, config, self._clients, host),
        ]
        live = AdminMount(LIVE_CHANNEL, AdminLive(self._serve_application(LIVE_CHANNEL), self._operators.ask), config)
        services.serve([PushMount(path, self._push, config), clients, *streams, *mounts, live], nowhere)
        return services

    def _build_clients(self, config: Config, token_auth: TokenAuth, admission: Admission) -> ClientProtocol:
        return ClientProtocol(
            ChannelService(self._bus, config.limits, self._environment.counters, self._environment.notebook.remember),
            ClientHost(self._environment, self._memberships),
            self._environment.counters,
            config,
            token_auth,
            admission,
            client_handler(config, self._serve_application(CLIENT_PATH)),
        )

    def _serve_application(self, path: str) -> ApplicationServer:
        return ApplicationServer(path, self._environment, self._bus, self._memberships)

    async def _listen(self, slot: int, listeners: tuple[Listener, ...]) -> None:
        """Accept from a slot's listeners, unless that was called off meanwhile.

        libuv (since 1.45) takes one connection of a listener in each turn of the loop and leaves the others in
        the kernel's queue: however many connect, what is established is served between any two of them.
        """
        loop = asyncio.get_running_loop()
        self._servers[slot] = servers = []
        for listener in listeners:
            server = await loop.create_server(
                self._protocols(listener.role), sock=listener.socket, backlog=LISTEN_BACKLOG
            )
            servers.append(server)
        if self._servers.get(slot) is not servers:
            for server in servers:
                server.close()

    def _protocols(self, role: ListenerRole) -> Callable[[], asyncio.BaseProtocol]:
        """Return what makes the protocol of each connection that a listener of `role` accepts."""
        services, tls = self._services, self._services.tls
        if tls is None or (role == "api" and not self._config.tls.api):
            return lambda: HttpConnection(services, role)
        return lambda: TlsTransport(tls, lambda: HttpConnection(services, role, is_tls=True))

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
        self._services.overload.worst_lag.end_second()
        self._services.refusals.end_second()
        self._services.refused_requests.end_second()
        self._gauges.end_second()
        self._trimmer.end_second(self._environment.counters.closes)
        self._bus.send_snapshot()
        self._leave_notes()
        self._environment.notebook.end_second()

    # -- shutdown ----------------------------------------------------------------

    async def _shutdown(self) -> None:
        """Send everybody away, answer what is under way, wait with a deadline."""
        assert self._order is not None
        services = self._services
        self._readiness = self._readiness or "draining"
        self._drain = Drain(
            self._order, services, stop_accepting=self._stop_accepting_all,
            is_settled=lambda: not services.tasks and not self._bus.pending,
        )  # fmt: skip
        await self._drain.run()
        left = len(self._environment.connections) + len(services.http_connections)
        log.info("drained", extra=fields(connections_left=left))
        self._bus.send_snapshot()
        self._leave_notes()
        self._tracing.end()
        self._bus.close()
        await self._current.close()
        await services.app.close()
        self._channel.close()

    def _stop_accepting_all(self) -> None:
        for slot in list(self._servers):
            self._stop_accepting(slot)

    def _stop_accepting(self, slot: int) -> None:
        for server in self._servers.pop(slot, ()):
            server.close()

    # -- the supervisor's side -----------------------------------------------------

    def _on_control(self, message: control.ToChild, descriptors: list[int]) -> None:
        match message:
            case control.Drain():
                self._begin_drain(message)
            case control.Prepare():
                self._services.spawn(self._prepare(message))
            case control.ReopenLog():
                logs.reopen()
            case control.Reload():
                self._services.spawn(self._reload(message))
            case control.Readiness():
                self._readiness = message.reason
            case control.Cover():
                self._cover(message.slot, descriptors)
            case control.Uncover():
                self._stop_accepting(message.slot)
            case control.Inspect():
                self._inspector.answer(message)
            case control.Acted():
                self._operators.on_acted(message)
            case _:
                log.error("unexpected message from the supervisor", extra=fields(kind=type(message).__name__))

    def _begin_drain(self, order: control.Drain) -> None:
        self._order = order
        self._draining.set()
        if self._drain is not None:
            self._drain.obey(order)

    def _on_sigterm(self) -> None:
        """Drain on somebody's wish: the supervisor starts a successor meanwhile."""
        if not self._draining.is_set():
            seconds = self._environment.config.server.drain_seconds
            self._channel.send(control.Leaving(seconds))
            self._begin_drain(control.Drain(seconds))

    def _on_auth_exhausted(self) -> None:
        """Give way to a successor: threads that never come back leave nobody to authenticate clients here."""
        logs.write_stacks()
        self._on_sigterm()

    def _on_orphaned(self) -> None:
        log.error("supervisor gone")
        if self._draining.is_set():
            return
        seconds = self._environment.config.server.drain_seconds
        # Nobody is left to see to the limit.
        self._begin_drain(control.Drain(seconds - min(_END_SECONDS, seconds / 4)))

    async def _prepare(self, message: control.Prepare) -> None:
        """Find out whether this worker could take the configuration over."""
        unused, self._prepared = self._prepared, None
        if unused is not None:
            await unused.close()
        try:
            self._prepared = await self._make(message.config)
        except ConfigError as error:
            self._channel.send(control.Prepared(message.reload, str(error)))
        else:
            self._channel.send(control.Prepared(message.reload))

    async def _make(self, config: Config) -> Prepared:
        """Make what a configuration needs; meanwhile clients are served."""
        return await asyncio.to_thread(prepare, config, self._environment.counters, self._on_auth_exhausted)

    async def _reload(self, message: control.Reload) -> None:
        """Take over what has been prepared; a worker that was started meanwhile prepares it now."""
        config = message.config
        logs.set_level(config.log.level)
        prepared, self._prepared = self._prepared, None
        try:
            if prepared is None or prepared.config != config:
                prepared = await self._make(config)
        except ConfigError as error:
            log.error("not reloaded", extra=fields(reason=str(error)))
            return
        services = self._services
        services.spawn(self._current.close())
        self._current = prepared
        take_over(prepared, self._environment, services, self._push, self._clients)
        log.info("reloaded")
        self._channel.send(control.Reloaded(message.reload))
        await tell_connections(self._environment)

    def _figures(self) -> dict[str, int]:
        counters = self._environment.counters
        return {
            "connections": len(self._environment.connections),
            "keys": len(self._hub),
            "pushes": counters.pushes_delivered + counters.pushes_unconfirmed,
            "deliveries": counters.deliveries,
        }

    # -- the bus's side ------------------------------------------------------------

    def _publish(self, body: bytes, on_result: OnResult, once: bytes) -> None:
        try:
            self._bus.publish(body, on_result, once)
        except BusUnavailable as error:
            raise unavailable(f"{error}; nobody received the push") from None

    def _drop(self, body: bytes, on_result: OnResult) -> None:
        try:
            self._bus.order(body, on_result)
        except BusUnavailable as error:
            raise unavailable(f"{error}; nobody was dropped") from None

    def _scrape(self, on_report: Callable[[bytes | None], None]) -> None:
        try:
            self._bus.scrape(on_report)
        except BusUnavailable as error:
            raise unavailable(str(error)) from None

    def _key_table(self) -> Iterable[bytes]:
        return self._hub.keys()

    def _find(self, number: int) -> Connection | None:
        worker, serial = split_connection_number(number)
        return self._environment.connections.get(serial) if worker == self._context.number else None

    def _leave_notes(self) -> None:
        notebook = self._environment.notebook
        if notebook.notes and self._bus.note(pack_notes(notebook.notes)):
            notebook.notes.clear()

    def _measure(self) -> bytes:
        return self._gauges.snapshot()


async def _any_of(*events: asyncio.Event) -> None:
    """Return when one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
