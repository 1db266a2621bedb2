"""Rates over the last minutes, drawn: polylines in a box of 600 by 100, made here, so that a browser needs no script."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracer.results.history import KEPT_SECONDS, HistoryPoint

WIDTH, HEIGHT = 600, 100
_MARGIN = 4
_GAP_SECONDS = 30.0
"""Nobody asking, there is a point every ten seconds: what is longer is a judge that stood still."""


@dataclass(frozen=True)
class ChartLine:
    """One rate: its name, its values over time, and the pieces of its line (a hole in time is a hole in the line)."""

    name: str
    values: tuple[tuple[float, float], ...]
    pieces: tuple[str, ...]

    @property
    def last(self) -> float:
        return self.values[-1][1] if self.values else 0.0

    @property
    def most(self) -> float:
        return max((value for _, value in self.values), default=0.0)


@dataclass(frozen=True)
class Chart:
    """Lines under one scale. `top` is the scale's end; `minutes` what was seen of the last ten."""

    title: str
    unit: str
    note: str
    lines: tuple[ChartLine, ...]
    top: float

    @property
    def empty(self) -> bool:
        return not any(line.values for line in self.lines)


@dataclass(frozen=True)
class Drawn:
    """What a chart shows: names and what is counted, as a rate per second times `times`."""

    title: str
    unit: str
    note: str
    lines: tuple[tuple[str, Callable[[HistoryPoint], float]], ...]
    times: float = 1.0
    least_top: float = 1.0


CHARTS = (
    Drawn(
        "Checks",
        "per second",
        "all verdicts of all invariants",
        (("checks", lambda p: sum(p.checks.values())),),
    ),
    Drawn(
        "Windows",
        "per second",
        "calls of functions that change VMAs or walk rmap",
        (("windows", lambda p: p.windows),),
    ),
    Drawn(
        "Migration entries",
        "per second",
        "put into page tables",
        (("entries", lambda p: p.entries),),
    ),
    Drawn(
        "Not known",
        "per second",
        "checks that a loss made unverifiable, and events lost",
        (("unverifiable", lambda p: p.unverifiable), ("lost", lambda p: p.lost)),
    ),
    Drawn(
        "Overhead",
        "% of one CPU",
        "probes in the kernel, and the daemon itself",
        (("probes", lambda p: p.probe_seconds), ("daemon", lambda p: p.user_seconds)),
        times=100.0,
        least_top=0.1,
    ),
)


def rates(
    points: Sequence[HistoryPoint], counted: Callable[[HistoryPoint], float]
) -> list[tuple[float, float]]:
    """(when, per second) between each point and the next. A count that falls back counts as nothing."""
    return [
        (b.seconds, max(0.0, counted(b) - counted(a)) / (b.seconds - a.seconds))
        for a, b in itertools.pairwise(points)
        if b.seconds > a.seconds
    ]


def over(
    points: Sequence[HistoryPoint], seconds: float, counted: Callable[[HistoryPoint], float]
) -> float | None:
    """The rate over the last seconds; None where there is only one point."""
    if len(points) < 2:
        return None
    last = points[-1]
    first = next(point for point in points if last.seconds - point.seconds <= seconds)
    first = points[-2] if first is last else first
    return max(0.0, counted(last) - counted(first)) / (last.seconds - first.seconds)


def scale(most: float, least: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten that is not below."""
    most = max(most, least)
    power = 10.0 ** math.floor(math.log10(most))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= most * (1 - 1e-9))


def draw(drawn: Drawn, points: Sequence[HistoryPoint], now: float) -> Chart:
    """The chart, its right end at `now` (seconds since the gate opened)."""
    series = [
        (name, [(when, value * drawn.times) for when, value in rates(points, counted)])
        for name, counted in drawn.lines
    ]
    top = scale(
        max((value for _, values in series for _, value in values), default=0.0), drawn.least_top
    )
    lines = tuple(
        ChartLine(name, tuple(values), tuple(_pieces(values, now, top))) for name, values in series
    )
    return Chart(drawn.title, drawn.unit, drawn.note, lines, top)


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
