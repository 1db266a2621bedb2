"""A workload: move huge pages between two NUMA nodes, by PMD and hugetlb migration entries.

usage: numa.py [ROUNDS]     (root, two memory nodes; prints how many pages moved)
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import sys
from collections import Counter
from pathlib import Path

HUGE, PAGE = 2 << 20, mmap.PAGESIZE
MPOL_MF_MOVE_ALL = 4
SYS_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}[os.uname().machine]
BALANCING = Path("/proc/sys/kernel/numa_balancing")
"""Balancing makes pages PROT_NONE to see which node uses them.

move_pages(2) refuses such pages with EFAULT (mm/gup.c, no_page_table()).
"""
libc = ctypes.CDLL(None, use_errno=True)


def move(addresses: list[int], node: int) -> Counter[int]:
    """Move our own pages, shared ones too, to a node by move_pages(2).

    Return how many pages have which status: the node, or a negative errno.
    """
    count = len(addresses)
    pages, nodes = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int * count)(*[node] * count)
    status = (ctypes.c_int * count)(*[-1] * count)
    if libc.syscall(SYS_MOVE_PAGES, 0, count, pages, nodes, status, MPOL_MF_MOVE_ALL) < 0:
        raise OSError(ctypes.get_errno(), "move_pages")
    return Counter(status)


def address(block: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(block))


def transparent(size: int) -> tuple[mmap.mmap, list[int]]:
    """Map anonymous huge pages; return the mapping and their addresses."""
    block = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    first = (address(block) + HUGE - 1) // HUGE * HUGE
    for offset in range(0, size, PAGE):
        ctypes.memset(first + offset, 1, 1)
    return block, list(range(first, first + size, HUGE))


def hugetlb(size: int) -> tuple[mmap.mmap | None, list[int]]:
    """Map hugetlbfs pages; return the mapping and their addresses, (None, []) if there are none."""
    Path("/proc/sys/vm/nr_hugepages").write_text(str(4 * size // HUGE))
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    os.ftruncate(fd, size)
    try:
        block = mmap.mmap(fd, size)
    except OSError:
        return None, []
    for offset in range(0, size, HUGE):
        block[offset] = 1
    return block, [address(block) + offset for offset in range(0, size, HUGE)]


def main(rounds: int) -> None:
    BALANCING.write_text("0")
    kept, addresses = transparent(8 * HUGE)
    more, large = hugetlb(4 * HUGE)
    sharing = os.fork()
    if not sharing:
        signal.pause()
    moved, answers = [0, 0], Counter[int]()
    try:
        for number in range(rounds):
            node = 1 - number % 2
            for kind, pages in enumerate((addresses, large)):
                statuses = move(pages, node) if pages else Counter[int]()
                moved[kind] += statuses[node]
                answers += statuses
    finally:
        os.kill(sharing, signal.SIGKILL)
        os.waitpid(sharing, 0)
        Path("/proc/sys/vm/nr_hugepages").write_text("0")
    refused = {errno.errorcode[-one]: count for one, count in answers.items() if one < 0}
    print(
        f"moved {moved[0]} transparent and {moved[1]} hugetlb pages in {rounds} rounds; {refused}",
        flush=True,
    )
    del kept, more


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
