"""The rows of the hooks page: hooks grouped by why they are attached or not, with their cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracer.attach.plan import HookState, PlannedHook
from tracer.results.hook_groups import WARNED_OF, GroupKind, HookGroup, group
from tracer.results.snapshot import Snapshot

_FOLDED = 12
"""Hooks of a group, above which their names are folded."""
_WORDS: Mapping[GroupKind, str] = {
    GroupKind.REFUSED: "refused",
    GroupKind.DEPENDENT: "of no use",
    GroupKind.UNUSABLE: "does not fit",
    GroupKind.FAILED: "failed",
    GroupKind.DETACHED: "detached",
    GroupKind.LACKING: "lacking",
    GroupKind.PAUSED: "paused",
    GroupKind.AT_TIMES: "at times",
    GroupKind.ABSENT: "not in this kernel",
}
_NAMELESS = (GroupKind.ABSENT, GroupKind.LACKING)
"""Groups whose sentence has all that the reason of each hook has."""


def page(s: Snapshot) -> dict[str, Any]:
    """Return the values of the page: `head`, `attached` (rows) and `off` (groups)."""
    groups = group(s.hooks, s.invariants)
    return {
        "head": groups.head,
        "attached": [_row(s, hook) for hook in s.hooks if hook.on],
        "off": [_group(s, one) for one in groups.off],
    }


def costliest(s: Snapshot, most: int) -> list[dict[str, Any]]:
    """Return the hooks whose programs ran for the longest time, the longest first."""
    rows = (_row(s, hook) for hook in s.hooks)
    return sorted((row for row in rows if row["seconds"]), key=lambda row: -row["seconds"])[:most]


def _row(s: Snapshot, hook: PlannedHook) -> dict[str, Any]:
    """Return a hook with its cost by the kernel's BPF statistics."""
    cost = s.statistics.get(hook.hook.name)
    runs, seconds, missed = (cost.runs, cost.seconds, cost.missed) if cost else (0, 0.0, 0)
    return {
        "name": hook.hook.name,
        "probe_object": hook.probe_object,
        "substituted": hook.state is HookState.SUBSTITUTED,
        "how": hook.how,
        "reason": hook.reason,
        "runs": runs,
        "seconds": seconds,
        "each": seconds / runs if runs else None,
        "missed": missed,
    }


def _group(s: Snapshot, one: HookGroup) -> dict[str, Any]:
    """Return a group. A hook keeps its reason only where that has more than the group's."""
    names = set(one.names)
    rows = [_row(s, hook) for hook in s.hooks if hook.hook.name in names]
    same = len({row["reason"] for row in rows}) == 1 or one.kind in _NAMELESS
    return {
        "word": _WORDS[one.kind],
        "badge": "bad" if one.kind in WARNED_OF else "warn" if one.lacked_by else "dim",
        "sentence": one.sentence,
        "hooks": [row | {"reason": "" if same else row["reason"]} for row in rows],
        "open": len(rows) <= _FOLDED,
    }
