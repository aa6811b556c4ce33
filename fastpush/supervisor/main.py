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
from fastpush.supervisor.control import ControlServer
from fastpush.supervisor.listeners import Listeners, bind, first_port, raise_descriptor_limit, worker_slots
from fastpush.supervisor.notify import Notifier
from fastpush.supervisor.process import Closable
from fastpush.supervisor.runtime import Runtime, listen_unix, open_runtime
from fastpush.supervisor.signals import Signals

log = logging.getLogger("fastpush.supervisor")

OVERSLEPT_SECONDS = 1.0  # later than this, it was the supervisor that stood still
KILLED_SECONDS = 5.0  # time SIGKILL has; a child that still lives hangs in the kernel


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
        commands = {"status": self._status}
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
            clock=time.monotonic,
        )
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
                self._notifier.ready()
                log.info("ready", extra=fields(seconds=round(time.monotonic() - self._started, 3)))

    def shutdown(self) -> None:
        """Let the children end, the hard way after `drain_seconds`, and remove every trace."""
        self._stopping = True
        with self._closing:
            if self._children is not None:
                self._notifier.stopping()
                self._listeners.close()
                try:
                    self._end(self._children)
                finally:
                    self._children.kill(time.monotonic())  # nobody, unless the line above failed

    def _end(self, children: Children) -> None:
        began = time.monotonic()
        drain_seconds = self._config.server.drain_seconds
        if not self._forced:
            log.info("stopping", extra=fields(seconds=drain_seconds, processes=len(children)))
            children.drain(began, drain_seconds)
        while len(children) and time.monotonic() < began + drain_seconds + KILLED_SECONDS:
            self._turn(children)
        log.info("stopped", extra=fields(seconds=round(time.monotonic() - began, 3), left=len(children)))

    def _turn(self, children: Children) -> None:
        """Sleep until something happens or is due, and see to it."""
        due = min(children.deadline(self._config), self._control.deadline)
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
        listeners = bind(self._config)
        self._closing.callback(listeners.close)
        if runtime is None:
            runtime = open_runtime(self._config, listeners.port)
            self._closing.callback(runtime.close)
        return runtime, listeners

    # Signals

    def _on_signals(self) -> None:
        for number in self._signals.read():
            self._handlers[signal.Signals(number)]()

    def handle_sigterm(self) -> None:
        """First: drain and stop. Again: stop at once."""
        if self._stopping and self._children is not None:
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
        if self._stopping or self._children is None:
            return
        try:
            new = self._config_source()
            live, restart = changes(self._config, new)
            merged = merge_live(self._config, new)
            check_exposure(merged)
            _check_size(merged)
        except ConfigError as error:
            log.error("not reloaded", extra=fields(reason=str(error)))
            return
        self._config = merged
        logs.set_level(merged.log.level)
        try:
            logs.reopen()
        except OSError as error:
            log.error("log file not reopened", extra=fields(path=merged.log.file, reason=error.strerror))
        self._children.tell(control.Reload(merged))
        log.info("reloaded", extra=fields(changed=", ".join(live)))
        if restart:
            log.warning("restart needed", extra=fields(changed=", ".join(restart)))

    # Commands

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        """{"command": "status"}: who runs, since when, and how it is."""
        assert self._children is not None
        now = time.monotonic()
        return {
            "pid": os.getpid(),
            "version": __version__,
            "state": "stopping" if self._stopping else "ready" if self._ready else "starting",
            "uptime_seconds": round(now - self._started, 3),
            "address": self._listeners.addresses,
            "processes": self._children.status(now),
        }


def _check_size(config: Config) -> None:
    size = len(control.encode(control.Reload(config)))
    if size > control.MESSAGE_BYTES_MAX:
        raise ConfigError(
            f"the settings take {size} bytes, {control.MESSAGE_BYTES_MAX} can be handed over at once: restart instead"
        )
