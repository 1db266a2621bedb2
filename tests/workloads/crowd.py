"""A workload: compact memory while thousands of processes live, or while processes exit.

usage: crowd.py live COUNT | exit SECONDS     (root; prints one JSON line)
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from tests.workloads.migrate import PAGE, migrated, touched

COMPACT = Path("/proc/sys/vm/compact_memory")
MANY = 50000


def live(count: int) -> int:
    """Compact memory while children that share our pages live; return how many there were.

    Each child has one page of its own. The shared pages lie far apart with nothing between them,
    so that some are where compaction empties memory.
    """
    areas, children = [touched(1 << 20) for _ in range(64)], list[int]()
    for area in areas:
        area.madvise(mmap.MADV_DONTNEED, PAGE, len(area) - PAGE)
    try:
        while len(children) < count:
            if not (child := os.fork()):
                areas[0][0] = 2
                signal.pause()
                os._exit(0)
            children.append(child)
        before = migrated()
        # The kernel ends a round early if it fails to unmap pages with so many mappings.
        for _ in range(300):
            holes = [touched(1 << 20) for _ in range(256)][::2]
            COMPACT.write_text("1")
            del holes
            if migrated() - before > MANY:
                break
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
    return len(children)


def exits(seconds: float) -> int:
    """Compact memory while children write to our pages and exit at once; return how many.

    So entries vanish while the oracle reads them.
    """
    compacting = os.fork()
    if not compacting:
        while True:
            holes = [touched(1 << 20) for _ in range(64)][::2]
            COMPACT.write_text("1")
            del holes
    mine, count, until = touched(8 << 20), 0, time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            children = []
            for _ in range(4):
                if not (child := os.fork()):
                    for offset in range(0, len(mine), 2 * PAGE):
                        mine[offset] = 2
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)
            count += len(children)
    finally:
        os.kill(compacting, signal.SIGKILL)
        os.waitpid(compacting, 0)
    return count


def main(mode: str, amount: float) -> None:
    before = migrated()
    count = live(int(amount)) if mode == "live" else exits(amount)
    print(json.dumps({"processes": count, "migrated": migrated() - before}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
