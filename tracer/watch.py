"""Whether what was attached still is. Others may take it away without a word: kprobes have one switch for all of them, ftrace has another,
and what a descriptor stands for can go. A hook that is off costs coverage; it must not look like a kernel that does nothing.

Three looks: what the kernel says of each descriptor, the switches, and a pulse: VMA changes of our own, which the hooks that saw the first
one must see again.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer.program import attached_to

_PROBES = frozenset({"kprobe", "kretprobe"})
_PATCHED = _PROBES | {"fentry", "fexit"}
_ANSWERING = frozenset({"mmap_lock_start_locking", "mmap_lock_acquire_returned", "mmap_lock_released", "__split_vma"})
"""Hooks that a pulse certainly runs. Others may run at the same time for other reasons, and not the next time."""
_PULSE_LOOKS = 10  # looks from one pulse to the next
_SILENT = 2  # pulses that a hook must miss in a row: a kernel may leave out a run


@dataclass(frozen=True)
class Attachment:
    """One point of a hook: where its program is attached, and by which descriptor."""

    hook: str
    how: str
    symbol: str
    fd: int


def pulse() -> None:
    """Take a VMA, split it, let it merge, give it back."""
    with mmap.mmap(-1, 3 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[mmap.PAGESIZE] = 1
        for advice in (mmap.MADV_DONTFORK, mmap.MADV_DOFORK):
            block.madvise(advice, mmap.PAGESIZE, mmap.PAGESIZE)


class Watch:
    """look() once a second: the hooks that are off now, with the reason. runs: hook -> how often its programs ran; empty where the kernel
    does not count. fastened: what a descriptor is attached to, which must stay the same."""

    def __init__(
        self,
        attachments: Iterable[Attachment],
        runs: Callable[[], Mapping[str, int]],
        root: Path = Path("/"),
        fastened: Callable[[int], tuple[int, ...]] = attached_to,
        beat: Callable[[], None] = pulse,
    ) -> None:
        self._attachments, self._runs, self._fastened, self._beat = list(attachments), runs, fastened, beat
        self._all_kprobes, self._list = root / "sys/kernel/debug/kprobes/enabled", root / "sys/kernel/debug/kprobes/list"
        self._ftrace = root / "proc/sys/kernel/ftrace_enabled"
        self._were = {one.fd: fastened(one.fd) for one in self._attachments}
        self._looks, self._answers, self._silent = 0, frozenset[str](), dict[str, int]()

    def look(self) -> dict[str, str]:
        """hook -> why it is off."""
        switches = self._switched_off()
        off: dict[str, str] = {}
        for one in self._attachments:
            if why := switches.get(one.how) or switches.get(one.symbol, "") * (one.how in _PROBES) or self._gone(one):
                off.setdefault(one.hook, why)
        if self._looks % _PULSE_LOOKS == 0:
            self._feel()
        self._looks += 1
        for hook, times in self._silent.items():
            if times >= _SILENT:
                off.setdefault(hook, "its program does not run any more when what it is attached to is done")
        return off

    def _gone(self, one: Attachment) -> str:
        try:
            now = self._fastened(one.fd)
        except OSError as error:
            return f"its {one.how} at {one.symbol} is gone: {error.strerror}"
        return "" if now == self._were[one.fd] else f"its {one.how} at {one.symbol} is not the one that was attached"

    def _switched_off(self) -> dict[str, str]:
        """Ways, and symbols, that are off."""
        off: dict[str, str] = {}
        if _read(self._ftrace).strip() == "0":
            off |= dict.fromkeys(_PATCHED, "ftrace is switched off (/proc/sys/kernel/ftrace_enabled)")
        if _read(self._all_kprobes).strip() == "0":
            off |= dict.fromkeys(_PROBES, "kprobes are switched off (/sys/kernel/debug/kprobes/enabled)")
        elif any(one.how in _PROBES for one in self._attachments):
            for line in _read(self._list).splitlines():
                if "[DISABLED]" in line or "[GONE]" in line:
                    symbol = line.split()[2].partition("+")[0]
                    off[symbol] = f"the kprobe at {symbol} is {'gone' if '[GONE]' in line else 'disabled'} (/sys/kernel/debug/kprobes/list)"
        return off

    def _feel(self) -> None:
        """The first pulse tells which hooks answer here; from then on these must."""
        before = self._runs()
        self._beat()
        after = self._runs()
        answered = frozenset(hook for hook, runs in after.items() if runs > before.get(hook, 0))
        if not self._looks:
            self._answers = answered & _ANSWERING
        for hook in self._answers:
            self._silent[hook] = 0 if hook in answered else self._silent.get(hook, 0) + 1


def _read(path: Path) -> str:
    """A switch that cannot be read says nothing."""
    try:
        return path.read_text()
    except OSError:
        return ""
