"""fastpush.http.proxies: whose address is whose, and what counts as one."""

import pytest

from fastpush.http.proxies import TrustedProxies, counted_address, host_of, peer_text

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.5", None, "203.0.113.5"),
        ("203.0.113.5", "198.51.100.1", "203.0.113.5"),  # not a proxy of ours: what it says is ignored
        ("10.1.2.3", None, "10.1.2.3"),
        ("10.1.2.3", "", "10.1.2.3"),
        ("10.1.2.3", "198.51.100.1", "198.51.100.1"),
        ("10.1.2.3", "1.1.1.1, 198.51.100.1", "198.51.100.1"),  # the left one the client has made up
        ("10.1.2.3", "1.1.1.1,198.51.100.1 , 10.9.9.9,192.0.2.7", "198.51.100.1"),
        ("10.1.2.3", "10.0.0.1, 10.0.0.2", "10.0.0.1"),  # a client in the proxies' own network
        ("10.1.2.3", "198.51.100.1, unknown", "10.1.2.3"),
        ("10.1.2.3", "198.51.100.1, 10.0.0.9, nonsense, 10.0.0.2", "10.0.0.2"),
        ("10.1.2.3", "2001:db8::1", "2001:db8::1"),
        ("fd00::1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.1.2.3", "::ffff:198.51.100.1", "198.51.100.1"),
        ("fe80::1%eth0", "198.51.100.1", "fe80::1"),
        ("", "198.51.100.1", ""),
    ],
)
def test_client(peer: str, forwarded: str | None, client: str) -> None:
    """The client is the right-most address of the list that is no trusted proxy; only trusted proxies are believed."""
    assert PROXIES.client(peer, {} if forwarded is None else {"x-forwarded-for": forwarded}) == client


def test_without_proxies_the_header_is_ignored() -> None:
    """Nobody is trusted as delivered."""
    nobody = TrustedProxies([])
    assert not nobody and nobody.client("127.0.0.1", {"x-forwarded-for": "198.51.100.1"}) == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_counted_by(address: str, counted: str) -> None:
    """IPv4 counts by address, IPv6 by network of 64 bits."""
    assert counted_address(address) == counted


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [("192.0.2.1", 1234, "192.0.2.1:1234"), ("2001:db8::1", 80, "[2001:db8::1]:80"), ("::1", 5, "[::1]:5")],
)
def test_peer_text(host: str, port: int, text: str) -> None:
    """A peer is shown with its port so that its address can be told again; one named by a proxy is the address."""
    assert peer_text(host, port) == text
    assert host_of(text) == host
    assert host_of(host) == host
