"""The ledger: migration entries that were inserted and not yet removed (struct ledger_row)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tracer.bpf.maps import Table
from tracer.machine.page_format import PageFormat
from tracer.tables.c_structs import Layouts
from tracer.tables.params import Params

_ALL = -1  # in Row.keys: all entries of a row of the map `ledger`


@dataclass(frozen=True)
class Visited:
    """Where the first walk left an entry.

    The mm, the VMA as it was then, and the address at which the walk met the folio there.
    visits: how often the second walk came to that very address; None where it is not counted (a
    fork's copy, a page inside of a large folio). to: the destination folio of its last visit, 0 if
    there was none.
    """

    mm: int
    entry: int
    vma: int
    vm_start: int
    vm_end: int
    folio: int
    at: int
    visits: int | None = None
    to: int = 0


@dataclass(frozen=True)
class Row:
    """Entries outstanding at one address in one migration, in however many mms.

    start_ns: of the migration; 0: the entries were inserted outside of one.
    keys: their rows in the maps, each with the index of the entry in a frozen PMD, or -1 for a row
    of the map `ledger`.
    visited: where the first walk left the entries, by mm.
    """

    key: bytes
    tid: int
    tgid: int
    start_ns: int
    addr: int
    level: int
    first_ns: int
    entry: int
    count: int
    keys: tuple[tuple[bytes, int], ...] = ()
    visited: Mapping[int, Visited] = field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether the entry is one of a PMD that a THP split froze."""
        return bool(self.keys) and self.keys[0][1] != _ALL

    def joined(self, other: Row) -> Row:
        """Return the row with the entries of the same address in another mm."""
        return replace(
            self,
            first_ns=min(self.first_ns, other.first_ns),
            count=self.count + other.count,
            keys=self.keys + other.keys,
            visited={**self.visited, **other.visited},
        )


@dataclass(frozen=True)
class Taken:
    """Entries that take() removed from the ledger.

    last_ns, entry: when the last of them was inserted, and its value.
    """

    count: int = 0
    last_ns: int = 0
    entry: int = 0


class Ledger:
    """Reader of the maps `ledger` and `frozen` that takes decided rows out of them.

    Empty where the migration hooks are not loaded.

    A row of the map `frozen` stands for the entries (PTRS_PER_PTE) of a PMD that a THP split turned
    into migration entries (__split_huge_pmd_locked(), mm/huge_memory.c).
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts, params: Params) -> None:
        self._params = params
        self._ledger, self._frozen = maps.get("ledger"), maps.get("frozen")
        self._key_layout = layouts.structs["ledger_key"]
        self._row_layout, self._frozen_layout = (
            layouts.structs["ledger_row"],
            layouts.structs["frozen"],
        )

    def rows(self) -> list[Row]:
        """Return all entries outstanding, one row for each migration and address."""
        rows: dict[bytes, Row] = {}
        for found in (self._ledger_rows(), self._frozen_rows()):
            for row in found:
                rows[row.key] = rows[row.key].joined(row) if row.key in rows else row
        return list(rows.values())

    def _ledger_rows(self) -> Iterator[Row]:
        if not self._ledger:
            return
        for raw_key, raw_row in self._ledger.items():
            key, row = self._key_layout.unpack(raw_key), self._row_layout.unpack(raw_row)
            if not row.count:
                continue
            visits = row.visits if row.vma and row.at == key.addr else None
            visited = Visited(
                key.mm,
                row.entry,
                row.vma,
                row.vm_start,
                row.vm_end,
                row.folio,
                row.at,
                visits,
                row.to,
            )
            yield _row(key, row, key.addr, key.level, row.count, (raw_key, _ALL), visited)

    def _frozen_rows(self) -> Iterator[Row]:
        if not self._frozen:
            return
        page_format: PageFormat | None = None
        for raw_key, raw_row in self._frozen.items():
            page_format = page_format or self._params.page_format()
            key, row = self._key_layout.unpack(raw_key), self._frozen_layout.unpack(raw_row)
            for n in range(page_format.table_entries):
                if _is_settled(row, n):
                    continue
                addr = key.addr + n * page_format.page
                entry = page_format.entry_after(row.entry, n)
                visited = Visited(key.mm, entry, row.vma, row.vm_start, row.vm_end, row.folio, addr)
                yield _row(key, row, addr, 1, 1, (raw_key, n), visited)

    def outstanding(self, row: Row) -> int:
        """Return how many entries of a row are outstanding now."""
        count = 0
        for key, nth in row.keys:
            if nth != _ALL:
                count += self._outstanding_frozen(key, nth) is not None
            elif self._ledger and (raw := self._ledger.lookup(key)):
                count += int(self._row_layout.unpack(raw).count)
        return count

    def take(self, row: Row) -> Taken:
        """Take a decided row out of the maps.

        The count is exact: a row of no migration can grow and shrink until it is taken.
        """
        taken = Taken()
        for key, nth in row.keys:
            if nth != _ALL:
                taken = replace(taken, count=taken.count + self._take_frozen(key, nth))
            elif self._ledger and (raw := self._ledger.take(key)):
                one = self._row_layout.unpack(raw)
                last = max((taken.last_ns, taken.entry), (one.last_ns, one.entry), key=_time)
                taken = Taken(taken.count + one.count, *last)
        return taken

    def _outstanding_frozen(self, key: bytes, nth: int) -> Any:
        """Return the struct frozen at this key; None if its nth entry is settled."""
        raw = self._frozen.lookup(key) if self._frozen else None
        row = None if raw is None else self._frozen_layout.unpack(raw)
        return None if row is None or _is_settled(row, nth) else row

    def _take_frozen(self, key: bytes, nth: int) -> bool:
        """Settle one entry of a frozen PMD.

        Its migration has ended, so no program writes this row at the same time.
        """
        row = self._outstanding_frozen(key, nth)
        if row is None or not self._frozen:
            return False
        row.settled[nth // 64] |= 1 << nth % 64
        row.count -= 1
        if row.count:
            self._frozen.update(key, self._frozen_layout.pack(**vars(row)))
            return True
        return self._frozen.delete(key)


def _time(last: tuple[int, int]) -> int:
    return last[0]


def _is_settled(row: Any, nth: int) -> bool:
    return bool(row.settled[nth // 64] >> nth % 64 & 1)


def _row(
    key: Any, row: Any, addr: int, level: int, count: int, part: tuple[bytes, int], visited: Visited
) -> Row:
    """Make the row of one address. Its key has no mm: it is the same in every mm."""
    return Row(
        struct.pack("<QQII", key.start_ns, addr, key.tid, level),
        key.tid,
        row.tgid,
        key.start_ns,
        addr,
        level,
        row.first_ns,
        visited.entry,
        count,
        (part,),
        {key.mm: visited} if key.mm else {},
    )
