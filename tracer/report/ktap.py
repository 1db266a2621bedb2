"""A run as KTAP (Documentation/dev-tools/ktap.rst): one test point per invariant, SKIP where nothing was decided."""

from __future__ import annotations

from collections.abc import Collection

from tracer.invariants.verdict import Verdict
from tracer.printable import printable
from tracer.report.tap_points import TapPoint, said, tap_points
from tracer.results.snapshot import Snapshot


def as_ktap(s: Snapshot, bad: Collection[Verdict] = (Verdict.VIOLATED,)) -> str:
    """`not ok` for what is bad; counts and signatures are diagnostics, before the point that they are of."""
    found = tap_points(s, bad)
    lines = ["KTAP version 1", f"1..{len(found)}", *(f"# {_plain(line)}" for line in said(s))]
    for number, point in enumerate(found, 1):
        lines += _point(number, point)
    return "\n".join(lines) + "\n"


def _point(number: int, point: TapPoint) -> list[str]:
    seen = [
        f"{v.first.verdict} {v.first.id} x{v.count} {v.first.function}: {v.first.summary}"
        for v in point.found
    ]
    skip = f" # SKIP {_plain(point.skip)}" if point.skip else ""
    diagnostics = [f"# {point.id} {point.seen}", *(f"# {_plain(line)}" for line in seen)]
    return [
        *diagnostics,
        f"{'not ok' if point.failed else 'ok'} {number} {point.id}: {point.title}{skip}",
    ]


def _plain(text: str) -> str:
    """One line: a name that a task gave itself must not end it, and begin a test point."""
    return printable(text).replace("#", "\\#")
