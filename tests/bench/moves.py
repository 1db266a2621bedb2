"""Measure what V7 takes at the entry of move_page_tables(), by how its destination looks.

usage: python -m tests.bench.moves [RUNS]     (root)

The program is loaded as a raw tracepoint program and run on demand over page tables of this
process. It looks although nobody holds the mmap_lock: that condition is turned round. Prints a
table for docs/measurements/COST-DETAILS.md, above an empty program.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import struct
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.bench import programs
from tracer.attach import bcc_headers, loader, resolver
from tracer.bpf.programs import Program, enable_statistics, load_program
from tracer.bpf.syscall import object_info
from tracer.config import Config
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.daemon.session import Session, open_session
from tracer.tables.c_structs import Layouts
from tracer.tables.params import Params

PAGE, GIB = mmap.PAGESIZE, 1 << 30
PLACES = {"vma": 0, "from": 8, "to": 16, "length": 24}
LOCKED = "== OWNER_SELF"


def load(session: Session) -> Program:
    """Compile moves.bpf.c for the functions of this kernel and load its program."""
    kernel = programs.hookable_kernel()
    layouts = Layouts.read(probes_folder() / "include/shared.h")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "probes"
        shutil.copytree(probes_folder(), folder)
        source = (folder / "moves.bpf.c").read_text()
        assert source.count(LOCKED) == 1
        (folder / "moves.bpf.c").write_text(source.replace(LOCKED, "!= OWNER_SELF"))
        planned = resolver.make_plan(kernel, [folder], frozenset({"moves"}))
        build = loader.BuildEnvironment(
            kernel,
            layouts.constants,
            folder / "include",
            Config().maps.sizes(),
        )
        bcc_headers.write(Path(scratch), kernel)
        compiled = loader.compile_probe_objects(
            planned.header, list(planned.probe_objects), build, scratch
        )
    ours, theirs = session.probes.tables.params, Params(compiled.maps, layouts)
    bases = ours.get()
    theirs.set(gate=1, page_offset=bases.page_offset, vmemmap=bases.vmemmap)
    theirs.set_page_format(ours.page_format())
    point = planned.probe_objects[0].hooks[0].methods[0].points[0]
    run = replace(point, how="run", symbol="", places=PLACES, offsets={})
    return loader.ProgramLoader(compiled.code, planned.names, build).load(run)


def destinations() -> dict[str, tuple[int, int]]:
    """Map them, and return name -> (address, length)."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    start = libc.mmap(None, 5 * GIB, 0, 0x4022, -1, 0)
    at = (start + GIB - 1) // GIB * GIB
    touched = libc.mmap(at, PAGE, 3, 0x32, -1, 0)
    ctypes.memset(touched, 1, 1)
    return {
        "not judged (the ranges overlap)": (PAGE, PAGE),
        "one page; no page table is there": (at + 2 * GIB, PAGE),
        "one page; an empty last-level table is there": (at + 2 * PAGE, PAGE),
        "1 MB in one last-level table": (at + 2 * PAGE, 1 << 20),
        "1 GB, no page table is there": (at + GIB, GIB),
        "1 GB that begins in a last-level table": (at + 2 * PAGE, GIB),
        "a page is mapped there": (at, PAGE),
    }


def main(count: int = 20_000) -> None:
    config = Config(fidelity="migration", statistics=False, scan_seconds=0)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(open_session(config, running_kernel()))
        program, empty = load(session), load_program("empty", "run", programs.EMPTY)
        vma = next(programs.Reader(session).vmas())
        stack.callback(os.close, enable_statistics())
        print(f"load {os.getloadavg()[0]:.1f}\n\n| destination | ns a run |\n|---|---|")
        for name, (to, length) in destinations().items():
            before, floor = program.statistics(), empty.statistics()
            for _ in range(count):
                program.run(vma, PAGE, to, length)
                empty.run(0)
            after, floor_after = program.statistics(), empty.statistics()
            ns = 1e9 * (after.seconds - before.seconds - floor_after.seconds + floor.seconds)
            print(f"| {name} | {ns / count:.0f} |")
        verified = struct.unpack_from("<I", object_info(program.fd, 232), 216)[0]
        print(f"\nThe verifier went through {verified:,} instructions.")
        session.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
