"""The last minutes, bounded: what rates are made of. Immutable points, replaced whole, so that HTTP threads may read them at any time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.snapshot import Snapshot
from tracer.verdict import Verdict

STEP_SECONDS = 2.0
KEPT_SECONDS = 600.0
_KEPT = int(KEPT_SECONDS / STEP_SECONDS) + 1


@dataclass(frozen=True)
class Point:
    """Counts since the gate opened, at `seconds` after it did."""

    seconds: float
    checks: Mapping[str, int]
    unverifiable: int
    windows: int
    entries: int
    lost: int
    probe_seconds: float
    user_seconds: float

    @classmethod
    def of(cls, s: Snapshot) -> Point:
        return cls(
            seconds=s.running_seconds,
            checks={name: sum(s.checked(name, verdict) for verdict in Verdict) for name in s.invariants},
            unverifiable=s.total(Verdict.UNVERIFIABLE),
            windows=sum(times.count for times in s.window_times.values()),
            entries=s.counters.get("ENTRIES_BOOKED", 0),
            lost=sum(s.lost.values()),
            probe_seconds=sum(one.seconds for one in s.statistics.values()),
            user_seconds=s.user_seconds,
        )


class Current:
    """What the HTTP threads read: the snapshot, None until the gate is open, and the points of the last ten minutes, oldest first."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self.points: tuple[Point, ...] = ()

    def __call__(self) -> Snapshot | None:
        return self._snapshot

    def take(self, snapshot: Snapshot) -> Snapshot:
        """From now on this one is current."""
        if not self.points or snapshot.running_seconds - self.points[-1].seconds >= STEP_SECONDS:
            self.points = (*self.points[1 - _KEPT :], Point.of(snapshot))
        self._snapshot = snapshot
        return snapshot
