"""A workload: mremap() moves touched memory back, where it merges with untouched neighbours.

usage: beside.py [ROUNDS [SIDE...]]     (prints how many were moved on each side)

A SIDE is where the neighbour lies: before, behind, both, or child (both, in a child that inherits
the memory). It is mapped while the memory is elsewhere. CVE-2026-23077: the merged VMA had no
anon_vma.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tests.workloads.faults import (
    AREA,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    area,
    libc,
    map_at,
    must,
    touch,
)

SIDES = ("before", "behind", "both", "child")


def move(at: int, to: int) -> None:
    size = ctypes.c_size_t(AREA)
    must(
        libc.mremap(
            ctypes.c_void_p(at), size, size, MREMAP_MAYMOVE | MREMAP_FIXED, ctypes.c_void_p(to)
        )
        == to,
        "mremap",
    )


def unmap(at: int, size: int) -> None:
    must(libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size)) == 0, "munmap")


def move_there_and_back(side: str) -> None:
    """Move touched memory away, map its neighbours on this side, and move it back."""
    home, away = area(size=3 * AREA), area()
    own = home + AREA
    unmap(home, AREA)
    unmap(own + AREA, AREA)
    touch(own)
    move(own, away)
    child = os.fork() if side == "child" else 0
    if child:
        must(os.waitpid(child, 0)[1] == 0, "the child failed")
    else:
        if side != "behind":
            map_at(home)
        if side != "before":
            map_at(own + AREA)
        move(away, own)
        if side == "child":
            os._exit(0)
    unmap(home, 3 * AREA)
    unmap(away, AREA)


def main(rounds: int, sides: list[str]) -> None:
    for side in sides:
        for _ in range(rounds):
            move_there_and_back(side)
        print(f"moved {rounds} {side}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:] or [*SIDES])
