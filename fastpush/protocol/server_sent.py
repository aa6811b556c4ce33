"""Server-Sent Events (the HTML standard, section 9.2): what a client asks for, and what stands on the wire. No I/O.

    GET /sse?token=…&event=…&channel=…&subtoken=…&envelope=1         event, channel and subtoken may be repeated
    GET /connection/uni_sse?cf_connect={"token":"…"}                 a connect command of the client protocol

The id of an event says where its client stands in each channel behind it: TAG.OFFSET.EPOCH for each, with commas
between. The browser sends the last one as Last-Event-ID when it comes back; elsewhere it may be the parameter
last_event_id. TAG is CRC-32 of the channel's routing key, so that long names do not make long ids; should two channels
share one, a position is taken for the other's, and its epoch shows that it is not: no two channels have the same.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from fastpush.errors import illegal_request
from fastpush.protocol.bus import Position
from fastpush.protocol.client import BadCommand, Connect, Recover, read_connect
from fastpush.protocol.push import URL_PARAMETERS_MAX, check_events, parse_parameters, switch

CHANNELS_MAX = 16  # of a stream at /sse
POSITIONS_MAX = 64  # of one id: it comes with every event, and goes into a request's head

COMMENT = b":\n\n"  # keeps a connection alive; nobody is told

_LINE_ENDS = re.compile(rb"\r\n|\n|\r")
# Offsets of up to 19 digits fit into 64 bits; epoch 0 would mean any.
_PLACE = re.compile(r"([0-9a-f]{8})\.([0-9]{1,19})\.([1-9a-f][0-9a-f]{0,15})")
_SINGLE = frozenset(("token", "envelope", "last_event_id"))

Resumed = dict[int, Recover]
"""Where a client wants to go on, by the tag of each channel."""


class StreamOptions(NamedTuple):
    """What the URL of an event stream asks for.

    token: None for an anonymous client.  events, channels: without repetition, one of both at least.
    subtokens: subscription tokens, as many as channels at most.  resumed: of last_event_id.
    """

    token: str | None
    events: tuple[str, ...]
    channels: tuple[str, ...]
    subtokens: tuple[str, ...]
    envelope: bool
    resumed: Resumed


class ConnectOptions(NamedTuple):
    """What the URL of a unidirectional client of channels asks for."""

    connect: Connect
    resumed: Resumed


def event(text: bytes, name: str = "") -> bytes:
    """Return one event. name: holds no line ends; "" leaves the field out."""
    field = b"event: %b\n" % name.encode() if name else b""
    if b"\n" in text or b"\r" in text:
        return field + b"".join(b"data: %b\n" % line for line in _LINE_ENDS.split(text)) + b"\n"
    return b"%bdata: %b\n\n" % (field, text)


def identifier(positions: Mapping[bytes, Position]) -> bytes:
    """Return the field that comes before an event, and sets the id. positions: by routing key."""
    places = [b"%08x.%d.%x" % (crc32(key), offset, epoch) for key, (offset, epoch) in positions.items()]
    return b"id: %b\n" % b",".join(places)


def tag(key: bytes) -> int:
    """Return what stands for a channel's routing key in ids."""
    return crc32(key)


def parse_identifier(text: str) -> Resumed:
    """Return the positions in an id; none for a text that `identifier` cannot have made."""
    places = text.split(",", POSITIONS_MAX)
    found = [_PLACE.fullmatch(place) for place in places]
    if len(places) > POSITIONS_MAX or None in found:
        return {}
    return {int(place[1], 16): Recover(True, int(place[2]), place[3]) for place in found if place is not None}


def parse_stream(query: str, *, name_bytes: int, registrations: int) -> StreamOptions:
    """Return what the query of /sse asks for. Names of channels are not looked at; unknown parameters are ignored.

    query: as in `parse_query` of the simple protocol.  Raises: RequestError 400.
    """
    options: dict[str, str] = {}
    lists: dict[str, dict[str, None]] = {"event": {}, "channel": {}, "subtoken": {}}  # sets that keep the order
    for name, value in parse_parameters(query, registrations + 2 * CHANNELS_MAX + URL_PARAMETERS_MAX):
        if name in lists:
            lists[name][value] = None
        elif name in options:
            raise illegal_request(f"{name} is repeated")
        elif name in _SINGLE:
            options[name] = value
    token, events, channels = options.get("token"), lists["event"], lists["channel"]
    if token == "":
        raise illegal_request("token is empty")
    if token is None and events:
        raise illegal_request("event without token")
    if not events and not channels:
        raise illegal_request("event or channel is missing")
    if len(channels) > CHANNELS_MAX:
        raise illegal_request(f"more than {CHANNELS_MAX} channels")
    if len(lists["subtoken"]) > len(channels):
        raise illegal_request("more subtokens than channels")
    check_events(events, name_bytes, registrations)
    return StreamOptions(
        token,
        tuple(events),
        tuple(channels),
        tuple(lists["subtoken"]),
        envelope=switch(options, "envelope"),
        resumed=parse_identifier(options.get("last_event_id", "")),
    )


def parse_unidirectional(query: str) -> ConnectOptions:
    """Return what the query of /connection/uni_sse asks for; without a command, that of an anonymous client.

    Raises: RequestError 400.
    """
    options: dict[str, str] = {}
    for name, value in parse_parameters(query):
        if name in options:
            raise illegal_request(f"{name} is repeated")
        if name in {"cf_connect", "last_event_id"}:
            options[name] = value
    try:
        connect = read_connect(options.get("cf_connect", "{}"))
    except BadCommand as error:
        raise illegal_request(f"cf_connect is no connect command: {error}") from None
    return ConnectOptions(connect, parse_identifier(options.get("last_event_id", "")))
