"""The supervisor: one process that binds, forks, watches, restarts and stops all others.

No event data passes through it. It has one thread and no event loop, so it can fork at
any moment; it sleeps in poll() until a signal, a child, a command or a deadline.
"""

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from fastpush import __version__
from fastpush.config import Config, addresses
from fastpush.errors import EXIT_USAGE
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor.changes import Changes
from fastpush.supervisor.children import Children, Entries
from fastpush.supervisor.control import Command, CommandError, ControlServer, Reply
from fastpush.supervisor.inherited import take_inherited
from fastpush.supervisor.inspections import Inspections
from fastpush.supervisor.listeners import Listeners, bind, first_port, raise_descriptor_limit, worker_slots
from fastpush.supervisor.notify import Notifier, Reporter
from fastpush.supervisor.process import Closable, Process
from fastpush.supervisor.runtime import Runtime, listen_unix, open_runtime
from fastpush.supervisor.signals import Signals

log = logging.getLogger("fastpush.supervisor")

OVERSLEPT_SECONDS = 1.0  # later than this, it was the supervisor that stood still
KILLED_SECONDS = 5.0  # time SIGKILL has; a child that still lives hangs in the kernel
KEPT_DRAIN_SECONDS = 0.8  # while systemd keeps the listeners, connects wait for the next start: nobody shall for long
DRAIN_SPARE_SECONDS = 1.0  # after the last close frame and the time that clients have to answer it


def serve(config: Config, config_source: Callable[[], Config], *, entries: Entries | None = None) -> int:
    """Run the server until a signal ends it; returns the exit code.

    Args:    config: validated.  config_source: reads the configuration again, on SIGHUP; may raise ConfigError.
             entries: what children run, broker and worker if not given. `fastpush.log.setup` has been called.
    Returns: 0 after a drain; 1 when a second SIGINT or SIGTERM cut it short.
    Raises:  StartError: the host does not let it start, or its processes die before they are ready: exit code 1.
             ConfigError: an open server on an address that others can reach: exit code 2.
             Either way nothing is left behind: no process, no file.
    """
    return Supervisor(config, config_source, entries or _default_entries()).run()


def _default_entries() -> Entries:
    """Import what children run before any fork, so that they share its memory."""
    # Not at the top: commands that only look for the server would load event loop and HTTP library too.
    from fastpush.broker import main as broker  # noqa: PLC0415
    from fastpush.worker import main as worker  # noqa: PLC0415

    return Entries(broker=broker.run, worker=worker.run)


class Supervisor:
    """One server's life: startup, main_loop, shutdown."""

    def __init__(self, config: Config, config_source: Callable[[], Config], entries: Entries) -> None:
        self._changes = Changes(config, config_source)
        self._inspections = Inspections()
        self._entries = entries
        self._notifier = Notifier()
        self._selector = selectors.PollSelector()  # holds no descriptor that a fork would share
        self._closing = ExitStack()
        self._children: Children | None = None
        self._started = self._woke_at = time.monotonic()
        self._ready = False
        self._stopping = False
        self._forced = False
        self._spread_seconds: float | None = None  # while a drain by command is under way
        self._ends_by = 0.0
        self._handlers = {
            signal.SIGTERM: self.handle_sigterm,
            signal.SIGINT: self.handle_sigint,
            signal.SIGHUP: self.handle_sighup,
            signal.SIGCHLD: self.handle_sigchld,
            signal.SIGUSR1: self.handle_sigusr1,
        }

    @property
    def _config(self) -> Config:
        return self._changes.config

    def run(self) -> int:
        """Serve; see `serve`."""
        try:
            self.startup()
            self.main_loop()
        finally:
            self.shutdown()
        return 1 if self._forced else 0

    # The three phases

    def startup(self) -> None:
        """Take the signals, the runtime directory and the ports, then fork."""
        self._signals = Signals()
        self._closing.callback(self._signals.close)
        self._signals.install()
        self._selector.register(self._signals.reader, selectors.EVENT_READ, self._on_signals)
        self._check_descriptors()
        runtime, self._listeners = self._take_places()
        bus_listener = listen_unix(runtime.bus_path)
        self._closing.callback(bus_listener.close)
        commands = {
            "status": self._status,
            "reload": self._while_running(self._changes.reload),
            "drain": self._while_running(self._drain_by_command),
            "restart": self._while_running(self._changes.restart),
            "debug": self._inspections.debug,
            "insight": self._inspections.insight,
        }
        self._acts = {name: commands[name] for name in ("drain", "restart")}
        server = ControlServer(listen_unix(runtime.control_path), self._selector, commands, time.monotonic)
        self._closing.callback(server.close)
        self._control = server

        def inherited() -> list[Closable]:
            return [*self._signals.sockets(), runtime.lock, *server.sockets()]

        self._children = Children(
            entries=self._entries,
            listeners=self._listeners,
            bus_listener=bus_listener,
            bus_path=runtime.bus_path,
            selector=self._selector,
            inherited=inherited,
            on_answer=self._changes.on_answer,
            on_inspected=self._inspections.on_inspected,
            on_act=self._on_act,
            clock=time.monotonic,
        )
        self._changes.begin(self._children, self._listeners)
        self._inspections.begin(self._children)
        self._reporter = Reporter(self._notifier, self._children.status)
        self._children.start(self._config)
        for address in self._listeners.addresses:
            log.info("listening", extra=fields(address=address, workers=worker_slots(self._config)))

    def main_loop(self) -> None:
        """Keep the children alive until told to stop."""
        assert self._children is not None
        while not self._stopping:
            self._turn(self._children)
            if not self._ready and self._children.all_ready:
                self._ready = True
                self._reporter.ready(time.monotonic())
                log.info("ready", extra=fields(seconds=round(time.monotonic() - self._started, 3)))
            if not self._stopping:
                self._changes.attend(time.monotonic())
                self._children.tell_readiness(self._children.unserved if self._ready else "starting")

    def shutdown(self) -> None:
        """Let the children end, the hard way after `drain_seconds`, and remove every trace."""
        self._stopping = True
        with self._closing:
            if self._children is not None:
                self._listeners.close()
                try:
                    self._end(self._children)
                finally:
                    self._children.kill(time.monotonic())  # nobody, unless the line above failed

    def _end(self, children: Children) -> None:
        began = time.monotonic()
        if not self._forced:
            self._drain(children, began)
        while len(children) and time.monotonic() < self._ends_by + KILLED_SECONDS:
            self._turn(children)
        log.info("stopped", extra=fields(seconds=round(time.monotonic() - began, 3), left=len(children)))

    def _drain(self, children: Children, now: float) -> None:
        """Have all children end: in the time that a command has ordered, else in `drain_seconds`."""
        config, spread = self._config, self._spread_seconds
        if spread is not None:
            seconds = spread + config.connections.close_timeout_seconds + DRAIN_SPARE_SECONDS
        elif self._listeners.kept:
            seconds = min(config.server.drain_seconds, KEPT_DRAIN_SECONDS)
        else:
            seconds = config.server.drain_seconds
        self._ends_by = now + seconds
        self._reporter.stopping(seconds)
        log.info("stopping", extra=fields(seconds=seconds, processes=len(children)))
        children.tell_readiness("draining")
        children.drain(now, seconds, spread, listens=spread is not None)

    def _turn(self, children: Children) -> None:
        """Sleep until something happens or is due, and see to it."""
        due = min(
            children.deadline(self._config),
            self._control.deadline,
            self._reporter.deadline,
            self._changes.deadline,
            self._inspections.deadline,
        )
        wait = max(0.0, due - time.monotonic())
        events = self._selector.select(wait if wait != float("inf") else None)
        now = time.monotonic()
        overslept = now - self._woke_at > wait + OVERSLEPT_SECONDS
        self._woke_at = now
        for key, _ in events:
            key.data()
        if overslept:
            children.grant_time(now)
        self._control.attend(now)
        children.attend(now, self._config)
        self._inspections.attend(now)
        self._reporter.attend(now, self._config.server.hang_seconds)

    # Startup in detail

    def _check_descriptors(self) -> None:
        count = len(addresses(self._config.server.listen)) + len(addresses(self._config.api.listen))
        limit, few = raise_descriptor_limit(worker_slots(self._config), count)
        if few:
            advice = "each connection takes one; raise the hard limit (ulimit -Hn, LimitNOFILE= in the systemd unit)"
            log.warning("few file descriptors", extra=fields(limit=limit, advice=advice))

    def _take_places(self) -> tuple[Runtime, Listeners]:
        """Open the runtime directory and bind, in the order that names the cause best.

        The lock tells of another fastpush by its process id; but the directory is named after
        the port, which may not be known before it is bound.
        """
        port = first_port(self._config)
        runtime = open_runtime(self._config, port) if port else None
        if runtime:
            self._closing.callback(runtime.close)
        listeners = bind(self._config, take_inherited())
        self._closing.callback(listeners.close)
        listeners.keep(self._notifier)
        if runtime is None:
            runtime = open_runtime(self._config, listeners.port)
            self._closing.callback(runtime.close)
        return runtime, listeners

    # Signals

    def _on_signals(self) -> None:
        for number in self._signals.read():
            self._handlers[signal.Signals(number)]()

    def handle_sigterm(self) -> None:
        """First: drain and stop, also when a slow drain by command is under way. Again: stop at once."""
        if self._stopping and self._children is not None:
            if self._spread_seconds is not None:
                self._spread_seconds = None
                self._drain(self._children, time.monotonic())
            else:
                self._forced = True
                log.warning("stopping at once")
                self._children.kill(time.monotonic())
        self._stopping = True

    def handle_sigint(self) -> None:
        """Do as for SIGTERM."""
        self.handle_sigterm()

    def handle_sigchld(self) -> None:
        """Nothing: it woke the loop, and every turn reaps."""

    def handle_sighup(self) -> None:
        """Take over what may change live; an error changes nothing."""
        if not self._stopping and self._children is not None:
            self._changes.handle_sighup()

    def handle_sigusr1(self) -> None:
        """Have every child write what it is doing to the log, as this process has."""
        if self._children is not None:
            self._children.write_stacks()

    # Commands

    def _status(self, _: dict[str, Any], reply: Reply) -> None:
        """{"command": "status"}: who runs, since when, and how it is."""
        assert self._children is not None
        now = time.monotonic()
        draining = self._stopping and self._spread_seconds is not None
        reply(
            {
                "pid": os.getpid(),
                "version": __version__,
                "state": "draining" if draining else "stopping" if self._stopping
                else "ready" if self._ready else "starting",
                "uptime_seconds": round(now - self._started, 3),
                "address": self._listeners.addresses,
                "operation": self._changes.describe(),
                "processes": self._children.status(now),
            }
        )  # fmt: skip

    def _on_act(self, process: Process, message: control.Act) -> None:
        """Carry out a command for a worker, whose operator may do that ([admin] actions)."""

        def reply(told: dict[str, Any]) -> None:
            process.send(control.Acted(message.request, msgspec.Raw(msgspec.json.encode(told))))

        try:
            request = msgspec.json.decode(message.command, type=dict[str, Any])
            self._act_of(request)(request, reply)
        except (CommandError, msgspec.DecodeError) as error:
            reply({"error": str(error)})

    def _act_of(self, request: dict[str, Any]) -> Command:
        command = self._acts.get(str(request.get("command")))
        if command is None or not self._config.admin.actions:
            raise CommandError("an administration page may not do this", EXIT_USAGE)
        if request["command"] == "drain" and request.get("worker") is None:
            raise CommandError("name the worker: an administration page does not end the server", EXIT_USAGE)
        return command

    def _while_running(self, command: Command) -> Command:
        """Return a command that is refused while the server starts or ends."""

        def checked(request: dict[str, Any], reply: Reply) -> None:
            if self._stopping or not self._ready:
                raise CommandError("the server is stopping" if self._stopping else "the server is starting")
            command(request, reply)

        return checked

    def _drain_by_command(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "drain", "worker": SLOT or null, "seconds": S or null}: replace a worker, or end the server."""
        if request.get("worker") is not None:
            self._changes.drain_worker(request, reply)
            return
        self._changes.check_idle()
        self._spread_seconds = self._changes.seconds_of(request)
        self._stopping = True
        reply({"seconds": self._spread_seconds})
