"""R4: which page a look takes, and what it says of its index."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.audited import PAGE, Auditor, Kernel, Look, Vma
from tests.support.btf_blob import kernel_types
from tests.support.maple_tree import ALL

TYPES = [kernel_types(), kernel_types(False, True)]
FRAME = 300
PROT_NONE, SPECIAL, PSE, VM_HUGETLB = 1 << 8, 1 << 9, 1 << 7, 1 << 22
PHYSICAL = 0x00003FFFFFFFF000
KSM = 3


class Rig:
    """An mm of one VMA with an anon_vma, and what is mapped in it."""

    def __init__(self, types: bytes = TYPES[0], pages: int = 8, *, mapping: bool = False) -> None:
        self.kernel = Kernel(types, Random(5), vmas=0)
        made = self.kernel.vma(64 * PAGE, (64 + pages) * PAGE - 1)
        if mapping:
            made = self.kernel.vma(64 * PAGE, (64 + pages) * PAGE - 1, self.kernel.mappings[0])
        self.vma: Vma = made
        self.kernel.add_anon(made)
        self.kernel.own = [made]
        self.kernel.rebuild()
        self.auditor = Auditor(self.kernel, types)

    def at(self, page: int) -> int:
        return self.vma.first + page * PAGE

    def map(self, page: int, frame: int = FRAME, number: int = 0, bits: int = 0) -> int:
        return self.kernel.map_anon(self.vma, self.at(page), frame, number, bits)

    def off(self, frame: int = FRAME, by: int = 1) -> None:
        """Change the index of a folio."""
        at = self.kernel.folio(frame)
        index = self.kernel.get(at, "folio.index")
        self.kernel.set(at, "folio.index", index + by)

    def look(self, page: int = 0, low: int = 0, high: int = ALL) -> Look:
        """Look, where chance leads to this page of the VMA or of the range."""
        first, last = max(low, self.vma.first), min(high, self.vma.last)
        pages = (last - first) // PAGE + 1
        self.auditor.native.set("harness_random", ((page << 32) + (1 << 31)) // pages)
        return self.auditor.look(low, high)


def counted(look: Look) -> tuple[int, int, int]:
    return look.state.samples, look.state.anon_pages, len(look.doubts)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("mapping", [False, True])
def test_page_at_the_place_of_its_index_is_a_check_that_holds(types: bytes, mapping: bool) -> None:
    rig = Rig(types, mapping=mapping)
    rig.map(3)
    assert counted(rig.look(3)) == (1, 1, 0)
    assert counted(rig.look(4)) == (1, 0, 0), "nothing is mapped there"


@pytest.mark.parametrize("types", TYPES)
def test_wrong_index_is_named_with_the_page_and_both_numbers(types: bytes) -> None:
    rig = Rig(types)
    rig.map(3)
    rig.off()
    look = rig.look(3)
    (doubt,) = look.doubts
    index = rig.kernel.anon_pgoff(rig.vma.at) + 3
    assert look.problems == {"PAGE_INDEX"}
    assert (doubt.want, doubt.got, doubt.at) == (index, index + 1, rig.kernel.folio(FRAME))
    assert (doubt.low, doubt.high) == (rig.at(3), rig.at(4) - 1)
    assert (doubt.vma, doubt.raced) == (rig.vma.at, 0)


def test_narrow_look_takes_the_page_of_the_doubt_whatever_chance_says() -> None:
    rig = Rig()
    for page in range(8):
        rig.map(page, FRAME + page)
    rig.off(FRAME + 3)
    for chance in (0, 1 << 31, (1 << 32) - 1):
        rig.auditor.native.set("harness_random", chance)
        assert len(rig.auditor.look(rig.at(3), rig.at(4) - 1).doubts) == 1
        assert not rig.auditor.look(rig.at(4), rig.at(5) - 1).doubts


def test_chance_leads_to_each_page_and_to_none_outside() -> None:
    rig = Rig()
    for page in range(8):
        rig.map(page, FRAME + page)
        rig.off(FRAME + page)
    found = set()
    for chance in range(0, 1 << 32, 1 << 26):
        rig.auditor.native.set("harness_random", chance)
        (doubt,) = rig.auditor.look().doubts
        found.add(doubt.low)
    assert found == {rig.at(page) for page in range(8)}


@settings(max_examples=60)
@given(page=st.integers(0, 7), number=st.integers(0, 7), wrong=st.booleans())
def test_page_of_a_large_folio_has_the_index_of_the_folio_and_its_number(
    page: int, number: int, wrong: bool
) -> None:
    rig = Rig()
    rig.map(page, number=number)
    if wrong:
        rig.off()
    assert counted(rig.look(page)) == (1, 1, int(wrong))


def test_page_that_a_pmd_maps_is_found_by_its_number() -> None:
    rig = Rig(pages=8)
    first = rig.vma.first // (512 * PAGE) * 512 * PAGE
    rig.kernel.memory.put(rig.kernel.entry_at(rig.at(0), 2), 512 << 12 | 0x67 | PSE)
    number = (rig.at(5) - first) // PAGE
    head = rig.kernel.folio(512)
    rig.kernel.set(head, "folio.mapping", rig.vma.anon_vma | 1)
    index = rig.kernel.anon_pgoff(rig.vma.at) + 5
    rig.kernel.set(head, "folio.index", index - number)
    rig.kernel.set(rig.kernel.folio(512 + number), "page.compound_head", head + 1)
    assert counted(rig.look(5)) == (1, 1, 0)
    rig.off(512)
    assert counted(rig.look(5)) == (1, 1, 1)


def test_entry_without_access_has_its_frame_inverted() -> None:
    rig = Rig()
    at = rig.map(3)
    for entry in (FRAME << 12 | PROT_NONE, (~(FRAME << 12) & PHYSICAL) | PROT_NONE):
        rig.kernel.memory.put(at, entry)
        expected = 1 if entry != FRAME << 12 | PROT_NONE else 0
        assert rig.look(3).state.anon_pages == expected


@pytest.mark.parametrize("what", ["special", "swap", "ksm", "file", "dax", "free", "beyond"])
def test_what_has_no_index_of_the_vma_is_left_out(what: str) -> None:
    rig = Rig()
    at = rig.map(3, bits=SPECIAL if what == "special" else 0)
    rig.off()
    folio = rig.kernel.folio(FRAME)
    if what == "swap":
        rig.kernel.memory.put(at, 5 << 59)
    elif what == "ksm":
        rig.kernel.set(folio, "folio.mapping", rig.vma.anon_vma | KSM)
    elif what == "file":
        rig.kernel.set(folio, "folio.mapping", rig.kernel.mappings[0])
    elif what == "dax":  # PAGE_MAPPING_DAX_SHARED: the index is the number of sharers
        rig.kernel.set(folio, "folio.mapping", 1)
    elif what == "free":
        rig.kernel.set(folio, "folio.mapping", 0)
    elif what == "beyond":
        rig.kernel.memory.put(at, 1 << 40 | 0x67)
    assert counted(rig.look(3)) == (1, 0, 0)


def test_hugetlb_and_an_uncalibrated_vmemmap_are_no_sample() -> None:
    rig = Rig()
    rig.map(3)
    rig.off()
    rig.kernel.set(rig.vma.at, "vm_area_struct.vm_flags", VM_HUGETLB)
    assert counted(rig.look(3)) == (0, 0, 0)
    rig.kernel.set(rig.vma.at, "vm_area_struct.vm_flags", 0)
    assert counted(rig.look(3)) == (1, 1, 1)
    rig.auditor.bounds(rig.kernel.page_offset, rig.kernel.memory.end, vmemmap=0)
    assert counted(rig.look(3)) == (0, 0, 0)


def test_page_that_is_moved_at_any_moment_of_the_look_gives_no_doubt_that_is_not_raced() -> None:
    """UFFDIO_MOVE: the entry is cleared, the index changes, the entry is set elsewhere."""
    rig = Rig()
    at, there = rig.map(3), rig.kernel.entry_at(rig.at(6))
    folio = rig.kernel.place(rig.kernel.folio(FRAME), "folio.index")
    entry, index = rig.kernel.memory.get(at), rig.kernel.memory.get(folio)
    rig.look(3)
    raced = 0
    for when in range(rig.auditor.words_read + 1):
        for step in (0, 1, 3, 7):
            rig.kernel.memory.put(at, entry)
            rig.kernel.memory.put(there, 0)
            rig.kernel.memory.put(folio, index)
            stores = [(at, 0), (folio, index + 3), (there, entry)]
            rig.auditor.interfere((when + n * step, *one) for n, one in enumerate(stores))
            look = rig.look(3)
            assert not look.believed, (when, step)
            raced += len(look.doubts)
            rig.auditor.finish()
    assert raced, "some looks met it half-way"
