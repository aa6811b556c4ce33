"""The control socket: commands such as `fastpush status` ask the running server here.

One request a connection: the client writes a line of JSON, {"command": NAME, …}, and
reads a line of JSON. Only this server's user and root get an answer. A client has
CLIENT_SECONDS to ask and to read, so none holds the supervisor up or stays behind. The reply may come
later, from a command that has a deadline of its own.
"""

import logging
import os
import selectors
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from fastpush.errors import EXIT_FAILED, FastpushError
from fastpush.log import fields

log = logging.getLogger("fastpush.supervisor")

CLIENTS_MAX = 16
CLIENT_SECONDS = 5.0
PAUSE_SECONDS = 1.0
LINE_BYTES_MAX = 65536

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)
_decode = msgspec.json.Decoder(dict[str, Any]).decode

Reply = Callable[[dict[str, Any]], None]
"""Takes a command's reply, once."""
Command = Callable[[dict[str, Any], Reply], None]


class CommandError(FastpushError):
    """A command cannot be carried out; its text is the reply. code: exit code of whoever asked."""

    def __init__(self, text: str, code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True, eq=False)
class _Client:
    connection: socket.socket
    deadline: float
    request: bytes = b""
    reply: bytes = b""


class ControlServer:
    """Answers commands on a listening Unix socket, between the turns of the supervisor's loop."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        commands: Mapping[str, Command],
        clock: Callable[[], float],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._commands = commands
        self._clock = clock
        self._clients: list[_Client] = []
        self._accept_again_at = float("inf")
        selector.register(listener, selectors.EVENT_READ, self._accept)

    @property
    def deadline(self) -> float:
        """When `attend` has something to do."""
        return min([self._accept_again_at, *(client.deadline for client in self._clients)])

    def attend(self, now: float) -> None:
        """Close the connections that took too long; accept again after a pause."""
        for client in [client for client in self._clients if client.deadline <= now]:
            self._drop(client)
        if self._accept_again_at <= now:
            self._accept_again_at = float("inf")
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def sockets(self) -> list[socket.socket]:
        """Return every socket a forked child has to close."""
        return [self._listener, *(client.connection for client in self._clients)]

    def close(self) -> None:
        """Stop answering."""
        for client in list(self._clients):
            self._drop(client)
        if self._accept_again_at == float("inf"):
            self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # The host has no descriptor left. The socket stays readable: polling it now would spin.
            log.warning("command not taken", extra=fields(reason=str(error)))
            self._selector.unregister(self._listener)
            self._accept_again_at = self._clock() + PAUSE_SECONDS
            return
        connection.setblocking(False)
        uid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
        if uid not in (os.getuid(), 0):
            log.warning("command refused", extra=fields(uid=uid))
            connection.close()
            return
        if len(self._clients) == CLIENTS_MAX:
            self._drop(self._clients[0])
        client = _Client(connection, self._clock() + CLIENT_SECONDS)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(client))

    def _read(self, client: _Client) -> None:
        try:
            received = client.connection.recv(LINE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        client.request += received
        if b"\n" in client.request:
            self._selector.unregister(client.connection)
            client.deadline = float("inf")
            self._answer(client.request.partition(b"\n")[0], lambda reply: self._reply(client, reply))
        elif not received or len(client.request) > LINE_BYTES_MAX:
            self._drop(client)

    def _reply(self, client: _Client, reply: dict[str, Any]) -> None:
        if client not in self._clients:
            return  # dropped for a newer one
        client.reply = msgspec.json.encode(reply) + b"\n"
        client.deadline = self._clock() + CLIENT_SECONDS
        self._selector.register(client.connection, selectors.EVENT_WRITE, lambda: self._write(client))
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            client.reply = client.reply[client.connection.send(client.reply) :]
        except BlockingIOError:
            return
        except OSError:
            client.reply = b""
        if not client.reply:
            self._drop(client)

    def _answer(self, line: bytes, reply: Reply) -> None:
        """Have a request replied to; a command that fails costs its client an error, nobody else anything."""
        try:
            request = _decode(line)
        except msgspec.DecodeError as error:
            reply({"error": f"not a JSON object: {error}"})
            return
        name = request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            reply({"error": f"unknown command {name!r}; known: {', '.join(sorted(self._commands))}"})
            return
        try:
            command(request, reply)
        except CommandError as error:
            reply({"error": str(error), "code": error.code})
        except Exception as error:
            log.exception("command failed", extra=fields(command=name))
            reply({"error": f"{type(error).__name__}: {error}"})

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return  # dropped for a newer one, with its own event still in this turn's list
        self._clients.remove(client)
        if client.connection in self._selector.get_map():  # else its reply is still to come
            self._selector.unregister(client.connection)
        client.connection.close()
