"""Books 2 and 3, read from their maps: protocols and their counts, times of windows and locks, and the flight recorder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from tracer.bpf import Table
from tracer.histogram import Histogram
from tracer.layout import Books as Layouts

_JIFFY_NS = 10_000_000
"""At most, with HZ 100."""
_CONCERNS = ("mm", "vma", "anon", "i_mmap", "folio")
"""What ties windows together: the address space, the VMA, the locks, the folio."""


@dataclass(frozen=True)
class Flight:
    """One window as the flight recorder has it; `protocol` is the row's first_ns, `stack` a stack id or -1."""

    window: str
    row: Any


@dataclass(frozen=True)
class Recorded:
    """flights: oldest first; changes_ns, walks_ns: since when none is missing that ended on any CPU, 0: since the gate opened;
    unsampled_ns: when the last window was not booked because windows were sampled, 0: never."""

    flights: list[Flight]
    changes_ns: int
    walks_ns: int
    unsampled_ns: int = 0


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

    def unsampled(self) -> dict[str, int]:
        """Windows that were not booked because windows are sampled, by function; those in them count, too."""
        return dict(zip(self.names, map(sum, self._allowances("unsampled")), strict=False))

    def _allowances(self, member: str) -> list[list[int]]:
        """That member, by function and CPU."""
        if "allowances" not in self._maps:
            return []
        layout = self._layouts.structs["allowance"]
        place = layout.place(member)
        return [[values[place] for values in layout.code.iter_unpack(raw)] for raw in self._maps["allowances"].rows(len(self.names))]

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

    def recorded(self, around: Collection[int] = (), tids: Collection[int] = ()) -> Recorded:
        """What the recorder still holds: all, or what shares an address with `around` or is of one of these tasks. Read only when there is
        something to explain."""
        found, ends, addresses, tasks = list[Flight](), defaultdict[tuple[bool, int], list[int]](list), set(around), set(tids)
        if not self.there:
            return Recorded(found, 0, 0)
        table, layout = self._maps["flights"], self._layouts.structs["flight"]
        end, tid, concerns = layout.place("end_ns"), layout.place("tid"), itemgetter(*map(layout.place, _CONCERNS))
        for number, raw in enumerate(table.rows(table.max_entries)):
            for cpu, values in enumerate(layout.code.iter_unpack(raw)):
                ends[number >= table.max_entries // 2, cpu].append(values[end])
                if values[end] and (not (addresses or tasks) or values[tid] in tasks or not addresses.isdisjoint(concerns(values))):
                    row = layout.named(values)
                    found.append(Flight(self.names[row.window], row))
        full = [(walks, min(each)) for (walks, _), each in ends.items() if 0 not in each]
        since = [max((oldest for walks, oldest in full if walks is kind), default=0) for kind in (False, True)]
        return Recorded(sorted(found, key=lambda flight: flight.row.end_ns), since[0], since[1], self._unsampled_ns())

    def _unsampled_ns(self) -> int:
        last = max(map(max, self._allowances("unsampled_ns")), default=0)
        return last + _JIFFY_NS if last else 0

    def flights(self) -> list[Flight]:
        """Every window that the recorder still holds, oldest first."""
        return self.recorded().flights
