"""fastpush.worker.connection and sending: how an application is called, and what it can do with a connection.

A real transport, one process; the test is the client, and time is the timer wheel's.
"""

import asyncio
import itertools
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from multidict import MultiDict, MultiDictProxy

from fastpush.applications import Application, ConnectionClosed, Request
from fastpush.applications.echo import Echo
from fastpush.config import Connections
from fastpush.fanout import GZIP
from fastpush.protocol.frames import text_frame
from fastpush.worker import connection as connections
from fastpush.worker.connection import HEARTBEAT_FRAME, Connection, State
from fastpush.worker.environment import Environment
from fastpush.worker.timers import ticks
from tests.raw import BINARY, CLOSE, PING, PONG, TEXT, build, close_payload
from tests.unit.test_connection_limits import backlog, environment, numbered, opened, read_frames, run, until

REQUEST = Request("/app", MultiDictProxy(MultiDict()), {}, "peer", "", {})


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caplog see the package's log lines, whatever another test set up."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)


class Noting(Application):
    """Notes every call."""

    def __init__(self, server: Any, options: Any) -> None:
        super().__init__(server, options)
        self.calls: list[Any] = []

    def on_open(self, connection: Any, request: Request) -> Any:
        self.calls.append("open")

    def on_message(self, connection: Any, data: str | bytes) -> Any:
        self.calls.append(data)

    def on_close(self, connection: Any, code: int, reason: str) -> Any:
        self.calls.append(("close", code, reason))

    def on_error(self, connection: Any, error: Exception) -> Any:
        self.calls.append(("error", str(error)))


class Gated(Noting):
    """Each message is begun, waits for the gate, and is ended."""

    def __init__(self, server: Any, options: Any) -> None:
        super().__init__(server, options)
        self.gate = asyncio.Event()

    async def on_message(self, connection: Any, data: str | bytes) -> None:
        self.calls.append(f"begin {data!s}")
        await self.gate.wait()
        self.calls.append(f"end {data!s}")


def story(connection: Connection) -> list[Any]:
    return connection.mount.application.calls  # type: ignore[attr-defined, no-any-return]


def texts(*messages: str) -> bytes:
    return b"".join(build(TEXT, message.encode()) for message in messages)


def closing(code: int = 1000, reason: bytes = b"") -> bytes:
    return build(CLOSE, close_payload(code, reason))


@asynccontextmanager
async def applied(
    application: type[Application], shared: Environment | None = None
) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """An open connection of an application, and its client."""
    async with opened(shared or environment(), application=application) as (connection, client):
        connection.open(REQUEST)
        try:
            yield connection, client
        finally:
            connection._abort("the test is over")  # the end of a client that is not read from is not seen


# Calls, one after the other


def test_calls_in_order() -> None:
    """on_open, each message as str or bytes, on_close with the client's code and reason: the last call."""

    async def scenario() -> None:
        async with applied(Noting) as (connection, client):
            client.sendall(texts("one") + build(BINARY, b"two") + texts("") + closing(3000, b"bye"))
            await until(lambda: len(story(connection)) == 5)
            assert story(connection) == ["open", "one", b"two", "", ("close", 3000, "bye")]
        assert len(story(connection)) == 5

    run(scenario())


@pytest.mark.parametrize(
    ("ending", "code"), [(build(CLOSE), 1005), (b"", 1006), (build(TEXT, b"\xff"), 1007), (build(3), 1002)]
)
def test_on_close_is_told_how_it_ended(ending: bytes, code: int) -> None:
    """1005: a close without code; 1006: none at all; a violation's own code. Once, whatever comes behind it."""

    async def scenario() -> None:
        async with applied(Noting) as (connection, client):
            client.sendall(texts("last"))
            await until(lambda: len(story(connection)) == 2)
            client.sendall(ending)
            client.shutdown(socket.SHUT_WR)
            await until(lambda: len(story(connection)) == 3)
        assert story(connection)[:2] == ["open", "last"] and story(connection)[2][:2] == ("close", code)
        await asyncio.sleep(0)
        assert len(story(connection)) == 3

    run(scenario())


def test_coroutines_keep_the_order() -> None:
    """The next message begins when the one before it has ended; another connection's messages do not wait."""

    async def scenario() -> None:
        shared = environment()
        async with applied(Gated, shared) as (slow, client), applied(Noting, shared) as (other, other_client):
            client.sendall(texts("a", "b", "c"))
            await until(lambda: len(story(slow)) == 2)
            other_client.sendall(texts("quick"))
            await until(lambda: story(other) == ["open", "quick"])
            assert story(slow) == ["open", "begin a"]
            slow.mount.application.gate.set()  # type: ignore[attr-defined]
            await until(lambda: len(story(slow)) == 7)
            assert story(slow)[1:] == [f"{what} {name}" for name in "abc" for what in ("begin", "end")]
            assert slow.inbox is None, "nothing waits, so nothing is kept"

    run(scenario())


def test_messages_wait_for_on_open() -> None:
    """What a client sends at once is handed over when a coroutine of on_open has ended."""

    class Opening(Gated):
        async def on_open(self, connection: Any, request: Request) -> None:
            await Gated.on_message(self, connection, "open")

        def on_message(self, connection: Any, data: str | bytes) -> None:  # type: ignore[override]
            self.calls.append(data)

    async def scenario() -> None:
        async with applied(Opening) as (connection, client):
            client.sendall(texts("one", "two"))
            await until(lambda: connection.inbox is not None and len(connection.inbox) == 2)
            assert story(connection) == ["begin open"]
            connection.mount.application.gate.set()  # type: ignore[attr-defined]
            await until(lambda: len(story(connection)) == 4)
            assert story(connection) == ["begin open", "end open", "one", "two"]

    run(scenario())


def test_many_waiting_messages_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has waited is handed over in parts, between which the loop turns."""
    monkeypatch.setattr(connections, "_TURN_MESSAGES", 10)

    class Opening(Noting):
        async def on_open(self, connection: Any, request: Request) -> None:
            await until(lambda: connection.inbox is not None and len(connection.inbox) == 35)
            asyncio.get_running_loop().call_soon(self.note)

        def note(self) -> None:
            self.calls.append("turn")
            if len(self.calls) < 39:
                asyncio.get_running_loop().call_soon(self.note)

    async def scenario() -> None:
        async with applied(Opening) as (connection, client):
            client.sendall(texts(*map(str, range(35))))
            await until(lambda: "34" in story(connection))
            turns = [at for at, call in enumerate(story(connection)) if call == "turn"]
            assert len(turns) >= 3 and max(b - a for a, b in itertools.pairwise(turns)) <= 11
            assert [call for call in story(connection) if call != "turn"] == [str(number) for number in range(35)]

    run(scenario())


# Failures


class Failing(Noting):
    """Fails at the message "bad", with or without having waited."""

    waits = False

    def on_message(self, connection: Any, data: str | bytes) -> Any:
        self.calls.append(data)
        if self.waits:
            return self._fail(data)
        if data == "bad":
            raise ValueError("disk on fire")
        return None

    async def _fail(self, data: str | bytes) -> None:
        await asyncio.sleep(0)
        if data == "bad":
            raise ValueError("disk on fire")


class FailingLater(Failing):
    waits = True


class FailingTwice(FailingLater):
    """And in on_error too, which waits before."""

    async def on_error(self, connection: Any, error: Exception) -> None:
        self.calls.append(("error", str(error)))
        await asyncio.sleep(0)
        raise OSError("the log is full")


class FailingTwiceAtOnce(Failing):
    def on_error(self, connection: Any, error: Exception) -> None:
        self.calls.append(("error", str(error)))
        raise OSError("the log is full")


@pytest.mark.parametrize(
    ("application", "errors"), [(Failing, 1), (FailingLater, 1), (FailingTwice, 2), (FailingTwiceAtOnce, 2)]
)
def test_a_handler_that_fails(application: type[Application], errors: int, caplog: pytest.LogCaptureFixture) -> None:
    """1011 without details for the client, on_error and then on_close once, a log line with stack and connection, a
    count; what came behind it is not handed over. on_error may fail itself.
    """

    async def scenario() -> None:
        shared = environment()
        async with applied(application, shared) as (connection, client):
            client.sendall(texts("good", "bad", "more", "bad"))
            assert await read_frames(client) == [(8, struct.pack("!H", 1011))]
            client.sendall(closing(1011))
            await until(lambda: connection.state == State.CLOSED and len(story(connection)) >= 5)
        await asyncio.sleep(0)
        expected = ["open", "good", "bad", ("error", "disk on fire"), ("close", 1011, "")]
        assert story(connection) == expected
        assert shared.counters.handler_errors == errors
        logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert [record.msg for record in logged] == ["handler failed", "on_error failed"][:errors]
        assert all(record.exc_info for record in logged)
        assert vars(logged[0])["fields"].items() >= {"connection": connection.id, "path": "/app"}.items()

    run(scenario())


def test_on_open_that_fails() -> None:
    """The connection is closed with 1011 as for any other call, and nothing that it sends is handed over."""

    class Refusing(Noting):
        def on_open(self, connection: Any, request: Request) -> None:
            raise ValueError("no")

    async def scenario() -> None:
        async with applied(Refusing) as (connection, client):
            client.sendall(texts("hello"))
            assert await read_frames(client) == [(8, struct.pack("!H", 1011))]
            await until(lambda: len(story(connection)) == 2)
            assert story(connection) == [("error", "no"), ("close", 1011, "")]

    run(scenario())


def test_the_user_stays_who_it_is() -> None:
    """An application that gives a connection that has joined something another user fails; its end is as any other."""

    class Renaming(Noting):
        def on_message(self, connection: Any, data: str | bytes) -> None:
            connection.user = "another"

    async def scenario() -> None:
        async with applied(Renaming) as (connection, client):
            connection.user = "jack"
            connection.environment.hub.join(connection, b"croom")
            client.sendall(texts("hello"))
            assert await read_frames(client) == [(8, struct.pack("!H", 1011))]
            await until(lambda: len(story(connection)) == 3)
            assert (connection.user, story(connection)[2]) == ("jack", ("close", 1011, ""))

    run(scenario())


def test_a_cancelled_wait_is_a_failure_of_the_handler() -> None:
    """A handler that awaits something that others cancel fails as by any exception: its client is not left deaf."""

    class Waiting(Noting):
        async def on_message(self, connection: Any, data: str | bytes) -> None:
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.cancel)
            await future

    async def scenario() -> None:
        async with applied(Waiting) as (connection, client):
            client.sendall(texts("hello"))
            assert await read_frames(client) == [(8, struct.pack("!H", 1011))]
            await until(lambda: len(story(connection)) == 3)
            assert story(connection)[1][0] == "error" and story(connection)[2] == ("close", 1011, "")

    run(scenario())


def test_a_handler_that_holds_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The longest step of a call is the application's figure, and over 0.1 s a line in the log."""
    shared = environment()

    async def scenario() -> None:
        async with applied(Gated, shared) as (connection, _):
            connection.mount.observe(0.25)
            connection.mount.observe(0.05)
            assert connection.mount.longest.value == 0.25
            assert [vars(record)["fields"]["path"] for record in caplog.records if record.msg == "handler blocks"] == [
                "/app"
            ]

    run(scenario())


# Ends while a handler runs


def test_a_client_that_closes_while_a_handler_runs() -> None:
    """Its close is answered at once; the handler ends, what came before the close is handed over, and then on_close."""

    async def scenario() -> None:
        async with applied(Gated) as (connection, client):
            client.sendall(texts("a", "b") + closing(3001, b"enough"))
            assert await read_frames(client) == [(8, struct.pack("!H", 3001))]
            assert story(connection) == ["open", "begin a"] and not connection.is_open
            connection.mount.application.gate.set()  # type: ignore[attr-defined]
            await until(lambda: len(story(connection)) == 6)
            assert story(connection)[1:] == ["begin a", "end a", "begin b", "end b", ("close", 3001, "enough")]

    run(scenario())


def test_a_handler_that_does_not_end_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """close_timeout_seconds after the end of its connection; it is logged, and on_close comes behind it."""

    class Stuck(Noting):
        async def on_message(self, connection: Any, data: str | bytes) -> None:
            self.calls.append("begin")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.calls.append("cancelled")
                raise

    async def scenario() -> None:
        shared = environment(Connections(close_timeout_seconds=0.1))
        async with applied(Stuck, shared) as (connection, client):
            client.sendall(texts("a") + closing())
            await until(lambda: len(story(connection)) == 4)
            assert story(connection) == ["open", "begin", "cancelled", ("close", 1000, "")]
        assert [record.msg for record in caplog.records if record.levelno >= logging.WARNING] == ["handler cancelled"]
        assert shared.counters.handler_errors == 0

    run(scenario())


def test_an_application_that_closes_has_no_more_messages() -> None:
    """What waited behind the message whose handler closes is dropped; close frame and on_close have its words, once."""

    class Closing(Noting):
        async def on_message(self, connection: Any, data: str | bytes) -> None:
            self.calls.append(data)
            await until(lambda: len(connection.inbox) == 2)
            connection.close(4000, "enough")
            connection.close(4001, "again")

    async def scenario() -> None:
        async with applied(Closing) as (connection, client):
            client.sendall(texts("a", "b", "c"))
            assert await read_frames(client) == [(8, struct.pack("!H", 4000) + b"enough")]
            client.sendall(closing(4000))
            await until(lambda: connection.state == State.CLOSED)
            assert story(connection) == ["open", "a", ("close", 4000, "enough")]

    run(scenario())


def test_sending_to_a_client_that_was_faster_is_no_failure() -> None:
    """A handler that sends to a connection that has ended meanwhile gets ConnectionClosed, and nobody is told more."""

    class Late(Noting):
        async def on_message(self, connection: Any, data: str | bytes) -> None:
            await until(lambda: not connection.is_open)
            self.calls.append("sends")
            connection.send("late")

    async def scenario() -> None:
        shared = environment()
        async with applied(Late, shared) as (connection, client):
            client.sendall(texts("a") + closing())
            await until(lambda: len(story(connection)) == 3)
            assert story(connection) == ["open", "sends", ("close", 1000, "")]
            assert shared.counters.handler_errors == 0
            with pytest.raises(ConnectionClosed, match="connection is closed"):
                connection.send("x")
            with pytest.raises(ConnectionClosed):
                await connection.drain()

    run(scenario())


# The bound of what waits


@pytest.mark.parametrize("limits", [{"receive_queue_messages": 8}, {"receive_queue_bytes": 8 * (100 + 64)}])
def test_a_client_is_not_read_from_while_its_application_is_behind(limits: dict[str, int]) -> None:
    """At the bound reading stops, so the client's own sending does too; nothing is lost, the order is kept, and it goes
    on when half is handed over: the pauses are few.
    """

    async def scenario() -> None:
        shared = environment(**limits)
        async with applied(Gated, shared) as (connection, client):
            loop = asyncio.get_running_loop()
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            sent = [f"{number:0100}" for number in range(5000)]
            sending = loop.create_task(loop.sock_sendall(client, texts(*sent)))
            await until(lambda: connection.inbox is not None and connection.inbox.is_paused)
            inbox = connection.inbox
            assert inbox is not None
            held = len(inbox)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(inbox) == held <= 8 + 16384 // 106 and not sending.done()
            connection.mount.application.gate.set()  # type: ignore[attr-defined]
            await until(lambda: len(story(connection)) == 10_001)
            assert story(connection)[2::2] == [f"end {text}" for text in sent]
            await sending
            assert connection.inbox is None
            assert 1 <= shared.counters.receive_pauses <= 5000 // 4

    run(scenario())


def test_the_close_of_a_client_that_was_not_read_is_read() -> None:
    """The server closes while reading is paused: it reads on, and the client's close frame ends the connection."""

    async def scenario() -> None:
        shared = environment(receive_queue_messages=1)
        async with applied(Gated, shared) as (connection, client):
            client.sendall(texts("a", "b", "c"))
            await until(lambda: connection.inbox is not None and connection.inbox.is_paused)
            connection.close(4000, "enough")
            client.sendall(closing(4000))
            await until(lambda: connection.state == State.CLOSED)
            assert connection.close_code == 4000

    run(scenario())


def test_silence_of_a_client_that_is_not_read_is_not_its_fault() -> None:
    """While reading is paused pongs cannot come: a client that takes what it is sent is pinged on, so that its end is
    seen, but stays; when it is read again it has the usual time.
    """

    async def scenario() -> None:
        shared = environment(receive_queue_messages=1)
        async with applied(Gated, shared) as (connection, client):
            client.sendall(texts("a", "b", "c"))
            await until(lambda: connection.inbox is not None and connection.inbox.is_paused)
            for _ in range(ticks(300)):
                shared.wheel.advance()
            assert connection.is_open
            frames = await read_frames(client)
            assert frames == [(PING, b"")]
            connection.mount.application.gate.set()  # type: ignore[attr-defined]
            await until(lambda: len(story(connection)) == 7)
            for _ in range(ticks(26)):
                shared.wheel.advance()
            assert connection.is_open
            for _ in range(ticks(11)):
                shared.wheel.advance()
            assert not connection.is_open and connection.close_code == 1006

    run(scenario())


@pytest.mark.parametrize("counts_pings", [False, True])
def test_who_counts_pings_is_pinged_however_much_it_says(*, counts_pings: bool) -> None:
    """What a client says is a sign of life, but tells it nothing of the server: SDKs would leave for want of a ping."""

    async def scenario() -> None:
        shared = environment()
        async with applied(Noting, shared) as (connection, client):
            connection.mount.counts_pings = counts_pings
            for number in range(1, 14):
                client.sendall(texts("hello"))
                await until(lambda number=number: story(connection).count("hello") == number)  # type: ignore[misc]
                for _ in range(ticks(5)):
                    shared.wheel.advance()
            connection.close(1000, "")
            frames = await read_frames(client, last=b"no ping")
            assert frames.count((PING, b"")) == (2 if counts_pings else 0)
            assert connection.close_code == 1000

    run(scenario())


def test_a_client_that_neither_takes_nor_is_read_is_given_up() -> None:
    """S1-11 with a client that has gone silently: who takes nothing for ping and pong time is aborted, read or not."""

    class Stalled(Noting):
        async def on_message(self, connection: Any, data: str | bytes) -> None:
            await connection.drain()

    async def scenario() -> None:
        shared = environment(receive_queue_messages=1, send_queue_messages=10)
        async with applied(Stalled, shared) as (connection, client):
            backlog(connection, 50_000)
            while connection.has_room:
                connection.send_frame(numbered(0, 50_000))
            client.sendall(texts("a", "b", "c"))
            await until(lambda: connection.inbox is not None and connection.inbox.is_paused)
            for _ in range(ticks(37)):
                shared.wheel.advance()
            assert not connection.is_open
            await until(lambda: story(connection) == ["open", ("close", 1006, "")])

    run(scenario())


# Sending


def test_send_takes_text_and_bytes() -> None:
    """str is a text message, bytes a binary one; nothing else is a message."""

    async def scenario() -> None:
        async with applied(Noting) as (connection, client):
            assert connection.send("hällo") and connection.send(b"\xff\x00")
            with pytest.raises(TypeError):
                connection.send(17)  # type: ignore[arg-type]
            client.setblocking(False)
            received = b""
            loop = asyncio.get_running_loop()
            while not received.endswith(b"\x82\x02\xff\x00"):
                received += await asyncio.wait_for(loop.sock_recv(client, 65536), 10)
            assert received.partition(b"\r\n\r\n")[2] == text_frame("hällo".encode()) + b"\x82\x02\xff\x00"

    run(scenario())


def test_drain_waits_for_room_and_wakes() -> None:
    """It returns at once while there is room, waits at the bound, and goes on when the client has taken some."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=5)
        async with applied(Noting, shared) as (connection, client):
            await asyncio.wait_for(connection.drain(), 1)
            sent = backlog(connection)
            while connection.has_room:
                assert connection.send_frame(numbered(sent))
                sent += 1
            waiting = [asyncio.ensure_future(connection.drain()) for _ in range(3)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert not any(one.done() for one in waiting) and connection.is_open
            await read_frames(client, last=numbered(sent - 1)[4:])
            await asyncio.wait_for(asyncio.gather(*waiting), 10)
            assert connection.has_room

    run(scenario())


@pytest.mark.parametrize("size", [10, 65536])
@pytest.mark.parametrize(
    "limits", [{"send_queue_bytes": 200_000}, {"send_queue_messages": 7}, {"send_queue_bytes": 1024}]
)
def test_who_drains_before_each_message_loses_none(size: int, limits: dict[str, int]) -> None:
    """With slow_policy "disconnect": whatever the bound, a sender that drains is never too slow for it, up to messages
    as long as clients may send.
    """

    async def scenario() -> None:
        shared = environment(**limits)
        async with applied(Noting, shared) as (connection, client):
            count = 4_000_000 // (size + 2000)

            async def send() -> None:
                for number in range(count):
                    await connection.drain()
                    assert connection.send(f"{number} ".ljust(size, "x"))

            sending = asyncio.ensure_future(send())
            frames = await read_frames(client, last=f"{count - 1} ".ljust(size, "x").encode())
            await sending
            assert [int(payload.split()[0]) for _, payload in frames] == list(range(count))
            assert connection.is_open and shared.counters.drops_slow == shared.counters.drops_oldest == 0

    run(scenario())


def test_who_waits_for_room_is_told_of_the_end() -> None:
    """A connection that ends wakes drain, which raises."""

    async def scenario() -> None:
        async with applied(Noting, environment(send_queue_messages=2)) as (connection, _):
            backlog(connection)
            while connection.has_room:
                connection.send_frame(numbered(0))
            waiting = asyncio.ensure_future(connection.drain())
            await asyncio.sleep(0)
            assert not waiting.done()
            connection.close(4000, "")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(waiting, 1)

    run(scenario())


def test_a_client_that_takes_nothing_for_write_timeout_is_closed() -> None:
    """After so many seconds, to the tick, with 1013, long before a ping would find out; who takes something stays."""

    async def scenario() -> None:
        shared = environment(Connections(write_timeout_seconds=3, ping_interval_seconds=3600))
        async with applied(Noting, shared) as (stalled, _), applied(Noting, shared) as (slow, client):
            backlog(stalled)
            sent = backlog(slow)
            for _ in range(ticks(3) - 1):
                shared.wheel.advance()
            await read_frames(client, last=numbered(sent - 1)[4:])
            await until(lambda: not slow.queued_bytes)
            assert stalled.is_open
            shared.wheel.advance()
            assert (stalled.close_code, stalled.is_open, slow.is_open) == (1013, False, True)
            assert shared.counters.drops_slow >= 1

    run(scenario())


def test_no_write_timeout_by_default() -> None:
    """A stalled client is given up by its missing pong alone."""

    async def scenario() -> None:
        shared = environment(Connections(ping_interval_seconds=3600))
        async with applied(Noting, shared) as (connection, _):
            backlog(connection)
            for _ in range(ticks(600)):
                shared.wheel.advance()
            assert connection.is_open

    run(scenario())


class Reader:
    """Takes frames from a client's socket as they come."""

    def __init__(self, client: socket.socket) -> None:
        client.setblocking(False)
        self._client = client
        self._unread = b""

    async def more(self) -> list[tuple[int, bytes]]:
        """Return opcode and payload of those that have come whole; the response to the handshake is skipped."""
        self._unread += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._client, 1 << 20), 10)
        if self._unread.startswith(b"HTTP/1.1"):
            self._unread = self._unread.partition(b"\r\n\r\n")[2]
        frames = []
        while len(self._unread) >= 2:
            start = {126: 4, 127: 10}.get(self._unread[1], 2)
            end = start + (int.from_bytes(self._unread[2:start], "big") if start > 2 else self._unread[1])
            if len(self._unread) < end:
                break
            frames.append((self._unread[0] & 15, self._unread[start:end]))
            self._unread = self._unread[end:]
        return frames


@pytest.mark.parametrize("gzip", [False, True])
def test_texts_that_waited_leave_as_one(gzip: bool) -> None:  # noqa: FBT001
    """S4-13: with joins_lines what has waited in the send queue comes as one text, a line each, what was written at
    once by itself; not where messages are compressed.
    """

    async def scenario() -> None:
        async with applied(Noting) as (connection, client):
            connection.joins_lines = True
            connection.wants_gzip = gzip
            assert (connection.joins_lines, connection.wants_gzip, bool(connection.form & GZIP)) == (True, gzip, gzip)
            sent = backlog(connection)
            for number in range(20):
                connection.send(f"line {number}")
            reader, texts = Reader(client), list[bytes]()
            while not texts or not texts[-1].endswith(b"line 19"):
                texts += [payload for _, payload in await reader.more()]
            lines = b"\n".join(texts).split(b"\n")
            assert lines[sent:] == [b"line %d" % number for number in range(20)]
            assert len(texts) == len(lines) if gzip else len(texts) <= sent + 3

    run(scenario())


def test_heartbeats() -> None:
    """At once and every so many seconds; none is put behind messages that a client does not take."""

    async def scenario() -> None:
        shared = environment(send_queue_messages=3)
        async with applied(Noting, shared) as (connection, client):
            connection.start_heartbeat(2)
            for _ in range(ticks(2) * 3):
                shared.wheel.advance()
            connection.send("last")
            assert await read_frames(client, last=b"last") == [(1, b"heartbeat")] * 4 + [(1, b"last")]
            backlog(connection)
            while connection.has_room:
                connection.send_frame(numbered(0))
            queued = connection.queued_bytes
            for _ in range(ticks(8)):
                shared.wheel.advance()
            assert connection.queued_bytes == queued and connection.is_open
            assert text_frame(b"heartbeat") == HEARTBEAT_FRAME

    run(scenario())


def test_pongs_and_applications_do_not_mix() -> None:
    """Pings are answered while a handler runs, and no application hears of them."""

    async def scenario() -> None:
        async with applied(Gated) as (connection, client):
            client.sendall(texts("a") + build(PING, b"are you there"))
            reader, frames = Reader(client), list[tuple[int, bytes]]()
            while not frames:
                frames = await reader.more()
            assert frames == [(PONG, b"are you there")]
            assert story(connection) == ["open", "begin a"]

    run(scenario())


def test_echo_answers_all_before_it_looks_at_a_close() -> None:
    """S1: messages, and a close right behind them: every answer comes before the answer to the close."""

    async def scenario() -> None:
        async with applied(Echo) as (_, client):
            client.sendall(texts("a", "b", "c") + closing())
            assert await read_frames(client) == [(1, b"a"), (1, b"b"), (1, b"c"), (8, struct.pack("!H", 1000))]

    run(scenario())
