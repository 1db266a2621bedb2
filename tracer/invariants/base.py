"""What an invariant declares: its words, hooks, counters and losses."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import Protocol


class Coverage(enum.StrEnum):
    """How much of an invariant is checked."""

    FULL = "full"
    PARTIAL = "partial"
    NONE = "none"

    @property
    def gauge(self) -> float:
        """The value of the metric: 1 full, 0.5 partial, 0 none."""
        return {"full": 1.0, "partial": 0.5, "none": 0.0}[self.value]


@dataclass(frozen=True)
class CheckCounters:
    """Counters of the probes (`enum counter`). Each count is one check with this verdict.

    violated: the probe also sends an event for each. The checker records the events that arrive,
    and the counts beyond those are violations without evidence: a full ring loses the evidence and
    not the count.
    """

    holds: tuple[str, ...] = ()
    violated: tuple[str, ...] = ()
    unverifiable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loss:
    """Events that could not be recorded. Each makes one check of the invariant unverifiable.

    table: what overflowed, the key of `lost` in reports. counters: counters of events that found it
    full. missed_runs: hooks; a run of their programs that the kernel left out is lost as well. A
    name may list alternatives, as in Invariant: the first that is attached counts.
    """

    table: str
    counters: tuple[str, ...] = ()
    missed_runs: tuple[str, ...] = ()


WINDOW_LOSS = Loss("protocols", counters=("PROTOCOLS_LOST", "WINDOWS_LOST"))
"""Windows that are in no protocol count. Each may have violated every invariant that protocols are
judged by."""


@dataclass(frozen=True)
class UnbrokenRuns:
    """Programs that must not miss a run while a check is under way, or it is unverifiable.

    hooks: of these programs. probe_object: the one that they are in; a hook of it that is detached
    or comes back counts as a missed run. subject: what the programs record, for the reason that
    coverage gives.
    """

    probe_object: str
    hooks: tuple[str, ...]
    subject: str


@dataclass(frozen=True)
class EventReport:
    """A ring event (`enum event_kind`) by which a probe reports a violation that it has proven.

    function: what the finding is attributed to. summary: one sentence, a format string over addr,
    mm, vma, folio and entry of the event, and `where`: the address and the mm, if it is known.
    verdict: SUSPECT where the probe has no proof. shape: of the signature, a format string over
    `level`; empty: the reason and the mode of the migration. of_task: the trail is what the task
    did before, not what touched the folio.
    """

    kind: str
    function: str
    summary: str
    verdict: Verdict = Verdict.VIOLATED
    shape: str = ""
    of_task: bool = False


@dataclass(frozen=True)
class Alternative:
    """What an invariant is checked by in part where the hooks that it needs are not there.

    hooks: hooks and features, all of which that takes. cost: what is not checked then.
    """

    hooks: tuple[str, ...]
    cost: str


@dataclass(frozen=True)
class AuditChecks:
    """What the state audit checks for an invariant.

    subject: what a finding is attributed to, in place of a function. counted: names in
    tracer.memory.vma_trees.COUNTED, or `map_counts`; each thing counted is one check. problems:
    name in enum audit_problem -> what is wrong, in words; a format string over want, got, low, high
    and at.
    """

    subject: str
    counted: tuple[str, ...]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Invariant:
    """One invariant, complete: nothing outside of its file names it.

    Words, for `rmapd explain`: title, claim; stated, where the kernel states it; not_violations,
    what looks like one and is legal; confirmed, how a violation is proven; blind_spots.

    Hooks: without those of `needs` nothing is checked. `lacking` maps a hook or feature to what its
    absence costs. A name may list alternatives, `__vma_adjust|commit_merge`, where kernels have one
    or the other. `otherwise` is a way to check a part without `needs`.

    Checks: `judge` rules on a protocol and returns None where the invariant says nothing of it.
    `every_window`: checking takes all windows from their beginning to their end (None: it does
    where there is a `judge`). `every_entry`: each recorded migration entry is one check.
    `counters`, `events`: checks that a probe settles. `losses`, `unbroken`: what makes checks
    unverifiable, one by one, and those under way; loss of windows is implied by `judge`. `audit`:
    checks that the state audit makes.
    """

    id: str
    title: str
    claim: str
    stated: str
    not_violations: str
    confirmed: str
    blind_spots: str = ""
    needs: tuple[str, ...] = ()
    lacking: Mapping[str, str] = field(default_factory=dict)
    otherwise: Alternative | None = None
    judge: Callable[[Protocol], Ruling | None] | None = None
    every_window: bool | None = None
    every_entry: bool = False
    counters: CheckCounters = CheckCounters()
    events: tuple[EventReport, ...] = ()
    losses: tuple[Loss, ...] = ()
    unbroken: UnbrokenRuns | None = None
    audit: AuditChecks | None = None

    @property
    def needs_every_window(self) -> bool:
        """Whether a window that is not recorded, or not to its end, leaves something unchecked."""
        return bool(self.judge) if self.every_window is None else self.every_window

    @property
    def hooks(self) -> frozenset[str]:
        """Every hook and feature that coverage depends on, alternatives apart."""
        otherwise = self.otherwise.hooks if self.otherwise else ()
        return frozenset(
            name for names in (*self.needs, *otherwise, *self.lacking) for name in names.split("|")
        )

    @property
    def runbook(self) -> str:
        """The page on what to do with a violation, relative to the top of the source tree."""
        return f"docs/runbooks/{self.id}.md"

    def losses_by_check(self) -> tuple[Loss, ...]:
        """Return the losses that make single checks unverifiable."""
        return (*self.losses, *((WINDOW_LOSS,) if self.judge else ()))

    def settled(self, counters: Mapping[str, int], recorded: int) -> dict[Verdict, int]:
        """Return the checks that the probes settled, by verdict.

        recorded: violations that the checker has recorded from events.
        """

        def total(names: tuple[str, ...]) -> int:
            return sum(counters[name] for name in names)

        found = self.counters
        without_event = max(0, total(found.violated) - recorded) if found.violated else 0
        return {
            Verdict.HOLDS: total(found.holds),
            Verdict.VIOLATED: without_event,
            Verdict.UNVERIFIABLE: total(found.unverifiable),
        }

    def lost(self, counters: Mapping[str, int], missed_runs: Mapping[str, int]) -> int:
        """Return the checks that are unverifiable as what they are about was not recorded.

        missed_runs: hook -> runs that the kernel missed, of the hooks that are attached.
        """
        return sum(
            sum(counters[name] for name in loss.counters)
            + sum(_first_of(names, missed_runs) for names in loss.missed_runs)
            for loss in self.losses_by_check()
        )

    def coverage(
        self, attached: Collection[str], off: Mapping[str, str] | None = None, sampled: str = ""
    ) -> tuple[Coverage, str]:
        """Return the coverage with these hooks and features, and the reason where it is not full.

        off: hooks that were attached and are not any more -> why. A protocol is judged by all hooks
        of windows, so each of them that is gone is given as a reason. sampled: how windows are
        sampled; empty where all are recorded.
        """
        relevant = {
            name: why for name, why in (off or {}).items() if self.judge or name in self.hooks
        }
        gone = _taken_away(relevant)
        absent = [
            names.replace("|", " or ") for names in self.needs if not _any_of(names, attached)
        ]
        if absent and self.otherwise and set(self.otherwise.hooks) <= set(attached):
            return Coverage.PARTIAL, "; ".join([self.otherwise.cost, *gone])
        if absent:
            otherwise = f", or else {', '.join(self.otherwise.hooks)}" if self.otherwise else ""
            return Coverage.NONE, "; ".join([f"needs {', '.join(absent)}{otherwise}", *gone])
        costs = [cost for names, cost in self.lacking.items() if not _any_of(names, attached)]
        if self.needs_every_window and sampled:
            costs.append(sampled)
        costs = list(dict.fromkeys(costs + gone))
        return (Coverage.PARTIAL, "; ".join(costs)) if costs else (Coverage.FULL, "")


def _taken_away(off: Mapping[str, str]) -> list[str]:
    """One sentence a reason, with the first hooks that share it."""
    hooks: dict[str, list[str]] = {}
    for name, why in off.items():
        hooks.setdefault(why, []).append(name)
    some = {
        why: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for why, names in hooks.items()
    }
    return [f"taken away: {names} ({why})" for why, names in some.items()]


def _first_of(names: str, counts: Mapping[str, int]) -> int:
    return next((counts[name] for name in names.split("|") if name in counts), 0)


def _any_of(names: str, attached: Collection[str]) -> bool:
    return any(name in attached for name in names.split("|"))
