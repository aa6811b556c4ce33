"""Ends and bounds: gone clients, hostile ones, slow ones, and a server that stops.

The sockets have small buffers, on the client's side too, so that a few hundred kilobytes are a backlog.
"""

import contextlib
import hashlib
import itertools
import json
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.applications import at_rest
from tests.raw import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import ECHO, SCALE, Server, eventually
from tests.standstill import Standstill

MEGABYTE = 1 << 20


def text_of(number: int, size: int) -> str:
    """Return `size` characters that no other number gives."""
    block = hashlib.sha256(str(number).encode()).hexdigest()
    return (f"{number}:" + block * (size // 64 + 1))[:size]


def routes(server: Server) -> float:
    return server.metrics()["fastpush_broker_routes"]


def drops(server: Server, reason: str) -> float:
    mark = f'fastpush_drops_total{{reason="{reason}"'
    return sum(value for name, value in server.metrics().items() if name.startswith(mark))


def gone(server: Server, user: str, event: str = "e", seconds: float = 10) -> None:
    """Wait until nobody is registered; well before any ping could have found out."""
    eventually(lambda: server.push(user, event, "anybody?")["sent"] == 0, seconds, f"{user} is unbound")


def backlogged(server: Server, client: RawClient, user: str, queued: int = 1) -> int:
    """Push until `queued` bytes wait in the client's send queue; returns how many pushes were taken."""
    number = 0
    before = server.metrics()["fastpush_send_queue_bytes"]
    while server.metrics()["fastpush_send_queue_bytes"] < before + queued:
        for _ in range(4):
            assert server.push(user, "e", text_of(number, 8192))["sent"] == 1
            number += 1
    return number


def proportional(server: Server) -> int:
    """Bytes of memory that the worker processes would give back if they ended."""
    return sum(psutil.Process(process["pid"]).memory_full_info().pss for process in server.processes("worker"))


def resident(server: Server) -> int:
    """Bytes of memory of all worker processes."""
    return sum(psutil.Process(process["pid"]).memory_info().rss for process in server.processes("worker"))


@contextlib.contextmanager
def clients(server: Server, count: int, **parameters: Any) -> Iterator[list[RawClient]]:
    opened = [RawClient(server, "/ws", **parameters) for _ in range(count)]
    yield opened
    for client in opened:
        client.socket.close()


# -- gone -----------------------------------------------------------------------------


def by_reset(client: RawClient) -> None:
    client.reset()


def by_end_of_file(client: RawClient) -> None:
    client.socket.close()


def by_half_close(client: RawClient) -> None:
    client.socket.shutdown(1)


def by_close_frame(client: RawClient) -> None:
    client.send(build(CLOSE, close_payload(1001)))


def by_violation(client: RawClient) -> None:
    client.send(build(15))


def by_garbage_and_reset(client: RawClient) -> None:
    client.send(build(TEXT, b"half", fin=False), build(TEXT, b"x" * 100, length=1000)[:50])
    client.reset()


@pytest.mark.parametrize(
    "end", [by_reset, by_end_of_file, by_half_close, by_close_frame, by_violation, by_garbage_and_reset]
)
@pytest.mark.parametrize("slow", [False, True], ids=["idle", "backlogged"])
def test_every_end_unbinds_at_once(server: Server, end: Callable[[RawClient], None], *, slow: bool) -> None:
    """S0-26, S0-33, S0-34: however a client ends, it is unbound at once, counted no more, and nothing is left of it."""
    user = f"ends-{end.__name__}-{slow}"
    at_rest(server)
    with RawClient(server, "/ws", token=user, event="stays") as neighbour:
        before = routes(server)
        connections = server.metrics()["fastpush_connections"]
        client = RawClient(server, "/ws", receive_bytes=8192, token=user, event=["e", "f"])
        if slow:
            backlogged(server, client, user)
        assert routes(server) == before + 2
        assert server.push(user, "e", "x")["sent"] == 1
        end(client)
        gone(server, user)
        gone(server, user, "f")
        assert routes(server) == before
        client.socket.close()
        eventually(lambda: server.metrics()["fastpush_connections"] == connections)
        assert server.metrics()["fastpush_send_queue_bytes"] == 0
        assert server.push(user, "stays", "still")["sent"] == 1
        assert neighbour.read_text() == "still"


def test_routes_return_to_zero(serve: Callable[..., Server]) -> None:
    """S0-33, S0-34: after many clients have ended in all ways there is no route, registration or connection left."""
    server = serve(workers=2)
    for end in (by_reset, by_end_of_file, by_half_close, by_close_frame, by_violation, by_garbage_and_reset):
        opened = [RawClient(server, "/ws", token=f"u{n % 3}", event=["a", f"b{n}"]) for n in range(10)]
        assert routes(server) == 3 + 10 + 1  # and everybody's
        for client in opened:
            end(client)
        eventually(lambda: routes(server) == 0, what="no routes")
        for client in opened:
            client.socket.close()
    eventually(lambda: server.metrics()["fastpush_connections"] == 0)
    assert server.metrics()["fastpush_registrations"] == 0


def test_a_vanished_client_is_found_by_pings(serve: Callable[..., Server]) -> None:
    """S0-34: who answers no ping is unbound after ping_interval and pong_timeout; any sign of life keeps a client."""
    server = serve(workers=1, sections={"connections": {"ping_interval_seconds": 1, "pong_timeout_seconds": 3}})
    with clients(server, 3, token="t", event="e") as (silent, ponging, talking):
        start = time.monotonic()
        stop = threading.Event()

        def answer() -> None:
            for client in (ponging, talking):
                client.socket.settimeout(0.05)
            held = {ponging: 0, talking: 0}
            while not stop.is_set() and time.monotonic() < start + 20 * SCALE:
                for client, frame in ((ponging, build(PONG)), (talking, build(TEXT, b"?"))):
                    with contextlib.suppress(TimeoutError):
                        if client.read().opcode == PING:
                            held[client] += 1
                            client.send(frame)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            eventually(lambda: server.push("t", "e", "x")["sent"] == 2, 15)
            assert time.monotonic() - start > 3.7
            # The time once more: those who give a sign of life stay.
            eventually(lambda: time.monotonic() - start > 8.5, 15)
            assert server.push("t", "e", "x")["sent"] == 2
        finally:
            stop.set()
            thread.join()
        while silent.read().opcode != PING:
            pass
    eventually(lambda: routes(server) == 0)


def test_a_failed_write_is_not_counted(serve: Callable[..., Server]) -> None:
    """S0-26, S0-30, S0-35: a push that meets a connection reset a moment ago reports 0 and unbinds it."""
    server = serve(workers=2, sections={"bus": {"confirm_ms": 20000}})
    for number in range(10):
        user = f"reset{number}"
        client = RawClient(server, "/ws", token=user, event="e")
        worker = server.worker_of(client.port)
        # A kept-alive connection to the other worker, whose push is on its way while this one stands still.
        pid = server.pid_of_worker(worker)
        publisher = server.raw()
        while server.worker_of(publisher.getsockname()[1]) == worker:
            publisher.close()
            publisher = server.raw()
        body = json.dumps({"userId": user, "event": "e", "message": "x"}).encode()
        psutil.Process(pid).suspend()
        client.reset()
        publisher.sendall(b"POST /push HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert not select.select([publisher], [], [], 0.05)[0]
        psutil.Process(pid).resume()
        assert publisher.recv(65536).endswith(b"message sent to 0 clients")
        publisher.close()
        gone(server, user)


def test_nothing_is_kept_for_later(server: Server) -> None:
    """S0-27, S0-31: a push to nobody reports 0 and is forgotten; who registers afterwards gets only what is new."""
    assert server.push("late", "e", "too early")["sent"] == 0
    with RawClient(server, "/ws", token="late", event="e") as client:
        assert server.push("late", "e", "in time")["sent"] == 1
        assert client.read_text() == "in time"
    gone(server, "late")
    assert server.push("late", "e", "too early again")["sent"] == 0
    with RawClient(server, "/ws", token="late", event="e") as client:
        client.is_alive()


@pytest.mark.parametrize("registered", [True, False])
def test_a_clients_close_is_answered_within_a_second(server: Server, *, registered: bool) -> None:
    """S0-32: on /ws, registered or not, with a backlog or without: unbound, same code, empty reason, within 1 s."""
    parameters = {"token": "polite", "event": "e"} if registered else {}
    with Standstill() as standstill, RawClient(server, "/ws", **parameters) as client:
        began = time.monotonic()
        client.send(build(CLOSE, close_payload(4321, b"because")))
        assert client.read_close() == (4321, "")
        client.read_end()
        assert time.monotonic() - began < 1 + standstill.seconds
    gone(server, "polite")


def test_close_under_a_backlog_ends_the_stream(server: Server) -> None:
    """S0-32: who closes while messages wait reads whole messages, the answer, and nothing behind it."""
    with RawClient(server, "/ws", receive_bytes=8192, token="leaver", event="e") as client:
        before = drops(server, "lost")
        taken = backlogged(server, client, "leaver", 100_000)
        client.send(build(CLOSE, close_payload(1000)))
        # A push may still come before the close frame.
        while server.push("leaver", "e", text_of(taken, 8192))["sent"]:
            taken += 1
        number = 0
        while (frame := client.read()).opcode == TEXT:
            assert frame.payload.decode() == text_of(number, 8192)
            number += 1
        assert (frame.opcode, frame.payload) == (CLOSE, close_payload(1000))
        client.read_end()
        dropped = drops(server, "lost") - before
        assert number + dropped == taken


# -- hostile --------------------------------------------------------------------------


def too_big() -> list[bytes]:
    return [build(BINARY, b"", length=65537) + b"x" * 65536]


def too_big_in_fragments() -> list[bytes]:
    return [build(BINARY, b"x" * 40000, fin=False), build(CONTINUATION, b"x" * 40000, fin=False)]


def too_many_fragments() -> list[bytes]:
    return [build(TEXT, b"", fin=False)] + [build(CONTINUATION, b"", fin=False)] * 1024


def not_utf8() -> list[bytes]:
    return [build(TEXT, b"\xff")]


def enormous() -> list[bytes]:
    return [build(BINARY, b"", length=1 << 62)]


@pytest.mark.parametrize(
    ("frames", "code"),
    [(too_big, 1009), (too_big_in_fragments, 1009), (too_many_fragments, 1009), (not_utf8, 1007), (enormous, 1009)],
)
@pytest.mark.parametrize("path", ["/echo", "/ws"])
def test_violations_tell_and_harm_nobody(
    server: Server, path: str, frames: Callable[[], list[bytes]], code: int
) -> None:
    """A message over message_bytes or message_fragments closes with 1009, bad UTF-8 with 1007, while the client goes
    on sending megabytes: it still reads the code, the workers' memory does not grow, a neighbour notices nothing.
    """
    with RawClient(server, token="neighbour", event="e", path="/ws") as neighbour:
        memory = resident(server)
        violations = server.metrics()["fastpush_protocol_errors_total"]
        with RawClient(server, path) as client:
            client.send(*frames())
            flood = build(BINARY, b"y" * 60000) * 17
            sent = 0
            with contextlib.suppress(OSError):  # the server may have had enough
                while sent < 50 * MEGABYTE:
                    client.socket.sendall(flood)
                    sent += len(flood)
            assert client.read_close()[0] == code
            assert sent >= 50 * MEGABYTE
            client.read_end()
        assert server.push("neighbour", "e", "hello")["sent"] == 1
        assert neighbour.read_text() == "hello"
        assert resident(server) - memory < 4 * MEGABYTE
        assert server.metrics()["fastpush_protocol_errors_total"] == violations + 1


def test_one_violation_counts_once(server: Server) -> None:
    """Thousands more violations, and a close frame, behind the first one in one packet: one close frame, one end."""
    at_rest(server)
    violations = server.metrics()["fastpush_protocol_errors_total"]
    repeated = [build(CONTINUATION), build(TEXT, b"\xff"), build(PING, rsv=1), build(15), b"\xff" * 7]
    for frame in repeated:
        with RawClient(server) as client:
            client.send(build(BINARY, b"x" * 60000))  # makes room for all that follows in one read
            assert client.read().opcode == BINARY
            client.send(frame * 3000, build(CLOSE, close_payload(1000)))
            assert client.read_close()[0] in {1002, 1007}
            client.read_end()
    eventually(lambda: server.metrics()["fastpush_connections"] == 0)
    assert server.metrics()["fastpush_protocol_errors_total"] == violations + len(repeated)


def test_largest_messages_are_taken(server: Server) -> None:
    """message_bytes and message_fragments themselves are allowed, in one frame and in many."""
    with RawClient(server) as client:
        for parts in ([b"z" * 65536], [b"z" * 64] * 1024, [b"z" * 65535, b"z"]):
            last = len(parts) - 1
            client.send(*(build(CONTINUATION if n else BINARY, p, fin=n == last) for n, p in enumerate(parts)))
            assert client.read() == Frame(BINARY, b"z" * 65536)


def test_who_never_answers_a_close_is_cut_off(serve: Callable[..., Server]) -> None:
    """Who goes on for ever after a violation, or ignores a close frame, is cut off after close_timeout_seconds."""
    server = serve(
        workers=1, sections={"connections": {"close_timeout_seconds": 0.5}, "limits": {"register_timeout_seconds": 2}}
    )
    with RawClient(server, "/ws") as violating, RawClient(server, "/ws") as ignoring:
        violating.send(build(15))
        assert violating.read_close()[0] == 1002
        assert ignoring.read_close()[0] == 1008
        ignoring.send(build(PING))
        eventually(lambda: server.metrics()["fastpush_connections"] == 0)


def test_a_burst_of_small_frames_leaves_no_large_buffer(serve: Callable[..., Server]) -> None:
    """Memory: what a client has sent while the worker was busy does not become its read buffer's size."""
    server = serve(workers=1)
    pid = server.processes("worker")[0]["pid"]
    burst = build(PONG, b"x" * 125) * 40_000
    with clients(server, 4) as opened:
        for client in opened:
            client.is_alive()
        memory = resident(server)
        psutil.Process(pid).suspend()
        for client in opened:
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send_unfinished = burst[client.socket.send(burst) :]  # type: ignore[attr-defined]
            client.socket.settimeout(10 * SCALE)
        psutil.Process(pid).resume()
        for client in opened:
            client.send(client.send_unfinished)  # type: ignore[attr-defined]
            client.is_alive()
        assert resident(server) - memory < 4 * MEGABYTE


def test_pings_of_who_never_reads_take_no_memory(server: Server) -> None:
    """RFC 6455, 5.5.3: of the pongs that a client does not take the last one is kept; reading on it gets that one."""
    with RawClient(server, receive_bytes=8192) as client:
        memory = resident(server)
        pings = 0
        flood = b"".join(build(PING, b"%0125d" % number) for number in range(1000))
        for _ in range(200):
            client.send(flood)
        client.send(build(PING, b"last"))
        while (frame := client.read()) != Frame(PONG, b"last"):
            assert frame.opcode == PONG and len(frame.payload) == 125
            pings += 1
        assert 0 < pings < 200_000
        assert resident(server) - memory < 4 * MEGABYTE
        client.is_alive()


# -- slow -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8192, 65536, 300_000, 1_000_000])
def test_slow_reader_gets_every_byte_in_order(server: Server, size: int) -> None:
    """Messages of 8 KB to 1 MB, pushed while the client reads slowly, arrive byte by byte as they were, in order."""
    user = f"slow-{size}"
    count = 60 if size < 100_000 else 12
    with RawClient(server, "/ws", receive_bytes=16384, token=user, event="e") as client:
        pushed = 0
        for number in range(count):
            # Ahead of the reader by half a send queue at most, and by one message at least.
            while pushed < count and (pushed <= number or (pushed - number) * size < MEGABYTE // 2):
                assert server.push(user, "e", text_of(pushed, size))["sent"] == 1
                pushed += 1
            assert client.read_text() == text_of(number, size)
        client.is_alive()


def test_a_client_that_stops_reading_is_closed(serve: Callable[..., Server]) -> None:
    """S0-26: over send_queue_messages or send_queue_bytes a client is closed with 1013; reading on it sees that behind
    whole messages in order; what waited is counted as dropped; its neighbours have everything.
    """
    for limits, size in (({"send_queue_messages": 20}, 8192), ({"send_queue_bytes": 200_000}, 16384)):
        server = serve(workers=1, sections={"limits": limits})
        with (
            RawClient(server, "/ws", receive_bytes=8192, token="t", event="e") as stopped,
            RawClient(server, "/ws", token="t", event="e") as neighbour,
        ):
            counts: list[int] = []
            while not counts or counts[-1] == 2:
                counts.append(server.push("t", "e", text_of(len(counts), size))["sent"])
                assert neighbour.read_text() == text_of(len(counts) - 1, size)
                assert len(counts) < 200
            assert counts[-1] == 1  # the one that was too many was not taken
            taken = len(counts) - 1
            for number in range(5):
                assert server.push("t", "e", f"later {number}")["sent"] == 1
                assert neighbour.read_text() == f"later {number}"
            number = 0
            while (frame := stopped.read()).opcode == TEXT:
                assert frame.payload.decode() == text_of(number, size)
                number += 1
            assert (frame.opcode, frame.payload) == (CLOSE, close_payload(1013, b"too slow"))
            metrics = server.metrics()
            assert drops(server, "slow") == taken - number
            assert taken - number == (20 if "send_queue_messages" in limits else 200_000 // (16384 + 64 + 4))
            assert metrics["fastpush_deliveries_total"] == sum(counts) + 5
            assert metrics["fastpush_send_queue_bytes"] == 0
            stopped.send(build(CLOSE, close_payload(1013)))
            stopped.read_end()


def test_the_largest_queues_go_first(serve: Callable[..., Server]) -> None:
    """Over worker_send_bytes the clients with the longest queues are closed with 1013, as few as will do."""
    server = serve(workers=1, sections={"limits": {"worker_send_bytes": MEGABYTE, "send_queue_bytes": MEGABYTE // 2}})
    sizes = {"small": 50_000, "large": 450_000, "middle": 250_000, "larger": 480_000}
    opened = {user: RawClient(server, "/ws", receive_bytes=8192, token=user, event="e") for user in sizes}
    taken = {user: backlogged(server, opened[user], user, size) for user, size in list(sizes.items())[:-1]}
    for number in range(1000):
        if not server.push("larger", "e", text_of(number, 8192))["sent"]:
            break
        if drops(server, "slow"):
            break
    for user, client in opened.items():
        if user in {"small", "middle"}:
            for number in range(taken[user]):
                assert client.read_text() == text_of(number, 8192)
            client.is_alive()
            assert server.push(user, "e", "on")["sent"] == 1
            assert client.read_text() == "on"
    number = 0
    while (frame := opened["large"].read()).opcode == TEXT:
        number += 1
    assert frame.payload == close_payload(1013, b"too slow")
    assert drops(server, "slow") == taken["large"] - number
    (line,) = server.events("send queues full")
    assert line["bytes"] > MEGABYTE
    for client in opened.values():
        client.socket.close()


def test_drop_oldest_leaves_a_gap_and_whole_frames(serve: Callable[..., Server]) -> None:
    """slow_policy drop-oldest: a client that does not read misses what waited longest, counted and logged; reading on
    it gets whole messages in order, the newest among them, and is never closed.
    """
    server = serve(workers=1, sections={"limits": {"slow_policy": "drop-oldest", "send_queue_messages": 20}})
    with RawClient(server, "/ws", receive_bytes=8192, token="t", event="e") as stopped:
        pushed = 0
        while drops(server, "oldest") < 50:
            for _ in range(10):
                assert server.push("t", "e", text_of(pushed, 8192))["sent"] == 1
                pushed += 1
            assert pushed < 1000
        missed = drops(server, "oldest")
        assert server.metrics()["fastpush_send_queue_bytes"] <= 20 * (8192 + 4 + 64)
        read: list[int] = []
        while not read or read[-1] != pushed - 1:
            text = stopped.read_text()
            number = int(text.partition(":")[0])
            assert text == text_of(number, 8192)
            read.append(number)
        gap = next(n for n, following in itertools.pairwise(read) if following != n + 1)
        assert read == [*range(gap + 1), *range(gap + 1 + int(missed), pushed)]
        assert len(read) + drops(server, "oldest") == pushed
        stopped.is_alive()
        assert server.push("t", "e", "on")["sent"] == 1
        assert stopped.read_text() == "on"
        assert server.metrics()["fastpush_send_queue_bytes"] == 0
        assert (drops(server, "slow"), drops(server, "lost")) == (0, 0)
        assert [line["user"] for line in server.events("drops oldest messages")] == ["t"]
        (told,) = eventually(lambda: server.events("messages dropped"))
        assert (told["reason"], told["messages"]) == ("oldest", missed)


def test_a_backlog_is_written_before_a_close(serve: Callable[..., Server]) -> None:
    """Whoever missed messages and is then closed on purpose reads what waits, then the close frame; nothing is counted
    twice.
    """
    server = serve(workers=1, sections={"limits": {"slow_policy": "drop-oldest", "send_queue_messages": 10}})
    with RawClient(server, "/ws", receive_bytes=8192, token="t", event="e") as stopped:
        pushed = 0
        while not drops(server, "oldest"):
            for _ in range(10):
                assert server.push("t", "e", text_of(pushed, 8192))["sent"] == 1
                pushed += 1
        assert server.request("POST", "/drop", {"userId": "t"})[0] == 200
        read = 0
        while (frame := stopped.read()).opcode == TEXT:
            number = int(frame.payload.partition(b":")[0])
            assert frame.payload.decode() == text_of(number, 8192)
            read += 1
        assert (frame.opcode, frame.payload[:2], number) == (CLOSE, close_payload(1008), pushed - 1)
        assert read + drops(server, "oldest") == pushed
        assert (drops(server, "slow"), drops(server, "lost")) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "bound"),
    [
        ({"slow_policy": "drop-oldest", "send_queue_bytes": MEGABYTE}, 8 * MEGABYTE),
        ({"slow_policy": "disconnect", "send_queue_bytes": MEGABYTE}, 8 * MEGABYTE),
        ({"slow_policy": "drop-oldest", "worker_send_bytes": 2 * MEGABYTE}, 2 * MEGABYTE),
    ],
    ids=["drop-oldest", "disconnect", "all clients of a worker"],
)
def test_clients_that_never_read_take_no_more_than_the_bounds(
    serve: Callable[..., Server], limits: dict[str, Any], bound: int
) -> None:
    """Memory: eight clients that never read, each pushed ten times its send queue's bound: the worker grows by no more
    than the configured bounds and a margin, and serves a neighbour all the while.
    """
    server = serve(workers=1, sections={"limits": limits})
    size, margin = 65536, 6 * MEGABYTE
    with RawClient(server, "/ws", token="neighbour", event="e") as neighbour:
        stopped = {f"t{n}": RawClient(server, "/ws", receive_bytes=8192, token=f"t{n}", event="e") for n in range(8)}
        for number in range(20):  # what the first pushes cost stays
            assert server.push("neighbour", "e", text_of(number, size))["sent"] == 1
            assert neighbour.read_text() == text_of(number, size)
        memory = proportional(server)
        for number in range(160):
            for user in stopped:
                server.push(user, "e", text_of(number, size))
            if number % 10 == 0:
                assert server.push("neighbour", "e", str(number))["sent"] == 1
                assert neighbour.read_text() == str(number)
                assert server.metrics()["fastpush_send_queue_bytes"] <= bound + size
                assert proportional(server) - memory < bound + margin
        assert drops(server, "oldest" if limits["slow_policy"] == "drop-oldest" and bound > 2 * MEGABYTE else "slow")
        for client in stopped.values():
            client.reset()
        eventually(lambda: server.metrics()["fastpush_send_queue_bytes"] == 0)


def test_control_frames_under_a_backlog(server: Server) -> None:
    """Pings while the server cannot write: messages and pongs stay whole frames, messages in order, none missing."""
    with RawClient(server, "/ws", receive_bytes=8192, token="mixed", event="e") as client:
        taken, last, pongs, number = 0, -1, [], 0
        for _ in range(12):
            for _ in range(10):
                client.send(build(PING, str(taken).encode()))
                assert server.push("mixed", "e", text_of(taken, 20_000))["sent"] == 1
                taken += 1
            while number < taken - 5:
                frame = client.read()
                if frame.opcode == PONG:
                    pongs.append(int(frame.payload))
                else:
                    assert frame == Frame(TEXT, text_of(number, 20_000).encode())
                    number += 1
        client.send(build(PING, b"1000"))
        while last != 1000 or number < taken:
            frame = client.read()
            if frame.opcode == PONG:
                last = int(frame.payload)
                pongs.append(last)
            else:
                assert frame == Frame(TEXT, text_of(number, 20_000).encode())
                number += 1
        assert pongs == sorted(set(pongs)) and len(pongs) > 1


def test_a_slow_but_living_client_is_not_taken_for_dead(serve: Callable[..., Server]) -> None:
    """A client whose pong is late because much was before the ping keeps its connection while it takes something."""
    server = serve(
        workers=1,
        sections={
            "connections": {"ping_interval_seconds": SCALE, "pong_timeout_seconds": 3 * SCALE},
            "limits": {"send_queue_bytes": 4 * MEGABYTE},
        },
    )
    with RawClient(server, "/ws", receive_bytes=8192, token="t", event="e") as client:
        taken = backlogged(server, client, "t", 3 * MEGABYTE // 2)
        start, number = time.monotonic(), 0
        while number < taken:
            frame = client.read()
            if frame.opcode == TEXT:
                assert frame.payload.decode() == text_of(number, 8192)
                number += 1
                # At this pace the whole backlog takes longer than both times together.
                due = start + 5 * SCALE * number / taken
                eventually(lambda due=due: time.monotonic() >= due)  # type: ignore[misc]
        assert time.monotonic() - start > 4.5 * SCALE
        assert server.push("t", "e", "on")["sent"] == 1
        while (frame := client.read()).opcode == PING:
            client.send(build(PONG))
        assert frame.payload == b"on"


# -- drain ----------------------------------------------------------------------------


def test_drain_tells_everybody(serve: Callable[..., Server]) -> None:
    """SIGTERM: registered, unregistered, echoing and slow clients read what was queued, then 1012; exit code 0."""
    server = serve(workers=2, sections=ECHO)
    slow = RawClient(server, "/ws", receive_bytes=8192, token="slow", event="e")
    taken = backlogged(server, slow, "slow", 300_000)
    others = [RawClient(server, "/ws", token="quick", event="e") for _ in range(5)]
    others += [RawClient(server, "/ws"), RawClient(server, "/echo")]
    assert server.push("quick", "e", "last words")["sent"] == 5
    server.signal(signal.SIGTERM)
    for client in others[:5]:
        assert client.read_text() == "last words"
    for client in others:
        assert client.read_close() == (1012, "server is restarting")
        client.send(build(CLOSE, close_payload(1012)))
        client.read_end()
    for number in range(taken):
        assert slow.read_text() == text_of(number, 8192)
    assert slow.read_close() == (1012, "server is restarting")
    slow.send(build(CLOSE, close_payload(1012)))
    slow.read_end()
    assert server.process.wait(10 * SCALE) == 0
    for client in (slow, *others):
        client.socket.close()
