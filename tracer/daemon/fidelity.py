"""Fidelity: how much is probed, what is covered with that, and how a running session changes it.

A change loses no count and makes none up. Windows and mmap_locks that began before it ended are not counted (shared.h: epochs); what was
counted before it is judged by what was covered then; what a task holds is forgotten where its release may go unseen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from tracer.attach.attached import AttachedProbes
from tracer.attach.plan import HookState
from tracer.bpf.programs import RunStatistics
from tracer.config import LEVELS, Config
from tracer.daemon.governor import Governor
from tracer.invariants.base import Coverage, Invariant
from tracer.tables.allowances import Allowances
from tracer.tables.epochs import Epochs
from tracer.tables.params import Params
from tracer.tables.window_times import WindowTimes

log = logging.getLogger("rmapd")

WINDOW_PROBE_OBJECTS = ("vma", "locks", "rmap")
_UNSAMPLED_COST = 1 / 7
"""What a window that is not booked costs of one that is (tests.bench.programs)."""
_PROBE_OBJECTS = {
    "migration": frozenset({"migration", "ledger", "page_tables", "objects", "forks"}),
    "owner": frozenset({"migration", "ledger", "page_tables", "objects", "forks", "vma", "rmap"}),
}


def probe_objects(level: str) -> frozenset[str] | None:
    """The stems that run at this level; None: all."""
    return _PROBE_OBJECTS.get(level)


def runs(probe_object: str, level: str) -> bool:
    return level not in _PROBE_OBJECTS or probe_object in _PROBE_OBJECTS[level]


class Fidelity:
    """The level in force. `checked`: the invariants that have coverage with it, another set after each change."""

    def __init__(
        self,
        level: str,
        loaded: AttachedProbes,
        params: Params,
        epochs: Epochs,
        window_times: WindowTimes,
        allowances: Allowances,
        invariants: Mapping[str, Invariant],
        features: Collection[str],
        sampled_windows: int = Config().sampled_windows,
    ) -> None:
        self.level = level
        self.coverage: Mapping[str, tuple[Coverage, str]] = {}
        self.checked: frozenset[str] = frozenset()
        self.governor: Governor | None = None
        self._loaded, self._params, self._epochs = loaded, params, epochs
        self._invariants, self._features = (
            invariants,
            frozenset(features),
        )
        self._window_times, self._allowances = window_times, allowances
        self._sampled, self._rate = level == "sampled", sampled_windows
        self._counted = (0.0, 0.0, 0.0, 0.0)
        self._doubts: dict[str, str] = {}
        self._sample()
        self.cover()

    def sample(self, rate: int) -> None:
        """From now on so many windows of a function are booked a second, on each CPU, where windows are sampled."""
        self._rate = rate
        self._sample()
        self.cover()

    def _sample(self) -> None:
        self._params.set(window_ns=10**9 // self._rate if self._sampled else 0)

    def cover(self) -> None:
        """What is checked with the hooks that are on now."""
        found = self._loaded.attached() | self._features
        gone = [hook for hook in self._loaded.hooks if hook.state is HookState.DETACHED]
        off = {hook.hook.name: hook.reason for hook in gone}
        of_windows = {
            hook.hook.name: hook.reason
            for hook in gone
            if hook.probe_object in WINDOW_PROBE_OBJECTS
        }
        sampled = self._how_sampled() if self._sampled else ""
        coverage = {
            name: one.coverage(found, of_windows if one.judge else off, sampled)
            for name, one in self._invariants.items()
        }
        for name, why in self._doubts.items():
            level, reason = coverage[name]
            if level is not Coverage.NONE:
                coverage[name] = Coverage.PARTIAL, "; ".join(filter(None, [reason, why]))
        self.coverage = MappingProxyType(coverage)
        self.checked = frozenset(
            name for name, (level, _) in self.coverage.items() if level is not Coverage.NONE
        )

    def doubt(self, doubts: Mapping[str, str]) -> None:
        """invariant -> why it is checked in part only, for now."""
        if doubts != self._doubts:
            self._doubts = dict(doubts)
            self.cover()

    def _how_sampled(self) -> str:
        """Empty where no window is seen."""
        if not any(
            hook.on and hook.probe_object in WINDOW_PROBE_OBJECTS for hook in self._loaded.hooks
        ):
            return ""
        return f"windows are sampled: {self._rate:,} outermost ones of a function a second, on each CPU"

    def offered(self, config: Config) -> list[str]:
        """The levels that a governor may choose: each takes some hooks off, or books fewer windows, and takes nothing from what is required
        (strict: from anything). From `sampled` on windows are sampled at all levels."""
        needed = list(self._invariants) if config.strict else config.require
        offered, before = [LEVELS[0]], self._attached_at(LEVELS[0])
        sampled = self._how_sampled()
        for level in LEVELS[1:]:
            left = self._attached_at(level)
            covered = {
                name: self._invariants[name].coverage(left | self._features, None, sampled)[0]
                for name in needed
            }
            if any(covered[name] is not self.coverage[name][0] for name in needed):
                break
            if left != before or (sampled and level == "sampled"):
                offered.append(level)
                before = left
        return offered

    def _attached_at(self, level: str) -> frozenset[str]:
        return frozenset(
            h.hook.name for h in self._loaded.hooks if h.on and runs(h.probe_object, level)
        )

    @property
    def changes(self) -> dict[str, int]:
        """How often the governor did what."""
        governor = self.governor
        return {
            "lower": governor.lowered if governor else 0,
            "raise": governor.raised if governor else 0,
        }

    def look(self, now: float, count: Callable[[], None]) -> None:
        """What the governor makes of the programs' run times. count: brings all that is booked before the judge, by today's coverage."""
        governor = self.governor
        if governor is None or not governor.due(now):
            return
        statistics = self._loaded.statistics()
        decision = governor.look(
            now, self._spent(governor.levels, statistics), self._more(statistics)
        )
        if decision is None:
            return
        before = self.level
        refused = self.change(decision.level, decision.why, count)
        if refused:
            governor.stay()
            self.change(before, "what that needs is refused now", count)
            still = ", windows stay sampled" if self._how_sampled() else ""
            log.error(
                "fidelity stays %s: %s%s; a restart may help", before, "; ".join(refused), still
            )
            return
        covered = [name for name, (level, _) in self.coverage.items() if level is not Coverage.NONE]
        log.warning(
            "fidelity %s instead of %s: %s; covered now: %s",
            self.level,
            before,
            decision.why,
            " ".join(covered) or "nothing",
        )

    def _more(self, statistics: Mapping[str, RunStatistics]) -> float:
        """At `sampled`: what all windows would cost, over what they cost now."""
        if self.level != "sampled":
            return 1.0
        now = self._sampled_so_far(statistics)
        booked, unsampled, in_windows, whole = (
            after - before for after, before in zip(now, self._counted, strict=True)
        )
        self._counted = now
        if booked + unsampled <= 0 or whole <= 0:
            return 1.0
        times = (booked + unsampled) / (booked + _UNSAMPLED_COST * unsampled)
        return 1.0 + (times - 1.0) * in_windows / whole

    def _sampled_so_far(
        self, statistics: Mapping[str, RunStatistics]
    ) -> tuple[float, float, float, float]:
        """Windows booked, those that were not, seconds in programs of windows, in all programs."""
        booked, unsampled = (
            sum(times.count for times in self._window_times.windows().values()),
            sum(self._allowances.unsampled().values()),
        )
        names = {
            hook.hook.name
            for hook in self._loaded.hooks
            if hook.probe_object in WINDOW_PROBE_OBJECTS
        }
        in_windows = sum(one.seconds for name, one in statistics.items() if name in names)
        return booked, unsampled, in_windows, sum(one.seconds for one in statistics.values())

    def _spent(
        self, levels: Sequence[str], statistics: Mapping[str, RunStatistics]
    ) -> dict[str, float]:
        """Seconds in programs by the lowest of these levels that they run at."""
        spent = dict.fromkeys(levels, 0.0)
        for hook in self._loaded.hooks:
            if hook.hook.name in statistics:
                lowest = [level for level in levels if runs(hook.probe_object, level)][
                    -1:
                ] or levels[:1]
                spent[lowest[0]] += statistics[hook.hook.name].seconds
        return spent

    def change(self, level: str, why: str, count: Callable[[], None]) -> list[str]:
        """Attach and detach what differs; why for each hook that the kernel refuses to take again."""
        every = {hook.probe_object for hook in self._loaded.hooks}
        pause = {
            probe_object
            for probe_object in every
            if runs(probe_object, self.level) and not runs(probe_object, level)
        }
        resume = {
            probe_object
            for probe_object in every
            if not runs(probe_object, self.level) and runs(probe_object, level)
        }
        changing = pause | resume
        resampled = self._sampled != (level != LEVELS[0])
        windows, mmap_locks = (
            resampled or not changing.isdisjoint(WINDOW_PROBE_OBJECTS),
            "mmap_lock" in changing,
        )
        with self._epochs.changing_hooks(windows=windows, mmap_locks=mmap_locks):
            count()
            self._loaded.pause(pause, f"the governor has lowered fidelity to {level}: {why}")
            refused = self._loaded.resume(resume)
            self._sampled = level != LEVELS[0]
            self._sample()
            self._counted = self._sampled_so_far(self._loaded.statistics())
            self.cover()
        self.level = level
        return refused
