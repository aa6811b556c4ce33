"""Starts that cannot work end at once with a plain message and the right exit code, and leave nothing behind."""

import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.server import SCALE, Server, toml


def _serve(
    folder: Path, sections: dict[str, dict[str, object]], before: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Run `fastpush serve` until it ends by itself; its exit code and standard error."""
    (folder / "config.toml").write_text(toml(sections))
    ended = subprocess.run(
        [sys.executable, "-m", "fastpush", "serve", "--config", str(folder / "config.toml")],
        capture_output=True, text=True, timeout=20 * SCALE, preexec_fn=before, check=False,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


def test_second_server_on_the_same_port(serve, tmp_path: Path) -> None:
    """A second fastpush on the same port is refused, although SO_REUSEPORT would let it in; the first goes on."""
    first: Server = serve(workers=1)
    sections = {"server": {"listen": f"127.0.0.1:{first.port}", "runtime_directory": str(tmp_path / "other")}}
    code, text = _serve(tmp_path, sections)
    assert code == 1 and str(first.port) in text and "in use" in text
    assert first.push("nobody", "e", "x")["status"] == 200


def test_second_server_in_the_same_runtime_directory(serve, tmp_path: Path) -> None:
    """A second fastpush with the same runtime directory is refused and told the first one's process id."""
    first: Server = serve(workers=1)
    code, text = _serve(
        tmp_path, {"server": {"listen": "127.0.0.1:0", "runtime_directory": str(first.runtime_directory)}}
    )
    assert code == 1 and str(first.process.pid) in text


def test_port_of_another_program(tmp_path: Path) -> None:
    """A port that another program listens on is named, and what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, text = _serve(
            tmp_path, {"server": {"listen": f"127.0.0.1:{port}", "runtime_directory": str(tmp_path / "run")}}
        )
    assert code == 1 and f"127.0.0.1:{port}" in text and "in use" in text
    assert not (tmp_path / "run").exists()


def test_runtime_directory_that_cannot_be_used(tmp_path: Path) -> None:
    """A runtime directory that is a file, or open to others, is refused with the setting to change."""
    (tmp_path / "file").write_text("")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    for name in ("file", "shared"):
        code, text = _serve(tmp_path, {"server": {"listen": "127.0.0.1:0", "runtime_directory": str(tmp_path / name)}})
        assert code == 1 and str(tmp_path / name) in text and "runtime_directory" in text


def test_open_server_on_a_public_address(tmp_path: Path) -> None:
    """Without authentication only loopback addresses are served: exit code 2, and the keys to set are named."""
    code, text = _serve(tmp_path, {"server": {"listen": "0.0.0.0:0", "runtime_directory": str(tmp_path / "run")}})
    assert code == 2 and "[auth] mode" in text and "[push] auth" in text


def test_unreadable_configuration(tmp_path: Path) -> None:
    """A configuration file that does not exist or is no TOML is named: exit code 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "fastpush", "serve", "--config", str(tmp_path / "none.toml")],
        capture_output=True, text=True, timeout=20 * SCALE, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and "none.toml" in ended.stderr and "Traceback" not in ended.stderr


def test_too_few_descriptors(tmp_path: Path) -> None:
    """A descriptor limit too low to serve ends the start with the limit and how to raise it, or warns of it."""

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    code, text = _serve(
        tmp_path, {"server": {"listen": "127.0.0.1:0", "workers": 8, "runtime_directory": str(tmp_path / "run")}}, lower
    )
    assert code == 1 and "descriptors" in text and "LimitNOFILE" in text
