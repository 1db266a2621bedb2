"""Invariants that have their id and meaning, and no monitor in this version yet; `awaits` tells which probes each will need."""

from __future__ import annotations

from tracer.invariants.base import Invariant

INVARIANTS = (
    Invariant(
        "V3",
        "census",
        "All VMAs of an mm are sorted, do not overlap, are map_count many, and have an anon_vma exactly where they have a chain.",
        "mm/vma.c, validate_mm()",
        "an mm that changes while it is counted",
        "by counting twice",
        awaits=("bpf_iter_task_vma",),
    ),
    Invariant(
        "V4",
        "gaps",
        "The maple tree's gaps agree with the VMAs.",
        "mas_validate_gaps(), lib/maple_tree.c; its BUG: Hugh Dickins, 7 July 2022, "
        "<e2df94dc-f54c-ebb9-14f0-98b232358d4@google.com>",
        "none known",
        "not decided yet",
        awaits=("bpf_iter_task_vma",),
    ),
    Invariant(
        "R1",
        "the first walk empties the folio",
        "After try_to_migrate() without a bail-out the folio is not mapped.",
        "try_to_migrate(), mm/rmap.c",
        "bail-outs, by reason",
        "by the folio's mapcount at the hook",
        awaits=("try_to_migrate",),
    ),
    Invariant(
        "R2",
        "every VMA is reachable",
        "The chain of a VMA with an anon_vma is in the interval tree with the right cached range.",
        "mm/interval_tree.c, anon_vma_interval_tree_verify()",
        "an mm that changes while it is read",
        "by reading twice",
        awaits=("bpf_iter_task_vma",),
    ),
)
