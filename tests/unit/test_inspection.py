"""What a process tells of itself: stacks, tasks and connections, all of them cut to a size."""

import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import orjson
import pytest
from rich.console import Console

from fastpush import inspection
from fastpush.cli.debug import _print_connections, _print_stacks, _print_tasks, printable
from fastpush.inspection import FRAMES_MAX, NAMES_MAX, TEXT_CHARACTERS_MAX, Report, cut, encode_entries
from fastpush.protocol import control, insight
from fastpush.protocol.insight import CONNECTIONS_TOLD, KEYS_TOLD
from fastpush.protocol.push import EVERYBODY, channel_key, user_key
from fastpush.supervisor.control import CommandError
from fastpush.supervisor.inspections import ANSWER_SECONDS, Inspections
from fastpush.worker.connection import State
from fastpush.worker.environment import Environment
from fastpush.worker.inspection import connections, held
from fastpush.worker.orders import Orders
from fastpush.worker.timers import ticks
from tests.programs import FASTPUSH, run
from tests.unit.test_connection import REQUEST
from tests.unit.test_connection_limits import backlog, environment, numbered, opened
from tests.unit.test_connection_limits import run as run_scenario

PRIVATE = "\x1b[2J\x07\x9b\u202e\ud800"  # of which nothing may reach a terminal, and the last one no JSON


# -- Stacks -------------------------------------------------------------------------


def parked(event: threading.Event, depth: int) -> None:
    if depth:
        parked(event, depth - 1)
    else:
        event.wait()


def stack_of_parked(depth: int) -> control.Stack:
    """What is told of a thread that has called itself `depth` times and waits."""
    event = threading.Event()
    thread = threading.Thread(target=parked, args=(event, depth), name="park")
    thread.start()
    try:
        while True:
            found = [
                entry for entry in stacks() if entry.thread == "park" and " in Event.wait" in " ".join(entry.frames)
            ]
            if found:
                return found[0]
    finally:
        event.set()
        thread.join()


def stacks() -> list[control.Stack]:
    return list(inspection.stacks(control.ENTRIES_MAX).entries)  # type: ignore[arg-type]


def test_every_thread_is_told_of() -> None:
    """Threads by their names, the one that asks first and marked; frames innermost first, with file, line, function."""
    first, *others = stacks()
    assert (first.thread, first.is_asked) == ("MainThread", True)
    assert first.frames[0].endswith(" in stacks") and f"{os.sep}inspection.py:" in first.frames[0]
    assert first.frames[1].startswith(f"{__file__}:")
    assert not any(entry.is_asked for entry in others)
    stack = stack_of_parked(2)
    places = [frame.rpartition(" in ")[2] for frame in stack.frames]
    first_parked = places.index("parked")
    assert places[first_parked : first_parked + 4] == ["parked"] * 3 + ["Thread.run"]
    assert stack.depth == len(stack.frames)


def test_a_deep_stack_is_cut() -> None:
    """Of a deep recursion the innermost frames are told, and how many there are."""
    stack = stack_of_parked(500)
    assert len(stack.frames) == FRAMES_MAX
    assert stack.depth > 500
    assert stack.frames[-1].endswith(" in parked")


def test_fewer_threads_than_there_are() -> None:
    """A limit cuts the list, and the total tells it."""
    event = threading.Event()
    before = inspection.stacks(1).total
    thread = threading.Thread(target=event.wait)
    thread.start()
    try:
        report = inspection.stacks(1)
        assert (len(report.entries), report.total) == (1, before + 1)
    finally:
        event.set()
        thread.join()


# -- Tasks --------------------------------------------------------------------------


async def outer(event: asyncio.Event) -> None:
    await middle(event)


async def middle(event: asyncio.Event) -> None:
    async for _ in ticking(event):
        pass


async def ticking(event: asyncio.Event) -> AsyncIterator[int]:
    yield 1
    await event.wait()


async def inner(event: asyncio.Event) -> None:
    await asyncio.gather(event.wait())


def tell_of(*made: Callable[[asyncio.Event], Any], limit: int = control.ENTRIES_MAX, turns: int = 3) -> Report:
    """What is told of tasks that run these after some turns of the loop."""

    async def work() -> Report:
        event = asyncio.Event()
        started = [asyncio.ensure_future(make(event)) for make in made]
        for _ in range(turns):
            await asyncio.sleep(0)
        report = inspection.tasks(limit)
        event.set()
        await asyncio.gather(*started)
        return report

    return asyncio.run(work())


def of_coroutine(report: Report, name: str) -> control.Tasks:
    (found,) = [entry for entry in report.entries if isinstance(entry, control.Tasks) and entry.coroutine == name]
    return found


def test_tasks_that_wait_in_one_place_are_counted() -> None:
    """Tasks of one coroutine that wait in one place are one entry: how many, some names, and where that is."""
    report = tell_of(*[inner] * 12, outer)
    entry = of_coroutine(report, "inner")
    assert (entry.count, len(entry.names)) == (12, NAMES_MAX)
    assert all(name.startswith("Task-") for name in entry.names)
    assert [frame.rpartition(" in ")[2] for frame in entry.frames] == ["inner"]
    assert entry.frames[0].startswith(f"{__file__}:")
    largest = report.entries[0]
    assert isinstance(largest, control.Tasks) and largest.count == 12
    assert report.total == len(report.entries)


def test_a_task_waits_through_what_it_awaits() -> None:
    """The place is found through coroutines, down to where the outermost waits for something that is none."""
    places = [frame.rpartition(" in ")[2] for frame in of_coroutine(tell_of(outer), "outer").frames]
    assert places[-2:] == ["middle", "outer"]


def test_a_task_that_has_not_begun() -> None:
    """A task that has had no turn is told of, at its first line."""
    entry = of_coroutine(tell_of(inner, turns=0), "inner")
    assert (entry.count, entry.depth) == (1, 1)


def test_fewer_tasks_than_there_are() -> None:
    """A limit leaves the most numerous, and the total tells how many kinds there are."""
    report = tell_of(inner, inner, outer, limit=1)
    assert [entry.count for entry in report.entries if isinstance(entry, control.Tasks)] == [2]
    assert report.total > 1


# -- Connections --------------------------------------------------------------------


def environment_of(*found: SimpleNamespace) -> Any:
    environment = SimpleNamespace(
        wheel=SimpleNamespace(now=1000), connections={}, send_queues=SimpleNamespace(paused={})
    )
    for connection in found:
        connection.environment = environment
        environment.connections[connection.serial] = connection
        if connection.queued_bytes:
            environment.send_queues.paused[connection] = None
    return environment


class Inbox(list[str]):
    """What waits for a handler. is_paused: nothing more is read."""

    is_paused = False


class Connection(SimpleNamespace):
    """As much of a connection as is told of it."""

    __hash__ = object.__hash__


def connection(serial: int, queued: int = 0, waiting: int = 0, user: str = "jack", state: State = State.OPEN) -> Any:
    return Connection(
        serial=serial, id=f"id-{serial}", user=user, peer="127.0.0.1:1234", state=state, is_open=state == State.OPEN,
        groups=(1, 2), inbox=Inbox(["secret"] * waiting) if waiting else None,
        queued_bytes=100 * queued, _queue=["secret"] * queued or None, _opened=400, _heard=990,
        mount=SimpleNamespace(path="/ws"),
    )  # fmt: skip


def test_the_longest_send_queues_come_first() -> None:
    """By bytes queued, then by messages that wait for the application, then the oldest; the total counts all."""
    found = [connection(1), connection(2, waiting=3), connection(3, queued=1), connection(4, queued=9), connection(5)]
    environment = environment_of(*found)
    report = connections(environment, 4)
    assert [entry.id for entry in report.entries] == ["id-4", "id-3", "id-2", "id-1"]  # type: ignore[attr-defined]
    assert report.total == 5
    assert connections(environment_of(), 50) == Report(0, [])


def test_a_connection_in_figures() -> None:
    """Everything that is told of a connection: times in seconds, counts, its state; and nothing of what it said."""
    (entry,) = connections(environment_of(connection(7, queued=2, waiting=3)), 50).entries
    assert msgspec.structs.asdict(entry) == {
        "id": "id-7", "user": "jack", "peer": "127.0.0.1:1234", "path": "/ws", "state": "slow",
        "open_seconds": 60.0, "heard_seconds": 1.0, "keys": 2,
        "queued_messages": 2, "queued_bytes": 200, "unhandled_messages": 3,
    }  # fmt: skip
    held = connection(1, waiting=1)
    held.inbox.is_paused = True
    assert connections(environment_of(held), 1).entries[0].state == "paused"  # type: ignore[attr-defined]
    states = [
        entry.state  # type: ignore[attr-defined]
        for state in State
        for entry in connections(environment_of(connection(1, state=state)), 1).entries
    ]
    assert states == ["open", "closing", "closed"]


# -- Sizes --------------------------------------------------------------------------


def figures(text: str) -> control.ConnectionFigures:
    return control.ConnectionFigures(text, text, text, text, "closing", 1e9, 1e9, 10**6, 10**6, 10**12, 10**6)


def test_a_report_fits_into_one_datagram() -> None:
    """However long and awkward the texts are, an answer fits into a datagram, and holds the first ones."""
    entries = [figures(cut(PRIVATE * 500)) for _ in range(control.ENTRIES_MAX)]
    datagram = control.encode(control.Inspected(10**9, 10**9, encode_entries(entries)))
    assert control.MESSAGE_BYTES_MAX * 9 // 10 < len(datagram) <= control.MESSAGE_BYTES_MAX
    answer = control.decode_from_child(datagram)
    assert isinstance(answer, control.Inspected)
    told = msgspec.json.decode(answer.entries, type=list[control.ConnectionFigures])
    assert told == entries[: len(told)]


def test_the_largest_entry_of_each_kind_fits() -> None:
    """A report never comes out empty because its first entry alone is too long."""
    text = cut("\x01" * 10_000)
    frames = [f"{text}:1000000 in {text}"] * FRAMES_MAX
    for entry in (
        control.Stack(text, frames, 10**6, is_asked=True),
        control.Tasks(10**6, text, [text] * NAMES_MAX, frames, 10**6),
        figures(text),
    ):
        assert len(encode_entries([entry])) > len("[]")


def test_as_many_connections_as_may_be_asked_for() -> None:
    """With ids and addresses as they usually are, ENTRIES_MAX connections fit."""
    usual = control.ConnectionFigures(
        "0123456789ab8cde8fab000000000001", "user-1234567", "192.168.100.100:65535", "/connection", "closing",
        86400.5, 25.5, 12, 1000, 1_000_000, 1000,
    )  # fmt: skip
    entries = msgspec.json.decode(encode_entries([usual] * control.ENTRIES_MAX))
    assert len(entries) == control.ENTRIES_MAX


def test_what_fits_exactly_is_told() -> None:
    """The size is that of the text, brackets and commas included."""
    entries = [figures("x")] * 3
    size = len(msgspec.json.encode(entries))
    assert len(msgspec.json.decode(encode_entries(entries, size))) == 3
    assert len(msgspec.json.decode(encode_entries(entries, size - 1))) == 2
    assert msgspec.json.decode(encode_entries([])) == []


def test_texts_are_cut_and_can_be_sent() -> None:
    """A long text ends in …; half a surrogate pair becomes a question mark; anything else is left as it is."""
    assert cut("jack") == "jack"
    assert cut("ja\ud800ck") == "ja?ck"
    assert cut("x" * TEXT_CHARACTERS_MAX) == "x" * TEXT_CHARACTERS_MAX
    assert cut("x" * 1000) == "x" * (TEXT_CHARACTERS_MAX - 1) + "…"


# -- On a terminal ------------------------------------------------------------------


def shown(show: Callable[[Console, Any], None], entry: Any) -> str:
    output = io.StringIO()
    show(Console(file=output, width=200, highlight=False, color_system=None), [entry])
    return output.getvalue()


def test_nothing_moves_the_cursor() -> None:
    """Control characters and writing directions in any text are shown as escapes; rich's marks are mere text."""
    text = cut(PRIVATE) + "[bold]"
    stack = control.Stack(text, [text], 9, is_asked=False)
    tasks = control.Tasks(12, text, [text], [text], 1)
    outputs = [shown(_print_stacks, stack), shown(_print_tasks, tasks), shown(_print_connections, figures(text))]
    for output in outputs:
        assert all(character.isprintable() or character == "\n" for character in output)
        assert "\\u001b" in output
    assert "… and 8 more" in outputs[0]
    assert "12 tasks" in outputs[1] and "[bold]" in outputs[1] and "and 11 more" in outputs[1]
    assert printable("jäck ✓") == "jäck ✓"


@asynccontextmanager
async def holding(*keys: bytes) -> AsyncIterator[tuple[Any, Environment]]:
    """A real connection with these routing keys, whose client reads nothing."""
    shared = environment()
    async with opened(shared) as (connection, _):
        connection.open(REQUEST)
        connection.user = "jack"
        for key in keys:
            shared.hub.join(connection, key)
        try:
            yield connection, shared
        finally:
            connection._abort("the test is over")


def test_what_operators_are_told_of_a_connection() -> None:
    """Who and where it is, since when, when it was heard last, its events and channels, and how it is doing."""

    async def scenario() -> None:
        keys = [EVERYBODY, user_key("jack", "news"), user_key("jack", ""), channel_key("chat:1")]
        async with holding(*keys) as (connection, shared):
            for _ in range(ticks(5)):
                shared.wheel.advance()
            told = held(connection)
            assert (told.id, told.worker, told.path, told.peer) == (connection.id, 1, "/app", "peer")
            assert (told.transport, told.state, told.expires_seconds) == ("websocket", "open", None)
            assert (told.events, told.channels, told.keys) == (["news", ""], ["chat:1"], 3)
            assert told.heard_seconds_ago == pytest.approx(5, abs=0.2)
            assert told.since_seconds == pytest.approx(shared.clock() - 5, abs=2)
            queue = (told.queued_messages, told.queued_bytes, told.worst_queued_bytes, told.dropped_messages)
            assert (queue, told.unhandled_messages) == ((0, 0, 0, 0), 0)

    run_scenario(scenario())


def test_the_queue_now_and_at_its_worst() -> None:
    """What waits for a client that has fallen behind; once it has caught up, the most that ever did is still told."""

    async def scenario() -> None:
        shared = environment()
        async with opened(shared) as (connection, client):
            connection.open(REQUEST)
            backlog(connection, 50_000)
            connection.send_frame(numbered(0, 50_000))
            behind = held(connection)
            assert behind.state == "slow"
            assert behind.queued_messages >= 2
            assert behind.queued_bytes == behind.worst_queued_bytes == connection.queued_bytes > 100_000
            client.setblocking(False)
            while held(connection).state == "slow":
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 20), 10)
            caught_up = held(connection)
            assert (caught_up.state, caught_up.queued_messages, caught_up.queued_bytes) == ("open", 0, 0)
            assert caught_up.worst_queued_bytes == behind.worst_queued_bytes
            connection._abort("the test is over")

    run_scenario(scenario())


def test_a_connection_with_many_keys() -> None:
    """KEYS_TOLD events and as many channels are told, and how many keys there are; names are cut."""

    async def scenario() -> None:
        events = [user_key("jack", f"{number:03}" + "x" * 400) for number in range(2 * KEYS_TOLD)]
        channels = [channel_key(f"chat:{number}") for number in range(2 * KEYS_TOLD)]
        async with holding(EVERYBODY, *events, *channels) as (connection, _):
            told = held(connection)
            assert (len(told.events), len(told.channels), told.keys) == (KEYS_TOLD, KEYS_TOLD, 4 * KEYS_TOLD)
            assert {len(event) for event in told.events} == {insight.TEXT_CHARACTERS_MAX}
            assert msgspec.json.decode(msgspec.json.encode(told), type=insight.Held) == told

    run_scenario(scenario())


def test_what_a_worker_knows_of_a_user() -> None:
    """Its connections, the newest CONNECTIONS_TOLD, and its pushes; what is noted goes to the broker before."""

    async def scenario() -> None:
        keys = [EVERYBODY, user_key("jack", "news")]
        async with holding(*keys) as (connection, shared):
            shared.notebook.remember("push", keys[1:], "news", b"hello", 0.0, 1, 0)
            left: list[str] = []
            orders = Orders(shared, cast(Any, None), cast(Any, None), lambda: left.append("notes"))
            known = msgspec.json.decode(orders.answer(b'["why","jack"]'), type=insight.Known)
            assert (known.connections, known.connections_left_out) == ([held(connection)], 0)
            assert [(push.event, push.outcome) for push in known.pushes] == [("news", "delivered")]
            assert left == ["notes"]
            nobody = msgspec.json.decode(orders.answer(b'["why","jac"]'), type=insight.Known)
            assert nobody == insight.Known(connections=[], connections_left_out=0, pushes=[])
            shared.connections.update(dict.fromkeys(range(-CONNECTIONS_TOLD - 2, 0), connection))
            many = msgspec.json.decode(orders.answer(b'["why","jack"]'), type=insight.Known)
            assert (len(many.connections), many.connections_left_out) == (CONNECTIONS_TOLD, 3)
            users, channels = orjson.loads(orders.answer(b'["busiest"]'))
            assert ([user[0] for user in users], channels) == (["jack"], [])

    run_scenario(scenario())


# -- The supervisor's part ----------------------------------------------------------


class Process(SimpleNamespace):
    """A child that takes what it is sent."""

    __hash__ = object.__hash__

    def send(self, message: control.Inspect) -> bool:
        self.sent.append(message)
        return bool(self.reads)

    def named(self) -> dict[str, Any]:
        return {"role": self.role, "number": self.number, "slot": self.slot, "pid": self.pid}


def process(role: str, number: int, slot: int, *, is_serving: bool = True, reads: bool = True) -> Process:
    return Process(role=role, number=number, slot=slot, pid=1000 + number, is_serving=is_serving, reads=reads, sent=[])


class Children:
    """A broker, a worker, and a slot in which one worker drains while its successor serves."""

    def __init__(self) -> None:
        self.processes = [
            process("broker", 1, -1), process("worker", 2, 0),
            process("worker", 4, 1), process("worker", 3, 1, is_serving=False),
        ]  # fmt: skip
        self.ended: set[Process] = set()

    def is_alive(self, process: Process) -> bool:
        return process not in self.ended


@pytest.fixture
def children() -> Children:
    return Children()


@pytest.fixture
def inspections(children: Children) -> Inspections:
    inspections = Inspections()
    inspections.begin(children)  # type: ignore[arg-type]
    return inspections


def ask(inspections: Inspections, name: Any, subject: str = "tasks", limit: Any = 50) -> list[dict[str, Any]]:
    replies: list[dict[str, Any]] = []
    inspections.debug({"command": "debug", "process": name, "subject": subject, "limit": limit}, replies.append)
    return replies


def test_processes_by_name(inspections: Inspections, children: Children) -> None:
    """The broker, a worker by its slot or by its name in logs; of two in one slot the one that serves is meant."""
    for name in ("broker", "0", "1", "worker-3"):
        ask(inspections, name)
    assert [len(process.sent) for process in children.processes] == [1, 1, 1, 1]
    assert children.processes[2].sent[0] == control.Inspect(3, "tasks", 50)


@pytest.mark.parametrize(
    ("name", "subject", "limit", "text"),
    [
        ("2", "tasks", 50, "there is no process '2'; there are broker, 0, worker-2, 1, worker-4, worker-3"),
        ("worker-1", "tasks", 50, "there is no process 'worker-1'"),
        (None, "tasks", 50, "this cannot be asked: Expected `str`, got `null` - at `$.process`"),
        ("broker", "connections", 50, "the broker has no WebSocket connections: ask a worker"),
        ("0", "heap", 50, "this cannot be asked: Invalid enum value 'heap'"),
        ("0", "tasks", 0, "this cannot be asked: Expected `int` >= 1"),
        ("0", "tasks", 1001, "this cannot be asked: Expected `int` <= 1000"),
        ("0", "tasks", True, "this cannot be asked: Expected `int`, got `bool`"),
    ],
)
def test_wrong_questions(inspections: Inspections, name: Any, subject: str, limit: Any, text: str) -> None:
    """What cannot be asked is wrong usage, exit code 2, and the text names what can."""
    with pytest.raises(CommandError) as caught:
        ask(inspections, name, subject, limit)
    assert str(caught.value).startswith(text)
    assert caught.value.code == 2


def test_an_answer_reaches_who_asked(inspections: Inspections, children: Children) -> None:
    """Each answer goes to its own question, once; one that nobody waits for any more is dropped."""
    first, second = ask(inspections, "0"), ask(inspections, "0", "stacks")
    worker = children.processes[1]
    for number in (2, 2, 77):
        inspections.on_inspected(worker, control.Inspected(number, 9, msgspec.Raw(b"[]")))
    assert first == []
    named = {"role": "worker", "number": 2, "slot": 0, "pid": 1002}
    assert second == [{"process": named, "subject": "stacks", "total": 9, "entries": msgspec.Raw(b"[]")}]
    assert inspections.deadline < float("inf")
    inspections.on_inspected(worker, control.Inspected(1, 0, msgspec.Raw(b"[]")))
    assert inspections.deadline == float("inf")


def test_a_silent_process_is_told_of(inspections: Inspections) -> None:
    """After ANSWER_SECONDS, not before, who asked hears that the loop is blocked, and what helps even so."""
    replies = ask(inspections, "1")
    due = inspections.deadline
    inspections.attend(due - 0.01)
    assert replies == []
    inspections.attend(due)
    (reply,) = replies
    assert reply["code"] == 1
    assert (
        f"worker 1 (worker-4 in logs) has not answered within {ANSWER_SECONDS:g} s: its event loop is blocked"
        in (reply["error"])
    )
    assert "`kill -USR1 1004` has it write its stacks to the log even so" in reply["error"]


def test_a_process_that_does_not_read(inspections: Inspections, children: Children) -> None:
    """One whose channel is full is as silent: told at once."""
    children.processes[0].reads = False
    with pytest.raises(CommandError, match="the broker has not answered"):
        ask(inspections, "broker")


def test_a_process_that_ends_meanwhile(inspections: Inspections, children: Children) -> None:
    """Who asked does not wait for a process that is gone."""
    replies = ask(inspections, "0")
    children.ended.add(children.processes[1])
    inspections.attend(0)
    text = "worker 0 (worker-2 in logs) ended before it answered; its last log lines say why"
    assert replies == [{"error": text, "code": 1}]


def ask_insight(inspections: Inspections, question: Any) -> list[dict[str, Any]]:
    replies: list[dict[str, Any]] = []
    inspections.insight({"command": "insight", "question": question}, replies.append)
    return replies


def test_a_question_to_the_broker(inspections: Inspections, children: Children) -> None:
    """It goes there as it is, and each answer to who has asked, once, beside those of `debug`."""
    first = ask_insight(inspections, {"ask": "why", "user": "jäck"})
    second = ask_insight(inspections, {"ask": "top"})
    tasks = ask(inspections, "broker")
    broker = children.processes[0]
    assert broker.sent[:2] == [
        control.Ask(1, msgspec.Raw('{"ask":"why","user":"jäck"}'.encode())),
        control.Ask(2, msgspec.Raw(b'{"ask":"top"}')),
    ]
    for number in (2, 2, 77):
        inspections.on_inspected(broker, control.Told(number, msgspec.Raw(b'{"users":[]}')))
    assert (first, second, tasks) == ([], [{"answer": msgspec.Raw(b'{"users":[]}')}], [])
    inspections.on_inspected(broker, control.Told(1, msgspec.Raw(b"{}")))
    assert first == [{"answer": msgspec.Raw(b"{}")}]


@pytest.mark.parametrize("question", [None, "why", ["why"], 7])
def test_what_is_no_question(inspections: Inspections, children: Children, question: Any) -> None:
    """Anything but a JSON object is wrong usage, and the broker is not asked."""
    with pytest.raises(CommandError, match="insight needs a question, a JSON object") as caught:
        ask_insight(inspections, question)
    assert caught.value.code == 2
    assert children.processes[0].sent == []


def test_a_silent_broker_is_told_of(inspections: Inspections, children: Children) -> None:
    """After ANSWER_SECONDS, or at once when it does not read or there is none."""
    replies = ask_insight(inspections, {"ask": "top"})
    inspections.attend(inspections.deadline)
    assert replies[0]["code"] == 1 and "the broker has not answered within" in replies[0]["error"]
    children.processes[0].reads = False
    with pytest.raises(CommandError, match="the broker has not answered"):
        ask_insight(inspections, {"ask": "top"})
    del children.processes[0]
    with pytest.raises(CommandError, match="there is no process 'broker'"):
        ask_insight(inspections, {"ask": "top"})


# -- The signal ---------------------------------------------------------------------

SIGNALLED = """
import os, signal, threading
from fastpush import inspection, log
from fastpush.config import Log

def working(times):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGUSR1)

def fail(*_):
    raise LookupError("nothing to tell")

def busy(depth):
    return depth and busy(depth - 1) + busy(depth - 1)

log.setup(Log(file="log", format="json", level="error"))
signal.signal(signal.SIGUSR1, inspection.on_sigusr1)
working(1)
told, inspection.stacks = inspection.stacks, fail
working(1)
inspection.stacks = told
storm = threading.Thread(target=working, args=(2000,))
storm.start()
while storm.is_alive():
    busy(8)
"""


def test_sigusr1_writes_stacks_and_ends_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread's stack is that of what it was doing, whatever the log's level; nothing is raised there, and of
    more signals than can be answered those are left out that come while one is.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    result = run(FASTPUSH[0], "-c", SIGNALLED)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    header, stack, failure = lines[:3]
    assert (header["event"], header["subject"], header["total"], header["shown"]) == ("inspected", "stacks", 1, 1)
    assert (stack["event"], stack["thread"], stack["is_asked"]) == ("stack found", "MainThread", True)
    assert stack["frames"].startswith("<string>:8 in working < <string>:")
    assert failure["event"] == "stacks not written" and "LookupError: nothing to tell" in failure["exception"]
    stacks_of_storm = [line["frames"] for line in lines[3:] if line.get("thread") == "MainThread"]
    assert stacks_of_storm
    assert not any("on_sigusr1" in frames for frames in stacks_of_storm)
