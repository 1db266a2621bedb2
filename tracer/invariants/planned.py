"""Invariants that have an id and a meaning, and are not checked by this version.

`awaits` names the kernel functions that each will need.
"""

from __future__ import annotations

from tracer.invariants.base import Invariant

INVARIANTS = (
    Invariant(
        id="V3",
        title="census",
        claim=(
            "The VMAs of an mm are sorted, do not overlap, are map_count many, and have an anon_vma"
            " exactly where they have a chain."
        ),
        stated="mm/vma.c, validate_mm()",
        not_violations="An mm that changes while it is counted.",
        confirmed="By counting twice.",
        awaits=("bpf_iter_task_vma",),
    ),
    Invariant(
        id="V4",
        title="gaps",
        claim="The gaps in the maple tree agree with the VMAs.",
        stated=(
            "mas_validate_gaps(), lib/maple_tree.c; its BUG: Hugh Dickins, 7 July 2022,"
            " <e2df94dc-f54c-ebb9-14f0-98b232358d4@google.com>"
        ),
        not_violations="None known.",
        confirmed="Not decided yet.",
        awaits=("bpf_iter_task_vma",),
    ),
    Invariant(
        id="R1",
        title="the first walk empties the folio",
        claim="After try_to_migrate() without a bail-out the folio is not mapped.",
        stated="try_to_migrate(), mm/rmap.c",
        not_violations="Bail-outs, by their reason.",
        confirmed="By the folio's mapcount at the hook.",
        awaits=("try_to_migrate",),
    ),
    Invariant(
        id="R2",
        title="every VMA is reachable",
        claim=(
            "Each anon_vma_chain of a VMA with an anon_vma is in its interval tree, with the right"
            " cached range."
        ),
        stated="mm/interval_tree.c, anon_vma_interval_tree_verify()",
        not_violations="An mm that changes while it is read.",
        confirmed="By reading twice.",
        awaits=("bpf_iter_task_vma",),
    ),
)
