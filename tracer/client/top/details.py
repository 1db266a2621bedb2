"""Screens over the view: a finding with its trail, a rule, and the keys."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Static

from tracer.client.connection import Client
from tracer.errors import RmapdError
from tracer.invariants.catalogue import discover
from tracer.printable import json_text, printable
from tracer.report.explain import invariant_text
from tracer.report.explain_sections import sections
from tracer.report.find_violation import ExplainedViolation
from tracer.report.model import ReportedInvariant
from tracer.report.section import Section
from tracer.screen import wrapped

_FIRST = ("What was seen", "Trail", "Stack", "Where")
"""Sections that come first here: a person at a screen asks for what led to it."""


_WRAPPED = (*_FIRST, "Evidence")
"""Sections of code whose lines stay readable when they are broken; others are aligned."""

_HANGING = " " * 10


class Wrapped:
    """Lines that are broken at the width of the screen. hanging: what is broken off is indented."""

    def __init__(self, lines: Sequence[str], *, hanging: bool) -> None:
        self._lines, self._hanging = [printable(line) for line in lines], hanging

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        indent = _HANGING if self._hanging else ""
        for line in self._lines:
            for part in wrapped(line, options.max_width, indent):
                yield Text(part, overflow="fold")


def explained(client: Client, id: str) -> list[Section]:
    """Return a finding as `rmapd explain` prints it, with the trail after what was seen.

    Reads the finding, and the protocols of its function to compare with. Raises RmapdError where
    the daemon gives no answer, or has no such finding: it was restarted.
    """
    exact = client.violation(id)
    if exact is None:
        raise RmapdError(f"there is no finding {id} any more", why="the daemon was restarted")
    function = str(exact.get("function", ""))
    report: dict[str, Any] = {"protocols": client.protocols(function), "hooks": client.hooks()}
    rule = discover().get(str(exact.get("invariant", "")))
    if rule is None:
        return [Section("Evidence", json_text(exact).splitlines(), code=True)]
    try:
        found = sections(ExplainedViolation(exact, report), rule)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise RmapdError(
            f"cannot explain {id}", why=str(error), hint="an rmapd as new as the daemon"
        ) from error
    order = {title: n for n, title in enumerate(_FIRST)}
    return sorted(found, key=lambda section: order.get(section.title, len(order)))


class Detail(Screen[None]):
    """A text that scrolls; Escape leads back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "app.pop_screen", "back", key_display="Esc"),
        Binding("j", "scroll('down')", show=False),
        Binding("k", "scroll('up')", show=False),
    ]

    def __init__(self, heading: str) -> None:
        super().__init__()
        self.heading = heading

    def compose(self) -> ComposeResult:
        """Make the frame of the text."""
        with VerticalScroll(id="text") as scroll:
            scroll.border_title = Text(self.heading)
            yield from self.parts()
        yield Footer()

    def on_mount(self) -> None:
        """Let the keys scroll."""
        self.query_one("#text").focus()

    def parts(self) -> Sequence[Static]:
        """Return the text."""
        raise NotImplementedError

    def action_scroll(self, where: str) -> None:
        """Scroll a line up or down."""
        text = self.query_one("#text")
        (text.scroll_down if where == "down" else text.scroll_up)(animate=False)


class Loaded(Message):
    """A finding was read, or an error came instead."""

    def __init__(self, found: list[Section] | Exception) -> None:
        super().__init__()
        self.found = found


class FindingScreen(Detail):
    """A finding with its evidence and its trail, read when the screen opens."""

    def __init__(self, id: str, read: Callable[[str], list[Section]]) -> None:
        super().__init__(id)
        self.finding, self._read_finding = id, read

    def parts(self) -> Sequence[Static]:
        """Return a text that stands until the finding is read."""
        return [Static(Text(f"reading {self.finding} …"), id="waiting")]

    def on_mount(self) -> None:
        """Read the finding; the thread ends with the process, whatever the daemon does."""
        threading.Thread(target=self._load, name="rmapd-finding", daemon=True).start()

    def _load(self) -> None:
        try:
            self.post_message(Loaded(self._read_finding(self.finding)))
        except Exception as error:
            self.post_message(Loaded(error))

    async def on_loaded(self, loaded: Loaded) -> None:
        """Show what was read. Raises what is a defect: it ends the view."""
        text = self.query_one("#text")
        await self.query("#waiting").remove()
        if isinstance(loaded.found, RmapdError):
            await text.mount(Static(Text(str(loaded.found), "yellow")))
            return
        if isinstance(loaded.found, Exception):
            raise loaded.found
        for section in loaded.found:
            await text.mount(Static(Text(printable(section.title)), classes="title"))
            aligned = section.code and section.title not in _WRAPPED
            body = Text("\n".join(map(printable, section.lines)), no_wrap=True)
            await text.mount(
                Static(body, classes="code")
                if aligned
                else Static(Wrapped(section.lines, hanging=section.code), classes="prose")
            )


class RuleScreen(Detail):
    """A rule: what must hold, where the kernel states it, and how far it is checked there."""

    def __init__(self, id: str, found: ReportedInvariant) -> None:
        super().__init__(f"{id}: {found.title}")
        self.rule, self.found = id, found

    def parts(self) -> Sequence[Static]:
        """Return its coverage and its text."""
        reason = f": {self.found.reason}" if self.found.reason else ""
        here = Text.assemble(("coverage there  ", "bold"), f"{self.found.coverage}{reason}")
        rule = discover().get(self.rule)
        text = invariant_text(rule) if rule else "this rmapd does not know the rule"
        return [Static(here, classes="prose"), Static(Text(text), classes="prose")]


class HelpScreen(Detail):
    """The keys, and what the columns mean."""

    def __init__(self) -> None:
        super().__init__("rmapd top: keys and columns")

    def parts(self) -> Sequence[Static]:
        """Return the text."""
        return [Static(Text(_HELP), classes="prose")]


_HELP = """\
Enter        on a finding: what was seen, its trail, its stack, the proof
             on an invariant: the rule, and why its coverage is not full
1 … 6        findings, invariants, functions, locks, entries, health
Tab, arrows  move between tables and in them; also j, k, g, G, PgDn
s            sort functions or locks by the next column, which is marked
t            sparklines of the last two or ten minutes
Space        pause, and go on
r            ask now
Esc          back
? q          this help; quit

The first line ends with the state. If it is not live, a bar tells why:
  STALE      the checker has read no tables for 5 s: it is busy or hangs
  GONE       the daemon gives no answer; it is asked again
  ENDING     the gate is closed: nothing is recorded any more
After a restart of the daemon counts begin anew; a bar shows it.

Rates are of the last ten seconds, counts since the gate opened.
  time         how long the windows of a function took, in each second
  waiting      how long tasks waited for a lock, in each second
  holding      how long tasks held it, in each second
               (more than 1 s/s: several tasks at the same time)
  p99          99 % took less: a bound, for times are counted in powers of two
  longest      all took less
  not sampled  windows that were only counted, to keep within the budget
  programs     CPU time of the BPF programs, of one CPU
  rmapd        CPU time of the daemon's process, of one CPU
mmap_lock is counted in all tasks, other locks inside of windows only.
"""
