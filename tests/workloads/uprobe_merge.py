"""A workload: mremap() moves a page with a breakpoint to where a merge has just installed another.

usage: uprobe_merge.py [ROUNDS]     (root, uprobes; prints how many were done)

CVE-2025-38207 (before 6.15.4): vma_complete() calls uprobe_mmap() for the merged VMA, before
move_page_tables() overwrites what that installed. The page is lost, and at the exit the kernel
prints `Bad rss-counter state`. Each round is a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.workloads.faults import MREMAP_FIXED, MREMAP_MAYMOVE, libc, must

PAGE = 4096
NOP = b"\x90"
TRACEFS = Path("/sys/kernel/tracing")
_CODE = mmap.PROT_READ | mmap.PROT_EXEC


def put(file: Path, text: str) -> None:
    """Write to a file of tracefs. Truncating it, as write_text() does, would remove all events."""
    descriptor = os.open(file, os.O_WRONLY)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def move(at: int, to: int) -> None:
    moved = libc.mremap(
        ctypes.c_void_p(at),
        ctypes.c_size_t(PAGE),
        ctypes.c_size_t(PAGE),
        MREMAP_MAYMOVE | MREMAP_FIXED,
        ctypes.c_void_p(to),
    )
    must(moved == to, "mremap")


def move_there_and_back(code: int) -> None:
    """Map the code twice, and move the second page of the first mapping away and back."""
    places = [libc.mmap(None, 2 * PAGE, _CODE, mmap.MAP_PRIVATE, code, 0) for _ in range(2)]
    must(all(place and place != ctypes.c_void_p(-1).value for place in places), "mmap")
    own, away = places[0] + PAGE, places[1] + PAGE
    must(libc.munmap(ctypes.c_void_p(places[1]), ctypes.c_size_t(2 * PAGE)) == 0, "munmap")
    move(own, away)
    must(ctypes.string_at(away, 1) != NOP, "the breakpoint is not there")
    move(away, own)


def main(rounds: int) -> None:
    if not TRACEFS.joinpath("uprobe_events").exists():
        subprocess.run(["mount", "-t", "tracefs", "none", str(TRACEFS)], check=True)
    events, switch = TRACEFS / "uprobe_events", TRACEFS / "events/uprobes/rmapd_merge/enable"
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(NOP * (2 * PAGE))
        file.flush()
        put(events, f"p:rmapd_merge {file.name}:{PAGE:#x}\n")
        put(switch, "1")
        for _ in range(rounds):
            child = os.fork()
            if child == 0:
                move_there_and_back(os.open(file.name, os.O_RDONLY))
                os._exit(0)
            must(os.waitpid(child, 0)[1] == 0, "a round failed")
        put(switch, "0")
        put(events, "-:rmapd_merge\n")
    print(f"moved {rounds}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
