"""The ledger with hooks on the rmap walks: rows by mm, frozen PMDs, and M2, M3 and M5 kept and broken."""

from __future__ import annotations

import pytest

from tests.support.court import Court
from tests.support.world import (
    HUGE,
    MIGRATION_READ,
    MIGRATION_WRITE,
    PAGE,
    SimMigration,
    SimMm,
    World,
    swap_entry,
)
from tests.unit.checking.test_world import ADDR, judged, left_in
from tracer.invariants.migration_walks import rule
from tracer.invariants.verdict import Finding, Verdict
from tracer.tables.events import Event

THP = 0x7F0000200000
PFN = 1024


def migrated(world: World, *, skip: int = 0, blind: int = 0, move: int = 0) -> SimMm:
    """Two mms map a page at the same address; what the second walk does not restore is in the later one."""
    mms = world.new_mm(), world.new_mm()
    pfn = world.map_page(mms[0], ADDR)
    world.map_page(mms[1], ADDR, pfn)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    if move:
        world.move(mms[1], ADDR, ADDR + move)
    world.remap_folio(migration, pfn, skip=skip, blind=blind)
    world.end(migration)
    return mms[1]


def moved(world: World) -> tuple[SimMm, int, SimMigration]:
    """A page, its mm and its migration: after the first walk its entry was moved by 2 MiB."""
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.move(mm, ADDR, ADDR + HUGE)
    return mm, pfn, migration


def findings(court: Court, invariant: str) -> list[Finding]:
    return [v.first for v in court.tally.violations.values() if v.first.invariant == invariant]


class TestRows:
    def test_one_address_in_two_mms_is_two_rows(self) -> None:
        world = World()
        one, two = world.new_mm(), world.new_mm()
        pfn = world.map_page(one, ADDR)
        world.map_page(two, ADDR, pfn)
        world.unmap_folio(world.start(77), pfn)
        (row,) = world.tables.ledger.rows()
        assert (row.count, len(row.keys), set(row.visited)) == (2, 2, {one.at, two.at})
        known = row.visited[two.at]
        assert (known.vma, known.vm_start, known.vm_end, known.folio, known.at) == (
            two.vma,
            0,
            1 << 47,
            world.folio(pfn),
            ADDR,
        )

    def test_a_copy_has_a_row_in_the_childs_mm(self) -> None:
        world = World()
        parent = world.new_mm()
        pfn = world.map_page(parent, ADDR)
        migration = world.start(77)
        world.unmap_folio(migration, pfn, MIGRATION_READ)
        child = world.begin_fork(parent)
        world.copy_page(parent, child, ADDR)
        world.end_fork(parent, child)
        world.remap_folio(migration, pfn, skip=1)
        (row,) = world.tables.ledger.rows()
        assert (set(row.visited), row.count) == ({child.at}, 1)

    @pytest.mark.parametrize("backwards", [False, True])
    def test_copies_of_copies_in_any_order(self, backwards: bool) -> None:
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        migration = world.start(77)
        world.unmap_folio(migration, pfn, MIGRATION_READ)
        for _ in range(2):
            child = world.begin_fork(mm)
            world.copy_page(mm, child, ADDR)
            world.end_fork(mm, child)
            mm = child
        world.remap_folio(migration, pfn, backwards=backwards)
        world.end(migration)
        counters = world.tables.counters.read()
        assert (
            counters["ENTRIES_COPIED"],
            counters["ENTRIES_REMOVED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (2, 3, 0)
        assert not world.native.events()

    def test_a_copy_of_another_page_is_another_migrations(self) -> None:
        """Two families migrate at the same address at once: the copy in one family is not the other's."""
        world = World()
        ours, theirs = world.new_mm(), world.new_mm()
        pfns = world.map_page(ours, ADDR), world.map_page(theirs, ADDR)
        migrations = world.start(77), world.start(78)
        for migration, pfn in zip(migrations, pfns, strict=True):
            world.unmap_folio(migration, pfn, MIGRATION_READ)
        child = world.begin_fork(theirs)
        world.copy_page(theirs, child, ADDR)
        world.end_fork(theirs, child)
        world.remap_folio(migrations[0], pfns[0])
        assert world.tables.counters.read()["ENTRIES_COPIED"] == 0
        world.remap_folio(migrations[1], pfns[1])
        for migration in migrations:
            world.end(migration)
        assert world.tables.counters.read()["ENTRIES_COPIED"] == 1
        assert not world.native.events()

    def test_an_insertion_from_before_the_first_visit_was_seen_is_found_again(self) -> None:
        """The gate opened inside try_to_migrate_one(): the row has no mm."""
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        migration = world.start(77)
        world.hooks = False
        world.unmap_folio(migration, pfn)
        world.hooks = True
        world.remap_folio(migration, pfn)
        world.end(migration)
        counters = world.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["M5_HOLDS"],
            counters["REMOVALS_UNRECORDED"],
        ) == (1, 0, 0)
        assert not world.native.events()


class TestLocks:
    def test_locked_folios_hold(self) -> None:
        world = World()
        migrated(world)
        checks = judged(world).checks()
        assert (
            checks["M2", Verdict.HOLDS],
            checks["M3", Verdict.HOLDS],
            checks["M5", Verdict.HOLDS],
        ) == (2, 2, 2)

    def test_an_insertion_with_the_folio_unlocked(self) -> None:
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        world.start(77)
        world.call("first_walk", world.folio(pfn), mm.vma, ADDR)
        world.fire("set_migration_pte", ADDR, swap_entry(30, pfn), 0)
        world.call("first_walk_leave")
        court = Court(world)
        court.hear()
        checks = court.checks()
        assert (checks["M2", Verdict.HOLDS], checks["M2", Verdict.VIOLATED]) == (0, 1)
        (finding,) = findings(court, "M2")
        assert (
            finding.signature
            == "M2 violated try_to_migrate_one reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert finding.evidence == {
            "addr": hex(ADDR),
            "mm": hex(mm.at),
            "vma": hex(mm.vma),
            "folio": hex(world.folio(pfn)),
        }

    def test_a_visit_that_was_not_seen_accuses_nobody(self) -> None:
        """6.1 with preempt=full, hooked by kprobes: neither the end of one visit nor the beginning of the next was seen, and the folio of
        the first, not locked any more, is not that of the next entry."""
        world = World()
        mm = world.new_mm()
        seen, unseen = world.map_page(mm, ADDR), world.map_page(mm, ADDR + PAGE)
        world.start(77)
        world.lock(seen, True)
        world.call("first_walk", world.folio(seen), mm.vma, ADDR)
        world.fire("set_migration_pte", ADDR, swap_entry(30, seen), 0)
        world.lock(seen, False)
        world.lock(unseen, True)
        world.fire("set_migration_pte", ADDR + PAGE, swap_entry(30, unseen), 0)
        checks = judged(world).checks()
        assert (
            checks["M2", Verdict.HOLDS],
            checks["M2", Verdict.VIOLATED],
            checks["M2", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    @pytest.mark.parametrize("unlocked", ["source", "destination"])
    def test_a_removal_with_a_folio_unlocked(self, unlocked: str) -> None:
        world = World()
        mm = world.new_mm()
        world.lock(3 if unlocked == "source" else 2, True)
        world.start(77)
        world.visit(mm, ADDR, 2, 3)
        court = Court(world)
        court.hear()
        (finding,) = findings(court, "M3")
        assert finding.evidence["folio"] == hex(world.folio(2 if unlocked == "source" else 3))
        assert court.checks()["M3", Verdict.VIOLATED] == 1

    def test_violations_that_found_the_ring_full_are_counted(self) -> None:
        world = World()
        mm = world.new_mm()
        world.native.set("harness_ring_room", 0)
        world.visit(mm, ADDR, 2, 3)
        assert judged(world).checks()["M3", Verdict.VIOLATED] == 1


class TestM5:
    def test_what_a_ruling_needs(self) -> None:
        assert [rule(visited).verdict for visited in (True, False, None)] == [
            Verdict.HOLDS,
            Verdict.VIOLATED,
            Verdict.UNVERIFIABLE,
        ]

    def test_a_vma_that_the_second_walk_passes_over_is_named(self) -> None:
        world = World()
        mm = migrated(world, skip=1)
        court = judged(world)
        checks = court.checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
        ) == (1, 1, 1)
        (finding,) = findings(court, "M5")
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

    def test_a_vma_that_is_visited_and_not_restored_holds_and_m1_says_so(self) -> None:
        world = World()
        migrated(world, blind=1)
        court = judged(world)
        checks = court.checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
        ) == (1, 0, 2)
        (finding,) = findings(court, "M1")
        assert finding.summary.endswith("; the second walk visited it and did not restore it")

    def test_an_entry_that_was_moved_before_it_was_passed_over(self) -> None:
        world = World()
        migrated(world, skip=1, move=HUGE)
        (finding,) = findings(judged(world), "M5")
        assert f"at {ADDR + HUGE:#x}, which the first walk left at {ADDR:#x}" in finding.summary

    def test_an_entry_that_was_moved_before_it_was_visited(self) -> None:
        world = World()
        migrated(world, blind=1, move=HUGE)
        court = judged(world)
        assert not findings(court, "M5")
        assert findings(court, "M1")

    def test_an_entry_that_was_moved_to_where_its_page_was_visited(self) -> None:
        """One page twice in an mm: the mapping that was restored is zapped, the entry left behind moves to its place."""
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        world.map_page(mm, ADDR + HUGE, pfn)
        migration = world.start(77)
        world.unmap_folio(migration, pfn)
        world.remap_folio(migration, pfn, skip=1)
        world.zap(mm, ADDR)
        world.move(mm, ADDR + HUGE, ADDR)
        world.end(migration)
        checks = judged(world).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.HOLDS],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 1, 1)

    def test_an_entry_that_was_moved_visited_and_moved_back(self) -> None:
        world = World()
        mm, pfn, migration = moved(world)
        world.remap_folio(migration, pfn, blind=1)
        world.move(mm, ADDR + HUGE, ADDR)
        world.end(migration)
        checks = judged(world).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    def test_a_visit_that_aged_out_is_counted_in_its_row(self) -> None:
        """More visits than the map of visits holds: seen on 6.1, where compaction went on while the case was examined."""
        for blind, verdict in ((0, Verdict.VIOLATED), (1, Verdict.HOLDS)):
            world = World(VISIT_ROWS=4)
            migrated(world, skip=1 - blind, blind=blind)
            world.start(78)
            for n in range(9):
                world.visit(world.new_mm(), ADDR, 900 + n, 900 + n)
            assert [ruling.verdict for ruling in judged(world).second_walks.values()] == [verdict]

    def test_a_visit_elsewhere_that_may_have_aged_out_proves_nothing(self) -> None:
        world = World(VISIT_ROWS=4)
        migrated(world, skip=1, move=HUGE)
        world.start(78)
        for n in range(9):
            world.visit(world.new_mm(), ADDR, 900 + n, 900 + n)
        checks = judged(world).checks()
        assert (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        ) == (1, 0, 1)

    def test_a_visit_of_another_folio_elsewhere_proves_nothing(self) -> None:
        world = World()
        mm, pfn, migration = moved(world)
        world.remap_folio(migration, pfn, skip=1)
        world.lock(900, True)
        world.visit(mm, ADDR + HUGE, 900, 900)
        world.call("second_walk_leave")
        world.end(migration)
        assert judged(world).checks()["M5", Verdict.UNVERIFIABLE] == 1

    def test_a_visit_of_another_folio_at_that_address_is_not_the_rows(self) -> None:
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        migration = world.start(77)
        world.unmap_folio(migration, pfn)
        world.remap_folio(migration, pfn, skip=1)
        world.lock(900, True)
        world.visit(mm, ADDR, 900, 900)
        world.call("second_walk_leave")
        world.end(migration)
        assert judged(world).checks()["M5", Verdict.VIOLATED] == 1

    def test_a_huge_pmd_counts_its_visits(self) -> None:
        world = World()
        mm = world.new_mm()
        migration = world.start(77)
        entry = swap_entry(30, PFN)
        world.lock(PFN, True)
        world.call("first_walk", world.folio(PFN), mm.vma, THP)
        world.put(world.slot(mm, THP, level=2), entry)
        world.fire("set_migration_pmd", THP, entry)
        world.call("first_walk_leave")
        world.visit(mm, THP, PFN, PFN)
        world.call("second_walk_leave")
        world.lock(PFN, False)
        world.end(migration)
        checks = judged(world).checks()
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
        world = World()
        court = Court(world)
        world.tick(10**9)
        if when == "before":
            world.missed += 104
            court.tick()
            world.tick(10**9)
        if when == "during":
            world.missed += 104
        migrated(world, skip=1)
        if when == "after":
            court.tick()
            world.tick(10**9)
            world.missed += 104
        court.end()
        checks = court.checks()
        found = (
            checks["M1", Verdict.VIOLATED],
            checks["M5", Verdict.VIOLATED],
            checks["M5", Verdict.UNVERIFIABLE],
        )
        assert found == (1, violated, 1 - violated)

    def test_without_an_event_the_row_still_tells(self) -> None:
        world = World()
        world.native.set("harness_ring_room", 0)
        left_in(world)
        checks = judged(world).checks()
        assert (checks["M1", Verdict.VIOLATED], checks["M5", Verdict.VIOLATED]) == (1, 1)

    def test_without_hooks_nothing_is_said(self) -> None:
        world = World(hooks=False)
        left_in(world)
        court = Court(world, checked=("M1", "M4"))
        court.end()
        assert not any(
            count for (invariant, _), count in court.checks().items() if invariant == "M5"
        )


class TestThpSplit:
    """A PMD becomes 512 entries without a tracepoint."""

    def frozen(self, world: World, **how: bool) -> tuple[SimMigration, SimMm]:
        mm = world.new_mm()
        world.map_huge(mm, THP, PFN)
        for n in range(512):
            world.lock(PFN + n, True)
        split = world.start_split(88)
        world.freeze(split, mm, THP, PFN, **how)
        return split, mm

    def thaw(self, world: World, split: SimMigration, mm: SimMm, how: dict[int, str]) -> None:
        for n in range(512):
            if how.get(n) != "skipped":
                world.thaw(split, mm, THP + n * PAGE, PFN + n, how.get(n, "restored"))
        for n in range(512):
            world.lock(PFN + n, False)
        world.end_split(split)

    @pytest.mark.parametrize("levels", [4, 5])
    def test_a_split_balances(self, levels: int) -> None:
        world = World(levels)
        split, mm = self.frozen(world)
        counters = world.tables.counters.read()
        assert (counters["ENTRIES_RECORDED"], counters["PMDS_FROZEN"]) == (512, 1)
        assert len(world.tables.ledger.rows()) == 512
        self.thaw(world, split, mm, {5: "zeroed", 511: "zeroed"})
        counters = world.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["ENTRIES_REPLACED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (512, 2, 0)
        assert counters["SPLITS_ENDED"] == 1
        assert not world.tables.ledger.rows()
        assert not world.native.events()
        checks = judged(world).checks()
        assert (
            checks["M1", Verdict.HOLDS],
            checks["M2", Verdict.HOLDS],
            checks["M3", Verdict.HOLDS],
        ) == (512, 1, 512)
        assert checks["M5", Verdict.HOLDS] == 512

    def test_what_a_split_leaves_wakes_us_and_is_proven(self) -> None:
        world = World(VISIT_ROWS=2048)
        split, mm = self.frozen(world)
        self.thaw(world, split, mm, {3: "skipped", 64: "ignored", 511: "skipped"})
        (event,) = map(world.tables.events.decode, world.native.events())
        assert (event.kind, event.entries, event.reason) == ("MIGRATION_LEFT", 3, 1000)
        court = judged(world)
        court.read_events([])
        checks = court.checks()
        assert (checks["M1", Verdict.VIOLATED], checks["M1", Verdict.HOLDS]) == (3, 509)
        assert (checks["M5", Verdict.VIOLATED], checks["M5", Verdict.UNVERIFIABLE]) == (0, 2), (
            "its event was taken by this test"
        )
        assert court.proven() == {(mm.number, THP + n * PAGE) for n in (3, 64, 511)}
        assert not world.tables.ledger.rows()

    def test_a_page_that_a_split_passes_over_breaks_m5(self) -> None:
        world = World(VISIT_ROWS=2048)
        split, mm = self.frozen(world)
        self.thaw(world, split, mm, {3: "skipped", 64: "ignored"})
        court = judged(world)
        checks = court.checks()
        assert (checks["M5", Verdict.VIOLATED], checks["M5", Verdict.HOLDS]) == (1, 511)
        (finding,) = findings(court, "M5")
        assert finding.shape == "level=PTE reason=thp_split mode=MIGRATE_ASYNC"
        assert hex(THP + 3 * PAGE) in finding.summary

    def test_a_zapped_page_of_a_split_is_cleared_by_the_oracle(self) -> None:
        world = World()
        split, mm = self.frozen(world)
        world.put(world.slot(mm, THP + 7 * PAGE), 0)
        self.thaw(world, split, mm, {7: "ignored"})
        court = judged(world)
        assert court.open_cases.answers["cleared"] == 1
        assert court.checks()["M1", Verdict.HOLDS] == 512

    def test_a_page_of_a_split_that_mremap_moved_is_found_where_it_is(self) -> None:
        """Nothing is at its place when the second walk comes there: that proves nothing."""
        world = World()
        split, mm = self.frozen(world)
        world.put(world.slot(mm, THP + 7 * PAGE), 0)
        world.put(world.slot(mm, ADDR), swap_entry(30, PFN + 7))
        self.thaw(world, split, mm, {7: "ignored"})
        assert judged(world).proven() == {(mm.number, ADDR)}

    def test_a_page_mapped_by_ptes_is_replaced_in_silence_too(self) -> None:
        """A THP that was split into PTEs before is unmapped with a tracepoint for each; the zeropage replaces without."""
        world = World()
        mm = world.new_mm()
        split = world.start_split(88)
        world.lock(PFN, True)
        world.call("first_walk", world.folio(PFN), mm.vma, THP)
        world.put(world.slot(mm, THP), swap_entry(30, PFN))
        world.fire("set_migration_pte", THP, swap_entry(30, PFN), 9)
        world.call("first_walk_leave")
        world.thaw(split, mm, THP, PFN, "zeroed")
        world.end_split(split)
        counters = world.tables.counters.read()
        assert (counters["ENTRIES_REMOVED"], counters["ENTRIES_REPLACED"]) == (1, 1)
        assert not world.native.events()

    def test_a_copy_of_a_frozen_entry(self) -> None:
        world = World()
        split, mm = self.frozen(world)
        child = world.begin_fork(mm)
        for n in (1, 2):
            world.put(world.slot(child, THP + n * PAGE), swap_entry(MIGRATION_READ + 2, PFN + n))
        world.end_fork(mm, child)
        for n in range(512):
            world.thaw(split, mm, THP + n * PAGE, PFN + n, "zeroed" if n == 2 else "restored")
            if n == 1:
                world.thaw(split, child, THP + PAGE, PFN + 1)
        counters = world.tables.counters.read()
        assert (counters["ENTRIES_COPIED"], counters["ENTRIES_REMOVED"]) == (2, 513)
        (row,) = world.tables.ledger.rows()
        assert (row.addr, set(row.visited)) == (THP + 2 * PAGE, {child.at})

    def test_a_split_that_gives_up_freezing_books_nothing(self) -> None:
        world = World()
        self.frozen(world, gives_up=True)
        assert not world.tables.counters.read()["ENTRIES_RECORDED"]

    def test_a_split_that_fails_is_put_back_in_one_visit(self) -> None:
        world = World()
        split, mm = self.frozen(world)
        world.visit(mm, THP, PFN, PFN)
        for n in range(512):
            world.put(world.slot(mm, THP + n * PAGE), (PFN + n) << 12 | 0x67)
            world.fire("remove_migration_pte", THP + n * PAGE, 0, 0)
        world.call("second_walk_leave")
        world.end_split(split)
        counters = world.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"],
            counters["ENTRIES_REPLACED"],
            counters["REMOVALS_UNRECORDED"],
        ) == (512, 0, 0)
        assert not world.native.events()

    def test_a_split_inside_of_a_migration_is_judged_at_the_migrations_end(self) -> None:
        world = World()
        migration = world.start(88)
        split, mm = self.frozen(world)
        self.thaw(world, split, mm, {9: "skipped"})
        assert not world.native.events()
        world.end(migration)
        assert judged(world).proven() == {(mm.number, THP + 9 * PAGE)}

    def test_more_frozen_pmds_than_rows_are_lost_and_counted(self) -> None:
        world = World(FROZEN_ROWS=1)
        for _ in range(2):
            self.frozen(world)
        assert world.tables.counters.read()["LEDGER_LOST"] == 1

    def test_what_two_vmas_map_of_a_thp_is_not_frozen_twice(self) -> None:
        """Mapped by PTEs since it was split into two VMAs: the second visit finds the entries of the first (6.1: 512 false suspects)."""
        world = World()
        split, mm = self.frozen(world)
        world.call("first_walk", world.folio(PFN), mm.vma, THP + 3 * PAGE)
        world.call("freeze", mm.vma, 0, THP + 3 * PAGE, 1)
        world.call("freeze_leave", mm.vma, 0, THP + 3 * PAGE, 1)
        world.call("first_walk_leave")
        assert world.tables.counters.read()["PMDS_FROZEN"] == 1
        self.thaw(world, split, mm, {})
        assert not world.native.events()

    def test_a_child_that_was_frozen_itself_and_is_taken_for_a_copy_is_settled(self) -> None:
        world = World()
        split, mm = self.frozen(world)
        child = world.begin_fork(mm)
        world.map_huge(child, THP, PFN)
        world.freeze(split, child, THP, PFN)
        world.end_fork(mm, child)
        for each in (mm, child):
            for n in range(512):
                world.thaw(split, each, THP + n * PAGE, PFN + n)
        world.end_split(split)
        counters = world.tables.counters.read()
        assert (
            counters["ENTRIES_REMOVED"]
            == counters["ENTRIES_RECORDED"] + counters["ENTRIES_COPIED"]
            >= 1024
        )
        assert not world.tables.ledger.rows()
        assert not world.native.events()

    def test_a_split_frees_nothing_of_a_file(self) -> None:
        """The PMD of a file is zapped, not frozen."""
        world = World()
        mm = world.new_mm()
        split = world.start_split(88)
        world.slot(mm, THP, level=2)
        world.call("first_walk", world.folio(PFN), mm.vma, THP)
        world.call("freeze", mm.vma, 0, THP, 1)
        world.call("freeze_leave", mm.vma, 0, THP, 1)
        world.end_split(split)
        assert not world.tables.ledger.rows()


def test_an_entry_that_was_not_restored_and_one_that_was_passed_over_are_different_defects() -> (
    None
):
    found = {}
    for how in ("blind", "skip"):
        world = World()
        court = Court(world)
        migrated(world, **{how: 1})
        court.end()
        (found[how],) = findings(court, "M1")
    assert found["blind"].id != found["skip"].id
    assert found["blind"].signature.endswith("second_walk=came")
    assert found["skip"].signature.endswith("second_walk=passed_over")
    assert found["blind"].evidence["culprit"]["function"] == "remove_migration_pte"
    assert found["skip"].evidence["culprit"]["function"] == "remove_migration_ptes"


def test_the_row_knows_the_folio_that_the_second_walk_brought() -> None:
    world = World()
    mm = migrated(world, blind=1)
    rows = [row for row in world.tables.ledger.rows() if mm.at in row.visited]
    assert [row.visited[mm.at].to for row in rows] == [world.folio(world.next_pfn - 1)]


def test_repeats_of_one_kind_read_no_evidence() -> None:
    """Each event of M2 is counted; only the first one's signature is explained."""
    world = World()
    court, explained = Court(world), list[object]()
    unlocked = court._findings.unlocked

    def counting(event: Event, *, bare: bool = False) -> Finding:
        explained.extend([] if bare else [event])
        return unlocked(event, bare=bare)

    court._findings.unlocked = counting  # type: ignore[method-assign]
    mm = world.new_mm()
    migration = world.start(77)
    for n in range(40):
        pfn = world.map_page(mm, ADDR + n * 4096)
        world.become(77)
        world.call("first_walk", world.folio(pfn), mm.vma, ADDR + n * 4096)
        world.fire("set_migration_pte", ADDR + n * 4096, swap_entry(MIGRATION_WRITE, pfn), 0)
        world.call("first_walk_leave")
    court.hear()
    world.end(migration)
    (violation,) = [v for v in court.tally.violations.values() if v.first.invariant == "M2"]
    assert violation.count == 40
    assert len(explained) == 1
