"""Findings: a decided case or a lock event in the words of a kernel developer, with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from tracer.answer import Answer, Place
from tracer.books import Books, Event, Row, Visited
from tracer.kernel import Kernel
from tracer.suspects import Judged
from tracer.symbols import Symbols
from tracer.verdict import Finding, Ruling, Verdict

ENUMS = ("migrate_reason", "migrate_mode")
"""What findings name by the kernel's own words."""
_MOST_PLACES = 16
_THP_SPLIT = 1000  # REASON_THP_SPLIT, books.h


def _vma(visited: Visited) -> dict[str, str]:
    return {"vma": hex(visited.vma), "vm_start": hex(visited.vm_start), "vm_end": hex(visited.vm_end)}


class Findings:
    """Makes findings; knows the kernel's names for reasons, modes and addresses."""

    def __init__(self, books: Books, kernel: Kernel, symbols: Symbols, clock: Callable[[], int]) -> None:
        self._books, self._clock, self._symbols = books, clock, symbols
        reasons, self._modes = ({value: name for name, value in kernel.enumerators(enum).items()} for enum in ENUMS)
        self._reasons = reasons | {_THP_SPLIT: "thp_split"}

    def entry(self, judged: Judged, second_walk: Mapping[Place, Ruling] = MappingProxyType({})) -> Finding:
        """An entry that is, or may be, left behind (M1, M4); second_walk: M5's ruling on each that is proven."""
        case, decision, row, event = judged.case, judged.decision, judged.row, judged.event
        found = (decision.proven or case.answers)[:_MOST_PLACES]
        holders = dict.fromkeys(f"{a.mm.comm}[{a.mm.tgid}] at {a.addr:#x}" for a in found)
        evidence: dict[str, Any] = {
            "addr": hex(case.addr),
            "age_seconds": round((self._clock() - row.first_ns) / 1e9, 6) if row else None,
            "booked": row is not None,
            "entries_outstanding": case.count,
            "entries": [self._found(a, row, second_walk) for a in found],
        }
        visits = dict.fromkeys(ruling.reason for ruling in second_walk.values())
        return Finding(
            case.invariant,
            decision.verdict,
            "migrate_pages",
            self._shape(judged),
            "; ".join([f"{decision.reason}: {', '.join(holders) or 'in no address space that could be found'}", *visits]),
            {"pid": row.tid, "tgid": row.tgid, "comm": event.comm if event else ""} if row else {},
            self._symbols.stack(self._books.stack(event.stack)) if event else (),
            evidence,
        )

    @staticmethod
    def _found(answer: Answer, row: Row | None, second_walk: Mapping[Place, Ruling]) -> dict[str, Any]:
        """An entry where it is now, and the VMA in which the first walk left it."""
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
            found |= {"mm": hex(visited.mm), "folio": hex(visited.folio), "first_walk": _vma(visited)}
        return found

    def passed_over(self, judged: Judged, row: Row, answer: Answer, ruling: Ruling) -> Finding:
        """A VMA that the second walk did not visit (M5)."""
        event = judged.event
        known = row.visited.get(answer.mm.mm)
        where = f"VMA {known.vm_start:#x}-{known.vm_end:#x}" if known and known.vma else "a VMA"
        came = (
            "" if known and answer.addr == row.addr else f", which the first walk left at {row.addr:#x} of mm {next(iter(row.visited)):#x}"
        )
        return Finding(
            "M5",
            ruling.verdict,
            "remove_migration_ptes",
            self._shape(judged),
            f"{ruling.reason}: {where} of {answer.mm.comm}[{answer.mm.tgid}] holds one at {answer.addr:#x}{came}",
            {"pid": row.tid, "tgid": row.tgid, "comm": event.comm if event else ""},
            self._symbols.stack(self._books.stack(event.stack)) if event else (),
            self._found(answer, row, {}) | {"migration_start_ns": row.start_ns},
        )

    def unlocked(self, event: Event) -> Finding:
        """A folio that is not locked while its migration entries are inserted or removed (M2, M3)."""
        inserted = event.kind == "INSERTED_UNLOCKED"
        did = "a migration entry is inserted" if inserted else "remove_migration_ptes() visits"
        return Finding(
            "M2" if inserted else "M3",
            Verdict.VIOLATED,
            "try_to_migrate_one" if inserted else "remove_migration_pte",
            f"reason={self._reason(event)} mode={self._modes.get(event.mode, event.mode)}",
            f"{did} at {event.addr:#x} of mm {event.a:#x}, and folio {event.folio:#x} is not locked",
            {"pid": event.tid, "tgid": event.tgid, "comm": event.comm},
            self._symbols.stack(self._books.stack(event.stack)),
            {"addr": hex(event.addr), "mm": hex(event.a), "vma": hex(event.b), "folio": hex(event.folio)},
        )

    def _reason(self, event: Event) -> str:
        return self._reasons.get(event.reason, str(event.reason))

    def _shape(self, judged: Judged) -> str:
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
            f"task {event.comm}[{event.tid}] took two mmap_locks in the opposite order of task {event.first_tid}; "
            "tracepoints cannot tell whether either was a trylock",
            {"pid": event.tid, "tgid": event.tgid, "comm": event.comm},
            self._symbols.stack(self._books.stack(event.stack)),
            {
                "outer_mm": hex(event.a),
                "inner_mm": hex(event.b),
                "opposite_task": event.first_tid,
                "opposite_stack": self._symbols.stack(self._books.stack(event.first_stack)),
            },
        )
