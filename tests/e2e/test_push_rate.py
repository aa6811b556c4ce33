"""`[limits] pushes_per_second` on a real server: back-ends that push too fast are told so."""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable

from tests.server import Sections, Server, eventually
from tests.wire import Reply, Wire, push, request

PUSHES = 40
LIMITED: Sections = {"limits": {"pushes_per_second": 2}, "channels.room": {}}


def replies(server: Server, *requests: bytes) -> tuple[list[Reply], float]:
    """Ask all of it at once on one connection; return the replies, and the seconds until the last one."""
    with Wire(server) as wire:
        began = time.monotonic()
        wire.send(b"".join(requests))
        return [wire.reply() for _ in requests], time.monotonic() - began


def test_pushes_over_the_rate(serve: Callable[..., Server]) -> None:
    """Of pushes, pushes to all, repeated ones and large ones so many a second are taken, the others are 429."""
    server = serve(workers=1, sections=LIMITED)
    to_all = request("POST", "/push/all", body=json.dumps({"event": "e", "message": "m"}).encode())
    for asked in (
        push("jack", "e", "m"),
        push("jack", "e", "m", "Idempotency-Key: one and the same"),
        push("jack", "e", "m" * 70_000),
        to_all,
    ):
        answered, seconds = replies(server, *[asked] * PUSHES)
        statuses = Counter(reply.status for reply in answered)
        assert set(statuses) == {200, 429} or statuses == {429: PUSHES}
        assert statuses[200] <= 2 + 2 * (seconds + 1)
        refused = next(reply for reply in answered if reply.status == 429)
        assert refused.header("retry-after") == "1"
        assert "[limits] pushes_per_second" in str(refused.header("x-fastpush-error"))
    of_pushes = 'fastpush_pushes_total{outcome="refused"'
    assert any(value for name, value in server.metrics().items() if name.startswith(of_pushes))


def test_a_refusal_in_json(serve: Callable[..., Server]) -> None:
    """Programs are told the code too_many_pushes; of the server API it is error 111, or 429 where they ask for that."""
    server = serve(workers=1, sections=LIMITED)
    answered, _ = replies(server, *[push("jack", "e", "m", "Accept: application/json")] * PUSHES)
    refused = next(reply for reply in answered if reply.status == 429)
    assert refused.json()["error"]["code"] == "too_many_pushes"
    body = json.dumps({"channel": "room:1", "data": 1}).encode()
    answered, _ = replies(server, *[request("POST", "/api/publish", body=body)] * PUSHES)
    assert {reply.status for reply in answered} == {200}
    codes = {reply.json().get("error", {}).get("code", 0) for reply in answered}
    assert 111 in codes <= {0, 111}
    asked = request("POST", "/api/publish", "X-Centrifugo-Error-Mode: transport", body=body)
    answered, _ = replies(server, *[asked] * PUSHES)
    assert 429 in {reply.status for reply in answered}


def test_the_rate_changes_live(serve: Callable[..., Server]) -> None:
    """A reload sets a limit, and takes it away again."""
    server = serve(workers=1)

    def over_the_rate() -> bool:
        answered, _ = replies(server, *[push("jack", "e", "m")] * PUSHES)
        return 429 in {reply.status for reply in answered}

    assert not over_the_rate()
    server.write_config(1, LIMITED)
    server.signal(signal.SIGHUP)
    eventually(over_the_rate, what="a limit")
    server.write_config(1, {})
    server.signal(signal.SIGHUP)
    eventually(lambda: not over_the_rate(), what="no limit")
