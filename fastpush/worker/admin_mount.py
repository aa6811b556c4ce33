"""The WebSocket of the administration page: live figures each second, the last hour at the start, and traces.

    cookie ──► session, asked of the broker ──► handshake ──► same host ──► 101 ──► {"hour"}, then {"top"} each second

    page ──► server    {"trace": {"user": U} or {"channel": C}, "seconds": S}, {"untrace": I}
    server ──► page    {"hour": [Point, …]}, {"top": Top}, {"trace": {"id": I, "ends_seconds": T}}, {"error": text},
                       {"traced": {"id": I, "events": […], "left_out": N, "is_over": B}}; see protocol/insight.py

The figures come through the channel LIVE_CHANNEL, to which the broker publishes while anybody is in it; a trace is read
from the broker and passed on. The session is asked for again and again: a connection does not outlive it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, cast

import msgspec
import orjson

from fastpush import errors
from fastpush.applications.interface import Application, Connection, Options, Request
from fastpush.config import Config
from fastpush.errors import CloseCode, ConnectionClosed, RequestError
from fastpush.http.admin import ASK_SECONDS, HEADERS, Ask, check_same_host, no_session, session_id
from fastpush.protocol.push import NO_OPTIONS
from fastpush.worker.application_server import ApplicationServer
from fastpush.worker.connection import Connection as OwnConnection
from fastpush.worker.mount import NO_PARAMETERS, Asked, Mount
from fastpush.worker.overload import OVERLOADED
from fastpush.worker.upgrade import Handshake, check_handshake

log = logging.getLogger("fastpush.admin")

CHECK_SECONDS = 10.0  # between two looks at a session
READ_SECONDS = 0.25  # between two looks at a trace
TRACES_MAX = 2  # of one page
TRACE_SECONDS = 60
MESSAGE_BYTES = 4096
MESSAGES_PER_SECOND = 20
SEND_QUEUE_BYTES = 4 * 1024 * 1024  # an hour's figures, and then some
_WRONG = 'send {"trace": {"user": U} or {"channel": C}, "seconds": S} or {"untrace": I}'


class OpenPage:
    """What a page's connection has as its data.

    session: its id.  work: what is under way for it, and ends with it.  traces: those of it that read one, by id.
    """

    def __init__(self, session: str) -> None:
        self.session = session
        self.work: set[asyncio.Task[None]] = set()
        self.traces: dict[str, asyncio.Task[None]] = {}


class AdminLive(Application):
    """Tells pages what happens. ask: puts a question of protocol/insight.py to the broker."""

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
            case {"untrace": str(number)} if number in _page(connection).traces:
                _page(connection).traces[number].cancel()
                await self._ask(ask="untrace", trace=number)
            case {"untrace": str()}:
                pass  # it has come to its end meanwhile
            case _:
                _send(connection, {"error": _WRONG})

    async def on_close(self, connection: Connection, code: int, reason: str) -> None:
        operator = _page(connection)
        traces = list(operator.traces)
        for task in operator.work:
            task.cancel()
        for number in traces:
            await self._ask(ask="untrace", trace=number)

    # -- the session ---------------------------------------------------------------

    async def check(self, session: str) -> None:
        """Raise RequestError unless there is such a session: 401, or 503 where nobody can tell."""
        answer = await self._ask(ask="session", session=session)
        if "error" in answer:
            raise errors.unavailable(answer["error"])
        if "csrf" not in answer:
            raise no_session()

    async def _watch_session(self, connection: Connection) -> None:
        """Close the connection when its session has ended; while nobody can tell, it stays."""
        while connection.is_open:
            await asyncio.sleep(CHECK_SECONDS)
            answer = await self._ask(ask="session", session=_page(connection).session)
            if "refused" in answer:
                connection.close(CloseCode.TOKEN_REJECTED, "the session has ended")

    # -- traces --------------------------------------------------------------------

    async def _trace(self, connection: Connection, target: dict[str, str], seconds: Any) -> None:
        traces = _page(connection).traces
        if len(traces) >= TRACES_MAX:
            _send(connection, {"error": f"{TRACES_MAX} traces are open here already: stop one first"})
            return
        answer = await self._ask(ask="trace", **target, seconds=seconds)
        if "error" in answer:
            _send(connection, {"error": answer["error"]})
            return
        number = answer["trace"]
        _send(connection, {"trace": {"id": number, "ends_seconds": answer["ends_seconds"]}})
        task = traces[number] = self._spawn(connection, self._read_trace(connection, number))
        task.add_done_callback(lambda _: traces.pop(number))

    async def _read_trace(self, connection: Connection, number: str) -> None:
        """Pass on what a trace brings until it is over, as fast as the page takes it."""
        after = left_out = 0
        is_over = False
        while not is_over:
            await asyncio.sleep(READ_SECONDS)
            await connection.drain()
            told = await self._ask(ask="traced", trace=number, after=after)
            if "error" in told:  # of a new broker, which knows nothing of it
                told = {"events": [], "left_out": left_out, "is_over": True}
            is_over = told["is_over"]
            if told["events"] or told["left_out"] != left_out or is_over:
                _send(connection, {"traced": {"id": number, **told}})
            after = told["events"][-1][0] if told["events"] else after
            left_out = told["left_out"]

    # -- the rest ------------------------------------------------------------------

    async def _ask(self, **question: Any) -> dict[str, Any]:
        """Return the broker's answer, {"error": text} where there is none in time."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self._ask_broker(question)
        except TimeoutError:
            return {"error": "the broker does not answer"}

    @staticmethod
    def _spawn(connection: Connection, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something go on as long as the connection is open; a worker that drains does not wait for it."""
        task = asyncio.get_running_loop().create_task(work)
        tasks = _page(connection).work
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_log_failure)
        return task


class AdminHandshake(Handshake):
    """One request for the page's WebSocket. Nothing but a session that is not there is told to who has none."""

    __slots__ = ("_session",)

    def _check(self) -> None:
        if not self._services.environment.config.admin.key:
            raise errors.not_found(self._head.path)
        self._session = session_id(self._head.headers)
        if not self._session:
            raise no_session()
        self._services.spawn(self._await_session())

    async def _await_session(self) -> None:
        try:
            await cast("AdminMount", self._mount).application.check(self._session)
        except RequestError as error:
            self._fail(error)
        else:
            self._take(self._begin_live)

    def _begin_live(self) -> None:
        http, head = self._http, self._head
        if http is None:
            return  # the client is gone
        check_handshake(head)
        check_same_host(head.headers, is_tls=http.is_tls)
        if self._services.overload.is_draining:
            raise OVERLOADED["draining"]
        self._asked = Asked(None, NO_PARAMETERS, NO_OPTIONS)
        self._announce()

    def _hand_over(self, mount: Mount) -> tuple[OwnConnection, bytes] | None:
        taken = super()._hand_over(mount)
        if taken is not None:
            taken[0].data = OpenPage(self._session)
        return taken

    def _answer(self, error: RequestError) -> RequestError:
        headers = (*error.headers, *HEADERS.items())
        return RequestError(error.status, error.code, error.reason, text=error.text, headers=headers)


class AdminMount(Mount):
    """Where pages listen: on the addresses of back-ends, and within no limit of clients."""

    application: AdminLive
    roles = ("all", "api")
    request_class = AdminHandshake

    def configure(self, config: Config) -> None:
        super().configure(config)
        self.limits = msgspec.structs.replace(
            self.limits,
            message_bytes=MESSAGE_BYTES,
            messages_per_second=MESSAGES_PER_SECOND,
            send_queue_bytes=SEND_QUEUE_BYTES,
            slow_policy="disconnect",
        )


def _page(connection: Connection) -> OpenPage:
    return cast(OpenPage, connection.data)


def _read(data: str | bytes) -> Any:
    """Return what a page has sent; None for what is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _send(connection: Connection, told: dict[str, Any]) -> None:
    with contextlib.suppress(ConnectionClosed):
        connection.send(orjson.dumps(told).decode())


def _log_failure(task: asyncio.Task[None]) -> None:
    if task.cancelled() or (error := task.exception()) is None or isinstance(error, ConnectionClosed):
        return
    log.error("page not told", exc_info=error)
