"""fastpush.http.window: aiohttp serves one request of a connection and gives it back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from fastpush.errors import RequestError
from fastpush.http.window import DISCARDED_BYTES, Chunks, Window, set_connection_headers
from tests.http_parts import Pipe, turns
from tests.wire import chunked, request

OPEN_BODY = b"x" * 10


class Bench:
    """Windows on an aiohttp application that returns each body, and waits for `gate` first."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self.pipe = Pipe()
        self.done: list[Window] = []
        self.flows = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def window(self, data: bytes, body_bytes: int | None = 0) -> Window:
        def on_flow() -> None:
            self.flows += 1

        window = Window(self._server, self.pipe, body_bytes, "id-1", self.done.append, on_flow)
        window.open(data)
        return window


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    app = web.Application(client_max_size=1 << 30)

    async def answer(request: web.Request) -> web.Response:
        await benches[0].gate.wait()
        if request.path == "/unread":
            return web.Response(body=b"unread")
        try:
            return web.Response(body=b"read " + (await request.read())[:20])
        except ConnectionError:
            gone.append(request.path)
            return web.Response()

    gone: list[str] = []
    app.router.add_route("*", "/{path:.*}", answer)
    app.on_response_prepare.append(set_connection_headers)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    assert runner.server is not None
    benches = [Bench(runner.server)]
    yield benches[0]
    await runner.cleanup()


def run(scenario: Callable[[Bench], object]) -> None:
    async def main() -> None:
        async with bench() as it:
            await scenario(it)  # type: ignore[misc]

    asyncio.run(main())


def head(size: int, path: str = "/", *headers: str) -> bytes:
    return request("POST", path, *headers, body=b"x" * size)[:-size] if size else request("POST", path, *headers)


def test_request_without_body() -> None:
    """The connection comes back once, after the response, fit for another request."""

    async def scenario(it: Bench) -> None:
        window = it.window(request("GET", "/"))
        assert window.is_complete and it.done == []
        await turns()
        assert it.done == [window] and window.keep_alive and window.has_clear_end
        assert it.pipe.taken().endswith(b"\r\n\r\nread ") and not it.pipe.closed
        window.lost(None)
        window.close()
        assert it.done == [window]

    run(scenario)


def test_body_in_pieces_and_what_follows() -> None:
    """Exactly the body is fed, whole or byte by byte; the rest is given back untouched."""

    async def scenario(it: Bench) -> None:
        for pieces in ([OPEN_BODY + b"NEXT"], [*(OPEN_BODY[i : i + 1] for i in range(9)), b"xNEXT"]):
            window = it.window(head(10), 10)
            rests = [window.feed(piece) for piece in pieces]
            assert rests[-1] == b"NEXT" and not any(rests[:-1])
            await turns()
            assert it.done.pop() is window and it.pipe.taken().endswith(b"read " + OPEN_BODY)

    run(scenario)


def test_chunked_ends_the_connection() -> None:
    """A chunked request is answered with Connection: close; its end is known, what follows is thrown away."""

    async def scenario(it: Bench) -> None:
        data = request("POST", "/", "Transfer-Encoding: chunked")
        window = it.window(data, None)
        assert not window.is_complete
        for byte in chunked(b"hello world"):
            assert window.feed(bytes((byte,))) == b""
        assert window.is_complete and not window.has_clear_end
        assert window.feed(b"GET /next HTTP/1.1\r\n\r\n") == b""
        await turns()
        reply = it.pipe.taken()
        assert b"\r\nConnection: close\r\n" in reply and reply.endswith(b"read hello world")
        assert it.done == [window] and not window.keep_alive

    run(scenario)


def test_broken_chunks_are_told_to_the_owner() -> None:
    """A chunked body that is none raises 400: aiohttp would leave its handler waiting for more of it."""

    async def scenario(it: Bench) -> None:
        window = it.window(request("POST", "/", "Transfer-Encoding: chunked"), None)
        with pytest.raises(RequestError) as caught:
            window.feed(b"zz\r\n")
        assert caught.value.status == 400
        window.lost(None)
        await turns()
        assert it.done == [] and it.pipe.written == b""

    run(scenario)


def test_chunks_find_their_end() -> None:
    """The end is found wherever the data is cut, and what stands behind it is no error."""
    data = request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"hello world", size=3)
    for cut in range(1, len(data)):
        chunks = Chunks()
        chunks.feed(data[:cut])
        assert not chunks.is_complete
        chunks.feed(data[cut:] + b"garbage\0")
        assert chunks.is_complete


@pytest.mark.parametrize("size", [10, DISCARDED_BYTES, DISCARDED_BYTES + 1])
def test_answer_before_the_body(size: int) -> None:
    """A handler may answer before the body: a small one is read and thrown away, a large one ends the connection."""

    async def scenario(it: Bench) -> None:
        window = it.window(head(size, "/unread"), size)
        await turns()
        assert (b"Connection: close" in it.pipe.taken()) == (size > DISCARDED_BYTES)
        assert it.done == [] and not window.is_complete
        assert window.feed(b"x" * size + b"NEXT") == b"NEXT"
        await turns()
        assert it.done == [window] and window.keep_alive == (size <= DISCARDED_BYTES)

    run(scenario)


@pytest.mark.parametrize("header", ["Connection: close", "Expect: 100-continue"])
def test_who_ends_the_connection(header: str) -> None:
    """The client's close is honoured; a client that was neither sent 100 nor its body is not waited for."""

    async def scenario(it: Bench) -> None:
        if header.startswith("Expect"):
            it.gate.clear()
        window = it.window(head(10, "/unread", header), 10)
        await turns()
        it.pipe.taken()  # the application's 100, which counts as an answer
        window.has_answered = False
        it.gate.set()
        await turns()
        assert not window.keep_alive
        window.feed(OPEN_BODY)
        await turns()

    run(scenario)


def test_keep_alive_can_be_taken_away() -> None:
    """Until the response begins the owner may decide that it is the last."""

    async def scenario(it: Bench) -> None:
        it.gate.clear()
        window = it.window(request("GET", "/"))
        await turns()
        window.keep_alive = False
        it.gate.set()
        await turns()
        assert b"\r\nConnection: close\r\n" in it.pipe.taken() and it.done == [window]

    run(scenario)


def test_full_while_nobody_reads_the_body() -> None:
    """A body that its handler does not read yet makes the Window full; reading it empties it, its end too."""

    async def scenario(it: Bench) -> None:
        it.gate.clear()
        window = it.window(head(1 << 20), 1 << 20)
        await turns()
        while not window.is_full:
            assert window.feed(b"x" * 65536) == b""
        assert it.flows > 0 and it.pipe.reading  # pausing is the owner's part
        it.gate.set()
        await turns()
        assert not window.is_full and it.done == []
        window.feed(b"x" * (1 << 20))
        assert window.is_complete and not window.is_full
        await turns(100)
        assert it.done == [window] and window.keep_alive

    run(scenario)


def test_lost_connection_ends_the_handler() -> None:
    """When the client goes, a handler that waits for the body ends, and nothing is written or given back."""

    async def scenario(it: Bench) -> None:
        window = it.window(head(10), 10)
        window.feed(b"xxx")
        await turns()
        window.lost(ConnectionResetError())
        await turns()
        assert it.done == [] and it.pipe.written == b"" and window.is_closing()

    run(scenario)


def test_only_lent() -> None:
    """The handler may ask about the connection, not take it away."""

    async def scenario(it: Bench) -> None:
        it.gate.clear()
        window = it.window(request("GET", "/"))
        assert window.get_extra_info("peername") == ("127.0.0.1", 4242) and not window.can_write_eof()
        assert window.is_reading() and not window.is_closing() and window.get_protocol() is not None
        with pytest.raises(NotImplementedError):
            window.set_protocol(asyncio.Protocol())
        it.gate.set()
        await turns()
        assert it.done == [window]

    run(scenario)
