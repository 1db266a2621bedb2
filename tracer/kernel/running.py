"""What this kernel is and has: its release, types, symbols and the ways of probing that it allows.

Roots are passed in (a test gives a folder), nothing is read at import.
"""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TextIO

from tracer.errors import RmapdError
from tracer.kernel.btf import Btf

_CLONE = re.compile(r"(.+)\.(?:isra|constprop|part)\.\d+")
_SYMBOL = re.compile(r"^\S+ \S (\S+)", re.MULTILINE)


@dataclass
class Kernel:
    """One kernel, read lazily. `fentry_refused` answers why a fentry program cannot be loaded (empty: it can).
    known_enums: what another process has read from the types already, so that this one need not parse them."""

    release: str
    btf: Btf | Callable[[], Btf]
    sys_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    fentry_probe: Callable[[Btf], str] = field(default=lambda _types: "not tried")
    known_enums: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def running(
        cls, sys_root: Path = Path("/sys"), fentry_probe: Callable[[Btf], str] | None = None
    ) -> Kernel:
        """The running kernel. Raises RmapdError on another machine than x86-64, and without BTF when the types are asked for."""
        machine = os.uname().machine
        if machine != "x86_64":
            raise RmapdError(
                f"rmapd does not know the page tables of {machine}",
                why="migration entries and page tables are decoded for x86-64",
                hint="an x86-64 machine",
            )
        kernel = cls(
            os.uname().release, lambda: Btf.read(sys_root / "kernel/btf/vmlinux"), sys_root
        )
        if fentry_probe:
            kernel.fentry_probe = fentry_probe
        return kernel

    @cached_property
    def types(self) -> Btf:
        """The kernel's types, parsed when they are first asked for."""
        return self.btf if isinstance(self.btf, Btf) else self.btf()

    def enumerators(self, enum: str) -> dict[str, int]:
        """name -> value of an enum of this kernel."""
        return self.known_enums[enum] if enum in self.known_enums else self.types.enumerators(enum)

    @cached_property
    def symbols(self) -> Collection[str]:
        """Every name in /proc/kallsyms."""
        try:
            self._kallsyms_file.seek(0)
            return frozenset(_SYMBOL.findall(self._kallsyms_file.read()))
        except OSError:
            return frozenset()

    def page_tables(self) -> int:
        """How many page tables there are, by /proc/vmstat (NR_PAGETABLE: not all upper levels are counted)."""
        counted = re.search(
            r"^nr_page_table_pages (\d+)$",
            (self.proc_root / "vmstat").read_text(encoding="utf-8"),
            re.M,
        )
        return int(counted[1]) if counted else 1 << 24

    def address_of(self, symbol: str) -> int:
        """One address from kallsyms, 0 where it is hidden or not there."""
        return next((address for address, _, name, _ in self._kallsyms() if name == symbol), 0)

    def functions(self) -> Iterator[tuple[int, str, str]]:
        """(address, name, `[module]`) of everything that is code, read now: modules and BPF programs come and go."""
        return (
            (address, name, module)
            for address, kind, name, module in self._kallsyms()
            if kind in "tTwW" and address
        )

    @cached_property
    def _kallsyms_file(self) -> TextIO:
        """Opened once and kept: whether it shows addresses is settled when it is opened, what it lists when it is read. The unit gives it
        to us as standard input, opened by systemd, and we need no CAP_SYSLOG."""
        path = self.proc_root / "kallsyms"
        with contextlib.suppress(OSError):
            if os.readlink("/proc/self/fd/0") == str(path):
                file = os.fdopen(os.dup(0), encoding="utf-8", errors="replace")
                weakref.finalize(self, file.close).atexit = False
                return file
        file = path.open(encoding="utf-8", errors="replace")
        weakref.finalize(self, file.close).atexit = False
        return file

    def _kallsyms(self) -> Iterator[tuple[int, str, str, str]]:
        try:
            lines = self._kallsyms_file
            lines.seek(0)
            for line in lines:
                address, kind, name = line.split(None, 2)
                name, _, module = name.rstrip("\n").partition("\t")
                yield int(address, 16), kind, name, module
        except OSError:
            return

    def shows_addresses(self) -> bool:
        """Whether kallsyms tells where symbols are."""
        return any(address for address, _, _, _ in islice(self._kallsyms(), 64))

    @cached_property
    def traceable(self) -> frozenset[str] | None:
        """ftrace's available_filter_functions, or None where tracefs does not show it."""
        for place in ("kernel/tracing", "kernel/debug/tracing"):
            try:
                text = (self.sys_root / place / "available_filter_functions").read_text(
                    encoding="utf-8"
                )
            except OSError:
                continue
            return frozenset(line.split()[0] for line in text.splitlines() if line)
        return None

    @cached_property
    def kprobe_refused(self) -> str:
        """Why no kprobe can be set, or would be trusted, or empty.

        trace_call_bpf() counts what it leaves out since Linux 6.7, which also gave struct bpf_link_info its counter of a kprobe's.
        Where nothing counts and tasks are preempted in bpf(2) calls on maps, whole windows are missing without a trace."""
        if not (self.sys_root / "bus/event_source/devices/kprobe").exists():
            return "this kernel is built without CONFIG_KPROBES"
        if self.preempts and not self.types.resolve("bpf_link_info.perf_event.kprobe.missed"):
            return "before 6.7 a kernel that preempts does not count what it leaves out of kprobes: boot with preempt=voluntary"
        return ""

    @cached_property
    def preempts(self) -> bool:
        """Whether a task in the kernel, and so in a BPF program, may lose its CPU to another. The kernel leaves out runs of a program
        that is already running on the CPU: fentry programs then miss many. A kprobe's handler runs with preemption off; it is left out
        only while another program or a bpf(2) call on a map is under way on that CPU (bpf_prog_active), which is rare."""
        try:
            mode = (self.sys_root / "kernel/debug/sched/preempt").read_text(encoding="utf-8")
        except OSError:
            return False
        return "(full)" in mode or "(lazy)" in mode

    @cached_property
    def fentry_refused(self) -> str:
        return self.fentry_probe(self.types)

    def clones(self, name: str) -> list[str]:
        """The function itself and the copies the compiler made of it (`.isra.0`, `.constprop.0`, `.part.0`)."""
        return ([name] if name in self.symbols else []) + sorted(self._copies.get(name, ()))

    @cached_property
    def _copies(self) -> dict[str, list[str]]:
        """The compiler's copies by the function that they are of."""
        found: dict[str, list[str]] = {}
        for symbol in self.symbols:
            if "." in symbol and (copy := _CLONE.fullmatch(symbol)):
                found.setdefault(copy[1], []).append(symbol)
        return found

    @property
    def five_level_paging(self) -> bool:
        """Whether page tables have five levels: the kernel clears `la57` from the flags when it does not use it."""
        try:
            text = (self.proc_root / "cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return False
        flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
        return "la57" in flags.split()
