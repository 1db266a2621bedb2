"""How far long work has come, in one line on the terminal that is erased at the end.

It is drawn on standard error, and only where that is a terminal: never into a pipe, with -q, or
where the log is JSON lines. `python -m tracer.progress SECONDS` is a sleep(1) that draws it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tracer import logs, screen

if TYPE_CHECKING:
    from rich.progress import Progress

_REDRAW_SECONDS = 0.1
_STEP_SECONDS = 0.25


class ProgressLine:
    """The line. Without a drawing it does nothing: standard error is no terminal."""

    def __init__(self, drawing: Progress | None = None) -> None:
        self._drawing, self._drawn_at = drawing, 0.0
        self._all_columns = drawing.columns if drawing else ()

    def phase(self, what: str, total: float | None = None) -> None:
        """Begin a part of the work. total: how much there is to do; None: not known."""
        if self._drawing:
            for task in self._drawing.task_ids:
                self._drawing.remove_task(task)
            moves = self._drawing.live.auto_refresh or total is not None
            self._drawing.columns = self._all_columns if moves else self._all_columns[:1]
            self._drawing.add_task(what, total=total)
            self._draw()

    def done(self, amount: float) -> None:
        """Show how much of the total is done; some ten times a second at most."""
        if self._drawing and self._drawing.tasks:
            self._drawing.update(self._drawing.task_ids[0], completed=amount)
            if time.monotonic() - self._drawn_at >= _REDRAW_SECONDS:
                self._draw()

    def _draw(self) -> None:
        if self._drawing:
            self._drawing.refresh()
            self._drawn_at = time.monotonic()


def is_shown(quiet: bool) -> bool:
    """Return whether progress is drawn. quiet: the user does not want it."""
    return not quiet and screen.draws_on(sys.stderr) and not logs.is_json()


@contextlib.contextmanager
def on_terminal(quiet: bool, *, animated: bool) -> Iterator[ProgressLine]:
    """Yield a line to show progress in; erase it at the end, also after an exception.

    animated: let a thread redraw it; where processes are forked meanwhile there must be none. The
    log appears above the line.
    """
    if not is_shown(quiet):
        yield ProgressLine()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()]
    drawing = Progress(
        *([SpinnerColumn(), *columns] if animated else columns),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=animated,
        redirect_stdout=False,
    )
    with drawing:
        yield ProgressLine(drawing)


def main(seconds: float) -> None:
    """Sleep this long, and draw how much of it is over."""
    until = time.monotonic() + seconds
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: sys.exit(128 + got))  # and erase the line
    with on_terminal(quiet=False, animated=False) as shown:
        shown.phase("watching this kernel", total=seconds)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _STEP_SECONDS))
            shown.done(seconds - max(0.0, left))


if __name__ == "__main__":
    main(float(sys.argv[1]))
