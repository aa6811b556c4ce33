"""The supervisor with real forks, sockets and signals; its children are fakes (supervisor_driver.py)."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import DEADLINE_SECONDS, Scene

from fastpush.control_client import ControlError, ask
from fastpush.supervisor.slots import CRASH_DEATHS
from tests.standstill import Standstill

SLACK_SECONDS = float(os.environ.get("FASTPUSH_TEST_SCALE", "1"))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Return a double of systemd's notification socket, and its name as in $NOTIFY_SOCKET."""
    abstract = f"@fastpush-test-{os.getpid()}-{time.monotonic_ns()}"
    name = str(tmp_path / "notify") if request.param == "path" else abstract
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as double:
        double.bind(name.replace("@", "\0"))
        double.settimeout(DEADLINE_SECONDS)
        yield double, name


def seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    """Return the time between two log lines."""
    return (datetime.fromisoformat(later["time"]) - datetime.fromisoformat(earlier["time"])).total_seconds()


def kill_and_wait(scene: Scene, slot: int) -> int:
    """Kill the ready worker of a slot and wait until its death is noticed; returns its number."""
    process = scene.wait(lambda: scene.of_slot(slot))
    os.kill(process["pid"], signal.SIGKILL)
    scene.wait(lambda: scene.logged("process ended", number=process["number"]))
    return process["number"]


# Start


def test_tells_systemd_ready_after_all_children_and_stopping(scene: Scene, systemd: tuple[socket.socket, str]) -> None:
    """READY=1 comes once every child is ready, STOPPING=1 with SIGTERM, and exit code 0 follows."""
    double, name = systemd
    scene.start(NOTIFY_SOCKET=name)
    assert double.recv(100).splitlines()[0] == b"READY=1"
    assert len(scene.processes("worker")) == 2
    assert len(scene.processes("broker")) == 1
    scene.signal(signal.SIGTERM)
    assert double.recv(100).splitlines()[0] == b"STOPPING=1"
    assert scene.wait_exit() == 0


def test_child_has_only_its_own_sockets(scene: Scene) -> None:
    """A child keeps its channel and its own listeners; nothing of the supervisor and of other children."""
    scene.set("server", workers=3, listen=["127.0.0.1:0", "127.0.0.2:0"])
    scene.start_ready()
    kill_and_wait(scene, 0)
    born = scene.wait(lambda: entries if len(entries := [e for e in scene.journal() if "born" in e]) == 5 else None)
    assert {(e["role"], e["sockets"]) for e in born} == {("broker", 2), ("worker", 3)}


def test_each_worker_slot_accepts_on_the_same_port(scene: Scene) -> None:
    """Port 0 becomes one free port that the kernel shares out over all slots."""
    scene.start_ready()
    scene.wait(lambda: scene.connect()["slot"] == 0)
    scene.wait(lambda: scene.connect()["slot"] == 1)


def test_api_address_has_its_own_listeners(scene: Scene) -> None:
    """With [api] listen every slot has a listener on both addresses."""
    scene.set("api", listen="127.0.0.2:0")
    scene.start_ready()
    assert [line["address"].split(":")[0] for line in scene.logged("listening")] == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize("share", [False, True], ids=["plain", "reuseport"])
def test_port_of_another_program(scene: Scene, *, share: bool) -> None:
    """A port that a foreign program listens on is refused, even if it shares the port; nothing is left."""
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)
        foreign.bind(("127.0.0.1", 0))
        foreign.listen()
        port = foreign.getsockname()[1]
        scene.set("server", listen=f"127.0.0.1:{port}")
        scene.start()
        assert scene.wait_exit() == 1
    assert f"fastpush: 127.0.0.1:{port} is already in use; `ss -ltnp 'sport = :{port}'` shows" in scene.log_text()
    assert scene.is_clean()


def test_second_server_in_the_same_directory(scene: Scene, tmp_path: Path) -> None:
    """A second fastpush of the same runtime directory is refused with the process id of the first, which goes on."""
    scene.start_ready()
    second = Scene(tmp_path / "second")
    second.folder.mkdir()
    second.set("server", runtime_directory=str(scene.runtime), listen=f"127.0.0.1:{scene.port()}")
    second.start()
    assert second.wait_exit() == 1
    assert f"another fastpush server is running (process id {scene.program.pid}," in second.log_text()
    assert scene.ask(command="status")["pid"] == scene.program.pid


def test_second_server_on_the_same_port(scene: Scene, tmp_path: Path) -> None:
    """A second fastpush with a runtime directory of its own cannot join the first one's port."""
    scene.start_ready()
    second = Scene(tmp_path / "second")
    second.folder.mkdir()
    second.set("server", listen=f"127.0.0.1:{scene.port()}")
    second.start()
    assert second.wait_exit() == 1
    assert f"127.0.0.1:{scene.port()} is already in use" in second.log_text()


def test_runtime_directory_that_cannot_be_used(scene: Scene) -> None:
    """A file in place of the runtime directory ends the start with the path and what to do."""
    scene.runtime.write_text("")
    scene.start()
    assert scene.wait_exit() == 1
    assert f"the runtime directory {scene.runtime} exists and is not a directory; remove it" in scene.log_text()


def test_too_few_file_descriptors(scene: Scene) -> None:
    """When not even the listeners fit into the limit, the start ends with the number that is needed."""
    scene.set("server", workers=100)
    scene.write()
    scene.start(FASTPUSH_TEST_DESCRIPTORS="120")
    assert scene.wait_exit() == 1
    assert "100 workers on 1 addresses need" in scene.log_text()
    assert not scene.runtime.exists()


# Death and restart


def test_killed_worker_is_replaced_at_once(scene: Scene, standstill: Standstill) -> None:
    """After kill -9 the slot has a new process within a second, the cause is logged, the broker hears of it."""
    scene.start_ready()
    number = kill_and_wait(scene, 1)
    new = scene.wait(lambda: scene.of_slot(1))
    assert new["number"] == 4
    assert new["restarts"] == 1
    ended = scene.logged("process ended", number=number)[0]
    assert ended["reason"] == "SIGKILL"
    ready = scene.logged("process ready", number=4)[0]
    assert seconds_between(ended, ready) < 1.0 * SLACK_SECONDS + standstill.seconds
    scene.wait(lambda: scene.journal(role="broker", got="Gone", worker=number))


def test_killed_broker_is_replaced_and_knows_the_workers(scene: Scene, standstill: Standstill) -> None:
    """A new broker starts at once, every time, with the numbers of the workers that were ready."""
    scene.start_ready()
    for _ in range(4):
        broker = scene.wait(lambda: scene.processes("broker"))[0]
        os.kill(broker["pid"], signal.SIGKILL)
        ended = scene.wait(lambda n=broker["number"]: scene.logged("process ended", number=n))[0]
        ready = scene.wait(
            lambda n=broker["number"]: [
                line for line in scene.logged("process ready", role="broker") if line["number"] > n
            ]
        )[0]
        new = next(entry for entry in scene.journal(number=ready["number"]) if "born" in entry)
        assert new["workers"] == [2, 3]
        assert seconds_between(ended, ready) < 1.0 * SLACK_SECONDS + standstill.seconds
    assert not scene.logged("process ended", role="worker")


def test_back_off(scene: Scene, standstill: Standstill) -> None:
    """From the second death within 10 s on, a slot waits longer each time before it gets a new process."""
    scene.start_ready()
    deaths = [kill_and_wait(scene, 0) for _ in range(4)]
    scene.wait(lambda: scene.of_slot(0))
    successors = scene.logged("process started", slot=0)[1:]
    waits = [
        seconds_between(scene.logged("process ended", number=old)[0], started)
        for old, started in zip(deaths, successors, strict=True)
    ]
    assert waits[0] < 0.2 * SLACK_SECONDS + standstill.seconds
    assert [wait >= least for wait, least in zip(waits[1:], (0.24, 0.49, 0.99), strict=True)] == [True] * 3


def test_slot_without_process_is_covered(scene: Scene) -> None:
    """Until a slot's new process is ready, another worker accepts from its sockets: no connect waits for it."""
    scene.start_ready()
    other = scene.of_slot(1)
    scene.tell("hold-0")
    kill_and_wait(scene, 0)
    answers = [scene.connect() for _ in range(60)]
    assert {(answer["pid"], answer["slot"]) for answer in answers} == {(other["pid"], 0), (other["pid"], 1)}
    (scene.folder / "hold-0").unlink()
    scene.wait(lambda: scene.journal(got="Uncover", number=other["number"], slot=0))
    scene.wait(lambda: scene.connect()["pid"] == scene.of_slot(0)["pid"])


def test_all_other_workers_cover_a_slot(scene: Scene) -> None:
    """Every other worker covers a slot, so that the death of one of them leaves it served; its successor joins in."""
    scene.set("server", workers=3)
    scene.start_ready()
    scene.tell("hold-0")
    kill_and_wait(scene, 0)
    dying, staying = scene.of_slot(1), scene.of_slot(2)
    scene.wait(lambda: {line["worker"] for line in scene.logged("slot covered", slot=0)} == {2 + 1, 2 + 2})
    kill_and_wait(scene, 1)
    successor = scene.wait(lambda: [p for p in scene.processes() if p["slot"] == 1 and p["pid"] != dying["pid"]])[0]
    scene.wait(lambda: scene.logged("slot covered", slot=0, worker=successor["number"]))
    answers = [scene.connect() for _ in range(60)]
    assert {answer["pid"] for answer in answers if answer["slot"] == 0} <= {staying["pid"], successor["pid"]}
    assert any(answer["slot"] == 0 for answer in answers)


def test_only_worker_restarts_at_once(scene: Scene, standstill: Standstill) -> None:
    """With nobody to cover there is no back-off: every death is followed by an immediate restart."""
    scene.set("server", workers=1)
    scene.start_ready()
    for _ in range(4):
        number = kill_and_wait(scene, 0)
        scene.wait(lambda: scene.of_slot(0))
        started = scene.logged("process started", role="worker")[-1]
        waited = seconds_between(scene.logged("process ended", number=number)[0], started)
        assert waited < 0.2 * SLACK_SECONDS + standstill.seconds


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_crash_loop_ends_the_server(scene: Scene, role: str) -> None:
    """Five deaths before ready end the server: exit code 1, the role, the last cause, where to look, nothing left."""
    scene.tell(f"fail-{role}")
    scene.start()
    assert scene.wait_exit() == 1
    assert f"fastpush: the {role} process died 5 times within 30 seconds before it was ready" in scene.log_text()
    assert "the last time with exit code 3" in scene.log_text()
    assert "`fastpush check`" in scene.log_text()
    assert scene.is_clean()


def test_leaving_worker_is_replaced_before_it_ends(scene: Scene) -> None:
    """A worker that drains on its own account is covered and replaced while it still lives, and counts as no death."""
    scene.tell("leave")
    scene.start_ready()
    old = scene.of_slot(0)
    os.kill(old["pid"], signal.SIGTERM)
    new = scene.wait(lambda: scene.of_slot(0) if (scene.of_slot(0) or old)["pid"] != old["pid"] else None)
    assert [p["pid"] for p in scene.processes(state="draining")] == [old["pid"]]
    scene.tell("gone")
    scene.wait(lambda: scene.logged("process ended", number=old["number"], reason="exit code 0"))
    assert scene.of_slot(0)["pid"] == new["pid"]


def test_stalled_worker_is_killed(scene: Scene) -> None:
    """A worker that the broker reports is killed and replaced."""
    scene.start_ready()
    worker = scene.of_slot(0)
    scene.tell("stalled", str(worker["number"]))
    os.kill(scene.processes("broker")[0]["pid"], signal.SIGKILL)
    ended = scene.wait(lambda: scene.logged("process ended", number=worker["number"]))[0]
    assert ended["reason"] == "SIGKILL (did not send its key table to the new broker)"
    scene.wait(lambda: scene.of_slot(0))


# Hang


def forgiven(standstill: Standstill) -> float:
    """Return what a standstill adds to a second's silence: after one the supervisor begins to count anew."""
    return standstill.seconds + 1 if standstill.seconds else 0


def silence(ended: dict[str, Any], by: str) -> float:
    """Return the seconds for which a process said nothing before a signal ended it."""
    found = re.match(rf"{by} \(silent for (\d+\.\d) s", ended["reason"])
    assert found, ended
    return float(found[1])


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_stopped_process_is_killed_with_its_stacks(scene: Scene, standstill: Standstill, role: str) -> None:
    """A stopped process is dead `hang_seconds` and a moment after it stopped, its stacks are in the log."""
    scene.set("server", hang_seconds=1)
    scene.start_ready()
    process = scene.processes(role)[0]
    os.kill(process["pid"], signal.SIGSTOP)
    stopped = time.time()
    ended = scene.wait(lambda: scene.logged("process ended", number=process["number"]))[0]
    seconds = datetime.fromisoformat(ended["time"]).timestamp() - stopped
    assert seconds < 1 + 0.3 * SLACK_SECONDS + forgiven(standstill)
    assert 1 <= silence(ended, "SIGABRT") < 2 + forgiven(standstill)
    assert "Fatal Python error: Aborted" in scene.log_text()
    scene.wait(lambda: [p for p in scene.processes(role) if p["slot"] == process["slot"]])


def test_hung_slot_is_covered_before_its_process_is_dead(scene: Scene, standstill: Standstill) -> None:
    """A process that takes no SIGABRT gets SIGKILL 200 ms later; its slot is covered from the moment it is judged."""
    scene.tell("deaf")
    scene.set("server", hang_seconds=1)
    scene.start_ready()
    process = scene.of_slot(0)
    os.kill(process["pid"], signal.SIGSTOP)
    ended = scene.wait(lambda: scene.logged("process ended", number=process["number"]))[0]
    hangs = scene.logged("process hangs", number=process["number"])[0]
    covered = scene.logged("slot covered", slot=0)[0]
    assert 1 <= silence(ended, "SIGKILL") < 2 + forgiven(standstill)
    assert 0.19 < seconds_between(hangs, ended) < 0.2 + 0.2 * SLACK_SECONDS + standstill.seconds
    assert seconds_between(hangs, covered) < 0.1 * SLACK_SECONDS + standstill.seconds


def test_supervisor_that_stood_still_kills_nobody(scene: Scene) -> None:
    """A supervisor that was stopped for longer than `hang_seconds` reads the beats it missed before it judges."""
    scene.set("server", hang_seconds=1)
    scene.start_ready()
    before = scene.beats(2)
    scene.signal(signal.SIGSTOP)
    scene.wait(lambda: scene.beats(2) >= before + 10)  # two seconds and a half of them
    scene.signal(signal.SIGCONT)
    scene.wait(lambda: scene.beats(2) >= before + 14)
    assert len(scene.processes()) == 2
    assert not scene.logged("process hangs")


def test_server_that_stood_still_kills_nobody(scene: Scene) -> None:
    """When supervisor and children were all stopped, silence is forgiven: it was the host's."""
    scene.set("server", hang_seconds=1)
    scene.start_ready()
    os.killpg(scene.program.pid, signal.SIGSTOP)
    until = time.monotonic() + 2.5
    scene.wait(lambda: time.monotonic() > until)
    scene.signal(signal.SIGCONT)  # the supervisor first: its children have said nothing for long
    status = scene.ask(command="status")["processes"]
    assert all(process["last_beat_ms"] < 1000 for process in status)
    os.killpg(scene.program.pid, signal.SIGCONT)
    before = scene.beats(2)
    scene.wait(lambda: scene.beats(2) >= before + 6)
    assert not scene.logged("process hangs")


# Stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_drain_leaves_nothing(scene: Scene, number: int) -> None:
    """SIGTERM and SIGINT drain the workers, then the broker; no process, file or open port is left, exit code 0."""
    scene.start_ready()
    port = scene.port()
    os.killpg(scene.program.pid, number) if number == signal.SIGINT else scene.signal(number)
    assert scene.wait_exit() == 0
    assert scene.is_clean()
    ends = [line["role"] for line in scene.logged("process ended")]
    assert ends == ["worker", "worker", "broker"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))


def test_stubborn_children_end_within_drain_seconds(scene: Scene, standstill: Standstill) -> None:
    """Children that ignore Drain are killed in time for everything to be over after `drain_seconds`; exit code 0."""
    scene.set("server", drain_seconds=1)
    scene.tell("stubborn")
    scene.start_ready()
    began = time.monotonic()
    scene.signal(signal.SIGTERM)
    assert scene.wait_exit() == 0
    assert time.monotonic() - began < 1 + 0.5 * SLACK_SECONDS + standstill.seconds
    assert scene.journal(got="Drain", role="worker", seconds=0.5)
    assert scene.is_clean()


def test_second_sigterm_ends_at_once(scene: Scene) -> None:
    """A second SIGTERM during the drain kills all children at once: exit code 1, nothing left."""
    scene.set("server", drain_seconds=600)
    scene.tell("stubborn")
    scene.start_ready()
    scene.signal(signal.SIGTERM)
    scene.wait(lambda: len(scene.journal(got="Drain")) == 2)
    scene.signal(signal.SIGTERM)
    assert scene.wait_exit() == 1
    assert scene.is_clean()


def test_killed_supervisor_makes_way_for_the_next(scene: Scene) -> None:
    """Children see the end of a killed supervisor; the next server removes what it left behind."""
    scene.start_ready()
    scene.signal(signal.SIGKILL)
    scene.wait_exit()
    born = [entry["born"] for entry in scene.journal() if "born" in entry]
    scene.wait(lambda: not any(map(scene.is_ours, born)))
    left = {path.name for path in scene.runtime.iterdir()}
    assert left == {"lock", "control", f"bus-{scene.program.pid}"}
    (scene.folder / "log").unlink()
    scene.start_ready()
    assert {path.name for path in scene.runtime.iterdir()} == {"lock", "control", f"bus-{scene.program.pid}"}


# Reload


def test_reload_hands_live_settings_to_all_children(scene: Scene) -> None:
    """SIGHUP: every child gets the merged configuration; what needs a restart is named and not taken over."""
    scene.start_ready()
    scene.set("log", level="info", format="human")
    scene.set("limits", registrations=7)
    scene.write()
    scene.signal(signal.SIGHUP)
    reloads = scene.wait(lambda: found if len(found := scene.journal(got="Reload")) == 3 else None)
    assert {entry["config"]["log"]["level"] for entry in reloads} == {"info"}
    assert {entry["config"]["limits"]["registrations"] for entry in reloads} == {7}
    assert {entry["config"]["log"]["format"] for entry in reloads} == {"json"}
    scene.wait(lambda: scene.logged("restart needed", changed="log.format"))
    assert scene.logged("reloaded", changed="limits.registrations, log.level")
    assert scene.ask(command="reload") == {"changed": [], "restart": ["log.format"]}


def test_reload_changes_nothing_when_one_child_cannot(scene: Scene) -> None:
    """A configuration that one child cannot take over is taken over by none; whoever asked is told why, with code 2."""
    scene.start_ready()
    scene.set("limits", registrations=7)
    scene.write()
    scene.tell("unwilling-3", "no such function")
    with pytest.raises(ControlError, match="no such function") as refusal:
        scene.ask(command="reload")
    assert refusal.value.code == 2
    assert scene.logged("not reloaded", reason="no such function")
    (scene.folder / "unwilling-3").unlink()
    assert not scene.journal(got="Reload")
    assert scene.ask(command="reload") == {"changed": ["limits.registrations"], "restart": []}


def test_reload_gives_up_a_child_that_does_not_answer(scene: Scene) -> None:
    """A child that is silent about a configuration makes the reload fail after hang_seconds; the server goes on."""
    scene.set("server", hang_seconds=1)
    scene.start_ready()
    scene.tell("silent-2")
    with pytest.raises(ControlError, match=r"no answer from worker 2 within \[server\] hang_seconds"):
        scene.ask(command="reload")
    assert not scene.journal(got="Reload")
    (scene.folder / "silent-2").unlink()
    assert scene.ask(command="reload") == {"changed": [], "restart": []}


def test_reload_does_not_wait_for_the_dead(scene: Scene) -> None:
    """A child that dies during a reload holds nobody up, and its successor is told the new configuration."""
    scene.start_ready()
    scene.set("limits", registrations=7)
    scene.write()
    scene.tell("silent-3")
    scene.signal(signal.SIGHUP)
    scene.wait(lambda: scene.journal(number=3, got="Prepare"))
    os.kill(scene.of_slot(1)["pid"], signal.SIGKILL)
    scene.wait(lambda: scene.logged("reloaded"))
    told = scene.wait(lambda: scene.journal(slot=1, number=4, got="Reload"))
    assert told[0]["config"]["limits"]["registrations"] == 7


def test_two_signals_are_two_reloads(scene: Scene) -> None:
    """SIGHUP during a reload reads the file once more afterwards: the last version of it is what counts."""
    scene.set("server", hang_seconds=2)
    scene.start_ready()
    scene.tell("silent-2")
    scene.signal(signal.SIGHUP)
    scene.wait(lambda: scene.journal(number=2, got="Prepare"))
    scene.set("limits", registrations=7)
    scene.write()
    scene.signal(signal.SIGHUP)
    scene.wait(lambda: scene.logged("not reloaded"))
    (scene.folder / "silent-2").unlink()
    scene.wait(lambda: scene.logged("not reloaded") and len(scene.journal(number=2, got="Prepare")) == 2)
    scene.signal(signal.SIGHUP)
    scene.wait(lambda: scene.logged("reloaded", changed="limits.registrations"))


# Replacing workers


def test_rolling_restart_replaces_one_worker_at_a_time(scene: Scene) -> None:
    """Each worker gets a successor that is ready before it is told to drain, and the next one waits for its end."""
    scene.start_ready()
    assert scene.ask(command="restart", seconds=0.5) == {"seconds": 0.5, "workers": 2}
    scene.wait(lambda: scene.ask(command="status")["operation"]["is_done"])
    lines = [json.loads(line) for line in scene.log_text().splitlines()]
    events = [(line["event"], line["number"]) for line in lines if line.get("role") == "worker"]
    steps = [event for event in events if event[0] in {"process ready", "process ended"}]
    assert sorted(steps[:2]) == [("process ready", 2), ("process ready", 3)]
    assert steps[2:] == [("process ready", 4), ("process ended", 2), ("process ready", 5), ("process ended", 3)]
    drains = scene.journal(got="Drain")
    assert [(drain["slot"], drain["spread_seconds"], drain["listens"]) for drain in drains] == [
        (0, 0.5, False),
        (1, 0.5, False),
    ]
    assert [(p["slot"], p["number"], p["restarts"]) for p in scene.processes()] == [(0, 4, 0), (1, 5, 0)]
    assert not scene.logged("slot covered"), "somebody served each slot all the time"


def test_a_worker_whose_successor_fails_serves_on(scene: Scene) -> None:
    """A successor that dies before it is ready fails the operation, says why, and costs the old worker nothing."""
    scene.start_ready()
    scene.tell("fail-worker")
    for failures in range(1, CRASH_DEATHS + 2):  # the server does not give up over successors
        scene.ask(command="drain", worker=1, seconds=0)
        scene.wait(lambda n=failures: len(scene.logged("worker not replaced")) == n)
        assert "worker 1 was not replaced" in scene.ask(command="status")["operation"]["failure"]
    (scene.folder / "fail-worker").unlink()
    assert [(p["slot"], p["number"]) for p in scene.processes()] == [(0, 2), (1, 3)]
    assert not scene.journal(got="Drain")
    scene.ask(command="drain", worker=1, seconds=0)
    scene.wait(lambda: [p["number"] for p in scene.processes()] == [2, 3 + CRASH_DEATHS + 2])


def test_an_old_worker_that_dies_early_is_succeeded_once(scene: Scene) -> None:
    """A worker that dies while its successor starts is not replaced a second time."""
    scene.start_ready()
    scene.tell("hold-1")
    old = scene.of_slot(1)["pid"]
    scene.ask(command="drain", worker=1, seconds=0)
    scene.wait(lambda: scene.processes(state="starting"))
    os.kill(old, signal.SIGKILL)
    scene.wait(lambda: scene.logged("process ended", pid=old))
    (scene.folder / "hold-1").unlink()
    scene.wait(lambda: scene.ask(command="status")["operation"]["is_done"])
    assert [(p["slot"], p["number"]) for p in scene.processes()] == [(0, 2), (1, 4)]
    assert len(scene.journal(slot=1)) and {e["number"] for e in scene.journal(slot=1) if "born" in e} == {3, 4}


def test_commands_that_make_no_sense_are_refused(scene: Scene) -> None:
    """No such worker, a time that is none, a second operation at once: an error that says so, and nothing happens."""
    scene.start_ready()
    for request, text, code in (
        ({"command": "drain", "worker": 2}, "there is no worker 2; there are 0 to 1", 2),
        ({"command": "drain", "worker": "x"}, "there is no worker x", 2),
        ({"command": "restart", "seconds": -1}, "seconds must be a number from 0 to 86400, found -1", 2),
        ({"command": "drain", "worker": 0, "seconds": True}, "found True", 2),
    ):
        with pytest.raises(ControlError, match=text) as refusal:
            scene.ask(**request)
        assert refusal.value.code == code
    scene.tell("hold-0")
    scene.ask(command="restart")
    with pytest.raises(ControlError, match="a rolling restart is under way already"):
        scene.ask(command="drain", worker=1)
    (scene.folder / "hold-0").unlink()
    scene.wait(lambda: scene.ask(command="status")["operation"]["is_done"])


def test_drain_of_the_server_ends_it(scene: Scene) -> None:
    """`drain` without a worker tells all workers to spread their closes and to listen on; the exit code is 0."""
    scene.start_ready()
    scene.tell("stubborn")
    scene.ask(command="drain", seconds=60)
    drains = scene.wait(lambda: found if len(found := scene.journal(got="Drain")) == 2 else None)
    assert {(drain["spread_seconds"], drain["listens"]) for drain in drains} == {(60, True)}
    assert scene.ask(command="status")["state"] == "draining"
    scene.wait(lambda: {entry["reason"] for entry in scene.journal(got="Readiness")[-2:]} == {"draining"})
    (scene.folder / "stubborn").unlink()
    scene.signal(signal.SIGTERM)  # in a hurry now: the ordinary end, not the one at once
    assert scene.wait_exit() == 0
    assert {drain["listens"] for drain in scene.journal(got="Drain")[2:]} == {False}
    assert scene.is_clean()


def test_bad_configuration_changes_nothing(scene: Scene) -> None:
    """SIGHUP with a broken configuration is logged with the reason; no child hears of it."""
    scene.start_ready()
    scene.write("{")
    scene.signal(signal.SIGHUP)
    assert scene.wait(lambda: scene.logged("not reloaded"))[0]["reason"]
    scene.ask(command="status")
    assert not scene.journal(got="Reload")


def test_log_file_is_reopened(scene: Scene) -> None:
    """After SIGHUP the supervisor writes to a new file under the log's name: logrotate may move the old one."""
    scene.set("log", file=str(scene.folder / "log"))
    scene.start_ready()
    (scene.folder / "log").rename(scene.folder / "log.1")
    scene.signal(signal.SIGHUP)
    scene.wait(lambda: scene.logged("reloaded"))


# Control socket


def test_status_describes_every_process(scene: Scene) -> None:
    """`status` tells of server and processes what an operator asks first."""
    scene.start_ready()
    scene.wait(lambda: all(p["figures"] for p in scene.processes() + scene.processes("broker")))
    status = scene.ask(command="status")
    assert status["pid"] == scene.program.pid
    assert status["state"] == "ready"
    assert status["version"]
    assert status["address"] == [f"127.0.0.1:{scene.port()}"]
    assert 0 < status["uptime_seconds"] < 600
    assert [(p["role"], p["number"], p["slot"], p["restarts"]) for p in status["processes"]] == [
        ("broker", 1, -1, 0),
        ("worker", 2, 0, 0),
        ("worker", 3, 1, 0),
    ]
    assert all(p["figures"]["beats"] >= 1 and p["last_beat_ms"] >= 0 for p in status["processes"])


def test_control_socket_refuses_what_it_does_not_know(scene: Scene) -> None:
    """Unknown commands and lines that are no JSON get an error; endless lines are cut off; the server goes on."""
    scene.start_ready()
    path = str(scene.runtime / "control")
    known = "debug, drain, insight, reload, restart, status"
    with pytest.raises(ControlError, match=f"unknown command 'fly'; known: {known}"):
        scene.ask(command="fly")
    with pytest.raises(ControlError, match="unknown command"):
        scene.ask(command=["status"])
    for line, reply in ((b"{\n", b'{"error":"not a JSON object'), (b"x" * 300_000, b"")):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.connect(path)
            try:
                connection.sendall(line)
                answer = connection.recv(4096)
            except (BrokenPipeError, ConnectionResetError):
                answer = b""
            assert answer.startswith(reply)
    assert scene.ask(command="status")["state"] == "ready"


def test_silent_commands_keep_nobody_out(scene: Scene) -> None:
    """Connections that say nothing are bounded: the oldest make way for a new command."""
    scene.start_ready()
    path = str(scene.runtime / "control")
    silent = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    try:
        for connection in silent:
            connection.connect(path)
        assert ask(path, {"command": "status"}, DEADLINE_SECONDS)["state"] == "ready"
        silent[0].settimeout(DEADLINE_SECONDS)
        assert silent[0].recv(1) == b""
        silent[-1].sendall(json.dumps({"command": "status"}).encode() + b"\n")
        silent[-1].settimeout(DEADLINE_SECONDS)
        assert silent[-1].recv(1) == b"{"
    finally:
        for connection in silent:
            connection.close()
