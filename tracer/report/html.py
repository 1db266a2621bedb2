"""`rmapd report` as HTML: one file without scripts and without requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

import tracer
from tracer import icon
from tracer.report import lock_graph_plot, plots, protocol_html
from tracer.report.model import ReportContents, ReportedLockNesting, ReportedViolation, RunReport
from tracer.report.similarity import legal_counterpart
from tracer.report.summary import (
    functions,
    headline,
    hook_groups,
    lost_events,
    notation,
    origin,
    tiles,
)
from tracer.time_text import before_last, utc

_TEMPLATES = Path(__file__).parent / "templates"
_OPEN = 5
"""Violations that are unfolded at first."""
_SHOWN = 8
"""Windows at the end of a trail that are not folded."""
_MOST = 200
"""Violations on the page."""
_WIDE, _NARROW, _GRAPH = 640, 350, 270
"""Widths of the plots in points."""


def render(reported: ReportContents) -> str:
    """Return the page; RmapdError if matplotlib is not installed."""
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    templates.filters |= {"utc": utc, "protocol": protocol_html.one_line}
    return templates.get_template("report.html").render(_page(reported)).lstrip()


def _drawn(svg: str) -> Markup:
    """Mark SVG that rmapd drew itself as safe HTML."""
    return Markup(svg)  # noqa: S704 - rmapd draws it


def _page(reported: ReportContents) -> dict[str, Any]:
    report = reported.report
    top = headline(reported)
    titles = {id: one.title for id, one in report.invariants.items()}
    wide, narrow = (
        _drawn(plots.timeline(f"t{width}", reported, width)) for width in (_WIDE, _NARROW)
    )
    return {
        "report": report,
        "runs": reported.runs[::-1],
        "source": reported.source,
        "version": tracer.__version__,
        "css": Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        "headline": top,
        "origin": origin(reported),
        "tiles": tiles(reported),
        "sections": [each for each in _SECTIONS if each[0] != "runs" or reported.runs],
        "timeline": {"wide": wide, "narrow": narrow, "caption": _caption(reported)},
        "violations": [_violation(v, titles, reported) for v in reported.violations[:_MOST]],
        "hidden": len(reported.violations[_MOST:]),
        "open": _OPEN,
        "shown": _SHOWN,
        "lock_graph": _drawn(lock_graph_plot.lock_graph("locks", report.lock_graph, _GRAPH))
        if report.lock_graph.edges
        else "",
        "edges": [
            _edge(edge, report)
            for edge in sorted(report.lock_graph.edges, key=lambda edge: -edge.count)
        ],
        "plots": [each | {"svg": Markup(each["svg"])} for each in _durations(report)],  # noqa: S704
        "functions": functions(report),
        "hooks": hook_groups(report),
        "lost": lost_events(report),
        "notation": notation(reported),
        "icon": quote(icon.svg(top.colour)),
        "cost": _cost(report),
    }


_SECTIONS = (
    ("time", "Over time"),
    ("violations", "Violations"),
    ("runs", "Runs"),
    ("coverage", "Coverage"),
    ("locks", "Locks"),
    ("durations", "Durations"),
    ("protocols", "Protocols"),
    ("hooks", "Hooks and cost"),
)


def _caption(reported: ReportContents) -> str:
    """Return the caption of the timeline."""
    rates = "Findings per hour, of all runs" if reported.runs else "Checks and windows per second"
    return (
        f"{rates}; below, each defect from its first sighting to its last."
        if reported.violations
        else f"{rates}."
    )


def _violation(
    v: ReportedViolation, titles: dict[str, str], reported: ReportContents
) -> dict[str, Any]:
    """Return what the template shows of a violation."""
    ends = [step["time_ns"] for step in v.trail if isinstance(step.get("time_ns"), int)]
    trail = [_step_of_trail(step, max(ends, default=0)) for step in v.trail]
    if trail and not any(step["marked"] for step in trail):
        # An older rmapd marked no step: the last one is at fault if it did what was found.
        trail[-1]["marked"] = bool(v.protocol) and (
            trail[-1]["function"],
            trail[-1]["protocol"],
        ) == (v.function, v.protocol)
    members = {name: getattr(v, name) for name in v.__struct_fields__}
    shown: dict[str, Any] = {
        "title": titles.get(v.invariant, ""),
        "trail": trail,
        "note": str(v.evidence.get("trail_note", "")),
    }
    shown |= {"seen": protocol_html.one_line(v.protocol), "legal": "", "windows": 0}
    if both := legal_counterpart(v, reported.report_of(v)):
        shown |= {"windows": both[1].count} | dict(
            zip(("seen", "legal"), protocol_html.compared(*both), strict=True)
        )
    return members | shown | {"evidence": _known(v.evidence), "machine": _known(v.machine)}


def _known(evidence: dict[str, Any]) -> dict[str, Any]:
    """Drop empty members, and the note on the trail, which has its own place."""
    return {
        name: each
        for name, each in evidence.items()
        if each not in ({}, [], "", None) and name != "trail_note"
    }


def _step_of_trail(step: dict[str, Any], last: int) -> dict[str, Any]:
    task, vma, when = step.get("task") or {}, step.get("vma") or {}, step.get("time_ns")
    before = last - when if isinstance(when, int) else None
    return {
        "when": "" if before is None else before_last(before),
        "function": str(step.get("function", "")),
        "task": f"{task.get('comm', '')}[{task['pid']}]"
        if isinstance(task, dict) and "pid" in task
        else "",
        "vma": _range(vma) if isinstance(vma, dict) else "",
        "protocol": str(step.get("protocol", "")),
        "marked": step.get("marked") is True,
        "why": str(step.get("why", "")),
    }


def _range(vma: dict[str, Any]) -> str:
    """Return start-end of a VMA, after the earlier range if it differs."""
    was, now = (
        f"{vma[a]}-{vma[b]}" if a in vma and b in vma else ""
        for a, b in (("was_start", "was_end"), ("vm_start", "vm_end"))
    )
    return f"{was} →\n{now}" if was and now and was != now else now or was


def _edge(edge: ReportedLockNesting, report: RunReport) -> dict[str, Any]:
    classes = {one.id: one for one in report.lock_graph.classes}
    held, taken = classes[edge.held], classes[edge.taken]
    return {
        "held": held.name,
        "taken": taken.name,
        "against": taken.rank < held.rank,
        "in_cycle": edge.in_cycle,
        "write": edge.modes.get("write", 0),
        "read": edge.modes.get("read", 0),
        "functions": sorted(edge.functions, key=lambda name: -edge.functions[name]),
        "stack": edge.stack,
    }


def _durations(report: RunReport) -> list[dict[str, str]]:
    found = []
    for _, histogram in plots.histograms(report, "migration_entry_seconds"):
        caption = f"{histogram.count:,} entries, from insertion to removal."
        found.append(
            {
                "title": "Lifetime of migration entries",
                "svg": plots.lifetime("life", histogram, _NARROW),
                "caption": caption,
            }
        )
    for name, title, caption in _ROWS:
        rows = plots.histograms(report, name)
        if rows:
            drawn = plots.durations(name, rows, _NARROW, vmas=name.endswith("_vmas"))
            found.append({"title": title, "svg": drawn, "caption": caption})
    return found


_ROWS = (
    (
        "lock_wait_seconds",
        "Waiting for locks",
        "From request to acquisition: mmap_lock of all tasks, other classes inside windows.",
    ),
    (
        "lock_hold_seconds",
        "Holding locks",
        "From acquisition to release: mmap_lock of all tasks (one in seven is timed), "
        "other classes inside windows.",
    ),
    ("window_seconds", "Windows", "One call of the function, from entry to return."),
    ("rmap_walk_vmas", "VMAs visited by an rmap walk", "A number, not a time."),
)


def _cost(report: RunReport) -> str:
    runs, seconds = (
        sum(getattr(one, what) for one in report.overhead.hooks.values())
        for what in ("runs", "seconds")
    )
    each = f", {seconds / runs * 1e6:.2g} µs each" if runs else ""
    user, mebibytes = report.overhead.user_seconds, report.overhead.rss_bytes / (1 << 20)
    gap = report.overhead.longest_tick_gap_seconds
    ticks = f"; its ticks were at most {gap:.1f} s apart" if gap else ""
    return (
        f"their programs ran {runs:,} times for {seconds:.2f} s{each}; "
        f"rmapd itself used {user:.2f} s of CPU time and {mebibytes:.0f} MiB{ticks}"
    )
