"""Clients that others wrote, against a real server with two workers: websockets, wscat, curl."""

import json
from collections.abc import Callable
from pathlib import Path

from websockets.sync.client import connect

from tests.programs import curl, wscat
from tests.server import Server

Serve = Callable[..., Server]


def push_with_curl(server: Server, user: str, event: str, message: str) -> int:
    body = json.dumps({"userId": user, "event": event, "message": message})
    reply = json.loads(curl("--json", body, f"{server.url}/push"))
    assert list(reply) == ["sent"]
    return reply["sent"]


# -- Programs -----------------------------------------------------------------------


def test_curl_pushes_to_the_websockets_package(server: Server) -> None:
    """S0-06, S0-21, S0-25, S0-29: one `curl --json` reaches a client that registered with its first message."""
    with connect(server.ws_url("confirm=1")) as client:
        client.send(json.dumps({"token": "ann", "event": "news"}))
        assert client.recv(timeout=10) == '{"registered":"news"}'
        assert push_with_curl(server, "ann", "news", "grüße 🎉") == 1
        assert client.recv(timeout=10) == "grüße 🎉"


def test_curl_has_replies_in_two_forms(server: Server) -> None:
    """S0-22, S0-25: `--data` alone gets the plain form, `--json` (it sends Accept: application/json) the JSON form."""
    good, bad = '{"userId": "u", "event": "e", "message": "m"}', '{"userId": 42, "event": "e", "message": "m"}'
    assert curl("--data", good, f"{server.url}/push") == "message sent to 0 clients"
    assert curl("--data", bad, f"{server.url}/push") == "request data illegal"
    assert json.loads(curl("--json", good, f"{server.url}/push")) == {"sent": 0}
    error = {"code": "illegal_request", "message": "userId must be a string, found number 42"}
    assert json.loads(curl("--json", bad, f"{server.url}/push")) == {"error": error}


def test_wscat_registers_by_message_and_shows_pushes(server: Server) -> None:
    """S0-06, S0-07, S0-28: wscat's first message registers, its second one adds an event, other events do not come."""
    registrations = [json.dumps({"token": "wendy", "event": event}) for event in ("topic1", "topic2")]
    with wscat(server.ws_url("confirm=1"), *registrations) as client:
        assert [client.line(), client.line()] == ['{"registered":"topic1"}', '{"registered":"topic2"}']
        assert push_with_curl(server, "wendy", "elsewhere", "not for this one") == 0
        assert push_with_curl(server, "wendy", "topic2", "second") == 1
        assert push_with_curl(server, "wendy", "topic1", "first") == 1
        assert [client.line(), client.line()] == ["second", "first"]


def test_wscat_is_refused_with_a_status(serve: Serve, tmp_path: Path) -> None:
    """A bad token in the URL is told to programs by the status of the handshake: 401."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('"aaa" = "jack"\n')
    server = serve(workers=2, sections={"auth": {"mode": "static", "tokens_file": str(tokens)}})
    with wscat(server.ws_url("token=unknown&event=topic1")) as client:
        assert "401" in client.line_with("error")
