"""The back-ends' requests: push, push to everybody, drop. Nothing here knows how HTTP is spoken.

The lean protocol (worker/dispatch.py) and the aiohttp application (http/app.py) both
call PushService with a body and render what it answers with `render`.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from time import monotonic
from types import MappingProxyType
from typing import NamedTuple

import orjson

from fastpush.config import Limits
from fastpush.errors import (
    CloseCode,
    RequestError,
    illegal_request,
    too_large,
    too_many_pushes,
    unauthorized,
    unavailable,
    unknown_outcome,
)
from fastpush.metrics import Counters
from fastpush.protocol import push as protocol
from fastpush.protocol.bus import Position, Status, encode_publication
from fastpush.protocol.frames import text_header
from fastpush.state.rate import TokenBucket
from fastpush.state.send_queue import ENTRY_BYTES

PUBLICATION_KEYS_MAX = 65535
_new_tuple = tuple.__new__  # what a NamedTuple's constructor ends in, at half of the cost
_ONCE = "idempotency-key"
ONCE_CHARACTERS_MAX = 255  # of an idempotency key
API_PATH = "/api"  # of the server API: channels/api.py
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Outcome(NamedTuple):
    """A push or drop that the broker took.

    sent: connections reached.  unconfirmed: workers whose count is missing from it.
    """

    sent: int
    unconfirmed: int


class Reply(NamedTuple):
    """What goes back over HTTP."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def push_key_missing() -> RequestError:
    """401: the request does not carry a key that may push (S0-19)."""
    return unauthorized("send a key of [push] keys as X-API-Key, or as Authorization: Bearer or apikey")


def internal_error(error: Exception) -> RequestError:
    """500: a fault of ours, with its text (S0-24)."""
    reason = str(error) or type(error).__name__
    return RequestError(500, "internal", reason, text=reason)


OnOutcome = Callable[[Outcome | RequestError], None]
# Status, connections reached, workers whose count is missing, where its channel has kept it.
OnResult = Callable[[int, int, int, Position], None]
Ask = Callable[[bytes, OnResult], None]  # raises RequestError 503 when not handed over
AskOnce = Callable[[bytes, OnResult, bytes], None]  # with an idempotency key, b"" for none
# Source, routing keys, event, message, when it was taken (CLOCK_MONOTONIC), connections reached, workers not counted.
Remember = Callable[[str, list[bytes], str, bytes, float, int, int], None]


class PushService:
    """Validates requests and hands them to the broker.

    publish, drop: hand a body to the broker; the callback gets its result later, exactly once.
    remember: told of each push that was taken, with what became of it.
    """

    def __init__(self, limits: Limits, counters: Counters, *, publish: AskOnce, drop: Ask, remember: Remember) -> None:
        self._counters = counters
        self._publish = publish
        self._drop = drop
        self._remember = remember
        self.limit(limits)

    def limit(self, limits: Limits) -> None:
        """Go by these limits from now on."""
        self.limits = limits
        self._rate = TokenBucket(limits.pushes_per_second, monotonic()) if limits.pushes_per_second else None

    def admits(self) -> bool:
        """Count a publication of the server API among the pushes; False: there are too many in this second."""
        return self._rate is None or self._rate.take(monotonic())

    def push(self, body: bytes, on_outcome: OnOutcome, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Push to one user or several. headers: of the request, of which Idempotency-Key counts.

        Raises: RequestError, when nobody receives it; else `on_outcome` is called once, later.
        """
        limits = self.limits
        users: tuple[str, ...] = ()
        event = ""
        try:
            users, event, message = protocol.parse_push(
                body, name_bytes=limits.name_bytes, push_users=limits.push_users
            )
            keys = [protocol.user_key(user, event) for user in users]
            once = _once(b"push", headers) if _ONCE in headers else b""
            self._send(keys, event, message, on_outcome, once)
        except RequestError as error:
            error.users, error.event = users, event
            self._count_refusal(error)
            raise

    def push_all(self, body: bytes, on_outcome: OnOutcome, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Push to every registered connection; as `push`."""
        try:
            event, message = protocol.parse_push_all(body, name_bytes=self.limits.name_bytes)
            once = _once(b"all", headers) if _ONCE in headers else b""
            self._send([protocol.EVERYBODY], event, message, on_outcome, once)
        except RequestError as error:
            self._count_refusal(error)
            raise

    def drop(self, body: bytes, on_outcome: OnOutcome, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """Close a user's connections; as `push`."""
        user, event = protocol.parse_drop(body, name_bytes=self.limits.name_bytes)
        order = orjson.dumps(["close_user", user, event, CloseCode.POLICY_VIOLATION, "dropped by the back-end"])
        self._drop(order, lambda status, sent, unconfirmed, _: on_outcome(_outcome(status, sent, unconfirmed)))

    def _send(self, keys: list[bytes], event: str, message: str, on_outcome: OnOutcome, once: bytes) -> None:
        payload = message.encode()
        header = text_header(len(payload))
        if len(header) + len(payload) + ENTRY_BYTES > self.limits.send_queue_bytes:
            most = self.limits.send_queue_bytes
            raise too_large(f"message is larger than a send queue ([limits] send_queue_bytes = {most})")
        if len(keys) > PUBLICATION_KEYS_MAX:
            raise illegal_request(f"userId has {len(keys)} entries, at most {PUBLICATION_KEYS_MAX} are allowed")

        taken = monotonic()
        if self._rate is not None and not self._rate.take(taken):
            raise too_many_pushes(self.limits.pushes_per_second)

        def on_result(status: int, sent: int, unconfirmed: int, _: Position) -> None:
            if status:
                on_outcome(self._failed(status, keys, event))
                return
            if unconfirmed:
                self._counters.pushes_unconfirmed += 1
            else:
                self._counters.pushes_delivered += 1
            self._remember("push", keys, event, payload, taken, sent, unconfirmed)
            on_outcome(_new_tuple(Outcome, (sent, unconfirmed)))

        body = encode_publication(keys, event.encode(), header, payload, taken_seconds=taken)
        self._publish(body, on_result, once)

    def _failed(self, status: int, keys: list[bytes], event: str) -> RequestError:
        error = _failure(status)
        error.users = tuple([protocol.parse_user_key(key)[0] for key in keys if protocol.is_user_key(key)])
        error.event = event
        self._count_refusal(error)
        return error

    def _count_refusal(self, error: RequestError) -> None:
        counters = self._counters
        if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
            counters.pushes_unavailable += 1
        elif error.status == HTTPStatus.GATEWAY_TIMEOUT:
            counters.pushes_unknown += 1
        else:
            counters.pushes_refused += 1


def _once(scope: bytes, headers: Mapping[str, str]) -> bytes:
    """Return what the broker knows a push by that may be sent twice; b"" for nothing. scope: no routing key of any."""
    key = headers[_ONCE]
    if not key:
        return b""
    if len(key) > ONCE_CHARACTERS_MAX or not key.isascii():
        found = f"{len(key)} characters" if key.isascii() else "others"
        raise illegal_request(f"Idempotency-Key must be at most {ONCE_CHARACTERS_MAX} ASCII characters, found {found}")
    return b"%b\0%b" % (scope, key.encode())


def _outcome(status: int, sent: int, unconfirmed: int) -> Outcome | RequestError:
    return _failure(status) if status else Outcome(sent, unconfirmed)


def _failure(status: int) -> RequestError:
    """Return what any status but DONE is answered with."""
    if status == Status.NOT_READY:
        return unavailable("the broker, or a worker with such clients, is being replaced; nobody received the push")
    if status == Status.OVERLOADED:
        return unavailable("a worker is overloaded; nobody received the push")
    return unknown_outcome()


def outcome_name(outcome: Outcome | RequestError) -> str:
    """Return what log lines call it: delivered, unconfirmed, or the code of an error."""
    if isinstance(outcome, RequestError):
        return outcome.code
    return "unconfirmed" if outcome.unconfirmed else "delivered"


def wants_json(headers: Mapping[str, str], path: str = "") -> bool:
    """Whether a request asks for the JSON form of replies, or is one of the server API, which has no other."""
    return "application/json" in headers.get("accept", "") or is_api(path)


def is_api(path: str) -> bool:
    """Whether a path is one of the server API."""
    return path.startswith(API_PATH) and path[len(API_PATH) : len(API_PATH) + 1] in {"", "/"}


_TEXT = (("Content-Type", "text/plain; charset=utf-8"),)
JSON = (("Content-Type", "application/json"),)


def render(outcome: Outcome | RequestError, *, as_json: bool) -> Reply:
    """Return the reply: the S0 form, or JSON for who asked for it."""
    if isinstance(outcome, RequestError):
        return _render_error(outcome, as_json=as_json)
    if not as_json:
        return Reply(200, _TEXT, b"message sent to %d clients" % outcome.sent)
    body: dict[str, int] = {"sent": outcome.sent}
    if outcome.unconfirmed:
        body["unconfirmed"] = outcome.unconfirmed
    return Reply(200, JSON, orjson.dumps(body))


def _render_error(error: RequestError, *, as_json: bool) -> Reply:
    headers = (("X-Fastpush-Error", header_text(error.reason)), *error.headers)
    if as_json:
        body = {"error": {"code": error.code, "message": error.reason}}
        return Reply(error.status, (*JSON, *headers), orjson.dumps(body))
    if not error.text:
        return Reply(error.status, headers, b"")
    return Reply(error.status, (*_TEXT, *headers), error.text.encode())


def header_text(text: str) -> str:
    """Return `text` as a header value: one line of printable ASCII, at most 200 characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:200])
