"""Live traces of the real server with two workers: each situation is told as it happens, in the order it happens in."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fastpush.control_client import ask
from fastpush.protocol.insight import Trace, Traced
from fastpush.state.traces import TRACES_MAX, UNREAD_SECONDS
from tests.applications import ending, open_client, read, workers
from tests.certificates import make_certificate, trusting
from tests.programs import FASTPUSH, Program, run
from tests.raw import RawClient
from tests.sdk import KEY, NodeClient, PythonClient, Way, sections, token
from tests.server import SCALE, Sections, Server, application, eventually
from tests.situations import forged, listen, push, push_from
from tests.streams import Stream, publish
from tests.wire import Reply, Wire
from tests.wire import push as wire_push

Serve = Callable[..., Server]
SECONDS = 10 * SCALE
SMALL_QUEUE = {"send_queue_messages": 10, "send_queue_bytes": 100_000}
MESSAGE = "m" * 8000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers for all tests that leave them as they were; each test has users and channels of its own."""
    more: Sections = {
        "limits": SMALL_QUEUE,
        "application": [application("Broadcast", anonymous="no")],
        "channels.room": {"subscribe": "users", "presence": True},
        "channels.drops": {"subscribe": "users", "slow_policy": "drop-oldest"},
        "admin": {"trace_events_per_second": 10_000},  # nothing is left out, however fast the machine is
    }
    running = Server(tmp_path_factory.mktemp("trace"), workers=2, sections=sections(**more))
    yield running
    running.stop()


def asked(server: Server, **question: Any) -> dict[str, Any]:
    """What the broker answers."""
    request = {"command": "insight", "question": question}
    answer: dict[str, Any] = ask(str(server.runtime_directory / "control"), request, SECONDS)["answer"]
    return answer


class Watch:
    """A trace that all workers have begun, and what it has brought. id: the trace's."""

    def __init__(self, server: Server, *, seconds: float = 60, **target: str) -> None:
        self.server = server
        self.id = asked(server, ask="trace", seconds=seconds, **target)["trace"]
        self.events: list[Traced] = []
        self.left_out = 0
        self.is_over = False
        self._number = 0
        self.find("tracing", count=len(workers(server)))
        self.events = [event for event in self.events if event.step != "tracing"]

    def look(self) -> None:
        """Read what has come."""
        trace = msgspec.convert(asked(self.server, ask="traced", trace=self.id, after=self._number), Trace)
        self.left_out, self.is_over = trace.left_out, trace.is_over
        for event in trace.events:
            assert event.number == self._number + 1
            self._number = event.number
            self.events.append(event)

    def until(self, condition: Callable[[], Any]) -> None:
        """Read on until something is so."""

        def is_so() -> Any:
            self.look()
            return condition()

        eventually(is_so, what="what the trace tells")

    def find(self, step: str, words: str = "", count: int = 1) -> list[Traced]:
        """Return the events of a step whose detail has these words, once there are so many."""

        def found() -> list[Traced]:
            return [event for event in self.events if event.step == step and words in event.detail]

        self.until(lambda: len(found()) >= count)
        return found()

    def story(self, push: int) -> list[tuple[str, str]]:
        """Return process and step of all that was told of one push."""
        return [(event.process, event.step) for event in self.events if event.push == push]

    def end(self) -> None:
        asked(self.server, ask="untrace", trace=self.id)


@pytest.fixture
def watch(server: Server) -> Iterator[Callable[..., Watch]]:
    """Begin traces that end with the test."""
    begun: list[Watch] = []

    def begin(**target: Any) -> Watch:
        begun.append(Watch(server, **target))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


Begin = Callable[..., Watch]


def pushed_at_once(server: Server, user: str, event: str, count: int) -> list[Reply]:
    """Push 0, 1, 2, … over one connection, of which nothing waits for a reply."""
    with Wire(server) as wire:
        wire.send(b"".join(wire_push(user, event, str(number), f"X-API-Key: {KEY}") for number in range(count)))
        return [wire.reply() for _ in range(count)]


def in_order(events: list[Traced]) -> bool:
    return [event.seconds for event in events] == sorted(event.seconds for event in events)


# -- the situations ------------------------------------------------------------------------


def test_never_connected(server: Server, watch: Begin) -> None:
    """A push to who is not there: accepted, wanted by no worker, sent to nobody."""
    trace = watch(user="nobody")
    assert push(server, "nobody", "chat", "x")["sent"] == 0
    (answered,) = trace.find("answered", "sent to 0 clients")
    assert [step for _, step in trace.story(answered.push)] == ["accepted", "ordered", "answered"]
    assert trace.find("ordered")[0].detail == "no worker wants it: nobody is registered for that"


@pytest.mark.parametrize("worker", [0, 1])
def test_wrong_token(server: Server, watch: Begin, worker: int) -> None:
    """A token that is not signed by us: refused, of the user that it claims to be, in whichever worker."""
    trace, number = watch(user=f"forged{worker}"), workers(server)[worker]
    with pytest.raises(InvalidStatus):
        open_client(
            server,
            "/ws",
            urlencode({"token": forged(f"forged{worker}"), "event": "chat"}),
            worker=number,
        )
    (refused,) = trace.find("refused", "claims")
    assert refused.process == f"worker-{number}"
    assert refused.detail.startswith("/ws from 127.0.0.1:") and "401 token has a wrong signature" in refused.detail


def test_expired_token(server: Server, watch: Begin) -> None:
    """A token that has expired: refused, of its user."""
    trace = watch(user="late")
    with pytest.raises(InvalidStatus):
        connect(server.ws_url(urlencode({"token": token("late", -60), "event": "chat"})))
    (refused,) = trace.find("refused")
    assert "401 token expired at" in refused.detail and "claims" not in refused.detail


def test_wrong_event(server: Server, watch: Begin) -> None:
    """A push to an event that nobody registered for reaches no worker; what the connection is in stands beside it."""
    one, two = workers(server)
    with listen(server, "picky", "news", worker=two):
        trace = watch(user="picky")
        (opened,) = trace.find("opened")
        assert "for news" in opened.detail and opened.process == f"worker-{two}"
        push_from(server, one, "picky", "New", "x")
        (answered,) = trace.find("answered", "sent to 0 clients")
        assert answered.what == "New" and trace.find("ordered", "no worker wants it")


def test_slow_and_disconnected(server: Server, watch: Begin) -> None:
    """A client that does not read: slow, messages queued, the one that did not fit dropped, closed with 1013."""
    with RawClient(server, "/ws", receive_bytes=4096, token=token("slow"), event="e"):
        trace = watch(user="slow")
        while not any(event.step == "closed" for event in trace.events):
            push(server, "slow", "e", MESSAGE)
            trace.look()
            assert len(trace.events) < 1500
        steps = [event.step for event in trace.events]
        assert steps.index("slow") < steps.index("queued") < steps.index("dropped") < steps.index("closed")
        assert trace.find("closed")[0].detail == "1013 too slow, by the server"
        queued, dropped = trace.find("queued"), trace.find("dropped")
        assert queued[-1].detail.startswith("8,004 bytes; 10 messages, ")
        assert dropped[0].detail == "8,004 bytes, not taken: the send queue is full" and dropped[0].push
        assert dropped[1].detail == "10 messages in all: slow"


def test_dropped(server: Server, watch: Begin) -> None:
    """Of a channel that drops its oldest publications for a slow client each that goes is named, and each that is
    written when it reads again.
    """
    with Way(server, 0) as way, closing(PythonClient(way, token=token("behind"))) as fast:
        fast.connect()
        with Stream(server, receive_bytes=4096, token=token("behind"), channel="drops:1") as slow:
            assert slow.status == 200
            trace = watch(channel="drops:1")
            sent = 0
            while not any(event.step == "dropped" for event in trace.events):
                publish(server, "drops:1", [sent, MESSAGE])
                sent += 1
                trace.look()
                assert sent < 1500
            dropped = trace.find("dropped")
            assert dropped[0].detail.endswith("bytes, the oldest one makes room") and dropped[0].push
            received = [number for number, _ in _until(slow, sent - 1)]
            trace.find("caught up")
            published = [event.push for event in trace.events if event.step == "accepted"]
            written = {event.push for event in trace.events if event.step == "written"}
            assert {published[number] for number in received} == written
            assert {event.push for event in trace.find("dropped") if event.push} == set(published) - written


def _until(stream: Stream, last: int) -> Iterator[Any]:
    """Yield what a stream of publications has, up to this one."""
    while True:
        event = stream.event()
        if event.name:  # a gap
            continue
        yield (found := event.json())
        if found[0] == last:
            return


def test_replaced(server: Server, watch: Begin) -> None:
    """Who loses its key to a newer connection: closed with 4500, after the newer one has opened."""
    one, two = workers(server)
    query = urlencode({"specialKey": "seat", "token": token("twin")})
    with open_client(server, "/broadcast", query, worker=one) as older:
        older.send("here")
        assert read(older) == "here"
        trace = watch(user="twin")
        with open_client(server, "/broadcast", query, worker=two) as newer:
            assert ending(older)[0] == 4500
            (closed,) = trace.find("closed")
            assert (closed.detail, closed.process) == (
                "4500 replaced by a newer connection, by the server", f"worker-{one}",
            )  # fmt: skip
            opened = trace.find("opened", count=2)[-1]
            assert f"from 127.0.0.1:{newer.port}" in opened.detail and opened.seconds <= closed.seconds


def test_origin_refused(server: Server, watch: Begin) -> None:
    """A page of another site: refused before anybody knows whose it is; each user's trace says so."""
    trace = watch(user="surfer")
    with pytest.raises(InvalidStatus):
        connect(server.ws_url(urlencode({"token": token("surfer"), "event": "e"})), origin="http://elsewhere.example")
    (refused,) = trace.find("refused")
    assert "403 this Origin is not in [server] origins; of an unknown user" in refused.detail


def test_worker_killed(serve: Serve) -> None:
    """A worker that is killed is told with its connections; its client comes back to the other, and is traced there."""
    server = serve(workers=2, sections=sections())
    one, two = workers(server)
    with listen(server, "orphan", "chat", worker=one):
        trace = Watch(server, user="orphan")
        os.kill(server.pid_of_worker(one), signal.SIGKILL)
        (closed,) = trace.find("closed")
        assert closed.process == "broker" and closed.detail.startswith(f"worker-{one} was lost with all its")
        with listen(server, "orphan", "chat", worker=two):
            assert trace.find("registered")[0].process == f"worker-{two}"
        # The successor traces as well.
        trace.until(lambda: set(workers(server)) - {one, two})
        (new,) = set(workers(server)) - {one, two}
        with listen(server, "orphan", "chat", worker=new):
            assert f"worker-{new}" in {event.process for event in trace.find("tracing")}
            trace.until(lambda: any(e.process == f"worker-{new}" and e.step == "registered" for e in trace.events))


def test_drained(serve: Serve) -> None:
    """A drain closes with 1012, which is told though its worker ends."""
    server = serve(workers=2, sections=sections())
    one, _ = workers(server)
    slot = next(process["slot"] for process in server.processes("worker") if process["number"] == one)
    with listen(server, "guest", "chat", worker=one) as client:
        trace = Watch(server, user="guest")
        with Program(*FASTPUSH, "drain", str(slot), "--config", str(server.config_path)) as drain:
            (closed,) = trace.find("closed")  # it is read all the while, or it would end
            assert ending(client)[0] == 1012
            assert drain.wait() == 0
        assert closed.process == f"worker-{one}" and closed.detail.startswith("1012")


def test_push_refused(serve: Serve) -> None:
    """A push that is too large, and one too many in a second, are refused with their status."""
    server = serve(workers=2, sections=sections(limits=SMALL_QUEUE | {"pushes_per_second": 20}))
    trace = Watch(server, user="popular")
    assert push(server, "popular", "chat", "x" * 150_000)["status"] == 413
    (refused,) = trace.find("refused", ": 413 ")
    assert refused.what == "chat" and "larger than a send queue" in refused.detail
    assert 429 in {reply.status for reply in pushed_at_once(server, "popular", "chat", 100)}
    assert "[limits] pushes_per_second" in trace.find("refused", ": 429 ")[0].detail


def test_all_well(server: Server, watch: Begin) -> None:
    """A push to two connections on two workers: each step in each process, in its order, with growing times, ended by
    the answer that the back-end got; what was pushed is not shown.
    """
    one, two = workers(server)
    with listen(server, "happy", "chat", worker=one) as first, listen(server, "happy", "chat", worker=two) as second:
        trace = watch(user="happy")
        assert len(trace.find("opened", count=2)) == 2
        start = time.time()

        def told_in_order() -> list[Traced]:
            """What is told of one more push; none if a process told its part too late to be in its place."""
            trace.events.clear()
            push_from(server, one, "happy", "chat", "secret")
            assert read(first) == read(second) == "secret"
            (answered,) = trace.find("answered")
            trace.until(lambda: [step for _, step in trace.story(answered.push)].count("written") == 2)
            story = [event for event in trace.events if event.push == answered.push]
            return story if in_order(story) else []

        story = eventually(told_in_order, what="each step in its place")
        answered = story[-1]
        assert [event.after_ms for event in story] == sorted(event.after_ms for event in story)
        assert trace.story(answered.push)[:2] == [(f"worker-{one}", "accepted"), ("broker", "ordered")]
        assert trace.story(answered.push)[-1] == (f"worker-{one}", "answered")
        for worker in (one, two):
            mine = [event for event in story if event.process == f"worker-{worker}"]
            steps = [event.step for event in mine if event.step in {"arrived", "written"}]
            assert steps == ["arrived", "written"]
        assert (answered.detail, answered.what) == ("sent to 2 clients", "chat")
        assert story[1].detail == f"2 workers want it: worker-{one}, worker-{two}"
        assert 0 < answered.after_ms < 1000 * SECONDS and start - 1 < answered.seconds < time.time() + 1
        assert len({event.connection for event in story if event.step == "written"}) == 2
        assert "secret" not in repr(trace.events)


# -- channels ------------------------------------------------------------------------------


def test_a_channel_with_subscribers_of_both_kinds(server: Server, watch: Begin) -> None:
    """A publication to a channel: written to a client of the protocol on one worker, and to a stream on the other."""
    one, two = workers(server)
    with Way(server, 0) as way, closing(PythonClient(way, token=token("reader"))) as client:
        client.connect()
        client.subscribe("room:1")
        with Stream(server, worker=1, token=token("listener"), channel="room:1") as stream:
            trace = watch(channel="room:1")
            assert sorted(event.process for event in trace.find("opened", count=2)) == [
                f"worker-{one}", f"worker-{two}",
            ]  # fmt: skip
            publish(server, "room:1", {"n": 1})
            assert stream.event().json() == {"n": 1}
            (answered,) = trace.find("answered", "sent to 2 clients")
            steps = trace.story(answered.push)
            assert steps[0][1:] == ("accepted",) and steps[1] == ("broker", "ordered")
            assert {(f"worker-{worker}", step) for worker in (one, two) for step in ("arrived", "written")} <= set(
                steps
            )
            assert {event.what for event in trace.events if event.push == answered.push} == {"room:1"}
        (closed,) = trace.find("closed")
        assert closed.process == f"worker-{two}"


def test_tls(serve: Serve, tmp_path: Path) -> None:
    """Over TLS a connection is traced as without."""
    certificate = make_certificate(tmp_path / "certificate.pem")
    tls = {"tls": {"certificate": str(certificate)}}
    server = serve(workers=2, tls=trusting(certificate), sections=sections(**tls))
    with connect(server.ws_url(urlencode({"token": token("safe"), "event": "e"})), ssl=server.tls) as client:
        trace = Watch(server, user="safe")
        assert push(server, "safe", "e", "x")["sent"] == 1 and read(client) == "x"
        assert trace.find("written")[0].detail == "3 bytes" and trace.find("answered", "sent to 1 client")


def test_a_user_in_channels(server: Server, watch: Begin) -> None:
    """A user's trace has the writes of channels that the user is in, from the connection's opening on."""
    trace = watch(user="member")
    with Stream(server, token=token("member"), channel="room:2"):
        publish(server, "room:2", 1)
        (written,) = trace.find("written", "bytes")[-1:]
        trace.until(lambda: any(event.what == "room:2" and event.step == "written" for event in trace.events))
        assert [event.step for event in trace.events][:2] == ["opened", "subscribed"] and written.connection


def test_who_unsubscribes(server: Server, watch: Begin) -> None:
    """Who leaves a channel and stays connected is told to the channel's trace, and to the user's."""
    with Way(server, 0) as way, closing(NodeClient(way, token=token("restless"))) as client:
        client.connect()
        channel, user = watch(channel="room:3"), watch(user="restless")
        client.subscribe("room:3")
        client.do("unsubscribe", "room:3")
        for trace in (channel, user):
            (left,) = trace.find("unsubscribed")
            (came,) = trace.find("subscribed")
            assert (left.what, left.connection) == ("room:3", came.connection)
        publish(server, "room:3", 1)
        (answered,) = channel.find("answered", "sent to 0 clients")
        assert ("broker", "ordered") in channel.story(answered.push)


def test_a_silent_worker(serve: Serve) -> None:
    """A worker that stands still is told as silent, so that nobody takes its silence for an answer; and as tracing once
    it goes on.
    """
    server = serve(workers=2, sections=sections())
    one, two = workers(server)
    pid = server.pid_of_worker(one)
    os.kill(pid, signal.SIGSTOP)
    try:
        trace = asked(server, ask="trace", user="u", seconds=60)["trace"]
        steps: list[Traced] = []

        def told(step: str) -> list[Traced]:
            found = msgspec.convert(asked(server, ask="traced", trace=trace, after=0), Trace).events
            steps[:] = found
            return [event for event in found if event.step == step]

        (silent,) = eventually(lambda: told("silent"), SECONDS)
        assert silent.process == "broker" and silent.detail.startswith(f"no answer yet from worker-{one}:")
        assert [event.process for event in steps if event.step == "tracing"] == [f"worker-{two}"]
    finally:
        os.kill(pid, signal.SIGCONT)
    begun = eventually(lambda: len(found := told("tracing")) == 2 and found, SECONDS)
    assert begun[-1].process == f"worker-{one}"


# -- bounds --------------------------------------------------------------------------------


def test_a_flood_is_bounded(serve: Serve) -> None:
    """Of more events than a second may have, the others are counted and told; all messages arrive."""
    server = serve(workers=2, sections=sections(admin={"trace_events_per_second": 20}))
    with listen(server, "flooded", "e") as client:
        trace = Watch(server, user="flooded")
        assert {reply.body for reply in pushed_at_once(server, "flooded", "e", 100)} == {b"message sent to 1 clients"}
        assert [read(client) for _ in range(100)] == [str(number) for number in range(100)]
        trace.find("left out")
        trace.until(lambda: trace.left_out)
        assert len(trace.events) < 400
        trace.end()


def test_duration_ends(server: Server) -> None:
    """A trace ends when its time is over, with what came last; then nothing more is told."""
    trace = Watch(server, seconds=1, user="brief")
    trace.until(lambda: trace.is_over)
    count = len(trace.events)
    push(server, "brief", "e", "x")
    trace.look()
    assert len(trace.events) == count and trace.is_over


def test_unread_ends(server: Server) -> None:
    """A trace that nobody reads is ended by the broker; as many others may be begun then."""
    ids = [asked(server, ask="trace", user="unread", seconds=60)["trace"] for _ in range(TRACES_MAX)]
    assert "4 traces already" in asked(server, ask="trace", user="fifth", seconds=60)["error"]
    start = time.monotonic()

    def next_one() -> str | None:
        return asked(server, ask="trace", user="fifth", seconds=60).get("trace")

    trace = eventually(next_one, UNREAD_SECONDS + 5, "a trace's end")
    assert time.monotonic() - start > UNREAD_SECONDS / 2
    assert "nobody has read it" in asked(server, ask="traced", trace=ids[0], after=0)["error"]
    asked(server, ask="untrace", trace=trace)


def test_a_broker_that_is_replaced(serve: Serve) -> None:
    """With its broker a trace is gone: who reads it is told, workers give it up, and another one can be begun."""
    server = serve(workers=2, sections=sections())
    with listen(server, "patient", "e") as client:
        trace = Watch(server, user="patient")
        (broker,) = server.processes("broker")
        os.kill(broker["pid"], signal.SIGKILL)
        eventually(lambda: [p["pid"] for p in server.processes("broker")] not in ([], [broker["pid"]]))
        eventually(lambda: push(server, "patient", "e", "x").get("sent") == 1)
        assert "ended" in asked(server, ask="traced", trace=trace.id, after=0)["error"]
        again = Watch(server, user="patient")
        assert read(client) == "x"
        push(server, "patient", "e", "y")
        assert again.find("answered", "sent to 1 client") and read(client) == "y"


# -- the command ---------------------------------------------------------------------------


def command(server: Server, *arguments: str) -> Program:
    return Program(*FASTPUSH, "trace", *arguments, "--config", str(server.config_path))


def test_the_command(server: Server) -> None:
    """A line an event as it comes; Ctrl-C ends it with a summary and exit code 0, and the trace in the server."""
    with listen(server, "seen\x1b[31m", "e\x1b[2J"), command(server, "seen\x1b[31m", "--for", "2m") as program:
        assert program.line_with("tracing user") == 'tracing user "seen\\u001b[31m" for 120 s; Ctrl-C ends it'
        assert "opened" in program.line_with("for ")
        push(server, "seen\x1b[31m", "e\x1b[2J", "x")
        lines = [program.line_with(step) for step in ("arrived", "written", "answered")]
        assert lines[-1].endswith('"e\\u001b[2J" sent to 1 client')
        assert all(character.isprintable() for line in lines for character in line)
        program.process.send_signal(signal.SIGINT)
        assert program.line_with("interrupted").startswith("interrupted: ")
        assert program.wait() == 0
    ids = [asked(server, ask="trace", user="u", seconds=60).get("trace") for _ in range(TRACES_MAX)]
    assert all(ids)
    for trace in ids:
        asked(server, ask="untrace", trace=trace)


def test_the_command_as_json(server: Server) -> None:
    """With --json each line is an event, and nothing else is printed; the end of its time ends the command."""
    with command(server, "--channel", "room:9", "--for", "4s", "--json") as program:
        while program.process.poll() is None:
            publish(server, "room:9", "secret")
            time.sleep(0.05)  # a publisher's pace: each has its lines
        assert program.wait() == 0
        events = []
        while not events or events[-1]["step"] != "answered":
            events.append(json.loads(program.line()))
    assert {"number", "seconds", "process", "step", "push", "after_ms", "what", "connection", "detail"} == set(
        events[0]
    )
    assert [event["what"] for event in events if event["step"] == "tracing"] == ["", ""]
    assert {event["what"] for event in events if event["step"] != "tracing"} == {"room:9"}
    assert "secret" not in repr(events)


def test_the_command_says_why_it_ends(server: Server) -> None:
    """The end of the time is told with the number of events."""
    result = run(*FASTPUSH, "trace", "brief", "--for", "1s", "--config", str(server.config_path))
    assert result.returncode == 0
    assert [line.split()[-4:] for line in result.stdout.splitlines()] == [["tracing", "0", "connections", "here"]] * 2
    assert result.stderr.splitlines()[-1] == "the time is over: 2 events, 0 left out"
