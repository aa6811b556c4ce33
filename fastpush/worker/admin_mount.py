"""The WebSocket of the administration page: live figures each second, the last hour at the start, and traces.

    handshake ──► same host ──► session, asked of the broker ──► 101 ──► {"hour"}, then {"top"} each second

What the page sends and gets is JSON, an object a message (docs/inside.md). The figures come through the channel
LIVE_CHANNEL, which the broker publishes to while anybody is in it; a trace is read from the broker and passed on. The
session is asked for again and again: a connection does not outlive it.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
import orjson

from fastpush import errors
from fastpush.applications.interface import Application, Connection, Options, Request
from fastpush.config import Config
from fastpush.errors import CloseCode, ConnectionClosed
from fastpush.http.admin import ASK_SECONDS, Ask, check_same_host, no_session, session_id
from fastpush.http.head import Head
from fastpush.log import fields
from fastpush.protocol.insight import LIVE_CHANNEL
from fastpush.protocol.push import NO_OPTIONS
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import Connection as OwnConnection
from fastpush.worker.mount import NO_PARAMETERS, Asked, Mount
from fastpush.worker.upgrade import Handshake, check_handshake

if TYPE_CHECKING:
    from fastpush.worker.dispatch import HttpConnection
    from fastpush.worker.services import Services

log = logging.getLogger("fastpush.admin")

CHECK_SECONDS = 10.0  # between two looks at a session
READ_SECONDS = 0.25  # between two looks at a trace
TRACES_MAX = 2  # of one page
TRACE_SECONDS = 60
MESSAGE_BYTES = 4096
MESSAGES_PER_SECOND = 20
SEND_QUEUE_BYTES = 4 * 1024 * 1024  # an hour's figures, and then some
_GONE = "The broker that kept this trace is gone: start it again."
_NO_ANSWER = "the broker does not answer"
_WRONG = 'send {"trace": {"user": U} or {"channel": C}, "seconds": S} or {"untrace": I}'


class Operator:
    """What a page's connection has. session: its id.  work: what is under way for it, and ends with it.
    traces: by id, each read by a task.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.work: set[asyncio.Task[None]] = set()
        self.traces: dict[int, asyncio.Task[None]] = {}


class AdminLive(Application):
    """Tells pages what happens. ask: puts a question of protocol/insight.py to the broker.

    Each connection has an Operator as `data`.
    """

    def __init__(self, server: ApplicationServer, ask: Ask) -> None:
        super().__init__(server, Options())
        self._ask_broker = ask

    async def on_open(self, connection: Connection, request: Request) -> None:
        self._spawn(connection, self._watch_session(connection))
        hour = await self._ask(ask="hour")
        if "error" not in hour:
            _send(connection, {"hour": hour["points"]})

    async def on_message(self, connection: Connection, data: str | bytes) -> None:
        match _read(data):
            case {"trace": {"user": str(name)} | {"channel": str(name)} as target, **more} if name and len(target) == 1:
                await self._trace(connection, target, more.get("seconds", TRACE_SECONDS))
            case {"untrace": int(number)}:
                task = _operator(connection).traces.pop(number, None)
                if task is not None:
                    task.cancel()
            case _:
                _send(connection, {"error": _WRONG})

    def on_close(self, connection: Connection, code: int, reason: str) -> None:
        for task in _operator(connection).work:
            task.cancel()

    # -- the session ---------------------------------------------------------------

    async def _watch_session(self, connection: Connection) -> None:
        """Close the connection when its session has ended; while nobody can tell, it stays."""
        while connection.is_open:
            await asyncio.sleep(CHECK_SECONDS)
            answer = await self._ask(ask="session", session=_operator(connection).session)
            if "refused" in answer:
                connection.close(CloseCode.TOKEN_REJECTED, "the session has ended")

    # -- traces --------------------------------------------------------------------

    async def _trace(self, connection: Connection, target: dict[str, str], seconds: Any) -> None:
        traces = _operator(connection).traces
        if len(traces) >= TRACES_MAX:
            _send(connection, {"error": f"{TRACES_MAX} traces are open already: stop one first"})
            return
        answer = await self._ask(ask="trace", **target, seconds=seconds)
        if "error" in answer or not connection.is_open:
            _send(connection, {"error": str(answer.get("error"))})
            return
        number = answer["trace"]
        _send(connection, {"trace": {"id": number, "ends_seconds": answer["ends_seconds"]}})
        traces[number] = self._spawn(connection, self._read_trace(connection, number))

    async def _read_trace(self, connection: Connection, number: int) -> None:
        """Pass on what a trace brings until it is over, as fast as the page takes it; ended early, end the trace."""
        after = left_out = 0
        is_over = False
        try:
            while not is_over:
                await connection.drain()
                told = await self._ask(ask="traced", trace=number, after=after)
                if "error" in told:
                    _send(connection, {"error": _GONE})
                    told = {"events": [], "left_out": left_out, "is_over": True}
                is_over = told["is_over"]
                if told["events"] or told["left_out"] != left_out or is_over:
                    _send(connection, {"traced": {"id": number, **told}})
                after = told["events"][-1][0] if told["events"] else after
                left_out = told["left_out"]
                await asyncio.sleep(READ_SECONDS)
        except ConnectionClosed:
            pass
        finally:
            _operator(connection).traces.pop(number, None)
            if not is_over:
                # Not awaited by who is being cancelled: a question is on its way at once, and nobody needs its answer.
                self._forget(number)

    def _forget(self, number: int) -> None:
        asyncio.get_running_loop().create_task(self._ask(ask="untrace", trace=number))

    # -- the rest ------------------------------------------------------------------

    async def _ask(self, **question: Any) -> dict[str, Any]:
        """Return the broker's answer, {"error": text} where there is none in time."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._ask_broker(question)
        except TimeoutError:
            return {"error": _NO_ANSWER}

    @staticmethod
    def _spawn(connection: Connection, work: Any) -> asyncio.Task[None]:
        """Have something go on for as long as the connection is open; not among what a worker waits for to end."""
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        tasks = _operator(connection).work
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task
