"""The daemon's checker over a ModelKernel.

Cases, tables, oracle and findings are real; the clock is the model's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.model_kernel import ModelKernel
from tests.support.native import LAYOUTS, synthetic_kernel
from tracer.checking.cases import DecidedCase, OpenCases
from tracer.checking.checker import Checker, CheckerTables
from tracer.checking.findings import Findings
from tracer.checking.missed_runs import MissedRuns
from tracer.checking.protocol_events import ProtocolEvents, ProtocolTables
from tracer.checking.second_walks import SecondWalks
from tracer.checking.stalls import Stalls
from tracer.checking.verdicts import Verdicts
from tracer.invariants.catalogue import discover
from tracer.invariants.migration_walks import PASSED_OVER
from tracer.invariants.verdict import Ruling, Tally, Verdict
from tracer.kernel.symbolizer import Symbols
from tracer.memory.entries import Place
from tracer.memory.objects import ObjectReader
from tracer.results.checks import all_checks

AGE_LIMIT_NS = 10**10


class RecordedCases(OpenCases):
    """Remembers every decided case, so that a test can compare it with the truth."""

    model: ModelKernel

    def record_for(self, model: ModelKernel) -> None:
        """Begin to record, for this model."""
        self.model, self.decided = model, list[DecidedCase]()
        self.accused = list[int]()  # ModelKernel.names of the entries that M1 found violated

    def work(self, *, hurry: bool = False) -> list[DecidedCase]:
        return self._recorded(super().work(hurry=hurry))

    def finish(self) -> list[DecidedCase]:
        return self._recorded(super().finish())

    def _recorded(self, decided: list[DecidedCase]) -> list[DecidedCase]:
        self.decided += decided
        for one in decided:
            if one.case.invariant == "M1" and one.decision.verdict is Verdict.VIOLATED:
                self.accused += [
                    self.model.names.get((a.mm.id, a.addr), 0) for a in one.decision.proven
                ]
        return decided


class RecordedWalks(SecondWalks):
    """Remembers every ruling of M5."""

    def __init__(self, model: ModelKernel, missed: MissedRuns) -> None:
        super().__init__(model.tables.visits, missed, model.page_format, lambda: model.now)
        self.found = dict[Place, Ruling]()

    def rulings(self, decided: DecidedCase) -> dict[Place, Ruling]:
        found = super().rulings(decided)
        self.found |= found
        return found


@dataclass
class ModelHooks:
    """Hooks that stay attached; their runs are missed when the model says so."""

    model: ModelKernel
    covered: frozenset[str]
    windows_missed: int = 0
    unbroken: Mapping[str, MissedRuns] = field(init=False)

    def __post_init__(self) -> None:
        self.unbroken = {
            name: MissedRuns(lambda: self.model.missed, lambda: self.model.now)
            for name, one in discover().items()
            if one.unbroken
        }

    def look(self) -> frozenset[str]:
        for missed in self.unbroken.values():
            missed.look()
        return self.covered


class CountedSymbols(Symbols):
    """Counts the stacks that evidence is made of."""

    stacks = 0

    def stack(self, addresses: Sequence[int]) -> tuple[str, ...]:
        self.stacks += 1
        return super().stack(addresses)


class CheckerRig(Checker):
    """A checker of the entries of one ModelKernel. covered: the invariants that have coverage."""

    def __init__(
        self,
        model: ModelKernel,
        oracle: bool = True,
        scan: bool = True,
        covered: Collection[str] = ("M1", "M4", "M5"),
    ) -> None:
        self.model, self.known = model, discover()
        self.cases = RecordedCases(
            model.tables.ledger,
            model.oracle if oracle else None,
            model.page_format,
            AGE_LIMIT_NS,
            60 * 10**9 if scan else 0,
            lambda: model.now,
            lambda: model.now,
        )
        self.cases.record_for(model)
        kernel, maps = synthetic_kernel(), model.native.maps
        self.symbols, objects = CountedSymbols(kernel), ObjectReader(maps, None, LAYOUTS, kernel)
        self.hooks = hooks = ModelHooks(model, frozenset(covered))
        self.walks = RecordedWalks(model, hooks.unbroken[PASSED_OVER.id])
        protocol_events = ProtocolEvents(
            ProtocolTables.of(model.tables),
            LAYOUTS,
            self.symbols,
            self.known,
            hooks.covered,
            objects,
        )
        self.stalls = Stalls(10**9)
        super().__init__(
            tables=CheckerTables.of(model.tables),
            invariants=self.known,
            covered=hooks.covered,
            verdicts=Verdicts(Tally()),
            open_cases=self.cases,
            second_walks=self.walks,
            findings=Findings(
                model.tables.stacks,
                kernel,
                self.symbols,
                lambda: model.now,
                objects,
                protocol_events.trails,
            ),
            protocol_events=protocol_events,
            handlers={},
            hooks=hooks,
            stalls=self.stalls,
            age_limit_ns=AGE_LIMIT_NS,
            clock=lambda: model.now,
        )

    @property
    def decided(self) -> list[DecidedCase]:
        """Every case that was decided."""
        return self.cases.decided

    @property
    def accused(self) -> list[int]:
        """Every entry that M1 found violated, by ModelKernel.names."""
        return self.cases.accused

    @property
    def stacks_read(self) -> int:
        """The number of stacks that were read as evidence."""
        return self.symbols.stacks

    @property
    def second_walks(self) -> dict[Place, Ruling]:
        """Every ruling of M5, by where the entry is."""
        return self.walks.found

    def wake_up(self) -> None:
        """Do what the daemon does at a wake-up: read events, then work once."""
        self.read_events(self.model.native.events())
        self.work()

    def end(self) -> None:
        """End a run as Session.stop() does. Time passes while it sleeps."""
        self.wake_up()
        self.close(1.0, lambda seconds: self.model.tick(int(seconds * 1e9)))

    def checks(self) -> Counter[tuple[str, Verdict]]:
        """Count what was removed late; return all checks."""
        self.catch_up()
        return Counter(self.all_checks({}))

    def all_checks(self, missed_runs: Mapping[str, int]) -> dict[tuple[str, Verdict], int]:
        """Return all checks by the present counters, for a run that covers every invariant."""
        return all_checks(
            self.known.values(),
            frozenset(self.known),
            self.tally.checks,
            self.model.tables.counters.read(),
            missed_runs,
        )

    def proven(self) -> set[tuple[int, int]]:
        """(mm number, address) of every entry that some verdict `violated` names."""
        return {
            (a.mm.id, a.addr)
            for one in self.decided
            if one.decision.verdict is Verdict.VIOLATED
            for a in one.decision.proven
        }
