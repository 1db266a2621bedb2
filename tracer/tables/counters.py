"""The counters of the BPF programs (enum counter)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts


class Counters:
    """Reader of the per-CPU map `counters`."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._names = maps["counters"], layouts.enums["counter"][:-1]

    def read(self) -> dict[str, int]:
        """Return every counter by its name in enum counter, summed over the CPUs."""
        rows = self._table.rows(len(self._names))
        return {
            name: sum(struct.unpack(f"<{len(raw) // 8}Q", raw))
            for name, raw in zip(self._names, rows, strict=True)
        }
