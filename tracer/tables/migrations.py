"""Tasks that are inside a migration now (struct migration)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts


class Migrations:
    """Reader of the map `migrations`: a row for each task inside migrate_pages() or a THP split."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps.get("migrations"), layouts.structs["migration"]

    def start_of(self, tid: int) -> int | None:
        """Return when the task's current migration began; None if it is in none.

        In nanoseconds of CLOCK_MONOTONIC.
        """
        raw = self._table.lookup(struct.pack("<I", tid)) if self._table else None
        return None if raw is None else int(self._layout.unpack(raw).start_ns)
