"""M1, M4 and M5: gives every recorded migration entry one verdict.

The ledger has a row for each entry until it is removed. Rows that an ended migration left, and rows
that are too old, become cases; the page tables decide these. Entries that are in no row and in no
case are unverifiable.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tracer.checking.cases import DecidedCase, OpenCases
from tracer.checking.findings import Findings
from tracer.checking.late_removals import LateRemovals
from tracer.checking.missed_runs import MissedRuns
from tracer.checking.second_walks import SecondWalks
from tracer.checking.stalls import Stalls
from tracer.checking.verdicts import Verdicts
from tracer.invariants.base import Invariant
from tracer.invariants.migration_entries import LEFT_BEHIND, TOO_OLD
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Ruling, Verdict
from tracer.memory.entries import Place
from tracer.tables.counters import Counters
from tracer.tables.events import Event
from tracer.tables.ledger import Ledger, Row
from tracer.tables.migrations import Migrations
from tracer.tables.params import Params
from tracer.tables.tables import Tables

_SPLIT_NS = 1_000_000_000
"""A THP split takes milliseconds. Its rows have no end event where its function is not hooked."""
_LOOKS_FOR_LOST = 3
"""Ticks in a row in which an entry is in no row and in no case, before it counts as lost."""


@dataclass(frozen=True)
class EntryTables:
    """The tables of migration entries, and the parameters that are set."""

    counters: Counters
    ledger: Ledger
    migrations: Migrations
    params: Params

    @classmethod
    def of(cls, tables: Tables) -> EntryTables:
        """Choose these of all tables."""
        return cls(tables.counters, tables.ledger, tables.migrations, tables.params)


class EntryChecks:
    """Turns ledger rows into cases, and decided cases into verdicts.

    missed: of the programs that record insertions and removals. covered: invariants that have
    coverage; a row opens no case of another, as without its removals every entry looks left over.
    age_limit_ns: M4's. clock: CLOCK_MONOTONIC in nanoseconds.
    """

    def __init__(
        self,
        tables: EntryTables,
        invariants: Mapping[str, Invariant],
        covered: frozenset[str],
        verdicts: Verdicts,
        open_cases: OpenCases,
        second_walks: SecondWalks,
        findings: Findings,
        missed: MissedRuns,
        stalls: Stalls,
        age_limit_ns: int,
        clock: Callable[[], int],
    ) -> None:
        self.open_cases = open_cases
        self.entries = Counter[Verdict]()
        self.late = LateRemovals(missed, stalls)
        self._tables, self._verdicts, self._findings = tables, verdicts, findings
        self._second_walks, self._missed, self._stalls = second_walks, missed, stalls
        self._per_entry = [name for name, one in invariants.items() if one.every_entry]
        self._covered, self._age_limit_ns, self._clock = covered, age_limit_ns, clock
        self._too_old: set[bytes] = set()  # rows that have, or had, a case for their age
        self._reported_missed_ns: int | None = None
        self._in_no_row = deque[int](maxlen=_LOOKS_FOR_LOST)

    def resume(
        self,
        entries: Mapping[Verdict, int],
        late: tuple[dict[str, int], dict[bytes, int], int],
        rows: Iterable[Row],
    ) -> None:
        """Go on from another process's counts by verdict and LateRemovals.state.

        rows: of its cases.
        """
        self.entries = Counter(entries)
        self.late.resume(*late)
        self.open_cases.open(LEFT_BEHIND.id, rows)

    def cover(self, covered: frozenset[str]) -> None:
        """From now on these invariants have coverage."""
        self._covered = covered

    def change(self, age_limit_ns: int, scan_ns: int) -> None:
        """From now on another age limit, and other time between scans; in nanoseconds."""
        self._age_limit_ns = age_limit_ns
        self.open_cases.change(age_limit_ns, scan_ns)

    def outstanding(self, counters: Mapping[str, int]) -> int:
        """Entries that were recorded, and neither removed nor judged."""
        recorded = counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
        return max(0, recorded - counters["ENTRIES_REMOVED"] - self.entries.total())

    def migrations_ended(self, events: Iterable[Event]) -> None:
        """Open a case for every row that these migrations left."""
        ended = list(events)
        rows = self._tables.ledger.rows() if ended else []
        for event in ended:
            migration = event.tid, event.start_ns
            left = [row for row in rows if (row.tid, row.start_ns) == migration]
            self._open(LEFT_BEHIND.id, left, event)

    def _open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        if invariant in self._covered:
            self.open_cases.open(invariant, rows, event)

    def ledger(self, counters: Mapping[str, int]) -> list[Row]:
        """Read the ledger.

        counters: read before, so that a removal that is in them is in no row any more.
        """
        return self._tables.ledger.rows() if self.outstanding(counters) else []

    def count_late(self, counters: Mapping[str, int], rows: Iterable[Row]) -> None:
        """Count removals after the age limit.

        To be called after a look at missed runs that is younger than the counters.

        Also tells the probes up to when runs were missed: they do not trust the age of an entry
        from before.
        """
        left = {row.key: row.count for row in rows}
        found = self.late.count(counters, left, self._age_limit_ns, self._clock())
        for verdict, count in found:
            if verdict is Verdict.SUSPECT:
                draft = self._findings.removed_late(count, self._age_limit_ns)
                self._verdicts.record(draft, count)
            else:
                self._verdicts.add(TOO_OLD.id, verdict, count)
        last = self._missed.last_ns
        if last is not None and last != self._reported_missed_ns:
            self._tables.params.set(missed_ns=last)
            self._reported_missed_ns = last

    def open_overdue(self, rows: Iterable[Row]) -> None:
        """Open cases for rows that no event was received for.

        These are rows whose migration has ended, and rows older than the age limit; what the
        checker did not run is no part of an age.
        """
        rows, now = list(rows), self._clock()
        self._too_old &= {row.key for row in rows}
        for row in rows:
            age = self._stalls.age(row.first_ns, now)
            if not self._is_running(row) and age > _SPLIT_NS:
                self._open(LEFT_BEHIND.id, [row])
            elif age > self._age_limit_ns and row.key not in self._too_old:
                self._too_old.add(row.key)
                self._open(TOO_OLD.id, [row])

    def _is_running(self, row: Row) -> bool:
        return bool(row.start_ns) and self._tables.migrations.start_of(row.tid) == row.start_ns

    def count_lost(self, before: Mapping[str, int], rows: Iterable[Row]) -> None:
        """Count entries that are in no row and in no case: they are unverifiable.

        before: counters from before the rows were read. The removals are read again, after them:
        whatever goes on meanwhile, at least as many entries are lost as were recorded before, are
        in none of the rows and are not removed yet.
        """
        if LEFT_BEHIND.id not in self._covered:
            return
        removed = self._tables.counters.read()["ENTRIES_REMOVED"]
        held = sum(row.count for row in rows) + self.open_cases.held()
        recorded = before["ENTRIES_RECORDED"] + before["ENTRIES_COPIED"]
        self._in_no_row.append(recorded - removed - self.entries.total() - held)
        if len(self._in_no_row) == _LOOKS_FOR_LOST and (lost := min(self._in_no_row)) > 0:
            self._in_no_row.clear()
            self._count_unverifiable(lost)

    def _count_unverifiable(self, entries: int) -> None:
        self.entries[Verdict.UNVERIFIABLE] += entries
        for invariant in self._per_entry:
            if invariant in self._covered:
                self._verdicts.add(invariant, Verdict.UNVERIFIABLE, entries)

    def open_left(self, rows: Iterable[Row]) -> None:
        """Open cases for the rows of migrations that have ended, at the end of a run."""
        self._open(LEFT_BEHIND.id, [row for row in rows if not self._is_running(row)])

    def close(self) -> None:
        """Count the entries that are left as unverifiable.

        Their removal was not waited for, the end of their migration was missed, or they are in no
        row.
        """
        self._count_unverifiable(self.outstanding(self._tables.counters.read()))

    def take(self, decided: Iterable[DecidedCase]) -> None:
        """Count the verdicts of decided cases.

        To be called after a look at missed runs that is younger than the decisions.
        """
        for one in decided:
            if one.case.invariant == TOO_OLD.id:
                self._take_too_old(one)
            elif one.decision.verdict in (Verdict.HOLDS, Verdict.UNVERIFIABLE):
                self._take_cleared(one)
            else:
                self._take_left_behind(one)

    def _take_cleared(self, decided: DecidedCase) -> None:
        """Entries that are gone, or that could not be searched for.

        What M4 has not judged of them gets the same verdict of it.
        """
        verdict, entries = decided.decision.verdict, decided.entries
        self.entries[verdict] += entries
        self._verdicts.add(LEFT_BEHIND.id, verdict, entries)
        unjudged = self.late.settle(decided.row.key, entries) if decided.row else entries
        self._verdicts.add(TOO_OLD.id, verdict, unjudged)

    def _take_left_behind(self, decided: DecidedCase) -> None:
        """Entries of which some are there.

        Those that were not found are gone, if all page tables were searched. An entry that was
        found and is not accused has a locked page: it may still be removed, so it counts as
        unverifiable.
        """
        verdict = decided.decision.verdict
        found = len(decided.decision.proven) if verdict is Verdict.VIOLATED else decided.entries
        found = max(1, found)
        self._verdicts.record(
            self._findings.entry(decided, self._rule_on_second_walk(decided)), found
        )
        accused = min(found, decided.entries)
        self.entries[verdict] += accused
        if decided.row:
            self.late.settle(decided.row.key, decided.entries)
        if decided.entries > accused:
            rest = decided.entries - accused
            gone = rest - min(rest, _unproven(decided)) if decided.case.sweep_complete else 0
            for kind, count in ((Verdict.HOLDS, gone), (Verdict.UNVERIFIABLE, rest - gone)):
                if count:
                    self.entries[kind] += count
                    self._verdicts.add(LEFT_BEHIND.id, kind, count)

    def _take_too_old(self, decided: DecidedCase) -> None:
        """M4's own verdict. The entries stay in the ledger: M1, or their removal, decides them."""
        verdict, row = decided.decision.verdict, decided.row
        if verdict in (Verdict.HOLDS, Verdict.UNVERIFIABLE) or not decided.entries:
            if row:
                self._too_old.discard(row.key)
            return
        found = len(decided.decision.proven) if verdict is Verdict.VIOLATED else decided.entries
        accused = min(max(1, found), decided.entries)
        self._verdicts.record(self._findings.entry(decided, {}), accused)
        if row:
            self.late.judge(row.key, accused)

    def _rule_on_second_walk(self, decided: DecidedCase) -> dict[Place, Ruling]:
        """Return M5's ruling on each entry that is proven to be left behind."""
        if PASSED_OVER.id not in self._covered or decided.decision.verdict is not Verdict.VIOLATED:
            return {}
        rulings = self._second_walks.rulings(decided)
        for answer in decided.decision.proven:
            ruling = rulings[answer.place]
            if decided.row and ruling.verdict is Verdict.VIOLATED:
                self._verdicts.record(
                    self._findings.passed_over(decided, decided.row, answer, ruling)
                )
            else:
                self._verdicts.add(PASSED_OVER.id, ruling.verdict)
        return rulings


def _unproven(decided: DecidedCase) -> int:
    """Return how many entries the last look found that are not proven to be left behind."""
    proven = {answer.place for answer in decided.decision.proven}
    return sum(answer.place not in proven for answer in decided.case.answers)
