"""Hooks grouped by why they are attached or are not: a start and a report show a line a reason.

A reason is a text, also in reports of other versions, so it is taken apart by the texts that
tracer.attach.plan makes it of.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tracer.attach.plan import (
    ABSENCES,
    ATTACHED_AT_TIMES,
    NEEDS_PROBE_OBJECT,
    NOTHING_TO_ACCOMPANY,
    NOTRACE,
    REFUSED_AT,
    HookState,
    PlannedHook,
)
from tracer.invariants.base import Invariant

_MOST_NAMES = 5
_MOST_CHARACTERS = 200
"""Of a reason: a compiler's message may be long."""
_BETWEEN = "; "
"""Separates the reasons of a hook's candidates."""


class GroupKind(enum.StrEnum):
    """Why hooks are attached or not, in the order in which groups are shown.

    at_times: paused until something needs them. paused: by the governor. refused: the kernel has
    the function, and lets no program be attached to it. dependent: of no use without hooks that are
    missing. unusable: the kernel's function or types are not what the programs need. failed: the
    kernel could have them, and compiling, loading or attaching failed. detached: by another
    program. lacking: the kernel has no such function, and an invariant is checked less for it.
    absent: the kernel has no such function, and no invariant lacks it.
    """

    ATTACHED = "attached"
    REFUSED = "refused"
    DEPENDENT = "dependent"
    UNUSABLE = "unusable"
    FAILED = "failed"
    DETACHED = "detached"
    LACKING = "lacking"
    PAUSED = "paused"
    AT_TIMES = "at_times"
    ABSENT = "absent"


_NOUNS = {"raw_tp": "raw tracepoint", "iter": "BPF iterator"}
WARNED_OF = (GroupKind.FAILED, GroupKind.DETACHED)
"""Groups that a kernel of this kind does not explain: something went wrong, or interferes."""


@dataclass(frozen=True)
class HookGroup:
    """Hooks with one reason. lacked_by: ids of the invariants that lack them (LACKING)."""

    kind: GroupKind
    reason: str
    names: tuple[str, ...]
    lacked_by: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The group in one sentence without a full stop; it names hooks where that matters."""
        return _SENTENCES[self.kind](self)

    def one_or_many(self, one: str, many: str) -> str:
        """Return the number of hooks with the words for it."""
        return f"{len(self.names)} {one if len(self.names) == 1 else many}"

    @property
    def why(self) -> str:
        """The reason in one line that is not too long."""
        line = " ".join(self.reason.split()).replace(_BETWEEN, ", ")
        return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 1]}…"

    @property
    def some_names(self) -> str:
        """The first of the names, and how many more there are."""
        more = len(self.names) - _MOST_NAMES
        some = ", ".join(self.names[:_MOST_NAMES])
        return f"{some} and {more} more" if more > 0 else some


@dataclass(frozen=True)
class HookGroups:
    """All hooks of a plan, in groups."""

    groups: tuple[HookGroup, ...]

    @property
    def head(self) -> str:
        """How many hooks are attached, in one sentence without a full stop."""
        total = sum(len(group.names) for group in self.groups)
        on = sum(len(group.names) for group in self.groups if group.kind is GroupKind.ATTACHED)
        return f"{on} of {total} hooks are attached"

    @property
    def off(self) -> tuple[HookGroup, ...]:
        """The groups of hooks that are not attached now."""
        return tuple(group for group in self.groups if group.kind is not GroupKind.ATTACHED)

    def as_json(self) -> list[dict[str, object]]:
        """Return the groups as `rmapd doctor --format json` has them."""
        return [
            {
                "kind": group.kind.value,
                "reason": group.reason,
                "hooks": list(group.names),
                "lacked_by": list(group.lacked_by),
            }
            for group in self.groups
        ]


def group(hooks: Sequence[PlannedHook], invariants: Mapping[str, Invariant]) -> HookGroups:
    """Group the hooks of a plan by reason; the largest group of a kind comes first.

    invariants: which a hook that the kernel does not have may be lacking for.
    """
    lacked_by = _lacked_by(hooks, invariants.values())
    found: dict[tuple[GroupKind, str], list[str]] = {}
    for hook in hooks:
        kind, reason = _kind_and_reason(hook)
        kind = GroupKind.LACKING if hook.hook.name in lacked_by else kind
        found.setdefault((kind, reason), []).append(hook.hook.name)
    groups = [
        HookGroup(kind, reason, tuple(names), _in_order(invariants, names, lacked_by))
        for (kind, reason), names in found.items()
    ]
    kinds = list(GroupKind)
    groups.sort(key=lambda one: (kinds.index(one.kind), -len(one.names)))
    return HookGroups(tuple(groups))


def _in_order(
    ids: Iterable[str], names: Sequence[str], lacked_by: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    return tuple(one for one in ids if any(one in lacked_by.get(name, ()) for name in names))


def blocked_by(reason: str) -> str:
    """Return what keeps a hook off, without the candidates that this kernel does not have.

    Empty where it has none of the candidates.
    """
    return _BETWEEN.join(one for one in reason.split(_BETWEEN) if not _ABSENT.fullmatch(one))


def _kind_and_reason(hook: PlannedHook) -> tuple[GroupKind, str]:
    if hook.on:
        return GroupKind.ATTACHED, ""
    if hook.state is HookState.PAUSED:
        at_times = hook.reason.startswith(ATTACHED_AT_TIMES)
        return (GroupKind.AT_TIMES, "") if at_times else (GroupKind.PAUSED, hook.reason)
    if hook.state is HookState.DETACHED:
        return GroupKind.DETACHED, hook.reason
    if hook.tried:
        return GroupKind.FAILED, _of_any_hook(hook.reason)
    if _DEPENDENT.fullmatch(hook.reason):
        return GroupKind.DEPENDENT, ""
    blocked = _of_any_hook(blocked_by(hook.reason))
    if not blocked:
        return GroupKind.ABSENT, f"no such {_NOUNS.get(hook.hook.first_method, 'function')}"
    return GroupKind.REFUSED if hook.state is HookState.DENIED else GroupKind.UNUSABLE, blocked


def _lacked_by(
    hooks: Sequence[PlannedHook], invariants: Iterable[Invariant]
) -> dict[str, list[str]]:
    """Return the absent hooks that nothing replaces -> the invariants that are checked less."""
    attached = {hook.hook.name for hook in hooks if hook.on}
    absent = {hook.hook.name for hook in hooks if _kind_and_reason(hook)[0] is GroupKind.ABSENT}
    found: dict[str, list[str]] = {}
    for one in invariants:
        wanted = [*one.needs, *one.lacking]
        if one.otherwise and not all(attached & set(names.split("|")) for names in one.needs):
            wanted += one.otherwise.hooks
        for alternatives in (names.split("|") for names in wanted):
            if absent.issuperset(alternatives):
                for name in alternatives:
                    found.setdefault(name, []).append(one.id)
    return found


def _pattern(*templates: str) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(one).replace(r"\{\}", r"\S+") for one in templates))


_ABSENT = _pattern(*ABSENCES.values())
_DEPENDENT = _pattern(NEEDS_PROBE_OBJECT, NOTHING_TO_ACCOMPANY)
_REFUSED_AT = re.compile(
    re.escape(REFUSED_AT).replace(r"\{\}", r"(\S+)", 3).replace(r"\{\}", "(.*)")
)
_NOTRACE = _pattern(NOTRACE)


def _of_any_hook(reason: str) -> str:
    """Return the reason without the name of the function, so that hooks can share it."""

    def general(one: str) -> str:
        tried = _REFUSED_AT.fullmatch(one)
        if tried:
            return f"{tried[1]} refused at {tried[3]}: {tried[4]}"
        return "notrace" if _NOTRACE.fullmatch(one) else one

    return _BETWEEN.join(dict.fromkeys(map(general, reason.split(_BETWEEN))))


def _refused(group: HookGroup) -> str:
    names = f" ({group.some_names})" if len(group.names) < _MOST_NAMES else ""
    return f"{group.one_or_many('is', 'are')} not{names}: {group.why}"


def _absent(group: HookGroup) -> str:
    noun = group.reason.removeprefix("no such ")
    return group.one_or_many(f"{noun} does", f"{noun}s do") + " not exist in this kernel"


def _lacking(group: HookGroup) -> str:
    lack = "lacks" if len(group.lacked_by) == 1 else "lack"
    it = "it" if len(group.names) == 1 else "them"
    return f"{_absent(group)}, and {', '.join(group.lacked_by)} {lack} {it}: {group.some_names}"


_SENTENCES: Mapping[GroupKind, Callable[[HookGroup], str]] = {
    GroupKind.ATTACHED: lambda group: group.one_or_many("is", "are") + " attached",
    GroupKind.REFUSED: _refused,
    GroupKind.DEPENDENT: lambda group: (
        group.one_or_many("goes", "go") + " with hooks that are missing"
    ),
    GroupKind.UNUSABLE: lambda group: (
        f"{group.one_or_many('does', 'do')} not fit this kernel: {group.some_names} ({group.why})"
    ),
    GroupKind.FAILED: lambda group: (
        f"{len(group.names)} could not be attached: {group.some_names} ({group.why})"
    ),
    GroupKind.DETACHED: lambda group: (
        f"{group.one_or_many('is', 'are')} detached: {group.some_names} ({group.why})"
    ),
    GroupKind.LACKING: _lacking,
    GroupKind.PAUSED: lambda group: f"{group.one_or_many('is', 'are')} paused: {group.why}",
    GroupKind.AT_TIMES: lambda group: (
        group.one_or_many("is attached only while it is", "are attached only while they are")
        + " needed"
    ),
    GroupKind.ABSENT: _absent,
}
