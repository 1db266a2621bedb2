"""Findings: decided cases, and events of probes, in words and with evidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tracer.checking.cases import DecidedCase
from tracer.checking.trail import Trail, TrailEntry, Trails, entry_of
from tracer.invariants.base import EventReport
from tracer.invariants.lock_order import NO_CYCLE
from tracer.invariants.migration_entries import TOO_OLD
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Finding, Ruling, Verdict
from tracer.kernel.running import Kernel
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import FoundEntry, Place
from tracer.memory.objects import ObjectReader
from tracer.packed import pack
from tracer.printable import printable
from tracer.tables.events import Event
from tracer.tables.ledger import Row, Visited
from tracer.tables.stacks import Stacks

ENUMS = ("migrate_reason", "migrate_mode")
"""Kernel enums whose names findings use."""
_MOST_ENTRIES = 16
_LEVELS = {1: "PTE", 2: "PMD", 3: "PUD"}
_OUR_REASONS = {1000: "thp_split", 1001: "unknown"}
"""REASON_THP_SPLIT and REASON_UNKNOWN of the probes, beside enum migrate_reason."""

_SECOND_WALK = {None: "", True: " second_walk=came", False: " second_walk=passed_over"}
"""Part of the signature: an entry that was visited and not restored is another defect than one that
was not visited."""
_CULPRITS = {
    True: {
        "function": "remove_migration_pte",
        "why": (
            "the second walk called it for the VMA that holds the entry, and it put nothing back"
        ),
    },
    False: {
        "function": "remove_migration_ptes",
        "why": (
            "its rmap walk did not come to a VMA in which the first walk, of the same migration, "
            "had left an entry"
        ),
    },
}


@dataclass(frozen=True)
class Explanation:
    """The part of a finding that its signature does not need.

    Reading it costs look-ups in the kernel.
    """

    summary: str
    task: Mapping[str, Any] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    trail: Trail = field(default_factory=Trail)


@dataclass(frozen=True)
class Draft:
    """A finding whose evidence is not read yet.

    `outline` has what its signature is made of; `explain` reads the rest. A defect that is met a
    million times is a million look-ups of a signature, and one explanation.
    """

    outline: Finding
    explain: Callable[[], Explanation]

    def complete(self) -> Finding:
        """Read the evidence. To be called while the kernel still has it."""
        known = self.explain()
        note = {"trail_note": known.trail.note} if known.trail.note else {}
        return replace(
            self.outline,
            summary=known.summary,
            task=dict(known.task),
            stack=known.stack,
            evidence={**known.evidence, **note},
            trail=pack(known.trail.steps),
        )


class Findings:
    """Drafts findings. Knows the kernel's names for reasons, modes and addresses.

    clock: CLOCK_MONOTONIC in nanoseconds. objects: reads VMAs and folios as they are now. trails:
    the windows that led to a finding.
    """

    def __init__(
        self,
        stacks: Stacks,
        kernel: Kernel,
        symbols: Symbols,
        clock: Callable[[], int],
        objects: ObjectReader,
        trails: Trails,
    ) -> None:
        self._stacks, self._clock, self._symbols = stacks, clock, symbols
        self._objects, self._trails = objects, trails
        reasons, self._modes = (
            {value: name for name, value in kernel.enumerators(enum).items()} for enum in ENUMS
        )
        self._reasons = reasons | _OUR_REASONS

    def entry(self, decided: DecidedCase, second_walk: Mapping[Place, Ruling]) -> Draft:
        """Draft the finding of a case: an entry that is, or may be, left behind or too old.

        second_walk: M5's ruling on each entry that is proven.
        """
        visited = _visited(second_walk.values())
        outline = Finding(
            decided.case.invariant,
            decided.decision.verdict,
            "migrate_pages",
            self._shape(decided) + _SECOND_WALK[visited],
            "",
        )
        return Draft(outline, partial(self._explain_entry, decided, second_walk, visited))

    def _explain_entry(
        self, decided: DecidedCase, second_walk: Mapping[Place, Ruling], visited: bool | None
    ) -> Explanation:
        case, decision, row = decided.case, decided.decision, decided.row
        found = (decision.proven or case.answers)[:_MOST_ENTRIES]
        holders = dict.fromkeys(f"{_owner(a)} at {a.addr:#x}" for a in found)
        held = ", ".join(holders) or "in no address space that could be found"
        reasons = dict.fromkeys(ruling.reason for ruling in second_walk.values())
        trail = self._entry_trail(decided, found, visited)
        return Explanation(
            "; ".join([f"{decision.reason}: {held}", *reasons]),
            _task(row, decided.event) if row else {},
            self._event_stack(decided.event),
            {
                "addr": hex(case.addr),
                "age_seconds": round((self._clock() - row.first_ns) / 1e9, 6) if row else None,
                "recorded": row is not None,
                "entries_outstanding": case.count,
                "entries": [self._found(a, row, second_walk) for a in found],
            }
            | _culprit(trail, visited),
            trail,
        )

    def removed_late(self, entries: int, age_limit_ns: int) -> Draft:
        """Draft the finding that the kernel removed entries after the age limit.

        The probes only count such removals: an entry that is still there when it is looked at, once
        a second, has a case of its own.
        """
        outline = Finding(
            TOO_OLD.id, Verdict.SUSPECT, "remove_migration_ptes", "removed after the age limit", ""
        )
        seconds = age_limit_ns / 1e9
        many = "1 migration entry was" if entries == 1 else f"{entries:,} migration entries were"
        note = (
            "Its address is not known" if entries == 1 else "Their addresses are not known"
        ) + ": the probes count a removal, and no look at the ledger came before it."
        explained = Explanation(
            f"{many} removed more than {seconds:g} s after being inserted",
            evidence={"entries": entries, "age_limit_seconds": seconds},
            trail=Trail(note=note),
        )
        return Draft(outline, lambda: explained)

    def passed_over(
        self, decided: DecidedCase, row: Row, answer: FoundEntry, ruling: Ruling
    ) -> Draft:
        """Draft the finding that the second walk did not visit the VMA of an entry of this row."""
        outline = Finding(
            PASSED_OVER.id, ruling.verdict, "remove_migration_ptes", self._shape(decided), ""
        )
        return Draft(outline, partial(self._explain_passed_over, decided, row, answer, ruling))

    def _explain_passed_over(
        self, decided: DecidedCase, row: Row, answer: FoundEntry, ruling: Ruling
    ) -> Explanation:
        known = row.visited.get(answer.mm.mm)
        where = f"VMA {known.vm_start:#x}-{known.vm_end:#x}" if known and known.vma else "a VMA"
        moved = (
            ""
            if known and answer.addr == row.addr
            else f", which the first walk left at {row.addr:#x} of mm {next(iter(row.visited)):#x}"
        )
        trail = self._entry_trail(decided, [answer], visited=False)
        return Explanation(
            f"{ruling.reason}: {where} of {_owner(answer)} holds one at {answer.addr:#x}{moved}",
            _task(row, decided.event),
            self._event_stack(decided.event),
            self._found(answer, row, {})
            | {"migration_start_ns": row.start_ns}
            | _culprit(trail, visited=False),
            trail,
        )

    def reported(self, invariant: str, report: EventReport, event: Event) -> Draft:
        """Draft a violation that a probe has proven, or suspects.

        report: how the invariant declares the event.
        """
        reason = self._reason(event)
        mode = reason if reason == "unknown" else self._modes.get(event.mode, event.mode)
        shape = f"reason={reason} mode={mode}"
        if report.shape:
            shape = report.shape.format(level=_LEVELS.get(event.level, event.level))
        outline = Finding(invariant, report.verdict, report.function, shape, "")
        return Draft(outline, partial(self._explain_reported, report, event))

    def _explain_reported(self, report: EventReport, event: Event) -> Explanation:
        addresses = {"addr": event.addr, "mm": event.mm, "vma": event.vma, "folio": event.folio}
        now = self._objects.look(event.vma)
        since = event.start_ns or event.time_ns
        around = TrailEntry(
            since, event.tid, {event.mm} - {0}, [(event.addr, event.addr + 1)], {event.folio}
        )
        where = f"{event.addr:#x} of " + (f"mm {event.mm:#x}" if event.mm else "an unknown mm")
        return Explanation(
            report.summary.format(where=where, entry=event.entry, **addresses),
            event.task,
            self._event_stack(event),
            {name: hex(value) for name, value in addresses.items()}
            | ({"entry": hex(event.entry)} if event.entry else {})
            | {
                "vma_now": self._objects.vma(event.vma, event.mm),
                "folio_now": self._objects.folio(event.folio, vm_flags=now.vm_flags if now else 0),
            },
            self._trails.of_task({event.mm}, [event.tid], event.time_ns)
            if report.of_task
            else self._trails.of_entry(around, event.time_ns),
        )

    def order(self, event: Event) -> Draft:
        """Draft the finding that two tasks nested two mmap_locks in opposite orders."""
        outline = Finding(
            NO_CYCLE.id, Verdict.SUSPECT, "mmap_lock", "two mms nested in both orders", ""
        )
        return Draft(outline, partial(self._explain_order, event))

    def _explain_order(self, event: Event) -> Explanation:
        opposite = self._symbols.stack(self._stacks.of_event(event.first_stack))
        return Explanation(
            f"task {printable(event.comm)}[{event.tid}] took two mmap_locks in the opposite order"
            f" of task {event.first_tid}; tracepoints cannot tell whether either was a trylock",
            event.task,
            self._event_stack(event),
            {
                "outer_mm": hex(event.outer),
                "inner_mm": hex(event.inner),
                "opposite_task": event.first_tid,
                "opposite_stack": opposite,
            },
        )

    def _event_stack(self, event: Event | None) -> tuple[str, ...]:
        return self._symbols.stack(self._stacks.of_event(event.stack)) if event else ()

    def _found(
        self, answer: FoundEntry, row: Row | None, second_walk: Mapping[Place, Ruling]
    ) -> dict[str, Any]:
        """Return where an entry is, and its VMA and folio then and now."""
        found: dict[str, Any] = {
            "tgid": answer.mm.tgid,
            "comm": answer.mm.comm,
            "addr": hex(answer.addr),
            "entry": hex(answer.entry),
            "pfn": hex(answer.pfn),
            "locked": answer.locked,
        }
        if answer.place in second_walk:
            found["second_walk"] = second_walk[answer.place].reason
        visited = row.visited.get(answer.mm.mm) if row else None
        if visited is None:
            return found
        now = self._objects.look(visited.vma)
        found |= {
            "mm": hex(visited.mm),
            "folio": hex(visited.folio),
            "first_walk": _vma(visited),
            "vma_now": self._objects.vma(visited.vma, visited.mm),
            "folio_now": self._objects.folio(visited.folio, answer.pfn, now.vm_flags if now else 0),
        }
        return found | ({"to_folio_now": self._objects.folio(visited.to)} if visited.to else {})

    def _entry_trail(
        self, decided: DecidedCase, found: Sequence[FoundEntry], visited: bool | None
    ) -> Trail:
        """Return the windows since the first walk that touched what the entry depends on."""
        row = decided.row
        if row is None:
            return Trail(
                note="Its insertion was not recorded: a periodic scan of the page tables found it."
            )
        locks: set[int] = set()
        for known in row.visited.values():
            now = self._objects.look(known.vma)
            locks |= {now.anon, now.i_mmap} - {0} if now and now.vm_mm == known.mm else set()
        since = min(row.start_ns, row.first_ns) if row.start_ns else row.first_ns
        return self._trails.of_entry(entry_of(row, found, visited, locks, since), self._clock())

    def _reason(self, event: Event) -> str:
        return self._reasons.get(event.reason, str(event.reason))

    def _shape(self, decided: DecidedCase) -> str:
        level = "PMD" if decided.case.level == 2 else "PTE"
        event = decided.event
        if event is None:
            return f"level={level}"
        died = " (the migrating task died)" if event.kind == "MIGRATOR_DIED" else ""
        mode = self._modes.get(event.mode, event.mode)
        return f"level={level} reason={self._reason(event)} mode={mode}{died}"


def _visited(rulings: Collection[Ruling]) -> bool | None:
    """Whether the second walk came to all of them, or to none; None: not known, or to some."""
    verdicts = {ruling.verdict for ruling in rulings}
    return (
        {Verdict.HOLDS: True, Verdict.VIOLATED: False}.get(verdicts.pop())
        if len(verdicts) == 1
        else None
    )


def _culprit(trail: Trail, visited: bool | None) -> dict[str, Any]:
    """Return the function that the evidence points at, and why.

    It is the marked window of the trail, or else a function of the second walk.
    """
    if (step := trail.marked) and not step["function"].startswith("rmap_walk"):
        return {"culprit": {"function": step["function"], "why": step["why"]}}
    return {"culprit": _CULPRITS[visited]} if visited is not None else {}


def _owner(answer: FoundEntry) -> str:
    return f"{printable(answer.mm.comm)}[{answer.mm.tgid}]"


def _task(row: Row, event: Event | None) -> dict[str, Any]:
    return event.task if event else {"pid": row.tid, "tgid": row.tgid, "comm": ""}


def _vma(visited: Visited) -> dict[str, str]:
    return {
        "vma": hex(visited.vma),
        "vm_start": hex(visited.vm_start),
        "vm_end": hex(visited.vm_end),
    }
