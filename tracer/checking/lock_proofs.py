"""L3 by audit: what proves that a task has kept a lock, and when a task is a suspect.

Four things prove it. Each must be true of a task at a moment when it owns the lock:

    entered     It enters a system call: it comes from user mode. The program owner_enters sees that
                while it is attached.
    user mode   It used CPU time in user mode while mm_lock_seq shows that it had the mmap_lock
                without a break (from Linux 6.4 on). A tick in user mode adds to utime
                (account_user_time(), kernel/sched/cputime.c).
    halted      It is stopped or traced: do_signal_stop() and ptrace_stop() (kernel/signal.c) are
                called on the way to user mode, or where none of these locks is held.
    dead        It has exited (do_exit(), kernel/exit.c, calls exit_notify() when the mm, the files
                and all task work are gone), or is released, and its task_struct may be another
                task's.

All but the first are read from memory that nothing holds, and must be seen in LOOKS looks in a row.

A task that works is in its call, however long that takes: a fork of a terabyte copies page tables
for some ten seconds. What is not proven is a suspect when a task has slept with the lock for ten
seconds so that a signal would wake it, which code under these locks does not do, or when it has had
the lock for the time after which the kernel itself reports a hung task (120 s,
kernel/hung_task.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from tracer.memory.lock_owners import OwnerLook

LOOKS = 3
"""Looks that find the same owner before it is watched, and that a proof by value takes."""
LOOK_GAP_NS = 20_000_000
SLEEP_LIMIT_NS = 10 * 10**9
HUNG_LIMIT_NS = 120 * 10**9


@dataclass(frozen=True)
class Proof:
    """Why it is certain that an owner kept its lock.

    shape: part of the signature. words: a format string over lock. of: what must stay the same from
    look to look.
    """

    shape: str
    words: str
    of: tuple[int, ...] = ()


_DEAD = "is dead and still owns the {lock} for write"
_HALTED = "is stopped on its way to user mode and still owns the {lock} for write"
_USER = "runs in user mode and still owns the {lock} for write"
ENTERED = Proof("enters a system call", "enters a system call and still owns the {lock} for write")


def by_value(base: OwnerLook, look: OwnerLook) -> Proof | None:
    """Return what proves by value that the owner kept the lock. base: the first look at it."""
    if not look.alive or look.start_ns != base.start_ns:
        return Proof("owner is dead", _DEAD)
    if look.halted:
        return Proof("owner is stopped", _HALTED, (look.switches,))
    if look.seq is not None and look.user_ns > base.user_ns:
        return Proof("owner is in user mode", _USER)
    return None


def suspicion(look: OwnerLook, age_ns: int) -> Proof | None:
    """Return why an owner is a suspect that has had its lock for this time, or None."""
    words = f"has owned the {{lock}} for write for {age_ns / 1e9:.0f} s, {look.doing}"
    if age_ns >= SLEEP_LIMIT_NS and look.sleeps_for_long:
        return Proof("sleeps for long", words)
    return Proof("owned for long", words) if age_ns >= HUNG_LIMIT_NS else None
