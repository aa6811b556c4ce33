"""`fastpush check` as a program, beside a server and without one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.programs import FASTPUSH, run
from tests.server import Server

Serve = Callable[..., Server]


def check(config: Path, *arguments: str) -> tuple[int, str, str]:
    result = run(*FASTPUSH, "check", *arguments, "--config", str(config))
    return result.returncode, result.stdout, result.stderr


def findings(config: Path) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(check(config, "--json")[1])["findings"]}


def test_columns_line_up(serve: Serve) -> None:
    """Every line is a severity, a name and a text in their columns, or goes on under the text of the line before."""
    server = serve(start=False, workers=1)
    code, out, error = check(server.config_path)
    assert (code, error) == (0, "")
    for line in out.splitlines():
        assert re.fullmatch(r"(ok     |advice ) [a-z -]{14} \S.*| {23}\S.*", line)


def test_a_check_leaves_no_trace(serve: Serve) -> None:
    """A server starts after a check as if there had been none: port, lock, sockets and log file are untouched."""
    server = serve(start=False, workers=2)
    assert check(server.config_path)[0] == 0
    assert sorted(path.name for path in server.folder.iterdir()) == ["config.toml"]
    server.start()
    assert server.events("ready")


def test_a_running_server_is_left_alone(serve: Serve) -> None:
    """Beside a running server its place is not tried but named; what a restart would change of it is told."""
    server = serve(workers=2)
    server.write_config(2, {})
    found = findings(server.config_path)
    assert found["server"] == {
        "name": "server",
        "severity": "ok",
        "text": f"runs as process {server.process.pid} on 127.0.0.1:{server.port}",
        "advice": "",
    }
    assert not {"address", "runtime dir"} & set(found)
    server.write_config(3, {})
    assert findings(server.config_path)["server"]["advice"].startswith("[server] workers of the configuration differ")
    assert server.push("user", "event", "message")["status"] == 200
    assert server.events("process ended") == []


def test_what_check_finds_serve_meets(serve: Serve) -> None:
    """A configuration with which check ends with 1 or 2 ends serve with the same code."""
    server = serve(start=False, workers=1)
    taken = serve(workers=1)
    for sections, code in (
        ({"server": {"listen": f"127.0.0.1:{taken.port}"}}, 1),
        ({"server": {"runtime_directory": str(server.folder / ("x" * 100))}}, 1),
        ({"log": {"file": str(server.folder / "no" / "folder")}}, 1),
        ({"server": {"listen": "0.0.0.0:0"}}, 2),
        ({"tls": {"certificate": str(server.config_path)}}, 2),
    ):
        server.write_config(1, sections)
        assert check(server.config_path)[0] == code
        assert run(*FASTPUSH, "serve", "--config", str(server.config_path)).returncode == code
