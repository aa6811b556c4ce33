"""fastpush.worker.dispatch: one request after the other, bounded in bytes and time. No sockets, no processes."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from fastpush import errors
from fastpush.applications.echo import Echo
from fastpush.config import Config, Limits, Server
from fastpush.worker.dispatch import HELD_BYTES, LINGER_SECONDS, HttpConnection
from tests.http_parts import DONE, Parts, http_parts, turns
from tests.wire import chunked, push, request, upgrade

PUSH = push("jack", "e", "m")
ODD = push("jack", "e", "m", "Content-Encoding: identity")
TAKEN = b"message sent to 1 clients"


def run(scenario: Callable[[Parts], object], config: Config | None = None) -> None:
    async def main() -> None:
        async with http_parts(config) as parts:
            await scenario(parts)  # type: ignore[misc]

    asyncio.run(main())


def part_ways(parts: Parts, connection: HttpConnection) -> None:
    connection.connection_lost(None)
    assert not parts.services.http_connections


@pytest.mark.parametrize("data", [PUSH, ODD], ids=["lean", "aiohttp"])
def test_cut_anywhere(data: bytes) -> None:
    """S0-25: two requests in a row, cut at every place, and byte by byte, give the same two replies."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        stream = data + data
        for cut in range(1, len(stream), 1 if data is PUSH else 7):
            connection.data_received(stream[:cut])
            connection.data_received(stream[cut:])
            await turns(30)
            assert pipe.taken().count(TAKEN) == 2
        for position in range(len(stream)):
            connection.data_received(stream[position : position + 1])
        await turns(30)
        assert pipe.taken().count(TAKEN) == 2 and not pipe.closed
        part_ways(parts, connection)

    run(scenario)


def test_order_of_replies() -> None:
    """While a push waits for the broker nothing behind it is served: replies keep the order of requests."""

    async def scenario(parts: Parts) -> None:
        parts.broker.answer = None
        connection, pipe = parts.connect()
        connection.data_received(PUSH + request("GET", "/health") + PUSH + request("GET", "/nowhere"))
        await turns()
        assert pipe.written == b"" and len(parts.broker.taken) == 1
        parts.broker.answer_next()
        await turns()
        assert pipe.taken().endswith(b'"}') and len(parts.broker.taken) == 2
        parts.broker.answer_next()
        await turns()
        assert TAKEN in pipe.written and b"404 Not Found" in pipe.written
        part_ways(parts, connection)

    run(scenario)


@pytest.mark.parametrize("data", [PUSH, ODD], ids=["lean", "aiohttp"])
def test_reading_pauses_while_a_push_is_under_way(data: bytes) -> None:
    """A client that pipelines megabytes behind a push is read no further than HELD_BYTES and one read; none is lost."""

    async def scenario(parts: Parts) -> None:
        parts.broker.answer = None
        connection, pipe = parts.connect()
        stream, sent = data * 5000, 0
        while pipe.reading:
            connection.data_received(stream[sent : sent + 16384])
            sent += 16384
            await turns(5)
            assert sent <= HELD_BYTES + 2 * 16384
        parts.broker.answer = DONE
        parts.broker.answer_next()
        while sent < len(stream):
            await turns(5)
            if pipe.reading:
                connection.data_received(stream[sent : sent + 16384])
                sent += 16384
        await turns(20 * HELD_BYTES // len(data))
        assert pipe.written.count(TAKEN) == 5000 and pipe.reading
        part_ways(parts, connection)

    run(scenario)


def test_client_that_does_not_read_is_not_served() -> None:
    """While replies pile up no further push is taken, reading pauses, and head_seconds later the client is dropped."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(PUSH)
        await turns()
        connection.pause_writing()
        taken = len(parts.broker.taken)
        while pipe.reading:
            connection.data_received(PUSH * 100)
        await turns()
        assert len(parts.broker.taken) == taken
        connection.resume_writing()
        await turns(3000)
        assert pipe.reading and len(parts.broker.taken) > taken + 100
        connection.pause_writing()
        parts.advance(parts.services.environment.config.server.head_seconds + 1)
        assert pipe.aborted
        part_ways(parts, connection)

    run(scenario)


def test_large_body_pauses_reading_until_it_is_read() -> None:
    """A large push whose authorization takes long is read only as far as aiohttp wants."""
    config = Config(limits=Limits(push_body_bytes=1 << 26))

    class SlowDoor:
        def __init__(self) -> None:
            self.opened = asyncio.Event()

        async def authorize(self, headers: object) -> bool:
            return await self.opened.wait()

        async def close(self) -> None:
            pass

    async def scenario(parts: Parts) -> None:
        parts.services.push_auth = door = SlowDoor()  # type: ignore[assignment]
        parts.services.push_auth_is_sync = False
        connection, pipe = parts.connect()
        body = b'{"userId":"jack","event":"e","message":"m"}'.ljust(1 << 24)
        stream, sent = request("POST", "/push", body=body) + PUSH, 0
        while pipe.reading:
            connection.data_received(stream[sent : sent + 65536])
            sent += 65536
            await turns(5)
        assert sent < 1 << 21
        door.opened.set()
        while sent < len(stream):
            await turns(5)
            if pipe.reading:
                connection.data_received(stream[sent : sent + 65536])
                sent += 65536
        await turns(200)
        assert pipe.written.count(TAKEN) == 2
        part_ways(parts, connection)

    run(scenario, config)


def test_lean_body_is_small() -> None:
    """A body over HELD_BYTES goes to aiohttp, which does not join it anew with every segment."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        for size, lean in ((HELD_BYTES, True), (HELD_BYTES + 1, False)):
            body = b'{"userId":"jack","event":"e","message":"m"}'.ljust(size)
            connection.data_received(request("POST", "/push", body=body))
            await turns()
            reply = pipe.taken()
            assert reply.endswith(TAKEN) and (b"Server: fastpush" in reply) != lean
        part_ways(parts, connection)

    run(scenario)


HEAD_SECONDS = 5
HASTY = Config(server=Server(head_seconds=HEAD_SECONDS))


@pytest.mark.parametrize("data", [b"P", b"POST /push HTTP/1.1\r\nHost", PUSH[:-1], ODD[:-1]])
def test_request_in_time(data: bytes) -> None:
    """From its first byte a head, and from its head a body, has head_seconds; then 408."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        parts.advance(HEAD_SECONDS - 1)
        connection.data_received(data)
        await turns()
        parts.advance(HEAD_SECONDS - 1)
        assert pipe.written == b""
        parts.advance(2)
        assert pipe.written.startswith(b"HTTP/1.1 408 ") and pipe.ended and not pipe.closed
        await turns()
        parts.advance(LINGER_SECONDS + 1)
        assert pipe.aborted
        part_ways(parts, connection)

    run(scenario, HASTY)


def test_idle_client_is_closed_without_a_word() -> None:
    """A connection that sends nothing, or only empty lines, is closed after head_seconds; activity begins them anew."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        for _ in range(5):
            parts.advance(HEAD_SECONDS - 1)
            connection.data_received(PUSH)
            await turns()
        assert pipe.taken().count(TAKEN) == 5
        connection.data_received(b"\r\n")
        parts.advance(HEAD_SECONDS + 1)
        assert pipe.closed and not pipe.aborted and pipe.written == b""
        part_ways(parts, connection)

    run(scenario, HASTY)


def test_waiting_for_the_broker_is_not_the_clients_fault() -> None:
    """head_seconds do not run while the answer is ours to give."""

    async def scenario(parts: Parts) -> None:
        parts.broker.answer = None
        for data in (PUSH, ODD):
            connection, pipe = parts.connect()
            connection.data_received(data)
            await turns()
            parts.advance(3 * HEAD_SECONDS)
            parts.broker.answer_next()
            await turns()
            assert TAKEN in pipe.written and not pipe.closed
            part_ways(parts, connection)

    run(scenario, HASTY)


def test_refused_client_is_heard_out() -> None:
    """Behind a refusal our side is closed and the rest is thrown away, until the client closes too."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(b"nonsense\r\n\r\n")
        assert pipe.written.startswith(b"HTTP/1.1 400 ") and pipe.ended and not pipe.closed and pipe.reading
        for _ in range(100):
            connection.data_received(PUSH * 100)
        await turns()
        assert parts.broker.taken == [] and connection.eof_received() is False
        part_ways(parts, connection)

    run(scenario)


@pytest.mark.parametrize("data", [PUSH, ODD, PUSH + ODD + PUSH, PUSH + PUSH[:-4]])
def test_half_closed_client_is_answered(data: bytes) -> None:
    """What came before the client's end is answered, then the connection is closed; what is incomplete is dropped."""

    async def scenario(parts: Parts) -> None:
        parts.broker.answer = None
        connection, pipe = parts.connect()
        connection.data_received(data)
        await turns()
        assert connection.eof_received() is True
        parts.broker.answer = DONE
        parts.broker.answer_next()
        await turns(50)
        count = data.count(b'"message": "m"}')
        assert pipe.written.count(TAKEN) == count and pipe.closed and not pipe.aborted
        assert pipe.written.count(b"Connection: close") == (0 if data.endswith(PUSH[-20:-4]) else 1)
        part_ways(parts, connection)

    run(scenario)


CHUNKED = request("POST", "/push", "Transfer-Encoding: chunked")


@pytest.mark.parametrize("data", [b"", PUSH[:-1], ODD[:-1], CHUNKED + b"5\r"])
def test_half_closed_client_with_nothing_to_answer_is_closed(data: bytes) -> None:
    """A client that ends in the middle, or before anything, is closed."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect()
        connection.data_received(data)
        await turns()
        if connection.eof_received():
            await turns()
            assert pipe.closed
        part_ways(parts, connection)
        await turns()

    run(scenario)


@pytest.mark.parametrize("data", [PUSH, ODD, PUSH + PUSH])
def test_drain_answers_what_is_under_way(data: bytes) -> None:
    """A push in flight is answered with Connection: close; an idle connection is closed at once."""

    async def scenario(parts: Parts) -> None:
        idle, idle_pipe = parts.connect()
        parts.broker.answer = None
        connection, pipe = parts.connect()
        connection.data_received(data)
        await turns()
        for one in (idle, connection):
            one.drain()
        assert idle_pipe.closed and not pipe.closed
        parts.broker.answer_next()
        await turns()
        assert pipe.written.count(TAKEN) == 1 and b"\r\nConnection: close\r\n" in pipe.written and pipe.closed
        idle.connection_lost(None)
        part_ways(parts, connection)

    run(scenario)


def test_client_that_left_is_not_answered() -> None:
    """The broker's answer to a push whose client is gone goes nowhere."""

    async def scenario(parts: Parts) -> None:
        parts.broker.answer = None
        for data in (PUSH, ODD, CHUNKED + chunked(PUSH.partition(b"\r\n\r\n")[2])):
            connection, pipe = parts.connect()
            connection.data_received(data)
            await turns()
            part_ways(parts, connection)
            parts.broker.answer_next()
            await turns()
            assert pipe.written == b""

    run(scenario)


def test_head_has_no_body() -> None:
    """A reply to HEAD carries the length of the body, not the body; on our own replies too."""

    async def scenario(parts: Parts) -> None:
        connection, pipe = parts.connect("public")
        connection.data_received(request("HEAD", "/health"))
        head, _, body = pipe.written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 ") and b"Content-Length: 0" not in head and body == b""
        part_ways(parts, connection)

    run(scenario)


def test_handshake_that_fails_inside_is_500(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """S0-24: a failure nobody expected before the 101 is 500 with the error text, logged with its stack."""
    monkeypatch.setattr(logging.getLogger("fastpush"), "propagate", True)

    async def scenario(parts: Parts) -> None:
        parts.serve(Echo)
        monkeypatch.setattr(parts.services.guard, "allows_origin", fail)
        connection, pipe = parts.connect()
        connection.data_received(upgrade("/ws?token=a&event=e"))
        await turns()
        assert pipe.written.startswith(b"HTTP/1.1 500 ") and pipe.written.endswith(b"disk on fire") and pipe.closed
        part_ways(parts, connection)

    run(scenario)
    assert [record.exc_info is not None for record in caplog.records] == [True]


def fail(_: object, **__: object) -> bool:
    raise RuntimeError("disk on fire")


def test_which_refusals_operators_hear_of() -> None:
    """Refused pushes are told of by path, of the server API those that publish; and clients of what is served."""

    async def scenario(parts: Parts) -> None:
        parts.serve(Echo)
        for path in ("/push", "/push/all", "/pushes", "/push/", "/api/publish", "/api/presence", "/apis", "/ws", "/x"):
            parts.services.log_refusal(errors.not_found(path), "id", "10.0.0.1", path, {})
        notes = parts.services.environment.notebook.notes
        pushes = [note.path for note in notes if note.by == "back-end"]
        assert pushes == ["/push", "/push/all", "/api/publish"]
        assert [note.path for note in notes if note.by != "back-end"] == ["/ws"]

    run(scenario)
