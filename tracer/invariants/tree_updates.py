"""V2: a VMA whose boundary moves leaves its interval trees before, and enters them after."""

from __future__ import annotations

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import BOUNDARY_WINDOWS, Commit, Protocol, Step, Tree, TreeStep

STORES_LATE = {
    (
        "__vma_adjust",
        Tree.FILE,
    ): (
        "__vma_adjust(), mm/mmap.c up to 6.2: with `insert`, only the new half is stored, after the"
        " trees"
    ),
    (
        "__split_vma",
        Tree.FILE,
    ): (
        "vma_complete(), mm/vma.c: the file VMA is back in its tree when the new half, the only one"
        " stored, is"
    ),
}
"""(window, tree) -> where the kernel puts the VMA back before the commit that a protocol shows."""


def judge_pairing(protocol: Protocol) -> Ruling | None:
    """Rule on V2: vma_prepare() and vma_complete(), mm/vma.c.

    Up to 6.2 anon_vma_interval_tree_pre_update_vma(), mm/mmap.c. A window that lets another
    boundary window do the work is judged by that one.
    """
    context = protocol.context
    trees = [
        tree
        for tree, has in ((Tree.ANON, context.anon or context.imported), (Tree.FILE, context.file))
        if has
    ]
    if (
        protocol.window not in BOUNDARY_WINDOWS
        or protocol.calls & BOUNDARY_WINDOWS
        or not context.moved
        or protocol.error
        or not trees
    ):
        return None
    if protocol.lost:
        return Ruling(Verdict.UNVERIFIABLE, "an event is missing")
    for tree in trees:
        if _too_early(protocol, tree):
            return Ruling(
                Verdict.VIOLATED, f"the boundary changes before the VMA leaves the {tree} tree"
            )
    if protocol.overlong:
        return Ruling(Verdict.UNVERIFIABLE, "the rest of the window is not known")
    for tree in trees:
        if not _enters_again(protocol, tree):
            return Ruling(
                Verdict.VIOLATED,
                f"the VMA does not enter the {tree} tree again after its boundary changed",
            )
    return Ruling(Verdict.HOLDS)


def _until_leave(protocol: Protocol, tree: Tree) -> tuple[list[Step], list[Step]]:
    """Return the steps before the VMA leaves the tree, and those after."""
    steps = list(protocol.flat())
    leaves = (
        n
        for n, step in enumerate(steps)
        if isinstance(step, TreeStep) and step.tree is tree and not step.enters
    )
    at = next(leaves, len(steps))
    return steps[:at], steps[at + 1 :]


def _too_early(protocol: Protocol, tree: Tree) -> bool:
    return any(isinstance(step, Commit) for step in _until_leave(protocol, tree)[0])


def _enters_again(protocol: Protocol, tree: Tree) -> bool:
    after = _until_leave(protocol, tree)[1]
    commits = [n for n, step in enumerate(after) if isinstance(step, Commit)]
    start = commits[0] if commits and (protocol.window, tree) not in STORES_LATE else 0
    return any(
        isinstance(step, TreeStep) and step.tree is tree and step.enters for step in after[start:]
    )


INVARIANTS = (
    Invariant(
        id="V2",
        title="tree updates come in pairs",
        claim=(
            "A window that moves a boundary takes the VMA out of its interval trees before, and"
            " puts it back after."
        ),
        stated="vma_prepare() and vma_complete(), mm/vma.c; __vma_adjust(), mm/mmap.c up to 6.2",
        not_violations=(
            "A boundary that no tree depends on: no anon_vma, no file. A window that fails before"
            " anything moved. A window that leaves the work to commit_merge(), vma_expand() or"
            " __vma_adjust()."
        ),
        confirmed="By the order of the tree's own hooks.",
        blind_spots=(
            "The VMAs of one window are not distinguished: one may leave a tree and another"
            " enter it."
        ),
        needs=(
            "anon_vma_interval_tree_insert",
            "anon_vma_interval_tree_remove",
            "vma_interval_tree_insert",
            "vma_interval_tree_remove",
            "__vma_adjust|commit_merge",
        ),
        lacking={
            "commit": (
                "that a boundary changes between the two is not seen, only that they come in this"
                " order"
            ),
            "__vma_adjust|vma_shrink": "shrinking is not seen",
            "__vma_adjust|__split_vma": "splits are not seen",
        },
        judge=judge_pairing,
    ),
)
