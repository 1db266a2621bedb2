"""Books 2 and 3, read from their maps: protocols and their counts, times of windows and locks, and the flight recorder."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tracer.bpf import Table
from tracer.histogram import Histogram
from tracer.layout import Books as Layouts


@dataclass(frozen=True)
class Flight:
    """One window as the flight recorder has it; `protocol` is the row's first_ns, `stack` a stack id or -1."""

    window: str
    row: Any

    @property
    def concerns(self) -> set[int]:
        """What ties windows together: the address space, the VMA, the locks, the folio."""
        r = self.row
        return {r.mm, r.vma, r.anon, r.i_mmap, r.folio} - {0}


class Windows:
    """Typed access; `there` is False where the window stems are not loaded."""

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts) -> None:
        self._maps, self._layouts = maps, layouts
        self.names = tuple(name.removeprefix("WINDOW_") for name in layouts.enums["window"] if name.startswith("WINDOW_"))
        self.classes = tuple(name.removeprefix("CLASS_") for name in layouts.enums["lock_class"] if name.startswith("CLASS_"))
        self.there = "protocols" in maps
        self._row, self._key = layouts.structs["protocol_row"], layouts.structs["protocol_key"]

    def rows(self) -> dict[bytes, int]:
        """Windows counted so far, by protocol key."""
        return {key: self._row.unpack(raw).count for key, raw in self._maps["protocols"].items()} if self.there else {}

    def born(self) -> dict[int, bytes]:
        """Protocol keys by the time they were first seen, which is their name in the flight recorder."""
        return {self._row.unpack(raw).first_ns: key for key, raw in self._maps["protocols"].items()} if self.there else {}

    def _histograms(self, book: str, names: tuple[str, ...]) -> dict[str, Histogram]:
        if book not in self._maps:
            return dict.fromkeys(names, Histogram())
        return {name: Histogram.add_up(self._maps[book].per_cpu(struct.pack("<I", number))) for number, name in enumerate(names)}

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

    def flights(self) -> list[Flight]:
        """Every window that the recorder still holds, oldest first. Read only when there is something to explain."""
        return sorted(self._flights(), key=lambda flight: flight.row.end_ns) if self.there else []

    def _flights(self) -> Iterator[Flight]:
        table, layout = self._maps["flights"], self._layouts.structs["flight"]
        for number in range(table.max_entries):
            for raw in table.per_cpu(struct.pack("<I", number)):
                row = layout.unpack(raw)
                if row.end_ns:
                    yield Flight(self.names[row.window], row)
