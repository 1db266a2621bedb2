"""The window programs, compiled by gcc, record calls on VMAs, locks and trees in this process."""

from __future__ import annotations

import ctypes

import pytest

from tests.support.box import ENOMEM, FENTRY, KPROBE, OTHER_TASK, READERS, Box, Vma, box
from tests.support.btf_blob import kernel_types

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])


def grow(b: Box, vma: Vma, end: int, *, locked: bool = True) -> None:
    """Grow a VMA as __vma_adjust() of 6.1 does."""
    locks = [b.file_lock(vma.mapping)] if vma.mapping else []
    locks += [b.anon_lock(vma.anon_vma)] if vma.anon_vma else []
    with b.call("__vma_adjust", vma.at, 0x1000, end, 1, 0, 0), b.locked(*(locks if locked else ())):
        if vma.anon_vma:
            b.tree(vma, vma.anon_vma, enter=False)
        if vma.mapping:
            b.file_tree(vma, enter=False)
        b.change(vma, vm_end=end)
        b.store(vma)
        b.store(vma)  # the tracepoint fires again for one store
        if vma.mapping:
            b.file_tree(vma, enter=True)
        if vma.anon_vma:
            b.tree(vma, vma.anon_vma, enter=True)


@each_method
def test_window_records_its_locks_tree_steps_and_commit(methods: tuple[str, str]) -> None:
    b = box(methods)
    b.held(b.mmap_lock)
    grow(b, b.vma(0x1000, 0x3000, anon=b.anon_vma()), 0x4000)
    assert b.seen() == {
        "__vma_adjust[anon moved mmap:w ok]  anon↓w anon- commit(mmap:w anon:w) anon+ anon↑w": 1
    }
    assert b.tables.window_times.lock_holds()["anon"].count == 1
    (flight,) = b.tables.flight_recorder.flights()
    assert (flight.window, flight.row.was_end, flight.row.vm_end, flight.row.tid) == (
        "__vma_adjust",
        0x3000,
        0x4000,
        7,
    )


@each_method
def test_window_of_a_private_file_vma_records_both_locks_and_trees(
    methods: tuple[str, str],
) -> None:
    b = box(methods)
    b.held(b.mmap_lock)
    grow(b, b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping()), 0x4000)
    assert b.seen() == {
        "__vma_adjust[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- "
        "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w": 1
    }


def test_window_on_preempt_rt_records_the_same_steps() -> None:
    """The writer is the owner of the rtmutex, without RT_MUTEX_HAS_WAITERS, beside WRITER_BIAS."""
    b = box(types=kernel_types(realtime=True))
    b.held(b.mmap_lock)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping())
    grow(b, vma, 0x4000)
    b.held(b.anon_lock(vma.anon_vma), by=OTHER_TASK)
    b.held(b.file_lock(vma.mapping), write=False)
    grow(b, vma, 0x5000, locked=False)
    assert b.seen() == {
        "__vma_adjust[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- "
        "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w": 1,
        "__vma_adjust[file anon moved mmap:w i_mmap:r ok]  anon-(x) file-(r) "
        "commit(mmap:w i_mmap:r anon:x) file+(r) anon+(x)": 1,
    }


def test_steps_without_their_lock_are_marked() -> None:
    b = box()
    b.held(b.mmap_lock)
    grow(b, b.vma(0x1000, 0x3000, anon=b.anon_vma()), 0x4000, locked=False)
    assert b.seen() == {
        "__vma_adjust[anon moved mmap:w ok]  anon-(-) commit(mmap:w anon:-) anon+(-)": 1
    }


def test_steps_of_a_child_anon_vma_use_the_lock_of_its_root() -> None:
    """A child anon_vma uses the rwsem of its root."""
    b = box()
    root = b.anon_vma()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(root))
    with b.call("expand_downwards", vma.at, 0x1000), b.locked(b.anon_lock(root)):
        b.tree(vma, vma.anon_vma, enter=False)
        b.tree(vma, vma.anon_vma, enter=True)
    assert b.seen() == {"expand_downwards[anon ok]  anon↓w anon- anon+ anon↑w": 1}


def test_window_is_not_recorded_while_the_gate_is_closed() -> None:
    b = box()
    b.native.maps["params"].update(bytes(4), bytes(b.native.maps["params"].value_size))
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    grow(b, vma, 0x4000)
    b.tree(vma, vma.anon_vma, enter=True)
    assert (b.seen(), b.rows("task_windows")) == ({}, 0)


@pytest.mark.parametrize(
    ("function", "tree", "steps"),
    [
        (b"mas_store_prealloc", 0, "  commit(mmap:-)"),
        (b"mas_is_span_wr", 0, ""),
        (b"mas_is_span_wr2", 0, "  commit(mmap:-)"),
        (b"mas_store", 8, ""),
    ],
)
def test_store_is_a_commit_only_if_it_writes_into_the_tree_of_the_mm(
    function: bytes, tree: int, steps: str
) -> None:
    """A store that is only prepared or goes into another tree is not a commit."""
    b = box()
    vma = b.vma(0x1000, 0x3000)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.mm += tree
        b.store(vma, function)
        b.mm -= tree
    assert b.seen() == {f"expand_downwards[ok]{steps}": 1}


def test_store_of_anything_but_a_vma_of_the_mm_is_not_a_commit() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    with b.call("expand_downwards", vma.at, 0x1000):
        for value in (0, vma.at + 1, vma.at + 2, b.vma(0x5000, 0x6000, mm=b.take(256)).at):
            b.store(Vma(value))
    b.store(vma)
    assert b.seen() == {"expand_downwards[ok]": 1}


def test_repeated_commit_is_recorded_after_another_step_or_of_another_vma() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("expand_downwards", vma.at, 0x1000):
        b.store(vma)
        b.down(b.anon_lock(vma.anon_vma))
        b.store(vma)
        b.store(b.vma(0x5000, 0x6000))
    assert b.seen() == {
        "expand_downwards[anon ok]  commit(mmap:- anon:-) anon↓w commit(mmap:- anon:w) "
        "commit(mmap:-) → [anon:w]": 1
    }


def test_tree_step_records_the_owner_of_its_lock() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    lock = b.anon_lock(vma.anon_vma)
    for write, by in ((True, 0), (True, OTHER_TASK), (False, 0)):
        b.held(lock, write=write, by=by)
        b.tree(vma, vma.anon_vma, enter=False)
    b.held(lock, by=b.task | 2)  # RWSEM_NONSPINNABLE
    b.tree(vma, vma.anon_vma, enter=False)
    b.free(lock)
    b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {
        "outside[]  anon-": 2,
        "outside[]  anon-(x)": 1,
        "outside[]  anon-(r)": 1,
        "outside[]  anon-(-)": 1,
    }


def test_waiter_and_handoff_flags_do_not_count_as_readers() -> None:
    """RWSEM_FLAG_WAITERS, RWSEM_FLAG_HANDOFF, and RWSEM_FLAG_READFAIL, the sign bit."""
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for count in (2, 4, 6, 1 << 63 | 1 << 8):
        b.put(b.anon_lock(vma.anon_vma), count)
        b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {"outside[]  anon-(-)": 4}


def test_stale_reader_in_the_owner_field_is_not_taken_for_the_writer() -> None:
    """A writer owns the rwsem before it sets `owner`, which still names the last reader.

    Seen on 6.1 in a soak of ten minutes.
    """
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.held(b.anon_lock(vma.anon_vma), by=b.task | READERS)
    b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {"outside[]  anon-(x)": 1}


def test_window_records_lock_states_at_entry_and_return() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping())
    b.held(b.mmap_lock, write=False)
    b.held(b.file_lock(vma.mapping))
    b.held(b.anon_lock(vma.anon_vma), by=OTHER_TASK)
    with b.call("expand_downwards", vma.at, 0x1000, returned=ENOMEM):
        b.up(b.file_lock(vma.mapping))
        b.down(b.anon_lock(vma.anon_vma))
    assert b.seen() == {
        "expand_downwards[file anon mmap:r i_mmap:w] -ENOMEM  i_mmap↑w anon↓w → [mmap:r anon:w]": 1
    }


@pytest.mark.parametrize(
    ("realtime", "by", "state"),
    [(False, 0, "r"), (False, OTHER_TASK, ""), (True, OTHER_TASK, "r")],
    ids=["own", "other", "preempt_rt"],
)
def test_read_held_tree_is_this_tasks_if_it_was_the_last_reader(
    realtime: bool, by: int, state: str
) -> None:
    """Three L1 suspects of ten minutes on 6.12 for arm64 were rmap walks of other tasks.

    PREEMPT_RT keeps no reader. The mmap_lock may have been read by this task and others.
    """
    b = box(types=kernel_types(realtime=realtime))
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping())
    for lock in (b.mmap_lock, b.file_lock(vma.mapping), b.anon_lock(vma.anon_vma)):
        b.held(lock, write=False, by=by)
    with b.call("expand_downwards", vma.at, 0x1000):
        pass
    locks = f" i_mmap:{state} anon:{state}" if state else ""
    assert b.seen() == {f"expand_downwards[file anon mmap:r{locks} ok]": 1}


def test_insertion_into_an_unreachable_tree_is_marked_new() -> None:
    b = box()
    vma, anon = b.vma(0x1000, 0x3000), b.anon_vma()
    b.tree(vma, anon, enter=True)
    b.tree(vma, anon, enter=False)
    b.change(vma, anon_vma=anon)
    b.tree(vma, anon, enter=True)
    b.change(vma, anon_vma=0)
    b.set(anon, "anon_vma.rb_root.rb_root.rb_node", 0x1234)
    b.tree(vma, anon, enter=True)
    assert b.seen() == {
        "outside[]  anon+(new)": 1,
        "outside[]  anon-(-)": 1,
        "outside[]  anon+(-)": 2,
    }


def test_repeated_tree_step_outside_of_windows_sends_one_event() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, mapping=b.mapping())
    b.held(b.file_lock(vma.mapping))
    b.file_tree(vma, enter=True)
    b.file_tree(vma, enter=True)
    assert b.seen() == {"outside[]  file+": 2}
    (raw,) = b.native.events()
    key, _ = b.tables.events.sighting(raw)
    assert key in b.tables.protocol_table.counts()


def test_first_event_of_a_protocol_has_the_vma_and_its_locks() -> None:
    b = box()
    anon = b.anon_vma()
    vma = b.vma(0x1000, 0x3000, anon=anon)
    grow(b, vma, 0x4000)
    grow(b, vma, 0x5000)
    (raw,) = b.native.events()
    _, seen = b.tables.events.sighting(raw)
    assert (seen.was_start, seen.was_end, seen.vm_start, seen.vm_end) == (
        0x1000,
        0x3000,
        0x1000,
        0x4000,
    )
    assert (seen.anon, seen.i_mmap, seen.folio) == (b.anon_lock(anon), 0, 0)


def test_flight_recorder_keeps_the_last_windows_of_each_cpu() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    for end in range(12):
        b.tick(10)
        with b.call("expand_downwards", vma.at, 0x1000):
            b.tick(end)
    flights = b.tables.flight_recorder.flights()
    assert [flight.row.end_ns - flight.row.start_ns for flight in flights] == list(range(4, 12)), (
        "8 rows on one CPU"
    )
    assert {flight.row.protocol for flight in flights} == set(
        b.tables.protocol_table.keys_by_first_ns()
    )
    recorded = b.tables.flight_recorder.recorded
    assert (
        recorded({b.mm}).flights
        == recorded({vma.at, 0xBAD}).flights
        == recorded({0xBAD}, {7}).flights
        == flights
    )
    assert recorded({0xBAD}).flights == recorded(tids={8}).flights == []
    ends = [flight.row.end_ns for flight in flights]
    assert recorded(since_ns=ends[2], until_ns=ends[6]).flights == flights[2:7]
    assert recorded({b.mm}, until_ns=ends[6], last=2).flights == flights[5:7]
    assert (recorded({0xBAD}).changes_ns, recorded().walks_ns) == (flights[0].row.end_ns, 0), (
        "the age of the oldest flight does not depend on the filter"
    )


def test_window_times_are_counted_in_log2_slots() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    for ns in (5, 100, 0):
        with b.call("expand_downwards", vma.at, 0x1000):
            b.tick(ns)
    times = b.tables.window_times.windows()["expand_downwards"]
    assert (times.count, times.sum_ns, [times.slots[n] for n in (0, 3, 7)]) == (3, 105, [1, 1, 1])
    assert b.tables.window_times.windows()["copy_vma"].count == 0


def test_storage_of_a_task_fits_into_a_slab_object_of_four_kilobytes() -> None:
    """With its header, struct bpf_local_storage_elem: the next size is 8 KB for each task."""
    assert box().native.maps["task_windows"].value_size <= 4096 - 80


def test_stack_is_taken_once_for_each_path_into_a_window() -> None:
    """In a system call of the same number, the same function at the same depth has the same stack.

    Inner windows share the stack of the outermost window, and tasks share the stacks of paths.
    """
    b = box()
    vma = b.vma(0x1000, 0x3000)
    regs = (ctypes.c_uint64 * 2).in_dll(b.native.lib, "harness_regs")
    stack_id = ctypes.c_int64.in_dll(b.native.lib, "harness_stack_id")
    stack_id.value = 1
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        stack_id.value = 2
        with b.call("anon_vma_clone", 0, vma.at):
            pass
    b.become(77)
    for stack_id.value, regs[0] in ((3, 0), (4, 9), (5, 9), (6, 0)):
        with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
            pass
    stack_id.value = -17  # EEXIST: another stack is in its bucket
    for _ in range(2):
        with b.call("vma_shrink", 0, vma.at, 0, 0x3000):
            pass
        stack_id.value = 7
    stacks = [(flight.window, flight.row.stack) for flight in b.tables.flight_recorder.flights()]
    assert stacks == [
        ("anon_vma_clone", 1),
        *(("__split_vma", stack) for stack in (1, 1, 4, 4, 1)),
        *[("vma_shrink", -1)] * 2,
    ]
