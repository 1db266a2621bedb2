"""Reads events of new protocols, and counts the windows of the protocol table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.checking.protocol_verdicts import ProtocolVerdicts
from tracer.checking.trail import Trail, Trails, ranges
from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.objects import ObjectReader, vm_letters
from tracer.packed import pack
from tracer.protocol.codec import Encoding
from tracer.results.protocols import Sighting
from tracer.tables.c_structs import Layouts
from tracer.tables.events import Event, Events
from tracer.tables.flight_recorder import FlightRecorder
from tracer.tables.protocol_table import ProtocolTable
from tracer.tables.stacks import Stacks
from tracer.tables.tables import Tables

_WRONG = (Verdict.VIOLATED, Verdict.SUSPECT)
_MOST_SINGLE_LOOKUPS = 64  # a batch is cheaper from about here on
_LOSSES = ("PROTOCOLS_LOST", "WINDOWS_LOST", "WINDOWS_UNCLOSED")


@dataclass(frozen=True)
class ProtocolTables:
    """The tables of protocols and windows."""

    events: Events
    protocol_table: ProtocolTable
    flight_recorder: FlightRecorder
    stacks: Stacks

    @classmethod
    def of(cls, tables: Tables) -> ProtocolTables:
        """Choose these of all tables."""
        return cls(tables.events, tables.protocol_table, tables.flight_recorder, tables.stacks)


class ProtocolEvents:
    """Reads events of new protocols and counts the windows of the protocol table.

    Call read_event() for each PROTOCOL_NEW, work() as soon as one of them is `urgent`, at every
    tick and before the tally is read, and tick() once a second.
    """

    def __init__(
        self,
        tables: ProtocolTables,
        layouts: Layouts,
        symbols: Symbols,
        invariants: Mapping[str, Invariant],
        covered: frozenset[str],
        objects: ObjectReader,
    ) -> None:
        self._tables, self.encoding = tables, Encoding(layouts)
        self.rulings = ProtocolVerdicts(self.encoding, invariants, covered)
        self.trails = Trails(
            tables.protocol_table,
            tables.flight_recorder,
            tables.stacks,
            symbols,
            self.encoding,
            self.rulings.rule,
        )
        self.urgent = False
        self._symbols, self._objects = symbols, objects
        self._losses, self._last_losses, self._evidence_lost = (0, 0), 0, 0

    def cover(self, covered: frozenset[str]) -> None:
        """From now on windows are judged by these invariants."""
        self.rulings.cover(covered)

    def read_event(self, event: Event, raw: bytes) -> None:
        """Keep the first window of a protocol as evidence.

        A window that violates something gets its trail now, while the flight recorder still has it.
        raw: the event's bytes, which the protocol key and struct sighting follow.
        """
        key, seen = self._tables.events.sighting(raw)
        wrong = [
            f"{name}: {ruling.reason}"
            for name, ruling in self.rulings.rule(key).items()
            if ruling.verdict in _WRONG
        ]
        self.urgent |= bool(wrong)
        trail = (
            self.trails.of_window(event, key, seen, f"this window broke {'; '.join(wrong)}")
            if wrong
            else Trail()
        )
        vma = {
            **ranges(event.vma, seen),
            **({"flags": vm_letters(seen.vm_flags)} if seen.vm_flags else {}),
        }
        if wrong and event.vma:
            now = self._objects.vma(event.vma, event.mm)
            vma |= {"file": now["file"]} if now.get("same") and "file" in now else {}
        folio = (
            self._objects.folio(seen.folio, vm_flags=seen.vm_flags) if wrong and seen.folio else {}
        )
        sighting = Sighting(
            task=event.task,
            stack=self._symbols.stack(self._tables.stacks.of_event(event.stack)),
            vma=vma,
            addresses={
                name: hex(value) for name, value in _addresses(event.mm, seen).items() if value
            },
            trail=pack(trail.steps),
            note=trail.note,
            folio=folio,
        )
        self.rulings.add_sighting(key, sighting)

    def work(
        self,
        tally: Tally,
        counters: Mapping[str, int],
        missed: int,
        wall: float,
        *,
        whole: bool = True,
    ) -> list[Finding]:
        """Count windows into the tally and return the findings that are new.

        whole: read the whole table; else only the protocols that violate something, as a window
        that holds can be counted later. An event that was lost makes it read the whole table: the
        protocol that it was about is in no other place. missed: runs of programs of windows that
        were left out so far. wall: seconds since the epoch.

        Windows that violate something are unverifiable if events were lost since the tick before
        the last: a window may lose a step in one second and be counted in the next.
        """
        losses = sum(counters[name] for name in _LOSSES) + missed
        whole |= (
            counters["EVIDENCE_LOST"] != self._evidence_lost
            or len(self.rulings.wrong) > _MOST_SINGLE_LOOKUPS
        )
        table = self._tables.protocol_table
        rows = table.counts() if whole else table.counts_of(self.rulings.wrong)
        self.rulings.update(rows, lossy=losses > self._losses[0])
        self._evidence_lost, self._last_losses, self.urgent = (
            counters["EVIDENCE_LOST"],
            losses,
            False,
        )
        return self.rulings.report(tally, wall)

    def tick(self) -> None:
        """Note that a second has passed.

        Losses from before the last tick cast no doubt on new windows.
        """
        self._losses = (self._losses[1], self._last_losses)


def _addresses(mm: int, seen: Any) -> dict[str, int]:
    return {
        "mm": mm,
        "folio": seen.folio,
        "anon_vma root rwsem": seen.anon,
        "i_mmap_rwsem": seen.i_mmap,
    }
