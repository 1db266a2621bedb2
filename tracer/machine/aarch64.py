"""arm64: pages of 4, 16 and 64 KiB, addresses of 39 to 52 bits, LPA2, both layouts of swap entries.

Sources: arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h, pgtable.h and memory.h.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracer.machine.base import Machine, Memory, OwnMm, Registers
from tracer.machine.page_format import ALL, ENTRY_VALID, PageFormat, learned_format, mask

_TABLE_BIT_SHIFT = 1  # PMD_TABLE_BIT: clear in an entry above the last level that maps memory
_PTE_SPECIAL = 1 << 56

# Until 6.9 an entry without access has a bit of its own, and a PMD that is being split another.
_PTE_PROT_NONE = 1 << 58
_PMD_PRESENT_INVALID = 1 << 59
# Later all of these have PTE_PRESENT_INVALID, and swap entries moved (5e4a4fd9c2e9 "arm64/mm: Add
# uffd write-protect support" and the series before it).
_PTE_PRESENT_INVALID = 1 << 11

_OLD_SWAP = {"swap_type_shift": 3, "swap_pfn_shift": 8}
_NEW_SWAP = {"swap_type_shift": 6, "swap_pfn_shift": 12}

_USUAL_BITS = 48  # of addresses and of physical memory, where there are not 52
_MOST_BITS = 52
_GIB = 1 << 30


def page_format(memory: Memory) -> PageFormat:
    """Return the format without what an entry has to tell: PROT_NONE and the swap layout.

    With 52-bit addresses and pages of 4 or 16 KiB, entries are in the format of LPA2, which has the
    two highest bits of a physical address in the bits that were the shareability. Pages of 64 KiB
    have room for the four highest bits below the address.
    """
    shift, bits = memory.page_shift, memory.address_bits or _USUAL_BITS
    index = shift - 3
    levels = -(-(bits - shift) // index)
    lpa2 = bits == _MOST_BITS and shift < 16
    highest, (high, high_shift) = _USUAL_BITS - 1, (0, 0)
    if lpa2:
        highest, (high, high_shift) = 49, (mask(9, 8), 42)
    elif shift == 16:
        high, high_shift = mask(15, 12), 36
    pfn_bits = max(_USUAL_BITS, (memory.ram[1] - 1).bit_length() if memory.ram[1] else 0) - shift
    return PageFormat(
        page_shift=shift,
        levels=levels,
        top_entries=1 << bits - shift - index * (levels - 1),
        present=ENTRY_VALID,
        present_above=0,
        leaf_shift=_TABLE_BIT_SHIFT,
        leaf_clear=1,
        ignored=0,
        special=_PTE_SPECIAL,
        frame=mask(highest, shift),
        frame_high=high,
        frame_high_shift=high_shift,
        inverted=0,
        swap_pfn=(1 << pfn_bits) - 1,
        **_NEW_SWAP,
    )


def learned(page_format: PageFormat, no_access: int) -> PageFormat | None:
    """Return the format by the bit that the kernel sets in an entry without access."""
    if no_access & ENTRY_VALID:
        return None
    if no_access & _PTE_PROT_NONE:
        return learned_format(
            page_format,
            present=ENTRY_VALID | _PTE_PROT_NONE,
            present_above=_PMD_PRESENT_INVALID,
            **_OLD_SWAP,
        )
    if no_access & _PTE_PRESENT_INVALID:
        return learned_format(page_format, present=ENTRY_VALID | _PTE_PRESENT_INVALID, **_NEW_SWAP)
    return None


def bases(own: OwnMm, memory: Memory) -> Iterator[int]:
    """Yield PAGE_OFFSET - memstart_addr, by what is known of memstart_addr.

    kallsyms may show the variable. Else it follows from vmemmap, which is VMEMMAP_START less the
    struct pages of the frames below memstart_addr; VMEMMAP_START has been defined in three ways.

    A base is left out where a frame of RAM would not lie in the half of the addresses that the
    kernel uses for the linear map alone, so that reading under a wrong one meets RAM or nothing.
    """
    first, end = memory.ram
    if not end:
        return
    mm = own.mm | 0xFF << 56  # a tag of KASAN
    width = 64 - _leading_ones(mm)
    low, high = _page_offset(width), _page_offset(width - 1)
    for base in dict.fromkeys(_closed_forms(own, memory, width)):
        inside = all(low <= (base + at & ALL) < high for at in (first, end - 1))
        if inside and first <= (mm - base & ALL) < end:
            yield base


def _closed_forms(own: OwnMm, memory: Memory, width: int) -> Iterator[int]:
    symbol = own.symbol("memstart_addr")
    known = own.value(symbol) if symbol else None
    for bits in dict.fromkeys((width, _MOST_BITS, _USUAL_BITS)):
        if known is not None:
            yield _page_offset(bits) - known & ALL
        for start in _vmemmap_starts(bits, memory.page_shift, own.struct_page):
            frames = (start - own.vmemmap) // own.struct_page
            yield _page_offset(bits) - (frames << memory.page_shift) & ALL


def _vmemmap_starts(bits: int, page_shift: int, struct_page: int) -> Iterator[int]:
    """Yield VMEMMAP_START as kernels have defined it. bits: VA_BITS."""
    order = (struct_page - 1).bit_length()  # STRUCT_PAGE_MAX_SHIFT
    yield (1 << 64) - (1 << bits - (page_shift - order))
    least = min(bits, 47 if page_shift == 14 else _USUAL_BITS)  # VA_BITS_MIN
    span = _page_offset(least - 1) - _page_offset(bits)  # _PAGE_END(VA_BITS_MIN) - PAGE_OFFSET
    yield (1 << 64) - _GIB - (span >> page_shift) * struct_page
    yield (1 << 64) - (1 << bits - (page_shift - order)) - _GIB


def _page_offset(bits: int) -> int:
    """_PAGE_OFFSET(), and _PAGE_END() of one bit more."""
    return (1 << 64) - (1 << bits)


def _leading_ones(number: int) -> int:
    return 64 - (number ^ ALL).bit_length()


MACHINE = Machine(
    "aarch64",
    reorders_loads=True,
    # AAPCS64: x0 to x7; the return address is in a register
    registers=Registers(
        arguments=tuple(8 * n for n in range(8)),
        stack_pointer=248,
        returned=0,
        pushed=0,
        popped=0,
        pt_regs="""struct user_pt_regs {
	unsigned long long regs[31], sp, pc, pstate;
};
struct pt_regs {
	unsigned long long regs[31], sp, pc, pstate, orig_x0;
	int syscallno;
};
""",
    ),
    page_format=page_format,
    learned=learned,
    bases=bases,
)
