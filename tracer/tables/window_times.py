"""Durations of windows, and of the rwsem waits and holds inside them."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts, names_of
from tracer.tables.histogram import Histogram


class WindowTimes:
    """Reader of the per-CPU maps `window_times`, `lock_waits` and `lock_holds`.

    Histograms are empty where these maps are not loaded.
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._maps = maps
        self._functions = names_of(layouts, "window", "WINDOW_")
        self._classes = names_of(layouts, "lock_class", "CLASS_")

    def _histograms(self, name: str, rows: tuple[str, ...]) -> dict[str, Histogram]:
        if name not in self._maps:
            return dict.fromkeys(rows, Histogram())
        return dict(zip(rows, map(Histogram.add_up, self._maps[name].rows(len(rows))), strict=True))

    def windows(self) -> dict[str, Histogram]:
        """Return the durations by function.

        Their count is the number of windows; a dup_mmap() is one, however many pieces its protocol
        was cut into.
        """
        found = self._histograms("window_times", self._functions)
        return {name: times for name, times in found.items() if name != "outside"}

    def lock_waits(self) -> dict[str, Histogram]:
        """Return the times that tasks waited for an rwsem inside a window, by lock class."""
        return self._histograms("lock_waits", self._classes)

    def lock_holds(self) -> dict[str, Histogram]:
        """Return the times for which rwsems taken in a window were held, by lock class."""
        return self._histograms("lock_holds", self._classes)
