"""The report of a run as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tracer
from tracer import screen
from tracer.invariants.verdict import Verdict, Violation
from tracer.printable import printable
from tracer.protocol.text import text
from tracer.results.audit import AuditProgress
from tracer.results.hook_groups import HookGroups, group
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries, lost_text
from tracer.results.standing_facts import standing
from tracer.screen import NARROW


def as_text(s: Snapshot, argv: Sequence[str], ending: str, width: int = NARROW) -> str:
    """Return a summary of the run, then all findings.

    argv: of the command of exec. ending: how it and rmapd ended. width: columns to wrap sentences
    at; protocols, stacks and evidence keep their lines.
    """
    head = f"rmapd {tracer.__version__} on {s.kernel}, {s.running_seconds:.1f} s: {' '.join(argv)}"
    lines = [
        *_wrapped(head, width),
        *_wrapped(ending, width),
        "",
        *_wrapped("\n".join(standing(s, hooks=False).lines()), width, "  "),
        "",
    ]
    lines.append(
        f"{'':4} {'coverage':8} {'holds':>10} {'violated':>9} {'suspect':>8} {'unverifiable':>13}"
    )
    for name in s.invariants:
        if sum(s.checked(name, verdict) for verdict in Verdict) or s.coverage[name][0] != "none":
            h, v, u, x = (s.checked(name, verdict) for verdict in Verdict)
            lines.append(f"{name:4} {s.coverage[name][0]:8} {h:10,} {v:9,} {u:8,} {x:13,}")
    none = [name for name in s.invariants if s.coverage[name][0] == "none"]
    checked = f"not checked: {', '.join(none) or 'none'} (rmapd doctor prints the reasons)"
    lines += [*_wrapped(checked, width), *_windows_text(s)]
    if s.rest:
        rest = (
            f"{sum(s.rest.values()):,} findings of further signatures, "
            f"beyond the {len(s.violations):,} that are kept with evidence"
        )
        lines += ["", *_wrapped(rest, width)]
    lines.append("")
    for line in (*_losses(s), *hook_lines(group(s.hooks, s.invariants))):
        lines += _wrapped(line, width)
    for violation in s.violations.values():
        lines += ["", *violation_text(violation)]
    return "\n".join(map(printable, lines)) + "\n"


def _losses(s: Snapshot) -> list[str]:
    """Return what was lost and what is outstanding, then what the oracle and the audit did."""
    oldest = f", the oldest for {s.oldest_entry_seconds:.3g} s" if s.outstanding else ""
    asked, sweeps, cleared = (s.oracle.get(name, 0) for name in ("asked", "sweeps", "cleared"))
    oracle = f"{asked} addresses read, {sweeps} sweeps, {cleared} cleared"
    if s.oracle_reason:
        oracle = f"not calibrated ({s.oracle_reason}): suspects stay suspects"
    return [
        f"lost: {lost_text(s.lost)}",
        f"outstanding: {entries(s.outstanding)} without removal or verdict{oldest}",
        f"oracle: {oracle}",
        audit_line(s.audit),
    ]


def hook_lines(groups: HookGroups) -> list[str]:
    """Return how many hooks are attached, and a line for each reason why others are not."""
    details = " (rmapd doctor -v lists them)" if groups.off else ""
    return [f"{groups.head}{details}", *(f"  {one.sentence}" for one in groups.off)]


def _wrapped(text: str, width: int, indent: str = "    ") -> list[str]:
    return [
        line for one in text.split("\n") for line in screen.wrapped(printable(one), width, indent)
    ]


def audit_line(audit: AuditProgress) -> str:
    """Return what the state audit looked at, in one line."""
    if audit.reason:
        return f"audit: none ({audit.reason})"
    names = ("mms", "vmas", "nodes", "climbs")
    looked, ended = (audit.counted.get(name, 0) for name in names), audit.doubts
    mms, vmas, nodes, climbs = looked
    return (
        f"audit: {mms:,} looks at {audit.known_mms:,} mms, {vmas:,} VMAs, {nodes:,} maple nodes, "
        f"{climbs:,} climbs; {sum(ended.values()):,} doubts, {ended.get('cleared', 0):,} cleared"
    )


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
