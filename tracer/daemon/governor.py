"""The governor: how much to probe for the budget. Pure decisions from what programs cost; it attaches nothing and reads no clock.

Levels are in order, the one that costs the most first. A group is what runs at a level and not at the next one below: its cost can be
measured while it is attached only (a level may also have no group of its own, and do all of the next one's work where that does a
part). So what the cost would be at the level above is guessed from what it was of the whole when it was
last there, and where that cannot tell (nothing else ran), from trying, more and more rarely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Seconds. look: between two looks; over: above the budget that long, it lowers; under: as it would be below it that long, it raises;
    rest: at a level that it lowered to, at least, and twice as long for each raise that it had to take back, up to longest_rest.
    ease: of the budget, that the guess must keep within."""

    look: float = 2.0
    over: float = 10.0
    under: float = 30.0
    rest: float = 60.0
    longest_rest: float = 3600.0
    ease: float = 0.7


_Look = tuple[float, Mapping[str, float]]
"""When, and what was spent by then."""
_TELLING = (
    0.05  # what is left must be that much of the whole, or noise in it would tell the whole's size
)


@dataclass(frozen=True)
class LevelChange:
    """The level to go to, and why in the words of the log."""

    level: str
    why: str


class Governor:
    """look() regularly; a decision is taken as carried out, unless stay() says that it could not be."""

    def __init__(
        self, levels: Sequence[str], budget: float, cpus: int, pace: Pace | None = None
    ) -> None:
        self.levels, self.budget, self.pace = list(levels), budget, pace or Pace()
        self.lowered = self.raised = 0
        self.share = 0.0
        self._cpus, self._at = cpus, 0
        self._last: _Look | None = None
        self._over: _Look | None = None
        self._under: _Look | None = None
        self._changed: float = float("-inf")
        self._tried: float = float("-inf")
        self._rest = self.pace.rest
        self._more = 1.0
        self._whole_by_left: list[
            float | None
        ] = []  # per step down: what the cost was, over what was left of it

    @property
    def level(self) -> str:
        return self.levels[self._at]

    def due(self, now: float) -> bool:
        """Whether look() would look: what it needs costs something, too."""
        return self._last is None or now - self._last[0] >= self.pace.look

    def look(self, now: float, spent: Mapping[str, float], more: float = 1.0) -> LevelChange | None:
        """spent: seconds in programs since they were loaded, by the lowest level that they run at. more: how many times as much they would
        do at the level above, where they do a part of it here."""
        if not self.due(now):
            return None
        last, self._last = self._last, (now, spent)
        if last is None:
            return None
        self.share = (sum(spent.values()) - sum(last[1].values())) / (now - last[0]) / self._cpus
        self._over = (self._over or last) if self.share > self.budget else None
        self._more = more
        fits = self._guess() <= self.pace.ease * self.budget
        self._under = (self._under or last) if fits else None
        if self._over and now - self._over[0] >= self.pace.over and self._at + 1 < len(self.levels):
            return self._lower(now, spent, self._over[1])
        rested = now - self._changed >= self._rest
        if self._at and rested and self._under and now - self._under[0] >= self.pace.under:
            return self._raise(now)
        return None

    def _guess(self) -> float:
        """The share that the level above would cost; what there is where nobody knows."""
        factor = self._whole_by_left[-1] if self._whole_by_left else 1.0
        return self.share * (factor or 1.0) * self._more

    def _lower(
        self, now: float, spent: Mapping[str, float], then: Mapping[str, float]
    ) -> LevelChange:
        whole = sum(spent.values()) - sum(then.values())
        left = whole - (spent.get(self.level, 0.0) - then.get(self.level, 0.0))
        in_vain = now - self._tried < self.pace.rest
        self._rest = min(2 * self._rest, self.pace.longest_rest) if in_vain else self.pace.rest
        self._whole_by_left.append(whole / left if left >= _TELLING * whole else None)
        self._go(1, now)
        self.lowered += 1
        return LevelChange(
            self.level,
            f"programs take {self.share:.2%} of the machine's CPU time, the budget is {self.budget:.2%}",
        )

    def _raise(self, now: float) -> LevelChange:
        guess = self._guess()
        self._whole_by_left.pop()
        self._go(-1, now)
        self.raised += 1
        self._tried = now
        return LevelChange(
            self.level,
            f"programs would take some {guess:.2%} of the machine's CPU time, the budget is {self.budget:.2%}",
        )

    def _go(self, steps: int, now: float) -> None:
        self._at += steps
        self._changed, self._over, self._under = now, None, None

    def stay(self) -> None:
        """The last raise was refused: back to the level before it, for good. What is above is not offered again."""
        self._at += 1
        del self.levels[: self._at]
        self._at, self.raised = 0, self.raised - 1
        self._whole_by_left.clear()
