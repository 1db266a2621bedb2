"""R4: rmap finds an anon page where it is mapped."""

from __future__ import annotations

from tracer.invariants.base import AuditChecks, Invariant
from tracer.invariants.maple_tree import AUDIT, AUDIT_CONFIRMED, AUDIT_NOT_VIOLATIONS

INVARIANTS = (
    Invariant(
        id="R4",
        title="an anon page's index leads to its address",
        claim=(
            "An anon page that is mapped at an address has the index of that address:"
            " folio->index, and its number in the folio, is linear_page_index() of the VMA."
        ),
        stated=(
            "__page_check_anon_rmap(), mm/rmap.c: a VM_BUG_ON; vma_address() goes from the index to"
            " the address. Broken by UFFDIO_MOVE of folios in the swap cache, 6.8 to 6.12.36 and"
            " 6.15 (CVE-2025-21984, CVE-2025-38242)"
        ),
        not_violations=AUDIT_NOT_VIOLATIONS
        + (
            " A page that is moved, replaced or freed during the look: then the entry or the index"
            " is another one in the second reading. KSM pages, pages of the file, the zeropage and"
            " hugetlb have no such index, and are left out."
        ),
        confirmed=AUDIT_CONFIRMED,
        blind_spots=(
            "One address of each VMA with an anon_vma is looked at in a pass, chosen at random: a"
            " single wrong page among many is found late or not at all. A page that is not mapped,"
            " as one in the swap cache, until a fault maps it."
        ),
        needs=(AUDIT,),
        audit=AuditChecks(
            subject="anon page",
            counted=("anon_pages",),
            problems={
                "PAGE_INDEX": (
                    "the anon page that is mapped there has index {got:#x}, and rmap looks for it"
                    " by {want:#x}"
                ),
            },
        ),
    ),
)
