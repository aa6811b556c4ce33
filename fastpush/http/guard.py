"""Who may speak to this server at all: open mode, Host and Origin.

Open mode is a server without authentication ([auth] mode = "token-is-user" or [push]
auth = "none"). It serves programs of this machine only: what came through a proxy, was
sent to another host's name (DNS rebinding) or by another site's page is refused.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fastpush.config import is_loopback
from fastpush.errors import RequestError, forbidden

_FORWARDING = ("forwarded", "via")
_FORWARDING_PREFIX = "x-forwarded-"
# Nothing but a name or an address and a port: no "user@", no path, no list.
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{0,5})?", re.IGNORECASE)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def host_name(host: str) -> str:
    """Return a Host header's name without its port; "" when it is malformed."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""


# The same few answers for every push of a back-end. Bounded, and a head bounds each key.
@lru_cache(maxsize=256)
def _names_loopback(host: str) -> bool:
    return is_loopback(host_name(host))


@lru_cache(maxsize=256)
def _forwarding_header(names: tuple[str, ...]) -> str:
    """Return the first header that a proxy adds, or ""."""
    return next((name for name in names if name in _FORWARDING or name.startswith(_FORWARDING_PREFIX)), "")


class Guard:
    """Decides by a request's headers.

    open_keys: settings that leave the server open, as config.open_keys names them; empty: not open.
    origins:   origins of pages that may connect beside the same host; "*" allows all.
    """

    def __init__(self, open_keys: Sequence[str], origins: Sequence[str]) -> None:
        self._open_keys = " and ".join(open_keys)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def refusal(self, headers: Mapping[str, str], *, is_tls: bool = False) -> RequestError | None:
        """Return why a request must not be served, or None. For every request, before dispatch.

        is_tls: whether it came by TLS to this server itself; see `is_same_host`.
        """
        if not self._open_keys:
            return None
        forwarding = _forwarding_header(tuple(headers))
        if forwarding:
            return self._refuse(f"it came through a proxy ({forwarding})")
        host = headers.get("host", "")
        if not _names_loopback(host):
            return self._refuse("its Host is not a loopback address")
        origin = headers.get("origin")
        if origin is not None and not is_same_host(origin, host, is_tls=is_tls):
            return self._refuse("it was sent by another site's page (Origin)")
        return None

    def _refuse(self, why: str) -> RequestError:
        return forbidden(f"refused because {why} and this server is open: set {self._open_keys}")

    def allows_origin(self, headers: Mapping[str, str], *, is_tls: bool = False) -> bool:
        """Whether a WebSocket may be opened: no Origin (an app), the same host, or a configured one."""
        origin = headers.get("origin")
        if origin is None or is_same_host(origin, headers.get("host", ""), is_tls=is_tls):
            return True
        return "*" in self._origins or origin.lower() in self._origins


def is_same_host(origin: str, host: str, *, is_tls: bool) -> bool:
    """Whether a page of `origin` comes from the host that it now asks; a port may be left out where it is the usual.

    is_tls: by TLS only https is the same origin. Without, a proxy in front may speak it.
    """
    scheme, _, page_host = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    if port is None or (is_tls and scheme != "https"):
        return False
    return page_host != "" and page_host.removesuffix(port) == host.lower().removesuffix(port)
