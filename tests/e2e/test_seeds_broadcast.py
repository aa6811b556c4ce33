"""S2, the broadcast: who is who, what everybody is sent, compressed once, and what the log tells of it."""

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.applications import Client, at_rest, close_log, connections, ending, figures, open_client, read, workers
from tests.certificates import make_certificate, trusting
from tests.programs import FASTPUSH, run
from tests.raw import BINARY, CLOSE, PING, PONG, TEXT, Frame, RawClient, build, close_payload
from tests.server import Server, application, eventually
from tests.standstill import Standstill

Serve = Callable[..., Server]
OWN = '''
import zlib

from fastpush.applications import Application
from fastpush.applications.broadcast import Broadcast

compressed = []
compress = zlib.compress


def counted(data, *arguments):
    compressed.append(bytes(data))
    return compress(data, *arguments)


zlib.compress = counted


class Counting(Broadcast):
    """Tells how often this worker has compressed a text."""

    def on_message(self, connection, data):
        if not data.startswith("how often "):
            return super().on_message(connection, data)
        connection.send(str(compressed.count(data.removeprefix("how often ").encode())))


class Recorder(Application):
    """Reports its calls to those who watch."""

    def channels(self, request):
        return ["calls"] if "watch" in request.query else []

    def _report(self, connection, *what):
        if not connection.data:
            self.server.publish("calls", " ".join(map(str, what)))

    def on_open(self, connection, request):
        connection.data = "watch" in request.query
        self._report(connection, "open")

    def on_message(self, connection, data):
        if data == "fail":
            raise RuntimeError("asked to fail")
        self._report(connection, "message", data)

    def on_error(self, connection, error):
        self._report(connection, "error", error)

    def on_close(self, connection, code, reason):
        self._report(connection, "close", code)
'''
KEPT = "said to all"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("broadcast")
    (folder / "seed_broadcast.py").write_text(OWN)
    own = {"anonymous": "loopback"}
    applications = [
        application("Broadcast"),
        application("Broadcast", path="/quiet"),
        own | {"path": "/counting", "handler": "seed_broadcast:Counting"},
        own | {"path": "/recorder", "handler": "seed_broadcast:Recorder"},
    ]
    sections = {"application": applications}
    running = Server(folder, workers=2, sections=sections, environ={"PYTHONPATH": folder})
    yield running
    running.stop()


def join(server: Server, key: str, gz: int = 0, *, path: str = "/broadcast", worker: int | None = None) -> Client:
    """A client that has said something and heard it: it is in, and has its key."""
    query = urlencode({"specialKey": key, "support_gzip": gz})
    client = open_client(server, path, query, worker=worker)
    port = client.port
    eventually(lambda: claimed(server, port), what="the key is claimed")
    return client


def claimed(server: Server, port: int) -> bool:
    """Whether the service knows the key of the client of this local port."""
    peer = f"127.0.0.1:{port}"
    opened = [line["connection"] for line in server.events("connection opened") if line["peer"] == peer]
    return any(line["connection"] in opened for line in server.events("claimed"))


def unzipped(message: str | bytes) -> str:
    assert isinstance(message, bytes), message
    return gzip.decompress(message).decode()


# -- where it is --------------------------------------------------------------------------


def test_it_has_an_address_and_a_path(serve: Serve) -> None:
    """S2-01: on 127.0.0.1, a port and a path of one's choice; `/` itself is the page's."""
    server = serve(workers=2, sections={"application": [application("Broadcast", path="/all/of/you")]})
    assert server.events("listening")[-1]["address"] == f"127.0.0.1:{server.port}"
    with join(server, "k", path="/all/of/you") as client:
        client.send("hello")
        assert read(client) == "hello"
    with pytest.raises(InvalidStatus):
        open_client(server, "/broadcast", "specialKey=k")


def test_it_speaks_tls(serve: Serve, tmp_path: Path) -> None:
    """S2-02: with a certificate and its key the same is served by wss."""
    certificate = make_certificate(tmp_path / "certificate.pem", key_path=tmp_path / "key.pem")
    tls = {"certificate": str(certificate), "key": str(tmp_path / "key.pem")}
    sections = {"tls": tls, "application": [application("Broadcast")]}
    server = serve(workers=2, tls=trusting(certificate), sections=sections)
    with join(server, "plain") as plain, join(server, "small", 1) as small:
        assert server.ws_url().startswith("wss://")
        plain.send("by wss")
        assert (read(plain), unzipped(read(small))) == ("by wss", "by wss")


def test_all_cores_are_used(serve: Serve) -> None:
    """S2-23: without a number of workers there is one process for each core, and a text reaches the clients of all."""
    server = serve(workers=0, sections={"application": [application("Broadcast")]})
    numbers = workers(server)
    assert len(numbers) == len(os.sched_getaffinity(0))
    assert len({process["pid"] for process in server.processes("worker")}) == len(numbers)
    with ExitStack() as stack:
        clients = [stack.enter_context(join(server, f"k{number}", worker=number)) for number in numbers]
        clients[0].send("to every core")
        assert [read(client) for client in clients] == ["to every core"] * len(numbers)


def test_buffers_and_origins(serve: Serve, tmp_path: Path) -> None:
    """S2-20: buffers of 4096 bytes, pages of every origin: texts around and above that size arrive whole."""
    (tmp_path / "tokens.toml").write_text('"token-of-jack" = "jack"\n')
    sections = {
        "server": {"origins": ["*"], "read_buffer_bytes": 4096, "write_buffer_bytes": 4096},
        "auth": {"mode": "static", "tokens_file": str(tmp_path / "tokens.toml")},
        "push": {"auth": "keys", "keys": ["a-key-of-the-back-end"]},
        "application": [application("Broadcast", anonymous="everywhere")],
    }
    server = serve(workers=2, sections=sections)
    with open_client(server, "/broadcast", "specialKey=k", origin="https://elsewhere.example") as client:
        for size in (4095, 4096, 4097, 50000):
            client.send("x" * size)
            assert read(client) == "x" * size


# -- who is who -----------------------------------------------------------------------------


def test_parameters_come_from_the_url(server: Server) -> None:
    """S2-03: specialKey and support_gzip are read as of a form: `+` and %20 are one character, so both are one key."""
    with open_client(server, "/broadcast", "specialKey=form+of+key&support_gzip=1") as first:
        first.send("zipped")
        assert unzipped(read(first)) == "zipped"
        with open_client(server, "/broadcast", "support_gzip=1&specialKey=form%20of%20key") as second:
            assert ending(first)[0] == 4500
            second.send("again")
            assert unzipped(read(second)) == "again"


@pytest.mark.parametrize(
    "query",
    ["", "support_gzip=1", "specialKey=&support_gzip=0", "specialKey=k&support_gzip=yes", "specialKey=k&support_gzip="],
)
def test_wrong_parameters_are_told_and_end_the_connection(server: Server, query: str) -> None:
    """S2-04: `Parameter check error`, then the end (1008), and a log line with what was asked, but not the token."""
    separator = "&" if query else ""
    with open_client(server, "/broadcast", f"{query}{separator}token=not-for-the-log") as client:
        peer = f"127.0.0.1:{client.port}"
        assert read(client) == "Parameter check error"
        assert ending(client) == (1008, "Parameter check error")
    (line,) = [line for line in server.events("parameters refused") if line["peer"] == peer]
    asked = dict(part.split("=") for part in query.split("&") if part)
    assert (line["specialKey"], line["support_gzip"]) == (asked.get("specialKey"), asked.get("support_gzip"))
    assert line["level"] == "warning"
    assert "not-for-the-log" not in json.dumps(line)


def test_a_client_without_both_parts_is_left_out(server: Server) -> None:
    """S2-10: who has no special key, or a flag that is none, is sent the error and no broadcast; all others are."""
    with join(server, "whole") as whole, open_client(server, "/broadcast", "support_gzip=0") as half:
        assert read(half) == "Parameter check error"
        with open_client(server, "/broadcast", "specialKey=whole&support_gzip=2") as other_half:
            assert read(other_half) == "Parameter check error"
            whole.send("to all")
            assert read(whole) == "to all"
            for refused in (half, other_half):
                with pytest.raises(ConnectionClosed, match="1008"):
                    read(refused)


def test_key_and_flag_are_the_identity(server: Server) -> None:
    """S2-05, S2-07: the same special key with and without gzip is two connections that live side by side; the same
    pair again is one of them.
    """
    with join(server, "pair", 0) as plain, join(server, "pair", 1) as small:
        plain.send("both")
        assert (read(plain), unzipped(read(small))) == ("both", "both")
        with join(server, "pair", 1) as newer:
            assert ending(small)[0] == 4500
            plain.send("still both")
            assert (read(plain), unzipped(read(newer))) == ("still both", "still both")


@pytest.mark.parametrize("same_worker", [True, False])
def test_the_newest_wins(server: Server, same_worker: bool) -> None:  # noqa: FBT001
    """S2-06: when a pair connects again the older connection is closed with 4500, in one worker and across two."""
    first, second = workers(server)
    then = first if same_worker else second
    with ExitStack() as stack:
        older, newer = (
            stack.enter_context(join(server, f"newest {same_worker}", worker=worker)) for worker in (first, then)
        )
        assert ending(older) == (4500, "replaced by a newer connection")
        newer.send("mine")
        assert read(newer) == "mine"


def test_a_successor_survives_the_cleaning_up(server: Server) -> None:
    """S2-08: after each of twenty takeovers, and after the loser has gone altogether, the newest connection is in the
    table: it receives, and the next one takes its place.
    """
    at_rest(server)
    with join(server, "witness") as witness, ExitStack() as stack:
        numbers = workers(server)
        older = stack.enter_context(join(server, "heir", worker=numbers[0]))
        for turn in range(20):
            port = older.port
            newer = stack.enter_context(join(server, "heir", worker=numbers[turn // 2 % 2]))
            assert ending(older)[0] == 4500
            assert close_log(server, port)["code"] == 4500
            witness.send(f"turn {turn}")
            assert (read(witness), read(newer)) == (f"turn {turn}", f"turn {turn}")
            older = newer
        assert server.metrics()["fastpush_broker_claims"] == 2
    eventually(lambda: server.metrics()["fastpush_broker_claims"] == 0, what="both keys free")


def test_a_special_key_may_hold_a_colon(server: Server) -> None:
    """S2-09: keys with colons, quotes and commas work like any other, and no two pairs are taken for one."""
    pairs = [("a:b", 0), ("a:b", 1), ("a:b:1", 0), (":", 0), ("a:0", 1), ('a","1', 0), ("a", 1), ("ключ:🎉", 1)]
    with ExitStack() as stack:
        clients = [stack.enter_context(join(server, key, flag)) for key, flag in pairs]
        clients[0].send("all of you")
        for (_, flag), client in zip(pairs, clients, strict=True):
            assert (unzipped(read(client)) if flag else read(client)) == "all of you"
        with join(server, "a:b", 1):
            assert ending(clients[1])[0] == 4500
            clients[0].send("all but one")
            assert read(clients[2]) == "all but one"


# -- what is said ------------------------------------------------------------------------------


def test_a_text_reaches_everybody(server: Server) -> None:
    """S2-11, S2-15: a text goes to all clients of both workers, its sender too, unchanged and as text."""
    texts = ["hello", "grüße 🎉", "two\nlines ", "", "x" * 60000]
    first, second = workers(server)
    with (
        join(server, "a", worker=first) as a,
        join(server, "b", worker=second) as b,
        join(server, "c", worker=first) as c,
    ):
        for text in texts:
            b.send(text)
        for client in (a, b, c):
            assert [read(client) for _ in texts] == texts


def test_binary_is_taken_and_ignored(server: Server) -> None:
    """S2-12: a binary message is accepted and goes nowhere: next comes what is said after it, and all are connected."""
    received = server.metrics()["fastpush_messages_received_total"]
    with join(server, "listens") as other, RawClient(server, "/broadcast", specialKey="binary") as client:
        client.send(build(BINARY, b"\x00\x01"), build(BINARY, b"text in disguise"), build(TEXT, b"after"))
        assert client.read() == Frame(TEXT, b"after")
        assert read(other) == "after"
        client.is_alive()
    assert server.metrics()["fastpush_messages_received_total"] == received + 3


def test_a_text_is_compressed_once(server: Server) -> None:
    """S2-13: each worker compresses a text once for all its clients that want gzip; they all get the same bytes,
    which hold no time of their making. A worker without such clients does not compress it at all.
    """
    first, second = workers(server)
    with ExitStack() as stack:

        def enter(worker: int, key: str, flag: int) -> Client:
            return stack.enter_context(join(server, key, flag, path="/counting", worker=worker))

        small = [enter(first, f"small {number}", 1) for number in range(5)]
        plain = [enter(worker, f"plain {worker} {number}", 0) for worker in (first, second) for number in range(2)]

        def counted(text: str) -> list[str | bytes]:
            plain[0].send(text)
            assert [read(client) for client in plain] == [text] * 4
            for client in (plain[0], plain[-1]):
                client.send(f"how often {text}")
            return [read(plain[0]), read(plain[-1])]

        assert counted("only one worker") == ["1", "0"]
        small += [enter(second, f"small too {number}", 1) for number in range(5)]
        assert counted("both workers") == ["1", "1"]
        received = [[read(client) for _ in range(2 if client in small[:5] else 1)][-1] for client in small]
        assert len(set(received)) == 1
        message = received[0]
        assert unzipped(message) == "both workers"
        assert isinstance(message, bytes) and message[4:8] == bytes(4)  # the header's time


def test_who_wants_gzip_gets_a_binary_frame(server: Server) -> None:
    """S2-14, S2-15: in the very frames: binary with gzip for support_gzip=1, the plain text for 0 and for no flag."""
    with (
        RawClient(server, "/broadcast", specialKey="g", support_gzip=1) as small,
        RawClient(server, "/broadcast", specialKey="g", support_gzip=0) as plain,
        RawClient(server, "/broadcast", specialKey="no flag") as silent,
    ):
        for client in (small, plain, silent):
            eventually(lambda port=client.port: claimed(server, port), what="the key is claimed")  # type: ignore[misc]
        small.text(KEPT)
        frame = small.read()
        assert (frame.opcode, frame.fin, frame.rsv) == (BINARY, True, 0)
        assert frame.payload[:3] == b"\x1f\x8b\x08" and gzip.decompress(frame.payload).decode() == KEPT
        assert plain.read() == silent.read() == Frame(TEXT, KEPT.encode())


def test_who_cannot_be_written_to_is_removed(server: Server) -> None:
    """S2-16: a client that is reset while it is written to is removed and logged with what it missed; the others get
    every text, and its key is free.
    """
    count = 40
    texts = [f"{number} ".ljust(20000, "x") for number in range(count)]
    at_rest(server)
    with join(server, "speaks") as speaker, join(server, "hears") as hearer:
        broken = RawClient(server, "/broadcast", receive_bytes=4096, specialKey="broken")
        eventually(lambda: claimed(server, broken.port), what="the key is claimed")
        for text in texts[: count // 2]:
            speaker.send(text)
        eventually(lambda: figures(server, broken.port).queued_messages, what="it is behind")
        broken.reset()
        for text in texts[count // 2 :]:
            speaker.send(text)
        for client in (speaker, hearer):
            assert [read(client) for _ in texts] == texts
        line = close_log(server, broken.port)
        assert line["code"] == 1006
        (dropped,) = [each for each in server.events("messages dropped") if each["connection"] == line["connection"]]
        assert dropped["reason"] == "lost" and dropped["messages"] > 0
        eventually(lambda: server.metrics()["fastpush_broker_claims"] == 2, what="its key is free")


# -- control frames -------------------------------------------------------------------------------


def test_pings_are_answered(server: Server, standstill: Standstill) -> None:
    """S2-17: a ping of any allowed length is answered with a pong of the same payload within a second."""
    with RawClient(server, "/broadcast", specialKey="pings") as client:
        for payload in (b"", b"ping", bytes(range(125))):
            began = time.monotonic()
            client.send(build(PING, payload))
            assert client.read() == Frame(PONG, payload)
            assert time.monotonic() - began < 1 + standstill.seconds


def test_a_close_frame_cleans_up(server: Server) -> None:
    """S2-18: after a close frame the connection, its key and its place among the receivers are gone."""
    at_rest(server)
    with join(server, "stays") as other, RawClient(server, "/broadcast", specialKey="leaves") as client:
        eventually(lambda: server.metrics()["fastpush_broker_claims"] == 2)
        client.send(build(CLOSE, close_payload(1001, b"bye")))
        assert client.read() == Frame(CLOSE, close_payload(1001))
        client.read_end()
        eventually(lambda: server.metrics()["fastpush_broker_claims"] == 1)
        assert connections(server) == 1
        delivered = server.metrics()["fastpush_deliveries_total"]
        other.send("to myself")
        assert read(other) == "to myself"
        eventually(lambda: server.metrics()["fastpush_deliveries_total"] > delivered)
        assert server.metrics()["fastpush_deliveries_total"] == delivered + 1


def test_the_four_callbacks(server: Server) -> None:
    """S2-19: a handler is told of the opening, each message, an error and the close, in that order, once each."""
    with open_client(server, "/recorder", "watch=1") as watcher:
        with open_client(server, "/recorder") as client:
            client.send("one")
            client.send("two")
            assert [read(watcher) for _ in range(3)] == ["open", "message one", "message two"]
        assert read(watcher) == "close 1000"
        with open_client(server, "/recorder") as client:
            client.send("fail")
            assert ending(client)[0] == 1011
        told = [read(watcher) for _ in range(3)]
        assert told == ["open", "error asked to fail", "close 1011"]


# -- the log --------------------------------------------------------------------------------------------


def test_the_log_file_has_levels(serve: Serve, tmp_path: Path) -> None:
    """S2-21: into a file go starts and closes at info, what was said and sent at debug (never its text), failures at
    error; at level info nothing of debug is there.
    """
    (tmp_path / "seed_broadcast.py").write_text(OWN)
    for level in ("debug", "info"):
        sections = {
            "log": {"level": level},
            "application": [
                application("Broadcast"),
                {"path": "/recorder", "handler": "seed_broadcast:Recorder", "anonymous": "loopback"},
            ],
        }
        server = serve(workers=2, sections=sections, environ={"PYTHONPATH": tmp_path})
        with open_client(server, "/broadcast", "specialKey=logged") as client:
            client.send("my own words")
            assert read(client) == "my own words"
            port = client.port
        with open_client(server, "/recorder") as failing:
            failing.send("fail")
            assert ending(failing)[0] == 1011
        closed = close_log(server, port)
        found = eventually(lambda server=server: server.events("handler failed"), what="the failure in the log")  # type: ignore[misc]
        assert server.events("ready")[0]["level"] == closed["level"] == "info"
        assert found[0]["level"] == "error" and "asked to fail" in found[0]["exception"]
        if level == "debug":
            said, sent = server.events("said")[0], eventually(lambda server=server: server.events("sent"))[0]  # type: ignore[misc]
            assert said["level"] == sent["level"] == "debug"
            assert said["connection"] == sent["connection"] == closed["connection"]
            assert (said["characters"], sent["connections"]) == (len("my own words"), 1)
        else:
            assert {line["level"] for line in server.events()} <= {"info", "warning", "error"}
            assert not server.events("said")
        assert "my own words" not in server.log_text()


# -- signed parameters ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that believes only parameters that a token vouches for."""
    sections = {
        "auth": {"mode": "jwt"},
        "auth.jwt.key": [{"secret": "a secret of the back-end, 32 bytes and more"}],
        "application": [application("Broadcast", anonymous="no", options={"signed": True})],
    }
    running = Server(tmp_path_factory.mktemp("signed"), workers=2, sections=sections)
    yield running
    running.stop()


def signed_query(server: Server, query: str, *options: str) -> str:
    """What `fastpush token --url` makes of these parameters."""
    url = server.ws_url(query, "/broadcast")
    result = run(*FASTPUSH, "token", "jack", "--url", url, *options, "--config", str(server.config_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{url}&token=")
    return result.stdout.strip().partition("?")[2]


def test_signed_parameters_are_taken(signed: Server) -> None:
    """S2-25: a URL as `fastpush token --url` signs it is opened at the upgrade, and its parameters count."""
    query = signed_query(signed, "specialKey=mine%3A1&support_gzip=1")
    with open_client(signed, "/broadcast", query) as client:
        client.send("signed")
        assert unzipped(read(client)) == "signed"


def test_changed_signed_parameters_are_refused(signed: Server) -> None:
    """S2-25: a signed parameter that was changed, removed or repeated, and a URL without token: 401, no connection."""
    query = signed_query(signed, "specialKey=mine&support_gzip=0")
    forged = [
        query.replace("specialKey=mine", "specialKey=yours"),
        query.replace("support_gzip=0", "support_gzip=1"),
        query.replace("specialKey=mine&", ""),
        f"specialKey=yours&{query}",
        f"{query}&specialKey=yours",
        query.partition("&token=")[0],
        query[:-4] + ("AAAA" if not query.endswith("AAAA") else "BBBB"),
    ]
    for each in forged:
        with pytest.raises(InvalidStatus) as refused:
            open_client(signed, "/broadcast", each)
        assert refused.value.response.status_code == 401, each
    assert not signed.events("claimed") or "yours" not in signed.log_text()


def test_unsigned_additions_do_not_count(signed: Server) -> None:
    """S2-25: a parameter that was added to a signed URL is not believed: no gzip by it, and no key."""
    query = signed_query(signed, "specialKey=added")
    with open_client(signed, "/broadcast", f"{query}&support_gzip=1") as client:
        client.send("plain")
        assert read(client) == "plain"
    keyless = signed_query(signed, "support_gzip=0")
    with open_client(signed, "/broadcast", f"{keyless}&specialKey=added") as client:
        assert read(client) == "Parameter check error"
        assert ending(client)[0] == 1008


def test_an_expired_signature_is_refused(signed: Server) -> None:
    """S2-25: a signed URL has a life; after it the answer is 401."""
    query = signed_query(signed, "specialKey=late&support_gzip=0", "--expires=-10")
    with pytest.raises(InvalidStatus) as refused:
        open_client(signed, "/broadcast", query)
    assert refused.value.response.status_code == 401
