"""Tasks that are inside a migration now (struct migration of probes/include/books.h)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts


class Migrations:
    """Reads the map `migrations`: one row a task inside migrate_pages(), or inside the split of a THP."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps.get("migrations"), layouts.structs["migration"]

    def start_of(self, tid: int) -> int | None:
        """Return when the migration began that the task is in (CLOCK_MONOTONIC nanoseconds); None if it is in none."""
        raw = self._table.lookup(struct.pack("<I", tid)) if self._table else None
        return None if raw is None else int(self._layout.unpack(raw).start_ns)
