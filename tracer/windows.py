"""Books 2 and 3, read from their maps: protocols and their counts, times of windows and locks, and the flight recorder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from tracer.bpf import Table
from tracer.histogram import Histogram
from tracer.layout import Books as Layouts

_CONCERNS = ("mm", "vma", "anon", "i_mmap", "folio")
"""What ties windows together: the address space, the VMA, the locks, the folio."""


@dataclass(frozen=True)
class Flight:
    """One window as the flight recorder has it; `protocol` is the row's first_ns, `stack` a stack id or -1."""

    window: str
    row: Any


class Windows:
    """Typed access; `there` is False where the window stems are not loaded."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._maps, self._layouts = maps, layouts
        self.names = tuple(name.removeprefix("WINDOW_") for name in layouts.enums["window"] if name.startswith("WINDOW_"))
        self.classes = tuple(name.removeprefix("CLASS_") for name in layouts.enums["lock_class"] if name.startswith("CLASS_"))
        self.there = "protocols" in maps
        self._row, self._key = layouts.structs["protocol_row"], layouts.structs["protocol_key"]
        self._count = self._row.place("count")

    def rows(self) -> dict[bytes, int]:
        """Windows counted so far, by protocol key."""
        unpack = self._row.code.unpack
        return {key: unpack(raw)[self._count] for key, raw in self._maps["protocols"].items()} if self.there else {}

    def rows_of(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """The same of some protocols only."""
        table, unpack = self._maps.get("protocols"), self._row.code.unpack
        return {key: unpack(raw)[self._count] for key in keys if table and (raw := table.lookup(key))}

    def born(self) -> dict[int, bytes]:
        """Protocol keys by the time they were first seen, which is their name in the flight recorder."""
        return {self._row.unpack(raw).first_ns: key for key, raw in self._maps["protocols"].items()} if self.there else {}

    def _histograms(self, book: str, names: tuple[str, ...]) -> dict[str, Histogram]:
        if book not in self._maps:
            return dict.fromkeys(names, Histogram())
        return dict(zip(names, map(Histogram.add_up, self._maps[book].rows(len(names))), strict=True))

    def times(self) -> dict[str, Histogram]:
        """Durations by function; their count is the number of windows (a dup_mmap() is one, however many pieces it had)."""
        return {name: times for name, times in self._histograms("window_times", self.names).items() if name != "outside"}

    def waits(self) -> dict[str, Histogram]:
        """Time from asking for an rwsem inside a window to having it, by class."""
        return self._histograms("lock_waits", self.classes)

    def holds(self) -> dict[str, Histogram]:
        """Time an rwsem taken inside a window was held, by class."""
        return self._histograms("lock_holds", self.classes)

    def sighting(self, raw: bytes) -> tuple[bytes, Any]:
        """(protocol key, struct sighting) behind the event of a PROTOCOL_NEW."""
        at, seen = self._layouts.structs["event"].size, self._layouts.structs["sighting"]
        return raw[at + seen.size : at + seen.size + self._key.size], seen.unpack(raw[at:])

    def flights(self, around: Collection[int] = (), until_ns: int | None = None) -> list[Flight]:
        """The windows that the recorder still holds, oldest first: all, or those that share an address with `around`, and that ended
        by then. Read only when there is something to explain."""
        found = self._flights(set(around), until_ns) if self.there else ()
        return sorted(found, key=lambda flight: flight.row.end_ns)

    def _flights(self, around: set[int], until_ns: int | None) -> Iterator[Flight]:
        table, layout = self._maps["flights"], self._layouts.structs["flight"]
        ended, concerns = layout.place("end_ns"), itemgetter(*map(layout.place, _CONCERNS))
        for raw in table.rows(table.max_entries):
            for values in layout.code.iter_unpack(raw):
                late = until_ns is not None and values[ended] > until_ns
                if values[ended] and not late and not (around and around.isdisjoint(concerns(values))):
                    row = layout.named(values)
                    yield Flight(self.names[row.window], row)
