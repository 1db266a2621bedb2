"""V7: what move_page_tables() meets at its destination, over real page tables."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.checker_rig import CheckerRig
from tests.support.model_kernel import HUGE, PAGE, USER_BITS, ModelKernel, SimMm, swap_entry
from tests.unit.invariants.test_folios import counted, violation
from tracer.invariants.verdict import Verdict

FROM = 1 << 40
TO = 5 << 30
TASK = 0xFFFF888100000000
VM_PFNMAP, VM_IO, VM_HUGETLB, VM_MIXEDMAP = 1 << 10, 1 << 14, 1 << 22, 1 << 28
HOLDS, VIOLATED, UNVERIFIABLE = (1, 0, 0), (0, 1, 0), (0, 0, 1)
DIRTY_AND_ACCESSED = 0x60
PROT_NONE = 0x100


class Moves:
    """A task that moves page tables of its mm, whose mmap_lock it holds for write."""

    def __init__(self, levels: int = 4) -> None:
        self.model = ModelKernel(levels)
        self.mm: SimMm = self.model.new_mm()
        self.hold(TASK)

    def hold(self, owner: int) -> None:
        """Have a task own the mmap_lock for write; 0: nobody has it."""
        self.model.native.set("harness_task", TASK)
        self.model.set_field("mm_struct.mmap_lock.count", self.mm.at, int(bool(owner)))
        self.model.set_field("mm_struct.mmap_lock.owner", self.mm.at, owner)

    def flags(self, flags: int) -> None:
        self.model.set_field("vm_area_struct.vm_flags", self.mm.vma, flags)

    def map(self, addr: int) -> int:
        return self.model.map_page(self.mm, addr)

    def table(self, addr: int) -> None:
        """Make page tables down to the last level, with no entry."""
        self.model.slot(self.mm, addr)

    def move(self, to: int, length: int, *, old: int = FROM) -> tuple[int, int, int]:
        """Enter move_page_tables(); return the checks: holds, violated, unverifiable."""
        before = counted(self.model, "V7")
        vma = self.mm.vma
        self.model.fire("move_destination", vma, old, vma, to, length, 0)
        after = counted(self.model, "V7")
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    def found(self) -> tuple[int, int, int, int]:
        """Return address, entry, level and folio of the only event."""
        (event,) = map(self.model.tables.events.decode, self.model.native.events())
        assert (event.kind, event.mm, event.vma) == (
            "DESTINATION_MAPPED",
            self.mm.at,
            self.mm.vma,
        )
        return event.addr, event.entry, event.level, event.folio


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("length", [PAGE, HUGE, 1 << 30, 1 << 36])
def test_destination_without_page_tables_is_empty(levels: int, length: int) -> None:
    moves = Moves(levels)
    moves.map(FROM)
    assert moves.move(TO, length) == HOLDS
    assert not moves.model.native.events()


@pytest.mark.parametrize("levels", [4, 5])
def test_empty_tables_and_neighbours_are_no_mapping(levels: int) -> None:
    moves = Moves(levels)
    moves.map(TO - PAGE)
    moves.map(TO + 16 * PAGE)
    moves.table(TO + 3 * PAGE)
    assert moves.move(TO, 16 * PAGE) == HOLDS
    assert moves.move(TO, 17 * PAGE) == VIOLATED
    moves.model.put(moves.model.slot(moves.mm, TO + PAGE), DIRTY_AND_ACCESSED)
    assert moves.move(TO, 16 * PAGE) == HOLDS, "pte_none() forgives these bits"


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("page", [0, 1, 63, 64, 65, 511, 512, 5000, (1 << 18) + 3])
def test_first_mapping_of_a_destination_is_reported(levels: int, page: int) -> None:
    moves = Moves(levels)
    moves.map(TO + (1 << 31) + PAGE)
    pfn = moves.map(TO + page * PAGE)
    assert moves.move(TO, 1 << 33) == VIOLATED
    entry = pfn << 12 | USER_BITS
    assert moves.found() == (TO + page * PAGE, entry, 1, moves.model.folio(pfn))


def test_swap_entry_and_page_without_access_and_huge_page_are_mappings() -> None:
    moves = Moves()
    slot = moves.model.slot(moves.mm, TO)
    for entry in (swap_entry(5, 77), 7 << 12 | PROT_NONE):
        moves.model.put(slot, entry)
        assert moves.move(TO, PAGE) == VIOLATED
    moves = Moves()
    moves.model.map_huge(moves.mm, TO + HUGE, 1024)
    assert moves.move(TO, HUGE) == HOLDS
    assert moves.move(TO, 2 * HUGE) == VIOLATED
    assert moves.found()[:3] == (TO + HUGE, 1024 << 12 | USER_BITS | 0x80, 2)


def test_entry_that_maps_no_page_has_no_folio() -> None:
    moves = Moves()
    moves.model.put(moves.model.slot(moves.mm, TO), swap_entry(5, 77))
    assert moves.move(TO, PAGE) == VIOLATED
    assert moves.found() == (TO, swap_entry(5, 77), 1, 0)


def test_stack_of_execve_that_is_moved_by_less_than_its_length_is_not_judged() -> None:
    moves = Moves()
    moves.map(TO)
    for distance in (PAGE, 7 * PAGE):
        assert moves.move(TO, 8 * PAGE, old=TO + distance) == (0, 0, 0)
        assert moves.move(TO, 8 * PAGE, old=TO - distance) == (0, 0, 0)
    for old in (TO + 8 * PAGE, TO - 8 * PAGE):
        assert moves.move(TO, 8 * PAGE, old=old) == VIOLATED


@pytest.mark.parametrize("flags", [VM_PFNMAP, VM_IO, VM_HUGETLB, VM_MIXEDMAP])
def test_mapping_of_a_driver_and_hugetlb_are_not_judged(flags: int) -> None:
    moves = Moves()
    moves.map(TO)
    moves.flags(flags)
    assert moves.move(TO, PAGE) == (0, 0, 0)
    assert moves.move(TO, 0) == (0, 0, 0)


def test_without_the_lock_or_without_calibration_there_is_no_verdict() -> None:
    moves = Moves()
    moves.map(TO)
    for owner in (0, TASK + 64):
        moves.hold(owner)
        assert moves.move(TO, PAGE) == UNVERIFIABLE
    moves.hold(TASK)
    moves.model.tables.params.set(page_offset=0)
    assert moves.move(TO, PAGE) == UNVERIFIABLE
    assert not moves.model.native.events()


def test_table_that_cannot_be_read_gives_no_verdict() -> None:
    moves = Moves()
    moves.model.put(moves.model.slot(moves.mm, TO, level=2), 1 << 40 | USER_BITS)
    assert moves.move(TO, PAGE) == UNVERIFIABLE


def test_too_many_tables_for_one_run_give_no_verdict() -> None:
    moves = Moves()
    for table in range(6):
        moves.table(TO + table * HUGE)
    assert moves.move(TO, 6 * HUGE) == HOLDS
    for table in range(20):
        moves.table(TO + table * HUGE)
    assert moves.move(TO, 20 * HUGE) == UNVERIFIABLE


def test_closed_gate_counts_nothing() -> None:
    moves = Moves()
    moves.map(TO)
    moves.model.tables.params.set(gate=0)
    assert moves.move(TO, PAGE) == (0, 0, 0)


@settings(max_examples=60)
@given(
    levels=st.sampled_from((4, 5)),
    mapped=st.sets(st.integers(0, 1500), max_size=6),
    tables=st.sets(st.integers(0, 2), max_size=3),
    first=st.integers(0, 1500),
    pages=st.integers(1, 1500),
)
def test_any_destination_is_judged_by_its_first_mapping(
    levels: int, mapped: set[int], tables: set[int], first: int, pages: int
) -> None:
    moves = Moves(levels)
    for table in tables:
        moves.table(TO + table * HUGE)
    for page in mapped:
        moves.map(TO + page * PAGE)
    inside = [page for page in sorted(mapped) if first <= page < first + pages]
    judged = moves.move(TO + first * PAGE, pages * PAGE)
    assert judged == (VIOLATED if inside else HOLDS)
    if inside:
        assert moves.found()[0] == TO + inside[0] * PAGE


def test_finding_names_the_entry_and_its_level() -> None:
    moves = Moves()
    pfn = moves.map(TO)
    moves.move(TO, PAGE)
    signature, summary, verdict = violation(moves.model, "V7")
    assert signature == "V7 violated move_page_tables level=PTE"
    assert verdict is Verdict.VIOLATED
    assert f"the entry at {TO:#x} of mm {moves.mm.at:#x} is {pfn << 12 | USER_BITS:#x}" in summary


def test_evidence_has_the_entry() -> None:
    moves = Moves()
    pfn = moves.map(TO)
    moves.move(TO, PAGE)
    checker = CheckerRig(moves.model)
    checker.wake_up()
    (found,) = [one.first for one in checker.tally.violations.values()]
    assert found.evidence["entry"] == hex(pfn << 12 | USER_BITS)
    assert found.evidence["folio"] == hex(moves.model.folio(pfn))
