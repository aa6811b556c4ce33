"""What is written: a publication in each wire form that somebody wants, and several joined to one write.

A receiver's `form` says how it wants its messages; ENVELOPE may be added to the others:

    PLAIN     the pushed text itself
    ENVELOPE  {"event", "message"}
    DEFLATE   permessage-deflate, for messages that are worth it
    GZIP      a binary message that holds gzip (S2-14)
    LINES     texts that have waited in a send queue are joined, a line each (S4-13)

In CHANNEL_FORMS frames are ChannelFrames; each of them stands alone:

    CLIENT          the client protocol: JSON replies and pushes in text frames
    UNIDIRECTIONAL  its pushes alone, as Server-Sent Events
    EVENTS          the pushed text as Server-Sent Events
"""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import orjson

from fastpush.config import Compression
from fastpush.protocol import client
from fastpush.protocol.bus import Kind, Publication
from fastpush.protocol.client import bare, message_push, publication_push
from fastpush.protocol.frames import (
    ChannelFrame,
    deflated_frame,
    gzip_frame,
    is_text,
    payload_bytes,
    payload_of,
    text_frame,
)
from fastpush.protocol.push import EVERYBODY, channel_of, envelope
from fastpush.protocol.server_sent import event

if TYPE_CHECKING:
    from fastpush.fanout.hub import Group

PLAIN, ENVELOPE, DEFLATE, GZIP, LINES = 0, 1, 2, 4, 8
CLIENT, UNIDIRECTIONAL, EVENTS = 16, 32, 64
CHANNEL_FORMS = CLIENT | UNIDIRECTIONAL | EVENTS
_DATA, _CHANGES = int(Kind.DATA), int(Kind.CHANGES)


class Writable(Protocol):
    """A transport that has nothing waiting."""

    def write(self, data: bytes | memoryview) -> None: ...

    def is_closing(self) -> bool: ...


class Receiver(Protocol):
    """What fan-out needs of a connection.

    user, groups: written by the hub.  form: one of the wire forms above.
    writable: its transport while a write would be taken at once; None while it is behind, closing or closed.
    A TLS transport is never there: all it is given has to pass through it, by `send_joined`.
    descriptor: that transport's socket, as long as it is not closing. Writing to it keeps the order because the
    transport holds nothing (its high-water mark is 0) and is plain TCP.
    """

    user: str
    groups: "tuple[Group, ...]"
    form: int
    writable: Writable | None
    descriptor: int

    def send_joined(self, joined: bytes, frames: Sequence[bytes]) -> int:
        """Take whole messages: `joined` in one write, or its `frames` into the send queue.

        Returns how many frames were taken, from the first on. Never raises, never changes groups.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Leave all groups and begin the close handshake; again does nothing."""
        ...

    def close_slow(self) -> None:
        """End this connection; called after the walk in which it marked itself."""
        ...


class Batch:
    """Publications of one key, or one publication of several keys, on their way to receivers.

    Cost: each wire form is made once, when its first receiver comes.
    """

    __slots__ = ("_compression", "_fewer", "_forms", "_taken", "publications", "writes")

    def __init__(self, publications: Sequence[Publication], compression: Compression) -> None:
        self.publications = publications
        self._compression = compression
        self._forms: dict[int, tuple[bytes, Sequence[bytes]]] = {}
        self.writes = 0  # receivers that were given something
        self._taken = 0  # of them: took all of it
        self._fewer: list[int] | None = None  # of the others: how many took each publication

    def give(self, receiver: Receiver) -> None:
        """Hand over all of it."""
        self.give_last({receiver: None}, 1)

    def give_last(self, remaining: dict[Receiver, None], count: int) -> None:
        """Hand over all of it to the last `count` of `remaining`, and take them out: the loop that costs."""
        take_last = remaining.popitem
        size = len(self.publications)
        form, written, length = -1, 0, 0
        joined, frames = b"", cast(Sequence[bytes], ())
        for _ in range(count):
            receiver, _ = take_last()
            if receiver.form != form:
                self._count_whole(written, frames)
                form, written = receiver.form, 0
                joined, frames = self._in_form(form)
                length = len(joined)
            if not length:  # this form has nothing for it
                continue
            writable = receiver.writable
            if writable is not None and not writable.is_closing():
                # Past the transport, which has nothing waiting: a tenth of the whole write cheaper.
                try:
                    sent = os.write(receiver.descriptor, joined)
                except OSError:  # it would block, or has failed: the transport finds that out too
                    sent = 0
                if sent == length:
                    written += 1
                    continue
                if sent:
                    writable.write(memoryview(joined)[sent:])
                    written += not writable.is_closing()
                    continue
            taken = receiver.send_joined(joined, frames)
            if taken == size:
                written += 1
            else:
                self._count([position for position in range(taken) if frames[position]])
        self._count_whole(written, frames)
        self.writes += count

    def give_some(self, receiver: Receiver, positions: Sequence[int]) -> None:
        """Hand over the publications at these positions."""
        self.writes += 1
        _, frames = self._in_form(receiver.form)
        positions = [position for position in positions if frames[position]]  # this form has nothing for others
        some = [frames[position] for position in positions]
        if some:
            self._count(positions[: receiver.send_joined(b"".join(some), some)])

    def _count_whole(self, receivers: int, frames: Sequence[bytes]) -> None:
        """Count receivers that took all of these frames; an empty one is none."""
        if all(frames):
            self._taken += receivers
        elif receivers:
            self._count([position for position, frame in enumerate(frames) if frame], receivers)

    def _count(self, positions: Iterable[int], receivers: int = 1) -> None:
        if self._fewer is None:
            self._fewer = [0] * len(self.publications)
        for position in positions:
            self._fewer[position] += receivers

    def counts(self) -> list[int]:
        """Return for each publication how many receivers took it."""
        if self._fewer is None:
            return [self._taken] * len(self.publications)
        return [self._taken + fewer for fewer in self._fewer]

    def _in_form(self, form: int) -> tuple[bytes, Sequence[bytes]]:
        made = self._forms.get(form)
        if made is None:
            if form & CHANNEL_FORMS:
                made = channel_frames(self.publications, form, self._compression)
            else:
                frames = [frame_in_form(publication, form, self._compression) for publication in self.publications]
                made = (frames[0] if len(frames) == 1 else b"".join(frames), frames)
            self._forms[form] = made
        return made


def frame_in_form(publication: Publication, form: int, compression: Compression) -> bytes:
    """Return the frame that a receiver of `form` is sent; b"" for nothing."""
    frame = publication.frame
    if publication.kind == _CHANGES:
        return b""
    if form & ENVELOPE and is_text(frame):  # an application may push binary messages to the same user and event
        message = str(payload_of(frame), "utf-8")
        frame = text_frame(envelope(publication.event.decode(), message))
    if form & GZIP:
        return gzip_frame(frame, compression.level)
    return _deflated(frame, compression) if form & DEFLATE else frame


def channel_frames(
    publications: Sequence[Publication], form: int, compression: Compression
) -> tuple[bytes, Sequence[bytes]]:
    """Return what one of CHANNEL_FORMS is sent: all at once, and a frame for each publication, b"" for nothing."""
    if form & EVENTS:
        frames = [event_of(publication, enveloped=bool(form & ENVELOPE)) for publication in publications]
        joined = b"".join(frames)
    elif form & UNIDIRECTIONAL:
        frames = [push_events(push_text(publication)) for publication in publications]
        joined = b"".join(frames)
    else:
        texts = [push_text(publication) for publication in publications]
        frames = [text_frame(text) if text else b"" for text in texts]
        # Several objects may share a frame, a line each; to a client one message costs less than many.
        joined = text_frame(b"\n".join(filter(None, texts))) if len(frames) > 1 and any(texts) else frames[0]
    if form & DEFLATE:
        frames = [_deflated(frame, compression) if frame else frame for frame in frames]
        joined = _deflated(joined, compression) if joined else joined
    return joined, [_named(frame, publication) for frame, publication in zip(frames, publications, strict=True)]


def _named(frame: bytes, publication: Publication) -> bytes:
    if publication.kind == _CHANGES:  # who comes and leaves is no publication that a newer one stands for
        return frame
    named = ChannelFrame(frame)
    named.key, named.offset = publication.keys[0], publication.offset
    return named


def _deflated(frame: bytes, compression: Compression) -> bytes:
    if compression.min_bytes <= len(payload_of(frame)) <= compression.max_bytes:
        return deflated_frame(frame, compression.level)
    return frame


def push_text(publication: Publication) -> bytes:
    """Return a publication as pushes of the client protocol, a line each; b"" for what that has no form for."""
    key, frame = publication.keys[0], publication.frame
    if publication.kind == _CHANGES:
        return payload_bytes(frame)
    if not is_text(frame):
        return b""
    if key == EVERYBODY:
        message = {"event": publication.event.decode(), "message": str(payload_of(frame), "utf-8")}
        return message_push(orjson.dumps(message))
    data = data_of(publication.kind, frame)
    extras = publication.event if publication.kind == _DATA else b""
    return publication_push(channel_of(key), client.publication(data, extras, publication.offset))


def data_of(kind: int, frame: bytes) -> bytes:
    """Return what a frame holds as JSON: a text that an application has sent as a string, nothing of a binary one."""
    if kind == _DATA:
        return payload_bytes(frame)
    return orjson.dumps(str(payload_of(frame), "utf-8")) if is_text(frame) else b""


def push_events(pushes: bytes) -> bytes:
    """Return pushes of the client protocol, a line each, as events, one each; b"" for none."""
    return b"".join(event(bare(push)) for push in pushes.split(b"\n")) if pushes else b""


def event_of(publication: Publication, *, enveloped: bool) -> bytes:
    """Return a publication as an event of the simple protocol; b"" for what that has no form for.

    enveloped: with its event, or its channel, in a JSON object around it.
    """
    frame = publication.frame
    if publication.kind == _CHANGES or not is_text(frame):
        return b""
    text = payload_bytes(frame)
    if enveloped and publication.kind == _DATA:
        text = b'{"channel":%b,"data":%b}' % (orjson.dumps(channel_of(publication.keys[0])), text)
    elif enveloped:
        text = envelope(publication.event.decode(), text.decode())
    return event(text)
