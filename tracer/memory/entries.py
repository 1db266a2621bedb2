"""Page-table entries as the oracle reads them: facts, no verdict."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.machine.page_format import PageFormat
from tracer.tables.mm import Mm

Place = tuple[int, int, int, int, int]
"""(mm, pgd, its id, address, pfn)"""


@dataclass(frozen=True)
class FoundEntry:
    """The entry at which one walk ended.

    page_format: that of the page tables. found: a name of enum found. level: 1 PTE, 2 PMD, 3 PUD.
    pfn: the page frame that a migration entry names; 0 in other entries.
    locked: whether the entry's page is locked; None: not known.
    stable: the entry was the same before and after the page's flags were read.
    """

    mm: Mm
    addr: int
    page_format: PageFormat
    found: str
    entry: int = 0
    level: int = 0
    pfn: int = 0
    locked: bool | None = None
    stable: bool = False

    @property
    def migration(self) -> bool:
        """Whether it is a migration entry.

        It is not present, and of a swap type that the kernel inserted as a migration entry.
        """
        return self.found == "FOUND_MIGRATION"

    @property
    def possible(self) -> bool:
        """Whether it may be a migration entry.

        Its swap type was not seen inserted, but is next to one that was.
        """
        return self.found == "FOUND_POSSIBLE"

    @property
    def left_behind(self) -> bool:
        """Whether it is a migration entry whose page is not locked.

        pfn_swap_entry_to_page() forbids it (include/linux/swapops.h).
        """
        return self.migration and self.stable and self.locked is False

    @property
    def place(self) -> Place:
        """Equal for the same entry in the same mm seen again; its protection bits may differ."""
        return self.mm.mm, self.mm.pgd, self.mm.id, self.addr, self.pfn

    @property
    def present_pfn(self) -> int:
        """The page frame that a present entry, small or huge, maps at the address."""
        return self.page_format.mapped_pfn(self.entry, self.level, self.addr)

    @property
    def table_entries(self) -> int:
        """PTRS_PER_PTE: how many pages a PMD stands for."""
        return self.page_format.table_entries
