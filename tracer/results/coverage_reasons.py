"""Why an invariant is not checked in full, in words: what it lacks, and why that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tracer.attach.plan import HookState, PlannedHook
from tracer.invariants.base import Coverage
from tracer.results.hook_groups import GroupKind, HookGroup, group
from tracer.results.snapshot import Snapshot

_WORDS: Mapping[GroupKind, str] = {
    GroupKind.DEPENDENT: "of no use without hooks that are missing",
    GroupKind.LACKING: "this kernel has none of this name",
    GroupKind.ABSENT: "this kernel has none of this name",
}
"""Of groups whose reason is no sentence by itself."""


def coverage_reasons(s: Snapshot) -> dict[str, str]:
    """Return the reason of each invariant's coverage; empty where that is full.

    The reason names the hooks that are lacking, and why each is not attached: what the kernel
    refuses, or the level to which the governor has lowered fidelity.
    """
    if all(level is Coverage.FULL for level, _ in s.coverage.values()):
        return dict.fromkeys(s.coverage, "")
    groups = group(s.hooks, s.invariants).groups
    on = {hook.hook.name for hook in s.hooks if hook.on} | _at_times(s.hooks)
    paused = {hook.hook.name for hook in s.hooks if hook.state is HookState.PAUSED} - on
    found = {}
    for name, (level, reason) in s.coverage.items():
        wanted = s.invariants[name]
        if level is Coverage.NONE:
            lacking = _absent(wanted.needs, on)
        else:  # what the kernel lacks is in the reason itself
            lacking = _absent((*wanted.needs, *wanted.lacking), on) & paused
        why = _why(lacking, groups) if level is not Coverage.FULL else ""
        found[name] = f"{reason}: {why}" if why else reason
    return found


def _at_times(hooks: Sequence[PlannedHook]) -> set[str]:
    """Return the hooks that are paused until something needs them."""
    at_times = (one for one in group(hooks, {}).groups if one.kind is GroupKind.AT_TIMES)
    return {name for one in at_times for name in one.names}


def _absent(wanted: Iterable[str], on: set[str]) -> set[str]:
    """Return the hooks that are lacking, with all alternatives of each."""
    return {
        name for names in wanted if on.isdisjoint(names.split("|")) for name in names.split("|")
    }


def _why(lacking: set[str], groups: Iterable[HookGroup]) -> str:
    """Return the reasons why hooks are not attached, each once.

    Hooks that the kernel does not have are no reason where others could be there: they are their
    alternatives, or are of use only with them.
    """
    kinds = (GroupKind.ATTACHED, GroupKind.DETACHED)  # detached: coverage has the reason
    found = [one for one in groups if one.kind not in kinds and not lacking.isdisjoint(one.names)]
    possible = [one.why for one in found if one.kind not in _WORDS]
    return "; ".join(dict.fromkeys(possible or [_WORDS[one.kind] for one in found]))
