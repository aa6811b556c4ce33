"""Check that every available peer delivers: three clients, five pushes, all in order.

    python -m bench.peers [--build] [NAME …]

`--build` only builds them.
"""

import http.client
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import click
from websockets.sync.client import ClientConnection, connect

from bench.peers import PEERS, Peer, build, running

_SECONDS = 10
_MESSAGES = [f"message {number}" for number in range(5)]
_PROBE = "probe"


class Receiver:
    """A registered client."""

    def __init__(self, peer: Peer, port: int, stack: ExitStack) -> None:
        url = peer.websocket_url.format(port=port, user="user7", event="e")
        self._peer = peer
        self._socket: ClientConnection = stack.enter_context(connect(url, compression=None))
        self._texts: list[str] = []
        if peer.registration == "message":
            self._socket.send(peer.registration_text)
            self._socket.recv(_SECONDS)

    def next(self, seconds: float) -> str:
        """Return the next pushed text. Raises TimeoutError."""
        while not self._texts:
            received = self._socket.recv(seconds, decode=True)
            assert isinstance(received, str)
            self._texts += self._peer.messages(received)
        return self._texts.pop(0)

    def next_message(self) -> str:
        """Return the next pushed text that is no probe."""
        while (text := self.next(_SECONDS)) == _PROBE:
            pass
        return text


@contextmanager
def publisher(peer: Peer, port: int) -> Iterator[Callable[[str], str]]:
    """Yield what pushes a text, over one connection, and returns the reply's status and body."""
    url, _ = peer.push(port, "user7", "e", "")
    if peer.push_by == "websocket":
        with connect(url, compression=None) as socket:

            def push(message: str) -> str:
                socket.send(peer.push(port, "user7", "e", message)[1].decode())
                return str(socket.recv(_SECONDS))

            yield push
        return
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    parts = urlsplit(url)

    def post(message: str) -> str:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("POST", target, peer.push(port, "user7", "e", message)[1])
        response = connection.getresponse()
        body = response.read().decode()
        assert response.status < 300, body
        return f"{response.status} {' '.join(body.split())}"

    yield post
    connection.close()


def reach(receiver: Receiver, push: Callable[[str], str]) -> None:
    """Push until it arrives: not every peer says when a connection is registered."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        push(_PROBE)
        try:
            receiver.next(0.2)
        except TimeoutError:
            continue
        return
    raise TimeoutError("no push arrives")


def check(peer: Peer) -> str:
    """Return the reply to the last push; every client has received every message in order."""
    with running(peer, core=0) as (port, _), ExitStack() as stack:
        receivers = [Receiver(peer, port, stack) for _ in range(3)]
        push = stack.enter_context(publisher(peer, port))
        if not peer.confirmed:
            for receiver in receivers:
                reach(receiver, push)
        replies = [push(message) for message in _MESSAGES]
        for receiver in receivers:
            received = [receiver.next_message() for _ in _MESSAGES]
            assert received == _MESSAGES, received
        return replies[-1]


@click.command()
@click.option("--build", "only_build", is_flag=True, help="Only build them.")
@click.argument("names", nargs=-1, type=click.Choice([peer.name for peer in PEERS]))
def main(names: tuple[str, ...], *, only_build: bool) -> None:
    """Check that every available peer, or those named, delivers."""
    failed = False
    for peer in PEERS:
        if names and peer.name not in names:
            continue
        if not peer.is_available():
            click.echo(f"{peer.name:<11} not available: see bench/peers/install.sh")
            continue
        try:
            if only_build:
                build(peer)
                result = "built"
            else:
                result = f"3 clients received {len(_MESSAGES)} messages in order; last reply: {check(peer)}"
            click.echo(f"{peer.name:<11} {result}  [{peer.version()}]")
        except Exception as error:  # noqa: BLE001 - one peer's failure does not hide the others
            failed = True
            click.echo(f"{peer.name:<11} FAILED: {error!r}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
