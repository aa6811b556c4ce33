"""A load that goes on while it is told what to do: a command a line on standard input, JSON on standard output."""

import json
import os
import select
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

from fastpush.bench.loop import Loop


class Commanded(ABC):
    """Something that runs on one loop, and its commands."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._is_over = False
        self._line = b""

    @abstractmethod
    def answer(self, command: str, argument: str = "") -> dict[str, Any]:
        """Do what a command says, and return what is to be told."""

    def end(self) -> None:
        """Take no command any more."""
        self._is_over = True

    def run(self, seconds: float) -> None:
        """Go on for a time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.loop.turn()

    def obey(self, connected: int) -> None:
        """Say how many are there, then answer commands until the last one."""
        self._print({"connected": connected})
        self.loop.watch(0, self._on_input, select.EPOLLIN)
        while not self._is_over:
            self.loop.turn()

    def _on_input(self, _events: int) -> None:
        data = os.read(0, 4096)
        if not data:
            self._is_over = True  # whoever started this is gone
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._print(self.answer(*line.decode().split()))

    def _print(self, answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
