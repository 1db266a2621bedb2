"""The docket: what the protocol table says is brought before the rulings, with the evidence of a first sighting and its trail."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from tracer.books import Books, Event
from tracer.encoding import Encoding
from tracer.errors import RmapdError
from tracer.invariant import Invariant
from tracer.layout import Books as Layouts
from tracer.notation import text
from tracer.rulings import Rulings, Sighting
from tracer.symbols import Symbols
from tracer.verdict import Finding, Tally, Verdict
from tracer.windows import Flight, Windows

_TRAIL = 32
_MOST_SINGLE_LOOKUPS = 64  # a batch is cheaper from about here on
_LOSSES = ("PROTOCOLS_LOST", "WINDOWS_LOST", "WINDOWS_UNCLOSED")


class Docket:
    """hear() for every event of a new protocol, work() as soon as one of them is not well (pressing), at every tick(), and at the end."""

    def __init__(
        self,
        windows: Windows,
        books: Books,
        layouts: Layouts,
        symbols: Symbols,
        invariants: Mapping[str, Invariant],
        checked: Container[str],
    ) -> None:
        self.windows, self.encoding = windows, Encoding(layouts)
        self.rulings = Rulings(self.encoding, invariants, checked)
        self.pressing = False
        self._books, self._symbols = books, symbols
        self._losses, self._last_losses, self._evidence_lost = (0, 0), 0, 0

    def hear(self, event: Event, raw: bytes) -> None:
        """Keep what the first window of a protocol was; a violating one gets its trail now, while the recorder still has it."""
        key, seen = self.windows.sighting(raw)
        known = self.rulings.rule(key).values()
        wrong = any(ruling.verdict in (Verdict.VIOLATED, Verdict.SUSPECT) for ruling in known)
        self.pressing |= wrong
        around = {event.a, event.b, seen.folio, seen.anon, seen.i_mmap} - {0}
        sighting = Sighting(
            task={"pid": event.tid, "tgid": event.tgid, "comm": event.comm},
            stack=self._symbols.stack(self._books.stack(event.stack)),
            vma=_ranges(event.a, seen),
            addresses={name: hex(value) for name, value in _addresses(event.b, seen).items() if value},
            trail=self.trail(around, event.time_ns) if wrong else (),
        )
        self.rulings.sighted(key, sighting)

    def trail(self, around: set[int], until_ns: int | None = None) -> tuple[Mapping[str, Any], ...]:
        """The last windows that ended by then and shared an address with this one, oldest first: what came later led to nothing."""
        related = self.windows.flights(around, until_ns)[-_TRAIL:] if around else []
        born = self.windows.born() if related else {}
        return tuple(self._step(flight, born) for flight in related)

    def _step(self, flight: Flight, born: Mapping[int, bytes]) -> dict[str, Any]:
        row = flight.row
        return {
            "time_ns": row.end_ns,
            "duration_ns": row.end_ns - row.start_ns,
            "function": flight.window,
            "task": {"pid": row.tid, "tgid": row.tgid},
            "vma": _ranges(row.vma, row),
            "protocol": self._text(born.get(row.protocol)),
            "stack": list(self._symbols.stack(self._books.stack(row.stack, "flight_stacks"))),
        }

    def _text(self, key: bytes | None) -> str:
        if key is None:
            return ""
        try:
            return text(self.encoding.decode(key))
        except RmapdError as error:
            return str(error)

    def work(self, tally: Tally, counters: Mapping[str, int], missed: int, wall: float, *, whole: bool = True) -> list[Finding]:
        """Count the table into the tally, or (not whole) only what is not well in it; the findings that are new.

        Losses since the tick before the last make what is new doubtful: a window may have lost a step in one second and be counted in
        the next. What holds is as good an hour later, so a tick leaves it alone; what has lost its event is in the whole table only."""
        losses = sum(counters[name] for name in _LOSSES) + missed
        whole |= counters["EVIDENCE_LOST"] != self._evidence_lost or len(self.rulings.wrong) > _MOST_SINGLE_LOOKUPS
        rows = self.windows.rows() if whole else self.windows.rows_of(self.rulings.wrong)
        self.rulings.update(rows, lossy=losses > self._losses[0])
        self._evidence_lost, self._last_losses, self.pressing = counters["EVIDENCE_LOST"], losses, False
        return self.rulings.report(tally, wall)

    def tick(self) -> None:
        """A second has passed since the tick before."""
        self._losses = (self._losses[1], self._last_losses)


def _ranges(vma: int, seen: Any) -> dict[str, str]:
    """A VMA's address and its range before and after, as far as known."""
    numbers = {"vma": vma, "was_start": seen.was_start, "was_end": seen.was_end, "vm_start": seen.vm_start, "vm_end": seen.vm_end}
    return {name: hex(value) for name, value in numbers.items() if value}


def _addresses(mm: int, seen: Any) -> dict[str, int]:
    return {"mm": mm, "folio": seen.folio, "anon_vma root rwsem": seen.anon, "i_mmap_rwsem": seen.i_mmap}
