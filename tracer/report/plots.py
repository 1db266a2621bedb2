"""The plots of a report: when it happened, how long things took, which lock is taken under which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tracer.report.model import (
    Edge,
    Report,
    Reported,
    ReportedHistogram,
    ReportedLockGraph,
    ReportedViolation,
)
from tracer.report.svg import COLOUR, compact, draw, duration, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SPANS = 24
_VERDICT = {"violated": "bad", "suspect": "warn"}
_ROW = 33.0


def timeline(name: str, reported: Reported, width: float) -> str:
    """Rates over the run, or violations by the hour where a store kept them; below, from when to when each signature was seen."""
    spans = sorted(reported.violations[:_MOST_SPANS], key=lambda v: v.first_seen)
    rated = len(reported.report.timeline.seconds) > 2 and not reported.runs
    upper = rated or any(v.hours for v in reported.violations)
    if not upper and not spans:
        return ""
    heights = [*([120.0] if upper else []), *([17.0 * len(spans) + 14] if spans else [])]

    def paint(figure: Figure) -> dict[str, str]:
        every = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[
            :, 0
        ]
        titles = {}
        if upper:
            (_rates if rated else _hours)(every[0], reported)
        if spans:
            titles = _spans(every[-1], spans, reported)
        _time_axis(every[-1], reported)
        return titles

    return draw(name, width, sum(heights) + 44, "checks and violations over time", paint)


def _moment(moment: Any, reported: Reported) -> Any:
    """Where it stands on the axis: wall time of a store, seconds since the beginning of a run."""
    return moment if reported.runs else (moment - _beginning(reported)).total_seconds()


def _beginning(reported: Reported) -> Any:
    return reported.report.started or min(v.first_seen for v in reported.violations)


def _time_axis(axes: Axes, reported: Reported) -> None:
    if reported.runs:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_xlabel("UTC")
        return
    axes.set_xlabel(
        "seconds since the gate opened"
        if reported.report.started
        else "seconds since the first violation"
    )
    if reported.report.started:
        axes.set_xlim(0, max(reported.report.duration_seconds, 1))


def _rates(axes: Axes, reported: Reported) -> None:
    """Steps: a rate is known between two moments, not at one."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    seen = reported.report.timeline
    checks = [
        sum(moment)
        for moment in zip(
            *(seen.totals.get(v, [0] * len(seen.seconds)) for v in _CHECKS), strict=True
        )
    ]
    windows = seen.totals.get("windows", [])
    for label, totals, colour in (("checks", checks, "blue"), ("windows", windows, "muted")):
        if any(totals):
            rates = [
                (b - a) / max(t - s, 1e-9)
                for (s, t), (a, b) in zip(pairwise(seen.seconds), pairwise(totals), strict=True)
            ]
            axes.stairs(rates, seen.seconds, color=COLOUR[colour], linewidth=1.3, label=label)
            axes.stairs(rates, seen.seconds, color=COLOUR[colour], fill=True, alpha=0.12)
    plain(axes)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_title("per second", loc="left", fontsize=9, color=COLOUR["muted"])
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0, handlelength=1.2
    )


_CHECKS = ("holds", "violated", "suspect", "unverifiable")


def _hours(axes: Axes, reported: Reported) -> None:
    """Violations and suspects of each hour, one on the other."""
    import datetime

    from matplotlib.ticker import FuncFormatter, MaxNLocator

    hours = sorted({hour for v in reported.violations for hour in v.hours})
    below = [0] * len(hours)
    for verdict, colour in _VERDICT.items():
        counts = [
            sum(v.hours.get(hour, 0) for v in reported.violations if v.verdict == verdict)
            for hour in hours
        ]
        if any(counts):
            width = datetime.timedelta(hours=1)
            axes.bar(
                hours,
                counts,
                width=width,
                bottom=below,
                align="edge",
                color=COLOUR[colour],
                label=verdict,
            )
        below = [a + b for a, b in zip(below, counts, strict=True)]
    plain(axes)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.set_title("per hour", loc="left", fontsize=9, color=COLOUR["muted"])
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2, borderaxespad=0, handlelength=1
    )


def _spans(axes: Axes, spans: Sequence[ReportedViolation], reported: Reported) -> dict[str, str]:
    """A line per signature, from its first to its last sighting, with its name above the line's left end."""
    titles = {}
    for row, v in enumerate(reversed(spans)):
        ends = [_moment(v.first_seen, reported), _moment(v.last_seen, reported)]
        colour = COLOUR[_VERDICT[v.verdict]]
        (line,) = axes.plot(ends, [row, row], color=colour, linewidth=3, solid_capstyle="round")
        line.set_gid(f"span{row}")
        axes.scatter(ends[:1], [row], color=colour, s=26, zorder=3)
        titles[f"span{row}"] = f"{v.id} ×{v.count}: {v.summary}"
    axes.set_yticks(
        range(len(spans)),
        [f"{v.invariant} {_short(v.function)} ×{compact(v.count)}" for v in reversed(spans)],
    )
    axes.set_ylim(-0.7, len(spans) - 0.3)
    plain(axes, grid=False)
    axes.grid(visible=True, axis="x")
    if hidden := len(reported.violations) - len(spans):
        axes.set_title(
            f"and {hidden} more signatures", loc="right", fontsize=8, color=COLOUR["muted"]
        )
    return titles


def _short(function: str) -> str:
    return function if len(function) <= 22 else f"{function[:21]}…"


def lifetime(name: str, histogram: ReportedHistogram, width: float) -> str:
    """How long migration entries lived."""

    def paint(figure: Figure) -> dict[str, str]:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = figure.subplots()
        titles = _bars(axes, histogram, 0, 1, "l")
        _seconds_axis(axes)
        plain(axes)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        for share, label in ((0.5, "half"), (0.99, "99 %")):
            at = histogram.below(share)
            axes.axvline(at, color=COLOUR["ink"], linewidth=0.8, linestyle=(0, (2, 2)))
            axes.annotate(
                f"{label} below {duration(at)} ",
                (at, 1),
                xycoords=("data", "axes fraction"),
                **_BESIDE[share],
            )
        axes.set_ylim(top=1.22 * max(histogram.counts))
        return titles

    return draw(
        name,
        width,
        190,
        f"{histogram.count} migration entries, half of them gone within {duration(histogram.below(0.5))}",
        paint,
    )


_BESIDE: dict[float, dict[str, str]] = {
    0.5: {"ha": "right", "va": "top"},
    0.99: {"ha": "right", "va": "top"},
}


def durations(
    name: str, rows: Sequence[tuple[str, ReportedHistogram]], width: float, *, vmas: bool = False
) -> str:
    """Histograms one above the other on one axis, each as high as its own highest bar, with count, median and 99th percentile."""
    say: Callable[[float], str] = (lambda value: f"{value:.0f}") if vmas else duration

    def paint(figure: Figure) -> dict[str, str]:
        axes = figure.subplots()
        titles = dict[str, str]()
        for row, (label, histogram) in enumerate(reversed(rows)):
            titles |= _bars(
                axes, histogram, row, max(histogram.some.counts, default=1) / 0.56, f"r{row}-", say
            )
            axes.axhline(row, color=COLOUR["line"], linewidth=0.6)
            place = {"xycoords": ("axes fraction", "data"), "va": "top"}
            axes.annotate(label, (0, row + 0.96), weight="bold", **place)
            axes.annotate(
                _said(histogram, say),
                (1, row + 0.96),
                ha="right",
                color=COLOUR["muted"],
                fontsize=8,
                **place,
            )
        _seconds_axis(axes, vmas=vmas)
        if not any(
            histogram.some.bounds for _, histogram in rows
        ):  # an axis of logarithms has no place for nothing but 0
            axes.set_xlim(rows[0][1].unit, 1000 * rows[0][1].unit)
        axes.set_ylim(0, len(rows))
        axes.set_yticks([])
        plain(axes, grid=False)
        axes.grid(visible=True, axis="x")
        return titles

    return draw(
        name,
        width,
        _ROW * len(rows) + 26,
        f"durations of {', '.join(label for label, _ in rows)}",
        paint,
    )


def _said(histogram: ReportedHistogram, say: Callable[[float], str]) -> str:
    """How many, how long, and for how many it was nothing at all."""
    some = histogram.some
    zeros = "" if some.count == histogram.count else f", {compact(some.count)} not 0"
    spread = (
        f" · half < {say(some.below(0.5))} · 99 % < {say(some.below(0.99))}" if some.count else ""
    )
    return f"{compact(histogram.count)}{zeros}{spread}"


def _bars(
    axes: Axes,
    histogram: ReportedHistogram,
    base: float,
    full: float,
    prefix: str,
    say: Callable[[float], str] = duration,
) -> dict[str, str]:
    """Bars from half a bound to the bound, standing on `base`, where `full` counts are 1 high."""
    titles = {}
    some = histogram.some
    lefts, widths = (
        [bound / 2 for bound in some.bounds],
        [bound / 2 * 0.94 for bound in some.bounds],
    )
    drawn = axes.bar(
        lefts,
        [count / full for count in some.counts],
        widths,
        base,
        align="edge",
        color=COLOUR["blue"],
    )
    for number, (bar, bound, count) in enumerate(zip(drawn, some.bounds, some.counts, strict=True)):
        if count:
            bar.set_gid(f"{prefix}{number}")
            titles[f"{prefix}{number}"] = f"{say(bound / 2)} to {say(bound)}: {count:,}"
    return titles


def _seconds_axis(axes: Axes, *, vmas: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if vmas else duration(value))
    )


_BOX = 0.62
_STEP = 0.72
"""Half the width of a class's box, and from one class to the next."""


def lock_graph(name: str, graph: ReportedLockGraph, width: float) -> str:
    """Classes in the documented order, outermost on top. An arrow goes from a lock that is held to the one that is then waited for: down
    on the right as documented, up on the left against the order."""
    classes = sorted(graph.classes, key=lambda one: one.rank)
    place = {one.id: -_STEP * row for row, one in enumerate(classes)}
    most = max((edge.count for edge in graph.edges), default=1)
    reach = [_reach(edge, place) for edge in graph.edges]
    left, right = min([-0.05, *reach]) - _BOX - 0.2, max([0.05, *reach]) + _BOX + 0.2

    def paint(figure: Figure) -> dict[str, str]:
        from matplotlib.patches import FancyBboxPatch

        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        titles = dict[str, str]()
        for one in classes:
            at = (-_BOX + 0.06, place[one.id] - 0.09)
            box = {
                "boxstyle": "round,pad=0.06",
                "facecolor": COLOUR["soft"],
                "edgecolor": COLOUR["line"],
            }
            axes.add_patch(FancyBboxPatch(at, 2 * _BOX - 0.12, 0.18, zorder=4, **box))
            axes.text(
                0,
                place[one.id],
                one.name.replace(" of ", "\nof "),
                ha="center",
                va="center",
                weight="bold",
                zorder=5,
            )
        for number, edge in enumerate(sorted(graph.edges, key=lambda edge: edge.count)):
            titles |= _arrow(axes, edge, place, most, f"e{number}")
        axes.set_xlim(left, right)
        axes.set_ylim(min(place.values()) - 0.3, 0.3)
        return titles

    height = width * (0.6 - min(place.values())) / (right - left)
    said = "; ".join(f"{edge.taken} under {edge.held} {edge.count}" for edge in graph.edges)
    return draw(name, width, height, f"lock classes: {said}", paint)


def _reach(edge: Edge, place: dict[str, float]) -> float:
    """How far out its arc goes: right where it leads down, left where it leads up."""
    down = place[edge.held] - place[edge.taken]
    return (0.3 + 0.3 * (abs(down) / _STEP - 1)) * (1 if down > 0 else -1)


def _arrow(axes: Axes, edge: Edge, place: dict[str, float], most: int, gid: str) -> dict[str, str]:
    """An arc, wider where it happened more often, further out where it spans more."""
    from math import log10

    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    start, end, out = place[edge.held], place[edge.taken], _reach(edge, place)
    side = 1 if out > 0 else -1
    x, lean = side * (_BOX + 0.02), side * 0.08
    way = Path(
        [
            (x, start - lean),
            (x + out * 4 / 3, start - lean),
            (x + out * 4 / 3, end + lean),
            (x, end + lean),
        ],
        [1, 4, 4, 4],
    )
    colour = COLOUR["bad" if side < 0 else "blue"]
    wide = 0.8 + 2 * log10(1 + edge.count) / log10(1 + most) if edge.count else 0.8
    axes.add_patch(
        arrow := FancyArrowPatch(
            path=way,
            arrowstyle="-|>",
            mutation_scale=9 + 2 * wide,
            linewidth=wide,
            color=colour,
            zorder=2,
        )
    )
    arrow.set_gid(gid)
    box = {"facecolor": COLOUR["paper"], "edgecolor": "none", "pad": 1.2}
    weight = "bold" if side < 0 else "normal"
    axes.text(
        x + out,
        (start + end) / 2,
        compact(edge.count),
        ha="center",
        va="center",
        color=colour,
        weight=weight,
        bbox=box,
        zorder=3,
    )
    modes = ", ".join(f"{count:,} for {mode}" for mode, count in edge.modes.items())
    return {gid: f"{edge.taken} taken with {edge.held} held: {modes}"}


def histograms(report: Report, name: str) -> list[tuple[str, ReportedHistogram]]:
    """Those of this name, by what tells them apart, the most counted first; none of nothing."""
    found = [one for one in report.histograms if one.name == name and one.count]
    if name.startswith("lock_"):
        spoken = {one.id: one.name for one in report.lock_graph.classes} | {"mmap": "mmap_lock"}
        return [
            (
                " ".join(
                    [
                        spoken.get(one.labels.get("class", ""), one.labels.get("class", "")),
                        one.labels.get("mode", ""),
                    ]
                ).strip(),
                one,
            )
            for one in found
        ]
    return sorted(
        ((" ".join(one.labels.values()), one) for one in found), key=lambda row: -row[1].count
    )
