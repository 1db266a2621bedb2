"""Books 2 and 3, read from their maps: protocols and their counts, times of windows and locks, and the flight recorder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tracer.bpf.maps import Table
from tracer.tables.c_structs import Layouts
from tracer.tables.histogram import Histogram

_JIFFY_NS = 10_000_000
"""At most, with HZ 100."""
_EVER_NS = 1 << 64
_CONCERNS = ("mm", "vma", "anon", "i_mmap", "folio")
"""What ties windows together: the address space, the VMA, the locks, the folio."""


class Flight(NamedTuple):
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
        self.names = tuple(
            name.removeprefix("WINDOW_")
            for name in layouts.enums["window"]
            if name.startswith("WINDOW_")
        )
        self.classes = tuple(
            name.removeprefix("CLASS_")
            for name in layouts.enums["lock_class"]
            if name.startswith("CLASS_")
        )
        self.there = "protocols" in maps
        self._row, self._key = layouts.structs["protocol_row"], layouts.structs["protocol_key"]
        self._count = self._row.place("count")

    def rows(self) -> dict[bytes, int]:
        """Windows counted so far, by protocol key."""
        unpack = self._row.code.unpack
        return (
            {key: unpack(raw)[self._count] for key, raw in self._maps["protocols"].items()}
            if self.there
            else {}
        )

    def rows_of(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """The same of some protocols only."""
        table, unpack = self._maps.get("protocols"), self._row.code.unpack
        return {
            key: unpack(raw)[self._count] for key in keys if table and (raw := table.lookup(key))
        }

    def born(self) -> dict[int, bytes]:
        """Protocol keys by the time they were first seen, which is their name in the flight recorder."""
        unpack, first = self._row.code.unpack, self._row.place("first_ns")
        return (
            {unpack(raw)[first]: key for key, raw in self._maps["protocols"].items()}
            if self.there
            else {}
        )

    def _histograms(self, book: str, names: tuple[str, ...]) -> dict[str, Histogram]:
        if book not in self._maps:
            return dict.fromkeys(names, Histogram())
        return dict(
            zip(names, map(Histogram.add_up, self._maps[book].rows(len(names))), strict=True)
        )

    def times(self) -> dict[str, Histogram]:
        """Durations by function; their count is the number of windows (a dup_mmap() is one, however many pieces it had)."""
        return {
            name: times
            for name, times in self._histograms("window_times", self.names).items()
            if name != "outside"
        }

    def unsampled(self) -> dict[str, int]:
        """Windows that were not booked because windows are sampled, by function; those in them count, too."""
        return dict(zip(self.names, map(sum, self._allowances("unsampled")), strict=False))

    def _allowances(self, member: str) -> list[list[int]]:
        """That member, by function and CPU."""
        if "allowances" not in self._maps:
            return []
        layout = self._layouts.structs["allowance"]
        place = layout.place(member)
        return [
            [values[place] for values in layout.code.iter_unpack(raw)]
            for raw in self._maps["allowances"].rows(len(self.names))
        ]

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

    def recorded(
        self,
        around: Collection[int] = (),
        tids: Collection[int] = (),
        *,
        since_ns: int = 1,
        until_ns: int = _EVER_NS,
        last: int = 0,
    ) -> Recorded:
        """What the recorder still holds: all, or what shares an address with `around` or is of one of these tasks; of what ended in that
        time, the `last` ones (0: all). Read only when there is something to explain."""
        if not self.there:
            return Recorded([], 0, 0)
        table, layout = self._maps["flights"], self._layouts.structs["flight"]
        raw = b"".join(table.rows(table.max_entries))  # by row, in each by CPU
        ends = layout.column("end_ns", raw)
        found = self._ties(raw, {*around}, {*tids}) if around or tids else range(len(ends))
        wanted = sorted(
            (n for n in found if since_ns <= ends[n] <= until_ns), key=ends.__getitem__
        )[-last:]
        rows = [layout.record(*layout.code.unpack_from(raw, n * layout.size)) for n in wanted]
        cpus, half = len(ends) // table.max_entries, len(ends) // 2
        since = [
            max(min(part[cpu::cpus]) for cpu in range(cpus)) for part in (ends[:half], ends[half:])
        ]
        return Recorded(
            [Flight(self.names[row.window], row) for row in rows],
            since[0],
            since[1],
            self._unsampled_ns(),
        )

    def _ties(self, raw: bytes, addresses: set[int], tids: set[int]) -> set[int]:
        """Which of the recorder's rows have one of these. By columns, for most of thousands have not."""
        found, layout = set[int](), self._layouts.structs["flight"]
        for wanted, members in ((addresses, _CONCERNS), (tids, ("tid",))):
            for column in (layout.column(member, raw) for member in members):
                if not wanted.isdisjoint(column):
                    found.update(number for number, value in enumerate(column) if value in wanted)
        return found

    def _unsampled_ns(self) -> int:
        last = max(map(max, self._allowances("unsampled_ns")), default=0)
        return last + _JIFFY_NS if last else 0

    def flights(self) -> list[Flight]:
        """Every window that the recorder still holds, oldest first."""
        return self.recorded().flights
