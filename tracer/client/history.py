"""Rates from counts: the last ten minutes of a daemon, and what is hot in the last seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tracer.client.answers import Function, Lock, Rates
from tracer.results.history import KEPT_SECONDS, HistoryPoint, per_second

NOW_SECONDS = 10.0
"""A rate that is printed as `now` is of this time at least, where it is known for so long."""


Counted = Callable[[HistoryPoint], float]


@dataclass(frozen=True)
class History:
    """The points of one run of a daemon, the oldest first."""

    points: tuple[HistoryPoint, ...] = ()

    @property
    def last(self) -> float:
        """The time of the last point in seconds, or -1."""
        return self.points[-1].seconds if self.points else -1.0

    def longer(self, rates: Rates) -> History:
        """Return the history with the later points of an answer, without those that are too old."""
        new = [
            HistoryPoint(
                seconds,
                {name: column[n] for name, column in rates.checks.items()},
                rates.unverifiable[n],
                rates.windows[n],
                rates.entries[n],
                rates.lost[n],
                rates.probe_seconds[n],
                rates.user_seconds[n],
                rates.outstanding[n],
            )
            for n, seconds in enumerate(rates.seconds)
            if seconds > self.last
        ]
        every = (*self.points, *new)
        return History(tuple(p for p in every if every[-1].seconds - p.seconds <= KEPT_SECONDS))

    def now(self, counted: Counted) -> float | None:
        """Return the rate per second over the last seconds, or None with fewer than two points."""
        return per_second(self.points, NOW_SECONDS, counted)

    def rates(self, counted: Counted, span: float, bins: int) -> list[float]:
        """Return the rates per second in equal parts of the last `span` seconds, the latest last.

        A part that lies between two points has the rate between them. Parts before the first point
        are left out.
        """
        steps = [
            (a.seconds, b.seconds, max(0.0, counted(b) - counted(a)) / (b.seconds - a.seconds))
            for a, b in pairwise(self.points)
        ]
        return self._parts(steps, span, bins)

    def levels(self, counted: Counted, span: float, bins: int) -> list[float]:
        """Return a count that rises and falls, in equal parts of the last `span` seconds."""
        steps = [(a.seconds, b.seconds, counted(b)) for a, b in pairwise(self.points)]
        return self._parts(steps, span, bins)

    def _parts(
        self, steps: Iterable[tuple[float, float, float]], span: float, bins: int
    ) -> list[float]:
        """Return the value of the step in the middle of each part."""
        found, rest = [], list(steps)
        for n in range(bins):
            middle = self.last - span * (bins - n - 0.5) / bins
            while rest and rest[0][1] < middle:
                rest.pop(0)
            if rest and rest[0][0] <= middle:
                found.append(rest[0][2])
        return found


@dataclass(frozen=True)
class Speed:
    """How often something takes place in a second, and how many seconds of it."""

    count: float
    seconds: float


Totals = Mapping[str, tuple[int, float]]
"""Name -> count and seconds since the gate opened."""


@dataclass(frozen=True)
class Speeds:
    """Totals of the last looks, from which it follows what is hot now. Times are monotonic."""

    looks: tuple[tuple[float, Totals], ...] = ()
    by_name: Mapping[str, Speed] = field(default_factory=dict)

    def later(self, when: float, totals: Totals) -> Speeds:
        """Return the speeds after one more look."""
        kept = [look for look in self.looks if when - look[0] <= NOW_SECONDS]
        looks = (*(kept or self.looks[-1:]), (when, totals))
        began, before = looks[0]
        if when <= began:
            return Speeds(looks)
        nothing = (0, 0.0)
        speeds = {
            name: Speed(
                max(0, count - before.get(name, nothing)[0]) / (when - began),
                max(0.0, seconds - before.get(name, nothing)[1]) / (when - began),
            )
            for name, (count, seconds) in totals.items()
        }
        return Speeds(looks, speeds)


def totals(functions: Sequence[Function], locks: Sequence[Lock]) -> Totals:
    """Return the totals of functions, of waits for locks, and of holds, by key."""
    found = {one.function: (one.count, one.seconds) for one in functions}
    for lock in locks:
        found[wait_key(lock)] = (lock.wait.count, lock.wait.seconds)
        found[hold_key(lock)] = (lock.hold.count, lock.hold.seconds)
    return found


def wait_key(lock: Lock) -> str:
    """Return the key of the waits for a lock."""
    return f"wait {lock.name}"


def hold_key(lock: Lock) -> str:
    """Return the key of the holds of a lock."""
    return f"hold {lock.name}"
