"""What takes several turns of the supervisor's loop: a reload in two phases, and the replacing of workers.

Both are driven: `attend` looks what has come and takes the next step, and never waits.

    Reload        Prepare to every child ──► all Prepared ──► Reload to every child ──► all Reloaded ──► done
                                         └─► one problem, or too late ──► nothing changes

    Replacement   for one slot after another:
                  start successor ──► it is ready ──► retire the old process ──► that has ended ──► next
                                  └─► it has died, or takes too long ──► failed; the old process serves on
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fastpush.config import Config
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor.children import Children
from fastpush.supervisor.process import Process

log = logging.getLogger("fastpush.supervisor")

READY_SECONDS = 30.0  # a successor that takes longer to serve will not


class Reload:
    """A new configuration on its way to all children.

    take_over(number): called when every child has prepared; tells them, and returns those that took it.
    on_done(problem): called once; with an empty problem every child goes by the new configuration.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        children: Children,
        deadline: float,
        *,
        take_over: Callable[[int], set[Process]],
        on_done: Callable[[str], None],
    ) -> None:
        self._number = number
        self._children = children
        self._take_over = take_over
        self._on_done = on_done
        self._is_taken_over = False
        self.deadline = deadline
        self._waiting = children.tell(control.Prepare(number, config))

    def on_answer(self, process: Process, answer: control.Prepared | control.Reloaded) -> None:
        """Take a child's answer."""
        if answer.reload != self._number:
            return  # of an earlier reload, that was too late for it
        if isinstance(answer, control.Prepared) and answer.problem and not self._is_taken_over:
            self._on_done(answer.problem)
        elif isinstance(answer, control.Reloaded) == self._is_taken_over:
            self._waiting.discard(process)

    def attend(self, now: float) -> None:
        """Take the next step when nobody is waited for any more."""
        # Whoever has ended has a successor, which starts with the configuration of now and is told at the end.
        self._waiting = {process for process in self._waiting if self._children.is_alive(process)}
        if not self._waiting and not self._is_taken_over:
            self._is_taken_over = True
            self._waiting = self._take_over(self._number)
        elif not self._waiting or (self._is_taken_over and now >= self.deadline):  # the late are being replaced
            self._on_done("")
        elif now >= self.deadline:
            late = ", ".join(sorted(f"{process.role} {process.number}" for process in self._waiting))
            self._on_done(f"no answer from {late} within [server] hang_seconds")


class Replacement:
    """Workers are replaced, one after the other, each successor ready before its predecessor stops.

    slots:   of the workers.
    seconds: over which the clients of each are closed evenly.
    spare_seconds: for those that do not answer their close frame.
    """

    def __init__(self, name: str, slots: Sequence[int], seconds: float, spare_seconds: float) -> None:
        self.name = name
        self._slots = list(slots)
        self._drain = control.Drain(seconds + spare_seconds, seconds)
        self._position = 0
        self._old: Process | None = None
        self._new: Process | None = None
        self._ready_by = 0.0
        self.failure = ""
        log.info("replacing workers", extra=fields(operation=name, workers=len(slots), seconds=seconds))

    @property
    def is_done(self) -> bool:
        """Whether it has come to its end, good or bad."""
        return bool(self.failure) or self._position == len(self._slots)

    @property
    def replaced(self) -> int:
        """How many workers have been replaced."""
        return self._position

    @property
    def deadline(self) -> float:
        """When `attend` has something to do, should nothing happen before."""
        return float("inf") if self._new is None or self._new.ready else self._ready_by

    def describe(self) -> dict[str, Any]:
        """Return what the control socket tells of it."""
        return {
            "name": self.name,
            "done": self._position,
            "of": len(self._slots),
            "is_done": self.is_done,
            "failure": self.failure,
        }

    def attend(self, children: Children, config: Config, now: float) -> None:
        """Take the next step, if it can be taken."""
        while not self.is_done:
            if self._new is None:
                self._start(children, config, now)
            elif not self._new.ready:
                if not children.is_alive(self._new) or self._new.kill_at is not None:
                    self._fail("its successor died before it was ready; its log lines say why")
                elif now >= self._ready_by:
                    self._new.kill(now, "not ready in time")
                    self._fail(f"its successor was not ready within {READY_SECONDS:g} s")
                else:
                    return
            elif self._old is not None and children.is_alive(self._old):
                if self._old.leaving:
                    return
                children.retire(self._old, now, self._drain)
            else:
                self._old = self._new = None
                self._position += 1
        if not self.failure:
            log.info("workers replaced", extra=fields(operation=self.name, workers=len(self._slots)))

    def _start(self, children: Children, config: Config, now: float) -> None:
        slot = self._slots[self._position]
        self._old = children.worker_of(slot)
        if self._old is None:
            self._fail("it is being restarted")
            return
        self._new = children.succeed(slot, config)
        self._ready_by = now + READY_SECONDS
        if self._new is None:
            self._fail("the host lets no further process be started")

    def _fail(self, why: str) -> None:
        self.failure = f"worker {self._slots[self._position]} was not replaced: {why}"
        log.error("worker not replaced", extra=fields(operation=self.name, reason=self.failure))
