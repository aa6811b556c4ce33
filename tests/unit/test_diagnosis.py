"""fastpush.broker.diagnosis: what is said follows from the report, and what explains most comes first."""

import time
from typing import Any

import msgspec
import pytest

from fastpush.broker.diagnosis import findings
from fastpush.broker.words import length
from fastpush.protocol.insight import Held, Lost, Note, Push, Why

NOW = 1_800_000_000.0
SINCE = NOW - 3000
NETWORK = {"code": 1006, "by": "network"}


def clock(ago: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(NOW - ago))


def why(**known: Any) -> Why:
    """A report of user 42, of which nothing is known but what is given."""
    nothing: dict[str, Any] = {key: [] for key in ("connections", "notes", "strangers", "pushes", "lost", "findings")}
    nothing |= {"connections_left_out": 0, "workers": 2, "missing": 0}
    return Why(**{"user": "42", "asked_seconds": NOW, "since_seconds": SINCE, **nothing, **known})


def held(name: str = "a", ago: float = 600, **known: Any) -> Held:
    """An open connection that is registered for "chat"."""
    usual: dict[str, Any] = {
        "worker": 1, "path": "/ws", "peer": "10.0.0.1:5000", "transport": "websocket", "state": "open",
        "heard_seconds_ago": 2, "events": ["chat"], "channels": [], "keys": 1, "queued_messages": 0,
        "queued_bytes": 0, "worst_queued_bytes": 0, "dropped_messages": 0, "unhandled_messages": 0,
    }  # fmt: skip
    return Held(**{**usual, "id": name, "since_seconds": NOW - ago, **known})


def note(kind: Any, ago: float, connection: str = "", **told: Any) -> Note:
    usual = {"path": "/ws", "peer": "10.0.0.1:5000"}
    return Note(NOW - ago, kind, told.pop("user", "42"), told.pop("worker", 1), connection, **{**usual, **told})


def push(ago: float, event: str = "chat", sent: int = 1, **told: Any) -> Push:
    outcome = "delivered" if sent else "nobody"
    usual: dict[str, Any] = {"source": "push", "size_bytes": 5, "users": 1, "worker": 2, "outcome": outcome}
    return Push(NOW - ago, event=event, sent=sent, duration_ms=1.25, **{**usual, **told})


def push_refusal(ago: float, code: int, reason: str, **told: Any) -> Note:
    return note("refused", ago, path="/push", code=code, reason=reason, by="back-end", **{"what": "chat", **told})


def said(report: Why) -> list[str]:
    """The findings, each whole, none twice."""
    found = findings(report)
    assert found and len(set(found)) == len(found)
    for text in found:
        assert text.isprintable() and text == text.strip() and "  " not in text and text[-1] in ".?", text
        assert not {"..", " .", "?.", ".?", "( "} & {text[i : i + 2] for i in range(len(text))}, text
    return found


def test_never_connected() -> None:
    """Who has never been here is said to be unknown, since when that is known, and what to look at."""
    (text,) = said(why())
    assert text.startswith('User "42" is not connected, and no connection of it was opened, closed or refused')
    assert f"since {clock(3000)} (50 min ago); nothing older is known" in text


def test_a_long_user_is_named_in_short() -> None:
    """A finding stays a sentence, and a report small, whoever is asked for."""
    (text,) = said(why(user="x" * 60_000))
    assert text.startswith('User "xxxx') and len(text) < 600


def test_all_well() -> None:
    """Who is connected and gets its pushes is said to, with the last one."""
    (text,) = said(why(connections=[held()], pushes=[push(50), push(9, sent=1)]))
    assert text.startswith(
        f'User "42" is connected: 1 connection since {clock(600)} (10 min ago), registered for "chat".'
    )
    assert (
        f'The last delivered push with event "chat" came at {clock(9)} (9.0 s ago): 1 connection took it in 1.2 ms.'
        in text
    )
    assert "only the client can tell" in text


def test_all_well_without_a_push() -> None:
    """That no push is remembered is said as no more than that; of two connections the oldest counts."""
    (text,) = said(why(connections=[held(), held("b", 60, events=["b", "a"])]))
    assert "2 connections, the oldest one since" in text and 'registered for "a", "b", "chat"' in text
    assert text.endswith("None of the pushes that this host remembers ([admin] remember_pushes) has reached it.")


@pytest.mark.parametrize(
    ("users", "words"),
    [(3, "it went to 3 users: 2 connections took it"), (0, "it went to everybody: 2 connections took it")],
)
def test_a_push_to_many(users: int, words: str) -> None:
    """How many of a user's own connections took a push to many is not claimed to be known."""
    assert words in said(why(connections=[held()], pushes=[push(5, sent=2, users=users)]))[0]


def test_wrong_event() -> None:
    """A push to an event that nobody is registered for comes before what is well, and the likely one is named."""
    first, second = said(why(connections=[held()], pushes=[push(9, "Chat", 0), push(8, "Chat", 0)]))
    assert first.startswith(f'2 pushes to user "42" with event "Chat", the last one at {clock(8)}')
    assert first.endswith('It is registered for "chat": "chat" differs in upper and lower case only.')
    assert second.startswith('User "42" is connected')


@pytest.mark.parametrize(
    ("event", "hint"),
    [
        ("chat ", '"chat" differs in spaces only.'),
        ("chatt", 'perhaps "chat" was meant.'),
        ("zzz", 'It is registered for "chat".'),
    ],
)
def test_event_hints(event: str, hint: str) -> None:
    """Near misses are named, and nothing is made up for others."""
    assert said(why(connections=[held()], pushes=[push(9, event, 0)]))[0].endswith(hint)


def test_event_of_a_list() -> None:
    """Of a push to several users its registrations tell whether it went past the user, where all of them are known."""
    pushes = [push(9, "news", 5, users=10)]
    assert (
        "reached none of its connections: none was registered for that event"
        in said(why(connections=[held()], pushes=pushes))[0]
    )
    assert len(said(why(connections=[held(keys=51)], pushes=pushes))) == 1
    assert len(said(why(connections=[held(path="news")], pushes=pushes))) == 1


def test_push_as_a_connection_is_closed() -> None:
    """A push that reached nobody because its connection was just then closed is not taken for one to a wrong event."""
    notes = [note("opened", 60, "a"), note("closed", 9, "a", code=1013, by="server", reason="too slow", what="a, chat")]
    first, second = said(why(notes=notes, pushes=[push(9.01, sent=0)]))
    assert "too slow" in first and second.startswith('1 push to user "42" came while it was not connected')
    wrong = said(why(notes=notes, pushes=[push(9.01, "Chat", sent=0)]))[1]
    assert wrong.endswith(
        'Its last connection was registered for "a", "chat": "chat" differs in upper and lower case only.'
    )


def test_registered_later() -> None:
    """An event that was registered after the push is said to be registered now."""
    first, _ = said(why(connections=[held()], pushes=[push(9, sent=0)]))
    assert first.endswith("It has registered for it since.")


def test_channels_only() -> None:
    """Who is in channels alone is told apart from who has registered for events."""
    connections = [held(events=[], channels=["chat:42"], path="/connection/websocket")]
    first, second = said(why(connections=connections, pushes=[push(9, sent=0)]))
    assert "It is registered for no event now. POST /api/publish reaches its channels, not POST /push." in first
    assert 'in channel "chat:42"' in second


def test_away() -> None:
    """Pushes from before the user came are said to have reached nobody, and when it came."""
    first, _ = said(why(connections=[held(ago=5)], pushes=[push(30, sent=0), push(25, sent=0)]))
    assert first.startswith('2 pushes to user "42" came while it was not connected, and reached nobody')
    assert first.endswith("It connected 20 s later.")


def test_late_registration_by_message() -> None:
    """A connection counts from when its user became known."""
    report = why(connections=[held("a", 60)], notes=[note("opened", 5, "a")], pushes=[push(30, sent=0)])
    assert "came while it was not connected" in said(report)[0]


def flaps(count: int, newest: float) -> list[Note]:
    """A user that comes for half of each second, so often; the last time ended `newest` seconds ago."""
    times = [newest + count - number for number in range(1, count + 1)]
    return [
        each
        for number, ago in enumerate(times)
        for each in (
            note("opened", ago + 0.5, f"c{number}"),
            note("closed", ago, f"c{number}", code=1000, by="client", what="chat"),
        )
    ]


@pytest.mark.parametrize("first", [-20, -21, -19])
def test_pushes_from_before_a_users_oldest_note(first: int) -> None:
    """Of a user whose newer notes have pushed out the older nobody knows whether it was connected before."""
    notes = [*flaps(12, 5)[first:], *([note("opened", 4, "last")] if first == -19 else [])]
    pushes = [push(40, "Chat", 0), push(39, sent=0), push(5.2, "Chat", 0)]
    texts = said(why(since_seconds=notes[0].seconds, notes=notes, pushes=pushes))
    assert not any("came while" in text or ("2 pushes" in text and "none was registered" in text) for text in texts)
    right, wrong = (text for text in texts if "not known any more" in text)
    assert right.startswith(f'1 push to user "42" with event "chat" reached nobody, at {clock(39)} (39 s ago)')
    assert wrong.startswith(f'1 push to user "42" with event "Chat" reached nobody, at {clock(40)} (40 s ago)')
    assert '"chat" differs in upper and lower case only.' in wrong
    assert f"what happened to it is known since {clock(NOW - notes[0].seconds)}." in right
    assert any('A push to user "42" with event "Chat"' in text and "none was registered" in text for text in texts)


def test_pushes_from_before_a_new_broker() -> None:
    """What was before anything is known is not said to be so or so: who has gone since may have been here."""
    _, second = said(why(since_seconds=NOW - 20, pushes=[push(30, sent=0), push(25, sent=0)]))
    assert second.startswith('2 pushes to user "42" with event "chat" reached nobody, the last one at')
    assert second.endswith(f"is not known any more: what happened to it is known since {clock(20)}.")
    assert "came while it was not connected" in said(why(since_seconds=NOW - 20, pushes=[push(9, sent=0)]))[1]
    here = said(why(since_seconds=NOW - 20, connections=[held(ago=60)], pushes=[push(30, "Chat", 0)]))
    assert "none was registered for that event" in here[0]


def test_more_pushes_than_a_report_has() -> None:
    """Where the report may have left some out, their number is said to be the least."""
    pushes = [push(60 - number, sent=0) for number in range(20)]
    assert said(why(pushes=pushes))[1].startswith('At least 20 pushes to user "42" came while it was not connected')
    assert said(why(pushes=pushes[:9]))[1].startswith('9 pushes to user "42" came')
    assert said(why(connections=[held(events=["a"])], pushes=pushes))[0].startswith('At least 20 pushes to user "42"')
    closed = [note("opened", 90, "a"), note("closed", 80, "a", **NETWORK), note("opened", 5, "b")]
    assert (
        "later, and at least 20 pushes meanwhile reached nobody"
        in said(why(notes=closed, connections=[held("b", 5)], pushes=pushes))[0]
    )
    many = [push(60 - number, "news", 5, users=10) for number in range(20)]
    assert said(why(connections=[held()], pushes=many))[0].startswith("At least 20 pushes")


CLOSED: list[tuple[dict[str, Any], str, str]] = [
    ({"code": 1000, "by": "client"}, "the client has left", "It has not come back since."),
    ({"code": 1001, "by": "client"}, "the client has left", "not kept"),
    (NETWORK, "no close frame came", "though clients should"),
    ({"code": 1006, "by": "server", "reason": "pong time-out"}, "no longer answered pings", "pong_timeout_seconds"),
    ({"code": 1008, "by": "back-end", "reason": "dropped"}, "by POST /drop", "who asked for that"),
    ({"code": 3503, "by": "back-end"}, "a disconnect of the server API", "clients do not by themselves"),
    ({"code": 1008, "by": "server", "reason": "message rate"}, "[limits] messages_per_second", "though clients should"),
    ({"code": 1011, "by": "server"}, "its application failed", "handler failed"),
    ({"code": 1012, "by": "server", "reason": "server is restarting"}, "its worker stopped: a drain", "at once"),
    ({"code": 3001, "by": "server"}, "its worker stopped: a drain", "though clients should"),
    ({"code": 1013, "by": "server", "reason": "too slow"}, "did not take its messages", 'slow_policy = "drop-oldest"'),
    ({"code": 3008, "by": "server", "reason": "slow"}, "did not take its messages", "send_queue_messages"),
    ({"code": 1013, "by": "server", "reason": "authentication is not available"}, "nobody could tell", "[auth]"),
    ({"code": 4500, "by": "server"}, "a newer connection claimed its key", "after 4500 clients do not by themselves"),
    ({"code": 4501, "by": "server"}, "its token was rejected", "after 4501 clients do not"),
    ({"code": 4502, "by": "server"}, "its token had come to its end", "should, with a fresh token"),
    ({"code": 3005, "by": "server"}, "its token had come to its end", "should, with a fresh token"),
    ({"code": 4000, "by": "server", "reason": "bye"}, "its application ended it", "though clients should"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "meaning", "advice"), CLOSED)
def test_closed(told: dict[str, Any], meaning: str, advice: str) -> None:
    """Who is away is told why its last connection ended: code, reason, by whom, and whether clients come back."""
    (text,) = said(why(notes=[note("opened", 60, "a"), note("closed", 9, "a", **told)]))
    by = {"client": " by the client", "server": " by this server", "back-end": " by your back-end", "network": ""}
    reason = f', "{told["reason"]}"' if "reason" in told else ""
    assert f"was closed{by[told['by']]} at {clock(9)} (9.0 s ago), with {told['code']}{reason}: " in text
    assert "from 10.0.0.1:5000 on /ws (worker-1)" in text
    assert meaning in text and advice in text


@pytest.mark.parametrize(("told", "meaning", "advice"), CLOSED[2:])
def test_closed_and_back(told: dict[str, Any], meaning: str, advice: str) -> None:
    """Who has come back is told when, and what it has missed; then what is well."""
    notes = [note("opened", 60, "a"), note("closed", 20, "a", **told), note("opened", 12, "b")]
    texts = said(why(connections=[held("b", 12)], notes=notes, pushes=[push(15, sent=0)]))
    end = next(text for text in texts if meaning in text)
    assert "It connected again 8.0 s later, and 1 push meanwhile reached nobody." in end
    assert texts[-1].startswith('User "42" is connected')


def test_tried_to_come_back() -> None:
    """Who was not let in again is said to have tried."""
    notes = [note("opened", 60, "a"), note("closed", 20, "a", code=4502, by="server")]
    notes.append(note("refused", 9, code=401, reason="token expired at 2026"))
    first, second = said(why(notes=notes))
    assert "was not let in" in first and "It has tried to come back since, and was not let in." in second


def test_left_and_back() -> None:
    """That a client has left by itself and is here again needs no explanation."""
    notes = [note("opened", 60, "a"), note("closed", 20, "a", code=1000, by="client"), note("opened", 12, "b")]
    assert len(said(why(connections=[held("b", 12)], notes=notes))) == 1


def test_slow() -> None:
    """The messages of a client that was too slow are counted where its end is told, and only there."""
    notes = [
        note("opened", 60, "a"), note("closed", 9, "a", code=1013, by="server", reason="too slow"),
        note("dropped", 9, "a", reason="slow", messages=12),
    ]  # fmt: skip
    (text,) = said(why(notes=notes))
    assert "12 messages that waited for it were not delivered." in text


def test_being_closed() -> None:
    """A connection that waits for its client's close frame is none any more."""
    notes = [note("opened", 60, "a"), note("closed", 9, "a", code=1013, by="server", reason="too slow", what="chat")]
    first = said(why(connections=[held(state="closing", events=[])], notes=notes, pushes=[push(9.01, sent=0)]))[0]
    assert 'with 1013, "too slow"' in first and "It has not come back since" in first


def test_closed_again_and_again() -> None:
    """Ends of one kind are told once, with how often."""
    notes = [
        each for ago in (50, 30, 10)
        for each in (note("opened", ago + 5, f"c{ago}"), note("closed", ago, f"c{ago}", **NETWORK))
    ]  # fmt: skip
    (text,) = said(why(notes=notes))
    assert f"3 of its connections ended so since {clock(50)}." in text


def test_another_connection_stays() -> None:
    """The end of one of several connections does not say that the user is away."""
    notes = [note("opened", 60, "b"), note("closed", 9, "b", **NETWORK)]
    end, well = said(why(connections=[held()], notes=notes, pushes=[push(5)]))
    assert "Another connection of it stayed open." in end and "is connected" in well


@pytest.mark.parametrize(("reason", "words"), [("oldest", 'slow_policy = "drop-oldest"'), ("latest", '"latest"')])
def test_dropped(reason: str, words: str) -> None:
    """What a policy has dropped is summed up, with the policy and its limits."""
    notes = [note("dropped", 30, "a", reason=reason, messages=3), note("dropped", 9, "a", reason=reason, messages=4)]
    first, _ = said(why(connections=[held()], notes=notes))
    assert first.startswith('7 messages for user "42" were dropped') and words in first
    assert "[limits] send_queue_messages" in first


def test_behind() -> None:
    """Messages that wait now are told, with what had to go."""
    connections = [held(queued_messages=3, queued_bytes=4096, dropped_messages=1)]
    first, second = said(why(connections=connections, pushes=[push(5)]))
    assert first.startswith('3 messages (4,096 bytes) now wait for the connection of user "42" from 10.0.0.1:5000')
    assert first.endswith("1 message was dropped to make room for newer ones.")
    assert "Nothing waits" not in second


def test_killed() -> None:
    """A worker that was killed is named; who has come back is told so."""
    notes = [note("opened", 60, "a")]
    (text,) = said(why(notes=notes, lost=[Lost(1, NOW - 9)]))
    assert text.startswith(f"worker-1 ended without a drain, killed or crashed, at {clock(9)}")
    assert "though clients should" in text
    notes.append(note("opened", 8, "b", worker=2))
    notes.append(note("closed", 9, "a", reason="worker ended", **NETWORK))  # which the broker notes then
    first, second = said(why(connections=[held("b", 8, worker=2)], notes=notes, lost=[Lost(1, NOW - 9)]))
    assert "It connected again 1.0 s later." in first and second.startswith('User "42" is connected')


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"code": 401, "reason": "token is unknown"}, "its token was not accepted (401: token is unknown)", "[auth]"),
    ({"code": 401, "reason": "token expired at 2026-11-22"}, "its token had expired", "fresh token"),
    ({"code": 4501, "reason": "token has a wrong signature"}, "its token was not accepted (4501", "who signs it"),
    ({"code": 109, "reason": "token expired"}, "its token had expired (109", "fresh token"),
    ({"code": 3500, "reason": "invalid token"}, "its token was not accepted (3500", "[auth]"),
    ({"code": 403, "reason": "this Origin is not in [server] origins"}, "pages of its origin", "[server] origins"),
    ({"code": 403, "reason": "refused because open: set [auth] mode"}, "nobody may do that", "set [auth] mode"),
    ({"code": 429, "reason": "[limits] connections_per_user"}, "too many connections (429", "connections_per_user"),
    ({"code": 503, "reason": "this server is draining"}, "took nobody just then (503: this server", "again"),
    ({"code": 102, "reason": "unknown channel"}, "there is no such channel (102", "[channels.without_namespace]"),
    ({"code": 400, "reason": "event is empty"}, "could not be taken (400: event is empty)", "The reason"),
]  # fmt: skip


@pytest.mark.parametrize(("told", "words", "advice"), REFUSED)
def test_refused(told: dict[str, Any], words: str, advice: str) -> None:
    """Who was not let in is told why, and what to do."""
    (text,) = said(why(notes=[note("refused", 30, **told), note("refused", 9, **told)]))
    assert text.startswith(f'User "42" was not let in at {clock(9)} (9.0 s ago), 2 times since {clock(30)}')
    assert words in text and advice in text


@pytest.mark.parametrize(("told", "words", "advice"), REFUSED)
def test_claimed(told: dict[str, Any], words: str, advice: str) -> None:
    """A token that was not accepted proves nothing, and the sentence says so."""
    (text,) = said(why(notes=[note("refused", 9, is_claimed=True, **told)]))
    assert text.startswith('A client whose token says user "42" was not let in')
    assert text.endswith("Nobody vouches for what that token says: it need not have been this user.")


@pytest.mark.parametrize(("told", "words", "advice"), REFUSED)
def test_strangers(told: dict[str, Any], words: str, advice: str) -> None:
    """Refusals that name nobody are told where the user is unknown, as what they may have been."""
    first, second = said(why(strangers=[note("refused", 9, user="", **told)]))
    assert first.startswith('User "42" is not connected')
    assert second.startswith(f"A client whose user is not known was refused on this host at {clock(9)}")
    for part in (words, advice, 'This may have been user "42".', "from 10.0.0.1."):
        assert part in second


@pytest.mark.parametrize("code", [1005, 1011, 1012, 3005, 3008, 4502])
def test_a_client_says_nothing_about_the_server(code: int) -> None:
    """The code that a client gives when it leaves is told, and never taken for what this server says with it."""
    texts = said(why(notes=[note("opened", 30, "a"), note("closed", 9, "a", code=code, by="client")]))
    assert f"was closed by the client at {clock(9)} (9.0 s ago), with {code}: the client has left." in texts[0]


def test_addresses_of_strangers() -> None:
    """Addresses are told without ports, and whole where a proxy has named them."""
    peers = ["192.0.2.1:5000", "[2001:db8::1]:5000", "203.0.113.9", "2001:db8::77"]
    strangers = [note("refused", 9, user="", peer=peer, code=401, reason="token is unknown") for peer in peers]
    assert "; from 192.0.2.1, 2001:db8::1, 2001:db8::77, 203.0.113.9. " in said(why(strangers=strangers))[1]


def test_what_was_left_out_is_no_refusal() -> None:
    """That a worker had too much to note is said of who is away, as what it is; who is here has no use for it."""
    reason = "23 more notes within a second were left out"
    missing = note("refused", 9, user="", path="", peer="", worker=7, reason=reason)
    texts = said(why(strangers=[missing, missing]))
    assert len(texts) == 2 and not any("was refused on this host" in text for text in texts)
    assert f"So much happened at {clock(9)} (9.0 s ago), 2 times since {clock(9)} that worker-7 did not" in texts[1]
    assert len(said(why(connections=[held()], strangers=[missing]))) == 1


def test_strangers_are_not_told_of_who_is_known() -> None:
    """Not where the user is here, nor where its own refusal is known, nor from before it was last here."""
    strangers = [note("refused", 20, user="", code=401, reason="token is unknown")]
    assert len(said(why(connections=[held()], strangers=strangers))) == 1
    assert len(said(why(notes=[note("refused", 9, code=401, reason="x")], strangers=strangers))) == 1
    assert len(said(why(notes=[note("closed", 9, "a", **NETWORK)], strangers=strangers))) == 1


def test_refused_and_let_in_later() -> None:
    """A refusal that is over comes behind what is wrong now, and says when it was over."""
    notes = [note("refused", 30, code=401, reason="token is unknown"), note("opened", 20, "a")]
    first, second = said(why(connections=[held("a", 20)], notes=notes, pushes=[push(9, "Chat", 0)]))[:2]
    assert first.startswith("A push") and 'User "42" was let in 10 s later.' in second


def test_registration_refused() -> None:
    """What an open connection was refused explains missing pushes of that event, or channel."""
    notes = [
        note("refused", 9, "a", reason="more than 1 events on one connection", what="news"),
        note("refused", 8, "a", code=103, reason="permission denied", what="chat:42"),
        note("refused", 7, "a", reason="more than 1 events on one connection", what="chat"),
    ]
    first, second, third, fourth = said(why(connections=[held()], notes=notes))
    assert first.startswith('User "42" did not get "chat:42"') and "it has no right to that (103" in first
    assert second.startswith('User "42" did not get "news"') and "more than 1 events" in second
    assert third.startswith('User "42" is connected') or fourth.startswith('User "42" is connected')


@pytest.mark.parametrize(
    ("code", "reason", "advice"),
    [
        (
            413,
            "message is larger than a send queue ([limits] send_queue_bytes = 1024)",
            "Nobody received it. Send less",
        ),
        (429, "more than 1 push a second", "[limits] pushes_per_second"),
        (503, "the broker is away; nobody received the push", "Nobody received it. The back-end should push it again"),
        (504, "the broker was lost", "where a double does no harm"),
    ],
)
def test_push_refused(code: int, reason: str, advice: str) -> None:
    """A push that was refused is told with status, reason and setting: first where it was the last one."""
    notes = [push_refusal(9, code, reason)]
    first, _ = said(why(connections=[held()], notes=notes, pushes=[push(20)]))
    told = f"{code}: {reason.partition(';')[0]}."
    assert first.startswith(f'A push to user "42" with event "chat" was refused at {clock(9)} (9.0 s ago) with {told}')
    assert advice in first
    texts = said(why(connections=[held()], notes=notes, pushes=[push(12, "Chat", 0), push(5)]))
    assert "is registered for" in texts[0] and advice in texts[1]


def test_push_refused_unread() -> None:
    """A push that was too large to be read may have been anybody's, and the sentence says so."""
    strangers = [push_refusal(9, 413, "body is larger than 1024 bytes", user="", what="")]
    first, _ = said(why(connections=[held()], strangers=strangers))
    assert (
        'with 413, before anybody knew for whom it was: body is larger than 1024 bytes. It may have been for user "42".'
        in first
    )


def test_push_refused_and_another_unread() -> None:
    """A push that was refused to the user comes before a later one that may have been anybody's."""
    strangers = [push_refusal(5, 401, "send a key", user="", what="")]
    notes = [push_refusal(9, 413, "message is larger than a send queue")]
    first, second, _ = said(why(connections=[held()], notes=notes, strangers=strangers))
    assert "with 413" in first and "with 401" in second and "It may have been for" in second


def test_push_refused_unread_and_others_delivered() -> None:
    """Where a later push has reached the user, what may have been anybody's comes last."""
    strangers = [push_refusal(9, 413, "body is larger than 1024 bytes", user="", what="")]
    first, second = said(why(connections=[held()], strangers=strangers, pushes=[push(5)]))
    assert first.startswith('User "42" is connected') and "it may have been for" in second.lower()


def test_pushes_to_many_from_before() -> None:
    """A push to everybody, or to several users, from before the user came is not said to have reached it."""
    pushes = [push(50, "e", 7, users=0), push(40, "chat", 7, users=9), push(3, "else", 7, users=9)]
    texts = said(why(connections=[held(ago=10)], pushes=pushes))
    assert 'event "else"' in texts[0] and "None of the pushes" in texts[-1]


def test_unconfirmed() -> None:
    """A worker that did not count a push in time leaves it open whether it arrived."""
    first, _ = said(why(connections=[held()], pushes=[push(9, outcome="unconfirmed", unconfirmed=1, sent=0)]))
    assert "was not counted in time by 1 worker ([bus] confirm_ms)" in first


def test_incomplete() -> None:
    """A worker that did not answer comes first where the user seems to be away, and is told anyway."""
    assert 'and user "42" may be connected there' in said(why(missing=1))[0]
    assert said(why(missing=1, connections=[held()]))[0].startswith("This report is not complete: 1 of 2 workers")


def test_connection_that_nobody_tells_of() -> None:
    """A connection that was opened, and of whose end nothing is known, is not said to have ended in some way."""
    texts = said(why(missing=1, notes=[note("opened", 9, "a")], pushes=[push(5, sent=0)]))
    assert "how that ended is not known" in texts[1]


def test_most_explaining_first() -> None:
    """Several at once: why it is away, who else it may have been, refused pushes, what was lost, what was missed."""
    notes = [
        note("opened", 100, "a"),
        note("dropped", 90, "a", reason="oldest", messages=2),
        note("closed", 80, "a", code=1013, by="server", reason="too slow"),
        note("opened", 70, "b"),
        note("closed", 60, "b", **NETWORK),
        push_refusal(50, 429, "more than 1 push a second"),
    ]
    strangers = [note("refused", 40, user="", code=401, reason="token is unknown")]
    texts = said(why(notes=notes, strangers=strangers, pushes=[push(75, sent=0), push(30, sent=0)]))
    order = ["with 1006", "This may have been", "refused at", "with 1013", '"drop-oldest", of', "came while"]
    assert [word in text for word, text in zip(order, texts, strict=True)] == [True] * len(order)


def test_hostile_names() -> None:
    """Control characters of clients never reach the sentence as they are."""
    evil = "\x1b[2J\u202e\n<b>"
    report = why(
        user=evil,
        connections=[held(events=[evil], channels=[evil], path=evil)],
        notes=[
            note("refused", 9, "a", user=evil, path=evil, reason=evil, what=evil),
            note("closed", 8, "x", user=evil, path=evil, reason=evil, code=1011, by="server"),
            push_refusal(7, 413, evil, user=evil, what=evil),
        ],
        pushes=[push(5, evil + "x", 0)],
    )
    assert "\\u001b[2J\\u202e\\n<b>" in said(report)[0]


def test_pure() -> None:
    """The same report says the same, whatever its findings hold already."""
    report = why(connections=[held()])
    assert findings(report) == findings(msgspec.structs.replace(report, findings=["old"]))


def test_old_times_have_a_day() -> None:
    """A time of another day is told with it."""
    (text,) = said(why(since_seconds=NOW - 86000))
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW - 86000)) in text


def test_lengths() -> None:
    """Durations are told in the unit that suits them; a clock that goes backwards gives none below 0."""
    assert [length(seconds) for seconds in (-1, 0.44, 12.4, 119, 121, 7200, 172800)] == [
        "0.0 s", "0.4 s", "12 s", "119 s", "2 min", "2 h", "2 days",
    ]  # fmt: skip
