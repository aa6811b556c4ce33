"""A server under load whose configuration is changed while it runs."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.load.driver import CLIENTS, Load, Summary, check_untouched
from tests.programs import FASTPUSH, run
from tests.raw import RawClient
from tests.server import ECHO, Sections, Server, eventually
from tests.wire import Reply, Wire, push, upgrade

EACH = 3  # connections of a user of the load
KEY = "key-of-the-load-0123456789"
PROBES = 6  # connections of a check: the kernel spreads them over the workers by chance
PROBE = "token-probe"  # of user "probe"


class Live:
    """Two workers, static tokens, one push key, and a load that must not notice anything.

    Every test changes settings from the same beginning, `base`, and they are put back after it.
    """

    def __init__(self, folder: Path, **base: Any) -> None:
        self.folder = folder
        tokens = [f"token-u{number}" for number in range(CLIENTS // EACH)]
        (folder / "tokens").write_text("\n".join(tokens))
        self.write_tokens("tokens.toml", {token: token.removeprefix("token-") for token in [*tokens, PROBE]})
        self.base: Sections = {
            "auth": {"mode": "static", "tokens_file": "tokens.toml"},
            "push": {"auth": "keys", "keys": [KEY]},
            "limits": {"register_timeout_seconds": 60},
            "log": {"level": "info"},
            **ECHO,
        } | base
        self.server = Server(folder, workers=2, sections=self.base)
        # Nothing is pushed to everybody: tests have connections of their own, which come and go.
        self.load = Load(self.server, tokens=folder / "tokens", key=KEY, each=EACH, fan_out=0, tls="tls" in base)

    def write_tokens(self, name: str, tokens: dict[str, str]) -> None:
        (self.folder / name).write_text("".join(f'"{token}" = "{user}"\n' for token, user in tokens.items()))

    def __enter__(self) -> Self:
        self.load.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.load.__exit__(None, None, None)
        self.server.stop()

    # -- changing ------------------------------------------------------------------

    def write(self, more: str = "", **sections: Any) -> None:
        """Write the base configuration with `sections` laid over it, and more TOML behind it."""
        names = {**self.base, **sections}
        path, new = self.server.config_path, self.server.config_path.with_suffix(".new")
        self.server.config_path = new
        self.server.write_config(2, {name: _over(self.base.get(name, {}), sections.get(name, {})) for name in names})
        self.server.config_path = path
        new.write_text(new.read_text() + more)
        new.rename(path)  # a reload under way reads the old file or the new one, never half of it

    def reload(self) -> "subprocess.CompletedProcess[str]":
        """Run `fastpush reload`."""
        result = run(*FASTPUSH, "reload", "--config", str(self.server.config_path))
        assert "Traceback" not in result.stdout + result.stderr, result.stderr
        return result

    def change(self, more: str = "", **sections: Any) -> str:
        """Have new settings taken over by every process; return what `fastpush reload` said."""
        self.write(more, **sections)
        with self._taken_over():
            result = self.reload()
            assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    def restore(self) -> None:
        """Have the base settings taken over, by SIGHUP."""
        self.write()
        with self._taken_over():
            self.server.signal(signal.SIGHUP)

    @contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Wait at the end until every process has taken new settings over."""
        before = self._reloads()
        yield
        eventually(
            lambda: all(count > before.get(name, 0) for name, count in self._reloads().items()),
            what="taken over by every process",
        )

    def _reloads(self) -> dict[str, int]:
        """How often each process that serves clients has said that it took new settings over."""
        names = ["supervisor", *(f"worker-{process['number']}" for process in self.server.processes("worker"))]
        events = self.server.events("reloaded")
        return {name: sum(event["process"] == name for event in events) for name in names}

    def settle(self) -> Summary:
        """Let everything that was pushed arrive; the load has noticed nothing so far; go on."""
        summary = self.load.ask("pause")
        check_untouched(summary)
        self.load.ask("go")
        return summary

    # -- probing -------------------------------------------------------------------

    def open(self, path: str = "/ws", **parameters: str) -> RawClient:
        """Open a WebSocket, of the user "probe" unless told otherwise."""
        if path == "/ws" and not parameters:
            parameters = {"token": PROBE, "event": "e"}
        return RawClient(self.server, path, **parameters)

    def status(self, *headers: str, path: str = "/ws", token: str = PROBE) -> int:
        """Ask for a WebSocket and close it; return the status."""
        return self.handshake(*headers, path=path, token=token).status

    def handshake(self, *headers: str, path: str = "/ws", token: str = PROBE) -> Reply:
        """Ask for a WebSocket and close it; return the response."""
        with Wire(self.server) as wire:
            return wire.send(upgrade(f"{path}?token={token}&event=e", *headers)).reply(to_head=True)

    def everywhere(self, probe: Callable[[], Any]) -> set[Any]:
        """Return what a probe finds on connections enough to meet both workers."""
        return {probe() for _ in range(PROBES)}

    def push(self, key: str, user: str = "probe", message: str = "m") -> int:
        """Push over a connection of its own; return the status."""
        with Wire(self.server) as wire:
            return wire.send(push(user, "e", message, f"X-API-Key: {key}")).reply().status


def _over(base: Any, changed: Any) -> Any:
    """Return a section with changed keys; a changed array of tables replaces all of it."""
    if isinstance(changed, list):
        return changed
    return base if isinstance(base, list) and not changed else base | changed
