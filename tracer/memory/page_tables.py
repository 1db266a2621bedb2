"""The page-table oracle: which mms hold a migration entry at an address, or anywhere, and is its page locked?

It reads page tables by value from BPF programs run on demand: it takes no lock, cannot fault, and never opens /proc/PID/pagemap of
another process (on an entry left behind that file trips the kernel's own BUG with the mmap lock held).
What it reads of an mm that goes away meanwhile may be stale, so nothing is believed that was seen once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from tracer.bpf.maps import Readable, Runnable, Table
from tracer.memory.entries import FoundEntry
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm
from tracer.tables.records import Records

_MIGRATION_TYPES = (
    3  # SWP_MIGRATION_NUM, include/linux/swap.h: read, read exclusive (from 5.19), write
)
_SWAP_TYPES = 32  # five bits
_TABLES_FACTOR, _TABLES_PER_MM = (
    4,
    64,
)  # a sweep opens no more than that many times what the kernel counts, and for upper levels


@dataclass(frozen=True)
class Sweep:
    """All migration entries of all mms; complete: nothing was passed over for lack of room."""

    answers: tuple[FoundEntry, ...]
    complete: bool
    tables: int


class Oracle:
    """Asks; never judges."""

    def __init__(
        self,
        maps: Mapping[str, Table],
        programs: Mapping[str, Runnable],
        tasks: Readable | None,
        books: Records,
        layouts: Layouts,
        levels: int,
        page_tables: Callable[[], int],
    ) -> None:
        """page_tables: how many the kernel counts now."""
        self._maps, self._programs, self._tasks, self._page_tables = (
            maps,
            programs,
            tasks,
            page_tables,
        )
        self._books, self._layouts, self._levels = books, layouts, levels
        self._found = {layouts.constants[name]: name for name in layouts.enums["found"]}
        self._locks = {layouts.constants["LOCK_FREE"]: False, layouts.constants["LOCK_HELD"]: True}
        self._query = layouts.structs["query"]
        self._upper_entries_a_run = layouts.constants["UPPER_ENTRIES_A_RUN"]
        self._leaves_a_run = layouts.constants["LEAVES_A_RUN"]
        self._walks_a_run = layouts.constants["WALKS_A_RUN"]

    def learn(self) -> int:
        """The swap types of migration entries, and those that may be: bit per type. With all three seen, no other is possible."""
        seen = set(self._books.entry_types())
        if len(seen) >= _MIGRATION_TYPES:
            self._books.set_params(types_known=1)
        else:
            seen = {
                near
                for kind in seen
                for near in range(kind - 2, kind + 3)
                if 0 <= near < _SWAP_TYPES
            }
        return sum(1 << kind for kind in seen)

    def mms(self) -> list[Mm]:
        """Every mm that can hold an entry: those of tasks, those that are exiting, and children being forked."""
        found: dict[int, Mm] = {}
        record = self._layouts.structs["task_mm"]
        raw = self._tasks.read() if self._tasks else b""
        for at in range(0, len(raw) - record.size + 1, record.size):
            task = record.unpack(raw[at : at + record.size])
            found[task.mm] = Mm(task.mm, task.pgd, task.tgid, task.comm, task.id)
        for mm in self._books.other_mms():
            found.setdefault(mm.mm, mm)
        return list(found.values())

    def ask(self, questions: Sequence[tuple[Mm, int]]) -> list[FoundEntry]:
        """Walk to each address, in order."""
        out, table = [], self._maps["queries"]
        for start in range(0, len(questions), table.max_entries):
            chunk = questions[start : start + table.max_entries]
            table.load(b"".join(self._query.pack(pgd=mm.pgd, addr=addr) for mm, addr in chunk))
            for first in range(0, len(chunk), self._walks_a_run):
                self._programs["walk"].run(first, len(chunk))
            raw = table.prefix(len(chunk))
            for n, (mm, addr) in enumerate(chunk):
                out.append(
                    self._answer(mm, addr, raw[n * self._query.size : (n + 1) * self._query.size])
                )
        return out

    def entries_at(self, addresses: Iterable[int], mms: Sequence[Mm]) -> list[FoundEntry]:
        """The migration entries (and possible ones) that stand at these addresses in any of these mms."""
        questions, out = ((mm, addr) for addr in addresses for mm in mms), list[FoundEntry]()
        while chunk := list(islice(questions, self._maps["queries"].max_entries)):
            out += [answer for answer in self.ask(chunk) if answer.migration or answer.possible]
        return out

    def _answer(self, mm: Mm, addr: int, raw: bytes) -> FoundEntry:
        q = self._query.unpack(raw)
        found = self._found[q.found]
        return FoundEntry(
            mm, addr, found, q.entry, q.level, q.pfn, self._locks.get(q.lock), bool(q.stable)
        )

    def sweep(self, mms: Sequence[Mm]) -> Sweep:
        """Search all page tables of these mms. What was the page table of an mm that died meanwhile may lead anywhere: who finds far more
        tables than the kernel has is lost, and gives up."""
        answers: list[FoundEntry] = []
        complete, tables = True, 0
        most = _TABLES_FACTOR * self._page_tables() + _TABLES_PER_MM * len(mms)
        room = max(1, self._maps["uppers"].max_entries // 16)
        waiting = [mms[start : start + room] for start in range(0, len(mms), room)]
        while waiting:
            if tables > most:
                return Sweep(tuple(answers), False, tables)
            chunk = waiting.pop()
            hits, whole, opened = self._sweep_some(chunk, most - tables)
            tables += opened
            if not whole and len(chunk) > 1:
                waiting += [chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]]
                continue
            again = self.ask([(chunk[hit.mm.mm], hit.addr) for hit in hits])
            answers += [answer for answer in again if answer.migration or answer.possible]
            complete &= whole
        return Sweep(tuple(answers), complete, tables)

    def _sweep_some(self, mms: Sequence[Mm], most: int) -> tuple[list[FoundEntry], bool, int]:
        layout, state = self._layouts.structs["table"], self._maps["sweep_state"]
        counts = self._layouts.structs["sweep_state"]
        tops = b"".join(
            layout.pack(at=mm.pgd, level=self._levels, mm=n) for n, mm in enumerate(mms)
        )
        self._maps["uppers"].load(tops)
        state.update(bytes(4), counts.pack(uppers=len(mms), wanted=self.learn()))
        upper, leaf, tables = self._programs["sweep_upper"], self._programs["sweep_leaf"], 0
        hits: list[FoundEntry] = []
        opened, now = 0, counts.unpack(state.lookup(bytes(4)) or bytes(counts.size))
        while opened < now.uppers and tables + opened <= most:
            stop = min(now.uppers, opened + (self._maps["leaves"].max_entries - now.leaves) // 512)
            for index in range(opened, stop):
                for first in range(0, 512 if index >= len(mms) else 256, self._upper_entries_a_run):
                    upper.run(index, first)
            opened = stop
            now = counts.unpack(state.lookup(bytes(4)) or bytes(counts.size))
            if now.leaves > self._maps["leaves"].max_entries - 512 or opened >= now.uppers:
                for index in range(0, now.leaves, self._leaves_a_run):
                    leaf.run(index)
                tables += now.leaves
                now = counts.unpack(state.lookup(bytes(4)) or bytes(counts.size))
                now.leaves = 0
                state.update(bytes(4), counts.pack(**vars(now)))
        raw = self._maps["hits"].prefix(now.hits)
        for n in range(now.hits):
            q = self._query.unpack(raw[n * self._query.size : (n + 1) * self._query.size])
            hits.append(
                FoundEntry(Mm(q.pgd, 0, 0), q.addr, "FOUND_MIGRATION", q.entry, q.level, q.pfn)
            )
        return hits, not now.lost and opened >= now.uppers, tables + opened
