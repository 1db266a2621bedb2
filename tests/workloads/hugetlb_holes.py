"""A workload: punch holes into a hugetlbfs file whose pages are being migrated and touched.

usage: hugetlb_holes.py [SECONDS]     (root, two memory nodes; prints how often each was done)

CVE-2025-40006 (before 6.1.155, 6.12.50, 6.16.10): remove_inode_single_folio() looks at
folio_mapped() before it locks the folio. A migration that fails meanwhile turns its entries into
mappings again, and the folio leaves the page cache while it is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.workloads.faults import libc, must
from tests.workloads.numa import BALANCING, HUGE, SYS_MOVE_PAGES, address

PAGES = 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


def punch(fd: int) -> None:
    how = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    libc.fallocate(fd, how, ctypes.c_long(0), ctypes.c_long(PAGES * HUGE))


def move(pid: int, first: int, node: int) -> None:
    """Ask for a migration of the process's pages; some are not there, and some stay."""
    places = (ctypes.c_void_p * PAGES)(*[first + n * HUGE for n in range(PAGES)])
    nodes, status = (ctypes.c_int * PAGES)(*[node] * PAGES), (ctypes.c_int * PAGES)()
    libc.syscall(SYS_MOVE_PAGES, pid, ctypes.c_ulong(PAGES), places, nodes, status, 4)


def beside(what: Callable[[int], None], end: float, name: str) -> int:
    """Do it again and again in a process of its own; return the process."""
    child = os.fork()
    if child:
        return child
    count = 0
    while time.time() < end:
        what(count)
        count += 1
    print(f"{name} {count}", flush=True)
    os._exit(0)


def main(seconds: float) -> None:
    BALANCING.write_text("0")
    Path("/proc/sys/vm/nr_hugepages").write_text(str(3 * PAGES))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "hugetlbfs", "none", folder], check=True)
        fd = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGES * HUGE)
        block = mmap.mmap(fd, PAGES * HUGE)
        first, end, own = address(block), time.time() + seconds, os.getpid()
        others = [
            beside(lambda _count: punch(fd), end, "punched"),
            beside(lambda count: move(own, first, count % 2), end, "asked to move"),
        ]
        count = 0
        while time.time() < end:
            for n in range(PAGES):
                ctypes.memset(first + n * HUGE, 1, 1)
            count += 1
        for child in others:
            must(os.waitpid(child, 0)[1] == 0, "a process failed")
        print(f"touched {count}", flush=True)
        os.close(fd)
        subprocess.run(["umount", "-l", folder], check=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15)
