"""A workload: move huge pages of each size and kind between two NUMA nodes.

usage: numa.py [ROUNDS]     (root, two memory nodes; prints how many pages moved)

A page that a PMD maps has one migration entry in each process, and so has a hugetlb page of
contiguous entries (arm64). A transparent folio that is smaller than a PMD has one for each page.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tracer.machine.system_calls import number

HUGE, PAGE = 2 << 20, mmap.PAGESIZE
MPOL_MF_MOVE_ALL = 4
SYS_MOVE_PAGES = number("move_pages")
BALANCING = Path("/proc/sys/kernel/numa_balancing")
"""Balancing makes pages PROT_NONE to see which node uses them.

move_pages(2) refuses such pages with EFAULT (mm/gup.c, no_page_table()).
"""
HUGETLB, TRANSPARENT = (
    Path("/sys/kernel/mm", name) for name in ("hugepages", "transparent_hugepage")
)
_SMALL_FOLIO = 64 << 10
_MAXIMUM = 64 << 20
"""No pages above: hugetlb pages of 1 GiB do not fit into a guest."""
libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Block:
    """Pages of one kind and size, mapped; how many were moved, and refused by which errno."""

    name: str
    mapping: mmap.mmap
    addresses: list[int]
    moved: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def move(self, node: int) -> None:
        for status, count in move(self.addresses, node).items():
            if status == node:
                self.moved += count
            elif status < 0:
                self.refused[errno.errorcode[-status]] += count


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


def touched(size: int, count: int, alignment: int) -> tuple[mmap.mmap, list[int]]:
    """Map anonymous memory that asks for huge pages, and write to all of its pages."""
    block = mmap.mmap(-1, size * count + alignment, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    first = (address(block) + alignment - 1) // alignment * alignment
    for offset in range(0, size * count, PAGE):
        ctypes.memset(first + offset, 1, 1)
    return block, [first + number * size for number in range(count)]


def transparent() -> Iterator[Block]:
    """Yield huge pages that a PMD maps, and folios of 64 KiB where the kernel makes such."""
    pmd = int((TRANSPARENT / "hpage_pmd_size").read_text())
    yield Block(f"transparent, {pmd >> 10} kB", *touched(pmd, 8, pmd))
    larger, smaller = (
        TRANSPARENT / f"hugepages-{size >> 10}kB/enabled" for size in (pmd, _SMALL_FOLIO)
    )
    if smaller.exists() and smaller != larger:
        larger.write_text("never")
        smaller.write_text("always")
        yield Block(f"transparent, {_SMALL_FOLIO >> 10} kB", *touched(_SMALL_FOLIO, 128, pmd))
        larger.write_text("inherit")
        smaller.write_text("never")


def hugetlb() -> Iterator[Block]:
    """Yield hugetlb pages of each size of which the kernel has some for both nodes."""
    for pool in sorted(HUGETLB.iterdir()):
        size = int(re.findall(r"\d+", pool.name)[0]) << 10
        count = max(4, HUGE // size)
        if size > _MAXIMUM:
            continue
        (pool / "nr_hugepages").write_text(str(4 * count))
        fd = os.memfd_create("huge", os.MFD_HUGETLB | (size.bit_length() - 1) << 26)
        os.ftruncate(fd, size * count)
        with contextlib.suppress(OSError):  # of this size there is not enough memory in one piece
            block = mmap.mmap(fd, size * count)
            for offset in range(0, size * count, size):
                block[offset] = 1
            pages = [address(block) + offset for offset in range(0, size * count, size)]
            yield Block(f"hugetlb, {size >> 10} kB", block, pages)


def main(rounds: int) -> None:
    BALANCING.write_text("0")
    blocks = [*transparent(), *hugetlb()]
    sharing = os.fork()
    if not sharing:
        signal.pause()
    try:
        for number in range(rounds):
            for block in blocks:
                block.move(1 - number % 2)
    finally:
        os.kill(sharing, signal.SIGKILL)
        os.waitpid(sharing, 0)
        for pool in HUGETLB.iterdir():
            (pool / "nr_hugepages").write_text("0")
    for block in blocks:
        refused = dict(block.refused)
        print(f"{block.name}: moved {block.moved} pages in {rounds} rounds; {refused}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
