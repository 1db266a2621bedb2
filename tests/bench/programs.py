"""Measure the time of one run of each window program, whether it can be hooked here or not.

Also of the programs of K1: at a line that is no complaint, and at one beyond their allowance.

The programs are loaded as raw tracepoint programs and run on demand, with the context of a fentry
program and a VMA of this process.

usage: python -m tests.bench.programs [RUNS] [WINDOWS]     (root)

Prints nanoseconds per run above an empty program, by BPF statistics. WINDOWS: the number of
sampled windows of a function a second; 0, the default, records all.

The locks are not held, and the steps record that; the work is the same. V6 compares only under the
mmap_lock: the programs that are measured take that for held. The cost of reaching a
program (trampoline or breakpoint) is not included.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tracer.attach import bcc_headers, loader, resolver
from tracer.bpf.programs import Program, enable_statistics, load_program
from tracer.config import Config
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.daemon.session import Session, open_session
from tracer.kernel.running import Kernel
from tracer.tables.c_structs import Layouts
from tracer.tables.params import Params

_STACK = 88  # offset of the twelfth argument, which replaces the stack pointer
_MARK = (1 << 64) - 1  # no address is above it
_LEAF_SLOTS = 8 + 15 * 8  # struct maple_range_64
_INNER_SLOTS = 8 + 9 * 8 + 8  # struct maple_arange_64
_RANGE = ("vm_start", "vm_end")
_NOT_HELD = "held_by_us(w->mmap) != OWNER_SELF"
EMPTY = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


class Reader:
    """Reads this kernel's memory with the oracle's `calibrate` program."""

    def __init__(self, session: Session) -> None:
        self._maps, self._program = (
            session.probes.loaded.maps,
            session.probes.loaded.programs["calibrate"][0],
        )
        self._layout = Layouts.read(probes_folder() / "include/shared.h").structs["calibration"]
        self._types = session.probes.kernel.types

    def at(self, address: int) -> int:
        self._program.run(0, 0, address, 0)
        return int(self._layout.unpack(self._maps["calibration"].lookup(bytes(4)) or b"").value)

    def offset(self, path: str) -> int:
        found = self._types.resolve(path)
        assert found, path
        return found.bit_offset // 8

    def own_mm(self) -> int:
        self._program.run(0, 0, 0, 0)
        return int(self._layout.unpack(self._maps["calibration"].lookup(bytes(4)) or b"").mm)

    def vmas(self) -> Iterator[int]:
        """Yield VMAs of this process: those in one leaf of its maple tree."""
        node = self.at(self.own_mm() + self.offset("mm_struct.mm_mt.ma_root"))
        while node >> 3 & 15 > 1:  # enum maple_type: leaf_64 is 1
            slots = _INNER_SLOTS if node >> 3 & 15 == 3 else _LEAF_SLOTS
            node = self.at((node & ~0xFF) + slots)
        for slot in range(16):
            vma = self.at((node & ~0xFF) + _LEAF_SLOTS + 8 * slot)
            if (
                vma
                and not vma & 3
                and self.at(vma + self.offset("vm_area_struct.vm_mm")) == self.own_mm()
            ):
                yield vma


def hookable_kernel() -> Kernel:
    """Return the running kernel as one that accepts fentry programs.

    Their instructions are the same when they are loaded as raw tracepoint programs.
    """
    kernel = running_kernel()
    kernel.__dict__["fentry_refused"], kernel.__dict__["kprobe_refused"] = "", "not here"
    return kernel


@contextlib.contextmanager
def _take_mmap_lock_for_held(folder: Path) -> Iterator[Path]:
    """Yield a copy of the headers in which V6 does not ask who holds the mmap_lock."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder / "include", copy, dirs_exist_ok=True)
        header = Path(copy) / "kept.h"
        text = header.read_text()
        assert text.count(_NOT_HELD) == 2
        header.write_text(text.replace(_NOT_HELD, "0"))
        yield Path(copy)


class Arguments:
    """A struct in a page of this process, which the programs read through the direct map."""

    def __init__(self, read: Reader, page_offset: int) -> None:
        self._read, self._page = read, mmap.mmap(-1, 4096)
        self._page[0] = 1
        own = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        with open("/proc/self/pagemap", "rb") as pages:
            pages.seek(own >> 12 << 3)
            (entry,) = struct.unpack("<Q", pages.read(8))
        self._at = page_offset + ((entry & (1 << 55) - 1) << 12)
        self._used = 0

    def fill(self, kind: str, **members: int) -> int:
        """Return the address of a struct of this kind, with these members."""
        base, self._used = self._used, self._used + 256
        for name, value in members.items():
            struct.pack_into("<Q", self._page, base + self._read.offset(f"{kind}.{name}"), value)
        return int(self._at + base)


class Runs:
    """The programs of the probe objects of windows, by `how:function`."""

    def __init__(self, layouts: Layouts, a_second: int) -> None:
        kernel, folder = hookable_kernel(), probes_folder()
        planned = resolver.make_plan(
            kernel, [folder], frozenset({"vma", "locks", "rmap", "complaints"})
        )
        self._build = loader.BuildEnvironment(
            kernel,
            layouts.constants,
            folder / "include",
            Config().maps.sizes(),
        )
        usable = [probe_object for probe_object in planned.probe_objects if probe_object.usable]
        with tempfile.TemporaryDirectory() as headers, _take_mmap_lock_for_held(folder) as include:
            bcc_headers.write(Path(headers), kernel)
            build = replace(self._build, include=include)
            compiled = loader.compile_probe_objects(planned.header, usable, build, headers)
        self.maps = compiled.maps
        self._programs = loader.ProgramLoader(compiled.code, planned.names, self._build)
        self._points = {
            f"{p.how}:{p.symbol}": p
            for s in usable
            for h in s.hooks
            for w in h.methods
            for p in w.points
        }
        self.made: dict[str, Program] = {}
        self.arguments: Arguments | None = None  # its page must not go while programs read it
        Params(self.maps, layouts).set(gate=1, window_ns=10**9 // a_second if a_second else 0)

    def has(self, name: str) -> bool:
        return name in self._points

    def run(self, name: str, *args: int, inner: int = 0, apart: str = "") -> None:
        """Run the program of a function's entry or return in the context of a trampoline.

        args: the arguments of the function, then its return value. inner: depth below the outermost
        window. apart: a suffix under which the run is counted separately.
        """
        known = name + apart
        if known not in self.made:
            point = self._points[name]
            places = point.places | ({} if point.how == "raw_tp" else {"stack": _STACK})
            self.made[known] = self._programs.load(
                replace(point, how="run", symbol="", places=places)
            )
        self.made[known].run(*args, *[0] * (11 - len(args)), _MARK - inner)


def _sequence(runs: Runs, read: Reader, page_offset: int) -> Callable[[], None]:
    """Return a function that runs the programs of a typical sequence.

    It has a window of an anonymous VMA with locks and tree steps, an inner window, a call without
    work, and a visit of an rmap walk.
    """
    touched = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touched[0] = 1
    anon_of = read.offset("vm_area_struct.anon_vma")
    vma = next(vma for vma in read.vmas() if read.at(vma + anon_of))
    idle = next(vma for vma in read.vmas() if not read.at(vma + anon_of))
    anon_vma = read.at(vma + anon_of)
    rwsem = read.at(anon_vma) + read.offset("anon_vma.rwsem")
    chain = read.at(vma + read.offset("vm_area_struct.anon_vma_chain.next")) - read.offset(
        "anon_vma_chain.same_vma"
    )
    root = anon_vma + read.offset("anon_vma.rb_root")
    complaint = read.at(read.own_mm() + read.offset("mm_struct.owner")) + read.offset(
        "task_struct.comm"
    )
    plain = complaint + 4
    Path("/proc/self/comm").write_text("BUG: bench")

    mm = read.own_mm()
    start, end = (read.at(vma + read.offset(f"vm_area_struct.{name}")) for name in _RANGE)
    asked = {"mm": mm, "start": start, "end": end, "middle": vma}
    asked["vm_flags"] = read.at(vma + read.offset("vm_area_struct.vm_flags"))
    runs.arguments = arguments = Arguments(read, page_offset)
    change = arguments.fill("vma_merge_struct", **asked)
    fresh = arguments.fill("vma_merge_struct", **asked | {"start": end, "end": end + 4096})
    moved = {"addr": start, "old_len": end - start, "new_addr": 1 << 46, "new_len": end - start}
    move = arguments.fill("vma_remap_struct", vma=vma, **moved)

    def go() -> None:
        runs.run("fentry:down_read", rwsem)  # outside
        runs.run("fentry:expand_downwards", vma, 0)
        runs.run("fentry:down_write", rwsem)
        runs.run("fentry:anon_vma_interval_tree_remove", chain, root)
        runs.run("fentry:anon_vma_interval_tree_insert", chain, root)
        runs.run("fentry:up_write", rwsem)
        runs.run("fentry:unlink_anon_vmas", vma, inner=1)
        runs.run("fexit:unlink_anon_vmas", vma, 0, inner=1)
        runs.run("fexit:expand_downwards", vma, 0, 0)
        runs.run("fentry:unlink_anon_vmas", idle, apart=" idle")
        runs.run("fexit:unlink_anon_vmas", idle, 0, apart=" idle")
        for function, *args, returned in (
            ("__split_vma", 0, vma, start + 4096, 0, 0),
            ("vma_modify", change, vma),
            ("vma_merge_new_range", fresh, 0),
            ("move_vma", move, 1 << 46),
        ):
            runs.run(f"fentry:{function}", *args)
            runs.run(f"fexit:{function}", *args, returned)
        runs.run("fentry:try_to_migrate_one", 0, vma, 0, 0)
        runs.run("raw_tp:console", plain, 8)
        runs.run("raw_tp:console", complaint, 8, apart=" complaint")
        runs.run("fentry:__mmdrop", read.own_mm())

    return go


def _page_offset(session: Session, layouts: Layouts) -> int:
    raw = session.probes.loaded.maps["params"].lookup(bytes(4)) or b""
    return int(layouts.structs["params"].unpack(raw).page_offset)


def main(count: int = 20_000, a_second: int = 0) -> None:
    layouts = Layouts.read(probes_folder() / "include/shared.h")
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(
            open_session(
                Config(fidelity="migration", statistics=False, scan_seconds=0), running_kernel()
            )
        )
        go = _sequence(
            runs := Runs(layouts, a_second), Reader(session), _page_offset(session, layouts)
        )
        go()
        empty = load_program("empty", "run", EMPTY)
        stack.callback(os.close, enable_statistics())
        before = {name: program.statistics() for name, program in runs.made.items()}
        for _ in range(count):
            empty.run(0)
            go()
        floor = empty.statistics()
        floor_ns = 1e9 * floor.seconds / floor.runs
        found = {}
        for name, program in runs.made.items():
            after = program.statistics()
            found[name] = round(
                1e9 * (after.seconds - before[name].seconds) / (after.runs - before[name].runs)
                - floor_ns
            )
        print(json.dumps({"empty_ns": round(floor_ns), "above_it_ns": found}, indent=1))
        session.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
