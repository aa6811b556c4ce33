"""The live view of `fastpush top`. Nothing else may import this: it loads textual.

One timer asks the server in a thread, so that keys are answered while the server is not; each answer is shown whole.
While there is none the last figures stay in place, dimmed, with what is wrong and since when.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, ClassVar, Generic, Protocol

import msgspec
from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import DataTable, Footer, Static

from fastpush.cli.common import count_of
from fastpush.cli.debug import printable
from fastpush.cli.figures import (
    ALARM,
    PLAIN,
    WARNING,
    WIDE_COLUMNS,
    WORKER_COLUMNS,
    Column,
    Row,
    busy_columns,
    health,
    number,
    row_style,
)
from fastpush.cli.why import print_report
from fastpush.errors import FastpushError
from fastpush.protocol.control import TOLD_BYTES_MAX
from fastpush.protocol.insight import POINTS_MAX, Point, Top, Why, WorkerFigures

NAME_CHARACTERS_MAX = 48  # or figures stand far from what they are about
BAR_SECONDS = 5
_BARS = " ▁▂▃▄▅▆▇█"
_QUESTION = Style(bold=True, reverse=True)
_SAID_SECONDS = 15.0
HOUR_BYTES = TOLD_BYTES_MAX - 1024  # most of an hour that the control socket brings; of few workers half an hour
_HELP = (
    ("Up, Down", "select a row; Tab goes to the next table"),
    ("s, r", "sort by the next column, reverse; so does a click on a heading"),
    ("d", "drain the selected worker: a successor takes its place first"),
    ("w", "why the selected user gets its pushes, or does not"),
    ("p", "pause, go on"),
    ("q", "end; the server goes on"),
    ("", ""),
    ("slot, in logs", "what `fastpush drain` takes, and the process there now"),
    ("slow", "connections that messages wait for"),
    ("pushes/s", "requests and publications to channels that were taken"),
    ("deliveries/s", "messages handed to connections"),
    ("gathering", "messages a write; it grows with the load"),
    ("lag ms", "how late the event loop is: yellow above 50, red above 500"),
    ("queue", "bytes that wait for slow connections"),
    ("drops/s", "messages that slow connections did not get"),
    ("p50, p99", "of the time from a push to its answer"),
    ("stale", "a worker that has not measured for two seconds"),
    ("", ""),
    ("", "A bar is the most within five seconds, from zero to the peak of"),
    ("", "those that are shown."),
)


class Source(Protocol):
    """The server that is watched. Both calls block for seconds at most. Raises: FastpushError, from both."""

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a question of protocol/insight.py."""

    def drain(self, slot: int) -> float:
        """Have a worker drained; return over how many seconds."""


def bars(values: Sequence[float | None], height: int) -> list[str]:
    """Return a plot of `height` lines from zero to the greatest value, one character a value; None: unknown, a gap."""
    peak = max((value for value in values if value is not None), default=0) or 1
    eighths = [0 if value is None else max(round(value / peak * height * 8), value > 0) for value in values]
    return ["".join(_BARS[min(max(high - 8 * line, 0), 8)] for high in eighths) for line in reversed(range(height))]


class Plot(Widget):
    """One figure: now, and its course, newest at the right; the most within BAR_SECONDS a bar."""

    def __init__(self, label: str, value: Callable[[Point], float | None]) -> None:
        super().__init__()
        self._label = label
        self._value = value
        self._points: Sequence[Point] = ()

    def show(self, points: Sequence[Point]) -> None:
        """Show these points, oldest first; at least one."""
        self._points = points
        self.refresh()

    def render(self) -> Text:
        if not self._points:
            return Text(self._label)
        width, height = self.size
        values = self._most(width)
        now = self._value(self._points[-1])
        head = Text.assemble(f"{self._label} ", ("-" if now is None else number(now, 11), "bold"))
        peak = max((value for value in values if value is not None), default=0)
        aside = f"peak {number(peak, 9)} in {width * BAR_SECONDS // 60} min"
        if (room := width - head.cell_len - len(aside)) > 1:
            head.append(" " * room).append(aside, "dim")
        return Text("\n", no_wrap=True, overflow="crop").join(
            [head, *(Text(line, "dim") for line in bars(values, height - 1))]
        )

    def _most(self, width: int) -> list[float | None]:
        """Return a value for each character. Five seconds begin at the same times for all, or bars would change."""
        last = int(self._points[-1].seconds // BAR_SECONDS)
        most: list[float | None] = [None] * width
        for point in reversed(self._points):
            ago = last - int(point.seconds // BAR_SECONDS)
            if ago >= width:
                break
            if (value := self._value(point)) is not None:
                most[-1 - ago] = max(value, most[-1 - ago] or 0)
        return most


_PLOTS: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
    ("connections", lambda point: point.connections),
    ("pushes/s", lambda point: point.pushes),
    ("deliveries/s", lambda point: point.deliveries),
    ("p99 ms", lambda point: point.p99_ms),
    ("worst lag ms", lambda point: max((lag_ms for _, lag_ms in point.lags_ms), default=None)),
    ("drops/s", lambda point: point.drops),
)
"""The first three are always shown, the others where there is room."""


class Cell(Text):
    """A cell's text, as long as its column is wide, and what its column is sorted by."""

    def __init__(self, text: str, style: Style, width: int, *, is_name: bool, value: float | str = 0) -> None:
        super().__init__(text, style, end="")
        self.truncate(width, overflow="ellipsis")
        self.align("left" if is_name else "right", width)
        self.value = value


class Figures(DataTable[Cell], Generic[Row]):
    """A table that is sorted by any column, and keeps its selected row wherever that goes.

    key: tells rows apart from one answer to the next.  sorted_by: index of the column at first; the most comes
    first, but in the very first column, of numbers or names, the lowest.
    """

    def __init__(
        self, columns: tuple[Column[Row], ...], key: Callable[[Row], str], *, sorted_by: int, name: str
    ) -> None:
        super().__init__(cursor_type="row", cell_padding=0, cursor_foreground_priority="renderable", id=name)
        self._of = columns
        self._key = key
        self._sorted_by = sorted_by
        self._is_reversed = sorted_by > 0
        self._told: dict[str, Row] = {}
        self._widths: list[int] = []
        self._is_wide = False

    @property
    def selected(self) -> Row | None:
        """What the cursor is on; None in an empty table."""
        key = self._selected_key()
        return None if key is None else self._told[key]

    def show(self, rows: Sequence[Row]) -> None:
        """Show these rows instead; before the first layout they wait for it."""
        selected = self._selected_key()
        self._told = {self._key(row): row for row in rows}
        if not self._widths:
            return
        shown = {str(key.value) for key in self.rows}
        for key in shown - self._told.keys():
            self.remove_row(key)
        for key, row in self._told.items():
            cells = self._cells(row)
            if key in shown:
                for index, cell in enumerate(cells):
                    self.update_cell(key, str(index), cell)
            else:
                self.add_row(*cells, key=key)
        self._arrange(selected)

    def sort_by(self, column: int) -> None:
        """Sort by this column; by the one that it is sorted by, the other way round."""
        is_same = column == self._sorted_by
        self._is_reversed = not self._is_reversed if is_same else column > 0
        self._sorted_by = column
        for index, heading in enumerate(self._headings()):
            self.ordered_columns[index].label = heading
        self._arrange(self._selected_key())

    def action_sort_next(self) -> None:
        """Sort by the next column at the right, and behind the last by the first."""
        self.sort_by((self._sorted_by + 1) % len(self._of))

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self.sort_by(self._sorted_by)

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sort by the heading that was clicked on."""
        self.sort_by(event.column_index)

    def on_resize(self) -> None:
        """Give the columns the room that there is now."""
        is_wide = self.app.size.width >= WIDE_COLUMNS
        widths = [
            max(len(column.title), column.width) if is_wide else max(len(column.short), column.short_width)
            for column in self._of
        ]
        left = self.size.width - sum(widths) - len(widths) - self.scrollbar_size_vertical
        for index, column in enumerate(self._of):
            if column.is_name:
                widths[index] = max(widths[index], min(widths[index] + left, NAME_CHARACTERS_MAX))
        if widths == self._widths:
            return
        self._widths, self._is_wide = widths, is_wide
        selected = self._selected_key()
        self.clear(columns=True)
        for index, heading in enumerate(self._headings()):
            self.add_column(heading, width=widths[index] + 1, key=str(index))
        self.show(list(self._told.values()))
        self._arrange(selected)

    def _headings(self) -> list[Text]:
        arrow = "↓" if self._is_reversed else "↑"
        headings: list[Text] = []
        for index, (column, width) in enumerate(zip(self._of, self._widths, strict=True)):
            title = column.title if self._is_wide else column.short
            mark = arrow if index == self._sorted_by else " "
            headings.append(Cell(title + mark, PLAIN, width + 1, is_name=column.is_name))
        return headings

    def _cells(self, row: Row) -> list[Cell]:
        style = row_style(row)
        return [
            Cell(
                column.text(row, width),
                style or column.style(row),
                width,
                is_name=column.is_name,
                value=column.value(row),
            )
            for column, width in zip(self._of, self._widths, strict=True)
        ]

    def _selected_key(self) -> str | None:
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value if self.row_count else None

    def _arrange(self, selected: str | None) -> None:
        self.sort(str(self._sorted_by), key=lambda cell: cell.value, reverse=self._is_reversed)
        if selected in self._told:
            self.move_cursor(row=self.get_row_index(selected), scroll=False)


class Page(ModalScreen[None]):
    """Text over the figures, until a key is pressed that does not scroll it."""

    _SCROLLING: ClassVar = frozenset({"up", "down", "pageup", "pagedown", "home", "end"})

    def __init__(self, text: Text) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(self._text)
        yield Static(Text("Up and Down scroll, any other key goes back", Style(dim=True)))

    def on_key(self, event: events.Key) -> None:
        """Go back."""
        if event.key not in self._SCROLLING:
            event.stop()
            self.dismiss()


# What threads tell the view; an answer that comes after its end is dropped.


@dataclass
class Told(Message):
    """The figures of now, and what there was before where that was asked."""

    now: Top
    hour: list[Point]


@dataclass
class Missed(Message):
    """The server has not answered; `text` says why."""

    text: str


@dataclass
class Said(Message):
    """What has become of a command."""

    text: str
    style: Style = PLAIN


@dataclass
class Explained(Message):
    """All that is known of a user."""

    why: Why


class TopApp(App[None]):
    """Figures of a server, asked again and again.

    Args: server: where they come from.  first: to begin with.  every_seconds: time between two questions.
    """

    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "top.tcss"
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012 - declared without ClassVar by textual
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "table('sort_next')", "sort"),
        Binding("r", "table('reverse')", "reverse"),
        Binding("d", "drain", "drain"),
        Binding("p", "pause", "pause"),
        Binding("w", "why", "why"),
        Binding("question_mark", "explain", "help", key_display="?"),
        Binding("y", "answer(True)", show=False),
        Binding("n,escape", "answer(False)", show=False),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, server: Source, first: Top, every_seconds: float) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"  # with that the terminal's own colours, be it light or dark
        self._server = server
        self._now = first
        self._every_seconds = every_seconds
        self._points: deque[Point] = deque([first.point], maxlen=POINTS_MAX)
        self._has_hour = False
        self._is_paused = False
        self._is_asking = False
        self._missed = ""  # why nothing is answered
        self._to_drain: WorkerFigures | None = None  # until the question is answered
        self._said = Text()
        self._title, self._health, self._notice = Static(id="title"), Static(id="health"), Static(id="notice")
        self._plots = [Plot(label, value) for label, value in _PLOTS]
        self._worker_table = Figures(WORKER_COLUMNS, lambda row: str(row.worker), sorted_by=0, name="workers")
        self._user_table = Figures(busy_columns("user"), lambda row: row.name, sorted_by=2, name="users")
        self._channel_table = Figures(busy_columns("channel"), lambda row: row.name, sorted_by=2, name="channels")

    def compose(self) -> ComposeResult:
        yield self._title
        with Horizontal(classes="plots"):
            yield from self._plots[:3]
        with Horizontal(classes="plots", id="more"):
            yield from self._plots[3:]
        yield self._health
        yield self._notice
        yield self._worker_table
        with Horizontal(id="busiest"):
            yield self._user_table
            yield self._channel_table
        yield Footer()

    def on_mount(self) -> None:
        """Begin."""
        self._worker_table.focus()
        self._show(self._now)
        self.set_interval(self._every_seconds, self._look)
        self._look()

    # -- asking ------------------------------------------------------------------

    def _look(self) -> None:
        if not (self._is_paused or self._is_asking):
            self._is_asking = True
            self._ask()

    @work(thread=True)
    def _ask(self) -> None:
        try:
            points = [] if self._has_hour else self._server.ask({"ask": "hour", "bytes": HOUR_BYTES})["points"]
            hour = msgspec.convert(points, list[Point])
            now = msgspec.convert(self._server.ask({"ask": "top"}), Top)
        except FastpushError as error:
            self.post_message(Missed(str(error)))
        else:
            self.post_message(Told(now, hour))

    def on_told(self, told: Told) -> None:
        """Show it."""
        self._is_asking, self._missed = False, ""
        if told.hour:
            self._points = deque(told.hour, maxlen=POINTS_MAX)
            self._has_hour = True
        if told.now.point.seconds > self._points[-1].seconds:
            self._points.append(told.now.point)
        if not self._is_paused:
            self._show(told.now)

    def on_missed(self, missed: Missed) -> None:
        """Say so. What is not answered meanwhile is asked for when there are answers again."""
        self._is_asking, self._has_hour = False, False
        self._missed = missed.text
        self._tell()

    def on_said(self, said: Said) -> None:
        """Show what a command has brought."""
        self._say(said.text, said.style)

    def on_explained(self, explained: Explained) -> None:
        """Show what is known of a user."""
        output = StringIO()
        console = Console(
            file=output, width=self.size.width - 4, force_terminal=True, color_system="standard", highlight=False
        )
        print_report(console, explained.why)
        self.push_screen(Page(Text.from_ansi(output.getvalue())))

    # -- showing -----------------------------------------------------------------

    def _show(self, now: Top) -> None:
        self._now = now
        points = tuple(self._points)
        for plot in self._plots:
            plot.show(points)
        self._health.update(health(now))
        self._worker_table.show(now.workers)
        self._user_table.show(now.users)
        self._channel_table.show(now.channels)
        self._tell()

    def _tell(self) -> None:
        """Show what is so besides figures: what is asked, else what is wrong, else what was said last."""
        at = _clock(self._now.point.seconds)
        title = Text.assemble((f"fastpush {self._now.version}", "bold"), f"  {at}  ")
        title.append(count_of(len(self._now.workers), "worker"))
        title.append(
            *("  paused", "bold reverse") if self._is_paused else (f"  every {self._every_seconds:g} s", "dim")
        )
        self._title.update(title)
        self.set_class(bool(self._missed), "-lost")
        notice = self._said
        if self._to_drain is not None:
            worker = self._to_drain
            clients = count_of(worker.connections, "connection")
            notice = Text(f"drain worker {worker.slot} (worker-{worker.worker}, {clients})? y/n", _QUESTION)
        elif self._missed:
            notice = Text(f"no answer since {at}: {printable(self._missed)}", ALARM)
        self._notice.update(notice)

    def _say(self, text: str, style: Style = PLAIN) -> None:
        self._said = said = Text(printable(text), style)
        self._tell()
        self.set_timer(_SAID_SECONDS, lambda: self._forget(said))

    def _forget(self, said: Text) -> None:
        if self._said is said:
            self._said = Text()
            self._tell()

    # -- keys --------------------------------------------------------------------

    async def action_table(self, action: str) -> None:
        """Do something with the table that has the focus."""
        table = self.focused if isinstance(self.focused, Figures) else self._worker_table
        await table.run_action(action)

    def action_pause(self) -> None:
        """Keep these figures on the screen, or go on."""
        self._is_paused = not self._is_paused
        self._tell()
        self._look()

    def action_explain(self) -> None:
        """Say what keys and figures mean."""
        lines = (Text.assemble((f"{name:<14}", "bold"), text) for name, text in _HELP)
        self.push_screen(Page(Text("\n").join(lines)))

    def action_why(self) -> None:
        """Show what is known of the user that is selected in the table of the busiest."""
        user = self._user_table.selected
        if user is None:
            self._say("no user was sent anything within the last seconds; `fastpush why USER` tells of any", WARNING)
        else:
            self._ask_why(user.name)

    @work(thread=True)
    def _ask_why(self, user: str) -> None:
        try:
            why = msgspec.convert(self._server.ask({"ask": "why", "user": user}), Why)
        except FastpushError as error:
            self.post_message(Said(f"why {user}: {error}", ALARM))
        else:
            self.post_message(Explained(why))

    def action_drain(self) -> None:
        """Ask whether the selected worker is to be drained."""
        if not self._now.actions:
            self._say("draining from here needs [admin] actions = true in the configuration", WARNING)
            return
        self._to_drain = self._worker_table.selected
        self._tell()

    def action_answer(self, is_yes: bool) -> None:
        """Take the answer to whether the worker is to be drained."""
        worker, self._to_drain = self._to_drain, None
        if worker is None:
            return
        if not is_yes:
            self._say("")
        elif all(row.worker != worker.worker for row in self._now.workers):
            self._say(f"worker-{worker.worker} has ended meanwhile", WARNING)
        else:
            self._say(f"worker {worker.slot}: asking …")
            self._drain(worker.slot)

    @work(thread=True)
    def _drain(self, slot: int) -> None:
        try:
            seconds = self._server.drain(slot)
        except FastpushError as error:
            self.post_message(Said(f"worker {slot}: {error}", ALARM))
        else:
            over = f"over {count_of(round(seconds), 'second')}"
            self.post_message(Said(f"worker {slot} drains {over}, once its successor is ready"))


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
