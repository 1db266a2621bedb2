"""Draw the panels of the dashboards from a real Prometheus: for a look where Grafana is not there.

It shows queries, units, legends, thresholds, texts and what has no data, by the data of
dashboards/*.py. It is no Grafana: fonts, axes and interpolation differ.

    python -m tests.support.panels http://127.0.0.1:9090 FOLDER [SECONDS]
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

import dashboards
from dashboards.board import NO_DATA, Panel, Row
from tests.support.prometheus import Prometheus
from tests.support.promql import expand

mpl.use("Agg")

_COLUMNS, _WIDTH, _UNIT_HEIGHT = 24, 15.0, 0.36
"""Of Grafana's grid: columns; of ours: inches of all columns, and of a unit of height."""
_NAMES = {"text": "#222222", "green": "#2e8b3d", "orange": "#e8820c", "yellow": "#d8b400"}
_GREY = "#808080"
_STEPS = 240
_MOST_LEGENDS = 8


@dataclass(frozen=True)
class Series:
    """A series by its legend; points: (Unix seconds, value)."""

    legend: str
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """The value of its last point."""
        return self.points[-1][1]


@dataclass(frozen=True)
class Window:
    """What to ask: a Prometheus, the values of the variables, and the time, in Unix seconds."""

    api: Prometheus
    variables: Mapping[str, str]
    begin: float
    end: float

    def series(self, panel: Panel) -> list[Series]:
        """Return the answers to the queries of a panel, as Grafana would ask them."""
        found = []
        for query in panel.queries:
            expr = expand(query.expr, self.variables)
            if panel.kind in ("stat", "bars"):
                results = self.api.get("/api/v1/query", query=expr, time=str(self.end))["result"]
                rows = [(one["metric"], [one["value"]]) for one in results]
            else:
                times = {"start": str(self.begin), "end": str(self.end), "step": str(self.step)}
                results = self.api.get("/api/v1/query_range", query=expr, **times)["result"]
                rows = [(one["metric"], one["values"]) for one in results]
            for metric, values in rows:
                parts = re.split(r"{{(\w+)}}", query.legend)
                parts[1::2] = [metric.get(label, "") for label in parts[1::2]]
                legend = "".join(parts).strip()
                points = [(float(at), float(value)) for at, value in values]
                known = tuple(point for point in points if not math.isnan(point[1]))
                if known:
                    found.append(Series(legend, known))
        return found

    @property
    def step(self) -> float:
        """Seconds between two points of a graph."""
        return max(1.0, (self.end - self.begin) / _STEPS)


def _scaled(value: float, steps: tuple[tuple[float, str], ...]) -> str:
    """Return a value in the largest unit that it has one of; steps: (size, name), falling."""
    fitting = ((size, name) for size, name in steps if abs(value) >= size)
    size, name = next(fitting, steps[-1])
    return f"{value / size:.3g} {name}".strip()


_TIMES = (
    (86400, "d"),
    (3600, "h"),
    (60, "min"),
    (1, "s"),
    (1e-3, "ms"),
    (1e-6, "µs"),
    (1e-9, "ns"),
)
_BYTES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_COUNTS = ((1e9, "Bil"), (1e6, "Mil"), (1e3, "K"), (1, ""))
_UNITS: Mapping[str, Callable[[float], str]] = {
    "s": lambda value: _scaled(value, _TIMES) if value else "0 s",
    "bytes": lambda value: _scaled(value, _BYTES),
    "short": lambda value: _scaled(value, _COUNTS),
    "ops": lambda value: f"{_scaled(value, _COUNTS)} ops/s",
    "cpm": lambda value: f"{_scaled(value, _COUNTS)} cpm",
    "percentunit": lambda value: f"{100 * value:.3g} %",
}


def _text(panel: Panel, value: float) -> str:
    return (panel.texts or {}).get(f"{value:g}", "") or _UNITS[panel.unit](value)


def _colour(panel: Panel, value: float) -> str:
    name = panel.base
    for at, colour in panel.thresholds:
        if value >= float(at):
            name = colour
    return _NAMES.get(name, name)


def _draw_stat(axes: Any, panel: Panel, found: list[Series], _: float) -> None:
    axes.axis("off")
    size = 22 if len(found) == 1 else 10
    for n, one in enumerate(found[:6]):
        text = f"{one.legend} {_text(panel, one.last)}".strip()
        y = 1 - (n + 0.5) / min(6, len(found))
        axes.text(0.5, y, text, size=size, ha="center", va="center", color=_colour(panel, one.last))


def _draw_bars(axes: Any, panel: Panel, found: list[Series], _: float) -> None:
    rows = sorted(found, key=lambda one: one.last)
    lengths, colours = [one.last for one in rows], [_colour(panel, one.last) for one in rows]
    axes.barh(range(len(rows)), lengths, color=colours, alpha=0.5)
    axes.set_xlim(0, max([*lengths, 1e-9]))
    for n, one in enumerate(rows):
        axes.text(0, n, f"  {one.legend}:  {_text(panel, one.last)}", size=8, va="center")
    axes.set_yticks([])
    axes.set_xticks([])


def _draw_states(axes: Any, panel: Panel, found: list[Series], step: float) -> None:
    for n, one in enumerate(reversed(found)):
        times, colours = zip(*((at, _colour(panel, v)) for at, v in one.points), strict=True)
        axes.barh(n, step, left=times, color=colours, height=0.8)
        axes.text(times[0], n, f" {_text(panel, one.last)}", size=8, va="center")
    axes.set_yticks(range(len(found)), [one.legend for one in reversed(found)], size=8)
    axes.set_xticks([])


def _with_gaps(points: Sequence[tuple[float, float]], step: float) -> Iterator[tuple[float, float]]:
    """Yield the points, and a value that draws nothing where some are missing."""
    for (before, _), (at, value) in zip([points[0], *points], points, strict=False):
        if at - before > 1.5 * step:
            yield before + step, math.nan
        yield at, value


def _draw_graph(axes: Any, panel: Panel, found: list[Series], step: float) -> None:
    for one in sorted(found, key=lambda one: -one.last):
        label = f"{one.legend}  {_UNITS[panel.unit](one.last)}"
        axes.plot(*zip(*_with_gaps(one.points, step), strict=True), linewidth=1, label=label)
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    for at, colour in panel.thresholds:
        if float(at) <= top * 2:
            axes.axhline(float(at), linestyle="--", linewidth=1, color=_NAMES.get(colour, colour))
    handles, labels = axes.get_legend_handles_labels()
    more = len(labels) - _MOST_LEGENDS
    axes.legend(
        handles[:_MOST_LEGENDS],
        labels[:_MOST_LEGENDS],
        title=f"and {more} more" if more > 0 else None,
        fontsize=7,
        title_fontsize=7,
        loc="upper left",
        framealpha=0.6,
    )
    axes.yaxis.set_major_formatter(lambda value, _: _UNITS[panel.unit](value))
    axes.xaxis.set_major_formatter(lambda at, _: time.strftime("%H:%M:%S", time.gmtime(at)))
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


_DRAW: Mapping[str, Callable[[Any, Panel, list[Series], float], None]] = {
    "stat": _draw_stat,
    "bars": _draw_bars,
    "states": _draw_states,
    "graph": _draw_graph,
}


def _places(row: Row) -> Iterator[tuple[Panel, int, int]]:
    """Yield each panel with its left and its top, as Grafana places them."""
    top = left = tallest = 0
    for panel in row.panels:
        if left + panel.span > _COLUMNS:
            top, left, tallest = top + tallest, 0, 0
        yield panel, left, top
        left, tallest = left + panel.span, max(tallest, panel.height)


def draw(row: Row, window: Window, path: Path) -> list[str]:
    """Draw a row of a dashboard as PNG; return the titles of the panels without data."""
    places, empty = list(_places(row)), []
    rows = max(top + panel.height for panel, _, top in places) + 1
    figure = Figure(figsize=(_WIDTH, rows * _UNIT_HEIGHT))
    figure.text(0.01, 1 - 0.7 / rows, row.title, size=12, weight="bold")
    for panel, left, top in places:
        # A margin of the panel's own for its title, its axis and the gap to the next one.
        x, w = (left + 1.6) / _COLUMNS, (panel.span - 1.9) / _COLUMNS
        y, h = 1 - (top + panel.height + 0.2) / rows, (panel.height - 1.7) / rows
        axes = figure.add_axes((x, y, w, h))
        axes.set_title(panel.title, size=9, loc="left")
        if found := window.series(panel):
            _DRAW[panel.kind](axes, panel, found, window.step)
        else:
            empty.append(panel.title)
            axes.set_xticks([])
            axes.set_yticks([])
            colour = "#e8820c" if panel.nothing == NO_DATA else _GREY
            axes.text(0.5, 0.5, panel.nothing, size=11, ha="center", va="center", color=colour)
    figure.savefig(path, dpi=80)
    return empty


def draw_all(api: Prometheus, folder: Path, seconds: float, **chosen: str) -> dict[str, list[str]]:
    """Draw every dashboard; chosen: values of variables. Returns the panels without data."""
    everything = dict.fromkeys(("cluster", "job", "kernel", "instance", "invariant"), ".*")
    now = time.time()
    variables = {**everything, "__rate_interval": "1m", **chosen}
    window = Window(api, variables, now - seconds, now)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        board.uid: [
            title
            for number, row in enumerate(board.rows, 1)
            for title in draw(row, window, folder / f"{board.uid}-{number}.png")
        ]
        for board in dashboards.BOARDS
    }


if __name__ == "__main__":
    url, where, *rest = sys.argv[1:]
    for uid, titles in draw_all(Prometheus(url), Path(where), float(*rest or (600,))).items():
        print(f"{uid}: without data: {', '.join(titles) or 'none'}")
