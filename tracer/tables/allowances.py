"""Sampling: how many windows of each function may still be recorded, and how many were left out."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts, names_of

_JIFFY_NS = 10_000_000  # with HZ=100; with a larger HZ a jiffy is shorter


class Allowances:
    """Reader of the per-CPU map `allowances` (struct allowance), which has a row for each function.

    Empty where the window hooks are not loaded.
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._table, self._layout = maps.get("allowances"), layouts.structs["allowance"]
        self._names = names_of(layouts, "window", "WINDOW_")

    def unsampled(self) -> dict[str, int]:
        """Return how many windows sampling left out, by function, with the windows inside them."""
        return dict(zip(self._names, map(sum, self._values("unsampled")), strict=False))

    def last_unsampled_ns(self) -> int:
        """Return the latest time at which sampling may have left out a window.

        In nanoseconds of CLOCK_MONOTONIC; 0: it left out none.

        The programs note the time to the jiffy, so the true time is up to a jiffy later.
        """
        last = max(map(max, self._values("unsampled_ns")), default=0)
        return last + _JIFFY_NS if last else 0

    def _values(self, member: str) -> list[list[int]]:
        """Return a member's values, by function and CPU."""
        if not self._table:
            return []
        place = self._layout.place(member)
        return [
            [values[place] for values in self._layout.code.iter_unpack(raw)]
            for raw in self._table.rows(len(self._names))
        ]
