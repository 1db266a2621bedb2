"""L7: no task waits for a lock that it holds, tasks do not wait in a ring, and none for ever."""

from __future__ import annotations

from tracer.invariants.base import CheckCounters, Invariant, Loss

WRITER_WAITS = "writer_waits"
"""The feature: that a writer waits for an rwsem, and not for a mutex, shows in the wait itself."""

NO_SELF_WAIT = Invariant(
    id="L7",
    title="no task waits for itself",
    claim=(
        "A task does not wait for an rwsem that it holds, and tasks do not wait for each other in"
        " a ring. No wait for a lock of an mm, and no sleep inside a window, lasts longer than"
        " max_wait_seconds."
    ),
    stated=(
        "Documentation/locking/lockdep-design.rst, 'Validation rules': the same lock is not taken"
        " twice by one task. The limit is ours: the kernel reports a hung task after 120 s"
        " (kernel/hung_task.c)"
    ),
    not_violations=(
        "A wait for a lock that another task holds, however often it happens. A task that sleeps"
        " for I/O, waits for no lock of an mm and is in no window. A reader that takes an rwsem"
        " again while no writer waits. Time in which the checker did not run, as in a virtual"
        " machine that its host stops, is no part of a wait. A fork that waits until the monitor of"
        " its userfaultfd has read the event."
    ),
    confirmed=(
        "When a wait begins, the owner field names the waiting task itself: it wrote its name"
        " there, and only it takes it out again, so it waits for ever. Later, by the iterator over"
        " tasks: each task of a ring is in the queue of a lock that the next one owns for write,"
        " and none has run between two looks. A ring that goes through a reader of an mmap_lock is"
        " reported when its members have slept for max_wait_seconds, because readers are known by"
        " what the tracepoints recorded; where the kernel left out runs of these, and on"
        " PREEMPT_RT, it is a suspect. That a task holds an rwsem for read itself is known by the"
        " steps of its window; it is reported when one reader has kept it waiting for 5 s. A wait"
        " or a sleep over the limit is a suspect."
    ),
    blind_spots=(
        "A lock that is held for read has no name in its owner field: outside of windows a wait for"
        " one's own read hold, other than of an mmap_lock, is a suspect after max_wait_seconds."
        " Mutexes and folio locks: a ring through one of them is seen as a wait that is too long."
        " A task that spins. On PREEMPT_RT a task that"
        " waits for itself is seen when it begins to, not later, because the kernel then puts it to"
        " another sleep."
    ),
    needs=("lock_wait",),
    lacking={
        "sleepers": (
            "a wait is looked at once, when it begins: rings and waits without an end are not seen"
        ),
        "mmap_lock_acquire_returned": "the readers of an mmap_lock are not known",
        "down_read": "the readers of other rwsems are not known",
        WRITER_WAITS: (
            "on PREEMPT_RT a writer that waits for another one is known only where the rwsem is"
            " part of an mm, a file, an anon_vma or hugetlb: others seem to wait for a mutex"
        ),
    },
    counters=CheckCounters(holds=("RWSEM_WAITS",)),
    losses=(Loss("waits", counters=("WAITS_LOST",), missed_runs=("lock_wait",)),),
)

INVARIANTS = (NO_SELF_WAIT,)
