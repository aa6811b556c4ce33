"""Each kind of live change under load: it applies to connections of before and of after, and nobody else notices.

Around every test stands the load's check: nobody is disconnected or refused, no push is lost. FASTPUSH_TEST_LOAD=full
runs it with 3,000 clients and 500 pushes/s.
"""

import json
import os
import shutil
import signal
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.certificates import make_certificate
from tests.load.driver import show
from tests.load.live import KEY, PROBE, PROBES, Live
from tests.programs import FASTPUSH, run
from tests.raw import CLOSE, PING, TEXT, RawClient, build
from tests.server import SCALE, Server, application, eventually
from tests.wire import Wire, push, upgrade
from tests.wire import request as http_request

SECRETS = ["first-secret-of-32-bytes-or-more-0123456789", "second-secret-of-32-bytes-or-more-9876543210"]
OTHER_KEY = "another-key-0123456789"


@pytest.fixture
def opened() -> Iterator[list[RawClient]]:
    """Connections that a test leaves open; closed after it."""
    clients: list[RawClient] = []
    yield clients
    for client in clients:
        client.socket.close()


def closes(clients: list[RawClient]) -> set[tuple[int | None, str]]:
    """The close frame of each, whatever text comes before it."""
    found = set()
    for client in clients:
        while (frame := client.read()).opcode != CLOSE:
            assert frame.opcode == TEXT, frame
        found.add((int.from_bytes(frame.payload[:2], "big"), frame.payload[2:].decode()))
        client.socket.close()
    return found


def echoes(client: RawClient, text: str) -> bool:
    client.text(text)
    return client.read_text() == text


# -- limits ------------------------------------------------------------------------


def test_message_bytes(live: Live) -> None:
    """A lower message_bytes closes old and new connections at the first larger message, a higher one lets it pass."""
    kept, old = [live.open("/echo") for _ in range(PROBES)], [live.open("/echo") for _ in range(PROBES)]
    assert all(echoes(client, "x" * 1000) for client in [*kept, *old])
    assert "limits.message_bytes" in live.change(limits={"message_bytes": 200})
    new = [live.open("/echo") for _ in range(PROBES)]
    for client in [*old, *new]:
        client.text("x" * 201)
    assert {code for code, _ in closes([*old, *new])} == {1009}
    assert all(echoes(client, "x" * 200) for client in kept)
    live.change(limits={"message_bytes": 100_000})
    new = [live.open("/echo") for _ in range(PROBES)]
    assert all(echoes(client, "x" * 100_000) for client in [*kept, *new])
    for client in [*kept, *new]:
        client.socket.close()


def test_messages_per_second(live: Live) -> None:
    """messages_per_second, switched on, ends old and new connections that send more, and no longer once it is off."""
    old = [live.open("/echo") for _ in range(PROBES)]
    live.change(limits={"messages_per_second": 3})
    new = [live.open("/echo") for _ in range(PROBES)]
    for client in [*old, *new]:
        client.send(*[build(TEXT, b"m")] * 4)
    assert closes([*old, *new]) == {(1008, "message rate")}
    live.change()
    with live.open("/echo") as client:
        client.send(*[build(TEXT, b"m")] * 20)
        assert [client.read_text() for _ in range(20)] == ["m"] * 20


def test_message_fragments_and_registrations(live: Live, opened: list[RawClient]) -> None:
    """message_fragments and registrations hold for old connections as for new ones."""
    opened += [live.open(token=PROBE, event="e", confirm="1") for _ in range(2)]
    live.change(limits={"message_fragments": 2, "registrations": 1})
    opened += [live.open(token=PROBE, event="e", confirm="1") for _ in range(2)]
    for client in opened:
        assert json.loads(client.read_text()) == {"registered": "e"}
        client.text(json.dumps({"token": PROBE, "event": "another"}))
        assert json.loads(client.read_text())["error"] == "more than 1 events on one connection"
        client.send(build(TEXT, b"1", fin=False), build(0, b"2", fin=False), build(0, b"3"))
    assert {code for code, _ in closes(opened)} == {1009}


def test_connections_per_user(live: Live, opened: list[RawClient]) -> None:
    """connections_per_user counts connections that were there before it was switched on, until it is off again."""
    opened += [live.open() for _ in range(3)]
    live.change(limits={"connections_per_user": 4})
    opened.append(live.open())
    assert opened[-1].status == 101
    assert live.everywhere(live.status) == {429}
    opened[0].socket.close()
    eventually(lambda: live.status() == 101, what="room for one")
    assert live.status(token="token-u0") == 101, "another user, who has the load's connection already"
    live.change(limits={"connections_per_user": 1})
    assert live.everywhere(live.status) == {429}
    reply = live.server.push("probe", "e", "still here", **{"X-API-Key": KEY})
    assert reply["sent"] == 3 and [client.read_text() for client in opened[1:]] == ["still here"] * 3
    live.change()
    assert live.everywhere(live.status) == {101}


def test_connections_per_address_and_trusted_proxies(live: Live, opened: list[RawClient]) -> None:
    """trusted_proxies decides at once whose address counts, and connections_per_address whom it turns away."""
    forwarded = "X-Forwarded-For: 192.0.2.1"
    live.change(limits={"connections_per_address": 1})
    assert live.everywhere(lambda: live.status(forwarded)) == {429}, "the load has more from the peer's address"
    live.change(limits={"connections_per_address": 1}, server={"trusted_proxies": ["127.0.0.0/8"]})
    with Wire(live.server) as wire:
        assert wire.send(upgrade(f"/ws?token={PROBE}&event=e", forwarded)).reply(to_head=True).status == 101
        assert live.everywhere(lambda: live.status(forwarded)) == {429}
        assert live.status("X-Forwarded-For: 192.0.2.2") == 101
    live.change()
    assert live.everywhere(live.status) == {101}


def test_push_bodies(live: Live) -> None:
    """push_body_bytes, push_users and name_bytes hold for kept-alive connections of before and for new ones."""
    key = f"X-API-Key: {KEY}"
    large = push("probe", "e", "x" * 5000, key)
    several = push(["probe", "nobody", "noone"], "e", "m", key)
    long_name = push("p" * 20, "e", "m", key)
    with ExitStack() as stack:
        old = [stack.enter_context(Wire(live.server)) for _ in range(PROBES)]
        assert {wire.send(sent).reply().status for wire in old for sent in (large, several, long_name)} == {200}
        live.change(limits={"push_body_bytes": 2000, "push_users": 2, "name_bytes": 15})
        new = [stack.enter_context(Wire(live.server)) for _ in range(PROBES)]
        wires = [*old, *new]
        assert {wire.send(several).reply().status for wire in wires} == {400}
        assert {wire.send(long_name).reply().status for wire in wires} == {400}
        assert {wire.send(large).reply().status for wire in wires} == {413}


def test_send_queue_and_slow_policy(live: Live) -> None:
    """send_queue_messages and slow_policy judge connections of before: one that does not read is closed with 1013, or
    misses its oldest messages and stays.
    """
    # Larger than what the kernel holds for a connection: three wait, whatever it takes.
    messages = [f"{number}{'x' * 400_000}" for number in range(8)]
    old = live.open(receive_bytes=4096, token=PROBE, event="e")
    live.change(limits={"send_queue_messages": 3, "send_queue_bytes": 8_000_000})
    for message in messages:
        assert live.push(KEY, message=message) == 200
    eventually(lambda: live.push(KEY) == 200 and drops(live.server, "slow") >= 3, what="closed for being slow")
    old.socket.close()
    kept = live.open(receive_bytes=4096, token=PROBE, event="e")
    live.change(limits={"send_queue_messages": 3, "send_queue_bytes": 8_000_000, "slow_policy": "drop-oldest"})
    before = drops(live.server, "oldest")
    for message in messages:
        assert live.push(KEY, message=message) == 200
    eventually(lambda: drops(live.server, "oldest") > before, what="oldest dropped")
    received = []
    while not received or received[-1] != messages[-1]:
        received.append(kept.read_text())
    assert received == sorted(received) and len(received) < len(messages)
    kept.is_alive()
    kept.socket.close()


def drops(server: Server, reason: str) -> float:
    samples = server.metrics()
    return sum(
        value for name, value in samples.items() if name.startswith("fastpush_drops") and f'reason="{reason}"' in name
    )


def test_handshakes_and_connections_of_a_worker(live: Live) -> None:
    """handshakes_per_second and connections turn new clients away with 503; those who are there stay."""
    live.change(limits={"handshakes_per_second": 1})
    assert [live.status() for _ in range(20)].count(503) >= 10
    live.change(limits={"connections": 1})
    refused = live.handshake()
    assert refused.status == 503 and "[limits] connections" in (refused.header("x-fastpush-error") or "")
    assert live.everywhere(live.status) == {503}
    live.change()
    assert live.everywhere(live.status) == {101}


def test_register_timeout(live: Live) -> None:
    """register_timeout_seconds, made shorter, ends connections of before and after that have registered nothing."""
    old = [live.open(nothing="") for _ in range(PROBES)]
    live.change(limits={"register_timeout_seconds": 0.3})
    new = [live.open(nothing="") for _ in range(PROBES)]
    assert closes([*old, *new]) == {(1008, "not registered in time: no message")}


def test_pings(live: Live, opened: list[RawClient]) -> None:
    """ping_interval_seconds and pong_timeout_seconds, made shorter, reach silent connections of before."""
    opened += [live.open() for _ in range(2)]
    live.change(connections={"ping_interval_seconds": 1, "pong_timeout_seconds": 4})  # the load's clients have it too
    opened += [live.open() for _ in range(2)]
    assert {client.read().opcode for client in opened} == {PING}
    for client in opened:
        with pytest.raises((EOFError, ConnectionError)):  # nobody has answered
            while client.read().opcode in {PING, CLOSE}:
                pass


def test_head_bytes(live: Live) -> None:
    """head_bytes holds for the next request of a kept-alive connection and for new ones."""
    asked = http_request("GET", "/health", f"X-Long: {'x' * 3000}")
    with Wire(live.server) as old:
        assert old.send(asked).reply().status == 200
        live.change(server={"head_bytes": 2000})
        with Wire(live.server) as new:
            assert {old.send(asked).reply().status, new.send(asked).reply().status} == {431}


# -- who may do what ---------------------------------------------------------------


def test_push_keys(live: Live) -> None:
    """A key counts from the reload that brings it to the one that takes it away, on kept-alive connections too."""
    asked = push("probe", "e", "m", f"X-API-Key: {OTHER_KEY}")
    with ExitStack() as stack:
        old = [stack.enter_context(Wire(live.server)) for _ in range(PROBES)]
        assert {wire.send(asked).reply().status for wire in old} == {401}
        live.change(push={"keys": [KEY, OTHER_KEY]})
        assert {wire.send(asked).reply().status for wire in old} == {200}
        assert live.everywhere(lambda: live.push(OTHER_KEY)) == {200}
        live.change()
        assert {wire.send(asked).reply().status for wire in old} == {401}
        assert live.everywhere(lambda: live.push(OTHER_KEY)) == {401}


def test_keys_file(live: Live) -> None:
    """What stands in keys_file is read again by a reload that finds no other change."""
    file = live.folder / "keys.txt"
    file.write_text(f"{KEY}\n")
    live.change(push={"keys": [], "keys_file": "keys.txt"})
    assert live.push(OTHER_KEY) == 401
    file.write_text(f"{KEY}\n{OTHER_KEY}\n")
    live.change(push={"keys": [], "keys_file": "keys.txt"})
    assert live.everywhere(lambda: live.push(OTHER_KEY)) == {200}


def test_static_tokens(live: Live, opened: list[RawClient]) -> None:
    """Tokens of a new file open connections, those that are gone no longer do, and who is connected stays."""
    opened.append(live.open())
    live.write_tokens("other.toml", {"token-new": "probe"})
    live.change(auth={"tokens_file": "other.toml"})
    assert live.everywhere(lambda: live.status(token="token-new")) == {101}
    assert live.everywhere(live.status) == {401}
    assert live.push(KEY, message="still here") == 200
    assert opened[0].read_text() == "still here"


def signed(secret: str, kid: str) -> str:
    return jwt.encode({"alg": "HS256", "kid": kid}, {"sub": "probe"}, OctKey.import_key(secret))


def jwt_keys(*numbers: int) -> str:
    return "".join(f'[[auth.jwt.key]]\nkid = "k{number}"\nsecret = "{SECRETS[number]}"\n' for number in numbers)


def test_auth_mode_and_jwt_keys(live: Live, opened: list[RawClient]) -> None:
    """From static tokens to signed ones and through a rotation of keys: each kind counts as long as it is configured,
    and who is connected by an older kind stays.
    """
    first, second = signed(SECRETS[0], "k0"), signed(SECRETS[1], "k1")

    def statuses(token: str) -> set[int]:
        return live.everywhere(lambda: live.status(token=token))

    opened.append(live.open())
    assert statuses(first) == {401}
    live.change(jwt_keys(0), auth={"mode": "jwt"})
    assert (statuses(PROBE), statuses(first), statuses(second)) == ({401}, {101}, {401})
    opened.append(live.open(token=first, event="e"))
    live.change(jwt_keys(0, 1), auth={"mode": "jwt"})
    assert (statuses(first), statuses(second)) == ({101}, {101})
    opened.append(live.open(token=second, event="e"))
    live.change(jwt_keys(1), auth={"mode": "jwt"})
    assert (statuses(first), statuses(second)) == ({401}, {101})
    assert live.push(KEY, message="all three") == 200
    assert [client.read_text() for client in opened] == ["all three"] * 3


def test_own_function(live: Live) -> None:
    """[push] auth goes over to a function of one's own, found when the reload comes, and back."""
    live.change(push={"auth": "python", "callable": "tests.load.allow:everybody"})
    assert live.everywhere(lambda: live.push("no key at all")) == {200}
    live.change()
    assert live.everywhere(lambda: live.push("no key at all")) == {401}


def test_origins(live: Live) -> None:
    """Pages of another origin may connect from the reload that names it to the one that does not."""
    origin = "Origin: https://shop.example"
    assert live.everywhere(lambda: live.status(origin)) == {403}
    live.change(server={"origins": ["https://shop.example"]})
    assert live.everywhere(lambda: live.status(origin)) == {101}
    live.change()
    assert live.everywhere(lambda: live.status(origin)) == {403}


# -- everything else ---------------------------------------------------------------


def test_log_level(live: Live) -> None:
    """From debug on, workers tell of each accepted connection; before and after they do not."""
    live.change(log={"level": "debug"})

    def both_told() -> bool:
        live.status()
        return len({event["process"] for event in live.server.events("accepted")}) == 2

    eventually(both_told, what="debug lines of both workers")
    live.change()
    count = len(live.server.events("accepted"))
    live.everywhere(live.status)
    assert len(live.server.events("accepted")) == count


def test_applications(live: Live, opened: list[RawClient]) -> None:
    """Applications wait for a restart: a reload says so, and serves those that there are as before."""
    opened.append(live.open("/echo"))
    printed = live.change(application=[application("Echo", path="/again")])
    assert "application" in printed.partition("restart")[2]
    assert 101 not in live.everywhere(lambda: live.status(path="/again"))
    opened.append(live.open("/echo"))
    assert "application" in live.change(application=[]).partition("restart")[2]
    assert all(echoes(client, "still here") for client in opened)


def test_page(live: Live) -> None:
    """The test page is switched off and on."""

    def status() -> int:
        return live.server.request("GET", "/")[0]

    assert live.everywhere(status) == {200}
    live.change(api={"page": "off"})
    assert live.everywhere(status) == {404}


def test_compression(live: Live, opened: list[RawClient]) -> None:
    """Compression is offered to new connections from the reload on; those of before are pushed to as they agreed."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate"
    opened.append(live.open())
    assert live.handshake(offer).header("sec-websocket-extensions") is None
    live.change(compression={"enabled": True, "min_bytes": 0})
    assert "permessage-deflate" in (live.handshake(offer).header("sec-websocket-extensions") or "")
    with Wire(live.server) as agreed:
        assert agreed.send(upgrade(f"/ws?token={PROBE}&event=e", offer)).reply(to_head=True).status == 101
        message = "x" * 100
        live.push(KEY, message=message)
        assert agreed.exactly(1)[0] == 0xC1 and opened[0].read_text() == message
        agreed.exactly(agreed.exactly(1)[0])
        live.change()
        live.push(KEY, message=message)
        assert agreed.exactly(1)[0] in {0x81, 0xC1} and opened[0].read_text() == message
    assert live.handshake(offer).header("sec-websocket-extensions") is None


def test_many_changes_at_once(live: Live) -> None:
    """Whatever is live is named as taken over, whatever is not as what a restart would take over."""
    printed = live.change(
        fanout={"max_delay_ms": 0, "slice_ms": 5},
        limits={"max_lag_ms": 600, "worker_send_bytes": 100_000_000},
        connections={"close_timeout_seconds": 3, "socket_send_bytes": 100_000},
        server={"drain_seconds": 3, "hang_seconds": 5, "read_buffer_bytes": 4096},
        bus={"confirm_ms": 2000},
    )
    taken = ["fanout.max_delay_ms", "fanout.slice_ms", "limits.max_lag_ms", "limits.worker_send_bytes"]
    taken += ["connections.close_timeout_seconds", "server.drain_seconds", "server.hang_seconds"]
    waiting = ["connections.socket_send_bytes", "server.read_buffer_bytes", "bus.confirm_ms"]
    assert [name for name in (*taken, *waiting) if name not in printed] == []
    line = [event for event in live.server.events("reloaded") if event["process"] == "supervisor"][-1]
    assert sorted(line["changed"].split(", ")) == sorted(taken)
    waiting.append("server.listen")  # it was port 0 at the start, and is the one that was found since
    assert sorted(live.server.events("restart needed")[-1]["changed"].split(", ")) == sorted(waiting)


def test_signals_in_quick_succession(live: Live) -> None:
    """SIGHUP again and again, with new settings each time: the last ones count, and nobody notices."""
    for number in range(10):
        live.write(push={"keys": [KEY, f"{OTHER_KEY}-{number}"]})
        live.server.signal(signal.SIGHUP)

    def last_ones_count() -> bool:
        """Whether all probes say so: once is not enough, as all may have met the worker that was the first to know."""
        statuses = [live.everywhere(lambda: live.push(f"{OTHER_KEY}-{number}")) for number in (8, 9)]  # noqa: B023
        return statuses == [{401}, {200}]

    eventually(last_ones_count, what="the last settings")


# -- TLS ---------------------------------------------------------------------------


def test_certificate(tmp_path: Path) -> None:
    """New connections get the certificate of after the reload, of the same file or of another; those of before stay."""
    made = [make_certificate(tmp_path / f"{name}.pem") for name in ("first", "second", "third")]
    first, second, third = [path.read_text().partition("-----BEGIN PRIVATE")[0] for path in made]
    shutil.copy(tmp_path / "first.pem", tmp_path / "current.pem")
    with Live(tmp_path, tls={"certificate": "current.pem"}) as live:
        address = ("127.0.0.1", live.server.port)

        def presented() -> str:
            return ssl.get_server_certificate(address)

        assert live.everywhere(presented) == {first}
        shutil.copy(tmp_path / "second.pem", tmp_path / "current.pem")
        live.change()
        assert live.everywhere(presented) == {second}
        live.change(tls={"certificate": "third.pem"})
        assert live.everywhere(presented) == {third}
        show("certificate", live.settle())


# -- of the processes --------------------------------------------------------------


def reload(running: Server, **sections: dict[str, Any]) -> None:
    running.write_config(2, sections)
    result = run(*FASTPUSH, "reload", "--config", str(running.config_path))
    assert result.returncode == 0, result.stderr


def test_hang_seconds(serve) -> None:
    """hang_seconds, made shorter, finds a worker that stands still after the reload; its slot is served on."""
    server: Server = serve(workers=2, sections={"server": {"hang_seconds": 600}})
    reload(server, server={"hang_seconds": 2})
    stopped = server.processes("worker")[0]["pid"]
    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: [line["pid"] for line in server.events("process hangs")] == [stopped], what="found")
    eventually(lambda: len(server.processes("worker")) == 2 and stopped not in pids(server), what="replaced")


def pids(server: Server) -> list[int]:
    return [process["pid"] for process in server.processes("worker")]


def test_drain_seconds(serve) -> None:
    """drain_seconds and close_timeout_seconds, made shorter, end a server whose clients do not answer a close."""
    server: Server = serve(
        workers=2, sections={"server": {"drain_seconds": 600}, "connections": {"close_timeout_seconds": 600}}
    )
    with RawClient(server, "/ws", token="jack", event="e") as client:
        reload(server, server={"drain_seconds": 2}, connections={"close_timeout_seconds": 1})
        server.signal(signal.SIGTERM)
        assert client.read_close()[0] == 1012
        assert server.process.wait(20 * SCALE) == 0
