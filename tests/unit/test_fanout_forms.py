"""fastpush.fanout.batch: what clients of channels and event streams are written, one publication or many at once."""

import zlib
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from fastpush.config import Compression
from fastpush.fanout import CLIENT, DEFLATE, ENVELOPE, EVENTS, GZIP, PLAIN, UNIDIRECTIONAL
from fastpush.fanout.batch import Batch
from fastpush.protocol.bus import Kind, Publication
from fastpush.protocol.client import join_push, leave_push
from fastpush.protocol.frames import ChannelFrame, binary_frame, payload_of, text_frame
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from tests.unit.test_fanout import Taker, make_hub, on_loop

KEY = channel_key("chat:42")
FORMS = [CLIENT, CLIENT | DEFLATE, UNIDIRECTIONAL, EVENTS]
JSON_HEADER = b"\x81"


class Listener(Taker):
    """A taker that does not compare what is written at once with its parts: they may be made otherwise."""

    def __init__(self, form: int, room: int = 10**9) -> None:
        super().__init__(make_hub(), form=form, room=room)

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        taken = frames[: max(0, self.room - len(self.frames))]
        if len(taken) == len(frames):
            self.writes.append(joined)
        self.frames += taken
        return len(taken)


def data(number: int, extras: bytes = b"", key: bytes = KEY) -> Publication:
    """What the client protocol or the server API publishes: JSON."""
    text = orjson.dumps({"n": number})
    return Publication([key], extras, text_frame(text), 0.0, kind=Kind.DATA, offset=number)


def message(text: str, key: bytes = KEY, event: str = "/app", offset: int = 0) -> Publication:
    """What an application or a push has sent: a text."""
    return Publication([key], event.encode(), text_frame(text.encode()), 0.0, offset=offset)


def binary(key: bytes = KEY) -> Publication:
    return Publication([key], b"/app", binary_frame(b"\xff\x00"), 0.0, offset=9)


def changes(*users: str) -> Publication:
    """Who came and left, as a worker hands it on."""
    pushes = [join_push("chat:42", b'{"user":"%b"}' % user.encode()) for user in users]
    pushes.append(leave_push("chat:42", b'{"user":"eve"}'))
    return Publication([KEY], b"", text_frame(b"\n".join(pushes)), 0.0, kind=Kind.CHANGES)


def given(form: int, *publications: Publication, compression: Compression | None = None) -> tuple[Listener, Batch]:
    """A receiver of a form, and what it was given with."""
    batch = Batch(publications, compression or Compression())
    taker = Listener(form)
    batch.give(taker)
    return taker, batch


def read(written: bytes, form: int) -> list[Any]:
    """The objects in what was written, in order."""
    if form & (UNIDIRECTIONAL | EVENTS):
        events = written.decode().split("\n\n")
        assert events.pop() == ""
        return [orjson.loads("\n".join(line.removeprefix("data: ") for line in each.split("\n"))) for each in events]
    objects = []
    while written:
        size = len(payload_of(written[: 2 + written[1]])) if written[1] < 126 else int.from_bytes(written[2:4], "big")
        start = 2 if written[1] < 126 else 4
        payload = written[start : start + size]
        text = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff") if written[0] == 0xC1 else payload
        objects += [orjson.loads(line) for line in text.split(b"\n")]
        written = written[start + size :]
    return objects


def push(pub: dict[str, Any]) -> dict[str, Any]:
    return {"channel": "chat:42", "pub": pub}


def test_a_publication_in_each_form() -> None:
    """As a push with its data, members and offset; bare as an event; as the text itself in the simple protocol."""
    pushed = data(7, b',"tags":{"a":"b"}')
    expected = push({"data": {"n": 7}, "tags": {"a": "b"}, "offset": 7})
    assert read(given(CLIENT, pushed)[0].writes[0], CLIENT) == [{"push": expected}]
    assert given(UNIDIRECTIONAL, pushed)[0].writes == [b"data: %b\n\n" % orjson.dumps(expected)]
    assert given(EVENTS, pushed)[0].writes == [b'data: {"n":7}\n\n']
    assert read(given(EVENTS | ENVELOPE, pushed)[0].writes[0], EVENTS) == [{"channel": "chat:42", "data": {"n": 7}}]
    assert given(PLAIN, pushed)[0].writes == [pushed.frame]


def test_a_text_of_an_application_is_a_string() -> None:
    """In a channel of the client protocol its data is JSON: the text, quoted; offset 0 is left out."""
    sent = message('say "hi"\n')
    assert read(given(CLIENT, sent)[0].writes[0], CLIENT) == [{"push": push({"data": 'say "hi"\n'})}]
    assert read(given(UNIDIRECTIONAL, sent)[0].writes[0], UNIDIRECTIONAL) == [push({"data": 'say "hi"\n'})]
    assert given(EVENTS, sent)[0].writes == [b'data: say "hi"\ndata: \n\n']


@pytest.mark.parametrize("form", [CLIENT, UNIDIRECTIONAL])
def test_a_push_to_everybody_is_a_message(form: int) -> None:
    """It belongs to no channel: the client protocol has messages for that, with event and text."""
    (told,) = read(given(form, message("grüße", EVERYBODY, "news"))[0].writes[0], form)
    told = told["push"] if form == CLIENT else told
    assert told == {"message": {"data": {"event": "news", "message": "grüße"}}}


def test_a_push_to_everybody_is_its_text_in_the_simple_protocol() -> None:
    """Or has its event around it, where the client wants envelopes."""
    sent = message("grüße", EVERYBODY, "news")
    assert given(EVENTS, sent)[0].writes == ["data: grüße\n\n".encode()]
    (told,) = read(given(EVENTS | ENVELOPE, sent)[0].writes[0], EVENTS)
    assert told == {"event": "news", "message": "grüße"}


@pytest.mark.parametrize("form", FORMS)
def test_binary_messages_have_no_form_here(form: int) -> None:
    """Nothing is written for them, nobody is asked, nobody counts; others of the same batch pass."""
    for key in (KEY, EVERYBODY):
        taker, batch = given(form, binary(key))
        assert (taker.writes, batch.counts()) == ([], [0])
    taker, batch = given(form, data(1), binary(), data(2))
    assert len(taker.writes) == 1 and len(read(taker.writes[0], form)) == 2
    assert batch.counts() == [1, 0, 1]
    batch = Batch([binary(), data(1)], Compression())
    batch.give_some(taker, [0])
    assert (len(taker.writes), batch.counts()) == (1, [0, 0])
    batch.give_some(taker, [0, 1])
    assert (len(taker.writes), batch.counts()) == (2, [0, 1])


@pytest.mark.parametrize("form", [PLAIN, ENVELOPE, GZIP, DEFLATE, EVENTS])
def test_who_came_and_left_is_nothing_to_other_forms(form: int) -> None:
    """Only the client protocol has words for it: nothing is written to others, alone or among publications."""
    taker, batch = given(form, changes("jack"))
    assert (taker.writes, batch.counts()) == ([], [0])
    taker, batch = given(form, message("a"), changes("jack"), message("b"))
    alone = [given(form, each)[0].writes[0] for each in (message("a"), message("b"))]
    assert taker.writes == [b"".join(alone)] and batch.counts() == [1, 0, 1]
    batch.give_some(taker, [1])
    assert len(taker.writes) == 1 and batch.counts() == [1, 0, 1]


def test_who_came_and_left_are_pushes_a_line_or_an_event_each() -> None:
    """In order, all of a diff at once."""
    infos = [("join", "jack"), ("join", "jill"), ("leave", "eve")]
    expected = [{"channel": "chat:42", kind: {"info": {"user": user}}} for kind, user in infos]
    taker, batch = given(CLIENT, changes("jack", "jill"))
    assert [each["push"] for each in read(taker.writes[0], CLIENT)] == expected and batch.counts() == [1]
    assert read(given(UNIDIRECTIONAL, changes("jack", "jill"))[0].writes[0], UNIDIRECTIONAL) == expected


def test_several_pushes_share_a_frame() -> None:
    """What has gathered leaves as one message of lines, made once for all; alone each is a message of its own."""
    publications = [data(1), message("two", offset=2), changes("jack"), data(4)]
    taker, batch = given(CLIENT, *publications)
    other = Listener(CLIENT)
    batch.give(other)
    (written,) = taker.writes
    assert other.writes[0] is written and other.frames[0] is taker.frames[0]
    alone = [given(CLIENT, each)[0].writes[0] for each in publications]
    assert taker.frames == alone
    assert bytes(payload_of(written)) == b"\n".join(bytes(payload_of(frame)) for frame in alone)
    assert written[:1] == JSON_HEADER and batch.counts() == [2, 2, 2, 2]


@pytest.mark.parametrize("form", [UNIDIRECTIONAL, EVENTS])
def test_several_events_are_written_at_once(form: int) -> None:
    """Events end by themselves: joined they are what they are alone."""
    publications = [data(1), message("two"), data(3)]
    taker, batch = given(form, *publications)
    assert taker.writes == [b"".join(given(form, each)[0].writes[0] for each in publications)]
    assert taker.frames == [given(form, each)[0].writes[0] for each in publications]
    assert batch.counts() == [1, 1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_frames_tell_their_channel_and_offset(form: int) -> None:
    """For queues that drop by channel: each publication's frame, but nothing that tells who came and left, for no
    newer one stands for it.
    """
    taker, _ = given(form, data(7), changes("jack"), message("x", offset=8))
    named = [frame for frame in taker.frames if frame]
    publications = [frame for frame in named if isinstance(frame, ChannelFrame)]
    assert [(frame.key, frame.offset) for frame in publications] == [(KEY, 7), (KEY, 8)]
    assert len(named) - len(publications) == (form != EVENTS)


def test_deflated() -> None:
    """What is worth it, alone or joined, by the size of what is written; it is the same JSON, and still named."""
    compression = Compression(min_bytes=100)
    taker, _ = given(CLIENT | DEFLATE, data(1), data(2), compression=compression)
    (written,) = taker.writes
    assert written[0] == 0xC1 and [frame[0] for frame in taker.frames] == [0x81, 0x81]
    plain, _ = given(CLIENT, data(1), data(2))
    assert read(written, CLIENT) == read(plain.writes[0], CLIENT)
    taker, _ = given(CLIENT | DEFLATE, data(1, b',"tags":{"long":"%b"}' % (b"x" * 100)), compression=compression)
    assert taker.writes[0][0] == 0xC1
    (frame,) = taker.frames
    assert isinstance(frame, ChannelFrame) and (frame.key, frame.offset) == (KEY, 1)


@pytest.mark.parametrize("form", FORMS)
def test_counts_are_of_what_each_took(form: int) -> None:
    """Of several receivers and forms: those that took all, a part, nothing, or have no form for it."""
    publications = [data(1), binary(), data(2), data(3)]
    batch = Batch(publications, Compression())
    takers = [Listener(form), Listener(form, room=3), Listener(PLAIN), Listener(form), Listener(form, room=0)]
    batch.give_last(dict.fromkeys(takers), len(takers))
    assert batch.counts() == [4, 1, 4, 3]
    assert batch.writes == len(takers)


@on_loop
async def test_a_channel_with_all_forms_among_its_members() -> None:
    """One publication, made once for each form that is there; two members of a form share the bytes."""
    hub = make_hub()
    takers = {form: [Listener(form), Listener(form)] for form in (PLAIN, CLIENT, UNIDIRECTIONAL, EVENTS)}
    for pair in takers.values():
        for taker in pair:
            hub.join(taker, KEY)
    counts: list[int] = []
    pushed = data(1)
    hub.deliver(pushed, counts.append)
    assert counts == [8]
    for form, (one, two) in takers.items():
        assert one.writes[0] is two.writes[0], form
    assert takers[PLAIN][0].writes[0] is pushed.frame
    hub.deliver(changes("jack"), counts.append)
    assert counts == [8, 4] and len(takers[PLAIN][0].writes) == len(takers[EVENTS][0].writes) == 1


@on_loop
async def test_a_client_of_one_channel_is_not_told_the_user_s_pushes() -> None:
    """A push to users has keys of users: no client of channels has them."""
    hub = make_hub()
    client = Listener(CLIENT)
    hub.join(client, KEY)
    counts: list[int] = []
    hub.deliver(message("private", user_key("u", "e")), counts.append)
    assert (counts, client.writes) == ([0], [])
