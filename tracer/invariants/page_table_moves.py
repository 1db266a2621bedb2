"""V7: page tables are moved only to where nothing is mapped."""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, EventReport, Invariant, Loss

INVARIANTS = (
    Invariant(
        id="V7",
        title="page tables move to an empty place",
        claim=(
            "When move_page_tables() begins, nothing is mapped at its destination: each entry there"
            " is none."
        ),
        stated=(
            "move_ptes(), move_normal_pmd() and move_huge_pud(), mm/mremap.c, which overwrite what"
            " is there; from 6.16 on move_ptes() has VM_WARN_ON_ONCE(!pte_none(*new_ptep)). Broken"
            " up to 6.15.3, and in all 6.1 and 6.12 (CVE-2025-38207)"
        ),
        not_violations=(
            "execve() moves its stack down by less than its length: its own pages stand at the"
            " destination. Page tables that are there and hold only entries that are none. A"
            " VM_IO, VM_PFNMAP or VM_MIXEDMAP mapping, whose driver may map pages when the VMA is"
            " copied, and hugetlb are not judged."
        ),
        confirmed=(
            "By the entry itself, read while the task holds the mmap_lock for write. No fault can"
            " map anything there meanwhile."
        ),
        blind_spots=(
            "What is mapped there after move_page_tables() has begun. One entry of a destination is"
            " reported, the first one."
        ),
        needs=("move_destination", "oracle"),
        counters=CheckCounters(
            holds=("V7_HOLDS",), violated=("V7_VIOLATED",), unverifiable=("V7_UNVERIFIABLE",)
        ),
        events=(
            EventReport(
                "DESTINATION_MAPPED",
                "move_page_tables",
                "page tables are moved to where a page is mapped: the entry at {where} is"
                " {entry:#x}, and is overwritten without being unmapped",
                shape="level={level}",
                of_task=True,
            ),
        ),
        losses=(Loss("protocols", missed_runs=("move_destination",)),),
    ),
)
