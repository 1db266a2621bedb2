"""Inner windows, missed returns, full maps, overlong protocols and exiting tasks.

Each loss is counted.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.support.box import FENTRY, KPROBE, STACK, Box, Vma, box

each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])


def lost(b: Box) -> dict[str, int]:
    names = "WINDOWS_UNCLOSED WINDOWS_LOST WINDOWS_OVERLONG PROTOCOLS_LOST EVIDENCE_LOST".split()
    return {name: b.counter(name) for name in names if b.counter(name)}


def windowed(b: Box, vma: Vma) -> None:
    with b.call("expand_downwards", vma.at, 0x1000):
        pass


def no_window_is_open(b: Box) -> bool:
    return b.open_windows() == 0


@each_method
def test_steps_of_an_inner_window_are_recorded_in_it(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma, other = b.vma(0x1000, 0x3000, anon=b.anon_vma()), b.vma(0x3000, 0x4000)
    lock = b.anon_lock(vma.anon_vma)
    with b.call("__split_vma", b.mm, vma.at, 0x2000, 0):
        b.down(lock)
        with b.call("anon_vma_clone", other.at, vma.at):
            b.tree(other, vma.anon_vma, enter=True)
        b.up(lock)
        b.change(vma, vm_end=0x2000)
    assert b.seen() == {
        "anon_vma_clone[anon anon:w]  anon+": 1,
        "__split_vma[anon moved ok]  anon↓w anon_vma_clone() anon↑w": 1,
    }
    assert (lost(b), no_window_is_open(b)) == ({}, True)


@each_method
def test_failed_inner_windows_are_recorded_at_every_depth(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000)
    with (
        b.call("vma_merge", b.mm, 0, 0, 0),
        b.call("__split_vma", b.mm, vma.at, 0x3000, 0),
        b.call("__vma_adjust", vma.at, 0, 0, 0, 0, 0),
    ):
        for _ in range(3):
            with b.call("anon_vma_clone", 0, vma.at, returned=(1 << 32) - 12):
                pass
    assert b.seen() == {
        "anon_vma_clone[] -ENOMEM": 3,
        "__vma_adjust[ok]  {anon_vma_clone()}*": 1,
        "__split_vma[ok]  __vma_adjust()": 1,
        "vma_merge[] -NULL  __split_vma()": 1,
    }
    assert no_window_is_open(b)


def test_window_deeper_than_the_window_stack_is_counted_as_lost() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    names = (
        "vma_merge __split_vma __vma_adjust vma_shrink do_brk_flags copy_vma anon_vma_clone "
        "dup_mmap expand_downwards"
    ).split()
    args = {"expand_downwards": (vma.at, 0x1000), "do_brk_flags": (0, vma.at)}
    for name in names:
        b.enter(name, *args.get(name, ()))
    for name in reversed(names):
        b.leave(name, *args.get(name, ()), returned=0)
    assert lost(b) == {"WINDOWS_LOST": 1}
    assert sum(b.seen().values()) == 8
    assert no_window_is_open(b)


@each_method
def test_window_with_a_missed_return_is_counted_only_as_unclosed(methods: tuple[str, str]) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.miss("expand_downwards", vma.at, 0x1000)
    with b.call("expand_downwards", vma.at, 0x1000):
        b.down(b.anon_lock(vma.anon_vma))
    assert (lost(b), b.seen()) == (
        {"WINDOWS_UNCLOSED": 1},
        {"expand_downwards[anon ok]  anon↓w → [anon:w]": 1},
    )
    assert no_window_is_open(b)


def test_missed_return_is_detected_by_a_window_of_another_function() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.miss("__split_vma", b.mm, vma.at, 0x2000, 0)
    windowed(b, vma)
    assert (lost(b), b.seen()) == ({"WINDOWS_UNCLOSED": 1}, {"expand_downwards[ok]": 1})
    assert no_window_is_open(b)


def test_step_no_deeper_on_the_stack_closes_a_window_left_behind() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    b.miss("expand_downwards", vma.at, 0x1000)
    b.native.set("harness_stack", STACK)
    program = b.point("fentry", "down_write")
    assert program
    program.run(b.anon_lock(vma.anon_vma))
    assert (lost(b), b.seen(), b.open_windows()) == ({"WINDOWS_UNCLOSED": 1}, {}, 0)


@each_method
def test_return_of_the_outer_window_closes_inner_windows_left_behind(
    methods: tuple[str, str],
) -> None:
    b = box(methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        b.enter("anon_vma_clone", 0, vma.at)
        b.miss("unlink_anon_vmas", vma.at)
        b.calls.pop()
    assert (b.counter("WINDOWS_UNCLOSED") > 0, b.seen()) == (
        True,
        {"__split_vma[anon ok]  anon_vma_clone()": 1},
    )
    assert no_window_is_open(b)


@each_method
@pytest.mark.parametrize("outer", [False, True])
def test_return_of_a_call_without_work_is_not_taken_for_a_missed_return(
    methods: tuple[str, str], outer: bool
) -> None:
    """free_pgtables() calls unlink_anon_vmas() for one VMA after the other, at the same depth."""
    b = box(methods)
    vma, idle = b.vma(0x1000, 0x3000, anon=b.anon_vma()), b.vma(0x3000, 0x5000)
    if outer:
        b.enter("__split_vma", b.mm, vma.at, 0x3000, 0)
    b.miss("unlink_anon_vmas", vma.at)
    with b.call("unlink_anon_vmas", idle.at):
        pass
    if outer:
        b.leave("__split_vma", b.mm, vma.at, 0x3000, 0)
    assert (lost(b), b.open_windows()) == ({"WINDOWS_UNCLOSED": 1}, 0)
    assert b.seen() == ({"__split_vma[anon ok]  unlink_anon_vmas()": 1} if outer else {})


def test_step_that_reveals_a_missed_inner_return_belongs_to_the_outer_window() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("expand_downwards", vma.at, 0x1000):
        b.miss("anon_vma_clone", 0, vma.at)
        with b.locked(b.anon_lock(vma.anon_vma)):
            b.native.set("harness_stack", STACK)
            b.tree(vma, vma.anon_vma, enter=False)
    assert b.seen() == {"expand_downwards[anon ok]  anon_vma_clone() anon↓w anon- anon↑w": 1}
    assert lost(b) == {"WINDOWS_UNCLOSED": 1}


def test_windows_left_behind_at_two_depths_are_both_dropped() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.enter("__split_vma", b.mm, vma.at, 0x2000, 0)
    b.miss("anon_vma_clone", 0, vma.at)
    b.calls.pop()
    b.tree(vma, b.anon_vma(), enter=True)
    windowed(b, vma)
    assert lost(b) == {"WINDOWS_UNCLOSED": 2}
    assert b.seen() == {"outside[]  anon+(new)": 1, "expand_downwards[ok]": 1}
    assert no_window_is_open(b)


def test_windows_left_behind_in_many_tasks_are_each_counted_once() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    for tid in range(100, 140):
        b.become(tid)
        with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
            b.miss("anon_vma_clone", 0, vma.at)
    assert lost(b) == {"WINDOWS_UNCLOSED": 40}
    assert b.seen() == {"__split_vma[ok]  anon_vma_clone()": 40}


def test_return_without_a_recorded_entry_is_ignored() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        b.calls.append("anon_vma_clone")
        b.leave("anon_vma_clone", 0, vma.at)
    b.calls.append("expand_downwards")
    b.leave("expand_downwards", vma.at, 0x1000)
    assert (b.seen(), lost(b)) == ({"__split_vma[ok]": 1}, {})


def test_open_windows_of_an_exiting_task_are_counted_once_as_unclosed() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000)
    b.enter("__split_vma", b.mm, vma.at, 0x2000, 0)
    b.enter("anon_vma_clone", 0, vma.at)
    b.fire("sched_process_exit", b.task, 1)
    assert (lost(b), no_window_is_open(b)) == ({"WINDOWS_UNCLOSED": 1}, True)
    b.fire("sched_process_exit", b.task, 1)
    assert lost(b) == {"WINDOWS_UNCLOSED": 1}


def test_steps_of_another_task_are_not_recorded_in_the_window() -> None:
    b = box()
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    with b.call("expand_downwards", vma.at, 0x1000):
        b.become(8)
        b.touch("down_write", b.anon_lock(vma.anon_vma))
        b.tree(vma, vma.anon_vma, enter=False)
        b.become(7)
    assert b.seen() == {"expand_downwards[anon ok]": 1, "outside[]  anon-(-)": 1}


@pytest.mark.parametrize("count", [54, 55, 56, 80])
def test_protocol_with_too_many_steps_is_cut_and_counted_as_overlong(count: int) -> None:
    """The steps are a square-free sequence, so that nothing folds.

    It is Thue's: the numbers of ones between the zeros of the Thue-Morse sequence.
    """
    b = box()
    morse = [n.bit_count() & 1 for n in range(1000)]
    zeros = [n for n, bit in enumerate(morse) if not bit]
    functions = ["up_read", "up_write", "downgrade_write"]
    with b.call("expand_downwards", b.vma(0x1000, 0x3000).at, 0x1000):
        for here, there in list(pairwise(zeros))[:count]:
            b.touch(functions[there - here - 1], b.take(64) + 32)
    (line,) = b.seen()
    assert len(line.split()[1:]) == min(count, 56)
    assert line.endswith("…") == (count > 55)
    assert lost(b) == ({"WINDOWS_OVERLONG": 1} if count > 55 else {})


def test_new_protocols_are_counted_as_lost_if_the_table_is_full() -> None:
    b = box(PROTOCOL_ROWS=2)
    vma = b.vma(0x1000, 0x3000)
    windowed(b, vma)
    with b.call("vma_shrink", 0, vma.at, 0, 0x3000):
        pass
    for _ in range(3):
        with b.call("anon_vma_clone", 0, vma.at):
            pass
    b.tree(vma, b.anon_vma(), enter=True)
    windowed(b, vma)
    assert lost(b) == {"PROTOCOLS_LOST": 4}
    assert b.seen() == {"expand_downwards[ok]": 2, "vma_shrink[ok]": 1}
    assert len(b.tables.flight_recorder.flights()) == 3


def test_window_of_a_task_is_counted_as_lost_if_the_task_map_is_full() -> None:
    b = box(TASKS=2)
    vma = b.vma(0x1000, 0x3000)
    for tid in (1, 2, 3):
        b.become(tid)
        b.enter("expand_downwards", vma.at, 0x1000)
        b.calls.clear()
    for tid in (1, 2, 3):
        b.become(tid)
        b.calls = ["expand_downwards"]
        b.leave("expand_downwards", vma.at, 0x1000)
    assert (lost(b), b.seen()) == ({"WINDOWS_LOST": 1}, {"expand_downwards[ok]": 2})


def test_full_ring_loses_the_evidence_and_keeps_the_count() -> None:
    b = box()
    b.native.set("harness_ring_room", 0)
    vma = b.vma(0x1000, 0x3000)
    windowed(b, vma)
    b.tree(vma, b.anon_vma(), enter=True)
    assert lost(b) == {"EVIDENCE_LOST": 2}
    assert b.seen() == {"expand_downwards[ok]": 1, "outside[]  anon+(new)": 1}
    assert b.native.events() == []
