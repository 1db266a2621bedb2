"""Open cases: suspected entries that are looked for in the page tables until they are decided.

Looks at addresses and sweeps of all page tables are paced by what they cost: after each, the next
one waits for a multiple of the time that it took.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from tracer.invariants.migration_entries import (
    LEFT_BEHIND,
    LOOK_GAP_NS,
    TOO_OLD,
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

_PAUSE = 100
"""Times the CPU time of a sweep, and 50 times that of a look: at most 1 and 2 percent of a CPU.

Wall-clock time is not the measure: on a busy machine a look takes longer and costs no more.
"""
_MOST_ADDRESSES = 1024
_MOST_QUESTIONS = 32_768
"""An address is looked up in every mm. Where there are thousands, few addresses are, and the sweep
finds the others."""

Key = tuple[str, bytes]
"""(invariant, ledger key)"""


@dataclass
class DecidedCase:
    """A decided case with what was known about it.

    row: None for an entry that only a sweep found. event: the end of its migration; None where that
    was lost. entries: recorded entries that this verdict is about; those of M1 are out of the
    ledger now.
    """

    case: Case
    decision: CaseDecision
    row: Row | None
    event: Event | None
    entries: int = 0


@dataclass
class OpenCases:
    """Open cases by (invariant, ledger key). Times are CLOCK_MONOTONIC nanoseconds.

    oracle: None where page tables cannot be read. levels: of page tables. patience_ns: after which
    a case that cannot be proven is a suspect. scan_ns: between two periodic scans; 0: none.
    cpu_clock: CPU time of the calling thread in nanoseconds. cases: each with its row and the event
    that opened it. answers: counts for the report. proven: entries that a verdict has named
    already.
    """

    ledger: Ledger
    oracle: Oracle | None
    levels: int
    patience_ns: int
    scan_ns: int
    clock: Callable[[], int]
    cpu_clock: Callable[[], int]
    cases: dict[Key, tuple[Case, Row | None, Event | None]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    proven: set[tuple[str, Place]] = field(default_factory=set)
    sweeps: int = 0
    reopened: int = 0
    _proven_too_old: dict[Place, Row] = field(default_factory=dict)  # those of M4, and their rows
    _next_ask_ns: int = 0
    _next_sweep_ns: int = 0
    _next_scan_ns: int = 0

    def __post_init__(self) -> None:
        self._next_scan_ns = self.clock() + self.scan_ns

    def change(self, patience_ns: int, scan_ns: int) -> None:
        """From now on use another patience, and other time between scans.

        A scan that is due sooner is done sooner.
        """
        self.patience_ns, self.scan_ns = patience_ns, scan_ns
        self._next_scan_ns = min(self._next_scan_ns, self.clock() + scan_ns)

    def open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        """Open a case for each row that has none.

        An event that comes after the case of its row was opened is added to it.
        """
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

    def resume(
        self, answers: Mapping[str, int], sweeps: int, proven: Iterable[tuple[str, Place]]
    ) -> None:
        """Go on from the counts of another process.

        proven: entries that a violation was found at.
        """
        self.answers, self.sweeps, self.proven = Counter(answers), sweeps, set(proven)

    def held_rows(self) -> list[Row]:
        """Return the rows that are in a case and no longer in the ledger."""
        return [row for _, row, _ in self.cases.values() if row and not row.keys]

    def held(self) -> int:
        """Return the number of entries in these rows."""
        return sum(row.count for row in self.held_rows())

    def due_ns(self) -> int | None:
        """Return when work() has something to do; None while no case is open."""
        return self._next_ask_ns if self.cases else None

    def scan(self, *, now: bool = False) -> None:
        """Sweep all page tables if a periodic scan is due, or `now`.

        It finds entries that were left behind by kernel code without a tracepoint.
        """
        if (
            self.oracle
            and self.scan_ns
            and (now or self.clock() >= max(self._next_scan_ns, self._next_sweep_ns))
        ):
            self._sweep(self.oracle)

    def work(self, *, hurry: bool = False) -> list[DecidedCase]:
        """Look at the entries of open cases and return the decided ones.

        hurry: look now, and sweep all page tables.
        """
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
        start, mms = self.cpu_clock(), oracle.mms()
        most = min(_MOST_ADDRESSES, max(1, _MOST_QUESTIONS // max(1, len(mms))))
        addresses = list(dict.fromkeys(case.addr for case, _, _ in self.cases.values()))[:most]
        present = {mm.mm: mm for mm in mms}
        known = {(a.mm.mm, a.addr) for case, _, _ in self.cases.values() for a in case.answers}
        questions = [(present[mm], addr) for mm, addr in known if mm in present]
        found = oracle.entries_at(addresses, mms) + [
            a for a in oracle.ask(questions) if a.migration or a.possible
        ]
        self.answers["asked"] += len(addresses)
        cost = self.cpu_clock() - start
        self._next_ask_ns = self.clock() + max(LOOK_GAP_NS, cost * _PAUSE // 2)
        return list({(a.mm.mm, a.addr): a for a in found}.values())

    def _share_out(self, found: Iterable[FoundEntry]) -> dict[Key, list[FoundEntry]]:
        """Assign each found entry to at most one case.

        The order is: a case of the same page and address, of the same page, of the same address.

        A case that has met fewer entries than were recorded takes more, so an entry that no case
        names leaves some case short, and that case is swept for. An entry of another page at a
        case's address comes last: one row may stand for entries of several pages, but names one.
        Cases of rows come before cases that a sweep opened. An entry that was proven once belongs
        to no case any more.
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
        start = self.cpu_clock()
        sweep = oracle.sweep(oracle.mms())
        now = self.clock()
        self._next_sweep_ns = now + (self.cpu_clock() - start) * _PAUSE
        self._next_scan_ns = now + self.scan_ns
        self.sweeps += 1
        if sweep.complete:  # what is gone may be proven anew
            places = {answer.place for answer in sweep.answers}
            self.proven = {
                (invariant, place) for invariant, place in self.proven if place in places
            }
            self._proven_too_old = {
                place: row for place, row in self._proven_too_old.items() if place in places
            }
        owned = self._share_out(sweep.answers)
        for key, (case, _, _) in self.cases.items():
            case.swept(owned[key], sweep.complete)
        judged = {
            answer.place
            for (invariant, _), answers in owned.items()
            if invariant == LEFT_BEHIND.id
            for answer in answers
        } | {place for invariant, place in self.proven if invariant == LEFT_BEHIND.id}
        known = judged | self._awaited(owned)
        for answer in sweep.answers:
            if answer.left_behind and answer.place not in known:
                key = (LEFT_BEHIND.id, b"sweep" + repr((self.sweeps, answer.place)).encode())
                pfns = range(answer.pfn, answer.pfn + 1)
                case = Case(LEFT_BEHIND.id, answer.addr, pfns, 0, now, answer.level)
                case.swept((answer,), sweep.complete)
                self.cases[key] = case, None, None
        return list(sweep.answers)

    def _awaited(self, owned: Mapping[Key, Iterable[FoundEntry]]) -> set[Place]:
        """Return the entries of M4 that M1 judges with their row, when its migration has ended.

        A row that is empty, or that M1 has a case of, gets no entry any more: when mremap() has
        moved an entry, its migration may insert one of another page at the same address, and M1's
        case of the row names the newest page only.
        """
        too_old = self._proven_too_old | {
            answer.place: row
            for key, (case, row, _) in self.cases.items()
            if case.invariant == TOO_OLD.id and row
            for answer in owned[key]
        }
        return {
            place
            for place, row in too_old.items()
            if (LEFT_BEHIND.id, row.key) not in self.cases and self.ledger.outstanding(row)
        }

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
        """Close all cases without another look.

        An entry that was met in LOOKS looks is a suspect; one that was never looked for is
        unverifiable.
        """
        done = []
        for key, (case, row, event) in list(self.cases.items()):
            verdict = (
                Verdict.SUSPECT if case.persistent or self.oracle is None else Verdict.UNVERIFIABLE
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

    def _close(self, key: Key, decided: DecidedCase) -> DecidedCase:
        del self.cases[key]
        self.proven |= {
            (decided.case.invariant, answer.place) for answer in decided.decision.proven
        }
        if decided.case.invariant == TOO_OLD.id and decided.row:
            self._proven_too_old |= {
                answer.place: decided.row for answer in decided.decision.proven
            }
        decided = replace(decided, entries=self._take_out(decided))
        kind = "present" if decided.decision.proven or decided.case.answers else "gone"
        self.answers["cleared" if decided.decision.verdict is Verdict.HOLDS else kind] += (
            decided.entries
        )
        return decided

    def _take_out(self, decided: DecidedCase) -> int:
        """Take the row out of the ledger; return how many entries the verdict is about.

        The row of an entry that was inserted outside of a migration can grow: the same task may
        insert at the same address again and again. Entries that came after the case was opened were
        not looked for, so a case whose entries are gone decides nothing about them. They get a case
        of their own, which cannot grow, as its row is not in the ledger any more.
        """
        case, row = decided.case, decided.row
        if not row or not row.keys:
            return case.count
        if case.invariant != LEFT_BEHIND.id:  # what was removed meanwhile has the kernel's verdict
            return min(case.count, self.ledger.outstanding(row))
        taken = self.ledger.take(row)
        if decided.decision.verdict is not Verdict.HOLDS or taken.last_ns <= case.opened_ns:
            return taken.count
        self.reopened += 1
        known = replace(
            row,
            key=row.key + self.reopened.to_bytes(8, "little"),
            keys=(),
            count=taken.count,
            entry=taken.entry,
        )
        self.open(case.invariant, [known], decided.event)
        return 0


def entry_pfn(entry: int, levels: int) -> int:
    """Return the pfn in a migration entry: the low SWP_PFN_BITS of the swap offset.

    The offset is stored inverted in bits 58..9 (arch/x86/include/asm/pgtable_64.h).
    """
    bits = 40 if levels == 5 else 34
    return (~entry & ((1 << 59) - 1)) >> 9 & ((1 << bits) - 1)
