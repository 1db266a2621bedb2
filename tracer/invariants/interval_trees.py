"""R2: rmap reaches every VMA through the interval tree of its anon_vmas and of its file."""

from __future__ import annotations

from tracer.invariants.base import AuditChecks, Invariant
from tracer.invariants.maple_tree import AUDIT, AUDIT_CONFIRMED, AUDIT_NOT_VIOLATIONS

INVARIANTS = (
    Invariant(
        id="R2",
        title="every VMA is reachable",
        claim=(
            "Each anon_vma_chain of a VMA is in the interval tree of its anon_vma, each file VMA in"
            " the i_mmap tree of its mapping: at the right place, and below ends that cover it."
        ),
        stated=(
            "anon_vma_interval_tree_verify(), mm/interval_tree.c; INTERVAL_TREE_DEFINE(),"
            " include/linux/interval_tree_generic.h; anon_vma_clone(), mm/rmap.c: one root"
        ),
        not_violations=AUDIT_NOT_VIOLATIONS
        + " A climb beside a writer of the tree's own rwsem proves nothing.",
        confirmed=AUDIT_CONFIRMED,
        blind_spots=(
            "Only nodes from the VMA's own one up to the root are looked at. An anon_vma_chain that"
            " no VMA has is not found."
        ),
        needs=(AUDIT,),
        audit=AuditChecks(
            subject="interval tree",
            counted=("climbs",),
            problems={
                "CHAIN_UNREADABLE": "the chain leads to {at:#x}, where no anon_vma_chain can be",
                "CHAIN_VMA": "an anon_vma_chain belongs to VMA {got:#x}",
                "CHAIN_LIST": "the list of the chain does not lead back",
                "CHAIN_ROOT": "two anon_vmas of the chain have different roots",
                "CHAIN_LACKS_OWN": "the VMA's anon_vma is not in its chain",
                "INTERVAL_UNREADABLE": "the tree leads to {at:#x}, where no node can be",
                "INTERVAL_UNLINKED": "the node is in no interval tree",
                "INTERVAL_SUBTREE": "rb_subtree_last is {got:#x}, and the largest end is {want:#x}",
                "INTERVAL_ORDER": "the node is on the wrong side of a node above it",
                "INTERVAL_NO_CHILD": "the node above has no such child",
                "INTERVAL_COVER": "a node above ends at {got:#x}, before {want:#x}",
                "INTERVAL_TREE": "the climb ends at {got:#x}, and the tree's root is {want:#x}",
                "INTERVAL_TOO_DEEP": "the climb does not end",
            },
        ),
    ),
)
