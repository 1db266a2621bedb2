"""Detect probes that were disabled or detached by someone else.

Kprobes have one switch for all of them, ftrace has another, `bpftool link detach` works on any
link, and no event reports any of it. A hook that is off costs coverage; it must not look like a
kernel on which nothing happens.

Three checks: what the kernel reports of each attachment's descriptor; the switches of kprobes and
ftrace; and a self-test every ten seconds, which changes VMAs of this process. Those of a few hooks
that ran in the first self-test must run in each later one.
"""

from __future__ import annotations

import contextlib
import mmap
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tracer.bpf import links
from tracer.bpf.links import Link

_KPROBES = frozenset({"kprobe", "kretprobe"})
_KPROBE_KINDS = {"k": "kprobe", "r": "kretprobe"}
"""The letters of report_probe(), kernel/kprobes.c."""
_TRAMPOLINES = frozenset({"fentry", "fexit", "kprobe.multi"})
_SELF_TESTED = frozenset({"mmap_lock_acquire_returned", "mmap_lock_released", "__split_vma"})
"""Hooks that the self-test certainly runs. Others may run at that time for another reason, and not
the next time."""
_SELF_TEST_NS = 10_000_000_000
_FAILED_IN_A_ROW = 2  # self-tests, before a hook is off: the kernel may leave out one run
_NOT_RUN = "its program no longer runs when this process does what it is attached to"


@dataclass(frozen=True)
class Attachment:
    """One attached program of a hook."""

    hook: str
    how: str
    symbol: str
    link: Link


def change_vmas() -> None:
    """Map a VMA, split it, let it merge again, unmap it."""
    with mmap.mmap(-1, 3 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[mmap.PAGESIZE] = 1
        for advice in (mmap.MADV_DONTFORK, mmap.MADV_DOFORK):
            block.madvise(advice, mmap.PAGESIZE, mmap.PAGESIZE)


class LivenessCheck:
    """Knows what each attachment was attached to, and which hooks the self-test runs."""

    def __init__(
        self,
        attachments: Callable[[], Iterable[Attachment]],
        runs: Callable[[], Mapping[str, int]],
        counting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        root: Path = Path("/"),
        attached_to: Callable[[int], tuple[int, ...]] = links.attached_to,
        self_test: Callable[[], None] = change_vmas,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Note what is attached now.

        attachments: what this process holds attached. runs: hook -> how often its programs ran;
        empty where the kernel does not count for us. counting: has it count meanwhile. root: of
        /sys and /proc. attached_to: identifies what a descriptor stands for. clock: in nanoseconds.
        """
        self._attachments, self._runs, self._counting = attachments, runs, counting
        self._attached_to, self._self_test, self._clock = attached_to, self_test, clock
        kprobes = root / "sys/kernel/debug/kprobes"
        self._kprobes_enabled = _KernelFile(kprobes / "enabled")
        self._kprobe_list = _KernelFile(kprobes / "list")
        self._ftrace_enabled = _KernelFile(root / "proc/sys/kernel/ftrace_enabled")
        self._targets = {one.link: attached_to(one.link.fd) for one in attachments()}
        self._self_tested: frozenset[str] | None = None
        self._failed: dict[str, int] = {}
        self._next_self_test_ns = 0

    def check(self) -> dict[str, str]:
        """Return the hooks that are off now, though this process holds them attached -> why.

        Call it before judging: what was seen while hooks went or came proves nothing.
        """
        attached = list(self._attachments())
        held = {one.link for one in attached}
        self._targets = {link: target for link, target in self._targets.items() if link in held}
        switched_off = self._switched_off(attached)
        off: dict[str, str] = {}
        for one in attached:
            reason = switched_off.get(one.how) or switched_off.get(f"{one.how} {one.symbol}")
            if reason := reason or self._gone(one):
                off.setdefault(one.hook, reason)
        if self._clock() >= self._next_self_test_ns:
            self._next_self_test_ns = self._clock() + _SELF_TEST_NS
            self._run_self_test(frozenset(one.hook for one in attached))
        for hook, times in self._failed.items():
            if times >= _FAILED_IN_A_ROW:
                off.setdefault(hook, _NOT_RUN)
        return off

    def _gone(self, one: Attachment) -> str:
        """Return why a descriptor no longer stands for what was attached; empty where it does."""
        try:
            now = self._attached_to(one.link.fd)
        except PermissionError:
            return ""  # unknown, not gone
        except OSError as error:
            return f"its {one.how} at {one.symbol} is gone: {error.strerror}"
        if now == self._targets.setdefault(one.link, now):
            return ""
        return f"its {one.how} at {one.symbol} is not the one that was attached"

    def _switched_off(self, attached: Iterable[Attachment]) -> dict[str, str]:
        """Return methods, and methods at a symbol (`kprobe copy_vma`), that are off -> why."""
        off: dict[str, str] = {}
        if self._ftrace_enabled.read().strip() == "0":
            reason = "ftrace is switched off (/proc/sys/kernel/ftrace_enabled)"
            off |= dict.fromkeys(_TRAMPOLINES, reason) | dict.fromkeys(self._by_ftrace(), reason)
        if self._kprobes_enabled.read().strip() == "0":
            reason = "kprobes are switched off (/sys/kernel/debug/kprobes/enabled)"
            off |= dict.fromkeys(_KPROBES, reason)
        elif any(one.how in _KPROBES for one in attached):
            off |= self._disabled_kprobes()
        return off

    def _by_ftrace(self) -> set[str]:
        """Return the kprobes that ftrace calls: those marked [FTRACE], as on x86; arm64 has none.

        Where the kernel does not show its list, all of them.
        """
        lines = [line for line in self._kprobe_list.read().splitlines() if line.strip()]
        if not lines:
            return set(_KPROBES)
        return {_listed(line) for line in lines if "[FTRACE]" in line}

    def _disabled_kprobes(self) -> dict[str, str]:
        """Return the kprobes that the kernel lists as disabled or gone -> why.

        The list has other tools' probes on the same function beside ours, which may be disabled.
        Ours is off if none of them is on.
        """
        off, on = dict[str, str](), set[str]()
        for line in filter(str.strip, self._kprobe_list.read().splitlines()):
            point = _listed(line)
            state = next((state for state in ("GONE", "DISABLED") if f"[{state}]" in line), "")
            if state:
                where = "(/sys/kernel/debug/kprobes/list)"
                off[point] = f"the {point.replace(' ', ' at ')} is {state.lower()} {where}"
            else:
                on.add(point)
        return {point: reason for point, reason in off.items() if point not in on}

    def _run_self_test(self, attached: frozenset[str]) -> None:
        """Change VMAs, and count for each hook how often in a row it did not run.

        The first time decides which hooks can be tested here. Where the kernel does not count
        now, a test shows nothing.
        """
        with self._counting():
            before = self._runs()
            self._self_test()
            after = self._runs()
        if not after:
            self._failed = {}
            return
        ran = frozenset(hook for hook, runs in after.items() if runs > before.get(hook, 0))
        if self._self_tested is None:
            self._self_tested = ran & _SELF_TESTED
        self._failed = {
            hook: 0 if hook in ran else self._failed.get(hook, 0) + 1
            for hook in self._self_tested & attached
        }


def _listed(line: str) -> str:
    """Return the method at a symbol of a line of /sys/kernel/debug/kprobes/list."""
    _, letter, place, *_ = line.split()
    return f"{_KPROBE_KINDS.get(letter, letter)} {place.partition('+')[0]}"


class _KernelFile:
    """A file of the kernel's, opened while we may open it, and kept: debugfs is root's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.read()

    def read(self) -> str:
        """Read it anew; empty where it cannot be read."""
        try:
            if self._file is None:
                self._file = self._path.open(encoding="utf-8", errors="replace")
                weakref.finalize(self, self._file.close).atexit = False
            self._file.seek(0)
            return self._file.read()
        except OSError:
            return ""
