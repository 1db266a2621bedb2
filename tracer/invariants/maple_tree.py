"""V4: the maple tree of an mm is what its own functions promise."""

from __future__ import annotations

from tracer.invariants.base import AuditChecks, Invariant

AUDIT = "audit"
"""The feature that a look needs: the programs of the audit, and a calibrated direct map."""
AUDIT_CONFIRMED = (
    "By three narrow looks at the addresses that are wrong, 5 and 50 ms apart, that show the same"
    " and that no writer of the mmap_lock disturbed."
)
AUDIT_NOT_VIOLATIONS = (
    "A change that a look meets half-way: a narrow look at the same addresses shows nothing wrong"
    " afterwards, or a writer. Where a writer was there at every look, the check is unverifiable."
)

INVARIANTS = (
    Invariant(
        id="V4",
        title="the maple tree is well formed",
        claim=(
            "Each node of an mm's maple tree is where its parent says, its pivots ascend inside the"
            " parent's range, and its gaps are those between the VMAs below it."
        ),
        stated=(
            "mt_validate() and mas_validate_gaps(), lib/maple_tree.c; a BUG in the latter: Hugh"
            " Dickins, 7 July 2022, <e2df94dc-f54c-ebb9-14f0-98b232358d4@google.com>"
        ),
        not_violations=AUDIT_NOT_VIOLATIONS,
        confirmed=AUDIT_CONFIRMED,
        blind_spots=(
            "A fault that comes and goes between two looks at an mm. Nodes that no tree leads to."
        ),
        needs=(AUDIT,),
        audit=AuditChecks(
            subject="mm_mt",
            counted=("nodes",),
            problems={
                "NODE_UNREADABLE": "a slot leads to {at:#x}, where no node can be",
                "NODE_DEAD": "the tree leads to a node that is dead",
                "NODE_PARENT": "the parent pointer is {got:#x}, and {want:#x} leads here",
                "NODE_TYPE": "the node's type does not fit its depth",
                "NODE_PIVOT": "a pivot does not ascend, or leaves the parent's range",
                "NODE_CHILD": "a slot of an inner node has no node",
                "NODE_GAP": "a gap is larger than the range that it is in",
                "NODE_GAP_SLOT": "the metadata does not name the slot of the largest gap",
                "NODE_GAP_OF_PARENT": (
                    "the largest gap is {got:#x}, and the parent has {want:#x} for it"
                ),
                "NODE_BEYOND_END": "something stands behind the last slot in use",
                "NODE_TWO_EMPTY": "two neighbouring slots are empty",
                "NODE_END": "the last pivot is not the end of the node's range",
                "NODE_TOO_DEEP": "the tree is deeper than its flags state",
                "TREE_ROOT": "the root {got:#x} is no node",
            },
        ),
    ),
)
