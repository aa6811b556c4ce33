"""fastpush.broker.channels through the router: joins, presence, claims and what channels keep, over workers that come
and go.
"""

from typing import Any

import msgspec
import pytest

from fastpush.protocol import bus
from fastpush.protocol.bus import History, Join, Kept, Kind, Notice, Online, Status, connection_number
from tests.unit.test_router import RESYNC_SECONDS, WALL_SECONDS, Broker, FakeLink

HALL, TEA = b"c/chat", b"c/chat:tea"
NAME = b"/app\0key"
GRACE_SECONDS = 2.0


REPLAY = {"replay_messages": 100, "replay_bytes": 1_000_000}


def joining(number: int = 1, user: str = "jack", key: bytes = HALL, **kwargs: Any) -> Join:
    """A connection of /chat, one that is present if it has a user."""
    about = {"user": user, "grace_ms": round(GRACE_SECONDS * 1000), "is_present": bool(user)}
    return Join(key, number, "/chat", **(about | kwargs))


def ask(broker: Broker, link: FakeLink, *joins: Join, request: int = 1) -> None:
    broker.say(link, bus.JOIN, request, bus.pack(joins))


def ask_kept(broker: Broker, link: FakeLink, key: bytes = HALL, request: int = 7, **kwargs: Any) -> None:
    """Ask what a channel has kept."""
    broker.say(link, bus.HISTORY, request, bus.pack(History(key, **kwargs)))


def leave(broker: Broker, link: FakeLink, join: Join) -> None:
    broker.say(link, bus.LEAVE, 0, bus.pack(join))


def answered(body: bytes) -> list[Kept]:
    """What an answer says: of each channel of a JOIN, or of the one of a HISTORY."""
    try:
        return bus.unpack_all_kept(body)
    except msgspec.ValidationError:
        return [bus.unpack_kept(body)]


def entries(link: FakeLink) -> list[list[tuple[bool, bytes]]]:
    """What each answer holds, once: whether it is a notice, and its data."""
    found = [kept for _, body in link.take(bus.ANSWER) for kept in answered(body)]
    return [[(entry.kind == Kind.NOTICE, entry.data) for entry in kept.entries] for kept in found]


def notices(broker: Broker, link: FakeLink) -> list[tuple[str, bool]]:
    """Who came (True) and who left, as a worker is told, once; it counts each as told to nobody."""
    told = []
    for number, body in link.take(bus.NOTICE):
        publication = bus.decode_publication(body)
        assert publication.event == b"/chat"
        notice = bus.unpack_notice(publication.frame)
        told.append((notice.user, notice.is_online))
        broker.say(link, bus.COUNT, number, bus.encode_count(number, 0)[13:])
    return told


def publish(broker: Broker, link: FakeLink, text: bytes, keep: int, key: bytes = HALL, request: int = 1) -> None:
    body = bus.encode_publication([key], b"/chat", text, taken_seconds=1.0, keep=keep)
    broker.say(link, bus.PUBLISH, request, body)


def online(
    broker: Broker, link: FakeLink, *keys: bytes, users: int = 0
) -> tuple[list[tuple[int, int]], list[str]] | None:
    """Ask who is online; None while there is no answer."""
    broker.say(link, bus.ONLINE, 5, bus.pack(Online(list(keys or [HALL]), users)))
    answers = link.take(bus.ANSWER)
    if not answers:
        return None
    answer = bus.unpack_online_answer(answers[0][1])
    return answer.counts, answer.users


def lose(broker: Broker, link: FakeLink) -> None:
    broker.router.on_closed(link)


# What channels keep


def test_a_channel_keeps_its_last_messages_and_gives_them_to_who_asks() -> None:
    """Published with keep, asked for by HISTORY, or by a JOIN that wants a replay: the same, oldest first."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2)
    for number in range(5):
        publish(broker, two, b"%d" % number, keep=3)
    publish(broker, two, b"not kept", keep=0)
    publish(broker, two, b"elsewhere", keep=9, key=TEA)
    ask_kept(broker, two, HALL, 7)
    ask(broker, two, joining(user="", **REPLAY))
    ask(broker, two, joining(user=""))
    assert entries(two) == [[(False, b"2"), (False, b"3"), (False, b"4")]] * 2 + [[]]
    ask_kept(broker, one, b"c/nowhere", 8)
    ((request, nothing),) = one.take(bus.ANSWER)
    assert (request, bus.unpack_kept(nothing)) == (8, Kept(0, 0, recovered=False, entries=[]))


def test_a_message_that_is_refused_is_not_kept() -> None:
    """Who publishes again after a refusal must not be kept twice."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2)
    one.is_full = True
    publish(broker, two, b"refused", keep=3)
    assert two.results() == [(1, Status.OVERLOADED, 0, 0)]
    one.is_full = False
    publish(broker, two, b"taken", keep=3, request=2)
    ask_kept(broker, two, HALL, 7)
    assert entries(two) == [[(False, b"taken")]]


def test_kept_without_receivers_and_for_an_own_one() -> None:
    """A channel keeps what nobody received, and what only the publishing worker did."""
    broker = Broker()
    one = broker.join(1)
    publish(broker, one, b"to nobody", keep=3)
    broker.say(one, bus.SUBSCRIBE, 1, HALL)
    publish(broker, one, b"to ourselves", keep=3, request=2)
    assert len(one.take(bus.DELIVER_OWN)) == 1
    ask_kept(broker, one, HALL, 7)
    assert entries(one) == [[(False, b"to nobody"), (False, b"to ourselves")]]


def test_an_answer_stands_where_the_connection_joins() -> None:
    """What was delivered before a JOIN's answer is in it, what comes behind it is not: no gap, nothing twice."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2)
    publish(broker, two, b"before", keep=9)
    ask(broker, one, joining(user="", **REPLAY))
    publish(broker, two, b"after", keep=9)
    stream = [(kind, body) for kind, _, body in one.sent if kind in {bus.DELIVER_AT, bus.ANSWER}]
    assert [kind for kind, _ in stream] == [bus.DELIVER_AT, bus.ANSWER, bus.DELIVER_AT]
    assert [entry.data for kept in answered(stream[1][1]) for entry in kept.entries] == [b"before"]


def test_histories_are_bounded_in_bytes() -> None:
    """Over history_bytes the channel without news gives way, and the report counts what went."""
    broker = Broker(history_bytes=5000)
    one = broker.join(1)
    for channel in (HALL, TEA):
        publish(broker, one, b"x" * 1500, keep=9, key=channel)
    publish(broker, one, b"y" * 1500, keep=9, key=TEA)
    one.sent.clear()
    ask_kept(broker, one, HALL, 1)
    ask_kept(broker, one, TEA, 2)
    assert [len(kept) for kept in entries(one)] == [0, 2]
    figures = broker.router.channels.figures()
    assert figures["history_dropped"] == 1 and figures["history_bytes"] <= 5000


# Who is online


def test_a_user_comes_once_and_leaves_once_over_all_workers() -> None:
    """The first connection and the grace period behind the last one are told to every worker with members; the newcomer
    itself is spared; other connections of the user are no news.
    """
    broker = Broker()
    one, two, other = broker.join(1, HALL), broker.join(2, HALL), broker.join(3, TEA)
    first, second = joining(connection_number(1, 4)), joining(connection_number(2, 9))
    ask(broker, one, first)
    spared = [bus.decode_publication(body).spared for link in (one, two) for _, body in link.sent_of(bus.NOTICE)]
    assert spared == [connection_number(1, 4)] * 2
    assert notices(broker, one) == notices(broker, two) == [("jack", True)]
    ask(broker, two, second)
    leave(broker, one, first)
    broker.wait(10)
    assert notices(broker, one) == notices(broker, two) == []
    leave(broker, two, second)
    broker.wait(GRACE_SECONDS - 0.1)
    assert notices(broker, one) == []
    broker.wait(0.1)
    broker.wait(0.1)
    assert notices(broker, one) == notices(broker, two) == [("jack", False)]
    assert notices(broker, other) == []


def test_notices_say_who_when_and_are_kept() -> None:
    """In Unix time, in the order among messages in which they happened; a newcomer's own is not in its replay."""
    broker = Broker()
    one = broker.join(1, HALL)
    ask(broker, one, joining(**REPLAY, keep=10))
    publish(broker, one, b"hello", keep=10)
    came = WALL_SECONDS + broker.now
    leave(broker, one, joining())
    broker.wait(GRACE_SECONDS)
    left = WALL_SECONDS + broker.now
    ask(broker, one, joining(2, "jill", **REPLAY, keep=10))
    first, second = entries(one)
    assert first == []
    assert [data if not is_notice else bus.unpack_notice(data) for is_notice, data in second] == [
        Notice("jack", is_online=True, seconds=came), b"hello", Notice("jack", is_online=False, seconds=left),
    ]  # fmt: skip
    ask_kept(broker, one, HALL, 1)
    assert [is_notice for is_notice, _ in entries(one)[0]] == [True, False, True, True]


def test_who_is_online() -> None:
    """Users and connections of each channel that is asked for, and the first names of the first one, sorted."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    for number, (link, user, key) in enumerate(
        [(one, "jill", HALL), (two, "jill", HALL), (two, "jack", HALL), (two, "jack", TEA)]
    ):
        ask(broker, link, joining(number, user, key))
    for link in (one, two):
        link.sent.clear()
    assert online(broker, one, HALL, TEA, b"c/x", users=10) == ([(2, 3), (1, 1), (0, 0)], ["jack", "jill"])
    assert online(broker, one, TEA, HALL, users=1) == ([(1, 1), (2, 3)], ["jack"])
    assert online(broker, two, HALL) == ([(2, 3)], [])
    assert broker.router.channels.figures()["present"] == 4


def test_a_busy_worker_is_not_told_and_others_are() -> None:
    """A notice waits for nobody: it is counted as dropped for a worker that takes no more, and still kept."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    two.is_full = True
    ask(broker, one, joining(keep=5))
    assert (notices(broker, one), notices(broker, two)) == ([("jack", True)], [])
    two.is_full = False
    figures = broker.router.channels.figures()
    assert (figures["notices"], figures["notices_dropped"]) == (1, 1)
    one.sent.clear()
    ask_kept(broker, one, HALL, 1)
    assert len(entries(one)[0]) == 1


def test_notices_count_against_what_a_worker_owes() -> None:
    """A worker that does not count its notices is given no more of them than queue_bytes."""
    broker = Broker(queue_bytes=2000)
    one, two = broker.join(1, HALL), broker.join(2)
    for number in range(200):
        ask(broker, two, joining(number, f"user{number}"))
    told = len(one.sent_of(bus.NOTICE))
    assert 0 < told < 100 and broker.router.channels.figures()["notices_dropped"] == 200 - told
    assert len(notices(broker, one)) == told
    ask(broker, two, joining(999, "another"))
    assert notices(broker, one) == [("another", True)]


# While workers and brokers come and go


def test_a_new_broker_waits_for_every_table() -> None:
    """Who asks to join, or who is online, waits until all who were there have said so: nobody comes twice, and
    nobody is told too small a number.
    """
    broker = Broker(1, 2)
    one = broker.join(1, HALL)
    ask(broker, one, joining(1), request=3)
    assert online(broker, one) is None and entries(one) == []
    two = FakeLink()
    broker.say(two, bus.HELLO, 2)
    broker.say(two, bus.SUBSCRIBE, 0, HALL)
    broker.say(two, bus.PRESENT, 0, bus.pack(joining(2)))
    assert one.take(bus.ANSWER) == []
    broker.say(two, bus.COMPLETE, 1)
    (join, entered), (request, counted) = one.take(bus.ANSWER)
    assert (join, [kept.entries for kept in answered(entered)]) == (3, [[]])
    assert (request, bus.unpack_online_answer(counted).counts) == (5, [(1, 2)])
    assert notices(broker, one) == notices(broker, two) == [], "the user was there before this broker"


def test_nobody_has_left_while_a_table_is_missing() -> None:
    """A user whose last known connection ends may have others with a worker that has not spoken yet."""
    broker = Broker(1, 2)
    one = FakeLink()
    broker.say(one, bus.HELLO, 1)
    broker.say(one, bus.SUBSCRIBE, 0, HALL)
    broker.say(one, bus.PRESENT, 0, bus.pack(joining(1, grace_ms=0)))
    broker.say(one, bus.COMPLETE, 1)
    leave(broker, one, joining(1, grace_ms=0))
    broker.wait(1)
    assert notices(broker, one) == []
    two = FakeLink()
    broker.say(two, bus.HELLO, 2)
    broker.say(two, bus.PRESENT, 0, bus.pack(joining(2, grace_ms=0)))
    broker.say(two, bus.COMPLETE, 1)
    broker.wait(1)
    assert notices(broker, one) == [] and online(broker, one) == ([(1, 1)], [])
    leave(broker, two, joining(2, grace_ms=0))
    broker.wait(0)
    assert notices(broker, one) == [("jack", False)]


def test_members_of_a_lost_worker_leave_with_grace() -> None:
    """Once its process has ended; who comes back elsewhere in time has neither left nor come."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    ask(broker, one, joining(1, "jack"))
    ask(broker, one, joining(2, "jill"))
    notices(broker, two)
    two.sent.clear()
    lose(broker, one)
    assert online(broker, two) is None, "it may come back: nobody knows who is there"
    broker.router.on_gone(1)
    assert [bus.unpack_online_answer(body).counts for _, body in two.take(bus.ANSWER)] == [[(0, 0)]]
    ask(broker, two, joining(1, "jack"))
    broker.wait(GRACE_SECONDS)
    assert notices(broker, two) == [("jill", False)]


def test_a_worker_that_comes_back_is_as_if_it_had_not_gone() -> None:
    """Its table stands for what it had: nobody comes or leaves by a broken link, but who has gone meanwhile."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    for number, user in enumerate(["jack", "jill"]):
        ask(broker, one, joining(number, user))
    notices(broker, two)
    lose(broker, one)
    again = FakeLink()
    broker.say(again, bus.HELLO, 1)
    broker.say(again, bus.SUBSCRIBE, 0, HALL)
    broker.say(again, bus.PRESENT, 0, bus.pack(joining(0, "jack")))
    broker.say(again, bus.COMPLETE, 1)
    two.sent.clear()
    assert online(broker, two, users=9) == ([(1, 1)], ["jack", "jill"]), "named until she is told to have left"
    broker.wait(GRACE_SECONDS)
    assert notices(broker, two) == [("jill", False)]
    assert online(broker, two, users=9) == ([(1, 1)], ["jack"])
    broker.wait(100)
    assert notices(broker, two) == []


def test_a_worker_that_breaks_off_inside_its_table_counts_once() -> None:
    """Half a table adds nothing to the earlier one that still stands."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    ask(broker, one, joining())
    lose(broker, one)
    halfway = FakeLink()
    broker.say(halfway, bus.HELLO, 1)
    broker.say(halfway, bus.PRESENT, 0, bus.pack(joining()))
    lose(broker, halfway)
    broker.join(1, HALL)  # and now without the user
    two.sent.clear()
    assert online(broker, two) == ([(0, 0)], [])
    broker.wait(GRACE_SECONDS)
    assert notices(broker, two) == [("jack", False)]


def test_a_worker_that_drains_takes_its_users_along() -> None:
    """GOODBYE, and the end of the link: they have the grace period to come back to another worker."""
    broker = Broker()
    one, two = broker.join(1, HALL), broker.join(2, HALL)
    ask(broker, one, joining())
    notices(broker, two)
    broker.say(one, bus.GOODBYE)
    lose(broker, one)
    ask(broker, two, joining(2))
    broker.wait(GRACE_SECONDS + RESYNC_SECONDS)
    assert notices(broker, two) == []


def test_who_left_while_there_was_no_broker_is_told_of() -> None:
    """A table with a user, and behind it that he has gone: the members of the new broker's channel hear of it."""
    broker = Broker(1)
    one = FakeLink()
    broker.say(one, bus.HELLO, 1)
    broker.say(one, bus.SUBSCRIBE, 0, HALL)
    broker.say(one, bus.PRESENT, 0, bus.pack(joining()))
    broker.say(one, bus.COMPLETE, 1)
    leave(broker, one, joining())
    broker.wait(GRACE_SECONDS)
    assert notices(broker, one) == [("jack", False)]


# Claims


def claim(broker: Broker, link: FakeLink, connection: int, number: int, name: bytes = NAME) -> None:
    """A worker claims a name for a connection."""
    broker.router.on_message(link, *next(bus.Decoder(1000).feed(bus.encode_claim(connection, number, name))))


def test_the_newest_claim_of_the_host_wins() -> None:
    """The claimant is told, and its predecessor's worker who is replaced; a loser's end takes nothing from anybody."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    claim(broker, one, 4, 10)
    claim(broker, two, 9, 11)
    claim(broker, one, 5, 12, b"/app\0another")
    assert one.take(bus.CLAIMED) == [(4, NAME), (5, b"/app\0another")] and two.take(bus.CLAIMED) == [(9, NAME)]
    assert (one.take(bus.REPLACED), two.take(bus.REPLACED)) == ([(4, NAME)], [])
    broker.say(one, bus.UNCLAIM, 4, NAME)  # the loser's end
    claim(broker, one, 6, 13)
    assert two.take(bus.REPLACED) == [(9, NAME)]
    figures = broker.router.channels.figures()
    assert (figures["claims"], figures["connections_replaced"]) == (2, 2)
    broker.say(one, bus.UNCLAIM, 6, NAME)
    broker.say(one, bus.UNCLAIM, 5, b"/app\0another")
    assert broker.router.channels.figures()["claims"] == 0


def test_an_older_claim_that_comes_late_loses() -> None:
    """The number decides, not whose message was faster: the older claimant is replaced, and never told that it won."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    claim(broker, two, 9, 20)
    claim(broker, one, 4, 10)
    assert (one.take(bus.CLAIMED), one.take(bus.REPLACED)) == ([], [(4, NAME)])
    assert (two.take(bus.CLAIMED), two.take(bus.REPLACED)) == ([(9, NAME)], [])


@pytest.mark.parametrize("is_newer_first", [False, True])
def test_a_new_broker_settles_what_it_is_told(is_newer_first: bool) -> None:  # noqa: FBT001
    """Of two workers that both tell of a claim, in whatever order, the one with the larger number keeps it."""
    broker = Broker(1, 2)
    links = {1: FakeLink(), 2: FakeLink()}
    order = [(2, 20), (1, 10)] if is_newer_first else [(1, 10), (2, 20)]
    for worker, number in order:
        broker.say(links[worker], bus.HELLO, worker)
        claim(broker, links[worker], 7, number)
        broker.say(links[worker], bus.COMPLETE, 1)
    assert (links[1].take(bus.REPLACED), links[2].take(bus.REPLACED)) == ([(7, NAME)], [])


def test_a_connection_replaced_while_its_worker_was_away_is_told_when_that_is_back() -> None:
    """And its worker's return does not take the name back."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    claim(broker, one, 4, 10)
    lose(broker, one)
    claim(broker, two, 9, 11)
    again = FakeLink()
    broker.say(again, bus.HELLO, 1)
    claim(broker, again, 4, 10)
    broker.say(again, bus.COMPLETE, 1)
    assert again.take(bus.REPLACED) == [(4, NAME)] and two.take(bus.REPLACED) == []
    assert broker.router.channels.figures()["claims"] == 1


def test_a_worker_that_ends_gives_its_claims_back() -> None:
    """Nobody is replaced by the next claim."""
    broker = Broker()
    one, two = broker.join(1), broker.join(2)
    claim(broker, one, 4, 10)
    lose(broker, one)
    broker.router.on_gone(1)
    claim(broker, two, 9, 11)
    assert two.take(bus.REPLACED) == [] and broker.router.channels.figures()["claims"] == 1
