"""The folios of migration entries: M2, M3 and R1 by tracepoints alone, and R1 by the hooks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import HUGE, PAGE, USER_BITS, ModelKernel, SimMm, swap_entry
from tests.unit.checking.test_entry_checks import ADDR
from tests.unit.invariants.test_migration_walks import findings, migrated
from tracer.invariants.verdict import Verdict

HEAD, PROT_NONE, ACCESSED, PSE = 1 << 6, 1 << 8, 1 << 5, 1 << 7
DEVICE_WRITE = 24  # a swap type of device-private pages
BEYOND = 1 << 33  # no struct page is mapped there
LARGE = 1024
_U64 = (1 << 64) - 1


def counted(model: ModelKernel, invariant: str) -> tuple[int, int, int]:
    """Return the probes' counts: holds, violated, unverifiable."""
    found = model.tables.counters.read()
    names = [f"{invariant}_{verdict}" for verdict in ("HOLDS", "VIOLATED", "UNVERIFIABLE")]
    return found[names[0]], found[names[1]], found[names[2]]


def first_walks(model: ModelKernel) -> dict[str, int]:
    """Return what first walks left, without zeros."""
    found = model.tables.counters.read()
    return {
        name.removeprefix("FIRST_WALKS_").lower(): count
        for name, count in found.items()
        if name.startswith("FIRST_WALKS_") and count
    }


def large(model: ModelKernel, pfn: int, pages: int = 4, mapcount: int = -1) -> None:
    """Make a large folio of these page frames."""
    model.put(model.folio(pfn), model.get(model.folio(pfn)) | HEAD)
    for n in range(1, pages):
        model.put(model.folio(pfn + n) + 8, model.folio(pfn) + 1)
    model.set_field("folio._large_mapcount", model.folio(pfn), mapcount & 0xFFFFFFFF, 4)


def one_page(hooks: bool = False) -> tuple[ModelKernel, SimMm, int]:
    model = ModelKernel(hooks=hooks)
    mm = model.new_mm()
    return model, mm, model.map_page(mm, ADDR)


def violation(model: ModelKernel, invariant: str) -> tuple[str, str, Verdict]:
    """Return signature, summary and verdict of its only finding."""
    checker = CheckerRig(model)
    checker.wake_up()
    (finding,) = findings(checker, invariant)
    return finding.signature, finding.summary, finding.verdict


class TestOneCheckAnEntry:
    @pytest.mark.parametrize("hooks", [True, False])
    def test_healthy_migration_has_the_same_checks_with_hooks_and_without(
        self, hooks: bool
    ) -> None:
        model = ModelKernel(hooks=hooks)
        migrated(model)
        assert [counted(model, name) for name in ("M2", "M3", "R1")] == [(2, 0, 0)] * 3
        assert first_walks(model) == {"emptied": 1}
        assert not model.native.events()

    def test_visit_that_is_hooked_is_not_checked_again(self) -> None:
        """A hook came back, and the daemon has not yet noticed."""
        model = ModelKernel()
        model.tables.params.set_unhooked(("first_walk", "second_walk"))
        migrated(model)
        assert [counted(model, name) for name in ("M2", "M3", "R1")] == [(2, 0, 0)] * 3

    def test_nothing_is_checked_without_calibration(self) -> None:
        model = ModelKernel(hooks=False)
        model.tables.params.set_unhooked(())
        migrated(model)
        assert [counted(model, name) for name in ("M2", "M3", "R1")] == [(0, 0, 0)] * 3

    def test_entry_outside_of_a_migration_is_checked(self) -> None:
        """A THP split whose function cannot be hooked."""
        model, _, pfn = one_page()
        model.lock(pfn, True)
        model.fire("set_migration_pte", ADDR, swap_entry(30, pfn), 0)
        model.fire("remove_migration_pte", ADDR, pfn << 12 | USER_BITS, 0)
        assert [counted(model, name) for name in ("M2", "M3", "R1")] == [
            (1, 0, 0),
            (1, 0, 0),
            (0, 0, 0),
        ]


class TestInsertion:
    def test_page_of_our_own_that_nobody_has_locked(self) -> None:
        model, _, pfn = one_page()
        model.start(77)
        model.fire("set_migration_pte", ADDR, swap_entry(30, pfn), 0)
        assert counted(model, "M2") == (0, 1, 0)
        assert violation(model, "M2") == (
            "M2 violated try_to_migrate_one reason=MR_COMPACTION mode=MIGRATE_SYNC",
            f"a migration entry is inserted at {ADDR:#x} of an unknown mm,"
            f" and folio {model.folio(pfn):#x} is not locked",
            Verdict.VIOLATED,
        )

    def test_reason_outside_of_a_migration_is_unknown(self) -> None:
        model, _, pfn = one_page()
        model.fire("set_migration_pte", ADDR, swap_entry(30, pfn), 0)
        signature, _, _ = violation(model, "M2")
        assert signature == "M2 violated try_to_migrate_one reason=unknown mode=unknown"

    @pytest.mark.parametrize(("locked", "expected"), [(True, (1, 0, 0)), (False, (0, 1, 0))])
    def test_lock_of_a_tail_page_is_that_of_its_head(
        self, locked: bool, expected: tuple[int, int, int]
    ) -> None:
        model, _, _ = one_page()
        model.lock(LARGE, locked)
        model.lock(LARGE + 3, not locked)
        large(model, LARGE)
        model.fire("set_migration_pte", ADDR, swap_entry(30, LARGE + 3), 2)
        assert counted(model, "M2") == expected

    def test_head_by_mask(self) -> None:
        """From 7.1 on compound_info of a tail page is a mask."""
        model, _, _ = one_page()
        first = 1024  # the head is where the mask of a folio of four pages leads
        while model.folio(first) & (4 * 64 - 1):
            first += 1
        model.lock(first, True)
        for n in range(1, 4):
            model.put(model.folio(first + n) + 8, ~(4 * 64 - 1) & _U64 | 1)
        model.fire("set_migration_pte", ADDR, swap_entry(30, first + 2), 2)
        assert counted(model, "M2") == (1, 0, 0)

    def test_accessed_and_dirty_bits_are_no_part_of_the_pfn(self) -> None:
        model, _, pfn = one_page()
        model.lock(pfn, True)
        model.fire("set_migration_pte", ADDR, swap_entry(30, pfn, 3), 0)
        assert counted(model, "M2") == (1, 0, 0)

    def test_pmd(self) -> None:
        model, _, _ = one_page()
        model.lock(LARGE, True)
        model.fire("set_migration_pmd", ADDR & ~(HUGE - 1), swap_entry(30, LARGE))
        model.lock(LARGE, False)
        model.fire("set_migration_pmd", ADDR & ~(HUGE - 1), swap_entry(30, LARGE))
        assert counted(model, "M2") == (1, 1, 0)

    def test_page_without_struct_page_is_unverifiable(self) -> None:
        model, _, _ = one_page()
        model.fire("set_migration_pte", ADDR, swap_entry(30, BEYOND), 0)
        assert counted(model, "M2") == (0, 0, 1)
        assert not model.native.events()


def present(pfn: int) -> int:
    return pfn << 12 | USER_BITS


def prot_none(pfn: int) -> int:
    """Not present, with the bits of the pfn inverted (L1TF)."""
    return (~(pfn << 12) & 0x000FFFFFFFFFF000) | PROT_NONE | ACCESSED


def device_private(pfn: int) -> int:
    return swap_entry(DEVICE_WRITE, pfn)


class TestRemoval:
    @pytest.mark.parametrize("entry", [present, prot_none, device_private])
    @pytest.mark.parametrize(("locked", "expected"), [(True, (1, 0, 0)), (False, (0, 1, 0))])
    def test_new_entry_names_the_folio(
        self, entry: Callable[[int], int], locked: bool, expected: tuple[int, int, int]
    ) -> None:
        model, _, pfn = one_page()
        model.lock(pfn, locked)
        model.lock(pfn + 1, not locked)
        model.fire("remove_migration_pte", ADDR, entry(pfn), 0)
        assert counted(model, "M3") == expected

    @pytest.mark.parametrize("entry", [present, prot_none])
    @pytest.mark.parametrize(("locked", "expected"), [(True, (1, 0, 0)), (False, (0, 1, 0))])
    @pytest.mark.parametrize("hook", ["remove_migration_pmd", "remove_migration_pte"])
    def test_huge_page(
        self,
        hook: str,
        entry: Callable[[int], int],
        locked: bool,
        expected: tuple[int, int, int],
    ) -> None:
        """A THP by its PMD, and a hugetlb page, whose entry comes through the PTE's tracepoint."""
        model, _, _ = one_page()
        model.lock(LARGE, locked)
        large(model, LARGE, mapcount=0)
        model.fire(hook, ADDR & ~(HUGE - 1), entry(LARGE) | PSE, 9)
        assert counted(model, "M3") == expected

    def test_unlocked_destination_is_reported(self) -> None:
        model, _, pfn = one_page()
        model.start(77)
        model.fire("remove_migration_pte", ADDR, present(pfn), 0)
        signature, summary, _ = violation(model, "M3")
        assert (
            signature == "M3 violated remove_migration_pte reason=MR_COMPACTION mode=MIGRATE_SYNC"
        )
        assert f"visits {ADDR:#x} of an unknown mm, and folio {model.folio(pfn):#x}" in summary

    def test_page_without_struct_page_is_unverifiable(self) -> None:
        model, _, _ = one_page()
        model.fire("remove_migration_pte", ADDR, present(BEYOND), 0)
        assert counted(model, "M3") == (0, 0, 1)

    def test_violation_that_found_the_ring_full_is_counted(self) -> None:
        model, _, pfn = one_page()
        model.native.set("harness_ring_room", 0)
        model.fire("remove_migration_pte", ADDR, present(pfn), 0)
        checker = CheckerRig(model)
        checker.wake_up()
        assert checker.checks()["M3", Verdict.VIOLATED] == 1


class TestSource:
    @pytest.mark.parametrize(
        ("hooks", "verdict"), [(True, Verdict.VIOLATED), (False, Verdict.SUSPECT)]
    )
    def test_folio_that_is_moved_while_it_is_mapped(self, hooks: bool, verdict: Verdict) -> None:
        model, _, pfn = one_page(hooks)
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.count_mapping(pfn, 1)
        model.remap_folio(migration, pfn)
        signature, summary, found = violation(model, "R1")
        assert found is verdict
        assert signature.startswith(f"R1 {verdict} remove_migration_pte ")
        assert f"{model.folio(pfn):#x}" in summary
        assert counted(model, "R1") == ((0, 1, 0) if hooks else (0, 0, 0))
        assert first_walks(model) == ({"emptied": 1} if hooks else {"file": 1})

    @pytest.mark.parametrize("hooks", [True, False])
    def test_folio_that_is_put_back_is_legal(self, hooks: bool) -> None:
        """migrate_folio_unmap() found it mapped, as it may be pinned."""
        model, mm, pfn = one_page(hooks)
        model.count_mapping(pfn, 1)
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.visit(mm, ADDR, pfn, pfn)
        model.count_mapping(pfn, 1)
        model.fire("remove_migration_pte", ADDR, present(pfn), 0)
        model.call("second_walk_leave")
        assert counted(model, "R1") == (0, 0, 0)
        assert first_walks(model) == {"file": 1}
        assert not model.native.events()

    def test_emptied_folio_that_is_put_back_counts_as_emptied(self) -> None:
        """Its mapping is back when remove_migration_pte() fires the tracepoint."""
        model, _, pfn = one_page()
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.count_mapping(pfn, 1)
        model.fire("remove_migration_pte", ADDR, present(pfn), 0)
        assert first_walks(model) == {"emptied": 1}

    def test_source_that_is_not_locked_proves_nothing(self) -> None:
        model, _, pfn = one_page()
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.count_mapping(pfn, 1)
        model.lock(pfn, False)
        model.lock(pfn + 1, True)
        model.fire("remove_migration_pte", ADDR, present(pfn + 1), 0)
        assert counted(model, "R1") == (0, 0, 1)
        assert not model.native.events()

    def test_address_with_entries_of_two_pages_is_left_out(self) -> None:
        model = ModelKernel(hooks=False)
        pages = [model.map_page(model.new_mm(), ADDR) for _ in range(2)]
        migration = model.start(77)
        for pfn in pages:
            model.unmap_folio(migration, pfn)
        model.count_mapping(pages[1], 1)
        for pfn in pages:
            model.remap_folio(migration, pfn)
        assert counted(model, "R1") == (0, 0, 0)
        assert not model.native.events()

    def test_suspect_that_found_the_ring_full_is_unverifiable(self) -> None:
        model, _, pfn = one_page()
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.count_mapping(pfn, 1)
        model.native.set("harness_ring_room", 0)
        model.remap_folio(migration, pfn)
        assert counted(model, "R1") == (0, 0, 1)

    @pytest.mark.parametrize("mapcount", [-1, 0, 5])
    @pytest.mark.parametrize("hooks", [True, False])
    def test_large_folio_has_a_mapcount_of_its_own(self, hooks: bool, mapcount: int) -> None:
        model, mm, pfn = one_page(hooks)
        migration = model.start(77)
        model.lock(LARGE, True)
        model.lock(pfn, True)
        large(model, LARGE, mapcount=mapcount)
        model.fire("set_migration_pte", ADDR, swap_entry(30, LARGE + 1), 2)
        model.visit(mm, ADDR, LARGE, pfn)
        model.fire("remove_migration_pte", ADDR, present(pfn), 2)
        model.end(migration)
        holds = mapcount < 0
        assert counted(model, "R1") == (int(holds), int(hooks and not holds), 0)
        assert len(model.native.events()) == int(not holds)


class TestWhatFirstWalksLeave:
    @pytest.mark.parametrize("hooks", [True, False])
    @pytest.mark.parametrize(
        ("references", "mapping", "kind"),
        [(3, 1, "anon"), (3, 3, "ksm"), (3, 0, "file"), (1030, 1, "pinned")],
    )
    def test_by_kind(self, hooks: bool, references: int, mapping: int, kind: str) -> None:
        model, mm, pfn = one_page(hooks)
        other = model.map_page(mm, ADDR + PAGE)
        model.count_mapping(pfn, 1)
        model.set_page(pfn, references=references, mapping=mapping)
        migration = model.start(77)
        model.unmap_folio(migration, pfn)
        model.unmap_folio(migration, other)
        model.remap_folio(migration, other)
        assert first_walks(model) == {kind: 1, "emptied": 1}

    def test_pinned_large_folio_has_a_count_of_pins(self) -> None:
        model, mm, _ = one_page(hooks=True)
        model.start(77)
        large(model, LARGE, mapcount=0)
        model.set_field("folio._pincount", model.folio(LARGE), 1, 4)
        model.call("empty_folio", model.folio(LARGE), 0)
        model.call("first_walk", model.folio(LARGE), mm.vma, ADDR)
        model.call("first_walk_leave")
        model.call("empty_folio_leave", model.folio(LARGE), 0)
        assert first_walks(model) == {"pinned": 1}

    def test_walk_outside_of_a_migration_is_not_counted(self) -> None:
        model, _, pfn = one_page(hooks=True)
        model.call("empty_folio", model.folio(pfn), 0)
        model.call("empty_folio_leave", model.folio(pfn), 0)
        assert not first_walks(model)
