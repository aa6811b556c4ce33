"""fastpush.state.traces and the broker's part: what is traced, in which order events are read, and every bound."""

from typing import Any

import msgspec
import orjson
import pytest

from fastpush.broker.router import Router
from fastpush.broker.tracing import BEGIN_SECONDS
from fastpush.protocol import bus
from fastpush.protocol.bus import Status
from fastpush.protocol.control import TOLD_BYTES_MAX
from fastpush.protocol.insight import EVENTS_KEPT, Seen, Target, Trace, Traced, pack_seen, unpack_seen, unpack_targets
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from fastpush.state.swaps import Swaps
from fastpush.state.traces import (
    HELD_BACK_SECONDS,
    OVER_SECONDS,
    TRACES_MAX,
    UNREAD_SECONDS,
    Outbox,
    Targets,
    TraceError,
    Traces,
    name_of,
)
from tests.unit.test_router import WALL_SECONDS, Broker, FakeLink

JACK = user_key("jack", "news")


def event(seconds: float, step: str = "written") -> Traced:
    return Traced(0, seconds, "worker-1", step)


def seen(trace: str, *events: Traced, left_out: int = 0) -> Seen:
    return Seen([(trace, each) for each in events], {trace: left_out} if left_out else {})


# What is traced


def test_targets_by_keys() -> None:
    """A push belongs to the traces of each user it is for, one to everybody to all users', one to a channel to that
    channel's; a user whose name begins as another's is another one.
    """
    targets = Targets(
        [Target(id="j", user="jack", seconds=1), Target(id="j2", user="jack", seconds=1),
         Target(id="p", user="jac", seconds=1), Target(id="c", channel="news", seconds=1)]
    )  # fmt: skip
    assert targets.of_keys([JACK]) == ["j", "j2"]
    assert sorted(targets.of_keys([user_key("nobody", "e"), JACK, user_key("jac", "knews")])) == ["j", "j2", "p"]
    assert sorted(targets.of_keys([EVERYBODY])) == ["j", "j2", "p"]
    assert list(targets.of_keys([channel_key("news")])) == ["c"]
    assert not targets.of_keys([channel_key("new")]) and not targets.of_keys([user_key("jackn", "ews")])
    assert not Targets().of_keys([JACK]) and not Targets() and targets


def test_names() -> None:
    """What a push is called is its event, or its channel."""
    assert name_of([JACK], b"news") == "news"
    assert name_of([channel_key("a:b")], b"extras") == "a:b"
    assert name_of([EVERYBODY], b"news") == "news"


# On the way to the broker


def test_an_outbox_is_bounded_and_counts_what_is_left_out() -> None:
    """At most so many events a second, of all traces together; the others are counted by trace and told once."""
    outbox = Outbox("worker-7", 4, 10.0)
    for _ in range(3):
        outbox.add(["a", "b"], 10.0, "written", taken=9.5, what="news", connection="c", detail="d")
    found = outbox.take()
    assert [trace for trace, _ in found.events] == ["a", "b", "a", "b"]
    assert found.events[0][1] == Traced(0, 10.0, "worker-7", "written", 9_500_000, 500.0, "news", "c", "d")
    assert outbox.has_left_out and not outbox.take().events
    left = outbox.take_left_out(10.5)
    assert left.left_out == {"a": 1, "b": 1} and not outbox.has_left_out
    assert left.events[0][1] == Traced(0, 10.5, "worker-7", "left out", detail="1 event within a second")
    outbox.add(["a"], 11.0, "written")
    assert unpack_seen(pack_seen(outbox.take())).events[0][1].after_ms == 0


def test_long_names_are_cut() -> None:
    """What clients and back-ends say is told in part where it is long, and half surrogates are replaced."""
    outbox = Outbox("worker-7", 4, 10.0)
    outbox.add(["a"], 10.0, "refused", what="x" * 1000, detail="\ud800")
    (_, told), *_ = unpack_seen(pack_seen(outbox.take())).events
    assert len(told.what) == 200 and told.detail == "?"


# In the broker


def test_events_are_read_in_the_order_of_their_times() -> None:
    """Events of several processes, which come in any order, are read in the order of their times, numbered from 1."""
    traces = Traces()
    trace = traces.start(60, 100.0, user="u")
    traces.take(seen(trace, event(100.03), event(100.05)))
    traces.take(seen(trace, event(100.01), event(100.04)))
    assert traces.read(trace, 0, 100.06).events == []
    found = traces.read(trace, 0, 100.06 + HELD_BACK_SECONDS).events
    assert [(each.number, each.seconds) for each in found] == [(1, 100.01), (2, 100.03), (3, 100.04), (4, 100.05)]


def test_reading_again() -> None:
    """What was read without being acknowledged is read again; what is behind `after` comes once it is old enough."""
    traces = Traces()
    trace = traces.start(60, 100.0, channel="c")
    traces.take(seen(trace, event(100.0), event(100.1)))
    assert [each.number for each in traces.read(trace, 0, 101.0).events] == [1, 2]
    assert [each.number for each in traces.read(trace, 0, 101.0).events] == [1, 2]
    traces.take(seen(trace, event(101.0)))
    assert [each.number for each in traces.read(trace, 1, 102.0).events] == [2, 3]
    assert traces.read(trace, 3, 102.0).events == []


def test_what_nobody_reads_is_bounded() -> None:
    """A trace keeps so many events that were not read; others are counted, as are those that processes left out."""
    traces = Traces()
    trace = traces.start(60, 100.0, user="u")
    traces.take(seen(trace, *[event(100.0)] * (EVENTS_KEPT + 5), left_out=7))
    found = traces.read(trace, 0, 101.0)
    assert (len(found.events), found.left_out) == (EVENTS_KEPT, 12)
    traces.take(seen(trace, event(101.0)))
    assert traces.read(trace, 0, 102.0).left_out == 13
    traces.read(trace, EVENTS_KEPT, 102.0)
    traces.take(seen(trace, event(102.0)))
    assert [each.number for each in traces.read(trace, EVENTS_KEPT, 103.0).events] == [EVENTS_KEPT + 1]


def test_as_many_traces_as_may_be() -> None:
    """A trace too many is refused until one of the others has ended."""
    traces = Traces()
    ids = [traces.start(60, 100.0, user="u") for _ in range(TRACES_MAX)]
    assert len(set(ids)) == TRACES_MAX
    with pytest.raises(TraceError, match="4 traces already"):
        traces.start(60, 100.0, user="u")
    traces.stop(ids[0], 100.0)
    traces.start(60, 100.0, user="u")


@pytest.mark.parametrize(
    ("seconds", "target", "words"),
    [
        (0.5, {"user": "u"}, "1 to 600 seconds"),
        (601, {"user": "u"}, "1 to 600 seconds"),
        (60, {}, "of a user or of a channel"),
        (60, {"user": ""}, "of a user or of a channel"),
        (60, {"user": "u", "channel": "c"}, "of a user or of a channel"),
    ],
)
def test_a_trace_that_cannot_be(seconds: float, target: dict[str, str], words: str) -> None:
    """A trace has one target and bounded seconds."""
    with pytest.raises(TraceError, match=words):
        Traces().start(seconds, 100.0, **target)


def test_the_end_of_a_trace() -> None:
    """When its time is over nothing more is traced; its last events, under way then, are read with the end."""
    traces = Traces()
    trace = traces.start(3, 100.0, user="u")
    traces.tick(102.9)
    assert [(target.user, round(target.seconds, 1)) for target in traces.active(102.9)] == [("u", 0.1)]
    traces.tick(103.0)
    assert traces.active(103.0) == [] and not traces.read(trace, 0, 103.0).is_over
    traces.take(seen(trace, event(102.99)))
    end = traces.read(trace, 0, 103.0 + OVER_SECONDS)
    assert end.is_over and len(end.events) == 1


def test_a_trace_that_nobody_reads_ends() -> None:
    """Reading keeps a trace alive; without it the trace is forgotten, be it over or not."""
    traces = Traces()
    read, unread = traces.start(60, 100.0, user="u"), traces.start(60, 100.0, user="v")
    traces.read(read, 0, 100.0 + UNREAD_SECONDS - 1)
    traces.tick(100.0 + UNREAD_SECONDS)
    assert [target.id for target in traces.active(105.0)] == [read]
    with pytest.raises(TraceError, match="nobody has read it"):
        traces.read(unread, 0, 105.0)
    assert traces.take(seen(read, event(105.0))) and not traces.take(seen(unread, event(105.0)))


# In the router


def ask(broker: Broker, **question: Any) -> dict[str, Any]:
    answers: list[bytes] = []
    broker.router.insight.ask(orjson.dumps(question), answers.append)
    (answer,) = answers
    told: dict[str, Any] = orjson.loads(answer)
    return told


def read(broker: Broker, trace: str) -> list[Traced]:
    broker.wait(HELD_BACK_SECONDS + 0.001)
    return msgspec.convert(ask(broker, ask="traced", trace=trace, after=0), Trace).events


def traced_by(link: FakeLink) -> list[list[Target]]:
    return [unpack_targets(body) for _, body in link.take(bus.TRACE)]


def handlers(router: Router) -> dict[int, Any]:
    return {kind: router._handlers[kind] for kind in (bus.PUBLISH, bus.PUBLISH_ONCE)}


def test_workers_are_told_what_is_traced() -> None:
    """All workers are told at the start and at the end, and one that connects meanwhile; without a trace nobody is."""
    broker = Broker()
    one = broker.join(1, JACK)
    answer = ask(broker, ask="trace", user="jack", seconds=5)
    assert answer["ends_seconds"] == 105.0 + WALL_SECONDS
    two = broker.join(2)
    for link in (one, two):
        assert traced_by(link) == [[Target(id=answer["trace"], user="jack", seconds=5.0)]]
    assert ask(broker, ask="untrace", trace=answer["trace"]) == {}
    assert traced_by(one) == traced_by(two) == [[]]
    assert traced_by(broker.join(3)) == []


def test_a_trace_in_the_broker_ends_by_itself() -> None:
    """At the end of its time, or when nobody reads it, workers are told, and the router has its own handlers again."""
    for seconds, wait in ((2, 2.0), (60, UNREAD_SECONDS)):
        broker = Broker()
        before = handlers(broker.router)
        link = broker.join(1)
        ask(broker, ask="trace", channel="c", seconds=seconds)
        assert handlers(broker.router).keys() == before.keys() and handlers(broker.router) != before
        broker.wait(wait)
        assert [len(targets) for targets in traced_by(link)] == [1, 0]
        assert handlers(broker.router) == before


def test_what_the_broker_does_with_a_push() -> None:
    """Which workers get a push is told with the time since it was accepted; other users' pushes are not."""
    broker = Broker()
    one, two = broker.join(1, JACK), broker.join(2, JACK)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    broker.push(one, 1, JACK)
    broker.push(one, 2, user_key("jack", "else"))
    broker.push(one, 3, user_key("jill", "news"))
    assert len(two.take(bus.DELIVER)) == 1 and len(one.results()) == 2
    found = read(broker, trace)
    assert [(each.step, each.detail) for each in found] == [
        ("ordered", "2 workers want it: worker-1, worker-2"),
        ("ordered", "no worker wants it: nobody is registered for that"),
    ]
    first = found[0]
    assert (first.process, first.push, first.after_ms, first.what) == ("broker", 1_000_000, 99_000.0, "news")
    assert first.seconds == 100.0 + WALL_SECONDS


def test_a_push_that_the_broker_refuses() -> None:
    """A push that a worker needs that is overloaded is told as refused, and refused."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2, JACK)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    two.is_full = True
    broker.push(one, 1, JACK)
    assert one.results() == [(1, Status.OVERLOADED, 0, 0)]
    assert [(each.step, each.detail) for each in read(broker, trace)] == [
        ("refused", "a worker that this needs is overloaded")
    ]


def test_a_push_that_is_repeated() -> None:
    """A push with an Idempotency-Key is sent once, and the trace says so of the second one."""
    broker = Broker()
    one = broker.join(1, JACK)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    body = bus.encode_once(b"k") + bus.encode_publication([JACK], b"news", b"frame", taken_seconds=1.0)
    for request in (1, 2):
        broker.say(one, bus.PUBLISH_ONCE, request, body)
    assert len(one.take(bus.DELIVER)) == 1
    first, second = read(broker, trace)
    assert first.detail == "1 worker wants it: worker-1" and "Idempotency-Key" in second.detail


def test_a_killed_worker() -> None:
    """A worker that ends without a drain while the user has connections there is told; one that drains is not."""
    broker = Broker()
    one, two, three = broker.join(1, JACK, EVERYBODY), broker.join(2, JACK), broker.join(3, EVERYBODY)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    broker.say(two, bus.GOODBYE)
    for worker, link in ((1, one), (2, two), (3, three)):
        broker.router.on_gone(worker)
        broker.router.on_closed(link)
    assert [(each.step, each.detail.split(" with")[0]) for each in read(broker, trace)] == [
        ("closed", "worker-1 was lost")
    ]


def test_silent_workers() -> None:
    """Workers that do not say in time that they have begun are told once, in one line; those that say so, or have ended
    meanwhile, and those of a trace that has ended are not.
    """
    broker = Broker()
    links = {number: broker.join(number) for number in range(1, 5)}
    ended = ask(broker, ask="trace", user="jill")["trace"]
    ask(broker, ask="untrace", trace=ended)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    broker.say(links[1], bus.TRACED, 0, pack_seen(seen(trace, Traced(0, 100.0, "worker-1", "tracing"))))
    broker.router.on_gone(2)
    broker.router.on_closed(links[2])
    broker.wait(BEGIN_SECONDS - 0.5)
    assert [each.step for each in read(broker, trace)] == ["tracing"]
    broker.wait(0.5)
    late = broker.join(5)
    broker.wait(BEGIN_SECONDS)
    assert [(each.process, each.detail.split(":")[0]) for each in read(broker, trace) if each.step == "silent"] == [
        ("broker", "no answer yet from worker-3, worker-4")
    ]
    assert read(broker, ended) == [] and traced_by(late)


def test_a_worker_that_traces_what_nobody_asks_for() -> None:
    """A worker whose trace another broker has begun is told that there is none; events of one that is go on."""
    broker = Broker()
    link = broker.join(1)
    broker.say(link, bus.TRACED, 0, pack_seen(seen("gone", event(1.0))))
    assert traced_by(link) == [[]]
    trace = ask(broker, ask="trace", user="jack")["trace"]
    link.take(bus.TRACE)
    broker.say(link, bus.TRACED, 0, pack_seen(seen(trace, event(99.0))))
    assert traced_by(link) == [] and [each.step for each in read(broker, trace)] == ["written"]


@pytest.mark.parametrize(
    "question",
    [
        {"ask": "trace"},
        {"ask": "trace", "user": 5},
        {"ask": "trace", "user": "u", "seconds": "x"},
        {"ask": "trace", "user": "u", "seconds": 1e9},
        {"ask": "trace", "channel": ["c"]},
        {"ask": "traced", "trace": "none"},
        {"ask": "traced", "trace": 5},
        {"ask": "traced", "after": "x"},
    ],
)
def test_questions_that_cannot_be_answered(question: dict[str, Any]) -> None:
    """A wrong question is answered with what is wrong, and nothing is traced."""
    broker = Broker()
    link = broker.join(1)
    assert list(ask(broker, **question)) == ["error"]
    assert traced_by(link) == []


def test_telling_that_fails_harms_no_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the broker cannot tell, pushes are sent out as ever, and the trace ends."""

    def fail(*_: Any) -> str:
        raise RuntimeError("telling failed")

    broker = Broker()
    before = handlers(broker.router)
    one = broker.join(1, JACK)
    ask(broker, ask="trace", user="jack")
    monkeypatch.setattr("fastpush.broker.tracing.name_of", fail)
    broker.push(broker.join(2), 1, JACK)
    assert len(one.take(bus.DELIVER)) == 1
    broker.wait(0.02)
    assert [len(targets) for targets in traced_by(one)] == [1, 0] and handlers(broker.router) == before


def test_broker_events_are_bounded() -> None:
    """Of more pushes than events may be told in a second the rest is counted, and told."""
    broker = Broker()
    broker.router.tracing.configure(3)
    one = broker.join(1)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    for request in range(10):
        broker.push(one, request, JACK)
    broker.wait(0.02)
    told = read(broker, trace)
    assert [each.step for each in told].count("ordered") == 3
    assert ask(broker, ask="traced", trace=trace, after=0)["left_out"] == 7


def test_events_that_do_not_fit_come_with_the_next_answer() -> None:
    """An answer takes no more than the control socket does; what is left over is told next, also after the end."""
    broker = Broker()
    broker.router.tracing.configure(EVENTS_KEPT)
    one = broker.join(1, JACK)
    trace = ask(broker, ask="trace", user="jack")["trace"]
    events = [(trace, Traced(0, 100.0, "worker-1", "written", detail="x" * 200)) for _ in range(EVENTS_KEPT)]
    broker.say(one, bus.TRACED, 0, pack_seen(Seen(events, {})))
    ask(broker, ask="untrace", trace=trace)
    broker.wait(OVER_SECONDS + HELD_BACK_SECONDS)
    numbers: list[int] = []
    is_over = False
    while not is_over:
        answer = ask(broker, ask="traced", trace=trace, after=numbers[-1] if numbers else 0)
        assert answer["events"] and len(orjson.dumps(answer)) <= TOLD_BYTES_MAX
        numbers += [event[0] for event in answer["events"]]
        is_over = answer["is_over"]
    assert numbers == list(range(1, EVENTS_KEPT + 1))


# What stands aside


def test_swaps() -> None:
    """What was replaced is as before, be it an object's own attribute, one of its class, or an entry."""

    class Thing:
        def __init__(self) -> None:
            self.own = len

        def method(self) -> str:
            return "method"

    thing, entries, swaps = Thing(), {"a": 1}, Swaps()
    swaps.attribute(thing, "own", lambda own: lambda text: own(text) + 1)
    swaps.attribute(thing, "method", lambda method: lambda: f"traced {method()}")
    swaps.attribute(thing, "method", lambda method: lambda: f"twice {method()}")
    swaps.item(entries, "a", lambda value: value + 1)
    assert swaps and (thing.own("x"), thing.method(), entries) == (2, "twice traced method", {"a": 2})
    swaps.undo()
    assert not swaps and vars(thing) == {"own": len} and thing.method() == "method" and entries == {"a": 1}
