"""Every migration entry that is recorded gets one verdict, and no exported counter falls."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import MIGRATION_WRITE, ModelKernel, swap_entry
from tests.support.native import LAYOUTS
from tests.support.snapshots import snapshot
from tests.unit.checking.test_entry_checks import ADDR
from tests.unit.checking.test_ledger_property import _LIMITS, KernelThatMissesRuns
from tracer.attach.plan import AttachMethod, Hook, HookState, PlannedHook
from tracer.bpf.programs import RunStatistics
from tracer.daemon.after_death import put_back
from tracer.invariants.verdict import Verdict
from tracer.outputs.prometheus import SnapshotCollector
from tracer.results.json_form import as_json
from tracer.results.snapshot import Snapshot

STRESS = 91


def split(model: ModelKernel, pfn: int, *, times: int) -> None:
    """A task splits a THP outside of migrate_pages(): the shared zeropage replaces what it inserts,
    without a tracepoint."""
    model.become(STRESS)
    for _ in range(times):
        model.fire("set_migration_pte", ADDR, swap_entry(MIGRATION_WRITE, pfn), 9)


def recorded(model: ModelKernel) -> int:
    counters = model.tables.counters.read()
    return counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]


class TestARowThatGoesOn:
    """Seen on 6.18 under stress-ng --mremap with THP always: 69,639 of 151,452 entries ended
    without a verdict."""

    @pytest.mark.parametrize("later", [0, 1, 26])
    def test_entries_inserted_while_their_case_is_open_get_a_verdict(self, later: int) -> None:
        model = ModelKernel(hooks=False)
        checker = CheckerRig(model, scan=False)
        pfn = model.map_page(model.new_mm(), ADDR)
        split(model, pfn, times=5)
        model.tick(2 * 10**9)
        checker.tick()
        split(model, pfn, times=later)
        for _ in range(4):
            model.tick(10**9)
            checker.work()
            checker.tick()
        assert (
            checker.checks()["M1", Verdict.HOLDS]
            == checker.checks()["M4", Verdict.HOLDS]
            == recorded(model)
            == 5 + later
        )
        assert checker.outstanding(model.tables.counters.read()) == 0

    def test_entry_inserted_after_the_case_was_opened_is_not_cleared_by_it(
        self,
    ) -> None:
        model = ModelKernel(hooks=False)
        checker = CheckerRig(model, scan=False)
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        split(model, pfn, times=5)
        model.tick(2 * 10**9)
        checker.tick()
        checker.work()
        split(model, pfn, times=1)
        checker.end()
        model.put(model.slot(mm, ADDR), swap_entry(MIGRATION_WRITE, pfn))
        mm.migrating.add(ADDR)
        other = CheckerRig(model, scan=True)
        other.end()
        assert checker.checks()["M1", Verdict.HOLDS] == 6
        assert other.proven() == {(mm.number, ADDR)}

    def test_removal_while_the_case_is_open_is_counted_once(self) -> None:
        model = ModelKernel(hooks=False)
        checker = CheckerRig(model, scan=False)
        pfn = model.map_page(model.new_mm(), ADDR)
        split(model, pfn, times=5)
        model.tick(2 * 10**9)
        checker.tick()
        model.become(STRESS)
        model.fire("remove_migration_pte", ADDR, pfn << 12, 0)
        checker.end()
        assert checker.checks()["M1", Verdict.HOLDS] == recorded(model) == 5


class TestEntriesInNoRow:
    """A row that was lost: nobody will ever judge what was in it."""

    def lost(self) -> tuple[ModelKernel, CheckerRig]:
        model = ModelKernel(hooks=False)
        checker = CheckerRig(model, scan=False)
        pfn = model.map_page(model.new_mm(), ADDR)
        split(model, pfn, times=7)
        ledger = model.native.maps["ledger"]
        for key, _ in list(ledger.items()):
            ledger.delete(key)
        return model, checker

    def test_entries_in_no_row_are_unverifiable_after_three_looks(self) -> None:
        model, checker = self.lost()
        for _ in range(3):
            assert checker.outstanding(model.tables.counters.read()) == 7
            model.tick(10**9)
            checker.tick()
        checked = checker.checks()
        assert (checked["M1", Verdict.UNVERIFIABLE], checked["M4", Verdict.UNVERIFIABLE]) == (7, 7)
        assert checker.outstanding(model.tables.counters.read()) == 0

    def test_entries_in_no_row_are_unverifiable_at_the_end(self) -> None:
        model, checker = self.lost()
        checker.end()
        assert checker.checks()["M1", Verdict.UNVERIFIABLE] == 7
        assert checker.outstanding(model.tables.counters.read()) == 0


class TestM4HasOneVerdictOnAnEntry:
    """A suspect is counted while its page stays locked; then its removal, late, was counted as
    another one."""

    @pytest.mark.parametrize("hooks", [True, False])
    def test_late_entry_that_is_removed_has_one_verdict(self, hooks: bool) -> None:
        model = ModelKernel(hooks=hooks)
        checker = CheckerRig(model, scan=False)
        mm, migration = model.new_mm(), model.start(77)
        pfns = model.map_page(mm, ADDR), model.map_page(mm, ADDR + 4096)
        for pfn in pfns:
            model.unmap_folio(migration, pfn)
        for _ in range(30):
            model.tick(10**9)
            checker.tick()
            checker.work()
        assert checker.checks()["M4", Verdict.SUSPECT] == 2
        for pfn in pfns:
            model.remap_folio(migration, pfn)
            checker.tick()
        model.end(migration)
        checker.end()
        assert checker.checks()["M4", Verdict.SUSPECT] == 2

    def test_late_entry_that_is_zapped_has_one_verdict_of_each_invariant(self) -> None:
        model = ModelKernel()
        checker = CheckerRig(model, scan=False)
        mm, migration = model.new_mm(), model.start(77)
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(migration, pfn)
        for _ in range(30):
            model.tick(10**9)
            checker.tick()
            checker.work()
        model.zap(mm, ADDR)
        model.remap_folio(migration, pfn)
        model.end(migration)
        checker.end()
        checked = checker.checks()
        assert (
            checked["M4", Verdict.SUSPECT],
            checked["M4", Verdict.HOLDS],
            checked["M1", Verdict.HOLDS],
        ) == (1, 0, 1)


class TestAfterTheDeathOfAJudge:
    """Another one goes on: no entry loses its verdict, and none has two."""

    @pytest.mark.parametrize(("later", "first_ns", "count"), [(9, 1, 9), (20, 1, 5 + 9)])
    def test_a_row_that_was_taken_out_is_put_back_with_what_came_since(
        self, later: int, first_ns: int, count: int
    ) -> None:
        layout = LAYOUTS.structs["ledger_row"]
        begun = 1 if later == 9 else later  # the very row, that grew, or another one
        found = layout.unpack(
            put_back(
                layout,
                layout.pack(first_ns=1, count=5),
                layout.pack(first_ns=begun, last_ns=later, count=9),
            )
        )
        assert (found.first_ns, found.last_ns, found.count) == (first_ns, later, count)

    def test_rows_in_cases_and_late_removals_go_on(self) -> None:
        model = ModelKernel(hooks=False)
        first = CheckerRig(model, scan=False)
        pfn = model.map_page(model.new_mm(), ADDR)
        split(model, pfn, times=5)
        model.tick(2 * 10**9)
        first.tick()
        split(model, pfn, times=3)
        first.work()
        held = first.open_cases.held_rows()
        while (
            not held
        ):  # until the case of the first five is decided: what came later has a case, and no row
            model.tick(10**9)
            first.work()
            held = first.open_cases.held_rows()
        second = CheckerRig(model, scan=False)
        second.entries.update(first.entries)
        second.late.resume(*first.late.state)
        second.open_cases.open("M1", held)
        second.end()
        assert second.entries[Verdict.HOLDS] == recorded(model) == 8
        assert not second.entries[Verdict.UNVERIFIABLE]


def test_report_counts_entries_by_verdict() -> None:
    entries = {Verdict.HOLDS: 4, Verdict.VIOLATED: 1, Verdict.UNVERIFIABLE: 2}
    found = as_json(snapshot(entries=entries, outstanding=3), ["x"], 0)["migration"]
    wanted = {
        "entries_cleared": 4,
        "entries_violated": 1,
        "entries_suspect": 0,
        "entries_unverifiable": 2,
        "outstanding": 3,
    }
    assert {name: found[name] for name in wanted} == wanted


_HOOKS = (
    "set_migration_pte",
    "remove_migration_pte",
    "first_walk",
    "second_walk",
    "mmap_lock_released",
)


class Exports(KernelThatMissesRuns):
    """What a Prometheus sees of it: whatever is lost, missed, or taken away, no counter falls."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.taken_away: set[str] = set()
        super().__init__()

    @rule(hook=st.sampled_from(_HOOKS))
    def a_hook_is_taken_away_or_comes_back(self, hook: str) -> None:
        self.taken_away ^= {hook}

    def now(self) -> Snapshot:
        method, missed = (AttachMethod("raw_tp", "x", ()),), self.model.missed
        states = {
            name: HookState.DETACHED if name in self.taken_away else HookState.ATTACHED
            for name in _HOOKS
        }
        hooks = tuple(
            PlannedHook("migration", Hook(name, ["raw_tp:x"], ""), state, method)
            for name, state in states.items()
        )
        statistics = {name: RunStatistics(1, 10, 0.5, missed) for name in _HOOKS}
        self.checker.catch_up()
        counters = self.model.tables.counters.read()
        return snapshot(
            hooks=hooks,
            statistics=statistics,
            counters=counters,
            checks=self.checker.all_checks({name: run.missed for name, run in statistics.items()}),
            violations={v.first.id: v for v in self.checker.tally.violations.values()},
            entries=dict(self.checker.entries),
            outstanding=self.checker.outstanding(counters),
            oracle={**self.checker.open_cases.answers, "sweeps": self.checker.open_cases.sweeps},
        )

    @invariant()
    def no_exported_counter_falls(self) -> None:
        found = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in SnapshotCollector(self.now).collect()
            if family.type == "counter"
            for sample in family.samples
        }
        fallen = {
            name: (value, found.get(name))
            for name, value in self.samples.items()
            if found.get(name, -1.0) < value
        }
        assert not fallen
        self.samples = found


TestExports = Exports.TestCase
TestExports.settings = settings(_LIMITS, max_examples=30)
