"""A run as test points, one per invariant: what KTAP and JUnit say of it is the same."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tracer.invariants.verdict import Verdict, Violation
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries
from tracer.results.standing_facts import standing


@dataclass(frozen=True)
class TapPoint:
    """skip: the reason, where nothing was decided. failed: what made it fail, by verdict and count."""

    id: str
    title: str
    counts: dict[Verdict, int]
    coverage: str
    skip: str
    failed: str
    found: tuple[Violation, ...]

    @property
    def seen(self) -> str:
        """Its checks, and how far the kernel let them be made."""
        return " ".join(
            [
                *(f"{verdict}={count}" for verdict, count in self.counts.items()),
                f"coverage={self.coverage}",
            ]
        )


def tap_points(s: Snapshot, bad: Collection[Verdict] = (Verdict.VIOLATED,)) -> list[TapPoint]:
    """bad: the verdicts that fail a point, those that make rmapd exec exit with 3."""
    found = []
    for name, invariant in s.invariants.items():
        counts = {verdict: s.checked(name, verdict) for verdict in Verdict}
        coverage, reason = s.coverage[name]
        failed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in bad if counts[verdict])
        own = tuple(v for v in s.violations.values() if v.first.invariant == name)
        found.append(
            TapPoint(
                name,
                invariant.title,
                counts,
                coverage.value,
                "" if failed else _skipped(counts, reason if coverage == "none" else ""),
                failed,
                own,
            )
        )
    return found


def said(s: Snapshot) -> list[str]:
    """What concerns no single point: how the run stands, with its reasons, and what is left without a verdict."""
    return [*standing(s).lines(), f"outstanding: {entries(s.outstanding)}"]


def _skipped(counts: dict[Verdict, int], reason: str) -> str:
    """A point at which nothing was decided is neither ok nor not ok."""
    if not any(counts.values()):
        return reason or "nothing of the kind happened"
    unverifiable, all_ = counts[Verdict.UNVERIFIABLE], sum(counts.values())
    if unverifiable == all_:
        return f"none of {all_} checks could be verified, events were lost"
    if unverifiable > all_ / 2:
        return f"{unverifiable} of {all_} checks could not be verified, events were lost"
    return ""
