"""A run as KTAP (Documentation/dev-tools/ktap.rst), with a test point per invariant."""

from __future__ import annotations

from collections.abc import Collection

from tracer.invariants.verdict import Verdict
from tracer.printable import printable
from tracer.report.tap_points import TapPoint, notes, tap_points
from tracer.results.snapshot import Snapshot


def as_ktap(s: Snapshot, bad: Collection[Verdict] = (Verdict.VIOLATED,), ending: str = "") -> str:
    """Return the run as KTAP.

    bad: the verdicts that make a point `not ok`. ending: how the command and rmapd ended, in lines.
    Counts and signatures are diagnostic lines before their point. A point without a decision is
    skipped.
    """
    found = tap_points(s, bad)
    about = [*filter(None, ending.split("\n")), *notes(s)]
    lines = ["KTAP version 1", f"1..{len(found)}", *(f"# {_plain(line)}" for line in about)]
    for number, point in enumerate(found, 1):
        lines += _point(number, point)
    return "\n".join(lines) + "\n"


def _point(number: int, point: TapPoint) -> list[str]:
    findings = [
        f"{v.first.verdict} {v.first.id} x{v.count} {v.first.function}: {v.first.summary}"
        for v in point.found
    ]
    skip = f" # SKIP {_plain(point.skip)}" if point.skip else ""
    diagnostics = [f"# {point.id} {point.checks}", *(f"# {_plain(line)}" for line in findings)]
    return [
        *diagnostics,
        f"{'not ok' if point.failed else 'ok'} {number} {point.id}: {point.title}{skip}",
    ]


def _plain(text: str) -> str:
    """Escape line ends and #: a task's name must not begin a test point."""
    return printable(text).replace("#", "\\#")
