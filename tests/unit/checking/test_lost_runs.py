"""The kernel leaves out runs of a program (lazy preemption; seen on 7.3: 241 entries that looked as if they had lived for minutes).

Golden traces: what happened, what was not seen of it, and the verdict that is honest about that.
"""

from __future__ import annotations

import pytest

from tests.support.court import Court
from tests.support.world import SimMigration, SimMm, World
from tests.unit.checking.test_world import ADDR
from tracer.invariants.verdict import Verdict

MINUTES = 200 * 10**9
KCOMPACTD = 77


def begun(world: World) -> tuple[SimMm, SimMigration]:
    return world.new_mm(), world.start(KCOMPACTD)


def moved(world: World, mm: SimMm, migration: SimMigration, *, seen: bool = True) -> None:
    """A page at ADDR is migrated within microseconds. seen: its removal."""
    if ADDR not in mm.entries:
        world.map_page(mm, ADDR)
    pfn = mm.entries[ADDR]
    world.unmap_folio(migration, pfn)
    world.remap_folio(migration, pfn, seen=seen)


def passes(court: Court, *, missed: bool = False) -> None:
    """A second, in which the kernel may leave out a run."""
    court.world.tick(10**9)
    court.world.missed += missed
    court.tick()


def m4(world: World) -> tuple[int, int, int]:
    counters = world.tables.counters.read()
    return counters["M4_HOLDS"], counters["M4_AGE_UNKNOWN"], counters["M4_LATE"]


class TestAnOldEntryAndAYoungOne:
    """A removal was missed, its row stayed, and minutes later the same page was migrated again."""

    def test_the_age_is_of_the_young_one(self) -> None:
        world = World()
        mm, migration = begun(world)
        moved(world, mm, migration, seen=False)
        world.tick(MINUTES)
        moved(world, mm, migration)
        assert m4(world) == (1, 0, 0)

    def test_in_rows_of_no_mm_it_cannot_be_told(self) -> None:
        world = World(hooks=False)
        mm, migration = begun(world)
        moved(world, mm, migration, seen=False)
        world.tick(MINUTES)
        moved(world, mm, migration)
        assert m4(world) == (0, 1, 0)
        assert Court(world).checks()["M4", Verdict.UNVERIFIABLE] == 1

    @pytest.mark.parametrize("hooks", [True, False])
    def test_an_entry_that_lives_for_minutes_is_late_all_the_same(self, hooks: bool) -> None:
        world = World(hooks=hooks)
        mm, migration = begun(world)
        pfn = world.map_page(mm, ADDR)
        world.unmap_folio(migration, pfn)
        world.tick(MINUTES)
        world.remap_folio(migration, pfn)
        assert m4(world) == (0, 0, 1)
        assert Court(world).checks()["M4", Verdict.SUSPECT] == 1

    @pytest.mark.parametrize(
        ("missed_after_s", "verdict"),
        [(-5, Verdict.SUSPECT), (5, Verdict.UNVERIFIABLE), (200, Verdict.UNVERIFIABLE)],
    )
    def test_only_a_late_removal_whose_life_a_missed_run_touches_is_doubted(
        self, missed_after_s: int, verdict: Verdict
    ) -> None:
        """missed_after_s: seconds from the insertion to the missed run; the daemon looks once a second."""
        world = World()
        court = Court(world)
        mm, migration = begun(world)
        pfn = world.map_page(mm, ADDR)
        for second in range(-10, 0):
            passes(court, missed=second == missed_after_s)
        world.unmap_folio(migration, pfn)
        for second in range(1, 200):
            passes(court, missed=second == missed_after_s)
        world.missed += missed_after_s == 200
        world.remap_folio(migration, pfn)
        passes(court)
        checked = court.checks()
        assert checked["M4", verdict] == 1
        assert checked["M4", Verdict.SUSPECT] + checked["M4", Verdict.UNVERIFIABLE] == 1

    def test_what_was_counted_before_a_run_was_missed_stays_counted(self) -> None:
        """It was counted anew at each scrape: three suspects became none, and a counter fell."""
        world = World()
        court = Court(world)
        mm, migration = begun(world)
        pfn = world.map_page(mm, ADDR)
        world.unmap_folio(migration, pfn)
        world.tick(MINUTES)
        world.remap_folio(migration, pfn)
        passes(court)
        before = court.checks()
        passes(court, missed=True)
        assert court.checks()["M4", Verdict.SUSPECT] == before["M4", Verdict.SUSPECT] == 1


def test_coverage_says_for_ten_seconds_that_a_run_was_missed() -> None:
    court = Court(World())
    passes(court)
    assert court.doubts() == {}
    passes(court, missed=True)
    assert court.doubts().keys() == {"M4", "M5", "L2"}
    for _ in range(9):
        passes(court)
        assert court.doubts()
    passes(court)
    assert court.doubts() == {}


class TestAnEndThatWasMissed:
    def test_the_next_migration_ends_it_and_what_it_left_is_judged(self) -> None:
        world = World()
        mm, first = begun(world)
        moved(world, mm, first, seen=False)
        world.end(first, seen=False)
        world.tick(MINUTES)
        second = world.start(KCOMPACTD)
        moved(world, mm, second)
        world.end(second)
        counters = world.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (1, 1)
        assert m4(world) == (1, 0, 0)
        court = Court(world)
        court.end()
        assert court.checks()["M1", Verdict.HOLDS] == 2
        assert not court.tally.violations

    def test_what_such_a_migration_really_left_is_found_when_the_next_begins(self) -> None:
        world = World()
        mm, first = begun(world)
        pfn = world.map_page(mm, ADDR)
        world.unmap_folio(first, pfn)
        world.remap_folio(first, pfn, skip=1)
        world.end(first, seen=False)
        world.start(KCOMPACTD)
        court = Court(world, scan=False)
        court.end()
        assert court.checks()["M1", Verdict.VIOLATED] == 1

    def test_a_nested_end_that_was_missed_is_made_good_by_the_next_beginning(self) -> None:
        world = World()
        _, outer = begun(world)
        inner = world.start(KCOMPACTD)
        world.end(inner, seen=False)
        world.end(outer)
        last = world.start(KCOMPACTD)
        world.end(last)
        counters = world.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (1, 1)

    def test_a_split_inside_of_a_migration_is_inside_wherever_its_probe_lies(self) -> None:
        """A kprobe's registers and a tracepoint's arguments lie at different depths below their functions."""
        world = World()
        _, migration = begun(world)
        world.inside[KCOMPACTD] = 0
        split = world.start_split(KCOMPACTD)
        world.end_split(split)
        world.inside[KCOMPACTD] = 1
        world.end(migration)
        counters = world.tables.counters.read()
        assert (counters["MIGRATIONS_UNENDED"], counters["MIGRATIONS_ENDED"]) == (0, 1)

    def test_at_the_end_of_a_run_it_is_unverifiable(self) -> None:
        world = World()
        mm, migration = begun(world)
        moved(world, mm, migration, seen=False)
        world.end(migration, seen=False)
        court = Court(world)
        court.end()
        checked = court.checks()
        assert (
            checked["M1", Verdict.HOLDS],
            checked["M1", Verdict.UNVERIFIABLE],
            checked["M4", Verdict.UNVERIFIABLE],
        ) == (0, 1, 1)
