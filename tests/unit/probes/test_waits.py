"""The program at the begin of a wait, and the iterator over the tasks that sleep."""

from __future__ import annotations

import ctypes
import itertools
import struct

import pytest

from tests.support.box import OTHER_TASK
from tests.support.btf_blob import kernel_types
from tests.support.native import LAYOUTS
from tests.unit.probes.test_owners import (
    READER_BIAS,
    READER_OWNED,
    RT_HAS_WAITERS,
    RT_READER_BIAS,
    RT_WRITER,
    STACK_BYTES,
    UNINTERRUPTIBLE,
    WRITER,
    Memory,
)
from tracer.memory.sleepers import LockWait, Sleeper, SleeperReader
from tracer.tables.counters import Counters
from tracer.tables.events import Event, Events

SPIN, READ, WRITE, RT, PERCPU, MUTEX = 1, 2, 4, 8, 16, 32  # include/trace/events/lock.h
NOLOAD = 0x400


class Waits(Memory):
    """Tasks that wait for locks, in memory that counts as RAM."""

    def __init__(self, types: bytes = b"") -> None:
        super().__init__(types)
        params = LAYOUTS.structs["params"].unpack(
            self.native.maps["params"].lookup(bytes(4)) or b""
        )
        packed = LAYOUTS.structs["params"].pack(**vars(params) | {"gate": 1})
        self.native.maps["params"].update(bytes(4), packed)
        self.native.set("harness_now", 5_000)
        self._seq = ctypes.create_string_buffer(16)
        self.sleepers = SleeperReader(self, LAYOUTS)
        self.tasks: list[int] = []
        self.frames([0xAAA, 0xBBB])

    def frames(self, addresses: list[int]) -> None:
        (ctypes.c_uint64 * 32).in_dll(self.native.lib, "harness_frames")[:] = [
            *addresses,
            *[0] * (32 - len(addresses)),
        ]

    def become(self, task: int, tid: int) -> None:
        self.native.set("harness_task", task)
        self.native.set("harness_pid_tgid", tid << 32 | tid)

    def wait(self, lock: int, flags: int) -> None:
        self.native.programs["lock_wait"].run(lock, flags)

    def sleeping(self, tid: int, state: int = UNINTERRUPTIBLE) -> int:
        task = self.task(tid)
        self.set(task, "task_struct.__state", state, 4)
        self.tasks.append(task)
        return task

    def queue(self, lock: int, *tasks: int) -> list[int]:
        """Let these tasks wait for the lock, in this order; return their waiters."""
        head = lock + self.offset("rw_semaphore.wait_list")
        nodes = []
        for task in tasks:
            stack = ctypes.c_uint64.from_address(task + self.offset("task_struct.stack")).value
            self.set(stack + 512, "rwsem_waiter.task", task)
            nodes.append(stack + 512)
        for before, after in itertools.pairwise([head, *nodes, head]):
            self.set(before, "list_head.next", after)
            self.set(after, "list_head.prev", before)
        return nodes

    def read(self) -> bytes:
        """Run the iterator over all tasks; rmapd itself runs it."""
        self.native.set("harness_task", self.own)
        for task in self.tasks:
            context = struct.pack("<QQ", ctypes.addressof(self._seq), task)
            self.native.lib.bpf_iter__sleepers(context)
        return self.native.sequence()

    def look(self) -> Sleeper:  # type: ignore[override]
        (found,) = self.sleepers.read()
        return found

    def waiting(self) -> LockWait:
        wait = self.look().wait
        assert wait
        return wait

    def events(self) -> list[Event]:
        return [Events(LAYOUTS).decode(raw) for raw in self.native.events()]

    def counter(self, name: str) -> int:
        return Counters(self.native.maps, LAYOUTS).read()[name]


@pytest.fixture
def waits() -> Waits:
    return Waits()


def test_wait_for_an_own_write_hold_is_reported_with_its_lock(waits: Waits) -> None:
    lock, task = waits.i_mmap_lock(), waits.task(42)
    waits.become(task, 42)
    waits.own_lock(lock, WRITER | 2, task)
    waits.wait(lock, READ)
    (event,) = waits.events()
    classes = LAYOUTS.enums["lock_class"]
    assert (event.kind, event.tid, event.lock) == ("WAITS_FOR_ITSELF", 42, lock)
    assert classes[event.lock_class] == "CLASS_i_mmap"
    assert (event.wanted, event.held, event.count, event.owner) == (0, 1, WRITER | 2, task)
    assert waits.counter("RWSEM_WAITS") == 0


@pytest.mark.parametrize(
    ("count", "owner"),
    [
        (WRITER, "other"),
        (READER_BIAS, "own"),  # a reader that left its name
        (READER_BIAS | WRITER, "own reader"),  # a writer that has not written its name yet
        (0, "own"),
    ],
)
def test_wait_for_a_lock_of_others_is_counted_and_holds(
    waits: Waits, count: int, owner: str
) -> None:
    lock, task = waits.anon_lock(), waits.task(42)
    names = {"other": OTHER_TASK, "own": task, "own reader": task | READER_OWNED}
    waits.become(task, 42)
    waits.own_lock(lock, count, names[owner])
    waits.wait(lock, WRITE)
    assert waits.events() == []
    assert waits.counter("RWSEM_WAITS") == 1


@pytest.mark.parametrize("flags", [SPIN, SPIN | WRITE, PERCPU | READ, MUTEX, 0])
def test_wait_for_anything_but_a_rwsem_is_left_alone(waits: Waits, flags: int) -> None:
    lock, task = waits.anon_lock(), waits.task(42)
    waits.become(task, 42)
    waits.own_lock(lock, WRITER, task)
    waits.wait(lock, flags)
    assert (waits.events(), waits.counter("RWSEM_WAITS")) == ([], 0)


def test_sleeper_is_read_with_its_wait_and_its_stack(waits: Waits) -> None:
    lock, task, other = waits.anon_lock(), waits.sleeping(42), waits.task(50)
    waits.become(task, 42)
    waits.own_lock(lock, WRITER | 2, other)
    waits.wait(lock, WRITE)
    waits.queue(lock, waits.task(51), task)
    waits.set(task, "task_struct.nvcsw", 5)
    waits.set(task, "task_struct.nivcsw", 2)
    anon_vma = lock - waits.offset("anon_vma.rwsem")
    assert waits.look() == Sleeper(
        task, 1042, 7, 0, 42, 41, "owner",
        LockWait(lock, 5_000, "anon", anon_vma, "write", True, other, 0, 50, "owner"), {},
        (0xAAA, 0xBBB),
    )  # fmt: skip


def test_only_what_sleeps_uninterruptibly_is_read(waits: Waits) -> None:
    for tid, state in enumerate((0, 1, UNINTERRUPTIBLE | NOLOAD, 4, 0x102), 42):
        waits.sleeping(tid, state)
    assert waits.look().tid == 46, "the killable one"


def test_wait_of_an_earlier_task_at_the_same_address_is_not_taken(waits: Waits) -> None:
    lock, task = waits.anon_lock(), waits.sleeping(42)
    waits.become(task, 41)
    waits.wait(lock, WRITE)
    assert waits.look().wait is None


def test_waiter_is_found_behind_others_and_on_its_stack_only(waits: Waits) -> None:
    lock, task = waits.anon_lock(), waits.sleeping(42)
    waits.become(task, 42)
    waits.own_lock(lock, WRITER | 2, OTHER_TASK)
    waits.wait(lock, READ)
    assert not waits.waiting().queued
    waits.queue(lock, *(waits.task(n) for n in range(50, 66)), task)
    assert not waits.waiting().queued, "the seventeenth is not looked at"
    first, second = waits.queue(lock, waits.task(50), task)
    assert waits.waiting().queued
    waits.set(second, "list_head.prev", 0x1234)
    assert not waits.waiting().queued, "the list does not lead back"
    waits.set(second, "list_head.prev", first)
    elsewhere = waits.take(64)
    waits.set(elsewhere, "rwsem_waiter.task", waits.task(51))
    waits.set(elsewhere, "list_head.next", second)
    waits.set(lock, "rw_semaphore.wait_list", elsewhere)
    assert not waits.waiting().queued, "a waiter that is on no stack"


def test_readers_are_counted_where_no_task_writes(waits: Waits) -> None:
    lock, task = waits.anon_lock(), waits.sleeping(42)
    waits.become(task, 42)
    waits.wait(lock, WRITE)
    waits.own_lock(lock, 3 * READER_BIAS | 2, OTHER_TASK | READER_OWNED)
    assert (waits.waiting().readers, waits.waiting().writer) == (3, 0)
    waits.own_lock(lock, WRITER | 2, OTHER_TASK)
    assert (waits.waiting().readers, waits.waiting().writer) == (0, OTHER_TASK)


def test_lock_of_the_tasks_own_mm_is_an_mmap_lock(waits: Waits) -> None:
    lock, task = waits.mmap_lock(7), waits.sleeping(42)
    mm = lock - waits.offset("mm_struct.mmap_lock")
    waits.become(task, 42)
    waits.wait(lock, READ)
    assert waits.waiting().lock_class == "other", "another task's mm has no way back"
    waits.set(task, "task_struct.mm", mm)
    assert (waits.waiting().lock_class, waits.waiting().part_of) == ("mmap", mm)


def test_rwsem_of_preempt_rt_has_its_owner_too() -> None:
    waits = Waits(kernel_types(realtime=True))
    lock, task = waits.anon_lock(), waits.task(42)
    waits.become(task, 42)
    waits.own_rt_lock(lock, RT_WRITER, task | RT_HAS_WAITERS)
    waits.wait(lock, RT | READ)
    waits.wait(lock + waits.offset("rw_semaphore.rwbase.rtmutex"), RT)
    assert [event.lock for event in waits.events()] == [lock], "a reader's wait is reported once"


def test_writers_wait_on_preempt_rt_is_for_the_rtmutex_in_the_rwsem() -> None:
    waits = Waits(kernel_types(realtime=True))
    rtmutex = waits.offset("rw_semaphore.rwbase.rtmutex")
    lock, task = waits.i_mmap_lock(), waits.task(42)
    waits.become(task, 42)
    waits.wait(waits.take(64) + 32, RT)
    assert waits.counter("RWSEM_WAITS") == 0, "a mutex or a spinlock"
    unknown = waits.take(64)
    waits.own_rt_lock(unknown, RT_WRITER, task)
    waits.wait(unknown + rtmutex, RT)
    assert [event.lock for event in waits.events()] == [unknown], "its own is certain"
    waits.own_rt_lock(lock, RT_WRITER, OTHER_TASK)
    waits.wait(lock + rtmutex, RT)
    assert waits.counter("RWSEM_WAITS") == 1
    waits.set(task, "task_struct.nvcsw", 1)
    waits.own_rt_lock(lock, RT_WRITER, task)
    waits.wait(lock + rtmutex, RT)
    (event,) = waits.events()
    assert (event.lock, event.wanted, event.held) == (lock, 1, 1)


def test_waiter_on_preempt_rt_is_blocked_on_the_rtmutex_or_owns_it_and_waits_for_readers() -> None:
    waits = Waits(kernel_types(realtime=True))
    rtmutex = waits.offset("rw_semaphore.rwbase.rtmutex")
    lock, task, waiter = waits.anon_lock(), waits.sleeping(42), waits.take(96)
    waits.become(task, 42)
    waits.own_rt_lock(lock, RT_WRITER, OTHER_TASK | RT_HAS_WAITERS)
    waits.wait(lock + rtmutex, RT)
    assert not waits.waiting().queued
    waits.set(waiter, "rt_mutex_waiter.task", task)
    waits.set(waiter, "rt_mutex_waiter.lock", lock + rtmutex)
    waits.set(task, "task_struct.pi_blocked_on", waiter)
    assert waits.waiting().queued
    assert waits.waiting().writer == OTHER_TASK
    waits.set(waiter, "rt_mutex_waiter.lock", lock)
    assert not waits.waiting().queued, "it is blocked on another lock"
    waits.own_rt_lock(lock, 3, task)
    assert (waits.waiting().queued, waits.waiting().readers, waits.waiting().writer) == (True, 3, 0)
    waits.own_rt_lock(lock, RT_READER_BIAS + 3, 0)
    assert (waits.waiting().queued, waits.waiting().readers) == (False, 3)


def test_stack_of_the_iterators_own_task_gives_the_size_of_all(waits: Waits) -> None:
    stack = ctypes.c_uint64.from_address(waits.own + waits.offset("task_struct.stack")).value
    assert waits.regs - 120 - stack == STACK_BYTES
