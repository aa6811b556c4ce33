"""fastpush.bus.client: admissions are asked for, told again to each broker, and given back."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fastpush.bus.client import BusClient
from fastpush.protocol import bus
from tests.unit.test_bus_client import FakeBroker, connected, until

NAME = b"ujack"


def asked(client: BusClient, name: bytes = NAME) -> list[bool]:
    """Ask for one; return where the answer will stand."""
    answer: list[bool] = []
    client.admit(name, 2, answer.append)
    return answer


async def hear_admit(broker: FakeBroker) -> int:
    kind, request, body = await broker.hear()
    assert kind == bus.ADMIT and bus.decode_admit(body) == (NAME, 2)
    return request


async def hear_table(broker: FakeBroker) -> dict[bytes, int]:
    """Accept a link and return its holds."""
    await broker.accept()
    assert (await broker.hear())[0] == bus.HELLO
    holds = {}
    while (message := await broker.hear())[0] == bus.HOLD:
        holds[message[2]] = message[1]
    assert message[0] == bus.COMPLETE
    await broker.say(bus.encode(bus.WELCOME, 0, bus.encode_epoch(4)), bus.encode(bus.SUBSCRIBED, message[1]))
    return holds


def run(scenario: Callable[[BusClient, FakeBroker], object], tmp_path: Path) -> None:
    async def main() -> None:
        async with connected(tmp_path) as (client, broker):
            await scenario(client, broker)  # type: ignore[misc]

    asyncio.run(main())


def test_yes_and_no(tmp_path: Path) -> None:
    """Each question gets its own answer; a yes is held until it is released."""

    async def scenario(client: BusClient, broker: FakeBroker) -> None:
        first, second = asked(client), asked(client)
        one, two = await hear_admit(broker), await hear_admit(broker)
        await broker.say(bus.encode(bus.ADMITTED, two, b"\0"), bus.encode(bus.ADMITTED, one, b"\1"))
        await until(lambda: first and second)
        assert (first, second, client.admitted(NAME)) == ([True], [False], 1)
        client.release(NAME)
        assert await broker.hear() == (bus.RELEASE, 0, NAME) and client.admitted(NAME) == 0

    run(scenario, tmp_path)


def test_each_broker_is_told(tmp_path: Path) -> None:
    """A new broker hears what is held before COMPLETE, and every question without an answer behind it."""

    async def scenario(client: BusClient, broker: FakeBroker) -> None:
        held = [asked(client) for _ in range(3)]
        await broker.say(*[bus.encode(bus.ADMITTED, await hear_admit(broker), b"\1") for _ in held])
        await until(lambda: all(held))
        waiting = asked(client)
        request = await hear_admit(broker)
        broker.hang_up()
        while not client.unready:  # to its very turn: the next link is soon made
            await asyncio.sleep(0)
        client.release(NAME)  # nobody to tell: the table will
        later = asked(client)
        assert await hear_table(broker) == {NAME: 2}
        assert await hear_admit(broker) == request
        await broker.say(
            bus.encode(bus.ADMITTED, request, b"\0"), bus.encode(bus.ADMITTED, await hear_admit(broker), b"\1")
        )
        await until(lambda: waiting and later)
        assert (waiting, later, client.admitted(NAME)) == ([False], [True], 3)

    run(scenario, tmp_path)


def test_nothing_is_said_where_nothing_is_limited(tmp_path: Path) -> None:
    """Without admissions a key table is what it was."""

    async def scenario(client: BusClient, broker: FakeBroker) -> None:
        broker.hang_up()
        await until(lambda: client.unready)
        assert await hear_table(broker) == {}

    run(scenario, tmp_path)
