"""How far the state audit has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Verdict, Violation

ENDED: Mapping[Verdict | None, str] = {
    Verdict.HOLDS: "cleared",
    None: "mm_gone",
    Verdict.VIOLATED: "violated",
    Verdict.UNVERIFIABLE: "unverifiable",
}
"""Verdict on a doubt -> the word in metrics and reports. None: its mm is gone."""


@dataclass(frozen=True)
class AuditProgress:
    """How far the audit has come, since the gate opened.

    counted: what was looked at, by the names in tracer.memory.vma_trees.COUNTED, and `mms`,
    `mms_gone`, `astray`, `map_counts`, `map_counts_disturbed`, `passes`. doubts: how they ended;
    open: how many are not decided. oldest_seconds: age of the mm whose last look is the longest
    ago. cpu_seconds: spent in looks. budget: the share of one CPU that it may take. reason: why
    there is no audit; empty where there is one.
    """

    counted: Mapping[str, int] = field(default_factory=dict)
    doubts: Mapping[str, int] = field(default_factory=dict)
    open: int = 0
    known_mms: int = 0
    oldest_seconds: float = 0.0
    cpu_seconds: float = 0.0
    budget: float = 0.0
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        """Return it with the keys of a report."""
        return {
            "ready": not self.reason,
            "reason": self.reason,
            **self.counted,
            "doubts": dict(self.doubts),
            "open_doubts": self.open,
            "known_mms": self.known_mms,
            "oldest_look_seconds": round(self.oldest_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 6),
            "budget": self.budget,
        }


@dataclass(frozen=True)
class AuditResult:
    """What one pass over all mms, or over that of one process, found.

    checks: by (invariant, verdict), of `invariants`. seconds: that the pass took.
    """

    kernel: str
    invariants: Mapping[str, Invariant]
    checks: Mapping[tuple[str, Verdict], int]
    violations: Mapping[str, Violation]
    progress: AuditProgress
    seconds: float
    pid: int | None = None
