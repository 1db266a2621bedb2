"""What rmapd itself fails to see: hooks that are detached or come back, and missed program runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from tracer import logs
from tracer.attach.attached import AttachedProbes
from tracer.attach.liveness import LivenessCheck
from tracer.checking.missed_runs import MissedRuns
from tracer.daemon.fidelity import Fidelity
from tracer.daemon.levels import WINDOW_PROBE_OBJECTS
from tracer.invariants.base import Invariant, UnbrokenRuns

log = logging.getLogger("rmapd")


class LossTracker:
    """Finds out what is not seen; the checker's HookLosses.

    look() asks the kernel, logs changes and renews the coverage. Everything else only reads what
    the last look found.
    """

    def __init__(
        self,
        loaded: AttachedProbes,
        liveness: LivenessCheck,
        fidelity: Fidelity,
        invariants: Mapping[str, Invariant],
        clock: Callable[[], int],
    ) -> None:
        """Track these hooks. clock: CLOCK_MONOTONIC in nanoseconds."""
        self._loaded, self._liveness, self._fidelity = loaded, liveness, fidelity
        self._changes: Counter[str] = Counter()  # hooks detached or back, by probe object
        self._windows_missed = 0
        self.unbroken: Mapping[str, MissedRuns] = {
            name: MissedRuns(partial(self._count, one.unbroken), clock)
            for name, one in invariants.items()
            if one.unbroken
        }

    @property
    def windows_missed(self) -> int:
        """Missed runs of programs of windows, and changes of their hooks, as of the last look."""
        return self._windows_missed

    def look(self) -> frozenset[str]:
        """Look at the hooks and at the missed runs; return the invariants that are covered now.

        Call it before anything is checked: windows during which a hook was detached or came back
        prove nothing.
        """
        changed = self._find_changed_hooks()
        if changed:
            self._fidelity.renew_coverage()
        changes = sum(self._changes[probe_object] for probe_object in WINDOW_PROBE_OBJECTS)
        self._windows_missed = changes + self._loaded.missed(
            lambda hook: hook.probe_object in WINDOW_PROBE_OBJECTS
        )
        for missed in self.unbroken.values():
            missed.look()
        return self._fidelity.covered

    def _find_changed_hooks(self) -> list[str]:
        """Find hooks that were detached or came back since the last look, log and count them."""
        changed = self._loaded.update_detached(self._liveness.check())
        for hook in changed:
            self._changes[hook.probe_object] += 1
            why = f": {hook.reason}" if hook.reason else " again"
            values = {"hook": hook.hook.name, "state": hook.state.value, "reason": hook.reason}
            log.warning(
                "hook %s is %s%s", hook.hook.name, hook.state, why, extra=logs.fields(**values)
            )
        return [hook.hook.name for hook in changed]

    def _count(self, needed: UnbrokenRuns) -> int:
        """Count missed runs of these programs, and changes of hooks of their probe object."""
        return self._changes[needed.probe_object] + self._loaded.missed(
            lambda hook: hook.hook.name in needed.hooks
        )


def run_counts(loaded: AttachedProbes) -> dict[str, int]:
    """Return how often each hook's programs ran, missed runs included.

    Empty where rmapd has not switched the kernel's statistics on: another program that did may
    switch them off.
    """
    if not loaded.statistics_on:
        return {}
    return {name: one.runs + one.missed for name, one in loaded.statistics().items()}
