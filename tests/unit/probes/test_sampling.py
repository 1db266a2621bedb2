"""Sampling of windows.

An unsampled window is counted; its steps and inner windows are not recorded. A tree step without
its lock is recorded even there.
"""

from __future__ import annotations

import pytest

from tests.support.box import FENTRY, KPROBE, Box, Vma, box

SECOND = 1_000_000_000
OTHER = 0xFFFF888000002000
each_method = pytest.mark.parametrize("methods", [FENTRY, KPROBE], ids=["fentry", "kprobe"])


def sampling(a_second: int, methods: tuple[str, str] = FENTRY) -> Box:
    b = box(methods)
    b.tick(100 * SECOND)
    b.tables.params.set(window_ns=SECOND // a_second)
    return b


def grow(b: Box, vma: Vma) -> None:
    with b.call("expand_downwards", vma.at, 0x1000), b.locked(b.anon_lock(vma.anon_vma)):
        b.tree(vma, vma.anon_vma, enter=False)
        b.tree(vma, vma.anon_vma, enter=True)


def grown(b: Box) -> int:
    return sum(count for line, count in b.seen().items() if line.startswith("expand_downwards"))


def spent(b: Box) -> Vma:
    """Return a VMA that has grown until the allowance of its function is spent."""
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(3):
        grow(b, vma)
    assert unsampled(b) == {"expand_downwards": 1}, "the allowance is one a second"
    return vma


def unsampled(b: Box) -> dict[str, int]:
    return {name: count for name, count in b.tables.allowances.unsampled().items() if count}


def outside(b: Box) -> list[str]:
    return [line for line in b.seen() if line.startswith("outside")]


@each_method
def test_windows_above_the_allowance_are_counted_and_not_recorded(methods: tuple[str, str]) -> None:
    b = sampling(10, methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(50):
        grow(b, vma)
    assert (grown(b), unsampled(b)) == (11, {"expand_downwards": 39}), (
        "the allowance of a second, and one"
    )
    assert len(b.seen()) == 1, "their steps are not recorded elsewhere"
    assert b.tables.window_times.windows()["expand_downwards"].count == 11
    assert (b.held_rwsems(), b.open_windows()) == (0, 0)


def test_allowance_refills_with_time_up_to_one_second() -> None:
    b = sampling(10)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(1000):
        grow(b, vma)
        b.tick(SECOND // 100)
    assert 100 <= grown(b) <= 112, "ten seconds at ten a second"
    assert grown(b) + unsampled(b)["expand_downwards"] == 1000
    b.tick(3600 * SECOND)
    before = grown(b)
    for _ in range(50):
        grow(b, vma)
    assert grown(b) - before == 11, "the allowance of an idle hour is capped"


def test_unused_allowance_and_refill_are_capped_together() -> None:
    b = sampling(10)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    grow(b, vma)
    b.tick(3600 * SECOND)
    for _ in range(50):
        grow(b, vma)
    assert grown(b) == 1 + 11


def test_mm_take_all_locks_is_never_sampled() -> None:
    """mm_drop_all_locks() releases the locks of mm_take_all_locks().

    If only one of the two were sampled, the locks would stay recorded as held.
    """
    b = sampling(1)
    for _ in range(20):
        for name in ("mm_take_all_locks", "mm_drop_all_locks"):
            with b.call(name, b.mm):
                pass
    assert (sum(b.seen().values()), unsampled(b)) == (40, {})


def test_functions_have_separate_allowances() -> None:
    b = sampling(1)
    vma = spent(b)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert "__split_vma[anon ok]" in b.seen()


@each_method
def test_inner_windows_of_an_unsampled_window_are_not_opened(methods: tuple[str, str]) -> None:
    b = sampling(1, methods)
    vma = b.vma(0x1000, 0x3000, anon=b.anon_vma())
    for _ in range(10):
        with (
            b.call("__split_vma", b.mm, vma.at, 0x3000, 0),
            b.call("anon_vma_clone", 0, vma.at),
            b.call("unlink_anon_vmas", vma.at),
        ):
            pass
    assert sum(b.seen().values()) == 2 * 3, "two windows of each function"
    assert unsampled(b) == {"__split_vma": 8, "anon_vma_clone": 8, "unlink_anon_vmas": 8}
    assert b.open_windows() == 0


@each_method
def test_call_without_work_is_not_counted_and_closes_an_unsampled_window_left_behind(
    methods: tuple[str, str],
) -> None:
    b = sampling(1, methods)
    vma, idle = b.vma(0x1000, 0x3000, anon=b.anon_vma()), b.vma(0x3000, 0x5000)
    for _ in range(3):
        with b.call("unlink_anon_vmas", vma.at), b.call("unlink_file_vma", idle.at):
            pass
        with b.call("unlink_anon_vmas", idle.at):
            pass
    assert (b.seen(), unsampled(b), b.counter("WINDOWS_UNCLOSED")) == (
        {"unlink_anon_vmas[anon]": 2},
        {"unlink_anon_vmas": 1},
        0,
    )
    b.miss("unlink_anon_vmas", vma.at)
    with b.call("unlink_anon_vmas", idle.at):
        pass
    assert b.counter("WINDOWS_UNCLOSED") == 1


@pytest.mark.parametrize(
    ("state", "step"),
    [("own", ""), ("free", "anon-(-)"), ("other", "anon-(x)"), ("read", "anon-(r)")],
)
def test_tree_step_in_an_unsampled_window_is_recorded_only_without_its_lock(
    state: str, step: str
) -> None:
    b = sampling(1)
    vma = spent(b)
    with b.call("expand_downwards", vma.at, 0x1000):
        if state != "free":
            b.held(
                b.anon_lock(vma.anon_vma),
                write=state != "read",
                by=b.task if state == "own" else OTHER,
            )
        b.tree(vma, vma.anon_vma, enter=False)
    assert outside(b) == ([f"outside[]  {step}"] if step else [])


def test_tree_step_after_an_unsampled_window_is_recorded() -> None:
    b = sampling(1)
    vma = spent(b)
    b.held(b.anon_lock(vma.anon_vma))
    b.tree(vma, vma.anon_vma, enter=False)
    assert len(outside(b)) == 1


@each_method
def test_missed_return_of_an_unsampled_window_does_not_hide_the_next_window(
    methods: tuple[str, str],
) -> None:
    b = sampling(1, methods)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1, (
        "no deeper on the stack: the unsampled window has ended"
    )
    assert b.counter("WINDOWS_UNCLOSED") == 1


def test_unsampled_window_left_behind_ends_with_the_next_call_of_its_function() -> None:
    b = sampling(1)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    b.tick(2 * SECOND)
    b.calls.append("a system call with more on the stack")
    before = grown(b)
    grow(b, vma)
    assert grown(b) == before + 1, "none of these functions recurses"


@pytest.mark.parametrize(
    ("seconds", "a_second", "recorded"),
    [(3, 1, 0), (30, 1, 1), (3, 0, 1)],
    ids=["soon", "later", "sampling off"],
)
def test_unsampled_window_left_behind_expires_with_time_or_with_sampling(
    seconds: int, a_second: int, recorded: int
) -> None:
    b = sampling(1)
    vma = spent(b)
    b.miss("expand_downwards", vma.at, 0x1000)
    b.tick(seconds * SECOND)
    b.tables.params.set(window_ns=a_second * SECOND)
    b.calls.append("a system call with more on the stack")
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert (
        sum(count for line, count in b.seen().items() if line.startswith("__split_vma")) == recorded
    )
    assert b.counter("WINDOWS_UNCLOSED") == recorded


def test_unsampled_window_from_before_a_change_of_hooks_is_dropped() -> None:
    b = sampling(1)
    vma = spent(b)
    b.enter("expand_downwards", vma.at, 0x1000)
    with b.tables.epochs.changing_hooks(windows=True, mmap_locks=False):
        b.calls.pop()
    b.calls.append("deeper")
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1


def test_unsampled_window_of_one_task_does_not_hide_windows_of_another() -> None:
    b = sampling(1)
    vma = spent(b)
    b.enter("expand_downwards", vma.at, 0x1000)
    b.become(8)
    with b.call("__split_vma", b.mm, vma.at, 0x3000, 0):
        pass
    assert b.seen()["__split_vma[anon ok]"] == 1
