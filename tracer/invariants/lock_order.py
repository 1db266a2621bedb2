"""L1 and L2: the order of locks, within a window and over the whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tracer.invariants.base import CheckCounters, Invariant, Loss, UnbrokenRuns
from tracer.invariants.verdict import Ruling, Verdict
from tracer.protocol.model import FOLIO_LOCK_WALKERS, Kind, Lock, Locking, Owner, Protocol

_RANKS = {
    Lock.I_RWSEM: 0,
    Lock.MMAP: 1,
    Lock.INVALIDATE: 2,
    Lock.HUGETLB: 4,
    Lock.VMA: 6,
    Lock.I_MMAP: 7,
    Lock.ANON: 8,
}
"""mm/rmap.c, 'Lock ordering in mm', outermost first; the folio lock would be 3. vma_start_write()
stands between the i_mmap_rwsem of hugetlbfs and that of other files; hugetlb's own vma_lock before
either ('hugetlbfs PageHuge() take locks in this order')."""
_HUGETLB_I_MMAP = 5
_HUGETLB_NODE = "hugetlb_i_mmap"

_INSTANCES = (Lock.MMAP, Lock.I_MMAP, Lock.ANON)
"""Classes of which one task holds one instance at a time."""

MANY_ALLOWED = {
    (
        "mm_take_all_locks",
        Lock.I_MMAP,
    ): "mm_take_all_locks(), mm/vma.c (mm/mmap.c before 6.12): under mm_all_locks_mutex",
    (
        "mm_take_all_locks",
        Lock.ANON,
    ): "mm_take_all_locks(), mm/vma.c (mm/mmap.c before 6.12): under mm_all_locks_mutex",
    (
        "dup_mmap",
        Lock.MMAP,
    ): (
        "dup_mmap(), mm/mmap.c (kernel/fork.c before 6.16): mmap_write_lock_nested(mm,"
        " SINGLE_DEPTH_NESTING)"
    ),
}
"""(window, class) -> where the kernel documents that many of the class are held at once."""


def _readers(protocol: Protocol) -> set[Lock]:
    """Return the locks that this task may have held for read at entry.

    Each was read-held then, and the rest of the window does not show that another task held it.
    """
    steps = [step for step in protocol.flat() if isinstance(step, Locking)]
    found = set()
    for (lock, before), (_, after) in zip(
        protocol.context.entry.items(), protocol.context.exit.items(), strict=True
    ):
        gives_back = any(step == Locking(lock, Kind.UP_READ) for step in steps)
        waits_for_it = any(
            step.lock is lock and step.kind.blocks and step.kind.writes for step in steps
        )  # on itself it would wait for ever
        if before is Owner.READ and (gives_back or (after is Owner.READ and not waits_for_it)):
            found.add(lock)
    return found


def acquisitions(
    protocol: Protocol,
) -> Iterator[tuple[Locking, tuple[Lock, ...], tuple[Lock, ...]]]:
    """Yield every acquisition that may wait, with the locks held.

    Its step, the locks that this task holds, and those that it may hold for read since before the
    window.
    """
    held = Counter(
        {lock: 1 for lock, owner in protocol.context.entry.items() if owner is Owner.SELF}
    )
    readers = _readers(protocol)
    for step in protocol.flat(2):
        if not isinstance(step, Locking) or step.kind is Kind.DOWNGRADE_WRITE:
            continue
        if step.kind.acquires:
            if step.kind.blocks:
                yield step, tuple(+held), tuple(sorted(readers))
            held[step.lock] += 1
        elif held[step.lock]:
            held[step.lock] -= 1
        else:
            readers.discard(step.lock)


def _rank(lock: Lock, protocol: Protocol) -> int | None:
    if lock.family is Lock.I_MMAP and protocol.context.hugetlb:
        return _HUGETLB_I_MMAP
    return _RANKS.get(lock.family)


def _above(taken: Lock, held: Lock, protocol: Protocol) -> bool:
    """Whether the documented order has `taken` outside of `held`."""
    outer, inner = _rank(taken, protocol), _rank(held, protocol)
    return outer is not None and inner is not None and outer < inner


def judge_order(protocol: Protocol) -> Ruling | None:
    """Rule on L1: mm/rmap.c, 'Lock ordering in mm'."""
    if protocol.lost:
        return Ruling(Verdict.UNVERIFIABLE, "an event is missing")
    if _after_the_folio(protocol):
        return Ruling(Verdict.VIOLATED, "i_mmap_rwsem of hugetlb is taken with the folio locked")
    rulings = [
        _order(protocol, step.lock, *held)
        for step, *held in acquisitions(protocol)
        if _rank(step.lock, protocol) is not None
    ]
    for verdict in (Verdict.VIOLATED, Verdict.SUSPECT):
        for ruling in rulings:
            if ruling.verdict is verdict:
                return ruling
    if protocol.overlong:
        return Ruling(Verdict.UNVERIFIABLE, "the rest of the window is not known")
    return Ruling(Verdict.HOLDS) if rulings else None


def _after_the_folio(protocol: Protocol) -> bool:
    """Whether a hugetlb walk takes i_mmap_rwsem with the folio locked, which comes after it.

    A trylock of these walks counts too: if it fails they wait, as none of them sets rwc->try_lock
    (rmap_walk_file(), mm/rmap.c; 6d4675e60135 in v5.19).
    """
    context = protocol.context
    if not context.hugetlb or not context.folio_locked or context.walker not in FOLIO_LOCK_WALKERS:
        return False
    return any(
        isinstance(step, Locking) and step.lock.family is Lock.I_MMAP and step.kind.acquires
        for step in protocol.flat()
    )


def _order(
    protocol: Protocol, taken: Lock, held: tuple[Lock, ...], readers: tuple[Lock, ...]
) -> Ruling:
    for lock in held:
        if _above(taken, lock, protocol):
            return Ruling(
                Verdict.VIOLATED, f"{taken.display_name} is taken with the {lock.display_name} held"
            )
        many = taken.family is lock.family and taken.family in _INSTANCES
        if many and (protocol.window, taken.family) not in MANY_ALLOWED:
            return Ruling(Verdict.VIOLATED, f"{taken.display_name} is taken with one held already")
    for lock in readers:
        if _above(taken, lock, protocol):
            return Ruling(
                Verdict.SUSPECT,
                f"{taken.display_name} is taken with the {lock.display_name} read-held, perhaps by"
                " this task",
            )
    return Ruling(Verdict.HOLDS)


Edge = tuple[str, str]


class LockGraph:
    """L2: the lock classes that were waited for while others were held.

    first: the protocol that added each edge.
    """

    def __init__(self) -> None:
        self.first: dict[Edge, Protocol] = {}
        self._closing: dict[Edge, tuple[Edge, ...]] = {}

    def add(self, protocol: Protocol) -> tuple[Edge, ...] | None:
        """Add the protocol's edges; return the cycle that one of them closed when it was new.

        () if none did; None if the protocol has no edges. Only the protocol that adds the closing
        edge is blamed.
        """
        if protocol.lost:
            return None
        edges = _edges(protocol)
        for edge in edges:
            if edge not in self.first:
                self.first[edge] = protocol
                self._closing[edge] = self._cycle(edge)
        return next(filter(None, (self._closing[edge] for edge in edges)), ()) if edges else None

    def _cycle(self, edge: Edge) -> tuple[Edge, ...]:
        """Return the shortest cycle through this edge."""
        held, taken = edge
        met = {taken}
        paths: list[tuple[Edge, ...]] = [(edge,)]
        for path in paths:
            for nearer in self.first:
                if nearer[0] != path[-1][1] or nearer[1] in met:
                    continue
                if nearer[1] == held:
                    return _turned((*path, nearer))
                met.add(nearer[1])
                paths.append((*path, nearer))
        return ()


def _turned(cycle: tuple[Edge, ...]) -> tuple[Edge, ...]:
    """Return the cycle beginning with its smallest edge, so that equal cycles compare equal."""
    start = cycle.index(min(cycle))
    return cycle[start:] + cycle[:start]


def _edges(protocol: Protocol) -> tuple[Edge, ...]:
    return tuple(dict.fromkeys(edge for edge, _ in nestings(protocol)))


def nestings(protocol: Protocol) -> tuple[tuple[Edge, str], ...]:
    """Return the protocol's edges, each with the modes in which the inner lock is taken.

    `other` is no class, and two instances of one class are L1's.
    """
    found = dict[tuple[Edge, str], None]()
    for step, held, _ in acquisitions(protocol):
        for lock in held:
            edge = _node(lock, protocol), _node(step.lock, protocol)
            if Lock.OTHER not in (lock, step.lock) and edge[0] != edge[1]:
                found[edge, "write" if step.kind.writes else "read"] = None
    return tuple(found)


def classes() -> dict[str, tuple[str, int]]:
    """Return every class that the graph may have -> its name in words, its documented rank."""
    known = {str(lock): (lock.display_name, rank) for lock, rank in _RANKS.items()}
    return known | {_HUGETLB_NODE: ("i_mmap_rwsem of hugetlbfs", _HUGETLB_I_MMAP)}


def _node(lock: Lock, protocol: Protocol) -> str:
    """Return the class of a lock: hugetlbfs has its own, hugetlbfs_i_mmap_rwsem_key of lockdep."""
    return (
        _HUGETLB_NODE
        if lock.family is Lock.I_MMAP and protocol.context.hugetlb
        else str(lock.family)
    )


_RWSEM = ("down_write", "up_write", "down_read", "up_read")
RWSEM_LACKING = {
    "downgrade_write": "downgrades are not seen",
    "down_write_killable": "killable acquisitions are not seen: their windows are unverifiable",
    "down_read_killable": "killable acquisitions are not seen: their windows are unverifiable",
    "down_write_trylock": "trylocks are not seen: their windows are unverifiable",
    "down_read_trylock": "trylocks are not seen: their windows are unverifiable",
}
"""What the absence of an rwsem hook costs; a release without its acquisition is an event that is
missing."""

DOCUMENTED_ORDER = Invariant(
    id="L1",
    title="documented lock order",
    claim="Within a window no blocking acquisition of a lower rank while a higher rank is held.",
    stated="the head of mm/rmap.c, 'Lock ordering in mm'",
    not_violations=(
        "Trylocks, except where a walk of hugetlbfs waits if they fail. Many locks of one class in"
        " mm_take_all_locks(); the child's mmap_lock under the parent's in dup_mmap(). hugetlb,"
        " whose i_mmap_rwsem comes before the folio lock."
    ),
    confirmed=(
        "By the order of the operations themselves. A lock that was read-held at entry, and that"
        " the window gives back or that is read-held at return, may be this task's or another"
        " one's: suspect. rwsem.owner names one of the last readers, so an i_mmap_rwsem or anon_vma"
        " rwsem whose owner is not this task is not counted, except on PREEMPT_RT, which names no"
        " reader."
    ),
    blind_spots=(
        "Locks that the caller took, other than the window's mmap_lock, i_mmap_rwsem and anon_vma"
        " rwsem; of these two, one that this task read-holds and another took for read since, or"
        " with it; the folio lock, except in rmap walks."
    ),
    needs=_RWSEM,
    lacking=RWSEM_LACKING,
    judge=judge_order,
)

_MMAP_LOCK = ("mmap_lock_acquire_returned", "mmap_lock_released")
NO_CYCLE = Invariant(
    id="L2",
    title="no cycle among lock classes",
    claim="The locks that are taken while another is held never form a cycle over the whole run.",
    stated=(
        "mm/rmap.c, 'Lock ordering in mm'; dup_mmap() in mm/mmap.c (kernel/fork.c before 6.16) is"
        " the one nesting of two mmap_locks"
    ),
    not_violations=(
        "A child's mmap_lock taken under its parent's by fork. A trylock, which cannot wait and so"
        " cannot deadlock: of two mmap_locks, what reclaim takes without waiting. An mm whose"
        " address is reused: mms have ids that are never reused."
    ),
    confirmed=(
        "Between classes by the operations themselves, with the first protocol and stack of every"
        " edge. Between two mmap_locks, from tracepoints alone, a trylock looks like any"
        " acquisition, so a reversed pair is a suspect, with both stacks; the nesting in a fork has"
        " none."
    ),
    blind_spots=(
        "Pairs older than the last order_rows nestings; a lock taken again by its own holder (a"
        " legal trylock looks the same); locks of one class, except mmap_lock."
    ),
    needs=_MMAP_LOCK,
    lacking=dict.fromkeys(
        _RWSEM,
        "only mmap_lock against mmap_lock: the rwsems of anon_vma and i_mmap have no tracepoint",
    ),
    every_window=True,
    counters=CheckCounters(holds=("NESTED_HOLDS",)),
    losses=(Loss("locks", counters=("LOCKS_LOST",)),),
    unbroken=UnbrokenRuns("mmap_lock", _MMAP_LOCK, "mmap_lock"),
)

INVARIANTS = (DOCUMENTED_ORDER, NO_CYCLE)
