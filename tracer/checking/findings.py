"""Findings: a decided case or a lock event in the words of a kernel developer, with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tracer.checking.cases import DecidedCase
from tracer.checking.trail import Trail, TrailEntry, Trails, entry_of
from tracer.invariants.verdict import Finding, Ruling, Verdict
from tracer.kernel.running import Kernel
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import FoundEntry, Place
from tracer.memory.objects import ObjectReader
from tracer.printable import printable
from tracer.tables.events import Event
from tracer.tables.ledger import Row, Visited
from tracer.tables.stacks import Stacks

ENUMS = ("migrate_reason", "migrate_mode")
"""What findings name by the kernel's own words."""
_MOST_PLACES = 16
_THP_SPLIT = 1000  # REASON_THP_SPLIT, shared.h


_FARED = {None: "", True: " second_walk=came", False: " second_walk=passed_over"}
"""An entry that was not restored and one that was not come to are different defects."""
_CULPRITS = {
    True: {
        "function": "remove_migration_pte",
        "why": "the second walk called it for the VMA that holds the entry, and it put nothing back",
    },
    False: {
        "function": "remove_migration_ptes",
        "why": "its rmap walk did not come to a VMA in which the first walk, of the same migration, had left an entry",
    },
}


def _visited(rulings: Collection[Ruling]) -> bool | None:
    """Whether the second walk came to all, or to none; None: not known, or both."""
    verdicts = {ruling.verdict for ruling in rulings}
    return (
        {Verdict.HOLDS: True, Verdict.VIOLATED: False}.get(verdicts.pop())
        if len(verdicts) == 1
        else None
    )


def _task(row: Row, event: Event | None) -> dict[str, Any]:
    return event.task if event else {"pid": row.tid, "tgid": row.tgid, "comm": ""}


def _vma(visited: Visited) -> dict[str, str]:
    return {
        "vma": hex(visited.vma),
        "vm_start": hex(visited.vm_start),
        "vm_end": hex(visited.vm_end),
    }


class Findings:
    """Makes findings; knows the kernel's names for reasons, modes and addresses."""

    def __init__(
        self,
        stacks: Stacks,
        kernel: Kernel,
        symbols: Symbols,
        clock: Callable[[], int],
        scene: ObjectReader | None = None,
        trails: Trails | None = None,
    ) -> None:
        self._stacks, self._clock, self._symbols, self._scene, self._trails = (
            stacks,
            clock,
            symbols,
            scene,
            trails,
        )
        reasons, self._modes = (
            {value: name for name, value in kernel.enumerators(enum).items()} for enum in ENUMS
        )
        self._reasons = reasons | {_THP_SPLIT: "thp_split"}

    def entry(
        self,
        judged: DecidedCase,
        second_walk: Mapping[Place, Ruling] = MappingProxyType({}),
        *,
        bare: bool = False,
    ) -> Finding:
        """An entry that is, or may be, left behind (M1, M4); second_walk: M5's ruling on each that is proven.
        bare: what tells its signature, and no evidence."""
        case, decision, row, event = judged.case, judged.decision, judged.row, judged.event
        found = (decision.proven or case.answers)[:_MOST_PLACES]
        holders = dict.fromkeys(
            f"{printable(a.mm.comm)}[{a.mm.tgid}] at {a.addr:#x}" for a in found
        )
        visited = _visited(second_walk.values())
        shape = self._shape(judged) + _FARED[visited]
        if bare:
            return Finding(case.invariant, decision.verdict, "migrate_pages", shape, "")
        evidence: dict[str, Any] = {
            "addr": hex(case.addr),
            "age_seconds": round((self._clock() - row.first_ns) / 1e9, 6) if row else None,
            "booked": row is not None,
            "entries_outstanding": case.count,
            "entries": [self._found(a, row, second_walk) for a in found],
        }
        trail = self._trail(judged, row, found, visited)
        visits = dict.fromkeys(ruling.reason for ruling in second_walk.values())
        return Finding(
            case.invariant,
            decision.verdict,
            "migrate_pages",
            shape,
            "; ".join(
                [
                    f"{decision.reason}: {', '.join(holders) or 'in no address space that could be found'}",
                    *visits,
                ]
            ),
            _task(row, event) if row else {},
            self._symbols.stack(self._stacks.of_event(event.stack)) if event else (),
            evidence | self._culprit(trail, visited),
            trail=trail.steps,
        )

    def _found(
        self, answer: FoundEntry, row: Row | None, second_walk: Mapping[Place, Ruling]
    ) -> dict[str, Any]:
        """An entry where it is now, the VMA in which the first walk left it, and what VMA and page are by now."""
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
        if row and (visited := row.visited.get(answer.mm.mm)):
            found |= {
                "mm": hex(visited.mm),
                "folio": hex(visited.folio),
                "first_walk": _vma(visited),
            }
            if self._scene:
                now = self._scene.look(visited.vma)
                vma = self._scene.vma(visited.vma, visited.mm)
                found |= {
                    "vma_now": vma,
                    "folio_now": self._scene.folio(
                        visited.folio, answer.pfn, now.vm_flags if now else 0
                    ),
                }
                found |= {"to_folio_now": self._scene.folio(visited.to)} if visited.to else {}
        return found

    def _trail(
        self,
        judged: DecidedCase,
        row: Row | None,
        found: Sequence[FoundEntry],
        visited: bool | None,
    ) -> Trail:
        """What touched the entry's address space, VMA, folio, anon root or mapping since the first walk."""
        if not self._trails or not row:
            return Trail(
                note="" if row else "When it was inserted is not known: only the patrol met it."
            )
        locks: set[int] = set()
        for known in row.visited.values():
            now = self._scene.look(known.vma) if self._scene else None
            locks |= {now.anon, now.i_mmap} - {0} if now and now.vm_mm == known.mm else set()
        since = min(row.start_ns, row.first_ns) if row.start_ns else row.first_ns
        return self._trails.of_entry(entry_of(row, found, visited, locks, since), self._clock())

    @staticmethod
    def _culprit(trail: Trail, visited: bool | None) -> dict[str, Any]:
        """The function that the evidence points at, and why."""
        out: dict[str, Any] = {"trail_note": trail.note} if trail.note else {}
        if (step := trail.marked) and not step["function"].startswith("rmap_walk"):
            return out | {"culprit": {"function": step["function"], "why": step["why"]}}
        return out | ({"culprit": _CULPRITS[visited]} if visited is not None else {})

    def passed_over(
        self,
        judged: DecidedCase,
        row: Row,
        answer: FoundEntry,
        ruling: Ruling,
        *,
        bare: bool = False,
    ) -> Finding:
        """A VMA that the second walk did not visit (M5)."""
        event = judged.event
        if bare:
            return Finding("M5", ruling.verdict, "remove_migration_ptes", self._shape(judged), "")
        known = row.visited.get(answer.mm.mm)
        where = f"VMA {known.vm_start:#x}-{known.vm_end:#x}" if known and known.vma else "a VMA"
        came = (
            ""
            if known and answer.addr == row.addr
            else f", which the first walk left at {row.addr:#x} of mm {next(iter(row.visited)):#x}"
        )
        trail = self._trail(judged, row, [answer], False)
        return Finding(
            "M5",
            ruling.verdict,
            "remove_migration_ptes",
            self._shape(judged),
            f"{ruling.reason}: {where} of {printable(answer.mm.comm)}[{answer.mm.tgid}] holds one at {answer.addr:#x}{came}",
            _task(row, event),
            self._symbols.stack(self._stacks.of_event(event.stack)) if event else (),
            self._found(answer, row, {})
            | {"migration_start_ns": row.start_ns}
            | self._culprit(trail, False),
            trail=trail.steps,
        )

    def unlocked(self, event: Event, *, bare: bool = False) -> Finding:
        """A folio that is not locked while its migration entries are inserted or removed (M2, M3)."""
        inserted = event.kind == "INSERTED_UNLOCKED"
        invariant, function = (
            ("M2", "try_to_migrate_one") if inserted else ("M3", "remove_migration_pte")
        )
        shape = f"reason={self._reason(event)} mode={self._modes.get(event.mode, event.mode)}"
        if bare:
            return Finding(invariant, Verdict.VIOLATED, function, shape, "")
        did = "a migration entry is inserted" if inserted else "remove_migration_ptes() visits"
        scene: dict[str, Any] = {}
        if self._scene:
            now = self._scene.look(event.vma)
            scene = {"vma_now": self._scene.vma(event.vma, event.mm)}
            scene |= {
                "folio_now": self._scene.folio(event.folio, vm_flags=now.vm_flags if now else 0)
            }
        trail = Trail()
        if self._trails:
            entry = TrailEntry(
                event.start_ns or event.time_ns,
                event.tid,
                {event.mm},
                [(event.addr, event.addr + 1)],
                {event.folio},
            )
            trail = self._trails.of_entry(entry, event.time_ns)
        return Finding(
            invariant,
            Verdict.VIOLATED,
            function,
            shape,
            f"{did} at {event.addr:#x} of mm {event.mm:#x}, and folio {event.folio:#x} is not locked",
            event.task,
            self._symbols.stack(self._stacks.of_event(event.stack)),
            {
                "addr": hex(event.addr),
                "mm": hex(event.mm),
                "vma": hex(event.vma),
                "folio": hex(event.folio),
            }
            | scene
            | ({"trail_note": trail.note} if trail.note else {}),
            trail=trail.steps,
        )

    def _reason(self, event: Event) -> str:
        return self._reasons.get(event.reason, str(event.reason))

    def _shape(self, judged: DecidedCase) -> str:
        level = "PMD" if judged.case.level == 2 else "PTE"
        event = judged.event
        if event is None:
            return f"level={level}"
        died = " (the migrating task died)" if event.kind == "MIGRATOR_DIED" else ""
        return f"level={level} reason={self._reason(event)} mode={self._modes.get(event.mode, event.mode)}{died}"

    def order(self, event: Event) -> Finding:
        """Two mmap_locks nested in both orders (L2)."""
        return Finding(
            "L2",
            Verdict.SUSPECT,
            "mmap_lock",
            "two mms nested in both orders",
            f"task {printable(event.comm)}[{event.tid}] took two mmap_locks in the opposite order of task {event.first_tid}; "
            "tracepoints cannot tell whether either was a trylock",
            event.task,
            self._symbols.stack(self._stacks.of_event(event.stack)),
            {
                "outer_mm": hex(event.outer),
                "inner_mm": hex(event.inner),
                "opposite_task": event.first_tid,
                "opposite_stack": self._symbols.stack(self._stacks.of_event(event.first_stack)),
            },
        )
