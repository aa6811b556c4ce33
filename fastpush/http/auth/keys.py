"""Who may push, without asking anybody: everyone, or whoever sends one of the keys."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest

from fastpush.errors import ConfigError


class NoPushAuth:
    """Lets everybody push. That this is only so on loopback is checked elsewhere."""

    def authorize(self, headers: Mapping[str, str]) -> bool:
        return True

    async def close(self) -> None:
        """Nothing is held."""


class KeysPushAuth:
    """Lets a request push that carries a key as `X-API-Key`, or as `Authorization: Bearer` or `apikey` (S0-19).

    Only digests are kept, all of one length, and each is compared every time: neither a key's
    length nor how much of it was guessed nor which key it was shows in the time taken.
    With both headers the first counts: a proxy may use Authorization for itself.

    Cost: called once a push; 1 µs with two keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys if key)
        if not self._digests:
            raise ConfigError('[push] auth = "keys" needs at least one key in [push] keys or keys_file')

    def authorize(self, headers: Mapping[str, str]) -> bool:
        key = headers.get("x-api-key")
        if key is None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() not in {"bearer", "apikey"}:
                return False
        digest = _digest(key.strip())
        found = False
        for known in self._digests:
            found |= compare_digest(known, digest)
        return found

    async def close(self) -> None:
        """Nothing is held."""


def _digest(key: str) -> bytes:
    # surrogatepass: header bytes that are not UTF-8 arrive as surrogates, and are a wrong key, not an error.
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
