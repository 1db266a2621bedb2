"""Rwsems and the tasks that own them, read by value; and what watched owners do.

A BPF program reads one lock and one task_struct on demand. It takes no lock and causes no fault.
Another one runs where tasks enter system calls, while it is attached, and looks whether a watched
task still owns its lock there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tracer.bpf.maps import Table
from tracer.bpf.programs import Runnable
from tracer.tables.c_structs import Layouts

# include/linux/sched.h
_INTERRUPTIBLE, _UNINTERRUPTIBLE, _STOPPED, _TRACED = 0x1, 0x2, 0x4, 0x8
_WITHOUT_SYSTEM_CALLS = 0x10 | 0x4000 | 0x200000  # PF_IO_WORKER, PF_USER_WORKER, PF_KTHREAD


@dataclass(frozen=True)
class OwnerLook:
    """A lock and its supposed owner at one moment.

    owned: the task has the lock for write, before and after the rest was read. identity: of the
    object that the lock is a part of; 0: there is no such lock at the address (any more). seq:
    mm_lock_seq, which stays the same while one task has an mmap_lock; None for other locks, and
    before Linux 6.4. start_ns: when the task began; another task has another one. alive: it has
    neither exited nor been released. user_ns, system_ns: CPU time. switches: context switches.
    call: the number of the system call that it is in, if it is in one.
    """

    owned: bool
    identity: int
    seq: int | None
    start_ns: int
    alive: bool
    user_ns: int
    system_ns: int
    switches: int
    call: int
    state: int
    flags: int
    on_cpu: bool
    cpu: int
    tid: int
    tgid: int
    comm: str

    @property
    def halted(self) -> bool:
        """Whether it is stopped or traced: a task stops on its way to user mode."""
        return bool(self.state & (_STOPPED | _TRACED))

    @property
    def sleeps_for_long(self) -> bool:
        """Whether it sleeps so that a signal would wake it, as tasks wait for users."""
        return bool(self.state & _INTERRUPTIBLE) and not self.on_cpu

    @property
    def enters_system_calls(self) -> bool:
        """Whether it is a task of a user, and not one that never leaves the kernel."""
        return not self.flags & _WITHOUT_SYSTEM_CALLS

    @property
    def doing(self) -> str:
        """Describe its state in words."""
        if not self.alive:
            return "dead"
        if self.halted:
            return "stopped or traced"
        if self.on_cpu:
            return f"running on CPU {self.cpu}"
        if self.state & (_INTERRUPTIBLE | _UNINTERRUPTIBLE):
            killable = "" if self.state & _INTERRUPTIBLE else "un"
            return f"sleeping {killable}interruptibly"
        return "runnable"


@dataclass(frozen=True)
class Watched:
    """A lock and the task that owned it: what owner_enters is to look for.

    kind: a name of enum audit_lock. identity, start_ns: as in OwnerLook.
    """

    lock: int
    kind: str
    task: int
    identity: int
    start_ns: int


@dataclass(frozen=True)
class Entered:
    """What a watched task did: system calls that it entered with the lock, and without it.

    call: the number of the first one that it entered with the lock.
    """

    kept: int
    let_go: int
    call: int


class OwnerReader:
    """Reads locks and their owners, and the table of those that are watched."""

    def __init__(self, maps: Mapping[str, Table], look: Runnable, layouts: Layouts) -> None:
        """look: the program owner_look."""
        self._look, self._found, self._watched = look, maps["owner_look"], maps["watched_locks"]
        self._layout = layouts.structs["owner_look"]
        self._key, self._row = layouts.structs["watch_key"], layouts.structs["watched_lock"]
        self._kinds = {name: number for number, name in enumerate(layouts.enums["audit_lock"])}
        self._most = layouts.constants["WATCHED_LOCKS"]
        self._most_a_task = layouts.constants["WATCHED_LOCKS_A_TASK"]

    def look(self, lock: int, kind: str, task: int) -> OwnerLook | None:
        """Look at a lock and at the task that is to own it; lock and task 0: at this thread.

        Returns None where it cannot be read: an address is not in RAM, or the bounds of RAM are not
        known.
        """
        self._look.run(lock, self._kinds[kind] if kind else 0, task)
        raw = self._found.lookup(bytes(4))
        found = self._layout.unpack(raw) if raw else None
        if found is None or not found.task:
            return None
        return OwnerLook(
            owned=bool(found.owned_before and found.owned_after),
            identity=found.identity,
            seq=found.seq if found.has_seq else None,
            start_ns=found.start_ns,
            alive=bool(found.linked) and not found.exit_state,
            user_ns=found.user_ns,
            system_ns=found.system_ns,
            switches=found.switches,
            call=found.call,
            state=found.state,
            flags=found.flags,
            on_cpu=bool(found.on_cpu),
            cpu=found.cpu,
            tid=found.tid,
            tgid=found.tgid,
            comm=found.comm,
        )

    def watch(self, locks: Iterable[Watched]) -> list[Watched]:
        """Fill the table with these; return those for which there was room."""
        self.forget()
        slots: dict[int, int] = {}
        taken = list[Watched]()
        for one in locks:
            slot = slots.get(one.task, 0)
            if slot < self._most_a_task and len(taken) < self._most:
                key = self._key.pack(task=one.task, slot=slot)
                self._watched.update(
                    key,
                    self._row.pack(
                        lock=one.lock,
                        kind=self._kinds[one.kind],
                        identity=one.identity,
                        start_ns=one.start_ns,
                    ),
                )
                slots[one.task] = slot + 1
                taken.append(one)
        return taken

    def entered(self) -> dict[tuple[int, int], Entered]:
        """Return (lock, task) -> what the watched task did, for each in the table."""
        found = {}
        for key, value in self._watched.items():
            row = self._row.unpack(value)
            found[row.lock, self._key.unpack(key).task] = Entered(row.kept, row.let_go, row.call)
        return found

    def forget(self) -> None:
        """Empty the table."""
        for key, _ in list(self._watched.items()):
            self._watched.delete(key)


def why_unreadable(reader: OwnerReader, comm: str) -> str:
    """Return why tasks cannot be read here, or an empty text.

    The running thread must be found as what it is: otherwise nothing that is read of other tasks is
    believed. comm: of this thread.
    """
    own = reader.look(0, "", 0)
    if own is None:
        return "the bounds of RAM in the direct map are not known"
    if own.comm != comm or not own.alive:
        return f"a look at rmapd's own task finds {own.comm}[{own.tid}], {own.doing}"
    return ""
