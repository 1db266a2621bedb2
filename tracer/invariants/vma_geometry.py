"""V1 and V5: the VMA when its window ends. The probe compares; the context has the result."""

from __future__ import annotations

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Ruling, ruling_of
from tracer.protocol.model import Follows, Geometry, Protocol

_GEOMETRY = {
    Geometry.EMPTY: "vm_start is not below vm_end",
    Geometry.UNALIGNED: "vm_start or vm_end is not page aligned",
    Geometry.NOT_AS_ASKED: "the VMA's range is not the one that was asked for",
    Geometry.PGOFF: "vm_pgoff did not move with vm_start",
    Geometry.OVERLAP: "the VMA overlaps a neighbour",
}
_FOLLOWS = {
    Follows.MISSING: "the VMA took over pages of an anon_vma and has none",
    Follows.OTHER: "the VMA took over pages of an anon_vma and has another",
}


def judge_geometry(protocol: Protocol) -> Ruling | None:
    """Rule on V1: validate_mm(), mm/vma.c. A failed window need not do what it was asked for."""
    found = protocol.context.geometry
    if found is Geometry.NONE or (found is Geometry.NOT_AS_ASKED and protocol.error):
        return None
    return ruling_of(found, _GEOMETRY)


def judge_follows(protocol: Protocol) -> Ruling | None:
    """Rule on V5: dup_anon_vma(), mm/vma.c. A failed window took nothing over."""
    found = protocol.context.follows
    if found is Follows.NONE or protocol.error:
        return None
    return ruling_of(found, _FOLLOWS)


INVARIANTS = (
    Invariant(
        id="V1",
        title="VMA geometry",
        claim=(
            "After a window vm_start < vm_end, page aligned, as asked for, vm_pgoff moved along,"
            " and no overlap with a neighbour."
        ),
        stated="validate_mm(), mm/vma.c",
        not_violations="A failed window's VMA that is not as asked for.",
        confirmed="By the VMA at the window's end, under the mmap_lock that the window holds.",
        blind_spots=(
            "Windows of functions without a VMA argument. Overlap is checked between the halves of"
            " a split only."
        ),
        needs=("__vma_adjust|commit_merge|vma_expand",),
        lacking={
            "__vma_adjust|vma_shrink": "shrinking is not seen",
            "__split_vma": "splits are not seen",
            "copy_vma": "mremap is not seen",
            "expand_downwards": "stack growth is not seen",
        },
        judge=judge_geometry,
    ),
    Invariant(
        id="V5",
        title="the anon_vma follows its pages",
        claim=(
            "A VMA that takes over the pages of a VMA with an anon_vma has that anon_vma when the"
            " window ends."
        ),
        stated="dup_anon_vma(), mm/vma.c; broken from 6.16 to 6.18.7 (CVE-2026-23077)",
        not_violations="VMAs without faulted pages, which have no anon_vma to hand over.",
        confirmed="By the VMAs at the window's end.",
        blind_spots="A chain that lacks an older anon_vma than vma->anon_vma.",
        needs=("copy_vma",),
        lacking={
            "__vma_adjust|commit_merge|vma_expand": (
                "merges and expansions over a neighbour are not seen"
            )
        },
        judge=judge_follows,
    ),
)
