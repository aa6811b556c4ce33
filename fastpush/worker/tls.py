"""TLS: between a client's TCP connection and whoever speaks with the client.

    uvloop's transport ◄── ciphertext ──► TlsTransport ◄── plaintext ──► HttpConnection, later Connection

OpenSSL is given no socket: it takes ciphertext out of one buffer in memory and leaves its own in another. Of a
record that has not arrived as a whole it keeps the part itself, and what it leaves is written at once. So both
buffers are empty whenever another connection has its turn, and one pair of them serves a whole worker: most of
what a TLS connection usually costs beside OpenSSL's own state is buffers that wait for the next record.

To its protocol a TlsTransport is like plain TCP: writes go out at once or make it pause, `write_eof` ends our
half (a close_notify, then the end of the TCP stream) while the client's is still read.

States, and every transition (a transport only ever moves down):

    SHAKING  until the handshake is done, at most head_seconds, and HANDSHAKE_SECONDS: there is no protocol yet
    OPEN     both speak
    ENDED    our half is closed
    CLOSED   nothing is read any more, or the handshake has failed

A new certificate is a new context: later connections take it, earlier ones go on with what they have.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

from fastpush.http.proxies import peer_text
from fastpush.log import fields
from fastpush.worker.timers import ticks

if TYPE_CHECKING:
    from fastpush.worker.environment import Environment

log = logging.getLogger("fastpush.tls")

HANDSHAKE_SECONDS = 10
_READ_BYTES = 16384
# What one read can complete: the record that it ends, of which OpenSSL had all but a byte, and what is in the read.
_PLAINTEXT_BYTES = 2 * _READ_BYTES

Buffer = bytes | bytearray | memoryview


class ServerTls:
    """What all TLS connections of a worker share.

    context: what the next connection is accepted with.
    expires_at: unix seconds, when its certificate does.
    """

    def __init__(self, context: ssl.SSLContext, expires_at: float, environment: "Environment") -> None:
        self.context = context
        self.expires_at = expires_at
        self.environment = environment
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.ciphertext = memoryview(bytearray(_READ_BYTES))
        self.plaintext = memoryview(bytearray(_PLAINTEXT_BYTES))

    def replace(self, context: ssl.SSLContext, expires_at: float) -> None:
        """Accept with another context from now on; nobody is disconnected.

        Tickets of TLS 1.2 that the old one has given are worth nothing any more: who comes back with one is shown
        the new certificate.
        """
        self.context = context
        self.expires_at = expires_at

    def handshake_due(self) -> int:
        """Return by which tick a handshake that begins now has to be done."""
        environment = self.environment
        return environment.wheel.now + min(environment.head_ticks, ticks(HANDSHAKE_SECONDS))


class Stage(IntEnum):
    """Where a TLS connection is in its life."""

    SHAKING = 0
    OPEN = 1
    ENDED = 2
    CLOSED = 3


SHAKING, OPEN, ENDED, CLOSED = Stage


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """One TLS connection: the protocol of a TCP transport, and the transport of another protocol.

    make_protocol: called once the handshake is done.  due: see TimerWheel; it stands there while SHAKING.
    """

    __slots__ = ("_descriptor", "_make_protocol", "_protocol", "_ssl", "_stage", "_tls", "_transport", "due")

    def __init__(self, tls: ServerTls, make_protocol: Callable[[], asyncio.BaseProtocol]) -> None:
        # Not the base class's constructor: it makes a dictionary that `get_extra_info` here does without.
        self._tls = tls
        self._make_protocol = make_protocol
        self._protocol: Any = None  # asyncio's classes have no common one for what data is given to
        self._stage = SHAKING
        self.due = -1

    # -- TCP's side ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tls = self._tls
        self._transport = cast(asyncio.Transport, transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        self._ssl: ssl.SSLObject | None = tls.context.wrap_bio(tls.incoming, tls.outgoing, server_side=True)
        tls.environment.wheel.schedule(self, tls.handshake_due())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._tls.ciphertext

    def buffer_updated(self, nbytes: int) -> None:
        tls = self._tls
        assert self._ssl is not None
        tls.incoming.write(tls.ciphertext[:nbytes])
        was_shaking = self._stage == SHAKING
        try:
            if was_shaking:
                self._ssl.do_handshake()
            size, has_ended = self._decrypt()
        except ssl.SSLWantReadError:  # the handshake goes on
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # an alert, perhaps
            self._give_up(error.reason or str(error))
            return
        finally:
            if tls.incoming.pending:
                tls.incoming.read()  # of a connection that has ended: never for another one
        self._flush()
        if was_shaking:
            self._establish()
        self._deliver(size)
        if has_ended and self._stage < CLOSED and not self._protocol.eof_received():
            self.close()

    def _establish(self) -> None:
        self._tls.environment.wheel.cancel(self)
        self._stage = OPEN
        self._protocol = self._make_protocol()
        self._protocol.connection_made(self)

    def _decrypt(self) -> tuple[int, bool]:
        """Decrypt all that has come into `plaintext`; return its size, and whether the client has ended its half."""
        tls, tls_object = self._tls, self._ssl
        assert tls_object is not None
        incoming, space = tls.incoming, tls.plaintext
        size = 0
        # Asked first, for "not yet" is told by an exception.
        while incoming.pending or tls_object.pending():
            try:
                # Into a buffer, it returns their number; typeshed knows only of bytes and bytearray.
                count = cast(int, tls_object.read(_PLAINTEXT_BYTES, cast(bytearray, space[size:])))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                count = 0
            if not count:
                return size, True
            size += count
        return size, False

    def _deliver(self, size: int) -> None:
        """Hand over decrypted bytes; the protocol may change, or close, in between."""
        plaintext = self._tls.plaintext
        position = 0
        while position < size and not self.is_closing():
            protocol = self._protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                space = cast(memoryview, protocol.get_buffer(size - position))
                count = min(len(space), size - position)
                space[:count] = plaintext[position : position + count]
                protocol.buffer_updated(count)
            else:
                count = size - position
                protocol.data_received(bytes(plaintext[position:size]))
            position += count

    def _flush(self) -> None:
        """Write what OpenSSL has to say by itself."""
        outgoing = self._tls.outgoing
        if outgoing.pending:
            self._transport.write(outgoing.read())

    def eof_received(self) -> bool:
        """The end of the TCP stream. Anybody could forge it, but requests and messages say where they end."""
        if self._stage == SHAKING:
            self._give_up("the client has gone")
            return False
        return self._stage < CLOSED and bool(self._protocol.eof_received())

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stage == SHAKING:
            self._give_up("the client has gone")
        self._stage = CLOSED
        protocol, self._protocol, self._ssl = self._protocol, None, None
        if protocol is not None:
            protocol.connection_lost(exc)

    def on_timer(self, now: int) -> None:
        """The handshake has taken too long; see TimerWheel."""
        self._give_up("time-out")

    def _give_up(self, reason: str) -> None:
        """End a connection that TLS cannot go on with."""
        environment = self._tls.environment
        if self._stage == SHAKING:
            environment.wheel.cancel(self)
            environment.counters.tls_handshake_errors += 1
        self._stage = CLOSED
        if log.isEnabledFor(logging.DEBUG):
            peer = self._transport.get_extra_info("peername")
            log.debug("TLS failed", extra=fields(peer=peer_text(peer[0], peer[1]) if peer else "", reason=reason))
        self._transport.close()

    # -- the protocol's side ---------------------------------------------------------

    def write(self, data: Buffer) -> None:
        transport = self._transport
        if self._stage != OPEN or not data or transport.is_closing():
            return
        assert self._ssl is not None
        try:
            self._ssl.write(data)
        except ssl.SSLError as error:
            self._tls.outgoing.read()
            self._give_up(error.reason or str(error))
            return
        records = self._tls.outgoing.read()
        if not transport.get_write_buffer_size():
            # Past the transport, as a fan-out does on plain TCP.
            try:
                sent = os.write(self._descriptor, records)
            except OSError:  # it would block, or has failed: the transport finds that out too
                sent = 0
            if sent == len(records):
                return
            if sent:
                transport.write(memoryview(records)[sent:])
                return
        transport.write(records)

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._stage == OPEN:
            self._end()
            self._transport.write_eof()

    def _end(self) -> None:
        """Tell the client that nothing follows."""
        assert self._ssl is not None
        self._stage = ENDED
        with contextlib.suppress(ssl.SSLError):  # SSLWantReadError: the client has not said so yet
            self._ssl.unwrap()
        if not self._transport.is_closing():
            self._flush()
        self._tls.outgoing.read()

    def close(self) -> None:
        if self._stage == OPEN:
            self._end()
        self._stage = CLOSED
        self._transport.close()

    def abort(self) -> None:
        self._stage = CLOSED
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._stage == CLOSED or self._transport.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.BaseProtocol, self._protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._ssl
        if name == "sslcontext":  # by which aiohttp knows that a request came by https
            return self._tls.context
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the bytes of ciphertext that TCP has not taken."""
        return self._transport.get_write_buffer_size()
