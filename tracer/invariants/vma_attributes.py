"""V6: what a VMA has beside its range. The probe compares; the context has the result."""

from __future__ import annotations

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Ruling, ruling_of
from tracer.protocol.model import Kept, Protocol

_LOST = {
    Kept.FLAGS: "addresses that were to keep their vm_flags have others",
    Kept.UFFD: "addresses that were to keep their userfaultfd have another, or none",
    Kept.POLICY: "addresses that were to keep their memory policy have another",
    Kept.FILE: "addresses that were to keep their file and offset have others",
    Kept.NAME: "addresses that were to keep their name have another",
    Kept.RANGE: "the range is not the one that was asked for, or an address beside it is gone",
}


def judge_kept(protocol: Protocol) -> Ruling | None:
    """Rule on V6: is_mergeable_vma(), mm/vma.c. A failed window may change nothing at all."""
    found = protocol.context.kept
    if found is Kept.NONE:
        return None
    return ruling_of(found, _LOST)


INVARIANTS = (
    Invariant(
        id="V6",
        title="a merge or a move loses nothing",
        claim=(
            "A merge, a split or a move of VMAs is asked for a range of one VMA or of none. It"
            " leaves vm_flags, userfaultfd, memory policy, file and offset, and name of the"
            " addresses beside that range as they were, and gives the range those that were asked"
            " for; a moved range has those of its source."
        ),
        stated=(
            "is_mergeable_vma() and the VM_WARN_ON of vma_merge_existing_range(), mm/vma.c; broken"
            " from 6.17 to 6.18.20 (CVE-2026-23416) and up to 7.3.3 (a userfaultfd lost by mremap)"
        ),
        not_violations=(
            "VM_SOFTDIRTY and VM_MAYBE_GUARD, in which VMAs that are merged may differ; the"
            " userfaultfd of a moved range, which mremap() ends unless it has"
            " UFFD_FEATURE_EVENT_REMAP; mlock() of the source of MREMAP_DONTUNMAP; the offset of"
            " memory with neither file nor anon_vma, which is that of no page: copy_vma() changes"
            " it, and in 7.2.12 and 7.3.4 dontunmap_complete()."
        ),
        confirmed="By the VMAs at both ends of the window, under the mmap_lock that it holds.",
        blind_spots=(
            "What a system call does to its VMA before and after the window. Of a range its first"
            " address is compared; of a policy the first 64 nodes. Up to 6.10 vma_merge() is not"
            " compared: the verifier of 6.1 gives up on the programs. Where mremap() cannot split"
            " its source for lack of memory, the kernel leaves VM_ACCOUNT off on the rest of it"
            " (move_vma(), 'OOM: unable to split vma'): that is called violated, too."
        ),
        needs=("vma_modify",),
        lacking={
            "move_vma": "moves are not seen",
            "__split_vma": "splits are not seen",
            "vma_merge_new_range": "merges of new ranges are not seen",
        },
        judge=judge_kept,
    ),
)
