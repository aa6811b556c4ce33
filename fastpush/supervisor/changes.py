"""What is changed while the server runs: its configuration and its workers; one reload, one replacement at a time."""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastpush import log as logs
from fastpush.config import Config, changes, check_exposure, merge_handlers, merge_live
from fastpush.errors import EXIT_USAGE, ConfigError
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor.children import Children
from fastpush.supervisor.control import CommandError, Reply
from fastpush.supervisor.listeners import Listeners
from fastpush.supervisor.operations import Reload, Replacement
from fastpush.supervisor.process import Process

log = logging.getLogger("fastpush.supervisor")

SPREAD_SECONDS_MAX = 86400.0


class Changes:
    """Carries out `reload`, `restart --rolling` and `drain WORKER`, step by step: see `attend`.

    config: what the server runs by.  config_source: reads it again; may raise ConfigError.
    """

    def __init__(self, config: Config, config_source: Callable[[], Config]) -> None:
        self.config = config
        self._config_source = config_source
        self._reload: Reload | None = None
        self._reloads = 0
        self._reload_again = False
        self._replacement: Replacement | None = None
        self._before = config  # the replacement

    def begin(self, children: Children, listeners: Listeners) -> None:
        """Carry out changes of these from now on."""
        self._children = children
        self._listeners = listeners

    @property
    def deadline(self) -> float:
        """When `attend` has something to do, should nothing happen before."""
        reload, replacement = self._reload, self._replacement
        return min(
            reload.deadline if reload is not None else float("inf"),
            replacement.deadline if replacement is not None and not replacement.is_done else float("inf"),
        )

    def attend(self, now: float) -> None:
        """Take the next steps, if they can be taken."""
        if self._reload is not None:
            self._reload.attend(now)
        if self._replacement is not None and not self._replacement.is_done:
            self._replacement.attend(self._children, self.config, now)
            if self._replacement.failure and not self._replacement.replaced:
                # Perhaps they are why: who has to be restarted goes by those that it ran with.
                self.config = merge_handlers(self.config, self._before)

    # Reload

    def handle_sighup(self) -> None:
        """Take over what may change live; an error changes nothing."""
        if self._reload is not None:
            self._reload_again = True  # the file may have changed since it was read
        else:
            self._begin_reload(lambda _: None)

    def reload(self, _: dict[str, Any], reply: Reply) -> None:
        """{"command": "reload"}: as SIGHUP, and tell how it went."""
        if self._reload is not None:
            raise CommandError("a reload is under way already")
        self._begin_reload(reply)

    def _begin_reload(self, reply: Reply) -> None:
        """Validate the configuration and have every child prepare it; `reply` is told the outcome."""
        # It may have been moved away: a new one is written to, whatever becomes of the configuration.
        self._children.tell(control.ReopenLog())
        logs.reopen()
        try:
            new = self._config_source()
            check_exposure(new)  # as the next start will
            live, restart = changes(self.config, new)
            merged = merge_live(self.config, new)
            self._listeners.check_exposure(merged)
            _check_size(merged)
        except ConfigError as error:
            _refuse(str(error), reply)
            return

        def on_done(problem: str) -> None:
            self._reload = None
            if problem:
                _refuse(problem, reply)
            else:
                log.info("reloaded", extra=fields(changed=", ".join(live)))
                if restart:
                    log.warning("restart needed", extra=fields(changed=", ".join(restart)))
                reply({"changed": live, "restart": restart})
            if self._reload_again:
                self._reload_again = False
                self.handle_sighup()

        self._reloads += 1
        deadline = time.monotonic() + self.config.server.hang_seconds
        self._reload = Reload(
            self._reloads,
            merged,
            self._children,
            deadline,
            take_over=lambda number: self._take_over(number, merged),
            on_done=on_done,
        )

    def on_answer(self, process: Process, answer: control.Prepared | control.Reloaded) -> None:
        """Take a child's answer to Prepare or Reload."""
        if self._reload is not None:
            self._reload.on_answer(process, answer)

    def _take_over(self, number: int, config: Config) -> set[Process]:
        self.config = config
        logs.set_level(config.log.level)
        self._children.grant_time(time.monotonic())  # they may have beaten for a longer hang_seconds
        return self._children.tell(control.Reload(number, config))

    # Replacing workers

    def restart(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "restart", "seconds": S or null}: replace all workers, one after the other; [[application]] and
        the handler of [client] are read anew for them.
        """
        seconds = self.seconds_of(request)
        workers = len(self._listeners.slots)
        self._replace("rolling restart", list(range(workers)), seconds, self._with_handlers())
        reply({"seconds": seconds, "workers": workers})

    def _with_handlers(self) -> Config:
        """Return what the server runs by, with the classes that the configuration names now. Raises: CommandError."""
        try:
            config = merge_handlers(self.config, self._config_source())
            self._listeners.check_exposure(config)
        except ConfigError as error:
            raise CommandError(f"no worker is replaced: {error}", EXIT_USAGE) from None
        return config

    def drain_worker(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "drain", "worker": SLOT, "seconds": S or null}: replace one worker."""
        seconds = self.seconds_of(request)
        worker, workers = request["worker"], len(self._listeners.slots)
        if isinstance(worker, bool) or not isinstance(worker, int) or not 0 <= worker < workers:
            raise CommandError(f"there is no worker {worker}; there are 0 to {workers - 1}", EXIT_USAGE)
        self._replace("drain", [worker], seconds, self.config)
        reply({"seconds": seconds})

    def _replace(self, name: str, slots: list[int], seconds: float, config: Config) -> None:
        self.check_idle()
        self._before, self.config = self.config, config
        self._replacement = Replacement(name, slots, seconds, self.config.connections.close_timeout_seconds)

    def check_idle(self) -> None:
        """Raise CommandError while workers are being replaced."""
        if self._replacement is not None and not self._replacement.is_done:
            raise CommandError(f"a {self._replacement.name} is under way already")

    def seconds_of(self, request: dict[str, Any]) -> float:
        """Return the time that a drain is to take. Raises: CommandError."""
        seconds = request.get("seconds")
        if seconds is None:
            return self.config.server.drain_seconds
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds <= SPREAD_SECONDS_MAX:
            return float(seconds)
        raise CommandError(f"seconds must be a number from 0 to {SPREAD_SECONDS_MAX:g}, found {seconds!r}", EXIT_USAGE)

    def describe(self) -> dict[str, Any] | None:
        """Return what `status` tells of the last replacement."""
        return self._replacement.describe() if self._replacement is not None else None


def _refuse(problem: str, reply: Reply) -> None:
    log.error("not reloaded", extra=fields(reason=problem))
    reply({"error": problem, "code": EXIT_USAGE})


def _check_size(config: Config) -> None:
    size = len(control.encode(control.Prepare(0, config)))
    if size > control.MESSAGE_BYTES_MAX:
        raise ConfigError(
            f"the settings take {size} bytes, {control.MESSAGE_BYTES_MAX} can be handed over at once: restart instead"
        )
