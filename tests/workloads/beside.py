"""A workload: mremap() moves touched memory back, where it merges with an untouched neighbour.

usage: beside.py [ROUNDS]     (prints how many were moved)

The neighbour is mapped while the memory is elsewhere. CVE-2026-23077: the merged VMA had no
anon_vma.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from tests.workloads.faults import (
    AREA,
    MAP_FIXED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    WRITE,
    area,
    libc,
    must,
    touch,
)


def move(at: int, to: int) -> None:
    size = ctypes.c_size_t(AREA)
    must(
        libc.mremap(
            ctypes.c_void_p(at), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, ctypes.c_void_p(to)
        )
        == to,
        "mremap",
    )


def move_there_and_back() -> None:
    """Move the second half of an area away and back.

    Meanwhile the neighbour is mapped where the first half was.
    """
    home, away = area(size=2 * AREA), area()
    must(libc.munmap(ctypes.c_void_p(home), ctypes.c_size_t(AREA)) == 0, "munmap")
    own = home + AREA
    touch(own)
    move(own, away)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    must(
        libc.mmap(ctypes.c_void_p(home), ctypes.c_size_t(AREA), WRITE, flags, -1, 0) == home,
        "mmap",
    )
    move(away, own)
    for start in (home, away):
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(2 * AREA if start == home else AREA))


def main(rounds: int) -> None:
    for _ in range(rounds):
        move_there_and_back()
    print(f"moved {rounds}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
