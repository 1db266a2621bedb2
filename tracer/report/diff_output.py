"""The result of `rmapd diff` as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracer.printable import printable
from tracer.report.diff import ComparedRun, Difference, Grade, nothing_to_compare


def as_json(a: ComparedRun, b: ComparedRun, found: Sequence[Difference]) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    rows = [
        {
            "grade": d.grade.name.lower(),
            "alarming": d.grade.alarms,
            "side": d.side,
            "function": d.function,
            "protocol": d.text,
        }
        | {"count": d.count, "nearest": d.nearest, "why": d.why}
        for d in found
    ]
    compared = {"comparable": not (why := nothing_to_compare(a, b)), "reason": why}
    return compared | {
        "a": {"file": a.name, "kernel": a.kernel},
        "b": {"file": b.name, "kernel": b.kernel},
        "differences": rows,
    }


def as_text(a: ComparedRun, b: ComparedRun, found: Sequence[Difference]) -> str:
    """Return the comparison as text: alarming differences in full, others in a line each."""
    alarming = sum(d.grade.alarms for d in found)
    lines = [
        f"{run.name}: {run.kernel}, {len(run.protocols)} protocols"
        + (f"; {run.unsampled:,} windows were not sampled" if run.unsampled else "")
        for run in (a, b)
    ]
    counted = f"{len(found)} differences, {alarming} of them alarming"
    why = nothing_to_compare(a, b)
    lines += (
        [f"There was nothing to compare. {why}"]
        if why and not alarming
        else [why, counted]
        if why
        else [counted]
    )
    grade = None
    for d in found:
        if d.grade is not grade:
            grade = d.grade
            lines += ["", f"{'!! ' if grade.alarms else ''}{grade.heading}"]
        lines.append(
            f"{d.count:12,}  only {d.side}: {d.text}"
            if d.grade is not Grade.RATE
            else f"{d.count:12,}  {d.text}: {d.why}"
        )
        if d.grade is not Grade.RATE and d.why:
            lines.append(f"{'':14}{d.why}")
        if d.grade.alarms and d.nearest:
            lines.append(f"{'':14}most similar:  {d.nearest}")
    return "\n".join(map(printable, lines)) + "\n"
