"""An auth function that blocks for ever costs its worker, and nobody on another worker anything."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.load import Accepts, Client, Load, run, show, until
from tests.server import SCALE, Server
from tests.standstill import Standstill

HANG_SECONDS = 2
TIMEOUT_SECONDS = 1.0
DRAIN_SECONDS = 6
THREADS = 2
SLACK_SECONDS = 0.5 * SCALE  # of a push that nothing holds up
UPGRADE = (
    b"GET /ws?token=blocking&event=e HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MODULE = """
import time

{declaration} check(token, headers):
    if token == "blocking":
        wait_for_ever()
    return token


def wait_for_ever():
    while True:
        time.sleep(3600)
"""
CALL_LINE, SLEEP_LINE = 6, 12


class Scene(NamedTuple):
    """Three workers under load, one of which (victim) has been given calls that block.

    own: the clients of the victim.  answers: status lines that the blocking clients got, empty for none.
    """

    load: Load
    victim: int
    own: list[Client]
    answers: list[bytes]

    @property
    def others(self) -> list[Client]:
        return [client for client in self.load.clients if client not in self.own]


def start(serve: Callable[..., Server], folder: Path, *, is_async: bool) -> Server:
    (folder / "blocking_auth.py").write_text(MODULE.format(declaration="async def" if is_async else "def"))
    python = {"callable": "blocking_auth:check", "threads": THREADS, "timeout_seconds": TIMEOUT_SECONDS}
    return serve(
        workers=3,
        sections={
            "server": {"hang_seconds": HANG_SECONDS, "drain_seconds": DRAIN_SECONDS},
            "bus": {"confirm_ms": 1000},
            "auth": {"mode": "python"},
            "auth.python": python,
        },
    )


async def block(server: Server, times: int) -> tuple[int, list["asyncio.Task[bytes]"]]:
    """Have one worker authenticate `times` clients that block; return it, and what each is answered in the end."""
    victim, answers = 0, []
    while len(answers) < times:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        worker = await asyncio.to_thread(server.worker_of, writer.get_extra_info("sockname")[1])
        if worker != (victim or worker):
            writer.close()
            continue
        victim = worker
        writer.write(UPGRADE)
        answers.append(asyncio.get_running_loop().create_task(answer(reader, writer)))
    return victim, answers


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def hang(server: Server, calls: int) -> Scene:
    """Block a worker under load, wait until it is gone and replaced, and let the load go on for a while."""
    with Accepts(server.log_path) as accepts:
        load = Load(server, users=30, each=2, publishers=12, pushes_per_second=150, accepts=accepts)
        async with load:
            await until(lambda: len(load.pushes) > 50, what="load")
            workers = {client: accepts.worker_of(client.websocket.port) for client in load.clients}
            victim, answers = await block(server, calls)
            await until(lambda: ended(server, victim), HANG_SECONDS + DRAIN_SECONDS + 5, "the worker's end")
            await until(lambda: len(server.events("process ready")) == 5, what="a successor")
            count = len(load.pushes)
            await until(lambda: len(load.pushes) > count + 100, what="load")
            await load.stop_publishing()
            await load.check_exact()
            own = [client for client, worker in workers.items() if worker == victim]
            return Scene(load, victim, own, await asyncio.gather(*answers))


def ended(server: Server, number: int) -> list[dict[str, Any]]:
    return [event for event in server.events("process ended") if event["number"] == number]


def check_others_noticed_nothing(scene: Scene, standstill: Standstill) -> None:
    """No client of another worker lost its connection or a message, and no push among them waited for the victim,
    unless all of them waited for the machine.
    """
    load, others = scene.load, scene.others
    assert others
    assert [client.user for client in others if client.closes] == []
    assert load.refused() == []
    assert load.disorder() == []
    received = load.received()
    touched = {client.user for client in scene.own}
    spared = [push for push in load.pushes if push.user not in touched and push.worker != scene.victim]
    spared = [push for push in spared if not standstill.within(push.began, push.ended)]
    assert spared
    assert [push for push in spared if (push.status, push.sent, push.unconfirmed) != (200, load.each, 0)] == []
    assert max(push.seconds for push in spared) <= SLACK_SECONDS
    taken = [push for push in load.pushes if push.status == 200]
    for client in others:
        assert {push.message for push in taken if push.user == client.user} <= set(client.messages)
    assert [push for push in taken if push.sent > received.get(push.message, 0)] == []
    # Unanswered through the victim; or refused by the broker while it waited to hear whether the victim comes back.
    missed = [push for push in load.pushes if push.status != 200 and not standstill.within(push.began, push.ended)]
    assert [push for push in missed if push.status != 0 and (push.status != 503 or push.message in received)] == []
    assert {push.worker for push in missed if push.status == 0} <= {scene.victim}


def test_a_function_that_blocks_the_loop(serve, tmp_path, monkeypatch, standstill: Standstill) -> None:
    """An async function that blocks: its worker is found silent, killed with the blocking line in the log and replaced;
    its clients come back, and those of the other workers neither lose their connection nor a push.
    """
    monkeypatch.chdir(tmp_path)  # where workers look for functions
    server = start(serve, tmp_path, is_async=True)
    scene = run(hang(server, calls=1))
    check_others_noticed_nothing(scene, standstill)
    assert [client.closes for client in scene.own] == [[1006]] * len(scene.own)
    assert scene.answers == [b""]
    (hanging,) = server.events("process hangs")
    assert hanging["number"] == scene.victim
    assert ended(server, scene.victim)[0]["reason"].startswith("SIGABRT (silent for ")
    log = server.log_text()
    assert f'File "{tmp_path}/blocking_auth.py", line {SLEEP_LINE} in wait_for_ever' in log
    assert f'File "{tmp_path}/blocking_auth.py", line {CALL_LINE} in check' in log
    pushes = scene.load.pushes
    show(
        f"loop blocked: found out after {hanging['seconds']} s, {len(scene.own)} clients reconnected, "
        f"{len(scene.others)} noticed nothing; pushes by status {scene.load.statuses()}, "
        f"unconfirmed {sum(push.unconfirmed > 0 for push in pushes)}"
    )


def test_a_function_that_blocks_every_thread(serve, tmp_path, monkeypatch, standstill: Standstill) -> None:
    """A sync function that blocks: its callers get 503 in time and the log says where; once no thread is left
    the worker writes all stacks, sends its clients away with 1012 and ends in time; a successor has its place.
    """
    monkeypatch.chdir(tmp_path)
    server = start(serve, tmp_path, is_async=False)
    scene = run(hang(server, calls=THREADS))
    check_others_noticed_nothing(scene, standstill)
    assert [client.closes for client in scene.own] == [[1012]] * len(scene.own)
    assert scene.answers == [b"HTTP/1.1 503 Service Unavailable\r\n"] * THREADS
    assert server.events("process hangs") == []
    (end,) = ended(server, scene.victim)
    assert end["reason"] == "exit code 0"
    path = f"{tmp_path}/blocking_auth.py"
    stuck = server.events("auth function stuck")[0]
    assert stuck["stack"] == f"{path}:{SLEEP_LINE} in wait_for_ever < {path}:{CALL_LINE} in check"
    assert "blocking" not in stuck["stack"].replace("blocking_auth", "")  # no token
    assert len(server.events("auth function exhausted")) == 1
    assert server.log_text().count(f'File "{path}", line {SLEEP_LINE} in wait_for_ever') == THREADS
    successor = server.events("process ready")[-1]
    show(
        f"threads blocked: {len(scene.own)} clients got 1012, {len(scene.others)} noticed nothing, the successor was "
        f"ready after {successor['seconds']} s; pushes by status {scene.load.statuses()}"
    )


def test_a_server_ends_beside_a_thread_that_blocks(serve, tmp_path, monkeypatch) -> None:
    """Threads that never come back, of `asyncio.to_thread` in an async function or of a sync one, hold up no stop:
    every process ends by itself with exit code 0.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "threads_auth.py").write_text(
        "import asyncio, time\nasync def check(token, headers): await asyncio.to_thread(time.sleep, 3600)\n"
        "def check_push(headers): time.sleep(3600)\n"
    )
    sections = {
        "auth": {"mode": "python"},
        "auth.python": {"callable": "threads_auth:check", "timeout_seconds": TIMEOUT_SECONDS},
        "push": {"auth": "python", "callable": "threads_auth:check_push"},
    }
    server = serve(workers=1, sections=sections)
    with server.raw() as connection:
        connection.sendall(UPGRADE)
        assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert server.push("user", "event", "message")["status"] == 503
    assert server.metrics()["fastpush_auth_timeouts_total"] == 2
    assert server.stop() == 0
    assert [event["reason"] for event in server.events("process ended")] == ["exit code 0"] * 2
