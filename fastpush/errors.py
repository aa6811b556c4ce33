"""Every error in one place: the exception tree, WebSocket close codes, HTTP error bodies.

FastpushError
├── ConfigError          the operator's: a setting is wrong           exit code 2
├── StartError           the host's: port taken, directory not ours   exit code 1
├── ProtocolViolation    a WebSocket peer broke a rule                closed with .code
├── RegistrationError    a registration cannot be taken; the connection stays open
├── TooManyConnections   of the user that registers by message   closed with 1008
├── TokenRejected        the token names nobody                       401 / 4501
│   └── TokenExpired     it did until a moment ago; a fresh one may
├── AuthUnavailable      whoever could tell cannot be reached         503 / 1013
├── ConnectionClosed     an application's: it sends to a connection that is closed
├── PublishFailed        an application's: a message was not taken, or nobody knows
└── RequestError         an HTTP request is answered with .status
"""

from enum import IntEnum

EXIT_FAILED = 1
EXIT_USAGE = 2  # or a wrong configuration


class CloseCode(IntEnum):
    """WebSocket close codes that fastpush sends, and what a client does next."""

    NORMAL = 1000  # the client ended it, or its application has no more to say; do not reconnect
    PROTOCOL_ERROR = 1002  # the client's fault; reconnect with back-off
    INVALID_TEXT = 1007  # the client's fault; reconnect with back-off
    POLICY_VIOLATION = 1008  # registration time-out, rate limit, POST /drop; reconnect with back-off
    MESSAGE_TOO_BIG = 1009  # the client's fault; reconnect with back-off
    INTERNAL_ERROR = 1011  # a handler failed; reconnect with back-off
    SERVICE_RESTART = 1012  # stop, drain, restart; reconnect with jitter
    TRY_AGAIN_LATER = 1013  # overloaded, too slow, auth back-end away; reconnect later
    REPLACED = 4500  # a newer connection of the same key took over; do not reconnect
    TOKEN_REJECTED = 4501  # do not reconnect
    TOKEN_EXPIRED = 4502  # reconnect with a fresh token


class FastpushError(Exception):
    """Base of all errors that fastpush raises on purpose."""


class ConfigError(FastpushError):
    """A setting is unknown, of the wrong type, out of range or contradicts another one."""


class StartError(FastpushError):
    """The host does not let the server start; the text says what to change."""


class ProtocolViolation(FastpushError):
    """A WebSocket peer broke a rule of RFC 6455 or a limit of this server."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class RegistrationError(FastpushError):
    """A registration message cannot be taken; its text is the reason shown to the client."""


class TooManyConnections(FastpushError):
    """The user has as many connections on this host as one may have."""


class TokenRejected(FastpushError):
    """The token does not name a user. The text never holds the token.

    user: whom it would name, "" where that cannot be read.  is_claimed: nothing proves that it may.
    """

    user = ""
    is_claimed = True


class TokenExpired(TokenRejected):
    """The token has come to its end: a client that can get a fresh one should."""


class AuthUnavailable(FastpushError):
    """The authentication back-end could not be asked; trying again later may help."""


class ConnectionClosed(FastpushError):
    """Nothing can be sent to this connection any more (S1-13)."""

    def __init__(self) -> None:
        super().__init__("connection is closed")


class PublishFailed(FastpushError):
    """A message was not published. may_have_arrived: nobody knows; else nobody received it."""

    def __init__(self, reason: str, *, may_have_arrived: bool = False) -> None:
        super().__init__(reason)
        self.may_have_arrived = may_have_arrived


class RequestError(FastpushError):
    """An HTTP request is refused.

    status: HTTP status.  code: a stable word for programs.  text: the plain body of
    the S0 form.  The exception's own text names field, found type and fix.
    users, event: whom a refused push was addressed to, where that is known.
    """

    users: tuple[str, ...] = ()
    event = ""

    def __init__(
        self, status: int, code: str, reason: str, *, text: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.text = text
        self.headers = headers


def illegal_request(reason: str) -> RequestError:
    """400: the body or a field is wrong (S0-22, S0-23)."""
    return RequestError(400, "illegal_request", reason, text="request data illegal")


def unauthorized(reason: str) -> RequestError:
    """401: the request does not prove that it may do this."""
    return RequestError(401, "unauthorized", reason, text="unauthorized", headers=(("WWW-Authenticate", "Bearer"),))


def forbidden(reason: str) -> RequestError:
    """403: nobody may do this from there."""
    return RequestError(403, "forbidden", reason, text=reason)


def not_found(path: str) -> RequestError:
    """404: nothing is served at this path."""
    return RequestError(404, "not_found", f"nothing is served at {path}", text="not found")


def method_not_allowed(allowed: str) -> RequestError:
    """405: with the methods that are allowed; the body is empty (S0-18)."""
    return RequestError(405, "method_not_allowed", f"only {allowed} is allowed here", headers=(("Allow", allowed),))


def too_large(reason: str) -> RequestError:
    """413: a smaller one would be taken."""
    return RequestError(413, "too_large", reason, text=reason)


def unavailable(reason: str, retry_seconds: int = 1) -> RequestError:
    """503: a promise that nobody received the push; retrying is safe."""
    return RequestError(503, "unavailable", reason, text=reason, headers=(("Retry-After", str(retry_seconds)),))


def too_many(reason: str) -> RequestError:
    """429: this user or address has as many connections as it may; later it may have fewer."""
    return RequestError(429, "too_many_connections", reason, text=reason, headers=(("Retry-After", "10"),))


def too_many_pushes(per_second: int) -> RequestError:
    """429: nobody received the push; a second later it may be taken."""
    reason = f"more than {per_second} pushes a second to one worker ([limits] pushes_per_second)"
    return RequestError(429, "too_many_pushes", reason, text=reason, headers=(("Retry-After", "1"),))


def unknown_outcome() -> RequestError:
    """504: the push may or may not have been delivered; a retry may double it."""
    reason = "the broker was lost while the push was under way: it may or may not have been delivered"
    return RequestError(504, "unknown_outcome", reason, text=reason)
