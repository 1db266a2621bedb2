"""V3: the VMAs of an mm are those of its maple tree, and map_count many."""

from __future__ import annotations

from tracer.invariants.base import AuditChecks, Invariant
from tracer.invariants.maple_tree import AUDIT, AUDIT_CONFIRMED, AUDIT_NOT_VIOLATIONS

INVARIANTS = (
    Invariant(
        id="V3",
        title="census",
        claim=(
            "Each VMA has the range of its slot in the maple tree and belongs to the mm, has an"
            " anon_vma exactly where it has an anon_vma_chain, and there are map_count of them."
        ),
        stated="validate_mm(), mm/vma.c (mm/mmap.c before 6.12); anon_vma_chain_link(), mm/rmap.c",
        not_violations=AUDIT_NOT_VIOLATIONS,
        confirmed=AUDIT_CONFIRMED + " For map_count: three looks at the whole mm.",
        blind_spots=(
            "map_count is compared only if no writer changed the mm while its VMAs were counted."
        ),
        needs=(AUDIT,),
        audit=AuditChecks(
            subject="vm_area_struct",
            counted=("vmas", "map_counts"),
            problems={
                "MAP_COUNT": "the tree has {want} VMAs, and map_count is {got}",
                "VMA_UNREADABLE": "a slot leads to {at:#x}, where no VMA can be",
                "VMA_RANGE": "vm_start and vm_end are not the range of the slot",
                "VMA_MM": "vm_mm is another mm",
                "VMA_ANON_VMA": "an anon_vma without a chain, or a chain without an anon_vma",
            },
        ),
    ),
)
