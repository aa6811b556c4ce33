"""Clients of the Centrifugal protocol that others wrote, each to one worker, by a way that tests can cut.

    NodeClient, PageClient, PythonClient ── Way ──► the worker of the test's choice

All are driven by the same commands and tell the same events: tests/clients/centrifuge_commands.mjs.
"""

import base64
import functools
import hashlib
import hmac
import http.client
import http.server
import json
import math
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from tests.applications import workers
from tests.programs import ANSWER_SECONDS, CLIENTS, Browser, Closing, Program, need, need_module
from tests.server import SCALE, Sections, Server, eventually

KEY = "a-key-of-16-characters-or-more"
SECRET = "a-secret-of-32-characters-or-more-for-hs256"
# So that connecting and subscribing again takes no time.
OPTIONS = {"minReconnectDelay": 10, "maxReconnectDelay": 100}
SUBSCRIPTION = {"minResubscribeDelay": 10, "maxResubscribeDelay": 100}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


def sign(**claims: Any) -> str:
    """Return a JWT with these claims."""

    def part(fields: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    signature = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def token(user: str, seconds: float = 600, **claims: Any) -> str:
    """Return a connection token, good for at least so many seconds; with `channel`, a subscription token."""
    return sign(sub=user, exp=math.ceil(time.time() + seconds), **claims)


def sections(**more: Any) -> Sections:
    """Return a configuration that takes these tokens and KEY."""
    return {
        "auth": {"mode": "jwt"},
        "auth.jwt": {},
        "[auth.jwt.key]": {"algorithm": "HS256", "secret": SECRET},
        "push": {"auth": "keys", "keys": [KEY]},
        **more,
    }


class Refused(Exception):
    """A client's command, or a call of the server API, was answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code: int | str = error["code"]
        self.message: str = error["message"]


class Way(Closing):
    """A port of 127.0.0.1 whose connections all come out at one worker of a server.

    worker: which one, from 0; once it is gone, any.
    """

    def __init__(self, server: Server, worker: int) -> None:
        self._server = server
        self._number = workers(server)[worker]
        self._is_cut = False
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._calls = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS * SCALE)
        self.websocket_url = f"ws://127.0.0.1:{self.port}/connection/websocket"
        self._start(self._accept)

    def api(self, method: str, **body: Any) -> Any:
        """Call the server API, return the result; all calls share a connection. Raises: Refused."""
        self._calls.request("POST", f"/api/{method}", json.dumps(body), {"X-API-Key": KEY})
        reply = json.loads(self._calls.getresponse().read())
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["result"]

    def publish(self, channel: str, *data: Any) -> None:
        """Publish one after the other."""
        for each in data:
            self.api("publish", channel=channel, data=each)

    def cut(self) -> None:
        """Reset all connections, and all that come until `mend`."""
        with self._lock:
            self._is_cut = True
            ends, self._ends = self._ends, []
        for end in ends:
            self._reset(end)

    def mend(self, worker: int | None = None) -> None:
        """Let connections through, from now on to another worker if one is named."""
        if worker is not None:
            self._number = workers(self._server)[worker]
        self._is_cut = False

    def close(self) -> None:
        self._calls.close()
        # A thread that waits in accept learns nothing of a close; of a shutdown it does.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                try:
                    worker = self._dial()
                except OSError:
                    worker = client
                with self._lock:
                    self._ends += [client, worker]
                if self._is_cut or worker is client:
                    self._reset(client)
                    self._reset(worker)
                else:
                    self._start(self._copy, client, worker)
                    self._start(self._copy, worker, client)

    def _dial(self) -> socket.socket:
        deadline = time.monotonic() + ANSWER_SECONDS * SCALE
        while time.monotonic() < deadline:
            end = socket.create_connection(("127.0.0.1", self._server.port), timeout=ANSWER_SECONDS * SCALE)
            worker = self._server.worker_of(end.getsockname()[1])
            if worker == self._number or self._number not in workers(self._server):
                end.settimeout(None)
                return end
            end.close()
        raise ConnectionError(f"worker {self._number} accepts nothing")

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # reset
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    @staticmethod
    def _reset(end: socket.socket) -> None:
        with suppress(OSError):  # has ended by itself
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads
        end.close()


class Client(Closing):
    """A client that is told commands and tells events.

    way: to its worker.  options: what it connects with.  events: all that happened so far.
    """

    def __init__(self, way: Way, **options: Any) -> None:
        self.way = way
        self._options = OPTIONS | options
        self.events: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._numbers = count(1)

    def do(self, name: str, *values: Any) -> Any:
        """Give a command, return its answer. Raises: Refused."""
        number = next(self._numbers)
        self._put([number, name, *values])
        while True:
            line = self._get()
            if line.get("answer") == number:
                break
            self._note(line)
        if "error" in line:
            raise Refused(line["error"])
        return line["ok"]

    def refusal(self, name: str, *values: Any) -> int | str:
        """Give a command that is refused; return the code."""
        try:
            value = self.do(name, *values)
        except Refused as refused:
            return refused.code
        raise AssertionError(f"{name} {values} was answered with {value}")

    def wait(self, event: str, **fields: Any) -> dict[str, Any]:
        """Return the first event with these fields that has not been waited for yet, or the next such."""
        expected = {"event": event, **fields}.items()
        deadline = time.monotonic() + ANSWER_SECONDS * SCALE
        while True:
            for line in self._waiting:
                if line.items() >= expected:
                    self._waiting.remove(line)
                    return line
            try:
                assert time.monotonic() < deadline
                self._note(self._get())
            except AssertionError as error:
                raise AssertionError(
                    f"no {event} with {fields}: {error}; the last events: {self.events[-20:]}"
                ) from None

    def connect(self, **options: Any) -> dict[str, Any]:
        """Connect; return the event."""
        self.start(**options)
        return self.wait("connected")

    def start(self, **options: Any) -> None:
        """Start to connect. options: further ones, for the first time."""
        self.do("connect", self._options | options)

    def subscribe(self, channel: str, **options: Any) -> dict[str, Any]:
        """Subscribe; return the event."""
        self.ask_for(channel, **options)
        return self.wait("subscribed", channel=channel)

    def ask_for(self, channel: str, **options: Any) -> None:
        """Start to subscribe."""
        self.do("subscribe", channel, SUBSCRIPTION | options)

    def got(self, channel: str) -> list[Any]:
        """Return what has been published to it, as it came."""
        return [e["data"] for e in self.events if e["event"] == "publication" and e["channel"] == channel]

    def count(self, event: str) -> int:
        """Return how often an event has happened so far."""
        return sum(line["event"] == event for line in self.events)

    def _note(self, line: dict[str, Any]) -> None:
        self.events.append(line)
        self._waiting.append(line)

    def _put(self, command: list[Any]) -> None:
        raise NotImplementedError

    def _get(self) -> dict[str, Any]:
        raise NotImplementedError


class ProgramClient(Client):
    """One in a process of its own."""

    def __init__(self, way: Way, *command: str, **options: Any) -> None:
        super().__init__(way, **options)
        self._program = Program(*command, way.websocket_url)
        self.wait("started")

    def _put(self, command: list[Any]) -> None:
        self._program.write(json.dumps(command))

    def _get(self) -> dict[str, Any]:
        line = self._program.line()
        assert line.startswith("{"), line
        return json.loads(line)

    def close(self) -> None:
        self._program.close()


class NodeClient(ProgramClient):
    """npm's centrifuge in Node."""

    def __init__(self, way: Way, **options: Any) -> None:
        need_module("centrifuge")
        script = str(CLIENTS / "centrifuge_node.mjs")
        super().__init__(way, need("node", "nodejs"), script, **options)


class PythonClient(ProgramClient):
    """PyPI's centrifuge-python."""

    def __init__(self, way: Way, **options: Any) -> None:
        script = str(CLIENTS / "centrifuge_client.py")
        super().__init__(way, sys.executable, script, **options)


class PageClient(Client):
    """npm's centrifuge in a page of a browser. origin: where the page comes from."""

    _names = count()

    def __init__(self, browser: Browser, origin: str, way: Way, **options: Any) -> None:
        need_module("centrifuge")
        super().__init__(way, **options)
        self._browser, self._page = browser, f"page{next(self._names)}"
        self._lines: list[dict[str, Any]] = []
        browser.do("open", page=self._page)
        browser.do("goto", page=self._page, url=f"{origin}/centrifuge_page.html")
        self._evaluate(f"begin({json.dumps(way.websocket_url)})")

    def _evaluate(self, expression: str) -> Any:
        return self._browser.do("evaluate", page=self._page, expression=expression)

    def _put(self, command: list[Any]) -> None:
        self._evaluate(f"void command({json.dumps(command)})")

    def _get(self) -> dict[str, Any]:
        if not self._lines:
            self._lines = eventually(lambda: self._evaluate("lines.splice(0)"), ANSWER_SECONDS, "a line of the page")
        return self._lines.pop(0)

    def close(self) -> None:
        self._browser.do("close", page=self._page)


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def pages() -> Iterator[str]:
    """Serve the pages of tests/clients; yield their origin."""
    handler = functools.partial(_Files, directory=CLIENTS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()
