"""`rmapd diff` of two results of `rmapd soak`: is one kernel violated sooner than the other?

survival.py has the test and why it was chosen.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from tracer import time_text
from tracer.errors import NOT_CHECKABLE, VIOLATED, RmapdError
from tracer.printable import printable
from tracer.report.soak import SoakResult, head, read_if_soak, summary_text
from tracer.report.survival import CONFIDENCE, RateComparison, compare_rates

ALARMS_BELOW = 0.05
"""`rmapd diff` exits with 3 where the probability of chance is below this."""


def read_both(a: Path, b: Path) -> tuple[SoakResult, SoakResult] | None:
    """Read two results; None where neither file is one. RmapdError where only one is."""
    ours, theirs = read_if_soak(a), read_if_soak(b)
    if ours and theirs:
        return ours, theirs
    if ours or theirs:
        other = b if ours else a
        raise RmapdError(
            "cannot compare a soak with another report",
            why=f"{other} is no result of a soak",
            hint="two files of rmapd soak --out",
        )
    return None


def compared(a: SoakResult, b: SoakResult) -> RateComparison | None:
    """Compare the rates; None where one of them watched nothing, or nothing is violated."""
    if not (a.times.total and b.times.total and (a.times.violated or b.times.violated)):
        return None
    return compare_rates(a.times, b.times)


def exit_code(a: SoakResult, b: SoakResult) -> int:
    """Return 3 where chance is improbable, 4 where there is nothing to compare, else 0."""
    found = compared(a, b)
    if found is None:
        return NOT_CHECKABLE
    return VIOLATED if found.chance < ALARMS_BELOW else 0


def unlike(a: SoakResult, b: SoakResult) -> list[str]:
    """Return what differs besides the kernel, so that the rates may differ because of it."""
    pairs: list[tuple[str, Any, Any]] = [
        ("loads", a.loads, b.loads),
        ("left out", sorted(a.left_out), sorted(b.left_out)),
        ("MiB of memory", a.limits.memory_bytes >> 20, b.limits.memory_bytes >> 20),
        ("MiB of tmpfs", a.limits.tmpfs_bytes >> 20, b.limits.tmpfs_bytes >> 20),
        ("processes", a.limits.processes, b.limits.processes),
        ("machine", a.machine, b.machine),
        ("host", a.host, b.host),
        ("rmapd", a.rmapd, b.rmapd),
        ("versions", a.versions, b.versions),
        ("watched by a daemon", _by_daemon(a), _by_daemon(b)),
        ("fidelity", _fidelity(a), _fidelity(b)),
        ("coverage", _coverage(a), _coverage(b)),
        ("runs that are not counted", _uncounted(a), _uncounted(b)),
    ]
    return [
        f"{name}: {' and '.join(map(_short, _apart(ours, theirs)))}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]


def _apart(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Return both values, without the members that are the same."""
    if not isinstance(ours, dict):
        return ours, theirs
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    ours, theirs = ({name: one[name] for name in names if name in one} for one in (ours, theirs))
    return ours, theirs


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _by_daemon(result: SoakResult) -> list[str]:
    return sorted({"yes" if run.daemon else "no" for run in result.runs})


def _fidelity(result: SoakResult) -> list[str]:
    levels = {r.fidelity + " (lowered)" * r.lowered for r in result.runs if r.fidelity}
    return sorted(levels)


def _coverage(result: SoakResult) -> dict[str, str]:
    """Return each invariant with its coverage, the lowest of the runs."""
    order, lowest = ("none", "partial", "full"), dict[str, str]()
    for run in result.runs:
        for name, level in run.coverage.items():
            lowest[name] = min(level, lowest.get(name, level), key=order.index)
    return lowest


def _uncounted(result: SoakResult) -> dict[str, int]:
    return dict(Counter(r.outcome for r in result.runs if r.outcome in ("lost", "unfinished")))


def as_json(a: SoakResult, b: SoakResult) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    found = compared(a, b)
    values: dict[str, Any] = {"comparable": found is not None}
    if found:
        ends = (found.ratio, found.interval.low, found.interval.high)
        ratio, low, high = (one if math.isfinite(one) else None for one in ends)
        values |= {
            "chance": found.chance,
            "differs": found.chance < ALARMS_BELOW,
            "rate_ratio": ratio,
            "rate_ratio_interval": [low, high],
            "confidence": CONFIDENCE,
        }
    return values | {
        "a": a.as_json()["statistics"] | {"kernel": a.kernel},
        "b": b.as_json()["statistics"] | {"kernel": b.kernel},
        "unlike": unlike(a, b),
    }


def as_text(a: SoakResult, b: SoakResult) -> str:
    """Return the comparison as text; the last line is the answer."""
    lines = []
    for name, result in (("A", a), ("B", b)):
        lines += [f"{name}: {head(result)}", *(f"   {line}" for line in summary_text(result))]
    lines += [f"not the same: {line}" for line in unlike(a, b)]
    return "\n".join(map(printable, [*lines, *_answer(a, b)])) + "\n"


def _answer(a: SoakResult, b: SoakResult) -> list[str]:
    found = compared(a, b)
    if found is None:
        why = "neither is violated" if a.times.total and b.times.total else "one watched no time"
        return [f"there is nothing to compare: {why}"]
    if a.times.violated and b.times.violated:
        ours, theirs = (1 / one.times.rate for one in (a, b))
        lines = [
            f"the first violation takes {time_text.two_units(ours)} in A and"
            f" {time_text.two_units(theirs)} in B, on average"
        ]
    else:
        lines = [f"only {'A' if a.times.violated else 'B'} is violated"]
    high = "no limit" if math.isinf(found.interval.high) else f"{found.interval.high:.3g}"
    ratio = "" if math.isinf(found.ratio) else f"{found.ratio:.3g}, "
    lines.append(
        f"rate of A by rate of B: {ratio}{CONFIDENCE:.0%}: {found.interval.low:.3g} to {high}"
    )
    verdict = "they differ" if found.chance < ALARMS_BELOW else "this may be chance"
    lines.append(f"probability of such a difference by chance alone: {found.chance:.2g}: {verdict}")
    return lines
