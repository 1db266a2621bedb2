"""A workload: migrate N pages by compaction while another process forks, maps and exits.

usage: migrate.py [PAGES] [MIB]     (root; prints the number of migrated pages)
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import time
from pathlib import Path

PAGE = mmap.PAGESIZE


def migrated() -> int:
    """Return the number of pages that this kernel migrated since boot."""
    return int(
        next(
            line.split()[1]
            for line in Path("/proc/vmstat").read_text().splitlines()
            if line.startswith("pgmigrate_success")
        )
    )


def touched(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # EINVAL: the kernel has no THP
        block.madvise(mmap.MADV_NOHUGEPAGE)
    block[:] = b"\1" * size
    return block


def churn() -> None:
    """Fork children that share our pages, map some more, and exit.

    Their migration entries are zapped during migrations.
    """
    mine = touched(16 << 20)
    while True:
        if not (child := os.fork()):
            for offset in range(0, 4 << 20, PAGE):
                mine[offset] = 2
            touched(4 << 20)
            os._exit(0)
        os.waitpid(child, 0)


def main(pages: int, mib: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    churning = os.fork()
    if not churning:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        churn()
    # On SIGTERM the finally clause below kills the other process, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start, began, rounds = migrated(), time.monotonic(), 0
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        while migrated() - start < pages:
            rounds += 1
            blocks = [touched(1 << 20) for _ in range(mib)]
            for block in blocks[::2]:
                block.close()
            Path("/proc/sys/vm/compact_memory").write_text("1")
            if rounds > 1000:
                sys.exit(f"only {migrated() - start} pages migrated in {rounds} rounds")
    finally:
        os.kill(churning, signal.SIGKILL)
        os.waitpid(churning, 0)
    print(
        f"migrated {migrated() - start} pages in {rounds} rounds, {time.monotonic() - began:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 20000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 256,
    )
