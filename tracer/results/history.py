"""The last ten minutes, from which rates are computed.

The points are immutable and replaced as a whole, so HTTP threads may read them at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tracer.invariants.verdict import Verdict
from tracer.results.snapshot import Snapshot

STEP_SECONDS = 2.0
KEPT_SECONDS = 600.0
RATE_SECONDS = 60.0
"""Rates that are printed as one number are of this time."""


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

    @property
    def all_checks(self) -> int:
        """The checks of all invariants."""
        return sum(self.checks.values())

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


def per_second(
    points: Sequence[HistoryPoint], seconds: float, counted: Callable[[HistoryPoint], float]
) -> float | None:
    """Return the rate per second over the last `seconds`, or None with fewer than two points."""
    if len(points) < 2:
        return None
    last = points[-1]
    first = next(point for point in points if last.seconds - point.seconds <= seconds)
    first = points[-2] if first is last else first
    return max(0.0, counted(last) - counted(first)) / (last.seconds - first.seconds)
