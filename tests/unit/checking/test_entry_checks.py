"""One course of events each in the model kernel.

A legal one holds, a defect is proven, a loss is counted.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import watched
from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import (
    MIGRATION_READ,
    PAGE,
    ModelKernel,
    SimMigration,
    SimMm,
    swap_entry,
)
from tests.support.native import LAYOUTS
from tracer.invariants.verdict import Verdict
from tracer.tables.counters import Counters

ADDR = 0x7F0000000000


def judged(model: ModelKernel, scan: bool = False) -> CheckerRig:
    checker = CheckerRig(model, scan=scan)
    checker.end()
    return checker


def one_page(model: ModelKernel) -> int:
    return model.map_page(model.new_mm(), ADDR)


def forked_in_between(model: ModelKernel, skip: int) -> SimMm:
    """A fork copies an entry between the two walks; the second misses the last `skip`.

    Returns the child.
    """
    parent = model.new_mm()
    pfn = model.map_page(parent, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn, MIGRATION_READ)
    child = model.begin_fork(parent)
    model.copy_page(parent, child, ADDR)
    model.end_fork(parent, child)
    model.remap_folio(migration, pfn, skip)
    model.end(migration)
    return child


def test_entry_whose_page_stays_locked_does_not_hold_beside_one_that_is_proven() -> None:
    """One row of two mms: each has a page of its own at this address."""
    model = ModelKernel()
    checker = CheckerRig(model)
    pfns = [model.map_page(model.new_mm(), ADDR) for _ in range(2)]
    migration = model.start(77)
    for pfn in pfns:
        model.unmap_folio(migration, pfn)
    for pfn in pfns:
        model.remap_folio(migration, pfn, skip=1)
    model.end(migration)
    model.lock(pfns[1], True)
    for _ in range(14):
        checker.wake_up()
        model.tick(10**9)
        checker.tick()
    checks = checker.checks()
    assert (checks["M1", Verdict.VIOLATED], checks["M1", Verdict.UNVERIFIABLE]) == (1, 1)
    assert checks["M1", Verdict.HOLDS] == 0


def nests(model: ModelKernel, outer: SimMm, inner: SimMm) -> None:
    """The current task reads two mms at once."""
    for mm in (outer, inner):
        model.lock_mm(mm, write=False)
    for mm in (inner, outer):
        model.unlock_mm(mm, write=False)


def left_in(model: ModelKernel) -> SimMm:
    """An mm in which a migration left its one entry behind."""
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn, skip=1)
    model.end(migration)
    return mm


@pytest.mark.parametrize("levels", [4, 5])
def test_a_clean_migration_holds(levels: int) -> None:
    model = ModelKernel(levels)
    pfn = one_page(model)
    model.map_page(model.new_mm(), ADDR, pfn)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn)
    model.end(migration)
    assert not model.native.events()
    assert judged(model).checks()["M1", Verdict.HOLDS] == 2


@pytest.mark.parametrize("levels", [4, 5])
def test_entry_left_behind_sends_an_event_and_is_proven(levels: int) -> None:
    model = ModelKernel(levels)
    mm = left_in(model)
    (event,) = map(model.tables.events.decode, model.native.events())
    assert (event.kind, event.tid, event.entries, event.mode) == ("MIGRATION_LEFT", 77, 1, 2)
    checker = judged(model)
    assert checker.proven() == {(mm.number, ADDR)}
    assert checker.checks()["M1", Verdict.VIOLATED] == 1


def test_a_zapped_entry_is_cleared() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.zap(mm, ADDR)
    model.remap_folio(migration, pfn)
    model.end(migration)
    checker = judged(model)
    assert checker.checks()["M1", Verdict.HOLDS] == 1
    assert checker.open_cases.answers["cleared"] == 1


def test_a_moved_entry_that_is_missed_is_found_at_its_new_address() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.move(mm, ADDR, ADDR + 512 * PAGE)
    model.remap_folio(migration, pfn, skip=1)
    model.end(migration)
    assert judged(model).proven() == {(mm.number, ADDR + 512 * PAGE)}


def left_at(model: ModelKernel, *places: tuple[SimMm, int]) -> None:
    """A migration leaves every entry of one page behind."""
    (mm, addr), *others = places
    pfn = model.map_page(mm, addr)
    for other, at in others:
        model.map_page(other, at, pfn)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn, skip=len(places))
    model.end(migration)


class TestEntriesOfOnePage:
    """Each gets its own proof and is counted once, wherever it is by then."""

    def named(self, model: ModelKernel, checker: CheckerRig, holds: int = 0) -> CheckerRig:
        """All that is left behind, nothing else, nothing twice."""
        truth = model.left_behind()
        checker.end()
        assert checker.proven() == truth
        assert checker.tally.checks["M1", Verdict.VIOLATED] == len(truth)
        assert checker.tally.checks["M1", Verdict.HOLDS] == holds
        assert all(one.row for one in checker.decided), (
            "none is without a migration that is to blame"
        )
        return checker

    def test_at_their_addresses_they_need_no_sweep(self) -> None:
        model = ModelKernel()
        mm, other = model.new_mm(), model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE), (other, ADDR))
        assert self.named(model, CheckerRig(model, scan=False)).open_cases.sweeps == 0

    def test_one_is_moved(self) -> None:
        """The case of its address must not be closed by the proof of the other."""
        model = ModelKernel()
        mm = model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE))
        model.move(mm, ADDR, ADDR + 512 * PAGE)
        assert self.named(model, CheckerRig(model, scan=False)).open_cases.sweeps == 1

    def test_all_are_moved_one_after_the_other_between_looks(self) -> None:
        """Found by hypothesis: both leave their addresses, one of them for an address where the
        other was."""
        model = ModelKernel()
        mm = model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE))
        checker = CheckerRig(model, scan=False)
        for addr, to in (
            (ADDR, ADDR + 2 * PAGE),
            (ADDR + PAGE, ADDR),
            (ADDR, ADDR + PAGE),
            (ADDR + PAGE, ADDR + 3 * PAGE),
        ):
            model.move(mm, addr, to)
            checker.wake_up()
            model.tick(6_000_000)
        self.named(model, checker)

    def test_one_is_moved_to_the_address_of_the_other(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE))
        model.move(mm, ADDR + PAGE, ADDR + 2 * PAGE)
        model.move(mm, ADDR, ADDR + PAGE)
        self.named(model, CheckerRig(model, scan=False))

    def test_one_of_two_mms_moved_it_from_the_address_they_shared(self) -> None:
        """One row with a count of two: one entry at its address is not all."""
        model = ModelKernel()
        mm, other = model.new_mm(), model.new_mm()
        left_at(model, (mm, ADDR), (other, ADDR))
        model.move(other, ADDR, ADDR + PAGE)
        self.named(model, CheckerRig(model, scan=False))

    def test_one_is_a_copy_that_no_removal_revealed(self) -> None:
        """Copies are recorded at removals: here the second walk missed the parent's entry too."""
        model = ModelKernel()
        child = forked_in_between(model, skip=2)
        assert (child.number, ADDR) in self.named(model, CheckerRig(model, scan=False)).proven()

    @pytest.mark.parametrize("gone", [ADDR, ADDR + PAGE])
    def test_one_is_zapped(self, gone: int) -> None:
        """The case of its address must not be proven by the other, which was counted."""
        model = ModelKernel()
        mm = model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE))
        model.zap(mm, gone)
        assert self.named(model, CheckerRig(model, scan=False), holds=1).open_cases.sweeps == 1

    def test_one_is_moved_after_a_scan_met_it_at_its_address(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        left_at(model, (mm, ADDR), (mm, ADDR + PAGE))
        checker = CheckerRig(model)
        checker.read_events(model.native.events())
        checker.open_cases.scan(now=True)
        model.move(mm, ADDR, ADDR + 2 * PAGE)
        self.named(model, checker)

    def test_with_a_sweep_that_is_not_complete_the_missing_one_is_unverifiable(self) -> None:
        model = ModelKernel(UPPERS=4)
        mm, other = model.new_mm(), model.new_mm()
        for place in range(1, 6):
            model.map_page(other, ADDR + place * (1 << 30))
        left_at(model, (mm, ADDR), (other, ADDR))
        model.zap(other, ADDR)
        checker = judged(model)
        assert checker.proven() == {(mm.number, ADDR)}
        assert [checker.tally.checks["M1", verdict] for verdict in Verdict] == [0, 1, 0, 1]


def too_old_in(model: ModelKernel, looks: int, moved: bool) -> tuple[CheckerRig, SimMigration]:
    """An entry that is left behind in a migration that still runs, after M4's age limit.

    looks: of M4's case; it takes three to prove the entry.
    """
    mm = model.new_mm()
    migration = model.start(77)
    pfn = model.map_page(mm, ADDR)
    model.unmap_folio(migration, pfn)
    if moved:
        model.move(mm, ADDR, ADDR + 512 * PAGE)
    model.remap_folio(migration, pfn, skip=1)
    checker = CheckerRig(model, scan=False)
    model.tick(11 * 10**9)
    checker.tick()
    for _ in range(looks):
        model.tick(6_000_000)
        checker.work()
    assert checker.tally.checks["M4", Verdict.VIOLATED] == (looks >= 3)
    return checker, migration


@pytest.mark.parametrize("looks", [0, 1, 4])
def test_an_entry_that_m4_knows_is_not_hidden_from_m1(looks: int) -> None:
    """Found by hypothesis: mremap() moves the entry of one page, and the same migration inserts one
    of another page at its old address. M1's case of that row names the other page, and M4 alone
    knew the first entry."""
    model = ModelKernel()
    checker, migration = too_old_in(model, looks, moved=True)
    (mm,) = model.mms
    other = model.map_page(mm, ADDR)
    model.unmap_folio(migration, other)
    model.remap_folio(migration, other)
    model.end(migration)
    checker.end()
    assert model.left_behind() == {(mm.number, ADDR + 512 * PAGE)}
    assert checker.accused == [model.names[mm.number, ADDR + 512 * PAGE]]


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("looks", [1, 4])
def test_an_entry_that_m4_knows_waits_for_m1s_case_of_its_row(looks: int, moved: bool) -> None:
    """A case that a sweep opens has no row: no migration to blame, and the row would hold."""
    model = ModelKernel()
    checker, migration = too_old_in(model, looks, moved)
    checker.open_cases.scan_ns = 10**9
    checker.open_cases.scan(now=True)
    checker.work()
    assert not checker.accused
    model.end(migration)
    checker.end()
    accusing = [one for one in checker.decided if one.case.invariant == "M1"]
    assert [(one.entries, one.row is not None) for one in accusing] == [(1, True)]
    assert checker.tally.checks["M1", Verdict.VIOLATED] == len(checker.accused) == 1


@pytest.mark.parametrize("told_by", ["both", "mmap_lock", "dup_mmap"])
def test_copy_made_by_fork_is_recorded_and_its_removal_expected(told_by: str) -> None:
    model = ModelKernel(4, told_by != "mmap_lock")
    model.mmap_lock = told_by != "dup_mmap"
    forked_in_between(model, skip=0)
    counters = model.tables.counters.read()
    assert counters["FORKS_SEEN"] == 1
    assert (
        counters["ENTRIES_RECORDED"],
        counters["ENTRIES_COPIED"],
        counters["ENTRIES_REMOVED"],
    ) == (1, 1, 2)
    assert judged(model).checks()["M1", Verdict.HOLDS] == 2


def test_copy_that_the_second_walk_misses_is_proven_without_a_scan() -> None:
    model = ModelKernel()
    child = forked_in_between(model, skip=1)
    assert judged(model, scan=False).proven() == {(child.number, ADDR)}


def test_scan_finds_entry_without_an_event() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn)
    model.end(migration)
    model.put(
        model.slot(mm, ADDR), swap_entry(30, 44)
    )  # as a freezing THP split would, without a tracepoint
    mm.entries[ADDR] = 44
    mm.migrating.add(ADDR)
    assert not judged(model, scan=False).proven()
    assert judged(model, scan=True).proven() == {(mm.number, ADDR)}


def test_an_entry_that_is_proven_is_counted_once_however_often_it_is_found() -> None:
    """Seen on 6.1 with rmapd_faults: the last scan found the five entries again that were proven
    a second before."""
    model = ModelKernel()
    left_in(model)
    checker = CheckerRig(model)
    for _ in range(6):
        checker.wake_up()
        model.tick(10**9)
    for _ in range(3):
        checker.open_cases.scan(now=True)
        for _ in range(6):
            checker.work()
            model.tick(10**9)
    checker.end()
    assert checker.checks()["M1", Verdict.VIOLATED] == 1


def test_without_coverage_no_entry_is_suspected() -> None:
    """Where the removal hook is refused (seen on 6.1), every entry looks left over: 10,292 false
    suspects in one run."""
    model = ModelKernel()
    checker = CheckerRig(model, covered=())
    left_in(model)
    checker.tick()
    checker.end()
    assert not any(
        count for (invariant, _), count in checker.checks().items() if invariant == "M4" and count
    )
    assert ("M1", Verdict.SUSPECT) not in checker.checks()


def test_entry_left_after_coverage_was_lost_opens_no_case() -> None:
    model = ModelKernel()
    checker = CheckerRig(model)
    checker.hooks.covered = frozenset({"M5"})
    checker.tick()
    left_in(model)
    checker.wake_up()
    assert not checker.open_cases.cases


class CountedReads(Counters):
    """Counts how often the counters are read."""

    reads = 0

    def read(self) -> dict[str, int]:
        self.reads += 1
        return super().read()


def test_tick_reads_the_counters_before_the_ledger_and_once_after_it() -> None:
    model = ModelKernel()
    counters = CountedReads(model.native.maps, LAYOUTS)
    model.tables = replace(model.tables, counters=counters)
    checker = CheckerRig(model)
    checker.tick()
    assert counters.reads == 2


def test_hugetlb_copy_is_recorded() -> None:
    """Recorded by set_migration_pte, found at the PMD level."""
    model = ModelKernel()
    parent = model.new_mm()
    entry = swap_entry(MIGRATION_READ, 1024)
    migration = model.start(77)
    model.lock(1024, True)
    model.put(model.slot(parent, ADDR, level=2), entry)
    model.fire("set_migration_pte", ADDR, entry, 9)
    child = model.begin_fork(parent)
    model.put(model.slot(child, ADDR, level=2), entry)
    model.end_fork(parent, child)
    for mm in (parent, child):
        model.become(77)
        model.put(model.slot(mm, ADDR, level=2), 1536 << 12 | 0xE7)
        model.fire("remove_migration_pte", ADDR, 0, 9)
    model.end(migration)
    counters = model.tables.counters.read()
    assert (counters["ENTRIES_COPIED"], counters["REMOVALS_UNRECORDED"]) == (1, 0)
    assert not model.native.events()


def test_nested_migrations_of_one_task_are_judged_at_the_outer_end() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    pfn, other = model.map_page(mm, ADDR), model.map_page(mm, ADDR + PAGE)
    outer = model.start(77)
    model.unmap_folio(outer, pfn)
    inner = model.start(77)
    model.unmap_folio(inner, other)
    model.remap_folio(inner, other)
    model.end(inner)
    assert not model.native.events()
    model.remap_folio(outer, pfn)
    model.end(outer)
    assert not model.native.events()


def test_task_that_dies_inside_a_migration_sends_an_event() -> None:
    model = ModelKernel()
    migrator, victim = model.new_mm(), model.new_mm()
    pfn = model.map_page(victim, ADDR)
    migration = model.start(migrator.tgid)
    model.unmap_folio(migration, pfn)
    model.lock(pfn, False)
    model.exit(migrator)
    (event,) = map(model.tables.events.decode, model.native.events())
    assert (event.kind, event.entries) == ("MIGRATOR_DIED", 1)


@pytest.mark.parametrize("levels", [4, 5])
def test_pmd_entries_are_removed_proven_and_split(levels: int) -> None:
    """One THP clean, one left behind as a PMD entry, one whose PMD entry was split and then left
    behind in part."""
    model = ModelKernel(levels)
    mm = model.new_mm()
    huge, size = [512, 1024, 1536], 512 * PAGE
    migration = model.start(77)
    for n, pfn in enumerate(huge):
        addr = ADDR + n * size
        entry = swap_entry(30, pfn)
        model.lock(pfn, True)
        model.put(model.slot(mm, addr, level=2), entry)
        model.fire("set_migration_pmd", addr, entry)
    model.put(model.slot(mm, ADDR, level=2), 700 << 12 | 0xE7)
    model.fire("remove_migration_pmd", ADDR, 0)
    split = ADDR + 2 * size
    model.put(model.slot(mm, split, level=2), 0)
    model.put(model.slot(mm, split + 5 * PAGE), swap_entry(30, huge[2] + 5))
    for pfn in huge:
        model.lock(pfn, False)
    model.end(migration)
    checker = judged(model)
    assert checker.proven() == {(mm.number, ADDR + size), (mm.number, split + 5 * PAGE)}
    assert checker.checks()["M1", Verdict.HOLDS] == 1


def test_without_an_oracle_suspects_stay_suspects() -> None:
    model = ModelKernel()
    left_in(model)
    checker = CheckerRig(model, oracle=False)
    checker.end()
    assert checker.checks()["M1", Verdict.SUSPECT] == 1
    assert ("M1", Verdict.VIOLATED) not in checker.checks()


def test_a_full_ledger_is_counted_and_unverifiable() -> None:
    model = ModelKernel(LEDGER_ROWS=2)
    mm = model.new_mm()
    pfns = [model.map_page(mm, ADDR + n * PAGE) for n in range(6)]
    migration = model.start(77)
    for pfn in pfns:
        model.unmap_folio(migration, pfn)
    for pfn in pfns:
        model.remap_folio(migration, pfn)
    model.end(migration)
    checks = judged(model).checks()
    assert model.tables.counters.read()["LEDGER_LOST"] == 4
    assert (checks["M1", Verdict.UNVERIFIABLE], checks["M1", Verdict.HOLDS]) == (6, 0)


def test_a_full_ring_is_counted_and_the_timer_takes_over() -> None:
    model = ModelKernel()
    mm = model.new_mm()
    pfn = model.map_page(mm, ADDR)
    model.native.set("harness_ring_room", 0)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.remap_folio(migration, pfn, skip=1)
    model.end(migration)
    assert model.tables.counters.read()["EVIDENCE_LOST"] == 1
    assert judged(model).proven() == {(mm.number, ADDR)}


def test_nothing_is_recorded_while_the_gate_is_closed() -> None:
    model = ModelKernel()
    pfn = one_page(model)
    model.tables.params.set(gate=0)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.end(migration)
    assert not any(model.tables.counters.read().values())


def migrate_late(model: ModelKernel) -> None:
    """Migrate a page whose entry is removed a second after the age limit."""
    pfn = one_page(model)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.tick(11 * 10**9)
    model.remap_folio(migration, pfn)
    model.end(migration)


def test_a_late_removal_is_not_an_m4_hold() -> None:
    model = ModelKernel()
    migrate_late(model)
    counters = model.tables.counters.read()
    assert (counters["M4_HOLDS"], counters["M4_LATE"], counters["M1_HOLDS"]) == (0, 1, 1)


def test_late_removal_that_only_a_counter_shows_has_a_finding() -> None:
    """Seen on 6.16.12: M4 suspect x67 and no line that said why."""
    model = ModelKernel()
    checker = CheckerRig(model)
    for _ in range(2):
        migrate_late(model)
    checker.tick()
    assert checker.checks()["M4", Verdict.SUSPECT] == 2
    (violation,) = checker.tally.violations.values()
    assert (violation.count, violation.first.signature) == (
        2,
        "M4 suspect remove_migration_ptes removed after the age limit",
    )
    assert violation.first.summary == (
        "2 migration entries were removed more than 10 s after being inserted"
    )
    assert violation.first.evidence["entries"] == 2
    assert "Their addresses are not known" in violation.first.evidence["trail_note"]


def test_late_removal_while_the_checker_did_not_run_is_unverifiable() -> None:
    """A host that stops a guest for 11 s makes all entries 11 s older."""
    model = ModelKernel()
    checker = CheckerRig(model)
    checker.stalls.look(model.now)
    migrate_late(model)
    checker.stalls.look(model.now)
    checker.tick()
    assert checker.checks()["M4", Verdict.UNVERIFIABLE] == 1
    assert checker.tally.violations == {}


def test_nothing_is_kept_of_an_old_entry_that_is_gone_while_another_stays() -> None:
    model = ModelKernel()
    checker, _migration = too_old_in(model, looks=4, moved=False)
    for number in range(2):
        mm, migration = model.new_mm(), model.start(78)
        pfn = model.map_page(mm, ADDR)
        model.unmap_folio(migration, pfn)
        model.remap_folio(migration, pfn, skip=1)
        model.tick(11 * 10**9)
        checker.tick()
        for _ in range(4):
            model.tick(10**9)
            checker.work()
        assert checker.tally.checks["M4", Verdict.VIOLATED] == number + 2
        model.zap(mm, ADDR)
        model.end(migration)
        checker.read_events(model.native.events())
        for _ in range(4):
            model.tick(10**9)
            checker.work()
            checker.tick()
    kept = watched.held(checker, least=2)
    assert not [path for path in kept if path.startswith("._entry_checks._too_old")]


def test_entry_is_not_too_old_by_time_in_which_the_checker_did_not_run() -> None:
    model = ModelKernel()
    checker = CheckerRig(model)
    pfn = one_page(model)
    checker.stalls.look(model.now)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.tick(60 * 10**9)
    checker.stalls.look(model.now)
    checker.tick()
    assert checker.cases.cases == {}
    model.tick(11 * 10**9)
    checker.tick()
    assert [case.invariant for case, _, _ in checker.cases.cases.values()] == ["M4"]
    model.remap_folio(migration, pfn)
    model.end(migration)


def test_entry_lifetimes_are_counted_in_powers_of_two() -> None:
    model = ModelKernel()
    pfn = one_page(model)
    migration = model.start(77)
    model.unmap_folio(migration, pfn)
    model.tick(5000)
    model.remap_folio(migration, pfn)
    histogram = model.tables.histograms.read()["HIST_MIGRATION_ENTRY"]
    assert histogram.count == 1
    assert histogram.slots[(histogram.sum_ns).bit_length()] == 1


MMAP_LOCK, LCB_F_READ, LCB_F_WRITE = 128, 2, 4  # btf_blob.py; include/trace/events/lock.h
PF_RANDOMIZE, PF_MEMALLOC = 0x400000, 0x800  # include/linux/sched.h


def held(model: ModelKernel) -> int:
    """How many mmap_locks are held according to the lock states."""
    states = [
        LAYOUTS.structs["lock_state"].unpack(raw)
        for _, raw in model.native.maps["lock_states"].items()
    ]
    return sum(state.n for state in states)


def one_task() -> tuple[ModelKernel, SimMm]:
    model = ModelKernel()
    mm = model.new_mm()
    model.become(5)
    return model, mm


class TestMmapLock:
    def test_mmap_lock_waits_and_holds_are_counted(self) -> None:
        model, mm = one_task()
        model.lock_mm(mm)
        model.unlock_mm(mm)
        model.fire("mmap_lock_contended", mm.at + MMAP_LOCK, LCB_F_WRITE)
        model.tick(1 << 20)
        model.fire("mmap_lock_acquire_returned", mm.at, 1, 1)
        model.tick(1 << 25)
        model.unlock_mm(mm)
        wait, hold = (
            model.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"],
            model.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"],
        )
        assert (wait.slots[0], wait.slots[21]) == (7, 1), "who waited counts for itself"
        assert hold.count == 7, "the first of two is timed, for seven"
        assert not model.tables.histograms.read()["HIST_MMAP_HOLD_READ"].count
        assert not held(model)

    @pytest.mark.parametrize("lock", [MMAP_LOCK, MMAP_LOCK + 8])
    @pytest.mark.parametrize("flags", [LCB_F_WRITE, LCB_F_WRITE | 1])
    @pytest.mark.parametrize("killed", [False, True])
    def test_wait_for_another_lock_is_not_counted(
        self, lock: int, flags: int, killed: bool
    ) -> None:
        """Not for another rwsem, for a spinlock, or before a wait that was killed."""
        model, mm = one_task()
        model.lock_mm(mm)
        model.unlock_mm(mm)
        model.fire("mmap_lock_contended", mm.at + lock, flags)
        if killed:
            model.fire("mmap_lock_acquire_returned", mm.at, 1, 0)
        model.lock_mm(mm)
        waited = model.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"].count - 7
        assert waited == (lock == MMAP_LOCK and flags == LCB_F_WRITE and not killed)

    def test_a_downgrade_ends_the_write_hold(self) -> None:
        model, mm = one_task()
        for _ in range(7):
            model.lock_mm(mm)
            model.fire("mmap_lock_acquire_returned", mm.at, 0, 1)
            model.unlock_mm(mm, write=False)
        assert model.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"].count == 7
        assert model.tables.histograms.read()["HIST_MMAP_HOLD_READ"].count == 7
        assert not held(model)

    def test_one_hold_in_seven_is_timed_and_stands_for_all(self) -> None:
        model, mm = one_task()
        for _ in range(70):
            model.lock_mm(mm)
            model.tick(1 << 25)
            model.unlock_mm(mm)
        hold, wait = (
            model.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"],
            model.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"],
        )
        assert (hold.slots[26], hold.count, wait.slots[0]) == (70, 70, 70)
        assert hold.sum_ns / 70 == pytest.approx(1 << 25, rel=0.01)

    def test_a_release_that_was_missed_is_made_good_by_the_next_acquisition(self) -> None:
        model, mm = one_task()
        other = model.new_mm()
        model.lock_mm(other)
        for _ in range(9):
            model.lock_mm(mm)
        assert held(model) == 2
        model.unlock_mm(other)
        model.lock_mm(mm)
        assert held(model) == 1
        assert not model.tables.counters.read()["LOCKS_LOST"]
        model.unlock_mm(mm)
        assert not held(model)

    def test_failed_trylock_leaves_no_state(self) -> None:
        model, mm = one_task()
        model.fire("mmap_lock_acquire_returned", mm.at, 0, 0)
        assert not model.tables.histograms.read()["HIST_MMAP_WAIT_READ"].count
        assert not held(model)

    def test_a_release_from_before_the_gate_is_counted_only(self) -> None:
        model = ModelKernel()
        mm = model.new_mm()
        model.unlock_mm(mm)
        assert model.tables.counters.read()["LOCKS_UNRECORDED"] == 1

    def test_fork_holds(self) -> None:
        model = ModelKernel()
        parent = model.new_mm()
        child = model.begin_fork(parent)
        model.end_fork(parent, child)
        counters = model.tables.counters.read()
        assert (counters["NESTED_HOLDS"], counters["FORKS_SEEN"]) == (1, 1)
        assert not model.native.events()

    @pytest.mark.parametrize(("users", "stacks"), [(1, 0), (2, 1)])
    def test_stack_is_taken_only_for_an_mm_with_several_users(
        self, users: int, stacks: int
    ) -> None:
        model = ModelKernel()
        parent, child = model.new_mm(), model.new_mm()
        model.set_field("mm_struct.mm_users.counter", child.at, users, 4)
        for mm in (parent, child):
            model.lock_mm(mm)
        (row,) = (
            LAYOUTS.structs["order_row"].unpack(raw)
            for _, raw in model.native.maps["lock_order"].items()
        )
        assert (row.stack >= 0) == stacks

    def test_reversed_nesting_sends_an_event_with_both_sides(self) -> None:
        model = ModelKernel()
        one, two = model.new_mm(), model.new_mm()
        for tid, order in ((5, (one, two)), (6, (two, one))):
            model.become(tid)
            nests(model, *order)
        (event,) = map(model.tables.events.decode, model.native.events())
        assert (event.kind, event.tid, event.first_tid) == ("ORDER_REVERSED", 6, 5)
        assert (event.outer, event.inner) == (two.at, one.at)
        assert model.tables.counters.read()["NESTED_HOLDS"] == 1

    @pytest.mark.parametrize("waited", [False, True])
    def test_nesting_in_reclaim_is_an_order_only_where_the_task_waited(self, waited: bool) -> None:
        """Two page faults that end in reclaim: try_to_inc_max_seq() walks the mms of others under
        mmap_read_trylock() (6.12.95, stress-ng's mremap stressor in a memory cgroup)."""
        model = ModelKernel()
        one, two = model.new_mm(), model.new_mm()
        task = model.tasks[one.tgid][0]
        model.native.set("harness_task", task)
        model.set_field("task_struct.flags", task, PF_MEMALLOC | PF_RANDOMIZE, 4)
        for tid, (outer, inner) in ((5, (one, two)), (6, (two, one))):
            model.become(tid)
            model.lock_mm(outer, write=False)
            if waited:
                model.fire("mmap_lock_contended", inner.at + MMAP_LOCK, LCB_F_READ)
            model.lock_mm(inner, write=False)
            model.unlock_mm(inner, write=False)
            model.unlock_mm(outer, write=False)
        assert len(model.native.events()) == waited
        assert len(list(model.native.maps["lock_order"].items())) == 2 * waited

    def test_lock_that_was_released_while_task_storage_was_busy_is_in_no_order(self) -> None:
        """As on 6.1.0-57-rt: 4,618 suspects in ten minutes of faults and forks."""
        model = ModelKernel()
        one, two, three = model.new_mm(), model.new_mm(), model.new_mm()
        for tid, (outer, inner) in ((5, (one, two)), (6, (two, one))):
            model.become(tid)
            model.lock_mm(outer, write=False)
            model.native.set("harness_storage_busy", 1)
            model.unlock_mm(outer, write=False)
            model.native.set("harness_storage_busy", 0)
            model.lock_mm(inner, write=False)
            assert held(model) == 1
            model.unlock_mm(inner, write=False)
        counters = model.tables.counters.read()
        assert not model.native.events()
        assert (counters["NESTED_HOLDS"], counters["LOCKS_LOST"]) == (0, 2)
        model.tick(10**8)
        for tid, order in ((5, (two, three)), (6, (three, two))):
            model.become(tid)
            nests(model, *order)
        assert len(model.native.events()) == 1, "what is taken afterwards is in an order"

    def test_fork_is_seen_in_the_jiffy_of_a_release_that_was_not(self) -> None:
        """As when the gate opens: a task that has no storage yet releases a lock, and forks."""
        model = ModelKernel()
        parent = model.new_mm()
        model.unlock_mm(parent)
        model.end_fork(parent, model.begin_fork(parent))
        assert model.tables.counters.read()["FORKS_SEEN"] == 1

    def test_only_a_nesting_that_a_missed_release_touches_is_doubted(self) -> None:
        """One run of mmap_lock_released is missed: a lock of one task looks held from then on.

        Orders that nest while it does are doubted, and a real reversal half a minute later, of
        locks that were taken after that, is a suspect.
        """
        model = ModelKernel()
        checker = CheckerRig(model, scan=False)
        one, two, three = model.new_mm(), model.new_mm(), model.new_mm()
        model.become(5)
        model.lock_mm(one, write=False)
        model.missing.add("mmap_lock_released")
        model.unlock_mm(one, write=False)
        model.tick(10**9)
        checker.tick()
        model.lock_mm(two, write=False)
        model.unlock_mm(two, write=False)
        model.become(6)
        nests(model, two, one)
        checker.wake_up()
        assert (
            checker.checks()["L2", Verdict.UNVERIFIABLE],
            checker.checks()["L2", Verdict.SUSPECT],
        ) == (1, 0)
        model.tick(30 * 10**9)
        checker.tick()
        for tid, order in ((7, (two, three)), (8, (three, two))):
            model.become(tid)
            nests(model, *order)
        checker.wake_up()
        assert (
            checker.checks()["L2", Verdict.UNVERIFIABLE],
            checker.checks()["L2", Verdict.SUSPECT],
        ) == (1, 1)

    def test_a_doubtful_first_nesting_is_made_good_by_the_last(self) -> None:
        """The order that a missed release made up is there for ever.

        Once it is really met, its reversal is a suspect.
        """
        model = ModelKernel()
        checker = CheckerRig(model, scan=False)
        one, two = model.new_mm(), model.new_mm()
        model.become(5)
        model.lock_mm(one, write=False)
        model.missing.add("mmap_lock_released")
        model.unlock_mm(one, write=False)
        model.lock_mm(two, write=False)
        model.unlock_mm(two, write=False)
        for _ in range(2):
            model.tick(10**9)
            checker.tick()
        for tid, order in ((6, (one, two)), (7, (two, one))):
            model.become(tid)
            nests(model, *order)
        checker.wake_up()
        assert (
            checker.checks()["L2", Verdict.UNVERIFIABLE],
            checker.checks()["L2", Verdict.SUSPECT],
        ) == (0, 1)

    def test_an_address_used_again_is_another_mm(self) -> None:
        """A forks B and dies; B's child gets A's address: no reversal, since ctx_id differs."""
        model = ModelKernel()
        a = model.new_mm()
        b = model.begin_fork(a)
        model.end_fork(a, b)
        model.exit(a)
        child = model.begin_fork(b)
        model.unlock_mm(child)
        model.unlock_mm(b)
        model.set_field("mm_struct.context.ctx_id", a.at, 99)
        model.become(b.tgid)
        model.lock_mm(b)
        model.lock_mm(a)  # the same address as the mm that was B's parent
        assert not model.native.events()

    def test_more_locks_than_a_lock_state_holds_are_counted(self) -> None:
        model = ModelKernel()
        model.become(5)
        for _ in range(5):
            model.lock_mm(model.new_mm(), write=False)
        assert model.tables.counters.read()["LOCKS_LOST"] == 1


class TestFindings:
    """What a developer is told."""

    def left(self, model: ModelKernel) -> CheckerRig:
        left_in(model)
        return judged(model)

    def test_an_entry_left_behind(self) -> None:
        checker = self.left(ModelKernel(hooks=False))
        (violation,) = checker.tally.violations.values()
        finding = violation.first
        assert (
            finding.signature
            == "M1 violated migrate_pages level=PTE reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert f"[1001] at {ADDR:#x}" in finding.summary
        (entry,) = finding.evidence["entries"]
        assert (entry["addr"], entry["locked"]) == (hex(ADDR), False)
        assert finding.task["pid"] == 77
        assert checker.take_new_findings() == [finding]

    def test_the_same_defect_twice_is_one_signature(self) -> None:
        model = ModelKernel(hooks=False)
        checker = CheckerRig(model)
        for tid in (5, 6):
            mm = model.new_mm()
            pfn = model.map_page(mm, ADDR + tid * PAGE)
            migration = model.start(tid)
            model.unmap_folio(migration, pfn)
            model.remap_folio(migration, pfn, skip=1)
            model.end(migration)
        checker.end()
        (violation,) = checker.tally.violations.values()
        assert violation.count == 2
        assert len(checker.take_new_findings()) == 1
        assert not checker.new_findings

    def test_entry_that_only_a_scan_finds_has_no_row(self) -> None:
        model = ModelKernel(hooks=False)
        self.left(model)
        mm = model.mms[0]
        model.put(model.slot(mm, ADDR + PAGE), swap_entry(30, 44))
        (violation,) = judged(model, scan=True).tally.violations.values()
        assert violation.first.evidence["recorded"] is False

    def test_reversed_locks_are_a_suspect_of_l2(self) -> None:
        model = ModelKernel()
        checker = CheckerRig(model)
        one, two = model.new_mm(), model.new_mm()
        for tid, (outer, inner) in ((5, (one, two)), (6, (two, one))):
            model.become(tid)
            model.lock_mm(outer)
            model.lock_mm(inner)
            model.unlock_mm(inner)
            model.unlock_mm(outer)
        checker.wake_up()
        (violation,) = checker.tally.violations.values()
        assert (violation.first.invariant, violation.first.verdict) == ("L2", Verdict.SUSPECT)
        assert "opposite order of task 5" in violation.first.summary


class TestTheTimer:
    """Entries without an event are found by time."""

    def test_entry_past_its_age_limit_with_its_page_locked_is_an_m4_suspect(self) -> None:
        model = ModelKernel()
        pfn = one_page(model)
        model.unmap_folio(model.start(77), pfn)
        checker = CheckerRig(model)
        model.tick(11 * 10**9)
        for _ in range(5):
            checker.tick()
            checker.work()
            model.tick(3 * 10**9)
        assert checker.checks()["M4", Verdict.SUSPECT] == 1
        assert ("M1", Verdict.SUSPECT) not in checker.checks()

    def test_entry_past_its_age_limit_with_its_page_unlocked_is_violated(self) -> None:
        model = ModelKernel()
        pfn = one_page(model)
        model.unmap_folio(model.start(77), pfn)
        model.lock(pfn, False)
        checker = CheckerRig(model)
        model.tick(11 * 10**9)
        for _ in range(5):
            checker.tick()
            checker.work()
            model.tick(10**9)
        assert checker.checks()["M4", Verdict.VIOLATED] == 1

    def test_event_that_arrives_after_the_tick_opened_the_case_is_its_evidence(self) -> None:
        """A migration that ends while the ledger is read: seen in a guest, the violation had no
        stack."""
        model = ModelKernel()
        checker = CheckerRig(model)
        left_in(model)
        model.tick(2 * 10**9)
        checker.tick()
        checker.wake_up()
        ((_, _, event),) = checker.open_cases.cases.values()
        assert event
        assert event.kind == "MIGRATION_LEFT"

    def test_a_split_outside_of_migrate_pages_is_judged_after_a_second(self) -> None:
        """try_to_migrate() from a THP split: no start, no end; here its removal was one without a
        tracepoint (shared zeropage)."""
        model = ModelKernel()
        mm = model.new_mm()
        pfn = model.map_page(mm, ADDR)
        model.become(88)
        entry = swap_entry(30, pfn, 1)
        model.lock(pfn, True)
        model.fire("set_migration_pte", ADDR, entry, 9)
        model.lock(pfn, False)
        checker = CheckerRig(model)
        for _ in range(4):
            model.tick(10**9)
            checker.tick()
            checker.work()
        checks = checker.checks()
        assert (checks["M1", Verdict.HOLDS], checker.entries.total()) == (1, 1)
