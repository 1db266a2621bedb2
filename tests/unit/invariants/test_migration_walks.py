"""The ledger with hooks on the rmap walks: rows by mm, frozen PMDs, and M2, M3 and M5 kept and
broken."""

from __future__ import annotations

import pytest

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import (
    HUGE,
    MIGRATION_READ,
    MIGRATION_WRITE,
    PAGE,
    ModelKernel,
    SimMigration,
    SimMm,
    swap_entry,
)
from tests.unit.checking.test_entry_checks import ADDR, judged, left_in
from tracer.invariants.migration_walks import rule
from tracer.invariants.verdict import Finding, Verdict
from tracer.tables.ledger import Row

THP = 0x7F0000200000
PFN = 1024


def migrated(model: ModelKernel, *, skip: int = 0, blind: int = 0, move: int = 0) -> SimMm:
    """Two mms map a page at the same address; what the second walk does not restore is in the later
    one."""
    mms = model.new_mm(), model.new_mm()
    pfn = model.map_page(mms[0], ADDR)
    model.map_page(mms[1], ADDR, pfn)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    if move:
        model.move(mms[1], ADDR, ADDR + move)
    model.remap_folio(migration, pfn, skip=skip, blind=blind)
    model.end(migration)
    return mms[1]


def moved(model: ModelKernel) -> tuple[SimMm, int, SimMigration]:
    """A page, its mm and its migration: after the first walk its entry was moved by 2 MiB."""
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.move(mm, ADDR, ADDR + HUGE)
    return mm, pfn, migration


def findings(checker: CheckerRig, invariant: str) -> list[Finding]:
    return [v.first for v in checker.tally.violations.values() if v.first.invariant == invariant]


class TestRows:
    def test_one_address_in_two_mms_is_two_rows(self) -> None:
        model = ModelKernel()
        one, two = model.new_mm(), model.new_mm()
        pfn = model.map_page(one, ADDR)
        model.map_page(two, ADDR, pfn)
        model.unmap_folio(model.start(77), pfn)
        (row,) = model.tables.ledger.rows()
        assert (row.count, len(row.keys), set(row.visited)) == (2, 2, {one.at, two.at})
        known = row.visited[two.at]
        assert (known.vma, known.vm_start, known.vm_end, known.folio, known.at) == (
            two.vma,
            0,
            1 << 47,
            model.folio(pfn),
            ADDR,
        )

    def test_a_copy_has_a_row_in_the_childs_mm(self) -> None:
        model = ModelKernel()
        parent = model.new_mm()
        pfn = model.map_page(parent, ADDR)
        migration = model.start(77)
        model.unmap_folio(migration, pfn, MIGRATION_READ)
        child = model.begin_fork(parent)
        model.copy_page(parent, child, ADDR)
        model.end_fork(parent, child)
        model.remap_folio(migration, pfn, skip=1)
        (row,) = model.tables.ledger.rows()
        assert (set(row.visited), row.count) == ({child.at}, 1)

    @pytest.mark.parametrize("backwards", [False, True])
    def test_copies_of_copies_in_any_order(self, backwards: bool) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        migration = model.start(77)
        model.unmap_folio(migration, pfn, MIGRATION_READ)
        for _ in range(2):
            child = model.begin_fork(mm)
            model.copy_page(mm, child, ADDR)
            model.end_fork(mm, child)
            mm = child
        model.remap_folio(migration, pfn, backwards=backwards)
        model.end(migration)
        counters = model.tables.counters.read()
        assert (
            counters["ENTRIES_COPIED"],
            counters["ENTRIES_REMOVED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (2, 3, 0)
        assert not model.native.events()

    def test_a_copy_of_another_page_is_another_migrations(self) -> None:
        """Two families migrate at the same address at once: the copy in one family is not the
        other's."""
        model = ModelKernel()
        ours, theirs = model.new_mm(), model.new_mm()
        pfns = model.map_page(ours, ADDR), model.map_page(theirs, ADDR)
        migrations = model.start(77), model.start(78)
        for migration, pfn in zip(migrations, pfns, strict=True):
            model.unmap_folio(migration, pfn, MIGRATION_READ)
        child = model.begin_fork(theirs)
        model.copy_page(theirs, child, ADDR)
        model.end_fork(theirs, child)
        model.remap_folio(migrations[0], pfns[0])
        assert model.tables.counters.read()["ENTRIES_COPIED"] == 0
        model.remap_folio(migrations[1], pfns[1])
        for migration in migrations:
            model.end(migration)
        assert model.tables.counters.read()["ENTRIES_COPIED"] == 1
        assert not model.native.events()

    def test_an_insertion_from_before_the_first_visit_was_seen_is_found_again(self) -> None:
        """The gate opened inside try_to_migrate_one(): the row has no mm."""
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        migration = model.start(77)
        model.hooks = False
        model.unmap_folio(migration, pfn)
        model.hooks = True
        model.remap_folio(migration, pfn)
        model.end(migration)
        counters = model.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["M5_HOLDS"],
            counters["REMOVALS_UNRECORDED"],
        ) == (1, 0, 0)
        assert not model.native.events()


class TestLocks:
    def test_locked_folios_hold(self) -> None:
        model = ModelKernel()
        migrated(model)
        checks = judged(model).checks()
        assert (
            checks["M2", Verdict.HOLDS],
            checks["M3", Verdict.HOLDS],
            checks["M5", Verdict.HOLDS],
        ) == (2, 2, 2)

    def test_an_insertion_with_the_folio_unlocked(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        model.start(77)
        model.call("first_walk", model.folio(pfn), mm.vma, ADDR)
        model.fire("set_migration_pte", ADDR, swap_entry(30, pfn), 0)
        model.call("first_walk_leave")
        checker = CheckerRig(model)
        checker.wake_up()
        checks = checker.checks()
        assert (checks["M2", Verdict.HOLDS], checks["M2", Verdict.VIOLATED]) == (0, 1)
        (finding,) = findings(checker, "M2")
        assert (
            finding.signature
            == "M2 violated try_to_migrate_one reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert finding.evidence == {
            "addr": hex(ADDR),
            "mm": hex(mm.at),
            "vma": hex(mm.vma),
            "folio": hex(model.folio(pfn)),
            "vma_now": {},
            "folio_now": {},
            "trail_note": (
                "The flight recorder has all since then. None of these windows explains it by"
                " itself."
            ),
        }

    def test_visit_that_was_not_seen_makes_no_violation(self) -> None:
        """6.1 with preempt=full, hooked by kprobes: neither the end of one visit nor the beginning
        of the next was seen, and the folio of the first, not locked any more, is not that of the
        next entry."""
        model = ModelKernel()
        mm = model.new_mm()
        seen, unseen = model.map_page(mm, ADDR), model.map_page(mm, ADDR + PAGE)
        model.start(77)
        model.lock(seen, True)
        model.call("first_walk", model.folio(seen), mm.vma, ADDR)
        model.fire("set_migration_pte", ADDR, swap_entry(30, seen), 0)
        model.lock(seen, False)
        model.lock(unseen, True)
        model.fire("set_migration_pte", ADDR + PAGE, swap_entry(30, unseen), 0)
        checks = judged(model).checks()
        assert (
            checks["M2", Verdict.HOLDS],
            checks["M2", Verdict.VIOLATED],
            checks["M2", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    @pytest.mark.parametrize("unlocked", ["source", "destination"])
    def test_a_removal_with_a_folio_unlocked(self, unlocked: str) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        model.lock(3 if unlocked == "source" else 2, True)
        model.start(77)
        model.visit(mm, ADDR, 2, 3)
        checker = CheckerRig(model)
        checker.wake_up()
        (finding,) = findings(checker, "M3")
        assert finding.evidence["folio"] == hex(model.folio(2 if unlocked == "source" else 3))
        assert checker.checks()["M3", Verdict.VIOLATED] == 1

    def test_violations_that_found_the_ring_full_are_counted(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        model.native.set("harness_ring_room", 0)
        model.visit(mm, ADDR, 2, 3)
        assert judged(model).checks()["M3", Verdict.VIOLATED] == 1


class TestM5:
    def test_what_a_ruling_needs(self) -> None:
        assert [rule(visited).verdict for visited in (True, False, None)] == [
            Verdict.HOLDS,
            Verdict.VIOLATED,
            Verdict.UNVERIFIABLE,
        ]

    def test_a_vma_that_the_second_walk_passes_over_is_named(self) -> None:
        model = ModelKernel()
        mm = migrated(model, skip=1)
        checker = judged(model)
        checks = checker.checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
        ) == (1, 1, 1)
        (finding,) = findings(checker, "M5")
        assert f"VMA 0x0-{1 << 47:#x} of [{mm.tgid}] holds one at {ADDR:#x}" in finding.summary
        assert (
            finding.signature
            == "M5 violated remove_migration_ptes level=PTE reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert finding.evidence["first_walk"] == {
            "vma": hex(mm.vma),
            "vm_start": "0x0",
            "vm_end": hex(1 << 47),
        }

    def test_vma_that_is_visited_and_not_restored_holds_for_m5_and_violates_m1(self) -> None:
        model = ModelKernel()
        migrated(model, blind=1)
        checker = judged(model)
        checks = checker.checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
        ) == (1, 0, 2)
        (finding,) = findings(checker, "M1")
        assert finding.summary.endswith("; the second walk visited it and did not restore it")

    def test_an_entry_that_was_moved_before_it_was_passed_over(self) -> None:
        model = ModelKernel()
        migrated(model, skip=1, move=HUGE)
        (finding,) = findings(judged(model), "M5")
        assert f"at {ADDR + HUGE:#x}, which the first walk left at {ADDR:#x}" in finding.summary

    def test_an_entry_that_was_moved_before_it_was_visited(self) -> None:
        model = ModelKernel()
        migrated(model, blind=1, move=HUGE)
        checker = judged(model)
        assert not findings(checker, "M5")
        assert findings(checker, "M1")

    def test_an_entry_that_was_moved_to_where_its_page_was_visited(self) -> None:
        """One page twice in an mm: the mapping that was restored is zapped, the entry left behind
        moves to its place."""
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        model.map_page(mm, ADDR + HUGE, pfn)
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn, skip=1)
        model.zap(mm, ADDR)
        model.move(mm, ADDR + HUGE, ADDR)
        model.end(migration)
        checks = judged(model).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 1, 1)

    def test_an_entry_that_was_moved_visited_and_moved_back(self) -> None:
        model = ModelKernel()
        mm, pfn, migration = moved(model)
        model.remap_folio(migration, pfn, blind=1)
        model.move(mm, ADDR + HUGE, ADDR)
        model.end(migration)
        checks = judged(model).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    def test_a_visit_that_aged_out_is_counted_in_its_row(self) -> None:
        """More visits than the map of visits holds: seen on 6.1, where compaction went on while the
        case was examined."""
        for blind, verdict in ((0, Verdict.VIOLATED), (1, Verdict.HOLDS)):
            model = ModelKernel(VISIT_ROWS=4)
            migrated(model, skip=1 - blind, blind=blind)
            model.start(78)
            for n in range(9):
                model.visit(model.new_mm(), ADDR, 900 + n, 900 + n)
            assert [ruling.verdict for ruling in judged(model).second_walks.values()] == [verdict]

    def test_a_visit_elsewhere_that_may_have_aged_out_proves_nothing(self) -> None:
        model = ModelKernel(VISIT_ROWS=4)
        migrated(model, skip=1, move=HUGE)
        model.start(78)
        for n in range(9):
            model.visit(model.new_mm(), ADDR, 900 + n, 900 + n)
        checks = judged(model).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    def test_a_visit_of_another_folio_elsewhere_proves_nothing(self) -> None:
        model = ModelKernel()
        mm, pfn, migration = moved(model)
        model.remap_folio(migration, pfn, skip=1)
        model.lock(900, True)
        model.visit(mm, ADDR + HUGE, 900, 900)
        model.call("second_walk_leave")
        model.end(migration)
        assert judged(model).checks()["M5", Verdict.UNVERIFIABLE] == 1

    def test_a_visit_of_another_folio_at_that_address_is_not_the_rows(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn, skip=1)
        model.lock(900, True)
        model.visit(mm, ADDR, 900, 900)
        model.call("second_walk_leave")
        model.end(migration)
        assert judged(model).checks()["M5", Verdict.VIOLATED] == 1

    def test_a_huge_pmd_counts_its_visits(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        migration = model.start(77)
        entry = swap_entry(30, PFN)
        model.lock(PFN, True)
        model.call("first_walk", model.folio(PFN), mm.vma, THP)
        model.put(model.slot(mm, THP, level=2), entry)
        model.fire("set_migration_pmd", THP, entry)
        model.call("first_walk_leave")
        model.visit(mm, THP, PFN, PFN)
        model.call("second_walk_leave")
        model.lock(PFN, False)
        model.end(migration)
        checks = judged(model).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
            checks["M2", Verdict.HOLDS],
        ) == (1, 1, 1)

    @pytest.mark.parametrize(("when", "violated"), [("before", 1), ("during", 0), ("after", 1)])
    def test_a_missed_visit_doubts_the_migration_that_it_may_belong_to_and_no_other(
        self, when: str, violated: int
    ) -> None:
        """7.2: the kernel left out 104 runs of the program in one go."""
        model = ModelKernel()
        checker = CheckerRig(model)
        model.tick(10**9)
        if when == "before":
            model.missed += 104
            checker.tick()
            model.tick(10**9)
        if when == "during":
            model.missed += 104
        migrated(model, skip=1)
        if when == "after":
            checker.tick()
            model.tick(10**9)
            model.missed += 104
        checker.end()
        checks = checker.checks()
        found = (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        )
        assert found == (1, violated, 1 - violated)

    def test_row_without_an_event_is_enough_for_m5(self) -> None:
        model = ModelKernel()
        model.native.set("harness_ring_room", 0)
        left_in(model)
        checks = judged(model).checks()
        assert (checks["M1", Verdict.VIOLATED], checks["M5", Verdict.VIOLATED]) == (1, 1)

    def test_without_hooks_m5_has_no_verdict(self) -> None:
        model = ModelKernel(hooks=False)
        left_in(model)
        checker = CheckerRig(model, covered=("M1", "M4"))
        checker.end()
        assert not any(
            count for (invariant, _), count in checker.checks().items() if invariant == "M5"
        )


class TestThpSplit:
    """A PMD becomes 512 entries without a tracepoint."""

    def frozen(self, model: ModelKernel, **how: bool) -> tuple[SimMigration, SimMm]:
        mm = model.new_mm()
        model.map_huge(mm, THP, PFN)
        for n in range(512):
            model.lock(PFN + n, True)
        split = model.start_split(88)
        model.freeze(split, mm, THP, PFN, **how)
        return split, mm

    def thaw(self, model: ModelKernel, split: SimMigration, mm: SimMm, how: dict[int, str]) -> None:
        for n in range(512):
            if how.get(n) != "skipped":
                model.thaw(split, mm, THP + n * PAGE, PFN + n, how.get(n, "restored"))
        for n in range(512):
            model.lock(PFN + n, False)
        model.end_split(split)

    @pytest.mark.parametrize("levels", [4, 5])
    def test_a_split_balances(self, levels: int) -> None:
        model = ModelKernel(levels)
        split, mm = self.frozen(model)
        counters = model.tables.counters.read()
        assert (counters["ENTRIES_RECORDED"], counters["PMDS_FROZEN"]) == (512, 1)
        assert len(model.tables.ledger.rows()) == 512
        self.thaw(model, split, mm, {5: "zeroed", 511: "zeroed"})
        counters = model.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["ENTRIES_REPLACED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (512, 2, 0)
        assert counters["SPLITS_ENDED"] == 1
        assert not model.tables.ledger.rows()
        assert not model.native.events()
        checks = judged(model).checks()
        assert (
            checks["M1", Verdict.HOLDS],
            checks["M2", Verdict.HOLDS],
            checks["M3", Verdict.HOLDS],
        ) == (512, 1, 512)
        assert checks["M5", Verdict.HOLDS] == 512

    def test_entry_that_a_split_leaves_sends_an_event_and_is_proven(self) -> None:
        model = ModelKernel(VISIT_ROWS=2048)
        split, mm = self.frozen(model)
        self.thaw(model, split, mm, {3: "skipped", 64: "ignored", 511: "skipped"})
        (event,) = map(model.tables.events.decode, model.native.events())
        assert (event.kind, event.entries, event.reason) == ("MIGRATION_LEFT", 3, 1000)
        checker = judged(model)
        checker.read_events([])
        checks = checker.checks()
        assert (checks["M1", Verdict.VIOLATED], checks["M1", Verdict.HOLDS]) == (3, 509)
        assert (checks["M5", Verdict.VIOLATED], checks["M5", Verdict.UNVERIFIABLE]) == (
            0,
            2,
        ), "its event was taken by this test"
        assert checker.proven() == {(mm.number, THP + n * PAGE) for n in (3, 64, 511)}
        assert not model.tables.ledger.rows()

    def test_a_page_that_a_split_passes_over_breaks_m5(self) -> None:
        model = ModelKernel(VISIT_ROWS=2048)
        split, mm = self.frozen(model)
        self.thaw(model, split, mm, {3: "skipped", 64: "ignored"})
        checker = judged(model)
        checks = checker.checks()
        assert (checks["M5", Verdict.VIOLATED], checks["M5", Verdict.HOLDS]) == (1, 511)
        (finding,) = findings(checker, "M5")
        assert finding.shape == "level=PTE reason=thp_split mode=MIGRATE_ASYNC"
        assert hex(THP + 3 * PAGE) in finding.summary

    def test_a_zapped_page_of_a_split_is_cleared_by_the_oracle(self) -> None:
        model = ModelKernel()
        split, mm = self.frozen(model)
        model.put(model.slot(mm, THP + 7 * PAGE), 0)
        self.thaw(model, split, mm, {7: "ignored"})
        checker = judged(model)
        assert checker.open_cases.answers["cleared"] == 1
        assert checker.checks()["M1", Verdict.HOLDS] == 512

    def test_a_page_of_a_split_that_mremap_moved_is_found_where_it_is(self) -> None:
        """Nothing is at its place when the second walk comes there: that proves nothing."""
        model = ModelKernel()
        split, mm = self.frozen(model)
        model.put(model.slot(mm, THP + 7 * PAGE), 0)
        model.put(model.slot(mm, ADDR), swap_entry(30, PFN + 7))
        self.thaw(model, split, mm, {7: "ignored"})
        assert judged(model).proven() == {(mm.number, ADDR)}

    def test_page_mapped_by_ptes_is_replaced_without_a_tracepoint_too(self) -> None:
        """A THP that was split into PTEs before is unmapped with a tracepoint for each; the
        zeropage replaces without."""
        model = ModelKernel()
        mm = model.new_mm()
        split = model.start_split(88)
        model.lock(PFN, True)
        model.call("first_walk", model.folio(PFN), mm.vma, THP)
        model.put(model.slot(mm, THP), swap_entry(30, PFN))
        model.fire("set_migration_pte", THP, swap_entry(30, PFN), 9)
        model.call("first_walk_leave")
        model.thaw(split, mm, THP, PFN, "zeroed")
        model.end_split(split)
        counters = model.tables.counters.read()
        assert (counters["ENTRIES_REMOVED"], counters["ENTRIES_REPLACED"]) == (1, 1)
        assert not model.native.events()

    def test_a_copy_of_a_frozen_entry(self) -> None:
        model = ModelKernel()
        split, mm = self.frozen(model)
        child = model.begin_fork(mm)
        for n in (1, 2):
            model.put(model.slot(child, THP + n * PAGE), swap_entry(MIGRATION_READ + 2, PFN + n))
        model.end_fork(mm, child)
        for n in range(512):
            model.thaw(split, mm, THP + n * PAGE, PFN + n, "zeroed" if n == 2 else "restored")
            if n == 1:
                model.thaw(split, child, THP + PAGE, PFN + 1)
        counters = model.tables.counters.read()
        assert (counters["ENTRIES_COPIED"], counters["ENTRIES_REMOVED"]) == (2, 513)
        (row,) = model.tables.ledger.rows()
        assert (row.addr, set(row.visited)) == (THP + 2 * PAGE, {child.at})

    def test_split_that_gives_up_freezing_records_nothing(self) -> None:
        model = ModelKernel()
        self.frozen(model, gives_up=True)
        assert not model.tables.counters.read()["ENTRIES_RECORDED"]

    def test_a_split_that_fails_is_put_back_in_one_visit(self) -> None:
        model = ModelKernel()
        split, mm = self.frozen(model)
        model.visit(mm, THP, PFN, PFN)
        for n in range(512):
            model.put(model.slot(mm, THP + n * PAGE), (PFN + n) << 12 | 0x67)
            model.fire("remove_migration_pte", THP + n * PAGE, 0, 0)
        model.call("second_walk_leave")
        model.end_split(split)
        counters = model.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["ENTRIES_REPLACED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (512, 0, 0)
        assert not model.native.events()

    def test_a_split_inside_of_a_migration_is_judged_at_the_migrations_end(self) -> None:
        model = ModelKernel()
        migration = model.start(88)
        split, mm = self.frozen(model)
        self.thaw(model, split, mm, {9: "skipped"})
        assert not model.native.events()
        model.end(migration)
        assert judged(model).proven() == {(mm.number, THP + 9 * PAGE)}

    def test_more_frozen_pmds_than_rows_are_lost_and_counted(self) -> None:
        model = ModelKernel(FROZEN_ROWS=1)
        for _ in range(2):
            self.frozen(model)
        assert model.tables.counters.read()["LEDGER_LOST"] == 1

    def test_what_two_vmas_map_of_a_thp_is_not_frozen_twice(self) -> None:
        """Mapped by PTEs since it was split into two VMAs: the second visit finds the entries of
        the first (6.1: 512 false suspects)."""
        model = ModelKernel()
        split, mm = self.frozen(model)
        model.call("first_walk", model.folio(PFN), mm.vma, THP + 3 * PAGE)
        model.call("freeze", mm.vma, 0, THP + 3 * PAGE, 1)
        model.call("freeze_leave", mm.vma, 0, THP + 3 * PAGE, 1)
        model.call("first_walk_leave")
        assert model.tables.counters.read()["PMDS_FROZEN"] == 1
        self.thaw(model, split, mm, {})
        assert not model.native.events()

    def test_a_child_that_was_frozen_itself_and_is_taken_for_a_copy_is_settled(self) -> None:
        model = ModelKernel()
        split, mm = self.frozen(model)
        child = model.begin_fork(mm)
        model.map_huge(child, THP, PFN)
        model.freeze(split, child, THP, PFN)
        model.end_fork(mm, child)
        for each in (mm, child):
            for n in range(512):
                model.thaw(split, each, THP + n * PAGE, PFN + n)
        model.end_split(split)
        counters = model.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"]
            == counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
            >= 1024
        )
        assert not model.tables.ledger.rows()
        assert not model.native.events()

    def test_a_split_frees_nothing_of_a_file(self) -> None:
        """The PMD of a file is zapped, not frozen."""
        model = ModelKernel()
        mm = model.new_mm()
        split = model.start_split(88)
        model.slot(mm, THP, level=2)
        model.call("first_walk", model.folio(PFN), mm.vma, THP)
        model.call("freeze", mm.vma, 0, THP, 1)
        model.call("freeze_leave", mm.vma, 0, THP, 1)
        model.end_split(split)
        assert not model.tables.ledger.rows()


def test_visits_of_a_migration_are_read_once_for_all_its_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The map has 131,072 rows: reading it for each of 256 entries would keep the loop for
    minutes."""
    model = ModelKernel()
    mm, migration = model.new_mm(), model.start(77)
    for n in range(8):
        pfn = model.map_page(mm, ADDR + n * PAGE)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn, skip=1)
    model.end(migration)
    read, visits = list[Row](), model.tables.visits
    folios = visits.folios

    def counted(row: Row) -> frozenset[tuple[int, int]]:
        read.append(row)
        return folios(row)

    monkeypatch.setattr(visits, "folios", counted)
    checker = judged(model)
    assert checker.checks()["M5", Verdict.VIOLATED] == 8
    assert len(read) == 1


def test_an_entry_that_was_not_restored_and_one_that_was_passed_over_are_different_defects() -> (
    None
):
    found = {}
    for how in ("blind", "skip"):
        model = ModelKernel()
        checker = CheckerRig(model)
        migrated(model, **{how: 1})
        checker.end()
        (found[how],) = findings(checker, "M1")
    assert found["blind"].id != found["skip"].id
    assert found["blind"].signature.endswith("second_walk=came")
    assert found["skip"].signature.endswith("second_walk=passed_over")
    assert found["blind"].evidence["culprit"]["function"] == "remove_migration_pte"
    assert found["skip"].evidence["culprit"]["function"] == "remove_migration_ptes"


def test_the_row_knows_the_folio_that_the_second_walk_brought() -> None:
    model = ModelKernel()
    mm = migrated(model, blind=1)
    rows = [row for row in model.tables.ledger.rows() if mm.at in row.visited]
    assert [row.visited[mm.at].to for row in rows] == [model.folio(model.next_pfn - 1)]


def test_repeats_of_one_kind_read_no_evidence() -> None:
    """Each event of M2 is counted; only the first one's signature is explained."""
    model = ModelKernel()
    checker = CheckerRig(model)
    mm = model.new_mm()
    migration = model.start(77)
    for n in range(40):
        pfn = model.map_page(mm, ADDR + n * 4096)
        model.become(77)
        model.call("first_walk", model.folio(pfn), mm.vma, ADDR + n * 4096)
        model.fire("set_migration_pte", ADDR + n * 4096, swap_entry(MIGRATION_WRITE, pfn), 0)
        model.call("first_walk_leave")
    checker.wake_up()
    model.end(migration)
    (violation,) = [v for v in checker.tally.violations.values() if v.first.invariant == "M2"]
    assert violation.count == 40
    assert checker.stacks_read == 1
