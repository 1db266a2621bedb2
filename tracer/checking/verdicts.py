"""The verdicts of a run: its tally, and the findings that no output has taken yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tracer.checking.findings import Draft
from tracer.invariants.verdict import Finding, Tally, Verdict


class Verdicts:
    """Counts checks and keeps findings. wall: seconds since the epoch."""

    def __init__(self, tally: Tally, wall: Callable[[], float] = time.time) -> None:
        self.tally, self.wall = tally, wall
        self._new: list[Finding] = []

    def add(self, invariant: str, verdict: Verdict, count: int = 1) -> None:
        """Count checks that leave no finding."""
        self.tally.add(invariant, verdict, count)

    def record(self, draft: Draft, count: int = 1) -> None:
        """Count checks that ended in this finding. Its evidence is read only where its signature is new."""
        known = draft.outline.signature in self.tally.violations
        self.record_finding(draft.outline if known else draft.complete(), count)

    def record_finding(self, finding: Finding, count: int = 1) -> None:
        """Count checks that ended in this finding, whose evidence is read already."""
        if self.tally.record(finding, self.wall(), count):
            self._new.append(finding)

    def add_new(self, findings: Iterable[Finding]) -> None:
        """Take in findings that another has counted in the tally, and whose signatures were new."""
        self._new += findings

    @property
    def new(self) -> tuple[Finding, ...]:
        """Findings with new signatures, in the order in which they were found, that were not taken yet."""
        return tuple(self._new)

    def take_new(self) -> list[Finding]:
        """Return the new findings, and forget that they were new."""
        taken, self._new = self._new, []
        return taken
