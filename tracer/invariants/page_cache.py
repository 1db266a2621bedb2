"""R3: a folio that leaves the page cache is locked, and nothing maps it."""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, Invariant, Loss

UNMAPPED = Invariant(
    id="R3",
    title="what leaves the page cache is not mapped",
    claim="A folio that is removed from the page cache is locked, and no page table maps it.",
    stated=(
        "__filemap_remove_folio(), mm/filemap.c: 'the caller has to make sure the folio is locked';"
        " filemap_unaccount_folio(), there: a folio that is still mapped is a bug ('Bad page"
        " cache'); hugetlbfs: remove_inode_single_folio(), fs/hugetlbfs/inode.c"
    ),
    not_violations=(
        "A folio that is mapped when truncation begins: truncate_cleanup_folio() and"
        " remove_inode_single_folio() unmap it before they remove it. A migration entry is no"
        " mapping. What is replaced in the cache, or written to swap by shmem, does not leave it by"
        " this way."
    ),
    confirmed=(
        "By the tracepoint itself: it fires before the removal, with the folio locked, so that no"
        " mapping can be made; its flags and its mapcount are read there. The VMA that maps this"
        " page of the file is looked up, and its page table is read afterwards: an entry that still"
        " maps the page is in the evidence."
    ),
    blind_spots=(
        "PG_locked has no owner: another task's lock looks the same. Large folios other than those"
        " of hugetlbfs before 6.3, whose pages have a mapcount each: they are unverifiable. Of"
        " several VMAs that map the page the first is named."
    ),
    needs=("mm_filemap_delete_from_page_cache",),
    lacking={"oracle": "whether a page table still maps the page is not read"},
    counters=CheckCounters(
        holds=("R3_HOLDS",), violated=("R3_VIOLATED",), unverifiable=("R3_UNVERIFIABLE",)
    ),
    losses=(Loss("page_cache", missed_runs=("mm_filemap_delete_from_page_cache",)),),
)

INVARIANTS = (UNMAPPED,)
