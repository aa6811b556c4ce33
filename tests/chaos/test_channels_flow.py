"""Long answers go one after the other, as a client takes them: it is not slow for that, and nothing grows."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.server import SCALE, Server

SIZE, KEPT, CHANNELS = 20_000, 40, 6
GROWTH_BYTES = 50 << 20  # of a worker; the answers of this flood have 160 MB
COMMANDS = 200


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    """One worker; each channel keeps nearly as much as a send queue may have."""
    sections = {
        "client": {"anonymous": "loopback"},
        "channels.news": {"subscribe": "everybody", "history_messages": KEPT, "recovery": True},
        "log": {"level": "info"},
    }
    return serve(workers=1, sections=sections)


@pytest.fixture
def client(server: Server) -> Iterator[ClientConnection]:
    """A connected client, which takes no message before it is asked for."""
    with connect(server.ws_url(path="/connection/websocket"), max_size=None, max_queue=1) as client:
        client.send('{"id":1,"connect":{}}')
        assert "connect" in json.loads(client.recv(20 * SCALE))
        yield client


def fill(server: Server, channel: str) -> dict[str, Any]:
    """Publish what the channel keeps; return its position."""
    for number in range(KEPT):
        body = {"channel": channel, "data": {"n": number, "text": "." * SIZE}}
        status, _, reply = server.request("POST", "/api/publish", body)
        assert status == 200, reply
    return json.loads(reply)["result"]


def answers(client: ClientConnection) -> Iterator[dict[str, Any]]:
    """Yield replies for as long as they are asked for."""
    while True:
        for line in client.recv(20 * SCALE).splitlines():
            yield json.loads(line)


def test_recovery_of_more_than_a_send_queue_has(server: Server, client: ClientConnection) -> None:
    """A client that has missed much in several channels, and subscribes to all of them at once, recovers all of it."""
    epochs = [fill(server, f"news:{number}")["epoch"] for number in range(CHANNELS)]
    for number, epoch in enumerate(epochs):
        asked = {"channel": f"news:{number}", "recover": True, "offset": 0, "epoch": epoch}
        client.send(json.dumps({"id": number + 2, "subscribe": asked}))
    replies = answers(client)
    for number in range(CHANNELS):
        reply = next(replies)
        assert reply["id"] == number + 2 and reply["subscribe"]["recovered"], reply["id"]
        assert [each["data"]["n"] for each in reply["subscribe"]["publications"]] == list(range(KEPT))


def test_a_flood_of_questions_with_long_answers(server: Server, client: ClientConnection) -> None:
    """One small frame that asks for 160 MB costs the worker a few: it asks for the next when an answer is taken."""
    fill(server, "news:0")
    client.send('{"id":2,"subscribe":{"channel":"news:0"}}')
    replies = answers(client)
    assert "subscribe" in next(replies)
    worker = server.processes("worker")[0]["pid"]
    before = peak_bytes(worker)
    history = {"channel": "news:0", "limit": -1}
    client.send("\n".join(json.dumps({"id": number, "history": history}) for number in range(3, 3 + COMMANDS)))
    for number in range(3, 3 + COMMANDS):
        reply = next(replies)
        assert reply["id"] == number and len(reply["history"]["publications"]) == KEPT
    assert peak_bytes(worker) < before + GROWTH_BYTES


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
