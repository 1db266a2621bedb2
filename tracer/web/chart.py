"""The charts of the overview: rates of the last ten minutes as SVG polylines, without scripts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracer.results.history import KEPT_SECONDS, HistoryPoint

WIDTH, HEIGHT = 600, 100
"""The size of the drawing's coordinate system."""
_MARGIN = 4
_GAP_SECONDS = 30.0
"""A line is interrupted beyond this: points come every ten seconds unless the checker stalls."""


@dataclass(frozen=True)
class ChartLine:
    """One rate: its values over time and its line, in pieces where points are missing."""

    name: str
    values: tuple[tuple[float, float], ...]
    pieces: tuple[str, ...]

    @property
    def last(self) -> float:
        """The latest value, or 0."""
        return self.values[-1][1] if self.values else 0.0

    @property
    def most(self) -> float:
        """The highest value, or 0."""
        return max((value for _, value in self.values), default=0.0)


@dataclass(frozen=True)
class Chart:
    """Lines under one scale from 0 to `top`."""

    title: str
    unit: str
    note: str
    lines: tuple[ChartLine, ...]
    top: float

    @property
    def empty(self) -> bool:
        """Whether no line has a value."""
        return not any(line.values for line in self.lines)


@dataclass(frozen=True)
class ChartDefinition:
    """The definition of a chart.

    lines: name and count of each; its rate per second times `times` is drawn. least_top: the
    smallest end of the scale.
    """

    title: str
    unit: str
    note: str
    lines: tuple[tuple[str, Callable[[HistoryPoint], float]], ...]
    times: float = 1.0
    least_top: float = 1.0


CHARTS = (
    ChartDefinition(
        "Checks",
        "per second",
        "all verdicts of all invariants",
        (("checks", lambda p: p.all_checks),),
    ),
    ChartDefinition(
        "Windows",
        "per second",
        "calls of functions that change VMAs or walk rmap",
        (("windows", lambda p: p.windows),),
    ),
    ChartDefinition(
        "Migration entries",
        "per second",
        "inserted into page tables",
        (("entries", lambda p: p.entries),),
    ),
    ChartDefinition(
        "Not known",
        "per second",
        "unverifiable checks and lost events",
        (("unverifiable", lambda p: p.unverifiable), ("lost", lambda p: p.lost)),
    ),
    ChartDefinition(
        "Overhead",
        "% of one CPU",
        "BPF programs in the kernel, and the daemon's process",
        (("probes", lambda p: p.probe_seconds), ("daemon", lambda p: p.user_seconds)),
        times=100.0,
        least_top=0.1,
    ),
)


def rates(
    points: Sequence[HistoryPoint], counted: Callable[[HistoryPoint], float]
) -> list[tuple[float, float]]:
    """Return (seconds, rate per second) from each point to the next; a falling count is rate 0."""
    return [
        (b.seconds, max(0.0, counted(b) - counted(a)) / (b.seconds - a.seconds))
        for a, b in itertools.pairwise(points)
        if b.seconds > a.seconds
    ]


def scale(most: float, least: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is at least `most` and `least`."""
    most = max(most, least)
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most * (1 - 1e-9))


def draw(definition: ChartDefinition, points: Sequence[HistoryPoint], now: float) -> Chart:
    """Return the chart that ends at `now`, in seconds since the gate opened."""
    series = [
        (name, [(when, value * definition.times) for when, value in rates(points, counted)])
        for name, counted in definition.lines
    ]
    most = max((value for _, values in series for _, value in values), default=0.0)
    top = scale(most, definition.least_top)
    lines = tuple(
        ChartLine(name, tuple(values), tuple(_pieces(values, now, top))) for name, values in series
    )
    return Chart(definition.title, definition.unit, definition.note, lines, top)


def _pieces(values: Sequence[tuple[float, float]], now: float, top: float) -> list[str]:
    pieces: list[list[str]] = []
    before = -math.inf
    for when, value in values:
        if when - before > _GAP_SECONDS:
            pieces.append([])
        x = WIDTH * (1 - (now - when) / KEPT_SECONDS)
        y = HEIGHT - _MARGIN - (HEIGHT - 2 * _MARGIN) * value / top
        pieces[-1].append(f"{x:.1f},{y:.1f}")
        before = when
    return [" ".join(piece) for piece in pieces]
