"""docs/channels.md is enough: its configuration, snippet, call and handler run as they stand."""

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpush.protocol.client import DisconnectCode, ErrorCode, UnsubscribeCode, reconnects
from tests.programs import CLIENTS, curl
from tests.server import Server, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "channels.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_snippet_receives_what_curl_publishes(serve: Callable[..., Server], tmp_path: Path) -> None:
    """The page's client, on Node, prints what the page's curl line publishes in the page's namespace."""
    server = serve(workers=2, sections=tomllib.loads(blocks("toml")[0]))
    (snippet,) = blocks("js")
    program = CLIENTS / "snippet_of_channels.mjs"
    socket = 'import WebSocket from "ws";\nglobalThis.WebSocket = WebSocket;\n'  # browsers have one, and newer Nodes
    program.write_text(socket + snippet.replace(":8080", f":{server.port}"))
    with subprocess.Popen(["node", program], stdout=subprocess.PIPE, text=True) as node:
        try:
            words = shlex.split(blocks("sh")[0].replace(":8080", f":{server.port}"))
            eventually(lambda: json.loads(curl(*words[1:]))["result"]["sent"] == 1, 20, "the snippet is subscribed")
            assert node.stdout is not None
            assert node.stdout.readline() == "{ text: 'hello' }\n"
        finally:
            node.kill()
            program.unlink()


def test_the_handler(serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's handler answers the call that the page makes, and refuses others with its own error."""
    monkeypatch.chdir(tmp_path)
    (handler,) = blocks("python")
    (tmp_path / "calls.py").write_text(handler)
    server = serve(workers=2, sections=tomllib.loads(blocks("toml")[1]))
    url = f"{server.url}/api/rpc"
    called = curl("--json", '{"method":"sum","params":{"numbers":[1,2]}}', url)
    assert json.loads(called) == {"result": {"data": {"sum": 3}}}
    refused = curl("--json", '{"method":"other","params":{}}', url)
    assert json.loads(refused) == {"error": {"code": 404, "message": "no method other"}}


def codes(heading: str) -> dict[int, str]:
    """The rows of the first table behind a line, by code: what clients do."""
    table = PAGE.partition(heading)[2].partition("\n\n|")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {int(row[0]): row[2] for row in rows if row[0].isdecimal()}


def test_the_tables_of_codes() -> None:
    """The page's codes exist, and SDKs come back after those of which it says so."""
    assert set(codes("Errors, in replies")) <= set(map(int, ErrorCode))
    assert set(codes("Ends of subscriptions")) == set(map(int, UnsubscribeCode))
    ends = codes("Ends of connections")
    assert {code for code in ends if code >= 3000} <= set(map(int, DisconnectCode))
    for code, does in ends.items():
        assert does.startswith("comes back") == reconnects(code), code
