"""What the administration page of a worker asks of others: the broker, and the supervisor."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from fastpush.bus.client import BusClient, BusUnavailable
from fastpush.protocol import bus, control

ACT_SECONDS = 5


class Operators:
    """Hands questions and commands over, and waits.

    send: to the supervisor.
    """

    def __init__(self, client: BusClient, send: Callable[[control.FromChild], None]) -> None:
        self._bus = client
        self._send = send
        self._numbers = itertools.count(1)
        self._acts: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return what the broker answers; see protocol/insight.py."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self._bus.ask(bus.INSIGHT, orjson.dumps(question), lambda data: _resolve(answer, data))
        except BusUnavailable as error:
            return {"error": str(error)}
        told: dict[str, Any] = orjson.loads(await answer)
        return told

    async def act(self, command: dict[str, Any]) -> dict[str, Any]:
        """Have the supervisor carry out a command of its control socket, where [admin] actions allows that.

        Returns its reply, {"error": text} where it was not carried out.
        """
        request = next(self._numbers)
        acted = self._acts[request] = asyncio.get_running_loop().create_future()
        self._send(control.Act(request, msgspec.Raw(orjson.dumps(command))))
        try:
            async with asyncio.timeout(ACT_SECONDS):
                reply: dict[str, Any] = orjson.loads(await acted)
        except TimeoutError:
            return {"error": f"the supervisor has not answered within {ACT_SECONDS} s"}
        finally:
            del self._acts[request]
        return reply

    def on_acted(self, message: control.Acted) -> None:
        """Take the supervisor's answer."""
        acted = self._acts.get(message.request)
        if acted is not None:
            _resolve(acted, bytes(message.reply))


def _resolve(future: asyncio.Future[bytes], data: bytes) -> None:
    if not future.done():
        future.set_result(data)
