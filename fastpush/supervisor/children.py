"""All child processes: who is alive, who has to go, which slot needs a process, who covers for it.

    attend()   reaps, judges, covers, starts what is due: one turn of the supervisor's loop
    succeed()  starts a second process in a worker's slot, and retire() ends the first, once that serves
    drain()    from here on nothing is restarted: workers end first, then the broker, all before a deadline

A connection that the kernel hashes to a slot whose process is gone would wait for the
next one. So whenever a slot that has served is without a serving process, the workers of
all other slots accept from its sockets, from the moment the loss is noticed: all, because
one of them may stand still too and not be found out yet.
"""

import gc
import logging
import os
import selectors
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastpush.child import Context
from fastpush.config import Config
from fastpush.errors import EXIT_USAGE, ConfigError, FastpushError, StartError
from fastpush.log import fields
from fastpush.protocol import control
from fastpush.supervisor.listeners import Listeners
from fastpush.supervisor.process import Closable, Entry, Process, reap, spawn
from fastpush.supervisor.slots import BROKER, CRASH_DEATHS, CRASH_SECONDS, CrashLoop, Slot

log = logging.getLogger("fastpush.supervisor")

LEAVE_SPARE_SECONDS = 1.0
DRAIN_MARGIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Entries:
    """What children run; each is called in a new process and returns its exit code."""

    broker: Entry
    worker: Entry


class Children:
    """Owns the processes of one server.

    inherited:   everything else a child has to close after its fork.
    on_answer:   told what a child answers to Prepare and Reload.  on_inspected: to Inspect and Ask.
    on_act:      told what a worker wants to have carried out.
    """

    def __init__(
        self,
        *,
        entries: Entries,
        listeners: Listeners,
        bus_listener: socket.socket,
        bus_path: str,
        selector: selectors.BaseSelector,
        inherited: Callable[[], list[Closable]],
        on_answer: Callable[[Process, control.Prepared | control.Reloaded], None],
        on_inspected: Callable[[Process, control.Inspected | control.Told], None],
        on_act: Callable[[Process, control.Act], None],
        clock: Callable[[], float],
    ) -> None:
        self._entries = entries
        self._bus_listener = bus_listener
        self._bus_path = bus_path
        self._selector = selector
        self._inherited = inherited
        self._on_answer = on_answer
        self._on_inspected = on_inspected
        self._on_act = on_act
        self._clock = clock
        self._broker_slot = Slot(BROKER)
        # A slot stands at its number + 1, the broker's first.
        self._slots = [self._broker_slot, *(Slot(n, of_slot) for n, of_slot in enumerate(listeners.slots))]
        self._processes: dict[int, Process] = {}
        self._crash_loop = CrashLoop()
        self._number = 0
        self._drained_at: float | None = None
        self._given_up: FastpushError | None = None
        self._readiness = control.Readiness("starting")

    # What the supervisor asks

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def processes(self) -> list[Process]:
        """All that live, the broker first, then by slot and number."""
        return sorted(self._processes.values(), key=lambda process: (process.slot, process.number))

    @property
    def all_ready(self) -> bool:
        """Whether every slot has a process that serves."""
        return len({p.slot for p in self._processes.values() if p.is_serving}) == len(self._slots)

    @property
    def unserved(self) -> str:
        """Why nobody could be served now; empty: somebody can."""
        for role in ("broker", "worker"):
            if not any(process.is_serving for process in self._of_role(role)):
                return f"the {role} is being restarted"
        return ""

    def worker_of(self, slot: int) -> Process | None:
        """Return the process that serves a worker slot."""
        return next((worker for worker in self._of_role("worker") if worker.slot == slot and worker.is_serving), None)

    def is_alive(self, process: Process) -> bool:
        """Whether `process` has not ended yet."""
        return process.pid in self._processes

    def deadline(self, config: Config) -> float:
        """Return when `attend` has something to do, should nothing happen before."""
        due = [] if self._ending else [slot.due for slot in self._slots if slot.due is not None]
        return min([*due, *(self._judged_at(p, config) for p in self._processes.values())], default=float("inf"))

    @property
    def _ending(self) -> bool:
        return self._drained_at is not None

    def _judged_at(self, process: Process, config: Config) -> float:
        return process.beat_at + config.server.hang_seconds if process.kill_at is None else process.kill_at

    def status(self, now: float) -> list[dict[str, Any]]:
        """Return what `fastpush status` shows, broker first."""
        restarts = {slot.number: slot.restarts for slot in self._slots}
        return [
            process.named()
            | {
                "state": process.state,
                "uptime_seconds": round(now - process.started, 3),
                "restarts": restarts[process.slot],
                "last_beat_ms": round((now - process.beat_at) * 1000),
                "figures": process.figures,
            }
            for process in self.processes
        ]

    # Orders

    def tell(self, message: control.ToChild) -> set[Process]:
        """Send `message` to every child; return those that took it."""
        return {process for process in self._processes.values() if process.send(message)}

    def write_stacks(self) -> None:
        """Have every child write what it is doing to the log."""
        for process in self.processes:
            process.write_stacks()

    def tell_readiness(self, reason: str) -> None:
        """Have every worker, also those that are started later, answer /ready so."""
        if reason != self._readiness.reason:
            self._readiness = control.Readiness(reason)
            for worker in self._of_role("worker"):
                worker.send(self._readiness)

    def grant_time(self, now: float) -> None:
        """Forgive silence: it was the supervisor that did not listen."""
        for process in self._processes.values():
            process.beat_at = now

    def succeed(self, slot: int, config: Config) -> Process | None:
        """Start a second process in a worker's slot, which will take over from the first; None when none can be."""
        return self._spawn(self._slots[slot + 1], config)

    def retire(self, worker: Process, now: float, drain: control.Drain) -> None:
        """Have a worker whose successor serves stop accepting, send its clients away, and end."""
        worker.send(drain)
        worker.leaving = True
        worker.kill_at = now + drain.seconds + LEAVE_SPARE_SECONDS

    def drain(self, now: float, seconds: float, spread_seconds: float | None = None, *, listens: bool = False) -> None:
        """Have all children end within `seconds`: workers first, because the broker answers their last pushes.

        spread_seconds, listens: as in control.Drain. May be called again, with less time.
        """
        self._drained_at = now + seconds
        margin = min(DRAIN_MARGIN_SECONDS, seconds / 4)
        for worker in self._of_role("worker"):
            if not worker.ready or seconds == 0:
                worker.kill(now, "")  # it has no connections yet, or no time
                continue
            worker.send(control.Drain(seconds - 2 * margin, spread_seconds, listens))
            worker.leaving = True
            worker.kill_at = self._drained_at - margin

    def kill(self, now: float) -> None:
        """End all children at once."""
        self._drained_at = now
        for process in self._processes.values():
            process.kill(now, "killed")

    # One turn

    def attend(self, now: float, config: Config) -> None:
        """Do all that is due.

        Raises: StartError when processes die faster than they get ready.  ConfigError when one refuses the
        configuration before the server was ready.
        """
        if ended := reap():
            # A dead child's last messages count: whether it was ready decides about its restart, and a new
            # broker must know every worker that was.
            for process in self._processes.values():
                self._read(process)
        for pid, cause in ended:
            if pid in self._processes:
                self._bury(self._processes.pop(pid), cause, now)
        if self._given_up is not None and not self._ending:
            raise self._given_up
        self._judge(now, config)
        if self._ending:
            self._end_broker(now)
            return
        self._cover(now)
        for slot in self._slots:
            if slot.due is not None and slot.due <= now:
                self._fill(slot, config)

    def _read(self, process: Process) -> None:
        now = self._clock()
        messages, is_open = process.read()
        for message in messages:
            match message:
                case control.Beat():
                    process.beat_at = now
                    process.figures = message.figures
                case control.Ready():
                    process.beat_at = now
                    process.ready = True
                    self._slot_of(process).opened = True
                    log.info("process ready", extra=fields(**process.named(), seconds=round(now - process.started, 3)))
                case control.Prepared() | control.Reloaded():
                    self._on_answer(process, message)
                case control.Inspected() | control.Told():
                    self._on_inspected(process, message)
                case control.Act():
                    self._on_act(process, message)
                case control.Leaving():
                    self._let_go(process, now, message.seconds)
                case control.Stalled():
                    self._end_stalled(process, message.worker, now)
        if not is_open:
            self._stop_reading(process)

    def _end_stalled(self, broker: Process, number: int, now: float) -> None:
        for worker in self._of_role("worker"):
            if worker.number == number:
                worker.kill(now, "did not send its key table to the new broker")
                return
        broker.send(control.Gone(number))  # it ended before this broker could be told

    def _stop_reading(self, process: Process) -> None:
        if process.channel in self._selector.get_map():
            self._selector.unregister(process.channel)

    def _let_go(self, process: Process, now: float, seconds: float) -> None:
        """Replace a child that drains on its own account, at once and without counting a death."""
        if process.leaving or process.kill_at is not None:
            return
        process.leaving = True
        process.kill_at = now + seconds + LEAVE_SPARE_SECONDS
        if not self._has_heir(process):
            self._slot_of(process).due = now

    def _bury(self, process: Process, cause: str, now: float) -> None:
        """Explain and answer a child's end; the one place that does."""
        self._stop_reading(process)
        process.channel.close()
        expected = process.leaving or self._ending
        cause = f"{cause} ({process.reason})" if process.reason else cause
        log.log(
            logging.INFO if expected and not process.reason else logging.WARNING,
            "process ended",
            extra=fields(**process.named(), reason=cause, seconds=round(now - process.started, 3)),
        )
        for slot in self._slots:
            if process in slot.coverers:
                slot.coverers.remove(process)
        if process.role == "worker":
            for broker in self._of_role("broker"):
                broker.send(control.Gone(process.number))
        if expected or self._has_heir(process):
            return
        self._slot_of(process).died(now, found_hanging=bool(process.reason))
        if process.ready:
            return
        advice = "its own log lines say why, and `fastpush check` tries the configuration"
        if cause == f"exit code {EXIT_USAGE}" and self._readiness.reason == "starting":
            self._given_up = ConfigError(f"the {process.role} process refuses the configuration; {advice}")
        elif self._crash_loop.died_before_ready(process.role, now):
            self._given_up = StartError(
                f"the {process.role} process died {CRASH_DEATHS} times within {CRASH_SECONDS:g} seconds before it was "
                f"ready, the last time with {cause}; {advice}"
            )

    def _has_heir(self, process: Process) -> bool:
        """Whether another process of the same slot serves, or is about to."""
        return any(
            other.slot == process.slot and other is not process and not other.leaving and other.kill_at is None
            for other in self._processes.values()
        )

    def _judge(self, now: float, config: Config) -> None:
        """End the children that hang, or did not end in the time they had."""
        for process in self._processes.values():
            if self._judged_at(process, config) > now:
                continue
            if process.kill_at is None:
                silent = now - process.beat_at
                log.error("process hangs", extra=fields(**process.named(), seconds=round(silent, 3)))
                process.abort(now, f"silent for {silent:.1f} s")
            else:
                process.kill(now, "did not end in time")

    def _cover(self, now: float) -> None:
        """Let every opened slot be served: by its own process, else by another, else by one started at once."""
        serving = {p.slot: p for p in self._of_role("worker") if p.is_serving}
        for slot in self._slots[1:]:
            if slot.number in serving:
                for process in slot.coverers:
                    process.send(control.Uncover(slot.number))
                slot.coverers.clear()
            elif slot.opened:
                self._extend_cover(slot, serving.values())
                if slot.due is not None and not any(process.is_serving for process in slot.coverers):
                    slot.due = min(slot.due, now)

    def _extend_cover(self, slot: Slot, serving: Iterable[Process]) -> None:
        descriptors = [listener.socket.fileno() for listener in slot.listeners]
        for process in serving:
            if process not in slot.coverers and process.send(control.Cover(slot.number), descriptors):
                slot.coverers.append(process)
                log.info("slot covered", extra=fields(slot=slot.number, worker=process.number))

    def _end_broker(self, now: float) -> None:
        assert self._drained_at is not None
        if self._of_role("worker"):
            return
        for broker in self._of_role("broker"):
            if not broker.leaving:
                broker.leaving = True
                broker.kill_at = max(now, self._drained_at)
                broker.send(control.Drain(max(0.0, self._drained_at - now)))

    # Starting

    def start(self, config: Config) -> None:
        """Fork the broker, then the workers.

        What exists now is frozen, so that no collection in a child touches (and so copies) shared memory.
        Raises: StartError when the host has no process or descriptor left.
        """
        gc.collect()
        gc.freeze()
        for slot in self._slots:
            self._fill(slot, config)
            if slot.due is not None:
                raise StartError(
                    "the host lets no further process be started; lower [server] workers, or raise the limit of "
                    "processes (`ulimit -u`, or TasksMax= in the systemd unit)"
                )

    def _fill(self, slot: Slot, config: Config) -> None:
        """Start the process that a slot is without, or try again later."""
        if self._spawn(slot, config) is None:
            slot.failed(self._clock())
            return
        slot.started()
        self._tell_restarts()

    def _spawn(self, slot: Slot, config: Config) -> Process | None:
        self._number += 1
        number = self._number
        is_broker = slot is self._broker_slot

        def context(channel: socket.socket) -> Context:
            return Context(
                role="broker" if is_broker else "worker",
                number=number,
                slot=slot.number,
                config=config,
                channel=channel,
                bus_path=self._bus_path,
                listeners=slot.listeners,
                bus_listener=self._bus_listener if is_broker else None,
                workers=tuple(p.number for p in self._of_role("worker") if p.ready) if is_broker else (),
            )

        def others() -> list[Closable]:
            foreign = [listener.socket for s in self._slots if s is not slot for listener in s.listeners]
            bus = [] if is_broker else [self._bus_listener]
            return [*self._inherited(), *foreign, *bus, *(p.channel for p in self._processes.values())]

        try:
            process = spawn(self._entries.broker if is_broker else self._entries.worker, context, others)
        except OSError as error:
            log.error("process not started", extra=fields(slot=slot.number, reason=os.strerror(error.errno or 0)))
            return None
        self._processes[process.pid] = process
        self._selector.register(process.channel, selectors.EVENT_READ, lambda: self._read(process))
        if not is_broker:
            process.send(self._readiness)
        log.debug("process started", extra=fields(**process.named()))
        return process

    def _tell_restarts(self) -> None:
        """Let the broker tell in its figures how many processes were started for ones that had ended."""
        workers = sum(max(0, slot.restarts) for slot in self._slots[1:])
        for broker in self._of_role("broker"):
            broker.send(control.Restarts(workers, self._broker_slot.restarts))

    def _slot_of(self, process: Process) -> Slot:
        return self._slots[process.slot + 1]

    def _of_role(self, role: str) -> list[Process]:
        return [process for process in self._processes.values() if process.role == role]
