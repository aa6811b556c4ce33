"""Whose address a client's is: the TCP peer's, or what a trusted proxy in front has written down.

A proxy adds the address it was called from at the right end of X-Forwarded-For. So the
list is read from the right, as long as its entries are trusted proxies themselves: what
stands further left anybody may have made up.
"""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_COUNTED_BITS = 64  # one customer's share of IPv6: single addresses in it are his to choose
IPAddress = IPv4Address | IPv6Address


class TrustedProxies:
    """Finds the client behind the proxies of [server] trusted_proxies.

    networks: as the configuration has them, validated there. Without any the header is ignored.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ip_network(text) for text in networks]

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._networks)

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Return the address of the client whose request came from the address `peer`.

        headers: lower-case names; a repeated X-Forwarded-For is joined.
        """
        found = _address(peer)
        if found is None:
            return peer
        for entry in reversed(headers.get("x-forwarded-for", "").split(",")):
            if not self._trusts(found):
                break
            earlier = _address(entry.strip())
            if earlier is None:  # "unknown" or nonsense: no better known than by the proxy that says so
                break
            found = earlier
        return str(found)

    def _trusts(self, address: IPAddress) -> bool:
        return any(address in network for network in self._networks)


def peer_text(host: str, port: int) -> str:
    """Return a TCP peer as logs show it: 192.0.2.1:1234, [2001:db8::1]:1234."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(peer: str) -> str:
    """Return the address in what `peer_text` has made, or in one that a proxy has named."""
    if peer.startswith("["):
        return peer[1:].partition("]")[0]
    host, _, port = peer.partition(":")
    return peer if ":" in port else host


def counted_address(address: str) -> str:
    """Return what [limits] connections_per_address counts by: an IPv4 address, or an IPv6 network of 64 bits."""
    found = _address(address)
    if isinstance(found, IPv6Address):
        return str(IPv6Network((int(found) >> _COUNTED_BITS << _COUNTED_BITS, _COUNTED_BITS)))
    return address if found is None else str(found)


def _address(text: str) -> IPAddress | None:
    """Return an address, IPv4 also where it is written as IPv6 (::ffff:192.0.2.1); None: it is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
