"""The kernel leaves out runs of a program (lazy preemption).

Seen on 7.3: 241 entries that looked as if they had lived for minutes.

Golden traces: what happened, what was not seen of it, and the verdict that is honest about that.
"""

from __future__ import annotations

import pytest

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import ModelKernel, SimMigration, SimMm
from tests.unit.checking.test_entry_checks import ADDR
from tracer.invariants.verdict import Verdict

MINUTES = 200 * 10**9
KCOMPACTD = 77


def begun(model: ModelKernel) -> tuple[SimMm, SimMigration]:
    return model.new_mm(), model.start(KCOMPACTD)


def moved(model: ModelKernel, mm: SimMm, migration: SimMigration, *, seen: bool = True) -> None:
    """A page at ADDR is migrated within microseconds. seen: its removal."""
    if ADDR not in mm.entries:
        model.map_page(mm, ADDR)
    pfn = mm.entries[ADDR]
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn, seen=seen)


def passes(checker: CheckerRig, *, missed: bool = False) -> None:
    """A second, in which the kernel may leave out a run."""
    checker.model.tick(10**9)
    checker.model.missed += missed
    checker.tick()


def m4(model: ModelKernel) -> tuple[int, int, int]:
    counters = model.tables.counters.read()
    return counters["M4_HOLDS"], counters["M4_AGE_UNKNOWN"], counters["M4_LATE"]


class TestAnOldEntryAndAYoungOne:
    """A removal was missed, its row stayed, and minutes later the same page was migrated again."""

    def test_age_is_that_of_the_young_entry(self) -> None:
        model = ModelKernel()
        mm, migration = begun(model)
        moved(model, mm, migration, seen=False)
        model.tick(MINUTES)
        moved(model, mm, migration)
        assert m4(model) == (1, 0, 0)

    def test_age_in_a_row_without_mm_is_unverifiable(self) -> None:
        model = ModelKernel(hooks=False)
        mm, migration = begun(model)
        moved(model, mm, migration, seen=False)
        model.tick(MINUTES)
        moved(model, mm, migration)
        assert m4(model) == (0, 1, 0)
        assert CheckerRig(model).checks()["M4", Verdict.UNVERIFIABLE] == 1

    @pytest.mark.parametrize("hooks", [True, False])
    def test_an_entry_that_lives_for_minutes_is_late_all_the_same(self, hooks: bool) -> None:
        model = ModelKernel(hooks=hooks)
        mm, migration = begun(model)
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(migration, pfn)
        model.tick(MINUTES)
        model.remap_folio(migration, pfn)
        assert m4(model) == (0, 0, 1)
        assert CheckerRig(model).checks()["M4", Verdict.SUSPECT] == 1

    @pytest.mark.parametrize(
        ("missed_after_s", "verdict"),
        [(-5, Verdict.SUSPECT), (5, Verdict.UNVERIFIABLE), (200, Verdict.UNVERIFIABLE)],
    )
    def test_only_a_late_removal_whose_life_a_missed_run_touches_is_doubted(
        self, missed_after_s: int, verdict: Verdict
    ) -> None:
        """missed_after_s: seconds from the insertion to the missed run; the daemon looks once a
        second."""
        model = ModelKernel()
        checker = CheckerRig(model)
        mm, migration = begun(model)
        pfn = model.map_page(mm, ADDR)
        for second in range(-10, 0):
            passes(checker, missed=second == missed_after_s)
        model.unmap_folio(migration, pfn)
        for second in range(1, 200):
            passes(checker, missed=second == missed_after_s)
        model.missed += missed_after_s == 200
        model.remap_folio(migration, pfn)
        passes(checker)
        checked = checker.checks()
        assert checked["M4", verdict] == 1
        assert checked["M4", Verdict.SUSPECT] + checked["M4", Verdict.UNVERIFIABLE] == 1

    def test_what_was_counted_before_a_run_was_missed_stays_counted(self) -> None:
        """It was counted anew at each scrape: three suspects became none, and a counter fell."""
        model = ModelKernel()
        checker = CheckerRig(model)
        mm, migration = begun(model)
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(migration, pfn)
        model.tick(MINUTES)
        model.remap_folio(migration, pfn)
        passes(checker)
        before = checker.checks()
        passes(checker, missed=True)
        assert checker.checks()["M4", Verdict.SUSPECT] == before["M4", Verdict.SUSPECT] == 1


def test_missed_run_is_a_doubt_for_ten_seconds() -> None:
    checker = CheckerRig(ModelKernel())
    passes(checker)
    assert checker.doubts() == {}
    checker.model.missed += 1
    assert checker.doubts() == {}, "a read looks at nothing"
    passes(checker)
    assert checker.doubts().keys() == {"M4", "M5", "L2"}
    for _ in range(9):
        passes(checker)
        assert checker.doubts()
    passes(checker)
    assert checker.doubts() == {}


class TestAnEndThatWasMissed:
    def test_the_next_migration_ends_it_and_what_it_left_is_judged(self) -> None:
        model = ModelKernel()
        mm, first = begun(model)
        moved(model, mm, first, seen=False)
        model.end(first, seen=False)
        model.tick(MINUTES)
        second = model.start(KCOMPACTD)
        moved(model, mm, second)
        model.end(second)
        counters = model.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (1, 1)
        assert m4(model) == (1, 0, 0)
        checker = CheckerRig(model)
        checker.end()
        assert checker.checks()["M1", Verdict.HOLDS] == 2
        assert not checker.tally.violations

    def test_entry_left_by_a_migration_whose_end_was_missed_is_found_when_the_next_begins(
        self,
    ) -> None:
        model = ModelKernel()
        mm, first = begun(model)
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(first, pfn)
        model.remap_folio(first, pfn, skip=1)
        model.end(first, seen=False)
        model.start(KCOMPACTD)
        checker = CheckerRig(model, scan=False)
        checker.end()
        assert checker.checks()["M1", Verdict.VIOLATED] == 1

    def test_a_nested_end_that_was_missed_is_made_good_by_the_next_beginning(self) -> None:
        model = ModelKernel()
        _, outer = begun(model)
        inner = model.start(KCOMPACTD)
        model.end(inner, seen=False)
        model.end(outer)
        last = model.start(KCOMPACTD)
        model.end(last)
        counters = model.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (1, 1)

    def test_a_split_inside_of_a_migration_is_inside_wherever_its_probe_lies(self) -> None:
        """A kprobe's registers and a tracepoint's arguments lie at different depths below their
        functions."""
        model = ModelKernel()
        _, migration = begun(model)
        model.inside[KCOMPACTD] = 0
        split = model.start_split(KCOMPACTD)
        model.end_split(split)
        model.inside[KCOMPACTD] = 1
        model.end(migration)
        counters = model.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (0, 1)

    def test_entry_of_a_migration_without_end_is_unverifiable_at_the_end_of_a_run(self) -> None:
        model = ModelKernel()
        mm, migration = begun(model)
        moved(model, mm, migration, seen=False)
        model.end(migration, seen=False)
        checker = CheckerRig(model)
        checker.end()
        checked = checker.checks()
        assert (
            checked["M1", Verdict.HOLDS],
            checked["M1", Verdict.UNVERIFIABLE],
            checked["M4", Verdict.UNVERIFIABLE],
        ) == (0, 1, 1)
