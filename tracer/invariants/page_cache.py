"""R3: a folio that leaves the page cache is locked, and nothing maps it.

A folio of hugetlbfs is locked already when it is unmapped for that.
"""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, Invariant, Loss

_UNMAPPING = "unmaps by which hugetlbfs takes a folio out of a file are not checked"

UNMAPPED = Invariant(
    id="R3",
    title="what leaves the page cache is not mapped",
    claim=(
        "A folio that is removed from the page cache is locked, and no page table maps it. If"
        " remove_inode_hugepages() has to unmap it first, it is locked then, too."
    ),
    stated=(
        "__filemap_remove_folio(), mm/filemap.c: 'the caller has to make sure the folio is locked';"
        " filemap_unaccount_folio(), there: a folio that is still mapped is a bug ('Bad page"
        " cache'); hugetlbfs: remove_inode_single_folio(), fs/hugetlbfs/inode.c: 'Hold folio lock"
        " to guarantee no concurrent migration'"
    ),
    not_violations=(
        "A folio that is mapped when truncation begins: truncate_cleanup_folio() and"
        " remove_inode_single_folio() unmap it before they remove it. A migration entry is no"
        " mapping. What is replaced in the cache, or written to swap by shmem, does not leave it by"
        " this way. hugetlb_vmdelete_list() unmaps a whole range before folios are removed from it,"
        " without their locks; munmap() and exit unmap without them as well."
    ),
    confirmed=(
        "By the tracepoint itself: it fires before the removal, with the folio locked, so that no"
        " mapping can be made; its flags and its mapcount are read there. The VMA that maps this"
        " page of the file is looked up, and its page table is read afterwards: an entry that still"
        " maps the page is in the evidence. That a folio was unmapped before it was locked is read"
        " at unmap_hugepage_range(): the entry there leads to the folio, i_mmap_rwsem is held for"
        " write, and PG_locked is clear; the same task must remove the same folio next."
    ),
    blind_spots=(
        "PG_locked has no owner: another task's lock looks the same. Large folios other than those"
        " of hugetlbfs before 6.3, whose pages have a mapcount each: they are unverifiable. Of"
        " several VMAs that map the page the first is named."
    ),
    needs=("mm_filemap_delete_from_page_cache",),
    lacking={
        "oracle": "whether a page table still maps the page is not read, nor what hugetlbfs unmaps",
        "remove_inode_hugepages": _UNMAPPING,
        "unmap_hugepage_range": _UNMAPPING,
    },
    counters=CheckCounters(
        holds=("R3_HOLDS",), violated=("R3_VIOLATED",), unverifiable=("R3_UNVERIFIABLE",)
    ),
    losses=(
        Loss(
            "page_cache",
            missed_runs=(
                "mm_filemap_delete_from_page_cache",
                "remove_inode_hugepages",
                "unmap_hugepage_range",
            ),
        ),
    ),
)

INVARIANTS = (UNMAPPED,)
