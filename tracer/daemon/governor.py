"""Decides how much to probe within the budget, from what programs cost.

The governor is pure: it attaches nothing and reads no clock. Levels are ordered by cost, the most
expensive first. A group is the set of hooks that run at a level and not at the next lower one, so
its cost can be measured only while it is attached. A level may also have no group of its own: then
it does all of the work that the next lower level does in part.

The governor therefore estimates the cost of the level above from the share of the total that its
group had when it last ran. Where that share says nothing, because nothing else ran, it tries the
level above, less and less often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """The times of the governor in seconds, and its margin.

    look: between two measurements. over: so long above the budget before it lowers. under: so long
    with an estimate below the budget before it raises. rest: the shortest stay at a level that it
    lowered to; it doubles for each raise that had to be undone, up to longest_rest. ease: the share
    of the budget that the estimate must stay within.
    """

    look: float = 2.0
    over: float = 10.0
    under: float = 30.0
    rest: float = 60.0
    longest_rest: float = 3600.0
    ease: float = 0.7


_Measurement = tuple[float, Mapping[str, float]]
"""A time, and the seconds spent in programs by then."""
_MIN_SHARE = 0.05
"""The remaining groups must be this share of the total, or their noise decides the estimate."""


@dataclass(frozen=True)
class LevelChange:
    """The level to change to, and the reason as the log has it."""

    level: str
    why: str


class Governor:
    """Call look() regularly. Its decision counts as carried out, unless stay() follows.

    share is the share of the machine's CPU time between the last two measurements.
    """

    def __init__(
        self, levels: Sequence[str], budget: float, cpus: int, pace: Pace | None = None
    ) -> None:
        self.levels, self.budget, self.pace = list(levels), budget, pace or Pace()
        self.lowered = self.raised = 0
        self.share = 0.0
        self._cpus, self._at = cpus, 0
        self._last: _Measurement | None = None
        self._over: _Measurement | None = None
        self._under: _Measurement | None = None
        self._changed: float = float("-inf")
        self._tried: float = float("-inf")
        self._rest = self.pace.rest
        self._factor = 1.0
        # for each step down: the cost before it, divided by the cost that remained
        self._cost_ratios: list[float | None] = []

    @property
    def level(self) -> str:
        """The level in force."""
        return self.levels[self._at]

    @property
    def about_to_lower(self) -> bool:
        """Whether the cost is above the budget, and there is a cheaper level."""
        return self._over is not None and self._at + 1 < len(self.levels)

    def due(self, now: float) -> bool:
        """Return whether look() would measure now: what it needs has a cost, too."""
        return self._last is None or now - self._last[0] >= self.pace.look

    def look(
        self, now: float, spent: Mapping[str, float], factor: float = 1.0
    ) -> LevelChange | None:
        """Take a measurement, and decide.

        spent: seconds in programs since they were loaded, by the lowest level that they run at.
        factor: how many times as much work the same programs would do at the level above.
        """
        if not self.due(now):
            return None
        last, self._last = self._last, (now, spent)
        if last is None:
            return None
        self.share = (sum(spent.values()) - sum(last[1].values())) / (now - last[0]) / self._cpus
        self._over = (self._over or last) if self.share > self.budget else None
        self._factor = factor
        fits = self._estimate() <= self.pace.ease * self.budget
        self._under = (self._under or last) if fits else None
        if self._over and now - self._over[0] >= self.pace.over and self._at + 1 < len(self.levels):
            return self._lower(now, spent, self._over[1])
        rested = now - self._changed >= self._rest
        if self._at and rested and self._under and now - self._under[0] >= self.pace.under:
            return self._raise(now)
        return None

    def _estimate(self) -> float:
        """Estimate the share of the level above; without a ratio it is the present share."""
        ratio = self._cost_ratios[-1] if self._cost_ratios else 1.0
        return self.share * (ratio or 1.0) * self._factor

    def _lower(
        self, now: float, spent: Mapping[str, float], then: Mapping[str, float]
    ) -> LevelChange:
        whole = sum(spent.values()) - sum(then.values())
        left = whole - (spent.get(self.level, 0.0) - then.get(self.level, 0.0))
        undone = now - self._tried < self.pace.rest
        self._rest = min(2 * self._rest, self.pace.longest_rest) if undone else self.pace.rest
        self._cost_ratios.append(whole / left if left >= _MIN_SHARE * whole else None)
        self._go(1, now)
        self.lowered += 1
        return LevelChange(
            self.level,
            f"programs take {self.share:.2%} of the machine's CPU time,"
            f" the budget is {self.budget:.2%}",
        )

    def _raise(self, now: float) -> LevelChange:
        estimate = self._estimate()
        self._cost_ratios.pop()
        self._go(-1, now)
        self.raised += 1
        self._tried = now
        return LevelChange(
            self.level,
            f"programs would take some {estimate:.2%} of the machine's CPU time,"
            f" the budget is {self.budget:.2%}",
        )

    def _go(self, steps: int, now: float) -> None:
        self._at += steps
        self._changed, self._over, self._under = now, None, None

    def stay(self) -> None:
        """Take back the last raise, which was refused, and never offer the levels above again."""
        self._at += 1
        del self.levels[: self._at]
        self._at, self.raised = 0, self.raised - 1
        self._cost_ratios.clear()
