"""R3: the events of folios that leave the page cache become findings."""

from __future__ import annotations

from functools import partial
from typing import Any

from tracer.checking.findings import Draft, Explanation
from tracer.checking.trail import TrailEntry, Trails
from tracer.checking.verdicts import Verdicts
from tracer.invariants.page_cache import UNMAPPED
from tracer.invariants.verdict import Finding, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import FoundEntry
from tracer.memory.objects import ObjectReader
from tracer.memory.page_tables import Oracle
from tracer.printable import printable
from tracer.tables.events import Event
from tracer.tables.stacks import Stacks

_WRONG = {
    "LEFT_CACHE_MAPPED": "it is still mapped",
    "LEFT_CACHE_UNLOCKED": "it is not locked",
    "UNMAPPED_UNLOCKED": "it was unmapped before it was locked",
}
KINDS = tuple(_WRONG)
_TRAIL_NS = 10 * 10**9


class PageCache:
    """Records the violations of R3. oracle: None where page tables cannot be read."""

    def __init__(
        self,
        verdicts: Verdicts,
        stacks: Stacks,
        symbols: Symbols,
        objects: ObjectReader,
        oracle: Oracle | None,
        trails: Trails,
    ) -> None:
        self._verdicts, self._stacks, self._symbols = verdicts, stacks, symbols
        self._objects, self._oracle, self._trails = objects, oracle, trails

    def read_event(self, event: Event, _raw: bytes = b"") -> None:
        """Record that a folio left the cache while it was mapped, or not locked all the time."""
        kind = "hugetlb" if event.hugetlb else "file"
        outline = Finding(
            UNMAPPED.id,
            Verdict.VIOLATED,
            "__filemap_remove_folio",
            f"{kind} folio: {_WRONG[event.kind]}",
            "",
        )
        self._verdicts.record(Draft(outline, partial(self._explain, event, kind)))

    def _explain(self, event: Event, kind: str) -> Explanation:
        vma = self._objects.vma(event.vma, event.mm)
        now = self._objects.look(event.vma)
        file = f" of {printable(vma['file'])}" if vma.get("file") else ""
        entry = self._entry(event)
        mapper = "" if event.kind == "LEFT_CACHE_UNLOCKED" else self._mapper(event, entry)
        around = TrailEntry(
            max(1, event.time_ns - _TRAIL_NS),
            event.tid,
            {event.mm} - {0},
            [(event.addr, event.addr + 1)],
            {event.folio},
            {now.i_mmap} if now and now.i_mmap else (),
        )
        return Explanation(
            f"{kind} folio {event.folio:#x}, page {event.index}{file}, leaves the page cache, and"
            f" {_WRONG[event.kind]}{mapper}",
            event.task,
            self._symbols.stack(self._stacks.of_event(event.stack)),
            {
                "folio": hex(event.folio),
                "mapping": hex(event.mapping),
                "index": event.index,
                "folio_now": self._objects.folio(event.folio, vm_flags=now.vm_flags if now else 0),
                "vma_now": vma,
            }
            | _as_json(entry),
            self._trails.of_entry(around, event.time_ns),
        )

    def _entry(self, event: Event) -> FoundEntry | None:
        """Return what the page table has for the page in the VMA that was found."""
        if not self._oracle or not event.vma:
            return None
        mm = next((mm for mm in self._oracle.mms() if mm.mm == event.mm), None)
        return next(iter(self._oracle.ask([(mm, event.addr)])), None) if mm else None

    @staticmethod
    def _mapper(event: Event, entry: FoundEntry | None) -> str:
        """Name who maps the folio, or had it mapped, as far as it is known."""
        if event.kind == "UNMAPPED_UNLOCKED":
            owner = _owner(entry) if entry else f"mm {event.mm:#x}"
            return f"; {owner} had this page of the file at {event.addr:#x}"
        if not event.vma:
            return "; no VMA of this page was found"
        if entry is None:
            return f"; mm {event.mm:#x} has this page of the file at {event.addr:#x}"
        now = "maps a page there" if entry.found == "FOUND_PRESENT" else "maps nothing there by now"
        return f"; {_owner(entry)} has this page of the file at {event.addr:#x}, and {now}"


def _owner(entry: FoundEntry) -> str:
    return f"{printable(entry.mm.comm)}[{entry.mm.tgid}]"


def _as_json(entry: FoundEntry | None) -> dict[str, Any]:
    if entry is None:
        return {}
    pfn = {"pfn": hex(entry.present_pfn)} if entry.found == "FOUND_PRESENT" else {}
    return {
        "entry_now": {
            "comm": entry.mm.comm,
            "tgid": entry.mm.tgid,
            "addr": hex(entry.addr),
            "entry": hex(entry.entry),
            "found": entry.found.removeprefix("FOUND_").lower(),
            **pfn,
        }
    }
