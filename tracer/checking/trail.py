"""The trail of a violation: the windows in the flight recorder that led to it, in time order.

The window that the evidence points at is marked. The trail of a window has the last windows of its
task, VMA, address space, folio and locks, and ends with itself. The trail of a migration entry has
the windows that touched its address space, VMA, folio, anon root or mapping from the first walk on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.errors import RmapdError
from tracer.invariants.verdict import Ruling, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import FoundEntry
from tracer.protocol.codec import Encoding
from tracer.protocol.model import Protocol, Visit, Walker
from tracer.protocol.text import text
from tracer.tables.events import Event
from tracer.tables.flight_recorder import Flight, FlightRecorder, Recorded
from tracer.tables.ledger import Row
from tracer.tables.protocol_table import ProtocolTable
from tracer.tables.stacks import Stacks

_MOST_CHANGES, _MOST_WALKS = 24, 8
_LAST_USER = (1 << 63) - 1
_WALKS = ("rmap_walk_anon", "rmap_walk_file", "rmap_walk_ksm")
_TEARDOWN = ("unlink_anon_vmas", "unlink_file_vma", "unlink_file_vma_batch_process")
_LAST_OF_ALL = 4
_WRONG = (Verdict.VIOLATED, Verdict.SUSPECT)


@dataclass(frozen=True)
class Trail:
    """Steps of a trail, and a note.

    steps: with the keys of a report; the step that the evidence points at is `marked`, with the
    reason in `why`. note: how far back the flight recorder goes, and what the trail shows.
    """

    steps: tuple[Mapping[str, Any], ...] = ()
    note: str = ""

    @property
    def marked(self) -> Mapping[str, Any] | None:
        """The step that the evidence points at; None if there is none."""
        return next((step for step in self.steps if step.get("marked")), None)


@dataclass(frozen=True)
class TrailEntry:
    """The objects that a migration entry depends on, by address.

    since_ns: of its first walk. tid: of the migrating task. folios: source and destination. locks:
    rwsems of anon_vma and i_mmap. brought: the destination, if the second walk visited the VMA.
    visited: whether it did; None: not known.
    """

    since_ns: int
    tid: int
    mms: Collection[int]
    ranges: Sequence[tuple[int, int]]
    folios: Collection[int]
    locks: Collection[int] = ()
    brought: Collection[int] = ()
    visited: bool | None = None

    def concerns(self, flight: Flight) -> bool:
        """Whether this window touched one of the objects.

        Of the locks only the migrating task's own walks count.
        """
        r = flight.row
        own = flight.window not in _WALKS or r.tid == self.tid
        return (
            r.mm in self.mms
            or r.folio in self.folios
            or (own and bool({r.anon, r.i_mmap} & {*self.locks}))
        )

    def overlaps(self, flight: Flight) -> bool:
        """Whether the window's VMA had one of the entry's addresses before or after the window."""
        r = flight.row
        spans = [
            (start, end) for start, end in ((r.was_start, r.was_end), (r.vm_start, r.vm_end)) if end
        ]
        return r.mm in self.mms and any(
            start < last and first < end for start, end in spans for first, last in self.ranges
        )


def entry_of(
    row: Row,
    answers: Iterable[FoundEntry],
    visited: bool | None,
    locks: Collection[int],
    since_ns: int,
) -> TrailEntry:
    """Return the TrailEntry of a ledger row, with the places where its entries are now."""
    places = [(answer.addr, answer.addr + 1) for answer in answers]
    ranges = [(known.vm_start, known.vm_end) for known in row.visited.values() if known.vm_end]
    brought = {known.to for known in row.visited.values()} - {0}
    folios = ({known.folio for known in row.visited.values()} | brought) - {0}
    mms = {answer.mm.mm for answer in answers} | {*row.visited}
    return TrailEntry(
        since_ns,
        row.tid,
        mms,
        [*places, *ranges, (row.addr, row.addr + 1)],
        folios,
        locks,
        brought,
        visited,
    )


class Trails:
    """Reads the flight recorder when there is a violation to explain.

    rule: returns a protocol's rulings.
    """

    def __init__(
        self,
        protocol_table: ProtocolTable,
        flight_recorder: FlightRecorder,
        stacks: Stacks,
        symbols: Symbols,
        encoding: Encoding,
        rule: Callable[[bytes], Mapping[str, Ruling]],
    ) -> None:
        self._protocol_table, self._flight_recorder = protocol_table, flight_recorder
        self._stacks, self._symbols, self._encoding, self._rule = (
            stacks,
            symbols,
            encoding,
            rule,
        )

    def of_window(self, event: Event, key: bytes, seen: Any, why: str) -> Trail:
        """Return the windows before a violating window, and itself as the last and marked step.

        Windows after it explain nothing. It is known from its event even if the recorder has lost
        it. key, seen: its protocol key and struct sighting. why: the reason of the marked step.
        """
        around = {event.vma, event.mm, seen.folio, seen.anon, seen.i_mmap} - {0}
        recorded = self._flight_recorder.recorded(
            around, {event.tid}, until_ns=event.time_ns, last=_MOST_CHANGES + _MOST_WALKS
        )
        born = self._protocol_table.keys_by_first_ns()
        before, own = list[Flight](), None
        for flight in recorded.flights:
            if (flight.row.tid, flight.row.start_ns, born.get(flight.row.protocol)) == (
                event.tid,
                event.start_ns,
                key,
            ):
                own = flight
            else:
                before.append(flight)
        before = before[-(_MOST_CHANGES + _MOST_WALKS - 1) :]
        steps = [self._step(flight, born) for flight in before]
        last = self._step(own, born) if own else self._step_of(event, key, seen)
        note = _reach(recorded, event.time_ns, before[0].row.end_ns if before else 0)
        return Trail((*steps, last | {"marked": True, "why": why}), note)

    def of_entry(self, entry: TrailEntry, now_ns: int) -> Trail:
        """Return the windows from the first walk on that touched the entry's objects.

        Empty, with a note, where there was none. now_ns: windows that began later are left out.
        """
        around = {*entry.mms, *entry.folios, *entry.locks} - {0}
        recorded, born = (
            self._flight_recorder.recorded(around, {entry.tid}, since_ns=max(1, entry.since_ns)),
            self._protocol_table.keys_by_first_ns(),
        )
        found = [f for f in recorded.flights if f.row.start_ns <= now_ns and entry.concerns(f)]
        changes = [flight for flight in found if flight.window not in _WALKS]
        walks = [flight for flight in found if flight.window in _WALKS]
        changes = sorted(changes, key=lambda flight: (entry.overlaps(flight), flight.row.end_ns))[
            -_MOST_CHANGES:
        ]
        walks = sorted(
            walks, key=lambda flight: (flight.row.folio in entry.folios, flight.row.end_ns)
        )[-_MOST_WALKS:]
        kept = sorted(changes + walks, key=lambda flight: flight.row.end_ns)
        culprit, why = self._point_at(kept, entry, born)
        steps = [
            self._step(f, born) | ({"marked": True, "why": why} if f is culprit else {})
            for f in kept
        ]
        left_out = len(found) - len(kept)
        note = [
            _reach(recorded, now_ns, entry.since_ns),
            f"{left_out} more windows are left out." if left_out else "",
        ]
        note.append("" if culprit else _without(entry, recorded, bool(changes)))
        return Trail(tuple(steps), " ".join(filter(None, note)))

    def of_range(self, mm: int, low: int, high: int, now_ns: int) -> Trail:
        """Return the last windows that changed VMAs of an mm, those of these addresses above all.

        The last one that touched the range is marked: it wrote there last, so it is the likely
        culprit, and no proof. now_ns: CLOCK_MONOTONIC.
        """
        span = TrailEntry(1, 0, {mm}, [(low, min(high, _LAST_USER) + 1)], ())
        recorded, born = (
            self._flight_recorder.recorded({mm}, set(), since_ns=1),
            self._protocol_table.keys_by_first_ns(),
        )
        changes = [f for f in recorded.flights if f.window not in _WALKS and span.concerns(f)]
        touched = [f for f in changes if span.overlaps(f)]
        kept = sorted(
            sorted(changes, key=lambda f: (span.overlaps(f), f.row.end_ns))[-_MOST_CHANGES:],
            key=lambda f: f.row.end_ns,
        )
        why = "the last window that changed VMAs at these addresses"
        steps = [
            self._step(f, born)
            | ({"marked": True, "why": why} if touched and f is touched[-1] else {})
            for f in kept
        ]
        note = "" if touched else "No window in the flight recorder touched these addresses."
        return Trail(tuple(steps), " ".join(filter(None, [_reach(recorded, now_ns, 1), note])))

    def of_task(self, around: Collection[int], tids: Collection[int], now_ns: int) -> Trail:
        """Return the last windows of these objects or tasks, until a moment of CLOCK_MONOTONIC.

        None is marked. An exit has hundreds of windows: other changes come first. Without tasks,
        only windows of the process that had the last one count: an mm's address is reused.
        """
        recorded = self._flight_recorder.recorded({*around} - {0}, tids, until_ns=now_ns)
        found = recorded.flights if {*around, *tids} - {0} else []
        found = [f for f in found if tids or f.row.tgid == found[-1].row.tgid]
        changes = [flight for flight in found if flight.window not in _TEARDOWN]
        kept = sorted(changes[-_MOST_CHANGES:] + found[-_LAST_OF_ALL:], key=lambda f: f.row.end_ns)
        born = self._protocol_table.keys_by_first_ns()
        steps = {id(flight): self._step(flight, born) for flight in kept}
        note = _reach(recorded, now_ns, kept[0].row.end_ns if kept else 1)
        return Trail(tuple(steps.values()), note)

    def _point_at(
        self, flights: Sequence[Flight], entry: TrailEntry, born: Mapping[int, bytes]
    ) -> tuple[Flight | None, str]:
        """Return the window that explains the entry, and why. The strongest reason comes first."""
        for reason in (self._is_ruled, self._moved, self._second_walk):
            for flight in reversed(flights):
                if why := reason(flight, entry, born.get(flight.row.protocol, b"")):
                    return flight, why
        return None, ""

    def _is_ruled(self, flight: Flight, entry: TrailEntry, key: bytes) -> str:
        """Return why a change that violates an invariant explains the entry.

        A walk's own violation is no reason that the entry stayed.
        """
        wrong = (
            [
                f"{name} ({ruling.reason})"
                for name, ruling in self._rule(key).items()
                if ruling.verdict in _WRONG
            ]
            if key
            else []
        )
        if not wrong or flight.window in _WALKS:
            return ""
        return (
            f"{flight.window}() broke {', '.join(wrong)} {_where(flight, entry)}, "
            "after the entry was inserted and before it was missed"
        )

    def _moved(self, flight: Flight, entry: TrailEntry, _key: bytes) -> str:
        """Return why a boundary that moved between the walks explains an entry that was missed."""
        r = flight.row
        if (
            entry.visited
            or flight.window in _WALKS
            or not entry.overlaps(flight)
            or (r.was_start, r.was_end) == (r.vm_start, r.vm_end)
        ):
            return ""
        return (
            f"{flight.window}() moved a boundary of the entry's VMA between the two walks: "
            "they looked for the page in different places"
        )

    def _second_walk(self, flight: Flight, entry: TrailEntry, key: bytes) -> str:
        protocol = self._protocol(key)
        if not protocol or protocol.context.walker is not Walker.REMOVE_MIGRATION:
            return ""
        if entry.visited and flight.row.folio in entry.brought:
            return (
                "the second walk of this page: remove_migration_pte() was called for the VMA, "
                "and the entry is still there"
            )
        if flight.row.folio in entry.folios and not any(
            isinstance(step, Visit) for step in protocol.flat()
        ):
            return "the second walk of this page, which visited no VMA at all"
        return ""

    def _protocol(self, key: bytes) -> Protocol | None:
        try:
            return self._encoding.decode(key) if key else None
        except RmapdError:
            return None

    def _step(self, flight: Flight, born: Mapping[int, bytes]) -> dict[str, Any]:
        row = flight.row
        return {
            "time_ns": row.end_ns,
            "duration_ns": row.end_ns - row.start_ns,
            "function": flight.window,
            "task": {"pid": row.tid, "tgid": row.tgid},
            "vma": ranges(row.vma, row),
            "protocol": self._text(born.get(row.protocol)),
            "stack": list(self._symbols.stack(self._stacks.of_flight(row.stack))),
        }

    def _step_of(self, event: Event, key: bytes, seen: Any) -> dict[str, Any]:
        protocol = self._protocol(key)
        return {
            "time_ns": event.time_ns,
            "duration_ns": event.time_ns - event.start_ns if event.start_ns else 0,
            "function": protocol.window if protocol else "",
            "task": {"pid": event.tid, "tgid": event.tgid},
            "vma": ranges(event.vma, seen),
            "protocol": self._text(key),
            "stack": list(self._symbols.stack(self._stacks.of_event(event.stack))),
        }

    def _text(self, key: bytes | None) -> str:
        if key is None:
            return ""
        try:
            return text(self._encoding.decode(key))
        except RmapdError as error:
            return str(error)


def ranges(vma: int, seen: Any) -> dict[str, str]:
    """Return a VMA's address and its range before and after, as far as known."""
    numbers = {
        "vma": vma,
        "was_start": seen.was_start,
        "was_end": seen.was_end,
        "vm_start": seen.vm_start,
        "vm_end": seen.vm_end,
    }
    return {name: hex(value) for name, value in numbers.items() if value}


def _where(flight: Flight, entry: TrailEntry) -> str:
    if entry.overlaps(flight):
        return "on the entry's VMA"
    return (
        "on the same anon_vma or mapping"
        if {flight.row.anon, flight.row.i_mmap} & {*entry.locks}
        else "in the same address space"
    )


def _reach(recorded: Recorded, now_ns: int, since_ns: int) -> str:
    """Return whether the flight recorder still has all windows since then."""
    gone = [
        f"{what} that ended more than {max(0, now_ns - horizon) / 1e9:.3f} s before"
        for what, horizon in (
            ("VMA changes", recorded.changes_ns),
            ("rmap walks", recorded.walks_ns),
        )
        if horizon > since_ns
    ]
    gaps = recorded.gaps(since_ns, now_ns)
    if gone:
        return f"The flight recorder has wrapped: {' and '.join(gone)} are overwritten.{gaps}"
    return (
        f"Nothing since then is overwritten.{gaps}"
        if gaps
        else "The flight recorder has all since then."
    )


def _without(entry: TrailEntry, recorded: Recorded, changed: bool) -> str:
    """Return what the trail shows where no step is marked."""
    if max(recorded.changes_ns, recorded.unsampled_ns) > entry.since_ns:
        return "What is not in the recorder may be what explains it."
    if entry.visited is False and not changed:
        return (
            "No window changed the address space between the two walks: "
            "the second walk itself passed the VMA over."
        )
    if entry.visited:
        return (
            "The second walk came to the VMA: remove_migration_pte(), which it called there, "
            "did not put the page back."
        )
    return "None of these windows explains it by itself."
