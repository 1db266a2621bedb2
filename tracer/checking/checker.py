"""The checker: turns ring events, ledger rows and the protocol table into verdicts.

Pure: clock and tables are injected.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tracer.checking.cases import DecidedCase, OpenCases
from tracer.checking.entry_checks import EntryChecks, EntryTables
from tracer.checking.findings import Findings
from tracer.checking.late_removals import LateRemovals
from tracer.checking.missed_runs import HookLosses
from tracer.checking.protocol_events import ProtocolEvents
from tracer.checking.second_walks import SecondWalks
from tracer.checking.stalls import Stalls
from tracer.checking.verdicts import Verdicts
from tracer.invariants.base import Invariant
from tracer.invariants.lock_order import NO_CYCLE
from tracer.invariants.migration_entries import TOO_OLD
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.tables.counters import Counters
from tracer.tables.events import Event, Events
from tracer.tables.ledger import Row
from tracer.tables.tables import Tables

_HURRY_SECONDS = 0.006
"""Time between two looks at open cases while a run ends: longer than LOOK_GAP_NS, or the looks
would not count."""


@dataclass(frozen=True)
class Reading:
    """The probes' counters, and the ledger as it was read after them."""

    counters: Mapping[str, int]
    rows: list[Row]


@dataclass(frozen=True)
class CheckerTables:
    """The tables that the checker reads."""

    events: Events
    counters: Counters
    entries: EntryTables

    @classmethod
    def of(cls, tables: Tables) -> CheckerTables:
        """Choose these of all tables."""
        return cls(tables.events, tables.counters, EntryTables.of(tables))


class Checker:
    """Turns what the probes record into verdicts, as it comes.

    Call read_events() at a wake-up, tick() once a second, work() whenever open_cases are due, and
    close() at the end.

    verdicts: of the run. handlers: kinds of events that another part of the session takes, with
    the record -> what takes them. covered: invariants that have coverage at the beginning;
    hooks.look() returns those that have it later. age_limit_ns: after which an entry is too old.
    clock: CLOCK_MONOTONIC in nanoseconds, as events have it.
    """

    def __init__(
        self,
        *,
        tables: CheckerTables,
        invariants: Mapping[str, Invariant],
        covered: frozenset[str],
        verdicts: Verdicts,
        open_cases: OpenCases,
        second_walks: SecondWalks,
        findings: Findings,
        protocol_events: ProtocolEvents,
        handlers: Mapping[str, Callable[[Event, bytes], None]],
        hooks: HookLosses,
        stalls: Stalls,
        age_limit_ns: int,
        clock: Callable[[], int],
    ) -> None:
        self.verdicts, self.open_cases = verdicts, open_cases
        self._tables, self._findings, self._invariants = tables, findings, invariants
        self._protocol_events, self._hooks, self._clock = protocol_events, hooks, clock
        self._age_limit_ns, self._handlers = age_limit_ns, handlers
        self._reports = {
            report.kind: (name, report) for name, one in invariants.items() for report in one.events
        }
        self._entry_checks = EntryChecks(
            tables.entries,
            invariants,
            covered,
            self.verdicts,
            open_cases,
            second_walks,
            findings,
            hooks.unbroken[TOO_OLD.id],
            stalls,
            age_limit_ns,
            clock,
        )

    @property
    def tally(self) -> Tally:
        """Checks and violations so far. Windows are in it up to the last count_protocols()."""
        return self.verdicts.tally

    @property
    def entries(self) -> Counter[Verdict]:
        """Recorded migration entries by the verdict that M1 gave them here."""
        return self._entry_checks.entries

    @property
    def late(self) -> LateRemovals:
        """M4's account of removals after the age limit."""
        return self._entry_checks.late

    @property
    def new_findings(self) -> tuple[Finding, ...]:
        """Findings with new signatures that take_new_findings() has not returned yet."""
        return self.verdicts.new

    def take_new_findings(self) -> list[Finding]:
        """Return the findings whose signatures are new since the last call."""
        return self.verdicts.take_new()

    def outstanding(self, counters: Mapping[str, int]) -> int:
        """Migration entries that were recorded, and neither removed nor judged."""
        return self._entry_checks.outstanding(counters)

    def change(self, age_limit_ns: int, scan_ns: int) -> None:
        """From now on another age limit, and other time between scans; in nanoseconds."""
        self._age_limit_ns = age_limit_ns
        self._entry_checks.change(age_limit_ns, scan_ns)

    def resume(
        self,
        entries: Mapping[Verdict, int],
        late: tuple[dict[str, int], dict[bytes, int], int],
        rows: Iterable[Row],
    ) -> None:
        """Go on from another process's counts by verdict and LateRemovals.state.

        rows: of its cases.
        """
        self._entry_checks.resume(entries, late, rows)

    def cover(self, covered: frozenset[str]) -> None:
        """From now on these invariants have coverage.

        Windows and entries that were counted before keep their verdicts.
        """
        self._entry_checks.cover(covered)
        self._protocol_events.cover(covered)

    def _look(self) -> None:
        self.cover(self._hooks.look())

    def read_events(self, ring: Iterable[bytes]) -> None:
        """Record what probes report, and open a case for every row that an ended migration left."""
        events = [(self._tables.events.decode(raw), raw) for raw in ring]
        if any(event.kind == "ORDER_REVERSED" for event, _ in events):
            self._look()
        ended = []
        for event, raw in events:
            if event.kind == "ORDER_REVERSED":
                self._record_order(event)
            elif event.kind == "PROTOCOL_NEW":
                self._protocol_events.read_event(event, raw)
            elif event.kind in self._handlers:
                self._handlers[event.kind](event, raw)
            elif event.kind in self._reports:
                self.verdicts.record(self._findings.reported(*self._reports[event.kind], event))
            else:
                ended.append(event)
        if self._protocol_events.urgent:
            counters = self._tables.counters.read()
            self._look()
            self._count(counters, whole=False)
        self._entry_checks.migrations_ended(ended)

    def _record_order(self, event: Event) -> None:
        """Record that two mmap_locks were nested in both orders, unless a release was missed.

        Locks look nested that never were where the release of the outer one was missed. The first
        and the last nesting in the opposite order are known: one that is beyond doubt is enough.
        """
        missed = self._hooks.unbroken[NO_CYCLE.id].during
        opposite = missed(event.first_held_ns, event.first_ns) and missed(
            event.last_held_ns, event.last_ns
        )
        if opposite or missed(event.held_ns, event.time_ns):
            self.verdicts.add(NO_CYCLE.id, Verdict.UNVERIFIABLE)
        else:
            self.verdicts.record(self._findings.order(event))

    def count_protocols(self) -> None:
        """Rule on every protocol in the table, and count all windows."""
        counters = self._tables.counters.read()
        self._look()
        self._count(counters, whole=True)

    def _count(self, counters: Mapping[str, int], *, whole: bool) -> None:
        """counters: from before the last look at the hooks."""
        self.verdicts.add_new(
            self._protocol_events.work(
                self.tally, counters, self._hooks.windows_missed, self.verdicts.wall(), whole=whole
            )
        )

    def catch_up(self) -> Reading:
        """Count all that the probes have recorded until now; return what it was counted from."""
        return self._catch_up(whole=True)

    def _catch_up(self, *, whole: bool) -> Reading:
        """Read the counters, look at the hooks, count windows, read the ledger.

        The order matters. A run that was missed before the counters were read is known to the look
        after them; an entry whose removal is in the counters is in no row that is read after them.
        """
        counters = self._tables.counters.read()
        self._look()
        self._count(counters, whole=whole)
        rows = self._entry_checks.ledger(counters)
        self._entry_checks.count_late(counters, rows)
        return Reading(counters, rows)

    def tick(self) -> None:
        """Count and open what no event reports. To be called once a second.

        Counts violations in the protocol table, late removals and lost entries, and opens cases for
        overdue rows.
        """
        reading = self._catch_up(whole=False)
        self._protocol_events.tick()
        self._entry_checks.count_lost(reading.counters, reading.rows)
        self._entry_checks.open_overdue(reading.rows)

    def work(self, *, hurry: bool = False) -> None:
        """Look at open cases in the page tables if that is due, and count the decided ones.

        hurry: look now.
        """
        self._take(self.open_cases.work(hurry=hurry))

    def _take(self, decided: list[DecidedCase]) -> None:
        if any(one.decision.proven for one in decided):
            self._look()
        self._entry_checks.take(decided)

    def close(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Decide what is left, with the gate closed.

        Counts all, searches all page tables once more, and gives open cases this many seconds.
        """
        reading = self.catch_up()
        self._entry_checks.open_left(reading.rows)
        self.open_cases.scan(now=True)
        end = self._clock() + int(seconds * 1e9)
        while self.open_cases.cases and self._clock() < end:
            self.work(hurry=True)
            sleep(_HURRY_SECONDS)
        self._take(self.open_cases.finish())
        self._entry_checks.close()

    def doubts(self) -> dict[str, str]:
        """Return invariant -> why it is checked in part only at present.

        The kernel missed runs of programs within the last age limit, and checks that were under way
        are unverifiable.
        """
        found, now = {}, self._clock()
        for name, missed in self._hooks.unbroken.items():
            needed, last = self._invariants[name].unbroken, missed.last_ns
            if needed and last is not None and now - last < self._age_limit_ns:
                found[name] = (
                    f"the kernel has just left out runs of programs that record {needed.subject}: "
                    "checks that were under way are unverifiable"
                )
        return found
