"""A run as KTAP (Documentation/dev-tools/ktap.rst): one test point per invariant, SKIP where nothing was checked."""

from __future__ import annotations

from tracer.snapshot import Snapshot
from tracer.verdict import Verdict


def as_ktap(s: Snapshot) -> str:
    """`not ok` for violated; suspects and unverifiable checks are diagnostics."""
    lines = ["KTAP version 1", f"1..{len(s.invariants)}"]
    for number, (name, invariant) in enumerate(s.invariants.items(), 1):
        counts = {verdict: s.checked(name, verdict) for verdict in Verdict}
        coverage, reason = s.coverage[name]
        lines.append("# " + name + " " + " ".join(f"{verdict}={count}" for verdict, count in counts.items()) + f" coverage={coverage}")
        skip = "" if any(counts.values()) else f" # SKIP {reason or 'nothing of the kind happened'}"
        lines.append(f"{'not ok' if counts[Verdict.VIOLATED] else 'ok'} {number} {name}: {invariant.title}{skip}")
    return "\n".join(lines) + "\n"
