"""docs/api.md says what is true: its calls, in order, have the replies that stand below them."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.sync.client import connect

from fastpush.channels.api import ServerApi
from fastpush.protocol import api
from tests.programs import curl
from tests.server import SCALE, Server

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")
ID = re.compile(r"[0-9a-f]{20}(?=[0-9a-f]{12})")
# What is another one each time: epochs, addresses, and of workers their ids, numbers and times.
CHANGING = re.compile(
    r'("epoch":"|"peer":"127.0.0.1:|"uid":"|"name":"worker-|"worker":|"uptime":|"version":")[0-9a-f.]+'
)


def blocks(language: str, page: str = PAGE) -> list[str]:
    """Every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def calls() -> list[tuple[str, str]]:
    """Each curl command with the reply that stands below it."""
    found = []
    for block in blocks("sh"):
        command, _, reply = block.partition("\n# ")
        found.append((command, reply.strip().replace("\n# ", "\n")))
    return found


def masked(text: str) -> str:
    """A reply without what is another one each time."""
    return CHANGING.sub(r"\1…", ID.sub("", text))


def test_every_call(serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is answered as printed, on a server with the page's configuration and the handler of channels.md."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.py").write_text(blocks("python", (DOCS / "channels.md").read_text(encoding="utf-8"))[0])
    server = serve(workers=2, sections=tomllib.loads(blocks("toml")[0]))
    with connect(server.ws_url(path="/connection/websocket"), proxy=None) as jack:
        jack.send('{"id":1,"connect":{"token":"jack"}}\n{"id":2,"subscribe":{"channel":"chat:42"}}')
        lines = (jack.recv(20 * SCALE) + "\n" + jack.recv(20 * SCALE)).splitlines()
        client = json.loads(lines[0])["connect"]["client"]
        epoch = json.loads(lines[1])["subscribe"]["epoch"]
        for command, reply in calls():
            asked = re.sub('"exclude":"[0-9a-f]+"', f'"exclude":"{client}"', command)
            asked = re.sub('"epoch":"[0-9a-f]+"', f'"epoch":"{epoch}"', asked)
            answered = curl(*shlex.split(asked.replace(":8080", f":{server.port}"))[1:])
            assert masked(answered) == masked(reply), command


def test_every_method_is_shown() -> None:
    """The page calls each method, and says of each field that is not available that it is not."""
    shown = {match[1] for command, _ in calls() if (match := re.search(r"/api/(\w+)$", command))}
    assert shown == {*ServerApi(cast(Any, None), lambda: True).methods, "batch"}
    table = PAGE.partition("## What differs")[2]
    for kind in (api.Publish, api.Subscribe, api.Unsubscribe, api.Disconnect, api.Refresh, api.Connections):
        for name in kind.unavailable:
            assert name.startswith("b64") or f"`{name}`" in table, (kind, name)
