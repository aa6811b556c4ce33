"""fastpush.broker.insight through the router: questions of operators, with workers that the test plays."""

import json
from typing import Any

import msgspec
import orjson
import pytest

from fastpush import __version__
from fastpush.broker import insight as insights
from fastpush.broker.inquiries import ANSWER_SECONDS
from fastpush.broker.insight import LIVE_KEY
from fastpush.cli.top_app import HOUR_BYTES
from fastpush.config import Admin, Config
from fastpush.metrics import Counters
from fastpush.protocol import bus
from fastpush.protocol.control import TOLD_BYTES_MAX
from fastpush.protocol.insight import (
    BUSIEST_TOLD,
    CONNECTIONS_TOLD,
    NOTES_TOLD,
    POINTS_MAX,
    PUSHES_TOLD,
    Busy,
    Held,
    Known,
    Note,
    Push,
    Top,
    Why,
    cut,
    pack_notes,
)
from fastpush.protocol.push import channel_key, user_key
from tests.unit.test_router import WALL_SECONDS, Broker, FakeLink

NEWS, JILL = user_key("jack", "news"), user_key("jill", "news")


def ask(broker: Broker, **question: Any) -> list[dict[str, Any]]:
    """The answers so far."""
    answers: list[dict[str, Any]] = []
    broker.router.insight.ask(orjson.dumps(question), lambda answer: answers.append(orjson.loads(answer)))
    return answers


def reply(broker: Broker, link: FakeLink, answer: Any) -> list[Any]:
    """Answer what a worker is asked; return what that was."""
    ((number, body),) = link.take(bus.INQUIRE)
    broker.say(link, bus.FOUND, number, answer if isinstance(answer, bytes) else msgspec.json.encode(answer))
    asked: list[Any] = orjson.loads(body)
    return asked


def held(worker: int, since: float = 10.0, number: int = 1) -> Held:
    return Held(
        id=f"id-{worker}-{number}", worker=worker, path="/ws", peer="10.0.0.1:5", transport="websocket", state="open",
        since_seconds=since, heard_seconds_ago=1, events=["news"], channels=[], keys=1, queued_messages=0,
        queued_bytes=0, worst_queued_bytes=0, dropped_messages=0, unhandled_messages=0,
    )  # fmt: skip


def push(worker: int, seconds: float) -> Push:
    return Push(seconds, "push", "news", 5, 1, worker, "delivered", 1)


def known(connections: list[Held] | None = None, pushes: list[Push] | None = None, more: int = 0) -> Known:
    return Known(connections=connections or [], connections_left_out=more, pushes=pushes or [])


def note(broker: Broker, link: FakeLink, *notes: Note) -> None:
    broker.say(link, bus.NOTES, 0, pack_notes(notes))


def opened(worker: int, user: str = "jack", seconds: float = WALL_SECONDS + 100) -> Note:
    return Note(seconds, "opened", user, worker, f"id-{worker}-1", "/ws", "10.0.0.1:5")


def why(broker: Broker, user: str = "jack") -> Why:
    """The report, for which no worker is waited."""
    answers = ask(broker, ask="why", user=user)
    broker.wait(ANSWER_SECONDS)
    return msgspec.convert(answers[0], Why)


def snapshot(slot: int = 0, connections: int = 5) -> bytes:
    gauges = {
        "measured_seconds": 100.0, "start_time_seconds": WALL_SECONDS, "slot": slot, "pid": 1000 + slot,
        "connections": connections, "slow_connections": 1, "loop_lag_seconds": 0.002, "send_queue_bytes": 70,
    }  # fmt: skip
    return orjson.dumps({"gauges": gauges, "counters": Counters().snapshot()})


# -- Why ----------------------------------------------------------------------------


def test_why_gathers_from_all_workers() -> None:
    """Connections by age and pushes by time, of every worker; the last answer ends it; it finds something."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    answers = ask(broker, ask="why", user="jack")
    assert reply(broker, one, known([held(1, since=20)], [push(1, 50)])) == ["why", "jack"]
    assert answers == []
    reply(broker, two, known([held(2, since=10)], [push(2, 40), push(2, 60)], more=3))
    (answer,) = answers
    report = msgspec.convert(answer, Why)
    assert (report.user, report.workers, report.missing) == ("jack", 2, 0)
    assert [each.worker for each in report.connections] == [2, 1]
    assert [each.seconds for each in report.pushes] == [40, 50, 60]
    assert report.connections_left_out == 3
    assert report.asked_seconds == report.since_seconds == broker.now + WALL_SECONDS
    assert report.findings and all(report.findings)


def test_why_counts_the_missing() -> None:
    """A worker that does not answer in time is counted, and what the others know is told."""
    broker = Broker()
    one, _ = broker.join(1), broker.join(2)
    answers = ask(broker, ask="why", user="jack")
    reply(broker, one, known([held(1)]))
    broker.wait(ANSWER_SECONDS - 0.001)
    assert answers == []
    broker.wait(0.001)
    report = msgspec.convert(answers[0], Why)
    assert (report.workers, report.missing, len(report.connections)) == (2, 1, 1)


def test_why_without_workers() -> None:
    """Notes are told also while nobody is connected to the broker."""
    broker = Broker()
    link = broker.join(1)
    note(broker, link, opened(1))
    broker.say(link, bus.GOODBYE)
    broker.router.on_closed(link)
    report = why(broker)
    assert (report.workers, report.missing, [each.kind for each in report.notes]) == (0, 0, ["opened", "closed"])


def test_why_is_bounded() -> None:
    """Of many connections and pushes the newest are told, the left out ones counted; of notes the last ones."""
    broker = Broker()
    links = [broker.join(number) for number in (1, 2)]
    answers = ask(broker, ask="why", user="jack")
    note(broker, links[0], *(opened(1, seconds=WALL_SECONDS + number) for number in range(100)))
    for worker, link in enumerate(links, 1):
        connections = [held(worker, since=number, number=number) for number in range(CONNECTIONS_TOLD)]
        reply(broker, link, known(connections, [push(worker, n) for n in range(PUSHES_TOLD)], more=1000))
    report = msgspec.convert(answers[0], Why)
    assert len(report.connections) == CONNECTIONS_TOLD and report.connections[-1].since_seconds == CONNECTIONS_TOLD - 1
    assert report.connections_left_out == 2000 + CONNECTIONS_TOLD
    assert [each.seconds for each in report.pushes] == [n // 2 for n in range(PUSHES_TOLD, 2 * PUSHES_TOLD)]
    assert 10 <= len(report.notes) <= NOTES_TOLD
    assert report.notes[-1].seconds == WALL_SECONDS + 99


def test_why_fits_the_control_socket() -> None:
    """Of many connections with many long names as many are told as one answer brings, the newest; all are counted."""
    broker = Broker()
    link = broker.join(1)
    names = [f"{number:0100}" for number in range(50)]
    connections = [
        msgspec.structs.replace(held(1, number, number), events=names, channels=names)
        for number in range(CONNECTIONS_TOLD)
    ]
    answers = ask(broker, ask="why", user="jack")
    reply(broker, link, Known(connections=connections, connections_left_out=3, pushes=[]))
    why = msgspec.convert(answers[0], Why)
    assert len(orjson.dumps(answers[0])) <= TOLD_BYTES_MAX
    assert why.connections == connections[-len(why.connections) :] and why.connections
    assert why.connections_left_out + len(why.connections) == CONNECTIONS_TOLD + 3


def test_why_tells_notes_of_the_user_and_of_strangers() -> None:
    """Others' notes are not told; a user that nobody knows has a report too."""
    broker = Broker()
    link = broker.join(1)
    stranger = Note(WALL_SECONDS + 100, "refused", "", 1, reason="token is empty")
    note(broker, link, opened(1), opened(1, "jill"), stranger)
    report = why(broker)
    assert (report.notes, report.strangers) == ([opened(1)], [stranger])
    unknown = why(broker, "nobody \N{GRINNING FACE}")
    assert (unknown.notes, unknown.strangers, unknown.connections) == ([], [stranger], [])
    assert unknown.findings


def test_notes_of_a_long_user() -> None:
    """A name that notes hold the beginning of is asked for as it is."""
    broker = Broker()
    link = broker.join(1)
    user = "x" * 500
    note(broker, link, opened(1, cut(user)))
    assert [each.kind for each in why(broker, user).notes] == ["opened"]


def test_notes_grow_old() -> None:
    """[admin] remember_seconds, also by reload; the report says since when all is known."""
    broker = Broker()
    link = broker.join(1)
    note(broker, link, opened(1))
    broker.router.configure(Config(admin=Admin(remember_seconds=60)))
    broker.now += 61
    broker.router.insight.end_second()
    report = why(broker)
    assert report.notes == []
    assert report.since_seconds == report.asked_seconds - 60
    assert broker.router.insight.figures()["notes"] == 0


# -- Workers that end ---------------------------------------------------------------


def test_a_drained_worker_leaves_no_connection_open() -> None:
    """Ends that it has left out, because there were too many in a second, are noted when it goes; the others once."""
    broker = Broker()
    broker.join(1)
    link = broker.join(2, NEWS)
    closed = Note(WALL_SECONDS + 100, "closed", "anne", 2, "id-2-1", code=1012, reason="restarting", by="server")
    note(broker, link, opened(2), opened(2, "anne"), closed)
    broker.say(link, bus.GOODBYE)
    broker.router.on_closed(link)
    report = why(broker)
    assert (report.lost, [each.kind for each in report.notes]) == ([], ["opened", "closed"])
    assert (report.notes[-1].code, report.notes[-1].by) == (1012, "server")
    assert why(broker, "anne").notes[1:] == [closed]


@pytest.mark.parametrize("order", ["link", "supervisor"])
def test_a_killed_worker_s_users_have_lost_it(order: str) -> None:
    """Whoever had a key there, and whoever is noted to be connected there: their connections have ended, noted."""
    broker = Broker()
    broker.join(1)
    link = broker.join(2, NEWS, channel_key("chat:1"))
    note(broker, link, opened(2), opened(2, "anne"), opened(1, "bill"))
    ends = [lambda: broker.router.on_closed(link), lambda: broker.router.on_gone(2)]
    for end in ends if order == "link" else reversed(ends):
        end()
    now = broker.now + WALL_SECONDS
    for user in ("jack", "anne"):
        report = why(broker, user)
        assert [(lost.worker, lost.seconds) for lost in report.lost] == [(2, now)]
        closed = report.notes[-1]
        assert (closed.kind, closed.worker, closed.connection, closed.code) == ("closed", 2, "id-2-1", 1006)
        assert (closed.reason, closed.by) == ("worker ended", "network")
    elsewhere = why(broker, "bill")
    assert (elsewhere.lost, [each.kind for each in elsewhere.notes]) == ([], ["opened"])


def test_a_killed_worker_s_user_of_whom_nothing_is_noted() -> None:
    """A key is enough: notes may not have come in time."""
    broker = Broker()
    broker.join(1)
    link = broker.join(2, JILL)
    broker.router.on_gone(2)
    broker.router.on_closed(link)
    report = why(broker, "jill")
    assert ([lost.worker for lost in report.lost], report.notes) == ([2], [])


def test_a_drained_worker_is_not_lost() -> None:
    """What it has noted at its end is kept, and nothing is added."""
    broker = Broker()
    broker.join(1)
    link = broker.join(2, NEWS)
    closed = Note(WALL_SECONDS + 101, "closed", "jack", 2, "id-2-1", code=1012, reason="restart", by="server")
    note(broker, link, opened(2), closed)
    broker.say(link, bus.GOODBYE)
    broker.router.on_closed(link)
    broker.router.on_gone(2)
    report = why(broker)
    assert (report.lost, report.notes) == ([], [opened(2), closed])


def test_a_broken_link_is_no_end() -> None:
    """A worker that comes back has lost nobody."""
    broker = Broker()
    link = broker.join(1, NEWS)
    note(broker, link, opened(1))
    broker.router.on_closed(link)
    broker.join(1, NEWS)
    report = why(broker)
    assert (report.lost, len(report.notes)) == ([], 1)


# -- Top and the last hour ----------------------------------------------------------


def busy(name: str, pushes: float = 1, deliveries: float = 1) -> Busy:
    return Busy(name, pushes, deliveries)


def test_top_merges_the_busiest() -> None:
    """Those of all workers, with their sums, by deliveries, then pushes; with figures and settings."""
    broker = Broker()
    broker.router.configure(Config(admin=Admin(actions=True)))
    one, two = broker.join(1), broker.join(2)
    broker.say(one, bus.SNAPSHOT, 0, snapshot(slot=1))
    broker.say(two, bus.SNAPSHOT, 0, snapshot(slot=0, connections=7))
    answers = ask(broker, ask="top")
    assert reply(broker, one, ([busy("jack", 1, 5), busy("jill", 3, 8)], [busy("chat:1")])) == ["busiest"]
    reply(broker, two, ([busy("jack", 1, 4), busy("anne", 2, 8)], []))
    top = msgspec.convert(answers[0], Top)
    assert top.users == [busy("jack", 2, 9), busy("jill", 3, 8), busy("anne", 2, 8)]
    assert top.channels == [busy("chat:1")]
    assert (top.actions, top.version, top.point.connections) == (True, __version__, 12)
    assert [(worker.slot, worker.worker, worker.connections) for worker in top.workers] == [(0, 2, 7), (1, 1, 5)]


def test_top_is_bounded() -> None:
    """However much workers tell, and whichever of them does not."""
    broker = Broker()
    one, _ = broker.join(1), broker.join(2)
    answers = ask(broker, ask="top")
    told = [busy(f"user-{number}", deliveries=number) for number in range(200)]
    reply(broker, one, (told, told))
    broker.wait(ANSWER_SECONDS)
    top = msgspec.convert(answers[0], Top)
    assert top.users == top.channels == told[::-1][:BUSIEST_TOLD]
    assert top.actions is False


def test_the_last_hour() -> None:
    """A point a second, the oldest first; none before the first second."""
    broker = Broker()
    assert ask(broker, ask="hour") == [{"points": []}]
    link = broker.join(1)
    broker.say(link, bus.SNAPSHOT, 0, snapshot())
    for _ in range(3):
        broker.now += 1
        broker.router.insight.end_second()
    ((answer),) = ask(broker, ask="hour")
    assert [(point[0], point[1]) for point in answer["points"]] == [
        (WALL_SECONDS + 101, 5), (WALL_SECONDS + 102, 5), (WALL_SECONDS + 103, 5),
    ]  # fmt: skip
    assert [len(found["points"]) for found in ask(broker, ask="hour", bytes=100)] == [1]


def test_an_hour_fits_the_control_socket() -> None:
    """Commands ask for no more points than one answer can bring them, however many workers and seconds there are."""
    broker = Broker()
    for worker in range(1, 7):
        broker.say(broker.join(worker), bus.SNAPSHOT, 0, snapshot())
    for _ in range(POINTS_MAX):
        broker.now += 1
        broker.router.insight.end_second()
    ((whole),), ((told),) = ask(broker, ask="hour"), ask(broker, ask="hour", bytes=HOUR_BYTES)
    assert len(orjson.dumps(whole)) > TOLD_BYTES_MAX >= len(orjson.dumps(told))
    assert told["points"] == whole["points"][-len(told["points"]) :] and len(told["points"]) > POINTS_MAX / 4


def test_live_figures_are_published_while_somebody_looks() -> None:
    """Each second once, with what the workers say, to those with watchers alone; no worker is asked for nobody."""
    broker = Broker()
    watched, other = broker.join(1), broker.join(2)
    broker.router.insight.end_second()
    assert watched.take(bus.INQUIRE) == other.take(bus.INQUIRE) == []
    broker.say(watched, bus.SUBSCRIBE, 0, LIVE_KEY)
    for second in range(2):
        broker.router.insight.end_second()
        reply(broker, watched, ([busy("jack", second + 1)], []))
        reply(broker, other, ([], []))
        assert other.take(bus.DELIVER) == []
        ((_, body),) = watched.take(bus.DELIVER)
        text = body[body.index(b'{"top"') :]
        assert msgspec.convert(json.loads(text)["top"], Top).users == [busy("jack", second + 1)]
        broker.say(watched, bus.COUNT, 0)
    broker.say(watched, bus.UNSUBSCRIBE, 0, LIVE_KEY)
    broker.router.insight.end_second()
    assert watched.take(bus.INQUIRE) == other.take(bus.INQUIRE) == []


def test_live_figures_wait_for_nobody() -> None:
    """A worker whose link is full is left out; the next figures come for it too."""
    broker = Broker()
    link = broker.join(1, LIVE_KEY)
    broker.router.insight.end_second()
    number = link.take(bus.INQUIRE)[0][0]
    link.is_full = True
    broker.say(link, bus.FOUND, number, b"[[],[]]")
    assert link.take(bus.DELIVER) == []
    link.is_full = False
    broker.router.insight.end_second()
    reply(broker, link, ([], []))
    assert len(link.take(bus.DELIVER)) == 1


# -- Questions that are wrong, or go wrong ------------------------------------------


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "empty document"),
        (b"{", "unexpected end"),
        (b"\xff", "str is not valid UTF-8"),
        (b"[" * 100_000, "depth limit exceeded"),
        (b'["why","jack"]', "this cannot be asked; there are why, top, hour, "),
        (b"null", "this cannot be asked"),
        (b"{}", "this cannot be asked"),
        (b'{"ask":"fly"}', "this cannot be asked"),
        (b'{"ask":["why"]}', "this cannot be asked"),
        (b'{"ask":"why"}', "user must be a text"),
        (b'{"ask":"why","user":7}', "user must be a text"),
        (b'{"ask":"why","user":""}', "user must not be empty"),
        (b'{"ask":"login","key":"k"}', "peer must be a text"),
        (b'{"ask":"session"}', "session must be a text"),
        (b'{"ask":"logout","session":null}', "session must be a text"),
    ],
)
def test_bad_questions(body: bytes, text: str) -> None:
    """Each is answered once, with what is wrong, and no worker is asked; over the bus as well."""
    broker = Broker()
    link = broker.join(1)
    answers: list[bytes] = []
    broker.router.insight.ask(body, answers.append)
    broker.say(link, bus.INSIGHT, 7, body)
    (answer,) = answers
    assert link.take(bus.ANSWER) == [(7, answer)]
    assert list(orjson.loads(answer)) == ["error"]
    assert text in orjson.loads(answer)["error"]
    assert link.take(bus.INQUIRE) == []


@pytest.mark.parametrize("question", [{"ask": "why", "user": "jack"}, {"ask": "top"}])
@pytest.mark.parametrize("answer", [b"{", b"[]", b"null", b"\xff"])
def test_a_worker_that_answers_nonsense_does_no_harm(question: dict[str, str], answer: bytes) -> None:
    """Who asked hears that it failed, the worker's link stands, and the next question is answered."""
    broker = Broker()
    link = broker.join(1)
    answers = ask(broker, **question)
    reply(broker, link, answer)
    (told,) = answers
    assert told["error"].startswith("the broker could not answer: ")
    assert why(broker).findings


@pytest.mark.parametrize("when", ["answered", "overdue"])
def test_an_answer_that_fails_does_no_harm(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to the link of the worker that answered last nor to the broker's own round; who asked hears of it."""
    broker = Broker()
    link = broker.join(1, NEWS)
    with monkeypatch.context() as patch:
        patch.setattr(insights, "findings", lambda _: 1 / 0)
        answers = ask(broker, ask="why", user="jack")
        if when == "answered":
            reply(broker, link, known())
        else:
            broker.wait(ANSWER_SECONDS)
    assert answers == [{"error": "the broker could not answer: ZeroDivisionError"}]
    assert why(broker).findings
    broker.push(broker.join(2), 5, NEWS)
    assert len(link.take(bus.DELIVER)) == 1


def test_live_figures_that_fail_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks is told so instead."""
    broker = Broker()
    link = broker.join(1, LIVE_KEY)
    with monkeypatch.context() as patch:
        patch.setattr(insights, "_merged", lambda _: 1 / 0)
        broker.router.insight.end_second()
        reply(broker, link, ([], []))
    ((_, body),) = link.take(bus.DELIVER)
    assert body.endswith(b'{"error":"the broker could not answer: ZeroDivisionError"}')


def test_questions_of_several_are_kept_apart() -> None:
    """Each is answered once, to who has asked it; a worker that ends meanwhile is not waited for."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    broker.say(one, bus.INSIGHT, 5, b'{"ask":"why","user":"jack"}')
    broker.say(two, bus.INSIGHT, 5, b'{"ask":"why","user":"jill"}')
    for number, body in one.take(bus.INQUIRE):
        assert orjson.loads(body)[0] == "why"
        broker.say(one, bus.FOUND, number, msgspec.json.encode(known()))
    assert one.take(bus.ANSWER) == []
    broker.router.on_closed(two)
    ((request, answer),) = one.take(bus.ANSWER)
    assert (request, orjson.loads(answer)["user"]) == (5, "jack")


# -- Sessions -----------------------------------------------------------------------

KEY = "correct-horse-battery"


def test_sessions_of_operators() -> None:
    """Logged in with the key, known by its id until it is logged out; another key after a reload ends all."""
    broker = Broker()
    broker.router.configure(Config(admin=Admin(key=KEY)))
    (wrong,) = ask(broker, ask="login", key=KEY + "x", peer="10.0.0.1")
    assert set(wrong) == {"refused", "retry_seconds"} and KEY not in wrong["refused"]
    sessions = [ask(broker, ask="login", key=KEY, peer="10.0.0.1")[0] for _ in range(2)]
    assert broker.router.insight.figures()["admin_sessions"] == 2
    for session in sessions:
        assert ask(broker, ask="session", session=session["session"]) == [{"csrf": session["csrf"]}]
    assert ask(broker, ask="logout", session=sessions[0]["session"]) == [{}]
    assert "refused" in ask(broker, ask="session", session=sessions[0]["session"])[0]
    assert "csrf" in ask(broker, ask="session", session=sessions[1]["session"])[0]
    broker.router.configure(Config(admin=Admin(key=KEY + "2")))
    assert "refused" in ask(broker, ask="session", session=sessions[1]["session"])[0]
