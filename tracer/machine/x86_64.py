"""x86-64, with four or five levels of page tables."""

from __future__ import annotations

from collections.abc import Iterator

from tracer.machine.base import Machine, Memory, OwnMm, Registers
from tracer.machine.page_format import ALL, ENTRY_VALID, PageFormat, mask

PAGE_SHIFT = 12

# arch/x86/include/asm/pgtable_types.h
_PAGE_PSE_SHIFT = 7  # above the last level: the entry maps a page itself
_PAGE_PROTNONE = 1 << 8  # _PAGE_GLOBAL where bit 0 is clear
_PAGE_SPECIAL = 1 << 9
_PAGE_KNL_ERRATUM_MASK = mask(6, 5)  # Knights Landing may set these in an entry that is none

# arch/x86/include/asm/pgtable_64.h: the offset is inverted, the type is not
_SWP_TYPE_SHIFT = 59
_SWP_OFFSET_FIRST_BIT = 9

_GUESSES = 1 << 16  # KASLR aligns the base to 1 GiB (PUD_SIZE, arch/x86/mm/kaslr.c): 64 TiB
_GIB_SHIFT = 30


def page_format(memory: Memory) -> PageFormat:
    """Return the format with four or five levels.

    MAX_PHYSMEM_BITS is 46, or 52 with five levels (arch/x86/include/asm/sparsemem.h).
    """
    bits = 52 if memory.five_levels else 46
    return PageFormat(
        page_shift=PAGE_SHIFT,
        levels=5 if memory.five_levels else 4,
        top_entries=256,
        present=ENTRY_VALID | _PAGE_PROTNONE,
        present_above=1 << _PAGE_PSE_SHIFT,
        leaf_shift=_PAGE_PSE_SHIFT,
        leaf_clear=0,
        ignored=_PAGE_KNL_ERRATUM_MASK,
        special=_PAGE_SPECIAL,
        frame=mask(bits - 1, PAGE_SHIFT),
        frame_high=0,
        frame_high_shift=0,
        inverted=ALL,
        swap_type_shift=_SWP_TYPE_SHIFT,
        swap_pfn_shift=_SWP_OFFSET_FIRST_BIT,
        swap_pfn=mask(bits - 1, PAGE_SHIFT) >> PAGE_SHIFT,
    )


def learned(page_format: PageFormat, no_access: int) -> PageFormat | None:
    """Return the format where the entry is one of PROT_NONE as x86-64 writes it."""
    is_one = no_access & _PAGE_PROTNONE and not no_access & ENTRY_VALID
    return page_format if is_one else None


def bases(own: OwnMm, memory: Memory) -> Iterator[int]:
    """Yield page_offset_base.

    The kernel stores the mm of a pgd in the pgd's struct page (pgd_set_mm(),
    arch/x86/mm/pgtable.c): a guess is right where that struct page names our mm. Only struct pages
    are read for it, never memory under a wrong base. Where that finds none the symbol is tried.
    """
    highest = own.pgd >> _GIB_SHIFT << _GIB_SHIFT
    guesses = (highest - (n << _GIB_SHIFT) for n in range(_GUESSES))
    found = next((base for base in guesses if own.owner(base) == own.mm), 0)
    if not found and (symbol := own.symbol("page_offset_base")):
        found = own.value(symbol)
    if found:
        yield found


MACHINE = Machine(
    "x86_64",
    reorders_loads=False,
    # System V ABI: di, si, dx, cx, r8, r9; the stack pointer of an entry is at the return address
    registers=Registers(
        arguments=(112, 104, 96, 88, 72, 64),
        stack_pointer=152,
        returned=80,
        pushed=1,
        popped=8,
        pt_regs="""struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
""",
    ),
    page_format=page_format,
    learned=learned,
    bases=bases,
)
