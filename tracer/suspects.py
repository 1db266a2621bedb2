"""The desk where suspects wait: asked about at their address, looked for in a sweep, decided by the monitor.

Asking and sweeping are paced by what they cost: after each, the desk rests a multiple of the time it took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tracer.answer import Answer, Place
from tracer.books import Books, Event, Row
from tracer.monitors.migration import LOOK_GAP_NS, Case, Decision, judge
from tracer.oracle import Oracle
from tracer.verdict import Verdict

_REST = 100  # times the cost of a sweep, 50 times that of asking: one and two percent of a CPU at most
_MOST_ADDRESSES = 1024


@dataclass
class Judged:
    """A decided case with what was known about it; row is None for an entry that only a sweep found."""

    case: Case
    decision: Decision
    row: Row | None
    event: Event | None


@dataclass
class Desk:
    """Open cases by (invariant, ledger key). Times are CLOCK_MONOTONIC nanoseconds."""

    books: Books
    oracle: Oracle | None
    levels: int
    patience_ns: int
    patrol_ns: int
    clock: Callable[[], int]
    cases: dict[tuple[str, bytes], tuple[Case, Row | None, Event | None]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    proven: set[Place] = field(default_factory=set)
    sweeps: int = 0
    settled: int = 0
    _next_ask_ns: int = 0
    _next_sweep_ns: int = 0
    _next_patrol_ns: int = 0

    def __post_init__(self) -> None:
        self._next_patrol_ns = self.clock() + self.patrol_ns

    def open(self, invariant: str, rows: Iterable[Row], event: Event | None = None) -> None:
        """Put rows on the desk; those already there stay as they are."""
        now = self.clock()
        for row in rows:
            if (invariant, row.key) not in self.cases:
                pfn = entry_pfn(row.entry, self.levels)
                pfns = range(pfn, pfn + (512 if row.level == 2 else 1))
                self.cases[invariant, row.key] = Case(invariant, row.addr, pfns, row.count, now, row.level), row, event

    def due_ns(self) -> int | None:
        """When work() has something to do; None while the desk is empty."""
        return self._next_ask_ns if self.cases else None

    def patrol(self, *, now: bool = False) -> None:
        """A sweep without a suspect, every patrol_ns (0: never): finds what was left behind by ways that no event tells of."""
        if self.oracle and self.patrol_ns and (now or self.clock() >= max(self._next_patrol_ns, self._next_sweep_ns)):
            self._sweep(self.oracle)

    def work(self, *, hurry: bool = False) -> list[Judged]:
        """Ask about what is open, sweep if that is due (or `hurry`), and return what is decided."""
        if not self.cases:
            return []
        if self.oracle is None:
            return self._give_up("no page-table oracle on this kernel")
        if not hurry and self.clock() < self._next_ask_ns:
            return []
        found = self._ask(self.oracle)
        if (hurry or self.clock() >= self._next_sweep_ns) and self._nowhere(found):
            found += self._sweep(self.oracle)
        return self._decide(found)

    def _ask(self, oracle: Oracle) -> list[Answer]:
        oracle.learn()
        start, mms = self.clock(), oracle.mms()
        addresses = list(dict.fromkeys(case.addr for case, _, _ in self.cases.values()))[:_MOST_ADDRESSES]
        present = {mm.mm: mm for mm in mms}
        known = {(a.mm.mm, a.addr) for case, _, _ in self.cases.values() for a in case.answers}
        questions = [(present[mm], addr) for mm, addr in known if mm in present]
        found = oracle.entries_at(addresses, mms) + [a for a in oracle.ask(questions) if a.migration or a.possible]
        self.answers["asked"] += len(addresses)
        now = self.clock()
        self._next_ask_ns = now + max(LOOK_GAP_NS, (now - start) * _REST // 2)
        return list({(a.mm.mm, a.addr): a for a in found}.values())

    def _nowhere(self, found: list[Answer]) -> bool:
        """Whether a case that was never swept has nothing to wait for at its address."""
        return any(not case.swept and not any(case.waits_for(answer) for answer in found) for case, _, _ in self.cases.values())

    def _sweep(self, oracle: Oracle) -> list[Answer]:
        start = self.clock()
        sweep = oracle.sweep(oracle.mms())
        now = self.clock()
        self._next_sweep_ns = now + (now - start) * _REST
        self._next_patrol_ns = now + self.patrol_ns
        self.sweeps += 1
        for case, _, _ in self.cases.values():
            case.swept, case.sweep_complete = True, sweep.complete
        self.proven &= {answer.place for answer in sweep.answers}  # what is gone may be proven anew
        for answer in sweep.answers:
            concerned = [case for case, _, _ in self.cases.values() if case.concerns(answer)]
            for case in concerned:
                case.answers += (answer,)  # it is asked about again where it was found
            if answer.left_behind and not concerned and answer.place not in self.proven:
                key = ("M1", b"sweep" + repr(answer.place).encode())
                pfns = range(answer.pfn, answer.pfn + 1)
                self.cases[key] = Case("M1", answer.addr, pfns, 0, now, answer.level, swept=True), None, None
        return list(sweep.answers)

    def _decide(self, found: list[Answer]) -> list[Judged]:
        done, now = [], self.clock()
        seen = {(a.mm.mm, a.addr): a for a in found}.values()
        for key, (case, row, event) in list(self.cases.items()):
            decision = judge(case, [a for a in seen if case.concerns(a)], now, self.patience_ns)
            if decision:
                done.append(self._close(key, Judged(case, decision, row, event)))
        return done

    def _give_up(self, why: str) -> list[Judged]:
        decision = Decision(Verdict.SUSPECT, why)
        return [self._close(key, Judged(case, decision, row, event)) for key, (case, row, event) in list(self.cases.items())]

    def finish(self) -> list[Judged]:
        """No more looks: what was found once is a suspect, what was never looked for is unverifiable."""
        done = []
        for key, (case, row, event) in list(self.cases.items()):
            verdict = Verdict.SUSPECT if case.stubborn or self.oracle is None else Verdict.UNVERIFIABLE
            done.append(self._close(key, Judged(case, Decision(verdict, "the run ended before it could be decided"), row, event)))
        return done

    def _close(self, key: tuple[str, bytes], judged: Judged) -> Judged:
        del self.cases[key]
        self.proven |= {answer.place for answer in judged.decision.proven}
        kind = "present" if judged.decision.proven or judged.case.answers else "gone"
        self.answers["cleared" if judged.decision.verdict is Verdict.HOLDS else kind] += judged.case.count
        if judged.row and judged.case.invariant == "M1" and self.books.settle(judged.row):
            self.settled += judged.case.count
        return judged


def entry_pfn(entry: int, levels: int) -> int:
    """The pfn in a migration entry: the low SWP_PFN_BITS of the swap offset, bits 58..9 inverted (arch/x86/include/asm/pgtable_64.h)."""
    bits = 40 if levels == 5 else 34
    return (~entry & ((1 << 59) - 1)) >> 9 & ((1 << bits) - 1)
