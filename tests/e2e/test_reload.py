"""SIGHUP on a running server: what may change live does, everything else stays and is named."""

import json
import signal
from pathlib import Path

from websockets.sync.client import connect

from tests.server import Server, eventually

OLD_KEY, NEW_KEY = "old-key-0123456789", "new-key-0123456789"


def _sections(folder: Path, key: str) -> dict[str, dict[str, object]]:
    return {
        "auth": {"mode": "static", "tokens_file": str(folder / "tokens.toml")},
        "push": {"auth": "keys", "keys": [key]},
    }


def _reloaded(server: Server, count: int) -> bool:
    """Whether the supervisor and both workers have taken over `count` reloads."""
    return len(server.events("reloaded")) >= 3 * count


def test_keys_and_tokens_change_without_closing_a_connection(serve, tmp_path: Path) -> None:
    """SIGHUP takes over new push keys and tokens, the old ones are refused, and connected clients stay."""
    (tmp_path / "tokens.toml").write_text('aaa = "jack"\n')
    server: Server = serve(workers=2, sections=_sections(tmp_path, OLD_KEY))
    with connect(server.ws_url("token=aaa&event=e")) as old:
        assert server.push("jack", "e", "one", **{"X-API-Key": OLD_KEY}) == {"status": 200, "sent": 1}
        (tmp_path / "tokens.toml").write_text('bbb = "jill"\n')
        server.write_config(2, _sections(tmp_path, NEW_KEY))
        server.signal(signal.SIGHUP)
        eventually(lambda: _reloaded(server, 1), what="reloaded everywhere")
        assert server.push("jack", "e", "two", **{"X-API-Key": OLD_KEY})["status"] == 401
        assert server.push("jack", "e", "three", **{"X-API-Key": NEW_KEY}) == {"status": 200, "sent": 1}
        assert [old.recv(timeout=20), old.recv(timeout=20)] == ["one", "three"]
        with connect(server.ws_url("token=bbb&event=e")) as new:
            assert server.push("jill", "e", "four", **{"X-API-Key": NEW_KEY}) == {"status": 200, "sent": 1}
            assert new.recv(timeout=20) == "four"
    assert OLD_KEY not in server.log_text() and NEW_KEY not in server.log_text()


def test_log_level_changes_and_what_needs_a_restart_is_named(serve) -> None:
    """SIGHUP takes over the log level; a changed setting that is not live is named in a warning and not taken."""
    server: Server = serve(workers=1)
    server.write_config(1, {"log": {"level": "warning"}, "bus": {"confirm_ms": 700}})
    server.signal(signal.SIGHUP)
    warning = eventually(lambda: server.events("restart needed"), what="warning")[0]
    assert "bus.confirm_ms" in warning["changed"]
    accepted = len(server.events("accepted"))
    assert server.request("GET", "/health")[0] == 200
    assert len(server.events("accepted")) == accepted, "debug lines are still written"


def test_a_bad_configuration_changes_nothing(serve) -> None:
    """A configuration with an error is refused as a whole with file and line in the log, and the server goes on."""
    server: Server = serve(workers=1)
    server.write_config(1, {"limits": {"registration": 7}})
    server.signal(signal.SIGHUP)
    line = eventually(lambda: server.events("not reloaded"), what="refusal")[0]
    assert "registrations" in line["reason"] and str(server.config_path) in line["reason"]
    assert server.push("nobody", "e", "x") == {"status": 200, "sent": 0}


def test_the_log_file_is_reopened(serve) -> None:
    """After logrotate has moved the file, SIGHUP makes supervisor, broker and workers write to a new one."""
    server: Server = serve(workers=2)
    moved = server.log_path.with_suffix(".1")
    server.log_path.rename(moved)
    server.signal(signal.SIGHUP)
    server._seen = 0
    eventually(lambda: server.log_path.exists() and _reloaded(server, 1), what="new log file")
    before = moved.stat().st_size
    assert server.request("GET", "/health")[0] == 200
    eventually(lambda: server.events("accepted"), what="line in the new file")
    assert moved.stat().st_size == before
    assert all(json.loads(line) for line in moved.read_text().splitlines())


def test_the_log_file_is_reopened_beside_a_bad_configuration(serve) -> None:
    """A rotated log goes on in a new file although the configuration on disk is wrong; nothing else changes."""
    server: Server = serve(workers=2)
    server.config_path.write_text("[server\n")
    server.log_path.rename(server.log_path.with_suffix(".1"))
    server.signal(signal.SIGHUP)
    server._seen = 0
    eventually(lambda: server.events("not reloaded"), what="refusal in the new file")

    def is_heard() -> bool:
        assert server.request("GET", "/health")[0] == 200
        return bool(server.events("accepted"))

    eventually(is_heard, what="a worker's line in the new file")


def test_a_log_folder_that_is_gone_costs_no_line(serve) -> None:
    """Where the log file cannot be opened anew, every process says so in the old one and goes on writing there."""
    server: Server = serve(workers=1)
    folder = server.log_path.parent
    moved = folder.with_name("moved")
    kept = server.log_path.open()
    folder.rename(moved)
    try:
        server.signal(signal.SIGHUP)

        def complaints() -> set[str]:
            kept.seek(0)
            lines = [json.loads(line) for line in kept if line.endswith("}\n")]
            return {line["process"] for line in lines if line["event"] == "log file not reopened"}

        eventually(lambda: {"supervisor", "broker"} < complaints() and len(complaints()) == 3, what="three complaints")
    finally:
        moved.rename(folder)
        kept.close()
    assert server.request("GET", "/health")[0] == 200
