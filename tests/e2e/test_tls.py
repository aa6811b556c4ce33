"""A server with [tls]: pushes by https, WebSockets by wss, who is refused, and what its own commands trust."""

import json
import os
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.certificates import make_certificate, trusting
from tests.programs import FASTPUSH, Program, run
from tests.raw import CLOSE, PING, TEXT, Frame, RawClient, build, close_payload
from tests.server import ECHO, SCALE, Server, eventually
from tests.wire import Wire, request, upgrade

SECONDS = 10 * SCALE


def tls_server(serve: Callable[..., Server], certificate: Path, **sections: dict[str, Any]) -> Server:
    return serve(workers=1, tls=trusting(certificate), sections={"tls": {"certificate": str(certificate)}, **sections})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    certificate = make_certificate(folder / "certificate.pem", key_path=folder / "key.pem")
    running = Server(
        folder,
        workers=2,
        tls=trusting(certificate),
        sections={"tls": {"certificate": "certificate.pem", "key": "key.pem"}} | ECHO,
    )
    yield running
    running.stop()


# -- what is served --------------------------------------------------------------------


def test_a_push_by_https_reaches_a_client_by_wss(server: Server) -> None:
    """Registration, push, an answer by a kept-alive connection and the page work as they do in plain text."""
    with connect(server.ws_url("token=jack&event=e"), ssl=server.tls) as client:
        assert server.push("jack", "e", "by TLS") == {"status": 200, "sent": 1}
        assert client.recv(timeout=SECONDS) == "by TLS"
        with Wire(server) as wire:
            for number in range(3):
                body = json.dumps({"userId": "jack", "event": "e", "message": f"number {number}"}).encode()
                assert wire.send(request("POST", "/push", body=body)).reply().body == b"message sent to 1 clients"
                assert client.recv(timeout=SECONDS) == f"number {number}"
            assert b"fastpush" in wire.send(request("GET", "/")).reply().body
        assert server.metrics()["fastpush_connections"] == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_spoken(server: Server, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3, HTTP/1.1 also for who would rather have HTTP/2, ciphers with forward secrecy."""
    context = trusting(server.folder / "certificate.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost") as link:
        cipher = link.cipher()
        assert link.selected_alpn_protocol() == "http/1.1"
        assert cipher is not None and (cipher[0].startswith(("TLS_AES", "TLS_CHACHA20", "ECDHE-")))
        assert link.compression() is None


def test_old_versions_are_refused(server: Server) -> None:
    """TLS 1.1 gets an alert, and is counted."""
    before = server.metrics()["fastpush_tls_handshake_errors_total"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", server.port)) as link,
        pytest.raises(ssl.SSLError, match=r"(?i)alert protocol version"),
    ):
        context.wrap_socket(link)
    assert server.metrics()["fastpush_tls_handshake_errors_total"] == before + 1


def test_plain_http_is_refused_without_harm(server: Server) -> None:
    """Plain HTTP and noise on the TLS port end at once, are counted, write no line but at debug level; others go on."""
    before = server.metrics()["fastpush_tls_handshake_errors_total"]
    with RawClient(server, "/ws", token="neighbour", event="e") as neighbour:
        for data in (request("GET", "/"), upgrade("/ws"), b"\x00" * 300, b"SSH-2.0-x\r\n"):
            with Wire(server.port) as wire:
                assert wire.send(data).is_ended()
        socket.create_connection(("127.0.0.1", server.port)).close()
        eventually(lambda: server.metrics()["fastpush_tls_handshake_errors_total"] == before + 5)
        assert server.push("neighbour", "e", "still here")["sent"] == 1
        assert neighbour.read_text() == "still here"
    assert {line["level"] for line in server.events("TLS failed")} == {"debug"}
    assert not [line for line in server.events() if line["level"] in {"warning", "error"}]
    assert (server.folder / "stderr.log").read_text() == ""


def test_a_silent_client_is_given_up(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Who connects and says nothing is closed after head_seconds."""
    server = tls_server(serve, make_certificate(tmp_path / "c.pem"), server={"head_seconds": 1})
    with Wire(server.port) as wire:
        assert wire.is_ended()
    assert server.metrics()["fastpush_tls_handshake_errors_total"] == 1


def test_only_pages_by_https_are_the_same_origin(server: Server) -> None:
    """A page that was fetched in plain text, which anybody on the way may have changed, is another origin."""
    host = f"127.0.0.1:{server.port}"
    for origin, status in ((f"https://{host}", 101), (f"http://{host}", 403), ("https://evil.example", 403)):
        with Wire(server) as wire:
            head = upgrade("/ws?token=jack&event=e", f"Origin: {origin}", host=host)
            assert wire.send(head).until(b"\r\n").startswith(b"HTTP/1.1 %d " % status), origin


def test_the_api_address_may_stay_plain(serve: Callable[..., Server], tmp_path: Path) -> None:
    """With [tls] api = false pushes are plain HTTP on [api] listen, while clients speak TLS."""
    certificate = make_certificate(tmp_path / "c.pem")
    server = serve(
        workers=1,
        tls=trusting(certificate),
        sections={"tls": {"certificate": str(certificate), "api": False}, "api": {"listen": "127.0.0.1:0"}},
    )
    server.port, of_api = [int(event["address"].rpartition(":")[2]) for event in server.events("listening")]
    with RawClient(server, "/ws", token="jack", event="e") as client, Wire(of_api) as wire:
        body = json.dumps({"userId": "jack", "event": "e", "message": "in plain text"}).encode()
        assert wire.send(request("POST", "/push", body=body)).reply().status == 200
        assert client.read_text() == "in plain text"


# -- bounds, sizes and ends ------------------------------------------------------------


def test_a_slow_reader_is_bounded_and_closed(server: Server) -> None:
    """Who reads nothing is closed with 1013 at the queue's bound, as in plain text, and reads all that was taken."""
    with RawClient(server, "/ws", receive_bytes=8192, token="slow", event="e") as client:
        taken = 0
        while server.push("slow", "e", f"{taken}:" + "x" * 65536)["sent"]:
            taken += 1
            assert server.metrics()["fastpush_send_queue_bytes"] <= 1 << 20
        assert taken > 10
        number = 0
        while (frame := client.read()).opcode == TEXT:
            assert frame.payload.startswith(b"%d:" % number)
            number += 1
        assert frame == Frame(CLOSE, close_payload(1013, b"too slow"))
        client.send(build(CLOSE, close_payload(1013)))
        client.read_end()
    eventually(lambda: server.metrics()["fastpush_send_queue_bytes"] == 0)


def test_a_late_reader_misses_nothing(server: Server) -> None:
    """Messages that had to wait, some of them longer than a TLS record, arrive whole and in order."""
    sizes = [1, 100, 16384, 50000, 16383, 200_000, 2]
    with RawClient(server, "/ws", receive_bytes=8192, token="late", event="e") as client:
        for number, size in enumerate(sizes):
            assert server.push("late", "e", str(number) * size)["sent"] == 1
        for number, size in enumerate(sizes):
            assert client.read_text() == str(number) * size
        client.is_alive()


@pytest.mark.parametrize("size", [0, 125, 16384, 65535])
def test_messages_of_clients_arrive_whole(server: Server, size: int) -> None:
    """Messages and pings behind each other in one TLS record, or spread over several, are all answered in order."""
    with RawClient(server) as client:
        text = os.urandom(size // 2).hex().encode()
        client.send(build(TEXT, text), build(PING, b"p"), build(TEXT, text))
        for _ in range(2):
            frame = client.read()
            while frame.opcode != TEXT:
                frame = client.read()
            assert frame.payload == text


@pytest.mark.parametrize("code", [1000, 1001, 4000])
def test_the_close_handshake(server: Server, code: int) -> None:
    """A client's close frame is answered with its code; then TLS and TCP are ended properly."""
    with RawClient(server) as client:
        client.send(build(CLOSE, close_payload(code)))
        assert client.read_close() == (code, "")
        client.read_end()


def test_a_violation_is_told(server: Server) -> None:
    """Who breaks a rule reads why, in spite of what it sends behind, and the end of the connection."""
    with RawClient(server) as client:
        client.send(build(15), build(TEXT, b"x" * 100_000))
        assert client.read_close()[0] == 1002
        client.read_end()


def test_a_refused_request_is_told(server: Server) -> None:
    """A refusal is read whole also by who was still sending."""
    with Wire(server) as wire:
        wire.send(upgrade("/ws", Upgrade="nonsense") + b"x" * 50_000)
        assert wire.reply().closes
        assert wire.is_ended()


def test_a_reset_leaves_nothing(server: Server) -> None:
    """A client that vanishes in the middle of a record is unbound and forgotten."""
    before = server.metrics()["fastpush_connections"]
    client = RawClient(server, "/ws", token="gone", event="e")
    tcp = socket.socket(fileno=os.dup(client.socket.fileno()))
    tcp.sendall(b"\x17\x03\x03\x01\x00half a record")
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()
    tcp.close()
    eventually(lambda: server.push("gone", "e", "anybody?")["sent"] == 0)
    eventually(lambda: server.metrics()["fastpush_connections"] == before)


def test_drain(serve: Callable[..., Server], tmp_path: Path) -> None:
    """SIGTERM closes clients with 1012, and what was pushed before it is read first; who never shook hands is left."""
    server = tls_server(serve, make_certificate(tmp_path / "c.pem"))
    with RawClient(server, "/ws", token="jack", event="e") as client, Wire(server.port):
        assert server.push("jack", "e", "before")["sent"] == 1
        server.signal(signal.SIGTERM)
        assert client.read_text() == "before"
        assert client.read_close()[0] == 1012
        client.send(build(CLOSE, close_payload(1012)))
        client.read_end()
        assert server.process.wait(SECONDS) == 0
    assert server.stop() == 0


# -- another certificate ---------------------------------------------------------------


def shown(server: Server, context: ssl.SSLContext) -> bytes | None:
    """Return the certificate that a new client is shown."""
    with context.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="localhost") as link:
        return link.getpeercert(binary_form=True)


def test_a_reload_takes_another_certificate(serve: Callable[..., Server], tmp_path: Path) -> None:
    """After SIGHUP new clients see what stands in the files, ECDSA instead of RSA; who is connected notices nothing.

    The figures tell of the new one's end, for the alert that comes before it.
    """
    expiry = "fastpush_tls_certificate_expiry_timestamp_seconds"
    path = make_certificate(tmp_path / "certificate.pem", "rsa")
    server = tls_server(serve, path)
    with RawClient(server, "/ws", token="jack", event="e") as early:
        before, expires_at = shown(server, trusting(path)), server.metrics()[expiry]
        make_certificate(path, days=60)
        trust = trusting(path)
        server.tls = trust
        server.signal(signal.SIGHUP)
        eventually(lambda: len(server.events("reloaded")) == 2, what="taken over by supervisor and worker")
        assert shown(server, trust) != before
        eventually(lambda: server.metrics()[expiry] > expires_at + 29 * 86400, what="the new date")
        with RawClient(server, "/ws", token="jack", event="e") as late:
            assert server.push("jack", "e", "to both")["sent"] == 2
            assert early.read_text() == late.read_text() == "to both"


def test_a_reload_refuses_a_bad_certificate(serve: Callable[..., Server], tmp_path: Path) -> None:
    """A key that does not belong to the certificate changes nothing, and the log says so."""
    path = make_certificate(tmp_path / "certificate.pem", key_path=tmp_path / "key.pem")
    server = serve(
        workers=1, tls=trusting(path), sections={"tls": {"certificate": str(path), "key": str(tmp_path / "key.pem")}}
    )
    before = shown(server, trusting(path))
    trust = trusting(path)
    make_certificate(path, key_path=tmp_path / "another.pem")
    server.signal(signal.SIGHUP)
    reason = "[tls] key: %s: the private key does not belong to the certificate" % (tmp_path / "key.pem")
    eventually(lambda: reason in server.log_text())
    assert shown(server, trust) == before
    assert server.push("nobody", "e", "m")["status"] == 200


# -- the commands ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose certificate has a public name, which is not how commands on its machine reach it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    certificate = make_certificate(folder / "certificate.pem", names=("push.example",))
    context = trusting(certificate)
    context.check_hostname = False
    sections = {"tls": {"certificate": str(certificate)}}
    running = Server(folder, workers=1, tls=context, sections=sections)
    running.write_config(1, sections)  # with the port that it has got
    yield running
    running.stop()


def outcome(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = run(*FASTPUSH, *arguments, environ=environ)
    return result.returncode, result.stdout, result.stderr


def test_commands_trust_their_own_configuration(elsewhere: Server) -> None:
    """push, drop and listen find the server by https and wss, and trust the configuration's certificate on loopback."""
    configured = ("--config", str(elsewhere.config_path))
    with Program(*FASTPUSH, "listen", "--token", "ann", "--event", "e", *configured) as listener:
        assert listener.line() == "registered for e"
        assert outcome("push", "ann", "e", "by command", *configured) == (0, "sent to 1 connection\n", "")
        assert listener.line() == "by command"
        assert outcome("drop", "ann", *configured) == (0, "closed 1 connection\n", "")
        assert listener.wait() == 1


def test_a_url_is_verified_as_everywhere(elsewhere: Server, server: Server) -> None:
    """With --url the certificates of the system decide, and the name counts."""
    code, _, error = outcome("push", "jack", "e", "m", "--url", server.url)
    assert (code, "its certificate is not trusted: self-signed certificate" in error) == (1, True), error
    system = {"SSL_CERT_FILE": str(server.folder / "certificate.pem")}
    assert outcome("push", "jack", "e", "m", "--url", server.url, environ=system) == (0, "sent to 0 connections\n", "")
    system = {"SSL_CERT_FILE": str(elsewhere.folder / "certificate.pem")}
    code, _, error = outcome("push", "jack", "e", "m", "--url", elsewhere.url, environ=system)
    assert (code, "IP address mismatch" in error) == (1, True), error
