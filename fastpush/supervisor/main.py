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

from fastpush import __version__
from fastpush import log as logs
from fastpush.config import Config, addresses, changes, check_exposure, merge_live
from fastpush.errors import ConfigError
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor.children import Children, Entries
from fastpush.supervisor.control import CommandError, ControlServer, Reply
from fastpush.supervisor.inherited import take_inherited
from fastpush.supervisor.listeners import Listeners, bind, first_port, raise_descriptor_limit, worker_slots
from fastpush.supervisor.notify import Notifier, Reporter
from fastpush.supervisor.operations import Reload, Replacement
from fastpush.supervisor.process import Closable, Process
from fastpush.supervisor.runtime import Runtime, listen_unix, open_runtime
from fastpush.supervisor.signals import Signals

log = logging.getLogger("fastpush.supervisor")

OVERSLEPT_SECONDS = 1.0  # later than this, it was the supervisor that stood still
KILLED_SECONDS = 5.0  # time SIGKILL has; a child that still lives hangs in the kernel
KEPT_DRAIN_SECONDS = 0.5  # while systemd keeps the listeners, connects wait for the next start: nobody shall for long
DRAIN_SPARE_SECONDS = 1.0  # after the last close frame and the time that clients have to answer it
SPREAD_SECONDS_MAX = 86400.0
EXIT_USAGE = 2


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
        self._config = config
        self._config_source = config_source
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
        self._reload: Reload | None = None
        self._reloads = 0
        self._reload_again = False
        self._replacement: Replacement | None = None
        self._handlers = {
            signal.SIGTERM: self.handle_sigterm,
            signal.SIGINT: self.handle_sigint,
            signal.SIGHUP: self.handle_sighup,
            signal.SIGCHLD: self.handle_sigchld,
        }

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
            "reload": self._reload_by_command,
            "drain": self._drain_by_command,
            "restart": self._restart_by_command,
        }
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
            on_prepared=self._on_prepared,
            clock=time.monotonic,
        )
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
                self._attend_operations(self._children, time.monotonic())
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
            self._operations_deadline(),
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
        self._reporter.attend(now, self._config.server.hang_seconds)

    def _operations_deadline(self) -> float:
        reload, replacement = self._reload, self._replacement
        return min(
            reload.deadline if reload is not None else float("inf"),
            replacement.deadline if replacement is not None and not replacement.is_done else float("inf"),
        )

    def _attend_operations(self, children: Children, now: float) -> None:
        if self._reload is not None:
            self._reload.attend(now)
        if self._replacement is not None and not self._replacement.is_done:
            self._replacement.attend(children, self._config, now)

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
        if self._reload is not None:
            self._reload_again = True  # the file may have changed since it was read
        else:
            self._begin_reload(lambda _: None)

    # Reload

    def _begin_reload(self, reply: Reply) -> None:
        """Validate the configuration and have every child prepare it; `reply` is told the outcome."""
        if self._stopping or self._children is None:
            reply({"error": "the server is stopping", "code": 1})
            return
        self._reopen_log(self._children)
        try:
            new = self._config_source()
            live, restart = changes(self._config, new)
            merged = merge_live(self._config, new)
            check_exposure(merged)
            _check_size(merged)
        except ConfigError as error:
            _refuse_reload(str(error), reply)
            return

        def on_done(problem: str) -> None:
            self._reload = None
            if problem:
                _refuse_reload(problem, reply)
            else:
                self._take_over(merged, live, restart)
                reply({"changed": live, "restart": restart})
            if self._reload_again:
                self._reload_again = False
                self.handle_sighup()

        self._reloads += 1
        deadline = time.monotonic() + self._config.server.hang_seconds
        self._reload = Reload(self._reloads, merged, self._children, deadline, on_done)

    def _reopen_log(self, children: Children) -> None:
        """Write to a new file if the old one was moved away, whatever becomes of the configuration."""
        children.tell(control.ReopenLog())
        try:
            logs.reopen()
        except OSError as error:
            log.error("log file not reopened", extra=fields(path=self._config.log.file, reason=error.strerror))

    def _on_prepared(self, process: Process, answer: control.Prepared) -> None:
        if self._reload is not None:
            self._reload.on_prepared(process, answer)

    def _take_over(self, config: Config, live: list[str], restart: list[str]) -> None:
        assert self._children is not None
        self._config = config
        logs.set_level(config.log.level)
        self._children.tell(control.Reload(config))
        self._children.grant_time(time.monotonic())  # they may have beaten for a longer hang_seconds
        log.info("reloaded", extra=fields(changed=", ".join(live)))
        if restart:
            log.warning("restart needed", extra=fields(changed=", ".join(restart)))

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
                "operation": self._replacement.describe() if self._replacement is not None else None,
                "processes": self._children.status(now),
            }
        )  # fmt: skip

    def _reload_by_command(self, _: dict[str, Any], reply: Reply) -> None:
        """{"command": "reload"}: as SIGHUP, and tell how it went."""
        if self._reload is not None:
            raise CommandError("a reload is under way already")
        self._begin_reload(reply)

    def _drain_by_command(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "drain", "worker": SLOT or null, "seconds": S or null}: replace a worker, or end the server."""
        seconds = self._seconds_of(request)
        worker = request.get("worker")
        if worker is not None:
            self._begin_replacement("drain", [self._slot_of(worker)], seconds)
        else:
            self._check_idle()
            self._spread_seconds = seconds
            self._stopping = True
        reply({"seconds": seconds})

    def _restart_by_command(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "restart", "seconds": S or null}: replace all workers, one after the other."""
        seconds = self._seconds_of(request)
        self._begin_replacement("rolling restart", list(range(len(self._listeners.slots))), seconds)
        reply({"seconds": seconds, "workers": len(self._listeners.slots)})

    def _begin_replacement(self, name: str, slots: list[int], seconds: float) -> None:
        self._check_idle()
        if not self._ready:
            raise CommandError("the server is starting")
        self._replacement = Replacement(name, slots, seconds, self._config.connections.close_timeout_seconds)

    def _check_idle(self) -> None:
        if self._stopping:
            raise CommandError("the server is stopping")
        if self._replacement is not None and not self._replacement.is_done:
            raise CommandError(f"a {self._replacement.describe()['name']} is under way already")

    def _seconds_of(self, request: dict[str, Any]) -> float:
        seconds = request.get("seconds")
        if seconds is None:
            return self._config.server.drain_seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= SPREAD_SECONDS_MAX:
            raise CommandError(
                f"seconds must be a number from 0 to {SPREAD_SECONDS_MAX:g}, found {seconds!r}", EXIT_USAGE
            )
        return float(seconds)

    def _slot_of(self, worker: object) -> int:
        slots = len(self._listeners.slots)
        if isinstance(worker, bool) or not isinstance(worker, int) or not 0 <= worker < slots:
            raise CommandError(f"there is no worker {worker}; there are 0 to {slots - 1}", EXIT_USAGE)
        return worker


def _refuse_reload(problem: str, reply: Reply) -> None:
    log.error("not reloaded", extra=fields(reason=problem))
    reply({"error": problem, "code": EXIT_USAGE})


def _check_size(config: Config) -> None:
    size = len(control.encode(control.Prepare(0, config)))
    if size > control.MESSAGE_BYTES_MAX:
        raise ConfigError(
            f"the settings take {size} bytes, {control.MESSAGE_BYTES_MAX} can be handed over at once: restart instead"
        )
