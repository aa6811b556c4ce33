"""PyPI's centrifuge-python, driven by JSON lines: `centrifuge_client.py URL`.

Commands, answers and events are those of centrifuge_commands.mjs, in its words, as far as this client has them.
The first line out is the event "started".
"""

import asyncio
import json
import re
import sys
from dataclasses import fields, is_dataclass
from typing import Any

from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    ClientInfo,
    Publication,
    StreamPosition,
    SubscriptionEventHandler,
)

LINE_BYTES_MAX = 2**24


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def words(value: Any) -> Any:
    """Return a value of the library as the one for JavaScript would give it."""
    if isinstance(value, dict):
        return {key: words(each) for key, each in value.items()}
    if isinstance(value, list):
        return [words(each) for each in value]
    if isinstance(value, Exception):
        return {"code": getattr(value, "code", 0), "message": getattr(value, "message", str(value))}
    if not is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if isinstance(content, Publication):
            found |= words(content)
        elif content is not None:
            first, *others = field.name.split("_")
            found[first + "".join(other.capitalize() for other in others)] = words(content)
    return found


class Teller:
    """Event handlers that tell what they are called with. known: what every event has."""

    def __init__(self, **known: Any) -> None:
        self._known = known

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def told(context: Any) -> None:
            # A client's events are also those of the subscriptions that the server made: these know their channel.
            server = {"server": True} if hasattr(context, "channel") and not self._known else {}
            tell(event=name.removeprefix("on_"), **self._known | server | words(context))

        return told


class ClientTeller(Teller, ClientEventHandler):
    pass


class SubscriptionTeller(Teller, SubscriptionEventHandler):
    pass


def adapted(given: dict[str, Any], **known: Any) -> dict[str, Any]:
    """Return options as this library has them: other names, seconds instead of milliseconds, and for `tokens` a
    function that gives one after the other and tells that it was asked.
    """
    options = {}
    for key, value in given.items():
        seconds = value / 1000 if key.endswith("Delay") else value
        options[re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), key)] = seconds
    tokens = options.pop("tokens", None)
    if tokens is None:
        return options
    left = iter(tokens)

    async def get_token(*_: str) -> str:
        tell(event="token", **known)
        token = next(left, tokens[-1])
        if token is None:
            raise CentrifugeError("the back-end is away")
        return token

    return {**options, "get_token": get_token}


class Commands:
    """What can be asked of the client, by the names that the other driver has."""

    _client: Client

    def __init__(self, url: str) -> None:
        self._url = url

    async def do(self, number: int, name: str, *values: Any) -> None:
        try:
            tell(answer=number, ok=words(await getattr(self, name)(*values)))
        except CentrifugeError as error:
            tell(answer=number, error=words(error))

    async def connect(self, options: dict[str, Any]) -> None:
        self._client = Client(self._url, ClientTeller(), **adapted(options), proxy=None)
        await self._client.connect()

    async def disconnect(self) -> None:
        await self._client.disconnect()

    async def subscribe(self, channel: str, options: dict[str, Any] | None = None) -> None:
        events = SubscriptionTeller(channel=channel)
        options = adapted(options or {}, channel=channel)
        await self._client.new_subscription(channel, events, **options).subscribe()

    async def unsubscribe(self, channel: str) -> None:
        subscription = self._client.get_subscription(channel)
        await subscription.unsubscribe()
        self._client.remove_subscription(subscription)

    async def publish(self, channel: str, data: Any) -> Any:
        return await self._client.publish(channel, data)

    async def history(self, channel: str, options: dict[str, Any]) -> Any:
        since = options.pop("since", None)
        return await self._client.history(channel, since=since and StreamPosition(**since), **options)

    async def presence(self, channel: str) -> list[ClientInfo]:
        return list((await self._client.presence(channel)).clients.values())

    async def presenceStats(self, channel: str) -> Any:  # noqa: N802 - as in the other driver
        return await self._client.presence_stats(channel)

    async def rpc(self, method: str, data: Any) -> Any:
        return (await self._client.rpc(method, data)).data


async def main(url: str) -> None:
    reader = asyncio.StreamReader(LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    commands = Commands(url)
    tell(event="started")
    tasks: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        task = asyncio.create_task(commands.do(*json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
