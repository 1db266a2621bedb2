"""rwsems inside windows: classes, operations, hold and wait times, missed operations."""

from __future__ import annotations

import pytest

from tests.support.box import FENTRY, KPROBE, Box, Vma, box
from tests.support.btf_blob import kernel_types
from tests.support.native import LAYOUTS
from tracer.tables.events import Events

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])
EINTR = (1 << 32) - 4
LCB_SPIN, LCB_READ, LCB_WRITE, LCB_RT = 1, 2, 4, 8  # include/trace/events/lock.h


def steps(b: Box) -> str:
    """Return the steps of the only window."""
    (line,) = b.seen()
    return line.partition("]")[2].strip()


def classes(b: Box, vma: Vma, *locks: int) -> list[str]:
    with b.call("expand_downwards", vma.at, 0x1000):
        for lock in locks:
            b.touch("down_write", lock)
    return [word.removesuffix("↓w") for word in steps(b).split()]


@each_method
def test_lock_class_follows_the_object_that_contains_the_lock(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping())
    second, third = b.mapping(), b.anon_vma()
    inode, invalidate = b.inode_lock(second), second + b.offset("address_space.invalidate_lock")
    own = (b.mmap_lock, b.file_lock(vma.mapping), b.anon_lock(vma.anon_vma))
    others = (b.file_lock(second), b.anon_lock(third), b.mm_lock(b.take(256)))
    assert classes(b, vma, *own, *others, inode, invalidate, b.take(64) + 32) == [
        *("mmap", "i_mmap", "anon"),
        *("i_mmap2", "anon2", "other"),
        *("i_rwsem", "invalidate", "other"),
    ]


def test_first_lock_taken_for_a_vma_without_one_is_classified_as_its_own() -> None:
    b = box()
    first, second = (b.anon_lock(b.anon_vma()) for _ in range(2))
    file, other = (b.file_lock(b.mapping()) for _ in range(2))
    assert classes(b, b.vma(0x1000, 0x3000), second, first, file, other) == [
        "anon",
        "anon2",
        "i_mmap",
        "i_mmap2",
    ]
    (flight,) = b.tables.flight_recorder.flights()
    assert (flight.row.anon, flight.row.i_mmap) == (second, file)


def test_rwsem_of_an_anon_vma_below_its_root_has_no_class() -> None:
    b = box()
    assert classes(b, b.vma(0x1000, 0x3000), b.anon_lock(b.anon_vma(b.anon_vma()))) == ["other"]


def test_lock_in_unreadable_memory_has_no_class() -> None:
    b = box()
    assert classes(b, b.vma(0x1000, 0x3000), 4096) == ["other"]


@pytest.mark.parametrize(
    ("users", "number", "expected"),
    [(1, 6, "mmap2"), (2, 6, "other"), (1, 4, "other"), (1, 5, "other")],
)
def test_mmap_lock_in_rebuilt_dup_mmap_is_the_childs_if_its_mm_is_younger_and_unshared(
    users: int, number: int, expected: str
) -> None:
    b = box()
    other = b.take(256)
    b.set(b.mm, "mm_struct.context.ctx_id", 5)
    b.set(other, "mm_struct.context.ctx_id", number)
    b.set(other, "mm_struct.mm_users", users)
    b.touch("uprobe_start_dup_mmap")
    b.touch("down_write", b.mm_lock(other))
    b.touch("uprobe_end_dup_mmap")
    assert steps(b) == f"{expected}↓w"


def test_vma_lock_and_hugetlb_lock_have_classes_of_their_own() -> None:
    """Linux 6.4 to 6.14: a VMA is write-locked if its sequence number is that of the mm."""
    b = box(types=kernel_types(vma_locks=True))
    vma, own, huge = b.vma(0x1000, 0x3000), b.take(32), b.take(64)
    b.change(vma, vm_lock=own, vm_lock_seq=8)
    b.change(vma, vm_private_data=huge | 1)
    b.set(huge, "hugetlb_vma_lock.vma", vma.at)
    b.set(b.mm, "mm_struct.mm_lock_seq", 9)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.store(vma)
        for lock in (own + b.offset("vma_lock.lock"), huge + b.offset("hugetlb_vma_lock.rw_sema")):
            b.touch("down_write", lock)
        b.change(vma, vm_lock_seq=9)
        b.store(vma)
    assert steps(b) == "commit(mmap:- vma:-) vma↓w hugetlb↓w commit(mmap:- vma:w)"


@each_method
def test_each_lock_operation_has_its_notation(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000)
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", vma.at, 0x1000):
        for take, returned, leave in (
            ("down_read", 0, "up_read"),
            ("down_write", 0, "up_write"),
            ("down_read_killable", 0, "up_read"),
            ("down_write_killable", 0, "up_write"),
            ("down_read_trylock", 1, "up_read"),
            ("down_write_trylock", 1, "downgrade_write"),
        ):
            b.touch(take, lock, returned=returned)
            b.touch(leave, lock)
        b.touch("up_read", lock)
    shown = "↓r ↑r ↓w ↑w ↓rk ↑r ↓wk ↑w ↓r? ↑r ↓w? ⇓ ↑r"
    assert steps(b) == " ".join(f"anon{sign}" for sign in shown.split())


@each_method
@pytest.mark.parametrize(
    ("function", "failed"),
    [
        ("down_read_trylock", 0),
        ("down_write_trylock", 0),
        ("down_read_killable", EINTR),
        ("down_write_killable", EINTR),
    ],
)
def test_failed_acquisition_is_not_a_step(
    function: str, failed: int, methods: tuple[str, str]
) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch(function, b.anon_lock(b.anon_vma()), returned=failed)
    assert (steps(b), b.held_rwsems()) == ("", 0)


def test_upper_half_of_an_int_return_value_is_ignored() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("down_read_trylock", lock, returned=0xDEAD_0000_0001)
        b.touch("up_read", lock)
        b.touch("down_read_killable", lock, returned=0xDEAD_0000_0000)
    assert steps(b) == "anon↓r? anon↑r anon↓rk"


def test_lock_operations_outside_of_windows_are_not_recorded() -> None:
    b = box()
    for function in ("down_write", "up_write", "down_read_trylock"):
        b.touch(function, b.mmap_lock, returned=1)
    b.fire("contention_begin", b.mmap_lock, LCB_WRITE)
    b.fire("contention_end", b.mmap_lock, 0)
    assert (b.seen(), b.held_rwsems(), b.open_windows()) == ({}, 0, 0)


def test_second_acquisition_without_release_marks_a_missed_step() -> None:
    b = box()
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        b.touch("down_write", lock)
        b.touch("down_write", lock)
    assert steps(b) == "anon↓w ? anon↓w"


def test_second_down_read_is_legal_and_a_trylock_after_it_marks_a_missed_release() -> None:
    b = box()
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        b.touch("down_read", lock)
        b.touch("down_read", lock)
        b.touch("down_read_trylock", lock, returned=1)
    assert steps(b) == "{anon↓r}* ? anon↓r?"


def test_lock_held_by_two_tasks_is_recorded_for_each() -> None:
    b = box()
    lock = b.anon_lock(b.anon_vma())
    for tid in (7, 8):
        b.become(tid)
        with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
            b.touch("down_read", lock)
    assert b.seen() == {"expand_downwards[ok]  anon↓r": 2}


def test_hold_and_wait_times_are_summed_by_class() -> None:
    b = box()
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        b.touch("down_write", lock)
        b.fire("contention_begin", lock, LCB_WRITE)
        b.tick(1000)
        b.fire("contention_end", lock, 0)
        b.tick(30)
        b.touch("up_write", lock)
        b.touch("down_write", lock)
        b.tick(5)
        b.touch("downgrade_write", lock)
        b.tick(2)
        b.touch("up_read", lock)
    assert (
        b.tables.window_times.lock_holds()["anon"].count,
        b.tables.window_times.lock_holds()["anon"].sum_ns,
    ) == (2, 37)
    assert (
        b.tables.window_times.lock_waits()["anon"].count,
        b.tables.window_times.lock_waits()["anon"].sum_ns,
    ) == (2, 1000)
    assert b.tables.window_times.lock_holds()["other"].count == 0


@each_method
def test_wait_of_a_killable_acquisition_counts_as_wait_and_not_as_hold(
    methods: tuple[str, str],
) -> None:
    b = box(methods)
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        for returned, ns in ((EINTR, 5000), (0, 1000), (0, 0)):
            b.enter("down_write_killable", lock)
            if ns:
                b.fire("contention_begin", lock, LCB_WRITE)
                b.tick(ns)
                b.fire("contention_end", lock, 0)
            b.leave("down_write_killable", lock, returned=returned)
            b.tick(30)
            if not returned:
                b.touch("up_write", lock)
    assert (
        b.tables.window_times.lock_waits()["anon"].count,
        b.tables.window_times.lock_waits()["anon"].sum_ns,
    ) == (2, 1000)
    assert (
        b.tables.window_times.lock_holds()["anon"].count,
        b.tables.window_times.lock_holds()["anon"].sum_ns,
    ) == (2, 60)


def test_contended_spinlock_during_a_wait_does_not_end_the_wait() -> None:
    """rwsem_down_write_slowpath() takes sem->wait_lock between contention_begin and _end.

    An interrupt may take any other spinlock there.
    """
    b = box()
    lock = b.anon_lock(b.anon_vma())
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        b.touch("down_write", lock)
        b.fire("contention_begin", lock, LCB_WRITE)
        b.tick(600)
        b.fire("contention_begin", lock + 8, LCB_SPIN)
        b.tick(100)
        b.fire("contention_end", lock + 8, 0)
        b.tick(300)
        b.fire("contention_end", lock, 0)
        b.touch("up_write", lock)
    assert (
        b.tables.window_times.lock_waits()["anon"].sum_ns,
        b.tables.window_times.lock_holds()["anon"].sum_ns,
    ) == (1000, 0)


def test_lock_released_in_a_later_window_has_its_hold_time() -> None:
    """As mm_take_all_locks() and mm_drop_all_locks() do, which are two windows."""
    b = box()
    lock, vma = b.anon_lock(b.anon_vma()), b.vma(0x1000, 0x3000)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("down_write", lock)
    b.tick(70)
    with b.call("vma_shrink", 0, vma.at, 0, 0x3000):
        b.touch("up_write", lock)
    assert b.seen() == {"expand_downwards[ok]  anon↓w": 1, "vma_shrink[ok]  anon↑w": 1}
    assert (b.tables.window_times.lock_holds()["anon"].sum_ns, b.held_rwsems()) == (70, 0)


@each_method
def test_locks_beyond_the_slots_of_a_task_are_kept_in_the_overflow_map(
    methods: tuple[str, str],
) -> None:
    """mm_take_all_locks() takes thousands of locks, and they may be released in any order."""
    b = box(methods)
    vma, locks = b.vma(0x1000, 0x3000), [b.anon_lock(b.anon_vma()) for _ in range(20)]
    with b.call("expand_downwards", vma.at, 0x1000):
        for lock in locks:
            b.touch("down_write", lock)
        assert (b.held_rwsems(), b.rows("holds")) == (20, 12)
        b.tick(5)
        for lock in locks[::3] + locks[1::3] + locks[2::3]:
            b.touch("up_write", lock)
    assert (
        b.held_rwsems(),
        b.tables.window_times.lock_holds()["anon"].count
        + b.tables.window_times.lock_holds()["anon2"].count,
    ) == (0, 20)
    assert "?" not in steps(b)


def test_lock_in_the_overflow_map_that_is_taken_again_marks_one_missed_release() -> None:
    b = box()
    vma, locks = b.vma(0x1000, 0x3000), [b.anon_lock(b.anon_vma()) for _ in range(9)]
    with b.call("expand_downwards", vma.at, 0x1000):
        for lock in locks:
            b.touch("down_write", lock)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("down_write", locks[0])
        b.touch("up_write", locks[0])
        b.touch("down_write", locks[0])
    assert b.seen() == {
        "expand_downwards[ok]  anon↓w {anon2↓w}*": 1,
        "expand_downwards[ok]  ? anon↓w anon↑w anon↓w": 1,
    }
    assert b.held_rwsems() == 9


def test_wait_of_a_writer_on_preempt_rt_is_that_for_the_rtmutex_and_that_for_readers() -> None:
    """rwbase_write_lock() waits for other writers, then for readers; readers for a writer."""
    b = box(types=kernel_types(realtime=True))
    lock, vma = b.anon_lock(b.anon_vma()), b.vma(0x1000, 0x3000)
    rtmutex = lock + b.offset("rw_semaphore.rwbase.rtmutex")
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("down_write", lock)
        for at, flags, ns in ((rtmutex, LCB_RT, 600), (lock, LCB_RT | LCB_WRITE, 400)):
            b.fire("contention_begin", at, flags)
            b.tick(ns)
            b.fire("contention_end", at, 0)
        b.tick(50)
        b.touch("up_write", lock)
        b.touch("down_read", lock)
        b.fire("contention_begin", lock, LCB_RT | LCB_READ)
        b.fire("contention_begin", rtmutex, LCB_RT)
        b.tick(2000)
        b.fire("contention_end", rtmutex, 0)
        b.fire("contention_end", lock, 0)
        b.touch("up_read", lock)
    times = b.tables.window_times
    waits, holds = times.lock_waits()["anon"], times.lock_holds()["anon"]
    assert (waits.count, waits.sum_ns, holds.sum_ns) == (2, 3000, 50)
    kinds = [Events(LAYOUTS).decode(raw).kind for raw in b.native.events()]
    assert "WAITS_FOR_ITSELF" not in kinds, "a writer that waits for others has no own hold"


def test_own_read_hold_on_preempt_rt_is_reported_where_the_writer_waits_for_readers() -> None:
    b = box(types=kernel_types(realtime=True))
    lock, vma = b.anon_lock(b.anon_vma()), b.vma(0x1000, 0x3000)
    rtmutex = lock + b.offset("rw_semaphore.rwbase.rtmutex")
    with b.call("expand_downwards", vma.at, 0x1000):
        b.touch("down_read", lock)
        b.held(lock, write=False)
        b.touch("down_write", lock)
        b.fire("contention_begin", rtmutex, LCB_RT)
        b.fire("contention_end", rtmutex, 0)
        b.fire("contention_begin", lock, LCB_RT | LCB_WRITE)
    events = [Events(LAYOUTS).decode(raw) for raw in b.native.events()]
    assert [event.kind for event in events].count("WAITS_FOR_ITSELF") == 1
