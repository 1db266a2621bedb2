"""Hooks that someone else disables or detaches are noticed, and cost coverage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.attach.liveness import Attachment, LivenessCheck
from tracer.bpf.links import Link
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover

ATTACHED = (
    Attachment("copy_vma", "kretprobe", "copy_vma", Link(11)),
    Attachment("copy_vma", "kprobe", "copy_vma", Link(10)),
    Attachment("__split_vma", "fentry", "__split_vma", Link(12)),
    Attachment("mm_migrate_pages", "raw_tp", "mm_migrate_pages", Link(13)),
    Attachment("up_write", "kprobe.multi", "up_write", Link(14)),
)


class Kernel:
    """Descriptors, switches and run counts."""

    def __init__(self, root: Path) -> None:
        self.root, self.now, self.refusing = root, 0, False
        self.attached = list(ATTACHED)
        self.stand_for = {one.link.fd: (7, one.link.fd) for one in ATTACHED}
        self.ran = dict.fromkeys(("copy_vma", "__split_vma", "mm_migrate_pages"), 0)
        self.answers = {"__split_vma"}
        self.write("sys/kernel/debug/kprobes/enabled", "1\n")
        self.write(
            "sys/kernel/debug/kprobes/list",
            "ffffffff81000000  k  copy_vma+0x0    [FTRACE]\n"
            "ffffffff82000000  k  other+0x0    [DISABLED]\n",
        )
        self.write("proc/sys/kernel/ftrace_enabled", "1\n")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def attached_to(self, fd: int) -> tuple[int, ...]:
        if self.refusing:
            raise PermissionError(1, "Operation not permitted")
        if fd not in self.stand_for:
            raise OSError(9, "Bad file descriptor")
        return self.stand_for[fd]

    def second(self) -> int:
        """A second passes from one check to the next, which reads the clock at most twice."""
        self.now += 500_000_000
        return self.now

    def self_test(self) -> None:
        for hook in self.answers:
            self.ran[hook] += 1

    def liveness(self) -> LivenessCheck:
        return LivenessCheck(
            lambda: self.attached,
            lambda: dict(self.ran),
            root=self.root,
            attached_to=self.attached_to,
            self_test=self.self_test,
            clock=self.second,
        )


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_attached_hooks_stay_on_while_nothing_changes(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    assert [liveness.check() for _ in range(80)] == [{}] * 80


def test_descriptor_that_is_gone_or_replaced_is_reported(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    del kernel.stand_for[13]
    kernel.stand_for[12] = (7, 99)
    off = liveness.check()
    assert off == {
        "mm_migrate_pages": "its raw_tp at mm_migrate_pages is gone: Bad file descriptor",
        "__split_vma": "its fentry at __split_vma is not the one that was attached",
    }


def test_descriptor_that_cannot_be_asked_about_is_not_reported(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    kernel.refusing = True
    assert liveness.check() == {}


def test_kprobe_hooks_are_off_while_kprobes_are_switched_off(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    kernel.write("sys/kernel/debug/kprobes/enabled", "0\n")
    assert set(liveness.check()) == {"copy_vma"}
    kernel.write("sys/kernel/debug/kprobes/enabled", "1\n")
    assert liveness.check() == {}


@pytest.mark.parametrize("flag", ["DISABLED", "GONE"])
def test_kprobe_that_the_kernel_lists_as_disabled_is_off(kernel: Kernel, flag: str) -> None:
    liveness = kernel.liveness()
    kernel.write(
        "sys/kernel/debug/kprobes/list", f"ffffffff81000000  k  copy_vma+0x0    [{flag}][FTRACE]\n"
    )
    assert set(liveness.check()) == {"copy_vma"}


def test_disabled_kprobe_of_another_tool_on_the_same_function_is_ignored(kernel: Kernel) -> None:
    """trace-cmd and perf make theirs disabled, and enable them when they are read.

    Seen on 6.1: `copy_vma` was reported as off.
    """
    liveness = kernel.liveness()
    line = "ffffffff81000000  {}  copy_vma+0x0    {}[FTRACE]\n"
    ours = line.format("k", "") + line.format("r", "")
    foreign = line.format("k", "[DISABLED]") + line.format("r", "[DISABLED]")
    for text in (ours + foreign, foreign + ours):
        kernel.write("sys/kernel/debug/kprobes/list", text)
        assert liveness.check() == {}


def test_all_hooks_on_functions_are_off_while_ftrace_is_switched_off(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    kernel.write("proc/sys/kernel/ftrace_enabled", "0\n")
    assert set(liveness.check()) == {"__split_vma", "copy_vma", "up_write"}


def test_kprobe_that_ftrace_does_not_call_stays_on_without_ftrace(kernel: Kernel) -> None:
    """On arm64 a kprobe is a BRK instruction."""
    kernel.write("sys/kernel/debug/kprobes/list", "ffff800008012340  k  copy_vma+0x0    \n")
    liveness = kernel.liveness()
    kernel.write("proc/sys/kernel/ftrace_enabled", "0\n")
    assert "copy_vma" not in liveness.check()


def test_kprobes_are_off_without_ftrace_where_their_list_is_not_shown(kernel: Kernel) -> None:
    kernel.write("sys/kernel/debug/kprobes/list", "")
    liveness = kernel.liveness()
    kernel.write("proc/sys/kernel/ftrace_enabled", "0\n")
    assert "copy_vma" in liveness.check()


def test_hook_that_misses_two_self_tests_is_off_until_it_runs_again(kernel: Kernel) -> None:
    """No switch and no descriptor shows why."""
    liveness = kernel.liveness()
    assert liveness.check() == {}
    kernel.answers.clear()
    found = [set(liveness.check()) for _ in range(80)]
    assert found[:15] == [set()] * 15
    assert found[-1] == {"__split_vma"}
    kernel.answers.add("__split_vma")
    assert [liveness.check() for _ in range(40)][-1] == {}


def test_paused_hook_is_not_self_tested_and_comes_back_with_another_link(kernel: Kernel) -> None:
    liveness = kernel.liveness()
    liveness.check()
    kernel.answers.clear()
    paused = kernel.attached.pop(2)
    assert [liveness.check() for _ in range(80)] == [{}] * 80
    kernel.answers.add("__split_vma")
    kernel.stand_for[12] = (7, 100)  # the same number, another link
    kernel.attached.append(Attachment(paused.hook, paused.how, paused.symbol, Link(12)))
    assert [liveness.check() for _ in range(80)] == [{}] * 80


def test_hook_that_ran_by_chance_need_not_run_again(kernel: Kernel) -> None:
    kernel.answers.add("mm_migrate_pages")
    liveness = kernel.liveness()
    assert liveness.check() == {}
    kernel.answers.remove("mm_migrate_pages")
    assert [liveness.check() for _ in range(80)] == [{}] * 80


def test_unreadable_switches_report_nothing(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    liveness = LivenessCheck(
        lambda: ATTACHED,
        dict,
        root=tmp_path / "absent",
        attached_to=kernel.attached_to,
        self_test=kernel.self_test,
    )
    assert liveness.check() == {}


class TestCoverage:
    def test_detached_hook_leaves_no_invariant_that_needs_it_fully_covered(self) -> None:
        for invariant in discover().values():
            everything = [
                name
                for names in (*invariant.needs, *invariant.lacking)
                for name in names.split("|")
            ]
            for name in everything:
                level, reason = invariant.coverage(
                    [one for one in everything if one != name], {name: "why"}
                )
                assert level is not Coverage.FULL, (invariant.id, name)
                assert "why" in reason

    def test_invariant_of_windows_loses_coverage_with_any_detached_hook(self) -> None:
        v5 = discover()["V5"]
        everything = [name for names in (*v5.needs, *v5.lacking) for name in names.split("|")]
        level, reason = v5.coverage(everything, {"unheard_of": "kprobes are off"})
        assert (level, reason) == (Coverage.PARTIAL, "taken away: unheard_of (kprobes are off)")

    def test_many_detached_hooks_share_one_reason(self) -> None:
        off = {f"hook{n}": "kprobes are off" for n in range(9)}
        _, reason = discover()["L1"].coverage((), off)
        assert reason.endswith("taken away: hook0, hook1, hook2 and 6 more (kprobes are off)")


def test_self_test_that_the_kernel_does_not_count_says_nothing(kernel: Kernel) -> None:
    """Run statistics may be refused for a while: the process that switches them on hangs."""
    counted = True
    liveness = LivenessCheck(
        lambda: kernel.attached,
        lambda: dict(kernel.ran) if counted else {},
        root=kernel.root,
        attached_to=kernel.attached_to,
        self_test=kernel.self_test,
        clock=kernel.second,
    )
    assert liveness.check() == {}
    counted = False
    assert [liveness.check() for _ in range(80)] == [{}] * 80
    counted, kernel.answers = True, set()
    assert {hook for _ in range(80) for hook in liveness.check()} == {"__split_vma"}
