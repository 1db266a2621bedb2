"""What the entries of page tables look like: numbers for the walkers of probes/include/walk.h.

The walkers know no architecture. In every format here bit 0 says that the CPU uses an entry.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

ENTRY_VALID = 1
_BITS = 64
ALL = (1 << _BITS) - 1


def mask(high: int, low: int) -> int:
    """Return the bits from `high` down to `low`, as GENMASK_ULL() does."""
    return (1 << high + 1) - (1 << low)


@dataclass(frozen=True)
class PageFormat:
    """The members of struct page_format, by name and in order, and the size of a page.

    levels: of tables. top_entries: those of a process in its top-level table.
    present: an entry that has one of these bits is present: it maps memory, or is a table.
    present_above: more such bits above the last level.
    leaf_shift: above the last level this bit says whether a valid entry maps memory itself.
    leaf_clear: 1 where it does so if the bit is clear.
    ignored: bits that an entry may have that is none.
    special: the bit of pte_special().
    frame: the bits that hold a physical address at their place.
    frame_high, frame_high_shift: bits that hold its highest part, and how far to shift them.
    inverted: all ones where the frame of an entry that is not valid is stored inverted.
    swap_type_shift, swap_pfn_shift: where a swap entry has its type, and a migration entry its pfn.
    swap_pfn: mask of the pfn, once shifted. Bits above it are flags of the entry.
    """

    page_shift: int
    levels: int
    top_entries: int
    present: int
    present_above: int
    leaf_shift: int
    leaf_clear: int
    ignored: int
    special: int
    frame: int
    frame_high: int
    frame_high_shift: int
    inverted: int
    swap_type_shift: int
    swap_pfn_shift: int
    swap_pfn: int

    @property
    def table_entries(self) -> int:
        """PTRS_PER_PTE: of a table below the top level, and of what a PMD stands for."""
        return 1 << self.page_shift - 3

    @property
    def page(self) -> int:
        """PAGE_SIZE."""
        return 1 << self.page_shift

    def pages(self, level: int) -> int:
        """Return how many pages an entry of a level stands for: 1 PTE, 2 PMD."""
        return 1 << self.shift(level) - self.page_shift

    def shift(self, level: int) -> int:
        """Return by how much an address is shifted for its index at a level: 1 PTE, 2 PMD."""
        return self.page_shift + (self.page_shift - 3) * (level - 1)

    def members(self) -> list[int]:
        """Return the members of struct page_format, in their order."""
        return [getattr(self, field.name) for field in fields(self)[1:]]

    def entry_pfn(self, entry: int) -> int:
        """Return the pfn that a migration entry names (swp_offset_pfn())."""
        return (entry ^ self.inverted) >> self.swap_pfn_shift & self.swap_pfn

    def entry_after(self, entry: int, pages: int) -> int:
        """Return the migration entry of the page so many pages behind another entry's."""
        step = pages << self.swap_pfn_shift
        return entry - step if self.inverted else entry + step

    def frame_address(self, entry: int) -> int:
        """Return the physical address in a valid entry."""
        return entry & self.frame | (entry & self.frame_high) << self.frame_high_shift

    def mapped_pfn(self, entry: int, level: int, address: int) -> int:
        """Return the page frame that a present entry, small or huge, maps at an address."""
        as_valid = entry if entry & ENTRY_VALID else entry ^ self.inverted
        pages = self.pages(level)
        first = self.frame_address(as_valid) >> self.page_shift & ~(pages - 1)
        return first + (address >> self.page_shift & pages - 1)


def of_members(page_shift: int, members: list[int]) -> PageFormat:
    """Return the format that struct page_format has, as params.format."""
    return PageFormat(page_shift, *members)


def learned_format(page_format: PageFormat, **facts: int) -> PageFormat:
    """Return the format with members that were found by looking."""
    return PageFormat(**(vars(page_format) | facts))
