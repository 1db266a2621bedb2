"""Fidelity: how much is probed, what that covers, and how a running session changes it.

A change loses no count and invents none. A window or an mmap_lock that began before the change is
not counted (epochs in probes/include/shared.h); what was counted before is checked with the old
coverage; locks that a task holds are forgotten where their release may not be seen.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from tracer import logs
from tracer.attach.attached import AttachedProbes
from tracer.attach.plan import HookState
from tracer.config import LEVELS, Config
from tracer.daemon.governor import Governor, Pace
from tracer.daemon.levels import ON_DEMAND, WINDOW_PROBE_OBJECTS, runs
from tracer.daemon.program_costs import ProgramCosts
from tracer.invariants.base import Coverage, Invariant
from tracer.process.users import User
from tracer.tables.epochs import Epochs
from tracer.tables.params import Params

log = logging.getLogger("rmapd")


_FOLIO_CHECKS = frozenset({"first_walk", "second_walk"})
"""Hooks that check folios. Where one is not attached the tracepoints check in its place, if the
oracle's calibration lets them find the folio of an entry."""


class Fidelity:
    """The level in force and the coverage with it.

    coverage has the coverage of each invariant and the reason. covered has the ids of those that
    are covered at all. Both are immutable: a change makes new ones. watchers are called after each
    change of the level or the coverage.
    """

    def __init__(
        self,
        level: str,
        loaded: AttachedProbes,
        params: Params,
        epochs: Epochs,
        costs: ProgramCosts,
        invariants: Mapping[str, Invariant],
        features: Collection[str],
        sampled_windows: int = Config().sampled_windows,
        absent_features: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Begin at a level whose hooks are attached.

        features: what is available without a hook, such as the oracle. absent_features: why others
        are not. sampled_windows: outermost
        windows of a function that are recorded per second and CPU where windows are sampled.
        """
        self.level = level
        self.governor: Governor | None = None
        self._loaded, self._params, self._epochs, self._costs = loaded, params, epochs, costs
        self._invariants, self._features = invariants, frozenset(features)
        self._sampled, self._rate = level == "sampled", sampled_windows
        self._absent_features, self._doubts = absent_features, dict[str, str]()
        self.watchers: list[Callable[[], None]] = []
        self._set_allowance()
        self._set_unhooked()
        self.coverage = self._compute_coverage()

    @property
    def covered(self) -> frozenset[str]:
        """The invariants that are covered, in full or in part."""
        return frozenset(
            name for name, (level, _) in self.coverage.items() if level is not Coverage.NONE
        )

    def renew_coverage(self) -> None:
        """Compute the coverage with the hooks that are attached now."""
        self._set_unhooked()
        self.coverage = self._compute_coverage()
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watch in self.watchers:
            watch()

    def sample(self, rate: int) -> None:
        """Set the windows of a function that are recorded per second and CPU, if sampled."""
        self._rate = rate
        self._set_allowance()
        self.renew_coverage()

    def _set_allowance(self) -> None:
        self._params.set(window_ns=10**9 // self._rate if self._sampled else 0)

    def _set_unhooked(self) -> None:
        absent = _FOLIO_CHECKS - self._loaded.attached()
        self._params.set_unhooked(absent if "oracle" in self._features else ())

    def _compute_coverage(self) -> Mapping[str, tuple[Coverage, str]]:
        available = self._loaded.attached() | self._features | self._on_demand()
        detached = [hook for hook in self._loaded.hooks if hook.state is HookState.DETACHED]
        reasons = {hook.hook.name: hook.reason for hook in detached}
        of_windows = {
            hook.hook.name: hook.reason
            for hook in detached
            if hook.probe_object in WINDOW_PROBE_OBJECTS
        }
        sampled = self._sampling_reason() if self._sampled else ""
        coverage = {
            name: one.coverage(available, of_windows if one.judge else reasons, sampled)
            for name, one in self._invariants.items()
        }
        for feature, why in self._absent_features.items():
            for name, one in self._invariants.items():
                wanted = feature in one.needs or (one.otherwise and feature in one.otherwise.hooks)
                if wanted and coverage[name][0] is Coverage.NONE:
                    coverage[name] = Coverage.NONE, f"{coverage[name][1]} ({why})"
        for name, doubt in self._doubts.items():
            level, reason = coverage[name]
            if level is not Coverage.NONE:
                coverage[name] = Coverage.PARTIAL, "; ".join(filter(None, [reason, doubt]))
        return MappingProxyType(coverage)

    def _on_demand(self) -> frozenset[str]:
        """Return the hooks that are paused until they are needed: they are there then."""
        return frozenset(
            hook.hook.name
            for hook in self._loaded.hooks
            if hook.state is HookState.PAUSED and hook.probe_object in ON_DEMAND
        )

    def doubt(self, doubts: Mapping[str, str]) -> None:
        """Make the coverage of these invariants partial for now; doubts has the reasons."""
        if doubts != self._doubts:
            self._doubts = dict(doubts)
            self.renew_coverage()

    def _sampling_reason(self) -> str:
        """Return why coverage is partial while windows are sampled; empty: none are recorded."""
        if not any(
            hook.on and hook.probe_object in WINDOW_PROBE_OBJECTS for hook in self._loaded.hooks
        ):
            return ""
        rate = f"{self._rate:,}"
        return f"windows are sampled: {rate} outermost ones of a function a second, on each CPU"

    def govern(
        self, config: Config, user: User | None = None, pace: Pace | None = None
    ) -> list[str]:
        """Start the governor where fidelity is `auto` and BPF statistics are on; return its levels.

        Where privileges are to be dropped, also start the process that attaches paused hooks again.
        user: that it becomes.
        """
        levels = self.offered(config)
        measured = self._costs.statistics
        if config.fidelity != "auto" or not measured.available or len(levels) == 1:
            levels = levels[:1]
        if config.drop_privileges:
            paused_at_times = {
                hook.probe_object
                for hook in self._loaded.hooks
                if hook.probe_object in ON_DEMAND or not runs(hook.probe_object, levels[-1])
            }
            if paused_at_times or measured.in_samples:
                self._loaded.start_reattach_helper(
                    paused_at_times, user, statistics=measured.in_samples
                )
        if len(levels) == 1:
            return levels
        self.governor = Governor(levels, config.budget, os.cpu_count() or 1, pace)
        return levels

    def offered(self, config: Config) -> list[str]:
        """Return the levels that a governor may choose, the most expensive first.

        Each pauses some hooks or samples windows, and costs required invariants no coverage
        (strict: all invariants). From `sampled` on, windows are sampled at every level.
        """
        needed = list(self._invariants) if config.strict else config.require
        offered, before = [LEVELS[0]], self._attached_at(LEVELS[0])
        sampled = self._sampling_reason()
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
        attached = (h.hook.name for h in self._loaded.hooks if h.on and runs(h.probe_object, level))
        return frozenset(attached) | self._on_demand()

    @property
    def changes(self) -> dict[str, int]:
        """How often the governor has lowered and raised the level."""
        governor = self.governor
        return {
            "lower": governor.lowered if governor else 0,
            "raise": governor.raised if governor else 0,
        }

    def look(self, now: float, count: Callable[[], None]) -> None:
        """Let the governor decide, if it is due, and carry out its decision.

        now: seconds of a monotonic clock. count() checks all that is recorded with the present
        coverage.
        """
        governor, measured = self.governor, self._costs.statistics
        measured.look(hold=governor is not None and governor.about_to_lower)
        if governor is None or not measured.available or not governor.due(now):
            return
        statistics = measured.read()
        factor = self._costs.sampling_factor(statistics) if self.level == "sampled" else 1.0
        spent = self._costs.by_level(governor.levels, statistics)
        decision = governor.look(now, spent, factor)
        if decision is None:
            return
        before = self.level
        refused = self.change(decision.level, decision.why, count)
        if refused:
            governor.stay()
            self.change(before, "the kernel refuses to attach what that needs", count)
            still = ", windows stay sampled" if self._sampling_reason() else ""
            log.error(
                "fidelity stays %s: %s%s; a restart may help", before, "; ".join(refused), still
            )
            return
        covered = [name for name in self.coverage if name in self.covered]
        log.warning(
            "fidelity %s instead of %s: %s; covered now: %s",
            self.level,
            before,
            decision.why,
            " ".join(covered) or "nothing",
            extra=logs.fields(
                fidelity=self.level, before=before, why=decision.why, covered=covered
            ),
        )

    def change(self, level: str, why: str, count: Callable[[], None]) -> list[str]:
        """Go to a level: pause and resume hooks; return a reason for each that the kernel refuses.

        why goes into the reason of paused hooks. count() is called once no new window can begin.
        """
        every = {hook.probe_object for hook in self._loaded.hooks}
        pause = {one for one in every if runs(one, self.level) and not runs(one, level)}
        resume = {one for one in every if not runs(one, self.level) and runs(one, level)}
        changing = pause | resume
        resampled = self._sampled != (level != LEVELS[0])
        windows = resampled or not changing.isdisjoint(WINDOW_PROBE_OBJECTS)
        with self._epochs.changing_hooks(windows=windows, mmap_locks="mmap_lock" in changing):
            count()
            self._loaded.pause(pause, f"the governor has lowered fidelity to {level}: {why}")
            refused = self._loaded.resume(resume)
            self._sampled = level != LEVELS[0]
            self._set_allowance()
            self._costs.restart()
            self.renew_coverage()
        self.level = level
        self._tell_watchers()
        return refused
