"""What channels cost: publishing with history, recovery, fan-out and memory over the client protocol.

    python -m bench.channels [--only NAME …] [--rounds N] [--quick]

One worker on one core, this client on another. What is compared runs in turn within a round, so that what else the
machine does meets all of it. The figures are kept beside those of `python -m bench`, for RESULTS.md.
"""

import http.client
import select
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from http import HTTPStatus
from itertools import islice, product
from typing import Any

import orjson

from bench.figures import kilobytes, megabytes, micros, millis, over, percent, times
from bench.measure import drive
from bench.questions import Figure, Options, Question, Values, command, ratio_of, spread_of
from bench.servers import Sections, Server
from fastpush.bench.connections import resolve
from fastpush.bench.frame_reader import client_frame, frame_end
from fastpush.bench.server_stats import ServerProcesses
from fastpush.protocol.frames import Opcode, payload_of

_PATH = "/connection/websocket"
_SIZE_BYTES = 128
_CLIENTS = 1000
_MISSED = 100
_OUTSTANDING = (1, 32)
_PUBLISHED = {1: 600, 32: 3000}  # publications of one slice, by how many are outstanding
_SLICES = 5  # of one round, in turn
_HELD = 6000  # connections whose memory is measured
_CHANNELS = 1_000_000
_TOGETHER = 500  # channels of one broadcast
_AT_ONCE = 50  # subscriptions of one frame
_HISTORY_SECONDS = 1
_FIRST = 50_000  # of them, after which memory is to stay what it is
_FORGOTTEN_SECONDS = 15  # until channels are forgotten, and their memory is given back
_BEFORE, _AFTER = f"after the first {_FIRST:,}", f"after all {_CHANNELS:,}"
_FAN_OUT_SECONDS = 2
_WAIT_SECONDS = 60
_KEPT = {"subscribe": "everybody", "history_messages": _MISSED, "recovery": True}
_SECTIONS: Sections = {
    "connections": {"ping_interval_seconds": 3600},
    "client": {"anonymous": "loopback"},
    "channels.live": {"subscribe": "everybody"},
    "channels.kept": _KEPT,
    "channels.soon": {**_KEPT, "history_seconds": _HISTORY_SECONDS},
}


# -- a client, and back-ends ----------------------------------------------------------


class Client:
    """One client of channels; waits for what it expects. It is connected when it is made."""

    def __init__(self, port: int) -> None:
        endpoint = resolve(f"ws://127.0.0.1:{port}", insecure=False)
        self.socket = socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS)
        self.socket.sendall(endpoint.handshake(_PATH, compression=False))
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            self._receive()
        self._received = self._received.partition(b"\r\n\r\n")[2]
        self.send({"id": 1, "connect": {}})
        self.reply(1)

    def send(self, *commands: dict[str, Any]) -> None:
        """Send commands in one frame."""
        self.socket.sendall(client_frame(Opcode.TEXT, b"\n".join(map(orjson.dumps, commands))))

    def subscribe(self, channel: str) -> dict[str, Any]:
        """Subscribe to a channel and return the result."""
        self.send({"id": 2, "subscribe": {"channel": channel}})
        result: dict[str, Any] = self.reply(2)["subscribe"]
        return result

    def message(self) -> bytes:
        """Return the next message: replies and pushes, a line each."""
        while (end := frame_end(self._received, 0)) > len(self._received):
            self._receive()
        frame, self._received = self._received[:end], self._received[end:]
        return bytes(payload_of(frame))

    def reply(self, number: int) -> dict[str, Any]:
        """Return the reply to a command; what comes before it is not looked at. Raises: RuntimeError: an error."""
        while True:
            for line in self.message().split(b"\n"):
                found: dict[str, Any] = orjson.loads(line)
                if found.get("id") == number:
                    if "error" in found:
                        raise RuntimeError(f"refused: {found['error']}")
                    return found

    def _receive(self) -> None:
        received = self.socket.recv(262_144)
        if not received:
            raise RuntimeError("the server has closed a client")
        self._received += received


def _publish(port: int, bodies: Iterable[dict[str, Any]], outstanding: int, subscriber: Client | None = None) -> None:
    """Publish each body, so many at a time, each over a connection of its own; the subscriber's socket is emptied."""
    waiting, left = select.poll(), iter(bodies)
    links: dict[int, socket.socket] = {}
    with ExitStack() as stack:
        if subscriber is not None:
            waiting.register(subscriber.socket, select.POLLIN)
        for body in islice(left, outstanding):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", port), _WAIT_SECONDS))
            links[link.fileno()] = link
            waiting.register(link, select.POLLIN)
            link.sendall(_request(body))
        while links:
            for descriptor, _ in waiting.poll():
                if descriptor not in links:
                    assert subscriber is not None
                    subscriber.socket.recv(262_144)
                    continue
                link = links[descriptor]
                reply = link.recv(65_536)  # short enough to come in one piece
                if not reply.startswith(b"HTTP/1.1 200") or b'"error"' in reply:
                    raise RuntimeError(f"a publish was answered with {reply[:200]!r}")
                following = next(left, None)
                if following is None:
                    waiting.unregister(link)
                    del links[descriptor]
                else:
                    link.sendall(_request(following))


def _request(body: dict[str, Any]) -> bytes:
    text = orjson.dumps(body)
    head = b"POST /api/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    return b"%b%d\r\n\r\n%b" % (head, len(text), text)


def _cpu_us(processes: ServerProcesses) -> float:
    return sum(processes.measure(memory=False).cpu_ns.values()) / 1000


def _memory_bytes(processes: ServerProcesses) -> int:
    found = processes.measure(memory=True).memory_bytes
    if found is None:
        raise RuntimeError("the memory of the server is not readable")
    return found


# -- publishing with history ------------------------------------------------------------


def _case(subscribers: int, outstanding: int, namespace: str) -> str:
    return f"{subscribers} subscribers, {outstanding} outstanding, {_NAMED[namespace]}"


_NAMED = {"live": "without history", "kept": "with history"}
_LOADS = tuple(product((0, 1), _OUTSTANDING))


def _history(options: Options) -> Iterator[Figure]:
    with options.server(_SECTIONS) as server:
        for measured in range(-1, options.rounds):
            for load in _LOADS:
                costs = dict.fromkeys(_NAMED, 0.0)
                for _, namespace in product(range(_SLICES), _NAMED):
                    costs[namespace] += _publish_cost(options, server, f"{namespace}:room", *load) / _SLICES
                if measured >= 0:  # the first time warms up
                    yield from (Figure(_case(*load, namespace), cost, micros) for namespace, cost in costs.items())


def _publish_cost(options: Options, server: Server, channel: str, subscribers: int, outstanding: int) -> float:
    """Return microseconds of CPU a publication."""
    processes, number = ServerProcesses(server.pid), options.of(_PUBLISHED[outstanding])
    data = "x" * (_SIZE_BYTES - 2)
    with ExitStack() as stack:
        subscriber = None
        if subscribers:
            subscriber = Client(server.port)
            stack.enter_context(subscriber.socket)
            subscriber.subscribe(channel)
        before = _cpu_us(processes)
        _publish(server.port, ({"channel": channel, "data": data} for _ in range(number)), outstanding, subscriber)
        return (_cpu_us(processes) - before) / number


def _judge_history(values: Values) -> tuple[str, bool]:
    ratios = [ratio_of(values[_case(*load, "kept")], values[_case(*load, "live")]) for load in _LOADS]
    most = max(ratios, key=lambda ratio: ratio.median)
    return f"{over(most, times)} where it is most", most.median <= 1.3


# -- recovery ---------------------------------------------------------------------------

_TOOK, _EXACT = "wall time, all clients", "clients that got exactly what they missed"


def _recovery(options: Options) -> Iterator[Figure]:
    number, channel = options.of(_CLIENTS) + 1, "kept:room"
    texts = [f"{each:0{_SIZE_BYTES - 2}}" for each in range(_MISSED)]
    for _ in range(options.rounds):
        with options.server(_SECTIONS) as server, ExitStack() as stack:
            processes = ServerProcesses(server.pid)
            clients = [Client(server.port) for _ in range(number)]
            for client in clients:
                stack.enter_context(client.socket)
            first = clients.pop()
            epoch = first.subscribe(channel)["epoch"]
            _publish(server.port, ({"channel": channel, "data": text} for text in texts), 1, first)
            command = {"id": 2, "subscribe": {"channel": channel, "recover": True, "epoch": epoch, "offset": 0}}
            before, began = _cpu_us(processes), time.perf_counter()
            for client in clients:
                client.send(command)
            replies = [client.message() for client in clients]
            took, spent = time.perf_counter() - began, _cpu_us(processes) - before
        exact = sum(_is_exact(orjson.loads(reply)["subscribe"], texts) for reply in replies)
        yield Figure(_TOOK, took * 1000, millis)
        yield Figure("CPU a client", spent / len(clients), micros)
        yield Figure(_EXACT, 100 * exact / len(clients), percent)


def _is_exact(result: dict[str, Any], texts: list[str]) -> bool:
    found = [(each["offset"], each["data"]) for each in result["publications"]]
    return bool(result["recovered"]) and found == list(enumerate(texts, 1))


def _judge_recovery(values: Values) -> tuple[str, bool]:
    exact = min(values[_EXACT])
    return f"{percent(exact)} exact; {over(spread_of(values[_TOOK]), millis)}", exact == 100


# -- fan-out ----------------------------------------------------------------------------

_KINDS = {"/ws": "", "client protocol": "live", "client protocol, with history": "kept"}


def _fan_out(options: Options) -> Iterator[Figure]:
    for number in range(options.rounds):
        kinds = list(_KINDS.items())[:: -1 if number % 2 else 1]  # whoever else uses the machine comes and goes
        for window, (kind, namespace) in product(_OUTSTANDING, kinds):
            with options.server(_SECTIONS) as server:
                arguments = _subscribing(server, [f"{namespace}:room"]) if namespace else list(server.driving)
                body = f'{{"channel":"{namespace}:room","data":"{{message}}"}}'
                if namespace:
                    arguments += ["--push-url", f"http://127.0.0.1:{server.port}/api/publish", "--push-body", body]
                arguments += ["--mode", "fan-out", "--size", str(_SIZE_BYTES), "--window", str(window)]
                found = _driven(options, server, arguments, _CLIENTS, _FAN_OUT_SECONDS)
            if found["loads"][0]["lost"] or found["closed"]:
                raise RuntimeError("publications were lost, or clients closed")
            yield Figure(f"{window} outstanding, {kind}", found["server"]["cpu_us_per_delivery"], micros)


def _subscribing(server: Server, channels: list[str]) -> list[str]:
    """Return arguments of `fastpush bench` that have each connection subscribe to channels."""
    commands: list[dict[str, Any]] = [{"id": 1, "connect": {"token": "{token}"}}]
    commands += [{"id": number, "subscribe": {"channel": channel}} for number, channel in enumerate(channels, 2)]
    text = b"\n".join(map(orjson.dumps, commands)).decode()
    url = f"ws://127.0.0.1:{server.port}{_PATH}"
    return [url, "--register", "message", "--register-message", text, "--register-reply"]


def _driven(options: Options, server: Server, arguments: list[str], number: int, duration: float) -> dict[str, Any]:
    connections = ["--connections", str(options.of(number)), "--duration", str(duration), "--pid", str(server.pid)]
    return drive([*arguments, *connections], [options.client_core], duration)


def _judge_fan_out(values: Values) -> tuple[str, bool]:
    """Compare with /ws: with one outstanding, and gathered."""
    ratios = {
        window: ratio_of(values[f"{window} outstanding, client protocol"], values[f"{window} outstanding, /ws"])
        for window in _OUTSTANDING
    }
    text = "; ".join(f"{over(ratio, times)} with {window} outstanding" for window, ratio in ratios.items())
    return text, all(ratio.median <= 1.1 for ratio in ratios.values())


# -- memory -----------------------------------------------------------------------------

_PLACES = {
    "3 channels that all share": ["kept:a", "kept:b", "kept:c"],
    "3 channels of its own": ["kept:a{user}", "kept:b{user}", "kept:c{user}"],
}


def _memory(options: Options) -> Iterator[Figure]:
    for _, (case, channels) in product(range(options.rounds), {"no channel": [], **_PLACES}.items()):
        with options.server(_SECTIONS) as server:
            found = _driven(options, server, [*_subscribing(server, channels), "--idle"], _HELD, 0.5)
        yield Figure(case, found["server"]["memory_per_connection_bytes"] / 1000, kilobytes)


def _judge_memory(values: Values) -> tuple[str, bool]:
    text = "; ".join(f"{over(spread_of(values[case]), kilobytes)} with {case}" for case in _PLACES)
    return text, all(max(values[case]) <= 10 for case in _PLACES)


# -- channels that come and go ------------------------------------------------------------


def _gone(options: Options) -> Iterator[Figure]:
    number, first = options.of(_CHANNELS), options.of(_FIRST)
    with options.server(_SECTIONS) as server, ExitStack() as stack:
        processes = ServerProcesses(server.pid)
        client = Client(server.port)
        stack.enter_context(client.socket)
        back_end = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_WAIT_SECONDS)
        stack.callback(back_end.close)
        started = _memory_bytes(processes)
        most = _come_and_go(client, back_end, range(first), processes)
        time.sleep(_FORGOTTEN_SECONDS)
        before, spent = _memory_bytes(processes), _cpu_us(processes)
        most = max(most, _come_and_go(client, back_end, range(first, number), processes))
        spent = _cpu_us(processes) - spent
        time.sleep(_FORGOTTEN_SECONDS)
        after = _memory_bytes(processes)
    yield Figure("memory of the fresh server", started / 1e6, megabytes)
    yield Figure(_BEFORE, before / 1e6, megabytes)
    yield Figure("at most", most / 1e6, megabytes)
    yield Figure(_AFTER, after / 1e6, megabytes)
    yield Figure("CPU a channel: published to, subscribed, left", spent / (number - first), micros)


def _come_and_go(
    client: Client, back_end: http.client.HTTPConnection, numbers: range, processes: ServerProcesses
) -> int:
    """Publish to each channel and have the client in it for a moment; return the most memory meanwhile, in bytes."""
    most = 0
    for start in range(numbers.start, numbers.stop, _TOGETHER):
        channels = [f"soon:{number}" for number in range(start, start + _TOGETHER)]
        back_end.request("POST", "/api/broadcast", orjson.dumps({"channels": channels, "data": "x" * _SIZE_BYTES}))
        reply = back_end.getresponse()
        text = reply.read()
        if reply.status != HTTPStatus.OK or b'"error"' in text:
            raise RuntimeError(f"a broadcast was answered with {reply.status} {text[:200]!r}")
        for begin in range(0, _TOGETHER, _AT_ONCE):
            some = list(enumerate(channels[begin : begin + _AT_ONCE], 2))
            for method in ("subscribe", "unsubscribe"):
                client.send(*({"id": number, method: {"channel": channel}} for number, channel in some))
                client.reply(some[-1][0])
        if start % (20 * _TOGETHER) == 0:
            most = max(most, _memory_bytes(processes))
    return most


def _judge_gone(values: Values) -> tuple[str, bool]:
    ratio = ratio_of(values[_AFTER], values[_BEFORE])
    return over(ratio, times), ratio.high <= 1.05


# -- the table --------------------------------------------------------------------------

QUESTIONS = (
    Question(
        "history",
        "Publishing with history against without",
        "CPU a publication at most 1.3 x that without",
        f"POST /api/publish to a channel that keeps {_MISSED}, and to one that keeps nothing, in turn on one server: "
        "five times each in a round.",
        _history,
        _judge_history,
    ),
    Question(
        "recovery",
        f"{_CLIENTS:,} clients recover {_MISSED} publications each",
        "every client gets exactly what it missed",
        "All subscribe at once, each with the position before the first one.",
        _recovery,
        _judge_recovery,
    ),
    Question(
        "client-fan-out",
        f"Fan-out to {_CLIENTS:,} over the client protocol against /ws",
        "CPU a delivery within 10 % of that of /ws",
        "POST /api/publish against POST /push. A client gets 50 bytes more of the same text, 65 with history.",
        _fan_out,
        _judge_fan_out,
    ),
    Question(
        "client-memory",
        f"Memory of {_HELD:,} clients with three subscriptions",
        "at most 10 KB of PSS a connection",
        "Every subscription may be resumed; PSS of the whole process tree before and after.",
        _memory,
        _judge_memory,
    ),
    Question(
        "gone",
        f"{_CHANNELS:,} channels that come and go",
        f"memory within 5 % of that after the first {_FIRST:,}",
        f"Each is published to once, subscribed and left; history_seconds = {_HISTORY_SECONDS}. Measured when "
        "all of them are forgotten. The first ones leave what a process keeps for good: free lists of Python, and "
        "pages that it shared with its parent until it wrote to them.",
        _gone,
        _judge_gone,
    ),
)

main = command("channels", QUESTIONS)

if __name__ == "__main__":
    main()
