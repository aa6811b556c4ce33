"""What every way to authenticate offers, and what all of them check alike."""

from collections.abc import Awaitable, Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import orjson

from fastpush.errors import TokenRejected

MAX_TOKEN_BYTES = 8192  # of tokens that are parsed here or sent on; a request head is not much larger


class Identity(msgspec.Struct, frozen=True):
    """Whom a token names.

    expires_at: unix seconds, or None for never.  signed: the URL parameters that the token vouches for,
    as signed.py has it, and nobody can change; None: it vouches for none.
    info: JSON that others in a channel see beside the user, shared and never changed; None: nothing.
    channels: what the server subscribes a connection of channels to; nobody has looked at the names.
    """

    user: str
    expires_at: float | None = None
    signed: Mapping[str, str] | None = None
    info: Any = None
    channels: tuple[str, ...] = ()


class Subscription(msgspec.Struct, frozen=True):
    """What a subscription token allows: one user to be in one channel.

    user: "" for an anonymous connection.  client: the only connection that may use it, "" for any.
    expires_at: unix seconds at which the subscription ends, or None for never.  info: as of an Identity.
    """

    user: str
    channel: str
    client: str = ""
    expires_at: float | None = None
    info: Any = None


class TokenAuth(Protocol):
    """Who a client is."""

    def authenticate(self, token: str, headers: Mapping[str, str]) -> Identity | Awaitable[Identity]:
        """Return whom `token` names; an awaitable only when somebody must be asked.

        Args:   headers: the client's request headers, names in lower case.
        Raises: TokenRejected: it names nobody.  AuthUnavailable: nobody can tell now. Either at once or when awaited.
        """
        ...

    def subscription(self, token: str) -> Subscription | Awaitable[Subscription]:
        """Return what a subscription token allows; an awaitable only when somebody must be asked.

        That the user and the channel are those of the client who shows it is for the caller to compare.

        Raises: as `authenticate`.
        """
        ...

    async def close(self) -> None:
        """Let calls under way finish, then free what is held. Later calls may raise AuthUnavailable."""
        ...


class WithoutSubscriptions:
    """A mode that nobody can sign subscription tokens for."""

    def subscription(self, token: str) -> Subscription:
        raise TokenRejected('subscription tokens need [auth] mode "jwt"')


class PushAuth(Protocol):
    """Who may push."""

    def authorize(self, headers: Mapping[str, str]) -> bool | Awaitable[bool]:
        """Return whether a request with these headers (names in lower case) may push.

        Raises: AuthUnavailable: nobody can tell now. Either at once or when awaited.
        """
        ...

    async def close(self) -> None:
        """Let calls under way finish, then free what is held. Later calls may raise AuthUnavailable."""
        ...


def check_present(token: str) -> None:
    """Raise TokenRejected for an empty token, whatever the mode would make of it."""
    if not token:
        raise TokenRejected("token is empty")


def check_size(token: str) -> None:
    """Raise TokenRejected for a token of more than MAX_TOKEN_BYTES characters."""
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenRejected(f"token is longer than {MAX_TOKEN_BYTES} bytes")


def identity(
    user: str,
    expires_at: float | None,
    name_bytes: int,
    signed: dict[str, str] | None = None,
    info: Any = None,
    channels: Iterable[str] = (),
) -> Identity:
    """Return the Identity of `user`, which is not empty (S0-15) and at most `name_bytes` of UTF-8."""
    if not user:
        raise TokenRejected("token names an empty user")
    try:
        size = len(user) if user.isascii() else len(user.encode())
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell and UTF-8 cannot
        size = -1
    if size < 0:
        raise TokenRejected("token names a user that is not valid Unicode")
    if size > name_bytes:
        raise TokenRejected(f"token names a user of more than {name_bytes} bytes")
    together = tuple(dict.fromkeys(channels))
    if info is not None or together:
        check_json((info, together))
    return Identity(user, expires_at, None if signed is None else MappingProxyType(signed), info, together)


def check_json(value: Any) -> None:
    """Raise TokenRejected for what clients cannot be told: half a surrogate in it, or no JSON at all."""
    try:
        orjson.dumps(value)
    except TypeError:  # orjson's errors are TypeErrors
        raise TokenRejected("token brings an info or a channel that cannot be written as JSON") from None


def date(unix_seconds: float) -> str:
    """Return the time for people; a number where no calendar has that day."""
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{unix_seconds:g}"
