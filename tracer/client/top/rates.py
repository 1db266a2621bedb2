"""The row of rates: each with its value now and a sparkline of the last minutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text
from textual.containers import Horizontal
from textual.widgets import Static

from tracer.client.history import Counted, History
from tracer.client.top.observer import Picture
from tracer.client.top.text import rate, share, sparkline

SPANS = (120.0, 600.0)
"""Seconds that a sparkline can show."""


@dataclass(frozen=True)
class Rate:
    """One rate, or a level that rises and falls."""

    name: str
    counted: Counted
    text: Callable[[float | None], str] = rate
    level: bool = False

    def values(self, history: History, span: float, bins: int) -> list[float]:
        """Return the values of the sparkline."""
        make = history.levels if self.level else history.rates
        return make(self.counted, span, bins)

    def now(self, history: History) -> float | None:
        """Return the value now."""
        if not self.level:
            return history.now(self.counted)
        return self.counted(history.points[-1]) if history.points else None


RATES = (
    Rate("checks/s", lambda p: p.all_checks),
    Rate("windows/s", lambda p: p.windows),
    Rate("entries/s", lambda p: p.entries),
    Rate("programs", lambda p: p.probe_seconds, share),
    Rate("outstanding", lambda p: p.outstanding, level=True),
    Rate("lost/s", lambda p: p.lost),
    Rate("rmapd", lambda p: p.user_seconds, share),
)
"""The most important first: a narrow screen shows as many as it has room for."""
_LEAST_COLUMNS = 20


class RateCell(Static):
    """A rate in two lines."""

    def __init__(self, rate: Rate) -> None:
        super().__init__(classes="rate")
        self.rate = rate

    def look_at(self, picture: Picture, span: float) -> None:
        """Show a picture."""
        history, width = picture.history, max(1, self.size.width - 1)
        value = self.rate.text(self.rate.now(history))
        line = sparkline(self.rate.values(history, span, width))
        self.update(
            Text.assemble((f"{self.rate.name} ", "dim"), (value, "bold"), "\n", (line, "cyan"))
        )


class RateRow(Horizontal):
    """The rates side by side."""

    def compose(self) -> list[RateCell]:
        """Make the cells."""
        return [RateCell(one) for one in RATES]

    def fit(self, width: int) -> None:
        """Show as many cells as a screen of this width has room for."""
        for n, cell in enumerate(self.query(RateCell)):
            cell.display = n < max(1, width // _LEAST_COLUMNS)

    def look_at(self, picture: Picture, span: float) -> None:
        """Show a picture in all cells."""
        for cell in self.query(RateCell):
            cell.look_at(picture, span)
