"""An address space, as BPF maps and page-table walks name it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mm:
    """An address space that has page tables. id is mm_id() of mm_ids.h (0: unknown).

    changed: differs after VMAs changed (mm_lock_seq; before 6.4 map_count). 0: unknown.
    """

    mm: int
    pgd: int
    tgid: int
    comm: str = ""
    id: int = 0
    changed: int = field(default=0, compare=False)
