"""Why an invariant is not checked in full: the hooks that are lacking, and why they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import busy
from tests.support.busy import NO_HOOKS
from tracer.attach.plan import ATTACHED_AT_TIMES, HookState, PlannedHook
from tracer.invariants.base import Coverage
from tracer.invariants.kernel_reports import KERNEL_LOG
from tracer.invariants.lock_waits import WRITER_WAITS
from tracer.invariants.maple_tree import AUDIT
from tracer.results.coverage_reasons import coverage_reasons
from tracer.results.json_form import invariants_json
from tracer.results.snapshot import Snapshot

LOWERED = "the governor has lowered fidelity to owner: programs take 2.3 % of the CPUs"


def without(state: HookState, reason: str, *probe_objects: str) -> Snapshot:
    """A snapshot whose hooks of these probe objects are not attached, with its true coverage."""
    s = busy.well()

    def changed(hook: PlannedHook) -> PlannedHook:
        off = hook.probe_object in probe_objects
        return replace(hook, state=state, reason=reason) if off else hook

    hooks = tuple(changed(hook) for hook in s.hooks)
    attached = {hook.hook.name for hook in hooks if hook.on} | {
        "oracle",
        AUDIT,
        KERNEL_LOG,
        WRITER_WAITS,
    }
    return replace(
        s,
        hooks=hooks,
        coverage={name: one.coverage(attached) for name, one in s.invariants.items()},
    )


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        (HookState.PAUSED, LOWERED, LOWERED),
        (HookState.DENIED, NO_HOOKS, NO_HOOKS.replace(";", ",")),
        (
            HookState.MISSING,
            "no function x in this kernel's BTF; no symbol x in this kernel",
            "this kernel has none of this name",
        ),
    ],
)
def test_none_names_the_hooks_and_why_they_are_not_attached(
    state: HookState, reason: str, shown: str
) -> None:
    s = without(state, reason, "locks", "mmap_lock")
    for name in ("L1", "L2"):
        level, lacking = s.coverage[name]
        assert level is Coverage.NONE
        assert coverage_reasons(s)[name] == f"{lacking}: {shown}"
        assert invariants_json(s)[name]["reason"] == f"{lacking}: {shown}"
    assert coverage_reasons(s)["M2"] == ""


def test_alternative_that_the_kernel_does_not_have_is_no_reason() -> None:
    s = without(HookState.DENIED, NO_HOOKS, "vma")
    gone = "no function __vma_adjust in this kernel's BTF"
    hooks = tuple(
        replace(hook, state=HookState.MISSING, reason=gone)
        if hook.hook.name == "__vma_adjust"
        else hook
        for hook in s.hooks
    )
    lacking = s.coverage["L5"][1]
    assert "__vma_adjust or commit_merge" in lacking
    reasons = coverage_reasons(replace(s, hooks=hooks))
    assert reasons["L5"] == f"{lacking}: {NO_HOOKS.replace(';', ',')}"


def test_partial_names_the_governor_only_where_it_has_paused_a_hook() -> None:
    paused = without(HookState.PAUSED, LOWERED, "locks")
    partial = [name for name, (level, _) in paused.coverage.items() if level is Coverage.PARTIAL]
    assert partial
    assert all(coverage_reasons(paused)[name].endswith(f": {LOWERED}") for name in partial)
    refused = without(HookState.DENIED, NO_HOOKS, "locks")
    assert all(coverage_reasons(refused)[name] == refused.coverage[name][1] for name in partial)


def test_hook_that_is_attached_when_needed_is_no_reason() -> None:
    s = without(HookState.PAUSED, f"{ATTACHED_AT_TIMES}a task may keep a lock", "owners")
    attached = {hook.hook.name for hook in s.hooks} | {"oracle", AUDIT, KERNEL_LOG, WRITER_WAITS}
    covered = {name: one.coverage(attached) for name, one in s.invariants.items()}
    assert not any(coverage_reasons(replace(s, coverage=covered)).values())


def test_full_coverage_has_no_reason() -> None:
    s = busy.well()
    assert set(coverage_reasons(s)) == set(s.invariants)
    assert not any(coverage_reasons(s).values())
