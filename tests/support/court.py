"""The daemon's judge over a World: the real judge, desk, books, oracle and monitor, with the world's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable

from tests.support.native import synthetic_kernel
from tests.support.world import World
from tracer.checking.cases import DecidedCase, OpenCases
from tracer.checking.checker import Checker, CheckerTables, Missed
from tracer.checking.findings import Findings
from tracer.checking.missed_runs import MissedRuns
from tracer.invariants.verdict import Ruling, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import Place
from tracer.results.snapshot import checks

WELCOME_NS = 10**10


class Court(Checker):
    """Remembers every decided case, so that a test can hold it against the truth."""

    def __init__(
        self,
        world: World,
        oracle: bool = True,
        scan: bool = True,
        checked: Container[str] = ("M1", "M4", "M5"),
    ) -> None:
        self.world, self.judged, self.second_walks = (
            world,
            list[DecidedCase](),
            dict[Place, Ruling](),
        )
        self.accused: list[int] = []  # World.names of the entries that M1 named when it did
        scan_ns = 60 * 10**9 if scan else 0
        open_cases = OpenCases(
            world.tables.ledger,
            world.oracle if oracle else None,
            world.levels,
            WELCOME_NS,
            scan_ns,
            lambda: world.now,
        )
        kernel = synthetic_kernel()
        findings = Findings(world.tables.stacks, kernel, Symbols(kernel), lambda: world.now)
        ledger, visits, orders = (
            MissedRuns(lambda: world.missed, lambda: world.now) for _ in range(3)
        )
        missed = Missed(ledger, visits, orders, windows=lambda: 0)
        super().__init__(
            CheckerTables.of(world.tables),
            open_cases,
            findings,
            WELCOME_NS,
            lambda: world.now,
            missed,
            checked,
        )

    def _take(self, decided: Iterable[DecidedCase]) -> None:
        decided = list(decided)
        self.judged += decided
        for one in decided:
            if one.case.invariant == "M1" and one.decision.verdict is Verdict.VIOLATED:
                self.accused += [
                    self.world.names.get((a.mm.id, a.addr), 0) for a in one.decision.proven
                ]
        super()._take(decided)

    def _second_walk(self, judged: DecidedCase) -> dict[Place, Ruling]:
        found = super()._second_walk(judged)
        self.second_walks |= found
        return found

    def hear(self) -> None:
        """A wake-up: read events, work once."""
        self.read_events(self.world.native.events())
        self.work()

    def end(self) -> None:
        """The end of a run, as Session.stop() does it; time passes while it sleeps."""
        self.hear()
        self.close(1.0, lambda seconds: self.world.tick(int(seconds * 1e9)))

    def checks(self) -> Counter[tuple[str, Verdict]]:
        self.count_late()
        return Counter(checks(self.tally, self.world.tables.counters.read(), {}))

    def proven(self) -> set[tuple[int, int]]:
        """(mm number, address) of every entry that some verdict `violated` names."""
        return {
            (a.mm.id, a.addr)
            for one in self.judged
            if one.decision.verdict is Verdict.VIOLATED
            for a in one.decision.proven
        }
