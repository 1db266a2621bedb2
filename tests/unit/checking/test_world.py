"""Single scenes in the model kernel: each legal course of events holds, each defect is proven, each loss is counted."""

from __future__ import annotations

import pytest

from tests.support.court import Court
from tests.support.native import LAYOUTS
from tests.support.world import MIGRATION_READ, PAGE, SimMm, World, swap_entry
from tracer.invariants.verdict import Verdict

ADDR = 0x7F0000000000


def judged(world: World, scan: bool = False) -> Court:
    court = Court(world, scan=scan)
    court.end()
    return court


def one_page(world: World) -> int:
    return world.map_page(world.new_mm(), ADDR)


def forked_in_between(world: World, skip: int) -> SimMm:
    """A migration whose entry a fork copies between the two walks; the second misses the last `skip`. Returns the child."""
    parent = world.new_mm()
    pfn = world.map_page(parent, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn, MIGRATION_READ)
    child = world.begin_fork(parent)
    world.copy_page(parent, child, ADDR)
    world.end_fork(parent, child)
    world.remap_folio(migration, pfn, skip)
    world.end(migration)
    return child


def nests(world: World, outer: SimMm, inner: SimMm) -> None:
    """The current task reads two mms at once."""
    for mm in (outer, inner):
        world.lock_mm(mm, write=False)
    for mm in (inner, outer):
        world.unlock_mm(mm, write=False)


def left_in(world: World) -> SimMm:
    """An mm in which a migration left its one entry behind."""
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn, skip=1)
    world.end(migration)
    return mm


@pytest.mark.parametrize("levels", [4, 5])
def test_a_clean_migration_holds(levels: int) -> None:
    world = World(levels)
    pfn = one_page(world)
    world.map_page(world.new_mm(), ADDR, pfn)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn)
    world.end(migration)
    assert not world.native.events()
    assert judged(world).checks()["M1", Verdict.HOLDS] == 2


@pytest.mark.parametrize("levels", [4, 5])
def test_an_entry_left_behind_wakes_us_and_is_proven(levels: int) -> None:
    world = World(levels)
    mm = left_in(world)
    (event,) = map(world.tables.events.decode, world.native.events())
    assert (event.kind, event.tid, event.entries, event.mode) == ("MIGRATION_LEFT", 77, 1, 2)
    court = judged(world)
    assert court.proven() == {(mm.number, ADDR)}
    assert court.checks()["M1", Verdict.VIOLATED] == 1


def test_a_zapped_entry_is_cleared() -> None:
    world = World()
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.zap(mm, ADDR)
    world.remap_folio(migration, pfn)
    world.end(migration)
    court = judged(world)
    assert court.checks()["M1", Verdict.HOLDS] == 1
    assert court.open_cases.answers["cleared"] == 1


def test_a_moved_entry_that_is_missed_is_found_at_its_new_address() -> None:
    world = World()
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.move(mm, ADDR, ADDR + 512 * PAGE)
    world.remap_folio(migration, pfn, skip=1)
    world.end(migration)
    assert judged(world).proven() == {(mm.number, ADDR + 512 * PAGE)}


def left_at(world: World, *places: tuple[SimMm, int]) -> None:
    """A migration leaves every entry of one page behind."""
    (mm, addr), *others = places
    pfn = world.map_page(mm, addr)
    for other, at in others:
        world.map_page(other, at, pfn)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn, skip=len(places))
    world.end(migration)


class TestEntriesOfOnePage:
    """Each gets its own proof and is counted once, wherever it is by then."""

    def named(self, world: World, court: Court, holds: int = 0) -> Court:
        """All that is left behind, nothing else, nothing twice."""
        truth = world.left_behind()
        court.end()
        assert court.proven() == truth
        assert court.tally.checks["M1", Verdict.VIOLATED] == len(truth)
        assert court.tally.checks["M1", Verdict.HOLDS] == holds
        assert all(one.row for one in court.judged), "none is without a migration that is to blame"
        return court

    def test_at_their_addresses_they_need_no_sweep(self) -> None:
        world = World()
        mm, other = world.new_mm(), world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE), (other, ADDR))
        assert self.named(world, Court(world, scan=False)).open_cases.sweeps == 0

    def test_one_is_moved(self) -> None:
        """The case of its address must not be closed by the proof of the other."""
        world = World()
        mm = world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE))
        world.move(mm, ADDR, ADDR + 512 * PAGE)
        assert self.named(world, Court(world, scan=False)).open_cases.sweeps == 1

    def test_all_are_moved_one_after_the_other_between_looks(self) -> None:
        """Found by hypothesis: both leave their addresses, one of them for an address where the other was."""
        world = World()
        mm = world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE))
        court = Court(world, scan=False)
        for addr, to in (
            (ADDR, ADDR + 2 * PAGE),
            (ADDR + PAGE, ADDR),
            (ADDR, ADDR + PAGE),
            (ADDR + PAGE, ADDR + 3 * PAGE),
        ):
            world.move(mm, addr, to)
            court.hear()
            world.tick(6_000_000)
        self.named(world, court)

    def test_one_is_moved_to_the_address_of_the_other(self) -> None:
        world = World()
        mm = world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE))
        world.move(mm, ADDR + PAGE, ADDR + 2 * PAGE)
        world.move(mm, ADDR, ADDR + PAGE)
        self.named(world, Court(world, scan=False))

    def test_one_of_two_mms_moved_it_from_the_address_they_shared(self) -> None:
        """One row with a count of two: one entry at its address is not all."""
        world = World()
        mm, other = world.new_mm(), world.new_mm()
        left_at(world, (mm, ADDR), (other, ADDR))
        world.move(other, ADDR, ADDR + PAGE)
        self.named(world, Court(world, scan=False))

    def test_one_is_a_copy_that_no_removal_told_of(self) -> None:
        """Copies are booked at removals: here the second walk missed the parent's entry too."""
        world = World()
        child = forked_in_between(world, skip=2)
        assert (child.number, ADDR) in self.named(world, Court(world, scan=False)).proven()

    @pytest.mark.parametrize("gone", [ADDR, ADDR + PAGE])
    def test_one_is_zapped(self, gone: int) -> None:
        """The case of its address must not be proven by the other, which was counted."""
        world = World()
        mm = world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE))
        world.zap(mm, gone)
        assert self.named(world, Court(world, scan=False), holds=1).open_cases.sweeps == 1

    def test_one_is_moved_after_a_patrol_saw_it_in_its_place(self) -> None:
        world = World()
        mm = world.new_mm()
        left_at(world, (mm, ADDR), (mm, ADDR + PAGE))
        court = Court(world)
        court.read_events(world.native.events())
        court.open_cases.scan(now=True)
        world.move(mm, ADDR, ADDR + 2 * PAGE)
        self.named(world, court)

    def test_with_a_sweep_that_is_not_complete_the_missing_one_is_unverifiable(self) -> None:
        world = World(UPPERS=4)
        mm, other = world.new_mm(), world.new_mm()
        for place in range(1, 6):
            world.map_page(other, ADDR + place * (1 << 30))
        left_at(world, (mm, ADDR), (other, ADDR))
        world.zap(other, ADDR)
        court = judged(world)
        assert court.proven() == {(mm.number, ADDR)}
        assert [court.tally.checks["M1", verdict] for verdict in Verdict] == [0, 1, 0, 1]


@pytest.mark.parametrize("told_by", ["both", "mmap_lock", "dup_mmap"])
def test_a_copy_made_by_fork_is_booked_and_its_removal_expected(told_by: str) -> None:
    world = World(4, told_by != "mmap_lock")
    world.mmap_lock = told_by != "dup_mmap"
    forked_in_between(world, skip=0)
    counters = world.tables.counters.read()
    assert counters["FORKS_SEEN"] == 1
    assert (
        counters["ENTRIES_RECORDED"],
        counters["ENTRIES_COPIED"],
        counters["ENTRIES_REMOVED"],
    ) == (1, 1, 2)
    assert judged(world).checks()["M1", Verdict.HOLDS] == 2


def test_a_copy_that_the_second_walk_misses_is_proven_without_a_patrol() -> None:
    world = World()
    child = forked_in_between(world, skip=1)
    assert judged(world, scan=False).proven() == {(child.number, ADDR)}


def test_the_patrol_finds_what_no_event_told_of() -> None:
    world = World()
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn)
    world.end(migration)
    world.put(
        world.slot(mm, ADDR), swap_entry(30, 44)
    )  # as a freezing THP split would, without a tracepoint
    mm.entries[ADDR] = 44
    mm.migrating.add(ADDR)
    assert not judged(world, scan=False).proven()
    assert judged(world, scan=True).proven() == {(mm.number, ADDR)}


def test_an_entry_that_is_proven_is_counted_once_however_often_it_is_found() -> None:
    """Seen on 6.1 with rmapd_faults: the last patrol found the five entries again that were proven a second before."""
    world = World()
    left_in(world)
    court = Court(world)
    for _ in range(6):
        court.hear()
        world.tick(10**9)
    for _ in range(3):
        court.open_cases.scan(now=True)
        for _ in range(6):
            court.work()
            world.tick(10**9)
    court.end()
    assert court.checks()["M1", Verdict.VIOLATED] == 1


def test_without_coverage_nobody_is_suspected() -> None:
    """Where the removal hook is refused (seen on 6.1), every entry looks left over: 10,292 false suspects in one run."""
    world = World()
    court = Court(world, checked=())
    left_in(world)
    court.look_for_late()
    court.end()
    assert not any(
        count for (invariant, _), count in court.checks().items() if invariant == "M4" and count
    )
    assert ("M1", Verdict.SUSPECT) not in court.checks()


def test_a_hugetlb_copy_is_booked() -> None:
    """Booked by set_migration_pte, found at the PMD level."""
    world = World()
    parent = world.new_mm()
    entry = swap_entry(MIGRATION_READ, 1024)
    migration = world.start(77)
    world.lock(1024, True)
    world.put(world.slot(parent, ADDR, level=2), entry)
    world.fire("set_migration_pte", ADDR, entry, 9)
    child = world.begin_fork(parent)
    world.put(world.slot(child, ADDR, level=2), entry)
    world.end_fork(parent, child)
    for mm in (parent, child):
        world.become(77)
        world.put(world.slot(mm, ADDR, level=2), 1536 << 12 | 0xE7)
        world.fire("remove_migration_pte", ADDR, 0, 9)
    world.end(migration)
    counters = world.tables.counters.read()
    assert (counters["ENTRIES_COPIED"], counters["REMOVALS_UNRECORDED"]) == (1, 0)
    assert not world.native.events()


def test_nested_migrations_of_one_task_are_judged_at_the_outer_end() -> None:
    world = World()
    mm = world.new_mm()
    pfn, other = world.map_page(mm, ADDR), world.map_page(mm, ADDR + PAGE)
    outer = world.start(77)
    world.unmap_folio(outer, pfn)
    inner = world.start(77)
    world.unmap_folio(inner, other)
    world.remap_folio(inner, other)
    world.end(inner)
    assert not world.native.events()
    world.remap_folio(outer, pfn)
    world.end(outer)
    assert not world.native.events()


def test_a_task_that_dies_inside_a_migration_is_told() -> None:
    world = World()
    migrator, victim = world.new_mm(), world.new_mm()
    pfn = world.map_page(victim, ADDR)
    migration = world.start(migrator.tgid)
    world.unmap_folio(migration, pfn)
    world.lock(pfn, False)
    world.exit(migrator)
    (event,) = map(world.tables.events.decode, world.native.events())
    assert (event.kind, event.entries) == ("MIGRATOR_DIED", 1)


@pytest.mark.parametrize("levels", [4, 5])
def test_pmd_entries(levels: int) -> None:
    """One THP clean, one left behind as a PMD entry, one whose PMD entry was split and then left behind in part."""
    world = World(levels)
    mm = world.new_mm()
    huge, size = [512, 1024, 1536], 512 * PAGE
    migration = world.start(77)
    for n, pfn in enumerate(huge):
        addr = ADDR + n * size
        entry = swap_entry(30, pfn)
        world.lock(pfn, True)
        world.put(world.slot(mm, addr, level=2), entry)
        world.fire("set_migration_pmd", addr, entry)
    world.put(world.slot(mm, ADDR, level=2), 700 << 12 | 0xE7)
    world.fire("remove_migration_pmd", ADDR, 0)
    split = ADDR + 2 * size
    world.put(world.slot(mm, split, level=2), 0)
    world.put(world.slot(mm, split + 5 * PAGE), swap_entry(30, huge[2] + 5))
    for pfn in huge:
        world.lock(pfn, False)
    world.end(migration)
    court = judged(world)
    assert court.proven() == {(mm.number, ADDR + size), (mm.number, split + 5 * PAGE)}
    assert court.checks()["M1", Verdict.HOLDS] == 1


def test_without_an_oracle_suspects_stay_suspects() -> None:
    world = World()
    left_in(world)
    court = Court(world, oracle=False)
    court.end()
    assert court.checks()["M1", Verdict.SUSPECT] == 1
    assert ("M1", Verdict.VIOLATED) not in court.checks()


def test_a_full_ledger_is_counted_and_unverifiable() -> None:
    world = World(LEDGER_ROWS=2)
    mm = world.new_mm()
    pfns = [world.map_page(mm, ADDR + n * PAGE) for n in range(6)]
    migration = world.start(77)
    for pfn in pfns:
        world.unmap_folio(migration, pfn)
    for pfn in pfns:
        world.remap_folio(migration, pfn)
    world.end(migration)
    checks = judged(world).checks()
    assert world.tables.counters.read()["LEDGER_LOST"] == 4
    assert (checks["M1", Verdict.UNVERIFIABLE], checks["M1", Verdict.HOLDS]) == (6, 0)


def test_a_full_ring_is_counted_and_the_timer_takes_over() -> None:
    world = World()
    mm = world.new_mm()
    pfn = world.map_page(mm, ADDR)
    world.native.set("harness_ring_room", 0)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn, skip=1)
    world.end(migration)
    assert world.tables.counters.read()["EVIDENCE_LOST"] == 1
    assert judged(world).proven() == {(mm.number, ADDR)}


def test_nothing_is_booked_while_the_gate_is_closed() -> None:
    world = World()
    pfn = one_page(world)
    world.tables.params.set(gate=0)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.end(migration)
    assert not any(world.tables.counters.read().values())


def test_a_late_removal_is_not_an_m4_hold() -> None:
    world = World()
    pfn = one_page(world)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.tick(11 * 10**9)
    world.remap_folio(migration, pfn)
    world.end(migration)
    counters = world.tables.counters.read()
    assert (counters["M4_HOLDS"], counters["M4_LATE"], counters["M1_HOLDS"]) == (0, 1, 1)


def test_entry_lifetimes_are_counted_in_powers_of_two() -> None:
    world = World()
    pfn = one_page(world)
    migration = world.start(77)
    world.unmap_folio(migration, pfn)
    world.tick(5000)
    world.remap_folio(migration, pfn)
    histogram = world.tables.histograms.read()["HIST_MIGRATION_ENTRY"]
    assert histogram.count == 1
    assert histogram.slots[(histogram.sum_ns).bit_length()] == 1


MMAP_LOCK, LCB_F_WRITE = 128, 4  # tests/support/btf_blob.py; include/trace/events/lock.h


def held(world: World) -> int:
    """How many mmap_locks the books say are held."""
    states = [
        LAYOUTS.structs["lock_state"].unpack(raw)
        for _, raw in world.native.maps["lock_states"].items()
    ]
    return sum(state.n for state in states)


def one_task() -> tuple[World, SimMm]:
    world = World()
    mm = world.new_mm()
    world.become(5)
    return world, mm


class TestMmapLock:
    def test_waits_and_holds(self) -> None:
        world, mm = one_task()
        world.lock_mm(mm)
        world.unlock_mm(mm)
        world.fire("mmap_lock_contended", mm.at + MMAP_LOCK, LCB_F_WRITE)
        world.tick(1 << 20)
        world.fire("mmap_lock_acquire_returned", mm.at, 1, 1)
        world.tick(1 << 25)
        world.unlock_mm(mm)
        wait, hold = (
            world.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"],
            world.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"],
        )
        assert (wait.slots[0], wait.slots[21]) == (7, 1), "who waited counts for itself"
        assert hold.count == 7, "the first of two is timed, for seven"
        assert not world.tables.histograms.read()["HIST_MMAP_HOLD_READ"].count
        assert not held(world)

    @pytest.mark.parametrize("lock", [MMAP_LOCK, MMAP_LOCK + 8])
    @pytest.mark.parametrize("flags", [LCB_F_WRITE, LCB_F_WRITE | 1])
    @pytest.mark.parametrize("killed", [False, True])
    def test_only_who_waited_for_this_lock_did(self, lock: int, flags: int, killed: bool) -> None:
        """Not for another rwsem, for a spinlock, or before a wait that was killed."""
        world, mm = one_task()
        world.lock_mm(mm)
        world.unlock_mm(mm)
        world.fire("mmap_lock_contended", mm.at + lock, flags)
        if killed:
            world.fire("mmap_lock_acquire_returned", mm.at, 1, 0)
        world.lock_mm(mm)
        waited = world.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"].count - 7
        assert waited == (lock == MMAP_LOCK and flags == LCB_F_WRITE and not killed)

    def test_a_downgrade_ends_the_write_hold(self) -> None:
        world, mm = one_task()
        for _ in range(7):
            world.lock_mm(mm)
            world.fire("mmap_lock_acquire_returned", mm.at, 0, 1)
            world.unlock_mm(mm, write=False)
        assert world.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"].count == 7
        assert world.tables.histograms.read()["HIST_MMAP_HOLD_READ"].count == 7
        assert not held(world)

    def test_one_hold_in_seven_is_timed_and_stands_for_all(self) -> None:
        world, mm = one_task()
        for _ in range(70):
            world.lock_mm(mm)
            world.tick(1 << 25)
            world.unlock_mm(mm)
        hold, wait = (
            world.tables.histograms.read()["HIST_MMAP_HOLD_WRITE"],
            world.tables.histograms.read()["HIST_MMAP_WAIT_WRITE"],
        )
        assert (hold.slots[26], hold.count, wait.slots[0]) == (70, 70, 70)
        assert hold.sum_ns / 70 == pytest.approx(1 << 25, rel=0.01)

    def test_a_release_that_was_missed_is_made_good_by_the_next_acquisition(self) -> None:
        world, mm = one_task()
        other = world.new_mm()
        world.lock_mm(other)
        for _ in range(9):
            world.lock_mm(mm)
        assert held(world) == 2
        world.unlock_mm(other)
        world.lock_mm(mm)
        assert held(world) == 1
        assert not world.tables.counters.read()["LOCKS_LOST"]
        world.unlock_mm(mm)
        assert not held(world)

    def test_a_failed_trylock_leaves_nothing(self) -> None:
        world, mm = one_task()
        world.fire("mmap_lock_acquire_returned", mm.at, 0, 0)
        assert not world.tables.histograms.read()["HIST_MMAP_WAIT_READ"].count
        assert not held(world)

    def test_a_release_from_before_the_gate_is_counted_only(self) -> None:
        world = World()
        mm = world.new_mm()
        world.unlock_mm(mm)
        assert world.tables.counters.read()["LOCKS_UNRECORDED"] == 1

    def test_fork_holds(self) -> None:
        world = World()
        parent = world.new_mm()
        child = world.begin_fork(parent)
        world.end_fork(parent, child)
        counters = world.tables.counters.read()
        assert (counters["NESTED_HOLDS"], counters["FORKS_SEEN"]) == (1, 1)
        assert not world.native.events()

    @pytest.mark.parametrize(("users", "stacks"), [(1, 0), (2, 1)])
    def test_only_an_mm_that_others_know_of_is_worth_a_stack(self, users: int, stacks: int) -> None:
        world = World()
        parent, child = world.new_mm(), world.new_mm()
        world._field("mm_struct.mm_users.counter", child.at, users, 4)
        for mm in (parent, child):
            world.lock_mm(mm)
        (row,) = (
            LAYOUTS.structs["order_row"].unpack(raw)
            for _, raw in world.native.maps["lock_order"].items()
        )
        assert (row.stack >= 0) == stacks

    def test_reversed_nesting_is_told_with_both_sides(self) -> None:
        world = World()
        one, two = world.new_mm(), world.new_mm()
        for tid, order in ((5, (one, two)), (6, (two, one))):
            world.become(tid)
            nests(world, *order)
        (event,) = map(world.tables.events.decode, world.native.events())
        assert (event.kind, event.tid, event.first_tid) == ("ORDER_REVERSED", 6, 5)
        assert (event.outer, event.inner) == (two.at, one.at)
        assert world.tables.counters.read()["NESTED_HOLDS"] == 1

    def test_only_a_nesting_that_a_missed_release_touches_is_doubted(self) -> None:
        """One run of mmap_lock_released is missed: a lock of one task looks held from then on. Orders that nest while it does are doubted,
        and a real reversal half a minute later, of locks that were taken after that, is a suspect."""
        world = World()
        court = Court(world, scan=False)
        one, two, three = world.new_mm(), world.new_mm(), world.new_mm()
        world.become(5)
        world.lock_mm(one, write=False)
        world.missing.add("mmap_lock_released")
        world.unlock_mm(one, write=False)
        world.tick(10**9)
        court.tick()
        world.lock_mm(two, write=False)
        world.unlock_mm(two, write=False)
        world.become(6)
        nests(world, two, one)
        court.hear()
        assert (
            court.checks()["L2", Verdict.UNVERIFIABLE],
            court.checks()["L2", Verdict.SUSPECT],
        ) == (1, 0)
        world.tick(30 * 10**9)
        court.tick()
        for tid, order in ((7, (two, three)), (8, (three, two))):
            world.become(tid)
            nests(world, *order)
        court.hear()
        assert (
            court.checks()["L2", Verdict.UNVERIFIABLE],
            court.checks()["L2", Verdict.SUSPECT],
        ) == (1, 1)

    def test_a_doubtful_first_nesting_is_made_good_by_the_last(self) -> None:
        """The order that a missed release made up is there for ever. Once it is really met, its reversal is a suspect."""
        world = World()
        court = Court(world, scan=False)
        one, two = world.new_mm(), world.new_mm()
        world.become(5)
        world.lock_mm(one, write=False)
        world.missing.add("mmap_lock_released")
        world.unlock_mm(one, write=False)
        world.lock_mm(two, write=False)
        world.unlock_mm(two, write=False)
        for _ in range(2):
            world.tick(10**9)
            court.tick()
        for tid, order in ((6, (one, two)), (7, (two, one))):
            world.become(tid)
            nests(world, *order)
        court.hear()
        assert (
            court.checks()["L2", Verdict.UNVERIFIABLE],
            court.checks()["L2", Verdict.SUSPECT],
        ) == (0, 1)

    def test_an_address_used_again_is_another_mm(self) -> None:
        """A forks B and dies; B's child gets A's address: no reversal, since ctx_id differs."""
        world = World()
        a = world.new_mm()
        b = world.begin_fork(a)
        world.end_fork(a, b)
        world.exit(a)
        child = world.begin_fork(b)
        world.unlock_mm(child)
        world.unlock_mm(b)
        found = world._offsets.resolve("mm_struct.context.ctx_id")
        assert found
        world._field("mm_struct.context.ctx_id", a.at, 99)
        world.become(b.tgid)
        world.lock_mm(b)
        world.lock_mm(a)  # the same address as the mm that was B's parent
        assert not world.native.events()

    def test_more_locks_than_we_can_hold_are_counted(self) -> None:
        world = World()
        world.become(5)
        for _ in range(5):
            world.lock_mm(world.new_mm(), write=False)
        assert world.tables.counters.read()["LOCKS_LOST"] == 1


class TestFindings:
    """What a developer is told."""

    def left(self, world: World) -> Court:
        left_in(world)
        return judged(world)

    def test_an_entry_left_behind(self) -> None:
        court = self.left(World(hooks=False))
        (violation,) = court.tally.violations.values()
        finding = violation.first
        assert (
            finding.signature
            == "M1 violated migrate_pages level=PTE reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert f"[1001] at {ADDR:#x}" in finding.summary
        (entry,) = finding.evidence["entries"]
        assert (entry["addr"], entry["locked"]) == (hex(ADDR), False)
        assert finding.task["pid"] == 77
        assert court.new_findings == [finding]

    def test_the_same_defect_twice_is_one_signature(self) -> None:
        world = World(hooks=False)
        court = Court(world)
        for tid in (5, 6):
            mm = world.new_mm()
            pfn = world.map_page(mm, ADDR + tid * PAGE)
            migration = world.start(tid)
            world.unmap_folio(migration, pfn)
            world.remap_folio(migration, pfn, skip=1)
            world.end(migration)
        court.end()
        (violation,) = court.tally.violations.values()
        assert violation.count == 2
        assert len(court.new_findings) == 1

    def test_found_by_the_patrol_alone(self) -> None:
        world = World(hooks=False)
        self.left(world)
        mm = world.mms[0]
        world.put(world.slot(mm, ADDR + PAGE), swap_entry(30, 44))
        (violation,) = judged(world, scan=True).tally.violations.values()
        assert violation.first.evidence["booked"] is False

    def test_reversed_locks_are_a_suspect_of_l2(self) -> None:
        world = World()
        court = Court(world)
        one, two = world.new_mm(), world.new_mm()
        for tid, (outer, inner) in ((5, (one, two)), (6, (two, one))):
            world.become(tid)
            world.lock_mm(outer)
            world.lock_mm(inner)
            world.unlock_mm(inner)
            world.unlock_mm(outer)
        court.hear()
        (violation,) = court.tally.violations.values()
        assert (violation.first.invariant, violation.first.verdict) == ("L2", Verdict.SUSPECT)
        assert "opposite order of task 5" in violation.first.summary


class TestTheTimer:
    """What no event told of is found by time."""

    def test_an_entry_past_its_welcome_with_its_page_locked_is_an_m4_suspect(self) -> None:
        world = World()
        pfn = one_page(world)
        world.unmap_folio(world.start(77), pfn)
        court = Court(world)
        world.tick(11 * 10**9)
        for _ in range(5):
            court.look_for_late()
            court.work()
            world.tick(3 * 10**9)
        assert court.checks()["M4", Verdict.SUSPECT] == 1
        assert ("M1", Verdict.SUSPECT) not in court.checks()

    def test_an_entry_past_its_welcome_with_its_page_unlocked_is_violated(self) -> None:
        world = World()
        pfn = one_page(world)
        world.unmap_folio(world.start(77), pfn)
        world.lock(pfn, False)
        court = Court(world)
        world.tick(11 * 10**9)
        for _ in range(5):
            court.look_for_late()
            court.work()
            world.tick(10**9)
        assert court.checks()["M4", Verdict.VIOLATED] == 1

    def test_an_event_that_comes_after_the_timer_tells_its_story_all_the_same(self) -> None:
        """A migration that ends while the ledger is read: seen in a guest, the violation had no stack."""
        world = World()
        court = Court(world)
        left_in(world)
        world.tick(2 * 10**9)
        court.look_for_late()
        court.hear()
        ((_, _, event),) = court.open_cases.cases.values()
        assert event
        assert event.kind == "MIGRATION_LEFT"

    def test_a_split_outside_of_migrate_pages_is_judged_after_a_second(self) -> None:
        """try_to_migrate() from a THP split: no start, no end; here its removal was one without a tracepoint (shared zeropage)."""
        world = World()
        mm = world.new_mm()
        pfn = world.map_page(mm, ADDR)
        world.become(88)
        entry = swap_entry(30, pfn, 1)
        world.lock(pfn, True)
        world.fire("set_migration_pte", ADDR, entry, 9)
        world.lock(pfn, False)
        court = Court(world)
        for _ in range(4):
            world.tick(10**9)
            court.look_for_late()
            court.work()
        checks = court.checks()
        assert (checks["M1", Verdict.HOLDS], court.entries.total()) == (1, 1)
