"""Messages on the control bus between workers and broker.

    ┌────────────┬─────────┬────────────┬───────────────┐
    │ u32 length │ u8 type │ u64 number │ body          │   little-endian; length counts
    └────────────┴─────────┴────────────┴───────────────┘   type, number and body

`number` ties an answer to its question and is chosen by whoever asks:

    worker -> broker                                broker -> worker
    HELLO        number of the worker process       WELCOME      body: epoch
    SUBSCRIBE    announcement, 0 in a table; key    SUBSCRIBED   all announcements up to this one
    UNSUBSCRIBE  0; body: key
    COMPLETE     announcement: the key table is sent   (answered by SUBSCRIBED)
    PUBLISH      request; body: publication         DELIVER      publication number; same body
                                                    DELIVER_OWN  request; position, where it was kept
    PUBLISH_ONCE request; u16 length, idempotency   DELIVER_AT   publication number; u64 offset, same body
                 key, publication
    ORDER        request; body: JSON                OBEY         publication number; same body
    COUNT        publication number; u32            RESULT       request; status, sent, unconfirmed, position
    SCRAPE       request                            MEASURE      scrape
    SNAPSHOT     scrape or 0; body: JSON            REPORT       request; body: JSON
    ADMIT        request; u32 limit, name           ADMITTED     request; 1 or 0
    RELEASE      0; name: one admitted less
    HOLD         number of those admitted; name     (part of the table, before COMPLETE)
    JOIN         request; list of Join              ANSWER       request; list of Kept, as many
    LEAVE        0; Join, as it was told
    PRESENT      0; Join: somebody who has joined   (part of the table)
    CLAIM        connection; u64 number, name       CLAIMED      connection; name
    UNCLAIM      connection; name                   REPLACED     connection; name
    HISTORY      request; History                   ANSWER       request; Kept
    FORGET       request; routing key               ANSWER       request; nothing
    ONLINE       request; Online                    ANSWER       request; OnlineAnswer
    PRESENCE     request; routing key               ANSWER       request; list of members' infos
    GATHER       request; JSON question             INQUIRE      inquiry; same body
    FOUND        inquiry; JSON                      ANSWER       request; Gathered
                                                    NOTICE       publication number; publication
                                                    CHANGES      publication number; publication
    NOTES        0; list of insight.Note
    INSIGHT      request; JSON question             ANSWER       request; JSON, see insight.py
    TRACED       0; insight.Seen                    TRACE        0; JSON list of insight.Target: all that is traced
    GOODBYE      0: the link closes on purpose

ADMIT asks for one more connection of a name (of a user, of an address) on the whole host.
It is sent only where a limit is configured.

JOIN lets a connection into channels with more than routing: with what a channel has kept, with presence, or
both. The answer stands in the stream at the very place where the connection joins: what was delivered before it is
among the kept entries, what comes behind it is not. A NOTICE tells of a user who came or left; what it looks like is
the application's affair, which each worker asks. Its event is the application's path, its frame a Notice. CHANGES
tells the same of a channel with a namespace, several at once: its frame is a list of (came, info).

A publication that its channel keeps gets the channel's next offset, in the same step in which it is sent out: what
comes with an offset (DELIVER_AT) is kept, what is kept has been sent. A PUBLISH_ONCE whose idempotency key was used
before gets the earlier one's RESULT.

CLAIM makes a connection the only one of a name, told again as part of a table. Of two claims the one with the larger
number wins: the time at which it was made, by CLOCK_MONOTONIC, which all processes share. So the newest connection wins
whichever worker's message comes first.

A publication's body is made once, by the worker that took the push, and travels
unchanged: when it was taken, keys, kind, event, whom it spares, how many its channel keeps, and the WebSocket frame
that receivers write as it is. Each process
copies a large one once at most: the first one into the body, the broker not at all (it cuts
views out of what it has read), and each receiving worker into the frame that all its
connections share. What the kernel's sockets copy comes on top.

DELIVER_OWN: only the worker that asked has subscribers. It has kept the body, delivers it now, in the
broker's order, and answers its publisher itself: nothing comes back to it and it owes no COUNT.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import msgspec

from fastpush.errors import FastpushError

HELLO, SUBSCRIBE, UNSUBSCRIBE, COMPLETE, PUBLISH, ORDER, COUNT, SCRAPE, SNAPSHOT, GOODBYE = range(1, 11)
ADMIT, RELEASE, HOLD, JOIN, LEAVE, PRESENT, CLAIM, UNCLAIM, HISTORY, ONLINE = range(11, 21)
PUBLISH_ONCE, FORGET, PRESENCE, GATHER, FOUND, NOTES, INSIGHT, TRACED = range(21, 29)
WELCOME, SUBSCRIBED, DELIVER, OBEY, RESULT, MEASURE, REPORT, ADMITTED, DELIVER_OWN = range(65, 74)
ANSWER, REPLACED, NOTICE, CLAIMED, DELIVER_AT, CHANGES, INQUIRE, TRACE = range(74, 82)

_HEAD = struct.Struct("<IBQ")
_pack_head = _HEAD.pack
_HEAD_BYTES = _HEAD.size
_LENGTH_BYTES = 4
_PUBLICATION = struct.Struct("<dQBHHI")  # when taken, whom it spares, kind, how many to keep, keys, length of the first
_NUMBER = struct.Struct("<Q")
_pack_publication = _PUBLICATION.pack
_unpack_publication = _PUBLICATION.unpack_from
_FIRST_KEY = _PUBLICATION.size
_pack_u32 = struct.Struct("<I").pack
_unpack_u32 = struct.Struct("<I").unpack_from
_RESULT = struct.Struct("<BIH")
_POSITION = struct.Struct("<QQ")
_pack_u16 = struct.Struct("<H").pack
_unpack_u16 = struct.Struct("<H").unpack_from
_new_tuple = tuple.__new__  # what a NamedTuple's constructor ends in, at half of the cost


Body = bytes | memoryview
"""What a message carries: bytes, or a view of LARGE_BYTES and more, valid for as long as it is kept."""

HISTORY_MESSAGES_MAX = 65_535
HISTORY_BYTES_MAX = 16 * 1024 * 1024  # of what one answer holds: far below what a message on the bus may have
ONCE_BYTES_MAX = 1024  # of an idempotency key
LARGE_BYTES = 16384  # from here on a copy costs more than what it takes to do without


class BusError(FastpushError):
    """The other side sent something that is no bus message; the link is of no use."""


class Status(IntEnum):
    """What became of a push or drop, as the broker tells the worker that asked."""

    DONE = 0
    NOT_READY = 1  # the broker waits for a key table that this needs; nobody received it
    OVERLOADED = 2  # a worker's link is over its bound; nobody received it
    UNKNOWN = 3  # the broker was lost before it answered; set by the asking worker itself


class Kind(IntEnum):
    """What a publication's frame holds, and its event."""

    MESSAGE = 0  # any message; the event that it was pushed with, or the application's path
    DATA = 1  # a text that is JSON, one publication of a channel; event: further members of that, as `publication` says
    NOTICE = 2  # among kept entries only: a packed Notice
    CHANGES = 3  # who came and left, as pushes of the client protocol, ready to be sent


class Position(NamedTuple):
    """A place in what a channel has kept: publications so far, from 1 on, and since when they are counted."""

    offset: int
    epoch: int


NO_POSITION = Position(0, 0)


class Publication(NamedTuple):
    """One push on its way: routing keys, event (UTF-8) and prebuilt frame.

    taken_seconds: when it was handed to the broker, by CLOCK_MONOTONIC, which all processes of a host share.
    spared: `connection_number` of a connection that does not get it; 0: nobody.
    offset: its place in what its channel has kept; 0: it was not kept.
    """

    keys: list[bytes]
    event: bytes
    frame: bytes
    taken_seconds: float
    spared: int = 0
    kind: int = 0
    offset: int = 0


class Join(msgspec.Struct, frozen=True, array_like=True):
    """A connection that enters a channel.

    connection: its `connection_number`.  replay_messages, replay_bytes: most of what the channel has kept that it
    wants, the newest.  since: if all behind this position is within that, it is answered, else nothing is.
    is_present: whether presence counts it, as one of `user`, "" for nobody's.  info: what others are told of it, JSON.
    path: of the application that words the notices; "": the channel's namespace says what is told.
    grace_ms: time in which a user may come back unnoticed.  keep: how many entries the channel keeps, notices too.
    """

    key: bytes
    connection: int
    path: str
    replay_messages: int = 0
    replay_bytes: int = 0
    user: str = ""
    grace_ms: int = 0
    keep: int = 0
    is_present: bool = False
    info: bytes = b""
    since: Position | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One kept publication, of any Kind. data: a WebSocket frame, or a Notice.  extras: as a publication's event."""

    offset: int
    kind: int
    data: bytes
    extras: bytes = b""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a channel has kept: some entries, oldest first, and the position of its newest.

    recovered: the entries are all that came behind the position that was asked for.
    """

    offset: int
    epoch: int
    recovered: bool
    entries: list[Entry]


class History(msgspec.Struct, frozen=True, array_like=True):
    """A question for what a channel has kept, behind or (reverse) before a position.

    messages: the most; 0: none, only the channel's position.
    """

    key: bytes
    messages: int = HISTORY_MESSAGES_MAX
    since: Position | None = None
    reverse: bool = False


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """A user came to a channel or left it, at a Unix time in seconds."""

    user: str
    is_online: bool
    seconds: float


class Online(msgspec.Struct, frozen=True, array_like=True):
    """A question about channels. users: the most users of the first one that are to be named."""

    keys: list[bytes]
    users: int = 0


class OnlineAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Users and connections of each channel asked for, and names of the first one's users."""

    counts: list[tuple[int, int]]
    users: list[str]


class Gathered(msgspec.Struct, frozen=True, array_like=True):
    """What each worker has said, and how many have not in time."""

    found: list[bytes]
    missing: int


pack = msgspec.msgpack.Encoder().encode
unpack_join = msgspec.msgpack.Decoder(Join).decode
unpack_joins = msgspec.msgpack.Decoder(list[Join]).decode
unpack_notice = msgspec.msgpack.Decoder(Notice).decode
unpack_online = msgspec.msgpack.Decoder(Online).decode
unpack_online_answer = msgspec.msgpack.Decoder(OnlineAnswer).decode
unpack_history = msgspec.msgpack.Decoder(History).decode
unpack_kept = msgspec.msgpack.Decoder(Kept).decode
unpack_all_kept = msgspec.msgpack.Decoder(list[Kept]).decode
unpack_changes = msgspec.msgpack.Decoder(list[tuple[bool, bytes]]).decode
unpack_infos = msgspec.msgpack.Decoder(list[bytes]).decode
unpack_gathered = msgspec.msgpack.Decoder(Gathered).decode

_SERIAL_BITS = 40


def connection_number(worker: int, serial: int) -> int:
    """Return what names a connection on this host: the process that it is with, and its number there."""
    return worker << _SERIAL_BITS | serial


def split_connection_number(number: int) -> tuple[int, int]:
    """Return what `connection_number` was given."""
    return number >> _SERIAL_BITS, number & ((1 << _SERIAL_BITS) - 1)


def encode(kind: int, number: int, body: bytes = b"") -> bytes:
    """Return one whole message."""
    return _pack_head(len(body) + 9, kind, number) + body


def encode_head(kind: int, number: int, body_bytes: int) -> bytes:
    """Return a message's head, for a body that is written right behind it."""
    return _pack_head(body_bytes + 9, kind, number)


def encode_publication(
    keys: list[bytes],
    event: bytes,
    *frame: bytes,
    taken_seconds: float,
    spared: int = 0,
    keep: int = 0,
    kind: int = Kind.MESSAGE,
) -> bytes:
    """Return a publication's body; the frame may come in parts. keep: how many its channel, the only key, keeps.

    Bounds: 65,535 keys, 65,535 to keep; the caller limits the length of keys.
    """
    key = keys[0]
    start = _pack_publication(taken_seconds, spared, kind, keep, len(keys), len(key))
    if len(keys) == 1:
        return b"".join((start, key, _pack_u32(len(event)), event, *frame))
    parts = [start, key]
    for key in keys[1:]:
        parts += (_pack_u32(len(key)), key)
    parts += (_pack_u32(len(event)), event, *frame)
    return b"".join(parts)


def decode_route(body: Body) -> tuple[list[bytes], int]:
    """Return a publication's keys, and how many its channel keeps, without touching the rest."""
    _, _, _, keep, keys, _ = _walk_keys(body)
    return keys, keep


def decode_publication(body: Body, offset: int = 0) -> Publication:
    """Return what `encode_publication` was given; the frame is the one copy made. offset: where it was kept."""
    taken_seconds, spared, kind, _, keys, at = _walk_keys(body)
    (size,) = _unpack_u32(body, at)
    start = at + 4 + size
    event, frame = body[at + 4 : start], body[start:]
    if body.__class__ is not bytes:
        event, frame = bytes(event), bytes(frame)
    return _new_tuple(Publication, (keys, event, frame, taken_seconds, spared, kind, offset))


def encode_offset(offset: int) -> bytes:
    """Return what stands before a publication's body in a DELIVER_AT."""
    return _NUMBER.pack(offset)


def decode_offset(body: Body) -> tuple[int, Body]:
    """Return the offset of a DELIVER_AT, and the publication's body."""
    return _NUMBER.unpack_from(body)[0], body[_NUMBER.size :]


def encode_once(key: bytes) -> bytes:
    """Return what stands before a publication's body in a PUBLISH_ONCE."""
    return _pack_u16(len(key)) + key


def decode_once(body: Body) -> tuple[bytes, Body]:
    """Return the idempotency key of a PUBLISH_ONCE, and the publication's body."""
    end = 2 + _unpack_u16(body)[0]
    return bytes(body[2:end]), body[end:]


def _walk_keys(body: Body) -> tuple[float, int, int, int, list[bytes], int]:
    """Return when the publication was taken, whom it spares, kind, how many are kept, keys, and where these end."""
    taken_seconds, spared, kind, keep, count, size = _unpack_publication(body)
    at = _FIRST_KEY + size
    keys = [body[_FIRST_KEY:at]]
    for _ in range(count - 1):
        (size,) = _unpack_u32(body, at)
        at += 4 + size
        keys.append(body[at - size : at])
    whole = keys if body.__class__ is bytes else [bytes(key) for key in keys]
    return taken_seconds, spared, kind, keep, whole, at  # type: ignore[return-value]


def encode_count(publication: int, connections: int) -> bytes:
    """Return a COUNT: so many connections of this worker took the publication."""
    return _pack_head(13, COUNT, publication) + _pack_u32(connections)


def decode_count(body: bytes) -> int:
    """Return the connections of a COUNT."""
    count: int = _unpack_u32(body)[0]
    return count


def encode_result(request: int, status: Status, sent: int, unconfirmed: int, position: Position = NO_POSITION) -> bytes:
    """Return a RESULT. position: of a publication that was kept."""
    if position is NO_POSITION:
        return _pack_head(16, RESULT, request) + _RESULT.pack(status, sent, unconfirmed)
    return _pack_head(32, RESULT, request) + _RESULT.pack(status, sent, unconfirmed) + _POSITION.pack(*position)


def decode_result(body: bytes) -> tuple[int, int, int, Position]:
    """Return a RESULT: (Status, connections that took it, workers that did not count in time, where it was kept)."""
    status, sent, unconfirmed = _RESULT.unpack_from(body)
    return status, sent, unconfirmed, decode_position(body[_RESULT.size :])


def encode_position(position: Position) -> bytes:
    """Return a position as a DELIVER_OWN carries it."""
    return _POSITION.pack(*position)


def decode_position(body: bytes) -> Position:
    """Return the position in a body; NO_POSITION for an empty one."""
    return Position(*_POSITION.unpack(body)) if body else NO_POSITION


def encode_admit(name: bytes, limit: int) -> bytes:
    """Return the body of an ADMIT."""
    return _pack_u32(limit) + name


def decode_admit(body: bytes) -> tuple[bytes, int]:
    """Return the name and the limit of an ADMIT."""
    return body[4:], _unpack_u32(body)[0]


def encode_claim(connection: int, number: int, name: bytes) -> bytes:
    """Return a CLAIM: the connection wants `name`, or has had it, since the time that `number` stands for."""
    return encode(CLAIM, connection, _NUMBER.pack(number) + name)


def decode_claim(body: bytes) -> tuple[int, bytes]:
    """Return the number and the name in a CLAIM."""
    return _NUMBER.unpack_from(body)[0], body[_NUMBER.size :]


def encode_epoch(epoch: int) -> bytes:
    """Return the body of a WELCOME."""
    return _NUMBER.pack(epoch)


def decode_epoch(body: bytes) -> int:
    """Return the epoch of a WELCOME."""
    epoch: int = _NUMBER.unpack(body)[0]
    return epoch


class Decoder:
    """Cuts a byte stream into messages; keeps at most one unfinished message.

    A message longer than `message_bytes` raises BusError: both ends run the same
    program, so it can only be garbage, and waiting for it would hold memory.
    """

    __slots__ = ("_message_bytes", "_partial")

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, Body]]:
        """Yield (type, number, body) for each message that `data` completes."""
        received: bytes | bytearray = data
        if self._partial:
            # bytearray grows in place: a large message in many reads is copied once.
            self._partial += data
            if len(self._partial) < _LENGTH_BYTES or len(self._partial) < self._need(self._partial):
                return
            received, self._partial = self._partial, bytearray()
        at, size = 0, len(received)
        while at + _HEAD_BYTES <= size:
            length, kind, number = _HEAD.unpack_from(received, at)
            end = at + _LENGTH_BYTES + length
            if end > size:
                break
            if length < _HEAD_BYTES - _LENGTH_BYTES:
                raise BusError(f"message of {length} bytes on the bus, at least 9 expected")
            start = at + _HEAD_BYTES
            yield kind, number, bytes(received[start:end]) if length < LARGE_BYTES else memoryview(received)[start:end]
            at = end
        if at < size:
            self._partial += received[at:]
            if len(self._partial) >= _LENGTH_BYTES:
                self._need(self._partial)

    def _need(self, partial: bytearray) -> int:
        length: int = _unpack_u32(partial)[0]
        if length > self._message_bytes:
            raise BusError(f"message of {length} bytes on the bus, at most {self._message_bytes} allowed")
        return _LENGTH_BYTES + length
