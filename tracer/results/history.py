"""The last ten minutes, from which rates are computed.

The points are immutable and replaced as a whole, so HTTP threads may read them at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.invariants.verdict import Verdict
from tracer.results.snapshot import Snapshot

STEP_SECONDS = 2.0
KEPT_SECONDS = 600.0


@dataclass(frozen=True)
class HistoryPoint:
    """Counts since the gate opened, at `seconds` after it did."""

    seconds: float
    checks: Mapping[str, int]
    unverifiable: int
    windows: int
    entries: int
    lost: int
    probe_seconds: float
    user_seconds: float
    outstanding: int = 0

    @classmethod
    def of(cls, s: Snapshot) -> HistoryPoint:
        """Return the counts of a snapshot."""
        return cls(
            seconds=s.running_seconds,
            checks={
                name: sum(s.checked(name, verdict) for verdict in Verdict) for name in s.invariants
            },
            unverifiable=s.total(Verdict.UNVERIFIABLE),
            windows=sum(times.count for times in s.window_times.values()),
            entries=s.counters.get("ENTRIES_RECORDED", 0),
            lost=sum(s.lost.values()),
            probe_seconds=sum(one.seconds for one in s.statistics.values()),
            user_seconds=s.user_seconds,
            outstanding=s.outstanding,
        )


def longer(points: tuple[HistoryPoint, ...], snapshot: Snapshot) -> tuple[HistoryPoint, ...]:
    """Return the points with this snapshot's added, without those that are too old.

    Unchanged if the last point is younger than STEP_SECONDS.
    """
    now = snapshot.running_seconds
    if points and now - points[-1].seconds < STEP_SECONDS:
        return points
    return (
        *(point for point in points if now - point.seconds <= KEPT_SECONDS),
        HistoryPoint.of(snapshot),
    )
