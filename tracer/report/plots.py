"""The plots of a report over time and of histograms; lock_graph_plot.py draws the lock graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tracer.report.model import ReportContents, ReportedHistogram, ReportedViolation, RunReport
from tracer.report.svg import COLOUR, compact, draw, plain
from tracer.time_text import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SPANS = 24
_VERDICT = {"violated": "bad", "suspect": "warn"}
_ROW = 33.0


def timeline(name: str, reported: ReportContents, width: float) -> str:
    """Draw rates over a run, or findings per hour of a store, and below the span of each signature.

    name: unique on the page. width: in points. Returns the SVG, empty if there is nothing to draw.
    """
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


def _moment(moment: Any, reported: ReportContents) -> Any:
    """Return a moment's place on the axis: its time for a store, seconds since start for a run."""
    return moment if reported.runs else (moment - _beginning(reported)).total_seconds()


def _beginning(reported: ReportContents) -> Any:
    return reported.report.started or min(v.first_seen for v in reported.violations)


def _time_axis(axes: Axes, reported: ReportContents) -> None:
    if reported.runs:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_xlabel("UTC")
        return
    axes.set_xlabel(
        "seconds since recording began"
        if reported.report.started
        else "seconds since the first violation"
    )
    if reported.report.started:
        axes.set_xlim(0, max(reported.report.duration_seconds, 1))


def _rates(axes: Axes, reported: ReportContents) -> None:
    """Draw rates as steps: a rate is known between two moments, not at one."""
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


def _hours(axes: Axes, reported: ReportContents) -> None:
    """Draw the violations and suspects of each hour as stacked bars."""
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


def _spans(
    axes: Axes, spans: Sequence[ReportedViolation], reported: ReportContents
) -> dict[str, str]:
    """Draw a line per signature, from first to last sighting; return its tooltip by gid."""
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
    """Draw the histogram of how long migration entries lived; returns the SVG."""

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
                f"{label} below {short(at)} ",
                (at, 1),
                xycoords=("data", "axes fraction"),
                ha="right",
                va="top",
            )
        axes.set_ylim(top=1.22 * max(histogram.counts))
        return titles

    half = short(histogram.below(0.5))
    title = f"{histogram.count} migration entries, half of them removed within {half}"
    return draw(name, width, 190, title, paint)


def durations(
    name: str, rows: Sequence[tuple[str, ReportedHistogram]], width: float, *, vmas: bool = False
) -> str:
    """Draw histograms one above the other on one axis, each scaled to its own highest bar.

    rows: label and histogram. vmas: the values are numbers of VMAs, not seconds. Each row has its
    count, median and 99th percentile. Returns the SVG.
    """
    as_text: Callable[[float], str] = (lambda value: f"{value:.0f}") if vmas else short

    def paint(figure: Figure) -> dict[str, str]:
        axes = figure.subplots()
        titles = dict[str, str]()
        for row, (label, histogram) in enumerate(reversed(rows)):
            titles |= _bars(
                axes,
                histogram,
                row,
                max(histogram.without_zeros.counts, default=1) / 0.56,
                f"r{row}-",
                as_text,
            )
            axes.axhline(row, color=COLOUR["line"], linewidth=0.6)
            place = {"xycoords": ("axes fraction", "data"), "va": "top"}
            axes.annotate(label, (0, row + 0.96), weight="bold", **place)
            axes.annotate(
                _summary(histogram, as_text),
                (1, row + 0.96),
                ha="right",
                color=COLOUR["muted"],
                fontsize=8,
                **place,
            )
        _seconds_axis(axes, vmas=vmas)
        # A logarithmic axis has no place for 0.
        if not any(histogram.without_zeros.bounds for _, histogram in rows):
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


def _summary(histogram: ReportedHistogram, as_text: Callable[[float], str]) -> str:
    """Return count, median and 99th percentile of the values that are not 0."""
    positive = histogram.without_zeros
    zeros = "" if positive.count == histogram.count else f", {compact(positive.count)} not 0"
    half, most = (as_text(positive.below(share)) for share in (0.5, 0.99))
    spread = f" · half < {half} · 99 % < {most}" if positive.count else ""
    return f"{compact(histogram.count)}{zeros}{spread}"


def _bars(
    axes: Axes,
    histogram: ReportedHistogram,
    base: float,
    full: float,
    prefix: str,
    as_text: Callable[[float], str] = short,
) -> dict[str, str]:
    """Draw bars from half a bound to the bound on `base`; `full` counts are 1 high."""
    titles = {}
    positive = histogram.without_zeros
    lefts, widths = (
        [bound / 2 for bound in positive.bounds],
        [bound / 2 * 0.94 for bound in positive.bounds],
    )
    drawn = axes.bar(
        lefts,
        [count / full for count in positive.counts],
        widths,
        base,
        align="edge",
        color=COLOUR["blue"],
    )
    rows = zip(drawn, positive.bounds, positive.counts, strict=True)
    for number, (bar, bound, count) in enumerate(rows):
        if count:
            bar.set_gid(f"{prefix}{number}")
            titles[f"{prefix}{number}"] = f"{as_text(bound / 2)} to {as_text(bound)}: {count:,}"
    return titles


def _seconds_axis(axes: Axes, *, vmas: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if vmas else short(value))
    )


def histograms(report: RunReport, name: str) -> list[tuple[str, ReportedHistogram]]:
    """Return the histograms of this name that counted anything, by their labels.

    Lock histograms keep the order of the report; the others come with the highest count first.
    """
    found = [one for one in report.histograms if one.name == name and one.count]
    if name.startswith("lock_"):
        names = {one.id: one.name for one in report.lock_graph.classes} | {"mmap": "mmap_lock"}
        return [
            (
                " ".join(
                    [
                        names.get(one.labels.get("class", ""), one.labels.get("class", "")),
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
