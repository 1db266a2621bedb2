"""The page-table oracle: which mms hold a migration entry, where, and is its page locked?

BPF programs that run on demand read the page tables by value. They take no lock and cause no fault.
The oracle never opens /proc/PID/pagemap of another process: on an entry that was left behind, that
file triggers the BUG_ON() of pfn_swap_entry_to_page() (include/linux/swapops.h) with the mmap_lock
held.

An mm may go away during a read, and the read is stale then. So nothing is believed that was seen
only once, and nothing at all of an mm_struct that is freed: what was its pgd may be any page by
then, and looks like page tables with entries left behind (seen on 6.18).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from tracer.bpf.links import Readable
from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.machine.page_format import PageFormat
from tracer.memory.entries import FoundEntry
from tracer.memory.sweep import TableSearch
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm
from tracer.tables.other_mms import OtherMms
from tracer.tables.params import Params
from tracer.tables.swap_types import SWAP_TYPES, SwapTypes

_MIGRATION_TYPES = 3
"""SWP_MIGRATION_NUM (include/linux/swap.h): read, read exclusive (from 5.19), write."""
_MM_GONE = "FOUND_MM_GONE"
_TABLES_FACTOR, _TABLES_PER_MM = 4, 64
"""A sweep opens at most _TABLES_FACTOR times the page tables that the kernel counts.

The kernel does not count all upper levels: _TABLES_PER_MM more are allowed for each mm.
"""


@dataclass(frozen=True)
class Sweep:
    """The migration entries, and possible ones, of all mms.

    complete: nothing was left out for lack of room. tables: how many page tables were opened.
    """

    answers: tuple[FoundEntry, ...]
    complete: bool
    tables: int


class Oracle:
    """Walks page tables and reports the entries that it finds; it gives no verdict."""

    def __init__(
        self,
        maps: Mapping[str, Table],
        programs: Mapping[str, Runnable],
        tasks: Readable | None,
        params: Params,
        swap_types: SwapTypes,
        other_mms: OtherMms,
        layouts: Layouts,
        page_tables: Callable[[], int],
        memory_end: Callable[[], int],
    ) -> None:
        """Open the maps and programs of the oracle.

        tasks: the iterator over all tasks.
        page_tables: returns how many page tables the kernel counts now.
        memory_end: returns the physical address behind the last RAM; 0: not known.
        """
        self._queries, self._walk = maps["queries"], programs["walk"]
        self._search = TableSearch(maps, programs, layouts)
        self._tasks, self._page_tables, self._memory_end = tasks, page_tables, memory_end
        self._params, self._swap_types, self._other_mms = params, swap_types, other_mms
        self._found = {layouts.constants[name]: name for name in layouts.enums["found"]}
        self._locks = {layouts.constants["LOCK_FREE"]: False, layouts.constants["LOCK_HELD"]: True}
        self._query, self._task_mm = layouts.structs["query"], layouts.structs["task_mm"]
        self._walks_a_run = layouts.constants["WALKS_A_RUN"]

    @property
    def page_format(self) -> PageFormat:
        """The format of page tables that the programs use now."""
        return self._params.page_format()

    def renew_memory_end(self) -> None:
        """Tell the programs where RAM ends now: they follow no pointer behind it.

        Behind the RAM in the direct map a device may be mapped, and what was a page table may lead
        anywhere.
        """
        base, end = self._params.get().page_offset, self._memory_end()
        if base and end:
            self._params.set(direct_map_end=base + end)

    def update_swap_types(self) -> int:
        """Return a bit for each swap type that migration entries have or may have.

        Types that were seen inserted, and those up to two beside them. Once all three were seen no
        other is possible: the parameter types_known reports that to the programs.
        """
        seen = set(self._swap_types.inserted())
        if len(seen) >= _MIGRATION_TYPES:
            self._params.set(types_known=1)
        else:
            near = {kind + distance for kind in seen for distance in range(-2, 3)}
            seen = near & set(range(SWAP_TYPES))
        return sum(1 << kind for kind in seen)

    def task_mms(self) -> list[Mm]:
        """Return the mm of each task that has one, once."""
        found: dict[int, Mm] = {}
        raw, size = self._tasks.read() if self._tasks else b"", self._task_mm.size
        for at in range(0, len(raw) - size + 1, size):
            task = self._task_mm.unpack(raw[at : at + size])
            found[task.mm] = Mm(task.mm, task.pgd, task.tgid, task.comm, task.id, task.changed)
        return list(found.values())

    def mms(self) -> list[Mm]:
        """Return every mm that can hold an entry.

        They are the mms of tasks, those that exit, and the children of forks. An exit that the
        probes did not see (the gate was closed, or they are detached) leaves its mm among the
        others: mms that are freed by now are left out.
        """
        found = {mm.mm: mm for mm in self.task_mms()}
        others = {mm.mm: mm for mm in self._other_mms.read() if mm.mm not in found}.values()
        exist = [entry.found != _MM_GONE for entry in self.ask([(mm, 0) for mm in others])]
        return [*found.values(), *compress(others, exist)]

    def ask(self, questions: Sequence[tuple[Mm, int]]) -> list[FoundEntry]:
        """Walk to each (mm, address). Return one entry for each, in the same order."""
        out, table, size = list[FoundEntry](), self._queries, self._query.size
        page_format = self.page_format
        for start in range(0, len(questions), table.max_entries):
            chunk = questions[start : start + table.max_entries]
            table.load(
                b"".join(
                    self._query.pack(mm=mm.mm, id=mm.id, pgd=mm.pgd, addr=addr)
                    for mm, addr in chunk
                )
            )
            for first in range(0, len(chunk), self._walks_a_run):
                self._walk.run(first, len(chunk))
            raw = table.prefix(len(chunk))
            for n, (mm, addr) in enumerate(chunk):
                out.append(self._entry(mm, addr, page_format, raw[n * size : (n + 1) * size]))
        return out

    def _entry(self, mm: Mm, addr: int, page_format: PageFormat, raw: bytes) -> FoundEntry:
        q = self._query.unpack(raw)
        locked = self._locks.get(q.lock)
        found, stable = self._found[q.found], bool(q.stable)
        return FoundEntry(mm, addr, page_format, found, q.entry, q.level, q.pfn, locked, stable)

    def sweep(self, mms: Sequence[Mm]) -> Sweep:
        """Search all page tables of these mms.

        An mm that dies during the search may leave a page that is no page table any more, and its
        contents may lead anywhere. So the search gives up, incomplete, when it has opened far more
        tables than the kernel has.
        """
        self.renew_memory_end()
        answers: list[FoundEntry] = []
        complete, tables = True, 0
        most = _TABLES_FACTOR * self._page_tables() + _TABLES_PER_MM * len(mms)
        room = self._search.most_mms
        waiting = [mms[start : start + room] for start in range(0, len(mms), room)]
        while waiting:
            if tables > most:
                return Sweep(tuple(answers), False, tables)
            chunk = waiting.pop()
            found = self._search.search(
                chunk, self.page_format, self.update_swap_types(), most - tables
            )
            tables += found.tables
            if not found.complete and len(chunk) > 1:
                waiting += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                continue
            answers += _migration_entries(self.ask([(chunk[h.mm], h.addr) for h in found.hits]))
            complete &= found.complete
        return Sweep(tuple(answers), complete, tables)


def _migration_entries(found: Iterable[FoundEntry]) -> list[FoundEntry]:
    return [entry for entry in found if entry.migration or entry.possible]
