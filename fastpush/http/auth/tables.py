"""Modes that look no further than this process: token-is-user and static."""

from collections.abc import Mapping

from fastpush.errors import TokenRejected
from fastpush.http.auth.contract import Identity, WithoutSubscriptions, check_present, identity


class TokenIsUser(WithoutSubscriptions):
    """Believes everybody: the token is the user (S0-11)."""

    def __init__(self, name_bytes: int) -> None:
        self._name_bytes = name_bytes

    def authenticate(self, token: str, headers: Mapping[str, str]) -> Identity:
        check_present(token)
        return identity(token, None, self._name_bytes)

    async def close(self) -> None:
        """Nothing is held."""


class StaticAuth(WithoutSubscriptions):
    """A table of token -> user; several tokens may name one user (S0-13)."""

    def __init__(self, users: Mapping[str, str], name_bytes: int) -> None:
        self._users = users
        self._name_bytes = name_bytes

    def authenticate(self, token: str, headers: Mapping[str, str]) -> Identity:
        check_present(token)
        user = self._users.get(token)
        if user is None:
            raise TokenRejected("token is unknown")
        return identity(user, None, self._name_bytes)

    async def close(self) -> None:
        """Nothing is held."""
