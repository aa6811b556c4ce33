"""The broker process: one loop, one order for every push of the host."""

import asyncio
import itertools
import logging
import secrets
import signal
import time
from functools import partial

import msgspec
import uvloop

from fastpush import log as logs
from fastpush.broker.router import Router
from fastpush.bus.server import BusServer
from fastpush.child import Channel, Context, beat_seconds, tune_collector
from fastpush.inspection import Inspector
from fastpush.log import fields
from fastpush.memory import Trimmer
from fastpush.protocol import control

log = logging.getLogger("fastpush.broker")

TICK_SECONDS = 0.02
RESYNC_SECONDS = 1.0
_SECOND_TICKS = round(1 / TICK_SECONDS)


def run(context: Context) -> int:
    """Serve until the supervisor says drain, or is gone. Returns the exit code."""
    logs.set_process("broker")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it outlives the workers; the supervisor ends it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Broker(context).serve())


class Broker:
    """Wires the router to the bus, the clock and the supervisor."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._config = context.config
        self._stop = asyncio.Event()
        self._trimmer = Trimmer()
        self._held = 0  # keys and channels
        self._given_up = 0
        self._router = Router(
            secrets.randbits(64),
            context.workers,
            context.config,
            clock=time.monotonic,
            resync_seconds=RESYNC_SECONDS,
            wall_clock=time.time,
            started_seconds=round(time.time(), 3),
            on_stalled=self._on_stalled,
        )

    async def serve(self) -> int:
        """Startup, main loop, shutdown."""
        assert self._context.bus_listener is not None
        self._channel = Channel(self._context.channel, self._on_control, self._on_orphaned)
        self._inspector = Inspector(self._channel.send)
        self._inspector.open()
        bus = BusServer(self._router.on_message, self._router.on_closed, self._config.bus.queue_bytes)
        await bus.start(self._context.bus_listener)
        tune_collector()
        self._channel.open()
        self._channel.send(control.Ready())
        self._channel.beat(lambda: beat_seconds(self._config), self._figures)
        log.debug("broker started", extra=fields(epoch=f"{self._router.epoch:016x}"))
        ticks = itertools.count(1)
        while not self._stop.is_set():
            self._router.tick()
            if next(ticks) % _SECOND_TICKS == 0:
                self._end_second()
            await asyncio.sleep(TICK_SECONDS)
        return 0

    def _end_second(self) -> None:
        """Give back what keys and channels held that have gone."""
        held, self._held = self._held, self._router.held
        self._given_up += max(0, held - self._held)
        self._router.insight.end_second()
        self._trimmer.end_second(self._given_up)

    def _figures(self) -> dict[str, int]:
        return {"routes": len(self._router.routes), **self._router.counts}

    def _on_control(self, message: control.ToChild, descriptors: list[int]) -> None:
        match message:
            case control.Gone():
                self._router.on_gone(message.worker)
            case control.Restarts():
                self._router.restarts = message
            case control.Prepare():
                self._channel.send(control.Prepared(message.reload))
            case control.Reload():
                self._config = message.config
                self._router.configure(message.config)
                logs.set_level(message.config.log.level)
                self._channel.send(control.Reloaded(message.reload))
            case control.Inspect():
                self._inspector.answer(message)
            case control.Ask():
                self._router.insight.ask(bytes(message.question), partial(self._tell, message.request))
            case control.ReopenLog():
                logs.reopen()
            case control.Drain():
                self._stop.set()
            case _:
                log.error("unexpected message from the supervisor", extra=fields(kind=type(message).__name__))

    def _tell(self, request: int, answer: bytes) -> None:
        told = control.Told(request, msgspec.Raw(answer))
        if len(answer) > control.TOLD_BYTES_MAX:
            told = control.Told(request, msgspec.Raw(b'{"error":"the answer is too long for the control socket"}'))
        self._channel.send(told)

    def _on_stalled(self, worker: int) -> None:
        log.warning("key table missing", extra=fields(worker=worker, seconds=RESYNC_SECONDS))
        self._channel.send(control.Stalled(worker))

    def _on_orphaned(self) -> None:
        """Serve the workers while they drain, then go."""
        log.error("supervisor gone")
        deadline = asyncio.get_running_loop().time() + self._config.server.drain_seconds
        self._leave_when_idle(deadline)

    def _leave_when_idle(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        if self._router.is_idle or loop.time() >= deadline:
            self._stop.set()
        else:
            loop.call_later(TICK_SECONDS, self._leave_when_idle, deadline)
