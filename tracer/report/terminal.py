"""The report of a run as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tracer
from tracer.attach.plan import HookState
from tracer.invariants.verdict import Verdict, Violation
from tracer.printable import printable
from tracer.protocol.text import text
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries
from tracer.results.standing_facts import standing


def as_text(s: Snapshot, argv: Sequence[str], exit_code: int) -> str:
    """Return a summary of the run, then all findings; argv, exit_code: of the command of exec."""
    lines = [
        f"rmapd {tracer.__version__} on {s.kernel}, {s.running_seconds:.1f} s: "
        f"{' '.join(argv)} (exit {exit_code})",
        "",
    ]
    lines += [*standing(s).lines(), ""]
    lines.append(
        f"{'':4} {'coverage':8} {'holds':>10} {'violated':>9} {'suspect':>8} {'unverifiable':>13}"
    )
    for name in s.invariants:
        if sum(s.checked(name, verdict) for verdict in Verdict) or s.coverage[name][0] != "none":
            h, v, u, x = (s.checked(name, verdict) for verdict in Verdict)
            lines.append(f"{name:4} {s.coverage[name][0]:8} {h:10,} {v:9,} {u:8,} {x:13,}")
    none = [name for name in s.invariants if s.coverage[name][0] == "none"]
    lines.append(f"not checked: {', '.join(none) or 'none'} (rmapd doctor prints the reasons)")
    lines += _windows_text(s)
    if s.rest:
        lines += [
            "",
            f"{sum(s.rest.values()):,} findings of further signatures, "
            f"beyond the {len(s.violations):,} that are kept with evidence",
        ]
    lines += ["", "lost: " + ", ".join(f"{kind} {count}" for kind, count in s.lost.items())]
    oldest = f", the oldest for {s.oldest_entry_seconds:.3g} s" if s.outstanding else ""
    lines.append(f"outstanding: {entries(s.outstanding)} without removal or verdict{oldest}")
    asked, sweeps, cleared = (s.oracle.get(name, 0) for name in ("asked", "sweeps", "cleared"))
    lines.append(f"oracle: {asked} addresses read, {sweeps} sweeps, {cleared} cleared")
    absent = [
        f"{h.hook.name} {h.state} ({h.reason})"
        for h in s.hooks
        if h.state in (HookState.MISSING, HookState.DENIED)
    ]
    lines += [f"hook: {line}" for line in absent]
    for violation in s.violations.values():
        lines += ["", *violation_text(violation)]
    return "\n".join(map(printable, lines)) + "\n"


def _windows_text(s: Snapshot) -> list[str]:
    """Return the windows of each function, and its protocols with their windows."""
    lines, unsampled = [""], sum(s.windows_unsampled.values())
    if unsampled:
        lines.append(f"{unsampled:10,} windows were not recorded, because of sampling")
    for name, histogram in s.window_times.items():
        ruled = sorted(
            (one for one in s.protocols if one.protocol.window == name),
            key=lambda one: -one.windows,
        )
        if histogram.count:
            lines.append(f"{histogram.count:10,} {name}")
            lines += [f"{one.windows:16,}  {text(one.protocol)}" for one in ruled]
    outside = [one for one in s.protocols if one.protocol.window == "outside"]
    lines += [f"{one.windows:10,} {text(one.protocol)}" for one in outside]
    return lines if lines[1:] else []


def violation_text(v: Violation) -> list[str]:
    """Return a violation as a few printable lines."""
    f = v.first
    lines = [
        f"{f.verdict.upper()} {f.invariant} ×{v.count} [{f.id}] {f.function}: {f.summary}",
        f"    {f.signature}",
    ]
    if f.task:
        lines.append(f"    task {f.task.get('comm')}[{f.task.get('pid')}]")
    lines += [f"    {line}" for line in f.stack]
    return list(map(printable, [*lines, f"    evidence: {json.dumps(f.evidence)}"]))
