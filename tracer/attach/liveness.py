"""Whether what was attached still is. Others may take it away without a word: kprobes have one switch for all of them, ftrace has another,
and what a descriptor stands for can go. A hook that is off costs coverage; it must not look like a kernel that does nothing.

Three looks: what the kernel says of each descriptor, the switches, and a pulse: VMA changes of our own, which the hooks that saw the first
one must see again.
"""

from __future__ import annotations

import mmap
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tracer.bpf.programs import Link, attached_to

_PROBES = frozenset({"kprobe", "kretprobe"})
_KINDS = {"k": "kprobe", "r": "kretprobe"}
"""As report_probe(), kernel/kprobes.c, calls them."""
_PATCHED = _PROBES | {"fentry", "fexit"}
_ANSWERING = frozenset({"mmap_lock_acquire_returned", "mmap_lock_released", "__split_vma"})
"""Hooks that a pulse certainly runs. Others may run at the same time for other reasons, and not the next time."""
_PULSE_NS = 10_000_000_000
_SILENT = 2  # pulses that a hook must miss in a row: a kernel may leave out a run


@dataclass(frozen=True)
class Attachment:
    """One point of a hook: where its program is attached, and by which link."""

    hook: str
    how: str
    symbol: str
    link: Link


def pulse() -> None:
    """Take a VMA, split it, let it merge, give it back."""
    with mmap.mmap(-1, 3 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[mmap.PAGESIZE] = 1
        for advice in (mmap.MADV_DONTFORK, mmap.MADV_DOFORK):
            block.madvise(advice, mmap.PAGESIZE, mmap.PAGESIZE)


class Watch:
    """look() whenever something is judged: the hooks that are off now, with the reason. attachments: what we left on.
    runs: hook -> how often its programs ran; empty where the kernel does not count for us.
    fastened: what a descriptor is attached to, which must stay the same."""

    def __init__(
        self,
        attachments: Callable[[], Iterable[Attachment]],
        runs: Callable[[], Mapping[str, int]],
        root: Path = Path("/"),
        fastened: Callable[[int], tuple[int, ...]] = attached_to,
        beat: Callable[[], None] = pulse,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._attachments, self._runs, self._fastened, self._beat, self._clock = (
            attachments,
            runs,
            fastened,
            beat,
            clock,
        )
        self._all_kprobes, self._list = (
            _Switch(root / "sys/kernel/debug/kprobes/enabled"),
            _Switch(root / "sys/kernel/debug/kprobes/list"),
        )
        self._ftrace = _Switch(root / "proc/sys/kernel/ftrace_enabled")
        self._were: dict[Link, tuple[int, ...]] = {
            one.link: fastened(one.link.fd) for one in attachments()
        }
        self._answers: frozenset[str] | None = None
        self._silent: dict[str, int] = {}
        self._next_pulse_ns = 0

    def look(self) -> dict[str, str]:
        """hook -> why it is off."""
        attached = list(self._attachments())
        self._were = {
            link: was for link, was in self._were.items() if link in {one.link for one in attached}
        }
        switches = self._switched_off(attached)
        off: dict[str, str] = {}
        for one in attached:
            if (
                why := switches.get(one.how)
                or switches.get(f"{one.how} {one.symbol}")
                or self._gone(one)
            ):
                off.setdefault(one.hook, why)
        if self._clock() >= self._next_pulse_ns:
            self._next_pulse_ns = self._clock() + _PULSE_NS
            self._feel(frozenset(one.hook for one in attached))
        for hook, times in self._silent.items():
            if times >= _SILENT:
                off.setdefault(
                    hook, "its program does not run any more when what it is attached to is done"
                )
        return off

    def _gone(self, one: Attachment) -> str:
        try:
            now = self._fastened(one.link.fd)
        except PermissionError:
            return ""  # nothing is said of it
        except OSError as error:
            return f"its {one.how} at {one.symbol} is gone: {error.strerror}"
        was = self._were.setdefault(one.link, now)
        return (
            "" if now == was else f"its {one.how} at {one.symbol} is not the one that was attached"
        )

    def _switched_off(self, attached: Iterable[Attachment]) -> dict[str, str]:
        """Ways, and ways at a symbol, that are off. Others' probes on the same function are in the kernel's list beside ours, and may be
        switched off there: ours is where none of them is on."""
        off: dict[str, str] = {}
        if self._ftrace.read().strip() == "0":
            off |= dict.fromkeys(
                _PATCHED, "ftrace is switched off (/proc/sys/kernel/ftrace_enabled)"
            )
        if self._all_kprobes.read().strip() == "0":
            off |= dict.fromkeys(
                _PROBES, "kprobes are switched off (/sys/kernel/debug/kprobes/enabled)"
            )
        elif any(one.how in _PROBES for one in attached):
            on = set[str]()
            for line in filter(str.strip, self._list.read().splitlines()):
                _, kind, place, *_ = line.split()
                point = f"{_KINDS.get(kind, kind)} {place.partition('+')[0]}"
                if state := next(
                    (state for state in ("GONE", "DISABLED") if f"[{state}]" in line), ""
                ):
                    off[point] = (
                        f"the {point.replace(' ', ' at ')} is {state.lower()} (/sys/kernel/debug/kprobes/list)"
                    )
                else:
                    on.add(point)
            off = {point: why for point, why in off.items() if point not in on}
        return off

    def _feel(self, attached: frozenset[str]) -> None:
        """The first pulse tells which hooks answer here; from then on these must, while they are attached."""
        before = self._runs()
        self._beat()
        after = self._runs()
        answered = frozenset(hook for hook, runs in after.items() if runs > before.get(hook, 0))
        if self._answers is None:
            self._answers = answered & _ANSWERING
        self._silent = {
            hook: 0 if hook in answered else self._silent.get(hook, 0) + 1
            for hook in self._answers & attached
        }


class _Switch:
    """A file of the kernel's, opened while we may and kept: debugfs is root's. One that cannot be read says nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self.read()

    def read(self) -> str:
        try:
            if self._file is None:
                self._file = self._path.open(encoding="utf-8", errors="replace")
                weakref.finalize(self, self._file.close).atexit = False
            self._file.seek(0)
            return self._file.read()
        except OSError:
            return ""
