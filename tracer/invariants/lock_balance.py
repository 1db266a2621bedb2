"""L3: a window returns with the locks that it was entered with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tracer.invariants.base import Alternative, Invariant
from tracer.invariants.lock_order import RWSEM_LACKING
from tracer.invariants.maple_tree import AUDIT
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import Kind, Lock, Locking, Owner, Protocol

OWNERS = "owners"
"""The feature that rwsems and the tasks that own them can be read by value."""
_TAKES_ALL = (
    "mm_take_all_locks(), mm/vma.c (mm/mmap.c before 6.12): mm_drop_all_locks() gives back, at the"
    " latest on failure"
)
CONTRACTS = {
    ("mm_take_all_locks", Lock.I_MMAP): _TAKES_ALL,
    ("mm_take_all_locks", Lock.ANON): _TAKES_ALL,
    ("mm_take_all_locks", Lock.OTHER): _TAKES_ALL,
    ("mm_drop_all_locks", Lock.I_MMAP): _TAKES_ALL,
    ("mm_drop_all_locks", Lock.ANON): _TAKES_ALL,
    ("mm_drop_all_locks", Lock.OTHER): _TAKES_ALL,
    (
        "collapse_huge_page",
        Lock.MMAP,
    ): (
        "collapse_huge_page(), mm/khugepaged.c: gives back the caller's mmap_lock, 'allocate a huge"
        " page' first"
    ),
}
"""(window, class) -> where the kernel documents that the window returns with other locks than it
was entered with."""


def _expected(protocol: Protocol, lock: Lock) -> bool:
    """Whether the kernel documents that the window changes this lock.

    dup_mmap() is seen in pieces: both mmap_locks are taken in the first and released in the last
    (kernel/fork.c).
    """
    return (protocol.window, lock.family) in CONTRACTS or (
        protocol.context.piece and lock.family is Lock.MMAP
    )


def judge_balance(protocol: Protocol) -> Ruling | None:
    """Rule on L3: first by the owner fields at entry and return, then by the sum of the steps."""
    context = protocol.context
    states = {
        lock: (before, after)
        for (lock, before), (_, after) in zip(
            context.entry.items(), context.exit.items(), strict=True
        )
    }
    for lock, (before, after) in states.items():
        if _expected(protocol, lock) or (before is Owner.SELF) is (after is Owner.SELF):
            continue
        how = (
            "with the {} held for write"
            if after is Owner.SELF
            else "without the {} that it was entered with"
        )
        return Ruling(
            Verdict.VIOLATED,
            f"returns {'an error ' if protocol.error else ''}{how.format(lock.display_name)}",
            proven=True,
        )
    if protocol.lost:
        return Ruling(Verdict.UNVERIFIABLE, "an event is missing")
    if protocol.overlong:
        return Ruling(Verdict.UNVERIFIABLE, "the rest of the window is not known")
    steps = [step for step in protocol.flat(2) if isinstance(step, Locking)]
    if not steps and all(Owner.SELF not in pair for pair in states.values()):
        return None
    rulings = list(_leftovers(protocol, steps, states))
    return next(
        (ruling for ruling in rulings if ruling.verdict is Verdict.UNVERIFIABLE),
        rulings[0] if rulings else Ruling(Verdict.HOLDS),
    )


def _leftovers(
    protocol: Protocol, steps: list[Locking], states: dict[Lock, tuple[Owner, Owner]]
) -> Iterator[Ruling]:
    """Yield a ruling for each lock that the steps leave over, where the owner fields agree."""
    writes, reads = Counter[Lock](), Counter[Lock]()
    for lock, kind in ((step.lock, step.kind) for step in steps):
        if kind is Kind.DOWNGRADE_WRITE:
            writes[lock] -= 1
            reads[lock] += 1
        else:
            (writes if kind.writes else reads)[lock] += 1 if kind.acquires else -1
    for lock in dict.fromkeys(step.lock for step in steps):
        if _expected(protocol, lock) or not (writes[lock] or reads[lock]):
            continue
        left, taken_from = writes[lock] + reads[lock] > 0, writes[lock] < 0 or reads[lock] < 0
        if lock in states:
            before, after = states[lock]
            possible = not writes[lock] and (after if left else before) is Owner.READ
        else:
            possible = not taken_from
        if not possible:
            may_be_hidden = lock in (Lock.I_MMAP, Lock.ANON) and not writes[lock]
            why = (
                ": an event is missing, or another task took the lock for read, too"
                if may_be_hidden  # as a free one in the context (tree_held_by_us(), rwsem.h)
                else ", so an event is missing"
            )
            yield Ruling(Verdict.UNVERIFIABLE, f"{lock.display_name}: the steps do not add up{why}")
        elif left:
            yield Ruling(
                Verdict.SUSPECT, f"returns with a {lock.display_name} held, according to the steps"
            )
        else:
            yield Ruling(
                Verdict.SUSPECT,
                f"gives back a {lock.display_name} that was held at entry, perhaps by this task",
            )


BALANCE = Invariant(
    id="L3",
    title="locks are given back",
    claim=(
        "A window returns with the locks that it was entered with. A task that has left its call"
        " owns no mmap_lock, i_mmap_rwsem or anon_vma rwsem."
    ),
    stated=(
        "mm/vma.c, vma_prepare() and vma_complete(). An error return of do_brk_flags() once"
        " kept its lock: Hugh Dickins, 7 July 2022,"
        " <e2df94dc-f54c-ebb9-14f0-98b232358d4@google.com>"
    ),
    not_violations=(
        "Pairs by contract: mm_take_all_locks() and mm_drop_all_locks(); collapse_huge_page(),"
        " which gives back its caller's mmap_lock. A lock that is given back and taken again. A"
        " call that takes long: fork, mremap and munmap of much memory."
    ),
    confirmed=(
        "A lock held for write at return and not at entry, or the other way round, is proven by"
        " rwsem.owner. A read lock or a lock of no known class, for which there are only the"
        " steps, is a suspect. By audit: the owner field names a task that enters a system call,"
        " runs in user mode, or is stopped or dead. A task that sleeps"
        " interruptibly with the lock for 10 s, or has had it for 120 s, is a suspect."
    ),
    blind_spots=(
        "A read lock that is kept while another task reads too looks the same to the owner"
        " field; of an i_mmap_rwsem or anon_vma rwsem that another task took for read after this"
        " one, the window is unverifiable. By audit: a lock that is kept for less than a pass of"
        " the audit; before 6.4, and for rmap locks, a task that stays in user mode and enters no"
        " system call. The name of a dead owner may be a new task's by then, which is then named."
    ),
    needs=("down_write", "up_write", "down_read", "up_read"),
    otherwise=Alternative(
        (AUDIT, OWNERS, "owner_enters"),
        "only locks that the state audit finds owned for write are followed: a lock that is kept"
        " for less than a pass of the audit is not seen, nor is a read lock",
    ),
    lacking=RWSEM_LACKING,
    judge=judge_balance,
)

INVARIANTS = (BALANCE,)
