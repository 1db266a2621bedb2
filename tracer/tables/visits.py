"""The VMAs that the second rmap walk of a migration visited lately (struct visit)."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts
from tracer.tables.ledger import Row


class Visits:
    """Reader of the LRU map `visits` and of the clock that counts visits.

    A missing row proves nothing by itself: the map may have evicted it. It proves something while
    the clock shows that fewer visits came since than half of the map's rows.
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._clock = maps.get("visits"), maps.get("visit_clock")
        self._key, self._value = layouts.structs["visit_key"], layouts.structs["visit"]

    def clock(self) -> int:
        """Return how many visits there were so far; 0 where they are not hooked."""
        return int.from_bytes(self._clock.lookup(bytes(4)) or b"", "little") if self._clock else 0

    def was_visited(self, row: Row, mm: int, at: int, since: int | None) -> bool | None:
        """Return whether the second walk of this row's migration visited the VMA.

        mm, at: the VMA's mm, and the address at which the VMA maps the folio.
        since: the clock when the migration began; None if it is not known. Returns None where it
        cannot be known: visits are not hooked, the last visit there was another folio's, or so many
        visits came since the migration began that this one may have been evicted.
        """
        if not self._table or not row.visited:
            return None
        key = self._key.pack(start_ns=row.start_ns, mm=mm, at=at, tid=row.tid)
        if (raw := self._table.lookup(key)) is None:
            evicted = since is None or self.clock() - since > self._table.max_entries // 2
            return None if evicted else False
        folio = self._value.unpack(raw).folio
        same = row.frozen or folio in {known.folio for known in row.visited.values()}
        return True if same else None

    def folios(self, row: Row) -> frozenset[tuple[int, int]]:
        """Return (mm, folio) for each visit of that walk that the map still has.

        Empty for a frozen row: a split THP is visited page by page, and a visit of one page proves
        nothing of the others. Reads the whole map, so call it only before a violation is reported.
        """
        if row.frozen or not self._table:
            return frozenset()
        found, start = set[tuple[int, int]](), row.start_ns.to_bytes(8, "little")
        for raw, visit in self._table.items():
            if start not in raw:  # most are of other migrations: not worth decoding
                continue
            key = self._key.unpack(raw)
            if (key.start_ns, key.tid) == (row.start_ns, row.tid):
                found.add((key.mm, self._value.unpack(visit).folio))
        return frozenset(found)
