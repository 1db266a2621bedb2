"""The result of `rmapd audit` as text and as JSON."""

from __future__ import annotations

from typing import Any

from tracer.invariants.verdict import Verdict
from tracer.printable import printable
from tracer.report.terminal import violation_text
from tracer.results.audit import AuditResult
from tracer.results.json_form import violation_json

_LOOKED_AT = (
    ("mms", "address spaces"),
    ("vmas", "VMAs"),
    ("files", "VMAs of files"),
    ("nodes", "maple nodes"),
    ("chain_entries", "anon_vma_chains"),
    ("climbs", "climbs in interval trees"),
    ("samples", "pages sampled"),
    ("anon_pages", "anon pages of these, whose index was compared"),
)
_SKIPPED = (
    ("mms_gone", "mms that exited during the look"),
    ("astray", "looks that were led astray"),
    ("map_counts_disturbed", "map_counts of mms that changed meanwhile"),
)
_ENDED = (
    ("cleared", "a change met half-way"),
    ("mm_gone", "its mm exited"),
    ("violated", "violated"),
    ("unverifiable", "unverifiable"),
)


def as_text(result: AuditResult) -> str:
    """Return the table that `rmapd audit` prints, and each violation."""
    progress, counted = result.progress, result.progress.counted
    of = f"process {result.pid}" if result.pid else "every process"
    cpu = f"{progress.cpu_seconds * 1e3:.1f} ms of CPU time, {result.seconds * 1e3:.0f} ms"
    lines = [f"audit of {of} on {result.kernel}: {cpu}", ""]
    lines += [f"{counted.get(name, 0):12,} {words}" for name, words in _LOOKED_AT]
    lines += ["", f"{'':4} {'holds':>12} {'violated':>9} {'unverifiable':>13}"]
    for name, one in result.invariants.items():
        holds, violated, unverifiable = (
            result.checks.get((name, verdict), 0)
            for verdict in (Verdict.HOLDS, Verdict.VIOLATED, Verdict.UNVERIFIABLE)
        )
        lines.append(f"{name:4} {holds:12,} {violated:9,} {unverifiable:13,}  {one.title}")
    ended = [
        f"{count:,} {words}" for how, words in _ENDED if (count := progress.doubts.get(how, 0))
    ]
    lines += ["", f"doubts: {', '.join(ended) or 'none'}"]
    skipped = [f"{count:,} {words}" for name, words in _SKIPPED if (count := counted.get(name, 0))]
    lines.append(f"no verdict: {', '.join(skipped) or 'none'}")
    for violation in result.violations.values():
        lines += ["", *violation_text(violation)]
    return "\n".join(map(printable, lines)) + "\n"


def as_json(result: AuditResult) -> dict[str, Any]:
    """Return the result with the keys of a report."""
    return {
        "kernel": result.kernel,
        "pid": result.pid,
        "seconds": round(result.seconds, 6),
        "audit": result.progress.as_json(),
        "invariants": {
            name: {
                "title": one.title,
                "checks": {v.value: result.checks.get((name, v), 0) for v in Verdict},
            }
            for name, one in result.invariants.items()
        },
        "violations": [violation_json(violation) for violation in result.violations.values()],
    }
