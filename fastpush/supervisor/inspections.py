"""What processes are doing and what the broker knows: commands ask the supervisor, and the supervisor asks them."""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from fastpush.errors import EXIT_FAILED, EXIT_USAGE
from fastpush.protocol import control
from fastpush.supervisor.children import Children
from fastpush.supervisor.control import CommandError, Reply
from fastpush.supervisor.process import Process

ANSWER_SECONDS = 3.0


class _Request(msgspec.Struct):
    process: str
    subject: control.Subject
    limit: Annotated[int, msgspec.Meta(ge=1, le=control.ENTRIES_MAX)]


@dataclass(slots=True)
class _Question:
    process: Process
    subject: control.Subject | Literal["insight"]
    reply: Reply
    deadline: float


class Inspections:
    """Carries out `debug` and `insight`, step by step: see `attend`."""

    def __init__(self) -> None:
        self._number = 0
        self._questions: dict[int, _Question] = {}

    def begin(self, children: Children) -> None:
        """Inspect these from now on."""
        self._children = children

    @property
    def deadline(self) -> float:
        """When `attend` has something to do, should nothing happen before."""
        return min((question.deadline for question in self._questions.values()), default=float("inf"))

    def attend(self, now: float) -> None:
        """Tell who waits that no answer comes."""
        for number, question in list(self._questions.items()):
            if not self._children.is_alive(question.process):
                self._refuse(
                    number, f"{_describe(question.process)} ended before it answered; its last log lines say why"
                )
            elif question.deadline <= now:
                self._refuse(number, _silent(question.process))

    def debug(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "debug", "process": NAME, "subject": S, "limit": N}: what it is doing, once it has told.

        NAME: "broker", a slot such as "0", or a worker's name in logs such as "worker-3".
        """
        try:
            wanted = msgspec.convert(request, _Request)
        except msgspec.ValidationError as error:
            raise CommandError(f"this cannot be asked: {error}", EXIT_USAGE) from error
        process = self._find(wanted.process)
        if wanted.subject == "connections" and process.role == "broker":
            raise CommandError("the broker has no WebSocket connections: ask a worker", EXIT_USAGE)
        self._number += 1
        message = control.Inspect(self._number, wanted.subject, wanted.limit)
        self._send(process, message, _Question(process, wanted.subject, reply, time.monotonic() + ANSWER_SECONDS))

    def insight(self, request: dict[str, Any], reply: Reply) -> None:
        """{"command": "insight", "question": {…}}: what the broker answers to that; see protocol/insight.py."""
        question = request.get("question")
        if not isinstance(question, dict):
            raise CommandError("insight needs a question, a JSON object", EXIT_USAGE)
        process = self._find("broker")
        self._number += 1
        message = control.Ask(self._number, msgspec.Raw(msgspec.json.encode(question)))
        self._send(process, message, _Question(process, "insight", reply, time.monotonic() + ANSWER_SECONDS))

    def _send(self, process: Process, message: control.Inspect | control.Ask, question: _Question) -> None:
        if not process.send(message):
            raise CommandError(_silent(process))
        self._questions[message.request] = question

    def _find(self, name: str) -> Process:
        """Return the process of that name; of two in one slot the one that serves, else the newer one."""
        processes = self._children.processes
        found = [process for process in processes if name in _names(process)]
        if not found:
            known = ", ".join(dict.fromkeys(name for process in processes for name in _names(process)))
            raise CommandError(f"there is no process {name!r}; there are {known} (`fastpush status`)", EXIT_USAGE)
        return max(found, key=lambda process: (process.is_serving, process.number))

    def on_inspected(self, process: Process, answer: control.Inspected | control.Told) -> None:
        """Take a child's answer."""
        question = self._questions.pop(answer.request, None)
        if question is None:
            return  # it came too late
        if isinstance(answer, control.Told):
            question.reply({"answer": answer.answer})
        else:
            told = {"subject": question.subject, "total": answer.total, "entries": answer.entries}
            question.reply({"process": process.named(), **told})

    def _refuse(self, number: int, text: str) -> None:
        self._questions.pop(number).reply({"error": text, "code": EXIT_FAILED})


def _names(process: Process) -> tuple[str, ...]:
    return ("broker",) if process.role == "broker" else (str(process.slot), f"worker-{process.number}")


def _describe(process: Process) -> str:
    return "the broker" if process.role == "broker" else f"worker {process.slot} (worker-{process.number} in logs)"


def _silent(process: Process) -> str:
    return (
        f"{_describe(process)} has not answered within {ANSWER_SECONDS:g} s: its event loop is blocked, or it is "
        "stopped, or very busy.\n"
        f"`kill -USR1 {process.pid}` has it write its stacks to the log even so"
    )
