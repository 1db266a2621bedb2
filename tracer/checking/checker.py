"""The judge: takes what the books report, keeps the desk busy, counts verdicts and keeps findings. No kernel, no clock of its own."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from tracer.checking.cases import DecidedCase, OpenCases, entry_pfn
from tracer.checking.findings import Findings
from tracer.checking.late_removals import LateRemovals
from tracer.checking.missed_runs import MissedRuns
from tracer.checking.protocol_events import ProtocolEvents
from tracer.invariants import migration_walks
from tracer.invariants.verdict import Finding, Ruling, Tally, Verdict
from tracer.memory.entries import FoundEntry, Place
from tracer.tables.counters import Counters
from tracer.tables.events import Event, Events
from tracer.tables.ledger import Ledger, Row, Visited
from tracer.tables.migrations import Migrations
from tracer.tables.params import Params
from tracer.tables.tables import Tables
from tracer.tables.visits import Visits

_SPLIT_NS = 1_000_000_000  # a THP split takes milliseconds; its rows have no end event
_LOOKS_FOR_LOST = (
    3  # ticks in a row in which an entry is in no row and no case, before it counts as lost
)
_OF_ENTRIES = ("M1", "M4")


@dataclass(frozen=True)
class Missed:
    """Runs that the kernel left out, of the programs that judging depends on.

    ledger: insertions, removals, and the migrations that they are in. visits: the second walk. orders: who holds an mmap_lock.
    windows: how many runs so far of all programs of windows."""

    ledger: MissedRuns
    visits: MissedRuns
    orders: MissedRuns
    windows: Callable[[], int]


@dataclass(frozen=True)
class CheckerTables:
    """The tables that the checker reads, and the parameters that it sets."""

    events: Events
    counters: Counters
    ledger: Ledger
    visits: Visits
    migrations: Migrations
    params: Params

    @classmethod
    def of(cls, tables: Tables) -> CheckerTables:
        """Choose the checker's tables."""
        return cls(
            tables.events,
            tables.counters,
            tables.ledger,
            tables.visits,
            tables.migrations,
            tables.params,
        )


class Checker:
    """Fed by read_events() at a wake-up, tick() once a second, work() whenever the desk is due, and close() at the end.
    count_protocols() before its tally is read."""

    def __init__(
        self,
        tables: CheckerTables,
        open_cases: OpenCases,
        findings: Findings,
        welcome_ns: int,
        clock: Callable[[], int],
        missed: Missed,
        checked: Container[str] = ("M1", "M4", "M5"),
        protocol_events: ProtocolEvents | None = None,
    ) -> None:
        self.tally, self.open_cases, self.new_findings = Tally(), open_cases, list[Finding]()
        self.entries = Counter[Verdict]()  # recorded entries by the verdict that M1 gave them here
        self._tables, self._findings, self._welcome_ns, self._clock = (
            tables,
            findings,
            welcome_ns,
            clock,
        )
        self._asked_late: set[bytes] = set()
        self._checked, self._docket = checked, protocol_events
        self._missed = missed
        self.late = LateRemovals(self._missed.ledger)
        self._told_missed_ns: int | None = None
        self._unheld = deque[int](maxlen=_LOOKS_FOR_LOST)

    def change(self, welcome_ns: int, scan_ns: int) -> None:
        """From now on other times."""
        self._welcome_ns = welcome_ns
        self.open_cases.change(welcome_ns, scan_ns)

    def _open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        """Without coverage there is no case: where removals are not seen, everything would look left over."""
        if invariant in self._checked:
            self.open_cases.open(invariant, rows, event)

    def read_events(self, ring: Iterable[bytes]) -> None:
        """Open a case for every row that an ended migration left."""
        ended = []
        for raw in ring:
            event = self._tables.events.decode(raw)
            if event.kind == "ORDER_REVERSED":
                self._record_order(event)
            elif event.kind == "PROTOCOL_NEW":
                if self._docket:
                    self._docket.hear(event, raw)
            elif event.kind in ("INSERTED_UNLOCKED", "REMOVED_UNLOCKED"):
                self._record(self._evident(partial(self._findings.unlocked, event)))
            else:
                ended.append(event)
        if self._docket and self._docket.pressing:
            self._count(whole=False)
        rows = self._tables.ledger.rows() if ended else []
        for event in ended:
            self._open(
                "M1",
                [row for row in rows if (row.tid, row.start_ns) == (event.tid, event.start_ns)],
                event,
            )

    def _record_order(self, event: Event) -> None:
        """Where a release was missed while the outer lock was held, two locks look nested that never were. Of the opposite order two
        nestings are known, the first and the last: one that is beyond doubt is enough."""
        missed = self._missed.orders.during
        opposite = missed(event.first_held_ns, event.first_ns) and missed(
            event.last_held_ns, event.last_ns
        )
        if opposite or missed(event.held_ns, event.time_ns):
            self.tally.add("L2", Verdict.UNVERIFIABLE)
        else:
            self._record(self._findings.order(event))

    def count_protocols(self) -> None:
        """Bring the whole protocol table before the rulings: what is new, and how often what is known."""
        self._count(whole=True)

    def tick(self) -> None:
        """Once a second: what is not well in the protocol table, and what is late in the ledger."""
        for missed in (self._missed.ledger, self._missed.visits, self._missed.orders):
            missed.look()
        self._count(whole=False)
        if self._docket:
            self._docket.tick()
        self.look_for_late()

    def _count(self, *, whole: bool) -> None:
        if self._docket:
            now = time.time()
            self.new_findings += self._docket.work(
                self.tally, self._tables.counters.read(), self._missed.windows(), now, whole=whole
            )

    def look_for_late(self) -> None:
        """The timer's part: rows whose migration ended without waking us, rows older than their age limit, entries that are in no row."""
        counters = self._tables.counters.read()
        rows = self.count_late()
        if "M1" in self._checked:
            self._count_lost(counters, rows)
        if not rows:
            self._asked_late.clear()
        now = self._clock()
        for row in rows:
            age = now - row.first_ns
            if not self._running(row) and age > _SPLIT_NS:
                self._open("M1", [row])
            elif age > self._welcome_ns and row.key not in self._asked_late:
                self._asked_late.add(row.key)
                self._open("M4", [row])

    def count_late(self) -> list[Row]:
        """Count what the kernel removed late. Returns the ledger as it is now.

        The counters are read before the ledger, so a removal that is in them is not in the ledger any more."""
        counters = self._tables.counters.read()
        rows = self._tables.ledger.rows() if self.outstanding(counters) else []
        for verdict, count in self.late.count(
            counters, {row.key: row.count for row in rows}, self._clock()
        ):
            self.tally.add("M4", verdict, count)
        if (last := self._missed.ledger.last_ns) != self._told_missed_ns and last is not None:
            self._tables.params.set(missed_ns=last)
            self._told_missed_ns = last
        return rows

    def _count_lost(self, before: Mapping[str, int], rows: Iterable[Row]) -> None:
        """An entry that was recorded, and is in no row and in no case, never gets a verdict: it is unverifiable.

        Recorded before the ledger was read, removed until after it: at least so many are lost, whatever goes on meanwhile."""
        removed = self._tables.counters.read()["ENTRIES_REMOVED"]
        held = sum(row.count for row in rows) + self.open_cases.held()
        self._unheld.append(
            before["ENTRIES_RECORDED"]
            + before["ENTRIES_COPIED"]
            - removed
            - self.entries.total()
            - held
        )
        if len(self._unheld) == _LOOKS_FOR_LOST and (lost := min(self._unheld)) > 0:
            self._unheld.clear()
            self._unverifiable(lost)

    def _unverifiable(self, entries: int) -> None:
        """Entries that nobody can say anything about any more."""
        self.entries[Verdict.UNVERIFIABLE] += entries
        for invariant in _OF_ENTRIES:
            if invariant in self._checked:
                self.tally.add(invariant, Verdict.UNVERIFIABLE, entries)

    def _running(self, row: Row) -> bool:
        return bool(row.start_ns) and self._tables.migrations.start_of(row.tid) == row.start_ns

    def work(self, *, hurry: bool = False) -> None:
        self._take(self.open_cases.work(hurry=hurry))

    def close(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """With the gate closed: judge what is left, search everything once more, decide within this time."""
        self.count_protocols()
        rows = self.count_late()
        self._open("M1", [row for row in rows if not self._running(row)])
        self.open_cases.scan(now=True)
        end = self._clock() + int(seconds * 1e9)
        while self.open_cases.cases and self._clock() < end:
            self.work(hurry=True)
            sleep(0.006)
        self._take(self.open_cases.finish())
        # what is left: their removal was not waited for, the end of their migration was missed, or they are in no row
        self._unverifiable(self.outstanding(self._tables.counters.read()))

    def _take(self, decided: Iterable[DecidedCase]) -> None:
        for judged in decided:
            case, verdict = judged.case, judged.decision.verdict
            late = case.invariant == "M4"
            if verdict in (Verdict.HOLDS, Verdict.UNVERIFIABLE) or (late and not judged.entries):
                self._settled(judged)
                continue
            proven = max(
                1, len(judged.decision.proven) if verdict is Verdict.VIOLATED else judged.entries
            )
            proven = min(proven, judged.entries) if late else proven
            self._record(
                self._evident(partial(self._findings.entry, judged, self._second_walk(judged))),
                proven,
            )
            accused = min(proven, judged.entries)
            if late:  # the others of its row are left to M1, or to their removal
                if judged.row:
                    self.late.judge(judged.row.key, accused)
                continue
            self.entries[verdict] += accused
            if judged.row:
                self.late.settle(judged.row.key, judged.entries)
            if judged.entries > accused:
                gone = Verdict.HOLDS if case.sweep_complete else Verdict.UNVERIFIABLE
                self.entries[gone] += judged.entries - accused
                self.tally.add(case.invariant, gone, judged.entries - accused)

    def _second_walk(self, judged: DecidedCase) -> dict[Place, Ruling]:
        """M5 of each entry that is left behind: the first walk was there, was the second?"""
        if (
            "M5" not in self._checked
            or judged.case.invariant != "M1"
            or judged.decision.verdict is not Verdict.VIOLATED
        ):
            return {}
        rulings = {}
        for answer in judged.decision.proven:
            visited = self._was_visited(judged, answer)
            if visited is False and self._missed_a_visit(judged):
                visited = None  # it may be one of those that the kernel left out
            ruling = rulings[answer.place] = migration_walks.rule(visited)
            if judged.row and ruling.verdict is Verdict.VIOLATED:
                self._record(
                    self._evident(
                        partial(self._findings.passed_over, judged, judged.row, answer, ruling)
                    )
                )
            else:
                self.tally.add("M5", ruling.verdict)
        return rulings

    def _missed_a_visit(self, judged: DecidedCase) -> bool:
        """Whether the kernel left out a run of the second walk's program during this migration."""
        row, event = judged.row, judged.event
        since = (row.start_ns or row.first_ns) if row else 0
        return self._missed.visits.during(since, event.time_ns if event else self._clock())

    def _left_by(self, row: Row, answer: FoundEntry) -> list[Visited]:
        """What the first walk of this row's migration left of this page, in the mm of the answer first."""
        pages = 512 if row.level == 2 else 1
        of_page = [
            v
            for v in row.visited.values()
            if 0 <= answer.pfn - entry_pfn(v.entry, self.open_cases.levels) < pages
        ]
        return sorted(of_page, key=lambda visited: visited.mm != answer.mm.mm)

    def _was_visited(self, judged: DecidedCase, answer: FoundEntry) -> bool | None:
        """At its place now, or where it was: mremap moves it, and where a walk meets its folio, before the second walk or after it.
        A visit at a place that it was moved to may have been of another mapping of the folio, which stood there before."""
        row, event = judged.row, judged.event
        left = self._left_by(row, answer) if row else []
        if row is None or not left:
            return None
        known = left[0]
        visited = self._was_visited_there(row, known, answer, event.visits if event else None)
        # moved away, visited there and moved back; or another mapping of the folio: nobody can tell
        return (
            None
            if visited is False
            and self._tables.visits.was_visited_elsewhere(row, answer.mm.mm, known.folio)
            else visited
        )

    def _was_visited_there(
        self, row: Row, known: Visited, answer: FoundEntry, since: int | None
    ) -> bool | None:
        if known.mm == answer.mm.mm and known.visits is not None and answer.addr == row.addr:
            return known.visits > 0
        places = {answer.addr, row.addr, known.at, known.at + answer.addr - row.addr}
        found = [self._tables.visits.was_visited(row, answer.mm.mm, at, since) for at in places]
        moved = known.mm == answer.mm.mm and answer.addr != row.addr
        if moved and known.visits:
            return True
        return None if None in found or (moved and True in found) else True in found

    def _settled(self, judged: DecidedCase) -> None:
        """An entry that is gone holds for both; an M4 case leaves its row to M1, and is asked again after another welcome."""
        if judged.case.invariant == "M4":
            if judged.row:
                self._asked_late.discard(judged.row.key)
            return
        verdict, entries = judged.decision.verdict, judged.entries
        self.entries[verdict] += entries
        self.tally.add("M1", verdict, entries)
        self.tally.add(
            "M4", verdict, self.late.settle(judged.row.key, entries) if judged.row else entries
        )

    def _evident(self, make: Callable[..., Finding]) -> Finding:
        """With evidence where its signature is new: a million of one kind are a million look-ups, not as many readings of the recorder."""
        bare = make(bare=True)
        return bare if bare.signature in self.tally.violations else make()

    def _record(self, finding: Finding, count: int = 1) -> None:
        if self.tally.record(finding, time.time(), count):
            self.new_findings.append(finding)

    def doubts(self) -> dict[str, str]:
        """invariant -> why less is known of it now: the kernel left out runs lately, and what was under way then is unverifiable."""
        found, now = {}, self._clock()
        for invariant, missed, what in (
            ("M4", self._missed.ledger, "insertions, removals or migrations"),
            ("M5", self._missed.visits, "the second walk"),
            ("L2", self._missed.orders, "mmap_lock"),
        ):
            if missed.last_ns is not None and now - missed.last_ns < self._welcome_ns:
                found[invariant] = (
                    f"the kernel has just left out runs of the programs of {what}: what was under way is unverifiable"
                )
        return found

    def outstanding(self, counters: Mapping[str, int]) -> int:
        """Entries booked and neither removed nor judged."""
        booked = counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
        return max(0, booked - counters["ENTRIES_REMOVED"] - self.entries.total())
