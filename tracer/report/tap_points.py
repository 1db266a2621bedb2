"""A run as test points, one per invariant: the common part of KTAP and JUnit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tracer.invariants.verdict import Verdict, Violation
from tracer.results.snapshot import Snapshot
from tracer.results.standing import entries
from tracer.results.standing_facts import standing


@dataclass(frozen=True)
class TapPoint:
    """One invariant as a test point.

    skip: the reason, if nothing was decided. failed: the verdicts that made it fail, with counts.
    found: its violations and suspects.
    """

    id: str
    title: str
    counts: dict[Verdict, int]
    coverage: str
    skip: str
    failed: str
    found: tuple[Violation, ...]

    @property
    def checks(self) -> str:
        """Its checks by verdict and its coverage, in one line."""
        return " ".join(
            [
                *(f"{verdict}={count}" for verdict, count in self.counts.items()),
                f"coverage={self.coverage}",
            ]
        )


def tap_points(s: Snapshot, bad: Collection[Verdict] = (Verdict.VIOLATED,)) -> list[TapPoint]:
    """Return a point for each invariant.

    bad: the verdicts that fail a point; they also make rmapd exec exit with 3.
    """
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


def notes(s: Snapshot) -> list[str]:
    """Return lines about the whole run: standing, reasons, and entries without a verdict."""
    return [*standing(s).lines(), f"outstanding: {entries(s.outstanding)}"]


def _skipped(counts: dict[Verdict, int], reason: str) -> str:
    """Return why a point is skipped, or an empty text: undecided is neither ok nor not ok."""
    if not any(counts.values()):
        return reason or "nothing to check happened"
    unverifiable, all_ = counts[Verdict.UNVERIFIABLE], sum(counts.values())
    if unverifiable == all_:
        return f"none of {all_} checks could be verified, events were lost"
    if unverifiable > all_ / 2:
        return f"{unverifiable} of {all_} checks could not be verified, events were lost"
    return ""
