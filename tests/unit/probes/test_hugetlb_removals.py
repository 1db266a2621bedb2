"""R3: the folios that remove_inode_hugepages() unmaps and removes, over real page tables."""

from __future__ import annotations

import ctypes

import pytest

from tests.support.model_kernel import HUGE, ModelKernel, SimMm, swap_entry
from tests.unit.invariants.test_folios import counted

HUGETLBFS_MAGIC = 0x958458F6
LOCKED, HEAD = 1 << 0, 1 << 6
AT = 5 << 30
PFN, OTHER = 512, 1024
TASK = 77
HOLDS, VIOLATED, UNVERIFIABLE = (1, 0, 0), (0, 1, 0), (0, 0, 1)


class Removals:
    """A task that takes huge pages of a hugetlbfs file, which mms map, out of the page cache."""

    def __init__(self, levels: int = 4) -> None:
        self.model = ModelKernel(levels)
        self.mms = [self.model.new_mm(), self.model.new_mm()]
        self._inode = ctypes.create_string_buffer(512)
        inode = ctypes.addressof(self._inode)
        super_block, self.mapping = inode + 160, inode + 176
        self.model.set_field("address_space.host", self.mapping, inode)
        self.model.set_field("inode.i_sb", inode, super_block)
        self.model.set_field("super_block.s_magic", super_block, HUGETLBFS_MAGIC)
        for pfn in (PFN, OTHER):
            self.lock(pfn, False)
            self.model.set_field("folio.mapping", self.model.folio(pfn), self.mapping)
            self.model.set_field("folio._large_mapcount", self.model.folio(pfn), 0xFFFFFFFF, 4)
            for tail in range(1, 4):
                self.model.set_field(
                    "page.compound_head", self.model.folio(pfn + tail), self.model.folio(pfn) + 1
                )
        for mm in self.mms:
            self.model.map_huge(mm, AT, PFN)
            self.model.map_huge(mm, AT + HUGE, OTHER)
        self.model.become(TASK)

    def lock(self, pfn: int, held: bool) -> None:
        self.model.set_field("folio.flags", self.model.folio(pfn), HEAD | held * LOCKED)

    def enter(self) -> None:
        self.model.fire("removal", 0, 0, 0)

    def leave(self) -> None:
        self.model.fire("removal_end", 0, 0, 0)

    def unmap(self, mm: SimMm | None = None, addr: int = AT) -> None:
        """Enter unmap_hugepage_range()."""
        self.model.fire("removal_unmaps", (mm or self.mms[0]).vma, addr, addr + HUGE, 0)

    def remove(self, pfn: int = PFN) -> None:
        """Take the folio out of the page cache, where it is locked and not mapped."""
        self.lock(pfn, True)
        self.model.fire("mm_filemap_delete_from_page_cache", self.model.folio(pfn))
        self.lock(pfn, False)

    def checks(self) -> tuple[int, int, int]:
        """Return the checks: holds, violated, unverifiable."""
        return counted(self.model, "R3")


def plus(*checks: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*checks, strict=True)))


@pytest.fixture(params=[4, 5])
def task(request: pytest.FixtureRequest) -> Removals:
    return Removals(request.param)


def test_folio_that_is_locked_before_it_is_unmapped_holds(task: Removals) -> None:
    task.enter()
    task.lock(PFN, True)
    task.unmap()
    task.unmap(task.mms[1])
    task.remove()
    assert task.checks() == (2, 0, 0), "one for the unmaps, one for the removal"
    assert not task.model.native.events()


def test_folio_that_is_unmapped_before_it_is_locked_is_violated(task: Removals) -> None:
    task.enter()
    task.unmap()
    assert task.checks() == (0, 0, 0), "it is judged when it leaves"
    task.remove()
    assert task.checks() == plus(HOLDS, VIOLATED)
    (event,) = map(task.model.tables.events.decode, task.model.native.events())
    assert (event.kind, event.hugetlb) == ("UNMAPPED_UNLOCKED", 1)
    assert (event.folio, event.mapping) == (task.model.folio(PFN), task.mapping)
    assert (event.mm, event.vma, event.addr) == (task.mms[0].at, task.mms[0].vma, AT)


def test_first_vma_that_it_is_unmapped_from_without_lock_is_named(task: Removals) -> None:
    task.enter()
    task.lock(PFN, True)
    task.unmap()
    task.lock(PFN, False)
    task.unmap(task.mms[1])
    task.lock(PFN, True)
    task.unmap()
    task.remove()
    assert task.checks() == plus(HOLDS, VIOLATED)
    (event,) = map(task.model.tables.events.decode, task.model.native.events())
    assert event.mm == task.mms[1].at


def test_each_folio_of_a_call_is_judged_by_itself(task: Removals) -> None:
    task.enter()
    task.lock(PFN, True)
    task.unmap()
    task.remove()
    task.unmap(addr=AT + HUGE)
    task.remove(OTHER)
    task.remove(PFN)
    assert task.checks() == plus(HOLDS, HOLDS, VIOLATED, HOLDS, HOLDS)


def test_range_that_is_unmapped_before_the_removals_needs_no_lock(task: Removals) -> None:
    """hugetlb_vmdelete_list(), on whichever side of a call's entry and return it is."""
    for _ in range(3):
        task.unmap()
        task.enter()
        task.remove()
        task.leave()
    assert task.checks() == (3, 0, 0)


def test_return_that_is_missed_accuses_no_later_call(task: Removals) -> None:
    task.enter()
    task.model.missing.add("removal_end")
    task.leave()
    task.unmap()
    task.enter()
    task.remove()
    assert task.model.missed == 1
    assert task.checks() == HOLDS


def test_removal_of_another_folio_than_was_unmapped_proves_nothing(task: Removals) -> None:
    task.enter()
    task.unmap()
    task.remove(OTHER)
    task.remove()
    assert task.checks() == plus(UNVERIFIABLE, HOLDS, HOLDS)


def test_another_task_is_not_inside(task: Removals) -> None:
    task.enter()
    task.model.become(TASK + 1)
    task.unmap()
    task.remove()
    assert task.checks() == HOLDS


def test_migration_entry_has_no_verdict_and_an_empty_one_is_no_unmap(task: Removals) -> None:
    task.enter()
    slot = task.model.slot(task.mms[0], AT, level=2)
    task.model.put(slot, swap_entry(30, PFN))
    task.unmap()
    task.remove()
    assert task.checks() == plus(UNVERIFIABLE, HOLDS)
    task.model.put(slot, 0)
    task.unmap()
    task.remove()
    assert task.checks() == plus(UNVERIFIABLE, HOLDS, HOLDS)


@pytest.mark.parametrize("lost", ["page_offset", "vmemmap"])
def test_without_calibration_there_is_no_verdict(lost: str) -> None:
    task = Removals()
    task.model.tables.params.set(**{lost: 0})
    task.enter()
    task.unmap()
    task.remove()
    assert task.checks() == plus(UNVERIFIABLE, HOLDS)


def test_gigantic_page_is_found_by_its_entry() -> None:
    task = Removals()
    slot = task.model.slot(task.mms[0], AT, level=3)
    task.model.put(slot, task.model.get(slot) & ~0x000FFFFFFFFFF000 | 0x80)
    task.model.set_field("folio.flags", task.model.folio(0), HEAD)
    task.model.set_field("folio._large_mapcount", task.model.folio(0), 0xFFFFFFFF, 4)
    task.enter()
    task.unmap()
    task.remove(0)
    assert task.checks() == plus(HOLDS, VIOLATED)


def test_closed_gate_counts_nothing_and_forgets_the_call() -> None:
    task = Removals()
    task.enter()
    task.model.tables.params.set(gate=0)
    task.unmap()
    task.leave()
    task.model.tables.params.set(gate=1)
    task.unmap()
    task.remove()
    assert task.checks() == HOLDS


def test_task_without_room_is_counted() -> None:
    task = Removals()
    for tid in range(100, 164):
        task.model.become(tid)
        task.enter()
    assert task.checks() == (0, 0, 0)
    task.model.become(99)
    task.enter()
    assert task.checks() == UNVERIFIABLE
