"""When systemd is told that the service lives: a silent worker never ends it, a broker that stays silent does."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import Scene

from tests.notify import Systemd

FEED_SECONDS = 0.2


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with Systemd(tmp_path, watchdog_seconds=3 * FEED_SECONDS) as double:
        yield double


@pytest.fixture
def scene(tmp_path: Path, systemd: Systemd) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def feeds(systemd: Systemd) -> int:
    return len(systemd.of("WATCHDOG"))


def the_broker(scene: Scene) -> dict[str, Any]:
    return scene.wait(lambda: scene.processes("broker"))[0]


def test_a_silent_worker_does_not_end_the_service(scene: Scene, systemd: Systemd) -> None:
    """While a stopped worker is silent, and after its replacement, WATCHDOG=1 goes on."""
    scene.set("server", hang_seconds=1)
    scene.start_ready(**systemd.environ())
    worker = scene.wait(lambda: scene.of_slot(0))
    os.kill(worker["pid"], signal.SIGSTOP)
    before = feeds(systemd)
    scene.wait(lambda: scene.logged("process hangs", number=worker["number"]))
    assert feeds(systemd) > before
    scene.wait(lambda: (scene.of_slot(0) or worker)["number"] != worker["number"])
    before = feeds(systemd)
    scene.wait(lambda: feeds(systemd) > before)
    assert not scene.logged("watchdog not fed")


def test_a_broker_that_is_replaced_does_not_end_the_service(scene: Scene, systemd: Systemd) -> None:
    """A stopped broker is found out and replaced within the time for which WATCHDOG=1 goes on."""
    scene.set("server", hang_seconds=1)
    scene.start_ready(**systemd.environ())
    old = the_broker(scene)
    os.kill(old["pid"], signal.SIGSTOP)
    scene.wait(lambda: [p for p in scene.processes("broker") if p["number"] != old["number"]])
    before = feeds(systemd)
    scene.wait(lambda: feeds(systemd) > before + 2)
    assert not scene.logged("watchdog not fed")


def test_a_broker_that_cannot_be_brought_back_ends_the_service(scene: Scene, systemd: Systemd) -> None:
    """When no successor gets ready, WATCHDOG=1 stops, with an error in the log, and comes back with a broker."""
    scene.set("server", hang_seconds=2)
    scene.start_ready(**systemd.environ())
    old = the_broker(scene)
    scene.tell("hold--1")
    os.kill(old["pid"], signal.SIGKILL)
    error = scene.wait(lambda: scene.logged("watchdog not fed"))[0]
    assert error["seconds"] >= 2 and "systemd is going to restart the service" in error["advice"]
    before, beats = feeds(systemd), scene.beats(2)
    scene.wait(lambda: scene.beats(2) > beats + 2)  # a worker beats twice a second
    assert feeds(systemd) == before
    (scene.folder / "hold--1").unlink()
    scene.wait(lambda: feeds(systemd) > before)


def test_a_supervisor_that_stands_still_is_silent(scene: Scene, systemd: Systemd) -> None:
    """A stopped supervisor feeds nothing, however well its children do."""
    scene.start_ready(**systemd.environ())
    scene.wait(lambda: feeds(systemd) > 1)
    assert scene.program is not None
    os.kill(scene.program.pid, signal.SIGSTOP)
    scene.wait(lambda: "State:\tT" in Path(f"/proc/{scene.program.pid}/status").read_text())
    before, beats = feeds(systemd), scene.beats(2)
    scene.wait(lambda: scene.beats(2) > beats)
    assert feeds(systemd) == before
    scene.signal(signal.SIGCONT)
    scene.wait(lambda: feeds(systemd) > before)


def test_a_drain_is_watched_to_its_end(scene: Scene, systemd: Systemd) -> None:
    """WATCHDOG=1 goes on while children that do not end use up the time of the drain."""
    scene.tell("stubborn")
    scene.set("server", drain_seconds=1)
    scene.start_ready(**systemd.environ())
    scene.signal(signal.SIGTERM)
    systemd.wait_for("STOPPING", "1")
    before = feeds(systemd)
    scene.wait(lambda: feeds(systemd) > before)
    assert scene.wait_exit() == 0
