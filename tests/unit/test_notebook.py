"""fastpush.worker.notebook: what is noted of users and strangers, and which pushes are remembered, with bounds."""

import asyncio
import struct
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET, socket
from types import SimpleNamespace
from typing import Any

import pytest

from fastpush.applications import Application
from fastpush.config import Admin
from fastpush.errors import RegistrationError, RequestError, TokenRejected
from fastpush.metrics import Counters
from fastpush.protocol.insight import (
    BUSIEST_TOLD,
    BUSY_SECONDS,
    PUSHES_TOLD,
    TEXT_CHARACTERS_MAX,
    Busy,
    pack_notes,
    unpack_notes,
)
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from fastpush.worker import notebook as notebooks
from fastpush.worker.connection import Connection
from fastpush.worker.notebook import FEW_USERS, KEYS_REMEMBERED, NOTES_A_SECOND, REFUSALS_A_SECOND, Notebook
from tests.raw import CLOSE, build, close_payload
from tests.unit.test_connection import applied
from tests.unit.test_connection_limits import environment, run, until

WALL_SECONDS = 1_800_000_000.0  # what Unix time is ahead of the monotonic clock
NEWS = user_key("jack", "news")


class Clock(SimpleNamespace):
    """Stands for the module `time`."""

    def monotonic(self) -> float:
        return float(self.now)

    def time(self) -> float:
        return WALL_SECONDS + float(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(now=100.0)
    monkeypatch.setattr(notebooks, "time", clock)
    return clock


def make(**admin: Any) -> Notebook:
    return Notebook(3, Admin(**admin), Counters())


def connection(user: str = "jack", *keys: bytes) -> Any:
    """As much of a connection as is noted of it."""
    return SimpleNamespace(
        id="id-1", user=user, peer="10.0.0.1:5", mount=SimpleNamespace(path="/ws"),
        groups=[SimpleNamespace(key=key) for key in keys],
    )  # fmt: skip


def remember(notebook: Notebook, *keys: bytes, sent: int = 1, unconfirmed: int = 0, **told: Any) -> None:
    usual = {"source": "push", "event": "news", "message": b"hello", "taken": 0.0}
    notebook.remember(keys=list(keys) or [NEWS], sent=sent, unconfirmed=unconfirmed, **{**usual, **told})


def rejected(user: str, *, is_claimed: bool) -> TokenRejected:
    error = TokenRejected("token has a wrong signature")
    error.user, error.is_claimed = user, is_claimed
    return error


# -- Notes --------------------------------------------------------------------------


def test_a_note_says_whose_where_and_why(clock: Clock) -> None:
    """User, worker, connection, path and peer of each; of an end also its code, its reason, by whom, from what."""
    notebook = make()
    jack = connection("jack", EVERYBODY, NEWS, user_key("jack", ""), channel_key("chat:1"))
    notebook.opened(jack)
    clock.now += 1
    notebook.closed(jack, 3000, "bye", "client")
    notebook.dropped(jack, "oldest", 7)
    opened, closed, dropped = notebook.notes
    for note, kind, seconds in ((opened, "opened", 100), (closed, "closed", 101), (dropped, "dropped", 101)):
        assert (note.kind, note.seconds) == (kind, WALL_SECONDS + seconds)
        assert (note.user, note.worker, note.connection, note.path, note.peer) == (
            "jack", 3, "id-1", "/ws", "10.0.0.1:5",
        )  # fmt: skip
    assert (closed.code, closed.reason, closed.by, closed.what) == (3000, "bye", "client", "news, , chat:1")
    assert (dropped.reason, dropped.messages) == ("oldest", 7)


def test_who_is_nobody_s_has_no_end() -> None:
    """The end of a connection whose user never became known is nobody's, and neither are its messages."""
    notebook = make()
    notebook.closed(connection(""), 1008, "not registered", "server")
    notebook.dropped(connection(""), "oldest", 7)
    assert notebook.notes == []


def test_notes_of_a_second_are_bounded() -> None:
    """More than NOTES_A_SECOND are left out and counted, and the next second's notes begin with how many."""
    notebook = make()
    for _ in range(NOTES_A_SECOND + 5):
        notebook.opened(connection())
    assert len(notebook.notes) == NOTES_A_SECOND
    assert notebook._counters.notes_left_out == 5
    notebook.end_second()
    assert len(notebook.notes) == NOTES_A_SECOND, "the broker has not taken them"
    notebook.notes.clear()
    notebook.end_second()
    (note,) = notebook.notes
    assert (note.kind, note.user, note.reason) == ("refused", "", "5 more notes within a second were left out")
    notebook.end_second()
    assert notebook.notes == [note]
    assert notebook._counters.notes_left_out == 5


def test_a_flood_of_refusals_leaves_room() -> None:
    """Strangers and back-ends that are refused again and again fill REFUSALS_A_SECOND notes each; what happens to users
    is still noted.
    """
    notebook = make()
    for _ in range(10 * NOTES_A_SECOND):
        notebook.refused(TokenRejected("empty"), 401, "/ws", "10.0.0.9")
        notebook.turned_down(connection(""), 0, RegistrationError("no JSON"))
        notebook.push_refused(RequestError(400, "illegal_request", "no JSON"), "/push", "10.0.0.9")
    assert len(notebook.notes) == 2 * REFUSALS_A_SECOND
    notebook.opened(connection())
    assert notebook.notes[-1].kind == "opened"
    notebook.notes.clear()
    notebook.end_second()
    assert (
        notebook.notes[0].reason
        == f"{30 * NOTES_A_SECOND - 2 * REFUSALS_A_SECOND} more notes within a second were left out"
    )
    notebook.refused(TokenRejected("empty"), 401, "/ws", "10.0.0.9")
    assert len(notebook.notes) == 2, "another second has room again"


@pytest.mark.parametrize("is_claimed", [True, False])
def test_a_refused_token_names_its_user(is_claimed: bool) -> None:  # noqa: FBT001
    """Before a connection and on an open one, with the mark whether anything proves it."""
    notebook = make()
    error = rejected("jack", is_claimed=is_claimed)
    notebook.refused(error, 4501, "/ws", "10.0.0.1:5")
    notebook.turned_down(connection(""), 0, error, "news")
    for note, what in zip(notebook.notes, ("", "news"), strict=True):
        assert (note.kind, note.user, note.is_claimed, note.what) == ("refused", "jack", is_claimed, what)
        assert note.reason == "token has a wrong signature"
    assert [note.code for note in notebook.notes] == [4501, 0]
    assert [note.connection for note in notebook.notes] == ["", "id-1"]


def test_a_known_user_is_no_claim() -> None:
    """Who is connected as one user and shows a token of another is noted as who it is; so is a handshake's user."""
    notebook = make()
    error = rejected("jill", is_claimed=True)
    notebook.turned_down(connection("jack"), 103, error, "chat:1")
    notebook.refused(error, 1008, "/ws", "10.0.0.1:5", "jack")
    assert [(note.user, note.is_claimed) for note in notebook.notes] == [("jack", False)] * 2


def test_a_refusal_that_names_nobody_is_a_stranger_s() -> None:
    """Neither the text of the failure nor a token without a user says whose it is."""
    notebook = make()
    notebook.refused(rejected("", is_claimed=True), 401, "/ws", "10.0.0.1:5")
    notebook.turned_down(connection(""), 0, RegistrationError("the event is empty"))
    assert [note.user for note in notebook.notes] == ["", ""]


def test_operators_are_no_clients() -> None:
    """Who is not let in at the administration page is nobody's client."""
    notebook = make()
    for path in ("/admin", "/admin/live"):
        notebook.refused(RequestError(401, "unauthorized", "log in at /admin"), 401, path, "10.0.0.1:5")
    assert not notebook.notes


def test_a_flood_of_strangers_hides_no_user() -> None:
    """Refusals of known users and of back-ends' pushes have places of their own."""
    notebook = make()
    for _ in range(2 * REFUSALS_A_SECOND):
        notebook.refused(RequestError(403, "forbidden", "no"), 403, "/ws", "10.0.0.1:1")
    notebook.refused(rejected("anne", is_claimed=False), 401, "/ws", "10.0.0.1:2")
    notebook.push_refused(RequestError(413, "too_large", "no"), "/push", "10.0.0.1:3")
    assert [(note.user, note.code) for note in notebook.notes[-2:]] == [("anne", 401), ("", 413)]
    assert len(notebook.notes) == REFUSALS_A_SECOND + 2


def test_a_refused_push_is_noted_for_its_users() -> None:
    """Each of the first users of a list has a note, with status, reason and event; one to nobody is a stranger's."""
    notebook = make()
    error = RequestError(429, "too_many_pushes", "more than [limits] pushes_per_second")
    error.users, error.event = tuple(f"user-{number}" for number in range(50)), "news"
    notebook.push_refused(error, "/push", "10.0.0.2")
    assert [note.user for note in notebook.notes] == [f"user-{number}" for number in range(10)]
    note = notebook.notes[0]
    assert (note.kind, note.code, note.reason, note.what) == ("refused", 429, error.reason, "news")
    assert (note.by, note.path, note.peer, note.connection) == ("back-end", "/push", "10.0.0.2", "")
    notebook.notes.clear()
    notebook.push_refused(RequestError(400, "illegal_request", "no JSON"), "/push", "10.0.0.2")
    assert [note.user for note in notebook.notes] == [""]


def test_no_text_is_long_or_unspeakable() -> None:
    """What clients and back-ends say is cut, and half surrogates are replaced: any note passes the bus."""
    notebook = make()
    long = "\ud800" + "x" * 10_000
    jack = connection(long, *(user_key(long, f"{long}{number}") for number in range(10)))
    jack.mount.path = long
    notebook.opened(jack)
    notebook.closed(jack, 1000, long, "client")
    notebook.refused(rejected(long, is_claimed=True), 401, long, "peer")
    notebook.turned_down(connection(""), 0, RegistrationError(long), long)
    error = RequestError(400, "illegal_request", long)
    error.users, error.event = (long,), long
    notebook.push_refused(error, long, long)
    assert unpack_notes(pack_notes(notebook.notes)) == notebook.notes
    for note in notebook.notes:
        for text in (note.user, note.path, note.peer, note.reason, note.what):
            assert len(text) <= TEXT_CHARACTERS_MAX
            assert "\ud800" not in text


# -- Of real connections ------------------------------------------------------------


def ended(connection: Connection) -> tuple[int, str, str]:
    """Code, reason and who it was, of the one end that is noted."""
    opened, closed = connection.environment.notebook.notes
    assert (opened.kind, closed.kind, closed.user) == ("opened", "closed", "jack")
    return closed.code, closed.reason, closed.by


def leave(_: Connection, client: socket) -> None:
    client.sendall(build(CLOSE, close_payload(3000, b"bye")))


def reset(_: Connection, client: socket) -> None:
    client.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (leave, {(3000, "bye", "client")}),
        (lambda _, client: client.sendall(build(CLOSE)), {(1005, "", "client")}),
        (lambda _, client: client.shutdown(SHUT_WR), {(1006, "no close frame", "network")}),
        (reset, {(1006, "no close frame", "network"), (1006, "Connection reset by peer", "network")}),
        (lambda connection, _: connection.close(1000, "done"), {(1000, "done", "server")}),
        (lambda connection, _: connection.close(1008, "drop", "back-end"), {(1008, "drop", "back-end")}),
        (lambda connection, _: connection._abort("silent"), {(1006, "silent", "server")}),
    ],
)
def test_who_ended_a_connection(end: Any, told: set[Any]) -> None:
    """A client by its close frame, the network without one, the server, or a back-end; once, whatever comes later."""

    async def scenario() -> None:
        async with applied(Application) as (connection, client):
            connection.user = "jack"
            end(connection, client)
            await until(lambda: not connection.is_open)
            assert ended(connection) in told
            connection.close(1000, "again")
            client.close()
            await until(lambda: not connection.environment.connections)
            assert ended(connection) in told

    run(scenario())


def test_a_user_is_noted_once() -> None:
    """When it becomes known; a second registration is no second connection."""

    async def scenario() -> None:
        shared = environment()
        async with applied(Application, shared) as (connection, _):
            assert shared.notebook.notes == []
            for _ in range(3):
                connection.user = "jack"
                await asyncio.sleep(0)
            assert [(note.kind, note.connection) for note in shared.notebook.notes] == [("opened", connection.id)]

    run(scenario())


def test_a_user_that_becomes_known_after_the_end_is_not_noted() -> None:
    """An application may find out late who it was: what is noted as opened is closed some time."""

    async def scenario() -> None:
        shared = environment()
        async with applied(Application, shared) as (connection, _):
            connection.close()
            connection.user = "jack"
            assert shared.notebook.notes == []

    run(scenario())


# -- Pushes -------------------------------------------------------------------------


def test_a_push_and_what_became_of_it(clock: Clock) -> None:
    """When, from where, how large, for how many, how many took it, and how long it took; never what it said."""
    notebook = make()
    taken = clock.now
    clock.now += 0.0125
    remember(notebook, NEWS, taken=taken, sent=2)
    clock.now += 60
    (push,) = notebook.pushes("jack")
    assert push.seconds == pytest.approx(WALL_SECONDS + taken + 0.0125)
    assert (push.source, push.event, push.size_bytes, push.users, push.worker) == ("push", "news", 5, 1, 3)
    assert (push.outcome, push.sent, push.unconfirmed, push.duration_ms) == ("delivered", 2, 0, 12.5)
    assert push.message is None


@pytest.mark.parametrize(
    ("sent", "unconfirmed", "outcome"),
    [(2, 0, "delivered"), (2, 1, "unconfirmed"), (0, 1, "unconfirmed"), (0, 0, "nobody")],
)
def test_outcomes(sent: int, unconfirmed: int, outcome: str) -> None:
    """Delivered is what somebody took and all workers counted; all else is remembered in a place of its own."""
    notebook = make()
    remember(notebook, NEWS, sent=sent, unconfirmed=unconfirmed)
    assert [push.outcome for push in notebook.pushes("jack")] == [outcome]
    assert (len(notebook.delivered), len(notebook.undelivered)) == ((1, 0) if outcome == "delivered" else (0, 1))
    assert notebook.remembered == 1


def test_what_went_well_pushes_out_nothing_else(clock: Clock) -> None:
    """However many pushes are delivered to others, the one that nobody took is still told, in order of time."""
    notebook = make(remember_pushes=100)
    remember(notebook, user_key("jack", "first"), sent=0)
    for number in range(5000):
        clock.now += 0.001
        remember(notebook, user_key(f"user-{number}", "news"))
    remember(notebook, user_key("jack", "last"))
    assert [(push.event, push.outcome) for push in notebook.pushes("jack")] == [
        ("first", "nobody"), ("last", "delivered"),
    ]  # fmt: skip
    assert (len(notebook.delivered), len(notebook.undelivered)) == (100, 1)


def test_a_push_that_nobody_took_is_told_among_many_that_went_well(clock: Clock) -> None:
    """Of a user's pushes the last are told, but half of the places are for those that somebody will ask about."""
    notebook = make()
    for number in range(30):
        clock.now += 1
        remember(notebook, user_key("jack", f"lost-{number}"), sent=0)
    for _ in range(30):
        clock.now += 1
        remember(notebook, NEWS)
    told = notebook.pushes("jack")
    wanted = [*(f"lost-{number}" for number in range(20, 30)), *["news"] * (PUSHES_TOLD // 2)]
    assert [push.event for push in told] == wanted


def test_memory_is_bounded() -> None:
    """[admin] remember_pushes of each kind; less after a reload, and then the newest."""
    notebook = make(remember_pushes=200)
    for number in range(1000):
        remember(notebook, user_key("jack", f"event-{number}"))
        remember(notebook, user_key("jack", f"event-{number}"), sent=0)
    assert notebook.remembered == 400
    notebook.configure(Admin(remember_pushes=100))
    assert (len(notebook.delivered), len(notebook.undelivered)) == (100, 100)
    assert notebook.pushes("jack")[-1].event == "event-999"
    remember(notebook, NEWS)
    assert len(notebook.delivered) == 100
    notebook.configure(Admin(remember_pushes=300))
    remember(notebook, NEWS)
    assert len(notebook.delivered) == 101


def test_pushes_to_many_users_are_bounded_by_their_keys(clock: Clock) -> None:
    """Pushes to many users are told of each of them, and push out no others; the routing keys of all of them are
    bounded, the newest push stays whole, and the busiest are found without a look at them.
    """
    notebook = make(remember_pushes=200)
    remember(notebook, NEWS)
    for number in range(100):
        keys = [user_key(f"user-{number}-{each}", f"many-{number}") for each in range(3000)]
        remember(notebook, *keys)
    assert len(notebook.to_many) == KEYS_REMEMBERED // 3000
    assert [push.event for push in notebook.pushes("user-99-2999")] == ["many-99"]
    assert notebook.pushes("user-0-0") == [] and len(notebook.pushes("jack")) == 1
    assert notebook.busiest()[0] == [Busy("jack", 1 / BUSY_SECONDS, 1 / BUSY_SECONDS)]
    for _ in range(300):
        remember(notebook, *keys[: FEW_USERS + 1])
    assert len(notebook.to_many) == 200 and notebook.remembered == 201
    notebook.configure(Admin(remember_pushes=100))
    assert len(notebook.to_many) == 100


def test_the_last_ones_are_told(clock: Clock) -> None:
    """PUSHES_TOLD of a user, of both kinds together, the oldest first."""
    notebook = make()
    for number in range(100):
        clock.now += 1
        remember(notebook, user_key("jack", f"event-{number}"), sent=number % 2)
    told = notebook.pushes("jack")
    assert [push.event for push in told] == [f"event-{number}" for number in range(100 - PUSHES_TOLD, 100)]


def test_messages_are_shown_only_where_that_is_set() -> None:
    """[admin] show_messages, also by reload: what was pushed while it was off is never shown, nor anything after."""
    notebook = make()
    remember(notebook, NEWS, message=b"before")
    notebook.configure(Admin(show_messages=True))
    remember(notebook, NEWS, message="ö".encode() * 1000)
    remember(notebook, NEWS, message=b"\xff\x00")
    before, long, binary = notebook.pushes("jack")
    assert (before.message, before.size_bytes) == (None, 6)
    assert (long.message, long.size_bytes) == ("ö" * (TEXT_CHARACTERS_MAX - 1) + "…", 2000)
    assert binary.message == "\ufffd\x00"
    notebook.configure(Admin())
    assert [push.message for push in notebook.pushes("jack")] == [None] * 3


def test_a_push_to_several_users_is_each_one_s() -> None:
    """It is told to each of them, with how many they were, and to nobody else."""
    notebook = make()
    users = ["jack", "jill", "jäck \N{GRINNING FACE}", "\ud800"]
    remember(notebook, *(user_key(user, "news") for user in users), sent=3)
    for user in users:
        (push,) = notebook.pushes(user)
        assert (push.users, push.sent, push.source) == (4, 3, "push")
    for user in ("", "jac", "jackn", "jacknews", "4:jack"):
        assert notebook.pushes(user) == []


def test_a_push_to_everybody_is_everyone_s() -> None:
    """Whoever is asked about; users: 0 stands for all."""
    notebook = make()
    remember(notebook, EVERYBODY, sent=1000)
    for user in ("jack", "jill"):
        (push,) = notebook.pushes(user)
        assert (push.source, push.users, push.sent) == ("push all", 0, 1000)


def test_a_channel_s_messages_are_no_user_s() -> None:
    """Channels are not asked for by user, whatever their names."""
    notebook = make()
    remember(notebook, channel_key("u4:jacknews"), source="application", event="")
    assert notebook.pushes("jack") == []


# -- The busiest --------------------------------------------------------------------


def test_the_busiest_users_and_channels(clock: Clock) -> None:
    """A second, over the last BUSY_SECONDS, the most deliveries first; of both kinds of pushes, and of all events."""
    notebook = make()
    remember(notebook, NEWS, sent=1000)
    clock.now += BUSY_SECONDS + 0.1
    for number in range(10):
        remember(notebook, NEWS, sent=1)
        remember(notebook, user_key("jack", "mail"), sent=number % 2)
        remember(notebook, user_key("jill", "news"), sent=0)
        remember(notebook, channel_key("chat:1"), sent=100)
        remember(notebook, EVERYBODY, sent=5000)
    remember(notebook, user_key("anne", "news"), user_key("bill", "news"), sent=400)
    users, channels = notebook.busiest()
    assert users[:2] in (
        [Busy("anne", 0.2, 40), Busy("bill", 0.2, 40)],
        [Busy("bill", 0.2, 40), Busy("anne", 0.2, 40)],
    )
    assert users[2:] == [Busy("jack", 4, 3), Busy("jill", 2, 0)]
    assert channels == [Busy("chat:1", 2, 200)]


def test_the_busiest_of_many(clock: Clock) -> None:
    """No more are told than another worker's could change the order of, and rates stay right among many pushes."""
    notebook = make(remember_pushes=100_000)
    for number in range(10_000):
        clock.now += 0.001
        remember(notebook, user_key(f"user-{number % 100:02}", "news"), sent=1 + (number % 100 == 7))
    users, channels = notebook.busiest()
    assert len(users) == 2 * BUSIEST_TOLD and channels == []
    assert users[0].name == "user-07"
    assert users[0].pushes == pytest.approx(10, rel=0.1)
    assert users[0].deliveries == pytest.approx(20, rel=0.1)


def test_nothing_is_busy(clock: Clock) -> None:
    """Without pushes, and when the last one was long ago."""
    notebook = make()
    assert notebook.busiest() == ([], [])
    remember(notebook, NEWS)
    clock.now += BUSY_SECONDS + 0.1
    assert notebook.busiest() == ([], [])
