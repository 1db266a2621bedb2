"""The flight recorder: the last windows of each CPU (struct flight)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tracer.bpf.maps import Table
from tracer.tables.allowances import Allowances
from tracer.tables.c_structs import Layouts, names_of

_FOREVER_NS = 1 << 64
_ADDRESSES = ("mm", "vma", "anon", "i_mmap", "folio")
"""Members of struct flight that tie windows together: address space, VMA, locks, folio."""


class Flight(NamedTuple):
    """One window in the flight recorder: the name of its function and its struct flight.

    row.protocol is the first_ns of the window's row in the protocol table; row.stack is a stack id,
    or negative if none was taken.
    """

    window: str
    row: Any


@dataclass(frozen=True)
class Recorded:
    """Flights, oldest first, and since when the recorder has all (CLOCK_MONOTONIC nanoseconds).

    changes_ns, walks_ns: no change of VMAs, no rmap walk that ended since then is missing on any
    CPU; 0: none since the gate opened.
    unsampled_ns: when sampling left out the last window; 0: never. frozen_ns: from when to when no
    window was written, because the recorder was frozen for a complaint of the kernel; 0, 0: never.
    """

    flights: list[Flight]
    changes_ns: int
    walks_ns: int
    unsampled_ns: int = 0
    frozen_ns: tuple[int, int] = (0, 0)

    def gaps(self, since_ns: int, now_ns: int) -> str:
        """Return sentences on the windows since then that were not written to the recorder."""
        begin, end = self.frozen_ns
        sentences = [
            " Windows were sampled: not all are in it." if self.unsampled_ns > since_ns else "",
            f" It was frozen for {(end - begin) / 1e6:.0f} ms, as the kernel complained."
            if end > since_ns and begin < now_ns
            else "",
        ]
        return "".join(sentences)


class FlightRecorder:
    """Reader of the per-CPU map `flights`: first half VMA changes, second half rmap walks.

    Empty where the window hooks are not loaded. A read copies the whole map, so read it only when
    there is something to explain.
    """

    def __init__(self, maps: Mapping[str, Table], layouts: Layouts, allowances: Allowances) -> None:
        self._table, self._layout = maps.get("flights"), layouts.structs["flight"]
        self._names, self._allowances = names_of(layouts, "window", "WINDOW_"), allowances
        self._freeze, self._freeze_layout = (
            maps.get("flight_freeze"),
            layouts.structs["flight_freeze"],
        )

    def thaw(self, now_ns: int) -> None:
        """Let windows be written again: what a complaint froze has been read. now_ns: now."""
        since, until = self._frozen_ns()
        if self._freeze and since <= now_ns < until:
            row = self._freeze_layout.pack(since_ns=since, until_ns=now_ns)
            self._freeze.update(bytes(4), row)

    def _frozen_ns(self) -> tuple[int, int]:
        row = self._freeze.lookup(bytes(4)) if self._freeze else None
        found = self._freeze_layout.unpack(row) if row else None
        return (found.since_ns, found.until_ns) if found else (0, 0)

    def recorded(
        self,
        around: Collection[int] = (),
        tids: Collection[int] = (),
        *,
        since_ns: int = 1,
        until_ns: int = _FOREVER_NS,
        last: int = 0,
    ) -> Recorded:
        """Return the flights that the recorder still has.

        around, tids: only flights that have one of these addresses, or are of one of these tasks;
        all flights if both are empty.
        since_ns, until_ns: only windows that ended in this time. last: only the latest of them, so
        many at most; 0: all.
        """
        if not self._table:
            return Recorded([], 0, 0)
        table, layout = self._table, self._layout
        raw = b"".join(table.rows(table.max_entries))  # by row, in each by CPU
        ends = layout.column("end_ns", raw)
        found = self._ties(raw, {*around}, {*tids}) if around or tids else range(len(ends))
        wanted = sorted(
            (n for n in found if since_ns <= ends[n] <= until_ns), key=ends.__getitem__
        )[-last:]
        rows = [layout.record(*layout.code.unpack_from(raw, n * layout.size)) for n in wanted]
        cpus, half = len(ends) // table.max_entries, len(ends) // 2
        changes_ns, walks_ns = (
            max(min(part[cpu::cpus]) for cpu in range(cpus)) for part in (ends[:half], ends[half:])
        )
        return Recorded(
            [Flight(self._names[row.window], row) for row in rows],
            changes_ns,
            walks_ns,
            self._allowances.last_unsampled_ns(),
            self._frozen_ns(),
        )

    def _ties(self, raw: bytes, addresses: set[int], tids: set[int]) -> set[int]:
        """Return the numbers of the rows that have one of these addresses or tids.

        Compares columns, because most of the thousands of rows have none.
        """
        found = set[int]()
        for wanted, members in ((addresses, _ADDRESSES), (tids, ("tid",))):
            for column in (self._layout.column(member, raw) for member in members):
                if not wanted.isdisjoint(column):
                    found.update(number for number, value in enumerate(column) if value in wanted)
        return found

    def flights(self) -> list[Flight]:
        """Return every flight that the recorder still has, oldest first."""
        return self.recorded().flights
