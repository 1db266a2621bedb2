"""What the page-table oracle answers: facts about entries, no judgement."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.tables.mm import Mm

Place = tuple[int, int, int, int, int]
"""(mm, pgd, ctx_id, address, pfn)"""


@dataclass(frozen=True)
class FoundEntry:
    """What one walk found. lock: None unknown, True locked; stable: the entry did not change around reading the lock."""

    mm: Mm
    addr: int
    found: str
    entry: int = 0
    level: int = 0
    pfn: int = 0
    locked: bool | None = None
    stable: bool = False

    @property
    def migration(self) -> bool:
        return self.found == "FOUND_MIGRATION"

    @property
    def possible(self) -> bool:
        """Not present, and of a swap type that may be a migration entry's although it was never seen inserted."""
        return self.found == "FOUND_POSSIBLE"

    @property
    def left_behind(self) -> bool:
        """A migration entry whose page is not locked: what pfn_swap_entry_to_page() forbids (include/linux/swapops.h)."""
        return self.migration and self.stable and self.locked is False

    @property
    def place(self) -> Place:
        """Equal for the same entry in the same mm seen again; its protection bits may differ."""
        return self.mm.mm, self.mm.pgd, self.mm.id, self.addr, self.pfn
