"""L6: rmap walks hold the lock of what they walk."""

from __future__ import annotations

from tracer.invariants.base import Invariant
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import (
    FOLIO_LOCK_WALKERS,
    Kind,
    Lock,
    Locking,
    Owner,
    Protocol,
    Visit,
    Walker,
)

_WALKS = {"rmap_walk_anon": Lock.ANON, "rmap_walk_file": Lock.I_MMAP, "rmap_walk_ksm": Lock.ANON}
_STATES = {Owner.FREE: "not held", Owner.OTHER: "held for write by another task"}


def _demands_folio_lock(protocol: Protocol) -> bool:
    """Whether the kernel demands a locked folio of this walk.

    The callers of FOLIO_LOCK_WALKERS hold it. folio_referenced() locks file and KSM folios and
    leaves anonymous ones unlocked (mm/rmap.c). Other walkers may walk without a folio.
    """
    walker = protocol.context.walker
    return walker in FOLIO_LOCK_WALKERS or (
        walker is Walker.REFERENCED and protocol.window != "rmap_walk_anon"
    )


def judge_walk(protocol: Protocol) -> Ruling | None:
    """Rule on L6. A walk that visits nothing is no check.

    rmap_walk_anon(), rmap_walk_file(), mm/rmap.c; rmap_walk_ksm(), mm/ksm.c, which takes the lock
    of each rmap_item in turn.
    """
    if protocol.window not in _WALKS or not any(
        isinstance(step, Visit) for step in protocol.flat()
    ):
        return None
    if _demands_folio_lock(protocol) and not protocol.context.folio_locked:
        return Ruling(
            Verdict.VIOLATED,
            f"the {protocol.context.walker} walk runs with the folio not locked",
            proven=True,
        )
    lock, own, uncovered = _WALKS[protocol.window], 0, False
    for step in protocol.flat(2):
        if (
            isinstance(step, Locking)
            and step.lock.family is lock
            and step.kind is not Kind.DOWNGRADE_WRITE
        ):
            own += 1 if step.kind.acquires else -1
        elif isinstance(step, Visit) and step.owner in _STATES:
            return Ruling(
                Verdict.VIOLATED,
                f"the walk visits a VMA with the {lock.display_name} {_STATES[step.owner]}",
                proven=True,
            )
        elif isinstance(step, Visit):
            uncovered |= step.owner is Owner.READ and not protocol.context.locked and own <= 0
    if uncovered:
        return Ruling(
            Verdict.UNVERIFIABLE,
            f"the {lock.display_name} is read-held, and nothing shows that this walk holds it",
        )
    if protocol.overlong:
        return Ruling(Verdict.UNVERIFIABLE, "the rest of the walk is not known")
    return Ruling(Verdict.HOLDS)


INVARIANTS = (
    Invariant(
        id="L6",
        title="rmap walks are covered",
        claim=(
            "rmap_walk_anon() and rmap_walk_ksm() run under the anon_vma root's rwsem,"
            " rmap_walk_file() under i_mmap_rwsem; the folio is locked where the walk demands it."
        ),
        stated="rmap_walk_anon(), rmap_walk_file(): mm/rmap.c; rmap_walk_ksm(): mm/ksm.c",
        not_violations=(
            "Callers that hand a held lock over (rmap_walk_locked()). Walks without a folio"
            " (mapping_wrprotect_range()). A walk that finds no VMA is not counted."
        ),
        confirmed=(
            "By rwsem.owner and count at each visit. A read-held lock that this walk did not"
            " acquire may be another task's: unverifiable."
        ),
        blind_spots=(
            "Only the rwsem hooks show whether a read lock is this task's. The owner of the folio"
            " lock is not known."
        ),
        needs=("rmap_walk_anon", "rmap_walk_file"),
        lacking={
            "rmap_walk_ksm": "walks of merged pages are not seen",
            "down_read": "which task holds a read lock is not known: most walks are unverifiable",
            "down_read_trylock": (
                "which task holds a read lock is not known: most walks are unverifiable"
            ),
        },
        judge=judge_walk,
    ),
)
