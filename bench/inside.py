"""What it costs that operators look: the administration page beside a server at rest, and at work.

    python -m bench.inside [--only NAME …] [--rounds N] [--quick]

Two workers and their broker on one core, this client on another. One server; the page is opened and closed in turn.
"""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from urllib.parse import urlencode

from bench.figures import over, percent
from bench.measure import drive
from bench.questions import Figure, Options, Question, Values, command, spread_of
from bench.servers import Sections, Server
from fastpush.bench.server_stats import ServerProcesses

_KEY = "a key of the bench's own"
_SECTIONS: Sections = {"admin": {"key": _KEY}, "connections": {"ping_interval_seconds": 3600}}
_WORKERS = 2
_SECONDS = 20
_CONNECTIONS = 1000
_RATE = 500
_LOADS = {"at rest": 0, f"at {_RATE} pushes a second": _RATE}
_MARGIN_SECONDS = 3  # to connect, and to end
_WAIT_SECONDS = 10
_MAX_PERCENT = 1.0


@contextmanager
def page(port: int) -> Iterator[None]:
    """Have an administration page open: logged in, and reading all that it is sent."""
    http_client = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_SECONDS)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    http_client.request("POST", "/admin/login", urlencode({"key": _KEY}), form)
    cookie = http_client.getresponse().headers["Set-Cookie"].partition(";")[0]
    http_client.close()
    with socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS) as connection:
        lines = (
            "GET /admin/live HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Origin: http://127.0.0.1:{port}",
            "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Cookie: {cookie}", "", "",
        )  # fmt: skip
        connection.sendall("\r\n".join(lines).encode())
        if not connection.recv(65536).startswith(b"HTTP/1.1 101 "):
            raise RuntimeError("the page's WebSocket was refused")
        reader = threading.Thread(target=_read, args=(connection,))
        reader.start()
        yield
        connection.shutdown(socket.SHUT_RDWR)
        reader.join()


def _read(connection: socket.socket) -> None:
    connection.settimeout(None)
    while connection.recv(65536):
        pass


def _page(options: Options) -> Iterator[Figure]:
    seconds = max(5, options.of(_SECONDS))
    for round_number, (load, rate) in product(range(options.rounds), _LOADS.items()):
        with options.server(_SECTIONS, _WORKERS) as server:
            shares = {}
            for is_open in (False, True) if round_number % 2 else (True, False):
                if is_open:
                    with page(server.port):
                        shares[is_open] = _share(server, rate, seconds, options)
                else:
                    shares[is_open] = _share(server, rate, seconds, options)
            yield Figure(f"{load}, no page", shares[False], percent)
            yield Figure(f"{load}, page open", shares[True], percent)
            yield Figure(f"{load}, difference", shares[True] - shares[False], percent)


def _share(server: Server, rate: int, seconds: int, options: Options) -> float:
    """Return what the server's processes take of a core, in percent."""
    if not rate:
        return _measured(server, seconds)
    arguments = [
        f"ws://127.0.0.1:{server.port}/ws", "--mode", "unicast", "--rate", str(rate), "--connections",
        str(options.of(_CONNECTIONS)), "--duration", str(seconds + 2 * _MARGIN_SECONDS),
    ]  # fmt: skip
    load = threading.Thread(target=drive, args=(arguments, [options.client_core], seconds + 2 * _MARGIN_SECONDS))
    load.start()
    time.sleep(_MARGIN_SECONDS)
    share = _measured(server, seconds)
    load.join()
    return share


def _measured(server: Server, seconds: int) -> float:
    processes = ServerProcesses(server.pid)
    before, began = processes.measure(memory=False).cpu_ns, time.monotonic()
    time.sleep(seconds)
    after, ended = processes.measure(memory=False).cpu_ns, time.monotonic()
    return (sum(after.values()) - sum(before.values())) / (ended - began) / 1e7


def _judge_page(values: Values) -> tuple[str, bool]:
    differences = {load: spread_of(values[f"{load}, difference"]) for load in _LOADS}
    text = "; ".join(f"{over(difference, percent)} {load}" for load, difference in differences.items())
    return text, all(difference.median <= _MAX_PERCENT for difference in differences.values())


QUESTIONS = (
    Question(
        "page",
        "The administration page open",
        f"at most {_MAX_PERCENT:g} % of a core more than without",
        f"{_WORKERS} workers and their broker; the page gets its figures each second, and nobody traces. CPU of all "
        f"processes over {_SECONDS} s, with and without the page in turn.",
        _page,
        _judge_page,
    ),
)

main = command("inside", QUESTIONS)

if __name__ == "__main__":
    main()
