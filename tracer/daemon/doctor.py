"""Find out what this kernel lets rmapd check, and why not the rest: by trying, not by version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tracer.attach.plan import PlannedHook
from tracer.daemon.session import Session
from tracer.invariants.base import Invariant
from tracer.results.hook_groups import HookGroups, group

REALTIME = "yes: rwsems are rtmutexes; no THP"
SLOWLY = "; detaching is slow"


@dataclass(frozen=True)
class KernelReport:
    """What doctor reports of a kernel: all of it as JSON has it, and the hooks in groups."""

    found: dict[str, Any]
    hooks: HookGroups

    def as_json(self) -> dict[str, Any]:
        """Return the report as `rmapd doctor --format json` has it."""
        return {**self.found, "hook_groups": self.hooks.as_json()}


def examine(session: Session) -> KernelReport:
    """Return everything that doctor reports; the session's gate is open meanwhile."""
    kernel, hooks = session.probes.kernel, session.probes.loaded.hooks
    pages = session.probes.tables.params.page_format()
    found = {
        "kernel": kernel.release,
        "capabilities": {
            "BTF": f"yes, {len(kernel.types):,} types",
            "programs": f"yes, {session.probes.loaded.origin}",
            "raw tracepoints": "yes",
            "fentry": kernel.fentry_refused or "yes",
            "kprobes": kernel.kprobe_refused or "yes",
            "fprobe": kernel.fprobe_refused or "yes",
            "plain loads": kernel.plain_loads_refused or "yes",
            **(
                {"PREEMPT_RT": REALTIME + (SLOWLY if kernel.detaches_slowly else "")}
                if kernel.realtime
                else {}
            ),
            "page tables": f"{pages.levels} levels, pages of {pages.page >> 10} KiB",
            "page-table oracle": "calibrated"
            if session.checker.open_cases.oracle
            else f"not calibrated: {session.oracle_reason}",
        },
        "hooks": hooks_json(hooks),
        "invariants": {
            name: _invariant(session, invariant) for name, invariant in session.invariants.items()
        },
    }
    return KernelReport(found, group(hooks, session.invariants))


def hooks_json(hooks: Iterable[PlannedHook]) -> dict[str, dict[str, str]]:
    """Return each hook with its state, by name."""
    return {
        h.hook.name: {
            "probe_object": h.probe_object,
            "state": h.state.value,
            "how": h.how,
            "reason": h.reason,
        }
        for h in hooks
    }


def _invariant(session: Session, invariant: Invariant) -> dict[str, Any]:
    level, reason = session.coverage[invariant.id]
    return {"title": invariant.title, "coverage": level.value, "reason": reason}
