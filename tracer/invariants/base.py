"""What an invariant is: its claim, where the kernel states it, what it needs, and how far this kernel lets it be checked."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from tracer.invariants.verdict import Ruling
from tracer.protocol.model import Protocol


class Coverage(enum.StrEnum):
    """How much of an invariant is checked."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"

    @property
    def gauge(self) -> float:
        return {"full": 1.0, "partial": 0.5, "none": 0.0}[self.value]


@dataclass(frozen=True)
class Invariant:
    """One invariant. `needs`: hooks without which nothing is checked. `lacking`: hook or feature -> what its absence costs.
    A name may be alternatives, `__vma_adjust|commit_merge`: any of them will do, for kernels have different ones.
    `awaits`: kernel functions whose probing it waits for, where this version of rmapd has no monitor for it yet.
    `judge`: the ruling on a protocol, where the invariant is checked by protocols; None where it says nothing of this one.
    `whole_windows`: it depends on what all windows did from beginning to end; None: where it has a judge."""

    id: str
    title: str
    claim: str
    stated: str
    not_violations: str
    confirmed: str
    blind_spots: str = ""
    needs: tuple[str, ...] = ()
    lacking: Mapping[str, str] | None = None
    awaits: tuple[str, ...] = ()
    judge: Callable[[Protocol], Ruling | None] | None = None
    whole_windows: bool | None = None

    @property
    def by_windows(self) -> bool:
        """Whether a window that is not booked, or not to its end, is one that was not checked."""
        return bool(self.judge) if self.whole_windows is None else self.whole_windows

    @property
    def built(self) -> bool:
        return bool(self.needs)

    def coverage(
        self, attached: Collection[str], off: Mapping[str, str] | None = None, sampled: str = ""
    ) -> tuple[Coverage, str]:
        """Coverage with these hooks and features, and the reason for anything less than full. off: hooks that were taken away -> why;
        what is judged by protocols is judged by all windows, so none of their hooks may be missing unnoticed. sampled: how, where not all
        windows are booked."""
        if not self.built:
            return Coverage.NONE, "not checked by this version of rmapd"
        named = {
            name for names in (*self.needs, *(self.lacking or {})) for name in names.split("|")
        }
        away = _taken_away(
            {name: why for name, why in (off or {}).items() if self.judge or name in named}
        )
        absent = [
            names.replace("|", " or ") for names in self.needs if not _any_of(names, attached)
        ]
        if absent:
            return Coverage.NONE, "; ".join([f"needs {', '.join(absent)}", *away])
        costs = [
            cost for names, cost in (self.lacking or {}).items() if not _any_of(names, attached)
        ]
        if self.by_windows and sampled:
            costs.append(sampled)
        costs = list(dict.fromkeys(costs + away))
        return (Coverage.PARTIAL, "; ".join(costs)) if costs else (Coverage.FULL, "")


def _taken_away(off: Mapping[str, str]) -> list[str]:
    """One reason for all hooks that have it."""
    hooks: dict[str, list[str]] = {}
    for name, why in off.items():
        hooks.setdefault(why, []).append(name)
    some = {
        why: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for why, names in hooks.items()
    }
    return [f"taken away: {names} ({why})" for why, names in some.items()]


def _any_of(names: str, attached: Collection[str]) -> bool:
    return any(name in attached for name in names.split("|"))
