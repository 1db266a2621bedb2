"""A workload that moves a shared mapping of hugetlbfs which is larger than 1 GiB.

usage: hugetlb_move.py     (root; it may never end: in a guest only)

move_hugetlb_page_tables() takes i_mmap_rwsem for write, and huge_pmd_share(), which it calls where
the destination could share a page table, takes it for read: the task waits for itself (6.18.5 to
7.3.4). Prints when the move begins, in seconds since the epoch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
import time
from pathlib import Path

from tests.workloads.faults import MAP_FIXED, MREMAP_FIXED, MREMAP_MAYMOVE, WRITE, libc, must

GIB = 1 << 30
SIZE = GIB + GIB // 4 * 3
FROM, TO = 0x2010_0000_0000, 0x3010_2000_0000
"""Both at the same place in their PUDs, so that a PMD table may be shared."""
MAP_NORESERVE = 0x4000
PAGES = 24


def main() -> None:
    Path("/proc/sys/vm/nr_hugepages").write_text(str(PAGES))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "hugetlbfs", "none", folder], check=True)
        fd = os.open(f"{folder}/file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, SIZE)
        size, flags = ctypes.c_size_t(SIZE), mmap.MAP_SHARED | MAP_FIXED | MAP_NORESERVE
        must(libc.mmap(ctypes.c_void_p(FROM), size, WRITE, flags, fd, 0) == FROM, "mmap")
        ctypes.memset(FROM + GIB + GIB // 4, 7, 1)
        print(f"moves {time.time()}", flush=True)
        to, how = ctypes.c_void_p(TO), MREMAP_MAYMOVE | MREMAP_FIXED
        must(libc.mremap(ctypes.c_void_p(FROM), size, size, how, to) == TO, "mremap")
        print("moved", flush=True)
        libc.munmap(to, size)
        os.close(fd)
        subprocess.run(["umount", folder], check=True)


if __name__ == "__main__":
    main()
