"""What close codes and refusals mean, and what to do about them: the words of broker/diagnosis.py."""

from http import HTTPStatus
from typing import NamedTuple

from fastpush.errors import CloseCode
from fastpush.protocol.client import DisconnectCode, ErrorCode
from fastpush.protocol.insight import Note


class Cause(NamedTuple):
    """why: continues "because".  advice: sentences."""

    why: str
    advice: str = ""


# -- ends of connections -------------------------------------------------------------

LEFT = Cause("the client has left", "Pushes for a client that is away are not kept.")
STOPPED = Cause("its worker stopped: a drain, a restart, or the end of the service", "Clients come back at once.")
SLOW = Cause(
    "it did not take its messages as fast as they came",
    "Is its network or its page too slow, or are there too many pushes? [limits] send_queue_messages and "
    'send_queue_bytes say how much may wait, and slow_policy = "drop-oldest" keeps slow clients connected.',
)
DROPPED = Cause("by POST /drop, or a disconnect of the server API", "Look there for who asked for that.")
_EXPIRED = Cause("its token had come to its end", "Does the client get a fresh token in time?")
_REJECTED = Cause("its token was rejected", "[auth] says which tokens are good.")
_FAILED = Cause("its application failed here", "The log has the exception (handler failed).")
_BROKEN = Cause(
    "no close frame came: its network, a proxy or its device cut it off",
    "What was pushed shortly before may not have arrived, though it was counted as sent.",
)
_SILENT = Cause(
    "it no longer answered pings: its network or its device was gone",
    "What was pushed since its last sign of life ([connections] ping_interval_seconds and pong_timeout_seconds "
    "before) may not have arrived, though it was counted as sent.",
)
_TALKATIVE = Cause("it sent more messages than [limits] messages_per_second allows")
_CROWD = Cause("the user had too many connections", "[limits] connections_per_user says how many it may have.")

_ENDS: dict[int, Cause] = {
    CloseCode.NORMAL: LEFT,
    1001: LEFT,
    1005: LEFT,
    1006: _BROKEN,
    CloseCode.PROTOCOL_ERROR: Cause("it broke a rule of WebSockets", "That is a bug of the client, or of a proxy."),
    CloseCode.INVALID_TEXT: Cause("it sent what is no text, or not what its application speaks"),
    CloseCode.POLICY_VIOLATION: Cause("it broke a rule of this server or of its application"),
    CloseCode.MESSAGE_TOO_BIG: Cause("it sent more at once than [limits] allows (message_bytes)"),
    CloseCode.INTERNAL_ERROR: _FAILED,
    CloseCode.SERVICE_RESTART: STOPPED,
    CloseCode.TRY_AGAIN_LATER: Cause("this server was overloaded, or what it needs was away"),
    CloseCode.REPLACED: Cause(
        "a newer connection claimed its key",
        "One connection a key is the application's rule: do two devices or pages use the same?",
    ),
    CloseCode.TOKEN_REJECTED: _REJECTED,
    CloseCode.TOKEN_EXPIRED: _EXPIRED,
    DisconnectCode.CONNECTION_CLOSED: LEFT,
    DisconnectCode.SHUTDOWN: STOPPED,
    DisconnectCode.SERVER_ERROR: _FAILED,
    DisconnectCode.EXPIRED: _EXPIRED,
    DisconnectCode.SUBSCRIPTION_EXPIRED: _EXPIRED,
    DisconnectCode.SLOW: SLOW,
    DisconnectCode.INSUFFICIENT_STATE: Cause("the broker was replaced, and it has to subscribe anew"),
    DisconnectCode.NO_PONG: _SILENT,
    DisconnectCode.TOO_MANY_REQUESTS: _TALKATIVE,
    DisconnectCode.INVALID_TOKEN: _REJECTED,
    DisconnectCode.BAD_REQUEST: Cause("it said what no client of the protocol says", "That is a bug of the client."),
    DisconnectCode.STALE: Cause("it did not connect in time ([limits] register_timeout_seconds)"),
    DisconnectCode.FORCE_DISCONNECT: DROPPED,
    DisconnectCode.CONNECTION_LIMIT: _CROWD,
    DisconnectCode.CHANNEL_LIMIT: Cause("it was subscribed to more than [limits] channels_per_connection allows"),
    DisconnectCode.NOT_AVAILABLE: Cause("it sent a message, and [client] handler names nobody for it"),
}
_ENDS_BY_REASON: dict[str, Cause] = {
    "too slow": SLOW,
    "pong time-out": _SILENT,
    "message rate": _TALKATIVE,
    "too many connections of this user": _CROWD,
    "authentication is not available": Cause("nobody could tell whether its token is good", "Does [auth] answer?"),
}


def end_of(note: Note) -> Cause:
    """Tell why a connection was closed."""
    if note.by == "back-end":
        return DROPPED
    if note.by == "client":  # whatever code it gave: those below are what this server means by them
        return LEFT
    return _ENDS_BY_REASON.get(note.reason) or _ENDS.get(note.code) or Cause("its application ended it")


# -- refusals of clients ---------------------------------------------------------------

BAD_TOKEN = Cause(
    "its token was not accepted", "Is the token the right one, is it whole, and does [auth] know who signs it?"
)
OLD_TOKEN = Cause(
    "its token had expired", "Does the client get a fresh token before it connects, and are the clocks right?"
)
ORIGIN = Cause(
    "pages of its origin may not connect", "Name that origin in [server] origins; `fastpush reload` takes it over."
)
_FORBIDDEN = Cause("nobody may do that from there", "The reason names the settings.")
_TOO_MANY = Cause("there were too many connections", "`fastpush reload` takes another limit over.")
_BUSY = Cause("this server took nobody just then", "Clients should try again after a moment.")
_NO_RIGHT = Cause(
    "it has no right to that", "[channels] says who may subscribe; is there a subscription token, and is it good?"
)
_NO_NAMESPACE = Cause(
    "there is no such channel",
    "Is its name right? A channel needs a table of its namespace, or [channels.without_namespace].",
)
_BAD_REQUEST = Cause("what it asked for could not be taken", "The reason says what is wrong with it.")

_REFUSALS: dict[int, Cause] = {
    **dict.fromkeys((ErrorCode.TOKEN_EXPIRED, ErrorCode.EXPIRED, DisconnectCode.EXPIRED), OLD_TOKEN),
    CloseCode.TOKEN_EXPIRED: OLD_TOKEN,
    **dict.fromkeys((ErrorCode.UNAUTHORIZED, DisconnectCode.INVALID_TOKEN, HTTPStatus.UNAUTHORIZED), BAD_TOKEN),
    CloseCode.TOKEN_REJECTED: BAD_TOKEN,
    HTTPStatus.FORBIDDEN: _FORBIDDEN,
    **dict.fromkeys((HTTPStatus.TOO_MANY_REQUESTS, DisconnectCode.CONNECTION_LIMIT), _TOO_MANY),
    **dict.fromkeys((HTTPStatus.SERVICE_UNAVAILABLE, ErrorCode.INTERNAL, ErrorCode.TOO_MANY_REQUESTS), _BUSY),
    CloseCode.TRY_AGAIN_LATER: _BUSY,
    ErrorCode.UNKNOWN_CHANNEL: _NO_NAMESPACE,
    ErrorCode.PERMISSION_DENIED: _NO_RIGHT,
}


def refusal_of(note: Note) -> Cause:
    """Tell why a client was refused."""
    cause = _REFUSALS.get(note.code, _BAD_REQUEST)
    if not note.code and note.reason.startswith("token"):  # a registration by message
        cause = BAD_TOKEN
    if cause is BAD_TOKEN and ("expired" in note.reason or "ended at" in note.reason):
        return OLD_TOKEN
    return ORIGIN if cause is _FORBIDDEN and "[server] origins" in note.reason else cause


# -- refusals of pushes ----------------------------------------------------------------

_NOBODY = "Nobody received it."
_PUSHES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: f"{_NOBODY} The reason says what the back-end has to change.",
    HTTPStatus.UNAUTHORIZED: f"{_NOBODY} The back-end has to show a key that [push] auth knows.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"{_NOBODY} Send less, or raise that limit; `fastpush reload` takes it over.",
    HTTPStatus.TOO_MANY_REQUESTS: f"{_NOBODY} The back-end should push it again after Retry-After, a second; "
    "[limits] pushes_per_second says how many a worker takes, and `fastpush reload` takes another one over.",
    HTTPStatus.SERVICE_UNAVAILABLE: f"{_NOBODY} The back-end should push it again after Retry-After.",
    HTTPStatus.GATEWAY_TIMEOUT: "The back-end may push it again, where a double does no harm.",
}
_DROPS: dict[str, str] = {
    "oldest": 'slow_policy = "drop-oldest", of [limits] or of the channel\'s namespace, made room for newer ones',
    "latest": 'slow_policy = "latest", of the channel\'s namespace, keeps the newest only for a client that is behind',
    "slow": "its connection was closed as too slow",
    "lost": "its connection was lost while they waited",
}


def push_advice(note: Note) -> str:
    """Say what the refusal of a push means."""
    return _PUSHES.get(note.code, _NOBODY)


def drop_cause(note: Note) -> str:
    """Say why messages were dropped."""
    return _DROPS.get(note.reason, note.reason)
