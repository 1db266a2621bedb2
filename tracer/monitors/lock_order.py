"""L2 in the form that tracepoints allow: two mmap_locks nested in both orders."""

from __future__ import annotations

from tracer.invariant import Invariant

INVARIANTS = (
    Invariant(
        id="L2",
        title="no cycle among lock classes",
        claim="The locks that are taken while another is held never form a cycle over the whole run.",
        stated="mm/rmap.c, 'Lock ordering in mm'; dup_mmap() in mm/mmap.c (kernel/fork.c before 6.16) is the one nesting of two mmap_locks",
        not_violations="A child's mmap_lock taken under its parent's by fork. A trylock, which cannot wait and so cannot deadlock. "
        "An mm whose address is reused: mms are told apart by mm->context.ctx_id.",
        confirmed="From tracepoints alone a trylock looks like any acquisition, so a reversed pair is a suspect, with both stacks.",
        blind_spots="Pairs older than the last order_rows nestings; a lock taken again by its own holder (a legal trylock looks the same).",
        needs=("mmap_lock_start_locking", "mmap_lock_acquire_returned", "mmap_lock_released"),
        lacking={"down_write": "only mmap_lock against mmap_lock: the rwsems of anon_vma and i_mmap have no tracepoint"},
    ),
)
