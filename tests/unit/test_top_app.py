"""`fastpush top` without a server: what the screen shows, what keys do, and how figures read."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from textual.pilot import Pilot

from fastpush.cli import main
from fastpush.cli import top as command
from fastpush.cli.figures import ALARM, PLAIN, WARNING, age, decimal, drops_style, lag_style, number, size
from fastpush.cli.top_app import BAR_SECONDS, Figures, TopApp, bars
from fastpush.control_client import ControlError
from fastpush.errors import ConfigError
from fastpush.protocol.insight import Busy, Point, Top, Why, WorkerFigures
from tests.chaos.load import until

NOON_SECONDS = 1_795_000_000.0
EVERY_SECONDS = 0.1
HOSTILE = ("[bold red]x[/]", "\x1b[31mred\x07", "two\nlines", "\u202eevil", "日本語ユーザー", "a" * 500, "[/", "")


def worker(slot: int, **figures: Any) -> WorkerFigures:
    given: dict[str, Any] = {
        "worker": slot + 2, "pid": 4000 + slot, "connections": 100, "slow_connections": 0, "pushes": 10.0,
        "deliveries": 1000.0, "gathering": 1.5, "lag_ms": 1.0, "queue_bytes": 0, "drops": 0.0, "uptime_seconds": 60.0,
        "is_stale": False,
    }  # fmt: skip
    return WorkerFigures(slot=slot, **(given | figures))


def point(seconds: float = NOON_SECONDS, **figures: Any) -> Point:
    given: dict[str, Any] = {
        "connections": 12345, "pushes": 678.0, "deliveries": 91011.0, "p50_ms": 0.81, "p99_ms": 4.13, "drops": 0.0,
        "queue_bytes": 1_200_000, "lags_ms": [(2, 1.0), (3, 7.5)],
    }  # fmt: skip
    return Point(seconds=seconds, **(given | figures))


class FakeServer:
    """Answers at once with `now`, or with `failure`; keeps what it was asked to drain."""

    def __init__(self, workers: Sequence[WorkerFigures] | None = None, **members: Any) -> None:
        given = {
            "version": "9.8.7",
            "point": point(),
            "users": [],
            "channels": [],
            "busy_seconds": 5.0,
            "actions": True,
        }
        self.now = Top(workers=list(workers or (worker(0), worker(1))), **(given | members))
        self.hour = [point(NOON_SECONDS - ago) for ago in range(100, 0, -1)]
        self.failure = ""
        self.asked: list[dict[str, Any]] = []
        self.drained: list[int] = []

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        if self.failure:
            raise ControlError(self.failure)
        answers = {"top": self.now, "hour": {"points": self.hour}, "why": why(question.get("user", ""))}
        answer: dict[str, Any] = msgspec.to_builtins(answers[question["ask"]])
        return answer

    def drain(self, slot: int) -> float:
        if self.failure:
            raise ControlError(self.failure)
        self.drained.append(slot)
        return 10.0

    def change(self, **members: Any) -> None:
        self.now = msgspec.structs.replace(self.now, **members)


def why(user: str) -> Why:
    return Why(
        user=user, asked_seconds=NOON_SECONDS, since_seconds=NOON_SECONDS - 60, workers=2, missing=0, connections=[],
        connections_left_out=0, notes=[], strangers=[], pushes=[], lost=[], findings=[f"Nothing of [b]{user}."],
    )  # fmt: skip


class Screen:
    """A running view and what can be seen of it."""

    def __init__(self, pilot: Pilot[None], server: FakeServer) -> None:
        self.pilot = pilot
        self.server = server
        self.app = pilot.app

    @property
    def lines(self) -> list[str]:
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def order(self, table: str = "workers") -> list[str]:
        """The first texts of a table's rows, from the top."""
        found = self.app.query_one(f"#{table}", Figures)
        return [found.get_row_at(row)[0].plain.strip() for row in range(found.row_count)]

    @property
    def selected(self) -> WorkerFigures:
        return self.app.query_one("#workers", Figures).selected

    async def shows(self, *texts: str) -> None:
        await until(lambda: all(text in self.text for text in texts), what=f"{texts} on the screen\n{self.text}")

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def look(self) -> None:
        """Return when a question that was asked from now on has been answered and shown."""
        asked = len(self.server.asked)
        await until(lambda: len(self.server.asked) > asked + 1, what="another look")
        await self.pilot.pause()


def watch(
    server: FakeServer, steps: Callable[[Screen], Awaitable[None]], *, columns: int = 80, rows: int = 24
) -> TopApp:
    """Run the view in a terminal of that size, and the steps in it."""
    app = TopApp(server, server.now, EVERY_SECONDS)

    async def run() -> None:
        async with app.run_test(size=(columns, rows)) as pilot:
            screen = Screen(pilot, server)
            await screen.shows("fastpush 9.8.7", "worker-2")
            await steps(screen)

    asyncio.run(run())
    return app


# -- what it shows --------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 60), (111, 36), (40, 10)])
def test_every_size_shows_the_figures(columns: int, rows: int) -> None:
    """Figures, workers and keys are seen in a small terminal and in a large one, and no line is wider than it."""

    async def steps(screen: Screen) -> None:
        await screen.shows("2 workers", "connections", "p50", "worker-2", "worker-3")
        assert len(screen.lines) == rows
        if columns >= 80:
            await screen.shows(
                "678", "91,011", "drops/s 0", "queue 1.2 MB", "worst lag 7.5 ms worker-3", "busiest user"
            )
            await screen.shows("q quit", "? help", "up" if columns < 112 else "gathering")
            assert screen.app.query_one("#workers", Figures).max_scroll_x == 0

    watch(FakeServer(users=[Busy("jack", 1, 2)]), steps, columns=columns, rows=rows)


def test_a_resize_keeps_selection_and_order() -> None:
    """When the terminal becomes wide, headings become long; the selected worker and the order stay."""

    async def steps(screen: Screen) -> None:
        await screen.press("r", "down")
        assert screen.order() == ["1", "0"] and screen.selected.slot == 0
        await screen.pilot.resize_terminal(200, 60)
        await screen.shows("deliveries/s", "gathering", "p99 ms 4.1", "worst lag ms 7.5")
        assert screen.order() == ["1", "0"] and screen.selected.slot == 0
        await screen.pilot.resize_terminal(80, 24)
        await screen.shows("gather", "deliv/s")
        assert screen.order() == ["1", "0"] and screen.selected.slot == 0

    watch(FakeServer(), steps)


def test_hostile_names_show_as_text() -> None:
    """Markup in names is shown as it is written; what moves cursors or turns text round is escaped; too much is cut."""

    async def steps(screen: Screen) -> None:
        await screen.shows(
            "[bold red]x[/]", '"\\u001b[31mred\\u0007"', '"two\\nlines"', '"\\u202eevil"', "日本語", "aaa…"
        )
        assert all(line.isprintable() for line in screen.lines)
        assert sorted(screen.order("users")) != [] and len(screen.order("users")) == len(HOSTILE)

    named = [Busy(name, 1.0, float(index)) for index, name in enumerate(HOSTILE)]
    watch(FakeServer(users=named, channels=named), steps)


def test_new_figures_replace_old_ones() -> None:
    """Each look shows what the server says then: another worker in a slot, other users, none at last."""

    async def steps(screen: Screen) -> None:
        await screen.shows("jack")
        workers = [worker(0, worker=9, connections=77), worker(1)]
        screen.server.change(
            workers=workers, users=[Busy("jim", 3, 4)], point=point(NOON_SECONDS + 1, connections=4711)
        )
        await screen.shows("worker-9", "4,711", "jim")
        assert "worker-2" not in screen.text and "jack" not in screen.text
        screen.server.change(users=[])
        await screen.look()
        assert "jim" not in screen.text

    watch(FakeServer(users=[Busy("jack", 1, 2)]), steps)


def test_the_last_hour_is_there_at_once() -> None:
    """The plots begin with what the server remembers, not with the first look."""

    async def steps(screen: Screen) -> None:
        await screen.shows("█" * 15)

    watch(FakeServer(), steps)


def test_a_stale_worker_says_so() -> None:
    """A worker that does not measure any more is marked in words, for who sees no colour."""

    async def steps(screen: Screen) -> None:
        assert "stale" in next(line for line in screen.lines if "worker-3  " in line and "p50" not in line)
        assert "stale" not in next(line for line in screen.lines if "worker-2  " in line)

    watch(FakeServer([worker(0), worker(1, is_stale=True)]), steps)


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}])
def test_colours_only_where_they_mean_something(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal's own colours but for a late loop and drops; with NO_COLOR none at all."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    async def steps(screen: Screen) -> None:
        app, coloured = screen.app, {}
        for line in app.screen._compositor.render_strips():
            strip = line
            for line_filter in app._filters:
                strip = strip.apply_filter(line_filter, app.screen.styles.background) if line_filter.enabled else strip
            for text, style, _ in strip:
                assert style is None or style.bgcolor is None or style.bgcolor.is_default
                if style is not None and style.color is not None and not style.color.is_default:
                    coloured[text.strip()] = style.color.name
        lags = {"60.0": "yellow", "700": "red", "3.0": "red"}
        assert coloured == ({} if environ else lags)

    workers = [worker(0), worker(1, lag_ms=60.0), worker(2, lag_ms=700.0), worker(3, drops=3.0)]
    watch(FakeServer(workers), steps)


# -- keys -----------------------------------------------------------------------------


def test_columns_sort_by_key_and_click() -> None:
    """s sorts by the next column, r the other way round, a click on a heading by that; a heading says so."""

    async def steps(screen: Screen) -> None:
        assert screen.order() == ["0", "1", "2"]
        await screen.shows("slot↑")
        await screen.press("s", "s", "s")
        await screen.shows("conns↓")
        assert screen.order() == ["1", "2", "0"]
        await screen.press("r")
        await screen.shows("conns↑")
        assert screen.order() == ["0", "2", "1"]
        heading = next(line for line in screen.lines if "conns" in line)
        await screen.pilot.click("#workers", offset=(heading.index("lag"), 0))
        await screen.shows("lag↓")
        assert screen.order() == ["2", "0", "1"]
        await screen.press("tab", "s")
        await screen.shows("busiest user↑")

    workers = [worker(0, connections=1, lag_ms=5.0), worker(1, connections=3), worker(2, connections=2, lag_ms=9.0)]
    watch(FakeServer(workers), steps)


def test_the_selected_worker_stays_selected() -> None:
    """The cursor follows its worker when figures put it elsewhere, and when other workers come and go."""

    async def steps(screen: Screen) -> None:
        await screen.press("s", "s", "s", "down")
        assert screen.selected.slot == 1
        screen.server.change(workers=[worker(0, connections=2), worker(1, connections=9), worker(2, connections=1)])
        await until(lambda: screen.order() == ["1", "0", "2"], what="the new order")
        assert screen.selected.slot == 1
        screen.server.change(workers=[worker(1), worker(3, connections=1000)])
        await until(lambda: screen.order() == ["3", "1"], what="the new workers")
        assert screen.selected.slot == 1

    watch(FakeServer([worker(0, connections=9), worker(1, connections=5), worker(2, connections=1)]), steps)


def test_a_drain_is_asked_about_first() -> None:
    """d names the worker and does nothing until y; n leaves it; what the server replies is told."""

    async def steps(screen: Screen) -> None:
        await screen.press("down", "d")
        await screen.shows("drain worker 1 (worker-3, 100 connections)? y/n")
        await screen.press("n")
        await screen.look()
        assert "y/n" not in screen.text and screen.server.drained == []
        await screen.press("y")
        await screen.press("d", "y")
        await screen.shows("worker 1 drains over 10 seconds, once its successor is ready")
        assert screen.server.drained == [1]

    watch(FakeServer(), steps)


def test_a_worker_that_has_ended_is_not_drained() -> None:
    """Of a worker that ended after the question its successor is not drained instead."""

    async def steps(screen: Screen) -> None:
        await screen.press("d")
        screen.server.change(workers=[worker(0, worker=9), worker(1)])
        await screen.shows("worker-9")
        await screen.press("y")
        await screen.shows("worker-2 has ended meanwhile")
        assert screen.server.drained == []

    watch(FakeServer(), steps)


def test_without_actions_nothing_is_drained() -> None:
    """Where the configuration allows no actions, d says what to set, and y after it does nothing."""

    async def steps(screen: Screen) -> None:
        await screen.press("d")
        await screen.shows("[admin] actions = true")
        await screen.press("y")
        await screen.look()
        assert screen.server.drained == []

    watch(FakeServer(actions=False), steps)


def test_a_refused_drain_is_told() -> None:
    """What the server says against a drain is shown."""

    async def steps(screen: Screen) -> None:
        await screen.press("d", "p")  # paused: it does not look, so that only the drain fails
        screen.server.failure = "worker 0 drains already"
        await screen.press("y")
        await screen.shows("worker 0: worker 0 drains already")

    watch(FakeServer(), steps)


def test_pause_holds_the_figures() -> None:
    """p keeps what is shown and asks nothing more; p again goes on."""

    async def steps(screen: Screen) -> None:
        await screen.press("p")
        await screen.shows("paused")
        await until(lambda: not screen.app._is_asking, what="the answer to what was asked before")
        screen.server.change(point=point(NOON_SECONDS + 1, connections=4711))
        asked = len(screen.server.asked)
        screen.app._look()
        assert len(screen.server.asked) == asked and not screen.app._is_asking
        assert "4,711" not in screen.text
        await screen.press("p")
        await screen.shows("4,711")
        assert "paused" not in screen.text

    watch(FakeServer(), steps)


def test_why_and_help_open_and_close() -> None:
    """w shows what is known of the selected user as text, ? what keys and figures mean; a key goes back."""

    async def steps(screen: Screen) -> None:
        await screen.press("w")
        await screen.shows("Nothing of [b]jim.")
        await screen.press("escape")
        await screen.shows("busiest user")
        await screen.press("question_mark")
        await screen.shows("messages a write")
        await screen.press("down", "q")
        await screen.shows("busiest user")

    watch(FakeServer(users=[Busy("jack", 1, 2), Busy("jim", 1, 3)]), steps)


def test_why_without_a_user_says_so() -> None:
    """Where nobody was sent anything, w names the command that tells of any user."""

    async def steps(screen: Screen) -> None:
        await screen.press("w")
        await screen.shows("`fastpush why USER`")

    watch(FakeServer(), steps)


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_it_ends_with_zero(key: str) -> None:
    """q and Ctrl-C end it, with exit code 0."""

    async def steps(screen: Screen) -> None:
        await screen.press(key)

    assert watch(FakeServer(), steps).return_code == 0


# -- a server that does not answer -----------------------------------------------------


def test_a_server_that_is_away_is_waited_for() -> None:
    """Without an answer the last figures stay, with what is wrong and since when; it goes on later."""

    async def steps(screen: Screen) -> None:
        await screen.look()
        screen.server.failure = "no server answers at /run/x: Connection refused"
        await screen.shows("no answer since", "Connection refused", "12,345", "worker-3")
        since = next(line for line in screen.lines if "no answer" in line)
        await screen.look()
        assert next(line for line in screen.lines if "no answer" in line) == since
        hours = sum(question["ask"] == "hour" for question in screen.server.asked)
        screen.server.change(version="9.9.0")
        screen.server.failure = ""
        await screen.shows("fastpush 9.9.0")
        assert "no answer" not in screen.text
        assert sum(question["ask"] == "hour" for question in screen.server.asked) > hours  # what it missed

    watch(FakeServer(), steps)


def test_keys_are_answered_while_the_server_is_not() -> None:
    """A question that is not answered holds up neither sorting nor q."""

    async def steps(screen: Screen) -> None:
        asked, answer = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def ask(_: dict[str, Any]) -> dict[str, Any]:
            loop.call_soon_threadsafe(asked.set)
            asyncio.run_coroutine_threadsafe(answer.wait(), loop).result()
            raise ControlError("late")

        screen.server.ask = ask  # type: ignore[method-assign]
        await asked.wait()
        await screen.press("r")
        await screen.shows("slot↓")
        answer.set()
        await screen.shows("late")

    watch(FakeServer(), steps)


# -- told once --------------------------------------------------------------------------


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> Iterator[CliRunner]:
    monkeypatch.setattr(command_module(), "Server", lambda _: server)
    yield CliRunner()


def command_module() -> Any:
    return sys.modules[command.callback.__module__]


def test_without_a_terminal_it_prints_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a terminal: the figures of now in plain text, names escaped, nothing that moves cursors, exit code 0."""
    named = [Busy(name, 1.0, 2.0) for name in HOSTILE]
    with answering(monkeypatch, FakeServer(users=named)) as runner:
        result = runner.invoke(main, ["top"])
    assert result.exit_code == 0, result.output
    assert "fastpush 9.8.7" in result.stdout and "connections 12,345" in result.stdout
    assert "worker-2" in result.stdout and "worst lag 7.5 ms worker-3" in result.stdout
    assert "[bold red]x[/]" in result.stdout and '"\\u001b[31mred\\u0007"' in result.stdout
    assert all(character.isprintable() or character == "\n" for character in result.stdout)


def test_a_stale_worker_is_named_where_health_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last figures say nothing of how it is now, so it stands beside them."""
    with answering(monkeypatch, FakeServer([worker(0), worker(1, is_stale=True)])) as runner:
        assert "\nstale worker-3  p50 " in runner.invoke(main, ["top"]).stdout
    with answering(monkeypatch, FakeServer([worker(slot, is_stale=True) for slot in range(3)])) as runner:
        assert "\nstale 3 workers  p50 " in runner.invoke(main, ["top"]).stdout
    with answering(monkeypatch, FakeServer()) as runner:
        assert "stale" not in runner.invoke(main, ["top"]).stdout


def test_printed_once_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 80 columns each worker, and the headings, still have one line, whatever the figures are."""
    much: dict[str, Any] = {
        "worker": 1234, "pid": 4_194_304, "connections": 123_456, "slow_connections": 1234, "pushes": 123_456.0,
        "deliveries": 9_876_543.0, "gathering": 123.4, "lag_ms": 12_345.6, "queue_bytes": 268_435_456,
        "drops": 123_456.0, "uptime_seconds": 86400.0 * 45,
    }  # fmt: skip
    monkeypatch.setattr(command_module(), "_WIDTH", 80)
    with answering(monkeypatch, FakeServer([worker(slot, **much) for slot in range(2)])) as runner:
        lines = runner.invoke(main, ["top"]).stdout.splitlines()
    heading = next(number for number, line in enumerate(lines) if line.startswith("slot"))
    assert "in logs" in lines[heading] and "deliv/s" in lines[heading] and max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[heading + 1 :]] == [["0", "worker-1234"], ["1", "worker-1234"]]


def test_json_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """--json prints one object, the server's own answer."""
    server = FakeServer(users=[Busy("jack", 1, 2)])
    with answering(monkeypatch, server) as runner:
        result = runner.invoke(main, ["top", "--json"])
    assert result.exit_code == 0
    assert msgspec.json.decode(result.stdout.strip(), type=Top) == server.now


@pytest.mark.parametrize(("error", "code"), [(ControlError("no server is running"), 1), (ConfigError("bad file"), 2)])
def test_no_server_is_a_plain_message(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, or a configuration that says where it is, it ends with the reason."""
    server = FakeServer()

    def ask(_: dict[str, Any]) -> dict[str, Any]:
        raise error

    monkeypatch.setattr(server, "ask", ask)
    with answering(monkeypatch, server) as runner:
        result = runner.invoke(main, ["top"])
    assert result.exit_code == code and str(error) in result.stderr


def test_it_does_not_look_more_often_than_the_server_measures() -> None:
    """--every below a second is refused."""
    result = CliRunner().invoke(main, ["top", "--every", "100ms"])
    assert result.exit_code == 2 and "once a second" in result.stderr


def test_other_commands_do_not_load_what_it_needs() -> None:
    """The terminal interface is loaded by `top` on a terminal alone."""
    script = "import sys, fastpush.cli; print(sorted(name for name in sys.modules if name.startswith('textual')))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- how figures read -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [
        (0, 5, "0"), (0.0, 5, "0"), (0.4, 5, "0.4"), (7, 5, "7"), (7.0, 5, "7.0"), (9.96, 5, "10"),
        (12.3, 5, "12"), (9999, 5, "9,999"),
        (12345, 6, "12,345"), (12345, 5, "12.3k"), (12345, 4, "12k"), (999_960, 5, "1.00M"), (123_456, 5, "123k"),
        (1_234_567, 5, "1.23M"), (5e9, 5, "5.00G"), (1.5e13, 5, "15.0T"),
    ],
)  # fmt: skip
def test_numbers_fit(value: float, width: int, text: str) -> None:
    """A figure is as exact as its column is wide."""
    assert number(value, width) == text
    assert len(text) <= width


def test_sizes_ages_and_lags_fit() -> None:
    """Bytes, times and decimals keep to their columns too."""
    assert [size(value, 6) for value in (0, 999, 1000, 12_345, 1_234_567)] == [
        "0",
        "999 B",
        "1.0 kB",
        "12 kB",
        "1.2 MB",
    ]
    assert [age(value) for value in (0, 59, 60, 7199, 90000)] == ["0s", "59s", "1m", "1h", "1d"]
    assert [decimal(value, 5) for value in (0, 1.04, 99.94, 99.96, 12345)] == ["0.0", "1.0", "99.9", "100", "12.3k"]


def test_limits_of_colours() -> None:
    """A lag of more than 50 ms is a warning, of more than 500 ms an alarm, as is any drop."""
    assert [lag_style(lag_ms) for lag_ms in (50, 50.1, 500, 500.1)] == [PLAIN, WARNING, WARNING, ALARM]
    assert [drops_style(drops) for drops in (0, 0.2)] == [PLAIN, ALARM]


def test_bars_begin_at_zero() -> None:
    """Bars stand on zero, the peak is full, what is small is still seen, and a gap is a gap."""
    assert bars([0, None, 1, 50, 100], 1) == ["  ▁▄█"]
    assert bars([0, None, 1, 50, 100], 2) == ["    █", "  ▁██"]
    assert bars([0, 0], 1) == ["  "]


def test_a_plot_gives_each_bar_its_five_seconds() -> None:
    """A bar is the most of its five seconds; of seconds that nobody measured there is none."""

    async def steps(screen: Screen) -> None:
        await screen.shows("█  █", "█ ██")

    start = NOON_SECONDS - NOON_SECONDS % BAR_SECONDS
    server = FakeServer(point=point(start + 18, connections=20, pushes=0.0, deliveries=0.0))
    figures = ((0, 20), (1, 3), (11, 10), (12, 9))
    server.hour = [point(start + at, connections=n, pushes=0.0, deliveries=0.0) for at, n in figures]
    watch(server, steps)
