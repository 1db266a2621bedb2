"""Hooks that are taken away under the daemon's feet are noticed, and cost coverage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.attach.liveness import Attachment, Watch
from tracer.bpf.programs import Link
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover

ATTACHED = (
    Attachment("copy_vma", "kretprobe", "copy_vma", Link(11)),
    Attachment("copy_vma", "kprobe", "copy_vma", Link(10)),
    Attachment("__split_vma", "fentry", "__split_vma", Link(12)),
    Attachment("mm_migrate_pages", "raw_tp", "mm_migrate_pages", Link(13)),
)


class Kernel:
    """Descriptors, switches and run counts."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 0
        self.attached = list(ATTACHED)
        self.stand_for = {one.link.fd: (7, one.link.fd) for one in ATTACHED}
        self.ran = dict.fromkeys(("copy_vma", "__split_vma", "mm_migrate_pages"), 0)
        self.answers = {"__split_vma"}
        self.write("sys/kernel/debug/kprobes/enabled", "1\n")
        self.write(
            "sys/kernel/debug/kprobes/list",
            "ffffffff81000000  k  copy_vma+0x0    [FTRACE]\nffffffff82000000  k  other+0x0    [DISABLED]\n",
        )
        self.write("proc/sys/kernel/ftrace_enabled", "1\n")

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def fastened(self, fd: int) -> tuple[int, ...]:
        if fd not in self.stand_for:
            raise OSError(9, "Bad file descriptor")
        return self.stand_for[fd]

    def second(self) -> int:
        """A second passes from one look to the next, which asks for the time at most twice."""
        self.now += 500_000_000
        return self.now

    def beat(self) -> None:
        for hook in self.answers:
            self.ran[hook] += 1

    def watch(self) -> Watch:
        return Watch(
            lambda: self.attached,
            lambda: dict(self.ran),
            self.root,
            self.fastened,
            self.beat,
            self.second,
        )


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_what_is_on_is_on(kernel: Kernel) -> None:
    watch = kernel.watch()
    assert [watch.look() for _ in range(80)] == [{}] * 80


def test_a_descriptor_that_is_gone_or_another(kernel: Kernel) -> None:
    watch = kernel.watch()
    del kernel.stand_for[13]
    kernel.stand_for[12] = (7, 99)
    off = watch.look()
    assert off == {
        "mm_migrate_pages": "its raw_tp at mm_migrate_pages is gone: Bad file descriptor",
        "__split_vma": "its fentry at __split_vma is not the one that was attached",
    }


def test_a_descriptor_that_we_may_not_ask_about_is_not_gone(kernel: Kernel) -> None:
    def refused(fd: int) -> tuple[int, ...]:
        raise PermissionError(1, "Operation not permitted")

    watch = kernel.watch()
    watch._fastened = refused
    assert watch.look() == {}


def test_the_switch_of_all_kprobes_and_back(kernel: Kernel) -> None:
    watch = kernel.watch()
    kernel.write("sys/kernel/debug/kprobes/enabled", "0\n")
    assert set(watch.look()) == {"copy_vma"}
    kernel.write("sys/kernel/debug/kprobes/enabled", "1\n")
    assert watch.look() == {}


@pytest.mark.parametrize("flag", ["DISABLED", "GONE"])
def test_a_kprobe_that_the_list_calls_off(kernel: Kernel, flag: str) -> None:
    watch = kernel.watch()
    kernel.write(
        "sys/kernel/debug/kprobes/list", f"ffffffff81000000  k  copy_vma+0x0    [{flag}][FTRACE]\n"
    )
    assert set(watch.look()) == {"copy_vma"}


def test_anothers_kprobe_on_the_same_function_is_not_ours(kernel: Kernel) -> None:
    """trace-cmd and perf make theirs switched off, and switch them on when they are read. Seen on 6.1: `copy_vma` was said to be off."""
    watch = kernel.watch()
    ours = "ffffffff81000000  k  copy_vma+0x0    [FTRACE]\nffffffff81000000  r  copy_vma+0x0    [FTRACE]\n"
    foreign = "ffffffff81000000  k  copy_vma+0x0    [DISABLED][FTRACE]\nffffffff81000000  r  copy_vma+0x0    [DISABLED][FTRACE]\n"
    for text in (ours + foreign, foreign + ours):
        kernel.write("sys/kernel/debug/kprobes/list", text)
        assert watch.look() == {}


def test_ftrace_switched_off_takes_kprobes_and_trampolines(kernel: Kernel) -> None:
    watch = kernel.watch()
    kernel.write("proc/sys/kernel/ftrace_enabled", "0\n")
    assert set(watch.look()) == {"__split_vma", "copy_vma"}


def test_a_hook_that_does_not_answer_the_pulse_any_more(kernel: Kernel) -> None:
    """Whatever took it away: no switch and no descriptor says so."""
    watch = kernel.watch()
    assert watch.look() == {}
    kernel.answers.clear()
    looks = [set(watch.look()) for _ in range(80)]
    assert looks[:15] == [set()] * 15
    assert looks[-1] == {"__split_vma"}
    kernel.answers.add("__split_vma")
    assert [watch.look() for _ in range(40)][-1] == {}


def test_a_hook_that_rests_need_not_answer_and_comes_back_with_another_link(kernel: Kernel) -> None:
    watch = kernel.watch()
    watch.look()
    kernel.answers.clear()
    resting = kernel.attached.pop(2)
    assert [watch.look() for _ in range(80)] == [{}] * 80
    kernel.answers.add("__split_vma")
    kernel.stand_for[12] = (7, 100)  # the same number, another link
    kernel.attached.append(Attachment(resting.hook, resting.how, resting.symbol, Link(12)))
    assert [watch.look() for _ in range(80)] == [{}] * 80


def test_what_ran_by_chance_need_not_run_again(kernel: Kernel) -> None:
    kernel.answers.add("mm_migrate_pages")
    watch = kernel.watch()
    assert watch.look() == {}
    kernel.answers.remove("mm_migrate_pages")
    assert [watch.look() for _ in range(80)] == [{}] * 80


def test_without_the_files_of_the_switches_nothing_is_said(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    watch = Watch(lambda: ATTACHED, dict, tmp_path / "absent", kernel.fastened, kernel.beat)
    assert watch.look() == {}


class TestCoverage:
    def test_a_hook_that_was_taken_away_leaves_no_invariant_that_needs_it_full(self) -> None:
        for invariant in discover().values():
            everything = [
                name
                for names in (*invariant.needs, *(invariant.lacking or {}))
                for name in names.split("|")
            ]
            for name in everything:
                level, reason = invariant.coverage(
                    [one for one in everything if one != name], {name: "why"}
                )
                assert level is not Coverage.FULL, (invariant.id, name)
                assert "why" in reason

    def test_windows_are_judged_by_all_their_hooks(self) -> None:
        v5 = discover()["V5"]
        everything = [
            name for names in (*v5.needs, *(v5.lacking or {})) for name in names.split("|")
        ]
        level, reason = v5.coverage(everything, {"unheard_of": "kprobes are off"})
        assert (level, reason) == (Coverage.PARTIAL, "taken away: unheard_of (kprobes are off)")

    def test_many_hooks_are_one_reason(self) -> None:
        off = {f"hook{n}": "kprobes are off" for n in range(9)}
        _, reason = discover()["L1"].coverage((), off)
        assert reason.endswith("taken away: hook0, hook1, hook2 and 6 more (kprobes are off)")
