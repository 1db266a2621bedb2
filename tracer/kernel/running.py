"""One kernel: its release, types and symbols, and which kinds of probes it allows.

The roots of /sys and /proc are passed in, so a test can give folders. Nothing is read at import.
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

from tracer.kernel.btf import Btf
from tracer.machine import known as machines
from tracer.machine.base import Machine, Memory
from tracer.machine.page_format import PageFormat

_PAGE_SHIFT = os.sysconf("SC_PAGESIZE").bit_length() - 1
_CLONE = re.compile(r"(.+)\.(?:isra|constprop|part)\.\d+")
_SYMBOL = re.compile(r"^\S+ \S (\S+)", re.MULTILINE)


def _text(path: Path) -> str:
    """Return the content of a file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass
class Kernel:
    """One kernel; each fact is read when it is first asked for.

    btf: its types, or a function that reads them. fentry_probe, plain_load_probe: return why an
    fentry program or one with plain loads cannot be loaded, empty where it can. known_enums: enums
    that another process has read from the types already, so that this one need not parse them.
    version: as `uname -v` has it. machine: its architecture. page_shift: of its pages.
    """

    release: str
    btf: Btf | Callable[[], Btf]
    sys_root: Path = Path("/sys")
    proc_root: Path = Path("/proc")
    fentry_probe: Callable[[Btf], str] = field(default=lambda _types: "not tried")
    plain_load_probe: Callable[[Btf], str] = field(default=lambda _types: "not tried")
    known_enums: dict[str, dict[str, int]] = field(default_factory=dict)
    version: str = ""
    machine: Machine = field(default_factory=lambda: machines.machine(os.uname().machine))
    page_shift: int = _PAGE_SHIFT

    @classmethod
    def running(
        cls,
        sys_root: Path = Path("/sys"),
        fentry_probe: Callable[[Btf], str] | None = None,
        plain_load_probe: Callable[[Btf], str] | None = None,
    ) -> Kernel:
        """Return the running kernel.

        Raises RmapdError on a machine that rmapd does not know. Reading `types` raises it where
        there is no BTF.
        """
        kernel = cls(
            os.uname().release,
            lambda: Btf.read(sys_root / "kernel/btf/vmlinux"),
            sys_root,
            version=os.uname().version,
        )
        if fentry_probe:
            kernel.fentry_probe = fentry_probe
        if plain_load_probe:
            kernel.plain_load_probe = plain_load_probe
        return kernel

    @cached_property
    def types(self) -> Btf:
        """The kernel's types. Raises RmapdError where there is no BTF."""
        return self.btf if isinstance(self.btf, Btf) else self.btf()

    def enumerators(self, enum: str) -> dict[str, int]:
        """Return name -> value of an enum; empty where this kernel does not have it."""
        return self.known_enums[enum] if enum in self.known_enums else self.types.enumerators(enum)

    @cached_property
    def symbols(self) -> Collection[str]:
        """Every name in /proc/kallsyms; empty where it cannot be read."""
        try:
            self._kallsyms_file.seek(0)
            return frozenset(_SYMBOL.findall(self._kallsyms_file.read()))
        except OSError:
            return frozenset()

    def page_tables(self) -> int:
        """Return how many page tables there are, by /proc/vmstat.

        NR_PAGETABLE does not count all upper levels. 1 << 24 where the line is not there.
        """
        counted = re.search(
            r"^nr_page_table_pages (\d+)$",
            (self.proc_root / "vmstat").read_text(encoding="utf-8"),
            re.M,
        )
        return int(counted[1]) if counted else 1 << 24

    def memory_end(self) -> int:
        """Return the physical address behind the last RAM; 0: not known."""
        return self.memory()[1]

    def memory(self) -> tuple[int, int]:
        """Return the physical addresses of the first RAM and behind the last; 0, 0: not known.

        mm/vmstat.c, zoneinfo_show_print(): a zone spans pages from start_pfn on. An empty zone has
        no start_pfn, so each zone is read by itself.
        """
        try:
            text = (self.proc_root / "zoneinfo").read_text(encoding="utf-8")
        except OSError:
            return 0, 0
        zones = [
            (int(first[1]), int(first[1]) + int(pages[1]))
            for zone in re.split(r"^Node ", text, flags=re.M)
            if (pages := re.search(r"^\s+spanned\s+(\d+)$", zone, re.M))
            and (first := re.search(r"^\s+start_pfn:\s+(\d+)$", zone, re.M))
        ]
        starts, ends = ([zone[n] << self.page_shift for zone in zones] for n in range(2))
        return min(starts, default=0), max(ends, default=0)

    def address_of(self, symbol: str) -> int:
        """Return a symbol's address; 0 where kallsyms hides it or does not have it."""
        return next((address for address, _, name, _ in self._kallsyms() if name == symbol), 0)

    def functions(self) -> Iterator[tuple[int, str, str]]:
        """Yield (address, name, `[module]`) of all code.

        It is read anew each time: modules and BPF programs come and go.
        """
        return (
            (address, name, module)
            for address, kind, name, module in self._kallsyms()
            if kind in "tTwW" and address
        )

    @cached_property
    def _kallsyms_file(self) -> TextIO:
        """/proc/kallsyms, opened once and kept.

        The kernel decides at open whether the file shows addresses, and at read what it lists. So a
        daemon needs no CAP_SYSLOG later on. The unit has systemd open it, as our standard input.
        """
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
        """Return whether kallsyms shows addresses to this process."""
        return any(address for address, _, _, _ in islice(self._kallsyms(), 64))

    @cached_property
    def traceable(self) -> frozenset[str] | None:
        """The functions that ftrace can hook (available_filter_functions).

        None where tracefs does not show them.
        """
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
        """Why no kprobe can be set, or none can be trusted; empty where they can.

        trace_call_bpf() counts the runs that it leaves out since Linux 6.7 (dd8657894c11 "bpf:
        Count missed stats in trace_call_bpf"). That change is not visible in BTF. Its series also
        gave struct bpf_link_info its kprobe_multi.missed (e2b2cd592adb), by which it is recognised:
        perf_event.kprobe.missed (3acf8ace6823) is in 6.6-stable too (6.6.59), without the count.
        Where nothing counts them and tasks are preempted in bpf(2) calls on maps, whole windows are
        missing without a trace.
        """
        if not (self.sys_root / "bus/event_source/devices/kprobe").exists():
            return "this kernel is built without CONFIG_KPROBES"
        if self.preempts and not self.types.resolve("bpf_link_info.kprobe_multi.missed"):
            why = "before 6.7 a kernel that preempts does not count what it leaves out of kprobes"
            return why if self.realtime else f"{why}: boot with preempt=voluntary"
        return ""

    @cached_property
    def realtime(self) -> bool:
        """Whether this is a PREEMPT_RT kernel, by its version (scripts/mkcompile_h)."""
        return "PREEMPT_RT" in self.version.split()

    @cached_property
    def detaches_slowly(self) -> bool:
        """Whether the kernel waits for some half a second at each kprobe that is removed.

        It waits for RCU Tasks Trace. Where that is built with CONFIG_TASKS_TRACE_RCU_READ_MB, as
        for PREEMPT_RT, it polls every tenth of a second and delays its interrupts (kernel/rcu/
        tasks.h, up to 6.19: cb1d28b19ee6 "rcu: Remove now-unused rcu_task_ipi_delay and
        TASKS_TRACE_RCU_READ_MB").
        """
        delay = self.sys_root / "module/rcupdate/parameters/rcu_task_ipi_delay"
        try:
            return int(delay.read_text(encoding="utf-8")) > 0
        except (OSError, ValueError):
            return False

    @cached_property
    def fprobe_refused(self) -> str:
        """Why programs are not attached by fprobe (kprobe_multi links); empty where they are.

        From Linux 6.19 on a program at entry alone gets there by ftrace (2c67dc457bc6 "tracing:
        fprobe: optimization for entry only case", also in 6.18-stable), for less than a kprobe;
        before, by the graph tracer. bpf_prog_active is counted where it leaves out a run, as for
        kprobes; the commits that count it are of 6.7.
        """
        if self.kprobe_refused:
            return self.kprobe_refused
        if self.types.function("fprobe_ftrace_entry") is None:
            return "this kernel has no fprobe that reaches entries by ftrace"
        return ""

    @cached_property
    def preempts(self) -> bool:
        """Whether a task in the kernel, and so in a BPF program, can lose its CPU to another task.

        The kernel leaves out runs of a program that already runs on that CPU, so where tasks are
        preempted fentry programs miss many. A kprobe's handler runs with preemption off: its
        program is left out only while another one, or a bpf(2) call on a map, is under way on that
        CPU (bpf_prog_active), which is rare.
        """
        return self.preemption in ("rt", "full", "lazy")

    @cached_property
    def preemption(self) -> str:
        """How tasks in the kernel are preempted: rt, full, lazy, voluntary or none.

        Empty where the kernel does not tell. Its version names PREEMPT where it was built so, and
        PREEMPT_DYNAMIC where that is decided at boot (init/Makefile): then debugfs shows the mode.
        Without debugfs the command line may name it, and else the configuration has the default.
        """
        built = self.version.split()
        if "PREEMPT_RT" in built or "PREEMPT" in built:
            return "rt" if "PREEMPT_RT" in built else "full"
        if built and "PREEMPT_DYNAMIC" not in built:
            return "none"
        shown = _text(self.sys_root / "kernel/debug/sched/preempt")
        if mode := re.search(r"\((\w+)\)", shown):
            return mode[1]
        if mode := re.search(
            r"\bpreempt=(none|voluntary|full|lazy)\b", _text(self.proc_root / "cmdline")
        ):
            return mode[1]
        configuration = _text(self.proc_root.parent / f"boot/config-{self.release}")
        mode = re.search(r"^CONFIG_PREEMPT(_NONE|_VOLUNTARY|_LAZY|)=y$", configuration, re.M)
        return (mode[1].lstrip("_").lower() or "full") if mode else ""

    @cached_property
    def fentry_refused(self) -> str:
        """Why no fentry program can be loaded; empty where it can."""
        return self.fentry_probe(self.types)

    @cached_property
    def plain_loads_refused(self) -> str:
        """Why programs must read kernel memory by a helper; empty where they can load it."""
        return self.plain_load_probe(self.types)

    def clones(self, name: str) -> list[str]:
        """Return the symbols of a function: itself, then the copies that the compiler made of it.

        They end in `.isra.0`, `.constprop.0`, `.part.0` and the like.
        """
        return ([name] if name in self.symbols else []) + sorted(self._copies.get(name, ()))

    @cached_property
    def _copies(self) -> dict[str, list[str]]:
        """Function -> the compiler's copies of it."""
        found: dict[str, list[str]] = {}
        for symbol in self.symbols:
            if "." in symbol and (copy := _CLONE.fullmatch(symbol)):
                found.setdefault(copy[1], []).append(symbol)
        return found

    def page_format(self, address_bits: int = 0) -> PageFormat:
        """Return the format of page tables, as far as it is known without reading one.

        address_bits: of a process's addresses; 0: not known.
        """
        return self.machine.page_format(self.page_memory(address_bits))

    def page_memory(self, address_bits: int = 0) -> Memory:
        """Return what decides the format; address_bits as in page_format()."""
        return Memory(self.page_shift, address_bits, self.five_level_paging, self.memory())

    @property
    def five_level_paging(self) -> bool:
        """Whether x86-64 page tables have five levels.

        The kernel clears `la57` from the CPU's flags where it does not use it.
        """
        try:
            text = (self.proc_root / "cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return False
        flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
        return "la57" in flags.split()
