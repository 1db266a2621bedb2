"""The desk where suspects wait: asked about at their address, looked for in a sweep, decided by the monitor.

Asking and sweeping are paced by what they cost: after each, the desk rests a multiple of the time it took.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import product

from tracer.invariants.migration_entries import (
    LEFT_BEHIND,
    LOOK_GAP_NS,
    Case,
    CaseDecision,
    Home,
    homes,
    judge,
    pages,
)
from tracer.invariants.verdict import Verdict
from tracer.memory.entries import FoundEntry, Place
from tracer.memory.page_tables import Oracle
from tracer.tables.events import Event
from tracer.tables.ledger import Ledger, Row

_REST = (
    100  # times the cost of a sweep, 50 times that of asking: one and two percent of a CPU at most
)
_MOST_ADDRESSES = 1024
_MOST_QUESTIONS = 32_768  # an address is asked for in every mm: where there are thousands, few addresses; the sweep is for the others

Key = tuple[str, bytes]
"""(invariant, ledger key)"""


@dataclass
class DecidedCase:
    """A decided case with what was known about it; row is None for an entry that only a sweep found.

    entries: recorded entries that this verdict is about. For M1 they are out of the ledger now."""

    case: Case
    decision: CaseDecision
    row: Row | None
    event: Event | None
    entries: int = 0


@dataclass
class OpenCases:
    """Open cases by (invariant, ledger key). Times are CLOCK_MONOTONIC nanoseconds."""

    ledger: Ledger
    oracle: Oracle | None
    levels: int
    patience_ns: int
    scan_ns: int
    clock: Callable[[], int]
    cases: dict[Key, tuple[Case, Row | None, Event | None]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    proven: set[tuple[str, Place]] = field(default_factory=set)
    sweeps: int = 0
    reopened: int = 0
    _next_ask_ns: int = 0
    _next_sweep_ns: int = 0
    _next_scan_ns: int = 0

    def __post_init__(self) -> None:
        self._next_scan_ns = self.clock() + self.scan_ns

    def change(self, patience_ns: int, scan_ns: int) -> None:
        """From now on other times; a patrol that would come sooner does."""
        self.patience_ns, self.scan_ns = patience_ns, scan_ns
        self._next_scan_ns = min(self._next_scan_ns, self.clock() + scan_ns)

    def open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        """Put rows on the desk; those already there stay as they are, but for an event that comes after the timer has found its row."""
        now = self.clock()
        for row in rows:
            case, known, before = self.cases.get((invariant, row.key), (None, row, None))
            if case and event and not before:
                self.cases[invariant, row.key] = case, known, event
            elif not case:
                pfn = entry_pfn(row.entry, self.levels)
                pfns = range(pfn, pfn + (512 if row.level == 2 else 1))
                self.cases[invariant, row.key] = (
                    Case(invariant, row.addr, pfns, row.count, now, row.level),
                    row,
                    event,
                )

    def held_rows(self) -> list[Row]:
        """Rows that are in a case and no longer in the ledger."""
        return [row for _, row, _ in self.cases.values() if row and not row.keys]

    def held(self) -> int:
        """Entries in these rows."""
        return sum(row.count for row in self.held_rows())

    def due_ns(self) -> int | None:
        """When work() has something to do; None while the desk is empty."""
        return self._next_ask_ns if self.cases else None

    def scan(self, *, now: bool = False) -> None:
        """A sweep without a suspect, every patrol_ns (0: never): finds what was left behind by ways that no event tells of."""
        if (
            self.oracle
            and self.scan_ns
            and (now or self.clock() >= max(self._next_scan_ns, self._next_sweep_ns))
        ):
            self._sweep(self.oracle)

    def work(self, *, hurry: bool = False) -> list[DecidedCase]:
        """Ask about what is open, sweep if that is due (or `hurry`), and return what is decided."""
        if not self.cases:
            return []
        if self.oracle is None:
            return self._give_up("no page-table oracle on this kernel")
        if not hurry and self.clock() < self._next_ask_ns:
            return []
        found = self._ask(self.oracle)
        if hurry or self.clock() >= self._next_sweep_ns:
            owned = self._share_out(found)
            if any(case.lacks(owned[key]) for key, (case, _, _) in self.cases.items()):
                found += self._sweep(self.oracle)
        return self._decide(found)

    def _ask(self, oracle: Oracle) -> list[FoundEntry]:
        oracle.update_swap_types()
        start, mms = self.clock(), oracle.mms()
        most = min(_MOST_ADDRESSES, max(1, _MOST_QUESTIONS // max(1, len(mms))))
        addresses = list(dict.fromkeys(case.addr for case, _, _ in self.cases.values()))[:most]
        present = {mm.mm: mm for mm in mms}
        known = {(a.mm.mm, a.addr) for case, _, _ in self.cases.values() for a in case.answers}
        questions = [(present[mm], addr) for mm, addr in known if mm in present]
        found = oracle.entries_at(addresses, mms) + [
            a for a in oracle.ask(questions) if a.migration or a.possible
        ]
        self.answers["asked"] += len(addresses)
        now = self.clock()
        self._next_ask_ns = now + max(LOOK_GAP_NS, (now - start) * _REST // 2)
        return list({(a.mm.mm, a.addr): a for a in found}.values())

    def _share_out(self, found: Iterable[FoundEntry]) -> dict[Key, list[FoundEntry]]:
        """An entry belongs to one case only: to the case at its address, or else to one of its page that has met fewer than were
        booked. As long as an entry is left that nobody names, some case thus lacks one, and sweeps for it.

        An entry of another page at a case's address comes last: one row may stand for entries of several pages, but names one.
        Cases of rows come before those that only a sweep opened. What was proven once belongs to nobody any more.
        """
        owned: dict[Key, list[FoundEntry]] = {key: [] for key in self.cases}
        room = {key: case.size for key, (case, _, _) in self.cases.items()}
        queues: defaultdict[tuple[str, bool, int], dict[Home, deque[Key]]] = defaultdict(dict)
        for key, (case, _, _) in self.cases.items():
            for rank, home in enumerate(case.homes):
                queues[case.invariant, case.count > 0, rank].setdefault(home, deque()).append(key)

        def give(answer: FoundEntry, queue: deque[Key]) -> bool:
            while queue and room[queue[0]] <= 0 and answer.addr != self.cases[queue[0]][0].addr:
                queue.popleft()
            if queue:
                owned[queue[0]].append(answer)
                room[queue[0]] -= pages([answer])
            return bool(queue)

        distinct = sorted(
            {(a.mm.mm, a.addr): a for a in found}.values(),
            key=lambda a: (not a.left_behind, a.place),
        )
        for invariant in {invariant for invariant, _ in self.cases}:
            loose = [a for a in distinct if (invariant, a.place) not in self.proven]
            for of_row, rank in product((True, False), range(3)):
                at = queues[invariant, of_row, rank]
                loose = [
                    a
                    for a in loose
                    if not any(give(a, at[home]) for home in homes(a)[rank] if home in at)
                ]
        return owned

    def _sweep(self, oracle: Oracle) -> list[FoundEntry]:
        start = self.clock()
        sweep = oracle.sweep(oracle.mms())
        now = self.clock()
        self._next_sweep_ns = now + (now - start) * _REST
        self._next_scan_ns = now + self.scan_ns
        self.sweeps += 1
        if sweep.complete:  # what is gone may be proven anew
            places = {answer.place for answer in sweep.answers}
            self.proven = {
                (invariant, place) for invariant, place in self.proven if place in places
            }
        owned = self._share_out(sweep.answers)
        for key, (case, _, _) in self.cases.items():
            case.swept(owned[key], sweep.complete)
        known = {answer.place for answers in owned.values() for answer in answers} | {
            place for _, place in self.proven
        }
        for answer in sweep.answers:
            if answer.left_behind and answer.place not in known:
                key = (LEFT_BEHIND.id, b"sweep" + repr((self.sweeps, answer.place)).encode())
                pfns = range(answer.pfn, answer.pfn + 1)
                case = Case(LEFT_BEHIND.id, answer.addr, pfns, 0, now, answer.level)
                case.swept((answer,), sweep.complete)
                self.cases[key] = case, None, None
        return list(sweep.answers)

    def _decide(self, found: list[FoundEntry]) -> list[DecidedCase]:
        done, now, owned = [], self.clock(), self._share_out(found)
        for key, (case, row, event) in list(self.cases.items()):
            decision = judge(case, owned[key], now, self.patience_ns)
            if decision:
                done.append(self._close(key, DecidedCase(case, decision, row, event)))
        return done

    def _give_up(self, why: str) -> list[DecidedCase]:
        decision = CaseDecision(Verdict.SUSPECT, why)
        return [
            self._close(key, DecidedCase(case, decision, row, event))
            for key, (case, row, event) in list(self.cases.items())
        ]

    def finish(self) -> list[DecidedCase]:
        """No more looks: what was found once is a suspect, what was never looked for is unverifiable."""
        done = []
        for key, (case, row, event) in list(self.cases.items()):
            verdict = (
                Verdict.SUSPECT if case.stubborn or self.oracle is None else Verdict.UNVERIFIABLE
            )
            done.append(
                self._close(
                    key,
                    DecidedCase(
                        case,
                        CaseDecision(verdict, "the run ended before it could be decided"),
                        row,
                        event,
                    ),
                )
            )
        return done

    def _close(self, key: Key, judged: DecidedCase) -> DecidedCase:
        del self.cases[key]
        self.proven |= {(judged.case.invariant, answer.place) for answer in judged.decision.proven}
        judged = replace(judged, entries=self._take_out(judged))
        kind = "present" if judged.decision.proven or judged.case.answers else "gone"
        self.answers["cleared" if judged.decision.verdict is Verdict.HOLDS else kind] += (
            judged.entries
        )
        return judged

    def _take_out(self, judged: DecidedCase) -> int:
        """How many recorded entries the verdict is about.

        The row of an entry that was inserted outside of a migration goes on: the same task may insert at the same address again and again.
        Entries that came after the case was opened were not looked for. That all are gone is not known of them: they get a case of
        their own, which cannot grow, for its row is no longer in the ledger."""
        case, row = judged.case, judged.row
        if not row or not row.keys:
            return case.count
        if case.invariant != LEFT_BEHIND.id:  # what was removed meanwhile has the kernel's verdict
            return min(case.count, self.ledger.outstanding(row))
        taken = self.ledger.take(row)
        if judged.decision.verdict is not Verdict.HOLDS or taken.last_ns <= case.opened_ns:
            return taken.count
        self.reopened += 1
        known = replace(
            row,
            key=row.key + self.reopened.to_bytes(8, "little"),
            keys=(),
            count=taken.count,
            entry=taken.entry,
        )
        self.open(case.invariant, [known], judged.event)
        return 0


def entry_pfn(entry: int, levels: int) -> int:
    """The pfn in a migration entry: the low SWP_PFN_BITS of the swap offset, bits 58..9 inverted (arch/x86/include/asm/pgtable_64.h)."""
    bits = 40 if levels == 5 else 34
    return (~entry & ((1 << 59) - 1)) >> 9 & ((1 << bits) - 1)
