"""docs/applications.md is enough: its examples run as they stand, and so does a handler written from it alone."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.programs import FASTPUSH, run
from tests.raw import TEXT, RawClient, build
from tests.server import Server, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "applications.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def example(number: int) -> tuple[str, dict[str, Any]]:
    """The code and the configuration of an example, as they stand in the page."""
    return blocks("python")[number], tomllib.loads(blocks("toml")[number])


Written = Callable[[str, dict[str, Any]], Server]


@pytest.fixture
def written(serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """Write a module, under the name that the configuration gives it, and start two workers with it."""
    monkeypatch.chdir(tmp_path)

    def start(code: str, sections: dict[str, Any]) -> Server:
        module = sections["application"][0]["handler"].partition(":")[0]
        (tmp_path / f"{module}.py").write_text(code)
        server = serve(workers=2, sections=sections)
        check = run(*FASTPUSH, "check", "--config", str(server.config_path))
        assert check.returncode == 0, check.stdout + check.stderr
        return server

    return start


def on_both_workers(server: Server, path: str, *users: str, **parameters: Any) -> list[RawClient]:
    """A client of each user, on one worker and the other in turn."""
    workers = sorted(process["number"] for process in server.processes("worker"))
    found: list[RawClient] = []
    while len(found) < len(users):
        client = RawClient(server, path, token=users[len(found)], **parameters)
        if server.worker_of(client.port) == workers[len(found) % 2]:
            found.append(client)
        else:
            client.reset()
    return found


def text_with(client: RawClient, prefix: str) -> str:
    """The next message that begins so."""
    while not (text := client.read_text()).startswith(prefix):
        pass
    return text


def test_the_example_in_twenty_lines(written: Written) -> None:
    """The example runs as it stands on two workers: who is in a room hears the others, is told how many have heard it,
    what was said before, and who leaves; another room hears nothing of it.
    """
    code, sections = example(0)
    assert len(code.splitlines()) <= 20
    server = written(code, sections)
    jack, rose = on_both_workers(server, "/rooms", "jack", "rose", room="tea")
    elsewhere = RawClient(server, "/rooms", token="jill")
    assert elsewhere.read_text() == "you are in hall"
    assert text_with(jack, "you") == text_with(rose, "you") == "you are in tea"
    jack.text("hello")
    assert text_with(rose, "jack:") == "jack: hello"
    assert text_with(jack, "1") == "1 heard you"
    rose.text("hi")
    assert text_with(jack, "rose:") == "rose: hi"
    late = RawClient(server, "/rooms", token="joan", room="tea")
    assert [late.read_text() for _ in range(3)] == ["jack: hello", "rose: hi", "you are in tea"]
    rose.reset()
    assert text_with(jack, "rose") == late.read_text() == "rose has left"
    elsewhere.is_alive()


def test_the_example_of_options(written: Written) -> None:
    """The example of options runs as it stands: its heartbeat and its limits apply, a wrong option is refused."""
    code, sections = example(1)
    server = written(code, sections)
    for client in on_both_workers(server, "/ticker", "jack", "rose"):
        assert client.read_text() == "heartbeat"
        client.is_alive()
        client.send(build(TEXT, b"x" * 1025))
        assert client.read_close()[0] == 1009
    for wrong, expected in (({"kept": 0}, "`int` >= 1"), ({"currencies": "USD"}, "unknown field `currencies`")):
        entry = sections["application"][0] | {"options": wrong}
        server.write_config(2, {"application": [entry]})
        check = run(*FASTPUSH, "check", "--config", str(server.config_path))
        said = " ".join(check.stdout.split())
        assert check.returncode == 2 and "[[application]] number 1, options" in said and expected in said, said


# What somebody writes who has read the page and nothing else.
STRANGERS_TICKER = '''
import json
import logging
from typing import Annotated

import msgspec

from fastpush.applications import Application, Options

log = logging.getLogger("fastpush.application.prices")


class PricesOptions(Options):
    feeders: list[str] = []
    kept: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3


class Prices(Application):
    """Prices by symbol: who has subscribed to one gets every tick of it, anybody may ask for the last."""

    options_class = PricesOptions
    default_limits = {"message_bytes": 256, "slow_policy": "drop-oldest"}

    def channels(self, request):
        return [self._channel(symbol) for symbol in request.query.getall("symbol", [])]

    def on_open(self, connection, request):
        connection.data = set(request.query.getall("symbol", []))
        log.info("subscribed by URL")

    async def on_message(self, connection, data):
        word, _, rest = data.partition(" ")
        match word:
            case "subscribe":
                await self.server.join(connection, self._channel(rest), replay=True)
                connection.data.add(rest)
                connection.send("ok")
            case "unsubscribe":
                self.server.leave(connection, self._channel(rest))
                connection.data.discard(rest)
                connection.send("ok")
            case "symbols":
                connection.send(" ".join(sorted(connection.data)))
            case "last":
                kept = await self.server.history(self._channel(rest))
                connection.send(kept[-1] if kept else f"{rest} ?")
            case "tick" if connection.user in self.options.feeders:
                symbol, price = rest.split()
                reached = await self.server.publish(self._channel(symbol), f"{symbol} {price}", keep=self.options.kept)
                connection.send(f"to {reached}")
            case _:
                connection.close(4400, f"not for you: {word}")

    def on_close(self, connection, code, reason):
        log.info("gone")

    def _channel(self, symbol):
        return f"prices:{symbol}"
'''


def test_a_strangers_handler(written: Written) -> None:
    """A ticker with a channel for each symbol and private replies: subscribed by URL or message, on two workers,
    clients get the ticks of their symbols in order, whoever comes later what is kept, and "last" is answered to who
    asked alone.
    """
    entry = {"path": "/prices", "handler": "prices:Prices", "options": {"feeders": ["feeder"]}}
    server = written(STRANGERS_TICKER, {"application": [entry]})
    feeder, jack, rose = on_both_workers(server, "/prices", "feeder", "jack", "rose")
    jill, joan = on_both_workers(server, "/prices", "jill", "joan", symbol=["AAPL", "MSFT"])

    def tick(symbol: str, price: str, expected: int) -> None:
        feeder.text(f"tick {symbol} {price}")
        assert feeder.read_text() == f"to {expected}"

    def ask(client: RawClient, text: str) -> str:
        client.text(text)
        return client.read_text()

    tick("AAPL", "1", 2)  # who came by URL has it from the first moment
    assert [ask(client, "subscribe AAPL") for client in (jack, rose)] == ["AAPL 1"] * 2
    assert [client.read_text() for client in (jack, rose)] == ["ok"] * 2
    for price in range(2, 12):
        tick("AAPL", str(price), 4)
        tick("MSFT", str(price), 2)
    own = [f"AAPL {price}" for price in range(2, 12)]
    for client in (jack, rose):
        assert [client.read_text() for _ in own] == own
    for client in (jill, joan):
        texts = [client.read_text() for _ in range(21)]
        for symbol, first in (("AAPL", 1), ("MSFT", 2)):
            assert [t for t in texts if t.startswith(symbol)] == [f"{symbol} {price}" for price in range(first, 12)]

    assert ask(jack, "last AAPL") == "AAPL 11" and ask(rose, "last MSFT") == "MSFT 11"
    assert ask(jack, "last TSLA") == "TSLA ?"
    assert ask(jill, "symbols") == "AAPL MSFT"
    assert ask(rose, "unsubscribe AAPL") == "ok"
    tick("AAPL", "12", 3)
    assert [client.read_text() for client in (jack, jill, joan)] == ["AAPL 12"] * 3
    assert ask(rose, "subscribe AAPL") == "AAPL 10"  # the last three, as the options say
    assert [rose.read_text() for _ in range(3)] == ["AAPL 11", "AAPL 12", "ok"]
    jack.text("tick AAPL 0")
    assert jack.read_close() == (4400, "not for you: tick")
    for client in (rose, jill, joan):
        client.is_alive()  # and nothing before that
    assert len(eventually(lambda: server.events("subscribed by URL"))) >= 5
    assert json.loads(server.request("GET", "/online")[2])["connections"] == 0  # nobody is present anywhere
