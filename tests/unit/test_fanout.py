"""The hub with receivers that only take notes: who gets what once, what the broker is told, and when."""

import asyncio
import itertools

import orjson

from fastpush.errors import CloseCode
from fastpush.fanout import Group, Hub
from fastpush.protocol.bus import Publication
from fastpush.protocol.frames import payload_of, text_frame
from fastpush.protocol.push import EVERYBODY, user_key


class Taker:
    """A connection that takes every frame, or none."""

    def __init__(self, hub: Hub, user: str = "u", *, envelope: bool = False, takes: bool = True) -> None:
        self.hub = hub
        self.user = user
        self.groups: tuple[Group, ...] = ()
        self.wants_envelope = envelope
        self.takes = takes
        self.frames: list[bytes] = []
        self.slow = 0

    def send(self, frame: bytes) -> bool:
        if not self.takes:
            self.hub.mark_slow(self)
            return False
        self.frames.append(frame)
        return True

    def close(self, code: CloseCode, reason: str) -> None:
        self.hub.leave(self)

    def close_slow(self) -> None:
        self.slow += 1
        self.hub.leave(self)


class Broker:
    """What a hub has told; confirms when asked to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []
        self.waiting: dict[bytes, list[object]] = {}
        self.hub = Hub(self.announce, lambda key: self.told.append(("-", key)))

    def announce(self, key: bytes, confirmed: object) -> None:
        self.told.append(("+", key))
        self.waiting.setdefault(key, []).append(confirmed)

    def confirm(self, key: bytes) -> None:
        for confirmed in self.waiting.pop(key):
            confirmed()  # type: ignore[operator]


def publication(*keys: bytes, event: str = "e", message: str = "hello") -> Publication:
    return Publication(keys, event.encode(), text_frame(message.encode()))


KEY, OTHER = user_key("u", "e"), user_key("u", "f")


def test_each_receiver_has_one_frame_and_counts_once() -> None:
    """S0-26, S0-28: a push by one key or several reaches each connection once, with the same object for all."""
    hub = Broker().hub
    both, one, other = Taker(hub), Taker(hub), Taker(hub, "v")
    for receiver, key in ((both, KEY), (both, OTHER), (one, KEY), (other, user_key("v", "e"))):
        hub.join(receiver, key)
    pushed = publication(KEY, OTHER, b"unknown")
    assert hub.deliver(pushed) == 2
    assert hub.deliver(publication(KEY)) == 2
    assert hub.deliver(publication(EVERYBODY)) == 3
    assert hub.deliver(publication(b"unknown")) == 0
    assert [len(receiver.frames) for receiver in (both, one, other)] == [3, 3, 1]
    assert both.frames[0] is one.frames[0] is pushed.frame


def test_the_broker_is_told_first_in_and_last_out() -> None:
    """S0-14: one announcement for the first connection of a key, one withdrawal after the last; EVERYBODY alike."""
    broker = Broker()
    hub = broker.hub
    receivers = [Taker(hub) for _ in range(3)]
    for receiver in receivers:
        hub.join(receiver, KEY)
        hub.join(receiver, KEY)
    assert broker.told == [("+", EVERYBODY), ("+", KEY)]
    for receiver in receivers:
        hub.leave(receiver)
        hub.leave(receiver)
    assert sorted(broker.told[2:]) == [("-", EVERYBODY), ("-", KEY)]
    assert (len(hub), list(hub.keys())) == (0, [])
    assert hub.connections("u", None) == []


def test_a_hold_keeps_a_key_announced() -> None:
    """A handshake's hold announces a key before its connection is there, and withdraws it when none comes."""
    broker = Broker()
    hub = broker.hub
    group = hub.hold(KEY)
    receiver = Taker(hub)
    hub.join(receiver, KEY)
    hub.release(group)
    assert ("-", KEY) not in broker.told
    hub.leave(receiver)
    assert broker.told.count(("-", KEY)) == broker.told.count(("+", KEY)) == 1
    hub.release(hub.hold(OTHER))
    assert broker.told[-2:] == [("+", OTHER), ("-", OTHER)]


def test_confirmation_is_waited_for_by_all() -> None:
    """Those that come while a key is being announced wait for the same confirmation; later ones do not wait."""

    async def scenario() -> None:
        broker = Broker()
        group = broker.hub.hold(KEY)
        calls: list[str] = []
        broker.hub.when_confirmed(group, lambda: calls.append("called"))
        waiting = [asyncio.ensure_future(broker.hub.confirmed(group)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert not any(task.done() for task in waiting[1:])
        broker.confirm(KEY)
        await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5)
        await asyncio.wait_for(broker.hub.confirmed(group), 5)
        assert (calls, group.confirmed) == (["called"], True)

    asyncio.run(scenario())


def test_envelope_is_built_once() -> None:
    """Those who asked for it share one envelope; the others have the bare message."""
    hub = Broker().hub
    wrapped = [Taker(hub, envelope=True) for _ in range(2)]
    bare = Taker(hub)
    for receiver in (*wrapped, bare):
        hub.join(receiver, KEY)
    assert hub.deliver(publication(KEY, event="größe", message='"\\\u2028')) == 3
    assert wrapped[0].frames[0] is wrapped[1].frames[0]
    assert orjson.loads(payload_of(wrapped[0].frames[0])) == {"event": "größe", "message": '"\\\u2028'}
    assert bytes(payload_of(bare.frames[0])).decode() == '"\\\u2028'


def test_who_does_not_take_is_closed_after_the_walk() -> None:
    """S0-26, S0-30: a receiver that fails is not counted, the others are served, it is unbound after the walk."""

    async def scenario() -> None:
        broker = Broker()
        hub = broker.hub
        receivers = [Taker(hub, takes=bool(number % 3)) for number in range(30)]
        for receiver in receivers:
            hub.join(receiver, KEY)
        assert hub.deliver(publication(KEY)) == 20
        assert all(receiver.slow == (not receiver.takes) for receiver in receivers)
        assert hub.deliver(publication(KEY)) == 20
        assert len(hub.connections("u", "e")) == 20
        # Marked outside of a walk: closed in the next turn of the loop.
        hub.mark_slow(receivers[1])
        assert receivers[1].slow == 0
        await asyncio.sleep(0)
        assert receivers[1].slow == 1

    asyncio.run(scenario())


def test_connections_of_a_user() -> None:
    """S0-37: all of a user's connections, or those with an event; names that look alike are not mixed up."""
    hub = Broker().hub
    receivers = {}
    for user, event in itertools.product(("a", "ab", "1:a"), ("b", "bb", ":")):
        receivers[user, event] = Taker(hub, user)
        hub.join(receivers[user, event], user_key(user, event))
    for (user, event), receiver in receivers.items():
        assert hub.connections(user, event) == [receiver]
        assert len(hub.connections(user, None)) == 3
    assert hub.connections("nobody", None) == hub.connections("a", "nothing") == []
