"""Non-blocking connections in the loop: TCP, then TLS where the URL asks for it, then the WebSocket handshake."""

import errno
import os
import select
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastpush.bench.loop import Handler, Loop
from fastpush.errors import StartError

_KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3, with its answer below
_ACCEPT = b"s3pplmbitxaq9kygzzhzrbk+xoo="
_HEAD_BYTES_MAX = 65536
_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen at connect, when the peer is known
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_HANDSHAKE = (
    "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
    "Safari/537.36\r\nUpgrade: websocket\r\nOrigin: {origin}\r\nSec-WebSocket-Version: 13\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    "Sec-WebSocket-Key: " + _KEY + "\r\n{extensions}\r\n"
)
_OFFER = (
    "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; server_no_context_takeover; "
    "client_max_window_bits\r\n"
)


@dataclass(frozen=True)
class Endpoint:
    """Where a URL leads: resolved once, used by every connection. host: as in the Host header."""

    family: socket.AddressFamily
    address: tuple[str, int]
    name: str
    host: str
    origin: str
    tls: ssl.SSLContext | None

    def handshake(self, target: str, *, compression: bool) -> bytes:
        """Return a WebSocket request with the headers of a browser."""
        extensions = _OFFER if compression else ""
        return _HANDSHAKE.format(target=target, host=self.host, origin=self.origin, extensions=extensions).encode()


def resolve(url: str, *, insecure: bool) -> Endpoint:
    """Return where `url` leads. Raises: StartError: its host is unknown."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    port = parts.port or _PORTS[parts.scheme]
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise StartError(f"{name}: {error.strerror}") from None
    secure = parts.scheme in {"wss", "https"}
    shown = f"[{name}]" if ":" in name else name
    host = shown if port == _PORTS[parts.scheme] else f"{shown}:{port}"
    tls = ssl.create_default_context() if secure else None
    if tls is not None and insecure:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return Endpoint(
        family, (str(address[0]), int(address[1])), name, host, f"{'https' if secure else 'http'}://{host}", tls
    )


class Link:
    """One connection. Subclasses say what follows: on_connected, on_readable, on_ended."""

    __slots__ = ("_endpoint", "_handler", "_interest", "_source", "_unsent", "loop", "socket")

    def __init__(self, loop: Loop, endpoint: Endpoint, source: str | None) -> None:
        self.loop = loop
        self._endpoint = endpoint
        self._source = source
        self._unsent = b""
        self._handler: Handler = self.on_event
        self._interest = select.EPOLLIN
        self.socket: socket.socket | None = None

    # -- opening -------------------------------------------------------------------

    def open(self) -> None:
        """Start to connect; ends in on_connected or on_ended."""
        made = socket.socket(self._endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = made
        try:
            if self._source is not None:
                made.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                made.bind((self._source, 0))
            code = made.connect_ex(self._endpoint.address)
        except OSError as error:
            code = error.errno or errno.EIO
        if code not in {0, errno.EINPROGRESS}:
            self.end(_reason(code))
            return
        self.loop.watch(made.fileno(), self._on_connecting, select.EPOLLOUT)

    def _on_connecting(self, _events: int) -> None:
        assert self.socket is not None
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.end(_reason(code))
        elif self._endpoint.tls is None:
            self._connected()
        else:
            # The file descriptor stays the same.
            self.socket = self._endpoint.tls.wrap_socket(
                self.socket, server_hostname=self._endpoint.name, do_handshake_on_connect=False
            )
            self._on_tls(0)

    def _on_tls(self, _events: int) -> None:
        assert isinstance(self.socket, ssl.SSLSocket)
        fd = self.socket.fileno()
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.loop.watch(fd, self._on_tls)
        except ssl.SSLWantWriteError:
            self.loop.watch(fd, self._on_tls, select.EPOLLOUT)
        except OSError as error:
            self.end(f"TLS: {getattr(error, 'verify_message', '') or error.strerror or error}")
        else:
            self._connected()

    def _connected(self) -> None:
        self.react(self.on_event)
        self.on_connected()

    def react(self, handler: Handler) -> None:
        """Call `handler` with what happens from now on."""
        assert self.socket is not None
        self._handler = handler
        self.loop.watch(self.socket.fileno(), handler, self._interest)

    # -- open ----------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """The socket can be read or written."""
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            self.on_readable()

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel does not take now."""
        if self.socket is None:
            return
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self.socket.send(data)
        except _LATER:
            sent = 0
        except OSError as error:
            self.end(_reason(error.errno))
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self.loop.watch(self.socket.fileno(), self._handler, self._interest | select.EPOLLOUT)

    def _flush(self) -> None:
        assert self.socket is not None
        rest, self._unsent = self._unsent, b""
        self.loop.watch(self.socket.fileno(), self._handler, self._interest)
        if rest:
            self.write(rest)

    def read(self, size: int = 65536) -> bytes | None:
        """Return what there is; None: nothing yet, or the connection has ended (on_ended was called)."""
        if self.socket is None:
            return None
        try:
            data = self.socket.recv(size)
        except _LATER:
            return None
        except OSError as error:
            self.end(_reason(error.errno))
            return None
        if not data:
            self.end("end of stream")
            return None
        return data

    # -- ending --------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """Close, and tell on_ended why it was not our wish."""
        if self.socket is not None:
            self.close()
            self.on_ended(reason)

    def close(self, *, reset: bool = False) -> None:
        """Close as we wish. reset: leave no TIME_WAIT behind."""
        made, self.socket = self.socket, None
        if made is None:
            return
        self.loop.forget(made.fileno())
        if reset:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        made.close()

    def on_connected(self) -> None:
        raise NotImplementedError

    def on_readable(self) -> None:
        raise NotImplementedError

    def on_ended(self, reason: str) -> None:
        raise NotImplementedError


class WebSocketLink(Link):
    """A connection that asks for a WebSocket: on_opened with the bytes behind the head, or on_refused."""

    __slots__ = ("_request", "head")

    def __init__(self, loop: Loop, endpoint: Endpoint, source: str | None, request: bytes) -> None:
        super().__init__(loop, endpoint, source)
        self._request = request
        self.head = b""

    def on_connected(self) -> None:
        self.react(self._on_head)
        self.write(self._request)

    def _on_head(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        data = self.read()
        if data is None or self.socket is None:
            return
        self.head += data
        if len(self.head) > _HEAD_BYTES_MAX:
            self.end("head of the reply too large")
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if not found:
            return
        status = head[9:12]
        if status == b"101" and _ACCEPT in head.lower():
            self.react(self.on_event)
            self.head = b""
            self.on_opened(head, rest)
        elif status == b"101":
            self.end("wrong Sec-WebSocket-Accept")
        else:
            self.head = b""
            self.on_refused(status.decode("latin-1"))

    def on_opened(self, head: bytes, rest: bytes) -> None:
        raise NotImplementedError

    def on_refused(self, status: str) -> None:
        raise NotImplementedError


def _reason(code: int | None) -> str:
    return os.strerror(code).lower() if code else "TLS"
