"""Open cases: suspected entries that are looked for in the page tables until they are decided.

Looks at addresses and sweeps of all page tables are paced by what they cost: after each, the next
one waits for a multiple of the time that it took. turns.py chooses the addresses of each look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tracer.checking.sharing import Key, share_out
from tracer.checking.turns import Turns, Waiting
from tracer.invariants.migration_entries import (
    LEFT_BEHIND,
    LOOK_GAP_NS,
    TOO_OLD,
    Case,
    CaseDecision,
    judge,
)
from tracer.invariants.verdict import Verdict
from tracer.machine.page_format import PageFormat
from tracer.memory.entries import FoundEntry, Place
from tracer.memory.page_tables import Oracle, Sweep
from tracer.tables.events import Event
from tracer.tables.ledger import Ledger, Row
from tracer.tables.mm import Mm

_PAUSE = 100
"""Times the CPU time of a sweep, and 50 times that of a look: at most 1 and 2 percent of a CPU.

Wall-clock time is not the measure: on a busy machine a look takes longer and costs no more.
"""
_MOST_QUESTIONS = 32_768
"""In one look. An address is looked up in every mm where the mms of its entries are not known.
Where there are thousands, few addresses are, and the sweep finds the others."""


def _turns() -> Turns:
    return Turns(_MOST_QUESTIONS)


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

    oracle: None where page tables cannot be read. page_format: of page tables. patience_ns: after
    which a case that cannot be proven is a suspect. scan_ns: between two periodic scans; 0: none.
    cpu_clock: CPU time of the calling thread in nanoseconds. cases: each with its row and the event
    that opened it. answers: counts for the report. proven: entries that a verdict has named
    already.
    """

    ledger: Ledger
    oracle: Oracle | None
    page_format: PageFormat
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
    _turns: Turns = field(default_factory=_turns)
    _looked_ns: int = 0
    _owed_ns: int = 0  # pauses after looks that are not waited for yet
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
                pfn = self.page_format.entry_pfn(row.entry)
                pfns = range(pfn, pfn + self.page_format.pages(row.level))
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
        found, asked = self._ask(self.oracle, whole=hurry)
        if hurry or self.clock() >= self._next_sweep_ns:
            owned = self._share_out(found, asked)
            if any(self.cases[key][0].lacks(owned[key]) for key in asked):
                sweep = self._sweep(self.oracle)
                found += sweep.answers
                if sweep.complete:  # nothing is anywhere else: it is a look at every case
                    asked = set(self.cases)
        decided = self._decide(found, asked)
        self._pause()
        return decided

    def _pause(self) -> None:
        """Set when the next look is.

        The looks of a turn of first addresses follow each other at once, and what they cost is
        waited for after them.
        """
        pause = LOOK_GAP_NS
        if not self._turns.hurry({case.addr for case, _, _ in self.cases.values()}):
            pause, self._owed_ns = max(pause, self._owed_ns), 0
        self._next_ask_ns = self._looked_ns + pause

    def _ask(self, oracle: Oracle, *, whole: bool) -> tuple[list[FoundEntry], set[Key]]:
        """Look at the addresses whose turn it is; return what is there, and the cases looked at.

        whole: at all addresses, as far as that is bounded.
        """
        oracle.update_swap_types()
        start, mms = self.cpu_clock(), oracle.mms()
        present = {mm.mm: mm for mm in mms}
        waiting = self._waiting(present)
        turn = self._turns.everything(waiting) if whole else self._turns.choose(waiting)
        places = set(turn)
        asked = {key for key, (case, _, _) in self.cases.items() if case.addr in places}
        known = {(a.mm.mm, a.addr) for key in asked for a in self.cases[key][0].answers}
        questions = dict.fromkeys((mm.mm, addr) for addr in turn for mm in waiting[addr].mms)
        questions |= dict.fromkeys(place for place in known if place[0] in present)
        asks = self.cpu_clock()
        found = oracle.ask([(present[mm], addr) for mm, addr in questions])
        asked_ns = self.cpu_clock() - asks
        self.answers["asked"] += len(turn)
        cost = self.cpu_clock() - start
        self._turns.spent(asked_ns, cost - asked_ns, len(questions))
        self._looked_ns, self._owed_ns = self.clock(), self._owed_ns + cost * _PAUSE // 2
        return [a for a in found if a.migration or a.possible], asked

    def _waiting(self, present: Mapping[int, Mm]) -> dict[int, Waiting]:
        """Return the addresses of open cases, and in which of these mms each is looked up.

        The mms in which the entries of a row were left are enough until a look may decide: only a
        copy can be in another one, and what is not found is swept for.
        """
        waiting = dict[int, Waiting]()
        every = tuple(present.values())
        for (invariant, _), (case, row, _) in self.cases.items():
            mms = every
            if row and len(row.visited) == row.count and not case.nearly_decided:
                mms = tuple(present[mm] for mm in row.visited if mm in present)
            migration = (invariant, row.tid, row.start_ns) if row else (invariant, case.opened_ns)
            if known := waiting.get(case.addr):
                mms = tuple(dict.fromkeys((*known.mms, *mms)))
                waiting[case.addr] = Waiting(known.migrations | {migration}, mms)
            else:
                waiting[case.addr] = Waiting(frozenset([migration]), mms)
        return waiting

    def _share_out(
        self, found: Iterable[FoundEntry], asked: Collection[Key] | None = None
    ) -> dict[Key, list[FoundEntry]]:
        """asked: the cases that were looked for; None: all."""
        cases = {key: case for key, (case, _, _) in self.cases.items()}
        return share_out(cases, found, self.proven, cases if asked is None else asked)

    def _sweep(self, oracle: Oracle) -> Sweep:
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
        return sweep

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

    def _decide(self, found: Iterable[FoundEntry], asked: Collection[Key]) -> list[DecidedCase]:
        done, now, owned = [], self.clock(), self._share_out(found, asked)
        for key in [key for key in self.cases if key in asked]:
            case, row, event = self.cases[key]
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
