"""A search for migration entries in all page tables of some mms.

The program `sweep_upper` opens a table of tables and appends what is below it to two lists; the
program `sweep_leaf` searches tables of pages. Both lists are array maps of fixed size, so the
daemon runs the programs in turns. The table of tables that was appended last is opened first, so
the list holds no more than what is below one table of each level.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.machine.page_format import PageFormat
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm


@dataclass(frozen=True)
class Hit:
    """An entry of a wanted swap type.

    mm: the index of its mm in the list that was searched.
    """

    mm: int
    addr: int


@dataclass(frozen=True)
class SearchResult:
    """The hits of one search.

    complete: no table and no hit was left out for lack of room. tables: how many tables were
    opened.
    """

    hits: tuple[Hit, ...]
    complete: bool
    tables: int


class TableSearch:
    """Runs the programs of the sweep."""

    def __init__(
        self,
        maps: Mapping[str, Table],
        programs: Mapping[str, Runnable],
        layouts: Layouts,
    ) -> None:
        self._programs = programs
        self._uppers, self._leaves, self._hits = maps["uppers"], maps["leaves"], maps["hits"]
        self._state, self._counts = maps["sweep_state"], layouts.structs["sweep_state"]
        self._table, self._query = layouts.structs["table"], layouts.structs["query"]
        self._upper_entries_a_run = layouts.constants["UPPER_ENTRIES_A_RUN"]
        self._leaves_a_run = layouts.constants["LEAVES_A_RUN"]
        self._part_entries = layouts.constants["PART_ENTRIES"]

    @property
    def most_mms(self) -> int:
        """How many mms one search should have: their tables of tables must fit into the queue."""
        return max(1, self._uppers.max_entries // 16)

    def search(
        self, mms: Sequence[Mm], page_format: PageFormat, wanted: int, most: int
    ) -> SearchResult:
        """Search all page tables of these mms.

        page_format: of the page tables. wanted: a bit for each swap type to report. most: the
        search ends, incomplete, after so many tables.
        """
        entries = page_format.table_entries
        self._start(mms, page_format.levels, wanted)
        tables, now = 0, self._read_state()
        while now.uppers and tables + now.leaves <= most:
            now = self._open_last(now.uppers - 1, page_format)
            tables += 1
            if now.leaves > self._leaves.max_entries - entries or not now.uppers:
                tables += now.leaves
                now = self._search_leaves(now.leaves, entries)
        complete = not now.lost and not now.uppers
        return SearchResult(self._read_hits(now.hits), complete, tables)

    def _start(self, mms: Sequence[Mm], levels: int, wanted: int) -> None:
        """Queue the top-level tables and reset the counts."""
        tops = (self._table.pack(at=mm.pgd, level=levels, mm=n) for n, mm in enumerate(mms))
        self._uppers.load(b"".join(tops))
        self._state.update(bytes(4), self._counts.pack(uppers=len(mms), wanted=wanted))

    def _read_state(self) -> Any:
        return self._counts.unpack(self._state.lookup(bytes(4)) or bytes(self._counts.size))

    def _open_last(self, index: int, page_format: PageFormat) -> Any:
        """Replace the last table of tables, at this index, by the tables below it."""
        at, empty = index.to_bytes(4, sys.byteorder), bytes(self._table.size)
        level = self._table.unpack(self._uppers.lookup(at) or empty).level
        top = level == page_format.levels
        entries = page_format.top_entries if top else page_format.table_entries
        for first in range(0, entries, self._upper_entries_a_run):
            self._programs["sweep_upper"].run(index, first)
        now = self._read_state()
        now.uppers -= 1
        if now.uppers > index:
            last = self._uppers.lookup(now.uppers.to_bytes(4, sys.byteorder))
            self._uppers.update(at, last or empty)
        self._state.update(bytes(4), self._counts.pack(**vars(now)))
        return now

    def _search_leaves(self, leaves: int, entries: int) -> Any:
        """Search the queued tables of pages, empty their queue, and return the counts."""
        for part in range(0, leaves * (entries // self._part_entries), self._leaves_a_run):
            self._programs["sweep_leaf"].run(part)
        now = self._read_state()
        now.leaves = 0
        self._state.update(bytes(4), self._counts.pack(**vars(now)))
        return now

    def _read_hits(self, count: int) -> tuple[Hit, ...]:
        raw, size = self._hits.prefix(count), self._query.size
        found = (self._query.unpack(raw[n * size : (n + 1) * size]) for n in range(count))
        return tuple(
            Hit(query.pgd, query.addr) for query in found
        )  # pgd: append_hit() has the index
