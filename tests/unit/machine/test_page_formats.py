"""Every format of page tables: as the machine's module has it, and as the walkers' C reads it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.model_kernel import MIGRATION_READ, MIGRATION_WRITE, ModelKernel, SimMm
from tests.support.native import layouts
from tests.support.page_formats import FORMATS, Format
from tracer.machine import aarch64
from tracer.machine.base import Memory, OwnMm
from tracer.machine.page_format import PageFormat
from tracer.memory.entries import FoundEntry

EVERY = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
OTHER_SWAP = 3
"""A swap type that no migration entry has."""


def pfns(form: Format) -> st.SearchStrategy[int]:
    return st.integers(1, (1 << form.physical_bits - form.page_shift) - 1)


def highest(form: Format) -> int:
    """The last page of a process."""
    bits = 47 if not form.is_arm else form.bits
    return (1 << bits) - (1 << form.page_shift)


@EVERY
def test_members_are_those_of_the_struct_that_the_programs_read(form: Format) -> None:
    members = layouts(form.page_shift).structs["page_format"].members
    assert [name for name, _, _ in members] == [*vars(form.learned)][1:]
    assert PageFormat(form.page_shift, *form.learned.members()) == form.learned


@EVERY
@given(data=st.data(), flags=st.integers(0, 3), kind=st.integers(0, 31))
def test_entries_name_the_page_that_was_written(
    form: Format, data: st.DataObject, flags: int, kind: int
) -> None:
    known, pfn = form.learned, data.draw(pfns(form))
    assert known.mapped_pfn(form.page(pfn), 1, 0) == pfn
    assert known.mapped_pfn(form.no_access(pfn), 1, 0) == pfn
    assert known.mapped_pfn(form.special(pfn), 1, 0) == pfn
    assert known.frame_address(form.table(pfn << form.page_shift)) == pfn << form.page_shift
    whole = pfn // known.table_entries * known.table_entries
    address = data.draw(st.integers(0, highest(form)))
    inside = address >> form.page_shift & known.table_entries - 1
    assert known.mapped_pfn(form.huge(whole), 2, address) == whole + inside
    in_swap = data.draw(st.integers(0, known.swap_pfn - 1))
    entry = form.swap(kind, in_swap, flags)
    assert known.entry_pfn(entry) == in_swap
    assert known.entry_after(entry, 1) == form.swap(kind, in_swap + 1, flags)


@EVERY
def test_page_without_access_teaches_where_a_swap_entry_has_its_type(form: Format) -> None:
    unlearned = form.machine.page_format(form.memory)
    assert form.machine.learned(unlearned, form.page(5)) is None, "a page that may be read"
    assert form.machine.learned(unlearned, 0) is None, "no page"
    for kind in range(32):
        entry = form.swap(kind, 12345)
        assert entry >> form.learned.swap_type_shift & 31 == kind
        assert not entry & form.learned.present, "a swap entry is not present"


def types_seen(model: ModelKernel) -> None:
    for kind in (MIGRATION_READ, MIGRATION_READ + 1, MIGRATION_WRITE):
        model.native.maps["entry_types"].update(bytes([kind, 0, 0, 0]), bytes([1, *bytes(7)]))


def asked(model: ModelKernel, mm: SimMm, *addresses: int) -> list[FoundEntry]:
    (listed,) = [one for one in model.oracle.mms() if one.mm == mm.at]
    return model.oracle.ask([(listed, address) for address in addresses])


@EVERY
def test_walk_ends_at_each_kind_of_entry_with_its_level(form: Format) -> None:
    model, page = ModelKernel(form), 1 << form.page_shift
    types_seen(model)
    mm, size = model.new_mm(), 1 << form.learned.shift(2)
    first, huge = highest(form) // size * size - 4 * size, highest(form) // size * size - size
    places = [first + n * page for n in range(5)]
    for place, entry in zip(
        places,
        (
            form.page(7),
            form.no_access(8),
            form.swap(OTHER_SWAP, 12345),
            form.swap(MIGRATION_READ, 9, 1),
            form.special(2),
        ),
        strict=True,
    ):
        model.put(model.slot(mm, place), entry)
    whole = form.learned.table_entries
    model.put(model.slot(mm, huge, level=2), form.huge(whole))
    last = huge + (whole - 1) * page
    found = asked(model, mm, *places, huge, last, first + 5 * page, page)
    assert [(one.found.removeprefix("FOUND_"), one.level) for one in found[:7]] == [
        ("PRESENT", 1),
        ("PRESENT", 1),
        ("OTHER", 1),
        ("MIGRATION", 1),
        ("PRESENT", 1),
        ("PRESENT", 2),
        ("PRESENT", 2),
    ]
    assert [one.found for one in found[7:]] == ["FOUND_NOTHING"] * 2
    assert [found[n].present_pfn for n in (0, 1, 4, 5, 6)] == [7, 8, 2, whole, 2 * whole - 1]
    assert (found[3].pfn, found[3].locked) == (9, False)


@EVERY
@settings(max_examples=12)
@given(data=st.data())
def test_sweep_finds_migration_entries_anywhere_and_nothing_else(
    form: Format, data: st.DataObject
) -> None:
    model, page = ModelKernel(form), 1 << form.page_shift
    types_seen(model)
    mm = model.new_mm()
    spots = st.sets(st.integers(0, highest(form) // page).map(lambda n: n * page), max_size=6)
    left, pages = data.draw(spots), data.draw(spots)
    for n, address in enumerate(sorted(left | pages)):
        entry = form.swap(MIGRATION_WRITE, n + 1) if address in left else form.page(n + 1)
        model.put(model.slot(mm, address), entry)
    result = model.oracle.sweep(model.oracle.mms())
    assert result.complete
    assert {one.addr for one in result.answers} == left


@EVERY
def test_migrated_pages_are_recorded_and_settled(form: Format) -> None:
    model = ModelKernel(form)
    mm = model.new_mm()
    address = highest(form) // 2 >> form.page_shift << form.page_shift
    pfn = model.map_page(mm, address)
    migration = model.start(500)
    model.unmap_folio(migration, pfn)
    (row,) = model.tables.ledger.rows()
    assert form.learned.entry_pfn(row.entry) == pfn
    model.remap_folio(migration, pfn)
    model.end(migration)
    counters = model.tables.counters.read()
    assert (counters["M1_HOLDS"], counters["ENTRIES_REMOVED"]) == (1, 1)


@EVERY
def test_split_pmd_stands_for_one_entry_a_page(form: Format) -> None:
    model = ModelKernel(form)
    mm, size = model.new_mm(), 1 << form.learned.shift(2)
    pfn = form.learned.table_entries
    if pfn * 64 > 34 << form.page_shift:
        pytest.skip("the model has no struct page for so many frames")
    address = 16 * size
    model.map_huge(mm, address, pfn)
    split = model.start_split(500)
    model.lock(pfn, True)
    model.freeze(split, mm, address, pfn)
    rows = model.tables.ledger.rows()
    assert len(rows) == form.learned.table_entries
    assert {form.learned.entry_pfn(row.entry) - pfn for row in rows} == {*range(len(rows))}
    assert {row.addr - address for row in rows} == {n << form.page_shift for n in range(len(rows))}


# arch/arm64/include/asm/memory.h, as kernels have had it: (VA_BITS, VA_BITS of the CPU, new)
KERNELS = [
    (12, 48, 48, False),
    (12, 48, 48, True),
    (12, 39, 39, True),
    (12, 52, 52, True),
    (12, 52, 48, True),
    (14, 47, 47, False),
    (14, 52, 52, True),
    (14, 52, 47, True),
    (16, 42, 42, True),
    (16, 48, 48, False),
    (16, 52, 52, True),
    (16, 52, 48, True),
]
START_OF_RAM, RAM = 1 << 30, 4 << 30


@pytest.mark.parametrize("symbol", [False, True], ids=["hidden", "kallsyms"])
@pytest.mark.parametrize("moved_by", [0, 1 << 34], ids=["", "randomised"])
@pytest.mark.parametrize(("page_shift", "bits", "cpu_bits", "new"), KERNELS)
def test_base_of_the_linear_map_is_among_the_candidates(
    page_shift: int, bits: int, cpu_bits: int, new: bool, moved_by: int, symbol: bool
) -> None:
    """The kernel's own formulas, forward."""
    if moved_by >= 1 << cpu_bits - 4:
        moved_by = 1 << 32
    struct_page, top = 64, 1 << 64
    page_offset = top - (1 << bits)
    memstart = START_OF_RAM - moved_by - ((1 << bits) - (1 << cpu_bits))
    least = min(bits, 47 if page_shift == 14 else 48)
    if new:
        pages = (top - (1 << least - 1) - page_offset) >> page_shift
        vmemmap_start = top - (1 << 30) - pages * struct_page
    else:
        vmemmap_start = top - (1 << bits - (page_shift - 6))
    vmemmap = vmemmap_start - (memstart >> page_shift) * struct_page & top - 1
    base = page_offset - memstart & top - 1
    own = OwnMm(
        mm=(base + START_OF_RAM + 0x123400) & top - 1,
        pgd=0,
        vmemmap=vmemmap,
        struct_page=struct_page,
        value=lambda address: memstart & top - 1 if address == 0xABC else 0,
        owner=lambda _base: 0,
        symbol=lambda name: 0xABC if symbol and name == "memstart_addr" else 0,
    )
    memory = Memory(page_shift, cpu_bits, ram=(START_OF_RAM, START_OF_RAM + RAM))
    found = list(aarch64.bases(own, memory))
    assert base in found
    low, high = top - (1 << cpu_bits), top - (1 << cpu_bits - 1)
    for one in found:
        assert low <= (one + START_OF_RAM) & top - 1 < high
        assert low <= (one + START_OF_RAM + RAM - 1) & top - 1 < high


def test_base_is_not_guessed_where_the_ram_is_not_known() -> None:
    own = OwnMm(0, 0, 0, 64, lambda _: 0, lambda _: 0, lambda _: 0)
    assert list(aarch64.bases(own, Memory(12, 48))) == []
