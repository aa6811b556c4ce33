"""Who may speak to the server at all: open mode, push keys, and the separate address of [api] listen."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.server import ECHO, SCALE, Server, eventually, toml
from tests.wire import Reply, Wire, ask, push, request, upgrade

GOOD = "0123456789abcdef-good"
OTHER = "fedcba9876543210-other"
KEYS = {"push": {"auth": "keys", "keys": [GOOD, OTHER]}}
PUSH_OPEN, TOKENS_OPEN = "[push] auth", "[auth] mode"
EVERYTHING = [
    push("a", "e", "m"),
    request("GET", "/health"),
    upgrade("/ws?token=a&event=e"),
    request("GET", "/nowhere"),
]


def tokens(folder: Path) -> dict[str, dict[str, Any]]:
    """[auth] with one token, jacks-own-token, of jack."""
    file = folder / "tokens.toml"
    file.write_text('"jacks-own-token" = "jack"\n')
    return {"auth": {"mode": "static", "tokens_file": str(file)}}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with tokens and push keys."""
    folder = tmp_path_factory.mktemp("closed")
    running = Server(folder, workers=1, sections=KEYS | tokens(folder))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def half_open(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants push keys and believes every token."""
    running = Server(tmp_path_factory.mktemp("half"), workers=1, sections=KEYS)
    yield running
    running.stop()


def with_header(data: bytes, header: str) -> bytes:
    return data.replace(b"\r\nHost:", b"\r\n" + header.encode() + b"\r\nHost:", 1)


def with_host(data: bytes, host: str) -> bytes:
    return data.replace(b"Host: localhost\r\n", b"Host: " + host.encode("latin-1") + b"\r\n", 1)


def is_refused_as_open(reply: Reply, *keys: str) -> bool:
    return reply.status == 403 and reply.closes and all(key in (reply.header("x-fastpush-error") or "") for key in keys)


# -- open mode ---------------------------------------------------------------------

FORWARDING = ["Forwarded: for=1.2.3.4", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "via: 1.1 proxy"]


@pytest.mark.parametrize("header", FORWARDING)
@pytest.mark.parametrize("data", EVERYTHING, ids=["push", "health", "handshake", "nowhere"])
def test_open_server_refuses_what_a_proxy_forwards(server: Server, data: bytes, header: str) -> None:
    """Without authentication a request with a forwarding header is 403 naming both keys to set, on every path."""
    assert is_refused_as_open(ask(server, with_header(data, header)), PUSH_OPEN, TOKENS_OPEN)


FOREIGN_HOSTS = [
    "push.example", "192.168.1.1", "10.0.0.1:8080", "0.0.0.0", "[::2]:80", "localhost.example",
    "localhost@push.example", "localhost/push.example", "localhost, push.example", "push.example#localhost",
    "localhost\\push.example", "localhost:80:80", "127.0.0.1.example", "[::1", "[localhost]",
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("data", EVERYTHING, ids=["push", "health", "handshake", "nowhere"])
def test_open_server_refuses_foreign_hosts(server: Server, data: bytes, host: str) -> None:
    """Without authentication a Host that is not loopback (a name rebound to 127.0.0.1) is 403 naming the keys."""
    assert is_refused_as_open(ask(server, with_host(data, host)), PUSH_OPEN, TOKENS_OPEN)


LOOPBACK_HOSTS = [
    "localhost", "localhost:8080", "LocalHost:1", "127.0.0.1", "127.0.0.1:8080", "127.8.9.1", "[::1]", "[::1]:8080",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
def test_open_server_serves_loopback_hosts(server: Server, host: str) -> None:
    """Every name of this machine alone is served, with and without a port."""
    assert [ask(server, with_host(data, host)).status for data in EVERYTHING] == [200, 200, 101, 404]


FOREIGN_ORIGINS = ["https://evil.example", "null", "http://localhost:9999", "https://localhost", "http://127.0.0.1", ""]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
@pytest.mark.parametrize("data", EVERYTHING, ids=["push", "health", "handshake", "nowhere"])
def test_open_server_refuses_foreign_pages(server: Server, data: bytes, origin: str) -> None:
    """Without authentication a request with another site's Origin (a page's `fetch`) is 403 naming the keys."""
    data = with_header(with_host(data, "localhost:8080"), f"Origin: {origin}")
    assert is_refused_as_open(ask(server, data), PUSH_OPEN, TOKENS_OPEN)


def test_open_server_serves_its_own_page(server: Server) -> None:
    """A page that the server itself served may use it."""
    for host in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080"):
        replies = [ask(server, with_header(with_host(data, host), f"Origin: http://{host}")) for data in EVERYTHING]
        assert [reply.status for reply in replies] == [200, 200, 101, 404]


def test_open_refusal_has_a_json_form(server: Server) -> None:
    """With Accept: application/json the refusal is JSON; it names the header, never its value."""
    data = push("a", "e", "m", "Accept: application/json", "X-Forwarded-For: 203.0.113.9")
    error = ask(server, data).json()["error"]
    assert error["code"] == "forbidden" and "x-forwarded-for" in error["message"]
    assert "203.0.113.9" not in error["message"]


def test_half_open_server_names_the_missing_half(half_open: Server) -> None:
    """With push keys but believed tokens the server is open still; only the key that is missing is named."""
    reply = ask(half_open, with_header(push("a", "e", "m", f"X-API-Key: {GOOD}"), "Via: 1.1 x"))
    assert is_refused_as_open(reply, TOKENS_OPEN) and PUSH_OPEN not in (reply.header("x-fastpush-error") or "")


def test_closed_server_serves_proxies_and_names(closed: Server) -> None:
    """With tokens and push keys none of it is refused: forwarding headers, any Host, any page's push with its key."""
    for header in FORWARDING:
        assert ask(closed, push("a", "e", "m", f"X-API-Key: {GOOD}", header)).status == 200
    for host in FOREIGN_HOSTS:
        assert ask(closed, with_host(push("a", "e", "m", f"X-API-Key: {GOOD}"), host)).status == 200
    assert ask(closed, push("a", "e", "m", f"X-API-Key: {GOOD}", "Origin: https://evil.example")).status == 200
    assert ask(closed, with_host(upgrade("/ws?token=jacks-own-token&event=e"), "push.example")).status == 101


def start_fails(folder: Path, sections: dict[str, dict[str, Any]]) -> tuple[int, str]:
    """Exit code and output of a server that should not start."""
    config = folder / "config.toml"
    config.write_text(toml({"server": {"runtime_directory": str(folder / "run")} | sections.pop("server")} | sections))
    command = [sys.executable, "-m", "fastpush", "serve", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30 * SCALE, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"server": {"listen": "0.0.0.0:0"}}, [PUSH_OPEN, TOKENS_OPEN, "0.0.0.0"]),
        ({"server": {"listen": ["127.0.0.1:0", "[::]:0"]}}, [PUSH_OPEN, TOKENS_OPEN, "[::]"]),
        ({"server": {"listen": "127.0.0.1:0"}, "api": {"listen": "0.0.0.0:0"}}, [PUSH_OPEN, TOKENS_OPEN]),
        ({"server": {"listen": "0.0.0.0:0"}} | KEYS, [TOKENS_OPEN]),
    ],
)
def test_open_server_starts_on_loopback_only(tmp_path: Path, sections: dict[str, Any], named: list[str]) -> None:
    """S0-03: an open server on an address that others can reach does not start: exit code 2, naming the keys to set."""
    code, output = start_fails(tmp_path, dict(sections))
    assert code == 2 and all(name in output for name in named), output


def test_closed_server_starts_anywhere(serve: Callable[..., Server], tmp_path: Path) -> None:
    """S0-03: with tokens and push keys it listens on every address."""
    server = serve(workers=1, sections={"server": {"listen": "0.0.0.0:0"}} | KEYS | tokens(tmp_path))
    assert ask(server, push("a", "e", "m", f"X-API-Key: {OTHER}")).status == 200


# -- push keys ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [f"X-API-Key: {GOOD}", f"x-api-key: {OTHER}", f"Authorization: Bearer {GOOD}", f"authorization: bearer {OTHER}"],
)
@pytest.mark.parametrize("odd", [(), ("Content-Encoding: identity",)], ids=["lean", "aiohttp"])
def test_key_lets_push(closed: Server, header: str, odd: tuple[str, ...]) -> None:
    """S0-19: any of the keys, as X-API-Key or as a Bearer token, lets a back-end push."""
    assert ask(closed, push("a", "e", "m", header, *odd)).status == 200


@pytest.mark.parametrize(
    "header",
    [
        "Accept: */*", "X-API-Key:", "X-API-Key: wrong", f"X-API-Key: {GOOD}x", f"X-API-Key: {GOOD[:-1]}",
        f"X-API-Key: {GOOD.upper()}", f"X-API-Key: {GOOD}, {GOOD}", f"Authorization: Basic {GOOD}",
        f"Authorization: {GOOD}", "Authorization: Bearer", "Authorization: Bearer wrong", "X-API-Key: \xe9\xff",
        f"X-API-Keys: {GOOD}", f"X-API-Key: wrong\r\nAuthorization: Bearer {GOOD}",
        f"X-API-Key: {GOOD}\r\nX-API-Key: {OTHER}", f"Cookie: X-API-Key={GOOD}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("odd", [(), ("Content-Encoding: identity",)], ids=["lean", "aiohttp"])
def test_no_key_is_401(closed: Server, header: str, odd: tuple[str, ...]) -> None:
    """S0-19: no key, a wrong one, or one in the wrong place is 401 with WWW-Authenticate; the connection goes on."""
    with Wire(closed) as wire:
        reply = wire.send(push("a", "e", "m", header, *odd)).reply()
        assert (reply.status, reply.header("www-authenticate"), reply.body) == (401, "Bearer", b"unauthorized")
        assert not reply.closes
        assert wire.send(push("a", "e", "m", f"X-API-Key: {GOOD}")).reply().status == 200


def test_key_in_the_query_does_not_count(closed: Server) -> None:
    """S0-19: a key in the URL, where proxies log it, lets nobody push."""
    assert ask(closed, push("a", "e", "m", path=f"/push?key={GOOD}&X-API-Key={GOOD}")).status == 401


def test_only_pushing_needs_a_key(closed: Server) -> None:
    """S0-19: /push, /push/all and /drop want a key; health, metrics and the WebSocket do not."""
    for path in ("/push", "/push/all", "/drop"):
        assert ask(closed, push("a", "e", "m", path=path)).status == 401
        assert ask(closed, push("a", "e", "m", f"X-API-Key: {GOOD}", path=path)).status == 200
    assert ask(closed, request("GET", "/health")).status == ask(closed, request("GET", "/metrics")).status == 200
    assert ask(closed, upgrade("/ws?token=jacks-own-token&event=e")).status == 101


def test_keys_and_tokens_stay_secret(closed: Server) -> None:
    """Neither a key nor a token, right or wrong, stands in any reply or in the log at its most talkative level."""
    wrong = "s3cret-but-wrong-0000"
    replies = [
        ask(closed, push("a", "e", "m", f"X-API-Key: {wrong}", "Accept: application/json")),
        ask(closed, push("", "e", "m", f"X-API-Key: {GOOD}", "Accept: application/json")),
        ask(closed, push("a", "e", "m", f"Authorization: Bearer {wrong}", "Content-Encoding: identity")),
        ask(closed, upgrade(f"/ws?token={wrong}&event=e")),
        ask(closed, upgrade(f"/ws?token={wrong}&token={wrong}&event=e")),
        ask(closed, request("GET", f"/nowhere?token={wrong}", f"X-API-Key: {GOOD}")),
        ask(closed, request("GET", "/health", f"X-API-Key: {GOOD}")),
        ask(closed, request("GET", "/metrics", f"X-API-Key: {GOOD}")),
        ask(closed, push("a", "e", "m", f"X-API-Key: {wrong}", "Bad Header: x")),
    ]
    with connect(closed.ws_url("token=jacks-own-token&event=e"), compression=None) as connection:
        connection.send(json.dumps({"token": wrong, "event": "e"}))
        eventually(lambda: closed.events("registration not taken"))
    eventually(lambda: closed.events("handshake refused"))
    everything = repr(replies) + closed.log_text()
    assert [secret for secret in (GOOD, OTHER, wrong, "jacks-own-token") if secret in everything] == []


# -- [push] auth = "python" ----------------------------------------------------------

MODULE = """
import asyncio

async def may_push(headers):
    if headers.get("x-team") == "broken":
        raise RuntimeError("the directory is down")
    await asyncio.sleep(0)
    return headers.get("x-team") == "red"

def may_push_too(headers):
    return headers.get("x-team") == "red"
"""


@pytest.mark.parametrize("function", ["may_push", "may_push_too"], ids=["async", "sync"])
def test_own_function_decides_who_may_push(serve: Callable[..., Server], tmp_path: Path, function: str) -> None:
    """S0-19: [push] auth = "python" asks the user's function, async or sync; its failure is 503, never a push."""
    (tmp_path / "door.py").write_text(MODULE)
    sections = {"push": {"auth": "python", "callable": f"door:{function}"}}
    server = serve(workers=1, sections=sections, environ={"PYTHONPATH": tmp_path})
    with Wire(server) as wire:
        red, blue = push("a", "e", "m", "X-Team: red"), push("a", "e", "m", "X-Team: blue")
        wire.send(red + blue + red)  # pipelined: order is kept although each waits
        assert [wire.reply().status for _ in range(3)] == [200, 401, 200]
        if function == "may_push":
            reply = wire.send(push("a", "e", "m", "X-Team: broken")).reply()
            assert reply.status == 503 and reply.header("retry-after") and b"directory" not in reply.body
            assert wire.send(red).reply().body == b"message sent to 0 clients"


# -- [api] listen --------------------------------------------------------------------


def test_api_address_serves_all_but_websockets(serve: Callable[..., Server], tmp_path: Path) -> None:
    """With [api] listen the first address serves WebSocket paths only, 404 otherwise; the second everything else."""
    sections = KEYS | tokens(tmp_path) | {"api": {"listen": "127.0.0.1:0"}} | ECHO
    server = serve(workers=2, sections=sections)
    ports = {int(event["address"].rpartition(":")[2]) for event in server.events("listening")}
    assert len(ports) == 2
    plain = [push("jack", "e", "m", f"X-API-Key: {GOOD}"), request("GET", "/health"), request("GET", "/metrics")]
    by_port = {port: [ask(port, data).status for data in plain] for port in ports}
    public = next(port for port, statuses in by_port.items() if statuses == [404] * 3)
    api = next(port for port, statuses in by_port.items() if statuses == [200] * 3)
    for path in ("/ws?token=jacks-own-token&event=e", "/echo"):
        assert ask(public, upgrade(path)).status == 101
        reply = ask(api, upgrade(path))
        assert reply.status == 404 and reply.json()["error"]["code"] == "not_found"
    refused = ask(public, request("POST", "/push", body=b"x" * 100000))
    assert refused.status == 404 and refused.json()["error"]["code"] == "not_found"
    assert ask(public, request("HEAD", "/health")).status == 404
    with connect(f"ws://127.0.0.1:{public}/ws?token=jacks-own-token&event=e", compression=None) as connection:
        assert ask(api, plain[0]).body == b"message sent to 1 clients"
        assert connection.recv(timeout=20) == "m"
