"""The programs that look at rwsems and their owners, and at watched tasks at system calls."""

from __future__ import annotations

import ctypes
import functools
import struct

import pytest

from tests.support.box import OTHER_TASK
from tests.support.btf_blob import kernel_types
from tests.support.native import LAYOUTS, Native, synthetic_kernel
from tracer.memory.lock_owners import Entered, OwnerLook, OwnerReader, Watched, why_unreadable

WRITER, HANDOFF, READER_BIAS = 1, 1 << 2, 1 << 8  # rwsem.count
READER_OWNED, NONSPINNABLE = 1, 2  # rwsem.owner
RT_READER_BIAS, RT_WRITER = 1 << 31, 1 << 30  # rwbase_rt.readers
RT_HAS_WAITERS = 1  # rt_mutex_base.owner
ANON, MMAP, I_MMAP = "AUDIT_ANON_VMA_RWSEM", "AUDIT_MMAP_LOCK", "AUDIT_I_MMAP_RWSEM"
STACK_BYTES = 4096
ORIG_AX = 120
RUNNING, INTERRUPTIBLE, UNINTERRUPTIBLE, STOPPED = 0, 1, 2, 4

MEBIBYTE = 1 << 20


class Memory:
    """Locks, tasks and their stacks in this process; all of it counts as RAM."""

    def __init__(self, types: bytes = b"") -> None:
        self.native, self._types = Native(types), synthetic_kernel(types).types
        self._blocks: list[ctypes.Array[ctypes.c_char]] = []
        self.ram(1, (1 << 64) - 1)
        self.regs = ctypes.addressof((ctypes.c_uint64 * 2).in_dll(self.native.lib, "harness_regs"))
        self.own = self.task(1, "rmapd")
        self.set(self.own, "task_struct.stack", self.regs - ORIG_AX - STACK_BYTES)
        self.native.set("harness_task", self.own)

    @functools.cached_property
    def reader(self) -> OwnerReader:
        return OwnerReader(self.native.maps, self.native.programs["owner_look"], LAYOUTS)

    def ram(self, low: int, high: int) -> None:
        """Set the first address that may be read, a mebibyte above the base, and the end of RAM."""
        base = (low - MEBIBYTE) % (1 << 64)
        params = LAYOUTS.structs["params"].pack(page_offset=base, direct_map_end=high)
        self.native.maps["params"].update(struct.pack("<I", 0), params)

    def take(self, size: int) -> int:
        block = ctypes.create_string_buffer(size)
        self._blocks.append(block)
        return ctypes.addressof(block)

    def offset(self, path: str) -> int:
        found = self._types.resolve(path)
        assert found, path
        return found.bit_offset // 8

    def set(self, at: int, path: str, value: int, size: int = 8) -> None:
        kind = {4: ctypes.c_uint32, 8: ctypes.c_uint64}[size]
        kind.from_address(at + self.offset(path)).value = value

    def task(self, tid: int, comm: str = "owner") -> int:
        """Return a task that is alive, with a stack; its system call is 9."""
        task, pid = self.take(256), self.take(64)
        stack = self.take(STACK_BYTES + ORIG_AX + 8)
        self.set(task, "task_struct.stack", stack)
        ctypes.c_uint64.from_address(stack + STACK_BYTES + ORIG_AX).value = 9
        self.set(task, "task_struct.thread_pid", pid)
        self.set(pid, "pid.tasks", task + self.offset("task_struct.pid_links"))
        self.set(task, "task_struct.start_time", 1000 + tid)
        self.set(task, "task_struct.pid", tid, 4)
        self.set(task, "task_struct.tgid", tid - 1, 4)
        ctypes.memmove(task + self.offset("task_struct.comm"), comm.encode(), len(comm))
        return task

    def own_lock(self, lock: int, count: int, owner: int) -> None:
        ctypes.c_uint64.from_address(lock).value = count
        ctypes.c_uint64.from_address(lock + 8).value = owner

    def own_rt_lock(self, lock: int, readers: int, owner: int) -> None:
        """Set an rwsem of PREEMPT_RT: its count of readers, and the owner of its rtmutex."""
        self.set(lock, "rw_semaphore.rwbase.readers", readers, 4)
        self.set(lock, "rw_semaphore.rwbase.rtmutex.owner", owner)

    def anon_lock(self) -> int:
        anon_vma = self.take(64)
        self.set(anon_vma, "anon_vma.root", anon_vma)
        return anon_vma + self.offset("anon_vma.rwsem")

    def mmap_lock(self, ctx_id: int) -> int:
        mm = self.take(256)
        self.set(mm, "mm_struct.context.ctx_id", ctx_id)
        return mm + self.offset("mm_struct.mmap_lock")

    def i_mmap_lock(self) -> int:
        inode = self.take(256)
        mapping = inode + self.offset("inode.i_data")
        self.set(mapping, "address_space.host", inode)
        return mapping + self.offset("address_space.i_mmap_rwsem")

    def look(self, lock: int, task: int, kind: str = ANON) -> OwnerLook:
        found = self.reader.look(lock, kind, task)
        assert found
        return found

    def enter(self, call: int = 9) -> None:
        self.native.programs["owner_enters"].run(0, call)


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_writer_is_found_with_its_task(memory: Memory) -> None:
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_lock(lock, WRITER, task)
    memory.set(task, "task_struct.utime", 700)
    memory.set(task, "task_struct.gtime", 300)
    memory.set(task, "task_struct.stime", 50)
    memory.set(task, "task_struct.nvcsw", 5)
    memory.set(task, "task_struct.nivcsw", 2)
    memory.set(task, "task_struct.on_cpu", 1, 4)
    memory.set(task, "task_struct.thread_info.cpu", 3, 4)
    look = memory.look(lock, task)
    assert (look.owned, look.alive, look.identity) == (
        True,
        True,
        lock - memory.offset("anon_vma.rwsem"),
    )
    assert (look.tid, look.tgid, look.comm, look.start_ns, look.call) == (42, 41, "owner", 1042, 9)
    assert (look.user_ns, look.system_ns, look.switches) == (400, 50, 7)
    assert (look.seq, look.doing) == (None, "running on CPU 3")


@pytest.mark.parametrize(
    ("count", "owner_bits", "owned"),
    [
        (WRITER, 0, True),
        (WRITER | HANDOFF | 2, 0, True),
        (WRITER, NONSPINNABLE, True),
        (WRITER, READER_OWNED, False),
        (WRITER, READER_OWNED | NONSPINNABLE, False),
        (READER_BIAS, READER_OWNED, False),
        (READER_BIAS, 0, False),
        (0, 0, False),
        (HANDOFF | 2, 0, False),
    ],
)
def test_flags_of_count_and_owner(memory: Memory, count: int, owner_bits: int, owned: bool) -> None:
    """A writer's name may carry RWSEM_NONSPINNABLE; with RWSEM_READER_OWNED it is a reader's."""
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_lock(lock, count, task | owner_bits)
    assert memory.look(lock, task).owned is owned


@pytest.mark.parametrize(
    ("readers", "owner_bits", "owned"),
    [
        (RT_WRITER, 0, True),
        (RT_WRITER, RT_HAS_WAITERS, True),
        (RT_READER_BIAS, 0, False),  # a reader has the rtmutex on its way in
        (RT_READER_BIAS + 2, RT_HAS_WAITERS, False),
        (2, RT_HAS_WAITERS, False),  # a writer that waits for two readers
        (0, 0, False),  # one that is about to have the lock
    ],
)
def test_writer_on_preempt_rt_owns_the_rtmutex_beside_writer_bias(
    readers: int, owner_bits: int, owned: bool
) -> None:
    memory = Memory(kernel_types(realtime=True))
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_rt_lock(lock, readers, task | owner_bits)
    assert memory.look(lock, task).owned is owned
    memory.reader.watch([watched(memory, lock, task)])
    memory.native.set("harness_task", task)
    memory.enter()
    kept = memory.reader.entered()[lock, task].kept
    assert kept == owned
    memory.own_rt_lock(lock, readers, OTHER_TASK)
    assert not memory.look(lock, task).owned


def test_lock_that_another_task_owns_or_nobody_has_written_its_name_on_is_not_owned(
    memory: Memory,
) -> None:
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_lock(lock, WRITER, OTHER_TASK)
    assert not memory.look(lock, task).owned
    memory.own_lock(lock, WRITER, 0)
    assert not memory.look(lock, task).owned


def test_identity_is_what_the_lock_is_a_part_of(memory: Memory) -> None:
    task = memory.task(42)
    assert memory.look(memory.mmap_lock(77), task, MMAP).identity == 77
    lock = memory.i_mmap_lock()
    mapping = lock - memory.offset("address_space.i_mmap_rwsem")
    assert memory.look(lock, task, I_MMAP).identity == mapping - memory.offset("inode.i_data")
    memory.set(mapping, "address_space.host", mapping)
    assert memory.look(lock, task, I_MMAP).identity == 0, "memory that is no inode any more"
    lock = memory.anon_lock()
    memory.set(lock - memory.offset("anon_vma.rwsem"), "anon_vma.root", 0x1234)
    assert memory.look(lock, task).identity == 0, "an anon_vma that is no root"


def test_sequence_of_an_mmap_lock_is_read_where_the_kernel_has_it() -> None:

    memory = Memory(kernel_types(vma_locks=True))
    lock, task = memory.mmap_lock(77), memory.task(42)
    memory.set(lock - memory.offset("mm_struct.mmap_lock"), "mm_struct.mm_lock_seq", 31, 4)
    assert memory.look(lock, task, MMAP).seq == 31
    assert memory.look(memory.anon_lock(), task).seq is None


def test_task_that_has_exited_or_is_released_is_not_alive(memory: Memory) -> None:
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_lock(lock, WRITER, task)
    memory.set(task, "task_struct.exit_state", 0x20, 4)
    assert not memory.look(lock, task).alive, "EXIT_ZOMBIE"
    memory.set(task, "task_struct.exit_state", 0, 4)
    memory.set(task, "task_struct.thread_pid", 0)
    look = memory.look(lock, task)
    assert (look.alive, look.owned, look.doing) == (False, True, "dead")
    other = memory.task(43)
    pid = ctypes.c_uint64.from_address(other + memory.offset("task_struct.thread_pid")).value
    memory.set(task, "task_struct.thread_pid", pid)
    assert not memory.look(lock, task).alive, "its pid leads to another task"


def test_addresses_outside_of_ram_are_not_read(memory: Memory) -> None:
    lock, task = memory.anon_lock(), memory.task(42)
    memory.own_lock(lock, WRITER, task)
    assert memory.reader.look(lock, ANON, 0x10) is not None
    for low, high in ((0, 0), (lock + 1, 1 << 63), (1, min(lock, task))):
        memory.ram(low, high)
        assert memory.reader.look(lock, ANON, task) is None


def test_first_mebibyte_of_the_direct_map_is_not_read(memory: Memory) -> None:
    """The memory of VGA cards is mapped there, and reading it may change it."""
    lock, task = memory.anon_lock(), memory.task(42)
    for base, read in ((min(lock, task) - MEBIBYTE, True), (task - MEBIBYTE + 1, False)):
        params = LAYOUTS.structs["params"].pack(page_offset=base, direct_map_end=1 << 63)
        memory.native.maps["params"].update(bytes(4), params)
        assert (memory.reader.look(lock, ANON, task) is not None) is read


def test_own_task_must_be_found_before_others_are_believed(memory: Memory) -> None:
    assert why_unreadable(memory.reader, "rmapd") == ""
    assert why_unreadable(memory.reader, "other") == (
        "a look at rmapd's own task finds rmapd[1], runnable"
    )
    memory.set(memory.own, "task_struct.thread_pid", 0)
    assert "dead" in why_unreadable(memory.reader, "rmapd")
    memory.ram(0, 0)
    assert "bounds of RAM" in why_unreadable(memory.reader, "rmapd")


def test_states_of_a_task_are_told_apart(memory: Memory) -> None:
    task = memory.task(42)
    lock = memory.anon_lock()
    for state, doing, halted, long in (
        (RUNNING, "runnable", False, False),
        (INTERRUPTIBLE, "sleeping interruptibly", False, True),
        (UNINTERRUPTIBLE | 0x100, "sleeping uninterruptibly", False, False),
        (STOPPED, "stopped or traced", True, False),
        (8, "stopped or traced", True, False),
    ):
        memory.set(task, "task_struct.__state", state, 4)
        look = memory.look(lock, task)
        assert (look.doing, look.halted, look.sleeps_for_long) == (doing, halted, long)
    assert memory.look(lock, task).enters_system_calls
    memory.set(task, "task_struct.flags", 0x200000, 4)
    assert not memory.look(lock, task).enters_system_calls


def watched(memory: Memory, lock: int, task: int, kind: str = ANON) -> Watched:
    look = memory.look(lock, task, kind)
    return Watched(lock, kind, task, look.identity, look.start_ns)


def test_system_call_entered_with_a_lock_is_told_from_one_without(memory: Memory) -> None:
    task, other = memory.task(42), memory.task(43)
    kept, given, third = memory.anon_lock(), memory.mmap_lock(5), memory.i_mmap_lock()
    for lock in (kept, third):
        memory.own_lock(lock, WRITER, task)
    rows = [
        watched(memory, kept, task),
        watched(memory, given, task, MMAP),
        watched(memory, third, task, I_MMAP),
    ]
    assert memory.reader.watch(rows) == rows
    memory.native.set("harness_task", other)
    memory.enter()
    assert {one.kept + one.let_go for one in memory.reader.entered().values()} == {0}
    memory.native.set("harness_task", task)
    memory.native.set("harness_now", 500)
    memory.enter(231)
    memory.enter(1)
    assert memory.reader.entered() == {
        (kept, task): Entered(2, 0, 231),
        (given, task): Entered(0, 2, 0),
        (third, task): Entered(2, 0, 231),
    }
    memory.reader.forget()
    assert memory.reader.entered() == {}


def test_watched_lock_that_is_another_one_by_now_is_let_go(memory: Memory) -> None:
    task, lock = memory.task(42), memory.mmap_lock(5)
    memory.own_lock(lock, WRITER, task)
    memory.reader.watch([watched(memory, lock, task, MMAP)])
    memory.native.set("harness_task", task)
    mm = lock - memory.offset("mm_struct.mmap_lock")
    memory.set(mm, "mm_struct.context.ctx_id", 6)
    memory.enter()
    assert memory.reader.entered()[lock, task] == Entered(0, 1, 0)


def test_new_task_at_the_address_of_a_watched_one_decides_nothing(memory: Memory) -> None:
    task, lock = memory.task(42), memory.anon_lock()
    memory.own_lock(lock, WRITER, task)
    memory.reader.watch([watched(memory, lock, task)])
    memory.set(task, "task_struct.start_time", 9999)
    memory.native.set("harness_task", task)
    memory.enter()
    assert memory.reader.entered()[lock, task] == Entered(0, 0, 0)


def test_table_of_watched_locks_is_bounded(memory: Memory) -> None:
    most, each = LAYOUTS.constants["WATCHED_LOCKS"], LAYOUTS.constants["WATCHED_LOCKS_A_TASK"]
    rows = [Watched(lock, ANON, task, 1, 1) for task in range(1, 40) for lock in range(each + 1)]
    taken = memory.reader.watch(rows)
    assert (len(taken), len(memory.reader.entered())) == (most, most)
    assert max(one.lock for one in taken) == each - 1
