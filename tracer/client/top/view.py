"""The view itself: it puts a picture on the screen, and arranges the panels for its size."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from tracer.client.top import text
from tracer.client.top.details import FindingScreen, RuleScreen, explained
from tracer.client.top.observer import Observer, Picture, Poller
from tracer.client.top.panels import Entries, Findings, Functions, Invariants, Locks, Panel
from tracer.client.top.rates import SPANS, RateRow
from tracer.errors import RmapdError
from tracer.time_text import two_units

_GRID = (140, 40)
"""Columns and rows from which all panels are shown at once."""
_TABBED = ("invariants", "functions", "locks", "entries", "health")
"""Panels of which a smaller screen shows one."""
_MOST_FINDINGS = {False: 4, True: 8}
"""Rows of findings, on a small screen and on a large one; the others are scrolled to."""
_HEALTH = "6 Health"


class Looked(Message):
    """The daemon was asked."""

    def __init__(self, found: Picture | Exception) -> None:
        super().__init__()
        self.found = found


class View(Screen[None]):
    """The view of one daemon.

    first: the picture to begin with. clock: monotonic seconds. picture: what is shown; looks: how
    often the daemon was asked since.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('findings')", "views", key_display="1-6"),
        *(Binding(str(n + 2), f"view('{name}')", show=False) for n, name in enumerate(_TABBED)),
        Binding("enter", "open", "open", key_display="Enter"),
        Binding("s", "sort", "sort"),
        Binding("t", "span", "time"),
        Binding("space", "pause", "pause", key_display="Space"),
        Binding("r", "refresh_now", "ask now"),
    ]

    def __init__(
        self,
        observer: Observer,
        first: Picture,
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._observer, self._clock = observer, clock
        self.picture = self._latest = first
        self._error: RmapdError | None = None
        self.looks = 0
        self._paused, self._grid, self._span, self._tab = False, False, SPANS[0], _TABBED[0]
        self.poller = Poller(
            observer.look, lambda found: self.post_message(Looked(found)), interval
        )

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Horizontal(id="top"):
            yield Static(id="standing")
            yield Static(id="state")
        yield Static(id="daemon")
        yield Static(id="bar")
        yield RateRow(id="rates")
        yield Static(id="nothing")
        yield Findings("findings")
        yield Static(id="tabs")
        with Horizontal(id="panels"):
            with Vertical(id="left", classes="column"):
                yield Invariants("invariants")
                yield Entries("entries")
            with Vertical(id="right", classes="column"):
                yield Functions("functions")
                yield Locks("locks")
                with VerticalScroll(id="health", classes="panel") as health:
                    health.border_title = _HEALTH
                    yield Static(id="health-text")
        yield Footer()

    def on_mount(self) -> None:
        """Draw the first picture, and begin to ask."""
        self._arrange()
        self._draw()
        self.query_one("#findings" if self.picture.seen.status.findings else "#invariants").focus()
        self.set_interval(1.0, self._draw_state)
        self.poller.start()

    def on_unmount(self) -> None:
        """Ask no more."""
        self.poller.end()

    def on_looked(self, looked: Looked) -> None:
        """Draw a new picture, or that there is none. Raises what is a defect: it ends the view."""
        self.looks += 1
        if isinstance(looked.found, RmapdError):
            self._error = looked.found
        elif isinstance(looked.found, Exception):
            raise looked.found
        else:
            self._error, self._latest = None, looked.found
            if not self._paused:
                self.picture = self._latest
                self._draw()
        self._draw_state()

    def on_resize(self, event: Resize) -> None:
        """Arrange the panels for the new size."""
        self._arrange(event.size.width, event.size.height)
        self.call_after_refresh(self._draw_rates)

    @property
    def findings(self) -> Findings:
        """The table of findings."""
        return self.query_one(Findings)

    def _arrange(self, width: int = 0, height: int = 0) -> None:
        """Show all panels, or one of them; as many rates as there is room for."""
        width, height = width or self.size.width, height or self.size.height
        self._grid = width >= _GRID[0] and height >= _GRID[1]
        self.set_class(self._grid, "-grid")
        shown = _TABBED if self._grid else (self._tab,)
        for name in _TABBED:
            self.query_one(f"#{name}").display = name in shown
        for column in self.query(".column"):
            column.display = any(panel.display for panel in column.children)
        self.query_one("#tabs").display = not self._grid
        self.query_one(RateRow).fit(width)
        self._draw_tabs()

    def _draw(self) -> None:
        """Draw the picture."""
        picture = self.picture
        status = picture.seen.status
        self.query_one("#standing", Static).update(text.standing(status))
        self.query_one("#daemon", Static).update(text.daemon(status))
        url = self._observer.client.address.url
        self.query_one("#health-text", Static).update(text.health(status, url))
        for panel in self.query(Panel):
            panel.look_at(picture)
        findings = self.findings
        most = _MOST_FINDINGS[self._grid]
        findings.display = bool(status.findings)
        findings.styles.height = min(len(status.findings), most) + (2 if self._grid else 0)
        nothing = self.query_one("#nothing", Static)
        nothing.display = not status.findings
        nothing.update(
            Text(f"No violation and no suspect in {status.checks('holds'):,} checks.", "dim")
        )
        self._draw_rates()
        self._draw_state()

    def _draw_rates(self) -> None:
        self.query_one(RateRow).look_at(self.picture, self._span)

    def _draw_state(self) -> None:
        """Draw how old the picture is, and across the screen if it is not the present."""
        now = self._clock()
        state, sentence = text.state(self.picture, self._error, now, paused=self._paused)
        age = two_units(round(self.picture.age(now), 1))
        self.query_one("#state", Static).update(Text(f"{state} {age}"))
        bar = self.query_one("#bar", Static)
        bar.display = bool(sentence)
        bar.update(Text(sentence))
        for name in (text.LIVE, text.STALE, text.GONE, text.PAUSED):
            self.set_class(name == state, f"-{name}")

    def _draw_tabs(self) -> None:
        titles = {panel.id: panel.TITLE for panel in self.query(Panel)} | {"health": _HEALTH}
        line = Text()
        for name in _TABBED:
            line.append(f" {titles[name]} ", "reverse" if name == self._tab else "dim").append(" ")
        line.append(f" last {self._span / 60:.0f} min", "dim")
        self.query_one("#tabs", Static).update(line)

    def action_view(self, name: str) -> None:
        """Go to a panel; on a small screen, show it instead of another."""
        if name in _TABBED:
            self._tab = name
            self._arrange()
        panel = self.query_one(f"#{name}")
        if panel.display:
            panel.focus()

    def action_sort(self) -> None:
        """Sort the panel in focus, or the one that is shown, by its next column."""
        focused = self.focused if isinstance(self.focused, Panel) else None
        panel = focused if focused and focused.SORTS else self.query_one(f"#{self._tab}")
        if isinstance(panel, Panel):
            panel.sort_next()

    def action_span(self) -> None:
        """Show the other span of time in the sparklines."""
        self._span = SPANS[(SPANS.index(self._span) + 1) % len(SPANS)]
        self._draw_tabs()
        self._draw_rates()

    def action_pause(self) -> None:
        """Keep the picture, or go on."""
        self._paused = not self._paused
        self.picture = self.picture if self._paused else self._latest
        self._draw()

    def action_refresh_now(self) -> None:
        """Ask the daemon now."""
        self.poller.wake()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open what is under the cursor: Enter of a table."""
        table = event.data_table
        if isinstance(table, Findings) and table.selected:
            client = self._observer.client
            self.app.push_screen(FindingScreen(table.selected, lambda id: explained(client, id)))
        elif isinstance(table, Invariants) and table.selected:
            rule = self.picture.seen.status.invariants[table.selected]
            self.app.push_screen(RuleScreen(table.selected, rule))

    def action_open(self) -> None:
        """Open a finding where no table has the focus."""
        self.query_one("#findings" if self.picture.seen.status.findings else "#invariants").focus()
