"""What docs/deploy.md shows works: nginx, HAProxy, several hosts."""

import asyncio
import json
import re
import socket
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from fastpush.config import load
from tests.programs import FASTPUSH, run
from tests.proxies import HOSTS, KEY, NAME, PAGE, SECONDS, Front, Proxy, blocks, make_certificate, substitute
from tests.raw import TEXT, build
from tests.server import Server, eventually
from tests.wire import push, request, upgrade

ROOT = Path(__file__).parents[2]
USERS = [f"user{number}" for number in range(60)]
CONNECTIONS_PER_ADDRESS = 4
KINDS = ("nginx", "haproxy")
BOTH = pytest.mark.parametrize("kind", KINDS)


Sections = dict[str, dict[str, Any]]


def settings() -> Sections:
    """The page's configuration for behind a proxy, but for the address."""
    sections = tomllib.loads(next(block for block in blocks("toml") if "trusted_proxies" in block))
    assert sections["server"].pop("listen") == "127.0.0.1:8080"
    return sections


def make(folder: Path, workers: int, sections: Sections) -> Server:
    """A server to start, with the tokens and keys that the page names."""
    (folder / "tokens.toml").write_text("".join(f'"token-{user}" = "{user}"\n' for user in ("aaa", *USERS)))
    (folder / "push-keys.txt").write_text(KEY)
    return Server(folder, workers, sections, start=False)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"limits": {"connections_per_address": CONNECTIONS_PER_ADDRESS}}
    running = make(tmp_path_factory.mktemp("host"), 2, settings() | limits)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, host: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(request.param, tmp_path_factory.mktemp("proxy"), host.port) as running:
        yield running


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    running = [make(tmp_path_factory.mktemp("host"), 1, settings()) for _ in HOSTS]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.start, running))
        yield running
    finally:
        for server in running:
            server.stop()


def opened(host: Server, peer: str) -> int:
    """How many WebSockets of this peer the server has logged."""
    return sum(event["peer"] == peer for event in host.events("connection opened"))


def close_code(client: ClientConnection) -> int | None:
    """The code of the close frame that comes next."""
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=SECONDS)
    return closed.value.rcvd and closed.value.rcvd.code


# -- one host -----------------------------------------------------------------------


def test_push_to_a_websocket(proxy: Proxy) -> None:
    """A message of nearly [limits] push_body_bytes arrives whole and counted, as does a client's large registration."""
    large = "x" * 1_000_000
    with proxy.connect("confirm=1", max_size=None) as client:
        client.send(json.dumps({"token": "token-aaa", "event": "large", "more": "y" * 60_000}))
        assert json.loads(client.recv(timeout=SECONDS)) == {"registered": "large"}
        for message in (large, "small"):
            assert proxy.push("aaa", "large", message).json() == {"sent": 1}
            assert client.recv(timeout=SECONDS) == message


def test_close_codes_pass(proxy: Proxy) -> None:
    """A page learns 4501 and an app 401 of a bad token; a message that is too big ends with 1009."""
    with proxy.connect("token=wrong&event=e", origin=f"https://{NAME}:{proxy.port}") as client:
        assert close_code(client) == 4501
    with pytest.raises(InvalidStatus) as refused:
        proxy.connect("token=wrong&event=e")
    assert refused.value.response.status_code == 401
    with proxy.connect() as client:
        # The head of its frame is enough to be refused; of the rest a proxy that has closed would know nothing: RST.
        client.socket.sendall(build(TEXT, length=70_000))
        assert close_code(client) == 1009


def test_pages_of_other_sites(proxy: Proxy) -> None:
    """A page of [server] origins connects through the proxy, one of another site is refused."""
    with proxy.connect(origin="https://app.example.com"):
        pass
    with pytest.raises(InvalidStatus) as refused:
        proxy.connect(origin="https://evil.example")
    assert refused.value.response.status_code == 403


def test_client_addresses(proxy: Proxy, host: Server) -> None:
    """The client's own address is logged and limited; one that it makes up in X-Forwarded-For is not believed."""
    forged = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    before = opened(host, "127.0.0.7")
    with ExitStack() as stack:
        for _ in range(CONNECTIONS_PER_ADDRESS):
            stack.enter_context(proxy.connect(source="127.0.0.7", additional_headers=forged))
        with pytest.raises(InvalidStatus) as refused:
            proxy.connect(source="127.0.0.7", additional_headers=forged | {"X-Forwarded-For": "127.0.0.8"})
        assert refused.value.response.status_code == 429
        stack.enter_context(proxy.connect(source="127.0.0.8", additional_headers=forged))
        eventually(lambda: opened(host, "127.0.0.7") == before + CONNECTIONS_PER_ADDRESS, what="logged")
    assert opened(host, "203.0.113.9") == 0


@pytest.mark.parametrize("path", ["/push", "/drop"])
def test_addresses_of_refused_back_ends(path: str, host: Server) -> None:
    """A push without a key that came through the proxy is logged with the address of who sent it."""
    sender = f"198.51.100.{len(path)}"
    status, headers, _ = host.request("POST", path, {}, {"X-Forwarded-For": f"203.0.113.9, {sender}"})
    assert status == 401
    refused = eventually(
        lambda: [e for e in host.events("request refused") if e["request_id"] == headers["x-request-id"]]
    )
    assert [event["peer"] for event in refused] == [sender]


def test_forwarded_by_anybody_else(host: Server) -> None:
    """X-Forwarded-For of a peer that is no trusted proxy is ignored: its own address is logged."""
    sock = socket.create_connection(("127.0.0.1", host.port), SECONDS, ("127.0.0.9", 0))
    with connect(host.ws_url(), sock=sock, additional_headers={"X-Forwarded-For": "203.0.113.10"}):
        eventually(lambda: opened(host, "127.0.0.9"), what="logged")
    assert opened(host, "203.0.113.10") == 0


def test_what_is_not_public(proxy: Proxy, host: Server) -> None:
    """Nothing but the listed paths is served outside, whatever fastpush serves inside."""
    for path in ("/metrics", "/health", "/ready", "/", "/push/", "/ws/x", "//metrics", "/push/../metrics"):
        assert proxy.ask(request("GET", path)).status == 404, path
    assert host.request("GET", "/metrics")[0] == 200
    assert proxy.ask(push("aaa", "e", "m")).status == 401


@BOTH
def test_one_upstream_connection_carries_every_kind(kind: str, host: Server, tmp_path: Path) -> None:
    """A lean push, two requests of aiohttp, a refused method and an upgrade travel on the same upstream connection."""
    key, accept = f"X-API-Key: {KEY}", "Accept: application/json"
    to_all, drop = b'{"event": "kinds", "message": "m"}', b'{"userId": "nobody"}'
    with Proxy(kind, tmp_path, host.port) as proxy, proxy.wire() as wire:
        assert wire.send(push("aaa", "kinds", "m", key, accept)).reply().json() == {"sent": 0}
        (port,) = proxy.upstream_ports()
        assert wire.send(request("POST", "/push/all", key, accept, body=to_all)).reply().status == 200
        assert wire.send(request("POST", "/drop", key, accept, body=drop)).reply().json() == {"sent": 0}
        assert wire.send(request("GET", "/push", accept)).reply().status == 405
        assert wire.send(push("aaa", "kinds", "m", key, accept)).reply().json() == {"sent": 0}
        assert wire.send(upgrade("/ws?token=token-aaa&event=kinds")).reply().status == 101
        assert host.push("aaa", "kinds", "to the WebSocket", **{"X-API-Key": KEY})["sent"] == 1
        assert wire.websocket_text() == "to the WebSocket"
        assert proxy.upstream_ports() == {port}


def test_an_open_server_is_not_opened_by_a_proxy(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Behind a proxy a server without authentication refuses everything, and names the settings that it wants."""
    server = serve(workers=1)
    for kind in KINDS:
        folder = tmp_path / kind
        folder.mkdir()
        with Proxy(kind, folder, server.port) as proxy:
            for data in (push("aaa", "e", "m"), upgrade("/ws?token=aaa&event=e")):
                reply = proxy.ask(data)
                error = reply.header("x-fastpush-error")
                assert reply.status == 403
                assert error and "[auth] mode" in error and "[push] auth" in error


def test_one_host_with_tls_of_its_own(tmp_path: Path) -> None:
    """The page's first configuration serves WebSockets and pushes by TLS, without any proxy."""
    make_certificate(tmp_path)
    sections = tomllib.loads(substitute(blocks("toml")[0], {"/etc/fastpush/": f"{tmp_path}/"}))
    assert sections["server"].pop("listen") == "0.0.0.0:8443"
    server = make(tmp_path, 1, sections)
    server.start()
    try:
        front = Front(tmp_path, server.port)
        with front.connect("token=token-aaa&event=topic1") as client:
            printed, on_the_page = front.call()
            assert printed == on_the_page
            assert client.recv(timeout=SECONDS) == "hello"
    finally:
        server.stop()


# -- several hosts: the back-end posts to each --------------------------------------------


def example(*addresses: str) -> dict[str, Any]:
    """The names that the page's program defines, for hosts at these addresses."""
    (program,) = blocks("python")
    names: dict[str, Any] = {}
    exec(substitute(program, dict(zip(HOSTS, addresses, strict=True))), names)  # the page's own program
    assert names["HEADERS"]["X-API-Key"] == KEY
    return names


def push_by_example(names: dict[str, Any], *arguments: str) -> Any:
    async def in_session() -> Any:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
            return await names["push"](session, *arguments)

    return asyncio.run(in_session())


def test_posting_to_every_host(hosts: list[Server]) -> None:
    """The page's program reaches a user's connections on all hosts, and adds the counts."""
    names = example(*(f"127.0.0.1:{server.port}" for server in hosts))
    with ExitStack() as stack:
        clients = [
            stack.enter_context(connect(server.ws_url("token=token-aaa&event=everywhere")))
            for server, count in zip(hosts, (2, 0, 1), strict=True)
            for _ in range(count)
        ]
        assert push_by_example(names, "aaa", "everywhere", "hello") == (3, {})
        assert [client.recv(timeout=SECONDS) for client in clients] == ["hello"] * 3
    with pytest.raises(aiohttp.ClientResponseError, match="400"):
        push_by_example(names, "", "everywhere", "a user must have a name")


@contextmanager
def answering(*statuses: int) -> Iterator[str]:
    """The address of a server that answers requests with these statuses in turn, from then on with the last."""
    left = list(statuses)
    answer = b'{"sent": 5}'

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Retry-After", "0")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_part_of_the_hosts_fails() -> None:
    """503 is repeated, but not for ever; after 504 nobody knows; a host that cannot be reached has nobody."""
    with (
        socket.socket() as silent, answering(503, 503, 200) as recovers, answering(504, 200) as unknown,
        answering(503) as refuses,
    ):  # fmt: skip
        silent.bind(("127.0.0.1", 0))  # it listens to nobody, and nobody else gets its port
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
        assert push_by_example(example(recovers, unknown, nobody), "aaa", "e", "m") == (
            5, {f"http://{unknown}": 504, f"http://{nobody}": 503},
        )  # fmt: skip
        assert push_by_example(example(recovers, unknown, refuses), "aaa", "e", "m") == (
            10, {f"http://{refuses}": 503},
        )  # fmt: skip


@BOTH
def test_balanced_clients(kind: str, hosts: list[Server], tmp_path: Path) -> None:
    """Clients are spread over hosts, and one that answers 503, because it drains, gets none."""
    with answering(503) as drains:
        first, _, last = (server.port for server in hosts)
        ports = (first, int(drains.partition(":")[2]), last)
        with Proxy(kind, tmp_path, *ports) as proxy, ExitStack() as stack:

            def all_connected() -> bool:
                clients = [client for _ in USERS[:6] if (client := subscribe(proxy, "aaa"))]
                for client in clients:
                    stack.enter_context(client)
                return len(clients) == 6

            eventually(all_connected, what="everybody connected")
            key = {"X-API-Key": KEY}
            assert min(server.push("aaa", "e", "m", **key)["sent"] for server in (hosts[0], hosts[2])) > 1


# -- several hosts: the proxy hashes the user ---------------------------------------------


def subscribe(proxy: Proxy, user: str) -> ClientConnection | None:
    """A WebSocket of this user; None where the proxy finds nobody to ask."""
    try:
        return proxy.connect(f"token=token-{user}&event=e&user={user}", max_queue=None)  # not all is read
    except InvalidStatus as refused:
        assert refused.response.status_code in {502, 503}
        return None


def sent(proxy: Proxy, user: str) -> int:
    """How many connections took a push through the proxy; -1 where it found nobody to ask."""
    reply = proxy.push(user, "e", f"to {user}", path=f"/push?user={user}")
    assert reply.status in {200, 502, 503}
    return reply.json()["sent"] if reply.status == 200 else -1


@BOTH
def test_hashed_users(kind: str, hosts: list[Server], tmp_path: Path) -> None:
    """WebSocket and push of each user meet on one of three hosts; when one drains its users meet elsewhere.

    Once it is back their pushes go there, so they have to connect again.
    """
    with Proxy(kind, tmp_path, *(server.port for server in hosts), hashed=True) as proxy, ExitStack() as stack:

        def connected(user: str) -> ClientConnection:
            return stack.enter_context(eventually(lambda: subscribe(proxy, user), what="connected"))

        clients = {user: connected(user) for user in USERS}
        for user in USERS:
            assert sent(proxy, user) == 1
            assert clients[user].recv(timeout=SECONDS) == f"to {user}"
        shares = [server.metrics()["fastpush_connections"] for server in hosts]
        assert sum(shares) == len(USERS)
        assert min(shares) > 0  # where a host is on the ring depends on its port, which the kernel chose

        stopped = hosts[1]
        drained = run(*FASTPUSH, "drain", "--seconds", "1", "--config", str(stopped.config_path))
        assert drained.returncode == 0, drained.stderr
        assert stopped.stop() == 0
        moved = [event["user"] for event in stopped.events("connection closed") if event["code"] == 1012]
        assert len(moved) == shares[1]
        assert {close_code(clients[user]) for user in moved} == {1012}
        clients |= {user: connected(user) for user in moved}
        assert {sent(proxy, user) for user in USERS} == {1}

        stopped.write_config(1, settings())
        stopped.start()
        eventually(lambda: sent(proxy, moved[0]) == 0, what="pushes go to the host that is back")
        for user in moved:
            clients[user].close()
            connected(user)
        assert {sent(proxy, user) for user in USERS} == {1}


@BOTH
def test_requests_without_a_user_are_refused(kind: str, hosts: list[Server], tmp_path: Path) -> None:
    """A push that could only reach one host by chance is 400; the page's call with the parameter answers as printed."""
    with Proxy(kind, tmp_path, *(server.port for server in hosts), hashed=True) as proxy:
        assert proxy.push("aaa", "topic1", "m").status == 400
        assert proxy.push("aaa", "topic1", "m", path="/push/all").status == 400
        with proxy.connect("token=token-aaa&event=topic1&user=aaa") as client:
            printed, on_the_page = proxy.call()
            assert printed == on_the_page
            assert client.recv(timeout=SECONDS) == "hello"


# -- the page -----------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("toml"))
def test_configurations_are_valid(block: str, tmp_path: Path) -> None:
    """Each fragment loads with the program's own loader, once the files that it names exist."""
    make_certificate(tmp_path)
    (tmp_path / "config.toml").write_text(block.replace("/etc/fastpush/", f"{tmp_path}/"))
    (tmp_path / "tokens.toml").write_text('"token" = "user"\n')
    (tmp_path / "push-keys.txt").write_text(KEY)
    load(tmp_path / "config.toml", environ={})


def test_links_lead_somewhere() -> None:
    """Every link of the page is a file beside it, or a heading on it."""
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)", PAGE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (ROOT / "docs" / target).exists(), target
