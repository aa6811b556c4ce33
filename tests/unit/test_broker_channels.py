"""fastpush.broker.channels through the router: channels with namespaces, over workers that come and go: what they keep,
who recovers what, and who is told that others came and left.
"""

import random
from typing import Any

import orjson
import pytest

from fastpush.channels.namespaces import Namespaces
from fastpush.config import Namespace
from fastpush.protocol import bus
from fastpush.protocol.bus import NO_POSITION, Entry, History, Join, Kept, Kind, Position, Status, connection_number
from fastpush.protocol.push import channel_key
from fastpush.state.changes import CONNECTION_SECONDS
from tests.unit.test_router import RESYNC_SECONDS, Broker, FakeLink

NAMESPACES = {
    "chat": Namespace(history_messages=3, history_seconds=60.0, recovery=True, presence=True, join_leave="connections"),
    "room": Namespace(presence=True, join_leave="users", grace_seconds=5.0),
    "small": Namespace(presence=True, join_leave="connections", join_leave_members=2),
    "quiet": Namespace(presence=True),
    "log": Namespace(history_messages=10, history_seconds=60.0),
}
CHAT, ROOM, SMALL, QUIET, LOG = (channel_key(f"{name}:1") for name in NAMESPACES)
APPLICATION = channel_key("/chat")
PLENTY = {"replay_messages": 100, "replay_bytes": 10**6}


def make(*workers: int, **kwargs: Any) -> Broker:
    return Broker(*workers, **({"namespaces": NAMESPACES} | kwargs))


def joining(key: bytes = CHAT, number: int = 1, user: str = "jack", **kwargs: Any) -> Join:
    """A client's connection, present with what others are told of it."""
    info = orjson.dumps({"user": user, "client": str(number)})
    return Join(key, number, "", **({"user": user, "is_present": True, "info": info} | kwargs))


def ask(broker: Broker, link: FakeLink, *joins: Join, request: int = 1) -> None:
    broker.say(link, bus.JOIN, request, bus.pack(joins))


def leave(broker: Broker, link: FakeLink, join: Join) -> None:
    broker.say(link, bus.LEAVE, 0, bus.pack(join))


def kept(link: FakeLink) -> list[Kept]:
    """The answers to a worker's joins, once, channel for channel."""
    return [each for _, body in link.take(bus.ANSWER) for each in bus.unpack_all_kept(body)]


def enter(broker: Broker, link: FakeLink, *joins: Join) -> list[Kept]:
    """Join, and return what the channels have kept."""
    link.take(bus.ANSWER)
    ask(broker, link, *joins)
    return kept(link)


def publish(broker: Broker, link: FakeLink, text: str, key: bytes = CHAT, request: int = 1, **kwargs: Any) -> None:
    body = bus.encode_publication([key], b"", text.encode(), taken_seconds=1.0, kind=Kind.DATA, **kwargs)
    broker.say(link, bus.PUBLISH, request, body)


def fill(broker: Broker, link: FakeLink, count: int, key: bytes = CHAT) -> Position:
    """Publish "1", "2" …; return the last one's position."""
    for number in range(1, count + 1):
        publish(broker, link, str(number), key, number)
    link.sent.clear()
    broker.say(link, bus.HISTORY, 1, bus.pack(History(key, 0)))
    ((_, body),) = link.take(bus.ANSWER)
    return Position(bus.unpack_kept(body).offset, bus.unpack_kept(body).epoch)


def data(answer: Kept) -> list[str]:
    return [entry.data.decode() for entry in answer.entries]


def changes(broker: Broker, link: FakeLink) -> list[tuple[bool, Any]]:
    """Who came (True) and left, as a worker is told, once; it counts each as told to nobody."""
    found: list[tuple[bool, Any]] = []
    for number, body in link.take(bus.CHANGES):
        publication = bus.decode_publication(body)
        assert publication.kind == Kind.CHANGES
        found += [(came, orjson.loads(info)) for came, info in bus.unpack_changes(publication.frame)]
        broker.say(link, bus.COUNT, number, bus.encode_count(number, 0)[13:])
    return found


def clients(found: list[tuple[bool, Any]]) -> list[tuple[bool, str]]:
    return [(came, info["client"]) for came, info in found]


# -- what channels keep ------------------------------------------------------------------


def test_a_publication_has_a_place_wherever_it_goes() -> None:
    """To nobody, to the publisher's own worker, to several: the result and the delivery say where it was kept."""
    broker = make()
    one, two = broker.join(1), broker.join(2)
    publish(broker, one, "1")
    ((_, status, sent, _, first),) = one.outcomes()
    assert (status, sent, first.offset) == (Status.DONE, 0, 1) and first.epoch
    broker.say(one, bus.SUBSCRIBE, 1, CHAT)
    publish(broker, one, "2", request=2)
    assert [(number, bus.decode_position(body)) for number, body in one.take(bus.DELIVER_OWN)] == [
        (2, first._replace(offset=2))
    ]
    broker.say(two, bus.SUBSCRIBE, 1, CHAT)
    publish(broker, one, "3", request=3)
    assert one.take(bus.DELIVER) == two.take(bus.DELIVER) == []
    for link in (one, two):
        ((number, body),) = link.take(bus.DELIVER_AT)
        offset, rest = bus.decode_offset(body)
        assert (offset, bus.decode_publication(rest).frame) == (3, b"3")
        broker.say(link, bus.COUNT, number, bus.encode_count(number, 4)[13:])
    assert one.outcomes() == [(3, Status.DONE, 8, 0, first._replace(offset=3))]


def test_what_is_not_kept_has_no_place() -> None:
    """In a channel without history, of no namespace, and for several keys at once."""
    broker = make()
    one = broker.join(1)
    for request, key in enumerate((QUIET, channel_key("unknown:1"), channel_key("news"), b"u4:jacknews")):
        publish(broker, one, "x", key, request)
    broker.push(one, 9, CHAT, LOG)
    assert [outcome[-1] for outcome in one.outcomes()] == [NO_POSITION] * 5
    assert broker.router.channels.figures()["histories"] == 0


def test_a_refused_publication_takes_no_place() -> None:
    """The next one that is taken is the next one: whoever recovers sees no gap."""
    broker = make()
    one, two = broker.join(1), broker.join(2, CHAT)
    publish(broker, one, "1")
    broker.say(two, bus.COUNT, two.take(bus.DELIVER_AT)[0][0], b"\0\0\0\0")
    two.is_full = True
    publish(broker, one, "refused", request=2)
    two.is_full = False
    publish(broker, one, "2", request=3)
    assert one.take(bus.RESULT)[1][0] == 2
    ((_, body),) = two.take(bus.DELIVER_AT)
    assert bus.decode_offset(body)[0] == 2
    (answer,) = enter(broker, one, joining(**PLENTY))
    assert data(answer) == ["1", "2"]


def test_namespaces_say_how_much_is_kept() -> None:
    """Messages and seconds of each; a publication cannot ask for more; a reload holds from the next one on."""
    broker = make()
    one = broker.join(1)
    for key, most in ((CHAT, 3), (LOG, 10)):
        for number in range(20):
            publish(broker, one, str(number), key, keep=500)
        (answer,) = enter(broker, one, joining(key, **PLENTY))
        assert data(answer) == [str(number) for number in range(20 - most, 20)]
        assert answer.offset == 20
    broker.router.channels.namespaces = Namespaces({"chat": Namespace(history_messages=1, history_seconds=10.0)})
    publish(broker, one, "last")
    publish(broker, one, "gone", LOG)
    (answer,) = enter(broker, one, joining(**PLENTY))
    assert data(answer) == ["last"] and answer.offset == 21
    broker.wait(10)
    (answer,) = enter(broker, one, joining(**PLENTY))
    assert data(answer) == []


def test_who_was_away_while_its_channel_kept_nothing_is_told_so() -> None:
    """A namespace that a reload has keep nothing, and another one keep something again: what was published in between
    has no offset, so a position of before is of another epoch, however the next publications are counted.
    """
    broker = make()
    link = broker.join(1, CHAT)
    before = fill(broker, link, 2)
    without = {**NAMESPACES, "chat": Namespace(presence=True)}
    broker.router.channels.namespaces = Namespaces(without)
    publish(broker, link, "not kept")
    broker.router.channels.namespaces = Namespaces(NAMESPACES)
    (answer,) = enter(broker, link, joining(since=before, **PLENTY))
    assert not answer.recovered and answer.epoch != before.epoch


def test_an_application_s_channel_keeps_what_its_publications_say() -> None:
    """It has no namespace."""
    broker = make()
    one = broker.join(1)
    for number in range(5):
        publish(broker, one, str(number), APPLICATION, keep=2)
    join = Join(APPLICATION, 1, "/chat", **PLENTY)
    (answer,) = enter(broker, one, join)
    assert data(answer) == ["3", "4"] and answer.offset == 5


def test_history_is_asked_for_in_pages_and_cleared() -> None:
    """HISTORY answers by what it asks; FORGET leaves the position; a channel nobody published to stands at 0."""
    broker = make()
    one = broker.join(1)
    top = fill(broker, one, 5, LOG)

    def page(key: bytes = LOG, **kwargs: Any) -> Kept:
        broker.say(one, bus.HISTORY, 8, bus.pack(History(key, **kwargs)))
        ((request, body),) = one.take(bus.ANSWER)
        assert request == 8
        return bus.unpack_kept(body)

    assert data(page()) == ["1", "2", "3", "4", "5"]
    assert data(page(messages=2, since=top._replace(offset=1))) == ["2", "3"]
    assert data(page(messages=2, reverse=True)) == ["5", "4"]
    assert page(messages=0) == Kept(*top, recovered=True, entries=[])
    broker.say(one, bus.FORGET, 9, LOG)
    assert one.take(bus.ANSWER) == [(9, b"")]
    assert page() == Kept(*top, recovered=True, entries=[])
    nobody = page(QUIET)
    assert nobody == Kept(0, 0, recovered=False, entries=[])


# -- joining and recovering ----------------------------------------------------------------


def test_a_list_of_joins_has_one_answer_at_one_place() -> None:
    """As many Kept as joins, in their order; publications behind it are behind all of them."""
    broker = make()
    one, two = broker.join(1, CHAT, LOG, QUIET), broker.join(2)
    tops = [fill(broker, two, count, key) for key, count in ((CHAT, 2), (LOG, 5))]
    one.sent.clear()
    ask(broker, one, joining(**PLENTY), joining(QUIET), joining(LOG, **PLENTY), joining(APPLICATION), request=77)
    publish(broker, two, "later")
    kinds = [kind for kind, _, _ in one.sent if kind in {bus.ANSWER, bus.DELIVER_AT}]
    assert kinds == [bus.ANSWER, bus.DELIVER_AT]
    ((request, body),) = one.take(bus.ANSWER)
    chat, quiet, log, none = bus.unpack_all_kept(body)
    assert request == 77
    assert (data(chat), data(log)) == (["1", "2"], ["1", "2", "3", "4", "5"])
    assert [(chat.offset, chat.epoch), (log.offset, log.epoch)] == tops
    assert quiet == none == Kept(0, 0, recovered=False, entries=[])


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 200])
def test_lists_of_any_length(count: int) -> None:
    """Whatever the head of such a list looks like on the wire."""
    broker = make()
    one = broker.join(1)
    assert len(enter(broker, one, *(joining(channel_key(f"chat:{number}")) for number in range(count)))) == count


def test_who_comes_back_has_all_that_it_missed_or_is_told_so() -> None:
    """From every position: recovered with exactly what is behind it, or not at all; and where the channel stands."""
    broker = make()
    one = broker.join(1)
    top = fill(broker, one, 5)
    for offset in range(7):
        (answer,) = enter(broker, one, joining(since=top._replace(offset=offset), **PLENTY))
        assert answer.recovered == (2 <= offset <= 5) and (answer.offset, answer.epoch) == top
        assert [entry.offset for entry in answer.entries] == (list(range(offset + 1, 6)) if answer.recovered else [])
    (other,) = enter(broker, one, joining(since=Position(5, top.epoch + 1), **PLENTY))
    assert other == Kept(*top, recovered=False, entries=[])
    (large,) = enter(broker, one, joining(since=top._replace(offset=3), replay_messages=100, replay_bytes=300))
    assert large == Kept(*top, recovered=False, entries=[]), "two would be more than its queue takes"


def test_a_new_broker_never_says_recovered() -> None:
    """Its epochs are other ones, though offsets be the same."""
    broker, later = make(), make()
    top = fill(broker, broker.join(1), 2)
    later.router.channels.histories._first_epoch += 1 << 32  # what is drawn at random
    one = later.join(1)
    assert fill(later, one, 2).offset == top.offset
    (answer,) = enter(later, one, joining(since=top, **PLENTY))
    assert not answer.recovered and answer.epoch != top.epoch


def test_a_channel_with_members_stands_though_nothing_is_kept() -> None:
    """A position that a client was told holds for as long as somebody is in the channel, and history_seconds behind
    that.
    """
    broker = make()
    one, two = broker.join(1, CHAT), broker.join(2)
    (first,) = enter(broker, one, joining(**PLENTY))
    assert first == Kept(0, first.epoch, recovered=False, entries=[]) and first.epoch
    for _ in range(10):
        broker.wait(50)
    (again,) = enter(broker, two, joining(number=2, since=Position(0, first.epoch), **PLENTY))
    assert again.recovered and again.epoch == first.epoch
    broker.say(one, bus.UNSUBSCRIBE, 0, CHAT)
    broker.wait(59)
    publish(broker, two, "1")
    assert two.outcomes() == [(1, Status.DONE, 0, 0, Position(1, first.epoch))]
    for _ in range(3):
        broker.wait(61)
    assert broker.router.channels.figures()["histories"] == 0


def test_a_full_link_is_answered_once_it_has_room() -> None:
    """Whoever wants much waits, whoever wants nothing does not; the answer then stands where the stream is by then."""
    broker = make()
    one, two = broker.join(1, CHAT), broker.join(2)
    fill(broker, two, 2)
    one.sent.clear()
    one.is_full = True
    ask(broker, one, joining(**PLENTY), request=1)
    ask(broker, one, joining(number=2), request=2)
    broker.say(one, bus.HISTORY, 3, bus.pack(History(CHAT)))
    broker.say(one, bus.PRESENCE, 4, CHAT)
    broker.wait(0.02)
    assert [number for number, _ in one.take(bus.ANSWER)] == [2]
    one.is_full = False
    publish(broker, two, "3")
    broker.wait(0.02)
    stream = [(kind, number) for kind, number, _ in one.sent if kind in {bus.ANSWER, bus.DELIVER_AT}]
    assert [number for kind, number in stream if kind == bus.ANSWER] == [1, 3, 4]
    assert stream[0][0] == bus.DELIVER_AT, "what was published meanwhile is before it, and in it"
    (_, body), _, (_, infos) = one.take(bus.ANSWER)
    assert len(bus.unpack_infos(infos)) == 2
    assert [data(answer) for answer in bus.unpack_all_kept(body)] == [["1", "2", "3"]]
    assert broker.router.channels.figures()["present"] == 2


def test_a_worker_that_ends_while_its_join_waits_leaves_nothing() -> None:
    """Nobody has entered by it; its next link asks again."""
    broker = make()
    one, two = broker.join(1), broker.join(2, CHAT)
    one.is_full = True
    ask(broker, one, joining(**PLENTY))
    broker.router.on_closed(one)
    again = broker.join(1)
    broker.wait(0.02)
    assert (again.take(bus.ANSWER), changes(broker, two)) == ([], [])
    assert len(enter(broker, again, joining(**PLENTY))) == 1
    broker.wait(0.02)
    assert clients(changes(broker, two)) == [(True, "1")]


# -- who came and left ---------------------------------------------------------------------


def test_connections_that_come_and_leave_are_told_once_each() -> None:
    """To every worker with members, also the newcomer's; of the same user as often as there are connections."""
    broker = make()
    one, two, other = broker.join(1, CHAT), broker.join(2, CHAT), broker.join(3, QUIET)
    for number in (1, 2):
        ask(broker, one, joining(number=number))
    ask(broker, two, joining(QUIET, 3))
    broker.wait(0.02)
    assert clients(changes(broker, one)) == clients(changes(broker, two)) == [(True, "1"), (True, "2")]
    for _ in range(2):
        leave(broker, one, joining(number=1))
    broker.wait(0.02)
    assert clients(changes(broker, one)) == clients(changes(broker, two)) == [(False, "1")]
    broker.wait(100)
    assert changes(broker, one) == changes(broker, other) == []
    assert broker.router.channels.figures()["notices"] == 3


def test_one_that_is_asked_for_twice_comes_once() -> None:
    """A worker may join a connection again before it has heard of the first time."""
    broker = make()
    one = broker.join(1, CHAT)
    ask(broker, one, joining())
    broker.wait(0.02)
    ask(broker, one, joining())
    broker.wait(0.02)
    assert clients(changes(broker, one)) == [(True, "1")]
    leave(broker, one, joining())
    broker.wait(0.02)
    assert clients(changes(broker, one)) == [(False, "1")]
    assert broker.router.channels.figures()["present"] == 0


def test_users_come_with_the_first_and_leave_with_the_last_and_grace() -> None:
    """Named without a client; who is back in time has neither left nor come, on whatever worker."""
    broker = make()
    one, two = broker.join(1, ROOM), broker.join(2, ROOM)
    for link, number in ((one, 1), (two, 2), (one, 3)):
        ask(broker, link, joining(ROOM, number))
    broker.wait(0.02)
    assert changes(broker, one) == changes(broker, two) == [(True, {"user": "jack", "client": ""})]
    for link, number in ((one, 1), (two, 2), (one, 3)):
        leave(broker, link, joining(ROOM, number))
    broker.wait(4.9)
    ask(broker, two, joining(ROOM, 4))
    broker.wait(100)
    assert changes(broker, one) == []
    leave(broker, two, joining(ROOM, 4))
    broker.wait(4.9)
    assert changes(broker, one) == []
    broker.wait(0.1)
    broker.wait(0.02)
    assert changes(broker, one) == [(False, {"user": "jack", "client": ""})]


def test_a_large_channel_tells_nobody() -> None:
    """Over join_leave_members connections nothing is told, and that is counted; who came while it was small and leaves
    before that was told is not told either.
    """
    broker = make()
    one = broker.join(1, SMALL)
    for number in range(3):
        ask(broker, one, joining(SMALL, number))
    broker.wait(0.02)
    assert clients(changes(broker, one)) == [(True, "0"), (True, "1")]
    assert broker.router.channels.figures()["notices_dropped"] == 1
    leave(broker, one, joining(SMALL, 2))
    leave(broker, one, joining(SMALL, 1))
    ask(broker, one, joining(SMALL, 5))  # the second of two: to be told
    ask(broker, one, joining(SMALL, 6))
    ask(broker, one, joining(SMALL, 7))
    leave(broker, one, joining(SMALL, 5))  # of four, so not told: nor may it be that it came
    broker.wait(0.02)
    assert clients(changes(broker, one)) == [(False, "2"), (False, "1")]


def test_diffs_of_a_channel_with_many_are_gathered() -> None:
    """After one it rests in proportion to its connections; who comes and leaves meanwhile is not told of."""
    broker = make()
    one = broker.join(1, CHAT)
    for number in range(500):
        ask(broker, one, joining(number=number))
    broker.wait(0.02)
    assert len(one.take(bus.CHANGES)) == 1
    for number in range(500, 600):
        ask(broker, one, joining(number=number))
        if number % 2:
            leave(broker, one, joining(number=number))
        broker.wait(0.0001)
    assert one.take(bus.CHANGES) == []
    broker.wait(500 * CONNECTION_SECONDS)
    told = changes(broker, one)
    assert clients(told) == [(True, str(number)) for number in range(500, 600, 2)]


def test_a_worker_that_takes_no_more_is_not_told() -> None:
    """Its clients miss a diff, which is counted, rather than anybody waiting."""
    broker = make()
    one, two = broker.join(1, CHAT), broker.join(2, CHAT)
    two.is_full = True
    ask(broker, one, joining())
    broker.wait(0.02)
    assert clients(changes(broker, one)) == [(True, "1")] and changes(broker, two) == []
    figures = broker.router.channels.figures()
    assert (figures["notices"], figures["notices_dropped"]) == (1, 1)


def test_a_channel_without_join_leave_tells_nothing() -> None:
    """It is known who is in it all the same: of each connection what others are told."""
    broker = make()
    one, two = broker.join(1, QUIET), broker.join(2)
    for number in (1, 2):
        ask(broker, one, joining(QUIET, number))
    leave(broker, one, joining(QUIET, 1))
    broker.wait(1)
    assert changes(broker, one) == []
    broker.say(two, bus.PRESENCE, 5, QUIET)
    broker.say(two, bus.PRESENCE, 6, ROOM)
    answers = [(request, bus.unpack_infos(body)) for request, body in two.take(bus.ANSWER)]
    assert answers == [(5, [joining(QUIET, 2).info]), (6, [])]


def test_a_killed_worker_s_connections_leave() -> None:
    """Each is told of once, users with grace; until its end is known nobody has left."""
    broker = make()
    one, two = broker.join(1, CHAT, ROOM), broker.join(2, CHAT, ROOM)
    for number in (1, 2):
        ask(broker, one, joining(number=number), joining(ROOM, number, f"user{number}"))
    ask(broker, two, joining(number=3), joining(ROOM, 3, "user2"))
    broker.wait(0.02)
    changes(broker, two)
    broker.router.on_closed(one)
    broker.wait(RESYNC_SECONDS / 2)
    assert changes(broker, two) == []
    broker.router.on_gone(1)
    broker.wait(0.02)
    assert clients(changes(broker, two)) == [(False, "1"), (False, "2")]
    broker.wait(5)
    broker.wait(0.02)
    assert changes(broker, two) == [(False, {"user": "user1", "client": ""})]


def test_a_broken_link_is_no_leaving() -> None:
    """A worker that tells its table again is as if it had not gone; who has gone meanwhile leaves."""
    broker = make()
    one, two = broker.join(1, CHAT), broker.join(2, CHAT)
    for number in (1, 2):
        ask(broker, one, joining(number=number))
    broker.wait(0.02)
    changes(broker, two)
    broker.router.on_closed(one)
    again = FakeLink()
    broker.say(again, bus.HELLO, 1)
    broker.say(again, bus.SUBSCRIBE, 0, CHAT)
    broker.say(again, bus.PRESENT, 0, bus.pack(joining(number=2)))
    broker.say(again, bus.COMPLETE, 1)
    broker.wait(0.02)
    assert clients(changes(broker, two)) == [(False, "1")]
    leave(broker, again, joining(number=2))
    broker.wait(0.02)
    assert clients(changes(broker, two)) == [(False, "2")]


def test_a_join_whose_answer_was_lost_is_no_news_when_it_is_asked_again() -> None:
    """The broker took it, the worker does not know: its table is without it, the question comes again."""
    broker = make()
    one, two = broker.join(1, CHAT), broker.join(2, CHAT)
    ask(broker, one, joining(**PLENTY))
    broker.wait(0.02)
    assert clients(changes(broker, two)) == [(True, "1")]
    broker.router.on_closed(one)
    again = broker.join(1, CHAT)
    ask(broker, again, joining(**PLENTY))
    assert len(kept(again)) == 1
    broker.wait(1)
    assert changes(broker, two) == []
    assert broker.router.channels.figures()["present"] == 1


class Cluster:
    """A broker with workers that come and go, who is in a channel with each of them, and one that hears all diffs."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.broker = make()
        self.watcher = self.broker.join(99, CHAT, ROOM)
        self.links: dict[int, FakeLink] = {}
        self.inside: dict[int, set[tuple[bytes, int]]] = {}
        self.known: dict[bytes, set[str]] = {CHAT: set(), ROOM: set()}
        self.workers = 0

    def act(self) -> None:
        if len(self.links) < 3:
            self.workers += 1
            self.links[self.workers] = self.broker.join(self.workers, CHAT, ROOM)
            self.inside[self.workers] = set()
        acts = [self.break_link, self.kill, self.wait, self.wait, self.wait] + [self.join] * 8 + [self.leave] * 7
        self.chance.choice(acts)(self.chance.choice(list(self.links)))

    def place(self) -> tuple[bytes, int]:
        return self.chance.choice((CHAT, ROOM)), self.chance.randrange(6)

    def told(self, worker: int, key: bytes, number: int) -> Join:
        return joining(key, connection_number(worker, number), f"user{number % 4}")

    def join(self, worker: int) -> None:
        place = self.place()
        self.inside[worker].add(place)
        ask(self.broker, self.links[worker], self.told(worker, *place))

    def leave(self, worker: int) -> None:
        place = self.place()
        self.inside[worker].discard(place)
        leave(self.broker, self.links[worker], self.told(worker, *place))

    def break_link(self, worker: int) -> None:
        """The worker has another one soon, and tells its table."""
        if self.chance.random() < 0.5:  # else the broker sees the new one first
            self.broker.router.on_closed(self.links[worker])
        link = self.links[worker] = FakeLink()
        self.broker.say(link, bus.HELLO, worker)
        for place in self.inside[worker]:
            self.broker.say(link, bus.PRESENT, 0, bus.pack(self.told(worker, *place)))
        self.broker.say(link, bus.COMPLETE, 1)

    def kill(self, worker: int) -> None:
        """The link or the supervisor tells of it first."""
        ends = [lambda: self.broker.router.on_gone(worker), lambda: self.broker.router.on_closed(self.links[worker])]
        for end in self.chance.sample(ends, 2):
            end()
        del self.links[worker], self.inside[worker]

    def wait(self, _: int = 0) -> None:
        self.broker.wait(self.chance.choice((0.02, 1.0, 6.0)))
        for number, body in self.watcher.take(bus.CHANGES):
            publication = bus.decode_publication(body)
            for came, info in bus.unpack_changes(publication.frame):
                key, who = publication.keys[0], orjson.loads(info)["client"] or orjson.loads(info)["user"]
                assert came == (who not in self.known[key])
                self.known[key] ^= {who}
            self.broker.say(self.watcher, bus.COUNT, number, bus.encode_count(number, 0)[13:])

    def present(self, key: bytes) -> list[Join]:
        """Who is there, as the workers know it."""
        told = [self.told(worker, *place) for worker, inside in self.inside.items() for place in inside]
        return [join for join in told if join.key == key]


@pytest.mark.parametrize("seed", range(30))
def test_presence_is_exact_whatever_workers_do(seed: int) -> None:
    """Joins, leaves, broken links, tables told again and killed workers: presence is what the workers know, and who has
    heard all diffs knows the same, in a channel of connections and in one of users.
    """
    cluster = Cluster(random.Random(seed))
    for _ in range(400):
        cluster.act()
    for _ in range(20):
        cluster.wait()
    cluster.broker.wait(10)
    cluster.wait()
    chat, room = cluster.present(CHAT), cluster.present(ROOM)
    assert cluster.known == {CHAT: {str(join.connection) for join in chat}, ROOM: {join.user for join in room}}
    assert cluster.broker.router.channels.figures()["present"] == len(chat) + len(room)
    for key, there in ((CHAT, chat), (ROOM, room)):
        cluster.watcher.sent.clear()
        cluster.broker.say(cluster.watcher, bus.PRESENCE, 1, key)
        ((_, body),) = cluster.watcher.take(bus.ANSWER)
        assert sorted(bus.unpack_infos(body)) == sorted(join.info for join in there)


def test_kept_entries_are_as_they_were_published() -> None:
    """Data and members, for whoever joins and whoever asks."""
    broker = make()
    one = broker.join(1)
    body = bus.encode_publication([CHAT], b',"tags":{}', b"frame", taken_seconds=1.0, kind=Kind.DATA)
    broker.say(one, bus.PUBLISH, 1, body)
    broker.push(one, 2, CHAT)
    (answer,) = enter(broker, one, joining(**PLENTY))
    assert answer.entries == [Entry(1, Kind.DATA, b"frame", b',"tags":{}'), Entry(2, Kind.MESSAGE, b"frame", b"")]
