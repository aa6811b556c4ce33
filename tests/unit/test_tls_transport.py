"""TlsTransport in one loop with its clients, who decide which bytes of TLS go when."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import uvloop

from fastpush.config import Tls
from fastpush.config.tls import server_context
from fastpush.metrics import Counters
from fastpush.worker.timers import TimerWheel
from fastpush.worker.tls import ServerTls, TlsTransport
from tests.certificates import make_certificate, trusting
from tests.server import SCALE

SECONDS = 10 * SCALE


class Echo(asyncio.Protocol):
    """Answers all it is sent; in the end with "bye", if the server says so."""

    def __init__(self, server: "Echoes") -> None:
        self.server = server
        server.protocols.append(self)
        self.received = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.server.echoes:
            self.transport.write(data)

    def eof_received(self) -> bool:
        if self.server.says_bye:
            self.transport.write(b"bye")
            self.transport.close()
        return self.server.says_bye

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class Echoes:
    """A TLS server in this loop."""

    def __init__(self, certificate: Path) -> None:
        self.wheel = TimerWheel()
        self.counters = Counters()
        environment: Any = SimpleNamespace(wheel=self.wheel, counters=self.counters, head_ticks=50)
        self.tls = ServerTls(server_context(Tls(certificate=str(certificate))), 0, environment)
        self.protocols: list[Echo] = []
        self.echoes = True
        self.says_bye = False
        self.transports: list[TlsTransport] = []
        self.writers: list[asyncio.StreamWriter] = []

    def wheel_items(self) -> list[Any]:
        """Return what waits for its time: handshakes."""
        return [item for bucket in self.wheel._buckets for item in bucket]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def accept(self) -> TlsTransport:
        self.transports.append(TlsTransport(self.tls, lambda: Echo(self)))
        return self.transports[-1]

    async def __aexit__(self, *_: object) -> None:
        """Leave no handle open: the loop could not close."""
        self.server.close()
        for transport in self.transports:
            transport.abort()
        for writer in self.writers:
            writer.close()
        for writer in self.writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def client(self, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> "Client":
        """Return one that is connected and has not begun its handshake."""
        return Client(context, session, *await self.connect())


class Client:
    """One client: its TLS is in memory, so that a test has the bytes."""

    def __init__(
        self, context: ssl.SSLContext, session: ssl.SSLSession | None,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        self.reader, self.writer = reader, writer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost", session=session)

    async def shake(self, *, bytewise: bool = False) -> Self:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.put(self.outgoing.read(), bytewise=bytewise)
                await self.more()
            else:
                await self.put(self.outgoing.read(), bytewise=bytewise)
                return self

    async def put(self, data: bytes, *, bytewise: bool = False) -> None:
        """Send ciphertext, at once or each byte in a turn of its own."""
        for part in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
            self.writer.write(part)
            await asyncio.sleep(0)

    async def more(self) -> None:
        data = await asyncio.wait_for(self.reader.read(65536), SECONDS)
        if not data:
            raise EOFError
        self.incoming.write(data)

    def encrypted(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        await self.put(self.encrypted(data))

    async def read(self, size: int) -> bytes:
        """Return `size` bytes, or fewer when the server has ended its half."""
        found = b""
        while len(found) < size:
            try:
                data = self.tls.read(size - len(found))
            except ssl.SSLWantReadError:
                await self.more()
                continue
            except ssl.SSLZeroReturnError:
                break
            if not data:
                break
            found += data
        return found

    def certificate(self) -> bytes | None:
        return self.tls.getpeercert(binary_form=True)


def run(certificate: Path, work: Callable[[Echoes], Coroutine[Any, Any, None]]) -> None:
    async def served() -> None:
        async with Echoes(certificate) as server:
            await work(server)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(served())


@pytest.fixture
def ecdsa(tmp_path: Path) -> Path:
    return make_certificate(tmp_path / "ecdsa.pem")


async def until(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


def test_connections_never_share_a_byte(ecdsa: Path) -> None:
    """Handshakes and records of two clients that arrive byte by byte in turns come out whole, each at its own side."""

    async def work(server: Echoes) -> None:
        clients = [await server.client(trusting(ecdsa)) for _ in range(2)]
        await asyncio.gather(*(client.shake(bytewise=True) for client in clients))
        sent = [b"first " * 50, b"second " * 50]
        records = [client.encrypted(text) for client, text in zip(clients, sent, strict=True)]
        await asyncio.gather(
            *(client.put(record, bytewise=True) for client, record in zip(clients, records, strict=True))
        )
        for client, text in zip(clients, sent, strict=True):
            assert await client.read(len(text)) == text
        assert not server.tls.incoming.pending
        assert not server.tls.outgoing.pending

    run(ecdsa, work)


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 3_000_000])
def test_any_size_comes_back(ecdsa: Path, size: int) -> None:
    """What is longer than a record, a read or the socket's buffers arrives whole and in order, both ways."""

    async def work(server: Echoes) -> None:
        client = await (await server.client(trusting(ecdsa))).shake()
        text = b"".join(b"%07d," % number for number in range(size // 8 + 1))[:size]
        sending = asyncio.ensure_future(client.send(text))
        assert await client.read(size) == text
        await sending

    run(ecdsa, work)


def test_a_new_certificate_is_for_new_connections(ecdsa: Path, tmp_path: Path) -> None:
    """After `replace`, from RSA to ECDSA, new clients see the new certificate, and an open connection goes on."""
    rsa = make_certificate(tmp_path / "rsa.pem", "rsa")

    async def work(server: Echoes) -> None:
        early = await (await server.client(trusting(rsa))).shake()
        between = await server.client(trusting(rsa))
        await until(lambda: len(server.wheel_items()) == 1)
        server.tls.replace(server_context(Tls(certificate=str(ecdsa))), 0)
        late = await (await server.client(trusting(ecdsa))).shake()
        await between.shake()  # its handshake had begun before
        for client in (early, between, late):
            await client.send(b"still here")
            assert await client.read(10) == b"still here"
        assert early.certificate() == between.certificate() != late.certificate()

    run(rsa, work)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_ticket_lives_as_long_as_its_certificate(ecdsa: Path, tmp_path: Path, *, replaced: bool) -> None:
    """TLS 1.2 resumes a session of the same certificate, but not one of an earlier: the new one is shown then."""
    other = make_certificate(tmp_path / "other.pem")
    context = trusting(ecdsa, other)
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    async def work(server: Echoes) -> None:
        first = await (await server.client(context)).shake()
        if replaced:
            server.tls.replace(server_context(Tls(certificate=str(other))), 0)
        again = await (await server.client(context, first.tls.session)).shake()
        assert again.tls.session_reused != replaced
        assert (again.certificate() != first.certificate()) == replaced

    run(ecdsa, work)


def test_our_half_can_end_first(ecdsa: Path) -> None:
    """After write_eof the client has read all, knows that it was all, and is still heard."""

    async def work(server: Echoes) -> None:
        server.echoes = False
        client = await (await server.client(trusting(ecdsa))).shake()
        await until(lambda: server.protocols)
        protocol = server.protocols[0]
        protocol.transport.write(b"goodbye")
        protocol.transport.write_eof()
        protocol.transport.write(b"too late")
        assert await client.read(100) == b"goodbye"
        await client.send(b"but I")
        await until(lambda: protocol.received == b"but I")
        assert not protocol.transport.is_closing()
        client.writer.close()
        await asyncio.wait_for(protocol.lost, SECONDS)

    run(ecdsa, work)


@pytest.mark.parametrize("says_bye", [False, True])
def test_a_client_can_end_its_half_first(ecdsa: Path, *, says_bye: bool) -> None:
    """A client's close_notify is the end of its stream, and its protocol decides whether it is still answered."""

    async def work(server: Echoes) -> None:
        server.says_bye = says_bye
        client = await (await server.client(trusting(ecdsa))).shake()
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        await client.put(client.outgoing.read())
        assert await client.read(100) == (b"bye" if says_bye else b"")
        await asyncio.wait_for(server.protocols[0].lost, SECONDS)

    run(ecdsa, work)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"SSH-2.0-scanner\r\n", b""]
)
def test_who_speaks_no_tls_is_counted(ecdsa: Path, garbage: bytes) -> None:
    """What is no TLS ends its own connection, is counted, and disturbs nobody else."""

    async def work(server: Echoes) -> None:
        neighbour = await (await server.client(trusting(ecdsa))).shake()
        reader, writer = await server.connect()
        writer.write(garbage)
        if not garbage:
            writer.write_eof()
        await asyncio.wait_for(reader.read(), SECONDS)
        assert server.counters.tls_handshake_errors == 1
        assert len(server.protocols) == 1
        assert not server.wheel_items()
        await neighbour.send(b"all well")
        assert await neighbour.read(8) == b"all well"

    run(ecdsa, work)


def test_a_silent_client_is_given_up(ecdsa: Path) -> None:
    """A handshake that does not come ends after head_seconds at most, and is counted."""

    async def work(server: Echoes) -> None:
        reader, _ = await server.connect()
        await until(server.wheel_items)
        for _ in range(49):
            server.wheel.advance()
        assert server.counters.tls_handshake_errors == 0
        server.wheel.advance()
        assert await asyncio.wait_for(reader.read(), SECONDS) == b""
        assert server.counters.tls_handshake_errors == 1

    run(ecdsa, work)


def test_a_damaged_record_ends_its_connection_alone(ecdsa: Path) -> None:
    """A record that does not decrypt closes the connection; what came behind it is nobody's, and others go on."""

    async def work(server: Echoes) -> None:
        client, neighbour = [await (await server.client(trusting(ecdsa))).shake() for _ in range(2)]
        record = client.encrypted(b"damaged")
        await client.put(record[:-1] + bytes([record[-1] ^ 1]) + client.encrypted(b"behind it"))
        await asyncio.wait_for(server.protocols[0].lost, SECONDS)
        assert server.protocols[0].received == b""
        assert server.counters.tls_handshake_errors == 0
        await neighbour.send(b"all well")
        assert await neighbour.read(8) == b"all well"

    run(ecdsa, work)
