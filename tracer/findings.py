"""Findings: a decided case or a lock event in the words of a kernel developer, with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracer.books import Books, Event
from tracer.kernel import Kernel
from tracer.suspects import Judged
from tracer.symbols import Symbols
from tracer.verdict import Finding, Verdict

_MOST_PLACES = 16


class Findings:
    """Makes findings; knows the kernel's names for reasons, modes and addresses."""

    def __init__(self, books: Books, kernel: Kernel, symbols: Symbols, clock: Callable[[], int]) -> None:
        self._books, self._clock, self._symbols = books, clock, symbols
        self._reasons = {value: name for name, value in kernel.types.enumerators("migrate_reason").items()}
        self._modes = {value: name for name, value in kernel.types.enumerators("migrate_mode").items()}

    def entry(self, judged: Judged) -> Finding:
        """An entry that is, or may be, left behind (M1, M4)."""
        case, decision, row, event = judged.case, judged.decision, judged.row, judged.event
        found = (decision.proven or case.answers)[:_MOST_PLACES]
        holders = dict.fromkeys(f"{a.mm.comm}[{a.mm.tgid}] at {a.addr:#x}" for a in found)
        evidence: dict[str, Any] = {
            "addr": hex(case.addr),
            "age_seconds": round((self._clock() - row.first_ns) / 1e9, 6) if row else None,
            "booked": row is not None,
            "entries_outstanding": case.count,
            "entries": [
                {"tgid": a.mm.tgid, "comm": a.mm.comm, "addr": hex(a.addr), "entry": hex(a.entry), "pfn": hex(a.pfn), "locked": a.locked}
                for a in found
            ],
        }
        return Finding(
            case.invariant,
            decision.verdict,
            "migrate_pages",
            self._shape(judged),
            f"{decision.reason}: {', '.join(holders) or 'in no address space that could be found'}",
            {"pid": row.tid, "tgid": row.tgid, "comm": event.comm if event else ""} if row else {},
            self._symbols.stack(self._books.stack(event.stack)) if event else (),
            evidence,
        )

    def _shape(self, judged: Judged) -> str:
        level = "PMD" if judged.case.level == 2 else "PTE"
        event = judged.event
        if event is None:
            return f"level={level}"
        died = " (the migrating task died)" if event.kind == "MIGRATOR_DIED" else ""
        return f"level={level} reason={self._reasons.get(event.reason, event.reason)} mode={self._modes.get(event.mode, event.mode)}{died}"

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
