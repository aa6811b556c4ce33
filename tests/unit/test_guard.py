"""fastpush.http.guard: open mode and origins, by headers alone."""

import pytest

from fastpush.http.guard import Guard, host_name

OPEN = ["[auth] mode", "[push] auth"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"), ("LOCALHOST:80", "localhost"), ("127.0.0.1:8080", "127.0.0.1"), ("[::1]", "::1"),
        ("[::1]:80", "::1"), ("a.b-c_d:", "a.b-c_d"), ("", ""), ("a b", ""), ("u@localhost", ""), ("localhost/x", ""),
        ("localhost,evil", ""), ("::1", ""), ("[::1", ""), ("[localhost]", ""), ("localhost:80:80", ""), ("é", ""),
        ("localhost:123456", ""), ("localhost\n", ""),
    ],
)  # fmt: skip
def test_host_name(host: str, name: str) -> None:
    """A Host is a name or an address and perhaps a port, and nothing else."""
    assert host_name(host) == name


def test_protected_server_refuses_nothing() -> None:
    """With authentication the guard asks for nothing."""
    assert Guard([], []).refusal({"host": "push.example", "via": "x", "origin": "https://evil.example"}) is None


@pytest.mark.parametrize("keys", [OPEN, OPEN[:1], OPEN[1:]])
@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost", "forwarded": "for=1"},
        {"host": "localhost", "x-forwarded-host": ""},
        {"via": "1.1 x", "host": "localhost"},
        {"host": "push.example"},
        {},
        {"host": "localhost", "origin": "https://evil.example"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost:81", "origin": "http://localhost:82"},
    ],
    ids=str,
)
def test_open_server_refuses(keys: list[str], headers: dict[str, str]) -> None:
    """Each of the open-mode cases is 403, and the text names exactly the keys that are open."""
    refusal = Guard(keys, ["*"]).refusal(headers)
    assert refusal is not None and refusal.status == 403 and refusal.reason.endswith(f"set {' and '.join(keys)}")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "[::1]:8080"},
        {"host": "localhost:8080", "origin": "http://localhost:8080"},
        {"host": "127.0.0.1:80", "origin": "http://127.0.0.1"},
        {"host": "localhost", "viable": "1", "forwarded-not": "1", "x-real-ip": "1.2.3.4"},
    ],
    ids=str,
)
def test_open_server_serves_this_machine(headers: dict[str, str]) -> None:
    """Programs of this machine and the server's own page are served."""
    assert Guard(OPEN, []).refusal(headers) is None


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "push.example", True),
        ("https://push.example", "push.example", True),
        ("https://PUSH.example", "push.EXAMPLE", True),
        ("https://push.example", "push.example:443", True),
        ("https://push.example:443", "push.example", True),
        ("http://push.example", "push.example:80", True),
        ("http://push.example", "push.example:443", False),
        ("https://push.example:8443", "push.example", False),
        ("https://push.example.evil", "push.example", False),
        ("https://evilpush.example", "push.example", False),
        ("ws://push.example", "push.example", False),
        ("push.example", "push.example", False),
        ("https://", "", False),
        ("null", "push.example", False),
        ("https://app.example", "push.example", True),
        ("https://App.Example", "push.example", True),
        ("https://app.example/", "push.example", False),
    ],
)
def test_origins(origin: str | None, host: str, *, allowed: bool) -> None:
    """S0-05: no Origin, the same host and configured origins may connect."""
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert Guard([], ["https://app.example/"]).allows_origin(headers) == allowed
    assert Guard([], ["*"]).allows_origin(headers)


@pytest.mark.parametrize(
    ("scheme", "is_tls", "same"),
    [("https", True, True), ("http", True, False), ("https", False, True), ("http", False, True)],
)
def test_origin_with_tls(scheme: str, *, is_tls: bool, same: bool) -> None:
    """By TLS only a page that came by https is the same origin; without, a proxy in front may speak TLS."""
    headers = {"host": "localhost:8443", "origin": f"{scheme}://localhost:8443"}
    assert Guard([], []).allows_origin(headers, is_tls=is_tls) == same
    assert (Guard(OPEN, []).refusal(headers, is_tls=is_tls) is None) == same
