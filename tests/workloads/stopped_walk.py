"""A workload: the second rmap walk of a THP meets a huge page of another folio, and may end there.

usage: stopped_walk.py [TRIES] [SECONDS]     (root, two memory nodes; in a guest only)

"mm/page_vma_mapped: continue past nonmatching huge PMDs" (7.3.4): page_vma_mapped_walk() ended at
such a PMD, and migration left 256 entries behind in the next page table.

One process maps a THP by a PMD. Another maps it by PTEs of two page tables, as mremap() has moved
it by half its size; the first half is unmapped, and its page table with it. While the THP moves to
another node, that empty PMD becomes a huge page and is emptied again, all the time. In some moves
it is empty at the first walk and huge at the second.

Prints when entries were left behind, in seconds since the epoch, and how many, and returns SECONDS
later. The process that has them lives on: at its exit the kernel may crash. It looks for them in
numa_maps, which counts present pages; smaps and pagemap would follow the entries.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from threading import Event, Thread

from tests.workloads.faults import MREMAP_FIXED, MREMAP_MAYMOVE, libc, map_at, must
from tests.workloads.numa import BALANCING, HUGE, MPOL_MF_MOVE_ALL, PAGE, SYS_MOVE_PAGES

HOME, AWAY, OTHERS = 0x2000_0000_0000, 0x3000_0000_0000, 0x2100_0000_0000
FOLIO = HOME + HUGE
MOVED = AWAY + HUGE // 2
"""Where HOME is moved to: the THP is then in the page tables of HOLE and of the next PMD."""
HOLE, AREA = AWAY + HUGE, 4 * HUGE
MANY = 511
"""Pages that move in the same call: kernels that migrate in batches (from 6.3 on) unmap all of them
before they copy the first, which makes the time between the two walks longer."""
MADV_COLLAPSE = 25
HALF_PERIOD = 0.001
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def advise(at: int, size: int, how: int) -> None:
    libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(size), how)


def present() -> int:
    """Return how many pages of the moved area are present here."""
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        if line.startswith(f"{MOVED:x} "):
            return sum(int(word[5:]) for word in line.split() if word.startswith("anon="))
    return 0


def move(pid: int, addresses: list[int], node: int) -> int:
    """Move these pages of a process to a node; return the node of the last one."""
    count = len(addresses)
    pages, nodes = (ctypes.c_void_p * count)(*addresses), (ctypes.c_int * count)(*[node] * count)
    status = (ctypes.c_int * count)(*[-1] * count)
    libc.syscall(SYS_MOVE_PAGES, pid, count, pages, nodes, status, MPOL_MF_MOVE_ALL)
    return status[count - 1]


def node_of(pid: int, address: int) -> int:
    pages, status = (ctypes.c_void_p * 1)(address), (ctypes.c_int * 1)(-1)
    libc.syscall(SYS_MOVE_PAGES, pid, 1, pages, None, status, 0)
    return status[0]


def sharer() -> int:
    """Fork a process that maps the THP by a PMD, and other pages; return its pid."""
    ready, tell = os.pipe()
    if not (pid := os.fork()):
        map_at(OTHERS, MANY * PAGE)
        advise(OTHERS, MANY * PAGE, mmap.MADV_NOHUGEPAGE)
        for n in range(MANY):
            ctypes.memset(OTHERS + n * PAGE, 1, 1)
        os.write(tell, b"x")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    for fd in (ready, tell):
        os.close(fd)
    return pid


def toggle(stop: Event) -> None:
    """Fill the hole with a huge page and empty it again, until told to stop."""
    while not stop.is_set():
        ctypes.memset(HOLE, 1, 1)
        time.sleep(HALF_PERIOD)
        advise(HOLE, HUGE, mmap.MADV_DONTNEED)
        time.sleep(HALF_PERIOD)


def attempt() -> int:
    """Move a new THP once, while the hole is filled and emptied; return how many pages it lost."""
    map_at(HOME, AREA)
    ctypes.memset(FOLIO, 7, HUGE)
    other = sharer()
    size = ctypes.c_size_t(AREA)
    to, how = ctypes.c_void_p(MOVED), MREMAP_MAYMOVE | MREMAP_FIXED
    must(libc.mremap(ctypes.c_void_p(HOME), size, size, how, to) == MOVED, "mremap")
    advise(HOLE, HUGE, mmap.MADV_DONTNEED)
    ctypes.memset(HOLE, 1, HUGE)
    advise(HOLE, HUGE, MADV_COLLAPSE)  # a huge page needs no page table,
    advise(HOLE, HUGE, mmap.MADV_DONTNEED)  # and leaves an empty PMD
    before, stop = present(), Event()
    writer = Thread(target=toggle, args=(stop,))
    writer.start()
    move(other, [*(OTHERS + n * PAGE for n in range(MANY)), FOLIO], 1 - node_of(other, FOLIO))
    stop.set()
    writer.join()
    if (lost := before - present()) <= 0:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        must(libc.munmap(to, size) == 0, "munmap")
    return lost


def strike(tries: int) -> bool:
    """Try until entries are left behind; say when, or that they never were."""
    for n in range(tries):
        if (lost := attempt()) > 0:
            print(f"struck {time.time():.3f} {lost} entries, try {n + 1}", flush=True)
            return True
    print(f"struck never, {tries} tries", flush=True)
    return False


def main(tries: int, seconds: float) -> None:
    done, tell = os.pipe()
    if os.fork():
        os.close(tell)
        answer = os.read(done, 1)
        must(bool(answer), "the process that moves died")
        time.sleep(seconds if answer == b"y" else 0)
        return
    os.setsid()
    (HUGE_PAGES / "enabled").write_text("always")
    (HUGE_PAGES / "khugepaged/scan_sleep_millisecs").write_text("1000000")
    BALANCING.write_text("0")
    if not strike(tries):
        os.write(tell, b"n")
        return
    os.write(tell, b"y")
    for fd in (0, 1, 2):  # whoever reads our output need not wait for this process
        os.close(fd)
    signal.pause()


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 72,
        float(sys.argv[2]) if len(sys.argv) > 2 else 20,
    )
