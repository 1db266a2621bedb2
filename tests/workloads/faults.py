"""A workload for a guest with rmapd_faults loaded: trigger each fault once in one run of rmapd.

usage: faults.py FAULT...     (root; prints one JSON line per fault: name, how often it struck,
                               when first, pid)

Faults that leave a migration entry behind are not among them, because they crash the kernel
(victim.py).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import time
from collections.abc import Callable

from tests.workloads.victim import PARAMETERS, compact, spawn, struck

PAGE, AREA = mmap.PAGESIZE, 16 * mmap.PAGESIZE
SYS_BRK = {"x86_64": 12, "aarch64": 214}[os.uname().machine]
READ, WRITE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED, MREMAP_MAYMOVE, MREMAP_FIXED = 0x10, 1, 2
SPACE = 4.0
"""Seconds between two faults. rmapd reads its tables once a second; what it finds until the next
fault belongs to the first one."""
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.syscall.restype = ctypes.c_void_p


def arm(what: str) -> None:
    (PARAMETERS / "arm").write_text(what)


def must(holds: bool, what: str) -> None:
    if not holds:
        raise OSError(ctypes.get_errno(), what)


def area(fd: int = -1, size: int = AREA) -> int:
    """Map a file or anonymous memory privately between two gaps; return the address."""
    flags = mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    gap = libc.mmap(
        None, ctypes.c_size_t(size + 2 * PAGE), 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    at: int = libc.mmap(
        ctypes.c_void_p(gap + PAGE), ctypes.c_size_t(size), WRITE, flags | MAP_FIXED, fd, 0
    )
    must(at == gap + PAGE, "mmap")
    return at


def map_at(at: int, size: int = AREA) -> None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
    got = libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(size), WRITE, flags, -1, 0)
    must(got == at, "mmap")


def protect(at: int, protection: int, size: int = AREA // 2) -> None:
    must(libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(size), protection) == 0, "mprotect")


def touch(at: int, size: int = AREA) -> None:
    ctypes.memset(at, 1, size)


def file(size: int = AREA) -> int:
    fd = os.memfd_create("faults")
    os.ftruncate(fd, size)
    return fd


def merge(fault: str, fd: int = -1) -> None:
    """Split a touched mapping and merge the halves again, in __vma_adjust()."""
    at = area(fd)
    touch(at)
    protect(at + AREA // 2, READ)
    arm(fault)
    protect(at + AREA // 2, WRITE)


def merge_and_release(fault: str) -> None:
    merge(fault)
    arm("release")


def merge_file(fault: str) -> None:
    merge(fault, file())


def import_anon_vma(fault: str) -> None:
    """Merge two untouched mappings and a touched one; the result imports its anon_vma."""
    at = area(size=3 * AREA)
    protect(at + AREA, READ, AREA)
    touch(at + 2 * AREA)
    arm(fault)
    protect(at + AREA, WRITE, AREA)


def move(fault: str) -> None:
    """Move a touched mapping of a file between multiples of 2 MiB, by mremap().

    move_page_tables() takes the rmap locks.
    """
    size = 2 << 20
    at, to = (-(-area(fd, 2 * size) // size) * size for fd in (file(2 * size), -1))
    for offset in range(0, size, PAGE):
        touch(at + offset, 1)
    arm(fault)
    length = ctypes.c_size_t(size)
    must(
        libc.mremap(
            ctypes.c_void_p(at), length, length, MREMAP_MAYMOVE | MREMAP_FIXED, ctypes.c_void_p(to)
        )
        == to,
        "mremap",
    )


def grow_heap() -> bool:
    end: int = libc.syscall(SYS_BRK, None)
    grown: int = libc.syscall(SYS_BRK, ctypes.c_void_p(end + PAGE))
    return grown == end + PAGE


def fail_brk(fault: str) -> None:
    arm(fault)
    must(not grow_heap(), "brk was to fail")
    arm("release")


def nest_in_opposite_order(fault: str) -> None:
    merge_file(f"{fault} 2")
    must(grow_heap(), "brk")


def migrate(fault: str) -> None:
    """Compact memory, so that pages of a process named victim move."""
    with spawn() as victim:
        arm(f"{fault} 5")
        compact()
        victim.kill()


OPERATIONS: dict[str, Callable[[str], None]] = {
    "walk_unlocked": migrate,
    "entry_unlocked": migrate,
    "restored_unlocked": migrate,
    "source_mapped": migrate,
    "adjust_swapped": merge_file,
    "move_swapped": move,
    "cycle": nest_in_opposite_order,
    "commit_unlocked": merge,
    "import_unlocked": import_anon_vma,
    "tree_unlocked": merge_file,
    "error_locked": fail_brk,
    "not_paired": merge,
    "import_lost": import_anon_vma,
    "pgoff_lost": merge_and_release,
}


def main(faults: list[str]) -> None:
    if unknown := {*faults} - {*OPERATIONS}:
        sys.exit(f"no fault {', '.join(sorted(unknown))} here; there is {', '.join(OPERATIONS)}")
    for fault in faults or OPERATIONS:
        OPERATIONS[fault](fault)
        arm(f"{fault} 0")
        times, first = struck(fault)
        print(
            "fault "
            + json.dumps({"name": fault, "struck": times, "first": first, "pid": os.getpid()}),
            flush=True,
        )
        time.sleep(SPACE)


if __name__ == "__main__":
    main(sys.argv[1:])
