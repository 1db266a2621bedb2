"""What rmapd itself fails to see: hooks that are detached or come back, and runs of programs that the kernel leaves out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

from tracer.attach.attached import AttachedProbes
from tracer.attach.liveness import LivenessCheck
from tracer.checking.missed_runs import MissedRuns
from tracer.daemon.fidelity import WINDOW_PROBE_OBJECTS, Fidelity
from tracer.invariants.base import Invariant, UnbrokenRuns

log = logging.getLogger("rmapd")


class LossTracker:
    """Implements the checker's HookLosses. look() asks the kernel and renews the coverage; the rest are pure reads.

    clock: CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        loaded: AttachedProbes,
        watch: LivenessCheck,
        fidelity: Fidelity,
        invariants: Mapping[str, Invariant],
        clock: Callable[[], int],
    ) -> None:
        self._loaded, self._watch, self._fidelity = loaded, watch, fidelity
        self._changes: Counter[str] = Counter()  # by probe object: hooks detached, or back
        self._windows_missed = 0
        self.unbroken: Mapping[str, MissedRuns] = {
            name: MissedRuns(partial(self._count, one.unbroken), clock)
            for name, one in invariants.items()
            if one.unbroken
        }

    @property
    def windows_missed(self) -> int:
        """Runs of programs of windows that were left out until the last look, and changes of their hooks."""
        return self._windows_missed

    def look(self) -> frozenset[str]:
        """Look at the hooks and at the counts of missed runs. Return the invariants that have coverage now.

        Windows during which a hook was detached or came back prove nothing, so this comes before anything is judged.
        """
        changed = self._loaded.update_detached(self._watch.check())
        for hook in changed:
            self._changes[hook.probe_object] += 1
            why = f": {hook.reason}" if hook.reason else " again"
            log.warning("hook %s is %s%s", hook.hook.name, hook.state, why)
        if changed:
            self._fidelity.cover()
        changes = sum(self._changes[probe_object] for probe_object in WINDOW_PROBE_OBJECTS)
        self._windows_missed = changes + self._loaded.missed(
            lambda hook: hook.probe_object in WINDOW_PROBE_OBJECTS
        )
        for missed in self.unbroken.values():
            missed.look()
        return self._fidelity.checked

    def _count(self, needed: UnbrokenRuns) -> int:
        """Runs that were left out of these programs, and changes of hooks of their probe object."""
        return self._changes[needed.probe_object] + self._loaded.missed(
            lambda hook: hook.hook.name in needed.hooks
        )
