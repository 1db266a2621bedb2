"""L6: rmap walks are covered."""

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
    """rmap_walk_file() and rmap_walk_ksm() demand it of every walker they know; its absence there can be a walk without a folio."""
    walker = protocol.context.walker
    return walker in FOLIO_LOCK_WALKERS or (
        walker is Walker.REFERENCED and protocol.window != "rmap_walk_anon"
    )


def judge_walk(protocol: Protocol) -> Ruling | None:
    """L6: rmap_walk_anon(), rmap_walk_file(), mm/rmap.c; rmap_walk_ksm(), mm/ksm.c, which takes the lock of each rmap_item in turn.
    A walk that visits nothing is no check."""
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
        claim="rmap_walk_anon() and rmap_walk_ksm() run under the anon_vma root's rwsem, rmap_walk_file() under i_mmap_rwsem; "
        "the folio is locked where the walk demands it.",
        stated="rmap_walk_anon(), rmap_walk_file(): mm/rmap.c; rmap_walk_ksm(): mm/ksm.c",
        not_violations="Callers that hand a held lock over (rmap_walk_locked()). Walks without a folio (mapping_wrprotect_range()). "
        "A walk that found nothing to visit is not counted.",
        confirmed="By rwsem.owner and count at each visit. A lock that is read-held without an acquisition by this walk may be another's: "
        "unverifiable.",
        blind_spots="Whether the read lock is this task's is known from the rwsem hooks only; whose the folio lock is, is not known.",
        needs=("rmap_walk_anon", "rmap_walk_file"),
        lacking={
            "rmap_walk_ksm": "walks of merged pages are not seen",
            "down_read": "which task holds a read lock is not known: most walks are unverifiable",
            "down_read_trylock": "which task holds a read lock is not known: most walks are unverifiable",
        },
        judge=judge_walk,
    ),
)
