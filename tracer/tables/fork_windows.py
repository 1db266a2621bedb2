"""Calls of dup_mmap() that are running or ended lately (struct fork_window)."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts
from tracer.tables.mm import Mm


class ForkWindows:
    """Reader of the map `fork_windows`, an array that is used as a ring."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps["fork_windows"], layouts.structs["fork_window"]

    def _rows(self) -> Iterator[tuple[bytes, Any]]:
        for n in range(self._table.max_entries):
            key = struct.pack("<I", n)
            yield key, self._layout.unpack(self._table.lookup(key) or bytes(self._layout.size))

    def children(self) -> Iterator[Mm]:
        """Yield the child mm of each call. No task refers to it before copy_process() ends."""
        for _, window in self._rows():
            if window.pgd:
                yield Mm(window.mm, window.pgd, 0, "(forked)", window.id)

    def close_open(self) -> None:
        """End every open window now.

        A fork whose end is not seen would look like one that never ends.
        """
        for key, window in self._rows():
            if window.start_ns and not window.end_ns:
                window.end_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
                self._table.update(key, self._layout.pack(**vars(window)))
