"""L4 and L5: the locks held where a tree or a boundary changes, by their owner fields then."""

from __future__ import annotations

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import (
    BOUNDARY_WINDOWS,
    Commit,
    Lock,
    Owner,
    Part,
    Protocol,
    Tree,
    TreeStep,
)

_STATES = {
    Owner.FREE: "not held",
    Owner.READ: "only read-held",
    Owner.OTHER: "held by another task",
}

MAY_BE_READ = {
    (
        "expand_downwards",
        Part.MMAP,
    ): (
        "expand_downwards(), mm/mmap.c before 6.5 and 6.1.37: a fault grew the stack under the"
        " page_table_lock"
    ),
    (
        "expand_upwards",
        Part.MMAP,
    ): (
        "expand_upwards(), mm/mmap.c before 6.5 and 6.1.37: a fault grew the stack under the"
        " page_table_lock"
    ),
}
"""(window, part) -> where some kernels change a boundary under a read-held lock. A protocol does
not contain the version: unverifiable."""


def judge_trees(protocol: Protocol) -> Ruling | None:
    """Rule on L4: mm/interval_tree.c has no lock of its own, its callers hold the rwsem for write.

    i_mmap_lock_write(): include/linux/fs.h; anon_vma_lock_write(): include/linux/rmap.h.
    """
    steps = [step for step in protocol.flat() if isinstance(step, TreeStep)]
    for step in steps:
        if step.owner not in (Owner.SELF, None):
            lock = Lock.ANON if step.tree is Tree.ANON else Lock.I_MMAP
            how = "enters" if step.enters else "leaves"
            return Ruling(
                Verdict.VIOLATED,
                f"a VMA {how} the {step.tree} tree with the {lock.display_name}"
                f" {_STATES[step.owner]}",
                proven=True,
            )
    if protocol.overlong:
        return Ruling(Verdict.UNVERIFIABLE, "the rest of the window is not known")
    return Ruling(Verdict.HOLDS) if steps else None


def judge_commits(protocol: Protocol) -> Ruling | None:
    """Rule on L5: vma_prepare(), mm/vma.c; __vma_adjust() and vma_expand(), mm/mmap.c up to 6.2."""
    if protocol.window not in BOUNDARY_WINDOWS or (
        protocol.window == "do_brk_flags" and not protocol.context.moved
    ):
        return None
    parts = [each for step in protocol.flat() if isinstance(step, Commit) for each in step.parts]
    excused = ""
    for part, owner in parts:
        if owner is Owner.READ and (protocol.window, part) in MAY_BE_READ:
            excused = (
                f"the boundary changes with the {Lock(part).display_name} only read-held: legal"
                " before 6.5 and 6.1.37, and only there"
            )
        elif owner is not Owner.SELF:
            return Ruling(
                Verdict.VIOLATED,
                f"the boundary changes with the {Lock(part).display_name} {_STATES[owner]}",
                proven=True,
            )
    if excused or (parts and protocol.overlong):
        return Ruling(Verdict.UNVERIFIABLE, excused or "the rest of the window is not known")
    return Ruling(Verdict.HOLDS) if parts else None


INVARIANTS = (
    Invariant(
        id="L4",
        title="held for the tree",
        claim=(
            "An interval tree of VMAs changes only under its rwsem, held for write by the task that"
            " changes it."
        ),
        stated=(
            "mm/interval_tree.c; i_mmap_lock_write(), anon_vma_lock_write(): include/linux/fs.h and"
            " rmap.h"
        ),
        not_violations=(
            "The tree of an anon_vma that is not published yet: no other task can reach it."
        ),
        confirmed="By rwsem.owner at the hook.",
        blind_spots="A tree that is changed in place, without remove and insert.",
        needs=(
            "anon_vma_interval_tree_insert",
            "anon_vma_interval_tree_remove",
            "vma_interval_tree_insert",
            "vma_interval_tree_insert_after",
            "vma_interval_tree_remove",
        ),
        judge=judge_trees,
        every_window=False,
    ),
    Invariant(
        id="L5",
        title="held at the commit",
        claim=(
            "When a window changes a VMA's boundaries, its mmap_lock and the locks of its anon_vma"
            " (an imported one too) and of its file are held for write; so is the VMA's own, where"
            " there is one."
        ),
        stated="vma_prepare(), mm/vma.c; __vma_adjust(), mm/mmap.c up to 6.2",
        not_violations=(
            "A VMA that no other task can find yet: copy_vma(), dup_mmap(), the new VMA of"
            " do_brk_flags(). The mmap_lock only read-held by expand_downwards() before 6.5 and"
            " 6.1.37, where the page_table_lock guarded: unverifiable, as a protocol does not"
            " contain the kernel's version."
        ),
        confirmed="By rwsem.owner at the commit.",
        blind_spots="A boundary that changes without a store into the maple tree.",
        needs=("commit", "__vma_adjust|commit_merge"),
        lacking={
            "vma_expand": "vma_expand() is not seen by itself",
            "__vma_adjust|vma_shrink": "shrinking is not seen",
            "__vma_adjust|__split_vma": "splits are not seen",
            "do_brk_flags": "brk is not seen",
            "expand_downwards": "stack growth is not seen",
        },
        judge=judge_commits,
    ),
)
